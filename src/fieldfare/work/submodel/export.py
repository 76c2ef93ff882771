"""A level taken home: its parameters alone, the module that holds them, statistics of its norms, its metrics.

Here: `export`. Not here: files (`store.models.write_model` writes `Exported.params`). Invariant: an exported model
computes what the level computes in the whole one; a pass for statistics changes no parameter.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.block import Block
from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.core.params import Params
from fieldfare.work.evaluate import central_evaluation
from fieldfare.work.submodel.family import Family
from fieldfare.work.submodel.rules import Level

_BATCH = 256


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """A stand-alone model: `params` (statistics of its norms are `params.sides`) and the `net` they belong to."""

    level: Level
    params: Params
    net: Any

    def module(self) -> Any:
        """The `nn.Module` of a torch net, in evaluation mode, with these parameters."""
        if not hasattr(self.net, "module"):
            raise UsageError(f"a {type(self.net).__name__} is no torch module: use .net and .params.")
        return self.net.module(self.params)

    def evaluate(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Metrics on the rows of `columns`."""
        return central_evaluation(self.net, columns)(self.params.vector)

    def onnx(self) -> bytes:
        """The module as an ONNX file, for batches of any size.

        Errors: `UsageError` for declared layers; `MissingExtra` without the packages onnx and onnxscript.
        """
        module = self.module()
        for package in ("onnx", "onnxscript"):
            if find_spec(package) is None:
                raise MissingExtra(f"ONNX needs the package {package}: pip install 'fieldfare[onnx]'.")
        import torch

        batch = torch.export.Dim("batch", min=1)
        inputs = self.net.batch(2)
        told = logging.getLogger("torch.onnx")  # of operators of libraries that are not here
        level = told.level
        told.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = torch.onnx.export(
                    module, inputs, dynamo=True, verbose=False, dynamic_shapes=tuple({0: batch} for _ in inputs)
                )
        finally:
            told.setLevel(level)
        return found.model_proto.SerializeToString()  # type: ignore[union-attr]


def export(
    family: Family, model: Params, level: Level | float = 1.0, rule: Any = None,
    data: Mapping[str, NDArray[Any]] | None = None,
) -> Exported:  # fmt: skip
    """The stand-alone model of a level of `model`: its first channels, or those that `rule` keeps.

    With `data` (columns) the batch norms of a torch net get running statistics of this level on these rows, a pass of
    batches of 256 in training mode (HeteroFL's static batch norm: none are kept while training); without, they use
    those of each batch. Our reading: every batch counts alike, so the last one is left out if it is short.
    """
    level = level if isinstance(level, Level) else Level(float(level))
    params, net = family.cut(model, level, rule), family.at(level)
    if data is None:
        return Exported(level, params, net)
    if not hasattr(net, "_module"):
        raise UsageError("export(data=...) is for batch norms, and declared layers have none: leave it out.")
    net, sides = _with_statistics(net, params, data)
    return Exported(level, replace(params, sides=sides), net)


def _with_statistics(net: Any, params: Params, data: Mapping[str, NDArray[Any]]) -> tuple[Any, dict[str, NDArray[Any]]]:
    """A net whose batch norms have running statistics of `data`, and these by name."""
    import copy

    import torch
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm

    module = net.module(params).train()
    norms: list[tuple[str, Any]] = []
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and part.running_mean is None:
            width = part.weight.shape[0] if part.affine else part.num_features
            part.track_running_stats, part.momentum = True, None
            part.register_buffer("running_mean", torch.zeros(width))
            part.register_buffer("running_var", torch.ones(width))
            part.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
            norms.append((name, part))
    if not norms:
        raise UsageError("export(data=...): this net has no batch norm without running statistics; leave it out.")
    held = [part for part in module.modules() if isinstance(part, nn.Dropout)]
    for part in held:
        part.eval()
    rows = np.arange(len(data[net.y]))
    inputs, _ = net._columns(Block(data, rows, np.array([0, len(rows)])))
    whole = max(len(rows) // _BATCH, 1) * _BATCH
    with torch.no_grad():
        for at in range(0, min(whole, len(rows)), _BATCH):
            batch = [column.take(rows[at : at + _BATCH]) for column in inputs]
            module(*([net._transform(batch[0])] if callable(net._transform) else batch))
    for part in held:
        part.train()
    out = copy.copy(net)
    out._factory = None
    out._take(module.eval())
    sides = {
        f"{name}.{which}": getattr(part, which).numpy().copy()
        for name, part in norms for which in ("running_mean", "running_var")
    }  # fmt: skip
    return out, sides
