"""Clients that train something smaller, or send less, under `FedAvg` and all that is made of it.

Here: wrappers that add a declaration to an algorithm. Not here: the arithmetic, which is local training's. Invariant:
the server's side of the algorithm is as it was, and what was not trained lifts to exactly zero.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fieldfare.algorithms.fedavg import FedAvg
from fieldfare.algorithms.fedbuff import FedBuff
from fieldfare.algorithms.rule import Plain
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Coverage, Mean
from fieldfare.core.local import Frozen, Heads, Local, LowRank, Pruned, Rounded, Sent
from fieldfare.core.settings import settings


@settings
def compress(
    algorithm: Any, *, share: float = 1.0, bits: int = 32, feedback: bool | None = None
) -> FedAvg | FedBuff:  # fmt: skip
    """`algorithm` with short replies: the `share` of a delta's numbers that are largest, in `bits` bits each.

    Numbers are rounded up or down by chance, with the right mean, on steps of the largest / (2**(bits - 1) - 1).
    `feedback` (default: where some numbers are left out): what did not travel is added to the client's next delta
    (Stich, Cordonnier & Jaggi, "Sparsified SGD with memory", NeurIPS 2018, alg. 1), in client slot "residual" of P
    floats. A client of a sub-model uses and changes those of the weights it has this time; what it kept for others
    waits until it has them again (ours). Not in asynchronous runs, where a client begins again before it is known
    whether its last reply counted. `compress(a, bits=8)` is int8, `compress(a, share=0.1)` top-k. Bytes up: numbers,
    their places, one scale.

    >>> compress(FedAvg(rounds=10, cohort=5), share=0.1).slot
    'residual'
    """
    back = share < 1 and not isinstance(algorithm, FedBuff) if feedback is None else feedback
    return _with(algorithm, Sent(share, bits, back), "compress", "residual" if back else None)


@settings
def quantise(algorithm: Any, *, bits: int = 8) -> FedAvg | FedBuff:
    """`algorithm` whose clients are sent weights of `bits` bits, and take every gradient at weights rounded so.

    Straight-through: the gradient at the rounded weights moves full-precision ones (Bengio, Leonard & Courville, 2013);
    one scale per tensor, its largest value. The delta is theirs. Bytes down are `bits` / 32 of a model's.
    """
    return _with(algorithm, Rounded(bits), "quantise")


@settings
def low_rank(algorithm: Any, *, rank: int) -> FedAvg | FedBuff:
    """`algorithm` whose clients train factors of `rank` of every larger weight matrix (after FedHM, Yao et al., 2021).

    U V is the truncated SVD of the model sent; the delta is U'V' - UV, so what the factors cannot hold stays at the
    server. One rank for all clients; of a sub-model, factors are those of its own matrices. With `compress` it is the
    delta's numbers that travel, not the factors'.
    Of convolutions the matrix is `[outputs, inputs * places]`; layers of other kinds stay whole.
    """
    return _with(algorithm, LowRank(rank), "low_rank")


@settings
def prune(algorithm: Any, *, share: float) -> FedAvg | FedBuff:
    """`algorithm` whose clients train the `share` of weights of largest magnitude, the others at zero.

    The mask is that of the model sent (of a sub-model: of its weights), and each weight is averaged over the clients
    whose mask has it: a mean becomes `coverage()`, so that where nobody's has it weight and server state stay. Saves
    bytes, not computing. For whole channels use a view of `TopNorm()`.
    """
    return _with(_covering(algorithm), Pruned(share), "prune")


@settings
def freeze(algorithm: Any, *, names: tuple[str, ...]) -> FedAvg | FedBuff:
    """`algorithm` whose clients leave the named tensors as they are, and do not send them back.

    Of a sub-model, the parts of them that it has.
    """
    return _with(algorithm, Frozen(names), "freeze")


@settings
def masked_heads(algorithm: Any, *, names: tuple[str, ...] = ()) -> FedAvg | FedBuff:
    """`algorithm` that averages a row of the head over the clients alone that have its class.

    HeteroFL's masked loss (Diao et al., ICLR 2021, section 3) leaves the rows of classes a client lacks without a
    gradient; here their zeros do not count either: a mean becomes `coverage()`. A client has the classes of the
    examples it takes in this round's training. `names`: the head's tensors (default: all whose rows are the net's
    outputs). For nets with `loss="masked_cross_entropy"`: by another, rows of absent classes learn to stay low, and it
    is thrown away (on digits of two classes a client that cost nested training half its accuracy). Replies say which
    classes a client has, a bit for each: the server learns that.

    >>> masked_heads(FedAvg(rounds=10, cohort=5)).server.fold
    Coverage(weighted=True, step=2.3283064365386963e-10, weight_step=1.0, before=(), total=False)
    """
    return _with(_covering(algorithm), Heads(names), "masked_heads")


def _covering(algorithm: Any) -> Any:
    """`algorithm` with `coverage()` where it has a mean, else itself: who has trained a weight counts for it."""
    if not isinstance(algorithm, FedAvg | FedBuff):
        return algorithm
    fold = algorithm.server.fold
    if not isinstance(fold, Mean) or not isinstance(getattr(algorithm, "rule", Plain()), Plain):
        return algorithm
    server = replace(
        algorithm.server, fold=Coverage(fold.weighted, fold.step, fold.weight_step, fold.before, fold.total)
    )
    return replace(algorithm, server=server)


def _with(algorithm: Any, local: Local, name: str, slot: str | None = None) -> FedAvg | FedBuff:
    if isinstance(algorithm, FedBuff):
        if slot is not None:
            raise UsageError(
                f"{name}({algorithm.name}): what was left out is client state, and in an asynchronous run a client "
                "begins again before it is known whether its last reply counted: use feedback=False."
            )
    elif not isinstance(algorithm, FedAvg):
        raise UsageError(
            f"{name}({type(algorithm).__name__}): give FedAvg, or one made of it such as FedAdam or HeteroFL, or "
            "FedBuff."
        )
    elif slot is not None and algorithm.slot is not None:
        raise UsageError(
            f"{name}({algorithm.name}): it keeps {algorithm.slot!r} in client state and one ask has one slot: use "
            "feedback=False, or an algorithm without."
        )
    if any(type(one) is type(local) for one in algorithm.local):
        raise UsageError(f"{name}({algorithm.name}): it does so already; wrap it once.")
    if isinstance(algorithm, FedBuff):
        return replace(algorithm, local=(*algorithm.local, local))
    return replace(algorithm, local=(*algorithm.local, local), slot=slot or algorithm.slot)
