"""From what the user calls a model to a `Net`: recognised by what it is, without importing a library for it."""

from __future__ import annotations

import sys
from typing import Any

from fieldfare.core.errors import UsageError


def as_net(model: Any, *, loss: Any = None, metrics: Any = None) -> Any:
    """A net for a job: `model` as it is if it is one, an `nn.Module` (or a function that makes one) by `torch_net`.

    `loss` and `metrics` are for modules only. A net that binds work of its own (`opaque`) passes through.
    """
    if hasattr(model, "works") or (hasattr(model, "fit") and hasattr(model, "layout")):
        if loss is not None or metrics is not None:
            raise UsageError(f"Job(loss=...) is for an nn.Module: {type(model).__name__} has its loss already.")
        return model
    if isinstance(model, type):
        raise UsageError(f"Job(model={model.__name__}) is a class: pass an instance, or a function that makes one.")
    torch = sys.modules.get("torch")
    if (torch is not None and isinstance(model, torch.nn.Module)) or _makes(model):
        from fieldfare.work.torch_net import torch_net

        given = {} if loss is None else {"loss": loss}
        return torch_net(model, **given, metrics=metrics)
    raise UsageError(
        f"Job(model=...) got a {type(model).__name__}: pass a declared net (fieldfare.mlp), an nn.Module or a function "
        "that makes one, fieldfare.jax_net(...) or fieldfare.opaque(...)."
    )


def _makes(model: Any) -> bool:
    """A plain function of no arguments: taken for one that makes a module."""
    return callable(model) and getattr(model, "__code__", None) is not None and model.__code__.co_argcount == 0
