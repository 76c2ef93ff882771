"""HADFL's runtime supervisor and model manager: who is alive, what is decided, rings restarted around the dead, copies.

Here: the coordinator's state and pure functions over it. Not here: plans and draws (`coordinator`). Invariant: a cycle
is decided once, and every answer about it afterwards is that decision; commits are numbered in the order of decisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TypeAlias

from fieldfare.algorithms.hadfl.messages import Backup, Decided, Prepared, Profile, Select, Skip, Version
from fieldfare.algorithms.hadfl.ring import fingerprint, step_of
from fieldfare.algorithms.hadfl.versions import Brown
from fieldfare.core.effects import Effect, Send, Stop, Wake
from fieldfare.core.params import Params

_PATIENCE = 3
_SILENCE = 20
_MOST_PATIENT = 1024.0


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """The supervisor in `cycle` (0: negotiation), with the peers that are `alive`.

    `profiles` and the newest `reports` by peer; `paces`: seconds per step as planned with; `brown`: predictions;
    `strayed`: cycles in a row a peer was off its pace. `rings`: the newest epoch of late cycles; `decisions` of them,
    the last at `decided_s`, `commits` so far. `waited`: how often this cycle's reports were waited for. `kept`: the
    last back-ups, `model` the newest of them (at first, the start). `plans`: how many there were. `drawn`: in which
    cycle a peer was last drawn. `suspected`: who was taken for dead in a ring; `patience` doubles where
    that was wrong.
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
    commits: int = 0
    suspected: tuple[str, ...] = ()
    patience: float = 1.0


Changed: TypeAlias = tuple[State, Sequence[Effect]]


def in_time(state: State) -> set[str]:
    """Who of those alive has reported for this cycle."""
    return {name for name in state.alive if name in state.reports and state.reports[name].cycle >= state.cycle}


def complete(state: State) -> bool:
    """Whether nobody is waited for."""
    return bool(state.alive) and in_time(state) == set(state.alive)


def reported(state: State, src: str, report: Version) -> State:
    """A peer has trained; who was given up is alive again. An old report changes nothing.

    Who was suspected and has never been away shows that links are slower than thought.
    """
    if src in state.reports and report.cycle <= state.reports[src].cycle:
        return state
    if src in state.suspected:
        state = replace(cleared(state, src), patience=min(2.0 * state.patience, _MOST_PATIENT))
    alive = state.alive if src in state.alive else tuple(p for p in state.peers if p in {*state.alive, src})
    brown = {**state.brown, src: state.brown[src].report(report.version)}
    return replace(state, alive=alive, reports={**state.reports, src: report}, brown=brown)


def cleared(state: State, src: str) -> State:
    """Nobody suspects `src`."""
    return replace(state, suspected=tuple(name for name in state.suspected if name != src))


def decide(state: State, src: str, asked: Prepared, now: float) -> Changed:
    """All members hold the same: that is the decision, unless there was one or the ring has been restarted."""
    known = state.decisions.get(asked.cycle)
    if known is not None:
        return state, (Send(src, known),)
    if asked.epoch != state.rings[asked.cycle].epoch:
        return state, (Send(src, state.rings[asked.cycle]),)
    made = Decided(asked.cycle, asked.epoch, asked.digest, asked.versions, state.commits + 1)
    decisions = {**state.decisions, asked.cycle: made}
    return replace(state, decisions=decisions, decided_s=now, commits=made.serial), (Send(src, made),)


