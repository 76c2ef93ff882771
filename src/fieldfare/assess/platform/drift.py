"""A run beside its forecast: the artefact of kind `drift`, quantity by quantity, inside the forecast's range or not.

Here: what a run's journal says of each quantity of a forecast. Not here: reading the journal, the forecast. A run of
fewer versions than the forecast's job (or more) is scaled to its number: what grows with the run is multiplied, rates
and shares are not. Invariants: a quantity of which the journal says nothing is not in the table; one without a range is
neither inside nor outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fieldfare.assess.artefact import Artefact, Draft, Value
from fieldfare.assess.platform.journal import Journal, cite_run, peak_per_s, read_journal
from fieldfare.core.errors import UsageError

GROWS = frozenset(
    {"time_to_target_s", "tasks_started", "tasks_ok", "device_h", "compute_h", "bytes_down", "bytes_up",
     "client_energy_j"}
)  # fmt: skip
"""Quantities in proportion to the number of versions."""
LEEWAY = {"waste_share": 0.01}
"""What may be added to a range: a share whose forecast is 0 has a range of no width (ours)."""


def live(journal: Journal) -> dict[str, float]:
    """What a journal says of a forecast's quantities, in the forecast's names and units, not scaled. Pure."""
    out: dict[str, float] = {}

    def put(name: str, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            out[name] = float(value)

    t_s, versions = journal.virtual_s, journal.versions
    tasks, device_s = journal.by_outcome("tasks"), journal.by_outcome("device_s")
    started, ok = sum(tasks.values()), tasks.get("ok", 0.0)
    if versions and t_s > 0:
        put("time_to_target_s", t_s)
        put("version_s", t_s / versions)
    if started:
        put("tasks_started", started)
        put("tasks_ok", ok)
        put("waste_share", 1 - ok / started)
        put("device_h", sum(device_s.values()) / 3600)
        compute_s, energy_j = journal.summed("compute_s"), journal.summed("energy_j")
        put("compute_h", None if compute_s is None else compute_s / 3600)
        put("client_energy_j", energy_j or None)
    put("bytes_down", journal.total("bytes_down"))
    put("bytes_up", journal.total("bytes_up"))
    if t_s > 0 and started:
        put("updates_per_s", ok / t_s)
    behind = journal.staleness()
    if behind is not None and len(behind):
        put("staleness", float(behind.mean()))
    if journal.tasks is not None and len(journal.tasks):
        starts, ends = (np.asarray(journal.tasks[name], np.float64) for name in ("start", "end"))
        down, up = (np.asarray(journal.tasks[name], np.float64) for name in ("bytes_down", "bytes_up"))
        put("updates_per_s_peak", peak_per_s(journal.ok_ends_s() if ok else np.zeros(0)))  # type: ignore[arg-type]
        put("ingress_bytes_per_s_peak", peak_per_s(ends, up))
        put("egress_bytes_per_s_peak", peak_per_s(starts, down))
        put("checkins_per_s_peak", peak_per_s(starts))
    return out


def drift(
    forecast: Artefact, run: str | Path, out: str | Path, *, root: str | Path = "runs", only: Sequence[str] = ()
) -> Artefact:
    """Write the artefact: table `drift` (quantity, unit, forecast, low, high, live, inside, ratio), values by name.

    `only`: these quantities. Values `inside_share`, `outside` (how many) and `versions_share` (of the forecast's
    versions, how many the run has made), and the run's own by the quantity's name, with the forecast's range. Raises
    `UsageError` where the run has made no version yet, or a quantity is asked for that it does not tell.
    """
    if forecast.kind != "forecast":
        raise UsageError(f"{forecast.path} is a {forecast.kind} artefact: drift wants a forecast.")
    folder, journal = read_journal(run, root)
    if not journal.versions:
        raise UsageError(f"{folder.name} has made no version yet: nothing can be laid beside the forecast.")
    planned = float(forecast.params["job"]["versions"])
    scale = planned / journal.versions
    told = live(journal)
    names = [name for name in forecast.values if name in told]
    if lost := [name for name in only if name not in names]:
        raise UsageError(f"{folder.name} tells nothing of {lost[0]!r}: of this forecast it tells {', '.join(names)}.")
    names = [name for name in names if not only or name in only]
    params = {name: forecast.params[name] for name in ("model", "pet") if name in forecast.params}
    params |= {"versions": journal.versions, "planned": planned, "status": journal.status, "only": list(only)}
    draft = Draft("drift", params=params, inputs=[forecast, cite_run(folder)])
    columns: dict[str, list[float | str | None]] = {
        name: [] for name in ("quantity", "unit", "forecast", "low", "high", "live", "inside", "ratio")
    }
    for name in names:
        told_ = forecast.values[name]
        value = told[name] * (scale if name in GROWS else 1.0)
        inside = within(value, told_, LEEWAY.get(name, 0.0))
        ratio = value / told_.value if told_.value else None
        row = (name, told_.unit, told_.value, told_.low, told_.high, value, inside, ratio)
        for column, one in zip(columns.values(), row, strict=True):
            column.append(None if one is None else one if isinstance(one, str) else float(one))
        note = "" if inside is None else "inside the forecast's range" if inside else "outside the forecast's range"
        draft.values[name] = Value(value, told_.unit, told_.low, told_.high, "measured", told_.value, note)
    checked = [one for one in columns["inside"] if one is not None]
    draft.values["outside"] = Value(float(checked.count(0.0)), "1", note="quantities outside their forecast's range")
    draft.values["inside_share"] = Value(checked.count(1.0) / len(checked) if checked else None, "1")
    draft.values["versions_share"] = Value(journal.versions / planned, "1", note="of the versions forecast")
    draft.table("drift", columns)
    return draft.write(out)


def within(value: float, forecast: Value, leeway: float = 0.0) -> bool | None:
    """Whether a value is in a forecast's range, its ends and a `leeway` included; None where it has none.

    >>> within(2.0, Value(1.0, low=0.5, high=2.0)), within(2.1, Value(1.0, low=0.5, high=2.0)), within(1.0, Value(1.0))
    (True, False, None)
    """
    if forecast.low is None or forecast.high is None:
        return None
    leeway += 1e-9 * max(abs(forecast.low), abs(forecast.high))
    return forecast.low - leeway <= value <= forecast.high + leeway
