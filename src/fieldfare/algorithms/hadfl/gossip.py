"""Averaging with neighbours and no coordinator at all, to measure HADFL against: pairs, pushes, or a fixed graph.

`Gossip` never waits for anybody's training: it averages with one random neighbour after every piece of its own, in
pairs as AD-PSGD does (Lian, Zhang, Zhang & Liu, ICML 2018, algorithm 1) or by pushing its model. `Graph` waits for its
neighbours, as D-PSGD does (Lian et al., NeurIPS 2017, algorithm 1). Invariant: an exchange of a pair, and a round of
`Graph`, leave the mean of all models as it was, up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from fieldfare.algorithms.hadfl.ring import F32
from fieldfare.core import rng
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Publish, Run, Send
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Gathered, Left, Received, Started
from fieldfare.core.folds import Stack
from fieldfare.core.params import Params


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """The sender's model after its training number `round`."""

    round: int
    vector: F32


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """Half the way from the asker's model to the answerer's, for the asker to go; the answerer went the other half."""

    round: int
    vector: F32


@dataclass(frozen=True, slots=True, eq=False)
class Took:
    """A pushed offer has come."""

    round: int


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A model, the model that the training under way `start`ed from, and what came from neighbours ahead of time.

    `offered`: the round of the offer, to `asked`, that is not answered yet, 0 for none.
    """

    model: Params
    peers: tuple[str, ...] = ()
    round: int = 0
    start: Params | None = None
    waiting: bool = False
    inbox: Mapping[tuple[int, str], F32] = field(default_factory=dict[tuple[int, str], F32])
    offered: int = 0
    asked: str = ""


def _check(name: str, rounds: int, steps: int, every: int) -> None:
    if min(rounds, steps, every) < 1:
        raise UsageError(f"{name}(rounds={rounds}, steps={steps}, every={every}): use numbers >= 1.")


def _train(state: State, ctx: Context, work: str, steps: int, lr: float) -> tuple[State, Sequence[Effect]]:
    """The next piece of training, on this node's own device."""
    r = state.round + 1
    config = {"steps": steps, "lr": lr, "round": r, "reply": "model"}
    run = Run(
        work, (ctx.me,), ("train", r), state.model, reduce={"model": Stack()}, config=config,
        key=("gossip", ctx.me, r),
    )  # fmt: skip
    return replace(state, round=r, start=state.model), (run,)


def _learnt(state: State, event: Gathered) -> State:
    """What the training has changed is added to the model, which may have moved meanwhile."""
    got = event.output.get("model")
    if got is None or state.start is None or not len(event.clients):
        return replace(state, start=None)
    if state.model is state.start:
        return replace(state, model=state.model.replace(np.array(got.value[0], np.float32)), start=None)
    moved: F32 = (state.model.vector + (got.value[0] - state.start.vector)).astype(np.float32)
    return replace(state, model=state.model.replace(moved), start=None)


def _published(state: State, me: str, every: int, evaluate: tuple[str, ...]) -> tuple[Effect, ...]:
    """The first peer's own model (nobody holds the mean of all), every so many rounds."""
    due = me == state.peers[0] and state.round % every == 0
    return (Publish(state.model, state.round, evaluate),) if due else ()


