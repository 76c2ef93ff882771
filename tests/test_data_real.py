"""The readers of real data in `realdata` give what the data's own notes promise."""

from __future__ import annotations

import numpy as np
import pytest
import realdata

from fieldfare.data import label_counts

pytestmark = pytest.mark.data


def test_mnist_by_writer_has_its_539_writers_and_even_labels():
    fed = realdata.mnist_by_writer()
    assert fed.n_clients == 539
    assert (fed.sizes.min(), np.median(fed.sizes), fed.sizes.max()) == (19, 116, 131)
    assert fed.columns["x"].mean() == pytest.approx(0.1307, abs=1e-4)
    assert len(fed.test["y"]) == 3121
    assert fed.describe()["label_skew"]["mean_js_bits"] < 0.01


def test_a_few_writers_can_be_taken_as_pictures():
    fed = realdata.mnist_by_writer(writers=5, shape="chw")
    assert fed.n_clients == 5
    assert fed.columns["x"].shape[1:] == (1, 28, 28)


def test_fashion_mnist_is_shared_out_by_label():
    fed = realdata.fashion_mnist(clients=20, rows=2_000)
    assert fed.n_clients == 20
    assert label_counts(fed).sum() == 2_000
    assert fed.describe()["label_skew"]["mean_js_bits"] > 0.1


def test_cifar_pictures_have_the_official_colours():
    fed = realdata.cifar10(rows=1_500, test_rows=200, clients=10)
    assert fed.columns["x"].shape == (1_500, 3, 32, 32)
    assert fed.columns["x"].mean(axis=(0, 2, 3)) == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.02)
    assert len(fed.test["y"]) == 200


def test_shakespeare_has_141_speakers_and_readable_windows():
    fed = realdata.shakespeare()
    assert fed.n_clients == 141
    assert fed.classes == 66
    assert fed.columns["x"].min() >= 1
    assert np.array_equal(fed.columns["x"][:, 1:], fed.columns["y"][:, :-1])
    first = realdata.shakespeare_vocabulary().decode(fed.columns["x"][0])
    assert first.startswith("Before we proceed any further, hear me speak.\n")


def test_heart_disease_has_four_hospitals_without_gaps():
    fed = realdata.heart_disease(test_fraction=0.0)
    assert fed.names.tolist() == ["cleveland", "hungarian", "switzerland", "va"]
    assert fed.sizes.tolist() == [303, 294, 123, 200]
    share = label_counts(fed)[:, 1] / fed.sizes
    assert share == pytest.approx([0.459, 0.361, 0.935, 0.745], abs=1e-3)
    assert fed.columns["x"].mean(axis=0) == pytest.approx(np.zeros(10), abs=1e-5)
    assert fed.columns["x"].shape == (920, 10)


def test_phone_activity_is_clipped_and_skewed_by_user():
    fed = realdata.extrasensory_har()
    assert fed.n_clients == 27
    assert np.abs(fed.columns["x"]).max() <= 5.0
    assert len(fed.rows) + len(fed.test["y"]) == 91_436
    assert np.bincount(fed.columns["y"]).tolist() == [27299, 43164, 11507, 7011, 572, 1883]
    assert realdata.extrasensory_har(rows_per_user=100).sizes.tolist() == [80] * 27


def test_absent_data_skips_and_says_where_it_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(realdata, "ROOT", tmp_path)
    with pytest.raises(pytest.skip.Exception, match=r"set FIELDFARE_DATA"):
        realdata.heart_disease()
