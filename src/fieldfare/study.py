"""A study: several jobs on the same federation, one folder, one report, claims recomputed from stored tables.

Invariant: each arm is a complete run of its own under `arms/`; what the study says is read from those files alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings
from fieldfare.job import Job
from fieldfare.progress import display_of_points
from fieldfare.run import Result, assemble, kept_file, refuse_while_loading, run, source_of
from fieldfare.side_by_side import side_by_side
from fieldfare.sim.batch import forks
from fieldfare.store.files import room
from fieldfare.store.runs import RunFolder

_TOLD = ("final", "rounds", "seed", "virtual_s", "bytes_down", "bytes_up", "wall_s", "clients_per_s")
"""What a study's summary tells of each of its runs."""


@settings
@dataclass(frozen=True)
class Panel:
    """Some arms of a study at one target: `arms` `{label: arm}`, the label `baseline` the others are measured against.

    The report tells when each crosses `target` of `metric`, how much sooner than the baseline, and why
    (`report.decompose`).
    """

    title: str
    arms: Mapping[str, str]
    target: float
    baseline: str | None = None
    metric: str = "accuracy"
    note: str = ""


@settings
@dataclass(frozen=True)
class Curve:
    """How much sooner one arm is at a target than another, along something: `points` are (x, slower arm, faster arm).

    `x`: what is on the axis. `levels` `{name: speed-up}`: where the curve comes to them is told.
    """

    title: str
    x: str
    points: Sequence[tuple[float, str, str]]
    target: float
    levels: Mapping[str, float] = field(default_factory=dict[str, float])
    metric: str = "accuracy"
    note: str = ""


@settings
@dataclass(frozen=True)
class Handovers:
    """What a move costs by policy and by the share of its round that was over: `points` are (share, policy, arm).

    `still`: the arm in which nobody moves; `restart`: the policy that others save against. The first device that moves
    is told of. `bytes_per_s`: of the link that state crosses; `published`: (share, saving).
    """

    title: str
    still: str
    points: Sequence[tuple[float, str, str]]
    restart: str = "restart"
    bytes_per_s: float | None = None
    published: Sequence[tuple[float, float]] = ()
    note: str = ""


@settings
@dataclass(frozen=True)
class EqualCost:
    """Arms when each has spent the same: `situations` are `{title: (point on axis, {label: arm})}`.

    `axis`: "virtual_s", "bytes", or another that claims know. `metrics` `{heading: metric}`, or several of which a run
    has one: the report gives the first for all situations in one table, and all of them for each situation.
    `reference`: a label that is no rival of the others.
    """

    title: str
    axis: str
    situations: Mapping[str, tuple[float, Mapping[str, str]]]
    metrics: Mapping[str, str | Sequence[str]] = field(default_factory=lambda: {"accuracy": "accuracy"})
    reference: str | None = None
    note: str = ""


