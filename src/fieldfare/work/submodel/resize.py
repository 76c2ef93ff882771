"""A smaller module of the same layers: parameters cut, and what the layers say of themselves with them.

Here: the attributes of torch's layers, and of the user's own modules where these count channels. Not here: which
channels are kept in the vector. Invariant: the given module is not changed; a smaller one stands alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from fieldfare.work.submodel.axes import Axes

if TYPE_CHECKING:
    from torch import nn


Problem: TypeAlias = Callable[[Any], tuple[str, str] | None]
"""(layer, why) where a smaller module does not compute what it should; None where it does."""


def resized(module: nn.Module, axes: Axes, sizes: Sequence[int], problem: Problem | None = None) -> nn.Module:
    """A copy of `module` that keeps the first `sizes[g]` channels of every group.

    Whole numbers that the user's own modules hold as attributes (heads, widths) are changed where a smaller module has
    a `problem` otherwise.
    """
    from torch import nn

    small = copy.deepcopy(module)
    before = dict(module.named_modules(remove_duplicate=False))
    owners = dict(small.named_modules(remove_duplicate=False))
    seen: dict[int, nn.Parameter] = {}
    first = {id(t): name for name, t in (*small.named_parameters(), *small.named_buffers())}
    for table, is_buffer in ((dict(small.named_parameters(remove_duplicate=False)), False),
                             (dict(small.named_buffers(remove_duplicate=False)), True)):  # fmt: skip
        for name, tensor in table.items():
            known = first[id(tensor)]
            shape = axes.shape(known, sizes)
            if tuple(tensor.shape) == shape:
                continue
            layer, _, own = name.rpartition(".")
            cut = seen.get(id(tensor))
            if cut is None:
                part = _cut(tensor.detach(), axes, known, sizes)
                cut = part if is_buffer else nn.Parameter(part, tensor.requires_grad)
                seen[id(tensor)] = cut  # type: ignore[assignment]
            setattr(owners[layer], own, cut)
    for name, part in owners.items():
        _describe(part, before[name], name, axes, sizes)
    if problem is not None and any(sizes[g] != axes.groups[g].size for g in axes.cuttable):
        small = _own_numbers(small, axes, sizes, problem)
    return small


def _cut(tensor: Any, axes: Axes, name: str, sizes: Sequence[int]) -> Any:
    import numpy as np
    import torch

    kept = [np.arange(n) for n in sizes]
    out = tensor
    for d, axis in enumerate(axes.params[name] if name in axes.params else axes.fixed[name]):
        at = axes.positions(axis, kept)
        if len(at) != tensor.shape[d]:
            out = out.index_select(d, torch.from_numpy(at))
    return out.clone().contiguous()


def _describe(part: nn.Module, old: nn.Module, name: str, axes: Axes, sizes: Sequence[int]) -> None:
    """Let a layer of torch say the shapes its parameters have."""
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase
    from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

    own: Any = part
    was: Any = old
    if isinstance(part, nn.Linear):
        own.out_features, own.in_features = own.weight.shape
    elif isinstance(part, _ConvTransposeNd):
        own.in_channels, own.out_channels = own.weight.shape[0], own.weight.shape[1] * own.groups
    elif isinstance(part, _ConvNd):
        own.out_channels = own.weight.shape[0]
        if was.groups > 1:
            kept = axes.blocks(axes.params[(name and name + ".") + "weight"][0], was.groups, sizes)
            own.groups = max(was.groups * own.out_channels // was.out_channels, 1) if kept is None else kept
        own.in_channels = own.weight.shape[1] * own.groups
    elif isinstance(part, _NormBase) and own.affine:
        own.num_features = own.weight.shape[0]
    elif isinstance(part, nn.GroupNorm) and (own.affine or name in axes.sites):
        channels = own.weight.shape[0] if own.affine else axes.length(axes.sites[name][1], sizes)
        own.num_groups = max(channels // (was.num_channels // was.num_groups), 1)
        own.num_channels = channels
    elif isinstance(part, nn.LayerNorm | nn.RMSNorm):
        if getattr(own, "weight", None) is not None:
            own.normalized_shape = tuple(own.weight.shape)
        elif name in axes.sites:
            last = axes.sites[name][-len(own.normalized_shape) :]
            own.normalized_shape = tuple(axes.length(axis, sizes) for axis in last)
    elif isinstance(part, nn.Embedding | nn.EmbeddingBag):
        own.embedding_dim = own.weight.shape[1]
    elif isinstance(part, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(own.mode, 1)
        own.input_size = own.weight_ih_l0.shape[1]
        own.hidden_size = own.weight_ih_l0.shape[0] // gates
        if own.proj_size:
            own.proj_size = own.weight_hh_l0.shape[1]
    elif isinstance(part, nn.RNNCellBase):
        own.input_size, own.hidden_size = own.weight_ih.shape[1], own.weight_hh.shape[1]
    elif isinstance(part, nn.MultiheadAttention):
        own.embed_dim = own.out_proj.weight.shape[0]
        own.num_heads = max(own.embed_dim // was.head_dim, 1)
        packed = own.in_proj_weight is not None
        own.kdim = own.embed_dim if packed else own.k_proj_weight.shape[1]
        own.vdim = own.embed_dim if packed else own.v_proj_weight.shape[1]
    elif isinstance(part, nn.PReLU):
        own.num_parameters = own.weight.shape[0]
    elif isinstance(part, nn.Transformer) and hasattr(own.encoder, "layers"):
        own.d_model = own.encoder.layers[0].linear1.weight.shape[1]
        own.nhead = max(own.d_model // (was.d_model // was.nhead), 1)


def _own_numbers(small: nn.Module, axes: Axes, sizes: Sequence[int], problem: Problem) -> nn.Module:
    """Change whole numbers of the user's modules, layer by layer, until the smaller module has no problem."""
    for _ in range(8):
        found = problem(small)
        if found is None:
            return small
        layer = found[0]
        changed = None
        for place in _above(layer):
            for attempt in _attempts(small.get_submodule(place), place, axes, sizes):
                trial = copy.deepcopy(small)
                for attribute, value in attempt.items():
                    setattr(trial.get_submodule(place), attribute, value)
                after = problem(trial)
                if after is None or after[0] != layer:
                    changed = trial
                    break
            if changed is not None:
                break
        if changed is None:
            return small
        small = changed
    return small


def _above(layer: str) -> Iterator[str]:
    """A layer, and those it lies in."""
    while layer:
        yield layer
        layer = layer.rpartition(".")[0]
    yield ""


def _attempts(part: nn.Module, place: str, axes: Axes, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What the numbers of a module may be in a smaller one: each that is the size of a cut axis inside it."""
    if type(part).__module__.startswith("torch.nn."):
        return
    smaller: dict[int, set[int]] = {}
    full = [group.size for group in axes.groups]
    dot = place and place + "."
    for name, all_ in axes.params.items():
        if not name.startswith(dot):
            continue
        for axis in all_:
            smaller.setdefault(axes.length(axis, full), set()).add(axes.length(axis, sizes))
            for segment in axis:
                for g in segment:
                    smaller.setdefault(full[g], set()).add(sizes[g])
    found: dict[str, list[int]] = {}
    for attribute, value in vars(part).items():
        if type(value) is int and attribute != "training":
            fitting = sorted(n for n in smaller.get(value, ()) if n != value)
            if fitting:
                found[attribute] = fitting
    for attribute, values in found.items():
        for value in values:
            yield {attribute: value}
    if len(found) > 1:
        yield {attribute: values[0] for attribute, values in found.items()}
