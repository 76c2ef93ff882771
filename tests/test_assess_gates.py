"""Every threshold is read by its gate: just inside is a GO, just outside is a NO-GO that names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from fieldfare.assess.artefact import Artefact, Draft, Value
from fieldfare.assess.decide.gates import Evidence, asker, task_gate
from fieldfare.assess.decide.thresholds import ASKED, DEFAULTS, thresholds
from fieldfare.assess.decide.workflow import Try, Walk, walk

TRACE, PROXY, FEATURES = ("trace", "any", "any"), ("proxy", "any", "any"), ("features", "any", "any")
BENCH, SIM, FORECAST, PRIVACY = (
    ("bench", "B", "any"), ("simulation", "B", "any"), ("forecast", "B", "any"), ("privacy", "B", "any"),
)  # fmt: skip
GOOD: Mapping[tuple[str, str, str], Mapping[str, float | tuple[float, float, float]]] = {
    TRACE: {"median_usable_s": 300.0, "eligible_share_devices": 0.22},
    PROXY: {"natural": 1.0},
    FEATURES: {"assets_bytes": 1e6},
    BENCH: {
        "B.storage_bytes": 0.76e6, "B.p95_task_s": 3.0, "B.mem_bytes": 10e6, "B.cpu_pct": 3.9,
        "B.battery_share_per_day": 0.001,
    },
    SIM: {"metric_loss_share": (0.01, 0.005, 0.015), "worst_group_gap": 1.1, "trials": 5.0},
    FORECAST: {
        "time_to_target_s": 3e5, "ingress_bytes_per_s_peak": 2e6, "device_h": 100.0, "waste_share": 0.1,
        "checkins_per_s_peak": 10.0, "cost": 50.0, "carbon_g": 900.0,
    },
    PRIVACY: {"epsilon": 4.0, "delta": 1e-7, "population": 700_000.0, "attack_success": 0.05},
}  # fmt: skip
CASES = {
    "package_bytes": (BENCH, "B.storage_bytes", 8.9e6, 9.1e6),  # beside 1 MB of assets
    "task_p95_s": (BENCH, "B.p95_task_s", 59.0, 61.0),
    "task_over_session": (TRACE, "median_usable_s", 3.1, 2.9),
    "cpu_pct": (BENCH, "B.cpu_pct", 9.9, 10.1),
    "memory_bytes": (BENCH, "B.mem_bytes", 49e6, 51e6),
    "battery_share_per_day": (BENCH, "B.battery_share_per_day", 0.009, 0.011),
    "eligible_share_devices": (TRACE, "eligible_share_devices", 0.051, 0.049),
    "metric_loss_share": (SIM, "metric_loss_share", (0.019, 0.015, 0.03), (0.021, 0.015, 0.03)),
    "band_over_median": (SIM, "metric_loss_share", (0.01, 0.0, 0.039), (0.01, 0.0, 0.041)),
    "worst_group_gap": (SIM, "worst_group_gap", 1.49, 1.51),
    "time_to_target_s": (FORECAST, "time_to_target_s", 604_000.0, 605_000.0),
    "ingress_bytes_per_s": (FORECAST, "ingress_bytes_per_s_peak", 2.99e6, 3.01e6),
    "waste_share": (FORECAST, "waste_share", 0.19, 0.21),
    "device_h": (FORECAST, "device_h", 4_999.0, 5_001.0),
    "checkins_per_s": (FORECAST, "checkins_per_s_peak", 999.0, 1_001.0),
    "epsilon": (PRIVACY, "epsilon", 7.9, 8.1),
    "delta_times_population": (PRIVACY, "delta", 1.4e-6, 1.5e-6),
    "attack_success": (PRIVACY, "attack_success", 0.09, 0.11),
}


def walked(folder: Path, key: tuple[str, str, str], name: str, value: object, **changes: float) -> Walk:
    found: dict[tuple[str, str, str], Artefact] = {}
    for number, (at, values) in enumerate(GOOD.items()):
        told = {**values, name: value} if at == key else dict(values)
        told = {n: v for n, v in told.items() if v is not None}
        made = {n: Value(*_band(v)) for n, v in told.items()}
        found[at] = Draft(at[0], values=made).write(folder / f"{number}")
    evidence = Evidence(("B",), ("none",), found)
    return walk(asker(evidence, thresholds(changes)), evidence.present, evidence.models, evidence.pets)


def _band(value: object) -> tuple[float, str, float | None, float | None]:
    if isinstance(value, tuple):
        middle, low, high = value
        return middle, "1", low, high
    assert isinstance(value, float)
    return value, "1", None, None


@pytest.mark.parametrize(("held", "p95", "day"), [(50.0, 30.0, 0.005), (100.0, 60.0, 0.01), (101.0, 60.6, 0.0101)])
def test_a_task_is_judged_for_as_many_records_as_a_client_has(
    tmp_path: Path, held: float, p95: float, day: float
) -> None:
    bench = {"B.records": 5_000.0, "B.p95_task_s": 3_000.0, "B.battery_share_per_day": 0.5}
    found: dict[tuple[str, str, str], Artefact] = {}
    for number, (at, values) in enumerate(GOOD.items()):
        told = {**values, **(bench if at == BENCH else {"records_mean": held} if at == PROXY else {})}
        found[at] = Draft(at[0], values={n: Value(*_band(v)) for n, v in told.items()}).write(tmp_path / str(number))
    checks = {one.name: one for one in task_gate(Evidence(("B",), ("none",), found), Try(), thresholds()).checks}
    assert checks["task_p95_s"].value == pytest.approx(p95)
    assert checks["battery_share_per_day"].value == pytest.approx(day)
    assert checks["task_over_session"].value == pytest.approx(p95 / 300.0)
    assert checks["task_p95_s"].ok == (held <= 100)
    assert "5,000 were measured" in checks["task_p95_s"].note


def failing(found: Walk) -> list[str]:
    replies = [step.reply for step in found.path if step.reply is not None]
    return [one.name for reply in replies for one in reply.checks if one.ok is False]


def test_every_threshold_has_a_case_here_or_is_only_a_condition() -> None:
    assert {*CASES, "trials"} == set(DEFAULTS)
    assert set(ASKED) == {"cost", "carbon_g"}


@pytest.mark.parametrize("name", CASES)
def test_just_inside_is_a_go_and_just_outside_is_a_no_go_that_names_the_threshold(tmp_path: Path, name: str) -> None:
    key, of, inside, outside = CASES[name]
    found = walked(tmp_path / "in", key, of, inside)
    assert (found.verdict, failing(found)) == ("GO", [])
    found = walked(tmp_path / "out", key, of, outside)
    assert found.verdict == "NO-GO"
    assert failing(found) == [name]
    assert found.binding is not None
    assert found.binding.name == name
    assert name in found.reason


@pytest.mark.parametrize("name", ["cost", "carbon_g"])
def test_a_limit_that_somebody_sets_on_cost_or_carbon_is_kept(tmp_path: Path, name: str) -> None:
    value = GOOD[FORECAST][name]
    assert isinstance(value, float)
    assert walked(tmp_path / "none", FORECAST, name, value * 1e6).verdict == "GO"
    assert walked(tmp_path / "in", FORECAST, name, value, **{name: value + 1}).verdict == "GO"
    found = walked(tmp_path / "out", FORECAST, name, value, **{name: value - 1})
    assert (found.verdict, failing(found)) == ("NO-GO", [name])


def test_of_two_numbers_that_fail_the_one_that_is_further_out_is_binding(tmp_path: Path) -> None:
    found = walked(tmp_path, FORECAST, "device_h", 50_000.0, waste_share=0.09)
    assert failing(found) == ["waste_share", "device_h"]
    assert found.binding is not None
    assert found.binding.name == "device_h"


def test_assets_count_for_the_package(tmp_path: Path) -> None:
    found = walked(tmp_path, FEATURES, "assets_bytes", 9.3e6)
    assert (found.verdict, failing(found)) == ("NO-GO", ["package_bytes"])


@pytest.mark.parametrize("trials", [1.0, 4.0])
def test_fewer_trials_than_wanted_stop_nothing(tmp_path: Path, trials: float) -> None:
    assert walked(tmp_path, SIM, "trials", trials).verdict != "NO-GO"


def test_a_compliance_reason_tolerates_five_per_cent_of_loss_and_no_more() -> None:
    assert thresholds(compliance="a law")["metric_loss_share"].value == 0.05
    assert thresholds()["metric_loss_share"].value == 0.02
