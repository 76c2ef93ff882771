"""The vector of a model, and its optimiser's slots, as the device's and the server's numbers at a cut.

Here: `Split`, which takes apart and joins. Not here: what the sides compute (`works`). Invariant: taking apart and
joining moves numbers and changes none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.work.net import Training, moments_size
from fieldfare.work.split.cuts import Cut
from fieldfare.work.split.half import sub_layout
from fieldfare.work.split.net import SplitNet

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Split:
    """A net at a cut: the device has the numbers before it, the server those behind.

    `tail`: a second cut behind the first (U-shape): what lies behind it is the device's again, so that labels never
    leave it; the device's vector is then its first range and its last, one after the other, and so are its slots.
    Slots are those of `work.net.moments_size`, per range, zero where a number is a running statistic.
    """

    net: SplitNet
    cut: Cut
    training: Training = field(default_factory=Training)
    tail: Cut | None = None

    def __post_init__(self) -> None:
        if self.tail is not None and not self.cut.size < self.tail.size:
            raise UsageError(
                f"a split after {self.cut.name!r} with a tail after {self.tail.name!r} leaves the server nothing to "
                "train: choose a later tail."
            )

    @property
    def ends(self) -> tuple[int, int]:
        """The server has numbers `ends[0]..ends[1]` of the vector."""
        return self.cut.size, self.cut.total if self.tail is None else self.tail.size

    @property
    def layouts(self) -> tuple[Layout, Layout]:
        """Layouts (device, server)."""
        start, stop = self.ends
        first, last = sub_layout(self.net.layout, 0, start), sub_layout(self.net.layout, stop, self.cut.total)
        device = Layout((*first.names, *last.names), (*first.shapes, *last.shapes))
        return device, sub_layout(self.net.layout, start, stop)

    def halves(self, model: Params | F32) -> tuple[Params, Params]:
        """(device, server) of a whole model."""
        whole, (start, stop) = _vector(model), self.ends
        device, server = self.layouts
        return Params(np.concatenate([whole[:start], whole[stop:]]), device), Params(whole[start:stop], server)

    def join(self, device: Params | F32, server: Params | F32) -> Params:
        """The whole model of two halves."""
        own, start = _vector(device), self.ends[0]
        return Params(np.concatenate([own[:start], _vector(server), own[start:]]), self.net.layout)

    def slots(self) -> tuple[F32, F32]:
        """Slots (device, server) of an optimiser that has not begun."""
        return self.halve_slots(np.zeros(moments_size(self.training, self.cut.total), np.float32))

    def halve_slots(self, whole: F32) -> tuple[F32, F32]:
        """(device, server) of the slots of a whole model."""
        moments, count = self._moments(whole, self.cut.total)
        start, stop = self.ends
        ranges = [np.concatenate([m.reshape(-1), count]) for m in np.split(moments, (start, stop), axis=1)]
        first, server, last = ranges
        return first if self.tail is None else np.concatenate([first, last]), server

    def join_slots(self, device: F32, server: F32) -> F32:
        """The slots of the whole model; all ranges have taken the same number of steps."""
        start, stop = self.ends
        sizes, at = (start, stop - start, self.cut.total - stop), moments_size(self.training, start)
        parts = (device[:at], server, device[at:]) if self.tail is not None else (device, server)
        found = [self._moments(part, size) for part, size in zip(parts, sizes, strict=False)]
        return np.concatenate([np.concatenate([m for m, _ in found], axis=1).reshape(-1), found[0][1]])

    def recut(self, to: Split, device: F32, server: F32, own: F32, other: F32) -> tuple[F32, F32, F32, F32]:
        """(device, server, device's slots, server's slots) at another split of the same net."""
        halves = to.halves(self.join(device, server))
        return halves[0].vector, halves[1].vector, *to.halve_slots(self.join_slots(own, other))

    def _moments(self, slots: F32, size: int) -> tuple[F32, F32]:
        """Moments `[k, size]` and what is behind them (Adam's count of steps)."""
        k = self.training.moments
        if slots.shape != (moments_size(self.training, size),):
            raise UsageError(
                f"slots of shape {slots.shape} do not fit {size} numbers: pass "
                f"({moments_size(self.training, size)},) for this optimiser."
            )
        return slots[: k * size].reshape(k, size), slots[k * size :]


def split(
    net: SplitNet, cut: int | str | Cut, training: Training | None = None, tail: int | str | Cut | None = None
) -> Split:
    """`net` at a cut given by number or by name; with `tail` in a U."""
    return Split(net, net.cut(cut), training or Training(), None if tail is None else net.cut(tail))


def _vector(model: Params | F32) -> F32:
    return model.vector if isinstance(model, Params) else model
