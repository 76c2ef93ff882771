"""The section of a page on devices that move over edge servers: pictures, and a table of moves.

Here: from a run's folder to sections. Not here: adding up (`read_moves`, `whereabouts`), drawing (`plots_moves`). Kept:
a run without edge servers has no such section.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.report import page, plots_moves, units
from fieldfare.report.page import Section
from fieldfare.report.read_moves import Move, moves_of
from fieldfare.report.read_nodes import Nodes
from fieldfare.report.style import Picture
from fieldfare.report.table import load
from fieldfare.report.whereabouts import standstill_s, usual_interval_s
from fieldfare.store.nodes import NODES

ROWS = 200
"""Moves in the table at most: the first."""


def move_sections(
    folder: Path, nodes: Nodes, *, draw: bool, more: str = "", named: Callable[[list[Any], str], list[Any]]
) -> list[Section]:
    """The section on moves of the run in `folder`, or none; `named` makes names of pictures differ by `more`."""
    if not plots_moves.edges_of(nodes):
        return []
    mobility = mobility_of(folder)
    moves = moves_of(nodes, mobility)
    still = standstills(nodes, moves)
    drawn: list[Picture | None] = plots_moves.move_pictures(nodes, mobility, moves, still) if draw else []
    body = page.pictures(named(drawn, more)) + (page.GAP + moves_table(moves, still) if moves else "")
    lead = "Which edge each device was at and which had its session, what a move cost it, what edges and links carried."
    return [Section(f"moves{more}", "Moves", lead, body)] if body else []


def mobility_of(folder: Path) -> Mapping[str, Any]:
    """Where devices were to be, as `nodes.json` keeps it; nothing where nobody could move."""
    told = (load(folder / NODES) or {}).get("mobility")
    return told if isinstance(told, Mapping) else {}


def standstills(nodes: Nodes, moves: Sequence[Move]) -> list[float]:
    """Seconds each move has cost its device, by this run alone; nan where that cannot be told."""
    usual = {device: usual_interval_s(nodes, device, moves) for device in dict.fromkeys(one.device for one in moves)}
    return [standstill_s(nodes, move, usual[move.device]) for move in moves]


def moves_table(moves: Sequence[Move], standstill: Sequence[float]) -> str:
    """A row per session that changed hands."""
    head = [("device", False), ("moved at", True), ("round", True), ("from", False), ("to", False), ("policy", False),
            ("given away at", True), ("bytes crossed", True), ("raw gap", True), ("stood still", True),
            ("batches repeated", True)]  # fmt: skip
    rows = []
    for move, still_s in list(zip(moves, standstill, strict=True))[:ROWS]:
        under = "by the device" if move.sealed_bytes > 0 else ""
        crossed = units.size(move.sealed_bytes if under else move.state_bytes)
        rows.append([
            page.cell(move.device, head=True), page.cell(units.duration(move.moved_s), number=True),
            page.cell(str(move.round), number=True), page.cell(move.src), page.cell(move.dst),
            page.cell(plots_moves.mark_of(move)), page.cell(units.duration(move.committed_s), number=True),
            page.cell(crossed, number=True, under=under), page.cell(units.duration(move.raw_gap_s), number=True),
            page.cell(units.duration(max(still_s, 0.0) if np.isfinite(still_s) else None), number=True),
            page.cell(str(move.repeated), number=True),
        ])  # fmt: skip
    said = (
        f"<p>Raw gap: from the last gradient of the old edge to the first of the new one; stood still: what of it is "
        f"beyond this device's usual time between gradients.{_left_out(len(moves))}</p>"
    )
    return said + page.table(head, rows, caption="Sessions that changed hands")


def _left_out(many: int) -> str:
    return f" The first {ROWS} of {many:,} moves." if many > ROWS else ""
