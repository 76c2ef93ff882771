"""The laws every algorithm keeps, as checks to run on your own: `laws(MyAlgorithm())` in a test is all it takes.

Each check takes a `World`, drives it, and raises `AssertionError` naming the law, the step and the difference. Not
here: whether an algorithm learns anything.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fieldfare.aggregate.gather import FACTOR_STEPS
from fieldfare.core.algorithm import Algorithm, Context
from fieldfare.core.effects import Effect, Run
from fieldfare.core.events import Evaluated, Event, Gathered, Joined, Left, Moved, Received, Woke
from fieldfare.core.folds import Mean
from fieldfare.core.params import Params
from fieldfare.core.quorum import ALL
from fieldfare.sim.asks import Ask
from fieldfare.sim.observe import Answered
from fieldfare.sim.simulator import World
from fieldfare.sim.stream import StreamAsk
from fieldfare.store.codec import Codec, registry
from fieldfare.testing.loopback import loop
from fieldfare.testing.script import Crash, Fault
from fieldfare.testing.toys import Quadratics, quadratics, simulate
from fieldfare.testing.transcript import Transcript, digest

_NONE = np.empty(0)
STRANGE: tuple[Event, ...] = (
    Woke(("no", "such", "wake")), Gathered(("no", "such", "run"), {}, 0.0, _NONE, _NONE, {}),
    Evaluated(-1, "no such evaluation", {}), Received("nobody", None), Joined(-1), Left(-1), Moved(-1, "nowhere"),
)  # fmt: skip
"""Events no algorithm asked for."""


def laws(
    algorithm: Algorithm | World, problem: Quadratics | None = None, *, strange: Sequence[Event] = STRANGE
) -> None:
    """Check all laws of `algorithm` on a small problem (`quadratics()` by default), or of a whole world.

    `strange`: events that must change nothing. Some fifty runs, so keep the world small. Errors: `AssertionError`.
    """
    world = algorithm if isinstance(algorithm, World) else (problem or quadratics()).world(algorithm)
    pure(world)
    total(world, strange)
    storable(world)
    durable(world)
    deaf_to_duplicates(world)
    orderless(world)
    divisible(world)
    onward(world)
    conserved(world)
    same_everywhere(world)


@dataclass(frozen=True, slots=True)
class Checked:
    """`inner`, whose every step is also given to `check(state, event, ctx, new state, effects)`."""

    inner: Algorithm
    check: Callable[[Any, Event, Context, Any, Sequence[Effect]], None]

    def init(self, model: Params) -> Any:
        return self.inner.init(model)

    def step(self, state: Any, event: Event, ctx: Context) -> tuple[Any, Sequence[Effect]]:
        new, effects = self.inner.step(state, event, ctx)
        self.check(state, event, ctx, new, effects)
        return new, effects


def pure(world: World) -> None:
    """Law 1: `step` is deterministic and leaves its arguments untouched."""

    def wrap(inner: Algorithm) -> Algorithm:
        return _Pure(inner)

    simulate(_wrapped(world, wrap))


@dataclass(frozen=True, slots=True)
class _Pure:
    inner: Algorithm

    def init(self, model: Params) -> Any:
        return self.inner.init(model)

    def step(self, state: Any, event: Event, ctx: Context) -> tuple[Any, Sequence[Effect]]:
        before = digest((state, event))
        first = self.inner.step(state, event, ctx)
        told = digest((first[0], tuple(first[1])))
        assert digest((state, event)) == before, f"law 1: step changed its arguments on {_name(event)}."
        again = self.inner.step(state, event, ctx)
        assert digest((again[0], tuple(again[1]))) == told, f"law 1: step is not deterministic on {_name(event)}."
        return first


def total(world: World, strange: Sequence[Event] = STRANGE) -> None:
    """Law 3: an event nobody asked for changes nothing, after any step, and before the first."""

    def wrap(inner: Algorithm) -> Algorithm:
        def check(state: Any, event: Event, ctx: Context, new: Any, effects: Sequence[Effect]) -> None:
            for one, odd in itertools.product((state, new), strange):
                after, more = inner.step(one, odd, ctx)
                where = f"law 3: an unknown {_name(odd)} after {_name(event)}"
                assert not more, f"{where} had effects: {more}."
                assert digest(after) == digest(one), f"{where} changed the state."

        return Checked(inner, check)

    simulate(_wrapped(world, wrap))


def storable(world: World) -> None:
    """Law 2, the state's part: a state written to disk and read back goes on as if it had never left."""

    def wrap(inner: Algorithm) -> Algorithm:
        return _Stored(inner, Codec(registry(inner)))

    _same(simulate(world).transcript, simulate(_wrapped(world, wrap)).transcript, "law 2: with a stored state")


