"""Commands on the machines people have: submit, poll, cancel; processes of this machine, Slurm, Kubernetes.

Here: a command in, its state out, by the tools each scheduler brings (sbatch, squeue, sacct, scancel; kubectl). Not
here: what is computed, and where its results go (an artefact at a URL, see `places`). Invariants: a job's id is all
that is needed to ask for it again, from any process; what a scheduler says in words we do not know is "unknown", never
"done". Slurm and Kubernetes are checked against programs that answer as theirs do, not against clusters.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from fieldfare.core.errors import UsageError
from fieldfare.store.files import write_atomic

State = Literal["waiting", "running", "done", "failed", "cancelled", "unknown"]
OVER: tuple[State, ...] = ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Need:
    """What a job asks for: `cores`, `memory_bytes`, `limit_s` (None: the scheduler's own), variables to set."""

    cores: int = 1
    memory_bytes: float | None = None
    limit_s: float | None = None
    variables: Mapping[str, str] | None = None


class Scheduler(Protocol):
    """What runs commands."""

    def submit(self, command: Sequence[str], name: str, need: Need = Need()) -> str:
        """Begin a command, or queue it; its id."""
        ...

    def poll(self, job: str) -> State:
        """How it stands now."""
        ...

    def cancel(self, job: str) -> None:
        """End it; one that is over stays as it ended."""
        ...


@dataclass(frozen=True, slots=True)
class Local:
    """Processes of this machine, each with a folder: `job.json`, `out`, `err`, `pid`, and `rc` once it is over.

    A job goes on when the process that submitted it ends. Cores and memory are not held to; the limit is (timeout(1)).
    """

    root: Path

    def submit(self, command: Sequence[str], name: str, need: Need = Need()) -> str:
        """See `Scheduler`."""
        words = _words(command)
        job = f"{_name(name)}-{secrets.token_hex(4)}"
        folder = self.root / job
        folder.mkdir(parents=True)
        write_atomic(folder / "job.json", [json.dumps({"command": words, "name": name}).encode(), b"\n"])
        if need.limit_s is not None:
            words = ["timeout", "--foreground", f"{need.limit_s:g}", *words]
        script = 'cd "$1" && shift && folder="$1" && shift && "$@" > "$folder/out" 2> "$folder/err" < /dev/null;'
        script += ' echo $? > "$folder/.rc" && mv "$folder/.rc" "$folder/rc"'
        made = subprocess.Popen(
            ["/bin/sh", "-c", script, "sh", os.getcwd(), str(folder.resolve()), *words], start_new_session=True,
            env={**os.environ, **(need.variables or {})}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        write_atomic(folder / "pid", [f"{made.pid} {_began(made.pid)}\n".encode()])
        _STARTED[made.pid] = made
        return job

    def poll(self, job: str) -> State:
        """See `Scheduler`."""
        folder = self._folder(job)
        _reap()
        with suppress(FileNotFoundError):
            code = (folder / "rc").read_text().strip()
            cancelled = (folder / "cancelled").exists() and code != "0"
            return "done" if code == "0" else "cancelled" if cancelled else "failed"
        try:
            pid, began = (folder / "pid").read_text().split(maxsplit=1)
        except (FileNotFoundError, ValueError):
            return "waiting"
        if _began(int(pid)) == began.strip():
            return "running"
        if (folder / "rc").exists():
            return self.poll(job)
        return "cancelled" if (folder / "cancelled").exists() else "failed"

    def cancel(self, job: str) -> None:
        """See `Scheduler`: the process and those it started are told to end."""
        folder = self._folder(job)
        if self.poll(job) in OVER:
            return
        (folder / "cancelled").touch()
        with suppress(ProcessLookupError, FileNotFoundError, ValueError):
            os.killpg(int((folder / "pid").read_text().split()[0]), signal.SIGTERM)

    def _folder(self, job: str) -> Path:
        folder = self.root / _name(job)
        if not (folder / "job.json").is_file():
            raise UsageError(f"{self.root} has no job {job!r}.")
        return folder


@dataclass(frozen=True, slots=True)
class Slurm:
    """Batch jobs of Slurm, in a partition (default: the cluster's); the file system is shared."""

    partition: str = ""

    def submit(self, command: Sequence[str], name: str, need: Need = Need()) -> str:
        """See `Scheduler`."""
        told = ["sbatch", "--parsable", f"--job-name={_name(name)}", f"--cpus-per-task={need.cores}"]
        told += [f"--partition={self.partition}"] if self.partition else []
        told += [f"--mem={-(-need.memory_bytes // 1e6):.0f}M"] if need.memory_bytes is not None else []
        told += [f"--time={max(1, int(-(-need.limit_s // 60)))}"] if need.limit_s is not None else []
        script = "#!/bin/sh\nexec " + " ".join(_quoted(one) for one in _words(command)) + "\n"
        answer = _run(told, stdin=script, env=need.variables).strip().splitlines()[-1:]
        job = answer[0].split(";")[0] if answer else ""
        if not job.isdigit():
            raise UsageError(f"sbatch answered {' '.join(answer)!r}, not a job's number.")
        return job

    def poll(self, job: str) -> State:
        """See `Scheduler`: the queue, then accounting."""
        number = _number(job)
        told = _run(["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={number}"], may_fail=True).split()
        if not told:
            asked = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={number}"]
            told = _run(asked, may_fail=True).split()
        return _SLURM.get(told[0].rstrip("+"), "unknown") if told else "unknown"

    def cancel(self, job: str) -> None:
        """See `Scheduler`."""
        _run(["scancel", _number(job)])


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """Jobs of Kubernetes that run an `image` with Fieldfare in it; kubectl's own context says which cluster."""

    image: str
    namespace: str = ""

    def submit(self, command: Sequence[str], name: str, need: Need = Need()) -> str:
        """See `Scheduler`."""
        job = f"{re.sub(r'[^a-z0-9-]+', '-', _name(name).lower()).strip('-')[:40] or 'job'}-{secrets.token_hex(4)}"
        self._kubectl(["create", "-f", "-"], json.dumps(self.manifest(job, command, need)))
        return job

    def manifest(self, job: str, command: Sequence[str], need: Need = Need()) -> dict[str, Any]:
        """The job as Kubernetes wants it: one try, kept for a day."""
        limits = {"cpu": str(need.cores)}
        if need.memory_bytes is not None:
            limits["memory"] = f"{need.memory_bytes:.0f}"
        container = {
            "name": "fieldfare", "image": self.image, "command": _words(command),
            "env": [{"name": k, "value": v} for k, v in (need.variables or {}).items()],
            "resources": {"requests": limits, "limits": limits},
        }  # fmt: skip
        spec: dict[str, Any] = {
            "backoffLimit": 0, "ttlSecondsAfterFinished": 86_400,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
        }  # fmt: skip
        if need.limit_s is not None:
            spec["activeDeadlineSeconds"] = max(1, int(-(-need.limit_s // 1)))
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job}, "spec": spec}

    def poll(self, job: str) -> State:
        """See `Scheduler`; one that was cancelled is there no more, and "cancelled"."""
        told = self._kubectl(["get", "job", _name(job), "--ignore-not-found", "-o", "json"])
        if not told.strip():
            return "cancelled"
        status = cast(Mapping[str, Any], json.loads(told).get("status", {}))
        ended = {one["type"] for one in status.get("conditions") or () if one.get("status") == "True"}
        if ended & {"Complete", "SuccessCriteriaMet"} or status.get("succeeded"):
            return "done"
        if ended & {"Failed", "FailureTarget"} or status.get("failed"):
            return "failed"
        return "running" if status.get("ready") or status.get("active") else "waiting"

    def cancel(self, job: str) -> None:
        """See `Scheduler`."""
        self._kubectl(["delete", "job", _name(job), "--ignore-not-found", "--wait=false"])

    def _kubectl(self, words: list[str], stdin: str = "") -> str:
        return _run(["kubectl", *([f"--namespace={self.namespace}"] if self.namespace else []), *words], stdin=stdin)


def scheduler_at(where: str) -> Scheduler:
    """A scheduler by its address: `local[:FOLDER]`, `slurm[:PARTITION]`, `kubernetes:IMAGE`.

    >>> scheduler_at("slurm:short"), scheduler_at("kubernetes:registry.example.com/fieldfare:1")
    (Slurm(partition='short'), Kubernetes(image='registry.example.com/fieldfare:1', namespace=''))
    """
    kind, _, rest = where.partition(":")
    if kind == "local":
        return Local(Path(rest or "jobs"))
    if kind == "slurm":
        return Slurm(rest)
    if kind == "kubernetes" and rest:
        return Kubernetes(rest)
    raise UsageError(f"{where!r} is no scheduler: use local:FOLDER, slurm:PARTITION or kubernetes:IMAGE.")


_STARTED: dict[int, subprocess.Popen[bytes]] = {}
_SLURM: dict[str, State] = {
    "PENDING": "waiting", "CONFIGURING": "waiting", "REQUEUED": "waiting", "SUSPENDED": "waiting",
    "RUNNING": "running", "COMPLETING": "running", "COMPLETED": "done", "CANCELLED": "cancelled",
    "FAILED": "failed", "TIMEOUT": "failed", "OUT_OF_MEMORY": "failed", "NODE_FAIL": "failed", "BOOT_FAIL": "failed",
    "DEADLINE": "failed", "PREEMPTED": "failed",
}  # fmt: skip


def _reap() -> None:
    """Let go of processes of ours that have ended."""
    for pid in [pid for pid, made in _STARTED.items() if made.poll() is not None]:
        del _STARTED[pid]


def _began(pid: int) -> str:
    """When a process began, in the kernel's ticks, which tells it from a later one of its number; "" if it is over."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if told[0] in "ZX" else told[19]


def _words(command: Sequence[str]) -> list[str]:
    if isinstance(command, str) or not command:
        raise UsageError(f"command {command!r}: give a list of words, the program first.")
    return [str(one) for one in command]


def _name(word: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", word):
        raise UsageError(f"job's name {word!r}: use letters, digits, dots and dashes, up to 100.")
    return word


def _number(job: str) -> str:
    if not job.isdigit():
        raise UsageError(f"{job!r} is no number of a Slurm job.")
    return job


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\"'\"'") + "'"


def _run(words: list[str], *, stdin: str = "", env: Mapping[str, str] | None = None, may_fail: bool = False) -> str:
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=120,
                              env={**os.environ, **(env or {})})  # fmt: skip
    except FileNotFoundError:
        raise UsageError(
            f"there is no program {words[0]} here: use a machine that has it, or another scheduler."
        ) from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{words[0]} did not answer within two minutes: try again.") from None
    if done.returncode and not may_fail:
        told = (done.stderr or done.stdout).strip().splitlines()
        raise UsageError(f"{' '.join(words[:3])} failed: {told[-1] if told else f'exit code {done.returncode}'}.")
    return done.stdout
