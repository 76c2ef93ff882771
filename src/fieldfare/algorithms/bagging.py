"""Bagging of trees: every client adds trees to the common model, and the server appends them all.

Breiman, "Bagging predictors", Machine Learning 1996, on boosted trees as Flower's FedXgbBagging (2023) has it: clients
boost the model they were sent and reply with their new trees only. Departures: Flower appends each client's trees at
full weight, so that a round takes one step per client; here a tree's leaves are multiplied by its client's share of
the examples (`average=False` is Flower's), so that a round is the mean of the clients' steps. Flower takes one
iteration of a reply and calls every tree one of class 0; here all iterations and classes are kept.

Here: the rounds. Not here: the merge of XGBoost's models (`aggregate.trees`) and training, a function for `opaque`.
Invariant: as in FedAvg, one `Run` is in flight, and any event but its answer leaves the state as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fieldfare.aggregate.trees import MergeTrees
from fieldfare.algorithms.fedavg import as_on, check_rounds
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, On, Publish, Run, Stop
from fieldfare.core.errors import PeerError, UsageError
from fieldfare.core.events import Event, Gathered, Started
from fieldfare.core.folds import Collect
from fieldfare.core.params import Params
from fieldfare.core.quorum import ALL, Everyone, Quorum, Sample
from fieldfare.core.settings import settings

_TREES = MergeTrees()


class Merge(Protocol):
    """Frozen data with a pure call: the model with what clients sent added to it, in order of client."""

    def __call__(self, model: bytes, updates: Mapping[int, bytes], weights: Mapping[int, float]) -> bytes:
        """`PeerError` names the client whose update is not what it should be."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """`version` rounds are merged into `model`, `asked` were asked; a reply was last `reply_bytes` on average."""

    model: Params
    version: int = 0
    asked: int = 0
    reply_bytes: int = 0


@settings
@dataclass(frozen=True, slots=True)
class Bagging:
    """`rounds` rounds over `cohort` (as in `FedAvg`) of a model of bytes that grows by what clients send as `leaf`.

    Round r = 1, 2, ... runs `work` with `config={"round": r, "reply_bytes": ...}` (the last from round 2, a mean, by
    which a simulator costs the replies) and randomness of key ("train", r); then `merge` makes the
    next model and version r is published. A round nobody answered publishes the model unchanged. A reply that cannot be
    merged ends the run with a `PeerError` that names client and round.
    """

    rounds: int
    cohort: int | Sample | Everyone | NDArray[np.int64] | tuple[str, ...]
    merge: Merge = _TREES
    quorum: Quorum = ALL
    work: str = "train"
    leaf: str = "trees"
    name: str = "bagging"

    def __post_init__(self) -> None:
        check_rounds(self.name, self.rounds, self.on, self.quorum)

    @property
    def on(self) -> On:
        """The cohort as a `Run` names it."""
        return as_on(self.cohort)

    def init(self, model: Params) -> State:
        if model.size:
            raise UsageError(
                f"{self.name} grows a model of bytes and got {model.size} numbers: use opaque(train, init=b''), or an "
                "algorithm that averages, such as FedAvg."
            )
        return State(model)

    def step(self, state: State, event: Event, ctx: Context) -> tuple[State, Sequence[Effect]]:
        match event:
            case Started() if state.asked == 0:
                return self._ask(state)
            case Gathered(tag=tag) if state.version < state.asked == tag:
                state = self._merge(state, event)
                publish = Publish(state.model, state.version)
                if state.version == self.rounds:
                    return state, (publish, Stop("rounds"))
                state, run = self._ask(state)
                return state, (publish, *run)
            case _:
                return state, ()

    def _ask(self, state: State) -> tuple[State, Sequence[Effect]]:
        r = state.version + 1
        config = {"round": r}
        if state.reply_bytes:
            config["reply_bytes"] = state.reply_bytes
        run = Run(
            self.work, self.on, r, state.model, self.quorum, {self.leaf: Collect()}, config, key=("train", r)
        )  # fmt: skip
        return replace(state, asked=r), (run,)

    def _merge(self, state: State, event: Gathered) -> State:
        if not len(event.clients) or self.leaf not in event.output:
            return replace(state, version=state.asked)
        updates: Mapping[int, bytes] = event.output[self.leaf].value
        weights = dict(zip(list(event.clients), event.weights.tolist(), strict=True))
        try:
            merged = self.merge(state.model.opaque, updates, weights)
        except PeerError as error:
            raise PeerError(error.client, f"round {state.asked}", error.reason) from None
        size = sum(map(len, updates.values())) // len(updates)
        model = Params(state.model.vector, state.model.layout, state.model.sides, merged)
        return replace(state, model=model, version=state.asked, reply_bytes=size)
