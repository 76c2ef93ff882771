"""Masked sums: rows as words of integers, masks that cancel, shares that bring back the masks of who has gone.

The arithmetic of Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017,
sections 3 and 4, for vectors of which clients may have parts: behind the sums stand, masked alike, the weights of each
coordinate, so that the sums can be divided and nobody sees who had what. Not here: who says what to whom
(`algorithms.secure_sum`, `work.masked`). Invariant: words of all clients, less their masks, sum to what the fold of the
same rows sums to, bit for bit.

No secrecy yet: keys are of 61 bits and masks are the counter-based generator's, which is no cipher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.aggregate.gather import integer_weights
from fieldfare.core import rng
from fieldfare.core.folds import COVERED, Coverage, Fold, Folded, Mean, Total

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Sums = Mean | Coverage

PRIME = 2**61 - 1
_GENERATOR = 5


def public(key: int) -> int:
    """What a client tells of its key."""
    return pow(_GENERATOR, key, PRIME)


def agreed(theirs: int, key: int) -> int:
    """The secret of two clients, from the one's public key and the other's key: the same for both."""
    return pow(theirs, key, PRIME)


def mask(seed: int, size: int, bits: int) -> U64:
    """`size` words below 2**bits from a seed."""
    return rng.bits(np.array([seed], np.uint64), np.arange(size)) & np.uint64((1 << bits) - 1)


def shares(value: int, ids: Sequence[int], need: int, seed: int) -> list[int]:
    """Shamir's: for each id a point of a random polynomial of degree need - 1 through (0, value)."""
    powers = [value, *(rng.derive(seed, "share", k) % PRIME for k in range(1, need))]
    return [sum(a * pow(i + 1, k, PRIME) for k, a in enumerate(powers)) % PRIME for i in ids]


def rebuild(points: Mapping[int, int]) -> int:
    """The value behind enough shares `{id: share}`.

    >>> rebuild(dict(zip([4, 7], shares(99, [4, 7], 2, 1))))
    99
    """
    total = 0
    for i, share in points.items():
        up = down = 1
        for j in points:
            if j != i:
                up, down = up * (j + 1) % PRIME, down * (j - i) % PRIME
        total += share * up * pow(down, PRIME - 2, PRIME)
    return total % PRIME


def masked(words: U64, me: int, key: int, own: int, others: Mapping[int, int], bits: int) -> U64:
    """`words` under a mask of one's `own` seed and one shared with each of `others` `{id: public key}`."""
    out = words + mask(own, len(words), bits)
    for other, theirs in others.items():
        if other != me:
            pair = mask(agreed(theirs, key), len(words), bits)
            out = out + pair if me < other else out - pair
    return out & np.uint64((1 << bits) - 1)


def unmasked(
    total: U64, alive: Sequence[int], publics: Mapping[int, int], secrets: Mapping[int, int], bits: int
) -> I64:
    """The sum of the words of those `alive`, as signed integers.

    `publics` `{id: public key}` of all who may be in a mask; `secrets`: of those alive their own seed, of the others
    their key.
    """
    out, there = total.astype(np.uint64), set(alive)
    for client in publics:
        if client in there:
            out = out - mask(secrets[client], len(out), bits)
            continue
        for other in there:
            pair = mask(agreed(publics[other], secrets[client]), len(out), bits)
            out = out - pair if other < client else out + pair
    out &= np.uint64((1 << bits) - 1)
    high = np.uint64(1 << (bits - 1))
    return (out ^ high).astype(np.int64) - np.int64(1 << (bits - 1))


def width(fold: Sums, size: int) -> int:
    """Words of a leaf of `size` numbers: these, and the weight behind them, or behind each."""
    return 2 * size if isinstance(fold, Coverage) else size + 1


def words_of(
    leaves: Mapping[str, Any], weight: F64, reduce: Mapping[str, Sums], index: I64 | None, size: int, bits: int,
    cohort: int,
) -> U64:  # fmt: skip
    """Rows of n clients as words `[n, W]`, leaf by leaf in order of name: the numbers times the weight, the weights.

    `index`: the places of a sub-model's numbers in a vector of `size`; elsewhere stand zeros, of weight zero. A client
    whose row is not finite, or so large that `cohort` of them could overflow, gives zeros of weight zero: who sums
    cannot see it to refuse it.
    """
    parts, bad = list[tuple[I64, I64]](), ~(np.isfinite(weight) & (weight >= 0))
    for leaf in sorted(reduce):
        fold = reduce[leaf]
        rows = np.asarray(leaves[leaf], np.float32).reshape(len(weight), -1)
        covered = np.asarray(leaves[COVERED]) if isinstance(fold, Coverage) and COVERED in leaves else None
        rows = rows if covered is None else np.where(covered, rows, np.float32(0))
        for map_ in fold.before:
            rows = map_(rows)
        rows = rows if covered is None else np.where(covered, rows, np.float32(0))
        w = integer_weights(np.where(bad, 0.0, weight), fold.weighted, fold.weight_step)[:, None]
        steps = rows.astype(np.float64) / fold.step
        cap = 2.0 ** (bits - 1) / cohort
        bad |= ~(np.abs(steps).max(axis=1, initial=0.0) * np.maximum(w[:, 0], 1) < min(cap, 2.0**62))
        bad |= ~(w[:, 0] < cap)
        with np.errstate(invalid="ignore"):
            numbers = np.rint(np.where(bad[:, None], 0.0, steps)).astype(np.int64) * w
        behind = w if covered is None else covered * w
        if isinstance(fold, Coverage):
            numbers, behind = _placed(numbers, index, size), _placed(behind + np.zeros_like(numbers), index, size)
        parts += [(numbers, behind)]
    rows_ = np.concatenate([part for pair in parts for part in pair], axis=1)
    rows_[bad] = 0
    return rows_.view(np.uint64) & np.uint64((1 << bits) - 1)


def _placed(values: I64, index: I64 | None, size: int) -> I64:
    if index is None:
        return values
    out = np.zeros((len(values), size), np.int64)
    out[:, index] = values
    return out


def folded(sums: I64, reduce: Mapping[str, Sums], sizes: Mapping[str, int]) -> dict[str, Folded]:
    """What the folds give, from the sums of all words `[W]`; `sizes`: numbers of each leaf."""
    out: dict[str, Folded] = {}
    at = 0
    for leaf in sorted(reduce):
        fold, size = reduce[leaf], sizes[leaf]
        total, behind = sums[at : at + size], sums[at + size : at + width(fold, size)]
        at += width(fold, size)
        weight: Any = behind if isinstance(fold, Coverage) else int(behind[0])
        value = (total * fold.step / np.maximum(weight, 1)).astype(np.float32)
        exact = Total(total, weight, fold.step, fold.weight_step) if fold.total else None
        out[leaf] = Folded(value, weight * fold.weight_step, exact)
    return out


def summed(reduce: Mapping[str, Fold]) -> bool:
    """Whether all leaves are sums, which can be masked."""
    return bool(reduce) and all(isinstance(fold, Mean | Coverage) for fold in reduce.values())
