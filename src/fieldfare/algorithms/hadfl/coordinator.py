"""HADFL's coordinator: strategy generator, runtime supervisor and model manager; no model passes through it.

Here: plans from profiles, and the draw of every cycle from predicted versions. Not here: decisions, restarts, back-ups
(`supervision`); models, but for the copies it keeps.

The draw of cycle j + 1 is made when the reports of cycle j are in, while j's ring still runs: this is what versions are
predicted for (our reading), and it keeps the coordinator out of everyone's way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, isfinite
from typing import ClassVar, Literal

import numpy as np

from fieldfare.algorithms.hadfl.agreed import Counting, shares, unit
from fieldfare.algorithms.hadfl.draw import draw
from fieldfare.algorithms.hadfl.messages import (
    Backup,
    Join,
    Message,
    Plan,
    Prepared,
    Profile,
    Select,
    Skip,
    Version,
    Welcome,
)
from fieldfare.algorithms.hadfl.periods import Mode, Period, drifted, plan, reach, within
from fieldfare.algorithms.hadfl.ring import Wire, levels, ring_seconds
from fieldfare.algorithms.hadfl.supervision import (
    State,
    backed_up,
    cleared,
    complete,
    decide,
    ended,
    in_time,
    late,
    reported,
    skip,
)  # fmt: skip
from fieldfare.algorithms.hadfl.versions import steady
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Send, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Received, Started, Woke
from fieldfare.core.params import Params

_REMEMBERED = 8


@dataclass(frozen=True, slots=True)
class Coordinator:
    """`cycles` cycles with rings of `per_cycle` peers (all of them where there are fewer).

    `mode`: "deadline" (our default), "lcm" or "even", see `periods`; `steps` is taken for everyone's `epochs` local
    epochs where given. With all peers per cycle "even" is decentralised FedAvg, and of one step lock-step all-reduce.
    `smoothing`: Brown's s. Links are as probed, else of `latency_s` and `bytes_per_s`: a hop is waited for three times
    as long as it takes, plus `floor_s`, before its sender is probed. Whoever has not reported after `slack` periods is
    left out until it does. Every `backup_every` cycles the model is kept, the last `keep` of them. A pace off by more
    than `drift` in two cycles running makes a new plan. `weigh`: b_k, alike as in HADFL or by examples.

    Ours, off in HADFL: `by_age`, who has not been drawn for long is drawn sooner; `turns`, nobody is drawn twice before
    everybody once (`draw.Table`). `pace`: a period is as short as lets the ring take this share of it, yet at least
    `least` steps of the slowest (and at most the mode's). `reach`: how many steps a mean delta per step
    is worth (`periods.reach`). `wire`: what the ring's integers are of. `rule`, `counted`, `keep_warmup` and `parts`,
    whether they train parts of the model, are the peers' (`nodes` sets them).
    """

    cycles: int
    per_cycle: int = 2
    mode: Mode = "deadline"
    smoothing: float = 0.5
    latency_s: float = 0.01
    bytes_per_s: float = 1e7
    floor_s: float = 0.05
    slack: float = 2.0
    warmup_patience_s: float = 3600.0
    backup_every: int = 1
    keep: int = 3
    drift: float = 0.2
    steps: int | None = None
    by_age: bool = False
    turns: bool = False
    weigh: Literal["even", "examples"] = "even"
    pace: float | None = None
    least: int = 5
    reach: float | None = None
    wire: Wire = "int32"
    rule: Literal["models", "deltas"] = "models"
    counted: Counting = "once"
    keep_warmup: bool = False
    parts: bool = False
    epochs: int = 1
    messages: ClassVar[Message | State | None] = None
    """For those who store what is under way: the types of all that is said and held."""

    def __post_init__(self) -> None:
        steps = 1 if self.steps is None else self.steps
        if min(self.cycles, self.backup_every, self.keep, self.least, self.epochs, steps, self.per_cycle - 1) < 1:
            raise UsageError(
                f"Coordinator(cycles={self.cycles}, per_cycle={self.per_cycle}, backup_every={self.backup_every}, "
                f"keep={self.keep}, steps={self.steps}, epochs={self.epochs}, least={self.least}): use per_cycle >= 2 "
                "and the others >= 1."
            )
        if not (1.0 <= self.slack < inf and 0.0 < self.floor_s < inf and 0.0 <= self.latency_s < inf) or not (
            self.bytes_per_s > 0.0 and self.drift > 0.0 and self.warmup_patience_s > 0.0
        ):
            raise UsageError(
                f"Coordinator(slack={self.slack}, floor_s={self.floor_s}, bytes_per_s={self.bytes_per_s}, latency_s="
                f"{self.latency_s}, drift={self.drift}, warmup_patience_s={self.warmup_patience_s}): use slack >= 1, "
                "latency_s >= 0 and the others above 0, all but bytes_per_s, drift and warmup_patience_s finite."
            )
        steady(0.0, 1.0, self.smoothing)
        if (self.pace is not None and not 0.0 < self.pace <= 1.0) or (self.reach is not None and not self.reach >= 1.0):
            raise UsageError(
                f"Coordinator(pace={self.pace}, reach={self.reach}): use a share in (0, 1], a reach >= 1, or None."
            )
        levels(self.wire, self.per_cycle)

    def init(self, model: Params) -> State:
        return State(model)

    def step(self, state: State, event: Event, ctx: Context) -> tuple[State, Sequence[Effect]]:
        match event:
            case Started(roster=roster) if not state.peers:
                return replace(state, peers=roster["peer"]), (Wake(self.warmup_patience_s, ("profiles",)),)
            case Woke(tag=("profiles",)) if state.cycle == 0 and len(state.profiles) > 1:
                return self._plan(state, ctx)
            case Woke(tag=("cycle", int(cycle))) if cycle == state.cycle > 0:
                state, out, on = late(state, self._wait_s(state), ctx.now)
                state, more = self._turn(state, ctx) if on else (state, ())
                return state, (*out, *more)
            case Woke(tag=("end",)) if state.cycle > self.cycles:
                return ended(state, self._wait_s(state), ctx.now)
            case Received(src, body) if src in state.peers:
                return self._heard(state, src, body, ctx)
            case _:
                return state, ()

    def _heard(self, state: State, src: str, body: object, ctx: Context) -> tuple[State, Sequence[Effect]]:
        match body:
            case Profile() if state.cycle == 0:
                state = replace(state, profiles={**state.profiles, src: body})
                return self._plan(state, ctx) if len(state.profiles) == len(state.peers) else (state, ())
            case Profile():
                return self._admit(replace(state, profiles={**state.profiles, src: body}), src)
            case Version() if src in state.brown and isfinite(body.version):
                news = reported(state, src, body)
                return self._turn(news, ctx) if news is not state and complete(news) else (news, ())
            case Skip(cycle=cycle) if cycle in state.rings:
                before, (state, out) = state.alive, skip(state, src, body)
                state, more = self._turn(state, ctx) if state.alive != before and complete(state) else (state, ())
                return state, (*out, *more)
            case Prepared(cycle=cycle) if cycle in state.rings:
                return decide(state, src, body, ctx.now)
            case Backup():
                return backed_up(state, body, self.parts or self.rule == "deltas", self.keep), ()
            case Join() if src in state.brown:
                return self._welcome(cleared(state, src), src)
            case _:
                return state, ()

    # Plans

    def _plan(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """Negotiation is over: everyone's local steps, and the first draw (or two, where the warm-up is averaged)."""
        names = tuple(name for name in state.peers if name in state.profiles)
        state = replace(state, alive=names, paces={name: state.profiles[name].step_s for name in names})
        state, period = self._periods(state)
        brown = {name: steady(0.0, float(period.counts[i]), self.smoothing) for i, name in enumerate(names)}
        state, out = replace(state, brown=brown, cycle=-1 if self.keep_warmup else 0), ()
        if self.keep_warmup:
            state, out = self._select(state, ctx)
        state, more = self._select(state, ctx)
        return state, (*(Send(name, Plan(state.counts[name], period.seconds)) for name in names), *out, *more)

    def _admit(self, state: State, src: str) -> tuple[State, Sequence[Effect]]:
        """Somebody has profiled late: it gets the period there is, and its own count of steps in it."""
        pace = state.profiles[src].step_s
        steps = max(1, int(state.period_s / pace))
        version = state.kept[-1].version if state.kept else 0.0
        state = replace(
            state, paces={**state.paces, src: pace}, counts={**state.counts, src: steps},
            brown={**state.brown, src: steady(version, float(steps), self.smoothing)},
        )  # fmt: skip
        return self._welcome(state, src)

    def _welcome(self, state: State, src: str) -> tuple[State, Sequence[Effect]]:
        version, serial = (state.kept[-1].version, state.kept[-1].serial) if state.kept else (0.0, 0)
        told = Welcome(state.cycle, state.counts[src], state.period_s, version, state.model, serial)
        return replace(state, drawn={**state.drawn, src: state.cycle}), (Send(src, told),)

    def _periods(self, state: State) -> tuple[State, Period]:
        names = tuple(state.paces)
        paces = list(state.paces.values())
        work = [self.steps or self.epochs * max(state.profiles[name].epoch_steps, 1) for name in names]
        period = plan(paces, work, self.mode)
        if self.pace is not None:
            n, (latency_s, bytes_per_s) = min(self.per_cycle, len(names)), self._link(state)
            ring_s = ring_seconds(n, self._bytes(state), latency_s, bytes_per_s) if n > 1 else 0.0
            wanted = max(self.least, ceil(ring_s / self.pace / max(paces))) * max(paces)
            period = within(paces, wanted) if wanted < period.seconds else period
        counts = dict(zip(names, period.counts, strict=True))
        return replace(state, counts=counts, period_s=period.seconds, strayed={}, plans=state.plans + 1), period

    def _link(self, state: State) -> tuple[float, float]:
        """The slowest link that was probed: seconds, bytes per second."""
        probed = [profile for profile in state.profiles.values() if profile.bytes_per_s > 0.0]
        if not probed:
            return self.latency_s, self.bytes_per_s
        return max(profile.latency_s for profile in probed), min(profile.bytes_per_s for profile in probed)

    def _wait_s(self, state: State) -> float:
        """How long a cycle's reports, and a ring, are waited for: `slack` periods, each with a ring and a bypass."""
        n, (latency_s, bytes_per_s) = min(self.per_cycle, max(len(state.alive), 2)), self._link(state)
        ring_s = ring_seconds(n, self._bytes(state), latency_s, bytes_per_s)
        return self.slack * (state.period_s + ring_s + self._hop_s(state, n))

    def _bytes(self, state: State) -> int:
        """A contribution's bytes."""
        return state.model.size * np.dtype(self.wire).itemsize

    def _replan(self, state: State) -> tuple[State, Sequence[Effect]]:
        """A new plan when somebody's pace has drifted for two cycles; nobody stops for it."""
        off = {
            name
            for name, report in state.reports.items()
            if name in state.paces and drifted(state.paces[name], report.step_s, self.drift)
        }
        here = in_time(state)
        strayed = {name: state.strayed.get(name, 0) + (name in here) for name in off}
        state = replace(state, strayed=strayed)
        if max(strayed.values(), default=0) < 2:
            return state, ()
        before, told = state.counts, state.reports
        measured = {name: told[name].step_s if name in told else pace for name, pace in state.paces.items()}
        state, period = self._periods(replace(state, paces=measured))
        changed = [name for name in state.alive if state.counts[name] != before.get(name)]
        return state, tuple(Send(name, Plan(state.counts[name], period.seconds)) for name in changed)

    # Draws

    def _turn(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """This cycle's reports are in: the next draw."""
        if not 0 < state.cycle <= self.cycles:
            return state, ()
        state, plans = self._replan(state)
        state, out = self._select(state, ctx)
        return state, (*plans, *out)

    def _select(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """Draw the ring of the next cycle among those alive, and tell everyone."""
        state = replace(state, cycle=state.cycle + 1, waited=0)
        cycle, names = state.cycle, state.alive
        if cycle > self.cycles:
            return state, (Wake(self._wait_s(state), ("end",)),)
        ages = tuple(float(cycle - state.drawn.get(name, 0)) for name in names)
        select = Select(
            cycle, 0, (), names, tuple(state.brown[name].ahead(1.0) for name in names), 1.0, 1.0,
            cycle > 0 and (cycle % self.backup_every == 0 or cycle == self.cycles), 1.0,
            ages if self.by_age or self.turns else (), self.per_cycle if cycle else len(names),
            tuple(state.profiles[name].examples for name in names) if self.weigh == "examples" else (),
            self.wire if cycle else "int32", self.turns,
        )  # fmt: skip
        counts = [float(state.counts[name]) for name in names]
        steps = reach(counts, list(shares(select).values()), self.reach) if names else 1.0
        members = draw(ctx.seed, select.table)
        members = members if len(members) > 1 else ()
        hop_s, whole_s = self._hop_s(state, len(members)), state.model.bytes / self._link(state)[1]
        ack_s = hop_s + state.patience * whole_s
        select = replace(select, members=members, mean_steps=steps, hop_s=hop_s, ack_s=ack_s)
        peaks = {name: (state.reports.get(name) or state.profiles[name]).peak for name in names}
        cycles = dict(zip(names, ages if self.counted == "once" else (1.0,) * len(names), strict=True))
        select = replace(select, step=unit(select, peaks, cycles, self.rule, self.counted))
        rings = {c: r for c, r in state.rings.items() if c > cycle - _REMEMBERED} | {cycle: select}
        decisions = {c: d for c, d in state.decisions.items() if c in rings}
        drawn = {**state.drawn, **dict.fromkeys(members, cycle)} if cycle else state.drawn
        state = replace(state, rings=rings, decisions=decisions, drawn=drawn)
        wake = Wake(self._wait_s(state), ("cycle", cycle))
        return state, (*(Send(name, select) for name in state.peers), wake)

    def _hop_s(self, state: State, n: int) -> float:
        """Patience with a hop; what the last ring's herald still sends to the others comes first on its link.

        Where somebody was late the chunks of all hops come in one burst, behind which an answer has to queue.
        """
        latency_s, bytes_per_s = self._link(state)
        queued_s = (self._bytes(state) * (len(state.alive) - n) + state.model.bytes) / bytes_per_s - state.period_s
        burst_s = self._bytes(state) * (1.0 - 1.0 / max(n, 1)) / bytes_per_s
        hop_s = latency_s + self._bytes(state) / (max(n, 1) * bytes_per_s)
        return state.patience * (3.0 * hop_s + self.floor_s + max(queued_s, 0.0) + burst_s)
