"""Folds: the same bits in any order, by any chunk and any merge; what must be refused is; a total is the sum itself."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.aggregate import clip
from fieldfare.aggregate.gather import Gather
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Collect, Coverage, Mean, ModSum, Stack
from fieldfare.testing import digest

FOLDS = {
    "mean": Mean(), "one vote": Mean(weighted=False), "coarse": Mean(step=2.0**-20, weight_step=0.25),
    "clipped": Mean(before=(clip(1.0),)), "total": Mean(total=True), "coverage": Coverage(), "stack": Stack(),
    "collect": Collect(), "modsum": ModSum(32),
}  # fmt: skip


def cohort(seed: int, n: int, size: int = 7, scale: float = 3.0):
    g = np.random.default_rng(seed)
    rows = (g.normal(size=(n, size)) * scale).astype(np.float32)
    return np.sort(g.choice(1000, n, replace=False)), rows, g.integers(0, 50, n).astype(float)


def folded(fold, clients, rows, weights, cuts=(), order=None, merge=True):
    """The fold of a cohort cut at `cuts`, its parts taken in `order`, merged or added one after the other."""
    if isinstance(fold, ModSum):
        rows = (np.abs(rows) * 1e6).astype(np.uint64)
    parts = np.split(np.arange(len(clients)), sorted(cuts))
    whole = Gather({"x": fold}, len(clients))
    for at in order if order is not None else range(len(parts)):
        pick = parts[at]
        if len(pick) == 0:
            continue
        target = Gather({"x": fold}, len(clients)) if merge else whole
        target.add(clients[pick], {"x": rows[pick]}, weights[pick])
        if merge:
            whole.merge(target.partials)
    return whole.finish()


@pytest.mark.parametrize("name", FOLDS)
@settings(max_examples=30, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10**6), n=st.integers(1, 12))
def test_neither_chunks_nor_their_order_nor_merging_changes_a_bit(name, data, seed, n):
    clients, rows, weights = cohort(seed, n)
    weights[0] = 3.0
    cuts = data.draw(st.lists(st.integers(0, n), max_size=4))
    order = data.draw(st.permutations(range(len(cuts) + 1)))
    whole = folded(FOLDS[name], clients, rows, weights)
    for merge in (True, False):
        assert digest(folded(FOLDS[name], clients, rows, weights, cuts, order, merge)) == digest(whole)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 8), scale=st.sampled_from([1e-6, 1.0, 300.0]))
def test_a_mean_is_the_exact_mean_of_the_rounded_rows(seed, n, scale):
    clients, rows, weights = cohort(seed, n, 3, scale)
    weights[0] = 1.0
    got = folded(Mean(), clients, rows, weights)["x"]
    for j in range(3):
        exact = sum(int(w) * round(Fraction(float(v)) * 2**32) for v, w in zip(rows[:, j], weights, strict=True))
        mean = Fraction(exact, 2**32 * int(weights.sum()))
        assert got.value[j] == pytest.approx(float(mean), rel=2**-23, abs=1e-30)
    assert got.weight == weights.sum()


def test_coverage_of_whole_rows_has_the_bits_of_the_mean():
    clients, rows, weights = cohort(5, 9, 4000)
    mean, cover = (folded(f, clients, rows, weights)["x"] for f in (Mean(), Coverage()))
    assert mean.value.tobytes() == cover.value.tobytes()
    assert (cover.weight == mean.weight).all()


def test_sub_models_are_averaged_over_those_who_had_a_coordinate():
    gather = Gather({"x": Coverage()}, 3)
    gather.add(np.array([0]), {"x": np.array([[2.0, 4.0]], np.float32)}, np.array([1.0]), np.array([0, 2]), 4)
    gather.add(np.array([1]), {"x": np.array([[8.0]], np.float32)}, np.array([3.0]), np.array([2]), 4)
    out = gather.finish()["x"]
    assert out.value.tolist() == [2.0, 0.0, 7.0, 0.0]
    assert out.weight.tolist() == [1.0, 0.0, 4.0, 0.0]


@pytest.mark.parametrize("fold", [Mean(total=True), Mean(weighted=False, total=True), Coverage(total=True)])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), cut=st.integers(1, 11))
def test_a_mean_of_totals_has_the_bits_of_the_flat_mean(fold, seed, n, cut):
    clients, rows, weights = cohort(seed, n)
    weights[:] = weights + 1
    cut = min(cut, n - 1)
    flat = folded(fold, clients, rows, weights)["x"]
    above = Gather({"x": fold}, 2)
    for pick in (slice(0, cut), slice(cut, n)):
        total = folded(fold, clients[pick], rows[pick], weights[pick])["x"].total
        assert above.fits("x", total)
        above.add_total("x", total)
    assert digest(above.finish()["x"]) == digest(flat)


def test_a_total_of_other_steps_shape_or_size_does_not_fit():
    clients, rows, weights = cohort(1, 4)
    total = folded(Mean(total=True), clients, rows, weights)["x"].total
    assert Gather({"x": Mean()}, 2).fits("x", total)
    assert not Gather({"x": Mean(step=2.0**-20)}, 2).fits("x", total)
    assert not Gather({"x": Mean(weight_step=0.5)}, 2).fits("x", total)
    assert not Gather({"x": Stack()}, 2).fits("x", total)
    full = Gather({"x": Mean()}, 2)
    full.add(clients, {"x": rows[:, :3]}, weights)
    assert not full.fits("x", total)
    total.sum[0] = 2**61 + 1
    assert not Gather({"x": Mean()}, 2).fits("x", total)
    assert Gather({"x": Mean()}, 1).fits("x", total)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("fold", [Mean(), Coverage()])
def test_a_row_that_is_not_finite_or_could_overflow_is_refused_and_no_other(bad, fold):
    _, rows, weights = cohort(2, 5)
    rows[3, 1] = bad
    assert Gather({"x": fold}, 5).check({"x": rows}, weights).tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("weight", [np.nan, np.inf, -1.0, 1e300])
def test_a_weight_that_is_no_number_or_beyond_counting_is_refused(weight):
    _, rows, weights = cohort(3, 3)
    weights[1] = weight
    assert Gather({"x": Mean()}, 3).check({"x": rows}, weights).tolist() == [False, True, False]


def test_a_huge_row_that_is_clipped_before_the_fold_is_accepted():
    _, rows, weights = cohort(4, 2)
    rows[0] = 1e30
    assert Gather({"x": Mean()}, 2).check({"x": rows}, weights).tolist() == [True, False]
    gather = Gather({"x": Mean(before=(clip(1.0),))}, 2)
    assert not gather.check({"x": rows}, weights).any()
    gather.add(np.arange(2), {"x": rows}, np.ones(2))
    assert np.linalg.norm(gather.finish()["x"].value) <= 1.0 + 1e-5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40))
def test_no_accepted_cohort_overflows(seed, n):
    g = np.random.default_rng(seed)
    weights = 2.0 ** g.integers(0, 20, n)
    cap = 2.0**62 / n * 2.0**-32 / weights
    rows = (0.99 * np.minimum(cap, 2.0**19) * g.choice([-1, 1], n))[:, None].astype(np.float32)
    gather = Gather({"x": Mean()}, n)
    ok = ~gather.check({"x": rows}, weights)
    assert ok.all()
    gather.add(np.flatnonzero(ok), {"x": rows[ok]}, weights[ok])
    exact = (rows[ok, 0].astype(np.float64) * weights[ok]).sum() / weights[ok].sum()
    assert gather.finish()["x"].value[0] == pytest.approx(exact, rel=1e-5, abs=1e-9 * float(np.abs(rows).max()))


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_a_row_that_would_overflow_if_all_sent_the_like_is_refused(weight):
    cap = 2.0**62 / 20_000 * 2.0**-32 / weight
    rows, weights = np.array([[0.999 * cap], [1.001 * cap], [-1.001 * cap]], np.float32), np.full(3, weight)
    assert Gather({"x": Mean()}, 20_000).check({"x": rows}, weights).tolist() == [False, True, True]
    assert not Gather({"x": Mean()}, 3).check({"x": rows}, weights).any()


def test_masks_cancel_in_a_sum_modulo_a_power_of_two():
    g = np.random.default_rng(0)
    values, mask = g.integers(0, 2**20, (3, 5)), g.integers(0, 2**32, 5)
    masked = values.astype(np.uint64).copy()
    masked[0] = (masked[0] + mask.astype(np.uint64)) % 2**32
    masked[2] = (masked[2] - mask.astype(np.uint64)) % np.uint64(2**32)
    gather = Gather({"x": ModSum(32)}, 3)
    gather.add(np.arange(3), {"x": masked}, np.ones(3))
    assert gather.finish()["x"].value.tolist() == values.sum(axis=0).tolist()


def test_collected_leaves_come_back_by_client_whatever_they_are():
    gather = Gather({"x": Collect()}, 3)
    gather.add(np.array([7, 9]), {"x": [b"seven", b"nine"]}, np.ones(2))
    gather.add(np.array([2]), {"x": [np.arange(2)]}, np.ones(1))
    out = gather.finish()["x"]
    assert list(out.value) == [2, 7, 9]
    assert out.value[9] == b"nine"
    assert out.weight == 3.0


def test_rows_beyond_the_budget_of_a_stack_are_refused_in_one_line():
    clients, rows, weights = cohort(1, 4)
    with pytest.raises(UsageError, match=r"would hold 112 bytes of rows, more than max_bytes=100"):
        folded(Stack(max_bytes=100), clients, rows, weights)


def test_a_leaf_the_work_did_not_send_is_named():
    with pytest.raises(UsageError, match=r"no leaf 'x' to fold \(asked for: x\)"):
        Gather({"x": Mean()}, 1).check({"y": np.zeros((1, 2))}, np.ones(1))


def test_a_leaf_nobody_sent_is_absent_and_no_weight_gives_zero():
    assert Gather({"x": Mean()}, 3).finish() == {}
    gather = Gather({"x": Mean()}, 1)
    gather.add(np.array([0]), {"x": np.ones((1, 2), np.float32)}, np.zeros(1))
    out = gather.finish()["x"]
    assert out.weight == 0
    assert out.value.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("step", [0.0, 0.3, 2.0, 2.0**-60, -1.0, float("nan")])
def test_a_step_that_is_no_power_of_two_in_range_is_refused(step):
    for fold in (Mean, Coverage):
        with pytest.raises(UsageError, match="use a power of two"):
            fold(step=step)


@pytest.mark.parametrize("leaves", [("a",), ("a", "b")])
def test_long_rows_folded_in_one_pass_give_the_bits_of_check_and_add(leaves):
    rng = np.random.default_rng(0)
    n, p = 6, (1 << 15) + 7
    rows = {leaf: rng.standard_normal((n, p)).astype(np.float32) for leaf in leaves}
    rows[leaves[-1]][1, 5] = np.nan
    rows[leaves[0]][2, p - 1] = np.inf
    rows[leaves[0]][5, 0] = 3e9
    weight = np.array([3.0, 2.0, 5.0, -1.0, 7.0, 1.0])
    known = np.zeros(n, np.bool_)
    known[0] = True
    fold = {leaf: Mean() for leaf in leaves}
    quick = Gather(fold, n)
    bad = quick.take(np.arange(n), rows, weight, known)
    assert bad.tolist() == [True, True, True, True, False, True]
    plain = Gather(fold, n)
    plain.add(np.array([4]), {leaf: value[4:5] for leaf, value in rows.items()}, weight[4:5])
    for leaf in leaves:
        ours, theirs = quick.finish()[leaf], plain.finish()[leaf]
        assert ours.weight == theirs.weight == 7.0
        assert np.array_equal(ours.value, theirs.value)


@pytest.mark.parametrize("p", [(1 << 15) - 1, 1 << 15, (1 << 15) + 1, 40_000, 1 << 16, 70_000])
@pytest.mark.parametrize("spoilt", [np.nan, np.inf, 1e20])
def test_a_spoilt_row_of_any_length_in_any_chunk_is_refused_and_leaves_no_trace(p, spoilt):
    n = 4
    rows = np.random.default_rng(1).standard_normal((n, p)).astype(np.float32)
    clean = Gather({"d": Mean()}, n)
    clean.add(np.array([0, 2, 3]), {"d": rows[[0, 2, 3]]}, np.ones(3))
    rows[1, p // 2] = spoilt
    for chunk in (1, 2, 3, 4):
        gather = Gather({"d": Mean()}, n)
        for at in range(0, n, chunk):
            part = rows[at : at + chunk]
            bad = gather.take(np.arange(at, at + len(part)), {"d": part}, np.ones(len(part)), np.zeros(len(part), bool))
            assert bad.tolist() == [i == 1 for i in range(at, at + len(part))]
        assert np.array_equal(gather.finish()["d"].value, clean.finish()["d"].value)


def test_a_weight_that_is_no_multiple_of_its_step_is_told_and_a_finer_step_takes_it():
    rows = np.array([[1.0], [0.0]], np.float32)
    weight = np.array([1.4, 0.6])
    with pytest.raises(UsageError, match="no multiple of weight_step=1"):
        Gather({"d": Mean()}, 2).check({"d": rows}, weight)
    fine = Gather({"d": Mean(weight_step=2.0**-20)}, 2)
    fine.add(np.arange(2), {"d": rows}, weight)
    assert fine.finish()["d"].value[0] == pytest.approx(0.7, abs=1e-6)


def test_rows_that_are_kept_are_counted_over_all_workers():
    rows = np.zeros((10, 2), np.float32)
    whole = Gather({"d": Stack(max_bytes=100)}, 20)
    part = Gather({"d": Stack(max_bytes=100)}, 20)
    part.add(np.arange(10), {"d": rows}, np.ones(10))
    whole.merge(part.partials)
    with pytest.raises(UsageError, match="max_bytes=100"):
        whole.merge(part.partials)
