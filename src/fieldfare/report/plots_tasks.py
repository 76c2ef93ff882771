"""Pictures of the tasks of a run: how they ended and what was lost, how stale replies were, whose they were.

Here: functions from a `Work` or `Groups` to a `Picture`, None when there is nothing to draw. Call them inside
`style.drawing`. Not here: adding up (`read_tasks`, `groups`). Kept: an outcome has one colour and one name on a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldfare.fleet.tasks import DROP_OUT, INTERRUPTED, LATE, OK, OUTCOMES, REFUSED, STALE, TIMEOUT
from fieldfare.report import style, units
from fieldfare.report.groups import Groups, share_of
from fieldfare.report.read_tasks import Strip, Work, quantile_of
from fieldfare.report.style import Picture, canvas, picture
from fieldfare.report.table import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WORDS = ("counted", "interrupted", "timed out", "late", "too stale", "refused", "dropped out")
LOOK = {at: (word, style.OUTCOMES.get(OUTCOMES[at], style.BLUE)) for at, word in enumerate(_WORDS)}
"""What an outcome is called for people, and its colour."""
WHY = {
    OK: "its reply is part of a model",
    INTERRUPTED: "the device's session ended first",
    TIMEOUT: "it took longer than a task may",
    LATE: "it replied after the round was over",
    STALE: "it replied, from a model too old by then",
    REFUSED: "its numbers could not be used",
    DROP_OUT: "it was never heard of again",
}
_PALE, _SESSION = "#d5dbe0", "#dfe7ee"
STAGES = {
    "counted": style.BLUE, "asked in vain": style.ORANGE, "available, never asked": style.LIGHT,
    "never asked": _PALE, "never available": _PALE,
}  # fmt: skip
"""How far devices come, furthest first, and the colours of that."""
ROW = 0.3


def legend(axes: Axes, words: Sequence[tuple[str, str]]) -> None:
    """Name colours in one line above the axes, at its right end."""
    above(axes, _patches(words))


def _patches(words: Sequence[tuple[str, str]]) -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(facecolor=colour, edgecolor="none", label=text) for text, colour in words]


def above(axes: Axes, named: Sequence[Any], columns: int | None = None) -> None:
    """Name marks above the axes, at their right end, in lines of so many `columns` (none: one line)."""
    axes.legend(
        handles=named, ncols=columns or len(named), loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.35,
        borderpad=0.0, handlelength=0.9, handleheight=0.9, handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip


def waste(work: Work) -> Picture | None:
    """Draw the shares of tasks, device time, bytes and energy that did not count, by cause; None where all counted."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    present = [one for one in work.outcomes() if one != OK]
    if not present:
        return None
    moved = work.taken["bytes_down"] + work.taken["bytes_up"]
    rows = [("tasks", work.count.astype(np.float64)), ("device time", work.taken["device_s"]), ("bytes", moved),
            ("energy", work.taken["energy_j"])]  # fmt: skip
    rows = [(name, share_of(values)) for name, values in rows if values.sum() > 0]
    figure, axes = canvas(width=11.4, height=0.82 + 0.3 * len(rows), left=0.95, right=0.75)
    for at, (_, shares) in enumerate(rows):
        floor = 0.0
        for one in present:
            axes.barh(at, shares[one], left=floor, height=0.62, color=LOOK[one][1], linewidth=0)
            floor += float(shares[one])
        axes.annotate(units.share(floor), (floor, at), xytext=(4, 0), textcoords="offset points", va="center_baseline",
                      color=style.INK, fontsize=8.5)  # fmt: skip
    axes.set_xlim(0, 1.02 * max(float(shares[present].sum()) for _, shares in rows))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{units.number(round(100 * value, 6))} %"))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("share of all")
    legend(axes, [LOOK[one] for one in present])
    spent = work.taken["device_s"]
    share = float(share_of(spent)[present].sum())
    worst = max(present, key=lambda one: float(spent[one]))
    return picture(
        figure,
        name="waste",
        title="Lost work, by cause",
        note=f"{units.share(share)} of the devices' time went into tasks that did not count, most of it into those "
        f"that {_verb(worst)}.",
        alt="Shares of device time lost: "
        + ", ".join(f"{LOOK[one][0]} {units.share(float(share_of(spent)[one]))}" for one in present)
        + ".",
        wide=True,
    )


def _verb(outcome: int) -> str:
    verbs = {INTERRUPTED: "were interrupted", LATE: "came late", STALE: "were too stale", REFUSED: "were refused"}
    return verbs.get(outcome, LOOK[outcome][0])


