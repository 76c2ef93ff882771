"""What the counts say: shares, intersections, fairness, the weekly curve, lengths.

Here: tables (columns by name) and values from `part`'s merged counts. Not here: counting, and pictures. Invariant:
shares are of all clients, or of all device-seconds, of the log's window; a client meets a set of criteria if one of its
sessions meets them all (the paper does not say whether its Table 1 counts devices or sessions: both are told).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.assess.artefact import Value
from fieldfare.assess.trace.joint import DEVICES, Joint
from fieldfare.assess.trace.part import GROUPS, Counts
from fieldfare.assess.trace.sessions import BIN_MS, WEEK_MS

F64 = NDArray[np.float64]
Table = dict[str, Any]

UNFAIR = 0.8
"""A group whose share of the devices falls below this times what it was is flagged."""
LEAST_DEVICES = 30
"""A smaller group's ratio is chance (ours): it is told, and not flagged."""

MOST_GROUPS = 30
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_Z90 = 1.6448536269514722
_WEEK_BINS = WEEK_MS // BIN_MS


class Shares:
    """Shares of clients and of device-seconds that meet any set of the criteria `asked`."""

    def __init__(self, asked: Sequence[str], counts: Counts) -> None:
        self.asked = tuple(asked)
        self._ms = {mask: n for (what, mask), n in counts["masks"].items() if what == "usable_ms"}
        self._sessions = {mask: n for (what, mask), n in counts["masks"].items() if what == "sessions"}
        self.groups: dict[str, dict[str, Counter[int]]] = {by: {} for by in GROUPS}
        for (by, who, low, high), n in counts["persons"].items():
            self.groups[by].setdefault(who, Counter())[int(low) + (int(high) << 128)] += n
        self.group_ms: dict[str, dict[str, Counter[int]]] = {by: {} for by in GROUPS}
        for (by, who, mask), n in counts["groups"].items():
            self.group_ms[by].setdefault(who, Counter())[mask] += n
            self.groups[by].setdefault(who, Counter())
        self._rested = counts.get("thin groups")
        self._all: Counter[int] = sum(self.groups["tier"].values(), Counter())
        self.clients, self.ms = sum(self._all.values()), sum(self._ms.values())
        self.sessions = sum(self._sessions.values())

    def devices(self, names: Sequence[str]) -> float:
        """Share of clients with a session that meets all of `names`."""
        return self.count(self._all, names) / self.clients

    def seconds(self, names: Sequence[str]) -> float:
        """Share of device-seconds that meet all of `names`."""
        wanted = self._bits(names)
        return sum(n for mask, n in self._ms.items() if mask & wanted == wanted) / self.ms

    def count(self, held: Counter[int], names: Sequence[str]) -> int:
        """How many of the clients in `held` have a session that meets all of `names`."""
        wanted = self._bits(names)
        pattern = sum(1 << mask for mask in range(1 << len(self.asked)) if mask & wanted == wanted)
        return sum(n for sets, n in held.items() if sets & pattern)

    def held(self, by: str, names: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
        """(clients, milliseconds) of every group that meet all of `names`; "min_gap": those left after resting, too.

        Clients are in the group of their first session, milliseconds in that of their own.
        """
        if "min_gap" in names:
            left: Counter[Any] = self._rested or Counter()
            return tuple({who: left[by, who, what] for who in self.groups[by]} for what in ("clients", "ms"))  # type: ignore[return-value]
        wanted = self._bits(names)
        found = self.group_ms[by]
        ms = {who: sum(n for mask, n in found[who].items() if mask & wanted == wanted) for who in found}
        return {who: self.count(sets, names) for who, sets in self.groups[by].items()}, ms

    def steps(self) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        """Every filter in its order, resting the last, then `all` of them: (name, criteria before it, with it)."""
        order = (*self.asked, *(() if self._rested is None else ("min_gap",)))
        return [(one, order[:i], order[: i + 1]) for i, one in enumerate(order)] + [("all", (), order)]

    def _bits(self, names: Sequence[str]) -> int:
        return sum(1 << self.asked.index(one) for one in names)


def criteria_table(shares: Shares, counts: Counts) -> Table:
    """A row a criterion, alone, and `all`; `leave_one_out_gain`: what the share of devices gains without it."""
    asked, total = shares.asked, shares.sessions
    names = [*asked, "all"]
    sets = [[one] for one in asked] + [list(asked)]
    without = [[other for other in asked if other != one] for one in asked]
    devices, seconds = shares.devices(asked), shares.seconds(asked)
    gain = [shares.devices(rest) - devices for rest in without]
    gain_s = [shares.seconds(rest) - seconds for rest in without]
    table = {
        "criterion": names, "share_devices": [shares.devices(one) for one in sets],
        "share_device_s": [shares.seconds(one) for one in sets], "leave_one_out_gain": [*gain, 0.0],
        "leave_one_out_gain_s": [*gain_s, 0.0],
        "unknown_sessions": [counts["heads"][f"unknown {one}"] / total for one in asked] + [0.0],
    }  # fmt: skip
    if "thin every" in counts:
        every, kept = counts["thin every"], counts["thin kept"]
        row = ("min_gap", every["clients"] / shares.clients, every["usable_ms"] / shares.ms,
               devices - kept["clients"] / shares.clients, seconds - kept["usable_ms"] / shares.ms, 0.0)  # fmt: skip
        for column, value in zip(table.values(), row, strict=True):
            column.insert(len(asked), value)
    return table


def intersections_table(shares: Shares) -> Table:
    """Every set of criteria: `criteria` joined by "+", how many, and shares of devices and of device-seconds."""
    sets = [one for k in range(1, len(shares.asked) + 1) for one in combinations(shares.asked, k)]
    return {
        "criteria": ["+".join(one) for one in sets], "n": [len(one) for one in sets],
        "share_devices": [shares.devices(one) for one in sets],
        "share_device_s": [shares.seconds(one) for one in sets],
    }  # fmt: skip


def fairness_table(shares: Shares) -> Table:
    """Each group's share of what is left, before and after each filter in their order, and (`all`) of them all.

    Of devices (`share_before`, `share_after`, `ratio`, `flagged`), and of device-seconds (the same with `_device_s`).
    Groups: device classes (the 30 most frequent, the rest as "other"), systems, regions; a ratio below 0.8 is flagged,
    but for groups of under 30 devices before, of which it is chance.
    """
    out: Table = {"filter": [], "by": [], "group": []}
    kinds = ("", "_device_s")
    out |= {f"{name}{kind}": [] for kind in kinds for name in ("share_before", "share_after", "ratio", "flagged")}
    for by in GROUPS:
        called = _top(shares.groups[by])
        if set(called.values()) == {"unknown"}:
            continue
        for name, before, after in shares.steps():
            was, now = (tuple(_together(one, called) for one in shares.held(by, names)) for names in (before, after))
            for who in dict.fromkeys(called.values()):
                rows = [_fair(was[i], now[i], who, was[0][who]) for i in range(len(kinds))]
                for column, value in zip(out.values(), (name, by, who, *rows[0], *rows[1]), strict=True):
                    column.append(value)
    return out


def _fair(was: Mapping[str, int], now: Mapping[str, int], who: str, devices: int) -> tuple[float, float, float, int]:
    """(share before, share after, their ratio, whether it is flagged, which a group of few `devices` never is).

    NaN where nothing is left, or nothing was.
    """
    first, then = (one[who] / max(1, sum(one.values())) for one in (was, now))
    ratio = then / first if first and sum(now.values()) else float("nan")
    return first, then, ratio, int(ratio < UNFAIR and devices >= LEAST_DEVICES)


def _top(groups: Mapping[str, Counter[int]]) -> dict[str, str]:
    """What every group is called in a table: itself, or "other" for those that are not among the largest."""
    order = sorted(groups, key=lambda who: (-sum(groups[who].values()), who))
    return {who: who if i < MOST_GROUPS else "other" for i, who in enumerate(order)}


def _together(counted: Mapping[str, int], called: Mapping[str, str]) -> dict[str, int]:
    out = dict.fromkeys(called.values(), 0)
    for who, n in counted.items():
        out[called[who]] += n
    return out


def curve(starts: Counter[Any], ends: Counter[Any], bins: int) -> F64:
    """Mean number of clients in a session in each of `bins` spans of five minutes; exact."""
    alive, part = np.zeros(bins + 1, np.int64), np.zeros(bins + 1, np.int64)
    for sign, counted in ((1, starts), (-1, ends)):
        for (what, at), n in counted.items():
            if at < bins:
                (alive if what == "n" else part)[at + (what == "n")] += sign * n
    return (np.cumsum(alive)[:bins] * BIN_MS + part[:bins]) / BIN_MS


def folded(values: F64, first: int) -> F64:
    """A curve by five minutes as one mean week, `[2016]`, from Monday 0 h; `first`: its first span's place in the week.

    NaN where the log has nothing of that time of the week.
    """
    at = (first + np.arange(len(values))) % _WEEK_BINS
    times = np.bincount(at, minlength=_WEEK_BINS)
    with np.errstate(invalid="ignore"):
        return np.bincount(at, values, _WEEK_BINS) / np.where(times, times, np.nan)


def trough_over_peak(week: F64, hour: int = 12) -> float | None:
    """Smallest over largest of a weekly curve, each a mean of an hour (our choice: five minutes of few are noise)."""
    around = np.concatenate([week[-hour:], week, week[:hour]])
    smooth = np.convolve(around, np.ones(hour) / hour, "same")[hour:-hour]
    known = smooth[np.isfinite(smooth)]
    return float(known.min() / known.max()) if len(known) and known.max() > 0 else None


def weekly_table(week: F64, every: F64) -> Table:
    """`available` of each five minutes of the mean week, `share_of_peak`, and `logged`, whatever the criteria."""
    return {"t_s": np.arange(_WEEK_BINS) * (BIN_MS / 1000), "available": week, "share_of_peak": _of_peak(week),
            "logged": every}  # fmt: skip


def heat_table(week: F64) -> Table:
    """`share` of the peak, and mean `available`, by hour and weekday (0: Monday)."""
    mean = _means(week.reshape(168, -1))
    hours = np.arange(168)
    return {"hour": hours % 24, "weekday": hours // 24, "share": _of_peak(mean), "available": mean}


def _means(rows: F64) -> F64:
    known = np.isfinite(rows)
    with np.errstate(invalid="ignore"):
        return np.where(known, rows, 0.0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def _of_peak(values: F64) -> F64:
    peak = np.nanmax(values) if np.isfinite(values).any() else 0.0
    return values / peak if peak > 0 else np.where(np.isfinite(values), 0.0, np.nan)


class Lengths:
    """Usable time of the sessions kept, in tenths of a second."""

    def __init__(self, counted: Counter[Any]) -> None:
        self.tenths = np.array(sorted(counted), np.int64)
        self.counts = np.array([counted[one] for one in self.tenths.tolist()], np.int64)
        self.total = int(self.counts.sum())

    def quantile(self, q: float) -> float:
        """The smallest length that a share `q` of the sessions does not exceed; NaN where there is none."""
        if not self.total:
            return float("nan")
        at = int(np.searchsorted(np.cumsum(self.counts), np.ceil(q * self.total)))
        return float(self.tenths[min(at, len(self.tenths) - 1)]) / 10.0

    def at_least(self, seconds: float) -> float:
        """P(usable >= seconds); NaN where there is none."""
        above = int(self.counts[self.tenths >= int(np.ceil(round(seconds * 10, 6)))].sum())
        return above / self.total if self.total else float("nan")

    def table(self) -> Table:
        """`quantile`, `usable_s`."""
        return {"quantile": list(QUANTILES), "usable_s": [self.quantile(q) for q in QUANTILES]}

    def ccdf(self) -> Table:
        """`usable_s`, `share` of sessions at least so long: 61 lengths from 1 to 100,000 s, even in the logarithm."""
        seconds = np.round(10.0 ** np.linspace(0, 5, 61), 1)
        return {"usable_s": seconds, "share": [self.at_least(one) for one in seconds.tolist()]}


def eligible_values(shares: Shares, counts: Counts, joint: Joint | None) -> dict[str, Value]:
    """Shares that meet all criteria, with what the coins leave uncertain; `closed`: the expectation over coins.

    Device-seconds: 90 % by a normal approximation, of the chances' estimate and of the clients that do not tell, with
    the sessions of a client alike as they are found to be. Devices: from one coin for all of a client's sessions (low)
    to one for each (high), with the chances at their 5th and 95th percentile: the paper tosses one for each, by which
    nearly everybody meets the criteria once.
    """
    asked = shares.asked
    devices, seconds = shares.devices(asked), shares.seconds(asked)
    if joint is None or not joint.unknown:
        return {"eligible_share_devices": Value(devices, "share"), "eligible_share_device_s": Value(seconds, "share")}
    mean, variance = counts["heads"]["sure_ms"] / shares.ms, 0.0
    for where, ms in sorted(counts["cells"].items()):
        chance = joint.chances[where]
        mean += ms / shares.ms * chance.mean
        variance += (ms / shares.ms) ** 2 * chance.variance
    drawn = sum(counts["cells"].values()) / shares.ms
    between = drawn**2 * joint.clustered
    wide = _Z90 * sqrt(max(variance, between) + between * joint.known / joint.unknown)
    expected = {one: counts["expected"][one] / DEVICES / shares.clients for one in ("mean", "low", "high")}
    note = f"states of {joint.unknown / (joint.known + joint.unknown):.1%} of sessions are drawn"
    return {
        "eligible_share_devices": Value(
            devices, "share", expected["low"], expected["high"], closed=expected["mean"], note=note
        ),
        "eligible_share_device_s": Value(
            seconds, "share", max(0.0, mean - wide), min(1.0, mean + wide), closed=mean, note=note
        ),
    }
