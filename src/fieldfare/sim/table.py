"""The tasks of a stream that are at work, in the slots of one table; and what a task consists of.

Not here: who is at work, and until when (`stream`). Invariant: what a row holds is settled when its task begins, so
that accounting for an ended task only reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.effects import Run
from fieldfare.core.work import Cost, Work
from fieldfare.fleet.tasks import Phases, noise_of, phases
from fieldfare.sim.asks import costs
from fieldfare.sim.population import Population

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

UNLIMITED = np.iinfo(np.int64).max
"""The most steps of a client that no budget limits, beside others that one does."""
PARTS = ("overhead", "down", "compute", "up", "flops", "bytes_down", "bytes_up")


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What tasks consist of if nothing cuts them short: `rows` float64 `[PARTS, n]`, and `steps` `[n]` if limited."""

    rows: F64
    steps: I64 | None

    def pick(self, at: Any) -> Parts:
        return Parts(self.rows[:, at], None if self.steps is None else self.steps[at])

    def with_noise(self, noise: F64) -> Parts:
        """The same with each task's own factor `[n]` on its computing time."""
        rows = self.rows.copy()
        rows[2] *= noise
        return Parts(rows, self.steps)

    @property
    def phases(self) -> Phases:
        return Phases(*self.rows[:4], self.rows[:4].sum(0))

    @property
    def cost(self) -> Cost:
        return Cost(*self.rows[4:], np.empty(0))


def joined(parts: list[Parts]) -> Parts:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    steps = None
    if any(one.steps is not None for one in parts):
        limits = (np.full(one.rows.shape[1], UNLIMITED) if one.steps is None else one.steps for one in parts)
        steps = np.concatenate(list(limits))
    return Parts(np.concatenate([one.rows for one in parts], axis=1), steps)


def parts_of(
    run: Run, work: Work, population: Population, clients: I64, start: F64 | float, keys: U64 | None
) -> tuple[Parts, F64]:
    """(parts, seconds of the whole) of tasks of `run` that `clients` begin at `start`; without `keys` without noise."""
    fleet = population.fleet
    cost, steps = costs(run, clients, population, work)
    noise = None if keys is None else noise_of(fleet, rng.mix(keys))
    p = phases(fleet, clients, cost, start, noise)
    rows = np.empty((len(PARTS), len(clients)))
    for row, values in zip(
        rows, (p.overhead, p.down, p.compute, p.up, cost.flops, cost.bytes_down, cost.bytes_up), strict=True
    ):
        row[:] = values
    return Parts(rows, steps), p.whole


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Tasks, `[n]` each: who, from which Run, its number in the stream, when, how it ends, its stream, its parts."""

    client: I64
    base: I64
    serial: I64
    start: F64
    end: F64
    code: NDArray[np.int8]
    key: U64
    parts: Parts

    def pick(self, at: Any) -> Rows:
        return Rows(
            self.client[at], self.base[at], self.serial[at], self.start[at], self.end[at], self.code[at], self.key[at],
            self.parts.pick(at),
        )  # fmt: skip


class Table:
    """Rows by slot; `free` lists the slots that hold no task."""

    def __init__(self) -> None:
        self.free: list[int] = []
        self._whole, self._real = np.zeros((4, 0), np.int64), np.zeros((2 + len(PARTS), 0))
        self._code, self._key = np.zeros(0, np.int8), np.zeros(0, np.uint64)

    def slot(self) -> int:
        """A free slot, no longer free."""
        if not self.free:
            self._grow(max(2 * len(self._code), 64))
        return self.free.pop()

    def _grow(self, width: int) -> None:
        old = len(self._code)
        more = max(width - old, 0)
        self._whole = np.concatenate([self._whole, np.zeros((len(self._whole), more), np.int64)], axis=1)
        self._real = np.concatenate([self._real, np.zeros((len(self._real), more))], axis=1)
        self._code = np.concatenate([self._code, np.zeros(more, np.int8)])
        self._key = np.concatenate([self._key, np.zeros(more, np.uint64)])
        self.free.extend(range(width - 1, old - 1, -1))

    def write(self, slots: I64, rows: Rows) -> None:
        """Put rows `[n]` where `slots` `[n]` say."""
        steps = UNLIMITED if rows.parts.steps is None else rows.parts.steps
        for row, values in zip(self._whole, (rows.client, rows.base, rows.serial, steps), strict=True):
            row[slots] = values
        self._real[0, slots], self._real[1, slots] = rows.start, rows.end
        self._real[2:, slots] = rows.parts.rows
        self._code[slots], self._key[slots] = rows.code, rows.key

    def read(self, slots: I64) -> Rows:
        """The rows in `slots` `[n]`, in this order."""
        whole, real = self._whole.take(slots, 1), self._real.take(slots, 1)
        steps = None if not len(slots) or whole[3].min() == UNLIMITED else whole[3]
        return Rows(
            whole[0], whole[1], whole[2], real[0], real[1], self._code[slots], self._key[slots], Parts(real[2:], steps)
        )

    def clients(self, slots: I64) -> I64:
        """Whose the tasks in `slots` are."""
        return self._whole[0].take(slots)

    def codes(self, slots: list[int]) -> NDArray[np.int8]:
        """How the tasks in `slots` end."""
        return self._code[slots]

    @classmethod
    def holding(cls, slots: I64, rows: Rows) -> Table:
        """A table of these rows in these slots."""
        out, used = cls(), set(slots.tolist())
        out._grow(max(used, default=-1) + 1)
        out.free = [slot for slot in out.free if slot not in used]
        out.write(slots, rows)
        return out
