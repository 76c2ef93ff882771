"""A node's `Run` on itself: one task of one device, resolved number by number instead of column by column.

Nothing travels, since the model is where it is trained, and nothing has to start: the task is computing alone. Not
here: tasks of cohorts (`asks`). Invariant: what is resolved is a function of (run, device, population, seed, time).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.effects import Run
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered
from fieldfare.core.params import Layout
from fieldfare.core.work import Cost, Work
from fieldfare.fleet.drift import computing_one
from fieldfare.fleet.fleet import Column
from fieldfare.fleet.tasks import DROP_OUT, INTERRUPTED, LATE, OK, OUTCOMES, REFUSED, TIMEOUT, Phases, noise_of
from fieldfare.sim.asks import Ask, Begun, check_stacks, client_keys, levels
from fieldfare.sim.budget import steps_within
from fieldfare.sim.observe import Worked
from fieldfare.sim.population import Population, cohort_key

I64 = NDArray[np.int64]

Known = dict[Any, tuple[float, Layout]]
"""FLOPs and steps of tasks met before."""
_MOST = 4096
_NOBODY, _NONE, _FIRST = np.empty(0, np.int64), np.zeros(1), np.zeros(1, np.int64)
_EMPTY = Layout((), ())
for _array in (_NOBODY, _NONE, _FIRST):
    _array.flags.writeable = False


def begin_own(
    run: Run, now: float, population: Population, works: Mapping[str, Work], seed: int, device: int,
    known: Known | None = None,
) -> Begun:  # fmt: skip
    """The one task of a `Run` on `device` by its own node, if nobody waited for it; `known` saves time alone."""
    if run.work not in works:
        raise UsageError(f"no work is called {run.work!r}: this job binds {', '.join(works) or 'none'}.")
    if run.quorum.late == "next":
        raise UsageError("Quorum(late='next') is for samples of devices: use late='drop' here.")
    if run.quorum.need is not None and run.quorum.need > 1:
        raise UsageError(f"Quorum(need={run.quorum.need}) can never be met by 1 clients: use need <= 1.")
    if not 0 <= device < population.size:
        raise UsageError(f"a Run asks device {device}: the population has 0..{population.size - 1}.")
    check_stacks(run, 1)
    fleet, work, one = population.fleet, works[run.work], np.array([device])
    start, until = now, np.inf
    if fleet.availability is not None:
        begin, end = fleet.availability.session(now, one)
        start, until = max(float(begin[0]), now), float(end[0])
        last = np.inf if run.quorum.deadline_s is None else now + run.quorum.deadline_s
        if not start < last:
            return _never(one)
    flops, steps = _flops(run, one, population, work, known)
    compute = flops / _of(fleet.flops_per_s, device)
    if fleet.noise:
        alone = Ask("", run, now, now, one, _NONE, {}, 0.0, 0.0, 0.0, 1, True)
        noise = noise_of(fleet, rng.mix(client_keys(alone, seed)))
        compute *= 1.0 if noise is None else float(noise[0])
    if fleet.drift is not None:
        compute = computing_one(fleet.drift, device, start, compute)
    end, outcome = start + compute, OK
    if run.quorum.timeout_s is not None and compute > run.quorum.timeout_s:
        end, outcome = start + run.quorum.timeout_s, TIMEOUT
    if until < end:
        end, outcome = until, INTERRUPTED
    seconds = compute if outcome == OK and start == now else end - now
    if outcome == OK and fleet.drop_out:
        alive = fleet.survivors(one, seed, cohort_key(run))
        outcome = OK if alive is None or alive[0] else DROP_OUT
    took = np.array([compute])
    return Begun(
        one, np.array([start]), np.array([seconds]), np.array([outcome == OK]), np.array([outcome], np.int8),
        Phases(_NONE, _NONE, took, _NONE, took),         Cost(np.array([flops]), _NONE, _NONE, _NONE), steps, _NOBODY,
    )  # fmt: skip


def own_ask(node: str, run: Run, now: float, begun: Begun, number: int) -> Ask:
    """The quorum of a node's `Run` on itself, settled: `begun` counts if it is over in time."""
    deadline = run.quorum.deadline_s
    if not len(begun.clients):
        due = now if deadline is None else now + deadline
        missing = {"unavailable": begun.unavailable}
        return Ask(node, run, now, due, _NOBODY, np.empty(0), missing, 0.0, 0.0, 0.0, 0, True)
    seconds, outcome = float(begun.seconds[0]), int(begun.outcome[0])
    if outcome == OK and (deadline is None or seconds <= deadline):
        flops = float(begun.cost.flops[0])  # type: ignore[index]
        return Ask(
            node, run, now, now + seconds, begun.clients, begun.seconds, {}, 0.0, 0.0, flops, 1, True, begun, _FIRST,
            number,
        )  # fmt: skip
    missing = {"late" if outcome == OK else OUTCOMES[outcome]: begun.clients}
    due = now + (seconds if deadline is None else deadline)
    return Ask(
        node, run, now, due, _NOBODY, np.empty(0), missing, 0.0, 0.0, 0.0, 1, True, begun, _NOBODY, number
    )  # fmt: skip


