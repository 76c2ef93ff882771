"""Pictures of several runs at once: the arms of a study, or runs that somebody laid side by side.

Here: functions from ``{arm: tables, one per seed}`` to a `Picture`. Call them inside `style.drawing`. Not here: the
table of final values (`html`). Kept: an arm has one colour and dash in all pictures of a page; the line is the median
over seeds, the band reaches from the lowest to the highest seed; nothing is drawn where a seed has no value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fieldfare.report import style, units
from fieldfare.report.plots import axis_scale, metric_axis, round_axis
from fieldfare.report.style import Label, Picture, canvas, label_ends, picture
from fieldfare.report.table import Floats, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Arms = Mapping[str, Sequence[Table]]

_TITLES = {
    "round": "rounds", "virtual_s": "virtual time", "bytes": "bytes moved", "device_s": "device-hours",
    "energy_j": "energy",
}  # fmt: skip
_NOTES = {
    "round": "Compared round by round, whatever a round cost.",
    "virtual_s": "The same runs on the clock of the simulated fleet: further left is sooner.",
    "bytes": "The same runs by what had been moved until then, down and up: further left is cheaper.",
    "device_s": "The same runs by the time that devices had spent until then: further left asks less of them.",
    "energy_j": "The same runs by the energy that devices had spent until then: further left is cheaper.",
}
LABELLED_UP_TO = 9


def look(rank: int) -> tuple[str, int]:
    """Give the colour and the dash number of the arm of that rank; 28 arms differ.

    >>> look(0), look(7)
    (('#0072b2', 0), ('#0072b2', 1))
    """
    return style.PALETTE[rank % len(style.PALETTE)], (rank // len(style.PALETTE)) % len(style.DASHES)


def aligned(tables: Sequence[Table], metric: str, axis: str) -> tuple[Floats, Floats, Floats, Floats] | None:
    """Lay the seeds of one arm on a common axis: (x, median, lowest, highest), each ``[points]``.

    On rounds and when all seeds share their x, values stand as stored; otherwise each seed is interpolated linearly
    on at most 200 points of the range that all seeds cover. None when no seed has the metric.
    """
    series = [pair for pair in (table.series(metric, axis) for table in tables) if pair[0].size]
    if not series:
        return None
    first = series[0][0]
    if all(x.size == first.size and np.array_equal(x, first) for x, _ in series):
        grid, values = first, np.stack([y for _, y in series])
    else:
        low, high = max(float(x[0]) for x, _ in series), min(float(x[-1]) for x, _ in series)
        points = np.unique(np.concatenate([x for x, _ in series]))
        grid = points[(points >= low) & (points <= high)]
        if grid.size > 200:
            grid = np.linspace(low, high, 200)
        if not grid.size:
            return None
        values = np.stack([np.interp(grid, x, y) for x, y in series])
    return grid, np.median(values, axis=0), values.min(axis=0), values.max(axis=0)


def comparison(arms: Arms, metric: str, axis: str) -> Picture | None:
    """Draw ``metric`` of all arms against ``round``, ``virtual_s``, ``bytes``, ``device_s`` or ``energy_j``.

    None when no arm has both.
    """
    drawn = {name: found for name, tables in arms.items() if (found := aligned(tables, metric, axis)) is not None}
    if not drawn or (axis != "round" and not max(float(x.max()) for x, *_ in drawn.values()) > 0):
        return None
    ranks = {name: rank for rank, name in enumerate(arms)}
    everything = np.concatenate([x for x, *_ in drawn.values()])
    values = np.concatenate([part for _, *parts in drawn.values() for part in parts])
    scale, words = axis_scale(axis, float(everything.max()))
    labelled = len(drawn) <= LABELLED_UP_TO
    figure, axes = canvas(height=3.3, right=style.room(map(style.shorten, drawn)) if labelled else 0.2)
    banded = False
    ends: list[Label] = []
    for name, (x, middle, low, high) in drawn.items():
        colour, dash = look(ranks[name])
        if np.any(high > low):
            banded = True
            axes.fill_between(x / scale.divisor, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(
            x / scale.divisor,
            middle,
            color=colour,
            linestyle=style.DASHES[dash],
            linewidth=1.8 if x.size <= 400 else 1.1,
            marker="o" if x.size <= 12 else None,
            markersize=3.2,
        )
        if axis != "round" and labelled:
            axes.plot(x[-1:] / scale.divisor, middle[-1:], marker="o", markersize=4.2, color=colour)
        ends.append(Label(float(x[-1] / scale.divisor), float(middle[-1]), style.shorten(name), colour))
    metric_axis(axes, metric, values)
    round_axis(axes, axis, everything / scale.divisor)
    axes.set_xlabel(words)
    axes.set_title(units.label(metric))
    if labelled:
        label_ends(axes, ends)
    name = units.label(metric)
    told = "; ".join(f"{arm} ends at {units.measured(metric, float(found[1][-1]))}" for arm, found in drawn.items())
    seeds = " Line: the median over seeds; band: from the lowest to the highest." if banded else ""
    return picture(
        figure,
        name=f"arms-{metric.replace('_', '-')}-{axis}",
        title=f"{name[0].upper() + name[1:]} against {_TITLES.get(axis, axis)}",
        note=_NOTES.get(axis, "") + seeds,
        alt=f"{name} of {len(drawn)} arms against {_TITLES.get(axis, axis)}: {told}.",
        marks=int(values.size),
    )


def final_values(arms: Arms, metric: str) -> Picture | None:
    """Draw the final value of every arm, one dot per seed and a bar at their median, the best arm uppermost."""
    finals = {name: [v for t in tables if (v := t.last(metric)) is not None] for name, tables in arms.items()}
    finals = {name: seeds for name, seeds in finals.items() if seeds}
    if len(finals) < 2:
        return None
    ranks = {name: rank for rank, name in enumerate(arms)}
    sign = 1 if units.lower_is_better(metric) else -1
    order = sorted(finals, key=lambda name: sign * float(np.median(finals[name])))
    figure, axes = canvas(
        height=max(3.3, 0.95 + 0.27 * len(order)), left=style.room(map(style.shorten, order)), right=0.85, bottom=0.5
    )
    labels = []
    for row, name in enumerate(order):
        colour, _ = look(ranks[name])
        middle = float(np.median(finals[name]))
        axes.plot(
            finals[name], [row] * len(finals[name]), "o", color=colour, markersize=6, alpha=0.55, markeredgewidth=0
        )
        axes.plot([middle, middle], [row - 0.3, row + 0.3], color=colour, linewidth=2.4, solid_capstyle="butt")
        labels.append(Label(middle, row, units.measured(metric, middle), colour))
    _turned_axis(axes, metric, np.concatenate([np.asarray(finals[name]) for name in order]))
    axes.set_yticks(range(len(order)), [style.shorten(name) for name in order])
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"final {units.label(metric)}")
    label_ends(axes, labels)
    several = any(len(seeds) > 1 for seeds in finals.values())
    told = "; ".join(f"{name} {units.measured(metric, float(np.median(finals[name])))}" for name in order)
    return picture(
        figure,
        name=f"final-{metric.replace('_', '-')}",
        title=f"Where each ends: {units.label(metric)}",
        note="One dot per seed, the bar is their median; the best is uppermost."
        if several
        else "The best is uppermost.",
        alt=f"Final {units.label(metric)}, best first: {told}.",
    )


def _turned_axis(axes: Axes, metric: str, values: Floats) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = float(values.min()), float(values.max())
    pad = 0.08 * (high - low) or 0.05 * (abs(high) or 1.0)
    axes.set_xlim(low - pad, high + pad)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    short = units.unit_of(metric) == "share" and high <= 1
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{units.number(round(100 * value, 6))} %" if short else units.number(value))
    )
