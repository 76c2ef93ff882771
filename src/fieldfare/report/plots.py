"""Pictures of one run along its rounds: learning curves, who took part, how long it took, what it moved.

Here: functions from a `Table` (and a `Participation`) to a `Picture`, None when the run holds nothing to draw. Call
them inside `style.drawing`. Not here: distributions over clients (`plots_clients`), data (`plots_data`), several
runs at once (`plots_arms`). Kept: a picture shows stored numbers only; nothing is smoothed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldfare.report import style, units
from fieldfare.report.read import Participation
from fieldfare.report.style import Label, Picture, canvas, label_ends, picture
from fieldfare.report.table import Floats, Table, metrics_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Line:
    """One metric as a line: its column, its short name in the picture, its colour and dash."""

    metric: str
    name: str
    colour: str
    dash: int = 0


ACCURACY = (
    Line("train_accuracy", "train", style.ORANGE),
    Line("accuracy", "central test", style.BLUE),
    Line("federated_accuracy_mean", "mean client", style.GREEN),
    Line("federated_accuracy_worst_decile", "worst decile", style.GREEN, dash=1),
    Line("personal_accuracy_mean", "personal, mean", style.PURPLE),
    Line("personal_accuracy_worst_decile", "personal, worst", style.PURPLE, dash=1),
)
LOSS = (
    Line("train_loss", "train", style.ORANGE),
    Line("loss", "central test", style.BLUE),
    Line("federated_loss_mean", "mean client", style.GREEN),
    Line("personal_loss_mean", "personal, mean", style.PURPLE),
)
_AXIS_WORDS = {"round": "rounds", "virtual_s": "virtual time", "bytes": "bytes moved", "bytes_up": "bytes sent up",
               "device_s": "device-hours", "energy_j": "energy"}  # fmt: skip


def axis_scale(axis: str, largest: float) -> tuple[units.Scale, str]:
    """Give the divisor of an x axis up to ``largest`` and the words under it, unit included."""
    if axis == "round":
        return units.Scale(1.0, ""), "round"
    scale = units.scale_of(axis, largest)
    words = {"virtual_s": "virtual time", "bytes": "moved, down and up", "bytes_up": "sent up", "wall_s": "wall time",
             "device_s": "spent by devices", "energy_j": "energy of devices"}  # fmt: skip
    return scale, f"{words.get(axis, units.label(axis))} [{scale.unit}]"


def metric_axis(axes: Axes, metric: str, values: Floats) -> None:
    """Give the y axis of a metric its unit and its limits: shares in %, losses over two decades on a log scale."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

    finite = values[np.isfinite(values)]
    if not finite.size:
        return
    low, high = float(finite.min()), float(finite.max())
    pad = 0.06 * (high - low) or 0.05 * (abs(high) or 1.0)
    unit = units.unit_of(metric)
    if unit == "share" and low >= 0 and high <= 1:
        axes.set_ylim(max(-0.005, low - pad), min(1.005, high + pad))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if high - low > 0.04 else 1, symbol=" %"))
    elif low > 0 and high / low > 100:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.number(value, 3)))
        axes.set_ylim(low / 1.3, high * 1.3)
    else:
        axes.set_ylim(0.0 if 0 <= low < 0.35 * high else low - pad, high + pad)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.number(value, 4)))


