"""The law harness finds what it is for: one offender per law, each an algorithm someone might write."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from fieldfare.algorithms import FedAvg, Scaffold
from fieldfare.core.effects import Publish, Run, Stop
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered, Started, Woke
from fieldfare.core.folds import Collect, Mean
from fieldfare.core.params import Layout, Params
from fieldfare.core.quorum import Everyone
from fieldfare.core.work import Output
from fieldfare.testing import checks, digest, laws, quadratics, simulate
from fieldfare.testing.checks import (
    conserved,
    divisible,
    durable,
    onward,
    orderless,
    pure,
    same_everywhere,
    storable,
    total,
)
from fieldfare.testing.toys import Echo

PROBLEM = quadratics()
_MEAN = Mean()


@dataclass(frozen=True)
class Offender(FedAvg):
    """FedAvg with a fault; state is kept in a box `[[...]]` where the fault wants one."""

    box: Any = field(default_factory=list, compare=False)


class Drawing(Offender):
    def step(self, state, event, ctx):
        state, effects = super().step(state, event, ctx)
        return state, tuple(replace(e, config={"x": float(np.random.default_rng().random())}) for e in effects)


class Writing(Offender):
    def step(self, state, event, ctx):
        if isinstance(event, Gathered) and event.output:
            event.output["delta"].value[:] = 0
        return super().step(state, event, ctx)


class Listening(Offender):
    def step(self, state, event, ctx):
        if isinstance(event, Woke):
            return replace(state, population=state.population + 1), ()
        return super().step(state, event, ctx)


class Shouting(Offender):
    def step(self, state, event, ctx):
        if isinstance(event, Woke):
            return state, (Stop("woken"),)
        return super().step(state, event, ctx)


class Remembering(Offender):
    """Keeps its round in itself, not in its state."""

    def step(self, state, event, ctx):
        if isinstance(event, Gathered):
            self.box.append(1)
        state, effects = super().step(state, event, ctx)
        return state, tuple(replace(e, version=len(self.box)) if isinstance(e, Publish) else e for e in effects)


class Hoarding(Offender):
    def init(self, model):
        return replace(super().init(model), rule={1, 2})


def test_an_algorithm_that_draws_its_own_randomness_breaks_law_1():
    with pytest.raises(AssertionError, match="law 1: step is not deterministic on Started"):
        pure(PROBLEM.world(Drawing(2, 3)))


def test_an_algorithm_that_writes_to_its_event_breaks_law_1():
    with pytest.raises(AssertionError, match="law 1: step changed its arguments on Gathered"):
        pure(PROBLEM.world(Writing(2, 3)))


def test_an_algorithm_with_memory_outside_its_state_breaks_laws_1_and_2():
    with pytest.raises(AssertionError, match="law 1: step is not deterministic on Gathered"):
        pure(PROBLEM.world(Remembering(2, 3)))
    with pytest.raises(AssertionError, match=r"law 2: killed in step 1 \(before\), step 2 differs"):
        durable(PROBLEM.world(Remembering(3, 3)))


def test_a_state_that_cannot_be_stored_breaks_law_2():
    with pytest.raises(UsageError, match="a set cannot be stored"):
        storable(PROBLEM.world(Hoarding(2, 3)))


@pytest.mark.parametrize(("offender", "what"), [(Listening, "changed the state"), (Shouting, "had effects")])
def test_an_algorithm_that_heeds_what_it_did_not_ask_for_breaks_law_3(offender, what):
    with pytest.raises(AssertionError, match=f"law 3: an unknown Woke after Started {what}"):
        total(PROBLEM.world(offender(2, 3)))


class Neighbours(Echo):
    """Rows that depend on the cohort they are computed in."""

    def __call__(self, cohort):
        out = super().__call__(cohort)
        return replace(out, leaves={"id": np.full((cohort.n, 1), cohort.n, np.float32)})


class Counting(Echo):
    """Rows that depend on how often the work was called."""

    calls = itertools.count()

    def __call__(self, cohort):
        return Output({"id": np.full((cohort.n, 1), next(self.calls), np.float32)}, np.ones(cohort.n))


@dataclass(frozen=True)
class Once:
    """Asks everybody once, collects, and publishes what came."""

    fold: Any = _MEAN

    def init(self, model):
        return ()

    def step(self, state, event, ctx):
        if isinstance(event, Gathered):
            if event.tag != "once":
                return state, ()
            value = event.output["id"].value
            value = np.array(next(iter(value.values()))) if isinstance(value, dict) else value
            return state, (Publish(Params(value, Layout.of({"x": (1,)})), 1), Stop("asked"))
        return state, (Run("odd", Everyone(), "once", reduce={"id": self.fold}),) if isinstance(event, Started) else ()


def test_work_whose_rows_depend_on_their_neighbours_breaks_law_5_and_differs_by_driver():
    world = PROBLEM.world(Once(), works={"odd": Neighbours()})
    with pytest.raises(AssertionError, match="law 5: with 1 workers and chunks of 1, step 2 differs"):
        divisible(world)
    with pytest.raises(AssertionError, match="simulator and loopback, step 2 differs"):
        same_everywhere(world)


def test_work_whose_rows_depend_on_the_order_of_computing_breaks_law_4():
    with pytest.raises(AssertionError, match="law 4: replies in order 0, step 2 differs"):
        orderless(PROBLEM.world(Once(Collect()), works={"odd": Counting()}))


def test_time_that_goes_back_breaks_law_7(monkeypatch):
    def backwards(world):
        end = simulate(world)
        end.transcript.steps.reverse()
        return end

    monkeypatch.setattr(checks, "simulate", backwards)
    with pytest.raises(AssertionError, match="law 7: time goes back"):
        onward(PROBLEM.world(FedAvg(2, 3)))


def test_state_that_is_committed_though_the_reply_was_not_counted_breaks_law_9(monkeypatch):
    from fieldfare.sim.batch import Executor

    real = Executor.accept

    def twice(self, ask, event):
        real(self, ask, event)
        if ask.run.state is not None and self.slots is not None:
            self.slots.puts += 1

    monkeypatch.setattr(Executor, "accept", twice)
    with pytest.raises(AssertionError, match=r"law 9: 12 states committed of 10"):
        conserved(PROBLEM.world(Scaffold(2, 5)))


def test_laws_take_an_algorithm_a_problem_or_a_world_and_pass_what_is_sound():
    laws(FedAvg(2, 3))
    laws(FedAvg(2, 3), quadratics(n=4, dim=2))
    laws(PROBLEM.world(FedAvg(2, 3)))
    with pytest.raises(AssertionError, match="law 1"):
        laws(Drawing(2, 3))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(2), np.zeros(2, np.float32)), (np.zeros((1, 2)), np.zeros((2, 1))), (0.0, -0.0), (1, 1.0), (1, True),
        ("a", b"a"), ((1, 2), [1, 2]), ({"a": 1}, {"a": 2}), (None, False), (Gathered, Woke), (((1,), 2), ((1, 2),)),
    ],
)  # fmt: skip
def test_digests_tell_apart_what_differs_in_bits_types_or_structure(one, other):
    assert digest(one) == digest(one)
    assert digest(one) != digest(other)


def test_digests_of_equal_values_are_equal_whatever_the_order_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(np.arange(6).reshape(2, 3).T.copy()) == digest(np.arange(6).reshape(2, 3).T)
    with pytest.raises(UsageError, match="a set has no digest"):
        digest({1})
