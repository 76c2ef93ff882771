"""FLINT's figure 9 as a picture, with the path that was walked on it.

Here: SVG text. Invariant: every text is escaped; a node that was not reached is pale; what a gate said last is its
colour, and how often it said no is written beside the way back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from fieldfare.assess.decide.workflow import GATES, NODES

W, H, BOX_W, BOX_H = 1110, 440, 128, 54
PLACES: Mapping[str, tuple[int, int]] = {
    "1": (75, 45), "2": (235, 45), "3": (395, 45), "4": (555, 45), "G1": (715, 75), "5a": (875, 45), "5h": (1035, 45),
    "5b": (875, 115), "6": (75, 255), "7": (235, 255), "G2": (395, 255), "8": (555, 255), "G3": (715, 255),
    "G4": (875, 255), "9": (1035, 255), "G5": (1035, 365), "10": (875, 365),
}  # fmt: skip
EDGES: Mapping[tuple[str, str], str] = {
    ("1", "2"): "M139,45 H171", ("2", "3"): "M299,45 H331", ("3", "4"): "M459,45 H491",
    ("4", "G1"): "M619,45 H715 V48", ("G1", "5a"): "M779,75 H795 V45 H811", ("G1", "5b"): "M715,102 V115 H811",
    ("5a", "5h"): "M939,45 H971", ("5h", "6"): "M1035,72 V160 H75 V228", ("5b", "6"): "M875,142 V160 H75 V228",
    ("6", "7"): "M139,255 H171", ("7", "G2"): "M299,255 H331", ("G2", "8"): "M459,255 H491",
    ("8", "G3"): "M619,255 H651", ("G3", "G4"): "M779,255 H811", ("G4", "9"): "M939,255 H971",
    ("9", "G5"): "M1035,282 V338", ("G5", "10"): "M971,365 H939", ("G2", "6"): "M395,228 V205 H95 V228",
    ("G3", "6"): "M715,228 V192 H85 V228", ("G4", "6"): "M875,228 V179 H65 V228",
    ("G5", "8"): "M1035,392 V418 H555 V282",
}  # fmt: skip
NOTES: Mapping[tuple[str, str], tuple[int, int, str]] = {
    ("G1", "5a"): (787, 38, "yes"), ("G1", "5b"): (727, 130, "no"), ("G2", "8"): (468, 248, "yes"),
    ("G3", "G4"): (788, 248, "yes"), ("G4", "9"): (948, 248, "yes"), ("G5", "10"): (948, 358, "yes"),
    ("G2", "6"): (250, 218, "no: a simpler model"), ("G5", "8"): (720, 434, "no: another privacy technique"),
}  # fmt: skip
COLOURS = {"yes": "#00704f", "no": "#b23a00", "missing": "#8a6d00"}


def diagram(path: Sequence[Mapping[str, Any]], verdict: str) -> str:
    """The picture of a decision's `path` (of decision.json), as an `<svg>` element."""
    seen = [str(step["id"]) for step in path]
    walked = Counter(pairwise(seen))
    answers = {str(step["id"]): str(step["answer"]) for step in path if step.get("answer")}
    told = "FLINT's decision workflow; walked: " + ", ".join(seen) + f"; verdict {verdict}"
    parts = [f'<svg viewBox="0 0 {W} {H}" role="img" aria-label="{escape(told)}" font-family="inherit">', _ARROWS]
    for edge, line in sorted(EDGES.items(), key=lambda one: walked[one[0]] > 0):
        count = walked[edge]
        look = 'stroke="#0072b2" stroke-width="2.4"' if count else 'stroke="#ccd3d9" stroke-width="1.2"'
        end = "on" if count else "off"
        parts.append(f'<path d="{line}" fill="none" {look} marker-end="url(#flint-{end})"/>')
        if edge in NOTES:
            parts.append(_text(*NOTES[edge], "#17212b" if count else "#8793a0"))
        gate = GATES.get(edge[0])
        if count and gate is not None and gate.change and gate.no == edge[1]:
            x, y = PLACES[edge[0]]
            parts.append(_text(x + 8, y + 41, f"no, {count} time{'s' * (count > 1)}", COLOURS["no"]))
    for name, (x, y) in PLACES.items():
        parts.append(_gate(name, x, y, answers.get(name)) if name in GATES else _node(name, x, y, name in seen))
    return "".join(parts) + "</svg>"


_ARROWS = (
    '<defs><marker id="flint-on" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5" markerHeight="5" orient="auto">'
    '<path d="M0,0 L8,4 L0,8 z" fill="#0072b2"/></marker><marker id="flint-off" viewBox="0 0 8 8" refX="7" refY="4" '
    'markerWidth="7" markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#ccd3d9"/></marker></defs>'
)


def _node(name: str, x: int, y: int, on: bool) -> str:
    fill, line, ink = ("#e8f3fa", "#0072b2", "#17212b") if on else ("#fff", "#ccd3d9", "#8793a0")
    box = (
        f'<rect x="{x - BOX_W // 2}" y="{y - BOX_H // 2}" width="{BOX_W}" height="{BOX_H}" rx="7" fill="{fill}" '
        f'stroke="{line}" stroke-width="{1.6 if on else 1}"/>'
    )
    return box + _words(NODES[name].title, x, y, ink)


def _gate(name: str, x: int, y: int, answer: str | None) -> str:
    line = COLOURS.get(answer or "", "#ccd3d9")
    fill = {"yes": "#e6f4ef", "no": "#fbeae2", "missing": "#fbf3d9"}.get(answer or "", "#fff")
    a, b = BOX_W // 2, BOX_H // 2
    c = a - 14
    corners = [(x - a, y), (x - c, y - b), (x + c, y - b), (x + a, y), (x + c, y + b), (x - c, y + b)]
    points = " ".join(f"{left},{top}" for left, top in corners)
    shape = f'<polygon points="{points}" fill="{fill}" stroke="{line}" stroke-width="{2 if answer else 1}"/>'
    return shape + _words(f"{name} {SHORT[name]}", x, y, "#17212b" if answer else "#8793a0")


def _text(x: int, y: int, text: str, ink: str) -> str:
    return f'<text x="{x}" y="{y}" font-size="11" fill="{ink}">{escape(text)}</text>'


SHORT = {
    "G1": "field to partition by?",
    "G2": "task's time and resources?",
    "G3": "model good enough?",
    "G4": "systems bear it?",
    "G5": "privacy budget kept?",
}


def _words(text: str, x: int, y: int, ink: str) -> str:
    """A title in up to three lines of about twenty letters, centred."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) > 20 and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    top = y + 4 - 7 * (len(lines) - 1)
    spans = "".join(f'<tspan x="{x}" y="{top + 14 * i}">{escape(line)}</tspan>' for i, line in enumerate(lines))
    return f'<text text-anchor="middle" font-size="11.5" fill="{ink}">{spans}</text>'
