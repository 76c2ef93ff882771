"""An outstanding `Run`: who was asked, who will answer in time, and when the gather is over.

Resolved from costs before any value is computed, so clients whose work would be thrown away are never trained.
A gather without a deadline that lacks replies is over when the slowest client asked would have replied, those that
dropped out included: who waits cannot know that a reply will never come.
Invariant: everything here is a pure function of (run, population, seed, time of asking).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.effects import Run
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Stack
from fieldfare.core.params import Layout
from fieldfare.core.work import Work
from fieldfare.sim.population import Population, cohort_key

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_NOTHING = Layout((), ())


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """A resolved `Run` on devices.

    `clients` int64 `[n]`, ascending: those whose replies count; `seconds` `[n]` each one's task time; `due` when the
    gather is over; `missing` `{reason: ids}`; `bytes_down` to all asked, `bytes_up` from all who answer, late or not;
    `own` when a node asked its own device.
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


def resolve(
    node: str, run: Run, now: float, population: Population, works: Mapping[str, Work], seed: int, own: int | None
) -> Ask:
    """Draw the cohort, cost it, and settle the quorum."""
    clients = asked_clients(run, population, works, seed, own)
    n, need = len(clients), run.quorum.need
    if n == 0:
        nothing = np.empty(0, np.int64)
        return Ask(node, run, now, now, nothing, np.empty(0), {}, 0.0, 0.0, 0.0, 0)
    missing: dict[str, I64] = {}
    alive = population.fleet.survivors(clients, seed, cohort_key(run))
    seconds, down, up, flops = timings(run, clients, population, works[run.work])
    order = np.lexsort((clients, seconds))
    if alive is not None and not alive.all():
        missing["drop-out"] = np.sort(clients[~alive])
        order = order[alive[order]]
    deadline = run.quorum.deadline_s
    count = len(order) if deadline is None else int(np.searchsorted(seconds[order], deadline, side="right"))
    count = count if need is None else min(count, need)
    order, rest = order[:count], order[count:]
    if len(rest):
        missing["late"] = np.sort(clients[rest])
    if count == (n if need is None else need):
        duration = float(seconds[order[-1]])
    else:
        duration = float(seconds.max()) if deadline is None else deadline
    sent = up if alive is None else up[alive]
    chosen = order[np.argsort(clients[order], kind="stable")]
    return Ask(
        node, run, now, now + duration, clients[chosen], seconds[chosen], missing,
        float(down.sum()), float(sent.sum()), float(flops[chosen].sum()), n, own is not None,
    )  # fmt: skip


def asked_clients(run: Run, population: Population, works: Mapping[str, Work], seed: int, own: int | None) -> I64:
    """The devices a `Run` asks, `[n]` in the order drawn; a `Run` that cannot be answered is refused."""
    if run.work not in works:
        raise UsageError(f"no work is called {run.work!r}: this job binds {', '.join(works) or 'none'}.")
    clients = population.draw(run if own is None else replace(run, on=np.array([own])), seed)
    n, need = len(clients), run.quorum.need
    if need is not None and need > n:
        raise UsageError(f"Quorum(need={need}) can never be met by {n} clients: use need <= {n}.")
    _check_stacks(run, n if need is None else need)
    if run.quorum.late == "next":
        raise UsageError("Quorum(late='next') is not offered by this driver yet: use late='drop'.")
    return clients


def _check_stacks(run: Run, replies: int) -> None:
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


def client_keys(ask: Ask, seed: int) -> NDArray[np.uint64]:
    """A random stream per client: (seed, key, client); for a node's own device (seed, key), so that it can move."""
    key = ("client", *cohort_key(ask.run))
    return rng.keys(seed, key, np.zeros_like(ask.clients) if ask.own else ask.clients)


def levels(run: Run, clients: I64) -> list[tuple[int, I64]]:
    """(level, positions of its clients) of a run with a view, ascending by level."""
    assert run.view is not None
    plan = run.view.plan(clients)
    return [(int(level), np.flatnonzero(plan == level)) for level in np.unique(plan)]


def timings(run: Run, clients: I64, population: Population, work: Work) -> tuple[F64, F64, F64, F64]:
    """(seconds from ask to reply, bytes down, bytes up, FLOPs) of every client, `[n]` each."""
    out = np.empty((4, len(clients)))
    if run.view is None:
        layout = run.model.layout if run.model is not None else _NOTHING
        parts = [(np.arange(len(clients)), layout)]
    else:
        parts = [(at, run.view.layout(level)) for level, at in levels(run, clients)]
    for at, layout in parts:
        cost = work.cost(population.examples[clients[at]], layout, run.config)
        out[0, at] = population.fleet.durations(clients[at], cost)
        out[1, at], out[2, at], out[3, at] = cost.bytes_down, cost.bytes_up, cost.flops
    return out[0], out[1], out[2], out[3]
