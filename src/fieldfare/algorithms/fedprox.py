"""FedProx (Li et al., "Federated optimization in heterogeneous networks", MLSys 2020, alg. 2).

A declaration only: clients add mu (w - w_global) to every gradient. Departure: the paper lets clients work
inexactly (gamma) and averages without weights; here the steps are the local training's, and the weights FedAvg's.
"""

from __future__ import annotations

from typing import Unpack

from fieldfare.aggregate.chain import Chain, chain, mean
from fieldfare.algorithms.fedavg import Common, FedAvg
from fieldfare.core.effects import On
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Proximal
from fieldfare.core.settings import settings


@settings
def FedProx(
    rounds: int, cohort: int | On, *, mu: float = 0.01, server: Chain = chain(mean()), **common: Unpack[Common]
) -> FedAvg:
    """FedAvg whose clients are pulled to the global model by `mu` / 2 ||w - w_global||**2; `mu=0` is FedAvg itself."""
    if not mu >= 0:
        raise UsageError(f"FedProx(mu={mu}): the pull to the global model is a number >= 0.")
    local = (Proximal(mu),) if mu else ()
    return FedAvg(rounds, cohort, server=server, local=local, name="fedprox", **common)
