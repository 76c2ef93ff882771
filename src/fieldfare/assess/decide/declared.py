"""Evidence that somebody states: numbers by name, with who says so, as an artefact that a decision can read.

Here: which numbers of which kind there are, and writing them. Not here: privacy (`privacy`), what gates make of them
(`gates`). Invariants: every value is told as declared, by whom; a name that nothing reads is refused, not kept.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, cast

from fieldfare.assess.artefact import Artefact, Draft, Value
from fieldfare.core.errors import UsageError

KNOWN: Mapping[str, Mapping[str, str]] = {
    "bench": {
        "storage_bytes": "B", "wire_down_bytes": "B", "wire_up_bytes": "B", "mem_bytes": "B", "records": "records",
        "mean_s": "s", "p95_task_s": "s", "per_record_s": "s", "lognormal_mu": "1", "lognormal_sigma": "1",
        "cpu_pct": "%", "battery_share_per_day": "share",
    },
    "trace": {
        "eligible_share_devices": "share", "eligible_share_device_s": "share", "median_usable_s": "s",
        "supply_per_s": "1/s", "trough_over_peak": "share", "clients": "clients", "sessions": "sessions",
        "flagged_groups": "groups", "flagged_groups_device_s": "groups",
    },
    "proxy": {
        "natural": "1", "clients": "clients", "records": "records", "records_mean": "records", "records_std": "records",
        "records_max": "records", "label_ratio": "1",
    },
    "features": {
        "assets_bytes": "B", "device_bytes": "B", "task_bytes": "B", "embedding_bytes": "B", "extra_latency_s": "s",
        "features_refused": "features",
    },
    "simulation": {
        "metric_loss_share": "share", "metric_final": "1", "metric_central": "1", "worst_group_gap": "1", "trials": "1",
        "time_to_target_s": "s", "versions": "versions", "versions_to_target": "versions", "waste_share": "share",
    },
    "forecast": {
        "time_to_target_s": "s", "device_h": "h", "ingress_bytes_per_s_peak": "B/s", "checkins_per_s_peak": "1/s",
        "updates_per_s_peak": "1/s", "waste_share": "share", "bytes_down": "B", "bytes_up": "B", "energy_j": "J",
        "carbon_g": "g", "cost": "money", "battery_share_per_day": "share", "storage_bytes": "B",
    },
}  # fmt: skip
"""Names and units by kind; of a bench each stands behind its model and a dot."""


def state(
    kind: str, numbers: Mapping[str, Any], out: str | Path, *, source: str, model: str = "", pet: str = ""
) -> Artefact:
    """Write the artefact of `kind`: a number each, or [value, low, high] where a range is known.

    Raises `UsageError` for names that nothing reads and numbers that cannot be.
    """
    if kind not in KNOWN:
        more = ": use assess privacy" if kind == "privacy" else f": there are {', '.join(KNOWN)}"
        raise UsageError(f"declare {kind}: no such evidence{more}.")
    if not source or not numbers:
        raise UsageError(f"declare {kind}: give NAME=VALUE, and --source: who says so.")
    values = {name: _value(kind, name, told, source) for name, told in numbers.items()}
    params = {"source": source, "declared": True, "model": model, "pet": pet}
    return Draft(kind, params=params, values=values).write(out)


def _value(kind: str, name: str, told: Any, source: str) -> Value:
    model, _, last = name.rpartition(".") if kind == "bench" else ("", "", name)
    units = KNOWN[kind]
    if last not in units or (kind == "bench" and not model):
        near = difflib.get_close_matches(last, units, 1)
        wanted = f"MODEL.{near[0] if near else 'NAME'}" if kind == "bench" else near[0] if near else ""
        hint = f"did you mean {wanted}?" if wanted else f"there are {', '.join(units)}."
        raise UsageError(f"declare {kind}: nothing reads {name!r}: {hint}")
    listed: Sequence[Any] = cast(Sequence[Any], told) if isinstance(told, (list, tuple)) else (told,)
    fits = all(isinstance(one, (int, float)) and not isinstance(one, bool) and isfinite(one) for one in listed)
    if not fits or len(listed) not in (1, 3) or (len(listed) == 3 and not listed[1] <= listed[0] <= listed[2]):
        raise UsageError(
            f"declare {kind}: {name}={told!r}: use a number, or [value,low,high] with low <= value <= high."
        )
    value, low, high = (*map(float, listed), None, None)[:3]
    return Value(value, units[last], low, high, "declared", note=source)
