"""FedOpt: an optimiser on the server (FedAdam, FedYogi, FedAdagrad), and FedAvgM, its ancestor.

Reddi et al., "Adaptive federated optimization", ICLR 2021, alg. 2; Hsu, Qi & Brown, "Measuring the effects of
non-identical data distribution", 2019. Each is `FedAvg` with another chain: the mathematics is in
`aggregate.optimise`. No bias correction, and v starts at tau**2, as in the paper. With a `view` of sub-models
each acts on coordinates that somebody had, and leaves the moments of the others as they are.
"""

from __future__ import annotations

from typing import Unpack

from fieldfare.aggregate.chain import Chain, chain, coverage, mean
from fieldfare.aggregate.optimise import adagrad, adam, momentum, scale, yogi
from fieldfare.algorithms.fedavg import Common, FedAvg
from fieldfare.core.effects import On
from fieldfare.core.folds import Coverage, Mean
from fieldfare.core.settings import settings


@settings
def FedAvgM(
    rounds: int, cohort: int | On, *, lr: float = 1.0, beta: float = 0.9, nesterov: bool = False,
    weighted: bool = True, **common: Unpack[Common],
) -> FedAvg:  # fmt: skip
    """FedAvg with server momentum: v <- beta v + mean(delta), w <- w + lr v."""
    return _with(chain(_fold(weighted, common), momentum(beta, nesterov), scale(lr)), "fedavgm", rounds, cohort, common)


@settings
def FedAdam(
    rounds: int, cohort: int | On, *, lr: float = 0.1, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3,
    weighted: bool = True, **common: Unpack[Common],
) -> FedAvg:  # fmt: skip
    """Adam on the server; `lr` is the paper's eta, tuned there per task, `tau` its adaptivity."""
    return _with(chain(_fold(weighted, common), adam(b1, b2, tau), scale(lr)), "fedadam", rounds, cohort, common)


@settings
def FedYogi(
    rounds: int, cohort: int | On, *, lr: float = 0.1, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3,
    weighted: bool = True, **common: Unpack[Common],
) -> FedAvg:  # fmt: skip
    """Yogi on the server: a second moment that grows additively, so that one large round is forgotten slowly."""
    return _with(chain(_fold(weighted, common), yogi(b1, b2, tau), scale(lr)), "fedyogi", rounds, cohort, common)


@settings
def FedAdagrad(
    rounds: int, cohort: int | On, *, lr: float = 0.1, b1: float = 0.0, tau: float = 1e-3,
    weighted: bool = True, **common: Unpack[Common],
) -> FedAvg:  # fmt: skip
    """Adagrad on the server: a second moment that only grows."""
    return _with(chain(_fold(weighted, common), adagrad(b1, tau), scale(lr)), "fedadagrad", rounds, cohort, common)


def _fold(weighted: bool, common: Common) -> Mean | Coverage:
    """A mean; with sub-models of each coordinate over those who had it, and optimisers act where somebody had it."""
    return mean(weighted) if common.get("view") is None else coverage(weighted)


def _with(server: Chain, name: str, rounds: int, cohort: int | On, common: Common) -> FedAvg:
    return FedAvg(rounds, cohort, server=server, name=name, **common)
