"""Levels that a job plans for itself: by what its devices have, proved before the first round, again as they change.

Here: the view that asks for it (`Family.fitting`), the plan bound to a fleet, what a `Run` becomes at its moment. Not
here: the plan (`fit`), the proof (`dry`), who is drawn (`sim`). Invariant: a level depends on (plan, device, time of
the ask) alone, so a run that goes on from a snapshot, or with other workers, gives the same levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.effects import Run
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Local
from fieldfare.core.params import Params
from fieldfare.core.quorum import Everyone, Sample
from fieldfare.work.net import Training
from fieldfare.work.submodel.dry import Dry, proofs
from fieldfare.work.submodel.family import Family
from fieldfare.work.submodel.fit import Planned, barred, plan, replan
from fieldfare.work.submodel.rules import Level, SubModels

I64 = NDArray[np.int64]

_NAME = "fits@"
_TOLD = 100


@dataclass(frozen=True, eq=False)
class Fitting:
    """A view (`core.params.RoundView`) whose levels the job plans from its fleet; made by `Family.fitting`.

    `view`: which channels a level keeps. `deadline_s`, `prove`: see there.
    """

    view: SubModels
    deadline_s: float | None = None
    prove: bool = True

    def __post_init__(self) -> None:
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise UsageError(f"fitting(deadline_s={self.deadline_s}): a deadline is a number of seconds above zero.")

    @property
    def rule(self) -> Any:
        return self.view.rule

    @property
    def levels(self) -> tuple[Level, ...]:
        return self.view.levels

    def at(self, round_: int, model: Params | None = None) -> Fitting:
        """The view of round `round_` (from 1) on `model`."""
        return replace(self, view=self.view.at(round_, model))

    def plan(self, clients: I64) -> NoReturn:
        raise UsageError(
            "family.fitting() plans levels from the simulated fleet of a Job: elsewhere use plan(...).view(), or "
            "family.view(assign=...)."
        )

    def index(self, level: int) -> I64:
        return self.view.index(level)

    def layout(self, level: int) -> Any:
        return self.view.layout(level)

    def describe(self) -> Mapping[str, Any]:
        """Plain JSON: the levels, the rule, and how they are planned."""
        levels = [level.name for level in self.levels]
        return {
            "is": "Fitting",
            "levels": levels,
            "rule": repr(self.rule),
            "deadline_s": self.deadline_s,
            "prove": self.prove,
        }


@dataclass(frozen=True, eq=False)
class Fitted:
    """A `Fitting` bound to the fleet of a job.

    `first`: the plan of the beginning, with what dry runs found; `runs`: these. `moments`: from when on memory (or,
    under a deadline, a table of speeds) is another; `moving`: whether speeds are others at any time.
    """

    first: Planned
    fleet: Any
    moments: tuple[float, ...]
    moving: bool
    runs: tuple[Dry, ...] = ()
    last: dict[float, Planned] = field(default_factory=dict[float, Planned])

    def since(self, now: float) -> float:
        """From when on the plan of `now` holds."""
        return now if self.moving else max(at for at in self.moments if at <= max(now, 0.0))

    def at(self, now: float) -> Planned:
        """The plan of that time; O(levels x devices) where it is another than that asked for last."""
        at = self.since(now)
        if at not in self.last:
            self.last.clear()
            self.last[at] = replan(self.first, self.fleet, at)
        return self.last[at]

    def seen(self, run: Run, now: float) -> Run:
        """`run` as it is asked at `now`: with the levels of that time, and without devices that fit none.

        A sample is as large as asked, or of all who fit. Errors: `UsageError` where nobody does.
        """
        if not isinstance(run.view, Fitting):
            return run
        planned = self.at(now)
        if not planned.fits.any():
            raise UsageError(f"at {now:.0f} s no device fits any level: {planned.why(0)}")
        view = run.view.view
        run = replace(run, view=view.assigned(planned.given))
        if planned.fits.all() or isinstance(run.on, tuple):
            return run
        if not isinstance(run.on, Sample):
            ids = np.arange(len(planned.assign)) if isinstance(run.on, Everyone) else np.asarray(run.on, np.int64)
            ids = ids[planned.fits[ids]]
            return replace(run, on=ids, quorum=_of(run.quorum, len(ids)))
        name = f"{_NAME}{float(self.since(now))!r}" + ("" if run.on.where is None else f" {run.on.where}")
        ids = self.ids(name)
        assert ids is not None
        if not len(ids):
            raise UsageError(
                f"at {now:.0f} s none of the devices that are {run.on.where!r} fits any level: {planned.told(1)[0]}"
            )
        count = min(run.on.count, len(ids))
        late = run.quorum.late == "next"
        return replace(
            run, on=replace(run.on, count=count, where=name), quorum=run.quorum if late else _of(run.quorum, count)
        )

    def ids(self, name: str) -> I64 | None:
        """The devices that a sample of `seen` may take, by the name it gave them, ascending; None for other names."""
        if not name.startswith(_NAME):
            return None
        at, _, where = name.removeprefix(_NAME).partition(" ")
        fits = self.at(float(at)).fits
        if where and where not in self.fleet.flags:
            known = ", ".join(self.fleet.flags) or "none"
            raise UsageError(f"Sample(where={where!r}): the fleet has no such column (it has: {known}).")
        return np.flatnonzero(fits & self.fleet.flags[where] if where else fits)

    @property
    def steady(self) -> bool:
        """Whether every device has the same level all the time."""
        same = (replan(self.first, self.fleet, at).assign for at in self.moments[1:])
        return not self.moving and all(np.array_equal(one, self.first.assign) for one in same)

    def told(self) -> list[str]:
        """Who is left out at the beginning, and why, in a few lines."""
        return self.first.told()

    def facts(self) -> dict[str, Any]:
        """Plain JSON for the record: levels, what each takes, dry runs, who is left out."""
        p, outside = self.first, self.first.outside
        return {
            "levels": {
                need.level.name: {"devices": p.counts[need.level.name], "memory_bytes": need.cost.memory_bytes}
                for need in p.needs
            },
            "deadline_s": p.deadline_s, "outside": len(outside), "outside_ids": outside[:_TOLD].tolist(),
            "why": p.told(), "changes_s": list(self.moments[1:_TOLD]),
            "dry_runs": [
                {"level": one.level.name, "budget_bytes": one.budget_bytes, "ok": one.ok, "way": one.way,
                 "used_bytes": one.used_bytes} for one in self.runs
            ],
        }  # fmt: skip


def _of(quorum: Any, count: int) -> Any:
    """A quorum that `count` clients can meet."""
    return quorum if quorum.need is None or quorum.need <= count else replace(quorum, need=max(count, 1))


def fitted(
    asked: Fitting, net: Any, fleet: Any, training: Training, examples: Sequence[int] | I64, example: Any,
    local: Sequence[Local] = (),
) -> Fitted:  # fmt: skip
    """`asked` for the devices of `fleet`, of `examples` `[n]` each: planned, and proved where it says so.

    `local`: how the algorithm trains a level; that step is planned and proved.

    Errors: `UsageError` where at some time nobody fits any level, or the job's model is another than the view's.
    """
    if getattr(net, "layout", None) != asked.view.axes.layout or not hasattr(net, "of"):
        raise UsageError("family.fitting() is the view of another model: give Job(model=family).")
    family = Family(getattr(net, "net", net), asked.levels)
    table = getattr(fleet.drift, "times_s", None)
    times = {0.0, *(() if fleet.memory is None else np.asarray(fleet.memory.times_s).tolist())}
    if asked.deadline_s is not None and table is not None:
        times |= set(np.asarray(table).tolist())
    moments = tuple(sorted(times))
    moving = asked.deadline_s is not None and fleet.drift is not None and table is None
    sizes = np.asarray(examples, np.int64)
    first = plan(family, fleet, training, examples=sizes, deadline_s=asked.deadline_s, n=len(sizes), local=local)
    plans = [first, *(replan(first, fleet, at) for at in moments[1:])]
    runs: tuple[Dry, ...] = ()
    if asked.prove and any(one.fits.any() for one in plans):
        bars, runs = proofs(plans, every=moving, example=example)
        plans = [barred(one, bars) for one in plans] if bars else plans
    for at, one in zip(moments, plans, strict=True):
        if not one.fits.any():
            failed = [run for run in runs if not run.ok]
            told = f"; dry runs failed: {failed[-1].level.name} in {failed[-1].budget_bytes} bytes" if failed else ""
            raise UsageError(f"from {at:.0f} s on no device of this fleet fits any level. {one.why(0)}{told}")
    return Fitted(plans[0], fleet, moments, moving, runs)
