"""Clients that train something smaller, or send less, under `FedAvg` and all that is made of it.

Here: wrappers that add a declaration to an algorithm. Not here: the arithmetic, which is local training's. Invariant:
the server's side of the algorithm is as it was, and what was not trained lifts to exactly zero.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fieldfare.algorithms.fedavg import FedAvg
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Frozen, Local, LowRank, Pruned, Rounded, Sent
from fieldfare.core.settings import settings


@settings
def compress(algorithm: Any, *, share: float = 1.0, bits: int = 32, feedback: bool | None = None) -> FedAvg:
    """`algorithm` with short replies: the `share` of a delta's numbers that are largest, in `bits` bits each.

    Numbers are rounded up or down by chance, with the right mean, on steps of the largest / (2**(bits - 1) - 1).
    `feedback` (default: where some numbers are left out): what did not travel is added to the client's next delta
    (Stich, Cordonnier & Jaggi, "Sparsified SGD with memory", NeurIPS 2018, alg. 1), in client slot "residual" of P
    floats; not with sub-models, whose deltas are of other weights every time. `compress(a, bits=8)` is int8,
    `compress(a, share=0.1)` top-k. Bytes up: numbers, their places, one scale.

    >>> compress(FedAvg(rounds=10, cohort=5), share=0.1).slot
    'residual'
    """
    back = share < 1 and getattr(algorithm, "view", None) is None if feedback is None else feedback
    return _with(algorithm, Sent(share, bits, back), "compress", "residual" if back else None)


@settings
def quantise(algorithm: Any, *, bits: int = 8) -> FedAvg:
    """`algorithm` whose clients are sent weights of `bits` bits, and take every gradient at weights rounded so.

    Straight-through: the gradient at the rounded weights moves full-precision ones (Bengio, Leonard & Courville, 2013);
    one scale per tensor, its largest value. The delta is theirs. Bytes down are `bits` / 32 of a model's.
    """
    return _with(algorithm, Rounded(bits), "quantise")


@settings
def low_rank(algorithm: Any, *, rank: int) -> FedAvg:
    """`algorithm` whose clients train factors of `rank` of every larger weight matrix (after FedHM, Yao et al., 2021).

    U V is the truncated SVD of the model sent; the delta is U'V' - UV, so what the factors cannot hold stays at the
    server. One rank for all clients. For declared nets, such as `mlp`.
    """
    return _with(algorithm, LowRank(rank), "low_rank")


@settings
def prune(algorithm: Any, *, share: float) -> FedAvg:
    """`algorithm` whose clients train the `share` of weights of largest magnitude, the others at zero.

    The mask is the model's, so all clients of a round have the same, and where it is not the server's weights stay.
    Saves bytes, not computing. For whole channels use a view of `TopNorm()`.
    """
    return _with(algorithm, Pruned(share), "prune")


@settings
def freeze(algorithm: Any, *, names: tuple[str, ...]) -> FedAvg:
    """`algorithm` whose clients leave the named tensors as they are, and do not send them back."""
    return _with(algorithm, Frozen(names), "freeze")


def _with(algorithm: Any, local: Local, name: str, slot: str | None = None) -> FedAvg:
    if not isinstance(algorithm, FedAvg):
        raise UsageError(
            f"{name}({type(algorithm).__name__}): give FedAvg, or one made of it such as FedAdam or HeteroFL."
        )
    if slot is not None and algorithm.slot is not None:
        raise UsageError(
            f"{name}({algorithm.name}): it keeps {algorithm.slot!r} in client state and one ask has one slot: use "
            "feedback=False, or an algorithm without."
        )
    if any(type(one) is type(local) for one in algorithm.local):
        raise UsageError(f"{name}({algorithm.name}): it does so already; wrap it once.")
    return replace(algorithm, local=(*algorithm.local, local), slot=slot or algorithm.slot)
