"""Pictures of devices that move over edges: where each was and who had its session, sessions by edge, bytes by kind.

Here: from `Nodes`, moves and where devices were to a `Picture`, None when there is nothing to draw. Call them inside
`style.drawing`. Not here: adding up (`read_moves`), the section and its table (`move_sections`). Kept: an edge has one
colour in all pictures of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldfare.report import style, units
from fieldfare.report.plots_tasks import above
from fieldfare.report.read_moves import Move
from fieldfare.report.read_nodes import Nodes
from fieldfare.report.style import Picture, canvas, picture
from fieldfare.report.whereabouts import Span, owners, sessions, stays, steps_at_once

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 40
"""Devices in one picture at most."""
_WORDS_FOR = 24
"""Moves in one picture whose standstill is written beside them, at most."""
_GAP = "#e3e7eb"
_COLOURS = (*style.PALETTE[:6], style.BROWN, "#7f8c3a", style.LIGHT, "#c9a0dc", "#4d4d9f", style.GREY)
_MARKS = {"PreCopy": "o", "StopAndCopy": "s", "Restart": "X", "failover": "^"}
_KNOWN = {
    "batches": ("Forward", "Backward", "Between", "Ends", "Attach", "Attached"),
    "sessions that move": ("Pre", "Final", "Stored", "Carry", "Relay"),
    "models": ("Round", "Begin", "Finish", "Update", "Train", "Replica"),
}
_KIND_COLOURS = {"batches": style.BLUE, "sessions that move": style.VERMILION, "models": style.GREEN,
                 "control": style.GREY}  # fmt: skip
_KINDS = 14


def move_pictures(
    nodes: Nodes, mobility: Mapping[str, Any], moves: Sequence[Move], standstill: Sequence[float]
) -> list[Picture | None]:
    """Draw who was where, the way devices walked, sessions and steps by edge, and traffic by kind of message."""
    return [
        places(nodes, mobility, moves, standstill), load(nodes, mobility, moves), work(nodes), walk(nodes, mobility),
        kinds(nodes),
    ]  # fmt: skip


def edges_of(nodes: Nodes) -> list[str]:
    """The edge servers, in order of their numbers."""
    return [name for name, role in zip(nodes.names, nodes.roles, strict=True) if role == "edge"]


def colours_of(nodes: Nodes) -> dict[str, str]:
    """The colour of each edge; those beyond the twelfth share one with an earlier one."""
    return {edge: _COLOURS[at % len(_COLOURS)] for at, edge in enumerate(edges_of(nodes))}


def mark_of(move: Move) -> str:
    """What a move is called in pictures and tables: its policy, or what took its place."""
    if move.kind == "failover":
        return "failover"
    return "Restart" if move.kind == "restart" else move.policy or move.kind


def places(
    nodes: Nodes, mobility: Mapping[str, Any], moves: Sequence[Move], standstill: Sequence[float]
) -> Picture | None:
    """Draw a bar per device in the colours of the edges it is at, below it the owners of its session, and each move."""
    devices = [name for name, role in zip(nodes.names, nodes.roles, strict=True) if role == "device"][:MOST]
    if not devices or not nodes.span_s > 0:
        return None
    colours, clock = colours_of(nodes), units.time_scale(nodes.span_s)
    figure, axes = canvas(width=11.4, height=1.0 + 0.46 * max(len(devices), 2), left=0.2 + style.room(devices),
                          right=0.25)  # fmt: skip
    marks = 0
    for row, device in enumerate(devices):
        was = stays(nodes, mobility, device)
        own = owners(nodes, mobility, moves, device)
        for spans, low, high in ((was, row - 0.34, 0.44), (own, row + 0.16, 0.16)):
            for edge in dict.fromkeys(span.edge for span in spans):
                bars = [(s.begin_s / clock.divisor, (s.end_s - s.begin_s) / clock.divisor)
                        for s in spans if s.edge == edge]  # fmt: skip
                look = {"facecolor": colours[edge]} if edge in colours else {"facecolor": _GAP, "hatch": "////"}
                axes.broken_barh(bars, (low, high), edgecolor=style.SURFACE, linewidth=0.6, **look)
                marks += len(bars)
    axes.set_xlim(0, nodes.span_s / clock.divisor)
    told = _moves(axes, devices, moves, standstill, clock)
    axes.set_ylim(len(devices) - 0.4, -0.75)
    axes.set_yticks(range(len(devices)), devices)
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"virtual time [{clock.unit}]")
    _legend(axes, {edge: colours[edge] for edge in edges_of(nodes)}, told, _has_gap(nodes, mobility, devices))
    words = _said_of(moves, standstill)
    return picture(
        figure, name="moves-places", title="Devices over edges", wide=True, marks=marks + 2 * len(moves),
        note="The colour of a device's bar is the edge it is at, that of the thin one below it the edge that has its "
        "session. " + words,
        alt=f"{len(devices)} devices over {len(colours)} edges in {units.duration(nodes.span_s)}. {words}",
    )  # fmt: skip


def _moves(
    axes: Axes, devices: Sequence[str], moves: Sequence[Move], standstill: Sequence[float], clock: units.Scale
) -> list[str]:
    """A mark where each session changed hands, and how long the device stood still; gives the marks that are there."""
    told: list[str] = []
    free = dict[str, float]()
    reach = 0.07 * axes.get_xlim()[1]
    for move, still_s in sorted(zip(moves, standstill, strict=True), key=lambda one: one[0].committed_s):
        if move.device not in devices:
            continue
        row, at, words = devices.index(move.device), move.committed_s / clock.divisor, mark_of(move)
        axes.plot(at, row - 0.12, marker=_MARKS.get(words, "D"), markersize=6.5, color=style.SURFACE,
                  markeredgecolor=style.INK, markeredgewidth=1.1, zorder=5, clip_on=False)  # fmt: skip
        told += [] if words in told else [words]
        if len(moves) <= _WORDS_FOR and np.isfinite(still_s) and at >= free.get(move.device, -1.0):
            axes.annotate(units.duration(max(still_s, 0.0)), (at, row - 0.12), xytext=(6, 0), zorder=6, fontsize=8,
                          textcoords="offset points", va="center_baseline", color=style.INK,
                          bbox={"facecolor": "#ffffffc0", "edgecolor": "none", "pad": 0.8})  # fmt: skip
            free[move.device] = at + reach
    return told


def _legend(axes: Axes, edges: Mapping[str, str], told: Sequence[str], gap: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    named: list[Any] = [Patch(facecolor=colour, label=edge) for edge, colour in list(edges.items())[: len(_COLOURS)]]
    named += [Patch(facecolor=_GAP, hatch="////", edgecolor=style.SURFACE, linewidth=0, label="no edge")] if gap else []
    named += [Line2D([], [], marker=_MARKS.get(words, "D"), linestyle="", markersize=6, color=style.SURFACE,
                     markeredgecolor=style.INK, label=words) for words in told]  # fmt: skip
    above(axes, named)


def _has_gap(nodes: Nodes, mobility: Mapping[str, Any], devices: Sequence[str]) -> bool:
    return any(not span.edge for device in devices for span in stays(nodes, mobility, device))


def _said_of(moves: Sequence[Move], standstill: Sequence[float]) -> str:
    if not moves:
        return "No session changed hands."
    known = sorted(max(one, 0.0) for one in standstill if np.isfinite(one))
    many = f"{len(moves)} session{'s' if len(moves) > 1 else ''} changed hands"
    if not known:
        return many + "."
    where = "beside each mark, " if len(moves) <= _WORDS_FOR else ""
    return (
        f"{many}; {where}how long the device stood still for it: median {units.duration(np.median(known))}, longest "
        f"{units.duration(known[-1])}."
    )


def load(nodes: Nodes, mobility: Mapping[str, Any], moves: Sequence[Move]) -> Picture | None:
    """Draw how many sessions each edge has, over time."""
    from matplotlib.ticker import MaxNLocator

    edges, colours, clock = edges_of(nodes), colours_of(nodes), units.time_scale(nodes.span_s)
    found = {edge: sessions(nodes, mobility, moves, edge) for edge in edges}
    if not edges or not any(count.any() for _, count in found.values()):
        return None
    figure, axes = canvas(right=0.2 + style.room(edges))
    for edge, (at, count) in found.items():
        axes.step([*(at / clock.divisor), nodes.span_s / clock.divisor], [*count, count[-1]], where="post",
                  color=colours[edge], alpha=0.9)  # fmt: skip
    axes.set_xlim(0, nodes.span_s / clock.divisor)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylabel("sessions")
    axes.set_xlabel(f"virtual time [{clock.unit}]")
    style.label_ends(axes, [style.Label(nodes.span_s / clock.divisor, float(count[-1]), edge, colours[edge])
                            for edge, (_, count) in found.items()])  # fmt: skip
    most = max(edges, key=lambda edge: int(found[edge][1].max()))
    words = f"Most sessions at once has {most}, {int(found[most][1].max())}."
    return picture(figure, name="moves-load", title="Sessions by edge", note=words, alt="Sessions by edge. " + words,
                   marks=sum(len(at) for at, _ in found.values()))  # fmt: skip


def work(nodes: Nodes) -> Picture | None:
    """Draw how many steps each edge computes at once, over time."""
    edges, colours, clock = edges_of(nodes), colours_of(nodes), units.time_scale(nodes.span_s)
    at, found = steps_at_once(nodes, edges)
    if not edges or not found.any():
        return None
    figure, axes = canvas(left=0.72, right=0.2 + style.room(edges))
    for edge, row in zip(edges, found, strict=True):
        axes.step(at / clock.divisor, [row[0], *row], where="pre", color=colours[edge], alpha=0.9)
    axes.set_xlim(0, nodes.span_s / clock.divisor)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("steps at once, mean")
    axes.set_xlabel(f"virtual time [{clock.unit}]")
    style.label_ends(axes, [style.Label(nodes.span_s / clock.divisor, float(row[-1]), edge, colours[edge])
                            for edge, row in zip(edges, found, strict=True)])  # fmt: skip
    rank = int(found.mean(axis=1).argmax())
    words = f"Over the run {edges[rank]} has most to do: {units.number(float(found[rank].mean()), 2)} steps at once."
    return picture(figure, name="moves-work", title="What edges compute", note=words,
                   alt="Steps that edges compute at once. " + words)  # fmt: skip


def walk(nodes: Nodes, mobility: Mapping[str, Any]) -> Picture | None:
    """Draw the way of each device over the ground, in the colours of the edges it was at."""
    from matplotlib.collections import LineCollection

    told = mobility.get("walk")
    if not isinstance(told, Mapping):
        return None
    times = np.array(told["times_s"], np.float64)
    x, y = (np.array(told[name], np.float64)[:, times <= nodes.span_s] for name in ("x_m", "y_m"))
    edges_m, colours = np.array(told["edges_m"], np.float64), colours_of(nodes)
    times, shown = times[times <= nodes.span_s], min(len(x), 12)
    if len(times) < 2 or len(edges_m) != len(colours):
        return None
    figure, axes = canvas(height=4.6)
    devices = list(mobility.get("homes", {}))
    every = -(-len(devices) // max(len(x), 1))
    for at in range(shown):
        was = stays(nodes, mobility, devices[at * every])
        points = np.stack([x[at], y[at]], axis=1)
        look = [colours.get(_edge_at(was, t), "#c3ccd4") for t in times[:-1].tolist()]
        axes.add_collection(LineCollection(list(np.stack([points[:-1], points[1:]], axis=1)), colors=look,
                                           linewidths=1.2, alpha=0.75))  # fmt: skip
        axes.plot(*points[0], marker="o", markersize=3.5, color=style.INK, zorder=3)
    for (edge, colour), place in zip(colours.items(), edges_m, strict=True):
        axes.plot(*place, marker="s", markersize=9, color=colour, markeredgecolor=style.SURFACE, zorder=4)
        axes.annotate(edge, place, xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8.5, zorder=5,
                      color=style.darker(colour, 0.3))  # fmt: skip
    axes.set_aspect("equal", adjustable="datalim")
    axes.autoscale_view()
    axes.set_xlabel("east [m]")
    axes.set_ylabel("north [m]")
    many = f"{shown} of {len(devices)} devices" if shown < len(devices) else f"{shown} devices"
    words = f"The ways of {many} in the colours of the edges they were at, each from its dot on."
    return picture(figure, name="moves-walk", title="Where devices went", note=words, alt=words,
                   marks=shown * len(times))  # fmt: skip


def _edge_at(was: Sequence[Span], t: float) -> str:
    return next((span.edge for span in was if span.begin_s <= t < span.end_s), "")


def kinds(nodes: Nodes) -> Picture | None:
    """Draw bytes by kind of message, the largest first."""
    from matplotlib.ticker import FuncFormatter

    bytes_ = np.bincount(nodes.messages["kind"], nodes.messages["bytes"], len(nodes.kinds))
    count = np.bincount(nodes.messages["kind"], minlength=len(nodes.kinds))
    order = [int(at) for at in np.argsort(-bytes_, kind="stable") if count[at]]
    if not order or not bytes_.sum() > 0:
        return None
    order, rest = order[:_KINDS], order[_KINDS:]
    names = [nodes.kinds[at] for at in order] + (["all others"] if rest else [])
    values = [float(bytes_[at]) for at in order] + ([float(bytes_[rest].sum())] if rest else [])
    counts = [int(count[at]) for at in order] + ([int(count[rest].sum())] if rest else [])
    scale = units.size_scale(max(values))
    group = [next((name for name, of in _KNOWN.items() if kind in of), "control") for kind in names]
    beside = [f"{units.size(value)} in {many:,}" for value, many in zip(values, counts, strict=True)]
    figure, axes = canvas(height=0.95 + 0.26 * max(len(names), 4), left=0.2 + style.room(names),
                          right=0.25 + style.room(beside))  # fmt: skip
    axes.barh(range(len(names)), [value / scale.divisor for value in values], height=0.66, linewidth=0,
              color=[_KIND_COLOURS[one] for one in group])  # fmt: skip
    for row, text in enumerate(beside):
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center_baseline", color=style.INK,
                  fontsize=8.5)  # fmt: skip
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: units.number(round(value, 9))))
    axes.set_xlabel(f"in the whole run [{scale.unit}]")
    from matplotlib.patches import Patch

    above(axes, [Patch(facecolor=_KIND_COLOURS[one], label=one) for one in _KIND_COLOURS if one in group])
    moved = sum(value for value, one in zip(values, group, strict=True) if one == "sessions that move")
    words = f"Sessions that move are {units.share(moved / sum(values))} of {units.size(sum(values))}."
    return picture(figure, name="moves-kinds", title="Bytes by kind of message", note=words,
                   alt="Bytes by kind of message: " + ", ".join(
                       f"{name} {text}" for name, text in zip(names, beside, strict=True)) + ".")  # fmt: skip
