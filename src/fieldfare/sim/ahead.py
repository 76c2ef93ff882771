"""The values of a stream's gather: what it needs now, and tasks at work computed beside it while it is worth it.

A task's inputs are known when it begins. So where a gather needs few replies, tasks that end later are computed in the
same stack, and their rows are held until their gather comes. Not here: when that is (`stream`). Invariant: what a
gather says does not depend on what was computed beside it, or held.
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
from fieldfare.sim.compute import Request, Segment
from fieldfare.sim.stream import Stream, StreamAsk
from fieldfare.sim.table import UNLIMITED

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_ENOUGH, _EACH = 64, 8
"""Tasks that fill one stack, and each of several workers: a gather that computes so many anyway computes nothing ahead.

A task computed ahead costs more than one computed in its gather: its row travels and is folded by this process alone.
"""
_HELD_BYTES = 512 << 20
_NOTHING = Layout((), ())


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """One computed task: its row of each leaf, weight, metrics, and whether it diverged."""

    rows: Mapping[str, Any]
    weight: float
    metrics: Mapping[str, float]
    bad: bool


@dataclass(slots=True, eq=False)
class Ahead:
    """Computed tasks of one stream that no gather has taken yet, by serial number."""

    held: dict[int, Held] = field(default_factory=dict[int, Held])
    _serials: I64 = field(default_factory=lambda: np.empty(0, np.int64))

    def gather(self, ask: StreamAsk, stream: Stream, executor: Executor | None) -> Gathered:
        """The `Gathered` of `ask`; without an executor (`train=False`), of weights and staleness alone."""
        staleness = {"staleness": ask.staleness.astype(np.float64)}
        if executor is None:
            weight = stream.population.examples[ask.clients].astype(np.float64)
            return Gathered(ask.run.tag, {}, float(weight.sum()), ask.clients, weight, staleness, ask.missing)
        n = len(ask.clients)
        discounted = bool((ask.factor != 1.0).any())
        gather = Gather(ask.run.reduce, max(ask.asked, n), discounted)
        weight, bad = np.zeros(n), np.zeros(n, np.bool_)
        metrics: dict[str, F64] = {}

        def tell(at: Any, name: str, values: Any) -> None:
            metrics.setdefault(name, np.full(n, np.nan))[at] = values

        mine = np.array([serial in self.held for serial in ask.serials.tolist()], np.bool_)
        for at in np.flatnonzero(mine).tolist():
            one = self.held.pop(int(ask.serials[at]))
            weight[at], bad[at] = one.weight, one.bad
            for name, value in one.metrics.items():
                tell(at, name, value)
            rows = {leaf: row[None] if isinstance(row, np.ndarray) else [row] for leaf, row in one.rows.items()}
            factor = ask.factor[[at]] if discounted else None
            bad[[at]] = gather.take(ask.clients[[at]], rows, weight[[at]], bad[[at]], factor=factor)
        lacking = np.flatnonzero(~mine)
        for at, tasks in self._requests(ask, lacking, stream, executor):
            factor = ask.factor[at] if discounted else None
            segments = [Segment(0, len(at), ask.run.reduce, max(ask.asked, n), factor=factor)]
            if tasks.n > len(at):
                segments.append(Segment(len(at), tasks.n, {}, 0, keep=True))
            request = replace(tasks, segments=tuple(segments))
            flops = float(ask.flops) / max(n, 1) * request.n
            for share in executor.compute(request, flops):
                for partials in share.partials.values():
                    gather.merge(partials)
                for piece in share.pieces:
                    stop = min(piece.stop, len(at))
                    if piece.start < stop:
                        part, to = slice(0, stop - piece.start), at[piece.start : stop]
                        weight[to], bad[to] = piece.weight[part], piece.refused[part]
                        for name, values in piece.metrics.items():
                            tell(to, name, values[part])
                    self._hold(piece, max(stop, piece.start), request, stream)
        good = ~bad
        missing = dict(ask.missing)
        if bad.any():
            missing["refused"] = ask.clients[bad]
        metrics = {name: values[good] for name, values in {**metrics, **staleness}.items()}
        return Gathered(
            ask.run.tag, gather.finish(), float(weight[good].sum()), ask.clients[good], weight[good], metrics, missing
        )

    def _hold(self, piece: Any, first: int, request: Request, stream: Stream) -> None:
        serials = self._serials
        for at in range(first, piece.stop):
            i = at - first
            self.held[int(serials[at])] = Held(
                {leaf: _own(rows[i]) for leaf, rows in piece.rows.items()}, float(piece.weight[at - piece.start]),
                {name: float(values[at - piece.start]) for name, values in piece.metrics.items()},
                bool(piece.refused[at - piece.start]),
            )  # fmt: skip

    def _forget(self, pending: I64) -> None:
        """Let go of tasks that are over and were never taken: too old, when they ended."""
        at_work = set(pending.tolist())
        for serial in [one for one in self.held if one not in at_work]:
            del self.held[serial]

    def _requests(self, ask: StreamAsk, lacking: I64, stream: Stream, executor: Executor) -> Any:
        """(positions in `ask`, request) of everything lacking, by what can share a stack, with tasks that end later."""
        work: Any = executor.works[ask.run.work]
        kinds: dict[Any, list[int]] = {}
        of = {number: _kind(run, work) for number, run in ask.runs.items()}
        for at in lacking.tolist():
            kinds.setdefault(of[int(ask.base[at])], []).append(at)
        enough = _ENOUGH if executor.workers == 1 else _EACH * executor.workers
        for kind, places in kinds.items():
            at = np.array(places, np.int64)
            runs: dict[int, Run] = dict(ask.runs)
            clients, keys, base, serials = ask.clients[at], ask.keys[at], ask.base[at], ask.serials[at]
            steps = None if ask.steps is None else ask.steps[at]
            if len(at) < enough:
                more = stream.pending()
                self._forget(more.serial)
                runs |= stream.runs
                oldest = -1 if (limit := ask.run.quorum.stale.limit) is None else ask.number + 1 - limit
                alike = {
                    number: number >= oldest and _kind(runs[number], work) == kind
                    for number in np.unique(more.base).tolist()
                }
                found = zip(more.serial.tolist(), more.base.tolist(), strict=True)
                pick = [i for i, (one, number) in enumerate(found) if alike[number] and one not in self.held]
                size = 4 * (ask.run.model.size if ask.run.model is not None else 0) * max(len(ask.run.reduce), 1)
                pick = pick[: max(0, min(enough - len(at), _HELD_BYTES // max(size, 1) - len(self.held)))]
                if pick:
                    more = more.pick(pick)
                    clients, keys = np.concatenate([clients, more.client]), np.concatenate([keys, more.key])
                    base, serials = np.concatenate([base, more.base]), np.concatenate([serials, more.serial])
                    most = more.parts.steps
                    if steps is not None or most is not None:
                        steps = np.full(len(at), UNLIMITED) if steps is None else steps
                        most = np.full(len(pick), UNLIMITED) if most is None else most
                        steps = np.concatenate([steps, most])
            self._serials = serials
            yield at, _request(runs, clients, keys, base, steps)


def _own(row: Any) -> Any:
    """A row that keeps no others in memory."""
    return row.copy() if isinstance(row, np.ndarray) else row


def _kind(run: Run, work: Any) -> Any:
    """What asks must have in common to be computed in one stack."""
    alike = getattr(work, "alike", None)
    config = tuple(sorted(run.config.items())) if alike is None else alike(run.config)
    if run.model is not None and (run.model.opaque or run.model.sides):
        return (run.work, id(run.model), config)
    return (run.work, None if run.model is None else run.model.layout, config)


def _request(runs: Mapping[int, Run], clients: I64, keys: NDArray[np.uint64], base: I64, steps: I64 | None) -> Request:
    versions, row = np.unique(base, return_inverse=True)
    run = runs[int(versions[-1])]
    if run.model is None:
        models, layout = np.empty((1, 0), np.float32), _NOTHING
        row = np.zeros(len(clients), np.int64)
    else:
        models = np.stack([runs[int(number)].model.vector for number in versions])  # type: ignore[union-attr]
        layout = run.model.layout
    opaque = run.model.opaque if run.model is not None else b""
    sides = run.model.sides if run.model is not None else {}
    return Request(
        run.work, models, row.astype(np.int64), layout, clients, keys, (), run.config, opaque=opaque, steps=steps,
        sides=sides,
    )  # fmt: skip
