"""FjORD: ordered dropout, so that every prefix of the channels is a model (Horvath et al., NeurIPS 2021, alg. 1).

A client trains prefixes of unlike width, none wider than it can hold; smaller ones learn from its widest
(self-distillation, section 3.3). Departures: widths of a client's steps come in turn, where the paper draws each with
equal chance, and a distilled step trains the widest prefix beside the smaller one, as its teacher must learn too (our
reading). Nets that cannot train others inside them have widths drawn once a round, by a view of `MultiRate()`.
"""

from __future__ import annotations

from typing import Unpack

from fieldfare.aggregate.chain import Chain, chain, coverage
from fieldfare.algorithms.fedavg import Common, FedAvg
from fieldfare.algorithms.heterofl import steady
from fieldfare.core.effects import On
from fieldfare.core.local import Nested
from fieldfare.core.settings import settings


@settings
def FjORD(
    rounds: int, cohort: int | On, *, shares: tuple[float, ...] = (), distil: float = 0.0, temperature: float = 1.0,
    server: Chain = chain(coverage()), **common: Unpack[Common],
) -> FedAvg:  # fmt: skip
    """FedAvg of prefixes: `view=family.view()` says the widest a client can hold, `shares` the widths there are.

    With `distil` (the paper's alpha) a smaller prefix learns (1 - distil) from labels and distil from the widest.
    Without `shares` clients train what the view says: `family.view(MultiRate())` draws a width for every round.
    """
    steady("FjORD", common.get("view"), True, "family.view(), or family.view(MultiRate()) without shares")
    each = "turn" if distil else "only"
    local = (Nested(shares, distil, temperature, 1.0, each),) if shares else ()
    return FedAvg(rounds, cohort, server=server, local=local, name="fjord", **common)
