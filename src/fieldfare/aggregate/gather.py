"""The folds that `core.folds` declares, computed: partial sums that add up in any order to the same bits.

Here: exact fixed-point accumulation of rows, merging of partials, the final `Folded`. Not here: which rows exist
(drivers) and what becomes of the mean (`chain`). Invariant: for `Mean`, `Coverage` and `ModSum` the result depends
on the set of (row, weight) alone.

How a float becomes an integer: adding 1.5 * 2**52 * step to a float64 leaves round(x / step) in its low bits, so one
addition quantises; the bits of the constant are subtracted once at the end, multiplied by the total weight, because
int64 arithmetic wraps. Four passes over a block that stays in cache, against two over memory for a float mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.core.folds import COVERED, Collect, Coverage, Fold, Folded, Mean, ModSum, Stack, Total

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_BLOCK = 1 << 15


@dataclass(eq=False)
class Sum:
    """A partial exact sum of rows: int64 `[P]` (or `[P]` with per-coordinate weights), and the integer weight.

    `total` is still `bias` (modulo 2**64) too large in every coordinate, from rounding; `settled` takes it off.
    """

    total: I64
    weight: int = 0
    coverage: I64 | None = None
    bias: int = 0

    def settled(self) -> I64:
        """The sum itself, `[P]`."""
        if self.bias:
            self.total -= np.array([self.bias], np.uint64).view(np.int64)
            self.bias = 0
        return self.total


@dataclass(eq=False)
class Partial:
    """What a worker hands back of one leaf: a sum, or the rows themselves with their clients."""

    sum: Sum | None = None
    clients: list[Any] = field(default_factory=list[Any])
    rows: list[Any] = field(default_factory=list[Any])
    weights: list[F64] = field(default_factory=list[F64])


def integer_weights(weight: F64, weighted: bool, step: float) -> I64:
    """Weights as whole multiples of `step`, `[n]`; ones when not `weighted`.

    Errors: `UsageError` where rounding to a multiple would change a weight by more than a thousandth of it.
    """
    if not weighted:
        return np.ones(len(weight), np.int64)
    whole = np.rint(weight / step)
    off = np.abs(whole * step - weight) > 1e-3 * np.abs(weight)
    if off.any():
        raise UsageError(
            f"a weight of {weight[np.argmax(off)]:.6g} is no multiple of weight_step={step:g}: tell numbers of "
            "examples, or fold with chain(mean(weight_step=2**-20), ...)."
        )
    return whole.astype(np.int64)


FACTOR_STEPS = (2.0**-16, 2.0**-10)
"""A factor on the weights (of stale replies) is rounded to multiples of these: where replies count once, by weight."""


def integers(fold: Mean | Coverage, weight: F64, factor: F64 | None) -> I64:
    """The weight of every row in the fold's units, `[n]`; with a `factor` `[n]`, in units finer by `FACTOR_STEPS`."""
    if factor is None:
        return integer_weights(weight, fold.weighted, fold.weight_step)
    units = weight * factor / fold.weight_step if fold.weighted else factor
    return np.rint(units / FACTOR_STEPS[fold.weighted]).astype(np.int64)


def refused(rows: F32, weights: I64, step: float, cohort: int) -> NDArray[np.bool_]:
    """Which rows `[n]` are not finite, or so large that `cohort` of them could overflow int64 at this `step`.

    A row's norm bounds its largest value, so one dot product settles nearly every row; the others are looked at.
    """
    if rows.shape[1] <= _BLOCK:
        with np.errstate(over="ignore", invalid="ignore"):
            norm2 = np.einsum("np,np->n", rows, rows).astype(np.float64)
    else:
        norm2 = np.array([_norm2(row) for row in rows])
    return _exceeding(rows, norm2, weights, step, cohort)


def _exceeding(rows: F32, norm2: F64, weights: I64, step: float, cohort: int) -> NDArray[np.bool_]:
    heavy = np.maximum(weights, 1).astype(np.float64)
    cap = np.minimum(2.0**62 / max(cohort, 1) * step / heavy, 2.0**51 * step)
    bad = ~(norm2 <= 0.5 * cap * cap) | (weights < 0)
    for i in np.flatnonzero(bad):
        bad[i] = weights[i] < 0 or not np.isfinite(rows[i]).all() or bool(np.abs(rows[i]).max() > cap[i])
    return bad


