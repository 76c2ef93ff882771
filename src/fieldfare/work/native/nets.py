"""A declared network of many kinds of layers, trained on the compiled core alone: no torch, no autograd.

Here: the net (`work.net.Net`). Not here: its layers (`kinds`), its plan (`declared`). Invariant: the starting model and
the parameters' names do not depend on the core, so a model trained here is the model of the same torch layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.work.native import kinds
from fieldfare.work.native.declared import declared_plan
from fieldfare.work.native.fit import Native
from fieldfare.work.native.modules import core, why_not
from fieldfare.work.native.plan import LOSSES, NativePlan, Op, Refusal
from fieldfare.work.net import Drift, Fit, Folding, Plan, Training, measured

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def net(
    *layers: kinds.Kind, input: tuple[int, ...], loss: str = "cross_entropy", x: str = "x", y: str = "y",
    transform: Literal["unit", "tokens"] | None = None,
) -> DeclaredNet:  # fmt: skip
    """A net of declared layers (`work.native.kinds`) that trains on the compiled core, without torch.

    `input`: shape of an example: (C, H, W) of pictures, (T, C) of sequences, (C,), or (T,) of symbols where the first
    layer is an embedding. `loss`: "cross_entropy" (labels, one for each position of the output), "mse", "bce", "l1" or
    "masked_cross_entropy". `transform`: "unit" for bytes as 0..1. Errors: `UsageError` where layers do not fit each
    other; in training where the core is not compiled.

    >>> from fieldfare.work.native.kinds import conv2d, flatten, linear, max_pool2d, relu
    >>> net(conv2d(1, 4, 3), relu(), max_pool2d(2), flatten(), linear(36, 10), input=(1, 8, 8)).layout.size
    410
    """
    return DeclaredNet(layers, tuple(input), loss, x, y, transform)


@dataclass(frozen=True)
class DeclaredNet:
    """See `net`; parameters are named as in torch's `nn.Sequential`."""

    layers: tuple[kinds.Kind, ...]
    input: tuple[int, ...]
    loss: str
    x: str
    y: str
    transform: str | None
    keeps_moments: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise UsageError(f"net(loss={self.loss!r}): use one of {', '.join(LOSSES)}.")
        if self.transform not in (None, "unit", "tokens"):
            raise UsageError(f"net(transform={self.transform!r}): use 'unit', 'tokens' or None.")
        if not self.input or min(self.input) < 1 or not self.layers:
            raise UsageError(f"net(input={self.input}): give layers and the shape of an example, such as (1, 28, 28).")
        if isinstance(self.plan, Refusal):
            raise UsageError(f"net(...): {self.plan}.")

    @cached_property
    def _parts(self) -> dict[str, kinds.Part]:
        return {name: part for at, one in enumerate(self.layers) for name, part in kinds.parts_of(one, str(at))}

    @cached_property
    def layout(self) -> Layout:
        """Names and shapes of the parameters, layer by layer."""
        return Layout.of({name: part.shape for name, part in self._parts.items()})

    @cached_property
    def plan(self) -> NativePlan | Refusal:
        """What the core computes."""
        return declared_plan(self.layers, self.input, self.loss, self.transform, self.layout)

    @cached_property
    def native(self) -> Native | str:
        """The net on the compiled core, or why not."""
        if core() is None:
            return why_not() or "the compiled core is not here"
        assert isinstance(self.plan, NativePlan)
        return Native(self.plan, (self.x,), self.y, self.flops())

    @property
    def on_core(self) -> Native:
        """`native`, which is the only way."""
        if isinstance(self.native, str):
            raise UsageError(
                f"fieldfare.net(...) trains on the compiled core alone ({self.native}): install a wheel or a compiler, "
                "or describe the model as an nn.Module or with fieldfare.mlp."
            )
        return self.native

    @property
    def threaded(self) -> bool:
        """It is computed by threads of this process, so that more processes gain nothing."""
        return True

    def folds(self, training: Training) -> bool:
        """`fit` takes a `Folding`."""
        return True

    def init(self, seed: int) -> Params:
        """Numbers of the distributions that torch's layers start with."""
        size = self.layout.size
        at = np.arange(size)
        vector = 2.0 * rng.uniforms(np.array([rng.derive(seed, "init")], np.uint64), at) - 1.0
        for (_, where, _), part in zip(self.layout.items(), self._parts.values(), strict=True):
            if part.fill is not None:
                vector[where] = part.fill
            elif part.bound is not None:
                vector[where] *= part.bound
            else:
                vector[where] = rng.normals(np.array([rng.derive(seed, "init", "normal")], np.uint64), at[where])
        return Params(vector.astype(np.float32), self.layout)

    def of(self, layout: Layout) -> DeclaredNet:
        """The net itself: there are no sub-models of it."""
        if layout != self.layout:
            raise UsageError(
                "fieldfare.net(...) has no sub-models: describe the model as an nn.Module or with fieldfare.mlp."
            )
        return self

    def fit(
        self, start: F32, row: I64, data: Block, plan: Plan, keys: NDArray[np.uint64], training: Training, lr: float,
        drift: Drift, moments: F32 | None = None, fold: Folding | None = None,
    ) -> Fit:  # fmt: skip
        """Train n clients, one per thread at a time."""
        native = self.on_core
        self._check(data)
        return native.fit(start, row, data, plan, keys, training, lr, drift, moments, fold)

    def evaluate(self, models: F32, row: I64, data: Block) -> Mapping[str, F64]:
        """`loss` and, for labels, `accuracy`, `[n]`; both 0 for a client without examples."""
        native = self.on_core
        self._check(data)
        return measured(*native.evaluate(models, row, data), native.labelled)

    def flops(self) -> float:
        """Multiply-adds (as two) of the products of a step, three times; the first op's input needs no gradient."""
        assert isinstance(self.plan, NativePlan)
        macs = [one for op in self.plan.ops if (one := multiply_adds(self.plan, op))]
        return 2.0 * (3 * sum(macs) - macs[0]) if macs else 6.0 * self.layout.size

    def describe(self) -> Mapping[str, Any]:
        """Layers, loss and columns as plain JSON."""
        assert isinstance(self.plan, NativePlan)
        why = "declared layers of the compiled core"
        told = {"x": self.x, "y": self.y, "size": self.layout.size, "path": "native", "why": why}
        return {"net": "declared", "layers": self.plan.describe(), "loss": self.loss, **told}

    def _check(self, data: Block) -> None:
        for name in (self.x, self.y):
            if name not in data.columns:
                have = ", ".join(data.columns) or "none"
                raise UsageError(
                    f"the data has no column {name!r} (it has {have}): rename it, or give net(...) its name."
                )
        have = data.columns[self.x].shape[1:]
        if int(np.prod(have, dtype=np.int64)) != int(np.prod(self.input, dtype=np.int64)):
            raise UsageError(
                f"column {self.x!r} has shape {have} per example but net(input={self.input}) was declared."
            )
        assert isinstance(self.plan, NativePlan)
        v = self.plan.values[self.plan.output]
        wanted = v.h * v.w * (1 if self.loss in ("cross_entropy", "masked_cross_entropy") else v.c)
        found = data.columns[self.y]
        if self.loss in ("cross_entropy", "masked_cross_entropy") and found.dtype.kind not in "iub":
            raise UsageError(f"column {self.y!r} holds {found.dtype}: labels are whole numbers.")
        if int(np.prod(found.shape[1:], dtype=np.int64)) != wanted:
            raise UsageError(
                f"column {self.y!r} has shape {found.shape[1:]} per example; the loss takes {wanted} numbers."
            )


def multiply_adds(plan: NativePlan, op: Op) -> float:
    """Of the forward pass of an op on one example; 0 of ops that are no products."""
    x, out = plan.values[op.ins[0]], plan.values[op.out]
    positions = out.h * out.w
    match op.kind:
        case "linear":
            return float(positions * (x.c if op.ints[2] else x.h * x.w * x.c) * out.c)
        case "conv2d":
            return float(positions * op.ints[0] * op.ints[1] * x.c // op.ints[8] * out.c)
        case "lstm" | "gru":
            return float(positions * (4 if op.kind == "lstm" else 3) * out.c * (x.c + out.c))
        case _:
            return 0.0
