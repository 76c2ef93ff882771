"""Speeds that drift: what a device's speed is multiplied by, constant from step to step in time.

Here: made-up drift (a log-normal AR(1) process), drift by a table, and how long computing takes under either: until the
integral of the factor over time reaches the seconds it would take without. Invariant: a factor depends on (seed,
device, step) alone, so any order of asking gives the same bits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Held = dict[int, tuple[float, list[float], list[float]]]

_FORGOTTEN = 1e-6
"""Correlation at which the process begins anew: values so far apart are independent, where AR(1)'s have this much."""
_AHEAD, _DEVICES = 64, 4096


@settings
@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """Speeds times log-normal factors of mean 1, new every `every_s`, alike from one to the next by `rho`: an AR(1).

    log(factor) = `sigma` x - `sigma`**2 / 2, x standard normal with correlation `rho` (0 <= `rho` < 1) from step to
    step. Devices drift apart, and each changes at instants of its own. Our departure from x' = rho x + noise: values
    far apart are drawn first, then those halfway between, given the two, by the same law (but for `_FORGOTTEN`), so
    that no step needs all before it. Cost of a factor: log2(13.8 / -log(rho)) normal numbers.

    >>> Drift(0.3).factor(np.array([7, 7]), np.array([0, 1])).round(3).tolist()
    [0.677, 1.197]
    """

    sigma: float
    rho: float = 0.9
    every_s: float = 60.0
    seed: int = 0
    held: Held = field(default_factory=dict[int, tuple[float, list[float], list[float]]], init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.sigma < 5.0 or not 0.0 <= self.rho < 1.0 or not 0.0 < self.every_s < inf:
            raise UsageError(
                f"Drift(sigma={self.sigma}, rho={self.rho}, every_s={self.every_s}): use sigma from 0 to 5, rho from 0 "
                "to below 1, and seconds above 0."
            )

    def step(self, at: F64, devices: I64) -> I64:
        """The step of each device `[n]` at its time `at` `[n]`: the first that ends later."""
        phase = self._phase(devices)
        step = np.floor(at / self.every_s + phase).astype(np.int64)
        step = step - ((step - phase) * self.every_s > at)
        return step + ((step + 1 - phase) * self.every_s <= at)

    def until(self, step: I64, devices: I64) -> F64:
        """When each step ends, `[n]`, in absolute seconds."""
        return (step + 1 - self._phase(devices)) * self.every_s

    def factor(self, step: I64, devices: I64) -> F64:
        """Speed as a multiple of the device's own, `[n]`."""
        return np.exp(self.sigma * self._normals(step, devices) - 0.5 * self.sigma**2)

    def fit(self, n: int) -> None:
        """Any number of devices will do."""

    def describe(self) -> str:
        return f"log-normal factors, sigma {self.sigma:g}, rho {self.rho:g}, every {self.every_s:g} s"

    def _phase(self, devices: I64) -> F64:
        return rng.uniforms(rng.keys(self.seed, ("drift", "phase"), devices), np.zeros(1, np.int64))

    def _normals(self, step: I64, devices: I64) -> F64:
        """x at `step` of each device, `[n]`."""
        keys, width = rng.keys(self.seed, ("drift",), devices), 1
        while self.rho**width > _FORGOTTEN:
            width *= 2
        low = step // width * width
        x, above = rng.normals(keys, low), rng.normals(keys, low + width)
        while width > 1:
            width //= 2
            near, far = self.rho**width, self.rho ** (2 * width)
            spread = sqrt((1.0 - far) / (1.0 + far))
            middle = near / (1.0 + far) * (x + above) + spread * rng.normals(keys, low + width)
            right = step >= low + width
            x, above, low = np.where(right, middle, x), np.where(right, above, middle), low + width * right
        return x


@settings
@dataclass(frozen=True, slots=True, eq=False)
class DriftTable:
    """Speeds times `factors` `[n, k]` (above 0): device i's is `factors[i, j]` from `times_s[j]` on.

    `times_s` `[k]`: seconds, ascending from 0; the last factor stays for good.

    >>> halved = DriftTable([0.0, 10.0], [[1.0, 0.5]])
    >>> computing(halved, np.array([0]), np.array([8.0]), np.array([5.0])).tolist()
    [8.0]
    """

    times_s: F64 | Sequence[float]
    factors: F64 | Sequence[Sequence[float]]
    held: Held = field(default_factory=dict[int, tuple[float, list[float], list[float]]], init=False, repr=False)

    def __post_init__(self) -> None:
        times, factors = np.asarray(self.times_s, np.float64), np.asarray(self.factors, np.float64)
        if factors.ndim != 2 or times.shape != factors.shape[1:] or not len(times) or times[0] != 0.0:
            raise UsageError(
                f"DriftTable: {times.shape} times and {factors.shape} factors: give k times from 0 on, and k factors "
                "of every device."
            )
        if not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
            raise UsageError("DriftTable(times_s=...): seconds that ascend are needed.")
        if not (np.isfinite(factors).all() and (factors > 0).all()):
            bad = int(np.argmin((np.isfinite(factors) & (factors > 0)).all(axis=1)))
            raise UsageError(f"DriftTable: device {bad} has a factor that is no finite number above 0.")
        object.__setattr__(self, "times_s", times)
        object.__setattr__(self, "factors", factors)

    def step(self, at: F64, devices: I64) -> I64:
        """The step of each device `[n]` at its time `at` `[n]`."""
        return np.maximum(np.searchsorted(self.times_s, at, "right") - 1, 0)

    def until(self, step: I64, devices: I64) -> F64:
        """When each step ends, `[n]`."""
        return np.append(self.times_s, inf)[np.minimum(step + 1, len(self.times_s))]

    def factor(self, step: I64, devices: I64) -> F64:
        """Speed as a multiple of the device's own, `[n]`."""
        factors: Any = self.factors
        return factors[devices, np.minimum(step, factors.shape[1] - 1)]

    def fit(self, n: int) -> None:
        if len(self.factors) != n:
            raise UsageError(f"the fleet's drift is about {len(self.factors)} devices, the job has {n} clients.")

    def describe(self) -> str:
        return f"a table of {len(self.times_s)} factors of each device"


Drifts = Drift | DriftTable


def computing(drift: Drifts, devices: I64, at: F64, seconds: F64) -> F64:
    """How long it takes from `at` to compute what takes `seconds` at the device's own speed, `[n]` each.

    0 for what never begins (`at` inf).     Cost: a factor of every device for each step passed.
    """
    took, left = np.zeros(len(devices)), np.asarray(seconds, np.float64)
    going = np.flatnonzero((left > 0.0) & np.isfinite(at))
    now, who, left = at[going], devices[going], left[going]
    step = drift.step(now, who)
    while len(going):
        pace, until = drift.factor(step, who), drift.until(step, who)
        need, room = left / pace, until - now
        took[going] += np.where(need <= room, need, room)
        on = need > room
        left = (left - room * pace)[on] if on.any() else left[:0]
        going, who, step, now = going[on], who[on], step[on] + 1, until[on]
    return took


def computing_one(drift: Drifts, device: int, at: float, seconds: float) -> float:
    """`computing` for one device, to the same bit: about a microsecond where its factors are at hand."""
    took = 0.0
    while seconds > 0.0:
        _, ends, factors = _held(drift, device, at)
        for place in range(bisect_right(ends, at), len(ends)):
            need, room = seconds / factors[place], ends[place] - at
            if need <= room:
                return took + need
            took, seconds, at = took + room, seconds - room * factors[place], ends[place]
    return took


def _held(drift: Drifts, device: int, at: float) -> tuple[float, list[float], list[float]]:
    """(from when, end of each step, its factor) of some steps of a device, `at` among them; kept for the next."""
    found = drift.held.get(device)
    if found is None or not found[0] <= at < found[1][-1]:
        first = int(drift.step(np.array([at]), np.array([device]))[0])
        steps, same = np.arange(first, first + _AHEAD), np.full(_AHEAD, device)
        if len(drift.held) >= _DEVICES:
            drift.held.clear()
        begin = -inf if first == 0 else float(drift.until(steps[:1] - 1, same[:1])[0])
        found = drift.held[device] = (begin, drift.until(steps, same).tolist(), drift.factor(steps, same).tolist())
    return found


@settings
@dataclass(frozen=True, slots=True, eq=False)
class Drifting:
    """A recipe: the fleet of another recipe, or a `Fleet`, with speeds that drift (see `Drift`), seeded by the run."""

    fleet: Any
    sigma: float = 0.3
    rho: float = 0.9
    every_s: float = 60.0

    def build(self, n: int, seed: int) -> Any:
        fleet = self.fleet.build(n, seed) if hasattr(self.fleet, "build") else self.fleet
        return replace(fleet, drift=Drift(self.sigma, self.rho, self.every_s, seed))


def drifting(fleet: Any, sigma: float = 0.3, rho: float = 0.9, every_s: float = 60.0) -> Drifting:
    """`fleet` (a `Fleet` or a recipe for one) whose speeds drift: `Simulated(fleet=drifting(phones(), sigma=0.5))`."""
    Drift(sigma, rho, every_s)
    return Drifting(fleet, sigma, rho, every_s)
