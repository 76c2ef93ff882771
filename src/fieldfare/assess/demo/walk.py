"""One case walked from a session log to a decision, each artefact written as a user's own command would.

Here: the order of the tools, and what each gets. Not here: the tools. Invariants: equal case, limits and seed give the
same bytes of decision and page; a demonstration that was stopped goes on with the trials that are complete; the small
net that is trained takes the time and the bytes of the model that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.algorithms.fedavg import FedAvg
from fieldfare.assess.artefact import Artefact, Draft
from fieldfare.assess.bench import paper
from fieldfare.assess.decide.decision import Case, Decided, decide, write
from fieldfare.assess.decide.page import report
from fieldfare.assess.decide.privacy import declare
from fieldfare.assess.demo.cases import FEATURES, DemoCase, table
from fieldfare.assess.features.catalogue import build as build_features
from fieldfare.assess.forecast.assumptions import assumptions
from fieldfare.assess.forecast.build import build as build_forecast
from fieldfare.assess.forecast.build import means_of
from fieldfare.assess.proxy.presets import preset
from fieldfare.assess.proxy.write import Config, build, federated
from fieldfare.assess.simulate.build import build as build_simulation
from fieldfare.assess.simulate.devices import fleet_for
from fieldfare.assess.trace import Recipe, TraceConfig, build_trace
from fieldfare.core.errors import UsageError
from fieldfare.data.federated import Federated
from fieldfare.fleet.fleet import Fleet, phones
from fieldfare.job import Job, Simulated
from fieldfare.store.files import write_atomic
from fieldfare.work.dense import mlp
from fieldfare.work.net import Training

Tell = Callable[[str], None]
KEY = b"fieldfare demonstration"
LOG_CLIENTS = 6_000
WORD = 4.0
"""Bytes of a parameter on the wire."""
OVERHEAD_S = 90.0
"""Of a task: checking in, waiting for its turn, starting the runtime. Assumed."""


@dataclass(frozen=True)
class Changes:
    """What a user sets on the command line: limits, and inputs of the case."""

    thresholds: Mapping[str, float]
    epsilon: float | None = None
    attack_success: float | None = None
    wifi: bool | None = None
    battery_min: float | None = None
    compliance: str | None = None


def changed(case: DemoCase, changes: Changes) -> DemoCase:
    """The case with a user's inputs in place of its own; privacy's numbers change for its last technique."""
    criteria = {n: v for n in ("wifi", "battery_min") if (v := getattr(changes, n)) is not None}
    told = {n: v for n in ("epsilon", "attack_success") if (v := getattr(changes, n)) is not None}
    last = list(case.privacy)[-1]
    privacy = {**case.privacy, last: replace(case.privacy[last], **told)}
    compliance = case.compliance if changes.compliance is None else changes.compliance
    return replace(
        case, criteria=replace(case.criteria, **criteria), privacy=privacy, compliance=compliance,
        thresholds={**case.thresholds, **changes.thresholds},
    )  # fmt: skip


def walk(case: DemoCase, folder: Path, seed: int = 0, tell: Tell | None = None) -> tuple[Decided, Artefact]:
    """Every artefact of a case in `folder`, and the decision on them. Cost: a minute or less."""
    say = tell or (lambda _: None)
    folder.mkdir(parents=True, exist_ok=True)
    say("a week of sessions")
    trace = build_trace(
        Recipe(clients=LOG_CLIENTS, weeks=1), folder / "trace", TraceConfig(criteria=case.criteria), seed
    )
    say("proxy data")
    columns, test = table(case, seed)
    wanted = tuple(f"x{i}" for i in range(FEATURES))
    config = Config("label", "member", features=wanted, seed=seed)
    proxy = build(columns, config, folder / "proxy", key=KEY)
    records = proxy.number("records_mean") or 1.0
    features = build_features(case.features, folder / "features", records=records, package=case.package)
    bench = paper.declared(folder / "bench", records=records, models=case.models)
    privacy = _privacy(case, folder)
    made: list[Artefact] = [trace, proxy, features, bench, *privacy]
    fits = _models_that_fit(case, made)
    data = _with_test(federated(proxy, classes=2), test)
    decided = decide(_case(case), made)
    for model in fits:  # the next one only where the workflow asks for it
        if decided.verdict == "INCOMPLETE":
            made += _simulated(case, model, data, [trace, bench, proxy], folder, seed, say)
            decided = decide(_case(case), made)
    artefact = write(decided, folder / "decision", report(decided))
    for name in ("decision.json", "report.html"):
        write_atomic(folder / name, [artefact.file(name).read_bytes()])
    return decided, artefact


def _case(case: DemoCase) -> Case:
    return Case(case.name, case.models, title=case.title, pets=tuple(case.privacy), compliance=case.compliance,
                thresholds=case.thresholds, overrides=case.overrides)  # fmt: skip


def _privacy(case: DemoCase, folder: Path) -> list[Artefact]:
    population = preset(case.preset).clients
    return [
        declare(folder / f"privacy-{name}", mechanism=one.mechanism, source=one.source, epsilon=one.epsilon,
                delta=one.delta, attack_success=one.attack_success, population=population, pet=name)
        for name, one in case.privacy.items()
    ]  # fmt: skip


def _models_that_fit(case: DemoCase, made: Sequence[Artefact]) -> list[str]:
    """Candidates that pass the gate on a task's resources: the others are not simulated."""
    walked = decide(_case(case), made).walk
    refused = [step.at.model for step in walked.path if step.id == "G2" and step.answer == "no"]
    return [model for i, model in enumerate(case.models) if i not in refused]


