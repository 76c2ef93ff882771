"""Pictures of a ring over time: a lane for every node, what it trained, what it sent to whom, and what went wrong.

Here: from `Nodes` and a stretch of time to a `Picture`. Call them inside `style.drawing`. Not here: sums over nodes
(`plots_nodes`). Kept: every line is a message of the run, from when it was sent to when it arrived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldfare.fleet.tasks import OK
from fieldfare.report import style, units
from fieldfare.report.read_nodes import CARRY_MODELS, Nodes, absences, failures, when_of
from fieldfare.report.style import Picture, canvas, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LANES = 24
"""Nodes in one picture at most: those on devices first to last, after the others."""
_TRAINS, _CUT, _AWAY, _CONTROL = "#cfe0ec", "#f0c9a8", "#d9dee3", "#9aa6b1"
_REDUCE, _GATHER, _TELLS, _LOST, _COMMIT = style.BLUE, style.GREEN, style.PURPLE, style.VERMILION, style.INK
_ORDER = ("sums on their way", "means on their way", "commit", "result told on", "models exchanged", "control",
          "never arrived", "begun again", "called off")  # fmt: skip
_MARKS: dict[str, dict[str, Any]] = {
    "commit": {"marker": "D", "markersize": 5.2, "color": _COMMIT},
    "called off": {"marker": "D", "markersize": 5.2, "color": _COMMIT, "markerfacecolor": style.SURFACE},
}
_WIDE = 0.02
"""The share of the picture that a training takes at least to bear its cycle's number."""


@dataclass(frozen=True)
class _Clock:
    """Virtual seconds to places on the axis: the unit, and where it begins."""

    scale: units.Scale
    zero_s: float

    def __call__(self, seconds: float) -> float:
        return (seconds - self.zero_s) / self.scale.divisor

    @property
    def words(self) -> str:
        since = f", from {units.duration(self.zero_s)} on" if self.zero_s else ""
        return f"virtual time{since} [{self.scale.unit}]"


def ring_pictures(nodes: Nodes) -> list[Picture]:
    """Draw a few cycles, around the first failure of a model's message where there was one; and its ring close up."""
    spans = cycle_starts(nodes)
    if len(spans) < 2 or not len(nodes.frames()):
        return []
    hurt = failing_cycle(nodes)
    at = hurt if hurt is not None else sorted(spans)[min(2, len(spans) - 1)]
    known = sorted(spans)
    rank = known.index(at)
    first, beyond = known[max(rank - 1, 0)], rank + 3
    until = spans[known[beyond]] if beyond < len(known) else nodes.span_s
    drawn = [timeline(nodes, spans[first], until, name="ring")]
    near = close_up(nodes, at)
    return [*drawn, timeline(nodes, *near, name="ring-close", close=at)] if near else drawn


def cycle_starts(nodes: Nodes) -> dict[int, float]:
    """When each cycle began: the first training for it."""
    out: dict[int, float] = {}
    for cycle, begun in zip(nodes.work["cycle"].tolist(), nodes.work["begun_s"].tolist(), strict=True):
        out[cycle] = min(out.get(cycle, begun), begun)
    return out


def failing_cycle(nodes: Nodes) -> int | None:
    """The first cycle whose ring was begun again, else the first that lost a frame, else None."""
    frames = nodes.frames()
    for found in (frames["cycle"][frames["epoch"] > 0], frames["cycle"][np.isnan(frames["arrives_s"])]):
        if len(found):
            return int(found[0])
    return None


def close_up(nodes: Nodes, cycle: int) -> tuple[float, float] | None:
    """The stretch of time in which the ring of a cycle ran, from its first frame to the last that was said of it."""
    frames = nodes.frames()
    frames = frames[frames["cycle"] == cycle]
    if not len(frames):
        return None
    begun = float(frames["sent_s"].min())
    rows = nodes.messages[(nodes.messages["cycle"] == cycle) & (nodes.messages["sent_s"] >= begun)]
    rows = rows[rows["kind"] != (nodes.kinds.index("Version") if "Version" in nodes.kinds else -1)]
    end = np.where(np.isfinite(rows["arrives_s"]), rows["arrives_s"], rows["sent_s"])
    ended = float(end.max(initial=begun))
    pad = 0.05 * max(ended - begun, 1e-9)
    return max(begun - 2 * pad, 0.0), ended + pad


