"""What one trial told: totals, evaluations over virtual time and devices' time, updates per second.

Here: from a run's folder, complete or stopped at an hour, to a `Trial`. Not here: running it (`play`). Invariant: what
is told of a trial up to an hour depends on that hour alone, not on where the run was stopped behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.assess.platform.journal import peak_per_s
from fieldfare.assess.simulate.search import Point, Search, reached, smoothed
from fieldfare.core.errors import UsageError
from fieldfare.core.metrics import lower_is_better
from fieldfare.fleet.tasks import OK, OUTCOMES, STALE
from fieldfare.record import MOST_TASKS
from fieldfare.store.tasks import read_tasks, staleness_of

BIN_S = 60.0
Seen = list[tuple[float, int, float, float]]


@dataclass(frozen=True)
class Trial:
    """Totals of one trial; `evals` (t_s, version, value, device_s so far); updates per second in bins of a minute.

    `spread_s`: 10 and 90 % quantiles of the seconds between versions. `stopped_h`: the hour at which its point was
    dropped; None where it was played whole. `begun_peak_per_s`: tasks that began, in the fullest minute; `behind`: mean
    versions a reply was late by. `device_to_target_s`: devices' time up to the target.
    """

    point: Point
    number: int
    versions: int
    horizon_s: float
    tasks: dict[str, int]
    device_s: float
    compute_s: float
    bytes_down: float
    bytes_up: float
    evals: Seen = field(default_factory=list[tuple[float, int, float, float]])
    rates: tuple[float, float, float] | None = None
    target_s: float | None = None
    final: float | None = None
    version_s: float | None = None
    spread_s: tuple[float, float] | None = None
    stopped_h: float | None = None
    folder: str = ""
    begun_peak_per_s: float | None = None
    behind: float | None = None

    @property
    def started(self) -> int:
        return sum(self.tasks.values())

    @property
    def waste(self) -> float:
        return 1 - self.tasks.get("ok", 0) / self.started if self.started else 0.0

    @property
    def seen(self) -> float | None:
        """The metric's moving average at the last evaluation."""
        return smoothed(seen[2] for seen in self.evals)[-1] if self.evals else None

    def at_target(self, what: int) -> float | None:
        """Of the evaluation at which the target was reached: 1 its version, 3 devices' time up to it."""
        found = next((seen[what] for seen in self.evals if seen[0] == self.target_s), None)
        return None if found is None or not np.isfinite(found) else float(found)


def of_row(point: Point, number: int, row: Mapping[str, Any]) -> Trial:
    """A trial of which time alone was simulated, from its `points.system_row`."""
    version_s = row["version_s"]
    spread = (version_s["p10"], version_s["p90"]) if version_s else None
    return Trial(point, number, row["versions"], row["virtual_s"], dict(row["tasks"]),
                 3600.0 * sum(row["device_h"].values()), 3600.0 * row["compute_h"], row["bytes_down"], row["bytes_up"],
                 version_s=version_s.get("median"), spread_s=spread)  # fmt: skip


def of_run(
    search: Search, point: Point, number: int, place: Path, rows: Sequence[Mapping[str, Any]],
    told: Mapping[str, Any],
) -> Trial:  # fmt: skip
    """A trial that was played whole: the run's `rows` and summary `told`."""
    tasks = read_tasks(place)
    evals, final = _evals(search, rows, tasks), dict(told["final"])
    if not evals:
        raise UsageError(f"the job reports no {search.metric!r}: name one of {', '.join(final)} as the metric.")
    times = _between(rows)
    return Trial(
        point, number, len(rows), float(told["virtual_s"]), dict(told["tasks"]), float(sum(told["device_s"].values())),
        float(told["compute_s"]), float(told["bytes_down"]), float(told["bytes_up"]), evals, _rates(tasks),
        _target(search, evals), float(final[search.metric]), float(np.median(times)), _spread(times), None, str(place),
        *_begun(tasks),
    )  # fmt: skip


