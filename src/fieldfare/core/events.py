"""What can happen to an algorithm. Drivers build these; `step` takes one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.effects import Scalar, Tag
from fieldfare.core.folds import Folded
from fieldfare.core.params import Params

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins: `roster` names the nodes of each role, `devices` is the size of the population."""

    roster: Mapping[str, tuple[str, ...]]
    devices: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """The one answer to a `Run`.

    `output`: the folded leaves. `weight`: total. `clients`: ids accepted, in order of id (int64 `[n]`, or node names).
    `weights`: `[n]`. `metrics`: `{name: [n]}`. `missing`: `{reason: ids}` of those asked and not accepted.
    """

    tag: Tag
    output: Mapping[str, Folded]
    weight: float
    clients: Any
    weights: NDArray[np.float64]
    metrics: Mapping[str, NDArray[np.float64]]
    missing: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """A message from node `src`."""

    src: str
    body: Any


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Another node asks this one to compute, exactly as it would ask a device; reply with `Answer(id)`."""

    id: int
    src: str
    work: str
    model: Params | None
    inputs: Mapping[str, Any]
    config: Mapping[str, Scalar]
    key: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Woke:
    """A `Wake` is due."""

    tag: Tag


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Answer to a named central evaluation of a published version."""

    version: int
    name: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Joined:
    """A device or node has come (fleet event, opt-in)."""

    node: int | str


@dataclass(frozen=True, slots=True)
class Left:
    """A device or node has gone (fleet event, opt-in)."""

    node: int | str


@dataclass(frozen=True, slots=True)
class Moved:
    """A device is now attached to edge node `to` (fleet event, opt-in)."""

    device: int | str
    to: str


Event: TypeAlias = Started | Gathered | Received | Asked | Woke | Evaluated | Joined | Left | Moved
