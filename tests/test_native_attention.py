"""Attention of several heads and added parameters on the native core, against torch in float64."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_plans import BUILDS, Net, build

from fieldfare.work.native.streams import dropout_factors

torch = pytest.importorskip("torch")
F = torch.nn.functional

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module", params=BUILDS)
def core(request: pytest.FixtureRequest) -> ModuleType:
    return build(request.param)


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    theirs = np.asarray(theirs, np.float64)
    size = max(float(np.abs(theirs).max(initial=0.0)), 1e-3)
    np.testing.assert_allclose(
        np.asarray(ours, np.float64).reshape(theirs.shape), theirs, rtol=0, atol=tolerance * size
    )


def drawn(seed: int, size: int) -> Any:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def agree(core: ModuleType, net: Net, vector: Any, reference: Any, seed: int, key: int = 0, step: int = 0) -> None:
    """Outputs (where nothing is dropped), loss and gradient are those of `reference(vector)`."""
    y = drawn(seed + 1, net.rows * net.values[-1][0] * net.values[-1][2]).reshape(net.rows, -1)
    v = torch.tensor(vector, dtype=torch.float64, requires_grad=True)
    out = reference(v)
    loss = F.mse_loss(out.reshape(y.shape), torch.from_numpy(y).double())
    loss.backward()
    assert v.grad is not None
    plan = net.plan(core)
    if not key:
        close(net.outputs(plan, vector), out.detach().numpy(), 4e-6)
    found, grad = net.gradient(plan, vector, y, key, step)
    assert found == pytest.approx(loss.item(), rel=2e-5)
    close(grad, v.grad.numpy(), 2e-5)


def attended(q: Any, k: Any, v: Any, heads: int, scale: float, causal: bool, factors: Any = None) -> Any:
    """softmax(scale Q K' + mask) V for tensors `[B, T, c]`; `factors` multiply the softmax."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = scale * q @ k.transpose(-1, -2)
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = torch.softmax(scores, -1)
    return ((weights if factors is None else weights * factors) @ v).transpose(1, 2).flatten(2)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 4), steps=st.integers(1, 20) | st.just(50), others=st.integers(1, 20), heads=st.integers(1, 4),
    each=st.integers(1, 20) | st.just(33), causal=st.booleans(), same=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_attention_and_its_gradients_are_torchs(
    core: ModuleType, rows: int, steps: int, others: int, heads: int, each: int, causal: bool, same: bool, seed: int
) -> None:
    c, scale = heads * each, each**-0.5
    net = Net(rows, steps, c)
    k = v = 1
    if not same:  # keys and values of another sequence
        k = net.op("adaptive_avg_pool", [1], net.value(others, c))
        v = net.op("tanh", [k], net.value(others, c))
    net.op("attention", [1, k, v], net.value(steps, c), ints=[heads, causal, 0], floats=[scale, 0.0])

    def reference(w: Any) -> Any:
        x = w.reshape(rows, steps, c)
        if same:
            return attended(x, x, x, heads, scale, causal)
        pooled = F.adaptive_avg_pool1d(x.transpose(1, 2), others).transpose(1, 2)
        return attended(x, pooled, torch.tanh(pooled), heads, scale, causal)

    agree(core, net, drawn(seed, net.size), reference, seed)


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 3), steps=st.integers(1, 18), heads=st.integers(1, 3), seed=SEEDS, step=st.integers(0, 9))
def test_attention_drops_what_the_python_stream_drops(
    core: ModuleType, rows: int, steps: int, heads: int, seed: int, step: int
) -> None:
    c, p, key, number = heads * 5, 0.3, 12345, 7
    net = Net(rows, steps, c)
    net.op("attention", [1, 1, 1], net.value(steps, c), ints=[heads, 0, number], floats=[0.4, p])
    kept = dropout_factors(key, number, step, (rows, heads * steps, steps), p).reshape(rows, heads, steps, steps)
    factors = torch.from_numpy(kept).double()

    def reference(w: Any) -> Any:
        x = w.reshape(rows, steps, c)
        return attended(x, x, x, heads, 0.4, False, factors)

    agree(core, net, drawn(seed, net.size), reference, seed, key, step)


