"""From a job to a run: names bound to work, the simulator driven, everything kept in a run folder.

Here: assembly, snapshots, resumption. Not here: the clock (sim), files (store), displays (progress). Invariant: a run
that was killed at any moment and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from fieldfare import __version__
from fieldfare.algorithms.check import check
from fieldfare.algorithms.evaluate import Evaluate, EvaluateOnClients, awaited, innermost
from fieldfare.algorithms.evaluate import StopAt as Stopping
from fieldfare.config import describe_data, describe_job, first_difference
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Local
from fieldfare.core.params import Params
from fieldfare.core.quorum import Sample
from fieldfare.core.settings import unknown_key
from fieldfare.core.work import Work
from fieldfare.devices import keep_fleet, keep_fleet_over
from fieldfare.fleet.fleet import Fleet
from fieldfare.job import Job, StopAt
from fieldfare.progress import Display, display
from fieldfare.record import Recorder, after_last
from fieldfare.sim.asks import Ask
from fieldfare.sim.batch import Executor
from fieldfare.sim.hosted import Deadline, Hosted
from fieldfare.sim.observe import Observation, Progressed, Published
from fieldfare.sim.population import Population
from fieldfare.sim.simulator import Progress, Simulator, World
from fieldfare.sim.stream import Stream, StreamAsk
from fieldfare.store.codec import Codec, registry
from fieldfare.store.models import read_model
from fieldfare.store.runs import RunFolder
from fieldfare.store.slots import Slots
from fieldfare.store.snapshot import Snapshots
from fieldfare.store.text import dumps
from fieldfare.work.adapt import as_net
from fieldfare.work.evaluate import Evaluate as Measure
from fieldfare.work.evaluate import FineTune, central_evaluation
from fieldfare.work.train import Train

FORMAT = 1
_SIM_TYPES = (Ask, StreamAsk, Hosted, Deadline)
_PROGRESS = tuple(Progress.__dataclass_fields__)


@dataclass(frozen=True, eq=False)
class Result:
    """How a run ended: `final` metrics, the `model`, one row per round, the summary, and where it all lies."""

    final: Mapping[str, float]
    model: Params
    rounds: list[dict[str, Any]]
    summary: Mapping[str, Any]
    path: Path | None = None


@dataclass(frozen=True, eq=False)
class Assembly:
    """A job bound to this machine: the world to simulate and the work to compute it with."""

    world: World
    works: Mapping[str, Work]
    net: Any
    slots: Mapping[str, int] = field(default_factory=dict)


def assemble(job: Job) -> Assembly:
    """Bind the job's names; every refusal that can be known before the start is raised here."""
    net = as_net(job.model, loss=job.loss, example={name: rows[:2] for name, rows in job.data.columns.items()})
    local = tuple(getattr(innermost(job.algorithm), "local", ()))
    model = net.init(job.seed)
    if job.start_from is not None:
        model = read_model(job.start_from, layout=model.layout)
    works = works_of(net, job, local)
    check(job.algorithm, training=job.training, layout=model.layout, clients=job.data.n_clients)
    evaluations: dict[str, Any] = {}
    algorithm = job.algorithm
    if not job.simulated.train:
        if job.stop_at is not None:
            raise UsageError("Job(stop_at=...) needs a trained model, and Simulated(train=False) trains none.")
    elif job.stop_at is not None:
        if job.data.test is None:
            raise UsageError("Job(stop_at=...) needs a central test set: give the data a test part.")
        _check_metric(net, job, model)
        algorithm = Stopping(algorithm, **_settings_of(job.stop_at), name="test")
    if job.data.test is not None and job.simulated.train:
        evaluations["test"] = (_central(net, job.data.test), job.simulated.evaluation_s)
        algorithm = Evaluate(algorithm, central="test", every=job.evaluate.every)
    if job.evaluate.clients is not None and job.simulated.train:
        on = Sample(job.evaluate.clients) if isinstance(job.evaluate.clients, int) else job.evaluate.clients
        every = job.evaluate.clients_every
        _measurable(job, works)
        algorithm = EvaluateOnClients(algorithm, on, every, "evaluate", "federated")
        if job.evaluate.fine_tune:
            algorithm = EvaluateOnClients(algorithm, on, every, "personalise", "fine_tuned")
        elif job.evaluate.personal:
            algorithm = EvaluateOnClients(algorithm, on, every, "personalise", "personal")
    elif (job.evaluate.personal or job.evaluate.fine_tune) and job.simulated.train:
        raise UsageError(
            "Evaluation(personal=..., fine_tune=...) needs clients=: say how many measure their own model."
        )
    fleet = job.simulated.fleet
    if not isinstance(fleet, Fleet):
        fleet = fleet.build(job.data.n_clients, job.seed)
    world = World(
        {"central": ("central", algorithm)}, model, Population.of(job.data, fleet), works, job.seed, evaluations
    )  # fmt: skip
    slots: dict[str, int] = {}
    for work in works.values():
        slots |= work.slots(model.layout)
    return Assembly(world, works, net, slots)


