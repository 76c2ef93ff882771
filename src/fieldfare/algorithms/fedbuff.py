"""FedBuff: asynchronous training with a buffer (Nguyen et al., "Federated learning with buffered asynchronous
aggregation", AISTATS 2022, alg. 1).

`cohort` clients are always at work; whenever `buffer` of them have replied, the model takes a step. Here: the reducer
and the `Run` that both asynchronous algorithms ask with. Not here: who is at work and when replies come, which the
driver knows. Invariant: one `Run` is open until the last version; any event but its answer leaves the state as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from fieldfare.aggregate.chain import Chain, chain, mean
from fieldfare.aggregate.gather import FACTOR_STEPS, integers
from fieldfare.algorithms.rule import at_round
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Publish, Run, Scalar, Stop
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Gathered, Started
from fieldfare.core.folds import Coverage, Fold, Folded, Mean, Stack
from fieldfare.core.local import Frozen, Heads, Local, LowRank, Nested, Proximal, Pruned, Rounded, Scaled, Sent
from fieldfare.core.params import Params, View
from fieldfare.core.quorum import Quorum, Sample, Staleness
from fieldfare.core.settings import settings

_STATELESS = (Proximal, Nested, Scaled, Rounded, LowRank, Pruned, Frozen, Heads, Sent)
STALE, _MEAN = Staleness(), chain(mean(weighted=False))


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """`version` steps were taken by `model`; `asked` is the version that is being made."""

    model: Params
    server: tuple[Any, ...]
    version: int = 0
    asked: int = 0


@settings
@dataclass(frozen=True, slots=True)
class FedBuff:
    """`rounds` versions, each from `buffer` replies of `cohort` clients at work (a count, or a `Sample`).

    w <- w + (1 / K) sum of s(tau) delta, through the chain `server`; K is the number of replies folded. tau counts the
    versions made since the reply's own was sent; older ones than `stale.limit` are thrown away. Every reply counts once
    (as in the paper), or by its examples with `chain(mean(), ...)`. Departures: a reply that is refused is not made up
    for, and tau is that of the model when the client began, not when it was chosen. `timeout_s`: a client gives up
    then. `deadline_s`: the longest a version may take. `view`: a sub-model for every client, with `server=chain(
    coverage(weighted=False), ...)`: w_i <- w_i + S / n_i sum of s(tau) delta_i over the n_i that had i, weighted by s,
    where S is the mean of s over the buffer (our reading: the discount of a version is that of its whole buffer).
    """

    rounds: int
    cohort: int | Sample
    buffer: int = 10
    stale: Staleness = STALE
    server: Chain = _MEAN
    timeout_s: float | None = None
    deadline_s: float | None = None
    local: tuple[Local, ...] = ()
    work: str = "train"
    name: str = "fedbuff"
    view: View | None = None
    folds_late: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_stream(self.name, self.rounds, self.on, self.buffer, self.local, _STATELESS)
        if not isinstance(self.server.fold, Coverage) and any(isinstance(one, Pruned | Heads) for one in self.local):
            raise UsageError(
                f"{self.name}: clients of a buffer train different weights, which a mean cannot tell; use "
                "server=chain(coverage(weighted=False), ...), as prune(...) and masked_heads(...) do."
            )
        if self.view is not None and not isinstance(self.server.fold, Coverage):
            fold = type(self.server.fold).__name__
            raise UsageError(
                f"{self.name}: {fold} cannot fold sub-models; use server=chain(coverage(weighted=False), ...)."
            )
        if not isinstance(self.server.fold, Mean | Coverage) or self.server.fold.total:
            raise UsageError(
                f"{self.name}(server=...): stale replies are folded by a mean; use chain(mean(weighted=False), ...)."
            )
        if not self.server.fold.weighted and self.server.fold.weight_step != 1.0:
            raise UsageError(
                f"{self.name}: mean(weighted=False, weight_step={self.server.fold.weight_step:g}) counts every reply "
                "once: leave weight_step out."
            )

    @property
    def on(self) -> Sample:
        """The clients at work, as a `Run` names them."""
        return Sample(self.cohort) if isinstance(self.cohort, int) else self.cohort

    @property
    def quorum(self) -> Quorum:
        """The buffer."""
        return Quorum(self.buffer, self.deadline_s, "next", True, self.stale, self.timeout_s)

    def init(self, model: Params) -> State:
        return State(model, self.server.init(model.size))

    def step(self, state: State, event: Event, ctx: Context) -> tuple[State, Sequence[Effect]]:
        match event:
            case Started() if state.asked == 0:
                return self._ask(state)
            case Gathered(tag=tag) if state.version < state.asked == tag:
                state = self._fold(state, event)
                publish = Publish(state.model, state.version)
                if state.version == self.rounds:
                    return state, (publish, Stop("rounds"))
                state, run = self._ask(state)
                return state, (publish, *run)
            case _:
                return state, ()

    def _ask(self, state: State) -> tuple[State, Sequence[Effect]]:
        v = state.version + 1
        run = stream_run(self.work, self.on, v, state.model, self.quorum, {"delta": self.server.reduce()})
        if self.view is not None:
            run = replace(run, view=at_round(self.view, v, state.model))
        return replace(state, asked=v), (run,)

    def _fold(self, state: State, event: Gathered) -> State:
        delta = event.output.get("delta")
        if delta is None or not len(event.clients):
            return replace(state, version=state.asked)
        share = self._counted(event)
        if share != 1.0:
            delta = Folded(delta.value * type(delta.value[0])(share), delta.weight)
        update, server = self.server.update(delta, state.server)
        return replace(
            state, model=state.model.replace(state.model.vector + update), server=server, version=state.asked
        )

    def _counted(self, event: Gathered) -> float:
        """S, the mean of s(tau) over the buffer by weight: rounded as the fold rounds it."""
        fold, tau = self.server.fold, event.metrics.get("staleness")
        factor = None if tau is None else self.stale.factor(tau.astype(np.int64))
        if isinstance(fold, Stack) or factor is None or (factor == 1.0).all():
            return 1.0
        whole = event.weight if fold.weighted else float(len(event.clients))
        units = FACTOR_STEPS[fold.weighted] * (fold.weight_step if fold.weighted else 1.0)
        return float(integers(fold, event.weights, factor).sum() * units) / whole if whole > 0 else 0.0


def stream_run(
    work: str, on: Sample, version: int, model: Params, quorum: Quorum, reduce: dict[str, Fold], **config: Scalar
) -> Run:
    """The `Run` that makes version `version`, with randomness of key ("train", version)."""
    config = {"round": version, **config}
    return Run(work, on, version, model, quorum, reduce, config, key=("train", version))


def check_stream(
    name: str, rounds: int, on: Sample, buffer: int, local: tuple[Local, ...], may: tuple[type[Any], ...] = (Proximal,)
) -> None:
    """Refuse numbers that cannot be, and local declarations that keep client state."""
    if rounds < 1:
        raise UsageError(f"{name}(rounds={rounds}): a run makes at least one version; use rounds >= 1.")
    if buffer < 1:
        raise UsageError(f"{name}(buffer={buffer}): a version needs at least one reply; use buffer >= 1.")
    if not isinstance(on, Sample):  # type: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"{name}(cohort=...): give the number of clients at work, or a Sample.")
    other = [type(one).__name__ for one in local if not isinstance(one, may) or getattr(one, "feedback", False)]
    if other:
        known = ", ".join(one.__name__ for one in may)
        raise UsageError(
            f"{name}(local=...): {other[0]} needs rounds, or keeps client state; what works here is {known}, without "
            "feedback."
        )
