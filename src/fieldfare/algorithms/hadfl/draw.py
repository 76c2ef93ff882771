"""Which peers synchronise: a bell over predicted versions, drawn without replacement so that every node can redo it.

HADFL draws N_p devices with a probability that is bell-shaped over versions, centred on the third quartile: the newest
model is not always the best, as slow devices' data matter, and stale ones are worse. Here: the bell, the draw, and how
often it takes whom. Invariant: a draw depends on (seed, cycle, the table of names and predicted versions) alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError

F64 = NDArray[np.float64]

_FAINT, _STRIDE, _EXACT = -60.0, 0.1, 64


def logits(versions: F64) -> F64:
    """Log-weights `[K]`, -((v - mu) / sigma)**2 / 2: mu the 75th percentile, sigma the standard deviation.

    The paper's spread is 1; over versions counted in steps its density is exactly 0 for slow devices, in float64
    already. Our reading measures distance in standard deviations and never leaves logarithms.
    """
    mu = np.percentile(versions, 75)
    return -(((versions - mu) / max(float(versions.std()), 1e-9)) ** 2) / 2.0


def probabilities(versions: F64) -> F64:
    """P `[K]`, the softmax of `logits`: who is drawn first.

    >>> probabilities(np.array([66.0, 66.0, 22.0, 22.0])).round(2).tolist()
    [0.44, 0.44, 0.06, 0.06]
    """
    bell = logits(versions)
    weight = np.exp(bell - bell.max())
    return weight / weight.sum()


def luck(versions: Mapping[str, float], ages: Mapping[str, float] | None = None) -> tuple[list[str], F64]:
    """The names in order and their log-weights `[K]`: the bell, and the age where that counts."""
    names = sorted(versions)
    weight = logits(np.array([versions[name] for name in names], np.float64))
    if ages:
        weight = weight + np.log([max(ages.get(name, 1.0), 1.0) for name in names])
    return names, weight


def draw(
    seed: int, cycle: int, versions: Mapping[str, float], count: int, ages: Mapping[str, float] | None = None
) -> tuple[str, ...]:
    """`count` names without replacement, in the order drawn, by Gumbel top-k over `logits`; all if there are fewer.

    Each name has its own stream, so that a name more or less in the table moves nobody else's luck. `ages`: cycles
    since each was last drawn, at least 1, by which its weight is multiplied (ours): who is starved comes up.
    """
    if count < 1:
        raise UsageError(f"draw(count={count}): at least one peer is drawn; use count >= 1.")
    if not versions:
        return ()
    names, weight = luck(versions, ages)
    key = np.array([rng.derive(seed, "hadfl", "draw", cycle, name) for name in names], np.uint64)
    u = np.maximum(rng.uniforms(key, np.zeros(len(names), np.int64)), 2.0**-54)
    best: list[int] = np.argsort(-(weight - np.log(-np.log(u))), kind="stable")[:count].tolist()
    return tuple(names[i] for i in best)


def chances(versions: Mapping[str, float], count: int, ages: Mapping[str, float] | None = None) -> dict[str, float]:
    """The probability that `draw` takes each name."""
    if not versions:
        return {}
    names, weight = luck(versions, ages)
    return dict(zip(names, inclusion_of(weight, count).tolist(), strict=True))


def inclusion(versions: F64, count: int) -> F64:
    """The probability `[K]` that each is among the `count` drawn.

    >>> inclusion(np.array([66.0, 66.0, 22.0, 22.0]), 2).round(3).tolist()
    [0.843, 0.843, 0.157, 0.157]
    """
    return inclusion_of(logits(versions), count)


def inclusion_of(weight: F64, count: int) -> F64:
    """The probability `[K]` of being among the first `count`, by log-weights `[K]`; cost O(K**2 count).

    A draw in succession is a race: k arrives after an exponential time of rate w_k, and the first `count` are drawn
    (Efraimidis & Spirakis, 2006). So P_k is the integral over t of w_k exp(-w_k t) P(at most count - 1 others by t), by
    the trapezoidal rule in log t, whose error falls exponentially. A weight below exp(-60) of the largest counts as
    that. Above 64 names the race is stopped at the time by which `count` have arrived in the mean (Rosen, 1997), which
    errs by a few per cent at most and costs O(K).
    """
    k = len(weight)
    if count >= k:
        return np.ones(k)
    rate = np.exp(np.maximum(weight - weight.max(), _FAINT))
    if k > _EXACT:
        low, high = -40.0, 5.0 - float(np.log(rate.min()))
        for _ in range(60):
            middle = (low + high) / 2.0
            early = -np.expm1(-rate * np.exp(middle)).sum() < count
            low, high = (middle, high) if early else (low, middle)
        return -np.expm1(-rate * np.exp(high))
    x = np.arange(-40.0, 5.0 - np.log(rate.min()), _STRIDE)
    here = np.outer(rate, np.exp(x))
    gone = -np.expm1(-here)
    out = np.empty(k)
    for i in range(k):
        others = np.zeros((count, len(x)))
        others[0] = 1.0
        for j in range(k):
            if j != i:
                others[1:] = others[1:] * (1.0 - gone[j]) + others[:-1] * gone[j]
                others[0] *= 1.0 - gone[j]
        out[i] = float((here[i] * np.exp(-here[i]) * others.sum(axis=0)).sum()) * _STRIDE
    return np.minimum(out * count / out.sum(), 1.0)
