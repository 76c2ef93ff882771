"""Split works in the drivers: phones train with edges, one moves, and each ends with the bits of training alone.

The protocol is the least that works: activations up, gradients down, a session that crosses as it is. What is tested is
that the works, asked by nodes, are those computed by hand: same keys, same batches, whatever else is pending.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from split_cases import SGD, columns, net_of, whole

from fieldfare.core import rng
from fieldfare.core.effects import Publish, Run, Send, Stop
from fieldfare.core.events import Gathered, Moved, Received, Started
from fieldfare.core.folds import Collect
from fieldfare.core.params import Params
from fieldfare.data.federated import Federated
from fieldfare.fleet.fleet import Fleet
from fieldfare.sim.population import Population
from fieldfare.sim.simulator import Links, World
from fieldfare.testing import digest, loop, simulate
from fieldfare.work.split import split, split_works

SIZES = (23, 40, 12, 1, 1)
PHONES = 3
DATA = Federated(columns(77), np.r_[0, np.cumsum(SIZES)], np.random.default_rng(1).permutation(77))
SEED = 4


def ask(work: str, me: str, phone: str, t: int, model: Params, leaves: tuple[str, ...], **inputs: Any) -> Run:
    reduce = {leaf: Collect() for leaf in leaves}
    tag = (work, phone, t)
    return Run(f"split/{work}", (me,), tag, model, reduce=reduce, config={"seq": t, "round": 1}, inputs=inputs,
               key=("split", phone, 1))  # fmt: skip


def leaf(event: Gathered, name: str) -> Any:
    (value,) = event.output[name].value.values()
    return value


@dataclass(frozen=True)
class Phone:
    """The device's half: state (half, slots, batch, edge, batches in the round)."""

    size: int
    edge: str = "edge/0"

    def init(self, model: Params) -> Any:
        half = split(net_of(KIND), net_of(KIND).cut_of_size(self.size), SGD).halves(model)[0]
        return (half, np.zeros(0, np.float32), 0, self.edge, 1)

    def step(self, state: Any, event: Any, ctx: Any) -> Any:
        model, slots, t, edge, steps = state
        match event:
            case Started():
                return state, (ask("forward", ctx.me, ctx.me, 0, model, ("act", "y")),)
            case Gathered(tag=("forward", _, int(at))) if at == t:
                steps = int(event.metrics["steps"][0])
                up = ("up", ctx.me, t, leaf(event, "act"), leaf(event, "y"))
                return (model, slots, t, edge, steps), (Send(edge, up),)
            case Received(_, ("down", int(at), g)) if at == t:
                run = ask("backward", ctx.me, ctx.me, t, model, ("model", "slots"), g=g, slots=slots)
                return state, (run,)
            case Gathered(tag=("backward", _, int(at))) if at == t:
                model, slots, t = model.replace(leaf(event, "model")), leaf(event, "slots"), t + 1
                state = (model, slots, t, edge, steps)
                if t == steps:
                    return state, (Publish(model, t), Send(edge, ("end", ctx.me)))
                return state, (ask("forward", ctx.me, ctx.me, t, model, ("act", "y")),)
            case Moved(device=device, to=to) if device == ctx.me:
                return (model, slots, t, to, steps), ()
            case _:
                return state, ()


@dataclass(frozen=True, eq=False)
class Session:
    model: Params
    slots: Any
    busy: bool = False
    to: str = ""


