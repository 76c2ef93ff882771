"""A model as one float32 vector with a layout, and views that select a sub-model of it.

Not here: file forms (store) and the named views each ML library wants (work).
Invariant: `Params.vector` is read-only, contiguous float32 of exactly `layout.size` elements.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Names, shapes and offsets of the tensors inside a parameter vector, in order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Iterable[int]]) -> Layout:
        """The layout of `{name: shape}`.

        >>> Layout.of({"w": (2, 3), "b": (3,)}).size
        9
        """
        return cls(tuple(tensors), tuple(tuple(shape) for shape in tensors.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(prod(shape) for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        starts = [0]
        for size in self.sizes:
            starts.append(starts[-1] + size)
        return tuple(starts)

    @property
    def size(self) -> int:
        """Number of parameters, P."""
        return self.offsets[-1]

    def items(self) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
        """(name, slice of the vector, shape) of every tensor."""
        for name, start, size, shape in zip(self.names, self.offsets, self.sizes, self.shapes, strict=False):
            yield name, slice(start, start + size), shape

    def mask(self, chosen: Iterable[str]) -> NDArray[np.bool_]:
        """Bool `[P]`, true where a tensor's name starts with one of `chosen`; unknown names are refused."""
        out = np.zeros(self.size, np.bool_)
        for prefix in chosen:
            found = False
            for name, where, _ in self.items():
                if name == prefix or name.startswith(prefix + "."):
                    out[where] = found = True
            if not found:
                raise UsageError(f"no parameter is called {prefix!r}: the model has {', '.join(self.names)}.")
        return out


@dataclass(frozen=True, eq=False)
class Params:
    """A model: vector `[P]` float32, its layout, and side arrays of exact dtype or opaque bytes beside it."""

    vector: F32
    layout: Layout
    sides: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    opaque: bytes = b""

    def __post_init__(self) -> None:
        vector = np.ascontiguousarray(self.vector, np.float32)
        if vector.shape != (self.layout.size,):
            raise UsageError(
                f"a vector of shape {vector.shape} does not fit a layout of {self.layout.size} parameters: "
                f"pass exactly ({self.layout.size},)."
            )
        if vector.flags.writeable:
            vector = vector.view()
            vector.flags.writeable = False
        object.__setattr__(self, "vector", vector)

    @property
    def size(self) -> int:
        return self.layout.size

    @property
    def bytes(self) -> int:
        """Bytes of the model on the wire, without framing."""
        return 4 * self.size + sum(side.nbytes for side in self.sides.values()) + len(self.opaque)

    def tensor(self, name: str) -> F32:
        """The named tensor, a read-only view of the vector."""
        at = self.layout.names.index(name)
        start = self.layout.offsets[at]
        return self.vector[start : start + self.layout.sizes[at]].reshape(self.layout.shapes[at])

    def tensors(self) -> dict[str, F32]:
        """All tensors by name, read-only views."""
        return {name: self.vector[at].reshape(shape) for name, at, shape in self.layout.items()}

    def replace(self, vector: F32) -> Params:
        """The same model with another vector."""
        return Params(vector, self.layout, self.sides, self.opaque)

    @classmethod
    def pack(cls, tensors: Mapping[str, NDArray[Any]]) -> Params:
        """One vector from named arrays.

        >>> Params.pack({"w": np.ones((2, 2)), "b": np.zeros(2)}).vector.tolist()
        [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
        """
        layout = Layout.of({name: a.shape for name, a in tensors.items()})
        flat = [np.asarray(a, np.float32).reshape(-1) for a in tensors.values()]
        return cls(np.concatenate(flat) if flat else np.empty(0, np.float32), layout)


@runtime_checkable
class View(Protocol):
    """A sub-model per client: which level each gets, and the index set of each level.

    `plan(clients)` gives int64 levels `[n]`; `index(level)` gives sorted int64 positions `[p]` into the vector;
    `layout(level)` the layout of the sub-model. Updates are lifted by scatter-add with coverage.
    """

    def plan(self, clients: I64) -> I64: ...

    def index(self, level: int) -> I64: ...

    def layout(self, level: int) -> Layout: ...


@runtime_checkable
class RoundView(View, Protocol):
    """A view whose levels, or channels, change from round to round, or with the model: `at` gives that of a round."""

    def at(self, round_: int, model: Params) -> View: ...


def view_at(view: View | None, round_: int, model: Params) -> View | None:
    """The view of round `round_` (from 1), which starts from `model`."""
    return view.at(round_, model) if isinstance(view, RoundView) else view
