"""Trials played: every point's job run or simulated, gone on with after an interruption, the worse ones dropped.

Here: from a search to what its trials told. Not here: a trial (`trial`), the artefact (`build`). Invariants: a trial
that is complete is not run again; which points are dropped depends on their numbers alone, so a search that was killed
ends as it would have; a work folder holds one search of one job, one data set and one fleet (`identity`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.algorithms.fedavg import FedAvg
from fieldfare.assess.simulate.identity import FILE, refuse, told_of
from fieldfare.assess.simulate.search import TUNE_SEED, Point, Search, job_of, points
from fieldfare.assess.simulate.trial import Trial, of_part, of_row, of_run, worth
from fieldfare.core.errors import UsageError
from fieldfare.core.metrics import lower_is_better
from fieldfare.data.federated import Federated
from fieldfare.job import Evaluation, Job, Simulated
from fieldfare.points import system_row
from fieldfare.store.lines import read_lines
from fieldfare.store.runs import RunFolder
from fieldfare.study import run_arm

__all__ = ["Tell", "Trial", "central", "choose", "play", "ranked"]

Tell = Callable[[str], None]


def choose(
    job: Job, search: Search, work: Path, fleet: Any = None, tell: Tell | None = None, *, told: bool = True
) -> tuple[Point, list[Trial]]:
    """The best point by medians, and the trials that told so; a point that was dropped is never it.

    `told`: the best point's trials are wanted whole; else, where hours of virtual time (`rungs_h`) leave one point, it
    goes no further than the last that it came to.
    """
    found = play(job, search, work, fleet, tell, told=told)
    order = points(search)
    trials = {point: [one for one in found if one.point == point] for point in order}
    most = max(len(mine) for mine in trials.values())
    last = max((_came(one) for one in found), default=np.inf)
    whole = [p for p in order if len(trials[p]) == most and all(_came(one) == last for one in trials[p])]
    return ranked(found, whole, search, None if np.isinf(last) else last)[0], found


def _came(one: Trial) -> float:
    """The hour a trial was played to; infinite where it was played whole."""
    return np.inf if one.stopped_h is None else one.stopped_h


def tuning(search: Search) -> Search:
    """The search that chooses among points on seeds of its own, where `tune` says so."""
    return replace(search, trials=search.tune, tune=0, compare=False, seed=search.seed + TUNE_SEED)


def play(
    job: Job, search: Search, work: Path, fleet: Any = None, tell: Tell | None = None, at: Sequence[Point] = (),
    *, told: bool = True,
) -> list[Trial]:  # fmt: skip
    """All trials of the points (or of those `at`, none dropped), by point and number; `told` as in `choose`.

    Cost: that of the runs; a killed search goes on in the same `work` folder.
    """
    say = tell or (lambda _: None)
    order = points(search)
    kept = list(at or order)
    found: list[Trial] = []
    with _opened(work, job, search, fleet) as folder:
        if search.rungs_h and not at:
            kept, found = _climbed(folder, job, search, kept, fleet, say, told)
        for number in range(search.trials):
            for point in kept:
                say(f"{point.name}, trial {number + 1} of {search.trials}")
                found.append(_trial(folder, job, search, point, number, fleet))
            if search.halving and not at and number % 2 == 1 and len(kept) > 1 and number + 1 < search.trials:
                kept = _better(search, kept, found, 0.5)
    return sorted(found, key=lambda one: (order.index(one.point), one.number))


def ranked(found: Sequence[Trial], kept: Sequence[Point], search: Search, hours: float | None = None) -> list[Point]:
    """Points from the best: by median seconds to the target, then by median metric (see `worth`), then in their order.

    `hours`: by what was known at that hour of virtual time.
    """
    worths = {point: worth(search, [one for one in found if one.point == point], hours) for point in kept}
    return sorted(kept, key=lambda point: (*worths[point], kept.index(point)))


def _better(
    search: Search, kept: Sequence[Point], found: Sequence[Trial], share: float, hours: float | None = None
) -> list[Point]:
    """The better `share` of the points, at least one, in their order."""
    best = ranked(found, kept, search, hours)[: max(1, ceil(round(share * len(kept), 9)))]
    return sorted(best, key=list(kept).index)


def _climbed(
    folder: RunFolder, job: Job, search: Search, kept: list[Point], fleet: Any, say: Tell, told: bool
) -> tuple[list[Point], list[Trial]]:
    """Successive halving on virtual time: (points to be played whole, trials of the others as far as they came)."""
    dropped: list[Trial] = []
    for hours in search.rungs_h:
        if len(kept) < 2:
            break
        seen: list[Trial] = []
        for number in range(search.trials):
            for point in kept:
                say(f"{point.name}, trial {number + 1} of {search.trials}, up to {hours:g} h")
                rows = _upto(folder, f"{point.name}/{number}", job_of(job, search, point, number, fleet), hours)
                seen.append(of_part(search, point, number, _place(folder, point, number), rows, hours))
        better = _better(search, kept, seen, search.keep, hours)
        if len(better) == 1 and not told:
            return [], dropped + seen
        dropped += [one for one in seen if one.point not in better]
        kept = better
    return kept, dropped


class _Hour(Exception):
    """A run came to the hour at which it was to stop."""


def _upto(folder: RunFolder, name: str, job: Job, hours: float) -> list[Mapping[str, Any]]:
    """Rows of the run `arms/name`, which goes on up to an hour of virtual time, or to its end where that is before.

    It is stopped as a kill would, and goes on, later, from its last snapshot, to the same bits.
    """
    place = folder.path / "arms" / name

    def stop(row: Mapping[str, Any]) -> None:
        if row["virtual_s"] > 3600.0 * hours:
            raise _Hour

    def rows() -> list[Mapping[str, Any]]:
        return read_lines(place / "rounds.jsonl")

    there = rows()
    if not (place / "summary.json").exists() and not (there and there[-1]["virtual_s"] > 3600.0 * hours):
        with suppress(_Hour):
            run_arm(folder, name, replace(job, callbacks=(*job.callbacks, stop)), False)
    return rows()


def _place(folder: RunFolder, point: Point, number: int) -> Path:
    return folder.path / "arms" / f"{point.name}/{number}"


def _trial(folder: RunFolder, job: Job, search: Search, point: Point, number: int, fleet: Any) -> Trial:
    made = job_of(job, search, point, number, fleet)
    if not search.train:
        return of_row(point, number, system_row(made, search.hours))
    result = run_arm(folder, f"{point.name}/{number}", made, False)
    return of_run(search, point, number, _place(folder, point, number), result.rounds, {
        **result.summary, "final": result.final,
    })  # fmt: skip


def central(job: Job, search: Search, work: Path, fleet: Any = None) -> tuple[float, Any]:
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
    with _opened(work, job, search, fleet) as folder:
        result = run_arm(folder, "central", whole, False)
    values = [row[search.metric] for row in result.rounds if search.metric in row]
    if not values:
        raise UsageError(f"the job reports no {search.metric!r}: name one of {', '.join(result.final)} as the metric.")
    return (min if lower_is_better(search.metric) else max)(values), result.model


def _opened(work: Path, job: Job, search: Search, fleet: Any) -> RunFolder:
    """The work folder, made or gone on with; one of another search, job, data or devices is refused."""
    told = told_of(job, search, fleet)
    if not (work / "run.json").exists():
        folder = RunFolder.create_at(work)
        folder.write_json(FILE, told)
        return folder
    refuse(work, told)
    return RunFolder.open(work)
