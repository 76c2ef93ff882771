"""Which width of a net, and which cut of it, a device should take with an edge server: what fits, then what is quick.

Here: pure functions of cuts, memory and rates. Not here: where memory and rates come from (`fleet`), how a sub-model
is cut out of the vector (`work.submodel`). Invariants: a larger level goes before any cut of a smaller one; the best is
the first of those that take the least time, so that every node finds the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

from fieldfare.core.errors import UsageError
from fieldfare.work.net import Training
from fieldfare.work.split.cuts import Cut
from fieldfare.work.split.memory import device_bytes, server_bytes, whole_bytes
from fieldfare.work.split.net import SplitNet
from fieldfare.work.split.planning import Rates, batch_time, whole_time
from fieldfare.work.submodel.family import Family


@dataclass(frozen=True, slots=True)
class Wire:
    """A link: bits per second up and down, seconds one way."""

    up_bps: float = inf
    down_bps: float = inf
    latency_s: float = 0.0

    def there_and_back(self, down_bytes: float, up_bytes: float) -> float:
        """Seconds to send so many bytes down and, later, up."""
        return 8.0 * (down_bytes / self.down_bps + up_bytes / self.up_bps) + 2.0 * self.latency_s


@dataclass(frozen=True, slots=True)
class Seat:
    """What a device has with an edge server: `rates`, bytes free on the device and its share of the edge's, `batches` a
    round, and the seconds that a round may take (None: as long as it likes).

    `behind`: between edge and centre, over which the global model comes and the update goes; `alone`: between device
    and centre, for a device that trains whole.
    """

    rates: Rates
    memory_bytes: float = inf
    edge_bytes: float = inf
    batches: int = 1
    deadline_s: float | None = None
    behind: Wire = field(default_factory=Wire)
    alone: Wire = field(default_factory=Wire)


@dataclass(frozen=True, slots=True)
class Option:
    """A level (its number in the family) at a cut (None: the device trains it whole), and what it takes.

    Of memory: on the device and at the edge; of time: a batch, and a round with the models there and back.
    """

    level: int
    cut: Cut | None
    memory_bytes: int
    edge_bytes: int
    batch_s: float
    round_s: float

    def lacks(self, seat: Seat) -> str:
        """What a seat has too little of: "memory", "edge", "time"; empty where the option fits."""
        if self.memory_bytes > seat.memory_bytes:
            return "memory"
        if self.edge_bytes > seat.edge_bytes:
            return "edge"
        late = seat.deadline_s is not None and self.round_s > seat.deadline_s
        return "time" if late else ""


@dataclass(frozen=True, eq=False)
class Widths:
    """The levels of a family whose net can be cut, each with its cuts; in a U before the `tail`."""

    family: Family
    training: Training
    tail: int | str | Cut | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.family.net, SplitNet):
            raise UsageError(
                f"levels of a {type(self.family.net).__name__} cannot be cut between device and edge: make them of a "
                "net that can, submodels(ff.split_net(module), levels)."
            )

    @cached_property
    def nets(self) -> tuple[SplitNet, ...]:
        """The net of every level, in the family's order."""
        view = self.family.view()
        return tuple(self.family.net.of(view.layout(number)) for number in range(len(self.family.levels)))

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Numbers of the levels, that with the most parameters first."""
        return tuple(sorted(range(len(self.nets)), key=lambda n: (-self.nets[n].layout.size, n)))

    def cuts(self, level: int, only: int | str | None = None) -> tuple[Cut, ...]:
        """The cuts of a level, all or one of them, before the tail."""
        net, tail = self.nets[level], self.tail_of(level)
        cuts = net.cuts if only is None else (net.cut(only),)
        return cuts if tail is None else tuple(cut for cut in cuts if cut.size < tail.size)

    def tail_of(self, level: int) -> Cut | None:
        """The tail of a U in a level's net."""
        return None if self.tail is None else self.nets[level].cut(self.tail)

    def bytes_of(self, level: int, cut: Cut | None) -> tuple[int, int]:
        """Peak bytes of a step on (device, edge)."""
        net, tail = self.nets[level], self.tail_of(level)
        if cut is None:
            return whole_bytes(net, self.training), 0
        return device_bytes(net, cut, self.training, tail), server_bytes(net, cut, self.training, tail)

    def option(self, level: int, cut: Cut | None, seat: Seat) -> Option:
        """What a level at a cut takes of a seat."""
        held, each = 4 * self.nets[level].layout.size, self.batch_s(level, cut, seat)
        if cut is None:
            sent_s = seat.alone.there_and_back(held, held)
        else:
            tail, rates = self.tail_of(level), seat.rates
            own = 4 * (cut.size + (0 if tail is None else cut.total - tail.size))
            near = Wire(rates.uplink_bps, rates.downlink_bps, rates.latency_s)
            sent_s = near.there_and_back(own, own) + seat.behind.there_and_back(4 * self.family.net.layout.size, held)
        return Option(level, cut, *self.bytes_of(level, cut), each, seat.batches * each + sent_s)

    def batch_s(self, level: int, cut: Cut | None, seat: Seat) -> float:
        """Seconds of a batch of a level at a cut."""
        batch = self.training.batch_size
        if cut is None:
            return whole_time(self.nets[level].cuts, batch, seat.rates.device_flops_per_s)
        return batch_time(cut, batch, seat.rates).total_s

    def options(
        self, seat: Seat, levels: Iterable[int] | None = None, only: int | str | None = None,
        split: bool = True, whole: bool = False,
    ) -> Iterator[Option]:  # fmt: skip
        """Of each level, the largest first: every cut (or the one named) if `split`, and none if `whole`; quickest
        first, and of those as quick none, then the earliest cut."""
        for level in self.order if levels is None else levels:
            cuts: list[Cut | None] = [None] if whole else []
            cuts += self.cuts(level, only) if split else ()
            times = [self.batch_s(level, cut, seat) for cut in cuts]
            for at in sorted(range(len(cuts)), key=times.__getitem__):
                yield self.option(level, cuts[at], seat)

    def choose(
        self, seat: Seat, level: int | None = None, only: int | str | None = None, split: bool = True,
        whole: bool = False,
    ) -> Option | None:  # fmt: skip
        """The largest level (or the one given) with an option that fits, and of those the one with the shortest batch.

        Which fits: device's and edge's memory, the round's deadline. None: no option fits. Zhang & Kim (arXiv
        2105.14675) cut models to a device's memory, Ullah et al. (IEEE Comm. Mag. 60(11), 2022) in two; both at once is
        ours. Cost: once per level and cut a step of each side without data.
        """
        found = self.options(seat, None if level is None else (level,), only, split, whole)
        return next((option for option in found if not option.lacks(seat)), None)

    def why(self, seat: Seat, options: Sequence[Option], name: str = "this device") -> str:
        """In one line, why none of `options` fits a seat: need and have, of that nearest to fitting."""
        batch, lack = self.training.batch_size, [option.lacks(seat) for option in options]
        if not options:
            return f"{name}: no level can be cut before the tail {self.tail!r}: choose a later one."
        parts: list[str] = []
        least = min(options, key=lambda one: one.memory_bytes)
        if least.memory_bytes > seat.memory_bytes:
            parts.append(
                f"the least, {self._called(least)}, takes {least.memory_bytes:,} bytes of memory at batch {batch} and "
                f"{seat.memory_bytes:,.0f} are free: give a smaller level or a smaller batch"
            )
        held = [one for one, what in zip(options, lack, strict=True) if what == "edge"]
        if held and "time" not in lack:
            small = min(held, key=lambda one: one.edge_bytes)
            parts.append(
                f"{self._called(small)} takes {small.edge_bytes:,} bytes at the edge, where its share is "
                f"{seat.edge_bytes:,.0f}: give edges more memory, or more of them"
            )
        slow = [one for one, what in zip(options, lack, strict=True) if what == "time"]
        if slow:
            quick = min(slow, key=lambda one: one.round_s)
            parts.append(
                f"a round of {self._called(quick)} takes {quick.round_s:.3g} s and the deadline is "
                f"{seat.deadline_s:.3g} s: give more time or fewer batches"
            )
        return f"{name} fits no level at any cut offered: {'; '.join(parts)}."

    def _called(self, option: Option) -> str:
        where = "whole" if option.cut is None else f"cut behind {option.cut.name!r}"
        return f"{self.family.levels[option.level].name} {where}"
