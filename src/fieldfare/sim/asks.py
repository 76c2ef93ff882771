"""An outstanding `Run`: who was asked, who will answer in time, and when the gather is over.

Resolved from costs before any value is computed, so clients whose work would be thrown away are never trained.
A gather without a deadline that lacks replies is over when the last client asked would have replied, those that
dropped out included: who waits cannot know that a reply will never come. A session's end and a time-out are known
when they happen. Who was away, or at work, and has not begun when the gather is over is not asked any more. Not here:
gathers whose late replies count in the next (`stream`). Invariant: everything here is a pure function of (run,
population, seed, time of asking, who is at work, what selection has learned).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.effects import Run
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Stack
from fieldfare.core.params import Layout, Params
from fieldfare.core.quorum import Sample
from fieldfare.core.work import Cost, Work
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.tasks import (
    DROP_OUT,
    INTERRUPTED,
    LATE,
    OK,
    TIMEOUT,
    Phases,
    Tasks,
    account,
    ends,
    noise_of,
    phases,
)
from fieldfare.sim.at_work import NOBODY, AtWork
from fieldfare.sim.budget import steps_within
from fieldfare.sim.draw import Selected, cohort, evaluates
from fieldfare.sim.population import Population, cohort_key

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_NOTHING = Layout((), ())


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """The tasks of a `Run`, `[n]` each, in the order drawn, if nobody waited for them.

    `start` absolute seconds; `seconds` from the ask to the end of each (whole or cut short); `good`: those that end
    with a reply; `outcome` of `fleet.tasks`; `steps` `[n]` where a budget limits them; `unavailable` ids that cannot
    begin before the gather is over.
    """

    clients: I64
    start: F64
    seconds: F64
    good: NDArray[np.bool_]
    outcome: NDArray[np.int8]
    parts: Phases
    cost: Cost
    steps: I64 | None
    unavailable: I64

    @property
    def cut(self) -> bool:
        """Whether a task was interrupted or timed out."""
        return bool(((self.outcome == INTERRUPTED) | (self.outcome == TIMEOUT)).any())


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """A resolved `Run` on devices.

    `clients` int64 `[n]`, ascending: those whose replies count; `seconds` `[n]` from the ask to each one's reply; `due`
    when the gather is over; `missing` `{reason: ids}`; `bytes_down` to all asked, `bytes_up` from all who answer, late
    or not; `own` when a node asked its own device; `begun` all tasks, and `place` `[n]` where the clients are in it;
    `number` how many asks came before.
    """

    node: str
    run: Run
    issued: float
    due: float
    clients: I64
    seconds: F64
    missing: Mapping[str, I64]
    bytes_down: float
    bytes_up: float
    flops: float
    asked: int
    own: bool = False
    begun: Begun | None = None
    place: I64 | None = None
    number: int = 0

    @property
    def steps(self) -> I64 | None:
        """The most steps of each client `[n]`, where a budget limits them."""
        return None if self.begun is None or self.begun.steps is None else self.begun.steps[self.place]

    @property
    def spent(self) -> tuple[I64, F64]:
        """(who was asked, the seconds of each one's task, without those it was waited for), in the order drawn."""
        if self.begun is None:
            return self.clients, self.seconds
        return self.begun.clients, self.begun.seconds - (self.begun.start - self.issued)

    def tasks(self, fleet: Fleet) -> Tasks | None:
        """All tasks of the ask with their outcomes and what they took; None where nobody was asked."""
        if self.begun is None or self.place is None:
            return None
        b, outcome = self.begun, self.begun.outcome.copy()
        late = b.good.copy()
        late[self.place] = False
        outcome[late] = LATE
        base = np.full(len(b.clients), self.number)
        end = self.issued + b.seconds
        return account(fleet, b.clients, b.start, end, outcome, base, b.parts, b.cost)


def resolve(
    node: str, run: Run, now: float, population: Population, works: Mapping[str, Work], seed: int, own: int | None,
    selected: Selected | None = None, number: int = 0, busy: AtWork = NOBODY,
) -> Ask:  # fmt: skip
    """Draw the cohort among those who are not `busy`, cost it, and settle the quorum."""
    begun = begin(run, now, population, works, seed, own, selected or Selected(), busy=busy)
    clients, seconds, good = begun.clients, begun.seconds, begun.good
    n, need, deadline = len(clients), run.quorum.need, run.quorum.deadline_s
    missing: dict[str, I64] = {"unavailable": begun.unavailable} if len(begun.unavailable) else {}
    if n == 0:
        nothing = np.empty(0, np.int64)
        due = now if deadline is None or not missing else now + deadline
        return Ask(node, run, now, due, nothing, np.empty(0), missing, 0.0, 0.0, 0.0, 0)
    order = np.lexsort((clients, seconds))
    if not good.all():
        for code, reason in ((DROP_OUT, "drop-out"), (INTERRUPTED, "interrupted"), (TIMEOUT, "timeout")):
            those = begun.outcome == code
            if those.any():
                missing[reason] = np.sort(clients[those])
        order = order[good[order]]
    count = len(order) if deadline is None else int(np.searchsorted(seconds[order], deadline, side="right"))
    count = count if need is None else min(count, need)
    order, rest = order[:count], order[count:]
    if len(rest):
        missing["late"] = np.sort(clients[rest])
    if count == (n if need is None else need):
        duration = float(seconds[order[-1]])
    else:
        duration = float(seconds.max()) if deadline is None else deadline
    place = order[np.argsort(clients[order], kind="stable")]
    cost: Any = begun.cost
    down, up = cost.bytes_down, cost.bytes_up
    if begun.cut:
        end = now + seconds
        told = account(population.fleet, clients, begun.start, end, begun.outcome, clients, begun.parts, cost)
        down, up = told.bytes_down, told.bytes_up
    sent = up if good.all() else up[begun.outcome != DROP_OUT]
    return Ask(
        node, run, now, now + duration, clients[place], seconds[place], missing, float(down.sum()), float(sent.sum()),
        float(cost.flops[place].sum()), n, own is not None, begun, place, number,
    )  # fmt: skip


def begin(
    run: Run, now: float, population: Population, works: Mapping[str, Work], seed: int, own: int | None,
    selected: Selected, streaming: bool = False, busy: AtWork = NOBODY,
) -> Begun:  # fmt: skip
    """The tasks of a `Run` as they would go: who, from when, how long, how each ends."""
    if own is not None:
        from fieldfare.sim.own import begin_own

        return begin_own(run, now, population, works, seed, own)
    if run.work not in works:
        raise UsageError(f"no work is called {run.work!r}: this job binds {', '.join(works) or 'none'}.")
    if run.quorum.late == "next" and not streaming:
        raise UsageError("Quorum(late='next') is for samples of devices: use late='drop' here.")
    work, fleet = works[run.work], population.fleet

    def expected(ids: I64) -> F64:
        return fleet.durations(ids, costs(run, ids, population, work)[0])

    whom = run if own is None else replace(run, on=np.array([own]))
    busy = NOBODY if own is not None or evaluates(run) else busy
    clients, start = cohort(whom, population, seed, now, expected, selected, busy)
    need, most = run.quorum.need, run.on.count if isinstance(run.on, Sample) else len(clients)
    if need is not None and need > most and not streaming:
        raise UsageError(f"Quorum(need={need}) can never be met by {most} clients: use need <= {most}.")
    check_stacks(run, len(clients) if need is None else need)
    unavailable, waiting = np.empty(0, np.int64), fleet.availability is not None or len(busy) > 0
    if waiting:
        last = np.inf if run.quorum.deadline_s is None else now + run.quorum.deadline_s
        there = start < last
        if not there.all():
            unavailable, clients, start = np.sort(clients[~there]), clients[there], start[there]
    cost, steps = costs(run, clients, population, work)
    noise = noise_of(fleet, rng.mix(_keys(run, clients, own is not None, seed))) if fleet.noise else None
    parts = phases(fleet, clients, cost, start, noise)
    alive = fleet.survivors(clients, seed, cohort_key(run))
    if not waiting and run.quorum.timeout_s is None:
        seconds, outcome = parts.whole, np.zeros(len(clients), np.int8)
    else:
        end, outcome = ends(fleet, clients, start, parts.whole, run.quorum.timeout_s)
        seconds = end - now
        whole = (outcome == OK) & (start == now)
        seconds[whole] = parts.whole[whole]
    if alive is not None and not alive.all():
        outcome[~alive & (outcome == OK)] = DROP_OUT
    begun = Begun(clients, start, seconds, outcome == OK, outcome, parts, cost, steps, unavailable)
    return begun if streaming or not waiting or need is None else _in_time(begun, now, need)


def _in_time(begun: Begun, now: float, need: int) -> Begun:
    """Only the tasks that begin before `need` replies are there."""
    replies = begun.seconds[begun.good]
    if len(replies) < need:
        return begun
    over = np.partition(replies, need - 1)[need - 1]
    there = (begun.start <= now) | (begun.start - now < over)
    if there.all():
        return begun
    at, c = np.flatnonzero(there), begun.cost
    flops, down, up, memory = (np.asarray(one)[at] for one in (c.flops, c.bytes_down, c.bytes_up, c.memory_bytes))
    return Begun(
        begun.clients[at], begun.start[at], begun.seconds[at], begun.good[at], begun.outcome[at], begun.parts.pick(at),
        Cost(flops, down, up, memory), None if begun.steps is None else begun.steps[at],
        np.sort(np.concatenate([begun.unavailable, begun.clients[~there]])),
    )  # fmt: skip


def at_work_after(ask: Ask, busy: AtWork) -> AtWork:
    """Who is at work once `ask` is asked, beside those who are `busy`."""
    if ask.begun is None or ask.own or evaluates(ask.run):
        return busy
    return busy.joined(ask.begun.clients, ask.issued + ask.begun.seconds)


def check_stacks(run: Run, replies: int) -> None:
    """Refuse a `Stack` of whole models ("delta", as they come) that cannot hold the replies, before any is computed."""
    fold = run.reduce.get("delta")
    if not isinstance(fold, Stack) or fold.before or run.model is None or run.view is not None or run.model.opaque:
        return
    row = 4 * run.model.size
    size = replies * row
    if size > fold.max_bytes:
        raise UsageError(
            f"Stack('delta') would hold {size} bytes, {replies} rows of {row}, more than "
            f"max_bytes={fold.max_bytes}: use a smaller cohort, or raise max_bytes."
        )


def client_keys(ask: Any, seed: int) -> NDArray[np.uint64]:
    """A random stream per client: (seed, key, client); for a node's own device (seed, key), so that it can move."""
    return _keys(ask.run, ask.clients, ask.own, seed)


def _keys(run: Run, clients: I64, own: bool, seed: int) -> NDArray[np.uint64]:
    return rng.keys(seed, ("client", *cohort_key(run)), np.zeros_like(clients) if own else clients)


def levels(run: Run, clients: I64) -> list[tuple[int, I64]]:
    """(level, positions of its clients) of a run with a view, ascending by level."""
    assert run.view is not None
    plan = run.view.plan(clients)
    return [(int(level), np.flatnonzero(plan == level)) for level in np.unique(plan)]


def _beside(model: Params | None, cost: Cost) -> Cost:
    """`cost` with what travels down beside the vector: side arrays, and the bytes of a model that is none."""
    more = 0 if model is None else model.bytes - 4 * model.size
    if not more:
        return cost
    return replace(cost, bytes_down=cost.bytes_down + more, memory_bytes=cost.memory_bytes + more)


def costs(run: Run, clients: I64, population: Population, work: Work) -> tuple[Cost, I64 | None]:
    """(cost of every client, `[n]` each; the most steps each may take, where the run gives a budget)."""
    out, steps = np.empty((4, len(clients))), None
    parts: list[tuple[Any, Layout]]
    if run.view is None:
        parts = [(slice(None), run.model.layout if run.model is not None else _NOTHING)]
    else:
        parts = [(at, run.view.layout(level)) for level, at in levels(run, clients)]
    for at, layout in parts:
        examples = population.examples[clients[at]]
        cost = _beside(run.model, work.cost(examples, layout, run.config))
        limit = steps_within(run.config, population.fleet, clients[at], work, examples, cost)
        if limit is not None:
            most, cost = limit
            steps = np.empty(len(clients), np.int64) if steps is None else steps
            steps[at] = most
        out[0, at], out[1, at], out[2, at], out[3, at] = cost.flops, cost.bytes_down, cost.bytes_up, cost.memory_bytes
    return Cost(out[0], out[1], out[2], out[3]), steps
