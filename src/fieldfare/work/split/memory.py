"""What one side of a cut takes of memory to train, computed without taking it.

Here: peak bytes of a step of a device's or of a server's layers. Not here: FLOPs and what crosses (`cuts`), which cut
fits whom (`widths`). Invariant: a figure depends on the net, the cut and the training alone; nothing of the size of the
step is allocated.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from fieldfare.work.net import Training
from fieldfare.work.split.cuts import Cut
from fieldfare.work.split.graph import between
from fieldfare.work.split.net import SplitNet
from fieldfare.work.submodel.cost import declared


@dataclass(frozen=True, slots=True)
class Counted:
    """Bytes of a side: `held` always (weights, gradient, slots, what is not trained), `turn` beside them between the
    passes (the batch, activations), and `peak` beside them at most."""

    held: int
    turn: int
    peak: int


def device_bytes(net: SplitNet, cut: Cut, training: Training, tail: Cut | None = None) -> int:
    """Peak bytes of a training step of the layers up to `cut`, and in a U of those behind `tail`, done in between.

    Weights, gradient, optimiser's slots, and by liveness what a pass forward, the wait for the gradient, a pass
    backward and the update have beside these: the batch, activations, which are kept meanwhile, the gradient that came.
    Without slots, which a simulation holds elsewhere, it is the peak of torch's allocator within 7 %, mostly to the
    byte (MLP, VGG, ResNet). Not in it: earlier halves to go back to (`Device(marks=...)`), which may lie elsewhere.
    """
    first = counted(net, None, cut, training)
    if tail is None:
        return first.held + first.peak
    last = counted(net, tail, None, training)
    return first.held + last.held + max(first.peak, first.turn + last.peak)


def server_bytes(net: SplitNet, cut: Cut, training: Training, tail: Cut | None = None) -> int:
    """The same of the server's layers, which take a step at once and hold nothing while a batch is on its way."""
    found = counted(net, cut, tail, training)
    return found.held + found.peak


def whole_bytes(net: SplitNet, training: Training) -> int:
    """The same of a device that trains all layers."""
    key = ("whole", training)
    if key not in net.counts:
        net.counts[key] = declared(net, training).memory_bytes
    return net.counts[key]


def counted(net: SplitNet, start: Cut | None, stop: Cut | None, training: Training) -> Counted:
    """What a step behind `start` up to `stop` has. Cost: a pass over their operations, on tensors without data; once
    per net."""
    ends = tuple(None if cut is None else cut.number for cut in (start, stop))
    key = (*ends, training.batch_size, training.moments)
    if key not in net.counts:
        net.counts[key] = _counted(net, start, stop, training)
    return net.counts[key]


def _counted(net: SplitNet, start: Cut | None, stop: Cut | None, training: Training) -> Counted:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from fieldfare.work.submodel.step import Live, _emptied

    half, size = net.half(start, stop), training.batch_size
    ends = None if start is None else start.place, None if stop is None else stop.place
    module = copy.deepcopy(between(net.traced, *ends)).train()
    batch = [torch.empty(size, *start.activations)] if start is not None else [*net.batch(size)]
    target = net.target(size) if stop is None else None
    fixed = [*(p for p in half.storage.module.parameters() if not p.requires_grad), *half.storage.module.buffers()]
    weights = 4 * half.storage.size
    held = weights * (2 + training.moments) + sum(2 * t.numel() * t.element_size() for t in fixed)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _emptied(module, half.storage.channels_last)
        for part in module.modules():  # counters, which a norm layer adds to in place
            for name, buffer in list(part.named_buffers(recurse=False)):
                if not buffer.dtype.is_floating_point:
                    setattr(part, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
        last = torch.channels_last if half.turned else torch.contiguous_format
        came = [torch.empty(one.shape, dtype=one.dtype) for one in batch]
        inputs = [one.contiguous(memory_format=last) for one in came] if half.turned else came
        goal = None if target is None else torch.empty(target.shape, dtype=target.dtype)
        with Live() as watch, torch.enable_grad():
            for one in (*module.parameters(), *module.buffers()):
                watch.add(one)
            before = watch.live
            for one in (*came, *inputs, *(() if goal is None else (goal,))):
                watch.add(one)
            if start is not None:
                inputs[0].requires_grad_()
            value = module(*([one.clone() for one in inputs] if half.clones else inputs))
            turn, below = watch.live - before, None
            wanted = [*(p for p in module.parameters() if p.requires_grad), *(inputs[:1] if start is not None else ())]
            if goal is None:
                back = torch.empty(value.shape)
                slope = torch.empty_like(value).copy_(back)  # as the value lies in memory
                grads = torch.autograd.grad(value, wanted, slope, materialize_grads=True)
            else:
                told = net.loss_of(value, goal)
                grads = torch.autograd.grad(told, wanted, materialize_grads=True)
            if start is not None and half.turned:
                below = grads[-1].contiguous()
            update = watch.live - before + weights  # of which a step has one more vector
            del grads, below
    return Counted(held, turn, max(watch.peak - before, update))
