"""What a speed-up is made of: utilisation x communication x statistics, measured, at one target for all.

Here: pure functions from what a run did until it was at the target to factors that multiply to the ratio of times,
exactly; the time at which a target is crossed; medians and intervals over paired seeds. Not here: reading
(`read_nodes`), tables and pictures (`speedups`). Kept: a factor is read off the run's own events, none is assumed.

Until the target (T seconds) the devices of a run learn from N examples. At their own speed while they train, all of
them together could have learnt from R examples a second. A device that does not train waits: for *others*, as long as
one that takes part in the same exchange still trains for it, else for *links*. With devices weighted by their speeds,
let l be the share of time lost to links. Then::

    T = N / R  x  1 / (1 - l)  x  (1 - l) R T / N
        ideal     links           devices that wait for others

and the speed-up over a baseline is the product of three ratios, baseline over ours but for the second:

    statistics      N_b / N                                  examples needed to the target
    communication   (1 - l) / (1 - l_b)                      time not lost to links
    utilisation     [(1 - l_b) R_b T_b / N_b] / [(1 - l) R T / N]   what full speed would take of the rest

This is our definition. The usual reading, sum(p) / (K min p) for utilisation and (c + t_allreduce) / (c + t_ring / E)
for communication, is what it gives for a lock-step run against one without idle devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fieldfare.core import rng
from fieldfare.report.read_nodes import Ints, Nodes, absences, busy_s, steps_taken
from fieldfare.report.table import Floats, Table

RESAMPLES = 4000
"""Resamples behind an interval."""


@dataclass(frozen=True)
class Course:
    """A run up to the target: `seconds`, `examples` learnt from, `full_speed` (examples per second of all devices at
    work), `links` (share of device time, weighted by speed, lost to links)."""

    seconds: float
    examples: float
    full_speed: float
    links: float

    @property
    def utilisation(self) -> float:
        """The share of full speed in the time that links left over."""
        return self.examples / (self.full_speed * self.seconds * (1.0 - self.links))


@dataclass(frozen=True)
class Factors:
    """A speed-up and its three factors, whose product it is."""

    utilisation: float
    communication: float
    statistics: float

    @property
    def speedup(self) -> float:
        return self.utilisation * self.communication * self.statistics


def factors(base: Course, ours: Course) -> Factors:
    """What makes `ours` faster than `base` (or slower: below 1); the product is `base.seconds / ours.seconds`.

    >>> lock_step, free = Course(3.0, 4.0, 8 / 3, 0.0), Course(1.5, 4.0, 8 / 3, 0.0)
    >>> factors(lock_step, free)
    Factors(utilisation=2.0, communication=1.0, statistics=1.0)
    """
    return Factors(
        ours.utilisation / base.utilisation * ours.full_speed / base.full_speed,
        (1.0 - ours.links) / (1.0 - base.links),
        base.examples / ours.examples,
    )


def course(nodes: Nodes, until_s: float, batch: float = 1.0) -> Course:
    """What a run did in its first `until_s` seconds, with `batch` examples in a step.

    Speeds are measured while devices train, so the identity T = N / (R x shares) is exact. Training that was thrown
    away (warm-up, sessions cut short) counts as examples: it shows under statistics.
    """
    mine = nodes.placed
    busy, examples = busy_s(nodes, until_s)[mine], steps_taken(nodes, until_s)[mine] * batch
    speed = np.divide(examples, busy, out=np.zeros(len(mine)), where=busy > 0)
    full = float(speed.sum())
    if not full > 0.0 or not until_s > 0.0:
        return Course(until_s, float(examples.sum()), math.nan, math.nan)
    links = links_s(nodes, until_s)[mine]
    return Course(until_s, float(examples.sum()), full, float((speed * links).sum() / (full * until_s)))


def links_s(nodes: Nodes, until_s: float) -> Floats:
    """Seconds up to `until_s` in which each node was there, did not train and waited for no other, `[nodes]`.

    After its training for a cycle a device waits for others until the last of those that exchange in the cycle (those
    frames went between; all who trained for it, where there are no frames) has trained, and for links from then on.
    """
    work, out = nodes.work, np.zeros(len(nodes.names))
    ready, away = _ready(nodes), absences(nodes)
    for node in nodes.placed:
        mine = work[work["node"] == node]
        if not len(mine):
            continue
        ends = np.minimum(np.append(mine["begun_s"][1:], until_s), until_s)
        waits = np.array([ready.get(int(cycle), 0.0) for cycle in mine["cycle"]])
        begins = np.maximum(np.minimum(mine["ended_s"], until_s), waits)
        spans = np.maximum(ends - begins, 0.0)
        for gone, back in away.get(node, []):
            spans -= np.clip(np.minimum(ends, back) - np.maximum(begins, gone), 0.0, spans)
        out[node] = spans.sum()
    return out


def _ready(nodes: Nodes) -> dict[int, float]:
    """When the last of those that exchange in a cycle had trained for it, by cycle."""
    work, frames = nodes.work, nodes.frames()
    cycles = work["cycle"].astype(np.int64)
    count = len(nodes.names)
    keys = np.unique(np.concatenate([frames["cycle"].astype(np.int64) * count + frames[end] for end in ("src", "dst")]))
    ringed: Ints = np.unique(keys // count)
    member = np.isin(cycles * count + work["node"], keys) | ~np.isin(cycles, ringed)
    out: dict[int, float] = {}
    for cycle, end in zip(cycles[member].tolist(), work["ended_s"][member].tolist(), strict=True):
        out[cycle] = max(out.get(cycle, 0.0), end)
    return out


def crossing(x: Floats, y: Floats, level: float, *, lower: bool = False) -> float:
    """Where `y` `[n]` first comes to `level`, on the straight line between the two points around it; inf if never.

    `lower`: it comes down to the level. At the first point already: that point.

    >>> crossing(np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.5, 1.0]), 0.75)
    2.5
    """
    reached = np.flatnonzero(y <= level if lower else y >= level)
    if not reached.size:
        return math.inf
    at = int(reached[0])
    if at == 0:
        return float(x[0])
    (x0, x1), (y0, y1) = x[at - 1 : at + 1].tolist(), y[at - 1 : at + 1].tolist()
    return float(min(max(x0 + (level - y0) / (y1 - y0) * (x1 - x0), x0), x1))


def time_to(table: Table, metric: str, level: float, axis: str = "virtual_s") -> float:
    """Where on `axis` a run crosses `level` of `metric` (`crossing`); inf if never."""
    from fieldfare.report.units import lower_is_better

    x, y = table.series(metric, axis)
    return crossing(x, y, level, lower=lower_is_better(metric)) if x.size else math.inf


@dataclass(frozen=True)
class Estimate:
    """A median over seeds with the limits of its 95 % interval, from `n` values."""

    median: float
    low: float
    high: float
    n: int


def median_of(values: Sequence[float]) -> float:
    """The median; an infinite value (never reached) sorts last, so it stands while more than half are finite.

    >>> median_of([1.0, 2.0, math.inf]), median_of([1.0, math.inf])
    (2.0, inf)
    """
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return 0.5 * low + 0.5 * high if low < high else low


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """The median of `values` and its percentile-bootstrap interval (Efron, 1979), from a fixed stream of resamples.

    With few seeds the limits are close to the smallest and the largest value, as they should be.

    >>> estimate([1.0, 2.0, 3.0])
    Estimate(median=2.0, low=1.0, high=3.0, n=3)
    """
    n = len(values)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    ordered = np.sort(np.asarray(values, np.float64))
    keys = np.full(RESAMPLES * n, rng.derive(0, "report", "bootstrap"), np.uint64)
    drawn = (rng.uniforms(keys, np.arange(RESAMPLES * n)) * n).astype(np.int64).reshape(RESAMPLES, n)
    ranks = np.sort(np.minimum(drawn, n - 1), axis=1)  # of sorted values, so a sorted row of ranks is a sorted sample
    low, high = ordered[ranks[:, (n - 1) // 2]], ordered[ranks[:, n // 2]]
    medians = np.sort(np.where(low < high, 0.5 * low + 0.5 * high, low))
    tail = (1.0 - level) / 2.0
    ends = [min(max(math.ceil(q * RESAMPLES) - 1, 0), RESAMPLES - 1) for q in (tail, 1.0 - tail)]
    return Estimate(median_of(ordered.tolist()), float(medians[ends[0]]), float(medians[ends[1]]), n)


def paired(of: Mapping[str, float], to: Mapping[str, float], *, ratio: bool = True) -> dict[str, float]:
    """`of` over `to` (or minus) for every seed both have; a seed neither of which got there says nothing.

    >>> paired({"0": 2.0, "1": math.inf}, {"0": 4.0, "1": 1.0, "2": 5.0})
    {'0': 0.5, '1': inf}
    """
    out: dict[str, float] = {}
    for seed, value in of.items():
        other = to.get(seed)
        if other is None or (math.isinf(value) and math.isinf(other)) or (ratio and other == 0.0):
            continue
        out[seed] = value / other if ratio else value - other
    return out


def crossed_at(x: Sequence[float], y: Sequence[float], level: float) -> float:
    """Where a curve through points in order of `x` first comes to `level`, straight between points; inf if never.

    Points that are not finite (one of two arms never came to its target there) are left out.

    >>> crossed_at([0.0, 2.0, 4.0], [1.0, 3.0, 5.0], 4.0), crossed_at([0.0, 1.0], [math.inf, 1.0], 4.0)
    (3.0, inf)
    """
    kept = np.isfinite(y)
    return crossing(np.asarray(x, np.float64)[kept], np.asarray(y, np.float64)[kept], level)
