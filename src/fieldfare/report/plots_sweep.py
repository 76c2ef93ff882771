"""Pictures of a sweep: how tasks end, what is wasted, how long a version takes, along one axis or two.

Here: functions from a `Grid` to a `Picture`. Call them inside `style.drawing`. Not here: which numbers there are
(`sweep`). Kept: a line is the median over seeds, a band reaches from the lowest to the highest; nothing is smoothed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.report import style, units
from fieldfare.report.plots import metric_axis
from fieldfare.report.plots_arms import look
from fieldfare.report.style import Label, Picture, canvas, label_ends, picture
from fieldfare.report.sweep import Column, Grid, Place, finals_of, outcomes_of, word_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

F64 = NDArray[np.float64]

MOST_BARS = 32
MOST_LINES = 6
_COLOURS = {
    "ok": style.BLUE, "interrupted": style.VERMILION, "timeout": style.PURPLE, "late": style.SKY,
    "stale": style.ORANGE, "refused": style.GREY, "drop-out": style.GREEN,
}  # fmt: skip
_DRAWN = (
    (Column("stale_share", "stale tasks", "share", lambda row: row["shares"].get("stale", 0.0)),
     "Tasks that ended with a reply from too old a model."),
    (Column("wasted_share", "wasted tasks", "share", lambda row: row["wasted_share"]),
     "Tasks that did not count, whatever the reason."),
    (Column("version_s", "median time of a round", "seconds", lambda row: row["version_s"].get("median")),
     "Virtual time from one version of the model to the next."),
    (Column("tasks_per_h", "tasks per virtual hour", "", lambda row: row["tasks_per_h"]),
     "How much work gets done: where the curve is flat, devices are what lacks."),
    (Column("staleness", "mean staleness", "", lambda row: row["staleness"].get("mean")),
     "How many versions old a reply is when it counts."),
    (Column("wasted_time_share", "wasted device time", "share", lambda row: row["wasted_time_share"]),
     "Seconds of devices that went into tasks that did not count."),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Line:
    """One curve: its name, its places along the first axis."""

    name: str
    places: tuple[Place, ...]


def sweep_pictures(grid: Grid) -> list[Picture | None]:
    """All pictures of a grid: bars of outcomes, then each number as curves, or as a map over two long axes."""
    finals = [(column, "Where training ended.") for column in finals_of(grid)[:2]]
    wide = len(grid.axes) == 2 and min(len(axis) for axis in grid.axes) > MOST_LINES
    draw = _map if wide else _curves
    drawn = [draw(grid, column, note) for column, note in (*finals, *_DRAWN)]
    return [outcomes(grid), *drawn]


def outcomes(grid: Grid) -> Picture | None:
    """Tasks by how they ended, stacked, one bar per setting: the mean over seeds; None for more than 32 settings."""
    names, places = outcomes_of(grid), _all_places(grid)
    if not names or len(places) > MOST_BARS:
        return None
    counts = np.array(
        [[np.mean([row["tasks"].get(name, 0) for row in place.rows] or [0]) for name in names] for place in places]
    )
    words = [word_of(place.values[-1]) for place in places]
    several = len(grid.axes) > 1
    wide = len(words) > 12
    figure, axes = canvas(width=11.6 if wide else 5.6, height=3.4, right=1.1, bottom=0.75 if several else 0.5)
    scale, unit = (1e3, "thousand ") if counts.sum(axis=1).max() >= 2e4 else (1.0, "")
    gap = np.cumsum([0, *(a.values[:-1] != b.values[:-1] for a, b in itertools.pairwise(places))])
    x, base = np.arange(len(words)) + 0.8 * gap, np.zeros(len(words))
    labels = []
    for rank, name in enumerate(names):
        height = counts[:, rank] / scale
        axes.bar(x, height, 0.74, bottom=base, color=_COLOURS[name], linewidth=0)
        labels.append(Label(float(x[-1]), float(base[-1] + height[-1] / 2), name, _COLOURS[name]))
        base = base + height
    axes.set_xticks(x, words)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 1.06 * float(base.max()) or 1.0)
    if several:
        for group in range(int(gap[-1]) + 1):
            at = np.flatnonzero(gap == group)
            told = ", ".join(
                f"{n}={word_of(v)}" for n, v in zip(grid.names[:-1], places[at[0]].values[:-1], strict=True)
            )
            axes.annotate(told, (float(x[at].mean()), 0), xycoords=("data", "axes fraction"), xytext=(0, -24),
                          textcoords="offset points", ha="center", fontsize=8.5, color=style.MUTED)  # fmt: skip
        axes.xaxis.labelpad = 14
    axes.set_xlabel(grid.names[-1])
    axes.set_title(f"{unit}tasks that ended")
    label_ends(axes, labels)
    told = "; ".join(
        f"{', '.join(place.words)}: " + ", ".join(f"{n} {units.number(c, 3)}" for n, c in zip(names, row, strict=True))
        for place, row in zip(places, counts, strict=True)
        if place.rows
    )
    return picture(
        figure, name="sweep-outcomes", title="Tasks by how they ended", wide=wide, alt=f"Tasks: {told}.",
        note="One bar per setting" + (", the mean over seeds." if grid.seeds > 1 else "."),
    )  # fmt: skip


def _all_places(grid: Grid) -> list[Place]:
    """Every combination of the axes; those without a number have no rows."""
    held = {repr(place.values): place for place in grid.places}
    every = itertools.product(*grid.axes)
    return [held.get(repr(values)) or Place(values, ()) for values in every]


def _lines(grid: Grid) -> list[_Line]:
    """Curves along the first axis, one per combination of the others; one over all of them where they are many."""
    others: dict[str, list[Place]] = {}
    for place in grid.places:
        name = ", ".join(f"{n}={word_of(v)}" for n, v in zip(grid.names[1:], place.values[1:], strict=True))
        others.setdefault(name, []).append(place)
    if len(others) <= MOST_LINES:
        return [_Line(name, tuple(places)) for name, places in others.items()]
    together: dict[str, list[Place]] = {}
    for place in grid.places:
        together.setdefault(repr(place.values[0]), []).append(place)
    merged = tuple(
        Place(places[0].values[:1], tuple(row for place in places for row in place.rows))
        for places in together.values()
    )
    return [_Line("", merged)]


def _along(grid: Grid) -> tuple[dict[str, float], bool]:
    """Where each value of the first axis stands, and whether that is its own number."""
    values = grid.axes[0]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) and len(values) > 1:
        return {repr(value): float(value) for value in values}, True
    return {repr(value): float(i) for i, value in enumerate(values)}, False


def _curves(grid: Grid, column: Column, note: str) -> Picture | None:
    """One number along the first axis, one curve per combination of the others."""
    lines, (at, numeric) = _lines(grid), _along(grid)
    drawn: list[tuple[_Line, F64, F64, F64, F64]] = []
    for line in lines:
        held = {repr(place.values[0]): column.values(place) for place in line.places}
        if any(held.values()):
            found = [held.get(name) or [np.nan] for name in at]
            ends = [np.array([f(values) for values in found], np.float64) for f in (np.median, min, max)]
            x = np.array(list(at.values()))
            order = np.argsort(x)
            drawn.append((line, x[order], *(one[order] for one in ends)))  # type: ignore[arg-type]
    everything = np.concatenate([v for _, _, *v3 in drawn for v in v3]) if drawn else np.empty(0)
    everything = everything[np.isfinite(everything)]
    if not everything.size or len(grid.axes[0]) < 2 or not everything.any():
        return None
    several = len(drawn) > 1
    figure, axes = canvas(height=3.3, right=style.room(line.name for line, *_ in drawn) if several else 0.2)
    scale = units.scale_of(column.name, float(everything.max())) if column.unit == "seconds" else units.Scale(1.0, "")
    labels = []
    for rank, (line, x, middle, low, high) in enumerate(drawn):
        colour, dash = look(rank)
        if np.any(high > low):
            axes.fill_between(x, low / scale.divisor, high / scale.divisor, color=colour, alpha=0.13, linewidth=0)
        axes.plot(x, middle / scale.divisor, color=colour, linestyle=style.DASHES[dash], marker="o", markersize=3.6)
        last = np.flatnonzero(np.isfinite(middle))[-1]
        labels.append(Label(float(x[last]), float(middle[last] / scale.divisor), line.name, colour))
    if column.unit == "seconds":
        _plain_axis(axes, everything / scale.divisor)
    else:
        metric_axis(axes, "accuracy" if column.unit == "share" else "", everything)
    _ticks(axes, grid, at, numeric)
    axes.set_title(f"{column.words} [{scale.unit}]" if scale.unit else column.words)
    if several:
        label_ends(axes, labels)
    band = ""
    if len(lines) == 1 and len(grid.axes) > 1:
        band = f" Over all of {', '.join(grid.names[1:])}: line the median, band the whole range."
    ends = [(line.name, middle[np.isfinite(middle)]) for line, _, middle, *_ in drawn]
    told = "; ".join(
        f"{name + ': ' if name else ''}{column.write(float(found[0]))} to {column.write(float(found[-1]))}"
        for name, found in ends
    )
    if any(np.isnan(middle).any() for _, _, middle, *_ in drawn):
        band += " A gap is a point without this number."
    return picture(
        figure, name=f"sweep-{column.name.replace('_', '-')}",
        title=f"{column.words[0].upper() + column.words[1:]} against {grid.names[0]}", note=note + band,
        alt=f"{column.words} along {grid.names[0]}: {told}.",
    )  # fmt: skip


def _plain_axis(axes: Axes, values: F64) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = float(values.min()), float(values.max())
    pad = 0.06 * (high - low) or 0.05 * (abs(high) or 1.0)
    axes.set_ylim(0.0 if 0 <= low < 0.5 * high else low - pad, high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.number(value, 4)))


def _ticks(axes: Axes, grid: Grid, at: dict[str, float], numeric: bool) -> None:
    """The values of the first axis under it; a long range of numbers above zero on a logarithmic scale."""
    values = grid.axes[0]
    x = [at[repr(value)] for value in values]
    if numeric and min(x) > 0 and max(x) / min(x) > 50:
        from matplotlib.ticker import NullLocator

        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if len(values) <= 12 or not numeric:
        every = max(1, len(values) // 12)
        axes.set_xticks(x[::every], [word_of(value) for value in values[::every]])
    axes.set_xlabel(grid.names[0])


def _map(grid: Grid, column: Column, note: str) -> Picture | None:
    """One number over two axes, as colours with the numbers written on them where they fit."""
    rows, columns = grid.axes
    where = {repr(place.values): place for place in grid.places}
    cells = np.full((len(rows), len(columns)), np.nan)
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            place = where.get(repr((a, b)))
            middle = None if place is None else column.median(place)
            cells[i, j] = np.nan if middle is None else middle
    if np.isnan(cells).all() or not np.nansum(np.abs(cells)):
        return None
    figure, axes = canvas(height=max(3.3, 1.0 + 0.24 * len(rows)), left=style.room(map(word_of, rows)) + 0.3)
    image = axes.imshow(cells, aspect="auto", cmap="cividis", origin="lower")
    axes.grid(visible=False)
    for axis, values in ((axes.xaxis, columns), (axes.yaxis, rows)):
        every = max(1, len(values) // 12)
        axis.set_ticks(range(0, len(values), every), [word_of(value) for value in values[::every]])
    axes.set_xlabel(grid.names[1])
    axes.set_ylabel(grid.names[0])
    axes.set_title(column.words)
    if cells.size <= 120:
        _write_cells(axes, image, cells, column)
    low, high = float(np.nanmin(cells)), float(np.nanmax(cells))
    ends = f"{column.write(low)} (dark) to {column.write(high)} (light)"
    return picture(
        figure, name=f"sweep-{column.name.replace('_', '-')}",
        title=f"{column.words[0].upper() + column.words[1:]} over {grid.names[0]} and {grid.names[1]}",
        note=f"{note} From {ends}.", alt=f"{column.words} over {grid.names[0]} and {grid.names[1]}: from {ends}.",
        marks=0 if cells.size <= 2000 else 10_000,
    )  # fmt: skip


def _write_cells(axes: Axes, image: Any, cells: F64, column: Column) -> None:
    for i, j in np.argwhere(np.isfinite(cells)):
        light = float(image.norm(cells[i, j])) > 0.55
        axes.text(j, i, column.write(float(cells[i, j])), ha="center", va="center", fontsize=7.0,
                  color=style.INK if light else style.SURFACE)  # fmt: skip
