"""The sections of a study on what a move costs, by the share of its round that was over: figures beside formulas.

Here: a study's `handovers` (`config.json`) as rows and sections. Not here: what became of a move (`read_moves`),
formulas (`algorithms.fedfly.policies`), drawing (`plots_handovers`). Kept: every figure is read off the runs, of the
first seed of each arm; a formula is of the figures beside it, and an arm that is not there has no row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import Any

from fieldfare.algorithms.fedfly.policies import saving, system_saving
from fieldfare.report import page, plots_handovers, units
from fieldfare.report.move_sections import mobility_of
from fieldfare.report.page import Section
from fieldfare.report.read import Run
from fieldfare.report.read_moves import Move, downtime_s, moves_of, round_s, span_s
from fieldfare.report.read_nodes import Nodes, read_nodes

LEAD = (
    "The mover's round takes T without a move, (1 + f) T with a restart at f of it, T + o with a handover. So the "
    "mover saves (f − o/T) / (1 + f) against a restart, and the round of all 1 − max(T of the others, T + o) / max(T "
    "of the others, (1 + f) T). Below each figure stands what its formula gives."
)


@dataclass(frozen=True, slots=True)
class Row:
    """One move: its share of the round, the mover's round with and without it, and that of all; seconds, nan: unknown.

    `move`: None where the session stayed to the end of the round. `others_s`: the longest round of other devices.
    """

    share: float
    policy: str
    still_s: float
    round_s: float
    restart_s: float
    others_s: float
    whole_s: float
    restart_whole_s: float
    downtime_s: float
    move: Move | None

    @property
    def again(self) -> bool:
        """Whether the round was begun again."""
        return self.move is not None and self.move.kind == "restart"

    @property
    def overhead_s(self) -> float:
        """What the move adds to the mover's round, o."""
        return self.round_s - self.still_s

    @property
    def saved(self) -> float:
        """Share of the mover's round saved against a restart."""
        return 1.0 - self.round_s / self.restart_s

    @property
    def wanted(self) -> float:
        """The same by the formula, with the row's own o."""
        return saving(self.share, self.overhead_s / self.still_s)

    @property
    def whole_saved(self) -> float:
        """Share of the run saved against a restart."""
        return 1.0 - self.whole_s / self.restart_whole_s

    @property
    def whole_wanted(self) -> float:
        """The same by the formula."""
        return system_saving(self.share, self.still_s, self.others_s, self.overhead_s)


def rows_of(run: Run, told: Mapping[str, Any]) -> list[Row]:
    """The rows of one entry of `handovers`, by share and then as given; those whose arms are missing are left out."""
    still = _first(run, str(told["still"]))
    points = [(float(at), str(policy), str(arm)) for at, policy, arm in told["points"]]
    restarts = {at: arm for at, policy, arm in points if policy == told.get("restart", "restart")}
    if still is None:
        return []
    found = (
        _row(still, _first(run, arm), _first(run, restarts.get(at, "")), policy)
        for at, policy, arm in sorted(points, key=lambda point: point[0])
    )
    return [row for row in found if row is not None]


def _row(
    still: tuple[Run, Nodes], mine: tuple[Run, Nodes] | None, restart: tuple[Run, Nodes] | None, policy: str
) -> Row | None:
    if mine is None:
        return None
    run, nodes = mine
    mobility = mobility_of(run.path)
    if not mobility.get("moves"):
        return None
    at, device = float(mobility["moves"][0][0]), str(mobility["moves"][0][1])
    round_ = _round_at(still[1], device, at)
    begin, end = span_s(still[1], device, round_)
    if not end > begin:
        return None
    move = next((one for one in moves_of(nodes, mobility) if (one.device, one.round) == (device, round_)), None)
    others = [
        round_s(still[1], name, round_)
        for name, role in zip(nodes.names, nodes.roles, strict=True)
        if role == "device" and name != device
    ]
    return Row(
        (at - begin) / (end - begin), policy, end - begin, round_s(nodes, device, round_),
        nan if restart is None else round_s(restart[1], device, round_),
        max((one for one in others if isfinite(one)), default=0.0), _whole(run),
        nan if restart is None else _whole(restart[0]), 0.0 if move is None else downtime_s(move, still[1]), move,
    )  # fmt: skip


