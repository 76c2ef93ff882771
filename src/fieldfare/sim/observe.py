"""What a driver tells those who watch: records, progress displays, callbacks. Watching changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from fieldfare.core.effects import Run
from fieldfare.core.events import Evaluated, Gathered
from fieldfare.core.params import Params


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A gather is over: the ask, what was folded, and total bytes so far."""

    now: float
    ask: Any
    event: Gathered
    bytes_down: float
    bytes_up: float


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """A node published a version; `evaluate` says which central evaluations will follow."""

    now: float
    node: str
    model: Params
    version: int
    evaluate: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A central evaluation was delivered."""

    now: float
    event: Evaluated


@dataclass(frozen=True, slots=True)
class Progressed:
    """A step is over and its effects are performed: a moment at which everything may be saved."""

    now: float
    steps: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run is over."""

    now: float
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """A `Send` of `size` bytes from node `src` to `dst`, told as soon as it is known when it `arrives`.

    So not always in the order of sending, `now`: what waits for a link is told when it has one. `arrives` nan: it is
    lost; inf: it still waited for a link when the run ended. `kind`: the name of the body's class. `radio_j`: joules
    of the sender's and the receiver's radio, see `sim.radio`.
    """

    now: float
    arrives: float
    src: str
    dst: str
    kind: str
    size: int
    body: Any
    radio_j: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Worked:
    """A `Run` of `node` on itself is over: absolute seconds, an index into `fleet.tasks.OUTCOMES`, and the `run`.

    `steps`: the local steps asked for, 0 where the work counts none; those of work cut short were begun, not all done.
    """

    node: str
    begun: float
    ended: float
    steps: int
    outcome: int
    run: Run | None = None


@dataclass(frozen=True, slots=True)
class Came:
    """The device of `node` has come (`there`) or gone, as its sessions say."""

    now: float
    node: str
    there: bool


Observation: TypeAlias = Answered | Published | Measured | Progressed | Stopped | Sent | Worked | Came
Observer: TypeAlias = Callable[[Observation], None]
