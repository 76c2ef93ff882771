"""Where a package runs: one interface, `prepare`, `run`, `collect`; here the machine itself and any by ssh.

Not here: phones (`adb`), farms (`farm`), emulated machines (`emulated`). Invariants: every repeat of a package gives
one record, be it only one that says how it failed; nothing of ours stays on a device; an error that is ours (a host
that nobody answers at) is a `UsageError`, one of the model's on the device is a record.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fieldfare.assess.bench.package import Package
from fieldfare.assess.bench.records import Record, failed, parse
from fieldfare.core.errors import UsageError

MISSING_PYTHON, KILLED, TIMED_OUT = 127, 137, 124
RESULTS, LOG = "results.jsonl", "log.txt"
_TALK_S = 60.0


@dataclass(frozen=True, slots=True)
class Exit:
    """How the probe ended: its code (128 + signal where it was killed), whether time was up, its last words."""

    code: int = 0
    timed_out: bool = False
    said: str = ""


class Target(Protocol):
    """A device to measure on. `prepare` puts the package there, `run` runs it, `collect` gives records and tidies up;
    `close` tidies up alone."""

    def prepare(self, package: Package) -> None: ...

    def run(self) -> Exit: ...

    def collect(self) -> list[Record]: ...

    def close(self) -> None: ...


def measure(target: Target, package: Package) -> list[Record]:
    """Prepare, run, collect; what was put on the device is removed whatever happens."""
    try:
        target.prepare(package)
        target.run()
    except BaseException:
        target.close()
        raise
    return target.collect()


def filled(package: Package, text: str | bytes, exit_: Exit, device: Mapping[str, Any], source: str) -> list[Record]:
    """Records that came back, and one that says how the rest failed where the probe ended before its last repeat."""
    cut = text if isinstance(text, bytes) else text.encode()
    if exit_.code or exit_.timed_out:  # killed amid a line
        cut = cut[: cut.rfind(b"\n") + 1]
    found = parse(cut, source, package.name)
    ended = found and (len(found) >= int(package.plan["repeats"]) or found[-1]["status"] not in ("ok", "timeout"))
    if ended:
        return found
    known = dict(found[-1]["device"]) if found else dict(device)
    return [*found, failed(package.name, package.model, known, status_of(exit_), _last(exit_))]


def status_of(exit_: Exit) -> str:
    """The status of a repeat that told nothing, of how the probe ended.

    Killed (137) is out of memory, our reading: that is who kills processes on boards and phones.

    >>> [status_of(one) for one in (Exit(137), Exit(127), Exit(124), Exit(1), Exit(0, True))]
    ['oom', 'op_missing', 'timeout', 'crash', 'timeout']
    """
    if exit_.timed_out or exit_.code == TIMED_OUT:
        return "timeout"
    return {KILLED: "oom", MISSING_PYTHON: "op_missing"}.get(exit_.code, "crash")


def call(command: Sequence[str], timeout_s: float = _TALK_S, **more: Any) -> subprocess.CompletedProcess[str]:
    """A program of the system, its output as text; one that is not installed is a `UsageError`."""
    try:
        return subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", timeout=timeout_s,
            stdin=subprocess.DEVNULL, check=False, **more,
        )  # fmt: skip
    except FileNotFoundError:
        raise UsageError(f"there is no program {command[0]} here: install it, or put it on the PATH.") from None


def spent(command: Sequence[str], timeout_s: float, **more: Any) -> tuple[Exit, str]:
    """How a program ended that runs at most so long, and its output; it and its children are ended when time is up."""
    try:
        child = subprocess.Popen(
            list(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
            errors="replace", start_new_session=True, **more,
        )  # fmt: skip
    except FileNotFoundError:
        raise UsageError(f"there is no program {command[0]} here: install it, or put it on the PATH.") from None
    timed_out = False
    try:
        out, err = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        timed_out = True
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate()
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise
    code = child.returncode
    return Exit(128 - code if code < 0 else code, timed_out, err), out


def unpacked(package: Package) -> Path:
    """The package's files in a fresh folder."""
    folder = Path(tempfile.mkdtemp(prefix="fieldfare-bench-"))
    for name, data in package.files.items():
        (folder / name).write_bytes(data)
    return folder


