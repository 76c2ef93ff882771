"""Which dimensions of a torch net are tied: one forward pass watched, operation by operation.

Here: the rules of torch's own operations (after its composites are taken apart, so that an LSTM or an attention layer
is a few products and sums). Not here: the algebra of axes (`groups`) and what is done with them (`axes`). Invariant:
an operation without a rule keeps whole every channel that reaches it, and says so; the module is not changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tag, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from fieldfare.work.submodel.groups import Axis, Groups, chained

if TYPE_CHECKING:
    from torch import OpOverload  # type: ignore[attr-defined]

Rule = Callable[["Trace", "Call"], Any]
_RULES: dict[str, Rule] = {}


class Call:
    """One operation: its arguments by name, its result, and the axes of those that are tensors."""

    def __init__(self, trace: Trace, func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        self.trace, self.func, self.out = trace, func, out
        self.values: dict[str, Any] = {}
        for at, one in enumerate(func._schema.arguments):
            self.values[one.name] = (
                args[at] if at < len(args) and not one.kwarg_only else kwargs.get(one.name, one.default_value)
            )

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    def axes(self, name: str) -> list[Axis]:
        return self.trace.axes(self.values[name])

    @property
    def name(self) -> str:
        """Without the namespace; an operation in place, or on a copy, goes by the name of the plain one."""
        name = self.func._schema.name.rpartition("::")[2]
        return name.removesuffix("_copy").removesuffix("_") if name != "_to_copy" else name

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        found: list[Tensor] = []
        for value in self.values.values():
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, Tensor):
                    found.append(one)
        return found

    @property
    def outs(self) -> list[Tensor]:
        return [one for one in (self.out if isinstance(self.out, list | tuple) else (self.out,)) if one is not None]


class Trace(TorchDispatchMode):
    """The axes of every tensor of a forward pass; `sites`: those of what each norm layer takes, by name."""

    def __init__(self, groups: Groups) -> None:
        super().__init__()
        self.groups, self.where = groups, [""]
        self._axes: Any = WeakIdKeyDictionary()
        self.sites: dict[str, tuple[Axis, ...]] = {}

    def axes(self, tensor: Tensor) -> list[Axis]:
        """Axes of a tensor, one per dimension; whole where nothing is known of them."""
        found = self._axes.get(tensor)
        if found is None:
            found = [self.groups.axis(n, "a constant of the net") for n in tensor.shape]
            self._axes[tensor] = found
        return found

    def put(self, tensor: Tensor, axes: Sequence[Axis]) -> None:
        assert len(axes) == tensor.dim(), f"{len(axes)} axes for a tensor of shape {tuple(tensor.shape)}"
        self._axes[tensor] = list(axes)

    def fixed(self, shape: Sequence[int], why: str) -> list[Axis]:
        return [self.groups.axis(n, why) for n in shape]

    def place(self) -> str:
        """Why channels that an operation takes as places must stay whole."""
        return f"taken as places in {self.where[-1] or 'the net'}"

    def tie(self, a: Axis, b: Axis) -> None:
        self.groups.tie(a, b, f"dimensions of different structure meet in {self.where[-1] or 'the net'}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace not in ("aten", "prims"):
            self._whole(Call(self, func, args, kwargs, out))
            return out
        call = Call(self, func, args, kwargs, out)
        rule = _RULES.get(call.name)
        if rule is not None:
            rule(self, call)
        elif Tag.pointwise in func.tags or call.name in _POINTWISE:
            _pointwise(self, call)
        else:
            self._whole(call)
        return out

    def _whole(self, call: Call) -> None:
        why = f"{call.name} in {self.where[-1] or 'the net'} has no rule to be cut by"
        for tensor in call.tensors:
            for axis in self.axes(tensor):
                self.groups.fix_axis(axis, why)
        for tensor in call.outs:
            if isinstance(tensor, Tensor) and not any(tensor is one for one in call.tensors):
                self.put(tensor, self.fixed(tensor.shape, why))

    @contextmanager
    def following(self, module: nn.Module) -> Iterator[None]:
        """Inside, `where` names the layer that is computed."""
        names = {id(part): name for name, part in module.named_modules()}

        def enter(part: nn.Module, args: Any) -> None:
            name = names[id(part)]
            self.where.append(name)
            if args and isinstance(args[0], Tensor) and "Norm" in type(part).__name__:
                self.sites[name] = tuple(self.axes(args[0]))

        def leave(part: nn.Module, args: Any, out: Any) -> None:
            self.where.pop()

        handles = [h for part in module.modules() for h in (
            part.register_forward_pre_hook(enter), part.register_forward_hook(leave))]  # fmt: skip
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def taken_apart() -> Iterator[None]:
    """Inside, torch computes recurrent and attention layers as products and sums, on one thread, without a graph."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from fieldfare.work.torch_resident import one_thread, own_randomness

    with warnings.catch_warnings(), one_thread(), own_randomness() as reseed, torch.no_grad():
        warnings.simplefilter("ignore")
        reseed(0)
        with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
            yield


