"""The numbers that gates compare with, each with its unit and where it comes from; all can be set.

Here: thresholds and their overrides. Not here: what is compared (`gates`). Invariant: a threshold that nobody set is
one of this table; an unknown name or a number that cannot be is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from fieldfare.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Threshold:
    """A limit: at most `value` (or at least, where `most` is false), in `unit`; `source` says who chose it."""

    value: float
    unit: str
    source: str
    most: bool = True


DAY_S = 86_400.0
DEFAULTS: Mapping[str, Threshold] = {
    "package_bytes": Threshold(10e6, "B", "FLINT: under 10 MB in the own app, under 1 MB in a kit for others"),
    "task_p95_s": Threshold(60.0, "s", "ours"),
    "task_over_session": Threshold(1.0, "1", "ours: the slow task ends within the median eligible session"),
    "cpu_pct": Threshold(10.0, "%", "ours"),
    "memory_bytes": Threshold(50e6, "B", "ours"),
    "battery_share_per_day": Threshold(0.01, "share", "ours"),
    "eligible_share_devices": Threshold(0.05, "share", "ours", most=False),
    "metric_loss_share": Threshold(0.02, "share", "ours; FLINT tolerated 0.05 where compliance asked for it"),
    "band_over_median": Threshold(2.0, "1", "ours: the worse end of the band within twice the limit"),
    "worst_group_gap": Threshold(1.5, "1", "ours: the loss of the worst group over that of all"),
    "trials": Threshold(5.0, "1", "FLINT: five trials, fifteen for a decision", most=False),
    "time_to_target_s": Threshold(7 * DAY_S, "s", "FLINT: the central model is trained anew every week"),
    "ingress_bytes_per_s": Threshold(3e6, "B/s", "FLINT: the enclave takes under 3 MB/s"),
    "waste_share": Threshold(0.2, "share", "ours"),
    "device_h": Threshold(5_000.0, "h", "ours: the share of devices' time a project may take"),
    "checkins_per_s": Threshold(1_000.0, "1/s", "ours: what the selectors take"),
    "epsilon": Threshold(8.0, "1", "ours"),
    "delta_times_population": Threshold(1.0, "1", "common practice: delta at most one over the population"),
    "attack_success": Threshold(0.1, "share", "ours"),
}
COMPLIANCE_LOSS = 0.05
ASKED: Mapping[str, Threshold] = {
    "cost": Threshold(0.0, "money", "nobody"), "carbon_g": Threshold(0.0, "g", "nobody"),
}  # fmt: skip
"""Limits that there are only where somebody sets them."""


def thresholds(changes: Mapping[str, float] | None = None, compliance: str | None = None) -> dict[str, Threshold]:
    """The default thresholds with `changes` by name; with a `compliance` reason five per cent of loss are tolerated.

    >>> thresholds({"epsilon": 2})["epsilon"].value
    2.0
    """
    found = dict(DEFAULTS)
    if compliance:
        found["metric_loss_share"] = Threshold(COMPLIANCE_LOSS, "share", f"FLINT: compliance ({compliance})")
    for name, value in (changes or {}).items():
        known = {**found, **ASKED}
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise UsageError(
                f"there is no threshold {name!r}: "
                + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}.")
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value) or value < 0:
            raise UsageError(f"threshold {name}={value!r}: use a finite number >= 0, in {known[name].unit}.")
        found[name] = Threshold(float(value), known[name].unit, "set for this decision", known[name].most)
    return found
