"""When devices may work: sessions as CSR intervals over traces, tiled in time, searched by bisection.

Not here: where sessions come from (`generate`, `traces`), and what a session's end does to a task (`tasks`).
Invariant: an answer depends on (trace, shift, time) alone, never on what was asked before, so jumps forth and back in
time are right (FedScale's index that moves one slot per call is not; Lai et al., ICML 2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldfare.core.errors import UsageError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Times = NDArray[np.float32] | NDArray[np.float64]

DAY_S, WEEK_S = 86400.0, 604800.0
LONGEST_LOG_S, LAST_EPOCH_S = 5 * 365.25 * DAY_S, 1e11
"""A log that is longer, or begins later (in the year 5138), is taken for one in another unit."""
_BLOCK = 1 << 15  # devices searched at once: what a search touches stays in the processor's cache
_CHECKED = 1 << 22  # intervals checked at once


@dataclass(frozen=True, slots=True, eq=False)
class Availability:
    """Sessions of n devices over m traces, in seconds; checked when made.

    `offsets` int64 `[m + 1]`: trace r holds intervals `offsets[r]` to `offsets[r + 1]`. `start`, `end` `[k]`: seconds
    in [0, `period_s`], within a trace ascending and apart; float32 holds whole seconds exactly up to 194 days.
    `period_s`: a trace repeats after it; inf: it ends with its last interval, which may itself end at inf. `row` int32
    `[n]`: the trace of each device (None: its own, n = m). `shift_s` float32 `[n]`: a device at time t looks at
    (t + shift) mod `period_s`. Memory: 8 bytes an interval and 8 a trace (float32). Raises `UsageError`, naming the
    first wrong trace and its intervals.

    >>> night = Availability.of([[(0, 3600), (79200, 86400)], []], period_s=86400)
    >>> night.session(80000.0, np.array([0, 1]))[1].tolist()
    [90000.0, inf]
    """

    offsets: I64
    start: Times
    end: Times
    period_s: float
    row: NDArray[np.int32] | None = None
    shift_s: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        self.check()

    @property
    def size(self) -> int:
        """Number of devices, n."""
        return len(self.row) if self.row is not None else len(self.offsets) - 1

    @property
    def horizon_s(self) -> float:
        """The period; where nothing repeats, the last time at which something changes, and a day more if it goes on."""
        if np.isfinite(self.period_s):
            return self.period_s
        goes_on = bool(np.isinf(self.end).any())
        last = max(float(self.start.max(initial=0.0)), float(self.end.max(initial=0.0, where=np.isfinite(self.end))))
        return last + DAY_S if goes_on or last == 0.0 else last

    def session(self, t: float | F64, devices: I64) -> tuple[F64, F64]:
        """(begin, end) `[n']` in absolute seconds: the session that covers `t`, or else the next one after it.

        `begin <= t` means available now, and `end > t` always. (inf, inf): never again. (-inf, inf): always on. A
        session over the seam of the period is one session. Cost: log2(longest trace) passes over the devices, about
        0.1 us for each of 10,000 and 40 us for one.
        """
        t = np.asarray(t, np.float64)
        devices = np.asarray(devices, np.int64)
        if len(devices) <= _BLOCK:
            return self._sessions(t, devices)
        begin, end = np.empty(len(devices)), np.empty(len(devices))
        for at in range(0, len(devices), _BLOCK):
            part = slice(at, at + _BLOCK)
            begin[part], end[part] = self._sessions(t[part] if t.ndim else t, devices[part])
        return begin, end

    def session_of(self, t: float, device: int) -> tuple[float, float]:
        """`session` of one device, the same to the bit, in about a tenth of the time."""
        row = device if self.row is None else int(self.row[device])
        low, high = int(self.offsets[row]), int(self.offsets[row + 1])
        if low == high:
            return np.inf, np.inf
        shift = 0.0 if self.shift_s is None else float(self.shift_s[device])
        start, end, period, phase, last = self.start, self.end, self.period_s, t + shift, high - 1
        if period == np.inf:
            index = low + int(np.searchsorted(end[low:high], np.float64(phase), "right"))
            index += index < high and float(end[index]) - shift <= t
            return (np.inf, np.inf) if index >= high else (float(start[index]) - shift, float(end[index]) - shift)
        cycle = floor(phase / period)
        index = low + int(np.searchsorted(end[low:high], np.float64(phase - cycle * period), "right"))
        index += index < high and float(end[index]) + (cycle * period - shift) <= t
        if index >= high:
            index, cycle = low, cycle + 1
        seam = float(start[low]) == 0.0 and float(end[last]) == period
        if seam and low == last:
            return -np.inf, np.inf
        first, back = (last, 1) if seam and index == low else (index, 0)
        then, on = (low, 1) if seam and index == last else (index, 0)
        return (
            float(start[first]) + ((cycle - back) * period - shift),
            float(end[then]) + ((cycle + on) * period - shift),
        )

    def soon(self, t: float, devices: I64, within_s: float) -> tuple[I64, F64, F64]:
        """(positions `[k]` in `devices`, begin, end) of the sessions that cover `t` or begin before `t + within_s`.

        As `session` gives them; where few devices are about to be available, in about half its time.
        """
        if not len(self.end):
            return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
        low, high, phase, cycle, shift = self._look(np.float64(t), devices)
        index = _first_ending_after(self.end, low, high, phase)
        late = phase + (within_s + 1.0)  # a second for rounding: what is kept is looked at again
        near = (index < high) & (self.start.take(index, mode="clip") <= late)
        if np.isfinite(self.period_s):
            near |= late >= self.period_s
        kept = np.flatnonzero(near)
        begin, end = self._times(t, *(one[kept] if np.ndim(one) else one for one in (low, high, cycle, shift, index)))
        now = np.flatnonzero(begin < t + within_s)
        return kept[now], begin[now], end[now]

    def at(self, t: float | F64, devices: I64) -> NDArray[np.bool_]:
        """Whether each device is available at its `t`, `[n']`."""
        return self.session(t, devices)[0] <= t

    def available(self, t: float) -> I64:
        """Ids of all devices available at `t`, ascending; tens of milliseconds for 1,000,000 devices."""
        found: list[I64] = []
        for at in range(0, self.size, _BLOCK):
            devices = np.arange(at, min(at + _BLOCK, self.size))
            low, high, phase, _, _ = self._look(np.float64(t), devices)
            index = _first_ending_after(self.end, low, high, phase)
            inside = (index < high) & (self.start.take(index, mode="clip") <= phase) if len(self.end) else index < high
            found.append(devices[inside])
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def share(self, t: ArrayLike) -> F64:
        """Share of all devices available at each `t`, `[k]`: one pass over the intervals, whatever `k`.

        Traces without shifts are passed once, however many devices share them.
        """
        times = np.asarray(t, np.float64)
        if not self.size:
            return np.zeros(times.shape)
        finite = bool(np.isfinite(self.period_s))
        steps, where = np.unique(np.mod(times, self.period_s) if finite else times, return_inverse=True)
        count = np.zeros(len(steps) + 1)
        for start, end, over, weight in self._spans():
            count[0] += over.sum() if weight is None else weight[over].sum()
            count += np.bincount(np.searchsorted(steps, start), weight, len(steps) + 1)
            count -= np.bincount(np.searchsorted(steps, end), weight, len(steps) + 1)
        return (np.cumsum(count)[where] / self.size).reshape(times.shape)

    def mean_share(self, bins: int) -> F64:
        """Mean share of all devices available in each of `bins` equal spans of 0 to `horizon_s`: exact, one pass."""
        if not self.size:
            return np.zeros(bins)
        width = self.horizon_s / bins
        before, within = np.zeros(bins + 1), np.zeros(bins)
        for start, end, over, weight in self._spans():
            before[0] += over.sum() if weight is None else weight[over].sum()
            for sign, at in ((1.0, start), (-1.0, end)):
                span = np.clip(at / width, 0, bins - 1).astype(np.int64)
                rest = (span + 1) * width - np.clip(at, 0.0, self.horizon_s)
                before[1:] += sign * np.bincount(span, weight, bins)
                within += sign * np.bincount(span, rest if weight is None else weight * rest, bins)
        return np.clip((np.cumsum(before)[:-1] + within / width) / self.size, 0.0, 1.0)

    def windows(self) -> tuple[F64, I64 | None]:
        """(length in seconds, number of devices that have it) of every session of a period, one over its seam joined.

        inf: always on. The second is None where each trace belongs to one device.
        """
        length = np.subtract(self.end, self.start, dtype=np.float64)
        kept = np.ones(len(length), np.bool_)
        held = self.offsets[1:] > self.offsets[:-1]
        first, last = self.offsets[:-1][held], self.offsets[1:][held] - 1
        if np.isfinite(self.period_s):
            seam = (self.start[first] == 0) & (self.end[last] == self.period_s)
            length[first[seam & (first == last)]] = np.inf
            joined = seam & (first < last)
            length[first[joined]] += length[last[joined]]
            kept[last[joined]] = False
        if self.row is None:
            return length[kept], None
        per_trace = np.bincount(self.row, minlength=len(self.offsets) - 1)
        counts = np.repeat(per_trace, np.diff(self.offsets))
        kept &= counts > 0
        return length[kept], counts[kept]

    def means(self) -> F64:
        """Share of the time up to `horizon_s` that each device is available, `[n]`."""
        whole = self.horizon_s
        out = np.zeros(len(self.offsets) - 1)
        for at in range(0, len(out), _BLOCK):
            traces = np.arange(at, min(at + _BLOCK, len(out)))
            which, start, end = self._intervals(traces)
            out[traces] = np.bincount(which, np.minimum(end, whole) - start, len(traces)) / whole
        return out if self.row is None else out[self.row]

    def share_between(self, t0: float | F64, t1: float | F64, devices: I64) -> F64:
        """Share of the time from (its) `t0` to `t1` that each device is available, `[n']`; cost: their intervals."""
        if not np.all(np.greater(t1, t0)):
            raise UsageError(f"share_between({t0}, {t1}): the second time must come after the first.")
        return np.clip((self._spent(t1, devices) - self._spent(t0, devices)) / (t1 - t0), 0.0, 1.0)

    def check(self) -> None:
        """Refuse intervals that overlap, run backwards, are empty, not finite, or outside [0, `period_s`]."""
        offsets, start, end = self.offsets, self.start, self.end
        if not self.period_s > 0:
            raise UsageError(f"Availability(period_s={self.period_s}): use seconds above zero, or inf for no repeat.")
        if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(start) or len(start) != len(end):
            raise UsageError(
                f"Availability: offsets must run from 0 to the number of intervals, "
                f"{len(start)} starts and {len(end)} ends were given."
            )
        if (np.diff(offsets) < 0).any():
            raise UsageError("Availability: offsets must not fall.")
        if self.row is not None and len(self.row) and not 0 <= self.row.min() <= self.row.max() < len(offsets) - 1:
            raise UsageError(f"Availability: row must name one of the {len(offsets) - 1} traces for each device.")
        if self.shift_s is not None and (len(self.shift_s) != self.size or not np.isfinite(self.shift_s).all()):
            raise UsageError(f"Availability: shift_s must be {self.size} finite numbers, one a device.")
        firsts = offsets[:-1][np.diff(offsets) > 0]
        for at in range(0, len(start), _CHECKED):
            begins, ends = start[at : at + _CHECKED], end[at : at + _CHECKED]
            good = (begins >= 0) & (begins < ends) & (ends <= self.period_s)
            before = (
                end[at - 1 : at - 1 + len(begins)] if at else np.append(np.zeros_like(end[:1]), end[: len(begins) - 1])
            )
            apart = before <= begins
            first = firsts[np.searchsorted(firsts, at) : np.searchsorted(firsts, at + len(begins))]
            apart[first - at] = True
            if not (good & apart).all():
                self._refuse(at + int(np.argmin(good & apart)))

    def _refuse(self, at: int) -> None:
        device = int(np.searchsorted(self.offsets, at, "right")) - 1
        one = _told(self.start[at], self.end[at])
        what = "device" if self.row is None else "trace"
        if not (np.isfinite(self.start[at]) and (np.isfinite(self.end[at]) or self.end[at] == self.period_s)):
            why = f"its interval {one} is not finite: give both times in seconds"
        elif self.start[at] >= self.end[at]:
            why = f"its interval {one} {'is empty' if self.start[at] == self.end[at] else 'runs backwards'}"
            why += ": give (start, end) with start before end"
        elif self.start[at] < 0 or self.end[at] > self.period_s:
            why = f"its interval {one} is outside [0, {self.period_s:.15g}]: cut it, or give a longer period_s"
        else:
            before = _told(self.start[at - 1], self.end[at - 1])
            late = self.end[at] <= self.start[at - 1]
            why = f"intervals {before} and {one} " + (
                "are not in order of time: sort them" if late else "overlap: join them or cut one"
            )
        raise UsageError(f"availability of {what} {device}: {why}.")

    def _look(self, t: Any, devices: I64) -> tuple[I64, I64, F64, Any, Any]:
        """(first interval, one past the last, phase, cycle, shift) at `t` of each device."""
        row = devices if self.row is None else self.row[devices]
        low, high = self.offsets[row], self.offsets[row + 1]
        shift = 0.0 if self.shift_s is None else self.shift_s[devices].astype(np.float64)
        phase, cycle = t + shift, 0.0
        if np.isfinite(self.period_s):
            cycle = np.floor(phase / self.period_s)
            phase = phase - cycle * self.period_s
        return low, high, np.broadcast_to(phase, low.shape), cycle, shift

    def _sessions(self, t: Any, devices: I64) -> tuple[F64, F64]:
        low, high, phase, cycle, shift = self._look(t, devices)
        if not len(self.end):
            return np.full(len(low), np.inf), np.full(len(low), np.inf)
        return self._times(t, low, high, cycle, shift, _first_ending_after(self.end, low, high, phase))

    def _times(self, t: Any, low: I64, high: I64, cycle: Any, shift: Any, index: I64) -> tuple[F64, F64]:
        """(begin, end) of each device's session; `index` `[n]`: its first interval that ends after the phase of `t`."""
        if np.isinf(self.period_s):
            index = index + ((index < high) & (_at(self.end, index) - shift <= t))
            none = index >= high
            begin, end = _at(self.start, index) - shift, _at(self.end, index) - shift
            return np.where(none, np.inf, begin), np.where(none, np.inf, end)
        # an absolute time is always time + (cycle x period - shift), in this order: the same bits from wherever asked
        ended = _at(self.end, index) + (cycle * self.period_s - shift) <= t  # but for rounding, never
        index = index + ((index < high) & ended)
        over = index >= high
        index, cycle = np.where(over, low, index), cycle + over
        last = np.maximum(high - 1, 0)
        seam = (_at(self.start, low) == 0) & (_at(self.end, last) == self.period_s)
        back, on = seam & (index == low), seam & (index == last)
        begin = _at(self.start, np.where(back, last, index)) + ((cycle - back) * self.period_s - shift)
        end = _at(self.end, np.where(on, low, index)) + ((cycle + on) * self.period_s - shift)
        none, always = low == high, seam & (low == last)
        begin = np.where(none, np.inf, np.where(always, -np.inf, begin))
        return begin, np.where(none | always, np.inf, end)

    def _spent(self, t: float | F64, devices: I64) -> F64:
        """Seconds available since the trace's first beginning, up to `t`."""
        low, _, phase, cycle, _ = self._look(np.float64(t), devices)
        which, start, end = self._intervals(devices if self.row is None else self.row[devices])
        out = np.bincount(which, np.clip(phase[which] - start, 0.0, end - start), len(low)).astype(np.float64)
        if np.isfinite(self.period_s):
            out = out + cycle * np.bincount(which, end - start, len(low))
        return out

    def _spans(self) -> Iterator[tuple[F64, F64, NDArray[np.bool_], F64 | None]]:
        """(start, end, whether it goes over the seam of the period, how many devices have it; None: one each) of all
        intervals of a period, some traces at a time."""
        finite = bool(np.isfinite(self.period_s))
        if self.shift_s is None:
            traces = np.arange(len(self.offsets) - 1)
            weights = None if self.row is None else np.bincount(self.row, minlength=len(traces)).astype(np.float64)
        else:
            traces, weights = (np.arange(self.size) if self.row is None else self.row), None
        for at in range(0, len(traces), _BLOCK):
            which, start, end = self._intervals(traces[at : at + _BLOCK])
            over = np.zeros(len(start), np.bool_)
            if self.shift_s is not None:
                length = end - start
                start = start - self.shift_s[at + which]
                start = np.mod(start, self.period_s) if finite else start
                end = start + length
                over = end > self.period_s
                end = np.where(over, end - self.period_s, end)
            yield start, end, over, None if weights is None else weights[at + which]

    def _intervals(self, traces: I64 | NDArray[np.int32]) -> tuple[I64, F64, F64]:
        """(number within `traces`, start, end) of all intervals of `traces`."""
        low, counts = self.offsets[traces], self.offsets[traces + 1] - self.offsets[traces]
        which = np.repeat(np.arange(len(traces)), counts)
        index = np.arange(len(which)) + np.repeat(low - (np.cumsum(counts) - counts), counts)
        return which, self.start[index].astype(np.float64), self.end[index].astype(np.float64)

    @staticmethod
    def of(intervals: Iterable[Sequence[tuple[float, float]] | NDArray[Any]], period_s: float = np.inf) -> Availability:
        """From the (start, end) pairs in seconds of each device, ascending; pairs that touch become one session."""
        pairs = [np.asarray(one, np.float64).reshape(-1, 2) for one in intervals]
        device = np.repeat(np.arange(len(pairs)), [len(one) for one in pairs])
        times = np.concatenate(pairs) if pairs else np.zeros((0, 2))
        return of_columns(device, times[:, 0], times[:, 1], len(pairs), period_s)

    @staticmethod
    def always(n: int) -> Availability:
        """`n` devices that may work at any time: one trace of one day."""
        one = np.array([DAY_S], np.float32)
        return Availability(np.array([0, 1]), one * 0, one, DAY_S, np.zeros(n, np.int32))


