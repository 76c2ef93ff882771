"""Pictures of the data set: which client holds which classes, and how much.

Here: functions from a `DataCard` to a `Picture`, None when there is nothing to draw. Call them inside
`style.drawing`; `save_label_map` alone opens it itself. Not here: how clients fare (`plots_clients`). Kept: only what
the run folder says of its data is drawn; the data itself is never read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.report import style, units
from fieldfare.report.read import DataCard, data_card
from fieldfare.report.style import Picture, canvas, picture
from fieldfare.report.table import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BUBBLES_UP_TO = 48


def label_map(data: DataCard) -> Picture | None:
    """Draw which client holds how much of which class: bubbles for few clients, else a map of shares."""
    counts = data.label_counts
    if counts is None or not counts.any():
        return None
    figure, few = _label_figure(data, counts)
    n, k = counts.shape
    top = counts.max(axis=1).sum() / counts.sum()
    of = f"{n} of {data.n_clients:,} clients" if data.n_clients and data.n_clients > n else f"all {n} clients"
    shown = (
        "The area of a bubble is the number of examples."
        if few
        else "Each column is one client, its colour the share of its examples; ordered by commonest class."
    )
    return picture(
        figure,
        name="labels",
        title="Which client holds which classes",
        note=f"{shown} {of[0].upper() + of[1:]}. Columns alike mean clients alike; blocks mean label skew.",
        alt=f"Map of clients and classes, {of}, {k} classes; a client's commonest class makes up "
        f"{units.share(float(top))} of its examples on average, weighted by examples.",
        marks=int((counts > 0).sum()) if few else 0,
        wide=True,
    )


def _label_figure(data: DataCard, counts: Floats) -> tuple[Figure, bool]:
    n, k = counts.shape
    names = data.classes if len(data.classes) == k else tuple(str(index) for index in range(k))
    few = n <= BUBBLES_UP_TO and k <= 40
    height = 1.0 + min(4.2, max(1.5, 0.2 * k)) if few else 1.0 + min(3.4, max(1.9, 0.19 * k))
    longest = max(len(name) for name in names) if k <= 40 else 4
    figure, axes = canvas(width=11.4, height=height, left=0.35 + 0.075 * min(longest, 16), right=1.15 if few else 1.0)
    _bubbles(axes, counts) if few else _map_of_shares(figure, axes, counts)
    every = 1 if k <= 26 else -(-k // 20)
    axes.set_yticks(range(0, k, every), [name if len(name) <= 16 else name[:15] + "…" for name in names[::every]])
    axes.set_ylim(k - 0.4, -0.6) if few else axes.set_ylim(k - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_title("class")
    return figure, few


def save_label_map(facts: Mapping[str, Any], out: str | Path) -> Path:
    """Save the label map of a data set that describes itself by ``facts`` as ``.svg`` or ``.png``.

    Raises `UsageError` when the data has no classes or the name ends otherwise, `MissingExtra` without matplotlib.
    """
    path = Path(out)
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"the picture {path} has no known form: use a name that ends in .png or .svg.")
    data = data_card(facts)
    if data is None or data.label_counts is None or not data.label_counts.any():
        raise UsageError("this data has no label counts to draw: a label map needs data with classes.")
    with style.drawing():
        figure, _ = _label_figure(data, data.label_counts)
        figure.savefig(path, dpi=200, facecolor=style.SURFACE, bbox_inches="tight")
    return path


def _bubbles(axes: Axes, counts: Floats) -> None:
    from matplotlib.ticker import MaxNLocator

    n, k = counts.shape
    clients, classes = np.nonzero(counts)
    values = counts[clients, classes]
    most = float(values.max())
    box = axes.get_window_extent()
    cell = min(box.width / n, box.height / (k + 0.2)) * 72 / axes.figure.dpi
    largest = (1.15 * cell) ** 2
    axes.scatter(
        clients, classes, s=np.maximum(largest * values / most, 0.6), color=style.BLUE, alpha=0.72, linewidths=0
    )
    axes.set_xlim(-0.7, n - 0.3)
    axes.set_xlabel("client")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    for rank, part in enumerate((1.0, 0.5, 0.1)):
        y = 0.86 - 0.2 * rank
        axes.scatter([1.03], [y], s=largest * part, color=style.BLUE, alpha=0.72, linewidths=0,
                     transform=axes.transAxes, clip_on=False)  # fmt: skip
        axes.text(1.05, y, units.number(round(most * part)), transform=axes.transAxes, va="center", color=style.MUTED,
                  fontsize=8.5)  # fmt: skip
    axes.text(1.02, 1.0, "examples", transform=axes.transAxes, va="bottom", color=style.MUTED, fontsize=8.5)


def _map_of_shares(figure: Figure, axes: Axes, counts: Floats) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import PercentFormatter

    n, k = counts.shape
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    order = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1)))
    shades = LinearSegmentedColormap.from_list("shares", ["#f5f8fa", "#a9cde6", "#2f86c1", "#0b3c61"])
    image = axes.imshow(
        shares[order].T,
        aspect="auto",
        cmap=shades,
        vmin=0,
        vmax=np.ceil(10 * shares.max()) / 10,
        interpolation="none",
        extent=(0, n, k - 0.5, -0.5),
    )
    axes.grid(visible=False)
    axes.set_xlim(0, n)
    axes.set_xlabel("clients, ordered by their commonest class")
    box = axes.get_position()
    beside = figure.add_axes((box.x1 + 0.015, box.y0, 0.012, box.height))
    bar = figure.colorbar(image, cax=beside)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    bar.ax.set_title("share", fontsize=8.5, loc="left")


def client_sizes(data: DataCard) -> Picture | None:
    """Draw how many examples clients hold, on a log axis when they differ by more than ten times."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    sizes = data.sizes
    if sizes is None:
        return None
    sizes = sizes[np.isfinite(sizes)]
    held = sizes[sizes > 0]
    if held.size < 2:
        return None
    spans = float(held.max() / held.min()) > 10
    low, high = float(held.min()), float(held.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high * 1.0001, 31) if spans else np.linspace(low, high, 31)
    if high < 2000 and np.all(held == np.round(held)):  # sizes are whole: no bin may lie between two of them
        first, end = float(held.min()), float(held.max()) + 1
        whole = np.floor((np.geomspace if spans else np.linspace)(first, end, 31)[:-1])
        edges = np.append(np.unique(whole), end) - 0.5
    counts, _ = np.histogram(held, bins=edges)
    figure, axes = canvas()
    axes.stairs(counts, edges, fill=True, color=style.BLUE, alpha=0.8, linewidth=0)
    if spans:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: units.number(value, 3)))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    median, top = float(np.median(held)), 1.15 * float(counts.max())
    axes.set_ylim(0, top)
    axes.axvline(median, color=style.INK, linewidth=1.1, linestyle=style.DASHES[1])
    right = (np.log(median / low) / np.log(high / low) if spans else (median - low) / (high - low)) < 0.6
    axes.annotate(
        f"median {units.number(median)}", (median, 0.95 * top), xytext=(5 if right else -5, 0),
        textcoords="offset points", ha="left" if right else "right", va="center", fontsize=8.5, color=style.INK,
    )  # fmt: skip
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("examples held by a client" + (" (log scale)" if spans else ""))
    axes.set_title("clients")
    empty = int(sizes.size - held.size)
    return picture(
        figure,
        name="sizes",
        title="How much data a client holds",
        note="Where sizes differ widely, a mean weighted by examples follows the few large clients."
        + (f" {empty:,} clients hold none." if empty else ""),
        alt=f"Histogram of client sizes: from {units.number(held.min())} to {units.number(held.max())} examples, "
        f"median {units.number(median)}.",
    )