def worked(ask: Ask, event: Gathered, population: Population, work: Work, known: Known | None = None) -> Worked | None:
    """What is told of a node's `Run` on itself that is over; None of one that never began."""
    begun = ask.begun
    if begun is None:
        return None
    outcome = int(begun.outcome[0])
    steps = _steps(ask.run, begun.clients, population, work, known) if begun.steps is None else int(begun.steps[0])
    if outcome == OK and not len(event.clients):
        outcome = LATE if "late" in event.missing else REFUSED
    begun_s, ended_s = float(begun.start[0]), ask.issued + float(begun.seconds[0])
    return Worked(ask.node, begun_s, ended_s, steps, outcome, ask.run)


def _never(one: I64) -> Begun:
    """No task: the device will not be there again, or not in time."""
    nobody, none = np.empty(0, np.int64), np.empty(0)
    parts = Phases(none, none, none, none, none)
    good, outcome = np.empty(0, np.bool_), np.empty(0, np.int8)
    return Begun(nobody, none, none, good, outcome, parts, Cost(none, none, none, none), None, one)


def _flops(
    run: Run, one: I64, population: Population, work: Work, known: Known | None
) -> tuple[float, I64 | None]:  # fmt: skip
    """(FLOPs of the task, its steps `[1]` where a budget limits them)."""
    layout = _EMPTY if run.model is None else run.model.layout
    if run.view is not None:
        layout = run.view.layout(levels(run, one)[0][0])
    key = None if known is None else _key("flops", run, one, work)
    if key is not None and known is not None and key in known and known[key][1] is layout:
        return known[key][0], None
    examples = population.examples[one]
    cost = work.cost(examples, layout, run.config)
    limit = steps_within(run.config, population.fleet, one, work, examples, cost, travels=False)
    if limit is not None:
        return float(limit[1].flops[0]), limit[0]  # type: ignore[index]
    flops = float(cost.flops[0] if isinstance(cost.flops, np.ndarray) else cost.flops)
    if key is not None and known is not None:
        _keep(known, key, flops, layout)
    return flops, None


def _steps(run: Run, one: I64, population: Population, work: Work, known: Known | None) -> int:
    """Local steps that nothing limits; 0 where the work counts none."""
    counted: Any = getattr(work, "steps", None)
    if counted is None:
        return 0
    key = None if known is None else _key("steps", run, one, work)
    if key is not None and known is not None and key in known:
        return int(known[key][0])
    steps = int(counted(population.examples[one], run.config)[0])
    if key is not None and known is not None:
        _keep(known, key, float(steps), _EMPTY)
    return steps


def _key(what: str, run: Run, one: I64, work: Work) -> Any:
    """What a task's cost depends on, for a work that says which of its asks are alike, or cost alike; else None."""
    alike: Any = getattr(work, "costs_alike", None) or getattr(work, "alike", None)
    if alike is None or any(name.startswith("budget_s") for name in run.config):
        return None
    return what, run.work, int(one[0]), alike(run.config)


def _keep(known: Known, key: Any, number: float, layout: Layout) -> None:
    if len(known) >= _MOST:
        known.clear()
    known[key] = number, layout


def _of(column: Column, device: int) -> float:
    return float(column[device]) if isinstance(column, np.ndarray) else float(column)
