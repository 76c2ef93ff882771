"""The artefact of kind `simulation`: tables of trials, points and evaluations; the values are of the best point.

Here: the artefact. Not here: playing (`play`), the forecast made of it. Invariants: a value is the median over the
best point's trials and its range their extremes, never the best trial; the best point is chosen by medians too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fieldfare.assess.artefact import Artefact, Draft, Value
from fieldfare.assess.simulate.play import Tell, Trial, central, play, ranked
from fieldfare.assess.simulate.search import Point, Search, points
from fieldfare.core.errors import UsageError
from fieldfare.core.metrics import lower_is_better
from fieldfare.core.params import Params
from fieldfare.fleet.fleet import Fleet
from fieldfare.job import Job
from fieldfare.store.models import read_model
from fieldfare.work.adapt import as_net
from fieldfare.work.evaluate import central_evaluation

LEAST_LOSS = 0.005
LEAST_ROWS, LEAST_SHARE = 200, 0.05


def build(
    job: Job, search: Search, out: str | Path, *, fleet: Fleet | None = None, inputs: Sequence[Artefact] = (),
    model: str = "", pet: str = "none", work: str | Path | None = None, tell: Tell | None = None,
) -> Artefact:  # fmt: skip
    """Play the search, write what it told. `work`: where trials are kept and gone on with (default: beside `out`)."""
    place = Path(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = place.with_name(place.name + "-runs") if work is None else Path(work)
    found = play(job, search, folder, fleet, tell)
    tried = [point for point in points(search) if any(one.point == point for one in found)]
    full = [point for point in tried if sum(one.point == point for one in found) == search.trials]
    best = ranked(found, full, search)[0]
    mine = [one for one in found if one.point == best]
    params = {"search": asdict(search), "best": best.name, "model": model, "pet": pet}
    draft = Draft("simulation", search.seed, params, inputs)
    draft.values |= _values(search, best, mine)
    whole: Params | None = None
    if search.train:
        known, whole = (search.central, None) if search.central is not None else central(job, search, folder)
        draft.values |= _loss(search, mine, known, how="declared" if whole is None else "simulated")
    if whole is not None and fleet is not None:
        gap = worst_group_gap(job, search, fleet, Path(mine[0].folder), whole)
        draft.values["worst_group_gap"] = Value(
            gap, "1", how="simulated", note="loss of the worst class of devices over all's"
        )
    _tables(draft, search, found, tried)
    return draft.write(place)


def _band(mine: Sequence[Trial], of: Any, unit: str, note: str = "") -> Value:
    told = [float(value) for one in mine if (value := of(one)) is not None]
    if len(told) < len(mine):
        return Value(
            None, unit, how="simulated", note=note or f"{len(mine) - len(told)} of {len(mine)} trials have none"
        )
    return Value(median(told), unit, min(told), max(told), "simulated", note=note)


def _values(search: Search, best: Point, mine: Sequence[Trial]) -> dict[str, Value]:
    def tasks(name: str) -> Value:
        return _band(mine, lambda one: one.tasks.get(name, 0), "tasks")

    async_ = search.mode == "async"
    settings = {"mode_async": float(async_), "buffer": float(best.buffer),
                "concurrency": float(best.concurrency if async_ else np.ceil(search.over * best.buffer)),
                "trials": float(len(mine))}  # fmt: skip
    out = {name: Value(value, "1", how="declared") for name, value in settings.items()}
    if best.staleness >= 0:
        out["staleness"] = Value(float(best.staleness), "versions", how="declared")
    out |= {
        "versions": _band(mine, lambda one: one.versions, "versions"),
        "horizon_s": _band(mine, lambda one: one.horizon_s, "s"),
        "version_s": _band(mine, lambda one: one.version_s, "s"),
        "tasks_started": _band(mine, lambda one: one.started, "tasks"),
        **{f"tasks_{name}": tasks(name) for name in ("ok", "interrupted", "stale", "timeout")},
        "tasks_straggler": tasks("late"),
        "waste_share": _band(mine, lambda one: one.waste, "share"),
        "device_s": _band(mine, lambda one: one.device_s, "s"),
        "compute_s": _band(mine, lambda one: one.compute_s, "s"),
        "bytes_down": _band(mine, lambda one: one.bytes_down, "B"),
        "bytes_up": _band(mine, lambda one: one.bytes_up, "B"),
        "updates_per_s": _band(
            mine, lambda one: one.tasks.get("ok", 0) / one.horizon_s if one.horizon_s else None, "1/s"
        ),
    }
    if search.train:
        for i, name in enumerate(("mean", "p95", "peak")):
            out[f"updates_per_s_{name}"] = _band(mine, lambda one, i=i: one.rates[i] if one.rates else None, "1/s")
        out["metric_final"] = _band(mine, lambda one: one.final, "1", note=search.metric)
        if search.target is not None:
            out["time_to_target_s"] = _band(
                mine, lambda one: one.target_s, "s", note=f"{search.metric} {search.target:g}"
            )
    return out


def _version_at_target(one: Trial) -> int | None:
    return next((version for t, version, _ in one.evals if t == one.target_s), None)


def _loss(search: Search, mine: Sequence[Trial], known: float, *, how: str) -> dict[str, Value]:
    """The central metric, and what is lost against it: positive is worse, whichever way the metric goes."""
    if known == 0:
        raise UsageError(f"the central {search.metric} is 0: a loss relative to it means nothing; use another metric.")
    sign = -1.0 if lower_is_better(search.metric) else 1.0

    def lost(one: Trial) -> float | None:
        return None if one.final is None else sign * (known - one.final) / abs(known)

    return {
        "metric_central": Value(known, "1", how=how, note=search.metric),
        "metric_loss_share": _band(mine, lost, "share", note="of the central model's"),
    }


def worst_group_gap(job: Job, search: Search, fleet: Fleet, folder: Path, whole: Params) -> float | None:
    """Loss against the central model on the worst class of devices' rows, over that on all rows; None without classes.

    Losses below half a per cent count as half a per cent, so that the ratio of two that are nothing is one; classes
    with few rows (under 200, or 5 %) are left out, as their loss is chance.
    """
    if fleet.kind is None or len(fleet.kinds) < 2:
        return None
    data, sign = job.data, -1.0 if lower_is_better(search.metric) else 1.0
    net = as_net(job.model, loss=job.loss, example={name: rows[:2] for name, rows in data.columns.items()})
    federated = read_model(folder / "model.safetensors", net.layout)

    def loss(clients: Any) -> float:
        rows = np.concatenate([data.rows[data.offsets[i] : data.offsets[i + 1]] for i in clients])
        measure = central_evaluation(net, {name: column[rows] for name, column in data.columns.items()})
        ours, theirs = (measure(model.vector)[search.metric] for model in (federated, whole))
        return sign * (theirs - ours) / abs(theirs) if theirs else 0.0

    groups = [np.flatnonzero(np.asarray(fleet.kind) == kind) for kind in range(len(fleet.kinds))]
    least = max(LEAST_ROWS, LEAST_SHARE * data.sizes.sum())
    groups = [one for one in groups if len(one) and data.sizes[one].sum() >= least]
    if len(groups) < 2:
        return None
    return max(max(loss(one), LEAST_LOSS) for one in groups) / max(loss(np.arange(data.n_clients)), LEAST_LOSS)


def _tables(draft: Draft, search: Search, found: Sequence[Trial], tried: Sequence[Point]) -> None:
    outcomes = ("ok", "interrupted", "stale", "timeout", "late")
    draft.table("trials", {
        "point": [one.point.name for one in found], "trial": [one.number for one in found],
        "versions": [one.versions for one in found], "horizon_s": [one.horizon_s for one in found],
        "version_s": [one.version_s for one in found],
        **{f"tasks_{name}": [one.tasks.get(name, 0) for one in found] for name in outcomes},
        "waste_share": [one.waste for one in found], "device_s": [one.device_s for one in found],
        "compute_s": [one.compute_s for one in found], "bytes_down": [one.bytes_down for one in found],
        "bytes_up": [one.bytes_up for one in found], "time_to_target_s": [one.target_s for one in found],
        "metric_final": [one.final for one in found],
    })  # fmt: skip
    rows = [(point, [one for one in found if one.point == point]) for point in tried]
    columns: dict[str, list[Any]] = {
        "point": [p.name for p, _ in rows], "concurrency": [p.concurrency for p, _ in rows],
        "buffer": [p.buffer for p, _ in rows], "staleness": [p.staleness for p, _ in rows],
        "lr": [p.lr for p, _ in rows], "trials": [len(mine) for _, mine in rows],
    }  # fmt: skip
    for name, of in _POINT.items():
        bands = [_band(mine, of, "") for _, mine in rows]
        columns |= {
            name: [b.value for b in bands],
            f"{name}_low": [b.low for b in bands],
            f"{name}_high": [b.high for b in bands],
        }
    draft.table("points", {name: values for name, values in columns.items() if any(v is not None for v in values)})
    evals = [(one, *told) for one in found for told in one.evals]
    if evals:
        best = [e for e in evals if e[0].point.name == draft.params["best"]]
        draft.table("evals", {
            "point": [e[0].point.name for e in best], "trial": [e[0].number for e in best], "t_s": [e[1] for e in best],
            "version": [e[2] for e in best], "metric": [search.metric] * len(best), "value": [e[3] for e in best],
        })  # fmt: skip


_POINT: Mapping[str, Any] = {
    "time_to_target_s": lambda one: one.target_s, "metric_final": lambda one: one.final,
    "version_s": lambda one: one.version_s, "tasks_started": lambda one: one.started,
    "waste_share": lambda one: one.waste, "device_s": lambda one: one.device_s,
}  # fmt: skip
