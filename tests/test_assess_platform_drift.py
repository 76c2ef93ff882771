"""A run beside its forecast: inside its ranges or not, scaled to its versions, as an exit code and on the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.assess.artefact import Artefact, Draft, Value, read_artefact, words
from fieldfare.assess.forecast.assumptions import ASSUMED
from fieldfare.assess.forecast.build import build
from fieldfare.assess.forecast.model import UNITS, Means
from fieldfare.assess.platform.drift import GROWS, drift, live, within
from fieldfare.assess.platform.journal import Journal
from fieldfare.cli import app
from fieldfare.core.errors import UsageError
from fieldfare.store.runs import RunFolder
from fieldfare.store.tasks import TASK

JOB = Means(versions=10, buffer=6, concurrency=6, compute_s=2.0, down_bytes=1e4, up_bytes=1e4, sigma=0.1,
            overhead_s=0.0)  # fmt: skip


def forecast(place: Path, job: Means = JOB) -> Artefact:
    return build(job, ASSUMED, place / "forecast", model="B")


def run(place: Path, versions: int = 10, task_s: float = 2.0, lost: int = 0, name: str = "run") -> Path:
    """A run as the forecast's job would go: 6 tasks at once, of `task_s` each make a version; `lost` more are lost."""
    with RunFolder.create_at(place / name) as folder:
        for version in range(1, versions + 1):
            tasks = np.zeros(6 + lost, TASK)
            tasks["round"], tasks["base"] = version, max(version - 2, 0)
            tasks["start"], tasks["end"] = (version - 1) * task_s, version * task_s
            tasks["outcome"][6:] = 1
            tasks["compute_s"], tasks["bytes_down"], tasks["bytes_up"] = task_s, 1e4, 1e4
            told: dict[str, Any] = {"ok": 6} | ({"interrupted": lost} if lost else {})
            folder.append("rounds.jsonl", {
                "round": version, "version": version, "virtual_s": version * task_s, "clients": 6, "tasks": told,
                "device_s": {k: n * task_s for k, n in told.items()}, "compute_s": (6 + lost) * task_s,
                "bytes_down": version * (6 + lost) * 1e4, "bytes_up": version * 6e4,
            })  # fmt: skip
            folder.add_records("tasks.bin", tasks.tobytes())
        folder.flush()
    return place / name


def inside(made: Artefact) -> dict[str, float]:
    table = made.table("drift")
    return dict(zip(words(table["quantity"]), np.asarray(table["inside"], float).tolist(), strict=True))


def test_a_run_as_forecast_is_inside_and_a_slower_one_is_not(tmp_path: Path) -> None:
    told = forecast(tmp_path)
    good = drift(told, run(tmp_path), tmp_path / "good")
    assert good.number("outside") == 0, [name for name, one in inside(good).items() if not one]
    assert good.number("versions_share") == 1
    assert good.values["time_to_target_s"].value == 20.0
    slow = drift(told, run(tmp_path, task_s=60.0, name="slow"), tmp_path / "d" / "slow")
    assert {"time_to_target_s", "version_s", "device_h", "updates_per_s"} <= {
        n for n, v in inside(slow).items() if not v
    }
    assert inside(slow)["tasks_ok"] == inside(slow)["bytes_up"] == 1
    assert slow.values["version_s"].note == "outside the forecast's range"


def test_waste_that_nobody_forecast_is_outside(tmp_path: Path) -> None:
    told = forecast(tmp_path)
    assert told.values["waste_share"].value == 0
    assert inside(drift(told, run(tmp_path, lost=2), tmp_path / "d"))["waste_share"] == 0
    assert inside(drift(told, run(tmp_path, name="clean"), tmp_path / "d"))["waste_share"] == 1


@pytest.mark.parametrize("versions", [1, 4, 25])
def test_a_run_of_other_length_is_scaled_to_the_forecasts_versions(tmp_path: Path, versions: int) -> None:
    told = forecast(tmp_path)
    whole = drift(told, run(tmp_path), tmp_path / "d" / "whole")
    part = drift(told, run(tmp_path, versions, name="part"), tmp_path / "d" / "part")
    assert part.number("versions_share") == versions / 10
    for name in UNITS:
        if name in part.values and "peak" not in name and name != "staleness":
            assert part.number(name) == pytest.approx(whole.number(name)), name
    assert set(UNITS) >= GROWS


