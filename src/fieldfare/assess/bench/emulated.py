"""Slower machines played on this one, so that unlike devices are at hand without a laboratory.

Here: classes by name (boards) or by given speed, and a target that holds a child process down to one. Not here: real
devices. How: low priority on one core, and sleep after steps until the slower machine would be as far; or, when asked
for, a quota of processor time in a control group (which slows the start, too, and lets runs of milliseconds through
whole, so it is not the default); memory by a limit on address space beyond what the libraries take. Invariant: what
only the real device would tell (processor share, heat, energy) is null. That a board is as much slower as its sustained
FLOP/s say, whatever the model, is our reading: small steps are bound by other things.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fieldfare.assess.bench.package import Model, Package, Plan, package
from fieldfare.assess.bench.records import Record
from fieldfare.assess.bench.targets import Exit, Local, measure
from fieldfare.core.errors import UsageError
from fieldfare.fleet.boards import BOARDS, board

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
_SLICE_US, _LONGEST_US = 5_000, 1_000_000
_NOT_ITS_OWN = (
    "cpu_s", "cpu_pct_mean", "cpu_pct_max", "battery_before", "battery_after", "charge_mah", "battery_full_mah",
    "energy_j", "energy_source", "temp_c_max", "freq_min_hz", "freq_max_hz", "throttled",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """A machine to play: `speed` as a share of one core of this machine, bytes for a step (None: as many as there are).

    `ram_bytes`, `cores`: what the real one has, None where nobody said.
    """

    name: str
    speed: float
    memory_bytes: float | None = None
    ram_bytes: float | None = None
    cores: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.speed <= 1:
            raise UsageError(
                f"device class {self.name}: speed {self.speed:.3g} of this machine cannot be played; use more than 0 "
                "and at most 1."
            )
        if self.memory_bytes is not None and not self.memory_bytes > 0:
            raise UsageError(f"device class {self.name}: {self.memory_bytes} bytes of memory; use a number above 0.")


def device_class(text: str, flops_per_s: float | None = None) -> DeviceClass:
    """A class of text: a board's name, or NAME=SPEED or NAME=SPEED:MEMORY; `flops_per_s` is this machine's.

    >>> device_class("slow=0.25:512M")
    DeviceClass(name='slow', speed=0.25, memory_bytes=512000000.0, ram_bytes=None, cores=None)
    """
    if "=" not in text:
        one = board(text)
        if flops_per_s is None:
            raise UsageError(f"device class {text}: this machine's FLOP/s are needed to play a board.")
        speed = min(one.flops_per_s / flops_per_s, 1.0)
        return DeviceClass(one.name, speed, one.memory_bytes, one.ram_bytes, one.cores)
    name, _, rest = text.partition("=")
    found = re.fullmatch(r"([\d.eE+-]+)(?::([\d.]+)([KMG]?)B?)?", rest.strip())
    try:
        assert found is not None
        speed = float(found[1])
        memory = None if found[2] is None else float(found[2]) * _UNITS[found[3]]
    except (AssertionError, ValueError):
        raise UsageError(
            f"device class {text!r}: use a board's name ({', '.join(list(BOARDS)[:3])}, ...), NAME=SPEED or "
            "NAME=SPEED:MEMORY, such as slow=0.25:512M."
        ) from None
    return DeviceClass(name.strip(), speed, memory)


def needs_speed(texts: tuple[str, ...]) -> bool:
    """Whether one of these classes is a board, so that this machine's speed has to be measured."""
    return any("=" not in text for text in texts)


