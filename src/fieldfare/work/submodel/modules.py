"""The channel groups of an `nn.Module`, and smaller modules of the same layers.

Here: watching a forward pass (`trace`) and checking what came of it on a module of half the width. Not here: the rules
of operations. Invariant: whatever `of_module` says may be cut, has been computed smaller once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout
from fieldfare.work import torch_resident as resident_
from fieldfare.work.submodel.axes import INPUT, OUTPUT, Axes, settled
from fieldfare.work.submodel.groups import Axis, Groups
from fieldfare.work.submodel.resize import resized

if TYPE_CHECKING:
    from torch import nn

_ATTEMPTS = 12


def of_module(module: nn.Module, example: tuple[Any, ...]) -> Axes:
    """The groups of a module, from a forward pass on `example`, an array or tensor per argument."""
    inputs = tuple(_tensor(one) for one in example)
    whole: dict[str, str] = {}
    for _ in range(_ATTEMPTS):
        found = _watched(module, inputs, whole)
        problem = _problem(module, found, inputs)
        if problem is None:
            return found
        layer, why = problem
        if layer in whole or not layer:
            whole[""] = why
            if layer in whole and layer == "" and not found.cuttable:
                return found
        whole[layer] = why
    raise UsageError(f"no smaller {type(module).__name__} can be made: {why}")


def _tensor(one: Any) -> Any:
    import torch

    if isinstance(one, torch.Tensor):
        return one
    tensor = torch.as_tensor(one)
    return tensor.to(torch.int64 if tensor.dtype in (torch.uint8, torch.int32, torch.int64) else torch.float32)


def _watched(module: nn.Module, inputs: tuple[Any, ...], whole: dict[str, str]) -> Axes:
    """The groups seen in one pass; the layers named in `whole` keep all their channels."""
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
            raise UsageError(
                f"the module could not take the example, in {trace.failed or 'forward'}: {said}"
            ) from error
        for tensor in _tensors(out):
            for axis in trace.axes(tensor):
                groups.fix_axis(axis, OUTPUT)
    _layers_alike(module, axes, groups)
    for layer, why in whole.items():
        for name in tensors:
            if not layer or name.startswith(layer + "."):
                for axis in axes[name]:
                    groups.fix_axis(axis, why)
    fixed = {name: one for name, one in axes.items() if name not in trained}
    return settled(groups, resident_.layout_of(module), {n: axes[n] for n in trained}, fixed, trace.sites)


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
    """(layer, why) where a module of half the width cannot be computed; None where it can."""
    from fieldfare.work.submodel.trace import Trace, taken_apart

    if not found.cuttable:
        return None
    names = {name: type(part).__name__ for name, part in module.named_modules()}
    for rate in (0.5, 0.13):
        small = resized(module, found, found.sizes(rate), inputs).train()
        watch = Trace(Groups())
        with taken_apart():
            whole = [tuple(t.shape) for t in _tensors(module(*inputs))]
            try:
                with watch.following(small):
                    shapes = [tuple(t.shape) for t in _tensors(small(*inputs))]
            except Exception as error:
                said = str(error).splitlines()[0] if str(error) else type(error).__name__
                return watch.failed, (
                    f"{watch.failed or 'the net'} ({names[watch.failed]}) does not follow its parameters: {said}"
                )
        if shapes != whole:
            return "", f"the output of a smaller net has shape {shapes}, not {whole}"
    return None


def of_layout(module: nn.Module, axes: Axes, layout: Layout, inputs: tuple[Any, ...]) -> nn.Module:
    """The module of a sub-model's layout; layers that the layout has no parameters of must be behind an exit."""
    sizes = axes.sizes_of(layout)
    if len(layout.names) < len(axes.layout.names):
        if not hasattr(module, "shallow"):
            raise UsageError(
                "a sub-model lacks layers of the net, and this net has no exits: use fieldfare.exits(...)."
            )
        module = module.shallow(layout.names)
    small = resized(module, axes, sizes, inputs)
    if resident_.layout_of(small) != layout:
        raise UsageError(
            f"a model of {layout.size} parameters came to a net of {axes.layout.size} that has no such sub-model: send "
            "the model of this net's init(), or a view of this net."
        )
    return small
