"""Phones by adb: which there are, what they are, and the probe run on one of them.

Here: the conversation with the system's adb, and its words understood. Not here: the probe. The phone needs a Python
with NumPy that adb's shell may run: on its PATH, pushed below /data/local/tmp, or that of a Termux built for debugging
(by run-as). Invariants: serial numbers stay out of records; what the phone's own files hide from the probe (battery,
maker) comes from getprop and dumpsys; all that was put on the phone is removed.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fieldfare.assess.bench.package import Package
from fieldfare.assess.bench.records import Record, filled_battery, with_device
from fieldfare.assess.bench.targets import LOG, MISSING_PYTHON, RESULTS, Exit, call, code_in, filled, spent, unpacked
from fieldfare.core.errors import UsageError

PLACE = "/data/local/tmp/fieldfare-bench"
TERMUX = "run-as com.termux "
PYTHONS = (
    "python3", "/data/local/tmp/python/bin/python3",
    f"{TERMUX}/data/data/com.termux/files/usr/bin/python3",
)  # fmt: skip
"""Where a phone may have a Python that adb's shell can run, in the order tried."""

WHY = {
    "unauthorized": "accept this computer on the phone's screen",
    "offline": "unlock the phone, take the cable out and put it in again",
    "no permissions": "give this user the right to USB devices (udev rules)",
    "recovery": "start Android", "bootloader": "start Android", "sideload": "start Android",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Phone:
    """A line of `adb devices -l`."""

    serial: str
    state: str
    model: str = ""


def phones(adb: str = "adb") -> tuple[Phone, ...]:
    """All that `adb devices -l` lists, usable or not."""
    told = call([adb, "devices", "-l"])
    if told.returncode:
        raise UsageError(f"adb devices: {told.stderr.strip() or 'failed'}.")
    return listed(told.stdout)


def listed(text: str) -> tuple[Phone, ...]:
    """The phones in what `adb devices -l` prints.

    >>> listed("List of devices attached\\nab12  device product:oriole model:Pixel_6 transport_id:3\\n")
    (Phone(serial='ab12', state='device', model='Pixel 6'),)
    """
    found: list[Phone] = []
    for line in text.splitlines():
        match = re.match(r"(\S+)\s+(no permissions|\S+)(.*)", line)
        if match is None or line.startswith(("List of devices", "*")):
            continue
        model = re.search(r"\bmodel:(\S+)", match[3])
        found.append(Phone(match[1], match[2], model[1].replace("_", " ") if model else ""))
    return tuple(found)


def usable(found: tuple[Phone, ...], serial: str | None = None) -> tuple[tuple[Phone, ...], tuple[str, ...]]:
    """The phones to measure on, and why others are left out; none at all, or not the one asked for, is refused."""
    if serial is not None:
        found = tuple(one for one in found if one.serial == serial)
        if not found:
            raise UsageError(f"adb knows no device {serial}: `adb devices -l` lists those attached.")
    left = tuple(
        f"{one.model or 'a device'} is {one.state}: {WHY.get(one.state, 'see `adb devices -l`')}"
        for one in found if one.state != "device"
    )  # fmt: skip
    good = tuple(one for one in found if one.state == "device")
    if not good:
        raise UsageError(f"adb: {left[0]}." if left else "adb has no device: attach a phone with USB debugging on.")
    return good, left


def properties(text: str) -> dict[str, Any]:
    """What a record says of a device, of what `getprop` prints."""
    told = dict(re.findall(r"^\[([^\]]+)\]: \[([^\]]*)\]", text, re.MULTILINE))

    def first(*names: str) -> str | None:
        return next((told[name] for name in names if told.get(name)), None)

    return {
        "vendor": first("ro.product.manufacturer", "ro.product.brand"), "model": first("ro.product.model"),
        "soc": first("ro.soc.model", "ro.board.platform", "ro.hardware"), "os": "android",
        "os_version": first("ro.build.version.release"), "os_release_date": first("ro.build.version.security_patch"),
    }  # fmt: skip


def battery(text: str) -> dict[str, float | None]:
    """Share, mAh, volts and degrees of what `dumpsys battery` prints; None for what it does not say.

    `plugged`: 1 where something charges it, so that its charge says nothing of what was spent.

    >>> battery("  level: 84\\n  scale: 100\\n  voltage: 4012\\n  Charge counter: 3310000\\n")
    {'share': 0.84, 'charge_mah': 3310.0, 'volts': 4.012, 'temp_c': None, 'plugged': 0}
    """
    told = {name.strip().lower(): value for name, value in re.findall(r"^\s*([\w ]+): (-?\d+)\s*$", text, re.MULTILINE)}

    def number(name: str, scale: float) -> float | None:
        return round(int(told[name]) * scale, 9) if name in told else None

    level, full, counter = number("level", 1.0), number("scale", 1.0), number("charge counter", 1e-3)
    share = None if level is None or not full else level / full
    return {
        "share": share, "charge_mah": counter or None, "volts": number("voltage", 1e-3) or None,
        "temp_c": number("temperature", 0.1), "plugged": int(bool(re.search(r"powered: true", text))),
    }  # fmt: skip


def started(python: str) -> str:
    """The phone's shell command that runs the probe, tells its exit code and its last words.

    By way of pipes: another user's process (run-as) may not write to a file of the shell.
    """
    probe = f"{{ {python} {PLACE}/probe.py {PLACE}/spec.json 2>&3; echo rc=$? > {PLACE}/exit; }}"
    run = f"{{ {probe} | cat > {PLACE}/{RESULTS}; }} 3>&1 | cat > {PLACE}/{LOG}"
    return f"{run}; cat {PLACE}/exit; tail -n 3 {PLACE}/{LOG} >&2"


@dataclass
class Adb:
    """A phone by its serial number; `python`: the command that runs Python there (None: looked for)."""

    serial: str
    python: str | None = None
    adb: str = "adb"
    _package: Package | None = None
    _found: str | None = None
    _told: Mapping[str, Any] | None = None
    _exit: Exit = field(default_factory=Exit)
    _before: Mapping[str, float | None] | None = None
    _after: Mapping[str, float | None] | None = None

    def prepare(self, package: Package) -> None:
        self._package = package
        self._told = properties(self._need("shell", "getprop").stdout)
        self._need("shell", f"rm -rf {PLACE}; mkdir -p {PLACE}")
        here = unpacked(package)
        try:
            self._need("push", *(str(here / name) for name in package.files), PLACE + "/", timeout_s=600.0)
        finally:
            shutil.rmtree(here, ignore_errors=True)
        self._need("shell", f"chmod 755 {PLACE}; chmod 644 {PLACE}/*")
        self._found = self._python()

    def run(self) -> Exit:
        package = self._ready()
        if self._found is None:
            tried = self.python or ", ".join(PYTHONS)
            self._exit = Exit(MISSING_PYTHON, False, f"no Python with NumPy on the phone; tried {tried}")
            return self._exit
        self._before = self._battery()
        command = [self.adb, "-s", self.serial, "shell", started(self._found)]
        done, out = spent(command, package.limit_s)
        self._exit = done if done.timed_out else Exit(code_in(out), False, done.said)
        if not done.timed_out and "rc=" not in out:  # the line to the phone broke
            self._exit = Exit(1, False, done.said or "the phone went away")
        self._after = None if done.timed_out else self._battery()
        return self._exit

    def collect(self) -> list[Record]:
        package = self._ready()
        with tempfile.TemporaryDirectory(prefix="fieldfare-bench-") as folder:
            place = Path(folder) / RESULTS
            came = None if self._found is None else self._ask("pull", f"{PLACE}/{RESULTS}", str(place))
            there = came is not None and came.returncode == 0 and place.is_file()
            text = place.read_bytes() if there else b""
        self.close()
        told = dict(self._told or {})
        found = filled(package, text, self._exit, told, "results of the phone")
        return filled_battery(with_device(found, **told), self._before, self._after)

    def close(self) -> None:
        """Remove what was put on the phone; a probe that still runs there is ended."""
        stop = f"for p in $(pgrep -f {PLACE}/[p]robe.py); do kill -9 $p; done"
        who = TERMUX if (self._found or "").startswith(TERMUX) else ""  # an app's processes are its own to see and end
        self._ask("shell", f"{who}sh -c {shlex.quote(stop)}; rm -rf {PLACE}")

    def _python(self) -> str | None:
        for one in PYTHONS if self.python is None else (self.python,):
            said = self._ask("shell", f"{one} -c {shlex.quote('import numpy; print(6 * 7)')} 2>/dev/null; echo rc=$?")
            if said is not None and "42" in said.stdout.split():
                return one
        return None

    def _battery(self) -> dict[str, float | None]:
        said = self._ask("shell", "dumpsys battery")
        return battery(said.stdout if said is not None and said.returncode == 0 else "")

    def _ask(self, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str] | None:
        try:
            return call([self.adb, "-s", self.serial, *words], timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def _need(self, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        said = self._ask(*words, timeout_s=timeout_s)
        if said is None:
            raise UsageError(f"adb {words[0]}: the phone does not answer; unlock it, take the cable out and in again.")
        if said.returncode:
            told = (said.stderr or said.stdout).strip().splitlines()
            reason = (told[-1] if told else "failed").replace(self.serial, "the phone").rstrip(".")
            raise UsageError(f"adb {words[0]}: {reason}.")
        return said

    def _ready(self) -> Package:
        if self._package is None:
            raise UsageError("a target is prepared before it runs: prepare(package), run(), collect().")
        return self._package
