"""Our side of every measurement, through the public API alone: one subcommand per kind.

    ours.py train W1 …        a workload, as every peer's script does (``arm.py`` says how)
    ours.py cohorts W1 50 F   the clients of rounds 1 to 50 as the simulator will draw them, to F.npy
    ours.py driver 10000 S    replies per second with trivial work, 1,000,000 devices, for S seconds
    ours.py population N      memory and seconds per round with N devices and a cohort of 100
    ours.py events N PRESET S tasks per second without training: FedBuff, 1,000 at work, buffer 100, N devices
    ours.py events N PRESET S BY  the same, devices chosen by that rule
    ours.py assess-trained S  client tasks per second of FedBuff with a net of 189,000 parameters and 100 records each
    ours.py async W1 50 S     clients per second of FedBuff with that buffer and of FedAvg, 100 at work, S seconds each
    ours.py mixed W2 S        clients per second of cohorts of sub-models, uniform and mixed, S seconds each
    ours.py scaling W2 S      clients per second on one thread and on one a core, S seconds each
    ours.py memory W2 10000   MB above data and libraries of rounds with that cohort
    ours.py fold              100 updates of 10 million parameters into one mean
    ours.py first-round       the first round of W0: import, build, one round

Every subcommand but the first two prints one line of JSON. Not here: peers, limits, ratios.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from arm import Meter, Orders, read_orders
from workloads import WORKLOADS, Floats, Ints, Workload, data, torch_model_at

import fieldfare as ff

SEED = 0
GROUP = 4  # updates of 10 million numbers folded at once: what the simulator's chunks hold


class _Stop(Exception):
    """Raised in a callback when enough rounds were timed."""


def federated(w: Workload) -> ff.Federated:
    """The workload's data: client i owns the examples of block ``i % distinct``, in stored order."""
    inputs, labels = data(w.name)
    block = np.arange(w.population) % w.distinct
    rows = block[:, None] * w.examples + np.arange(w.examples)
    return ff.Federated(
        {"x": inputs.reshape(-1, *w.shape), "y": labels.reshape(-1, *labels.shape[2:])},
        offsets=np.arange(w.population + 1) * w.examples,
        rows=rows.ravel(),
        classes=w.classes,
        name=w.name,
    )


JAX = "FIELDFARE_BENCH_JAX"
"""Set: the model is that of `peers/jax_models.py`, and the data in its layout."""


def model_of(w: Workload, vector: Floats) -> Any:
    """The model as a user gives it: an ``nn.Module``, or JAX functions."""
    if JAX not in os.environ:
        return torch_model_at(w.name, vector)
    sys.path.insert(0, str(Path(__file__).parent / "peers"))
    from jax_models import from_vector, loss

    return ff.jax_net(from_vector(w.name, vector), loss(w.name))


def in_torch_order(w: Workload, vector: Floats) -> Floats:
    """A trained model as every arm hands it over."""
    if JAX not in os.environ:
        return vector
    from jax_models import to_vector

    return to_vector(w.name, model_of(w, vector).params(vector))


def job(
    w: Workload,
    vector: Floats,
    held: ff.Federated,
    rounds: int,
    callback: Callable[[Mapping[str, Any]], None],
    **simulated: Any,
) -> ff.Job:
    """FedAvg on a plain ``nn.Module``, one epoch of plain SGD, batches in stored order."""
    return ff.Job(
        model=model_of(w, vector),
        loss=None if JAX in os.environ else "cross_entropy",
        data=held,
        algorithm=ff.FedAvg(rounds=rounds, cohort=w.cohort),
        training=ff.Training(lr=w.rate, batch_size=w.batch, epochs=1, shuffle=False),
        callbacks=(callback,),
        seed=SEED,
        simulated=ff.Simulated(**simulated),
    )


