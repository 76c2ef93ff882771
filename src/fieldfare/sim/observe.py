"""What a driver tells those who watch: records, progress displays, callbacks. Watching changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

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


Observation: TypeAlias = Answered | Published | Measured | Progressed | Stopped
Observer: TypeAlias = Callable[[Observation], None]
