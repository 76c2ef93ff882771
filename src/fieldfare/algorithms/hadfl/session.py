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


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """Member `place` of `ring`, after `hop` frames received: `parts` n chunks, integers of the ring's `wire`.

    `held[c]`: bitmap of the members in chunk c. `sent`: every frame sent in this epoch, by hop. `inbox`: frames that
    came before their turn. `result`: the mean `[P]`, and its `digest`, once all members are in all chunks.
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


def begin(run: int, ring: Select, me: str, vector: F32) -> tuple[Session, list[Frame]]:
    """Enter `ring` with the contribution `vector` `[P]`; the frames to send to the next member."""
    n, place = len(ring.members), ring.members.index(me)
    bounds, whole = cuts(len(vector), n), quantise(vector, ring.step, ring.wire, n)
    parts = tuple(whole[a:b] for a, b in pairwise(bounds))
    session = Session(run, ring, place, parts, (1 << place,) * n)
    if n == 1:
        result = mean_of(whole, ring.step, 1)
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
        and frame.payload.shape == session.parts[chunk].shape
        and frame.payload.dtype == np.dtype(session.ring.wire)
    )


def _take(session: Session) -> tuple[Session, list[Frame]]:
    """The frame whose turn it is becomes part of this member's chunks."""
    inbox, n = dict(session.inbox), session.n
    frame = inbox.pop(session.hop)
    at, payload, held = frame.chunk, frame.payload, frame.contributors
    if frame.phase == "reduce":
        payload, held = session.parts[at] + payload, held | session.held[at]
    parts = (*session.parts[:at], payload, *session.parts[at + 1 :])
    holds = (*session.held[:at], held, *session.held[at + 1 :])
    session = replace(session, parts=parts, held=holds, hop=session.hop + 1, inbox=inbox)
    if session.hop < hops(n):
        return _send(session)
    result = mean_of(session.total, session.ring.step, n)
    return replace(session, result=result, digest=fingerprint(result)), []


def _send(session: Session) -> tuple[Session, list[Frame]]:
    ring, hop, n = session.ring, session.hop, session.n
    chunk = sends(session.place, hop, n)
    frame = seal(
        Frame(
            session.run, ring.cycle, ring.epoch, phase_of(hop, n), hop, chunk, session.held[chunk], 0,
            session.parts[chunk],
        )
    )  # fmt: skip
    return replace(session, sent=(*session.sent, frame)), [frame]
