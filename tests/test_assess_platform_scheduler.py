"""Schedulers: commands begin, are asked for from anywhere, and end; programs stand in for Slurm's and Kubernetes'."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fieldfare.assess.platform.scheduler import OVER, Kubernetes, Local, Need, Scheduler, Slurm, State, scheduler_at
from fieldfare.core.errors import UsageError


def ended(scheduler: Scheduler, job: str) -> State:
    """Its state once it is over; a minute at most."""
    for _ in range(3000):
        if (state := scheduler.poll(job)) in OVER:
            return state
        time.sleep(0.02)
    return scheduler.poll(job)


def running(scheduler: Scheduler, job: str) -> None:
    for _ in range(3000):
        if scheduler.poll(job) == "running":
            return
        time.sleep(0.02)
    pytest.fail("it never ran")


def test_a_command_runs_here_with_its_words_and_variables(tmp_path: Path) -> None:
    local = Local(tmp_path)
    job = local.submit(
        ["sh", "-c", 'printf "%s|" "$@" "$A"; pwd', "sh", "a b", "c'd", "$HOME"], "one", Need(variables={"A": "x"})
    )
    assert ended(local, job) == "done"
    assert (tmp_path / job / "out").read_text() == f"a b|c'd|$HOME|x|{os.getcwd()}\n"
    assert json.loads((tmp_path / job / "job.json").read_text())["command"][3:] == ["sh", "a b", "c'd", "$HOME"]


def test_a_command_that_fails_or_does_not_exist_or_takes_too_long_failed(tmp_path: Path) -> None:
    local = Local(tmp_path)
    jobs = [local.submit(["sh", "-c", "echo no >&2; exit 3"], "a"), local.submit(["no-such-program"], "b"),
            local.submit(["sleep", "60"], "c", Need(limit_s=0.05))]  # fmt: skip
    assert [ended(local, job) for job in jobs] == ["failed"] * 3
    assert (tmp_path / jobs[0] / "err").read_text() == "no\n"
    assert [(tmp_path / job / "rc").read_text().strip() for job in jobs] == ["3", "127", "124"]


def test_a_job_is_cancelled_with_all_that_it_started(tmp_path: Path) -> None:
    local = Local(tmp_path)
    job = local.submit(["sh", "-c", "sleep 60 & echo $!; wait"], "one")
    out = tmp_path / job / "out"
    for _ in range(3000):
        if out.exists() and out.read_text().strip():
            break
        time.sleep(0.02)
    local.cancel(job)
    assert ended(local, job) == "cancelled"
    child = Path(f"/proc/{int(out.read_text())}/stat")
    for _ in range(3000):
        if not child.exists() or child.read_text().rpartition(")")[2].split()[0] in "ZX":
            break
        time.sleep(0.02)
    else:
        pytest.fail("its child goes on")
    done = local.submit(["true"], "two")
    assert ended(local, done) == "done"
    local.cancel(done)
    assert local.poll(done) == "done"


def test_a_job_that_is_killed_failed_and_its_number_may_be_another_processs(tmp_path: Path) -> None:
    local = Local(tmp_path)
    job = local.submit(["sleep", "60"], "one")
    running(local, job)
    pid = int((tmp_path / job / "pid").read_text().split()[0])
    os.killpg(pid, signal.SIGKILL)
    assert ended(local, job) == "failed"
    (tmp_path / job / "pid").write_text(f"{os.getpid()} 1\n")
    assert local.poll(job) == "failed"


def test_a_job_outlives_who_submitted_it_and_answers_to_others(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fieldfare.assess.platform.scheduler import Local\n"
        "script = 'while [ ! -e go ]; do sleep 0.05; done; echo went'\n"
        "print(Local(Path(sys.argv[1])).submit(['sh', '-c', script], 'one'))"
    )
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path / "jobs")], capture_output=True, text=True,
                          cwd=tmp_path, check=True)  # fmt: skip
    local, job = Local(tmp_path / "jobs"), told.stdout.strip()
    running(local, job)
    (tmp_path / "go").touch()
    assert ended(local, job) == "done"
    assert (tmp_path / "jobs" / job / "out").read_text() == "went\n"


def program(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text("#!/bin/sh\n" + script)
    file.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs of Slurm's and Kubernetes' names, which note how they are called and answer from files."""
    (tmp_path / "bin").mkdir()
    note = f'printf "%s\\n" "$@" > {tmp_path}/$(basename $0).words\n'
    program(tmp_path / "bin", "sbatch", f"{note}cat > {tmp_path}/script\necho '4242;cluster'\n")
    program(tmp_path / "bin", "squeue", f"{note}cat {tmp_path}/queue 2>/dev/null || exit 1\n")
    program(tmp_path / "bin", "sacct", f"{note}cat {tmp_path}/account 2>/dev/null\n")
    program(tmp_path / "bin", "scancel", f"{note}")
    program(
        tmp_path / "bin",
        "kubectl",
        f"""{note}
case "$*" in
  *create*) cat > {tmp_path}/manifest;;
  *get*) cat {tmp_path}/status 2>/dev/null;;
  *delete*) rm -f {tmp_path}/status;;
esac
exit 0
""",
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def words(tools: Path, name: str) -> list[str]:
    return (tools / f"{name}.words").read_text().splitlines()


def test_slurm_gets_a_script_that_runs_the_command_as_it_is(tools: Path) -> None:
    slurm = scheduler_at("slurm:short")
    need = Need(cores=4, memory_bytes=2.5e9, limit_s=90)
    assert slurm.submit(["printf", "%s|", "a b", "c'd", "$HOME"], "ads", need) == "4242"
    assert words(tools, "sbatch") == [
        "--parsable", "--job-name=ads", "--cpus-per-task=4", "--partition=short", "--mem=2500M", "--time=2",
    ]  # fmt: skip
    ran = subprocess.run(["/bin/sh", str(tools / "script")], capture_output=True, text=True, check=True)
    assert ran.stdout == "a b|c'd|$HOME|"


@pytest.mark.parametrize(
    ("queue", "account", "state"),
    [
        ("PENDING", None, "waiting"), ("RUNNING", None, "running"), ("COMPLETED", None, "done"),
        (None, "COMPLETED", "done"), (None, "CANCELLED by 1000", "cancelled"), (None, "CANCELLED+", "cancelled"),
        ("", "OUT_OF_MEMORY", "failed"), (None, "TIMEOUT", "failed"), (None, None, "unknown"),
        ("SIGNALING", None, "unknown"),
    ],
)  # fmt: skip
def test_slurms_words_are_states(tools: Path, queue: str | None, account: str | None, state: str) -> None:
    for name, told in (("queue", queue), ("account", account)):
        if told is not None:
            (tools / name).write_text(told + "\n" if told else "")
    assert Slurm().poll("4242") == state
    assert "--jobs=4242" in words(tools, "squeue")


def test_slurm_cancels_by_number_and_nothing_else(tools: Path) -> None:
    Slurm().cancel("4242")
    assert words(tools, "scancel") == ["4242"]
    with pytest.raises(UsageError, match="no number of a Slurm job"):
        Slurm().cancel("--user=me")


def test_kubernetes_gets_a_job_of_one_try(tools: Path) -> None:
    cluster = Kubernetes("example.com/fieldfare:1", "ml")
    need = Need(2, 1e9, 90.5, {"FIELDFARE_CACHE": "/tmp"})
    job = cluster.submit(["fieldfare", "assess", "demo"], "Ads_case", need)
    assert words(tools, "kubectl") == ["--namespace=ml", "create", "-f", "-"]
    told = json.loads((tools / "manifest").read_text())
    assert told["metadata"]["name"] == job
    assert job.startswith("ads-case-")
    assert told["spec"]["backoffLimit"] == 0
    assert told["spec"]["activeDeadlineSeconds"] == 91
    (container,) = told["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["fieldfare", "assess", "demo"]
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "1000000000"}
    assert container["env"] == [{"name": "FIELDFARE_CACHE", "value": "/tmp"}]


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, "waiting"), ({"active": 1}, "running"), ({"succeeded": 1}, "done"), ({"failed": 1}, "failed"),
        ({"conditions": [{"type": "Complete", "status": "True"}]}, "done"),
        ({"conditions": [{"type": "Failed", "status": "True"}], "failed": 1}, "failed"),
        ({"conditions": [{"type": "Suspended", "status": "False"}], "active": 1, "ready": 1}, "running"),
    ],
)  # fmt: skip
def test_kubernetes_status_is_a_state(tools: Path, status: dict[str, object], state: str) -> None:
    (tools / "status").write_text(json.dumps({"kind": "Job", "status": status}))
    cluster = Kubernetes("image")
    assert cluster.poll("ads-1") == state
    cluster.cancel("ads-1")
    assert cluster.poll("ads-1") == "cancelled"


def test_a_scheduler_that_is_not_there_or_fails_is_told_in_one_line(
    tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program(tools / "bin", "sbatch", "echo 'sbatch: error: invalid partition specified: short' >&2; exit 1\n")
    with pytest.raises(UsageError, match=r"sbatch --parsable --job-name=x failed: .*invalid partition"):
        Slurm("short").submit(["true"], "x")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="there is no program kubectl here"):
        Kubernetes("image").poll("x")


@pytest.mark.parametrize("name", ["../x", "", "a b", "-x"])
def test_names_that_are_no_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="job's name"):
        Local(tmp_path).submit(["true"], name)
    with pytest.raises(UsageError, match="job's name"):
        Local(tmp_path).poll(name)


def test_what_is_no_command_or_no_scheduler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give a list of words"):
        Local(tmp_path).submit("sleep 1", "x")
    with pytest.raises(UsageError, match="has no job"):
        Local(tmp_path).poll("x")
    for where in ("kubernetes", "pbs", "kubernetes:"):
        with pytest.raises(UsageError, match="is no scheduler"):
            scheduler_at(where)
    assert scheduler_at("local") == Local(Path("jobs"))
