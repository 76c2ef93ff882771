"""Task time: four parts, cut short where the session ends or the time is out, and what was done until then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.core import rng
from fieldfare.core.work import Cost
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.network import Network
from fieldfare.fleet.tasks import (
    DROP_OUT,
    INTERRUPTED,
    LATE,
    OK,
    OUTCOMES,
    STALE,
    TIMEOUT,
    Phases,
    Tasks,
    account,
    ends,
    noise_of,
    phases,
)

FLEET = Fleet(
    flops_per_s=np.array([10.0, 20.0], np.float32), downlink_bytes_per_s=50.0, uplink_bytes_per_s=25.0, overhead_s=1.0,
    slow_links=True, latency_s=0.5, compute_w=3.0, radio_w=2.0,
)  # fmt: skip
COST = Cost(100.0, 200.0, 100.0)
BOTH, ZERO = np.arange(2), np.zeros(2)


def spent(fleet: Fleet, seconds: float, outcome: int = INTERRUPTED, cost: Cost = COST, start: float = 0.0) -> Tasks:
    """Device 0's task of `cost`, cut off after `seconds`."""
    one, at = np.zeros(1, np.int64), np.full(1, start)
    code = np.array([outcome], np.int8)
    return account(fleet, one, at, at + seconds, code, one, phases(fleet, one, cost, at), cost)


def test_a_task_is_overhead_download_computing_and_upload() -> None:
    parts = phases(FLEET, BOTH, COST, 0.0)
    assert parts.overhead.tolist() == [1.0, 1.0]
    assert parts.down.tolist() == [4.5, 4.5]
    assert parts.compute.tolist() == [10.0, 5.0]
    assert parts.up.tolist() == [4.5, 4.5]
    assert parts.whole.tolist() == [20.0, 15.0]
    assert FLEET.durations(BOTH, COST).tolist() == [20.0, 15.0]


@pytest.mark.parametrize(("seconds", "down", "compute", "up"), [
    (0.5, 0, 0, 0), (1.0, 0, 0, 0), (1.25, 0, 0, 0), (3.5, 100, 0, 0), (5.5, 200, 0, 0), (8.0, 200, 2.5, 0),
    (15.5, 200, 10, 0), (15.75, 200, 10, 0), (18.0, 200, 10, 50), (19.999999, 200, 10, 99.999975),
])  # fmt: skip
def test_what_was_done_of_a_task_that_was_cut_off_counts(seconds, down, compute, up) -> None:
    for outcome in (INTERRUPTED, TIMEOUT):
        told = spent(FLEET, seconds, outcome)
        assert told.bytes_down[0] == pytest.approx(down)
        assert told.bytes_up[0] == pytest.approx(up)
        assert told.compute_s[0] == pytest.approx(compute)
        radio = min(max(seconds - 1.0, 0.0), 4.5) + max(seconds - 15.5, 0.0)
        assert told.energy_j[0] == pytest.approx(3.0 * compute + 2.0 * radio)


@pytest.mark.parametrize("outcome", [OK, LATE, STALE])
def test_a_whole_task_counts_whole_whatever_becomes_of_its_reply(outcome) -> None:
    told = spent(FLEET, 20.0, outcome)
    assert (told.bytes_down[0], told.bytes_up[0], told.compute_s[0]) == (200.0, 100.0, 10.0)
    assert told.energy_j[0] == 3.0 * 10.0 + 2.0 * 9.0


def test_who_drops_out_has_computed_and_sends_nothing() -> None:
    told = spent(FLEET, 20.0, DROP_OUT)
    assert (told.bytes_down[0], told.bytes_up[0], told.compute_s[0]) == (200.0, 0.0, 10.0)
    assert told.energy_j[0] == 3.0 * 10.0 + 2.0 * 4.5


def test_links_that_take_no_time_move_nothing_before_their_turn() -> None:
    fast = Fleet(flops_per_s=10.0, downlink_bytes_per_s=1e30, uplink_bytes_per_s=1e30, overhead_s=1.0)
    fast = replace(fast, downlink_bytes_per_s=3e38, uplink_bytes_per_s=3e38)
    assert spent(fast, 0.5).bytes_down[0] == 0.0
    assert spent(fast, 5.0).bytes_down[0] == 200.0
    assert spent(fast, 5.0).bytes_up[0] == 0.0
    nothing = Cost(100.0, 0.0, 0.0)
    assert spent(fast, 5.0, cost=nothing).bytes_down[0] == 0.0


