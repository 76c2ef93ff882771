"""The forecast: quantities follow from one another, ranges hold their values, artefacts feed it, bad input is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st

from fieldfare.assess.artefact import Artefact, Draft, Value, read_artefact, words
from fieldfare.assess.forecast.assumptions import ASSUMED, assumptions
from fieldfare.assess.forecast.build import build, means_of, sigma_of
from fieldfare.assess.forecast.model import UNITS, Means, quantities, ranges_of, swings
from fieldfare.cli import app
from fieldfare.core.errors import UsageError

MIDDLE = {name: one.value for name, one in ASSUMED.items()}
SPANS = {name: (one.value, one.low, one.high) for name, one in ASSUMED.items()}
ADS = Means(
    versions=12_200, buffer=50, concurrency=120, compute_s=0.55, down_bytes=0.76e6, up_bytes=0.76e6, sigma=1.96,
    supply_per_s=4.2, session_s=900.0, max_staleness=10.0, peak_over_mean=2.5,
)  # fmt: skip


@given(
    st.integers(1, 500), st.integers(1, 500), st.floats(0.1, 1000), st.floats(0, 2), st.booleans(), st.floats(0.1, 100)
)
def test_quantities_follow_from_one_another(
    concurrency: int, buffer: int, compute_s: float, sigma: float, buffered: bool, supply: float
) -> None:
    job = replace(ADS, concurrency=concurrency, buffer=buffer, compute_s=compute_s, sigma=sigma, buffered=buffered,
                  supply_per_s=supply)  # fmt: skip
    assume(not buffered or job.task_s < 400 or sigma > 0.5)
    found = quantities(job, MIDDLE)
    assert set(found) == set(UNITS)
    assert all(np.isfinite(value) and value >= -1e-9 for value in found.values())
    assert found["tasks_ok"] == pytest.approx(job.versions * job.buffer)
    assert found["tasks_ok"] <= found["tasks_started"] * (1 + 1e-9)
    assert found["waste_share"] == pytest.approx(1 - found["tasks_ok"] / found["tasks_started"], abs=1e-9)
    assert found["bytes_up"] == pytest.approx(found["tasks_ok"] * job.up_bytes)
    assert found["ingress_bytes_per_s_peak"] == pytest.approx(found["updates_per_s_peak"] * job.up_bytes)
    parts = found["client_energy_j"] + found["network_energy_j"] + found["server_energy_j"]
    assert found["energy_j"] == pytest.approx(parts)


def test_where_no_task_can_end_that_is_told_and_a_range_that_reaches_there_is_open() -> None:
    stuck = replace(ADS, compute_s=899.0, sigma=0.0)
    with pytest.raises(UsageError, match="no task of 9"):
        quantities(stuck, MIDDLE)
    tight = replace(ADS, compute_s=500.0, sigma=0.0)
    ends = ranges_of(quantities(tight, MIDDLE), swings(tight, SPANS))
    assert ends["time_to_target_s"][1] == float("inf")
    assert np.isfinite(ends["time_to_target_s"][0])


def test_at_uniform_arrivals_the_papers_task_c_is_3_53_updates_a_second() -> None:
    job = Means(versions=12_200, buffer=50, concurrency=10, compute_s=2.0, down_bytes=0.76e6, up_bytes=0.76e6,
                supply_per_s=610_000 / (48 * 3600), sigma=0.65)  # fmt: skip
    found = quantities(replace(job, concurrency=1000), MIDDLE)
    assert found["time_to_target_s"] == pytest.approx(48 * 3600, rel=1e-3)
    assert found["updates_per_s"] == pytest.approx(3.53, rel=1e-2)
    assert found["ingress_bytes_per_s_peak"] == pytest.approx(2.68e6, rel=1e-2)


def test_ranges_hold_the_value_and_widen_with_what_is_not_known() -> None:
    base = quantities(ADS, MIDDLE)
    known = ranges_of(base, swings(ADS, {name: (v, v, v) for name, (v, _, _) in SPANS.items()}, {}))
    unsure = ranges_of(base, swings(ADS, SPANS))
    for name, value in base.items():
        assert known[name] == pytest.approx((value, value))
        low, high = unsure[name]
        assert low <= value * (1 + 1e-9)
        assert high >= value * (1 - 1e-9)
    assert unsure["carbon_g"][1] > 1.2 * base["carbon_g"]


def test_a_swing_is_what_the_quantity_becomes_at_the_inputs_ends() -> None:
    one = next(swing for swing in swings(ADS, SPANS) if swing.input == "carbon_g_per_kwh")
    base = quantities(ADS, MIDDLE)
    assert one.at_low["carbon_g"] == pytest.approx(base["carbon_g"] * one.low / 400)
    assert one.at_high["time_to_target_s"] == base["time_to_target_s"]
    assert {s.input for s in swings(replace(ADS, supply_per_s=float("inf")), SPANS)} & {"supply_per_s"} == set()


def test_buffered_versions_come_sooner_than_rounds_that_wait_the_more_so_the_longer_the_tail() -> None:
    def gain(sigma: float) -> float:
        job = replace(ADS, sigma=sigma, buffer=50, concurrency=65, supply_per_s=float("inf"), session_s=float("inf"))
        sync = quantities(replace(job, buffered=False, over=1.0), MIDDLE)
        return sync["version_s"] / quantities(job, MIDDLE)["version_s"]

    gains = [gain(sigma) for sigma in (0.6, 1.0, 1.85)]
    assert gains == sorted(gains)
    assert gains[0] > 3


def artefacts(tmp_path: Path) -> dict[str, Artefact]:
    bench = Draft("bench", values={
        "B.wire_down_bytes": Value(0.76e6), "B.wire_up_bytes": Value(0.76e6), "B.per_record_s": Value(0.012),
        "B.lognormal_sigma": Value(0.64), "B.storage_bytes": Value(0.76e6),
    })  # fmt: skip
    trace = Draft("trace", values={"supply_per_s": Value(4.2), "eligible_device_s": Value(9e5),
                                     "sessions": Value(1000.0)})  # fmt: skip
    t = np.arange(0, 7 * 86_400, 300.0)
    trace.table("weekly", {"t_s": t, "available": 50 + 40 * np.sin(t / 86_400 * 2 * np.pi)})
    sim = Draft("simulation", values={
        "versions": Value(500.0), "buffer": Value(50.0), "concurrency": Value(100.0), "tasks_started": Value(27_000.0),
        "tasks_ok": Value(25_000.0), "compute_s": Value(27_000.0 * 20), "device_s": Value(27_000.0 * 24),
        "time_to_target_s": Value(8_000.0, "s", 7_000.0, 60_000.0), "waste_share": Value(0.074),
        "mode_async": Value(1.0), "staleness": Value(20.0),
    })  # fmt: skip
    return {one.kind: one.write(tmp_path / one.kind) for one in (bench, trace, sim)}


def test_a_simulations_numbers_are_told_with_the_closed_form_beside_them(tmp_path: Path) -> None:
    found = artefacts(tmp_path)
    job = means_of("B", bench=found["bench"], trace=found["trace"], simulation=found["simulation"], records=99)
    assert job.compute_s == pytest.approx(20.0)
    made = build(job, assumptions(), tmp_path / "f", simulation=found["simulation"], inputs=list(found.values()))
    time = made.values["time_to_target_s"]
    assert (time.value, time.how) == (8_000.0, "simulated")
    assert time.closed == pytest.approx(quantities(job, MIDDLE)["time_to_target_s"])
    assert time.high >= 60_000.0
    assert made.values["device_h"].value == pytest.approx(27_000 * 24 / 3600)
    table = made.table("quantities")
    assert words(table["name"]) == list(UNITS)
    assert np.asarray(made.table("by_hour")["updates_per_s"]).max() == pytest.approx(
        made.number("updates_per_s") * 1.8,
        rel=0.02,  # type: ignore[operator]
    )
    assert {one["kind"] for one in made.inputs} == {"bench", "trace", "simulation"}


def test_what_grows_with_a_run_is_told_up_to_the_target(tmp_path: Path) -> None:
    found = artefacts(tmp_path)
    values = {**found["simulation"].values, "versions_to_target": Value(100.0, "versions")}
    sim = Draft("simulation", values=values).write(tmp_path / "early")
    job = means_of("B", bench=found["bench"], trace=found["trace"], simulation=sim, records=99)
    assert job.versions == 100.0
    made = build(job, assumptions(), tmp_path / "f", simulation=sim)
    assert made.number("tasks_started") == pytest.approx(27_000 / 5)
    assert made.number("device_h") == pytest.approx(27_000 * 24 / 3600 / 5)
    assert made.number("time_to_target_s") == 8_000.0


def test_a_target_that_was_not_reached_gives_no_forecast_unless_somebody_says_how_many_versions(tmp_path: Path) -> None:
    found = artefacts(tmp_path)
    values = {**found["simulation"].values, "time_to_target_s": Value(None, "s", note="loss 0.1")}
    sim = Draft("simulation", values=values).write(tmp_path / "never")
    with pytest.raises(UsageError, match="did not reach its target"):
        means_of("B", bench=found["bench"], simulation=sim, records=99)
    assert means_of("B", bench=found["bench"], simulation=sim, records=99, versions=9).versions == 9


def test_without_a_simulation_the_bench_gives_the_task(tmp_path: Path) -> None:
    found = artefacts(tmp_path)
    job = means_of("B", bench=found["bench"], records=99, epochs=2, versions=100, buffer=10, concurrency=20)
    assert job.compute_s == pytest.approx(0.012 * 99 * 2)
    assert sigma_of(0.65, 99, 0) == pytest.approx(0.65)
    with pytest.raises(UsageError, match="needs versions, buffer, concurrency"):
        means_of("B", bench=found["bench"], records=99)


def test_the_command_writes_the_same_hash_for_equal_inputs(tmp_path: Path) -> None:
    found = artefacts(tmp_path)
    line = ["assess", "forecast", "--model", "B", "--bench", str(found["bench"].path), "--records", "99", "--trace",
            str(found["trace"].path), "-s", "job.versions=100", "-s", "job.buffer=10", "-s", "job.concurrency=50",
            "-s", "assume.carbon_g_per_kwh=[20, 10, 30]", "--json"]  # fmt: skip
    told = [CliRunner().invoke(app, [*line, "-o", str(tmp_path / name)]) for name in "ab"]
    results = [json.loads(one.output.splitlines()[-1]) for one in told]
    assert results[0]["sha256"] == results[1]["sha256"]
    assert read_artefact(tmp_path / "a", "forecast").values["carbon_g"].value == results[0]["values"]["carbon_g"]


JOB_ = [word for name in ("versions", "buffer", "concurrency", "compute_s", "down_bytes", "up_bytes")
        for word in ("-s", f"job.{name}=1")]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["-s", "assume.compute=3"], "did you mean 'compute_w'"),
        (["-s", "assume.compute_w=[3, 4, 5]"], r"\[value, low, high\] in that order"),
        (["-s", "job.versions=0", "-s", "job.buffer=1", "-s", "job.concurrency=1", "-s", "job.compute_s=1",
          "-s", "job.down_bytes=1", "-s", "job.up_bytes=1"], "use a number above 0"),
        (["-s", "versions=3"], "settings are job.NAME"),
        (["--bench", "BENCH"], "needs --model"),
        (["-s", "job=3"], r"use job\.NAME=VALUE"),
        (["-s", "assume=3"], r"use assume\.NAME=VALUE"),
        (["-s", "assume.server_load=0"], "server_load=0: use numbers above 0 and at most 1"),
        (["-s", "assume.battery_wh=0"], "battery_wh=0: use numbers above 0"),
        (["-s", "assume.carbon_g_per_kwh=true"], "carbon_g_per_kwh=True: use a number"),
        (["--epochs", "0"], "epochs=0"),
        ([*JOB_, "-s", "job.buffer=abc"], "job.buffer='abc': use a whole number"),
        ([*JOB_, "-s", "job.buffer=2.7"], "job.buffer=2.7: use a whole number"),
        ([*JOB_, "-s", "job.over=0.5"], "over=0.5"),
        ([*JOB_, "-s", "job.uplink_bytes_per_s=0"], "uplink_bytes_per_s=0"),
        ([*JOB_, "-s", "job.up_bytes=-1"], "up_bytes=-1"),
        ([*JOB_, "-s", "job.overhead_s=-5"], "overhead_s=-5"),
        ([*JOB_, "-s", "job.versions=nan"], "versions=nan"),
        ([*JOB_, "-s", "job.compute_s=true"], r"compute_s=True\): use a number"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(tmp_path: Path, line: list[str], says: str) -> None:
    bench = str(artefacts(tmp_path)["bench"].path)
    told = CliRunner().invoke(app, ["assess", "forecast", *(bench if word == "BENCH" else word for word in line)])
    assert told.exit_code != 0
    with pytest.raises(UsageError, match=says):
        raise told.exception  # type: ignore[misc]
