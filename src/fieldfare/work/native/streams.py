"""The random streams of the native core, said again in Python: the same numbers from the same keys.

Here: which numbers dropout keeps. Not here: the core (`native/ops_pointwise.h`). Invariant: what is dropped depends on
the client's key, the op's number in the model, the step, and the place in the batch; not on threads, nor processors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.rng import bits, derive, mix
from fieldfare.work.native.plan import padded

F32 = NDArray[np.float32]


def dropout_factors(key: int, number: int, step: int, shape: tuple[int, int, int], p: float) -> F32:
    """What dropout op `number` multiplies a batch `[rows, positions, c]` with: 1 / (1 - p) where kept, else 0.

    Places are counted over the batch as it lies, each position filled up to 16 lanes. Place i has the low half (i
    even) or the high one of 64-bit word i // 2 of the stream, and is kept if that is at least floor(p 2^32).

    >>> dropout_factors(7, 0, 0, (1, 1, 3), 0.0).tolist()
    [[[1.0, 1.0, 1.0]]]
    """
    rows, positions, c = shape
    if p >= 1.0:
        return np.zeros(shape, np.float32)
    ld = padded(c)
    with np.errstate(over="ignore"):
        own = mix((np.array([key], np.uint64) ^ np.uint64(derive(0, "dropout"))) + np.uint64(number))
        counters = np.arange(rows * positions * ld // 2, dtype=np.uint64) + np.uint64((step << 40) % 2**64)
        words = bits(own, counters)
    halves = np.stack([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)], axis=1).reshape(rows, positions, ld)
    kept = halves[:, :, :c] >= np.uint64(int(p * 2**32))
    return np.where(kept, np.float32(1.0 / (1.0 - p)), np.float32(0.0))
