"""Server chains: how they are read, and what each part does."""

from __future__ import annotations

import numpy as np
import pytest
from algorithm_driver import freeze, storable
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fieldfare.aggregate import (
    adagrad,
    adam,
    bound,
    chain,
    clip,
    coverage,
    decay,
    krum,
    mean,
    median,
    momentum,
    scale,
    yogi,
)
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Collect, Coverage, Folded, Mean, ModSum, Stack

F32 = np.float32
floats = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
rows_of_any_floats = hnp.arrays(F32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6), elements=floats)
norm_bounds = st.floats(1e-30, 1e30)
transforms = [
    momentum(0.9), momentum(0.9, nesterov=True), adam(), adam(v0=0.0), yogi(), adagrad(), adagrad(0.9), scale(0.3),
    decay(0.5, 2), bound(0.1),
]  # fmt: skip
every_transform = pytest.mark.parametrize("step", transforms, ids=repr)


def updates(k: int, size: int = 7, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(0, 0.1, (k, size)).astype(F32))


def run(server, us, weight=1.0):  # type: ignore[no-untyped-def]
    state, out = server.init(len(us[0])), []
    for u in us:
        u, state = server.apply(Folded(u, weight), state)
        out.append(u)
    return out, state


def test_a_chain_puts_each_part_where_it_works() -> None:
    server = chain(clip(1.0), mean(weighted=False), momentum(0.9), scale(0.1))
    assert server.reduce() == Mean(weighted=False, before=(clip(1.0),))
    assert server.after == (momentum(0.9), scale(0.1))
    assert chain(clip(2.0), coverage()).reduce() == Coverage(before=(clip(2.0),))
    assert chain(clip(2.0), median()).reduce() == Stack(before=(clip(2.0),))


def test_chains_of_equal_parts_are_equal() -> None:
    assert chain(mean(), adam()) == chain(mean(), adam())
    assert chain(mean(), adam()) != chain(mean(), yogi())


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ((clip(1.0), scale(0.1)), "before the fold"),
        ((clip(1.0),), "0 folds"),
        ((), "0 folds"),
        ((mean(), mean()), "2 folds"),
        ((mean(), median()), "2 folds"),
        ((mean(), clip(1.0)), "put it before"),
        ((momentum(0.9), mean()), "put it behind"),
        ((Collect(),), "one vector"),
        ((ModSum(),), "one vector"),
        ((Stack(),), "one vector"),
        ((mean(), "sgd"), "'sgd'"),
    ],
)
def test_a_chain_that_cannot_work_is_refused_in_one_line(parts: tuple, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refusal:
        chain(*parts)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: clip(0.0), lambda: clip(float("inf")), lambda: clip(-1.0), lambda: momentum(1.0),
        lambda: momentum(-0.1), lambda: adam(b1=1.0), lambda: adam(eps=0.0), lambda: yogi(v0=-1.0), lambda: decay(0.0),
        lambda: decay(0.5, 0), lambda: bound(0.0), lambda: scale(float("nan")),
    ],
)  # fmt: skip
def test_a_part_with_a_wrong_number_is_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError):
        make()


@given(rows_of_any_floats, norm_bounds)
def test_a_clipped_row_is_never_longer_than_the_bound(rows: np.ndarray, c: float) -> None:
    out = clip(c)(rows)
    good = np.isfinite(rows).all(axis=1)
    assert (np.linalg.norm(out[good].astype(np.float64), axis=1) <= c * (1 + 1e-6)).all()
    assert out.dtype == F32


@given(rows_of_any_floats, norm_bounds)
def test_a_row_within_the_bound_or_not_finite_comes_back_bit_for_bit(rows: np.ndarray, c: float) -> None:
    out = clip(c)(rows)
    with np.errstate(invalid="ignore"):
        stays = ~(np.linalg.norm(rows.astype(np.float64), axis=1) > c) | ~np.isfinite(rows).all(axis=1)
    assert out[stays].tobytes() == rows[stays].tobytes()


@given(rows_of_any_floats, norm_bounds)
def test_a_clip_treats_each_row_alone_and_leaves_its_argument(rows: np.ndarray, c: float) -> None:
    before = rows.tobytes()
    whole = clip(c)(rows)
    assert whole.tobytes() == b"".join(clip(c)(rows[i : i + 1]).tobytes() for i in range(len(rows)))
    assert rows.tobytes() == before


def test_a_clip_keeps_the_direction_and_large_models_are_taken_in_groups() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 600_000)).astype(F32)
    out = clip(3.0)(rows)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    np.testing.assert_allclose(out, rows * (3.0 / lengths)[:, None], rtol=1e-6)


@every_transform
def test_a_transform_leaves_its_arguments_untouched_and_its_state_can_be_stored(step) -> None:  # type: ignore[no-untyped-def]
    server = chain(mean(), step)
    state = storable(server.init(7))
    for u in updates(4):
        freeze(state)
        u.flags.writeable = False
        kept = u.tobytes()
        (a, after), (b, again) = (server.apply(Folded(u, 3.0), state) for _ in range(2))
        assert a.dtype == F32
        assert a.tobytes() == b.tobytes()
        assert u.tobytes() == kept
        assert storable(after) is not None
        assert str(after) == str(again)
        state = after


@every_transform
@given(covered=st.lists(st.booleans(), min_size=7, max_size=7), seed=st.integers(0, 99))
@settings(max_examples=15)
def test_an_uncovered_coordinate_gets_no_update_and_keeps_its_slots(step, covered, seed) -> None:  # type: ignore[no-untyped-def]
    server, mask = chain(coverage(), step), np.array(covered)
    _, state = run(server, updates(3, seed=seed), np.ones(7))
    u = updates(1, seed=seed + 1)[0]
    got, after = server.apply(Folded(u, mask * 2.0), state)
    assert (got[~mask] == 0).all()
    for old, new in zip(arrays(state), arrays(after), strict=True):
        assert np.array_equal(old[~mask], new[~mask])


