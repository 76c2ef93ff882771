"""Records per client as FLINT's three proxy data sets have them (table 2, figure 5): presets A, B and C.

Here: sizes of n clients with a wanted mean, standard deviation, largest value and, where the three agree with it, a
distribution's points. Not here: which rows a client gets (`share`). Invariant: sizes are a function of (shape, clients,
seed); client i's place in the distribution is stratified, so that few clients have the moments of many.

B's points (88 % of clients with at most 50 records) cannot go with its mean of 184 and deviation of 374: whatever the
others have, the deviation would be larger. There the mean and deviation are kept, log-normal, and the points are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
_GRID = 20_000


@dataclass(frozen=True, slots=True)
class Shape:
    """A distribution of records per client: `points` (n, share of clients with at most n records) from below."""

    clients: int
    mean: float
    std: float
    largest: int
    points: tuple[tuple[float, float], ...] = ()
    label_ratio: float | None = None
    lookback_days: float | None = None
    title: str = ""

    def __post_init__(self) -> None:
        shares = [share for _, share in self.points]
        if not (self.clients >= 1 and 1 <= self.mean <= self.largest and self.std >= 0) or shares != sorted(shares):
            raise UsageError(
                f"Shape(clients={self.clients}, mean={self.mean}, std={self.std}, largest={self.largest}): use a mean "
                "of at least one record and at most the largest, and points in ascending order."
            )


PRESETS: Mapping[str, Shape] = {
    "A": Shape(700_000, 99, 667, 39_731, ((1, 0.02), (10, 0.20), (20, 0.33), (30, 0.41), (50, 0.51)), 0.28, 90, "ads"),
    "B": Shape(1_024_950, 184, 374, 103_471, (), 0.05, 28, "search (likely)"),
    "C": Shape(16_422_290, 1.53, 1.47, 406, ((1, 0.72), (2, 0.89), (3, 0.95)), 0.06, 61, "messaging (likely)"),
}


def preset(name: str) -> Shape:
    """The preset called `name`: A (advertising), B or C."""
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name!r}: use {', '.join(PRESETS)} (FLINT, table 2).")
    return PRESETS[name]


def sizes(shape: Shape, clients: int, seed: int = 0) -> I64:
    """Records of each client, int64 `[clients]`, at least one; mean and deviation near the shape's for clients > 1,000.

    Below the last point sizes go by the points, log-linear between; above it they are that point plus a log-normal
    number, cut at the largest, of which mean and sigma are solved for (our reading: the paper shows no formula).

    >>> found = sizes(preset("C"), 10_000)
    >>> round(float(found.mean()), 1), int(found.min())
    (1.5, 1)
    """
    if clients < 1:
        raise UsageError(f"sizes(clients={clients}): use at least one client.")
    order = np.argsort(
        rng.uniforms(rng.keys(seed, ("proxy", "sizes"), np.arange(clients)), np.zeros(clients, np.int64))
    )
    place = np.empty(clients)
    place[order] = (np.arange(clients) + 0.5) / clients
    return _whole(_quantiles(shape, place, *_solved(shape)), shape)


def _quantiles(shape: Shape, place: F64, mean: float, sigma: float) -> F64:
    """Records at these shares `place` of the clients, for a tail of this mean and sigma."""
    base, below = shape.points[-1] if shape.points else (0.0, 0.0)
    u = np.clip((place - below) / (1 - below), 1e-12, 1 - 1e-12)
    tail = base + np.exp(np.log(mean) - sigma**2 / 2 + sigma * _normal(u))
    if not shape.points:
        return tail
    ns, shares = np.array([n for n, _ in shape.points]), np.array([share for _, share in shape.points])
    body = np.exp(np.interp(place, shares, np.log(ns)))
    body = np.where(place <= shares[0], ns[0], np.ceil(body - 1e-9))
    return np.where(place <= below, body, tail)


def _whole(found: F64, shape: Shape) -> I64:
    return np.clip(np.ceil(found - 0.5), 1, shape.largest).astype(np.int64)


@lru_cache(maxsize=32)
def _solved(shape: Shape) -> tuple[float, float]:
    """Mean and sigma of the tail with which whole sizes, cut at the largest, have the shape's mean and deviation."""
    place = (np.arange(_GRID) + 0.5) / _GRID
    place = np.concatenate([place[:-1], 1 - np.geomspace(1 / _GRID, 1e-8, 200)])
    width = np.diff(np.concatenate([[0.0], (place[1:] + place[:-1]) / 2, [1.0]]))
    base, below = shape.points[-1] if shape.points else (0.0, 0.0)
    mean, sigma = max(shape.mean - base * below, 1.0) / (1 - below), 1.0
    for _ in range(60):
        got = _whole(_quantiles(shape, place, mean, sigma), shape)
        first = float((got * width).sum())
        spread = float(np.sqrt(max(((got - first) ** 2 * width).sum(), 1e-12)))
        mean = float(np.clip(mean * (1 + 0.7 * (shape.mean - first) / max(first - base * below * 0.5, 0.2)), 1e-3, 1e9))
        sigma = float(np.clip(sigma * (max(shape.std, 1e-6) / spread) ** 0.35, 1e-3, 4.0))
    return mean, sigma


def _normal(u: F64) -> F64:
    """Inverse of the normal distribution function (Acklam's rational approximation, relative error below 1.2e-9)."""
    a = (
        -39.69683028665376,
        220.9460984245205,
        -275.9285104469687,
        138.3577518672690,
        -30.66479806614716,
        2.506628277459239,
    )
    b = (-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572)
    c = (
        -0.007784894002430293,
        -0.3223964580411365,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
    )
    d = (0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416)
    low = np.minimum(u, 1 - u)
    q = np.sqrt(-2 * np.log(np.maximum(low, 1e-300)))
    edge = np.polyval(c, q) / np.polyval((*d, 1.0), q)
    r = u - 0.5
    middle = np.polyval(a, r * r) * r / np.polyval((*b, 1.0), r * r)
    return np.where(low < 0.02425, np.where(u < 0.5, edge, -edge), middle)
