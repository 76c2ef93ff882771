"""Pictures of the tasks of several arms: at work, lost, taking part, and a few devices of each over the same hours.

Here: functions from `ArmWork` to a `Picture`, None when there is nothing to draw. Call them inside `style.drawing`. Not
here: adding up (`read_tasks`), one run alone (`plots_tasks`, `plots_time`). Kept: an arm has the colour of its curves,
an outcome that of its one name; arms stand on one axis wherever they are to be compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fieldfare.fleet.tasks import OK, OUTCOMES
from fieldfare.report import style, units
from fieldfare.report.plots import metric_axis, round_axis
from fieldfare.report.plots_arms import look
from fieldfare.report.plots_tasks import LOOK, STAGES, above, legend, strip
from fieldfare.report.plots_time import WIDTH, panels
from fieldfare.report.read_tasks import Strip, Work
from fieldfare.report.style import Label, Picture, label_ends, picture
from fieldfare.report.table import Floats

EACH = 4
"""Devices of each kind in the strip of one arm among several."""
_TALL = 0.85


@dataclass(frozen=True)
class ArmWork:
    """The tasks of one arm: its place among the arms, what was added up of each seed, and all of one run.

    ``facts`` are `read_tasks.work_facts`, one per seed that keeps tasks; ``work`` is that of the seed ``shown``.
    """

    name: str
    rank: int
    facts: tuple[Mapping[str, Any], ...]
    work: Work
    shown: str = ""

    @property
    def colour(self) -> str:
        return look(self.rank)[0]

    @property
    def dash(self) -> int:
        return look(self.rank)[1]


def at_work(arms: Sequence[ArmWork]) -> Picture | None:
    """Draw the tasks at work of each arm over the same virtual time, under the share of devices available."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    arms = [arm for arm in arms if arm.work.at_work.size and arm.work.at_work.max() > 0]
    if not arms:
        return None
    longest = max(arms, key=lambda arm: float(arm.work.edges[-1]))
    end = float(longest.work.edges[-1])
    open_to = [arm for arm in arms if arm.work.available is not None]
    traced = max(open_to, key=lambda arm: float(arm.work.edges[-1])) if open_to else None
    scale = units.time_scale(end)
    rows = len(arms) + (traced is not None)
    left, right, bottom, top, gap = 0.56, 1.05, 0.5, 0.32, 0.34
    height = bottom + top + rows * _TALL + (rows - 1) * gap
    figure = Figure(figsize=(WIDTH, height), facecolor="none")
    most = max(float(arm.work.at_work.max()) for arm in arms)
    drawn = []
    for row in range(rows):
        low = bottom + (rows - 1 - row) * (_TALL + gap)
        box = (left / WIDTH, low / height, 1 - (left + right) / WIDTH, _TALL / height)
        drawn.append(figure.add_axes(box, facecolor="none"))
    told = []
    for axes, arm in zip(drawn[rows - len(arms) :], arms, strict=True):
        edges, mean = arm.work.edges / scale.divisor, float(arm.work.at_work.mean())
        axes.stairs(arm.work.at_work, edges, fill=True, color=arm.colour, alpha=0.2, linewidth=0)
        axes.stairs(arm.work.at_work, edges, baseline=None, color=arm.colour, linewidth=1.2)
        axes.set_ylim(0, 1.12 * most)
        axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        axes.set_title(f"{style.shorten(arm.name)}: tasks at work", color=style.darker(arm.colour))
        label_ends(axes, [Label(0.0, mean, f"mean {units.number(mean, 3)}", arm.colour)])
        told.append(f"{arm.name} {units.number(mean, 3)} for {units.duration(float(arm.work.edges[-1]))}")
    if traced is not None and traced.work.available is not None:
        share, edges = traced.work.available, traced.work.edges / scale.divisor
        drawn[0].fill_between((edges[1:] + edges[:-1]) / 2, share, color=style.GREY, alpha=0.14, linewidth=0)
        drawn[0].plot((edges[1:] + edges[:-1]) / 2, share, color=style.GREY, linewidth=1.3)
        metric_axis(drawn[0], "accuracy", np.append(share, 0.0))
        drawn[0].yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        drawn[0].set_ylim(0, 1.12 * float(max(share.max(), 1e-6)))
        drawn[0].set_title("devices available")
        label_ends(drawn[0], [Label(0.0, float(share.mean()), f"mean {units.share(float(share.mean()))}", style.GREY)])
    for axes in drawn:
        round_axis(axes, "virtual_s", np.array([0.0, end / scale.divisor]))
        axes.set_xlim(0, end / scale.divisor)
        axes.tick_params(axis="x", labelbottom=axes is drawn[-1])
    drawn[-1].set_xlabel(f"virtual time [{scale.unit}]")
    note = "Tasks at work, on average over its run: " + "; ".join(told) + "."
    return picture(
        figure,
        name="arms-at-work",
        title="Tasks at work and devices available, on one clock" if traced else "Tasks at work, on one clock",
        note=note,
        alt=note,
        marks=2 * sum(arm.work.at_work.size for arm in arms),
        wide=True,
    )


