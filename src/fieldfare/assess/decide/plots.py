"""Charts of several series as SVG text: lines with bands, stacked bars, ranges by group, ratios around one.

Here: what `charts` has not, on its canvas and with its rounding. Not here: which numbers are drawn (`sweeps`, `parts`).
Invariant: as in `charts`, equal numbers give equal text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from fieldfare.assess.decide.charts import (
    BOTTOM,
    F64,
    INK,
    LEFT,
    MUTED,
    RIGHT,
    TOP,
    H,
    W,
    joined,
    opened,
    short,
    text_at,
    ticks,
)

BLUE, VERMILION = "#0072b2", "#c65200"
GRID = "#e4e9ed"
LIMIT = "#b23a00"
BEGINS = 0.05
"""Share of the x axis in which a line may come from outside the frame: an untrained model's metric says little."""
KEY = 22
"""Height of the row that says which colour is what."""


@dataclass(frozen=True, eq=False)
class Line:
    """One series: its name and colour, x `[n]`, the middle and the band `[n]`."""

    name: str
    colour: str
    x: F64
    middle: F64
    low: F64
    high: F64


@dataclass(frozen=True)
class Frame:
    """From numbers to places on the canvas; y grows upwards from `bottom` to `top`."""

    left: float
    right: float
    bottom: float
    top: float
    above: float = TOP + KEY

    def x(self, v: float) -> float:
        return LEFT + (v - self.left) / (self.right - self.left) * (W - LEFT - RIGHT)

    def y(self, v: float) -> float:
        return H - BOTTOM - (v - self.bottom) / (self.top - self.bottom) * (H - self.above - BOTTOM)


def lines(
    series: Sequence[Line], *, label: str, x_label: str, y_label: str, target: float | None = None,
    x_words: Callable[[float], str] = "{:,.4g}".format, y_words: Callable[[float], str] = "{:.4g}".format,
) -> str:  # fmt: skip
    """Lines with bands from x = 0; a dashed line at `target`. The y axis is that of all but the very beginning."""
    right = max(float(one.x[-1]) for one in series) or 1.0
    late = [one.x >= min(BEGINS * right, float(one.x[-1])) for one in series]
    low = min(float(one.low[at].min()) for one, at in zip(series, late, strict=True))
    high = max(float(one.high[at].max()) for one, at in zip(series, late, strict=True))
    if target is not None:
        low, high = min(low, target), max(high, target)
    room = 0.05 * (high - low) or 0.5
    frame = Frame(0.0, right, low - room, high + room)
    out = [opened(W, H, label, 11), *_key([(one.name, one.colour) for one in series])]
    out += _rungs(frame, y_words)
    out += [text_at(frame.x(v), H - BOTTOM + 16, x_words(v), "middle") for v in ticks(0.0, frame.right)]
    place = f'x="{LEFT}" y="{short(frame.above)}" width="{W - LEFT - RIGHT}" height="{short(H - frame.above - BOTTOM)}"'
    box = f"{LEFT} {short(frame.above)} {W - LEFT - RIGHT} {short(H - frame.above - BOTTOM)}"
    out.append(f'<svg {place} viewBox="{box}" overflow="hidden">')  # what is above the frame is cut off
    for one in series:
        edge = [(frame.x(a), frame.y(b)) for a, b in zip(one.x, one.high, strict=True)]
        edge += [(frame.x(a), frame.y(b)) for a, b in zip(one.x[::-1], one.low[::-1], strict=True)]
        out.append(f'<polygon points="{joined(edge)}" fill="{one.colour}" opacity="0.2"/>')
    for one in series:
        middle = [(frame.x(a), frame.y(b)) for a, b in zip(one.x, one.middle, strict=True)]
        out.append(f'<polyline points="{joined(middle)}" fill="none" stroke="{one.colour}" stroke-width="1.8"/>')
    out.append("</svg>")
    if target is not None:
        at = short(frame.y(target))
        out.append(f'<path d="M{LEFT},{at} H{W - RIGHT}" stroke="{LIMIT}" stroke-dasharray="5 4"/>')
        out.append(text_at(W - RIGHT, frame.y(target) - 4, f"target {y_words(target)}", "end", LIMIT))
    return "".join([*out, *_named(x_label, y_label)]) + "</svg>"


def stacked(
    names: Sequence[str], parts: Mapping[str, F64], colours: Mapping[str, str], above: Sequence[str], *, label: str,
    x_label: str, y_label: str, y_words: Callable[[float], str] = "{:,.4g}".format,
) -> str:  # fmt: skip
    """A bar a name, of `parts` `[n]` from the bottom up; words `above` each."""
    total = np.sum(list(parts.values()), axis=0)
    frame = Frame(0.0, float(len(names)), 0.0, 1.08 * (float(total.max()) or 1.0))
    out = [opened(W, H, label, 11), *_key([(name, colours[name]) for name in parts]), *_rungs(frame, y_words)]
    wide = 0.62 * (frame.x(1.0) - frame.x(0.0))
    for i, name in enumerate(names):
        middle, height = frame.x(i + 0.5), 0.0
        for part, values in parts.items():
            a, b = frame.y(height + float(values[i])), frame.y(height)
            if b - a > 0.04:
                out.append(f'<rect x="{short(middle - wide / 2)}" y="{short(a)}" width="{short(wide)}" '
                           f'height="{short(max(b - a, 0.3))}" fill="{colours[part]}"/>')  # fmt: skip
            height += float(values[i])
        out.append(text_at(middle, frame.y(height) - 4, above[i], "middle", INK))
        out.append(text_at(middle, H - BOTTOM + 16, name, "middle"))
    return "".join([*out, *_named(x_label, y_label)]) + "</svg>"


