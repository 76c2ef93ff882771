"""A torch net that trains something smaller: nets inside it, weights of few bits, outputs divided by the share kept.

Here: the net changed so, and the loop over one client's batches. Not here: who asks for it (`compress`), the same for
declared layers (`inner`). Invariant: of plain layers the numbers are the declared net's but for rounding; what a net
has nothing of (the whole net no scale, the smallest nobody inside) leaves it the very same net.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.local import Local, Nested, Rounded, Scaled
from fieldfare.work.torch_loops import Batches, seeds
from fieldfare.work.torch_loss import Loss, counted
from fieldfare.work.torch_resident import Resident
from fieldfare.work.torch_update import Update

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fieldfare.work.submodel.axes import Axes
    from fieldfare.work.torch_net import TorchNet

I64 = NDArray[np.int64]
Part = tuple[Any, ...]
"""Where a smaller net's tensor lies in the larger one's: a slice per dimension, or an open mesh of places."""


@dataclass(frozen=True, slots=True, eq=False)
class Within:
    """What a step does beside the plain one: `nets` inside are trained too, gradients are taken at weights of `bits`.

    `parts`: for each of `nets`, where its tensors lie in the own's. `nested`: how they learn, see `core.local.Nested`.
    """

    nets: tuple[TorchNet, ...] = ()
    parts: tuple[tuple[Part, ...], ...] = ()
    nested: Nested | None = None
    bits: int | None = None

    @property
    def steps(self) -> bool:
        """Whether steps are other than plain; else layers alone are."""
        return bool(self.nets) or self.bits is not None

    def drawn(self, taken: int) -> tuple[bool, Sequence[int]]:
        """Whether step number `taken` (from 1) trains the own net, and the numbers of those inside that it trains."""
        count = len(self.nets)
        if self.nested is None or not count:
            return True, ()
        match self.nested.each:
            case "all":
                return True, range(count)
            case "turn":
                return True, ((taken - 1) % count,)
            case "only":
                at = (taken - 1) % (count + 1) - 1
                return at < 0, () if at < 0 else (at,)

    def flops(self, own: float) -> float:
        """FLOPs of a step on one example, where the own net's are `own`; the mean over the turns."""
        each = [net.flops() for net in self.nets]
        if self.nested is None or not each:
            return own
        match self.nested.each:
            case "all":
                return own + sum(each)
            case "turn":
                return own + sum(each) / len(each)
            case "only":
                return (own + sum(each)) / (1 + len(each))


def changed(net: TorchNet, whole: TorchNet, asked: tuple[Local, ...]) -> TorchNet:
    """`net`, a sub-model's of `whole` or that itself, as `asked` wants it trained; the same where it wants nothing."""
    from fieldfare.work import compress

    within, scales = Within(), dict[str, float]()
    for one in asked:
        match one:
            case Scaled():
                scales = shares_kept(net, whole)
            case Nested():
                inside = _inside(net, whole, one.shares)
                nets, parts = tuple(n for n, _ in inside), tuple(p for _, p in inside)
                within = Within(nets, parts, one, within.bits)
            case Rounded(bits):
                within = Within(within.nets, within.parts, within.nested, bits)
            case _:
                pass
    if not within.steps and not scales and (within.nested is None or net.layout == whole.layout):
        return net
    out = copy.copy(net)
    out._resident, out._smaller, out._changed, out._factored = None, {}, {}, {}
    out._within, out._native = within, None
    if not within.steps and not scales:  # one of the smallest, known as such: nothing is inside it
        return out
    if net._dense is not None and whole._dense is not None:
        out._dense = compress.trained(net._dense, whole._dense, asked)
    else:
        out._ending, out._dense = None, None
        out.why = "training is changed: " + ", ".join(type(one).__name__ for one in asked)
    if scales:
        out._module = _divided(net._module, scales)
    return out


def shares_kept(net: TorchNet, whole: TorchNet) -> dict[str, float]:
    """The share of its outputs that each cut layer of a sub-model's net keeps, `{layer: share}`.

    HeteroFL's layers are linear ones, convolutions and embeddings; those of recurrent layers (not their state) and of
    torch's attention layers, as wholes, are our reading.
    """
    found: dict[str, float] = {}
    full = dict(whole._module.named_modules())
    for name, part in net._module.named_modules():
        own, had = _outputs(part), _outputs(full[name])
        if own is not None and had is not None and own != had:
            found[name] = own / had
    return found