def staleness(work: Work) -> Picture | None:
    """Draw how many replies came how many versions late; None in a run whose replies never are stale."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if work.staleness is None or work.thrown_away is None or not (work.staleness.sum() + work.thrown_away.sum()):
        return None
    good, old = work.staleness, work.thrown_away
    step = max(1, -(-len(good) // 60))
    groups = -(-len(good) // step)
    pad = groups * step - len(good)
    tall = [np.pad(one, (0, pad)).reshape(groups, step).sum(axis=1) for one in (good, old)]
    x = np.arange(groups) * step + (step - 1) / 2
    figure, axes = canvas()
    axes.bar(x, tall[0], width=0.86 * step, color=style.BLUE, linewidth=0)
    axes.bar(x, tall[1], width=0.86 * step, bottom=tall[0], color=LOOK[STALE][1], linewidth=0)
    axes.set_ylim(0, 1.12 * float((tall[0] + tall[1]).max()))
    axes.set_xlim(-0.5 - 0.2 * step, groups * step - 0.5 + 0.2 * step)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.number(value)))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("versions made while a reply was on its way")
    axes.set_title("replies")
    if old.sum():
        legend(axes, [("counted", style.BLUE), (f"thrown away: {int(old.sum()):,}", LOOK[STALE][1])])
    note, alt = "", f"{int(old.sum())} replies were thrown away as too stale."
    if good.sum():
        mean = float(np.average(np.arange(len(good)), weights=good))
        middle, tail = quantile_of(good, 0.5), quantile_of(good, 0.9)
        longest = int(np.flatnonzero(good)[-1])
        note = (
            f"Of the replies that counted, half were at most {middle} versions old and nine in ten at most {tail}; "
            f"{units.number(mean, 3)} on average, the oldest {longest}."
        )
        alt = f"Histogram of staleness: {note} {alt}"
    return picture(figure, name="staleness", title="How stale replies were", note=note or alt, alt=alt)


def participation(groups: Groups) -> Picture:
    """Draw each group's share of the devices, of the tasks and of the updates; and how far its devices came.

    How far is left out where all came equally far.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    count = len(groups.names)
    stages = [(name, shares) for name, shares in groups.stages() if shares.max() > 0]
    both = len(stages) > 1
    width, height = 11.4 if both else 5.6, 0.95 + ROW * max(count, 3)
    figure = Figure(figsize=(width, height), facecolor="none")
    names = [style.shorten(name, 26) for name in groups.names]
    left, beside, gap = 0.2 + style.room([*names, "examples"]), 0.75, 0.45
    half = (width - left - gap - beside - 0.25) / 2 if both else width - left - beside
    low, tall = 0.5 / height, 1 - (0.5 + 0.34) / height
    drawn = [figure.add_axes((left / width, low, half / width, tall), facecolor="none")]
    _shares(drawn[0], groups)
    drawn[0].text(-0.012, 1.0 + 0.1 / (tall * height), "examples" if groups.kind == "examples" else "class", ha="right",
                  transform=drawn[0].transAxes, color=style.MUTED, fontsize=9)  # fmt: skip
    if both:
        box = ((left + half + beside + gap) / width, low, half / width, tall)
        drawn.append(figure.add_axes(box, facecolor="none"))
        _how_far(drawn[1], stages)
    for axes in drawn:
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_yticks(range(count), names if axes is drawn[0] else [""] * count)
        axes.tick_params(axis="y", labelcolor=style.INK)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.grid(axis="y", visible=False)
    what = "examples held" if groups.kind == "examples" else "class of device"
    told, ratio = _left_out(groups), groups.ratio()
    return picture(
        figure,
        name=f"participation-{groups.kind}",
        title=f"Who takes part, by {what}",
        note=f"{told} ×\N{NO-BREAK SPACE}1 is a fair share: as many of the updates that counted as of the devices.",
        alt=f"Shares of updates over shares of devices by {what}: "
        + ", ".join(f"{name} {value:.2f}" for name, value in zip(groups.names, ratio, strict=True))
        + f". {told}",
        marks=8 * count,
        wide=both,
    )


def _shares(axes: Axes, groups: Groups) -> None:
    """Each group's share of the devices as a bar, of tasks begun and of updates that counted as marks upon it."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    at = np.arange(len(groups.names))
    devices, begun, counted = share_of(groups.devices), share_of(groups.begun), share_of(groups.counted)
    axes.barh(at, devices, height=0.62, color=_PALE, linewidth=0)
    named: list[Any] = _patches([("devices", _PALE)])
    for words, shares, marker, colour, size in (
        ("tasks begun", begun, "D", style.ORANGE, 5.0), ("updates that counted", counted, "o", style.BLUE, 6.5)
    ):  # fmt: skip
        if shares is begun and np.array_equal(groups.begun, groups.counted):
            continue
        how: dict[str, Any] = {"marker": marker, "linestyle": "", "color": colour, "markersize": size}
        axes.plot(shares, at, markeredgewidth=0, zorder=3, **how)
        named.append(Line2D([], [], markeredgewidth=0, label=words, **how))
    for row, ratio in enumerate(groups.ratio()):
        tone = style.VERMILION if ratio < 0.8 else style.GREEN if ratio > 1.25 else style.GREY
        axes.text(1.02, row, f"× {ratio:.2f}", transform=axes.get_yaxis_transform(), va="center_baseline",
                  color=style.darker(tone), fontsize=8.5)  # fmt: skip
    axes.set_xlim(0, 1.06 * float(max(devices.max(), begun.max(), counted.max())))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("share of all")
    above(axes, named)


def _how_far(axes: Axes, stages: Sequence[tuple[str, Floats]]) -> None:
    """Each group's devices by how far they came, as shares of the group."""
    floor = np.zeros(len(stages[0][1]))
    for name, shares in stages:
        axes.barh(np.arange(len(floor)), shares, left=floor, height=0.62, color=STAGES[name], linewidth=0)
        floor = floor + shares
    axes.set_xlim(0, 1)
    axes.set_xlabel("how far the devices of a group came")
    legend(axes, [(name, STAGES[name]) for name, _ in stages])


