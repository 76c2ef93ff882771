"""Row maps: stateless functions on the rows `[n, P]` of a leaf, applied to each reply before the fold.

Invariant: row i of the result depends on row i alone, to the bit, so chunks and workers cannot change a fold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError

F32 = NDArray[np.float32]
_LANES = 64
_CELLS = 1 << 20
"""Values taken at a time, so that a float64 copy stays at 8 MiB unless one row is larger."""


def norms(rows: F32) -> NDArray[np.float64]:
    """Euclidean norm of each row, `[n]` float64, accumulated in float64 (no float32 overflows or vanishes).

    Coordinate k adds to lane k modulo 64, in order; the lanes add up as a tree: an order that other code can keep.
    """
    n, size = rows.shape
    out = np.empty(n, np.float64)
    group, whole = max(1, _CELLS // max(size, 1)), size // _LANES * _LANES
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, n, group):
            squares = np.square(rows[start : start + group], dtype=np.float64, order="C")
            lanes = np.add.reduce(squares[:, :whole].reshape(len(squares), -1, _LANES), axis=1)
            lanes[:, : size - whole] += squares[:, whole:]
            while lanes.shape[1] > 1:
                half = lanes.shape[1] // 2
                lanes = lanes[:, :half] + lanes[:, half:]
            out[start : start + group] = np.sqrt(lanes[:, 0])
    return out


@dataclass(frozen=True, slots=True)
class Clip:
    """Shrink each row to a norm of at most `max_norm`; see `clip`."""

    max_norm: float

    def __post_init__(self) -> None:
        if not 1e-30 <= self.max_norm < np.inf:
            raise UsageError(f"clip({self.max_norm}): a norm bound is a finite number from 1e-30 up.")

    def __call__(self, rows: F32) -> F32:
        length = norms(rows)
        long = np.flatnonzero((length > self.max_norm) & np.isfinite(length))
        if len(long) == 0:
            return rows
        out = rows.copy()
        for i in long:
            np.multiply(rows[i], self.max_norm / length[i], out=out[i], dtype=np.float64, casting="unsafe")
        return out


def clip(max_norm: float) -> Clip:
    """Scale rows longer than `max_norm` down to it, in float64: ||row|| <= max_norm (1 + 1e-6) for float32 rows.

    Rows within the bound come back bit for bit. A row with NaN or infinity is passed on, for the fold to refuse it
    (our departure: libraries that scale by C / ||row|| turn an infinite row into zeros and NaN).
    McMahan et al., ICLR 2018, sec. 2.1 (flat clipping). `max_norm` is at least 1e-30, so rounding to the smallest
    float32 cannot break the bound.

    >>> clip(5.0)(np.array([[6, 8], [3, 4]], np.float32)).tolist()
    [[3.0, 4.0], [3.0, 4.0]]
    """
    return Clip(max_norm)
