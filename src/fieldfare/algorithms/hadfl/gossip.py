"""Averaging with one random neighbour and no coordinator at all, to measure HADFL against: in pairs, or by pushes.

`Gossip` never waits for anybody's training: it averages with one random neighbour after every piece of its own, in
pairs as AD-PSGD does (Lian, Zhang, Zhang & Liu, ICML 2018, algorithm 1) or by pushing its model. Here too: what
`graph` shares with it, and how long a message is waited for. Not here: neighbours on a fixed graph (`graph`).
Invariant: an exchange of a pair leaves the mean of all models as it was, up to rounding, once both its messages have
come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from fieldfare.algorithms.hadfl.ring import F32
from fieldfare.core import rng
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Publish, Run, Scalar, Send, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Gathered, Left, Received, Started, Woke
from fieldfare.core.folds import Stack
from fieldfare.core.params import Params

_LONG, _AT_FIRST = 10.0, 100.0
"""How many times the longest round so far a message is waited for; at first, how many times the first training."""
_LEAST_S, _DOUBLED = 0.05, 6


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
    """A model, and the model that the training under way, begun at `begun`, `start`ed from.

    `offered`: the round of the offer, to `asked`, sent at `asked_s`, that is not answered yet, 0 for none. On a graph
    `inbox` holds what came from neighbours, `sent` what was offered in the last two rounds, `near` the weights of the
    neighbours and its own. `longest`: seconds of the longest training, round or exchange so far in which nothing was
    lost, of `rounds_over`; `tries`: how often this round's offers were asked for again; `doubled`: as how often
    `patience_s` has it, which the next round begins with (as the timers of TCP: Karn & Partridge, SIGCOMM 1987).
    """

    model: Params
    peers: tuple[str, ...] = ()
    round: int = 0
    start: Params | None = None
    waiting: bool = False
    inbox: Mapping[tuple[int, str], F32] = field(default_factory=dict[tuple[int, str], F32])
    sent: Mapping[int, F32] = field(default_factory=dict[int, F32])
    near: Mapping[str, float] = field(default_factory=dict[str, float])
    offered: int = 0
    asked: str = ""
    asked_s: float = 0.0
    begun: float = 0.0
    longest: float = 0.0
    rounds_over: int = 0
    tries: int = 0
    doubled: int = 0


def check(name: str, rounds: int, steps: int, every: int) -> None:
    if min(rounds, steps, every) < 1:
        raise UsageError(f"{name}(rounds={rounds}, steps={steps}, every={every}): use numbers >= 1.")


def train(state: State, ctx: Context, work: str, steps: int, lr: float | None) -> tuple[State, Sequence[Effect]]:
    """The next piece of training, on this node's own device; without `lr` the training's own of this round."""
    r = state.round + 1
    config: dict[str, Scalar] = {"steps": steps, "round": r, "reply": "model"}
    config |= {} if lr is None else {"lr": lr}
    run = Run(
        work, (ctx.me,), ("train", r), state.model, reduce={"model": Stack()}, config=config,
        key=("gossip", ctx.me, r),
    )  # fmt: skip
    return replace(state, round=r, start=state.model, begun=ctx.now), (run,)


def learnt(state: State, event: Gathered, now: float) -> State:
    """What the training has changed is added to the model, which may have moved meanwhile."""
    state = replace(state, longest=max(state.longest, now - state.begun))
    got = event.output.get("model")
    if got is None or state.start is None or not len(event.clients):
        return replace(state, start=None)
    if state.model is state.start:
        return replace(state, model=state.model.replace(np.array(got.value[0], np.float32)), start=None)
    moved: F32 = (state.model.vector + (got.value[0] - state.start.vector)).astype(np.float32)
    return replace(state, model=state.model.replace(moved), start=None)


def published(state: State, me: str, every: int, evaluate: tuple[str, ...]) -> tuple[Effect, ...]:
    """The first peer's own model (nobody holds the mean of all), every so many rounds."""
    due = me == state.peers[0] and state.round % every == 0
    return (Publish(state.model, state.round, evaluate),) if due else ()


