"""The report of a sweep: what each point of the grid came to, in a table and in pictures.

Here: the grid as it is read back, the columns of its table, the page. Not here: drawing (`plots_sweep`). Kept: the
page shows the stored rows only; a number over seeds is their median.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare import __version__
from fieldfare.core.errors import UsageError
from fieldfare.fleet.tasks import OUTCOMES
from fieldfare.report import page, settings, units
from fieldfare.report.page import Section, Tile
from fieldfare.store.files import write_atomic
from fieldfare.store.runs import RunFolder

MOST_ROWS = 400


@dataclass(frozen=True, eq=False)
class Place:
    """One combination of values: its row per seed."""

    values: tuple[Any, ...]
    rows: tuple[Mapping[str, Any], ...]

    @property
    def words(self) -> list[str]:
        return [word_of(value) for value in self.values]


@dataclass(frozen=True, eq=False)
class Grid:
    """The axes of a sweep (name, values) and its places, in the order of the grid."""

    names: tuple[str, ...]
    axes: tuple[tuple[Any, ...], ...]
    places: tuple[Place, ...]

    @property
    def seeds(self) -> int:
        return max((len(place.rows) for place in self.places), default=0)


@dataclass(frozen=True, eq=False)
class Column:
    """One number of a row: its name, how it is called, what it is measured in (`report.units`), how it is found."""

    name: str
    words: str
    unit: str
    find: Callable[[Mapping[str, Any]], Any]

    def values(self, place: Place) -> list[float]:
        """The number of every seed that has it."""
        found = (self.find(row) for row in place.rows)
        return [float(value) for value in found if value is not None]

    def median(self, place: Place) -> float | None:
        values = self.values(place)
        return float(np.median(values)) if values else None

    def write(self, value: float | None) -> str:
        return units.in_unit(self.unit, value) if self.unit else units.number(value, 3)


def grid_of(over: Mapping[str, Sequence[Any]], rows: Sequence[Mapping[str, Any]]) -> Grid:
    """The grid of a sweep from its settings and rows; places without a row yet, or that cannot be, are left out."""
    found: dict[str, tuple[tuple[Any, ...], list[Mapping[str, Any]]]] = {}
    for row in sorted(run_of(rows), key=lambda row: row["point"]):
        values = tuple(row["settings"][key] for key in over)
        found.setdefault(repr(values), (values, []))[1].append(row)
    places = tuple(Place(values, tuple(mine)) for values, mine in found.values())
    return Grid(tuple(settings.short_names(list(over))), tuple(map(tuple, over.values())), places)


def run_of(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of points that could be run."""
    return [row for row in rows if not row.get("failed")]


def _failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is told of the points that could not be run: a line for each reason."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.get("failed"):
            names = zip(settings.short_names(list(row["settings"])), row["settings"].values(), strict=True)
            place = ", ".join(f"{name}={word_of(value)}" for name, value in names)
            found.setdefault(row["stopped"], []).append(f"{place}, seed {row['seed']}")
    notes: list[str] = []
    for why, places in found.items():
        more = f" and {len(places) - 8} more" if len(places) > 8 else ""
        notes.append(f"could not be run, and is left out below: {'; '.join(places[:8])}{more}. {why}")
    return notes


def word_of(value: Any) -> str:
    """A value of an axis, as it is written."""
    if value is None:
        return "none"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" if abs(value) < 1e6 else units.number(value)
    if isinstance(value, Mapping):
        return str(value.get("preset") or value.get("name") or value.get("is") or "…")
    return str(value)


def _outcome(name: str) -> Column:
    return Column(name, name, "share", lambda row: row["shares"].get(name, 0.0))


