"""What device, edges and centre say to each other in a round, batch by batch.

Here: the messages, as data. Not here: who answers what, and what is said when a session moves (`handover`). Invariant:
each may come late, twice, out of order or never; whoever waits for it asks again, and whoever gets it twice does
nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.params import Params

F32 = NDArray[np.float32]
Array = NDArray[Any]


# The round: centre, edges, devices


@dataclass(frozen=True, slots=True)
class Plan:
    """How a device trains in a round: cut at `cut`, behind `size` parameters; `steps` batches (0: as its data are).

    In a U the device also has what is behind `tail`, from parameter `stop` on, so that labels stay with it. `level`: of
    the view of the nodes, whose sub-model is cut (None: the whole model); `size` and `stop` are numbers of that.
    """

    cut: str
    size: int
    steps: int = 0
    tail: str = ""
    stop: int = 0
    level: int | None = None


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
    """To the centre: what `device` made of its part of the round's model, `vector` float32 `[P]`, from `samples`
    examples.

    `only`: the range of those parameters it has, where a device has vanished and the server half alone is known.
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

    @property
    def batch(self) -> int:
        """The batch this is about."""
        return self.seq


@dataclass(frozen=True, slots=True, eq=False)
class Between:
    """In a U: what the server's part makes of batch `seq`, for the end of the net on the device."""

    round: int
    epoch: int
    seq: int
    act: Array

    @property
    def batch(self) -> int:
        """The batch this is about."""
        return self.seq


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """In a U: the gradient of what was `Between`, and the batch's loss, summed over its examples."""

    round: int
    epoch: int
    seq: int
    grad: Array
    loss: float
    crc: int

    @property
    def batch(self) -> int:
        """The batch this is about."""
        return self.seq


@dataclass(frozen=True, slots=True, eq=False)
class Backward:
    """The gradient of the activations of batch `seq`; in a U, where it is sent again, what was `between`, too."""

    round: int
    epoch: int
    seq: int
    grad: Array
    between: Array | None = None

    @property
    def batch(self) -> int:
        """The batch this is about."""
        return self.seq


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


InRound: TypeAlias = (
    Round | Train | Update | Alive | Close | Begin | Forward | Between | Ends | Backward | Finish | Closed | Unknown
)
"""All that is said while nothing moves."""
