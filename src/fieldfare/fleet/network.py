"""Links that change in time: throughput traces replayed, as step functions that repeat.

A transfer that starts at t ends when the integral of the rate from t on reaches its size: `download` and `upload` are
the exact inverse of that integral, by bisection over cumulated bytes; whole periods are passed by division, and spans
of zero throughput are waited through. Not here: links that stay as they are (columns of `Fleet`), where traces come
from (`traces`, `parquet`). Invariant: an answer depends on (trace, shift, time, size) alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldfare.core.errors import UsageError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

SLOW_BYTES_PER_S, FAST_BYTES_PER_S = 1e3, 1e10
"""A table whose median rate is outside of these looks like one in another unit: 8 kbit/s and 80 Gbit/s."""

_UNITS = (("gbps", 1.25e8), ("gbit", 1.25e8), ("mbps", 1.25e5), ("mbit", 1.25e5), ("kbps", 125.0), ("kbit", 125.0),
          ("bits", 0.125), ("bps", 0.125), ("kb_per_s", 1e3), ("mb_per_s", 1e6))  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Throughput of n devices over m traces; checked when made.

    `offsets` int64 `[m + 1]`: trace r holds steps `offsets[r]` to `offsets[r + 1]`, at least one. `t_s` float64 `[k]`:
    when each step begins, from 0, ascending. `down_bytes_per_s`, `up_bytes_per_s` float32 `[k]`: the rates until the
    next step, not below 0 and not 0 throughout. `period_s` float64 `[m]`: a trace repeats after it. `row` int32
    `[n]`: the trace of each device (None: its own, n = m). `shift_s` float32 `[n]`: a device at time t looks at
    (t + shift) mod its period. Memory: 48 bytes a step. Raises `UsageError`, naming the first wrong trace.

    >>> link = Network.of([([0, 10], [1000, 4000], [1000, 1000])], period_s=20)
    >>> link.download(5.0, 9000.0, np.array([0])).tolist()
    [6.0]
    """

    offsets: I64
    t_s: F64
    down_bytes_per_s: F32
    up_bytes_per_s: F32
    period_s: F64
    row: NDArray[np.int32] | None = None
    shift_s: F32 | None = None
    _until: F64 = field(init=False, repr=False)  # [k]: when each step ends
    _down: F64 = field(init=False, repr=False)  # [k + 1]: bytes of the trace before each step
    _up: F64 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        until = np.append(self.t_s[1:], 0.0)
        until[self.offsets[1:] - 1] = self.period_s
        object.__setattr__(self, "_until", until)
        for name, rate in (("_down", self.down_bytes_per_s), ("_up", self.up_bytes_per_s)):
            object.__setattr__(self, name, _cumulated(rate, until - self.t_s, self.offsets))
            empty = _totals(self, getattr(self, name), rate) <= 0
            if empty.any():
                raise UsageError(
                    f"network trace {int(np.argmax(empty))} has {'down' if name == '_down' else 'up'}link throughput 0 "
                    "throughout, so no transfer would ever end: leave it out, or give its rates."
                )

    @property
    def size(self) -> int:
        """Number of devices, n."""
        return len(self.row) if self.row is not None else len(self.offsets) - 1

    def download(self, at: float | F64, size: float | ArrayLike, devices: I64) -> F64:
        """Seconds to move `size` bytes down from time `at`, `[n']`; no bytes take no time.

        Cost: two bisections, log2(longest trace) passes over the devices each.
        """
        return self._seconds(self._down, self.down_bytes_per_s, at, size, devices)

    def upload(self, at: float | F64, size: float | ArrayLike, devices: I64) -> F64:
        """Seconds to move `size` bytes up from time `at`, `[n']`."""
        return self._seconds(self._up, self.up_bytes_per_s, at, size, devices)

    def downloaded(self, at: float | F64, seconds: float | ArrayLike, devices: I64) -> F64:
        """Bytes that can be moved down from `at` within `seconds`, `[n']`: the integral `download` inverts."""
        return self._bytes(self._down, self.down_bytes_per_s, at, seconds, devices)

    def uploaded(self, at: float | F64, seconds: float | ArrayLike, devices: I64) -> F64:
        """Bytes that can be moved up from `at` within `seconds`, `[n']`."""
        return self._bytes(self._up, self.up_bytes_per_s, at, seconds, devices)

    def means(self) -> tuple[F64, F64]:
        """(down, up) bytes per second over a period, `[n]` each."""
        down = _totals(self, self._down, self.down_bytes_per_s) / self.period_s
        up = _totals(self, self._up, self.up_bytes_per_s) / self.period_s
        return (down, up) if self.row is None else (down[self.row], up[self.row])

    def take(self, devices: I64, shift_s: F32 | None = None) -> Network:
        """The links of `devices`, which may repeat, over the same traces; `shift_s` stands for theirs where given."""
        row = devices if self.row is None else self.row[devices]
        shift = shift_s if shift_s is not None or self.shift_s is None else self.shift_s[devices]
        traces = (self.offsets, self.t_s, self.down_bytes_per_s, self.up_bytes_per_s, self.period_s)
        return Network(*traces, row.astype(np.int32), shift)

    @staticmethod
    def of(
        traces: Iterable[tuple[ArrayLike, ArrayLike, ArrayLike]],
        period_s: float | None = None,
        uplink_ratio: float | None = None,
    ) -> Network:
        """From (begin of each step in seconds, bytes/s down, bytes/s up) of each device; see `of_steps`."""
        parts = [[np.asarray(column, np.float64).ravel() for column in trace] for trace in traces]
        for i, (t, down, up) in enumerate(parts):
            if not len(t) == len(down) == len(up) > 0:
                raise UsageError(f"network trace {i}: {len(t)} times, {len(down)} and {len(up)} rates; give one each.")
        if not parts:
            raise UsageError("Network.of: give the trace of at least one device.")
        which = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
        t, down, up = (np.concatenate(column) for column in zip(*parts, strict=True))
        return of_steps(which, t, down, up, len(parts), period_s, uplink_ratio)

    def _where(self, at: Any, devices: I64) -> tuple[I64, I64, F64, F64, I64]:
        """(first step, one past the last, period, time within it, step at that time)."""
        row = devices if self.row is None else self.row[devices]
        low, high, period = self.offsets[row], self.offsets[row + 1], self.period_s[row]
        shift = 0.0 if self.shift_s is None else self.shift_s[devices].astype(np.float64)
        u = np.mod(at + shift, period)
        u = np.where(u < period, u, 0.0)
        return low, high, period, u, _last_below(self.t_s, low, high, u, equal=True)

    def _total(self, cumulated: F64, rate: F32, high: I64) -> F64:
        last = high - 1
        return cumulated[last] + rate[last] * (self._until[last] - self.t_s[last])

    def _seconds(self, cumulated: F64, rate: F32, at: Any, size: Any, devices: I64) -> F64:
        size = np.broadcast_to(np.asarray(size, np.float64), (len(devices),))
        if not (np.isfinite(size).all() and (size >= 0).all()):
            raise UsageError("bytes to move must be finite numbers not below 0.")
        low, high, period, u, step = self._where(np.asarray(at, np.float64), devices)
        pace = rate[step].astype(np.float64)
        room = self._until[step] - u
        here = size <= pace * room
        with np.errstate(divide="ignore", invalid="ignore"):
            soon = np.where(size > 0, size / pace, 0.0)
        if here.all():
            return soon
        total = self._total(cumulated, rate, high)
        upto = np.where(step + 1 < high, cumulated[np.minimum(step + 1, len(self.t_s) - 1)], total)
        target = upto + (size - pace * room)  # bytes from the start of the period that the transfer began in
        whole = np.maximum(np.ceil(target / total) - 1.0, 0.0)
        rest = np.clip(target - whole * total, 0.0, total)
        last = _last_below(cumulated, low, high, rest, equal=False)
        pace = rate[last].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            into = np.where(pace > 0, (rest - cumulated[last]) / pace, 0.0)
        end = np.minimum(self.t_s[last] + into, self._until[last])
        later = room + np.maximum(whole * period + (end - self._until[step]), 0.0)
        return np.where(here, soon, later)

    def _bytes(self, cumulated: F64, rate: F32, at: Any, seconds: Any, devices: I64) -> F64:
        at, seconds = np.asarray(at, np.float64), np.asarray(seconds, np.float64)
        if not (np.isfinite(seconds).all() and (seconds >= 0).all()):
            raise UsageError("seconds of a transfer must be finite numbers not below 0.")
        low, high, period, u, step = self._where(at, devices)
        pace = rate[step].astype(np.float64)
        whole = np.floor((u + seconds) / period)
        v = np.clip(u + seconds - whole * period, 0.0, np.nextafter(period, 0.0))
        then = _last_below(self.t_s, low, high, v, equal=True)
        before = cumulated[step] + pace * (u - self.t_s[step])
        after = cumulated[then] + rate[then] * (v - self.t_s[then])
        far = whole * self._total(cumulated, rate, high) + after - before
        return np.where(u + seconds <= self._until[step], pace * seconds, np.maximum(far, 0.0))


