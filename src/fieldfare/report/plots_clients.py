"""Pictures of how well the model serves each client.

Here: functions from `Evaluation` to a `Picture`, None when there is nothing to draw. Call them inside `style.drawing`.
Not here: anything along rounds (`plots`), what data the clients hold (`plots_data`). Kept: every client counts once,
whatever its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fieldfare.report import style, units
from fieldfare.report.plots import metric_axis
from fieldfare.report.read import Evaluation
from fieldfare.report.style import Label, Picture, canvas, label_ends, picture
from fieldfare.report.table import Floats

_KINDS = {"federated": ("shared model", style.GREEN), "personal": ("personal models", style.PURPLE)}


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
        """The mean accuracy of the tenth of clients that are served worst."""
        return units.worst_decile(self.accuracy)


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
    marks = [(group.worst_decile, "worst decile", style.DASHES[1], group) for group in groups]
    marks += [(group.mean, "mean", "-", group) for group in groups]
    left = float(np.mean([x for x, *_ in marks])) > (edges[0] + edges[-1]) / 2
    for rank, (x, words, dash, group) in enumerate(sorted(marks, key=lambda mark: -mark[0] if left else mark[0])):
        tone = style.darker(group.colour)
        y = 1.0 - 0.085 * (rank + 0.5)
        axes.axvline(x, ymax=y, color=tone, linewidth=1.2, linestyle=dash)
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
        note="Every client counts once. Worst decile: the mean over the tenth of clients served worst.",
        alt=f"Histogram of the accuracy of clients; {told}.",
    )


def accuracy_sorted(groups: Sequence[Served]) -> Picture | None:
    """Draw each group's clients from worst to best, the worst decile shaded."""
    from matplotlib.ticker import PercentFormatter

    if not groups:
        return None
    names = [f"{style.shorten(group.name)} " if len(groups) > 1 else "" for group in groups]
    figure, axes = canvas(height=3.3, right=style.room(f"{name}100.0 %" for name in names))
    axes.axvspan(0, 0.1, color=style.VERMILION, alpha=0.09, linewidth=0)
    labels: list[Label] = []
    for group, name in zip(groups, names, strict=True):
        ordered = np.sort(group.accuracy)
        if ordered.size > 1001:
            ordered = np.quantile(ordered, np.linspace(0, 1, 1001))
        x = (np.arange(ordered.size) + 0.5) / ordered.size
        axes.plot(x, ordered, color=group.colour, linestyle=style.DASHES[group.dash])
        tone = style.darker(group.colour)
        worst = group.worst_decile
        axes.plot([0, 0.1], [worst, worst], linewidth=2.2, color=tone)
        labels.append(Label(1.0, float(ordered[-1]), f"{name}{units.share(worst)}", group.colour))
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
    return picture(
        figure,
        name="clients-sorted",
        title="Clients from worst to best",
        note="A flat curve serves all clients alike; the shaded tenth is who is left behind. "
        "At the right: its mean accuracy (bars), the worst decile.",
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
