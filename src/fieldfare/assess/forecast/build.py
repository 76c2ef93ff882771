"""The artefact of kind `forecast`: of a job's means alone, or of a simulation with the closed form beside it.

Here: which artefact gives which input, and the tables. Not here: the arithmetic (`model`), what a simulation tells of
the flow of tasks (`seen`), pictures (the report). Invariants: where there is a simulation its number is the value, what
follows from it is computed of it, and the closed form's stands beside it; a range is there for every number; what was
assumed is in the table `assumed`, with its source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import inf, isfinite, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.assess.artefact import Artefact, Draft, Value
from fieldfare.assess.forecast.assumptions import Assumed
from fieldfare.assess.forecast.model import FORMULAS, INPUTS, UNITS, Means, Swing, flow_of, follows, ranges_of, swings
from fieldfare.assess.forecast.seen import DIRECT, WITHOUT, chances, seen_flow
from fieldfare.core.errors import UsageError

WEEK_S = 7 * 86_400.0


def means_of(
    model: str, *, bench: Artefact | None = None, trace: Artefact | None = None, simulation: Artefact | None = None,
    features: Artefact | None = None, proxy: Artefact | None = None, records: float | None = None, epochs: float = 1.0,
    **given: Any,
) -> Means:  # fmt: skip
    """The job's means: what is `given` (in `Means`' names) first, then what the artefacts say.

    Of a bench: bytes, seconds per record and their spread; of a trace: supply, sessions and their spread, peak over
    mean; of a simulation: versions, buffer, concurrency, mean computing time, and bytes of a task where there is no
    bench; of a proxy and a trace: what is kept of them; of features: what a device holds. One that was simulated
    towards no target says nothing of how many versions make it, so `reached` is false. Raises `UsageError` naming what
    nobody said.
    """
    unknown = sorted(set(given) - set(INPUTS))
    if unknown:
        raise UsageError(f"a forecast knows no {unknown[0]!r}: its inputs are {', '.join(INPUTS)}.")
    for name, value in (("records", records), ("epochs", epochs)):
        if value is not None and not 0 < value < inf:
            raise UsageError(f"a forecast of {name}={value}: use a number above 0.")
    found: dict[str, Any] = {}
    if bench is not None:
        _put(found, "down_bytes", bench.number(f"{model}.wire_down_bytes"))
        _put(found, "up_bytes", bench.number(f"{model}.wire_up_bytes"))
        _put(found, "model_bytes", bench.number(f"{model}.storage_bytes"))
        _put(found, "sigma", bench.number(f"{model}.lognormal_sigma"))
        each = bench.number(f"{model}.per_record_s")
        _put(found, "compute_s", None if each is None or records is None else each * records * epochs)
    if trace is not None:
        usable, sessions = trace.number("eligible_device_s"), trace.number("sessions")
        _put(found, "supply_per_s", trace.number("supply_per_s"))
        _put(found, "session_s", usable / sessions if usable and sessions else None)
        _put(found, "session_sigma", spread_of(trace))
        _put(found, "peak_over_mean", peak_over_mean(trace))
    kept = [one for one in (proxy, trace) if one is not None]
    _put(found, "kept_bytes", float(sum(map(_stored, kept))) if kept else None)
    _put(found, "asset_bytes", None if features is None else features.number("assets_bytes"))
    if simulation is not None:
        told = simulation.values.get("time_to_target_s")
        if told is not None and told.value is None and "versions" not in given:
            raise UsageError(
                f"{simulation.path.name} did not reach its target in every trial ({told.note}): simulate more "
                "versions, ease the target, or say how many it takes, --set job.versions=NUMBER."
            )
        for name in ("versions", "buffer", "concurrency", "peak_over_mean"):
            _put(found, name, simulation.number(name))
        _put(found, "versions", simulation.number("versions_to_target"))
        started, busy = simulation.number("tasks_started"), simulation.number("compute_s")
        _put(found, "compute_s", busy / started if busy and started else None)
        _put(found, "max_staleness", simulation.number("staleness"))
        mode = simulation.number("mode_async")
        _put(found, "buffered", None if mode is None else bool(mode))
        found |= {"within": True, "reached": told is not None or "versions" in given}
        for name, whole, tasks in (("down_bytes", "bytes_down", started), ("up_bytes", "bytes_up", _ok(simulation))):
            total = simulation.number(whole)
            if name not in found and total and tasks:
                found[name] = total / tasks
    found |= {name: value for name, value in given.items() if value is not None}
    missing = [
        n for n in ("versions", "buffer", "concurrency", "compute_s", "down_bytes", "up_bytes") if n not in found
    ]
    if missing:
        raise UsageError(
            f"a forecast needs {', '.join(missing)}: give the artefacts that say so (--bench with --records, "
            "--simulation, --trace), or --set job.NAME=NUMBER."
        )
    return Means(**{**found, **{n: _whole(n, found[n]) for n in ("buffer", "concurrency")}})


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value) or value != int(value):
        raise UsageError(f"job.{name}={value!r}: use a whole number.")
    return int(value)


def _ok(simulation: Artefact) -> float | None:
    return simulation.number("tasks_ok")


def _stored(one: Artefact) -> int:
    """Bytes of an artefact's files, and of its tables at eight a cell (what they take on the disk is their form's)."""
    tables, files = one.manifest["tables"].values(), one.manifest["files"].values()
    return sum(8 * each["rows"] * len(each["columns"]) for each in tables) + sum(each["bytes"] for each in files)


def spread_of(trace: Artefact) -> float | None:
    """Sigma of the logarithm of session lengths: of the middle four fifths of a trace's table `lengths`."""
    if "lengths" not in trace.manifest["tables"]:
        return None
    table = trace.table("lengths")
    q, long = np.asarray(table["quantile"], np.float64), np.asarray(table["usable_s"], np.float64)
    keep = np.isfinite(long) & (long > 0)
    if keep.sum() < 2:
        return None
    low, high = np.interp((0.1, 0.9), q[keep], np.log(long[keep]))
    return float(min(max(high - low, 0.0) / 2.5631, 5.0))  # 10 % and 90 % of a normal lie 2.5631 sigma apart


