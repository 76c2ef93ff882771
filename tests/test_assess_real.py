"""The three cases on tables of real people and phones: what the tables hold, and the walk to decisions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import realdata
from click.testing import CliRunner

from fieldfare.assess.artefact import read_artefact
from fieldfare.assess.decide import charts
from fieldfare.assess.demo.real import REAL, apart
from fieldfare.assess.demo.tables import FILES, LEAST, TABLES
from fieldfare.cli import app
from fieldfare.core.errors import UsageError


def folder(name: str) -> Path:
    pytest.importorskip("pyarrow")
    pytest.importorskip("duckdb")
    for what in (name, "sessions", *(("films",) if name == "search" else ())):
        realdata.file(FILES[what])
    return realdata.ROOT


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "members", "share", "rows"), [("ads", 152, 0.0053, 31_316), ("messaging", 98, 0.245, 33_634),
                                           ("search", 550, 0.51, 76_000)]
)  # fmt: skip
def test_a_table_has_its_members_each_with_rows_enough_and_tests_rows_it_does_not_train_on(
    name: str, members: int, share: float, rows: int
) -> None:
    columns, test = TABLES[name](folder(name), 0)
    _, counts = np.unique(columns["member"], return_counts=True)
    assert counts.min() >= LEAST
    assert len(counts) == pytest.approx(members, rel=0.1)
    assert counts.sum() == pytest.approx(rows, rel=0.1)
    assert columns["label"].mean() == pytest.approx(share, abs=0.03)
    assert len(test["y"]) == pytest.approx(0.25 * counts.sum(), rel=0.1)
    x = np.stack([values for key, values in columns.items() if key.startswith("x")], axis=1)
    assert x.shape[1] == test["x"].shape[1]
    assert np.isfinite(x).all()
    assert np.abs(x).max() <= 5.0


@pytest.mark.data
@pytest.mark.slow
def test_no_word_of_a_message_is_a_feature_and_what_is_asked_for_is_not_among_them() -> None:
    columns, _ = TABLES["messaging"](folder("messaging"), 0)
    assert all(np.asarray(values).dtype.kind in "if" for values in columns.values())
    correlation = [np.corrcoef(columns[f"x{i}"], columns["label"])[0, 1] for i in range(97)]
    assert np.nanmax(np.abs(correlation)) < 0.5


@pytest.mark.data
@pytest.mark.slow
def test_real_tables_walk_to_decisions_on_flashs_phones_with_stated_reasons(tmp_path: Path) -> None:
    for name in REAL:
        folder(name)
    line = ["assess", "demo", "-o", str(tmp_path), "--real", str(realdata.ROOT), "--json"]
    told = CliRunner().invoke(app, line, standalone_mode=False)
    assert told.exception is None, told.output
    found: Mapping[str, Any] = json.loads(told.output.splitlines()[-1])
    assert found["search"]["verdict"].startswith("GO")
    assert found["ads"]["verdict"] == "NO-GO"
    assert "metric_loss_share" in found["ads"]["reason"]
    for name in REAL:
        decision = json.loads((tmp_path / name / "decision.json").read_text())
        assert decision["verdict"] == found[name]["verdict"] != "INCOMPLETE"
        assert len((tmp_path / name / "report.html").read_text()) > 50_000
        trace = read_artefact(tmp_path / name / "trace")
        assert trace.number("logged_clients") == 240
        assert trace.inputs[0]["kind"] == "availability log"
        assert read_artefact(tmp_path / name / "proxy").number("natural") == 1.0
        chosen = read_artefact(tmp_path / name / "simulation-mlp")
        assert len(chosen.table("points")["chosen"]) == 3
        assert not set(_seeds(tmp_path / name, "")) & set(_seeds(tmp_path / name, "tune/"))
        told, tuned = (read_artefact(tmp_path / name / at).number("records") for at in ("proxy", "tuning"))
        assert 0.75 * told < tuned < 0.85 * told  # type: ignore[operator]
    again = CliRunner().invoke(app, [*line, "--case", "search", "-t", "search.metric_loss_share=0.001"])
    assert json.loads(again.output.splitlines()[-1])["search"]["verdict"] == "NO-GO"


def _seeds(case: Path, where: str) -> list[int]:
    """Seeds of the runs of the mlp's search: those told, or those by which rates were compared."""
    found = (case / "simulation-mlp-runs").glob(f"{where}arms/lr*/*/config.json")
    seeds = [int(json.loads(one.read_text())["job"]["seed"]) for one in found]
    assert seeds
    return seeds


def test_rates_are_compared_on_rows_to_train_on_alone_each_of_them_in_one_half() -> None:
    n = 2_000
    columns = {"member": np.arange(n) % 20, "label": np.arange(n) % 2, "x0": np.arange(n) * 1.0, "x1": np.zeros(n)}
    kept, withheld = apart(columns, 0)
    assert withheld["x"].shape[1] == 2
    assert len(withheld["y"]) == pytest.approx(0.2 * n, rel=0.15)
    assert np.array_equal(np.sort(np.concatenate([kept["x0"], withheld["x"][:, 0]])), columns["x0"])
    assert np.array_equal(withheld["y"], withheld["x"][:, 0].astype(int) % 2)
    assert not np.array_equal(apart(columns, 1)[0]["x0"], kept["x0"])


def test_a_folder_without_the_tables_is_told_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    line = ["assess", "demo", "-o", str(tmp_path / "out"), "--real", str(tmp_path), "--case", "ads"]
    told = CliRunner().invoke(app, line, standalone_mode=False)
    assert isinstance(told.exception, UsageError)
    assert "flash_intervals.parquet is not there: --real names the folder" in str(told.exception)
    assert "\n" not in str(told.exception)


def test_hours_that_nobody_logged_stay_white_and_out_of_a_curve() -> None:
    grid = np.full((7, 24), np.nan)
    grid[0, 3] = 1.0
    assert charts.heat(grid, label="h", rows=["d"] * 7, columns=[""] * 24).count("<rect") == 1
    drawn = charts.curve(np.arange(4.0), np.array([1.0, np.nan, 2.0, 3.0]), label="c", x_label="x", y_label="y")
    assert "nan" not in drawn