def _with_test(data: Federated, test: Mapping[str, Any]) -> Federated:
    return Federated(dict(data.columns), data.offsets, data.rows, classes=2, test=dict(test), name=data.name)


def _simulated(
    case: DemoCase, model: str, data: Federated, made_of: Sequence[Artefact], folder: Path, seed: int, say: Tell
) -> list[Artefact]:
    """The search on the trace's devices, and the forecast for the preset's population."""
    job = Job(
        model=mlp(FEATURES, 16, 2), data=data, algorithm=FedAvg(1, 1), training=Training(lr=0.1, batch_size=20),
        simulated=Simulated(workers=1, fleet=phones(overhead_s=OVERHEAD_S)),
    )  # fmt: skip
    search = replace(case.search, seed=seed)
    trace, bench, _ = made_of
    fleet = fleet_for(job, trace=trace, bench=bench, model=model, seed=seed)
    wire = tuple(bench.number(f"{model}.wire_{way}_bytes") or 0.0 for way in ("down", "up"))
    assert fleet is not None
    fleet = slowed(fleet, WORD * job.model.layout.size, wire)
    simulation = build_simulation(job, search, folder / f"simulation-{model}", fleet=fleet, inputs=made_of,
                                  model=model, pet="", tell=say)  # fmt: skip
    simulation = standing_for(simulation, wire)
    swept: list[Artefact] = []
    if case.sweep is not None:
        made = build_simulation(job, replace(case.sweep, seed=seed), folder / f"sweep-{model}", fleet=fleet,
                                inputs=made_of, model=model, pet="", tell=say)  # fmt: skip
        swept = [standing_for(made, wire)]
    people = preset(case.preset).clients
    return [simulation, *swept, *forecast_of(simulation, trace, bench, folder, model, people, OVERHEAD_S)]


def slowed(fleet: Fleet, net_bytes: float, wire: tuple[float, ...]) -> Fleet:
    """Links on which a net of `net_bytes` takes as long as `wire` bytes, down and up, take on the fleet's."""
    down, up = (net_bytes / one if one else 1.0 for one in wire)
    return replace(fleet, downlink_bytes_per_s=fleet.downlink_bytes_per_s * np.float32(down),
                   uplink_bytes_per_s=fleet.uplink_bytes_per_s * np.float32(up), slow_links=True)  # fmt: skip


def standing_for(made: Artefact, wire: tuple[float, ...]) -> Artefact:
    """The simulation with the bytes of the model that its net stands for: those of a task, times tasks."""
    tables = {name: made.table(name) for name in made.manifest["tables"]}
    draft = Draft("simulation", made.manifest["seed"], made.params, made.inputs, dict(made.values), tables)
    for name, tasks, each in (("bytes_down", "tasks_started", wire[0]), ("bytes_up", "tasks_ok", wire[1])):
        one, told = made.values[name], made.values[tasks]
        ends = (None if end is None else each * end for end in (told.value, told.low, told.high))
        value, low, high = ends
        note = "tasks times the model's bytes; a small net was trained in its place"
        draft.values[name] = replace(one, value=value, low=low, high=high, note=note)
    draft.files |= {name: made.file(name).read_bytes() for name in made.manifest["files"]}
    return draft.write(made.path)


def forecast_of(
    simulation: Artefact, trace: Artefact, bench: Artefact, folder: Path, model: str, population: int,
    overhead_s: float,
) -> list[Artefact]:  # fmt: skip
    """The forecast for so many clients; none where the target was not reached: the gate then says what is missing."""
    scale = population / (trace.number("logged_clients") or 1.0)
    supply = trace.number("supply_per_s")
    try:
        means = means_of(model, bench=bench, trace=trace, simulation=simulation, overhead_s=overhead_s,
                         supply_per_s=None if supply is None else supply * scale)  # fmt: skip
    except UsageError:
        return []
    return [build_forecast(means, assumptions(), folder / f"forecast-{model}", simulation=simulation,
                           inputs=[trace, bench, simulation], model=model, pet="")]  # fmt: skip
