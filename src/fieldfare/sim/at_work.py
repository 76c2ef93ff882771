"""Which devices are still at work, and until when: a device does one task at a time.

A late device goes on after its gather is over, so the next draw must know of it. Only tasks that go on are kept: a run
in which nobody is ever late keeps nothing from gather to gather. Not here: the clients of a stream, which knows its own
(`stream`); evaluations, which take no turn, so that measuring a model does not change it; what a node does on its own
device, which it settles itself. Invariant: `ids` are ascending and different, `until` is after the time asked about.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class AtWork:
    """`ids` int64 `[b]` are at work `until` `[b]`, absolute seconds; `last` is the latest of these.

    >>> late = AtWork().joined(np.array([5, 2]), np.array([30.0, 10.0]))
    >>> late.at(10.0).ids.tolist(), late.at(30.0).ids.tolist()
    ([5], [])
    """

    ids: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    until: F64 = field(default_factory=lambda: np.empty(0))
    last: float = -np.inf

    def __len__(self) -> int:
        return len(self.ids)

    def joined(self, ids: I64, until: F64) -> AtWork:
        """These as well, in any order; cost: a pass over `until` where nobody was at work."""
        if not len(ids):
            return self
        last = max(self.last, float(until.max()))
        if not len(self.ids):
            return AtWork(ids, until, last)
        return AtWork(np.concatenate([self.ids, ids]), np.concatenate([self.until, until]), last)

    def at(self, now: float) -> AtWork:
        """Those still at work at `now`, each once; cost: nothing where all have ended."""
        if self.last <= now:
            return NOBODY
        on = np.flatnonzero(self.until > now)
        order = on[np.lexsort((self.until[on], self.ids[on]))]
        ids = self.ids[order]
        latest = np.append(ids[1:] != ids[:-1], True)
        return AtWork(ids[latest], self.until[order][latest], self.last)

    def among(self, ids: I64 | None) -> I64:
        """Where in `ids` (ascending; None: all devices) those at work are, ascending."""
        if ids is None or not len(self.ids):
            return self.ids
        at = np.searchsorted(ids, self.ids)
        return at[(at < len(ids)) & (ids.take(at, mode="clip") == self.ids)]

    def free(self, ids: I64) -> NDArray[np.bool_]:
        """Which of `ids` `[n]`, in any order, are not at work."""
        return self.begin(-np.inf, ids) == -np.inf

    def begin(self, now: float, ids: I64) -> F64:
        """From when each of `ids` `[n]` may begin: `now`, or when its task is over."""
        out: Any = np.full(len(ids), now)
        if len(self.ids) and len(ids):
            at = np.searchsorted(self.ids, ids)
            found = np.flatnonzero((at < len(self.ids)) & (self.ids.take(at, mode="clip") == ids))
            out[found] = self.until[at[found]]
        return out


NOBODY = AtWork()


def skipping(taken: I64, drawn: I64) -> I64:
    """The `drawn`-th numbers `[k]` (from 0) of those that are not in `taken`, which is ascending.

    >>> skipping(np.array([2, 5]), np.array([0, 2, 4])).tolist()
    [0, 3, 6]
    """
    return drawn + np.searchsorted(taken - np.arange(len(taken)), drawn, side="right") if len(taken) else drawn
