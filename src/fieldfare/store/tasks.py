"""`tasks.bin`: every task of a run that is over, one record each, in the order their gathers ended.

Here: the record, and reading. Not here: what a task is (`fleet.tasks`). Little endian, packed: `round` uint32 (the
round, or version, it was counted in), `client` uint32, `start`, `end` float64 (virtual seconds), `outcome` uint8 (an
index into ok, interrupted, timeout, late, stale, refused, drop-out), `base` uint32 (the version of the model it began
from; 0 is the model the run began with), `compute_s`, `bytes_down`, `bytes_up`, `energy_j` float32. Round r makes
version r, so a task is `round - 1 - base` versions stale: 0 in rounds. Of several nodes, `base` is `round - 1`.
Invariant: the file holds whole records only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError

TASKS = "tasks.bin"
TASK = np.dtype(
    [
        ("round", "<u4"), ("client", "<u4"), ("start", "<f8"), ("end", "<f8"), ("outcome", "u1"), ("base", "<u4"),
        ("compute_s", "<f4"), ("bytes_down", "<f4"), ("bytes_up", "<f4"), ("energy_j", "<f4"),
    ]
)  # fmt: skip
"""45 bytes."""


def staleness_of(tasks: Mapping[str, NDArray[Any]] | NDArray[Any]) -> NDArray[np.int64]:
    """Versions made between the model a task began from and the one it was counted in, `[n]`, of records or columns.

    >>> staleness_of({"round": np.array([1, 9], np.uint32), "base": np.array([0, 5], np.uint32)}).tolist()
    [0, 3]
    """
    return np.maximum(tasks["round"].astype(np.int64) - 1 - tasks["base"], 0)


def read_tasks(folder: str | Path) -> NDArray[Any] | None:
    """The tasks of the run in `folder` as a structured array, memory-mapped and read-only; None where none are kept."""
    path = Path(folder) / TASKS
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    count = size // TASK.itemsize
    if not count:
        return np.empty(0, TASK)
    try:
        return np.memmap(path, TASK, "r", shape=(count,))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}).") from None
