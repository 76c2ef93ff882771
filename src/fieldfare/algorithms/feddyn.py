"""FedDyn (Acar et al., "Federated learning based on dynamic regularization", ICLR 2021, alg. 1).

Clients add alpha (w - w_global) - h_i to every gradient and keep h_i <- h_i - alpha (w_end - w_global); the server
keeps h, the mean of all h_i, so that the only fixed point is the optimum of the common objective.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from fieldfare.aggregate.chain import Chain, chain, mean
from fieldfare.algorithms.fedavg import Common, FedAvg
from fieldfare.core.effects import On
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Fold, Folded
from fieldfare.core.local import Dynamic
from fieldfare.core.settings import settings


@dataclass(frozen=True, slots=True)
class Dynamics:
    """h <- h - alpha |S|/N mean(delta); u = mean(delta) - h / alpha (alg. 1, last two lines, with delta = w_i - w)."""

    alpha: float

    def init(self, size: int) -> NDArray[np.float32]:
        return np.zeros(size, np.float32)

    def folds(self) -> Mapping[str, Fold]:
        return {}

    def inputs(self, state: NDArray[np.float32]) -> Mapping[str, Any]:
        return {}

    def combine(
        self, delta: Folded, event: Gathered, state: NDArray[np.float32], share: float
    ) -> tuple[Folded, NDArray[np.float32]]:
        moved = np.asarray(delta.value, np.float32)
        h = state.copy()
        h -= np.float32(self.alpha * share) * moved
        return Folded(moved - h / np.float32(self.alpha), delta.weight), h


@settings
def FedDyn(
    rounds: int, cohort: int | On, *, alpha: float = 0.1, server: Chain = chain(mean(weighted=False)),
    **common: Unpack[Common],
) -> FedAvg:  # fmt: skip
    """FedDyn with regularisation `alpha` > 0; the mean is unweighted, as in the paper. Client slot "h" of P floats."""
    if not alpha > 0:
        raise UsageError(f"FedDyn(alpha={alpha}): the regularisation is a positive number.")
    return FedAvg(
        rounds, cohort, server=server, local=(Dynamic(alpha),), name="feddyn", slot="h", rule=Dynamics(alpha), **common
    )
