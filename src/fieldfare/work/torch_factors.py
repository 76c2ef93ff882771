"""A torch net whose large weight matrices are two factors: linear layers, and convolutions as `[out, in k k]`.

Here: which layers are factored, the net of the factors, and the way there and back. Not here: when (`train`).
Invariant: the given module is not changed; a layer that cannot be factored stays as it is.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout
from fieldfare.work import torch_resident as resident_
from fieldfare.work.torch_inner import Divide

if TYPE_CHECKING:
    from torch import nn

    from fieldfare.work.torch_net import TorchNet

F32 = NDArray[np.float32]


def factored(net: TorchNet, rank: int) -> TorchNet:
    """The net in which each linear layer and convolution of larger rank is two: inputs to rank without bias, rank to
    outputs.

    Of a convolution the first has the kernel, the second 1x1. A layer whose forward is not its own (the module reads
    its weight, as attention does) stays whole, where the net has an example to see that on. Errors: `UsageError` where
    no layer is of a kind that can be factored, with the reasons.
    """
    layers, whole = candidates(net._module)
    chosen = [name for name, limit in layers.items() if rank < limit]
    batch = None if net.example is None else net.batch(2)
    if batch is not None and chosen and not _runs(_made(net._module, chosen, rank), batch):
        alone = {name: _runs(_made(net._module, [name], rank), batch) for name in chosen}
        whole |= {name: "the module reads its weight itself" for name, can in alone.items() if not can}
        chosen = [name for name, can in alone.items() if can]
    if not chosen and (len(layers) == 0 or all(name in whole for name in layers)):
        said = "; ".join(f"{name or 'the module'}: {why}" for name, why in whole.items())
        raise UsageError(f"LowRank(rank={rank}): no layer of this net can be factored ({said}): leave it out.")
    if not chosen:
        return net
    out = copy.copy(net)
    out._factory = None
    out._take(_made(net._module, chosen, rank))
    if net._within is not None:
        out._within, out._native = net._within, None
        if net._dense is not None:
            from fieldfare.work import compress

            out._dense, out._ending = compress.factored(net._dense, rank), net._ending
        else:
            out._ending = None
    return out


def candidates(module: nn.Module) -> tuple[dict[str, int], dict[str, str]]:
    """Layers that can be factored, with their largest rank, and those that cannot, with the reason."""
    from torch import nn

    layers: dict[str, int] = {}
    whole: dict[str, str] = {}
    times = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    for name, part in module.named_modules():
        kind, weight = type(part), part._parameters.get("weight")
        if kind not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            if any(p is not None and p.dim() > 1 for p in part._parameters.values()):
                whole[name] = f"{kind.__name__} is no linear layer or convolution"
        elif weight is None or part._forward_pre_hooks or any(not isinstance(h, Divide) for h in _hooks(part)):
            whole[name] = "its weight or its outputs are computed otherwise"
        elif times[id(weight)] > 1:
            whole[name] = "it shares its weight"
        elif not weight.requires_grad:
            whole[name] = "it is frozen"
        elif getattr(part, "groups", 1) > 1:
            whole[name] = "a convolution in groups"
        else:
            layers[name] = min(len(weight), weight[0].numel())
    return layers, whole


def _made(module: nn.Module, names: list[str], rank: int) -> nn.Module:
    """A copy of `module` with pairs of layers in place of those of these `names`."""
    from torch import nn

    out = copy.deepcopy(module)
    with resident_.own_randomness():
        for name in names:
            layer = out.get_submodule(name)
            pair = nn.Sequential(*_pair(layer, rank))
            for hook in _hooks(layer):
                pair.register_forward_hook(hook)
            if not name:
                return pair
            above, _, own = name.rpartition(".")
            setattr(out.get_submodule(above), own, pair)
    return out


def _hooks(layer: nn.Module) -> list[Any]:
    return list(layer._forward_hooks.values())


def _pair(layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    from torch import nn

    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        first, second = nn.Linear(layer.in_features, rank, False), nn.Linear(rank, layer.out_features, bias)
    else:
        kind = type(layer)
        places = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        first = kind(layer.in_channels, rank, *places, 1, False, layer.padding_mode)
        second = kind(rank, layer.out_channels, 1, bias=bias)
    if bias:
        second.bias = layer.bias
    return first, second


def _runs(module: nn.Module, batch: tuple[Any, ...]) -> bool:
    import torch

    with resident_.one_thread(), resident_.own_randomness() as reseed, torch.no_grad():
        reseed(0)
        try:
            module.train()(*batch)
        except Exception:
            return False
    return True


def in_factors(layout: Layout, small: Layout, names: set[str]) -> tuple[str, ...]:
    """The tensors of `small` in which those of `layout` called `names` are: both factors of a matrix."""
    out: list[str] = []
    for name in (name for name in layout.names if name in names):
        dot, _, own = name.rpartition(".")
        dot = dot and dot + "."
        pair = (dot + "1.bias",) if own == "bias" else (dot + "0.weight", dot + "1.weight")
        out += (name,) if name in small.names else pair
    return tuple(out)


def factors(layout: Layout, small: Layout, model: F32) -> F32:
    """The factored net's vector: V sqrt(s) and sqrt(s) U of every factored matrix's largest singular values, float32.

    `model` `[P]` is of `layout`, the result of `small`.
    """
    shapes = dict(zip(small.names, small.shapes, strict=True))
    found: dict[str, F32] = {}
    for name, where, shape in layout.items():
        value = model[where].reshape(shape)
        if name in shapes:
            found[name] = value
        elif name.endswith("bias"):
            found[name.removesuffix("bias") + "1.bias"] = value
        else:
            dot = name.removesuffix("weight")
            rank = shapes[dot + "0.weight"][0]
            u, s, v = np.linalg.svd(value.reshape(shape[0], -1).astype(np.float64), full_matrices=False)
            root = np.sqrt(s[:rank])
            found[dot + "0.weight"] = (root[:, None] * v[:rank]).astype(np.float32)
            found[dot + "1.weight"] = (u[:, :rank] * root).astype(np.float32)
    return np.concatenate([found[name].reshape(-1) for name in small.names])


def product(layout: Layout, small: Layout, vector: F32) -> F32:
    """The vector `[P]` of `layout` that a factored one stands for: U V in place of each pair."""
    have = {name: vector[where].reshape(shape) for name, where, shape in small.items()}
    parts: list[F32] = []
    for name in layout.names:
        dot, _, own = name.rpartition(".")
        dot = dot and dot + "."
        if name in have:
            value = have[name]
        elif own == "bias":
            value = have[dot + "1.bias"]
        else:
            first, second = have[dot + "0.weight"], have[dot + "1.weight"]
            value = second.reshape(len(second), -1) @ first.reshape(len(first), -1)
        parts.append(value.reshape(-1))
    return np.concatenate(parts)
