"""Wrappers that watch a run: central evaluation, evaluation on clients, and stopping when it is good enough.

Each is an algorithm around an algorithm. It adds effects behind the inner's own, with tags that begin with
"evaluate", and takes their answers for itself; tags and keys of the inner stay as they are.
Invariant: the inner algorithm sees the events it would have seen alone, so the trained model is the same, bit for
bit. `Evaluated` is always passed on (a `StopAt` may sit inside): to an algorithm that did not ask, it is unknown.
The last published version is evaluated before the run ends, also when a `StopAt` inside ends it late: after that
version was published without being evaluated. Then `Evaluate` publishes it once more, with its evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from fieldfare.core.algorithm import Algorithm, Context
from fieldfare.core.effects import Effect, Publish, Run, Stop
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Evaluated, Event, Gathered
from fieldfare.core.metrics import lower_is_better
from fieldfare.core.params import Params
from fieldfare.core.quorum import ALL, Everyone, Quorum, Sample

_EVERYONE = Everyone()


@dataclass(frozen=True, slots=True, eq=False)
class Watching:
    """The inner `state`, the evaluations `due` as (version, name), and the inner's reason to stop, held till they
    are in; the newest version `asked` about, and what was published after it without being asked about (`skipped`)."""

    state: Any
    due: tuple[tuple[int, str], ...] = ()
    held: str | None = None
    asked: int | None = None
    skipped: Publish | None = None

    def answered(self, version: int, name: str) -> Watching:
        return replace(self, due=tuple(ask for ask in self.due if ask != (version, name)))

    def following(
        self, inner: Any, effects: Sequence[Effect], held: str | None, last: bool, every: int, name: str
    ) -> tuple[Watching, list[Publish]]:
        """The state after a step of the inner, and what is now to be evaluated under `name`: each version once."""
        asked, skipped, found = self.asked, self.skipped, list[Publish]()
        for effect in effects:
            if not isinstance(effect, Publish) or effect.version == asked:
                continue
            if effect.version % every == 0:
                asked, skipped = effect.version, None
                found.append(effect)
            else:
                skipped = effect
        if last and skipped is not None:
            asked = skipped.version
            found.append(skipped)
            skipped = None
        due = (*self.due, *((publish.version, name) for publish in found))
        return Watching(inner, due, held, asked, skipped), found

    def ending(self) -> Sequence[Effect]:
        """The held `Stop`, once nothing is due."""
        return (Stop(self.held),) if self.held is not None and not self.due else ()


@dataclass(frozen=True, slots=True)
class Evaluate:
    """`inner`, whose every `every`-th version, and the last, is evaluated centrally under the name `central`.

    The last is the newest when the inner stops; published before that step, it is published again to be evaluated.
    The inner's `Stop` waits for the evaluations that are due, since stopping would cancel them.
    """

    inner: Algorithm
    central: str = "test"
    every: int = 1

    def __post_init__(self) -> None:
        _positive("Evaluate", self.every)

    def init(self, model: Params) -> Watching:
        return Watching(self.inner.init(model))

    def step(self, state: Watching, event: Event, ctx: Context) -> tuple[Watching, Sequence[Effect]]:
        mine = isinstance(event, Evaluated) and (event.version, event.name) in state.due
        if isinstance(event, Evaluated) and mine:
            state = state.answered(event.version, event.name)
        if state.held is not None:
            return state, state.ending() if mine else ()
        inner, effects = self.inner.step(state.state, event, ctx)
        if inner is state.state and not effects:
            return state, ()
        stop, last = _stop(effects), _over(inner, effects)
        kept = [effect for effect in effects if not isinstance(effect, Stop)]
        state, asked = state.following(inner, kept, stop, last, self.every, self.central)
        out = [self._asking(e) if isinstance(e, Publish) and e in asked else e for e in kept]
        out += [self._asking(publish) for publish in asked if publish not in kept]
        return state, (*out, *state.ending())

    def _asking(self, publish: Publish) -> Publish:
        return replace(publish, evaluate=tuple(dict.fromkeys((*publish.evaluate, self.central))))


@dataclass(frozen=True, slots=True)
class EvaluateOnClients:
    """`inner`, whose every `every`-th version, and the last, is evaluated by `work` on the clients `on`.

    The ask has tag ("evaluate", kind, version), key ("evaluate", version) and `config={"version": version}`; its
    metrics are in the driver's record, and their means by weight go to the inner as `Evaluated(version, kind, ...)`
    for a `StopAt` in there. `kind="personal"` measures each client's own model: its personal tensors or twin in `slot`
    (the algorithm's, unless named), or what `work` makes of the published model where nothing is kept.
    """

    inner: Algorithm
    on: Sample | Everyone = _EVERYONE
    every: int = 1
    work: str = "evaluate"
    kind: Literal["federated", "personal", "fine_tuned"] = "federated"
    slot: str | None = None
    quorum: Quorum = ALL

    def __post_init__(self) -> None:
        _positive("EvaluateOnClients", self.every)
        within: Any = self.inner
        while hasattr(within, "inner"):
            if isinstance(within, EvaluateOnClients) and within.kind == self.kind:
                raise UsageError(f"EvaluateOnClients(kind={self.kind!r}) stands inside another of its kind; use one.")
            within = within.inner
        if self.kind != "federated" and self.slot is None:
            object.__setattr__(self, "slot", getattr(within, "slot", None))

    def init(self, model: Params) -> Watching:
        return Watching(self.inner.init(model))

    def step(self, state: Watching, event: Event, ctx: Context) -> tuple[Watching, Sequence[Effect]]:
        match event:
            case Gathered(tag=("evaluate", self.kind, int(version))) if (version, self.kind) in state.due:
                state = state.answered(version, self.kind)
                event = Evaluated(version, self.kind, means(event))
                if state.held is not None:
                    return state, state.ending()
            case _ if state.held is not None:
                return state, ()
            case _:
                pass
        inner, effects = self.inner.step(state.state, event, ctx)
        if inner is state.state and not effects:
            return state, ()
        stop, last = _stop(effects), _over(inner, effects)
        state, published = state.following(inner, effects, stop, last, self.every, self.kind)
        runs = tuple(self._ask(publish) for publish in published)
        return state, (*(e for e in effects if not isinstance(e, Stop)), *runs, *state.ending())

    def _ask(self, publish: Publish) -> Run:
        v = publish.version
        return Run(
            self.work, self.on, ("evaluate", self.kind, v), publish.model, self.quorum, config={"version": v},
            state=self.slot, key=("evaluate", v),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Patience:
    """The inner `state`, the best value so far, evaluations since it was beaten, and whether the run was stopped."""

    state: Any
    best: float | None = None
    since: int = 0
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class StopAt:
    """`inner`, stopped when `metric` of an evaluation is `at_least` or `at_most` a value, or has not improved.

    `patience=k` stops after k evaluations in a row that did not beat the best by more than `margin`; "better" is
    lower for `at_most` and for losses and errors (by name), else higher. `name` picks one evaluation; None: any.
    Put it inside the evaluations: they hold its `Stop` until the last published version is evaluated.
    """

    inner: Algorithm
    metric: str = "accuracy"
    at_least: float | None = None
    at_most: float | None = None
    patience: int | None = None
    margin: float = 0.0
    name: str | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None and self.patience is None:
            raise UsageError("StopAt: nothing to stop at; give at_least=, at_most= or patience=.")
        if self.at_least is not None and self.at_most is not None:
            raise UsageError("StopAt: at_least and at_most contradict each other; give one.")
        if self.patience is not None:
            _positive("StopAt", self.patience, "patience")

    def init(self, model: Params) -> Patience:
        return Patience(self.inner.init(model))

    def step(self, state: Patience, event: Event, ctx: Context) -> tuple[Patience, Sequence[Effect]]:
        if state.stopped:
            return state, ()
        seen = state
        if isinstance(event, Evaluated) and self.name in (None, event.name) and self.metric in event.metrics:
            seen, reason = self._weigh(state, event)
            if reason is not None:
                return replace(seen, stopped=True), (Stop(reason),)
        inner, effects = self.inner.step(state.state, event, ctx)
        if inner is state.state and not effects:
            return seen, ()
        return replace(seen, state=inner, stopped=_stop(effects) is not None), effects

    def _weigh(self, state: Patience, event: Evaluated) -> tuple[Patience, str | None]:
        value = float(event.metrics[self.metric])
        told = f"{self.metric} {value:.6g} at version {event.version}"
        if self.at_least is not None and value >= self.at_least:
            return state, f"{told}: at least {self.at_least:g}"
        if self.at_most is not None and value <= self.at_most:
            return state, f"{told}: at most {self.at_most:g}"
        if self.patience is None:
            return state, None
        lower = self.at_most is not None or (self.at_least is None and lower_is_better(self.metric))
        gain = np.inf if state.best is None else (state.best - value if lower else value - state.best)
        if gain > self.margin:
            return replace(state, best=value, since=0), None
        state = replace(state, since=state.since + 1)
        return state, f"{told}: no better in {self.patience} evaluations" if state.since >= self.patience else None


def means(event: Gathered) -> dict[str, float]:
    """The mean of each metric over the clients that sent a finite one, by weight; a metric nobody sent is absent."""
    out: dict[str, float] = {}
    for name, values in event.metrics.items():
        good = np.isfinite(values)
        total = float(np.sum(event.weights[good]))
        if total > 0:
            out[name] = float(np.sum(values[good] * event.weights[good]) / total)
    return out


def innermost(algorithm: Any) -> Any:
    """The algorithm inside all wrappers."""
    while hasattr(algorithm, "inner"):
        algorithm = algorithm.inner
    return algorithm


def awaited(state: Any) -> frozenset[tuple[int, str]]:
    """The evaluations, as (version, name), that the wrappers with this state still wait for."""
    due: list[tuple[int, str]] = []
    while isinstance(state, Watching | Patience):
        if isinstance(state, Watching):
            due.extend(state.due)
        state = state.state
    return frozenset(due)


def _stop(effects: Sequence[Effect]) -> str | None:
    return next((effect.reason for effect in effects if isinstance(effect, Stop)), None)


def _over(state: Any, effects: Sequence[Effect]) -> bool:
    """Whether the run ends with these effects, be it that a wrapper within holds the `Stop`."""
    while isinstance(state, Watching | Patience):
        if isinstance(state, Watching) and state.held is not None:
            return True
        state = state.state
    return _stop(effects) is not None


def _positive(what: str, value: int, field: str = "every") -> None:
    if value < 1:
        raise UsageError(f"{what}({field}={value}): count evaluations from 1; use {field} >= 1.")
