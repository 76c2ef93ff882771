"""What a training step of a torch net takes, computed without taking it: peak memory by liveness, and FLOPs.

Here: the step run on tensors without data, every storage counted from its making to its end, with what the CPU
kernels of torch take beside their results. Not here: levels (`cost`). Invariant: nothing of the size of the step is
allocated, but for the workspace that the recurrent kernel is asked for.
"""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fieldfare.work.torch_loss import Loss
from fieldfare.work.torch_lower import Ending, Lowered, arranged, chain_of

_BRGEMM, _BRGEMM_BACK, _MORE = 8216, 8344, 36864
_RNN_SCRATCH = 12856
_SINGLE = 16
"""Bytes that oneDNN's convolution and recurrence take for themselves, whatever their size; from so many examples on,
single pixels of a single channel may go back in blocks of 16 channels, which is counted always (x86, measured)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One forward and backward pass: `bytes` at its peak beyond the parameters (batch, activations, gradients, what
    kernels take beside), `saved` bytes that the graph holds at the turn, `flops` of its products."""

    bytes: int
    saved: int
    flops: float


class Live(TorchDispatchMode):
    """Counts the bytes of living storages, and FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, Any] = {}
        self.live = self.peak = 0
        self.flops = 0.0

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self.held:
            return

        def gone(_: Any) -> None:
            self.held.pop(key, None)
            self.live -= size

        self.held[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        if name == "mkldnn_rnn_layer":
            out = (*out[:3], torch.empty(_rnn_workspace(args), dtype=torch.uint8))
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                self.add(one)
        self.peak = max(self.peak, self.live + _beside(name, args, out))
        self.flops += _flops(name, args, out)
        return out


def _beside(name: str, args: Any, out: Any) -> int:
    """Bytes a kernel has at its peak beside its arguments and results."""
    if name == "convolution" and torch.backends.mkldnn.is_available() and args[0].dim() == 4:  # type: ignore[no-untyped-call]
        w = args[1]
        last = w.is_contiguous(memory_format=torch.channels_last)
        blocked = _blocked(w, 32)
        if last:
            return (
                blocked + _BRGEMM + (0 if args[0].is_contiguous(memory_format=torch.channels_last) else _size(args[0]))
            )
        return _padded(args[0]) + blocked + _padded(out)
    if name == "convolution_backward" and torch.backends.mkldnn.is_available() and args[1].dim() == 4:  # type: ignore[no-untyped-call]
        w = args[2]
        blocked = _blocked(w, 16)
        if w.shape[1] == 1 < w.shape[0] and prod(w.shape[2:]) == 1 and args[9] == 1 and len(args[1]) >= _SINGLE:
            return blocked + sum(_padded(t, 0) for t in args[:2])
        if w.is_contiguous(memory_format=torch.channels_last):
            turned = 4 * w.shape[0] * -(-w.shape[1] // 16) * 16 * prod(w.shape[2:])
            scratch = (_BRGEMM_BACK if max(args[4]) == 1 else _MORE) * (args[9] == 1)
            return max(blocked + _size(w), turned + scratch - _size(w))
        return _padded(args[1]) + _padded(args[0]) + blocked
    if name in ("mkldnn_rnn_layer", "mkldnn_rnn_layer_backward"):
        x, w_ih, w_hh = args[0], args[1], args[2]
        gates = x.shape[0] * x.shape[1] * w_hh.shape[0] * 4
        again = 2 if name.endswith("backward") else 1
        return gates + _RNN_SCRATCH + _size(w_ih) + again * _size(w_hh)
    if name in ("max_pool2d_with_indices_backward", "avg_pool2d_backward"):  # all in the format of the gradient given
        form = suggest_memory_format(args[0])
        taken = (args[-1], out) if name.startswith("max") else (out,)
        return sum(0 if t.is_contiguous(memory_format=form) else _size(t) for t in taken)
    if name == "native_batch_norm_backward":
        return _size(args[1])
    return 0


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _blocked(w: Tensor, block: int) -> int:
    """Bytes of a convolution's weights in blocks of channels; depthwise ones stay as they are."""
    o, i, *places = w.shape
    if i == 1:
        return _size(w)
    up = -(-o // 16) * 16 if o <= 16 else -(-o // block) * block
    return 4 * up * (i if block == 32 or i < 16 else -(-i // 16) * 16) * prod(places)


def _padded(x: Tensor, few: int = 8) -> int:
    """Bytes of activations in blocks of 16 channels; fewer than `few` are left as they are."""
    n, c, *places = x.shape
    return 4 * n * (c if c < few else -(-c // 16) * 16) * prod(places)


def _rnn_workspace(args: Any) -> int:
    """Bytes of the workspace of oneDNN's recurrence, found by asking for it once."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        from torch.utils._python_dispatch import _disable_current_modes

        with _disable_current_modes(), torch.enable_grad():
            real = [torch.zeros(a.shape) if isinstance(a, Tensor) else a for a in args[:-1]] + [True]
            return int(torch.ops.aten.mkldnn_rnn_layer(*real)[3].untyped_storage().nbytes())


def _flops(name: str, args: Any, out: Any) -> float:
    """FLOPs of a product, multiply and add as two."""
    match name:
        case "mm" | "addmm":
            a, b = args[-2:] if name == "mm" else args[1:3]
            return 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
        case "bmm" | "baddbmm":
            a, b = args[-2:] if name == "bmm" else args[1:3]
            return 2.0 * a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2]
        case "convolution":
            o = args[0] if args[6] else out
            return 2.0 * o.shape[0] * prod(o.shape[2:]) * args[1].numel()
        case "convolution_backward":
            o = args[1] if args[7] else args[0]
            return 2.0 * o.shape[0] * prod(o.shape[2:]) * args[2].numel() * sum(args[-1][:2])
        case "mkldnn_rnn_layer":
            return 2.0 * args[0].shape[0] * args[0].shape[1] * (args[1].numel() + args[2].numel())
        case "mkldnn_rnn_layer_backward":
            return 4.0 * args[0].shape[0] * args[0].shape[1] * (args[1].numel() + args[2].numel())
        case "_scaled_dot_product_flash_attention_for_cpu":
            q, k = args[:2]
            return 4.0 * prod(q.shape) * k.shape[-2]
        case "_scaled_dot_product_flash_attention_for_cpu_backward":
            q, k = args[1:3]
            return 8.0 * prod(q.shape) * k.shape[-2]
        case _:
            return 0.0


def step_of(
    module: nn.Module, loss: Loss, batch: tuple[Tensor, ...], target: Tensor, channels_last: bool = True,
    ending: Ending | None = None, plain: bool = True,
) -> Step:  # fmt: skip
    """What one step of `module` on tensors like `batch` and `target` takes, as `torch_loops` does it.

    With an `ending` its dense layers go by hand, updated in the product where SGD is `plain`.
    """
    module = copy.deepcopy(module).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        _emptied(module, channels_last)
        inputs = tuple(torch.empty(one.shape, dtype=one.dtype) for one in batch)
        goal = torch.empty(target.shape, dtype=target.dtype)
        params = [p for p in module.parameters() if p.requires_grad]
        store = _Store(params, plain)
        collecting = gc.isenabled()
        gc.disable()
        try:
            with Live() as watch:
                for one in (*module.parameters(), *module.buffers(), *store.grads):
                    watch.add(one)
                before = watch.live
                for one in (*inputs, goal):
                    watch.add(one)
                if ending is None:
                    value = loss(module(*inputs), goal)
                    saved = watch.live - before
                    grads = torch.autograd.grad(value, params, materialize_grads=True)
                    del value, grads
                else:
                    saved = _by_hand(module, ending, inputs[0], goal, store, watch) - before
        finally:
            if collecting:
                gc.enable()
    return Step(watch.peak - before, saved, watch.flops)


class _Store:
    """As much of a `Resident` as the layers by hand look at."""

    def __init__(self, params: list[Any], plain: bool) -> None:
        self.params = params
        self.values = [p.detach() for p in params]
        self.grads = [] if plain else [torch.empty(p.shape) for p in params]
        self.plain = plain

    def with_gradient(self) -> None:
        pass


def _by_hand(module: nn.Module, ending: Ending, x: Tensor, goal: Tensor, store: Any, watch: Live) -> int:
    """One step as `torch_loops.ByHand` does it; what lives at its turn."""
    chain = chain_of(module) or []
    head = nn.Sequential(*arranged(chain[: ending.head])).train() if ending.head else None
    before = [p for p in store.params if head is not None and any(p is q for q in head.parameters())]
    dense = Lowered(ending.ops, store, 0.1 if store.plain else None)
    wanted = torch.zeros(len(goal), ending.classes)
    inner: Any = None
    with torch.no_grad():
        h = x
        if head is not None:
            with torch.set_grad_enabled(bool(before)):
                inner = head(x)
            h = inner.detach()
        log = dense.forward(h.flatten(1) if ending.flatten else h).log_softmax(1)
        turn = watch.live
        slope = torch.ops.aten._log_softmax_backward_data(wanted, log, 1, torch.float32)
        below = dense.backward(slope, bool(before))
        if before and below is not None:
            down = torch.empty_like(inner).copy_(below.view(inner.shape))
            grads = torch.autograd.grad(inner, before, down, materialize_grads=True)
            del grads
    return turn


def _emptied(module: nn.Module, channels_last: bool) -> None:
    """Parameters and buffers without data, shared where they were."""
    done: dict[int, Any] = {}
    convs = {id(m.weight) for m in module.modules() if type(m) is nn.Conv2d} if channels_last else set[int]()
    for part in module.modules():
        for name, p in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            if id(p) not in done:
                last = torch.channels_last if id(p) in convs else torch.contiguous_format
                done[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype, memory_format=last), p.requires_grad)
            setattr(part, name, done[id(p)])
        for name, b in list(part.named_buffers(recurse=False, remove_duplicate=False)):
            if b.dtype.is_floating_point:
                setattr(part, name, torch.empty(b.shape, dtype=b.dtype))
