"""A sweep: one job at every point of a grid of settings, and for every seed; one table, one report.

Here: which points there are, and the folder they are kept in. Not here: what one point tells (`points`), how points
share the cores (`side_by_side`), the report (`report.sweep`). Invariants: a point that is done is on the disk; which
are done, in which order or process, changes no number but `wall_s`. A point that cannot be run ends no other.
"""

from __future__ import annotations

import itertools
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fieldfare import __version__
from fieldfare.config import describe_data, describe_job, plain
from fieldfare.core.errors import PeerError, UsageError
from fieldfare.core.settings import settings
from fieldfare.fleet.fleet import Fleet
from fieldfare.job import Job
from fieldfare.overrides import SHORT, meant
from fieldfare.points import Row, refused_row, system_row, trained_row
from fieldfare.progress import display_of_points
from fieldfare.report.settings import short_names
from fieldfare.run import assemble, refuse_while_loading, running_file, source_of
from fieldfare.side_by_side import side_by_side
from fieldfare.sim.batch import forks
from fieldfare.sim.pool import allowed_workers
from fieldfare.store.files import write_atomic
from fieldfare.store.runs import RunFolder
from fieldfare.store.text import dumps
from fieldfare.study import run_arm

MOST_POINTS = 10_000
TABLE = "sweep.jsonl"


@dataclass(frozen=True, eq=False)
class Point:
    """One place of the grid with one seed: `settings` are what was set, by its whole name."""

    number: int
    settings: Mapping[str, Any]
    seed: int
    label: str


@dataclass(frozen=True, eq=False)
class Swept:
    """How a sweep ended: one row per point, in the order of the grid; the summary; where it all lies."""

    rows: list[Row]
    summary: Mapping[str, Any]
    path: Path | None = None


