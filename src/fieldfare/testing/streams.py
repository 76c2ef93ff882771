"""Gathers of a `Loopback` whose late replies count in the next: planned as the simulator plans them, computed alone.

Here: one client's computation per task, kept by the task's number and never done twice, and the fold of a gather. Not
here: who works when (`sim.stream`), messages (`loopback`); faults by script do not reach these tasks. Invariant: a
gather is the simulator's, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.aggregate.gather import Gather
from fieldfare.core.block import Block
from fieldfare.core.effects import Run
from fieldfare.core.events import Gathered
from fieldfare.core.params import Layout, Params
from fieldfare.core.work import Cohort, Output
from fieldfare.sim.draw import Selected
from fieldfare.sim.simulator import World
from fieldfare.sim.stream import Stream, StreamAsk


@dataclass(slots=True, eq=False)
class Streams:
    """The streams of all nodes, by (node, work); `computed` counts computations by (node, work, task)."""

    world: World
    selected: Selected
    streams: dict[tuple[str, str], Stream] = field(default_factory=dict[Any, Any])
    events: dict[tuple[str, str, int], Gathered] = field(default_factory=dict[Any, Any])
    computed: Counter[tuple[str, str, int]] = field(default_factory=Counter[Any])

    def open(self, node: str, run: Run, now: float) -> StreamAsk:
        """The plan of the gather that `run` opens."""
        name = (node, run.work)
        if name not in self.streams:
            self.streams[name] = Stream(*name, self.world.population, self.world.seed)
        return self.streams[name].open(run, now, self.world.works, self.selected)

    def finish(self, ask: StreamAsk) -> Gathered:
        """Compute every task of the gather alone, and fold; a gather that is asked for again is not done again."""
        name = (ask.node, ask.run.work, ask.number)
        if name not in self.events:
            self.events[name] = self._finish(ask)
        return self.events[name]

    def _finish(self, ask: StreamAsk) -> Gathered:
        n = len(ask.clients)
        discounted = bool((ask.factor != 1.0).any())
        gather = Gather(ask.run.reduce, max(ask.asked, n), discounted)
        weight, good = np.zeros(n), np.ones(n, np.bool_)
        metrics: dict[str, NDArray[np.float64]] = {}
        for at in range(n):
            out = self._compute(ask, at)
            weight[at] = out.weight[0]
            for name, values in out.metrics.items():
                metrics.setdefault(name, np.full(n, np.nan))[at] = values[0]
            factor = ask.factor[[at]] if discounted else None
            index, size = self._lift(ask, at)
            took = gather.take(ask.clients[[at]], out.leaves, out.weight, out.diverged, index, size, factor)
            good[at] = not took[0]
        metrics["staleness"] = ask.staleness.astype(np.float64)
        missing: Mapping[str, Any] = ask.missing if good.all() else {**ask.missing, "refused": ask.clients[~good]}
        told = {name: values[good] for name, values in metrics.items()}
        return Gathered(
            ask.run.tag, gather.finish(), float(weight[good].sum()), ask.clients[good], weight[good], told, missing
        )

    def _lift(self, ask: StreamAsk, at: int) -> tuple[NDArray[np.int64] | None, int | None]:
        """Places of a task's sub-model in the vector, and the vector's size; None where it has the whole."""
        run = ask.runs[int(ask.base[at])]
        if run.view is None or run.model is None:
            return None, None
        return run.view.index(int(run.view.plan(ask.clients[[at]])[0])), run.model.size

    def _compute(self, ask: StreamAsk, at: int) -> Output:
        self.computed[ask.node, ask.run.work, int(ask.serials[at])] += 1
        run, me = ask.runs[int(ask.base[at])], ask.clients[[at]]
        model, data = run.model, self.world.population.data
        index, _ = self._lift(ask, at)
        if model is not None and index is not None and run.view is not None:
            level = int(run.view.plan(me)[0])
            model = Params(model.vector[index], run.view.layout(level), model.sides)
        return self.world.works[run.work](
            Cohort(
                np.empty((1, 0), np.float32) if model is None else model.vector[None], np.zeros(1, np.int64),
                Layout((), ()) if model is None else model.layout, me, ask.keys[[at]],
                Block.empty(1) if data is None else data.block(me), run.config,
                opaque=b"" if model is None else model.opaque,
                steps=None if ask.steps is None else ask.steps[[at]], sides={} if model is None else model.sides,
                index=index,
            )
        )  # fmt: skip
