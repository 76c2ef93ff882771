"""The plan of batches: which examples, in which order, for every client."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.work.net import Training
from fieldfare.work.plan import make_plan, passes_and_steps

SIZES = st.lists(st.integers(0, 23), min_size=1, max_size=8)
TRAININGS = st.builds(
    Training,
    batch_size=st.integers(1, 9),
    epochs=st.integers(1, 3),
    steps=st.none() | st.integers(1, 12),
    shuffle=st.booleans(),
)


def made(sizes):
    total = sum(sizes)
    rows = np.random.default_rng(3).permutation(total) + 100
    data = Block({}, rows, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
    return data, rng.keys(1, ("plan",), np.arange(len(sizes)))


def of_client(plan, i):
    return plan.rows[plan.start[i] : plan.start[i + 1]]


@given(SIZES, TRAININGS)
def test_every_pass_takes_each_example_of_the_client_once(sizes, training):
    data, keys = made(sizes)
    plan = make_plan(data, keys, training)
    for i, size in enumerate(sizes):
        own = set(data.rows[data.offsets[i] : data.offsets[i + 1]].tolist())
        taken = of_client(plan, i).tolist()
        for at in range(0, len(taken), max(size, 1)):
            one = taken[at : at + size]
            assert len(set(one)) == len(one)
            assert set(one) <= own
            if len(one) == size:
                assert set(one) == own
        if training.steps is None:
            assert len(taken) == size * training.epochs


@given(SIZES, TRAININGS)
def test_batches_are_full_but_the_last_of_a_pass_which_takes_what_is_left(sizes, training):
    data, keys = made(sizes)
    plan = make_plan(data, keys, training)
    for i, size in enumerate(sizes):
        lengths = np.diff(plan.step_bounds(i)).tolist()
        assert len(lengths) == plan.steps[i]
        b = min(training.batch_size, max(size, 1))
        one_pass = [b] * (size // b) + ([size % b] if size % b else [])
        assert lengths == (one_pass * (len(lengths) + 1))[: len(lengths)]
        assert plan.step_bounds(i)[-1] == plan.start[i + 1]


@given(SIZES, st.integers(1, 30), st.integers(1, 9))
def test_fixed_steps_go_round_the_data_as_often_as_needed(sizes, steps, batch):
    data, keys = made(sizes)
    plan = make_plan(data, keys, Training(steps=steps, batch_size=batch))
    assert plan.steps.tolist() == [steps if size else 0 for size in sizes]


@given(SIZES, TRAININGS, st.data())
def test_a_clients_plan_depends_on_its_own_key_and_rows_only(sizes, training, draw):
    data, keys = made(sizes)
    whole = make_plan(data, keys, training)
    order = draw.draw(st.permutations(range(len(sizes))))[: draw.draw(st.integers(1, len(sizes)))]
    part = Block(
        {},
        np.concatenate([data.rows[data.offsets[i] : data.offsets[i + 1]] for i in order]),
        np.concatenate([[0], np.cumsum([sizes[i] for i in order])]).astype(np.int64),
    )
    again = make_plan(part, keys[list(order)], training)
    for at, i in enumerate(order):
        assert of_client(again, at).tolist() == of_client(whole, i).tolist()
        assert again.steps[at] == whole.steps[i]


@given(st.integers(1, 40), st.integers(1, 3), st.none() | st.integers(1, 30))
def test_equal_sizes_take_a_fast_path_with_the_numbers_of_the_ragged_one(size, epochs, steps):
    training = Training(batch_size=7, epochs=epochs, steps=steps)
    sizes = [size] * 4
    data, keys = made(sizes)
    ragged, _ = made([*sizes, size + 1])
    mixed = make_plan(
        Block({}, np.concatenate([data.rows, ragged.rows[-size - 1 :]]), ragged.offsets),
        np.append(keys, keys[:1]),
        training,
    )
    even = make_plan(data, keys, training)
    assert even.rows.tolist() == mixed.rows[: len(even.rows)].tolist()


@given(SIZES, TRAININGS)
def test_what_is_announced_is_what_is_planned(sizes, training):
    data, keys = made(sizes)
    plan = make_plan(data, keys, training)
    _, steps, taken = passes_and_steps(np.array(sizes), training)
    assert steps.tolist() == plan.steps.tolist()
    assert taken.tolist() == np.diff(plan.start).tolist()


def test_passes_are_shuffled_anew_and_clients_differ():
    data, keys = made([50, 50])
    plan = make_plan(data, keys, Training(epochs=2))
    first, second = of_client(plan, 0)[:50].tolist(), of_client(plan, 0)[50:].tolist()
    assert first != second
    assert np.argsort(first).tolist() != np.argsort(of_client(plan, 1)[:50]).tolist()
    assert make_plan(data, keys, Training(epochs=2)).rows.tolist() == plan.rows.tolist()


def test_without_shuffling_examples_come_in_stored_order():
    data, keys = made([4, 3])
    plan = make_plan(data, keys, Training(epochs=2, shuffle=False))
    assert of_client(plan, 0).tolist() == data.rows[:4].tolist() * 2


def test_every_place_of_a_shuffle_is_as_likely_as_any_other():
    size, clients = 6, 3000
    data = Block({}, np.tile(np.arange(size), clients), np.arange(clients + 1) * size)
    plan = make_plan(data, rng.keys(5, ("fair",), np.arange(clients)), Training())
    counts = np.stack([np.bincount(column, minlength=size) for column in plan.rows.reshape(clients, size).T])
    expected = clients / size
    chi = ((counts - expected) ** 2 / expected).sum()
    assert chi < 60  # 25 degrees of freedom: beyond 60 once in 10,000


def test_a_cohort_without_clients_or_without_data_has_an_empty_plan():
    none = make_plan(Block.empty(0), np.empty(0, np.uint64), Training())
    assert len(none.rows) == len(none.steps) == 0
    empty = make_plan(Block.empty(2), np.zeros(2, np.uint64), Training(steps=3))
    assert empty.steps.tolist() == [0, 0]
    assert empty.step_bounds(0).tolist() == [0]


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"epochs": 0}, {"steps": 0}])
def test_batches_epochs_and_steps_below_one_are_refused(bad):
    with pytest.raises(ValueError, match="must be >= 1"):
        Training(**bad)
