"""Plans of declared networks, without torch: dense ones (`work.dense`), and those of many kinds of layers.

Here: which op each declared layer is. Not here: the layers (`kinds`), the net (`nets`). Invariant: the places of the
vector are those of the net's layout.
"""

from __future__ import annotations

import numpy as np

from fieldfare.core.params import Layout
from fieldfare.work.dense import Activation, DenseNet, Flatten, Linear
from fieldfare.work.native.build import Builder, Tensor, Weight
from fieldfare.work.native.kinds import (
    Bend,
    Concat,
    Conv2d,
    Dropout,
    Embedding,
    Gate,
    Kind,
    Last,
    Mean,
    Norm,
    Pool,
    Recurrent,
    Residual,
)
from fieldfare.work.native.plan import NUMBERS, TOKENS, UNIT, NativePlan, NoPlan, Refusal


def dense_plan(net: DenseNet) -> NativePlan | Refusal:
    """The plan of a dense net, or why there is none."""
    try:
        return _dense(net)
    except NoPlan as error:
        return error.refusal


def _dense(net: DenseNet) -> NativePlan:
    if net.bits is not None:
        raise NoPlan("training at rounded weights", "has no native form")
    if net.inner is not None and net.inner.widths:
        raise NoPlan("smaller nets trained inside", "have no native form")
    program = net.program
    built = Builder(2, program.size)
    h = built.column((program.inputs,))
    layers = iter(program.layers)
    for layer in net.layers:
        if isinstance(layer, Linear):
            one = next(layers)
            weight = Weight("weight", np.arange(one.weight.start, one.weight.stop).reshape(one.outputs, one.inputs))
            bias = None if one.bias is None else Weight("bias", np.arange(one.bias.start, one.bias.stop))
            h = built.linear(h, weight, bias, "a linear layer", one.scale)
        elif isinstance(layer, Activation):
            h = built.pointwise(layer.kind, h)
    return built.finish(h, "mse" if net.loss == "squared_error" else net.loss)


def declared_plan(
    layers: tuple[Kind, ...], shape: tuple[int, ...], loss: str, transform: str | None, layout: Layout
) -> NativePlan | Refusal:
    """The plan of declared layers for examples of `shape`, or what does not fit."""
    symbols = transform == "tokens" or isinstance(layers[0], Embedding)
    built = Builder(2, layout.size)
    weights = {name: Weight(name, np.arange(at.start, at.stop).reshape(form)) for name, at, form in layout.items()}
    try:
        h = built.column(shape, TOKENS if symbols else UNIT if transform == "unit" else NUMBERS)
        for at, layer in enumerate(layers):
            h = _layer(built, h, layer, weights, str(at))
        h = built.settled(h)
        last = len(h.axes) - 1 if len(h.axes) != 4 else 1
        if h.axes[last] != built.axis(h, "c"):
            raise NoPlan("the output", f"of shape {h.shape[1:]} has no axis of channels: end with linear(...)")
        v = built.of(h)
        if len(h.axes) == 4 and v.h * v.w > 1 and v.c > 1 and loss in ("mse", "bce", "l1"):
            raise NoPlan("the output", f"of shape {h.shape[1:]} is a picture, which {loss} takes flattened alone")
        return built.finish(h, loss)
    except NoPlan as error:
        return error.refusal


