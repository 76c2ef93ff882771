"""When devices may work: sessions as CSR intervals over traces, tiled in time, searched by bisection.

Not here: where sessions come from (`generate`, `traces`). Invariant: an answer depends on (trace, shift, time) alone,
not on what was asked before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Availability:
    """Sessions of n devices over m traces (being written)."""

    offsets: I64
    start: NDArray[np.floating[Any]]
    end: NDArray[np.floating[Any]]
    period_s: float
    row: NDArray[np.int32] | None = None
    shift_s: NDArray[np.float32] | None = None

    @property
    def size(self) -> int:
        return len(self.row) if self.row is not None else len(self.offsets) - 1
