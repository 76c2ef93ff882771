"""Plans of declared networks, without torch: dense ones (`work.dense`), and those of many kinds of layers.

Here: which op each declared layer is. Not here: the layers (`kinds`), the net (`nets`). Invariant: the places of the
vector are those of the net's layout.
"""

from __future__ import annotations

import numpy as np

from fieldfare.work.dense import Activation, DenseNet, Linear
from fieldfare.work.native.build import Builder, Weight
from fieldfare.work.native.plan import NativePlan, NoPlan, Refusal


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
