"""Rings of unlike widths: which peers have which coordinates, and sums that carry how many members are in them.

Every peer keeps a copy of the whole model and trains its part of it, the sub-model that a `View` gives its device, in
all cycles (our reading: what a device lacks is memory to train in, not room to store). Coordinates fall in bands, those
that the same peers have. In a ring each coordinate is averaged over the members that have it; a band that no member has
does not travel and stays as it is. Here: bands, the part of a ring (`Cover`), lifting. Not here: chunks and frames
(`session`), what becomes of a mean (`rules`). Invariant: where all members have the whole model there is no `Cover`,
and no bit, byte or message differs from a ring without widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.core.params import RoundView, View

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

_MOST_SIZES = 62


@dataclass(frozen=True, slots=True, eq=False)
class Cover:
    """What travels in one ring, U coordinates: those that at least one of its members has.

    `where` int64 `[U]` ascending: their places in the model. `band` int64 `[U]`: the band of each, as a place in
    `bits` (the members that have the band, bitmap over the ring), `numbers` (the band's own) and `behind` (what a sum
    over all members that have it is divided by).
    """

    where: I64
    band: I64
    bits: tuple[int, ...]
    numbers: tuple[int, ...]
    behind: tuple[float, ...] = ()

    def mask(self, contributors: int, start: int, stop: int) -> Bools | None:
        """Which coordinates `start..stop` some contributor has; None for all."""
        had = np.array([bool(bits & contributors) for bits in self.bits])
        return None if had.all() else had[self.band[start:stop]]

    def counts(self, contributors: int) -> tuple[int, ...]:
        """How many of the contributors have each band: what travels with a sum."""
        return tuple((bits & contributors).bit_count() for bits in self.bits)

    @property
    def divisors(self) -> F64:
        """What the sum of each coordinate is divided by, `[U]`."""
        return np.array(self.behind, np.float64)[self.band]

    def spread(self, whole: F32, values: F32) -> F32:
        """`whole` `[P]` with `values` `[U]` where they belong."""
        out = whole.copy()
        out[self.where] = values
        return out


@dataclass(frozen=True, eq=False)
class Widths:
    """The parts of `peers` peers: peer i has what `view` gives client i. Made by `widths_of`."""

    view: View
    peers: int

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """The level of each peer."""
        return tuple(int(one) for one in self.view.plan(np.arange(self.peers)))

    @cached_property
    def bands(self) -> tuple[tuple[frozenset[int], I64], ...]:
        """(levels that have the band, its places in the model, ascending), of all bands that some peer has."""
        levels = sorted(set(self.levels))
        if len(levels) > _MOST_SIZES:
            raise UsageError(f"a ring of {len(levels)} sizes of sub-model: use at most {_MOST_SIZES} levels.")
        index = [self.view.index(level) for level in levels]
        having = np.zeros(max((int(one[-1]) + 1 for one in index if len(one)), default=0), np.int64)
        for number, one in enumerate(index):
            having[one] |= 1 << number
        return tuple(
            (frozenset(level for number, level in enumerate(levels) if which >> number & 1),
             np.flatnonzero(having == which))
            for which in np.unique(having[having > 0]).tolist()
        )  # fmt: skip

    def index(self, peer: int) -> I64:
        """Places of a peer's own part, int64 `[p]` ascending."""
        return self.view.index(self.levels[peer])

    def having(self, peers: Sequence[int]) -> tuple[int, ...]:
        """For each band, a bitmap of those among `peers` that have it."""
        return tuple(
            sum(1 << place for place, peer in enumerate(peers) if self.levels[peer] in levels)
            for levels, _ in self.bands
        )

    def cover(self, members: Sequence[int], among: Sequence[int], size: int) -> Cover | None:
        """What travels in a ring of `members` over a model of `size`; None where all `among` have all of it."""
        bits = self.having(members)
        numbers = tuple(number for number, one in enumerate(bits) if one)
        where, band = _places(self, numbers)
        if len(where) == size and all(len(self.index(peer)) == size for peer in among):
            return None
        return Cover(where, band, tuple(bits[number] for number in numbers), numbers)

    def told(self, behind: tuple[float, ...]) -> Cover:
        """What a result is about, from what every band's sums were divided by (0: not in the ring; (): all are in)."""
        behind = behind or (1.0,) * len(self.bands)
        numbers = tuple(number for number, one in enumerate(behind) if one) if len(behind) == len(self.bands) else ()
        where, band = _places(self, numbers)
        return Cover(where, band, (0,) * len(numbers), numbers, tuple(behind[number] for number in numbers))

    def lifted(self, whole: F32, peer: int, row: F32) -> F32:
        """`whole` `[P]` with the peer's own part as it was trained, `row` `[p]`."""
        out = whole.copy()
        out[self.index(peer)] = row
        return out

    def own(self, whole: F32, peer: int) -> F32:
        """`whole` `[P]` with zeros outside the peer's own part."""
        out = np.zeros_like(whole)
        index = self.index(peer)
        out[index] = whole[index]
        return out


