"""FedAvg with a robust rule in place of the mean: FedMedian, FedTrimmedMean, Krum and multi-Krum.

The rules and their papers are in `aggregate.robust`. They need every row at the server, so they exclude secure
aggregation, and a cohort's rows must fit `max_bytes`.
"""

from __future__ import annotations

from typing import Unpack

from fieldfare.aggregate.chain import RowRule, chain
from fieldfare.aggregate.optimise import scale
from fieldfare.aggregate.robust import krum, median, mixed, trimmed_mean
from fieldfare.algorithms.fedavg import Common, FedAvg
from fieldfare.core.effects import On
from fieldfare.core.settings import settings


@settings
def FedMedian(rounds: int, cohort: int | On, *, lr: float = 1.0, mix: int = 0, **common: Unpack[Common]) -> FedAvg:
    """The median of each coordinate (Yin et al., ICML 2018); `mix` > 0 mixes neighbours first against `mix` liars."""
    return _robust(median(), "fedmedian", rounds, cohort, lr, mix, common)


@settings
def FedTrimmedMean(
    rounds: int, cohort: int | On, *, fraction: float = 0.2, lr: float = 1.0, mix: int = 0, **common: Unpack[Common]
) -> FedAvg:
    """The mean of each coordinate without its `fraction` at each end (Yin et al., ICML 2018); `mix` as in FedMedian."""
    return _robust(trimmed_mean(fraction), "fedtrimmedmean", rounds, cohort, lr, mix, common)


@settings
def Krum(
    rounds: int, cohort: int | On, *, byzantine: int, keep: int = 1, lr: float = 1.0, mix: int = 0,
    **common: Unpack[Common],
) -> FedAvg:  # fmt: skip
    """The delta nearest its neighbours, or the mean of the `keep` nearest (Blanchard et al., NeurIPS 2017)."""
    return _robust(krum(byzantine, keep), "krum", rounds, cohort, lr, mix, common)


def _robust(rule: RowRule, name: str, rounds: int, cohort: int | On, lr: float, mix: int, common: Common) -> FedAvg:
    server = chain(mixed(rule, mix) if mix else rule, scale(lr))
    return FedAvg(rounds, cohort, server=server, name=name, **common)