def of_part(
    search: Search, point: Point, number: int, place: Path, rows: Sequence[Mapping[str, Any]], hours: float
) -> Trial:
    """A trial up to an hour at which its point was dropped: versions made and tasks over by then; no final metric."""
    seen = [row for row in rows if row["virtual_s"] <= 3600.0 * hours]
    horizon_s = 3600.0 * hours if len(seen) < len(rows) or not rows else float(rows[-1]["virtual_s"])
    kept = read_tasks(place)
    tasks = None if kept is None else kept[np.asarray(kept["end"]) <= 3600.0 * hours]
    evals, times = _evals(search, seen, tasks), _between(seen)
    counts, sums = {}, dict.fromkeys(("device_s", "compute_s", "bytes_down", "bytes_up"), 0.0)
    if tasks is not None:
        counts = {name: n for i, name in enumerate(OUTCOMES) if (n := int((tasks["outcome"] == i).sum()))}
        sums = {name: float(np.sum(tasks[name], dtype=np.float64)) for name in ("compute_s", "bytes_down", "bytes_up")}
        sums["device_s"] = float(np.sum(tasks["end"] - tasks["start"]))
    middle = float(np.median(times)) if len(times) else None
    return Trial(
        point, number, len(seen), horizon_s, counts, sums["device_s"], sums["compute_s"], sums["bytes_down"],
        sums["bytes_up"], evals, _rates(tasks), _target(search, evals), None, middle, _spread(times), hours, str(place),
    )  # fmt: skip


def worth(search: Search, mine: Sequence[Trial], hours: float | None = None) -> tuple[float, float]:
    """A point's rank among others, lower is better: medians over its trials of seconds to the target (infinite where
    it was not reached), then of the metric's moving average, up to `hours` (None: of the metric at the end).
    """
    sign = 1.0 if lower_is_better(search.metric) else -1.0
    end = np.inf if hours is None else 3600.0 * hours
    times = [one.target_s if one.target_s is not None and one.target_s <= end else np.inf for one in mine]
    if hours is None:
        ends = [sign * one.final for one in mine if one.final is not None]
        return median(times), median(ends) if ends else 0.0
    upto = [smoothed(value for t, _, value, _ in one.evals if t <= end) for one in mine]
    return median(times), median(sign * values[-1] if values else np.inf for values in upto)


def _evals(search: Search, rows: Sequence[Mapping[str, Any]], tasks: NDArray[Any] | None) -> Seen:
    found = [(float(r["virtual_s"]), int(r["version"]), float(r[search.metric])) for r in rows if search.metric in r]
    spent = spent_s(tasks, np.array([t for t, _, _ in found]))
    return [(*seen, float(s)) for seen, s in zip(found, spent, strict=True)]


def spent_s(tasks: NDArray[Any] | None, t_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds devices had worked up to each of the times, `[n]`; NaN where not all tasks were kept.

    >>> told = np.array([(0.0, 4.0), (2.0, 10.0)], [("start", "f8"), ("end", "f8")])
    >>> spent_s(told, np.array([1.0, 4.0, 99.0])).tolist()
    [1.0, 6.0, 12.0]
    """
    if tasks is None or len(tasks) >= MOST_TASKS:
        return np.full(len(t_s), np.nan)
    total = np.zeros(len(t_s))
    for times, sign in ((np.asarray(tasks["start"]), 1.0), (np.asarray(tasks["end"]), -1.0)):
        order = np.sort(times)
        before = np.searchsorted(order, t_s)
        total += sign * (before * t_s - np.concatenate([[0.0], np.cumsum(order)])[before])
    return total


def _target(search: Search, evals: Seen) -> float | None:
    lower = lower_is_better(search.metric)
    return reached([seen[0] for seen in evals], [seen[2] for seen in evals], search.target, lower=lower)


def _between(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    return np.diff([0.0, *(float(row["virtual_s"]) for row in rows)])


def _spread(times: NDArray[np.float64]) -> tuple[float, float] | None:
    if not len(times):
        return None
    low, high = np.quantile(times, (0.1, 0.9))
    return float(low), float(high)


def _begun(tasks: NDArray[Any] | None) -> tuple[float | None, float | None]:
    """(tasks that began a second in the fullest minute, mean staleness of replies); None where tasks were not kept."""
    if tasks is None or not len(tasks):
        return None, None
    outcome = np.asarray(tasks["outcome"])
    replies = tasks[(outcome == OK) | (outcome == STALE)]
    behind = float(staleness_of(replies).mean()) if len(replies) else None
    return peak_per_s(np.asarray(tasks["start"], np.float64)), behind


def _rates(tasks: NDArray[Any] | None) -> tuple[float, float, float] | None:
    """Mean, 95 % quantile and peak of updates per second, in bins of a minute (of the whole, where that is shorter)."""
    if tasks is None or not len(tasks):
        return None
    ends = np.asarray(tasks["end"])[np.asarray(tasks["outcome"]) == 0]
    if not len(ends):
        return None
    width = min(BIN_S, float(ends.max()) or BIN_S)
    counts = np.bincount((ends / width).astype(np.int64)) / width
    counts = counts[:-1] if len(counts) > 1 else counts
    return float(counts.mean()), float(np.quantile(counts, 0.95)), float(counts.max())