@settings
@dataclass(frozen=True, eq=False)
class Study:
    """`arms`: `{name: job}`, or `{name: {seed: job}}` for bands. `claims`: a TOML file of claims to be checked.

    `panels` and `curves` compare arms of several nodes at a target, in the report, `handovers` arms in which devices
    move, `costs` arms that have spent the same; `shown` `{heading: arm or arm/seed}` are runs told in full there.
    `quick`: with `--quick` every arm runs its first so many seeds only, and claims that ask for more are marked
    preliminary. `processes`: how many arms run at the same time, each in a process of its own; no number depends on it.
    """

    arms: Mapping[str, Job | Mapping[str | int, Job]]
    claims: str | Path | None = None
    name: str = "study"
    panels: Sequence[Panel] = ()
    curves: Sequence[Curve] = ()
    handovers: Sequence[Handovers] = ()
    costs: Sequence[EqualCost] = ()
    shown: Mapping[str, str] = field(default_factory=dict[str, str])
    quick: int | None = None
    processes: int = 1
    is_quick: bool = False

    def __post_init__(self) -> None:
        if not self.arms:
            raise UsageError("Study(arms={}): a study compares at least one job.")
        for name, arm in self.arms.items():
            if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
                raise UsageError(f"Study: {name!r} is no name for an arm: use letters, digits, - and _.")
            jobs = [arm] if not isinstance(arm, Mapping) else list(arm.values())
            if not jobs or not all(isinstance(job, Job) for job in jobs):
                raise UsageError(f"Study: arm {name!r} is {arm!r:.60}: give a Job, or {{seed: Job}}.")
        if self.processes < 1 or (self.quick is not None and self.quick < 1):
            raise UsageError(f"Study(processes={self.processes}, quick={self.quick}): use numbers >= 1.")
        named = [arm for panel in self.panels for arm in panel.arms.values()]
        named += [arm for curve in self.curves for _, *pair in curve.points for arm in pair]
        named += [arm for moved in self.handovers for arm in (moved.still, *(arm for _, _, arm in moved.points))]
        named += [arm for cost in self.costs for _, arms in cost.situations.values() for arm in arms.values()]
        for arm in [*named, *(one.partition("/")[0] for one in self.shown.values())]:
            if arm not in self.arms:
                raise UsageError(
                    f"Study: a panel, curve, handover, cost or `shown` names the arm {arm!r}, which there is not."
                )
        for panel in self.panels:
            if panel.baseline is not None and panel.baseline not in panel.arms:
                raise UsageError(f"Panel({panel.title!r}): its baseline {panel.baseline!r} is no label of its arms.")

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
        """Every arm with the settings replaced; `quick` leaves its first seeds only."""
        rest = dict(changes)
        study = self._shortened() if str(rest.pop("quick", False)).lower() == "true" else self

        def changed(arm: Job | Mapping[str | int, Job]) -> Job | Mapping[str | int, Job]:
            if isinstance(arm, Job):
                return arm.with_overrides(rest)
            return {seed: job.with_overrides(rest) for seed, job in arm.items()}

        return replace(study, arms={name: changed(arm) for name, arm in study.arms.items()}) if rest else study

    def _shortened(self) -> Study:
        """The study that `--quick` runs."""
        if self.quick is None:
            raise UsageError(f"the study {self.name!r} has no quick form: give it Study(quick=1), or run it whole.")
        arms = {
            name: arm if isinstance(arm, Job) else dict(list(arm.items())[: self.quick])
            for name, arm in self.arms.items()
        }
        return replace(self, arms=arms, is_quick=True)

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
            config |= self._told()
            folder.write_json("config.json", {**config, "source": source_of(source, overrides, job_name)})
        with folder:
            summaries = dict(self._each(folder, progress))
            summaries = {name: summaries[name] for name, _ in self.jobs()}
            first = run_arm(folder, *self.jobs()[0], False)
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

    def _each(self, folder: RunFolder, progress: bool | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(arm, its summary) as they end."""
        jobs = self.jobs()
        if self.processes == 1 or not all(forks(work) for _, job in jobs for work in assemble(job).works.values()):
            for name, job in jobs:
                yield name, run_arm(folder, name, job, progress).summary
            return
        todo = [(name, job.with_overrides({"simulated.workers": 1})) for name, job in jobs]
        shown = display_of_points(len(todo), self.name, progress)
        with shown:
            ended = side_by_side(lambda one: run_arm(folder, *one, False).summary, todo, self.processes)
            for count, ((name, _), summary) in enumerate(ended, start=1):
                shown.row({"round": count, **summary["final"], "virtual_s": summary["virtual_s"]})
                yield name, summary

    def _told(self) -> dict[str, Any]:
        """What the report needs to know of a study beside its arms."""
        told: dict[str, Any] = {"quick": True} if self.is_quick else {}
        for name in ("panels", "curves", "handovers", "costs"):
            if listed := [settings_of(one) for one in getattr(self, name)]:
                told[name] = listed
        return told | ({"shown": dict(self.shown)} if self.shown else {})

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


def settings_of(one: Panel | Curve | Handovers | EqualCost) -> dict[str, Any]:
    """A panel, a curve, handovers or costs as plain JSON."""
    told = {f.name: getattr(one, f.name) for f in fields(one)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in told.items()}


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
