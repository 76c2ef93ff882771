"""Closed forms: what throughput, staleness and traffic must be, from a handful of means.

Here: arithmetic beside which a simulation can be laid. Not here: ranges and prices (`quantities`). Invariant: SI units
in and out. They hold in the steady state, with tasks that are independent of one another: where availability swings
over the day the mean over a day is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import erf, erfc, exp, inf, lgamma, log, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A log-normal quantity of mean `mean` (not median) and sigma `sigma` of its logarithm: mu = ln mean - sigma^2/2.

    >>> round(LogNormal(30.0, 0.6).median, 2)
    25.06
    """

    mean: float
    sigma: float

    def __post_init__(self) -> None:
        if not (0 < self.mean < inf and 0 <= self.sigma < 10):
            raise UsageError(f"LogNormal(mean={self.mean}, sigma={self.sigma}): use a mean > 0 and a sigma in [0, 10).")

    @property
    def mu(self) -> float:
        return log(self.mean) - self.sigma**2 / 2

    @property
    def median(self) -> float:
        return exp(self.mu)

    def below(self, x: float) -> float:
        """P(D < x)."""
        if x <= 0:
            return 0.0
        return float(x > self.mean) if not self.sigma else _phi((log(x) - self.mu) / self.sigma)

    def capped(self, x: float) -> float:
        """E[min(D, x)]: how long a device is at work when x cuts the task.

        >>> LogNormal(30.0, 0.6).capped(float("inf"))
        30.0
        """
        if x == inf:
            return self.mean
        if not self.sigma:
            return min(self.mean, x)
        z = (log(x) - self.mu) / self.sigma
        return self.mean * _phi(z - self.sigma) + x * (1 - _phi(z))

    def quantile(self, share: float) -> float:
        """The value below which a `share` of (0, 1) lies."""
        from statistics import NormalDist

        return exp(self.mu + self.sigma * NormalDist().inv_cdf(share))


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tasks that end per second, tasks at work, share that ends well, seconds per version, mean staleness, waste."""

    tasks_per_s: float
    at_work: float
    ok_share: float
    version_s: float
    staleness: float
    bound_by: str


STAYS = 48
"""Points, alike likely, that stand for how long a device stays on."""


@cache
def stays(session_s: float, sigma: float = 0.0, within: bool = False) -> tuple[float, ...]:
    """How long a device stays on once its task began: `STAYS` alike likely lengths, or one where all are the same.

    Sessions are log-normal about a mean of `session_s`. A task begins with its session (FLINT's rule), or anywhere
    `within` one: long sessions are then met more often, and what is left is a random part of them, the equilibrium
    distribution of renewal theory, P(R < r) = E[min(L, r)] / E[L]. Ours.

    >>> stays(900.0), round(sum(stays(900.0, 0.0, True)) / STAYS)
    ((900.0,), 450)
    """
    if session_s == inf or (not sigma and not within):
        return (session_s,)
    shares = (np.arange(STAYS) + 0.5) / STAYS
    length = LogNormal(session_s, sigma)
    if not within:
        return tuple(length.quantile(float(one)) for one in shares)
    if not sigma:
        return tuple(float(one) * session_s for one in shares)
    ends = np.exp(np.linspace(length.mu - 8 * sigma, length.mu + sigma**2 + 8 * sigma, 2_001))
    below = np.array([length.capped(float(one)) for one in ends]) / session_s
    return tuple(np.interp(shares, below, ends).tolist())


def throughput(
    concurrency: int, buffer: int, task: LogNormal, *, supply_per_s: float = inf, session_s: float = inf,
    timeout_s: float = inf, max_staleness: float = inf, session_sigma: float = 0.0, within: bool = False,
) -> Throughput:  # fmt: skip
    """Little's law for an asynchronous job (FedBuff): lambda = min(C, able) / E[B], where B = min(D, cut).

    A task is cut by the end of its session (see `stays`) or by the time-out, whichever is sooner. `supply_per_s`:
    devices that come and may work, per second; able are supply E[B] of them where a session gives one task (FLINT's
    rule), supply E[L] where tasks begin anywhere `within` one. A version takes K / (lambda p_ok); a task that takes D
    sees D lambda p_ok / K versions pass by; stale are those that see more than `max_staleness` of them.
    FLINT's report, section 11; the share of stale tasks is one fixed point more, ours.
    """
    if concurrency < 1 or buffer < 1:
        raise UsageError(f"throughput(concurrency={concurrency}, buffer={buffer}): use numbers >= 1.")
    cuts = [min(one, timeout_s) for one in stays(session_s, session_sigma, within)]
    busy = sum(task.capped(one) for one in cuts) / len(cuts)
    able = supply_per_s * (session_s if within else busy)
    rate = min(float(concurrency), able) / busy

    def ended(limit: float) -> float:
        """The share of tasks that end before they are cut, and within `limit`."""
        least = [min(one, limit) for one in cuts]
        return sum(1.0 if one == inf else task.below(one) for one in least) / len(least)

    fresh = ended(inf)
    for _ in range(100):
        version = buffer / (rate * fresh) if fresh > 0 else inf
        new = ended((max_staleness + 1) * version)
        if abs(new - fresh) < 1e-12:
            break
        fresh = (fresh + new) / 2
    version = buffer / (rate * fresh) if fresh > 0 else inf
    return Throughput(
        rate, rate * busy, fresh, version, busy / version, "supply" if able < concurrency else "concurrency"
    )


def synchronous_round_s(cohort: int, task: LogNormal, over: float = 1.0) -> float:
    """Expected seconds until `cohort` of ceil(over x cohort) independent tasks are done: an order statistic's mean.

    The integral of exp(mu + sigma z) over the density of the order statistic of standard normals, on a fine grid:
    with heavy tails the mean of the slowest lies far above what it is in probability.

    >>> round(synchronous_round_s(50, LogNormal(30.0, 0.6)))
    101
    """
    asked = int(np.ceil(over * cohort - 1e-9))
    z, below, above = _normals()
    ways = lgamma(asked + 1) - lgamma(cohort) - lgamma(asked - cohort + 1)
    log_density = ways + (cohort - 1) * below + (asked - cohort) * above - z**2 / 2 - 0.5 * log(2 * pi)
    return float(np.exp(log_density + task.mu + task.sigma * z).sum() * (z[1] - z[0]))


def task_s(
    per_record_s: float, records: float, epochs: float, down_bytes: float, up_bytes: float, down_bytes_per_s: float,
    up_bytes_per_s: float, overhead_s: float = 0.0,
) -> float:  # fmt: skip
    """taskDuration(k) = t E |D_k| + M/N_down + M/N_up + overhead (FLINT, section 3.4, with both directions apart).

    >>> round(task_s(0.996e-3, 5000, 1, 0, 0, 1, 1), 2)
    4.98
    """
    return per_record_s * epochs * records + down_bytes / down_bytes_per_s + up_bytes / up_bytes_per_s + overhead_s


def ingress_bytes_per_s(updates: float, seconds: float, update_bytes: float) -> float:
    """Bytes per second into the aggregator: 610,000 updates of 0.76 MB in 48 h are 2.68 MB/s.

    >>> round(ingress_bytes_per_s(610_000, 48 * 3600, 0.76e6) / 1e6, 2)
    2.68
    """
    return updates / seconds * update_bytes


def aggregators(peak_updates_per_s: float, seconds_per_update: float, load: float = 0.6) -> int:
    """Aggregators for a peak, each loaded to `load` of what it can: ceil(peak c / load), at least one.

    >>> aggregators(53.0, 0.02)
    2
    """
    return max(1, int(np.ceil(peak_updates_per_s * seconds_per_update / load - 1e-9)))


@cache
def _normals() -> tuple[F64, F64, F64]:
    """(z, log P(Z < z), log P(Z > z)) on a grid wide enough for sigmas of up to 10."""
    z = np.linspace(-12.0, 25.0, 7401)
    below, above = (np.array([max(0.5 * erfc(sign * x / sqrt(2)), 1e-320) for x in z]) for sign in (-1, 1))
    return z, np.log(below), np.log(above)


def _phi(z: float) -> float:
    return 0.5 * (1 + erf(z / sqrt(2)))
