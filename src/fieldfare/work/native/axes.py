"""How a tensor's axes lie on a value of the core: permuting, flattening and splitting without moving a number.

Here: the algebra. Not here: which op wants which order (`build`, `lower`). An axis is a row of atoms (letter, size,
stride), outermost first: letters "b" (examples), "h", "w", "c" (of a value) or "x" (a column's numbers before an op
has said how it reads them); the coordinate along an atom adds stride times itself to its letter's. Invariant: the axes
of a tensor name every coordinate of its value exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.work.native.plan import Value

Atom: TypeAlias = tuple[str, int, int]
Axis: TypeAlias = tuple[Atom, ...]
Axes: TypeAlias = tuple[Axis, ...]


def canonical(atoms: Sequence[Atom]) -> Axis:
    """The same coordinates without atoms of size 1, neighbours that continue each other merged.

    >>> canonical((("c", 2, 4), ("c", 4, 1), ("h", 1, 1)))
    (('c', 8, 1),)
    """
    out: list[Atom] = []
    for letter, size, stride in atoms:
        if size == 1:
            continue
        if out and out[-1][0] == letter and out[-1][2] == size * stride:
            out[-1] = letter, out[-1][1] * size, stride
        else:
            out.append((letter, size, stride))
    return tuple(out)


def full(letter: str, size: int) -> Axis:
    """The axis that is all of a letter."""
    return ((letter, size, 1),) if size > 1 else ()


def shape(axes: Axes) -> tuple[int, ...]:
    return tuple(prod(size for _, size, _ in axis) for axis in axes)


def letters(axes: Sequence[Axis]) -> set[str]:
    return {letter for axis in axes for letter, _, _ in axis}


def regrouped(axes: Axes, sizes: Sequence[int]) -> Axes | None:
    """The axes of a `view` to `sizes`, or None where one would cut across atoms.

    >>> regrouped((full("b", 2), full("c", 12)), (2, 3, 4))
    ((('b', 2, 1),), (('c', 3, 4),), (('c', 4, 1),))
    """
    left = [atom for axis in axes for atom in axis][::-1]
    out: list[Axis] = []
    for wanted in sizes:
        axis: list[Atom] = []
        have = 1
        while have < wanted:
            if not left:
                return None
            letter, size, stride = left.pop()
            need, odd = divmod(wanted, have)
            if odd:
                return None
            if need % size == 0:
                axis.append((letter, size, stride))
                have *= size
            elif size % need == 0:
                axis.append((letter, need, stride * (size // need)))
                left.append((letter, size // need, stride))
                have = wanted
            else:
                return None
        out.append(canonical(axis))
    return None if left else tuple(out)


def locations(axis: Axis, value: Value) -> NDArray[np.int64]:
    """Which float of an example each index along `axis` is."""
    steps = {"h": value.w * value.ld, "w": value.ld, "c": 1}
    at = np.zeros(1, np.int64)
    for letter, size, stride in axis:
        at = (at[:, None] + np.arange(size) * (stride * steps[letter])).reshape(-1)
    return at


def named(axis: Axis, strides: Sequence[tuple[str, int, int]]) -> Axis | None:
    """Atoms of "x" as those of letters; `strides`: (letter, size, stride in the column), outermost first."""
    out: list[Atom] = []
    for letter, size, stride in axis:
        if letter != "x":
            out.append((letter, size, stride))
            continue
        found = 1
        for known, most, step in strides:
            low, high = max(stride, step), min(stride * size, step * most)
            if high <= low:
                continue
            if high % low or low % step:
                return None
            out.append((known, high // low, low // step))
            found *= high // low
        if found != size:
            return None
    return canonical(out)
