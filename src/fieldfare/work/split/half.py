"""A range of a module's operations on a flat storage of its own: loaded from a range of the vector, saved to one.

Here: storage with running statistics, forward, and one optimiser step from a gradient or from a loss. Not here: which
ranges there are (`graph`), batches (`works`). Invariant: after `load` everything is a function of the vector, of the
frozen parameters and of the buffers as they were given; nothing is kept from one client to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.params import Layout
from fieldfare.work.net import Drift, Training, moments_size
from fieldfare.work.split.graph import is_statistic
from fieldfare.work.torch_resident import Resident
from fieldfare.work.torch_update import Update

if TYPE_CHECKING:
    from torch import Tensor, nn

F32 = NDArray[np.float32]


class Storage(Resident):
    """A resident module whose vector holds running statistics too, in a layout that is given.

    Counters (`num_batches_tracked`) are float32 in the vector, exact up to 2**24.
    """

    def __init__(self, module: nn.Module, layout: Layout, channels_last: bool) -> None:
        super().__init__(module, channels_last)
        at = {name: where for name, where, _ in layout.items()}
        self.places = [replace(place, vector=at[place.name]) for place in self.places]
        self.layout = layout
        self._same = False
        self._statistics = [(b, at[name]) for name, b in self.module.named_buffers() if is_statistic(name)]

    def load(self, vector: F32) -> None:
        """Become the model `vector` `[P]`; other buffers as they were given."""
        super().load(vector)
        for buffer, where in self._statistics:
            np.copyto(buffer.numpy(), vector[where].reshape(buffer.shape), casting="unsafe")

    def save(self, out: F32, flat: F32 | None = None) -> None:
        """Copy the model into `out` `[P]`; of an array `flat` (moments) what is no parameter is 0."""
        super().save(out, flat)
        for buffer, where in self._statistics:
            out[where] = 0.0 if flat is not None else buffer.numpy().reshape(-1)


@dataclass(frozen=True, slots=True, eq=False)
class Stepped:
    """What one step leaves: `model` float32 `[p]`, `slots` `[s]`, the gradient of the input where it was asked for."""

    model: F32
    slots: F32
    gradient: F32 | None
    loss: float


class Half:
    """The operations of one side: `forward`, and steps of the optimiser. `[p]` is the size of this side's vector.

    `clone`: the input is copied, since an operation writes over it. `turned`: the input lies channels last, as the
    side before leaves it, so that the same kernels work on it as if nothing had been cut.
    """

    def __init__(
        self, module: nn.Module, layout: Layout, channels_last: bool, clone: bool = False, turned: bool = False
    ) -> None:
        self.storage = Storage(module, layout, channels_last)
        self.storage.module.train()
        self.layout, self.clones, self.turned = layout, clone, turned

    def forward(self, model: F32, inputs: Sequence[Tensor]) -> Tensor:
        """The value at the end of this side, without a graph; running statistics of this batch are forgotten."""
        import torch

        self.storage.load(model)
        with torch.no_grad():
            return self._call([self._laid(one) for one in inputs])

    def step(
        self, model: F32, slots: F32, inputs: Sequence[Tensor], end: Callable[[Tensor], Tensor] | Tensor,
        training: Training, lr: float, further: bool = False,
    ) -> Stepped:  # fmt: skip
        """One step on the loss `end` of this side's output, or from the gradient `end` of it.

        The forward pass is done (again). `further`: the gradient of the one input is wanted too.
        """
        import torch

        self.storage.load(model)
        inputs = [self._laid(one) for one in inputs]
        with torch.enable_grad():
            if further:
                inputs[0].requires_grad_()
            value = self._call(inputs)
            told = end(value) if callable(end) else None
        wanted = [*self.storage.params, *(inputs[:1] if further else ())]
        if told is None:
            slope = torch.empty_like(value).copy_(cast("Tensor", end))  # as the value lies in memory
            grads = torch.autograd.grad(value, wanted, slope, materialize_grads=True)
        else:
            grads = torch.autograd.grad(told, wanted, materialize_grads=True)
        below = grads[-1].contiguous().numpy() if further else None
        new, left = self._stepped(slots, grads[: len(self.storage.params)], training, lr)
        return Stepped(new, left, below, 0.0 if told is None else told.item())

    def _laid(self, value: Tensor) -> Tensor:
        import torch

        return value.contiguous(memory_format=torch.channels_last) if self.turned else value

    def _call(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.storage.module(*([one.clone() for one in inputs] if self.clones else inputs))

    def _stepped(self, slots: F32, grads: Sequence[Tensor], training: Training, lr: float) -> tuple[F32, F32]:
        import torch

        storage = self.storage
        size = self.layout.size
        out, left = np.empty(size, np.float32), np.empty(moments_size(training, size), np.float32)
        with torch.no_grad():
            storage.with_gradient()
            for into, grad in zip(storage.grads, grads, strict=True):
                into.copy_(grad)
            update = Update(storage, training, lr, Drift(), out[None], slots[None] if len(slots) else None)
            update.begin(0, 0)
            update.step(1)
            storage.save(out)
            if len(left):
                update.end(1, left)
        return out, left


def sub_layout(layout: Layout, start: int, stop: int) -> Layout:
    """The tensors of `layout` that lie in numbers `start..stop` of its vector."""
    pick = [i for i, at in enumerate(layout.offsets[:-1]) if start <= at < stop]
    return Layout(tuple(layout.names[i] for i in pick), tuple(layout.shapes[i] for i in pick))
