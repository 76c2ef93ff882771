"""What coordinator and peers say to each other. All but `Frame` (in `ring`), `Broadcast` and `Backup` is control.

Here: the messages, as data. Not here: who answers what. Invariant: each can be lost in the sense that nothing breaks if
it comes late, twice or never: what it says is told again when somebody asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.algorithms.hadfl.draw import chances
from fieldfare.algorithms.hadfl.ring import Frame
from fieldfare.core.params import Params

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """A peer's warm-up: median seconds per local step and median absolute deviation over `samples` timings.

    `epoch_steps`: local steps of one pass over its data, of `examples` examples. `peak`: its largest weight.
    """

    step_s: float
    mad_s: float
    samples: int
    epoch_steps: int
    peak: float
    examples: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """From now on a cycle is `steps` local steps, in a period of `period_s` seconds."""

    steps: int
    period_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """A peer has trained for `cycle`: its version, seconds per step as measured, largest weight."""

    cycle: int
    version: float
    step_s: float
    peak: float


@dataclass(frozen=True, slots=True, eq=False)
class Select:
    """Who forms the ring of `cycle`, in order; a higher `epoch` of the same cycle restarts it.

    `names` and `predicted` are the table drawn from, so that everyone can redo the draw. `step`: unit of the sums.
    `hop_s`: patience with one hop. `backup`: whether the result also goes to the coordinator. `mean_steps`: local steps
    per cycle, mean over all; `mean_examples`: over the members. `ages`: cycles since each name
    was last drawn, where that counts. `count`: how many were to be drawn.
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
    mean_examples: float = 1.0
    ages: tuple[float, ...] = ()
    count: int = 2

    def record(self) -> dict[str, Any]:
        """What a run keeps of this: who was drawn, and the chance that each name had."""
        table = dict(zip(self.names, self.predicted, strict=True))
        ages = dict(zip(self.names, self.ages, strict=True)) if self.ages else None
        chance = chances(table, self.count, ages)
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


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """To the coordinator: all members of `cycle`, `epoch` hold `digest`; may we?"""

    cycle: int
    epoch: int
    digest: str
    versions: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """The one decision about a cycle: `epoch` is committed, or nothing (`epoch` -1)."""

    cycle: int
    epoch: int
    digest: str
    versions: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        """What a run keeps of this."""
        return {"cycle": self.cycle, "epoch": self.epoch}


@dataclass(frozen=True, slots=True, eq=False)
class Broadcast:
    """The committed mean of a cycle, for those who were not in its ring."""

    cycle: int
    version: float
    vector: F32


@dataclass(frozen=True, slots=True, eq=False)
class Backup:
    """The committed mean of a cycle for the coordinator to keep; `digest` as in `Done`."""

    cycle: int
    digest: str
    version: float
    vector: F32


@dataclass(frozen=True, slots=True, eq=False)
class Join:
    """A peer is back and has lost what it held."""


@dataclass(frozen=True, slots=True, eq=False)
class Welcome:
    """The last model kept, for one who is back: train `steps` from it in `cycle`."""

    cycle: int
    steps: int
    period_s: float
    version: float
    model: Params


Message: TypeAlias = (
    Profile | Plan | Version | Select | Frame | Probe | Ack | Skip | Done | Prepared | Decided | Broadcast | Backup
    | Join | Welcome
)  # fmt: skip
