"""Nested training, ours: a client's own sub-model and those inside it train together, and learn from one another.

After FjORD (ordered dropout with self-distillation, Horvath et al., NeurIPS 2021, section 3.3), the sandwich of widths
of slimmable networks (Yu & Huang, ICCV 2019, section 3), mutual distillation (DepthFL, Kim et al., ICLR 2023, eq. 4)
and FedAvgM (Hsu, Qi & Brown, 2019, section 4.3). Every local step takes the client's own sub-model and, in turn, one
of the smaller widths inside it, so that each stays a model in its own right, whoever trains. The own learns from labels
and from the smaller one, which more clients have: what few train then agrees with what many do. (FjORD's way round, the
smaller from the own, is there as `distil`; on digits it cost the whole net a point or more.) The server's momentum is
longer for a weight that few clients have, and what is published is a running mean, for one round's clients are few.
With `own_start` every width begins as a net of its size would, and learns as early as that. Where a client is bound by
activations rather than by weights, give the view levels of less depth.
"""

from __future__ import annotations

from typing import Unpack

from fieldfare.aggregate.chain import chain, coverage
from fieldfare.aggregate.optimise import patient, scale
from fieldfare.algorithms.fedavg import Common, FedAvg
from fieldfare.algorithms.heterofl import steady
from fieldfare.core.effects import On
from fieldfare.core.local import Nested
from fieldfare.core.settings import settings


@settings
def NestedFL(
    rounds: int, cohort: int | On, *, shares: tuple[float, ...] = (), back: float = 0.4, distil: float = 0.0,
    temperature: float = 2.0, weight: float = 1.0, beta: float = 0.7, power: float = 0.25, average: float = 0.9,
    lr: float = 1.0, **common: Unpack[Common],
) -> FedAvg:  # fmt: skip
    """FedAvg of nested sub-models that teach one another: `view=family.view()`, `shares` all widths there are.

    `back`: the part of an own net's loss that is what the smaller one says; `distil`: the other way round;
    `temperature`, `weight`: see `core.local.Nested`. Without `shares` clients train their own width alone.
    `beta`, `power`: the server's momentum, see `patient`; `lr`: its step; `average`, `own_start` (for a model that has
    learnt nothing yet): see `FedAvg`.
    """
    steady("NestedFL", common.get("view"), True, "family.view(), which keeps the first channels")
    local = (Nested(shares, distil, temperature, weight, "turn", back),) if shares else ()
    server = chain(coverage(), patient(beta, power), scale(lr))
    return FedAvg(rounds, cohort, server=server, local=local, name="nestedfl", average=average, **common)