def peak_over_mean(trace: Artefact) -> float | None:
    """Highest over mean availability of a week, from a trace's weekly curve."""
    if "weekly" not in trace.manifest["tables"]:
        return None
    share: Any = trace.table("weekly")["available"]
    return float(np.nanmax(share) / np.nanmean(share)) if np.nanmean(share) > 0 else None


def sigma_of(task_sigma: float, size_mean: float, size_std: float) -> float:
    """Sigma of a task's time where records per client vary too: the two log-normals' variances add (FLINT, figure 8).

    >>> round(sigma_of(0.65, 99, 667), 2)
    2.06
    """
    return sqrt(task_sigma**2 + log(1 + (size_std / size_mean) ** 2))


def build(
    job: Means, assumed: Mapping[str, Assumed], out: str | Path, *, simulation: Artefact | None = None,
    inputs: Sequence[Artefact] = (), model: str = "", pet: str = "none",
) -> Artefact:  # fmt: skip
    """Write the forecast: tables `quantities`, `sensitivity`, `by_hour`, `assumed`; values by `UNITS`' names.

    With a simulation: its tasks, devices' time, bytes and peaks, up to the target, and what follows from them; chance
    (the trials' extremes) is one more input with a range. Without a target there is no time to it.
    """
    middle = {name: one.value for name, one in assumed.items()}
    closed = flow_of(job)
    base = follows(closed, job, middle)
    flow = closed if simulation is None else seen_flow(job, closed, simulation)
    told = follows(flow, job, middle)
    found = swings(job, {name: (one.value, one.low, one.high) for name, one in assumed.items()}, seen=flow)
    if simulation is not None:
        found += chances(job, closed, simulation, middle)
    spans = ranges_of(told, found)
    values = {name: _value(name, told[name], base[name], spans[name], simulation) for name in UNITS}
    if not job.reached:
        note = "simulated towards no target: how many versions make it nobody has said"
        values["time_to_target_s"] = Value(None, "s", how="simulated", note=note)
    params = {"job": {n: v for n, v in asdict(job).items() if v != inf}, "model": model, "pet": pet}
    draft = Draft("forecast", params=params, inputs=inputs, values=values)
    rows = list(values.items())
    draft.table("quantities", {
        "name": [n for n, _ in rows], "unit": [v.unit for _, v in rows], "value": [v.value for _, v in rows],
        "low": [v.low for _, v in rows], "high": [v.high for _, v in rows], "closed": [v.closed for _, v in rows],
        "how": [v.how for _, v in rows], "formula": [FORMULAS[n] for n, _ in rows],
    })  # fmt: skip
    _sensitivity(draft, found)
    draft.table("assumed", {
        "name": list(assumed), "value": [a.value for a in assumed.values()], "low": [a.low for a in assumed.values()],
        "high": [a.high for a in assumed.values()], "unit": [a.unit for a in assumed.values()],
        "source": [a.source for a in assumed.values()],
    })  # fmt: skip
    trace = next((one for one in inputs if one.kind == "trace" and "weekly" in one.manifest["tables"]), None)
    if trace is not None:
        _by_hour(draft, trace, values, job)
    return draft.write(out)


def _put(found: dict[str, Any], name: str, value: float | None) -> None:
    if value is not None:
        found[name] = value


def _value(name: str, value: float, closed: float, span: tuple[float, float], simulation: Artefact | None) -> Value:
    low, high = min(span[0], value), max(span[1], value)  # to the last bit
    how = "closed form" if simulation is None or name in WITHOUT else "simulated" if name in DIRECT else "of simulated"
    return Value(value, UNITS[name], low, high, how=how, closed=closed, note=FORMULAS[name])


def _sensitivity(draft: Draft, found: Sequence[Swing]) -> None:
    """Every input's swing of every quantity."""
    rows = [(swing, name) for swing in found for name in UNITS]
    draft.table("sensitivity", {
        "input": [s.input for s, _ in rows], "low_value": [s.low for s, _ in rows],
        "high_value": [s.high for s, _ in rows], "quantity": [n for _, n in rows],
        "at_low": [s.at_low[n] for s, n in rows], "at_high": [s.at_high[n] for s, n in rows],
    })  # fmt: skip


def _by_hour(draft: Draft, trace: Artefact, values: Mapping[str, Value], job: Means) -> None:
    """Updates and ingress over a week, in proportion to the devices there are: the weekly curve, an hour a row."""
    weekly = trace.table("weekly")
    t, there = np.asarray(weekly["t_s"], np.float64), np.asarray(weekly["available"], np.float64)
    hour = (t // 3600).astype(np.int64)
    each = np.bincount(hour, weights=there) / np.maximum(np.bincount(hour), 1)
    rate = (values["updates_per_s"].value or 0.0) * each / np.nanmean(each)
    draft.table("by_hour", {"t_s": 3600.0 * np.arange(len(each)), "updates_per_s": rate,
                            "ingress_bytes_per_s": rate * job.up_bytes})  # fmt: skip
