"""Widths and cuts of a job that offloads: what each device and its edge have, and the level and cut they train by.

Here: seats from fleets and links, the choice for every device, refusals of what fits nowhere. Not here: the choice
itself (`work.split.widths`), all else of such a job (`offload`). Invariant: a choice depends on the job's devices,
edges, links, data and settings, not on what it learns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fieldfare.algorithms.fedfly.messages import Plan
from fieldfare.core.errors import UsageError
from fieldfare.fleet.beside import rate
from fieldfare.fleet.fleet import Fleet
from fieldfare.job import Job
from fieldfare.sim.carry import route_of
from fieldfare.sim.links import Links
from fieldfare.work.plan import passes_and_steps
from fieldfare.work.split.cuts import Cut
from fieldfare.work.split.planning import Rates
from fieldfare.work.split.widths import Option, Seat, Widths, Wire
from fieldfare.work.submodel.family import Family
from fieldfare.work.submodel.rules import MultiRate, SubModels

PLANNED = ("plan", "plan or whole")


def others_of(there: Mapping[int, list[int]], edge: int, device: int) -> int:
    """How many other devices begin at an edge, with a session there."""
    return len([one for one in there[edge] if one != device])


def rates_of(fleet: Fleet, links: Links, device: int, devices: int, edge: int, others: int, lanes: int | None) -> Rates:
    """What a device and an edge can do, as the planner asks: it and `others` take turns on the edge's `lanes`."""
    place = {f"device/{device}": device, f"edge/{edge}": devices + edge}
    ways = [route_of(links, place, fleet, *pair) for pair in (tuple(place), tuple(reversed(list(place))))]
    up, down = (8.0 * min(way.up, way.down) for way in ways)  # type: ignore[type-var]
    load = 0.0 if lanes is None else max(others + 1 - lanes, 0) / lanes
    speeds = rate(fleet.flops_per_s, device), rate(fleet.flops_per_s, devices + edge)
    return Rates(*speeds, up, down, load, ways[0].latency_s)


def seat_of(job: Job, fleet: Fleet, links: Links, device: int, edge: int, others: int) -> Seat:
    """What a device has with an edge; `fleet`: the devices and behind them the edges, whose memory is shared alike."""
    method, n = job.algorithm, job.data.n_clients
    rates = rates_of(fleet, links, device, n, edge, others, method.lanes)
    memory = rate(fleet.memory_bytes, device), rate(fleet.memory_bytes, n + edge) / (others + 1)
    sizes = np.asarray(job.data.sizes, np.int64)[device : device + 1]
    batches = int(passes_and_steps(sizes, job.training)[1][0])
    behind, alone = (_wire(links, fleet, node, at) for node, at in _places(device, n, edge).items())
    return Seat(rates, *memory, batches, method.deadline_s, behind, alone)


def _places(device: int, devices: int, edge: int) -> dict[str, int]:
    return {f"edge/{edge}": devices + edge, f"device/{device}": device}


