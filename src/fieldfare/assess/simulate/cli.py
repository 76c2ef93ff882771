"""The command `fieldfare assess simulate`: search settings of a job over virtual time."""

from __future__ import annotations

from pathlib import Path

import click

from fieldfare.assess.options import artefact_at, common, made, settings_of, tell

SHOWN = (
    "concurrency", "buffer", "staleness", "lr", "server_lr", "trials", "time_to_target_s", "device_s_to_target",
    "speed_up", "metric_final", "metric_central", "metric_loss_share", "worst_group_gap", "versions", "version_s",
    "tasks_started", "tasks_ok", "tasks_interrupted", "tasks_stale", "waste_share", "device_s", "bytes_down",
    "bytes_up", "updates_per_s_peak",
)  # fmt: skip
FOLDER = click.Path(path_type=Path)


@click.command("simulate")
@click.argument("job", metavar="JOB.py", type=FOLDER)
@click.option("--trace", type=FOLDER, help="A trace artefact: when devices are there, their classes.")
@click.option("--bench", type=FOLDER, help="A bench artefact: seconds per record (with --model).")
@click.option("--proxy", type=FOLDER, help="The proxy artefact that is the job's data: cited, and compared with it.")
@click.option("--model", default="", help="The model's name in the bench artefact, and in the case.")
@click.option("--pet", default="none", help="The privacy technique the job has.")
@click.option("--job", "name", metavar="NAME", help="Which job of the file.")
@click.option("--on", metavar="local|ray[://HOST:PORT]", help="Where to compute, to the same bits.")
@common
def command(
    job: Path, trace: Path | None, bench: Path | None, proxy: Path | None, model: str, pet: str, name: str | None,
    on: str | None, config: Path | None, set_: tuple[str, ...], seed: int | None, out: Path | None, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Search FedBuff or synchronous settings of JOB.py, several trials each, by medians; a killed search goes on."""
    from rich.console import Console

    from fieldfare.assess.artefact import read_artefact
    from fieldfare.assess.proxy.write import name_of
    from fieldfare.assess.simulate.build import build
    from fieldfare.assess.simulate.devices import fleet_for
    from fieldfare.assess.simulate.search import Search
    from fieldfare.core.errors import UsageError
    from fieldfare.job import Job
    from fieldfare.load import load_job

    search = made(Search, settings_of(config, set_, seed=seed))
    loaded = load_job(job, name)
    if not isinstance(loaded, Job):
        raise UsageError(
            f"{job} makes a {type(loaded).__name__.lower()}: simulate is of one job, choose it with --job."
        )
    if on is not None:
        loaded = loaded.with_overrides({"on": on})
    kinds = {"trace": trace, "bench": bench, "proxy": proxy}
    found = {kind: read_artefact(at, kind) for kind, at in kinds.items() if at is not None}
    if (given := found.get("proxy")) is not None and not loaded.data.name.startswith(name_of(given)):
        raise UsageError(
            f"{job} is on {loaded.data.name}, not on {given.path}, which is {name_of(given)}: read it by "
            f'fieldfare.assess.proxy.federated("{given.path}"), or give another --proxy.'
        )
    fleet = fleet_for(loaded, trace=found.get("trace"), bench=found.get("bench"), model=model, seed=search.seed)
    status = None if quiet or as_json else Console(stderr=True).status("simulating")
    if status is not None:
        status.start()
    try:
        artefact = build(
            loaded, search, artefact_at(out or "", "simulation"), fleet=fleet, inputs=list(found.values()), model=model,
            pet=pet, tell=None if status is None else lambda words: status.update(f"simulating {words}"),
        )  # fmt: skip
    finally:
        if status is not None:
            status.stop()
    tell(artefact, as_json, shown=SHOWN, title=f"simulation, best of its points: {artefact.params['best']}")
