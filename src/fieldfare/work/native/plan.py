"""What the native core computes: values, packed parameters and ops in order, as plain data.

Here: the description of a plan and its text. Not here: how a model becomes one (`lower`, `declared`), where torch's
parameters go (`packing`), the core. Invariant: every value is an input or written by one op, before it is read; every
place of the model's vector occurs in `index` exactly once.
"""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

PAD = 16
"""Floats that the last axis of every activation and parameter is filled up to a multiple of."""

NUMBERS, UNIT, TOKENS = 0, 1, 2
"""Kinds of input: numbers as float32, bytes as 0..1, symbols."""

LOSSES = ("cross_entropy", "masked_cross_entropy", "mse", "bce", "l1")


def padded(c: int) -> int:
    """`c` rounded up to whole lanes of 16.

    >>> padded(1), padded(16), padded(62)
    (16, 16, 64)
    """
    return -(-c // PAD) * PAD


@dataclass(frozen=True, slots=True)
class Value:
    """An activation: h * w positions of c channels, `ld` floats apart; sequences have w = 1, vectors h = w = 1."""

    h: int
    w: int
    c: int
    ld: int
    tokens: bool = False

    @property
    def size(self) -> int:
        """Floats of one example."""
        return self.h * self.w * self.ld

    def __str__(self) -> str:
        place = "" if self.h == self.w == 1 else f"{self.h}x" if self.w == 1 else f"{self.h}x{self.w}x"
        return f"{place}{self.c}"


@dataclass(frozen=True, slots=True)
class Param:
    """`size` places of the packed vector from `at`; `trained` where they are in the model's vector."""

    at: int
    size: int
    trained: bool


@dataclass(frozen=True, slots=True)
class Op:
    """One step of the forward pass; the meaning of `params`, `ints` and `floats` is its kind's."""

    kind: str
    ins: tuple[int, ...]
    out: int
    params: tuple[int, ...] = ()
    ints: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Input:
    """Where a column of the data goes, and how: `channels_first` rows are `[C, H, W]` and are turned."""

    value: int
    kind: int
    channels_first: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no plan: which op, and what is wrong with it; its text is one sentence."""

    op: str
    why: str

    def __str__(self) -> str:
        return f"{self.op} {self.why}"


class NoPlan(Exception):
    """Raised inside the planner; carries the refusal that it hands out."""

    def __init__(self, op: str, why: str) -> None:
        super().__init__(f"{op} {why}")
        self.refusal = Refusal(op, why)


@dataclass(frozen=True, slots=True, eq=False)
class NativePlan:
    """All that the core is made from.

    `index` int64 `[packed]`: >= 0 a place in the model's vector, -1 nothing (0), <= -2 `constants[-2 - index]`.
    """

    values: tuple[Value, ...]
    params: tuple[Param, ...]
    ops: tuple[Op, ...]
    inputs: tuple[Input, ...]
    loss: str
    output: int
    index: I64
    constants: F32
    vector_size: int

    def arguments(self) -> tuple[Any, ...]:
        """What the core's constructor takes, in its order."""
        return (
            [(v.h, v.w, v.c, v.ld, v.tokens) for v in self.values],
            [(p.at, p.size, p.trained) for p in self.params],
            [(o.kind, [*o.ins], o.out, [*o.params], [*o.ints], [float(f) for f in o.floats]) for o in self.ops],
            [(i.value, i.kind, i.channels_first) for i in self.inputs],
            self.loss, self.output, self.index, self.constants, self.vector_size,
        )  # fmt: skip

    def key(self) -> str:
        """A hash of the content, the same in every process."""
        told = hashlib.blake2b(digest_size=16)
        parts = [[astuple(one) for one in some] for some in (self.values, self.params, self.ops, self.inputs)]
        told.update(repr((parts, self.loss, self.output, self.vector_size)).encode())
        told.update(np.ascontiguousarray(self.index).tobytes())
        told.update(np.ascontiguousarray(self.constants).tobytes())
        return told.hexdigest()

    @property
    def chance(self) -> bool:
        """Whether training draws random numbers."""
        return any(op.kind == "dropout" or (op.kind == "attention" and op.floats[1] > 0) for op in self.ops)

    def pack(self, vector: NDArray[Any]) -> NDArray[Any]:
        """The packed parameters of a model `vector` `[P]`, in its dtype."""
        taken = vector[np.maximum(self.index, 0)] if self.vector_size else np.zeros(len(self.index), vector.dtype)
        out = np.where(self.index >= 0, taken, np.zeros((), vector.dtype))
        fixed = self.index <= -2
        out[fixed] = self.constants[-2 - self.index[fixed]]
        return out

    def unpack(self, packed: NDArray[Any]) -> NDArray[Any]:
        """The model's vector `[P]` of packed parameters (or of their gradient)."""
        out = np.zeros(self.vector_size, packed.dtype)
        own = self.index >= 0
        out[self.index[own]] = packed[own]
        return out

    def describe(self) -> list[str]:
        """One readable line for each input, each op and the loss."""
        kinds = ("numbers", "bytes as 0..1", "tokens")
        lines = [f"input {self.values[i.value]} ({kinds[i.kind]})" for i in self.inputs]
        lines += [_line(op, self.values) for op in self.ops]
        return [*lines, f"loss {self.loss}"]


def _by(*numbers: int) -> str:
    return "x".join(str(n) for n in numbers)


def _between(low: float, high: float) -> str:
    return f"{low:g}..{high:g}"


def _line(op: Op, values: tuple[Value, ...]) -> str:
    """Such as "conv2d 3x3 32->64 relu"."""
    x, out, ints, floats = values[op.ins[0]], values[op.out], op.ints, op.floats
    words = [op.kind]
    match op.kind:
        case "linear":
            words.append(f"{x.c * (1 if ints[2] else x.h * x.w)}->{out.c}")
            words += [f"at each of {x.h * x.w}"] if ints[2] else []
            words += ["relu"] if ints[1] else []
            words += [f"times {floats[0]:g}"] if floats and floats[0] != 1.0 else []
        case "conv2d":
            words += [_by(*ints[:2]), f"{x.c}->{out.c}"]
            words += [f"stride {_by(*ints[2:4])}"] if ints[2:4] != (1, 1) else []
            words += [f"padding {_by(*ints[4:6])}"] if any(ints[4:6]) else []
            words += [f"dilation {_by(*ints[6:8])}"] if ints[6:8] != (1, 1) else []
            words += [f"groups {ints[8]}"] if ints[8] != 1 else []
            words += ["relu"] if ints[9] else []
        case "max_pool" | "avg_pool":
            words.append(_by(*ints[:2]))
            words += [f"stride {_by(*ints[2:4])}"] if ints[2:4] != ints[:2] else []
            words += [f"padding {_by(*ints[4:6])}"] if any(ints[4:6]) else []
            words += ["relu"] if op.kind == "max_pool" and ints[6] else []
        case "group_norm":
            words.append(f"{ints[0]} of {x.c}")
        case "layer_norm":
            words.append("each position" if ints[0] == 1 else "whole example")
        case "embedding" | "lstm" | "gru":
            words.append(f"{'' if op.kind == 'embedding' else f'{x.c}->'}{out.c}")
        case "dropout":
            words.append(f"{floats[0]:g}")
        case "hardtanh" | "clamp":
            words = ["relu6"] if (op.kind, floats) == ("hardtanh", (0.0, 6.0)) else [op.kind, _between(*floats)]
        case "channels":
            words.append(f"{out.c} of {x.c}")
        case "concat":
            words.append(f"{'+'.join(str(values[i].c) for i in op.ins)}->{out.c}")
        case "select":
            words.append(str(ints[0]))
        case "adaptive_avg_pool":
            words.append(_by(out.h, out.w))
        case _:
            pass
    return " ".join(words)
