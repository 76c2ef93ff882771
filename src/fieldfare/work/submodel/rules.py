"""Which channels a level keeps: extraction rules as data, and the view of a net that a `Run` carries.

Here: prefix, rolling and random windows, channels of the largest norm, a level drawn anew every round, depth. Not
here: the groups of channels (`axes`), smaller nets (`nets`). Invariant: what a level keeps depends on (rule, round,
model, client where it says so) only; a level of rate 1 and full depth is the whole vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.work.submodel.axes import Axes, Group

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Level:
    """A size of sub-model: the share of the channels of every layer, and how many exits deep (None: all)."""

    rate: float = 1.0
    depth: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise UsageError(f"Level(rate={self.rate}): use a number above 0 and at most 1.")
        if self.depth is not None and self.depth < 1:
            raise UsageError(f"Level(depth={self.depth}): use a number of exits >= 1, or None for all.")

    @property
    def name(self) -> str:
        """Short, for metrics and tables: "1", "1/4", "0.3", "1/2d2".

        >>> [Level(r).name for r in (1, 0.25, 0.3)], Level(0.5, 2).name
        (['1', '1/4', '0.3'], '1/2d2')
        """
        whole = 1.0 / self.rate
        rate = "1" if whole == 1 else f"1/{whole:.0f}" if abs(whole - round(whole)) < 1e-9 else f"{self.rate:g}"
        return rate if self.depth is None else f"{rate}d{self.depth}"


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """What a rule may look at: the round (from 1), the model's vector, and the client where it asks for that."""

    round: int
    axes: Axes
    vector: F32 | None = None
    client: int | None = None


