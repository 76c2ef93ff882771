"""LSTM, GRU, embedding, one step of a sequence and flattening on the native core, against torch in float64."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_plans import BUILDS, Net, build, padded

from fieldfare.work.native.packing import gate_biases, gates

torch = pytest.importorskip("torch")

KINDS = {"lstm": 4, "gru": 3}
SEEDS = st.integers(0, 2**32 - 1)
WIDTHS = st.integers(1, 40) | st.sampled_from([64, 96, 130])
SEQUENCES = st.tuples(st.integers(1, 19), st.integers(1, 14) | st.just(50), WIDTHS)


@pytest.fixture(scope="module", params=BUILDS)
def core(request: pytest.FixtureRequest) -> ModuleType:
    return build(request.param)


def layer(net: Net, kind: str, x: int, hidden: int, bias: bool) -> int:
    """A recurrent layer behind value `x`, its parameters at the end of the vector in torch's order and shapes."""
    steps, _, c, ld, _ = net.values[x]
    out = net.value(steps, hidden)
    count = KINDS[kind]
    shapes = [(count * hidden, c), (count * hidden, hidden)] + [(count * hidden,)] * (2 * bias)
    params = list[int]()
    for shape, rows in zip(shapes, (ld, padded(hidden), 1, 1), strict=False):
        places = np.arange(net.size, net.size + int(np.prod(shape))).reshape(shape)
        index = gates(places, count, rows) if len(shape) == 2 else gate_biases(places, count)
        params.append(len(net.params))
        net.params.append((sum(p[1] for p in net.params), index.size, True))
        net.index.append(index.reshape(-1))
        net.size += places.size
    return net.op(kind, [x], out, params)


def torchs(kind: str, c: int, hidden: int, bias: bool, v: Any) -> Any:
    """torch's layer in float64 as a function of x, its parameters taken from the end of the vector `v`."""
    module = (torch.nn.LSTM if kind == "lstm" else torch.nn.GRU)(c, hidden, bias=bias, batch_first=True).double()
    shapes = {name: p.shape for name, p in module.named_parameters()}
    at = len(v) - sum(s.numel() for s in shapes.values())
    given = dict[str, Any]()
    for name, shape in shapes.items():
        given[name] = v[at : at + shape.numel()].reshape(shape)
        at += shape.numel()
    return lambda x: torch.func.functional_call(module, given, (x,))[0]


def close(ours: Any, theirs: Any, tolerance: float = 4e-6) -> None:
    theirs = np.asarray(theirs, np.float64)
    size = max(float(np.abs(theirs).max(initial=0.0)), 1e-3)
    np.testing.assert_allclose(
        np.asarray(ours, np.float64).reshape(theirs.shape), theirs, rtol=0, atol=tolerance * size
    )


