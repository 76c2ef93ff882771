"""The sections of a study that compares methods at one target: who is there when, by how much sooner, and why.

Here: the panels and curves of a study (`config.json`) as sections. Not here: what factors are (`decompose`), drawing
(`plots_speedups`). Kept: the three factors of a row multiply to the speed-up beside them; a method that never came to
the target says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.report import page, plots_speedups, units
from fieldfare.report.decompose import (
    Course,
    Estimate,
    Factors,
    course,
    crossed_at,
    estimate,
    factors,
    median_of,
    paired,
    time_to,
)
from fieldfare.report.page import Section
from fieldfare.report.read import Run
from fieldfare.report.read_nodes import busy_s, read_nodes, traffic
from fieldfare.report.table import Floats, is_number
from fieldfare.store.nodes import MESSAGES, NODES, WORK


@dataclass(frozen=True)
class Told:
    """What the runs of one method did: by seed, the time to the target (inf: never), the final metric, the course."""

    label: str
    runs: Mapping[str, Run]
    times: Mapping[str, float]
    finals: Mapping[str, float]
    courses: Mapping[str, Course]
    idle: Floats
    bytes_s: Floats


def told_of(label: str, runs: Sequence[Run], metric: str, target: float) -> Told:
    """Read what a method's runs did until they were at `target`."""
    by_seed = {run.path.name: run for run in runs}
    times = {seed: time_to(run.table, metric, target) for seed, run in by_seed.items()}
    finals = {seed: last for seed, run in by_seed.items() if (last := run.table.last(metric)) is not None}
    courses, idle, rates = {}, [], []
    for seed, run in by_seed.items():
        found = _spent(run.path, _stamp(run.path), run.table.total("virtual_s"), times[seed], batch_of(run))
        if found is not None:
            idle.append(found[1])
            rates.append(found[2])
            if found[0] is not None:
                courses[seed] = found[0]
    none = np.empty(0)
    return Told(label, by_seed, times, finals, courses, np.median(idle, axis=0) if idle else none,
                np.median(rates, axis=0) if rates else none)  # fmt: skip


@lru_cache(maxsize=4096)
def _spent(
    path: Path, stamp: tuple[int, ...], span_s: float | None, time_s: float, batch: float
) -> tuple[Course | None, Floats, Floats] | None:
    """(course to the target, idle shares until then, bytes sent per second), remembered: runs stand in several panels.

    A run that was never there has no course, and idle shares of all of it.
    """
    nodes = read_nodes(path, span_s)
    if nodes is None or not nodes.placed:
        return None
    until = time_s if math.isfinite(time_s) else nodes.span_s
    moved = traffic(nodes)
    sent = (moved.model_out + moved.control_out)[nodes.placed] / max(nodes.span_s, 1e-300)
    there = course(nodes, until, batch) if math.isfinite(time_s) else None
    return there, 1.0 - busy_s(nodes, until)[nodes.placed] / max(until, 1e-300), sent


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when the records of a run's nodes do."""
    files = (path / name for name in (NODES, MESSAGES, WORK))
    return tuple(n for file in files if file.is_file() for n in (file.stat().st_mtime_ns, file.stat().st_size))


def batch_of(run: Run) -> float:
    """Examples in a local step, as the job says; 1 where it does not."""
    training = run.job.get("training")
    batch = training.get("batch_size") if isinstance(training, Mapping) else None
    return float(batch) if is_number(batch) and batch > 0 else 1.0


@dataclass(frozen=True)
class Gain:
    """How much sooner a method is at the target than the baseline: over paired seeds, and by its factors.

    `mean`: the geometric mean over the seeds in which both got there, and its `factors`, which multiply to it.
    """

    speedup: Estimate
    factors: Factors | None
    n: int


def gain(base: Told, ours: Told) -> Gain:
    """The speed-up of `ours` over `base`, baseline's time over ours, seed by seed."""
    ratios = paired(base.times, ours.times)
    pairs = [(base.courses[seed], ours.courses[seed]) for seed in base.courses if seed in ours.courses]
    both = [factors(a, b) for a, b in pairs if a.trained and b.trained]
    both = [one for one in both if math.isfinite(one.speedup) and one.speedup > 0]
    whole = None
    if both:
        names = ("utilisation", "communication", "statistics")
        whole = Factors(*(math.exp(math.fsum(math.log(getattr(f, n)) for f in both) / len(both)) for n in names))
    return Gain(estimate(list(ratios.values())), whole, len(both))


def speedup_sections(run: Run, *, draw: bool) -> list[Section]:
    """Give a section for every panel and every curve of a study."""
    panels, curves = (run.config.get(key) for key in ("panels", "curves"))
    found = [_panel(run, one, rank, draw=draw) for rank, one in enumerate(_listed(panels))]
    found += [_curve(run, one, rank, draw=draw) for rank, one in enumerate(_listed(curves))]
    return [one for one in found if one is not None]