def _outputs(layer: nn.Module) -> int | None:
    """How many channels a layer gives, or None for what has none of its own."""
    from torch import nn

    match layer:
        case nn.Linear():
            return layer.out_features
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return layer.out_channels
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            return layer.out_channels
        case nn.Embedding():
            return layer.embedding_dim
        case nn.RNNBase():
            return layer.proj_size or layer.hidden_size
        case nn.MultiheadAttention():
            return layer.embed_dim
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Divide:
    """A hook: in training a layer's outputs are divided by the share kept."""

    share: float

    def __call__(self, layer: Any, args: Any, out: Any) -> Any:
        if not layer.training:
            return out
        if hasattr(layer, "out_features") or hasattr(layer, "out_channels"):
            return out.div_(self.share)  # linear layers and convolutions do not need their outputs to go backward
        if not isinstance(out, tuple):
            return out / self.share
        first = out[0]
        first = first._replace(data=first.data / self.share) if isinstance(first, tuple) else first / self.share
        return (first, *out[1:])


def _divided(module: nn.Module, scales: dict[str, float]) -> nn.Module:
    out = copy.deepcopy(module)
    for name, share in scales.items():
        out.get_submodule(name).register_forward_hook(Divide(share))
    return out


def _inside(net: TorchNet, whole: TorchNet, shares: Sequence[float]) -> list[tuple[TorchNet, tuple[Part, ...]]]:
    """The nets of `shares` of the whole that are smaller than `net` in every group, in the order given."""
    axes = whole.axes()
    own = axes.sizes_of(net.layout)
    found: dict[Any, tuple[int, ...]] = {}
    for share in shares:
        sizes = axes.sizes(share)
        if all(a <= b for a, b in zip(sizes, own, strict=True)):
            layout = axes.layout_of(sizes, net.layout.names)
            if layout != net.layout:
                found.setdefault(layout, sizes)
    return [(whole.of(layout), _parts(axes, layout.names, own, sizes)) for layout, sizes in found.items()]


def _parts(axes: Axes, names: Sequence[str], own: Sequence[int], sizes: Sequence[int]) -> tuple[Part, ...]:
    """Where the tensors of the first `sizes` channels lie in those of the first `own`."""
    had, kept = [np.arange(n) for n in own], [np.arange(n) for n in sizes]
    out: list[Part] = []
    for name in names:
        places: list[I64] = []
        for axis in axes.params[name]:
            places.append(np.searchsorted(axes.positions(axis, had), axes.positions(axis, kept)))
        first = all(np.array_equal(at, np.arange(len(at))) for at in places)
        out.append(tuple(slice(0, len(at)) for at in places) if first else np.ix_(*places))
    return tuple(out)


