"""The step that a client of an algorithm really takes: another net than the level's own, more vectors beside it.

Here: what declarations (`core.local`) make of a level, as `work.train` trains it. Not here: what that takes (`cost`).
Invariant: without declarations it is the level's own net and nothing beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldfare.core.local import (
    ControlVariate,
    Dynamic,
    Frozen,
    Local,
    LowRank,
    Personal,
    Proximal,
    Pruned,
    Sent,
    Twin,
)
from fieldfare.core.params import Layout
from fieldfare.work.net import Drift


@dataclass(frozen=True, slots=True, eq=False)
class Actual:
    """What trains in a level's place: the `net` of the step, and the vectors beside its own.

    `corrected`, `pulled`, `masked`: a vector of the net's size each, where gradients are corrected, drawn to the model
    sent, or kept from some coordinates. `kept`: bytes of client state on the device. `down`, `up`: bytes on the link.
    """

    net: Any
    corrected: bool = False
    pulled: bool = False
    masked: bool = False
    kept: int = 0
    down: int = 0
    up: int = 0

    @property
    def drift(self) -> Drift:
        """A drift of that form, which moves nothing."""
        size = self.net.layout.size
        a = np.broadcast_to(np.float32(0), (1, size)) if self.corrected else None
        mask = np.broadcast_to(np.True_, (size,)) if self.masked else None
        return Drift(a, 1e-9 if self.pulled else 0.0, None, mask)

    @property
    def turns(self) -> int:
        """After how many steps each of the nets inside has had its turn."""
        net = self.net
        within = getattr(net, "_within", None)
        inner = getattr(net, "inner", None) or (within and within.nested)
        count = len(net.inner.widths) if getattr(net, "inner", None) else len(within.nets) if within else 0
        return 1 if not inner or not count else {"all": 1, "turn": count, "only": count + 1}[inner.each]


def memory_of(local: Sequence[Local]) -> tuple[Local, ...]:
    """The declarations that change a step's memory, or what travels."""
    return tuple(one for one in local if not (isinstance(one, Proximal) and not one.mu))


def actual(net: Any, layout: Layout, local: Sequence[Local] = ()) -> Actual:
    """What trains in the place of the sub-model of `layout` of `net` (a torch net or declared layers) under `local`.

    Errors: `UsageError` where the declarations do not go with the net.
    """
    from fieldfare.work import compress
    from fieldfare.work.heads import of_level

    one = net if layout == net.layout else net.of(layout)
    plain = 4 * layout.size
    if not local:
        return Actual(one, down=plain, up=plain)
    local = of_level(tuple(local), net, layout) if layout != net.layout else tuple(local)
    one = compress.trained(one, net, local)
    down, up, _ = compress.travelling(local, one, layout)
    corrected = pulled = masked = False
    kept = 0
    for said in local:
        match said:
            case ControlVariate():
                corrected, kept, down, up = True, kept + 2 * plain, down + plain, up + plain
            case Dynamic(alpha):
                corrected, pulled, kept = corrected or bool(alpha), pulled or bool(alpha), kept + plain
            case Twin():
                pulled, kept = True, kept + plain
            case Proximal():
                pulled = True
            case Sent(feedback=True):
                kept += plain
            case Frozen() | Pruned():
                masked = True
            case Personal(head_epochs=epochs):
                masked = masked or epochs > 0
            case _:
                pass
    low = next((said for said in local if isinstance(said, LowRank)), None)
    small = one if low is None else compress.factored(one, low.rank)
    return Actual(small, corrected, pulled, masked, kept, round(down), round(up))
