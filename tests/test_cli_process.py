"""The command as a program of its own: interrupts, limits, locks, terminals; and that what it leaves can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import HELLO, PROGRAM, Done, environment, job_file, program

from fieldfare.store.runs import RunFolder

LONG = HELLO.replace("rounds=4", "rounds=100_000")
AT_LAST = """
import os, signal

def end(row):
    if row["round"] == int(os.environ.get("END_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)

job = ff.Job(**{**vars(job), "callbacks": (end,)})
"""


def digest(folder: Path) -> str:
    """SHA-256 of the newest run's model file."""
    return hashlib.sha256((folder / "runs" / "latest" / "model.safetensors").read_bytes()).hexdigest()


def records(folder: Path, name: str = "rounds.jsonl") -> list[dict]:
    """The newest run's lines, without what depends on this machine's clock."""
    rows = RunFolder.find("latest", folder / "runs").read_lines(name)
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in rows]


def started(folder: Path, *words: str, rounds: int = 2) -> subprocess.Popen:
    """A command in its own process group, once its run has recorded some rounds."""
    process = subprocess.Popen(
        [*PROGRAM, *words], cwd=folder, env=environment(folder), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = folder / "runs" / "latest" / "rounds.jsonl"
    deadline = time.monotonic() + 60
    while not lines.exists() or lines.read_bytes().count(b"\n") < rounds:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("words", [(), ("-",)])
@pytest.mark.parametrize("what", ["job", "ff.Study({'one': job})"])
@pytest.mark.sampled(4)
def test_a_program_read_from_standard_input_runs_and_keeps_no_file(tmp_path, words, what):
    text = HELLO.split("if __name__")[0] + f"\nmade = {what}\nprint(made.run(progress=False).path)\n"
    done = subprocess.run([sys.executable, *words], input=text, cwd=tmp_path, env=environment(tmp_path),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = RunFolder.find("latest", tmp_path / "runs").path.parent.glob("2*")
    assert done.stdout.strip() == str(run)
    assert (run / "summary.json").is_file()
    assert not (run / "job.py").exists()


def test_a_source_that_is_no_file_is_refused_before_a_folder_is_made(tmp_path):
    text = HELLO.split("if __name__")[0] + "\n{}.run(source='absent.py')\n"
    for what in ("job", "ff.Study({'one': job})"):
        done = subprocess.run([sys.executable, "-c", text.format(what)], cwd=tmp_path, env=environment(tmp_path),
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 1
        assert "'absent.py'): there is no such file" in done.stderr.splitlines()[-1]
        assert not (tmp_path / "runs").exists()


def test_python_and_the_command_give_the_same_bits(tmp_path):
    job_file(tmp_path)
    env = environment(tmp_path)
    ran = subprocess.run(
        [sys.executable, "hello.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    by_python = digest(tmp_path), records(tmp_path), records(tmp_path, "clients.jsonl")
    told = program(tmp_path, "run", "hello.py", "--json")
    assert by_python == (digest(tmp_path), records(tmp_path), records(tmp_path, "clients.jsonl"))
    assert ran.stdout.strip() == str(told.result["final"])


@pytest.mark.slow
def test_an_interrupt_is_one_line_with_code_130_and_the_run_can_be_resumed(tmp_path):
    job_file(tmp_path, LONG)
    process = started(tmp_path, "run", "hello.py", "--json", "--workers", "2")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: interrupted")
    assert "fieldfare resume" in err
    assert json.loads(out.splitlines()[-1])["exit_code"] == 130
    run = RunFolder.find("latest", tmp_path / "runs")
    assert run.status == "incomplete"
    assert run.read_lines("rounds.jsonl")


@pytest.mark.slow
def test_a_run_killed_after_its_last_round_keeps_its_model(tmp_path):
    job_file(tmp_path, HELLO + AT_LAST)
    killed = program(tmp_path, "run", "hello.py", env=environment(tmp_path, END_AT="4"))
    assert killed.code == -signal.SIGKILL
    resumed = program(tmp_path, "resume", "--json")
    assert resumed.code == 0, resumed.err
    found = digest(tmp_path), records(tmp_path), records(tmp_path, "clients.jsonl"), resumed.result["final"]
    whole = program(tmp_path, "run", "hello.py", "--json")
    assert found == (digest(tmp_path), records(tmp_path), records(tmp_path, "clients.jsonl"), whole.result["final"])


@pytest.mark.slow
def test_a_run_that_is_being_written_is_not_resumed_by_a_second_process(tmp_path):
    job_file(tmp_path, LONG)
    process = started(tmp_path, "run", "hello.py")
    try:
        program(tmp_path, "resume").refused("being written by another process", "wait for it")
        assert program(tmp_path, "inspect", "--json").result["status"] == "running"
    finally:
        process.kill()
        process.communicate()
    assert program(tmp_path, "inspect", "--json").result["status"] == "incomplete"


def limited(folder: Path, size: int, *words: str) -> Done:
    """The command where no file can grow beyond `size` bytes, as on a disk that is full."""
    limit = "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); "
    limit += "os.execv(sys.argv[2], sys.argv[2:])"
    done = subprocess.run(
        [sys.executable, "-c", limit, str(size), *PROGRAM, *words], cwd=folder, env=environment(folder),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("size", [9_000, 14_000])
def test_a_full_disk_ends_with_code_5_and_resume_completes_with_the_same_bits(tmp_path, size):
    job_file(tmp_path, HELLO.replace("rounds=4", "rounds=120"))
    stopped = limited(tmp_path, size, "run", "hello.py", "-q")
    stopped.refused("disk is full", "resume", code=5)
    assert RunFolder.find("latest", tmp_path / "runs").status == "incomplete"
    again = limited(tmp_path, size, "resume", "-q")
    again.refused("disk is full", code=5)
    resumed = program(tmp_path, "resume", "--json")
    assert resumed.code == 0, resumed.err
    found = digest(tmp_path), records(tmp_path), records(tmp_path, "clients.jsonl")
    assert program(tmp_path, "run", "hello.py", "-q").code == 0
    assert found == (digest(tmp_path), records(tmp_path), records(tmp_path, "clients.jsonl"))


def test_no_room_for_the_folder_of_a_run_is_one_line(tmp_path):
    job_file(tmp_path)
    limited(tmp_path, 0, "run", "hello.py", "-q").refused("disk is full", code=5)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_file_system_ends_with_code_5_and_resume_completes(tmp_path):
    job_file(tmp_path, HELLO.replace("rounds=4", "rounds=500"))
    (tmp_path / "runs").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path / "runs")], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting a file system")
    try:
        stopped = program(tmp_path, "run", "hello.py", "-q")
        stopped.refused("disk is full", "resume", code=5)
        subprocess.run(["mount", "-o", "remount,size=30m", str(tmp_path / "runs")], check=True)
        resumed = program(tmp_path, "resume", "--json")
        assert resumed.code == 0, resumed.err
        found = digest(tmp_path), records(tmp_path)
        assert program(tmp_path, "run", "hello.py", "-q").code == 0
        assert found == (digest(tmp_path), records(tmp_path))
    finally:
        subprocess.run(["umount", str(tmp_path / "runs")], check=True)


TALKATIVE = """
def say(row):
    print("row", row["round"])

job = ff.Job(**{**vars(job), "name": "[/odd] name", "callbacks": (say,)})
"""


def on_a_terminal(folder: Path, *words: str, term: str = "xterm") -> Done:
    """Run the command with standard error on a terminal of its own; `err` is what that terminal was sent."""
    mine, theirs = pty.openpty()
    env = environment(folder, TERM=term)
    process = subprocess.Popen(
        [*PROGRAM, *words], cwd=folder, env=env, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    os.close(theirs)
    seen = b""
    while True:
        ready, _, _ = select.select([mine], [], [], 60)
        assert ready, "the command says nothing any more"
        try:
            piece = os.read(mine, 1 << 16)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(mine)
    out, _ = process.communicate(timeout=60)
    return Done(process.returncode, out, seen.decode(errors="replace"))


def test_on_a_terminal_progress_is_live_and_standard_output_stays_for_programs(tmp_path):
    job_file(tmp_path, HELLO + TALKATIVE)
    told = on_a_terminal(tmp_path, "run", "hello.py", "--json")
    assert told.code == 0, told.err
    assert "\x1b[" in told.err
    assert "4/4" in told.err
    assert "[/odd] name" in told.err
    assert "Traceback" not in told.err
    assert [line for line in told.out.splitlines() if line.startswith("row")] == [f"row {r}" for r in (1, 2, 3, 4)]
    assert told.result["rounds"] == 4


@pytest.mark.slow
def test_quiet_is_quiet_on_a_terminal_too(tmp_path):
    job_file(tmp_path)
    told = on_a_terminal(tmp_path, "run", "hello.py", "--json", "-q")
    assert (told.code, told.err) == (0, "")


@pytest.mark.slow
def test_a_dumb_terminal_is_written_to_without_failing(tmp_path):
    job_file(tmp_path)
    assert on_a_terminal(tmp_path, "run", "hello.py", term="dumb").code == 0


def test_a_reader_that_goes_away_is_no_defect(tmp_path):
    job_file(tmp_path)
    process = subprocess.Popen(
        [*PROGRAM, "algorithms", "--json"], cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(60)
