"""The clients of a `Loopback`: each computes alone, keeps its reply under the ask's id, and never computes it twice.

Here: what one client of a `Run` does, and the gather its replies go to. Not here: time and messages (`loopback`).
Invariant: a value of client state is provisional until the gather that counted its reply is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.aggregate.gather import Gather
from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.core.effects import Run
from fieldfare.core.events import Gathered
from fieldfare.core.params import Layout
from fieldfare.core.work import Cohort, Output
from fieldfare.fleet.tasks import OUTCOMES, account
from fieldfare.sim.asks import Ask, at_work_after, begin, client_keys
from fieldfare.sim.at_work import AtWork
from fieldfare.sim.draw import Selected
from fieldfare.sim.population import Population
from fieldfare.sim.simulator import World
from fieldfare.testing.toys import Slots

EffectId: TypeAlias = tuple[str, int, int]
"""(node, its step, index of the effect): the same after a restart."""

LAST = 1 << 62
"""The order of a deadline among the messages of one instant: behind the replies that are in time."""


@dataclass(slots=True, eq=False)
class Gathering:
    """An outstanding `Run` on devices: `clients` int64 `[n]` ascending, `seconds` `[n]` from ask to reply.

    `order` `[n]` settles replies due at the same instant as the simulator does: by seconds, then id, then the deadline.
    `lost`: positions that will never reply, `reasons` why, where that is known from the start; `unavailable`: ids that
    could not begin; `steps` as in `Cohort`; `waited`: seconds before each task began; `replies`: those that counted, by
    position.
    """

    id: EffectId
    run: Run
    issued: float
    number: int
    clients: NDArray[np.int64]
    seconds: NDArray[np.float64]
    keys: NDArray[np.uint64]
    order: NDArray[np.int64]
    levels: NDArray[np.int64] | None
    bytes_down: NDArray[np.float64]
    bytes_up: NDArray[np.float64]
    reasons: Mapping[int, str] = field(default_factory=dict[int, str])
    unavailable: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    steps: NDArray[np.int64] | None = None
    waited: NDArray[np.float64] | float = 0.0
    lost: set[int] = field(default_factory=set[int])
    replies: dict[int, Output] = field(default_factory=dict[int, Output])

    @property
    def coming(self) -> int:
        return len(self.clients) - len(self.lost) - len(self.replies)

    @property
    def sent(self) -> float:
        """Bytes of the replies of all who answer, late ones too."""
        silent = {at for at in self.lost - set(self.replies) if self.reasons.get(at, "drop-out") == "drop-out"}
        return float(self.bytes_up[[at for at in range(len(self.clients)) if at not in silent]].sum())

    @property
    def patience(self) -> float:
        """When the slowest client asked would have replied: who waits cannot know that a reply will never come."""
        return self.issued + float(self.seconds.max(initial=0.0))

    def complete(self, now: float) -> bool:
        """Whether to wait no longer: the quorum is there, or (without a deadline) nobody is left who could reply."""
        need, n = self.run.quorum.need, len(self.clients)
        if len(self.replies) >= (n if need is None else need):
            return n > 0 or not len(self.unavailable) or self.run.quorum.deadline_s is None
        return self.run.quorum.deadline_s is None and self.coming == 0 and now >= self.patience

    def finish(self) -> tuple[Gathered, dict[int, Output]]:
        """The gather's event, and the replies that were neither late nor refused, by client id."""
        run, n = self.run, len(self.clients)
        gather = Gather(run.reduce, n)
        order = sorted(self.replies)
        refused: list[int] = []
        for at in order:
            reply = self.replies[at]
            index = None if self.levels is None or run.view is None else run.view.index(int(self.levels[at]))
            loss = reply.metrics.get("loss")
            if (loss is not None and not np.isfinite(loss[0])) or gather.check(reply.leaves, reply.weight).any():
                refused.append(at)
            elif run.reduce:
                size = None if run.model is None else run.model.size
                gather.add(self.clients[[at]], reply.leaves, reply.weight, index, size)
        kept = [at for at in order if at not in set(refused)]
        late = [at for at in range(n) if at not in self.replies and at not in self.lost]
        missing = {"late": late, "refused": refused}
        for at in sorted(self.lost - set(order)):
            missing.setdefault(self.reasons.get(at, "drop-out"), []).append(at)
        metrics: dict[str, Any] = {}
        for name in self.replies[order[0]].metrics if order else ():
            metrics[name] = np.concatenate([self.replies[at].metrics[name] for at in kept] or [np.empty(0)])
        weights = np.concatenate([self.replies[at].weight for at in kept] or [np.empty(0)])
        ids = {reason: self.clients[np.array(places)] for reason, places in missing.items() if places}
        if len(self.unavailable):
            ids["unavailable"] = self.unavailable
        event = Gathered(
            run.tag,
            gather.finish(),
            float(weights.sum()),
            self.clients[np.array(kept, np.int64)],
            weights,
            metrics,
            ids,
        )
        return event, {int(self.clients[at]): self.replies[at] for at in kept}


