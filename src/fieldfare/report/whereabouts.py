"""Where devices were and which edge had their sessions, over time: spans, and sums over edges.

Here: pure functions of `Nodes`, the mobility that `nodes.json` keeps, and moves. Not here: moves themselves
(`read_moves`), pictures (`plots_moves`). Kept: spans of a device are in order of time, apart, and end with the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.report.read_moves import Move, gradients
from fieldfare.report.read_nodes import Nodes
from fieldfare.report.table import Floats

BINS = 120
_PER_BIN = 10


@dataclass(frozen=True, slots=True)
class Span:
    """From `begin_s` to `end_s` at `edge`; "": where no edge reaches."""

    begin_s: float
    end_s: float
    edge: str


def home(nodes: Nodes, mobility: Mapping[str, Any], device: str) -> str:
    """The edge a device begins at: as scheduled, else the first it heard from; "" where it heard from none."""
    told = mobility.get("homes", {}).get(device)
    if told is not None:
        return str(told)
    rows = nodes.of_kind("Begin")
    rows = rows[rows["dst"] == nodes.names.index(device)]
    return nodes.names[int(rows["src"][0])] if len(rows) else ""


def stays(nodes: Nodes, mobility: Mapping[str, Any], device: str) -> list[Span]:
    """At which edge a device was when, by its schedule: gaps before moves, and those it came back from where told."""
    at, now, out = 0.0, home(nodes, mobility, device), list[Span]()
    for when, who, _, to, gap_s in mobility.get("moves", ()):
        left = float(when) - float(gap_s)
        if who != device or left >= nodes.span_s:
            continue
        out += [Span(at, left, now), Span(left, min(float(when), nodes.span_s), "")]
        at, now = float(when), str(to)
    out.append(Span(at, nodes.span_s, now))
    for who, begin_s, end_s in mobility.get("gaps", ()):
        if who == device and begin_s < nodes.span_s:
            until_s = nodes.span_s if end_s is None else min(float(end_s), nodes.span_s)
            out = [part for span in out for part in _cut(span, float(begin_s), until_s)]
    return [span for span in out if span.end_s > span.begin_s]


def _cut(span: Span, begin_s: float, end_s: float) -> tuple[Span, ...]:
    """A span with a gap in it."""
    if not span.edge or begin_s >= span.end_s or end_s <= span.begin_s:
        return (span,)
    low, high = max(begin_s, span.begin_s), min(end_s, span.end_s)
    return replace(span, end_s=low), Span(low, high, ""), replace(span, begin_s=high)


def owners(nodes: Nodes, mobility: Mapping[str, Any], moves: Sequence[Move], device: str) -> list[Span]:
    """Which edge had the session of a device when."""
    mine = sorted((move for move in moves if move.device == device), key=lambda move: move.committed_s)
    first = mine[0].src if mine else home(nodes, mobility, device)
    cuts = [0.0, *(move.committed_s for move in mine), nodes.span_s]
    edges = [first, *(move.dst for move in mine)]
    spans = (Span(a, b, edge) for (a, b), edge in zip(pairwise(cuts), edges, strict=True))
    return [span for span in spans if span.end_s > span.begin_s and span.edge]


def sessions(
    nodes: Nodes, mobility: Mapping[str, Any], moves: Sequence[Move], edge: str
) -> tuple[Floats, NDArray[np.int64]]:
    """(seconds `[k]`, sessions from then on `[k]`) of an edge; the first at 0."""
    change: dict[float, int] = {0.0: 0}
    for device, role in zip(nodes.names, nodes.roles, strict=True):
        for span in owners(nodes, mobility, moves, device) if role == "device" else ():
            if span.edge == edge:
                change[span.begin_s] = change.get(span.begin_s, 0) + 1
                if span.end_s < nodes.span_s:
                    change[span.end_s] = change.get(span.end_s, 0) - 1
    at = sorted(change)
    return np.array(at), np.cumsum([change[t] for t in at])


def steps_at_once(nodes: Nodes, edges: Sequence[str]) -> tuple[Floats, Floats]:
    """(borders `[bins + 1]` in seconds, steps under way in each `[edges, bins]`, the mean over its time).

    As many bins as there are tens of steps, 10 to `BINS`: in narrower ones steps come and go.
    """
    most = max((len(nodes.trainings(nodes.names.index(edge))) for edge in edges), default=0)
    bins = min(max(most // _PER_BIN, 10), BINS)
    borders = np.linspace(0.0, nodes.span_s, bins + 1)
    out = np.zeros((len(edges), bins))
    for rank, edge in enumerate(edges):
        work = nodes.trainings(nodes.names.index(edge))
        # what has been computed up to each border, over all steps: a sum of ramps
        begun, ended = np.sort(work["begun_s"]), np.sort(work["ended_s"])
        done = _ramps(borders, begun) - _ramps(borders, ended)
        out[rank] = np.diff(done) / np.diff(borders) if nodes.span_s > 0 else 0.0
    return borders, np.maximum(out, 0.0)


def _ramps(at: Floats, starts: Floats) -> Floats:
    """Sum over `starts`, in order, of max(t - start, 0), for every t of `at`."""
    count = np.searchsorted(starts, at)
    return count * at - np.concatenate([[0.0], np.cumsum(starts)])[count]


def usual_interval_s(nodes: Nodes, device: str, moves: Sequence[Move]) -> float:
    """The median time between the gradients of a batch and the next at a device, in its rounds without moves first.

    nan where there are no two.
    """
    moving = {move.round for move in moves if move.device == device}
    rounds = sorted({int(one) for one in nodes.of_kind("Backward")["cycle"]})
    for which in ([one for one in rounds if one not in moving], rounds):
        found: list[float] = []
        for round_ in which:
            down = gradients(nodes, device, round_)
            next_ = np.diff(down["hop"]) == 1
            found += np.diff(down["arrives_s"])[next_].tolist()
        if found:
            return float(np.median(found))
    return nan


def standstill_s(nodes: Nodes, move: Move, interval_s: float) -> float:
    """How long a device stood still for a move, by this run alone: the raw gap less what those batches usually take.

    Where batches are repeated, the gap less one batch; `read_moves.downtime_s` compares with a run without the move.
    """
    return move.raw_gap_s - max(move.first_batch - move.last_batch, 1) * interval_s