def drawn(seed: int, size: int, spread: float = 1.0) -> Any:
    return (spread * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def agree(core: ModuleType, net: Net, vector: Any, reference: Any, seed: int) -> None:
    """Outputs, loss, the gradient of every part of the vector, and a fused step of SGD are those of `reference`."""
    _, _, c, _, _ = net.values[-1]
    y = drawn(seed + 1, net.rows * net.values[-1][0] * c).reshape(net.rows, -1)
    v = torch.tensor(vector, dtype=torch.float64, requires_grad=True)
    out = reference(v)
    loss = torch.nn.functional.mse_loss(out.reshape(y.shape), torch.from_numpy(y).double())
    loss.backward()
    assert v.grad is not None
    plan = net.plan(core)
    close(net.outputs(plan, vector), out.detach().numpy())
    found, grad = net.gradient(plan, vector, y)
    assert found == pytest.approx(loss.item(), rel=2e-5)
    inputs = net.rows * net.positions * net.c
    theirs = v.grad.numpy()
    close(grad[:inputs], theirs[:inputs], 2e-5)
    close(grad[inputs:], theirs[inputs:], 2e-5)
    lr = np.float32(1.0 / np.abs(theirs).max())
    after = trained(plan, net, vector, y, [net.rows], float(lr))
    close(after - vector, -float(lr) * theirs, 4e-5)


def trained(plan: Any, net: Net, vector: Any, y: Any, batches: list[int], lr: float) -> Any:
    """The vector after plain SGD over the batch's rows, in batches of a size, one step each."""
    out, loss = np.full((1, net.size), np.nan, np.float32), np.zeros(1)
    settings_ = {"lr": lr, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.0, "nesterov": False, "adam": False}
    settings_ |= {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "half": False}
    one = np.zeros(1, np.int64)
    plan.fit(
        vector[None], one, [net.tokens()], y, np.arange(sum(batches)), np.array([0, sum(batches)]),
        np.array([len(batches)]), np.array([sum(batches)]), batches[0], np.zeros(1, np.uint64), settings_, 0.0, None,
        None, None, None, None, out, None, loss, 1,
    )  # fmt: skip
    return out[0]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(shape=SEQUENCES, hidden=WIDTHS, bias=st.booleans(), residual=st.booleans(), seed=SEEDS)
def test_a_recurrent_layer_and_its_gradients_are_torchs(
    core: ModuleType, kind: str, shape: tuple[int, int, int], hidden: int, bias: bool, residual: bool, seed: int
) -> None:
    rows, steps, c = shape
    if residual:  # the input's gradient is then added to what the sum wrote
        hidden = c
    net = Net(rows, steps, c)
    h = layer(net, kind, 1, hidden, bias)
    if residual:
        net.op("add", [1, h], net.value(steps, c))
    vector = drawn(seed, net.size)
    vector[rows * steps * c :] *= 1 / np.sqrt(hidden)

    def reference(v: Any) -> Any:
        x = v[: rows * steps * c].reshape(rows, steps, c)
        out = torchs(kind, c, hidden, bias, v)(x)
        return out + x if residual else out

    agree(core, net, vector, reference, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_that_are_saturated_are_still_torchs(core: ModuleType, kind: str) -> None:
    net = Net(3, 9, 20)
    layer(net, kind, 1, 24, True)
    vector = drawn(7, net.size, 6.0)
    v = torch.tensor(vector).double()
    out = torchs(kind, 20, 24, True, v)(v[: 3 * 9 * 20].reshape(3, 9, 20))
    np.testing.assert_allclose(net.outputs(net.plan(core), vector).reshape(3, 9, 24), out.numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(shape=SEQUENCES, hidden=st.integers(1, 40), seed=SEEDS)
def test_a_recurrent_layer_reads_a_column_of_any_width_as_it_lies(
    core: ModuleType, kind: str, shape: tuple[int, int, int], hidden: int, seed: int
) -> None:
    rows, steps, c = shape
    net = Net(rows, steps, c)
    net.values, net.ops = [(steps, 1, c, c, False)], []
    net.params, net.index, net.size = [], [], 0
    layer(net, kind, 0, hidden, True)
    vector, x = drawn(seed, net.size, 0.3), drawn(seed + 1, rows * steps * c).reshape(rows, steps * c)
    none = np.zeros(0, np.float32)
    plan = core.Plan(
        net.values, net.params, net.ops, [(0, 0, False)], "mse", 1, np.concatenate(net.index), none, net.size
    )
    v = torch.tensor(vector, dtype=torch.float64, requires_grad=True)
    theirs = torchs(kind, c, hidden, True, v)(torch.from_numpy(x).double().reshape(rows, steps, c))
    out = np.empty((rows, steps * hidden), np.float32)
    plan.forward(vector, [x], np.arange(rows), True, out)
    close(out, theirs.detach().numpy())
    (theirs**2).mean().backward()
    assert v.grad is not None
    grad = np.empty(net.size, np.float32)
    plan.gradient(vector, [x], np.zeros_like(out), np.arange(rows), 0, 0, grad)
    close(grad, v.grad.numpy(), 2e-5)


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 9), steps=st.integers(1, 12), c=st.integers(1, 20), hidden=st.integers(1, 40), seed=SEEDS)
def test_layers_on_top_of_each_other_and_the_last_step_alone_are_torchs(
    core: ModuleType, rows: int, steps: int, c: int, hidden: int, seed: int
) -> None:
    net = Net(rows, steps, c)
    h = layer(net, "lstm", 1, hidden, True)
    split = net.size
    h = layer(net, "gru", h, c, False)
    net.op("select", [h], net.value(1, c), ints=[-1])
    vector = drawn(seed, net.size)
    vector[rows * steps * c :] *= 1 / np.sqrt(hidden)

    def reference(v: Any) -> Any:
        x = v[: rows * steps * c].reshape(rows, steps, c)
        return torchs("gru", hidden, c, False, v)(torchs("lstm", c, hidden, True, v[:split])(x))[:, -1]

    agree(core, net, vector, reference, seed)


@settings(max_examples=10, deadline=None)
@given(shape=SEQUENCES, data=st.data(), seed=SEEDS, residual=st.booleans())
def test_one_position_and_a_flattened_sequence_hand_their_gradients_down(
    core: ModuleType, shape: tuple[int, int, int], data: st.DataObject, seed: int, residual: bool
) -> None:
    rows, steps, c = shape
    position = data.draw(st.integers(-steps, steps - 1))
    net = Net(rows, steps, c)
    h = net.op("tanh", [1], net.value(steps, c))
    flat = net.op("flatten", [h], net.value(1, steps * c))
    if residual:
        one = net.op("select", [h], net.value(1, c), ints=[position])
        net.op("flatten", [one], net.value(1, c))
    vector = drawn(seed, net.size)
    assert flat == 3

    def reference(v: Any) -> Any:
        x = torch.tanh(v.reshape(rows, steps, c))
        return x[:, position] if residual else x.reshape(rows, -1)

    agree(core, net, vector, reference, seed)


def table(core: ModuleType, count: int, c: int, padding: int, steps: int) -> Any:
    values = [(steps, 1, 1, 1, True), (steps, 1, c, padded(c), False)]
    index = np.full((count, padded(c)), -1, np.int64)
    index[:, :c] = np.arange(count * c).reshape(count, c)
    params = [(0, index.size, True)]
    ops = [("embedding", [0], 1, [0], [padding], list[float]())]
    none = np.zeros(0, np.float32)
    return core.Plan(values, params, ops, [(0, 2, False)], "mse", 1, index.reshape(-1), none, count * c)


@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 30), c=st.integers(1, 40), rows=st.integers(1, 9), steps=st.integers(1, 12), seed=SEEDS,
    data=st.data(), dtype=st.sampled_from([np.int64, np.int32, np.uint8]),
)  # fmt: skip
def test_an_embedding_sums_the_gradients_of_its_symbols_and_leaves_the_padding_one(
    core: ModuleType, count: int, c: int, rows: int, steps: int, seed: int, data: st.DataObject, dtype: Any
) -> None:
    padding = data.draw(st.integers(-1, count - 1))
    plan = table(core, count, c, padding, steps)
    rng = np.random.default_rng(seed)
    tokens, vector = rng.integers(0, count, (rows, steps)).astype(dtype), drawn(seed, count * c)
    y = drawn(seed + 1, rows * steps * c).reshape(rows, -1)
    w = torch.tensor(vector, dtype=torch.float64).reshape(count, c).requires_grad_()
    known = torch.from_numpy(tokens.astype(np.int64))
    out = torch.nn.functional.embedding(known, w, padding if padding >= 0 else None)
    ((out.reshape(rows, -1) - torch.from_numpy(y).double()) ** 2).mean().backward()
    assert w.grad is not None
    got = np.empty((rows, steps * c), np.float32)
    plan.forward(vector, [tokens], np.arange(rows), True, got)
    np.testing.assert_array_equal(got.reshape(rows, steps, c), out.detach().numpy().astype(np.float32))
    grad = np.empty(count * c, np.float32)
    plan.gradient(vector, [tokens], y, np.arange(rows), 0, 0, grad)
    close(grad, w.grad.numpy().reshape(-1))
    if padding >= 0:
        assert not grad.reshape(count, c)[padding].any()