def of_steps(
    trace: I64, t_s: F64, down: F64, up: F64, n: int, period_s: float | F64 | None = None,
    uplink_ratio: float | None = None, row: NDArray[np.int32] | None = None, shift_s: F32 | None = None,
) -> Network:  # fmt: skip
    """From one row a step, `[k]` each: its trace (0 to n - 1, in order), begin, and rates in bytes per second.

    Times count from a trace's first row. `period_s`: one for all or `[n]`; None: a trace's last step lasts as long as
    the median of its others (our choice; 1 s where it has no other). `uplink_ratio`: an uplink of NaN (not measured) is
    this share of the downlink; None refuses it. Raises `UsageError` for times that do not ascend, rates below 0,
    traces without rows, and medians that look like another unit.
    """
    if (np.diff(trace) < 0).any() or (len(trace) and not 0 <= trace[0] <= trace[-1] < n):
        raise UsageError(f"network traces must be numbered 0 to {n - 1}, with the rows of each together and in order.")
    offsets = np.searchsorted(trace, np.arange(n + 1)).astype(np.int64)
    if (np.diff(offsets) < 1).any():
        raise UsageError(f"network trace {int(np.argmin(np.diff(offsets)))} has no rows: give at least one step.")
    begin = np.asarray(t_s, np.float64)
    begin = begin - begin[np.repeat(offsets[:-1], np.diff(offsets))] if len(begin) else begin
    up = np.asarray(up, np.float64)
    gone = np.isnan(up)
    if gone.any():
        if uplink_ratio is None or not 0.0 < uplink_ratio < np.inf:
            raise UsageError(
                f"network trace {int(trace[np.argmax(gone)])} has no uplink (NaN): give its bytes per second, or "
                "uplink_ratio=, the share of the downlink that stands for it (0.2: the median of 4G speed tests)."
            )
        up = np.where(gone, uplink_ratio * np.asarray(down, np.float64), up)
    check_rates("down_bytes_per_s", down)
    check_rates("up_bytes_per_s", up)
    if period_s is None:
        periods = np.array([_length(begin[a:b]) for a, b in pairwise(offsets.tolist())], np.float64)
    else:
        periods = np.broadcast_to(np.asarray(period_s, np.float64), (n,)).copy()
    return Network(offsets, begin, np.asarray(down, np.float32), up.astype(np.float32), periods, row, shift_s)


