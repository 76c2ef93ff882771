"""What is searched: a grid of synchronous or buffered settings, trials of each, and how points are dropped.

Here: settings, points, the job of a point. Not here: running them (`play`), devices (`devices`). Invariant: a point's
job is the user's own job with another algorithm, fleet and seed, nothing else; trial t has the seed `seed + t`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, Literal

from fieldfare.algorithms.deadline import SemiSync
from fieldfare.algorithms.fedavg import FedAvg
from fieldfare.algorithms.fedbuff import FedBuff
from fieldfare.core.errors import UsageError
from fieldfare.core.quorum import Sample, Staleness
from fieldfare.core.settings import settings
from fieldfare.job import Evaluation, Job


@settings
@dataclass(frozen=True)
class Search:
    """A grid: every combination of `concurrency`, `buffer`, `staleness` (-1: no limit) and `lr` (none: the job's own).

    `mode`: "async" (FedBuff) or "sync": rounds of `buffer` replies, of `over` times as many asked; `concurrency` and
    `staleness` mean nothing there. `by`: who is asked, a selection rule's name. `versions`: the most a trial makes.
    `trials` of each point (FLINT: 5, and 15 for a decision). `halving`: after every second trial the worse half of the
    points gets no more. `metric`, `target`: reached when its moving average (0.3) is there five evaluations in a row
    (Green FL's rule); `every` versions one. `train`: false simulates time alone, of `hours` at most. `central`: the
    central model's metric, where it is known; else it is trained, for `passes` over all rows.
    """

    mode: Literal["async", "sync"] = "async"
    concurrency: tuple[int, ...] = (40,)
    buffer: tuple[int, ...] = (10,)
    staleness: tuple[int, ...] = (10,)
    lr: tuple[float, ...] = ()
    over: float = 1.3
    timeout_s: float | None = None
    by: str = "rested"
    versions: int = 200
    trials: int = 5
    halving: bool = False
    metric: str = "accuracy"
    target: float | None = None
    every: int = 5
    train: bool = True
    hours: float | None = None
    central: float | None = None
    passes: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = {"versions": self.versions, "trials": self.trials, "every": self.every, "passes": self.passes}
        for name, value in numbers.items():
            if value < 1:
                raise UsageError(f"Search({name}={value}): use a number >= 1.")
        for name in ("concurrency", "buffer", "staleness"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values) or min(values) < (-1 if name == "staleness" else 1):
                raise UsageError(f"Search({name}={values}): give different whole numbers >= 1.")
        if self.hours is not None and self.train:
            raise UsageError("Search(hours=...) goes with train=false: a trained trial ends after its versions.")


@dataclass(frozen=True)
class Point:
    """One combination; `name` tells it from the others of its search."""

    concurrency: int
    buffer: int
    staleness: int
    lr: float | None
    name: str


def points(search: Search) -> list[Point]:
    """All combinations; those with a buffer above the concurrency are left out, as no version would be soon made."""
    lrs: tuple[float | None, ...] = search.lr or (None,)
    sync = search.mode == "sync"
    axes = [(0,) if sync else search.concurrency, search.buffer, (-1,) if sync else search.staleness, lrs]
    varied = {name: len(axis) > 1 for name, axis in zip(("C", "K", "S", "lr"), axes, strict=True)}
    out: list[Point] = []
    for c, k, s, lr in itertools.product(*axes):
        if not sync and k > c:
            continue
        told = {"C": c, "K": k, "S": s, "lr": lr}
        words = [f"{name}{told[name]}" for name in varied if varied[name]] or [f"{search.mode}"]
        out.append(Point(int(c), int(k), int(s), lr, "-".join(words)))
    if not out:
        raise UsageError(
            f"no point is left: every buffer of {search.buffer} is above every concurrency of {search.concurrency}."
        )
    return out


def algorithm(search: Search, point: Point) -> FedBuff | FedAvg:
    """FedBuff, or over-selected rounds."""
    if search.mode == "sync":
        return SemiSync(search.versions, point.buffer, over=search.over, timeout_s=search.timeout_s, by=search.by)
    stale = Staleness(limit=None if point.staleness < 0 else point.staleness)
    on = Sample(point.concurrency, by=search.by)
    return FedBuff(search.versions, on, point.buffer, stale, timeout_s=search.timeout_s)


def job_of(job: Job, search: Search, point: Point, trial: int, fleet: Any) -> Job:
    """The job of one trial of a point."""
    training = job.training if point.lr is None else replace(job.training, lr=point.lr)
    simulated = replace(job.simulated, train=search.train, **({} if fleet is None else {"fleet": fleet}))
    return replace(
        job, algorithm=algorithm(search, point), training=training, simulated=simulated, seed=search.seed + trial,
        evaluate=Evaluation(every=search.every), name=point.name,
    )  # fmt: skip


def reached(t_s: list[float], values: list[float], target: float | None, *, lower: bool, run: int = 5) -> float | None:
    """Seconds at which the moving average (0.3) had been at the target for `run` evaluations in a row; None: never.

    >>> reached([1.0, 2.0, 3.0], [0.9, 0.9, 0.9], 0.8, lower=False, run=2)
    2.0
    """
    if target is None:
        return None
    average, held = None, 0
    for t, value in zip(t_s, values, strict=True):
        average = value if average is None else 0.3 * value + 0.7 * average
        held = held + 1 if (average <= target if lower else average >= target) else 0
        if held >= run:
            return t
    return None