_TIME = (
    Column("tasks_per_h", "tasks/h", "", lambda row: row["tasks_per_h"]),
    Column("wasted_share", "wasted tasks", "share", lambda row: row["wasted_share"]),
)
_REST = (
    Column("wasted_time_share", "wasted device time", "share", lambda row: row["wasted_time_share"]),
    Column("version_s", "round", "seconds", lambda row: row["version_s"].get("median")),
    Column("version_p90_s", "round, p90", "seconds", lambda row: row["version_s"].get("p90")),
    Column("staleness", "staleness", "", lambda row: row["staleness"].get("mean")),
    Column("staleness_p99", "staleness, p99", "", lambda row: row["staleness"].get("p99")),
    Column("concurrency", "at work", "", lambda row: row["concurrency"]),
    Column("device_h", "device-hours", "", lambda row: sum(row["device_h"].values())),
    Column("virtual_s", "virtual time", "seconds", lambda row: row["virtual_s"]),
    Column("bytes", "bytes", "bytes", lambda row: row["bytes_down"] + row["bytes_up"] + row.get("bytes_between", 0.0)),
    Column("energy_j", "energy", "joules", lambda row: row["energy_j"]),
)


def outcomes_of(grid: Grid) -> list[str]:
    """The ways tasks ended that occur, in their usual order."""
    return [name for name in OUTCOMES if any(row["tasks"].get(name) for place in grid.places for row in place.rows)]


def finals_of(grid: Grid) -> list[Column]:
    """The final metrics of trained points, the usual first."""
    known = dict.fromkeys(name for place in grid.places for row in place.rows for name in row["final"])
    ranked = sorted(known, key=lambda name: (name not in ("accuracy", "loss"), list(known).index(name)))
    return [
        Column(f"final_{name}", f"final {units.short_label(name)}", units.unit_of(name),
               lambda row, name=name: row["final"].get(name))
        for name in ranked[:6]
    ]  # fmt: skip


def columns_of(grid: Grid) -> list[Column]:
    """The columns of the table, without those that have no value."""
    ends = [_outcome(name) for name in outcomes_of(grid) if name != "ok"]
    columns = [*finals_of(grid), *_TIME, *(ends if len(ends) > 1 else ()), *_REST]
    return [column for column in columns if any(column.values(place) for place in grid.places)]


def is_sweep(folder: str | Path) -> bool:
    """Whether a folder holds a sweep."""
    return (Path(folder) / "sweep.jsonl").is_file()