def works_of(net: Any, job: Job, local: tuple[Local, ...]) -> dict[str, Work]:
    """The client computations a job binds, by name: "train", "evaluate", and "personalise" where it is wanted."""
    if hasattr(net, "works"):
        return dict(net.works(job.training, local))
    works: dict[str, Work] = {"train": Train(net, job.training, local), "evaluate": Measure(net, (), held=True)}
    if job.evaluate.fine_tune:
        tuning = replace(job.training, epochs=job.evaluate.fine_tune, steps=None)
        works["personalise"] = FineTune(net, tuning, local)
    elif job.evaluate.personal:
        works["personalise"] = Measure(net, local, held=True)
    return works


def _central(net: Any, test: Mapping[str, Any]) -> Callable[[Params], Mapping[str, float]]:
    if hasattr(net, "central"):
        return net.central(test)
    measure = central_evaluation(net, test)
    return lambda model: measure(model.vector)


def _name_of(algorithm: Any) -> str:
    inner = innermost(algorithm)
    return getattr(inner, "name", None) or type(inner).__name__.lower()


def _settings_of(stop_at: StopAt) -> dict[str, Any]:
    return {f.name: getattr(stop_at, f.name) for f in fields(stop_at)}


def _check_metric(net: Any, job: Job, model: Params) -> None:
    """Refuse to stop at a metric that the model does not give, found out on one row."""
    assert job.stop_at is not None
    assert job.data.test is not None
    if not hasattr(net, "central"):
        known = _central(net, {name: column[:1] for name, column in job.data.test.items()})(model)
        if job.stop_at.metric not in known:
            raise UsageError(unknown_key(job.stop_at.metric, known, "StopAt(metric=...)"))


def _expects(simulator: Simulator, version: int) -> set[str]:
    """The evaluations of a version that are still to come."""
    return {name for due, name in awaited(simulator.progress.states.get("central")) if due == version}


def _measurable(job: Job, works: Mapping[str, Work]) -> None:
    """Refuse an evaluation on clients that the model, or the data, cannot give."""
    wanted = ["evaluate", *(["personalise"] if job.evaluate.personal or job.evaluate.fine_tune else [])]
    if lacking := [name for name in wanted if name not in works]:
        raise UsageError(
            f"Evaluation(clients=...) asks for the work {lacking[0]!r} and this model binds {', '.join(works)}: "
            "give it (opaque(evaluate=...)), or leave this evaluation out."
        )
    if getattr(works["evaluate"], "needs_held", True) and getattr(job.data, "held_offsets", None) is None:
        raise UsageError(
            "Evaluation(clients=...) measures on the clients' held-out data and this data has none: "
            "use data.holdout(0.2)."
        )


LOADING: ContextVar[bool] = ContextVar("fieldfare_loading", default=False)
"""Whether a job file is being read for the job it makes."""


def refuse_while_loading(what: str) -> None:
    """Refuse to run from inside a job file that is only being read: it would run twice, and again on every resume."""
    if LOADING.get():
        raise UsageError(
            f"this file runs its {what} while it is read for it: put {what}.run() under if __name__ == '__main__':"
        )


def running_file(job: object) -> str | None:
    """The program being run, if it holds `job` in a variable: then the run can be resumed from a copy of it.

    None for a program that is no file: typed in a session, or read from standard input.
    """
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    if main is None or file is None or not any(value is job for value in vars(main).values()):
        return None
    return str(file) if Path(file).is_file() else None


def kept_file(source: str | Path | None, job: object) -> str | Path | None:
    """The file to keep beside a run's results: `source`, or the program being run; refused before a folder is made."""
    if source is None:
        return running_file(job)
    if not Path(source).is_file():
        raise UsageError(f"run(source={str(source)!r}): there is no such file; give the job's file, or leave it out.")
    return source


