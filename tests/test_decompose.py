"""What a speed-up is made of: factors multiply, crossings lie between evaluations, intervals hold their medians."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_folders import make_ring_run, nodes_of

from fieldfare.report.decompose import (
    course,
    crossed_at,
    crossing,
    estimate,
    factors,
    links_s,
    median_of,
    paired,
)
from fieldfare.report.read_nodes import busy_s, read_nodes, steps_taken
from fieldfare.report.speedups import Told, gain

SPEEDS = st.lists(st.floats(0.05, 20.0), min_size=1, max_size=6)


@st.composite
def ran(draw):
    """A run in which devices train, stand idle and exchange frames anyhow; and how far it is looked at."""
    speeds = draw(SPEEDS)
    work, messages = [], []
    for node, speed in enumerate(speeds):
        now = draw(st.floats(0.0, 3.0))
        for cycle in range(1, draw(st.integers(1, 5)) + 1):
            steps = draw(st.integers(1, 30))
            work.append((node, now, now + steps / speed, steps, 0, cycle))
            now += steps / speed + draw(st.floats(0.0, 9.0))
            if draw(st.booleans()):
                messages.append((now, now + 1, node, draw(st.integers(0, len(speeds) - 1)), 0, 100, cycle, 0, 0))
    until = draw(st.floats(0.5, 60.0))
    return nodes_of(messages, work, kinds=("Frame",), peers=len(speeds)), until


@given(ran(), ran())
def test_the_factors_of_any_two_runs_multiply_to_the_ratio_of_their_times(base, ours):
    courses = [course(nodes, until, batch=16.0) for nodes, until in (base, ours)]
    if not all(c.examples > 0 and c.links < 1.0 for c in courses):
        return
    found = factors(*courses)
    assert found.speedup == pytest.approx(base[1] / ours[1], rel=1e-9)
    assert found.utilisation > 0
    assert found.communication > 0
    assert found.statistics > 0


def test_a_run_at_its_target_before_anybody_trained_has_a_time_and_no_factors():
    nodes, _ = free((1, 1), 5.0)
    at_once, later = course(nodes, 0.0), course(nodes, 4.0)
    assert (at_once.trained, later.trained) == (False, True)
    none = np.empty(0)
    told = [Told("x", {}, {"0": c.seconds, "1": 4.0}, {}, {"0": c, "1": later}, none, none) for c in (at_once, later)]
    for base, ours in (told, told[::-1]):
        found = gain(base, ours)
        assert found.n == 1
        assert found.factors is not None
        assert found.factors.speedup == pytest.approx(1.0)


@given(ran())
def test_nobody_waits_longer_than_it_stands_idle(one):
    nodes, until = one
    waits, idle = links_s(nodes, until), until - busy_s(nodes, until)
    assert (waits >= 0).all()
    assert (waits <= idle + 1e-9).all()


@given(ran())
def test_steps_up_to_the_end_are_all_steps(one):
    nodes, _ = one
    end = float(nodes.work["ended_s"].max())
    assert steps_taken(nodes, end).sum() == pytest.approx(nodes.work["steps"].sum())
    assert steps_taken(nodes, 0.5 * end).sum() <= nodes.work["steps"].sum()


def lock_step(powers, cycles, link_s):
    """Everybody takes one step and tells the first, who tells all when the last has come."""
    now, work, messages, n = 0.0, [], [], len(powers)
    for cycle in range(1, cycles + 1):
        ends = [now + 1.0 / p for p in powers]
        work += [(k, now, end, 1, 0, cycle) for k, end in enumerate(ends)]
        messages += [(end, end + link_s / 2, k, 0, 0, 10, cycle, 0, 0) for k, end in enumerate(ends)]
        late = max(ends) + link_s / 2
        messages += [(late, late + link_s / 2, 0, k, 0, 10, cycle, 0, 1) for k in range(n)]
        now = late + link_s / 2
    return nodes_of(messages, work, kinds=("Frame",), peers=n), now


def free(powers, seconds):
    """Everybody trains all the time and nobody sends anything."""
    work = [(k, 0.0, seconds, round(p * seconds), 0, 1) for k, p in enumerate(powers)]
    return nodes_of([], work, kinds=(), peers=len(powers)), seconds


@pytest.mark.parametrize(("powers", "bound"), [((3, 3, 1, 1), 2.0), ((4, 2, 2, 1), 2.25), ((1, 1), 1.0)])
def test_utilisation_against_lock_step_is_the_bound_of_unlike_speeds(powers, bound):
    found = factors(course(*lock_step(powers, 12, 0.0)), course(*free(powers, 12.0)))
    assert found.utilisation == pytest.approx(bound)
    assert found.communication == pytest.approx(1.0)


def test_communication_against_lock_step_is_what_links_add_to_a_slow_step():
    slow, link_s = 1.0, 0.7
    found = factors(course(*lock_step((3, 3, 1, 1), 10, link_s)), course(*free((3, 3, 1, 1), 10.0)))
    assert found.communication == pytest.approx((slow + link_s) / slow)
    assert found.utilisation == pytest.approx(2.0)


def test_time_lost_to_links_weighs_by_the_speed_of_whoever_loses_it():
    work = [(0, 0.0, 4.0, 12, 0, 1), (0, 8.0, 10.0, 6, 0, 2), (1, 0.0, 10.0, 10, 0, 1)]
    frame = [(4.0, 8.0, 1, 0, 0, 8, 1, 0, 0)]
    found = course(nodes_of(frame, work, kinds=("Frame",), peers=2), 10.0)
    assert found.full_speed == pytest.approx(3.0 + 1.0)
    assert found.links == pytest.approx(3.0 * 4.0 / (4.0 * 10.0))
    assert found.utilisation == pytest.approx(1.0)


def test_waiting_for_a_slow_member_is_not_waiting_for_links():
    nodes, until = lock_step((3, 1), 1, 0.5)
    assert links_s(nodes, until) == pytest.approx([0.5, 0.5])


def test_who_is_not_in_the_ring_does_not_hold_up_those_who_are():
    work = [(0, 0.0, 1.0, 1, 0, 1), (1, 0.0, 2.0, 1, 0, 1), (2, 0.0, 9.0, 1, 0, 1)]
    frames = [(2.0, 4.0, 0, 1, 0, 8, 1, 0, 0), (2.0, 4.0, 1, 0, 0, 8, 1, 0, 0)]
    assert links_s(nodes_of(frames, work, kinds=("Frame",), peers=3), 4.0) == pytest.approx([2.0, 2.0, 0.0])


def test_who_answers_while_it_trains_is_not_waited_for():
    work = [(0, 0.0, 1.0, 1, 0, 1), (0, 5.0, 6.0, 1, 0, 2), (1, 0.0, 9.0, 9, 0, 1)]
    ask_and_answer = [(1.0, 3.0, 0, 1, 0, 8, -1, -1, -1), (3.0, 5.0, 1, 0, 0, 8, -1, -1, -1)]
    assert links_s(nodes_of(ask_and_answer, work, kinds=("Offer",), peers=2), 9.0) == pytest.approx([4.0, 0.0])


def test_waiting_for_one_who_waits_is_told_by_what_that_one_waits_for():
    work = [(0, 0.0, 1.0, 1, 0, 1), (0, 8.0, 9.0, 1, 0, 2), (1, 0.0, 2.0, 2, 0, 1), (1, 5.0, 7.0, 2, 0, 2),
            (2, 0.0, 4.0, 4, 0, 1), (2, 4.0, 9.0, 5, 0, 2)]  # fmt: skip
    messages = [(4.0, 5.0, 2, 1, 0, 8, -1, -1, -1), (7.0, 8.0, 1, 0, 0, 8, -1, -1, -1)]
    nodes = nodes_of(messages, work, kinds=("Offer",), peers=3)
    assert links_s(nodes, 9.0) == pytest.approx([2.0, 1.0, 0.0])  # 7 to 8 and 4 to 5; the rest somebody trained
    assert links_s(nodes, 7.5) == pytest.approx([1.5, 1.0, 0.0])


def test_a_wait_that_only_a_timer_ends_is_for_links_and_one_that_nothing_ends_for_others():
    work = [(0, 0.0, 1.0, 1, 0, 1), (0, 3.0, 4.0, 1, 0, 2)]
    nodes = nodes_of([], work, kinds=(), peers=1, span_s=9.0)
    assert links_s(nodes, 9.0) == pytest.approx([2.0])


def test_time_away_is_nobodys_waiting():
    work = [(0, 0.0, 1.0, 1, 0, 1), (0, 9.0, 10.0, 1, 0, 2)]
    welcome = [(7.5, 9.0, 0, 0, 0, 8, -1, -1, -1)]
    nodes = nodes_of(welcome, work, kinds=("Welcome",), peers=1, came=[(2.0, 0, False), (7.0, 0, True)])
    assert links_s(nodes, 10.0) == pytest.approx([3.0])


def test_a_folder_gives_the_same_course_as_its_rows(tmp_path):
    nodes = read_nodes(make_ring_run(tmp_path / "r", dead_in=None))
    found = course(nodes, 12 * 68.0, batch=16)
    assert found.utilisation == pytest.approx(1.0, abs=0.02)
    assert found.links == pytest.approx(2.0 / 68.0, rel=0.02)


@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(0.0, 1.0)), min_size=1, max_size=20), st.floats(0.0, 1.0))
def test_a_crossing_lies_between_the_evaluations_around_it(points, level):
    x, y = np.cumsum([a for a, _ in points]), np.array([b for _, b in points])
    at = crossing(x, y, level)
    if y.max() < level:
        assert at == math.inf
        return
    first = int(np.argmax(y >= level))
    assert x[max(first - 1, 0)] <= at <= x[first]


def test_a_loss_is_crossed_downwards():
    assert crossing(np.array([0.0, 1.0]), np.array([2.0, 1.0]), 1.5, lower=True) == 0.5


def test_a_curve_that_never_comes_to_a_level_is_nowhere_there():
    assert crossed_at([0, 1], [1.0, 2.0], 4.68) == math.inf


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=30))
def test_an_interval_holds_its_median_and_stays_among_the_values(values):
    found = estimate(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert found == estimate(values[::-1])


def test_an_interval_covers_the_true_median_about_as_often_as_it_says():
    draws = np.random.default_rng(0).lognormal(0.0, 0.5, (120, 21))
    found = [estimate(row.tolist()) for row in draws]
    assert 0.90 <= np.mean([one.low <= 1.0 <= one.high for one in found]) <= 0.99


def test_seeds_that_never_got_there_count_as_endless():
    assert median_of([1.0, math.inf, math.inf]) == math.inf
    assert paired({"a": math.inf}, {"a": math.inf}) == {}
    assert estimate([1.0, 1.0, math.inf]).median == 1.0
