"""Pictures of the nodes of a run: how their time was spent, what they sent and received, how often they were drawn.

Here: from `Nodes` to a `Picture`, None when there is nothing to draw. Call them inside `style.drawing`. Not here: a
ring over time (`plots_rings`), adding up (`read_nodes`, `decompose`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fieldfare.report import style, units
from fieldfare.report.decompose import links_s
from fieldfare.report.draws import Draws
from fieldfare.report.plots_tasks import legend
from fieldfare.report.read_nodes import Nodes, away_s, busy_s, traffic
from fieldfare.report.style import Picture, canvas, picture
from fieldfare.report.table import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 40
"""Devices in one picture at most."""
_ROW = 0.3
_TIMES = (("trains", style.BLUE), ("waits for others", style.ORANGE), ("waits for links", style.PURPLE),
          ("away", "#d5dbe0"))  # fmt: skip


def node_pictures(nodes: Nodes, draws: Draws | None = None) -> list[Picture | None]:
    """Draw how time was spent, bytes, and draws."""
    return [times(nodes), bytes_by_node(nodes), None if draws is None else drawn(draws)]


def spent(nodes: Nodes, until_s: float | None = None) -> Floats:
    """Shares of each device's time, `[placed, 4]`: training, waiting for others, for links, away."""
    until = nodes.span_s if until_s is None else until_s
    busy, links, away = busy_s(nodes, until), links_s(nodes, until), away_s(nodes)
    rest = np.maximum(until - busy - links - away, 0.0)
    return (np.stack([busy, rest, links, away], axis=1) / max(until, 1e-300))[nodes.placed]


def times(nodes: Nodes) -> Picture | None:
    """Draw how each device spent its time; beside it the share in which it stood idle."""
    from matplotlib.ticker import PercentFormatter

    mine = nodes.placed[:MOST]
    if not mine or not nodes.span_s > 0:
        return None
    shares = spent(nodes)[: len(mine)]
    figure, axes = _rows([nodes.names[at] for at in mine], beside=0.62)
    floor = np.zeros(len(mine))
    shown = [rank for rank in range(4) if shares[:, rank].max() > 0.0005]
    for rank in shown:
        axes.barh(range(len(mine)), shares[:, rank], left=floor, height=0.62, color=_TIMES[rank][1], linewidth=0)
        floor += shares[:, rank]
    idle = 1.0 - shares[:, 0] / np.maximum(1.0 - shares[:, 3], 1e-300)
    for row, value in enumerate(idle):
        axes.text(1.02, row, units.share(float(value)), transform=axes.get_yaxis_transform(), va="center_baseline",
                  color=style.INK, fontsize=8.5)  # fmt: skip
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_xlabel("share of the run; beside it: idle while there")
    legend(axes, [_TIMES[rank] for rank in shown])
    worst = int(np.argmax(idle))
    note = f"Idle most is {nodes.names[mine[worst]]}, {units.share(float(idle[worst]))} of its time."
    return picture(
        figure, name="node-times", title="How devices spent their time", note=note,
        alt="Idle shares: " + _each([nodes.names[at] for at in mine], [units.share(float(one)) for one in idle]),
    )  # fmt: skip