def test_attention_of_large_scores_is_still_torchs(core: ModuleType) -> None:
    net = Net(2, 9, 6)
    net.op("attention", [1, 1, 1], net.value(9, 6), ints=[2, 1, 0], floats=[300.0, 0.0])
    vector = drawn(3, net.size)
    x = torch.from_numpy(vector).double().reshape(2, 9, 6)
    close(net.outputs(net.plan(core), vector), attended(x, x, x, 2, 300.0, True).numpy(), 1e-3)


def test_a_number_that_is_none_reaches_what_sees_it(core: ModuleType) -> None:
    net = Net(1, 4, 3)
    net.op("attention", [1, 1, 1], net.value(4, 3), ints=[1, 1, 0], floats=[1.0, 0.0])
    vector = drawn(4, net.size)
    vector[6] = np.nan  # of the third position
    out = net.outputs(net.plan(core), vector).reshape(4, 3)
    assert np.isnan(out[2:]).all()


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 5), steps=st.integers(1, 9), c=st.integers(1, 40), residual=st.booleans(), seed=SEEDS)
def test_a_parameter_is_added_to_every_example(
    core: ModuleType, rows: int, steps: int, c: int, residual: bool, seed: int
) -> None:
    net = Net(rows, steps, c)
    y = net.op("offset", [1], net.value(steps, c), [net.weight((steps, c))])
    if residual:
        net.op("mul", [1, y], net.value(steps, c))

    def reference(v: Any) -> Any:
        x, b = v[: rows * steps * c].reshape(rows, steps, c), v[rows * steps * c :].reshape(steps, c)
        return x * (x + b) if residual else x + b

    agree(core, net, drawn(seed, net.size), reference, seed)


SQUARE = (3, 1, 6, 16, False)


@pytest.mark.parametrize(
    ("ins", "out", "ints", "floats"),
    [
        ([1, 1], SQUARE, [2, 0, 0], [1.0, 0.0]),
        ([1, 1, 0], SQUARE, [2, 0, 0], [1.0, 0.0]),
        ([1, 1, 1], SQUARE, [4, 0, 0], [1.0, 0.0]),
        ([1, 1, 1], SQUARE, [0, 0, 0], [1.0, 0.0]),
        ([1, 1, 1], SQUARE, [2, 2, 0], [1.0, 0.0]),
        ([1, 1, 1], SQUARE, [2, 0, -1], [1.0, 0.0]),
        ([1, 1, 1], SQUARE, [2, 0], [1.0, 0.0]),
        ([1, 1, 1], SQUARE, [2, 0, 0], [1.0]),
        ([1, 1, 1], SQUARE, [2, 0, 0], [1.0, 1.0]),
        ([1, 1, 1], SQUARE, [2, 0, 0], [float("nan"), 0.0]),
        ([1, 1, 1], (4, 1, 6, 16, False), [2, 0, 0], [1.0, 0.0]),
        ([1, 1, 1], (1, 3, 6, 16, False), [2, 0, 0], [1.0, 0.0]),
        ([1, 1, 1], (3, 1, 5, 16, False), [2, 0, 0], [1.0, 0.0]),
    ],
)
def test_a_plan_whose_attention_does_not_fit_is_refused(
    core: ModuleType, ins: list[int], out: Any, ints: list[int], floats: list[float]
) -> None:
    net = Net(2, 3, 6)
    net.values.append(out)
    net.op("attention", ins, 2, ints=ints, floats=floats)
    with pytest.raises(ValueError):
        net.plan(core)


def test_a_plan_that_adds_a_parameter_of_another_size_is_refused(core: ModuleType) -> None:
    net = Net(2, 3, 6)
    net.op("offset", [1], net.value(3, 6), [net.weight((2, 6))])
    with pytest.raises(ValueError, match="size"):
        net.plan(core)
