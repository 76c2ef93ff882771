"""Smaller nets trained inside a stack's nets, and weights of few bits: what a step does beside the plain one.

Here: gradients of nested prefixes, with distillation from the whole, added to a stack's; rounding. Not here: the order
of steps (`stacked`), who asks for it (`compress`). Invariant: client i's gradient depends on its own rows only.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fieldfare.work.layers import Program, Stack, activate

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


class Inside:
    """The smaller nets of one step of a stack's clients: forward at once, gradients when `learn` is called.

    x `[n, b, inputs]`, labels y `[n, b]`, `own` `[n, b, K]` the logits of the clients' own nets, `real` `[n, b]` 1 for
    rows that count, `absent` `[n, 1, K]` to add to logits.
    """

    def __init__(
        self, program: Program, stack: Stack, turn: Turn, x: F32, y: I64, own: F32, real: F32 | None,
        absent: F32 | None,
    ) -> None:  # fmt: skip
        assert program.inner is not None
        assert stack.g is not None
        self.program, self.inner = program, program.inner
        self.w, self.g = stack.w[turn.lo : turn.hi], stack.g[turn.lo : turn.hi]
        n, b = y.shape
        size = np.asarray(turn.sizes if real is not None else b, np.float32).reshape(-1, 1, 1)
        share = np.broadcast_to(np.float32(1) / size, (n, b, 1))
        self.share = share if real is None else share * real[:, :, None]
        self.own, inner = own, self.inner
        count, only = len(inner.widths), inner.each == "only"
        taken = np.broadcast_to(np.asarray(turn.taken, np.int64), (n,))
        self.drawn = np.full(n, -2) if inner.each == "all" else (taken - 1) % (count + only) - only
        self.nets: list[tuple[I64 | slice, list[F32], list[F32], F32, I64]] = []
        for number, widths in enumerate(inner.widths):
            pick = np.flatnonzero((self.drawn == number) | (self.drawn == -2))
            if len(pick):
                at: I64 | slice = slice(None) if len(pick) == n else pick
                weights, hs = _forward(program, widths, self.w[at], x[at])
                logits = hs[-1] if absent is None else hs[-1] + absent[at]
                self.nets.append((at, weights, hs, logits, y[at]))

    def teach(self, d: F32) -> None:
        """Change the gradient `d` `[n, b, K]` of the clients' own logits: what they learn back, or not at all."""
        inner = self.inner
        if inner.each == "only":
            d *= (self.drawn == -1).astype(np.float32)[:, None, None]
        if not inner.back or inner.each == "only":  # then nobody is there to learn from
            return
        t, mean, met = np.float32(inner.temperature), np.zeros_like(self.own), np.zeros(len(d), np.float32)
        for at, _, _, logits, _ in self.nets:
            mean[at] += softmax(logits / t)
            met[at] += 1
        mean /= met[:, None, None]
        d *= 1 - np.float32(inner.back)
        d += (softmax(self.own / t) - mean) * (np.float32(inner.back) * t) * self.share

    def learn(self) -> None:
        """Add the smaller nets' gradients to the stack's."""
        inner, t = self.inner, np.float32(self.inner.temperature)
        factor = np.float32(inner.weight / (len(inner.widths) if inner.each == "all" else 1))
        teacher = softmax(self.own / t) if inner.distil else None
        for at, weights, hs, logits, y in self.nets:
            d = softmax(logits)
            np.put_along_axis(d, y[:, :, None], np.take_along_axis(d, y[:, :, None], 2) - np.float32(1), 2)
            if teacher is not None:
                d *= np.float32(1 - inner.distil)
                d += np.float32(inner.distil) * t * (softmax(logits / t) - teacher[at])
            d *= self.share[at] * factor
            if isinstance(at, slice):
                _backward(self.program, weights, hs, d, self.g)
            else:
                part = np.zeros((len(at), self.g.shape[1]), np.float32)
                _backward(self.program, weights, hs, d, part)
                self.g[at] += part


def _forward(program: Program, widths: tuple[int, ...], w: F32, x: F32) -> tuple[list[F32], list[F32]]:
    """Weights of the first `widths` channels of the hidden layers, and what every layer gives from x."""
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
    return weights, hs


def _backward(program: Program, weights: list[F32], hs: list[F32], d: F32, g: F32) -> None:
    """Add to `g` `[n, P]` the gradients that `d`, of the logits, gives."""
    n = len(g)
    for i in range(len(program.layers) - 1, -1, -1):
        one, (_, o, k) = program.layers[i], weights[i].shape
        g[:, one.weight].reshape(n, one.outputs, one.inputs)[:, :o, :k] += d.transpose(0, 2, 1) @ hs[i]
        if one.bias is not None:
            g[:, one.bias][:, :o] += d.sum(axis=1)
        if i:
            d = _descended(program.layers[i - 1].activation, hs[i], d @ weights[i])


def _descended(kind: str, h: F32, d: F32) -> F32:
    match kind:
        case "relu":
            return d * (h > 0)
        case "tanh":
            return np.asarray(d * (np.float32(1) - h * h), np.float32)
        case "sigmoid":
            return np.asarray(d * (h * (np.float32(1) - h)), np.float32)
        case _:
            return d


def softmax(z: F32) -> F32:
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
