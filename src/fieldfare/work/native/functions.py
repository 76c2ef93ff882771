"""What the nodes of a traced graph mean to the planner: torch's functions, methods, and layers.

Here: one small method for each. Not here: their names (`names`), the graph (`trace`), the plan (`build`). Invariant: a
node is read with all its arguments, or refused; what was changed in place is not read again as it was before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from fieldfare.work.native.axes import letters
from fieldfare.work.native.build import Builder, Tensor, Weight
from fieldfare.work.native.plan import NUMBERS, TOKENS, NoPlan
from fieldfare.work.native.trace import fixed


class Fixed:
    """A tensor that training does not change."""

    def __init__(self, value: Any) -> None:
        self.value = value


class States:
    """The last hidden states `[layers, B, H]` of a recurrent module: the sequence of each layer."""

    def __init__(self, layers: list[Tensor], time: int) -> None:
        self.layers, self.time = layers, time


class Logs:
    """Logarithms of a softmax over axis `dim` of `x`; for the loss alone."""

    def __init__(self, x: Tensor, dim: int) -> None:
        self.x, self.dim = x, dim


class Cells:
    """The cell states of an LSTM, which no op gives."""


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return int(first), int(second)


def _line(value: Any) -> tuple[int, int]:
    """A kernel (or stride) along a sequence."""
    return int(value[0] if isinstance(value, tuple | list) else value), 1


def _dims(dims: tuple[Any, ...]) -> list[int]:
    first = dims[0] if dims else ()
    return [*first] if isinstance(first, tuple | list) else [*dims]


_PARTS = ("select", "channels")
"""Ops whose outputs share their memory with their input in torch."""


class Reading:
    """Reads nodes into a builder; `places`: of every trained parameter, by id."""

    def __init__(
        self, built: Builder, root: nn.Module, places: dict[int, tuple[str, NDArray[np.int64]]], train: bool
    ) -> None:
        self.built, self.root, self.places, self.train = built, root, places, train
        self.known: dict[fx.Node, Any] = {}
        self._gone: dict[int, str] = {}
        self.what = ""

    # nodes

    def node(self, node: fx.Node) -> None:
        from fieldfare.work.native.names import FUNCTIONS, LAYERS, METHODS

        self.what = self._named(node)
        args, kwargs = (fx.node.map_arg(some, self._of) for some in (node.args, node.kwargs))
        if node.op == "get_attr":
            self.known[node] = self._attribute(node)
            return
        for one in _flat((args, kwargs)):
            if isinstance(one, Tensor):
                self.alive(one, self.what)
        if node.op == "call_module":
            part = self.root.get_submodule(str(node.target))
            read = LAYERS.get(type(part))
            if read is None:
                self.refuse("has no native form")
            try:
                out = read(self, part, *args, **kwargs)
            except TypeError as error:
                raise NoPlan(self.what, "is called in a way that has no native form") from error
        elif self._is_fixed(args, kwargs, node):
            out = node.meta["value"]
            out = Fixed(out) if isinstance(out, torch.Tensor) else out
        else:
            name = str(node.target) if node.op == "call_method" else FUNCTIONS.get(node.target, "")  # type: ignore[arg-type]
            read = METHODS.get(name)
            if read is None:
                self.refuse("has no native form")
            try:
                out = read(self, *args, **kwargs)
            except TypeError as error:
                raise NoPlan(self.what, "is called in a way that has no native form") from error
        value = node.meta["value"]
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float32:
            self.refuse(f"gives {value.dtype}, which has no native form")
        if isinstance(out, Tensor) and out.shape != tuple(value.shape):
            self.refuse(f"gives {tuple(value.shape)}, which the planner took for {out.shape}")
        self.known[node] = out

    def _of(self, node: fx.Node) -> Any:
        if node not in self.known:  # an attribute that was made while arguments were
            self.known[node] = self._attribute(node)
        return self.known[node]

    def _attribute(self, node: fx.Node) -> Any:
        value = fixed(self.root, node.target)
        found = self.places.get(id(value))
        return Weight(*found) if found is not None else Fixed(value)

    def _is_fixed(self, args: Any, kwargs: Any, node: fx.Node) -> bool:
        """Whether a node has neither data nor parameters in it, and so is a constant."""
        parts = [*_flat((args, kwargs))]
        if any(isinstance(one, Tensor | Weight | States | Cells | Turned | Logs) for one in parts):
            return False
        from fieldfare.work.native.names import IN_PLACE

        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        if node.meta["chance"]:
            self.refuse("draws random numbers of its own")
        if (name.endswith("_") and not name.endswith("__")) or name in IN_PLACE:
            self.refuse("changes a constant in place")
        return True

    def _named(self, node: fx.Node) -> str:
        if node.op == "call_module":
            part, path = self.root.get_submodule(str(node.target)), str(node.target).removeprefix("model").strip(".")
            home = "nn." if type(part).__module__.startswith("torch.nn.modules") else ""
            return f"{home}{type(part).__name__} {path!r}" if path else f"{home}{type(part).__name__}"
        if node.op == "call_method":
            return f"Tensor.{node.target}"
        name = getattr(node.target, "__name__", str(node.target))
        home = (getattr(node.target, "__module__", "") or "").replace("torch._C._nn", "torch.nn.functional")
        home = {
            "_operator": "operator",
            "torch.nn.functional": "F",
            "torch._C": "torch",
            "torch.functional": "torch",
        }.get(home, home or "torch")
        return f"{home.removeprefix('builtins')}.{name}".lstrip(".")

    def refuse(self, why: str) -> Any:
        raise NoPlan(self.what, why)

    def alive(self, x: Tensor, what: str) -> None:
        if x.source in self._gone:
            raise NoPlan(what, f"reads what {self._gone[x.source]} has changed in place")

    def over(self, x: Tensor, in_place: bool, out: Tensor) -> Tensor:
        """`out`, after which `x` is no more if it was changed in place."""
        if in_place and out.source != x.source:
            if any(op.kind in _PARTS and op.out == x.source for op in self.built.ops):
                self.refuse("changes a part of a tensor in place")
            gone = {x.source, self.built.settled(x).source}
            for op in self.built.ops:  # parts of it are changed, too
                if op.kind in _PARTS and op.ins[0] in gone:
                    gone.add(op.out)
            self._gone.update(dict.fromkeys(gone - {out.source}, self.what))
        return out

    def weight(self, one: Any) -> Weight:
        """A weight of one, trained or fixed."""
        if isinstance(one, Weight):
            return one
        if isinstance(one, torch.Tensor):
            found = self.places.get(id(one))
            return Weight(*found) if found is not None else self.weight(Fixed(one))
        if not isinstance(one, Fixed) or not one.value.is_floating_point():
            self.refuse("takes weights that are no parameter")
        return self.built.constant(one.value.detach().numpy())

    def optional(self, one: Any) -> Weight | None:
        return None if one is None else self.weight(one)

    def tensor(self, x: Any) -> Tensor:
        if not isinstance(x, Tensor):
            self.refuse(
                "computes with parameters or constants alone" if isinstance(x, Weight | Fixed) else "has no native form"
            )
        return x

    # elementwise

    def pointwise(self, kind: str, x: Any, in_place: bool = False, floats: tuple[float, ...] = ()) -> Tensor:
        x = self.tensor(x)
        return self.over(x, in_place, self.built.pointwise(kind, x, floats))

    def dropout(self, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        x = self.tensor(x)
        if p == 0.0 or (self.train and not training):
            return x
        if training and not self.train:
            self.refuse("drops in evaluation too")
        if p >= 1.0:
            self.refuse("drops everything")
        return self.over(x, inplace, self.built.dropout(x, p))

    def _channels(self, x: Tensor, other: Any) -> Weight:
        """`other` as one number for each channel of `x`."""
        x = self.built.settled(x)
        c = self.built.of(x).c
        if isinstance(other, bool | int | float):
            return self.built.constant(np.full(c, other))
        one = self.weight(other)
        if not self.built.along_channels(x, one.shape):
            self.refuse(f"broadcasts {one.shape} against {x.shape}, which has no native form but along channels")
        if one.places.size == 1 and c > 1:
            if one.trained:
                self.refuse("spreads one trained number over channels, which has no native form")
            one = Weight(one.name, np.repeat(one.places.reshape(-1), c), (*one.content, c))
        return one

    def add(self, a: Any, b: Any, *, alpha: float = 1, out: Any = None, in_place: bool = False) -> Tensor:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            b = b if alpha == 1 else self.built.affine(b, self._channels(b, float(alpha)), None)
            return self.over(a, in_place, self.built.both("add", a, b, self.what))
        if alpha != 1:
            self.refuse("has no native form with alpha")
        x, other = (a, b) if isinstance(a, Tensor) else (b, a)
        if isinstance(other, int | float) and other == 0:
            return self.tensor(x)
        if isinstance(other, Weight) and len(other.shape) > 1:
            from fieldfare.work.native.attention import offset

            if (made := offset(self, self.tensor(x), other)) is not None:
                return self.over(x, in_place, made)
        return self.over(x, in_place, self.built.affine(self.tensor(x), None, self._channels(x, other)))

    def mul(self, a: Any, b: Any, in_place: bool = False) -> Tensor:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return self.over(a, in_place, self.built.both("mul", a, b, self.what))
        x, other = (a, b) if isinstance(a, Tensor) else (b, a)
        if isinstance(other, int | float) and other == 1:
            return self.tensor(x)
        return self.over(x, in_place, self.built.affine(self.tensor(x), self._channels(x, other), None))

    def _times(self, x: Any, factor: float) -> Any:
        if isinstance(x, Weight):
            self.refuse("computes with a parameter before it is used")
        if isinstance(x, Fixed):
            return Fixed(x.value * factor)
        return self.built.affine(x, self._channels(x, factor), None) if isinstance(x, Tensor) else x * factor

    def sub(self, a: Any, b: Any, *, alpha: float = 1, in_place: bool = False) -> Tensor:
        return self.add(a, self._times(b, -alpha), in_place=in_place)

    def rsub(self, a: Any, b: Any) -> Tensor:
        return self.sub(b, a)

    def div(self, a: Any, b: Any, *, rounding_mode: str | None = None, in_place: bool = False) -> Tensor:
        zero = b == 0 if isinstance(b, int | float) else isinstance(b, Fixed) and not bool((b.value != 0).all())
        if rounding_mode is not None or not isinstance(b, Fixed | int | float) or zero:
            self.refuse("has a native form for a constant divisor alone")
        return self.mul(a, Fixed(1.0 / b.value.double()) if isinstance(b, Fixed) else 1.0 / b, in_place=in_place)

    def neg(self, x: Any) -> Tensor:
        return self._times(self.tensor(x), -1.0)

    def log_softmax(self, x: Any, dim: int | None = None, *rest: Any, **options: Any) -> Logs:
        x = self.tensor(x)
        if dim is None or rest or any(one is not None and name != "_stacklevel" for name, one in options.items()):
            self.refuse("has a native form at an axis that is named alone")
        return Logs(self.built.settled(x), dim % len(x.axes))

    # products

    def linear(self, x: Any, weight: Any, bias: Any = None) -> Tensor:
        turned = isinstance(weight, Turned)
        one = self.weight(weight.weight if isinstance(weight, Turned) else weight)
        return self.built.linear(self.tensor(x), one, self.optional(bias), self.what, turned=turned)

    def matmul(self, x: Any, weight: Any) -> Tensor:
        if not isinstance(x, Tensor) or not isinstance(weight, Weight | Fixed | Turned):
            self.refuse("of two activations has no native form")
        if isinstance(weight, Turned):
            return self.linear(x, weight.weight)
        one = self.weight(weight)
        if len(one.shape) != 2:
            self.refuse(f"with a weight of shape {one.shape} has no native form")
        return self.built.linear(x, one, None, self.what, turned=True)

    def conv(
        self, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1, flat: bool = False,
    ) -> Tensor:  # fmt: skip
        x, one = self.tensor(x), self.weight(weight)
        pair = _line if flat else _pair
        s, d = pair(stride), pair(dilation)
        kernel = (*one.shape[2:], 1) if flat else one.shape[2:]
        if padding == "valid":
            p = 0, 0
        elif padding == "same":
            total = [b * (k - 1) for k, b in zip(kernel, d, strict=True)]
            if any(n % 2 for n in total):
                self.refuse("pads one side more than the other, which has no native form")
            p = total[0] // 2, total[1] // 2
        else:
            p = (_line(padding)[0], 0) if flat else _pair(padding)
        return self.built.conv2d(x, one, self.optional(bias), s, p, (d[0], 1) if flat else d, groups, self.what)

    def pool(
        self, kind: str, x: Any, kernel: Any, stride: Any, padding: Any, ceil: bool, last: int, flat: bool
    ) -> Tensor:
        x = self.tensor(x)
        pair = _line if flat else _pair
        stride = kernel if stride is None or stride == [] else stride
        p = (_line(padding)[0], 0) if flat else _pair(padding)
        k, s = pair(kernel), pair(stride)
        if ceil:
            sizes = x.shape[2:] if not flat else (*x.shape[2:], 1)
            if any((n + 2 * q - b) % t for n, q, b, t in zip(sizes, p, k, s, strict=False)):
                self.refuse("has no native form with ceil_mode where windows do not fit")
        return self.built.pool(kind, x, k, s, p, last, self.what)

    def max_pool(
        self, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False, flat: bool = False,
    ) -> Tensor:  # fmt: skip
        if (
            return_indices
            or _pair(dilation if not isinstance(dilation, tuple) else dilation[:1] * 2) != (1, 1)
            or (isinstance(dilation, tuple) and set(dilation) != {1})
        ):
            self.refuse("has no native form with dilation or indices")
        return self.pool("max_pool", x, kernel_size, stride, padding, ceil_mode, 0, flat)

    def avg_pool(
        self, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None, flat: bool = False,
    ) -> Tensor:  # fmt: skip
        if divisor_override is not None:
            self.refuse("has no native form with divisor_override")
        return self.pool("avg_pool", x, kernel_size, stride, padding, ceil_mode, int(count_include_pad), flat)

    def adaptive(self, x: Any, output_size: Any, flat: bool = False, most: bool = False) -> Tensor:
        x = self.tensor(x)
        size = output_size if isinstance(output_size, tuple | list) else (output_size,) * (1 if flat else 2)
        sides = x.shape[2:]
        if len(size) != len(sides):
            self.refuse(f"cannot take {x.shape}")
        wanted = [have if n is None else int(n) for n, have in zip(size, sides, strict=True)]
        if not most:
            return self.built.adaptive_avg_pool(x, wanted[0], 1 if flat else wanted[1], self.what)
        if any(have % n for have, n in zip(sides, wanted, strict=True)):
            self.refuse("has a native form where its windows are of one size alone")
        kernel = tuple(have // n for have, n in zip(sides, wanted, strict=True))
        return self.max_pool(x, kernel if len(kernel) == 2 else kernel[0], flat=flat)

    # normalisation, symbols, sequences

    def layer_norm(
        self, x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> Tensor:
        x = self.tensor(x)
        if (weight is None) != (bias is None):
            if weight is None:
                self.refuse("has no native form with a shift but no scale")
            bias = Fixed(torch.zeros(tuple(normalized_shape)))
        pair = [] if weight is None else [self.weight(weight), self.weight(bias)]
        return self.built.layer_norm(x, len(normalized_shape), pair, eps, self.what)

    def group_norm(self, x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        pair = [] if weight is None else [self.weight(weight), self.weight(bias)]
        return self.built.norm("group_norm", self.tensor(x), pair, [num_groups], eps, self.what)

    def embedding(
        self, x: Any, weight: Any, padding_idx: int | None = None, max_norm: float | None = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
    ) -> Any:  # fmt: skip
        if max_norm is not None or scale_grad_by_freq or sparse:
            self.refuse("has no native form with max_norm, scale_grad_by_freq or sparse")
        one = self.weight(weight)
        if isinstance(x, Fixed) and padding_idx is None:
            from fieldfare.work.native.attention import rows

            return rows(self, x, one)
        padding = -1 if padding_idx is None else padding_idx % one.shape[0]
        return self.built.embedding(self.tensor(x), one, padding, self.what)

    def recurrent(self, part: Any, x: Any, hx: Any = None) -> Any:
        if part.bidirectional or part.proj_size:
            self.refuse("has no native form when bidirectional or projected")
        given = [] if hx is None else [*_flat(hx)]
        if any(not isinstance(one, Fixed) or bool(one.value.any()) for one in given):
            self.refuse("has no native form with states at the start that are not zero")
        kind = "lstm" if type(part) is nn.LSTM else "gru"
        order, h, layers = "bhc" if part.batch_first else "hbc", self.tensor(x), list[Tensor]()
        for at in range(part.num_layers):
            names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if part.bias else [])]
            weights = [self.weight(getattr(part, f"{name}_l{at}")) for name in names]
            h = self.built.recurrent(kind, h, order, weights, self.what)
            layers.append(h)
            if at < part.num_layers - 1:
                h = self.dropout(h, part.dropout, self.train)
        last = States(layers, order.index("h"))
        return h, (last, Cells()) if kind == "lstm" else last

    def _state(self, of: States, layer: int) -> Tensor:
        return self.built.select(of.layers[layer], of.time, -1, self.what)

    # order of axes

    def view(self, x: Any, *sizes: Any, shape: Any = None) -> Any:
        wanted = _dims(sizes) if shape is None else [*shape]
        if isinstance(x, Weight):
            self.refuse("of a parameter has no native form")
        x = self.tensor(x)
        if any(isinstance(n, torch.dtype) for n in wanted):
            self.refuse("as another type has no native form")
        whole = int(np.prod(x.shape, dtype=np.int64))
        given = -int(np.prod(wanted, dtype=np.int64))
        wanted = [whole // given if n == -1 else int(n) for n in wanted]
        return self.built.viewed(x, wanted, self.what)

    def flatten(self, x: Any, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        x = self.tensor(x)
        n = len(x.axes)
        first, last = start_dim % n, end_dim % n
        s = x.shape
        return self.view(x, (*s[:first], int(np.prod(s[first : last + 1], dtype=np.int64)), *s[last + 1 :]))

    def unflatten(self, x: Any, dim: int, sizes: Any) -> Tensor:
        x = self.tensor(x)
        s, at = x.shape, dim % len(x.axes)
        inner = [int(n) for n in sizes]
        inner = [-(s[at] // int(np.prod(inner))) if n == -1 else n for n in inner]
        return self.view(x, (*s[:at], *inner, *s[at + 1 :]))

    def squeeze(self, x: Any, dim: Any = None) -> Any:
        if isinstance(x, States):
            if len(x.layers) != 1 or dim != 0:
                self.refuse("of the states of several layers has no native form")
            return self._state(x, 0)
        x = self.tensor(x)
        n = len(x.axes)
        gone = range(n) if dim is None else [d % n for d in (dim if isinstance(dim, tuple | list) else [dim])]
        if any(letters([x.axes[at]]) == {"b"} for at in gone) and dim is not None:
            return x
        return Tensor(x.source, tuple(axis for at, axis in enumerate(x.axes) if at not in gone or axis))

    def unsqueeze(self, x: Any, dim: int) -> Tensor:
        x = self.tensor(x)
        at = dim % (len(x.axes) + 1)
        return Tensor(x.source, (*x.axes[:at], (), *x.axes[at:]))

    def permute(self, x: Any, *dims: Any) -> Tensor:
        x = self.tensor(x)
        return Tensor(x.source, tuple(x.axes[d] for d in _dims(dims)))

    def transpose(self, x: Any, dim0: int, dim1: int) -> Any:
        if isinstance(x, Weight):
            return (
                Turned(x) if len(x.shape) == 2 and {dim0 % 2, dim1 % 2} == {0, 1} else self.refuse("has no native form")
            )
        x = self.tensor(x)
        order = [*range(len(x.axes))]
        order[dim0], order[dim1] = order[dim1], order[dim0]
        return self.permute(x, *order)

    def turned(self, x: Any) -> Any:
        return self.transpose(x, 0, 1)

    def attribute(self, x: Any, name: str) -> Any:
        return self.turned(x) if name == "T" and len(x.shape) == 2 else self.refuse(f"of {name!r} has no native form")

    def same(self, x: Any, *rest: Any, **options: Any) -> Any:
        if rest or options.keys() - {"memory_format"}:
            self.refuse("is called in a way that has no native form")
        return self.tensor(x)

    def to_float(self, x: Any, *rest: Any, **options: Any) -> Any:
        asked = [*rest, *options.values()]
        if any(one not in (torch.float32, torch.device("cpu"), "cpu", False) for one in asked):
            self.refuse("to another type has no native form")
        x = self.tensor(x)
        column = self.built.columns[-1 - x.source] if x.source < 0 else None
        if torch.float32 in asked and column is not None and column.kind == TOKENS:
            if column.value >= 0:
                self.refuse("of symbols that an embedding reads has no native form")
            column.kind = NUMBERS
        return x

    def as_float(self, x: Any) -> Any:
        return self.to_float(x, torch.float32)

    def mean(self, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
        if dim is None or dtype is not None:
            self.refuse("over everything, or in another type, has no native form")
        dims = [*dim] if isinstance(dim, tuple | list) else [dim]
        return self.built.mean_positions(self.tensor(x), dims, keepdim, self.what)

    def sum(self, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
        mean = self.mean(x, dim, keepdim, dtype)
        dims = [*dim] if isinstance(dim, tuple | list) else [dim]
        return self._times(mean, float(np.prod([x.shape[d] for d in dims])))

    def as_symbols(self, x: Any) -> Tensor:
        x = self.tensor(x)
        if x.source >= 0 or self.built.columns[-1 - x.source].kind != TOKENS:
            self.refuse("has a native form for a column of whole numbers alone")
        return x

    def select(self, x: Any, dim: int, index: int) -> Tensor:
        x = self.tensor(x)
        return self.built.select(x, dim % len(x.axes), index, self.what)

    def getitem(self, x: Any, at: Any) -> Any:
        if isinstance(x, tuple | list):
            return x[at]
        if isinstance(x, Cells):
            self.refuse("of the cell states has no native form")
        if isinstance(x, States):
            return self._state(x, at) if isinstance(at, int) else self.refuse("of states has no native form")
        from fieldfare.work.native import channels

        x = self.tensor(x)
        parts = [*at] if isinstance(at, tuple) else [at]
        if any(not (p is None or p is Ellipsis or isinstance(p, int | slice)) or isinstance(p, bool) for p in parts):
            self.refuse("by a tensor or a list has no native form")
        if Ellipsis in parts:
            where = parts.index(Ellipsis)
            spare = len(x.axes) - sum(p is not None for p in parts) + 1
            parts[where : where + 1] = [slice(None)] * spare
        axis = 0
        for part in parts:
            if part is None:
                x = self.unsqueeze(x, axis)
                axis += 1
            elif isinstance(part, slice):
                if "b" in letters([x.axes[axis]]) and (part.start or part.stop is not None):
                    self.refuse("takes some examples of the batch")
                if part.indices(x.shape[axis]) != (0, x.shape[axis], 1):
                    x = channels.part(self, x, axis, part)
                axis += 1
            else:
                if "b" in letters([x.axes[axis]]):
                    self.refuse("takes one example of the batch")
                x = self.built.select(x, axis, part, self.what)
        return x


class Turned:
    """A matrix parameter, transposed."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight


def _flat(value: Any) -> Any:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for one in value:
            yield from _flat(one)
    elif isinstance(value, slice):
        yield from _flat((value.start, value.stop, value.step))
    else:
        yield value
