"""Pictures of the clients of one run: how well the model serves each, and what data each holds.

Here: functions from `Evaluation` and `DataCard` to a `Picture`, None when there is nothing to draw. Call them inside
`style.drawing`. Not here: anything along rounds (`plots`). Kept: every client counts once, whatever its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.report import style, units
from fieldfare.report.plots import metric_axis
from fieldfare.report.read import DataCard, Evaluation, data_card
from fieldfare.report.style import Label, Picture, canvas, label_ends, picture
from fieldfare.report.table import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = {"federated": ("shared model", style.GREEN), "personal": ("personal models", style.PURPLE)}
BUBBLES_UP_TO = 48


@dataclass(frozen=True)
class Served:
    """How well a group of clients is served: what to call it, its colour, and one accuracy per client ``[clients]``."""

    name: str
    colour: str
    accuracy: Floats
    dash: int = 0

    @property
    def mean(self) -> float:
        return float(self.accuracy.mean())

    @property
    def worst_decile(self) -> float:
        """The accuracy that one client in ten does not exceed."""
        return float(np.quantile(self.accuracy, 0.1))


def served(evaluations: Mapping[str, Evaluation]) -> list[Served]:
    """Give one `Served` for each kind of evaluation that has accuracies; clients without one are left out."""
    found = []
    for index, (kind, evaluation) in enumerate(evaluations.items()):
        values = evaluation.columns.get("accuracy", np.empty(0))
        values = values[np.isfinite(values)]
        name, colour = _KINDS.get(kind, (kind, style.PALETTE[index % len(style.PALETTE)]))
        if values.size:
            found.append(Served(name, colour, values))
    return found


def accuracy_histogram(groups: Sequence[Served]) -> Picture | None:
    """Draw how many clients have which accuracy, with the mean and the worst decile of each group marked."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if not groups:
        return None
    everything = np.concatenate([group.accuracy for group in groups])
    low = np.floor(20 * float(everything.min())) / 20
    high = max(1.0, float(everything.max()))
    edges = np.linspace(low if low < high else low - 0.05, high, 21)
    figure, axes = canvas(height=3.3)
    counts = [np.histogram(group.accuracy, bins=edges)[0] for group in groups]
    room = 0.13 * (2 * len(groups))
    top = (1.06 + room) / (1.0 - 0.02) * float(max(count.max() for count in counts))
    for group, count in zip(groups, counts, strict=True):
        axes.stairs(count, edges, fill=True, color=group.colour, alpha=0.32, linewidth=0)
        axes.stairs(count, edges, color=group.colour, linewidth=1.4)
    rows = [(group, words, x, dash) for group in groups for words, x, dash in (
        ("worst decile", group.worst_decile, style.DASHES[1]), ("mean", group.mean, "-"))]  # fmt: skip
    for rank, (group, words, x, dash) in enumerate(rows):
        tone = style.darker(group.colour)
        y = 1.0 - 0.085 * (rank + 0.5)
        axes.axvline(x, ymax=y, color=tone, linewidth=1.2, linestyle=dash)
        left = x > (edges[0] + edges[-1]) / 2
        name = f"{group.name}: " if len(groups) > 1 else ""
        axes.annotate(
            f"{name}{words} {units.share(x)}", (x, y), xycoords=axes.get_xaxis_transform(),
            xytext=(-4 if left else 4, 0), textcoords="offset points", ha="right" if left else "left", va="center",
            fontsize=8.5, color=tone,
        )  # fmt: skip
    axes.set_ylim(0, top)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("accuracy on the client's own test data")
    axes.set_title("clients")
    told = "; ".join(
        f"{group.name}: mean {units.share(group.mean)}, worst decile {units.share(group.worst_decile)}"
        for group in groups
    )
    return picture(
        figure,
        name="clients-histogram",
        title="How the model serves each client",
        note="Every client counts once. Worst decile: one client in ten has this accuracy or less.",
        alt=f"Histogram of the accuracy of clients; {told}.",
    )


def accuracy_sorted(groups: Sequence[Served]) -> Picture | None:
    """Draw each group's clients from worst to best, the worst decile shaded."""
    from matplotlib.ticker import PercentFormatter

    if not groups:
        return None
    longest = max(len(style.shorten(group.name)) for group in groups) if len(groups) > 1 else 5
    figure, axes = canvas(height=3.3, right=0.62 + 0.078 * longest)
    axes.axvspan(0, 0.1, color=style.VERMILION, alpha=0.09, linewidth=0)
    labels: list[Label] = []
    for group in groups:
        ordered = np.sort(group.accuracy)
        if ordered.size > 1001:
            ordered = np.quantile(ordered, np.linspace(0, 1, 1001))
        x = (np.arange(ordered.size) + 0.5) / ordered.size
        axes.plot(x, ordered, color=group.colour, linestyle=style.DASHES[group.dash])
        tone = style.darker(group.colour)
        p10 = group.worst_decile
        axes.plot([0.1], [p10], marker="o", markersize=4.5, color=tone)
        if len(groups) <= 2:
            below = group is not max(groups, key=lambda one: one.worst_decile) or len(groups) == 1
            axes.annotate(
                units.share(p10), (0.1, p10), xytext=(6, -5 if below else 4), textcoords="offset points", fontsize=8.5,
                color=tone, va="top" if below else "bottom",
            )  # fmt: skip
        name = style.shorten(group.name) if len(groups) > 1 else "best"
        end = p10 if len(groups) > 2 else float(ordered[-1])
        labels.append(Label(1.0, float(ordered[-1]), f"{name} {units.share(end)}", group.colour))
    metric_axis(axes, "accuracy", np.concatenate([group.accuracy for group in groups]))
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_xlabel("clients, worst to best")
    axes.set_title("accuracy on the client's own test data")
    label_ends(axes, labels)
    told = "; ".join(
        f"{group.name}: from {units.share(group.accuracy.min())} through a median of "
        f"{units.share(np.median(group.accuracy))} to {units.share(group.accuracy.max())}"
        for group in groups
    )
    at_end = " The numbers at the right are the worst deciles (dots)." if len(groups) > 2 else ""
    return picture(
        figure,
        name="clients-sorted",
        title="Clients from worst to best",
        note="A flat curve serves all clients alike; the shaded tenth at the left is who is left behind." + at_end,
        alt=f"Accuracy of clients in order; {told}.",
    )


