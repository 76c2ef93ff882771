"""A ring without a server: peers train on their own devices and average by reduce-scatter and all-gather."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from fieldfare.aggregate.gather import Gather
from fieldfare.core.effects import Publish, Run, Send
from fieldfare.core.events import Gathered, Received, Started
from fieldfare.core.folds import Mean, Total
from fieldfare.core.params import Params
from fieldfare.sim.simulator import Links, size_of
from fieldfare.testing import Fault, digest, laws, loop, quadratics, simulate

PROBLEM = quadratics(n=5, dim=7)
both = pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])


def mean_of(totals: list[Total]) -> np.ndarray:
    """The mean `[P]` behind exact sums."""
    gather = Gather({"x": Mean()}, len(totals))
    for total in totals:
        gather.add_total("x", total)
    return gather.finish()["x"].value


@dataclass(frozen=True, eq=False)
class State:
    """The model after `round` rounds; in this one, `step` messages were taken; `chunks` holds k partial sums."""

    model: Params
    ring: tuple[str, ...] = ()
    round: int = 0
    step: int = 0
    chunks: tuple[Total, ...] = ()
    inbox: dict[tuple[int, int], Total] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """Trains alone, then 2 (k - 1) chunks round the ring; chunk sums are integers, so all peers get the same bits."""

    rounds: int

    def init(self, model: Params) -> State:
        return State(model)

    def step(self, state: State, event: Any, ctx: Any):
        match event:
            case Started(roster=roster) if not state.ring:
                return self._train(replace(state, ring=roster["peer"]), ctx.me)
            case Gathered(tag=int(tag), output=output) if tag == state.round + 1 and not state.chunks:
                total = output["delta"].total
                parts = np.array_split(total.sum, len(state.ring))
                state = replace(state, chunks=tuple(replace(total, sum=part) for part in parts))
                return self._go_on(state, ctx.me, [self._next(state, ctx.me)])
            case Received(_, ("chunk", int(r), int(s), Total() as chunk)):
                return self._go_on(replace(state, inbox={**state.inbox, (r, s): chunk}), ctx.me, [])
            case _:
                return state, ()

    def _train(self, state: State, me: str):
        r = state.round + 1
        fold = {"delta": Mean(total=True)}
        run = Run("train", (me,), r, state.model, reduce=fold, config={"round": r}, key=("train", r, me))
        return replace(state, step=0, chunks=()), (run,)

    def _next(self, state: State, me: str) -> Send:
        k, i, s = len(state.ring), state.ring.index(me), state.step
        at = (i - s if s < k - 1 else i + 1 - (s - (k - 1))) % k
        return Send(state.ring[(i + 1) % k], ("chunk", state.round + 1, s, state.chunks[at]))

    def _go_on(self, state: State, me: str, out: list[Any]):
        k, i = len(state.ring), state.ring.index(me)
        while state.chunks and (state.round + 1, state.step) in state.inbox:
            inbox = dict(state.inbox)
            got, s = inbox.pop((state.round + 1, state.step)), state.step
            at = (i - s - 1 if s < k - 1 else i - (s - (k - 1))) % k
            if s < k - 1:
                mine = state.chunks[at]
                got = replace(mine, sum=mine.sum + got.sum, weight=mine.weight + got.weight)
            chunks = (*state.chunks[:at], got, *state.chunks[at + 1 :])
            state = replace(state, inbox=inbox, chunks=chunks, step=s + 1)
            if state.step < 2 * (k - 1):
                out.append(self._next(state, me))
                continue
            whole = replace(chunks[0], sum=np.concatenate([chunk.sum for chunk in chunks]))
            model = state.model.replace(state.model.vector + mean_of([whole]))
            state = replace(state, model=model, round=state.round + 1, chunks=())
            out.append(Publish(model, state.round))
            if state.round < self.rounds:
                state, run = self._train(state, me)
                out.extend(run)
        return state, tuple(out)


def world(rounds: int = 3, peers: int = 5, **more):
    names = [f"peer/{i}" for i in range(peers)]
    place = {name: i for i, name in enumerate(names)}
    return PROBLEM.world({name: ("peer", Peer(rounds)) for name in names}, placement=place, **more)


def published(end) -> dict[str, list[bytes]]:
    out: dict[str, list[bytes]] = {}
    for node, _, effects in end.transcript.kept:
        out.setdefault(node, []).extend(e.model.vector.tobytes() for e in effects if isinstance(e, Publish))
    return out


@both
@pytest.mark.parametrize("peers", [2, 3, 5])
def test_every_peer_gets_the_exact_mean_of_all(driver, peers):
    end = driver(world(peers=peers, links=Links(0.01, 1e4)), keep=True)
    found = published(end)
    assert len(found) == peers
    assert len({tuple(models) for models in found.values()}) == 1
    vector = PROBLEM.model.vector
    for r, bits in enumerate(found["peer/0"], 1):
        replies = [e.output["delta"].total for e in end.transcript.events(Gathered) if e.tag == r]
        assert len(replies) == peers
        vector = vector + mean_of(replies)
        assert vector.tobytes() == bits
    assert r == 3


@both
def test_each_peer_sends_two_models_less_two_chunks_a_round(driver):
    end = driver(world(rounds=1), keep=True)
    for node in world().nodes:
        sent = [e for me, _, effects in end.transcript.kept if me == node for e in effects if isinstance(e, Send)]
        assert len(sent) == 2 * 4
        assert all(abs(len(e.body[3].sum) - 7 / 5) < 1 for e in sent)


def test_bytes_between_peers_are_those_of_the_messages():
    end = simulate(world(rounds=2), keep=True)
    sent = [e.body for _, _, effects in end.transcript.kept for e in effects if isinstance(e, Send)]
    assert end.driver.progress.bytes_between == sum(size_of(body) for body in sent) > 2 * 5 * 8 * 8


def test_messages_in_any_order_give_the_same_models():
    plain = published(loop(world(), keep=True))
    for late in (0.3, 5.0):
        faults = [Fault("delay", "event", late, node=f"peer/{i}", times=3) for i in (0, 2, 3)]
        assert published(loop(world(), faults, keep=True)) == plain


def test_a_ring_in_which_a_client_trains_on_its_own_data_learns():
    end = simulate(world(rounds=25))
    assert PROBLEM.loss(end.model) < 1.05 * PROBLEM.loss(PROBLEM.model.replace(PROBLEM.optimum))
    assert digest(end.model) != digest(PROBLEM.model)


def test_the_ring_keeps_all_laws():
    laws(world(rounds=2, peers=3))
