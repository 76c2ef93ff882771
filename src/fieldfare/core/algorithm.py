"""The one idea: an algorithm is a pure reducer, `step(state, event, ctx) -> (state, effects)`."""

from __future__ import annotations

from collections.abc import Sequence
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
