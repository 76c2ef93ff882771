"""Clients that go on with their optimiser where they left it, under `FedAvg` and all that is made of it.

Here: the declaration that asks for it. Not here: the moments, which local training takes and gives, and where they are
kept between asks, which is the driver's. Invariant: the server's side of the algorithm is as it was.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fieldfare.algorithms.fedavg import FedAvg
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Keep
from fieldfare.core.settings import settings


@settings
def keep_optimizer(algorithm: Any) -> FedAvg:
    """`algorithm` with clients that keep momentum, or Adam's moments and count of steps, from ask to ask.

    Client slot "optimizer" of P floats (momentum) or 2P + 1 (Adam), zero for a new client; nothing more travels.
    Without it every ask begins with moments of zero. A kept optimiser is no model: `Evaluation(personal=True)` measures
    the model sent. Errors: an algorithm with client state of its own, or one not made
    of `FedAvg`.

    >>> keep_optimizer(FedAvg(rounds=10, cohort=5)).slot
    'optimizer'
    """
    if not isinstance(algorithm, FedAvg):
        raise UsageError(
            f"keep_optimizer({type(algorithm).__name__}): give FedAvg, or one made of it such as FedAdam or FedProx."
        )
    if algorithm.slot is not None:
        raise UsageError(
            f"keep_optimizer({algorithm.name}): it keeps {algorithm.slot!r} in client state and one ask has one slot: "
            "use FedAvg, FedAdam, FedProx or another without."
        )
    return replace(algorithm, local=(*algorithm.local, Keep()), slot="optimizer")