def skip(state: State, src: str, asked: Skip) -> Changed:
    """Restart a ring without the dead (or with coarser sums) under the next epoch; with one left, call it off.

    The dead is left out of what is drawn and waited for until it reports, and of the rings that are drawn already.
    """
    ring, known = state.rings[asked.cycle], state.decisions.get(asked.cycle)
    if known is not None:
        return state, (Send(src, known),)
    if asked.epoch != ring.epoch or src not in ring.members:
        return state, (Send(src, ring),)
    if isfinite(asked.peak) and asked.peak > 0.0:
        return _restarted(state, ring, ring.members, step_of(ring.wire, asked.peak, len(ring.members)))
    state, out = _restarted(state, ring, tuple(name for name in ring.members if name != asked.dead), ring.step)
    if asked.dead not in state.alive or asked.dead == src:
        return state, out
    alive, suspected = tuple(name for name in state.alive if name != asked.dead), (*state.suspected, asked.dead)
    state = replace(state, alive=alive, suspected=suspected)
    for later in sorted(state.rings):
        ring = state.rings[later]
        if later > asked.cycle and later not in state.decisions and asked.dead in ring.members:
            state, more = _restarted(state, ring, tuple(m for m in ring.members if m != asked.dead), ring.step)
            out = (*out, *more)
    return state, out


def _restarted(state: State, ring: Select, members: tuple[str, ...], step: float) -> Changed:
    if len(members) < 2:
        none = Decided(ring.cycle, -1, "", ())
        state = replace(state, decisions={**state.decisions, ring.cycle: none})
        return state, tuple(Send(name, none) for name in ring.members)
    again = replace(
        ring, epoch=ring.epoch + 1, members=members, step=step, hop_s=2.0 * ring.hop_s, ack_s=2.0 * ring.ack_s
    )  # fmt: skip
    state = replace(state, rings={**state.rings, ring.cycle: again})
    return state, tuple(Send(name, again) for name in state.peers)


def late(state: State, wait_s: float, now: float) -> tuple[State, Sequence[Effect], bool]:
    """The period is long over, and so is it since a ring was decided: go on (true) with those who have reported.

    But not while a ring holds somebody up. A ring open for `_PATIENCE` such waits is called off, so that nobody stays
    in it for ever.
    """
    here = in_time(state)
    rest = state.decided_s + wait_s - now
    if rest > 0.0 and here < {*state.alive}:
        return state, (Wake(rest, ("cycle", state.cycle)),), False
    held = {c: ring for c, ring in state.rings.items() if c < state.cycle and c not in state.decisions}
    busy = {name for ring in held.values() for name in ring.members} - here
    if not here and state.waited >= _SILENCE:
        return state, (Stop("no peer reports any more"),), False
    if not here or (busy and state.waited < _PATIENCE):
        return replace(state, waited=state.waited + 1), (Wake(wait_s, ("cycle", state.cycle)),), False
    off = {c: Decided(c, -1, "", ()) for c, ring in held.items() if {*ring.members} & busy}
    told = [Send(name, off[c]) for c in off for name in held[c].members]
    state = replace(state, decisions={**state.decisions, **off}, alive=tuple(p for p in state.alive if p in here))
    return state, told, True


def ended(state: State, wait_s: float, now: float) -> Changed:
    """After the last cycle: the end, once all know the last decision; a ring still open is waited for a while."""
    if any(ring.members and c not in state.decisions for c, ring in state.rings.items()) and state.waited < _PATIENCE:
        return replace(state, waited=state.waited + 1), (Wake(wait_s, ("end",)),)
    round_s = max((len(ring.members) * ring.hop_s for ring in state.rings.values()), default=0.0)
    rest = state.decided_s + max(wait_s, round_s) - now
    return state, (Wake(rest, ("end",)) if rest > 0.0 else Stop("cycles"),)


def backed_up(state: State, backup: Backup, deltas: bool, most: int) -> State:
    """Keep a model, if it is that of a cycle as it was decided.

    `deltas`: what was decided on is not the model itself, but what it has been changed by, or a part of it.
    """
    decided = state.decisions.get(backup.cycle)
    right = backup.vector.shape == state.model.vector.shape and fingerprint(backup.vector) == backup.check
    if (
        not right
        or decided is None
        or decided.digest != backup.digest
        or not (deltas or backup.check == decided.digest)
    ):
        return state
    kept = tuple(sorted((*state.kept, backup), key=lambda one: (one.serial, one.cycle)))[-most:]
    return replace(state, kept=kept, model=state.model.replace(kept[-1].vector))