def bytes_by_node(nodes: Nodes) -> Picture | None:
    """Draw what each device sent (above) and received (below), models and control apart."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    mine = nodes.placed[:MOST]
    found = traffic(nodes)
    out = [(found.model_out[mine], found.control_out[mine]), (found.model_in[mine], found.control_in[mine])]
    if not mine or not sum(float(one.sum()) for pair in out for one in pair) > 0:
        return None
    scale = units.size_scale(max(float((a + b).max()) for a, b in out))
    figure, axes = _rows([nodes.names[at] for at in mine], beside=0.2)
    looks = [(f"{nodes.carried} sent", style.BLUE), (f"{nodes.carried} received", style.GREEN), ("control", style.GREY)]
    for rank, (models, control) in enumerate(out):
        place = np.arange(len(mine)) + (rank - 0.5) * 0.33
        axes.barh(place, models / scale.divisor, height=0.29, color=looks[rank][1], linewidth=0)
        axes.barh(
            place, control / scale.divisor, left=models / scale.divisor, height=0.29, color=style.GREY, linewidth=0
        )
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: units.number(round(value, 9))))
    axes.set_xlabel(f"in the whole run [{scale.unit}]")
    legend(axes, looks)
    control = sum(float(pair[1].sum()) for pair in out)
    whole = sum(float(one.sum()) for pair in out for one in pair)
    lost = float(found.lost.sum())
    note = f"Control is {units.share(control / whole)} of it." + (
        f" {units.size(lost)} were sent and never arrived." if lost else ""
    )
    told = [f"{units.size(float(a))} out, {units.size(float(b))} in" for a, b in
            zip(sum(out[0]), sum(out[1]), strict=True)]  # fmt: skip
    return picture(
        figure, name="node-bytes", title="Bytes by device", note=note,
        alt="Bytes: " + _each([nodes.names[at] for at in mine], told),
    )  # fmt: skip


def drawn(draws: Draws) -> Picture:
    """Draw how often each node was drawn, against what its chances say, with two standard deviations around it."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    names = draws.names[:MOST]
    n = len(names)
    figure, axes = _rows(names, beside=0.85)
    axes.barh(range(n), draws.drawn[:n], height=0.62, color=style.LIGHT, linewidth=0)
    axes.errorbar(
        draws.expected[:n], range(n), xerr=2.0 * np.sqrt(draws.variance[:n]), fmt="|", markersize=11, color=style.INK,
        markeredgewidth=1.6, elinewidth=1.2, capsize=2.5,
    )  # fmt: skip
    for row in range(n):
        share = f"{100 * draws.drawn[row] / draws.cycles:.0f} | {100 * draws.expected[row] / draws.cycles:.0f} %"
        axes.text(1.02, row, share, transform=axes.get_yaxis_transform(), va="center_baseline", color=style.INK,
                  fontsize=8.5)  # fmt: skip
    axes.set_xlim(0, 1.05 * max(float(draws.drawn.max()), float((draws.expected + 2 * np.sqrt(draws.variance)).max())))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(f"times drawn in {draws.cycles} cycles")
    named = [Patch(facecolor=style.LIGHT, edgecolor="none", label="drawn"),
             Line2D([], [], marker="|", linestyle="", markersize=10, markeredgewidth=1.6, color=style.INK,
                    label="by its chances, ± 2 standard deviations")]  # fmt: skip
    axes.legend(handles=named, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.35, borderpad=0.0,
                handlelength=0.9, handleheight=0.9, handletextpad=0.4, columnspacing=1.2)  # fmt: skip
    told = [f"{int(a)} of {b:.1f}" for a, b in zip(draws.drawn[:n], draws.expected[:n], strict=True)]
    return picture(figure, name="draws", title="How often devices were drawn", note=fit(draws),
                   alt="Drawn, of expected: " + _each(names, told))  # fmt: skip


def fit(draws: Draws) -> str:
    """How well draws fit their chances, in a sentence."""
    return (
        f"Chi-square {units.number(draws.chi2, 3)} over {draws.cycles} cycles: counts as far from their chances or "
        f"further come up with probability {units.number(draws.p, 2)}."
    )


def _rows(names: Sequence[str], *, beside: float) -> tuple[Figure, Axes]:
    figure, axes = canvas(height=0.95 + _ROW * max(len(names), 3), left=0.2 + style.room(names), right=beside)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.grid(axis="y", visible=False)
    return figure, axes


def _each(names: Sequence[str], told: Sequence[str]) -> str:
    return ", ".join(f"{name} {words}" for name, words in zip(names, told, strict=True)) + "."