def test_a_fused_step_leaves_the_rows_of_a_table_that_no_symbol_names(core: ModuleType) -> None:
    net = Net(2, 3, 5)
    layer(net, "lstm", 1, 4, True)
    vector, y = drawn(1, net.size, 0.5), drawn(2, 2 * 3 * 4).reshape(2, -1)
    after = trained(net.plan(core), net, vector, y, [1], 0.1)  # the first row of the batch alone
    assert np.all(after[:15] != vector[:15])
    np.testing.assert_array_equal(after[15:30], vector[15:30])


def test_two_fused_steps_are_two_steps_of_torch(core: ModuleType) -> None:
    net = Net(2, 7, 6)
    layer(net, "gru", layer(net, "lstm", 1, 18, True), 5, True)
    vector, y = drawn(3, net.size, 0.3), drawn(4, 2 * 7 * 5).reshape(2, -1)
    split = net.size - 3 * 5 * (18 + 5 + 2)
    v = torch.tensor(vector, dtype=torch.float64)
    for row in range(2):
        w = v.clone().requires_grad_()
        x = w[: 2 * 7 * 6].reshape(2, 7, 6)[row : row + 1]
        out = torchs("gru", 18, 5, True, w)(torchs("lstm", 6, 18, True, w[:split])(x))
        ((out.reshape(1, -1) - torch.from_numpy(y[row : row + 1]).double()) ** 2).mean().backward()
        assert w.grad is not None
        v = v - 0.5 * w.grad
    close(trained(net.plan(core), net, vector, y, [1, 1], 0.5), v.numpy())


