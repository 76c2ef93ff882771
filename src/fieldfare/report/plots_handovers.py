"""Pictures of what a move costs by the share of its round that was over: time per round, and what a handover saves.

Here: from the rows of `handovers` to a `Picture`. Call them inside `style.drawing`. Not here: tables (`handovers`).
Kept: a policy has one colour on a page, lines are formulas, bars and points are figures of the runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fieldfare.report import style, units
from fieldfare.report.plots_tasks import above
from fieldfare.report.style import Picture, canvas, picture

if TYPE_CHECKING:
    from fieldfare.report.handovers import Row

_COLOURS = (style.GREY, style.ORANGE, style.BLUE, *style.PALETTE)
_MARKS = "XsoD^v"


def handover_pictures(rows: Sequence[Row], published: Mapping[float, float], rank: int) -> list[Picture | None]:
    """Draw the mover's round, the round of all where others are slower than the mover, and the saving."""
    behind = any(row.others_s > 1.01 * row.still_s for row in rows)
    every = times(rows, rank, whole=True) if behind else None
    return [times(rows, rank, whole=False), every, saved(rows, published, rank)]


def _policies(rows: Sequence[Row]) -> dict[str, str]:
    """The colour of each policy, in the order of the rows."""
    names = dict.fromkeys(row.policy for row in rows)
    return {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}


def times(rows: Sequence[Row], rank: int, *, whole: bool) -> Picture | None:
    """Draw a bar for each policy at each share: the mover's round, or that of all; lines are the formulas'."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shares = sorted({round(row.share, 3) for row in rows})
    values = [row.whole_s if whole else row.round_s for row in rows]
    if not np.isfinite(values).all() or not max(values) > 0:
        return None
    colours, clock = _policies(rows), units.time_scale(max(values))
    width = 0.8 / len(colours)
    figure, axes = canvas(left=0.66)
    for row, value in zip(rows, values, strict=True):
        at = shares.index(round(row.share, 3)) + (list(colours).index(row.policy) - (len(colours) - 1) / 2) * width
        axes.bar(at, value / clock.divisor, 0.92 * width, color=colours[row.policy], linewidth=0)
    one, many = rows[0], np.arange(len(shares))
    named: list[Patch | Line2D] = [Patch(facecolor=colour, label=name) for name, colour in colours.items()]
    if not whole:
        again = (1.0 + np.array(shares)) * one.still_s / clock.divisor
        first = many - (len(colours) - 1) / 2 * width
        axes.plot(first, again, color=style.INK, linewidth=1.0, marker="_", markersize=16, linestyle=(0, (3, 2)))
        axes.axhline(one.still_s / clock.divisor, color=style.INK, linewidth=0.9)
        named += [Line2D([], [], color=style.INK, linewidth=1.0, linestyle=(0, (3, 2)), label="(1 + f) T"),
                  Line2D([], [], color=style.INK, linewidth=0.9, label="T, without a move")]  # fmt: skip
    axes.set_xticks(many, [units.share(share).replace(".0 ", " ") for share in shares])
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("share of the mover's round that was over, f")
    axes.set_ylabel(f"virtual time [{clock.unit}]")
    axes.set_ylim(0, 1.05 * max(max(values), 0.0 if whole else (1.0 + shares[-1]) * one.still_s) / clock.divisor)
    above(axes, named)
    told = "; ".join(
        f"{row.policy} at {units.share(row.share)} {units.duration(value)}"
        for row, value in zip(rows, values, strict=True)
    )
    title = "Time of the round, of all devices" if whole else "Time of the mover's round"
    note = (
        "Nothing is saved where nobody waits for the mover." if whole
        else "Bars: the runs. Lines: a round without a move, and one that is begun again at f."
    )  # fmt: skip
    return picture(figure, name=f"handovers-{rank}-{'whole' if whole else 'times'}", title=title, note=note,
                   alt=f"{title}: {told}.")  # fmt: skip


def saved(rows: Sequence[Row], published: Mapping[float, float], rank: int) -> Picture | None:
    """Draw what each policy saves the mover against a restart, on the curve of the formula without overhead."""
    from matplotlib.lines import Line2D

    found = [
        row for row in rows if np.isfinite(row.saved) and not (row.move is not None and row.move.kind == "restart")
    ]
    if not found:
        return None
    colours = _policies(rows)
    figure, axes = canvas(left=0.66)
    f = np.linspace(0.0, 1.0, 101)
    axes.plot(100 * f, 100 * f / (1.0 + f), color=style.INK, linewidth=1.0, linestyle=(0, (3, 2)))
    named = [Line2D([], [], color=style.INK, linewidth=1.0, linestyle=(0, (3, 2)), label="f / (1 + f)")]
    for rank_, name in enumerate(dict.fromkeys(row.policy for row in found)):
        mine = [row for row in found if row.policy == name]
        mark = _MARKS[(rank_ + 1) % len(_MARKS)]
        axes.plot([100 * row.share for row in mine], [100 * row.saved for row in mine], linestyle="", marker=mark,
                  markersize=6.5, color=colours[name], markerfacecolor="none", markeredgewidth=1.5)  # fmt: skip
        named.append(Line2D([], [], linestyle="", marker=mark, color=colours[name], markerfacecolor="none", label=name))
    if published:
        axes.plot([100 * at for at in published], [100 * value for value in published.values()], linestyle="",
                  marker="*", markersize=10, color=style.VERMILION)  # fmt: skip
        named.append(Line2D([], [], linestyle="", marker="*", color=style.VERMILION, label="published"))
    axes.set_xlim(0, 100)
    axes.set_ylim(min(0.0, *(105 * row.saved for row in found)), 55)
    axes.set_xlabel("share of the mover's round that was over, f [%]")
    axes.set_ylabel("saved of the mover's round [%]")
    above(axes, named)
    furthest = max(abs(row.saved - row.wanted) for row in found)
    words = f"With their own o all are within {units.number(100 * furthest, 2)} points of (f − o/T) / (1 + f)."
    return picture(figure, name=f"handovers-{rank}-saved", title="Saved against a restart", note=words,
                   alt="Saved against a restart. " + words)  # fmt: skip
