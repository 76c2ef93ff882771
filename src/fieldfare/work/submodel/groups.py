"""Channel groups: which positions of which tensor dimensions must be kept or cut together.

Here: the algebra of axes. An axis (a dimension of a tensor) is a sum of segments, a segment is a product of groups,
outermost first: a flattened image is (channels x pixels), the gates of an LSTM are (hidden + hidden + hidden + hidden).
Groups are tied when an operation needs them alike, and taken apart where an operation cuts or folds a dimension.
Not here: which operation does what (`trace`). Invariant: the sizes of an axis always multiply and add up to the size
of its dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from math import gcd, prod
from typing import TypeAlias

Segment: TypeAlias = tuple[int, ...]
Axis: TypeAlias = tuple[Segment, ...]

_MOST_REPEATED = 64


class Groups:
    """All groups of a net under construction: union-find, with groups that fall apart into products and sums."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._size: list[int] = []
        self._why: list[str | None] = []
        self._unit: list[int] = []
        self._solid: list[bool] = []
        self._parts: list[tuple[str, tuple[int, ...]] | None] = []

    def new(self, size: int, why: str | None = None) -> int:
        """A group of `size` channels; `why` it must stay whole, if it must."""
        self._parent.append(len(self._parent))
        self._size.append(size)
        self._why.append(why if size > 1 else (why or "one channel"))
        self._unit.append(1)
        self._solid.append(False)
        self._parts.append(None)
        return len(self._parent) - 1

    def axis(self, size: int, why: str | None = None) -> Axis:
        """An axis of one new group."""
        return ((self.new(size, why),),)

    def root(self, group: int) -> int:
        while self._parent[group] != group:
            self._parent[group] = self._parent[self._parent[group]]
            group = self._parent[group]
        return group

    def size(self, group: int) -> int:
        return self._size[self.root(group)]

    def unit(self, group: int) -> int:
        """Channels that a norm takes together: whole multiples of it are kept, or fewer than one."""
        return self._unit[self.root(group)]

    def least(self, group: int) -> int:
        """The fewest that may be kept: a unit, where a norm takes others together beside them."""
        group = self.root(group)
        return self._unit[group] if self._solid[group] else 1

    def why(self, group: int) -> str | None:
        """Why a group must stay whole; None where it may be cut."""
        return self._why[self.root(group)]

    def length(self, axis: Axis) -> int:
        """Size of the dimension."""
        return sum(prod(self.size(g) for g in segment) for segment in axis)

    def fix(self, group: int, why: str) -> None:
        """The group, and all it consists of, must stay whole."""
        group = self.root(group)
        if self._why[group] is None:
            self._why[group] = why
        if (parts := self._parts[group]) is not None:
            for part in parts[1]:
                self.fix(part, why)

    def fix_axis(self, axis: Axis, why: str) -> None:
        for segment in axis:
            for group in segment:
                self.fix(group, why)

    def leaves(self, axis: Axis) -> Axis:
        """The axis in groups that are not taken apart; single channels are left out of products."""
        out: list[Segment] = []
        for segment in axis:
            out += self._product([self._segments(g) for g in segment])
        return tuple(out)

    def _segments(self, group: int) -> list[Segment]:
        group = self.root(group)
        parts = self._parts[group]
        if parts is None:
            return [() if self._size[group] == 1 else (group,)]
        if parts[0] == "product":
            return self._product([self._segments(part) for part in parts[1]])
        return [segment for part in parts[1] for segment in self._segments(part)]

    def _product(self, factors: Sequence[Sequence[Segment]]) -> list[Segment]:
        """Products of sums, outermost first: what stands outside a sum is repeated, and so must stay whole."""
        out: list[Segment] = [()]
        for segments in factors:
            if len(segments) == 1:
                out = [before + segments[0] for before in out]
                continue
            spread: list[Segment] = []
            for before in out:
                times = prod(self.size(g) for g in before)
                for g in before:
                    self.fix(g, "repeated around parts of different size")
                if times > _MOST_REPEATED:
                    for segment in segments:
                        for g in segment:
                            self.fix(g, "repeated too often")
                spread += list(segments) * times
            out = spread
        return out

    def times(self, outer: Axis, inner: Axis) -> Axis:
        """The dimension that two merge into."""
        return tuple(self._product([self.leaves(outer), self.leaves(inner)]))

    def split(self, group: int, outer: int) -> tuple[int, int]:
        """Take a group apart into a product of `outer` blocks; the blocks' places, and those inside a block."""
        group = self.root(group)
        inner = self._size[group] // outer
        why, unit = self._why[group], self._unit[group]
        a, b = self.new(outer, why), self.new(inner, why)
        if unit > 1 and unit % inner == 0:
            self._unit[a], self._solid[a] = unit // inner, self._solid[group]
        elif unit > 1 and inner % unit:
            self.fix(a, "blocks across the groups of a norm")
            self.fix(b, "blocks across the groups of a norm")
        self._parts[group] = ("product", (a, b))
        return a, b

    def cut(self, group: int, sizes: Sequence[int]) -> tuple[int, ...]:
        """Take a group apart into a sum of groups of `sizes`."""
        group = self.root(group)
        parts = tuple(self.new(size, self._why[group]) for size in sizes)
        if self._unit[group] > 1:
            for part in parts:
                self.fix(part, "a part of what a norm takes together")
        self._parts[group] = ("sum", parts)
        return parts

    def roots(self) -> list[int]:
        """All groups that are not taken apart."""
        return [g for g, parts in enumerate(self._parts) if self._parent[g] == g and parts is None]

    def products(self) -> list[tuple[int, int]]:
        """(blocks, inside of a block) of every group that was taken apart so."""
        return [parts[1] for parts in self._parts if parts is not None and parts[0] == "product"]  # type: ignore[misc]

    def tie(self, a: Axis, b: Axis, why: str) -> None:
        """Two axes of one size are one: what is kept of one is kept of the other."""
        left, right = [*reversed(a)], [*reversed(b)]
        while left and right:
            one, two = self._next(left), self._next(right)
            big, small = self._length(one), self._length(two)
            if big != small:
                wide, other, size = (one, left, small) if big > small else (two, right, big)
                inner = self._length(wide[1:])
                if size % inner:
                    self.fix_axis((one, two, *left, *right), why)
                    return
                first, rest = self.cut(wide[0], (size // inner, self.size(wide[0]) - size // inner))
                other.append((rest, *wide[1:]))
                one, two = (first, *wide[1:]), (two if big > small else one)
            self._tie_segments(one, two, why)

    def _next(self, stack: list[Segment]) -> Segment:
        """The next segment of a stack, in groups that are not taken apart."""
        first, *more = self.leaves((stack.pop(),))
        stack += reversed(more)
        return first

    def _length(self, segment: Segment) -> int:
        return prod(self.size(g) for g in segment)

    def _tie_segments(self, a: Segment, b: Segment, why: str) -> None:
        left, right = [*reversed(a)], [*reversed(b)]
        while left and right:
            one, two = self._next_group(left), self._next_group(right)
            if one is None or two is None:
                self.fix_axis((a, b), why)
                return
            if one == two:
                continue
            m, n = self.size(one), self.size(two)
            if m != n:
                wide, narrow, other = (one, n, left) if m > n else (two, m, right)
                if max(m, n) % narrow:
                    self.fix_axis((a, b), why)
                    return
                outer, inner = self.split(wide, narrow)
                other.append(inner)
                one, two = outer, (two if m > n else one)
            self._join(one, two)

    def _next_group(self, stack: list[int]) -> int | None:
        """The next group of a stack that is not taken apart; None for one that is a sum."""
        parts = self.leaves(((stack.pop(),),))
        if len(parts) > 1 or not parts[0]:
            return None
        stack += reversed(parts[0][1:])
        return self.root(parts[0][0])

    def _join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a == b:
            return
        self._parent[b] = a
        self._why[a] = self._why[a] if self._why[a] is not None else self._why[b]
        m, n = self._unit[a], self._unit[b]
        self._unit[a] = m * n // gcd(m, n)
        self._solid[a] |= self._solid[b]
        if self._size[a] % self._unit[a]:
            self.fix(a, "blocks across the groups of a norm")

    def together(self, axis: Axis, unit: int) -> None:
        """A norm takes `unit` neighbouring channels of the axis together."""
        leaves = self.leaves(axis)
        if unit == self.length(axis):
            return  # all of them, however many there are
        if unit > 1 and any(self._length(segment) % unit for segment in leaves):
            self.fix_axis(leaves, "parts that begin inside a group of a norm")
            return
        for segment in leaves:
            inner = self._length(segment[1:])
            if not segment or unit == 1:
                continue
            if unit % inner and inner % unit:
                self.fix_axis((segment,), "blocks across the groups of a norm")
            elif unit > inner:
                group, new = self.root(segment[0]), unit // inner
                self._unit[group] = self._unit[group] * new // gcd(self._unit[group], new)
                self._solid[group] |= len(leaves) > 1
                if self._size[group] % self._unit[group]:
                    self.fix(group, "blocks across the groups of a norm")

    def reshape(self, axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
        """The axes of a tensor seen in another `shape`, in row-major order."""
        sizes = [self.length(axis) for axis in axes]
        out: list[Axis] = []
        i = j = 0
        while i < len(sizes) or j < len(shape):
            a, b, first_i, first_j = 1, 1, i, j
            while (a != b or (i == first_i and j == first_j)) and (i < len(sizes) or j < len(shape)):
                if (a <= b and i < len(sizes)) or j >= len(shape):
                    a, i = a * sizes[i], i + 1
                else:
                    b, j = b * shape[j], j + 1
            out += self._refold(axes[first_i:i], shape[first_j:j])
        return out

    def _refold(self, axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
        if len(shape) == len(axes) == 1:
            return [axes[0]]
        merged: Axis = ((),)
        for axis in axes:
            merged = self.times(merged, axis)
        out: list[Axis] = []
        for place, size in enumerate(shape):
            if place == len(shape) - 1:
                out.append(merged)
                break
            if size == 1:
                out.append(self.axis(1))
                continue
            block = self.length(merged) // size
            if block == 1:
                out.append(merged)
                merged = ((),)
                continue
            outer, merged = self._outer(merged, size, block)
            out.append(outer)
        return out

    def _outer(self, axis: Axis, size: int, block: int) -> tuple[Axis, Axis]:
        """An axis of `size` blocks taken apart into the blocks' places and the inside of a block."""
        axis = self.leaves(axis)
        if len(axis) > 1:
            if all(self._length(segment) == block for segment in axis):
                for segment in axis[1:]:
                    self.tie((axis[0],), (segment,), "parts of different structure behind one another")
                return self.axis(size, "several parts behind one another"), self.leaves((axis[0],))
            reasons = {self.why(g) for segment in axis for g in segment}
            why = "a view across parts of different size"
            if None not in reasons:
                why = str(min(reasons, key=str))
            self.fix_axis(axis, why)
            return self.axis(size, why), self.axis(block, why)
        rest, outer = list(axis[0]), list[int]()
        left = size
        while left > 1:
            group = rest.pop(0)
            n = self.size(group)
            if left % n == 0:
                outer.append(group)
                left //= n
            elif n % left == 0:
                a, b = self.split(group, left)
                outer.append(a)
                rest.insert(0, b)
                left = 1
            else:
                self.fix_axis(axis, "a view across channels")
                return self.axis(size, "a view across channels"), self.axis(block, "a view across channels")
        return (tuple(outer),), (tuple(rest),)

    def part(self, axis: Axis, start: int, stop: int) -> Axis:
        """Positions `start..stop` of an axis, which is taken apart there."""
        out: list[Segment] = []
        at, stack = 0, [*reversed(axis)]
        while stack:
            segment = self._next(stack)
            size = self._length(segment)
            lo, hi = max(start - at, 0), min(stop - at, size)
            at += size
            if lo >= hi:
                continue
            if (lo, hi) == (0, size):
                out.append(segment)
                continue
            inner = self._length(segment[1:])
            if lo % inner or hi % inner:
                self.fix_axis((segment,), "a slice through blocks")
                out.append((self.new(hi - lo, "a slice through blocks"),))
                continue
            bounds = [0, lo // inner, hi // inner, size // inner]
            sizes = [b - a for a, b in itertools.pairwise(bounds)]
            parts = self.cut(segment[0], [n for n in sizes if n])
            out.append((parts[1 if sizes[0] else 0], *segment[1:]))
        return tuple(out)

    def settle(self) -> None:
        """Of a product only the outermost groups that may be cut are: blocks stay whole inside."""
        changed = True
        while changed:
            changed = False
            for outer, inner in self.products():
                cut = any(self.why(g) is None for segment in self.leaves(((outer,),)) for g in segment)
                for segment in self.leaves(((inner,),)) if cut else ():
                    for g in segment:
                        if self.why(g) is None:
                            self.fix(g, "cut by whole blocks")
                            changed = True


def chained(axes: Iterable[Axis]) -> Axis:
    """Axes behind one another, as `cat` makes them."""
    return tuple(segment for axis in axes for segment in axis)
