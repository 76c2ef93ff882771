"""Personalised models: parts kept on the device (FedPer, FedRep, FedBN) and a second model there (Ditto).

Declarations only: `work.train` keeps the personal tensors, or the twin, in client state and sends a delta that is
zero where it is personal. So the server is FedAvg, and its model's personal part stays at its starting value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from fieldfare.aggregate.chain import Chain, chain, mean
from fieldfare.algorithms.fedavg import Common, FedAvg
from fieldfare.core.effects import On
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Personal, Twin
from fieldfare.core.settings import settings


@settings
def FedPer(
    rounds: int, cohort: int | On, *, personal: Sequence[str], server: Chain = chain(mean()), **common: Unpack[Common]
) -> FedAvg:
    """The named tensors (a prefix names a layer) stay on the device (Arivazhagan et al., 2019, alg. 1).

    Client slot "personal" of their floats. Departure: whole vectors travel and are counted, though the paper sends the
    shared part alone: the personal part of the model sent is not used, and that of the delta is zero.
    """
    return _kept("fedper", rounds, cohort, personal, 0, server, common)


@settings
def FedRep(
    rounds: int, cohort: int | On, *, personal: Sequence[str], head_epochs: int = 1, server: Chain = chain(mean()),
    **common: Unpack[Common],
) -> FedAvg:  # fmt: skip
    """FedPer that trains the head alone for `head_epochs` first, then the body (Collins et al., ICML 2021, alg. 1).

    Whole vectors travel, as with FedPer.
    """
    if head_epochs < 1:
        raise UsageError(
            f"FedRep(head_epochs={head_epochs}): the head trains alone at least once; without, use FedPer."
        )
    return _kept("fedrep", rounds, cohort, personal, head_epochs, server, common)


@settings
def FedBN(
    rounds: int, cohort: int | On, *, norms: Sequence[str], server: Chain = chain(mean()), **common: Unpack[Common]
) -> FedAvg:
    """Normalisation layers stay on the device (Li et al., ICLR 2021, alg. 1); `norms` names them.

    Departures: whole vectors travel, as with FedPer; and what stays are the learnt scale and shift alone: a BatchNorm
    that keeps running statistics is refused, as those are no parameters and are not kept per client. Use one with
    `track_running_stats=False` (it normalises by the batch, also when measured), or GroupNorm or LayerNorm.
    """
    return _kept("fedbn", rounds, cohort, norms, 0, server, common)


@settings
def Ditto(
    rounds: int, cohort: int | On, *, lam: float = 1.0, server: Chain = chain(mean()), **common: Unpack[Common]
) -> FedAvg:
    """Each device trains a second model of its own, pulled to the global one by `lam` (Li et al., ICML 2021, alg. 1).

    The global model is FedAvg's, bit for bit. Client slot "twin" of P floats.
    """
    if not lam >= 0:
        raise UsageError(f"Ditto(lam={lam}): the pull to the global model is a number >= 0.")
    return FedAvg(rounds, cohort, server=server, local=(Twin(lam),), name="ditto", slot="twin", **common)


def _kept(
    name: str, rounds: int, cohort: int | On, names: Sequence[str], head_epochs: int, server: Chain, common: Common
) -> FedAvg:
    if isinstance(names, str) or not names:
        raise UsageError(f"{name}: personal tensors were given as {names!r}; pass a list of names such as ['head'].")
    local = (Personal(tuple(names), head_epochs),)
    return FedAvg(rounds, cohort, server=server, local=local, name=name, slot="personal", **common)