class Extraction(Protocol):
    """Which channels of a group are kept. `steady`: never others; `each`: others for every client."""

    @property
    def steady(self) -> bool: ...

    @property
    def each(self) -> bool: ...

    def kept(self, number: int, group: Group, count: int, at: Moment) -> I64:
        """`count` channels, ascending, of the group with that number."""
        ...


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first channels: levels lie inside one another (HeteroFL, FjORD)."""

    steady: bool = field(default=True, init=False)
    each: bool = field(default=False, init=False)

    def kept(self, number: int, group: Group, count: int, at: Moment) -> I64:
        return np.arange(count)


@dataclass(frozen=True, slots=True)
class Rolling:
    """A window that moves on by `by` channels (or units) every round, around the end (FedRolex, eq. 3)."""

    by: int = 1
    steady: bool = field(default=False, init=False)
    each: bool = field(default=False, init=False)

    def kept(self, number: int, group: Group, count: int, at: Moment) -> I64:
        shift = self.by * (at.round - 1)
        blocks = group.size // group.unit
        if count < group.unit:
            inside = (shift // blocks + np.arange(count)) % group.unit
            return np.sort(inside + shift % blocks * group.unit)
        return _of_blocks((shift + np.arange(count // group.unit)) % blocks, group.unit)


@dataclass(frozen=True, slots=True)
class RandomWindow:
    """Channels drawn anew every round, the same for all clients, or with `each` others for each of them.

    With `each` every client is a stack of its own, so cohorts train one by one.
    """

    seed: int = 0
    each: bool = False
    steady: bool = field(default=False, init=False)

    def kept(self, number: int, group: Group, count: int, at: Moment) -> I64:
        key = ("window", at.round, number, -1 if at.client is None else at.client)
        blocks = group.size // group.unit
        if count < group.unit:
            block = rng.choose(self.seed, key, 1, blocks)[0]
            return np.sort(rng.choose(self.seed, (*key, "inside"), count, group.unit)) + block * group.unit
        return _of_blocks(rng.choose(self.seed, key, count // group.unit, blocks), group.unit)


@dataclass(frozen=True, slots=True)
class TopNorm:
    """The channels whose weights, in every layer that has them, have the largest sum of squares in the model sent."""

    looks: bool = field(default=True, init=False)
    steady: bool = field(default=False, init=False)
    each: bool = field(default=False, init=False)

    def kept(self, number: int, group: Group, count: int, at: Moment) -> I64:
        if count == group.size:
            return np.arange(count)
        if at.vector is None:
            raise UsageError("TopNorm looks at the model: use view.at(round, model), as FedAvg does.")
        score = channel_norms(at.axes, at.vector, number)
        if count < group.unit:
            return np.sort(np.argsort(-score, kind="stable")[:count])
        by_block = score.reshape(-1, group.unit).sum(axis=1)
        return _of_blocks(np.argsort(-by_block, kind="stable")[: count // group.unit], group.unit)


@dataclass(frozen=True, slots=True)
class MultiRate:
    """Every round each client draws a level no larger than its own, of equal chance; channels as `rule` says.

    Ordered dropout (FjORD, section 3.1), per round where the paper draws per step.
    """

    rule: Any = field(default_factory=Prefix)
    seed: int = 0

    @property
    def steady(self) -> bool:
        return self.rule.steady

    @property
    def each(self) -> bool:
        return self.rule.each

    @property
    def looks(self) -> bool:
        return getattr(self.rule, "looks", False)

    def kept(self, number: int, group: Group, count: int, at: Moment) -> I64:
        return self.rule.kept(number, group, count, at)


def _of_blocks(blocks: I64, unit: int) -> I64:
    return (np.sort(blocks)[:, None] * unit + np.arange(unit)).reshape(-1)


def channel_norms(axes: Axes, vector: F32, number: int) -> NDArray[np.float64]:
    """Sum of squares of all weights that belong to each channel of a group, `[size]`."""
    group = axes.groups[number]
    score = np.zeros(group.size)
    for name, where, shape in axes.layout.items():
        for d, axis in enumerate(axes.params[name]):
            if not any(number in segment for segment in axis):
                continue
            other = tuple(e for e in range(len(shape)) if e != d)
            along = np.square(vector[where].reshape(shape), dtype=np.float64).sum(axis=other)
            start = 0
            for segment in axis:
                sizes = [axes.groups[g].size for g in segment]
                size = int(np.prod(sizes, dtype=np.int64))
                if number in segment:
                    rest = tuple(e for e, g in enumerate(segment) if g != number)
                    part = along[start : start + size].reshape(sizes).sum(axis=rest)
                    score += part if part.ndim == 1 else 0.0
                start += size
    return score


@dataclass(frozen=True, eq=False)
class SubModels:
    """A sub-model per client (`core.params.View`): client i gets level `assign[i % len(assign)]` of `levels`.

    `at(round, model)` is the view of a round. `stages`: for levels of several depths, names of the parameters a net
    cut behind its first, second, ... exit has.
    """

    axes: Axes
    levels: tuple[Level, ...]
    rule: Any
    assign: I64
    stages: tuple[tuple[str, ...], ...] = ()
    round: int = 1
    vector: F32 | None = None

    @cached_property
    def known(self) -> dict[Any, Any]:
        """Index sets and layouts made so far."""
        return {}

    def at(self, round_: int, model: Params | None = None) -> SubModels:
        """The view of round `round_` (from 1) on `model`; what does not change is not computed again."""
        looks = model is not None and getattr(self.rule, "looks", False)
        out = replace(self, round=round_, vector=model.vector if looks and model is not None else None)
        if self.rule.steady:
            out.__dict__["known"] = self.known
        return out

    def assigned(self, assign: I64) -> SubModels:
        """This view with other levels for the clients; index sets made so far are kept."""
        out = replace(self, assign=assign)
        out.__dict__["known"] = self.known
        return out

    def plan(self, clients: I64) -> I64:
        """Levels of the clients, int64 `[n]`."""
        clients = np.asarray(clients, np.int64)
        own = self.assign[clients % len(self.assign)]
        if isinstance(self.rule, MultiRate):
            key = rng.keys(self.rule.seed, ("level", self.round), clients)
            chance = rng.uniforms(key, np.zeros(len(clients), np.int64))
            table = [np.array(self._below(level)) for level in range(len(self.levels))]
            own = np.array([table[o][int(u * len(table[o]))] for o, u in zip(own, chance, strict=True)], np.int64)
        return own + len(self.levels) * (clients + 1) if self.rule.each else own

    def _below(self, level: int) -> list[int]:
        """Levels no larger than this one."""
        own = self.levels[level]
        deep = len(self.stages) if own.depth is None else own.depth
        return [
            n for n, one in enumerate(self.levels)
            if one.rate <= own.rate and (len(self.stages) if one.depth is None else one.depth) <= deep
        ]  # fmt: skip

    def level(self, number: int) -> Level:
        """The level behind a number that `plan` gave."""
        return self.levels[number % len(self.levels)]

    def index(self, level: int) -> I64:
        """Places in the vector of a level's parameters, int64 `[p]` ascending."""
        key, level = ("index", int(level)), int(level)
        if key not in self.known:
            one = self.level(level)
            sizes = self.axes.sizes(one.rate)
            client = level // len(self.levels) - 1
            at = Moment(self.round, self.axes, self.vector, client if client >= 0 else None)
            kept = [
                np.arange(group.size) if size == group.size else self.rule.kept(g, group, size, at)
                for g, (group, size) in enumerate(zip(self.axes.groups, sizes, strict=True))
            ]
            self.known[key] = self.axes.index(kept, self._names(one))
        return self.known[key]

    def layout(self, level: int) -> Layout:
        """Layout of a level's parameters."""
        key = ("layout", int(level) % len(self.levels))
        if key not in self.known:
            one = self.level(level)
            self.known[key] = self.axes.layout_of(self.axes.sizes(one.rate), self._names(one))
        return self.known[key]

    def _names(self, level: Level) -> tuple[str, ...] | None:
        return None if level.depth is None else self.stages[level.depth - 1]