def ranges(
    names: Sequence[str], low: F64, middle: F64, high: F64, *, label: str, x_label: str, y_label: str,
    y_words: Callable[[float], str] = "{:,.4g}".format,
) -> str:  # fmt: skip
    """A point a name with a line from `low` to `high`, from zero up."""
    frame = Frame(0.0, float(len(names)), 0.0, 1.08 * (float(np.max(high)) or 1.0), above=TOP)
    out = [opened(W, H, label, 11), *_rungs(frame, y_words)]
    for i, name in enumerate(names):
        x = short(frame.x(i + 0.5))
        a, b, c = (frame.y(float(end[i])) for end in (low, middle, high))
        out.append(f'<path d="M{x},{short(a)} V{short(c)}" stroke="{BLUE}" stroke-width="9" opacity="0.25"/>')
        out.append(f'<circle cx="{x}" cy="{short(b)}" r="4.5" fill="{BLUE}"/>')
        out.append(text_at(frame.x(i + 0.5) + 10, b + 4, y_words(float(middle[i])), "start", INK))
        out.append(text_at(frame.x(i + 0.5), H - BOTTOM + 16, name, "middle"))
    return "".join([*out, *_named(x_label, y_label)]) + "</svg>"


def ratios(names: Sequence[str], series: Mapping[str, F64], *, label: str, limit: float) -> str:
    """Dots a name, one of each series; one is as before, and left of `limit` is too little. NaN: no dot."""
    row, left, above = 22, 150, 24
    height = above + row * len(names) + 30
    known = [v for values in series.values() for v in values.tolist() if np.isfinite(v)]
    least, most = max(0.0, min([limit, *known]) - 0.15), max([1.2, *known]) + 0.05
    colours = dict(zip(series, (BLUE, VERMILION), strict=False))

    def px(v: float) -> float:
        return left + (v - least) / (most - least) * (W - left - 24)

    out = [opened(W, height, label, 11), *_key(list(colours.items()), left)]
    base = above + row * len(names)
    out.append(f'<rect x="{left}" y="{above - 4}" width="{short(px(limit) - left)}" height="{base - above + 8}" '
               'fill="#fbeae2"/>')  # fmt: skip
    for v, ink in ((limit, LIMIT), (1.0, INK)):
        out.append(f'<path d="M{short(px(v))},{above - 4} V{base + 4}" stroke="{ink}" stroke-dasharray="4 3"/>')
        out.append(text_at(px(v), base + 18, "as before" if v == 1.0 else f"{v:g}", "middle", ink))
    for i, name in enumerate(names):
        y = above + row * i + row / 2
        out.append(text_at(left - 8, y + 4, name if len(name) <= 22 else name[:21] + "…", "end", INK))
        out.append(f'<path d="M{left},{short(y)} H{W - 24}" stroke="{GRID}"/>')
        for (which, values), r in zip(series.items(), (5.5, 3.8), strict=False):
            if np.isfinite(values[i]):
                out.append(f'<circle cx="{short(px(float(values[i])))}" cy="{short(y)}" r="{r}" '
                           f'fill="{colours[which]}"/>')  # fmt: skip
    return "".join(out) + "</svg>"


def _key(names: Sequence[tuple[str, str]], left: float = LEFT) -> list[str]:
    """Which colour is what, in a row at the top."""
    out: list[str] = []
    for name, colour in names:
        out.append(f'<rect x="{short(left)}" y="4" width="14" height="9" fill="{colour}"/>')
        out.append(text_at(left + 19, 12.5, name, "start", INK))
        left += 34 + 6.2 * len(name)
    return out


def _rungs(frame: Frame, words: Callable[[float], str]) -> list[str]:
    out: list[str] = []
    for v in ticks(frame.bottom, frame.top):
        out.append(f'<path d="M{LEFT},{short(frame.y(v))} H{W - RIGHT}" stroke="{GRID}"/>')
        out.append(text_at(LEFT - 6, frame.y(v) + 4, words(v), "end"))
    return out


def _named(x_label: str, y_label: str) -> list[str]:
    """The two axes' names."""
    return [
        text_at((LEFT + W - RIGHT) / 2, H - 6, x_label, "middle"),
        f'<text transform="translate(13,{(TOP + H - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle" '
        f'fill="{MUTED}">{escape(y_label)}</text>',
    ]
