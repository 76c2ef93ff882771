"""DepthFL: clients train the first stages of a net with exits (Kim, Yu, Kim & Moon, ICLR 2023, alg. 1).

What a client can hold is how deep its sub-model is; every exit is a classifier, and those of one client learn from one
another. The net and its loss are the job's: `submodels(exits(chain, after, example), [Level(depth=1), ...],
loss=exit_loss(distil=1.0))`. Departures: the paper trains with FedDyn's regulariser and an auxiliary bottleneck in the
deeper classifiers; here it is FedAvg, and a classifier is one linear layer.
"""

from __future__ import annotations

from typing import Unpack

from fieldfare.aggregate.chain import Chain, chain, coverage
from fieldfare.algorithms.fedavg import Common, FedAvg
from fieldfare.core.effects import On
from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings


@settings
def DepthFL(rounds: int, cohort: int | On, *, server: Chain = chain(coverage()), **common: Unpack[Common]) -> FedAvg:
    """FedAvg of nets cut behind an exit: `view=family.view()` of levels with a depth; without a view FedAvg itself."""
    levels = getattr(common.get("view"), "levels", ())
    if any(getattr(level, "rate", 1.0) != 1.0 for level in levels):
        raise UsageError("DepthFL(view=...) has levels of fewer channels: use levels such as Level(depth=1).")
    return FedAvg(rounds, cohort, server=server, name="depthfl", **common)
