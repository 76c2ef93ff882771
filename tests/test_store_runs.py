"""Run folders and what lies in them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fieldfare
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Params
from fieldfare.store import files, runs
from fieldfare.store.files import DiskFull
from fieldfare.store.lines import read_lines
from fieldfare.store.runs import RunFolder, run_paths
from fieldfare.store.text import dumps, plain


def test_an_id_is_readable_sortable_and_safe_as_a_file_name(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "Fed Avg/../ö (v2)") as run:
        assert re.fullmatch(r"\d{8}-\d{6}-fed-avg-v2-[0-9a-f]{4}", run.id)
        assert run.path.parent == tmp_path.resolve()


def test_fifty_runs_started_at_once_have_fifty_folders(tmp_path: Path) -> None:
    made = [RunFolder.create(tmp_path, "same") for _ in range(50)]
    assert len({run.path for run in made}) == 50
    assert run_paths(tmp_path) == sorted(run.path for run in made)
    for run in made:
        run.close()


def test_latest_points_at_the_newest_run_by_a_relative_link(tmp_path: Path) -> None:
    for _ in range(2):
        with RunFolder.create(tmp_path / "runs") as run:
            pass
    assert os.readlink(tmp_path / "runs" / "latest") == run.id
    assert RunFolder.open(tmp_path / "runs" / "latest").path == run.path
    assert not list((tmp_path / "runs").glob("*.tmp"))


def test_a_run_is_found_by_path_by_id_by_its_beginning_or_end_and_as_latest(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "a"), RunFolder.create(tmp_path, "b") as b:
        for which in ("latest", b.id, b.id[-6:], str(b.path)):
            assert RunFolder.find(which, tmp_path).path == b.path
        with pytest.raises(UsageError, match=r"2 runs under .* are called '20'"):
            RunFolder.find("20", tmp_path)
        with pytest.raises(UsageError, match="no runs under"):
            RunFolder.find("nonsense", tmp_path)


def test_no_run_at_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there are no runs under .*absent yet; make one"):
        RunFolder.find("latest", tmp_path / "absent")


def test_a_run_can_be_made_in_a_given_folder_once(tmp_path: Path) -> None:
    at = tmp_path / "study" / "arms" / "fedavg"
    at.mkdir(parents=True)  # as a process killed in the middle leaves it
    with RunFolder.create_at(at) as run:
        assert run.id == "fedavg"
    with pytest.raises(UsageError, match="already holds a run"):
        RunFolder.create_at(at)
    RunFolder.open(at).close()
    assert not (tmp_path / "study" / "arms" / "latest").exists()


def test_a_folder_of_another_format_names_the_version_that_wrote_it(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as run:
        about = run.read_json("run.json")
        run.write_json("run.json", {**about, "format": 99, "version": "7.7"})
    with pytest.raises(UsageError, match=r"written by fieldfare 7\.7 in format 99") as error:
        RunFolder.open(run.path)
    assert "\n" not in str(error.value)
    assert about["version"] == fieldfare.__version__
    (run.path / "run.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(UsageError, match=r"says format 99, which no fieldfare .* writes \(it writes 1\)") as error:
        RunFolder.open(run.path)
    assert "\n" not in str(error.value)
    assert "this version" not in str(error.value)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", "null"])
def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(UsageError, match=r"run\.json"):
        RunFolder.open(tmp_path)


def test_the_same_process_cannot_write_a_run_twice_at_once(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    with pytest.raises(UsageError, match="another process"):
        RunFolder.open(run.path)
    assert RunFolder.open(run.path, write=False).status == "running"
    run.close()
    with RunFolder.open(run.path) as again:
        assert again.status == "running"
    assert RunFolder.open(run.path, write=False).status == "incomplete"


_HOLD = """
import sys
from fieldfare.store.runs import RunFolder
run = RunFolder.open(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    RunFolder.create(tmp_path).close()
    path = RunFolder.find("latest", tmp_path).path
    command = [sys.executable, "-c", _HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert RunFolder.open(path, write=False).status == "running"
        with pytest.raises(UsageError, match="another process"):
            RunFolder.open(path)
        other.kill()
    assert RunFolder.open(path, write=False).status == "incomplete"
    RunFolder.open(path).close()


def test_a_run_with_a_summary_is_complete(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as run:
        run.append("rounds.jsonl", {"round": 1})
        run.finish({"accuracy": 0.5, "loss": float("nan")})
        assert run.complete
    reader = RunFolder.open(run.path, write=False)
    assert (reader.status, reader.read_json("summary.json")) == ("complete", {"accuracy": 0.5, "loss": None})
    assert reader.read_lines("rounds.jsonl") == [{"round": 1}]


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    RunFolder.create(tmp_path).close()
    reader = RunFolder.find("latest", tmp_path)
    for act in (lambda: reader.write_json("a.json", 1), lambda: reader.append("a.jsonl", 1), lambda: reader.finish({})):
        with pytest.raises(UsageError, match="write=True"):
            act()


@pytest.mark.parametrize("name", ["../x.json", "/etc/x", "a/b.json", "", "..", "a\0"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with RunFolder.create(tmp_path) as run, pytest.raises(UsageError, match="plain name"):
        run.write_json(name, 1)


def test_missing_and_damaged_json_are_one_line(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as run:
        with pytest.raises(UsageError, match=r"has no config\.json"):
            run.read_json("config.json")
        run.file("config.json").write_text("{")
        with pytest.raises(UsageError, match="damaged"):
            run.read_json("config.json")


def test_json_that_fails_to_be_written_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    with RunFolder.create(tmp_path) as run:
        run.write_json("a.json", 1)
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "write", lambda file, data: (_ for _ in ()).throw(OSError(28, "No space")))
            with pytest.raises(DiskFull):
                run.write_json("a.json", 2)
        assert run.read_json("a.json") == 1
        assert not list(run.path.glob(".*"))


def test_the_job_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text("job = 1\n")
    with RunFolder.create(tmp_path / "runs") as run:
        assert run.copy_source(tmp_path / "my.py").name == "job.py"
        assert run.file("job.py").read_text() == "job = 1\n"
        with pytest.raises(UsageError, match="cannot be read"):
            run.copy_source(tmp_path / "absent.py")


def test_what_a_killed_process_left_half_written_is_swept_when_the_run_is_opened(tmp_path: Path) -> None:
    RunFolder.create(tmp_path).close()
    path = RunFolder.find("latest", tmp_path).path
    (path / ".summary.json.1.tmp").write_text("{")
    RunFolder.open(path, write=False)
    assert list(path.glob(".*"))
    RunFolder.open(path).close()
    assert not list(path.glob(".*"))


def test_a_file_system_without_links_goes_without_latest(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(runs.os, "symlink", lambda *a: (_ for _ in ()).throw(PermissionError()))
    RunFolder.create(tmp_path).close()
    assert not (tmp_path / "latest").exists()
    assert len(run_paths(tmp_path)) == 1


# Lines


def test_lines_are_on_disk_up_to_the_mark_and_cut_back_to_it(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as run:
        run.append("a.jsonl", {"n": 1})
        marks = run.flush()
        assert marks == {"a.jsonl": run.file("a.jsonl").stat().st_size}
        run.append("a.jsonl", {"n": 2})
        run.append("b.jsonl", {"n": 3})
        run.flush()
        run.append("a.jsonl", {"n": 4})
        run.truncate(marks)
        run.append("a.jsonl", {"n": 5})
    reader = RunFolder.open(run.path, write=False)
    assert reader.read_lines("a.jsonl") == [{"n": 1}, {"n": 5}]
    assert reader.read_lines("b.jsonl") == []
    assert reader.read_lines("absent.jsonl") == []


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=20), st.integers(0, 60))
def test_a_resumed_run_leaves_the_lines_of_one_that_was_not_killed(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], torn: int
) -> None:
    at = tmp_path_factory.mktemp("r") / "run"
    with RunFolder.create_at(at) as run:
        for value in values[: len(values) // 2]:
            run.append("a.jsonl", value)
        marks = run.flush()
        for value in values[len(values) // 2 :]:
            run.append("a.jsonl", value)
    if (at / "a.jsonl").exists():
        os.truncate(at / "a.jsonl", max(marks.get("a.jsonl", 0), (at / "a.jsonl").stat().st_size - torn))
    with RunFolder.open(at) as run:
        run.truncate(marks)
        for value in values[len(values) // 2 :]:
            run.append("a.jsonl", value)
    assert read_lines(at / "a.jsonl") == values


def test_a_last_line_cut_short_is_left_out_and_then_written_over(tmp_path: Path) -> None:
    with RunFolder.create_at(tmp_path / "r") as run:
        run.append("a.jsonl", 1)
    with (tmp_path / "r" / "a.jsonl").open("ab") as file:
        file.write(b'{"half": "' + b"x" * 200_000)
    assert read_lines(tmp_path / "r" / "a.jsonl") == [1]
    with RunFolder.open(tmp_path / "r") as run:
        run.append("a.jsonl", 2)
    assert (tmp_path / "r" / "a.jsonl").read_bytes() == b"1\n2\n"


def test_lines_shorter_than_their_mark_are_refused(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as run, pytest.raises(UsageError, match=r"a\.jsonl has 0 bytes and should have 5"):
        run.truncate({"a.jsonl": 5})


def test_a_mark_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as run, pytest.raises(UsageError, match="plain name"):
        run.truncate({"../victim.jsonl": 0})


def test_a_line_in_the_middle_that_is_no_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{\n1\n")
    with pytest.raises(UsageError, match="damaged"):
        read_lines(tmp_path / "a.jsonl")


def test_lines_have_a_name_of_their_own_kind(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as run, pytest.raises(UsageError, match=r"ends in \.jsonl"):
        run.append("rounds.json", 1)


def test_a_mebibyte_of_lines_does_not_wait_for_a_flush(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as run:
        for _ in range(12):
            run.append("a.jsonl", "x" * 100_000)
        assert run.file("a.jsonl").stat().st_size > 1 << 20


def test_a_full_disk_keeps_the_lines_pending_and_whole(tmp_path: Path, monkeypatch: Any) -> None:
    with RunFolder.create(tmp_path) as run:
        run.append("a.jsonl", 1)
        run.flush()
        run.append("a.jsonl", "x" * 100)
        write = os.write

        def half(file: int, data: Any) -> int:
            if len(data) < 50:
                raise OSError(28, "No space left on device")
            return write(file, data[:60])

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "write", half)
            with pytest.raises(DiskFull):
                run.flush()
        assert run.file("a.jsonl").read_text() == "1\n"
        run.flush()
        assert run.read_lines("a.jsonl") == [1, "x" * 100]


# Strict JSON


@dataclass(frozen=True)
class Setting:
    rate: float
    path: Path


def test_everything_a_record_holds_becomes_strict_json() -> None:
    value = {
        "nan": np.float32("nan"), "inf": [float("-inf")], 3: np.arange(2), ("a", 1): np.int64(4), "b": np.True_,
        "s": Setting(0.1, Path("x/y")), "zero": np.array(1.5),
    }  # fmt: skip
    assert json.loads(dumps(value), parse_constant=lambda name: pytest.fail(name)) == {
        "nan": None, "inf": [None], "3": [0, 1], "a/1": 4, "b": True, "s": {"rate": 0.1, "path": "x/y"}, "zero": 1.5,
    }  # fmt: skip


@settings(deadline=None)
@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(), st.lists, max_leaves=6)
)
def test_any_plain_value_is_written_on_one_line_that_reads_back(value: Any) -> None:
    text = dumps(value)
    assert b"\n" not in text
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == plain(value)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", lambda: 0, 1j])
def test_what_is_no_json_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        dumps({"a": value})


def test_a_model_is_kept_in_the_folder(tmp_path: Path) -> None:
    model = Params.pack({"w": np.arange(4.0)})
    with RunFolder.create(tmp_path) as run:
        assert run.write_model(model).name == "model.safetensors"
        assert run.read_model(layout=model.layout).vector.tolist() == [0, 1, 2, 3]
