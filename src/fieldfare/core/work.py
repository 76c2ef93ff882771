"""What a client computation looks like: a whole cohort in, one row per client out, and its cost apart from its value.

Invariant: in exact mode (the default on a CPU) row i depends, to the bit, on client i's inputs only: not on n, on
its neighbours, on the chunk or on the worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.block import Block
from fieldfare.core.effects import Scalar
from fieldfare.core.folds import Coverage, Mean
from fieldfare.core.params import Layout

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """All that n clients need for one computation.

    `models` float32 `[v, P]` with `row` int64 `[n]` saying which one a client starts from; `keys` uint64 `[n]`, a
    random stream per client; `state` float32 `[n, S]` of the slot with `fresh` bool `[n]` (never written before);
    `inputs` for all; `each` `{position: {name: value}}`; `config` small scalars. `held`: the held-out rows, for a
    work that declares `needs_held = True`. `steps` int64 `[n]`: the most local steps of each client, for a work with a
    method `steps`, where the ask's budget of time limits them. `sides`: the side arrays of the model sent, by name and
    in their own dtypes, the same for all n; not to be written to. `index` int64 `[P]`, where the model is a sub-model:
    the places of its parameters in the whole vector, whose client state a slot of P floats is. `fold`: how leaf `delta`
    will be folded, the only one wanted, for a work that can do so where the rows lie (it may send the rows all the
    same); `asked`: the size of the cohort whose fold it is.
    """

    models: F32
    row: I64
    layout: Layout
    clients: I64
    keys: NDArray[np.uint64]
    data: Block
    config: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    each: Mapping[int, Mapping[str, Any]] = field(default_factory=dict[int, Mapping[str, Any]])
    state: F32 | None = None
    fresh: NDArray[np.bool_] | None = None
    opaque: bytes = b""
    held: Block | None = None
    steps: I64 | None = None
    sides: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    index: I64 | None = None
    fold: Mean | Coverage | None = None
    asked: int = 0

    @property
    def n(self) -> int:
        return len(self.clients)

    def part(self, start: int, stop: int) -> Cohort:
        """Clients `start..stop`, without copying."""
        pick = slice(start, stop)
        return Cohort(
            self.models, self.row[pick], self.layout, self.clients[pick], self.keys[pick],
            self.data.part(start, stop), self.config, self.inputs,
            {i - start: v for i, v in self.each.items() if start <= i < stop},
            None if self.state is None else self.state[pick],
            None if self.fresh is None else self.fresh[pick],
            self.opaque,
            None if self.held is None else self.held.part(start, stop),
            None if self.steps is None else self.steps[pick],
            self.sides,
            self.index,
            self.fold,
            self.asked,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """Rows by leaf `[n, ...]` (or a list of n bytes), weights `[n]`, metrics `{name: [n]}`, new state `[n, S]`.

    `silent` bool `[n]`: clients that told no loss, so that what stands in metric "loss" says nothing of them. Where
    `Cohort.fold` was given, a `Total` may stand for the rows of `delta`, without the clients in `refused` bool `[n]`.
    """

    leaves: Mapping[str, Any]
    weight: F64
    metrics: Mapping[str, F64] = field(default_factory=dict[str, F64])
    state: F32 | None = None
    silent: NDArray[np.bool_] | None = None
    refused: NDArray[np.bool_] | None = None

    @property
    def diverged(self) -> NDArray[np.bool_]:
        """Which clients told a loss that is not finite, `[n]`."""
        loss = self.metrics.get("loss")
        if loss is None:
            return np.zeros(len(self.weight), np.bool_)
        bad = ~np.isfinite(loss)
        return bad if self.silent is None else bad & ~self.silent


@dataclass(frozen=True, slots=True, eq=False)
class Cost:
    """What it takes, per client: `flops`, `bytes_down`, `bytes_up`, `memory_bytes`, each a number or `[n]`."""

    flops: F64 | float
    bytes_down: F64 | float
    bytes_up: F64 | float
    memory_bytes: F64 | float = 0.0


class Work(Protocol):
    """A named client computation over whole cohorts."""

    def __call__(self, cohort: Cohort) -> Output: ...

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        """Cost for clients with that many `examples` `[n]`; never a duration (that is the fleet's business).

        `bytes_down` counts the vector and the inputs; side arrays and opaque bytes of the model the driver adds.
        """
        ...

    def slots(self, layout: Layout) -> Mapping[str, int]:
        """Size S of each client-state slot this work keeps, by name."""
        ...
