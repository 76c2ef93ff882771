"""What may be combined with what: a job that could only go wrong is refused before it starts, with the reason.

Every rule of the table is one function below, and reads declarations only: the fold, the local declarations, the
quorum, the slot. Not here: checks of a single value, which are made at construction.
Invariant: `check` never refuses a registered algorithm on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from fieldfare.aggregate.chain import RowRule
from fieldfare.aggregate.robust import Krum, Mixed
from fieldfare.algorithms.evaluate import innermost
from fieldfare.algorithms.fedavg import FedAvg, cohort_size
from fieldfare.algorithms.feddyn import Dynamics
from fieldfare.algorithms.fednova import Normalise
from fieldfare.algorithms.qfedavg import Fairness
from fieldfare.algorithms.rule import Plain
from fieldfare.algorithms.scaffold import Variates
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Collect, Coverage, Stack
from fieldfare.core.local import (
    ControlVariate,
    Dynamic,
    Fair,
    Frozen,
    Heads,
    Keep,
    LowRank,
    Nested,
    Normalised,
    Personal,
    Proximal,
    Pruned,
    Rounded,
    Scaled,
    Sent,
    Twin,
)
from fieldfare.core.params import Layout
from fieldfare.core.quorum import Quorum, Sample


class LocalTraining(Protocol):
    """The part of local training's settings that decides what may be combined."""

    @property
    def optimizer(self) -> str: ...

    @property
    def momentum(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Demand:
    """What a local declaration asks of the rest: a client-state slot, a rule at the server, an optimiser.

    `momentum`: whether the client's SGD may have it. `moments`: whether the optimiser must have some.
    """

    by: str
    slot: str | None = None
    rule: type[Any] = Plain
    sgd: bool = False
    momentum: bool = True
    moments: bool = False


DEMANDS: dict[type[Any], Demand] = {
    Proximal: Demand("FedProx"),
    ControlVariate: Demand("Scaffold", "c", Variates, sgd=True, momentum=False),
    Dynamic: Demand("FedDyn", "h", Dynamics),
    Normalised: Demand("FedNova", None, Normalise, sgd=True),
    Fair: Demand("QFedAvg", None, Fairness, sgd=True),
    Personal: Demand("FedPer", "personal"),
    Twin: Demand("Ditto", "twin"),
    Keep: Demand("keep_optimizer", "optimizer", moments=True),
    **{kind: Demand(kind.__name__) for kind in (Scaled, Nested, Rounded, LowRank, Pruned, Frozen)},
    Heads: Demand("masked_heads"),
    Sent: Demand("compress"),
}


def check(
    algorithm: Any, *, training: LocalTraining | None = None, layout: Layout | None = None, clients: int | None = None,
    secure: bool = False, deployed: bool = False,
) -> None:  # fmt: skip
    """Refuse with a `UsageError` what cannot work; what is not passed is not checked.

    `algorithm` may be wrapped. `training`: settings of the local work. `layout`: the model's. `clients`: size of the
    population. `secure`: replies are masked (secure aggregation). `deployed`: clients are real and may never answer.
    An algorithm that folds stale replies says so with an attribute `folds_late = True`.
    """
    inner = innermost(algorithm)
    quorum = getattr(inner, "quorum", None)
    if isinstance(quorum, Quorum):
        _check_quorum(inner, quorum, deployed)
    if not isinstance(inner, FedAvg):
        return
    _check_cohort(inner, clients)
    _check_local(inner)
    _check_view(inner)
    _check_heads(inner)
    if training is not None:
        _check_optimizer(inner, training)
    if layout is not None:
        _check_names(inner, layout)
    if secure:
        _check_secure(inner)


def _check_quorum(algorithm: Any, quorum: Quorum, deployed: bool) -> None:
    name = getattr(algorithm, "name", type(algorithm).__name__)
    if quorum.late == "next" and not getattr(algorithm, "folds_late", False):
        raise UsageError(f"{name} does not fold stale replies: use Quorum(late='drop'), or an asynchronous algorithm.")
    if deployed and quorum.deadline_s is None:
        raise UsageError(f"{name} would wait for ever for a client that left: give Quorum(deadline_s=...).")


def _check_cohort(algorithm: FedAvg, clients: int | None) -> None:
    on = algorithm.on
    if clients is not None and isinstance(on, Sample) and on.count > clients:
        raise UsageError(f"Sample({on.count}) cannot be drawn from {clients} clients: use count <= {clients}.")
    need = algorithm.quorum.need or cohort_size(on) or clients
    liars, rows = _liars(algorithm.server.rule)
    if need is not None and need < rows:
        raise UsageError(
            f"{algorithm.name} against {liars} byzantine clients needs {rows} replies and gets {need}: "
            f"use a larger cohort or a smaller number of byzantine clients."
        )


def _check_local(algorithm: FedAvg) -> None:
    slots: list[str] = []
    rule: type[Any] = Plain
    for local in algorithm.local:
        demand = DEMANDS[type(local)]
        if demand.rule is not Plain and not isinstance(algorithm.rule, demand.rule):
            raise UsageError(
                f"{type(local).__name__} sends leaves that {algorithm.name} does not fold: use {demand.by}(...)."
            )
        rule = demand.rule if demand.rule is not Plain else rule
        slots += [demand.slot] if demand.slot else []
        slots += ["residual"] if isinstance(local, Sent) and local.feedback else []
    if rule is Plain and not isinstance(algorithm.rule, Plain):
        name = type(algorithm.rule).__name__
        raise UsageError(f"{algorithm.name} folds by {name}, but no local declaration makes clients send its leaves.")
    if len(slots) > 1:
        raise UsageError(
            f"{algorithm.name} keeps {' and '.join(slots)} in client state: one ask has one slot, so use one of them."
        )
    if slots and algorithm.slot != slots[0]:
        raise UsageError(f"{algorithm.name}(slot={algorithm.slot!r}): its local declarations keep {slots[0]!r}.")


def _check_view(algorithm: FedAvg) -> None:
    if algorithm.view is None:
        return
    if algorithm.slot not in (None, "residual") or not isinstance(algorithm.rule, Plain):
        raise UsageError(
            f"{algorithm.name} keeps, or replies with, more than a delta, of the whole model; it cannot be combined "
            "with sub-models: use FedAvg, or one made of it without."
        )
    if not isinstance(algorithm.server.fold, Coverage):
        fold = type(algorithm.server.fold).__name__
        raise UsageError(f"{algorithm.name}: {fold} cannot fold sub-models; use server=chain(coverage(), ...).")


def _check_heads(algorithm: FedAvg) -> None:
    if not any(isinstance(local, Heads) for local in algorithm.local):
        return
    if not isinstance(algorithm.server.fold, Coverage):
        fold = type(algorithm.server.fold).__name__
        raise UsageError(
            f"masked_heads({algorithm.name}): {fold} cannot leave out who lacks a class; use "
            "server=chain(coverage(), ...)."
        )
    if not isinstance(algorithm.rule, Plain):
        raise UsageError(
            f"masked_heads({algorithm.name}): its replies carry more than a delta, of all classes; use it with FedAvg, "
            "or one made of it without such leaves."
        )


def _check_optimizer(algorithm: FedAvg, training: LocalTraining) -> None:
    for local in algorithm.local:
        demand = DEMANDS[type(local)]
        if demand.sgd and training.optimizer != "sgd":
            raise UsageError(
                f"{algorithm.name} holds for SGD on the client, not {training.optimizer!r}: use optimizer='sgd'."
            )
        if not demand.momentum and training.momentum:
            raise UsageError(
                f"{algorithm.name} holds for plain SGD on the client, not momentum={training.momentum}: "
                f"use momentum=0 there, or momentum() at the server."
            )
        if demand.moments and training.optimizer == "sgd" and not training.momentum:
            raise UsageError(
                f"{algorithm.name} keeps the optimiser's moments and plain SGD has no slots to keep: use "
                f"Training(momentum=0.9) or optimizer='adam', or leave keep_optimizer(...) out."
            )


def _check_names(algorithm: FedAvg, layout: Layout) -> None:
    for local in algorithm.local:
        if isinstance(local, Personal) and layout.mask(local.names).all():
            raise UsageError(
                f"{algorithm.name}: every parameter is personal, so nothing is learned together; name fewer."
            )


def _check_secure(algorithm: FedAvg) -> None:
    for leaf, fold in {"delta": algorithm.server.reduce(), **algorithm.rule.folds()}.items():
        if isinstance(fold, Stack | Collect):
            raise UsageError(
                f"{algorithm.name} needs every client's {leaf!r} at the server, which secure aggregation hides: "
                f"use a mean, with clip() against large updates."
            )


def _liars(rule: RowRule | None) -> tuple[int, int]:
    """(byzantine clients a row rule is set against, replies it needs for that)."""
    match rule:
        case Krum(byzantine=f):
            return f, 2 * f + 3
        case Mixed(rule=within, byzantine=f):
            liars, rows = _liars(within)
            return max(f, liars), max(2 * f + 1, rows)
        case _:
            return 0, 1
