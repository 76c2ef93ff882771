"""The tasks of a run, added up: what pictures, tables and JSON say of who worked when, how it ended and what it took.

Here: `read_work`, one pass over `tasks.bin` in blocks, and `work_facts`, the same as plain JSON. Not here: groups of
devices (`groups`), drawing (`plots_tasks`, `plots_time`). Kept: memory is a few times the number of devices whatever
the number of tasks; what cannot be read is one line; a run without tasks is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.fleet.tasks import OK, OUTCOMES, STALE
from fieldfare.report.table import Floats, is_number, load
from fieldfare.store.devices import FLEET, read_devices, read_fleet
from fieldfare.store.tasks import TASK, TASKS, read_tasks, staleness_of

if TYPE_CHECKING:
    from fieldfare.report.read import Run

Ints = NDArray[np.int64]

BINS = 200
"""Points in time at which tasks at work and devices available are told."""
BLOCK = 1 << 17
SHOWN = 6
"""Devices of each kind in the strip: the most active, and others drawn by chance."""
STRIP_TASKS = 24
"""The strip ends when a device in it has done so many."""
_TAKEN = ("device_s", "compute_s", "bytes_down", "bytes_up", "energy_j")


@dataclass(frozen=True)
class Strip:
    """Some devices over a while: their ids, the first `most` the most active ones, until when, and what they did.

    ``tasks`` is a structured array of `store.tasks.TASK`, in order of their starts; ``sessions`` are (start, end) in
    seconds by id, None where no traces are known.
    """

    devices: tuple[int, ...]
    most: int
    until_s: float
    tasks: NDArray[Any]
    sessions: Mapping[int, list[tuple[float, float]]] | None


@dataclass(frozen=True)
class Work:
    """All tasks of a run that are over.

    ``count`` and each of ``taken`` (`device_s`, `compute_s`, `bytes_down`, `bytes_up`, `energy_j`) are
    ``[len(OUTCOMES)]``. ``edges`` ``[b + 1]`` seconds; ``at_work`` ``[b]``: the mean number of tasks at work between
    two of them; ``available`` ``[b]``: the share of devices available, None without traces. ``staleness`` and
    ``thrown_away`` ``[longest + 1]``: replies by the versions made while they were on their way, None in runs whose
    replies never are stale. ``begun``, ``counted`` ``[k]``: tasks, and tasks that counted, of the devices kept (every
    ``every``-th); ``devices`` ``[k]`` those, None where none are kept. ``note``: what is missing, in words.
    """

    count: Ints
    taken: Mapping[str, Floats]
    edges: Floats
    at_work: Floats
    available: Floats | None
    staleness: Ints | None
    thrown_away: Ints | None
    begun: Ints
    counted: Ints
    devices: NDArray[Any] | None
    every: int
    kinds: tuple[str, ...]
    size: int
    strip: Strip | None
    note: str

    @property
    def n(self) -> int:
        return int(self.count.sum())

    def outcomes(self) -> list[int]:
        """The outcomes that occur, the good one first and then by the time they cost."""
        found = [one for one in range(len(OUTCOMES)) if self.count[one]]
        return sorted(found, key=lambda one: (one != OK, -float(self.taken["device_s"][one]), one))


def read_work(folder: Path, *, stale: bool, span_s: float | None = None) -> Work | None:
    """Add up the tasks of the run in `folder`; None where it keeps none.

    `stale`: whether its replies can be stale. `span_s`: how long the run lasted, where that is known; else as long as
    its tasks. Raises `UsageError` for a file whose records are no tasks. Cost: about 0.5 s per million tasks.
    """
    tasks = read_tasks(folder)
    if tasks is None or not len(tasks):
        return None
    fleet, devices = read_fleet(folder), read_devices(folder)
    every = _whole(fleet.get("every"), 1)
    kinds = fleet.get("kinds")
    names = tuple(str(name) for name in kinds) if isinstance(kinds, Mapping) else ()
    size = _whole(fleet.get("devices"), 0)
    if devices is not None and (len(devices) != -(-size // every) or (len(devices) and _top(devices) >= len(names))):
        raise UsageError(
            f"{folder / FLEET} is about other devices than devices.bin: restore both or run the job again."
        )
    end, last = 0.0, 0
    for part in blocks(tasks, folder, size):
        end, last = max(end, float(part["end"].max())), max(last, int(part["client"].max()))
    told = fleet.get("over_time") if isinstance(fleet.get("over_time"), Mapping) else {}
    over_time = _over_time(told)
    edges = over_time[0] if over_time is not None else np.linspace(0.0, span_s or end or 1.0, BINS + 1)
    width = max(size, last + 1)
    count, taken = np.zeros(len(OUTCOMES), np.int64), {name: np.zeros(len(OUTCOMES)) for name in _TAKEN}
    at_work, ages = np.zeros(len(edges) - 1), [np.zeros(1, np.int64), np.zeros(1, np.int64)]
    begun, counted = np.zeros(width, np.int64), np.zeros(width, np.int64)
    for part in blocks(tasks):
        outcome, start, stop = part["outcome"], part["start"], part["end"]
        count += np.bincount(outcome, minlength=len(OUTCOMES))
        for name in _TAKEN:
            values = stop - start if name == "device_s" else part[name]
            taken[name] += np.bincount(outcome, values, len(OUTCOMES))
        at_work += mean_at_work(start, stop, edges)
        np.add.at(begun, part["client"], 1)
        np.add.at(counted, part["client"][outcome == OK], 1)
        if stale:
            age = np.minimum(staleness_of(part), 1 << 20)
            for rank, which in enumerate((OK, STALE)):
                ages[rank] = _added(ages[rank], np.bincount(age[outcome == which], minlength=1))
    if over_time is not None:
        at_work = at_work + over_time[2]
    at_work = np.round(at_work, 6)
    longest = max(len(one) for one in ages)
    padded = [np.pad(one, (0, longest - len(one))) for one in ages]
    return Work(
        count, taken, edges, at_work, None if over_time is None else over_time[1], padded[0] if stale else None,
        padded[1] if stale else None, begun[::every], counted[::every], devices, every, names, size,
        _strip(folder, tasks, begun, fleet, float(edges[-1])), _note(folder, len(tasks), int(count.sum())),
    )  # fmt: skip


def work_facts(work: Work) -> dict[str, Any]:
    """The numbers of the report as plain JSON: `waste`, `staleness`, `at_work`, and who took part."""
    from fieldfare.report.groups import groups_facts

    facts: dict[str, Any] = {"tasks": work.n, "waste": {}}
    for one in work.outcomes():
        row = {name: float(values[one]) for name, values in work.taken.items()}
        facts["waste"][OUTCOMES[one]] = {"tasks": int(work.count[one]), **row}
    total = float(work.taken["device_s"].sum())
    facts["lost_device_share"] = 1.0 - float(work.taken["device_s"][OK]) / total if total > 0 else 0.0
    facts["at_work_mean"], facts["at_work_max"] = float(work.at_work.mean()), float(work.at_work.max())
    if work.available is not None:
        facts["available_share_mean"] = float(work.available.mean())
    if work.staleness is not None and work.thrown_away is not None and work.staleness.sum():
        facts["staleness"] = {
            "mean": float(np.average(np.arange(len(work.staleness)), weights=work.staleness)),
            **{f"p{point}": quantile_of(work.staleness, point / 100) for point in (50, 90, 99)},
            "max": int(np.flatnonzero(work.staleness)[-1]), "thrown_away": int(work.thrown_away.sum()),
        }  # fmt: skip
    facts["participation"] = groups_facts(work)
    if work.note:
        facts["note"] = work.note
    return facts


def facts_of_run(folder: Path) -> dict[str, Any] | None:
    """`work_facts` of a run folder; None where it keeps no tasks."""
    from fieldfare.report.read import read_run

    if not (folder / TASKS).is_file():
        return None
    work = work_of_run(read_run(folder))
    return None if work is None else work_facts(work)


def work_of_run(run: Run) -> Work | None:
    """`read_work` of a run; replies can be stale where its rounds tell how stale they were."""
    return read_work(run.path, stale="staleness" in run.table.columns, span_s=run.table.total("virtual_s"))


def blocks(tasks: NDArray[Any], folder: Path | None = None, size: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
    """The tasks as contiguous columns, a block at a time; with `folder` each block is checked.

    Raises `UsageError`, naming the first record, where a record is no task: an outcome that there is not, a time that
    is not finite or runs backwards, a client beyond `size` (0: not known).
    """
    for at in range(0, len(tasks), BLOCK):
        rows = np.array(tasks[at : at + BLOCK])
        part = {name: np.ascontiguousarray(rows[name]) for name in TASK.names or ()}
        if folder is not None:
            good = (part["outcome"] < len(OUTCOMES)) & np.isfinite(part["end"]) & (part["start"] <= part["end"])
            good &= (part["start"] >= 0) & ((part["client"] < size) if size else True)
            for name in _TAKEN[1:]:
                good &= part[name] >= 0
            if not good.all():
                raise UsageError(
                    f"{folder / TASKS}: record {at + int(np.argmin(good))} is no task (an outcome, a client or a time "
                    "that cannot be): restore the file or run the job again."
                )
        yield part


def mean_at_work(start: Floats, end: Floats, edges: Floats) -> Floats:
    """How many of the tasks from `start` to `end` `[n]` are at work on average between two `edges`, `[b]`.

    >>> mean_at_work(np.array([0.0, 1.5]), np.array([1.0, 4.0]), np.array([0.0, 1.0, 2.0, 3.0])).tolist()
    [1.0, 0.5, 1.0]
    """
    spent = _before(end, edges)
    spent = _before(start, edges) - spent
    return np.diff(spent) / np.diff(edges)


def _before(times: Floats, edges: Floats) -> Floats:
    """Sum over the `times` before each edge of how long ago they were, `[b + 1]`."""
    last = len(edges)
    bin_ = np.searchsorted(edges, times)
    within = np.where(bin_ < last, edges[np.minimum(bin_, last - 1)] - times, 0.0)
    before = np.cumsum(np.bincount(bin_, minlength=last + 1)[:last])
    first = np.bincount(bin_, within, last + 1)[:last]
    steps = np.append(0.0, np.diff(edges)) * np.append(0, before[:-1])
    return np.cumsum(steps + first)


def quantile_of(counts: Ints, point: float) -> int:
    """The smallest value that at least a share `point` of those counted do not exceed.

    >>> quantile_of(np.array([5, 4, 1]), 0.5), quantile_of(np.array([5, 4, 1]), 0.95)
    (0, 2)
    """
    return int(np.searchsorted(np.cumsum(counts), point * counts.sum() - 1e-9))


def shown_devices(begun: Ints, seed: int) -> tuple[list[int], int]:
    """Ids for the strip, and how many of them are the most active: the rest is drawn from those that were asked."""
    asked = np.flatnonzero(begun)
    most = asked[np.argsort(-begun[asked], kind="stable")][:SHOWN]
    others = begun > 0
    others[most] = False
    rest = np.flatnonzero(others)
    drawn = np.argsort(rng.keys(seed, ("report", "strip"), rest), kind="stable")[:SHOWN]
    return [*most.tolist(), *np.sort(rest[drawn]).tolist()], len(most)


def _strip(folder: Path, tasks: NDArray[Any], begun: Ints, fleet: Mapping[str, Any], span_s: float) -> Strip | None:
    kept = fleet.get("sessions")
    sessions = kept if isinstance(kept, Mapping) else None
    seed = load(folder / "config.json").get("job", {}).get("seed")
    ids, most = shown_devices(begun, seed if isinstance(seed, int) else 0)
    member = np.zeros(len(begun), np.bool_)
    member[ids] = True
    found = np.concatenate([np.array(tasks[at : at + BLOCK])[member[tasks["client"][at : at + BLOCK]]]
                            for at in range(0, len(tasks), BLOCK)])  # fmt: skip
    found = found[np.lexsort((found["client"], found["start"]))]
    until = span_s
    for one in ids[:most]:
        ends = np.sort(found["end"][found["client"] == one])
        if len(ends) > STRIP_TASKS:
            until = min(until, float(ends[STRIP_TASKS - 1]))
    told: dict[int, list[tuple[float, float]]] | None = None
    if sessions is not None:
        told = {one: [(float(a), float(b)) for a, b in sessions.get(str(one), [])] for one in ids}
    return Strip(tuple(ids), most, min(until, span_s), found[found["start"] < min(until, span_s)], told)


def _over_time(told: Any) -> tuple[Floats, Floats | None, Floats] | None:
    """(edges, share available, tasks still at work) as `fleet.json` tells them, None where they fit badly."""
    span, share, running = (told.get(name) for name in ("span_s", "available_share", "running"))
    if not is_number(span) or not 0 < span < np.inf or not isinstance(running, list) or not running:
        return None
    rest = np.array(running, np.float64)
    shares = np.array(share, np.float64) if isinstance(share, list) and len(share) == len(rest) else None
    return np.linspace(0.0, span, len(rest) + 1), shares, rest


def _note(folder: Path, kept: int, n: int) -> str:
    """What is missing of `tasks.bin`, in one line; empty where nothing is."""
    spare = (folder / TASKS).stat().st_size % TASK.itemsize
    told = load(folder / "summary.json").get("tasks")
    whole = sum(told.values()) if isinstance(told, Mapping) else n
    if n < whole:
        return f"tasks.bin holds {n:,} of the run's {whole:,} tasks: what is said of tasks is said of those."
    if n > whole:
        return f"tasks.bin holds {n:,} tasks, the summary tells of {whole:,}: one of them was changed."
    return f"tasks.bin ends within a record: its last {spare} bytes are left out." if spare else ""


def _added(first: Ints, second: Ints) -> Ints:
    longest = max(len(first), len(second))
    return np.pad(first, (0, longest - len(first))) + np.pad(second, (0, longest - len(second)))


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else otherwise


def _top(devices: NDArray[Any]) -> int:
    return int(devices["kind"].max())
