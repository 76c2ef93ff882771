"""What messages between nodes cost their devices: joules of the radios at both ends.

As with tasks (`fleet.tasks`) a radio draws its power for as long as a transfer lasts, latency included, and nothing
while it waits for its turn on a link. Not here: how long a message takes (`carry`). Invariant: a function of the way,
the fleet and the message's own times alone.
"""

from __future__ import annotations

from math import isfinite, isnan

import numpy as np

from fieldfare.fleet.fleet import Column, Fleet
from fieldfare.sim.carry import Route, Traced


def radio_j(route: Route, fleet: Fleet, size: float, first: float, last: float, arrives: float) -> tuple[float, float]:
    """Joules of (sender's, receiver's) radio for a message of `size` bytes; 0 for an end without a device of its own.

    `first`, `last`: when its first and its last byte are at the receiver's link (nan: lost at its sender, which counts
    as nothing); who never receives it (`arrives` not finite) pays nothing. Both ends pay for what the message takes
    alone on its way, latency + size / the slower link: ours, since a link that is faster than the other waits for it.
    """
    if isnan(first) or (route.sender is None and route.receiver is None):
        return 0.0, 0.0
    down = route.down.seconds(first, size) if isinstance(route.down, Traced) else size / route.down
    seconds = route.latency_s + max(last - first, down)
    return (
        0.0 if route.sender is None else seconds * _of(fleet.radio_w, route.sender),
        0.0 if route.receiver is None or not isfinite(arrives) else seconds * _of(fleet.radio_w, route.receiver),
    )


def _of(column: Column, device: int) -> float:
    return float(column[device]) if isinstance(column, np.ndarray) else float(column)