@dataclass
class Local:
    """This machine, in a child process: `python` runs the probe, with more environment where given."""

    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    before: Sequence[str] = ()
    device: Mapping[str, Any] = field(default_factory=dict[str, Any])
    _package: Package | None = None
    _folder: Path | None = None
    _exit: Exit = field(default_factory=Exit)
    _out: str = ""

    def prepare(self, package: Package) -> None:
        self._package, self._folder = package, unpacked(package)

    def run(self) -> Exit:
        package, folder = self._ready()
        beside = ["--folder", str(package.folder)] if package.folder else []
        command = [*self.before, self.python, "probe.py", "spec.json", *beside]
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1", **self.environment}
        self._exit, self._out = spent(command, package.limit_s, cwd=folder, env=environment)
        return self._exit

    def collect(self) -> list[Record]:
        package, _ = self._ready()
        self.close()
        return filled(package, self._out, self._exit, self.device, "this machine's probe")

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _ready(self) -> tuple[Package, Path]:
        if self._package is None or self._folder is None:
            raise UsageError("a target is prepared before it runs: prepare(package), run(), collect().")
        return self._package, self._folder


@dataclass
class Ssh:
    """A board or computer that the system's ssh reaches as `host` (an alias, or user@host); keys, not passwords.

    `python`: what to run there. Files go to a fresh folder in the home and are removed. Jumps, ports and keys are
    ssh's own configuration.
    """

    host: str
    python: str = "python3"
    _package: Package | None = None
    _folder: str = ""
    _exit: Exit = field(default_factory=Exit)
    _out: str = ""

    OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")

    def __post_init__(self) -> None:
        if not self.host or self.host.startswith("-") or any(c.isspace() for c in self.host):
            raise UsageError(f"ssh:{self.host} names no host: use ssh:HOST or ssh:USER@HOST.")

    def prepare(self, package: Package) -> None:
        made = self._there("mktemp -d fieldfare-bench.XXXXXX")
        if made.returncode or not made.stdout.strip():
            raise UsageError(f"ssh {self.host}: {_line(made.stderr) or 'no folder could be made there'}.")
        self._package, self._folder = package, made.stdout.strip().splitlines()[-1]
        here = unpacked(package)
        try:
            files = [str(here / name) for name in package.files]
            sent = call(["scp", "-q", *self.OPTIONS, *files, f"{self.host}:{self._folder}/"], 600.0)
        finally:
            shutil.rmtree(here, ignore_errors=True)
        if sent.returncode:
            raise UsageError(f"scp to {self.host}: {_line(sent.stderr) or 'the files did not arrive'}.")

    def run(self) -> Exit:
        package = self._ready()
        inside = f"{shlex.quote(self.python)} probe.py spec.json > {RESULTS} 2> {LOG}; echo rc=$?; tail -n 3 {LOG} >&2"
        limit = package.limit_s
        command = f"cd {shlex.quote(self._folder)} && {{ {inside}; }}"
        done, out = spent(["ssh", *self.OPTIONS, self.host, command], limit)
        self._exit = done if done.timed_out or "rc=" not in out else Exit(code_in(out), False, done.said)
        return self._exit

    def collect(self) -> list[Record]:
        package = self._ready()
        with tempfile.TemporaryDirectory(prefix="fieldfare-bench-") as here:
            place = Path(here) / RESULTS
            came = call(["scp", "-q", *self.OPTIONS, f"{self.host}:{self._folder}/{RESULTS}", str(place)], 600.0)
            text = place.read_bytes() if came.returncode == 0 and place.is_file() else b""
        self.close()
        return filled(package, text, self._exit, {}, f"results of {self.host}")

    def close(self) -> None:
        """Remove what was put there; a probe that still runs there is ended."""
        if self._folder:
            there = shlex.quote(self._folder)
            stop = f'for p in /proc/[0-9]*; do [ "$(readlink $p/cwd)" = "$PWD/"{there} ] && kill -9 ${{p#/proc/}}; done'
            self._there(f"{{ {stop}; }} 2>/dev/null; rm -rf {there}")
            self._folder = ""

    def _there(self, command: str) -> subprocess.CompletedProcess[str]:
        try:
            return call(["ssh", *self.OPTIONS, self.host, command])
        except subprocess.TimeoutExpired:
            raise UsageError(f"ssh {self.host} does not answer: look whether it is on.") from None

    def _ready(self) -> Package:
        if self._package is None:
            raise UsageError("a target is prepared before it runs: prepare(package), run(), collect().")
        return self._package


def code_in(out: str) -> int:
    """The code that a remote shell told as `rc=N`; 1 where it told none.

    >>> code_in("rc=137"), code_in("")
    (137, 1)
    """
    told = [word for word in out.split() if word.startswith("rc=") and word[3:].isdigit()]
    return int(told[-1][3:]) if told else 1


def _line(text: str) -> str:
    """The last line of what a program said, without a full stop."""
    found = [line.strip() for line in text.splitlines() if line.strip()]
    return found[-1].rstrip(".")[:300] if found else ""


def _last(exit_: Exit) -> str:
    said = _line(exit_.said)
    return f"exit code {exit_.code}" + (f": {said}" if said else "") if not exit_.timed_out else "time was up"
