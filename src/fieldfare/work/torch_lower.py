"""The dense end of an `nn.Sequential` with cross-entropy, forward and backward by hand: no graph, SGD in the product.

Here: which modules end in such layers, and one training step through them. Not here: what stands before (autograd
does that) and the loop over clients. Invariant: the same products as autograd's in the same order; only the update of
plain SGD is part of the weight gradient's product, so results differ from torch's loop by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fieldfare.core.params import Layout
from fieldfare.work.dense import Activation, DenseNet, Layer, Linear, flatten
from fieldfare.work.torch_resident import Resident

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer: numbers of its weight and bias among the trained parameters."""

    inputs: int
    outputs: int
    weight: int
    bias: int | None


@dataclass(frozen=True, slots=True)
class Bend:
    """An elementwise function."""

    kind: Literal["relu", "tanh", "sigmoid"]


@dataclass(frozen=True, slots=True)
class Drop:
    """Dropout of a share `p`."""

    p: float


Op = Dense | Bend | Drop


@dataclass(frozen=True, slots=True)
class Ending:
    """The first `head` layers of a flattened `nn.Sequential` stay with autograd; `ops` are the rest."""

    head: int
    flatten: bool
    ops: tuple[Op, ...]

    @property
    def chance(self) -> bool:
        return any(isinstance(op, Drop) for op in self.ops)

    @property
    def classes(self) -> int:
        last = self.ops[-1]
        assert isinstance(last, Dense)
        return last.outputs


def chain_of(module: nn.Module) -> list[nn.Module] | None:
    """The layers of (nested) `nn.Sequential`s in order, a bare layer as a chain of one; None for other modules."""
    from torch import nn

    if type(module) is not nn.Sequential:
        return [module]
    if _hooked(module):
        return None
    out: list[nn.Module] = []
    for part in module:
        inner = chain_of(part)
        if inner is None:
            return None
        out += inner
    return out


def find_ending(module: nn.Module) -> tuple[Ending | None, str]:
    """The longest dense end that can be lowered, or None; and the reason, in words for the run's record."""
    from torch import nn

    layers = chain_of(module)
    if layers is None:
        return None, "a hook is registered"
    number = {id(p): i for i, p in enumerate(p for p in module.parameters() if p.requires_grad)}
    times: dict[int, int] = {}
    for layer in layers:
        for p in layer.parameters():
            times[id(p)] = times.get(id(p), 0) + 1
    bends: dict[type, Literal["relu", "tanh", "sigmoid"]] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
    ops: list[Op] = []
    for layer in layers:
        if any(_hooked(part) for part in layer.modules()):
            return None, f"a hook is registered on {type(layer).__name__}"
    for at in range(len(layers) - 1, -1, -1):
        layer, kind = layers[at], type(layers[at])
        if kind is nn.Linear:
            own = [p for p in (layer.weight, layer.bias) if p is not None]
            if any(times[id(p)] > 1 or id(p) not in number for p in own):
                return None, "a linear layer is frozen, or shares its weight"
            bias = None if layer.bias is None else number[id(layer.bias)]
            ops.append(Dense(layer.in_features, layer.out_features, number[id(layer.weight)], bias))
        elif kind in bends and ops:
            ops.append(Bend(bends[kind]))
        elif kind is nn.Dropout and ops:
            ops.append(Drop(layer.p))
        elif kind is nn.Flatten and ops and (layer.start_dim, layer.end_dim) == (1, -1):
            before = f" behind {at} layers of autograd's" if at else ""
            return Ending(at, True, tuple(reversed(ops))), f"dense layers by hand{before}"
        elif kind is not nn.Identity or not ops:
            return None, f"{kind.__name__} is left to autograd"
    return Ending(0, False, tuple(reversed(ops))), "dense layers by hand"


