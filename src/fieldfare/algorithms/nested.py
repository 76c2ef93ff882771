"""Nested training, ours: clients train all sub-models inside their own, and the server is patient where few report.

After FjORD (ordered dropout with self-distillation, Horvath et al., NeurIPS 2021, section 3.3), slimmable networks'
sandwich of widths (Yu & Huang, ICCV 2019, section 3) and FedAvgM (Hsu, Qi & Brown, 2019, section 4.3). Every local step
takes the client's widest sub-model and, beside it, all smaller widths inside, which learn from labels and from the
widest: so the small ones stay models in their own right, whoever trains. The server's momentum is longer for a weight
that few clients have: its mean is of fewer deltas, and noisier. Where a client is bound by activations rather than by
weights, give the view levels of less depth.
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
    rounds: int, cohort: int | On, *, shares: tuple[float, ...] = (), distil: float = 0.5, temperature: float = 2.0,
    weight: float = 0.5, beta: float = 0.5, power: float = 0.5, lr: float = 1.0, **common: Unpack[Common],
) -> FedAvg:  # fmt: skip
    """FedAvg of nested sub-models that teach one another: `view=family.view()`, `shares` all widths there are.

    `distil`, `temperature`, `weight`: of the smaller widths in a client's loss, see `core.local.Nested`; without
    `shares` clients train their own width alone (for nets that are not declared, such as `nn.Module`s). `beta`,
    `power`: the server's momentum, see `patient`; `lr`: its step.
    """
    steady("NestedFL", common.get("view"), True, "family.view(), which keeps the first channels")
    local = (Nested(shares, distil, temperature, weight, "all"),) if shares else ()
    server = chain(coverage(), patient(beta, power), scale(lr))
    return FedAvg(rounds, cohort, server=server, local=local, name="nestedfl", **common)
