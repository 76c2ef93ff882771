"""HeteroFL and FedRolex: every client trains a sub-model it can hold, and coordinates are averaged over who had them.

Diao, Ding & Tarokh, "HeteroFL: computation and communication efficient federated learning for heterogeneous clients",
ICLR 2021, alg. 1: the first channels of every layer. Alam, Liu, Yan & Zhang, "FedRolex: model-heterogeneous federated
learning with rolling sub-model extraction", NeurIPS 2022, alg. 1: a window of channels that moves on every round.
Which channels a client has is in the `view`, which is made of the net: `submodels(net, levels).view(rule)`.
Departures: coordinates are averaged by number of examples, where HeteroFL counts every client once (`weighted=False`).
The loss over a client's own classes is the net's (`loss="masked_cross_entropy"`), static batch norm the module's.
"""

from __future__ import annotations

from typing import Unpack

from fieldfare.aggregate.chain import Chain, chain, coverage
from fieldfare.algorithms.fedavg import Common, FedAvg
from fieldfare.core.effects import On
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Scaled
from fieldfare.core.params import View
from fieldfare.core.settings import settings


@settings
def HeteroFL(
    rounds: int, cohort: int | On, *, scaled: bool = True, server: Chain = chain(coverage()), **common: Unpack[Common]
) -> FedAvg:
    """FedAvg of nested sub-models: `view=family.view()`, the first channels; without a view it is FedAvg itself.

    `scaled`: in training, outputs of a layer are divided by the share of it that a client has (section 3, "scaler"):
    of linear layers, convolutions (before the norm) and embeddings; of recurrent and attention layers as wholes is our
    reading. The whole net's are left as they are. In ours that helps while someone has the whole net, and harms where
    nobody has.
    """
    steady("HeteroFL", common.get("view"), True, "family.view(), which keeps the first channels")
    local = (Scaled(),) if scaled and common.get("view") is not None else ()
    return FedAvg(rounds, cohort, server=server, local=local, name="heterofl", **common)


@settings
def FedRolex(rounds: int, cohort: int | On, *, server: Chain = chain(coverage()), **common: Unpack[Common]) -> FedAvg:
    """FedAvg of sub-models that roll over the channels: `view=family.view(Rolling())`; without a view FedAvg itself."""
    steady("FedRolex", common.get("view"), False, "family.view(Rolling()), whose channels move on every round")
    return FedAvg(rounds, cohort, server=server, name="fedrolex", **common)


def steady(name: str, view: View | None, wanted: bool, use: str) -> None:
    """Refuse a view that keeps the same channels every round, or other ones, where the paper does not."""
    rule = getattr(view, "rule", None)
    if rule is not None and bool(getattr(rule, "steady", wanted)) != wanted:
        raise UsageError(f"{name}(view=...) by {type(rule).__name__}: use {use}.")
