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

_MOST = 16


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


def draw(
    seed: int, cycle: int, versions: Mapping[str, float], count: int, ages: Mapping[str, float] | None = None
) -> tuple[str, ...]:
    """`count` names without replacement, in the order drawn, by Gumbel top-k over `logits`; all if there are fewer.

    Each name has its own stream, so that a name more or less in the table moves nobody else's luck. `ages`: cycles
    since each was last drawn, at least 1, by which its weight is multiplied (ours): who is starved comes up.
    """
    if count < 1:
        raise UsageError(f"draw(count={count}): at least one peer is drawn; use count >= 1.")
    names = sorted(versions)
    if not names:
        return ()
    key = np.array([rng.derive(seed, "hadfl", "draw", cycle, name) for name in names], np.uint64)
    u = np.maximum(rng.uniforms(key, np.zeros(len(names), np.int64)), 2.0**-54)
    luck = logits(np.array([versions[name] for name in names], np.float64)) - np.log(-np.log(u))
    if ages:
        luck = luck + np.log([max(ages.get(name, 1.0), 1.0) for name in names])
    best: list[int] = np.argsort(-luck, kind="stable")[:count].tolist()
    return tuple(names[i] for i in best)


def inclusion(versions: F64, count: int) -> F64:
    """The probability `[K]` that each is among the `count` drawn; cost O(K 2**K), for K <= 16.

    >>> inclusion(np.array([66.0, 66.0, 22.0, 22.0]), 2).round(3).tolist()
    [0.843, 0.843, 0.157, 0.157]
    """
    k = len(versions)
    if k > _MOST:
        raise UsageError(f"inclusion of {k} devices: exact up to {_MOST}; count draws instead.")
    bell, count = logits(versions), min(count, k)
    reach, out = np.zeros(1 << k), np.zeros(k)
    reach[0] = 1.0
    for taken in range(1 << k):
        drawn = taken.bit_count()
        if drawn == count:
            out[[i for i in range(k) if taken >> i & 1]] += reach[taken]
        elif reach[taken] > 0.0:
            left = [i for i in range(k) if not taken >> i & 1]
            weight = np.exp(bell[left] - bell[left].max())
            for i, share in zip(left, weight / weight.sum(), strict=True):
                reach[taken | 1 << i] += reach[taken] * share
    return out