class _Seen:
    """A work that trains nobody and remembers whom it was asked for."""

    def __init__(self, work: Any) -> None:
        self.work, self.clients = work, list[Ints]()

    def __call__(self, cohort: Any) -> Any:
        from fieldfare.core.work import Output

        self.clients.append(np.array(cohort.clients))
        return Output({"delta": np.zeros((cohort.n, cohort.models.shape[1]), np.float32)}, np.ones(cohort.n))

    def cost(self, examples: Any, layout: Any, config: Any) -> Any:
        return self.work.cost(examples, layout, config)

    def slots(self, layout: Any) -> Any:
        return self.work.slots(layout)


def cohorts(name: str, rounds: int) -> Ints:
    """The cohorts that the simulator draws in rounds 1, 2, ... of the workload's job: ``[rounds, cohort]``."""
    from workloads import start

    from fieldfare.assembly import assemble
    from fieldfare.sim.batch import Executor
    from fieldfare.sim.simulator import Simulator

    w = WORKLOADS[name]
    made = assemble(job(w, start(name), federated(w), rounds, lambda _: None))
    seen = _Seen(made.works["train"])
    works = {**made.works, "train": seen}
    with Executor(works, None, workers=1, chunk=w.cohort) as executor:
        Simulator(replace(made.world, works=works), executor).run()
    return np.concatenate(seen.clients).reshape(rounds, w.cohort)  # large models come in several parts


def way(w: Workload, vector: Floats, held: ff.Federated) -> str:
    """How this process trains the workload: "native", "stacked", "dense end by hand", "graph"."""
    from fieldfare.assembly import assemble

    work: Any = assemble(job(w, vector, held, 1, lambda _: None)).works["train"]
    return str(work.net.describe()["path"])


def train(orders: Orders) -> None:
    """Two runs of one job: the check rounds, whose model is kept, then as many rounds as are timed."""
    w, held = orders.workload, federated(orders.workload)
    simulated: dict[str, Any] = {}
    if orders.setting:
        simulated["workers"] = int(orders.setting.removeprefix("p"))
    firsts: list[float] = []
    checked = job(w, orders.start, held, orders.check, lambda _: firsts.append(time.time()), **simulated).run(
        runs=None, progress=False
    )
    meter = Meter(
        orders, lambda: in_torch_order(w, checked.model.vector), first_at=firsts[0], path=way(w, orders.start, held)
    )

    def timed(_: Mapping[str, Any]) -> None:
        if meter.end():
            raise _Stop
        meter.begin()

    with contextlib.suppress(_Stop):
        job(w, orders.start, held, 10**6, timed, **simulated).run(runs=None, progress=False)


class _Nothing:
    """Work that does nothing: every client answers a zero delta of weight 1."""

    def __call__(self, cohort: Any) -> Any:
        from fieldfare.core.work import Output

        return Output({"delta": np.zeros((cohort.n, cohort.models.shape[1]), np.float32)}, np.ones(cohort.n))

    def cost(self, examples: Any, layout: Any, config: Any) -> Any:
        from fieldfare.core.work import Cost

        return Cost(1e6, 1e3, 1e3)

    def slots(self, layout: Any) -> dict[str, int]:
        return {}


def _simulate_nothing(devices: int, cohort: int, seconds: float, least: int) -> tuple[int, float]:
    """(rounds, seconds) after two rounds to warm up: FedAvg over phones, nobody trains."""
    from fieldfare.core.params import Layout, Params
    from fieldfare.sim.batch import Executor
    from fieldfare.sim.observe import Published
    from fieldfare.sim.population import Population
    from fieldfare.sim.simulator import Simulator, World

    fleet = ff.fleet.phones().build(devices, SEED)
    model = Params(np.zeros(8, np.float32), Layout.of({"w": (8,)}))
    works = {"train": _Nothing()}
    world = World(
        {"central": ("central", ff.FedAvg(rounds=10**9, cohort=cohort))},
        model,
        Population(devices, np.full(devices, 10), fleet),
        works,
        SEED,
    )
    count, began, ended = 0, 0.0, 0.0

    def watch(seen: Any) -> None:
        nonlocal count, began, ended
        if not isinstance(seen, Published):
            return
        count += 1
        ended = time.perf_counter()
        if count == 2:
            began = ended
        if count >= 2 + least and ended - began >= seconds:
            raise _Stop

    with Executor(works, None) as executor, contextlib.suppress(_Stop):
        Simulator(world, executor, watch).run()
    return count - 2, ended - began


