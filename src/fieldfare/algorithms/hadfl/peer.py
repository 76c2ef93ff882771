"""HADFL's peer: it trains at its own pace, joins the ring when drawn, and merges what others have agreed on.

Here: training, reports, and when a ring is entered and left. Not here: the ring itself (`member`, `session`), what is
brought into it and what becomes of a result (`rules`), negotiation (`warmup`). Invariant: the model changes in three
places only: a local training is over, a cycle this peer holds the result of is decided, or another's result is merged
between two trainings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from fieldfare.algorithms.hadfl import member as ring
from fieldfare.algorithms.hadfl import warmup
from fieldfare.algorithms.hadfl.agreed import Counting, drawn, herald, run_of
from fieldfare.algorithms.hadfl.answers import answer
from fieldfare.algorithms.hadfl.holding import State, based, gone, trained, training
from fieldfare.algorithms.hadfl.messages import (
    Ack,
    Broadcast,
    Decided,
    Done,
    Join,
    Message,
    Plan,
    Pong,
    Select,
    Version,
    Welcome,
    Whole,
)
from fieldfare.algorithms.hadfl.periods import fitting
from fieldfare.algorithms.hadfl.ring import F32, Frame
from fieldfare.algorithms.hadfl.rules import Deltas, Models, Rule
from fieldfare.algorithms.hadfl.widths import Widths
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Send, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Gathered, Joined, Left, Received, Started, Woke
from fieldfare.core.params import Params

_EARLY = 16  # frames kept of rings that are not entered yet: what is dropped is sent again when it is missed
_WORTH = 0.1  # of a cycle's steps: fewer are not worth a training of their own
_WAITS = 10.0  # times the warm-up that a neighbour is waited for, when it does not answer


@dataclass(frozen=True, slots=True)
class Peer:
    """A device of HADFL: `cycles` cycles of local steps, in batches of `batch_size`.

    `lr`: None is the training's own, whose schedule goes by cycles (as by rounds where there is a server).
    Warm-up: `warmup` trainings of `warmup_steps` steps at `warmup_lr` (None: a tenth of `lr`, or the training's own)
    from the common start, the first not counted. They are thrown away; with `keep_warmup` each goes on from the one
    before, and the mean of all is the common start (both our reading). Meanwhile `probe_bytes` (0: none) go to a
    neighbour and back, to time the link.
    `blend`: lambda of w <- lambda w_agg + (1 - lambda) w for those outside the ring, 1/2 by our reading, 1 overwrites.
    `stride`: steps per training, hence how soon a broadcast is merged; None takes a whole cycle at once. `checks`
    (ours; None: none): how often in a cycle a peer looks at its pace, to take the steps that still fit in the period.
    `per_cycle` as the coordinator's. `evaluate`: central evaluations of committed means.

    `rule`: "models" averages models, as HADFL does. "deltas" is ours: what travels is what was learnt since the base,
    per step and `counted` "once" or by the "inverse" of the chance of being drawn (`agreed.delta_weights`); those
    outside the ring keep what they have learnt on top of the new mean, so that nothing is lost until they are drawn,
    nor what a coarse wire leaves out. `overlap` (deltas): the next cycle's training begins while the ring runs, whose
    result is applied one cycle late. `widths`: the part of the model that each peer trains.
    """

    cycles: int
    lr: float | None = None
    batch_size: int = 16
    warmup: int = 4
    warmup_steps: int = 5
    blend: float = 0.5
    stride: int | None = None
    per_cycle: int = 2
    rule: Literal["models", "deltas"] = "models"
    work: str = "train"
    evaluate: tuple[str, ...] = ()
    counted: Counting = "once"
    overlap: bool = False
    keep_warmup: bool = False
    probe_bytes: int = 0
    checks: int | None = None
    warmup_lr: float | None = None
    widths: Widths | None = None
    messages: ClassVar[Message | State | None] = None
    """For those who store what is under way: the types of all that is said and held."""

    def __post_init__(self) -> None:
        if min(self.cycles, self.warmup_steps, self.batch_size, self.warmup - 1, self.per_cycle - 1) < 1:
            raise UsageError(
                f"Peer(cycles={self.cycles}, warmup={self.warmup}, warmup_steps={self.warmup_steps}, "
                f"per_cycle={self.per_cycle}, batch_size={self.batch_size}): use numbers >= 1, and >= 2 for warmup and "
                "per_cycle."
            )
        if not 0.0 < self.blend <= 1.0:
            raise UsageError(f"Peer(blend={self.blend}): the share of the received mean is in (0, 1]; 1 overwrites.")
        if min(self.probe_bytes + 1, *(one for one in (self.stride, self.checks, 1) if one is not None)) < 1:
            raise UsageError(f"{self}: use stride and checks >= 1 or None, and probe_bytes >= 0.")
        if self.overlap and self.rule == "models":
            raise UsageError("Peer(overlap=True, rule='models'): models are averaged as they stand; use rule='deltas'.")

    @property
    def _rule(self) -> Rule:
        if self.rule == "models":
            return Models(self.blend, self.evaluate, self.widths)
        return Deltas(self.counted, self.evaluate, self.widths)

    @property
    def _warm(self) -> tuple[float | None, float]:
        """(the learning rate of the warm-up, which share of the cycles' first it is)."""
        if self.warmup_lr is None:
            return (None, 1.0) if self.lr is None else (warmup.RATE * self.lr, warmup.RATE)
        return self.warmup_lr, warmup.RATE if self.lr is None else self.warmup_lr / self.lr

    def init(self, model: Params) -> State:
        return State(model, base=model)

    def step(self, state: State, event: Event, ctx: Context) -> tuple[State, Sequence[Effect]]:
        match event:
            case Started(roster=roster) if state.stage == "new":
                state = replace(state, stage="warm", coordinator=roster["coordinator"][0], peers=roster["peer"])
                state, out = warmup.ping(state, ctx.me, ctx.now, self.probe_bytes)
                state, more = self._train(state, ctx, self.warmup_steps)
                return state, (*out, *more)
            case Left(node) if node == ctx.me and state.stage not in ("new", "down"):
                return gone(state), ()
            case Joined(node) if node == ctx.me and state.stage == "down" and state.steps:
                return replace(state, stage="idle"), (Send(state.coordinator, Join()),)
            case Joined(node) if node == ctx.me and state.stage == "down":
                return self._train(replace(state, stage="warm"), ctx, self.warmup_steps)
            case _ if state.stage in ("new", "down"):
                return state, ()
            case Gathered(tag=("train", int(serial))) if serial == state.serial and state.under_way:
                return self._trained(state, event, ctx)
            case Received(src, body):
                return self._heard(state, src, body, ctx)
            case Woke(tag=("hop", int(timer))) if state.member is not None:
                return self._moved(state, ring.on_tick(state.member, timer), ctx)
            case Woke(tag=("probe",)) if state.stage == "warm" and len(state.pieces) == self.warmup:
                return self._profiled(state)
            case _:
                return state, ()

    def _heard(self, state: State, src: str, body: object, ctx: Context) -> tuple[State, Sequence[Effect]]:
        member, boss = state.member, src == state.coordinator
        match body:
            case Plan(steps, period_s) if boss:
                state = replace(state, steps=steps, period_s=period_s)
                return self._planned(state, ctx) if state.stage == "idle" and not state.cycle else (state, ())
            case Select() if boss:
                return self._selected(state, body, ctx)
            case Welcome(cycle, steps, period_s, version, model, commits) if boss and state.stage == "idle":
                state = replace(state, version=version, steps=steps, period_s=period_s)
                return self._next(based(state, model, commits, cycle - 1), ctx, cycle)
            case Frame():
                if member is not None and (body.cycle, body.epoch) == (member.ring.cycle, member.ring.epoch):
                    return self._moved(state, ring.on_frame(member, body), ctx)
                newer = body.cycle >= state.oldest(state.cycle) and body.run == run_of(ctx.seed)
                return (replace(state, early=(*state.early, body)[-_EARLY:]) if newer else state), ()
            case Done() if member is not None:
                return self._moved(state, ring.on_done(member, body), ctx)
            case Decided(cycle) if member is not None and cycle == member.ring.cycle:
                return self._moved(state, ring.on_decided(member, body), ctx)
            case Decided(cycle, -1) if cycle in state.selects:
                off = replace(state.selects[cycle], members=())
                state = replace(state, selects={**state.selects, cycle: off})
                return self._left(state, ctx) if cycle == state.inside else (state, ())
            case Ack() if member is not None:
                return self._moved(state, ring.on_ack(member, src, body), ctx)
            case Broadcast() | Whole() if src in state.peers:
                return self._rule.heard(state, src, body)
            case Pong() if state.stage == "warm":
                state, out = warmup.came_back(state, body, ctx.me, ctx.now, self.probe_bytes)
                over = len(state.pieces) == self.warmup and warmup.probed(state, self.probe_bytes)
                return self._profiled(state) if over else (state, out)
            case _:
                return state, answer(state, src, body, ctx.now) if src in state.peers else ()

    def _train(self, state: State, ctx: Context, steps: int) -> tuple[State, Sequence[Effect]]:
        view = None if self.widths is None else self.widths.view
        return training(state, ctx, self.work, steps, self._warm[0] if state.stage == "warm" else self.lr, view)

    def _trained(self, state: State, event: Gathered, ctx: Context) -> tuple[State, Sequence[Effect]]:
        seconds, steps = ctx.now - state.begun, state.under_way
        got, model = event.output.get("model"), None
        if got is not None and len(event.clients):
            model = state.model.replace(self._whole(state, np.array(got.value[0], np.float32), ctx.me))
        state = replace(state, under_way=0)
        if state.stage == "warm":
            state = warmup.timed(state, seconds, steps, event.weight, model, self._warm[1], self.keep_warmup)
            if len(state.pieces) < self.warmup:
                return self._train(state, ctx, self.warmup_steps)
            wait = Wake(_WAITS * sum(state.pieces) * self.warmup_steps, ("probe",))
            return self._profiled(state) if warmup.probed(state, self.probe_bytes) else (state, (wait,))
        state = self._rule.merged(trained(state, steps, seconds, model), ctx.me)
        if self.checks is not None:
            more = fitting(state.period_s - state.took[1], state.pace)
            state = replace(state, left=more if more >= _WORTH * state.took[0] else 0)
        return self._go_on(state, ctx) if state.left else self._arrived(replace(state, since=state.since + 1), ctx)

    def _whole(self, state: State, row: F32, me: str) -> F32:
        """The whole model after a training of this peer's part of it."""
        return row if self.widths is None else self.widths.lifted(state.model.vector, state.peers.index(me), row)

    def _profiled(self, state: State) -> tuple[State, Sequence[Effect]]:
        told = warmup.profile(state, self.batch_size, self.probe_bytes, self.rule == "deltas")
        return replace(state, stage="idle"), (Send(state.coordinator, told),)

    def _planned(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """The first plan has come: train for the first cycle; where the warm-up counts, average that before."""
        assert state.base is not None
        warm, state = state.model, based(state, state.base, state.commits, state.applied)
        if not self.keep_warmup or state.commits:
            return self._next(state, ctx, 1)
        return self._proceed(replace(state, model=warm, stage="wait"), ctx)

    def _next(self, state: State, ctx: Context, cycle: int) -> tuple[State, Sequence[Effect]]:
        """Begin to train for `cycle`; or, after the last, end."""
        oldest = state.oldest(cycle)
        selects = {c: select for c, select in state.selects.items() if c >= oldest}
        early = tuple(frame for frame in state.early if frame.cycle >= oldest)
        state = self._rule.merged(replace(state, cycle=cycle, selects=selects, early=early, took=(0, 0.0)), ctx.me)
        missed = self._rule.missed(state)
        if cycle > self.cycles:
            return replace(state, stage="done"), missed
        left = max(fitting(state.period_s, state.pace), 1) if self.checks and state.pace else state.steps
        state, out = self._go_on(replace(state, stage="train", left=left), ctx)
        return state, (*missed, *out)

    def _go_on(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        steps = min(state.left, self.stride or math.ceil((state.left + state.took[0]) / (self.checks or 1)))
        return self._train(replace(state, left=state.left - steps), ctx, steps)

    def _arrived(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """The local steps of a cycle are done: report, then join the ring or go on.

        Who comes late takes its place in the ring that waits for it, else that of the newest cycle.
        """
        steps, seconds = state.took
        ahead = sorted(c for c in state.selects if c >= state.cycle)
        mine = [c for c in ahead if ctx.me in state.selects[c].members]
        state = replace(state, stage="wait", cycle=mine[0] if mine else max([state.cycle, *ahead]))
        told = Version(state.cycle, state.version, seconds / steps, self._rule.peak(state))
        state, out = self._proceed(state, ctx)
        return state, (Send(state.coordinator, told), *out)

    def _proceed(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """From waiting into the ring of this cycle, or past it; not before the ring one is in is decided."""
        select = state.selects.get(state.cycle)
        if select is not None and ctx.me not in select.members:
            return self._next(state, ctx, state.cycle + 1)
        if select is None or state.inside >= 0:
            return state, ()
        state = self._rule.lent(self._rule.merged(state, ctx.me))
        state, out = self._enter(replace(state, stage="ring", inside=state.cycle), select, ctx)
        if not self.overlap or not state.cycle:
            return state, out
        state, more = self._next(state, ctx, state.cycle + 1)
        return state, (*out, *more)

    def _enter(self, state: State, select: Select, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """Into the ring, or into its restart."""
        early = [f for f in state.early if (f.cycle, f.epoch) == (select.cycle, select.epoch)]
        timer = state.timer + 1 if state.member is None else state.member.timer + 1
        vector = self._rule.offered(state, select, ctx.me)
        cover = self._rule.cover(state, select)
        member, out = ring.enter(
            run_of(ctx.seed), select, ctx.me, vector, state.version, state.coordinator, timer, early, cover
        )
        return replace(state, member=member, timer=timer if member is None else member.timer), out

    def _selected(self, state: State, select: Select, ctx: Context) -> tuple[State, Sequence[Effect]]:
        known = state.selects.get(select.cycle)
        stale = select.cycle < state.oldest(state.cycle) or (known is not None and select.epoch <= known.epoch)
        if stale or not drawn(select, self.per_cycle, ctx.seed):
            return state, ()
        state = replace(state, selects={**state.selects, select.cycle: select})
        if select.cycle == state.inside:
            return self._enter(state, select, ctx) if ctx.me in select.members else self._left(state, ctx)
        if state.stage != "wait":
            return state, ()
        late = 0 < state.cycle < select.cycle and state.inside < 0
        return self._arrived(state, ctx) if late else self._proceed(state, ctx)

    def _moved(self, state: State, moved: ring.Moved, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """After a step of the member: if its cycle is decided, take the result or leave it, and train on."""
        member, out = moved
        state = replace(state, member=member, timer=member.timer)
        if member.decided is None:
            return state, out
        state = replace(state, decided=member.decided)
        if member.committed:
            tells = herald(member.ring, ctx.seed) == ctx.me
            state, more = self._rule.committed(state, member.session, member.decided, ctx.me, tells)
            out = (*out, *more)
        state, more = self._left(state, ctx)
        return state, (*out, *more)

    def _left(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """The ring one was in is over, with or without a result."""
        state = replace(state, member=None, inside=-1, lent=None)
        if state.stage == "ring":
            return self._next(state, ctx, state.cycle + 1)
        return self._proceed(state, ctx) if state.stage == "wait" else (state, ())
