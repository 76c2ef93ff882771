"""A job whose devices offload part of the network, bound to this machine: net, cuts, works, edges, who is where when.

Here: every refusal of such a job that can be known before it starts. Not here: the rest of what a job becomes
(`assembly`), and what devices, edges and centre do (`algorithms.fedfly`). Invariant: whatever `train=False` computes
takes as long, and is as many bytes before packing, as what it stands for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from fieldfare.algorithms.fedfly.messages import Plan
from fieldfare.algorithms.fedfly.methods import FedFly
from fieldfare.core.block import Block
from fieldfare.core.effects import Scalar
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout
from fieldfare.core.work import Cohort, Cost, Output
from fieldfare.data.federated import Federated
from fieldfare.fleet.beside import beside
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.mobility import NOWHERE, Mobility, Walk
from fieldfare.job import Job
from fieldfare.offload_sizes import PLANNED, Sizes, others_of, rates_of, sizes_of
from fieldfare.sim.links import Links
from fieldfare.sim.population import Population
from fieldfare.work.adapt import is_net
from fieldfare.work.net import moments_size
from fieldfare.work.plan import passes_and_steps
from fieldfare.work.split.asks import Side
from fieldfare.work.split.cuts import Cut
from fieldfare.work.split.net import SplitNet, split_net
from fieldfare.work.split.planning import plan
from fieldfare.work.split.works import split_works
from fieldfare.work.submodel.family import Family
from fieldfare.work.torch_resident import is_module

I64 = NDArray[np.int64]


_SEEN: WeakKeyDictionary[Any, tuple[Any, Any]] = WeakKeyDictionary()
"""{model of a job: (the data it was looked at with, what it is then)}: cuts and memory are counted once."""


@dataclass(frozen=True, eq=False)
class Behind:
    """The data of a job for a population with `more` nodes behind its clients, which have none."""

    data: Federated
    more: int

    @property
    def n_clients(self) -> int:
        return self.data.n_clients + self.more

    @property
    def sizes(self) -> I64:
        return np.append(self.data.sizes, np.zeros(self.more, np.int64))

    def block(self, clients: I64) -> Block:
        """Rows of the clients among `clients`; nothing of the others."""
        return self._block(clients, self.data.block)

    def held_block(self, clients: I64) -> Block:
        """The same of what is held out."""
        return self._block(clients, self.data.held_block)

    def _block(self, clients: I64, of: Any) -> Block:
        clients = np.asarray(clients, np.int64)
        own = clients < self.data.n_clients
        if own.all():
            return of(clients)
        found = (
            of(clients[own]) if own.any() else Block(self.data.columns, np.empty(0, np.int64), np.zeros(1, np.int64))
        )
        sizes = np.zeros(len(clients), np.int64)
        sizes[own] = found.sizes
        return Block(found.columns, found.rows, np.append(0, np.cumsum(sizes)))


@dataclass(frozen=True, slots=True)
class StillPart:
    """A part of a split batch that costs what `side` costs and trains nothing, for `Simulated(train=False)`."""

    side: Side
    stacks = True

    def slots(self, layout: Layout) -> Mapping[str, int]:
        return {}

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        return self.side.cost(examples, layout, config)

    def steps(self, examples: I64, config: Mapping[str, Scalar]) -> I64:
        return self.side.steps(examples, config)

    def alike(self, config: Mapping[str, Scalar]) -> Any:
        return self.side.alike(config)

    def costs_alike(self, config: Mapping[str, Scalar]) -> Any:
        return self.side.costs_alike(config)

    def __call__(self, cohort: Cohort) -> Output:
        rows: list[dict[str, Any]] = []
        weight, steps = np.zeros(cohort.n), np.zeros(cohort.n)
        for i in range(cohort.n):
            leaves, weight[i], steps[i] = self._one(cohort, i)
            rows.append(leaves)
        leaves = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
        return Output(
            leaves, weight, {"steps": steps, "examples": weight} if self.side.name.endswith("forward") else {}
        )

    def _one(self, cohort: Cohort, i: int) -> tuple[dict[str, Any], float, float]:
        side = self.side
        told = {**cohort.config, **cohort.inputs, **cohort.each.get(i, {})}
        model = cohort.models[cohort.row[i]]
        split = side.split_of(told, len(model))
        slots = np.zeros(moments_size(side.training, len(model)), np.float32)
        if split.tail is not None and not side.server:  # two ranges, each with its own count of steps
            slots = np.zeros(sum(moments_size(side.training, n) for n in (split.cut.size, len(model) - split.cut.size)))
            slots = slots.astype(np.float32)
        match side.name.rpartition("/")[2]:
            case "forward":
                steps = int(passes_and_steps(cohort.data.sizes[i : i + 1], side.training)[1][0])
                count = int(side.examples_of(cohort.data.sizes[i : i + 1], told)[0])
                leaves = {"act": np.zeros((count, *split.cut.activations), np.float32)}
                if split.tail is None:
                    leaves["y"] = side.net.columns(cohort.data.columns)[1].take(np.zeros(count, np.int64)).numpy()
                return leaves, count, steps
            case "middle":
                assert split.tail is not None
                count = len(told["act"])
                return {"act": np.zeros((count, *split.tail.activations), np.float32)}, count, 0
            case "backward":
                return {"model": model, "slots": slots}, len(told["g"]), 0
            case _:  # a step, or a tail: the gradient of what came
                return {"model": model, "slots": slots, "g": np.zeros_like(told["act"])}, len(told["act"]), 0


@dataclass(frozen=True, eq=False)
class Offload:
    """All of a job that offloads which the rest of `assembly` does not know how to make."""

    job: Job
    net: SplitNet
    population: Population
    links: Links
    mobility: Mobility | None
    plans: Mapping[int, Cut]
    elsewhere: Mapping[int, Mapping[int, Cut]]
    sizes: Sizes | None = None

    @property
    def method(self) -> FedFly:
        return self.job.algorithm

    @property
    def happenings(self) -> tuple[Any, ...]:
        if self.mobility is None:
            return ()
        names = [f"device/{i}" for i in range(self.job.data.n_clients)]
        edges = [f"edge/{j}" for j in range(self.method.edges)]
        moved = self.mobility.happenings(names, edges)
        return tuple((at, event, nodes) for at, event, nodes in moved if int(nodes[0].partition("/")[2]) in self.plans)

    @property
    def told(self) -> dict[str, Any] | None:
        """Who is at which edge when, as plain JSON for the records."""
        if self.mobility is None:
            return None
        moves, given = self.mobility.moves(), self.job.simulated.mobility
        columns = (moves.at_s, moves.device, moves.before, moves.after, moves.gap_s)
        rows = [
            [at, f"device/{i}", f"edge/{a}", f"edge/{b}", gap]
            for at, i, a, b, gap in zip(*(c.tolist() for c in columns), strict=True)
        ]
        homes = {f"device/{i}": f"edge/{edge}" for i, edge in self.homes.items()}
        gaps = [
            [f"device/{i}", begin, end if end < inf else None]
            for i, begin, end in zip(*(column.tolist() for column in self.mobility.gaps()), strict=True)
        ]
        out: dict[str, Any] = {"edges": self.method.edges, "homes": homes, "moves": rows, "gaps": gaps}
        return out | ({"walk": given.thinned()} if isinstance(given, Walk) else {})

    def bound(self) -> Any:
        """The algorithm with its cuts; tickets are signed with the run's seed, which does for a simulation."""
        m, n = self.method, self.job.data.n_clients
        secret = hashlib.blake2b(f"fedfly {self.job.seed}".encode(), digest_size=32).digest()
        if self.sizes is not None:
            return m.bound(
                self.sizes.plans(), n, self.homes, secret, self.sizes.elsewhere(), self.sizes.view, self.sizes.whole()
            )
        tail = None if m.tail is None else self.net.cut(m.tail)

        def told(cut: Cut) -> Plan:
            ends = ("", 0) if tail is None else (tail.name, tail.size)
            return Plan(cut.name, cut.size, 0, *ends)

        plans = {i: told(cut) for i, cut in self.plans.items()}
        elsewhere = {edge: {i: told(cut) for i, cut in cuts.items()} for edge, cuts in self.elsewhere.items()}
        return m.bound(plans, n, self.homes, secret, elsewhere)

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row per device of a job with widths: its edge, level and cut, and what these take, as plain JSON."""
        return [] if self.sizes is None else self.sizes.table()

    @property
    def homes(self) -> dict[int, int]:
        """The edge each device begins at, where the mobility knows one."""
        if self.mobility is None:
            return {}
        return {i: int(edge) for i, edge in enumerate(self.mobility.homes()) if edge != NOWHERE}

    def works(self, train: bool) -> dict[str, Any]:
        """The parts of a batch, by name."""
        levels = () if self.sizes is None else self.sizes.widths.nets
        found = split_works(self.net, self.job.training, levels=levels)
        return dict(found) if train else {name: StillPart(side) for name, side in found.items()}


def net_of(job: Job) -> SplitNet | Family:
    """The job's model as a net that can be cut, or a family of one."""
    example, name = {name: rows[:2] for name, rows in job.data.columns.items()}, type(job.algorithm).__name__
    model = job.model
    if not is_module(model) and not is_net(model) and callable(model) and not isinstance(model, type):
        return split_net(model, "cross_entropy" if job.loss is None else job.loss, example=example)
    if is_module(model):
        return split_net(model, "cross_entropy" if job.loss is None else job.loss, example=example)
    if isinstance(model, Family) and not isinstance(model.net, SplitNet):
        raise UsageError(
            f"{name} cuts a model in two, which the {type(model.net).__name__} of this family cannot be: make it of "
            "one that can, ff.submodels(ff.split_net(module), levels)."
        )
    if isinstance(model, SplitNet | Family):
        if job.loss is not None:
            raise UsageError("Job(loss=...) is for an nn.Module; a split_net brings its own: give the loss there.")
        known = _SEEN.get(model)
        if known is None or known[0] is not job.data:
            known = _SEEN[model] = job.data, model.with_example(example)
        return known[1]
    raise UsageError(
        f"{name} cuts a model in two, which a {type(model).__name__} cannot be: use an nn.Module, or "
        "ff.split_net(module)."
    )


