"""When the devices of nodes are there: the sessions of the fleet's availability, looked up one device at a time.

Not here: what a session's end does to a task (`fleet.tasks`) or to a message (`carry`). Invariant: an answer depends on
(fleet, device, time) alone.
"""

from __future__ import annotations

from math import inf

import numpy as np

from fieldfare.fleet.availability import Availability

_KEPT = 4096


class Sessions:
    """The sessions of single devices; without an availability every device is there always."""

    def __init__(self, availability: Availability | None) -> None:
        self.availability = availability
        self._kept: dict[int, tuple[float, float]] = {}

    def at(self, device: int, t: float) -> tuple[float, float]:
        """(begin, end) of the session that covers `t`, or else of the next one; (inf, inf): never again.

        Cost: 50 us, and nearly nothing within the session asked for last.
        """
        if self.availability is None:
            return -inf, inf
        kept = self._kept.get(device)
        if kept is None or not kept[0] <= t < kept[1]:
            begin, end = self.availability.session(t, np.array([device]))
            kept = float(begin[0]), float(end[0])
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[device] = kept
        return kept

    def through(self, device: int | None, begin: float, end: float) -> bool:
        """Whether the device (None: none, which never leaves) is there from `begin` to `end` without a break."""
        if device is None or self.availability is None:
            return True
        first, last = self.at(device, begin)
        return first <= begin and end < last
