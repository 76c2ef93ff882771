"""Links that change in time: transfers are the exact inverse of the throughput's integral."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.core.errors import UsageError
from fieldfare.core.work import Cost
from fieldfare.fleet import Fleet
from fieldfare.fleet.network import Network, check_rates, of_steps, unit_of
from fieldfare.fleet.tasks import phases

ONE = np.zeros(1, np.int64)


@st.composite
def traces(draw, least=0):
    """(t_s, down, up, period) of one trace, with stalls where `least` is 0."""
    gaps = draw(st.lists(st.integers(1, 30), min_size=1, max_size=12))
    rates = st.sampled_from([least, 0, 1000, 2500, 40000, 1_000_000][0 if least == 0 else 2 :])
    down = draw(st.lists(rates, min_size=len(gaps), max_size=len(gaps)).filter(any))
    up = draw(st.lists(rates, min_size=len(gaps), max_size=len(gaps)).filter(any))
    t = np.concatenate([[0], np.cumsum(gaps)[:-1]])
    return t, down, up, float(sum(gaps))


def walk(trace, at, size, which=1):
    """The same transfer, walked step by step in exact fractions of time."""
    t, period, rates = trace[0], trace[3], trace[which]
    ends = [*t[1:], period]
    cycle, u = divmod(at, period)
    step = max(i for i in range(len(t)) if t[i] <= u)
    now = at
    while size > 0:
        until = cycle * period + ends[step]
        room = rates[step] * (until - now)
        if room >= size:
            return now + size / rates[step] - at
        size -= room
        now, step = until, step + 1
        if step == len(t):
            step, cycle = 0, cycle + 1
    return 0.0 if now == at else now - at


@given(traces(), st.integers(0, 500), st.integers(1, 50_000_000))
def test_a_transfer_ends_where_walking_the_trace_ends(trace, at, size):
    net = Network.of([trace[:3]], period_s=trace[3])
    for which, move in ((1, net.download), (2, net.upload)):
        whole = sum(r * g for r, g in zip(trace[which], np.diff([*trace[0], trace[3]]), strict=True))
        size_now = min(size, 40 * whole)
        assert move(float(at), size_now, ONE)[0] == pytest.approx(walk(trace, at, size_now, which), rel=1e-9, abs=1e-7)


@given(st.integers(1000, 10_000_000), st.floats(0, 1e6), st.floats(0, 1e9), st.integers(1, 10_000))
def test_a_constant_trace_takes_bytes_over_rate(rate, at, size, period):
    net = Network.of([([0.0], [rate], [rate])], period_s=period)
    assert net.download(at, size, ONE)[0] == pytest.approx(size / rate, rel=1e-9, abs=1e-6)
    assert net.upload(at, size, ONE)[0] == pytest.approx(size / rate, rel=1e-9, abs=1e-6)


def test_within_one_step_a_transfer_is_the_division_to_the_bit():
    net = Network.of([([0.0, 100.0], [3e6, 7e5], [1e6, 1e6])], period_s=200.0)
    assert net.download(3.0, 1e6, ONE)[0] == 1e6 / 3e6


@given(traces(least=1000), st.floats(0, 1000), st.floats(1, 1e7), st.floats(1, 1e7))
def test_moving_a_and_then_b_takes_as_long_as_moving_both(trace, at, a, b):
    net = Network.of([trace[:3]], period_s=trace[3])
    first = net.download(at, a, ONE)
    both = net.download(at, a + b, ONE)[0]
    assert first[0] + net.download(at + first, b, ONE)[0] == pytest.approx(both, rel=1e-8, abs=1e-6)


@given(traces(), st.floats(0, 1000), st.floats(0, 1e7), st.floats(0, 1e7))
def test_the_bytes_of_the_seconds_a_transfer_took_are_its_bytes(trace, at, size, more):
    net = Network.of([trace[:3]], period_s=trace[3])
    took = net.download(at, size, ONE)
    assert net.downloaded(at, took, ONE)[0] == pytest.approx(size, rel=1e-6, abs=1.0)
    assert net.download(at, size + more, ONE)[0] >= took[0] * (1 - 1e-12)  # more bytes never take less time
    assert net.uploaded(at, net.upload(at, size, ONE), ONE)[0] == pytest.approx(size, rel=1e-6, abs=1.0)


@given(traces(), st.floats(0, 300), st.integers(0, 5), st.floats(0, 1e6))
def test_a_trace_repeats_after_its_period_and_a_shift_looks_ahead(trace, at, cycles, size):
    net = Network.of([trace[:3]], period_s=trace[3])
    took = net.download(at, size, ONE)[0]
    assert net.downloaded(at + cycles * trace[3], took, ONE)[0] == pytest.approx(size, rel=1e-6, abs=1.0)
    shifted = net.take(ONE, np.array([7.0], np.float32))
    assert shifted.download(at, size, ONE)[0] == net.download(at + 7.0, size, ONE)[0]


def test_a_stall_is_waited_through_and_no_bytes_take_no_time():
    net = Network.of([([0, 10, 60], [2000, 0, 1000], [1000, 1000, 1000])], period_s=100)
    assert net.download(5.0, 10_000.0, ONE).tolist() == [5.0]  # ends as the stall begins
    assert net.download(5.0, 11_000.0, ONE).tolist() == [56.0]
    assert net.download(20.0, 1000.0, ONE).tolist() == [41.0]
    assert net.download(20.0, 0.0, ONE).tolist() == [0.0]
    assert net.download(0.0, 6_000_000.0, ONE).tolist() == [100 * 100.0]  # 60 kB a period, exactly 100 periods


def test_many_devices_at_once_are_each_as_alone():
    rng = np.random.default_rng(0)
    parts = [
        (np.arange(k), rng.integers(0, 5, k) * 1000.0 + (np.arange(k) == 0), rng.integers(1, 9, k) * 1000.0)
        for k in (1, 2, 7, 64, 301)
    ]
    row = rng.integers(0, 5, 200).astype(np.int32)
    base = Network.of(parts)
    net = Network(base.offsets, base.t_s, base.down_bytes_per_s, base.up_bytes_per_s, base.period_s, row)
    at, size, who = rng.uniform(0, 1e4, 200), rng.uniform(0, 1e6, 200), np.arange(200)
    together = net.download(at, size, who)
    assert together.tolist() == [net.download(at[i], size[i], who[i : i + 1])[0] for i in range(200)]
    assert net.size == 200
    assert net.download(at[:3], size[:3], np.array([9, 4, 4])).tolist() == [
        base.download(at[i], size[i], row[[d]].astype(np.int64))[0] for i, d in enumerate((9, 4, 4))
    ]


def test_means_are_bytes_of_a_period_over_its_length():
    net = Network.of([([0, 1], [1000, 3000], [2000, 2000]), ([0, 3], [4000, 0], [1000, 5000])], period_s=4)
    down, up = net.means()
    assert down.tolist() == [2500.0, 3000.0]
    assert up.tolist() == [2000.0, 2000.0]
    assert net.take(np.array([1, 1, 0])).means()[0].tolist() == [3000.0, 3000.0, 2500.0]


def test_the_parts_of_a_task_use_the_link_at_their_own_time():
    net = Network.of([([0, 10, 20], [1e6, 1e6, 1e6], [1e6, 5e5, 1e6])], period_s=1000)
    fleet = Fleet(flops_per_s=1e9, overhead_s=1.0, network=net)
    parts = phases(fleet, ONE, Cost(np.array([6e9]), 2e6, 1e6, 0.0), 0.0)
    assert (parts.down[0], parts.compute[0]) == (2.0, 6.0)
    assert parts.up[0] == 1.0  # from second 9, when 1 MB/s holds for one more second
    assert phases(fleet, ONE, Cost(np.array([7e9]), 2e6, 1e6, 0.0), 0.0).up[0] == 2.0  # from second 10, at half


def test_estimates_over_changing_links_go_by_their_mean_rates_unless_columns_are_given():
    network = Network.of([([0, 10], [1e6, 3e6], [5e5, 1e5]), ([0], [4e5], [2e5])], 20.0)
    cost, who = Cost(np.zeros(2), 6e6, 6e5), np.arange(2)
    fleet = Fleet(network=network, overhead_s=0.0)
    assert fleet.downlink_bytes_per_s.tolist() == [2e6, 4e5]
    assert fleet.uplink_bytes_per_s.tolist() == [3e5, 2e5]
    assert fleet.durations(who, cost).tolist() == [5.0, 18.0]
    assert phases(fleet, who, cost, 0.0).down.tolist() == [6.0, 15.0]
    given = Fleet(network=network, downlink_bytes_per_s=np.array([1e4, 2e4], np.float32))
    assert given.downlink_bytes_per_s.tolist() == [1e4, 2e4]


def test_an_uplink_that_was_not_measured_is_refused_or_a_share_of_the_downlink():
    trace = ([0, 1], [1e6, 2e6], [np.nan, 3e5])
    with pytest.raises(UsageError, match=r"trace 0 has no uplink \(NaN\).*uplink_ratio="):
        Network.of([trace])
    assert Network.of([trace], uplink_ratio=0.25).up_bytes_per_s.tolist() == [250_000.0, 300_000.0]


def test_a_trace_lasts_its_usual_step_beyond_its_last():
    assert Network.of([([5, 7, 9, 12], [1e6] * 4, [1e6] * 4), ([0], [1e6], [1e6])]).period_s.tolist() == [9.0, 1.0]


@pytest.mark.parametrize(
    ("trace", "period", "words"),
    [
        (([0, 5, 5], [1e6] * 3, [1e6] * 3), None, "trace 0, step 2 at 5 s: times must begin at 0 and ascend"),
        (([0, 5, 3], [1e6] * 3, [1e6] * 3), 20, "trace 0, step 2 at 3 s: times"),
        (([0, 5], [1e6, -1], [1e6, 1e6]), None, r"down_bytes_per_s = -1 must be a finite number not below 0"),
        (([0, 5], [0, 0], [1e6, 1e6]), None, "downlink throughput 0 throughout"),
        (([0, 5], [1e6, 1e6], [0, 0]), None, "uplink throughput 0 throughout"),
        (([0, 5], [1e6, np.inf], [1e6, 1e6]), None, "finite"),
        (([0, 5], [1e6, 1e6], [1e6, 1e6]), 5, "period_s = 5 does not come after its last step, 5 s"),
        (([0, 5], [1e6], [1e6, 1e6]), None, "2 times, 1 and 2 rates"),
        (([0, 5], [40, 60], [10, 12]), None, "median of 50.*1 Mbit/s = 125000"),
        (([0, 5], [4e10, 6e10], [1e6, 1e6]), None, "divide bits by 8"),
    ],
)
def test_a_wrong_trace_is_refused_in_one_line(trace, period, words):
    with pytest.raises(UsageError, match=words) as told:
        Network.of([trace], period_s=period)
    assert "\n" not in str(told.value)


def test_steps_must_be_together_and_every_trace_have_one():
    one = np.ones(3) * 1e6
    with pytest.raises(UsageError, match="the rows of each together"):
        of_steps(np.array([0, 1, 0]), np.arange(3.0), one, one, 2)
    with pytest.raises(UsageError, match="trace 1 has no rows"):
        of_steps(np.array([0, 0, 2]), np.arange(3.0), one, one, 3)
    with pytest.raises(UsageError, match="at least one device"):
        Network.of([])
    with pytest.raises(UsageError, match="not below 0"):
        Network.of([([0], [1e6], [1e6])]).download(0.0, -1.0, ONE)


def test_names_of_other_units_are_known():
    assert "multiply by 125000" in str(unit_of("down_Mbps"))
    assert "multiply by 125000" in str(unit_of("downlink_mbit_per_s"))
    assert "multiply by 125)" in str(unit_of("communication_kbps"))
    assert unit_of("down_bytes_per_s") is None
    assert unit_of("latency_s") is None
    check_rates("x", np.array([0.0, 2e3, 5.0]))
    check_rates("x", np.zeros(3))
