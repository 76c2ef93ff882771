"""A run folder as typed, read-only values: what every picture, table and claim of a report is made from.

Here: `read_run` for a folder, `read_table` for its rounds alone, `read_participation` which streams the clients.
Not here: writing (the store does that) and any judgement about the numbers. Kept: whatever may be absent (a
metric, a file, an arm) is absent in the value too and never an error; whatever is present and cannot be read is one
clear line.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.report.table import (
    RUN_FILES,
    Floats,
    Table,
    arm_folders,
    check_whole,
    is_number,
    is_run,
    load,
    metrics_of,
    read_lines,
    read_table,
)

_KIND = re.compile(r'"kind"\s*:\s*"([^"]*)"')


@dataclass(frozen=True)
class Evaluation:
    """The last evaluation of one kind, one row per client: ``accuracy``, ``loss``, ``examples`` are ``[clients]``."""

    kind: str
    round: int | None
    clients: tuple[Any, ...]
    columns: Mapping[str, Floats]


@dataclass(frozen=True)
class DataCard:
    """What is known of the federated data set; ``label_counts`` is ``[clients shown, classes]``."""

    name: str
    n_clients: int | None
    rows: int | None
    classes: tuple[str, ...]
    sizes_quantiles: Mapping[str, float]
    gini: float | None
    label_skew_js: float | None
    effective_clients: float | None
    label_counts: Floats | None
    sizes: Floats | None


@dataclass(frozen=True)
class Participation:
    """Who took part, from one pass over the clients' file.

    ``rounds``, ``answered`` and ``seen`` (distinct clients so far) are ``[rounds]``; ``times`` counts, per client
    that ever answered, in how many rounds it did; ``seconds`` is ``[rounds, 3]``: the 10 %, 50 % and 90 % points of
    the clients' time in that round, None when it was not recorded.
    """

    rounds: Floats
    answered: Floats
    seen: Floats
    times: Floats
    seconds: Floats | None


@dataclass(frozen=True)
class Run:
    """One run folder, read; ``arms`` maps an arm's name to its runs, one per seed."""

    path: Path
    name: str
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    table: Table
    data: DataCard | None
    evaluations: Mapping[str, Evaluation]
    arms: Mapping[str, tuple[Run, ...]]

    @property
    def job(self) -> Mapping[str, Any]:
        """The job as plain nested JSON, empty when the run has none."""
        job = self.config.get("job", {})
        return job if isinstance(job, Mapping) else {}

    def final(self) -> dict[str, float]:
        """Give the final value of every metric: the summary's, else the last of the rounds."""
        stated = self.summary.get("final")
        if isinstance(stated, Mapping) and stated:
            return {str(k): float(v) for k, v in stated.items() if is_number(v)}
        told = {name: self.table.last(name) for name in metrics_of(self.table)}
        return {name: value for name, value in told.items() if value is not None}


def _floats(values: object) -> Floats | None:
    """Read a JSON list of numbers, null as NaN; None when it is anything else."""
    if not isinstance(values, list):
        return None
    return np.array([float(v) if is_number(v) else np.nan for v in values], dtype=np.float64)


def data_card(raw: Mapping[str, Any]) -> DataCard | None:
    """Read what a data set says of itself (``data.json``); None when it says nothing."""
    if not raw:
        return None
    counts = raw.get("label_counts")
    matrix = None
    if isinstance(counts, list) and counts and all(isinstance(row, list) for row in counts):
        width = max(len(row) for row in counts)
        padded = [[float(v) if is_number(v) else 0.0 for v in row] + [0.0] * (width - len(row)) for row in counts]
        matrix = np.array(padded, dtype=np.float64) if width else None
    classes = raw.get("classes")
    if isinstance(classes, list):
        names = tuple(str(name) for name in classes)
    else:
        n = int(classes) if is_number(classes) else (matrix.shape[1] if matrix is not None else 0)
        names = tuple(str(index) for index in range(min(n, 100_000)))

    def scalar(name: str) -> float | None:
        return float(raw[name]) if is_number(raw.get(name)) else None

    def either(*names: str) -> int | None:
        found = [value for name in names if (value := scalar(name)) is not None]
        return int(found[0]) if found else None

    skew = raw.get("label_skew")
    skew_js = skew.get("weighted_js_bits") if isinstance(skew, Mapping) else None
    quantiles = raw["sizes"] if isinstance(raw.get("sizes"), Mapping) else raw.get("sizes_quantiles")
    return DataCard(
        name=str(raw.get("name", "")),
        n_clients=either("n_clients", "clients"),
        rows=either("rows", "examples"),
        classes=names,
        sizes_quantiles={str(k): float(v) for k, v in quantiles.items() if is_number(v)}
        if isinstance(quantiles, Mapping)
        else {},
        gini=scalar("gini"),
        label_skew_js=float(skew_js) if is_number(skew_js) else scalar("label_skew_js"),
        effective_clients=scalar("effective_clients"),
        label_counts=matrix,
        sizes=_floats(raw.get("client_sizes", raw.get("sizes"))),
    )


