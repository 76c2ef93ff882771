"""The chain that docs/assess.md writes down, from a table to a decision, by its own commands and files."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fieldfare.assess.artefact import Draft, Value, read_artefact
from fieldfare.assess.options import tell
from fieldfare.cli import app
from fieldfare.core.errors import UsageError

PAGE = Path(__file__).parents[1] / "docs" / "assess.md"


def blocks(title: str) -> list[str]:
    """The indented blocks of a section; of the chain's: commands, the job, the search."""
    text = PAGE.read_text().split(f"## {title}")[1].split("\n## ")[0]
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    return [re.sub(r"^    ", "", one, flags=re.MULTILINE).strip() + "\n" for one in found]


def files(place: Path) -> None:
    """A table of 60 members, who differ, and a week of sessions of 80 phones and tablets."""
    gen = np.random.default_rng(1)
    rows = ["member,t,a,b,clicked"]
    for member in range(60):
        taste = gen.normal()
        for _ in range(gen.integers(20, 60)):
            a, b = gen.normal(taste), gen.normal()
            rows.append(f"m{member},{1_700_000_000 + gen.integers(0, 600_000)},{a:.4f},{b:.4f},{int(a + b > 0)}")
    (place / "table.csv").write_text("\n".join(rows) + "\n")
    rows = ["client,start_s,end_s,wifi,device_model"]
    for client in range(80):
        for day in range(7):
            start = 1_700_438_400 + day * 86_400 + gen.normal(19, 3) * 3600
            kind = "phone" if client % 3 else "tablet"
            rows.append(f"c{client},{start:.0f},{start + gen.lognormal(7, 0.7):.0f},{int(client % 4 > 0)},{kind}")
    (place / "sessions.csv").write_text("\n".join(rows) + "\n")
    one = '[[feature]]\nname = "{}"\nsource = "device"\nbytes_per_record = 4\n'
    (place / "features.toml").write_text(one.format("a") + one.format("b"))


def run(*line: str) -> Any:
    told = CliRunner().invoke(app, list(line), standalone_mode=False)
    if told.exception is not None:
        raise told.exception
    return told


@pytest.mark.slow
def test_the_commands_of_the_page_lead_from_a_table_to_a_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files(tmp_path)
    commands, job, search = blocks("From a table to a decision")
    (tmp_path / "job.py").write_text(job)
    (tmp_path / "search.toml").write_text(search)
    for line in commands.splitlines():
        run(*shlex.split(line)[1:])
    simulation = read_artefact("simulation")
    assert [one["kind"] for one in simulation.inputs] == ["trace", "bench", "proxy"]
    assert simulation.inputs[2]["sha256"] == read_artefact("proxy").sha256
    assert simulation.number("metric_final") > 0.8  # type: ignore[operator]
    assert simulation.number("time_to_target_s") > 0  # type: ignore[operator]
    decision = json.loads(Path("decision/decision.json").read_text())
    assert decision["verdict"] in ("GO", "GO WITH CONDITIONS", "NO-GO")
    assert not decision["missing"]
    # the same table again, under another random key: other clients, which the old simulation is not of
    run("assess", "proxy", "table.csv", "--label", "clicked", "--by", "member", "--test-share", "0.2", "-o", "other")
    with pytest.raises(UsageError, match=r'federated\("other"\)'):
        run("assess", "simulate", "job.py", "--proxy", "other", "--config", "search.toml", "-o", "s2")
    # a job that was mended is played again in the same place
    (tmp_path / "job.py").write_text(job.replace("ff.mlp(2, 8, 2)", "ff.mlp(2, 2)"))
    sets = ("--config", "search.toml", "--set", "trials=2", "--proxy", "proxy", "-o", "simulation")
    run("assess", "simulate", "job.py", *sets)
    assert read_artefact("simulation").number("bytes_up") < simulation.number("bytes_up")  # type: ignore[operator]


