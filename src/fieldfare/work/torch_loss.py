"""Losses and metrics by name for torch modules, and columns of data as tensors.

Here: what compares an output with a target. Not here: models. Invariant: a tensor made from rows of a column depends
on those rows only, and lies at the same alignment for every client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[[Any, Any], Any]
Metric = Callable[[Any, Any], Any]

LOSSES = ("cross_entropy", "masked_cross_entropy", "bce", "mse", "l1")
METRICS = ("accuracy", "mae", "mse")


def is_cross_entropy(loss: Any) -> bool:
    """Whether `loss` is the mean cross-entropy on logits without options, however it is spelled."""
    from torch import nn
    from torch.nn import functional as f

    if type(loss) is nn.CrossEntropyLoss:
        plain = loss.weight is None and loss.label_smoothing == 0.0 and loss.ignore_index == -100
        return plain and loss.reduction == "mean"
    return loss is None or loss == "cross_entropy" or loss is f.cross_entropy


def loss_of(loss: Any) -> tuple[str, Loss]:
    """Name and function (output, y) -> mean loss, a scalar, of a loss given by name, as function or as module."""
    from torch.nn import functional as f

    if is_cross_entropy(loss):
        return "cross_entropy", cross_entropy
    if callable(loss):
        name = getattr(loss, "__name__", type(loss).__name__)
        return (f"{name} (own)" if name in LOSSES else name), loss  # whatever its name, it is not ours
    match loss:
        case "masked_cross_entropy":
            return loss, MaskedCrossEntropy()
        case "bce":
            return loss, lambda output, y: f.binary_cross_entropy_with_logits(_like(output, y), y.to(output.dtype))
        case "mse":
            return loss, lambda output, y: f.mse_loss(_like(output, y), y.to(output.dtype))
        case "l1":
            return loss, lambda output, y: f.l1_loss(_like(output, y), y.to(output.dtype))
        case _:
            raise UsageError(
                f"loss={loss!r} is unknown: use one of {', '.join(LOSSES)}, or a function loss(output, y) that returns "
                "a scalar tensor."
            )


def classes_last(output: Tensor, y: Tensor) -> bool:
    """Whether logits are `[B, T, ..., C]` for targets `[B, T, ...]`, rather than torch's `[B, C, T, ...]`."""
    return output.dim() > 2 and output.dim() == y.dim() + 1 and output.shape[:-1] == y.shape


def counted(output: Tensor, y: Tensor) -> Tensor:
    """Logits `[m, C]` of the targets that count (all but -100), of any that `cross_entropy` takes.

    Of several exits, logits `[B, exits, C]` for labels `[B]`, all count.
    """
    if output.dim() == y.dim() + 2:
        y = y.repeat_interleave(output.shape[1])
        output = output.flatten(0, 1)
    if y.dim() == output.dim():  # probabilities: every row counts
        return output if output.dim() == 2 else output.movedim(1, -1).flatten(0, -2)
    if classes_last(output, y):
        output = output.flatten(0, -2)
    elif output.dim() > 2:
        output = output.movedim(1, -1).flatten(0, -2)
    some = y.reshape(-1) >= 0
    return output if bool(some.all()) else output[some]


def cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of logits `[B, C]`, `[B, T, C]` (sequences) or `[B, C, ...]`; target -100 is left out."""
    from torch.nn import functional as f

    if classes_last(output, y):
        return f.cross_entropy(output.flatten(0, -2), y.reshape(-1))
    return f.cross_entropy(output, y)


class MaskedCrossEntropy:
    """`cross_entropy`, and in training over the classes that the client's own examples have (HeteroFL's masked loss).

    Absent classes are left out of the softmax, where the authors' program sets their logits to zero.
    """

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(output, y)

    def of(self, labels: NDArray[Any]) -> Loss:
        """The loss of a client that has these `labels`."""
        shown = self.shown(labels)
        return lambda output, y: cross_entropy(shown(output, y), y)

    def shown(self, labels: NDArray[Any]) -> Callable[[Tensor, Tensor], Tensor]:
        """Logits of (output, y) with those of classes a client of these `labels` has not far below all others."""
        import torch

        have = torch.from_numpy(np.unique(labels[labels >= 0]).astype(np.int64))

        def masked(output: Tensor, y: Tensor) -> Tensor:
            last = classes_last(output, y)
            mask = torch.full((output.shape[-1 if last else 1],), -1e30)
            mask[have] = 0.0
            return output + (mask if last else mask.view(-1, *[1] * (output.dim() - 2)))

        return masked


def metrics_of(metrics: Iterable[str] | Mapping[str, Metric] | None, loss: str) -> dict[str, Metric]:
    """Functions (output, y) -> value per example (or a mean) by name; None: accuracy for classifiers."""
    if metrics is None:
        metrics = ("accuracy",) if loss in ("cross_entropy", "masked_cross_entropy", "bce") else ()
    if isinstance(metrics, Mapping):
        return dict(metrics)
    known: dict[str, Metric] = {
        "accuracy": _sign_accuracy if loss == "bce" else _accuracy,
        "mae": lambda output, y: (_like(output, y) - y).abs(),
        "mse": lambda output, y: (_like(output, y) - y).square(),
    }
    for name in metrics:
        if name not in known:
            raise UsageError(
                f"metrics: {name!r} is unknown: use {', '.join(known)}, or {{name: function(output, y)}} that returns "
                "one value per example."
            )
    return {name: known[name] for name in metrics}


def _accuracy(output: Tensor, y: Tensor) -> Tensor:
    right = output.argmax(-1 if classes_last(output, y) else 1) == y
    counted = y >= 0
    return right[counted] if not bool(counted.all()) else right


def _sign_accuracy(output: Tensor, y: Tensor) -> Tensor:
    return (_like(output, y) > 0) == (y > 0.5)


def _like(output: Tensor, y: Tensor) -> Tensor:
    """`[B, 1]` outputs beside `[B]` targets, the same numbers."""
    return output.reshape(y.shape) if output.dim() == y.dim() + 1 and output.shape[-1] == 1 else output


class Column:
    """Rows of one column as tensors: gathered into one buffer, numbers as float32 and labels or tokens as int64."""

    def __init__(self, name: str, array: NDArray[Any], transform: Any = None) -> None:
        import torch

        if array.dtype.kind not in "fiub":
            raise UsageError(f"column {name!r} holds {array.dtype}: torch needs numbers; encode the column first.")
        self.name, self.array, self._unit = name, array, transform == "unit"
        self.row_bytes = max(array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64)), 1)
        self._to = torch.int64 if array.dtype.kind in "iu" else torch.float32
        self._raw = callable(transform) and array.dtype == np.uint8
        known = array.dtype.kind != "u" or array.dtype.itemsize == 1
        self._native = array.dtype.newbyteorder("=") if known else np.dtype(np.int64)
        self._direct = array.flags.c_contiguous and array.dtype == self._native
        self._buffer = np.empty((0, *array.shape[1:]), self._native)

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Rows `[m]` as a tensor `[m, ...]`, valid until the next call."""
        import torch

        m = len(rows)
        if len(self._buffer) < m:
            like = torch.from_numpy(np.empty(0, self._native)).dtype
            self._buffer = torch.empty((m, *self.array.shape[1:]), dtype=like).numpy()
        out = self._buffer[:m]
        if self._direct:
            np.take(self.array, rows, axis=0, out=out, mode="clip")
        else:
            out[...] = self.array[rows]
        tensor = torch.from_numpy(out)
        if self._unit:
            return tensor.to(torch.float32).div_(255.0)
        return tensor if self._raw else tensor.to(self._to)
