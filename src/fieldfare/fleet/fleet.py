"""A fleet: one column per property of its devices, and how long a task would take on them.

Not here: what cuts a task short (`tasks`), availability (`availability`), links that change in time (`network`),
fleets made up or read from tables (`generate`, `traces`). Invariant: a duration is a function of (device, cost,
time of start, serial number of the ask), so the simulator knows when a reply is due before it computes what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings
from fieldfare.core.work import Cost
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.drift import Drift, DriftTable
from fieldfare.fleet.memory import MemoryTable
from fieldfare.fleet.network import SLOW_BYTES_PER_S, Network

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Column = F32 | float

_LINKS = ("downlink_bytes_per_s", "uplink_bytes_per_s")
_SPEEDS = ("flops_per_s", *_LINKS, "memory_bytes")
_REST = ("latency_s", "overhead_s", "compute_w", "radio_w", "timezone_s")
_COLUMNS = (*_SPEEDS, *_REST)


@settings
@dataclass(frozen=True, slots=True, eq=False)
class Fleet:
    """Columns over n devices; a plain number stands for all of them.

    `flops_per_s` (sustained FLOP/s in training), `downlink_bytes_per_s`, `uplink_bytes_per_s`, `overhead_s` (fixed time
    of a task), `memory_bytes`, `latency_s` (of each of a task's two transfers), `compute_w` and `radio_w` (power drawn
    while computing, and while a transfer lasts, above idle), `timezone_s` (east of UTC). `drop_out`: probability that
    an asked device never replies (a `Run` without a deadline waits for it as long as it would have taken). `noise`:
    sigma of a task's own log-normal factor, of mean 1, on its computing time. `flags`: named bool columns for
    `Sample(where=...)`. `kind` int `[n]`: the device's class, an index into `kinds`. `availability`: when devices may
    work (None: always). `network`: links that change in time; where there is one, tasks go by it, and a link column
    that is one number becomes its mean rates `[n]`, by which estimates go.
    `note`: how the fleet was made. `drift`: what speeds are multiplied by as time goes by; estimates do not know of it.
    `memory`: bytes free as time goes by, by which levels are planned (None: `memory_bytes` for good).
    `slow_links`: link columns with a median below 1 kB/s are meant so, and are no Mbit/s.
    """

    flops_per_s: Column = 2e9
    downlink_bytes_per_s: Column = 5e6
    uplink_bytes_per_s: Column = 1e6
    overhead_s: Column = 1.0
    drop_out: float = 0.0
    flags: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    name: str = "uniform"
    memory_bytes: Column = 4e9
    latency_s: Column = 0.0
    compute_w: Column = 3.0
    radio_w: Column = 1.0
    timezone_s: Column = 0.0
    noise: float = 0.0
    kind: NDArray[np.integer[Any]] | None = None
    kinds: tuple[str, ...] = ()
    availability: Availability | None = None
    network: Network | None = None
    note: str = ""
    drift: Drift | DriftTable | None = None
    slow_links: bool = False
    memory: MemoryTable | None = None

    def __post_init__(self) -> None:
        if self.network is not None:
            for column, mean in zip(_LINKS, self.network.means(), strict=True):
                if not np.ndim(getattr(self, column)):
                    object.__setattr__(self, column, mean.astype(np.float32))
        if not 0.0 <= self.noise < 10.0:
            raise UsageError(f"Fleet(noise={self.noise}): the sigma of a log-normal factor is a number from 0 to 10.")
        if self.kind is not None:
            _check_kinds(self.kind, self.kinds)
        for column in _COLUMNS:
            _check(column, getattr(self, column))
        for column in _LINKS if self.network is None and not self.slow_links else ():
            _check_unit(f"Fleet({column}=...)", getattr(self, column), ", or slow_links=True where they are so slow")
        for flag, value in self.flags.items():
            if not isinstance(value, np.ndarray) or value.dtype != np.bool_ or value.ndim != 1:
                raise UsageError(
                    f"Fleet(flags=...): {flag!r} is no array of one bool per device; give np.array of bool."
                )
        if not 0.0 <= self.drop_out < 1.0:
            raise UsageError(f"Fleet(drop_out={self.drop_out}): a probability in [0, 1) is needed.")

    def fit(self, n: int) -> None:
        """Refuse a column, or a flag, that is not about `n` devices."""
        columns = {column: getattr(self, column) for column in _COLUMNS}
        for name, value in {**columns, "kind": self.kind, **self.flags}.items():
            if value is not None and np.ndim(value) and len(value) != n:
                raise UsageError(
                    f"the fleet's {name} has {len(value)} values for {n} clients: give one per client"
                    f"{', or one number for all' if name in columns else ''}."
                )
        for name, part in (("availability", self.availability), ("network", self.network)):
            if part is not None and part.size != n:
                raise UsageError(f"the fleet's {name} is about {part.size} devices, the job has {n} clients.")
        for part in (self.drift, self.memory):
            if part is not None:
                part.fit(n)

    def durations(self, devices: I64, cost: Cost) -> F64:
        """Seconds a whole task takes without noise, `[n]`: overhead + down / downlink + FLOPs / speed + up / uplink,
        and twice the latency; of links that change, by the columns."""
        out = cost.flops / take(self.flops_per_s, devices)
        out = out + cost.bytes_down / take(self.downlink_bytes_per_s, devices)
        out = out + cost.bytes_up / take(self.uplink_bytes_per_s, devices) + take(self.overhead_s, devices)
        out = out + 2.0 * take(self.latency_s, devices)
        return np.broadcast_to(np.asarray(out, np.float64), (len(devices),))

    def survivors(self, devices: I64, seed: int, key: tuple[str | int, ...]) -> NDArray[np.bool_] | None:
        """Which asked devices `[n]` will reply at all; None when all do."""
        if self.drop_out == 0.0:
            return None
        return rng.uniforms(rng.keys(seed, ("drop-out", *key), devices), np.zeros(1, np.int64)) >= self.drop_out

    def describe(self) -> dict[str, Any]:
        """Plain JSON: the name, the quartiles of each column, classes, traces, and how it was made."""
        out: dict[str, Any] = {"name": self.name, "drop_out": self.drop_out}
        for column in _COLUMNS:
            value = getattr(self, column)
            out[column] = np.quantile(value, [0.25, 0.5, 0.75]).tolist() if np.ndim(value) else float(value)
        out["noise"] = self.noise
        if self.kind is not None:
            counts = np.bincount(self.kind, minlength=len(self.kinds)).tolist()
            out["kinds"] = dict(zip(self.kinds, counts, strict=True))
        for name, traces in (("availability", self.availability), ("network", self.network)):
            if traces is not None:
                out[name] = f"{len(traces.offsets) - 1} traces"
        if self.drift is not None:
            out["drift"] = self.drift.describe()
        if self.memory is not None:
            out["memory"] = self.memory.describe()
        if self.note:
            out["note"] = self.note
        return out


class Recipe(Protocol):
    """A fleet to be made when the number of clients is known."""

    def build(self, n: int, seed: int) -> Fleet: ...


def uniform(**columns: float) -> Fleet:
    """All devices alike; any number of `Fleet` may be given by name."""
    return replace(Fleet(), **columns)  # type: ignore[arg-type]


@settings
@dataclass(frozen=True, slots=True)
class Phones:
    """A recipe for a fleet of phones, built when the number of clients is known."""

    sigma: float = 0.6
    drop_out: float = 0.0
    flops_per_s: float = 2e9
    downlink_bytes_per_s: float = 5e6
    uplink_bytes_per_s: float = 1e6
    overhead_s: float = 1.0

    def __post_init__(self) -> None:
        for name in _LINKS:
            _check_unit(f"phones({name}=...)", getattr(self, name))

    def build(self, n: int, seed: int) -> Fleet:
        """Log-normal speeds and links around the medians, `[n]` each."""
        device = rng.keys(seed, ("fleet",), np.arange(n))

        def spread(counter: int, median: float, sigma: float) -> F32:
            return (median * np.exp(sigma * rng.normals(device, np.full(1, counter)))).astype(np.float32)

        return Fleet(
            spread(0, self.flops_per_s, self.sigma), spread(1, self.downlink_bytes_per_s, 0.8),
            spread(2, self.uplink_bytes_per_s, 0.8), self.overhead_s, self.drop_out, name="phones",
        )  # fmt: skip


def phones(sigma: float = 0.6, drop_out: float = 0.0, **medians: float) -> Phones:
    """Unlike phones: speed log-normal with shape `sigma`, links with shape 0.8 (our choice, not measured).

    `medians`: `flops_per_s` (2e9), `downlink_bytes_per_s` (5e6), `uplink_bytes_per_s` (1e6), and `overhead_s` (1).

    >>> phones().build(1000, seed=0).flops_per_s.shape
    (1000,)
    """
    return Phones(sigma, drop_out, **medians)


def _check(column: str, value: Any) -> None:
    """Refuse a column that is not of finite numbers, above zero for a speed and not below for a time."""
    numbers = np.asarray(value)
    if numbers.ndim > 1 or numbers.dtype.kind not in "fiu":
        raise UsageError(
            f"Fleet({column}=...) is a number for all devices, or an array of one each, "
            f"not {numbers.dtype} {numbers.shape}."
        )
    if column == "timezone_s":
        least = np.abs(numbers) <= 86400.0
        said = "seconds east of UTC, within a day"
    elif column in _SPEEDS:
        least, said = numbers > 0, "a finite number above zero"
    else:
        least, said = numbers >= 0, "a finite number not below zero"
    good = least & np.isfinite(numbers)
    if not good.all():
        at = int(np.argmin(good)) if numbers.ndim else 0
        raise UsageError(f"device {at} has {column} = {np.ravel(numbers)[at]}: use {said}.")


def _check_unit(name: str, bytes_per_s: Any, way: str = "") -> None:
    """Refuse rates whose median looks like Mbit/s; cheap where there are many."""
    rates = np.asarray(bytes_per_s)
    if 2 * np.count_nonzero(rates < SLOW_BYTES_PER_S) > rates.size:
        raise UsageError(
            f"{name} has a median of {np.median(rates):.4g}: as bytes per second that is slower than any link, so it "
            f"looks like Mbit/s, kbit/s or kB/s; give bytes per second (1 Mbit/s = 125000){way}."
        )


def _check_kinds(kind: NDArray[np.integer[Any]], kinds: tuple[str, ...]) -> None:
    numbers = np.asarray(kind)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise UsageError(f"Fleet(kind=...) is one whole number per device, not {numbers.dtype} {numbers.shape}.")
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(kinds)):
        raise UsageError(
            f"Fleet(kind=...) goes from {numbers.min()} to {numbers.max()} and kinds has {len(kinds)} names: "
            "each is an index into kinds."
        )


def take(column: Column, devices: I64) -> Any:
    return column[devices] if isinstance(column, np.ndarray) else column
