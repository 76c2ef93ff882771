"""The command `fieldfare assess bench`: what a training step takes on devices."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fieldfare.assess.options import artefact_at, common, made, settings_of, tell

if TYPE_CHECKING:
    from fieldfare.assess.bench.package import Package
    from fieldfare.assess.bench.records import Record

SHOWN = (
    "mean_s", "p95_task_s", "per_record_s", "lognormal_mu", "lognormal_sigma", "storage_bytes", "wire_down_bytes",
    "wire_up_bytes", "mem_bytes", "cpu_pct", "battery_share_per_day", "energy_j", "extrapolation_r2",
    "extrapolation_error",
)  # fmt: skip
SECTIONS = ("plan", "task", "limits", "model")
FILE = click.Path(path_type=Path)


@click.command("bench")
@click.argument("jobs", metavar="[JOB.py[:NAME]]...", nargs=-1)
@click.option(
    "--target", "targets", metavar="WHERE", multiple=True,
    help="local, emulated[:CLASS,...], ssh:HOST, adb[:SERIAL] or farm:DIR; several times for several (default: local).",
)  # fmt: skip
@click.option(
    "--from", "read", type=FILE, multiple=True, help="Records measured before: a bench artefact, or its file."
)
@click.option("--records", type=int, help="Records of a task (default: 5,000, as the paper measured).")
@click.option(
    "--input", "inputs", metavar="NAME=TYPE", multiple=True, help='Of a module: "x=float32[64]", "y=int64<10".'
)
@click.option("--population", type=FILE, help="Table of device_model, share, ai_score: the devices it is meant for.")
@click.option("--paper", is_flag=True, help="Nothing is measured: FLINT's table 5, declared.")
@click.option("--models", help="With --paper: which of its models, such as B,E (default: all).")
@common
def command(
    jobs: tuple[str, ...], targets: tuple[str, ...], read: tuple[Path, ...], records: int | None,
    inputs: tuple[str, ...], population: Path | None, paper: bool, models: str | None, as_json: bool, quiet: bool,
    out: Path | None, seed: int | None, set_: tuple[str, ...], config: Path | None,
) -> None:  # fmt: skip
    """Measure a training step of what JOB.py makes (a job, a net, a module) on every target."""
    from fieldfare.assess.artefact import cite_file
    from fieldfare.assess.bench.population import read_population
    from fieldfare.assess.bench.records import read_records
    from fieldfare.assess.bench.summary import Config, Limits, build
    from fieldfare.core.errors import UsageError

    read = tuple(_here(one) for one in read)
    told = settings_of(config, set_)
    _known(told)
    task = dict(told.get("task", {}))
    place = artefact_at(out or "", "bench")
    if paper:
        if jobs or targets or read:
            raise UsageError("--paper measures nothing: leave JOB.py, --target and --from out.")
        tell(_paper(place, models, records, task), as_json)
        return
    if models is not None:
        raise UsageError("--models is for --paper: models that are measured are named JOB.py:NAME.")
    if not jobs and not read:
        raise UsageError(
            "bench needs a file that makes a model (JOB.py), records measured before (--from), or --paper."
        )
    if read and not jobs and records is not None:
        task.setdefault("records", records)
    limits = made(Limits, told.get("limits", {}))
    settings = made(Config, {**task, "limits": limits, **({} if seed is None else {"seed": seed})})
    people = () if population is None else read_population(population)
    found: list[Record] = [one for file in read for one in read_records(file)]
    packages = _packages(jobs, told, records, inputs) if jobs else []
    say = _silent if quiet else _say
    emulate = told.get("emulate", "sleep")
    reached = [(where, one) for where in (targets or ("local",)) for one in targets_of(where, emulate)] if jobs else []
    found += [one for where, target in reached for one in _measured(where, target, packages, say)]
    if not found:
        _waiting(packages, targets, as_json)
        return
    made_of = [cite_file(file / "records.jsonl" if file.is_dir() else file, "records") for file in sorted(read)]
    made_of += [] if population is None else [cite_file(population, "population")]
    artefact = build(found, place, settings, people, made_of)
    names = sorted({str(one["model"]["name"]) for one in found})
    tell(artefact, as_json, shown=[f"{name}.{one}" for name in names for one in SHOWN])


def _here(place: Path) -> Path:
    """A bench artefact, or its file of records, on this machine: a URL is fetched."""
    if ":/" not in str(place):
        return place
    from fieldfare.assess.platform.places import fetch, is_url, local

    if not is_url(place):
        return place
    return local(place) if place.suffix == ".jsonl" else fetch(place, "bench")


def targets_of(where: str, emulate: str = "sleep") -> Sequence[Any]:
    """The targets that a word of the command line names; those of adb that cannot be used are told and left out."""
    from fieldfare.assess.bench.adb import Adb, phones, usable
    from fieldfare.assess.bench.emulated import Emulated, device_class, needs_speed, this_machine_flops_per_s
    from fieldfare.assess.bench.farm import Farm
    from fieldfare.assess.bench.targets import Local, Ssh
    from fieldfare.core.errors import UsageError

    kind, _, rest = where.partition(":")
    if kind == "local" and not rest:
        return [Local()]
    if kind == "emulated":
        texts = tuple(one.strip() for one in rest.split(",") if one.strip()) or CLASSES
        speed = this_machine_flops_per_s() if needs_speed(texts) else None
        return [Emulated(device_class(text, speed), emulate) for text in texts]  # type: ignore[arg-type]
    if kind == "ssh" and rest:
        return [Ssh(rest)]
    if kind == "adb":
        good, left = usable(phones(), rest or None)
        for line in left:
            print(f"left out: {line}", file=sys.stderr)
        return [Adb(one.serial) for one in good]
    if kind == "farm" and rest:
        return [Farm(Path(rest))]
    raise UsageError(f"--target {where}: use local, emulated[:CLASS,...], ssh:HOST, adb[:SERIAL] or farm:DIR.")


CLASSES = ("raspberry-pi-3b+", "raspberry-pi-4-2gb", "raspberry-pi-5-8gb", "jetson-nano")
"""Boards played where `emulated` names none."""


def _packages(jobs: Sequence[str], told: dict[str, Any], records: int | None, inputs: Sequence[str]) -> list[Package]:
    from fieldfare.assess.bench.package import About, Plan, model_of, package
    from fieldfare.core.errors import UsageError

    plan = made(Plan, {**({} if records is None else {"records": records}), **told.get("plan", {})})
    given: dict[str, str] = {}
    for pair in inputs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f'--input {pair}: use NAME=TYPE, such as "x=float32[64]" or "y=int64<10".')
        given[name.strip()] = text
    about = made(About, {"inputs": given, **told.get("model", {})})
    if about.name and len(jobs) > 1:
        raise UsageError("model.name is for one model: measure several one after the other, and pool them with --from.")
    found = [package(model_of(*_split(job), about), plan) for job in jobs]
    names = [str(one.model["name"]) for one in found]
    if len(set(names)) < len(names):
        raise UsageError(f"two models are called {names[0]!r}: name them apart (JOB.py:NAME, or --set model.name=...).")
    return found


def _split(job: str) -> tuple[Path, str | None]:
    """`JOB.py:NAME` as file and name."""
    found = re.fullmatch(r"(.+\.py):([A-Za-z_]\w*)", job)
    return (Path(found[1]), found[2]) if found else (Path(job), None)


def _measured(where: str, target: Any, packages: Sequence[Package], say: Any) -> list[Record]:
    from fieldfare.assess.bench.targets import measure

    found: list[Record] = []
    for one in packages:
        kind = getattr(getattr(target, "kind", None), "name", "")
        say(f"{one.model['name']} on {where.partition(':')[0]} {kind}".strip())
        for line in measure(target, one):
            took = f"{line['wall_s']:.3g} s" if line["wall_s"] is not None else line["note"] or ""
            say(f"  {line['device']['model'] or 'a device'}: {line['status']} {took}")
            found.append(line)
    return found


def _waiting(packages: Sequence[Package], targets: Sequence[str], as_json: bool) -> None:
    """Said where packages were written for a farm and no results are back."""
    folders = [one.partition(":")[2] for one in targets if one.startswith("farm:")]
    names = [f"{folder}/package-{one.name}.zip" for folder in folders for one in packages]
    if as_json:
        print(json.dumps({"kind": "package", "path": names, "sha256": None, "values": {}}))
        return
    for name in names:
        print(f"written: {name}")
    print("run it on the devices, put what comes back where its README.txt says, and give this command again")


def _paper(place: Path, models: str | None, records: int | None, task: dict[str, Any]) -> Any:
    from fieldfare.assess.bench.paper import RECORDS, declared
    from fieldfare.core.errors import UsageError

    wanted = tuple(one.strip() for one in models.split(",") if one.strip()) if models else ()
    many = task.get("records", RECORDS if records is None else records)
    epochs = task.get("epochs", 1.0)
    if not all(isinstance(one, (int, float)) and 0 < one < float("inf") for one in (many, epochs)):
        raise UsageError(f"--records {many}, task.epochs={epochs}: use numbers above 0.")
    return declared(place, records=many, epochs=epochs, models=wanted)


def _known(told: dict[str, Any]) -> None:
    from fieldfare.core.errors import UsageError
    from fieldfare.core.settings import unknown_key

    for name, value in told.items():
        if name == "emulate" and value in ("sleep", "quota"):
            continue
        if name == "emulate":
            raise UsageError(f"emulate={value}: use sleep or quota.")
        if name not in SECTIONS:
            raise UsageError(unknown_key(name, (*SECTIONS, "emulate"), "bench"))
        if not isinstance(value, dict):
            raise UsageError(f"{name} is a table: set {name}.KEY=VALUE.")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    pass