def _layer(built: Builder, h: Tensor, layer: Kind, weights: dict[str, Weight], name: str) -> Tensor:
    """What `layer`, called `name`, makes of `h`."""
    what = f"layer {name!r} ({type(layer).__name__.lower()})"
    weight, bias = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
    match layer:
        case Linear():
            assert weight is not None
            return built.linear(h, weight, bias, what)
        case Activation(kind):
            return built.pointwise(kind, h)
        case Bend(kind, numbers):
            return built.pointwise(kind, h, numbers)
        case Flatten():
            return built.viewed(h, (h.shape[0], int(np.prod(h.shape[1:], dtype=np.int64))), what)
        case Conv2d(_, _, kernel, stride, padding, groups, _):
            assert weight is not None
            _roomy(h, kernel, padding, what)
            return built.conv2d(h, weight, bias, stride, padding, (1, 1), groups, what)
        case Pool(kind, kernel, stride, padding):
            _roomy(h, kernel, padding, what)
            return built.pool(f"{kind}_pool", h, kernel, stride, padding, int(kind == "avg"), what)
        case Mean():
            dims = range(2, 4) if len(h.axes) == 4 else (1,)
            return built.mean_positions(h, [*dims], False, what) if len(h.axes) > 2 else h
        case Last():
            if len(h.axes) != 3:
                raise NoPlan(what, f"takes a sequence, not {h.shape[1:]}")
            return built.select(h, 1, -1, what)
        case Norm(kind, channels, groups, eps):
            assert weight is not None
            assert bias is not None
            at = -1 if kind == "layer" and len(h.axes) != 4 else 1
            if len(h.axes) < 2 or h.shape[at] != channels:
                raise NoPlan(what, f"is for {channels} channels, not for {h.shape[1:]}")
            return _norm(built, h, kind, (weight, bias), groups, eps, what)
        case Embedding():
            assert weight is not None
            return built.embedding(h, weight, -1, what)
        case Recurrent(kind, _, _, count, biased):
            if len(h.axes) != 3 or h.shape[2] != layer.inputs:
                raise NoPlan(what, f"takes a sequence of {layer.inputs} numbers a step, not {h.shape[1:]}")
            for at in range(count):
                names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if biased else [])]
                h = built.recurrent(kind, h, "bhc", [weights[f"{name}.{one}_l{at}"] for one in names], what)
            return h
        case Dropout(p):
            return built.dropout(h, p) if p else h
        case Residual(inner, shortcut):
            h = built.settled(h)
            inside = _chain(built, h, inner, weights, f"{name}.layers")
            return built.both("add", inside, _chain(built, h, shortcut, weights, f"{name}.shortcut"), what)
        case Gate(inner):
            h = built.settled(h)
            by = _chain(built, h, inner, weights, f"{name}.layers")
            if len(by.axes) == 2 and len(h.axes) > 2:  # the channels of pictures are axis 1, of sequences the last
                b, c = by.axes
                by = Tensor(by.source, (b, c, (), ()) if len(h.axes) == 4 else (b, (), c))
            return built.both("mul", h, by, what)
        case Concat(branches):
            h = built.settled(h)
            ends = [_chain(built, h, one, weights, f"{name}.branches.{at}") for at, one in enumerate(branches)]
            if len({len(one.axes) for one in ends}) > 1:
                raise NoPlan(what, f"joins {' and '.join(str(one.shape[1:]) for one in ends)}")
            return built.concat(ends, 1 if len(ends[0].axes) in (2, 4) else 2, what)


def _chain(built: Builder, h: Tensor, layers: tuple[Kind, ...], weights: dict[str, Weight], name: str) -> Tensor:
    for at, one in enumerate(layers):
        h = _layer(built, h, one, weights, f"{name}.{at}")
    return h


def _norm(
    built: Builder, h: Tensor, kind: str, pair: tuple[Weight, Weight], groups: int, eps: float, what: str
) -> Tensor:
    if kind == "group":
        return built.norm("group_norm", h, pair, [groups], eps, what)
    if kind == "batch":
        return built.norm("batch_norm", h, pair, [], eps, what)
    turned = len(h.axes) == 4  # channels of pictures are axis 1, and normalised at each position
    h = Tensor(h.source, tuple(h.axes[at] for at in (0, 2, 3, 1))) if turned else h
    out = built.layer_norm(h, 1, pair, eps, what)
    return Tensor(out.source, tuple(out.axes[at] for at in (0, 3, 1, 2))) if turned else out


def _roomy(h: Tensor, kernel: tuple[int, int], padding: tuple[int, int], what: str) -> None:
    if len(h.axes) != 4 or any(n + 2 * p < k for n, p, k in zip(h.shape[2:], padding, kernel, strict=True)):
        raise NoPlan(what, f"takes pictures of at least {kernel} numbers, not {h.shape[1:]}")
