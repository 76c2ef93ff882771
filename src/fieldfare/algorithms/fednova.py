"""FedNova (Wang et al., "Tackling the objective inconsistency problem", NeurIPS 2020).

Clients that take more steps would pull the fixed point of FedAvg towards their own optimum. Each divides its delta
by the norm of its accumulated step weights, tau_i = ||a_i||_1, and the server multiplies the mean by one tau_eff.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from fieldfare.aggregate.chain import Chain, chain, mean
from fieldfare.algorithms.fedavg import Common, FedAvg
from fieldfare.core.effects import On
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Fold, Folded, Mean
from fieldfare.core.local import Normalised
from fieldfare.core.settings import settings


@dataclass(frozen=True, slots=True)
class Normalise:
    """u = tau_eff * mean(delta_i / tau_i), with tau_eff the weighted mean of tau_i (eq. 6 and sec. 4, default)."""

    weighted: bool = True

    def init(self, size: int) -> None:
        return None

    def folds(self) -> Mapping[str, Fold]:
        return {"tau": Mean(weighted=self.weighted, step=2.0**-16)}  # step counts are large, and need no fine step

    def inputs(self, state: None) -> Mapping[str, Any]:
        return {}

    def combine(self, delta: Folded, event: Gathered, state: None, share: float) -> tuple[Folded, None]:
        tau = np.float32(np.ravel(event.output["tau"].value)[0])
        return Folded(np.asarray(delta.value, np.float32) * tau, delta.weight), None


@settings
def FedNova(rounds: int, cohort: int | On, *, server: Chain = chain(mean()), **common: Unpack[Common]) -> FedAvg:
    """FedNova; with equal local steps it is FedAvg. tau is averaged with weights if `server` folds with weights."""
    rule = Normalise(not isinstance(server.fold, Mean) or server.fold.weighted)
    return FedAvg(rounds, cohort, server=server, local=(Normalised(),), name="fednova", rule=rule, **common)
