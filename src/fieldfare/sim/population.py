"""Who there is: the clients' data and devices side by side, and how a cohort is drawn from them."""

from __future__ import annotations

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
    """`size` clients: `examples` int64 `[size]` each, on the devices of `fleet`."""

    size: int
    examples: I64
    fleet: Fleet
    data: Data | None = None
    _flagged: dict[str, I64] = field(default_factory=dict[str, I64], init=False, repr=False)

    def __post_init__(self) -> None:
        self.fleet.fit(self.size)

    @classmethod
    def of(cls, data: Data, fleet: Fleet) -> Population:
        """Client i of the data lives on device i of the fleet."""
        return cls(data.n_clients, np.asarray(data.sizes), fleet, data)

    def draw(self, run: Run, seed: int) -> I64:
        """The device ids a `Run` asks, `[n]`; a `Sample` depends on (seed, work, key) only.

        Evaluations of one version (key `("evaluate", ...)`) ask the same clients, whatever each measures there.
        """
        on = run.on
        match on:
            case Sample(count, where, by):
                if by != "uniform":
                    raise UsageError(f"Sample(by={by!r}): this fleet knows 'uniform'.")
                key = cohort_key(run)
                purpose = ("cohort", "evaluate" if key[:1] == ("evaluate",) else run.work, *key)
                if where is None:
                    if count > self.size:
                        raise UsageError(
                            f"Sample({count}) can never be drawn from a population of {self.size}: "
                            f"use a cohort of at most {self.size}."
                        )
                    return rng.choose(seed, purpose, count, self.size)
                if where not in self.fleet.flags:
                    known = ", ".join(self.fleet.flags) or "none"
                    raise UsageError(f"Sample(where={where!r}): the fleet has no such column (it has: {known}).")
                among = self._flagged.get(where)
                if among is None:
                    among = self._flagged[where] = np.flatnonzero(self.fleet.flags[where])
                if count > len(among):
                    raise UsageError(f"Sample({count}, where={where!r}): only {len(among)} devices are {where}.")
                return among[rng.choose(seed, purpose, count, len(among))]
            case Everyone():
                return np.arange(self.size)
            case _:
                ids: Any = np.asarray(on, np.int64)
                ordered = np.sort(ids)
                for end in ordered[:1], ordered[-1:]:
                    if end.size and not 0 <= end[0] < self.size:
                        raise UsageError(f"a Run asks device {end[0]}: the population has 0..{self.size - 1}.")
                twice = ordered[1:][ordered[1:] == ordered[:-1]]
                if twice.size:
                    raise UsageError(f"a Run asks device {twice[0]} twice: name each once.")
                return ids


def cohort_key(run: Run) -> tuple[str | int, ...]:
    """The key of a run's randomness: `key`, or its tag."""
    if run.key is not None:
        return run.key
    return run.tag if isinstance(run.tag, tuple) else (run.tag,)
