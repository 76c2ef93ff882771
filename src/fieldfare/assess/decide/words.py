"""Numbers of a decision in words, and links to the artefacts they are from."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from math import isfinite
from typing import Any

from fieldfare.report import units

TITLES: Mapping[str, str] = {
    "package_bytes": "Model file and assets", "task_p95_s": "Slow task (95 %)",
    "task_over_session": "Slow task over median session", "cpu_pct": "Processor in use", "memory_bytes": "Memory",
    "battery_share_per_day": "Battery a day", "eligible_share_devices": "Devices that may take part",
    "metric_loss_share": "Loss of quality against the central model",
    "band_over_median": "Worst trial's loss over the limit",
    "worst_group_gap": "Worst device class's loss over all's", "time_to_target_s": "Time to target",
    "ingress_bytes_per_s": "Updates into the enclave", "waste_share": "Tasks that did not count",
    "device_h": "Devices' time", "checkins_per_s": "Check-ins", "epsilon": "Epsilon",
    "delta_times_population": "Delta times population", "attack_success": "Attacks that succeed",
    "concurrency": "Clients at work, or asked", "buffer": "Replies a version takes", "staleness": "Staleness limit",
    "lr": "Clients' learning rate", "server_lr": "Server's learning rate", "trials": "Trials, each of its own seed",
    "device_s_to_target": "Devices' time to target", "device_s": "Devices' time in all", "versions": "Versions made",
    "metric_final": "Metric at the end", "metric_central": "Metric of the central model",
    "tasks_started": "Tasks started", "tasks_ok": "Tasks that counted", "bytes_down": "Bytes to devices",
    "bytes_up": "Bytes from devices",
    "updates_per_s_peak": "Updates at the peak", "updates_per_s": "Updates", "mechanism": "Mechanism",
    "population": "Population", "delta": "Delta", "ingress_bytes_per_s_peak": "Updates into the enclave, at the peak",
    "aggregators": "Aggregators", "tee_memory_bytes": "Memory of the enclave", "storage_bytes": "Storage",
    "energy_j": "Energy", "carbon_g": "Carbon", "cost": "Cost", "checkins_per_s_peak": "Check-ins, at the peak",
    "version_s": "Time of a version", "compute_h": "Devices' computing", "device_bytes": "Held on a device",
    "egress_bytes_per_s_peak": "Models out to devices, at the peak", "client_energy_j": "Energy of devices",
    "network_energy_j": "Energy of the network", "server_energy_j": "Energy of servers",
    "battery_share_per_task": "Battery a task",
}  # fmt: skip
"""What numbers are called for people."""

HEADINGS: Mapping[str, str] = {
    "share_devices": "of devices", "share_device_s": "of devices' time", "leave_one_out_gain": "gained without it",
    "leave_one_out_gain_s": "gained of time", "unknown_sessions": "sessions that do not tell", "n_devices": "devices",
    "stopped_h": "played to", "tasks_started": "tasks", "waste_share": "did not count",
    "metric_final": "metric at the end", "metric_seen": "metric, smoothed", "time_to_target_s": "to target",
    "version_s": "a version",
}  # fmt: skip
"""What a table's columns are called, where their own name does not read well."""


def title(name: str) -> str:
    """A number's name for people.

    >>> title("worst_group_gap"), title("sessions_kept")
    ("Worst device class's loss over all's", 'Sessions kept')
    """
    return TITLES.get(name) or name[:1].upper() + name[1:].replace("_", " ")


def plainly(text: str) -> str:
    """A sentence with numbers' names for people in place of those of programs.

    >>> plainly("Is the privacy budget acceptable? No: attack_success: 18 % is above 10 %")
    'Is the privacy budget acceptable? No: Attacks that succeed: 18 % is above 10 %'
    """
    for name in sorted(TITLES, key=len, reverse=True):
        text = text.replace(f" {name}: ", f" {TITLES[name]}: ")
    return text


def words(value: float | None, unit: str) -> str:
    """A number in its unit, for people; seconds, bytes, joules and shares in the size that reads best.

    >>> words(4.2 * 86400, "s"), words(0.0185, "share"), words(2.68e6, "B/s"), words(None, "s")
    ('4.2 days', '1.85 %', '2.68 MB/s', 'missing')
    """
    if value is None:
        return "missing"
    match unit:
        case "s" if value >= 2 * 86_400:
            return f"{value / 86_400:.3g} days" if value < 1000 * 86_400 else f"{value / 86_400:,.0f} days"
        case "s":
            return units.duration(value)
        case "h":
            return f"{value:,.3g} h" if value < 1000 else f"{value:,.0f} h"
        case "B":
            return units.size(value)
        case "B/s":
            return f"{units.size(value)}/s"
        case "J":
            return units.energy(value)
        case "share" | "%":
            return f"{value * (100 if unit == 'share' else 1):.3g} %"
        case "1" | "":
            return units.number(value)
        case "g":
            return f"{value / 1000:,.3g} kg" if value >= 1000 else f"{value:.3g} g"
        case _:
            return f"{units.number(value)} {unit}"


def cell(column: str, value: Any) -> str:
    """A table's number in the unit that its column's name ends on; text and plain numbers as they are.

    >>> cell("storage_bytes", 7.6e5), cell("share_devices", 0.22), cell("mean_s", 61.81), cell("rows", 6000)
    ('760 kB', '22 %', '61.8 s', '6,000')
    """
    if isinstance(value, int):
        value = float(value) if _unit(column) else value
    if isinstance(value, float):
        if not isfinite(value):
            return "missing"
        unit = _unit(column)
        return words(value, unit) if unit else f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def heading(column: str) -> str:
    """A column's name without its unit, which its cells have.

    >>> heading("storage_bytes"), heading("lognormal_sigma"), heading("n_devices")
    ('storage', 'lognormal sigma', 'devices')
    """
    if column in HEADINGS:
        return HEADINGS[column]
    unit = _unit(column)
    name = column.removesuffix("_s") if unit == "s" else column.removesuffix("_bytes") if unit == "B" else column
    return name.removesuffix("_pct").replace("_", " ")


def _unit(column: str) -> str:
    if column == "unknown_sessions" or column.startswith("share_") or column.endswith("share") or "_gain" in column:
        return "share"
    ends = {"bytes": "B", "_s": "s", "_pct": "%", "_h": "h"}
    return next((unit for end, unit in ends.items() if column.endswith(end)), "")


def source(sha256: str | None) -> str:
    """A link to the artefact of this hash on the page, as markup; nothing where there is none."""
    return f'<a class="src" href="#a{escape(sha256[:12])}">{escape(sha256[:8])}</a>' if sha256 else ""
