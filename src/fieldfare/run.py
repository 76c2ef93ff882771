"""From a job to a run: names bound to work, the simulator driven, everything kept in a run folder.

Here: beginning, going on, and the summary. Not here: what is put together (`assembly`), snapshots (`saver`), the clock
(sim), files (store), displays (progress). Invariant: a run that was killed at any moment and resumed ends with the same
bits as one that was not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fieldfare import __version__
from fieldfare.algorithms.evaluate import awaited, innermost
from fieldfare.assembly import assemble
from fieldfare.config import describe_data, describe_job, first_difference
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Params
from fieldfare.devices import keep_fleet, keep_fleet_over
from fieldfare.job import Job
from fieldfare.nodes_log import NodesLog
from fieldfare.progress import Display, display
from fieldfare.record import Recorder, after_last, running
from fieldfare.saver import Saver
from fieldfare.sim.batch import Executor
from fieldfare.sim.observe import Observation
from fieldfare.sim.simulator import Simulator
from fieldfare.store.runs import RunFolder
from fieldfare.store.slots import Slots
from fieldfare.store.text import dumps

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Result:
    """How a run ended: `final` metrics, the `model`, one row per round, the summary, and where it all lies."""

    final: Mapping[str, float]
    model: Params
    rounds: list[dict[str, Any]]
    summary: Mapping[str, Any]
    path: Path | None = None


def _name_of(algorithm: Any) -> str:
    inner = innermost(algorithm)
    return getattr(inner, "name", None) or type(inner).__name__.lower()


def _expects(simulator: Simulator, version: int) -> set[str]:
    """The evaluations of a version that are still to come."""
    states = simulator.progress.states.values()
    return {name for state in states for due, name in awaited(state) if due == version}


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


def kept_way(folder: RunFolder) -> str | None:
    """How the model of a run was trained, by its description."""
    model: Any = folder.read_json("config.json").get("job", {}).get("model")
    path = model.get("path") if isinstance(model, dict) else None
    return path if isinstance(path, str) else None


def _check_same(job: Job, net: Any, folder: RunFolder) -> None:
    """Refuse to go on in a run folder with a job of other settings than its own."""
    kept = folder.read_json("config.json").get("job", {})
    differs = first_difference(kept, json.loads(dumps(describe_job(job, net)["job"])))
    if differs is not None:
        folder.close()
        if differs.startswith("model.path"):
            differs += " (FIELDFARE_PATH and FIELDFARE_NATIVE may not be as they were)"
        raise UsageError(
            f"the run {folder.id} was begun with another job: {differs}. Resume with the job it was begun with, "
            "or start a new run."
        )


def source_of(source: str | Path | None, overrides: Mapping[str, Any] | None, job_name: str | None) -> dict[str, Any]:
    """Where a run's job came from, as its `config.json` keeps it for resumption."""
    file = None if source is None else str(Path(source).resolve())
    return {"file": file, "overrides": dict(overrides or {}), "job": job_name}


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
    resuming = folder is not None and not fresh
    begun = folder if resuming and folder is not None and (folder.path / "config.json").exists() else None
    assembly = assemble(job, None if begun is None else kept_way(begun))
    name = job.name or getattr(innermost(job.algorithm), "name", "run")
    source = kept_file(source, job)
    if folder is None and runs is not None:
        folder = RunFolder.create(runs, name)
    if folder is not None and begun is None:
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
        fleet=assembly.world.population.fleet, trained=job.simulated.train, several=assembly.several,
        measure=assembly.measure,
    )  # fmt: skip
    try:
        with shown, Executor(
            assembly.works, assembly.data, slots, job.simulated.workers, job.simulated.chunk, job.simulated.on
        ) as executor:  # fmt: skip
            simulator = Simulator(assembly.world, executor if job.simulated.train or assembly.several else None)
            recorder.expects = partial(_expects, simulator)
            log = NodesLog(folder, assembly.world) if assembly.several else None
            saver = Saver(folder, assembly.world, simulator, recorder, slots, log) if folder is not None else None
            if resuming and saver is not None:
                saver.load()
                if recorder.rows:
                    shown.resumed(recorder.rows[-1]["round"])

            def observe(seen: Observation) -> None:
                if log is not None:
                    log(seen)
                recorder(seen)
                if saver is not None:
                    saver(seen)

            simulator.observer = observe
            if job.simulated.train and getattr(assembly.net, "path", "") == "auto":
                from fieldfare.work.native.modules import notice

                if (said := notice()) is not None:
                    shown.note(said)
            if assembly.planned is not None and not resuming:
                for line in assembly.planned.told():
                    recorder.note(f"left out: {line}")
            simulator.run()
        if log is not None:
            log.write()
        planned = {} if assembly.planned is None else {"plan": assembly.planned.facts()}
        result = _finish(job, name, simulator, recorder, folder, report, shown, planned)
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
    planned: Mapping[str, Any],
) -> Result:
    p, model = simulator.progress, recorder.model
    if model is None or not job.simulated.train:
        model = simulator.world.model
    wall = recorder.wall_s
    if (told := recorder.nobody()) is not None:
        recorder.note(told)
    summary: dict[str, Any] = {
        "format": FORMAT, "fieldfare": __version__, "run": folder.id if folder else "", "name": job.name or name,
        "algorithm": _name_of(job.algorithm),
        "rounds": recorder.rows[-1]["round"] if recorder.rows else 0, "seed": job.seed, "final": recorder.final(),
        "stopped": p.stopped, "virtual_s": p.now, "bytes_down": p.bytes_down, "bytes_up": p.bytes_up,
        **({"bytes_between": p.bytes_between} if recorder.several else {}),
        **{name: recorder.totals[name] for name in ("tasks", "device_s", "compute_s", "energy_j")},
        "running": running(p), "wall_s": wall,
        "clients_per_s": recorder.clients_done / wall if wall > 0 else 0.0,
        "report": report if isinstance(report, str) else "report.html", **planned,
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
