"""The rows of some clients: shared columns and an index, nothing copied until it is gathered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Block:
    """Data of n clients: client i owns `columns[name][rows[offsets[i]:offsets[i + 1]]]`.

    `columns`: arrays of equal leading length, in memory or memory-mapped. `rows`: int64 `[m]`.
    `offsets`: int64 `[n + 1]`.
    """

    columns: Mapping[str, NDArray[Any]]
    rows: I64
    offsets: I64

    @property
    def n(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> I64:
        """Examples per client, `[n]`."""
        return self.offsets[1:] - self.offsets[:-1]

    def client(self, i: int) -> dict[str, NDArray[Any]]:
        """Copies of the columns of client `i` of this block."""
        rows = self.rows[self.offsets[i] : self.offsets[i + 1]]
        return {name: column[rows] for name, column in self.columns.items()}

    def part(self, start: int, stop: int) -> Block:
        """Clients `start..stop` of this block, without copying."""
        first, last = self.offsets[start], self.offsets[stop]
        return Block(self.columns, self.rows[first:last], self.offsets[start : stop + 1] - first)

    @staticmethod
    def empty(n: int) -> Block:
        """`n` clients without data (work that needs none)."""
        return Block({}, np.empty(0, np.int64), np.zeros(n + 1, np.int64))
