"""How a number is written for a person: seconds, bytes, shares, counts and the names of metrics.

Here: pure functions from numbers to short text, and the scale an axis takes. Not here: any drawing.
Kept: a value that is absent or not finite is written as a dash, never as ``nan``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fieldfare.core import metrics

DASH = "–"


@dataclass(frozen=True)
class Scale:
    """What an axis divides its values by, and the unit that is then written on it."""

    divisor: float
    unit: str


_TIMES = (
    Scale(1e-3, "ms"),
    Scale(1.0, "s"),
    Scale(60.0, "min"),
    Scale(3600.0, "h"),
    Scale(86400.0, "days"),
)
_DEVICE_TIMES = (
    Scale(1.0, "device-s"),
    Scale(60.0, "device-min"),
    Scale(3600.0, "device-h"),
    Scale(3.6e6, "thousand device-h"),
    Scale(3.6e9, "million device-h"),
)
_ENERGIES = (Scale(1.0, "J"), Scale(1e3, "kJ"), Scale(1e6, "MJ"), Scale(1e9, "GJ"), Scale(1e12, "TJ"))
_SIZES = (Scale(1.0, "B"), Scale(1e3, "kB"), Scale(1e6, "MB"), Scale(1e9, "GB"), Scale(1e12, "TB"))

_LABELS = {
    "accuracy": "accuracy (central test)",
    "loss": "loss (central test)",
    "train_loss": "train loss (weighted over clients)",
    "federated_accuracy_mean": "accuracy over clients, mean",
    "federated_accuracy_worst_decile": "accuracy over clients, worst decile",
    "federated_loss_mean": "loss over clients, mean",
    "federated_loss_worst_decile": "loss over clients, worst decile",
    "personal_accuracy_mean": "personal accuracy, mean",
    "personal_accuracy_worst_decile": "personal accuracy, worst decile",
    "personal_loss_mean": "personal loss, mean",
    "personal_loss_worst_decile": "personal loss, worst decile",
    "federated_accuracy_p10": "accuracy over clients, 10 % point",
    "federated_loss_p10": "loss over clients, 90 % point",
    "personal_accuracy_p10": "personal accuracy, 10 % point",
    "personal_loss_p10": "personal loss, 90 % point",
    "virtual_s": "virtual time",
    "wall_s": "wall time",
    "round": "round",
    "bytes_up": "bytes up",
    "bytes_down": "bytes down",
    "bytes_between": "bytes between nodes",
    "bytes": "bytes moved",
    "device_s": "device time",
    "energy_j": "energy",
}

_SHORT = {
    "accuracy": "accuracy",
    "loss": "loss",
    "train_loss": "train loss",
    "federated_accuracy_mean": "mean-client accuracy",
    "federated_accuracy_worst_decile": "worst-decile accuracy",
    "federated_loss_mean": "mean-client loss",
    "federated_loss_worst_decile": "worst-decile loss",
    "personal_accuracy_mean": "personal accuracy, mean",
    "personal_accuracy_worst_decile": "personal accuracy, worst decile",
}


def time_scale(largest_s: float) -> Scale:
    """Give the unit in which a time axis up to ``largest_s`` reads best.

    >>> time_scale(7200.0)
    Scale(divisor=60.0, unit='min')
    """
    if not math.isfinite(largest_s) or largest_s <= 0:
        return _TIMES[1]
    limits = (1.0, 180.0, 3 * 3600.0, 3 * 86400.0)
    return next((scale for scale, limit in zip(_TIMES, limits, strict=False) if largest_s < limit), _TIMES[-1])


def size_scale(largest_bytes: float) -> Scale:
    """Give the unit in which a bytes axis up to ``largest_bytes`` reads best: decimal, 1 MB = 1e6 B."""
    fitting = [scale for scale in _SIZES if abs(largest_bytes) >= scale.divisor]
    return fitting[-1] if fitting else _SIZES[0]


def device_scale(largest_s: float) -> Scale:
    """Give the unit in which device-seconds up to ``largest_s`` read best: hours, unless there is hardly one.

    >>> device_scale(7e5).unit, device_scale(600.0).unit
    ('device-h', 'device-min')
    """
    if not math.isfinite(largest_s) or largest_s <= 0:
        return _DEVICE_TIMES[2]
    limits = (180.0, 2 * 3600.0, 3.6e8, 3.6e11)
    return next((scale for scale, limit in zip(_DEVICE_TIMES, limits, strict=False) if largest_s < limit),
                _DEVICE_TIMES[-1])  # fmt: skip


def energy_scale(largest_j: float) -> Scale:
    """Give the unit in which an energy axis up to ``largest_j`` reads best."""
    fitting = [scale for scale in _ENERGIES if abs(largest_j) >= scale.divisor]
    return fitting[-1] if fitting else _ENERGIES[0]


def scale_of(metric: str, largest: float) -> Scale:
    """Give the unit in which an axis of ``metric``, a time, a size or an energy, reads best."""
    scales = {"seconds": time_scale, "bytes": size_scale, "device": device_scale, "joules": energy_scale}
    return scales[unit](largest) if (unit := unit_of(metric)) in scales else Scale(1.0, "")


def number(value: float | None, digits: int = 4) -> str:
    """Write a number with ``digits`` significant digits, thousands apart, no needless zeros.

    >>> number(12345678), number(0.123456), number(None)
    ('12,345,678', '0.1235', '–')
    """
    if value is None or not math.isfinite(value):
        return DASH
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if 10**digits <= abs(value) < 1e15:
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return text.replace("e-0", "e-").replace("e+0", "e+")


def duration(seconds: float | None) -> str:
    """Write a time in its natural unit.

    >>> duration(3.21), duration(5400), duration(400000)
    ('3.21 s', '90 min', '4.63 days')
    """
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds == 0:
        return "0 s"
    scale = time_scale(abs(seconds))
    return f"{number(seconds / scale.divisor, 3)} {scale.unit}"


def size(n_bytes: float | None) -> str:
    """Write a number of bytes in its natural decimal unit.

    >>> size(1_234_567)
    '1.23 MB'
    """
    if n_bytes is None or not math.isfinite(n_bytes):
        return DASH
    scale = size_scale(n_bytes)
    return f"{number(n_bytes / scale.divisor, 3)} {scale.unit}"


def device_time(seconds: float | None) -> str:
    """Write time that devices spent, summed over them, in device-hours unless there is hardly one.

    >>> device_time(1.8e6), device_time(90.0)
    ('500 device-h', '90 device-s')
    """
    if seconds is None or not math.isfinite(seconds):
        return DASH
    scale = device_scale(abs(seconds))
    return f"{number(seconds / scale.divisor, 3)} {scale.unit}"


def energy(joules: float | None) -> str:
    """Write an energy in its natural unit.

    >>> energy(12_345.0)
    '12.3 kJ'
    """
    if joules is None or not math.isfinite(joules):
        return DASH
    scale = energy_scale(joules)
    return f"{number(joules / scale.divisor, 3)} {scale.unit}"


def share(value: float | None) -> str:
    """Write a share in [0, 1] as a percentage with one decimal.

    >>> share(0.9312)
    '93.1 %'
    """
    if value is None or not math.isfinite(value):
        return DASH
    return f"{100 * value:.1f} %"


def short_label(metric: str) -> str:
    """Give the fewest words for a metric, for the head of a column.

    >>> short_label("federated_accuracy_worst_decile")
    'worst-decile accuracy'
    """
    return _SHORT.get(metric, label(metric))


def span(metric: str, low: float, high: float) -> str:
    """Write a range of ``metric``, its unit once where both ends have the same.

    >>> span("accuracy", 0.892, 0.898), span("virtual_s", 30.0, 600.0)
    ('89.2–89.8 %', '30 s – 10 min')
    """
    first, last = measured(metric, low), measured(metric, high)
    (value, _, unit), (_, _, other) = first.partition(" "), last.partition(" ")
    return f"{value}–{last}" if unit == other else f"{first} – {last}"


def unit_of(metric: str) -> str:
    """Say what a metric is measured in: ``share``, ``seconds``, ``device`` (seconds of devices), ``bytes``, ``joules``,
    ``rounds`` or ``""`` (a plain number)."""
    if metric == "round":
        return "rounds"
    if metric == "device_s" or metric.endswith("_j"):
        return "device" if metric == "device_s" else "joules"
    if metric.endswith("_s") or metric == "seconds":
        return "seconds"
    if metric.startswith("bytes") or metric.endswith("_bytes"):
        return "bytes"
    return "share" if "accuracy" in metric or metric.endswith("_share") else ""


def lower_is_better(metric: str) -> bool:
    """Say whether a smaller value of ``metric`` is the better one: losses, errors, times and bytes."""
    return metrics.lower_is_better(metric)


def worst_decile(values: Iterable[float], *, lower: bool = False) -> float:
    """Give the mean over the worst ``ceil(n / 10)`` of n values: the smallest, the largest where ``lower`` is better.

    >>> worst_decile([0.9, 0.2, 0.8]), worst_decile(range(20)), worst_decile(range(20), lower=True)
    (0.2, 0.5, 18.5)
    """
    ordered = sorted(map(float, values), reverse=lower)
    worst = ordered[: math.ceil(len(ordered) / 10)]
    return math.fsum(worst) / len(worst)


def in_unit(unit: str, value: float | None) -> str:
    """Write ``value`` in ``unit``, one of those of `unit_of`, ``points`` (percentage points) or ``times`` (a ratio)."""
    if value is None or not math.isfinite(value):
        return DASH
    match unit:
        case "share":
            return share(value) if -1.0 <= value <= 1.0 else number(value)
        case "seconds":
            return duration(value)
        case "bytes":
            return size(value)
        case "device":
            return device_time(value)
        case "joules":
            return energy(value)
        case "rounds":
            return f"{number(value)} round{'' if value == 1 else 's'}"
        case "points":
            return f"{100 * value:+.1f} points".replace("-", "−") if abs(value) <= 1.0 else number(value)
        case "times":
            return f"{number(value, 3)} ×"
        case _:
            return number(value)


def measured(metric: str, value: float | None) -> str:
    """Write ``value`` of ``metric`` in that metric's own unit."""
    return in_unit(unit_of(metric), value)


def label(metric: str) -> str:
    """Give the words for a metric's name; an unknown name is shown with its underscores opened.

    >>> label("train_loss"), label("rouge_l")
    ('train loss (weighted over clients)', 'rouge l')
    """
    return _LABELS.get(metric, metric.replace("_", " "))