def this_machine_flops_per_s() -> float:
    """FLOP/s that one core sustains in training dense layers of 256, by the probe. Cost: under a second."""
    from fieldfare.assess.bench.package import sizes
    from fieldfare.work.dense import mlp

    net = mlp(256, 256, 256, 10)
    layers = [["linear", 256, 256, True], ["relu"], ["linear", 256, 256, True], ["relu"], ["linear", 256, 10, True]]
    inputs: dict[str, Any] = {
        "x": {"dtype": "float32", "shape": [256], "below": None},
        "y": {"dtype": "int64", "shape": [], "below": 10},
    }
    spec = {"name": "reference", "version": "1", "assets_bytes": None, **sizes(net), "flops_per_record": net.flops()}
    model = Model({**spec, "kind": "dense", "layers": layers, "loss": "cross_entropy", "inputs": inputs})
    found = measure(Local(), package(model, Plan(records=3_200, batch=64, repeats=5)))
    best = [float(one["per_record_s"]) for one in found if one["status"] == "ok"]
    if not best:
        raise UsageError(f"this machine's speed could not be measured: {found[0]['note']}.")
    return net.flops() / min(best)


def quota_group(name: str, cores: float, root: str | Path = "/sys/fs/cgroup") -> Path | None:
    """A fresh control group with so many cores' time (version 2, else 1); None where none can be made."""
    base = Path(root)
    period = min(max(round(_SLICE_US / cores), _SLICE_US), _LONGEST_US)
    quota = round(cores * period)
    for parent, file, text in (
        (base, "cpu.max", f"{quota} {period}\n"),
        (base / "cpu", "cpu.cfs_quota_us", f"{quota}\n"),
    ):
        if not os.access(parent, os.W_OK) or not (parent / "cgroup.procs").is_file():
            continue
        group = parent / f"fieldfare-bench-{os.getpid()}-{name}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if file == "cpu.cfs_quota_us":
                (group / "cpu.cfs_period_us").write_text(f"{period}\n", "ascii")
            (group / file).write_text(text, "ascii")
            if (group / "cgroup.procs").is_file():
                return group
        except OSError:
            pass
        _remove(group)
    return None


@dataclass
class Emulated:
    """This machine, held down to a class. `how`: "sleep", or "quota" where the user may make control groups."""

    kind: DeviceClass
    how: Literal["sleep", "quota"] = "sleep"
    root: str | Path = "/sys/fs/cgroup"
    _local: Local = field(default_factory=Local)
    _group: Path | None = None

    def prepare(self, package: Package) -> None:
        kind, more = self.kind, dict[str, Any]()
        cores = kind.speed * int(package.plan["threads"])
        if self.how == "quota":
            self._group = quota_group(re.sub(r"\W", "-", kind.name), cores, self.root)
            if self._group is None:
                raise UsageError(f"no control group can be made below {self.root}: play devices by sleep instead.")
        if self._group is None:
            more["slowdown"] = 1.0 / kind.speed
            self._local.before = _low()
        else:
            self._local.before = ("sh", "-c", f'echo $$ > "{self._group}/cgroup.procs"; exec "$@"', "sh")
        if kind.memory_bytes is not None:
            more["memory_cap_bytes"] = int(kind.memory_bytes)
        self._local.prepare(package.with_spec(**more))

    def run(self) -> Exit:
        return self._local.run()

    def collect(self) -> list[Record]:
        found = [_as(one, self.kind) for one in self._local.collect()]
        self.close()
        return found

    def close(self) -> None:
        self._local.close()
        if self._group is not None:
            _remove(self._group)
            self._group = None


def _as(record: Mapping[str, Any], kind: DeviceClass) -> Record:
    """A record of this machine as that of the class it played."""
    device = dict.fromkeys(record["device"])
    device |= {"vendor": "emulated", "model": kind.name, "os": "emulated", "os_version": None,
               "ram_bytes": kind.ram_bytes, "cores": kind.cores}  # fmt: skip
    return {**record, "device": device, "how": "emulated", **dict.fromkeys(_NOT_ITS_OWN)}


def _low() -> tuple[str, ...]:
    """Lowest priority, on one core, with the tools that are here."""
    nice = ("nice", "-n", "10") if shutil.which("nice") else ()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    pin = ("taskset", "-c", str(cores[-1])) if cores and shutil.which("taskset") else ()
    return (*nice, *pin)


def _remove(group: Path) -> None:
    with contextlib.suppress(OSError):
        group.rmdir()
