"""The planner: batch times by the formula, the best of all cuts, alone where that is faster, again at a move."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from split_cases import np

from fieldfare.core.errors import UsageError
from fieldfare.models import vgg5
from fieldfare.work.net import Training
from fieldfare.work.split import BatchTime, Rates, batch_time, plan, replan, split_net, whole_time

CUTS = split_net(vgg5, example={"x": np.zeros((2, 3, 32, 32), np.float32), "y": np.zeros(2, np.int64)}).cuts
PI = Rates(device_flops_per_s=2e9, edge_flops_per_s=50e9, uplink_bps=75e6, downlink_bps=75e6)

rate = st.floats(1e3, 1e12)
rates = st.builds(Rates, rate, rate, rate, rate, st.floats(0, 50), st.floats(0, 1))


def test_a_batch_takes_compute_and_transfers_one_after_the_other() -> None:
    (cut,) = (cut for cut in CUTS if cut.name == "pool2")
    found = batch_time(cut, 100, Rates(1e9, 4e9, 20e6, 80e6, latency_s=0.01))
    forward, server = 2 * (884_736 + 4_718_592), 6 * (2_359_296 + 524_288 + 1_280)
    assert found == BatchTime(
        pytest.approx(100 * forward / 1e9),
        pytest.approx(8 * 100 * (16_384 + 8) / 20e6 + 0.01),
        pytest.approx(100 * server / 4e9),
        pytest.approx(8 * 100 * 16_384 / 80e6 + 0.01),
        pytest.approx(100 * (2 * forward - 2 * 884_736) / 1e9),
    )
    phases = (found.forward_s, found.up_s, found.edge_s, found.down_s, found.backward_s)
    assert found.total_s == pytest.approx(sum(phases))


def test_a_batch_waits_for_the_edge_where_the_others_keep_it_busy_longer_than_it_is_away() -> None:
    (cut,) = (cut for cut in CUTS if cut.name == "pool1")
    alone = batch_time(cut, 100, Rates(1e9, 4e9, 20e6, 80e6))
    away = alone.total_s - alone.edge_s
    for load in (0.0, 1.0, 3.0, 7.0, 100.0):
        found = batch_time(cut, 100, Rates(1e9, 4e9, 20e6, 80e6, edge_load=load))
        assert found.total_s == pytest.approx(max(alone.total_s, (1 + load) * alone.edge_s))
        assert found.total_s - found.edge_s == pytest.approx(away)


@given(rates=rates, batch=st.integers(1, 1000))
def test_the_plan_is_the_fastest_of_all_cuts(rates: Rates, batch: int) -> None:
    best = plan(CUTS, batch, rates)
    least = min(batch_time(cut, batch, rates).total_s for cut in CUTS)
    assert batch_time(best, batch, rates).total_s == least
    alone = plan(CUTS, batch, rates, whole=True)
    if whole_time(CUTS, batch, rates.device_flops_per_s) <= least:
        assert alone is None
    else:
        assert alone == best


def test_what_a_device_can_do_moves_the_cut() -> None:
    def names(**changed: float) -> tuple[str, str | None]:
        rates = Rates(**{**{field: getattr(PI, field) for field in Rates.__slots__}, **changed})
        split, either = plan(CUTS, 100, rates), plan(CUTS, 100, rates, whole=True)
        return split.name, None if either is None else either.name

    assert names() == ("pool1", "pool1")
    assert names(uplink_bps=5e6, downlink_bps=5e6) == ("dense1", None)
    assert names(device_flops_per_s=100e9) == ("dense1", None)
    assert names(edge_load=100.0) == ("dense1", None)
    assert names(device_flops_per_s=1e6, edge_flops_per_s=1e12) == ("pool1", "pool1")


def test_the_paper_s_cut_is_never_the_fastest_where_time_is_flops_and_bytes() -> None:
    """Behind pool2 the device does 66 % of the work to save half the bytes: pool1 or no offloading is faster."""
    by_name = {cut.name: cut for cut in CUTS}
    for device in np.geomspace(1e8, 1e12, 30):
        for link in np.geomspace(1e5, 1e10, 30):
            rates = Rates(device, 1e15, link, link)
            other = min(batch_time(by_name["pool1"], 100, rates).total_s, whole_time(CUTS, 100, device))
            assert other < batch_time(by_name["pool2"], 100, rates).total_s


def test_at_a_move_the_cut_changes_only_where_the_rest_of_the_round_pays_for_it() -> None:
    by_name = {cut.name: cut for cut in CUTS}
    slow, now, training = Rates(2e9, 50e9, 2e6, 2e6), by_name["pool1"], Training(momentum=0.9)
    assert replan(CUTS, now, 100, PI, 50, training) == now
    cost = 32 * (by_name["dense1"].size - now.size) * 2 / 2e6
    each = batch_time(now, 100, slow).total_s - batch_time(by_name["dense1"], 100, slow).total_s
    enough = int(cost / each) + 1
    assert enough > 0
    assert replan(CUTS, now, 100, slow, enough + 50, training).name == "dense1"
    assert replan(CUTS, now, 100, slow, 0, training) == now
    changes = [replan(CUTS, now, 100, slow, left, training) != now for left in range(enough + 2)]
    assert changes == sorted(changes)


@given(rates=rates, batches=st.integers(0, 10_000), at=st.integers(0, len(CUTS) - 1))
def test_replanning_is_never_slower_than_going_on(rates: Rates, batches: int, at: int) -> None:
    new = replan(CUTS, CUTS[at], 100, rates, batches, Training())
    left = [batches * batch_time(cut, 100, rates).total_s for cut in (new, CUTS[at])]
    assert left[0] <= left[1]


def test_rates_that_cannot_be_are_refused() -> None:
    for changed, told in (
        ({"uplink_bps": 0.0}, "uplink_bps=0.0"), ({"edge_load": -1.0}, "edge_load=-1.0"),
        ({"latency_s": float("inf")}, "latency_s=inf"), ({"device_flops_per_s": float("nan")}, "device_flops_per_s"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=told):
            Rates(**{**{field: getattr(PI, field) for field in Rates.__slots__}, **changed})
    with pytest.raises(UsageError, match="give the legal cuts"):
        plan((), 100, PI)
