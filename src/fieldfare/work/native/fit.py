"""Training and measuring on the compiled core: the arrays of a `Net` call, handed over where they lie.

Here: a plan that runs. Not here: how a model becomes a plan (`declared`, `lower`), whether the core is the fastest
(`choose`). Invariant: row i depends, to the bit, on client i's inputs alone: not on threads, chunk or neighbours; what
is folded where it lies has the bits of folding the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.work.native import threads
from fieldfare.work.native.modules import core
from fieldfare.work.native.plan import TOKENS, NativePlan
from fieldfare.work.net import BadExamples, Drift, Fit, Folding, Plan, Training
from fieldfare.work.shortage import too_little_memory

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

LABELLED = ("cross_entropy", "masked_cross_entropy")


class Native:
    """A plan on the core, for columns named `x` and `y`; `flops` of a training step on one example.

    `left_out`: whether a label of -100 is one that does not count, as in torch; else it is refused.
    """

    def __init__(self, plan: NativePlan, x: tuple[str, ...], y: str, flops: float, left_out: bool = True) -> None:
        self.plan, self.x, self.y, self.flops, self.left_out = plan, x, y, flops, left_out
        self.key = plan.key()
        self._made: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    @property
    def labelled(self) -> bool:
        """Whether the loss compares with labels."""
        return self.plan.loss in LABELLED

    def made(self) -> Any:
        """The core's plan, made at first use."""
        if self._made is None:
            module = core()
            if module is None:
                raise UsageError("the compiled core is not here: see `fieldfare inspect`, or leave path='native' out.")
            self._made = module.Plan(*self.plan.arguments())
        return self._made

    def fit(
        self, start: F32, row: I64, data: Block, plan: Plan, keys: NDArray[np.uint64], training: Training, lr: float,
        drift: Drift, moments: F32 | None = None, fold: Folding | None = None,
    ) -> Fit:  # fmt: skip
        """Train n clients, one per thread at a time; with `fold` their deltas are summed and no row is kept."""
        n, size = len(plan.steps), self.plan.vector_size
        columns, y, rows = self._columns(data, plan.rows)
        self._check_left_out(y, rows, plan.start)
        batch = max(1, min(plan.batch_size, int(plan.per_epoch.max(initial=1))))
        losses = np.zeros(n)
        left = None if moments is None else np.array(moments, np.float32, order="C")
        out = np.empty((n, size), np.float32) if fold is None else None
        into = None
        total = refused = None
        if fold is not None:
            total, refused = np.zeros(size, np.int64), np.zeros(n, np.uint8)
            into = fold.step, fold.cap, fold.clip, np.ascontiguousarray(fold.weights, np.int64), total, refused
        a = drift.a
        if a is not None:
            a = np.ascontiguousarray(a[:1] if n > 1 and not a.strides[0] else a, np.float32)
        ref = ref_row = None
        if drift.mu and drift.ref is not None:
            ref = np.ascontiguousarray(drift.ref, np.float32)
            ref_row = row if len(ref) > 1 else np.zeros(n, np.int64)
        place, value, column = _told(
            self.made().fit, np.ascontiguousarray(start, np.float32), np.ascontiguousarray(row, np.int64), columns, y,
            rows, plan.start, plan.steps, plan.per_epoch, batch, np.ascontiguousarray(keys, np.uint64),
            _settings(training, lr), float(drift.mu), ref,
            None if ref_row is None else np.ascontiguousarray(ref_row, np.int64), a,
            None if drift.mask is None else np.ascontiguousarray(drift.mask, np.bool_), left, out, into, losses,
            threads.worth(n, self.flops * len(plan.rows)),
        )  # fmt: skip
        if place >= 0:
            raise self._bad(place, value, column)
        if total is None or refused is None or out is not None:
            assert out is not None
            return Fit(out, losses, {}, left)
        return Fit(np.empty((0, size), np.float32), losses, {}, left, total, refused.astype(np.bool_))

    def evaluate(self, models: F32, row: I64, data: Block) -> tuple[F64, F64, F64]:
        """Sums over each client's data `[n]`: of losses, of what is right, and how many were counted."""
        loss, right, counted = (np.zeros(data.n) for _ in range(3))
        columns, y, rows = self._columns(data, data.rows)
        self._check_left_out(y, rows, data.offsets)
        place, value, column = _told(
            self.made().evaluate, np.ascontiguousarray(models, np.float32), np.ascontiguousarray(row, np.int64),
            columns, y, rows, np.ascontiguousarray(data.offsets, np.int64), loss, right,
            counted, threads.worth(len(data.rows), self.flops / 3 * len(data.rows)),
        )  # fmt: skip
        if place >= 0:
            raise self._bad(place, value, column)
        return loss, right, counted

    def outputs(self, model: F32, data: Block, train: bool = False) -> F32:
        """Outputs `[m, positions * c]` of all rows of `data`."""
        v = self.plan.values[self.plan.output]
        out = np.empty((len(data.rows), v.h * v.w * v.c), np.float32)
        columns, _, rows = self._columns(data, data.rows, False)
        self.made().forward(np.ascontiguousarray(model, np.float32), columns, rows, train, out)
        return out

    def gradient(self, model: F32, data: Block, key: int = 0, step: int = 0) -> tuple[float, F32]:
        """Mean loss of all rows of `data` as one batch in training, and its gradient `[P]`."""
        grad = np.zeros(self.plan.vector_size, np.float32)
        columns, y, rows = self._columns(data, data.rows)
        return self.made().gradient(np.ascontiguousarray(model, np.float32), columns, y, rows, key, step, grad), grad

    def _check_left_out(self, y: NDArray[Any] | None, rows: I64, start: I64) -> None:
        if self.left_out or y is None or not self.labelled:
            return
        bad = np.flatnonzero(y[rows] < 0)
        if len(bad):
            raise self._bad(int(np.searchsorted(start, bad[0], "right")) - 1, int(y[rows[bad[0]]]), -1)

    def _columns(
        self, data: Block, rows: I64, wanted: bool = True
    ) -> tuple[list[NDArray[Any]], NDArray[Any] | None, I64]:  # fmt: skip
        """Columns and targets as the core reads them, and the rows to read: where they lie if it can, else copies of
        the rows that are wanted."""
        names = [*self.x, self.y] if wanted else [*self.x]
        arrays = [data.columns[name] for name in names]
        rows = np.ascontiguousarray(rows, np.int64)
        if not all(array.flags.c_contiguous and _read(array.dtype) for array in arrays):
            some, rows = np.unique(rows, return_inverse=True)
            arrays = [np.ascontiguousarray(array[some], _nearest(array.dtype)) for array in arrays]
            rows = np.ascontiguousarray(rows, np.int64)
        return arrays[: len(self.x)], arrays[-1] if wanted else None, rows

    def _bad(self, place: int, value: int, column: int) -> BadExamples:
        v = self.plan.values[self.plan.output]
        if column < 0:
            return BadExamples(
                f"column {self.y!r} has the label {value} that the model has no output for: labels are 0..{v.c - 1}; "
                "relabel from 0, or widen it.",
                place,
            )
        return BadExamples(
            f"column {self.x[column]!r} has the symbol {value}, a number out of range of the embedding: relabel from "
            "0, or widen it.",
            place,
        )


