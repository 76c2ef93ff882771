"""Selection rules: the laws all of them keep, and what each takes from its paper."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.core.errors import UsageError
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.pool import alike, lowest, weighted
from fieldfare.fleet.selection import (
    DAY_S,
    SELECTIONS,
    Available,
    LeastAvailable,
    Oort,
    Pool,
    PowerOfChoice,
    Reported,
    Tiers,
    Uniform,
    draws,
    selection_of,
    tiers_of,
)

VARIANTS = [
    *(rule.settings() for rule in SELECTIONS.values()),
    Available(sight="ahead"),
    Oort(most_times=1, fairness=0.5, pace_rounds=1),
    PowerOfChoice(candidates=3),
    LeastAvailable(rest_rounds=0),
    Tiers(tiers=3, every=1, credits=2),
    Tiers(tiers=2, probabilities=(1.0, 0.0), adaptive=False),
]
RULES = pytest.mark.parametrize("rule", VARIANTS, ids=str)


def everyone(n, round=1, now=0.0, share=None, examples=None, seconds=None, ids=None):
    """A pool of `n` devices, in the middle of the road unless told otherwise."""
    return Pool(
        np.arange(n) if ids is None else ids,
        np.full(n, 10) if examples is None else np.asarray(examples),
        np.full(n, 5.0) if seconds is None else np.asarray(seconds, float),
        now, round, share,
    )  # fmt: skip


def told(ids, loss, seconds=5.0, examples=10, ok=True, round=1):
    """What `ids` came back with."""
    k = len(ids)
    column = lambda value, kind: np.broadcast_to(np.asarray(value, kind), (k,)).copy()  # noqa: E731
    return Reported(np.asarray(ids, np.int64), column(loss, float), column(seconds, float), column(examples, np.int64),
                    column(ok, bool), 0.0, round)  # fmt: skip


def scene(seed, n=40):
    """Random pools and reports of the rounds of one run over `n` devices: `(pool, count, report of ids)`."""
    make = np.random.default_rng(seed)
    examples, seconds = make.integers(0, 50, n), make.lognormal(1.0, 1.0, n)
    share = np.round(make.random(n), 1)
    for round in range(1, 8):
        ids = np.flatnonzero(make.random(n) < 0.7)
        count = int(make.integers(0, len(ids) + 1)) if round % 3 == 0 else min(4, len(ids))
        pool = Pool(ids, examples[ids], seconds[ids], 100.0 * round, round, lambda t0, t1, ids=ids: share[ids])
        losses, good = make.random(n), make.random(n) < 0.8
        losses[make.random(n) < 0.2] = np.nan

        def report(ids, losses=losses, good=good, round=round):
            return Reported(ids, losses[ids], seconds[ids], examples[ids], good[ids], 100.0 * round + 50.0, round)

        yield pool, count, report


def stored(state):
    """The state after a trip through a file that holds numbers and arrays only."""
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    numbers = {name: value for name, value in state.items() if name not in arrays}
    assert all(type(value) in (int, float) and math.isfinite(value) for value in numbers.values()), numbers
    assert all(value.dtype.kind in "fib" for value in arrays.values())
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    return {**dict(np.load(file, allow_pickle=False)), **numbers}


def chosen(rule, pool, count, state=None, seed=0, key=("train", 1)):
    return rule.choose(rule.init(1000) if state is None else state, count, pool, draws(seed, *key))[0]


def often(rule, pool, count, state, rounds=400):
    """How often each of the first devices was chosen over many asks of one state."""
    times = np.zeros(pool.size, np.int64)
    for key in range(rounds):
        times[chosen(rule, pool, count, copy.deepcopy(state), key=(key,))] += 1
    return times / rounds


# Laws of every rule


@RULES
@given(seed=st.integers(0, 2**32))
def test_a_choice_is_that_many_different_candidates_in_ascending_order(rule, seed):
    state = rule.init(40)
    for pool, count, report in scene(seed):
        ids, state = rule.choose(state, count, pool, draws(seed, pool.round))
        assert len(ids) == count
        assert ids.dtype == np.int64
        assert (np.diff(ids) > 0).all()
        assert np.isin(ids, pool.ids).all()
        state = rule.observe(state, report(ids))


@RULES
@given(seed=st.integers(0, 2**32), at=st.integers(0, 6))
@pytest.mark.sampled(3)
def test_a_state_that_was_stored_chooses_as_one_that_was_not(rule, seed, at):
    whole, resumed = rule.init(40), rule.init(40)
    for step, (pool, count, report) in enumerate(scene(seed)):
        if step == at:
            resumed = stored(resumed)
        left, whole = rule.choose(whole, count, pool, draws(seed, pool.round))
        right, resumed = rule.choose(resumed, count, pool, draws(seed, pool.round))
        assert left.tolist() == right.tolist()
        whole, resumed = rule.observe(whole, report(left)), rule.observe(resumed, report(right))
        stored(whole)


@RULES
def test_other_numbers_give_another_choice(rule):
    pool = everyone(200)
    choices = {tuple(chosen(rule, pool, 5, key=(key,))) for key in range(10)}
    assert len(choices) > 5


@RULES
def test_the_whole_pool_may_be_asked_and_nobody(rule):
    pool = everyone(7, ids=np.array([2, 3, 5, 7, 11, 13, 17]))
    assert chosen(rule, pool, 7).tolist() == pool.ids.tolist()
    assert chosen(rule, pool, 0).tolist() == []
    empty = everyone(0)
    assert chosen(rule, empty, 0).tolist() == []


@RULES
def test_more_than_the_candidates_are_refused_in_one_line(rule):
    with pytest.raises(UsageError, match=r"^[^\n]*8 devices are asked of 7 candidates[^\n]*$"):
        chosen(rule, everyone(7), 8)


@RULES
def test_a_report_of_nobody_and_one_of_failures_alone_are_taken(rule):
    state = rule.init(20)
    ids, state = rule.choose(state, 4, everyone(20), draws(0, 1))
    state = rule.observe(state, told([], np.empty(0)))
    state = rule.observe(state, told(ids, np.nan, ok=False))
    ids, state = rule.choose(state, 4, everyone(20, round=2), draws(0, 2))
    assert len(set(ids.tolist())) == 4


@RULES
def test_a_run_without_losses_still_chooses(rule):
    state = rule.init(30)
    for round in range(1, 60):
        ids, state = rule.choose(state, 5, everyone(30, round), draws(0, round))
        assert len(set(ids.tolist())) == 5
        state = rule.observe(state, told(ids, np.nan, round=round))


@RULES
def test_a_rule_says_which_columns_it_reads(rule):
    full = everyone(12, share=lambda t0, t1: np.full(12, 0.5))
    spare = {name: None for name in ("examples", "seconds", "share_between") if name not in rule.reads}
    assert chosen(rule, replace(full, **spare), 4).tolist() == chosen(rule, full, 4).tolist()
    for column in rule.reads - {"share_between"}:
        with pytest.raises(UsageError, match=rf"reads {column}"):
            chosen(rule, replace(full, **{column: None}), 4)


def test_a_pool_out_of_order_is_refused_in_one_line():
    with pytest.raises(UsageError, match="ascending order"):
        Pool(np.array([1, 0]))
    with pytest.raises(UsageError, match="ascending order"):
        Pool(np.array([1, 1]))
    with pytest.raises(UsageError, match="2 values for 3 candidates"):
        Pool(np.arange(3), np.ones(2, np.int64))
    with pytest.raises(UsageError, match="rounds count from 1"):
        Pool(np.arange(3), round=0)


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_rule_is_found_by_its_name(name):
    entry = SELECTIONS[name]
    assert isinstance(selection_of(name), entry.settings)
    assert entry.settings.name == name
    assert entry.summary
    assert entry.paper


def test_an_unknown_rule_gets_one_line_with_the_nearest():
    with pytest.raises(UsageError, match=r"^[^\n]*'ort'[^\n]*did you mean 'oort'\?$"):
        selection_of("ort")
    with pytest.raises(UsageError, match="there are uniform, available"):
        selection_of("zzz")
    with pytest.raises(UsageError, match="no selection rule"):
        selection_of(3)
    with pytest.raises(UsageError, match="no selection rule"):
        selection_of(Oort)


def test_settings_of_ones_own_pass_through():
    rule = Oort(exploration=0.5)
    assert selection_of(rule) is rule


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        (Oort, {"exploration": 1.5}), (Oort, {"clip": 0.0}), (Oort, {"penalty": -1.0}), (Oort, {"pace_rounds": 0}),
        (Oort, {"most_times": 0}), (Oort, {"exploration": "much"}), (Oort, {"epsilon": 0.5}),
        (Oort, {"fairness": math.nan}), (PowerOfChoice, {"candidates": 0}), (LeastAvailable, {"smoothing": 1.0}),
        (LeastAvailable, {"rest_rounds": -1}), (Tiers, {"tiers": 0}), (Tiers, {"every": 0}), (Tiers, {"credits": 0}),
        (Tiers, {"tiers": 2, "probabilities": (1.0,)}), (Tiers, {"tiers": 2, "probabilities": (0.5, 0.6)}),
        (Tiers, {"tiers": 2, "probabilities": (1.5, -0.5)}), (Available, {"sight": "behind"}),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_setting_is_one_line(rule, wrong):
    with pytest.raises(UsageError, match=r"^[^\n]+$"):
        rule(**wrong)


# Draws


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(0, 30), st.integers(0, 9))
def test_the_lowest_scores_are_those_of_a_sort(scores, count, seed):
    score, ties = np.array(scores, float), np.random.default_rng(seed).random(len(scores))
    expected = sorted(sorted(range(len(scores)), key=lambda i: (score[i], ties[i]))[:count])
    assert lowest(score, count, ties).tolist() == expected
    assert lowest(score, count).tolist() == sorted(sorted(range(len(scores)), key=lambda i: score[i])[:count])


def test_a_weighted_draw_is_in_proportion_and_weight_zero_comes_last():
    weights = np.array([0.0, 1.0, 3.0])
    first = np.array([weighted(weights, 1, draws(0, key)(0, np.arange(3)))[0] for key in range(4000)])
    assert not (first == 0).any()
    assert abs((first == 2).mean() - 0.75) < 0.03
    assert weighted(weights, 2, draws(0, 1)(0, np.arange(3))).tolist() == [1, 2]


@pytest.mark.parametrize("m", [10, 1000])
def test_a_uniform_draw_takes_each_as_often(m):
    times = np.zeros(m)
    for key in range(20_000 // m * 10):
        times[alike(m, 4, draws(0, key))] += 1
    expected = times.sum() / m
    assert abs(times - expected).max() < 5 * math.sqrt(expected)


def test_streams_and_asks_have_numbers_of_their_own():
    counters = np.arange(100)
    seen = [
        draws(0, "a")(0, counters),
        draws(0, "a")(1, counters),
        draws(0, "b")(0, counters),
        draws(1, "a")(0, counters),
    ]
    assert len({tuple(numbers) for numbers in seen}) == 4
    assert draws(0, "a")(0, counters[50:]).tolist() == seen[0][50:].tolist()


def test_pools_of_a_million_cost_a_uniform_draw_no_more_than_its_cohort():
    asked = []

    def draw(stream, counters):
        asked.append(len(counters))
        return draws(0)(stream, counters)

    ids, _ = Uniform().choose({}, 10, Pool(np.arange(1_000_000)), draw)
    assert len(ids) == 10
    assert sum(asked) < 100


# By availability


def test_a_device_expected_to_leave_before_its_task_ends_is_asked_less():
    share = np.array([1.0, 0.25, 0.0])
    rates = often(Available(), everyone(3, share=lambda t0, t1: share), 1, {}, 3000)
    assert abs(rates[0] - 0.8) < 0.03
    assert rates[2] == 0


@pytest.mark.parametrize(("sight", "begin"), [("day-before", 2 * DAY_S - DAY_S), ("ahead", 2 * DAY_S)])
def test_availability_is_asked_over_the_span_of_each_ones_own_task(sight, begin):
    spans = []

    def share(t0, t1):
        spans.append((t0.tolist(), t1.tolist()))
        return np.ones(2)

    chosen(Available(sight=sight), everyone(2, now=2 * DAY_S, seconds=[3.0, 8.0], share=share), 1)
    assert spans == [([begin, begin], [begin + 3.0, begin + 8.0])]


@pytest.mark.parametrize("rule", [Available(), Available(sight="ahead"), LeastAvailable()], ids=str)
def test_the_rules_read_traces(rule):
    sessions = Availability.of([[(0.0, 3600.0)]] * 3 + [[(0.0, 60.0)]] * 3, DAY_S)  # to 01:00, and to 00:01
    pool = everyone(
        6, seconds=[100.0, 200.0, 30.0] * 2, share=lambda t0, t1: sessions.share_between(t0, t1, np.arange(6))
    )
    rates = often(rule, replace(pool, now=7 * DAY_S + 59.0), 2, rule.init(6))
    assert rates[:3].sum() < 0.1 if isinstance(rule, LeastAvailable) else rates[3:].sum() < 0.1


# Power of choice


def test_power_of_choice_takes_the_worst_of_all_when_all_are_candidates():
    rule = PowerOfChoice(candidates=30)
    losses = np.random.default_rng(0).random(30)
    state = rule.observe(rule.init(30), told(np.arange(30), losses))
    assert chosen(rule, everyone(30), 5, state).tolist() == np.sort(np.argsort(losses)[-5:]).tolist()


def test_power_of_choice_with_as_many_candidates_as_asked_is_the_draw_by_data_size():
    rule, examples = PowerOfChoice(candidates=1), np.array([10, 30])
    state = rule.observe(rule.init(2), told([0, 1], [9.0, 0.1]))
    rates = often(rule, everyone(2, examples=examples), 1, state, 3000)
    assert abs(rates[1] - 0.75) < 0.03
    assert (
        weighted(examples, 1, draws(0, 5)(0, np.arange(2))).tolist()
        == chosen(rule, everyone(2, examples=examples), 1, state, key=(5,)).tolist()
    )


def test_power_of_choice_takes_those_that_never_told_a_loss_first():
    rule = PowerOfChoice(candidates=10)
    state = rule.observe(rule.init(10), told(np.arange(8), 100.0))
    state = rule.observe(state, told([8], 0.0, ok=False))
    state = rule.observe(state, told([9], np.nan))
    assert chosen(rule, everyone(10), 2, state).tolist() == [8, 9]


# Least available first


def test_the_least_available_come_first_and_ties_are_random():
    share = np.array([0.9, 0.1, 0.5, 0.0, 0.5, 0.5])
    pool = everyone(6, share=lambda t0, t1: share)
    rule = LeastAvailable()
    assert chosen(rule, pool, 2).tolist() == [1, 3]
    rates = often(rule, pool, 3, rule.init(6))
    assert rates[[1, 3]].tolist() == [1.0, 1.0]
    assert abs(rates[[2, 4, 5]] - 1 / 3).max() < 0.1


def test_the_window_is_from_one_to_two_mean_rounds_ahead_as_seen_a_day_earlier():
    spans = []

    def share(t0, t1):
        spans.append((t0[0], t1[0]))
        return np.zeros(len(t0))

    rule = LeastAvailable(smoothing=0.25)
    state = rule.init(3)
    pool = everyone(3, now=100.0, seconds=[10.0, 20.0, 90.0], share=share)
    chosen(rule, pool, 1, state)
    assert spans[-1] == (100.0 + 20.0 - DAY_S, 100.0 + 40.0 - DAY_S)
    state = rule.observe(state, told([0, 1, 2], 1.0, seconds=[40.0, 8.0, 500.0], ok=[True, True, False]))
    assert state["mu_s"] == 40.0
    state = rule.observe(state, told([0], 1.0, seconds=80.0, round=2))
    assert state["mu_s"] == 0.75 * 80.0 + 0.25 * 40.0
    chosen(rule, replace(pool, round=3), 1, state)
    assert spans[-1] == (100.0 + 70.0 - DAY_S, 100.0 + 140.0 - DAY_S)


def test_a_device_that_took_part_rests_and_is_asked_when_nobody_else_is_there():
    rule = LeastAvailable(rest_rounds=5)
    share = np.array([0.0, 1.0, 0.0])
    state = rule.observe(rule.init(3), told([0], 1.0, round=1))
    state = rule.observe(state, told([2], 1.0, round=2))
    for round in range(3, 7):
        assert chosen(rule, everyone(3, round, share=lambda t0, t1: share), 1, state).tolist() == [1]
        assert chosen(rule, everyone(3, round, share=lambda t0, t1: share), 2, state).tolist() == [0, 1]
    assert chosen(rule, everyone(3, 7, share=lambda t0, t1: share), 1, state).tolist() == [0]


# Oort


def explored(rule, loss, seconds=5.0, examples=10, round=1):
    """A state in which all devices told a loss in `round`."""
    n = len(np.atleast_1d(loss))
    return rule.observe(rule.init(n), told(np.arange(n), loss, seconds, examples, round=round))


def test_oort_prefers_devices_of_high_loss_and_of_much_data():
    rule, pool = Oort(), everyone(20, round=2)
    rates = often(rule, pool, 5, explored(rule, np.arange(1.0, 21.0)))
    assert rates[-3:].min() > 0.8
    assert rates[:10].max() == 0
    rates = often(rule, pool, 5, explored(rule, np.ones(20), examples=np.arange(1, 21)))
    assert rates[-3:].min() > 0.8
    assert rates[:10].max() == 0


def test_oort_passes_over_slow_devices_of_equal_loss():
    rule, seconds = Oort(pace=0.5), np.array([1.0] * 10 + [10.0] * 9)
    rates = often(rule, everyone(19, round=2), 5, explored(rule, np.ones(19), seconds))
    assert rates[10:].max() == 0
    all_fast = often(Oort(pace=1.0), everyone(19, round=2), 5, explored(Oort(pace=1.0), np.ones(19), seconds))
    assert all_fast[10:].min() > 0.1
    no_penalty = often(Oort(pace=0.5, penalty=0.0), everyone(19, round=2), 5, explored(rule, np.ones(19), seconds))
    assert no_penalty[10:].min() > 0.1


def test_oort_clips_utilities_so_that_one_outlier_does_not_take_all():
    loss = np.array([1e6] + [10.0] * 19)
    rates = often(Oort(), everyone(20, round=2), 2, explored(Oort(), loss))
    assert rates[0] < 0.2
    assert often(Oort(clip=1.0), everyone(20, round=2), 2, explored(Oort(), loss))[0] > 0.3


def test_oort_comes_back_to_those_it_has_not_heard_of_for_long():
    rule = Oort()
    state = explored(rule, np.ones(20))
    state = rule.observe(state, told(np.arange(10), 1.0, round=400))
    rates = often(rule, everyone(20, round=401), 3, state)
    assert rates[:10].max() == 0
    assert rates[10:].min() > 0.1


def test_the_share_that_oort_explores_falls_to_its_floor():
    rule, n = Oort(), 400
    state = rule.observe(rule.init(n), told(np.arange(200), 1.0))
    for round, share in ((1, 0.9), (11, 0.9 * 0.98**10), (500, 0.2)):
        assert rule.explored_share(round) == pytest.approx(share)
        fresh = [np.sum(chosen(rule, everyone(n, round), 10, state, key=(key,)) >= 200) for key in range(200)]
        assert np.mean(fresh) == pytest.approx(10 * share, abs=0.15)
        assert max(fresh) - min(fresh) <= 1


def test_a_cohort_of_one_explores_and_exploits():
    rule, n = Oort(), 40
    state = rule.observe(rule.init(n), told(np.arange(20), 1.0))
    fresh = np.mean([chosen(rule, everyone(n, 500), 1, state, key=(key,))[0] >= 20 for key in range(1000)])
    assert fresh == pytest.approx(0.2, abs=0.05)


def test_oort_explores_fast_devices_first():
    rule, seconds = Oort(exploration=1.0, exploration_min=1.0), np.array([1.0, 4.0])
    rates = often(rule, everyone(2, seconds=seconds), 1, rule.init(2), 3000)
    assert abs(rates[0] - 0.8) < 0.03


def test_a_device_that_failed_stays_unexplored():
    rule = Oort(exploration=0.0)
    state = rule.observe(rule.init(3), told([0, 1], 1.0, ok=[True, False]))
    assert chosen(rule, everyone(3, 2), 1, state).tolist() == [0]
    assert state["times"].tolist() == [1, 0, 0]


def test_the_pacer_lets_slower_devices_in_when_utility_falls_and_only_then():
    rule = Oort(pace=0.3, pace_step=0.25, pace_rounds=2)
    falling, rising = rule.init(1), rule.init(1)
    for round in range(1, 8):
        falling = rule.observe(falling, told([0], 10.0 - round, round=round))
        rising = rule.observe(rising, told([0], float(round), round=round))
    assert falling["pace"] == pytest.approx(0.8)  # at the starts of rounds 5 and 7
    assert rising["pace"] == 0.3
    for round in range(8, 40):
        falling = rule.observe(falling, told([0], 50.0 - round, round=round))
    assert falling["pace"] == 1.0


def test_a_device_that_took_part_often_enough_is_left_out_while_others_suffice():
    rule = Oort(most_times=2)
    state = rule.init(4)
    for round, ids in ((1, [0, 1]), (2, [0, 1]), (3, [1])):
        state = rule.observe(state, told(ids, 9.0, round=round))
    for key in range(20):
        assert chosen(rule, everyone(4, 4), 2, state, key=(key,)).tolist() == [2, 3]
        assert chosen(rule, everyone(4, 4), 3, state, key=(key,)).tolist() == [0, 2, 3]


def test_full_fairness_asks_those_that_took_part_least():
    rule = Oort(fairness=1.0, exploration=0.0)
    state = explored(rule, np.arange(1.0, 7.0))
    state = rule.observe(state, told([3, 4, 5], 9.0, round=2))
    assert chosen(rule, everyone(6, 3), 3, state).tolist() == [0, 1, 2]


# Tiers


def test_a_cohort_comes_from_one_tier():
    seconds = np.random.default_rng(0).lognormal(1.0, 1.0, 100)
    tier, rule, seen = tiers_of(seconds, 5), Tiers(), []
    for key in range(200):
        inside = set(tier[chosen(rule, everyone(100, seconds=seconds), 8, key=(key,))].tolist())
        assert len(inside) == 1
        seen += inside
    assert np.bincount(seen, minlength=5).min() > 20


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=40), st.integers(1, 7))
def test_tiers_are_in_order_of_speed_and_equal_in_size(seconds, tiers):
    tier = tiers_of(np.array(seconds), tiers)
    sizes = np.bincount(tier, minlength=tiers)
    assert sizes.max() - sizes.min() <= 1
    for slower in range(1, tiers):
        inside, before = np.array(seconds)[tier == slower], np.array(seconds)[tier < slower]
        assert not inside.size or not before.size or before.max() <= inside.min()


@pytest.mark.parametrize("drawn", range(4))
def test_given_probabilities_choose_the_tier(drawn):
    rule = Tiers(tiers=4, probabilities=tuple(float(tier == drawn) for tier in range(4)), adaptive=False)
    ids = chosen(rule, everyone(40, seconds=np.arange(1, 41)), 5)
    assert set((ids // 10).tolist()) == {drawn}


def test_a_tier_too_small_is_filled_from_the_next_faster_then_from_slower_ones():
    rule = Tiers(tiers=4, probabilities=(0.0, 1.0, 0.0, 0.0), adaptive=False)
    pool = everyone(40, seconds=np.arange(1, 41))
    assert np.bincount(chosen(rule, pool, 15) // 10, minlength=4).tolist() == [5, 10, 0, 0]
    assert np.bincount(chosen(rule, pool, 24) // 10, minlength=4).tolist() == [10, 10, 4, 0]


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_worst_tier_is_drawn_most_once_the_last_one_stops_improving(adaptive):
    rule = Tiers(tiers=3, every=2, adaptive=adaptive)
    state, pool = rule.init(30), everyone(30, seconds=np.arange(1, 31))
    state = rule.observe(state, told(np.arange(30), np.repeat([1.0, 3.0, 2.0], 10)))
    for round in (1, 3):  # the first look has nothing to compare with
        _, state = rule.choose(state, 2, replace(pool, round=round), draws(0, round))
        assert np.allclose(state["probabilities"], 1 / 3)
    _, state = rule.choose(state, 2, replace(pool, round=5), draws(0, 5))
    assert state["probabilities"] == pytest.approx([0.0, 2 / 3, 1 / 3] if adaptive else [1 / 3] * 3)


def test_the_probabilities_stay_while_the_tier_improves():
    rule = Tiers(tiers=3, every=2)
    state, pool = rule.init(30), everyone(30, seconds=np.arange(1, 31))
    for round in range(1, 20):
        state = rule.observe(state, told(np.arange(30), 1.0 / round, round=round))
        _, state = rule.choose(state, 2, replace(pool, round=round), draws(0, round))
    assert np.allclose(state["probabilities"], 1 / 3)


def test_a_tier_is_drawn_no_more_often_than_its_credits_until_all_are_spent():
    rule = Tiers(tiers=2, probabilities=(0.9, 0.1), adaptive=False, credits=3)
    state, pool, drawn = rule.init(20), everyone(20, seconds=np.arange(1, 21)), []
    for round in range(1, 7):
        _, state = rule.choose(state, 2, replace(pool, round=round), draws(0, round))
        drawn.append(state["tier"])
    assert sorted(drawn) == [0, 0, 0, 1, 1, 1]
    assert state["credits"].tolist() == [0, 0]
    assert len(rule.choose(state, 2, replace(pool, round=7), draws(0, 7))[0]) == 2