def _norm2(row: F32) -> float:
    parts = (row[at : at + _BLOCK] for at in range(0, len(row), _BLOCK))
    return sum(map(_square, parts))


def _square(part: F32) -> float:
    """The squared norm of a short row, infinite where float32 cannot hold it."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.dot(part, part))


def add_rows(into: Sum, rows: F32, weights: I64, step: float) -> F64:
    """Add `weights[i] * rows[i]` for all i, exactly, in place; gives long rows' squared norms, `[n]` (short ones: 0).

    Rows must have passed `refused`, or be taken off again by their negative weights: that is exact for any bits.
    """
    n, p = rows.shape
    magic = np.float64(1.5 * 2.0**52 * step)
    norm2 = np.zeros(n)
    if p <= _BLOCK and n * p <= _BLOCK * 4 and n > 1:
        q = np.add(rows, magic, dtype=np.float64).view(np.int64)
        if not bool((weights == 1).all()):
            q *= weights[:, None]
        into.total += np.add.reduce(q, axis=0)
    else:
        buf = np.empty(min(p, _BLOCK))
        for at in range(0, p, _BLOCK):
            stop = min(p, at + _BLOCK)
            acc, b = into.total[at:stop], buf[: stop - at]
            q = b.view(np.int64)
            for i in range(n):
                x = rows[i, at:stop]
                norm2[i] += _square(x)
                b[...] = x
                np.add(b, magic, out=b)
                if weights[i] != 1:
                    np.multiply(q, weights[i], out=q)
                np.add(acc, q, out=acc)
    behind = int(weights.sum())
    into.bias = (into.bias + int(np.asarray(magic).view(np.int64)) * behind) & ((1 << 64) - 1)
    into.weight += behind
    return norm2


def _bad_leaf(leaf: str, reduce: Mapping[str, Fold]) -> UsageError:
    known = ", ".join(reduce) or "none"
    return UsageError(f"the work sent no leaf {leaf!r} to fold (asked for: {known}): rename the leaf or the fold.")


class Gather:
    """Folds the replies of one `Run`, by chunks of clients: `add`, `merge` partials, then `finish`.

    `cohort` is the number of clients asked: it fixes, before any reply is seen, how large a value may be. `discounted`:
    every reply comes with a factor on its weight (`FACTOR_STEPS`), as those of stale models do.
    """

    def __init__(self, reduce: Mapping[str, Fold], cohort: int, discounted: bool = False) -> None:
        self.reduce = reduce
        self.cohort = cohort
        self.discounted = discounted
        self.partials: dict[str, Partial] = {leaf: Partial() for leaf in reduce}
        self._bytes = 0

    def check(self, leaves: Mapping[str, Any], weight: F64, factor: F64 | None = None) -> NDArray[np.bool_]:
        """Which clients `[n]` must be refused, looking at every leaf that is summed, behind its row maps."""
        bad = ~np.isfinite(weight)
        bad |= weight < 0
        for leaf, fold in self.reduce.items():
            if leaf not in leaves:
                raise _bad_leaf(leaf, self.reduce)
            if isinstance(fold, Mean | Coverage):
                rows, _ = _had(fold, leaves[leaf], leaves)
                if fold.weighted:
                    bad |= ~(weight <= 2.0**62 / max(self.cohort, 1) * fold.weight_step)
                w = integers(fold, np.where(bad, 0.0, weight), factor)
                bad |= refused(rows, w, fold.step, self.cohort)
            elif isinstance(fold, Stack):
                bad |= ~np.isfinite(_before(fold.before, _rows(leaves[leaf]))).all(axis=1)
        return bad

    def take(
        self, clients: I64, leaves: Mapping[str, Any], weight: F64, bad: NDArray[np.bool_], index: I64 | None = None,
        size: int | None = None, factor: F64 | None = None,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Fold the clients that are neither `bad` `[n]` nor refused by `check`; gives all that were left out."""
        if index is None and self._long(leaves):
            return self._take_long(leaves, weight, bad, factor)
        bad = bad | self.check(leaves, weight, factor)
        if bad.any():
            keep = np.flatnonzero(~bad)
            leaves = {leaf: [v[i] for i in keep] if isinstance(v, list) else v[keep] for leaf, v in leaves.items()}
            clients, weight = clients[keep], weight[keep]
            factor = None if factor is None else factor[keep]
        if len(clients):
            self.add(clients, leaves, weight, index, size, factor)
        return bad

    def _long(self, leaves: Mapping[str, Any]) -> bool:
        """Whether every leaf is a plain mean of rows so long that reading them twice costs."""
        return all(
            isinstance(fold, Mean) and not fold.before and leaf in leaves and _width(leaves[leaf]) > _BLOCK
            for leaf, fold in self.reduce.items()
        )

    def _take_long(
        self, leaves: Mapping[str, Any], weight: F64, bad: NDArray[np.bool_], factor: F64 | None
    ) -> NDArray[np.bool_]:
        """`take` in one pass: rows are added unseen, and those that turn out bad are taken off again, exactly."""
        bad = bad | ~np.isfinite(weight) | (weight < 0)
        added: list[tuple[Sum, F32, I64, float]] = []
        for leaf, fold in self.reduce.items():
            assert isinstance(fold, Mean)
            rows, part = _rows(leaves[leaf]), self.partials[leaf]
            if fold.weighted:
                bad |= ~(weight <= 2.0**62 / max(self.cohort, 1) * fold.weight_step)
            w = integers(fold, np.where(bad, 0.0, weight), factor)
            if part.sum is None:
                part.sum = Sum(_zeros(rows.shape[1]))
            norm2 = add_rows(part.sum, rows, w, fold.step)
            bad |= _exceeding(rows, norm2, w, fold.step, self.cohort)
            added.append((part.sum, rows, w, fold.step))
        if bad.any():
            for total, rows, w, step in added:
                add_rows(total, rows[bad], -w[bad], step)
        return bad

    def add(
        self, clients: I64, leaves: Mapping[str, Any], weight: F64, index: I64 | None = None, size: int | None = None,
        factor: F64 | None = None,
    ) -> None:  # fmt: skip
        """Fold accepted rows. With `index` int64 `[p]` the rows are those coordinates of a vector of `size`."""
        for leaf, fold in self.reduce.items():
            if leaf not in leaves:
                raise _bad_leaf(leaf, self.reduce)
            part = self.partials[leaf]
            value = leaves[leaf]
            match fold:
                case Mean() | Coverage():
                    (rows, covered), w = _had(fold, value, leaves), integers(fold, weight, factor)
                    self._add_sum(part, fold, rows, w, index, size, covered)
                case Stack():
                    rows = _before(fold.before, _rows(value))
                    self._hold(leaf, fold, rows.nbytes)
                    part.clients.append(clients)
                    part.rows.append(rows)
                    part.weights.append(weight if factor is None else weight * factor)
                case Collect():
                    part.clients.extend(clients.tolist())
                    part.rows.extend(value[i] for i in range(len(clients)))
                case ModSum(bits):
                    rows = np.asarray(value, np.uint64)
                    total = np.add.reduce(rows, axis=0).view(np.int64)
                    if part.sum is None:
                        part.sum = Sum(_zeros(rows.shape[1]))
                    part.sum.total += total
                    part.sum.total &= (1 << bits) - 1
                    part.sum.weight += len(rows)

    def _hold(self, leaf: str, fold: Stack, size: int) -> None:
        """Count `size` more bytes of rows that are kept."""
        self._bytes += size
        if self._bytes > fold.max_bytes:
            raise UsageError(
                f"Stack({leaf!r}) would hold {self._bytes} bytes of rows, more than max_bytes={fold.max_bytes}: "
                "use a smaller cohort, or raise max_bytes."
            )

    def _add_sum(
        self, part: Partial, fold: Mean | Coverage, rows: F32, w: I64, index: I64 | None, size: int | None,
        covered: NDArray[np.bool_] | None = None,
    ) -> None:  # fmt: skip
        behind = int(w.sum()) if covered is None else _behind(w, covered)
        if isinstance(fold, Mean) or index is None:
            if index is not None:
                raise UsageError("Mean() cannot fold sub-models: use Coverage() for a Run with a view.")
            if part.sum is None:
                part.sum = Sum(_zeros(rows.shape[1]))
            add_rows(part.sum, rows, w, fold.step)
            if isinstance(fold, Coverage):
                if part.sum.coverage is None:
                    part.sum.coverage = _zeros(rows.shape[1])
                part.sum.coverage += behind
            return
        if part.sum is None:
            assert size is not None
            part.sum = Sum(_zeros(size), 0, _zeros(size))
        small = Sum(_zeros(rows.shape[1]))
        add_rows(small, rows, w, fold.step)
        part.sum.total[index] += small.settled()
        part.sum.weight += small.weight
        assert part.sum.coverage is not None
        part.sum.coverage[index] += behind

    def fits(self, leaf: str, total: Total) -> bool:
        """Whether the exact sum a node answered is one of this fold, and cannot overflow beside the others'."""
        fold, part = self.reduce[leaf], self.partials[leaf]
        if not isinstance(fold, Mean | Coverage) or (fold.step, fold.weight_step) != (total.step, total.weight_step):
            return False
        weights = np.asarray(total.weight, np.int64)
        shape, per_coordinate = total.sum.shape, weights.ndim == 1
        if total.sum.dtype != np.int64 or per_coordinate > isinstance(fold, Coverage):
            return False
        if (per_coordinate and weights.shape != shape) or (part.sum is not None and part.sum.total.shape != shape):
            return False
        cap = 2**62 // max(self.cohort, 1)
        low, high = int(total.sum.min(initial=0)), int(total.sum.max(initial=0))
        return -cap <= low and high <= cap and int(weights.min(initial=0)) >= 0 and int(weights.max(initial=0)) <= cap

    def add_total(self, leaf: str, total: Total) -> None:
        """Fold an exact sum that `fits`: the result is that of all the rows behind it."""
        fold, part = self.reduce[leaf], self.partials[leaf]
        if part.sum is None:
            covered = _zeros(len(total.sum)) if isinstance(fold, Coverage) else None
            part.sum = Sum(_zeros(len(total.sum)), 0, covered)
        part.sum.total += total.sum
        part.sum.weight += int(np.max(total.weight, initial=0))
        if part.sum.coverage is not None:
            part.sum.coverage += total.weight

    def take_total(self, leaf: str, total: Total, index: I64 | None = None, size: int | None = None) -> None:
        """Fold the exact sum, of some of the clients asked, that a work made with this fold where the rows lay.

        With `index` int64 `[p]` it is of those coordinates of a vector of `size`.
        """
        part, weight = self.partials[leaf], int(total.weight)
        if part.sum is None:
            whole = len(total.sum) if size is None or index is None else size
            part.sum = Sum(_zeros(whole), 0, _zeros(whole) if isinstance(self.reduce[leaf], Coverage) else None)
        at = slice(None) if index is None else index
        part.sum.total[at] += total.sum
        part.sum.weight += weight
        if part.sum.coverage is not None:
            part.sum.coverage[at] += weight

    def merge(self, partials: Mapping[str, Partial]) -> None:
        """Add another worker's partials."""
        for leaf, other in partials.items():
            mine, fold = self.partials[leaf], self.reduce[leaf]
            if other.sum is not None:
                if mine.sum is None:
                    mine.sum = other.sum
                else:
                    mine.sum.total += other.sum.total
                    mine.sum.bias = (mine.sum.bias + other.sum.bias) & ((1 << 64) - 1)
                    mine.sum.weight += other.sum.weight
                    if mine.sum.coverage is not None and other.sum.coverage is not None:
                        mine.sum.coverage += other.sum.coverage
                    if isinstance(fold, ModSum):
                        mine.sum.total &= (1 << fold.bits) - 1
            if isinstance(fold, Stack):
                self._hold(leaf, fold, sum(rows.nbytes for rows in other.rows))
            mine.clients.extend(other.clients)
            mine.rows.extend(other.rows)
            mine.weights.extend(other.weights)

    def finish(self) -> dict[str, Folded]:
        """The folded leaves; a leaf nobody sent is absent."""
        out: dict[str, Folded] = {}
        for leaf, fold in self.reduce.items():
            part = self.partials[leaf]
            match fold:
                case Mean() | Coverage() if part.sum is not None:
                    out[leaf] = _finish_sum(part.sum, fold, self.discounted)
                case Stack() if part.rows:
                    ids = np.concatenate(part.clients)
                    order = np.argsort(ids, kind="stable")
                    out[leaf] = Folded(np.concatenate(part.rows)[order], np.concatenate(part.weights)[order])
                case Collect() if part.rows:
                    pairs = sorted(zip(part.clients, part.rows, strict=True), key=lambda pair: pair[0])
                    out[leaf] = Folded(dict(pairs), float(len(pairs)))
                case ModSum() if part.sum is not None:
                    out[leaf] = Folded(part.sum.total.astype(np.uint64), float(part.sum.weight))
                case _:
                    pass
        return out


