"""Forward and backward through dense layers for a stack of clients, each with its own weights.

Here: the buffers of a stack, both directions, the losses. Not here: the order of steps and the optimisers (`stacked`),
the model's description (`dense`). Invariant: NumPy computes the items of a stacked product one by one, and every other
operation is row by row; so a client's numbers are the same, to the bit, whatever stack it is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Activation: TypeAlias = Literal["relu", "tanh", "sigmoid", "none"]
Loss: TypeAlias = Literal["cross_entropy", "masked_cross_entropy", "squared_error"]

STACK_BYTES = 2 << 20
"""Bytes of weights, gradients and activations one stack may take: between the second and third levels of cache."""
MOST_CLIENTS = 128


@dataclass(frozen=True, slots=True)
class Dense:
    """One layer of a program: h <- activation(h W' + b), with W `[outputs, inputs]` at `weight`, b at `bias`.

    In training h W' + b is multiplied by `scale`.
    """

    inputs: int
    outputs: int
    weight: slice
    bias: slice | None
    activation: Activation
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Inner:
    """Smaller nets trained inside: hidden `widths` of each, see `core.local.Nested` for the rest."""

    widths: tuple[tuple[int, ...], ...]
    distil: float
    temperature: float
    weight: float
    each: Literal["all", "turn", "only"]
    back: float = 0.0


@dataclass(frozen=True, slots=True)
class Program:
    """A dense network as the loop sees it: layers over a vector of `size` parameters, and the loss.

    `bits`: gradients are taken at weights rounded to so many. `inner`: smaller nets trained inside.
    """

    layers: tuple[Dense, ...]
    size: int
    loss: Loss
    bits: int | None = None
    inner: Inner | None = None

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
        return min(max(STACK_BYTES // (4 * (self.size + extra + batch * widths)), 1), MOST_CLIENTS)


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
    return flat[: prod(shape)].reshape(shape)


def forward(program: Program, view: View) -> F32:
    """Outputs `[n, b, outputs]` for `view.x`, in the buffer of the last layer."""
    h = view.x
    for layer, turned, bias, z in zip(program.layers, view.turned, view.biases, view.acts, strict=True):
        np.matmul(h, turned, out=z)
        if bias is not None:
            np.add(z, bias, out=z)
        if layer.scale != 1.0:
            np.multiply(z, np.float32(layer.scale), out=z)
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
        if layers[at].scale != 1.0:
            np.multiply(d, np.float32(layers[at].scale), out=d)
        if slope is not None:
            np.matmul(d, view.weights[at], out=slope)
        grad, grad_bias = view.grads[at], view.grad_biases[at]
        np.matmul(d.transpose(0, 2, 1), below, out=grad)
        if fused:
            np.add(view.weights[at], grad, out=view.weights[at])
        if grad_bias is not None:
            np.add.reduce(d, axis=1, out=grad_bias)
            bias = view.biases[at]
            if fused and bias is not None:
                bias += grad_bias[:, None]
        if slope is not None:
            _descend(layers[at - 1].activation, below, slope, view.masks[at - 1])
            d = slope
