"""Dense networks in NumPy alone: declared layers, no other library, fast for small models.

Here: layers, names and shapes as in torch's `nn.Sequential`, the starting model, evaluation. Not here: the training
loop (`stacked`). Invariant: a client's numbers depend on its own model and rows only, to the bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.work import stacked
from fieldfare.work.layers import Dense, Inner, Loss, Program
from fieldfare.work.native.choose import asked, chosen
from fieldfare.work.net import BadExamples, Drift, Fit, Folding, Plan, Training, measured

if TYPE_CHECKING:
    from fieldfare.work.native.fit import Native

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Linear:
    """h -> h W' + b, with W `[outputs, inputs]`."""

    inputs: int
    outputs: int
    bias: bool = True

    def __post_init__(self) -> None:
        if self.inputs < 1 or self.outputs < 1:
            raise UsageError(f"linear({self.inputs}, {self.outputs}): a layer has at least one input and one output.")


@dataclass(frozen=True, slots=True)
class Activation:
    """An elementwise function between two linear layers."""

    kind: Literal["relu", "tanh", "sigmoid"]


@dataclass(frozen=True, slots=True)
class Flatten:
    """Examples of any shape become vectors; first layer only (it is what happens anyway, but it takes a number)."""


Layer: TypeAlias = Linear | Activation | Flatten


def linear(inputs: int, outputs: int, bias: bool = True) -> Linear:
    """A linear layer with weight `[outputs, inputs]`."""
    return Linear(inputs, outputs, bias)


def relu() -> Activation:
    """max(h, 0), with slope 0 at 0."""
    return Activation("relu")


def tanh() -> Activation:
    """The hyperbolic tangent."""
    return Activation("tanh")


def sigmoid() -> Activation:
    """1 / (1 + exp(-h))."""
    return Activation("sigmoid")


def flatten() -> Flatten:
    """Makes vectors of the examples."""
    return Flatten()


def mlp(*widths: int, activation: Activation | None = None, loss: Loss = "cross_entropy") -> DenseNet:
    """Linear layers of these widths with ReLU (or `activation`) between them; two widths are logistic regression.

    >>> mlp(64, 32, 10).layout.names
    ('0.weight', '0.bias', '2.weight', '2.bias')
    """
    if len(widths) < 2:
        raise UsageError(f"mlp{widths}: give at least the width of the input and of the output, such as mlp(64, 10).")
    found: list[Layer] = []
    for inputs, outputs in itertools.pairwise(widths):
        found += [linear(inputs, outputs), activation or relu()]
    return DenseNet(tuple(found[:-1]), loss)