def widths_of(view: View | None, peers: int, method: str) -> Widths | None:
    """The parts of `peers` peers, if their method was given a view; one whose parts would move is refused.

    One that the job has yet to plan (`family.fitting()`) is taken, and of no use until it has.
    """
    if view is None:
        return None
    rule = getattr(view, "rule", None)
    moves, planned = hasattr(rule, "rule") or not getattr(rule, "steady", True), hasattr(view, "prove")
    if moves or (isinstance(view, RoundView) and not hasattr(view, "assign") and not planned):
        what = type(rule if moves else view).__name__
        raise UsageError(
            f"{method}(view=...) by {what}: without a server a device trains the same part in every cycle; use "
            "family.view(), which keeps the first channels, or plan(...).view()."
        )
    return Widths(view, peers)


def behind_of(cover: Cover, widths: Widths, factors: Mapping[int, float], whole: float | None = None) -> Cover:
    """`cover` with the sum of `factors` (by peer) over those that have a band as what its sums are divided by.

    `whole`: what that is where all of `factors` have the band, to the bit.
    """
    peers = list(factors)
    everyone = (1 << len(peers)) - 1
    bits = widths.having(peers)
    behind = tuple(
        whole if whole is not None and bits[number] == everyone
        else float(sum(factors[peer] for place, peer in enumerate(peers) if bits[number] >> place & 1))
        for number in cover.numbers
    )  # fmt: skip
    return replace(cover, behind=behind)


def tell(cover: Cover | None, widths: Widths | None) -> tuple[float, ...]:
    """What goes with a result: what the sums of every band were divided by; () where nothing is left out."""
    if cover is None or widths is None:
        return ()
    known = dict(zip(cover.numbers, cover.behind, strict=True))
    return tuple(known.get(number, 0.0) for number in range(len(widths.bands)))


def newer(widths: Widths, fresh: tuple[int, ...], cycle: int, behind: tuple[float, ...]) -> tuple[int, ...]:
    """Which cycle each band is of, once the result of `cycle` is in, too."""
    out = list(fresh)
    for number in widths.told(behind).numbers:
        out[number] = max(out[number], cycle)
    return tuple(out)


@lru_cache(maxsize=32)
def _places(widths: Widths, numbers: tuple[int, ...]) -> tuple[I64, I64]:
    """Places in the model of these bands, ascending, and which of `numbers` each is in."""
    where = [widths.bands[number][1] for number in numbers]
    if not where:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    band = np.repeat(np.arange(len(numbers)), [len(one) for one in where])
    flat = np.concatenate(where)
    order = np.argsort(flat, kind="stable")
    out, of = flat[order], band[order]
    out.flags.writeable = of.flags.writeable = False
    return out, of
