"""FedAsync: every reply is mixed into the model at once (Xie, Koyejo & Gupta, "Asynchronous federated optimization",
2019, alg. 1).

w <- (1 - a) w + a w_new with a = alpha s(tau), w_new the client's whole model. Not here: the `Run` (`fedbuff`).
Invariant: one `Run` is open until the last version; any event but its answer leaves the state as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fieldfare.algorithms.fedbuff import STALE, check_stream, stream_run
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Publish, Stop
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Gathered, Started
from fieldfare.core.folds import Mean
from fieldfare.core.local import Local, Proximal
from fieldfare.core.params import Params, View
from fieldfare.core.quorum import Quorum, Sample, Staleness
from fieldfare.core.settings import settings

_MEAN = Mean(weighted=False)


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """`version` replies were mixed into `model`; `asked` is the version that is being made."""

    model: Params
    version: int = 0
    asked: int = 0


@settings
@dataclass(frozen=True, slots=True)
class FedAsync:
    """`rounds` versions, one per reply, with `cohort` clients at work (a count, or a `Sample`).

    `alpha` in (0, 1]: the weight of a fresh reply. `stale`: s(tau), constant, polynomial or hinge (section 5.2 of the
    paper). `mu`: the clients' pull to the model they were sent (the paper's rho / 2). Departure: the model is folded in
    fixed point of 2**-32 on its way. Clients send whole models (leaf "model"), so a `view` of sub-models is refused.
    """

    rounds: int
    cohort: int | Sample
    alpha: float = 0.6
    stale: Staleness = STALE
    mu: float = 0.0
    timeout_s: float | None = None
    work: str = "train"
    name: str = "fedasync"
    view: View | None = None
    folds_late: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_stream(self.name, self.rounds, self.on, 1, self.local)
        if self.view is not None:
            raise UsageError(
                "FedAsync(view=...) mixes in whole models, one after the other, and a sub-model is none: use "
                "FedBuff(server=chain(coverage(weighted=False)), view=...)."
            )
        if not 0.0 < self.alpha <= 1.0:
            raise UsageError(f"FedAsync(alpha={self.alpha}): use a share above 0 and at most 1.")
        if not self.mu >= 0.0:
            raise UsageError(f"FedAsync(mu={self.mu}): the pull to the global model is a number >= 0.")

    @property
    def on(self) -> Sample:
        """The clients at work, as a `Run` names them."""
        return Sample(self.cohort) if isinstance(self.cohort, int) else self.cohort

    @property
    def local(self) -> tuple[Local, ...]:
        """What the clients' training declares."""
        return (Proximal(self.mu),) if self.mu else ()

    @property
    def quorum(self) -> Quorum:
        """One reply."""
        return Quorum(1, None, "next", True, self.stale, self.timeout_s)

    def init(self, model: Params) -> State:
        return State(model)

    def step(self, state: State, event: Event, ctx: Context) -> tuple[State, Sequence[Effect]]:
        match event:
            case Started() if state.asked == 0:
                return self._ask(state)
            case Gathered(tag=tag) if state.version < state.asked == tag:
                state = self._mix(state, event)
                publish = Publish(state.model, state.version)
                if state.version == self.rounds:
                    return state, (publish, Stop("rounds"))
                state, run = self._ask(state)
                return state, (publish, *run)
            case _:
                return state, ()

    def _ask(self, state: State) -> tuple[State, Sequence[Effect]]:
        v = state.version + 1
        run = stream_run(self.work, self.on, v, state.model, self.quorum, {"model": _MEAN}, reply="model")
        return replace(state, asked=v), (run,)

    def _mix(self, state: State, event: Gathered) -> State:
        new = event.output.get("model")
        if new is None or not len(event.clients):
            return replace(state, version=state.asked)
        a = np.float32(self.alpha * float(new.weight) / len(event.clients))
        vector = state.model.vector + a * (np.asarray(new.value, np.float32) - state.model.vector)
        return replace(state, model=state.model.replace(vector.astype(np.float32, copy=False)), version=state.asked)
