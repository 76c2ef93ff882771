"""Server chains: what happens to the replies of a round, as a list read from left to right.

`chain(clip(1.0), mean(), momentum(0.9), scale(0.5))` compiles to (before | fold | after). `before` is row maps that
ride in the fold, `fold` is one of `core.folds` (with a row rule where the paper needs every row), `after` is
transforms with state. Not here: the sums themselves (`aggregate.gather`) and the transforms (`aggregate.optimise`).

Convention: what flows through a chain is an update, a vector *added* to the model; a paper's pseudo-gradient is its
negative. Invariant: a coordinate of weight 0 gets update 0, and its slots in every state stay as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Collect, Coverage, Fold, Folded, Mean, ModSum, RowMap, Stack

F32 = NDArray[np.float32]
Weight: TypeAlias = Any
"""The weight behind an update: a number, or float64 `[P]` after `coverage()`."""


@runtime_checkable
class Transform(Protocol):
    """A step after the fold. States are numbers, arrays `[P]` and tuples of them, so that they can be stored."""

    def init(self, size: int) -> Any:
        """The state for a model of `size` parameters."""
        ...

    def update(self, u: F32, state: Any, weight: Weight) -> tuple[F32, Any]:
        """The new update and state; arguments are left untouched, coordinates of weight 0 keep their slots."""
        ...


@runtime_checkable
class RowRule(Protocol):
    """A rule that needs every row: it declares a `Stack` and reduces the rows in `step`."""

    @property
    def max_bytes(self) -> int: ...

    def reduce(self, rows: F32, weights: NDArray[np.float64]) -> Folded:
        """One vector `[P]` from rows `[n, P]` and weights `[n]`; weight 0 when the rows allow no result."""
        ...


Part: TypeAlias = RowMap | Fold | RowRule | Transform


@dataclass(frozen=True, slots=True)
class Chain:
    """A compiled chain: the `fold` with its row maps, the row `rule` if there is one, and the transforms `after`."""

    fold: Mean | Coverage | Stack
    rule: RowRule | None = None
    after: tuple[Transform, ...] = ()

    def reduce(self) -> Fold:
        """The fold to name in `Run.reduce`."""
        return self.fold

    def init(self, size: int) -> tuple[Any, ...]:
        """One state per transform, for a model of `size` parameters."""
        return tuple(step.init(size) for step in self.after)

    def fold_rows(self, folded: Folded) -> Folded:
        """The folded leaf as one vector `[P]`: what `Mean` and `Coverage` give, or the row rule's answer."""
        if self.rule is None:
            return folded
        rows = np.asarray(folded.value, np.float32)
        if rows.ndim != 2 or len(rows) == 0:
            return Folded(np.zeros(rows.shape[-1], np.float32), 0.0)
        return self.rule.reduce(rows, np.broadcast_to(np.asarray(folded.weight, np.float64), rows.shape[:1]))

    def update(self, folded: Folded, state: tuple[Any, ...]) -> tuple[F32, tuple[Any, ...]]:
        """The transforms alone, on one vector `[P]`: (update float32 `[P]`, new state).

        A number of weight 0 (nobody answered) gives update 0 and the same state.
        """
        u = np.asarray(folded.value, np.float32)
        if np.ndim(folded.weight) == 0 and not float(folded.weight) > 0:
            return np.zeros_like(u), state
        still = unheard(folded.weight)
        if still is not None:
            u = np.where(still, np.float32(0), u)
        out: list[Any] = []
        for step, slots in zip(self.after, state, strict=True):
            u, slots = step.update(u, slots, folded.weight)
            out.append(slots)
        return u, tuple(out)

    def apply(self, folded: Folded, state: tuple[Any, ...]) -> tuple[F32, tuple[Any, ...]]:
        """(update float32 `[P]` to add to the model, new state) from the folded leaf; cost O(P) per transform."""
        return self.update(self.fold_rows(folded), state)


def chain(*parts: Part) -> Chain:
    """A chain of row maps, exactly one fold or row rule, then transforms.

    >>> from fieldfare.aggregate import clip, mean, scale
    >>> chain(clip(1.0), mean(), scale(0.5)).fold.before
    (Clip(max_norm=1.0),)
    """
    before: list[RowMap] = []
    after: list[Transform] = []
    found: list[Mean | Coverage | Stack] = []
    rule: RowRule | None = None
    for part in parts:
        match part:
            case Mean() | Coverage():
                found.append(part)
            case Stack() | Collect() | ModSum():
                name = type(part).__name__
                raise UsageError(
                    f"chain({name}(...)): {name} does not give one vector; use mean(), coverage() or a row rule."
                )
            case RowRule():
                rule = part
                found.append(Stack(part.max_bytes))
            case Transform():
                if not found:
                    raise UsageError(
                        f"chain: {part!r} stands before the fold but works after it; put it behind mean()."
                    )
                after.append(part)
            case _:
                if not callable(part):
                    raise UsageError(f"chain({part!r}): a part is a row map, a fold, a row rule or a transform.")
                if found:
                    raise UsageError(
                        f"chain: {part!r} works on each client's row but stands behind the fold; put it before."
                    )
                before.append(part)
    if len(found) != 1:
        raise UsageError(f"chain: {len(found)} folds were given; a chain has exactly one, such as mean().")
    return Chain(replace(found[0], before=(*found[0].before, *before)), rule, tuple(after))


def mean(weighted: bool = True, *, step: float = 2.0**-32, weight_step: float = 1.0) -> Mean:
    """The mean over the replies, by weight or one vote each (McMahan et al., AISTATS 2017, alg. 1)."""
    return Mean(weighted=weighted, step=step, weight_step=weight_step)


def coverage(weighted: bool = True, *, step: float = 2.0**-32, weight_step: float = 1.0) -> Coverage:
    """The mean of each coordinate over those who had it, for sub-models (Diao et al., ICLR 2021, eq. 3)."""
    return Coverage(weighted=weighted, step=step, weight_step=weight_step)


def unheard(weight: Weight) -> NDArray[np.bool_] | None:
    """Bool `[P]` of the coordinates nobody covered, or None when every coordinate has weight."""
    if np.ndim(weight) == 0:
        return None
    still = np.asarray(weight) <= 0
    return still if still.any() else None
