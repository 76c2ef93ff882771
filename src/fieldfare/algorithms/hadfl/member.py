"""A member of a ring among its neighbours: frames, the token that goes round twice, probes of a silent neighbour.

Here: what a member says on what it hears, until the cycle is decided. Not here: training (`peer`), the decision
(`coordinator`). Invariant: nothing is applied here; who reads `committed` may apply, and all members of the decided
epoch then hold the same bits.

Two passes as HADFL has them (our reading: prepare and commit). Between them, and this is ours, the first member asks
the coordinator: passes alone cannot tell a slow first member from a dead one, and two halves of a ring could each
commit without the other. The coordinator decides each cycle once; it sees a checksum and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fieldfare.algorithms.hadfl.messages import Ack, Decided, Done, Prepared, Probe, Select, Skip
from fieldfare.algorithms.hadfl.ring import F32, Frame, fits, hops
from fieldfare.algorithms.hadfl.session import Session, again, begin, receive
from fieldfare.algorithms.hadfl.widths import Cover
from fieldfare.core.effects import Effect, Send, Wake

_DOUBLED = 5
"""How often patience is doubled where nothing moves."""


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One member in one epoch of a ring, which `version` its model has; `arbiter` names the coordinator.

    `token` came and waits for the chunks, `told` are the tokens sent. `timer` numbers the wait under way; `probed`: the
    neighbour was asked, `acked`: it answered; `tries`: how often something was asked or told since anything moved.
    """

    session: Session
    arbiter: str
    version: float
    timer: int
    token: Done | None = None
    told: tuple[Done, ...] = ()
    asked: Prepared | None = None
    probed: bool = False
    acked: bool = False
    tries: int = 0
    decided: Decided | None = None

    @property
    def ring(self) -> Select:
        return self.session.ring

    @property
    def committed(self) -> bool:
        """Whether the result of this epoch is the cycle's."""
        d = self.decided
        return d is not None and d.epoch == self.ring.epoch and d.digest == self.session.digest

    @property
    def waits_for(self) -> int:
        """The hop awaited; beyond the last hop, the turn of the token."""
        turn = 0 if self.session.result is None or self.session.place == 0 else len(self.told)
        return self.session.hop + turn


Moved = tuple[Member, Sequence[Effect]]


def enter(
    run: int, ring: Select, me: str, vector: F32, version: float, arbiter: str, timer: int, early: Sequence[Frame],
    cover: Cover | None = None,
) -> Moved | tuple[None, Sequence[Effect]]:  # fmt: skip
    """Enter `ring` with the contribution `vector` and take the frames that came `early`; or say why it cannot be."""
    if not fits(vector, ring.step, len(ring.members), ring.wire):
        peak = float(abs(vector).max(initial=0.0))
        return None, (Send(arbiter, Skip(ring.cycle, ring.epoch, me, peak)),)
    session, frames = begin(run, ring, me, vector, cover)
    for frame in early:
        session, more = receive(session, frame)
        frames += more
    member = Member(session, arbiter, version, timer)
    out: list[Effect] = [Send(session.after, frame) for frame in frames]
    member, more_out = _pass_on(member)
    return _wait(member, [*out, *more_out])


def on_frame(member: Member, frame: Frame) -> Moved:
    """A chunk from the member before."""
    session, frames = receive(member.session, frame)
    if session is member.session:
        return member, ()
    out: list[Effect] = [Send(session.after, one) for one in frames]
    moved = session.hop > member.session.hop
    member, more = _pass_on(replace(member, session=session))
    return _wait(member, [*out, *more]) if moved else (member, out)


def on_done(member: Member, done: Done) -> Moved:
    """The token: in turn 0 it waits here until the chunks are whole; in turn 1 the cycle is decided."""
    ring = member.ring
    if (done.cycle, done.epoch) != (ring.cycle, ring.epoch):
        return member, ()
    if done.turn == 0 and member.token is None:
        member, out = _pass_on(replace(member, token=done))
        return _wait(member, out) if out else (member, ())
    if done.turn == 1 and member.told:
        return on_decided(member, Decided(done.cycle, done.epoch, done.digest, done.versions, done.serial))
    return member, ()


