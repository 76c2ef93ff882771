"""HADFL's coordinator: strategy generator, runtime supervisor and model manager; no model passes through it.

Here: plans from profiles, the draw of every cycle from predicted versions, restarts of a ring around a dead member, the
one decision per cycle, back-ups. Not here: models, but for the copies it keeps. Invariant: a cycle is decided once, and
every answer about it afterwards is that decision.

The draw of cycle j + 1 is made when the reports of cycle j are in, while j's ring still runs: this is what versions are
predicted for (our reading), and it keeps the coordinator out of everyone's way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import ClassVar

from fieldfare.algorithms.hadfl.draw import draw
from fieldfare.algorithms.hadfl.messages import (
    Backup,
    Decided,
    Join,
    Message,
    Plan,
    Prepared,
    Profile,
    Select,
    Skip,
    Version,
    Welcome,
)  # fmt: skip
from fieldfare.algorithms.hadfl.periods import Mode, Period, drifted, plan
from fieldfare.algorithms.hadfl.ring import fingerprint, step_for
from fieldfare.algorithms.hadfl.versions import Brown, steady
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Send, Stop, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Received, Started, Woke
from fieldfare.core.params import Params

_REMEMBERED = 8
_PATIENCE = 3
_SILENCE = 20


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """The supervisor in `cycle` (0: negotiation), with the peers that are `alive`.

    `profiles` and the newest `reports` by peer; `paces`: seconds per step as planned with; `brown`: predictions;
    `strayed`: cycles in a row a peer was off its pace. `rings`: the newest epoch of late cycles; `decisions` of them,
    the last at `decided_s`. `waited`: how often this cycle's reports were waited for. `kept`: the last back-ups,
    `model` the newest of them (at first, the start). `plans`: how many there were. `drawn`: in which cycle a
    peer was last drawn.
    """

    model: Params
    peers: tuple[str, ...] = ()
    alive: tuple[str, ...] = ()
    cycle: int = 0
    profiles: Mapping[str, Profile] = field(default_factory=dict[str, Profile])
    reports: Mapping[str, Version] = field(default_factory=dict[str, Version])
    paces: Mapping[str, float] = field(default_factory=dict[str, float])
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    period_s: float = 0.0
    brown: Mapping[str, Brown] = field(default_factory=dict[str, Brown])
    strayed: Mapping[str, int] = field(default_factory=dict[str, int])
    rings: Mapping[int, Select] = field(default_factory=dict[int, Select])
    decisions: Mapping[int, Decided] = field(default_factory=dict[int, Decided])
    kept: tuple[Backup, ...] = ()
    plans: int = 0
    waited: int = 0
    decided_s: float = 0.0
    drawn: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Coordinator:
    """`cycles` cycles with rings of `per_cycle` peers (all of them where there are fewer).

    `mode`: "deadline" (our default), "lcm" or "even", see `periods`; `steps` is taken for everyone's local epoch where
    given. With all peers per cycle "even" is decentralised FedAvg, and of one step lock-step all-reduce. `smoothing`:
    Brown's s. A hop is waited for 3 (`latency_s` + M / (n `bytes_per_s`)) + `floor_s` before its sender is probed.
    Whoever has not reported after `slack` periods is left out until it does. Every `backup_every` cycles the mean is
    kept, the last `keep` of them. A pace off by more than `drift` in two cycles running makes a new plan.
    `by_age` (ours, off in HADFL): who has not been drawn for long is drawn sooner.
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
    messages: ClassVar[Message | None] = None
    """For those who store what is under way: the types of all that is said."""

    def __post_init__(self) -> None:
        if (
            min(self.cycles, self.backup_every, self.keep, 1 if self.steps is None else self.steps) < 1
            or self.per_cycle < 2
        ):
            raise UsageError(
                f"Coordinator(cycles={self.cycles}, per_cycle={self.per_cycle}, backup_every={self.backup_every}, "
                f"keep={self.keep}, steps={self.steps}): use per_cycle >= 2 and the others >= 1."
            )
        if self.slack < 1.0 or not self.floor_s > 0.0 or not self.bytes_per_s > 0.0 or self.latency_s < 0.0:
            raise UsageError(
                f"Coordinator(slack={self.slack}, floor_s={self.floor_s}, bytes_per_s={self.bytes_per_s}, "
                f"latency_s={self.latency_s}): use slack >= 1, floor_s and bytes_per_s above 0, latency_s >= 0."
            )

    def init(self, model: Params) -> State:
        return State(model)

    def step(self, state: State, event: Event, ctx: Context) -> tuple[State, Sequence[Effect]]:
        match event:
            case Started(roster=roster) if not state.peers:
                return replace(state, peers=roster["peer"]), (Wake(self.warmup_patience_s, ("profiles",)),)
            case Woke(tag=("profiles",)) if state.cycle == 0 and len(state.profiles) > 1:
                return self._plan(state, ctx)
            case Woke(tag=("cycle", int(cycle))) if cycle == state.cycle > 0:
                return self._late(state, ctx)
            case Woke(tag=("end",)) if state.cycle > self.cycles:
                return state, (Stop("cycles"),)
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
                return self._reported(state, src, body, ctx)
            case Skip(cycle=cycle) if cycle in state.rings:
                return self._skip(state, src, body)
            case Prepared(cycle, epoch, digest, versions) if cycle in state.rings:
                known = state.decisions.get(cycle)
                if known is None and epoch != state.rings[cycle].epoch:
                    return state, (Send(src, state.rings[cycle]),)
                decided = known or Decided(cycle, epoch, digest, versions)
                state = state if known else replace(state, decided_s=ctx.now)
                return replace(state, decisions={**state.decisions, cycle: decided}), (Send(src, decided),)
            case Backup():
                return self._keep(state, body), ()
            case Join() if src in state.brown:
                return state, (self._welcome(state, src),)
            case _:
                return state, ()

    # Strategy

    def _plan(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """Negotiation is over: everyone's local steps, and the first draw."""
        names = tuple(name for name in state.peers if name in state.profiles)
        state = replace(state, alive=names, paces={name: state.profiles[name].step_s for name in names})
        state, period = self._periods(state)
        brown = {name: steady(0.0, float(period.counts[i]), self.smoothing) for i, name in enumerate(names)}
        state, out = self._select(replace(state, brown=brown), ctx)
        return state, (*(Send(name, Plan(state.counts[name], period.seconds)) for name in names), *out)

    def _admit(self, state: State, src: str) -> tuple[State, Sequence[Effect]]:
        """Somebody has profiled late: it gets the period there is, and its own count of steps in it."""
        pace = state.profiles[src].step_s
        steps = max(1, int(state.period_s / pace))
        version = state.kept[-1].version if state.kept else 0.0
        state = replace(
            state, paces={**state.paces, src: pace}, counts={**state.counts, src: steps},
            brown={**state.brown, src: steady(version, float(steps), self.smoothing)},
        )  # fmt: skip
        return state, (self._welcome(state, src),)

    def _welcome(self, state: State, src: str) -> Effect:
        version = state.kept[-1].version if state.kept else 0.0
        return Send(src, Welcome(state.cycle, state.counts[src], state.period_s, version, state.model))

    def _periods(self, state: State) -> tuple[State, Period]:
        names = tuple(state.paces)
        epochs = [self.steps or state.profiles[name].epoch_steps for name in names]
        period = plan(list(state.paces.values()), epochs, self.mode)
        counts = dict(zip(names, period.counts, strict=True))
        return replace(state, counts=counts, period_s=period.seconds, strayed={}, plans=state.plans + 1), period

    def _replan(self, state: State) -> tuple[State, Sequence[Effect]]:
        """A new plan when somebody's pace has drifted for two cycles; nobody stops for it."""
        strayed = {
            name: state.strayed.get(name, 0) + 1
            for name, report in state.reports.items()
            if name in state.paces and drifted(state.paces[name], report.step_s, self.drift)
        }
        state = replace(state, strayed=strayed)
        if max(strayed.values(), default=0) < 2:
            return state, ()
        before = state.counts
        measured = {name: state.reports[name].step_s if name in state.reports else c for name, c in state.paces.items()}
        state, period = self._periods(replace(state, paces=measured))
        changed = [name for name in state.alive if state.counts[name] != before.get(name)]
        return state, tuple(Send(name, Plan(state.counts[name], period.seconds)) for name in changed)

    def _select(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """Draw the ring of the next cycle among those alive, and tell everyone."""
        cycle = state.cycle + 1
        state = replace(state, cycle=cycle, waited=0)
        if cycle > self.cycles:
            return state, (Wake(self.slack * state.period_s, ("end",)),)
        table = {name: state.brown[name].ahead(1.0) for name in state.alive}
        ages = {name: float(cycle - state.drawn.get(name, 0)) for name in table} if self.by_age else {}
        members = draw(ctx.seed, cycle, table, self.per_cycle, ages)
        members = members if len(members) > 1 else ()
        n = max(len(members), 1)
        peaks = [state.reports[m].peak if m in state.reports else state.profiles[m].peak for m in state.alive]
        peak = max((p for p in peaks if isfinite(p)), default=1.0)
        hop_s = 3.0 * (self.latency_s + state.model.bytes / (n * self.bytes_per_s)) + self.floor_s
        backup = cycle % self.backup_every == 0 or cycle == self.cycles
        select = Select(
            cycle, 0, members, tuple(table), tuple(table.values()), step_for(peak, n), hop_s, backup,
            sum(state.counts[m] for m in table) / max(len(table), 1), _examples(state, members),
            tuple(ages.values()), self.per_cycle,
        )  # fmt: skip
        rings = {c: r for c, r in state.rings.items() if c > cycle - _REMEMBERED} | {cycle: select}
        decisions = {c: d for c, d in state.decisions.items() if c in rings}
        wake = Wake(self.slack * state.period_s, ("cycle", cycle))
        drawn = {**state.drawn, **dict.fromkeys(members, cycle)}
        state = replace(state, rings=rings, decisions=decisions, drawn=drawn)
        return state, (*(Send(name, select) for name in state.peers), wake)

    # Supervision

    def _reported(self, state: State, src: str, report: Version, ctx: Context) -> tuple[State, Sequence[Effect]]:
        if src in state.reports and report.cycle <= state.reports[src].cycle:
            return state, ()
        alive = state.alive if src in state.alive else tuple(p for p in state.peers if p in {*state.alive, src})
        brown = {**state.brown, src: state.brown[src].report(report.version)}
        state = replace(state, alive=alive, reports={**state.reports, src: report}, brown=brown)
        return self._turn(state, ctx) if self._in_time(state) == set(state.alive) else (state, ())

    def _in_time(self, state: State) -> set[str]:
        return {name for name in state.alive if name in state.reports and state.reports[name].cycle >= state.cycle}

    def _late(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """The period is long over, and so is it since a ring was decided: go on with those who have reported.

        But not while a ring holds somebody up. A ring open for `_PATIENCE` such waits is called off, so that nobody
        stays in it for ever.
        """
        here = self._in_time(state)
        rest = state.decided_s + self.slack * state.period_s - ctx.now
        if rest > 0.0 and here < {*state.alive}:
            return state, (Wake(rest, ("cycle", state.cycle)),)
        held = {c: ring for c, ring in state.rings.items() if c < state.cycle and c not in state.decisions}
        busy = {name for ring in held.values() for name in ring.members} - here
        if not here and state.waited >= _SILENCE:
            return state, (Stop("no peer reports any more"),)
        if not here or (busy and state.waited < _PATIENCE):
            wake = Wake(self.slack * state.period_s, ("cycle", state.cycle))
            return replace(state, waited=state.waited + 1), (wake,)
        off = {c: Decided(c, -1, "", ()) for c, ring in held.items() if {*ring.members} & busy}
        told = [Send(name, off[c]) for c in off for name in held[c].members]
        state = replace(state, decisions={**state.decisions, **off}, alive=tuple(p for p in state.alive if p in here))
        state, out = self._turn(state, ctx)
        return state, (*told, *out)

    def _turn(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        if not 0 < state.cycle <= self.cycles:
            return state, ()
        state, plans = self._replan(state)
        state, out = self._select(state, ctx)
        return state, (*plans, *out)

    def _skip(self, state: State, src: str, skip: Skip) -> tuple[State, Sequence[Effect]]:
        """Restart a ring without `dead` (or with coarser sums) under the next epoch; with one left, call it off."""
        ring, known = state.rings[skip.cycle], state.decisions.get(skip.cycle)
        if known is not None:
            return state, (Send(src, known),)
        if skip.epoch != ring.epoch or src not in ring.members:
            return state, (Send(src, ring),)
        step = ring.step
        if isfinite(skip.peak) and skip.peak > 0.0:
            members, step = ring.members, step_for(skip.peak, len(ring.members))
        else:
            members = tuple(name for name in ring.members if name != skip.dead)
        if len(members) < 2:
            none = Decided(skip.cycle, -1, "", ())
            state = replace(state, decisions={**state.decisions, skip.cycle: none})
            return state, tuple(Send(name, none) for name in ring.members)
        ring = replace(
            ring, epoch=ring.epoch + 1, members=members, step=step, mean_examples=_examples(state, members)
        )  # fmt: skip
        state = replace(state, rings={**state.rings, skip.cycle: ring})
        return state, tuple(Send(name, ring) for name in state.peers)

    # Model manager

    def _keep(self, state: State, backup: Backup) -> State:
        """Keep a mean, if it is the one that was decided."""
        decided = state.decisions.get(backup.cycle)
        right = backup.vector.shape == state.model.vector.shape and fingerprint(backup.vector) == backup.digest
        if not right or decided is None or decided.digest != backup.digest:
            return state
        kept = tuple(sorted((*state.kept, backup), key=lambda one: one.cycle))[-self.keep :]
        return replace(state, kept=kept, model=state.model.replace(kept[-1].vector))


def _examples(state: State, members: Sequence[str]) -> float:
    """Examples per member, in the mean."""
    return sum(state.profiles[name].examples for name in members) / max(len(members), 1) or 1.0
