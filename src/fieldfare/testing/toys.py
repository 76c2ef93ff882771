"""Tiny federated problems whose answer is known, for your own tests: quadratics, client state, spoilt work.

Here: `quadratics` (data, model, local training with every declaration, closed-form optimum), `Slots` (client state in
memory), `Spoilt` (some clients send NaN), `simulate`. Not here: real data and networks. Everything fits in a few kB.
Invariant: all numbers are made by exact or correctly rounded operations, so they are the same bits on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.algorithm import Algorithm, Context
from fieldfare.core.block import Block
from fieldfare.core.effects import Effect, Run, Scalar, Stop
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Gathered, Started
from fieldfare.core.local import Local
from fieldfare.core.params import Layout, Params
from fieldfare.core.work import Cohort, Cost, Output, Work
from fieldfare.data.federated import Federated
from fieldfare.fleet.fleet import Fleet
from fieldfare.sim.batch import Executor
from fieldfare.sim.observe import Observer, Published
from fieldfare.sim.population import Population
from fieldfare.sim.simulator import Simulator, World
from fieldfare.testing.transcript import Recorded, Transcript
from fieldfare.work.net import Drift, Fit, Plan, Training
from fieldfare.work.train import Train

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Parabola:
    """A `Net` whose loss on an example x is 1/2 ||w - x||**2; trained row by row in float32, plain or momentum SGD."""

    layout: Layout

    def init(self, seed: int) -> Params:
        return Params(((_words(seed, "init", self.layout.size) % 257 - 128) / 64).astype(np.float32), self.layout)

    def fit(
        self, start: F32, row: I64, data: Block, plan: Plan, keys: NDArray[np.uint64], training: Training, lr: float,
        drift: Drift,
    ) -> Fit:  # fmt: skip
        if training.optimizer != "sgd" or training.weight_decay or training.clip_norm is not None:
            raise UsageError("Parabola trains with plain SGD or momentum: leave the other settings as they are.")
        out, loss, x = start[row].copy(), np.zeros(len(row)), data.columns["x"] if plan.rows.size else None
        rate, beta = np.float32(lr), np.float32(training.momentum)
        for i in range(len(row)):
            w, speed, bounds = out[i], np.zeros_like(out[i]), plan.step_bounds(i)
            ref = None if not drift.mu else (start if drift.ref is None else drift.ref)[row[i]]
            for at, stop in pairwise(bounds):
                assert x is not None
                away = w - x[plan.rows[at:stop]].mean(axis=0)
                loss[i] += 0.5 * _square(away) / int(plan.steps[i])
                if ref is not None:
                    away = away + np.float32(drift.mu) * (w - ref)
                if drift.a is not None:
                    away = away + drift.a[i]
                if drift.mask is not None:
                    away = away * drift.mask
                speed = beta * speed + away
                w -= rate * (away + beta * speed if training.nesterov else speed)
        return Fit(out, loss, {})

    def evaluate(self, models: F32, row: I64, data: Block) -> Mapping[str, F64]:
        loss = [_loss(models[row[i]], data.client(i)["x"]) for i in range(data.n)]
        return {"loss": np.array(loss, np.float64)}

    def flops(self) -> float:
        return 4.0 * self.layout.size

    def describe(self) -> Mapping[str, Any]:
        return {"net": "parabola", "parameters": self.layout.size}


def _loss(w: F32, x: F32) -> float:
    return 0.5 * _square(x - w) / len(x) if len(x) else 0.0


def _words(seed: int, what: str, *shape: int) -> I64:
    """Integers of 62 random bits."""
    key = np.array([rng.derive(seed, "toy", what)], np.uint64)
    return (rng.bits(key, np.arange(math.prod(shape))) >> np.uint64(2)).astype(np.int64).reshape(shape)


def _square(away: F32) -> float:
    """The squared length of all of `away`, summed exactly, so that it is the same on every machine."""
    return math.fsum((away.astype(np.float64) ** 2).ravel().tolist())


@dataclass(frozen=True, eq=False)
class Quadratics:
    """Client i's loss is the mean of 1/2 ||w - x||**2 over its examples x; the sum over all is least at their mean."""

    data: Federated
    net: Parabola
    seed: int

    @cached_property
    def model(self) -> Params:
        """The starting model, `[dim]`; tensors "body" and "head"."""
        return self.net.init(self.seed)

    @cached_property
    def optimum(self) -> F32:
        """Where FedAvg with full batches and weights by examples ends, `[dim]`."""
        return self.data.columns["x"].astype(np.float64).mean(axis=0).astype(np.float32)

    def loss(self, model: Params) -> float:
        """Mean loss over all examples."""
        return _loss(model.vector, self.data.columns["x"])

    def work(self, *local: Local, lr: float = 0.1, batch_size: int = 4, epochs: int = 1) -> Train:
        """Local training (leaf `delta`) with the declarations `local`."""
        return Train(self.net, Training(lr=lr, batch_size=batch_size, epochs=epochs), local)

    def world(self, algorithm: Algorithm | Mapping[str, tuple[str, Algorithm]], **changes: Any) -> World:
        """A world of this problem: one central `algorithm`, or nodes `{node: (role, algorithm)}`.

        `changes`: fields of `World`, and `fleet`. Works "train" (obeys the
        algorithm's `local`), "evaluate", "echo"; evaluation "test".
        """
        nodes = algorithm if isinstance(algorithm, Mapping) else {"central": ("central", algorithm)}
        local = () if isinstance(algorithm, Mapping) else _local(algorithm)
        fleet = changes.pop("fleet", None) or Fleet(flops_per_s=_speeds(self.data.n_clients), overhead_s=0.5)
        works = {
            "train": self.work(*local),
            "evaluate": Evaluating(self.net),
            "echo": Echo(),
            **changes.pop("works", {}),
        }
        world = World(
            nodes, self.model, Population.of(self.data, fleet), works, self.seed,
            {"test": (lambda model: {"loss": self.loss(model)}, 0.25)},
        )  # fmt: skip
        return replace(world, **changes)