@settings
@dataclass(frozen=True, eq=False)
class Sweep:
    """`job` at every combination of the values in `over`, `{"algorithm.cohort": (60, 120), ...}`, and every seed.

    `seeds`: the job's own where none is given. `system_only`: nothing is trained; only who works when, and what it
    takes, is simulated (`Simulated(train=False)`): millions of tasks in seconds. `hours`: such a point ends after so
    many virtual hours, whatever its rounds. Values may be text, read as `--set` does: "none" is None.
    """

    job: Job
    over: Mapping[str, Any]
    seeds: Sequence[int] = ()
    system_only: bool = False
    hours: float | None = None
    name: str = "sweep"

    def __post_init__(self) -> None:
        if not self.over:
            raise UsageError("Sweep(over={}): give at least one setting with its values, {'algorithm.cohort': (5, 9)}.")
        over: dict[str, tuple[Any, ...]] = {}
        for key, values in self.over.items():
            whole = SHORT.get(key, key)
            if isinstance(values, str | Mapping) or not isinstance(values, Sequence):
                raise UsageError(f"Sweep(over={{{key!r}: {values!r:.40}}}): give a list of values.")
            over[whole] = tuple(meant(value) if isinstance(value, str) else value for value in values)
            if not over[whole] or "" in over[whole]:
                raise UsageError(f"--over {key}: a value is empty; write KEY=V1,V2 with at least one value.")
            if len({repr(plain(value)) for value in over[whole]}) < len(over[whole]):
                raise UsageError(f"--over {key}: a value is there twice; every value makes points of its own.")
            if whole in ("seed", "simulated.train"):
                raise UsageError(f"--over {key}: use {'--seeds' if whole == 'seed' else '--system-only'} for this.")
        object.__setattr__(self, "over", over)
        seeds = tuple(self.seeds) or (self.job.seed,)
        if not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
            raise UsageError(f"Sweep(seeds={seeds!r}): seeds are whole numbers.")
        object.__setattr__(self, "seeds", tuple(dict.fromkeys(seeds)))
        if self.hours is not None and not (self.system_only and self.hours > 0):
            raise UsageError(f"Sweep(hours={self.hours}): a positive number, and only with system_only=True.")
        count = len(self.seeds)
        for values in over.values():
            count *= len(values)
        if count > MOST_POINTS:
            raise UsageError(f"this sweep has {count:,} points, more than {MOST_POINTS:,}: use fewer values or seeds.")

    def points(self) -> list[Point]:
        """All points, the seed changing first, then the last setting."""
        short = short_names(list(self.over))
        combinations = itertools.product(itertools.product(*self.over.values()), self.seeds)
        return [
            Point(number, dict(zip(self.over, values, strict=True)), seed,
                  ", ".join(f"{name}={_word(value)}" for name, value in zip(short, values, strict=True)))
            for number, (values, seed) in enumerate(combinations)
        ]  # fmt: skip

    def job_at(self, point: Point) -> Job:
        """The job of one point; a setting that cannot be is told with the point's name."""
        more = {"simulated.train": False} if self.system_only else {}
        try:
            return self.job.with_overrides({**point.settings, "seed": point.seed, **more})
        except UsageError as error:
            raise type(error)(f"point {point.label}: {error}") from error

    def with_overrides(self, changes: Mapping[str, Any]) -> Sweep:
        """The sweep of a job with settings replaced."""
        return replace(self, job=self.job.with_overrides(changes))

    def run(
        self, runs: str | Path | None = "runs", *, progress: bool | None = None, source: str | Path | None = None,
        folder: RunFolder | None = None, overrides: Mapping[str, Any] | None = None, job_name: str | None = None,
        jobs: int | None = None,
    ) -> Swept:  # fmt: skip
        """Run the points that are not done, then write table, summary and report.

        `folder`: an open one to go on in. `jobs`: processes for points of a system-only sweep (None: as many as
        cores); trained points are run one after the other, each with the job's own workers. `runs=None` keeps nothing.
        A point that cannot be run has a row that says why, `failed` and without numbers, and the sweep goes on; an
        error only where none can.
        """
        refuse_while_loading("sweep")
        if jobs is not None and jobs < 1:
            raise UsageError(f"jobs={jobs}: use a number of processes >= 1, or None for as many as cores.")
        points = self.points()
        for point in points:
            self.job_at(point)
        ground = _Ground()
        assembly = self._assembly(points, ground)
        if runs is None and folder is None:
            with tempfile.TemporaryDirectory() as place:
                done = self.run(place, progress=progress, source=source, jobs=jobs)
            return Swept(done.rows, {**done.summary, "run": ""})
        if folder is None:
            source = source or running_file(self)
            folder = RunFolder.create(runs or "runs", self.name)
            if source is not None:
                folder.copy_source(source)
            folder.write_json("config.json", {
                **describe_job(self.job, assembly.net), **self._told(), "source": source_of(source, overrides, job_name)
            })  # fmt: skip
            folder.write_json("data.json", describe_data(self.job.data))
        else:
            self._check_same(folder)
        several = jobs if all(forks(work) for work in assembly.works.values()) else 1
        del assembly
        with folder:
            rows = self._all(folder, points, ground, several, progress)
            summary = self._summary(folder, rows)
            folder.finish(summary)
        from fieldfare.report.sweep import write_sweep_report

        write_sweep_report(folder.path)
        return Swept(rows, summary, folder.path)

    def _assembly(self, points: Sequence[Point], ground: _Ground) -> Any:
        """The first job of a point that can be assembled at all."""
        first: UsageError | None = None
        for point in points:
            try:
                return assemble(ground.of(self.job_at(point)))
            except UsageError as error:
                first = first or type(error)(f"point {point.label}: {error}")
        assert first is not None
        raise first

    def _all(
        self, folder: RunFolder, points: list[Point], ground: _Ground, jobs: int | None, progress: bool | None
    ) -> list[Row]:
        """All rows, in order; those the folder has are not made again."""
        rows = {row["point"]: row for row in folder.read_lines(TABLE)}
        todo = [point for point in points if point.number not in rows]
        shown = display_of_points(len(points), self.name, progress)
        with shown:
            if rows:
                shown.resumed(len(rows))
            made = self._system(todo, ground, jobs) if self.system_only else self._trained(folder, todo)
            for point, row in made:
                row = {"point": point.number, "settings": plain(point.settings), "seed": point.seed, **row}
                folder.append(TABLE, row)
                folder.flush()
                rows[point.number] = row
                if row.get("failed"):
                    shown.note(f"point {point.label}, seed {point.seed}: {row['stopped']}")
                    shown.row({"round": len(rows)})
                else:
                    shown.row({"round": len(rows), "clients": row["tasks_over"], **row["final"], **row})
        if all(row.get("failed") for row in rows.values()):
            raise UsageError(f"no point of this sweep can be run; the first, {points[0].label}: {rows[0]['stopped']}")
        ordered = [rows[number] for number in sorted(rows)]
        write_atomic(folder.file(TABLE), [dumps(row) + b"\n" for row in ordered])
        return folder.read_lines(TABLE)

    def _system(self, todo: Sequence[Point], ground: _Ground, jobs: int | None) -> Iterator[tuple[Point, Row]]:
        """Points of which nothing is trained, seed by seed: those of one seed share a fleet."""

        def work(point: Point) -> Row:
            began = time.perf_counter()
            try:
                return system_row(ground.of(self.job_at(point)), self.hours)
            except (UsageError, PeerError) as error:
                return refused_row(error, time.perf_counter() - began)

        for seed in self.seeds:
            mine = [point for point in todo if point.seed == seed]
            if mine:
                with suppress(UsageError):
                    ground.of(self.job_at(mine[0]))
                yield from side_by_side(work, mine, min(allowed_workers(jobs), len(mine)))

    def _trained(self, folder: RunFolder, todo: Sequence[Point]) -> Iterator[tuple[Point, Row]]:
        """Points that are trained, each a complete run in a folder of its own, gone on with where it was stopped."""
        for point in todo:
            name = f"{_folder_name(point)}/{point.seed}"
            began = time.perf_counter()
            try:
                run_arm(folder, name, self.job_at(point), False)
                row = trained_row(folder.path / "arms" / name)
            except (UsageError, PeerError) as error:
                row = refused_row(error, time.perf_counter() - began)
            yield point, row

    def _told(self) -> dict[str, Any]:
        """What a folder keeps of the sweep."""
        told: dict[str, Any] = {"sweep": self.name, "over": plain(self.over), "seeds": list(self.seeds)}
        told |= {"system_only": self.system_only, "hours": self.hours}
        if not self.system_only:
            told["arms"] = list(dict.fromkeys(map(_folder_name, self.points())))
        return told

    def _check_same(self, folder: RunFolder) -> None:
        """Refuse to go on in a folder that holds another sweep."""
        kept, now = folder.read_json("config.json"), self._told()
        for key in ("over", "seeds", "system_only", "hours"):
            if kept.get(key) != plain(now[key]):
                raise UsageError(
                    f"the sweep {folder.id} has {key} = {kept.get(key)!r:.60} and this one {now[key]!r:.60}: "
                    "start a new one, or make it the same."
                )

    def _summary(self, folder: RunFolder, rows: list[Row]) -> dict[str, Any]:
        tasks: dict[str, int] = {}
        for row in rows:
            for name, count in row["tasks"].items():
                tasks[name] = tasks.get(name, 0) + count
        good = [row for row in rows if not row.get("failed")]
        return {
            "format": 1, "fieldfare": __version__, "run": folder.id, "name": self.name, "sweep": True,
            "over": plain(self.over), "seeds": list(self.seeds), "system_only": self.system_only, "points": len(rows),
            "failed": len(rows) - len(good), "tasks": tasks, "final": good[0]["final"], "table": TABLE,
            "wall_s": sum(row["wall_s"] for row in rows), "report": "report.html",
        }  # fmt: skip


class _Ground:
    """The fleet last built: points that differ in something else share it, and forked processes too."""

    def __init__(self) -> None:
        self._last: tuple[Any, int, int, Fleet] | None = None

    def of(self, job: Job) -> Job:
        """The job with its fleet built."""
        recipe = job.simulated.fleet
        if isinstance(recipe, Fleet):
            return job
        n = job.data.n_clients
        if self._last is None or self._last[:3] != (recipe, n, job.seed):
            self._last = None
            self._last = (recipe, n, job.seed, recipe.build(n, job.seed))  # type: ignore[union-attr]
        return replace(job, simulated=replace(job.simulated, fleet=self._last[3]))


def _word(value: Any) -> str:
    told = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(plain(value))
    return told if len(told) <= 24 else f"{told[:23]}…"


def _folder_name(point: Point) -> str:
    """The name of the arm a point belongs to, as a folder may be called."""
    return re.sub(r"[^A-Za-z0-9_=.,+-]+", "-", point.label.replace(", ", ",")).lstrip(".-")[:120] or "point"
