"""Memory that changes: what is free on each device for training, constant from one time to the next.

Here: a table, as `drift.DriftTable` is one of speeds. Not here: what is done with it (`work.submodel.fitting`).
Invariant: what is free depends on (device, time) alone, so any order of asking gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings

F64 = NDArray[np.float64]


@settings
@dataclass(frozen=True, slots=True, eq=False)
class MemoryTable:
    """Free memory over time: `free_bytes` `[n, k]` (above 0), device i's is `free_bytes[i, j]` from `times_s[j]` on.

    `times_s` `[k]`: seconds, ascending from 0; the last value stays for good.

    >>> halved = MemoryTable([0.0, 3600.0], [[4e6, 2e6]])
    >>> halved.at(3599.0).tolist(), halved.at(3600.0).tolist()
    ([4000000.0], [2000000.0])
    """

    times_s: F64 | Sequence[float]
    free_bytes: F64 | Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        times, free = np.asarray(self.times_s, np.float64), np.asarray(self.free_bytes, np.float64)
        if free.ndim != 2 or times.shape != free.shape[1:] or not len(times) or times[0] != 0.0:
            raise UsageError(
                f"MemoryTable: {times.shape} times and {free.shape} values: give k times from 0 on, and k values in "
                "bytes of every device."
            )
        if not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
            raise UsageError("MemoryTable(times_s=...): seconds that ascend are needed.")
        good = (np.isfinite(free) & (free > 0)).all(axis=1)
        if not good.all():
            raise UsageError(f"MemoryTable: device {int(np.argmin(good))} has memory that is no finite number above 0.")
        object.__setattr__(self, "times_s", times)
        object.__setattr__(self, "free_bytes", free)

    def step(self, at: float) -> int:
        """Which of the times `at` belongs to."""
        return max(int(np.searchsorted(self.times_s, at, "right")) - 1, 0)

    def at(self, at: float) -> F64:
        """Bytes free at that time, `[n]`."""
        return np.asarray(self.free_bytes)[:, self.step(at)]

    def fit(self, n: int) -> None:
        """Refuse a table that is not about `n` devices."""
        if len(self.free_bytes) != n:
            raise UsageError(f"the fleet's memory is about {len(self.free_bytes)} devices, the job has {n} clients.")

    def describe(self) -> str:
        return f"a table of {len(self.times_s)} values of each device"
