"""What a user may give as the model of a job, recognised: a net, an `nn.Module`, a function that makes one.

Not here: the adapters. Invariant: no library is imported that the model does not come from.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.work.torch_resident import is_module, own_randomness


def is_net(thing: Any) -> bool:
    """Whether `thing` has what `work.net.Net` asks for."""
    return all(hasattr(thing, name) for name in ("layout", "init", "fit", "evaluate", "flops", "describe"))


def is_bound(thing: Any) -> bool:
    """Whether `thing` brings its own client computations (`opaque`, `flower_client`)."""
    return hasattr(thing, "works") and hasattr(thing, "init")


def as_net(
    model: Any, loss: Any = None, *, metrics: Any = None, example: Mapping[str, NDArray[Any]] | None = None
) -> Any:
    """The net of a job's `model`: a `Net` or `opaque(...)` as it is, an `nn.Module` or its factory by `torch_net`.

    `loss` and `metrics`: names or functions, for an `nn.Module`; other models bring theirs, so that giving one is a
    `UsageError`.
    `example`: a few rows of the data's columns, on which a torch net counts its FLOPs.
    """
    if isinstance(model, type):
        raise UsageError(f"Job(model={model.__name__}) is a class: give one of it, such as {model.__name__}(...).")
    given = model
    if callable(model) and not (is_module(model) or is_net(model) or is_bound(model)):
        with own_randomness() if "torch" in sys.modules else nullcontext():
            model = _made(model)
        if model is None:
            raise UsageError("the function given as model returned nothing: make it return a net or an nn.Module.")
    if is_module(model):
        from fieldfare.work.torch_net import torch_net

        return torch_net(given, "cross_entropy" if loss is None else loss, metrics, example=example)
    if not (is_net(model) or is_bound(model)):
        raise UsageError(
            f"Job(model=...) got a {type(model).__name__}: pass fieldfare.mlp(...), an nn.Module (or a function that "
            "makes one), jax_net(...), opaque(...) or flower_client(...)."
        )
    if metrics is not None or (loss is not None and loss != getattr(model, "loss", None)):
        raise UsageError(
            f"Job(loss=...) is for an nn.Module; {type(model).__name__} brings its own: give the loss there."
        )
    if example is not None and hasattr(model, "with_example"):
        return model.with_example(example)
    return model


def _made(factory: Any) -> Any:
    """What a function given as model makes; one that wants arguments is refused."""
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise UsageError(
            f"the function given as model cannot be called without arguments ({error}): wrap it in a lambda."
        ) from None
    except ValueError:
        pass
    return factory()
