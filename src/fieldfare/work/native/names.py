"""Names of torch that have a native form: layers by type, methods by name, functions by what they are.

Here: the tables. Not here: what each does to a plan (`functions`). Invariant: what is in no table is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as f

from fieldfare.work.native import attention, channels
from fieldfare.work.native.build import Tensor
from fieldfare.work.native.functions import Reading


def _bend(kind: str) -> Callable[..., Tensor]:
    return lambda r, x, inplace=False: r.pointwise(kind, x, inplace)


def _norm(p: Any) -> tuple[Any, Any]:
    return p.weight, p.bias


def _batch_norm(r: Reading, p: Any, x: Any) -> Tensor:
    if p.running_mean is not None:
        r.refuse("keeps running statistics")
    pair = [] if p.weight is None else [r.weight(p.weight), r.weight(p.bias)]
    return r.built.norm("batch_norm", r.tensor(x), pair, [], p.eps, r.what)


def _instance_norm(r: Reading, p: Any, x: Any) -> Tensor:
    if p.running_mean is not None:
        r.refuse("keeps running statistics")
    return r.group_norm(x, p.num_features, p.weight, p.bias, p.eps)


def _gelu(r: Reading, x: Any, approximate: str = "none") -> Tensor:
    return r.pointwise("gelu_tanh" if approximate == "tanh" else "gelu", x)


def _leaky(r: Reading, x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return r.pointwise("leaky_relu", x, inplace, (negative_slope,))


def _hardtanh(r: Reading, x: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    return r.pointwise("hardtanh", x, inplace, (min_val, max_val))


def _relu6(r: Reading, x: Any, inplace: bool = False) -> Tensor:
    return _hardtanh(r, x, 0.0, 6.0, inplace)


def _elu(r: Reading, x: Any, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return r.pointwise("elu", x, inplace, (alpha, 1.0, 1.0))


def _selu(r: Reading, x: Any, inplace: bool = False) -> Tensor:
    return r.pointwise("elu", x, inplace, (1.6732632423543772, 1.0507009873554805, 1.0))


def _celu(r: Reading, x: Any, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return r.pointwise("elu", x, inplace, (alpha, 1.0, 1.0 / alpha))


def _softplus(r: Reading, x: Any, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    return r.pointwise("softplus", x, False, (beta, threshold))


def _conv_layer(flat: bool) -> Callable[..., Tensor]:
    def read(r: Reading, p: Any, x: Any) -> Tensor:
        if p.padding_mode != "zeros":
            r.refuse(f"pads by {p.padding_mode!r}, which has no native form")
        return r.conv(x, p.weight, p.bias, p.stride, p.padding, p.dilation, p.groups, flat)

    return read


def _max_layer(flat: bool) -> Callable[..., Tensor]:
    return lambda r, p, x: r.max_pool(
        x, p.kernel_size, p.stride, p.padding, p.dilation, p.ceil_mode, p.return_indices, flat
    )


def _in_place(read: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda r, a, b: read(r, a, b, in_place=True)


LAYERS: dict[type, Callable[..., Any]] = {
    nn.Identity: lambda r, p, x: x,
    nn.Linear: lambda r, p, x: r.linear(x, p.weight, p.bias),
    nn.Conv2d: _conv_layer(False),
    nn.Conv1d: _conv_layer(True),
    nn.MaxPool2d: _max_layer(False),
    nn.MaxPool1d: _max_layer(True),
    nn.AvgPool2d: lambda r, p, x: r.avg_pool(
        x, p.kernel_size, p.stride, p.padding, p.ceil_mode, p.count_include_pad, p.divisor_override
    ),
    nn.AvgPool1d: lambda r, p, x: r.avg_pool(
        x, p.kernel_size, p.stride, p.padding, p.ceil_mode, p.count_include_pad, None, True
    ),
    nn.AdaptiveAvgPool2d: lambda r, p, x: r.adaptive(x, p.output_size),
    nn.AdaptiveAvgPool1d: lambda r, p, x: r.adaptive(x, p.output_size, True),
    nn.AdaptiveMaxPool2d: lambda r, p, x: r.adaptive(x, p.output_size, False, True),
    nn.AdaptiveMaxPool1d: lambda r, p, x: r.adaptive(x, p.output_size, True, True),
    nn.ReLU: lambda r, p, x: r.pointwise("relu", x, p.inplace),
    nn.Tanh: lambda r, p, x: r.pointwise("tanh", x),
    nn.Sigmoid: lambda r, p, x: r.pointwise("sigmoid", x),
    nn.GELU: lambda r, p, x: _gelu(r, x, p.approximate),
    nn.SiLU: lambda r, p, x: r.pointwise("silu", x, p.inplace),
    nn.ReLU6: lambda r, p, x: _relu6(r, x, p.inplace),
    nn.Hardtanh: lambda r, p, x: _hardtanh(r, x, p.min_val, p.max_val, p.inplace),
    nn.Hardswish: lambda r, p, x: r.pointwise("hardswish", x, p.inplace),
    nn.Hardsigmoid: lambda r, p, x: r.pointwise("hardsigmoid", x, p.inplace),
    nn.ELU: lambda r, p, x: _elu(r, x, p.alpha, p.inplace),
    nn.SELU: lambda r, p, x: _selu(r, x, p.inplace),
    nn.CELU: lambda r, p, x: _celu(r, x, p.alpha, p.inplace),
    nn.Softplus: lambda r, p, x: _softplus(r, x, p.beta, p.threshold),
    nn.GLU: lambda r, p, x: channels.glu(r, x, p.dim),
    nn.ChannelShuffle: lambda r, p, x: channels.shuffle(r, x, p.groups),
    nn.LeakyReLU: lambda r, p, x: _leaky(r, x, p.negative_slope, p.inplace),
    nn.Dropout: lambda r, p, x: r.dropout(x, p.p, r.train, p.inplace),
    nn.Flatten: lambda r, p, x: r.flatten(x, p.start_dim, p.end_dim),
    nn.Unflatten: lambda r, p, x: r.unflatten(x, p.dim, p.unflattened_size),
    nn.GroupNorm: lambda r, p, x: r.group_norm(x, p.num_groups, *_norm(p), p.eps),
    nn.LayerNorm: lambda r, p, x: r.layer_norm(x, p.normalized_shape, *_norm(p), p.eps),
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.Embedding: lambda r, p, x: r.embedding(
        x, p.weight, p.padding_idx, p.max_norm, p.norm_type, p.scale_grad_by_freq, p.sparse
    ),
    nn.LogSoftmax: lambda r, p, x: r.log_softmax(x, p.dim),
    nn.LSTM: Reading.recurrent,
    nn.GRU: Reading.recurrent,
    **attention.LAYERS,
}  # fmt: skip

METHODS: dict[str, Callable[..., Any]] = {
    "relu": _bend("relu"), "relu_": lambda r, x: r.pointwise("relu", x, True),
    "tanh": _bend("tanh"), "tanh_": lambda r, x: r.pointwise("tanh", x, True),
    "sigmoid": _bend("sigmoid"), "sigmoid_": lambda r, x: r.pointwise("sigmoid", x, True),
    "silu": _bend("silu"), "gelu": _gelu, "leaky_relu": _leaky, "dropout": Reading.dropout,
    "relu6": _relu6, "hardtanh": _hardtanh, "hardtanh_": lambda r, *a: _hardtanh(r, *a, inplace=True),
    "hardswish": _bend("hardswish"), "hardsigmoid": _bend("hardsigmoid"), "elu": _elu, "selu": _selu, "celu": _celu,
    "elu_": lambda r, x, alpha=1.0: _elu(r, x, alpha, True), "softplus": _softplus,
    "clamp": channels.clamp, "clamp_": lambda r, *a, **k: channels.clamp(r, *a, **k, in_place=True),
    "clip": channels.clamp, "clip_": lambda r, *a, **k: channels.clamp(r, *a, **k, in_place=True),
    "clamp_min": lambda r, x, min: channels.clamp(r, x, min),
    "clamp_max": lambda r, x, max: channels.clamp(r, x, None, max),
    "cat": channels.concat, "split": channels.split, "chunk": channels.chunk, "narrow": channels.narrow,
    "glu": channels.glu, "channel_shuffle": channels.shuffle, "log_softmax": Reading.log_softmax,
    "add": Reading.add, "add_": _in_place(Reading.add), "iadd": _in_place(Reading.add),
    "sub": Reading.sub, "sub_": _in_place(Reading.sub), "isub": _in_place(Reading.sub), "rsub": Reading.rsub,
    "mul": Reading.mul, "mul_": _in_place(Reading.mul), "imul": _in_place(Reading.mul),
    "div": Reading.div, "div_": _in_place(Reading.div), "itruediv": _in_place(Reading.div), "neg": Reading.neg,
    "scaled_dot_product_attention": attention.scaled_dot_product,
    "linear": Reading.linear, "matmul": Reading.matmul, "conv2d": Reading.conv,
    "conv1d": lambda r, *a, **k: r.conv(*a, **k, flat=True),
    "max_pool2d": Reading.max_pool, "max_pool1d": lambda r, *a, **k: r.max_pool(*a, **k, flat=True),
    "avg_pool2d": Reading.avg_pool, "avg_pool1d": lambda r, *a, **k: r.avg_pool(*a, **k, flat=True),
    "adaptive_avg_pool2d": Reading.adaptive,
    "adaptive_avg_pool1d": lambda r, x, output_size: r.adaptive(x, output_size, True),
    "adaptive_max_pool2d": lambda r, x, output_size, return_indices=False: (
        r.refuse("has no native form with indices") if return_indices else r.adaptive(x, output_size, False, True)
    ),
    "adaptive_max_pool1d": lambda r, x, output_size, return_indices=False: (
        r.refuse("has no native form with indices") if return_indices else r.adaptive(x, output_size, True, True)
    ),
    "layer_norm": Reading.layer_norm, "group_norm": Reading.group_norm, "embedding": Reading.embedding,
    "view": Reading.view, "reshape": Reading.view, "flatten": Reading.flatten, "unflatten": Reading.unflatten,
    "squeeze": Reading.squeeze, "unsqueeze": Reading.unsqueeze, "permute": Reading.permute,
    "transpose": Reading.transpose, "swapaxes": Reading.transpose, "t": Reading.turned, "getattr": Reading.attribute,
    "contiguous": Reading.same, "clone": Reading.same, "float": Reading.as_float, "to": Reading.to_float,
    "long": Reading.as_symbols, "sum": Reading.sum, "mean": Reading.mean,
    "select": Reading.select, "getitem": Reading.getitem, "__getitem__": Reading.getitem,
}  # fmt: skip

IN_PLACE = {"iadd", "isub", "imul", "itruediv", "setitem"}

FUNCTIONS: dict[Any, str] = {
    torch.relu: "relu", torch.relu_: "relu_", f.relu: "relu", f.relu_: "relu_", torch.tanh: "tanh", f.tanh: "tanh",
    torch.sigmoid: "sigmoid", f.sigmoid: "sigmoid", f.silu: "silu", f.gelu: "gelu", f.leaky_relu: "leaky_relu",
    f.relu6: "relu6", f.hardtanh: "hardtanh", f.hardtanh_: "hardtanh_", f.hardswish: "hardswish",
    f.hardsigmoid: "hardsigmoid", f.elu: "elu", f.elu_: "elu_", f.selu: "selu", torch.selu: "selu", f.celu: "celu",
    torch.celu: "celu", f.softplus: "softplus", torch.clamp: "clamp", torch.clip: "clamp", torch.clamp_: "clamp_",
    torch.clip_: "clamp_", torch.clamp_min: "clamp_min", torch.clamp_max: "clamp_max",
    torch.cat: "cat", torch.concat: "cat", torch.concatenate: "cat",
    torch.split: "split", torch.chunk: "chunk", torch.narrow: "narrow", f.glu: "glu",
    torch.channel_shuffle: "channel_shuffle",
    f.dropout: "dropout", f.log_softmax: "log_softmax", torch.log_softmax: "log_softmax",
    torch.add: "add", operator.add: "add", operator.iadd: "iadd", torch.sub: "sub",
    torch.subtract: "sub", operator.sub: "sub", operator.isub: "isub", torch.mul: "mul", torch.multiply: "mul",
    operator.mul: "mul", operator.imul: "imul", torch.div: "div", torch.divide: "div", operator.truediv: "div",
    operator.itruediv: "itruediv", operator.neg: "neg", torch.neg: "neg", torch.rsub: "rsub",
    f.scaled_dot_product_attention: "scaled_dot_product_attention",
    f.linear: "linear", torch.matmul: "matmul", torch.mm: "matmul", operator.matmul: "matmul",
    f.conv2d: "conv2d", torch.conv2d: "conv2d", f.conv1d: "conv1d", torch.conv1d: "conv1d",
    f.max_pool2d: "max_pool2d", torch.max_pool2d: "max_pool2d", f.max_pool1d: "max_pool1d",
    torch.max_pool1d: "max_pool1d", f.avg_pool2d: "avg_pool2d", f.avg_pool1d: "avg_pool1d",
    torch.avg_pool1d: "avg_pool1d", f.adaptive_avg_pool2d: "adaptive_avg_pool2d",
    f.adaptive_avg_pool1d: "adaptive_avg_pool1d", torch.adaptive_avg_pool1d: "adaptive_avg_pool1d",
    f.adaptive_max_pool2d: "adaptive_max_pool2d", f.adaptive_max_pool1d: "adaptive_max_pool1d",
    torch.adaptive_max_pool1d: "adaptive_max_pool1d", f.layer_norm: "layer_norm", torch.layer_norm: "layer_norm",
    f.group_norm: "group_norm", f.embedding: "embedding", torch.flatten: "flatten", torch.reshape: "reshape",
    torch.unflatten: "unflatten", torch.squeeze: "squeeze", torch.unsqueeze: "unsqueeze", torch.permute: "permute",
    torch.transpose: "transpose", torch.swapaxes: "transpose", torch.t: "t", getattr: "getattr", torch.mean: "mean",
    torch.sum: "sum",
    torch.select: "select", operator.getitem: "getitem", torch.clone: "clone",
}  # fmt: skip
