"""The values of a stream's gathers: tasks that end later are computed before they are due, so that stacks are full.

A gather of ten replies would make stacks of ten, and leave all workers idle while it is folded. What it lacks is
therefore computed together with tasks that will end next (their inputs are known since they began), whatever their
versions. Worker processes go on with those by themselves, hold the rows, and fold them when their gather comes. Not
here: who is at work (`stream`). Invariant: a task is computed at most once, and what a gather says does not depend on
what was computed ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.aggregate.gather import Gather
from fieldfare.core.effects import Run
from fieldfare.core.events import Gathered
from fieldfare.core.params import Layout
from fieldfare.sim.batch import Executor
from fieldfare.sim.compute import Held, Piece, Recall, Request, Segment, Share, fold_held, own
from fieldfare.sim.pool import Begun
from fieldfare.sim.stream import Stream, StreamAsk
from fieldfare.sim.table import UNLIMITED, Rows

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_ENOUGH, _EACH = 64, 16
"""Tasks that fill one stack, and each of several workers: so many are computed ahead, and no more."""
_HELD_BYTES = 512 << 20
_NOTHING = Layout((), ())


class Answer:
    """A gather of `ask` that is being filled."""

    def __init__(self, ask: StreamAsk) -> None:
        n = len(ask.clients)
        self.ask, self.factor = ask, ask.factor if (ask.factor != 1.0).any() else None
        self.gather = Gather(ask.run.reduce, max(ask.asked, n), self.factor is not None)
        self.weight, self.bad = np.zeros(n), np.zeros(n, np.bool_)
        self.metrics: dict[str, F64] = {}
        self.refused = set[int]()

    def tell(self, at: I64, held: list[Held]) -> None:
        """What the tasks at positions `at` of the ask came to, beside their rows."""
        self.weight[at], self.bad[at] = [one.weight for one in held], [one.bad for one in held]
        for name in dict.fromkeys(name for one in held for name in one.metrics):
            self._metric(name)[at] = [one.metrics.get(name, np.nan) for one in held]

    def tell_piece(self, at: I64, piece: Piece) -> None:
        """The same of the first tasks of a piece."""
        n = len(at)
        self.weight[at], self.bad[at] = piece.weight[:n], piece.refused[:n]
        for name, values in piece.metrics.items() if n else ():
            self._metric(name)[at] = values[:n]

    def tell_held(self, held: dict[int, Held]) -> None:
        """The same of those that workers have recalled, and folded unless they refused them."""
        at = [i for i, serial in enumerate(self.ask.serials.tolist()) if serial in held]
        if at:
            self.tell(np.array(at), [held.pop(int(self.ask.serials[i])) for i in at])
            self.bad[at] |= np.isin(self.ask.serials[at], list(self.refused))

    def _metric(self, name: str) -> F64:
        return self.metrics.setdefault(name, np.full(len(self.weight), np.nan))

    def finish(self) -> Gathered:
        ask, good, missing = self.ask, ~self.bad, dict(self.ask.missing)
        if self.bad.any():
            missing["refused"] = ask.clients[self.bad]
        metrics = {**self.metrics, "staleness": ask.staleness.astype(np.float64)}
        weight = self.weight[good]
        return Gathered(
            ask.run.tag, self.gather.finish(), float(weight.sum()), ask.clients[good], weight,
            {name: values[good] for name, values in metrics.items()}, missing,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Tasks:
    """Tasks that share a stack, `[n]` each; the first are those at positions `at` of an ask, the others end later."""

    at: I64
    clients: I64
    keys: NDArray[np.uint64]
    base: I64
    serials: I64
    steps: I64 | None

    def and_then(self, rows: Rows) -> Tasks:
        steps, most = self.steps, rows.parts.steps
        if steps is not None or most is not None:
            steps = np.full(len(self.base), UNLIMITED) if steps is None else steps
            steps = np.concatenate([steps, np.full(len(rows.base), UNLIMITED) if most is None else most])
        return Tasks(
            self.at, np.concatenate([self.clients, rows.client]), np.concatenate([self.keys, rows.key]),
            np.concatenate([self.base, rows.base]), np.concatenate([self.serials, rows.serial]), steps,
        )  # fmt: skip


_NONE = Tasks(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.uint64, np.int64, np.int64)), None)


@dataclass(slots=True, eq=False)
class Ahead:
    """Tasks of one stream that no gather has taken yet: computed, by serial number; or in requests `under` way.

    `gone`: held by workers, who have to be told that nobody will recall them.
    """

    held: dict[int, Held] = field(default_factory=dict[int, Held])
    under: list[tuple[Begun, Tasks]] = field(default_factory=list[tuple[Begun, Tasks]])
    gone: list[int] = field(default_factory=list[int])
    _kinds: dict[int, Any] = field(default_factory=dict[int, Any])

    def gather(self, ask: StreamAsk, stream: Stream, executor: Executor | None) -> Gathered:
        """The `Gathered` of `ask`; without an executor (`train=False`), of weights and staleness alone."""
        if executor is None:
            staleness = {"staleness": ask.staleness.astype(np.float64)}
            weight = stream.population.examples[ask.clients].astype(np.float64)
            return Gathered(ask.run.tag, {}, float(weight.sum()), ask.clients, weight, staleness, ask.missing)
        if any(run.view is not None for run in ask.runs.values()):
            return _by_level(Answer(ask), executor)
        answer, away = Answer(ask), {serial for _, tasks in self.under for serial in tasks.serials.tolist()}
        known = away.union(self.held)
        lacking = [at for at, serial in enumerate(ask.serials.tolist()) if serial not in known]
        kinds = self._by_kind(ask, lacking, executor.works[ask.run.work])
        each, most = float(ask.flops) / max(len(ask.clients), 1), _EACH * executor.workers
        if (
            executor.forked(each * max(len(lacking), most), ask.run.work)
            or away
            or any(one.rows is None for one in self.held.values())
        ):
            self._by_workers(answer, stream, executor, list(kinds.values()), known)
            return answer.finish()
        self._fold_held(answer)
        for kind, tasks in kinds.items():
            more = (_ENOUGH if executor.workers == 1 else most) - len(tasks.at)
            if more > 0:
                pending = stream.pending()
                self._forget(ask, pending)
                rows = self._next(ask, stream, pending, executor.works[ask.run.work], kind, set(self.held), more)
                tasks = tasks if rows is None else tasks.and_then(rows)
            request = _request({**ask.runs, **stream.runs}, tasks, answer)
            self._take(executor.compute(request, each * request.n), tasks, answer)
        return answer.finish()

    def _by_workers(
        self, answer: Answer, stream: Stream, executor: Executor, lacking: list[Tasks], known: set[int]
    ) -> None:
        """Have the workers compute what is `lacking` and recall the rest; behind that, go on with what will end next.

        They are never without a request while this process folds, steps and plans.
        """
        ask, name = answer.ask, f"{stream.node} {stream.work}"
        pending, most = stream.pending(), _EACH * executor.workers
        self._forget(ask, pending)
        recalled = np.array([at for at, serial in enumerate(ask.serials.tolist()) if serial in known], np.int64)
        begun: list[tuple[Begun, Tasks]] = []
        for tasks in lacking or [_NONE] * bool(len(recalled)):
            request = replace(_request(ask.runs, tasks, answer, recalled), stream=name, forget=tuple(self.gone))
            begun.append((executor.start(request), tasks))
            recalled = recalled[:0]
            self.gone.clear()
        work, rows = executor.works[ask.run.work], None
        more = most - len(known.intersection(pending.serial.tolist()))
        if 2 * more >= most:
            rows = self._next(ask, stream, pending, work, self._kind(ask.number, ask.run, work), known, more)
        if rows is not None:
            tasks = _NONE.and_then(rows)
            request = _request(stream.runs, tasks, answer)
            held = Segment(0, request.n, {}, 0, keep=True, serials=tasks.serials)
            self.under.append((executor.start(replace(request, segments=(held,), stream=name)), tasks))
        self._fold_held(answer)
        for request, tasks in begun:
            self._take(request.result(), tasks, answer)
        for request, tasks in [one for one in self.under if one[0].received]:
            self._take(request.result(), tasks, answer, away=True)
            self.under.remove((request, tasks))
        answer.tell_held(self.held)

    def _fold_held(self, answer: Answer) -> None:
        """Fold what this process holds of the gather."""
        ask = answer.ask
        at = [
            i
            for i, serial in enumerate(ask.serials.tolist())
            if serial in self.held and self.held[serial].rows is not None
        ]
        held = [self.held.pop(int(ask.serials[i])) for i in at]
        if held:
            place = np.array(at)
            answer.tell(place, held)
            factor = None if answer.factor is None else answer.factor[place]
            answer.bad[place] = fold_held(answer.gather, ask.clients[place], held, factor)

    def _take(self, shares: list[Share], tasks: Tasks, answer: Answer, away: bool = False) -> None:
        """What was computed of `tasks`: the gather's part to `answer`, the rest is held; `away`: by workers."""
        folded = len(tasks.at)
        for share in shares:
            answer.refused.update(share.refused)
            for partials in share.partials.values():
                answer.gather.merge(partials)
            for piece in share.pieces:
                mine = max(min(folded, piece.stop) - piece.start, 0)
                answer.tell_piece(tasks.at[piece.start : piece.start + mine], piece)
                for i in range(mine, piece.stop - piece.start):
                    rows = None if away else {leaf: own(values[i - mine]) for leaf, values in piece.rows.items()}
                    metrics = {name: float(values[i]) for name, values in piece.metrics.items()}
                    one = Held(rows, float(piece.weight[i]), metrics, bool(piece.refused[i]))
                    self.held[int(tasks.serials[piece.start + i])] = one

    def _forget(self, ask: StreamAsk, pending: Rows) -> None:
        """Let go of tasks that are over and no part of the gather: too old, when they ended."""
        wanted = {*pending.serial.tolist(), *ask.serials.tolist()}
        for serial in [one for one in self.held if one not in wanted]:
            if self.held.pop(serial).rows is None:
                self.gone.append(serial)

    def _next(
        self, ask: StreamAsk, stream: Stream, pending: Rows, work: Any, kind: Any, known: set[int], most: int
    ) -> Rows | None:
        """Up to `most` of the `pending` that will end next, of one kind, not yet known and not too old by then."""
        oldest = -1 if (limit := ask.run.quorum.stale.limit) is None else ask.number + 1 - limit
        size = 4 * (ask.run.model.size if ask.run.model is not None else 0) * max(len(ask.run.reduce), 1)
        most = min(most, _HELD_BYTES // max(size, 1) - len(known))
        if most <= 0:
            return None
        alike = {
            number: number >= oldest and self._kind(number, stream.runs[number], work) == kind
            for number in np.unique(pending.base).tolist()
        }
        found = zip(pending.serial.tolist(), pending.base.tolist(), strict=True)
        pick = [at for at, (serial, number) in enumerate(found) if alike[number] and serial not in known][:most]
        return pending.pick(pick) if pick else None

    def _by_kind(self, ask: StreamAsk, places: list[int], work: Any) -> dict[Any, Tasks]:
        """The tasks at these positions of the ask, by what can share a stack."""
        of = {number: self._kind(number, run, work) for number, run in ask.runs.items()} if places else {}
        kinds: dict[Any, list[int]] = {}
        for at in places:
            kinds.setdefault(of[int(ask.base[at])], []).append(at)
        return {
            kind: Tasks(
                np.array(at), ask.clients[at], ask.keys[at], ask.base[at], ask.serials[at],
                None if ask.steps is None else ask.steps[at],
            )
            for kind, at in kinds.items()
        }  # fmt: skip

    def _kind(self, number: int, run: Run, work: Any) -> Any:
        """What the tasks of `run`, the stream's `number`, have in common with others that can share their stack."""
        found = self._kinds.get(number)
        if found is None:
            if len(self._kinds) > 1000:
                self._kinds.clear()
            found = self._kinds[number] = _kind(run, work)
        return found


def _by_level(answer: Answer, executor: Executor) -> Gathered:
    """The `Gathered` of sub-models: each version's clients of one level are a stack; nothing is computed ahead."""
    ask = answer.ask
    each = float(ask.flops) / max(len(ask.clients), 1)
    for number, run in ask.runs.items():
        of = np.flatnonzero(ask.base == number)
        assert run.view is not None
        assert run.model is not None
        plan = run.view.plan(ask.clients[of])
        for level in np.unique(plan).tolist():
            at = of[plan == level]
            index, factor = run.view.index(level), None if answer.factor is None else answer.factor[at]
            cohort = max(ask.asked, len(ask.clients))
            segment = Segment(0, len(at), ask.run.reduce, cohort, index, run.model.size, factor)
            request = Request(
                run.work, run.model.vector[index][None], np.zeros(len(at), np.int64), run.view.layout(level),
                ask.clients[at], ask.keys[at], (segment,), run.config,
                steps=None if ask.steps is None else ask.steps[at], sides=run.model.sides,
            )  # fmt: skip
            for share in executor.compute(request, each * request.n):
                for partials in share.partials.values():
                    answer.gather.merge(partials)
                for piece in share.pieces:
                    answer.tell_piece(at[piece.start : piece.stop], piece)
    return answer.finish()


def _kind(run: Run, work: Any) -> Any:
    """What asks must have in common to be computed in one stack."""
    alike = getattr(work, "alike", None)
    config = tuple(sorted(run.config.items())) if alike is None else alike(run.config)
    if run.model is not None and (run.model.opaque or run.model.sides):
        return (run.work, id(run.model), config)
    return (run.work, None if run.model is None else run.model.layout, config)


def _request(runs: Mapping[int, Run], tasks: Tasks, answer: Answer, recalled: I64 | None = None) -> Request:
    """The first tasks folded for the gather, with those `recalled` (positions in its ask); the rows of others kept."""
    ask, n, folded = answer.ask, len(tasks.clients), len(tasks.at)
    versions, row = np.unique(tasks.base, return_inverse=True)
    run = runs[int(versions[-1])] if n else ask.run
    if run.model is None:
        models, layout = np.empty((1, 0), np.float32), _NOTHING
        row = np.zeros(n, np.int64)
    else:
        vectors = [runs[int(number)].model.vector for number in versions]  # type: ignore[union-attr]
        models, layout = np.stack(vectors) if vectors else np.empty((0, 0), np.float32), run.model.layout
    recall = None
    if recalled is not None and len(recalled):
        factor = None if answer.factor is None else answer.factor[recalled]
        recall = Recall(ask.serials[recalled], ask.clients[recalled], factor)
    factor = None if answer.factor is None else answer.factor[tasks.at]
    cohort = max(ask.asked, len(ask.clients))
    segments = [Segment(0, folded, ask.run.reduce, cohort, factor=factor, recall=recall)] if folded or recall else []
    if n > folded:
        segments.append(Segment(folded, n, {}, 0, keep=True))
    return Request(
        run.work, models, row.astype(np.int64), layout, tasks.clients, tasks.keys, tuple(segments), run.config,
        opaque=run.model.opaque if run.model is not None and n else b"", steps=tasks.steps,
        sides=run.model.sides if run.model is not None else {},
    )  # fmt: skip
