"""What the planner makes of parts of channels: joined, split, in another order, one half gating the other; bounds.

Here: the reading of torch's functions. Not here: the ops (`build`), the names (`names`). Invariant: an axis that is not
that of the channels is not cut.
"""

from __future__ import annotations

from math import inf
from typing import Any

from fieldfare.work.native.build import Tensor
from fieldfare.work.native.functions import Reading


def clamp(r: Reading, x: Any, min: Any = None, max: Any = None, in_place: bool = False) -> Tensor:
    """Between two numbers, or on one side of one."""
    low, high = (-inf if min is None else min), (inf if max is None else max)
    if not isinstance(low, int | float) or not isinstance(high, int | float) or not low <= high:
        r.refuse("has a native form between numbers, the lower one first, alone")
    return r.pointwise("clamp", x, in_place, (low, high))


def concat(r: Reading, tensors: Any, dim: int = 0, axis: int | None = None) -> Tensor:
    """Channels one after the other."""
    parts = [r.tensor(one) for one in tensors]
    at = (dim if axis is None else axis) % len(parts[0].axes)
    return parts[0] if len(parts) == 1 else r.built.concat(parts, at, r.what)


def part(r: Reading, x: Tensor, dim: int, which: slice) -> Tensor:
    """Some of the channels."""
    x = r.built.along(x, dim)
    order = r.built.order_of_channels(x, dim)
    if order is None or not len(order[which]):
        r.refuse("of a part of an axis has a native form for the axis of channels alone")
    return r.built.channels(x, dim, order[which])


def split(r: Reading, x: Any, split_size_or_sections: Any = None, dim: int = 0, split_size: Any = None) -> Any:
    """Some channels after the other."""
    x, size = r.tensor(x), split_size if split_size_or_sections is None else split_size_or_sections
    at = dim % len(x.axes)
    whole = x.shape[at]
    sizes = [*size] if isinstance(size, tuple | list) else [size] * -(-whole // size)
    ends = [min(whole, sum(sizes[: i + 1])) for i in range(len(sizes))]
    return tuple(part(r, x, at, slice(end - n, end)) for n, end in _sized(ends))


def _sized(ends: list[int]) -> list[tuple[int, int]]:
    return [(end - before, end) for before, end in zip([0, *ends], ends, strict=False)]


def chunk(r: Reading, x: Any, chunks: int, dim: int = 0) -> Any:
    """So many parts, or fewer."""
    x = r.tensor(x)
    return split(r, x, -(-x.shape[dim % len(x.axes)] // chunks), dim)


def narrow(r: Reading, x: Any, dim: int, start: int, length: int) -> Tensor:
    """`length` channels from `start`."""
    x = r.tensor(x)
    at = dim % len(x.axes)
    first = start % x.shape[at] if start < 0 else start
    return part(r, x, at, slice(first, first + length))


def glu(r: Reading, x: Any, dim: int = -1) -> Tensor:
    """The first half times the sigmoid of the second."""
    a, b = chunk(r, x, 2, dim)
    return r.built.both("mul", a, r.pointwise("sigmoid", b), r.what)


def shuffle(r: Reading, x: Any, groups: int) -> Tensor:
    """Groups of channels interleaved."""
    x = r.tensor(x)
    b, c, *rest = x.shape
    return r.view(r.transpose(r.view(x, b, groups, c // groups, *rest), 1, 2), b, c, *rest)
