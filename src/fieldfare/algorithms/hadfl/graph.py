"""Averaging with the neighbours on a fixed graph, without a coordinator, to measure HADFL against: D-PSGD.

Lian et al., NeurIPS 2017, algorithm 1. Not here: random neighbours, and what both share (`gossip`). Invariants: a round
leaves the mean of all models as it was, up to rounding, whatever is lost, late or repeated: who misses an offer asks
for it again, and an offer of a round is the same bits however often it is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fieldfare.algorithms.hadfl.gossip import Offer, State, check, learnt, patience_s, published, train
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Send, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Gathered, Joined, Received, Started, Woke
from fieldfare.core.params import Params

Edges = tuple[tuple[int, int], ...]

_TRIES = 64
"""How often in vain a neighbour is asked that says nothing: one that is gone for good holds up its neighbours for ever.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Again:
    """Your offer of `round` has not come: please send it again, if it is made."""

    round: int


@dataclass(frozen=True, slots=True, eq=False)
class Later:
    """I am there: my offer of `round` is not made yet."""

    round: int


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


def near(edges: Edges, peers: tuple[str, ...], me: str) -> dict[str, float]:
    """The weights of a peer's neighbours and its own, in order of place."""
    row = metropolis(edges, len(peers))[peers.index(me)]
    return {name: float(w) for name, w in zip(peers, row, strict=True) if w > 0.0 or name == me}


@dataclass(frozen=True, slots=True)
class Graph:
    """D-PSGD on the graph `edges` of peers, by place in the roster: each round ends with the neighbours' weighted mean.

    A round is `steps` local steps; a peer waits for its neighbours' models of the same round, and asks again for one
    that has not come in `gossip.patience_s`. Our departure: the paper averages beside the gradient, we average after
    the steps. Weights: `metropolis`. `lr`: None is the training's own, whose schedule goes by rounds.
    """

    rounds: int
    edges: Edges
    steps: int = 1
    lr: float | None = None
    every: int = 1
    work: str = "train"
    evaluate: tuple[str, ...] = ()
    messages: ClassVar[Offer | Again | Later | State | None] = None

    def __post_init__(self) -> None:
        check("Graph", self.rounds, self.steps, self.every)

    def init(self, model: Params) -> State:
        return State(model)

    def step(self, state: State, event: Event, ctx: Context) -> tuple[State, Sequence[Effect]]:
        match event:
            case Started(roster=roster) if not state.peers:
                peers = roster["peer"]
                state = replace(state, peers=peers, near=near(self.edges, peers, ctx.me))
                return train(state, ctx, self.work, self.steps, self.lr)
            case Gathered(tag=("train", int(r))) if r == state.round and state.start is not None:
                state = replace(learnt(state, event, ctx.now), waiting=True)
                sent = {r: state.model.vector} | {one: v for one, v in state.sent.items() if one == r - 1}
                state, out = self._average(replace(state, sent=sent), ctx)
                told = self._told(state, ctx.me, r)
                return (state, (*told, *self._wait(state))) if state.waiting else (state, (*told, *out))
            case Received(src, Offer(r, vector)) if state.round <= r <= state.round + 1 and src in state.near:
                if (r, src) in state.inbox or vector.shape != state.model.vector.shape:
                    return state, ()
                state = replace(state, inbox={**state.inbox, (r, src): vector})
                return (state, self._overtaken(state, src)) if r > state.round else self._average(state, ctx)
            case Received(src, Again(r)) if src in state.near and r in state.sent:
                state, out = self._lives(state, src)
                return state, (Send(src, Offer(r, state.sent[r])), *out)
            case Received(src, Again(r)) if src in state.near and r >= state.round:
                told = self._overtaken(state, src) if r > state.round else ()
                given_up = state.waiting and state.tries >= _TRIES
                state, out = self._lives(state, src)
                return state, (*(told or (() if given_up else (Send(src, Later(r)),))), *out)
            case Received(src, Later(r)) if src in state.near and r == state.round:
                return self._lives(state, src)
            case Woke(tag=("missing", int(r))) if r == state.round and state.waiting and state.tries < _TRIES:
                state = replace(state, tries=state.tries + 1, doubled=min(state.doubled + 1, _TRIES))
                return state, (*self._missed(state, ctx.me), *self._wait(state))
            case Joined(node) if node == ctx.me and state.waiting:
                state = replace(state, tries=1)
                told = self._told(state, ctx.me, state.round)
                return state, (*told, *self._missed(state, ctx.me), *self._wait(state))
            case _:
                return state, ()

    def _told(self, state: State, me: str, r: int) -> tuple[Effect, ...]:
        """This peer's model after its training number `r`, to its neighbours."""
        offer = Offer(r, state.sent[r])
        return tuple(Send(name, offer) for name in state.near if name != me)

    def _missed(self, state: State, me: str) -> tuple[Effect, ...]:
        """Ask for what has not come."""
        again = Again(state.round)
        return tuple(Send(name, again) for name in self._missing(state, me))

    def _lives(self, state: State, src: str) -> tuple[State, tuple[Effect, ...]]:
        """A neighbour that is waited for is there: it may be asked again as often."""
        if not state.waiting or state.tries < 2 or (state.round, src) in state.inbox:
            return state, ()
        return replace(state, tries=1), self._wait(state) if state.tries >= _TRIES else ()

    def _overtaken(self, state: State, src: str) -> tuple[Effect, ...]:
        """Who is a round ahead has offered in this one: ask for that, if it has not come."""
        lost = state.waiting and (state.round, src) not in state.inbox
        return (Send(src, Again(state.round)),) if lost else ()

    def _missing(self, state: State, me: str) -> list[str]:
        return [name for name in state.near if name != me and (state.round, name) not in state.inbox]

    def _wait(self, state: State) -> tuple[Effect, ...]:
        return (Wake(patience_s(state), ("missing", state.round)),)

    def _average(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """Once all neighbours' models are there: their weighted mean, and on."""
        if not state.waiting or self._missing(state, ctx.me):
            return state, ()
        total = np.zeros(state.model.size, np.float64)
        for name, weight in state.near.items():
            total += weight * (state.model.vector if name == ctx.me else state.inbox[state.round, name])
        if not state.tries:
            took = max(state.longest, ctx.now - state.begun)
            state = replace(state, longest=took, rounds_over=state.rounds_over + 1, doubled=0)
        state = replace(
            state, model=state.model.replace(total.astype(np.float32)), waiting=False, tries=0,
            inbox={key: vector for key, vector in state.inbox.items() if key[0] > state.round},
        )  # fmt: skip
        out = published(state, ctx.me, self.every, self.evaluate)
        if state.round == self.rounds:
            return state, out
        state, run = train(state, ctx, self.work, self.steps, self.lr)
        return state, (*out, *run)
