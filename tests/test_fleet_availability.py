"""Sessions of devices: searched like a list written out by hand would be, and refused when they make no sense."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.core.errors import UsageError
from fieldfare.fleet.availability import DAY_S, WEEK_S, Availability, of_columns, of_log

PERIOD = 60
Pairs = list[tuple[float, float]]


def pairs_of(cuts: list[int]) -> Pairs:
    return [(float(a), float(b)) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]


traces = st.lists(st.sets(st.integers(0, PERIOD), max_size=9).map(sorted).map(pairs_of), min_size=1, max_size=5)


def written_out(pairs: Pairs, period: float, shift: float) -> Pairs:
    """All sessions of 20 periods around 0, those that touch joined: the plainest reading of a trace."""
    cycles = range(-10, 11) if np.isfinite(period) else [0]
    flat = [
        (a + (k * period if k else 0) - shift, b + (k * period if k else 0) - shift) for k in cycles for a, b in pairs
    ]
    out: Pairs = []
    for begin, end in flat:
        if out and out[-1][1] == begin:
            out[-1] = (out[-1][0], end)
        else:
            out.append((begin, end))
    return out


def expected(pairs: Pairs, period: float, shift: float, t: float) -> tuple[float, float]:
    if pairs == [(0.0, period)]:
        return -np.inf, np.inf
    return next(((a, b) for a, b in written_out(pairs, period, shift) if b > t), (np.inf, np.inf))


@settings(max_examples=200, deadline=None)
@given(traces, st.lists(st.integers(-400, 400), min_size=5, max_size=5), st.sampled_from([float(PERIOD), np.inf]),
       st.lists(st.integers(-90, 90), min_size=5, max_size=5), st.booleans())  # fmt: skip
def test_a_session_is_what_the_written_out_trace_says_at_any_time_and_after_any_jump(
    many, halves, period, shifts, shared
):
    own = Availability.of(many, period)
    n = len(many)
    row = np.arange(n)[::-1].astype(np.int32) if shared else None
    shift = np.array(shifts[:n], np.float32)
    available = Availability(own.offsets, own.start, own.end, period, row, shift)
    devices = np.arange(n)
    for t in halves:
        at = t / 2
        begin, end = available.session(at, devices)
        mine = [many[n - 1 - i] if shared else many[i] for i in devices]
        want = [expected(pairs, period, shift[i], at) for i, pairs in zip(devices, mine, strict=True)]
        assert list(zip(begin.tolist(), end.tolist(), strict=True)) == want
        assert [available.session_of(at, device) for device in range(n)] == want
        for within in (0.5, 7.0, 3.0 * PERIOD):
            soon = begin < at + within
            found = available.soon(at, devices, within)
            assert [part.tolist() for part in found] == [part[soon].tolist() for part in (devices, begin, end)]
        now = begin <= at
        assert available.at(at, devices).tolist() == now.tolist()
        assert available.available(at).tolist() == devices[now].tolist()
        assert available.share([at, at])[1] == pytest.approx(now.mean())


@settings(max_examples=100, deadline=None)
@given(traces, st.integers(-100, 100), st.integers(1, 200), st.integers(0, 50))
def test_the_share_of_a_span_is_its_count_of_half_seconds(many, t0, length, shift):
    own = Availability.of(many, PERIOD)
    available = Availability(own.offsets, own.start, own.end, PERIOD, None, np.full(len(many), shift, np.float32))
    devices = np.arange(len(many))
    middles = np.arange(t0, t0 + length, 0.5) + 0.25
    counted = np.mean([available.at(t, devices) for t in middles], axis=0)
    assert available.share_between(t0, t0 + length, devices) == pytest.approx(counted)


@settings(max_examples=100, deadline=None)
@given(traces, st.sampled_from([1, 2, 3, 12, 30]), st.lists(st.integers(-90, 90), min_size=5, max_size=5),
       st.booleans(), st.booleans(), st.booleans())  # fmt: skip
def test_the_mean_share_of_all_in_a_span_is_its_count_of_half_seconds(many, bins, shifts, shared, shifted, repeats):
    period = PERIOD if repeats else np.inf
    own, n = Availability.of(many, period), len(many)
    row = np.array([0, 0, *range(n)], np.int32) if shared else None
    shift = np.resize(np.array(shifts, np.float32), n + 2 if shared else n) if shifted else None
    available = Availability(own.offsets, own.start, own.end, period, row, shift)
    bins = bins if repeats else 1
    middles = np.arange(0, available.horizon_s, 0.5) + 0.25
    counted = available.share(middles).reshape(bins, -1).mean(1)
    assert available.mean_share(bins) == pytest.approx(counted)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 3e7), st.booleans())
def test_one_device_alone_has_the_same_session_to_the_bit(seed, t, repeats):
    """At any time, and where sessions begin and end: that is when streams ask."""
    random = np.random.default_rng(seed)
    cuts = np.cumsum(random.exponential(900.0, (4, 40)), axis=1)
    pairs = [[(a, b) for a, b in zip(one[::2], one[1::2], strict=True)] for one in cuts.tolist()]
    own = Availability.of(pairs, float(cuts.max()) + 1.0 if repeats else np.inf)
    shift = random.uniform(0.0, 9e4, 4).astype(np.float32)
    available, devices = Availability(own.offsets, own.start, own.end, own.period_s, None, shift), np.arange(4)
    for _ in range(4):
        begin, end = available.session(t, devices)
        assert [available.session_of(t, i) for i in range(4)] == list(zip(begin.tolist(), end.tolist(), strict=True))
        t = float(end[seed % 4]) if np.isfinite(end[seed % 4]) else t + 1.0


def test_one_time_for_each_device_gives_what_one_time_for_all_gives():
    available = Availability.of([[(0, 10), (20, 30)], [(5, 25)], []], 40)
    times, devices = np.array([35.0, 24.0, 3.0]), np.array([0, 1, 2])
    begin, end = available.session(times, devices)
    alone = [available.session(t, devices[i : i + 1]) for i, t in enumerate(times)]
    assert [(b, e) for b, e in zip(begin, end, strict=True)] == [(float(b[0]), float(e[0])) for b, e in alone]


def test_a_session_over_the_seam_of_the_period_is_one():
    night = Availability.of([[(0, 6), (22, 24)]], 24)
    for t, want in ((23.0, (22.0, 30.0)), (24.0, (22.0, 30.0)), (29.0, (22.0, 30.0)), (30.0, (46.0, 54.0))):
        begin, end = night.session(t, np.array([0]))
        assert (begin[0], end[0]) == want


def test_a_device_that_is_always_on_has_no_end_and_one_that_never_is_has_no_begin():
    available = Availability.of([[(0, 24)], [], [(0, 12), (12, 24)]], 24)
    begin, end = available.session(1e6, np.arange(3))
    assert end.tolist() == [np.inf] * 3
    assert begin.tolist() == [-np.inf, np.inf, -np.inf]
    assert Availability.always(4).available(7.0).tolist() == [0, 1, 2, 3]
    assert Availability.of([[], []]).session(0.0, np.arange(2))[0].tolist() == [np.inf, np.inf]


def test_without_a_period_a_trace_ends_with_its_last_interval_unless_that_never_ends():
    available = Availability.of([[(5, 8)], [(5, 8), (10, np.inf)]])
    begin, end = available.session(9.0, np.arange(2))
    assert begin.tolist() == [np.inf, 10.0]
    assert end.tolist() == [np.inf, np.inf]
    assert available.means()[0] < available.means()[1] <= 1.0


@pytest.mark.parametrize("shift", [0.1, 12345.678, -7.3])
def test_going_from_end_to_end_always_moves_on_whatever_the_rounding(shift):
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.random(40) + 1e-4)
    own = Availability.of([times.reshape(-1, 2)], 25.3)
    available = Availability(own.offsets, own.start, own.end, 25.3, None, np.array([shift], np.float32))
    t, one = 0.0, np.array([0])
    for _ in range(200):
        begin, end = available.session(t, one)
        assert end[0] > t
        at_begin = available.session(max(t, begin[0]), one)
        assert at_begin[0][0] <= max(t, begin[0])
        t = float(end[0])
    assert t > 8 * 25.3


@pytest.mark.parametrize(
    ("pairs", "period", "words"),
    [
        ([(0, 10), (5, 20)], 100, r"device 1: intervals \(0, 10\) and \(5, 20\) overlap"),
        ([(30, 40), (0, 10)], 100, r"device 1: intervals \(30, 40\) and \(0, 10\) are not in order"),
        ([(10, 5)], 100, r"device 1: its interval \(10, 5\) runs backwards"),
        ([(10, 10)], 100, r"device 1: its interval \(10, 10\) is empty"),
        ([(90, 110)], 100, r"device 1: its interval \(90, 110\) is outside \[0, 100\]"),
        ([(-5, 10)], 100, r"device 1: its interval \(-5, 10\) is outside"),
        ([(0, np.nan)], 100, r"device 1: its interval \(0, nan\) is not finite"),
        ([(0, np.inf)], 100, r"device 1: its interval \(0, inf\) is not finite"),
    ],
)
def test_intervals_that_make_no_sense_are_refused_in_one_line_that_names_them(pairs, period, words):
    with pytest.raises(UsageError, match=words) as refused:
        Availability.of([[(0, 50)], pairs], period)
    assert "\n" not in str(refused.value)


def test_the_next_device_may_begin_before_the_last_one_ended():
    assert Availability.of([[(50, 60)], [(0, 10)]], 100).size == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"period_s": 0.0}, "period_s=0.0"),
        ({"offsets": np.array([0, 2])}, "offsets must run"),
        ({"row": np.array([0, 3], np.int32)}, "row must name one of the 1 traces"),
        ({"shift_s": np.array([np.nan], np.float32)}, "shift_s must be 1 finite"),
    ],
)
def test_columns_that_do_not_fit_each_other_are_refused(change, words):
    right = {"offsets": np.array([0, 1]), "start": np.array([0.0]), "end": np.array([1.0]), "period_s": 10.0}
    Availability(**right)
    with pytest.raises(UsageError, match=words):
        Availability(**{**right, **change})


def test_columns_in_any_order_of_devices_give_the_same_as_lists_and_touching_intervals_are_joined():
    device, start, end = np.array([2, 0, 2, 0]), np.array([1.0, 5, 4, 7]), np.array([3.0, 7, 6, 9])
    available = of_columns(device, start, end, 3, 20.0)
    assert available.offsets.tolist() == [0, 1, 1, 3]
    assert available.start.tolist() == [5, 1, 4]
    assert available.end.tolist() == [9, 3, 6]
    with pytest.raises(UsageError, match="ids go from 0 to 2, use 0 to 1"):
        of_columns(device, start, end, 2, 20.0)


def test_times_are_kept_in_half_the_memory_where_that_loses_nothing():
    assert Availability.of([[(0, WEEK_S)]], WEEK_S).start.dtype == np.float32
    assert Availability.of([[(0.1, 5)]], WEEK_S).start.dtype == np.float64


@pytest.mark.parametrize(
    ("days", "period", "words"),
    [
        (15.5, 2 * WEEK_S, "first 2 whole weeks"),
        (7.0, WEEK_S, "first 1 whole week "),
        (6.2, 6 * DAY_S, "first 6 whole days"),
        (1.0, DAY_S, "first 1 whole day "),
    ],
)
def test_a_log_repeats_by_whole_weeks_or_else_by_whole_days_and_says_so(days, period, words):
    stop = 100.0 + days * DAY_S
    made, note = of_log(np.array([0, 0, 1]), np.array([50.0, 5000, 150]), np.array([200.0, 9e9, 160]), 2, 100.0, stop)
    assert made.period_s == period
    assert words in note
    assert "time 0 is its second 100" in note
    assert made.start.tolist() == [0, 4900, 50]
    assert made.end.tolist() == [100, period, 60]


def test_a_log_of_less_than_a_day_cannot_repeat():
    with pytest.raises(UsageError, match=r"holds 23 hours: .* at least one whole day"):
        of_log(np.array([0]), np.array([0.0]), np.array([23 * 3600.0]), 1)


def test_a_log_with_intervals_that_overlap_is_refused_before_it_is_cut():
    with pytest.raises(UsageError, match="device 0: intervals"):
        of_log(np.array([0, 0]), np.array([0.0, 50]), np.array([60.0, 2 * DAY_S]), 1)


def test_windows_count_a_session_over_the_seam_once_and_a_shared_trace_for_each_device():
    available = Availability.of([[(0, 6), (10, 12), (22, 24)], [(0, 24)], []], 24)
    assert available.windows()[0].tolist() == [8, 2, np.inf]
    assert available.means() == pytest.approx([10 / 24, 1, 0])
    shared = Availability(available.offsets, available.start, available.end, 24, np.array([0, 0, 0, 2], np.int32))
    lengths, counts = shared.windows()
    assert lengths.tolist() == [8, 2]
    assert counts.tolist() == [3, 3]
    assert shared.means() == pytest.approx([10 / 24, 10 / 24, 10 / 24, 0])
    assert shared.share(1.0) == 0.75


@pytest.mark.parametrize("period", [24.0, np.inf])
def test_answers_are_float64_whatever_the_trace_is_kept_in(period):
    begin, end = Availability.of([[(0, 6), (10, 12)]], period).session(7.0, np.array([0]))
    assert begin.dtype == end.dtype == np.float64
