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

from fieldfare.core.errors import UsageError

Spec = tuple[str, tuple[int, ...], int]


class Arena:
    """A growing anonymous file, mapped by writer and readers; made before the fork so that children inherit it."""

    def __init__(self) -> None:
        self._fd = _anonymous()
        self._map: mmap.mmap | None = None
        self._size = 0

    def _reach(self, size: int, grow: bool) -> mmap.mmap:
        if self._map is None or self._size < size:
            if grow:
                size = max(size, 2 * self._size, 1 << 16)
                _extend(self._fd, size)
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


def _anonymous() -> int:
    """A file without a name: of memory on Linux (bounded by the memory alone, not by the size of /dev/shm)."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fieldfare")
    file, path = tempfile.mkstemp(prefix="fieldfare-")
    os.unlink(path)
    return file


def _extend(file: int, size: int) -> None:
    """Reserve `size` bytes now, so that none is found missing when it is written."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.ftruncate(file, size)
    except OSError as error:
        raise UsageError(
            f"{size} bytes of memory shared with the worker processes are not to be had ({error.strerror}): use fewer "
            "workers, a smaller cohort, or Simulated(workers=1)."
        ) from error