def check_rates(name: str, bytes_per_s: ArrayLike) -> None:
    """Refuse rates whose median (of those above 0) looks like another unit than bytes per second."""
    rates = np.asarray(bytes_per_s, np.float64)
    rates = rates[(rates > 0) & np.isfinite(rates)]
    if not len(rates):
        return
    middle = float(np.median(rates))
    if middle < SLOW_BYTES_PER_S:
        raise UsageError(
            f"{name} has a median of {middle:.4g}: as bytes per second that is slower than any link, so it looks like "
            "Mbit/s, kbit/s or kB/s; give bytes per second (1 Mbit/s = 125000)."
        )
    if middle > FAST_BYTES_PER_S:
        raise UsageError(
            f"{name} has a median of {middle:.4g}: as bytes per second that is faster than any device's link, so it "
            "looks like bits per second; give bytes per second (divide bits by 8)."
        )


def unit_of(column: str) -> str | None:
    """What a column named after another unit holds and what to do, in words; None for other names.

    >>> unit_of("downlink_Mbps")
    'is in Mbps: give bytes per second (multiply by 125000)'
    """
    low = column.lower()
    if "byte" in low:
        return None
    for word, factor in _UNITS:
        if low.endswith((word, word + "_per_s", word + "_s", word + "/s", word + "s")):
            at = low.rindex(word)
            told = column[at : at + len(word)]
            return f"is in {told.replace('_per_', '/')}: give bytes per second (multiply by {factor:.15g})"
    return None


