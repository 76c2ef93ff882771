"""A device trains a split model with an edge and moves to another: the session follows it, and no bit changes.

The device holds the first layer, the edge the second and its optimiser's slot. Activations go up, gradients come
down. `Moved` reaches the device and both edges in any order; the old edge hands the session over between two steps
and passes on what still comes to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.core import rng
from fieldfare.core.effects import Publish, Run, Send, Stop
from fieldfare.core.events import Gathered, Moved, Received, Started
from fieldfare.core.folds import Collect
from fieldfare.core.params import Layout, Params
from fieldfare.core.work import Cost, Output
from fieldfare.sim.simulator import Links
from fieldfare.testing import digest, laws, loop, quadratics, simulate

DIM, HIDDEN, BATCH, LR = 4, 3, 2, np.float32(0.005)
PROBLEM = quadratics(n=3, dim=DIM)
CUT = DIM * HIDDEN
MODEL = Params(np.linspace(-1, 1, CUT + HIDDEN).astype(np.float32), Layout.of({"first": (CUT,), "second": (HIDDEN,)}))
LOWER, UPPER = Layout.of({"first": (CUT,)}), Layout.of({"second": (HIDDEN,)})


@dataclass(frozen=True)
class Split:
    """One of three works, on one client: "forward", "server", "backward"; targets are the examples' sums."""

    part: str

    def __call__(self, cohort) -> Output:
        w, given_ = cohort.models[0], cohort.inputs
        if self.part == "server":
            away = given_["a"] @ w - given_["y"]
            speed = np.float32(0.9) * given_["speed"] + given_["a"].T @ away
            leaves = {"w": w - LR * speed, "speed": speed, "grad": np.outer(away, w)}
        else:
            rows = rng.bits(cohort.keys, np.arange(BATCH)) % np.uint64(cohort.data.sizes[0])
            x = cohort.data.client(0)["x"][rows.astype(np.int64)]
            if self.part == "forward":
                leaves = {"a": x @ w.reshape(DIM, HIDDEN), "y": x.sum(axis=1)}
            else:
                leaves = {"w": w - LR * (x.T @ given_["grad"]).reshape(-1)}
        return Output({name: np.asarray(v, np.float32)[None] for name, v in leaves.items()}, np.ones(1))

    def cost(self, examples, layout, config) -> Cost:
        return Cost(1e3, 0.0, 0.0)

    def slots(self, layout):
        return {}


def ask(work: str, ctx: Any, t: int, model: Params, leaves: tuple[str, ...], **inputs: Any) -> Run:
    fold = {leaf: Collect() for leaf in leaves}
    return Run(work, (ctx.me,), (work, t), model, reduce=fold, inputs=inputs, key=("split", t))


def leaf(event: Gathered, name: str) -> Any:
    (value,) = event.output[name].value.values()
    return value


@dataclass(frozen=True)
class Phone:
    """The device's half: `steps` local steps, then the lower model is published."""

    steps: int
    edge: str = "edge/0"

    def init(self, model: Params) -> Any:
        return (Params(model.vector[:CUT], LOWER), 0, self.edge)

    def step(self, state: Any, event: Any, ctx: Any) -> Any:
        model, t, edge = state
        match event:
            case Started():
                return state, (ask("forward", ctx, 0, model, ("a", "y")),)
            case Gathered(tag=("forward", int(at))) if at == t:
                return state, (Send(edge, ("up", t, leaf(event, "a"), leaf(event, "y"))),)
            case Received(_, ("down", int(at), grad)) if at == t:
                return state, (ask("backward", ctx, t, model, ("w",), grad=grad),)
            case Gathered(tag=("backward", int(at))) if at == t:
                model, t = model.replace(leaf(event, "w")), t + 1
                if t == self.steps:
                    return (model, t, edge), (Publish(model, t), Send(edge, ("end", t)))
                return (model, t, edge), (ask("forward", ctx, t, model, ("a", "y")),)
            case Moved(device=device, to=to) if device == ctx.me:
                return (model, t, to), ()
            case _:
                return state, ()


@dataclass(frozen=True, eq=False)
class Session:
    """An edge's half: upper model and slot if it has them, whether it computes, where the device went, what waits."""

    model: Params | None
    speed: Any
    busy: bool = False
    to: str = ""
    waiting: tuple[Any, ...] = ()


