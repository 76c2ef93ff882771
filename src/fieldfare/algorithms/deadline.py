"""Rounds that do not wait for everybody: over-selection with a deadline, tiers of like speed, cut-off times.

Each is `FedAvg` with another quorum, sample or config: the mathematics of the round is the same. Not here: rounds
without rounds (`fedbuff`, `fedasync`).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, Unpack

from fieldfare.aggregate.chain import Chain, chain, mean
from fieldfare.algorithms.fedavg import Common, FedAvg
from fieldfare.core.effects import On, Scalar
from fieldfare.core.errors import UsageError
from fieldfare.core.params import View
from fieldfare.core.quorum import Quorum, Sample
from fieldfare.core.settings import settings


@settings
def SemiSync(
    rounds: int, cohort: int, *, over: float = 1.3, deadline_s: float | None = None, timeout_s: float | None = None,
    by: Any = "uniform", where: str | None = None, server: Chain = chain(mean()), work: str = "train",
    view: View | None = None,
) -> FedAvg:  # fmt: skip
    """FedAvg that asks `over` times `cohort` clients and takes the first `cohort` replies, or those by the deadline.

    Bonawitz et al., "Towards federated learning at scale", MLSys 2019, section 9 (130 % are asked). Late replies are
    thrown away. A deadline that passes ends the round with what there is; the paper drops rounds with too few.
    """
    if not isinstance(cohort, int):  # type: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"SemiSync(cohort={cohort!r}): give the number of replies a round takes.")
    if not over >= 1.0:
        raise UsageError(f"SemiSync(over={over}): clients asked for each reply wanted; use a number >= 1.")
    on = Sample(ceil(round(over * cohort, 9)), where, by)
    return FedAvg(
        rounds, on, server, Quorum(cohort, deadline_s, timeout_s=timeout_s), work=work, name="semisync", view=view
    )


@settings
def TiFL(
    rounds: int, cohort: int, *, tiers: Any = "tiers", server: Chain = chain(mean()), **common: Unpack[Common]
) -> FedAvg:
    """FedAvg whose cohorts are clients of like speed (Chai et al., "TiFL", HPDC 2020).

    `tiers`: a rule `fieldfare.fleet.selection.Tiers(...)`, or its name for five tiers, adaptive. See there for our
    departures.
    """
    return FedAvg(rounds, Sample(cohort, by=tiers), server=server, name="tifl", **common)


@settings
def CutOff(
    rounds: int, cohort: int | On, *, budget_s: float | None = None, by_class: Mapping[str, float] | None = None,
    server: Chain = chain(mean()), **common: Unpack[Common],
) -> FedAvg:  # fmt: skip
    """FedAvg whose clients stop training in time: each does the steps that fit into `budget_s`, at least one.

    The cut-off tau per class of processor of Beutel et al., "Flower", 2020, section 5.3: `by_class` gives classes of
    the fleet budgets of their own. Ours counts transfers into the budget (over links that change at
    their mean rate, so a task may take longer or shorter), and stops at whole steps.
    """
    given = dict(by_class or {})
    for what, seconds in [("budget_s", budget_s), *given.items()]:
        if seconds is not None and not seconds > 0:
            raise UsageError(f"CutOff({what}={seconds}): a budget is a positive number of seconds.")
    if budget_s is None and not given:
        raise UsageError("CutOff: give budget_s=, or by_class={class: seconds}.")
    config: list[tuple[str, Scalar]] = [] if budget_s is None else [("budget_s", float(budget_s))]
    config += [(f"budget_s:{kind}", float(seconds)) for kind, seconds in given.items()]
    return FedAvg(rounds, cohort, server=server, name="cutoff", config=tuple(config), **common)