@dataclass(frozen=True, slots=True)
class _Stored:
    inner: Algorithm
    codec: Codec

    def init(self, model: Params) -> Any:
        return self.inner.init(model)

    def step(self, state: Any, event: Event, ctx: Context) -> tuple[Any, Sequence[Effect]]:
        tree, arrays = self.codec.encode(state)
        return self.inner.step(self.codec.decode(tree, copy.deepcopy(arrays)), event, ctx)


def durable(world: World) -> None:
    """Law 2: a node killed in any step, at any of its three moments, ends with what it would have had.

    It comes back a millisecond late, so this holds where every gather waits for all; with other quorums, and for the
    steps of several nodes (which may then come in another order), only that no client computes twice.
    """
    whole = loop(world)
    patient = _patient(world)
    for node in world.nodes:
        for step in range(1, len(whole.transcript.of(node)) + 1):
            for at in ("before", "journaled", "performed"):
                broken = loop(world, crashes=[Crash(node, step, at, 1e-3)], snapshot_every=3)
                where = f"law 2: killed in step {step} ({at})"
                if patient:
                    if len(world.nodes) == 1:
                        _same(whole.transcript, broken.transcript, where, timeless=True)
                    assert digest(broken.model) == digest(whole.model), f"{where}, node {node} ends with another model."
                    assert digest(broken.slots.rows) == digest(whole.slots.rows), f"{where}: other client state."
                for computed in (broken.driver.devices.computed, broken.driver.streams.computed):
                    assert all(count == 1 for count in computed.values()), f"{where}: computed twice."


def deaf_to_duplicates(world: World) -> None:
    """Law 3: asks, replies and messages that come twice change nothing, and take no step."""
    always = 1 << 60
    faults = [Fault("repeat", kind, 0.0, times=always) for kind in ("ask", "reply", "event")]
    _same(loop(world).transcript, loop(world, faults).transcript, "law 3: with every message doubled")


def orderless(world: World, shuffles: int = 4) -> None:
    """Law 4: the order of replies within a gather changes no bit (for quorums of all, which it cannot decide)."""
    if not _patient(world):
        return
    whole = loop(world).transcript
    for seed in range(shuffles):
        _same(whole, loop(world, shuffle=seed).transcript, f"law 4: replies in order {seed}")


def divisible(world: World, workers: Sequence[int] = (1, 2), chunks: Sequence[int] = (1, 3, 100)) -> None:
    """Law 5: neither workers nor chunks change a bit."""
    whole = simulate(world).transcript
    for count, chunk in itertools.product(workers, chunks):
        other = simulate(world, workers=count, chunk=chunk).transcript
        _same(whole, other, f"law 5: with {count} workers and chunks of {chunk}")


def onward(world: World) -> None:
    """Law 7: time never goes back."""
    times = [step.now for step in simulate(world).transcript.steps]
    assert times == sorted(times), f"law 7: time goes back: {times}."


@dataclass(slots=True, eq=False)
class _Books:
    """What an observer adds up."""

    asks: list[tuple[Ask | StreamAsk, Gathered]] = field(default_factory=list[tuple[Ask | StreamAsk, Gathered]])

    def __call__(self, seen: Any) -> None:
        if isinstance(seen, Answered):
            self.asks.append((seen.ask, seen.event))