@given(st.floats(0.0, 30.0), st.floats(0.0, 100.0), st.booleans())
def test_the_parts_of_a_cut_task_add_up_to_its_time(seconds, start, changing) -> None:
    fleet = FLEET
    if changing:
        rates = [np.array(pair, np.float32) for pair in ((50, 0), (5, 25))]
        link = Network(np.array([0, 2]), np.array([0.0, 7.0]), *rates, np.array([13.0]))
        fleet = replace(FLEET, network=link.take(np.zeros(2, np.int64)))
    one, at = np.zeros(1, np.int64), np.full(1, start)
    parts = phases(fleet, one, COST, at)
    seconds = min(seconds, float(parts.whole[0]) * (1 - 1e-9))
    told = spent(fleet, seconds, start=start)
    assert parts.whole[0] == pytest.approx(
        sum(float(getattr(parts, p)[0]) for p in ("overhead", "down", "compute", "up"))
    )
    radio = (told.energy_j[0] - 3.0 * told.compute_s[0]) / 2.0
    assert radio + told.compute_s[0] == pytest.approx(max(seconds - 1.0, 0.0), abs=1e-6)
    assert 0 <= told.bytes_down[0] <= 200
    assert 0 <= told.bytes_up[0] <= 100
    more = spent(fleet, seconds * 0.9, start=start)
    for name in ("bytes_down", "bytes_up", "compute_s", "energy_j"):
        assert getattr(more, name)[0] <= getattr(told, name)[0] + 1e-6
    nearly = spent(fleet, float(parts.whole[0]) * (1 - 1e-9), start=start)
    assert (nearly.bytes_down[0], nearly.bytes_up[0]) == pytest.approx((200.0, 100.0), abs=1e-3)


def test_bytes_of_a_cut_transfer_are_those_the_changing_link_moved() -> None:
    link = Network(np.array([0, 2]), np.array([0.0, 10.0]), np.array([10, 1000], np.float32),
                   np.array([10, 1000], np.float32), np.array([20.0]))  # fmt: skip
    fleet = Fleet(overhead_s=0.0, network=link)
    assert spent(fleet, 5.0).bytes_down[0] == 50.0
    assert spent(fleet, 10.05).bytes_down[0] == pytest.approx(150.0)


def test_a_transfer_late_in_a_long_run_begins_at_its_own_instant() -> None:
    link = Network(np.array([0, 2]), np.array([0.0, 0.5]), np.array([10, 1000], np.float32),
                   np.array([10, 1000], np.float32), np.array([1.0]))  # fmt: skip
    fleet = Fleet(overhead_s=np.float32([0.25]), network=link)
    at = 5e7 + 0.125
    one = np.zeros(1, np.int64)
    by_number, by_column = phases(fleet, one, COST, at), phases(fleet, one, COST, np.full(1, at))
    for name in Phases.__slots__:
        assert getattr(by_number, name).tolist() == getattr(by_column, name).tolist()
    assert by_number.down[0] == pytest.approx(0.125 + (200 - 1.25) / 1000, rel=1e-6)


def test_a_task_ends_at_the_first_of_its_own_end_its_sessions_and_its_time_out() -> None:
    come = Availability.of([[(0, 10)]] * 6, period_s=100.0)
    fleet = Fleet(availability=come)
    whole = np.array([5.0, 10.0, 12.0, 12.0, 8.0, 20.0])
    end, outcome = ends(fleet, np.arange(6), np.zeros(6), whole, None)
    assert end.tolist() == [5.0, 10.0, 10.0, 10.0, 8.0, 10.0]
    assert [OUTCOMES[code] for code in outcome] == ["ok", "ok", "interrupted", "interrupted", "ok", "interrupted"]
    end, outcome = ends(fleet, np.arange(6), np.full(6, 4.0), whole, 6.0)
    assert end.tolist() == [9.0, 10.0, 10.0, 10.0, 10.0, 10.0]
    assert [OUTCOMES[code] for code in outcome] == ["ok", *["timeout"] * 5]
    assert ends(Fleet(), np.arange(6), np.zeros(6), whole, 10.0)[1].tolist() == [0, 0, 2, 2, 0, 2]
    known = ends(fleet, np.arange(6), np.zeros(6), whole, None, np.full(6, 11.0))
    assert known[0].tolist() == [5.0, 10.0, 11.0, 11.0, 8.0, 11.0]


def test_noise_is_on_computing_alone_and_has_mean_one() -> None:
    noisy = replace(FLEET, noise=0.8)
    keys = rng.keys(0, ("noise",), np.arange(200_000))
    factor = noise_of(noisy, keys)
    assert abs(factor.mean() - 1.0) < 5 * factor.std() / np.sqrt(len(factor))
    assert abs(np.log(factor).std() - 0.8) < 0.01
    assert noise_of(FLEET, keys) is None
    parts = phases(noisy, BOTH, COST, 0.0, np.array([2.0, 0.5]))
    assert parts.compute.tolist() == [20.0, 2.5]
    assert parts.whole.tolist() == [30.0, 12.5]


def test_tasks_are_counted_by_how_they_ended() -> None:
    n, code = 14, np.arange(14, dtype=np.int8) % 7
    column = np.zeros(n)
    tasks = Tasks(np.arange(n), column, column + np.arange(n), code, np.arange(n), column, column, column, column)
    assert len(tasks) == n
    assert tasks.by_outcome() == dict.fromkeys(OUTCOMES, 2)
    seconds = tasks.seconds_by_outcome()
    assert seconds["ok"] == 0 + 7
    assert sum(seconds.values()) == sum(range(n))