def _left_out(groups: Groups) -> str:
    """One sentence on the groups furthest from their fair share, of those that are not tiny."""
    if not groups.counted.sum():
        return "No update counted."
    ratio = groups.ratio()
    some = np.flatnonzero((groups.devices >= 0.01 * groups.devices.sum()) & np.isfinite(ratio))
    low, high = some[np.argmin(ratio[some])], some[np.argmax(ratio[some])]
    if ratio[high] - ratio[low] < 0.1:
        return "All groups have about their share."

    def told(at: np.intp) -> str:
        name = groups.names[at]
        words = f"devices with {name} examples" if groups.kind == "examples" else f"“{name}” devices"
        return f"{words} (×\N{NO-BREAK SPACE}{ratio[at]:.2f})"

    return f"Most left out are {told(low)}, most heard {told(high)}."


def strip(
    shown: Strip, span_s: float, kinds: Sequence[str] | None = None, axis_s: float | None = None
) -> Picture | None:
    """Draw when some devices were available and what they did, tasks coloured by how they ended.

    `kinds`: the class of each device shown, to write beside its id. `axis_s`: how far the axis goes, where the strips
    of several runs share one.
    """
    if not shown.devices or not shown.until_s > 0:
        return None
    axis_s = max(axis_s or 0.0, shown.until_s)
    scale = units.time_scale(axis_s)
    count = len(shown.devices)
    extra = 0.5 if count > shown.most else 0.0
    names = [
        f"{one:,}" + (f" · {style.shorten(kinds[at], 14)}" if kinds else "") for at, one in enumerate(shown.devices)
    ]
    places = {one: at + (extra if at >= shown.most else 0.0) for at, one in enumerate(shown.devices)}
    figure, axes = canvas(
        width=11.4, height=0.95 + 0.26 * (count + extra), left=max(0.56, 0.1 + style.room(names)), right=0.25
    )
    marks = 0
    for one, sessions in (shown.sessions or {}).items():
        bars = [(a, min(b, shown.until_s) - a) for a, b in sessions if a < shown.until_s]
        axes.broken_barh([(a / scale.divisor, w / scale.divisor) for a, w in bars], (places[one] - 0.4, 0.8),
                         facecolor=_SESSION, linewidth=0)  # fmt: skip
        marks += len(bars)
    least = axis_s / 900
    present = []
    for outcome in range(len(OUTCOMES)):
        mine = shown.tasks[shown.tasks["outcome"] == outcome]
        if not len(mine):
            continue
        present.append(outcome)
        for one in shown.devices:
            rows = mine[mine["client"] == one]
            bars = [(float(a), max(float(min(b, shown.until_s) - a), least)) for a, b in
                    zip(rows["start"], rows["end"], strict=True)]  # fmt: skip
            axes.broken_barh([(a / scale.divisor, w / scale.divisor) for a, w in bars], (places[one] - 0.27, 0.54),
                             facecolor=LOOK[outcome][1], edgecolor=style.SURFACE, linewidth=0.4)  # fmt: skip
            marks += len(bars)
    axes.set_xlim(0, axis_s / scale.divisor)
    axes.set_ylim(count - 0.5 + extra, -0.5)
    axes.set_yticks([places[one] for one in shown.devices], names)
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"virtual time [{scale.unit}]")
    axes.set_title("device")
    if span_s < axis_s:
        axes.axvline(span_s / scale.divisor, color=style.INK, linewidth=1.0)
        axes.annotate("stopped", (span_s / scale.divisor, 1.0), xycoords=("data", "axes fraction"), xytext=(4, -9),
                      textcoords="offset points", color=style.MUTED, fontsize=8.5)  # fmt: skip
    known = [("available", _SESSION)] if shown.sessions is not None else []
    legend(axes, [*known, *(LOOK[one] for one in present)])
    rest = count - shown.most
    who = f"The {shown.most} devices with most tasks" + (f", then {rest} others drawn by chance" if rest else "")
    until = f"; the first {units.duration(shown.until_s)} of {units.duration(span_s)}" if shown.until_s < span_s else ""
    busy = len(shown.tasks)
    return picture(
        figure,
        name="strip",
        title="A few devices, task by task",
        note=f"{who}{until}. A gap between two tasks is a device that waits to be asked.",
        alt=f"{who}{until}: {busy} tasks, of which "
        + ", ".join(f"{int((shown.tasks['outcome'] == one).sum())} {LOOK[one][0]}" for one in present)
        + ".",
        marks=marks,
        wide=True,
    )
