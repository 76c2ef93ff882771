"""The forecast's arithmetic against numbers worked out by hand: each constant and each unit has a line that sees it."""

from dataclasses import replace

import pytest

from fieldfare.assess.forecast.model import Flow, Means, follows, quantities

ASSUMED = {
    "compute_w": 3.0, "receive_w": 1.0, "send_w": 2.0, "server_w": 45.0, "pue": 1.09, "network_j_per_bit": 1e-7,
    "carbon_g_per_kwh": 400.0, "egress_per_gb": 0.08, "server_per_h": 0.4, "storage_per_gb_month": 0.023,
    "device_h_price": 0.5, "battery_wh": 15.0, "tasks_per_user_day": 4.0, "aggregate_s_per_update": 0.005,
    "server_load": 0.6, "updates_held": 20.0,
}  # fmt: skip
JOB = Means(
    versions=500, buffer=20, concurrency=20, compute_s=10.0, down_bytes=2e6, up_bytes=1e6, overhead_s=0.0,
    downlink_bytes_per_s=4e5, uplink_bytes_per_s=2e5, model_bytes=3e6, kept_bytes=1e9, asset_bytes=5e6,
)  # fmt: skip
"""A task: 10 s of computing, 5 s down, 5 s up: 20 s."""
FLOW = Flow(
    time_s=36_000.0, started=12_000.0, ok=10_000.0, staleness=1.5, device_s=240_000.0, compute_s=120_000.0,
    bytes_down=2.4e10, bytes_up=1e10, updates_peak_per_s=0.5, starts_peak_per_s=0.6,
)  # fmt: skip
"""Ten hours, every task whole."""

BY_HAND = {
    "time_to_target_s": 36_000.0,
    "version_s": 72.0,
    "tasks_started": 12_000.0,
    "waste_share": 1 / 6,
    "device_h": 66.66667,
    "compute_h": 33.33333,
    "updates_per_s": 0.2777778,
    "updates_per_s_peak": 0.5,
    "ingress_bytes_per_s_peak": 5e5,  # 0.5/s of 1 MB
    "egress_bytes_per_s_peak": 1.2e6,  # 0.6/s of 2 MB
    "checkins_per_s_peak": 0.6,
    "aggregators": 1.0,  # 0.5 x 0.005 / 0.6 = 0.004
    "tee_memory_bytes": 2e7,
    "storage_bytes": 2.5e9,  # 500 x 3 MB + 1 GB
    "device_bytes": 8e6,
    # a task: 3 W x 10 s + 1 W x 5 s + 2 W x 5 s = 45 J
    "client_energy_j": 540_000.0,
    "battery_share_per_task": 45 / 54_000,  # 15 Wh are 54,000 J
    "battery_share_per_day": 180 / 54_000,
    "network_energy_j": 27_200.0,  # 34 GB, 8 bits each, 1e-7 J
    "server_energy_j": 3_531_600.0,  # 2 x 45 W x 1.09 x 36,000 s
    "energy_j": 4_098_800.0,
    "carbon_g": 455.4222,  # 1.138556 kWh of 400 g
    # 24 GB out at 0.08, 2 servers x 10 h x 0.4, 2.5 GB a month at 0.023, 66.7 device-hours at 0.5
    "cost": 1.92 + 8.0 + 0.0575 + 33.33333,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_quantity_is_the_number_worked_out_by_hand(name):
    assert follows(FLOW, JOB, ASSUMED)[name] == pytest.approx(BY_HAND[name], rel=1e-5)


def test_storage_is_paid_by_the_month_and_never_for_less_than_one():
    long = replace(FLOW, time_s=3 * 30 * 86_400.0)
    assumed = {**ASSUMED, "egress_per_gb": 0.0, "server_per_h": 0.0, "device_h_price": 0.0}
    assert follows(FLOW, JOB, assumed)["cost"] == pytest.approx(0.0575)
    assert follows(long, JOB, assumed)["cost"] == pytest.approx(3 * 0.0575)


@pytest.mark.parametrize(("peak", "servers"), [(0.5, 1), (100.0, 1), (130.0, 2), (1000.0, 9)])
def test_aggregators_have_room_to_spare_at_the_peak(peak, servers):
    assert follows(replace(FLOW, updates_peak_per_s=peak), JOB, ASSUMED)["aggregators"] == servers


def test_a_task_that_is_cut_halfway_moves_half_of_its_bytes_by_radio():
    half = replace(FLOW, device_s=120_000.0, compute_s=60_000.0)
    assert follows(half, JOB, ASSUMED)["client_energy_j"] == pytest.approx(270_000.0)


def test_the_closed_form_of_equal_tasks_that_nothing_cuts_is_littles_law():
    job = replace(JOB, sigma=0.0, peak_over_mean=2.25)
    found = quantities(job, ASSUMED)
    assert found["updates_per_s"] == pytest.approx(1.0)  # 20 at work, 20 s each
    assert found["version_s"] == pytest.approx(20.0)
    assert found["time_to_target_s"] == pytest.approx(10_000.0)
    assert found["tasks_started"] == pytest.approx(10_000.0)
    assert found["staleness"] == pytest.approx(1.0)
    assert found["updates_per_s_peak"] == pytest.approx(2.25)
    assert found["checkins_per_s_peak"] == pytest.approx(2.25)
    assert found["device_h"] == pytest.approx(200_000 / 3600)
    assert found["compute_h"] == pytest.approx(100_000 / 3600)
    assert found["bytes_down"] == pytest.approx(2e10)
    assert found["bytes_up"] == pytest.approx(1e10)
    assert found["waste_share"] == 0.0