@pytest.mark.parametrize("step", [s for s in transforms if s != bound(0.1)], ids=repr)
def test_a_covered_coordinate_moves_as_if_all_were_covered(step) -> None:  # type: ignore[no-untyped-def]
    server, mask = chain(coverage(), step), np.arange(7) % 2 == 0
    _, state = run(server, updates(3), np.ones(7))
    u = updates(1, seed=5)[0]
    some, _ = server.apply(Folded(u, mask * 1.0), state)
    whole, _ = server.apply(Folded(u, np.ones(7)), state)
    assert some[mask].tobytes() == whole[mask].tobytes()


@every_transform
def test_without_any_weight_nothing_moves(step) -> None:  # type: ignore[no-untyped-def]
    server = chain(mean(), step)
    _, state = run(server, updates(2))
    u, after = server.apply(Folded(np.ones(7, F32), 0.0), state)
    assert not u.any()
    assert after is state


def test_momentum_of_zero_is_the_mean_bit_for_bit() -> None:
    us = updates(5)
    assert [u.tobytes() for u in run(chain(mean(), momentum(0.0)), us)[0]] == [u.tobytes() for u in us]


def test_a_decaying_rate_falls_in_steps() -> None:
    out, state = run(chain(mean(), decay(0.5, every=2)), [np.ones(1, F32)] * 5)
    assert [float(u[0]) for u in out] == [1.0, 1.0, 0.5, 0.5, 0.25]
    assert state == (5,)


def test_a_bound_shrinks_a_long_update_and_leaves_a_short_one() -> None:
    out, _ = run(chain(mean(), bound(5.0)), [np.array([6, 8], F32), np.array([3, 4], F32)])
    assert [u.tolist() for u in out] == [[3.0, 4.0], [3.0, 4.0]]


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_agrees_with_optax(nesterov: bool) -> None:
    optax = pytest.importorskip("optax")
    theirs, us = optax.trace(0.9, nesterov=nesterov), updates(12)
    state, out = theirs.init(us[0]), []
    for u in us:
        u, state = theirs.update(u, state)
        out.append(np.asarray(u))
    assert np.array(run(chain(mean(), momentum(0.9, nesterov)), us)[0]) == pytest.approx(np.array(out), rel=1e-5)


def test_adam_agrees_with_optax_with_its_bias_correction_divided_out() -> None:
    optax = pytest.importorskip("optax")
    b1, b2, eps, us = 0.9, 0.99, 1e-3, updates(20)
    ours, _ = run(chain(mean(), adam(b1, b2, eps, v0=0.0)), us)
    state = optax.scale_by_adam(b1, b2).init(us[0])
    for t, (u, mine) in enumerate(zip(us, ours, strict=True), 1):
        c1, c2 = 1 - b1**t, np.sqrt(1 - b2**t)
        theirs, state = optax.scale_by_adam(b1, b2, eps=eps / c2).update(u, state)
        assert mine == pytest.approx(np.asarray(theirs) * c1 / c2, rel=2e-4)


def test_yogi_agrees_with_optax_with_its_bias_correction_divided_out() -> None:
    optax = pytest.importorskip("optax")
    b1, b2, eps, us = 0.9, 0.99, 1e-3, updates(20)
    ours, _ = run(chain(mean(), yogi(b1, b2, eps)), us)
    state = optax.scale_by_yogi(b1, b2).init(us[0])
    state = state._replace(mu=np.zeros(7, F32), nu=np.full(7, eps**2, F32))
    for t, (u, mine) in enumerate(zip(us, ours, strict=True), 1):
        c1, c2 = 1 - b1**t, np.sqrt(1 - b2**t)
        theirs, state = optax.scale_by_yogi(b1, b2, eps=eps / c2).update(u, state)
        assert mine == pytest.approx(np.asarray(theirs) * c1 / c2, rel=2e-3)


def test_adagrad_agrees_with_optax() -> None:
    optax = pytest.importorskip("optax")
    us = updates(20)
    ours, _ = run(chain(mean(), adagrad(eps=1e-6, v0=1e-4)), us)
    theirs = optax.scale_by_rss(initial_accumulator_value=1e-4, eps=0.0)
    state = theirs.init(us[0])
    for u, mine in zip(us, ours, strict=True):
        expected, state = theirs.update(u, state)
        assert mine == pytest.approx(np.asarray(expected), rel=1e-3)


def test_the_second_moment_starts_at_tau_squared() -> None:
    for step in (adam(eps=0.1), yogi(eps=0.1), adagrad(eps=0.1)):
        assert step.init(2)[1] == pytest.approx(0.01)


def test_a_row_rule_in_a_chain_reduces_the_stack_and_the_rest_follows() -> None:
    rows = np.array([[1, 10], [2, 20], [3, 90]], F32)
    u, _ = chain(median(), scale(0.5)).apply(Folded(rows, np.ones(3)), (None,))
    assert u.tolist() == [1.0, 10.0]


def test_a_stack_of_no_rows_moves_nothing() -> None:
    server = chain(krum(1), momentum(0.9))
    state = server.init(4)
    u, after = server.apply(Folded(np.empty((0, 4), F32), np.empty(0)), state)
    assert u.tolist() == [0.0] * 4
    assert after is state


def arrays(state) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    match state:
        case np.ndarray():
            return [state]
        case tuple():
            return [a for part in state for a in arrays(part)]
        case _:
            return []