def same_hours(arms: Sequence[ArmWork]) -> float:
    """Until when to show devices of every arm: when one has done `STRIP_TASKS` tasks in the arm where that is soonest.

    Where none does so many, until the last arm is over.
    """
    strips = [(arm.work.strip, float(arm.work.edges[-1])) for arm in arms if arm.work.strip is not None]
    full = [one.until_s for one, span in strips if one.until_s < span]
    return min(full) if full else max((one.until_s for one, _ in strips), default=0.0)


def fewer(shown: Strip, until_s: float, each: int = EACH) -> Strip:
    """The strip until `until_s` at the latest, of the first `each` of its most active devices and `each` others."""
    rest = shown.devices[shown.most :]
    devices = shown.devices[: min(each, shown.most)] + rest[:each]
    until = min(until_s, shown.until_s)
    kept = np.isin(shown.tasks["client"], devices) & (shown.tasks["start"] < until)
    told = None if shown.sessions is None else {one: shown.sessions.get(one, []) for one in devices}
    return Strip(devices, min(each, shown.most), until, shown.tasks[kept], told)


def strips(arms: Sequence[ArmWork]) -> list[Picture | None]:
    """Draw a few devices of each arm task by task, all over the same hours."""
    until = same_hours(arms)
    drawn: list[Picture | None] = []
    for arm in arms:
        work = arm.work
        if work.strip is None:
            continue
        shown = fewer(work.strip, until)
        one = strip(shown, float(work.edges[-1]), kinds_of(work, shown), axis_s=until)
        drawn.append(of_arm(one, arm))
    return drawn


def of_arm(drawn: Picture | None, arm: ArmWork) -> Picture | None:
    """A picture of one arm, named after it (and its run, where it has several); its identifiers are its own."""
    if drawn is None:
        return None
    where = f" (seed {arm.shown})" if arm.shown else ""
    markup = re.sub(r'(id="|href="#|url\(#)', rf"\1arm{arm.rank}-", drawn.markup)
    return replace(drawn, title=f"{arm.name}: {drawn.title[0].lower()}{drawn.title[1:]}{where}", markup=markup)


def kinds_of(work: Work, shown: Strip) -> list[str] | None:
    """The class of each device shown; None where classes are not known, or not of every device."""
    if work.devices is None or not work.kinds or work.every != 1:
        return None
    found = [int(work.devices["kind"][one]) for one in shown.devices]
    return [work.kinds[kind] if kind >= 0 else "" for kind in found]


_TAKEN = (("tasks", "tasks"), ("device_s", "device time"), ("bytes", "bytes"), ("energy_j", "energy"))


