"""Fleets made up from a few published numbers: who is available when, how fast, over which links.

Not here: the numbers (`templates`), and fleets read from tables (`traces`). Invariant: device i is the same device
whatever the size of the fleet, because all it has is drawn from counters keyed by (seed, i).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings, unknown_key
from fieldfare.fleet.availability import DAY_S, WEEK_S, Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.templates import PRESETS, ZONES, Kind

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

_BLOCK = 1 << 17  # devices made at once
_HOUR_S = 3600.0


@settings
@dataclass(frozen=True, slots=True)
class Generated:
    """A recipe for a fleet: the settings of a preset, each of which may be changed (see `generate`)."""

    preset: str
    told: str
    wifi: float
    battery: float
    criteria: Literal["device", "session"]
    kinds: tuple[Kind, ...]
    flops_per_s: float
    speed_sigma: float
    downlink_bytes_per_s: float
    uplink_bytes_per_s: float
    downlink_sigma: float
    uplink_sigma: float
    link_correlation: float
    latency_s: float
    overhead_s: float
    radio_w: float
    noise: float
    drop_out: float
    day: tuple[float, ...]
    trough: float
    peaks: tuple[float, ...]
    zones: Literal["one", "us", "world"]
    session_s: float
    session_sigma: float
    short_share: float
    short_s: float
    short_sigma: float
    device_sigma: float
    flap_share: float
    flap_s: float
    flap_sigma: float
    never: float
    load: tuple[float, float]
    most: float

    def __post_init__(self) -> None:
        for name in ("wifi", "battery", "short_share", "flap_share", "never", "trough", "most", "link_correlation"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"generate({name}={getattr(self, name)}): use a share from 0 to 1.")
        for name in ("session_s", "short_s", "flap_s", "flops_per_s", "downlink_bytes_per_s", "uplink_bytes_per_s"):
            if not 0.0 < getattr(self, name) < np.inf:
                raise UsageError(f"generate({name}={getattr(self, name)}): use a finite number above zero.")
        for name in ("session_sigma", "short_sigma", "flap_sigma", "device_sigma", "speed_sigma", "downlink_sigma"):
            if not 0.0 <= getattr(self, name) <= 4.0:
                raise UsageError(f"generate({name}={getattr(self, name)}): the sigma of a logarithm is from 0 to 4.")
        if not 0.0 <= self.uplink_sigma <= 4.0:
            raise UsageError(f"generate(uplink_sigma={self.uplink_sigma}): the sigma of a logarithm is from 0 to 4.")
        for name, length in (("day", 24), ("peaks", 7)):
            values = getattr(self, name)
            if len(values) != length or not all(0.0 <= one <= 1.0 for one in values) or max(values) == 0.0:
                raise UsageError(f"generate({name}=...): use {length} numbers from 0 to 1, not all of them 0.")
        if self.flap_share == 1.0:
            raise UsageError("generate(flap_share=1.0): not every gap can be short; use a share below 1.")
        if not self.kinds or abs(sum(kind[1] for kind in self.kinds) - 1.0) > 1e-6:
            raise UsageError("generate(kinds=...): the shares of the classes must add up to 1.")
        if not all(one > 0 for one in self.load):
            raise UsageError(f"generate(load={self.load}): use two numbers above zero.")

    def build(self, n: int, seed: int) -> Fleet:
        """The fleet of `n` devices; time 0 is Monday 0 h UTC and the availability repeats by the week.

        Cost: about 0.3 us a session and core, 10 to 30 sessions a device; 8 bytes a session, 8 + 28 + 5 bytes a device.
        """
        if n < 1:
            raise UsageError(f"a fleet of {n} devices: use at least one.")
        blocks = [self._columns(ids, seed) for ids in _blocks(n)]
        columns: dict[str, Any] = {
            name: np.concatenate([block.pop(name) for block in blocks]) for name in list(blocks[0])
        }
        flags = {name: columns.pop(name) for name in ("wifi", "battery", "recent_os", "eligible")}
        availability = self._availability(n, seed, columns["timezone_s"], flags["eligible"])
        asked = {"wifi": self.wifi, "battery": self.battery, "recent_os": min(kind[5] for kind in self.kinds)}
        flags = {name: flag for name, flag in flags.items() if asked.get(name, 0.0) < 1.0}
        return Fleet(
            **columns, flags=flags, availability=availability, kinds=tuple(kind[0] for kind in self.kinds),
            overhead_s=self.overhead_s, radio_w=self.radio_w, noise=self.noise, drop_out=self.drop_out,
            name=self.preset, note=f"made up by generate({self.preset!r}), seed {seed}: {self.told}",
        )  # fmt: skip

    def _columns(self, ids: I64, seed: int) -> dict[str, Any]:
        key = rng.keys(seed, ("fleet", "device"), ids)
        draw = iter(range(64))

        def uniform() -> F64:
            return rng.uniforms(key, np.full(1, 2 * next(draw)))

        def normal() -> F64:
            return rng.normals(key, np.full(1, next(draw)))

        table = np.array([kind[1:] for kind in self.kinds])
        kind = _pick(table[:, 0], uniform())
        _, speed, memory, watts, recent = table.T[:, kind]
        zone = ZONES[self.zones]
        timezone = np.array([hours for hours, _ in zone])[_pick(np.array([w for _, w in zone]), uniform())] * _HOUR_S
        wifi, battery, recent_os = (uniform() < share for share in (self.wifi, self.battery, recent))
        never = uniform() < self.never
        eligible = recent_os & ~never
        if self.criteria == "device":
            eligible &= wifi & battery
        speed = speed * np.exp(self.speed_sigma * normal())
        down, other, late = normal(), normal(), normal()
        up = self.link_correlation * down + np.sqrt(1.0 - self.link_correlation**2) * other
        out: dict[str, Any] = {
            "flops_per_s": self.flops_per_s * speed,
            "downlink_bytes_per_s": self.downlink_bytes_per_s * np.exp(self.downlink_sigma * down),
            "uplink_bytes_per_s": self.uplink_bytes_per_s * np.exp(self.uplink_sigma * up),
            "latency_s": self.latency_s * np.exp(0.5 * late), "memory_bytes": memory, "compute_w": watts,
            "timezone_s": timezone,
        }  # fmt: skip
        out = {name: value.astype(np.float32) for name, value in out.items()}
        return out | {"kind": kind.astype(np.int8), "wifi": wifi, "battery": battery, "recent_os": recent_os,
                      "eligible": eligible}  # fmt: skip

    def _availability(self, n: int, seed: int, timezone_s: F32, eligible: NDArray[np.bool_]) -> Availability:
        clock = _Clock.of(self)
        offsets = np.zeros(n + 1, np.int64)
        starts: list[F32] = []
        ends: list[F32] = []

        def week(ids: I64) -> tuple[I64, I64, F32, F32]:
            return ids, *self._week(ids, seed, timezone_s[ids].astype(np.float64), eligible[ids], clock)

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
            for ids, counts, start, end in threads.map(week, _blocks(n)):
                offsets[ids + 1] = counts
                starts.append(start)
                ends.append(end)
        np.cumsum(offsets, out=offsets)
        start = np.concatenate(starts)
        starts.clear()
        return Availability(offsets, start, np.concatenate(ends), WEEK_S)

    def _week(
        self, ids: I64, seed: int, timezone_s: F64, eligible: NDArray[np.bool_], clock: _Clock
    ) -> tuple[I64, F32, F32]:
        """(sessions of each device, starts, ends) over one week from Monday 0 h UTC, in whole seconds.

        A device's week begins free, at its quietest local hour, and is turned to the calendar. One session after the
        other: a gap, exponential on a clock that runs as fast as sessions begin at that local
        hour (a non-homogeneous Poisson process that pauses during sessions), or short where the network flaps; then
        a log-normal length.
        """
        draws = [rng.keys(seed, ("fleet", what), ids) for what in ("gap", "short", "length", "keep")]
        own = rng.keys(seed, ("fleet", "habit"), ids)
        a, b = self.load
        load = self.most * (1.0 - (1.0 - rng.uniforms(own, np.zeros(1, np.int64))) ** (1.0 / b)) ** (1.0 / a)
        longer = np.exp(self.device_sigma * rng.normals(own, np.ones(1, np.int64)) - 0.5 * self.device_sigma**2)
        gap_s = self._mean_session() * longer * (1.0 / np.maximum(load, 1e-6) - 1.0) / (1.0 - self.flap_share)
        keep = self.wifi * self.battery if self.criteria == "session" else 1.0

        at = np.flatnonzero(eligible)
        begin_s = np.mod(clock.quiet_s - timezone_s, DAY_S)
        now = (begin_s + timezone_s)[at]
        stop = now + WEEK_S
        found: list[tuple[I64, F64, F64]] = []
        turn = 0
        while len(at):
            gap_key, short_key, length_key, keep_key = (key[at] for key in draws)
            counter = np.full(1, turn)
            turn += 1
            u, v = rng.uniforms(gap_key, counter), rng.uniforms(short_key, counter)
            z = rng.normals(length_key, counter)
            # one number decides both: whether the gap is a flap, and, rescaled, how long it is if not
            flapping = self.flap_share if turn > 1 else 0.0
            flap, wait = np.flatnonzero(u < flapping), np.flatnonzero(u >= flapping)
            rest = np.minimum((u[wait] - flapping) / (1.0 - flapping), 1.0 - 1e-12)
            start = np.empty(len(at))
            start[wait] = clock.later(now[wait], -np.log1p(-rest) * gap_s[at[wait]])
            other = rng.normals(length_key[flap], counter + (1 << 32))
            start[flap] = now[flap] + self.flap_s * np.exp(self.flap_sigma * other)
            start = np.maximum(np.ceil(start), now + (turn > 1))
            long = self.session_s * np.exp(self.session_sigma * z) * longer[at]
            length = np.where(v < self.short_share, self.short_s * np.exp(self.short_sigma * z), long)
            end = start + np.clip(np.rint(length), 1.0, WEEK_S - 1.0)
            inside = start < stop
            if keep < 1.0:
                kept = inside & (rng.uniforms(keep_key, counter) < keep)
                found.append((at[kept], start[kept], end[kept]))
            else:
                found.append((at[inside], start[inside], end[inside]))
            go = inside & (end < stop)
            at, now, stop = at[go], end[go], stop[go]
        return _columns_of(found, timezone_s)

    def _mean_session(self) -> float:
        long = self.session_s * np.exp(0.5 * self.session_sigma**2)
        short = self.short_s * np.exp(0.5 * self.short_sigma**2)
        return float((1.0 - self.short_share) * long + self.short_share * short)


def generate(preset: str = "flint-strict", **parameters: Any) -> Generated:
    """A fleet made up to match published figures; `parameters` change single settings of the preset.

    "flint-strict": 22 % of devices are eligible, FLINT's Table 1 (70 % on Wi-Fi, 34 % with battery, 93 % with a recent
    OS, independent). The paper does not say whether it counts devices or sessions; our reading is devices: 78 % never
    train, so 22 % is the share of devices that meet the three at a random session, too. `criteria="session"` tosses
    the coins of Wi-Fi and battery at each session instead. "flash-charging": charging and on Wi-Fi, as measured by
    FLASH: 17 % can train at once, 8 % to 26 % over the day, median window 14 min. "fedscale-charging": charging, trough
    to peak 1:4. What each number is and where it comes from: `fieldfare.fleet.templates`.

    >>> fleet = generate("flash-charging", drop_out=0.05).build(1000, seed=0)
    >>> fleet.availability.size, fleet.name
    (1000, 'flash-charging')
    """
    if preset not in PRESETS:
        raise UsageError(f"no preset {preset!r} for a fleet: use one of {', '.join(PRESETS)}.")
    known = [name for name in Generated.__dataclass_fields__ if name not in ("preset", "told")]
    for name in parameters:
        if name not in known:
            raise UsageError(unknown_key(name, known, f"generate({preset!r}, ...)"))
    values: dict[str, Any] = {"criteria": "device", **PRESETS[preset], **parameters, "preset": preset}
    return Generated(**values)


@dataclass(frozen=True, slots=True)
class _Clock:
    """A clock that runs as fast as sessions begin: rate 1 in the mean over the week, knots by the local hour.

    `quiet_s`: a local time of day when few are available, two hours after the fewest sessions begin.
    """

    time_s: F64
    reading_s: F64
    quiet_s: float

    @classmethod
    def of(cls, made: Generated) -> _Clock:
        day, peaks = np.array(made.day), np.array(made.peaks)[:, None]
        rate = (made.trough + (peaks - made.trough).clip(0) * day[None, :]).ravel()
        rate = np.tile(rate / rate.mean(), 3)
        time_s: F64 = np.arange(len(rate) + 1) * _HOUR_S - WEEK_S
        return cls(time_s, np.concatenate([[0.0], np.cumsum(rate * _HOUR_S)]), (int(np.argmin(day)) + 2) * _HOUR_S)

    def later(self, now: F64, gap: F64) -> F64:
        """Local times at which the clock shows `gap` more than at the local times `now`; far off is after the week."""
        return np.interp(np.interp(now, self.time_s, self.reading_s) + gap, self.reading_s, self.time_s)


def _columns_of(found: list[tuple[I64, F64, F64]], timezone_s: F64) -> tuple[I64, F32, F32]:
    """CSR columns of the sessions of one block, turned from each device's own week to the week from Monday 0 h UTC."""
    n = len(timezone_s)
    device, start, end = (np.concatenate([one[i] for one in found] or [np.zeros(0)]) for i in range(3))
    device = device.astype(np.int64)
    start -= timezone_s[device]
    end -= timezone_s[device]
    first = np.full(n, np.inf)
    np.minimum.at(first, device, start)
    end = np.minimum(end, first[device] + (WEEK_S - 1.0))  # the last session is over before the first begins again
    turned = start >= WEEK_S
    start -= turned * WEEK_S
    end -= turned * WEEK_S
    seam = end > WEEK_S
    device = np.concatenate([device[seam], device])
    start = np.concatenate([np.zeros(seam.sum()), start])
    end = np.concatenate([end[seam] - WEEK_S, np.minimum(end, WEEK_S)])
    early = np.concatenate([np.ones(seam.sum(), np.bool_), turned])
    order = np.argsort(2 * device + ~early, kind="stable")
    order = order[(start < end)[order]]
    return np.bincount(device[order], minlength=n), start[order].astype(np.float32), end[order].astype(np.float32)


def _pick(shares: F64, u: F64) -> I64:
    """The class each uniform number falls into, by shares that add up to 1."""
    return np.minimum(np.searchsorted(np.cumsum(shares), u, "right"), len(shares) - 1)


def _blocks(n: int) -> Iterator[I64]:
    for at in range(0, n, _BLOCK):
        yield np.arange(at, min(at + _BLOCK, n))
