"""Stacks of clients in lockstep with `torch.func.vmap`: the way on a GPU, where large stacks fill the device, and on a
processor for small modules of layers that nothing else here knows.

Here: one stack's steps and updates, and which stacks there are. Not here: one client at a time (`torch_loops`), the
choice between them. Invariant: a batch has its own rows only (clients of unlike batches step in turns), so row i does
not depend on its neighbours but for the rounding of products of another size: a tolerance, not the bit. On a processor
clients are stacked in the order given, so that calls for whole stacks have the same bits however many there are.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.work.net import Drift, Fit, Plan, Training
from fieldfare.work.stacked import turns
from fieldfare.work.torch_resident import one_thread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fieldfare.work.torch_loss import Column
    from fieldfare.work.torch_net import TorchNet

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

STACK_BYTES = 1 << 30
"""Bytes of weights, gradients and moments that one stack may take on the device."""
MOST_CLIENTS = 512
ON_PROCESSOR = 16
"""Clients in one stack where nothing was measured: few enough to stay in cache."""


@cache
def device() -> str | None:
    """The device that trains in lockstep where there is one: the first CUDA device."""
    import torch

    return "cuda" if torch.cuda.is_available() else None


def key_of(net: TorchNet, module: nn.Module) -> str:
    """What a choice is remembered by for a module without a plan: its layers, loss and columns. Where two modules share
    it, the choice of one is that of the other, which is at most a slower way."""
    shapes = {} if net.example is None else {n: (str(v.dtype), v.shape[1:]) for n, v in sorted(net.example.items())}
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(module))
    said = repr((layers, net.layout.names, net.layout.shapes, net.loss, net.x, net.y, shapes))
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


class Lockstep:
    """`module` over stacked parameters `[c, P]` on a device; `loss` (output, y) -> mean loss of one client's batch.

    `stack`: how many clients at most go together; None: as many as are worth it.
    """

    stack: int | None = None

    def __init__(self, module: nn.Module, loss: Callable[[Any, Any], Any], on: str) -> None:
        import copy

        import torch
        from torch.func import functional_call, grad_and_value, vmap

        self.on = torch.device(on)
        self.module = copy.deepcopy(module).to(self.on).train()
        self.names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        self.shapes = [p.shape for _, p in self.module.named_parameters() if p.requires_grad]
        self.size = sum(shape.numel() for shape in self.shapes)
        fixed = {name: p.detach() for name, p in self.module.named_parameters() if not p.requires_grad}
        fixed |= {name: b.detach() for name, b in self.module.named_buffers()}

        def of_one(params: dict[str, Tensor], x: tuple[Tensor, ...], y: Tensor) -> Tensor:
            return loss(functional_call(self.module, {**params, **fixed}, x), y)

        self._step = vmap(grad_and_value(of_one), randomness="error")
        self._checked = False

    def clients(self, moments: int) -> int:
        """How many clients go in one stack."""
        most = self.stack or (MOST_CLIENTS if self.on.type != "cpu" else min(MOST_CLIENTS, ON_PROCESSOR))
        return int(max(1, min(most, STACK_BYTES // max(4 * self.size * (3 + moments), 1))))

    def views(self, w: Tensor) -> dict[str, Tensor]:
        """The stacked tensors inside `w` `[c, P]`."""
        parts = w.split([shape.numel() for shape in self.shapes], dim=1)
        return {n: p.reshape(-1, *shape) for n, p, shape in zip(self.names, parts, self.shapes, strict=True)}

    def gradient(self, w: Tensor, x: tuple[Tensor, ...], y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients `[c, P]` and losses `[c]` of batches x `[c, b, ...]`."""
        import torch

        if not self._checked:
            self._check(tuple(one[0] for one in x))
        grads, losses = self._step(self.views(w), x, y)
        return torch.cat([grads[name].reshape(len(w), -1) for name in self.names], dim=1), losses

    def _check(self, batch: tuple[Tensor, ...]) -> None:
        """Refuse a module whose forward changes its buffers: in a stack they would be everybody's, or forgotten."""
        import torch

        before = {name: (b, b._version) for name, b in self.module.named_buffers()}
        with torch.random.fork_rng(devices=[]):
            self.module(*batch)
        for name, b in self.module.named_buffers():
            if name not in before or before[name][0] is not b or before[name][1] != b._version:
                raise RuntimeError(f"its forward changes the buffer {name!r}")
        self._checked = True


