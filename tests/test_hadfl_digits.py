"""HADFL on handwritten digits in virtual time, beside its baselines: the direction of every gain, on few seeds."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fieldfare.algorithms.hadfl.coordinator import Coordinator
from fieldfare.algorithms.hadfl.gossip import Gossip
from fieldfare.algorithms.hadfl.methods import PacedRing
from fieldfare.algorithms.hadfl.nodes import decentralised_fedavg, nodes, placed
from fieldfare.algorithms.hadfl.peer import Peer
from fieldfare.algorithms.hadfl.periods import utilisation_bound
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Evaluated
from fieldfare.data import digits, dirichlet, iid
from fieldfare.fleet.fleet import Fleet
from fieldfare.sim.population import Population
from fieldfare.sim.simulator import Links, World
from fieldfare.testing import simulate
from fieldfare.work.dense import mlp
from fieldfare.work.evaluate import central_evaluation
from fieldfare.work.net import Training
from fieldfare.work.train import Train

POWERS = (3, 3, 1, 1)
PEER = Peer(1, lr=0.1, batch_size=16, evaluate=("test",))


class Reached(Exception):
    """The target is."""


def crossing(made, target: float, seed: int, comm: float = 0.0, partition=None) -> float:
    """Virtual time, in steps of the fastest device and without the warm-up, until accuracy `target`, interpolated.

    `comm`: time of one whole model between nodes, in the same unit.
    """
    net, data = mlp(64, 96, 10), digits(4, partition or iid(), seed=seed)
    speeds = np.array(POWERS, np.float32) * np.float32(net.flops() * 16)
    fleet = Fleet(flops_per_s=speeds, downlink_bytes_per_s=1e30, uplink_bytes_per_s=1e30, overhead_s=0.0)
    measure = central_evaluation(net, data.test)
    model = net.init(seed)
    world = World(
        made, model, Population.of(data, fleet), {"train": Train(net, Training(lr=0.1, batch_size=16))}, seed,
        {"test": (lambda model: measure(model.vector), 0.0)}, placed(4),
        links=Links(0.0, model.bytes * max(POWERS) / comm if comm else float("inf")),
    )  # fmt: skip
    log: list[tuple[float, float]] = [(0.0, 0.0)]

    def observe(seen):
        event = getattr(seen, "event", None)
        if isinstance(event, Evaluated):
            log.append((seen.now, event.metrics["accuracy"]))
            if log[-1][1] >= target:
                raise Reached

    with contextlib.suppress(Reached):
        simulate(world, observer=observe)
    for (t0, a0), (t1, a1) in pairwise(log):
        if a1 >= target:
            at = t0 + (t1 - t0) * (target - a0) / (a1 - a0)
            return max(POWERS) * at - 20 * max(POWERS) / min(POWERS)
    raise AssertionError(f"never at {target}: {log[-1]}")


def hadfl(cycles: int, per_cycle: int = 2, rule="models"):
    peer = Peer(cycles, lr=0.1, batch_size=16, per_cycle=per_cycle, rule=rule, evaluate=("test",))
    return nodes(4, peer, Coordinator(cycles, per_cycle, steps=22))


def ours(cycles: int):
    """The paced ring as a job gives it, with evaluations."""
    made = PacedRing(cycles).nodes(4, Training(lr=0.1, batch_size=16, steps=22))
    return {
        name: (role, replace(one, evaluate=("test",)) if role == "peer" else one) for name, (role, one) in made.items()
    }


def test_two_roles_of_two_runs_are_refused_in_one_line():
    with pytest.raises(UsageError, match="are of two runs"):
        nodes(4, Peer(3), Coordinator(4))
    with pytest.raises(UsageError, match="at least two peers"):
        nodes(1, Peer(3), Coordinator(3))


@pytest.mark.slow
def test_on_iid_digits_unlike_steps_gain_what_utilisation_allows_and_no_more():
    pytest.importorskip("sklearn")
    ratios = []
    for seed in range(3):
        slow = crossing(decentralised_fedavg(4, 26, 22, PEER), 0.92, seed)
        ratios.append(slow / crossing(hadfl(14), 0.92, seed))
    assert 0.7 * utilisation_bound(POWERS) < np.median(ratios) < 1.15 * utilisation_bound(POWERS)


@pytest.mark.slow
def test_paced_rings_gain_what_utilisation_allows_on_iid_digits():
    pytest.importorskip("sklearn")
    ratios = []
    for seed in range(3):
        slow = crossing(decentralised_fedavg(4, 30, 22, PEER), 0.93, seed)
        ratios.append(slow / crossing(ours(120), 0.93, seed))
    assert np.median(ratios) > 0.92 * utilisation_bound(POWERS)


@pytest.mark.slow
def test_paced_rings_are_ahead_of_hadfl_and_of_decentralised_fedavg_where_labels_are_skew():
    pytest.importorskip("sklearn")
    found = {}
    for name, made in (("ours", ours(200)), ("hadfl", hadfl(40)), ("fedavg", decentralised_fedavg(4, 40, 22, PEER))):
        at = [crossing(made, 0.8, seed, 2.0, dirichlet(0.3)) for seed in range(3)]
        found[name] = np.median(at)
    assert found["ours"] < 0.8 * found["fedavg"]
    assert found["ours"] < 0.8 * found["hadfl"]


@pytest.mark.slow
def test_on_slow_links_paced_rings_are_ahead_of_gossip_in_pairs():
    pytest.importorskip("sklearn")
    for steps in (1, 4):
        pairs = {f"peer/{i}": ("peer", Gossip(1200, steps, evaluate=("test",), every=3)) for i in range(4)}
        for seed in range(2):
            mine = crossing(ours(120), 0.9, seed, 10.0)
            theirs = crossing(pairs, 0.9, seed, 10.0) + 20 * max(POWERS) / min(POWERS)  # no warm-up to leave out
            assert mine < theirs


@pytest.mark.slow
def test_deltas_per_step_with_all_gain_as_much_on_iid_digits():
    pytest.importorskip("sklearn")
    slow = crossing(decentralised_fedavg(4, 26, 22, PEER), 0.92, 0)
    assert slow / crossing(hadfl(14, 4, "deltas"), 0.92, 0) > 1.5
