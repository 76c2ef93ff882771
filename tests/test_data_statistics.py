"""Statistics of a federated data set against values worked out by hand or by a plain loop."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.core.errors import UsageError
from fieldfare.data import (
    Federated,
    describe,
    dirichlet,
    effective_clients,
    federate,
    gini,
    iid,
    js_divergence,
    label_counts,
    statistics,
)


def test_label_counts_are_those_of_a_loop(monkeypatch):
    y = np.random.default_rng(0).integers(0, 4, 300)
    fed = federate({"y": y}, dirichlet(0.5, 17), classes=5)
    looped = [np.bincount(fed.block([i]).client(0)["y"], minlength=5) for i in range(17)]
    assert np.array_equal(label_counts(fed), looped)
    monkeypatch.setattr(statistics, "_PIECE", 7)  # many pieces, some smaller than one client
    assert np.array_equal(label_counts(fed), looped)


def test_label_counts_cover_training_rows_only():
    fed = federate({"y": np.arange(100) % 2}, iid(4)).holdout(0.5)
    assert label_counts(fed).sum() == len(fed.rows) < 100


def test_every_step_of_a_sequence_label_counts():
    fed = Federated({"y": np.array([[0, 1, 1], [2, 2, 2]])}, [0, 1, 2], [0, 1], classes=3)
    assert label_counts(fed).tolist() == [[1, 2, 0], [0, 0, 3]]


def test_label_counts_without_classes_are_refused():
    with pytest.raises(UsageError, match="needs column 'y' and a number of classes"):
        label_counts(Federated({"x": np.zeros(2)}, [0, 2], [0, 1]))


def test_divergence_of_two_clients_with_one_label_each():
    # p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4): JS = 1/2 log2(4/3) + 1/2 (1/2 log2(2/3) + 1/2 log2 2)
    expected = 0.5 * math.log2(4 / 3) + 0.25 * math.log2(2 / 3) + 0.25
    assert js_divergence(np.array([[7, 0], [0, 7]])).tolist() == pytest.approx([expected, expected])


def test_divergence_is_one_bit_at_most_and_zero_for_an_empty_row():
    counts = np.zeros((1001, 2), int)
    counts[1:, 1] = 10**6
    counts[0, 0] = 1
    js = js_divergence(counts)
    assert 0.99 < js[0] <= 1.0
    assert js_divergence(np.array([[0, 0], [1, 3]])).tolist() == [0.0, 0.0]


@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=10))
def test_divergence_lies_between_0_and_1_and_ignores_the_size_of_a_client(rows):
    counts = np.array(rows)
    js = js_divergence(counts)
    assert (js >= 0).all()
    assert (js <= 1).all()
    assert js_divergence(counts * 3) == pytest.approx(js)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30))
def test_gini_is_the_mean_difference_over_twice_the_mean(sizes):
    a = np.array(sizes)
    pairs = np.abs(a[:, None] - a[None, :]).mean()
    assert gini(a) == pytest.approx(pairs / (2 * a.mean()) if a.sum() else 0.0, abs=1e-9)


def test_effective_clients_counts_equal_clients_and_ignores_tiny_ones():
    assert effective_clients(np.array([3, 3, 3])) == pytest.approx(3.0)
    assert effective_clients(np.array([1000, 1, 1])) == pytest.approx(1.0, abs=0.01)
    assert effective_clients(np.array([3, 1])) == pytest.approx(16 / 10)


def test_a_description_is_plain_json_with_the_numbers_asked_for():
    y = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    fed = Federated({"x": np.zeros((8, 2), np.float32), "y": y}, [0, 3, 8], np.arange(8), classes=2)
    told = describe(fed)
    assert json.loads(json.dumps(told)) == told == fed.describe()
    assert told["clients"] == 2
    assert told["examples"] == 8
    assert told["columns"]["x"] == {"dtype": "float32", "shape": [2]}
    assert (told["sizes"]["min"], told["sizes"]["median"], told["sizes"]["max"]) == (3, 4.0, 5)
    assert told["sizes"]["mean"] == 4.0
    assert told["gini"] == pytest.approx(0.125)
    assert told["effective_clients"] == pytest.approx(64 / 34)
    js = js_divergence(np.array([[3, 0], [0, 5]]))
    assert told["label_skew"]["mean_js_bits"] == pytest.approx(js.mean())
    assert told["label_skew"]["weighted_js_bits"] == pytest.approx((3 * js[0] + 5 * js[1]) / 8)
    assert told["label_skew"]["mean_labels"] == 1.0
    assert told["label_skew"]["label_totals"] == [3, 5]


def test_a_description_without_labels_has_no_label_skew():
    told = Federated({"x": np.zeros(2)}, [0, 2], [0, 1]).describe()
    assert told["label_skew"] is None
    assert told["classes"] is None
    assert told["test_examples"] == told["held_examples"] == 0