def size_curve(data: DataCard) -> Picture | None:
    """Draw which share of all examples the largest clients hold (a Lorenz curve read from the right)."""
    from matplotlib.ticker import PercentFormatter

    sizes = data.sizes
    if sizes is None or np.nansum(sizes) <= 0 or sizes.size < 2:
        return None
    ordered = np.sort(np.nan_to_num(sizes))[::-1]
    x = np.append(0.0, (np.arange(ordered.size) + 1) / ordered.size)
    y = np.append(0.0, np.cumsum(ordered) / ordered.sum())
    tenth = float(np.interp(0.1, x, y))
    if x.size > 1001:
        grid = np.linspace(0, 1, 1001)
        x, y = grid, np.interp(grid, x, y)
    figure, axes = canvas()
    axes.plot([0, 1], [0, 1], color=style.GREY, linewidth=1.0, linestyle=style.DASHES[1])
    axes.fill_between(x, x, y, color=style.BLUE, alpha=0.10, linewidth=0)
    axes.plot(x, y, color=style.BLUE)
    axes.plot([0.1], [tenth], marker="o", markersize=5, color=style.darker(style.BLUE))
    axes.text(
        0.98, 0.06, f"the largest 10 % of clients hold {units.share(tenth)}", transform=axes.transAxes, ha="right",
        fontsize=8.5, color=style.darker(style.BLUE),
    )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_xlabel("clients, largest first")
    axes.set_title("share of all examples held")
    gini = "" if data.gini is None else f" Gini coefficient {units.number(data.gini, 3)}."
    return picture(
        figure,
        name="size-curve",
        title="How evenly the data is spread",
        note=f"On the dashed line all clients would hold the same.{gini}",
        alt=f"The largest tenth of clients hold {units.share(tenth)} of all examples.{gini}",
    )
