"""What a module does to a small batch, as a graph whose every node knows its value.

Here: torch.fx with real numbers beside the proxies, so that a module may ask for shapes, lengths and dimensions. Not
here: what the nodes mean (`lower`). Invariant: nothing is left of a trace outside the copy of the module it was given:
torch's random state is put back, and randomness drawn by the module's own Python is found and told.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Proxy, TraceError

from fieldfare.work.native.plan import NoPlan
from fieldfare.work.torch_resident import one_thread


class _Known(Proxy):
    """A proxy that knows the tensor it stands for."""

    @property
    def _value(self) -> Any:
        return self.node.meta["value"]

    @property
    def shape(self) -> Any:
        return self._value.shape

    @property
    def ndim(self) -> int:
        return self._value.ndim

    @property
    def dtype(self) -> Any:
        return self._value.dtype

    @property
    def device(self) -> Any:
        return self._value.device

    def size(self, dim: int | None = None) -> Any:
        return self._value.size() if dim is None else self._value.size(dim)

    def dim(self) -> int:
        return self._value.dim()

    def numel(self) -> int:
        return self._value.numel()

    def is_floating_point(self) -> bool:
        return self._value.is_floating_point()

    def __len__(self) -> int:
        return len(self._value)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self._value)))


class _Tracer(fx.Tracer):
    def __init__(self, batch: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.batch, self._inside = [*batch], False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._inside else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        made_here = m not in (self.submodule_paths or {})
        return forward(*args, **kwargs) if self._inside or made_here else super().call_module(m, forward, args, kwargs)

    def proxy(self, node: fx.Node) -> Proxy:
        return _Known(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Proxy:
        if not torch.is_grad_enabled():
            raise NoPlan("torch.no_grad in a forward", "has no native form")
        made = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        node = made.node
        before = torch.get_rng_state()
        self._inside = True
        try:
            with torch.no_grad():
                node.meta["value"] = self._computed(node)
        finally:
            self._inside = False
            node.meta["chance"] = not torch.equal(before, torch.get_rng_state())
            torch.set_rng_state(before)
        return made

    def _computed(self, node: fx.Node) -> Any:
        def known(one: fx.Node) -> Any:
            value = one.meta["value"] if "value" in one.meta else fixed(self.root, one.target)
            return value.clone() if isinstance(value, Tensor) else value

        args, kwargs = fx.node.map_arg(node.args, known), fx.node.map_arg(node.kwargs, known)
        match node.op:
            case "placeholder":
                return self.batch.pop(0)
            case "get_attr":
                return fixed(self.root, node.target)
            case "call_module":
                return self.root.get_submodule(str(node.target)).forward(*args, **kwargs)
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            case _:
                return node.target(*args, **kwargs)  # type: ignore[operator]


class _Root1(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, a: Any) -> Any:
        return self.model(a)


class _Root2(_Root1):
    def forward(self, a: Any, b: Any) -> Any:
        return self.model(a, b)


class _Root3(_Root1):
    def forward(self, a: Any, b: Any, c: Any) -> Any:
        return self.model(a, b, c)


def fixed(root: nn.Module, path: Any) -> Any:
    """The attribute of `root` at a dotted path."""
    out: Any = root
    for part in str(path).split("."):
        out = getattr(out, part)
    return out


def trace(module: nn.Module, batch: tuple[Tensor, ...], train: bool) -> tuple[nn.Module, fx.Graph]:
    """The graph of `module` (changed: give a copy) on `batch`, and the root whose attributes its nodes name."""
    if len(batch) > 3:
        raise NoPlan("a module of more than three inputs", "has no native form")
    root = (_Root1, _Root2, _Root3)[len(batch) - 1](module).train(train)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    buffers = [(b, b.clone()) for b in module.buffers()]
    apply = torch.autograd.Function.__dict__["apply"]
    torch.autograd.Function.apply = classmethod(_no_apply)  # type: ignore[method-assign]
    try:
        with torch.enable_grad(), one_thread():
            graph = _Tracer(tuple(x.clone() for x in batch)).trace(root)
    except NoPlan:
        raise
    except TraceError as error:
        raise NoPlan(f"the forward of {type(module).__name__}", f"decides by values: {_first(error)}") from error
    except Exception as error:
        raise NoPlan(f"the forward of {type(module).__name__}", f"could not be traced: {_first(error)}") from error
    finally:
        torch.autograd.Function.apply = apply  # type: ignore[method-assign]
        now = np.random.get_state()  # noqa: NPY002
        drawn = not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate()
        drawn = drawn or before[2][2] != now[2] or not np.array_equal(before[2][1], now[1])
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])  # noqa: NPY002
    if drawn:
        raise NoPlan(f"the forward of {type(module).__name__}", "draws random numbers of its own")
    after = [*module.buffers()]
    if len(after) != len(buffers) or any(
        a is not b or not torch.equal(a, c) for a, (b, c) in zip(after, buffers, strict=True)
    ):
        raise NoPlan(f"the forward of {type(module).__name__}", "changes a buffer")
    return root, graph


def _no_apply(function: Any, *args: Any, **kwargs: Any) -> Any:
    raise NoPlan(f"{function.__name__}.apply", "has a backward of its own")


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
