"""Pictures of a trace: the weekly curve, the heat map of hours and weekdays, what each criterion leaves.

Here: functions from an artefact's tables to a `Picture`; call them inside `report.style.drawing`. Not here: the numbers
(`stats`). Kept: nothing is drawn that the tables do not hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fieldfare.assess.artefact import Artefact, words
from fieldfare.report import style
from fieldfare.report.style import Picture, canvas, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
NAMES = {
    "wifi": "Wi-Fi", "battery": "battery", "charging": "charging", "os_released": "recent OS",
    "device_allow": "device measured fit", "account_age": "account age", "reputation": "reputation",
    "min_session": "long enough", "min_gap": "rested", "all": "all of them",
}  # fmt: skip


def weekly_picture(trace: Artefact, name: str = "trace-weekly") -> Picture:
    """Clients available over the mean week, each five minutes, and where the trough and the peak lie."""
    table = trace.table("weekly")
    hours, share = np.asarray(table["t_s"]) / 3600.0, 100 * np.asarray(table["share_of_peak"], np.float64)
    figure, axes = canvas(width=11.4, height=2.9, bottom=0.42)
    axes.plot(hours, share, color=style.BLUE, linewidth=1.2)
    axes.fill_between(hours, share, color=style.BLUE, alpha=0.12, linewidth=0)
    ratio = trace.number("trough_over_peak")
    if np.isfinite(share).any():
        for at, va in ((int(np.nanargmax(share)), "bottom"), (int(np.nanargmin(share)), "top")):
            axes.plot(hours[at], share[at], "o", color=style.VERMILION, markersize=4.5, clip_on=False)
            axes.annotate(
                f"{share[at]:.3g} %", (hours[at], share[at]), xytext=(6, 3 if va == "bottom" else -4), va=va,
                textcoords="offset points", color=style.darker(style.VERMILION), fontsize=8.5,
            )  # fmt: skip
    axes.set_title("clients available, share of the weekly peak (%)")
    axes.set_ylim(0, 118)
    axes.set_xlim(0, 168)
    axes.set_xticks([24 * day for day in range(7)], list(DAYS), ha="left")
    peak = trace.number("available_peak")
    told = "" if ratio is None else f" The trough is {100 * ratio:.3g} % of the peak (hourly means)."
    return picture(
        figure, name=name, title="Availability over the week",
        note="Clients with a session that meets the criteria, mean of the log's weeks by five minutes, UTC." + told,
        alt=f"Availability over a week; at the peak {peak or 0:.3g} clients at once.{told}", wide=True,
    )  # fmt: skip


def heat_picture(trace: Artefact, name: str = "trace-heat") -> Picture:
    """Mean availability by hour and weekday, as a share of the busiest hour."""
    table = trace.table("heat")
    grid = np.full((7, 24), np.nan)
    grid[np.asarray(table["weekday"], int), np.asarray(table["hour"], int)] = 100 * np.asarray(table["share"])
    figure, axes = canvas(width=5.6, height=2.5, left=0.5)
    axes.grid(visible=False)
    _cells(axes, grid)
    axes.set_title("share of the busiest hour (%)")
    axes.set_xticks([0.5 + hour for hour in range(0, 24, 3)], [str(hour) for hour in range(0, 24, 3)])
    axes.set_yticks([0.5 + day for day in range(7)], list(DAYS))
    axes.set_ylim(7, 0)
    axes.set_xlim(0, 24)
    axes.set_xlabel("hour (UTC)")
    known = np.isfinite(grid).any()
    low = np.unravel_index(np.nanargmin(grid), grid.shape) if known else (0, 0)
    top = np.unravel_index(np.nanargmax(grid), grid.shape) if known else (0, 0)
    return picture(
        figure, name=name, title="Hours and weekdays",
        note="Darker: more clients available at once; white: not logged.",
        alt=f"Busiest on {DAYS[top[0]]} at {top[1]} h, quietest on {DAYS[low[0]]} at {low[1]} h.",
    )  # fmt: skip


def criteria_picture(trace: Artefact, name: str = "trace-criteria") -> Picture:
    """Share of devices and of device-seconds that meet each criterion, and all."""
    table: dict[str, Any] = trace.table("criteria")
    names = [NAMES.get(one, one) for one in words(table["criterion"])]
    shares = [100 * np.asarray(table[one], np.float64) for one in ("share_devices", "share_device_s")]
    figure, axes = canvas(width=5.6, height=0.95 + 0.42 * len(names), left=0.25 + style.room(names), right=0.5)
    rows = np.arange(len(names))
    for i, (label, colour) in enumerate((("devices", style.BLUE), ("device-seconds", style.GREEN))):
        axes.barh(rows + 0.2 * (2 * i - 1), shares[i], height=0.36, color=colour, label=label)
        for row, value in zip(rows.tolist(), shares[i].tolist(), strict=True):
            axes.text(value + 1, row + 0.2 * (2 * i - 1), f"{value:.3g} %", va="center", fontsize=8, color=style.MUTED)
    axes.set_yticks(rows, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 112)
    axes.set_title("share that meets it (%)")
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, 1.16 if len(names) > 3 else 1.22), ncols=2)
    told = ", ".join(f"{name} {value:.3g} %" for name, value in zip(names, shares[0].tolist(), strict=True))
    return picture(
        figure, name=name, title="What each criterion leaves",
        note="A device counts if one of its sessions meets the criterion; device-seconds are of usable time.",
        alt=f"Share of devices: {told}.",
    )  # fmt: skip


def _cells(axes: Axes, grid: Any) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("trace", [style.GRID, style.LIGHT, style.BLUE, "#00304f"])
    axes.pcolormesh(np.ma.masked_invalid(grid), cmap=colours, vmin=0, vmax=100, edgecolors="white", linewidth=0.6)
