"""The command `fieldfare assess publish`: models, trials and data into what people have for them."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fieldfare.assess.options import as_json_
from fieldfare.core.errors import UsageError

FOLDER = click.Path(path_type=Path)


@click.command("publish")
@click.argument("artefact", type=FOLDER)
@click.option("--to", "where", metavar="FOLDER|mlflow[:URI]", help="The registry of a simulation's model.")
@click.option("--catalogue", metavar="FOLDER|URL", help="The catalogue in which to register the artefact as data.")
@click.option("--name", required=True, help="The model's or the data's name there.")
@click.option("--version", help="Its version (default: the beginning of the artefact's hash).")
@click.option("--stage", help="Promote the model: staging, production or archived.")
@click.option("--runs", type=FOLDER, help="The folder of the simulation's trials (default: beside it).")
@click.option("--with", "more", type=FOLDER, multiple=True, help="More artefacts of its lineage, such as the decision.")
@as_json_
def command(
    artefact: Path, where: str | None, catalogue: str | None, name: str, version: str | None, stage: str | None,
    runs: Path | None, more: tuple[Path, ...], as_json: bool,
) -> None:  # fmt: skip
    """Put the model of a simulation into a registry, and its trials into MLflow; or register data in a catalogue.

    What is there already is kept; another content under its name and version is refused.
    """
    from fieldfare.assess.artefact import read_artefact
    from fieldfare.assess.platform.catalogue import Catalogue
    from fieldfare.assess.platform.publish import Published, publish
    from fieldfare.assess.platform.registry import checked_stage, registry_at

    if where is None and catalogue is None:
        raise UsageError("publish: give --to, a registry of models, or --catalogue, one of data.")
    if where is None and (stage is not None or runs is not None or more):
        raise UsageError("publish: --stage, --runs and --with go with --to, a registry of models.")
    if stage is not None:
        checked_stage(stage)
    made, data = Published(None), None
    if where is not None:
        made = publish(read_artefact(artefact, "simulation"), registry_at(where), name=name, version=version, work=runs,
                       stage=stage, more=[read_artefact(one) for one in more])  # fmt: skip
    if catalogue is not None:
        data = Catalogue(catalogue).put(artefact, name, version)
    entry = made.entry
    if as_json:
        model = None if entry is None else {"name": entry.name, "version": entry.version, "sha256": entry.sha256,
                                            "stages": list(entry.stages), "lineage": list(entry.lineage)}  # fmt: skip
        told = None if data is None else {"name": data.name, "version": data.version, "kind": data.kind,
                                          "sha256": data.sha256, "rows": data.rows, "place": data.place}  # fmt: skip
        print(json.dumps({"kind": "published", "model": model, "runs": list(made.runs), "data": told}))
        return
    if entry is not None:
        print(f"{entry.name} {entry.version} {' '.join(entry.stages)}".rstrip())
    elif where is not None:
        print("no model: the simulation was of time alone")
    if made.runs:
        print(f"trials: {len(made.runs)} runs")
    if data is not None:
        print(f"{data.name} {data.version}: {data.kind} of {data.rows:,} rows in the catalogue")
