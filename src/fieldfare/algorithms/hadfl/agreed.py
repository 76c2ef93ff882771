"""What every peer works out by itself and all agree on: the draw, who tells the others, how a mean is merged.

Invariant: pure functions of what all have heard and the run's seed.
"""

from __future__ import annotations

import numpy as np

from fieldfare.algorithms.hadfl.draw import draw
from fieldfare.algorithms.hadfl.messages import Select
from fieldfare.algorithms.hadfl.ring import F32
from fieldfare.core import rng


def run_of(seed: int) -> int:
    """The number by which frames of this run are known."""
    return rng.derive(seed, "hadfl", "run") >> 1


def drawn(select: Select, per_cycle: int, seed: int) -> bool:
    """Whether the members are those that the table gives: a coordinator cannot choose by its own will.

    After a restart they are some of those drawn.
    """
    table = dict(zip(select.names, select.predicted, strict=True))
    ages = dict(zip(select.names, select.ages, strict=True)) if select.ages else None
    fair = draw(seed, select.cycle, table, per_cycle, ages)
    if select.epoch > 0:
        return set(select.members) <= set(fair)
    return select.members == (fair if len(fair) > 1 else ())


def herald(select: Select, seed: int) -> str:
    """The member that broadcasts the mean: drawn by the seed among those who made it."""
    return select.members[rng.derive(seed, "hadfl", "herald", select.cycle) % len(select.members)]


def blend(mean: F32, mine: F32, share: float) -> F32:
    """share * mean + (1 - share) * mine, `[P]`; share 1 overwrites (the share is our reading).

    >>> blend(np.ones(2, np.float32), np.zeros(2, np.float32), 0.5).tolist()
    [0.5, 0.5]
    """
    if share == 1.0:
        return mean
    lam = np.float32(share)
    out: F32 = (lam * mean + (np.float32(1) - lam) * mine).astype(np.float32)
    return out


def contribution(mine: F32, base: F32, factor: float) -> F32:
    """base + factor (mine - base), `[P]`: what enters the ring where deltas are rescaled; factor 1 gives `mine`.

    >>> contribution(np.ones(1, np.float32), np.zeros(1, np.float32), 0.25).tolist()
    [0.25]
    """
    if factor == 1.0:
        return mine
    out: F32 = (base + np.float32(factor) * (mine - base)).astype(np.float32)
    return out


def step_factor(select: Select, steps: int, examples: float) -> float:
    """What a delta of `steps` local steps on `examples` examples counts, e_bar / e_k times n_k / n_bar.

    The mean of such contributions from one base is base + e_bar sum(n_k d_k / e_k) / sum(n_k): FedNova's normalised
    average (Wang et al., NeurIPS 2020, equation 3) with plain SGD, in a ring.
    """
    return select.mean_steps / max(steps, 1) * examples / select.mean_examples


def peak(vector: F32) -> float:
    """The largest absolute value; nan where there is one."""
    return float(np.abs(vector).max(initial=np.float32(0)))