def of_columns(device: I64, start_s: F64, end_s: F64, n: int, period_s: float = np.inf) -> Availability:
    """From one row an interval, `[k]` each, in any order of devices and ascending within one.

    Intervals that touch become one session. Times are kept as float32 where that loses nothing, else as float64.
    """
    device = np.asarray(device, np.int64)
    if len(device) and not 0 <= device.min() <= device.max() < n:
        raise UsageError(
            f"availability of {n} devices: ids go from {device.min()} to {device.max()}, use 0 to {n - 1}."
        )
    if (np.diff(device) < 0).any():
        order = np.argsort(device, kind="stable")
        device, start_s, end_s = device[order], start_s[order], end_s[order]
    offsets = np.searchsorted(device, np.arange(n + 1)).astype(np.int64)
    start, end = _exact(np.asarray(start_s, np.float64)), _exact(np.asarray(end_s, np.float64))
    made = Availability(offsets, start, end, float(period_s))
    touch = np.zeros(len(device), np.bool_)
    touch[1:] = (device[1:] == device[:-1]) & (start[1:] == end[:-1])
    if not touch.any():
        return made
    first, last = ~touch, np.append(~touch[1:], True)
    offsets = np.searchsorted(device[first], np.arange(n + 1)).astype(np.int64)
    return Availability(offsets, start[first], end[last], float(period_s))