def lost_shares(facts: Sequence[Mapping[str, Any]], what: str) -> Floats:
    """The share of `what` (`tasks`, `device_s`, `bytes`, `energy_j`) that ended in each way, `[len(OUTCOMES)]`.

    The mean over seeds; zeros where there was none of it.
    """
    found = []
    for one in facts:
        rows = [one["waste"].get(name, {}) for name in OUTCOMES]
        keys = ("bytes_down", "bytes_up") if what == "bytes" else (what,)
        values = np.array([sum(float(row.get(key, 0.0)) for key in keys) for row in rows])
        found.append(values / values.sum() if values.sum() > 0 else values)
    return np.mean(found, axis=0)


def waste(arms: Sequence[ArmWork]) -> Picture | None:
    """Draw each arm's shares of tasks, device time, bytes and energy that did not count, by cause; None without any."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    shares = {what: np.stack([lost_shares(arm.facts, what) for arm in arms]) for what, _ in _TAKEN}
    against = [(what, words) for what, words in _TAKEN if shares[what].sum() > 0]
    present = [at for at in range(len(OUTCOMES)) if at != OK and any(shares[what][:, at].any() for what, _ in against)]
    if not present:
        return None
    names = [style.shorten(arm.name, 26) for arm in arms]
    figure, drawn = panels(
        len(against), height=0.9 + 0.3 * len(arms), left=0.15 + style.room(names), right=0.5, gap=0.42
    )  # fmt: skip
    highest = max(float(shares[what][:, present].sum(axis=1).max()) for what, _ in against)
    for axes, (what, words) in zip(drawn, against, strict=True):
        floor = np.zeros(len(arms))
        for one in present:
            values = shares[what][:, one]
            axes.barh(np.arange(len(arms)), values, left=floor, height=0.62, color=LOOK[one][1], linewidth=0)
            floor = floor + values
        for at, value in enumerate(floor):
            axes.annotate(units.share(float(value)), (float(value), at), xytext=(4, 0), textcoords="offset points",
                          va="center_baseline", color=style.INK, fontsize=8.5)  # fmt: skip
        axes.set_xlim(0, 1.2 * highest)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{units.number(round(100 * value, 6))} %"))
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"of all {words}")
    drawn[0].set_yticks(range(len(arms)), names)
    drawn[0].tick_params(axis="y", labelcolor=style.INK)
    legend(drawn[-1], [LOOK[one] for one in present])
    spent = shares["device_s"][:, present].sum(axis=1)
    order = np.argsort(-spent, kind="stable")
    told = "; ".join(f"{arms[at].name} {units.share(float(spent[at]))}" for at in order.tolist())
    seeds = " Means over seeds." if any(len(arm.facts) > 1 for arm in arms) else ""
    return picture(
        figure,
        name="arms-waste",
        title="Lost work, by cause",
        note=f"Device time that went into tasks that did not count: {told}.{seeds}",
        alt=f"Shares of device time lost: {told}.",
        marks=4 * len(arms) * len(present),
        wide=True,
    )


def how_far(arms: Sequence[ArmWork]) -> Picture | None:
    """Draw how far the devices of each arm came; None where all came equally far, or no devices are kept."""
    arms = [arm for arm in arms if any(one["participation"].get("devices") for one in arm.facts)]
    found = [
        stages_of([one["participation"] for one in arm.facts if one["participation"].get("devices")]) for arm in arms
    ]
    kinds = [name for name in STAGES if any(one.get(name, 0.0) > 0 for one in found)]
    if not arms or len(kinds) < 2:
        return None
    from matplotlib.ticker import PercentFormatter

    names = [style.shorten(arm.name, 26) for arm in arms]
    figure, axes = style.canvas(width=WIDTH, height=0.95 + 0.3 * len(arms), left=0.15 + style.room(names), right=0.75)
    floor = np.zeros(len(arms))
    for name in kinds:
        values = np.array([one.get(name, 0.0) for one in found])
        axes.barh(np.arange(len(arms)), values, left=floor, height=0.62, color=STAGES[name], linewidth=0)
        floor = floor + values
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_yticks(range(len(arms)), names)
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("of all devices")
    legend(axes, [(name, STAGES[name]) for name in kinds])
    told = "; ".join(f"{arm.name} {units.share(one.get('counted', 0.0))}" for arm, one in zip(arms, found, strict=True))
    return picture(
        figure,
        name="arms-how-far",
        title="How far devices came",
        note=f"Devices with a reply that is part of a model: {told}. What ends sooner asks fewer.",
        alt=f"Shares of devices that counted: {told}.",
        wide=True,
    )


def stages_of(facts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How far devices came and no further, as shares of them, furthest first: the mean over seeds."""
    found: dict[str, list[float]] = {}
    for one in facts:
        n, reached, asked = float(one["devices"]), float(one["reached"]), float(one["asked"])
        row = {"counted": reached, "asked in vain": asked - reached}
        if "available" in one:
            able = max(float(one["available"]), asked)
            row |= {"available, never asked": able - asked, "never available": n - able}
        else:
            row["never asked"] = n - asked
        for name, value in row.items():
            found.setdefault(name, []).append(value / n)
    return {name: sum(values) / len(facts) for name, values in found.items()}