def conserved(world: World) -> None:
    """Law 9: weights in = weights out, bytes counted = bytes sent, client state committed = replies accepted."""
    books = _Books()
    end, real = simulate(world, observer=books), loop(world)
    at_work: dict[tuple[str, str], int] = {}
    for ask, event in books.asks:
        where = f"law 9, {ask.run.tag}"
        lost = sum(len(ids) for reason, ids in event.missing.items() if reason != "unavailable")
        asked = ask.asked
        if isinstance(ask, StreamAsk):
            stream, asked = (ask.node, ask.run.work), len(ask.over)
            left = at_work.get(stream, 0) + ask.begun - asked
            assert left == ask.at_work, f"{where}: {ask.at_work} are at work, begun less ended are {left}."
            at_work[stream] = ask.at_work
        assert len(event.clients) + lost == asked, f"{where}: {asked} asked, {len(event.clients)} + {lost} told."
        assert event.weight == float(event.weights.sum()), f"{where}: weight {event.weight} of {event.weights.sum()}."
        for leaf, fold in ask.run.reduce.items():
            if isinstance(fold, Mean) and leaf in event.output:
                told, counted = event.output[leaf].weight, _counted(fold, ask, event)
                assert told == counted, f"{where}: {leaf} has weight {told}, the replies have {counted}."
    p = end.driver.progress
    own = (p.bytes_down, p.bytes_up)
    assert np.allclose(own, (real.driver.bytes_down, real.driver.bytes_up)), (
        f"law 9: {own} bytes, by message otherwise."
    )
    stateful = {gather.id for gather in real.driver.gathers.values() if gather.run.state is not None}
    writes = {key for key, (_, output) in real.driver.devices.cache.items() if output.state is not None}
    counted = 0
    for id_ in stateful:
        _, accepted = real.driver.gathers[id_].finish()
        over = id_ in real.driver.nodes[id_[0]].seen
        counted += sum((id_, client) in writes for client in accepted) if over else 0
    assert end.slots.puts == real.slots.puts == counted, f"law 9: {end.slots.puts} states committed of {counted}."


def _counted(fold: Mean, ask: Ask | StreamAsk, event: Gathered) -> float:
    """The weight that a mean of the replies of `event` has behind it, those of stale models discounted."""
    step, weight = fold.weight_step, event.weights if fold.weighted else np.ones(len(event.clients))
    if isinstance(ask, StreamAsk) and (ask.factor != 1.0).any():
        factor, unit = (
            ask.run.quorum.stale.factor(event.metrics["staleness"].astype(np.int64)),
            FACTOR_STEPS[fold.weighted],
        )
        scale = step if fold.weighted else 1.0
        return float(np.rint(weight / scale * factor / unit).sum()) * (unit * scale)
    return float(np.rint(weight / step if fold.weighted else weight).sum() * step)


def same_everywhere(world: World) -> None:
    """Without faults the loopback, message by message, is the simulator, bit for bit."""
    one, other = simulate(world), loop(world)
    _same(one.transcript, other.transcript, "simulator and loopback")
    assert one.reason == other.reason, f"simulator stops with {one.reason!r}, loopback with {other.reason!r}."
    assert digest(one.slots.rows) == digest(other.slots.rows), "simulator and loopback differ in client state."


def _wrapped(world: World, wrap: Callable[[Algorithm], Algorithm]) -> World:
    return replace(world, nodes={name: (role, wrap(algorithm)) for name, (role, algorithm) in world.nodes.items()})


def _patient(world: World) -> bool:
    """Whether every gather waits for all it asked: only then is a late reply still the same reply."""
    runs: list[Run] = []
    transcript = simulate(world, keep=True).transcript
    for _, _, effects in transcript.kept:
        runs.extend(effect for effect in effects if isinstance(effect, Run))
    return all(run.quorum == ALL for run in runs)


def _same(one: Transcript, other: Transcript, where: str, *, timeless: bool = False) -> None:
    mine, theirs = (t.timeless() if timeless else t.steps for t in (one, other))
    for place, (a, b) in enumerate(zip(mine, theirs, strict=False), 1):
        assert a == b, f"{where}, step {place} differs: {a} became {b}."
    assert len(mine) == len(theirs), f"{where}: {len(mine)} steps became {len(theirs)}."


def _name(event: Event) -> str:
    return type(event).__name__
