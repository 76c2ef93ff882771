"""A fleet in which members of rings die in them: where a job of rings is at its most vulnerable.

Here: when and who, found by running the job without training. Not here: what happens then (`algorithms.hadfl`).
Invariant: the fleet is a function of the job; a ring that is to lose a member has begun when it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.job import Job
from fieldfare.run import assemble
from fieldfare.sim.batch import Executor
from fieldfare.sim.observe import Observation, Sent
from fieldfare.sim.simulator import Simulator

Spans = tuple[tuple[float, float], ...]


@settings
@dataclass(frozen=True, eq=False)
class RingDeaths:
    """The devices of `job`, of which one dies in the ring of cycle `first`, and of every `every`-th after it.

    The member that sends the first frame dies while that is on its way, and is back `away_s` seconds later. Each death
    is placed by running the job up to it without training, so all of them cost about (cycles of the job)**2 / (2
    `every`) cycles of events. Made once: the same object gives the same fleet again at no cost.
    """

    job: Job
    every: int = 10
    first: int = 5
    away_s: float = 60.0
    made: dict[int, Fleet] = field(default_factory=dict[int, Fleet], init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.job.simulated.fleet, Fleet) or self.job.simulated.fleet.availability is not None:
            raise UsageError("RingDeaths(job=...): give a job on a plain fleet whose devices are always there.")
        if min(self.every, self.first) < 1 or not 0.0 < self.away_s < inf:
            raise UsageError(
                f"RingDeaths(every={self.every}, first={self.first}, away_s={self.away_s}): use numbers above 0."
            )

    def build(self, n: int, seed: int) -> Fleet:
        """The fleet with the sessions that come of the deaths."""
        if n not in self.made:
            away: list[Spans] = [()] * n
            for cycle in range(self.first, self.job.algorithm.rounds, self.every):
                found = _first_frame(replace(self.job, simulated=self._with(away)), cycle)
                if found is not None:
                    device, dies = found
                    away[device] = (*away[device], (dies, dies + self.away_s))
            fleet = self._with(away).fleet
            assert isinstance(fleet, Fleet)
            self.made[n] = fleet
        return self.made[n]

    def describe(self) -> Mapping[str, Any]:
        """Plain JSON."""
        return {"name": "members die in rings", "first": self.first, "every": self.every, "away_s": self.away_s}

    def _with(self, away: list[Spans]) -> Any:
        """The job's simulation with devices that are away then, and without training."""
        there = [_between(spans) for spans in away]
        fleet = replace(self.job.simulated.fleet, availability=Availability.of(there))
        return replace(self.job.simulated, fleet=fleet, train=False)


def _between(spans: Spans) -> list[tuple[float, float]]:
    """When a device is there that is away in `spans`, which are in order of time.

    >>> _between(((3.0, 5.0),))
    [(0.0, 3.0), (5.0, inf)]
    """
    return list(zip([0.0, *(back for _, back in spans)], [*(dies for dies, _ in spans), inf], strict=True))


def _first_frame(job: Job, cycle: int) -> tuple[int, float] | None:
    """(the device that sends the first frame of the ring of `cycle`, half way of it); None where there is no ring."""
    assembly = assemble(replace(job, stop_at=None))
    placement, found = assembly.world.placement, list[tuple[int, float]]()

    def watch(seen: Observation) -> None:
        if isinstance(seen, Sent) and seen.kind == "Frame" and seen.body.cycle == cycle and not found:
            found.append((placement[seen.src], (seen.now + min(seen.arrives, seen.now + 1e9)) / 2.0))

    with Executor(assembly.works, job.data, workers=1) as executor:
        simulator = Simulator(assembly.world, executor, watch)
        simulator.start()
        while not found and not simulator.progress.stopped and simulator.progress.heap:
            simulator.advance()
    return found[0] if found else None
