"""SCAFFOLD (Karimireddy et al., "Stochastic controlled averaging for federated learning", ICML 2020, alg. 1).

Clients correct every gradient by c - c_i and reply with the change of c_i beside the delta; the server keeps c.
Client updates of c_i are option II of the paper (`work.train`), which holds for plain SGD only.
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
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Fold, Folded, Mean
from fieldfare.core.local import ControlVariate
from fieldfare.core.settings import settings


@dataclass(frozen=True, slots=True)
class Variates:
    """The server's control variate c `[P]`, sent to all as input "c"; c <- c + |S|/N mean(c_i+ - c_i) (eq. 5)."""

    def init(self, size: int) -> NDArray[np.float32]:
        return np.zeros(size, np.float32)

    def folds(self) -> Mapping[str, Fold]:
        return {"dc": Mean(weighted=False)}

    def inputs(self, state: NDArray[np.float32]) -> Mapping[str, Any]:
        return {"c": state}

    def combine(
        self, delta: Folded, event: Gathered, state: NDArray[np.float32], share: float
    ) -> tuple[Folded, NDArray[np.float32]]:
        c = state.copy()
        c += np.float32(share) * np.asarray(event.output["dc"].value, np.float32)
        return delta, c


@settings
def Scaffold(
    rounds: int, cohort: int | On, *, server: Chain = chain(mean(weighted=False)), **common: Unpack[Common]
) -> FedAvg:
    """SCAFFOLD; for a server rate eta_g other than 1 use `server=chain(mean(weighted=False), scale(eta_g))`.

    Both means are unweighted, as in the paper. Twice FedAvg's bytes each way; client slot "c" of P floats.
    """
    return FedAvg(
        rounds, cohort, server=server, local=(ControlVariate(),), name="scaffold", slot="c", rule=Variates(), **common
    )
