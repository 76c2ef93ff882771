"""Trials played: every point's job run or simulated, gone on with after an interruption, the worse half dropped.

Here: from a search to what its trials told. Not here: the artefact (`build`). Invariants: a trial that is complete is
not run again; which points are dropped depends on their numbers alone, so a search that was killed ends as it would
have; a work folder holds one search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.algorithms.fedavg import FedAvg
from fieldfare.assess.simulate.search import Point, Search, job_of, points, reached
from fieldfare.core.errors import UsageError
from fieldfare.core.metrics import lower_is_better
from fieldfare.data.federated import Federated
from fieldfare.job import Evaluation, Job, Simulated
from fieldfare.points import system_row
from fieldfare.store.runs import RunFolder
from fieldfare.store.tasks import read_tasks
from fieldfare.store.text import plain
from fieldfare.study import run_arm

Tell = Callable[[str], None]
BIN_S = 60.0


@dataclass(frozen=True)
class Trial:
    """What one trial told: totals, evaluations (t_s, version, value), and updates per second in bins of a minute."""

    point: Point
    number: int
    versions: int
    horizon_s: float
    tasks: dict[str, int]
    device_s: float
    compute_s: float
    bytes_down: float
    bytes_up: float
    evals: list[tuple[float, int, float]] = field(default_factory=list[tuple[float, int, float]])
    rates: tuple[float, float, float] | None = None
    target_s: float | None = None
    final: float | None = None
    version_s: float | None = None
    folder: str = ""

    @property
    def started(self) -> int:
        return sum(self.tasks.values())

    @property
    def waste(self) -> float:
        return 1 - self.tasks.get("ok", 0) / self.started if self.started else 0.0


def play(job: Job, search: Search, work: Path, fleet: Any = None, tell: Tell | None = None) -> list[Trial]:
    """All trials, by point and number. Cost: that of the runs; a killed search goes on in the same `work` folder."""
    folder = _opened(work, search)
    kept = points(search)
    found: list[Trial] = []
    with folder:
        for number in range(search.trials):
            for point in kept:
                if tell is not None:
                    tell(f"{point.name}, trial {number + 1} of {search.trials}")
                found.append(_trial(folder, job, search, point, number, fleet))
            if search.halving and number % 2 == 1 and len(kept) > 1 and number + 1 < search.trials:
                order = ranked(found, kept, search)
                kept = sorted(order[: (len(order) + 1) // 2], key=kept.index)
    return sorted(found, key=lambda one: (points(search).index(one.point), one.number))


def ranked(found: Sequence[Trial], kept: Sequence[Point], search: Search) -> list[Point]:
    """Points from the best: by median seconds to the target, then by median metric at the end, then in their order."""
    sign = 1.0 if lower_is_better(search.metric) else -1.0

    def worth(point: Point) -> tuple[float, float, int]:
        mine = [one for one in found if one.point == point]
        times = [one.target_s if one.target_s is not None else np.inf for one in mine]
        ends = [sign * one.final for one in mine if one.final is not None]
        return median(times), median(ends) if ends else 0.0, kept.index(point)

    return sorted(kept, key=worth)


def central(job: Job, search: Search, work: Path) -> tuple[float, Any]:
    """The metric of the same model trained on all clients' rows in one place: the best of its passes, and the model.

    The central trainer is the client's own: same model, optimiser and batch, one client with everything.
    """
    data = job.data
    pooled = Federated(dict(data.columns), np.array([0, len(data.rows)]), data.rows, classes=data.classes,
                       test=data.test, name=f"{data.name}, pooled")  # fmt: skip
    training = replace(job.training, steps=None, epochs=1)
    whole = replace(
        job, data=pooled, algorithm=FedAvg(search.passes, 1), training=training, simulated=Simulated(workers=1),
        evaluate=Evaluation(every=1), seed=search.seed, name="central",
    )  # fmt: skip
    with _opened(work, search) as folder:
        result = run_arm(folder, "central", whole, False)
    values = [row[search.metric] for row in result.rounds if search.metric in row]
    if not values:
        raise UsageError(f"the job reports no {search.metric!r}: name one of {', '.join(result.final)} as the metric.")
    return (min if lower_is_better(search.metric) else max)(values), result.model


def _opened(work: Path, search: Search) -> RunFolder:
    """The work folder, made or gone on with; one of another search is refused."""
    told = plain(asdict(search))
    if not (work / "run.json").exists():
        folder = RunFolder.create_at(work)
        folder.write_json("search.json", told)
        return folder
    folder = RunFolder.open(work)
    try:
        kept = folder.read_json("search.json")
    except UsageError:
        kept = None
    if kept != told:
        folder.close()
        raise UsageError(f"{work} holds another search: name another folder, or remove it.")
    return folder


def _trial(folder: RunFolder, job: Job, search: Search, point: Point, number: int, fleet: Any) -> Trial:
    made = job_of(job, search, point, number, fleet)
    if not search.train:
        row = system_row(made, search.hours)
        device_s = 3600.0 * sum(row["device_h"].values())
        return Trial(point, number, row["versions"], row["virtual_s"], dict(row["tasks"]), device_s,
                     3600.0 * row["compute_h"], row["bytes_down"], row["bytes_up"],
                     version_s=row["version_s"].get("median"))  # fmt: skip
    name = f"{point.name}/{number}"
    result = run_arm(folder, name, made, False)
    evals = [(r["virtual_s"], r["version"], r[search.metric]) for r in result.rounds if search.metric in r]
    if not evals:
        raise UsageError(f"the job reports no {search.metric!r}: name one of {', '.join(result.final)} as the metric.")
    told = result.summary
    times = np.diff([0.0, *(row["virtual_s"] for row in result.rounds)])
    lower = lower_is_better(search.metric)
    target_s = reached([t for t, _, _ in evals], [v for _, _, v in evals], search.target, lower=lower)
    place = folder.path / "arms" / name
    return Trial(
        point, number, len(result.rounds), float(told["virtual_s"]), dict(told["tasks"]),
        float(sum(told["device_s"].values())), float(told["compute_s"]), float(told["bytes_down"]),
        float(told["bytes_up"]), evals, _rates(read_tasks(place)), target_s, float(result.final[search.metric]),
        float(np.median(times)), str(place),
    )  # fmt: skip


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