def as_levels(levels: Sequence[float | Level]) -> tuple[Level, ...]:
    """Levels given as rates or as `Level`s."""
    if not len(levels):
        raise UsageError("sub-models need at least one level: use levels=(1, 0.5, 0.25).")
    found = tuple(one if isinstance(one, Level) else Level(float(one)) for one in levels)
    twice = next((one.name for i, one in enumerate(found) if one.name in {other.name for other in found[:i]}), None)
    if twice is not None:
        raise UsageError(f"the level {twice} is there twice: give different levels; clients share one by assign=.")
    return found


def view_of(
    axes: Axes, levels: Sequence[float | Level], rule: Any, assign: Sequence[int] | I64 | None,
    stages: tuple[tuple[str, ...], ...] = (),
) -> SubModels:  # fmt: skip
    """The view that gives client i level `assign[i % len(assign)]`; None: the levels in turn."""
    found = as_levels(levels)
    given = np.arange(len(found)) if assign is None else np.asarray(assign, np.int64)
    if given.ndim != 1 or not len(given) or given.min() < 0 or given.max() >= len(found):
        raise UsageError(f"assign= names levels 0 to {len(found) - 1}, one per client (or a pattern that repeats).")
    if any(one.depth is not None and one.depth > len(stages) for one in found):
        raise UsageError(
            f"a level of depth {max(one.depth or 0 for one in found)} needs a net with so many exits, and this has "
            f"{len(stages)}: use fieldfare.exits(...)."
        )
    if axes.fixed and not rule.steady and _moving(axes):
        raise UsageError(
            f"{type(rule).__name__} would keep other channels than the buffer or frozen parameter {_moving(axes)!r} of "
            "a smaller net has: use Prefix()."
        )
    return SubModels(axes, found, rule, given, stages)


def _moving(axes: Axes) -> str:
    """A buffer or frozen parameter with channels that are cut; "" if there is none."""
    for name, all_ in axes.fixed.items():
        if any(axes.groups[g].whole is None for axis in all_ for segment in axis for g in segment):
            return name
    return ""
