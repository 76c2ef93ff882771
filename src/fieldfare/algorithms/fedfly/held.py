"""What an edge holds: its state, one record per device, and the handovers under way.

Here: the data, and the few functions all parts of an edge use on it. Not here: what is done with it (`serve`, `leave`,
`arrive`). Invariant: an edge trains a session only while it is the owner and the session is not frozen.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from fieldfare.algorithms.fedfly.handover import Attach, Relay
from fieldfare.algorithms.fedfly.messages import Ends, Forward, Plan
from fieldfare.algorithms.fedfly.policies import Settled
from fieldfare.algorithms.fedfly.session import Session
from fieldfare.algorithms.fedfly.tensors import Array
from fieldfare.algorithms.fedfly.tickets import Ticket
from fieldfare.core.effects import Effect, Send
from fieldfare.core.params import Params

Phase = Literal["prep", "turn", "pre", "stop", "final", "commit"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A batch that is there; in a U with what came `between` of it, and how it `ends`."""

    forward: Forward
    between: Array | None = None
    ends: Ends | None = None

    def is_of(self, session: Session) -> bool:
        """Whether it is the next one of a session."""
        return (self.forward.round, self.forward.seq) == (session.round, session.next)


@dataclass(frozen=True, slots=True, eq=False)
class Leave:
    """A session goes to `to`: the source's side.

    `phase`: "prep" (asked), "turn" (in line to send, frozen or not; `free`: there is no line), "pre" (copy `number` is
    on its way), "stop" (to be frozen behind the next step), "final" (frozen and sent), "commit" (the centre is asked;
    only it can end this). `copied`: the last copy that is there, or on its way as `blob`, which may be `batches` that
    come to `digest`, of which `page` pages were sent and `acked` are there; `log`: what was trained since. `sent`: the
    session as the destination will have it. `withheld`: the last gradient has not gone down. `ticket`: as asked for.
    `against`: the round of the destination's global model, 0: none in common. `relayed`: it goes through the centre.
    `public`: the destination's key.
    """

    to: str
    attempt: int
    policy: Settled
    deadline_s: float
    phase: Phase = "prep"
    number: int = 0
    copied: Session | None = None
    blob: bytes = b""
    batches: int = 0
    digest: str = ""
    page: int = 0
    acked: tuple[int, ...] = ()
    log: tuple[Batch, ...] = ()
    sent: Session | None = None
    withheld: bool = False
    free: bool = False
    ticket: Ticket | None = None
    against: int = 0
    relayed: bool = False
    public: bytes = b""
    timer: int = 0
    tries: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Arrive:
    """A session comes from `src`: the destination's side. `asks`: it has something long to send, and with `turn` sends
    it; `ready`: it is here, whole.

    `copied`: the last copy, number `number` (-1: none); of number `coming` these `pages` are there. `replay`: batches
    to train behind the copy, one of them as `replaying`, to come to `digest`, the `final` session or copy `coming`.
    `since_s`: when it was asked for.
    """

    src: str
    epoch: int
    attempt: int
    round: int
    size_bytes: int
    deadline_s: float
    since_s: float
    asks: bool = False
    turn: bool = False
    number: int = -1
    copied: Session | None = None
    coming: int = -1
    pages: tuple[bytes | None, ...] = ()
    replay: tuple[Batch, ...] = ()
    replaying: int = 0
    final: bool = False
    digest: str = ""
    expires_s: float = 0.0
    ready: Session | None = None
    relayed: bool = False
    timer: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """All an edge knows of one device.

    `session`: its own while `owner`; else a copy, kept until it is released. `epoch`: the newest of ownership it knows.
    `frozen`: no step is begun. `busy`: number of the step under way (0: none). `batch`: the one that has come last.
    `ticket`: the newest ownership it knows. `attached`: the device has come with it. `wants`: the edge where the device
    is, and by when its session should be there. `attempt`: handovers begun so far; `refused`: in vain, in a row.
    `waiting`: an `Attach` for which the session is still missing. `restore`: the ownership is a failover whose replica
    has not come. `step_s`: how long the last batch took, from gradient to gradient; `last_s`: when it ended.
    """

    session: Session | None = None
    owner: bool = False
    epoch: int = 0
    frozen: bool = False
    busy: int = 0
    batch: Batch | None = None
    ticket: Ticket | None = None
    attached: bool = False
    wants: str = ""
    deadline_s: float = float("inf")
    attempt: int = 0
    leave: Leave | None = None
    arrive: Arrive | None = None
    waiting: Attach | None = None
    restore: bool = False
    step_s: float = 0.0
    last_s: float = 0.0
    refused: int = 0

    def with_batch(self, forward: Forward) -> Held:
        """The record with a batch that came; the same one again changes nothing."""
        known = self.batch.forward if self.batch is not None else None
        again = known is not None and (known.round, known.seq, known.crc) == (forward.round, forward.seq, forward.crc)
        return self if again else replace(self, batch=Batch(forward))


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """An edge: `model` fixes the layout; `base` is the global model of `round`, `plan` its cuts; `held` by device.

    `running`: `{serial: (device, round, epoch, batch)}` of steps under way, `queue` devices that wait for one of the
    lanes. `timer` numbers all timers.
    """

    model: Params
    central: str = ""
    edges: tuple[str, ...] = ()
    round: int = 0
    base: Params | None = None
    plan: Mapping[str, Plan] = field(default_factory=dict[str, Plan])
    held: Mapping[str, Held] = field(default_factory=dict[str, Held])
    serial: int = 0
    running: Mapping[int, tuple[str, int, int, int]] = field(default_factory=dict[int, tuple[str, int, int, int]])
    queue: tuple[str, ...] = ()
    timer: int = 0

    def of(self, device: str) -> Held:
        """What is held of `device`; an empty record where nothing is."""
        return self.held.get(device) or Held()

    def put(self, device: str, held: Held) -> State:
        """The same edge with another record of `device`."""
        return replace(self, held={**self.held, device: held})


Out = tuple[State, Sequence[Effect]]


def checksum(*arrays: Array) -> int:
    """CRC-32 of what goes up of a batch: a frame whose bytes do not fit is as good as lost."""
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
    return crc


def sound(body: Forward | Ends) -> bool:
    """Whether a batch, or its end, came as it was sent."""
    return body.crc == (checksum(body.act, body.y) if isinstance(body, Forward) else checksum(body.grad))


def to_edge(state: State, me: str, to: str, body: object, relayed: bool) -> Effect:
    """A message to another edge, or through the centre where edges cannot reach each other."""
    return Send(state.central, Relay(me, to, body)) if relayed else Send(to, body)
