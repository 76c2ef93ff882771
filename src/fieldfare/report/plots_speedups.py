"""Pictures of a study that compares methods at one target: learning against time, factors, gains along a curve.

Here: from what `speedups` has read to a `Picture`. Call them inside `style.drawing`. Not here: tables (`speedups`).
Kept: a method has one colour on a page; factors of a picture multiply to the gain beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldfare.report import style, units
from fieldfare.report.plots import metric_axis, round_axis
from fieldfare.report.plots_arms import aligned, look
from fieldfare.report.plots_tasks import legend
from fieldfare.report.style import Label, Picture, canvas, label_ends, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fieldfare.report.speedups import Gain, Point, Told

FACTORS = (("utilisation", style.BLUE), ("communication", style.PURPLE), ("statistics", style.GREEN))


def accuracy(found: Sequence[Told], metric: str, target: float, rank: int) -> Picture | None:
    """Draw `metric` against virtual time, the median over seeds and their range, and the target."""
    lines = [aligned([run.table for run in one.runs.values()], metric, "virtual_s") for one in found]
    drawn = [(at, one, line) for at, (one, line) in enumerate(zip(found, lines, strict=True)) if line is not None]
    if not drawn:
        return None
    ends = [float(line[0][-1]) for _, _, line in drawn]
    slowest = max([t for _, one, _ in drawn for t in one.times.values() if math.isfinite(t)], default=max(ends))
    until = min(max(ends), 1.6 * slowest)
    scale = units.scale_of("virtual_s", until)
    names = [style.shorten(one.label) for _, one, _ in drawn]
    figure, axes = canvas(width=11.4, height=3.6, right=style.room(names))
    words: list[Label] = []
    shown: list[float] = [target]
    for (at, one, (x, middle, low, high)), name in zip(drawn, names, strict=True):
        colour, dash = look(at)
        kept = x <= until
        if not kept.any():
            continue
        if len(one.runs) > 1:
            axes.fill_between(x / scale.divisor, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(x / scale.divisor, middle, color=colour, linestyle=style.DASHES[dash], linewidth=1.5)
        words.append(Label(float(x[kept][-1]) / scale.divisor, float(middle[kept][-1]), name, colour))
        shown += [float(high[kept].max()), max(float(middle[kept].min()), target - 0.25)]
    axes.axhline(target, color=style.INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    metric_axis(axes, metric, np.array(shown))
    round_axis(axes, "virtual_s", np.array([0.0, until / scale.divisor]))
    axes.set_xlim(0, until / scale.divisor)
    axes.set_xlabel(f"virtual time [{scale.unit}]")
    axes.set_title(units.label(metric))
    label_ends(axes, words)
    return picture(
        figure, name=f"panel-{rank}-accuracy", title=f"{units.short_label(metric).capitalize()} against virtual time",
        note="Lines are medians over seeds, bands reach from the lowest to the highest; dotted: the target, "
        f"{level(metric, target)}.",
        alt="Time to the target: " + "; ".join(f"{one.label} {_median(one)}" for one in found) + ".", wide=True,
        marks=sum(4 * line[0].size for _, _, line in drawn),
    )  # fmt: skip


def waterfall(gains: Mapping[str, Gain], base: str, rank: int) -> Picture | None:
    """Draw how the factors of every method multiply to its speed-up, from 1 on, on a logarithmic axis."""
    rows = {label: one for label, one in gains.items() if label != base and one.factors is not None}
    if not rows:
        return None
    names = [style.shorten(label) for label in rows]
    figure, axes = canvas(width=11.4, height=0.95 + 0.46 * len(rows), left=0.2 + style.room(names), right=0.75)
    ends = [1.0]
    for row, one in enumerate(rows.values()):
        assert one.factors is not None
        at = 1.0
        for place, (name, colour) in zip((-0.24, 0.0, 0.24), FACTORS, strict=True):
            to = at * float(getattr(one.factors, name))
            axes.barh(row + place, to - at, left=at, height=0.22, color=colour, linewidth=0)
            axes.plot([to, to], [row + place - 0.11, row + place + 0.35], color=style.GREY, linewidth=0.7)
            at = to
            ends.append(at)
        low, high = max(one.speedup.low, 1e-3), min(one.speedup.high, 1e3)
        axes.plot([low, high], [row + 0.38] * 2, color=style.INK, linewidth=1.2)
        axes.plot([one.speedup.median], [row + 0.38], marker="D", markersize=4.6, color=style.INK)
        ends += [low, high]
        axes.text(1.01, row, f"{one.speedup.median:.2f} ×", transform=axes.get_yaxis_transform(), va="center_baseline",
                  color=style.INK, fontsize=8.5)  # fmt: skip
    axes.axvline(1.0, color=style.INK, linewidth=0.9)
    _log_axis(axes, "x", min(ends), max(ends))
    axes.set_ylim(len(rows) - 0.4, -0.55)
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"times as fast as {base}")
    legend(axes, [*FACTORS, ("median and 95 % interval", style.INK)])
    told = []
    for label, one in rows.items():
        assert one.factors is not None
        f = one.factors
        told.append(f"{label} {f.speedup:.2f} = {f.utilisation:.2f} × {f.communication:.2f} × {f.statistics:.2f}")
    return picture(
        figure, name=f"panel-{rank}-factors", title="What a speed-up is made of", wide=True,
        note="Each bar begins where the one above ended; the last ends at the geometric mean over seeds. "
        "Right of the line is sooner at the target than " + base + ".",
        alt="; ".join(told) + ".",
    )  # fmt: skip


def curve(points: Sequence[Point], words: str, levels: Mapping[str, float], title: str, rank: int) -> Picture | None:
    """Draw a gain along x with its interval, its factors, and where it comes to the levels."""
    from fieldfare.report.decompose import crossed_at

    kept = [
        p for p in points if p.gain.speedup.n and math.isfinite(p.gain.speedup.median) and p.gain.speedup.median > 0
    ]
    if len(kept) < 2:
        return None
    x = np.array([p.x for p in kept])
    middle = [p.gain.speedup.median for p in kept]
    low = [max(p.gain.speedup.low, 1e-3) for p in kept]
    high = [min(p.gain.speedup.high, 1e3) for p in kept]
    names = ["speed-up", *(name for name, _ in FACTORS)]
    figure, axes = canvas(width=11.4, height=3.6, right=style.room(names))
    ends = [Label(float(x[-1]), middle[-1], "speed-up", style.INK)]
    shown = [*low, *high, *levels.values(), 1.0]
    for name, colour in FACTORS:
        told = [(p.x, float(getattr(p.gain.factors, name))) for p in kept if p.gain.factors is not None]
        if len(told) > 1:
            axes.plot(*zip(*told, strict=True), color=colour, linewidth=1.3, linestyle=style.DASHES[1])
            ends.append(Label(told[-1][0], told[-1][1], name, colour))
            shown += [value for _, value in told]
    axes.fill_between(x, low, high, color=style.GREY, alpha=0.18, linewidth=0)
    axes.plot(x, middle, color=style.INK, linewidth=1.9, marker="o", markersize=4.0)
    said = []
    for name, level in levels.items():
        axes.axhline(level, color=style.VERMILION, linewidth=1.0, linestyle=(0, (2, 2)))
        at = crossed_at(x.tolist(), middle, level)
        text = f"{name}: {level:g} ×" + (f" at {units.number(at, 3)}" if math.isfinite(at) else ", not reached")
        said.append(text)
        if math.isfinite(at):
            axes.plot([at], [level], marker="o", markersize=7, markerfacecolor=style.SURFACE, markeredgewidth=1.4,
                      markeredgecolor=style.VERMILION, zorder=5)  # fmt: skip
        axes.annotate(text, (0.012, level), xycoords=("axes fraction", "data"), xytext=(0, 3), va="bottom",
                      textcoords="offset points", color=style.darker(style.VERMILION), fontsize=8.5)  # fmt: skip
    axes.set_xlim(float(x[0]) - 0.02 * float(x[-1] - x[0]), float(x[-1]) + 0.02 * float(x[-1] - x[0]))
    _log_axis(axes, "y", min(shown), max(shown))
    axes.set_xlabel(words)
    axes.set_title("times as fast")
    label_ends(axes, ends)
    return picture(
        figure, name=f"curve-{rank}", title=title, wide=True,
        note="The line is the median over paired seeds, the band its 95 % interval; dashed are its factors. "
        + "; ".join(said) + ("." if said else ""),
        alt=f"{title}: " + ", ".join(f"{b:.2f} at {units.number(a)}" for a, b in zip(x.tolist(), middle, strict=True))
        + ".",
    )  # fmt: skip


def _log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(low, 0.95) / 1.08, max(high, 1.05) * 1.08
    steps: list[Any] = [
        0.01,
        0.02,
        0.05,
        0.1,
        0.2,
        0.3,
        0.5,
        0.7,
        1,
        1.5,
        2,
        3,
        4,
        5,
        7,
        10,
        15,
        20,
        30,
        50,
        100,
        200,
        500,
    ]
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(FixedLocator([one for one in steps if low <= one <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ×"))
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)


def level(metric: str, value: float) -> str:
    """A target in words.

    >>> level("accuracy", 0.95)
    '95 %'
    """
    return f"{100 * value:g} %" if units.unit_of(metric) == "share" else units.measured(metric, value)


def _median(one: Told) -> str:
    from fieldfare.report.decompose import median_of

    middle = median_of(list(one.times.values()))
    return units.duration(middle) if math.isfinite(middle) else "never"
