"""The rounds of a run as columns, and the careful reading of the files beside them.

Here: `Table` and `read_table`, JSON and JSON-lines files read with one clear line per fault, the arms of a study.
Not here: what the other files of a run mean (`read`). Kept: a line cut off at the end of a file, as a killed run leaves
it, is no fault; any other line that cannot be read is one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from fieldfare import __version__
from fieldfare.core.errors import UsageError

FORMAT = 1
RUN_FILES = ("summary.json", "config.json", "rounds.jsonl", "run.json")
RUNNING = ("virtual_s", "wall_s", "bytes_down", "bytes_up", "bytes_between")
"""Columns that hold running totals; the last only where there are several nodes."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """The rounds of one run as columns, each float64 ``[n]``, NaN where a round has no such number.

    A number that was recorded but is not finite (null in the file) is inf. ``missing`` holds, per reason, how many
    asked clients did not count in each round. ``bytes_down``, ``bytes_up``, ``virtual_s`` and ``wall_s`` are running
    totals when the round's model was published; ``device_s`` (device-seconds) and ``energy_j`` are of the round's tasks
    alone; ``totals`` are those of the whole run, once it has ended.
    """

    n: int = 0
    columns: Mapping[str, Floats] = field(default_factory=dict)
    missing: Mapping[str, Floats] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)

    def total(self, axis: str) -> float | None:
        """Give what the whole run came to on ``axis``, its evaluations after the last round included; None if unknown.

        That is the last round's number and what ``totals.json`` adds to it, which a run has when it is complete.
        """
        if axis == "bytes":
            up, down = self.total("bytes_up"), self.total("bytes_down")
            return up + down + (self.total("bytes_between") or 0.0) if up is not None and down is not None else None
        if axis in self.totals:
            return self.totals[axis]
        x = self.axis(axis)
        x = x[np.isfinite(x)]
        return float(x[-1]) if x.size else None

    def column(self, name: str) -> Floats:
        """Give a column ``[n]``, all NaN when the run never recorded it."""
        return self.columns.get(name, np.full(self.n, np.nan))

    def axis(self, name: str) -> Floats:
        """Give what a curve is drawn against, ``[n]``: a running total, or ``bytes``, the sum of both directions.

        A round that moved nothing has no bytes of its own and stands where the one before it stood. ``device_s`` and
        ``energy_j`` are summed up; a task counts there, whole, once its gather is over, late ones too.
        """
        if name == "bytes":
            moved = self.axis("bytes_up") + self.axis("bytes_down")
            return moved + self.axis("bytes_between") if "bytes_between" in self.columns else moved
        column = self.column(name)
        if name in SUMMED and np.isfinite(column).any():
            return np.cumsum(np.where(np.isfinite(column), column, 0.0))
        if name.startswith("bytes") and np.isfinite(column).any():
            return np.maximum.accumulate(np.where(np.isfinite(column), column, 0.0))
        return column

    def series(self, metric: str, axis: str = "round") -> tuple[Floats, Floats]:
        """Give (x, y) of ``metric`` against ``axis`` for the rounds in which both are finite."""
        x, y = self.axis(axis), self.column(metric)
        kept = np.isfinite(x) & np.isfinite(y)
        return x[kept], y[kept]

    def last(self, metric: str) -> float | None:
        """Give the last value recorded for ``metric``; None when there is none or it is not finite."""
        raw = self.columns.get(metric)
        if raw is None:
            return None
        recorded = raw[~np.isnan(raw)]
        return float(recorded[-1]) if recorded.size and np.isfinite(recorded[-1]) else None


SUMMED = ("device_s", "energy_j")
"""Columns of what a round's own tasks took."""
_NOT_METRICS = frozenset(
    {"round", "version", "virtual_s", "wall_s", "clients", "bytes_down", "bytes_up", "bytes_between", "device_s",
     "energy_j", "compute_s", "at_work", "staleness"}
)  # fmt: skip


def metrics_of(table: Table) -> list[str]:
    """Name the columns of a table that are metrics, that is, neither time, bytes, joules nor counts of clients."""
    return [name for name in table.columns if name not in _NOT_METRICS]


def is_number(value: object) -> TypeGuard[float]:
    """Say whether a JSON value is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def load(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing file is an empty one."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}): restore the file or run the job again.") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds {type(value).__name__}, a JSON object is expected: run the job again.")
    stated = value.get("format", FORMAT)
    if stated != FORMAT:
        raise UsageError(
            f"{path} is of run format {stated!r}, fieldfare {__version__} reads format {FORMAT}: "
            "read it with the release that wrote it (config.json names it) or run the job again."
        )
    return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the objects of a ``.jsonl`` file, one line in memory at a time; a missing file has none.

    A last line that was cut off while being written is dropped; any other line that is no JSON object is a
    `UsageError` naming the line.
    """
    if not path.is_file():
        return
    broken: tuple[int, str] | None = None
    with path.open(encoding="utf-8", errors="replace") as lines:
        for index, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if broken is not None:
                raise UsageError(f"{path}, line {broken[0]}: {broken[1]}: restore the file or run the job again.")
            try:
                value = json.loads(line)
            except ValueError as error:
                broken = (index, f"no JSON ({error})")
                continue
            if not isinstance(value, dict):
                raise UsageError(f"{path}, line {index}: holds {type(value).__name__}, a JSON object is expected.")
            yield value