def _read_evaluations(folder: Path) -> dict[str, Evaluation]:
    """Keep the last whole line of each kind; only those are parsed, so long histories cost a scan."""
    path = folder / "evaluation.jsonl"
    if not path.is_file():
        return {}
    last: dict[str, str] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            kind = _KIND.search(line)
            if kind and line.rstrip().endswith("}"):
                last[kind.group(1)] = line
    found: dict[str, Evaluation] = {}
    for kind, line in last.items():
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}: the last {kind} line is no JSON ({error}): run the job again.") from None
        columns = {name: values for name, raw in row.items() if (values := _floats(raw)) is not None}
        clients = row.get("clients")
        rows = tuple(clients) if isinstance(clients, list) else ()
        columns = {k: v for k, v in columns.items() if k != "clients" and (not rows or v.size == len(rows))}
        at = int(row["round"]) if is_number(row.get("round")) else None
        found[kind] = Evaluation(kind=kind, round=at, clients=rows, columns=columns)
    return found


def read_participation(folder: Path) -> Participation | None:
    """Stream ``clients.jsonl``: O(distinct clients) memory, 1 s per million answers; None when nobody took part."""
    times: Counter[Any] = Counter()
    rounds: list[float] = []
    answered: list[float] = []
    seen: list[float] = []
    seconds: list[Floats] = []
    timed = False
    for index, row in enumerate(read_lines(folder / "clients.jsonl"), start=1):
        clients = row.get("clients")
        if not isinstance(clients, list):
            continue
        times.update(clients)
        rounds.append(float(row["round"]) if is_number(row.get("round")) else float(index))
        answered.append(float(len(clients)))
        seen.append(float(len(times)))
        took = _floats(row.get("seconds"))
        took = took[np.isfinite(took)] if took is not None else np.empty(0)
        timed = timed or took.size > 0
        seconds.append(np.quantile(took, [0.1, 0.5, 0.9]) if took.size else np.full(3, np.nan))
    if not times:
        return None
    return Participation(
        rounds=np.array(rounds),
        answered=np.array(answered),
        seen=np.array(seen),
        times=np.array(list(times.values()), dtype=np.float64),
        seconds=np.array(seconds) if timed else None,
    )


def read_run(path: str | Path) -> Run:
    """Read a run folder with its arms; ``clients.jsonl`` is left for `read_participation`.

    Raises `UsageError`, in one line, when there is no such run, when it is of another format, or when a file of it
    cannot be read or was cut short since the run was complete. Cost: the sizes of the files but ``clients.jsonl``.
    """
    folder = Path(path)
    if folder.is_file() and folder.name in (*RUN_FILES, "report.html"):
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"there is no run at {folder}: {_beside(folder)}")
    if not is_run(folder):
        raise UsageError(f"{folder} is no run folder, it has none of {', '.join(RUN_FILES)}: {_within(folder)}")
    check_whole(folder)
    summary, config = load(folder / "summary.json"), load(folder / "config.json")
    return Run(
        path=folder,
        name=str(summary.get("run") or folder.resolve().name),
        summary=summary,
        config=config,
        table=read_table(folder),
        data=data_card(load(folder / "data.json")),
        evaluations=_read_evaluations(folder),
        arms={name: tuple(read_run(arm) for arm in seeds) for name, seeds in arm_folders(folder).items()},
    )


def _beside(folder: Path) -> str:
    parent = folder.parent
    near = sorted((p.name for p in parent.iterdir() if is_run(p)), reverse=True)[:5] if parent.is_dir() else []
    return f"the runs in {parent} are {', '.join(near)}." if near else "give the path of a run folder, runs/<id>."


def _within(folder: Path) -> str:
    inside = sorted((p.name for p in folder.iterdir() if p.is_dir() and is_run(p)), reverse=True)[:5]
    return f"it holds the runs {', '.join(inside)}; give one of them." if inside else "give the path of runs/<id>."
