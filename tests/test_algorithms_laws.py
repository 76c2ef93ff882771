"""Laws that every registered algorithm keeps, plain and wrapped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from algorithm_driver import CONTEXT, Quadratics, drive, flatten, freeze, storable
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.algorithms import ALGORITHMS, Entry, Evaluate, EvaluateOnClients, FedAvg, StopAt, check
from fieldfare.core.effects import Publish, Run, Stop
from fieldfare.core.events import Evaluated, Gathered, Joined, Left, Moved, Received, Started, Woke

N, COHORT = 8, 6

VECTORS = [entry for entry in ALGORITHMS if entry.model == "vector"]
every = pytest.mark.parametrize("entry", VECTORS, ids=lambda entry: entry.name)
few = settings(max_examples=8, deadline=None)


def plain(entry: Entry, rounds: int = 3) -> FedAvg:
    return entry.factory(rounds, COHORT, **entry.example)


def wrapped(entry: Entry, rounds: int = 3) -> StopAt:
    inner = EvaluateOnClients(plain(entry, rounds), every=2)
    return StopAt(Evaluate(inner, "test"), "loss", patience=99, name="test")


makes = pytest.mark.parametrize("make", [plain, wrapped])
STRANGE = [
    Woke("later"), Joined(3), Left(3), Moved(3, "edge"), Received("peer", {"x": 1}),
    Evaluated(7, "else", {"loss": 0.0}),
    Gathered(99, {}, 0.0, np.empty(0, np.int64), np.empty(0), {}), Started({}, 5),
    Gathered(("evaluate", "federated", 99), {}, 0.0, np.empty(0, np.int64), np.empty(0), {}),
    Gathered("train", {}, 0.0, np.empty(0, np.int64), np.empty(0), {}),
]  # fmt: skip


@every
@makes
@given(seed=st.integers(0, 2**32 - 1))
@few
def test_a_step_is_deterministic_and_leaves_its_arguments_untouched(entry: Entry, make: Any, seed: int) -> None:
    algorithm, world = make(entry), Quadratics.random(seed, N)
    record = drive(algorithm, world, seed)
    state = record.first
    for event, after, effects in zip(record.events, record.states, record.effects, strict=True):
        freeze(state)
        freeze(event)
        before = flatten(state), flatten(event)
        again, same = algorithm.step(state, event, CONTEXT)
        assert flatten(again) == flatten(after)
        assert flatten(tuple(same)) == flatten(effects)
        assert (flatten(state), flatten(event)) == before
        state = again


@every
@makes
def test_an_unknown_event_changes_nothing(entry: Entry, make: Any) -> None:
    algorithm = make(entry)
    record = drive(algorithm, Quadratics.random(1, N))
    for state in record.states:
        for event in STRANGE:
            after, effects = algorithm.step(state, event, CONTEXT)
            assert after is state, event
            assert tuple(effects) == (), event


@every
@makes
def test_an_answer_that_comes_after_the_end_changes_nothing(entry: Entry, make: Any) -> None:
    algorithm = make(entry)
    record = drive(algorithm, Quadratics.random(1, N))
    assert len(record.stopped) == 1
    for event in record.events:
        after, effects = algorithm.step(record.states[-1], event, CONTEXT)
        assert after is record.states[-1], event
        assert tuple(effects) == (), event


@every
@makes
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
@few
def test_a_run_resumed_from_a_stored_state_equals_one_that_never_stopped(
    entry: Entry, make: Any, seed: int, data: st.DataObject
) -> None:
    algorithm = make(entry)
    record = drive(algorithm, Quadratics.random(seed, N), seed)
    k = data.draw(st.integers(0, len(record.events)))
    state = algorithm.init(Quadratics.random(seed, N).model())
    for event in record.events[:k]:
        state, _ = algorithm.step(state, event, CONTEXT)
    state = storable(state)
    for event, after, effects in zip(record.events[k:], record.states[k:], record.effects[k:], strict=True):
        state, same = make(entry).step(state, event, CONTEXT)
        assert flatten(state) == flatten(after)
        assert flatten(tuple(same)) == flatten(effects)


@every
@given(seed=st.integers(0, 2**32 - 1), chunk=st.integers(1, 7), data=st.data())
@few
def test_neither_order_nor_chunks_of_the_replies_change_a_bit(
    entry: Entry, seed: int, chunk: int, data: st.DataObject
) -> None:
    algorithm, world = plain(entry), Quadratics.random(seed, N)
    turn = data.draw(st.permutations(range(N)))
    first = drive(algorithm, world, seed)
    other = drive(algorithm, world, seed, order=lambda n: [i for i in turn if i < n], chunk=chunk)
    assert flatten(first.states[-1]) == flatten(other.states[-1])
    assert first.stopped == other.stopped == ["rounds"]


@every
def test_one_run_is_in_flight_and_every_round_publishes_its_version(entry: Entry) -> None:
    record = drive(plain(entry, 4), Quadratics.random(2, N))
    runs = [effect for effect in record.flat if isinstance(effect, Run)]
    assert [run.tag for run in runs] == [1, 2, 3, 4]
    assert [run.key for run in runs] == [("train", r) for r in (1, 2, 3, 4)]
    assert [run.config["round"] for run in runs] == [1, 2, 3, 4]
    assert len({str(sorted({**run.config, "round": 0}.items())) for run in runs}) == 1
    assert [effect.version for effect in record.flat if isinstance(effect, Publish)] == [1, 2, 3, 4]
    assert [len([e for e in effects if isinstance(e, Run)]) for effects in record.effects] == [1, 1, 1, 1, 0]
    assert isinstance(record.flat[-1], Stop)
    assert len({run.state for run in runs}) == 1


@every
def test_a_run_in_which_nobody_answers_ends_with_the_model_it_began_with(entry: Entry) -> None:
    record = drive(plain(entry), Quadratics.random(3, N), lost=lambda run, i: True)
    assert record.stopped == ["rounds"]
    assert all((model == 0).all() for model in record.models)
    assert [effect.version for effect in record.flat if isinstance(effect, Publish)] == [1, 2, 3]


@every
def test_a_round_that_nobody_answers_leaves_all_but_its_number_as_it_was(entry: Entry) -> None:
    record = drive(plain(entry), Quadratics.random(4, N), lost=lambda run, i: run.tag == 2)
    assert flatten(record.states[1].model) == flatten(record.states[2].model)
    for part in ("server", "rule"):
        assert flatten(getattr(record.states[1], part, ())) == flatten(getattr(record.states[2], part, ()))
    assert not np.array_equal(record.models[1], record.models[2])


@every
@given(seed=st.integers(0, 2**32 - 1))
@few
def test_watching_a_run_does_not_change_the_trained_model(entry: Entry, seed: int) -> None:
    world = Quadratics.random(seed, N)
    alone, watched = drive(plain(entry), world, seed), drive(wrapped(entry), world, seed)
    assert flatten(alone.models) == flatten(watched.models)
    inner = watched.states[-1].state.state.state
    assert flatten(inner) == flatten(alone.states[-1])


@every
def test_every_step_lowers_the_loss_on_quadratics(entry: Entry) -> None:
    world = Quadratics.random(5, N)
    world.b += 3.0
    record = drive(plain(entry, 5), world)
    losses = [sum(world.loss(i, w) for i in range(N)) for w in (np.zeros(5), *record.models)]
    assert losses[-1] < losses[0]
    assert losses[1] < losses[0]


@every
def test_a_registered_algorithm_passes_the_check_on_its_own(entry: Entry) -> None:
    check(plain(entry), layout=Quadratics.random(0).layout, clients=N)
    check(wrapped(entry), layout=Quadratics.random(0).layout, clients=N)