def timeline(nodes: Nodes, begin_s: float, end_s: float, *, name: str, close: int | None = None) -> Picture:
    """Draw lanes from `begin_s` to `end_s`; `close`: the cycle whose ring this is a close-up of."""
    order = [at for at in range(len(nodes.names)) if nodes.devices[at] < 0] + nodes.placed
    lanes = {node: lane for lane, node in enumerate(order[:LANES])}
    zero = begin_s if close is not None else 0.0
    scale = _Clock(units.time_scale(end_s - zero), zero)
    names = [nodes.names[node] for node in lanes]
    figure, axes = canvas(width=11.4, height=1.0 + 0.44 * len(lanes), left=0.2 + style.room(names), right=0.25)
    marks = _work(axes, nodes, lanes, scale, begin_s, end_s)
    rows = nodes.messages
    over = np.where(np.isfinite(rows["arrives_s"]), rows["arrives_s"], rows["sent_s"])
    rows = rows[(over >= begin_s) & (rows["sent_s"] <= end_s)]
    told, more = _messages(axes, nodes, rows, lanes, scale, arrows=close is not None)
    marks += more
    _rings(axes, nodes, scale, begin_s, end_s)
    axes.set_xlim(scale(begin_s), scale(end_s))
    axes.set_ylim(len(lanes) - 0.45, -1.0)
    for lane in range(len(lanes)):
        axes.axhline(lane, color=style.GRID, linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(lanes)), names)
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(scale.words)
    _legend(axes, told)
    hurt = [now for now in failures(nodes) if begin_s <= now <= end_s]
    lost = int(np.isnan(rows["arrives_s"]).sum())
    words = f"{lost} message{'' if lost == 1 else 's'} never arrived" if hurt else "Nothing went wrong here"
    if "begun again" in told:
        without = left_out(nodes, begin_s, end_s)
        words += "; a ring was begun again" + (f" without {', '.join(without)}" if without else "")
    if "called off" in told:
        words += "; a ring was called off"
    words += "."
    title = f"The ring of cycle {close}, close up" if close is not None else "The ring over time"
    note = (
        "A line is a message, from its sender's lane when it was sent to its receiver's when it arrived; a bar is "
        f"training, for the cycle in it. {words}"
    )
    return picture(
        figure, name=name, title=title, note=note, marks=marks, wide=True,
        alt=f"{title}, from {units.duration(begin_s)} to {units.duration(end_s)}: {len(rows)} messages between "
        f"{len(lanes)} nodes. {words}",
    )  # fmt: skip


def left_out(nodes: Nodes, begin_s: float, end_s: float) -> list[str]:
    """Who is no member any more of rings that were begun again from `begin_s` to `end_s`."""
    rings = [one for one in nodes.said if isinstance(one.get("members"), list)]
    members = {(one.get("cycle"), one.get("epoch", 0)): set(one["members"]) for one in rings}
    out: set[str] = set()
    for one in rings:
        if one.get("epoch", 0) > 0 and begin_s <= when_of(one) <= end_s:
            out |= members.get((one.get("cycle"), one["epoch"] - 1), set()) - set(one["members"])
    return [name for name in nodes.names if name in out]


def _work(axes: Axes, nodes: Nodes, lanes: dict[int, int], clock: _Clock, begin_s: float, end_s: float) -> int:
    """Trainings as bars, those cut short in another colour; time away as a band."""
    marks = 0
    for node, spans in absences(nodes).items():
        if node in lanes:
            axes.broken_barh([(clock(a), clock(b) - clock(a)) for a, b in spans], (lanes[node] - 0.36, 0.72),
                             facecolor=_AWAY, hatch="////", edgecolor="#b5bdc5", linewidth=0)  # fmt: skip
    work = nodes.work[(nodes.work["ended_s"] >= begin_s) & (nodes.work["begun_s"] <= end_s)]
    for node, lane in lanes.items():
        for fine, colour in ((True, _TRAINS), (False, _CUT)):
            mine = work[(work["node"] == node) & ((work["outcome"] == OK) == fine)]
            bars = [(clock(a), clock(b) - clock(a)) for a, b in zip(mine["begun_s"], mine["ended_s"], strict=True)]
            axes.broken_barh(bars, (lane - 0.2, 0.4), facecolor=colour, edgecolor=style.SURFACE, linewidth=0.8)
            marks += len(bars)
        mine, told = work[work["node"] == node], -1
        for a, b, cycle in zip(mine["begun_s"], mine["ended_s"], mine["cycle"].tolist(), strict=True):
            a, b = max(float(a), begin_s), min(float(b), end_s)
            if cycle > 0 and cycle != told and b - a > _WIDE * (end_s - begin_s):
                axes.text(clock((a + b) / 2.0), lane, str(cycle), ha="center", va="center_baseline",
                          color=style.MUTED, fontsize=7.5, zorder=1)  # fmt: skip
                told = cycle
    return marks


