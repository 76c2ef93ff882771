"""Robust rules against plain references, and against liars."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.aggregate import geometric_median, krum, median, mixed, trimmed_mean
from fieldfare.aggregate.robust import combine, distances, gram, krum_order
from fieldfare.core.errors import UsageError

F32 = np.float32
shapes = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**32 - 1))
quick = settings(max_examples=40, deadline=None)
RULES = [median(), trimmed_mean(0.2), krum(1), krum(1, keep=3), geometric_median(), mixed(trimmed_mean(0.2), 1)]
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


def some(shape: tuple[int, int, int]) -> np.ndarray:
    n, size, seed = shape
    return np.random.default_rng(seed).normal(size=(n, size)).astype(F32)


def votes(rows: np.ndarray) -> np.ndarray:
    return np.ones(len(rows))


@given(shapes)
@quick
def test_the_median_is_numpys(shape: tuple[int, int, int]) -> None:
    rows = some(shape)
    assert median().reduce(rows, votes(rows)).value == pytest.approx(np.median(rows.astype(float), axis=0), rel=1e-6)


@given(shapes, st.floats(0, 0.49))
@quick
def test_the_trimmed_mean_is_scipys(shape: tuple[int, int, int], fraction: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    rows = some(shape)
    expected = stats.trim_mean(rows.astype(float), fraction, axis=0)
    assert trimmed_mean(fraction).reduce(rows, votes(rows)).value == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_models_wider_than_a_block_are_reduced_block_by_block() -> None:
    rows = some((5, 300_001, 0))
    assert np.array_equal(median().reduce(rows, votes(rows)).value, np.median(rows, axis=0))


def naive_krum(rows: np.ndarray, f: int) -> list[int]:
    x = rows.astype(np.float64)
    scores = []
    for i in range(len(x)):
        away = sorted(float(((x[i] - x[j]) ** 2).sum()) for j in range(len(x)) if j != i)
        scores.append(sum(away[: len(x) - f - 2]))
    return sorted(range(len(x)), key=lambda i: (scores[i], i))


@given(st.integers(0, 3), st.integers(0, 4), st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**32 - 1))
@quick
def test_krum_is_the_papers_by_plain_loops(f: int, extra: int, size: int, keep: int, seed: int) -> None:
    rows = some((2 * f + 3 + extra, size, seed))
    chosen = naive_krum(rows, f)[: min(keep, len(rows) - f)]
    got = krum(f, keep).reduce(rows, votes(rows))
    assert got.value == pytest.approx(rows[chosen].astype(float).mean(0), rel=1e-5, abs=1e-6)
    assert got.weight == len(chosen)


def test_krum_breaks_ties_in_order_of_client() -> None:
    rows = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], F32)
    order = krum_order(distances(gram(rows)), 1)
    assert order.tolist() == [0, 1, 2]
    assert combine(np.array([[0.5, 0.5, 0.0]]), rows).tolist() == [[2.5, 3.5, 4.5]]
    same = np.ones((7, 4), F32)
    assert krum_order(distances(gram(same)), 2).tolist() == list(range(7))


@given(st.integers(1, 3), st.integers(0, 3), st.sampled_from([1e3, 1e10, 1e19]), st.integers(0, 2**32 - 1))
@quick
def test_krum_picks_an_honest_client_among_colluding_outliers(f: int, extra: int, far: float, seed: int) -> None:
    g = np.random.default_rng(seed)
    n = 2 * f + 3 + extra
    rows = g.normal(size=(n, 6)).astype(F32)
    liars = g.choice(n, f, replace=False)
    rows[liars] = F32(far)
    picked = krum(f).reduce(rows, votes(rows)).value
    honest = np.delete(rows, liars, axis=0)
    assert (honest == picked).all(axis=1).any()


@every_rule
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e2, 1e6, 1e12, np.nan, np.inf]))
@settings(max_examples=10, deadline=None)
def test_a_liar_cannot_move_a_robust_rule_away_from_the_honest(rule, seed: int, lie: float) -> None:  # type: ignore[no-untyped-def]
    g = np.random.default_rng(seed)
    rows = (1 + 0.1 * g.normal(size=(9, 5))).astype(F32)
    rows[g.integers(9)] = lie
    got = rule.reduce(rows, votes(rows))
    assert got.value == pytest.approx(1.0, abs=0.5)
    assert got.weight > 0


@every_rule
def test_clients_that_agree_get_what_they_agree_on(rule) -> None:  # type: ignore[no-untyped-def]
    rows = np.tile(np.array([1.5, -2.0, 0.0, 3e5], F32), (7, 1))
    got = rule.reduce(rows, np.arange(1.0, 8.0))
    assert got.value == pytest.approx(rows[0], rel=1e-6)
    assert got.value.dtype == F32


@every_rule
@pytest.mark.parametrize("rows", [np.empty((0, 3), F32), np.full((4, 3), np.nan, F32)], ids=["none", "none finite"])
def test_rows_that_allow_no_result_give_weight_zero(rule, rows: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    got = rule.reduce(rows, votes(rows))
    assert got.weight == 0
    assert got.value.tolist() == [0.0, 0.0, 0.0]


@every_rule
def test_a_rule_leaves_its_rows_untouched(rule) -> None:  # type: ignore[no-untyped-def]
    rows = some((7, 5, 3))
    rows.flags.writeable = False
    before = rows.tobytes()
    assert rule.reduce(rows, votes(rows)).value.tobytes() == rule.reduce(rows, votes(rows)).value.tobytes()
    assert rows.tobytes() == before


def test_krum_without_the_replies_its_guarantee_needs_gives_no_update() -> None:
    rows = some((6, 3, 0))
    assert krum(2).reduce(rows, votes(rows)).weight == 0
    assert krum(1).reduce(rows, votes(rows)).weight == 1


def test_the_geometric_median_has_the_smallest_sum_of_distances() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rows = some((8, 3, 5))
    rows[0] = 40.0

    def total(z: np.ndarray) -> float:
        return float(np.linalg.norm(rows - z, axis=1).sum())

    best = optimize.minimize(total, rows.mean(0), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10})
    got = geometric_median(200).reduce(rows, votes(rows)).value
    assert total(got) == pytest.approx(best.fun, rel=1e-6)
    assert total(got) < total(rows.mean(0)) - 1


def test_the_geometric_median_of_three_points_on_a_line_is_the_middle_one() -> None:
    rows = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], F32)
    assert geometric_median().reduce(rows, votes(rows)).value == pytest.approx([4, 5, 6], abs=1e-3)


@given(st.integers(0, 2), st.integers(0, 5), st.integers(0, 2**32 - 1))
@quick
def test_mixing_replaces_each_row_by_the_mean_of_its_nearest(f: int, extra: int, seed: int) -> None:
    rows = some((2 * f + 1 + extra, 4, seed))
    x, n = rows.astype(float), 2 * f + 1 + extra
    near = [np.argsort(((x - x[i]) ** 2).sum(1), kind="stable")[: n - f] for i in range(n)]
    expected = np.median(np.array([x[at].mean(0) for at in near]), axis=0)
    assert mixed(median(), f).reduce(rows, votes(rows)).value == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_distances_from_a_gram_matrix_are_those_of_the_rows() -> None:
    rows = some((6, 700_000, 1))
    expected = [[float(((a.astype(float) - b) ** 2).sum()) for b in rows] for a in rows]
    assert distances(gram(rows)) == pytest.approx(np.array(expected), rel=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: trimmed_mean(0.5), lambda: trimmed_mean(-0.1), lambda: krum(-1), lambda: krum(1, keep=0),
        lambda: geometric_median(0), lambda: mixed(median(), -1),
    ],
)  # fmt: skip
def test_a_rule_with_a_wrong_number_is_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError):
        make()
