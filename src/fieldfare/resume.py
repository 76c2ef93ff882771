"""Going on with a run, and getting its model out. The job is made again by the file kept in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.config import plain
from fieldfare.core.errors import UsageError
from fieldfare.job import Job
from fieldfare.load import load_job
from fieldfare.run import Result, run
from fieldfare.store.files import write_atomic
from fieldfare.store.models import write_model
from fieldfare.store.runs import RunFolder
from fieldfare.store.snapshot import Snapshots
from fieldfare.study import Study
from fieldfare.sweep import TABLE, Sweep, Swept


def resume_run(
    which: str | Path = "latest", runs: str | Path = "runs", *, progress: bool | None = None,
    job: Job | Study | Sweep | None = None, on: str | None = None,
) -> Result | Swept:  # fmt: skip
    """Go on with the run `which` from its newest snapshot; a complete run is returned as it is.

    One that was killed before its report was written gets it now. `job`: the same job again, where it was made in a
    session and no file of it was kept. `on`: where to compute from here on (`Simulated(on=...)`), to the same bits.
    """
    folder = RunFolder.find(str(which), runs)
    if folder.complete:
        summary = folder.read_json("summary.json")
        if not (folder.path / "report.html").exists():
            from fieldfare.report.html import write_report

            write_report(folder.path)
        if summary.get("sweep"):
            return Swept(folder.read_lines(TABLE), summary, folder.path)
        return Result(summary["final"], folder.read_model(), folder.read_lines("rounds.jsonl"), summary, folder.path)
    if job is None:
        job = _job_of(folder)
    if on is not None:
        job = job.with_overrides({"simulated.on": on})
    with RunFolder.open(folder.path) as opened:
        if isinstance(job, Study | Sweep):
            return job.run(progress=progress, folder=opened)
        return run(job, folder=opened, progress=progress)


def _job_of(folder: RunFolder) -> Job | Study | Sweep:
    """The job that the file kept in a run folder makes, with what the command line changed."""
    if not (folder.path / "config.json").is_file():
        raise UsageError(f"the run {folder.id} stopped before it began: nothing is lost, start it again.")
    source = folder.path / "job.py"
    if not source.is_file():
        raise UsageError(
            f"the run {folder.id} keeps no job file (it was started in a session, not from a file): "
            f"make the same job and call fieldfare.resume_run({folder.id!r}, job=job)."
        )
    kept = folder.read_json("config.json").get("source", {})
    job = load_job(source, kept.get("job"), Path(str(kept.get("file") or ".")).parent)
    job = job.with_overrides(kept["overrides"]) if kept.get("overrides") else job
    return _swept(job, folder.read_json("config.json"))


def _swept(job: Job | Study | Sweep, config: Mapping[str, Any]) -> Job | Study | Sweep:
    """The sweep over a job that the command line asked for, as the run folder keeps it."""
    if "sweep" not in config or isinstance(job, Study):
        return job
    told = {key: config[key] for key in ("seeds", "system_only", "hours")}
    if isinstance(job, Sweep):
        over = {**job.over, **{k: v for k, v in config["over"].items() if plain(job.over.get(k)) != v}}
        return replace(job, over=over, **told)
    return Sweep(job, config["over"], name=config["sweep"], **told)


def export_model(which: str, runs: str | Path, out: Path) -> dict[str, Any]:
    """Write the final model of a run to `out`: .safetensors, .npz, or for a model of bytes any suffix: the bytes."""
    folder = RunFolder.find(which, runs)
    if not folder.complete:
        held = Snapshots(folder.path / "snapshots").paths()
        raise UsageError(
            f"the run {folder.id} is not complete ({len(held)} snapshots): `fieldfare resume {folder.id}` first."
        )
    model = folder.read_model()
    match out.suffix:
        case ".safetensors":
            write_model(out, model)
        case ".npz" if not model.opaque:
            np.savez(out, **model.tensors())  # type: ignore[arg-type]
        case other if other in ("", ".npz") or not model.opaque:
            known = (
                ".safetensors, or the suffix of its own format, such as .json"
                if model.opaque
                else ".safetensors or .npz"
            )
            raise UsageError(f"--out {out}: {other or 'no suffix'} is not known; use {known}.")
        case _:
            write_atomic(out, [model.opaque])
    return {"model": str(out), "parameters": model.size, "tensors": list(model.layout.names)}
