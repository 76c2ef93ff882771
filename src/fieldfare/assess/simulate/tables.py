"""Tables of a simulation: trials, points with medians and bands, evaluations over virtual time.

Here: columns, and the median and band of a number over trials. Not here: which trials are told (`build`). Invariant: a
number that one of the trials does not have has no median: a point is told by all its trials, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from fieldfare.assess.artefact import Draft, Value
from fieldfare.assess.simulate.search import Point, Search, points
from fieldfare.assess.simulate.trial import Trial

OUTCOMES = ("ok", "interrupted", "stale", "timeout", "late")


def band(mine: Sequence[Any], of: Callable[[Any], float | None], unit: str, note: str = "") -> Value:
    """The median over trials, their least and greatest; no number where one has none."""
    told = [float(value) for one in mine if (value := of(one)) is not None]
    if len(told) < len(mine):
        none = f"{len(mine) - len(told)} of {len(mine)} trials have none"
        return Value(None, unit, how="simulated", note=", ".join(filter(None, (note, none))))
    return Value(median(told), unit, min(told), max(told), "simulated", note=note)


def fill(
    draft: Draft, search: Search, best: Point, tried: Sequence[Trial], told: Sequence[Trial], others: Sequence[Trial]
) -> None:
    """Put the tables into the draft: `tried` compared points, `told` are the trials told, `others` the other mode's."""
    draft.table("trials", _trials(told))
    if tried is not told:
        draft.table("tuning", _trials(tried))
    draft.table("points", _points(search, best, tried))
    for name, mine in (("evals", [one for one in told if one.point == best]), ("compared", others)):
        evals = [(one, *seen) for one in mine for seen in one.evals]
        if evals:
            draft.table(name, {
                "point": [e[0].point.name for e in evals], "trial": [e[0].number for e in evals],
                "t_s": [e[1] for e in evals], "device_s": [e[4] for e in evals], "version": [e[2] for e in evals],
                "metric": [search.metric] * len(evals), "value": [e[3] for e in evals],
            })  # fmt: skip
    if others:
        draft.table("compared_trials", _trials(others))


def _trials(found: Sequence[Trial]) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {
        "point": [one.point.name for one in found], "trial": [one.number for one in found],
        "versions": [one.versions for one in found], "horizon_s": [one.horizon_s for one in found],
        "version_s": [one.version_s for one in found],
        **{f"tasks_{name}": [one.tasks.get(name, 0) for one in found] for name in OUTCOMES},
        "waste_share": [one.waste for one in found], "device_s": [one.device_s for one in found],
        "compute_s": [one.compute_s for one in found], "bytes_down": [one.bytes_down for one in found],
        "bytes_up": [one.bytes_up for one in found], "time_to_target_s": [one.target_s for one in found],
        "metric_final": [one.final for one in found],
    }  # fmt: skip
    if any(one.stopped_h is not None for one in found):
        columns["stopped_h"] = [one.stopped_h for one in found]
    return columns


def _points(search: Search, best: Point, tried: Sequence[Trial]) -> dict[str, Any]:
    """A row a point: its settings, how many trials it had, medians and bands, where it was dropped, the one chosen."""
    rows = [(p, mine) for p in points(search) if (mine := [one for one in tried if one.point == p])]
    settings = ("concurrency", "buffer", "staleness", "lr", "cohort", "schedule", "decay", "server", "server_lr",
                "server_decay")  # fmt: skip
    columns: dict[str, list[Any]] = {"point": [p.name for p, _ in rows]}
    columns |= {name: [getattr(p, name) for p, _ in rows] for name in settings}
    columns |= {
        "trials": [len(mine) for _, mine in rows], "chosen": [int(p == best) for p, _ in rows],
        "stopped_h": [mine[0].stopped_h for _, mine in rows],
    }  # fmt: skip
    for name, of in _POINT.items():
        bands = [band(mine, of, "") for _, mine in rows]
        columns |= {
            name: [b.value for b in bands],
            f"{name}_low": [b.low for b in bands],
            f"{name}_high": [b.high for b in bands],
        }
    for i, name in enumerate(("version_s_p10", "version_s_p90")):
        columns[name] = [band(mine, lambda one, i=i: _at(one.spread_s, i), "").value for _, mine in rows]
    bare = ("schedule", "server", "cohort")
    return {
        name: values for name, values in columns.items()
        if any(v is not None and not (name in bare and not v) for v in values)
    }  # fmt: skip


def _at(pair: tuple[float, float] | None, i: int) -> float | None:
    return None if pair is None else pair[i]


_POINT: Mapping[str, Callable[[Trial], float | None]] = {
    "time_to_target_s": lambda one: one.target_s, "metric_final": lambda one: one.final,
    "metric_seen": lambda one: one.seen,
    "version_s": lambda one: one.version_s, "horizon_s": lambda one: one.horizon_s,
    "tasks_started": lambda one: one.started,
    **{f"tasks_{name}": lambda one, name=name: one.tasks.get(name, 0) for name in OUTCOMES},
    "waste_share": lambda one: one.waste, "device_s": lambda one: one.device_s,
}  # fmt: skip
