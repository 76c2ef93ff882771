"""Oort: devices by what their data teach and how fast they are, with some never asked before in every round.

Lai, Zhu, Madhyastha & Chowdhury, "Oort: Efficient Federated Learning via Guided Participant Selection", OSDI 2021.
Here: its training selector. Not here: its testing selector. Invariant: a device is explored once an update counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings
from fieldfare.fleet.pool import F64, I64, Draw, Pool, Reported, State, lowest, weighted

_EXPLOIT, _EXPLORE, _ROUNDING, _BARRED = range(4)


@settings
@dataclass(frozen=True, slots=True)
class Oort:
    """Exploits devices of high utility, explores the others by speed (Algorithm 1 of the paper).

    The utility of device i in round R, last heard of in round L(i):

        Util(i) = (stat(i) + sqrt(0.1 ln R / L(i))) * (T / t(i))^penalty where t(i) > T,
        stat(i) = |B_i| sqrt(mean of squared losses), clipped at quantile `clip`.

    (1 - epsilon) K devices are drawn by probability among those above `cutoff` times the K-th utility; the other
    epsilon K among the never explored; epsilon = `exploration` `exploration_decay`^(R - 1), not below
    `exploration_min`. When the summed utility of the last `pace_rounds` rounds is below that of as many before, the
    preferred time T is raised. A device is left out after `most_times` updates (None: never). `fairness` f in 0..1
    blends (1 - f) Util(i) with f times how much less often than the most used i has taken part.

    Our departures. A run tells the mean loss, not the losses: |B_i| times that mean stands for |B_i| sqrt(mean loss^2),
    and a loss not told for the mean of those told beside it. As in the authors' code, stat is scaled to 0..1 over the
    candidates before the bonus is added, and T is a quantile of their times: `pace`, raised by `pace_step` until all
    are fast enough (T in seconds in the paper). t(i) is the last time taken, or predicted for the unexplored. The
    shares are rounded at random, so that a cohort of one explores too. Exploring draws in proportion to 1 / t(i) (our
    reading of "by speed"). Where too few candidates are not left out, those used least fill the cohort.
    """

    exploration: float = 0.9
    exploration_decay: float = 0.98
    exploration_min: float = 0.2
    cutoff: float = 0.95
    clip: float = 0.95
    penalty: float = 2.0
    pace: float = 0.3
    pace_step: float = 0.05
    pace_rounds: int = 20
    most_times: int | None = None
    fairness: float = 0.0

    name: ClassVar[str] = "oort"
    reads: ClassVar[frozenset[str]] = frozenset({"seconds"})

    def __post_init__(self) -> None:
        for setting in ("exploration", "exploration_min", "fairness", "pace_step", "cutoff"):
            if not 0.0 <= getattr(self, setting) <= 1.0:
                raise UsageError(f"Oort({setting}={getattr(self, setting)}): use a share from 0 to 1.")
        for setting in ("exploration_decay", "clip", "pace"):
            if not 0.0 < getattr(self, setting) <= 1.0:
                raise UsageError(f"Oort({setting}={getattr(self, setting)}): use a share above 0, at most 1.")
        if not 0.0 <= self.penalty < np.inf:
            raise UsageError(f"Oort(penalty={self.penalty}): use a finite exponent not below 0.")
        if self.pace_rounds < 1 or (self.most_times is not None and self.most_times < 1):
            raise UsageError(
                f"Oort(pace_rounds={self.pace_rounds}, most_times={self.most_times}): use whole numbers of at least 1."
            )

    def init(self, n: int) -> State:
        """Columns `[n]` of 16 bytes a device, and the pacer."""
        return {
            "utility": np.zeros(n, np.float32), "seconds": np.zeros(n, np.float32), "round": np.zeros(n, np.int32),
            "times": np.zeros(n, np.int32), "pace": float(self.pace), "window": 0, "summed": 0.0, "before": -1.0,
        }  # fmt: skip

    def explored_share(self, round: int) -> float:
        """The epsilon of round `round`: the share of the cohort for devices never explored.

        >>> Oort().explored_share(1), Oort().explored_share(1000)
        (0.9, 0.2)
        """
        decayed = self.exploration * self.exploration_decay ** (round - 1)
        return max(decayed, min(self.exploration, self.exploration_min))

    def choose(self, state: State, count: int, pool: Pool, draw: Draw) -> tuple[I64, State]:
        """`count` ids of the pool, ascending; cost O(m) in the number of candidates."""
        pool.serve(self, count)
        usable = self._usable(state, count, pool, draw)
        ids, seconds = pool.ids[usable], self._seconds(state, pool)
        preferred = self._preferred(state["pace"], seconds)
        seconds = seconds[usable]
        heard = state["round"][ids] > 0
        explored, fresh = np.flatnonzero(heard), np.flatnonzero(~heard)
        share = 1.0 - self.explored_share(pool.round)
        exploit = int(np.floor(count * share + draw(_ROUNDING, np.zeros(1, np.int64))[0]))
        exploit = max(min(exploit, count, len(explored)), count - len(fresh))
        picked = explored
        if exploit < len(explored):
            util = self._utility(state, ids[explored], seconds[explored], preferred, pool.round)
            picked = explored[self._exploit(util, exploit, draw(_EXPLOIT, ids[explored]))]
        new = weighted(1.0 / np.maximum(seconds[fresh], 1e-9), count - exploit, draw(_EXPLORE, ids[fresh]))
        return np.sort(np.concatenate([ids[picked], ids[fresh[new]]])), state

    def observe(self, state: State, reported: Reported) -> State:
        """Utilities, times and counts of the devices whose update counted; then the pacer."""
        ok = reported.ok
        ids, loss = reported.ids[ok], reported.loss[ok]
        known = np.isfinite(loss)
        loss = np.where(known, loss, loss[known].mean() if known.any() else 1.0)
        utility = reported.examples[ok] * np.maximum(loss, 0.0)
        state["utility"][ids] = utility
        state["seconds"][ids] = reported.seconds[ok]
        state["round"][ids] = reported.round
        state["times"][ids] += 1
        window = (reported.round - 1) // self.pace_rounds
        if window > state["window"]:
            if state["before"] > state["summed"]:
                state["pace"] = min(1.0, state["pace"] + self.pace_step)
            state["before"], state["summed"], state["window"] = state["summed"], 0.0, int(window)
        state["summed"] += float(utility.sum())
        return state

    def _usable(self, state: State, count: int, pool: Pool, draw: Draw) -> I64:
        """Positions of the candidates not left out; where they are too few, the `count` used least."""
        if self.most_times is None:
            return np.arange(pool.size)
        times = state["times"][pool.ids]
        usable = np.flatnonzero(times < self.most_times)
        return usable if len(usable) >= count else lowest(times, count, draw(_BARRED, pool.ids))

    def _seconds(self, state: State, pool: Pool) -> F64:
        assert pool.seconds is not None
        taken: F64 = state["seconds"][pool.ids].astype(np.float64)
        unknown = taken <= 0
        taken[unknown] = pool.seconds[unknown]
        return taken

    def _preferred(self, pace: float, seconds: F64) -> float:
        """T: seconds within which the share `pace` of the candidates is done."""
        if pace >= 1.0 or not len(seconds):
            return np.inf
        return _quantile(seconds, pace)

    def _utility(self, state: State, ids: I64, seconds: F64, preferred: float, round: int) -> F64:
        stat = state["utility"][ids].astype(np.float64)
        top, bottom = _quantile(stat, self.clip), 0.999 * stat.min()
        util = (np.minimum(stat, top) - bottom) / max(top - bottom, 1e-9)
        util += np.sqrt(0.1 * np.log(round) / state["round"][ids])
        slow = seconds > preferred
        util[slow] *= (preferred / seconds[slow]) ** self.penalty
        if self.fairness:
            times = state["times"][ids]
            util = (1.0 - self.fairness) * util + self.fairness * (1.0 - times / max(1, times.max()))
        return util

    def _exploit(self, util: F64, count: int, uniform: F64) -> I64:
        """`count` draws in proportion to utility among those above the cut-off."""
        if count == 0:
            return np.empty(0, np.int64)
        kth = np.partition(util, len(util) - count)[len(util) - count]
        high = np.flatnonzero(util >= self.cutoff * kth)
        return high[weighted(util[high], count, uniform[high])]


def _quantile(values: F64, share: float) -> float:
    """The least of `values` that a `share` of them does not exceed."""
    at = max(0, math.ceil(round(len(values) * share, 6)) - 1)
    return float(np.partition(values, at)[at])
