"""The last pass over a plan in the making: fewer, fused ops, and every parameter packed.

Here: ReLU inside the op before it or behind a max-pool, ops nobody reads, renumbering. Not here: what ops mean.
Invariant: the function and the gradients are those of what was built.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fieldfare.work.native.plan import I64, PAD, Input, NativePlan, Op, Param

if TYPE_CHECKING:
    from fieldfare.work.native.build import Builder

_RELU_AT = {"linear": 1, "conv2d": 9, "max_pool": 6}
"""Which of an op's ints says that ReLU is part of it."""


def _live(ops: list[Op], output: int) -> list[Op]:
    wanted, out = {output}, list[Op]()
    for op in reversed(ops):
        if op.out in wanted:
            wanted.update(op.ins)
            out.append(op)
    return out[::-1]


def fused(ops: list[Op], output: int) -> list[Op]:
    """`ops` with ReLU where it costs least: behind a max-pool instead of before it, and inside the op it follows.

    Max and ReLU commute, and where the maximum is not positive both orders give no gradient.
    """
    ops = _live(ops, output)
    while (pair := _pair(ops, output, "max_pool", ("relu",))) is not None:
        relu, pool = pair
        ops = [_with_relu(pool, relu.ins, pool.out) if op is pool else op for op in ops if op is not relu]
    while (pair := _pair(ops, output, "relu", tuple(_RELU_AT))) is not None:
        before, relu = pair
        ops = [_with_relu(before, before.ins, relu.out) if op is before else op for op in ops if op is not relu]
    return ops


def _pair(ops: list[Op], output: int, kind: str, before: tuple[str, ...]) -> tuple[Op, Op] | None:
    """An op of `kind` and the only one it follows, one of `before`, that nobody else reads."""
    readers = Counter(i for op in ops for i in op.ins) + Counter([output])
    writer = {op.out: op for op in ops}
    for op in ops:
        other = writer.get(op.ins[0])
        if op.kind == kind and other is not None and other.kind in before and readers[op.ins[0]] == 1:
            return other, op
    return None


def _with_relu(op: Op, ins: tuple[int, ...], out: int) -> Op:
    at = _RELU_AT[op.kind]
    return replace(op, ins=ins, out=out, ints=(*op.ints[:at], 1, *op.ints[at + 1 :]))


def skeleton(made: Builder, output: int) -> tuple[object, ...]:
    """What the plan computes without its dropouts, comparable."""
    number: dict[int, int] = {column.value: -1 - at for at, column in enumerate(made.columns)}
    found: list[object] = []
    for op in _live(made.ops, output):
        if op.kind == "dropout":
            number[op.out] = number[op.ins[0]]
            continue
        number[op.out] = len(found)
        weights = tuple(made.params[p].key for p in op.params)
        v = made.values[op.out]
        ints, floats = (op.ints[:2], op.floats[:1]) if op.kind == "attention" else (op.ints, op.floats)  # its dropout
        found.append((op.kind, tuple(number[i] for i in op.ins), (v.h, v.w, v.c), weights, ints, floats))
    inputs = tuple((c.kind, c.channels_first, made.values[c.value]) for c in made.columns)
    return inputs, tuple(found), number[output]


def _filled(places: I64) -> I64:
    """Padding behind, up to whole lanes."""
    return np.concatenate([places, np.full(-len(places) % PAD, -1, np.int64)])


def finished(made: Builder, output: int, loss: str) -> NativePlan:
    """The plan of what was built, its value `output` being the model's output."""
    ops = fused(made.ops, output)
    kept = [column.value for column in made.columns] + [op.out for op in ops]
    kept = sorted(set(kept))
    number = {old: new for new, old in enumerate(kept)}
    ops = [replace(op, ins=tuple(number[i] for i in op.ins), out=number[op.out]) for op in ops]
    read = {p for op in ops for p in op.params}
    chosen = [at for at, one in enumerate(made.params) if at in read or one.trained]
    renumbered = {old: new for new, old in enumerate(chosen)}
    ops = [replace(op, params=tuple(renumbered[p] for p in op.params)) for op in ops]
    packed = [(_filled(made.params[p].make().reshape(-1)), made.params[p].trained) for p in chosen]
    have = np.zeros(made.size, np.bool_)
    for places, trained in packed:
        if trained:
            have[places[places >= 0]] = True
    left = np.flatnonzero(~have)
    if len(left):
        packed.append((_filled(left.astype(np.int64)), True))
    params, at = list[Param](), 0
    for places, trained in packed:
        params.append(Param(at, len(places), trained))
        at += len(places)
    index = np.concatenate([places for places, _ in packed]) if packed else np.empty(0, np.int64)
    constants = np.concatenate([np.empty(0, np.float32), *made.constants])
    used, place = np.unique(index[index <= -2], return_inverse=True)
    index[index <= -2] = -2 - (len(used) - 1 - place)
    inputs = tuple(Input(number[c.value], c.kind, c.channels_first) for c in made.columns)
    values = tuple(made.values[i] for i in kept)
    return NativePlan(
        values, tuple(params), tuple(ops), inputs, loss, number[output], index,
        constants[-2 - used[::-1]].astype(np.float32), made.size,
    )  # fmt: skip
