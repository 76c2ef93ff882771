"""Dense networks trained several clients at a time with batched matrix products: the loop behind `dense.DenseNet`.

Here: forward, backward and the optimisers on stacks of weights that stay in cache. Not here: the model's description.
Invariant: every product of a client has shapes that depend on this client alone, and NumPy computes the items of a
stacked product one by one; so row i is the same, to the bit, whatever stack it is in.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.work.net import Drift, Fit, Plan, Training

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Activation: TypeAlias = Literal["relu", "tanh", "sigmoid", "none"]
Loss: TypeAlias = Literal["cross_entropy", "squared_error"]

STACK_BYTES = 768 << 10
"""Bytes of weights, gradients and activations that one stack may take: about the second-level cache of a core."""
MOST_CLIENTS = 128
PAD_BELOW = 8
"""Stacks of at least so many clients pad their last batches, so that few shapes occur; see `padded`."""


@dataclass(frozen=True, slots=True)
class Dense:
    """One layer of a program: h <- activation(h W' + b), with W `[outputs, inputs]` at `weight`, b at `bias`."""

    inputs: int
    outputs: int
    weight: slice
    bias: slice | None
    activation: Activation


@dataclass(frozen=True, slots=True)
class Program:
    """A dense network as the loop sees it: layers over a vector of `size` parameters, and the loss."""

    layers: tuple[Dense, ...]
    size: int
    loss: Loss

    @property
    def inputs(self) -> int:
        return self.layers[0].inputs

    @property
    def outputs(self) -> int:
        return self.layers[-1].outputs

    def clients(self, batch: int, copies: int) -> int:
        """How many clients fit in one stack, with `copies` vectors of the model's size for each beside the weights."""
        widths = self.inputs + 2 * sum(layer.outputs for layer in self.layers)
        extra = copies * self.size if copies else max(layer.inputs * layer.outputs for layer in self.layers)
        return int(np.clip(STACK_BYTES // (4 * (self.size + extra + batch * widths)), 1, MOST_CLIENTS))


def padded(batch: int, full: int, pad: bool) -> int:
    """Rows computed for a batch: itself, or for small models the next power of two from 16, at most the full batch.

    >>> [padded(b, 20, True) for b in (1, 16, 17, 20)], padded(3, 20, False)
    ([16, 16, 20, 20], 3)
    """
    return min(full, max(16, 1 << (batch - 1).bit_length())) if pad else batch


@dataclass(slots=True, eq=False)
class View:
    """The buffers of clients `lo..hi` of a stack for batches of `batch` rows, with the arrays every step uses."""

    x: F32
    weights: list[F32]
    turned: list[F32]
    biases: list[F32 | None]
    acts: list[F32]
    slopes: list[F32 | None]
    grads: list[F32]
    grad_biases: list[F32 | None]
    masks: list[NDArray[np.bool_]]
    flat: F32
    base: I64
    top: F32
    total: F32


class Stack:
    """Weights `[c, P]` of the clients trained together, and every buffer their steps need."""

    def __init__(self, program: Program, clients: int, batch: int, whole: bool) -> None:
        self.program = program
        self.w = np.empty((clients, program.size), np.float32)
        self.g = np.zeros((clients, program.size), np.float32) if whole else None
        most = max(layer.inputs * layer.outputs for layer in program.layers)
        self._scratch = None if whole else np.empty(clients * most, np.float32)
        self._bias = np.empty(clients * max(layer.outputs for layer in program.layers), np.float32)
        rows = clients * batch
        self._x = np.empty(rows * program.inputs, np.float32)
        self._acts = [np.empty(rows * layer.outputs, np.float32) for layer in program.layers]
        self._slopes = [np.empty(rows * layer.outputs, np.float32) for layer in program.layers[:-1]]
        self._masks = [np.empty(rows * layer.outputs, np.bool_) for layer in program.layers]
        self._views: dict[tuple[int, int, int], View] = {}

    def view(self, lo: int, hi: int, batch: int) -> View:
        """Buffers of clients `lo..hi` for `batch` rows each; built once per shape."""
        found = self._views.get((lo, hi, batch))
        if found is None:
            found = self._views[lo, hi, batch] = self._build(lo, hi, batch)
        return found

    def _build(self, lo: int, hi: int, b: int) -> View:
        n, layers, g = hi - lo, self.program.layers, self.g
        weights = [self.w[lo:hi, at.weight].reshape(n, at.outputs, at.inputs) for at in layers]
        biases = [None if at.bias is None else self.w[lo:hi, None, at.bias] for at in layers]
        if g is not None:
            grads = [g[lo:hi, at.weight].reshape(n, at.outputs, at.inputs) for at in layers]
            grad_biases = [None if at.bias is None else g[lo:hi, at.bias] for at in layers]
        else:
            assert self._scratch is not None
            grads = [_cut(self._scratch, n, at.outputs, at.inputs) for at in layers]
            grad_biases = [None if at.bias is None else _cut(self._bias, n, at.outputs) for at in layers]
        k = layers[-1].outputs
        acts = [_cut(a, n, b, at.outputs) for a, at in zip(self._acts, layers, strict=True)]
        return View(
            _cut(self._x, n, b, layers[0].inputs), weights, [w.transpose(0, 2, 1) for w in weights], biases, acts,
            [None, *(_cut(s, n, b, at.outputs) for s, at in zip(self._slopes, layers, strict=False))], grads,
            grad_biases, [_cut(m, n, b, at.outputs) for m, at in zip(self._masks, layers, strict=True)],
            acts[-1].reshape(-1), np.arange(n * b).reshape(n, b) * k,
            np.empty((n, b, 1), np.float32), np.empty((n, b, 1), np.float32),
        )  # fmt: skip


def _cut(flat: Any, *shape: int) -> Any:
    """The first elements of a flat buffer in `shape`: contiguous, so that steps of any size see plain arrays."""
    return flat[: int(np.prod(shape))].reshape(shape)


def forward(program: Program, view: View) -> F32:
    """Outputs `[n, b, outputs]` for `view.x`, in the buffer of the last layer."""
    h = view.x
    for layer, turned, bias, z in zip(program.layers, view.turned, view.biases, view.acts, strict=True):
        np.matmul(h, turned, out=z)
        if bias is not None:
            np.add(z, bias, out=z)
        activate(layer.activation, z)
        h = z
    return h


def activate(kind: Activation, z: F32) -> None:
    """The activation, in place."""
    if kind == "relu":
        np.maximum(z, np.float32(0), out=z)
    elif kind == "tanh":
        np.tanh(z, out=z)
    elif kind == "sigmoid":
        np.negative(z, out=z)
        np.exp(z, out=z)
        np.add(z, np.float32(1), out=z)
        np.reciprocal(z, out=z)


def _descend(kind: Activation, h: F32, d: F32, mask: NDArray[np.bool_]) -> None:
    """d <- d * activation'(z), with h = activation(z)."""
    if kind == "relu":
        np.greater(h, np.float32(0), out=mask)
        np.multiply(d, mask, out=d)
    elif kind == "tanh":
        d *= np.float32(1) - h * h
    elif kind == "sigmoid":
        d *= h * (np.float32(1) - h)


def cross_entropy(view: View, y: I64) -> F32:
    """Losses `[n, b]` for labels `y` `[n, b]`; leaves softmax minus one-hot in the outputs' buffer."""
    z, top, total, flat = view.acts[-1], view.top, view.total, view.flat
    np.maximum.reduce(z, axis=-1, keepdims=True, out=top)
    np.subtract(z, top, out=z)
    at = view.base + y
    chosen = flat[at]
    np.exp(z, out=z)
    np.add.reduce(z, axis=-1, keepdims=True, out=total)
    np.divide(z, total, out=z)
    flat[at] -= np.float32(1)
    np.log(total, out=total)
    return np.subtract(total[:, :, 0], chosen)


def squared_error(view: View, y: F32) -> F32:
    """Losses `[n, b]`, the mean of squares over outputs; leaves their gradient in the outputs' buffer."""
    z = view.acts[-1]
    np.subtract(z, y.reshape(z.shape), out=z)
    k = z.shape[-1]
    losses = np.add.reduce(z * z, axis=-1) * np.float32(1.0 / k)
    np.multiply(z, np.float32(2.0 / k), out=z)
    return losses


def backward(program: Program, view: View, fused: bool) -> None:
    """Gradients of all layers from the one in the outputs' buffer; `fused` adds them to the weights as they come."""
    layers = program.layers
    d = view.acts[-1]
    for at in range(len(layers) - 1, -1, -1):
        below = view.acts[at - 1] if at else view.x
        slope = view.slopes[at]
        if slope is not None:
            np.matmul(d, view.weights[at], out=slope)
        grad, grad_bias = view.grads[at], view.grad_biases[at]
        np.matmul(d.transpose(0, 2, 1), below, out=grad)
        if grad_bias is not None:
            np.add.reduce(d, axis=1, out=grad_bias)
        if fused:
            np.add(view.weights[at], grad, out=view.weights[at])
            bias = view.biases[at]
            if bias is not None:
                bias += grad_bias[:, None]
        if slope is not None:
            _descend(layers[at - 1].activation, below, slope, view.masks[at - 1])
            d = slope


class Optimiser:
    """SGD with momentum or Adam on a stack's gradient, after clip, weight decay and drift, in the seam's order."""

    def __init__(self, stack: Stack, training: Training, lr: float, drift: Drift, start: F32) -> None:
        self.stack, self.training, self.lr, self.drift, self.start = stack, training, lr, drift, start
        self._ref = start if drift.ref is None else drift.ref
        self._mask = None if drift.mask is None else drift.mask.astype(np.float32)
        shape = stack.w.shape
        self._t = np.empty(shape, np.float32)
        self._a = np.empty(shape, np.float32) if drift.a is not None else None
        self._r = np.empty(shape, np.float32) if drift.mu and len(self._ref) > 1 else None
        self._v = np.zeros(shape, np.float32) if training.momentum or training.optimizer == "adam" else None
        self._s = np.zeros(shape, np.float32) if training.optimizer == "adam" else None

    def begin(self, ids: I64, row: I64) -> None:
        """Load the drift of clients `ids`, in stack order, and forget the last clients' moments."""
        c = len(ids)
        if self._a is not None and self.drift.a is not None:
            self._a[:c] = self.drift.a[ids]
        if self._r is not None:
            self._r[:c] = self._ref[row[ids]]
        for moment in (self._v, self._s):
            if moment is not None:
                moment[:c] = 0.0

    def step(self, lo: int, hi: int, taken: I64) -> None:
        """One step of clients `lo..hi`, whose step this is number `taken` `[n]`, from 1."""
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

    def _adam(self, w: F32, g: F32, t: F32, lo: int, hi: int, taken: I64) -> None:
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
        np.multiply(s, (1.0 / (1.0 - b2**taken)).astype(np.float32)[:, None], out=t)
        np.sqrt(t, out=t)
        t += np.float32(self.training.eps)
        np.divide(m, t, out=t)
        t *= (-self.lr / (1.0 - b1**taken)).astype(np.float32)[:, None]
        w += t


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One stacked step of clients `lo..hi`: `rows` computed each, first position in the plan, real batch sizes."""

    lo: int
    hi: int
    rows: int
    first: I64
    sizes: I64
    taken: I64


def turns(sizes: I64, steps: I64, first: I64, batch: int, pad: bool) -> Iterator[Turn]:
    """The stacked steps of clients ordered by size, largest first; passes over the data are kept in step.

    At batch j of a pass those are active who have a batch j and steps left: one run of neighbours, cut where the
    number of rows changes.
    """
    if not len(sizes) or not steps.any():
        return
    per = -(-sizes // batch)
    passes = np.where(per > 0, -(-steps // np.maximum(per, 1)), 0)
    for turn in range(int(passes.max())):
        for j in range(int(per[passes > turn].max())):
            taken = turn * per + j + 1
            active = np.flatnonzero((per > j) & (taken <= steps))
            if not len(active):
                continue
            lo, hi = int(active[0]), int(active[-1]) + 1
            left = np.minimum(sizes[lo:hi] - j * batch, batch)
            at = first[lo:hi] + turn * sizes[lo:hi] + j * batch
            a = 0
            while a < hi - lo:
                rows = padded(int(left[a]), batch, pad)
                b = a + 1
                while b < hi - lo and (left[b] == left[a] or padded(int(left[b]), batch, pad) == rows):
                    b += 1
                yield Turn(lo + a, lo + b, rows, at[a:b], left[a:b], taken[lo + a : lo + b])
                a = b


def fit(
    program: Program, start: F32, row: I64, x: NDArray[Any], wanted: NDArray[Any], plan: Plan, training: Training,
    lr: float, drift: Drift,
) -> Fit:  # fmt: skip
    """Train n clients; `x` is the whole column, `wanted` what the loss compares with, for each of `plan.rows`."""
    n = len(plan.steps)
    plain = training.optimizer == "sgd" and not training.momentum and not training.weight_decay
    fused = plain and training.clip_norm is None and drift.idle
    moments = (training.momentum > 0) if training.optimizer == "sgd" else 2
    copies = 0 if fused else 2 + moments + (drift.a is not None)
    batch = min(plan.batch_size, int(plan.per_epoch.max(initial=1)))
    count = program.clients(min(plan.batch_size, 256), copies)
    pad = program.clients(min(plan.batch_size, 256), 0) >= PAD_BELOW
    order = np.argsort(-plan.per_epoch, kind="stable")
    out = np.empty((n, program.size), np.float32)
    losses = np.zeros(n)
    count = min(count, max(n, 1))
    stack = Stack(program, count, min(plan.batch_size, padded(batch, plan.batch_size, True)), not fused)
    optimiser = None if fused else Optimiser(stack, training, lr, drift, start)
    parts = max(-(-n // count), 1)
    edges = [n * i // parts for i in range(parts + 1)]
    with np.errstate(all="ignore"):
        for a, b in itertools.pairwise(edges):
            ids = order[a:b]
            _train(program, stack, optimiser, start, row, x, wanted, plan, ids, pad, lr, losses)
            out[ids] = stack.w[: b - a]
    losses /= np.maximum(plan.steps, 1)
    return Fit(out, losses, {})


def _train(
    program: Program, stack: Stack, optimiser: Optimiser | None, start: F32, row: I64, x: NDArray[Any],
    wanted: NDArray[Any], plan: Plan, ids: I64, pad: bool, lr: float, losses: F64,
) -> None:  # fmt: skip
    """Train clients `ids` in one stack; their weights are left in it, and their losses summed over steps."""
    stack.w[: len(ids)] = start[row[ids]] if len(start) > 1 else start[0]
    if optimiser is not None:
        optimiser.begin(ids, row)
    measure = cross_entropy if program.loss == "cross_entropy" else squared_error
    direct = x.dtype == np.float32 and x.flags.c_contiguous
    total = np.zeros(len(ids))
    for turn in turns(plan.per_epoch[ids], plan.steps[ids], plan.start[ids], plan.batch_size, pad):
        view = stack.view(turn.lo, turn.hi, turn.rows)
        column = np.arange(turn.rows)
        short = bool((turn.sizes != turn.rows).any())
        if short:
            column = np.minimum(column, turn.sizes[:, None] - 1)
        at = turn.first[:, None] + column
        if direct:
            np.take(x, plan.rows[at], axis=0, out=view.x, mode="clip")
        else:
            view.x[...] = x[plan.rows[at]].reshape(view.x.shape)
        forward(program, view)
        loss = measure(view, wanted[at])
        d = view.acts[-1]
        factor = -lr if optimiser is None else 1.0
        if short:
            share = (np.arange(turn.rows) < turn.sizes[:, None]) / turn.sizes[:, None]
            d *= (factor * share).astype(np.float32)[:, :, None]
            total[turn.lo : turn.hi] += np.add.reduce(loss * share, axis=1)
        else:
            d *= np.float32(factor / turn.rows)
            total[turn.lo : turn.hi] += np.add.reduce(loss, axis=1) / turn.rows
        backward(program, view, optimiser is None)
        if optimiser is not None:
            optimiser.step(turn.lo, turn.hi, turn.taken)
    losses[ids] = total
