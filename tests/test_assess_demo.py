"""The demonstration: three cases to three decisions, and one changed limit or input that flips a verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fieldfare.assess.artefact import read_artefact
from fieldfare.assess.demo.cases import CASES, table
from fieldfare.assess.demo.walk import slowed
from fieldfare.assess.proxy.presets import preset
from fieldfare.cli import app
from fieldfare.core.errors import UsageError
from fieldfare.fleet.fleet import phones


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
    assert run(demo, "--case", "ads", "-s", "ads.epsilon=8")["ads"]["verdict"] == "GO"
    assert run(demo, "--case", "messaging", "-s", "attack_success=0.05")["messaging"]["verdict"] == "GO WITH CONDITIONS"
    eased = run(demo, "--case", "messaging", "-t", "attack_success=0.2")["messaging"]
    assert eased["verdict"] == "GO WITH CONDITIONS"
    conditions = json.loads((demo / "messaging" / "decision.json").read_text())["conditions"]
    assert any("quality was simulated without dp-fedavg" in one for one in conditions)


@pytest.mark.slow
def test_a_changed_input_is_simulated_anew_and_the_first_one_found_again(demo: Path) -> None:
    def told() -> Any:
        one = read_artefact(demo / "ads" / "simulation-B", "simulation")
        return one.number("time_to_target_s"), [made["sha256"] for made in one.inputs if made["kind"] == "trace"]

    run(demo, "--case", "ads")
    first = told()
    arms = {p: p.stat().st_mtime_ns for p in (demo / "ads" / "simulation-B-runs").rglob("summary.json")}
    run(demo, "--case", "ads", "-s", "ads.wifi=false")
    changed = told()
    assert changed[0] != first[0]
    assert changed[1] != first[1]
    run(demo, "--case", "ads")
    assert told() == first
    assert arms
    assert {p: p.stat().st_mtime_ns for p in arms} == arms


@pytest.mark.slow
def test_the_small_net_takes_the_bytes_of_the_model_that_it_stands_for(demo: Path) -> None:
    run(demo, "--case", "ads")
    simulation, bench, cast = (read_artefact(demo / "ads" / n) for n in ("simulation-B", "bench", "forecast-B"))
    for whole, tasks, each in (("bytes_down", "tasks_started", "down"), ("bytes_up", "tasks_ok", "up")):
        per_task = simulation.number(whole) / simulation.number(tasks)  # type: ignore[operator]
        assert per_task == pytest.approx(bench.number(f"B.wire_{each}_bytes"))
        one = cast.values[whole]
        assert 0.5 < one.value / one.closed < 2  # type: ignore[operator]
    assert cast.number("storage_bytes") > bench.number("B.storage_bytes") * cast.params["job"]["versions"]  # type: ignore[operator]
    waste = cast.values["waste_share"]
    assert waste.value == pytest.approx(waste.closed, rel=0.25), "closed form and simulation"
    started, versions = simulation.number("tasks_started"), simulation.number("versions_to_target")
    assert cast.number("tasks_started") == pytest.approx(started * versions / simulation.number("versions"))  # type: ignore[operator]


@pytest.mark.slow
def test_equal_seeds_give_equal_pages(demo: Path, tmp_path: Path) -> None:
    first = run(demo, "--case", "messaging")["messaging"]
    second = run(tmp_path, "--case", "messaging")["messaging"]
    assert first["sha256"] == second["sha256"]
    name = "messaging/report.html"
    assert (demo / name).read_bytes() == (tmp_path / name).read_bytes()


def test_slower_links_take_a_small_net_as_long_as_a_large_one() -> None:
    fleet = phones(overhead_s=0.0).build(50, 0)
    slow = slowed(fleet, 1736.0, (0.76e6, 0.38e6))
    assert 1736.0 / slow.downlink_bytes_per_s == pytest.approx(0.76e6 / fleet.downlink_bytes_per_s, rel=1e-5)
    assert 1736.0 / slow.uplink_bytes_per_s == pytest.approx(0.38e6 / fleet.uplink_bytes_per_s, rel=1e-5)


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
