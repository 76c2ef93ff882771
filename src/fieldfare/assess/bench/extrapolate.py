"""Times of devices nobody measured: from a benchmark's score, else drawn from those that were.

Here: the regression of log time on log score, with its errors, and draws. Not here: which devices there are
(`population`). Invariants: residual noise is kept, so that unmeasured devices spread about the line as measured ones
do; a device's noise is a function of (seed, model, device). FLASH takes the time of the device with the nearest score;
that hides how wrong it is, so we do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng

F64 = NDArray[np.float64]

FEWEST = 4
"""Measured devices with a score that a line needs: two for the line, two for its error."""


@dataclass(frozen=True, slots=True)
class Line:
    """log t = intercept + slope log score, of `n` devices.

    `r2`: share of the variance of log t it explains. `sigma`: of its residuals (n - 2 degrees of freedom).
    `leave_one_out`: root mean square of the error in log t of each device predicted from the others.
    """

    intercept: float
    slope: float
    r2: float
    sigma: float
    leave_one_out: float
    n: int

    def log_time(self, score: float) -> float:
        return self.intercept + self.slope * float(np.log(score))


def line(scores: F64, times: F64) -> Line | None:
    """The least-squares line through (log score, log time), `[n]` each; None of too few devices, or of one score.

    >>> found = line(np.array([1.0, 2, 4, 8]), np.array([8.0, 4, 2, 1]))
    >>> round(found.slope, 6), round(found.r2, 6), round(found.leave_one_out, 6)
    (-1.0, 1.0, 0.0)
    """
    known = np.isfinite(scores) & (scores > 0) & np.isfinite(times) & (times > 0)
    x, y = np.log(scores[known]), np.log(times[known])
    n = len(x)
    if n < FEWEST or np.ptp(x) == 0:
        return None
    off = x - x.mean()
    slope = float((off * y).sum() / (off**2).sum())
    intercept = float(y.mean() - slope * x.mean())
    left = y - (intercept + slope * x)
    all_ = float(((y - y.mean()) ** 2).sum())
    lever = 1.0 / n + off**2 / (off**2).sum()
    alone = left / np.maximum(1.0 - lever, 1e-12)  # residual of a device that the line has not seen
    within = float((left**2).sum())
    return Line(
        intercept,
        slope,
        1.0 - within / all_ if all_ > 0 else 1.0,
        float(np.sqrt(within / (n - 2))),
        float(np.sqrt((alone**2).mean())),
        n,
    )


def noise(seed: int, model: str, devices: list[str]) -> F64:
    """A standard normal number for each device, the same whoever else is asked for."""
    found = np.array([rng.derive(seed, "bench", model, one) for one in devices], np.uint64)
    return rng.normals(found, np.zeros(len(devices), np.int64)) if devices else np.zeros(0)


def drawn(seed: int, model: str, devices: list[str], times: F64, weights: F64) -> F64:
    """A measured time for each device, by weight."""
    found = np.array([rng.derive(seed, "bench draw", model, one) for one in devices], np.uint64)
    if not devices:
        return np.zeros(0)
    edges = np.cumsum(weights / weights.sum())
    at = np.searchsorted(edges, rng.uniforms(found, np.zeros(len(devices), np.int64)), side="right")
    return times[np.minimum(at, len(times) - 1)]
