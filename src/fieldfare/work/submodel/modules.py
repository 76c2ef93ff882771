"""The channel groups of an `nn.Module`, and smaller modules of the same layers.

Here: watching a forward pass (`trace`) and checking what came of it on a module of half the width. Not here: the rules
of operations. Invariant: whatever `of_module` says may be cut, has been computed smaller once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout
from fieldfare.work import torch_resident as resident_
from fieldfare.work.submodel.axes import INPUT, OUTPUT, PLAIN, Axes, settled
from fieldfare.work.submodel.groups import Axis, Groups
from fieldfare.work.submodel.resize import resized

if TYPE_CHECKING:
    from torch import nn


class Unfit(UsageError):
    """A module cannot be computed on the example."""

    def __init__(self, layer: str, said: str) -> None:
        super().__init__(f"the module could not take the example, in {layer or 'forward'}: {said}")
        self.layer, self.said = layer, said


def of_module(module: nn.Module, example: tuple[Any, ...]) -> Axes:
    """The groups of a module, from a forward pass on `example`, an array or tensor per argument."""
    inputs = tuple(_tensor(one) for one in example)
    whole: dict[str, str] = {}
    alike: set[str] = set()
    while True:
        found = _watched(module, inputs, whole, alike)
        problem = _problem(module, found, inputs)
        if problem is None:
            return found
        layer, why = problem
        if layer not in alike:  # widths that forward takes from one another, as in view(b, t, heads, width // heads)
            alike.add(layer)
            continue
        while layer in whole and layer:
            layer = layer.rpartition(".")[0]
        whole[layer] = why


def _tensor(one: Any) -> Any:
    import torch

    if isinstance(one, torch.Tensor):
        return one
    tensor = torch.as_tensor(one)
    return tensor.to(torch.int64 if tensor.dtype in (torch.uint8, torch.int32, torch.int64) else torch.float32)


def _watched(module: nn.Module, inputs: tuple[Any, ...], whole: Mapping[str, str], alike: Collection[str] = ()) -> Axes:
    """The groups seen in one pass; layers in `whole` keep all channels, those in `alike` have one for equal widths."""
    import copy

    from fieldfare.work.submodel.trace import Trace, taken_apart

    module = copy.deepcopy(module).train()
    groups = Groups()
    trace = Trace(groups)
    trained = dict(resident_.trained(module))
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    axes: dict[str, list[Axis]] = {}
    for name, tensor in tensors.items():
        axes[name] = [groups.axis(n) for n in tensor.shape]
        trace.put(tensor, axes[name])
    for tensor in inputs:
        trace.put(tensor, [groups.axis(n, INPUT) for n in tensor.shape])
    with taken_apart(), trace.following(module):
        try:
            with trace:
                out = module(*inputs)
        except Exception as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Unfit(trace.where[-1], said) from error
        for tensor in _tensors(out):
            for axis in trace.axes(tensor):
                groups.fix_axis(axis, OUTPUT)
    _layers_alike(module, axes, groups)
    for layer in sorted(alike):
        widths: dict[int, Axis] = {}
        for axis in (axis for name in trained if _inside(name, layer) for axis in axes[name]):
            if any(groups.why(g) is None for segment in groups.leaves(axis) for g in segment):
                groups.tie(widths.setdefault(groups.length(axis), axis), axis, "one width in one layer")
    for layer, why in whole.items():
        for name in tensors:
            if _inside(name, layer):
                for axis in axes[name]:
                    groups.fix_axis(axis, why)
    fixed = {name: one for name, one in axes.items() if name not in trained}
    return settled(groups, resident_.layout_of(module), {n: axes[n] for n in trained}, fixed, trace.sites)


def _inside(name: str, layer: str) -> bool:
    """Whether a parameter is one of a layer, or of those in it."""
    return not layer or name.startswith(layer + ".")


def _tensors(out: Any) -> list[Any]:
    import torch

    if isinstance(out, torch.Tensor):
        return [out]
    if isinstance(out, dict):
        out = list(out.values())
    return [t for one in out for t in _tensors(one)] if isinstance(out, list | tuple) else []


def _layers_alike(module: nn.Module, axes: dict[str, list[Axis]], groups: Groups) -> None:
    """What torch's own layers ask beyond their arithmetic: one hidden size, one embedding width."""
    from torch import nn

    for name, part in module.named_modules():
        dot = name and name + "."
        if isinstance(part, nn.RNNBase):
            hidden = [axes[dot + p][1] for p, _ in part.named_parameters() if p.startswith("weight_hh")]
            for other in hidden[1:]:
                groups.tie(hidden[0], other, "one hidden size for all layers")
        elif isinstance(part, nn.MultiheadAttention):
            out = axes[dot + "out_proj.weight"]
            groups.tie(out[0], out[1], "one width for all heads")
            query = axes[dot + ("in_proj_weight" if part.in_proj_weight is not None else "q_proj_weight")]
            groups.tie(out[0], query[1], "one width for all heads")


