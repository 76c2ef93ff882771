"""Shared memory between a process and its forked children: arrays in, views out, nothing serialised.

Invariant: a view is valid until the next `write` to the same arena.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Spec = tuple[str, tuple[int, ...], int]


class Arena:
    """A growing anonymous file, mapped by writer and readers; made before the fork so that children inherit it."""

    def __init__(self) -> None:
        folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self._fd, path = tempfile.mkstemp(prefix="fieldfare-", dir=folder)
        os.unlink(path)
        self._map: mmap.mmap | None = None
        self._size = 0

    def _reach(self, size: int, grow: bool) -> mmap.mmap:
        if self._map is None or self._size < size:
            if grow:
                size = max(size, 2 * self._size, 1 << 16)
                os.posix_fallocate(self._fd, 0, size)
            size = os.fstat(self._fd).st_size
            self._map = mmap.mmap(self._fd, size)
            self._size = size
        return self._map

    def write(self, arrays: Sequence[NDArray[Any]]) -> list[Spec]:
        """Copy the arrays in; the result says where they are."""
        specs: list[Spec] = []
        at = 0
        for array in arrays:
            specs.append((array.dtype.str, array.shape, at))
            at += -(-array.nbytes // 64) * 64
        memory = self._reach(max(at, 1), grow=True)
        for array, (dtype, shape, start) in zip(arrays, specs, strict=True):
            np.frombuffer(memory, dtype, array.size, start).reshape(shape)[...] = array
        return specs

    def read(self, specs: Sequence[Spec]) -> list[NDArray[Any]]:
        """Views of what was written under `specs`."""
        end = max(
            (at + np.dtype(d).itemsize * int(np.prod(shape, dtype=np.int64)) for d, shape, at in specs), default=1
        )
        memory = self._reach(max(end, 1), grow=False)
        return [
            np.frombuffer(memory, d, int(np.prod(shape, dtype=np.int64)), at).reshape(shape) for d, shape, at in specs
        ]

    def close(self) -> None:
        os.close(self._fd)