def test_the_table_has_the_forecasts_own_numbers(tmp_path: Path) -> None:
    told = forecast(tmp_path)
    made = drift(told, run(tmp_path), tmp_path / "d")
    table = made.table("drift")
    assert list(table) == ["quantity", "unit", "forecast", "low", "high", "live", "inside", "ratio"]
    for i, name in enumerate(words(table["quantity"])):
        one = told.values[name]
        assert (words(table["unit"])[i], table["forecast"][i]) == (one.unit, one.value)  # type: ignore[index]
        assert (table["low"][i], table["high"][i]) == (one.low, one.high)  # type: ignore[index]
        if one.value:
            assert table["ratio"][i] == pytest.approx(table["live"][i] / one.value)  # type: ignore[index]
    assert made.inputs[0]["sha256"] == told.sha256
    assert made.inputs[1]["kind"] == "run"
    assert drift(told, tmp_path / "run", tmp_path / "again").sha256 == made.sha256


def test_what_a_journal_does_not_tell_is_not_in_the_table(tmp_path: Path) -> None:
    made = drift(forecast(tmp_path), run(tmp_path), tmp_path / "d")
    assert not {"cost", "carbon_g", "client_energy_j", "aggregators"} & set(inside(made))
    assert live(Journal(())) == {}
    rows = ({"version": 2, "virtual_s": 4.0, "tasks": {"ok": 8}, "device_s": {"ok": 3600.0}},)
    assert live(Journal(rows)) == {
        "time_to_target_s": 4.0, "version_s": 2.0, "tasks_started": 8, "tasks_ok": 8, "waste_share": 0, "device_h": 1,
        "updates_per_s": 2.0,
    }  # fmt: skip


@given(st.floats(0.1, 10), st.floats(0, 5), st.floats(0, 5), st.floats(0, 20))
def test_a_value_is_inside_exactly_between_the_ends(middle: float, down: float, up: float, value: float) -> None:
    one = Value(middle, low=middle - down, high=middle + up)
    found = within(value, one)
    assert (
        found == (middle - down <= value <= middle + up)
        or min(abs(value - middle + down), abs(value - middle - up)) <= 1e-7
    )
    assert within(value, replace(one, low=None)) is None


def test_the_exit_code_is_8_outside_and_0_inside(tmp_path: Path) -> None:
    forecast(tmp_path), run(tmp_path), run(tmp_path, task_s=60.0, name="slow")

    def told(name: str, *more: str) -> tuple[int, str]:
        places = [str(tmp_path / one) for one in ("forecast", name)]
        words_ = ["assess", "drift", *places, "--out", str(tmp_path / "d"), *more]
        found = CliRunner().invoke(app, words_, standalone_mode=False)
        assert found.exception is None, found.output
        return found.return_value, found.stdout

    assert told("run")[0] == 0
    code, text = told("slow")
    assert code == 8
    assert "outside" in text
    code, text = told("slow", "--only", "tasks_ok,bytes_up", "--json")
    assert code == 0
    assert json.loads(text.splitlines()[-1])["values"]["inside_share"] == 1
    assert told("slow", "--only", "version_s")[0] == 8


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    told = forecast(tmp_path)
    with pytest.raises(UsageError, match="drift wants a forecast"):
        drift(Draft("bench").write(tmp_path / "b"), run(tmp_path), tmp_path / "d")
    with pytest.raises(UsageError, match="has made no version yet"):
        drift(told, run(tmp_path, 0, name="none"), tmp_path / "d")
    with pytest.raises(UsageError, match="tells nothing of 'cost': of this forecast it tells time_to_target_s"):
        drift(told, tmp_path / "run", tmp_path / "d", only=["cost"])


def test_a_decisions_page_shows_a_drift_artefact_that_it_is_given(tmp_path: Path) -> None:
    told = forecast(tmp_path)
    made = drift(told, run(tmp_path, task_s=60.0), tmp_path / "d")
    page: dict[str, str] = {}
    for name, more in (("with", [str(made.path)]), ("without", [])):
        words_ = ["assess", "decide", str(told.path), *more, "--models", "B", "--out", str(tmp_path / name)]
        assert CliRunner().invoke(app, words_, standalone_mode=False).exception is None
        page[name] = read_artefact(tmp_path / name).file("report.html").read_text()
    assert "Live against the forecast" in page["with"]
    assert "10 of the 10 versions forecast were made; the run is incomplete" in page["with"]
    assert "outside" in page["with"]
    assert made.sha256[:12] in page["with"]
    assert "Live against the forecast" not in page["without"]