@dataclass(frozen=True)
class EdgeServer:
    """The edge's half; `first` holds the session at the start."""

    first: bool

    def init(self, model: Params) -> Session:
        upper = Params(model.vector[CUT:], UPPER) if self.first else None
        return Session(upper, np.zeros(HIDDEN, np.float32))

    def step(self, state: Session, event: Any, ctx: Any) -> Any:
        match event:
            case Received(_, ("up" | "end", *_) as body):
                return self._go_on(replace(state, waiting=(*state.waiting, body)), ctx, ())
            case Received(_, ("session", model, speed)):
                return self._go_on(replace(state, model=model, speed=speed, to=""), ctx, ())
            case Moved(device="phone", to=to) if to != ctx.me:
                return self._go_on(replace(state, to=to), ctx, ())
            case Gathered(tag=("server", int(t))) if state.busy:
                model = state.model.replace(leaf(event, "w"))
                state = replace(state, model=model, speed=leaf(event, "speed"), busy=False)
                return self._go_on(state, ctx, (Send("phone", ("down", t, leaf(event, "grad"))),))
            case _:
                return state, ()

    def _go_on(self, state: Session, ctx: Any, out: Any) -> Any:
        if state.busy:
            return state, out
        if state.to:
            if state.model is not None:
                out = (*out, Send(state.to, ("session", state.model, state.speed)))
            out = (*out, *(Send(state.to, body) for body in state.waiting))
            return replace(state, model=None, waiting=()), out
        if state.model is None or not state.waiting:
            return state, out
        body, *rest = state.waiting
        state = replace(state, waiting=tuple(rest))
        if body[0] == "end":
            return state, (*out, Publish(state.model, body[1]), Stop("trained"))
        _, t, a, y = body
        run = ask("server", ctx, t, state.model, ("w", "speed", "grad"), a=a, y=y, speed=state.speed)
        return replace(state, busy=True), (*out, run)


def world(moves: dict[str, float] | None = None, steps: int = 6, latency: float = 0.3):
    """`moves`: when `Moved` reaches each node."""
    nodes = {
        "phone": ("phone", Phone(steps)),
        "edge/0": ("edge", EdgeServer(True)),
        "edge/1": ("edge", EdgeServer(False)),
    }
    happenings = [(at, Moved("phone", "edge/1"), (node,)) for node, at in (moves or {}).items()]
    return PROBLEM.world(
        nodes, model=MODEL, works={part: Split(part) for part in ("forward", "server", "backward")},
        placement={"phone": 0, "edge/0": 1, "edge/1": 2}, happenings=happenings, links=Links(latency),
    )  # fmt: skip


def trained(end) -> list[str]:
    """Digests of the two halves, in the order published (device, edge)."""
    assert end.reason == "trained"
    return [digest(e.model) for _, _, effects in end.transcript.kept for e in effects if isinstance(e, Publish)]


STAYED = trained(simulate(world(), keep=True))
when = st.floats(0.0, 12.0)


def test_the_split_model_learns_and_is_the_same_on_both_drivers():
    assert len(set(STAYED)) == 2
    assert trained(loop(world(), keep=True)) == STAYED


@settings(max_examples=40, deadline=None)
@given(phone=when, old=when, new=when, latency=st.sampled_from([0.0, 0.1, 1.0]))
def test_a_device_that_moves_at_any_moment_ends_with_the_bits_of_one_that_stayed(phone, old, new, latency):
    moved = world({"phone": phone, "edge/0": old, "edge/1": new}, latency=latency)
    assert trained(simulate(moved, keep=True)) == STAYED
    assert trained(loop(moved, keep=True)) == STAYED


def test_the_session_crosses_between_the_edges_once_and_the_new_edge_works_on():
    end = simulate(world({"phone": 4.0, "edge/0": 5.0, "edge/1": 4.5}), keep=True)
    sent = [e for _, _, effects in end.transcript.kept for e in effects if isinstance(e, Send)]
    assert [e.to for e in sent if e.body[0] == "session"] == ["edge/1"]
    by = {node: len(end.transcript.events(Gathered, node)) for node in ("edge/0", "edge/1")}
    assert sum(by.values()) == 6
    assert min(by.values()) > 0


@pytest.mark.parametrize("moves", [None, {"phone": 4.0, "edge/0": 5.0, "edge/1": 4.5}])
def test_the_split_session_keeps_all_laws(moves):
    laws(world(moves, steps=3))
