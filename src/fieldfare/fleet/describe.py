"""What a fleet is, in numbers: how many are available when, for how long, how fast they and their links are.

Not here: how a fleet is made (`generate`, `traces`) and how its numbers are drawn (`report.plots_fleet`).
Invariant: shares are from 0 to 1, and every number is of the fleet itself, never of the recipe behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.generate import generate

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

BIN_S = 1800.0
"""The availability curve is of half-hour means: short enough for its shape, long enough that chance does not make
its trough."""

_POINTS = (0.1, 0.25, 0.5, 0.75, 0.9)
_COLUMNS = ("flops_per_s", "downlink_bytes_per_s", "uplink_bytes_per_s", "latency_s", "memory_bytes")


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """The numbers of a fleet (`facts`: plain JSON) and what is drawn of it.

    `time_s`, `share` `[b]`: the middle of each bin and the mean share of devices available in it. `windows_s` `[w]`:
    quantiles of session lengths, 0 to 1 in steps of 0.0005. `device_share` `[n]`: share of the
    time each device is available. `columns`: speed and links, `[n]` each.
    """

    facts: dict[str, Any]
    time_s: F64
    share: F64
    windows_s: F64
    device_share: F64
    columns: dict[str, F64 | F32]


def describe_fleet(fleet: Fleet, n: int) -> Described:
    """Measure a fleet of `n` devices.

    `available_share_min` and `_max` are of half-hour means over the period after which availability repeats (or up to
    its last change), and `trough_over_peak` is their ratio: in small fleets chance deepens the trough.
    `median_window_s` is over all windows of all devices, one over the period's seam joined; None without any, or always
    on.
    All exact. Cost: a pass over the intervals, about 10 s for 100,000,000.
    """
    fleet.fit(n)
    available = fleet.availability if fleet.availability is not None else Availability.always(n)
    time_s, share = _curve(available)
    lengths, upto = _sorted(*available.windows())
    windows = len(lengths) if upto is None else int(upto[-1]) if len(upto) else 0
    per_device = available.means()
    low, high = float(share.min()), float(share.max())
    never = float((per_device == 0).mean())
    facts: dict[str, Any] = {
        "name": fleet.name, "devices": n, "available_share_mean": float(per_device.mean()), "available_share_min": low,
        "available_share_max": high, "trough_over_peak": low / high if high > 0 else None,
        "median_window_s": _number(_weighted(lengths, upto, 0.5)), "never_available_share": never,
        "eligible_share": 1.0 - never, "windows": windows,
        "windows_under_35_s_share": _below(lengths, upto, 35.0),
        "period_s": _number(available.period_s),
        "window_s": {_name(q): _number(_weighted(lengths, upto, q)) for q in _POINTS},
        "device_share": _quantiles(per_device),
    }  # fmt: skip
    columns = {name: np.asarray(getattr(fleet, name)).ravel() for name in _COLUMNS}
    facts |= {name: _quantiles(value) for name, value in columns.items()}
    if fleet.kind is not None:
        shares = np.bincount(fleet.kind, minlength=len(fleet.kinds)) / n
        facts["kinds"] = {name: float(part) for name, part in zip(fleet.kinds, shares, strict=True)}
    if fleet.flags:
        facts["flags"] = {name: float(value.mean()) for name, value in fleet.flags.items()}
    facts["note"] = fleet.note
    picked = np.array([_weighted(lengths, upto, q) for q in np.linspace(0.0, 1.0, 2001)])
    return Described(facts, time_s, share, picked[~np.isnan(picked)], per_device, columns)


def fleet_of(preset: str | None, file: str | Path | None, devices: int | None, seed: int) -> tuple[Fleet, int]:
    """The fleet of a preset (100,000 devices unless said) or of a file (those it holds), and its number of devices."""
    if (preset is None) == (file is None):
        raise UsageError("name one source of the fleet: --preset NAME or --file FILE.")
    if devices is not None and devices < 1:
        raise UsageError(f"--devices {devices}: use at least one.")
    if preset is not None:
        n = 100_000 if devices is None else devices
        return generate(preset).build(n, seed), n
    from fieldfare.fleet.traces import from_file, read_fleet

    assert file is not None
    if devices is not None:
        return from_file(str(file)).build(devices, seed), devices
    fleet = read_fleet(file)
    return fleet, size_of(fleet)


def size_of(fleet: Fleet) -> int:
    """Number of devices a fleet is about: that of its availability, its links, or its longest column."""
    for part in (fleet.availability, fleet.network):
        if part is not None:
            return part.size
    return max(np.size(getattr(fleet, name)) for name in _COLUMNS)


def _curve(available: Availability) -> tuple[F64, F64]:
    """(middle, mean share) of each bin of the period."""
    length = available.horizon_s
    bins = max(1, round(length / BIN_S))
    return (np.arange(bins) + 0.5) * (length / bins), available.mean_share(bins)


def _sorted(lengths: F64, counts: I64 | None) -> tuple[F64, I64 | None]:
    """(lengths ascending, how many devices' windows up to each; None: one each)."""
    if counts is None:
        lengths.sort()
        return lengths, None
    order = np.argsort(lengths, kind="stable")
    return lengths[order], np.cumsum(counts[order])


def _weighted(values: F64, upto: I64 | None, q: float) -> float:
    if not len(values):
        return float("nan")
    at = int(q * (len(values) - 1)) if upto is None else int(np.searchsorted(upto, q * upto[-1]))
    return float(values[at])


def _below(values: F64, upto: I64 | None, limit: float) -> float | None:
    if not len(values):
        return None
    at = int(np.searchsorted(values, limit))
    if upto is None:
        return at / len(values)
    return float(upto[at - 1] / upto[-1]) if at else 0.0


def _quantiles(values: Any) -> dict[str, float | None]:
    return {_name(q): _number(float(v)) for q, v in zip(_POINTS, np.nanquantile(values, _POINTS), strict=True)}


def _name(q: float) -> str:
    return f"p{round(100 * q)}"


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
