"""The three cases on tables of real people and phones: impressions, messages and ratings on FLASH's phones.

Here: what differs from the demonstration on made-up data (`cases`, `walk`): the tables, when and on which phones a task
runs, small nets of our own as candidates. Invariants: availability, speed and link of a phone are measured, but not of
one phone together, and not of the people of the tables; a net's seconds are its FLOPs at a phone's measured speed;
rates are chosen on rows that are trained on and on seeds of their own, never by the rows and seeds that are told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.algorithms.fedavg import FedAvg
from fieldfare.assess.artefact import Artefact, Draft, Value, cite_file
from fieldfare.assess.decide.decision import Case, Decided, decide, write
from fieldfare.assess.decide.page import report
from fieldfare.assess.decide.privacy import declare
from fieldfare.assess.demo.cases import DemoCase, Privacy
from fieldfare.assess.demo.tables import TABLES, TEST_SHARE, file
from fieldfare.assess.demo.walk import KEY, Tell, forecast_of
from fieldfare.assess.features.catalogue import build as build_features
from fieldfare.assess.features.locality import Feature
from fieldfare.assess.proxy.write import Config, build, federated
from fieldfare.assess.simulate.build import build as build_simulation
from fieldfare.assess.simulate.devices import fleet_for, flops_per_record
from fieldfare.assess.simulate.play import central
from fieldfare.assess.simulate.search import TUNE_SEED, Search
from fieldfare.assess.trace import Criteria, TraceConfig, build_trace
from fieldfare.core import rng
from fieldfare.core.metrics import lower_is_better
from fieldfare.data.federated import Federated
from fieldfare.fleet.fleet import Recipe
from fieldfare.fleet.traces import phones_of
from fieldfare.job import Job, Simulated
from fieldfare.store.files import write_atomic
from fieldfare.work.dense import DenseNet, mlp
from fieldfare.work.net import Training

OVERHEAD_S = 30.0
"""Of a task: checking in, starting the runtime. Assumed."""
BATCH = 20
PHONES = 1_000
LOST = 0.05
"""The target of a search: the central loss and so much of it; whatever limits are set, so that trials are kept."""
FROM_S, TO_S = 43_200.0, 475_200.0
"""The hours of FLASH's log in which nearly all phones are logged: five whole days."""

CHARGING = Criteria(wifi=True, charging=True)
SEARCH = Search(concurrency=(30,), buffer=(10,), staleness=(10,), versions=400, trials=5, tune=3, rungs_h=(1.0, 2.0),
                metric="loss", every=10)  # fmt: skip
"""Runs take 2.3, 2.4 and 1.1 h of virtual time; rates are compared in the middle, and near the end."""
DP = {"dp-fedavg": Privacy("dp-fedavg with secure aggregation", 6.0, 0.06)}

REAL: Mapping[str, DemoCase] = {
    one.name: one
    for one in (
        DemoCase(
            "ads", "Clicks on fashion items (Open Bandit; 207 clicks: the walk is shown, accuracy is not)", "", 0,
            ("mlp", "linear"), (Feature("item", "cloud", 8, 80), Feature("user", "cloud", 16)), CHARGING,
            replace(SEARCH, lr=(0.03, 0.1, 0.3), versions=600, passes=12), DP, {"metric_loss_share": 0.05},
        ),
        DemoCase(
            "messaging", "Does a message ask something? (NUS SMS corpus)", "", 0, ("mlp", "linear"),
            (Feature("words", "device", 97, 96),), CHARGING,
            replace(SEARCH, lr=(0.005, 0.02, 0.08), versions=600, passes=12),
            {"secure-aggregation": Privacy("secure aggregation", 30.0, 0.31), **DP},
            compliance="messages are encrypted from end to end",
        ),
        DemoCase(
            "search", "Is a film relevant to a user? (MovieLens)", "", 0, ("mlp", "linear"),
            (Feature("film", "cloud", 108, max_device_bytes=1e6), Feature("history", "device", 16)), CHARGING,
            replace(SEARCH, lr=(0.02, 0.05, 0.15), passes=12, rungs_h=(0.5, 1.0), compare=True), DP,
            {"metric_loss_share": 0.05},
        ),
    )
}  # fmt: skip


