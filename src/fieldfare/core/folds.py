"""What a gather does with the replies, per output leaf: declarations only; `aggregate.gather` computes them.

Invariant: `Mean`, `Coverage` and `ModSum` are exact sums of integers, so neither order, chunk, worker nor driver
can change a bit of their result.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp, inf
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError

Rows = NDArray[np.float32]

COVERED = "covered"
"""The leaf, bool `[n, P]`, in which replies say which coordinates of their rows they trained; `Coverage` reads it."""


class RowMap(Protocol):
    """A stateless function on the rows `[n, P]` of a leaf, applied before the fold (a clip, a rounding)."""

    def __call__(self, rows: Rows) -> Rows: ...


def _check_steps(name: str, step: float, weight_step: float) -> None:
    if not (2.0**-48 <= step <= 1.0 and frexp(step)[0] == 0.5):
        raise UsageError(f"{name}(step={step}): use a power of two from 2**-48 to 1.")
    if not 0.0 < weight_step < inf:
        raise UsageError(f"{name}(weight_step={weight_step}): use a positive number.")


@dataclass(frozen=True, slots=True)
class Mean:
    """Weighted mean over the replies, accumulated in int64 fixed point of `step`: exact, O(model) memory.

    Each value is rounded to a multiple of `step` (2**-32 by default), each weight to one of `weight_step`.
    A row with a value that is not finite, or larger than 2**62 steps shared by the cohort, is refused.
    `weighted=False` counts every reply once. `total=True` also hands back the exact sum, as `Folded.total`.
    """

    weighted: bool = True
    step: float = 2.0**-32
    weight_step: float = 1.0
    before: tuple[RowMap, ...] = ()
    total: bool = False

    def __post_init__(self) -> None:
        _check_steps("Mean", self.step, self.weight_step)


@dataclass(frozen=True, slots=True)
class Coverage:
    """`Mean` with a weight per coordinate, for sub-models: each coordinate is averaged over those who had it.

    A client has the coordinates of its sub-model, or of these the ones that leaf `COVERED` tells where the work sends
    it; what stands in its row elsewhere is not read.
    """

    weighted: bool = True
    step: float = 2.0**-32
    weight_step: float = 1.0
    before: tuple[RowMap, ...] = ()
    total: bool = False

    def __post_init__(self) -> None:
        _check_steps("Coverage", self.step, self.weight_step)


@dataclass(frozen=True, slots=True)
class Stack:
    """All rows, `[n, ...]` in order of client id, for rules that need every row (median, trimmed mean, Krum)."""

    max_bytes: int = 2 << 30
    before: tuple[RowMap, ...] = ()


@dataclass(frozen=True, slots=True)
class Collect:
    """Whatever each client sent, `{client: array or bytes}`."""


@dataclass(frozen=True, slots=True)
class ModSum:
    """Sum modulo 2**bits of unsigned integer rows (masked vectors of secure aggregation)."""

    bits: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 63:
            raise UsageError(f"ModSum(bits={self.bits}): use 1 to 63 bits.")


Fold: TypeAlias = Mean | Coverage | Stack | Collect | ModSum


@dataclass(frozen=True, slots=True, eq=False)
class Total:
    """An exact sum under way: what a node answers so that its asker's mean is that of all clients below, bit for bit.

    `sum` int64 `[P]` in units of `step`; `weight` in units of `weight_step`, an integer, or int64 `[P]` for `Coverage`.
    A mean of means is only that up to rounding; a sum of sums is exact. Eight bytes per parameter, against four.
    """

    sum: NDArray[np.int64]
    weight: Any
    step: float
    weight_step: float


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """A folded leaf: `value` and the `weight` behind it (a number; `[P]` for `Coverage`; `[n]` for `Stack`)."""

    value: Any
    weight: Any
    total: Total | None = None
