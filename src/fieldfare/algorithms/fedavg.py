"""Federated averaging: ask a cohort, fold the deltas, publish, again (McMahan et al., AISTATS 2017, alg. 1).

Here: the whole of a synchronous round, and the two seams its variants use: `server` (a chain: what happens to the
folded delta) and `rule` (for papers whose replies carry more than a delta). Not here: local training, which the
driver binds to the name `work` and which obeys the declarations in `local`.
Invariant: one `Run` is in flight until the last round; any event but its answer leaves the state as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from fieldfare.aggregate.chain import Chain, chain, mean
from fieldfare.algorithms.rule import Plain, Rule
from fieldfare.algorithms.start import own_started
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, On, Publish, Run, Scalar, Stop
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Gathered, Started
from fieldfare.core.local import Local
from fieldfare.core.params import Params, View, view_at
from fieldfare.core.quorum import ALL, Everyone, Quorum, Sample
from fieldfare.core.recipe import Recorded
from fieldfare.core.settings import settings

F32 = NDArray[np.float32]

_MEAN, _PLAIN = chain(mean()), Plain()


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """`version` rounds are folded into `model`, `asked` were asked; `population` counts all clients (0: unknown).

    `mean` float32 `[P]`: of the models so far, where that is what is published.
    """

    model: Params
    server: tuple[Any, ...]
    rule: Any
    version: int = 0
    asked: int = 0
    population: int = 0
    mean: F32 | None = None


@settings
@dataclass(frozen=True, slots=True)
class FedAvg(Recorded):
    """`rounds` rounds over `cohort`: a count, `Sample`, `Everyone`, int64 ids `[n]`, or names of nodes.

    Round r = 1, 2, ... runs `work` with `config={"round": r}` and randomness of key ("train", r), then publishes
    version r. A round nobody answered counts and publishes the model unchanged, so a run always ends. `slot` is the
    client-state slot the local declarations need; `view` gives every client a sub-model (with `coverage()`). `config`:
    more small scalars for the clients, as pairs, such as ("budget_s", 60.0): each does the steps it can in that time.
    `average`: what is published is not the model but a running mean of the models after every round, which keeps that
    share of the past (Polyak & Juditsky, 1992, with exponential weights: ours); clients go on with the model itself.
    `own_start`: sub-models start with weights as large as those of nets of their size, see `start.own_started`; not for
    a model that has learnt something already.
    """

    rounds: int
    cohort: int | Sample | Everyone | NDArray[np.int64] | tuple[str, ...]
    server: Chain = _MEAN
    quorum: Quorum = ALL
    local: tuple[Local, ...] = ()
    work: str = "train"
    name: str = "fedavg"
    slot: str | None = None
    rule: Rule = _PLAIN
    view: View | None = None
    config: tuple[tuple[str, Scalar], ...] = ()
    average: float = 0.0
    own_start: bool = False

    def __post_init__(self) -> None:
        check_rounds(self.name, self.rounds, self.on, self.quorum)
        if not 0 <= self.average < 1:
            raise UsageError(f"{self.name}(average={self.average}): a share of the past lies in [0, 1).")
        if self.own_start and not (
            hasattr(self.view, "levels") and getattr(getattr(self.view, "rule", None), "steady", True)
        ):
            raise UsageError(
                f"{self.name}(own_start=True) is for sub-models inside one another: give view=family.view(), whose "
                "levels keep the first channels, or leave it out."
            )

    @property
    def on(self) -> On:
        """The cohort as a `Run` names it."""
        return as_on(self.cohort)

    def init(self, model: Params) -> State:
        start = own_started(self.view, model) if self.own_start else model
        return State(start, self.server.init(model.size), self.rule.init(model.size))

    def step(self, state: State, event: Event, ctx: Context) -> tuple[State, Sequence[Effect]]:
        match event:
            case Started(devices=devices) if state.asked == 0:
                return self._ask(replace(state, population=devices))
            case Gathered(tag=tag) if state.version < state.asked == tag:
                state = self._fold(state, event)
                if self.average:
                    state = replace(state, mean=self._mean(state))
                shown = state.model if state.mean is None else state.model.replace(state.mean)
                publish = Publish(shown, state.version)
                if state.version == self.rounds:
                    return state, (publish, Stop("rounds"))
                state, run = self._ask(state)
                return state, (publish, *run)
            case _:
                return state, ()

    def _ask(self, state: State) -> tuple[State, Sequence[Effect]]:
        r = state.version + 1
        view = view_at(self.view, r, state.model)
        run = Run(
            self.work, self.on, r, state.model, self.quorum, {"delta": self.server.reduce(), **self.rule.folds()},
            {"round": r, **dict(self.config)}, self.rule.inputs(state.rule), view=view, state=self.slot,
            key=("train", r),
        )  # fmt: skip
        return replace(state, asked=r), (run,)

    def _mean(self, state: State) -> F32:
        """The mean with this round's model: plain over the first rounds, then with the share of the past."""
        if state.mean is None:
            return state.model.vector
        new = np.float32(max(1.0 - self.average, 1.0 / state.version))
        return np.asarray(state.mean + new * (state.model.vector - state.mean), np.float32)

    def _fold(self, state: State, event: Gathered) -> State:
        leaves = {"delta", *self.rule.folds()}
        accepted = len(event.clients)
        if accepted == 0 or not leaves <= event.output.keys():
            return replace(state, version=state.asked)
        drawn = isinstance(self.on, Sample | Everyone)
        everyone = state.population if drawn else cohort_size(self.on)
        delta = self.server.fold_rows(event.output["delta"])
        delta, rule = self.rule.combine(delta, event, state.rule, accepted / max(everyone or 0, accepted))
        update, server = self.server.update(delta, state.server)
        model = state.model.replace(state.model.vector + update)
        return replace(state, model=model, server=server, rule=rule, version=state.asked)


def as_on(cohort: int | On) -> On:
    """A cohort as a `Run` names it: a count is a `Sample`."""
    return Sample(cohort) if isinstance(cohort, int) else cohort


def check_rounds(name: str, rounds: int, on: On, quorum: Quorum) -> None:
    """Refuse rounds that are none, and a quorum that their cohort can never meet."""
    if rounds < 1:
        raise UsageError(f"{name}(rounds={rounds}): a run has at least one round; use rounds >= 1.")
    size, need = cohort_size(on), quorum.need
    if size is not None and need is not None and need > size:
        raise UsageError(f"Quorum(need={need}) can never be met by {size} clients: use need <= {size}.")


def cohort_size(on: On) -> int | None:
    """How many clients `on` asks, or None when only the population knows (`Everyone`)."""
    match on:
        case Sample(count):
            return count
        case Everyone():
            return None
        case _:
            return len(on)


class Common(TypedDict, total=False):
    """What every variant of `FedAvg` passes on to it."""

    quorum: Quorum
    work: str
    view: View | None
    own_start: bool