def _listed(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _panel(run: Run, panel: Mapping[str, Any], rank: int, *, draw: bool) -> Section | None:
    metric, target = str(panel.get("metric", "accuracy")), float(panel["target"])
    found = [told_of(label, run.arms[arm], metric, target) for label, arm in panel["arms"].items() if arm in run.arms]
    if not found:
        return None
    base = next((one for one in found if one.label == panel.get("baseline")), None)
    gains = {one.label: gain(base, one) for one in found if base is not None}
    level = plots_speedups.level(metric, target)
    head = [("method", False), ("seeds", True), (f"time to {level}", True)]
    if base is not None:
        head += [(f"speed-up over {base.label}", True), ("= utilisation", True), ("× communication", True),
                 ("× statistics", True)]  # fmt: skip
    head += [(f"final {units.short_label(metric)}", True), ("idle, each device [%]", True), ("sent [kB/s]", True)]
    rows = []
    for at, one in enumerate(found):
        cells = [_named(at, one.label), page.cell(str(len(one.runs)), number=True), _time_cell(one)]
        if base is not None:
            cells += _gain_cells(gains[one.label], is_base=one is base)
        cells += [_final_cell(metric, one), _each_cell(one.idle, lambda v: f"{100 * v:.0f}"),
                  _each_cell(one.bytes_s, lambda v: units.number(v / 1e3, 2))]  # fmt: skip
        rows.append(cells)
    body = page.table(head, rows, kind="values", caption=str(panel["title"]))
    if draw:
        drawn = [plots_speedups.accuracy(found, metric, target, rank),
                 plots_speedups.waterfall(gains, base.label, rank) if base is not None else None]  # fmt: skip
        body += page.GAP + page.pictures(drawn)
    lead = str(panel.get("note") or "") or (
        "Times are medians over seeds with their range; a crossing is taken on the line between two evaluations. "
        "Speed-ups: the median over paired seeds, and its 95 % interval; beside them their geometric mean as the "
        "product of three factors."
    )
    return Section(f"panel-{rank}", str(panel["title"]), lead, body)


def _named(rank: int, label: str) -> str:
    from fieldfare.report.arms import named

    return named(rank, label)


def _time_cell(one: Told) -> str:
    values = sorted(one.times.values())
    middle = median_of(values)
    there = [value for value in values if math.isfinite(value)]
    if not there:
        return page.cell("never", number=True)
    never = f"; {len(values) - len(there)} never" if len(there) < len(values) else ""
    under = (units.span("virtual_s", there[0], there[-1]) if there[-1] > there[0] else "") + never
    return page.cell(
        units.duration(middle) if math.isfinite(middle) else "never", number=True, under=under.lstrip("; ")
    )


def _gain_cells(gain: Gain, *, is_base: bool) -> list[str]:
    if is_base:
        return [page.cell(units.DASH, number=True) for _ in range(4)]
    e, f = gain.speedup, gain.factors
    if not e.n or e.median == 0.0 or not math.isfinite(e.median):
        words = units.DASH if not e.n else "never" if e.median == 0.0 else "only it"
        return [page.cell(words, number=True)] + [page.cell(units.DASH, number=True) for _ in range(3)]
    ends = f"{_times(e.low)} to {_times(e.high)}"
    cells = [page.cell(f"{_times(e.median)}", number=True, under=ends)]
    if f is None:
        return cells + [page.cell(units.DASH, number=True) for _ in range(3)]
    told = (f.utilisation, f.communication, f.statistics)
    unders = (f"of {_times(f.speedup)}", "", f"{gain.n} pair{'' if gain.n == 1 else 's'}")
    return cells + [
        page.cell(f"{value:.2f}", number=True, under=under) for value, under in zip(told, unders, strict=True)
    ]


def _times(value: float) -> str:
    return f"{value:.2f} ×" if math.isfinite(value) else "∞"


def _final_cell(metric: str, one: Told) -> str:
    values = sorted(one.finals.values())
    if not values:
        return page.cell(units.DASH, number=True)
    under = units.span(metric, values[0], values[-1]) if values[-1] > values[0] else ""
    return page.cell(units.measured(metric, median_of(values)), number=True, under=under)


def _each_cell(values: Floats, write: Any) -> str:
    if not values.size:
        return page.cell(units.DASH, number=True)
    if values.size > 6:
        text = f"{write(float(values.min()))}–{write(float(values.max()))}"
    else:
        text = " · ".join(write(float(value)) for value in values)
    return page.cell(text, number=True)


@dataclass(frozen=True)
class Point:
    """One place of a curve: its x, and the gain of one arm over another there."""

    x: float
    gain: Gain


def curve_points(run: Run, curve: Mapping[str, Any]) -> list[Point]:
    """The gains along a curve, in order of x; places whose arms are missing are left out."""
    metric, target = str(curve.get("metric", "accuracy")), float(curve["target"])
    out = []
    for x, base, ours in sorted(curve["points"], key=lambda point: float(point[0])):
        if base in run.arms and ours in run.arms:
            pair = (told_of(arm, run.arms[arm], metric, target) for arm in (base, ours))
            out.append(Point(float(x), gain(*pair)))
    return out


def _curve(run: Run, curve: Mapping[str, Any], rank: int, *, draw: bool) -> Section | None:
    points = curve_points(run, curve)
    if not points:
        return None
    levels = {str(name): float(value) for name, value in (curve.get("levels") or {}).items()}
    words = str(curve.get("x", "x"))
    head = [(words, True), ("seeds", True), ("speed-up", True), ("= utilisation", True), ("× communication", True),
            ("× statistics", True)]  # fmt: skip
    rows = [
        [page.cell(units.number(p.x), number=True), page.cell(str(p.gain.speedup.n), number=True),
         *_gain_cells(p.gain, is_base=False)]
        for p in points
    ]  # fmt: skip
    body = ""
    for name, level in levels.items():
        at = crossed_at([p.x for p in points], [p.gain.speedup.median for p in points], level)
        said = f"at {units.number(at, 3)}" if math.isfinite(at) else "nowhere on this curve"
        body += f"<p>{page.escape(f'{name}: {level:g} × is reached {said}.')}</p>"
    body = page.table(head, rows, caption=str(curve["title"])) + body
    if draw:
        body += page.GAP + page.pictures([plots_speedups.curve(points, words, levels, str(curve["title"]), rank)])
    return Section(f"curve-{rank}", str(curve["title"]), str(curve.get("note") or ""), body)
