"""A run's folder as a journal: what it came to so far, whether it is over, running, or was cut off.

Here: reading the tables that a simulated run leaves and a deployed one will (docs/run-folder.md). Not here: metrics for
Prometheus (`prometheus`), the comparison with a forecast (`drift`). Invariants: nothing is written, no lock is taken,
so a run can be watched while it goes on; what was not recorded is None, never 0.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.fleet.tasks import OK, STALE
from fieldfare.store.devices import read_fleet
from fieldfare.store.lines import read_lines
from fieldfare.store.runs import RunFolder
from fieldfare.store.tasks import TASKS, read_tasks, staleness_of

BIN_S = 60.0
GROUPS = ("train", "federated", "personal", "fine_tuned")
"""Prefixes that say where a metric was measured; without one, on the test set."""
_NOT_METRICS = frozenset(
    {"round", "version", "virtual_s", "wall_s", "clients", "bytes_down", "bytes_up", "bytes_between", "energy_j",
     "compute_s", "at_work", "staleness"}
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Journal:
    """`rows` of rounds.jsonl, `tasks` of tasks.bin (the first 5,000,000), the summary once there is one.

    `executor`: where it computes ("local", or Ray's address); `devices` and `available`: of the fleet, the latter known
    at the end; `checkpoint_age_s`: seconds since its newest snapshot, on this machine's clock.
    """

    rows: Sequence[Mapping[str, Any]]
    tasks: NDArray[Any] | None = None
    summary: Mapping[str, Any] = field(default_factory=dict[str, Any])
    status: str = "running"
    executor: str = "local"
    devices: int | None = None
    available: float | None = None
    checkpoint_age_s: float | None = None

    @property
    def last(self) -> Mapping[str, Any]:
        return self.rows[-1] if self.rows else {}

    @property
    def versions(self) -> int:
        return int(self.last.get("version", 0))

    @property
    def virtual_s(self) -> float:
        return float(self.total("virtual_s") or 0.0)

    def total(self, name: str) -> float | None:
        """A running total (`virtual_s`, `bytes_down`, ...): the summary's, else the last row's; None: not recorded."""
        value = self.summary.get(name, self.last.get(name))
        return None if value is None else float(value)

    def summed(self, name: str) -> float | None:
        """What the rows' own tasks add up to (`energy_j`, `compute_s`); None: not recorded."""
        if name in self.summary:
            return None if self.summary[name] is None else float(self.summary[name])
        told = [float(row[name]) for row in self.rows if row.get(name) is not None]
        return sum(told) if told else None

    def by_outcome(self, name: str) -> dict[str, float]:
        """`tasks` or `device_s` by outcome."""
        if name in self.summary:
            return {str(k): float(v) for k, v in self.summary[name].items()}
        out: dict[str, float] = {}
        for row in self.rows:
            for outcome, value in row.get(name, {}).items():
                out[outcome] = out.get(outcome, 0.0) + float(value)
        return out

    def metrics(self) -> dict[tuple[str, str], float]:
        """The last value of every metric by (name, group)."""
        out: dict[tuple[str, str], float] = {}
        for row in self.rows:
            for name, value in row.items():
                if name not in _NOT_METRICS and isinstance(value, int | float) and np.isfinite(value):
                    out[metric_of(name)] = float(value)
        return out

    def staleness(self) -> NDArray[np.int64] | None:
        """Versions each reply was behind, counted or thrown away; None where tasks are not kept."""
        if self.tasks is None:
            return None
        outcome = np.asarray(self.tasks["outcome"])
        return staleness_of(self.tasks[(outcome == OK) | (outcome == STALE)])

    def ok_ends_s(self) -> NDArray[np.float64] | None:
        """When tasks that counted ended, virtual seconds."""
        if self.tasks is None:
            return None
        return np.asarray(self.tasks["end"], np.float64)[np.asarray(self.tasks["outcome"]) == OK]


def read_journal(run: str | Path, root: str | Path = "runs", now: float | None = None) -> tuple[Path, Journal]:
    """The folder and the journal of a run, by path, id or `latest`; `now`: Unix seconds (default: the clock's).

    Raises `UsageError` where there is no such run. Cost: one reading of its rows; tasks are mapped, not read.
    """
    found = RunFolder.find(str(run), root)
    folder, status = found.path, found.status
    config: Any = found.read_json("config.json") if (folder / "config.json").is_file() else {}
    fleet = read_fleet(folder)
    devices = fleet.get("devices")
    times = [one.stat().st_mtime for one in (folder / "snapshots").glob("*") if one.is_file()]
    return folder, Journal(
        rows=read_lines(folder / "rounds.jsonl"), tasks=read_tasks(folder),
        summary=found.read_json("summary.json") if found.complete else {}, status=status,
        executor=str(config.get("job", {}).get("simulated", {}).get("on", "local")),
        devices=None if devices is None else int(devices),
        available=_available(fleet),
        checkpoint_age_s=max(0.0, (time.time() if now is None else now) - max(times)) if times else None,
    )  # fmt: skip


def _available(fleet: Mapping[str, Any]) -> float | None:
    """Devices that may work, as of the run's end; all of a fleet whose devices always may; None: not known yet."""
    over, devices = fleet.get("over_time"), fleet.get("devices")
    if over is None or devices is None:
        return None
    share = over.get("available_share", [1.0])
    return None if not share or share[-1] is None else float(share[-1]) * float(devices)


def cite_run(folder: Path) -> dict[str, Any]:
    """A run as an input of an artefact: `{kind, path, sha256}`, the hash that of its rows and tasks."""
    found = hashlib.sha256()
    for name in ("rounds.jsonl", TASKS):
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                found.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return {"kind": "run", "path": folder.name, "sha256": found.hexdigest()}


def metric_of(name: str) -> tuple[str, str]:
    """A metric's name and the group it was measured on.

    >>> metric_of("federated_accuracy_mean"), metric_of("loss"), metric_of("fine_tuned_before_loss_mean")
    (('accuracy_mean', 'federated'), ('loss', 'test'), ('before_loss_mean', 'fine_tuned'))
    """
    for group in GROUPS:
        if name.startswith(group + "_"):
            return name[len(group) + 1 :], group
    return name, "test"


def peak_per_s(times_s: NDArray[Any], weights: NDArray[Any] | None = None, width_s: float = BIN_S) -> float | None:
    """The highest rate of events (or of their weights) over bins of a minute, of the whole where that is shorter.

    The last bin, which is not full, is left out, as in simulations.

    >>> peak_per_s(np.array([0.0, 30.0, 59.0, 60.0, 130.0]))
    0.05
    """
    if not len(times_s):
        return None
    width = min(width_s, float(np.max(times_s)) or width_s)
    told = np.bincount((np.asarray(times_s) / width).astype(np.int64), weights=weights) / width
    told = told[:-1] if len(told) > 1 else told
    return float(told.max())
