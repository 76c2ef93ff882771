"""How long a task takes, with numbers by hand: each term of a duration, each part of a task."""

from __future__ import annotations

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.core.work import Cost
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.tasks import account, phases

FLEET = Fleet(
    flops_per_s=np.array([1e9, 2e9], np.float32), downlink_bytes_per_s=np.array([4e6, 1e6], np.float32),
    uplink_bytes_per_s=np.array([5e5, 2.5e5], np.float32), overhead_s=np.array([1.0, 3.0], np.float32),
    latency_s=np.array([0.25, 0.5], np.float32), compute_w=2.0, radio_w=0.5,
)  # fmt: skip
COST = Cost(np.array([6e9, 8e9]), 2e6, 1e6, 0.0)
BOTH = np.arange(2)


def test_a_duration_is_overhead_and_both_transfers_and_computing_and_latency_twice():
    # overhead + down + computing + up + latency
    first = 1.0 + 0.5 + 6.0 + 2.0 + 2 * 0.25
    second = 3.0 + 2.0 + 4.0 + 4.0 + 2 * 0.5
    assert FLEET.durations(BOTH, COST).tolist() == [first, second] == [10.0, 14.0]
    assert FLEET.durations(BOTH[1:], Cost(np.array([8e9]), 2e6, 1e6, 0.0)).tolist() == [14.0]


@pytest.mark.parametrize(
    ("flops", "down", "up", "seconds"),
    [(0.0, 0.0, 0.0, 1.5), (1e9, 0.0, 0.0, 2.5), (0.0, 4e6, 0.0, 2.5), (0.0, 0.0, 5e5, 2.5), (0.0, 0.0, 1e6, 3.5)],
)
def test_each_term_of_a_duration_counts_by_itself(flops, down, up, seconds):
    cost = Cost(np.array([flops]), down, up, 0.0)
    assert FLEET.durations(BOTH[:1], cost).tolist() == [seconds]
    assert phases(FLEET, BOTH[:1], cost, 100.0).whole.tolist() == [seconds]


def test_the_parts_of_a_task_are_those_of_its_duration_and_what_it_draws_is_counted_by_part():
    parts = phases(FLEET, BOTH, COST, 0.0)
    assert parts.overhead.tolist() == [1.0, 3.0]
    assert parts.down.tolist() == [0.75, 2.5]
    assert parts.compute.tolist() == [6.0, 4.0]
    assert parts.up.tolist() == [2.25, 4.5]
    assert parts.whole.tolist() == FLEET.durations(BOTH, COST).tolist()
    start = np.zeros(2)
    tasks = account(FLEET, BOTH, start, parts.whole, np.zeros(2, np.int8), np.zeros(2, np.int64), parts, COST)
    assert tasks.energy_j.tolist() == [2.0 * 6.0 + 0.5 * 3.0, 2.0 * 4.0 + 0.5 * 7.0]
    assert (tasks.bytes_down.tolist(), tasks.bytes_up.tolist()) == ([2e6, 2e6], [1e6, 1e6])


@pytest.mark.parametrize("make", [ff.FedNova, ff.QFedAvg])
def test_the_number_beside_a_delta_is_counted_among_the_bytes_sent_up(make):
    data = ff.data.synthetic(clients=6, classes=3, features=4, max_examples=60, seed=1)
    job = ff.Job(model=ff.mlp(4, 3), data=data, algorithm=make(rounds=2, cohort=5))
    summary = job.run(runs=None, progress=False).summary
    model = 4 * (4 * 3 + 3)
    assert (summary["bytes_down"], summary["bytes_up"]) == (2 * 5 * model, 2 * 5 * (model + 4))