def _messages(
    axes: Axes, nodes: Nodes, rows: Any, lanes: dict[int, int], clock: _Clock, *, arrows: bool
) -> tuple[dict[str, str], int]:
    """Messages as lines; gives what was drawn, {words: colour}, and how many marks."""
    told: dict[str, str] = {}
    size = _sizes(nodes)
    for row in rows:
        src, dst = int(row["src"]), int(row["dst"])
        if src not in lanes or dst not in lanes:
            continue
        kind, begun = nodes.kinds[int(row["kind"])], float(row["sent_s"])
        lost = bool(np.isnan(row["arrives_s"]))
        ended = float(row["arrives_s"]) if np.isfinite(row["arrives_s"]) else begun
        words, colour, width = _look(kind, row, size)
        x, y = [clock(begun), clock(ended)], [lanes[src], lanes[dst]]
        if lost:
            words, colour = "never arrived", _LOST
            y[1] = y[0] + 0.55 * (y[1] - y[0])
            axes.plot(x[1], y[1], marker="x", markersize=6.0, markeredgewidth=1.8, color=_LOST, zorder=5)
            width = max(width, 1.1)
        told.setdefault(words, colour)
        if arrows and width > 1.0 and not lost:
            arrow = axes.annotate("", (x[1], y[1]), (x[0], y[0]), zorder=4, annotation_clip=False, arrowprops={
                "arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0,
                "mutation_scale": 9}).arrow_patch  # fmt: skip
            if arrow is not None:
                arrow.set_clip_path(axes.patch)
        else:
            axes.plot(x, y, color=colour, linewidth=width, zorder=2 if width < 1.0 else 4,
                      linestyle=":" if kind == "Probe" and not lost else "-")  # fmt: skip
        if kind == "Decided" and not lost:
            end = "commit" if row["epoch"] >= 0 else "called off"
            told.setdefault(end, _COMMIT)
            axes.plot(x[1], y[1], zorder=6, **_MARKS[end])
    low, high = (float(rows["sent_s"].min()), float(rows["sent_s"].max())) if len(rows) else (0.0, 0.0)
    for one in nodes.said:
        if "members" in one and one.get("epoch", 0) > 0 and low <= when_of(one) <= high:
            told["begun again"] = style.ORANGE
            axes.axvline(clock(when_of(one)), color=style.ORANGE, linewidth=1.4, linestyle=(0, (4, 2)), zorder=1)
    return told, 2 * len(rows)


def _look(kind: str, row: Any, size: dict[tuple[int, int], int]) -> tuple[str, str, float]:
    """What a message is called in the picture, its colour and the width of its line."""
    if kind == "Frame":
        n = size[int(row["cycle"]), int(row["epoch"])]
        return ("sums on their way", _REDUCE, 1.5) if int(row["hop"]) < n - 1 else ("means on their way", _GATHER, 1.5)
    if kind in CARRY_MODELS:
        return ("models exchanged" if kind in ("Offer", "Share") else "result told on", _TELLS, 1.3)
    return "control", _CONTROL, 0.6


def _sizes(nodes: Nodes) -> dict[tuple[int, int], int]:
    """How many members the ring of a (cycle, epoch) has: the members on record, else as many as sent a frame."""
    out = {
        (int(one["cycle"]), int(one.get("epoch", 0))): len(one["members"])
        for one in nodes.said if isinstance(one.get("members"), list) and isinstance(one.get("cycle"), int)
    }  # fmt: skip
    frames = nodes.frames()
    senders: dict[tuple[int, int], set[int]] = {}
    for cycle, epoch, src in zip(*(frames[key].tolist() for key in ("cycle", "epoch", "src")), strict=True):
        senders.setdefault((cycle, epoch), set()).add(src)
    return {**{key: len(found) for key, found in senders.items()}, **{key: n for key, n in out.items() if n}}


def _rings(axes: Axes, nodes: Nodes, clock: _Clock, begin_s: float, end_s: float) -> None:
    """Where the ring of a cycle began, by its number."""
    last, frames = -np.inf, nodes.frames()
    for cycle in np.unique(frames["cycle"]).tolist():
        begun = float(frames["sent_s"][frames["cycle"] == cycle].min())
        if begin_s <= begun < end_s:
            axes.axvline(clock(begun), color="#c9d1d8", linewidth=1.0, zorder=0)
            if begun - last < 0.08 * (end_s - begin_s):
                continue
            last = begun
            late = end_s - begun < 0.08 * (end_s - begin_s)
            axes.annotate(f"ring {cycle}", (clock(begun), -0.78), xytext=(-3 if late else 3, 0),
                          textcoords="offset points", ha="right" if late else "left", va="center_baseline",
                          color=style.MUTED, fontsize=8.5)  # fmt: skip


def _legend(axes: Axes, told: dict[str, str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    named: list[Any] = [Patch(facecolor=_TRAINS, edgecolor="none", label="trains")]
    for words, colour in sorted(told.items(), key=lambda one: _ORDER.index(one[0])):
        if words in _MARKS:
            named.append(Line2D([], [], linestyle="", label=words, **_MARKS[words]))
        elif words == "never arrived":
            named.append(Line2D([], [], marker="x", markersize=6, markeredgewidth=1.8, color=colour, label=words))
        else:
            dashed = (0, (4, 2)) if words == "begun again" else "-"
            named.append(Line2D([], [], color=colour, linewidth=1.6, linestyle=dashed, label=words))
    if any(patch.get_hatch() for patch in axes.collections):
        named.append(Patch(facecolor=_AWAY, hatch="////", edgecolor="#b5bdc5", linewidth=0, label="away"))
    axes.legend(
        handles=named, ncols=len(named), loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.35,
        borderpad=0.0, handlelength=1.3, handletextpad=0.4, columnspacing=1.1,
    )  # fmt: skip