def quadratics(n: int = 8, dim: int = 5, seed: int = 0, *, examples: tuple[int, int] = (3, 9)) -> Quadratics:
    """`n` clients of unlike optimum, with `examples` (least, most) examples each, in `dim` >= 2 dimensions.

    >>> quadratics(n=3, dim=2).data.n_clients
    3
    """
    low, high = examples
    sizes = low + _words(seed, "sizes", n) % (high - low + 1)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    total = int(offsets[-1])
    centre = np.repeat(_words(seed, "centre", n, dim) % 129 - 64, sizes, axis=0) / 32
    x = (centre + (_words(seed, "noise", total, dim) % 65 - 32) / 64).astype(np.float32)
    layout = Layout.of({"body": (dim - dim // 2,), "head": (dim // 2,)})
    return Quadratics(Federated({"x": x}, offsets, np.arange(total)), Parabola(layout), seed)


def _local(algorithm: Any) -> tuple[Local, ...]:
    while hasattr(algorithm, "inner"):
        algorithm = algorithm.inner
    return tuple(getattr(algorithm, "local", ()))


def _speeds(n: int) -> F32:
    return (1e3 * (1 + np.arange(n) * 7 % 11)).astype(np.float32)


@dataclass(frozen=True)
class Evaluating:
    """Work that measures the model on each client's data: no leaves, metric `loss`, weight the examples."""

    net: Parabola

    def __call__(self, cohort: Cohort) -> Output:
        metrics = self.net.evaluate(cohort.models, cohort.row, cohort.data)
        return Output({}, cohort.data.sizes.astype(np.float64), metrics)

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        return Cost(self.net.flops() / 3 * examples, 4.0 * layout.size, 8.0)

    def slots(self, layout: Layout) -> Mapping[str, int]:
        return {}


@dataclass(frozen=True)
class Echo:
    """Work that costs nothing and tells who was asked: leaf `id` float32 `[n, 1]`, weight 1, metric `id`."""

    def __call__(self, cohort: Cohort) -> Output:
        ids = cohort.clients.astype(np.float64)
        return Output({"id": ids.astype(np.float32)[:, None]}, np.ones(cohort.n), {"id": ids})

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        return Cost(0.0, 0.0, 0.0)

    def slots(self, layout: Layout) -> Mapping[str, int]:
        return {}


@dataclass(frozen=True)
class Asking:
    """An algorithm that issues `runs` one after the other (or all at once), and stops when all are answered."""

    runs: tuple[Run, ...]
    together: bool = False

    def init(self, model: Params) -> int:
        return 0

    def step(self, state: int, event: Event, ctx: Context) -> tuple[int, Sequence[Effect]]:
        match event:
            case Started():
                return state, self.runs if self.together else self.runs[:1]
            case Gathered():
                over = state + 1 == len(self.runs)
                rest = () if self.together else self.runs[state + 1 : state + 2]
                return state + 1, (Stop("all answered"),) if over else rest
            case _:
                return state, ()


@dataclass(frozen=True)
class Spoilt:
    """`work`, of which the `clients` send NaN in every leaf (and say nothing of it in their metrics)."""

    work: Work
    clients: tuple[int, ...]

    def __call__(self, cohort: Cohort) -> Output:
        out = self.work(cohort)
        bad = np.isin(cohort.clients, self.clients)
        leaves = {name: np.where(bad[:, None], np.float32(np.nan), rows) for name, rows in out.leaves.items()}
        return replace(out, leaves=leaves)

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        return self.work.cost(examples, layout, config)

    def slots(self, layout: Layout) -> Mapping[str, int]:
        return self.work.slots(layout)


@dataclass(slots=True, eq=False)
class Slots:
    """Client state in memory: `rows[slot][client]`, float32 `[S]`; `puts` counts values committed."""

    rows: dict[str, dict[int, F32]] = field(default_factory=dict[str, dict[int, F32]])
    puts: int = 0

    def get(self, slot: str, clients: I64) -> tuple[F32, NDArray[np.bool_]]:
        known = self.rows.get(slot, {})
        size = len(next(iter(known.values()))) if known else 0
        fresh = np.array([client not in known for client in clients.tolist()], np.bool_)
        zero = np.zeros(size, np.float32)
        return np.array([known.get(c, zero) for c in clients.tolist()], np.float32).reshape(len(fresh), size), fresh

    def put(self, slot: str, clients: I64, rows: F32) -> None:
        mine = self.rows.setdefault(slot, {})
        for client, row in zip(clients.tolist(), rows, strict=True):
            mine[client] = np.array(row, np.float32)
            self.puts += 1


@dataclass(frozen=True, slots=True, eq=False)
class Ending:
    """How a run ended: the last `model` published, its `transcript`, the client state and the `driver` itself."""

    model: Params
    transcript: Transcript
    slots: Slots
    driver: Any
    reason: str


def recorded(world: World, transcript: Transcript) -> World:
    """`world`, whose nodes write their steps to `transcript`."""
    return replace(world, nodes={n: (role, Recorded(a, transcript)) for n, (role, a) in world.nodes.items()})


class LastModel:
    """An observer that keeps the last model published, and passes everything on to `then`."""

    def __init__(self, model: Params, then: Observer | None = None) -> None:
        self.model = model
        self.then = then

    def __call__(self, seen: Any) -> None:
        if isinstance(seen, Published):
            self.model = seen.model
        if self.then is not None:
            self.then(seen)


def simulate(
    world: World, *, workers: int = 1, chunk: int | None = None, keep: bool = False, observer: Observer | None = None
) -> Ending:
    """Run `world` in the simulator, recorded."""
    transcript, slots, last = Transcript(keep=keep), Slots(), LastModel(world.model, observer)
    with Executor(world.works, world.population.data, slots, workers, chunk) as executor:
        simulator = Simulator(recorded(world, transcript), executor, last)
        reason = simulator.run()
    return Ending(last.model, transcript, slots, simulator, reason)
