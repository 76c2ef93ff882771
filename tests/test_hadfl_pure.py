"""HADFL's pure parts: predicted versions, local steps per period, and the draw, against their formulas."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.algorithms.hadfl.draw import Table, chances, draw, inclusion, inclusion_of, logits, probabilities
from fieldfare.algorithms.hadfl.messages import Decided, Select
from fieldfare.algorithms.hadfl.periods import deadline, drifted, hyperperiod, plan, utilisation_bound
from fieldfare.algorithms.hadfl.versions import Brown, steady
from fieldfare.core.errors import UsageError


def table(versions, count, cycle=1, ages=(), turns=False):
    return Table(cycle, count, tuple(versions), tuple(versions.values()), tuple(ages), turns)


times = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=8)
versions = st.lists(st.floats(0.0, 1e6), min_size=1, max_size=8).map(np.array)


@given(st.floats(0.1, 0.9), st.floats(-100, 100), st.floats(-10, 10))
def test_the_error_on_a_straight_line_falls_geometrically(s, start, gain):
    brown, errors = Brown(start, start, s), []
    for j in range(1, 200):
        errors.append(abs(brown.ahead(1) - (start + gain * j)))
        brown = brown.report(start + gain * j)
    rate = max(1.0 - s, 0.5)
    assert errors[-1] <= 1e-6 + abs(gain) * 200 * (rate + 0.05) ** 150
    assert errors[-1] <= errors[0] + 1e-9


@given(st.floats(0.1, 0.9), st.floats(0, 1000), st.floats(0, 100))
def test_a_device_that_keeps_to_the_plan_is_predicted_from_the_start(s, start, gain):
    brown = steady(start, gain, s)
    for j in range(1, 20):
        assert brown.ahead(1) == pytest.approx(start + gain * j, rel=1e-9, abs=1e-9)
        brown = brown.report(start + gain * j)


def test_brown_is_the_recurrence_written_out():
    brown = Brown(10.0, 10.0, 0.5).report(20.0)
    assert (brown.a, brown.c, brown.level, brown.trend) == (15.0, 12.5, 17.5, 2.5)
    assert brown.ahead(2) == 22.5


def test_a_smoothing_outside_0_and_1_is_refused_in_one_line():
    with pytest.raises(UsageError, match="between 0 and 1"):
        Brown(0.0, 0.0, 1.0)


@pytest.mark.parametrize(("powers", "epochs"), [((3, 3, 1, 1), (3, 3, 1, 1)), ((4, 2, 2, 1), (4, 2, 2, 1))])
def test_the_published_powers_give_their_own_epochs_and_nobody_waits(powers, epochs):
    found = hyperperiod([1.0 / p for p in powers])
    assert found is not None
    assert found.counts == epochs
    assert max(map(abs, found.idle([1.0 / p for p in powers]))) < 1e-12


@given(times, st.integers(1, 16))
def test_no_hyperperiod_is_above_the_cap_and_each_count_divides_it(seconds, most):
    found = hyperperiod(seconds, most)
    if found is not None:
        assert max(found.counts) <= math.lcm(*found.counts) <= most
        assert max(map(abs, found.idle(seconds))) <= 0.25
        assert min(found.counts) >= 1


def test_timings_whose_multiple_explodes_fall_back_to_a_deadline():
    seconds = [7.0, 11.0, 13.0]
    strict = hyperperiod(seconds, misfit=0.01)
    assert strict is None
    tight = plan([t / 20 for t in (1.0, 1.55, 50.0)], [20, 20, 20], "lcm")
    assert tight.mode == "deadline"
    kept = plan([1.0, 3.0], [20, 20], "lcm")
    assert (kept.mode, kept.counts, kept.seconds) == ("lcm", (60, 20), 60.0)


@given(st.lists(st.tuples(st.floats(0.01, 10.0), st.integers(1, 100)), min_size=1, max_size=10))
def test_within_a_deadline_everyone_steps_and_nobody_is_late_or_could_do_one_more(devices):
    step_s, epoch = [c for c, _ in devices], [n for _, n in devices]
    found = deadline(step_s, epoch)
    assert found.seconds == max(c * n for c, n in devices)
    for c, e in zip(step_s, found.counts, strict=True):
        assert e >= 1
        assert e * c <= found.seconds * (1 + 1e-9)
        assert (e + 1) * c > found.seconds * (1 - 1e-9)


def test_drift_is_a_fifth_either_way():
    assert not drifted(1.0, 1.2)
    assert drifted(1.0, 1.21)
    assert drifted(1.0, 0.79)
    assert utilisation_bound([4, 2, 2, 1]) == 2.25


@given(versions)
def test_probabilities_are_the_normalised_bell(v):
    mu, sigma = np.percentile(v, 75), max(v.std(), 1e-9)
    density = np.exp(-0.5 * ((v - mu) / sigma) ** 2)
    assert probabilities(v) == pytest.approx(density / density.sum(), rel=1e-9, abs=1e-300)
    assert probabilities(v).sum() == pytest.approx(1.0)


def test_slow_devices_keep_a_chance_where_a_density_of_spread_one_underflows():
    v = np.array([66.0, 66.0, 22.0, 22.0])
    assert np.exp(-0.5 * (v - np.percentile(v, 75)) ** 2)[2] == 0.0
    assert probabilities(v).round(3).tolist() == [0.44, 0.44, 0.06, 0.06]
    assert inclusion(v, 2).round(3).tolist() == [0.843, 0.843, 0.157, 0.157]
    assert inclusion(np.array([4.0, 2.0, 2.0, 1.0]), 2).round(3).tolist() == [0.339, 0.661, 0.661, 0.339]


def test_one_device_far_away_in_a_large_fleet_is_still_drawn_in_logarithms():
    v = np.concatenate([np.zeros(1), np.full(5000, 1e6)])
    assert probabilities(v)[0] == 0.0
    assert np.isfinite(logits(v)).all()
    everybody = table({f"p{i}": x for i, x in enumerate(v)}, 5001)
    assert len(set(draw(0, everybody))) == 5001


@given(versions, st.integers(1, 4))
def test_inclusion_is_the_sum_over_ordered_draws(v, count):
    v, p = v[:5], probabilities(v[:5])
    count = min(count, len(v))
    expected = np.zeros(len(v))
    for order in permutations(range(len(v)), count):
        chance, left = 1.0, 1.0
        for i in order:
            chance, left = chance * p[i] / max(left, 1e-300), left - p[i]
        expected[list(order)] += chance
    assert inclusion(v, count).sum() == pytest.approx(count)
    if p.min() > 1e-6:
        assert inclusion(v, count) == pytest.approx(expected, rel=1e-6)


def test_chances_of_many_names_are_near_the_exact_ones():
    v = np.linspace(0.0, 50.0, 65)
    near, exact = inclusion(v, 10), inclusion(v[:64], 10)
    assert near.sum() == pytest.approx(10.0)
    assert np.abs(near[:64] - exact).max() < 0.05 * exact.max()


def test_what_a_run_keeps_of_a_draw_names_the_chances_of_all():
    kept = Select(3, 0, ("b", "a"), ("a", "b", "c"), (66.0, 66.0, 22.0), 1.0, 1.0, False, ages=(1.0, 1.0, 9.0)).record()
    assert (kept["cycle"], kept["epoch"], kept["members"]) == (3, 0, ["b", "a"])
    versions = {"a": 66.0, "b": 66.0, "c": 22.0}
    assert kept["chance"] == chances(table(versions, 2, ages=(1.0, 1.0, 9.0)))
    assert sum(kept["chance"].values()) == pytest.approx(2.0)
    assert kept["chance"]["c"] > chances(table(versions, 2))["c"]
    assert Decided(3, 1, "x", ()).record() == {"cycle": 3, "epoch": 1}


def test_draws_come_as_often_as_their_probabilities_say():
    names = {"a": 66.0, "b": 60.0, "c": 22.0, "d": 30.0}
    cycles, seen = 4000, dict.fromkeys(names, 0)
    first = dict.fromkeys(names, 0)
    for cycle in range(cycles):
        drawn = draw(7, table(names, 2, cycle))
        first[drawn[0]] += 1
        for name in drawn:
            seen[name] += 1
    v = np.array(list(names.values()))
    expected = probabilities(v) * cycles
    chi = sum((first[name] - e) ** 2 / e for name, e in zip(names, expected, strict=True))
    assert chi < 16.27  # 3 degrees of freedom, p = 0.001; the draws are fixed by the seed
    for name, q in zip(names, inclusion(v, 2), strict=True):
        assert abs(seen[name] - cycles * q) < 4.0 * math.sqrt(cycles * q * (1 - q))


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(0, 100), max_size=6), st.integers(1, 8))
def test_a_draw_is_of_different_known_names_and_anyone_can_redo_it(names, count):
    drawn = draw(1, table(names, count, 2))
    assert len(set(drawn)) == len(drawn) == min(count, len(names))
    assert set(drawn) <= set(names)
    assert draw(1, table(dict(reversed(names.items())), count, 2)) == drawn


def test_by_age_the_slow_are_drawn_half_as_often_again_as_by_the_bell_alone():
    names, last, seen = {"a": 66.0, "b": 66.0, "c": 22.0, "d": 22.0}, dict.fromkeys("abcd", 0), dict.fromkeys("abcd", 0)
    plain = dict.fromkeys("abcd", 0)
    for cycle in range(1, 601):
        drawn = draw(3, table(names, 2, cycle, [cycle - last[name] for name in names]))
        for name in drawn:
            last[name], seen[name] = cycle, seen[name] + 1
        for name in draw(3, table(names, 2, cycle)):
            plain[name] += 1
    for slow in "cd":
        assert seen[slow] > 1.5 * plain[slow]
    assert draw(3, table(names, 2, 1, [1.0] * 4)) == draw(3, table(names, 2))


@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 99))
def test_by_turns_everybody_is_drawn_once_in_every_block_and_nobody_waits_for_two(k, count, seed):
    names, last = {f"p{i}": float(3**i) for i in range(k)}, {}
    block = math.ceil(k / count)
    for start in range(1, 6 * block, block):
        drawn = []
        for cycle in range(start, start + block):
            now = table(names, count, cycle, [cycle - last.get(name, 0) for name in names], turns=True)
            here = draw(seed, now)
            assert all(cycle - last.get(name, 0) < 2 * block for name in here)
            sure = {name for name, chance in chances(now).items() if chance == 1.0}
            assert sure <= set(here)
            assert all(chances(now)[name] > 0.0 for name in here)
            last |= dict.fromkeys(here, cycle)
            drawn += here
        assert set(drawn) == set(names)


def test_a_race_of_far_apart_weights_still_sums_to_the_count():
    weight = np.array([0.0, -700.0, 1000.0, 990.0, -3.0])
    for count in range(1, 6):
        assert inclusion_of(weight, count).sum() == pytest.approx(count)
    assert inclusion_of(weight, 3)[2:4].tolist() == [1.0, 1.0]
