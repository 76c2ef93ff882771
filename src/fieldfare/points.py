"""One point of a sweep: a job simulated or run to its end, as one row of numbers.

Here: what a row holds, the quick way to it (no folder, no training), and the way from a run folder. Not here: which
points there are, and where rows are kept (`sweep`). Invariant: a row is a function of the job; only `wall_s` is not,
so a point gives the same row in any process and after any interruption.
"""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import MissingExtra, PeerError, UsageError
from fieldfare.job import Job
from fieldfare.record import Recorder, running
from fieldfare.run import assemble
from fieldfare.sim.batch import Executor
from fieldfare.sim.observe import Answered, Observation
from fieldfare.sim.simulator import Simulator
from fieldfare.sim.stream import StreamAsk
from fieldfare.store.lines import read_lines
from fieldfare.store.snapshot import Torn

I64 = NDArray[np.int64]
Row = dict[str, Any]

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_AGES = (0.5, 0.9, 0.99)


def system_row(job: Job, hours: float | None = None) -> Row:
    """The row of a job that trains nothing; `hours` of virtual time at most, up to the last whole version.

    Cost: that of the simulation; memory 8 bytes a version beside it. Errors: those of the job, and `UsageError` where
    no version is made within `hours`.
    """
    began = time.perf_counter()
    assembly = assemble(job)
    world, fleet = assembly.world, assembly.world.population.fleet
    versions, ages = array("d"), _Ages()
    recorder = Recorder(
        None, fleet=fleet, trained=False, shown=lambda row: versions.append(row["virtual_s"]),
        several=assembly.several,
    )  # fmt: skip
    executor = Executor(assembly.works, job.data, workers=1) if assembly.several else None
    simulator = Simulator(world, executor)

    def observe(seen: Observation) -> None:
        if isinstance(seen, Answered) and isinstance(seen.ask, StreamAsk):
            ages.add(seen.ask.staleness)
        recorder(seen)
        recorder.rows.clear()

    simulator.observer = observe
    p = simulator.progress
    with executor or nullcontext():
        if hours is None:
            simulator.run()
        else:
            simulator.start()
            while not p.stopped and p.heap and p.heap[0][0] <= 3600.0 * hours:
                simulator.advance()
    if hours is not None and not len(versions):
        raise UsageError(f"no version is made within hours={hours}: give more, or smaller rounds.")
    stopped = p.stopped or ("hours" if p.heap else "nothing left to happen")
    totals: Row = {k: recorder.totals[k] for k in ("tasks", "device_s", "compute_s", "energy_j")}
    totals |= {"virtual_s": p.now, "bytes_down": p.bytes_down, "bytes_up": p.bytes_up, "final": {}, "stopped": stopped}
    totals |= {"bytes_between": p.bytes_between} if assembly.several else {}
    totals |= {"running": running(p)}
    return _row(totals, np.array(versions), ages.counts, time.perf_counter() - began)


def trained_row(folder: Path) -> Row:
    """The row of a complete run, from the files in its folder."""
    summary = json.loads((folder / "summary.json").read_bytes())
    versions = np.array([row["virtual_s"] for row in read_lines(folder / "rounds.jsonl")], np.float64)
    ages = _Ages()
    clients = folder / "clients.jsonl"
    if clients.exists():
        with clients.open("rb") as lines:
            for line in lines:
                ages.add(np.array(json.loads(line).get("staleness", ()), np.int64))
    return _row(summary, versions, ages.counts, float(summary["wall_s"]))


def refused_row(error: UsageError | PeerError, wall_s: float) -> Row:
    """The row of a job that cannot be run: why, and no numbers.

    Raises `error` again where it says nothing of the job: a full disk, a damaged file, a library that is not there.
    """
    if isinstance(error, MissingExtra | OSError | Torn):
        raise error
    return {"failed": True, "stopped": str(error), "tasks": {}, "tasks_over": 0, "final": {}, "wall_s": wall_s}


class _Ages:
    """How many replies were how many versions old."""

    def __init__(self) -> None:
        self.counts: I64 = np.zeros(16, np.int64)

    def add(self, staleness: I64) -> None:
        if not len(staleness):
            return
        found = np.bincount(staleness)
        if len(found) > len(self.counts):
            self.counts = np.concatenate([self.counts, np.zeros(2 * len(found) - len(self.counts), np.int64)])
        self.counts[: len(found)] += found


def _row(told: Mapping[str, Any], versions: NDArray[np.float64], ages: I64, wall_s: float) -> Row:
    """The row, from a run's totals, the time of each version, and the replies by age."""
    tasks, device_s, virtual_s = dict(told["tasks"]), dict(told["device_s"]), float(told["virtual_s"])
    over, spent = sum(tasks.values()), sum(device_s.values())
    took = np.diff(versions, prepend=0.0)
    replies, age = int(ages.sum()), np.arange(len(ages))
    staleness: dict[str, float] = {}
    if replies:
        upto = np.cumsum(ages)
        staleness = {"mean": float((ages * age).sum() / replies), "max": float(np.flatnonzero(ages)[-1])}
        staleness |= {_called(q): float(np.searchsorted(upto, q * replies)) for q in _AGES}
    version_s: dict[str, float] = {}
    if len(took):
        version_s = {"mean": float(took.mean()), "max": float(took.max())}
        version_s |= dict(zip(map(_called, _QUANTILES), np.quantile(took, _QUANTILES).tolist(), strict=True))
    return {
        "virtual_s": virtual_s, "versions": len(versions), "version_s": version_s, "tasks": tasks,
        "tasks_over": over, "running": told["running"], "shares": {k: n / over for k, n in tasks.items()},
        "wasted_share": 1.0 - tasks.get("ok", 0) / over if over else 0.0,
        "tasks_per_h": 3600.0 * over / virtual_s if virtual_s else 0.0,
        "device_h": {k: s / 3600.0 for k, s in device_s.items()},
        "wasted_time_share": 1.0 - device_s.get("ok", 0.0) / spent if spent else 0.0,
        "compute_h": told["compute_s"] / 3600.0, "concurrency": spent / virtual_s if virtual_s else 0.0,
        "bytes_down": told["bytes_down"], "bytes_up": told["bytes_up"],
        **{name: told[name] for name in ("bytes_between",) if name in told}, "energy_j": told["energy_j"],
        "staleness": staleness, "final": dict(told["final"]), "stopped": told["stopped"], "wall_s": wall_s,
    }  # fmt: skip


def _called(quantile: float) -> str:
    return "median" if quantile == 0.5 else f"p{100 * quantile:.0f}"
