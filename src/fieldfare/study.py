"""A study: several jobs on the same federation, one folder, one report, claims recomputed from stored tables.

Invariant: each arm is a complete run of its own under `arms/`; what the study says is read from those files alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings
from fieldfare.job import Job
from fieldfare.run import Result, assemble, kept_file, refuse_while_loading, run, source_of
from fieldfare.store.files import room
from fieldfare.store.runs import RunFolder

_TOLD = ("final", "rounds", "seed", "virtual_s", "bytes_down", "bytes_up", "wall_s", "clients_per_s")
"""What a study's summary tells of each of its runs."""


@settings
@dataclass(frozen=True, eq=False)
class Study:
    """`arms`: `{name: job}`, or `{name: {seed: job}}` for bands. `claims`: a TOML file of claims to be checked."""

    arms: Mapping[str, Job | Mapping[str | int, Job]]
    claims: str | Path | None = None
    name: str = "study"

    def __post_init__(self) -> None:
        if not self.arms:
            raise UsageError("Study(arms={}): a study compares at least one job.")
        for name, arm in self.arms.items():
            if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
                raise UsageError(f"Study: {name!r} is no name for an arm: use letters, digits, - and _.")
            jobs = [arm] if not isinstance(arm, Mapping) else list(arm.values())
            if not jobs or not all(isinstance(job, Job) for job in jobs):
                raise UsageError(f"Study: arm {name!r} is {arm!r:.60}: give a Job, or {{seed: Job}}.")

    def jobs(self) -> list[tuple[str, Job]]:
        """(arm, job) pairs; arms with seeds as `name/seed`."""
        out: list[tuple[str, Job]] = []
        for name, arm in self.arms.items():
            if isinstance(arm, Job):
                out.append((name, arm))
            else:
                out.extend((f"{name}/{seed}", job) for seed, job in arm.items())
        return out

    def with_overrides(self, changes: Mapping[str, Any]) -> Study:
        """Every arm with the settings replaced."""

        def changed(arm: Job | Mapping[str | int, Job]) -> Job | Mapping[str | int, Job]:
            if isinstance(arm, Job):
                return arm.with_overrides(changes)
            return {seed: job.with_overrides(changes) for seed, job in arm.items()}

        return Study({name: changed(arm) for name, arm in self.arms.items()}, self.claims, self.name)

    def run(
        self, runs: str | Path = "runs", *, progress: bool | None = None, source: str | Path | None = None,
        folder: RunFolder | None = None, overrides: Mapping[str, Any] | None = None, job_name: str | None = None,
    ) -> Result:  # fmt: skip
        """Run the arms that are not complete, then the report and the claims; the first arm is the headline."""
        refuse_while_loading("study")
        from fieldfare.report.claims import compute_claims, digest, read_claims

        if folder is None:
            source = kept_file(source, self)
            claims = self._checked(source)
            folder = RunFolder.create(runs, self.name)
            if source is not None:
                folder.copy_source(source)
            if claims is not None:
                _copy(claims, folder.file("claims.toml"))
            arms = [name for name, _ in self.jobs()]
            made = [] if claims is None else [claim["name"] for claim in read_claims(claims)]
            kept = digest(folder.file("claims.toml"))
            config = {"format": 1, "study": self.name, "arms": arms, "claims": made, "claims_sha256": kept}
            folder.write_json("config.json", {**config, "source": source_of(source, overrides, job_name)})
        first: Result | None = None
        summaries: dict[str, Any] = {}
        with folder:
            for name, job in self.jobs():
                result = run_arm(folder, name, job, progress)
                summaries[name] = result.summary
                first = first or result
            assert first is not None
            summary = {**first.summary, "run": folder.id, "name": self.name, "arms": list(self.arms)}
            summary["report"] = "report.html"
            summary["all_runs"] = together(summaries)
            summary["finals"] = {name: {key: one[key] for key in _TOLD} for name, one in summaries.items()}
            self._headline(folder)
            if told := compute_claims(folder.path):
                summary["claims"] = told
            begun = folder.read_json("config.json")
            summary |= {key: begun[key] for key in ("claims_sha256",) if key in begun}
            folder.write_model(first.model)
            folder.finish(summary)
        from fieldfare.report.html import write_report

        write_report(folder.path)
        return Result(first.final, first.model, first.rounds, summary, folder.path)

    def _checked(self, source: str | Path | None) -> Path | None:
        """The claims file (as named, or beside the job file); whatever would stop an arm later is refused now."""
        from fieldfare.report.claims import read_claims

        for name, job in self.jobs():
            try:
                assemble(job)
            except UsageError as error:
                raise type(error)(f"arm {name!r}: {error}") from error
        if self.claims is None:
            return None
        beside = Path(source).parent if source is not None else Path()
        found = [path for path in (Path(self.claims), beside / self.claims) if path.is_file()]
        if not found:
            raise UsageError(f"Study(claims={str(self.claims)!r}): there is no such file; write it or leave it out.")
        read_claims(found[0])
        return found[0]

    def _headline(self, folder: RunFolder) -> None:
        """The first arm's records beside the summary, so that a study reads like any run."""
        first = folder.path / "arms" / self.jobs()[0][0]
        for name in ("rounds.jsonl", "clients.jsonl", "evaluation.jsonl", "totals.json", "data.json"):
            if (first / name).exists():
                _copy(first / name, folder.file(name))
        config = folder.read_json("config.json")
        headline = RunFolder.open(first, write=False).read_json("config.json")
        folder.write_json("config.json", {**headline, **config})


def run_arm(folder: RunFolder, name: str, job: Job, progress: bool | None) -> Result:
    """One job as the run `arms/name` of `folder`: read where it is complete, gone on with where it was stopped."""
    path = folder.path / "arms" / name
    report = "../" * (2 + name.count("/")) + "report.html"
    if (path / "summary.json").exists():
        done = RunFolder.open(path, write=False)
        summary = done.read_json("summary.json")
        return Result(summary["final"], done.read_model(), done.read_lines("rounds.jsonl"), summary, path)
    if (path / "run.json").exists():
        return run(job, folder=RunFolder.open(path), progress=progress, report=report)
    arm = RunFolder.create_at(path)
    return run(job, folder=arm, progress=progress, report=report, fresh=True)


def together(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the runs of a study came to together; all else in its summary is of its first run alone.

    >>> one = {"wall_s": 2.0, "bytes_down": 10, "bytes_up": 5, "clients_per_s": 30.0}
    >>> together({"a": one, "b": {**one, "clients_per_s": 10.0}})
    {'runs': 2, 'wall_s': 4.0, 'bytes_down': 20, 'bytes_up': 10, 'clients_per_s': 20.0}
    """
    ends = list(summaries.values())
    sums = {name: sum(one[name] for one in ends) for name in ("wall_s", "bytes_down", "bytes_up")}
    trained = sum(one["clients_per_s"] * one["wall_s"] for one in ends)
    speed = trained / sums["wall_s"] if sums["wall_s"] > 0 else 0.0
    return {"runs": len(ends), **sums, "clients_per_s": speed}


def _copy(source: Path, target: Path) -> None:
    with room(target):
        shutil.copyfile(source, target)
