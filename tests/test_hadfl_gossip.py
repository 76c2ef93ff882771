"""The baselines without a coordinator: what they conserve, what they wait for, and that they agree in the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.algorithms.hadfl.gossip import Gossip, Graph, Offer, Share, Took, metropolis
from fieldfare.algorithms.hadfl.nodes import placed
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Publish, Run, Send
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered, Left, Received, Started
from fieldfare.fleet.fleet import Fleet
from fieldfare.sim.simulator import Links
from fieldfare.testing import checks, loop, quadratics, simulate

PROBLEM = quadratics(n=5, dim=7, examples=(8, 8))
RING = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 0))
FULL = tuple((a, b) for a in range(5) for b in range(a))


def world(peer, peers=5, **more):
    speeds = np.array([3e3, 3e3, 1e3, 1e3, 2e3], np.float32)
    fleet = Fleet(flops_per_s=speeds, downlink_bytes_per_s=1e30, uplink_bytes_per_s=1e30, overhead_s=0.0)
    names = {f"peer/{i}": ("peer", peer) for i in range(peers)}
    return PROBLEM.world(names, placement=placed(peers), fleet=fleet, links=Links(0.001, 1e5), **more)


def models(end):
    return np.array([state.model.vector for state in end.driver.progress.states.values()], np.float64)


class Apart:
    """Starts each peer from a model of its own: its name's number."""

    def __init__(self, inner):
        self.inner = inner

    def init(self, model):
        return self.inner.init(model)

    def step(self, state, event, ctx):
        if not state.peers:
            state = replace(state, model=state.model.replace(np.full(7, float(ctx.me[-1]), np.float32)))
        return self.inner.step(state, event, ctx)


def test_exchanges_of_pairs_conserve_the_mean_and_end_in_agreement():
    plain = world(Gossip(60, lr=0.0))
    apart = replace(plain, nodes={name: (role, Apart(one)) for name, (role, one) in plain.nodes.items()})
    end = models(simulate(apart))
    assert end.mean() == pytest.approx(2.0, abs=1e-5)
    assert np.ptp(end, axis=0).max() < 1e-3


def test_a_graph_of_all_edges_is_the_mean_of_all():
    plain = world(Graph(1, FULL, lr=0.0))
    apart = replace(plain, nodes={name: (role, Apart(one)) for name, (role, one) in plain.nodes.items()})
    assert models(simulate(apart)) == pytest.approx(np.full((5, 7), 2.0), abs=1e-6)


def test_a_ring_graph_conserves_the_mean_and_converges():
    plain = world(Graph(80, RING, lr=0.0))
    apart = replace(plain, nodes={name: (role, Apart(one)) for name, (role, one) in plain.nodes.items()})
    end = models(simulate(apart))
    assert end == pytest.approx(np.full((5, 7), 2.0), abs=1e-4)


@pytest.mark.parametrize("peer", [Gossip(60, 2, 0.05), Gossip(60, 2, 0.05, how="push"), Graph(60, RING, 2, 0.05)])
def test_they_learn(peer):
    end = simulate(world(peer))
    best = PROBLEM.loss(PROBLEM.model.replace(PROBLEM.optimum))
    assert PROBLEM.loss(end.model) < 1.3 * best
    assert end.reason == "nothing left to happen"


def test_gossip_never_waits_and_a_graph_waits_for_the_slowest():
    quick = {}
    for name, peer in (("gossip", Gossip(20)), ("graph", Graph(20, FULL))):
        end = simulate(world(peer), keep=True)
        first = [e.version for node, _, effects in end.transcript.kept for e in effects if isinstance(e, Publish)]
        assert first == list(range(1, 21))
        done = [step.now for step in end.transcript.of("peer/0") if step.kind == "Gathered"]
        quick[name] = done[-1]
    assert quick["graph"] > 2.5 * quick["gossip"]


def test_a_pair_costs_two_models_and_a_push_one():
    for how, kinds in (("pair", (Offer, Share)), ("push", (Offer, Took))):
        end = simulate(world(Gossip(4, how=how)), keep=True)
        sent = [e.body for _, _, effects in end.transcript.kept for e in effects if isinstance(e, Send)]
        assert {type(body) for body in sent} == {*kinds}
        assert len(sent) == (3 if how == "pair" else 5) * 4 * len(kinds)
        assert len(end.transcript.events(Gathered)) == 5 * 4


@given(st.integers(2, 7), st.data())
def test_weights_of_any_graph_are_doubly_stochastic(n, data):
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda e: e[0] != e[1])
    w = metropolis(data.draw(st.lists(pairs, max_size=10)), n)
    assert w == pytest.approx(w.T)
    assert w.sum(axis=0) == pytest.approx(np.ones(n))
    assert w.min() >= -1e-12


def test_an_edge_to_nobody_is_refused_in_one_line():
    with pytest.raises(UsageError, match="two different numbers below 5"):
        simulate(world(Graph(1, ((0, 7),))))
    with pytest.raises(UsageError, match="numbers >= 1"):
        Gossip(0)


@pytest.mark.parametrize("peer", [Gossip(2), Graph(2, ((0, 1), (1, 2)))], ids=["gossip", "graph"])
def test_the_laws_of_one_run(peer):
    small = world(peer, peers=3)
    for law in (checks.pure, checks.total, checks.storable, checks.deaf_to_duplicates, checks.onward,
                checks.same_everywhere):  # fmt: skip
        law(small)
    assert loop(small).reason == "nothing left to happen"


@pytest.mark.parametrize("how", ["pair", "push"])
def test_over_slow_links_one_offer_at_a_time_is_on_its_way_and_models_stay_together(how):
    slow = replace(world(Gossip(60, lr=0.05, how=how)), links=Links(0.0, 28.0 / 0.05))
    end = simulate(slow, keep=True)
    steps = [(node, event, effects) for node, event, effects in end.transcript.kept if node == "peer/0"]
    offers = [any(isinstance(e, Send) and isinstance(e.body, Offer) for e in effects) for _, _, effects in steps]
    answers = [isinstance(event, Received) and isinstance(event.body, Share | Took) for _, event, _ in steps]
    on_its_way = np.cumsum(np.array(offers, int) - np.array(answers, int))
    assert set(on_its_way.tolist()) == {0, 1}
    assert (sum(offers) == 60) == (how == "pair")
    assert PROBLEM.loss(end.model) < 2.0 * PROBLEM.loss(PROBLEM.model.replace(PROBLEM.optimum))


def test_models_far_apart_meet_over_slow_links_and_never_swap():
    plain = replace(world(Gossip(30, lr=0.0), peers=2), links=Links(0.0, 28.0 / 0.05))
    apart = replace(plain, nodes={name: (role, Apart(one)) for name, (role, one) in plain.nodes.items()})
    assert models(simulate(apart)) == pytest.approx(np.full((2, 7), 0.5), abs=1e-5)


def test_who_asked_a_peer_that_is_gone_goes_on_without_it():
    peer, ctx = Gossip(12), Context(0.0, "peer/0", 0)
    state, _ = peer.step(peer.init(PROBLEM.model), Started({"peer": ("peer/0", "peer/1")}), ctx)
    sent = []
    for r in (1, 2):
        state, effects = peer.step(state, Gathered(("train", r), {}, 1.0, (0,), np.ones(1), {}), ctx)
        sent.append([type(e) for e in effects])
    assert sent[1] == []
    state, effects = peer.step(state, Left("peer/1"), ctx)
    assert [type(e) for e in effects if not isinstance(e, Publish)] == [Send, Run]
