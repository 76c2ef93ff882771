"""What device, edges and centre say to each other. Names of the handover's messages as in the specification.

Here: the messages, as data. Not here: who answers what. Invariant: each may come late, twice, out of order or never;
whoever waits for it asks again, and whoever gets it twice does nothing twice. State of a session is in bytes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.algorithms.fedfly.tickets import Ticket
from fieldfare.core.params import Params

F32 = NDArray[np.float32]
Array = NDArray[Any]


# The round: centre, edges, devices


@dataclass(frozen=True, slots=True)
class Plan:
    """How a device trains in a round: cut at `cut`, behind `size` parameters; `steps` batches (0: as its data are).

    In a U the device also has what is behind `tail`, from parameter `stop` on, so that labels stay with it.
    """

    cut: str
    size: int
    steps: int = 0
    tail: str = ""
    stop: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """Centre to edges: the global model of `round`; `owners` `{device: epoch}` of this edge's own devices.

    `plan`: `{device: Plan}` of all that train split, for edges that will own them.
    """

    round: int
    model: Params
    owners: Mapping[str, int]
    plan: Mapping[str, Plan]


@dataclass(frozen=True, slots=True, eq=False)
class Train:
    """Centre to a device that trains whole: `steps` local steps from `model`."""

    round: int
    model: Params
    steps: int


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """To the centre: what `device` made of the round's model, `vector` float32 `[P]`, from `samples` examples.

    `only`: the range of parameters it has, where a device has vanished and the server half alone is known.
    """

    device: str
    round: int
    epoch: int
    vector: F32
    samples: float
    loss: float
    only: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Alive:
    """Edge to centre, asked again about `round`: I am here, and have nothing to tell yet."""

    round: int


@dataclass(frozen=True, slots=True, eq=False)
class Close:
    """Centre to the owner: `device` is not waited for any longer in `round`; send what there is of it."""

    device: str
    round: int


# Batches: device and owner


@dataclass(frozen=True, slots=True, eq=False)
class Begin:
    """Edge to device: train `round` from this device half, by `plan`."""

    round: int
    epoch: int
    lower: Params
    plan: Plan


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """Activations `act [B, ...]` and labels `y [B]` (in a U: none, `[0]`) of batch `seq` of `steps`; `crc` of both."""

    round: int
    epoch: int
    seq: int
    steps: int
    act: Array
    y: Array
    crc: int


@dataclass(frozen=True, slots=True, eq=False)
class Between:
    """In a U: what the server's part makes of batch `seq`, for the end of the net on the device."""

    round: int
    epoch: int
    seq: int
    act: Array


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """In a U: the gradient of what was `Between`, and the batch's loss, summed over its examples."""

    round: int
    epoch: int
    seq: int
    grad: Array
    loss: float
    crc: int


@dataclass(frozen=True, slots=True, eq=False)
class Backward:
    """The gradient of the activations of batch `seq`; in a U, where it is sent again, what was `between`, too."""

    round: int
    epoch: int
    seq: int
    grad: Array
    between: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Finish:
    """All batches are done: the device half."""

    round: int
    epoch: int
    lower: F32


@dataclass(frozen=True, slots=True, eq=False)
class Closed:
    """The edge has the device half; the next round will come."""

    round: int
    epoch: int


@dataclass(frozen=True, slots=True, eq=False)
class Unknown:
    """The edge has no session that goes on from what the device has: ask the centre."""

    round: int
    epoch: int


# The handover: device, source, destination, centre


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """Device to its owner: I am at edge `to` now; the session should be there by `deadline_s` (absolute)."""

    to: str
    deadline_s: float = float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class Prep:
    """Source to destination: may this session come? `size_bytes` in all; `model_hash` of its model."""

    device: str
    epoch: int
    attempt: int
    round: int
    size_bytes: int
    deadline_s: float
    model_hash: str


@dataclass(frozen=True, slots=True, eq=False)
class Accept:
    """It is your turn to send. `round`: of the global model the destination holds; `public`: its key to seal for."""

    device: str
    epoch: int
    attempt: int
    round: int
    public: bytes = b""


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


@dataclass(frozen=True, slots=True, eq=False)
class Release:
    """Destination to source: the device is here, your copy is not needed any more."""

    device: str
    epoch: int


# Failures


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
    body: Any = field(default=None)


Message: TypeAlias = (
    Round | Train | Update | Alive | Close | Begin | Forward | Between | Ends | Backward | Finish | Closed | Unknown
    | Move | Prep | Accept | Reject | Pre | Got | Freeze | Resume | Final | Ready | Abort | Commit | Committed | Denied
    | Carry | Attach | Attached | Release | Lost | Replica | Fetch | Stored | Relay
)  # fmt: skip
