"""The command `fieldfare fit`: the levels of a model, what each takes, and which is the largest that a device fits.

Here: the command, how a model is found in a file, the table it prints. Not here: costs, the plan and its proof
(`work.submodel`), boards (`fleet.boards`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from fieldfare.core.errors import UsageError

_USUAL = ("family", "model", "net", "module", "job", "study")
_UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


@click.command()
@click.argument("model", metavar="MODEL.py[:NAME]")
@click.option("--ram", metavar="SIZE", help="Memory free for training, such as 256KB, 4MB or 1.5GiB.")
@click.option("--device", metavar="NAME", help="A known board: its memory, speed and link.")
@click.option("--batch", type=click.IntRange(1), help="Examples a batch (default: the job's, else 20).")
@click.option("--optimizer", type=click.Choice(["sgd", "adam"]), help="Whose slots count (default: the job's, or sgd).")
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), help="Of sgd; above zero it takes a slot.")
@click.option("--examples", type=click.IntRange(1), help="Examples of the device (default: a round is one batch).")
@click.option("--deadline", type=float, metavar="S", help="Seconds a round may take, with --device.")
@click.option("--levels", metavar="1,1/2,...", help="Levels (default: the family's, else 1,1/2,1/4,1/8).")
@click.option("--run", "which", metavar="RUN", help="A run of this model: the accuracy each level had at its end.")
@click.option("--runs", type=click.Path(path_type=Path), default="runs", help="Where run folders are kept.")
@click.option("--dry-run", "dry", is_flag=True, help="Prove it: take a step of the level under that limit of memory.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on the last line.")
def fit(
    model: str, ram: str | None, device: str | None, batch: int | None, optimizer: str | None, momentum: float | None,
    examples: int | None, deadline: float | None, levels: str | None, which: str | None, runs: Path, dry: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Say what each level of a model takes to train, and which is the largest that a device fits."""
    from fieldfare.fleet.boards import board
    from fieldfare.work.submodel import Budget, dry_run, needs, plan

    if deadline is not None and device is None:
        raise UsageError("--deadline needs --device NAME: without a device nothing is known of its speed.")
    if deadline is not None and not deadline > 0:
        raise UsageError(f"--deadline {deadline:g}: give seconds above zero.")
    if dry and ram is None and device is None:
        raise UsageError("--dry-run needs a limit: give --ram SIZE or --device NAME.")
    known = None if device is None else board(device)
    free = None if ram is None else bytes_of(ram)
    accuracy = None if which is None else _accuracies(which, runs)
    family, training, rows, job = _family(model, None if levels is None else _levels(levels))
    given = {"batch_size": batch, "optimizer": optimizer, "momentum": momentum}
    training = replace(training, **{name: value for name, value in given.items() if value is not None})
    local = () if job is None else _local(job)
    found = needs(family, training, local)
    memory = free if free is not None else known.memory_bytes if known is not None else float("inf")
    devices = Budget(memory)
    if known is not None:
        devices = Budget(
            memory, known.flops_per_s, known.downlink_bytes_per_s, known.uplink_bytes_per_s, known.overhead_s,
            known.latency_s,
        )  # fmt: skip
    planned = plan(family, devices, training, examples=examples or 0, deadline_s=deadline, known=found, local=local)
    limited = free is not None or known is not None
    chosen = int(planned.assign[0])
    table: list[dict[str, Any]] = []
    for need in found:
        cost, name = need.cost, need.level.name
        row: dict[str, Any] = {
            "level": name, "parameters": cost.parameters, "memory_bytes": cost.memory_bytes,
            "held_bytes": cost.held_bytes, "saved_bytes": cost.saved_bytes, "flops": cost.flops, "bytes": cost.bytes,
        }  # fmt: skip
        if known is not None:
            row["step_s"] = cost.flops * training.batch_size / known.flops_per_s
            row["round_s"] = float(planned.seconds[need.number, 0])
        if accuracy is not None:
            row["accuracy"] = accuracy.get(name)
        if limited:
            late = deadline is not None and planned.seconds[need.number, 0] > deadline
            row["fits"] = "memory" if cost.memory_bytes > memory else "time" if late else "yes"
        table.append(row)
    facts: dict[str, Any] = {
        "model": model, "batch_size": training.batch_size, "optimizer": training.optimizer,
        "momentum": training.momentum, "device": device, "memory_bytes": memory if limited else None,
        "local": [repr(one) for one in local],
        "deadline_s": deadline, "levels": table, "level": found[chosen].level.name if limited and chosen >= 0 else None,
        "whole": dict(family.axes.whole),
    }  # fmt: skip
    if accuracy is not None and not any(row["accuracy"] is not None for row in table):
        raise UsageError(f"run {which} measured none of the levels {', '.join(row['level'] for row in table)}.")
    if job is not None and not limited:
        from fieldfare.offload import planned as offloaded

        facts |= {"devices": of_job} if (of_job := offloaded(job)) else {}
    if not as_json:
        _show(facts, known)
        _show_devices(facts.get("devices", []))
    if limited and chosen < 0:
        _refuse(planned.why(0, device or "this device"), facts, as_json)
    if dry:
        done = dry_run(family, found[chosen].level, memory, training, example=rows, local=local)
        facts["dry_run"] = {name: getattr(done, name) for name in ("ok", "way", "budget_bytes", "used_bytes", "said")}
        if not as_json:
            _show_proof(done)
        if not done.ok:
            why = f"level {done.level.name} did not pass its dry run ({done.said}): take a smaller batch."
            _refuse(why, facts, as_json)
    if as_json:
        from fieldfare.store.text import dumps

        print(dumps(facts).decode())


