"""Edge servers beside the devices of a fleet: one population of both.

Here: what an edge server is when nothing is said, and the columns of two fleets one after the other. Invariant: what a
device is does not depend on who is beside it; an edge is always there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.drift import DriftTable
from fieldfare.fleet.fleet import Fleet, take
from fieldfare.fleet.memory import MemoryTable

_COLUMNS = (
    "flops_per_s", "downlink_bytes_per_s", "uplink_bytes_per_s", "overhead_s", "memory_bytes", "latency_s", "compute_w",
    "radio_w", "timezone_s",
)  # fmt: skip


def edge_servers(flops_per_s: float = 1e11, bytes_per_s: float = 1.25e8, compute_w: float = 65.0) -> Fleet:
    """Edge servers, all alike: 100 GFLOP/s on a link of 1 Gbit/s, 65 W while computing (our choice, not measured)."""
    return Fleet(
        flops_per_s, bytes_per_s, bytes_per_s, 0.0, name="edge servers", memory_bytes=32e9, compute_w=compute_w,
        radio_w=0.0,
    )  # fmt: skip


def beside(fleet: Fleet, n: int, edges: Fleet, m: int) -> Fleet:
    """`fleet` of `n` devices with `m` edge servers behind them; the flag "device" marks the former.

    Links that change in time are refused; noise, drop-out and drift are those of the devices' fleet (an edge has them
    too, but for a `DriftTable`).
    """
    fleet.fit(n)
    edges.fit(m)
    if fleet.network is not None or edges.network is not None or edges.availability is not None:
        raise UsageError(
            "edge servers beside devices: links that change in time, and edges that come and go, are not offered; give "
            "fleets without a network, and edges without an availability."
        )
    columns: dict[str, Any] = {}
    for name in _COLUMNS:
        own, other = (
            np.broadcast_to(np.asarray(getattr(one, name), np.float64), k) for one, k in _both(fleet, n, edges, m)
        )
        both = np.concatenate([own, other])
        columns[name] = float(both[0]) if (both == both[0]).all() else both.astype(np.float32)
    kinds = (*(fleet.kinds or (fleet.name,)), "edge server")
    kind = np.zeros(n, np.int64) if fleet.kind is None else np.asarray(fleet.kind, np.int64)
    flags = {name: np.append(flag, np.zeros(m, np.bool_)) for name, flag in fleet.flags.items()}
    drift = fleet.drift
    if isinstance(drift, DriftTable):
        factors: Any = drift.factors
        drift = DriftTable(drift.times_s, np.concatenate([factors, np.ones((m, factors.shape[1]))]))
    memory = fleet.memory
    if memory is not None:
        free: Any = memory.free_bytes
        other = np.broadcast_to(np.asarray(edges.memory_bytes, np.float64), m)[:, None]
        memory = MemoryTable(memory.times_s, np.concatenate([free, np.repeat(other, free.shape[1], axis=1)]))
    return replace(
        fleet, **columns, memory=memory, kind=np.append(kind, np.full(m, len(kinds) - 1)), kinds=kinds, drift=drift,
        flags={**flags, "device": np.arange(n + m) < n}, availability=_there(fleet.availability, m),
    )  # fmt: skip


def rate(column: Any, device: int) -> float:
    """The number of one device in a column."""
    return float(take(column, np.array([device]))[0] if isinstance(column, np.ndarray) else column)


def _both(fleet: Fleet, n: int, edges: Fleet, m: int) -> tuple[tuple[Fleet, int], tuple[Fleet, int]]:
    return (fleet, n), (edges, m)


def _there(available: Availability | None, m: int) -> Availability | None:
    """The same devices, and `m` more that are always there."""
    if available is None:
        return None
    traces = len(available.offsets) - 1
    row = np.arange(traces, dtype=np.int32) if available.row is None else available.row
    shift = available.shift_s
    return Availability(
        np.append(available.offsets, available.offsets[-1] + 1), np.append(available.start, 0.0),
        np.append(available.end, available.period_s), available.period_s,
        np.append(row, np.full(m, traces, np.int32)).astype(np.int32),
        None if shift is None else np.append(shift, np.zeros(m, np.float32)).astype(np.float32),
    )  # fmt: skip