def fair_shares(arms: Sequence[ArmWork], kind: str) -> tuple[list[str], dict[str, Floats]] | None:
    """(groups, each arm's `[g]` shares of updates over shares of devices), medians over seeds; None without groups.

    `kind`: `class` or `examples`. An arm or a seed whose groups are others than the first arm's is left out.
    """
    groups: list[str] = []
    found: dict[str, Floats] = {}
    for arm in arms:
        rows = []
        for one in arm.facts:
            told = one["participation"].get(f"by_{kind}")
            groups = groups or [row["group"] for row in told or ()]
            if told and [row["group"] for row in told] == groups and one["participation"]["counted"]:
                rows.append([float(row["updates_over_devices"]) for row in told])
        if rows:
            found[arm.name] = np.median(np.array(rows), axis=0)
    return (groups, found) if found and len(groups) > 1 else None


def participation(arms: Sequence[ArmWork], kind: str) -> Picture | None:
    """Draw each group's updates over its fair share, a mark per arm; None where there are no groups."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    both = fair_shares(arms, kind)
    if both is None:
        return None
    groups, ratio = both
    shown = [arm for arm in arms if arm.name in ratio]
    names = [style.shorten(name, 20) for name in groups]
    rows = -(-len(shown) // 4)
    figure, axes = style.canvas(
        height=1.0 + 0.2 * (rows - 1) + 0.3 * max(len(groups), 3), left=0.15 + style.room([*names, "examples"])
    )  # fmt: skip
    axes.axvline(1.0, color=style.INK, linewidth=1.0)
    markers = "oDs^vP*"
    named: list[Any] = []
    for at, arm in enumerate(shown):
        nudge = 0.0 if len(shown) == 1 else 0.44 * (at / (len(shown) - 1) - 0.5)
        how: dict[str, Any] = {"marker": markers[at % len(markers)], "linestyle": "", "color": arm.colour,
                               "markersize": 5.0, "markeredgewidth": 0}  # fmt: skip
        axes.plot(ratio[arm.name], np.arange(len(groups)) + nudge, zorder=3, alpha=0.9, **how)
        named.append(Line2D([], [], label=style.shorten(arm.name, 22), **how))
    top = max(float(np.nanmax(values)) for values in ratio.values())
    axes.set_xlim(0, 1.06 * max(top, 1.1))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"× {units.number(round(value, 6))}"))
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_yticks(range(len(groups)), names)
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("share of the updates that counted, over share of the devices")
    above(axes, named, columns=4)
    what = "examples held" if kind == "examples" else "class of device"
    told = []
    for arm in shown:
        low = int(np.nanargmin(ratio[arm.name]))
        told.append(f"{arm.name} {groups[low]} (× {ratio[arm.name][low]:.2f})")
    return picture(
        figure,
        name=f"arms-participation-{kind}",
        title=f"Who takes part, by {what}",
        note=f"At × 1 a group has its fair share. Least heard: {'; '.join(told)}.",
        alt=f"Shares of updates over shares of devices by {what}. Least heard: {'; '.join(told)}.",
        marks=len(groups) * len(shown),
    )
