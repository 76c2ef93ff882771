"""Dense networks trained several clients at a time with batched matrix products: the loop behind `dense.DenseNet`.

Here: the order of steps over a stack of clients, the optimisers, and evaluation. Not here: the layers (`layers`).
Invariant: the shapes of a client's products depend on its own batches alone, so row i does not depend on the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.block import Block
from fieldfare.work.inner import Inside, round_stack
from fieldfare.work.layers import Loss, Program, Stack, activate, backward, cross_entropy, forward, squared_error
from fieldfare.work.net import Drift, Fit, Plan, Training

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

EVALUATED = 32
"""Rows of one product in evaluation, all of one client."""
BLOCK_BYTES = 1 << 20

PAD_BELOW = 8
"""Stacks of at least so many clients pad their last batches, so that few shapes occur; see `padded`."""


def padded(batch: int, full: int, pad: bool) -> int:
    """Rows computed for a batch: itself, or for small models the next power of two from 16, at most the full batch.

    >>> [padded(b, 20, True) for b in (1, 16, 17, 20)], padded(3, 20, False)
    ([16, 16, 20, 20], 3)
    """
    return min(full, max(16, 1 << (batch - 1).bit_length())) if pad else batch


class Optimiser:
    """SGD with momentum or Adam on a stack's gradient, after clip, weight decay and drift, in the seam's order."""

    def __init__(
        self, stack: Stack, training: Training, lr: float, drift: Drift, start: F32, moments: F32 | None = None
    ) -> None:
        self.stack, self.training, self.lr, self.drift, self.start = stack, training, lr, drift, start
        self._moments = moments
        self._before = np.zeros(len(stack.w), np.int64)
        self._ref = start if drift.ref is None else drift.ref
        self._mask = None if drift.mask is None else drift.mask.astype(np.float32)
        shape = stack.w.shape
        self._t = np.empty(shape, np.float32)
        self._a = np.empty(shape, np.float32) if drift.a is not None else None
        self._r = np.empty(shape, np.float32) if drift.mu and len(self._ref) > 1 else None
        self._v = np.zeros(shape, np.float32) if training.moments else None
        self._s = np.zeros(shape, np.float32) if training.moments == 2 else None

    def begin(self, ids: I64, row: I64) -> None:
        """Load the drift and moments of clients `ids`, in stack order; moments are zero unless they were given."""
        c, size = len(ids), self.stack.w.shape[1]
        if self._a is not None and self.drift.a is not None:
            self._a[:c] = self.drift.a[ids]
        if self._r is not None:
            self._r[:c] = self._ref[row[ids]]
        for at, moment in enumerate((self._v, self._s)):
            if moment is not None:
                given = self._moments
                moment[:c] = 0.0 if given is None else given[ids, at * size : (at + 1) * size]
        if self._s is not None and self._moments is not None:
            self._before[:c] = self._moments[ids, -1]

    def end(self, ids: I64, steps: I64, out: F32) -> None:
        """Write the moments of clients `ids`, who took `steps`, into `out` `[n, S]`."""
        c, size = len(ids), self.stack.w.shape[1]
        for at, moment in enumerate((self._v, self._s)):
            if moment is not None:
                out[ids, at * size : (at + 1) * size] = moment[:c]
        if self._s is not None:
            out[ids, -1] = self._before[:c] + steps

    def step(self, lo: int, hi: int, taken: I64 | int) -> None:
        """One step of clients `lo..hi`, whose step this is number `taken` (`[n]` or one for all), from 1."""
        training, drift = self.training, self.drift
        g_all = self.stack.g
        assert g_all is not None
        w, g, t = self.stack.w[lo:hi], g_all[lo:hi], self._t[lo:hi]
        if self._mask is not None:
            np.multiply(g, self._mask, out=g)
        if training.clip_norm is not None:
            np.multiply(g, g, out=t)
            norm = np.sqrt(np.add.reduce(t, axis=1))
            g *= np.minimum(np.float32(training.clip_norm) / (norm + np.float32(1e-6)), np.float32(1))[:, None]
        if training.weight_decay:
            np.multiply(w, np.float32(training.weight_decay), out=t)
            g += t
        if self._a is not None:
            g += self._a[lo:hi]
        if drift.mu:
            np.subtract(w, self._ref[0] if self._r is None else self._r[lo:hi], out=t)
            np.multiply(t, np.float32(drift.mu), out=t)
            g += t
        if self._mask is not None:
            np.multiply(g, self._mask, out=g)
        if self._s is not None:
            self._adam(w, g, t, lo, hi, taken)
            return
        if self._v is not None:
            v, rho = self._v[lo:hi], np.float32(training.momentum)
            v *= rho
            v += g
            if training.nesterov:
                np.multiply(v, rho, out=t)
                g += t
            else:
                g = v
        np.multiply(g, np.float32(-self.lr), out=t)
        w += t

    def _adam(self, w: F32, g: F32, t: F32, lo: int, hi: int, taken: I64 | int) -> None:
        """Adam (Kingma and Ba, ICLR 2015, alg. 1), with eps outside the root of the corrected second moment."""
        assert self._v is not None
        assert self._s is not None
        b1, b2 = self.training.betas
        m, s = self._v[lo:hi], self._s[lo:hi]
        m *= np.float32(b1)
        np.multiply(g, np.float32(1 - b1), out=t)
        m += t
        s *= np.float32(b2)
        np.multiply(g, g, out=t)
        t *= np.float32(1 - b2)
        s += t
        power = np.asarray(taken + self._before[lo:hi], np.float64)[:, None]
        np.multiply(s, (1.0 / (1.0 - b2**power)).astype(np.float32), out=t)
        np.sqrt(t, out=t)
        t += np.float32(self.training.eps)
        np.divide(m, t, out=t)
        t *= (-self.lr / (1.0 - b1**power)).astype(np.float32)
        w += t


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One stacked step of clients `lo..hi`: `rows` computed each, first position in the plan, real batch sizes.

    `sizes` and `taken` (the number of the step, from 1) are `[n]`, or one number for all.
    """

    lo: int
    hi: int
    rows: int
    first: I64
    sizes: I64 | int
    taken: I64 | int