def arranged(chain: Sequence[nn.Module]) -> list[nn.Module]:
    """The same function of (and the same gradients for) a chain of layers, at less memory traffic.

    ReLU after a max-pool instead of before it works on fewer numbers: max and ReLU commute, and where the maximum is
    not positive both orders give no gradient. Behind a convolution or a pool, which do not need their own output to
    go backward, ReLU is done in place.
    """
    from torch import nn

    out = list(chain)
    for at in range(len(out) - 1):
        relu, pool = out[at], out[at + 1]
        if type(relu) is nn.ReLU and type(pool) is nn.MaxPool2d and not pool.return_indices:
            out[at], out[at + 1] = pool, relu
    for at in range(1, len(out)):
        if type(out[at]) is nn.ReLU and type(out[at - 1]) in (nn.Conv2d, nn.MaxPool2d):
            out[at] = nn.ReLU(inplace=True)
    return out


def _hooked(module: nn.Module) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in names)


def as_dense(ending: Ending, layout: Layout, x: str, y: str) -> DenseNet | None:
    """The declared net of the same layers, names and parameters, or None if there is none (dropout, a head)."""
    if ending.head:
        return None
    layers: list[Layer] = [flatten()] if ending.flatten else []
    for op in ending.ops:
        if isinstance(op, Dense):
            layers.append(Linear(op.inputs, op.outputs, op.bias is not None))
        elif isinstance(op, Bend) and layers and isinstance(layers[-1], Linear):
            layers.append(Activation(op.kind))
        else:
            return None
    names = tuple(name.removesuffix("weight").removesuffix(".") for name in layout.names if name.endswith("weight"))
    net = DenseNet(tuple(layers), "cross_entropy", x, y, names, path="stacked")
    return net if net.layout == layout else None


class Lowered:
    """The lowered end of a resident module, with the rates of one training call.

    `lr` updates weights inside the product of their gradient; None writes gradients to `resident.grads` instead.
    """

    def __init__(self, ops: Sequence[Op], resident: Resident, lr: float | None) -> None:
        if lr is None:
            resident.with_gradient()
        self.ops, self.lr = ops, lr
        self._values = resident.values
        self._turned = [v.t() if v.dim() == 2 else v for v in resident.values]
        self._grads = resident.grads
        self._ones: dict[int, Tensor] = {}
        self._kept: list[Any] = []

    def forward(self, h: Tensor) -> Tensor:
        """Logits `[b, C]` of activations `[b, inputs]`; keeps what `backward` needs."""
        import torch

        kept: list[Any] = []
        fresh = False
        for op in self.ops:
            if isinstance(op, Dense):
                kept.append(h)
                w = self._turned[op.weight]
                h = torch.mm(h, w) if op.bias is None else torch.addmm(self._values[op.bias], h, w)
            elif isinstance(op, Bend):
                h = h if fresh else h.clone()
                h = h.relu_() if op.kind == "relu" else h.tanh_() if op.kind == "tanh" else h.sigmoid_()
                kept.append(h)
            else:
                share = 1.0 - op.p
                mask = torch.empty_like(h).bernoulli_(share).div_(share) if share else torch.zeros_like(h)
                h = h * mask
                kept.append(mask)
            fresh = isinstance(op, Dense)
        self._kept = kept
        return h

    def backward(self, d: Tensor, further: bool) -> Tensor | None:
        """From the gradient of the logits; updates or writes gradients; with `further`, the gradient of the input."""
        import torch

        ones = self._ones.get(len(d))
        if ones is None:
            ones = self._ones[len(d)] = torch.ones(len(d))
        lr, values, ops = self.lr, self._values, self.ops
        for at in range(len(ops) - 1, -1, -1):
            op, h = ops[at], self._kept[at]
            if isinstance(op, Dense):
                w = values[op.weight]
                below = torch.mm(d, w) if at or further else None
                turned = d.t()
                if lr is not None:
                    w.addmm_(turned, h, alpha=-lr)
                    if op.bias is not None:
                        values[op.bias].addmv_(turned, ones, alpha=-lr)
                else:
                    torch.mm(turned, h, out=self._grads[op.weight])
                    if op.bias is not None:
                        torch.mv(turned, ones, out=self._grads[op.bias])
                if below is None:
                    return None
                d = below
            elif isinstance(op, Bend):
                if op.kind == "relu":
                    d = torch.ops.aten.threshold_backward(d, h, 0.0)
                elif op.kind == "tanh":
                    d = torch.ops.aten.tanh_backward(d, h)
                else:
                    d = torch.ops.aten.sigmoid_backward(d, h)
            else:
                d = d.mul_(h)
        return d