def of_log(
    device: I64, start_s: F64, end_s: F64, n: int, from_s: float | None = None, to_s: float | None = None
) -> tuple[Availability, str]:
    """A log that lasted from `from_s` to `to_s` (default: its first and last time), made to repeat; and how, in words.

    It repeats by as many whole weeks as it holds, else by as many whole days, counted from `from_s`, which becomes
    time 0; intervals are cut to that window. Raises `UsageError` when it holds not one whole day, or times that are no
    seconds.
    """
    start, end = np.asarray(start_s, np.float64), np.asarray(end_s, np.float64)
    known = np.isfinite(start) & np.isfinite(end)
    if not known.all():
        at = int(np.argmin(known))
        raise UsageError(
            f"availability of device {int(device[at])}: its interval {_told(start[at], end[at])} is not finite: give "
            "both times in seconds."
        )
    of_columns(device, start - min(0.0, start.min(initial=0.0)), end - min(0.0, start.min(initial=0.0)), n)
    begin = float(start.min(initial=np.inf)) if from_s is None else float(from_s)
    stop = float(end.max(initial=-np.inf)) if to_s is None else float(to_s)
    span = stop - begin
    if not span >= DAY_S:
        held = f"{span / 3600:.3g} hours" if span > 0 else "no time"
        raise UsageError(
            f"the availability trace holds {held}: to repeat it, at least one whole day (86400 s) is needed."
        )
    if span > LONGEST_LOG_S or abs(begin) > LAST_EPOCH_S:
        raise UsageError(
            f"the availability trace lasts {span / (365.25 * DAY_S):.3g} years, from second {begin:.6g} on: its times "
            "look like milliseconds; give seconds, of at most 5 years."
        )
    weeks = int(span // WEEK_S)
    period = weeks * WEEK_S if weeks else span // DAY_S * DAY_S
    start, end = np.maximum(start - begin, 0.0), np.minimum(end - begin, period)
    kept = start < end
    unit = f"{weeks} whole week" if weeks else f"{period / DAY_S:.0f} whole day"
    note = (
        f"a trace of {span / DAY_S:.3g} days, repeated by its first {unit}{'' if unit.startswith('1 ') else 's'} "
        f"({period:.0f} s); time 0 is its second {begin:.15g}"
    )
    return of_columns(np.asarray(device)[kept], start[kept], end[kept], n, period), note


def _first_ending_after(end: Times, low: I64, high: I64, x: F64) -> I64:
    """For each row the first index in [low, high) whose `end` is above `x`, or `high`."""
    if not len(end):
        return low
    length, at = high - low, low - 1
    for _ in range((int(length.max(initial=1)) - 1).bit_length()):
        half = length >> 1  # no np.where and no probe outside the row: what is by chance, or far away, is slow
        at = at + half * (end.take(at + half, mode="clip") <= x)
        length = length - half
    return at + 1 + ((length > 0) & (end.take(at + 1, mode="clip") <= x))


def _at(times: Times, index: I64) -> F64:
    """Times at `index`, as float64; at the last where there is none, which the caller then leaves out."""
    return times.take(index, mode="clip").astype(np.float64)


def _exact(values: F64) -> Times:
    with np.errstate(over="ignore"):
        small = values.astype(np.float32)
    return small if np.array_equal(small, values, equal_nan=True) else values


def _told(start: Any, end: Any) -> str:
    return f"({float(start):.15g}, {float(end):.15g})"