def on_decided(member: Member, decided: Decided) -> Moved:
    """The decision, from the arbiter or a neighbour; handed on if this epoch is committed."""
    if decided.cycle != member.ring.cycle or member.decided is not None:
        return member, ()
    member = replace(member, decided=decided, timer=member.timer + 1)
    last = member.session.place == member.session.n - 1
    if not member.committed or last:
        return member, ()
    done = Done(decided.cycle, decided.epoch, 1, decided.digest, decided.versions, decided.serial)
    return replace(member, told=(*member.told, done)), (Send(member.session.after, done),)


def on_probe(member: Member, src: str, probe: Probe) -> tuple[Effect, ...]:
    """What a neighbour that waits is told: that we live, and what it missed once more."""
    ring = member.ring
    if probe.epoch > ring.epoch:
        return (Send(src, Ack(ring.cycle, 0.0)), Send(member.arbiter, Skip(ring.cycle, ring.epoch, src)))
    out: list[Effect] = [Send(src, Ack(ring.cycle, 0.0))]
    if probe.epoch == ring.epoch and src == member.session.after:
        turn = probe.hop - hops(member.session.n)
        missed = again(member.session, probe.hop) if turn < 0 else member.told[turn : turn + 1]
        out += [Send(src, one) for one in missed]
    return tuple(out)


def on_ack(member: Member, src: str, ack: Ack) -> Moved:
    """The neighbour lives: slow is not dead."""
    if not member.probed or src != member.session.before or ack.cycle != member.ring.cycle:
        return member, ()
    return _wait(member, (), max(ack.due_s, _longer(member)), member.tries + 1)


def on_tick(member: Member, timer: int) -> Moved:
    """Nothing came in time: ask the neighbour; when it does not answer either, tell the arbiter to skip it."""
    if timer != member.timer or member.decided is not None:
        return member, ()
    ring, session = member.ring, member.session
    if member.asked is not None:
        return _wait(member, (Send(member.arbiter, member.asked),), _longer(member), member.tries + 1)
    if member.probed and not member.acked:
        told = Send(member.arbiter, Skip(ring.cycle, ring.epoch, session.before))
        return _wait(member, (told,), _longer(member), member.tries + 1)
    probe = Send(session.before, Probe(ring.cycle, ring.epoch, member.waits_for))
    member, out = _wait(member, (probe,), ring.ack_s, member.tries)
    return replace(member, probed=True, acked=False), out


def _longer(member: Member) -> float:
    """Patience with one hop, doubled by every try in vain: whoever repeats itself too often fills the links."""
    return member.ring.hop_s * 2.0 ** min(member.tries, _DOUBLED)


def _wait(member: Member, out: Sequence[Effect], after_s: float | None = None, tries: int = 0) -> Moved:
    """Wait anew: as something has moved, or for `after_s` as nothing has after so many `tries`."""
    acked = after_s is not None
    member = replace(member, timer=member.timer + 1, probed=acked, acked=acked, tries=tries)
    wake = Wake(member.ring.hop_s if after_s is None else after_s, ("hop", member.timer))
    return member, (*out, wake)


def _pass_on(member: Member) -> Moved:
    """Start the token, hand it on, or bring it to the arbiter, once the chunks are whole."""
    session, ring, token = member.session, member.ring, member.token
    if session.result is None:
        return member, ()
    if token is not None and token.digest != session.digest:
        return replace(member, token=None), (Send(member.arbiter, Skip(ring.cycle, ring.epoch, "")),)
    if session.place == 0 and not member.told:
        done = Done(ring.cycle, ring.epoch, 0, session.digest, (member.version,))
        return replace(member, told=(done,)), (Send(session.after, done),)
    if token is None:
        return member, ()
    if session.place == 0 and member.asked is None:
        asked = Prepared(ring.cycle, ring.epoch, session.digest, token.versions)
        return replace(member, asked=asked), (Send(member.arbiter, asked),)
    if session.place > 0 and not member.told:
        done = replace(token, versions=(*token.versions, member.version))
        return replace(member, told=(done,)), (Send(session.after, done),)
    return member, ()
