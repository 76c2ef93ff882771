"""The workloads' models in jax, and the way between their parameters and torch's flat vector.

Images are [N, H, W, C], dense weights [in, out], convolutions [H, W, in, out]: what XLA does best on a CPU.
An LSTM keeps torch's two bias vectors: with one, its gradient step would be half as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from workloads import WORKLOADS, Floats, Tensor, data

Parameters = list[Any]
AFTER_FLATTEN = {("W3", "6.weight"): (64, 12, 12)}  # dense layers that read a flattened [C, H, W]


def _there(name: str, tensor: Tensor, value: Floats) -> Floats:
    if tensor.name == "emb.weight" or value.ndim == 1:
        return value
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    if (name, tensor.name) in AFTER_FLATTEN:
        channels_last = value.reshape(-1, *AFTER_FLATTEN[name, tensor.name]).transpose(2, 3, 1, 0)
        return channels_last.reshape(value.shape[::-1])
    return value.T


def _back(name: str, tensor: Tensor, value: Floats) -> Floats:
    if tensor.name == "emb.weight" or value.ndim == 1:
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    if (name, tensor.name) in AFTER_FLATTEN:
        channels, height, width = AFTER_FLATTEN[name, tensor.name]
        return value.reshape(height, width, channels, -1).transpose(3, 2, 0, 1).reshape(value.shape[::-1])
    return value.T


def from_vector(name: str, vector: Floats) -> Parameters:
    """Parameters for :func:`logits` out of a flat vector in torch's order and layout."""
    parts: Parameters = []
    offset = 0
    for tensor in WORKLOADS[name].tensors:
        size = int(np.prod(tensor.shape))
        value = vector[offset : offset + size].reshape(tensor.shape)
        parts.append(jnp.asarray(np.ascontiguousarray(_there(name, tensor, value))))
        offset += size
    return parts


def to_vector(name: str, parameters: Parameters) -> Floats:
    """The inverse of :func:`from_vector`."""
    tensors = WORKLOADS[name].tensors
    return np.concatenate([_back(name, t, np.asarray(p)).ravel() for t, p in zip(tensors, parameters, strict=True)])


def _convolve(x: Any, kernel: Any, bias: Any) -> Any:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout) + bias


def _lstm(x: Any, input_: Any, recurrent: Any, bias: Any, bias_too: Any) -> Any:
    """Hidden states ``[steps, batch, hidden]`` of one layer over ``x [steps, batch, in]``; gates i, f, g, o."""
    inputs = x @ input_ + bias + bias_too
    zero = jnp.zeros((x.shape[1], recurrent.shape[0]), x.dtype)

    def step(carry: Any, at: Any) -> Any:
        hidden, cell = carry
        i, f, g, o = jnp.split(at + hidden @ recurrent, 4, -1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    return jax.lax.scan(step, (zero, zero), inputs)[1]


def logits(name: str, p: Parameters, x: Any) -> Any:
    """The model's outputs for a batch ``x``."""
    match name:
        case "W0" | "W1":
            return x @ p[0] + p[1]
        case "W2":
            hidden = jax.nn.relu(x @ p[0] + p[1])
            hidden = jax.nn.relu(hidden @ p[2] + p[3])
            return hidden @ p[4] + p[5]
        case "W3":
            hidden = jax.nn.relu(_convolve(x, p[0], p[1]))
            hidden = jax.nn.relu(_convolve(hidden, p[2], p[3]))
            pool = (1, 2, 2, 1)
            hidden = jax.lax.reduce_window(hidden, -jnp.inf, jax.lax.max, pool, pool, "VALID")
            hidden = jax.nn.relu(hidden.reshape(hidden.shape[0], -1) @ p[4] + p[5])
            return hidden @ p[6] + p[7]
    hidden = _lstm(_lstm(p[0][x].transpose(1, 0, 2), *p[1:5]), *p[5:9])
    return (hidden @ p[9] + p[10]).transpose(1, 0, 2)


def loss(name: str) -> Callable[[Parameters, Any, Any], Any]:
    """``loss(parameters, x, y)``: mean cross-entropy."""

    def mean(parameters: Parameters, x: Any, y: Any) -> Any:
        log_p = jax.nn.log_softmax(logits(name, parameters, x))
        return -jnp.take_along_axis(log_p, y[..., None], -1).mean()

    return mean


def jax_data(name: str) -> tuple[Any, Any]:
    """The workload's examples in jax's layout and 32-bit integers."""
    x, y = data(name)
    if name == "W3":
        x = np.ascontiguousarray(x.transpose(0, 1, 3, 4, 2))
    return (x.astype(np.int32) if name == "W4" else x), y.astype(np.int32)
