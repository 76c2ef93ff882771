"""Laws every partitioner keeps, and what is particular to each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.core.errors import UsageError
from fieldfare.data import (
    PARTITIONERS,
    dirichlet,
    dirichlet_quantity,
    federate,
    iid,
    joint,
    js_divergence,
    label_counts,
    labels_per_client,
    lognormal_quantity,
    natural,
    partitioner,
    shards,
)
from fieldfare.data.allot import repaired

MADE = st.one_of(
    st.just(iid()),
    st.builds(dirichlet, st.sampled_from([1e-12, 1e-3, 0.1, 1.0, 1e6]), redraws=st.integers(1, 3)),
    st.builds(dirichlet, st.sampled_from([1e-12, 0.1, 1.0, 1e6]), balanced=st.just(True)),
    st.just(shards(per_client=1)),
    st.just(labels_per_client(1)),
    st.builds(lognormal_quantity, st.sampled_from([0.0, 1.0, 3.0, 50.0])),
    st.builds(dirichlet_quantity, st.sampled_from([1e-12, 0.01, 1.0, 1e6])),
    st.builds(joint, st.builds(dirichlet, st.sampled_from([1e-12, 0.1, 1.0])), st.builds(lognormal_quantity)),
    st.builds(joint, st.just(shards(per_client=1)), st.builds(dirichlet_quantity, st.sampled_from([0.1, 1.0]))),
)


def federated(plan, y, seed=0, clients=None):
    return federate({"x": np.zeros(len(y)), "y": y}, plan, seed, clients=clients)


@settings(max_examples=200, deadline=None)
@given(MADE, st.lists(st.integers(0, 5), min_size=1, max_size=120), st.data(), st.integers(0, 2**40))
def test_each_row_goes_to_exactly_one_client_and_no_client_is_empty(plan, labels, data, seed):
    y = np.array(labels)
    low = len(np.unique(y)) if isinstance(plan, labels_per_client) else 1
    clients = data.draw(st.integers(low, len(y)))
    offsets, rows = plan.of(clients)(y, seed)
    assert offsets.dtype == rows.dtype == np.int64
    assert offsets[0] == 0
    assert offsets[-1] == len(y)
    assert len(offsets) == clients + 1
    assert (np.diff(offsets) >= 1).all()
    assert np.array_equal(np.sort(rows), np.arange(len(y)))
    again = plan.of(clients)(y, seed)
    assert np.array_equal(offsets, again[0])
    assert np.array_equal(rows, again[1])


@settings(deadline=None)
@given(st.lists(st.sampled_from(["ann", "bob", "eve", "joe"]), min_size=1, max_size=60))
def test_natural_clients_are_exactly_the_different_ids(ids):
    column = np.array(ids)
    offsets, rows = natural()(column, 0)
    for i, name in enumerate(sorted(set(ids))):
        assert rows[offsets[i] : offsets[i + 1]].tolist() == np.flatnonzero(column == name).tolist()


@pytest.mark.parametrize(
    "plan",
    [
        iid(10),
        dirichlet(0.3, 10),
        dirichlet(0.3, 10, balanced=True),
        shards(10),
        labels_per_client(2, 10),
        lognormal_quantity(1.0, 10),
        dirichlet_quantity(0.5, 10),
        joint(dirichlet(0.3), lognormal_quantity(1.0), 10),
    ],
)
def test_another_seed_gives_another_partition(plan):
    y = np.arange(200) % 10
    assert not np.array_equal(plan(y, 0)[1], plan(y, 1)[1])


def test_more_clients_than_rows_is_refused_with_the_largest_number_that_works():
    for plan in (iid(), dirichlet(0.3), shards(per_client=1), lognormal_quantity(), dirichlet_quantity()):
        with pytest.raises(UsageError, match=r"there are 5: use clients <= 5\.$"):
            federated(plan, np.arange(5), clients=6)
    with pytest.raises(UsageError, match=r"needs 12 rows \(4 clients with 3 or more\)"):
        dirichlet(0.3, 4, min_examples=3)(np.zeros(11, int), 0)


def test_iid_sizes_differ_by_at_most_one():
    sizes = np.diff(iid(7)(np.zeros(100, int), 0)[0])
    assert sizes.max() - sizes.min() <= 1


def test_iid_and_quantity_skew_need_no_labels():
    for plan in (iid(3), lognormal_quantity(1.0, 3), dirichlet_quantity(1.0, 3)):
        assert federate({"x": np.zeros(30)}, plan).n_clients == 3
    with pytest.raises(UsageError, match=r"reads column 'y'; the columns are \['x'\]"):
        federate({"x": np.zeros(30)}, dirichlet(0.3, 3))


def test_a_small_alpha_skews_labels_and_a_large_one_does_not():
    y = np.random.default_rng(0).integers(0, 10, 5000)
    skew = {a: js_divergence(label_counts(federated(dirichlet(a, 20), y))).mean() for a in (0.05, 1.0, 1e4)}
    assert skew[0.05] > 0.4 > skew[1.0] > 0.05 > 0.01 > skew[1e4]


def test_dirichlet_shares_have_the_mean_and_variance_of_the_distribution():
    y, n, alpha = np.zeros(100_000, int), 50, 0.5
    shares = np.concatenate([np.diff(dirichlet(alpha, n)(y, s)[0]) / len(y) for s in range(40)])
    variance = (1 / n) * (1 - 1 / n) / (n * alpha + 1)
    assert shares.mean() == pytest.approx(1 / n)
    assert shares.var() == pytest.approx(variance, rel=0.15)


def test_balanced_dirichlet_keeps_sizes_equal():
    y = np.random.default_rng(0).integers(0, 10, 1003)
    fed = federated(dirichlet(0.5, 20, balanced=True), y)
    assert set(fed.sizes.tolist()) == {50, 51}
    assert js_divergence(label_counts(fed)).mean() > 0.3


def test_the_repair_ends_where_redrawing_never_would():
    y = np.zeros(1000, int)
    sizes = np.diff(dirichlet(0.001, 100, min_examples=10)(y, 0)[0])
    assert (sizes == 10).all()
    sizes = np.diff(dirichlet(0.001, 100, min_examples=5)(y, 0)[0])
    assert sizes.min() == 5
    assert sizes.sum() == 1000


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(0, 5))
def test_the_repair_takes_from_the_largest_and_leaves_the_rest_alone(sizes, least):
    sizes = np.array(sizes)
    if sizes.sum() < least * len(sizes) or not sizes.sum():
        return
    owner = np.repeat(np.arange(len(sizes)), sizes)
    after = np.bincount(repaired(owner, len(sizes), least, np.random.default_rng(0)), minlength=len(sizes))
    by_hand = sizes.copy()
    while by_hand.min() < least:
        by_hand[np.argmax(by_hand)] -= 1
        by_hand[np.argmin(by_hand)] += 1
    assert after.sum() == sizes.sum()
    assert sorted(after) == sorted(by_hand)
    untouched = (sizes >= least) & (sizes <= after.max() - 1)
    assert (after[untouched] == sizes[untouched]).all()


def test_shards_give_each_client_few_labels_and_equal_sizes():
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
    fed = federated(shards(100, per_client=2), y)
    assert (fed.sizes == 6).all()
    counts = label_counts(fed)
    assert ((counts > 0).sum(axis=1) <= 2).all()
    assert (counts % 3 == 0).all()  # a shard is 3 rows of one label


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(1, 8), st.integers(1, 40), st.integers(0, 9))
def test_nobody_holds_more_labels_than_asked_and_labels_are_held_evenly(n_labels, k, clients, seed):
    k = min(k, n_labels)
    y = np.repeat(np.arange(n_labels), 50)
    plan = labels_per_client(k, clients)
    if k * clients < n_labels:
        with pytest.raises(UsageError, match=rf"labels must be {-(-n_labels // clients)}\.\.{n_labels}"):
            plan(y, seed)
        return
    counts = label_counts(federated(plan, y, seed))
    assert ((counts > 0).sum(axis=1) == k).all()
    holders = (counts > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1
    for label in range(n_labels):
        held = counts[counts[:, label] > 0, label]
        assert held.max() - held.min() <= 1


def test_label_pairs_are_mixed_and_not_always_the_same():
    counts = label_counts(federated(labels_per_client(2, 200), np.repeat(np.arange(10), 100)))
    assert len({tuple(np.flatnonzero(row)) for row in counts}) > 30  # of 45 pairs


def test_lognormal_sizes_spread_as_sigma_says():
    log_sizes = np.log(np.diff(lognormal_quantity(0.8, 2000)(np.zeros(2_000_000, int), 0)[0]))
    assert log_sizes.std() == pytest.approx(0.8, rel=0.05)
    assert set(np.diff(lognormal_quantity(0.0, 10)(np.zeros(100, int), 0)[0])) == {10}


def test_the_joint_partition_has_the_sizes_of_one_and_the_labels_of_the_other():
    y = np.random.default_rng(0).integers(0, 10, 4000)
    quantity, label = lognormal_quantity(1.0), dirichlet(0.1)
    fed = federated(joint(label, quantity, clients=40), y, seed=3)
    assert fed.sizes.tolist() == np.diff(quantity.of(40)(y, 3)[0]).tolist()
    alone = label_counts(federated(label, y, 3, clients=40))
    mine = label_counts(fed)
    same = [np.argmax(a) == np.argmax(b) for a, b in zip(alone, mine, strict=True)]
    assert np.mean(same) > 0.6
    assert js_divergence(mine).mean() > 0.3


def test_the_number_of_clients_is_given_once():
    y = np.arange(20) % 2
    assert federated(dirichlet(1.0), y, clients=4).n_clients == 4
    assert federated(dirichlet(1.0, 4), y, clients=4).n_clients == 4
    assert federated(joint(dirichlet(1.0, 4), lognormal_quantity()), y).n_clients == 4
    with pytest.raises(UsageError, match="clients=5 disagrees with dirichlet"):
        federated(dirichlet(1.0, 4), y, clients=5)
    with pytest.raises(UsageError, match="clients=5 disagrees with"):
        federated(joint(dirichlet(1.0, 4), lognormal_quantity()), y, clients=5)
    with pytest.raises(UsageError, match=r"leaves the number of clients open; give clients="):
        federated(dirichlet(1.0), y)
    with pytest.raises(UsageError, match="clients=5 disagrees with natural"):
        federate({"client": y}, natural(), clients=5)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: dirichlet(0.0), "dirichlet(alpha=0.0): alpha must be a number in"),
        (lambda: dirichlet(float("nan")), "alpha=nan"),
        (lambda: dirichlet("0.3"), "alpha='0.3'"),
        (lambda: dirichlet(0.3, 0), "clients=0"),
        (lambda: dirichlet(0.3, 2.5), "clients=2.5): clients must be a whole number"),
        (lambda: shards(10, 0), "per_client=0"),
        (lambda: lognormal_quantity(-1.0), "sigma=-1.0"),
        (lambda: joint(dirichlet(0.3, 5), lognormal_quantity(), clients=6), "disagrees"),
    ],
)
def test_a_wrong_option_is_refused_when_the_partitioner_is_made(make, told):
    with pytest.raises(UsageError) as caught:
        make()
    assert told in str(caught.value)


def test_labels_that_cannot_be_grouped_are_refused():
    with pytest.raises(UsageError, match=r"one label per row, got float64\[10\]"):
        dirichlet(0.3, 2)(np.linspace(0, 1, 10), 0)
    with pytest.raises(UsageError, match=r"one label per row, got int64\[10, 3\]"):
        shards(2)(np.zeros((10, 3), int), 0)


def test_a_label_skew_can_follow_any_column():
    columns = {"x": np.zeros(90), "y": np.linspace(0, 1, 90), "ward": np.repeat(["a", "b", "c"], 30)}
    fed = federate(columns, labels_per_client(1, 3, column="ward"))
    assert all(len(set(fed.block([i]).client(0)["ward"])) == 1 for i in range(3))


def test_ids_themselves_are_no_name_of_a_column():
    for ids in (np.arange(4), ["a", "b"], None):
        with pytest.raises(UsageError, match="give the name of a column") as refused:
            natural(ids)  # type: ignore[arg-type]
        assert "\n" not in str(refused.value)


def test_missing_ids_are_refused_by_row():
    with pytest.raises(UsageError, match="the id in row 1 of 'client' is missing"):
        natural()(np.array([0.0, np.nan]), 0)


def test_the_catalogue_names_every_partitioner_with_its_paper():
    names = [entry.name for entry in PARTITIONERS]
    assert names == [entry.factory.__name__ for entry in PARTITIONERS]
    assert len(set(names)) == len(names) == 8
    for entry in PARTITIONERS:
        assert len(f"{entry.name} {entry.summary}") < 110
        assert any(year in entry.paper for year in ("2017", "2018", "2019", "2020", "2022"))


def test_a_partitioner_is_made_by_name_as_in_a_job_file():
    assert partitioner("dirichlet", alpha=0.3, clients=10) == dirichlet(0.3, 10)
    made = partitioner("joint", label={"name": "shards"}, quantity={"name": "iid"}, clients=3)
    assert made == joint(shards(), iid(), 3)
    with pytest.raises(UsageError, match="there is no partitioner 'dirichet'; choose one of iid, dirichlet"):
        partitioner("dirichet")
    with pytest.raises(UsageError, match=r"partitioner 'shards' takes \(clients"):
        partitioner("shards", alpha=1)
