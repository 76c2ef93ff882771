"""Measures of claims about runs of several nodes: factors of a speed-up, idle time, bytes, draws, restarts, a curve.

Here: from the folders of an arm's runs to one number; `Missing` says why there is none. Not here: claims files and
verdicts (`claims`). Kept: a number comes from the tables of the runs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.report import units
from fieldfare.report.decompose import crossed_at, estimate, paired
from fieldfare.report.draws import draws_of
from fieldfare.report.read import read_run
from fieldfare.report.read_nodes import Nodes, idle_shares, read_nodes
from fieldfare.report.speedups import gain, told_of
from fieldfare.report.table import load, read_table

TAKEN = ("median", "low", "high")
FACTORS = ("speedup", "utilisation", "communication", "statistics")
Folders = Callable[[str], Sequence[Path]]


class Missing(Exception):
    """A measure cannot be taken; the text says why, for the claim's line."""


def taken(values: Mapping[str, float], take: str, what: str) -> float:
    """The median over seeds or a limit of its 95 % interval."""
    if not values:
        raise Missing(f"there is no seed in which {what} can be told")
    found = getattr(estimate(list(values.values())), take)
    if not math.isfinite(found):
        raise Missing(f"{what} is not reached with enough seeds")
    return float(found)


def pair(of: Mapping[str, float], to: Mapping[str, float], measure: Mapping[str, Any], what: str) -> float:
    """A ratio or difference of two measures, seed by seed."""
    ratio = measure.get("how", "ratio") == "ratio"
    return taken(paired(of, to, ratio=ratio), measure.get("take", "median"), what)


def factor(measure: Mapping[str, Any], folders: Folders) -> float:
    """A factor of the speed-up of `arm` over `over` at the target: the geometric mean over paired seeds."""
    metric, level = str(measure["metric"]), float(measure["threshold"])
    base, ours = (
        told_of(arm, [read_run(path) for path in folders(arm)], metric, level)
        for arm in (str(measure["over"]), str(measure["arm"]))
    )
    found = gain(base, ours).factors
    if found is None:
        raise Missing(f"{base.label} and {ours.label} were never both at the target")
    return float(getattr(found, str(measure["factor"])))


def curve(measure: Mapping[str, Any], folders: Folders) -> float:
    """Where the speed-up along `points` (x, slower arm, faster arm) comes to `level`."""
    metric, level = str(measure["metric"]), float(measure["threshold"])
    x, y = [], []
    for at, slow, fast in sorted(measure["points"], key=lambda point: float(point[0])):
        told = [told_of(arm, [read_run(path) for path in folders(arm)], metric, level) for arm in (slow, fast)]
        x.append(float(at))
        y.append(gain(*told).speedup.median)
    found = crossed_at(x, y, float(measure["level"]))
    if not math.isfinite(found):
        raise Missing(f"the curve from {units.number(y[0], 3)} to {units.number(y[-1], 3)} never comes to it")
    return found


def idle(measure: Mapping[str, Any], folders: Folders) -> float:
    """The idle share of one device, or the mean over all: the median over seeds."""
    values = []
    for nodes in _each(str(measure["arm"]), folders):
        shares = idle_shares(nodes)
        at = measure.get("device")
        if at is not None and not 0 <= int(at) < len(shares):
            raise Missing(f"{measure['arm']} has {len(shares)} devices and no device {at}")
        values.append(float(shares.mean() if at is None else shares[int(at)]))
    return float(np.median(values))


def bytes_sent(measure: Mapping[str, Any], folders: Folders) -> float:
    """Bytes of all messages of a kind in a cycle: the median over cycles that had any, then over seeds.

    The median, for frames are sent again where one was missed.
    """
    values = []
    for nodes in _each(str(measure["arm"]), folders):
        rows = nodes.of_kind(str(measure["kind"]))
        if not len(rows):
            raise Missing(f"{measure['arm']} sent no {measure['kind']}")
        _, where = np.unique(rows["cycle"], return_inverse=True)
        values.append(float(np.median(np.bincount(where.ravel(), rows["bytes"]))))
    return float(np.median(values))


def draws(measure: Mapping[str, Any], folders: Folders) -> float:
    """The probability of draws as far from their chances or further, all seeds together."""
    said: list[Mapping[str, Any]] = []
    for rank, nodes in enumerate(_each(str(measure["arm"]), folders)):
        said += [{**one, "cycle": one["cycle"] + 10_000_000 * rank} for one in nodes.said if "chance" in one]
    found = draws_of(said)
    if found is None:
        raise Missing(f"{measure['arm']} draws nobody by chance")
    return found.p


def restarts(measure: Mapping[str, Any], folders: Folders) -> float:
    """Cycles whose ring was begun again, came to nothing or had nobody to form it: of the run that had most."""
    most = 0
    for nodes in _each(str(measure["arm"]), folders):
        if not any("members" in one for one in nodes.said):
            raise Missing(f"{measure['arm']} forms no rings")
        hurt = {one["cycle"] for one in nodes.said if one.get("epoch", 0) or not one.get("members", True)}
        most = max(most, len(hurt))
    return float(most)


def _each(arm: str, folders: Folders) -> list[Nodes]:
    """The nodes of an arm's runs."""
    found = []
    for path in folders(arm):
        nodes = read_nodes(path, read_table(path).total("virtual_s"))
        if nodes is None:
            raise Missing(f"{arm} keeps no nodes: {path.name} is a run of one")
        if not load(path / "summary.json"):
            raise Missing(f"{arm}/{path.name} has not ended")
        found.append(nodes)
    return found


MEASURES: Mapping[str, Callable[[Mapping[str, Any], Folders], float]] = {
    "factor": factor, "curve": curve, "idle": idle, "bytes_sent": bytes_sent, "draws": draws,
    "restarts": restarts,
}  # fmt: skip


def fault(measure: Mapping[str, Any]) -> str | None:
    """What is wrong with a measure of this file, in words; None where it can be taken."""
    kind = measure["measure"]
    if kind == "factor" and measure["factor"] not in FACTORS:
        return f"factor is {measure['factor']!r}, one of {', '.join(FACTORS)} is needed"
    if kind == "curve":
        points = measure["points"]
        fine = isinstance(points, list) and len(points) > 1
        if not fine or not all(isinstance(p, list) and len(p) == 3 and isinstance(p[1], str) for p in points):
            return "points is no list of [x, slower arm, faster arm], of which at least two are needed"
    return None


def in_words(measure: Mapping[str, Any]) -> str:
    """Say what a measure of this file measures."""
    arm, kind = measure.get("arm"), measure["measure"]
    if kind == "factor":
        name = "speed-up" if measure["factor"] == "speedup" else f"{measure['factor']} in the speed-up"
        level = units.measured(str(measure["metric"]), float(measure["threshold"]))
        return f"{name} of {arm} over {measure['over']} to {units.short_label(str(measure['metric']))} {level}"
    if kind == "curve":
        slow, fast = measure["points"][0][1:]
        return f"where the speed-up of {fast} … over {slow} … is {measure['level']} ×"
    if kind == "idle":
        whose = "its devices" if measure.get("device") is None else f"device {measure['device']}"
        return f"idle share of {whose}, {arm}"
    if kind == "bytes_sent":
        return f"bytes of {measure['kind']} messages in a cycle, {arm}"
    if kind == "restarts":
        return f"rings begun again or called off, {arm}"
    return f"probability of draws as far from their chances, {arm}"
