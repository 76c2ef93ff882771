"""What coordinator and peers say to each other: `Frame` (in `ring`), `Broadcast`, models for some, the rest is control.

Here: the messages, as data. Not here: who answers what. Invariant: nothing breaks if one comes late, twice or never.
What rings say, and results, is told again when somebody asks. Nobody asks for a draw or a report: where one never comes
a peer loses the cycle, and the run ends when no report comes at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.algorithms.hadfl.draw import Table, chances
from fieldfare.algorithms.hadfl.ring import F32, Frame, Ints, Wire
from fieldfare.core.params import Params


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """A peer's warm-up: median seconds per local step and median absolute deviation over `samples` timings.

    `epoch_steps`: local steps of one pass over its data, of `examples` examples. `peak`: its largest weight; where
    deltas travel the largest change of one step. `latency_s`, `bytes_per_s`: its link, where probed (0: it was not).
    """

    step_s: float
    mad_s: float
    samples: int
    epoch_steps: int
    peak: float
    examples: float = 1.0
    latency_s: float = 0.0
    bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Ping:
    """To a neighbour, to time the link both ways: send `payload` back."""

    serial: int
    payload: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Pong:
    """A `Ping`'s payload, back."""

    serial: int
    payload: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """From now on a cycle is `steps` local steps, in a period of `period_s` seconds."""

    steps: int
    period_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """A peer has trained for `cycle`: its version, seconds per step as measured, `peak` as in `Profile`."""

    cycle: int
    version: float
    step_s: float
    peak: float


@dataclass(frozen=True, slots=True, eq=False)
class Select:
    """Who forms the ring of `cycle`, in order; a higher `epoch` of the same cycle restarts it.

    `names` and `predicted` are the table drawn from, so that everyone can redo the draw. `step`: unit of the sums, and
    `wire` their type. `hop_s`: patience with one hop, `ack_s` with an answer, which may have to wait for a whole
    model on its link. `backup`: whether the result also goes to the coordinator.
    `mean_steps`: local steps that a mean delta per step is worth. `ages`: cycles since each name was last drawn, where
    that counts; `turns`: whoever has not had its turn comes first. `count`: how many were to be drawn. `examples` of
    each name, where they weigh.
    """

    cycle: int
    epoch: int
    members: tuple[str, ...]
    names: tuple[str, ...]
    predicted: tuple[float, ...]
    step: float
    hop_s: float
    backup: bool
    mean_steps: float = 1.0
    ages: tuple[float, ...] = ()
    count: int = 2
    examples: tuple[float, ...] = ()
    wire: Wire = "int32"
    turns: bool = False
    ack_s: float = 1.0

    @property
    def table(self) -> Table:
        """What the draw goes by."""
        return Table(self.cycle, self.count, self.names, self.predicted, self.ages, self.turns)

    def record(self) -> dict[str, Any]:
        """What a run keeps of this: who was drawn, and the chance that each name had."""
        chance = chances(self.table)
        return {"cycle": self.cycle, "epoch": self.epoch, "members": list(self.members), "chance": chance}


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Are you there? I wait in `cycle`, `epoch` for your frame (or turn of `Done`) number `hop`."""

    cycle: int
    epoch: int
    hop: int


@dataclass(frozen=True, slots=True, eq=False)
class Ack:
    """I am there, and for all I know in the ring of `cycle`; ready in about `due_s` seconds."""

    cycle: int
    due_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Skip:
    """To the coordinator: `dead` does not answer in `cycle`, `epoch`; or, with a `peak`, the sums would overflow."""

    cycle: int
    epoch: int
    dead: str
    peak: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """The token: in turn 0 it says that all before hold `digest`, in turn 1 that it is decided. Versions ride along."""

    cycle: int
    epoch: int
    turn: int
    digest: str
    versions: tuple[float, ...]
    serial: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """To the coordinator: all members of `cycle`, `epoch` hold `digest`; may we?"""

    cycle: int
    epoch: int
    digest: str
    versions: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """The one decision about a cycle: `epoch` is committed, as the `serial`-th of all; or nothing (`epoch` -1)."""

    cycle: int
    epoch: int
    digest: str
    versions: tuple[float, ...]
    serial: int = 0

    def record(self) -> dict[str, Any]:
        """What a run keeps of this."""
        return {"cycle": self.cycle, "epoch": self.epoch}


@dataclass(frozen=True, slots=True, eq=False)
class Broadcast:
    """The committed mean of a cycle, for those who were not in its ring.

    Where deltas travel: the sum over `members` members, in units of `step`, of what was committed as the `serial`-th.
    `behind`: in rings of unlike widths what the sums of every band were divided by, 0 for those that no member has.
    """

    cycle: int
    version: float
    vector: F32 | Ints
    serial: int = 0
    step: float = 0.0
    members: int = 0
    behind: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Backup:
    """The model after a cycle for the coordinator to keep; `digest` as decided, `check` the model's own."""

    cycle: int
    digest: str
    version: float
    vector: F32
    check: str
    serial: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Join:
    """A peer is back and has lost what it held."""


@dataclass(frozen=True, slots=True, eq=False)
class Welcome:
    """The last model kept, for one who is back: train `steps` from it in `cycle`. It holds `serial` commits."""

    cycle: int
    steps: int
    period_s: float
    version: float
    model: Params
    serial: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Behind:
    """To a peer: I hold all commits up to `serial` and have missed the next; please send me yours."""

    serial: int


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """The model after `serial` commits, the last in `cycle`: for one that is behind."""

    serial: int
    cycle: int
    vector: F32


Message: TypeAlias = (
    Profile | Ping | Pong | Plan | Version | Select | Frame | Probe | Ack | Skip | Done | Prepared | Decided | Broadcast
    | Backup | Join | Welcome | Behind | Whole
)  # fmt: skip