def _finish_sum(total: Sum, fold: Mean | Coverage, discounted: bool) -> Folded:
    behind = total.weight if total.coverage is None else total.coverage
    if discounted:
        if fold.total:
            raise UsageError("a fold with total=True cannot take stale replies, whose weights it cannot hand on.")
        units = FACTOR_STEPS[fold.weighted] * (fold.weight_step if fold.weighted else 1.0)
        return Folded(_quotient(total.settled(), fold.step, behind), behind * units)
    exact = Total(total.settled(), behind, fold.step, fold.weight_step) if fold.total else None
    return Folded(_quotient(total.settled(), fold.step, behind), behind * fold.weight_step, exact)


def _quotient(total: I64, step: float, weight: Any) -> F32:
    """`total * step / weight` as float32, by blocks, so that no float64 vector of the model's size is made.

    One division by a number or by `weight` int64 `[P]`: where the weights are the same the bits are, too.
    """
    out = np.empty(len(total), np.float32)
    for at in range(0, len(total), _BLOCK):
        pick = slice(at, at + _BLOCK)
        by = np.maximum(weight[pick] if np.ndim(weight) else weight, 1)
        np.divide(total[pick] * step, by, out=out[pick], casting="same_kind")
    return out


def _zeros(size: int) -> I64:
    return np.zeros(size, np.int64)