def fit(
    steps: Lockstep, start: F32, row: I64, inputs: list[Column], target: Column, plan: Plan, training: Training,
    lr: float, drift: Drift, moments: F32 | None = None,
) -> Fit:  # fmt: skip
    """Train n clients in stacks. Errors: `RuntimeError` where the module has an operation that cannot be stacked."""
    n = len(plan.steps)
    on_processor = steps.on.type == "cpu"
    order = np.arange(n) if on_processor else _by_size(plan, np.arange(n))
    out, losses = np.empty((n, steps.size), np.float32), np.zeros(n)
    left = None if moments is None else np.empty_like(moments)
    most = steps.clients(0 if on_processor else training.moments)
    with one_thread() if on_processor else nullcontext(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*batching rule", category=UserWarning)  # such are looped over
        for at in range(0, n, most):
            ids = _by_size(plan, order[at : at + most])
            _stack(steps, start, row, inputs, target, plan, training, lr, drift, moments, ids, out, losses, left)
    losses /= np.maximum(plan.steps, 1)
    return Fit(out, losses, {}, left)


def _by_size(plan: Plan, ids: I64) -> I64:
    """Clients `ids`, those with the largest passes first, as `turns` wants them."""
    return ids[np.lexsort((-plan.steps[ids], -plan.per_epoch[ids]))]


def _stack(
    steps: Lockstep, start: F32, row: I64, inputs: list[Column], target: Column, plan: Plan, training: Training,
    lr: float, drift: Drift, moments: F32 | None, ids: I64, out: F32, losses: NDArray[np.float64], left: F32 | None,
) -> None:  # fmt: skip
    """Train clients `ids`, ordered by size, together; rows of `out`, `losses` (summed) and `left` are written."""
    import torch

    def put(rows: Any) -> Tensor:
        return torch.from_numpy(np.array(rows, order="C")).to(steps.on)

    w = put(start[row[ids]])
    update = Update(training, lr, drift, w, put, start, row, ids, moments)
    total = torch.zeros(len(ids), dtype=torch.float64, device=steps.on)
    for turn in turns(plan.per_epoch[ids], plan.steps[ids], plan.start[ids], plan.batch_size, False):
        at = (turn.first[:, None] + np.arange(turn.rows)).reshape(-1)
        some = plan.rows[at]
        batch = [column.take(some).clone() for column in inputs]
        shape = (turn.hi - turn.lo, turn.rows)
        x = tuple(one.reshape(*shape, *one.shape[1:]).to(steps.on) for one in batch)
        y = target.take(some).clone()
        part = w[turn.lo : turn.hi]
        with torch.no_grad():
            g, loss = steps.gradient(part, x, y.reshape(*shape, *y.shape[1:]).to(steps.on))
            total[turn.lo : turn.hi] += loss.double()
            taken = np.broadcast_to(np.asarray(turn.taken), (shape[0],))
            update.step(part, g, turn.lo, turn.hi, taken)
    out[ids] = w.cpu().numpy()
    losses[ids] = total.cpu().numpy()
    if left is not None:
        update.end(ids, plan.steps[ids], left)


class Update:
    """One step of a stack's optimiser, in the seam's order (see `net.Drift`), on `[c, P]` tensors."""

    def __init__(
        self, training: Training, lr: float, drift: Drift, w: Tensor, put: Callable[[Any], Tensor], start: F32,
        row: I64, ids: I64, moments: F32 | None,
    ) -> None:  # fmt: skip
        import torch

        self.training, self.lr, self.mu, size = training, lr, drift.mu, w.shape[1]
        self.a = None if drift.a is None else put(drift.a[ids])
        self.mask = None if drift.mask is None else put(drift.mask).to(w.dtype)
        ref = start if drift.ref is None else drift.ref
        self.ref = put(ref[row[ids]] if len(ref) > 1 else ref[:1]) if drift.mu else None
        self.kept = [torch.zeros_like(w) for _ in range(training.moments)]
        self.before = np.zeros(len(ids))
        if moments is not None:
            self.kept = [put(moments[ids, k * size : (k + 1) * size]) for k in range(training.moments)]
            if training.moments == 2:
                self.before = moments[ids, -1].astype(np.float64)

    def step(self, w: Tensor, g: Tensor, lo: int, hi: int, taken: I64) -> None:
        """Change `w`, rows `lo..hi` of the stack, by gradient `g`; `taken` `[hi - lo]` counts steps from 1."""
        import torch

        t = self.training
        g = g if self.mask is None else g * self.mask
        if t.clip_norm is not None:
            g = g * torch.clamp(t.clip_norm / (g.norm(dim=1, keepdim=True) + 1e-6), max=1.0)
        g = g + t.weight_decay * w if t.weight_decay else g
        g = g if self.a is None else g + self.a[lo:hi]
        if self.ref is not None:
            g = g + self.mu * (w - (self.ref if len(self.ref) == 1 else self.ref[lo:hi]))
        g = g if self.mask is None else g * self.mask
        if t.moments == 2:
            (b1, b2), m, s = t.betas, self.kept[0][lo:hi], self.kept[1][lo:hi]
            m.mul_(b1).add_(g, alpha=1 - b1)
            s.mul_(b2).addcmul_(g, g, value=1 - b2)
            power = torch.from_numpy(taken + self.before[lo:hi]).to(w.device)[:, None]
            c1, c2 = (1 / (1 - b**power) for b in (b1, b2))
            w.sub_(self.lr * c1.to(w.dtype) * m / ((s * c2.to(w.dtype)).sqrt() + t.eps))
            return
        if t.moments:
            v = self.kept[0][lo:hi]
            v.mul_(t.momentum).add_(g)
            g = g + t.momentum * v if t.nesterov else v
        w.sub_(g, alpha=self.lr)

    def end(self, ids: I64, steps: I64, left: F32) -> None:
        """Write the moments of clients `ids`, who took `steps`, into their rows of `left` `[n, S]`."""
        size = self.kept[0].shape[1] if self.kept else 0
        for at, one in enumerate(self.kept):
            left[ids, at * size : (at + 1) * size] = one.cpu().numpy()
        if len(self.kept) == 2:
            left[ids, -1] = self.before + steps
