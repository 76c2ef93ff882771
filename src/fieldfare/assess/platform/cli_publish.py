"""The command `fieldfare assess publish`: a simulation's model and trials into the registry and tracker people have."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fieldfare.assess.options import as_json_

FOLDER = click.Path(path_type=Path)


@click.command("publish")
@click.argument("simulation", type=FOLDER)
@click.option("--to", "where", required=True, metavar="FOLDER|mlflow[:URI]", help="The registry.")
@click.option("--name", required=True, help="The model's name there.")
@click.option("--version", help="The model's version (default: the beginning of the simulation's hash).")
@click.option("--stage", help="Promote it: staging, production or archived.")
@click.option("--runs", type=FOLDER, help="The folder of the simulation's trials (default: beside it).")
@click.option("--with", "more", type=FOLDER, multiple=True, help="More artefacts of its lineage, such as the decision.")
@as_json_
def command(
    simulation: Path, where: str, name: str, version: str | None, stage: str | None, runs: Path | None,
    more: tuple[Path, ...], as_json: bool,
) -> None:  # fmt: skip
    """Put the model of SIMULATION into a registry, and its trials into MLflow; what is there already is kept."""
    from fieldfare.assess.artefact import read_artefact
    from fieldfare.assess.platform.publish import publish
    from fieldfare.assess.platform.registry import checked_stage, registry_at

    if stage is not None:
        checked_stage(stage)
    made = publish(read_artefact(simulation, "simulation"), registry_at(where), name=name, version=version, work=runs,
                   stage=stage, more=[read_artefact(one) for one in more])  # fmt: skip
    entry = made.entry
    if as_json:
        told = None if entry is None else {"name": entry.name, "version": entry.version, "sha256": entry.sha256,
                                           "stages": list(entry.stages), "lineage": list(entry.lineage)}  # fmt: skip
        print(json.dumps({"kind": "published", "model": told, "runs": list(made.runs)}))
        return
    if entry is None:
        print("no model: the simulation was of time alone")
    else:
        print(f"{entry.name} {entry.version} {' '.join(entry.stages)}".rstrip())
    if made.runs:
        print(f"trials: {len(made.runs)} runs")