@pytest.mark.parametrize("token", [-1, 6, 2**31, -(2**40)])
def test_a_symbol_beyond_the_table_is_refused_before_anything_is_computed(core: ModuleType, token: int) -> None:
    plan = table(core, 6, 3, -1, 2)
    tokens = np.array([[0, 1], [5, token]], np.int64)
    out = np.full((2, 6), 7, np.float32)
    with pytest.raises(ValueError, match="token"):
        plan.forward(np.zeros(18, np.float32), [tokens], np.arange(2), True, out)
    assert np.all(out == 7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_reaches_the_state(core: ModuleType, kind: str, bad: float) -> None:
    net = Net(1, 3, 4)
    layer(net, kind, 1, 5, True)
    vector = drawn(5, net.size)
    vector[4] = bad  # of the second step
    out = net.outputs(net.plan(core), vector).reshape(3, 5)
    assert np.isfinite(out[0]).all()
    if np.isnan(bad):
        assert np.isnan(out[1:]).all()


def spoiled(change: str) -> tuple[Any, ...]:
    """The arguments of a plan of one LSTM, with one thing wrong."""
    net = Net(2, 3, 5)
    layer(net, "gru" if change == "kind" else "lstm", 1, 4, change != "no bias")
    values, params, ops = [*net.values], [*net.params], [*net.ops]
    kind, ins, out, own, ints, floats = ops[1]
    match change:
        case "steps":
            values[2] = (4, 1, 4, 16, False)
        case "wide":
            values[2] = (3, 1, 4, 32, False)
        case "grid":
            values[1], values[0], values[2] = (1, 3, 5, 16, False), (1, 3, 1, 1, True), (1, 3, 4, 16, False)
        case "tokens":
            ins = [0]
        case "narrow input":
            values[1] = (3, 1, 5, 32, False)
        case "kind":
            kind = "lstm"
        case "three":
            own = own[:3]
        case "swapped":
            own = [own[0], own[2], own[1], own[3]]
        case "two inputs":
            ins = [1, 1]
        case "none":
            own = []
    ops[1] = (kind, ins, out, own, ints, floats)
    index = np.concatenate(net.index)
    return values, params, ops, [(0, 2, False)], "mse", 2, index, np.zeros(0, np.float32), net.size


def test_a_plan_of_an_lstm_that_is_not_spoiled_is_taken(core: ModuleType) -> None:
    core.Plan(*spoiled("nothing"))
    core.Plan(*spoiled("no bias"))


@pytest.mark.parametrize(
    "change", ["steps", "wide", "grid", "tokens", "narrow input", "kind", "three", "swapped", "two inputs", "none"]
)
def test_a_plan_whose_recurrent_layer_does_not_fit_is_refused(core: ModuleType, change: str) -> None:
    with pytest.raises(ValueError):
        core.Plan(*spoiled(change))


@pytest.mark.parametrize(
    ("op", "values"),
    [
        (("embedding", [0], 1, [0], [], []), {}),
        (("embedding", [0], 1, [0], [6], []), {}),
        (("embedding", [0], 1, [0], [-2], []), {}),
        (("embedding", [0], 1, [], [-1], []), {}),
        (("embedding", [0], 1, [0], [-1], []), {1: (3, 1, 3, 16, False)}),
        (("embedding", [0], 1, [0], [-1], []), {1: (2, 1, 3, 64, False)}),
        (("embedding", [0], 1, [0], [-1], []), {0: (2, 1, 3, 3, False)}),
    ],
)
def test_a_plan_whose_embedding_does_not_fit_is_refused(core: ModuleType, op: Any, values: dict[int, Any]) -> None:
    shapes = [(2, 1, 1, 1, True), (2, 1, 3, 16, False)]
    for at, one in values.items():
        shapes[at] = one
    index = np.full((6, 16), -1, np.int64)
    index[:, :3] = np.arange(18).reshape(6, 3)
    inputs = [(0, 2 if shapes[0][4] else 0, False)]
    with pytest.raises(ValueError):
        core.Plan(shapes, [(0, 96, True)], [op], inputs, "mse", 1, index.reshape(-1), np.zeros(0, np.float32), 18)


@pytest.mark.parametrize(
    ("kind", "ints", "out"),
    [
        ("select", [], (1, 1, 3, 16, False)),
        ("select", [4], (1, 1, 3, 16, False)),
        ("select", [-5], (1, 1, 3, 16, False)),
        ("select", [0], (4, 1, 3, 16, False)),
        ("select", [0], (1, 1, 4, 16, False)),
        ("flatten", [], (1, 1, 13, 16, False)),
        ("flatten", [], (4, 1, 3, 16, False)),
        ("flatten", [], (1, 1, 48, 48, False)),
    ],
)
def test_a_plan_that_takes_a_position_that_is_not_there_is_refused(
    core: ModuleType, kind: str, ints: list[int], out: Any
) -> None:
    none = np.zeros(0, np.float32)
    values = [(4, 1, 3, 3, False), out]
    with pytest.raises(ValueError):
        core.Plan(values, [], [(kind, [0], 1, [], ints, [])], [(0, 0, False)], "mse", 1, np.zeros(0, np.int64), none, 0)
