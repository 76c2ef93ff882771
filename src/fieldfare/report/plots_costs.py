"""Pictures of arms that have spent the same: a row per arm, a mark per metric (of sub-models: per size).

Here: from a `Situation` to a `Picture`. Call them inside `style.drawing`. Not here: tables (`costs`). Kept: lines
through marks are 95 % intervals of the mean over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fieldfare.report import style, units
from fieldfare.report.plots_tasks import above
from fieldfare.report.style import Picture, canvas, picture

if TYPE_CHECKING:
    from fieldfare.report.costs import Situation

_COLOURS = (style.INK, style.BLUE, style.GREEN, style.ORANGE, style.PURPLE, style.SKY, style.GREY)
_MARKS = "oD^svPX"


def dots(one: Situation, metrics: Mapping[str, str], name: str) -> Picture | None:
    """Draw the means of one situation with their intervals; None where there is nothing."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    shown = [(label, {h: m for h, m in means.items() if m.n}) for label, means in one.means.items()]
    shown = [(label, means) for label, means in shown if means]
    if not shown:
        return None
    names = [style.shorten(label) for label, _ in shown]
    height = 0.95 + 0.25 * len(shown)
    figure, axes = canvas(height=height, left=0.2 + style.room(names), right=0.25)
    headings = list(metrics)
    values: list[float] = []
    for row, (_, means) in enumerate(shown):
        for heading, mean in means.items():
            at = headings.index(heading)
            colour, place = _COLOURS[at % len(_COLOURS)], row + 0.13 * (at - (len(headings) - 1) / 2)
            axes.plot([mean.value - mean.half, mean.value + mean.half], [place] * 2, color=colour, linewidth=1.0)
            axes.plot([mean.value], [place], color=colour, marker=_MARKS[at % len(_MARKS)], markersize=4.4,
                      linestyle="", zorder=3)  # fmt: skip
            values.append(mean.value)
    metric = next(iter(metrics.values()))
    share = units.unit_of(metric) == "share"
    low, high = min(values), max(values)
    edge = 0.04 * max(high - low, 0.01 if share else 1e-9)
    axes.set_xlim(low - edge, high + edge)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_yticks(range(len(shown)), names)
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.grid(axis="y", visible=False)
    if share:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.set_xlabel(units.label(metric))
    used = [h for h in headings if any(h in means for _, means in shown)]
    if len(used) > 1:
        marks = [
            Line2D([], [], linestyle="", marker=_MARKS[headings.index(h) % len(_MARKS)], markersize=4.4, label=h,
                   color=_COLOURS[headings.index(h) % len(_COLOURS)])
            for h in used
        ]  # fmt: skip
        above(axes, marks)
    told = "; ".join(
        f"{label}: " + ", ".join(f"{h} {units.measured(metrics[h], m.value)}" for h, m in means.items())
        for label, means in shown
    )
    return picture(figure, name=name, title=one.title, alt=f"{one.title}: {told}.",
                   note="Marks are means over seeds, lines their 95 % intervals.")  # fmt: skip