def read_table(folder: Path) -> Table:
    """Read ``rounds.jsonl`` of a run folder, and ``totals.json`` beside it.

    When a round is there twice (a resumed run) the later line counts; totals that follow another round do not.
    """
    rows: dict[float, dict[str, Any]] = {}
    for index, row in enumerate(read_lines(folder / "rounds.jsonl"), start=1):
        number = float(row["round"]) if is_number(row.get("round")) else float(index)
        rows.pop(number, None)
        rows[number] = {**row, "round": number}
    table = _as_table(list(rows.values()))
    ended = load(folder / "totals.json")
    if not table.n or ended.get("round") != table.column("round")[-1] or not isinstance(ended.get("after"), Mapping):
        return table
    last = {name: float(np.nan_to_num(table.axis(name)[-1])) for name in (*RUNNING, *SUMMED)}
    after = {name: value for name, value in ended["after"].items() if name in last and is_number(value)}
    return replace(table, totals={name: last[name] + value for name, value in after.items()})


def check_whole(folder: Path) -> None:
    """Refuse, in one line, a complete run whose summary or rounds were damaged since; one that still runs is not.

    ``summary.json`` must name the run, its rounds and its final metrics, and ``rounds.jsonl`` end with that round; a
    sweep has neither.
    """
    path, rounds = folder / "summary.json", folder / "rounds.jsonl"
    if not path.is_file():
        return
    summary = load(path)
    wanted = ("run",) if "sweep" in summary else ("run", "rounds", "final")
    if lacking := [name for name in wanted if name not in summary]:
        raise UsageError(f"{path} lacks {', '.join(lacking)}: it is damaged; restore the file or run the job again.")
    if "sweep" in summary or ("arms" in summary and not rounds.is_file()):
        return
    cut = rounds.is_file() and is_cut_off(rounds)
    table = Table() if cut else read_table(folder)
    last = int(table.column("round")[-1]) if table.n else 0
    if cut or last != summary["rounds"]:
        ends = "is cut off in its last line" if cut else f"ends with round {last}"
        raise UsageError(
            f"{rounds} {ends}, the run had {summary['rounds']} rounds: it is damaged; restore the file or run the job "
            "again."
        )


def is_cut_off(path: Path) -> bool:
    """Say whether the last line of a ``.jsonl`` file is no JSON: it was cut off while being written, or since."""
    last = ""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            last = line if line.strip() else last
    try:
        json.loads(last)
    except ValueError:
        return bool(last)
    return False


def summed(told: object) -> float | None:
    """Give a number, or the sum of a mapping of numbers (device-seconds by outcome); None for anything else."""
    if isinstance(told, Mapping):
        return float(sum(value for value in told.values() if is_number(value)))
    return float(told) if is_number(told) else None


def _as_table(rows: list[dict[str, Any]]) -> Table:
    columns: dict[str, list[float]] = {}
    missing: dict[str, Floats] = {}
    count = len(rows)
    for index, row in enumerate(rows):
        for name, value in row.items():
            if is_number(value) or value is None:
                kept = columns.get(name) or columns.setdefault(name, [math.nan] * count)
                kept[index] = math.inf if value is None or not math.isfinite(value) else float(value)
        if isinstance(taken := row.get("device_s"), Mapping):
            spent = summed(taken)
            columns.setdefault("device_s", [math.nan] * count)[index] = math.nan if spent is None else spent
        lost = row.get("missing")
        if isinstance(lost, Mapping):
            for reason, many in lost.items():
                if is_number(many):
                    missing.setdefault(str(reason), np.zeros(count))[index] = many
    made = {name: np.array(values) for name, values in columns.items()}
    return Table(n=count, columns=made, missing={k: v for k, v in missing.items() if v.any()})


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in RUN_FILES)


def arm_folders(folder: Path) -> dict[str, list[Path]]:
    """Find a study's arms: ``arms/<name>`` is one run, ``arms/<name>/<seed>`` one per seed, in the summary's order."""
    root = folder / "arms"
    found: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir(), key=_natural) if root.is_dir() else []:
        if is_run(path):
            found[path.name] = [path]
        elif path.is_dir():
            seeds = [seed for seed in sorted(path.iterdir(), key=_natural) if is_run(seed)]
            if seeds:
                found[path.name] = seeds
    stated = [name.split("/")[0] for name in listed_arms(folder)]
    return {name: found[name] for name in dict.fromkeys([*stated, *found]) if name in found}


def listed_arms(folder: Path) -> list[str]:
    """Give the arms that the study's configuration and summary promise, in order, as ``name`` or ``name/seed``."""
    listed: list[str] = []
    for name in ("config.json", "summary.json"):
        try:
            arms = load(folder / name).get("arms")
        except UsageError:
            continue
        listed += [arm for arm in arms if isinstance(arm, str)] if isinstance(arms, list) else []
    return list(dict.fromkeys(listed))


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]