def rule(*names: str) -> Callable[[Rule], Rule]:
    def known(function: Rule) -> Rule:
        for name in names:
            _RULES[name] = function
        return function

    return known


_POINTWISE = frozenset((
    "native_dropout", "copy", "fill", "zero", "clone", "_to_copy", "detach", "lift_fresh", "alias", "dropout", "where",
    "masked_fill", "triu", "tril", "nan_to_num", "contiguous", "lerp", "bernoulli", "_prelu_kernel", "resize", "normal",
    "uniform", "hardswish", "hardsigmoid", "hardtanh", "mish", "silu", "elu", "celu", "selu", "gelu", "softplus",
    "softshrink", "hardshrink", "leaky_relu", "rrelu_with_noise", "threshold", "log_sigmoid_forward",
))  # fmt: skip


def _pointwise(trace: Trace, call: Call) -> None:
    """Elementwise with broadcasting: dimensions meet from the last on."""
    tensors = call.tensors
    for out in call.outs:
        if not isinstance(out, Tensor):
            continue
        made: list[Axis] = []
        for back in range(out.dim(), 0, -1):
            size, met = out.shape[-back], None
            for tensor in tensors:
                if tensor.dim() < back or (tensor.shape[-back] == 1 and size != 1):
                    continue
                axis = trace.axes(tensor)[-back]
                if met is None:
                    met = axis
                elif size > 1:
                    trace.tie(met, axis)
            made.append(trace.groups.axis(size, "made of nothing") if met is None else met)
        if call.name in ("triu", "tril"):
            trace.groups.fix_axis(made[-1], "a triangle")
            trace.groups.fix_axis(made[-2], "a triangle")
        trace.put(out, made)


@rule("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_permuted")
def _like(trace: Trace, call: Call) -> None:
    trace.put(call.out, trace.axes(call.tensors[0]))


@rule(
    "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "scalar_tensor", "empty_strided"
)
def _uniform(trace: Trace, call: Call) -> None:
    """Alike everywhere, so of any size."""
    trace.put(call.out, [trace.groups.axis(n) for n in call.out.shape])


@rule("mm", "bmm", "dot", "mv")
def _product(trace: Trace, call: Call) -> None:
    a, b = (trace.axes(one) for one in call.tensors[:2])
    trace.tie(a[-1], b[-2] if len(b) > 1 else b[0])
    if call.name == "bmm":
        trace.tie(a[0], b[0])
    trace.put(call.out, [*a[:-1], *b[-1:]] if len(b) > 1 else a[:-1])


@rule("addmm", "baddbmm", "addmv")
def _add_product(trace: Trace, call: Call) -> None:
    beside, a, b = (trace.axes(one) for one in call.tensors[:3])
    trace.tie(a[-1], b[-2] if len(b) > 1 else b[0])
    if call.name == "baddbmm":
        trace.tie(a[0], b[0])
    out = [*a[:-1], *b[-1:]] if len(b) > 1 else a[:-1]
    for back, axis in enumerate(reversed(beside), 1):
        if trace.groups.length(axis) > 1:
            trace.tie(out[-back], axis)
    trace.put(call.out, out)


@rule("linear")
def _linear(trace: Trace, call: Call) -> None:
    x, w = call.axes("input"), call.axes("weight")
    trace.tie(x[-1], w[1])
    if call["bias"] is not None:
        trace.tie(w[0], call.axes("bias")[0])
    trace.put(call.out, [*x[:-1], w[0]])