def turns(sizes: I64, steps: I64, first: I64, batch: int, pad: bool) -> Iterator[Turn]:
    """The stacked steps of clients ordered by size, largest first; passes over the data are kept in step.

    At batch j of a pass those are active who have a batch j and steps left: runs of neighbours, cut where the number of
    rows changes, and where a client between has no step left.
    """
    if not len(sizes) or not steps.any():
        return
    if sizes[0] == sizes[-1] and (steps == steps[0]).all():
        yield from _even(int(sizes[0]), int(steps[0]), first, batch, pad)
        return
    per = -(-sizes // batch)
    passes = np.where(per > 0, -(-steps // np.maximum(per, 1)), 0)
    for turn in range(int(passes.max())):
        for j in range(int(per[passes > turn].max())):
            taken = turn * per + j + 1
            some = (per > j) & (taken <= steps)
            active = np.flatnonzero(some)
            if not len(active):
                continue
            lo, hi = int(active[0]), int(active[-1]) + 1
            on = some[lo:hi]
            left = np.minimum(sizes[lo:hi] - j * batch, batch)
            at = first[lo:hi] + turn * sizes[lo:hi] + j * batch
            a = 0
            while a < hi - lo:
                if not on[a]:
                    a += 1
                    continue
                rows = padded(int(left[a]), batch, pad)
                b = a + 1
                while b < hi - lo and on[b] and (left[b] == left[a] or padded(int(left[b]), batch, pad) == rows):
                    b += 1
                yield Turn(lo + a, lo + b, rows, at[a:b], left[a:b], taken[lo + a : lo + b])
                a = b


def _even(size: int, steps: int, first: I64, batch: int, pad: bool) -> Iterator[Turn]:
    """`turns` of clients of one size."""
    n = len(first)
    per = -(-size // batch)
    for k in range(steps):
        turn, j = divmod(k, per)
        left = min(size - j * batch, batch)
        yield Turn(0, n, padded(left, batch, pad), first + (turn * size + j * batch), left, k + 1)


def absences(wanted: I64, start: I64, classes: int) -> F32:
    """`[n, classes]`: 0 for a class that client i has among `wanted[start[i]:start[i + 1]]`, else -1e30.

    Added to the outputs it leaves a class out of the softmax, and its row of the last layer without a gradient.
    """
    out = np.full((len(start) - 1, classes), -1e30, np.float32)
    out[np.repeat(np.arange(len(start) - 1), np.diff(start)), wanted] = 0.0
    return out


def fit(
    program: Program, start: F32, row: I64, x: NDArray[Any], wanted: NDArray[Any], plan: Plan, training: Training,
    lr: float, drift: Drift, moments: F32 | None = None,
) -> Fit:  # fmt: skip
    """Train n clients; `x` is the whole column, `wanted` what the loss compares with, for each of `plan.rows`."""
    n = len(plan.steps)
    plain = not training.moments and not training.weight_decay
    fused = plain and training.clip_norm is None and drift.idle and program.bits is None and program.inner is None
    copies = 0 if fused else 2 + training.moments + (drift.a is not None)
    batch = min(plan.batch_size, int(plan.per_epoch.max(initial=1)))
    count = program.clients(min(plan.batch_size, 256), copies)
    pad = program.clients(min(plan.batch_size, 256), 0) >= PAD_BELOW
    order = np.lexsort((-plan.steps, -plan.per_epoch)) if n > 1 else np.arange(n)
    out = np.empty((n, program.size), np.float32)
    losses = np.zeros(n)
    absent = absences(wanted, plan.start, program.outputs) if program.loss == "masked_cross_entropy" else None
    count = min(count, max(n, 1))
    stack = Stack(program, count, min(plan.batch_size, padded(batch, plan.batch_size, True)), not fused)
    optimiser = None if fused else Optimiser(stack, training, lr, drift, start, moments)
    left = None if moments is None else np.empty_like(moments)
    parts = max(-(-n // count), 1)
    edges = [n * i // parts for i in range(parts + 1)]
    with np.errstate(all="ignore"):
        for a, b in itertools.pairwise(edges):
            ids = order[a:b]
            _train(program, stack, optimiser, start, row, x, wanted, plan, ids, pad, lr, losses, absent)
            out[ids] = stack.w[: b - a]
            if left is not None and optimiser is not None:
                optimiser.end(ids, plan.steps[ids], left)
    losses /= np.maximum(plan.steps, 1)
    return Fit(out, losses, {}, left)


def _train(
    program: Program, stack: Stack, optimiser: Optimiser | None, start: F32, row: I64, x: NDArray[Any],
    wanted: NDArray[Any], plan: Plan, ids: I64, pad: bool, lr: float, losses: F64, absent: F32 | None = None,
) -> None:  # fmt: skip
    """Train clients `ids` in one stack; their weights are left in it, and their losses summed over steps."""
    stack.w[: len(ids)] = start[row[ids]] if len(start) > 1 else start[0]
    if optimiser is not None:
        optimiser.begin(ids, row)
    measure = squared_error if program.loss == "squared_error" else cross_entropy
    direct = x.dtype == np.float32 and x.flags.c_contiguous
    total = np.zeros(len(ids))
    columns = np.arange(plan.batch_size)
    for turn in turns(plan.per_epoch[ids], plan.steps[ids], plan.start[ids], plan.batch_size, pad):
        view = stack.view(turn.lo, turn.hi, turn.rows)
        column, sizes = columns[: turn.rows], turn.sizes
        short = sizes != turn.rows if isinstance(sizes, int) else bool((sizes != turn.rows).any())
        if short:
            sizes = np.broadcast_to(sizes, len(turn.first))[:, None]
            column = np.minimum(column, sizes - 1)
        at = turn.first[:, None] + column
        if direct:
            np.take(x, plan.rows[at], axis=0, out=view.x, mode="clip")
        else:
            view.x[...] = x[plan.rows[at]].reshape(view.x.shape)
        master = None if program.bits is None else round_stack(program, stack.w[turn.lo : turn.hi])
        forward(program, view)
        if absent is not None:
            view.acts[-1] += absent[ids[turn.lo : turn.hi], None]
        own = None if program.inner is None else view.acts[-1].copy()
        loss = measure(view, wanted[at])
        d = view.acts[-1]
        factor = -lr if optimiser is None else 1.0
        if short:
            real = columns[: turn.rows] < sizes
            d *= np.where(real, factor / sizes, 0.0).astype(np.float32)[:, :, None]
            loss = np.where(real, loss, np.float32(0))
        else:
            d *= np.float32(factor / turn.rows)
        total[turn.lo : turn.hi] += np.add.reduce(loss.astype(np.float64), axis=1) / turn.sizes
        if own is not None:
            real = None if not short else (columns[: turn.rows] < sizes) / np.float32(1)
            missing = None if absent is None else absent[ids[turn.lo : turn.hi], None]
            inside = Inside(program, stack, turn, view.x, wanted[at], own, real, missing)
            inside.teach(d)
            backward(program, view, False)
            inside.learn()
            own = inside = None  # or they would be there while the next step makes its own
        else:
            backward(program, view, optimiser is None)
        if master is not None:
            stack.w[turn.lo : turn.hi] = master
            master = None
        if optimiser is not None:
            optimiser.step(turn.lo, turn.hi, turn.taken)
    losses[ids] = total


def evaluate(
    program: Program, models: F32, row: I64, x: NDArray[Any], wanted: NDArray[Any], data: Block
) -> Mapping[str, F64]:
    """Mean loss, and accuracy for labels, `[n]`; `x` is the whole column, `wanted` for each of `data.rows`.

    Blocks of `EVALUATED` rows of one client (the last row repeated in a short one) go through side by side as long as
    they share a model.
    """
    sizes = data.sizes
    blocks = -(-sizes // EVALUATED)
    client = np.repeat(np.arange(data.n), blocks)
    first = (np.arange(len(client)) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * EVALUATED
    if len(models) > 1:
        order = np.argsort(row[client], kind="stable")
        client, first = client[order], first[order]
    widths = [program.inputs, *(layer.outputs for layer in program.layers)]
    most = max(1, BLOCK_BYTES // (4 * EVALUATED * sum(widths)))
    buffers = [np.empty((min(most, len(client)), EVALUATED, width), np.float32) for width in widths]
    direct = x.dtype == np.float32 and x.flags.c_contiguous
    loss, right = np.zeros(len(client)), np.zeros(len(client))
    cuts = np.flatnonzero(np.diff(row[client], prepend=-1, append=-1)) if len(client) else np.zeros(0, np.int64)
    column = np.arange(EVALUATED)
    with np.errstate(all="ignore"):
        for a, b in itertools.pairwise(cuts.tolist()):
            model = models[row[client[a]]]
            for lo in range(a, b, most):
                hi = min(lo + most, b)
                left = (sizes[client[lo:hi]] - first[lo:hi])[:, None]
                at = (data.offsets[client[lo:hi]] + first[lo:hi])[:, None] + np.minimum(column, left - 1)
                h = buffers[0][: hi - lo]
                if direct:
                    np.take(x, data.rows[at], axis=0, out=h, mode="clip")
                else:
                    h[...] = x[data.rows[at]].reshape(h.shape)
                for layer, buffer in zip(program.layers, buffers[1:], strict=True):
                    weight = model[layer.weight].reshape(layer.outputs, layer.inputs)
                    h = np.matmul(h, weight.T, out=buffer[: hi - lo])
                    if layer.bias is not None:
                        np.add(h, model[layer.bias], out=h)
                    activate(layer.activation, h)
                losses, hits = _score(program.loss, h, wanted[at])
                real = column < left
                loss[lo:hi] = np.add.reduce(np.where(real, losses, np.float32(0)), axis=1)
                right[lo:hi] = np.add.reduce(hits & real, axis=1)
    share = 1.0 / np.maximum(sizes, 1)
    out = {"loss": np.bincount(client, loss, data.n) * share}
    if program.loss != "squared_error":
        out["accuracy"] = np.bincount(client, right, data.n) * share
    return out


def _score(loss: Loss, z: F32, y: NDArray[Any]) -> tuple[F32, NDArray[np.bool_]]:
    """Losses and hits `[m, b]` of outputs `z` `[m, b, k]`, which are overwritten."""
    k = z.shape[-1]
    if loss == "squared_error":
        np.subtract(z, y, out=z)
        np.multiply(z, z, out=z)
        return np.add.reduce(z, axis=-1) / np.float32(k), np.zeros(z.shape[:2], np.bool_)
    top = np.maximum.reduce(z, axis=-1, keepdims=True)
    np.subtract(z, top, out=z)
    chosen = z.reshape(-1)[np.arange(y.size).reshape(y.shape) * k + y]
    hits = z.argmax(axis=-1) == y
    np.exp(z, out=z)
    return np.log(np.add.reduce(z, axis=-1)) - chosen, hits