def offload(job: Job, model: SplitNet | Family) -> Offload:
    """Bind a job that offloads; errors: `UsageError` for what it asks and cannot have."""
    method, n = job.algorithm, job.data.n_clients
    net = model.net if isinstance(model, Family) else model
    _check(job)
    split_works(net, job.training)
    fleet = job.simulated.fleet
    if not isinstance(fleet, Fleet):
        fleet = fleet.build(n, job.seed)
    both = beside(fleet, n, job.simulated.edges, method.edges)
    data = Behind(job.data, method.edges)
    population = Population(data.n_clients, data.sizes, both, data)
    mobility, links = _mobility(job), job.simulated.links
    if mobility is not None:
        gaps = mobility.outages([f"device/{i}" for i in range(n)])
        if both_say := sorted({*gaps} & {*links.outages}):
            raise UsageError(f"{both_say[0]!r} has gaps in its mobility and outages in its links: give one of them.")
        links = replace(links, outages={**links.outages, **gaps})
    homes = {} if mobility is None else {i: int(one) for i, one in enumerate(mobility.homes()) if one != NOWHERE}
    if mobility is not None:
        _check_homes(method, homes, n)
    begin = [homes.get(i, i % method.edges) if method.homes is None else method.homes[i] for i in range(n)]
    if method.width is not None:
        sizes = sizes_of(job, model, both, links, begin)
        return Offload(job, net, population, links, mobility, sizes.cuts, sizes.cuts_elsewhere, sizes)
    plans, elsewhere = dict[int, Cut](), dict[int, dict[int, Cut]]()
    asks = method.cuts(n)
    there = {j: [i for i in range(n) if begin[i] == j and asks[i] is not None] for j in range(method.edges)}
    for i, asked in enumerate(asks):
        cut = _cut(job, net, both, links, i, asked, begin[i], others_of(there, begin[i], i))
        if cut is not None:
            plans[i] = cut
            if method.replan and asked in PLANNED:
                for j in range(method.edges):
                    moved = _cut(job, net, both, links, i, PLANNED[0], j, others_of(there, j, i))
                    if moved is not None:
                        elsewhere.setdefault(j, {})[i] = moved
    tail = None if method.tail is None else net.cut(method.tail)
    for i, cut in plans.items():
        if tail is not None and not cut.size < tail.size:
            raise UsageError(
                f"FedFly(tail={tail.name!r}): device {i} is cut behind {cut.name!r}, which leaves the edge nothing to "
                "train: choose a later tail, or an earlier cut."
            )
    return Offload(job, net, population, links, mobility, plans, elsewhere)