def _check_same(job: Job, net: Any, folder: RunFolder) -> None:
    """Refuse to go on in a run folder with a job of other settings than its own."""
    kept = folder.read_json("config.json").get("job", {})
    differs = first_difference(kept, json.loads(dumps(describe_job(job, net)["job"])))
    if differs is not None:
        folder.close()
        raise UsageError(
            f"the run {folder.id} was begun with another job: {differs}. Resume with the job it was begun with, "
            "or start a new run."
        )


def source_of(source: str | Path | None, overrides: Mapping[str, Any] | None, job_name: str | None) -> dict[str, Any]:
    """Where a run's job came from, as its `config.json` keeps it for resumption."""
    file = None if source is None else str(Path(source).resolve())
    return {"file": file, "overrides": dict(overrides or {}), "job": job_name}


class Saver:
    """Snapshots of a simulation at moments between steps, as often as costs at most a twentieth of the time."""

    def __init__(self, folder: RunFolder, job: Job, world: World, simulator: Simulator, recorder: Recorder,
                 slots: Slots) -> None:  # fmt: skip
        self.folder, self.simulator, self.recorder, self.slots = folder, simulator, recorder, slots
        self.codec = Codec(registry(*(algorithm for _, algorithm in world.nodes.values()), *_SIM_TYPES))
        self.snapshots = Snapshots(folder.path / "snapshots")
        self.job = job
        self._next = 0.0
        self._published = False

    def __call__(self, seen: Observation) -> None:
        if isinstance(seen, Published):
            self._published = True
        elif isinstance(seen, Progressed) and self._published and time.monotonic() >= self._next:
            self._published = False
            began = time.monotonic()
            self.save()
            now = time.monotonic()
            self._next = now + 20.0 * (now - began)

    def save(self) -> None:
        """Write everything that resumption needs; what was written before stays until this is whole."""
        p, r = self.simulator.progress, self.recorder
        recorder = {
            "rows": len(r.rows), "last": r.rows[-1:], "open": [(row, sorted(w)) for row, w in r.open],
            "training": r.training, "evaluations": r.evaluations, "clients_done": r.clients_done, "wall_s": r.wall_s,
            "model": r.model, "totals": r.totals,
        }  # fmt: skip
        progress = {name: getattr(p, name) for name in _PROGRESS if name not in ("streams", "selected")}
        progress |= {"streams": {n: (s.node, s.work, s.saved()) for n, s in p.streams.items()}}
        progress |= {"selected": p.selected.saved()}
        tree, arrays = self.codec.encode(
            {
                "progress": progress, "computed": self.simulator.computed(), "recorder": recorder,
                "slots": self.slots.flush(), "files": self.folder.flush(),
            }
        )  # fmt: skip
        self.snapshots.write(tree, arrays)

    def load(self) -> bool:
        """Put simulator, recorder, slots and files back where the newest whole snapshot has them."""
        snapshot = self.snapshots.read()
        if snapshot is None:
            self.folder.truncate({})
            return False
        saved = self.codec.decode(snapshot.tree, snapshot.arrays)
        progress, world = self.simulator.progress, self.simulator.world
        for name, value in saved["progress"].items():
            if name == "selected":
                progress.selected.load(value)
            elif name == "streams":
                for which, (node, work, state) in value.items():
                    stream = progress.streams[which] = Stream(node, work, world.population, world.seed)
                    stream.load(state, world.works)
            else:
                setattr(progress, name, value)
        self.simulator.restore_computed(saved.get("computed", {}))
        r, back = self.recorder, saved["recorder"]
        if back["model"] is not None and back["model"].layout != self.simulator.world.model.layout:
            raise UsageError(
                f"the run {self.folder.id} was made with a model of other tensors than its job file makes now: "
                "put that file, and what it imports, back as it was, or start a new run."
            )
        r.open = [(row, set(waiting)) for row, waiting in back["open"]]
        r.training, r.evaluations, r.clients_done = back["training"], back["evaluations"], back["clients_done"]
        r.before_s, r.model, r.totals = back["wall_s"], back["model"], back["totals"]
        self.folder.truncate(saved["files"])
        r.rows = [
            {k: math.nan if v is None else v for k, v in row.items()} for row in self.folder.read_lines("rounds.jsonl")
        ]
        if r.rows:
            r.rows[-1:] = back["last"]
        self.slots.restore(saved["slots"])
        return True


