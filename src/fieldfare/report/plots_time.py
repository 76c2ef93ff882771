"""Pictures of a run along its virtual time: what learning cost, how many tasks were at work, who was available.

Here: functions from a `Table` or a `Work` to a `Picture`, None when there is nothing to draw. Call them inside
`style.drawing`. Not here: how tasks ended and whose they were (`plots_tasks`). Kept: a curve stands on stored numbers
only; time at work is a mean over each stretch of time, exact to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fieldfare.report import style, units
from fieldfare.report.plots import Line, axis_scale, metric_axis, round_axis, short
from fieldfare.report.read_tasks import Work
from fieldfare.report.style import Label, Picture, label_ends, picture
from fieldfare.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = ("virtual_s", "device_s", "bytes", "energy_j")
"""What a level may cost, in the order of the panels."""
WIDTH = 11.4


def panels(
    count: int, *, height: float, left: float = 0.56, right: float = 0.2, gap: float = 0.3
) -> tuple[Figure, list[Axes]]:
    """Make a wide figure with `count` axes side by side that share their y axis; all in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), facecolor="none")
    width = (WIDTH - left - right - gap * (count - 1)) / count
    bottom, top = 0.5, 0.32
    found: list[Axes] = []
    for rank in range(count):
        box = ((left + rank * (width + gap)) / WIDTH, bottom / height, width / WIDTH, 1 - (bottom + top) / height)
        found.append(figure.add_axes(box, facecolor="none", sharey=found[0] if found else None))
    for axes in found[1:]:
        axes.tick_params(axis="y", labelleft=False)
    return figure, found


def costs(table: Table, lines: Sequence[Line], *, what: str) -> Picture | None:
    """Draw metrics of one run against virtual time, device-hours, bytes and joules, side by side with one y axis."""
    against = [axis for axis in COSTS if any(_reaches(table, line.metric, axis) for line in lines)]
    present = [line for line in lines if any(_reaches(table, line.metric, axis) for axis in against)]
    if not against or not present:
        return None
    values = np.concatenate([table.series(line.metric, axis)[1] for line in present for axis in against])
    ends = {line.metric: table.series(line.metric, against[-1])[1][-1:] for line in present}
    words = {line.metric: f"{line.name} {short(line.metric, end[0])}" for line in present
             if (end := ends[line.metric]).size}  # fmt: skip
    figure, drawn = panels(len(against), height=3.2, right=style.room(words.values()))
    reached = _reached(table, present)
    points = 0
    for axes, axis in zip(drawn, against, strict=True):
        series = [(line, *table.series(line.metric, axis)) for line in present]
        series = [(line, x, y) for line, x, y in series if x.size]
        everything = np.concatenate([x for _, x, _ in series])
        scale, under = axis_scale(axis, float(everything.max()))
        for line, x, y in series:
            points += x.size
            axes.plot(
                x / scale.divisor, y, color=line.colour, linestyle=style.DASHES[line.dash],
                linewidth=1.8 if x.size <= 400 else 1.1,
            )  # fmt: skip
        if reached is not None and (at := reached[2].get(axis)) is not None:
            axes.plot([at / scale.divisor], [reached[1]], "o", markersize=6, markerfacecolor=style.SURFACE,
                      markeredgecolor=style.INK, markeredgewidth=1.2, zorder=4)  # fmt: skip
        round_axis(axes, axis, everything / scale.divisor)
        axes.set_xlabel(under)
    metric_axis(drawn[0], present[0].metric, values)
    drawn[0].set_title(what.lower())
    label_ends(
        drawn[-1],
        [Label(0.0, float(ends[line.metric][0]), words[line.metric], line.colour) for line in present
         if line.metric in words],
    )  # fmt: skip
    names = {"virtual_s": "virtual time", "device_s": "device-hours", "bytes": "bytes", "energy_j": "joules"}
    listed = _listed([names[axis] for axis in against])
    note = (
        "The same values by what had been spent until then. A task counts whole when its round is over, also where it "
        "goes on; without rounds when it is over itself."
    )
    if reached is not None:
        spent = _listed([units.measured(axis, reached[2][axis]) for axis in against if axis in reached[2]])
        note = f"The circle: {reached[0]} first at {units.measured(reached[3], reached[1])}, after {spent}. " + note
    return picture(
        figure,
        name=f"costs-{what.lower()}",
        title=f"{what} against {listed}",
        note=note,
        alt=f"{what} against {listed}. {note}",
        marks=points,
        wide=True,
    )