def personal_gain(evaluations: Mapping[str, Evaluation]) -> Picture | None:
    """Draw, per client, its accuracy with the shared model against that with its own; needs both kinds."""
    from matplotlib.ticker import PercentFormatter

    shared, personal = evaluations.get("federated"), evaluations.get("personal")
    if shared is None or personal is None or "accuracy" not in shared.columns or "accuracy" not in personal.columns:
        return None
    own = dict(zip(personal.clients, personal.columns["accuracy"], strict=False))
    pairs = [(a, own[c]) for c, a in zip(shared.clients, shared.columns["accuracy"], strict=False) if c in own]
    points = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    if points.shape[0] < 2:
        return None
    better, worse = points[:, 1] > points[:, 0], points[:, 1] < points[:, 0]
    figure, axes = canvas(height=3.9)
    size = 16 if points.shape[0] <= 400 else 6
    low = float(points.min())
    pad = 0.04 * (1 - low) or 0.02
    axes.plot([low - pad, 1 + pad], [low - pad, 1 + pad], color=style.GREY, linewidth=1.0, linestyle=style.DASHES[1])
    for mask, colour in ((better, style.GREEN), (worse, style.VERMILION), (~better & ~worse, style.GREY)):
        axes.scatter(*points[mask].T, s=size, color=colour, alpha=0.6, linewidths=0)
    axes.set_xlim(low - pad, 1 + pad)
    axes.set_ylim(low - pad, 1 + pad)
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    said = ((0.03, 0.95, "left", f"better: {better.mean():.0%}", style.GREEN),
            (0.97, 0.05, "right", f"worse: {worse.mean():.0%}", style.VERMILION))  # fmt: skip
    for x, y, side, words, colour in said:
        axes.text(x, y, words.replace("%", " %"), transform=axes.transAxes, ha=side, va="center",
                  color=style.darker(colour), fontsize=9)  # fmt: skip
    axes.set_xlabel("accuracy with the shared model")
    axes.set_title("accuracy with the client's own model")
    return picture(
        figure,
        name="personal-gain",
        title="What a personal model gains",
        note="One dot per client; above the dashed line its own model serves it better than the shared one.",
        alt=f"Personal models are better for {better.mean():.0%} of {points.shape[0]} clients, "
        f"worse for {worse.mean():.0%}.",
        marks=points.shape[0],
    )


def label_map(data: DataCard) -> Picture | None:
    """Draw which client holds how much of which class: bubbles for few clients, else a map of shares."""
    counts = data.label_counts
    if counts is None or not counts.any():
        return None
    figure, axes, few = _label_figure(data, counts)
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


def _label_figure(data: DataCard, counts: Floats) -> tuple[Figure, Axes, bool]:
    n, k = counts.shape
    names = data.classes if len(data.classes) == k else tuple(str(index) for index in range(k))
    few = n <= BUBBLES_UP_TO and k <= 40
    height = 1.0 + min(4.2, max(1.5, 0.2 * k)) if few else 1.0 + min(4.4, max(1.9, 0.19 * k))
    longest = max(len(name) for name in names) if k <= 40 else 4
    figure, axes = canvas(width=11.4, height=height, left=0.35 + 0.075 * min(longest, 16), right=1.15 if few else 1.0)
    _bubbles(axes, counts) if few else _map_of_shares(figure, axes, counts)
    every = 1 if k <= 26 else -(-k // 20)
    axes.set_yticks(range(0, k, every), [name if len(name) <= 16 else name[:15] + "…" for name in names[::every]])
    axes.set_ylim(k - 0.4, -0.6) if few else axes.set_ylim(k - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_title("class")
    return figure, axes, few


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
        figure, _, _ = _label_figure(data, data.label_counts)
        figure.savefig(path, dpi=200, facecolor=style.SURFACE, bbox_inches="tight")
    return path


def _bubbles(axes: Axes, counts: Floats) -> None:
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
    axes.xaxis.get_major_locator().set_params(integer=True)
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
        shares[order].T, aspect="auto", cmap=shades, vmin=0, vmax=1, interpolation="none", extent=(0, n, k - 0.5, -0.5)
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
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

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
    counts, _ = np.histogram(held, bins=edges)
    figure, axes = canvas()
    axes.stairs(counts, edges, fill=True, color=style.BLUE, alpha=0.8, linewidth=0)
    if spans:
        axes.set_xscale("log")
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
    axes.annotate(
        f"the largest 10 % of clients hold {units.share(tenth)}", (0.1, tenth), xytext=(9, -4),
        textcoords="offset points", fontsize=8.5, color=style.darker(style.BLUE),
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