def write_sweep_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a sweep, complete or not, and give its path (default: `report.html` in its folder)."""
    from fieldfare.report.html import NO_PLOTS, _drawing

    folder = RunFolder.open(run_dir, write=False)
    config, rows = folder.read_json("config.json"), folder.read_lines("sweep.jsonl")
    if not rows:
        raise UsageError(f"the sweep {folder.id} has no point that is done: `fieldfare resume {folder.id}` goes on.")
    if not run_of(rows):
        raise UsageError(f"no point of the sweep {folder.id} could be run: {rows[0]['stopped']}")
    grid = grid_of(config["over"], rows)
    whole = len(config["seeds"]) * int(np.prod([len(values) for values in config["over"].values()]))
    notes = [] if len(rows) == whole else [f"this sweep has not ended: {len(rows)} of {whole} points are done."]
    notes += _failures(rows)
    with _drawing() as draw:
        pictures = ""
        if draw:
            from fieldfare.report.plots_sweep import sweep_pictures

            pictures = page.pictures(sweep_pictures(grid))
        text = page.document(
            title=str(config["sweep"]),
            eyebrow=f"Sweep · {folder.id}",
            subtitle=_subtitle(config, grid),
            tiles=_tiles(grid, run_of(rows)),
            sections=[one for one in (_shapes(pictures, grid), _table(grid), _settings(config)) if one is not None],
            notes=notes + ([] if draw else [NO_PLOTS]),
            footer=f"Written by fieldfare {__version__} from the files of {folder.id}; nothing else.",
        )
    path = Path(out) if out is not None else folder.path / "report.html"
    if not path.parent.is_dir():
        raise UsageError(f"the report cannot be written to {path}: there is no folder {path.parent}; make it first.")
    write_atomic(path, [text.encode("utf-8")])
    return path


def _subtitle(config: Mapping[str, Any], grid: Grid) -> str:
    axes = " × ".join(
        f"{name} {', '.join(map(word_of, values[:8]))}{', …' if len(values) > 8 else ''}"
        for name, values in zip(grid.names, grid.axes, strict=True)
    )
    seeds = f"{len(config['seeds'])} seed{'s' if len(config['seeds']) > 1 else ''}"
    kind = "nothing trained" if config["system_only"] else "every point trained"
    return " · ".join((axes, seeds, kind))


def _tiles(grid: Grid, rows: Sequence[Mapping[str, Any]]) -> list[Tile]:
    tasks, wall = sum(row["tasks_over"] for row in rows), sum(row["wall_s"] for row in rows)
    least = min(grid.places, key=lambda place: float(np.median([row["wasted_share"] for row in place.rows])))
    most = max(grid.places, key=lambda place: float(np.median([row["tasks_per_h"] for row in place.rows])))
    tiles = [
        Tile("Points", units.number(len(rows)), f"{len(grid.places)} settings{_each(grid.seeds)}"),
        Tile("Tasks", units.number(tasks), f"{units.number(tasks / wall, 3)} a second" if wall else ""),
        Tile("Most tasks per hour", _TIME[0].write(_TIME[0].median(most)), _named(grid, most)),
        Tile("Least wasted", _TIME[1].write(_TIME[1].median(least)), _named(grid, least)),
    ]
    for column in finals_of(grid)[:1]:
        had = [place for place in grid.places if column.values(place)]
        choose = min if units.lower_is_better(column.name) else max
        if had:
            best = choose(had, key=lambda place: column.median(place) or 0.0)
            tiles.insert(0, Tile(f"Best {column.words}", column.write(column.median(best)), _named(grid, best)))
    return [*tiles, Tile("Computed in", units.duration(wall), "of processes, added up")]


def _each(seeds: int) -> str:
    return f", {seeds} seeds each" if seeds > 1 else ""


def _named(grid: Grid, place: Place) -> str:
    return ", ".join(f"{name}={word}" for name, word in zip(grid.names, place.words, strict=True))


def _shapes(pictures: str, grid: Grid) -> Section | None:
    if not pictures:
        return None
    lead = "What changes along the axes of the grid."
    lead += " Lines are medians over seeds, bands reach from the lowest to the highest." if grid.seeds > 1 else ""
    return Section("shapes", "Shapes", lead, pictures)


def _table(grid: Grid) -> Section:
    columns = columns_of(grid)
    head = [(name, False) for name in grid.names] + [(column.words, True) for column in columns]
    rows = []
    for place in grid.places[:MOST_ROWS]:
        row = [page.cell(word, head=True) for word in place.words]
        for column in columns:
            values = column.values(place)
            low, high = (min(values), max(values)) if values else (0.0, 0.0)
            under = f"{column.write(low)} – {column.write(high)}" if high > low else ""
            row.append(page.cell(column.write(column.median(place)), number=True, under=under))
        rows.append(row)
    left = len(grid.places) - MOST_ROWS
    lead = "One line per setting: the median over seeds, their range under it. A task is wasted unless it counted."
    lead += f" {left} more lines are in sweep.jsonl." if left > 0 else ""
    return Section("points", "Points", lead, page.table(head, rows, kind="values", caption="Points"))


def _settings(config: Mapping[str, Any]) -> Section:
    told = settings.flatten(config.get("job", {}))
    cells = [[page.cell(name, head=True), page.cell(settings.shown(value))] for name, value in told.items()]
    body = page.table([("setting", False), ("value", False)], cells, caption="Settings")
    lead = "The job that every point starts from."
    return Section("job", "Job", lead, page.details("All settings of the job", body))
