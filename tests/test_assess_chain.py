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

from fieldfare.assess.artefact import read_artefact
from fieldfare.cli import app
from fieldfare.core.errors import UsageError

PAGE = Path(__file__).parents[1] / "docs" / "assess.md"


def blocks() -> list[str]:
    """The indented blocks of the chain's section: commands, the job, the search."""
    text = PAGE.read_text().split("## From a table to a decision")[1].split("\n## ")[0]
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
    commands, job, search = blocks()
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
