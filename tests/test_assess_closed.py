"""Closed forms of the forecast: the paper's arithmetic, Little's law, the shapes of figures 7 and 8."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.assess.forecast.closed import (
    LogNormal,
    aggregators,
    ingress_bytes_per_s,
    synchronous_round_s,
    task_s,
    throughput,
)  # fmt: skip
from fieldfare.core.errors import UsageError

TASK = LogNormal(30.0, 1.85)


def at(concurrency: int = 120, buffer: int = 50, staleness: float = 10.0):
    return throughput(concurrency, buffer, TASK, supply_per_s=4.2, session_s=900.0, max_staleness=staleness)


def test_the_papers_arithmetic() -> None:
    assert ingress_bytes_per_s(610_000, 48 * 3600, 1.0) == pytest.approx(3.53, abs=5e-3)
    assert ingress_bytes_per_s(610_000, 48 * 3600, 0.76e6) == pytest.approx(2.68e6, rel=2e-3)
    assert task_s(4.98 / 5000, 1, 1, 0, 0, 1, 1) == pytest.approx(0.996e-3)


def test_tasks_rise_with_concurrency_until_supply_binds() -> None:
    started = [at(concurrency=c).tasks_per_s * 3 * 3600 for c in (60, 120, 180, 240)]
    assert [at(concurrency=c).bound_by for c in (60, 120, 180)] == ["concurrency", "supply", "supply"]
    assert started[1] / started[0] > 1.5
    assert started[1:] == pytest.approx([45_200] * 3, rel=0.01)


def test_the_stale_share_falls_with_the_limit_and_interruptions_stay() -> None:
    waste = [1 - at(staleness=s).ok_share for s in (1, 10, 20, 30, 40)]
    assert waste == sorted(waste, reverse=True)
    assert 0.1 < waste[0] < 0.3
    assert waste[-1] == pytest.approx(1 - TASK.below(900.0), abs=0.01)


def test_a_version_takes_time_in_proportion_to_its_buffer() -> None:
    periods = [at(180, k).version_s for k in (20, 40, 80, 120)]
    assert np.diff(periods) / np.diff([20, 40, 80, 120]) == pytest.approx(periods[0] / 20, rel=0.15)


@given(st.floats(0.1, 1e4), st.floats(0.0, 2.5), st.floats(0.01, 1e5))
def test_the_time_at_work_lies_below_the_mean_and_the_cut(mean: float, sigma: float, cut: float) -> None:
    task = LogNormal(mean, sigma)
    assert 0 <= task.capped(cut) <= min(mean, cut) * (1 + 1e-9)
    assert task.capped(inf) == mean


def test_capped_means_and_order_statistics_are_those_of_draws() -> None:
    draws = np.exp(np.random.default_rng(0).normal(TASK.mu, TASK.sigma, 400_000))
    for cut in (5.0, 60.0, 900.0):
        assert TASK.capped(cut) == pytest.approx(np.minimum(draws, cut).mean(), rel=0.02)
    calm = LogNormal(30.0, 0.6)
    rounds = np.sort(np.exp(np.random.default_rng(1).normal(calm.mu, calm.sigma, (4000, 65))), axis=1)
    assert synchronous_round_s(50, calm, 1.3) == pytest.approx(rounds[:, 49].mean(), rel=0.03)
    assert synchronous_round_s(65, calm) == pytest.approx(rounds[:, 64].mean(), rel=0.06)


def test_with_time_for_all_nothing_is_lost_and_devices_are_as_many_as_asked() -> None:
    found = throughput(100, 10, LogNormal(20.0, 0.6))
    assert found.ok_share == 1.0
    assert found.at_work == pytest.approx(100)
    assert found.tasks_per_s == pytest.approx(5.0)
    assert found.version_s == pytest.approx(2.0)


def test_servers_are_at_least_one_and_numbers_that_cannot_be_are_refused() -> None:
    assert aggregators(0.0, 0.1) == 1
    assert aggregators(60.0, 0.01) == 1
    assert aggregators(60.1, 0.01) == 2
    with pytest.raises(UsageError, match="use a mean > 0"):
        LogNormal(0.0, 1.0)
    with pytest.raises(UsageError, match="numbers >= 1"):
        throughput(0, 1, TASK)