def planned(job: Job) -> list[dict[str, Any]]:
    """A row per device of a `FedFly(width=...)` job: edge, level, cut, and what these take; of other jobs none.

    Errors: `UsageError` as the job's start would be refused.
    """
    if not isinstance(job.algorithm, FedFly) or job.algorithm.width is None:
        return []
    return offload(job, net_of(job)).table


def _check(job: Job) -> None:
    """Refuse what a split training cannot do."""
    if job.evaluate.personal:
        raise UsageError(
            "Evaluation(personal=True) measures what a client keeps, and FedFly's keep none: leave it out."
        )
    if job.simulated.fleet is not None and job.simulated.on != "local":
        raise UsageError(f"Simulated(on={job.simulated.on!r}) is not offered for FedFly: use on='local'.")


def _mobility(job: Job) -> Mobility | None:
    """Who is where when, with as many devices and edges as the job has."""
    given, method = job.simulated.mobility, job.algorithm
    if given is None:
        return None
    mobility = given.mobility if isinstance(given, Walk) else given if isinstance(given, Mobility) else given.build(job)
    if (mobility.size, mobility.edges) != (job.data.n_clients, method.edges):
        raise UsageError(
            f"Simulated(mobility=...) is about {mobility.size} devices and {mobility.edges} edges, and the job has "
            f"{job.data.n_clients} clients and FedFly(edges={method.edges}): give as many."
        )
    return mobility