class _Costs:
    """Work that is never computed; its tasks take a billion FLOPs an example and a megabyte each way."""

    def cost(self, examples: Any, layout: Any, config: Any) -> Any:
        from fieldfare.core.work import Cost

        return Cost(np.asarray(examples) * 1e9, 1e6, 1e6)

    def slots(self, layout: Any) -> dict[str, int]:
        return {}


def events(devices: int, preset: str, seconds: float, by: str = "uniform") -> dict[str, float]:
    """Tasks (a start and an end) per second of simulating who works when, after a second to warm up, and memory.

    `preset`: of `fieldfare.fleet.generate`, or "phones": log-normal speeds, always there. `by`: a rule of selection.
    """
    from fieldfare.core.params import Layout, Params
    from fieldfare.core.quorum import Sample
    from fieldfare.sim.observe import Published
    from fieldfare.sim.population import Population
    from fieldfare.sim.simulator import Simulator, World

    recipe: Any = ff.fleet.phones() if preset == "phones" else ff.fleet.generate(preset)
    before = peak_mb()
    began = time.perf_counter()
    fleet = recipe.build(devices, SEED)
    built = time.perf_counter() - began
    examples = np.random.default_rng(0).integers(5, 200, devices)
    world = World(
        {"central": ("central", ff.FedBuff(rounds=10**9, cohort=Sample(1000, by=by), buffer=100))},
        Params(np.zeros(8, np.float32), Layout.of({"w": (8,)})),
        Population(devices, examples, fleet),
        {"train": _Costs()},
        SEED,
    )
    simulator = Simulator(world, None)
    first, last = (0, 0.0), (0, 0.0)
    begin = time.perf_counter()

    def watch(seen: Any) -> None:
        nonlocal first, last
        if isinstance(seen, Published):
            now = time.perf_counter()
            last = simulator.progress.streams["central train"].serial, now
            if now - begin < 1.0 or not first[0]:
                first = last
            elif now - first[1] >= seconds:
                raise _Stop

    simulator.observer = watch
    with contextlib.suppress(_Stop):
        simulator.run()
    rate = (last[0] - first[0]) / (last[1] - first[1])
    return {"tasks_per_s": rate, "mb": peak_mb() - before, "peak_mb": peak_mb(), "build_s": built}


def asynchronous(name: str, buffer: int, seconds: float) -> dict[str, float]:
    """Clients per second of FedBuff and of FedAvg on a workload, 100 at work, in turns of `seconds` each."""
    from workloads import start

    w, vector = WORKLOADS[name], start(name)
    held, found = federated(w), {"async": list[float](), "sync": list[float]()}
    for kind in ("sync", "async") * 2:
        made = job(w, vector, held, 10**6, lambda _: None)
        if kind == "async":
            made = replace(made, algorithm=ff.FedBuff(rounds=10**6, cohort=w.cohort, buffer=buffer))
        found[kind].append(_clients_per_s(made, seconds))
    return {kind: float(np.median(rates)) for kind, rates in found.items()}


ASSESSED = (736, 256, 2)
"""Widths of a net of 189,186 parameters, as FLINT's model B has (an MLP over sparse features)."""


