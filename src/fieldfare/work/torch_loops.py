"""Training one client on a resident module: by the module's own graph, or with its dense end by hand.

Here: the stripped loop over a client's batches: no loader, no optimiser object, no copy of the module. Not here: the
cohort (`torch_net`). Invariant: a client's numbers depend on its model, rows and key; chance (dropout) is seeded anew
for every step from (key, number of the step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.work.net import BadExamples, Plan
from fieldfare.work.torch_loss import Column, Loss
from fieldfare.work.torch_lower import Ending, Lowered, arranged, chain_of
from fieldfare.work.torch_resident import Resident
from fieldfare.work.torch_update import Update

if TYPE_CHECKING:
    from torch import Tensor

I64 = NDArray[np.int64]

_CHANCE = np.uint64(rng.derive(0, "torch"))
GATHERED = 1 << 20


class Batches:
    """The batches of each client as tensors, gathered from the columns about a megabyte at a time."""

    def __init__(
        self, plan: Plan, inputs: Sequence[Column], target: Column, transform: Callable[[Any], Any] | None
    ) -> None:
        self.plan, self.inputs, self.target, self.transform = plan, inputs, target, transform
        self._most = max(GATHERED // sum(column.row_bytes for column in inputs), 1)
        self._edges: dict[tuple[int, int], list[int]] = {}

    def edges(self, i: int) -> list[int]:
        """Bounds `[steps + 1]` of client i's batches, from its first row."""
        key = (int(self.plan.per_epoch[i]), int(self.plan.steps[i]))
        found = self._edges.get(key)
        if found is None:
            found = self._edges[key] = (self.plan.step_bounds(i) - self.plan.start[i]).tolist()
        return found

    def groups(self, i: int) -> Iterator[tuple[int, list[int], tuple[Tensor, ...], Tensor]]:
        """(first step, bounds of the steps in the group, inputs, targets) of client i."""
        edges, first = self.edges(i), int(self.plan.start[i])
        a, steps = 0, len(edges) - 1
        while a < steps:
            b = a + 1
            while b < steps and edges[b + 1] - edges[a] <= self._most:
                b += 1
            rows = self.plan.rows[first + edges[a] : first + edges[b]]
            bounds = [edge - edges[a] for edge in edges[a : b + 1]]
            yield a, bounds, tuple(column.take(rows) for column in self.inputs), self.target.take(rows)
            a = b


def seeds(key: np.uint64, steps: int) -> list[int]:
    """A seed for every step of the client with stream `key`."""
    return rng.bits(rng.mix(np.array([key ^ _CHANCE])), np.arange(steps)).tolist()


def slopes() -> Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]:
    """What gives the gradients of a loss by parameters, zeros by those that it does not depend on.

    `torch.autograd.grad` looks at its arguments for a tenth of a small model's step: the engine behind it is asked at
    once, where torch has it under this name. What is no float32 scalar goes the public way, which may refuse it.
    """
    import torch

    def public(loss: Tensor, params: Sequence[Tensor]) -> Sequence[Tensor]:
        return torch.autograd.grad(loss, params, materialize_grads=True)

    run = getattr(getattr(torch.autograd.Variable, "_execution_engine", None), "run_backward", None)
    if run is None:
        return public

    def at_once(loss: Tensor, params: Sequence[Tensor]) -> Sequence[Tensor]:
        if loss.shape or loss.dtype != torch.float32:
            return public(loss, params)
        found = run((loss,), (torch.ones(()),), False, False, tuple(params), True, accumulate_grad=False)
        if any(slope is None for slope in found):
            return [torch.zeros_like(p) if slope is None else slope for p, slope in zip(params, found, strict=True)]
        return found

    return at_once


