"""q-FedAvg (Li et al., "Fair resource allocation in federated learning", ICLR 2020, alg. 2).

Clients with a large loss count more: client i sends F**q L (w_end - w) and h_i = q F**(q-1) ||L (w_end - w)||**2
+ L F**q, with F its loss at the global model plus 1e-10 and L = 1 / lr; the server adds mean(delta) / mean(h).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from fieldfare.aggregate.chain import chain, mean
from fieldfare.aggregate.optimise import scale
from fieldfare.algorithms.fedavg import Common, FedAvg
from fieldfare.core.effects import On
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Fold, Folded, Mean
from fieldfare.core.local import Fair
from fieldfare.core.settings import settings


@dataclass(frozen=True, slots=True)
class Fairness:
    """u = mean(delta) / mean(h) (alg. 2, last line: sum over sum); 0 when every h is 0."""

    step: float = 2.0**-24

    def init(self, size: int) -> None:
        return None

    def folds(self) -> Mapping[str, Fold]:
        return {"h": Mean(weighted=False, step=self.step)}

    def inputs(self, state: None) -> Mapping[str, Any]:
        return {}

    def combine(self, delta: Folded, event: Gathered, state: None, share: float) -> tuple[Folded, None]:
        h = float(np.ravel(event.output["h"].value)[0])
        factor = np.float32(1.0 / h if h > 0 else 0.0)
        return Folded(np.asarray(delta.value, np.float32) * factor, delta.weight), None


@settings
def QFedAvg(rounds: int, cohort: int | On, *, q: float = 1.0, lr: float = 1.0, **common: Unpack[Common]) -> FedAvg:
    """q-FedAvg; `q=0` is FedAvg without weights, a larger `q` evens the losses out. `lr` is a server rate (paper: 1).

    The replies scale with L F**q, so they are summed in steps of 2**-36 (delta) and 2**-24 (h), our reading of how
    much range a loss to the power q needs: values up to 3e4 and 1e8 are accepted.
    """
    if not q >= 0:
        raise UsageError(f"QFedAvg(q={q}): the power of the loss is a number >= 0.")
    server = chain(mean(weighted=False, step=2.0**-36), scale(lr))
    return FedAvg(rounds, cohort, server=server, local=(Fair(q),), name="qfedavg", rule=Fairness(), **common)