def _check_homes(method: FedFly, known: Mapping[int, int], devices: int) -> None:
    """Refuse devices that no edge ever reaches and that rounds wait for, and two homes of one device."""
    never = next((i for i in range(devices) if i not in known), None)
    if never is not None and method.deadline_s is None and method.cuts(devices)[never] is not None:
        raise UsageError(
            f"Simulated(mobility=...): no edge ever reaches device {never}, and FedFly(deadline_s=None) waits for it: "
            "give a deadline, or a table in which it is somewhere."
        )
    for i, said in enumerate(method.homes or ()):
        if i in known and known[i] != said:
            raise UsageError(
                f"FedFly(homes=...) begins device {i} at edge {said}, and Simulated(mobility=...) at edge {known[i]}: "
                "leave homes out."
            )


def _cut(
    job: Job, net: SplitNet, fleet: Fleet, links: Links, device: int, asked: Any, home: int, others: int
) -> Cut | None:
    """The cut of one device; None: it trains whole."""
    if asked is None:
        return None
    if asked not in PLANNED:
        return net.cut(asked)
    method, n = job.algorithm, job.data.n_clients
    cuts = net.cuts
    if method.tail is not None:
        cuts = tuple(cut for cut in cuts if cut.size < net.cut(method.tail).size)
    rates = rates_of(fleet, links, device, n, home, others, method.lanes)
    return plan(cuts, job.training.batch_size, rates, asked != PLANNED[0])
