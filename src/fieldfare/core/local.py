"""Declared changes to local training: what an algorithm wants of `work`, as data any adapter or device can obey.

Every one is an affine correction of the local gradient, g <- m * (g + a_i + mu * (w - r_i)), with a state update at
the end; or a smaller thing to train in the model's place, or a shorter reply. `work.train` and `work.compress` compute
them; algorithms only name them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Proximal:
    """FedProx (Li et al., MLSys 2020, eq. 2): add mu (w - w_global) to every local gradient."""

    mu: float


@dataclass(frozen=True, slots=True)
class ControlVariate:
    """SCAFFOLD (Karimireddy et al., ICML 2020, alg. 1, option II): add c - c_i; state slot "c"."""


@dataclass(frozen=True, slots=True)
class Dynamic:
    """FedDyn (Acar et al., ICLR 2021, alg. 1): add alpha (w - w_global) - h_i; state slot "h"."""

    alpha: float


@dataclass(frozen=True, slots=True)
class Normalised:
    """FedNova (Wang et al., NeurIPS 2020, eq. 6): divide the delta by the norm of the accumulated step weights."""


@dataclass(frozen=True, slots=True)
class Fair:
    """q-FedAvg (Li et al., ICLR 2020, alg. 2): scale the delta by the q-th power of the loss at the global model."""

    q: float


@dataclass(frozen=True, slots=True)
class Personal:
    """Keep the named tensors on the device (FedPer, FedBN); with `head_epochs` train them first, alone (FedRep)."""

    names: tuple[str, ...]
    head_epochs: int = 0


@dataclass(frozen=True, slots=True)
class Twin:
    """Ditto (Li et al., ICML 2021, alg. 1): train a personal model beside the global one, pulled by lam."""

    lam: float


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep the local optimiser's moments and count of steps on the device between asks; state slot "optimizer".

    As a client that never stops training would; else they begin at zero with every ask, as in most papers.
    """


@dataclass(frozen=True, slots=True)
class Scaled:
    """HeteroFL (Diao et al., ICLR 2021, section 3): in training a cut layer's outputs are divided by its share kept."""


@dataclass(frozen=True, slots=True)
class Nested:
    """Train smaller sub-models inside the client's own: its first channels, as many as `shares` of the whole net has.

    `each`: "all" of them at every step beside the client's own; "turn": one of them, in turn; "only": one of them or
    the client's own, in turn, and nothing beside it. Their loss is `weight` times the mean over those of a step of
    (1 - distil) cross-entropy + distil T**2 KL(own || smaller), at `temperature` T; no gradient goes into the own.
    `back`: the own's loss is (1 - back) cross-entropy + back T**2 KL(smaller || own), of the mean of those of the step
    (with "only" there are none beside it, and it is the cross-entropy).
    """

    shares: tuple[float, ...]
    distil: float = 0.0
    temperature: float = 1.0
    weight: float = 1.0
    each: Literal["all", "turn", "only"] = "all"
    back: float = 0.0


@dataclass(frozen=True, slots=True)
class Rounded:
    """Weights of `bits` bits: the model is sent so, and every gradient is taken there (straight-through)."""

    bits: int


@dataclass(frozen=True, slots=True)
class LowRank:
    """Train factors of `rank` of every weight matrix of more; a truncated SVD of the model sent."""

    rank: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """Train the `share` of weights that are largest in the model sent, with all others at zero."""

    share: float


@dataclass(frozen=True, slots=True)
class Frozen:
    """Leave the named tensors as they are; they do not travel back."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Heads:
    """Cover a row of the head only where the client has its class among the examples it takes (HeteroFL's masked loss).

    `names`: the head's tensors, a row per class (all layers that end in the net's outputs, where none is named).
    """

    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sent:
    """How the delta travels: the `share` of numbers that are largest, in `bits` bits each (32: as they are).

    `feedback`: what was left out is added to the client's next delta; state slot "residual".
    """

    share: float = 1.0
    bits: int = 32
    feedback: bool = True


Local: TypeAlias = (
    Proximal | ControlVariate | Dynamic | Normalised | Fair | Personal | Twin | Keep
    | Scaled | Nested | Rounded | LowRank | Pruned | Frozen | Heads | Sent
)  # fmt: skip
