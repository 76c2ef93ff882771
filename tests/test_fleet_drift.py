"""Speeds that drift: computing ends where the integral of the factor says, by whatever way it is asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.core.errors import UsageError
from fieldfare.core.work import Cost
from fieldfare.fleet import Drift, DriftTable, Fleet, drifting, phones, write_fleet
from fieldfare.fleet.drift import computing, computing_one
from fieldfare.fleet.tasks import INTERRUPTED, account, phases

TABLE = DriftTable([0.0, 4.0, 10.0], [[1.0, 0.5, 2.0], [3.0, 0.25, 1.0]])
both = pytest.mark.parametrize("drift", [Drift(0.8, rho=0.7, every_s=3.0, seed=5), TABLE], ids=["made up", "table"])


def brute(drift, device: int, at: float, seconds: float, dt: float = 1e-3) -> float:
    """What computing takes, by small steps in time."""
    times = at + dt * (np.arange(60_000) + 0.5)
    who = np.full(len(times), device)
    done = np.cumsum(drift.factor(drift.step(times, who), who) * dt)
    return dt * float(np.searchsorted(done, seconds))


@both
@pytest.mark.parametrize(("device", "at", "seconds"), [(0, 0.0, 2.5), (1, 3.1, 5.0), (0, 9.99, 4.0), (1, 50.0, 1.0)])
def test_computing_takes_what_stepping_through_time_says(drift, device, at, seconds):
    exact = computing(drift, np.array([device]), np.array([at]), np.array([seconds]))[0]
    assert exact == pytest.approx(brute(drift, device, at, seconds), abs=1e-2)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1e4), st.floats(0, 100)), min_size=1, max_size=8),
    st.sampled_from([Drift(0.8, rho=0.7, every_s=3.0, seed=5), Drift(0.4, rho=0.0, every_s=0.5), TABLE]),
)
def test_one_device_alone_and_many_together_take_the_same_to_the_last_bit(tasks, drift):
    devices, at, seconds = (np.array(column) for column in zip(*tasks, strict=True))
    together = computing(drift, devices, at.astype(float), seconds.astype(float))
    assert together.tolist() == [computing_one(drift, int(d), float(t), float(s)) for d, t, s in tasks]


@both
@settings(max_examples=25, deadline=None)
@given(st.floats(0, 500), st.floats(0, 60), st.floats(0, 60))
def test_two_pieces_one_after_the_other_take_as_long_as_both_at_once(drift, at, first, second):
    whole = computing_one(drift, 1, at, first + second)
    one = computing_one(drift, 1, at, first)
    assert one + computing_one(drift, 1, at + one, second) == pytest.approx(whole, abs=1e-6)


def test_factors_do_not_depend_on_what_was_asked_before_or_beside():
    steps = np.arange(500)
    whole = Drift(0.5, rho=0.95).factor(steps, np.full(500, 3))
    order = np.random.default_rng(0).permutation(500)
    other = Drift(0.5, rho=0.95)
    assert [float(other.factor(steps[[k]], np.array([3]))[0]) for k in order] == whole[order].tolist()
    assert Drift(0.5, rho=0.95, seed=1).factor(steps, np.full(500, 3)).tolist() != whole.tolist()


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.97])
def test_made_up_factors_have_mean_one_and_correlate_from_step_to_step_as_told(rho):
    drift, devices, steps = Drift(0.5, rho=rho), np.arange(4000), np.full(4000, 40)
    logs = [np.log(drift.factor(steps + k, devices)) / 0.5 + 0.25 for k in (0, 1, 2, 31)]
    assert np.exp(0.5 * logs[0] - 0.125).mean() == pytest.approx(1.0, abs=0.05)
    assert logs[0].std() == pytest.approx(1.0, abs=0.05)
    for lag, other in zip((1, 2, 31), logs[1:], strict=True):
        assert np.corrcoef(logs[0], other)[0, 1] == pytest.approx(rho**lag, abs=0.06)


def test_devices_change_at_instants_of_their_own():
    drift, devices = Drift(0.5, every_s=10.0), np.arange(100)
    ends = drift.until(drift.step(np.zeros(100), devices), devices)
    assert len(set(ends.tolist())) == 100
    assert ((ends > 0) & (ends <= 10)).all()


def test_a_step_is_the_first_that_ends_after_its_time_also_at_its_very_end():
    drift, devices = Drift(0.5, every_s=0.1), np.arange(50)
    for step in (0, 1, 7, 12345):
        steps = np.full(50, step)
        ends = drift.until(steps, devices)
        assert (drift.step(ends, devices) == step + 1).all()
        assert (drift.step(np.nextafter(ends, 0.0), devices) == step).all()


def test_a_fleet_without_drift_and_one_of_factor_one_take_the_same_time_to_the_last_bit():
    fleet, devices = phones().build(20, 0), np.arange(20)
    still = replace(fleet, drift=DriftTable([0.0, 7.0], np.ones((20, 2))))
    cost = Cost(np.linspace(1e9, 9e9, 20), 1e5, 1e5)
    assert phases(still, devices, cost, 3.0).compute == pytest.approx(phases(fleet, devices, cost, 3.0).compute)
    slow = replace(fleet, drift=DriftTable([0.0], np.full((20, 1), 0.5)))
    assert phases(slow, devices, cost, 3.0).compute == pytest.approx(2 * phases(fleet, devices, cost, 3.0).compute)


def test_computing_drifts_from_when_the_download_is_over():
    fleet = Fleet(1.0, 1.0, 1.0, 2.0, latency_s=1.0, drift=DriftTable([0.0, 8.0], [[1.0, 0.5]]), slow_links=True)
    parts = phases(fleet, np.array([0]), Cost(5.0, 3.0, 1.0), 0.0)
    assert parts.down.tolist() == [4.0]
    assert parts.compute.tolist() == [2.0 + 3.0 / 0.5]
    assert parts.whole.tolist() == [2.0 + 4.0 + 8.0 + 2.0]


def test_a_drifting_task_that_is_cut_short_has_computed_until_then():
    fleet = Fleet(1.0, 1.0, 1.0, 0.0, drift=DriftTable([0.0, 4.0], [[1.0, 0.5]]), slow_links=True)
    one, cost = np.array([0]), Cost(np.array([5.0]), np.array([1.0]), np.array([1.0]))
    parts = phases(fleet, one, cost, 0.0)
    cut = np.array([INTERRUPTED], np.int8)
    told = account(fleet, one, np.zeros(1), np.array([4.5]), cut, one, parts, cost)
    assert told.compute_s.tolist() == [3.5]


def test_a_recipe_drifts_by_the_seed_of_its_run():
    recipe = drifting(phones(), sigma=0.5, every_s=5.0)
    one, other = recipe.build(3, 1), recipe.build(3, 2)
    assert one.drift.seed == 1
    assert one.flops_per_s.tolist() == phones().build(3, 1).flops_per_s.tolist()
    assert computing_one(one.drift, 0, 0.0, 9.0) != computing_one(other.drift, 0, 0.0, 9.0)
    assert "log-normal" in one.describe()["drift"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Drift(-1.0), "use sigma from 0 to 5"),
        (lambda: Drift(0.1, rho=1.0), "rho from 0 to below 1"),
        (lambda: DriftTable([0.0, 1.0], [[1.0]]), "give k times from 0 on"),
        (lambda: DriftTable([1.0], [[1.0]]), "give k times from 0 on"),
        (lambda: DriftTable([0.0, 0.0], [[1.0, 1.0]]), "seconds that ascend"),
        (lambda: DriftTable([0.0], [[1.0], [0.0]]), "device 1 has a factor"),
        (lambda: Fleet(drift=TABLE).fit(3), "about 2 devices, the job has 3 clients"),
        (lambda: Fleet(drift=0.5), "use a Drift"),
    ],
)
def test_drift_that_cannot_be_is_refused_in_one_line(make, said):
    with pytest.raises(UsageError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_fleet_that_drifts_is_not_written_without_its_drift(tmp_path):
    with pytest.raises(UsageError, match="no table holds a drift"):
        write_fleet(Fleet(drift=Drift(0.1)), tmp_path, 3, "csv")
