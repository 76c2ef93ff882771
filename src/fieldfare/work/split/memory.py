"""What one side of a cut takes of memory to train, computed without taking it.

Here: peak bytes of a step of a device's or of a server's layers. Not here: FLOPs and what crosses (`cuts`), which cut
fits whom (`widths`). Invariant: a figure depends on the net, the cut and the training alone; nothing of the size of the
step is allocated.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from fieldfare.work.net import Training
from fieldfare.work.split.cuts import Cut
from fieldfare.work.split.graph import between
from fieldfare.work.split.net import SplitNet
from fieldfare.work.submodel.cost import declared

if TYPE_CHECKING:
    from torch import Tensor


def device_bytes(net: SplitNet, cut: Cut, training: Training, tail: Cut | None = None) -> int:
    """Peak bytes of a training step of the layers up to `cut`, and in a U of those behind `tail`, which come after.

    Counted as `submodel.declared` counts a whole net: weights, gradient, optimiser's slots and a vector beside them,
    and what lives at the peak of a pass forward, a wait and a pass backward of one batch: the batch, activations, the
    gradient that came. The device keeps its activations while the server works. Not in it: earlier halves that a device
    keeps to go back to (`Device(marks=...)`), which need not be in fast memory.
    """
    first = side_bytes(net, None, cut, training)
    if tail is None:
        return first
    held, step = side_bytes(net, None, cut, training, True), side_bytes(net, tail, None, training)
    return max(first + _held(net, tail, None, training), held + step)


def server_bytes(net: SplitNet, cut: Cut, training: Training, tail: Cut | None = None) -> int:
    """The same of the server's layers; it computes nothing while a batch is on its way."""
    return side_bytes(net, cut, tail, training)


def whole_bytes(net: SplitNet, training: Training) -> int:
    """The same of a device that trains all layers."""
    return declared(net, training).memory_bytes


def side_bytes(net: SplitNet, start: Cut | None, stop: Cut | None, training: Training, turn: bool = False) -> int:
    """Peak bytes of a step behind `start` up to `stop`; `turn`: what of it is held between the two passes."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from fieldfare.work.submodel.step import Live, _emptied

    half = net.half(start, stop)
    ends = None if start is None else start.place, None if stop is None else stop.place
    module = copy.deepcopy(between(net.traced, *ends)).train()
    size = training.batch_size
    batch = [torch.empty(size, *start.activations)] if start is not None else [*net.batch(size)]
    target = net.target(size) if stop is None else None
    with FakeTensorMode(allow_non_fake_inputs=True):
        _emptied(module, half.storage.channels_last)
        for part in module.modules():  # counters, which a norm layer adds to in place
            for name, buffer in list(part.named_buffers(recurse=False)):
                if not buffer.dtype.is_floating_point:
                    setattr(part, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
        last = torch.channels_last if half.turned else torch.contiguous_format
        inputs = [torch.empty(one.shape, dtype=one.dtype, memory_format=last) for one in batch]
        goal = None if target is None else torch.empty(target.shape, dtype=target.dtype)
        with Live() as watch, torch.enable_grad():
            for one in (*module.parameters(), *module.buffers()):
                watch.add(one)
            before = watch.live
            for one in (*inputs, *(() if goal is None else (goal,))):
                watch.add(one)
            if start is not None:
                inputs[0].requires_grad_()
            value = module(*([one.clone() for one in inputs] if half.clones else inputs))
            if turn:
                return _held(net, start, stop, training) + watch.live - before
            wanted = [*(p for p in module.parameters() if p.requires_grad), *(inputs[:1] if start is not None else ())]
            _backward(net, value, goal, wanted)
    return _held(net, start, stop, training) + watch.peak - before


def _backward(net: SplitNet, value: Tensor, goal: Any, wanted: list[Any]) -> None:
    import torch

    if goal is None:
        grads = torch.autograd.grad(value, wanted, torch.empty_like(value), materialize_grads=True)
    else:
        grads = torch.autograd.grad(net.loss_of(value, goal), wanted, materialize_grads=True)
    del grads


def _held(net: SplitNet, start: Cut | None, stop: Cut | None, training: Training) -> int:
    """Bytes of a side's weights, gradient, slots, one vector beside them, and of what is not trained."""
    storage = net.half(start, stop).storage
    beside = sum(p.numel() * p.element_size() for p in storage.module.parameters() if not p.requires_grad)
    beside += sum(2 * b.numel() * b.element_size() for b in storage.module.buffers())
    return 4 * storage.size * (3 + training.moments) + beside
