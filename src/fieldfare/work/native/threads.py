"""How many threads the core may use in this process: set by whoever owns the process, read at every call.

Not here: the threads (they live as long as a call). Invariant: no result depends on it, to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable

_WORTH = 2e6
"""FLOPs that take about as long as starting a thread."""

_most: int | None = None


def limit(most: int | None) -> Callable[[], None]:
    """Allow `most` threads from now on (None: as many as this process may use cores); gives what sets it back."""
    global _most
    before, _most = _most, most

    def restore() -> None:
        global _most
        _most = before

    return restore


def allowed() -> int:
    """Threads that may be used: as `limit` said, or the cores this process may run on."""
    if _most is not None:
        return max(1, _most)
    cores = getattr(os, "sched_getaffinity", None)
    return max(1, len(cores(0)) if cores is not None else os.cpu_count() or 1)


def worth(clients: int, flops: float) -> int:
    """Threads for a call of so many clients and FLOPs in all.

    >>> worth(1, 1e12), worth(100, 0.0)
    (1, 1)
    """
    return max(1, min(allowed(), clients, int(flops / _WORTH)))