def assess_trained(seconds: float) -> dict[str, float]:
    """Client tasks per second of FedBuff: 189,186 parameters, 100 records a client in batches of 20, 100 at work.

    Devices come and go as in "flint-strict" and are chosen by the search's own rule.
    """
    inputs, n = ASSESSED[0], 2000
    generator = np.random.default_rng(SEED)
    held = ff.Federated(
        {"x": generator.standard_normal((100_000, inputs), np.float32), "y": generator.integers(0, 2, 100_000)},
        offsets=np.arange(n + 1) * 100, rows=np.arange(n * 100) % 100_000, classes=2, name="189k",
    )  # fmt: skip
    made = ff.Job(
        model=ff.mlp(*ASSESSED), data=held, training=ff.Training(lr=0.1, batch_size=20), seed=SEED,
        algorithm=ff.FedBuff(10**6, ff.Sample(100, by="rested"), 50, ff.Staleness(limit=10)),
        simulated=ff.Simulated(fleet=ff.fleet.generate("flint-strict", criteria="session")),
    )  # fmt: skip
    return {"tasks_per_s": _clients_per_s(made, seconds), "parameters": float(ff.mlp(*ASSESSED).layout.size)}


def mixed(name: str, seconds: float) -> dict[str, float]:
    """Clients per second of cohorts of one level each and of one of all levels side by side, by turns."""
    from workloads import start

    from fieldfare.aggregate import chain, coverage
    from fieldfare.work.submodel import submodels

    w = WORKLOADS[name]
    held, kinds = federated(w), {"1": (0,), "1/2": (1,), "1/4": (2,), "1/8": (3,), "mixed": (0, 1, 2, 3)}
    family = submodels(torch_model_at(name, start(name)), example=held.columns)
    found = {kind: list[float]() for kind in kinds}
    for kind, assign in [*kinds.items()] * 2:
        made = job(w, start(name), held, 10**6, lambda _: None)
        view = family.view(assign=assign)
        algorithm = ff.FedAvg(rounds=10**6, cohort=w.cohort, server=chain(coverage()), view=view)
        made = replace(made, model=family, loss=None, algorithm=algorithm, evaluate=ff.Evaluation(every=10**6))
        found[kind].append(_clients_per_s(made, seconds))
    return {kind: float(np.median(rates)) for kind, rates in found.items()}


def _clients_per_s(made: ff.Job, seconds: float) -> float:
    """Clients per second after a first second, in which workers are started and buffers filled."""
    began, first, last = time.perf_counter(), (0, 0.0), (0, 0.0)

    def timed(row: Mapping[str, Any]) -> None:
        nonlocal first, last
        now = time.perf_counter()
        last = last[0] + int(row["clients"]), now
        if now - began < 1.0 or not first[0]:
            first = last
        elif now - first[1] >= seconds and row["round"] >= 4:
            raise _Stop

    with contextlib.suppress(_Stop):
        replace(made, callbacks=(timed,)).run(runs=None, progress=False)
    return (last[0] - first[0]) / (last[1] - first[1])


def scaling(name: str, seconds: float) -> dict[str, float]:
    """Clients per second of cohorts of ten times the workload's, on one thread and on one a core, by turns."""
    from workloads import start

    w = WORKLOADS[name]
    held, found = federated(w), {"one": list[float](), "all": list[float]()}
    for which in ("one", "all", "all", "one"):
        made = job(w, start(name), held, 10**6, lambda _: None, workers=1 if which == "one" else None)
        made = replace(made, algorithm=ff.FedAvg(rounds=10**6, cohort=min(10 * w.cohort, w.population)))
        found[which].append(_clients_per_s(made, seconds))
    return {which: float(np.median(rates)) for which, rates in found.items()}


def memory(name: str, cohort: int) -> dict[str, float]:
    """MB above the data and the imported libraries that rounds of a large cohort take."""
    from workloads import start

    w = replace(WORKLOADS[name], population=cohort, cohort=cohort)
    held = federated(w)
    made, ends = job(w, start(name), held, 2, lambda _: None), list[float]()
    one = replace(made, algorithm=ff.FedAvg(rounds=1, cohort=1), callbacks=(lambda _: ends.append(peak_mb()),))
    one.run(runs=None, progress=False)
    replace(made, callbacks=(lambda _: ends.append(peak_mb()),)).run(runs=None, progress=False)
    return {"mb": ends[-1] - ends[0], "before_mb": ends[0], "cohort": cohort}