def patience_s(state: State) -> float:
    """How long a message is waited for until it counts as lost: far longer than any so far, doubled by the first tries.

    Ours: whoever knows neither links nor neighbours can only compare with what it has seen.
    """
    whole = max((_LONG if state.rounds_over else _AT_FIRST) * state.longest, _LEAST_S)
    return whole * 2.0 ** min(state.doubled, _DOUBLED)


@dataclass(frozen=True, slots=True)
class Gossip:
    """`rounds` times `steps` local steps, each followed by an average with a random neighbour, without waiting.

    `lr`: None is the training's own; its schedule goes by this peer's own rounds, of which all have `rounds`: who is
    fast is ahead on it, too (our reading).

    `how`: "pair" (both go to the middle, as AD-PSGD) or "push" (only the receiver does). In pairs, as in the paper, the
    peers in even places ask and those in odd places answer: were both to ask at once they would change places instead
    of meeting, and over slow links diverge. A peer that asks trains one piece meanwhile, then waits.
    One that pushes has one push on its way at most and trains on meanwhile. An offer that is not answered in
    `patience_s` counts as lost, and the peer goes on without (an answer that comes later still moves it). The first
    peer publishes its own model `every` so many rounds, with the central evaluations `evaluate`.
    """

    rounds: int
    steps: int = 1
    lr: float | None = None
    how: Literal["pair", "push"] = "pair"
    every: int = 1
    work: str = "train"
    evaluate: tuple[str, ...] = ()
    messages: ClassVar[Offer | Share | Took | None] = None

    def __post_init__(self) -> None:
        check("Gossip", self.rounds, self.steps, self.every)

    def init(self, model: Params) -> State:
        return State(model)

    def step(self, state: State, event: Event, ctx: Context) -> tuple[State, Sequence[Effect]]:
        match event:
            case Started(roster=roster) if not state.peers:
                state = replace(state, peers=roster["peer"])
                return train(state, ctx, self.work, self.steps, self.lr)
            case Gathered(tag=("train", int(r))) if r == state.round and state.start is not None:
                state = learnt(state, event, ctx.now)
                if state.offered and self.how == "pair":
                    late = max(state.asked_s + patience_s(state) - ctx.now, 0.0)
                    return replace(state, waiting=True), (Wake(late, ("answer", state.offered)),)
                if state.offered and ctx.now - state.asked_s >= patience_s(state):
                    state = replace(state, offered=0, doubled=state.doubled + 1)
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
                return self._alone(state, ctx)
            case Woke(tag=("answer", int(r))) if r == state.offered and state.waiting:
                return self._alone(replace(state, doubled=state.doubled + 1), ctx)
            case _:
                return state, ()

    def _answered(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """The offer on its way has come."""
        took = max(state.longest, ctx.now - state.asked_s)
        return self._alone(replace(state, longest=took, rounds_over=state.rounds_over + 1, doubled=0), ctx)

    def _alone(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        """Nothing is on its way any more."""
        state = replace(state, offered=0)
        return self._exchange(replace(state, waiting=False), ctx) if state.waiting else (state, ())

    def _exchange(self, state: State, ctx: Context) -> tuple[State, Sequence[Effect]]:
        out: list[Effect] = []
        others = self._askable(state.peers, ctx.me)
        if others and not state.offered:
            to = others[rng.derive(ctx.seed, "gossip", ctx.me, state.round) % len(others)]
            out.append(Send(to, Offer(state.round, state.model.vector)))
            state = replace(state, offered=state.round, asked=to, asked_s=ctx.now)
        out += published(state, ctx.me, self.every, self.evaluate)
        if state.round == self.rounds:
            return state, out
        state, run = train(state, ctx, self.work, self.steps, self.lr)
        return state, (*out, *run)

    def _askable(self, peers: tuple[str, ...], me: str) -> tuple[str, ...]:
        """Whom a peer may offer its model to."""
        if self.how == "push":
            return tuple(name for name in peers if name != me)
        return peers[1::2] if me in peers[::2] else ()
