"""Who is asked, and when each of them can begin: cohorts drawn over the population's columns.

Here: samples among those who are available and not at work, and the wait for those who are not. Not here: selection
rules (`fleet.selection`) and the refilling of a stream (`stream`). Invariant: a draw depends on (seed, work, key, time,
fleet), on who is at work and, for rules that learn, on the replies accepted before; never on how the run is driven.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.effects import Run
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered
from fieldfare.core.quorum import Sample
from fieldfare.fleet.pool import Pool, Reported, draws
from fieldfare.fleet.selection import selection_of
from fieldfare.sim.at_work import NOBODY, AtWork, skipping
from fieldfare.sim.population import Population, cohort_key

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Seconds = Callable[[I64], F64]

_SCANNED = 50_000
"""Fleets up to this size are looked through whole; of larger ones candidates are tried until enough are found."""


@dataclass(slots=True, eq=False)
class Selected:
    """What the selection rules of a run have learned: their states, and how many cohorts each has drawn."""

    states: dict[str, Any] = field(default_factory=dict[str, Any])
    rounds: dict[str, int] = field(default_factory=dict[str, int])

    def choose(self, by: Any, run: Run, count: int, population: Population, ids: I64, seconds: Seconds,
               now: float, seed: int, purpose: tuple[str | int, ...], part: float = 1.0) -> I64:  # fmt: skip
        """`count` of the candidates `ids` by rule `by`, in its order; these are such a `part` of a cohort."""
        rule, name = selection_of(by), _name(by, run.work)
        if name not in self.states:
            self.states[name] = rule.init(population.size)
        self.rounds[name] = self.rounds.get(name, 0) + 1
        examples = population.examples[ids] if "examples" in rule.reads else None
        expected = seconds(ids) if "seconds" in rule.reads else None
        sessions = population.fleet.availability

        share = None if sessions is None else lambda t0, t1: sessions.share_between(t0, t1, ids)
        pool = Pool(ids, examples, expected, now, self._round(run, name), share, part)
        draw = draws(seed, *purpose)
        chosen, self.states[name] = rule.choose(self.states[name], count, pool, draw)
        return chosen

    def observe(self, run: Run, ids: I64, seconds: F64, event: Gathered, population: Population, now: float) -> None:
        """Tell the rule that drew the cohort of `run` how those asked, `ids` with their task `seconds`, did.

        Of a client that replied twice (neighbours in `ids`, the later reply last) it is told of the later.
        """
        name = _name(getattr(run.on, "by", "uniform"), run.work)
        if name not in self.states:
            return
        rule = selection_of(run.on.by)  # type: ignore[union-attr]
        last = np.append(ids[1:] != ids[:-1], True) if len(ids) else np.empty(0, np.bool_)
        ids, seconds = ids[last], seconds[last]
        ok = np.isin(ids, event.clients)
        loss = np.full(len(ids), np.nan)
        told = event.metrics.get("loss")
        if told is not None and len(event.clients):
            order = np.argsort(event.clients, kind="stable")
            at = np.searchsorted(event.clients, ids[ok], side="right", sorter=order) - 1
            loss[ok] = told[order[at]]
        reported = Reported(ids, loss, seconds, population.examples[ids], ok, now, self._round(run, name))
        self.states[name] = rule.observe(self.states[name], reported)

    def _round(self, run: Run, name: str) -> int:
        """The round, or version, that `run` says it is for; else how many cohorts the rule has drawn."""
        return int(run.config.get("round", self.rounds[name]))

    def saved(self) -> dict[str, Any]:
        return {"states": self.states, "rounds": self.rounds}

    def load(self, saved: Mapping[str, Any]) -> None:
        self.rounds = dict(saved["rounds"])
        self.states = {
            name: {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in state.items()}
            if isinstance(state, Mapping) else state
            for name, state in saved["states"].items()
        }  # fmt: skip


def _name(by: Any, work: str) -> str:
    return f"{work} {by!r}"


def cohort(
    run: Run, population: Population, seed: int, now: float, seconds: Seconds, selected: Selected,
    busy: AtWork = NOBODY,
) -> tuple[I64, F64]:  # fmt: skip
    """(ids `[n]` in the order drawn, when each begins `[n]`) of a `Run` on devices; inf for those who never can.

    A `Sample` takes those who are available now and not at work, as many as it wants; if they are too few, also the
    next who come. Who is named, and is at work, begins when that is over.
    """
    on, sessions = run.on, population.fleet.availability
    if not isinstance(on, Sample):
        ids = population.named(run)
        return ids, _begin(population, now, ids, busy)
    purpose = purpose_of(run)
    among = population.flagged(on)
    taken = busy.among(among)
    if sessions is None and on.by == "uniform":
        free = (population.size if among is None else len(among)) - len(taken)
        drawn = rng.choose(seed, purpose, min(on.count, free), free) if free else np.empty(0, np.int64)
        there = skipping(taken, drawn)
        there = there if among is None else among[there]
    elif on.by == "uniform":
        there = _available(population, now, among, on.count, seed, purpose, busy)
    else:
        pool = (among if among is not None else np.arange(population.size)) if sessions is None else (
            sessions.available(now) if among is None else among[sessions.at(now, among)]
        )  # fmt: skip
        there = pool = pool[busy.free(pool)] if len(taken) else pool
        if len(pool):
            count = min(on.count, len(pool))
            there = selected.choose(on.by, run, count, population, pool, seconds, now, seed, purpose)
    start = np.full(len(there), now)
    if len(there) < on.count:
        rest = np.setdiff1d(np.arange(population.size) if among is None else among, there, assume_unique=True)
        begin = _begin(population, now, rest, busy)
        order = np.lexsort((rest, begin))[: on.count - len(there)]
        order = order[np.isfinite(begin[order])]
        there, start = np.concatenate([there, rest[order]]), np.concatenate([start, begin[order]])
        if not len(there):
            raise UsageError(
                f"Sample({on.count}): no device of this fleet is available after {now:.0f} s: its trace is over; use "
                "a trace that repeats (period_s), or fewer rounds."
            )
    return there, start


def _begin(population: Population, now: float, ids: I64, busy: AtWork) -> F64:
    """From when on each of `ids` `[n]` is there and not at work."""
    sessions, free = population.fleet.availability, busy.begin(now, ids)
    return free if sessions is None else np.maximum(sessions.session(free, ids)[0], free)


def evaluates(run: Run) -> bool:
    """Whether `run` measures a model: such a Run leaves who is at work as it is, and does not wait for them."""
    return cohort_key(run)[:1] == ("evaluate",)


def purpose_of(run: Run) -> tuple[str | int, ...]:
    """The purpose of the random stream that draws the cohort of `run`.

    Evaluations of one version (key `("evaluate", ...)`) ask the same clients, whatever each measures there.
    """
    key = cohort_key(run)
    return ("cohort", "evaluate" if evaluates(run) else run.work, *key)


def _available(
    population: Population, now: float, among: I64 | None, count: int, seed: int, purpose: tuple[str | int, ...],
    busy: AtWork,
) -> I64:  # fmt: skip
    """Up to `count` of those available now and not `busy`, all alike; tries some before it looks at a large fleet."""
    sessions = population.fleet.availability
    assert sessions is not None
    n = population.size if among is None else len(among)
    if n > _SCANNED:
        key, found, tried = np.array([rng.derive(seed, *purpose)], np.uint64), np.empty(0, np.int64), 0
        while tried < 64 * count + 4096:
            words = (rng.bits(key, np.arange(tried, tried + 8 * count + 64)) % np.uint64(n)).astype(np.int64)
            tried += len(words)
            words = words if among is None else among[words]
            words = words[sessions.at(now, words)]
            found = np.concatenate([found, words[busy.free(words)]])
            first = np.unique(found, return_index=True)[1]
            first.sort()
            found = found[first]
            if len(found) >= count:
                return found[:count]
    ids = sessions.available(now) if among is None else among[sessions.at(now, among)]
    ids = ids[busy.free(ids)] if len(busy) else ids
    return ids[rng.choose(seed, purpose, min(count, len(ids)), len(ids))] if len(ids) else ids
