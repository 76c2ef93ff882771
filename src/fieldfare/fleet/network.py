"""Links that change in time: throughput traces replayed (being written)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Throughput of n devices over m traces (being written)."""

    offsets: NDArray[np.int64]
    t_s: NDArray[np.float64]
    down_bytes_per_s: NDArray[np.float32]
    up_bytes_per_s: NDArray[np.float32]
    row: NDArray[np.int32] | None = None
    shift_s: NDArray[np.float32] | None = None

    @property
    def size(self) -> int:
        return len(self.row) if self.row is not None else len(self.offsets) - 1