@dataclass(frozen=True)
class Edge:
    """The server halves of all phones that are here: state ({phone: session}, messages that wait, phones done)."""

    size: int

    def init(self, model: Params) -> Any:
        half = split(net_of(KIND), net_of(KIND).cut_of_size(self.size), SGD).halves(model)[1]
        return {f"phone/{i}": Session(half, np.zeros(0, np.float32)) for i in range(PHONES)}, (), ()

    def step(self, state: Any, event: Any, ctx: Any) -> Any:
        sessions, waiting, done = state
        match event:
            case Started() if ctx.me != "edge/0":
                return ({}, (), ()), ()
            case Received(_, ("up" | "end", *_) as body):
                return self._go_on(sessions, (*waiting, body), done, ctx, ())
            case Received(_, ("session", phone, session)):
                return self._go_on({**sessions, phone: session}, waiting, done, ctx, ())
            case Received(_, ("over", phone)):
                return self._go_on(sessions, waiting, (*done, phone), ctx, ())
            case Moved(device=phone, to=to) if to != ctx.me and phone in sessions:
                return self._go_on({**sessions, phone: replace(sessions[phone], to=to)}, waiting, done, ctx, ())
            case Gathered(tag=("step", str(phone), int(t))):
                one = sessions[phone]
                model, slots = one.model.replace(leaf(event, "model")), leaf(event, "slots")
                one = replace(one, model=model, slots=slots, busy=False)
                down = Send(phone, ("down", t, leaf(event, "g")))
                return self._go_on({**sessions, phone: one}, waiting, done, ctx, (down,))
            case _:
                return state, ()

    def _go_on(self, sessions: Any, waiting: Any, done: Any, ctx: Any, out: Any) -> Any:
        left = []
        for phone, one in list(sessions.items()):
            if one.to and not one.busy:
                del sessions[phone]
                out = (*out, Send(one.to, ("session", phone, replace(one, to=""))))
        for body in waiting:
            one = sessions.get(body[1])
            if one is None or one.busy:
                left.append(body)
            elif body[0] == "end":
                out = (*out, Publish(one.model, 1), Send("edge/0", ("over", body[1])))
            else:
                _, phone, t, act, y = body
                run = ask("step", ctx.me, phone, t, one.model, ("model", "slots", "g"), act=act, y=y, slots=one.slots)
                sessions = {**sessions, phone: replace(one, busy=True)}
                out = (*out, run)
        if len(set(done)) == PHONES:
            out = (*out, Stop("trained"))
        return (sessions, tuple(left), done), out


KIND = "vgg"


def world(moves: bool, latency: float = 0.2) -> World:
    net = net_of(KIND)
    works, size = split_works(net, SGD), net.cut("pool2").size
    nodes: dict[str, Any] = {f"phone/{i}": ("phone", Phone(size)) for i in range(PHONES)}
    nodes |= {f"edge/{i}": ("edge", Edge(size)) for i in range(2)}
    fleet = Fleet(flops_per_s=np.array([2e6, 3e6, 5e6, 2e7, 2e7], np.float32), overhead_s=0.01)
    happenings = [(2.0, Moved("phone/0", "edge/1"), ("phone/0", "edge/0", "edge/1"))] if moves else []
    return World(
        nodes, net.init(0), Population.of(DATA, fleet), works, SEED,
        placement={name: i for i, name in enumerate(nodes)}, happenings=happenings, links=Links(latency),
    )  # fmt: skip


def published(end: Any) -> set[str]:
    assert end.reason == "trained"
    return {digest(e.model) for _, _, effects in end.transcript.kept for e in effects if isinstance(e, Publish)}


@pytest.fixture(scope="module")
def expected() -> set[str]:
    """Digests of the halves of every phone's model, trained whole and alone."""
    net, out = net_of(KIND), set[str]()
    for i in range(PHONES):
        key = rng.keys(SEED, ("client", "split", f"phone/{i}", 1), np.zeros(1, np.int64))
        vector, _ = whole(net, DATA.block(np.array([i])), key, 0, SGD)
        out |= {digest(half) for half in split(net, "pool2", SGD).halves(vector)}
    assert len(out) == 2 * PHONES
    return out


@pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])
@pytest.mark.parametrize("moves", [False, True], ids=["stay", "move"])
def test_phones_and_edges_end_with_the_bits_of_training_alone(driver: Any, moves: bool, expected: set[str]) -> None:
    end = driver(world(moves), keep=True)
    assert published(end) == expected
    if moves:
        assert end.transcript.events(Gathered, "edge/1")


def test_worker_processes_change_no_bit(expected: set[str]) -> None:
    assert published(simulate(world(True), workers=2, keep=True)) == expected
