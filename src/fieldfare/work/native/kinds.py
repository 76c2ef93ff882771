"""Layers of declared networks beyond the dense ones: pictures, sequences, norms, dropout, residual connections.

Here: their descriptions, named and shaped as torch's. Not here: the net of them (`nets`), what an op computes (the
core). Invariant: a layer's parameters have the names, shapes and order of the torch layer of its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Literal, TypeAlias

from fieldfare.core.errors import UsageError
from fieldfare.work.dense import Activation, Flatten, Linear, flatten, linear, relu, sigmoid, tanh

__all__ = [
    "avg_pool2d", "batch_norm", "concat", "conv2d", "dropout", "elu", "embedding", "flatten", "gate", "gelu",
    "group_norm", "gru", "hardsigmoid", "hardswish", "last", "layer_norm", "leaky_relu", "linear", "lstm", "max_pool2d",
    "mean", "relu", "relu6", "residual", "sigmoid", "silu", "softplus", "tanh",
]  # fmt: skip

Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Conv2d:
    """A convolution of pictures, weight `[outputs, inputs / groups, kh, kw]`."""

    inputs: int
    outputs: int
    kernel: Pair
    stride: Pair
    padding: Pair
    groups: int
    bias: bool


@dataclass(frozen=True, slots=True)
class Pool:
    """The largest or the mean number of every window."""

    kind: Literal["max", "avg"]
    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean over the positions of a picture or a sequence, `[C]`."""


@dataclass(frozen=True, slots=True)
class Last:
    """The last step of a sequence, `[C]`."""


@dataclass(frozen=True, slots=True)
class Norm:
    """Normalisation; of groups of `channels`, over a batch, or of the channels of each position."""

    kind: Literal["group", "batch", "layer"]
    channels: int
    groups: int
    eps: float


@dataclass(frozen=True, slots=True)
class Embedding:
    """A row of `width` numbers for each symbol."""

    symbols: int
    width: int


@dataclass(frozen=True, slots=True)
class Recurrent:
    """`layers` of an LSTM or GRU over a sequence: all hidden states."""

    kind: Literal["lstm", "gru"]
    inputs: int
    hidden: int
    layers: int
    bias: bool


@dataclass(frozen=True, slots=True)
class Bend:
    """An elementwise function that dense nets do not have; `numbers` are the core's."""

    kind: Literal["gelu", "silu", "leaky_relu", "hardtanh", "hardsigmoid", "hardswish", "elu", "softplus"]
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Dropout:
    """In training, a share `p` of the numbers is 0, the others are divided by 1 - p."""

    p: float


@dataclass(frozen=True, slots=True)
class Residual:
    """h + layers(h), or shortcut(h) + layers(h)."""

    layers: tuple[Kind, ...]
    shortcut: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class Gate:
    """h times layers(h), which may be one number for each channel."""

    layers: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """The channels of every branch of h, one after the other."""

    branches: tuple[tuple[Kind, ...], ...]


Kind: TypeAlias = (
    Linear
    | Activation
    | Flatten
    | Conv2d
    | Pool
    | Mean
    | Last
    | Norm
    | Embedding
    | Recurrent
    | Bend
    | Dropout
    | Residual
    | Gate
    | Concat
)


def _pair(name: str, value: int | Pair, least: int) -> Pair:
    first, second = value if isinstance(value, tuple) else (value, value)
    if min(first, second) < least:
        raise UsageError(f"{name}={value}: use whole numbers >= {least}.")
    return first, second


def conv2d(
    inputs: int, outputs: int, kernel: int | Pair, stride: int | Pair = 1, padding: int | Pair = 0, groups: int = 1,
    bias: bool = True,
) -> Conv2d:  # fmt: skip
    """A convolution of pictures `[inputs, H, W]` to `[outputs, H', W']`, padded by zeros."""
    if min(inputs, outputs, groups) < 1 or inputs % groups or outputs % groups:
        raise UsageError(f"conv2d({inputs}, {outputs}, groups={groups}): groups divides both numbers of channels.")
    sizes = _pair("kernel", kernel, 1), _pair("stride", stride, 1), _pair("padding", padding, 0)
    return Conv2d(inputs, outputs, *sizes, groups, bias)


