"""What a simulation is, to the platform: a run per trial, and a model with signature and lineage in the registry.

Here: which trial's model is published, what of a trial is tracked. Not here: the registries. Invariants: the model is
that of the best point's middle trial, never of the luckiest seed; its lineage names, by hash, the simulation and
everything that it was made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.assess.artefact import Artefact, words
from fieldfare.assess.platform.registry import WEIGHTS, Entry, Registry, signature_of
from fieldfare.assess.simulate.identity import runs_told
from fieldfare.core.errors import UsageError
from fieldfare.core.metrics import lower_is_better
from fieldfare.fleet.columns import Array, Text

SETTINGS = ("concurrency", "buffer", "cohort", "staleness", "lr", "decay", "server_lr", "server_decay")
"""What tells a point from another."""


@dataclass(frozen=True, slots=True)
class Published:
    """What was put there: the model (None: the simulation trained none), and the tracker's runs, where it has some."""

    entry: Entry | None
    runs: tuple[str, ...] = ()


def publish(
    simulation: Artefact, registry: Registry, *, name: str, version: str | None = None, work: str | Path | None = None,
    stage: str | None = None, more: Sequence[Artefact] = (),
) -> Published:  # fmt: skip
    """Put a simulation's model into a registry, and its trials where the registry tracks runs; again changes nothing.

    `work`: the folder of the trials (default: beside the artefact, `<name>-runs`). `version`: default, the beginning
    of the simulation's hash. `stage`: promote it. `more`: artefacts that belong to its lineage, such as the decision.
    """
    if simulation.kind != "simulation":
        raise UsageError(f"{simulation.path} is a {simulation.kind} artefact: publish takes a simulation.")
    folder = runs_told(simulation.path, simulation.params) if work is None else Path(work)
    entry = None
    if simulation.params["search"]["train"]:
        best, trial = str(simulation.params["best"]), middle_trial(simulation)
        place = folder / "arms" / best / str(trial)
        if not (place / WEIGHTS).is_file():
            raise UsageError(f"{place} has no {WEIGHTS}: name the folder of the simulation's trials (--runs).")
        lineage = [simulation, *more, *(dict(one) for one in simulation.inputs)]
        entry = registry.put(name, version or simulation.sha256[:12], place / WEIGHTS, signature_of(place), lineage)
    runs = tuple(_track(simulation, registry)) if hasattr(registry, "track") else ()
    if entry is not None and stage is not None:
        entry = registry.promote(name, entry.version, stage)
    return Published(entry, runs)


def middle_trial(simulation: Artefact) -> int:
    """The best point's trial whose final metric is the median (of an even number: the worse one beside it)."""
    table = simulation.table("trials")
    mine = np.array(words(table["point"])) == simulation.params["best"]
    trial, final = np.asarray(table["trial"])[mine], np.asarray(table["metric_final"], np.float64)[mine]
    sign = 1.0 if lower_is_better(str(simulation.params["search"]["metric"])) else -1.0
    order = np.lexsort((trial, sign * final))
    return int(trial[order[len(order) // 2]])


def trials(simulation: Artefact) -> list[dict[str, Any]]:
    """Every trial as `{key, name, params, tags, metrics}`; metrics are (name, value, virtual seconds, version)."""
    search: Mapping[str, Any] = simulation.params["search"]
    points, told = simulation.table("points"), simulation.table("trials")
    settings = _numbers(points, words(points["point"]), SETTINGS)
    names, totals = words(told["point"]), _numbers(told, range(len(words(told["point"]))))
    evals = _evaluations(simulation)
    out: list[dict[str, Any]] = []
    for i, point in enumerate(names):
        number, last = int(totals[i].pop("trial")), (totals[i]["horizon_s"], int(totals[i]["versions"]))
        fixed = {f"search.{name}": value for name, value in search.items() if name not in settings[point]}
        lineage = {f"fieldfare.lineage.{one['kind']}": str(one["sha256"]) for one in simulation.inputs}
        best = str(point == simulation.params["best"]).lower()
        out.append({
            "key": f"{simulation.sha256[:16]}-{point}-{number}", "name": f"{point}, trial {number}",
            "params": {**settings[point], **fixed, "seed": int(search["seed"]) + number, "point": point,
                       "trial": number},
            "tags": {"fieldfare.simulation": simulation.sha256, "fieldfare.best": best, **lineage},
            "metrics": [*((name, value, *last) for name, value in totals[i].items()), *evals.get((point, number), ())],
        })  # fmt: skip
    return out


def _numbers(
    table: Mapping[str, Array | Text], keys: Sequence[Any], columns: Sequence[str] = ()
) -> dict[Any, dict[str, float]]:
    """Rows of a table by key, its numbers alone; what is missing is left out."""
    chosen = {n: np.asarray(v) for n, v in table.items() if not isinstance(v, Text) and (not columns or n in columns)}
    return {key: {n: v[i].item() for n, v in chosen.items() if np.isfinite(v[i])} for i, key in enumerate(keys)}


def _evaluations(simulation: Artefact) -> dict[tuple[str, int], list[tuple[str, float, float, int]]]:
    """What was measured of each trial, by point and number, where it is kept."""
    out: dict[tuple[str, int], list[tuple[str, float, float, int]]] = {}
    if "evals" in simulation.manifest["tables"]:
        table = simulation.table("evals")
        rows = _numbers(table, range(len(words(table["point"]))))
        for i, (point, metric) in enumerate(zip(words(table["point"]), words(table["metric"]), strict=True)):
            t_s, step = rows[i]["t_s"], int(rows[i]["version"])
            mine = out.setdefault((point, int(rows[i]["trial"])), [])
            mine += [(metric, rows[i]["value"], t_s, step), ("virtual_s", t_s, t_s, step)]
    return out


def _track(simulation: Artefact, registry: Any) -> list[str]:
    return [
        registry.track(one["key"], one["name"], params=one["params"], tags=one["tags"], metrics=one["metrics"])
        for one in trials(simulation)
    ]
