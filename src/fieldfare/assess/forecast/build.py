"""The artefact of kind `forecast`: of a job's means alone, or of a simulation with the closed form beside it.

Here: which artefact gives which input, and the tables. Not here: the arithmetic (`model`), pictures (the report).
Invariants: where there is a simulation its number is the value and the closed form's stands beside it; a range is
there for every number; what was assumed is in the table `assumed`, with its source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import inf, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.assess.artefact import Artefact, Draft, Value
from fieldfare.assess.forecast.assumptions import Assumed
from fieldfare.assess.forecast.model import FORMULAS, INPUTS, UNITS, Means, Swing, quantities, ranges_of, swings
from fieldfare.core.errors import UsageError

WEEK_S = 7 * 86_400.0
SIMULATED = ("time_to_target_s", "tasks_started", "tasks_ok", "waste_share", "bytes_down", "bytes_up", "updates_per_s",
             "updates_per_s_peak")  # fmt: skip
"""Quantities that a simulation has under the same name."""
EXTENTS = ("tasks_started", "tasks_ok", "bytes_down", "bytes_up")
"""Those that grow with a run: told up to the target, as the closed form is, and not to the end of the simulation."""


def means_of(
    model: str, *, bench: Artefact | None = None, trace: Artefact | None = None, simulation: Artefact | None = None,
    records: float | None = None, epochs: float = 1.0, **given: Any,
) -> Means:  # fmt: skip
    """The job's means: what is `given` (in `Means`' names) first, then what the artefacts say.

    Of a bench: bytes, seconds per record and their spread; of a trace: supply, sessions, peak over mean; of a
    simulation: versions, buffer, concurrency, mean computing time. Raises `UsageError` naming what nobody said.
    """
    unknown = sorted(set(given) - set(INPUTS))
    if unknown:
        raise UsageError(f"a forecast knows no {unknown[0]!r}: its inputs are {', '.join(INPUTS)}.")
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
        _put(found, "peak_over_mean", peak_over_mean(trace))
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
        _put(
            found,
            "buffered",
            None if simulation.number("mode_async") is None else bool(simulation.number("mode_async")),
        )
    found |= {name: value for name, value in given.items() if value is not None}
    missing = [
        n for n in ("versions", "buffer", "concurrency", "compute_s", "down_bytes", "up_bytes") if n not in found
    ]
    if missing:
        raise UsageError(
            f"a forecast needs {', '.join(missing)}: give the artefacts that say so (--bench with --records, "
            "--simulation, --trace), or --set job.NAME=NUMBER."
        )
    whole = {n: int(found[n]) for n in ("buffer", "concurrency")}
    return Means(**{**found, **whole})


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
    """Write the forecast: tables `quantities`, `sensitivity`, `by_hour`, `assumed`; values by `UNITS`' names."""
    middle = {name: one.value for name, one in assumed.items()}
    base = quantities(job, middle)
    found = swings(job, {name: (one.value, one.low, one.high) for name, one in assumed.items()})
    spans = ranges_of(base, found)
    values = {name: _value(name, base[name], spans[name], simulation) for name in UNITS}
    device_s = None if simulation is None else simulation.number("device_s")
    if simulation is not None and device_s is not None:
        values["device_h"] = _around(values["device_h"], share_to_target(simulation) * device_s / 3600, None)
    params = {"job": {n: v for n, v in asdict(job).items() if v != inf}, "model": model, "pet": pet}
    draft = Draft("forecast", params=params, inputs=inputs, values=values)
    rows = list(values.items())
    draft.table("quantities", {
        "name": [n for n, _ in rows], "unit": [v.unit for _, v in rows], "value": [v.value for _, v in rows],
        "low": [v.low for _, v in rows], "high": [v.high for _, v in rows], "closed": [v.closed for _, v in rows],
        "how": [v.how for _, v in rows], "formula": [FORMULAS[n] for n, _ in rows],
    })  # fmt: skip
    _sensitivity(draft, values, base, found)
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


def _value(name: str, closed: float, span: tuple[float, float], simulation: Artefact | None) -> Value:
    one = Value(closed, UNITS[name], *span, how="closed form", closed=closed, note=FORMULAS[name])
    told = simulation.values.get(name) if simulation is not None and name in SIMULATED else None
    if simulation is None or told is None or told.value is None:
        return one
    share = share_to_target(simulation) if name in EXTENTS else 1.0
    low, high = (None if end is None else share * end for end in (told.low, told.high))
    return _around(one, share * told.value, replace(told, low=low, high=high))


def share_to_target(simulation: Artefact) -> float:
    """Share of a simulation's versions that made its target; 1 where it had none, or did not reach it."""
    reached, made = simulation.number("versions_to_target"), simulation.number("versions")
    return reached / made if reached and made else 1.0


def _around(one: Value, simulated: float, told: Value | None) -> Value:
    """A simulated number with the closed form's relative range around it, or the trials' band where that is wider."""
    low = high = None
    if one.closed and one.low is not None and one.high is not None:
        low, high = simulated * one.low / one.closed, simulated * one.high / one.closed
        if told is not None and told.low is not None and told.high is not None:
            low, high = min(low, told.low), max(high, told.high)
    return replace(one, value=simulated, low=low, high=high, how="simulated")


def _sensitivity(draft: Draft, values: Mapping[str, Value], base: Mapping[str, float], found: Sequence[Swing]) -> None:
    """Every input's swing of every quantity, as the closed form's ratio times the forecast's value."""
    rows = [(swing, name) for swing in found for name in UNITS]

    def at(name: str, closed: float) -> float:
        middle = values[name].value or 0.0
        return middle * closed / base[name] if base[name] else closed

    draft.table("sensitivity", {
        "input": [s.input for s, _ in rows], "low_value": [s.low for s, _ in rows],
        "high_value": [s.high for s, _ in rows], "quantity": [n for _, n in rows],
        "at_low": [at(n, s.at_low[n]) for s, n in rows], "at_high": [at(n, s.at_high[n]) for s, n in rows],
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