def gathering(
    id: EffectId, run: Run, now: float, number: int, world: World, own: int | None, shuffle: int | None,
    selected: Selected, busy: AtWork,
) -> tuple[Gathering, AtWork]:  # fmt: skip
    """(the drawn cohort of a `Run` on devices, who is at work now), as in the simulator.

    Drop-outs of the fleet are lost from the start.
    """
    population: Population = world.population
    begun = begin(run, now, population, world.works, world.seed, own, selected, busy=busy)
    turn = np.argsort(begun.clients, kind="stable")
    clients, seconds, good = begun.clients[turn], begun.seconds[turn], begun.good[turn]
    ask = Ask("", run, now, now, clients, seconds, {}, 0.0, 0.0, 0.0, len(clients), own is not None, begun)
    levels = run.view.plan(clients) if run.view is not None else None
    if shuffle is not None:
        seconds[good] = rng.stream(shuffle, "replies", number).permutation(seconds[good])
    reasons = {int(at): OUTCOMES[begun.outcome[turn[at]]] for at in np.flatnonzero(~good)}
    order = np.argsort(np.lexsort((clients, seconds)))
    if run.quorum.deadline_s is not None:
        order = np.where(seconds > run.quorum.deadline_s, order + LAST + 1, order)
    told = account(
        population.fleet, begun.clients, begun.start, now + begun.seconds, begun.outcome, begun.clients, begun.parts,
        begun.cost,
    )  # fmt: skip
    whole: Any = begun.cost
    down, up = (told.bytes_down, told.bytes_up) if begun.cut else (whole.bytes_down, whole.bytes_up)
    gather = Gathering(
        id, run, now, number, clients, seconds, client_keys(ask, world.seed), order, levels, down[turn], up[turn],
        reasons, begun.unavailable, None if begun.steps is None else begun.steps[turn],
        begun.start[turn] - now, set(reasons),
    )  # fmt: skip
    return gather, at_work_after(ask, busy)


@dataclass(slots=True, eq=False)
class Devices:
    """All clients: what they computed, by (effect id, client), and their state; `computed` counts computations."""

    world: World
    slots: Slots
    cache: dict[tuple[EffectId, int], tuple[float, Output]] = field(default_factory=dict[Any, Any])
    computed: Counter[tuple[EffectId, int]] = field(default_factory=Counter[Any])

    def reply(self, gather: Gathering, at: int, now: float) -> tuple[float, Output]:
        """(when it may be sent, the reply) of the client at position `at`: computed once, cached after that."""
        key = (gather.id, int(gather.clients[at]))
        if key not in self.cache:
            self.computed[key] += 1
            self.cache[key] = (now + float(gather.seconds[at]), self._compute(gather, at))
        ready, output = self.cache[key]
        return max(now, ready), output

    def commit(self, gather: Gathering, accepted: Mapping[int, Output]) -> None:
        """Client state of the replies that counted stands; that of all others is dropped."""
        for client, reply in accepted.items():
            if reply.state is not None and gather.run.state is not None:
                self.slots.put(gather.run.state, np.array([client]), reply.state)

    def _compute(self, gather: Gathering, at: int) -> Output:
        run, world = gather.run, self.world
        vector, layout, index = np.empty(0, np.float32), Layout((), ()), None
        if run.model is not None:
            vector, layout = run.model.vector, run.model.layout
            if run.view is not None and gather.levels is not None:
                level = int(gather.levels[at])
                index = run.view.index(level)
                vector, layout = vector[index], run.view.layout(level)
        me, data, work = gather.clients[[at]], world.population.data, world.works[run.work]
        state, fresh = self.slots.get(run.state, me) if run.state else (None, None)
        held = getattr(data, "held_block", None) if getattr(work, "needs_held", False) else None
        each = run.each.get(int(me[0]))
        return work(
            Cohort(
                vector[None], np.zeros(1, np.int64), layout, me, gather.keys[[at]],
                data.block(me) if data is not None else Block.empty(1), run.config, run.inputs,
                {} if each is None else {0: each}, state, fresh,
                run.model.opaque if run.model is not None else b"", None if held is None else held(me),
                None if gather.steps is None else gather.steps[[at]],
                sides={} if run.model is None else run.model.sides, index=index,
            )
        )  # fmt: skip
