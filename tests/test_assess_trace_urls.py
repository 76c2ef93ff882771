"""Session logs and tables at URLs: the artefact of the same log here, to the bit; what is not there is told."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("duckdb")
pytest.importorskip("fsspec")

import fsspec

from fieldfare.assess.artefact import read_artefact
from fieldfare.assess.platform import places
from fieldfare.assess.steps import Steps
from fieldfare.assess.trace import Criteria, Recipe, TraceConfig, build_trace, generate_log
from fieldfare.cli import app
from fieldfare.core.errors import UsageError

CSV = "client,start_s,end_s\n1,0,100\n2,200,300\n1,86300,86400\n"


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places.CACHE, str(tmp_path / "cache"))
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


def put(name: str, data: bytes) -> str:
    fsspec.filesystem("memory").pipe_file(name, data)
    return f"memory:/{name}"


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, ["assess", *(str(one) for one in words)], standalone_mode=False)


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_a_log_at_a_url_gives_the_artefact_of_the_log_here(tmp_path: Path, end: str) -> None:
    if end == "parquet":
        pytest.importorskip("pyarrow")
    here = generate_log(tmp_path / f"log.{end}", Recipe(clients=5, weeks=1))
    there = put(f"/shop/log.{end}", here.read_bytes())
    wanted = build_trace(here, tmp_path / "here")
    for where in (there, Path(there), f"file://{here}"):
        found = build_trace(where, tmp_path / "there")
        assert found.sha256 == wanted.sha256
        assert found.inputs == wanted.inputs  # by name and content, not by place
    assert not list((tmp_path / "cache").rglob("*"))  # copies went with the temporary folder


def test_a_folder_and_a_pattern_at_a_url_are_one_log(tmp_path: Path) -> None:
    whole = build_trace(generate_log(tmp_path / "log.csv", Recipe(clients=6, weeks=1)), tmp_path / "whole")
    head, *rows = (tmp_path / "log.csv").read_text().splitlines()
    for i in range(2):
        put(f"/shop/logs/{i}.csv", "\n".join([head, *rows[i::2]]).encode())
    put("/shop/logs/readme.txt", b"no log")
    for where in ("memory://shop/logs", "memory://shop/logs/*.csv"):
        found = build_trace(where, tmp_path / "found")
        assert len(found.inputs) == 2
        assert found.manifest["tables"]["sessions"]["content"] == whole.manifest["tables"]["sessions"]["content"]


def test_anothers_file_at_a_url_is_imported(tmp_path: Path) -> None:
    lines = "2020-01-06 00:00:00\twifi\n2020-01-07 12:00:00\t4g"
    where = put("/shop/state_traces.json", json.dumps({"a": {"messages": lines, "model": "x"}}).encode())
    found = build_trace(where, tmp_path / "trace")
    assert found.inputs[0]["kind"] == "availability log"
    assert found.inputs[0]["path"] == "state_traces.json"
    assert found.number("logged_clients") == 1


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("memory://shop/none.csv", "memory://shop/none.csv is no file"),
        ("memory://shop/*.csv", "is no file"),
        ("nosuchplace://x/log.csv", "cannot be reached"),
    ],
)
def test_a_log_that_is_not_at_its_url_is_told_in_one_line(tmp_path: Path, where: str, says: str) -> None:
    put("/shop/other.txt", b"x")
    found = run("trace", where, "-q", "--out", tmp_path / "trace")
    assert isinstance(found.exception, UsageError)
    assert says in str(found.exception)
    assert "\n" not in str(found.exception)


def test_the_command_reads_a_log_from_a_url_and_writes_its_artefact_to_one(tmp_path: Path) -> None:
    where = put("/shop/log.csv", CSV.encode())
    found = run("trace", where, "--out", "memory://shop/trace", "--json")
    assert found.exception is None, found.output
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["path"] == "memory://shop/trace"
    assert read_artefact("memory://shop/trace", "trace").sha256 == told["sha256"]
    assert found.stderr == ""


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_proxys_table_at_a_url_gives_the_artefact_of_the_table_here(tmp_path: Path, scheme: str) -> None:
    pytest.importorskip("pyarrow")
    table = tmp_path / "clicks.csv"
    table.write_text("y,x,who\n" + "".join(f"{i % 2},{i * 0.5},{i % 7}\n" for i in range(60)))
    where = put("/shop/clicks.csv", table.read_bytes()) if scheme == "memory" else f"file://{table}"
    told = ["--label", "y", "--by", "who", "--key", "k", "--json"]
    made = [json.loads(run("proxy", one, *told, "--out", tmp_path / "proxy").stdout.splitlines()[-1])
            for one in (table, where)]  # fmt: skip
    assert made[0]["sha256"] == made[1]["sha256"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_steps_are_a_bar_on_a_terminal_lines_elsewhere_and_nothing_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    shown = []
    for stream, quiet in ((Terminal(), False), (io.StringIO(), False), (Terminal(), True), (io.StringIO(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        with Steps("trace", quiet) as tell:
            tell("looking over the log")
            tell("part 1 of [2]", 1, 3)
        shown.append(stream.getvalue())
    assert "part 1 of [2]" in shown[0]
    assert "\x1b[" in shown[0]
    assert shown[1] == "trace: looking over the log\ntrace: part 1 of [2]\n"
    assert shown[2:] == ["", ""]


class Told:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None:
        self.seen.append((done, total))


def test_the_steps_told_of_a_trace_ascend_to_their_number(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    for criteria, steps in ((Criteria(), 5), (Criteria(wifi=True), 8)):
        log.write_text(CSV.replace("end_s\n", "end_s,wifi\n").replace("00\n", "00,true\n"))
        tell = Told()
        build_trace(log, tmp_path / "out", TraceConfig(criteria, partitions=3), tell=tell)
        assert tell.seen == [(0, 0), *((i, steps) for i in range(1, steps))]


def test_with_json_nothing_but_the_object_is_printed(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(CSV)
    found = run("trace", log, "--out", tmp_path / "trace", "--json")
    assert found.stderr == ""
    assert len(found.stdout.splitlines()) == 1
    assert "looking over the log" in run("trace", log, "--out", tmp_path / "trace").stderr
