"""What `fieldfare fleet describe` says of a fleet, and how it refuses one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import realdata
from command_line import fieldfare

from fieldfare.cli_fleet import sparkline
from fieldfare.core.errors import UsageError
from fieldfare.fleet import Availability, Fleet
from fieldfare.fleet.availability import of_columns
from fieldfare.fleet.describe import describe_fleet, fleet_of, size_of
from fieldfare.fleet.templates import PRESETS
from fieldfare.report import style
from fieldfare.report.plots_fleet import availability_curve, save_fleet

DAY = 86400.0


def two_of_four() -> Fleet:
    """Four devices: one on half the day, one on from 6 h to 12 h, one always, one never."""
    available = Availability.of([[(0, DAY / 2)], [(DAY / 4, DAY / 2)], [(0, DAY)], []], DAY)
    return Fleet(flops_per_s=np.array([1e9, 2e9, 3e9, 4e9], np.float32), availability=available, name="four")


def test_the_numbers_are_those_counted_by_hand():
    facts = describe_fleet(two_of_four(), 4).facts
    assert facts["available_share_mean"] == pytest.approx((0.5 + 0.25 + 1.0) / 4)
    assert (facts["available_share_min"], facts["available_share_max"]) == (0.25, 0.75)
    assert facts["trough_over_peak"] == pytest.approx(1 / 3)
    assert facts["never_available_share"] == 0.25
    assert facts["median_window_s"] == DAY / 2
    assert facts["windows"] == 3
    assert facts["flops_per_s"]["p50"] == 2.5e9
    assert facts["downlink_bytes_per_s"]["p10"] == facts["downlink_bytes_per_s"]["p90"] == 5e6


def test_devices_that_share_traces_count_each():
    own = two_of_four().availability
    shared = Availability(own.offsets, own.start, own.end, DAY, np.array([1, 1, 3], np.int32), np.zeros(3, np.float32))
    facts = describe_fleet(Fleet(availability=shared), 3).facts
    assert facts["available_share_mean"] == pytest.approx(0.5 / 3)
    assert facts["available_share_max"] == pytest.approx(2 / 3)
    assert facts["never_available_share"] == pytest.approx(1 / 3)
    assert (facts["windows"], facts["median_window_s"]) == (2, DAY / 4)


def test_a_fleet_without_availability_is_always_there():
    facts = describe_fleet(Fleet(), 5).facts
    assert (facts["available_share_min"], facts["trough_over_peak"], facts["never_available_share"]) == (1.0, 1.0, 0.0)
    assert facts["median_window_s"] is None
    assert "NaN" not in json.dumps(facts)


def test_traces_that_end_are_described_up_to_their_end():
    facts = describe_fleet(Fleet(availability=Availability.of([[(0, 7200)], [(3600, 7200)]])), 2).facts
    assert facts["available_share_mean"] == pytest.approx(0.75)
    assert (facts["period_s"], facts["available_share_min"]) == (None, 0.5)


@pytest.mark.parametrize(
    ("sessions", "period_s", "low", "high"),
    [
        ([(0, 5), (10, 15)], 3600.0, 0.0, 10 / 1800),
        ([(0, 5), (10, 15)], 100.0, 0.1, 0.1),
        ([(0, 1801)], 3600.0, 1 / 1800, 1.0),
    ],
)
def test_half_hour_means_miss_no_second(sessions, period_s, low, high):
    facts = describe_fleet(Fleet(availability=Availability.of([sessions], period_s)), 1).facts
    assert facts["available_share_min"] == pytest.approx(low)
    assert facts["available_share_max"] == pytest.approx(high)


@pytest.mark.parametrize("preset", PRESETS)
def test_json_is_one_line_with_shares_and_quantiles(preset, tmp_path):
    done = fieldfare(tmp_path, "fleet", "describe", "--preset", preset, "--devices", "2000", "--json")
    facts = done.result
    assert done.out.count("\n") == 1
    assert facts["devices"] == 2000
    shares = [name for name in facts if name.startswith("available_share_")] + ["never_available_share"]
    assert len(shares) == 4
    assert all(0.0 <= facts[name] <= 1.0 for name in [*shares, "trough_over_peak"])
    assert facts["median_window_s"] > 0
    for column in ("flops_per_s", "downlink_bytes_per_s", "uplink_bytes_per_s"):
        assert 0 < facts[column]["p10"] < facts[column]["p50"] < facts[column]["p90"]


def test_without_json_a_table_a_curve_and_a_picture_are_drawn(tmp_path):
    words = ("--preset", "flash-charging", "--devices", "500", "--out", "it.png")
    done = fieldfare(tmp_path, "fleet", "describe", *words, pictures=True)
    assert "flash-charging" in done.out
    assert "█" in done.out
    assert "trough/peak" in done.out
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--preset", "flint"), "flint-strict, flash-charging, fedscale-charging"),
        ((), "--preset NAME or --file FILE"),
        (("--preset", "flint-strict", "--file", "a.csv"), "--preset NAME or --file FILE"),
        (("--preset", "flint-strict", "--devices", "0"), "--devices 0"),
        (("--preset", "flint-strict", "--devices", "9", "--out", "it.gif"), ".png or .svg"),
    ],
)
def test_what_cannot_be_described_is_refused_in_one_line(words, told, tmp_path):
    done = fieldfare(tmp_path, "fleet", "describe", *words, pictures=True)
    done.refused(told)


def test_the_same_fleet_gives_the_same_picture(tmp_path):
    described = describe_fleet(two_of_four(), 4)
    one, other = (save_fleet(described, tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))
    assert one == other
    assert b"devices available" in one
    with style.drawing():
        assert "<svg" in availability_curve(described).markup


def test_a_fleet_with_one_window_or_none_can_be_drawn(tmp_path):
    for number, availability in enumerate((None, Availability.of([[(0, 60)]], DAY), Availability.of([[]], DAY))):
        path = save_fleet(describe_fleet(Fleet(availability=availability), 1), tmp_path / f"{number}.png")
        assert path.stat().st_size > 10_000


def test_a_preset_is_a_hundred_thousand_devices_unless_said():
    assert fleet_of("fedscale-charging", None, None, 0)[1] == 100_000
    with pytest.raises(UsageError, match="one source"):
        fleet_of(None, None, 5, 0)


def test_the_size_of_a_fleet_is_that_of_what_it_holds():
    assert size_of(two_of_four()) == 4
    assert size_of(Fleet(uplink_bytes_per_s=np.full(7, 1e6, np.float32))) == 7
    assert size_of(Fleet()) == 1


def test_a_sparkline_is_as_wide_as_asked_and_full_at_its_peak():
    assert sparkline(np.array([0.0, 0.0, 1.0, 1.0, 0.5, 0.5]), 3) == " █▄"
    assert sparkline(np.zeros(4), 80) == "    "


@pytest.mark.data
def test_the_phones_that_flash_charging_is_named_after_are_described_as_they_were_measured():
    parquet = pytest.importorskip("pyarrow.parquet")
    read = parquet.read_table(realdata.file("traces_availability/flash_intervals.parquet"))
    table = {name: np.asarray(read[name]) for name in ("device", "variant", "start_s", "end_s", "state")}
    may = (table["variant"] == "charging_wifi") & (table["state"] == 2)
    start, end = (np.clip(table[name][may] / 3600.0, 12, 120) * 3600.0 for name in ("start_s", "end_s"))
    kept = start < end
    device, begin = table["device"][may][kept].astype(np.int64), 12 * 3600.0
    availability = of_columns(device, start[kept] - begin, end[kept] - begin, 240, 108 * 3600.0)
    facts = describe_fleet(Fleet(availability=availability), 240).facts
    assert facts["available_share_mean"] == pytest.approx(0.17, abs=0.01)
    assert facts["available_share_min"] == pytest.approx(0.08, abs=0.015)
    assert facts["available_share_max"] == pytest.approx(0.26, abs=0.015)
    assert facts["never_available_share"] == pytest.approx(0.04, abs=0.01)
    assert facts["median_window_s"] == pytest.approx(14 * 60, rel=0.15)