def test_the_papers_ads_numbers_come_to_a_go_by_the_pages_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (commands,) = blocks("Deciding")
    for line in commands.splitlines():
        run(*shlex.split(line)[1:])
    decision = json.loads(Path("decision/decision.json").read_text())
    assert (decision["verdict"], decision["conditions"], decision["missing"]) == ("GO", [], [])
    assert {step["id"] for step in decision["path"]} >= {"G1", "G2", "G3", "G4", "G5"}
    last = shlex.split(commands.splitlines()[-1])[1:]
    run(*last, "-t", "metric_loss_share=0.01")
    decision = json.loads(Path("decision/decision.json").read_text())
    assert (decision["verdict"], decision["binding"]["name"]) == ("NO-GO", "metric_loss_share")
    page = Path("decision/report.html").read_text()
    assert page.count("declared") > 5


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["weather", "sun=1"], "no such evidence: there are bench"),
        (["privacy", "epsilon=1"], "use assess privacy"),
        (["trace", "median_usable=3"], "did you mean median_usable_s"),
        (["bench", "p95_task_s=3"], "did you mean MODEL.p95_task_s"),
        (["trace", "median_usable_s=long"], "use a number"),
        (["trace", "median_usable_s=nan"], "use a number"),
        (["simulation", "metric_loss_share=[0.02,0.03,0.04]"], "low <= value <= high"),
        (["trace", "clients=1", "clients=2"], "each name once"),
        (["trace"], "give NAME=VALUE"),
    ],
)
def test_statements_that_nothing_could_read_are_refused_in_one_line(tmp_path: Path, line: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        run("assess", "declare", *line, "--source", "somebody", "--out", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_what_is_stated_is_told_as_declared_by_whom_with_its_unit_and_range(tmp_path: Path) -> None:
    run("assess", "declare", "bench", "B.p95_task_s=[3,2,4]", "--source", "J. Doe", "--out", str(tmp_path / "x"))
    one = read_artefact(tmp_path / "x", "bench").values["B.p95_task_s"]
    assert (one.value, one.low, one.high, one.unit, one.how, one.note) == (3.0, 2.0, 4.0, "s", "declared", "J. Doe")


def test_a_strict_pipeline_stops_at_conditions_and_not_at_a_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (commands,) = blocks("Deciding")
    lines = [shlex.split(line)[1:] for line in commands.splitlines()]
    for line in lines[:-1]:
        run(*line)
    for trials, verdict, code in (("15", "GO", 0), ("3", "GO WITH CONDITIONS", 8)):
        run("assess", "declare", "simulation", "metric_loss_share=[0.0185,0.017,0.0195]", "worst_group_gap=1.2",
            f"trials={trials}", "--source", "FLINT", "--out", "simulation")  # fmt: skip
        told = json.loads(run(*lines[-1], "--strict", "--json").output.splitlines()[-1])
        assert (told["verdict"], told["exit_code"]) == (verdict, code)
        assert json.loads(run(*lines[-1], "--json").output.splitlines()[-1])["exit_code"] == 0


def test_records_measured_before_are_read_from_a_url_too(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    (tmp_path / "net.py").write_text("import fieldfare as ff\nmodel = ff.mlp(4, 2)\n")
    run("assess", "bench", str(tmp_path / "net.py"), "--records", "40", "-q", "-o", str(tmp_path / "b"))
    here = read_artefact(tmp_path / "b")
    for place in ("b", "b/records.jsonl"):
        run(
            "assess",
            "bench",
            "--from",
            f"file://{tmp_path}/{place}",
            "--records",
            "40",
            "-q",
            "-o",
            str(tmp_path / "c"),
        )
        assert read_artefact(tmp_path / "c").number("net.lognormal_mu") == here.number("net.lognormal_mu")


def test_a_number_nobody_knows_is_not_told_as_measured_and_words_of_others_are_no_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"energy_j": Value(None, "J"), "[red]x": Value(1.0, "[/bold]", how="[link=u]y[/link]")}
    tell(Draft("bench", values=values).write(tmp_path / "x"), False, title="[/] of [them]")
    told = capsys.readouterr().out
    assert re.search(r"energy_j +\S+ J +not known", told)
    assert all(one in told for one in ("[red]x", "[/bold]", "[link=u]y[/link]", "[/] of [them]"))


def test_a_proxys_key_may_be_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path)
    line = ["assess", "proxy", str(tmp_path / "table.csv"), "--label", "clicked", "--by", "member"]
    hashes = []
    for place, key in (("a", "k"), ("b", "k"), ("c", None)):
        monkeypatch.delenv("FIELDFARE_PROXY_KEY", raising=False)
        if key is not None:
            monkeypatch.setenv("FIELDFARE_PROXY_KEY", key)
        run(*line, "-o", str(tmp_path / place))
        hashes.append(read_artefact(tmp_path / place).sha256)
    assert hashes[0] == hashes[1] != hashes[2]