@dataclass(frozen=True)
class DenseNet:
    """A net (`work.net.Net`) of linear layers and activations; columns `x` (any shape, flattened) and `y`.

    `loss`: "cross_entropy" (labels 0..K-1 in `y`), "masked_cross_entropy" (in training, over the classes that the
    client's own examples have), or "squared_error" (mean over outputs; `y` of K numbers per example).
    Parameters are named "<place>.weight" and "<place>.bias" as in torch's `nn.Sequential`; `names` gives other
    prefixes, one per linear layer ("" for a bare layer). `path`: "auto", "native" (compiled) or "stacked" (NumPy).
    `scales`, `bits`, `inner`: what training does beside the
    plain step, see `work.layers.Program`; `work.compress` sets them.
    """

    layers: tuple[Layer, ...]
    loss: Loss = "cross_entropy"
    x: str = "x"
    y: str = "y"
    names: tuple[str, ...] | None = None
    scales: tuple[float, ...] = ()
    bits: int | None = None
    inner: Inner | None = None
    path: str = "auto"
    keeps_moments: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.loss not in ("cross_entropy", "masked_cross_entropy", "squared_error"):
            raise UsageError(
                f"DenseNet(loss={self.loss!r}): use 'cross_entropy', 'masked_cross_entropy' or 'squared_error'."
            )
        kinds = [type(layer) for layer in self.layers]
        if not kinds or kinds[-1] is not Linear:
            raise UsageError(
                "DenseNet: the last layer is linear, as the loss takes its outputs; end with linear(i, o)."
            )
        width: int | None = None
        for place, layer in enumerate(self.layers):
            if isinstance(layer, Linear):
                if width is not None and width != layer.inputs:
                    raise UsageError(f"DenseNet: layer {place} takes {layer.inputs} inputs but gets {width}.")
                width = layer.outputs
            elif isinstance(layer, Flatten) and place:
                raise UsageError(f"DenseNet: layer {place} is flatten(); only the first layer can be.")
            elif isinstance(layer, Activation) and (not place or kinds[place - 1] is not Linear):
                raise UsageError(f"DenseNet: layer {place}, {layer.kind}, must come right after a linear layer.")
        count = kinds.count(Linear)
        if self.names is not None and len(self.names) != count:
            raise UsageError(f"DenseNet(names={self.names}): give one prefix for each of the {count} linear layers.")

    @cached_property
    def layout(self) -> Layout:
        """Names and shapes of the parameters, weights before biases, layer by layer."""
        shapes: dict[str, tuple[int, ...]] = {}
        at = 0
        for place, layer in enumerate(self.layers):
            if isinstance(layer, Linear):
                prefix = str(place) if self.names is None else self.names[at]
                dot = prefix and prefix + "."
                shapes[dot + "weight"] = (layer.outputs, layer.inputs)
                if layer.bias:
                    shapes[dot + "bias"] = (layer.outputs,)
                at += 1
        return Layout.of(shapes)

    @cached_property
    def program(self) -> Program:
        """The layers with their places in the vector."""
        found: list[Dense] = []
        at = 0
        for place, layer in enumerate(self.layers):
            if not isinstance(layer, Linear):
                continue
            after = self.layers[place + 1] if place + 1 < len(self.layers) else None
            kind = after.kind if isinstance(after, Activation) else "none"
            weight = slice(at, at + layer.inputs * layer.outputs)
            bias = slice(weight.stop, weight.stop + layer.outputs) if layer.bias else None
            at = bias.stop if bias is not None else weight.stop
            scale = self.scales[len(found)] if self.scales else 1.0
            found.append(Dense(layer.inputs, layer.outputs, weight, bias, kind, scale))
        inner = self.inner if self.inner is not None and self.inner.widths else None
        return Program(tuple(found), at, self.loss, self.bits, inner)

    def of(self, layout: Layout) -> DenseNet:
        """The net of a sub-model's layout: the same layers with fewer outputs inside."""
        return _smaller(self, layout)

    def init(self, seed: int) -> Params:
        """Weights and biases uniform in +-1/sqrt(inputs), the default of torch's `nn.Linear` (other numbers)."""
        words = rng.uniforms(np.array([rng.derive(seed, "init")], np.uint64), np.arange(self.layout.size))
        vector = 2.0 * words - 1.0
        for layer in self.program.layers:
            stop = layer.weight.stop if layer.bias is None else layer.bias.stop
            vector[layer.weight.start : stop] *= 1.0 / np.sqrt(layer.inputs)
        return Params(vector.astype(np.float32), self.layout)

    @cached_property
    def native(self) -> Native | str:
        """The net on the compiled core, or why not."""
        from fieldfare.work.native.bind import of_dense

        return of_dense(self)

    @property
    def key(self) -> str:
        """What a choice between `ways` is remembered for; nothing where there is one."""
        return "" if isinstance(self.native, str) else self.native.key

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways this net can be trained, the first being taken where nothing was measured."""
        return ("stacked",) if isinstance(self.native, str) else ("native", "stacked")

    @property
    def on_core(self) -> Native | None:
        """`native`, where it is the way this net is trained here."""
        if asked(self.path) == "stacked" or isinstance(self.native, str):
            return None
        return self.native if chosen(self.native.key, self.ways, self.path) == "native" else None

    def _core_for(self, training: Training) -> Native | None:
        from fieldfare.work.native.bind import in_half

        return self.on_core if training.precision == "float32" else in_half(self)

    @property
    def threaded(self) -> bool:
        """Whether it is computed by threads of this process, so that more processes gain nothing."""
        return self.on_core is not None

    def folds(self, training: Training) -> bool:
        """Whether `fit` takes a `Folding`."""
        return self.on_core is not None

    def fit(
        self, start: F32, row: I64, data: Block, plan: Plan, keys: NDArray[np.uint64], training: Training, lr: float,
        drift: Drift, moments: F32 | None = None, fold: Folding | None = None,
    ) -> Fit:  # fmt: skip
        """Train n clients: on the compiled core where that is here, else in stacks that stay in cache, one thread."""
        x, y = self._columns(data)
        if (core := self._core_for(training)) is not None:
            with self._words(y, plan.rows, plan.start):
                return core.fit(start, row, data, plan, keys, training, lr, drift, moments, fold)
        wanted = self._wanted(y, plan.rows, plan.start)
        return stacked.fit(self.program, start, row, x, wanted, plan, training, lr, drift, moments)

    def evaluate(self, models: F32, row: I64, data: Block) -> Mapping[str, F64]:
        """`loss` and, for labels, `accuracy`, `[n]`; both 0 for a client without examples.

        Examples go through in blocks of 32 of one client (a short one is filled up), so no number depends on others'.
        """
        x, y = self._columns(data)
        if (core := self.on_core) is not None:
            with self._words(y, data.rows, data.offsets):
                return measured(*core.evaluate(models, row, data), core.labelled)
        return stacked.evaluate(self.program, models, row, x, self._wanted(y, data.rows, data.offsets), data)

    def flops(self) -> float:
        """Multiply-adds (as two) of the three products of each layer; the first needs no gradient of its input."""
        layers = self.program.layers
        own = _flops([layer.inputs for layer in layers] + [layers[-1].outputs])
        if self.inner is None or not self.inner.widths:
            return own
        ends = layers[0].inputs, layers[-1].outputs
        each = [_flops([ends[0], *widths, ends[1]]) for widths in self.inner.widths]
        match self.inner.each:
            case "all":
                return own + sum(each)
            case "turn":
                return own + sum(each) / len(each)
            case _:
                return (own + sum(each)) / (1 + len(each))

    def describe(self) -> Mapping[str, Any]:
        """Layers, loss and columns as plain JSON."""
        said: list[str] = []
        for layer in self.layers:
            match layer:
                case Linear(inputs, outputs, bias):
                    said.append(f"linear({inputs}, {outputs}{'' if bias else ', bias=False'})")
                case Activation(kind):
                    said.append(f"{kind}()")
                case _:
                    said.append("flatten()")
        net = {"net": "dense", "layers": said, "loss": self.loss, "x": self.x, "y": self.y, "size": self.layout.size}
        from fieldfare.work.native.bind import told

        return {**net, **told(self, "stacked", "declared layers: several clients per matrix product")}

    def _columns(self, data: Block) -> tuple[NDArray[Any], NDArray[Any]]:
        """The columns x, as vectors where that costs no copy, and y."""
        for name in (self.x, self.y):
            if name not in data.columns:
                have = ", ".join(data.columns) or "none"
                raise UsageError(
                    f"the data has no column {name!r} (it has {have}): rename it, or give DenseNet its name."
                )
        x, y = data.columns[self.x], data.columns[self.y]
        width = prod(x.shape[1:])
        if width != self.program.inputs:
            raise UsageError(
                f"column {self.x!r} has {width} numbers per example but the first layer takes {self.program.inputs}: "
                "change the layer, or the data."
            )
        return (x.reshape(len(x), width) if x.flags.c_contiguous else x), y

    @contextmanager
    def _words(self, y: NDArray[Any], rows: I64, start: I64) -> Iterator[None]:
        """Inside, targets that do not fit are refused in this net's words, whatever finds them."""
        self._check_targets(y)
        try:
            yield
        except BadExamples:
            self._wanted(y, rows, start)
            raise

    def _check_targets(self, y: NDArray[Any]) -> None:
        """Refuse a column of targets that the loss cannot compare with."""
        if self.loss == "squared_error":
            if int(np.prod(y.shape[1:], dtype=np.int64)) != self.program.outputs:
                raise UsageError(
                    f"column {self.y!r} has shape {y.shape[1:]} per example; the net gives {self.program.outputs} "
                    "numbers."
                )
        elif y.dtype.kind not in "iub" or y.ndim != 1:
            raise UsageError(
                f"column {self.y!r} holds {y.dtype} of shape {y.shape[1:]} per example: cross_entropy needs one "
                "whole number; use loss='squared_error' for numbers."
            )

    def _wanted(self, y: NDArray[Any], rows: I64, start: I64) -> NDArray[Any]:
        """What the loss compares with, for `rows`: labels int64 `[m]`, checked, or float32 `[m, outputs]`.

        Client i's rows are `rows[start[i]:start[i + 1]]`.
        """
        self._check_targets(y)
        outputs, taken = self.program.outputs, y[rows]
        if self.loss == "squared_error":
            return taken.astype(np.float32, copy=False).reshape(len(rows), outputs)
        labels = taken.astype(np.int64, copy=False)
        if len(labels) and (labels.min() < 0 or labels.max() >= outputs):
            first = int(np.argmax((labels < 0) | (labels >= outputs)))
            raise BadExamples(
                f"column {self.y!r} has labels from {labels.min()} to {labels.max()} but the last layer has {outputs} "
                f"outputs: labels are 0..{outputs - 1}.",
                int(np.searchsorted(start, first, "right")) - 1,
            )
        return labels


def _flops(widths: list[int]) -> float:
    macs = [a * b for a, b in itertools.pairwise(widths)]
    return 2.0 * (3 * sum(macs) - macs[0])


@lru_cache(maxsize=256)
def _smaller(net: DenseNet, layout: Layout) -> DenseNet:
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    names = iter(net.layout.names)
    layers: list[Layer] = []
    for layer in net.layers:
        if isinstance(layer, Linear):
            weight = shapes.get(next(names), (0,))
            if layer.bias:
                next(names)
            layer = Linear(weight[-1], weight[0], layer.bias) if len(weight) == 2 else layer
        layers.append(layer)
    small = replace(net, layers=tuple(layers))
    if small.layout != layout:
        raise UsageError(
            f"a model of {layout.size} parameters came to a net of {net.layout.size} that has no such sub-model: send "
            "the model of this net's init(), or a view of this net."
        )
    return small
