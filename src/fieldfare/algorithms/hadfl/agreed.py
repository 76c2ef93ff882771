"""What every peer works out by itself and all agree on: the draw, who tells the others, what each counts for.

Invariant: pure functions of what all have heard and the run's seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Literal

import numpy as np

from fieldfare.algorithms.hadfl.draw import chances, draw
from fieldfare.algorithms.hadfl.messages import Select
from fieldfare.algorithms.hadfl.ring import F32, step_of
from fieldfare.algorithms.hadfl.widths import Cover, Widths, behind_of
from fieldfare.core import rng

Counting = Literal["once", "inverse"]


def run_of(seed: int) -> int:
    """The number by which frames of this run are known."""
    return rng.derive(seed, "hadfl", "run") >> 1


def drawn(select: Select, per_cycle: int, seed: int) -> bool:
    """Whether the members are those that the table gives: who tells it cannot choose among its names at will.

    Whether the table is true (who is alive, how far, how long not drawn) a peer cannot tell. After a restart they are
    some of those drawn. Cycle 0, the common start, is everybody's.
    """
    if select.count != (per_cycle if select.cycle else len(select.names)):
        return False
    fair = draw(seed, select.table)
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


def shares(select: Select) -> dict[str, float]:
    """What each name counts for, summing to 1: alike, or by its examples."""
    weights = select.examples or (1.0,) * len(select.names)
    total = sum(weights)
    return {name: weight / total for name, weight in zip(select.names, weights, strict=True)}


def model_weights(select: Select) -> dict[str, float]:
    """The factor of each member's model in the ring's plain mean: 1, or n n_k / sum(n_k) over the members."""
    if not select.examples:
        return dict.fromkeys(select.members, 1.0)
    share = shares(select)
    total = sum(share[name] for name in select.members)
    return {name: len(select.members) * share[name] / total for name in select.members}


def delta_weights(select: Select, how: Counting) -> dict[str, float]:
    """The factor of each member's delta, of one cycle at the mean number of steps, in the ring's plain mean.

    "once": n b_k, b_k the share among all peers. Who is not drawn keeps its delta until it is, and then all of it
    enters: over any draws whatever each local step of each peer enters once, by b_k (conserved, hence the mean over all
    peers). "inverse": n b_k / P_k with P_k the chance of being drawn, for deltas per step that do not grow while they
    wait: the expectation over the draw is the mean over all peers (Horvitz & Thompson, 1952).
    """
    share, n = shares(select), len(select.members)
    if how == "once":
        return {name: n * share[name] for name in select.members}
    chance = chances(select.table)
    return {name: n * share[name] / chance[name] for name in select.members}


def covering(
    select: Select, widths: Widths, peers: Sequence[str], size: int, rule: Literal["models", "deltas"]
) -> Cover | None:
    """What travels in the ring of `select` over a model of `size`, and what its sums are divided by.

    `peers`: the roster, in which peer i has what client i has. A coordinate's mean is over those that have it: of
    models over the members; of deltas, each of which is a share of all peers', by the share of all that have it.
    """
    place = {name: number for number, name in enumerate(peers)}
    members, n = [place[name] for name in select.members], float(len(select.members))
    of_models = rule == "models"
    among = members if of_models else [place[name] for name in select.names]
    cover = widths.cover(members, among, size)
    if cover is None:
        return None
    factors = model_weights(select) if of_models else {name: n * share for name, share in shares(select).items()}
    return behind_of(cover, widths, {place[name]: factor for name, factor in factors.items()}, n)


def step_factor(select: Select, steps: int, cycles: int, how: Counting) -> float:
    """What brings a delta of `steps` local steps in `cycles` cycles to the agreed number of steps per cycle.

    FedNova's normalised average (Wang et al., NeurIPS 2020, equation 3) with plain SGD. "once" keeps the cycles.
    """
    return select.mean_steps / max(steps, 1) * (cycles if how == "once" else 1)


def unit(
    select: Select,
    told: Mapping[str, float],
    cycles: Mapping[str, float],
    rule: Literal["models", "deltas"],
    how: Counting,
) -> float:
    """The unit of the ring's sums, from the largest weight, or change per step, that each name `told`.

    `cycles`: how many of them a name's delta is made of.
    """
    if rule == "models":
        weights = model_weights(select)
        found = [told[name] * weights.get(name, 1.0) for name in select.names]
    else:
        weights = delta_weights(select, how)
        found = [told[name] * weights[name] * select.mean_steps * cycles[name] for name in select.members]
    largest = max((one for one in found if isfinite(one)), default=0.0)
    return step_of(select.wire, largest or 1.0, max(len(select.members), 1))


def peak(vector: F32) -> float:
    """The largest absolute value; nan where there is one."""
    return float(np.abs(vector).max(initial=np.float32(0)))
