"""Which edge each device is at, over time: from a table, or from devices that walk over a grid of edges.

Here: associations as arrays, the moves and coverage gaps in them, random waypoints with hysteresis. Not here: what a
move does to a session (`algorithms.fedfly`), availability (`availability`). Invariant: device i walks the same way
whatever the number of devices, and an answer depends on (table, time) alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Moved

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

NOWHERE = -1
"""The edge of a device that no edge reaches."""
FOR_EVER_S = 1e9
"""How long the link of a device is down that no edge reaches any more: 31 years."""
_BLOCK = 1 << 20  # numbers of a distance table held at once


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """Moves in order of time, `[m]` each: device, seconds, edge before and after, `gap_s` without any just before."""

    device: I64
    at_s: F64
    before: I32
    after: I32
    gap_s: F64


@dataclass(frozen=True, slots=True, eq=False)
class Mobility:
    """The edge of n devices over time, as step functions; checked when made.

    `offsets` int64 `[n + 1]`: device i has entries `offsets[i]` to `offsets[i + 1]`. `at_s` float64 `[k]`: from when
    on, ascending, the first of a device at 0; `edge` int32 `[k]`: 0 to `edges` - 1, or -1 (no coverage).

    >>> two = Mobility.of([[(0, 0), (30, 1)], [(0, 1)]], edges=2)
    >>> two.at(40.0).tolist(), two.moves().at_s.tolist()
    ([1, 1], [30.0])
    """

    offsets: I64
    at_s: F64
    edge: I32
    edges: int

    def __post_init__(self) -> None:
        n, starts = len(self.offsets) - 1, self.offsets[:-1]
        if n < 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self.at_s) or len(self.at_s) != len(self.edge):
            raise UsageError(f"Mobility: offsets must run from 0 to the number of entries, {len(self.at_s)}.")
        if (np.diff(self.offsets) < 1).any():
            raise UsageError(f"device {int(np.argmin(np.diff(self.offsets)))} is at no edge: give its entry at 0 s.")
        owner = np.repeat(np.arange(n), np.diff(self.offsets))
        if not np.isfinite(self.at_s).all():
            bad = int(owner[np.argmin(np.isfinite(self.at_s))])
            raise UsageError(f"device {bad} has a time that is no number of seconds: give finite ones.")
        if (self.at_s[starts] != 0).any():
            bad = int(np.argmax(self.at_s[starts] != 0))
            raise UsageError(f"device {bad} begins at {self.at_s[starts][bad]} s: the first entry of each is at 0 s.")
        back = (np.diff(self.at_s) <= 0) & (owner[1:] == owner[:-1])
        if back.any():
            raise UsageError(f"device {int(owner[np.argmax(back)])}: its times do not ascend; sort them, each once.")
        if self.edge.min() < NOWHERE or self.edge.max() >= self.edges:
            raise UsageError(
                f"edges run from {self.edge.min()} to {self.edge.max()} and there are {self.edges}: use 0 to "
                f"{self.edges - 1}, or -1 for no coverage."
            )

    @property
    def size(self) -> int:
        """Number of devices, n."""
        return len(self.offsets) - 1

    @classmethod
    def of(cls, tables: Iterable[Sequence[tuple[float, int]]], edges: int) -> Mobility:
        """From (seconds, edge) entries of each device in turn."""
        rows = [list(table) for table in tables]
        device = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        flat = [entry for row in rows for entry in row]
        at, edge = ([entry[i] for entry in flat] for i in (0, 1))
        return cls.of_columns(device, np.array(at, np.float64), np.array(edge, np.int64), len(rows), edges)

    @classmethod
    def of_columns(cls, device: ArrayLike, at_s: ArrayLike, edge: ArrayLike, n: int, edges: int) -> Mobility:
        """From one row per entry `[k]`, in any order: device, seconds, edge. Errors: `UsageError`, naming a device."""
        who, at = np.asarray(device, np.int64), np.asarray(at_s, np.float64)
        where = np.asarray(edge, np.int64)
        if not who.shape == at.shape == where.shape or who.ndim != 1:
            raise UsageError(f"columns of shapes {who.shape}, {at.shape}, {where.shape}: give one row per entry.")
        if len(who) and not 0 <= who.min() <= who.max() < n:
            raise UsageError(f"device {who.max()} is in the table, and there are {n}: number them from 0.")
        order = np.lexsort((at, who))
        who, at, where = who[order], at[order], where[order]
        same = np.zeros(len(who), np.bool_)
        same[1:] = (who[1:] == who[:-1]) & (where[1:] == where[:-1]) & (at[1:] > at[:-1])
        who, at, where = who[~same], at[~same], where[~same]
        offsets = np.searchsorted(who, np.arange(n + 1)).astype(np.int64)
        return cls(offsets, at, where.astype(np.int32), edges)

    def at(self, t: float, devices: I64 | None = None) -> I32:
        """The edge of each device at `t`, int32 `[n']`; -1: none. O(k) for all."""
        devices = np.arange(self.size) if devices is None else np.asarray(devices, np.int64)
        begun = np.concatenate([[0], np.cumsum(self.at_s <= t)])
        count = begun[self.offsets[devices + 1]] - begun[self.offsets[devices]]
        return self.edge[self.offsets[devices] + np.maximum(count, 1) - 1]

    def table(self, times: ArrayLike) -> I32:
        """The edge of every device at `times` `[k']`, int32 `[n, k']`: a picture of who is where."""
        return np.stack([self.at(float(t)) for t in np.asarray(times, np.float64)], axis=1)

    def homes(self) -> I32:
        """The first edge of each device, int32 `[n]`; -1 where it is never at one."""
        out = np.full(self.size, NOWHERE, np.int32)
        held = np.flatnonzero(self.edge != NOWHERE)
        owner = np.repeat(np.arange(self.size), np.diff(self.offsets))[held]
        first = np.unique(owner, return_index=True)
        out[first[0]] = self.edge[held[first[1]]]
        return out

    def moves(self) -> Moves:
        """Every change from one edge to another, passing over gaps; who comes back to its edge has not moved."""
        held = np.flatnonzero(self.edge != NOWHERE)
        owner = np.repeat(np.arange(self.size), np.diff(self.offsets))[held]
        until = np.append(self.at_s[1:], np.inf)[held]
        last = np.ones(len(held), np.bool_)
        last[:-1] = owner[1:] != owner[:-1]
        until[last] = np.inf
        pair = (owner[1:] == owner[:-1]) & (self.edge[held][1:] != self.edge[held][:-1])
        to = np.flatnonzero(pair) + 1
        at, before, after = self.at_s[held][to], self.edge[held][to - 1], self.edge[held][to]
        order = np.lexsort((owner[to], at))
        gap = np.maximum(at - until[to - 1], 0.0)
        return Moves(owner[to][order], at[order], before[order], after[order], gap[order])

    def gaps(self) -> tuple[I64, F64, F64]:
        """(device, begin, end) `[g]` of the spans in which no edge reaches it; an end of inf: never again."""
        owner = np.repeat(np.arange(self.size), np.diff(self.offsets))
        ends = np.append(self.at_s[1:], np.inf)
        ends[self.offsets[1:] - 1] = np.inf
        out = self.edge == NOWHERE
        return owner[out], self.at_s[out], ends[out]

    def happenings(
        self, devices: Sequence[str], edges: Sequence[str], lead_s: float = 0.0
    ) -> tuple[tuple[float, Moved, tuple[str, ...]], ...]:
        """The moves as `World(happenings=...)` takes them: at a device and both its edges.

        `lead_s`: how long before (never below 0 s) the edge it leaves is told, where a move can be foreseen.
        """
        if len(devices) != self.size or len(edges) != self.edges:
            raise UsageError(
                f"names of {len(devices)} devices and {len(edges)} edges, of {self.size} and {self.edges}: one each."
            )
        out: list[tuple[float, Moved, tuple[str, ...]]] = []
        found = self.moves()
        rows = (found.device, found.at_s, found.before, found.after)
        for device, at, before, after in zip(*(row.tolist() for row in rows), strict=True):
            event = Moved(devices[device], edges[after])
            if lead_s > 0.0:
                out.append((max(at - lead_s, 0.0), event, (edges[before],)))
                out.append((at, event, (devices[device], edges[after])))
            else:
                out.append((at, event, (devices[device], edges[before], edges[after])))
        return tuple(sorted(out, key=lambda one: one[0]))

    def outages(self, devices: Sequence[str]) -> dict[str, tuple[tuple[float, float], ...]]:
        """The coverage gaps as `Links(outages=...)` takes them; one that never ends lasts `FOR_EVER_S`."""
        out: dict[str, tuple[tuple[float, float], ...]] = {}
        for device, begin, end in zip(*(column.tolist() for column in self.gaps()), strict=True):
            name, back = devices[device], min(end, begin + FOR_EVER_S)
            out[name] = (*out.get(name, ()), (begin, back))
        return out

    def describe(self) -> dict[str, Any]:
        """Plain JSON: how many devices, edges, moves and gaps."""
        moves, gaps = self.moves(), self.gaps()
        return {"devices": self.size, "edges": self.edges, "moves": len(moves.at_s), "gaps": len(gaps[0])}


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """Where devices walked, and which edges they were at: `x_m`, `y_m` float64 `[n, k]` at `times_s` `[k]`.

    `edges_m` float64 `[e, 2]`: where the edges are.
    """

    mobility: Mobility
    times_s: F64
    x_m: F64
    y_m: F64
    edges_m: F64

    def describe(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"walk": True, "until_s": float(self.times_s[-1]), **self.mobility.describe()}

    def thinned(self, devices: int = 100, times: int = 400) -> dict[str, Any]:
        """Plain JSON for a picture: at most so many devices and times, every second, third, ... of them."""
        every, step = -(-len(self.x_m) // devices), -(-len(self.times_s) // times)
        places = {name: getattr(self, name)[::every, ::step].round(2).tolist() for name in ("x_m", "y_m")}
        return {"times_s": self.times_s[::step].tolist(), **places, "edges_m": self.edges_m.tolist()}


class Moving(Protocol):
    """A recipe for a mobility, made when the job is known."""

    def build(self, job: Any) -> Mobility: ...


def waypoints(
    n: int, grid: tuple[int, int] = (2, 2), spacing_m: float = 200.0, speed_m_s: tuple[float, float] = (0.5, 2.0),
    pause_s: float = 30.0, horizon_s: float = 3600.0, radius_m: float | None = None, hysteresis_m: float = 20.0,
    step_s: float = 1.0, seed: int = 0,
) -> Walk:  # fmt: skip
    """`n` devices walk from random place to random place over a `grid` (rows, columns) of edges `spacing_m` apart.

    Random waypoint (Johnson & Maltz, Mobile Computing 1996): each draws a place in the rectangle around the edges,
    goes there straight at a speed drawn from `speed_m_s`, rests for up to `pause_s` (uniform), and draws again. The
    distribution at the start is uniform, which the model's own is not: the first part of a long walk is denser at the
    border (known of the model). Association, every `step_s`: a device leaves its edge when another is nearer by more
    than `hysteresis_m`, or when it is further than `radius_m` (None: no gaps); one without an edge takes the nearest
    when that is nearer than `radius_m` less the hysteresis. Cost: O(n edges horizon / step).

    >>> walk = waypoints(3, grid=(1, 2), horizon_s=60.0)
    >>> walk.x_m.shape
    (3, 61)
    """
    low, high = speed_m_s
    if n < 1 or min(grid) < 1 or not 0.0 < low <= high or not (spacing_m > 0.0 and step_s > 0.0 and horizon_s >= 0.0):
        raise UsageError(
            f"waypoints({n}, grid={grid}, spacing_m={spacing_m}, speed_m_s={speed_m_s}, step_s={step_s}, "
            f"horizon_s={horizon_s}): use n and grid >= 1, lengths, speeds and steps above 0, the slower speed first."
        )
    if hysteresis_m < 0.0 or pause_s < 0.0 or (radius_m is not None and not radius_m > hysteresis_m):
        raise UsageError(
            f"waypoints(hysteresis_m={hysteresis_m}, pause_s={pause_s}, radius_m={radius_m}): use numbers >= 0, and a "
            "radius larger than the hysteresis."
        )
    rows, columns = grid
    edges = np.array([(c, r) for r in range(rows) for c in range(columns)], np.float64) * spacing_m
    corner, sides = np.array([-0.5, -0.5]) * spacing_m, np.array([columns, rows]) * spacing_m
    times = np.arange(int(horizon_s / step_s) + 1) * step_s
    x, y = _walked(rng.keys(seed, ("mobility",), np.arange(n)), times, corner, sides, speed_m_s, pause_s)
    where = _associated(x, y, edges, radius_m, hysteresis_m)
    change = np.ones(where.shape, np.bool_)
    change[:, 1:] = where[:, 1:] != where[:, :-1]
    device, step = np.nonzero(change)
    mobility = Mobility.of_columns(device, times[step], where[device, step], n, len(edges))
    return Walk(mobility, times, x, y, edges)


def _walked(
    keys: NDArray[np.uint64], times: F64, corner: F64, sides: F64, speed: tuple[float, float], pause_s: float
) -> tuple[F64, F64]:
    """Positions at `times`, `[n, k]` each: leg after leg, of all devices at once."""
    n, k = len(keys), len(times)
    out = np.empty((2, n, k))
    key = keys[:, None]

    def drawn(leg: int) -> F64:
        return rng.uniforms(key, np.arange(4)[None, :] + 4 * leg)

    here, since = corner + drawn(0)[:, :2] * sides, np.zeros(n)
    open_, leg = np.arange(n), 0
    while len(open_):
        leg += 1
        u = drawn(leg)[open_]
        there = corner + u[:, :2] * sides
        length = np.hypot(*(there - here[open_]).T)
        arrives = since[open_] + length / (speed[0] + u[:, 2] * (speed[1] - speed[0]))
        leaves = arrives + u[:, 3] * pause_s
        for at, device in enumerate(open_.tolist()):
            first, last = np.searchsorted(times, [since[device], leaves[at]])
            span = max(arrives[at] - since[device], 1e-9)
            share = np.clip((times[first:last] - since[device]) / span, 0.0, 1.0)
            step = there[at] - here[device]
            out[:, device, first:last] = here[device][:, None] + step[:, None] * share
        here[open_], since[open_] = there, leaves
        done = leaves > times[-1]
        open_ = open_[~done]
    return out[0], out[1]


def _associated(x: F64, y: F64, edges: F64, radius_m: float | None, hysteresis_m: float) -> I32:
    """The edge of each device at each step, int32 `[n, k]`."""
    n, k = x.shape
    out = np.empty((n, k), np.int32)
    radius = np.inf if radius_m is None else radius_m
    block = max(1, _BLOCK // (k * len(edges)))
    for first in range(0, n, block):
        part = slice(first, first + block)
        far = np.hypot(x[part, :, None] - edges[:, 0], y[part, :, None] - edges[:, 1])
        nearest, least = far.argmin(axis=2), far.min(axis=2)
        mine = np.where(least[:, 0] <= radius, nearest[:, 0], NOWHERE)
        rows = np.arange(len(mine))
        for step in range(k):
            own = np.where(mine == NOWHERE, np.inf, far[rows, step, mine])
            left = own > radius
            better = least[:, step] < own - hysteresis_m
            joins = least[:, step] <= radius - hysteresis_m
            mine = np.where(left | (mine == NOWHERE), np.where(joins, nearest[:, step], NOWHERE), mine)
            mine = np.where(~left & better & (least[:, step] <= radius), nearest[:, step], mine)
            out[part, step] = mine
    return out