def _round_at(still: Nodes, device: str, at: float) -> int:
    """The round in which a device is at `at` seconds, in the run in which it does not move: the last that has begun."""
    rounds = sorted({int(one) for one in still.trainings(still.names.index(device))["cycle"]})
    return max((one for one in rounds if span_s(still, device, one)[0] <= at), default=rounds[0] if rounds else 0)


def _whole(run: Run) -> float:
    found = run.table.total("virtual_s")
    return nan if found is None else found


def _first(run: Run, arm: str) -> tuple[Run, Nodes] | None:
    """The first seed of an arm, and its nodes."""
    for one in run.arms.get(arm, ())[:1]:
        nodes = read_nodes(one.path, one.table.total("virtual_s"))
        return None if nodes is None else (one, nodes)
    return None


def handover_sections(run: Run, *, draw: bool) -> list[Section]:
    """Give a section for each entry of a study's `handovers` that has rows."""
    listed = run.config.get("handovers")
    found: list[Section] = []
    for rank, told in enumerate(listed if isinstance(listed, list) else ()):
        rows = rows_of(run, told)
        if not rows:
            continue
        published = {float(at): float(value) for at, value in told.get("published") or ()}
        body = handovers_table(rows, told.get("bytes_per_s"), published, str(told["title"]))
        if draw:
            body += page.GAP + page.pictures(plots_handovers.handover_pictures(rows, published, rank))
        found.append(Section(f"handovers-{rank}", str(told["title"]), str(told.get("note") or LEAD), body))
    return found


def handovers_table(
    rows: Sequence[Row], bytes_per_s: float | None, published: Mapping[float, float], title: str
) -> str:
    """A row per move: figures of the runs, with the formula's value below each."""
    head = [("move at f", True), ("policy", False), ("mover's round", True), ("saved against a restart", True),
            *([("published", True)] if published else []), ("round of all", True), ("saved of that", True),
            ("downtime", True), ("state crossed, S", True)]  # fmt: skip
    out: list[list[str]] = []
    for row in rows:
        again = row.again
        by = (
            f"(1 + f) T = {units.duration((1.0 + row.share) * row.still_s)}" if again
            else f"T = {units.duration(row.still_s)}, o = {_seconds(row.overhead_s)}"
        )  # fmt: skip
        cells = [units.share(row.share), row.policy, (units.duration(row.round_s), by)]
        cells.append(units.DASH if again else (units.share(row.saved), f"formula {units.share(row.wanted)}"))
        if published:
            said = next((value for at, value in published.items() if abs(at - row.share) < 0.005), None)
            cells.append(units.DASH if again or said is None else units.share(said))
        cells.append(units.duration(row.whole_s))
        cells.append(
            units.DASH if again else (units.share(row.whole_saved), f"formula {units.share(row.whole_wanted)}")
        )
        cells.append("stays" if row.move is None else units.DASH if again else _seconds(row.downtime_s))
        crossed = 0.0 if row.move is None else row.move.state_bytes + row.move.sealed_bytes
        takes = f"S / B = {units.duration(crossed / bytes_per_s)}" if bytes_per_s and crossed else ""
        cells.append((units.size(crossed), takes))
        out.append([
            page.cell(*((one, ) if isinstance(one, str) else one[:1]), number=number, head=at == 0,
                      under="" if isinstance(one, str) else one[1])
            for at, (one, (_, number)) in enumerate(zip(cells, head, strict=True))
        ])  # fmt: skip
    said = "<p>Stays: the session is with the old edge to the end of the round, for there was no time to move it.</p>"
    return page.table(head, out, kind="values", caption=title) + (said if any(r.move is None for r in rows) else "")


def _seconds(value: float) -> str:
    """A time that may be below 0 by less than the records tell."""
    return units.duration(value if abs(value) > 1e-6 else 0.0) if value < inf else units.DASH
