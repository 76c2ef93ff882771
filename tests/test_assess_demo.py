"""The demonstration: three cases to three decisions, and one changed limit or input that flips a verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fieldfare.assess.demo.cases import CASES, table
from fieldfare.assess.proxy.presets import preset
from fieldfare.cli import app
from fieldfare.core.errors import UsageError


def run(place: Path, *line: str) -> Mapping[str, Any]:
    told = CliRunner().invoke(app, ["assess", "demo", "-o", str(place), "--json", *line], standalone_mode=False)
    if told.exception is not None:
        raise told.exception
    return json.loads(told.output.splitlines()[-1])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.mark.slow
def test_three_cases_come_to_a_go_a_no_go_and_a_go_with_conditions_for_stated_reasons(demo: Path) -> None:
    told = run(demo)
    assert {name: one["verdict"] for name, one in told.items()} == {
        "ads": "GO", "messaging": "NO-GO", "search": "GO WITH CONDITIONS",
    }  # fmt: skip
    assert "attack_success" in told["messaging"]["reason"]
    for name in CASES:
        decision = json.loads((demo / name / "decision.json").read_text())
        assert decision["verdict"] == told[name]["verdict"]
        page = (demo / name / "report.html").read_text()
        assert escape(decision["title"]) in page
        assert "Evidence" in page
        settings = page.split('<section id="sweeps"')[1].split("<section ")[0]
        assert settings.count("<svg") == 3
        assert page.split('<section id="fairness"')[1].split("<section ")[0].count("<svg") >= 2
        modes = page.split('<section id="modes"')[1].split("<section ")[0]
        assert modes.count("<polyline") == (0 if name == "search" else 4)
        assert ("--set compare=true" in modes) == (name == "search")
    ads = json.loads((demo / "ads" / "decision.json").read_text())
    assert ads["model"] == "B"
    assert [step["answer"] for step in ads["path"] if step["id"] == "G2"] == ["no", "yes"]


@pytest.mark.slow
def test_one_limit_or_input_on_the_command_line_flips_a_verdict_in_both_directions(demo: Path) -> None:
    assert run(demo, "--case", "ads")["ads"]["verdict"] == "GO"
    assert run(demo, "--case", "ads", "-t", "ads.metric_loss_share=0.001")["ads"]["verdict"] == "NO-GO"
    assert run(demo, "--case", "ads", "-s", "ads.epsilon=50")["ads"]["verdict"] == "NO-GO"
    assert run(demo, "--case", "messaging", "-t", "attack_success=0.2")["messaging"]["verdict"] == "GO"
    assert run(demo, "--case", "messaging", "-s", "attack_success=0.05")["messaging"]["verdict"] == "GO"


@pytest.mark.slow
def test_equal_seeds_give_equal_pages(demo: Path, tmp_path: Path) -> None:
    first = run(demo, "--case", "messaging")["messaging"]
    second = run(tmp_path, "--case", "messaging")["messaging"]
    assert first["sha256"] == second["sha256"]
    name = "messaging/report.html"
    assert (demo / name).read_bytes() == (tmp_path / name).read_bytes()


def test_tables_are_like_the_papers() -> None:
    for case in CASES.values():
        columns, test = table(case, 0)
        shape = preset(case.preset)
        assert columns["label"].mean() == pytest.approx(shape.label_ratio, abs=0.01)
        assert len(columns["member"]) / case.clients == pytest.approx(shape.mean, rel=0.1)
        assert 0.3 * shape.label_ratio < test["y"].mean() < 3 * shape.label_ratio  # type: ignore[operator]


def test_unknown_inputs_and_limits_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'epsilon'"):
        run(tmp_path, "--case", "ads", "-s", "epsilom=3")
    with pytest.raises(UsageError, match="use ads\\.NAME=VALUE"):
        run(tmp_path, "--case", "ads", "-s", "ads=3")