def _length(t: F64) -> float:
    return float(t[-1] + (np.median(np.diff(t)) if len(t) > 1 else 1.0))


def _cumulated(rate: F32, length: F64, offsets: I64) -> F64:
    """Bytes of its trace before each step, `[k]`: summed trace by trace, so that long tables lose no precision."""
    moved = rate.astype(np.float64) * length
    out = np.empty(len(moved))
    for low, high in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        out[low] = 0.0
        np.cumsum(moved[low : high - 1], out=out[low + 1 : high])
    return out


def _totals(network: Network, cumulated: F64, rate: F32) -> F64:
    last = network.offsets[1:] - 1
    return cumulated[last] + rate[last] * (network.period_s - network.t_s[last])


def _last_below(values: F64, low: I64, high: I64, x: F64, equal: bool) -> I64:
    """For each row the last index in [low, high) whose value is below `x` (or equal to it), else `low`."""
    at = low.copy()
    step = 1 << int((high - low).max(initial=1)).bit_length() >> 1
    while step:
        next_ = at + step
        value = values.take(next_, mode="clip")
        at = np.where((next_ < high) & ((value <= x) if equal else (value < x)), next_, at)
        step >>= 1
    return at


def _check(network: Network) -> None:
    offsets, t_s, period = network.offsets, network.t_s, network.period_s
    k = len(t_s)
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != k or (np.diff(offsets) < 1).any():
        raise UsageError(f"Network: offsets must rise from 0 to the number of steps, {k}, at least one each.")
    if not len(network.down_bytes_per_s) == len(network.up_bytes_per_s) == k or len(period) != len(offsets) - 1:
        raise UsageError(f"Network: give one rate down and up for each of the {k} steps, and one period a trace.")
    if network.row is not None and len(network.row) and not 0 <= network.row.min() <= network.row.max() < len(period):
        raise UsageError(f"Network: row must name one of the {len(period)} traces for each device.")
    if network.shift_s is not None and (len(network.shift_s) != network.size or not np.isfinite(network.shift_s).all()):
        raise UsageError(f"Network: shift_s must be {network.size} finite numbers, one a device.")
    first = np.zeros(k, np.bool_)
    first[offsets[:-1]] = True
    rising = np.ones(k, np.bool_)
    rising[1:] = t_s[1:] > t_s[:-1]
    good = np.isfinite(t_s) & np.where(first, t_s == 0.0, rising)
    if not good.all():
        _refuse(network, good, "times must begin at 0 and ascend, in seconds")
    for name in ("down_bytes_per_s", "up_bytes_per_s"):
        rate = getattr(network, name)
        good = np.isfinite(rate) & (rate >= 0)
        if not good.all():
            _refuse(network, good, f"{name} = {rate[np.argmin(good)]:.6g} must be a finite number not below 0")
    short = ~(np.isfinite(period) & (period > t_s[offsets[1:] - 1]))
    if short.any():
        at = int(np.argmax(short))
        raise UsageError(
            f"network trace {at}: period_s = {period[at]:.15g} does not come after its last step, "
            f"{t_s[offsets[at + 1] - 1]:.15g} s; give the time after which it repeats."
        )


def _refuse(network: Network, good: NDArray[np.bool_], why: str) -> None:
    at = int(np.argmin(good))
    trace = int(np.searchsorted(network.offsets, at, "right")) - 1
    raise UsageError(
        f"network trace {trace}, step {at - int(network.offsets[trace])} at {network.t_s[at]:.15g} s: {why}."
    )
