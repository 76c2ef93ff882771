"""Task time: what a device does from the moment it starts a task to its end, whole or cut short.

A task is overhead, download, computing, upload, in this order. It ends early where its session ends (interrupted) or
at its time-out; what was done until then is counted. Not here: who is asked, and which replies count. Invariants: a
plan is a function of (device, cost, time of start, noise); the parts of a task add up to the time it took.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.work import Cost
from fieldfare.fleet.drift import computing
from fieldfare.fleet.fleet import Fleet, take

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

OUTCOMES = ("ok", "interrupted", "timeout", "late", "stale", "refused", "drop-out")
"""How a task ends: it counted; its session ended; its time-out; over after the gather was; from too old a model; its
numbers could not be used; never heard of again."""
OK, INTERRUPTED, TIMEOUT, LATE, STALE, REFUSED, DROP_OUT = range(len(OUTCOMES))


@dataclass(frozen=True, slots=True, eq=False)
class Phases:
    """Seconds of each part of a task, `[n]` each; `whole` is their sum. Latency is part of both transfers."""

    overhead: F64
    down: F64
    compute: F64
    up: F64
    whole: F64

    def pick(self, at: Any) -> Phases:
        return Phases(self.overhead[at], self.down[at], self.compute[at], self.up[at], self.whole[at])


def noise_of(fleet: Fleet, keys: NDArray[np.uint64]) -> F64 | None:
    """A factor on computing time per task, `[n]`, log-normal with mean 1; None without noise.

    `keys` uint64 `[n]`: a random stream per task. (mu is -sigma**2 / 2: with mu = 0 the mean would be off by
    exp(sigma**2 / 2).)
    """
    if fleet.noise == 0.0:
        return None
    s = fleet.noise
    return np.exp(s * rng.normals(keys, np.zeros(1, np.int64)) - 0.5 * s * s)


def phases(fleet: Fleet, devices: I64, cost: Cost, at: F64 | float, noise: F64 | None = None) -> Phases:
    """The parts of tasks that start at times `at` (absolute seconds) on `devices` `[n]`, if nothing cuts them short."""
    n = len(devices)
    overhead, latency = take(fleet.overhead_s, devices), take(fleet.latency_s, devices)
    compute = cost.flops / take(fleet.flops_per_s, devices)
    if noise is not None:
        compute = compute * noise
    if fleet.network is None:
        down = cost.bytes_down / take(fleet.downlink_bytes_per_s, devices)
        up = cost.bytes_up / take(fleet.uplink_bytes_per_s, devices)
        if fleet.drift is not None:
            begun = np.broadcast_to(np.asarray(at, np.float64) + overhead + latency + down, (n,))
            compute = computing(fleet.drift, devices, begun, _full(compute, n))
    else:
        begun = np.broadcast_to(np.asarray(at, np.float64) + overhead + latency, (n,))
        down = fleet.network.download(begun, cost.bytes_down, devices)
        if fleet.drift is not None:
            compute = computing(fleet.drift, devices, begun + down, _full(compute, n))
        sent = np.broadcast_to(np.asarray(begun + down + compute + latency, np.float64), (n,))
        up = fleet.network.upload(sent, cost.bytes_up, devices)
    whole = compute + down + up + overhead + 2.0 * latency
    return Phases(
        _full(overhead, n), _full(down + latency, n), _full(compute, n), _full(up + latency, n), _full(whole, n)
    )


def ends(
    fleet: Fleet, devices: I64, start: F64, whole: F64, timeout_s: float | None, until: F64 | None = None
) -> tuple[F64, NDArray[np.int8]]:
    """(when each task ends, its outcome: ok, interrupted or timeout), `[n]`, for tasks started at `start` `[n]`.

    `until` `[n]`: when the session that covers each start ends, where that is known already.
    """
    end, outcome = start + whole, np.zeros(len(devices), np.int8)
    if timeout_s is not None:
        over = whole > timeout_s
        end = np.where(over, start + timeout_s, end)
        outcome[over] = TIMEOUT
    if fleet.availability is not None:
        if until is None:
            until = fleet.availability.session(start, devices)[1]
        cut = until < end
        end = np.where(cut, until, end)
        outcome[cut] = INTERRUPTED
    return end, outcome


@dataclass(frozen=True, slots=True, eq=False)
class Tasks:
    """Tasks that are over, `[n]` each: who, when (absolute seconds), how it ended, and what it took.

    `outcome` indexes `OUTCOMES`. `base`: the number of the ask whose model the task started from. `compute_s`, bytes
    and `energy_j` count what was done, also by tasks cut short.
    """

    client: I64
    start: F64
    end: F64
    outcome: NDArray[np.int8]
    base: I64
    compute_s: F64
    bytes_down: F64
    bytes_up: F64
    energy_j: F64

    def __len__(self) -> int:
        return len(self.client)

    def by_outcome(self) -> Mapping[str, int]:
        """How many tasks ended in each way that occurs."""
        counts = np.bincount(self.outcome, minlength=len(OUTCOMES)).tolist()
        return {name: count for name, count in zip(OUTCOMES, counts, strict=True) if count}

    def seconds_by_outcome(self) -> Mapping[str, float]:
        """Device-seconds, from start to end, by outcome."""
        total = np.bincount(self.outcome, self.end - self.start, len(OUTCOMES)).tolist()
        return {name: s for name, s in zip(OUTCOMES, total, strict=True) if s > 0.0}


def account(
    fleet: Fleet, client: I64, start: F64, end: F64, outcome: NDArray[np.int8], base: I64, parts: Phases, cost: Cost
) -> Tasks:
    """What tasks from `start` to `end` took: each part up to where the task was cut off."""
    whole = (outcome != INTERRUPTED) & (outcome != TIMEOUT)
    answered = outcome != DROP_OUT
    down, compute, up = parts.down, parts.compute, np.where(answered, parts.up, 0.0)
    bytes_down, bytes_up = _column(cost.bytes_down, whole), _column(cost.bytes_up, whole) * answered
    if not whole.all():
        cut = np.flatnonzero(~whole)
        down, compute = down.copy(), compute.copy()
        bytes_down[cut], bytes_up[cut] = _cut(
            fleet, client[cut], start[cut], end[cut] - start[cut], parts.pick(cut), bytes_down[cut], bytes_up[cut],
            (down, compute, up), cut,
        )  # fmt: skip
    energy = take(fleet.compute_w, client) * compute + take(fleet.radio_w, client) * (down + up)
    return Tasks(client, start, end, outcome, base, compute, bytes_down, bytes_up, energy)


def _cut(
    fleet: Fleet, client: I64, start: F64, spent: F64, parts: Phases, bytes_down: F64, bytes_up: F64,
    seconds: tuple[F64, F64, F64], at: I64,
) -> tuple[F64, F64]:  # fmt: skip
    """(bytes down, bytes up) of tasks cut off after `spent` seconds; writes the seconds of their parts at `at`."""
    down, compute, up = seconds
    left = np.maximum(spent - parts.overhead, 0.0)
    down[at] = np.minimum(left, parts.down)
    left = np.maximum(left - parts.down, 0.0)
    compute[at] = np.minimum(left, parts.compute)
    up[at] = np.minimum(np.maximum(left - parts.compute, 0.0), parts.up)
    latency = _full(take(fleet.latency_s, client), len(client))
    received = spent >= parts.overhead + parts.down
    moving, sending = np.maximum(down[at] - latency, 0.0), np.maximum(up[at] - latency, 0.0)
    if fleet.network is not None:
        begun = start + parts.overhead + latency
        part = fleet.network.downloaded(begun, moving, client)
        sent = fleet.network.uploaded(begun + parts.down + parts.compute, sending, client)
    else:
        part = bytes_down * _share(moving, parts.down - latency)
        sent = bytes_up * _share(sending, parts.up - latency)
    return np.where(received, bytes_down, np.minimum(part, bytes_down)), np.minimum(sent, bytes_up)


def _share(done: F64, whole: F64) -> F64:
    """The part that was done, in [0, 1]; none of what takes no time."""
    return np.minimum(np.divide(done, whole, out=np.zeros(len(done)), where=whole > 0.0), 1.0)


def _column(value: Any, like: NDArray[Any]) -> F64:
    """A column of its own, `[n]`."""
    return np.array(np.broadcast_to(np.asarray(value, np.float64), like.shape))


def _full(value: Any, n: int) -> F64:
    if isinstance(value, np.ndarray) and value.shape == (n,) and value.dtype == np.float64:
        return value
    return np.broadcast_to(np.asarray(value, np.float64), (n,))
