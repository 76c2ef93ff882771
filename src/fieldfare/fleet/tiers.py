"""Tiers: devices of like speed work together, so that no round waits for a device much slower than the others.

Chai et al., "TiFL: A Tier-based Federated Learning System", HPDC 2020. Here: tiers by predicted seconds, and the choice
of a tier, fixed or adaptive. Invariant: tiers are as equal in size as can be, whatever the times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings
from fieldfare.fleet.pool import F64, I64, Draw, Pool, Reported, State, lowest

_TIER, _WITHIN = range(2)


def tiers_of(seconds: F64, tiers: int) -> I64:
    """The tier of each device `[m]`, 0 the fastest: equal shares by rank of `seconds`, equal times by position.

    >>> import numpy as np
    >>> tiers_of(np.array([9.0, 1.0, 5.0, 2.0]), 2).tolist()
    [1, 0, 1, 0]
    """
    out = np.empty(len(seconds), np.int64)
    out[np.argsort(seconds, kind="stable")] = np.arange(len(seconds)) * tiers // max(1, len(seconds))
    return out


@settings
@dataclass(frozen=True, slots=True)
class Tiers:
    """Each ask takes one tier, drawn by `probabilities` (fastest first; None: all alike), then devices of it alike.

    `adaptive` (Algorithm 2 of the paper): every `every` rounds, when the tier last drawn did no better than `every`
    rounds before, the n tiers with credits left are ranked from the worst, and the i-th worst gets the probability
    (n - i) / (n (n - 1) / 2). `credits`: how often each tier may be drawn (None: without limit); who
    are a part of a cohort cost that part of a credit.

    Our departures. Tiers are quantiles of the predicted seconds of the candidates of this ask; the paper profiles all
    clients, and makes tiers again from time to time. "Better" is a lower mean of the last training losses told by a
    tier's candidates, where the paper has the accuracy on the tier's test data; a tier nobody told of ranks worst. A
    tier smaller than the cohort is filled from the next faster one, and so on, then from slower ones: the round then
    takes no longer than the tier drawn as long as that is possible. Out of credits, all tiers may be drawn again.
    """

    tiers: int = 5
    probabilities: tuple[float, ...] | None = None
    adaptive: bool = True
    every: int = 20
    credits: int | None = None

    name: ClassVar[str] = "tiers"
    reads: ClassVar[frozenset[str]] = frozenset({"seconds"})

    def __post_init__(self) -> None:
        if self.tiers < 1 or self.every < 1 or (self.credits is not None and self.credits < 1):
            raise UsageError(
                f"Tiers(tiers={self.tiers}, every={self.every}, credits={self.credits}): "
                "use whole numbers of at least 1."
            )
        given = self.probabilities
        if given is not None and (
            len(given) != self.tiers or min(given) < 0 or not np.isclose(sum(given), 1.0, atol=1e-6)
        ):
            raise UsageError(
                f"Tiers(probabilities={given}): give one probability per tier, {self.tiers} in all, that add up to 1."
            )

    def init(self, n: int) -> State:
        """The last loss told by each device `[n]` (nan: none), and columns per tier."""
        shares = self.probabilities or (1.0 / self.tiers,) * self.tiers
        return {
            "loss": np.full(n, np.nan, np.float32), "probabilities": np.array(shares, np.float64),
            "credits": np.full(self.tiers, np.inf if self.credits is None else self.credits, np.float64),
            "past": np.full(self.tiers, np.nan), "tier": -1, "looked": 1,
        }  # fmt: skip

    def choose(self, state: State, count: int, pool: Pool, draw: Draw) -> tuple[I64, State]:
        """`count` ids of one tier as far as it reaches, ascending; cost O(m log m) in the number of candidates."""
        pool.serve(self, count)
        if count == 0:
            return pool.ids[:0], state
        assert pool.seconds is not None
        tier = tiers_of(pool.seconds, self.tiers)
        sizes = np.bincount(tier, minlength=self.tiers)
        if self.adaptive and pool.round - state["looked"] >= self.every:
            self._look(state, self._losses(state, pool.ids, tier), pool.round)
        drawn = self._draw_tier(state, sizes, draw(_TIER, np.zeros(1, np.int64))[0])
        away = np.where(tier <= drawn, drawn - tier, tier)  # nearest first, all faster ones before any slower one
        picked = lowest(away, count, draw(_WITHIN, pool.ids))
        state["tier"] = drawn
        state["credits"][drawn] = max(0.0, round(state["credits"][drawn] - pool.part, 9))
        return pool.ids[picked], state

    def observe(self, state: State, reported: Reported) -> State:
        """The losses told with updates that counted."""
        told = reported.ok & np.isfinite(reported.loss)
        state["loss"][reported.ids[told]] = reported.loss[told]
        return state

    def _losses(self, state: State, ids: I64, tier: I64) -> F64:
        """Mean last loss of each tier `[tiers]`; nan where nobody told one."""
        loss = state["loss"][ids]
        known = np.isfinite(loss)
        total = np.bincount(tier[known], loss[known], self.tiers)
        told = np.bincount(tier[known], minlength=self.tiers)
        return np.divide(total, told, out=np.full(self.tiers, np.nan), where=told > 0)

    def _look(self, state: State, loss: F64, round: int) -> None:
        """New probabilities when the tier last drawn did no better than at the last look."""
        last: int = state["tier"]
        if last >= 0 and loss[last] >= state["past"][last]:  # false where either loss is not known
            left: I64 = np.flatnonzero(state["credits"] > 0)
            worst = left[np.argsort(-np.nan_to_num(loss[left], nan=np.inf), kind="stable")]
            n = len(worst)
            state["probabilities"][:] = 0.0
            if n:
                state["probabilities"][worst] = np.arange(n - 1, -1, -1) / (n * (n - 1) / 2) if n > 1 else 1.0
        state["past"][:] = loss
        state["looked"] = round

    def _draw_tier(self, state: State, sizes: I64, uniform: float) -> int:
        """A tier with candidates and credits, by the probabilities; alike where those leave none."""
        share = np.where((sizes > 0) & (state["credits"] > 0), state["probabilities"], 0.0)
        if not share.any():
            share = ((sizes > 0) & (state["credits"] > 0)).astype(np.float64)
        if not share.any():
            share = np.where(sizes > 0, state["probabilities"], 0.0)
        if not share.any():
            share = (sizes > 0).astype(np.float64)
        edges = np.cumsum(share)
        drawn = int(np.count_nonzero(edges <= uniform * edges[-1]))
        return min(drawn, int(np.flatnonzero(share)[-1]))
