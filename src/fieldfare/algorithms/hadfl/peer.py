"""HADFL's peer: it trains at its own pace, joins the ring when drawn, and merges what others have agreed on.

Here: training, reports, and what becomes of a result. Not here: the ring itself (`member`, `session`). Invariant: the
model changes in three places only: a local training is over, a cycle this peer holds the result of is decided, or a
broadcast is merged between two trainings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from fieldfare.algorithms.hadfl import member as ring
from fieldfare.algorithms.hadfl.agreed import blend, contribution, drawn, herald, peak, run_of, step_factor
from fieldfare.algorithms.hadfl.member import Member
from fieldfare.algorithms.hadfl.messages import (
    Ack,
    Backup,
    Broadcast,
    Decided,
    Done,
    Join,
    Message,
    Plan,
    Probe,
    Profile,
    Select,
    Version,
    Welcome,
)  # fmt: skip
from fieldfare.algorithms.hadfl.periods import typical
from fieldfare.algorithms.hadfl.ring import Frame
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Publish, Run, Send
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Gathered, Joined, Left, Received, Started, Woke
from fieldfare.core.folds import Stack
from fieldfare.core.params import Params

_EARLY = 16
"""Frames kept of rings that this peer has not entered yet: what is dropped is sent again when it is missed."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A peer in `stage` ("new", "warm", "idle", "train", "wait", "ring", "done", "down") of `cycle`.

    `version`: cumulative local steps behind `model`, merged as the models are. `steps`, `period_s`: the plan. `serial`
    numbers the trainings; the one under way began at `begun` and takes `under_way` steps, `left` follow in this cycle;
    `took`: (steps, seconds) of what is over in it. `pieces`: seconds per step in warm-up. `selects`: the newest epoch
    of the cycles ahead. `base`: the last mean in the model, of cycle `applied`, since when `pending` steps were taken.
    `early`: frames before their `Select`.
    """

    model: Params
    stage: str = "new"
    coordinator: str = ""
    peers: tuple[str, ...] = ()
    cycle: int = 0
    version: float = 0.0
    steps: int = 0
    period_s: float = 0.0
    serial: int = 0
    begun: float = 0.0
    under_way: int = 0
    left: int = 0
    took: tuple[int, float] = (0, 0.0)
    pieces: tuple[float, ...] = ()
    selects: Mapping[int, Select] = field(default_factory=dict[int, Select])
    member: Member | None = None
    decided: Decided | None = None
    incoming: Broadcast | None = None
    applied: int = 0
    early: tuple[Frame, ...] = ()
    timer: int = 0
    base: Params | None = None
    pending: int = 0
    examples: float = 1.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A device of HADFL: `cycles` cycles of local steps at `lr`, in batches of `batch_size`.

    Warm-up: `warmup` trainings of `warmup_steps` steps at a tenth of `lr` from the common start, the first not counted,
    thrown away afterwards (our reading). `blend`: lambda of w <- lambda w_agg + (1 - lambda) w for those outside the
    ring, 1/2 by our reading, 1 overwrites. `stride`: steps per training, hence how soon a broadcast is merged; None
    takes a whole cycle at once. `per_cycle` as the coordinator's. `evaluate`: central evaluations of committed means.

    `rule`: "models" averages models, as HADFL does. "deltas" is ours: every contribution is the last mean plus what was
    learnt since, per step and by examples (`step_factor`), and those outside the ring shift what they have learnt onto
    the new mean instead of blending it away, so that nothing is lost until they are drawn.
    """

    cycles: int
    lr: float = 0.1
    batch_size: int = 16
    warmup: int = 4
    warmup_steps: int = 5
    blend: float = 0.5
    stride: int | None = None
    per_cycle: int = 2
    rule: Literal["models", "deltas"] = "models"
    work: str = "train"
    evaluate: tuple[str, ...] = ()
    messages: ClassVar[Message | None] = None
    """For those who store what is under way: the types of all that is said."""

    def __post_init__(self) -> None:
        if self.cycles < 1 or self.warmup < 2 or self.warmup_steps < 1 or self.per_cycle < 2 or self.batch_size < 1:
            raise UsageError(
                f"Peer(cycles={self.cycles}, warmup={self.warmup}, warmup_steps={self.warmup_steps}, "
                f"per_cycle={self.per_cycle}, batch_size={self.batch_size}): use cycles, warmup_steps and batch_size "
                ">= 1, warmup and per_cycle >= 2."
            )
        if not 0.0 < self.blend <= 1.0:
            raise UsageError(f"Peer(blend={self.blend}): the share of the received mean is in (0, 1]; 1 overwrites.")
        if self.stride is not None and self.stride < 1:
            raise UsageError(f"Peer(stride={self.stride}): use a number of steps >= 1, or None.")

    def init(self, model: Params) -> State:
        return State(model)

    def step(self, state: State, event: Event, ctx: Context) -> tuple[State, Sequence[Effect]]:
        match event:
            case Started(roster=roster) if state.stage == "new":
                state = replace(state, stage="warm", coordinator=roster["coordinator"][0], peers=roster["peer"])
                return self._train(state, ctx, self.warmup_steps)
            case Left(node) if node == ctx.me and state.stage not in ("new", "down"):
                return _gone(state), ()
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
            case _:
                return state, ()

    def _heard(self, state: State, src: str, body: object, ctx: Context) -> tuple[State, Sequence[Effect]]:
        member = state.member
        boss = src == state.coordinator
        match body:
            case Plan(steps, period_s) if boss:
                state = replace(state, steps=steps, period_s=period_s)
                first = state.stage == "idle" and not state.cycle
                return self._next(replace(state, base=state.model), ctx, 1) if first else (state, ())
            case Select() if boss:
                return self._selected(state, body, ctx)
            case Welcome(cycle, steps, period_s, version, model) if boss and state.stage == "idle":
                state = replace(state, model=model, version=version, steps=steps, period_s=period_s, applied=cycle - 1)
                state = replace(state, base=model, pending=0)
                return self._next(state, ctx, cycle)
            case Frame():
                if member is not None and (body.cycle, body.epoch) == (member.ring.cycle, member.ring.epoch):
                    return self._moved(state, ring.on_frame(member, body), ctx)
                newer = body.cycle >= state.cycle and body.run == run_of(ctx.seed)
                return (replace(state, early=(*state.early, body)[-_EARLY:]) if newer else state), ()
            case Done() if member is not None:
                return self._moved(state, ring.on_done(member, body), ctx)
            case Decided() if member is not None:
                return self._moved(state, ring.on_decided(member, body), ctx)
            case Decided(cycle, -1) if cycle in state.selects:
                off = replace(state.selects[cycle], members=())
                state = replace(state, selects={**state.selects, cycle: off})
                return self._proceed(state, ctx) if state.stage == "ring" and cycle == state.cycle else (state, ())
            case Ack() if member is not None:
                return self._moved(state, ring.on_ack(member, src, body), ctx)
            case Probe():
                return state, self._probed(state, src, body, ctx)
            case Broadcast(cycle) if cycle > state.applied:
                known = state.incoming
                return (state if known is not None and known.cycle >= cycle else replace(state, incoming=body)), ()
            case _:
                return state, ()

    def _probed(self, state: State, src: str, probe: Probe, ctx: Context) -> tuple[Effect, ...]:
        if state.decided is not None and state.decided.cycle == probe.cycle:
            return (Send(src, state.decided),)
        if state.member is not None and state.member.ring.cycle == probe.cycle:
            return ring.on_probe(state.member, src, probe)
        if state.stage in ("train", "wait") and state.cycle <= probe.cycle:
            done, seconds = state.took
            pace = seconds / done if done else state.period_s / max(state.steps, 1)
            due = state.begun + (state.under_way + state.left) * pace - ctx.now
            return (Send(src, Ack(probe.cycle, max(due, 0.0) if state.stage == "train" else 0.0)),)
        return ()

    # Training

    def _train(self, state: State, ctx: Context, steps: int) -> tuple[State, Sequence[Effect]]:
        warm = state.stage == "warm"
        serial = state.serial + 1
        config = {
            "steps": steps, "lr": 0.1 * self.lr if warm else self.lr, "round": max(state.cycle, 1), "reply": "model",
        }  # fmt: skip
        run = Run(
            self.work, (ctx.me,), ("train", serial), state.model, reduce={"model": Stack()}, config=config,
            key=("hadfl", ctx.me, serial),
        )  # fmt: skip
        return replace(state, serial=serial, begun=ctx.now, under_way=steps), (run,)

    def _trained(self, state: State, event: Gathered, ctx: Context) -> tuple[State, Sequence[Effect]]:
        seconds, steps = ctx.now - state.begun, state.under_way
        state = replace(state, under_way=0)
        got = event.output.get("model")
        if state.stage == "warm":
            return self._warmed(state, event, seconds / steps, ctx)
        if got is not None and len(event.clients):
            model = state.model.replace(np.array(got.value[0], np.float32))
            state = replace(state, model=model, version=state.version + steps, pending=state.pending + steps)
        state = self._merge(replace(state, took=(state.took[0] + steps, state.took[1] + seconds)))
        return self._go_on(state, ctx) if state.left else self._arrived(state, ctx)

    def _warmed(self, state: State, event: Gathered, pace: float, ctx: Context) -> tuple[State, Sequence[Effect]]:
        state = replace(state, pieces=(*state.pieces, pace))
        if len(state.pieces) < self.warmup:
            return self._train(state, ctx, self.warmup_steps)
        middle, spread = typical(state.pieces[1:])
        epoch = math.ceil(max(event.weight, 1.0) / self.batch_size)
        examples = max(event.weight, 1.0)
        profile = Profile(middle, spread, len(state.pieces) - 1, epoch, peak(state.model.vector), examples)
        return replace(state, stage="idle", examples=examples), (Send(state.coordinator, profile),)

    def _next(self, state: State, ctx: Context, cycle: int) -> tuple[State, Sequence[Effect]]:
        """Begin to train for `cycle`; or, after the last, end."""
        selects = {c: select for c, select in state.selects.items() if c >= cycle}
        early = tuple(frame for frame in state.early if frame.cycle >= cycle)
        state = replace(state, member=None, cycle=cycle, selects=selects, early=early, took=(0, 0.0))
        state = self._merge(state)
        if cycle > self.cycles:
            return replace(state, stage="done"), ()
        return self._go_on(replace(state, stage="train", left=state.steps), ctx)

    def _go_on(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        steps = state.left if self.stride is None else min(self.stride, state.left)
        return self._train(replace(state, left=state.left - steps), ctx, steps)

    def _merge(self, state: State) -> State:
        """Blend in the mean that was broadcast, w <- lambda w_agg + (1 - lambda) w; versions alike (our reading)."""
        got = state.incoming
        if got is None or got.cycle <= state.applied or got.vector.shape != state.model.vector.shape:
            return replace(state, incoming=None)
        if self.rule == "deltas" and state.base is not None:
            moved = (state.model.vector + (got.vector - state.base.vector)).astype(np.float32)
            base = state.base.replace(got.vector)
            return replace(state, model=state.model.replace(moved), base=base, applied=got.cycle, incoming=None)
        vector = blend(got.vector, state.model.vector, self.blend)
        version = self.blend * got.version + (1.0 - self.blend) * state.version
        model = state.model.replace(vector)
        return replace(state, model=model, version=version, applied=got.cycle, incoming=None)

    # Cycles

    def _arrived(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """The local steps of a cycle are done: report, then join the ring or go on.

        Who comes late takes its place in the ring that waits for it, else that of the newest cycle.
        """
        steps, seconds = state.took
        ahead = sorted(state.selects)
        mine = [c for c in ahead if ctx.me in state.selects[c].members]
        cycle = mine[0] if mine else max([state.cycle, *ahead])
        state = replace(state, stage="wait", cycle=cycle)
        told = Send(state.coordinator, Version(cycle, state.version, seconds / steps, peak(state.model.vector)))
        state, out = self._proceed(state, ctx)
        return state, (told, *out)

    def _proceed(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        select = state.selects.get(state.cycle)
        if select is None:
            return state, ()
        if ctx.me not in select.members:
            return self._next(state, ctx, state.cycle + 1)
        early = [f for f in state.early if (f.cycle, f.epoch) == (select.cycle, select.epoch)]
        timer = state.timer + 1 if state.member is None else state.member.timer + 1
        vector = state.model.vector
        if self.rule == "deltas" and state.base is not None:
            factor = step_factor(select, state.pending, state.examples)
            vector = contribution(vector, state.base.vector, factor)
        member, out = ring.enter(
            run_of(ctx.seed), select, ctx.me, vector, state.version, state.coordinator, timer, early
        )
        timer = timer if member is None else member.timer
        return replace(state, stage="ring", member=member, timer=timer), out

    def _selected(self, state: State, select: Select, ctx: Context) -> tuple[State, Sequence[Effect]]:
        known = state.selects.get(select.cycle)
        stale = select.cycle < state.cycle or (known is not None and select.epoch <= known.epoch)
        if stale or not drawn(select, self.per_cycle, ctx.seed):
            return state, ()
        state = replace(state, selects={**state.selects, select.cycle: select})
        if state.stage == "wait" and select.cycle > state.cycle:
            return self._arrived(state, ctx)
        if state.stage == "wait" or (state.stage == "ring" and select.cycle == state.cycle):
            return self._proceed(state, ctx)
        return state, ()

    def _moved(self, state: State, moved: ring.Moved, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """After a step of the member: if its cycle is decided, apply the result or leave it, and train on."""
        member, out = moved
        state = replace(state, member=member, timer=member.timer)
        if member.decided is None:
            return state, out
        state = replace(state, decided=member.decided)
        if member.committed:
            state, more = self._commit(state, member, member.decided, ctx)
            out = (*out, *more)
        state, more = self._next(state, ctx, state.cycle + 1)
        return state, (*out, *more)

    def _commit(
        self, state: State, member: Member, decided: Decided, ctx: Context
    ) -> tuple[State, Sequence[Effect]]:  # fmt: skip
        result, select = member.session.result, member.ring
        assert result is not None
        version = sum(decided.versions) / len(decided.versions)
        model = state.model.replace(result)
        state = replace(state, model=model, base=model, pending=0, version=version, applied=select.cycle)
        if herald(select, ctx.seed) != ctx.me:
            return state, ()
        rest = [name for name in state.peers if name not in select.members]
        out: list[Effect] = [Send(name, Broadcast(select.cycle, version, result)) for name in rest]
        if select.backup:
            out.append(Send(state.coordinator, Backup(select.cycle, decided.digest, version, result)))
        return state, (*out, Publish(model, select.cycle, self.evaluate))


def _gone(state: State) -> State:
    """What a device that has gone still knows when it comes back: whom to ask, and its plan."""
    return State(
        state.model, "down", state.coordinator, state.peers, steps=state.steps, period_s=state.period_s,
        serial=state.serial, timer=state.timer + 2,
    )  # fmt: skip
