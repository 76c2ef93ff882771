"""Who there is: the clients' data and devices side by side, and how a cohort is drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.core.effects import Run
from fieldfare.core.errors import UsageError
from fieldfare.core.quorum import Everyone, Sample
from fieldfare.fleet.fleet import Fleet

I64 = NDArray[np.int64]


class Data(Protocol):
    """A federated data set as the simulator needs it."""

    @property
    def n_clients(self) -> int: ...

    @property
    def sizes(self) -> I64: ...

    def block(self, clients: I64) -> Block: ...


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """`size` clients: `examples` int64 `[size]` each, on the devices of `fleet`.

    `marks`: the ids behind a name that is no flag of the fleet, ascending; None for a name it does not know.
    """

    size: int
    examples: I64
    fleet: Fleet
    data: Data | None = None
    marks: Callable[[str], I64 | None] | None = None
    _flagged: dict[str, I64] = field(default_factory=dict[str, I64], init=False, repr=False)

    def __post_init__(self) -> None:
        self.fleet.fit(self.size)

    @classmethod
    def of(cls, data: Data, fleet: Fleet) -> Population:
        """Client i of the data lives on device i of the fleet."""
        return cls(data.n_clients, np.asarray(data.sizes), fleet, data)

    def named(self, run: Run) -> I64:
        """The device ids of a `Run` on everyone or on explicit ids, `[n]`; what is not there, or twice, is refused."""
        if isinstance(run.on, Everyone):
            return np.arange(self.size)
        ids: Any = np.asarray(run.on, np.int64)
        ordered = np.sort(ids)
        for end in ordered[:1], ordered[-1:]:
            if end.size and not 0 <= end[0] < self.size:
                raise UsageError(f"a Run asks device {end[0]}: the population has 0..{self.size - 1}.")
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if twice.size:
            raise UsageError(f"a Run asks device {twice[0]} twice: name each once.")
        return ids

    def flagged(self, on: Sample) -> I64 | None:
        """The ids a sample may take, ascending; None: all. A sample larger than that is refused."""
        if on.where is None:
            if on.count > self.size:
                raise UsageError(
                    f"Sample({on.count}) can never be drawn from a population of {self.size}: "
                    f"use a cohort of at most {self.size}."
                )
            return None
        marked = None if self.marks is None else self.marks(on.where)
        if marked is None and on.where not in self.fleet.flags:
            known = ", ".join(self.fleet.flags) or "none"
            raise UsageError(f"Sample(where={on.where!r}): the fleet has no such column (it has: {known}).")
        among = self._flagged.get(on.where) if marked is None else marked
        if among is None:
            among = self._flagged[on.where] = np.flatnonzero(self.fleet.flags[on.where])
        if on.count > len(among):
            raise UsageError(f"Sample({on.count}, where={on.where!r}): only {len(among)} devices are {on.where}.")
        return among

    def sample(self, on: Sample, seed: int, purpose: tuple[str | int, ...]) -> I64:
        """`on.count` of all, or of those flagged, all alike; the draw depends on (seed, purpose) only."""
        among = self.flagged(on)
        if among is None:
            return rng.choose(seed, purpose, on.count, self.size)
        return among[rng.choose(seed, purpose, on.count, len(among))]


def cohort_key(run: Run) -> tuple[str | int, ...]:
    """The key of a run's randomness: `key`, or its tag."""
    if run.key is not None:
        return run.key
    return run.tag if isinstance(run.tag, tuple) else (run.tag,)
