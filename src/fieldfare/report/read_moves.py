"""What became of devices that moved from edge to edge: which policy, what crossed, how long the device stood still.

Here: `moves_of` and sums over one run, and over a pair of runs with and without the move. Not here: the files
(`read_nodes`), pictures and claims. Kept: every figure is of the messages and trainings a run has kept; what was never
seen is nan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.report.read_nodes import Nodes

GRADIENTS = ("Backward", "Attached")
"""Messages that bring a gradient down, where they name a batch."""
STATE = ("Pre", "Final", "Stored")
"""Messages in which the state of a session crosses from edge to edge."""


@dataclass(frozen=True, slots=True)
class Move:
    """A session of `device` that went from edge `src` to `dst` in `round`, to be owned in `epoch`.

    `kind`: "handover", "restart" or "failover"; `policy` as chosen. `moved_s`: when the device moved (nan: for another
    reason); `committed_s`: when the centre was asked. `last_s`, `last_batch`: arrival of the last gradient from the old
    edge, `first_s`, `first_batch` of the first from the new one; `raw_gap_s` between them. `repeated`: batches the
    device trained in the round beyond those it has. `state_bytes` crossed, `sealed` of them by way of the device.
    """

    device: str
    round: int
    epoch: int
    src: str
    dst: str
    kind: str
    policy: str
    moved_s: float
    committed_s: float
    last_s: float
    last_batch: int
    first_s: float
    first_batch: int
    repeated: int
    state_bytes: float
    sealed_bytes: float

    @property
    def raw_gap_s(self) -> float:
        """From the last gradient of the old edge to the first of the new one."""
        return self.first_s - self.last_s


def moves_of(nodes: Nodes, mobility: Mapping[str, Any] | None = None) -> tuple[Move, ...]:
    """The sessions that changed hands, in order of time; `mobility` as in `nodes.json`, for when devices moved."""
    began = {(one["device"], one["epoch"]): one for one in nodes.said if one.get("what") == "prep"}
    out: list[Move] = []
    for said in nodes.said:
        if said.get("what") != "commit" or said["device"] not in nodes.names:
            continue
        device, round_, epoch = str(said["device"]), int(said["round"]), int(said["epoch"])
        src, dst, at = str(said["src"]), str(said["dst"]), float(said["virtual_s"])
        down = gradients(nodes, device, round_)
        old, new = (down[down["src"] == nodes.names.index(edge)] for edge in (src, dst))
        new = new[new["arrives_s"] > at]
        old = old[old["arrives_s"] <= (new["arrives_s"].min() if len(new) else inf)]
        scheduled = [float(one[0]) for one in (mobility or {}).get("moves", ()) if one[1] == device and one[3] == dst]
        prep = began.get((device, epoch - 1), {})
        span = float(prep.get("virtual_s", at)), float(new["arrives_s"].min()) if len(new) else inf
        crossed, sealed = _crossed(nodes, device, (src, dst), span, epoch)
        moved_s = max((t for t in scheduled if t <= at), default=nan)
        change = str(said["kind"]), str(prep.get("policy", "")), moved_s, at
        seen = (*_at(old, -1), *_at(new, 0))
        twice = repeated(nodes, device, round_)
        out.append(Move(device, round_, epoch, src, dst, *change, *seen, twice, crossed, sealed))
    return tuple(out)


def gradients(nodes: Nodes, device: str, round_: int) -> NDArray[Any]:
    """Messages that brought a gradient to `device` in a round, in order of arrival; the first of a batch alone."""
    rows = nodes.of_kind(*GRADIENTS)
    mine = (rows["dst"] == nodes.names.index(device)) & (rows["cycle"] == round_) & (rows["hop"] >= 0)
    rows = rows[mine & np.isfinite(rows["arrives_s"])]
    return rows[np.argsort(rows["arrives_s"], kind="stable")]


def repeated(nodes: Nodes, device: str, round_: int) -> int:
    """Batches that a device trained in a round more often than once."""
    work = nodes.trainings(nodes.names.index(device))
    trained = int(work["steps"][work["cycle"] == round_].sum())
    return trained - len(np.unique(gradients(nodes, device, round_)["hop"]))


def span_s(nodes: Nodes, device: str, round_: int) -> tuple[float, float]:
    """When a device began to compute in a round, and when it ended, in seconds; nan where it did not."""
    work = nodes.trainings(nodes.names.index(device))
    work = work[work["cycle"] == round_]
    return (float(work["begun_s"].min()), float(work["ended_s"].max())) if len(work) else (nan, nan)


def round_s(nodes: Nodes, device: str, round_: int) -> float:
    """Seconds from the first to the last computing of a device in a round; nan where there is none."""
    begin, end = span_s(nodes, device, round_)
    return end - begin


def downtime_s(move: Move, still: Nodes) -> float:
    """The raw gap minus the same interval, between the gradients of the same batches, in a run without the move.

    Where batches are repeated the interval is that from a batch to the next: what is lost is counted as `repeated`.
    """
    down = gradients(still, move.device, move.round)
    when = {int(hop): float(at) for hop, at in zip(down["hop"], down["arrives_s"], strict=True)}
    last, first = move.last_batch, move.first_batch
    if first <= last:
        last, first = first, first + 1
    if first not in when or last not in when:
        return nan
    return move.raw_gap_s - (when[first] - when[last])


def _at(rows: NDArray[Any], which: int) -> tuple[float, int]:
    """(arrival, batch) of the first or last of some messages."""
    return (float(rows["arrives_s"][which]), int(rows["hop"][which])) if len(rows) else (nan, -1)


def _crossed(
    nodes: Nodes, device: str, edges: tuple[str, str], span: tuple[float, float], epoch: int
) -> tuple[float, float]:
    """(bytes of state that went from edge to edge, or through the centre; bytes that the device was given to carry).

    Of one change of owner, between its beginning and its end. Messages between edges are told by epoch and not by
    device: of several sessions that go the same way at the same time the sum is told of each.
    """
    src, dst, me = (nodes.names.index(one) for one in (*edges, device))
    at = (nodes.messages["sent_s"] >= span[0]) & (nodes.messages["sent_s"] <= span[1])
    rows = nodes.messages[at & (nodes.messages["src"] == src)]
    kinds = np.array([*nodes.kinds, ""])[rows["kind"]]
    to_edge = (rows["dst"] == dst) & np.isin(kinds, STATE) & (rows["epoch"] == epoch - 1)
    carried = (rows["dst"] == me) & (kinds == "Carry")
    return float(rows["bytes"][to_edge | (kinds == "Relay")].sum()), float(rows["bytes"][carried].sum())
