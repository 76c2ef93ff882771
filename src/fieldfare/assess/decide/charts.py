"""Small charts as SVG text, to the same bytes everywhere: a curve with a band, bars with a middle, a heat map.

Not here: charts of runs (`report`). Invariant: numbers go through one rounding, so equal inputs give equal text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
W, H, LEFT, RIGHT, TOP, BOTTOM = 560, 250, 62, 14, 14, 40
LINE, BAND, MUTED, INK = "#0072b2", "#bcdcf0", "#586776", "#17212b"


def short(x: float) -> str:
    return f"{x:.1f}".rstrip("0").rstrip(".")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / about
    size = 10.0 ** np.floor(np.log10(raw))
    step = float(size * min((1, 2, 5, 10), key=lambda m: abs(m * size - raw)))
    first = np.ceil(low / step - 1e-9) * step
    return [round(float(x), 12) + 0.0 for x in np.arange(first, high + step * 1e-6, step)]


def curve(
    x: F64, y: F64, *, label: str, x_label: str, y_label: str, low: F64 | None = None, high: F64 | None = None,
    x_words: Callable[[float], str] = "{:g}".format, y_words: Callable[[float], str] = "{:g}".format,
    x_ticks: Sequence[float] | None = None, target: float | None = None, zero: bool = True, step: bool = False,
) -> str:  # fmt: skip
    """A line `[n]`, with a band where `low` and `high` are given and a dashed line at `target`."""
    known = np.isfinite(y)
    x, y = x[known], y[known]
    low, high = (None if one is None else one[known] for one in (low, high))
    ends = [y if low is None else low, y if high is None else high]
    bottom = 0.0 if zero else float(np.nanmin(ends[0]))
    top = max(float(np.nanmax(ends[1])), bottom + 1e-12, target or 0.0)
    left, right = float(x[0]), max(float(x[-1]), float(x[0]) + 1e-12)

    def px(v: float) -> float:
        return LEFT + (v - left) / (right - left) * (W - LEFT - RIGHT)

    def py(v: float) -> float:
        return H - BOTTOM - (v - bottom) / (top - bottom) * (H - TOP - BOTTOM)

    out = [opened(W, H, label, 11)]
    for v in ticks(bottom, top):
        out.append(f'<path d="M{LEFT},{short(py(v))} H{W - RIGHT}" stroke="#e4e9ed"/>')
        out.append(text_at(LEFT - 6, py(v) + 4, y_words(v), "end"))
    for v in ticks(left, right) if x_ticks is None else x_ticks:
        out.append(text_at(px(v), H - BOTTOM + 16, x_words(v), "middle"))
    if low is not None and high is not None:
        edge = [(px(a), py(b)) for a, b in zip(x, high, strict=True)]
        edge += [(px(a), py(b)) for a, b in zip(x[::-1], low[::-1], strict=True)]
        out.append(f'<polygon points="{joined(edge)}" fill="{BAND}" opacity="0.7"/>')
    line = [(px(a), py(b)) for a, b in zip(x, y, strict=True)]
    if step:
        line = [p for (a, b), (c, _) in pairwise(line) for p in ((a, b), (c, b))] + line[-1:]
    out.append(f'<polyline points="{joined(line)}" fill="none" stroke="{LINE}" stroke-width="1.8"/>')
    if target is not None:
        out.append(f'<path d="M{LEFT},{short(py(target))} H{W - RIGHT}" stroke="#b23a00" stroke-dasharray="5 4"/>')
    out.append(text_at((LEFT + W - RIGHT) / 2, H - 6, x_label, "middle"))
    out.append(f'<text transform="translate(13,{(TOP + H - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle" '
               f'fill="{MUTED}">{escape(y_label)}</text>')  # fmt: skip
    return "".join(out) + "</svg>"


def tornado(
    names: Sequence[str], low: F64, high: F64, middle: float, *, label: str, words: Callable[[float], str]
) -> str:
    """Bars from `low` to `high` around `middle`, one a name, the widest first as given."""
    row, left = 24, 170
    height = row * len(names) + 34
    lo, hi = float(min(low.min(), high.min(), middle)), float(max(low.max(), high.max(), middle))
    hi = hi if hi > lo else lo + 1.0

    def px(v: float) -> float:
        return left + (v - lo) / (hi - lo) * (W - left - 70)

    out = [opened(W, height, label, 11)]
    for i, name in enumerate(names):
        y = row * i + 6
        for value, colour in ((float(low[i]), "#56b4e9"), (float(high[i]), "#0072b2")):
            a, b = sorted((px(value), px(middle)))
            out.append(
                f'<rect x="{short(a)}" y="{y}" width="{short(max(b - a, 0.5))}" height="{row - 9}" fill="{colour}"/>'
            )
        out.append(text_at(left - 8, y + 12, name, "end", INK))
    base = row * len(names) + 4
    out.append(f'<path d="M{short(px(middle))},2 V{base}" stroke="{INK}" stroke-width="1.2"/>')
    for v in (lo, middle, hi):
        if v == middle or abs(px(v) - px(middle)) > 60:
            out.append(text_at(px(v), base + 18, words(v), "middle"))
    return "".join(out) + "</svg>"


def heat(values: F64, *, label: str, rows: Sequence[str], columns: Sequence[str]) -> str:
    """A grid `[rows, columns]` of shares, dark for 1."""
    size, left = 21, 46
    width, height = left + size * values.shape[1] + 8, size * values.shape[0] + 24
    out = [opened(width, height, label, 10)]
    top = float(np.nanmax(values)) or 1.0
    for i, name in enumerate(rows):
        out.append(text_at(left - 6, size * i + 14, name, "end"))
        for j in range(values.shape[1]):
            share = float(values[i, j]) / top
            if not np.isfinite(share):
                continue  # an hour of the week that nobody logged stays white
            red, green, blue = (round(255 + (c - 255) * share) for c in (0, 90, 160))
            out.append(f'<rect x="{left + size * j}" y="{size * i}" width="{size - 1}" height="{size - 1}" '
                       f'fill="rgb({red},{green},{blue})"/>')  # fmt: skip
    for j, name in enumerate(columns):
        if name:
            out.append(text_at(left + size * j + size / 2, size * len(rows) + 14, name, "middle"))
    return "".join(out) + "</svg>"


def opened(width: float, height: float, label: str, size: int) -> str:
    box = f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"'
    return f'<svg {box} font-family="inherit" font-size="{size}">'


def text_at(x: float, y: float, text: str, anchor: str, ink: str = MUTED) -> str:
    return f'<text x="{short(x)}" y="{short(y)}" text-anchor="{anchor}" fill="{ink}">{escape(text)}</text>'


def joined(found: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{short(a)},{short(b)}" for a, b in found)
