"""Moves at given shares of a round: when these are, found by running the job without moves and without training.

Here: `MovesAt`. Not here: mobility as arrays (`fleet.mobility`), what a move does (`algorithms.fedfly`). Invariant: the
moves are a function of the job's devices, links, data and cuts; not of its policy or of what it learns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.mobility import Mobility
from fieldfare.job import Job
from fieldfare.sim.batch import Executor
from fieldfare.sim.observe import Observation, Worked
from fieldfare.sim.simulator import Simulator

Span = tuple[float, float]
_FOUND: dict[Any, tuple[tuple[Any, ...], dict[tuple[int, int], Span]]] = {}
"""{what a job's times depend on: (objects whose ids are in the key, when each device was at work in each round)}."""


@settings
@dataclass(frozen=True, slots=True)
class MovesAt:
    """Devices that move when a share of their own round is over: `moves` are (device, round, share, edge) each.

    Rounds are counted from 1. A share is of the time from the device's first forward pass of the round to its last
    backward pass, in a run in which nobody moves; so after a move that costs time later ones come too early by that.
    Cost: that run, without training, once per job of the same devices, links, data and cuts.
    """

    moves: tuple[tuple[int, int, float, int], ...]

    def __post_init__(self) -> None:
        for device, round_, share, edge in self.moves:
            if device < 0 or round_ < 1 or not 0.0 < share < 1.0 or edge < 0:
                raise UsageError(
                    f"MovesAt(moves=(({device}, {round_}, {share}, {edge}), ...)): use (device, round from 1 on, share "
                    "between 0 and 1, edge)."
                )

    def build(self, job: Job) -> Mobility:
        """The mobility of a job, every device at its home until it moves."""
        method, n = job.algorithm, job.data.n_clients
        spans = spans_of(job)
        tables = [[(0.0, home)] for home in (method.homes or tuple(i % method.edges for i in range(n)))]
        for device, round_, share, edge in sorted(self.moves, key=lambda move: (move[0], move[1], move[2])):
            if (device, round_) not in spans:
                raise UsageError(
                    f"MovesAt(moves=(({device}, {round_}, {share}, {edge}), ...)): device {device} trains nothing with "
                    f"an edge in round {round_}."
                )
            begin, end = spans[device, round_]
            tables[device].append((begin + share * (end - begin), edge))
        return Mobility.of(tables, method.edges)

    def describe(self) -> Mapping[str, Any]:
        """Plain JSON."""
        return {"moves": [list(move) for move in self.moves]}


def spans_of(job: Job) -> dict[tuple[int, int], Span]:
    """{(device, round): (first forward pass begins, last backward pass ends)} in seconds, where nobody moves."""
    s, method = job.simulated, job.algorithm
    held = (job.data, job.model)
    told = (job.training, method.rounds, method.edges, method.cut, method.tail, method.homes, method.lanes, job.seed)
    told += (method.width, method.rule, method.deadline_s)
    key = (*map(id, held), repr((told, s.links)), *_columns(s.fleet), *_columns(s.edges))
    if key not in _FOUND:
        _FOUND[key] = (*held, s.fleet, s.edges), _spans(job)
    return _FOUND[key][1]


def _columns(fleet: Any) -> tuple[Any, ...]:
    """What a fleet is, to be compared: numbers by value, all else by what it is called or by object."""
    if not isinstance(fleet, Fleet):
        return (repr(fleet),)
    values = [getattr(fleet, f.name) for f in fields(fleet)]
    return tuple(v.tobytes() if isinstance(v, np.ndarray) else id(v) if is_dataclass(v) else repr(v) for v in values)


def _spans(job: Job) -> dict[tuple[int, int], Span]:
    from fieldfare.assembly import assemble

    assembly = assemble(replace(job, stop_at=None, simulated=replace(job.simulated, mobility=None, train=False)))
    placement, out = assembly.world.placement, dict[tuple[int, int], Span]()

    def watch(seen: Observation) -> None:
        if isinstance(seen, Worked) and seen.run is not None and seen.run.work.startswith("split/"):
            at = placement[seen.node], int(seen.run.config["round"])
            begin, end = out.get(at, (seen.begun, seen.ended))
            out[at] = min(begin, seen.begun), max(end, seen.ended)

    with Executor(assembly.works, assembly.data, workers=1) as executor:
        Simulator(assembly.world, executor, watch).run()
    return out
