"""A pure in-test driver and clients whose training is known in closed form: diagonal quadratics.

Client i has F_i(w) = 1/2 sum_j a_ij (w_j - b_ij)**2, takes `steps[i]` gradient steps and obeys every local
declaration. Folds are the real ones of `aggregate.gather`; chunks and their order can be chosen. Of a quorum with
`need` the first clients count; where late replies count in the next gather, client i replies from a model i mod 3
versions old.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fieldfare.aggregate.gather import Gather
from fieldfare.algorithms import innermost
from fieldfare.core import rng
from fieldfare.core.algorithm import Algorithm, Context
from fieldfare.core.effects import Effect, Publish, Run, Stop
from fieldfare.core.events import Evaluated, Event, Gathered, Started
from fieldfare.core.local import ControlVariate, Dynamic, Fair, Local, Normalised, Personal, Proximal, Twin
from fieldfare.core.params import Layout, Params
from fieldfare.core.quorum import Everyone, Sample

CONTEXT = Context(0.0, "server", 0)


@dataclass
class Quadratics:
    """N clients on P parameters; `a`, `b` float64 [N, P], `steps` int [N], `weights` [N]."""

    a: np.ndarray
    b: np.ndarray
    steps: np.ndarray
    weights: np.ndarray
    lr: float = 0.1
    slots: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    sent: list[Run] = field(default_factory=list)

    @classmethod
    def random(cls, seed: int, n: int = 8, size: int = 5, lr: float = 0.1) -> Quadratics:
        g = np.random.default_rng(seed)
        return cls(
            g.uniform(0.2, 2.0, (n, size)), g.normal(size=(n, size)), g.integers(1, 6, n),
            g.integers(1, 50, n).astype(float), lr,
        )  # fmt: skip

    @property
    def layout(self) -> Layout:
        size = self.a.shape[1]
        return Layout(("body", "head"), ((size - 2,), (2,)))

    def model(self) -> Params:
        return Params(np.zeros(self.layout.size, np.float32), self.layout)

    def loss(self, i: int, w: np.ndarray) -> float:
        return float(0.5 * np.sum(self.a[i] * (w - self.b[i]) ** 2))

    def optimum(self, share: np.ndarray | None = None) -> np.ndarray:
        p = np.full(len(self.a), 1 / len(self.a)) if share is None else share / share.sum()
        return (p[:, None] * self.a * self.b).sum(0) / (p[:, None] * self.a).sum(0)

    def train(self, i: int, run: Run, locals_: Sequence[Local]) -> dict[str, np.ndarray]:
        """The leaves of client i, by the contract between algorithms and the work "train"."""
        assert run.model is not None
        start = run.model.vector.astype(np.float64)
        steps, lr = int(self.steps[i]), self.lr
        kept = self.slots.setdefault(run.state, {}) if run.state else {}
        old = kept.get(i)
        mine = np.zeros_like(start) if old is None else old.astype(np.float64)
        add, mu, free = np.zeros_like(start), 0.0, np.ones_like(start)
        w = start.copy()
        for local in locals_:
            match local:
                case Proximal(value):
                    mu += value
                case ControlVariate():
                    add = np.asarray(run.inputs["c"], np.float64) - mine
                case Dynamic(alpha):
                    mu, add = mu + alpha, -mine
                case Personal(names):
                    own = self.layout.mask(names)
                    w[own] = start[own] if old is None else mine[own]
                    free = np.where(own, 0.0, 1.0)
                case _:
                    pass
        begin = w.copy()
        for _ in range(steps):
            w = w - lr * (self.a[i] * (w - self.b[i]) + add + mu * (w - start))
        if run.config.get("reply") == "model":
            return {"model": w}
        leaves = {"delta": (w - begin) * free}
        for local in locals_:
            match local:
                case ControlVariate():
                    new = mine - np.asarray(run.inputs["c"]) + (start - w) / (steps * lr)
                    leaves["dc"], kept[i] = new - mine, new.astype(np.float32)
                case Dynamic(alpha):
                    kept[i] = (mine - alpha * (w - start)).astype(np.float32)
                case Normalised():
                    leaves["delta"], leaves["tau"] = leaves["delta"] / steps, np.array([float(steps)])
                case Fair(q):
                    f, big = self.loss(i, start) + 1e-10, 1 / lr
                    gradient = big * (w - start)
                    leaves["delta"] = f**q * gradient
                    leaves["h"] = np.array([q * f ** (q - 1) * np.sum(gradient**2) + big * f**q])
                case Personal():
                    kept[i] = w.astype(np.float32)
                case Twin(lam):
                    twin = start if old is None else mine
                    for _ in range(steps):
                        twin = twin - lr * (self.a[i] * (twin - self.b[i]) + lam * (twin - start))
                    kept[i] = twin.astype(np.float32)
                case _:
                    pass
        return leaves


def cohort(run: Run, n: int, seed: int) -> np.ndarray:
    match run.on:
        case Sample(count):
            return np.sort(rng.choose(seed, (run.work, *run.key), count, n))
        case Everyone():
            return np.arange(n)
        case _:
            return np.sort(np.asarray(run.on))


def answer(
    run: Run, world: Quadratics, locals_: Sequence[Local], seed: int = 0,
    lost: Callable[[Run, int], bool] | None = None, order: Callable[[int], Sequence[int]] = range, chunk: int = 3,
) -> Gathered:  # fmt: skip
    """The one reply to `run`: chunks of clients, folded in the given `order`, merged."""
    ids = cohort(run, len(world.a), seed)
    kept = np.array([i for i in ids if lost is None or not lost(run, int(i))], np.int64)
    kept, late = kept[: run.quorum.need], kept[len(kept[: run.quorum.need]) :]
    assert run.model is not None
    world.sent.append(run)
    tau = np.zeros(len(kept), np.int64)
    if run.quorum.late == "next" and run.work == "train":
        before = [one for one in world.sent if one.work == run.work]
        tau = np.minimum(kept % 3, len(before) - 1)
        late = late[:0]
    runs = [run if not t else before[-1 - t] for t in tau]
    factor = run.quorum.stale.factor(tau) if tau.any() else None
    metrics = {"loss": np.array([world.loss(i, r.model.vector.astype(float)) for i, r in zip(kept, runs, strict=True)])}
    weights = world.weights[kept]
    gather = Gather(run.reduce, len(ids), factor is not None)
    if run.work == "train" and len(kept):
        rows = [world.train(int(i), r, locals_) for i, r in zip(kept, runs, strict=True)]
        turn = np.array([at for at in order(len(ids)) if at < len(kept)])
        for at in range(0, len(kept), chunk):
            pick = turn[at : at + chunk]
            part, f = Gather(run.reduce, len(ids), factor is not None), None if factor is None else factor[pick]
            leaves = {name: np.stack([rows[i][name] for i in pick]).astype(np.float32) for name in rows[0]}
            assert not gather.check(leaves, weights[pick], f).any()
            part.add(kept[pick], leaves, weights[pick], factor=f)
            gather.merge(part.partials)
    missing = {"lost": np.setdiff1d(ids, np.concatenate([kept, late])), "late": late}
    missing = {reason: who for reason, who in missing.items() if len(who) or reason == "lost"}
    return Gathered(run.tag, gather.finish(), float(weights.sum()), kept, weights, metrics, missing)


@dataclass
class Record:
    """What happened: events taken, the state after each, the effects of each."""

    first: Any
    events: list[Event] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    effects: list[tuple[Effect, ...]] = field(default_factory=list)

    @property
    def flat(self) -> list[Effect]:
        return [effect for effects in self.effects for effect in effects]

    @property
    def models(self) -> list[np.ndarray]:
        return [effect.model.vector for effect in self.flat if isinstance(effect, Publish)]

    @property
    def model(self) -> np.ndarray:
        return self.models[-1].astype(np.float64)

    @property
    def stopped(self) -> list[str]:
        return [effect.reason for effect in self.flat if isinstance(effect, Stop)]


def drive(algorithm: Algorithm, world: Quadratics, seed: int = 0, limit: int = 2000, **how: Any) -> Record:
    """Run to the end: effects are performed in order, their answers taken first in, first out."""
    world.slots, world.sent = {}, []
    locals_ = innermost(algorithm).local
    state = algorithm.init(world.model())
    record = Record(state)
    queue: list[Event] = [Started({"server": ("server",)}, len(world.a))]
    while queue and not record.stopped and len(record.events) < limit:
        event = queue.pop(0)
        state, effects = algorithm.step(state, event, CONTEXT)
        record.events.append(event)
        record.states.append(state)
        record.effects.append(tuple(effects))
        for effect in effects:
            match effect:
                case Run():
                    queue.append(answer(effect, world, locals_, seed, **how))
                case Publish(model, version, names):
                    loss = np.average([world.loss(i, model.vector) for i in range(len(world.a))], weights=world.weights)
                    queue.extend(Evaluated(version, name, {"loss": float(loss)}) for name in names)
                case _:
                    pass
    return record


def storable(value: Any) -> Any:
    """A copy made of what a snapshot can hold; anything else is an AssertionError."""
    match value:
        case None | bool() | int() | float() | str() | bytes():
            return value
        case np.ndarray():
            assert value.dtype != object
            return value.copy()
        case tuple():
            return tuple(storable(part) for part in value)
        case dict():
            return {storable(key): storable(part) for key, part in value.items()}
        case _:
            assert dataclasses.is_dataclass(value), type(value)
            assert value.__dataclass_params__.frozen, type(value)
            return type(value)(**{f.name: storable(getattr(value, f.name)) for f in dataclasses.fields(value)})


def flatten(value: Any) -> list[Any]:
    """Every leaf of a value, arrays as (dtype, shape, bytes), for comparing to the bit."""
    match value:
        case np.ndarray():
            return [(value.dtype.str, value.shape, value.tobytes())]
        case tuple() | list():
            return [type(value).__name__, *(leaf for part in value for leaf in flatten(part))]
        case dict():
            return [leaf for key in value for leaf in (key, *flatten(value[key]))]
        case _ if dataclasses.is_dataclass(value):
            parts = (flatten(getattr(value, f.name)) for f in dataclasses.fields(value))
            return [type(value).__name__, *(leaf for part in parts for leaf in part)]
        case _:
            return [value]


def freeze(value: Any) -> None:
    """Make every array inside read-only."""
    match value:
        case np.ndarray():
            value.flags.writeable = False
        case tuple() | list():
            for part in value:
                freeze(part)
        case dict():
            freeze(list(value.values()))
        case _ if dataclasses.is_dataclass(value):
            freeze([getattr(value, f.name) for f in dataclasses.fields(value)])
        case _:
            pass
