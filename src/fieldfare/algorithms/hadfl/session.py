"""One ring as one member lives it: frames in, frames out, restarts, until it holds the mean and passes the token.

Here: a state machine without time and without the coordinator. Not here: probes' timing (`peer`), who is in the ring
and what is decided (`coordinator`). Invariants: the vector given is never changed; frames of another run, cycle or
older epoch, unsound ones and repeats change nothing; what was sent can be sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from fieldfare.algorithms.hadfl.messages import Select
from fieldfare.algorithms.hadfl.ring import (
    F32,
    Frame,
    Ints,
    cuts,
    fingerprint,
    hops,
    mean_of,
    phase_of,
    quantise,
    seal,
    sends,
    sound,
)  # fmt: skip
from fieldfare.algorithms.hadfl.widths import Bools, Cover


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """Member `place` of `ring`, after `hop` frames received: `parts` n chunks, integers of the ring's `wire`.

    `held[c]`: bitmap of the members in chunk c. `sent`: every frame sent in this epoch, by hop. `inbox`: frames that
    came before their turn. `result`: the mean `[P]`, and its `digest`, once all members are in all chunks. `cover`: of
    unlike widths; all vectors are then of the U coordinates of the ring, and a sum travels where somebody is in it.
    """

    run: int
    ring: Select
    place: int
    parts: tuple[Ints, ...]
    held: tuple[int, ...]
    hop: int = 0
    sent: tuple[Frame, ...] = ()
    inbox: Mapping[int, Frame] = field(default_factory=dict[int, Frame])
    result: F32 | None = None
    digest: str = ""
    cover: Cover | None = None

    @property
    def n(self) -> int:
        return len(self.ring.members)

    @property
    def total(self) -> Ints:
        """The sums `[P]`: of all members once there is a `result`."""
        return np.concatenate(self.parts)

    @property
    def before(self) -> str:
        """The member whose frames come here."""
        return self.ring.members[self.place - 1]

    @property
    def after(self) -> str:
        """The member to whom frames go."""
        return self.ring.members[(self.place + 1) % self.n]


def begin(run: int, ring: Select, me: str, vector: F32, cover: Cover | None = None) -> tuple[Session, list[Frame]]:
    """Enter `ring` with the contribution `vector` `[P]` (`[U]` of a `cover`); the frames to send to the next member."""
    n, place = len(ring.members), ring.members.index(me)
    bounds, whole = cuts(len(vector), n), quantise(vector, ring.step, ring.wire, n)
    parts = tuple(whole[a:b] for a, b in pairwise(bounds))
    session = Session(run, ring, place, parts, (1 << place,) * n, cover=cover)
    if n == 1:
        result = mean_of(whole, ring.step, 1 if cover is None else cover.divisors)
        return replace(session, result=result, digest=fingerprint(result)), []
    return _send(session)


def receive(session: Session, frame: Frame) -> tuple[Session, list[Frame]]:
    """Take a frame from the member before; the frames to send on."""
    ring, out = session.ring, list[Frame]()
    known = (frame.run, frame.cycle, frame.epoch) == (session.run, ring.cycle, ring.epoch)
    if not known or not session.hop <= frame.hop < hops(session.n) or frame.hop in session.inbox:
        return session, out
    if not sound(frame) or not _fitting(session, frame):
        return session, out
    session = replace(session, inbox={**session.inbox, frame.hop: frame})
    while session.hop in session.inbox:
        session, more = _take(session)
        out += more
    return session, out


def again(session: Session, hop: int) -> list[Frame]:
    """The frame of `hop` once more, if it was sent."""
    return [session.sent[hop]] if 0 <= hop < len(session.sent) else []


def _fitting(session: Session, frame: Frame) -> bool:
    """Whether a frame is of the chunk, phase, length and contributors that its hop demands."""
    n, before = session.n, (session.place - 1) % session.n
    chunk = sends(before, frame.hop, n)
    phase = phase_of(frame.hop, n)
    owed = 0
    for back in range(frame.hop + 1 if phase == "reduce" else n):
        owed |= 1 << (before - back) % n
    return (
        (frame.chunk, frame.phase, frame.contributors) == (chunk, phase, owed)
        and frame.payload.shape == (_length(session, chunk, owed),)
        and frame.payload.dtype == np.dtype(session.ring.wire)
        and frame.counts == (() if session.cover is None else session.cover.counts(owed))
    )


def _within(session: Session, chunk: int, contributors: int) -> Bools | None:
    """Which coordinates of a chunk some contributor has; None for all."""
    if session.cover is None:
        return None
    start = sum(len(part) for part in session.parts[:chunk])
    return session.cover.mask(contributors, start, start + len(session.parts[chunk]))


def _length(session: Session, chunk: int, contributors: int) -> int:
    """Numbers in a frame of that chunk."""
    within = _within(session, chunk, contributors)
    return len(session.parts[chunk]) if within is None else int(within.sum())


def _take(session: Session) -> tuple[Session, list[Frame]]:
    """The frame whose turn it is becomes part of this member's chunks."""
    inbox, n = dict(session.inbox), session.n
    frame = inbox.pop(session.hop)
    at, payload, held = frame.chunk, frame.payload, frame.contributors
    if frame.phase == "reduce":
        if (within := _within(session, at, held)) is None:
            payload = session.parts[at] + payload
        else:
            mine = session.parts[at].copy()
            mine[within] += payload
            payload = mine
        held |= session.held[at]
    parts = (*session.parts[:at], payload, *session.parts[at + 1 :])
    holds = (*session.held[:at], held, *session.held[at + 1 :])
    session = replace(session, parts=parts, held=holds, hop=session.hop + 1, inbox=inbox)
    if session.hop < hops(n):
        return _send(session)
    result = mean_of(session.total, session.ring.step, n if session.cover is None else session.cover.divisors)
    return replace(session, result=result, digest=fingerprint(result)), []


def _send(session: Session) -> tuple[Session, list[Frame]]:
    ring, hop, n = session.ring, session.hop, session.n
    chunk = sends(session.place, hop, n)
    held, payload = session.held[chunk], session.parts[chunk]
    within = _within(session, chunk, held)
    payload = payload if within is None else payload[within]
    counts = () if session.cover is None else session.cover.counts(held)
    frame = seal(Frame(session.run, ring.cycle, ring.epoch, phase_of(hop, n), hop, chunk, held, 0, payload, counts))
    return replace(session, sent=(*session.sent, frame)), [frame]