def run(
    job: Job, runs: str | Path | None = "runs", *, progress: bool | None = None, source: str | Path | None = None,
    folder: RunFolder | None = None, fresh: bool = False, report: bool | str = True,
    overrides: Mapping[str, Any] | None = None, job_name: str | None = None, note: Callable[[str], None] | None = None,
) -> Result:  # fmt: skip
    """Simulate `job` to its end.

    `runs`: where the run folder is made (None: nothing is written). `folder`: an open one to go on in (or to begin
    in, when `fresh`). `source`: the job's file, kept beside the results, with the `overrides` it was changed by.
    `report`: False writes none; a path is that of the report it is part of.
    `progress`: False shows none (else: live on a terminal, lines elsewhere). Errors: `UsageError` for what the job asks
    wrongly, `PeerError` with `bad_updates="stop"`.
    """
    refuse_while_loading("job")
    assembly = assemble(job)
    name = job.name or getattr(innermost(job.algorithm), "name", "run")
    resuming = folder is not None and not fresh
    source = kept_file(source, job)
    if folder is None and runs is not None:
        folder = RunFolder.create(runs, name)
    if folder is not None and not (resuming and (folder.path / "config.json").exists()):
        if source is not None:
            folder.copy_source(source)
        config = describe_job(job, assembly.net)
        config["source"] = source_of(source, overrides, job_name)
        folder.write_json("config.json", config)
        folder.write_json("data.json", describe_data(job.data))
        keep_fleet(folder, assembly.world.population)
    elif folder is not None:
        _check_same(job, assembly.net, folder)
    shown = display(job, progress)
    slots = Slots(None if folder is None else folder.path / "slots", assembly.slots, job.data.n_clients)
    recorder = Recorder(
        folder, job.callbacks, job.bad_updates, note or shown.note, shown=shown.row, names=job.data.names,
        fleet=assembly.world.population.fleet, trained=job.simulated.train,
    )  # fmt: skip
    try:
        with shown, Executor(
            assembly.works, job.data, slots, job.simulated.workers, job.simulated.chunk, job.simulated.on
        ) as executor:  # fmt: skip
            simulator = Simulator(assembly.world, executor if job.simulated.train else None)
            recorder.expects = partial(_expects, simulator)
            saver = Saver(folder, job, assembly.world, simulator, recorder, slots) if folder is not None else None
            if resuming and saver is not None:
                saver.load()
                if recorder.rows:
                    shown.resumed(recorder.rows[-1]["round"])

            def observe(seen: Observation) -> None:
                recorder(seen)
                if saver is not None:
                    saver(seen)

            simulator.observer = observe
            simulator.run()
        result = _finish(job, name, simulator, recorder, folder, report, shown)
    finally:
        slots.close()
        if folder is not None:
            folder.close()
    return result


def _finish(
    job: Job,
    name: str,
    simulator: Simulator,
    recorder: Recorder,
    folder: RunFolder | None,
    report: bool | str,
    shown: Display,
) -> Result:
    p, model = simulator.progress, recorder.model
    if model is None:
        model = simulator.world.model
    wall = recorder.wall_s
    if (told := recorder.nobody()) is not None:
        recorder.note(told)
    summary: dict[str, Any] = {
        "format": FORMAT, "fieldfare": __version__, "run": folder.id if folder else "", "name": job.name or name,
        "algorithm": _name_of(job.algorithm),
        "rounds": recorder.rows[-1]["round"] if recorder.rows else 0, "seed": job.seed, "final": recorder.final(),
        "stopped": p.stopped, "virtual_s": p.now, "bytes_down": p.bytes_down, "bytes_up": p.bytes_up,
        **{name: recorder.totals[name] for name in ("tasks", "device_s", "compute_s", "energy_j")},
        "running": sum(len(stream.heap) for stream in p.streams.values()), "wall_s": wall,
        "clients_per_s": recorder.clients_done / wall if wall > 0 else 0.0,
        "report": report if isinstance(report, str) else "report.html",
    }  # fmt: skip
    if folder is not None:
        folder.write_model(model)
        starts = [stream.saved()["table"]["start"] for stream in p.streams.values()]
        keep_fleet_over(folder, simulator.world.population, p.now, starts, job.seed)
        folder.write_json("totals.json", after_last(recorder.rows, summary))
        folder.finish(summary)
        if report is True:
            from fieldfare.report.html import write_report

            shown.doing("writing the report")
            write_report(folder.path)
    return Result(summary["final"], model, recorder.rows, summary, None if folder is None else folder.path)