def round_axis(axes: Axes, axis: str, x: Floats) -> None:
    """Set the limits of an x axis to its values and, for rounds, whole numbers only."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = float(x.min()), float(x.max())
    low = 0.0 if 0 <= low < 0.1 * high else low
    if high > low:
        axes.set_xlim(low - 0.01 * (high - low), high + 0.01 * (high - low))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=axis == "round", steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: units.number(round(value, 9), 4)))


def learning_curve(table: Table, lines: Sequence[Line], axis: str, *, what: str) -> Picture | None:
    """Draw metrics of one run against ``round``, ``virtual_s`` or ``bytes``; ``what`` heads the picture."""
    drawn = [(line, *table.series(line.metric, axis)) for line in lines]
    drawn = [(line, x, y) for line, x, y in drawn if x.size]
    if not drawn or (axis != "round" and not max(float(x.max()) for _, x, _ in drawn) > 0):
        return None
    everything = np.concatenate([x for _, x, _ in drawn])
    values = np.concatenate([y for _, _, y in drawn])
    scale, words = axis_scale(axis, float(everything.max()))
    figure, axes = canvas(right=style.room(f"{line.name} {short(line.metric, y[-1])}" for line, _, y in drawn))
    for line, x, y in drawn:
        _line(axes, x / scale.divisor, y, line.colour, line.dash)
    by_metric = {line.metric: (x, y) for line, x, y in drawn}
    for mean, worst, colour in (
        ("federated_accuracy_mean", "federated_accuracy_worst_decile", style.GREEN),
        ("personal_accuracy_mean", "personal_accuracy_worst_decile", style.PURPLE),
    ):
        if mean in by_metric and worst in by_metric and by_metric[mean][0].size == by_metric[worst][0].size:
            x, upper = by_metric[mean]
            axes.fill_between(x / scale.divisor, by_metric[worst][1], upper, color=colour, alpha=0.10, linewidth=0)
    metric_axis(axes, drawn[0][0].metric, values)
    round_axis(axes, axis, everything / scale.divisor)
    axes.set_xlabel(words)
    axes.set_title(what.lower())
    ends = [
        Label(float(x[-1] / scale.divisor), float(y[-1]), f"{line.name} {short(line.metric, y[-1])}", line.colour)
        for line, x, y in drawn
    ]
    label_ends(axes, ends)
    against = _AXIS_WORDS.get(axis, axis)
    told = "; ".join(
        f"{line.name} from {units.measured(line.metric, y[0])} to {units.measured(line.metric, y[-1])}"
        for line, _, y in drawn
    )
    return picture(
        figure,
        name=f"curve-{what.lower().replace(' ', '-')}-{axis}",
        title=f"{what} against {against}",
        note=_HOW.get(axis, ""),
        alt=f"{what} against {against}: {told}.",
        marks=int(everything.size),
    )


_HOW = {
    "round": "What each round of training bought; the values at the right are the last ones.",
    "virtual_s": "The same values on the clock of the simulated fleet: a steeper curve learns in less time.",
    "bytes": "The same values by what had been moved until then, down and up.",
}


def short(metric: str, value: float) -> str:
    """Write a value for beside a curve: three digits where it has no unit."""
    return units.measured(metric, value) if units.unit_of(metric) else units.number(float(value), 3)


def _line(axes: Axes, x: Floats, y: Floats, colour: str, dash: int = 0) -> None:
    few = x.size <= 30
    axes.plot(
        x,
        y,
        color=colour,
        linestyle=style.DASHES[dash % len(style.DASHES)],
        linewidth=1.8 if x.size <= 400 else 1.1,
        marker="o" if few else None,
        markersize=3.2 if x.size > 1 else 5,
        markeredgewidth=0,
    )


def other_metrics(table: Table, limit: int = 6) -> list[Picture]:
    """Draw each metric that is neither an accuracy nor a loss of the usual names, at most ``limit``, against rounds."""
    usual = {line.metric for line in (*ACCURACY, *LOSS)}
    found = []
    for metric in metrics_of(table):
        x, y = table.series(metric)
        if metric in usual or x.size < 2 or np.ptp(y) == 0 or metric.startswith(("federated_", "personal_")):
            continue
        name = units.label(metric)
        drawn = learning_curve(table, [Line(metric, "", style.BLUE)], "round", what=name[0].upper() + name[1:])
        if drawn is not None:
            found.append(drawn)
    return found[:limit]


def times_taken_part(part: Participation, n_clients: int | None) -> Picture:
    """Draw how many clients took part how often; those that never did are the grey bar when ``n_clients`` is known."""
    from matplotlib.ticker import MaxNLocator

    never = max(0, (n_clients or 0) - part.times.size)
    most = int(part.times.max())
    step = max(1, -(-most // 40))
    edges = np.arange(1, most + step + 1, step)
    counts, _ = np.histogram(part.times, bins=edges)
    figure, axes = canvas()
    axes.bar(edges[:-1] + (step - 1) / 2, counts, width=0.86 * step, color=style.BLUE, linewidth=0)
    if never:
        axes.bar([-(step - 1) / 2], [never], width=0.86 * step, color=style.GREY, linewidth=0)
        said = f"never took part: {never:,} ({100 * never / (n_clients or 1):.0f} %)"
        axes.text(0.985, 0.94, said, transform=axes.transAxes, ha="right", color=style.GREY, fontsize=8.5)
    axes.set_ylim(0, 1.15 * max(int(counts.max()), never))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("rounds a client took part in")
    axes.set_title("clients")
    mean = float(part.times.sum() / (n_clients or part.times.size))
    return picture(
        figure,
        name="times",
        title="How often a client took part",
        note=f"{units.number(mean, 3)} rounds per client on average; a long tail to the right means a few clients "
        "shape the model more than the others.",
        alt=f"Histogram: clients took part in up to {most} rounds, {mean:.2f} on average; {never} never did.",
    )


def reach(part: Participation, n_clients: int | None) -> Picture | None:
    """Draw how many distinct clients had taken part by each round."""
    if part.rounds.size < 2:
        return None
    total = n_clients if n_clients and n_clients >= part.seen[-1] else None
    figure, axes = canvas(right=1.0)
    y = part.seen / total if total else part.seen
    axes.fill_between(part.rounds, 0, y, color=style.GREEN, alpha=0.12, linewidth=0)
    _line(axes, part.rounds, y, style.GREEN)
    metric_axis(axes, "accuracy" if total else "clients", np.append(y, 0.0))
    round_axis(axes, "round", part.rounds)
    axes.set_xlabel("round")
    axes.set_title("clients seen so far" + (f", of {total:,}" if total else ""))
    end = units.share(float(y[-1])) if total else units.number(float(y[-1]))
    label_ends(axes, [Label(part.rounds[-1], float(y[-1]), end, style.GREEN)])
    return picture(
        figure,
        name="reach",
        title="How much of the population was reached",
        note="Distinct clients whose update had counted by each round: where it flattens, the same clients come back.",
        alt=f"By the last round {int(part.seen[-1])} distinct clients had taken part"
        + (f" of {total}." if total else "."),
        marks=int(part.rounds.size),
    )


_REASONS = (style.SKY, style.GREEN, style.BROWN, style.PURPLE, style.INK)
"""For reasons without a colour of their own."""
MOST_REASONS = 6


def turnout(table: Table, part: Participation | None) -> Picture | None:
    """Draw, per round, the clients whose update counted and, stacked upon them, those missing by reason."""
    from matplotlib.ticker import MaxNLocator

    rounds, answered = table.column("round"), table.column("clients")
    if part is not None and not np.isfinite(answered).any():
        rounds, answered = part.rounds, part.answered
    if not np.isfinite(answered).any():
        return None
    answered = np.nan_to_num(answered)
    lost = sorted(table.missing.items(), key=lambda item: -item[1].sum()) if rounds.size == table.n else []
    if len(lost) > MOST_REASONS:
        head = MOST_REASONS - 1
        lost = [*lost[:head], ("other", np.sum([counts for _, counts in lost[head:]], axis=0))]
    layers = [("counted", answered, style.LIGHT)]
    spare = iter([one for one in _REASONS if one not in {style.OUTCOMES.get(reason) for reason, _ in lost}])
    layers += [(reason, counts, style.OUTCOMES.get(reason) or next(spare, style.MUTED)) for reason, counts in lost]
    figure, axes = canvas(right=1.45)
    floor = np.zeros(rounds.size)
    labels = []
    edges = np.append(rounds - 0.5, rounds[-1] + 0.5)
    asked = float(sum(counts.sum() for _, counts, _ in layers)) or 1.0
    for name, counts, colour in layers:
        axes.stairs(floor + counts, edges, baseline=floor, fill=True, color=colour, linewidth=0)
        labels.append(
            Label(0.0, float(floor[-1] + counts[-1] / 2), f"{name} {100 * counts.sum() / asked:.1f} %", colour)
        )
        floor = floor + counts
    axes.set_ylim(0, 1.06 * float(floor.max() or 1))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    round_axis(axes, "round", edges)
    axes.set_xlabel("round")
    axes.set_title("clients asked")
    label_ends(axes, labels)
    told = ", ".join(f"{name} {int(counts.sum())}" for name, counts, _ in layers)
    return picture(
        figure,
        name="turnout",
        title="Turnout of each round",
        note="Clients asked in each round by what became of them; the shares are over the whole run.",
        alt=f"Clients asked over the whole run: {told}.",
        marks=int(rounds.size * len(layers)),
    )


def client_time(part: Participation) -> Picture | None:
    """Draw how long clients took in each round: median and the middle 80 %."""
    if part.seconds is None or part.rounds.size < 2:
        return None
    kept = np.isfinite(part.seconds).all(axis=1)
    rounds, points = part.rounds[kept], part.seconds[kept]
    if rounds.size < 2 or not points.max() > 0:
        return None
    scale = units.time_scale(float(points.max()))
    low, middle, high = (points / scale.divisor).T
    figure, axes = canvas(right=1.25)
    axes.fill_between(rounds, low, high, color=style.SKY, alpha=0.25, linewidth=0)
    _line(axes, rounds, middle, style.BLUE)
    metric_axis(axes, "time", np.concatenate([low, high, [0.0]]))
    round_axis(axes, "round", rounds)
    axes.set_xlabel("round")
    axes.set_title(f"time from ask to answer [{scale.unit}]")
    ends = ((high, "90 %", style.SKY), (middle, "median", style.BLUE), (low, "10 %", style.SKY))
    label_ends(
        axes,
        [Label(0.0, float(y[-1]), f"{name} {units.number(float(y[-1]), 3)} {scale.unit}", c) for y, name, c in ends],
    )
    usual = float(np.median(middle) * scale.divisor)
    ratio = float(np.median(high / np.maximum(middle, 1e-12)))
    return picture(
        figure,
        name="client-time",
        title="How long a client takes",
        note=f"Line: the median client of the round; band: the middle 80 %. The slow end is {ratio:.1f} times the "
        "median; a synchronous round waits for it.",
        alt=f"Client times per round: median about {units.duration(usual)}, the 90 % point {ratio:.1f} times it.",
        marks=3 * int(rounds.size),
    )


def bytes_moved(table: Table) -> Picture | None:
    """Draw what had been moved down to clients and up from them by each round, summed over clients."""
    sides = [
        (name, words, colour, table.axis(name))
        for name, words, colour in (("bytes_down", "down", style.SKY), ("bytes_up", "up", style.VERMILION))
    ]
    sides = [side for side in sides if np.isfinite(side[3]).any() and np.nanmax(side[3]) > 0]
    if not sides or table.n < 1:
        return None
    rounds = table.column("round")
    scale = units.size_scale(max(float(np.nanmax(total)) for *_, total in sides))
    figure, axes = canvas(right=1.25)
    labels = []
    for _, words, colour, total in sides:
        y = total / scale.divisor
        _line(axes, rounds, y, colour)
        labels.append(Label(0.0, float(y[-1]), f"{words} {units.size(float(total[-1]))}", colour))
    metric_axis(axes, "moved", np.concatenate([[0.0], *(total / scale.divisor for *_, total in sides)]))
    round_axis(axes, "round", rounds)
    axes.set_xlabel("round")
    axes.set_title(f"moved so far [{scale.unit}]")
    label_ends(axes, labels)
    told = ", ".join(f"{units.size(float(total[-1]))} {words}" for _, words, _, total in sides)
    return picture(
        figure,
        name="bytes",
        title="Bytes moved",
        note="Summed over all clients and all rounds until then; down is from the server to clients, up is back.",
        alt=f"Bytes moved over the whole run: {told}.",
        marks=2 * table.n,
    )


def save_label_map(facts: Mapping[str, Any], out: str | Path) -> Path:
    """Save which client holds which classes: see `plots_data.save_label_map`."""
    from fieldfare.report import plots_data

    return plots_data.save_label_map(facts, out)
