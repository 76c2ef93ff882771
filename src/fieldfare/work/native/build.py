"""Builds a plan op by op: values, packed parameters, and the order of a tensor's axes on the value it is.

Here: tensors and weights as a planner sees them, one method for each kind of op. Not here: any library's names for
them (`lower`, `declared`), the rearranging of what was built (`arrange`). Invariant: what a method returns has the axes
that the library's op would give, and the value it lies on has the real sizes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.work.native import packing
from fieldfare.work.native.arrange import finished
from fieldfare.work.native.axes import Axes, Axis, canonical, full, letters, locations, named, regrouped, shape
from fieldfare.work.native.plan import NUMBERS, TOKENS, NativePlan, NoPlan, Op, Value, padded

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: `axes` over value `source`, or over column `-1 - source` whose value is not yet known (letter "x")."""

    source: int
    axes: Axes

    @property
    def shape(self) -> tuple[int, ...]:
        return shape(self.axes)


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A parameter or a constant: its places (>= 0 in the model's vector, <= -2 constants) in its own shape.

    `content`: of a constant, what tells its numbers from others.
    """

    name: str
    places: I64
    content: tuple[Any, ...] = ()

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for the same numbers, in every plan of one model."""
        if self.trained:
            return int(self.places.flat[0]), self.places.shape
        return self.content or (hashlib.blake2b(self.places.tobytes(), digest_size=16).digest(),)

    @property
    def trained(self) -> bool:
        return bool(self.places.size) and bool(self.places.flat[0] >= 0)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.places.shape


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A parameter in one form: `make` gives its places, `key` tells what it is."""

    make: Callable[[], I64]
    trained: bool
    key: tuple[Any, ...]


@dataclass(slots=True)
class Column:
    """A column of the data: its shape per example, how it is read, the value it has become (or -1)."""

    shape: tuple[int, ...]
    kind: int
    value: int = -1
    channels_first: bool = False
    strides: tuple[tuple[str, int, int], ...] = ()


@dataclass(slots=True)
class Builder:
    """A plan in the making, for a batch of `rows` examples and a model of `size` numbers."""

    rows: int
    size: int
    values: list[Value] = field(default_factory=list[Value])
    params: list[Packed] = field(default_factory=list[Packed])
    ops: list[Op] = field(default_factory=list[Op])
    columns: list[Column] = field(default_factory=list[Column])
    constants: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])
    _fixed: int = 0
    _known: dict[tuple[Any, ...], int] = field(default_factory=dict[tuple[Any, ...], int])
    _owned: set[int] = field(default_factory=set[int])
    _drops: int = 0

    # what a model reads

    def column(self, shape: tuple[int, ...], kind: int = NUMBERS) -> Tensor:
        """The next column of the data, `[rows, *shape]`."""
        self.columns.append(Column(shape, kind))
        strides = [int(np.prod(shape[at + 1 :], dtype=np.int64)) for at in range(len(shape))]
        own = [canonical((("x", n, s),)) for n, s in zip(shape, strides, strict=True)]
        return Tensor(-len(self.columns), (full("b", self.rows), *own))

    def constant(self, array: Any, name: str = "a constant") -> Weight:
        """Numbers that are not trained."""
        found = np.asarray(array, np.float32)
        places = -2 - (self._fixed + np.arange(found.size, dtype=np.int64)).reshape(found.shape)
        self.constants.append(found.reshape(-1))
        self._fixed += found.size
        return Weight(name, places, (found.shape, hashlib.blake2b(found.tobytes(), digest_size=16).digest()))

    def is_column(self, x: Tensor) -> bool:
        return x.source < 0 and self.columns[-1 - x.source].value < 0

    def settled(self, x: Tensor, order: str | None = None) -> Tensor:
        """`x` on a value; a column becomes one, its axes after the examples' being `order` (by default its rank's)."""
        if x.source >= 0:
            return x
        column = self.columns[-1 - x.source]
        if column.value < 0:
            self._settle(column, x, order)
        axes = [named(axis, column.strides) for axis in x.axes]
        if any(axis is None for axis in axes):
            raise NoPlan("an input", "is read in two orders that do not fit each other")
        return Tensor(column.value, tuple(axis for axis in axes if axis is not None))

    def _settle(self, column: Column, x: Tensor, order: str | None) -> None:
        wholes = [axis for axis in x.axes if letters([axis]) != {"b"}]
        if order is None:
            known = ("", "h", "hw") if column.kind == TOKENS else ("", "c", "hc", "chw")
            order = known[len(wholes)] if len(wholes) < len(known) else "?"
        if order == "?" or len(order) != len(wholes) or letters(x.axes) - {"b", "x"}:
            raise NoPlan("an input", f"of shape {column.shape} per example is neither vector, sequence nor picture")
        if any(len(axis) > 1 for axis in wholes):
            raise NoPlan("an input", f"of shape {column.shape} per example is read in an order of its own")
        found = {letter: axis[0][1:] if axis else (1, 0) for letter, axis in zip(order, wholes, strict=True)}
        sizes = {letter: found.get(letter, (1, 0))[0] for letter in "hwc"}
        first, strides = False, _strides("hwc", sizes)
        if not _fits(found, strides):
            first, strides = True, _strides("chw", sizes)
        if not _fits(found, strides):
            raise NoPlan("an input", f"of shape {column.shape} per example is read in an order that has no native form")
        tokens = column.kind == TOKENS
        if tokens and sizes["c"] != 1:
            raise NoPlan("an input", "of symbols is read as numbers: give them to an embedding")
        column.value, column.channels_first = len(self.values), first
        column.strides = strides
        self.values.append(Value(sizes["h"], sizes["w"], sizes["c"], sizes["c"], tokens))

    # parts

    def value(self, h: int, w: int, c: int) -> int:
        self.values.append(Value(h, w, c, padded(c)))
        return len(self.values) - 1

    def param(self, weight: Weight, form: tuple[Any, ...] | I64, pack: Callable[[I64], I64] | None = None) -> int:
        """The number of a parameter packed by `pack`; the same `form` of the same parameter is one.

        Without `pack`, `form` is what it would give.
        """
        if pack is None:
            packed = np.asarray(form)
            form, pack = ("given", hashlib.blake2b(packed.tobytes(), digest_size=16).digest()), lambda _: packed
        key = (*weight.key, *form)
        if key in self._known:
            return self._known[key]
        if weight.trained:
            first = int(weight.places.flat[0])
            if first in self._owned:
                raise NoPlan(f"parameter {weight.name!r}", "is used in two forms, which the native core cannot tie")
            self._owned.add(first)
        self.params.append(Packed(lambda: pack(weight.places), weight.trained, key))
        self._known[key] = len(self.params) - 1
        return len(self.params) - 1

    def _of_channels(self, weight: Weight, ld: int) -> int:
        return self.param(weight, ("channels", ld), lambda places: packing.channels(places.reshape(-1), ld))

    def op(
        self, kind: str, ins: Sequence[Tensor], out: int, params: Sequence[int] = (), ints: Sequence[Any] = (),
        floats: Sequence[float] = (),
    ) -> None:  # fmt: skip
        for one in ins:
            if self.values[one.source].tokens and kind != "embedding":
                raise NoPlan(f"{kind}", "cannot take symbols: give them to an embedding, or make them float")
        whole = tuple(int(n) for n in ints)
        self.ops.append(
            Op(kind, tuple(x.source for x in ins), out, tuple(params), whole, tuple(float(f) for f in floats))
        )

    def of(self, x: Tensor) -> Value:
        return self.values[x.source]

    def ordered(self, x: Tensor, order: str, what: str) -> Tensor:
        """`x` settled, its axes being examples and letters in `order` (such as "bchw"), or a refusal."""
        inner = order.replace("b", "") if self.is_column(x) else None
        if len(x.axes) != len(order):
            raise NoPlan(what, f"takes a tensor of {len(order)} axes in a plan, not of shape {x.shape}")
        x = self.straight(self.settled(x, inner))
        wanted = tuple(self.axis(x, letter) for letter in order)
        if x.axes != wanted or self._rest(x, order):
            raise NoPlan(what, f"reads {x.shape} in an order of axes that has no native form")
        return x

    def order_of_channels(self, x: Tensor, at: int) -> I64 | None:
        """Which channel each index along an axis is, where the axis is all of them."""
        axis, c = x.axes[at], self.of(x).c
        if letters([axis]) != {"c"} or shape([axis]) != (c,):
            return None
        return locations(axis, Value(1, 1, c, c))

    def channels(self, x: Tensor, at: int, index: I64) -> Tensor:
        """The channels that `index` names along axis `at`, which is all of them."""
        v = self.of(x)
        out = self.value(v.h, v.w, len(index))
        self.op("channels", [x], out, ints=index)
        made = self.axis(Tensor(out, ()), "c")
        return Tensor(out, (*x.axes[:at], made, *x.axes[at + 1 :]))

    def straight(self, x: Tensor) -> Tensor:
        """`x`, its channels in the order of the axis that is all of them."""
        for at, axis in enumerate(x.axes):
            if axis != self.axis(x, "c") and (order := self.order_of_channels(x, at)) is not None:
                return self.channels(x, at, order)
        return x

    def axis(self, x: Tensor, letter: str) -> Axis:
        v = self.of(x)
        return full(letter, {"b": self.rows, "h": v.h, "w": v.w, "c": v.c}[letter])

    def _rest(self, x: Tensor, order: str) -> bool:
        v = self.of(x)
        return any(size > 1 and letter not in order for letter, size in (("h", v.h), ("w", v.w), ("c", v.c)))

    # ops

    def linear(
        self, x: Tensor, weight: Weight, bias: Weight | None, what: str, scale: float = 1.0, turned: bool = False
    ) -> Tensor:
        """h W' + b over the last axis; `turned`: the weight is `[K, N]`."""
        places = weight.places.T if turned else weight.places
        if places.ndim != 2 or not x.axes or x.shape[-1] != places.shape[1]:
            raise NoPlan(what, f"has a weight of shape {weight.shape} for inputs of shape {x.shape}")
        x = self.settled(self._as_rows(x, what) if self.is_column(x) else x)
        v, last = self.of(x), x.axes[-1]
        positions = v.h * v.w
        if last == self.axis(x, "c") and positions > 1:
            each, rows, at, out = True, v.c, np.arange(v.c), self.value(v.h, v.w, len(places))
        elif letters(x.axes[:-1]) <= {"b"} and "b" not in letters([last]):
            each, at, out = False, locations(last, v), self.value(1, 1, len(places))
            rows = v.c if positions == 1 else v.size
        else:
            raise NoPlan(what, f"works along an axis of {x.shape} that is not that of channels")
        plain = each or (positions == 1 and last == self.axis(x, "c"))
        form = ("linear", rows, turned) if plain else ("linear", rows, turned, last, v.h, v.w, v.ld)
        params = [self.param(weight, form, lambda own: packing.linear(own.T if turned else own, at, rows))]
        if bias is not None:
            params.append(self._of_channels(bias, self.values[out].ld))
        self.op("linear", [x], out, params, [rows, 0, each], [scale])
        made = Tensor(out, ())
        return Tensor(out, (*x.axes[:-1], self.axis(made, "c")))

    def _as_rows(self, x: Tensor, what: str) -> Tensor:
        """A column settled as a linear layer reads it: one vector, or vectors in sequence."""
        column = self.columns[-1 - x.source]
        inner = [axis for axis in x.axes[:-1] if letters([axis]) - {"b"}]
        if not inner:
            whole = int(np.prod(column.shape, dtype=np.int64))
            self._settle(column, Tensor(x.source, (x.axes[0], full("x", whole))), "c")
        elif len(x.axes) == len(column.shape) + 1 and len(inner) == 1:
            self.settled(x, "hc")
        elif len(inner) == 2 and len(x.axes) == 4:
            self.settled(x, "hwc")
        else:
            raise NoPlan(what, f"reads an input of shape {x.shape} in a way that has no native form")
        return x

    def conv2d(
        self, x: Tensor, weight: Weight, bias: Weight | None, stride: tuple[int, int], padding: tuple[int, int],
        dilation: tuple[int, int], groups: int, what: str,
    ) -> Tensor:  # fmt: skip
        """Convolution of pictures `[B, C, H, W]`, or of sequences `[B, C, T]` with a kernel `[T, 1]`."""
        x = self.ordered(x, "bchw"[: max(len(x.axes), 3)], what)
        v = self.of(x)
        places = weight.places if weight.places.ndim == 4 else weight.places[..., None]
        outs, ins, kh, kw = places.shape
        if ins * groups != v.c:
            raise NoPlan(what, f"has a weight for {ins * groups} channels, not {v.c}")
        h, w = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip((v.h, v.w), padding, dilation, (kh, kw), stride, strict=True)
        )
        out = self.value(h, w, outs)
        ld = self.values[out].ld
        form = "conv", groups, v.ld, ld
        params = [self.param(weight, form, lambda own: packing.conv(own.reshape(places.shape), groups, v.ld, ld))]
        if bias is not None:
            params.append(self._of_channels(bias, ld))
        self.op("conv2d", [x], out, params, [kh, kw, *stride, *padding, *dilation, groups, 0])
        return self._like(x, out)

    def _like(self, x: Tensor, out: int) -> Tensor:
        """The value `out` with axes in the order of `x`, which has one letter each."""
        made = Tensor(out, ())
        order = "bchw"[: len(x.axes)]
        return Tensor(out, tuple(self.axis(made, letter) for letter in order))

    def pool(
        self, kind: str, x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
        last: int, what: str,
    ) -> Tensor:  # fmt: skip
        """ "max_pool" or "avg_pool"; `last`: of the latter, whether padding counts."""
        x = self.ordered(x, "bchw"[: max(len(x.axes), 3)], what)
        v = self.of(x)
        h, w = ((n + 2 * p - k) // s + 1 for n, p, k, s in zip((v.h, v.w), padding, kernel, stride, strict=True))
        out = self.value(h, w, v.c)
        self.op(kind, [x], out, ints=[*kernel, *stride, *padding, last])
        return self._like(x, out)

    def adaptive_avg_pool(self, x: Tensor, h: int, w: int, what: str) -> Tensor:
        x = self.ordered(x, "bchw"[: max(len(x.axes), 3)], what)
        out = self.value(h, w, self.of(x).c)
        self.op("mean_positions" if h == w == 1 else "adaptive_avg_pool", [x], out)
        return self._like(x, out)

    def pointwise(self, kind: str, x: Tensor, floats: Sequence[float] = ()) -> Tensor:
        """relu, tanh, sigmoid, gelu, gelu_tanh, silu, and those with numbers of their own (`kinds.Bend`)."""
        x = self.settled(x)
        v = self.of(x)
        out = self.value(v.h, v.w, v.c)
        self.op(kind, [x], out, floats=floats)
        return Tensor(out, x.axes)

    def dropout(self, x: Tensor, p: float) -> Tensor:
        x = self.settled(x)
        v = self.of(x)
        out = self.value(v.h, v.w, v.c)
        self.op("dropout", [x], out, ints=[self._drops], floats=[p])
        self._drops += 1
        return Tensor(out, x.axes)

    def both(self, kind: str, a: Tensor, b: Tensor, what: str) -> Tensor:
        """add or mul of two tensors of one shape, or of one and what is the same at all its positions."""
        if a.shape != b.shape:
            return self._along_channels(kind, a, b, what)
        if self.is_column(a) != self.is_column(b):
            column, other = (a, b) if self.is_column(a) else (b, a)
            inner = [axis for axis in self.settled(other).axes if letters([axis]) != {"b"}]
            if all(len(axis) == 1 for axis in inner):
                self.settled(column, "".join(axis[0][0] for axis in inner))
        a, b = self.settled(a), self.settled(b)
        va, vb = self.of(a), self.of(b)
        if a.axes != b.axes or (va.h, va.w, va.c) != (vb.h, vb.w, vb.c):
            raise NoPlan(what, "combines tensors that lie in different orders in a plan")
        out = self.value(va.h, va.w, va.c)
        self.op(kind, [a, b], out)
        return Tensor(out, a.axes)

    def _along_channels(self, kind: str, a: Tensor, b: Tensor, what: str) -> Tensor:
        """add or mul of a tensor of many positions and one of a single position, the others' numbers being equal."""
        rank = max(len(a.axes), len(b.axes))
        a, b = (Tensor(one.source, ((),) * (rank - len(one.axes)) + one.axes) for one in map(self.settled, (a, b)))
        x, one = (a, b) if self.of(b).h * self.of(b).w == 1 else (b, a)
        wanted = tuple(() if letters([axis]) <= {"h", "w"} else axis for axis in x.axes)
        if self.of(one).h * self.of(one).w != 1 or self.of(one).c != self.of(x).c or one.axes != wanted:
            raise NoPlan(what, f"broadcasts {a.shape} and {b.shape}, which has no native form")
        v = self.of(x)
        out = self.value(v.h, v.w, v.c)
        self.op(f"{kind}_channels", [x, one], out)
        return Tensor(out, x.axes)

    def along(self, x: Tensor, dim: int) -> Tensor:
        """`x` settled; a column so that axis `dim` is that of its channels."""
        orders = {(2, 1): "c", (3, 1): "ch", (3, 2): "hc", (4, 1): "chw", (4, 3): "hwc"}
        return self.settled(x, orders.get((len(x.axes), dim)) if self.is_column(x) else None)

    def concat(self, parts: Sequence[Tensor], dim: int, what: str) -> Tensor:
        """Channels one after the other."""
        parts = [self.straight(self.along(x, dim)) for x in parts]
        first = parts[0]
        v, rest = self.of(first), [axis for at, axis in enumerate(first.axes) if at != dim]
        for x in parts:
            other, own = self.of(x), [axis for at, axis in enumerate(x.axes) if at != dim]
            if (other.h, other.w) != (v.h, v.w) or x.axes[dim] != self.axis(x, "c") or own != rest:
                raise NoPlan(what, f"joins {first.shape} and others along an axis that is not that of channels")
        out = self.value(v.h, v.w, sum(self.of(x).c for x in parts))
        self.op("concat", parts, out)
        made = self.axis(Tensor(out, ()), "c")
        return Tensor(out, (*first.axes[:dim], made, *first.axes[dim + 1 :]))

    def affine(self, x: Tensor, gamma: Weight | None, beta: Weight | None) -> Tensor:
        """x * gamma + beta, `[c]` each; None is 1, or 0."""
        x = self.settled(x)
        v = self.of(x)
        gamma = gamma or self.constant(np.ones(v.c))
        beta = beta or self.constant(np.zeros(v.c))
        out = self.value(v.h, v.w, v.c)
        ld = self.values[out].ld
        params = [self._of_channels(one, ld) for one in (gamma, beta)]
        self.op("affine", [x], out, params)
        return Tensor(out, x.axes)

    def along_channels(self, x: Tensor, shape: tuple[int, ...]) -> bool:
        """Whether a weight of `shape`, broadcast against `x`, has one number per channel."""
        x = self.settled(x)
        aligned = (1,) * (len(x.axes) - len(shape)) + shape
        if len(aligned) != len(x.axes):
            return False
        c = self.axis(x, "c")
        return all(n == 1 or (c and axis == c) for n, axis in zip(aligned, x.axes, strict=True))

    def norm(self, kind: str, x: Tensor, pair: Sequence[Weight], ints: Sequence[int], eps: float, what: str) -> Tensor:
        """group_norm or batch_norm; channels are axis 1."""
        if len(x.axes) < 2:
            raise NoPlan(what, f"cannot take {x.shape}")
        if self.is_column(x):
            x = self.settled(x, {2: "c", 3: "ch", 4: "chw"}.get(len(x.axes)))
        x = self.straight(self.settled(x))
        v = self.of(x)
        if x.axes[0] != self.axis(x, "b") or x.axes[1] != self.axis(x, "c"):
            raise NoPlan(what, f"normalises {x.shape} along an axis that is not that of channels")
        out = self.value(v.h, v.w, v.c)
        ld = self.values[out].ld
        params = [self._of_channels(one, ld) for one in pair]
        self.op(kind, [x], out, params, ints, [eps])
        return Tensor(out, x.axes)

    def layer_norm(self, x: Tensor, dims: int, pair: Sequence[Weight], eps: float, what: str) -> Tensor:
        """Over the last `dims` axes."""
        x = self.settled(x)
        v = self.of(x)
        own, rest = (
            canonical([atom for axis in x.axes[len(x.axes) - dims :] for atom in axis]),
            x.axes[: len(x.axes) - dims],
        )
        out = self.value(v.h, v.w, v.c)
        ld = self.values[out].ld
        if own == self.axis(x, "c"):
            params = [self._of_channels(one, ld) for one in pair]
            over = 1
        elif letters(rest) <= {"b"} and "b" not in letters([own]):
            at = locations(own, self.values[out])
            form, size = ("example", own, v.h, v.w, ld), v.h * v.w * ld
            params = [self.param(one, form, lambda own: packing.scattered(own, at, size)) for one in pair]
            over = 2
        else:
            raise NoPlan(what, f"normalises axes of {x.shape} that are neither the channels nor the whole example")
        self.op("layer_norm", [x], out, params, [over], [eps])
        return Tensor(out, x.axes)

    def embedding(self, x: Tensor, weight: Weight, padding: int, what: str) -> Tensor:
        if x.source >= 0 or self.columns[-1 - x.source].kind != TOKENS:
            raise NoPlan(what, "takes symbols straight from a column of whole numbers, and here it does not")
        if self.is_column(x):
            inner = [axis for axis in x.axes if letters([axis]) != {"b"}]
            if len(inner) > 2:
                raise NoPlan(what, f"takes symbols in a row or in a grid, not of shape {x.shape}")
            x = self.settled(x, "hw"[: len(inner)])
        x = self.settled(x)
        v = self.of(x)
        out = self.value(v.h, v.w, weight.shape[1])
        ld = self.values[out].ld
        params = [self.param(weight, ("table", ld), lambda own: packing.table(own, ld))]
        self.op("embedding", [x], out, params, [padding])
        return Tensor(out, (*x.axes, self.axis(Tensor(out, ()), "c")))

    def recurrent(self, kind: str, x: Tensor, order: str, weights: Sequence[Weight], what: str) -> Tensor:
        """One layer of an LSTM or GRU; weights w_ih, w_hh and perhaps b_ih, b_hh; `order` "bhc" or "hbc"."""
        x = self.ordered(x, order, what)
        v, count = self.of(x), 4 if kind == "lstm" else 3
        if v.w != 1:
            raise NoPlan(what, f"runs along an axis of {x.shape} that is not one of the value")
        hidden = weights[1].shape[1]
        out = self.value(v.h, 1, hidden)
        wide = self.values[out].ld
        params = [
            self.param(weights[0], ("gates", count, v.ld), lambda own: packing.gates(own, count, v.ld)),
            self.param(weights[1], ("gates", count, wide), lambda own: packing.gates(own, count, wide)),
            *(
                self.param(one, ("gate biases", count), lambda own: packing.gate_biases(own, count))
                for one in weights[2:]
            ),
        ]
        self.op(kind, [x], out, params)
        made = Tensor(out, ())
        return Tensor(out, tuple(self.axis(made, letter) for letter in order))

    def select(self, x: Tensor, axis: int, position: int, what: str) -> Tensor:
        """One position of a sequence; the axis goes."""
        rest = x.axes[:axis] + x.axes[axis + 1 :]
        if not x.axes[axis]:
            return Tensor(x.source, rest)
        if self.is_column(x):
            raise NoPlan(what, "takes a part of an input, which has no native form")
        x = self.settled(x)
        rest, v = x.axes[:axis] + x.axes[axis + 1 :], self.of(x)
        if v.c > 1 and (order := self.order_of_channels(x, axis)) is not None:
            return Tensor(self.channels(x, axis, order[[position]]).source, rest)
        if v.w != 1 or x.axes[axis] != self.axis(x, "h"):
            raise NoPlan(what, f"takes a part of {x.shape} that is not one step of a sequence")
        out = self.value(1, 1, v.c)
        self.op("select", [x], out, ints=[position])
        return Tensor(out, rest)

    def mean_positions(self, x: Tensor, dims: Sequence[int], keep: bool, what: str) -> Tensor:
        rank, given = len(x.axes), tuple(sorted(at % len(x.axes) for at in dims))
        orders = {(3, (1,)): "hc", (3, (2,)): "ch", (4, (1, 2)): "hwc", (4, (2, 3)): "chw"}
        if self.is_column(x) and (rank, given) not in orders:
            raise NoPlan(what, f"is the mean over axes of {x.shape} that are not all its positions")
        x = self.settled(x, orders.get((rank, given)))
        v = self.of(x)
        gone = {at % len(x.axes) for at in dims}
        own = [x.axes[at] for at in gone]
        out_axes = tuple(() if at in gone else axis for at, axis in enumerate(x.axes) if keep or at not in gone)
        if not letters(own):
            return Tensor(x.source, out_axes)
        if letters(own) - {"h", "w"} or letters(out_axes) & {"h", "w"}:
            raise NoPlan(what, f"is the mean over axes of {x.shape} that are not all its positions")
        out = self.value(1, 1, v.c)
        self.op("mean_positions", [x], out)
        return Tensor(out, out_axes)

    def viewed(self, x: Tensor, sizes: Sequence[int], what: str) -> Tensor:
        axes = regrouped(x.axes, sizes)
        if axes is None:
            raise NoPlan(what, f"makes {tuple(sizes)} of {x.shape}, which has no native form")
        return Tensor(x.source, axes)

    # the end

    def finish(self, output: Tensor, loss: str) -> NativePlan:
        """The plan: arranged, unread ops gone, every parameter in it."""
        for at, column in enumerate(self.columns):
            if column.value < 0:
                whole = int(np.prod(column.shape, dtype=np.int64))
                order = "h" if column.kind == TOKENS else "c"
                self._settle(column, Tensor(-1 - at, (full("b", self.rows), full("x", whole))), order)
        return finished(self, self.settled(output).source, loss)


def _strides(order: str, sizes: dict[str, int]) -> tuple[tuple[str, int, int], ...]:
    """(letter, size, stride) of letters that lie in `order`, outermost first, those of size 1 left out."""
    step, out = 1, list[tuple[str, int, int]]()
    for letter in reversed(order):
        if sizes[letter] > 1:
            out.append((letter, sizes[letter], step))
        step *= sizes[letter]
    return tuple(out[::-1])


def _fits(found: dict[str, tuple[int, int]], strides: tuple[tuple[str, int, int], ...]) -> bool:
    return all(found[letter] == (size, step) for letter, size, step in strides)
