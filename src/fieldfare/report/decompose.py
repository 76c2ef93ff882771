"""What a speed-up is made of: utilisation x communication x statistics, measured, at one target for all.

Here: pure functions from what a run did until it was at the target to factors that multiply to the ratio of times,
exactly; the time at which a target is crossed; medians and intervals over paired seeds. Not here: reading
(`read_nodes`), tables and pictures (`speedups`). Kept: a factor is read off the run's own events, none is assumed.

Until the target (T seconds) the devices of a run learn from N examples. At their own speed while they train, all of
them together could have learnt from R examples a second. A device that does not train waits, for *links* or for
*others*: from the message that ended the wait back to what made its sender send it, and so on, time in which a message
was on its way is a wait for links, and time in which somebody trained a wait for others (`links_s`). With devices
weighted by their speeds, let l be the share of time lost to links. Then::

    T = N / R  x  1 / (1 - l)  x  (1 - l) R T / N
        ideal     links           devices that wait for others

and the speed-up over a baseline is the product of three ratios, baseline over ours but for the second:

    statistics      N_b / N                                  examples needed to the target
    communication   (1 - l) / (1 - l_b)                      time not lost to links
    utilisation     [(1 - l_b) R_b T_b / N_b] / [(1 - l) R T / N]  x  R / R_b   time not lost to others' pace

R / R_b is 1 where the same devices train at the same speeds.

This is our definition. The usual reading, sum(p) / (K min p) for utilisation and (c + t_allreduce) / (c + t_ring / E)
for communication, is what it gives for a lock-step run against one without idle devices.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fieldfare.core import rng
from fieldfare.report.read_nodes import Nodes, absences, busy_s, steps_taken
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
    def trained(self) -> bool:
        """Whether anybody had trained by then, which it takes to tell what the time was spent on."""
        return self.examples > 0.0 and self.full_speed > 0.0 and self.seconds > 0.0

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
    """Seconds up to `until_s` in which each node was there, did not train, and waited for links, `[nodes]`.

    Cost: about 3 us for each message on the way back from the end of a wait to its beginning.
    """
    out, inboxes, away = np.zeros(len(nodes.names)), _inboxes(nodes), absences(nodes)
    trained = [nodes.trainings(node) for node in range(len(nodes.names))]
    spans = [(one["begun_s"].tolist(), one["ended_s"].tolist()) for one in trained]
    for node in nodes.placed:
        begun, ended = spans[node]
        for rank, a in enumerate(ended):
            over = rank + 1 == len(begun)  # nothing ended the last wait: what came last in it did not
            b = nodes.span_s if over else begun[rank + 1]
            if a >= until_s or b <= a:
                continue
            for begin, end in _without(a, b, away.get(node, [])):
                out[node] += _links_in(node, begin, end, until_s, inboxes, spans, over and end == b)
    return out


Inbox = tuple[list[float], list[int], list[float], list[int]]
"""What came to a node, in order of arrival: when, the message's number, when it was sent, and by whom."""
Spans = Sequence[tuple[list[float], list[float]]]


def _inboxes(nodes: Nodes) -> list[Inbox]:
    rows = nodes.messages
    here = np.flatnonzero(np.isfinite(rows["arrives_s"]))
    order = here[np.lexsort((here, rows["arrives_s"][here], rows["dst"][here]))]
    ends = np.searchsorted(rows["dst"][order], np.arange(len(nodes.names) + 1))
    return [
        (rows["arrives_s"][own].tolist(), own.tolist(), rows["sent_s"][own].tolist(), rows["src"][own].tolist())
        for own in (order[a:b] for a, b in pairwise(ends))
    ]


def _without(a: float, b: float, away: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The parts of (a, b) outside the absences, which are in order of time."""
    out = []
    for gone, back in away:
        if a < min(gone, b):
            out.append((a, min(gone, b)))
        a = max(a, min(back, b))
    return [*out, (a, b)] if a < b else out


def _links_in(
    node: int, a: float, b: float, until_s: float, inboxes: Sequence[Inbox], spans: Spans, over: bool
) -> float:  # fmt: skip
    """Seconds of the wait (a, b) of a node, up to `until_s`, in which what it waited for was on its way.

    Backwards from b: a node acts because a message came (of two causes the later, at the same moment the message, which
    has to be older than the one it caused), because a training ended, or because it waited long enough (a timer: time
    since then counts as links).
    """
    links, at, now, number = 0.0, node, b, 1 << 62
    while now > a:
        came, numbers, sent, sources = inboxes[at]
        place = bisect_right(came, now) - 1
        while place >= 0 and numbers[place] >= number:
            place -= 1
        arrived = came[place] if place >= 0 else -math.inf
        begun, ended = spans[at]
        done = bisect_right(ended, now) - 1
        trained = ended[done] if done >= 0 and (at != node or ended[done] > a) else -math.inf
        cause = max(arrived, trained)
        if cause <= a and at == node and now == b:
            return 0.0 if over else _clip(a, b, until_s)
        if cause < now and not (over and now == b):
            links += _clip(max(cause, a), now, until_s)
        if cause <= a:
            break
        if arrived >= trained:
            links += _clip(max(sent[place], a), arrived, until_s)
            at, now, number = sources[place], sent[place], numbers[place]
        elif begun[done] < trained:
            now = begun[done]
        else:
            break
    return links


def _clip(begin: float, end: float, until_s: float) -> float:
    return max(min(end, until_s) - begin, 0.0)


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
