"""One torch module per process, its parameters views of one flat float32 vector: loading a client is one copy.

Here: which modules can be federated, and the flat storage. Not here: training (`torch_loops`, `torch_lower`).
Invariant: after `load` the module is a function of the vector, of the frozen parameters and of the buffers as they
were given; so what one client leaves behind never reaches the next.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.core.params import Layout

if TYPE_CHECKING:
    from torch import Tensor, nn

F32 = NDArray[np.float32]

_TRIM, _MMAP = -1, -3
_LINE = 16
"""Float32 numbers in a cache line: every tensor begins on one, whatever lies before it in the vector."""


@cache
def need_torch() -> None:
    """Refuse in one line where torch is absent."""
    if find_spec("torch") is None:
        raise MissingExtra.of("torch", "torch")


def is_module(thing: Any) -> bool:
    """Whether `thing` is an `nn.Module`, found without importing torch."""
    return any(c.__name__ == "Module" and c.__module__ == "torch.nn.modules.module" for c in type(thing).__mro__)


@cache
def keep_memory() -> None:
    """Let glibc keep up to 256 MiB of freed memory for the next step, once per process, from the first training on.

    By default it may give the memory of a step's activations back to the system after every step and fault it in
    again: a quarter of the time of a recurrent net. It cannot be asked what it was set to, so it stays; nothing but
    speed and idle memory depend on it. Elsewhere than on Linux with glibc this does nothing.
    """
    if sys.platform != "linux":
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM, 256 << 20)
        mallopt(_MMAP, 32 << 20)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside, the old number after; small products lose 20-50x to hand-offs between threads."""
    import torch

    before = torch.get_num_threads()
    if before != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)


@contextmanager
def own_randomness() -> Iterator[Callable[[int], None]]:
    """A function that seeds torch's CPU generator, cheaply; the generator's state is put back at the end."""
    import torch

    generator = torch.default_generator
    before = generator.get_state()
    try:
        yield generator.manual_seed
    finally:
        generator.set_state(before)


def build(factory: Callable[[], Any], seed: int) -> nn.Module:
    """The module that `factory` makes when torch is seeded from (seed, "init"); torch's own state is put back."""
    with own_randomness() as reseed:
        reseed(rng.derive(seed, "init", "torch") >> 1)
        module = factory()
    if not is_module(module):
        raise UsageError(f"the function given as model made a {type(module).__name__}: make it return an nn.Module.")
    return module


def check(module: nn.Module) -> None:
    """Refuse, each in one line, what cannot be held as one float32 vector or would be averaged wrongly."""
    from torch.nn.parameter import is_lazy

    for name, part in module.named_modules():
        if getattr(part, "track_running_stats", False) and getattr(part, "running_mean", None) is not None:
            raise UsageError(
                f"layer {name or 'model'!r} ({type(part).__name__}) keeps running statistics, which differ between "
                "clients and are no parameters, so averaging cannot combine them: use nn.GroupNorm, or the same layer "
                "with track_running_stats=False."
            )
    seen: dict[int, str] = {}
    for name, p in module.named_parameters():
        if is_lazy(p):
            raise UsageError(
                f"parameter {name!r} has no shape yet: call the module once, or use a layer that is not lazy."
            )
        if p.device.type != "cpu":
            raise UsageError(f"parameter {name!r} is on {p.device}: pass module.cpu(), training here is on the CPU.")
        if p.requires_grad and str(p.dtype) != "torch.float32":
            raise UsageError(f"parameter {name!r} is {p.dtype}: models travel as float32; pass module.float().")
        if p.numel() and p.data_ptr() in seen:
            raise UsageError(
                f"parameters {seen[p.data_ptr()]!r} and {name!r} share memory but are two parameters: tie them by "
                "assigning one to the other, such as self.out.weight = self.emb.weight."
            )
        seen[p.data_ptr()] = name
    if not any(p.requires_grad for p in module.parameters()):
        raise UsageError("the module has no parameter with requires_grad=True: there is nothing to train.")