def peak_mb() -> float:
    """The most memory this process has held, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def driver(cohort: int, seconds: float) -> dict[str, float]:
    """Replies per second."""
    rounds, took = _simulate_nothing(1_000_000, cohort, seconds, 5)
    return {"replies_per_s": rounds * cohort / took}


def population(devices: int) -> dict[str, float]:
    """Memory that ``devices`` devices with data need, and seconds per round of 100 clients."""
    before = peak_mb()
    held = ff.Federated(
        {"x": np.zeros((1, 1), np.float32)},
        offsets=np.arange(devices + 1),
        rows=np.zeros(devices, np.int32),
    )
    rounds, took = _simulate_nothing(devices, 100, 0.5, 20)
    return {"mb": peak_mb() - before, "round_s": took / rounds, "clients": held.n_clients}


def fold() -> dict[str, float]:
    """Seconds and memory beyond the rows of an exact weighted mean of 100 rows of 10 million float32."""
    from probes import UPDATES, update_rows, weight_of

    from fieldfare.aggregate.gather import Gather
    from fieldfare.core.folds import Mean

    rows = update_rows()
    before = peak_mb()
    began = time.perf_counter()
    gather = Gather({"delta": Mean()}, UPDATES)
    for i in range(0, UPDATES, GROUP):
        leaves = {"delta": rows[i % len(rows) : i % len(rows) + GROUP]}
        weight = np.array([weight_of(j) for j in range(i, i + GROUP)])
        if gather.take(np.arange(i, i + GROUP), leaves, weight, np.zeros(GROUP, np.bool_)).any():
            raise RuntimeError("an ordinary update was refused")
    mean = gather.finish()["delta"].value
    took = time.perf_counter() - began
    return {"seconds": took, "mb": peak_mb() - before, "first": float(mean[0]), "last": float(mean[-1])}


def first_round() -> dict[str, float]:
    """Nothing to say: the process' own duration up to here is what counts."""
    w = WORKLOADS["W0"]
    ends: list[float] = []
    ff.Job(
        model=ff.mlp(1, 2),
        data=federated(w),
        algorithm=ff.FedAvg(rounds=1, cohort=w.cohort),
        training=ff.Training(lr=w.rate, batch_size=w.batch),
        callbacks=(lambda _: ends.append(time.time()),),
    ).run(runs=None, progress=False)
    return {"ended": ends[0]}


def main(argv: list[str]) -> None:
    """Run one subcommand."""
    match argv:
        case ["train", *orders]:
            train(read_orders(orders))
        case ["cohorts", name, rounds, file]:
            np.save(file, cohorts(name, int(rounds)))
        case ["driver", cohort, seconds]:
            print(json.dumps(driver(int(cohort), float(seconds))))
        case ["population", devices]:
            print(json.dumps(population(int(devices))))
        case ["events", devices, preset, seconds]:
            print(json.dumps(events(int(devices), preset, float(seconds))))
        case ["events", devices, preset, seconds, by]:
            print(json.dumps(events(int(devices), preset, float(seconds), by)))
        case ["assess-trained", seconds]:
            print(json.dumps(assess_trained(float(seconds))))
        case ["async", name, buffer, seconds]:
            print(json.dumps(asynchronous(name, int(buffer), float(seconds))))
        case ["mixed", name, seconds]:
            print(json.dumps(mixed(name, float(seconds))))
        case ["scaling", name, seconds]:
            print(json.dumps(scaling(name, float(seconds))))
        case ["memory", name, cohort]:
            print(json.dumps(memory(name, int(cohort))))
        case ["fold"]:
            print(json.dumps(fold()))
        case ["first-round"]:
            print(json.dumps(first_round()))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