def _refuse(why: str, facts: Mapping[str, Any], as_json: bool) -> None:
    """End with code 2 and the reason; as JSON with the table too, in one object."""
    if not as_json:
        raise UsageError(why)
    from fieldfare.store.text import dumps

    print(f"error: {why}", file=sys.stderr)
    print(dumps({**facts, "error": why, "exit_code": 2}).decode())
    raise click.exceptions.Exit(2)


def bytes_of(text: str) -> float:
    """A size as people write it, in bytes; kB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024 (also 4M, 256k).

    >>> bytes_of("256KB"), bytes_of("1.5 GiB")
    (256000.0, 1610612736.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS or not float(match[1]) > 0:
        raise UsageError(f"--ram {text!r} is no size: write it as 256KB, 4MB or 1.5GiB.")
    return float(match[1]) * _UNITS[match[2]]


def _levels(text: str) -> list[Any]:
    from fieldfare.work.submodel import Level

    out: list[Level] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)(?:/(\d+))?(?:d(\d+))?\s*", part)
        if match is None or match[2] in ("0",):
            raise UsageError(f"--levels {text!r}: write rates in (0, 1], such as 1,1/2,0.25, or 1/2d2 for two exits.")
        out.append(Level(float(match[1]) / float(match[2] or 1), None if match[3] is None else int(match[3])))
    return out


def _family(model: str, levels: Sequence[Any] | None) -> tuple[Any, Any, Any, Any]:
    """(family, training, rows to look at it with, the job or None) of what `model` names."""
    from fieldfare.job import Job
    from fieldfare.load import load_names
    from fieldfare.work.adapt import is_net
    from fieldfare.work.net import Training
    from fieldfare.work.submodel import Family, submodels
    from fieldfare.work.torch_resident import is_module

    path, _, name = model.rpartition(":") if ".py:" in model else (model, "", "")
    names = load_names(path)
    thing, told = _found(names, name, path)
    if not hasattr(thing, "__dataclass_fields__") and not is_net(thing) and not is_module(thing):
        made = thing()  # a function; one that makes modules stays as it is, for it makes another for every seed
        thing = thing if is_module(made) else made
    training, rows, loss, metrics = Training(), names.get("example"), None, None
    job = thing if isinstance(thing, Job) else None
    if isinstance(thing, Job):
        rows = {column: values[:2] for column, values in thing.data.columns.items()}
        training, loss, thing = thing.training or training, thing.loss, thing.model
    if rows is not None and not isinstance(rows, Mapping):
        raise UsageError(
            f"{path}: example is a {type(rows).__name__}; make it rows of columns, {{'x': ..., 'y': ...}}."
        )
    if isinstance(thing, Family):
        family = thing if rows is None else thing.with_example(rows)
        family = family if levels is None else replace(family, levels=tuple(levels))
    else:
        more = {} if levels is None else {"levels": levels}
        family = submodels(thing, loss=loss, metrics=metrics, example=rows, **more)
    net = family.net
    rows = getattr(net, "example", None) or rows
    if rows is None and hasattr(net, "program"):
        import numpy as np

        rows = {net.x: np.zeros((2, net.program.inputs), np.float32), net.y: np.zeros(2, np.int64)}
    if rows is None:
        raise UsageError(
            f"{path}: {told} is a torch net of which no input is known: make `example = {{'x': ..., 'y': ...}}` there "
            "(two rows), or name a job."
        )
    wanted = {*([net.x] if isinstance(net.x, str) else net.x), net.y}
    if lacking := sorted(wanted - rows.keys()):
        raise UsageError(f"{path}: example has no column {lacking[0]!r}, it has {', '.join(rows) or 'none'}.")
    return family, training, rows, job


def _local(job: Any) -> tuple[Any, ...]:
    """What the job's algorithm declares of its clients' steps."""
    from fieldfare.algorithms.evaluate import innermost

    return tuple(getattr(innermost(job.algorithm), "local", ()))


def _found(names: Mapping[str, Any], name: str, path: str) -> tuple[Any, str]:
    """The model, or job, called `name` (none: the usual names, then the only one), and its name."""
    from fieldfare.job import Job
    from fieldfare.study import Study
    from fieldfare.sweep import Sweep
    from fieldfare.work.adapt import is_net
    from fieldfare.work.submodel import Family
    from fieldfare.work.torch_resident import is_module

    fits = {
        key: value for key, value in names.items()
        if not isinstance(value, type) and (isinstance(value, Job | Family) or is_net(value) or is_module(value))
    }  # fmt: skip
    have = f"it has {', '.join(fits)}" if fits else "it has none"
    if name:
        thing = names.get(name)
        if name not in names or (name not in fits and (not callable(thing) or isinstance(thing, type))):
            raise UsageError(f"{path} makes no model or job called {name!r}: {have}.")
        return thing, name
    usual = next((one for one in _USUAL if one in fits), None)
    if usual is None and len(fits) == 1:
        usual = next(iter(fits))
    if usual is None:
        more = " (a study or sweep has many)" if any(isinstance(one, Study | Sweep) for one in names.values()) else ""
        raise UsageError(f"which model of {path}? {have}{more}: name one, {path}:NAME.")
    return fits[usual], usual


def _accuracies(which: str, runs: Path) -> dict[str, float]:
    """Accuracy by level that the run called `which` had at its end."""
    import json

    from fieldfare.store.runs import RunFolder

    folder = RunFolder.find(which, runs)
    if not folder.complete:
        raise UsageError(f"run {folder.id} is not done: `fieldfare resume {folder.id}` first.")
    final = json.loads((folder.path / "summary.json").read_text(encoding="utf-8")).get("final") or {}
    out = {key.partition("@")[2] or "1": value for key, value in final.items() if key.partition("@")[0] == "accuracy"}
    if not out:
        raise UsageError(f"run {folder.id} measured no accuracy: it has {', '.join(final) or 'nothing'}.")
    return out


def _show(facts: Mapping[str, Any], known: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fieldfare.show import number, size

    console = Console(highlight=False)
    slots = f", momentum {facts['momentum']:g}" if facts["momentum"] else ""
    console.print(
        f"{facts['model']}: a step at batch {facts['batch_size']}, {facts['optimizer']}{slots}; FLOPs are an example's",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    if facts["memory_bytes"] is not None:
        named = f"{facts['device']} ({known.chip}): " if known is not None else ""
        within = f", {facts['deadline_s']:g} s a round" if facts["deadline_s"] is not None else ""
        console.print(f"{named}{size(facts['memory_bytes'])} free{within}", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    columns = ["level", "parameters", "memory", "FLOPs", "bytes"]
    first = facts["levels"][0]
    columns += ["s/step", "s/round"] if "step_s" in first else []
    columns += ["accuracy"] if "accuracy" in first else []
    columns += ["fits"] if "fits" in first else []
    for name in columns:
        table.add_column(name, justify="left" if name in ("level", "fits") else "right")
    for row in facts["levels"]:
        cells = [escape(row["level"]), f"{row['parameters']:,}", size(row["memory_bytes"]), f"{row['flops']:.3g}",
                 size(row["bytes"])]  # fmt: skip
        if "step_s" in row:
            cells += [f"{row['step_s']:.3g}", f"{row['round_s']:.3g}"]
        if "accuracy" in row:
            cells.append("-" if row["accuracy"] is None else number(row["accuracy"]))
        if "fits" in row:
            told = {"yes": "yes", "memory": "no: memory", "time": "no: time"}[row["fits"]]
            cells.append("[bold]largest[/]" if row["level"] == facts["level"] else told)
        table.add_row(*cells)
    console.print(table)
    for layer, reason in facts["whole"].items():
        console.print(f"stays whole: {layer}: {reason}", markup=False, soft_wrap=True)


def _show_devices(rows: Sequence[Mapping[str, Any]], most: int = 20) -> None:
    """The width and the cut of each device of a job in which devices train with edge servers."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fieldfare.show import size

    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for name in ("device", "edge", "level", "cut behind", "memory", "of free", "at the edge", "s/batch", "s/round"):
        table.add_column(name, justify="left" if name in ("level", "cut behind") else "right")
    for row in rows[:most]:
        table.add_row(
            str(row["device"]), str(row["edge"]), row["level"], escape(row["cut"] or "whole"),
            size(row["memory_bytes"]), size(row["free_bytes"]), size(row["edge_bytes"]), f"{row['batch_s']:.3g}",
            f"{row['round_s']:.3g}",
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    if len(rows) > most:
        console.print(f"{len(rows) - most} more devices: see --json", markup=False)


def _show_proof(done: Any) -> None:
    from fieldfare.show import size

    how = "in a process limited to it" if done.way == "address space" else "by the allocator"
    used = f", {size(done.used_bytes)} at its peak" if done.used_bytes else ""
    print(
        f"dry run of {done.level.name} with {size(done.budget_bytes)}, {how}: {'done' if done.ok else 'failed'}{used}"
    )
