"""What a forecast takes for granted: prices, powers, limits, each with a range and its source.

Here: the table of assumptions. Not here: what follows from them (`model`). Invariant: SI units (joules per bit, grams
per joule would be unwieldy: carbon intensity is in g/kWh and said so); nothing here was measured by us.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite

from fieldfare.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Assumed:
    """A number with the range it is believed to lie in, its unit and where it is from."""

    value: float
    low: float
    high: float
    unit: str
    source: str


GREEN = "Green FL, Yousefpour et al., 2023"
ASSUMED: Mapping[str, Assumed] = {
    "compute_w": Assumed(3.0, 1.0, 6.0, "W", "ours: a phone's processor at work, above idle"),
    "receive_w": Assumed(0.8, 0.4, 1.5, "W", "ours: Wi-Fi or 4G while receiving"),
    "send_w": Assumed(1.0, 0.5, 2.5, "W", "ours: Wi-Fi or 4G while sending"),
    "battery_wh": Assumed(15.0, 10.0, 20.0, "Wh", "ours: 4,000 mAh at 3.8 V"),
    "tasks_per_user_day": Assumed(1.0, 0.5, 2.0, "1/d", "ours"),
    "server_w": Assumed(45.0, 30.0, 90.0, "W", GREEN + ": each of aggregator and selector"),
    "pue": Assumed(1.09, 1.05, 1.5, "1", GREEN),
    "network_j_per_bit": Assumed(1.0e-7, 3.0e-8, 3.0e-7, "J/bit", GREEN + ", sum of its path's parts: our reading"),
    "carbon_g_per_kwh": Assumed(400.0, 50.0, 700.0, "g/kWh", "ours: about the mean of the world's grids"),
    "aggregate_s_per_update": Assumed(0.005, 0.001, 0.02, "s", "ours: measure with the aggregator you have"),
    "server_load": Assumed(0.6, 0.5, 0.7, "1", "ours: the share of its time a server is planned to be busy"),
    "egress_per_gb": Assumed(0.08, 0.02, 0.12, "1/GB", "ours: a cloud's list price, in its money"),
    "server_per_h": Assumed(0.4, 0.2, 1.0, "1/h", "ours: a virtual machine's list price"),
    "storage_per_gb_month": Assumed(0.023, 0.01, 0.05, "1/GB", "ours: a cloud's list price"),
    "device_h_price": Assumed(0.0, 0.0, 0.0, "1/h", "a shadow price of users' devices; none unless you set one"),
    "updates_held": Assumed(1.0, 1.0, 1.0, "1", "added up as they come; the buffer's size where they are kept"),
}

ABOVE_0: Mapping[str, float] = {"battery_wh": inf, "server_load": 1.0, "pue": inf, "updates_held": inf}
"""Assumptions that cannot be 0, and the most they can be."""


def assumptions(changes: Mapping[str, object] | None = None) -> dict[str, Assumed]:
    """The table with `changes`: a number (without a range), or [value, low, high]; unknown names are refused.

    >>> assumptions({"compute_w": [2.0, 1.0, 3.0]})["compute_w"].high
    3.0
    """
    found = dict(ASSUMED)
    for name, told in (changes or {}).items():
        if name not in found:
            near = difflib.get_close_matches(name, found, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(found)}."
            raise UsageError(f"there is no assumption {name!r}: {hint}")
        numbers = list(told) if isinstance(told, (list, tuple)) else [told] * 3
        good = len(numbers) == 3 and all(
            isinstance(x, (int, float)) and not isinstance(x, bool) and isfinite(x) and x >= 0 for x in numbers
        )
        if not good or not numbers[1] <= numbers[0] <= numbers[2]:
            raise UsageError(f"assumption {name}={told!r}: use a number >= 0, or [value, low, high] in that order.")
        value, low, high = (float(x) for x in numbers)
        if name in ABOVE_0 and not (low > 0 and high <= ABOVE_0[name]):
            most = "" if ABOVE_0[name] == inf else f" and at most {ABOVE_0[name]:g}"
            raise UsageError(f"assumption {name}={told!r}: use numbers above 0{most}.")
        found[name] = Assumed(value, low, high, found[name].unit, "set for this forecast")
    return found