def _width(value: Any) -> int:
    shape = np.shape(value) if isinstance(value, np.ndarray) else (0,)  # type: ignore[reportUnknownArgumentType]
    return int(np.prod(shape[1:], dtype=np.int64)) if shape[0] else 0


def _had(
    fold: Mean | Coverage, value: Any, leaves: Mapping[str, Any]
) -> tuple[F32, NDArray[np.bool_] | None]:  # fmt: skip
    """(rows `[n, p]` behind the row maps, zero where a client has not trained; where each has, None: everywhere)."""
    rows = _rows(value)
    if not isinstance(fold, Coverage) or COVERED not in leaves:
        return _before(fold.before, rows), None
    covered = np.asarray(leaves[COVERED])
    if covered.dtype != np.bool_ or covered.shape != rows.shape:
        raise UsageError(
            f"leaf {COVERED!r} has shape {covered.shape} of {covered.dtype} beside rows of {rows.shape}: send a bool "
            "for each number of the leaf that is folded."
        )
    rows = _before(fold.before, np.where(covered, rows, np.float32(0)))
    return (np.where(covered, rows, np.float32(0)) if fold.before else rows), covered


def _behind(w: I64, covered: NDArray[np.bool_]) -> I64:
    """The weight behind each coordinate, int64 `[p]`: the sum of `w` `[n]` over who covered it, exactly."""
    if len(w) and not covered.strides[0]:
        return covered[0] * int(w.sum())
    out = _zeros(covered.shape[1])
    for one, where in zip(w, covered, strict=True):
        np.add(out, one, out=out, where=where)
    return out


def _rows(value: Any) -> F32:
    rows = np.asarray(value, np.float32)
    return rows.reshape(len(rows), -1)


def _before(maps: tuple[Any, ...], rows: F32) -> F32:
    for map_ in maps:
        rows = map_(rows)
    return rows