def trained(module: nn.Module) -> list[tuple[str, Any]]:
    """(name, parameter) of all that is trained; a tied parameter once, under its first name."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def layout_of(module: nn.Module) -> Layout:
    """The layout of the trained parameters, in the order of `named_parameters()`."""
    return Layout.of({name: tuple(p.shape) for name, p in trained(module)})


def vector_of(module: nn.Module) -> F32:
    """The trained parameters as one vector `[P]`, copied."""
    return np.concatenate([p.detach().numpy().reshape(-1) for _, p in trained(module)])


def write_into(module: nn.Module, vector: F32, layout: Layout) -> None:
    """Copy `vector` into the trained parameters of `module`."""
    for (_, p), (_, at, shape) in zip(trained(module), layout.items(), strict=True):
        np.copyto(p.detach().numpy(), vector[at].reshape(shape))


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """One tensor: where it is in the vector and in the flat storage, and whether it lies channels last there."""

    name: str
    vector: slice
    flat: slice
    shape: tuple[int, ...]
    nhwc: bool


def _of_conv2d(module: nn.Module) -> set[int]:
    from torch.nn import Conv2d

    return {id(part.weight) for part in module.modules() if type(part) is Conv2d}


class Resident:
    """`module` (a private copy of it) on flat storage; `channels_last` for the weights of 2-d convolutions."""

    def __init__(self, module: nn.Module, channels_last: bool) -> None:
        import torch

        self.module = copy.deepcopy(module)
        named, convs = trained(self.module), _of_conv2d(self.module) if channels_last else set[int]()
        self.layout = layout_of(self.module)
        self.places: list[Place] = []
        at = 0
        for (name, p), (_, where, shape) in zip(named, self.layout.items(), strict=True):
            nhwc = id(p) in convs
            self.places.append(Place(name, where, slice(at, at + p.numel()), shape, nhwc))
            at += -(-p.numel() // _LINE) * _LINE
        self.size = at
        self.flat = torch.zeros(at)
        self.params: list[Tensor] = [p for _, p in named]
        self.values = self.views(self.flat)
        for p, value in zip(self.params, self.values, strict=True):
            value.copy_(p.detach())
            p.data = value
        self.grad = torch.zeros(0)
        self.grads: list[Tensor] = []
        self._flat = self.flat.numpy()
        self._same = len(self.places) == 1 and not self.places[0].nhwc
        self._buffers = [
            (owner, name, buffer, buffer.clone())
            for owner in self.module.modules() for name, buffer in owner.named_buffers(recurse=False)
        ]  # fmt: skip

    @property
    def channels_last(self) -> bool:
        return any(place.nhwc for place in self.places)

    def views(self, flat: Tensor) -> list[Tensor]:
        """The tensors inside a vector of the flat storage's form."""
        out: list[Tensor] = []
        for place in self.places:
            part = flat[place.flat]
            if place.nhwc:
                o, i, h, w = place.shape
                out.append(part.view(o, h, w, i).permute(0, 3, 1, 2))
            else:
                out.append(part.view(place.shape))
        return out

    def with_gradient(self) -> None:
        """Make the flat gradient, once, for optimisers that need one."""
        import torch

        if not self.grads:
            self.grad = torch.zeros(self.size)
            self.grads = self.views(self.grad)

    def place(self, vector: NDArray[Any], into: F32) -> None:
        """Copy a model-shaped `vector` `[P]` into an array of the flat storage's form."""
        if self._same:
            np.copyto(into[self.places[0].flat], vector, casting="unsafe")
            return
        for place in self.places:
            part, out = vector[place.vector], into[place.flat]
            if place.nhwc:
                o, i, h, w = place.shape
                part, out = part.reshape(place.shape).transpose(0, 2, 3, 1), out.reshape(o, h, w, i)
            np.copyto(out, part, casting="unsafe")

    def load(self, vector: F32) -> None:
        """Become the model `vector` `[P]`, with all buffers as they were given."""
        self.place(vector, self._flat)
        self.renew()

    def renew(self) -> None:
        """Put all buffers back as they were given."""
        for owner, name, buffer, before in self._buffers:
            buffer.copy_(before)
            owner._buffers[name] = buffer  # forward may have put another in its place

    def save(self, out: F32, flat: F32 | None = None) -> None:
        """Copy the model, or an array `flat` of the flat storage's form, into `out` `[P]`."""
        flat = self._flat if flat is None else flat
        for place in self.places:
            part, into = flat[place.flat], out[place.vector]
            if place.nhwc:
                o, i, h, w = place.shape
                part, into = part.reshape(o, h, w, i).transpose(0, 3, 1, 2), into.reshape(place.shape)
            np.copyto(into, part)
