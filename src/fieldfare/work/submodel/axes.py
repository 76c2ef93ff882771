"""The channel groups of a net, found from what it computes: which positions of which parameters go together.

Here: `axes(net, ...)`, the index set and the layout of any choice of channels, and the choice behind a layout. Not
here: which channels a level keeps (`rules`) and smaller modules (`resize`). Invariant: inputs and outputs of the net
keep their shape; `sizes_of(layout(sizes)) == sizes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout
from fieldfare.work.submodel.groups import Axis, Groups

I64 = NDArray[np.int64]

INPUT, OUTPUT, PLACES = "input of the net", "output of the net", "places, not channels"
PLAIN = (
    INPUT, OUTPUT, PLACES, "one channel", "cut by whole blocks",
    "rows of an embedding, chosen by number", "repeated",
)  # fmt: skip

_ENDS = (INPUT, OUTPUT, "one channel", "rows of an embedding, chosen by number")


@dataclass(frozen=True, slots=True)
class Group:
    """Channels tied across layers: `size` of them, kept in multiples of `unit` (or fewer than one unit).

    `name`: the first parameter that has them, and its dimension. `whole`: why they cannot be cut; None if they can.
    `least`: the fewest that are kept.
    """

    name: str
    size: int
    unit: int = 1
    whole: str | None = None
    least: int = 1

    def keep(self, rate: float) -> int:
        """How many channels are kept at `rate`: ceil(rate * size), in whole units."""
        if self.whole is not None:
            return self.size
        wanted = max(ceil(rate * self.size - 1e-9), self.least)
        return wanted if wanted < self.unit else min(-(-wanted // self.unit) * self.unit, self.size)


@dataclass(frozen=True, eq=False)
class Axes:
    """The channel groups of a net: `params` and `fixed` (frozen parameters, buffers) give every dimension's groups.

    An axis is a sum of segments, a segment a product of numbers of groups, outermost first. `sites`: axes of what the
    norm layers take, by name of layer.
    """

    layout: Layout
    groups: tuple[Group, ...]
    params: Mapping[str, tuple[Axis, ...]]
    fixed: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict[str, tuple[Axis, ...]])
    sites: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict[str, tuple[Axis, ...]])

    @cached_property
    def whole(self) -> Mapping[str, str]:
        """Layers with a dimension that cannot be cut, and why: `{layer: reason}`."""
        found: dict[str, str] = {}
        silent: dict[str, str | None] = {}
        for name, axes in self.params.items():
            layer = name.rpartition(".")[0] or name
            for d, axis in enumerate(axes):
                reasons = [self.groups[g].whole for segment in axis for g in segment]
                if None in reasons:
                    silent[layer] = None
                elif why := [one for one in reasons if one not in PLAIN]:
                    found.setdefault(layer, str(why[0]))
                elif d < 2 and (why := [one for one in reasons if one not in _ENDS]):
                    silent.setdefault(layer, why[0])
        return found | {layer: why for layer, why in silent.items() if why is not None and layer not in found}

    @cached_property
    def cuttable(self) -> tuple[int, ...]:
        """Numbers of the groups that can be cut."""
        return tuple(i for i, group in enumerate(self.groups) if group.whole is None)

    def sizes(self, rate: float) -> tuple[int, ...]:
        """How many channels of every group are kept at `rate`, 0 < rate <= 1."""
        if not 0.0 < rate <= 1.0:
            raise UsageError(f"a rate of {rate}: use a number above 0 and at most 1.")
        return tuple(group.keep(rate) for group in self.groups)

    def blocks(self, axis: Axis, count: int, sizes: Sequence[int]) -> int | None:
        """How many of the `count` blocks an axis consists of are kept; None where it does not consist of them."""
        if len(axis) != 1:
            return None
        full = kept = 1
        for g in axis[0]:
            if full >= count:
                break
            full, kept = full * self.groups[g].size, kept * sizes[g]
        return kept if full == count else None

    def length(self, axis: Axis, sizes: Sequence[int]) -> int:
        return sum(prod(sizes[g] for g in segment) for segment in axis)

    def shape(self, name: str, sizes: Sequence[int]) -> tuple[int, ...]:
        """Shape of a parameter, or of a frozen one or buffer, where `sizes` channels are kept."""
        axes = self.params[name] if name in self.params else self.fixed[name]
        return tuple(self.length(axis, sizes) for axis in axes)

    def layout_of(self, sizes: Sequence[int], names: Sequence[str] | None = None) -> Layout:
        """Layout of the sub-model with `sizes` channels (and of the parameters `names` only)."""
        names = [name for name in self.layout.names if names is None or name in names]
        return Layout.of({name: self.shape(name, sizes) for name in names})

    def positions(self, axis: Axis, kept: Sequence[I64]) -> I64:
        """Places along an axis that are kept, ascending, where group g keeps the channels `kept[g]`, ascending."""
        out: list[I64] = []
        start = 0
        for segment in axis:
            at = np.zeros(1, np.int64)
            size = 1
            for g in segment:
                n = self.groups[g].size
                at = (at[:, None] * n + kept[g]).reshape(-1)
                size *= n
            out.append(at + start)
            start += size
        return np.concatenate(out) if len(out) != 1 else out[0]

    def index(self, kept: Sequence[I64], names: Sequence[str] | None = None) -> I64:
        """Places in the vector, int64 `[p]` ascending, of the sub-model that keeps the channels `kept[g]`."""
        out: list[I64] = []
        chosen = None if names is None else set(names)
        for name, where, shape in self.layout.items():
            if chosen is not None and name not in chosen:
                continue
            at = np.full(1, where.start, np.int64)
            stride = prod(shape)
            for axis, n in zip(self.params[name], shape, strict=True):
                stride //= max(n, 1)
                at = (at[:, None] + self.positions(axis, kept) * stride).reshape(-1)
            out.append(at)
        return np.concatenate(out) if out else np.empty(0, np.int64)

    def sizes_of(self, layout: Layout) -> tuple[int, ...]:
        """The channels kept in a sub-model of that layout, which may lack parameters."""
        sizes: dict[int, int] = {g: one.size for g, one in enumerate(self.groups) if one.whole is not None}
        shapes = dict(zip(layout.names, layout.shapes, strict=True))
        if unknown := [name for name in shapes if name not in self.params]:
            raise UsageError(
                f"a sub-model has a parameter {unknown[0]!r} that the net has not: use a view of this net."
            )
        wanted = [
            (axis, n, name) for name, shape in shapes.items() for axis, n in zip(self.params[name], shape, strict=True)
        ]
        while True:
            left = [one for one in wanted if any(g not in sizes for segment in one[0] for g in segment)]
            before = len(sizes)
            for axis, n, _ in left:
                _solve(axis, n, sizes)
            if len(sizes) == before:
                break
        full = tuple(sizes.get(g, one.size) for g, one in enumerate(self.groups))
        for axis, n, name in wanted:
            if self.length(axis, full) != n:
                raise UsageError(
                    f"parameter {name!r} of a sub-model has a dimension of {n} where its other layers say "
                    f"{self.length(axis, full)}: use a view of this net."
                )
        return full


def _solve(axis: Axis, n: int, sizes: dict[int, int]) -> None:
    """Learn the size of the one group of an axis that is not known, if there is one."""
    unknown = {g for segment in axis for g in segment if g not in sizes}
    if len(unknown) != 1:
        return
    (g,) = unknown
    if any(segment.count(g) > 1 for segment in axis):
        return
    times = sum(prod(sizes[f] for f in segment if f != g) for segment in axis if g in segment)
    rest = n - sum(prod(sizes[f] for f in segment) for segment in axis if g not in segment)
    if times and rest % times == 0 and rest > 0:
        sizes[g] = rest // times


def axes(net: Any, example: Any = None) -> Axes:
    """The channel groups of a `DenseNet` (`fieldfare.mlp`), a torch net or an `nn.Module`.

    `example`: what the module takes (an array or tensor, or a tuple of them) for a few examples, at least two; a torch
    net brings its own. Cost: one or a few forward passes on it. A layer that cannot be cut is in `Axes.whole`.
    Errors: `UsageError` for a net whose layers cannot be seen.
    """
    from fieldfare.work.dense import DenseNet
    from fieldfare.work.torch_resident import is_module

    if isinstance(net, DenseNet):
        return of_dense(net)
    if is_module(net):
        from fieldfare.work.submodel.modules import of_module

        if example is None:
            raise UsageError("axes(module) needs example=: what the module takes, for two examples or more.")
        return of_module(net, example if isinstance(example, tuple) else (example,))
    if hasattr(net, "axes"):
        return net.axes()
    raise UsageError(f"axes({type(net).__name__}): sub-models are cut from fieldfare.mlp(...) or an nn.Module.")


def of_dense(net: Any) -> Axes:
    """The groups of declared layers: what one linear layer gives the next one takes."""
    groups = Groups()
    h = groups.axis(net.program.inputs, INPUT)
    params: dict[str, list[Axis]] = {}
    names = iter(net.layout.names)
    for place, layer in enumerate(net.program.layers):
        last = place == len(net.program.layers) - 1
        out = groups.axis(layer.outputs, OUTPUT if last else None)
        params[next(names)] = [out, h]
        if layer.bias is not None:
            params[next(names)] = [out]
        h = out
    return settled(groups, net.layout, params, {}, {})


def settled(
    groups: Groups, layout: Layout, params: Mapping[str, Sequence[Axis]], fixed: Mapping[str, Sequence[Axis]],
    sites: Mapping[str, Sequence[Axis]],
) -> Axes:  # fmt: skip
    """The finished groups behind the axes of all parameters."""
    _only_places(groups, params)
    groups.settle()
    numbers: dict[int, int] = {}
    found: list[Group] = []

    def number(g: int, name: str) -> int:
        g = groups.root(g)
        if g not in numbers:
            numbers[g] = len(found)
            found.append(Group(name, groups.size(g), groups.unit(g), groups.why(g), groups.least(g)))
        return numbers[g]

    def named(all_: Mapping[str, Sequence[Axis]]) -> dict[str, tuple[Axis, ...]]:
        return {
            name: tuple(
                tuple(tuple(number(g, f"{name}[{d}]") for g in segment) for segment in groups.leaves(axis))
                for d, axis in enumerate(axes)
            )
            for name, axes in all_.items()
        }

    known, beside, seen = named(params), named(fixed), named(sites)
    return Axes(layout, tuple(found), known, beside, seen)


def _only_places(groups: Groups, params: Mapping[str, Sequence[Axis]]) -> None:
    """Keep whole what a slice left over in one parameter, and what no parameter has: no layer makes or takes it."""
    times: dict[int, int] = {}
    parts: set[int] = set()
    for axis in (axis for axes in params.values() for axis in axes):
        leaves = groups.leaves(axis)
        for g in {groups.root(g) for segment in leaves for g in segment}:
            times[g] = times.get(g, 0) + 1
            if len(leaves) > 1:
                parts.add(g)
    for g in groups.roots():
        if g not in times or (times[g] == 1 and g in parts):
            groups.fix(g, PLACES)