def walk(case: DemoCase, data: Path, folder: Path, seed: int = 0, tell: Tell | None = None) -> tuple[Decided, Artefact]:
    """Every artefact of a case in `folder`, and the decision on them. Cost: a minute or two.

    `data`: the folder of tables. Raises `UsageError` in one line where one is absent.
    """
    say = tell or (lambda _: None)
    log = file(data, "sessions")
    columns, test = TABLES[case.name](data, seed)
    folder.mkdir(parents=True, exist_ok=True)
    say("five days of FLASH's phones")
    trace = build_trace(log, folder / "trace", TraceConfig(criteria=case.criteria, from_s=FROM_S, to_s=TO_S), seed)
    say("proxy data")
    wanted = tuple(name for name in columns if name.startswith("x"))
    source = cite_file(file(data, case.name), "central table")
    config = Config("label", "member", features=wanted, seed=seed)
    proxy = build(columns, config, folder / "proxy", inputs=[source], key=KEY)
    records = proxy.number("records_mean") or 1.0
    held = federated(proxy, classes=2)
    held = Federated(dict(held.columns), held.offsets, held.rows, classes=2, test=test, name=held.name)
    features = build_features(case.features, folder / "features", records=records, package=case.package)
    nets = {"mlp": mlp(len(wanted), 32, 2), "linear": mlp(len(wanted), 2)}
    phones = phones_of(str(data), "always", network="flash-wifi", overhead_s=OVERHEAD_S, noise=0.2)
    jobs = {name: _job(net, held, phones) for name, net in nets.items() if name in case.models}
    kept, withheld = apart(columns, seed)
    inner = federated(build(kept, config, folder / "tuning", inputs=[source], key=KEY), classes=2)
    inner = Federated(dict(inner.columns), inner.offsets, inner.rows, classes=2, test=withheld, name="withheld rows")
    tuning = {name: _job(net, inner, phones) for name, net in nets.items() if name in case.models}
    bench = bench_of(jobs, phones, records, folder / "bench", seed)
    privacy = [
        declare(folder / f"privacy-{name}", mechanism=one.mechanism, source=one.source, epsilon=one.epsilon,
                delta=one.delta, attack_success=one.attack_success, population=held.n_clients, pet=name)
        for name, one in case.privacy.items()
    ]  # fmt: skip
    told = Case(case.name, case.models, title=case.title, pets=tuple(case.privacy), compliance=case.compliance,
                thresholds=case.thresholds)  # fmt: skip
    made: list[Artefact] = [trace, proxy, features, bench, *privacy]
    decided = decide(told, made)
    for model in case.models:  # the next one only where the workflow asks for it
        if decided.verdict == "INCOMPLETE":
            made += _simulated(case, model, jobs[model], tuning[model], trace, bench, folder, seed, say)
            decided = decide(told, made)
    artefact = write(decided, folder / "decision", report(decided))
    for name in ("decision.json", "report.html"):
        write_atomic(folder / name, [artefact.file(name).read_bytes()])
    return decided, artefact


def bench_of(jobs: Mapping[str, Job], phones: Recipe, records: float, out: Path, seed: int) -> Artefact:
    """What a task takes of FLASH's phones, for nets nobody timed on them: FLOPs over their measured FLOP/s."""
    speed = np.asarray(phones.build(PHONES, seed).flops_per_s, np.float64)
    draft = Draft("bench", seed, {"records": records, "source": "FLASH, measured times of batches, by FLOPs"})
    rows: dict[str, list[object]] = {"model": []}
    for name, job in jobs.items():
        net = job.model
        assert isinstance(net, DenseNet)
        each = flops_per_record(job) / speed
        size = 4.0 * net.layout.size
        widest = max(max(shape) for shape in net.layout.shapes)
        numbers = {
            "mean_s": (each.mean() * records, "s"), "p95_task_s": (float(np.quantile(each, 0.95)) * records, "s"),
            "per_record_s": (each.mean(), "s"), "lognormal_mu": (np.log(each).mean(), "1"),
            "lognormal_sigma": (np.log(each).std(), "1"), "storage_bytes": (size, "B"), "wire_down_bytes": (size, "B"),
            "wire_up_bytes": (size, "B"), "mem_bytes": (3 * size + 8.0 * BATCH * widest, "B"), "cpu_pct": (None, "%"),
            "battery_share_per_day": (None, "share"),
        }  # fmt: skip
        rows["model"].append(name)
        for key, (value, unit) in numbers.items():
            number = None if value is None else float(value)
            draft.values[f"{name}.{key}"] = Value(number, unit, how="closed form")
            rows.setdefault(key, []).append(number)
        rows.setdefault("params", []).append(net.layout.size)
    draft.table("models", {key: found for key, found in rows.items() if any(one is not None for one in found)})
    return draft.write(out)


def _job(net: DenseNet, held: Federated, phones: Recipe) -> Job:
    return Job(model=net, data=held, algorithm=FedAvg(1, 1), training=Training(lr=0.02, batch_size=BATCH),
               simulated=Simulated(workers=1, fleet=phones))  # fmt: skip


def apart(columns: Mapping[str, Any], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows to train on, once more in two: those to compare rates by training on, a fifth of them to measure.

    Rates are chosen without the test's rows, and on seeds that are not told.
    """
    out = rng.stream(seed + TUNE_SEED, "assess", "demo", "tune").random(len(columns["label"])) < TEST_SHARE
    x = np.stack([values[out] for name, values in columns.items() if name.startswith("x")], axis=1)
    return {name: values[~out] for name, values in columns.items()}, {"x": x, "y": columns["label"][out]}


def _simulated(
    case: DemoCase, model: str, job: Job, tuning: Job, trace: Artefact, bench: Artefact, folder: Path, seed: int,
    say: Tell,
) -> Sequence[Artefact]:  # fmt: skip
    """The search on FLASH's phones, whose target is the central loss and what may be lost of it; the forecast."""
    search = replace(case.search, seed=seed)
    say(f"{model}, trained centrally")
    whole, _ = central(job, search, folder / f"central-{model}")
    lost = LOST if lower_is_better(search.metric) else -LOST
    search = replace(search, target=whole * (1 + lost))
    fleet, others = (fleet_for(one, trace=trace, bench=None, model=model, seed=seed) for one in (job, tuning))
    simulation = build_simulation(
        job, search, folder / f"simulation-{model}", fleet=fleet, inputs=[trace, bench], model=model, pet="",
        tell=lambda words: say(f"{model}, {words}"), tuned_on=(tuning, others),
    )  # fmt: skip
    people = job.data.n_clients
    return [simulation, *forecast_of(simulation, trace, bench, folder, model, people, OVERHEAD_S)]