def _problem(module: nn.Module, found: Axes, inputs: tuple[Any, ...]) -> tuple[str, str] | None:
    """(layer, why) where a module of half the width, or less, cannot be made; None where it can."""
    for rate in (0.5, 0.13) if found.cuttable else ():
        sizes = found.sizes(rate)
        small = smaller(module, found, sizes, inputs)
        if (said := _disagreement(small, found, sizes, inputs)) is not None:
            return said
    return None


def smaller(module: nn.Module, axes: Axes, sizes: Sequence[int], inputs: tuple[Any, ...]) -> nn.Module:
    """The module that keeps the first `sizes[g]` channels of every group, the numbers it holds changed with them."""
    return resized(module, axes, sizes, lambda small: _disagreement(small, axes, sizes, inputs))


def _disagreement(
    small: nn.Module, axes: Axes, sizes: Sequence[int], inputs: tuple[Any, ...]
) -> tuple[str, str] | None:
    """(layer, why) where a smaller module cannot be computed, or takes its channels apart in another way."""
    try:
        own = _watched(small, inputs, {})
    except Unfit as error:
        kind = type(small.get_submodule(error.layer)).__name__
        return error.layer, f"{error.layer or 'the net'} ({kind}) does not follow its parameters: {error.said}"
    all_ = {**axes.params, **axes.fixed}
    for name, has in (*own.params.items(), *own.fixed.items()):
        for expected, seen in zip(all_[name], has, strict=True):
            cuts = _cuts(expected, sizes)
            if not _cuts(seen, [group.size for group in own.groups]) <= cuts:
                layer = name.rpartition(".")[0]
                return layer, f"channels of {layer or name} are taken apart by a number that forward holds"
            if any(axes.groups[g].whole is None and sizes[g] > 1 for segment in expected for g in segment):
                reasons = [own.groups[g].whole for segment in seen for g in segment]
                if reasons and None not in reasons and (why := [one for one in reasons if one not in PLAIN]):
                    layer = name.rpartition(".")[0]
                    return layer, f"channels of {layer or name} meet others where there are fewer: {why[0]}"
    return None


def _cuts(axis: Axis, sizes: Sequence[int]) -> set[int]:
    """Where an axis is taken apart: places between segments, and those between the first two blocks of a segment."""
    found: set[int] = set()
    start = 0
    for segment in axis:
        inner = 1
        for g in reversed(segment):
            inner *= sizes[g]
            found.add(start + inner)
        start += inner
    return found


def of_layout(module: nn.Module, axes: Axes, layout: Layout, inputs: tuple[Any, ...]) -> nn.Module:
    """The module of a sub-model's layout; layers that the layout has no parameters of must be behind an exit."""
    sizes = axes.sizes_of(layout)
    if len(layout.names) < len(axes.layout.names):
        if not hasattr(module, "shallow"):
            raise UsageError(
                "a sub-model lacks layers of the net, and this net has no exits: use fieldfare.exits(...)."
            )
        module = module.shallow(layout.names)
    small = smaller(module, axes, sizes, inputs)
    for name, part in small.named_modules():
        if 0 < getattr(part, "proj_size", 0) >= getattr(part, "hidden_size", 0):
            raise UsageError(
                f"a level leaves {name or 'the LSTM'} a projection of {part.proj_size} of {part.hidden_size} hidden "
                "channels, and torch wants fewer: use larger levels."
            )
    if resident_.layout_of(small) != layout:
        raise UsageError(
            f"a model of {layout.size} parameters came to a net of {axes.layout.size} that has no such sub-model: send "
            "the model of this net's init(), or a view of this net."
        )
    return small
