"""Activations, sums, products, dropout, norms, losses on numbers of the native core, against torch in float64."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from native_plans import BUILDS, Net, build

from fieldfare.work.native.streams import dropout_factors

torch = pytest.importorskip("torch")
F = torch.nn.functional

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9) | st.integers(120, 140), st.integers(1, 40))
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module", params=BUILDS)
def core(request: pytest.FixtureRequest) -> ModuleType:
    return build(request.param)


def close(ours: Any, theirs: Any, tolerance: float = 3e-6, least: float = 1e-6) -> None:
    """Equal within `tolerance` of the largest of `theirs`, or of `least`."""
    theirs = np.asarray(theirs, np.float64)
    size = max(float(np.abs(theirs).max(initial=0.0)), least)
    np.testing.assert_allclose(
        np.asarray(ours, np.float64).reshape(theirs.shape), theirs, rtol=0, atol=tolerance * size
    )


def agree(core: ModuleType, net: Net, vector: Any, reference: Any, seed: int, tolerance: float = 3e-6) -> None:
    """Output, loss and the gradient of all of the vector are those of `reference(vector)` under the squared error."""
    rows, positions = net.rows, net.values[-1][0]
    v = torch.tensor(vector, dtype=torch.float64, requires_grad=True)
    out = reference(v)
    out.retain_grad()
    y = np.random.default_rng(seed).standard_normal((rows, positions * net.values[-1][2])).astype(np.float32)
    loss = F.mse_loss(out.reshape(y.shape), torch.from_numpy(y).double())
    loss.backward()
    plan = net.plan(core)
    close(net.outputs(plan, vector), out.detach().numpy(), tolerance=tolerance)
    found, grad = net.gradient(plan, vector, y)
    assert found == pytest.approx(loss.item(), rel=10 * tolerance)
    assert v.grad is not None
    theirs, above = v.grad.numpy(), float(out.grad.abs().max())  # of a norm's terms, each of this size, some cancel
    x = net.rows * net.positions * net.c
    close(grad[:x], theirs[:x], 4 * tolerance, above)
    if net.size > x:
        close(grad[x:], theirs[x:], 8 * tolerance, above)


def numbers(seed: int, size: int, spread: float = 1.0) -> Any:
    return (spread * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


ACTIVATIONS: dict[str, Any] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.125),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 6.0),
    "hardtanh above 0": lambda x: F.hardtanh(x, 0.25, 2.0),
    "clamp": lambda x: torch.clamp(x, 0.0, 6.0),
    "clamp from below": lambda x: torch.clamp(x, min=-0.25),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "elu": lambda x: F.elu(x, 0.75),
    "elu as selu": F.selu,
    "elu as celu": lambda x: F.celu(x, 2.0),
    "softplus": F.softplus,
    "softplus, sharper": lambda x: F.softplus(x, 4.0, 5.0),
}
FLOATS = {
    "leaky_relu": [0.125],
    "hardtanh": [-0.5, 6.0],
    "hardtanh above 0": [0.25, 2.0],
    "clamp": [0.0, 6.0],
    "clamp from below": [-0.25, float("inf")],
    "elu": [0.75, 1.0, 1.0],
    "elu as selu": [1.6732632423543772, 1.0507009873554805, 1.0],
    "elu as celu": [2.0, 1.0, 0.5],
    "softplus": [1.0, 20.0],
    "softplus, sharper": [4.0, 5.0],
}
BOUNDED = ("tanh", "sigmoid", "hardtanh", "hardtanh above 0", "clamp", "hardsigmoid")


def op_of(name: str) -> str:
    return name.replace(",", " ").split(" ")[0]


@pytest.mark.parametrize("kind", ACTIVATIONS)
@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, seed=SEEDS, spread=st.sampled_from([0.2, 1.0, 4.0]), residual=st.booleans())
def test_an_activation_and_its_gradient_are_torchs(
    core: ModuleType, kind: str, shape: tuple[int, int, int], seed: int, spread: float, residual: bool
) -> None:
    net = Net(*shape)
    y = net.op(op_of(kind), [1], net.value(*shape[1:]), floats=FLOATS.get(kind, []))
    if residual:  # the gradient is then added to what the sum wrote
        net.op("add", [1, y], net.value(*shape[1:]))
    function = ACTIVATIONS[kind]
    agree(core, net, numbers(seed, net.size, spread), lambda v: function(v) + v if residual else function(v), seed)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_an_activation_is_right_over_all_of_its_range(core: ModuleType, kind: str) -> None:
    x = np.concatenate([np.linspace(-30, 30, 4001), [-3e4, -100.0, -88.5, 88.5, 100.0, 3e4, 1e-30, 0.0]]).astype(
        np.float32
    )
    net = Net(1, 1, len(x))
    net.op(op_of(kind), [1], net.value(1, len(x)), floats=FLOATS.get(kind, []))
    v = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    out = ACTIVATIONS[kind](v)
    plan = net.plan(core)
    ours = net.outputs(plan, x)[0]
    theirs = out.detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=3e-7)
    # the gradient of the mean square: 2 y y' / n
    y = np.zeros((1, len(x)), np.float32)
    grad = net.gradient(plan, x, y)[1]
    out.backward(2 * out.detach() / len(x))
    assert v.grad is not None
    np.testing.assert_allclose(grad * len(x), v.grad.numpy() * len(x), rtol=3e-6, atol=2e-6)


EDGES = {
    "hardtanh": [-0.5, 6.0],
    "clamp": [0.0, 6.0],
    "hardsigmoid": [-3.0, 3.0],
    "hardswish": [-3.0, 3.0],
    "elu": [0.0],
    "relu": [0.0],
}


@pytest.mark.parametrize("kind", EDGES)
def test_the_gradient_at_an_edge_is_torchs(core: ModuleType, kind: str) -> None:
    x = np.array([*EDGES[kind], -0.0, *np.nextafter(np.float32(EDGES[kind]), np.float32(1.0))], np.float32)
    net = Net(1, 1, len(x))
    net.op(kind, [1], net.value(1, len(x)), floats=FLOATS.get(kind, []))
    v = torch.tensor(x, requires_grad=True)
    out = ACTIVATIONS[kind](v)
    y = np.full((1, len(x)), 10.0, np.float32)
    F.mse_loss(out[None], torch.from_numpy(y)).backward()
    assert v.grad is not None
    np.testing.assert_allclose(net.gradient(net.plan(core), x, y)[1], v.grad.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "floats", "said"),
    [
        ("hardtanh", [1.0, 0.0], "the lower and the upper one"),
        ("clamp", [1.0], "the lower and the upper one"),
        ("elu", [1.0], "takes three finite numbers"),
        ("elu", [1.0, 1.0, -1.0], "the last not below 0"),
        ("softplus", [0.0, 20.0], "a finite beta that is not 0"),
        ("leaky_relu", [float("inf")], "one finite slope"),
    ],
)
def test_numbers_that_an_activation_cannot_have_are_refused(
    core: ModuleType, kind: str, floats: list[float], said: str
) -> None:
    net = Net(1, 1, 3)
    net.op(kind, [1], net.value(1, 3), floats=floats)
    with pytest.raises(ValueError, match=said):
        net.plan(core)


@pytest.mark.parametrize("kind", ["add", "mul"])
@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, seed=SEEDS, same=st.booleans(), residual=st.booleans())
def test_sums_and_products_and_their_gradients_are_torchs(
    core: ModuleType, kind: str, shape: tuple[int, int, int], seed: int, same: bool, residual: bool
) -> None:
    net = Net(*shape)
    other = 1 if same else net.op("tanh", [1], net.value(*shape[1:]))
    y = net.op(kind, [1, other], net.value(*shape[1:]))
    if residual:
        net.op("mul", [y, 1], net.value(*shape[1:]))

    def reference(v: Any) -> Any:
        b = v if same else torch.tanh(v)
        out = v + b if kind == "add" else v * b
        return out * v if residual else out

    agree(core, net, numbers(seed, net.size), reference, seed)


def norm(net: Net, kind: str, params: int, ints: list[int], eps: float = 1e-5) -> None:
    wide = (net.positions, net.c) if kind == "layer_norm" and ints == [2] else (net.c,)
    some = [net.weight(wide) for _ in range(params)]
    net.op(kind, [1], net.value(net.positions, net.c), some, ints, [] if kind == "affine" else [eps])


def normed(kind: str, net: Net, v: Any, params: int, ints: list[int], eps: float = 1e-5) -> Any:
    rows, positions, c = net.rows, net.positions, net.c
    n = rows * positions * c
    x = v[:n].reshape(rows, positions, c)
    wide = (positions, c) if ints == [2] and kind == "layer_norm" else (c,)
    size = int(np.prod(wide))
    gamma = v[n : n + size].reshape(wide) if params > 0 else None
    beta = v[n + size : n + 2 * size].reshape(wide) if params > 1 else None
    match kind:
        case "group_norm":
            return torch.group_norm(x.transpose(1, 2), ints[0], gamma, beta, eps).transpose(1, 2)
        case "layer_norm":
            return F.layer_norm(x, wide, gamma, beta, eps)
        case "batch_norm":
            mean, variance = x.mean((0, 1)), x.var((0, 1), correction=0)
            h = (x - mean) / torch.sqrt(variance + eps)
            return (h if gamma is None else h * gamma) + (0 if beta is None else beta)
        case _:
            return x * gamma + beta


def values_of(net: Net, seed: int, offset: float) -> Any:
    v = numbers(seed, net.size)
    v[: net.rows * net.positions * net.c] += np.float32(offset)
    return v


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(2, 9) | st.integers(120, 140), st.integers(1, 12)),
    groups=st.integers(1, 5),
    seed=SEEDS,
    params=st.integers(0, 2),
    offset=st.sampled_from([0.0, 3.0]),
)
def test_group_norm_and_its_gradients_are_torchs(
    core: ModuleType, shape: tuple[int, int, int], groups: int, seed: int, params: int, offset: float
) -> None:
    net = Net(shape[0], shape[1], shape[2] * groups)
    norm(net, "group_norm", params, [groups], 1e-2)
    agree(
        core,
        net,
        values_of(net, seed, offset),
        lambda v: normed("group_norm", net, v, params, [groups], 1e-2),
        seed,
        1e-5,
    )


@pytest.mark.parametrize("over", [1, 2])
@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, seed=SEEDS, params=st.integers(0, 2), offset=st.sampled_from([0.0, 3.0]))
def test_layer_norm_and_its_gradients_are_torchs(
    core: ModuleType, over: int, shape: tuple[int, int, int], seed: int, params: int, offset: float
) -> None:
    net = Net(*shape)
    norm(net, "layer_norm", params, [over], 1e-2)
    agree(
        core,
        net,
        values_of(net, seed, offset),
        lambda v: normed("layer_norm", net, v, params, [over], 1e-2),
        seed,
        1e-5,
    )


@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, seed=SEEDS, params=st.integers(0, 2), offset=st.sampled_from([0.0, 3.0]))
def test_batch_norm_uses_the_statistics_of_the_batch_at_hand(
    core: ModuleType, shape: tuple[int, int, int], seed: int, params: int, offset: float
) -> None:
    assume(shape[0] * shape[1] > 1)
    net = Net(*shape)
    norm(net, "batch_norm", params, [], 1e-2)
    vector = values_of(net, seed, offset)
    agree(core, net, vector, lambda v: normed("batch_norm", net, v, params, [], 1e-2), seed, 1e-5)
    plan = net.plan(core)
    np.testing.assert_array_equal(net.outputs(plan, vector, train=False), net.outputs(plan, vector, train=True))


@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, seed=SEEDS)
def test_affine_scales_and_shifts_each_channel(core: ModuleType, shape: tuple[int, int, int], seed: int) -> None:
    net = Net(*shape)
    norm(net, "affine", 2, [])
    agree(core, net, numbers(seed, net.size), lambda v: normed("affine", net, v, 2, []), seed)


@pytest.mark.parametrize(
    ("kind", "ints", "shape"),
    [
        ("group_norm", [2], (1, 5000, 20)),
        ("layer_norm", [1], (2, 3, 50_000)),
        ("layer_norm", [2], (1, 5000, 20)),
        ("batch_norm", [], (4, 5000, 5)),
    ],
)
def test_statistics_of_many_numbers_far_from_zero_lose_no_digits(
    core: ModuleType, kind: str, ints: list[int], shape: tuple[int, int, int]
) -> None:
    net = Net(*shape)
    norm(net, kind, 0, ints)
    vector = values_of(net, 1, 1000.0)
    theirs = normed(kind, net, torch.tensor(vector, dtype=torch.float64), 0, ints).numpy()
    # a float32 near 1000 is 6e-5 apart from the next, and so is the mean that is taken away
    np.testing.assert_allclose(net.outputs(net.plan(core), vector).reshape(shape), theirs, atol=8e-5)
    vector = values_of(net, 1, 0.0)
    theirs = normed(kind, net, torch.tensor(vector, dtype=torch.float64), 0, ints).numpy()
    np.testing.assert_allclose(net.outputs(net.plan(core), vector).reshape(shape), theirs, atol=2e-6)


def raw(
    core: ModuleType, shape: tuple[int, int, int], kind: str, params: int, ints: list[int], floats: list[float]
) -> Any:
    """A plan whose first op reads a column of the data as it is, not filled up to 16 lanes."""
    _, positions, c = shape
    net = Net(1, 1, 1)
    net.values = [(positions, 1, c, c, False)]
    net.params, net.ops, net.index, net.size = [], [], [], 0
    wide = (positions, c) if kind == "layer_norm" and ints == [2] else (c,)
    some = [net.weight(wide) for _ in range(params)]
    net.op(kind, [0, 0] if kind in ("add", "mul") else [0], net.value(positions, c), some, ints, floats)
    index = np.concatenate([*net.index, np.zeros(0, np.int64)])
    none = np.zeros(0, np.float32)
    return core.Plan(net.values, net.params, net.ops, [(0, 0, False)], "mse", 1, index, none, net.size)


@pytest.mark.parametrize(
    ("kind", "params", "ints", "floats"),
    [
        ("sigmoid", 0, [], []),
        ("gelu", 0, [], []),
        ("softplus", 0, [], [1.0, 20.0]),
        ("hardswish", 0, [], []),
        ("add", 0, [], []),
        ("mul", 0, [], []),
        ("dropout", 0, [0], [0.25]),
        ("group_norm", 2, [1], [1e-2]),
        ("layer_norm", 2, [1], [1e-2]),
        ("layer_norm", 2, [2], [1e-2]),
        ("batch_norm", 2, [], [1e-2]),
        ("affine", 2, [], []),
    ],
)
@settings(max_examples=8, deadline=None)
@given(shape=SHAPES, seed=SEEDS)
def test_ops_read_columns_of_any_width_as_they_lie(
    core: ModuleType,
    kind: str,
    params: int,
    ints: list[int],
    floats: list[float],
    shape: tuple[int, int, int],
    seed: int,
) -> None:
    rows, positions, c = shape
    assume(kind != "batch_norm" or rows * positions > 1)
    plan = raw(core, shape, kind, params, ints, floats)
    n = rows * positions * c
    x, vector = numbers(seed, n).reshape(rows, positions * c), numbers(seed + 1, plan.vector_size)
    net = Net(*shape)
    v = torch.tensor(np.concatenate([x.reshape(-1), vector]), dtype=torch.float64, requires_grad=True)
    xs = v[:n].reshape(shape)
    match kind:
        case "add":
            theirs = xs + xs
        case "mul":
            theirs = xs * xs
        case "dropout":
            theirs = xs * torch.from_numpy(dropout_factors(0, 0, 0, shape, 0.25)).double()
        case "sigmoid" | "gelu" | "softplus" | "hardswish":
            theirs = ACTIVATIONS[kind](xs)
        case _:
            theirs = normed(kind, net, v, params, ints, 1e-2)
    out = np.zeros((rows, positions * c), np.float32)
    plan.forward(vector, [x], np.arange(rows), True, out)
    close(out, theirs.detach().numpy().reshape(out.shape), tolerance=1e-5)
    y = numbers(seed + 2, n).reshape(rows, positions * c)
    grad = np.zeros(plan.vector_size, np.float32)
    loss = plan.gradient(vector, [x], y, np.arange(rows), 0, 0, grad)
    expected = F.mse_loss(theirs.reshape(y.shape), torch.from_numpy(y).double())
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    if params:
        expected.backward()
        assert v.grad is not None
        close(grad, v.grad.numpy()[n:], tolerance=5e-5)


@settings(max_examples=30, deadline=None)
@given(
    shape=SHAPES,
    p=st.sampled_from([0.0, 0.1, 0.5, 0.999, 1.0]) | st.floats(0, 1),
    key=st.integers(0, 2**64 - 1),
    number=st.integers(0, 1000),
    step=st.integers(0, 2**24),
)
def test_dropout_forward_and_backward_keep_what_the_python_stream_keeps(
    core: ModuleType, shape: tuple[int, int, int], p: float, key: int, number: int, step: int
) -> None:
    net = Net(*shape)
    net.op("dropout", [1], net.value(*shape[1:]), ints=[number], floats=[p])
    plan = net.plan(core)
    factors = dropout_factors(key, number, step, shape, p).reshape(-1)
    n = net.size
    x, y = np.full(n, 2.0, np.float32), np.ones((shape[0], shape[1] * shape[2]), np.float32)
    loss, grad = net.gradient(plan, x, y, key, step)
    kept = factors.astype(np.float64)  # the target is 1, so that above a dropped number there is a gradient too
    assert loss == pytest.approx(float(np.mean((2.0 * kept - 1.0) ** 2)), rel=1e-5)
    np.testing.assert_allclose(grad * n, 2.0 * (2.0 * kept - 1.0) * kept, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(net.outputs(plan, x, train=False), x.reshape(y.shape))


def test_dropout_drops_as_often_as_it_says_and_differs_by_step_row_op_and_client() -> None:
    shape = (4, 50, 20)
    one = dropout_factors(1, 0, 0, shape, 0.3)
    assert abs(float((one == 0).mean()) - 0.3) < 0.03
    others = [
        dropout_factors(2, 0, 0, shape, 0.3),
        dropout_factors(1, 1, 0, shape, 0.3),
        dropout_factors(1, 0, 1, shape, 0.3),
        np.roll(one, 1, axis=0),
    ]
    for other in others:  # independent: both drop a number with probability 0.09
        assert abs(float(((one == 0) & (other == 0)).mean()) - 0.09) < 0.03


@pytest.mark.parametrize(
    "kind", [*ACTIVATIONS, "add", "mul", "dropout", "group_norm", "layer_norm", "batch_norm", "affine"]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_the_loss(core: ModuleType, kind: str, bad: float) -> None:
    if kind in BOUNDED and bad == np.inf:
        pytest.skip(f"{kind} of infinity is a number")
    net = Net(2, 3, 5)
    if kind in ("group_norm", "layer_norm", "batch_norm", "affine"):
        norm(net, kind, 2, [] if kind in ("batch_norm", "affine") else [1])
    else:
        floats = {**FLOATS, "dropout": [0.5]}.get(kind, [])
        net.op(op_of(kind), [1, 1] if kind in ("add", "mul") else [1], net.value(3, 5), [], [0], floats)
    for place in (0, 7, 29):
        vector = numbers(0, net.size)
        vector[place] = bad
        loss, _ = net.gradient(net.plan(core), vector, np.zeros((2, 15), np.float32))
        assert not np.isfinite(loss)


LOSSES: dict[str, Any] = {"mse": F.mse_loss, "l1": F.l1_loss, "bce": F.binary_cross_entropy_with_logits}


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, seed=SEEDS, spread=st.sampled_from([0.5, 5.0, 50.0]))
def test_a_loss_on_numbers_and_its_gradient_are_torchs(
    core: ModuleType, loss: str, shape: tuple[int, int, int], seed: int, spread: float
) -> None:
    net = Net(*shape)
    x = numbers(seed, net.size, spread)
    y = np.random.default_rng(seed + 1).random((shape[0], shape[1] * shape[2])).astype(np.float32)
    y[0, 0] = x[0] if loss == "l1" else 1.0
    v = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    theirs = LOSSES[loss](v, torch.from_numpy(y.reshape(-1)).double())
    theirs.backward()
    found, grad = net.gradient(net.plan(core, loss, output=1), x, y)
    assert found == pytest.approx(theirs.item(), rel=1e-6)
    assert v.grad is not None
    close(grad, v.grad.numpy(), 2e-6, 1 / net.size)


@pytest.mark.parametrize("loss", LOSSES)
def test_evaluation_gives_sums_over_all_numbers(core: ModuleType, loss: str) -> None:
    net = Net(3, 2, 5)
    x, y = numbers(0, net.size), (np.arange(30).reshape(3, 10) % 2).astype(np.float32)
    found = [np.zeros(1) for _ in range(3)]
    zero, rows = np.zeros(1, np.int64), np.arange(3)
    net.plan(core, loss, output=1).evaluate(x[None], zero, [net.tokens()], y, rows, np.array([0, 3]), *found, 1)
    theirs = LOSSES[loss](torch.from_numpy(x).double(), torch.from_numpy(y.reshape(-1)).double(), reduction="sum")
    assert found[0][0] == pytest.approx(theirs.item(), rel=1e-6)
    assert found[2][0] == 30
    if loss == "bce":
        assert found[1][0] == ((x > 0) == (y.reshape(-1) > 0.5)).sum()
