"""Declared changes to local training: what an algorithm wants of `work`, as data any adapter or device can obey.

Every one is an affine correction of the local gradient, g <- m * (g + a_i + mu * (w - r_i)), with a state update at
the end. `work.train` computes them; algorithms only name them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


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


Local: TypeAlias = Proximal | ControlVariate | Dynamic | Normalised | Fair | Personal | Twin | Keep