def _reaches(table: Table, metric: str, axis: str) -> bool:
    x, _ = table.series(metric, axis)
    return bool(x.size and float(x.max()) > 0)


def _reached(table: Table, lines: Sequence[Line]) -> tuple[str, float, dict[str, float], str] | None:
    """(a line's name, a level near its best, what that had cost by axis, its metric), of the first line with a level.

    The level is the whole percent at or below 95 % of the best; only shares have one.
    """
    order = sorted(lines, key=lambda line: line.metric.startswith("train_"))
    for line in order:
        _, y = table.series(line.metric)
        if units.unit_of(line.metric) != "share" or y.size < 3 or not 0 < y.max() <= 1:
            continue
        level = float(np.floor(95 * y.max()) / 100)
        if level <= y[0]:
            continue
        found = {}
        for axis in COSTS:
            x, y = table.series(line.metric, axis)
            if x.size and x.max() > 0 and (y >= level).any():
                found[axis] = float(x[np.argmax(y >= level)])
        return line.name, level, found, line.metric
    return None


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def at_work(work: Work) -> Picture | None:
    """Draw the tasks at work over virtual time and, with traces, the share of devices available above it."""
    if not work.at_work.size or not work.at_work.max() > 0:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    both = work.available is not None
    height = 4.1 if both else 2.7
    figure = Figure(figsize=(WIDTH, height), facecolor="none")
    left, right, bottom, top = 0.56, 1.5, 0.5, 0.32
    scale = units.time_scale(float(work.edges[-1]))
    edges = work.edges / scale.divisor
    wide = 1 - (left + right) / WIDTH
    low = 1.75 if both else height - bottom - top
    axes = figure.add_axes((left / WIDTH, bottom / height, wide, low / height), facecolor="none")
    axes.stairs(work.at_work, edges, fill=True, color=style.BLUE, alpha=0.16, linewidth=0)
    axes.stairs(work.at_work, edges, baseline=None, color=style.BLUE, linewidth=1.5)
    mean, most = float(work.at_work.mean()), float(work.at_work.max())
    axes.axhline(mean, color=style.darker(style.BLUE), linewidth=0.9, linestyle=style.DASHES[1])
    axes.set_ylim(0, 1.12 * most)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    round_axis(axes, "virtual_s", edges)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel(f"virtual time [{scale.unit}]")
    axes.set_title("tasks at work")
    label_ends(axes, [Label(0.0, mean, f"mean {units.number(mean, 3)}", style.BLUE)])
    step = units.duration(float(np.diff(work.edges[:2])[0]))
    told = f"{units.number(mean, 3)} tasks were at work on average, {units.number(most, 3)} in the busiest {step}"
    if most < 1.005 * mean:
        told = f"{units.number(mean, 3)} tasks were at work all the time"
    if work.available is not None:
        middle = (edges[1:] + edges[:-1]) / 2
        upper = figure.add_axes(
            (left / WIDTH, (bottom + low + 0.45) / height, wide, (height - bottom - low - 0.45 - top) / height),
            facecolor="none",
        )
        share = work.available
        upper.fill_between(middle, share, color=style.GREEN, alpha=0.14, linewidth=0)
        upper.plot(middle, share, color=style.GREEN, linewidth=1.5)
        metric_axis(upper, "accuracy", np.append(share, 0.0))
        upper.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        upper.set_ylim(0, 1.12 * float(max(share.max(), 1e-6)))
        upper.set_xlim(edges[0], edges[-1])
        upper.tick_params(axis="x", labelbottom=False)
        upper.set_title("devices available")
        whole = float(share.mean())
        label_ends(upper, [Label(0.0, whole, f"mean {units.share(whole)}", style.GREEN)])
        told += (
            f"; {units.share(whole)} of {work.size:,} devices were available, "
            f"from {units.share(float(share.min()))} to {units.share(float(share.max()))}"
        )
    return picture(
        figure,
        name="at-work",
        title="Tasks at work and devices available" if both else "Tasks at work",
        note=f"{told}.",
        alt=f"Over virtual time, {told}.",
        marks=2 * work.at_work.size,
        wide=True,
    )