@rule("convolution", "_convolution", "mkldnn_convolution")
def _convolution(trace: Trace, call: Call) -> None:
    x, w, groups = call.axes("input"), call.axes("weight"), trace.groups
    many = call["groups"]
    turned = bool(call["transposed"])
    inside, outside = (w[0], w[1]) if turned else (w[1], w[0])
    if many > 1 and not turned:
        c, o = groups.length(x[1]), groups.length(outside)
        blocks, within = groups._refold([x[1]], (many, c // many))
        trace.tie(within, inside)
        again, _ = groups._refold([outside], (many, o // many))
        trace.tie(blocks, again)
    elif many > 1:
        for axis in (x[1], inside, outside):
            groups.fix_axis(axis, "a transposed convolution in groups")
        outside = groups.axis(call.out.shape[1], "a transposed convolution in groups")
    else:
        trace.tie(x[1], inside)
    if call["bias"] is not None:
        trace.tie(outside, call.axes("bias")[0])
    for axis in w[2:]:
        groups.fix_axis(axis, "places, not channels")
    for axis in x[2:]:
        groups.fix_axis(axis, trace.place())
    trace.put(call.out, [x[0], outside, *trace.fixed(call.out.shape[2:], "places, not channels")])


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional", "cudnn_batch_norm",
    "_batch_norm_with_update", "_batch_norm_no_update", "native_group_norm", "_native_batch_norm_legit_no_training",
)  # fmt: skip
def _channel_norm(trace: Trace, call: Call) -> None:
    x = call.axes("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call[name] is not None:
            trace.tie(x[1], call.axes(name)[0])
    if "group" in call.name and call["group"]:
        trace.groups.together(x[1], trace.groups.length(x[1]) // call["group"])
    trace.put(call.out[0], x)
    for out in call.outs[1:]:
        trace.put(out, [x[1]] if out.dim() == 1 else trace.fixed(out.shape, "statistics"))


@rule("native_layer_norm", "_fused_rms_norm")
def _layer_norm(trace: Trace, call: Call) -> None:
    x = call.axes("input")
    for name in ("weight", "bias"):
        if call[name] is not None:
            for mine, theirs in zip(reversed(x), reversed(call.axes(name)), strict=False):
                trace.tie(mine, theirs)
    trace.put(call.out[0], x)
    for out in call.outs[1:]:
        trace.put(out, trace.fixed(out.shape, "statistics"))


@rule("embedding")
def _embedding(trace: Trace, call: Call) -> None:
    rows, width = call.axes("weight")
    trace.groups.fix_axis(rows, "rows of an embedding, chosen by number")
    trace.put(call.out, [*call.axes("indices"), width])


@rule("_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(trace: Trace, call: Call) -> None:
    rows, width = call.axes("weight")
    trace.groups.fix_axis(rows, "rows of an embedding, chosen by number")
    trace.put(call.outs[0], [*trace.fixed(call.outs[0].shape[:1], "bags"), width])
    for out in call.outs[1:]:
        trace.put(out, trace.fixed(out.shape, "bags"))


@rule("glu")
def _glu(trace: Trace, call: Call) -> None:
    x, made = call.tensors[0], list(trace.axes(call.tensors[0]))
    dim, half = (call["dim"] if call["dim"] is not None else -1) % x.dim(), 0
    half = x.shape[dim] // 2
    first, second = trace.groups.part(made[dim], 0, half), trace.groups.part(made[dim], half, 2 * half)
    trace.tie(first, second)
    made[dim] = first
    trace.put(call.out, made)


@rule("repeat")
def _repeat(trace: Trace, call: Call) -> None:
    axes, times = trace.axes(call.tensors[0]), list(call["repeats"])
    made = [trace.groups.axis(n, "repeated") for n in call.out.shape[: len(times) - len(axes)]]
    for axis, n in zip(axes, times[len(times) - len(axes) :], strict=True):
        made.append(axis if n == 1 else trace.groups.times(trace.groups.axis(n, "repeated"), axis))
    trace.put(call.out, made)


@rule("pixel_shuffle", "pixel_unshuffle")
def _pixels(trace: Trace, call: Call) -> None:
    """Channels are (channels x places of a block) on one side of it."""
    x, out, groups = call.tensors[0], call.out, trace.groups
    axes = trace.axes(x)
    if call.name == "pixel_shuffle":
        channels, _ = groups.reshape([axes[-3]], (out.shape[-3], x.shape[-3] // out.shape[-3]))
    else:
        channels = groups.times(axes[-3], groups.axis(out.shape[-3] // x.shape[-3], "places, not channels"))
    for axis in axes[-2:]:
        groups.fix_axis(axis, trace.place())
    trace.put(out, [*axes[:-3], channels, *trace.fixed(out.shape[-2:], "places, not channels")])


@rule("_weight_norm_interface", "_weight_norm")
def _weight_norm(trace: Trace, call: Call) -> None:
    dim, (v, g) = call["dim"], (trace.axes(one) for one in call.tensors[:2])
    trace.tie(v[dim], g[dim] if len(g) == len(v) else g[0])
    trace.put(call.outs[0], v)
    for out in call.outs[1:]:
        trace.put(out, g)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "as_strided", "squeeze", "unsqueeze", "flatten", "unflatten")
def _view(trace: Trace, call: Call) -> None:
    x = call.tensors[0]
    if call.name == "as_strided" or x.numel() == 0:
        trace._whole(call)
        return
    axes = [axis for axis in trace.axes(x) if trace.groups.length(axis) != 1]
    wide = [n for n in call.out.shape if n != 1]
    made = iter(trace.groups.reshape(axes, wide))
    trace.put(call.out, [trace.groups.axis(1) if n == 1 else next(made) for n in call.out.shape])


@rule("t", "transpose", "permute", "numpy_T", "movedim")
def _turned(trace: Trace, call: Call) -> None:
    axes = trace.axes(call.tensors[0])
    if call.name == "permute":
        trace.put(call.out, [axes[d] for d in call["dims"]])
    elif call.name == "t":
        trace.put(call.out, axes[::-1])
    elif call.name == "transpose":
        axes, a, b = list(axes), call["dim0"], call["dim1"]
        if axes:
            axes[a], axes[b] = axes[b], axes[a]
        trace.put(call.out, axes)
    else:
        trace._whole(call)


@rule("expand", "expand_as")
def _expand(trace: Trace, call: Call) -> None:
    x, axes = call.tensors[0], trace.axes(call.tensors[0])
    more = call.out.dim() - x.dim()
    made = trace.fixed(call.out.shape[:more], "repeated")
    for size, axis, n in zip(call.out.shape[more:], axes, x.shape, strict=True):
        made.append(axis if n == size else trace.groups.axis(size))
    trace.put(call.out, made)


@rule("slice", "narrow")
def _slice(trace: Trace, call: Call) -> None:
    x, axes = call.tensors[0], list(trace.axes(call.tensors[0]))
    dim = (call["dim"] or 0) % x.dim()
    size, step = x.shape[dim], call["step"] or 1
    start = call["start"] or 0
    start = min(max(start + size if start < 0 else start, 0), size)
    if step != 1 and call.out.shape[dim] != size:
        trace.groups.fix_axis(axes[dim], "every so many channels are taken")
        axes[dim] = trace.groups.axis(call.out.shape[dim], "every so many channels are taken")
    elif call.out.shape[dim] != size:
        axes[dim] = trace.groups.part(axes[dim], start, start + call.out.shape[dim])
    trace.put(call.out, axes)


@rule("select")
def _select(trace: Trace, call: Call) -> None:
    axes = list(trace.axes(call.tensors[0]))
    trace.groups.fix_axis(axes.pop(call["dim"]), "one of it is chosen by number")
    trace.put(call.out, axes)


@rule("unbind")
def _unbind(trace: Trace, call: Call) -> None:
    axes = list(trace.axes(call.tensors[0]))
    trace.groups.fix_axis(axes.pop(call["dim"] or 0), "taken one by one")
    for out in call.outs:
        trace.put(out, axes)


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "tensor_split")
def _split(trace: Trace, call: Call) -> None:
    x, axes = call.tensors[0], trace.axes(call.tensors[0])
    dim = (call["dim"] or 0) % x.dim()
    at = 0
    for out in call.outs:
        made = list(axes)
        made[dim] = trace.groups.part(axes[dim], at, at + out.shape[dim])
        at += out.shape[dim]
        trace.put(out, made)


@rule("cat")
def _cat(trace: Trace, call: Call) -> None:
    tensors = [one for one in call.tensors if one.dim() == call.out.dim()]
    made = list(trace.axes(tensors[0]))
    dim = (call["dim"] or 0) % call.out.dim()
    for other in tensors[1:]:
        for at, (mine, theirs) in enumerate(zip(made, trace.axes(other), strict=True)):
            if at != dim:
                trace.tie(mine, theirs)
    made[dim] = chained(trace.axes(one)[dim] for one in tensors)
    trace.put(call.out, made)


@rule("stack")
def _stack(trace: Trace, call: Call) -> None:
    first = list(trace.axes(call.tensors[0]))
    for other in call.tensors[1:]:
        for mine, theirs in zip(first, trace.axes(other), strict=True):
            trace.tie(mine, theirs)
    first.insert(call["dim"] % call.out.dim(), trace.groups.axis(len(call.tensors), "stacked"))
    trace.put(call.out, first)


@rule(
    "sum", "mean", "amax", "amin", "var", "std", "norm", "var_mean", "logsumexp", "linalg_vector_norm", "argmax", "max",
    "min", "prod", "any", "all", "std_mean",
)  # fmt: skip
def _reduced(trace: Trace, call: Call) -> None:
    x = call.tensors[0]
    if len(call.tensors) > 1:
        trace._whole(call)
        return
    dims = call["dim"]
    dims = range(x.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % x.dim() for d in dims} if x.dim() else set[int]()
    keep = bool(call["keepdim"])
    axes = trace.axes(x)
    if call.name in ("argmax", "max", "min"):
        for d in gone:
            trace.groups.fix_axis(axes[d], "its places are compared")
    made = [trace.groups.axis(1) if d in gone else axis for d, axis in enumerate(axes) if keep or d not in gone]
    for out in call.outs:
        trace.put(out, made)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax")
def _softmax(trace: Trace, call: Call) -> None:
    trace.put(call.out, trace.axes(call.tensors[0]))


@rule("flip", "roll", "cumsum", "sort")
def _ordered(trace: Trace, call: Call) -> None:
    axes = trace.axes(call.tensors[0])
    dims = call["dims"] if call["dims"] is not None else call["dim"]
    if call.name == "roll" and not dims:
        trace._whole(call)
        return
    for d in dims if isinstance(dims, list | tuple) else [dims]:
        trace.groups.fix_axis(axes[d], "its order counts")
    for out in call.outs:
        trace.put(out, axes)


@rule("_pack_padded_sequence")
def _packed(trace: Trace, call: Call) -> None:
    x = call.axes("input")
    trace.put(call.outs[0], [*trace.fixed(call.outs[0].shape[:1], "places"), x[-1]])
    trace.put(call.outs[1], trace.fixed(call.outs[1].shape, "places"))


@rule(
    "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d", "avg_pool1d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_bilinear2d", "upsample_bicubic2d", "reflection_pad1d", "reflection_pad2d", "replication_pad1d",
    "replication_pad2d", "max_pool2d", "adaptive_avg_pool2d", "mkldnn_max_pool2d", "constant_pad_nd", "pad",
    "adaptive_max_pool3d", "upsample_linear1d", "upsample_nearest3d", "upsample_trilinear3d", "reflection_pad3d",
    "replication_pad3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa",
)  # fmt: skip
def _places(trace: Trace, call: Call) -> None:
    """What changes places keeps channels; a padded channel dimension is whole."""
    x, axes = call.tensors[0], trace.axes(call.tensors[0])
    for out in call.outs:
        made: list[Axis] = []
        for d, (axis, size) in enumerate(zip(axes, out.shape, strict=True)):
            if d < 2 and size == x.shape[d] and x.dim() > 2:
                made.append(axis)
            else:
                trace.groups.fix_axis(axis, trace.place())
                made.append(trace.groups.axis(size, "places, not channels"))
        trace.put(out, made)
