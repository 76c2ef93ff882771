"""What is said when a session moves, or its owner is lost. Names of the handover's messages as in the specification.

Here: the messages, as data. Not here: who answers what (`leave`, `arrive`, `attach`, `central`). Invariant: as of all
`messages`: each may come late, twice, out of order or never. State of a session is in bytes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fieldfare.algorithms.fedfly.messages import Array, Forward, InRound
from fieldfare.algorithms.fedfly.tickets import Ticket


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """Device to its owner: I am at edge `to` now; the session should be there by `deadline_s` (absolute)."""

    to: str
    deadline_s: float = float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class Prep:
    """Source to destination: may this session come? `size_bytes` in all; `model_hash` of its model.

    `policy`: how it is to come, for the records.
    """

    device: str
    epoch: int
    attempt: int
    round: int
    size_bytes: int
    deadline_s: float
    model_hash: str
    policy: str = ""

    def record(self) -> dict[str, Any]:
        """What is put on record: a handover begins."""
        names = ("device", "epoch", "attempt", "round", "policy", "size_bytes")
        return {"what": "prep", **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, slots=True, eq=False)
class Accept:
    """It may come; with `free` at any time, else each long part in its `Turn`.

    `round`: of the global model the destination holds; `public`: its key to seal for.
    """

    device: str
    epoch: int
    attempt: int
    round: int
    free: bool
    public: bytes = b""


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """Source to destination: I have something long to send; and back: now."""

    device: str
    epoch: int
    attempt: int


Reason = Literal["full", "late", "model", "unknown", "reference"]


@dataclass(frozen=True, slots=True, eq=False)
class Reject:
    """It cannot come, or what came is of no use here."""

    device: str
    epoch: int
    attempt: int
    reason: Reason


@dataclass(frozen=True, slots=True, eq=False)
class Pre:
    """A page of a copy of the session while it still trains at the source.

    A copy is a difference from the one before, or the `batches` trained since, which must come to `digest`.
    """

    device: str
    epoch: int
    attempt: int
    number: int
    page: int
    pages: int
    blob: bytes
    batches: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Got:
    """A page of copy `number` has come; `whole`: all of them have."""

    device: str
    epoch: int
    attempt: int
    number: int
    page: int
    whole: bool


@dataclass(frozen=True, slots=True, eq=False)
class Freeze:
    """Source to device: batch `seq` is the first that goes to edge `to`."""

    round: int
    epoch: int
    seq: int
    to: str


@dataclass(frozen=True, slots=True, eq=False)
class Resume:
    """Source to device: the handover is off; batch `seq` comes here."""

    round: int
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True, eq=False)
class Final:
    """The frozen session, or the `batches` trained since the last copy; `digest` of what must come out."""

    device: str
    epoch: int
    attempt: int
    blob: bytes
    digest: str
    batches: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """The acknowledgement: the session is here, with this digest."""

    device: str
    epoch: int
    attempt: int
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class Abort:
    """The source keeps the session; forget what came."""

    device: str
    epoch: int
    attempt: int


@dataclass(frozen=True, slots=True, eq=False)
class Commit:
    """Source to centre: countersign this."""

    ticket: Ticket

    @property
    def device(self) -> str:
        """Whose session it is about."""
        return self.ticket.device

    @property
    def round(self) -> int:
        """The round of the session."""
        return self.ticket.round

    @property
    def epoch(self) -> int:
        """The epoch of the new owner."""
        return self.ticket.epoch

    def record(self) -> dict[str, Any]:
        """What is put on record: a session is to change hands."""
        names = ("device", "epoch", "round", "src", "dst", "kind", "withheld")
        return {"what": "commit", **{name: getattr(self.ticket, name) for name in names}}


@dataclass(frozen=True, slots=True, eq=False)
class Committed:
    """From now on `ticket.dst` owns the session. `round`: the centre's; `blob`: the last replica, in a failover."""

    ticket: Ticket
    round: int
    blob: bytes = b""


@dataclass(frozen=True, slots=True, eq=False)
class Denied:
    """Centre to an edge that wanted to commit: the session is no longer its own."""

    device: str
    epoch: int
    owner: str


@dataclass(frozen=True, slots=True, eq=False)
class Carry:
    """Source to device: the sealed session, for the device to bring along."""

    round: int
    epoch: int
    to: str
    blob: bytes
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class Attach:
    """Device to its new owner: the ticket, and where the device is.

    `applied`: batches behind the device half (-1: it has none of this round); `marks`: earlier batches it can go back
    to; `forward`: batch `applied`, where it is ready; `carried`: the sealed session; `tries`: how often this was sent;
    `near`: the edge the device is at.
    """

    ticket: Ticket
    round: int
    applied: int
    marks: tuple[int, ...]
    forward: Forward | None = None
    carried: bytes = b""
    tries: int = 0
    near: str = ""

    @property
    def batch(self) -> int:
        """The batch whose activations it carries; -1: none."""
        return -1 if self.forward is None else self.forward.seq


@dataclass(frozen=True, slots=True, eq=False)
class Attached:
    """Go on with batch `seq`; or, with `grad` (and `between`) of batch `seq - 1`, from before it.

    `applied`: as in the `Attach` that this answers.
    """

    round: int
    epoch: int
    seq: int
    applied: int
    grad: Array | None = None
    between: Array | None = None

    @property
    def batch(self) -> int:
        """The batch whose gradient it carries; -1: none."""
        return -1 if self.grad is None else self.seq - 1


@dataclass(frozen=True, slots=True, eq=False)
class Release:
    """Destination to source: the device is here, your copy is not needed any more."""

    device: str
    epoch: int


@dataclass(frozen=True, slots=True, eq=False)
class Lost:
    """Device to centre: `edge`, which I take for the owner in `epoch`, is silent ("silent") or has no session of mine
    ("unknown"); or I have lost what I held ("reboot"). I am near edge `near`."""

    round: int
    epoch: int
    edge: str
    near: str
    reason: Literal["silent", "unknown", "reboot"]


@dataclass(frozen=True, slots=True, eq=False)
class Replica:
    """Owner to centre: the session before batch `seq`, in case this edge dies."""

    device: str
    round: int
    epoch: int
    seq: int
    blob: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Fetch:
    """A new owner without the session, or without its gradient: to the source, or to the centre."""

    device: str
    round: int
    epoch: int


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """The source's copy of the session it has given away."""

    device: str
    round: int
    epoch: int
    blob: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Relay:
    """To the centre, for `to`; and from the centre to `to`, from `src`."""

    src: str
    to: str
    body: Any = None

    @property
    def inner(self) -> Any:
        """What is relayed."""
        return self.body


Message: TypeAlias = (
    InRound | Move | Prep | Accept | Turn | Reject | Pre | Got | Freeze | Resume | Final | Ready | Abort | Commit
    | Committed | Denied | Carry | Attach | Attached | Release | Lost | Replica | Fetch | Stored | Relay
)  # fmt: skip
"""All that is said."""