def max_pool2d(kernel: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> Pool:
    """The largest number of each window; windows touch unless `stride` says otherwise."""
    return _pool("max", kernel, stride, padding)


def avg_pool2d(kernel: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> Pool:
    """The mean of each window, padding counted as zeros."""
    return _pool("avg", kernel, stride, padding)


def _pool(kind: Literal["max", "avg"], kernel: int | Pair, stride: int | Pair | None, padding: int | Pair) -> Pool:
    wide = _pair("kernel", kernel, 1)
    step = wide if stride is None else _pair("stride", stride, 1)
    around = _pair("padding", padding, 0)
    if any(2 * p > k for p, k in zip(around, wide, strict=True)):
        raise UsageError(f"padding={padding}: at most half of the kernel {kernel}.")
    return Pool(kind, wide, step, around)


def mean() -> Mean:
    """The mean over all positions of a picture or a sequence."""
    return Mean()


def last() -> Last:
    """The last step of a sequence."""
    return Last()


def group_norm(groups: int, channels: int, eps: float = 1e-5) -> Norm:
    """Every group of channels of an example to mean 0 and variance 1, then a scale and a shift for each channel."""
    if groups < 1 or channels < 1 or channels % groups:
        raise UsageError(f"group_norm({groups}, {channels}): the number of groups divides that of channels.")
    return Norm("group", channels, groups, eps)


def batch_norm(channels: int, eps: float = 1e-5) -> Norm:
    """Every channel to mean 0 and variance 1 over the batch at hand, in evaluation too: no running statistics."""
    return Norm("batch", channels, channels, eps)


def layer_norm(channels: int, eps: float = 1e-5) -> Norm:
    """The channels of every position to mean 0 and variance 1, then a scale and a shift for each channel."""
    return Norm("layer", channels, 1, eps)


def embedding(symbols: int, width: int) -> Embedding:
    """Symbols 0..symbols-1 to rows of `width` numbers."""
    if min(symbols, width) < 1:
        raise UsageError(f"embedding({symbols}, {width}): use numbers >= 1.")
    return Embedding(symbols, width)


def lstm(inputs: int, hidden: int, layers: int = 1, bias: bool = True) -> Recurrent:
    """A long short-term memory over sequences `[T, inputs]`: its states `[T, hidden]`."""
    return _recurrent("lstm", inputs, hidden, layers, bias)


def gru(inputs: int, hidden: int, layers: int = 1, bias: bool = True) -> Recurrent:
    """Gated recurrent units over sequences `[T, inputs]`: their states `[T, hidden]`."""
    return _recurrent("gru", inputs, hidden, layers, bias)


def _recurrent(kind: Literal["lstm", "gru"], inputs: int, hidden: int, layers: int, bias: bool) -> Recurrent:
    if min(inputs, hidden, layers) < 1:
        raise UsageError(f"{kind}({inputs}, {hidden}, layers={layers}): use numbers >= 1.")
    return Recurrent(kind, inputs, hidden, layers, bias)


def gelu() -> Bend:
    """h times the normal distribution function of h."""
    return Bend("gelu")


def silu() -> Bend:
    """h times its sigmoid."""
    return Bend("silu")


def leaky_relu(slope: float = 0.01) -> Bend:
    """h, or `slope` times h below 0."""
    return Bend("leaky_relu", (slope,))


def relu6() -> Bend:
    """h between 0 and 6."""
    return Bend("hardtanh", (0.0, 6.0))


def hardsigmoid() -> Bend:
    """(h + 3) / 6 between 0 and 1 (Howard et al. 2019)."""
    return Bend("hardsigmoid")


def hardswish() -> Bend:
    """h times its `hardsigmoid` (Howard et al. 2019)."""
    return Bend("hardswish")


def elu(alpha: float = 1.0) -> Bend:
    """h, or `alpha` times (exp(h) - 1) below 0."""
    return Bend("elu", (alpha, 1.0, 1.0))


def softplus(beta: float = 1.0) -> Bend:
    """log(1 + exp(beta h)) / beta."""
    if not beta > 0:
        raise UsageError(f"softplus({beta}): use a number above 0.")
    return Bend("softplus", (beta, 20.0))


def dropout(p: float) -> Dropout:
    """In training, a share `p` of the numbers is left out, by the client's own stream."""
    if not 0 <= p < 1:
        raise UsageError(f"dropout({p}): use a share in [0, 1).")
    return Dropout(p)


def residual(*layers: Kind, shortcut: tuple[Kind, ...] | Kind = ()) -> Residual:
    """The sum of `layers` and of their input, or of the layers of `shortcut` where the shape changes."""
    if not layers:
        raise UsageError("residual() needs layers beside its input, such as residual(linear(8, 8), relu()).")
    return Residual(layers, shortcut if isinstance(shortcut, tuple) else (shortcut,))


def gate(*layers: Kind) -> Gate:
    """The product of `layers` and of their input; behind a `mean()` they give one number for each channel.

    Squeeze-and-excitation of c channels: `gate(mean(), linear(c, 8), relu(), linear(8, c), hardsigmoid())`.
    """
    if not layers:
        raise UsageError("gate() needs layers beside its input, such as gate(mean(), linear(8, 8), sigmoid()).")
    return Gate(layers)


def concat(*branches: tuple[Kind, ...] | Kind) -> Concat:
    """The channels of every branch side by side; a branch is a layer, a tuple of layers, or `()`: the input itself."""
    if len(branches) < 2:
        raise UsageError("concat(...) needs two branches or more, such as concat((), linear(8, 4)).")
    return Concat(tuple(one if isinstance(one, tuple) else (one,) for one in branches))


@dataclass(frozen=True, slots=True)
class Part:
    """A parameter of a layer: numbers uniform in +-`bound`, or (`bound` None) normal, or all `fill`."""

    shape: tuple[int, ...]
    bound: float | None = None
    fill: float | None = None


def parts_of(layer: Kind, prefix: str) -> Iterator[tuple[str, Part]]:
    """Names and shapes of a layer's parameters, with torch's distributions at the start, those of inner layers too."""
    match layer:
        case Linear(inputs, outputs, bias):
            yield from _with_bias(prefix, (outputs, inputs), inputs, bias)
        case Conv2d(inputs, outputs, kernel, groups=groups, bias=bias):
            ins = inputs // groups
            yield from _with_bias(prefix, (outputs, ins, *kernel), ins * kernel[0] * kernel[1], bias)
        case Norm(channels=channels):
            yield f"{prefix}.weight", Part((channels,), fill=1.0)
            yield f"{prefix}.bias", Part((channels,), fill=0.0)
        case Embedding(symbols, width):
            yield f"{prefix}.weight", Part((symbols, width))
        case Recurrent(kind, inputs, hidden, layers, bias):
            wide, bound = (4 if kind == "lstm" else 3) * hidden, 1 / sqrt(hidden)
            for at in range(layers):
                yield f"{prefix}.weight_ih_l{at}", Part((wide, hidden if at else inputs), bound)
                yield f"{prefix}.weight_hh_l{at}", Part((wide, hidden), bound)
                for name in ("bias_ih", "bias_hh") if bias else ():
                    yield f"{prefix}.{name}_l{at}", Part((wide,), bound)
        case Residual(layers, shortcut):
            for at, one in enumerate(layers):
                yield from parts_of(one, f"{prefix}.layers.{at}")
            for at, one in enumerate(shortcut):
                yield from parts_of(one, f"{prefix}.shortcut.{at}")
        case Gate(layers):
            for at, one in enumerate(layers):
                yield from parts_of(one, f"{prefix}.layers.{at}")
        case Concat(branches):
            for of, branch in enumerate(branches):
                for at, one in enumerate(branch):
                    yield from parts_of(one, f"{prefix}.branches.{of}.{at}")
        case _:
            pass


def _with_bias(prefix: str, shape: tuple[int, ...], fan: int, bias: bool) -> Iterator[tuple[str, Part]]:
    yield f"{prefix}.weight", Part(shape, 1 / sqrt(fan))
    if bias:
        yield f"{prefix}.bias", Part(shape[:1], 1 / sqrt(fan))