def _wire(links: Links, fleet: Fleet, node: str, at: int) -> Wire:
    """A node's link to the centre."""
    up, down = (route_of(links, {node: at}, fleet, *pair) for pair in ((node, "central"), ("central", node)))
    return Wire(*(8.0 * min(way.up, way.down) for way in (up, down)), up.latency_s)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Sizes:
    """The option of every device, and at other edges of those to be planned again there."""

    job: Job
    widths: Widths
    begin: Sequence[int]
    seats: Mapping[int, Seat]
    options: Mapping[int, Option]
    moved: Mapping[int, Mapping[int, Option]]

    @cached_property
    def view(self) -> SubModels:
        """The view that levels in plans are numbers of; its own assignment is not used."""
        return self.widths.family.view(self.job.algorithm.rule)

    @property
    def cuts(self) -> dict[int, Cut]:
        """The cuts of devices that do not train whole."""
        return {i: option.cut for i, option in self.options.items() if option.cut is not None}

    @property
    def cuts_elsewhere(self) -> dict[int, dict[int, Cut]]:
        """`{edge: {device: cut}}`."""
        found = {j: {i: one.cut for i, one in options.items()} for j, options in self.moved.items()}
        return {j: {i: cut for i, cut in cuts.items() if cut is not None} for j, cuts in found.items()}

    def number(self, device: int, level: int) -> int | None:
        """What the nodes call a device's level; None: the whole model."""
        if self.widths.nets[level] is self.widths.family.net:
            return None
        each = getattr(self.view.rule, "each", False)
        return level + len(self.widths.nets) * (device + 1) if each else level

    def plans(self) -> dict[int, Plan]:
        """Plans of devices that do not train whole."""
        return {i: self._plan(i, option) for i, option in self.options.items() if option.cut is not None}

    def elsewhere(self) -> dict[int, dict[int, Plan]]:
        """`{edge: {device: plan}}` of those to be planned again."""
        return {edge: {i: self._plan(i, one) for i, one in found.items()} for edge, found in self.moved.items()}

    def whole(self) -> dict[int, int]:
        """Levels of devices that train whole, where it is less than the whole model."""
        alone = {i: self.number(i, option.level) for i, option in self.options.items() if option.cut is None}
        return {i: number for i, number in alone.items() if number is not None}

    def _plan(self, device: int, option: Option) -> Plan:
        cut, tail = option.cut, self.widths.tail_of(option.level)
        assert cut is not None
        ends = ("", 0) if tail is None else (tail.name, tail.size)
        return Plan(cut.name, cut.size, 0, *ends, self.number(device, option.level))

    def table(self) -> list[dict[str, Any]]:
        """A row per device, as plain JSON."""
        return [
            {
                "device": i, "edge": self.begin[i], "level": self.widths.family.levels[option.level].name,
                "cut": None if option.cut is None else option.cut.name, "memory_bytes": option.memory_bytes,
                "free_bytes": self.seats[i].memory_bytes, "edge_bytes": option.edge_bytes, "batch_s": option.batch_s,
                "round_s": option.round_s,
            }
            for i, option in sorted(self.options.items())
        ]  # fmt: skip


def sizes_of(job: Job, model: Any, fleet: Fleet, links: Links, begin: Sequence[int]) -> Sizes:
    """Choose for every device; errors: `UsageError` where one fits nothing, with what it needs and what it has."""
    method, n = job.algorithm, job.data.n_clients
    if not isinstance(model, Family):
        raise UsageError(
            "FedFly(width=...) chooses among the levels of a family: use Job(model=ff.submodels(ff.split_net(module), "
            "levels))."
        )
    if isinstance(method.rule, MultiRate):
        raise UsageError(
            "FedFly(rule=MultiRate(...)) would draw another level every round than the one a cut is planned for: use "
            "Prefix(), Rolling(), RandomWindow() or TopNorm()."
        )
    asks, said, widths = method.cuts(n), method.widths(n), Widths(model, job.training, method.tail)
    for i, width in enumerate(said):
        if isinstance(width, int) and not 0 <= width < len(model.levels):
            raise UsageError(
                f"FedFly(width=...): device {i} has level {width}, and the family has levels 0 to "
                f"{len(model.levels) - 1}."
            )
    there = {j: [i for i in range(n) if begin[i] == j and asks[i] is not None] for j in range(method.edges)}
    seats, options, moved = dict[int, Seat](), dict[int, Option](), dict[int, dict[int, Option]]()
    for i, asked in enumerate(asks):
        level = said[i] if isinstance(said[i], int) else None
        only = asked if asked is not None and asked not in PLANNED else None
        ways = {"split": asked is not None, "whole": asked in (None, PLANNED[1])}
        seats[i] = seat_of(job, fleet, links, i, begin[i], others_of(there, begin[i], i))
        found = widths.choose(seats[i], level, only, **ways)
        if found is None:
            all_ = [*widths.options(seats[i], None if level is None else (level,), only, **ways)]
            raise UsageError(widths.why(seats[i], all_, f"device {i}"))
        options[i] = found
        if method.replan and found.cut is not None and (only is None or level is None):
            for j in range(method.edges):
                at = widths.choose(seat_of(job, fleet, links, i, j, others_of(there, j, i)), level, only)
                if at is not None:
                    moved.setdefault(j, {})[i] = at
    return Sizes(job, widths, begin, seats, options, moved)