def _read(dtype: np.dtype[Any]) -> bool:
    """Whether the core reads numbers of this kind where they lie."""
    return dtype.isnative and (dtype in (np.float32, np.float64) or (dtype.kind in "iub" and dtype != np.uint64))


def _nearest(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The kind that the core reads in place of this one."""
    if _read(dtype):
        return dtype
    return np.dtype(np.int64 if dtype.kind in "iu" else np.float32)


def _told(call: Any, *given: Any) -> Any:
    """What the core answers; what it cannot take is refused in one line."""
    try:
        return call(*given)
    except MemoryError as error:
        raise too_little_memory(error, "to train on the compiled core") from error
    except ValueError as error:
        raise UsageError(
            f"the compiled core cannot train on this: {error}; set another path, or change the data."
        ) from None


def takes_tokens(plan: NativePlan) -> Sequence[int]:
    """Which inputs of `plan` are symbols."""
    return [at for at, one in enumerate(plan.inputs) if one.kind == TOKENS]


def _settings(training: Training, lr: float) -> dict[str, Any]:
    adam = training.optimizer == "adam"
    return {
        "lr": float(lr), "momentum": 0.0 if adam else float(training.momentum),
        "weight_decay": float(training.weight_decay),
        "clip_norm": 0.0 if training.clip_norm is None else float(training.clip_norm), "nesterov": training.nesterov,
        "adam": adam, "half": training.precision == "bfloat16",
        "beta1": training.betas[0], "beta2": training.betas[1], "eps": training.eps,
    }  # fmt: skip
