"""Smaller nets trained inside a stack's nets, and weights of few bits: what a step does beside the plain one.

Here: gradients of nested prefixes, with distillation from the whole, added to a stack's; rounding. Not here: the order
of steps (`stacked`), who asks for it (`compress`). Invariant: client i's gradient depends on its own rows only.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fieldfare.work.layers import Inner, Program, Stack, activate

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


class Turn(Protocol):
    """One stacked step, see `stacked.Turn`."""

    @property
    def lo(self) -> int: ...

    @property
    def hi(self) -> int: ...

    @property
    def sizes(self) -> I64 | int: ...

    @property
    def taken(self) -> I64 | int: ...


def own_turn(inner: Inner, taken: I64 | int) -> F32:
    """`[n, 1, 1]`: 1 where a client's step is its own net's, in turns of it and the smaller ones."""
    return np.asarray(_turn(taken, len(inner.widths) + 1) == 0, np.float32).reshape(-1, 1, 1)


def _turn(taken: I64 | int, count: int) -> I64:
    return (np.atleast_1d(np.asarray(taken, np.int64)) - 1) % count


def add_inner(
    program: Program, stack: Stack, turn: Turn, x: F32, y: I64, own: F32, real: F32 | None, absent: F32 | None
) -> None:
    """Add the gradients of the smaller nets of this step to `stack.g`.

    x `[n, b, inputs]`, labels y `[n, b]`, `own` `[n, b, K]` the logits of the client's own net, `real` `[n, b]` 1 for
    rows that count, `absent` `[n, 1, K]` to add to logits.
    """
    inner = program.inner
    assert inner is not None
    assert stack.g is not None
    w, g = stack.w[turn.lo : turn.hi], stack.g[turn.lo : turn.hi]
    n, b = y.shape
    size = np.asarray(turn.sizes if real is not None else b, np.float32).reshape(-1, 1, 1)
    factor = np.broadcast_to(np.float32(inner.weight) / size, (n, b, 1))
    factor = factor if real is None else factor * real[:, :, None]
    teacher = _softmax(own / np.float32(inner.temperature)) if inner.distil else None
    count = len(inner.widths)
    drawn = _turn(turn.taken, count + (inner.each == "only")) - (inner.each == "only")
    drawn = np.broadcast_to(drawn, (n,))
    for number, widths in enumerate(inner.widths):
        if inner.each == "all":
            _add(program, inner, widths, w, g, x, y, teacher, factor / np.float32(count), absent)
            continue
        pick = np.flatnonzero(drawn == number)
        if len(pick) == n:
            _add(program, inner, widths, w, g, x, y, teacher, factor, absent)
        elif len(pick):
            part = np.zeros((len(pick), g.shape[1]), np.float32)
            parts = [None if a is None else a[pick] for a in (teacher, absent)]
            _add(program, inner, widths, w[pick], part, x[pick], y[pick], parts[0], factor[pick], parts[1])
            g[pick] += part


def _add(
    program: Program, inner: Inner, widths: tuple[int, ...], w: F32, g: F32, x: F32, y: I64, teacher: F32 | None,
    factor: F32, absent: F32 | None,
) -> None:  # fmt: skip
    """Add to `g` `[n, P]` the gradients of the net of the first `widths` channels of the hidden layers."""
    n = len(w)
    sizes = [program.inputs, *widths, program.outputs]
    weights = [
        w[:, one.weight].reshape(n, one.outputs, one.inputs)[:, : sizes[i + 1], : sizes[i]]
        for i, one in enumerate(program.layers)
    ]
    hs = [x]
    for i, (one, weight) in enumerate(zip(program.layers, weights, strict=True)):
        z = hs[-1] @ weight.transpose(0, 2, 1)
        if one.bias is not None:
            z += w[:, None, one.bias][:, :, : sizes[i + 1]]
        activate(one.activation, z)
        hs.append(z)
    logits = hs[-1] if absent is None else hs[-1] + absent
    d = _softmax(logits)
    np.put_along_axis(d, y[:, :, None], np.take_along_axis(d, y[:, :, None], 2) - np.float32(1), 2)
    if teacher is not None:
        t = np.float32(inner.temperature)
        d *= np.float32(1 - inner.distil)
        d += np.float32(inner.distil) * t * (_softmax(logits / t) - teacher)
    d *= factor
    for i in range(len(program.layers) - 1, -1, -1):
        one, o, k = program.layers[i], sizes[i + 1], sizes[i]
        g[:, one.weight].reshape(n, one.outputs, one.inputs)[:, :o, :k] += d.transpose(0, 2, 1) @ hs[i]
        if one.bias is not None:
            g[:, one.bias][:, :o] += d.sum(axis=1)
        if i:
            d = d @ weights[i]
            d = _descended(program.layers[i - 1].activation, hs[i], d)


def _descended(kind: str, h: F32, d: F32) -> F32:
    match kind:
        case "relu":
            return d * (h > 0)
        case "tanh":
            return d * (np.float32(1) - h * h)
        case "sigmoid":
            return d * (h * (np.float32(1) - h))
        case _:
            return d


def _softmax(z: F32) -> F32:
    out = np.exp(z - z.max(axis=-1, keepdims=True))
    out /= out.sum(axis=-1, keepdims=True)
    return out


def rounded(rows: F32, parts: list[slice] | tuple[slice, ...], bits: int) -> F32:
    """Rows `[n, P]` with every part rounded to 2**bits - 1 even steps about zero, the largest value kept.

    >>> rounded(np.array([[-1.0, 0.26, 0.9]], np.float32), (slice(0, 3),), 2).tolist()
    [[-1.0, 0.0, 1.0]]
    """
    out = np.array(rows, np.float32)
    most = np.float32(2 ** (bits - 1) - 1)
    for part in parts:
        values: Any = out[:, part]
        step = np.abs(values).max(axis=1, keepdims=True, initial=0) / most
        step[step == 0] = 1
        np.rint(values / step, out=values)
        values *= step
    return out


def round_stack(program: Program, w: F32) -> F32:
    """Round the weights `[n, P]` in place, as `program.bits` says; gives what they were."""
    master = w.copy()
    assert program.bits is not None
    w[...] = rounded(w, [part for one in program.layers for part in (one.weight, one.bias) if part], program.bits)
    return master
