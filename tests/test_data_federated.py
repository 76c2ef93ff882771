"""The federated data set: construction, its one-line refusals, gathering, held-out parts, scale."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.core.errors import UsageError
from fieldfare.data import Federated, federate, iid, natural


def small(**fields):
    given = {
        "columns": {"x": np.arange(12.0).reshape(6, 2), "y": np.array([0, 1, 2, 0, 1, 2])},
        "offsets": [0, 2, 3, 6],
        "rows": [5, 0, 1, 2, 3, 4],
        "names": ["ann", "bob", "eve"],
        "classes": 3,
    }
    return Federated(**{**given, **fields})


def refusal(**fields) -> str:
    with pytest.raises(UsageError) as caught:
        small(**fields)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_client_owns_the_rows_the_index_gives_it():
    fed = small()
    assert fed.n_clients == 3
    assert fed.sizes.tolist() == [2, 1, 3]
    assert fed.block([0]).client(0)["y"].tolist() == [2, 0]
    assert fed.block([2, 0]).client(0)["x"].tolist() == [[4, 5], [6, 7], [8, 9]]


@given(st.lists(st.integers(0, 19), max_size=40), st.integers(0, 5))
def test_a_block_gathers_exactly_what_a_loop_over_its_clients_would(ids, seed):
    gen = np.random.default_rng(seed)
    sizes = gen.integers(1, 7, 20)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    fed = Federated({"x": np.arange(50)}, offsets, gen.integers(0, 50, offsets[-1]))
    block = fed.block(ids)
    assert block.rows.dtype == block.offsets.dtype == np.int64
    assert block.n == len(ids)
    for i, client in enumerate(ids):
        assert block.client(i)["x"].tolist() == fed.rows[offsets[client] : offsets[client + 1]].tolist()


def test_neighbouring_clients_are_gathered_without_copying_the_index():
    fed = small(rows=np.array([5, 0, 1, 2, 3, 4]))
    assert np.shares_memory(fed.block([1, 2]).rows, fed.rows)
    assert fed.block([1, 2]).offsets.tolist() == [0, 1, 4]


def test_the_columns_are_shared_and_never_copied():
    x = np.arange(12.0).reshape(6, 2)
    fed = small(columns={"x": x})
    assert np.shares_memory(fed.block([0]).columns["x"], x)
    assert np.shares_memory(fed.select([2]).columns["x"], x)


@pytest.mark.parametrize("ids", [[3], [-1], [0, 99]])
def test_a_client_that_does_not_exist_is_refused_by_number(ids):
    with pytest.raises(UsageError, match=rf"client {max(ids, key=abs)} does not exist; the ids are 0\.\.2"):
        small().block(ids)


def test_ids_that_are_no_integers_are_refused():
    with pytest.raises(UsageError, match="flat array of integers"):
        small().block(np.array([True, False, True]))
    with pytest.raises(UsageError, match="flat array of integers"):
        small().block(np.array([0.0, 1.0]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_client_and_row(value):
    x = np.arange(12.0).reshape(6, 2)
    x[2, 1] = value
    message = refusal(columns={"x": x, "y": np.zeros(6, np.int64)})
    assert message.startswith(f"client eve: column 'x' is {value} in row 2 (1 such rows of 6)")


def test_infinities_of_both_signs_do_not_hide_each_other():
    x = np.zeros((6, 2), np.float32)
    x[0] = [np.inf, -np.inf]
    assert "client ann: column 'x' is inf in row 0" in refusal(columns={"x": x})


def test_half_precision_and_huge_values_are_not_mistaken_for_infinities():
    assert small(columns={"x": np.full((6, 20_000), 60_000, np.float16)}).n_clients == 3
    assert small(columns={"x": np.full((6, 20_000), 3e38, np.float32)}).n_clients == 3


def test_a_nan_in_a_row_that_nobody_owns_is_let_pass():
    x = np.arange(12.0).reshape(6, 2)
    x[5, 0] = np.nan
    assert small(columns={"x": x}, rows=[0, 0, 1, 2, 3, 4]).n_clients == 3


def test_a_nan_found_late_in_a_large_column_names_the_right_row():
    x = np.zeros((600_000, 8), np.float32)
    x[543_210, 3] = np.nan
    with pytest.raises(UsageError, match="client 5: column 'x' is nan in row 543210"):
        Federated({"x": x}, np.arange(7) * 100_000, np.arange(600_000))


def test_a_nan_in_the_test_columns_is_refused_as_such():
    test = {"x": np.array([[0.0, np.nan]]), "y": np.array([0])}
    assert refusal(test=test).startswith("the central test set: column 'x' is nan in row 0")


def test_the_values_are_not_read_when_the_check_is_off(tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (6, 2))
    x[:] = np.nan
    fed = small(columns={"x": x}, check=False)
    assert isinstance(fed.columns["x"], np.memmap)
    assert "not" not in repr(fed)


def test_labels_outside_the_classes_are_refused_with_client_and_remedy():
    message = refusal(columns={"x": np.zeros(6), "y": np.array([0, 1, 2, 0, 7, 2])})
    assert message.startswith("client eve: label 7 in row 4 is outside 0..2;")
    assert "classes=8" in message
    assert "label -1 in row 0" in refusal(columns={"y": np.array([-1, 1, 2, 0, 0, 2])})
    assert "the central test set: label 3" in refusal(test={"y": np.array([0, 3])})


def test_labels_that_are_no_integers_are_refused_where_classes_are_given():
    assert "classes=None for regression" in refusal(columns={"y": np.linspace(0, 1, 6)})
    assert small(columns={"y": np.linspace(0, 1, 6)}, classes=None).classes is None


def test_a_label_may_be_a_sequence():
    y = np.array([[0, 1]] * 5 + [[2, 3]])
    assert "client ann: label 3 in row 5" in refusal(columns={"y": y})
    assert small(columns={"y": y}, classes=4).columns["y"].shape == (6, 2)


def test_an_empty_client_is_refused_by_name_and_can_be_dropped():
    index = {"offsets": [0, 2, 2, 6]}
    message = refusal(**index)
    assert message.startswith("client bob has no examples (1 such of 3 clients)")
    assert "drop_empty=True" in message
    fed = small(**index, drop_empty=True)
    assert fed.names.tolist() == ["ann", "eve"]
    assert fed.sizes.tolist() == [2, 4]


def test_dropping_empty_clients_drops_their_held_out_rows_too():
    fed = small(offsets=[0, 2, 2, 6], held_offsets=[0, 1, 2, 3], held_rows=[0, 1, 2], drop_empty=True)
    assert fed.held_block([0, 1]).rows.tolist() == [0, 2]


def test_a_data_set_without_any_example_is_refused_even_when_dropping():
    assert "no client has an example" in refusal(offsets=[0, 0, 0, 0], rows=[], drop_empty=True)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"columns": {}}, "no columns"),
        ({"columns": {"x": np.zeros(6), "y": np.zeros(5, int)}}, "differ in length ('x': 6, 'y': 5)"),
        ({"columns": {"x": np.array([[1], [2, 3]] * 3, dtype=object)}}, "Python objects"),
        ({"columns": {"x": 3.0}}, "single number"),
        ({"offsets": [0, 3, 2, 6]}, "offsets[2] = 2 is below offsets[1] = 3"),
        ({"offsets": [1, 2, 3, 6]}, "runs from 1 to 6"),
        ({"offsets": [0, 2, 3, 5]}, "must run from 0 to 6"),
        ({"offsets": [0]}, "one client needs two"),
        ({"offsets": [0.0, 2.0, 3.0, 6.0]}, "integers"),
        ({"rows": [5, 0, 1, 2, 3, 6]}, "row 6 does not exist; the columns have rows 0..5"),
        ({"rows": [5, 0, 1, 2, 3, -1]}, "row -1 does not exist"),
        ({"names": ["ann"]}, "3 clients need as many names"),
        ({"classes": 0}, "classes=0"),
        ({"test": {"x": np.zeros((2, 3)), "y": np.zeros(2, int)}}, "test column 'x' has [3] per example"),
        ({"test": {"z": np.zeros(2)}}, "test column 'z' is not among"),
        ({"test": {"x": np.zeros((2, 2)), "y": np.zeros(3, int)}}, "test columns differ in length"),
        ({"held_rows": [0]}, "belong together"),
        ({"held_offsets": [0, 1], "held_rows": [0]}, "held-out index has 1 clients"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(fields, told):
    assert told in refusal(**fields)


def test_holding_out_moves_a_share_of_every_client_and_loses_nothing():
    fed = federate({"x": np.arange(1000), "y": np.arange(1000) % 10}, iid(30))
    out = fed.holdout(0.25, seed=1)
    assert out.held_sizes.sum() == pytest.approx(250, abs=15)
    for i in range(30):
        train, held = out.block([i]).rows, out.held_block([i]).rows
        assert len(held) == int(np.floor(0.25 * fed.sizes[i] + 0.5))
        assert sorted([*train, *held]) == sorted(fed.block([i]).rows)


def test_what_a_client_holds_out_depends_on_seed_and_client_only():
    ids = np.repeat(np.arange(4), 50)
    whole = federate({"x": np.arange(200), "client": ids}, natural()).holdout(0.3, seed=2)
    again = federate({"x": np.arange(100), "client": ids[:100]}, natural()).holdout(0.3, seed=2)
    other = federate({"x": np.arange(200), "client": ids}, natural()).holdout(0.3, seed=3)
    assert whole.held_block([1]).rows.tolist() == again.held_block([1]).rows.tolist()
    assert whole.held_block([1]).rows.tolist() != other.held_block([1]).rows.tolist()


def test_every_client_keeps_a_training_example_when_almost_all_is_held_out():
    out = small().holdout(0.99)
    assert out.sizes.tolist() == [1, 1, 1]
    assert out.held_sizes.tolist() == [1, 0, 2]
    assert out.held_block([1]).sizes.tolist() == [0]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_a_held_out_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(UsageError, match="between 0 and 1"):
        small().holdout(fraction)


def test_a_held_out_part_is_made_once_and_asked_for_only_when_made():
    with pytest.raises(UsageError, match="there is a held-out part already"):
        small().holdout(0.5).holdout(0.5)
    with pytest.raises(UsageError, match=r"make one with \.holdout"):
        small().held_block([0])
    with pytest.raises(UsageError, match="holds out nothing: the largest client has 3"):
        small().holdout(0.01)


def test_selecting_clients_renumbers_them_and_keeps_their_held_out_rows():
    fed = small().holdout(0.5)
    part = fed.select([2, 0])
    assert part.names.tolist() == ["eve", "ann"]
    assert part.block([0]).rows.tolist() == fed.block([2]).rows.tolist()
    assert part.held_block([1]).rows.tolist() == fed.held_block([0]).rows.tolist()


def test_a_million_clients_cost_megabytes():
    n, base = 1_000_000, np.arange(1000, dtype=np.float32)
    rows = np.resize(np.arange(1000, dtype=np.int32), 4 * n)
    fed = Federated({"x": base}, np.arange(n + 1) * 4, rows)
    assert fed.n_clients == n
    held = [value for value in vars(fed).values() if isinstance(value, np.ndarray)]
    assert sum(a.nbytes for a in held) == 8 * (n + 1) + 4 * 4 * n  # 24 MB: the index and nothing else
    assert sum(sys.getsizeof(v) for v in vars(fed).values() if not isinstance(v, np.ndarray)) < 1000
    block = fed.block(np.arange(0, n, 100))
    assert block.n == 10_000
    assert block.rows.dtype == np.int64
    assert block.client(7)["x"].tolist() == [800.0, 801.0, 802.0, 803.0]


def test_tiling_makes_a_population_that_repeats_the_clients():
    fed = small().tile(1000)
    assert fed.n_clients == 1000
    assert fed.block([7]).rows.tolist() == small().block([1]).rows.tolist()
    assert fed.names is None
    with pytest.raises(UsageError, match="tile"):
        small().tile(0)


def test_the_fields_cannot_be_assigned():
    with pytest.raises(dataclasses.FrozenInstanceError):
        small().classes = 4


def test_the_representation_is_one_informative_line():
    assert repr(small()) == "Federated(3 clients; 6 examples; x: float64[2], y: int64; 3 classes)"


def test_federating_infers_the_classes_over_training_and_test_labels():
    columns = {"x": np.zeros(4), "y": np.array([0, 1, 0, 1])}
    assert federate(columns, iid(2)).classes == 2
    assert federate(columns, iid(2), test={"x": np.zeros(1), "y": np.array([4])}).classes == 5
    assert federate({"x": np.zeros(4), "y": np.linspace(0, 1, 4)}, iid(2)).classes is None
    assert federate({"x": np.zeros(4), "y": np.array([True, False, True, True])}, iid(2)).classes == 2


def test_natural_clients_keep_their_names():
    fed = federate({"x": np.arange(4), "who": np.array(["b", "a", "b", "c"])}, natural("who"))
    assert fed.names.tolist() == ["a", "b", "c"]
    assert fed.block([1]).rows.tolist() == [0, 2]


def test_a_partitioner_that_loses_a_row_is_refused():
    with pytest.raises(UsageError, match="each of the 4 rows to exactly one client"):
        federate({"x": np.zeros(4)}, lambda y, seed: (np.array([0, 2]), np.array([0, 0])))
    with pytest.raises(UsageError, match="each of the 4 rows to exactly one client"):
        federate({"x": np.zeros(4)}, lambda y, seed: (np.array([0, 4]), np.array([0, 0, 1, 2])))


def test_a_function_of_ones_own_is_a_partitioner():
    def halves(y, seed):
        return np.array([0, len(y) // 2, len(y)]), np.arange(len(y))

    assert federate({"x": np.zeros(4), "y": np.zeros(4, int)}, halves).sizes.tolist() == [2, 2]
