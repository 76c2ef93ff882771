"""The one idea: an algorithm is a pure reducer, `step(state, event, ctx) -> (state, effects)`.

Most runs have one, at the centre. Where several nodes take part, `Roles` says which algorithm each of them follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fieldfare.core import rng
from fieldfare.core.effects import Effect
from fieldfare.core.events import Event
from fieldfare.core.params import Params


@dataclass(frozen=True, slots=True)
class Context:
    """`now` in seconds, `me` the node's name, and randomness that depends on (run seed, key) only."""

    now: float
    me: str
    seed: int

    def rng(self, *key: str | int) -> np.random.Generator:
        """A generator for (run seed, key); add `ctx.me` to the key for a stream of this node's own."""
        return rng.stream(self.seed, "step", *key)


class Algorithm(Protocol):
    """A role's behaviour. `step` is total, deterministic, cheap, and leaves its arguments untouched."""

    def init(self, model: Params) -> Any: ...

    def step(self, state: Any, event: Event, ctx: Context) -> tuple[Any, Sequence[Effect]]: ...


class LocalSteps(Protocol):
    """How a device trains between two averages, as far as an algorithm has to know it (`work.net.Training`)."""

    @property
    def lr(self) -> float: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def epochs(self) -> int: ...

    @property
    def steps(self) -> int | None: ...

    @property
    def optimizer(self) -> str: ...

    @property
    def momentum(self) -> float: ...


class Roles(Protocol):
    """An algorithm of several nodes: who there is, what each of them follows, and on which device it lives.

    Every device of a run is one of its clients. Both are functions of the settings and the number of devices alone.
    """

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Mapping[str, tuple[str, Algorithm]]:
        """`{node: (role, algorithm)}`; without `training` the roles' own learning rate and batches hold."""
        ...

    def placement(self, devices: int) -> Mapping[str, int]:
        """`{node: device}`; who is not named has no device of its own (a coordinator)."""
        ...


def several(algorithm: Any) -> bool:
    """Whether a job's algorithm is of several nodes (`Roles`)."""
    return hasattr(algorithm, "nodes") and hasattr(algorithm, "placement")