class Graph:
    """Gradients by autograd of any module and loss."""

    def __init__(
        self, resident: Resident, batches: Batches, loss: Loss, lr: float, update: Update | None,
        reseed: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.resident, self.batches, self.loss = resident, batches, loss
        self.lr, self.update, self.reseed = lr, update, reseed
        self.slopes = slopes()
        resident.module.train()

    def client(self, i: int, key: np.uint64) -> float:
        """Train client i on the model that is loaded; the mean loss over its steps."""
        import torch

        batches, reseed = self.batches, self.reseed
        chance = seeds(key, int(batches.plan.steps[i]))
        plan, own = batches.plan, getattr(self.loss, "of", None)
        loss_of = self.loss
        if own is not None:
            loss_of = own(batches.target.array[plan.rows[plan.start[i] : plan.start[i + 1]]])
        total, k = 0.0, 0
        with torch.enable_grad():  # once: what a step writes to are plain tensors, no leaves of a graph
            for _, bounds, inputs, target in batches.groups(i):
                for at in range(len(bounds) - 1):
                    pick = slice(bounds[at], bounds[at + 1])
                    reseed(chance[k])
                    k += 1
                    total += self._step([column[pick] for column in inputs], target[pick], loss_of, k)
        return total / max(k, 1)

    def _step(self, batch: list[Tensor], y: Tensor, loss_of: Loss, taken: int) -> float:
        """Step number `taken`, its loss; nothing of it is there when the next begins."""
        import torch

        resident, update, transform = self.resident, self.update, self.batches.transform
        if transform is not None:
            batch = [transform(batch[0])]
        loss = loss_of(resident.module(*batch), y)
        grads = self.slopes(loss, resident.params)
        if update is None:
            torch._foreach_add_(resident.values, grads, alpha=-self.lr)
        else:
            for into, grad in zip(resident.grads, grads, strict=True):
                into.copy_(grad)
            update.step(taken)
        return float(loss.item())


class ByHand:
    """Cross-entropy on a module that ends in dense layers: those by hand, what stands before them by autograd."""

    def __init__(
        self, resident: Resident, ending: Ending, batches: Batches, lr: float, update: Update | None,
        reseed: Callable[[int], None],
    ) -> None:  # fmt: skip
        from torch import nn

        self.resident, self.batches, self.lr, self.update, self.reseed = resident, batches, lr, update, reseed
        self.flatten, self.classes = ending.flatten, ending.classes
        self.dense = Lowered(ending.ops, resident, lr if update is None else None)
        chain = chain_of(resident.module) or []
        self.head = nn.Sequential(*arranged(chain[: ending.head])).train() if ending.head else None
        own = {id(p) for p in self.head.parameters()} if self.head is not None else set[int]()
        self.before = [at for at, p in enumerate(resident.params) if id(p) in own]
        self.chance = self.head is not None or ending.chance

    def client(self, i: int, key: np.uint64) -> float:
        """Train client i on the model that is loaded; the mean loss over its steps."""
        import torch

        batches, update, dense, reseed = self.batches, self.update, self.dense, self.reseed
        transform, further = batches.transform, bool(self.before)
        slope = torch.ops.aten._log_softmax_backward_data
        chance = seeds(key, int(batches.plan.steps[i])) if self.chance or transform is not None else None
        total, k = 0.0, 0
        for _, bounds, inputs, target in batches.groups(i):
            x, wanted = inputs[0], _wanted(target, bounds, self.classes, batches.target.name, i)
            logs: list[Tensor] = []
            for at in range(len(bounds) - 1):
                h, goal = x[bounds[at] : bounds[at + 1]], wanted[bounds[at] : bounds[at + 1]]
                if chance is not None:
                    reseed(chance[k])
                k += 1
                if transform is not None:
                    h = transform(h)
                inner = None
                if self.head is not None:
                    with torch.set_grad_enabled(further):
                        inner = self.head(h)
                    h = inner.detach()
                log = dense.forward(h.flatten(1) if self.flatten else h).log_softmax(1)
                logs.append(log)
                below = dense.backward(slope(goal, log, 1, torch.float32), further)
                if further:
                    self._before(inner, below)
                if update is not None:
                    update.step(k)
            total += float(torch.cat(logs).mul_(wanted).sum())
        return total / max(k, 1)

    def _before(self, inner: Any, below: Any) -> None:
        """The layers before the dense ones: their gradients, and with plain SGD their step."""
        import torch

        resident = self.resident
        params = [resident.params[at] for at in self.before]
        slope = torch.empty_like(inner).copy_(below.view(inner.shape))  # in inner's memory format: mixed ones are slow
        grads = torch.autograd.grad(inner, params, slope, materialize_grads=True)
        if self.update is None:
            torch._foreach_add_([resident.values[at] for at in self.before], grads, alpha=-self.lr)
        else:
            for at, grad in zip(self.before, grads, strict=True):
                resident.grads[at].copy_(grad)


def _wanted(target: Tensor, bounds: list[int], classes: int, column: str, place: int) -> Tensor:
    """Rows `[m, C]` with -1 / (size of the step) at the label: the loss's derivative by the log-probabilities."""
    import torch

    low, high = (int(end) for end in torch.aminmax(target))
    if target.dim() != 1 or low < 0 or high >= classes:
        shape = "" if target.dim() == 1 else f" of shape {tuple(target.shape[1:])} per example"
        raise BadExamples(
            f"column {column!r} has labels{shape} from {low} to {high} but the model gives {classes} outputs: "
            f"labels are one whole number each, 0..{classes - 1}.",
            place,
        )
    sizes = [b - a for a, b in pairwise(bounds)]
    out = torch.zeros(bounds[-1], classes)
    if all(size == sizes[0] for size in sizes):
        return out.scatter_(1, target.view(-1, 1), -1.0 / sizes[0])
    share = torch.tensor([-1.0 / size for size in sizes])
    return out.scatter_(1, target.view(-1, 1), share.repeat_interleave(torch.tensor(sizes)).view(-1, 1))
