"""What an algorithm may ask of the world. Effects are returned by `step`, never performed there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.folds import Fold
from fieldfare.core.params import Params, View
from fieldfare.core.quorum import ALL, Everyone, Quorum, Sample

Tag: TypeAlias = tuple[str | int, ...] | str | int
Scalar: TypeAlias = float | int | str | bool
Clients: TypeAlias = NDArray[np.int64]
On: TypeAlias = Sample | Everyone | Clients | tuple[str, ...]


def _no_inputs() -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Ask clients to compute `work`; answered by exactly one `Gathered(tag)`, possibly empty.

    `on`: a `Sample` or `Everyone` (resolved by the driver), an int64 array of device ids, or names of nodes
    (which get `Asked`). `model`: what they start from. `reduce`: a fold per output leaf. `config`: small scalars.
    `inputs`: named arrays or bytes for all. `each`: `{client id: {name: array or bytes}}`, explicit ids only.
    `view`: a sub-model per client. `state`: the client-state slot used. `key`: randomness, default the tag.
    """

    work: str
    on: On
    tag: Tag
    model: Params | None = None
    quorum: Quorum = ALL
    reduce: Mapping[str, Fold] = field(default_factory=dict[str, Fold])
    config: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    inputs: Mapping[str, Any] = field(default_factory=_no_inputs)
    each: Mapping[int | str, Mapping[str, Any]] = field(default_factory=dict[int | str, Mapping[str, Any]])
    view: View | None = None
    state: str | None = None
    key: tuple[str | int, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Send:
    """A message to a live node: exactly once, unordered."""

    to: str
    body: Any


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The reply to an `Asked(id)`: the node answers as any client would."""

    id: int
    output: Mapping[str, Any]
    weight: float = 1.0
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Wake:
    """`Woke(tag)` after `after` seconds."""

    after: float
    tag: Tag


@dataclass(frozen=True, slots=True, eq=False)
class Publish:
    """A new version of the model; `evaluate` names central evaluations to be answered by `Evaluated`."""

    model: Params
    version: int
    evaluate: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stop:
    """The run is over; what is outstanding is cancelled."""

    reason: str


Effect: TypeAlias = Run | Send | Answer | Wake | Publish | Stop
