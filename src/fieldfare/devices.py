"""What a run keeps of its fleet: names and numbers of its devices, who was available when, some sessions.

Here: what is written into `fleet.json` and `devices.bin` (`store.devices`) when a run begins and when it ends. Not
here: the tasks themselves (`record`). Invariant: never more than a few MB and a few seconds, whatever the fleet; of
a fleet too large every second, third, ... device stands for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.fleet.availability import Availability
from fieldfare.report.read_tasks import BINS, BLOCK, mean_at_work, shown_devices
from fieldfare.sim.population import Population
from fieldfare.store.devices import DEVICE, DEVICES, FLEET, MOST
from fieldfare.store.files import write_atomic
from fieldfare.store.runs import RunFolder
from fieldfare.store.tasks import read_tasks

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ASKED = 100_000
"""Devices whose traces tell the share available over the run."""
SESSIONS = 400
"""Sessions kept of one device."""


def keep_fleet(folder: RunFolder, population: Population) -> None:
    """Write what is known of the fleet when a run begins."""
    facts, devices = _facts(population)
    if population.fleet.availability is not None:
        devices["available"] = -1
    _write(folder, facts, devices)


def keep_fleet_over(
    folder: RunFolder, population: Population, span_s: float, running: Iterable[F64], seed: int
) -> None:
    """Write it again when the run has ended after `span_s`, with what happened over that time.

    `running`: the starts of tasks that are still at work. Cost: about a second for 1,000,000 devices.
    """
    facts, devices = _facts(population)
    available = population.fleet.availability
    every = facts["every"]
    if span_s > 0:
        edges = np.linspace(0.0, span_s, BINS + 1)
        starts = np.concatenate([np.zeros(0), *running])
        over: dict[str, Any] = {"span_s": span_s}
        over["running"] = _short(mean_at_work(starts, np.full(len(starts), span_s), edges))
        if available is not None:
            some = every_device(available, max(every, -(-available.size // ASKED)))
            over["available_share"] = _short(some.share((edges[1:] + edges[:-1]) / 2))
        facts["over_time"] = over
    if available is not None:
        begin, _ = available.session(0.0, np.arange(0, population.size, every))
        devices["available"] = begin < max(span_s, np.nextafter(0.0, 1.0))
        folder.flush()
        facts["sessions"] = _sessions(available, _shown(folder, population.size, seed), span_s)
    _write(folder, facts, devices)


def every_device(available: Availability, step: int) -> Availability:
    """The availability of devices 0, `step`, 2 `step`, ... alone."""
    if step <= 1:
        return available
    shift = None if available.shift_s is None else available.shift_s[::step]
    if available.row is not None:
        return replace(available, row=available.row[::step], shift_s=shift)
    low, high = available.offsets[:-1][::step], available.offsets[1:][::step]
    offsets = np.append(0, np.cumsum(high - low))
    at = np.arange(offsets[-1]) + np.repeat(low - offsets[:-1], high - low)
    return Availability(offsets, available.start[at], available.end[at], available.period_s, None, shift)


def _facts(population: Population) -> tuple[dict[str, Any], NDArray[Any]]:
    fleet, size = population.fleet, population.size
    every = max(1, -(-size // MOST))
    devices = np.zeros(-(-size // every), DEVICE)
    devices["kind"], devices["available"] = -1, 1
    devices["examples"] = np.minimum(population.examples[::every], np.iinfo(np.int32).max)
    facts: dict[str, Any] = {"name": fleet.name, "note": fleet.note, "devices": size, "every": every, "kinds": {}}
    if fleet.kind is not None and len(fleet.kinds) <= np.iinfo(np.int16).max:
        counts = np.bincount(fleet.kind, minlength=len(fleet.kinds)).tolist()
        facts["kinds"] = dict(zip(fleet.kinds, counts, strict=True))
        if len(facts["kinds"]) == len(fleet.kinds):
            devices["kind"] = fleet.kind[::every]
    return facts, devices


def _write(folder: RunFolder, facts: dict[str, Any], devices: NDArray[Any]) -> None:
    write_atomic(folder.file(DEVICES), [devices.tobytes()])
    folder.write_json(FLEET, facts)


def _shown(folder: RunFolder, size: int, seed: int) -> list[int]:
    tasks = read_tasks(folder.path)
    begun = np.zeros(size, np.int64)
    if tasks is not None:
        for at in range(0, len(tasks), BLOCK):
            np.add.at(begun, tasks["client"][at : at + BLOCK], 1)
    return shown_devices(begun, seed)[0]


def _sessions(available: Availability, devices: list[int], span_s: float) -> dict[str, list[list[float]]]:
    """The sessions of some devices up to `span_s`, cut to it, by id."""
    ids, now = np.array(devices, np.int64), np.zeros(len(devices))
    found: dict[str, list[list[float]]] = {str(one): [] for one in devices}
    for _ in range(SESSIONS):
        begin, end = available.session(now, ids)
        for one, a, b in zip(
            ids.tolist(), np.maximum(begin, 0.0).tolist(), np.minimum(end, span_s).tolist(), strict=True
        ):
            if a < span_s:
                found[str(one)].append([a, b])
        going = end < span_s
        ids, now = ids[going], end[going]
        if not len(ids):
            break
    return found


def _short(values: F64) -> list[float]:
    return [float(f"{value:.9g}") for value in values.tolist()]
