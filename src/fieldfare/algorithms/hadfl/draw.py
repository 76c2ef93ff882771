"""Which peers synchronise: a bell over predicted versions, drawn without replacement so that every node can redo it.

HADFL draws N_p devices with a probability that is bell-shaped over versions, centred on the third quartile: the newest
model is not always the best, as slow devices' data matter, and stale ones are worse. Here: the bell, the draw, and how
often it takes whom. Invariant: a draw depends on (seed, cycle, the table of names and predicted versions) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError

F64 = NDArray[np.float64]

_FAINT, _STRIDE, _EXACT = -60.0, 0.1, 64
_TURN = 1000.0
"""Added to the log-weight of who is due: more than luck and the bell ever are."""


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


@dataclass(frozen=True, slots=True)
class Table:
    """All that a draw of `count` among `names` in `cycle` goes by: their `predicted` versions, and further, if any:

    `ages`: cycles since each was last drawn, at least 1, by which its weight is multiplied (ours): who is starved comes
    up. `turns` (ours): cycles come in blocks of ceil(K / count), and who has not been drawn in this block comes before
    who has, so that nobody waits for 2 ceil(K / count) cycles; within either by luck as ever.
    """

    cycle: int
    count: int
    names: tuple[str, ...]
    predicted: tuple[float, ...]
    ages: tuple[float, ...] = ()
    turns: bool = False

    @property
    def weights(self) -> F64:
        """Log-weights `[K]` in the order of `names`."""
        out = logits(np.array(self.predicted, np.float64))
        if not self.ages:
            return out
        ages = np.array(self.ages, np.float64)
        if self.turns:
            into_block = (self.cycle - 1) % math.ceil(len(self.names) / self.count)
            return np.maximum(out, -_TURN / 4.0) + np.where(ages > into_block, _TURN, 0.0)
        return out + np.log(np.maximum(ages, 1.0))


@lru_cache(maxsize=64)
def draw(seed: int, table: Table) -> tuple[str, ...]:
    """`count` names without replacement, in the order drawn, by Gumbel top-k over their weights; or all.

    Each name has its own stream, so that a name more or less in the table moves nobody else's luck. The last draws are
    kept, for where one process hosts many peers each of them redoes every draw.
    """
    if table.count < 1:
        raise UsageError(f"draw(count={table.count}): at least one peer is drawn; use count >= 1.")
    if not table.names:
        return ()
    key = np.array([rng.derive(seed, "hadfl", "draw", table.cycle, name) for name in table.names], np.uint64)
    u = np.maximum(rng.uniforms(key, np.zeros(len(key), np.int64)), 2.0**-54)
    luck = dict(zip(table.names, (table.weights - np.log(-np.log(u))).tolist(), strict=True))
    return tuple(sorted(table.names, key=lambda name: (-luck[name], name))[: table.count])


def chances(table: Table) -> dict[str, float]:
    """The probability that `draw` takes each name."""
    return dict(zip(table.names, inclusion_of(table.weights, table.count).tolist(), strict=True))


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
    due = weight > weight.max() - _TURN / 2.0
    if (ahead := int(due.sum())) <= count and ahead < k:
        out = np.ones(k)
        out[~due] = inclusion_of(weight[~due], count - ahead) if count > ahead else 0.0
        return out
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