@dataclass(frozen=True, slots=True)
class Gossip:
    """`rounds` times `steps` local steps at `lr`, each followed by an average with a random neighbour, without waiting.

    `how`: "pair" (both go to the middle, as AD-PSGD) or "push" (only the receiver does). In pairs, as in the paper, the
    peers in even places ask and those in odd places answer: were both to ask at once they would change places instead
    of meeting, and over slow links diverge. A peer that asks trains one piece meanwhile, then waits.
    One that pushes has one push on its way at most and trains on meanwhile. The first peer publishes its own model
    `every` so many rounds, with the central evaluations `evaluate`.
    """

    rounds: int
    steps: int = 1
    lr: float = 0.1
    how: Literal["pair", "push"] = "pair"
    every: int = 1
    work: str = "train"
    evaluate: tuple[str, ...] = ()
    messages: ClassVar[Offer | Share | Took | None] = None

    def __post_init__(self) -> None:
        _check("Gossip", self.rounds, self.steps, self.every)

    def init(self, model: Params) -> State:
        return State(model)

    def step(self, state: State, event: Event, ctx: Context) -> tuple[State, Sequence[Effect]]:
        match event:
            case Started(roster=roster) if not state.peers:
                state = replace(state, peers=roster["peer"])
                return _train(state, ctx, self.work, self.steps, self.lr)
            case Gathered(tag=("train", int(r))) if r == state.round and state.start is not None:
                state = _learnt(state, event)
                if state.offered and self.how == "pair":
                    return replace(state, waiting=True), ()
                return self._exchange(state, ctx)
            case Received(src, Offer(r, vector)) if src in state.peers and vector.shape == state.model.vector.shape:
                half: F32 = ((vector - state.model.vector) * np.float32(0.5)).astype(np.float32)
                answer = Share(r, -half) if self.how == "pair" else Took(r)
                return replace(state, model=state.model.replace(state.model.vector + half)), (Send(src, answer),)
            case Received(src, Share(r, half)) if src in state.peers and half.shape == state.model.vector.shape:
                state = replace(state, model=state.model.replace(state.model.vector + half))
                return self._answered(state, ctx) if r == state.offered else (state, ())
            case Received(src, Took(r)) if src in state.peers and r == state.offered:
                return self._answered(state, ctx)
            case Left(node) if node == state.asked and state.offered:
                return self._answered(state, ctx)
            case _:
                return state, ()

    def _answered(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """The offer on its way has come, or never will."""
        state = replace(state, offered=0)
        return self._exchange(replace(state, waiting=False), ctx) if state.waiting else (state, ())

    def _exchange(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        out: list[Effect] = []
        others = self._askable(state.peers, ctx.me)
        if others and not state.offered:
            to = others[rng.derive(ctx.seed, "gossip", ctx.me, state.round) % len(others)]
            out.append(Send(to, Offer(state.round, state.model.vector)))
            state = replace(state, offered=state.round, asked=to)
        out += _published(state, ctx.me, self.every, self.evaluate)
        if state.round == self.rounds:
            return state, out
        state, run = _train(state, ctx, self.work, self.steps, self.lr)
        return state, (*out, *run)

    def _askable(self, peers: tuple[str, ...], me: str) -> tuple[str, ...]:
        """Whom a peer may offer its model to."""
        if self.how == "push":
            return tuple(name for name in peers if name != me)
        return peers[1::2] if me in peers[::2] else ()


def metropolis(edges: Sequence[tuple[int, int]], n: int) -> np.ndarray:
    """Doubly stochastic weights `[n, n]` of a graph: 1 / (1 + the larger degree) per edge, the rest on the diagonal.

    >>> metropolis([(0, 1)], 2).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    out, degree = np.zeros((n, n)), np.zeros(n, np.int64)
    pairs = sorted({(min(a, b), max(a, b)) for a, b in edges})
    for a, b in pairs:
        if a == b or not 0 <= a < b < n:
            raise UsageError(f"an edge ({a}, {b}) among {n} peers: give two different numbers below {n}.")
        degree[[a, b]] += 1
    for a, b in pairs:
        out[a, b] = out[b, a] = 1.0 / (1.0 + max(degree[a], degree[b]))
    out[np.arange(n), np.arange(n)] = 1.0 - out.sum(axis=1)
    return out


@dataclass(frozen=True, slots=True)
class Graph:
    """D-PSGD on the graph `edges` of peers, by place in the roster: each round ends with the neighbours' weighted mean.

    A round is `steps` local steps; a peer waits for its neighbours' models of the same round. Our departure: the paper
    averages beside the gradient, we average after the steps. Weights: `metropolis`.
    """

    rounds: int
    edges: tuple[tuple[int, int], ...]
    steps: int = 1
    lr: float = 0.1
    every: int = 1
    work: str = "train"
    evaluate: tuple[str, ...] = ()
    messages: ClassVar[Offer | None] = None

    def __post_init__(self) -> None:
        _check("Graph", self.rounds, self.steps, self.every)

    def init(self, model: Params) -> State:
        return State(model)

    def step(self, state: State, event: Event, ctx: Context) -> tuple[State, Sequence[Effect]]:
        match event:
            case Started(roster=roster) if not state.peers:
                metropolis(self.edges, len(roster["peer"]))
                state = replace(state, peers=roster["peer"])
                return _train(state, ctx, self.work, self.steps, self.lr)
            case Gathered(tag=("train", int(r))) if r == state.round and state.start is not None:
                state = replace(_learnt(state, event), waiting=True)
                offer = Offer(r, state.model.vector)
                told = tuple(Send(name, offer) for name in self._weights(state, ctx.me) if name != ctx.me)
                state, out = self._average(state, ctx)
                return state, (*told, *out)
            case Received(src, Offer(r, vector)) if r >= state.round and src in state.peers:
                state = replace(state, inbox={**state.inbox, (r, src): vector})
                return self._average(state, ctx)
            case _:
                return state, ()

    def _weights(self, state: State, me: str) -> dict[str, float]:
        """The weights of this peer's neighbours and its own, in order of place."""
        row = metropolis(self.edges, len(state.peers))[state.peers.index(me)]
        return {name: float(w) for name, w in zip(state.peers, row, strict=True) if w > 0.0 or name == me}

    def _average(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        weights = self._weights(state, ctx.me)
        if not state.waiting or any((state.round, name) not in state.inbox for name in weights if name != ctx.me):
            return state, ()
        total = np.zeros(state.model.size, np.float64)
        for name, weight in weights.items():
            total += weight * (state.model.vector if name == ctx.me else state.inbox[state.round, name])
        inbox = {key: vector for key, vector in state.inbox.items() if key[0] > state.round}
        model = state.model.replace(total.astype(np.float32))
        state = replace(state, model=model, inbox=inbox, waiting=False)
        out = _published(state, ctx.me, self.every, self.evaluate)
        if state.round == self.rounds:
            return state, out
        state, run = _train(state, ctx, self.work, self.steps, self.lr)
        return state, (*out, *run)
