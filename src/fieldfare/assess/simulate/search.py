"""What is searched: settings of synchronous or buffered training, trials of each, and how points are dropped.

Here: settings, points, the job of a point. Not here: running them (`play`), devices (`devices`). Invariants: a point's
job is the user's own job with another algorithm, fleet, rates and seed, nothing else; trial t has the seed `seed + t`;
which points there are depends on the search alone, drawn ones on its seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil, exp, inf, log
from typing import Any, Literal

import numpy as np

from fieldfare.aggregate.chain import Chain, chain, mean
from fieldfare.aggregate.optimise import adagrad, adam, decay, momentum, scale, yogi
from fieldfare.algorithms.deadline import SemiSync
from fieldfare.algorithms.fedavg import FedAvg
from fieldfare.algorithms.fedbuff import FedBuff
from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.core.quorum import Sample, Staleness
from fieldfare.core.settings import settings
from fieldfare.job import Evaluation, Job

AXES: Mapping[str, str] = {
    "concurrency": "C", "buffer": "K", "cohort": "N", "staleness": "S", "lr": "lr", "schedule": "", "decay": "d",
    "server": "", "server_lr": "slr", "server_decay": "sd",
}  # fmt: skip
"""What a point sets, and how its name tells it."""
COUNTS = ("concurrency", "buffer", "cohort", "staleness")
RATES = ("lr", "decay", "server_lr", "server_decay")
TUNE_SEED = 10_000
"""Between the seeds of the trials that choose a point and those that are told."""


@settings
@dataclass(frozen=True)
class Search:
    """Which settings are tried, on how many seeds, and what decides between them.

    Axes, each a list: `concurrency`, `buffer`, `staleness` (-1: no limit), `lr` (none: the job's own), `schedule` of
    the clients' rate over versions ("cosine" ends at zero with the last one), `decay`: the factor of "step", every
    `decay_every` versions; `server`: its optimiser, `server_lr`: its rate (1 where none), `server_decay`: that rate's
    factor every `decay_every` versions. `design`: "grid", every combination; "cross", the first value of every axis and
    one axis at a time varied from it; "random", `draw` points, each axis' value drawn from its list, or, where it is
    named in `between`, from its two ends, even in the logarithm.

    `mode`: "async" (FedBuff) or "sync": rounds of `buffer` replies, of `cohort` asked (none: `over` times as many);
    `concurrency` and `staleness` mean nothing there. `compare`: the other mode is played too, with the same buffers,
    rates and trials; what is told is `mode`'s. `by`: who is asked, a selection rule's name. `versions`: the most a
    trial makes. `trials` of each point (FLINT: 5, and 15 for a decision). `halving`: after every second trial the worse
    half of the points gets no more. `rungs_h`: successive halving on virtual time: at each of these hours all trials of
    a point stop, the better `keep` of the points goes on. `tune`: points are compared on so many trials of other seeds
    (by 10,000), and the best alone plays `trials` that are told. `metric`, `target`: reached when its moving average
    (0.3) is there five evaluations in a row (Green FL's rule); `every` versions one. `train`: false simulates time
    alone, of `hours` at most. `central`: the central model's metric, where it is known; else it is trained, for
    `passes` over all rows.
    """

    mode: Literal["async", "sync"] = "async"
    concurrency: tuple[int, ...] = (40,)
    buffer: tuple[int, ...] = (10,)
    cohort: tuple[int, ...] = ()
    staleness: tuple[int, ...] = (10,)
    lr: tuple[float, ...] = ()
    schedule: tuple[Literal["constant", "cosine", "inverse_sqrt", "step"], ...] = ()
    decay: tuple[float, ...] = ()
    server: tuple[Literal["mean", "momentum", "adam", "yogi", "adagrad"], ...] = ()
    server_lr: tuple[float, ...] = ()
    server_decay: tuple[float, ...] = ()
    decay_every: int = 50
    design: Literal["grid", "cross", "random"] = "grid"
    draw: int = 0
    between: tuple[str, ...] = ()
    over: float = 1.3
    timeout_s: float | None = None
    by: str = "rested"
    versions: int = 200
    trials: int = 5
    tune: int = 0
    halving: bool = False
    rungs_h: tuple[float, ...] = ()
    keep: float = 0.5
    compare: bool = False
    metric: str = "accuracy"
    target: float | None = None
    every: int = 5
    train: bool = True
    hours: float | None = None
    central: float | None = None
    passes: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = {"versions": self.versions, "trials": self.trials, "every": self.every, "passes": self.passes,
                   "decay_every": self.decay_every}  # fmt: skip
        for name, value in numbers.items():
            if value < 1:
                raise UsageError(f"Search({name}={value}): use a number >= 1.")
        for name in COUNTS:
            values = getattr(self, name)
            wanted = values or name == "cohort"
            if not wanted or len(set(values)) < len(values) or min(values, default=1) < (1, -1)[name == "staleness"]:
                raise UsageError(f"Search({name}={values}): give different whole numbers >= 1.")
        for name in RATES:
            values, falls = getattr(self, name), "decay" in name
            fits = all(0 < one < inf and (one <= 1 or not falls) for one in values)
            if len(set(values)) < len(values) or not fits:
                raise UsageError(
                    f"Search({name}={values}): give different numbers above 0{' up to 1' if falls else ''}."
                )
        for name in ("schedule", "server"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise UsageError(f"Search({name}={getattr(self, name)}): name each once.")
        if self.decay and self.schedule and "step" not in self.schedule:
            raise UsageError(f'Search(decay=...) is of schedule "step": add it to {self.schedule}, or leave decay out.')
        if "step" in self.schedule and not self.decay:
            raise UsageError('Search(schedule="step") needs decay: the factor after every decay_every versions.')
        self._check_design()
        self._check_rungs()
        if self.hours is not None and self.train:
            raise UsageError("Search(hours=...) goes with train=false: a trained trial ends after its versions.")

    def _check_design(self) -> None:
        if (self.design == "random") != (self.draw > 0):
            raise UsageError(f'Search(design="{self.design}", draw={self.draw}): draw >= 1 goes with design="random".')
        if self.between and self.design != "random":
            raise UsageError('Search(between=...) goes with design="random": a grid has the values it is given.')
        for name in self.between:
            ends = getattr(self, name) if name in (*COUNTS, *RATES) else ()
            if len(ends) != 2 or not 0 < ends[0] < ends[1]:
                raise UsageError(f'Search(between=["{name}"]): give {name} two numbers above 0, the lower first.')

    def _check_rungs(self) -> None:
        rising = all(a < b for a, b in itertools.pairwise((0.0, *self.rungs_h)))
        if not rising or not 0 < self.keep < 1:
            raise UsageError(f"Search(rungs_h={self.rungs_h}, keep={self.keep}): rising hours, and a share below 1.")
        if self.rungs_h and self.halving:
            raise UsageError("Search(halving=true, rungs_h=...): points are dropped by trials or by hours, choose one.")
        if self.tune < 0:
            raise UsageError(f"Search(tune={self.tune}): a number of trials, or 0.")
        if not self.train and (self.rungs_h or self.tune or self.compare or self.halving):
            raise UsageError("Search(train=false): without training nothing tells points apart; leave out rungs_h, "
                             "halving, tune and compare.")  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One combination; `name` tells it from the others of its search. None, "" and 0: the job's own, or meaningless."""

    concurrency: int
    buffer: int
    staleness: int
    lr: float | None
    name: str
    cohort: int = 0
    schedule: str = ""
    decay: float | None = None
    server: str = ""
    server_lr: float | None = None
    server_decay: float | None = None


def points(search: Search) -> list[Point]:
    """All points; those with a buffer above the concurrency, or the cohort, can make no version soon: left out."""
    axes = _axes(search)
    varied = [name for name in AXES if len(axes[name]) > 1]
    found: dict[str, Point] = {}
    for told in _designed(search, axes):
        if not _whole(search, told):
            continue
        words = [f"{AXES[name]}{told[name]}" for name in varied if told[name] is not None] or [search.mode]
        name = "-".join(words)
        found.setdefault(name, Point(**told, name=name))
        if len(found) == search.draw:
            break
    if not found:
        raise UsageError(
            f"no point is left: every buffer of {search.buffer} is above every "
            f"{'concurrency' if search.mode == 'async' else 'cohort'} of "
            f"{search.concurrency if search.mode == 'async' else search.cohort}."
        )
    return list(found.values())


def _axes(search: Search) -> dict[str, tuple[Any, ...]]:
    """Values of every axis; one that means nothing in this mode has the one that says so."""
    none: tuple[Any, ...] = (None,)
    sync = search.mode == "sync"
    schedules = search.schedule or (("step",) if search.decay else ("",))
    out: dict[str, tuple[Any, ...]] = {name: getattr(search, name) or none for name in RATES}
    out |= {
        "concurrency": (0,) if sync else search.concurrency, "buffer": search.buffer,
        "cohort": (search.cohort or (0,)) if sync else (0,), "staleness": (-1,) if sync else search.staleness,
        "schedule": schedules, "server": search.server or ("",),
    }  # fmt: skip
    return out


def _designed(search: Search, axes: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Settings of one point after the other, some perhaps twice."""
    match search.design:
        case "grid":
            yield from (dict(zip(AXES, one, strict=True)) for one in itertools.product(*(axes[n] for n in AXES)))
        case "cross":
            centre = {name: axes[name][0] for name in AXES}
            yield centre
            yield from ({**centre, name: value} for name in AXES for value in axes[name][1:])
        case "random":
            key = np.array([rng.derive(search.seed, "assess", "search")], np.uint64)
            for i in range(200 * search.draw):  # more than enough to find `draw` different ones, where there are
                u = rng.uniforms(key, np.arange(len(AXES) * i, len(AXES) * (i + 1)))
                yield {n: _drawn(axes[n], float(u[j]), n in search.between, n in COUNTS) for j, n in enumerate(AXES)}


def _drawn(values: tuple[Any, ...], u: float, between: bool, whole: bool) -> Any:
    if not between or len(values) < 2:
        return values[int(u * len(values))]
    value = exp(log(values[0]) + u * log(values[1] / values[0]))
    return round(value) if whole else float(f"{value:.3g}")


def _whole(search: Search, told: dict[str, Any]) -> bool:
    """Whether the settings make a point; a decay without steps is taken out, so that such points are one."""
    if told["schedule"] != "step":
        told["decay"] = None
    most = told["cohort"] or inf if search.mode == "sync" else told["concurrency"]
    return told["buffer"] <= most


def asked(search: Search, point: Point) -> int:
    """Clients at work, or asked in a round."""
    if search.mode == "async":
        return point.concurrency
    return point.cohort or ceil(round(search.over * point.buffer, 9))


def algorithm(search: Search, point: Point) -> FedBuff | FedAvg:
    """FedBuff, or over-selected rounds, with the point's optimiser and rate on the server."""
    sync = search.mode == "sync"
    server = _server(search, point, weighted=sync)
    if sync:
        over = asked(search, point) / point.buffer
        return SemiSync(
            search.versions, point.buffer, over=over, timeout_s=search.timeout_s, by=search.by, server=server
        )
    stale = Staleness(limit=None if point.staleness < 0 else point.staleness)
    on = Sample(point.concurrency, by=search.by)
    return FedBuff(search.versions, on, point.buffer, stale, server, timeout_s=search.timeout_s)


def _server(search: Search, point: Point, *, weighted: bool) -> Chain:
    """What stands behind the mean: optimiser (defaults of `aggregate.optimise`), rate, decay of the rate."""
    made = {"momentum": momentum, "adam": adam, "yogi": yogi, "adagrad": adagrad}
    behind: list[Any] = [made[point.server]()] if point.server in made else []
    if point.server_lr is not None:
        behind.append(scale(point.server_lr))
    if point.server_decay is not None:
        behind.append(decay(point.server_decay, search.decay_every))
    return chain(mean(weighted=weighted), *behind)


def job_of(job: Job, search: Search, point: Point, trial: int, fleet: Any) -> Job:
    """The job of one trial of a point."""
    rates: dict[str, Any] = {} if point.lr is None else {"lr": point.lr}
    if point.schedule:
        every = search.versions if point.schedule == "cosine" else search.decay_every
        rates |= {"schedule": point.schedule, "schedule_rounds": every, "decay": point.decay or 1.0}
    simulated = replace(job.simulated, train=search.train, **({} if fleet is None else {"fleet": fleet}))
    return replace(
        job, algorithm=algorithm(search, point), training=replace(job.training, **rates), simulated=simulated,
        seed=search.seed + trial, evaluate=Evaluation(every=search.every), name=point.name,
    )  # fmt: skip


def reached(t_s: list[float], values: list[float], target: float | None, *, lower: bool, run: int = 5) -> float | None:
    """Seconds at which the moving average (0.3) had been at the target for `run` evaluations in a row; None: never.

    >>> reached([1.0, 2.0, 3.0], [0.9, 0.9, 0.9], 0.8, lower=False, run=2)
    2.0
    """
    if target is None:
        return None
    held = 0
    for t, average in zip(t_s, smoothed(values), strict=True):
        held = held + 1 if (average <= target if lower else average >= target) else 0
        if held >= run:
            return t
    return None


def smoothed(values: Iterable[float]) -> list[float]:
    """The moving average of evaluations, 0.3 for the newest."""
    out: list[float] = []
    for value in values:
        out.append(value if not out else 0.3 * value + 0.7 * out[-1])
    return out
