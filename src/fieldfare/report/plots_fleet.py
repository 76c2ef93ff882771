"""Pictures of a fleet: who is available when and for how long, how fast devices and links are.

Here: functions from a `Described` to axes, a `Picture` or a file. Not here: the numbers (`fleet.describe`). Kept:
nothing is drawn that the facts do not hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.fleet.availability import DAY_S, WEEK_S
from fieldfare.fleet.describe import Described
from fieldfare.report import style, units
from fieldfare.report.style import Picture, canvas, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def availability_curve(described: Described) -> Picture:
    """The share of devices available over the period; call it inside `style.drawing`."""
    figure, axes = canvas(width=11.4, height=2.9)
    _curve(axes, described)
    facts = described.facts
    return picture(
        figure,
        name="fleet-availability",
        title="Devices available over time",
        note="Share of all devices, half-hour means over the period after which the traces repeat.",
        alt=f"Between {units.share(facts['available_share_min'])} and {units.share(facts['available_share_max'])} of "
        f"{facts['devices']:,} devices are available, {units.share(facts['available_share_mean'])} on average.",
        wide=True,
    )


def save_fleet(described: Described, out: str | Path) -> Path:
    """Draw a fleet into a `.png` or `.svg`: availability, windows, each device's share, speed and links.

    Raises `UsageError` for a name that ends otherwise, `MissingExtra` without matplotlib.
    """
    path = Path(out)
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"the picture {path} has no known form: use a name that ends in .png or .svg.")
    with style.drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11.4, 7.4), facecolor="none")
        _curve(figure.add_axes((0.055, 0.565, 0.93, 0.345)), described)
        _windows(figure.add_axes((0.055, 0.085, 0.235, 0.345)), described)
        _device_shares(figure.add_axes((0.345, 0.085, 0.235, 0.345)), described)
        _links(figure.add_axes((0.635, 0.085, 0.15, 0.345)), described)
        _compute(figure.add_axes((0.835, 0.085, 0.15, 0.345)), described)
        facts = described.facts
        figure.text(0.055, 0.965, f"{facts['name']}, {facts['devices']:,} devices", color=style.INK, fontsize=12)
        figure.savefig(path, dpi=160, facecolor=style.SURFACE, metadata={"Date": None} if path.suffix == ".svg" else {})
    return path


def _curve(axes: Axes, described: Described) -> None:
    hours, share = described.time_s / 3600, 100 * described.share
    axes.plot(hours, share, color=style.BLUE, solid_joinstyle="round")
    axes.fill_between(hours, share, color=style.BLUE, alpha=0.12, linewidth=0)
    facts = described.facts
    length = described.time_s[-1] + described.time_s[0]
    for at, va in ((int(np.argmax(share)), "bottom"), (int(np.argmin(share)), "top")):
        axes.plot(hours[at], share[at], "o", color=style.VERMILION, markersize=4.5)
        axes.annotate(
            f"{share[at]:.3g} %", (hours[at], share[at]), xytext=(6, 5 if va == "bottom" else -5), va=va,
            textcoords="offset points", color=style.darker(style.VERMILION), fontsize=8.5,
        )  # fmt: skip
    mean = 100 * facts["available_share_mean"]
    axes.axhline(mean, color=style.MUTED, linewidth=0.9, linestyle=style.DASHES[1])
    axes.annotate(f"mean {mean:.3g} %", (hours[0], mean), xytext=(4, 3), textcoords="offset points",
                  color=style.MUTED, fontsize=8.5)  # fmt: skip
    axes.set_title("devices available (%)")
    axes.set_ylim(0, max(float(share.max()) * 1.15, 1e-6))
    axes.set_xlim(0, length / 3600)
    if length > 2 * DAY_S:
        days = range(int(length // DAY_S) + 1)
        names = [_DAYS[day % 7] if length == WEEK_S else f"day {day + 1}" for day in days]
        names[-1] = "" if length % DAY_S == 0 else names[-1]
        axes.set_xticks([24 * day for day in days], names, ha="left")
        axes.set_xlabel("time (UTC)" if length == WEEK_S else "time")
    else:
        axes.set_xlabel("time (h)")


def _windows(axes: Axes, described: Described) -> None:
    lengths = described.windows_s[np.isfinite(described.windows_s)]
    axes.set_title("windows that last longer (%)")
    if not len(lengths):
        axes.text(0.5, 0.5, "always available", transform=axes.transAxes, ha="center", color=style.MUTED)
        return
    every = np.linspace(0, len(lengths) - 1, min(len(lengths), 500)).astype(int)
    axes.plot(lengths[every], 100 * (1 - every / len(described.windows_s)), color=style.BLUE)
    axes.set_xscale("log")
    ticks = [
        (1, "1 s"),
        (10, "10 s"),
        (60, "1 min"),
        (600, "10 min"),
        (3600, "1 h"),
        (36000, "10 h"),
        (360000, "100 h"),
    ]
    _ticks(axes, ticks, *axes.get_xlim())
    median = described.facts["median_window_s"]
    if median is not None:
        axes.axvline(median, color=style.VERMILION, linewidth=0.9, linestyle=style.DASHES[1])
        axes.annotate(f"median {_duration(median)}", (median, 96), xytext=(4, 0), textcoords="offset points",
                      color=style.darker(style.VERMILION), fontsize=8.5, va="top")  # fmt: skip
    axes.set_ylim(0, 100)
    axes.set_xlabel("length of a window")


def _device_shares(axes: Axes, described: Described) -> None:
    shares = 100 * np.sort(described.device_share)
    every = np.linspace(0, len(shares) - 1, min(len(shares), 500)).astype(int)
    axes.plot(100 * (every + 1) / len(shares), shares[every], color=style.BLUE)
    never = 100 * described.facts["never_available_share"]
    if never > 0:
        axes.axvspan(0, never, color=style.GREY, alpha=0.15, linewidth=0)
        at, ha = (never / 200, "center") if never > 40 else (never / 100 + 0.02, "left")
        axes.text(at, 0.95, f"{never:.3g} % never", va="top", ha=ha, transform=axes.transAxes, color=style.MUTED,
                  fontsize=8.5)  # fmt: skip
    axes.set_title("time a device is available (%)")
    axes.set_xlabel("devices, least available first (%)")
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)


def _links(axes: Axes, described: Described) -> None:
    axes.set_title("devices with less (%)")
    for rank, (column, words, colour) in enumerate(
        (("uplink_bytes_per_s", "up", style.GREEN), ("downlink_bytes_per_s", "down", style.BLUE))
    ):
        _below(axes, described.columns[column], colour, rank)
        axes.text(0.04, 0.95 - 0.09 * rank, words, transform=axes.transAxes, color=style.darker(colour), fontsize=8.5,
                  va="top")  # fmt: skip
    ticks = [(1e2, "100 B"), (1e4, "10 kB"), (1e6, "1 MB"), (1e8, "100 MB"), (1e10, "10 GB")]
    _ticks(axes, ticks, *axes.get_xlim())
    axes.set_xlabel("link, per second")


def _compute(axes: Axes, described: Described) -> None:
    axes.set_title("devices with less (%)")
    _below(axes, described.columns["flops_per_s"], style.VERMILION, 0)
    names = ((1e6, "M"), (1e9, "G"), (1e12, "T"))
    ticks = [(unit * times, f"{times}{name}") for unit, name in names for times in (1, 10, 100)]
    _ticks(axes, ticks, *axes.get_xlim())
    axes.set_xlabel("FLOP/s in training")


def _below(axes: Axes, column: Any, colour: str, rank: int) -> None:
    values = np.sort(np.asarray(column, np.float64))
    values = values[np.isfinite(values) & (values > 0)]
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    if not len(values):
        return
    every = np.linspace(0, len(values) - 1, min(len(values), 400)).astype(int)
    below = 100 * (every + 1) / len(values)
    if len(values) == 1:
        values, every, below = np.repeat(values, 2), np.array([0, 1]), np.array([0.0, 100.0])
    axes.plot(values[every], below, color=colour, linestyle=style.DASHES[rank])


def _ticks(axes: Axes, ticks: list[tuple[int, str]], low: float, high: float) -> None:
    """Name round values of a logarithmic axis in words: as many as fit."""
    kept: list[Any] = [(at, name) for at, name in ticks if low <= at <= high]
    axes.set_xticks([at for at, _ in kept], [name for _, name in kept])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
