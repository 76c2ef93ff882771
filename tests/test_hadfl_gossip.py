"""The baselines without a coordinator: what they conserve, what they wait for, and that they agree in the end."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.algorithms.hadfl.gossip import Gossip, Offer, Share, Took
from fieldfare.algorithms.hadfl.graph import Again, Graph, Later, metropolis
from fieldfare.algorithms.hadfl.nodes import placed
from fieldfare.core import rng
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Publish, Run, Send, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered, Left, Received, Started, Woke
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.sim.simulator import Links
from fieldfare.testing import Fault, checks, loop, quadratics, simulate

PROBLEM = quadratics(n=5, dim=7, examples=(8, 8))
RING = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 0))
FULL = tuple((a, b) for a in range(5) for b in range(a))


def world(peer, peers=5, **more):
    speeds = np.array([3e3, 3e3, 1e3, 1e3, 2e3], np.float32)
    fleet = Fleet(flops_per_s=speeds, downlink_bytes_per_s=1e30, uplink_bytes_per_s=1e30, overhead_s=0.0)
    names = {f"peer/{i}": ("peer", peer) for i in range(peers)}
    return PROBLEM.world(names, placement=placed(peers), fleet=fleet, links=Links(0.001, 1e5), **more)


def models(end):
    return np.array([state.model.vector for state in states(end)], np.float64)


def states(end):
    driver = end.driver
    return (
        [node.state for node in driver.nodes.values()]
        if hasattr(driver, "nodes")
        else [*driver.progress.states.values()]
    )


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
    assert sent[1] == [Wake]
    state, effects = peer.step(state, Left("peer/1"), ctx)
    assert [type(e) for e in effects if not isinstance(e, Publish)] == [Send, Run]


# What is lost


@dataclass(frozen=True)
class Faulty:
    """A peer whose link loses messages, or brings them twice: each with the chance `lost` or `twice`, by `seed`."""

    inner: Any
    seed: int
    lost: float = 0.3
    twice: float = 0.2
    kinds: tuple[type, ...] = (Offer, Again, Later, Share, Took)

    def init(self, model):
        return self.inner.init(model)

    def step(self, state, event, ctx):
        if not isinstance(event, Received) or not isinstance(event.body, self.kinds):
            return self.inner.step(state, event, ctx)
        what = type(event.body).__name__, event.src, event.body.round, str(ctx.now)
        luck = rng.derive(self.seed, "link", ctx.me, *what) / 2.0**64
        if luck < self.lost:
            return state, ()
        state, out = self.inner.step(state, event, ctx)
        if luck > 1.0 - self.twice:
            state, more = self.inner.step(state, event, ctx)
            out = (*out, *more)
        return state, out


def faulty(peer, seed, **how):
    plain = world(peer)
    return replace(plain, nodes={name: (role, Faulty(one, seed, **how)) for name, (role, one) in plain.nodes.items()})


@pytest.mark.parametrize("edges", [RING, FULL, RING[:3]], ids=["ring", "full", "path"])
def test_a_graph_over_links_that_lose_repeat_and_delay_ends_with_the_bits_of_one_without(edges):
    peer = Graph(6, edges, 2, 0.05)
    whole = models(loop(world(peer)))
    asked = 0
    for seed in range(6):
        dice = random.Random(seed)
        faults = [
            Fault(dice.choice(["delay", "repeat"]), "event", dice.choice([0.01, 0.3, 9.0]), f"peer/{dice.randrange(5)}",
                  times=dice.randint(1, 9)) for _ in range(4)
        ]  # fmt: skip
        end = loop(faulty(peer, seed), faults, keep=True)
        asked += sum(isinstance(e, Send) and isinstance(e.body, Again)
                     for _, _, effects in end.transcript.kept for e in effects)  # fmt: skip
        assert [(state.round, state.waiting) for state in states(end)] == [(6, False)] * 5
        assert models(end).tobytes() == whole.tobytes()
        assert all(len(state.sent) <= 2 and len(state.inbox) <= 8 for state in states(end))
    assert asked > 6


@pytest.mark.slow
def test_graphs_under_a_hundred_seeded_schedules_in_which_half_is_lost_end_alike():
    peer = Graph(5, RING, 1, 0.05)
    whole = models(loop(world(peer))).tobytes()
    for seed in range(100):
        assert models(loop(faulty(peer, seed, lost=0.5))).tobytes() == whole


def test_a_graph_asks_for_nothing_again_where_nothing_is_lost():
    for links in (Links(0.001, 1e5), Links(0.0, 28.0 / 0.05), Links(0.0, float("inf"))):
        end = simulate(replace(world(Graph(20, FULL)), links=links), keep=True)
        sent = [e.body for _, _, effects in end.transcript.kept for e in effects if isinstance(e, Send)]
        assert {type(body) for body in sent} == {Offer}
        assert len(sent) == 20 * 5 * 4


def test_a_peer_asks_ever_more_rarely_and_gives_up_in_the_end():
    peer, ctx = Graph(3, ((0, 1),)), Context(0.0, "peer/0", 0)
    state, _ = peer.step(peer.init(PROBLEM.model), Started({"peer": ("peer/0", "peer/1")}), ctx)
    now = replace(ctx, now=2.0)
    state, out = peer.step(state, Gathered(("train", 1), {}, 1.0, (0,), np.ones(1), {}), now)
    waits = []
    while any(hasattr(e, "after") for e in out):
        waits += [e.after for e in out if hasattr(e, "after")]
        state, out = peer.step(state, Woke(("missing", 1)), now)
        assert [e.body.round for e in out if isinstance(e, Send)] in ([1], [])
    assert len(waits) == 65
    assert [later / before for before, later in pairwise(waits)] == [2.0] * 6 + [1.0] * 58
    state, out = peer.step(state, Received("peer/1", Offer(1, PROBLEM.model.vector)), now)
    assert [e.tag for e in out if isinstance(e, Run)] == [("train", 2)]


def test_an_offer_is_told_again_to_neighbours_who_ask_and_to_nobody_else():
    peer, ctx = Graph(3, ((0, 1), (1, 2))), Context(0.0, "peer/0", 0)
    state, _ = peer.step(peer.init(PROBLEM.model), Started({"peer": ("peer/0", "peer/1", "peer/2")}), ctx)
    (later,) = peer.step(state, Received("peer/1", Again(1)), ctx)[1]
    assert isinstance(later.body, Later)
    state, _ = peer.step(state, Gathered(("train", 1), {}, 1.0, (0,), np.ones(1), {}), ctx)
    (again,) = peer.step(state, Received("peer/1", Again(1)), ctx)[1]
    assert (again.to, again.body.round, again.body.vector.tobytes()) == ("peer/1", 1, PROBLEM.model.vector.tobytes())
    assert peer.step(state, Received("peer/2", Again(1)), ctx)[1] == ()
    assert peer.step(state, Received("peer/2", Offer(1, PROBLEM.model.vector)), ctx)[0] is state


@pytest.mark.parametrize("how", ["pair", "push"])
def test_gossip_goes_on_where_offers_and_answers_are_lost(how):
    end = simulate(faulty(Gossip(200, 2, 0.05, how), 1, lost=0.1, twice=0.0))
    assert [state.round for state in states(end)] == [200] * 5
    assert PROBLEM.loss(end.model) < 2.0 * PROBLEM.loss(PROBLEM.model.replace(PROBLEM.optimum))


def test_gossip_over_links_far_slower_than_thought_grows_patient_and_stays_together():
    plain = world(Gossip(60, lr=0.05))
    slow = replace(plain, links=Links(0.0, 28.0 / 3.0))  # a model takes a hundred trainings of the fastest
    end = simulate(slow, keep=True)
    offers = [
        step.now for step, (node, _, effects) in zip(end.transcript.steps, end.transcript.kept, strict=True)
        for e in effects if node == "peer/0" and isinstance(e, Send) and isinstance(e.body, Offer)
    ]  # fmt: skip
    assert len(offers) == 60
    assert max(len([one for one in offers if at <= one < at + 6.0]) for at in offers[8:]) <= 3
    assert PROBLEM.loss(end.model) < 2.0 * PROBLEM.loss(PROBLEM.model.replace(PROBLEM.optimum))


@pytest.mark.parametrize("peer", [Graph(40, RING, 2, 0.05), Gossip(40, 2, 0.05), Gossip(40, 2, 0.05, "push")],
                         ids=["graph", "pair", "push"])  # fmt: skip
def test_a_device_that_goes_and_comes_back_holds_nobody_up_for_ever(peer):
    there = [[(0.0, np.inf)] for _ in range(5)]
    there[1] = [(0.0, 0.25), (0.9, 1.31), (3.0, np.inf)]
    plain = world(peer)
    fleet = replace(plain.population.fleet, availability=Availability.of(there))
    away = replace(plain, population=replace(plain.population, fleet=fleet))
    end = simulate(away)
    assert [(state.round, state.waiting) for state in states(end)] == [(40, False)] * 5


def test_a_neighbour_gone_for_good_holds_up_a_graph_and_the_run_ends():
    there = [[(0.0, np.inf)] for _ in range(5)]
    there[2] = [(0.0, 0.3)]
    plain = world(Graph(40, RING[:3], 2, 0.05))
    fleet = replace(plain.population.fleet, availability=Availability.of(there))
    end = simulate(replace(plain, population=replace(plain.population, fleet=fleet)))
    assert end.reason == "nothing left to happen"
    assert [state.waiting for state in states(end)] == [True, True, True, True, False]
    assert states(end)[4].round == 40


# Learning rates


@pytest.mark.parametrize("peer", [Gossip(4), Graph(4, RING)], ids=["gossip", "graph"])
def test_without_a_learning_rate_the_trainings_own_holds_and_its_schedule_goes_by_own_rounds(peer):
    end = simulate(world(peer), keep=True)
    runs = [(node, e.config) for node, _, effects in end.transcript.kept for e in effects if isinstance(e, Run)]
    for name in ("peer/0", "peer/3"):
        assert [config["round"] for node, config in runs if node == name] == [1, 2, 3, 4]
    assert not any("lr" in config for _, config in runs)