class Inside:
    """Gradients of the own net and of those inside it, at weights of few bits where that is asked."""

    def __init__(
        self, resident: Resident, within: Within, batches: Batches, loss: Loss, update: Update,
        reseed: Callable[[int], None], channels_last: bool,
    ) -> None:  # fmt: skip
        self.resident, self.within, self.batches, self.loss = resident, within, batches, loss
        self.update, self.reseed = update, reseed
        self.smaller = [_held(net, channels_last) for net in within.nets]
        for one in (resident, *self.smaller):
            one.module.train()
        self._master = None if within.bits is None else resident.flat.clone()

    def client(self, i: int, key: np.uint64) -> float:
        """Train client i on the model that is loaded; the mean loss of its own net over its steps."""
        batches, resident, bits = self.batches, self.resident, self.within.bits
        plan = batches.plan
        chance = seeds(key, int(plan.steps[i]))
        loss, shown = self.loss, None
        if (of := getattr(loss, "of", None)) is not None:
            labels = batches.target.array[plan.rows[plan.start[i] : plan.start[i + 1]]]
            loss, shown = of(labels), getattr(loss, "shown", lambda _: None)(labels)
        for one in self.smaller:
            one.renew()
        total, k = 0.0, 0
        for _, bounds, inputs, target in batches.groups(i):
            for at in range(len(bounds) - 1):
                pick = slice(bounds[at], bounds[at + 1])
                self.reseed(chance[k])
                k += 1
                if self._master is not None and bits is not None:
                    self._master.copy_(resident.flat)
                    round_(resident.values, bits)
                total += self._gradient([column[pick] for column in inputs], target[pick], loss, shown, k)
                if self._master is not None:
                    resident.flat.copy_(self._master)
                self.update.step(k)
        return total / max(k, 1)

    def _gradient(self, batch: list[Any], y: Tensor, loss: Loss, shown: Any, taken: int) -> float:
        """Write the gradient of step number `taken`; the own net's loss."""
        import torch

        resident, nested, transform = self.resident, self.within.nested, self.batches.transform
        learns, drawn = self.within.drawn(taken)
        back, distil = (0.0, 0.0) if nested is None else (nested.back, nested.distil)
        resident.grad.zero_()
        with torch.enable_grad():
            batch = batch if transform is None else [transform(batch[0])]
        outs: list[Any] = []
        for number in drawn if back else ():  # the first to go is done before the second comes: less memory
            outs.append(self._forward(number, batch))
            if not distil:
                self._one(number, outs[-1], None, y, loss, shown)
                outs[-1] = outs[-1].detach()
        with torch.set_grad_enabled(learns):
            own = resident.module(*batch)
            lost = loss(own, y)
        if learns:
            self._own(own, lost, outs, y, shown)
        own, lost = own.detach(), float(lost.item())
        for at, number in enumerate(drawn):
            if not back or distil:
                self._one(number, outs[at] if back else self._forward(number, batch), own, y, loss, shown)
        return lost

    def _forward(self, number: int, batch: list[Any]) -> Any:
        """What one net inside gives, from the weights that the own net has now."""
        import torch

        held = self.smaller[number]
        for value, into, part in zip(self.resident.values, held.values, self.within.parts[number], strict=True):
            into.copy_(value[part])
        with torch.enable_grad():
            return held.module(*batch)

    def _own(self, own: Any, lost: Any, outs: list[Any], y: Tensor, shown: Any) -> None:
        """Add the gradient of the own net's loss: of labels, and of what those inside say."""
        import torch

        resident, nested = self.resident, self.within.nested
        with torch.enable_grad():
            if nested is not None and nested.back and outs:
                t = nested.temperature
                said = [(logits(out.detach(), y, shown) / t).softmax(-1) for out in outs]
                apart = divergence(torch.stack(said).mean(0), logits(own, y, shown), t)
                lost = (1 - nested.back) * lost + nested.back * apart
            grads = torch.autograd.grad(lost, resident.params, materialize_grads=True)
        for into, grad in zip(resident.grads, grads, strict=True):
            into.add_(grad)

    def _one(self, number: int, out: Any, own: Any, y: Tensor, loss: Loss, shown: Any) -> None:
        """Add the gradient of one net inside."""
        import torch

        nested, held = self.within.nested, self.smaller[number]
        assert nested is not None
        factor = nested.weight / (len(self.smaller) if nested.each == "all" else 1)
        with torch.enable_grad():
            lost = loss(out, y)
            if nested.distil:
                t = nested.temperature
                teacher = (logits(own, y, shown) / t).softmax(-1)
                apart = divergence(teacher, logits(out, y, shown), t)
                lost = (1 - nested.distil) * lost + nested.distil * apart
            grads = torch.autograd.grad(factor * lost, held.params, materialize_grads=True)
        for into, grad, part in zip(self.resident.grads, grads, self.within.parts[number], strict=True):
            into[part] += grad


def _held(net: TorchNet, channels_last: bool) -> Resident:
    if net._channels_last != channels_last:
        net._channels_last, net._resident = channels_last, None
    return net._held()


def logits(output: Tensor, y: Tensor, shown: Any) -> Tensor:
    """Logits `[m, C]` of the targets that count; classes that the client has not are left out of their softmax."""
    return counted(output if shown is None else shown(output, y), y)


def divergence(teacher: Tensor, student: Tensor, t: float) -> Tensor:
    """T**2 KL(teacher || student) of probabilities and logits `[m, C]` at temperature `t`, the mean over m."""
    from torch.nn import functional as f

    return t * t * f.kl_div((student / t).log_softmax(-1), teacher, reduction="batchmean")


def round_(values: Sequence[Tensor], bits: int) -> None:
    """Round every tensor in place to 2**bits - 1 even steps about zero, as `inner.rounded` does."""
    import torch

    most = float(2 ** (bits - 1) - 1)
    for value in values:
        if value.numel():
            step = value.abs().max() / most
            step = torch.where(step > 0, step, torch.ones(()))
            value.div_(step).round_().mul_(step)
