"""Products and sums along channels, and channels side by side, on the native core, against torch in float64."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_plans import BUILDS, Net, build
from test_native_pointwise import SEEDS, agree, close, numbers

torch = pytest.importorskip("torch")
F = torch.nn.functional

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9) | st.integers(60, 70), st.integers(1, 40))
KINDS = ("mul_channels", "add_channels")


@pytest.fixture(scope="module", params=BUILDS)
def core(request: pytest.FixtureRequest) -> ModuleType:
    return build(request.param)


def times(kind: str, x: Any, g: Any) -> Any:
    return x * g if kind == "mul_channels" else x + g


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, seed=SEEDS, bent=st.booleans(), residual=st.booleans())
def test_a_gate_and_its_gradients_are_torchs(
    core: ModuleType, kind: str, shape: tuple[int, int, int], seed: int, bent: bool, residual: bool
) -> None:
    net = Net(*shape)
    x = net.op("tanh", [1], net.value(*shape[1:])) if bent else 1
    gate = net.op("sigmoid", [net.op("mean_positions", [1], net.value(1, shape[2]))], net.value(1, shape[2]))
    y = net.op(kind, [x, gate], net.value(*shape[1:]))
    if residual:
        net.op("add", [y, x], net.value(*shape[1:]))

    def reference(v: Any) -> Any:
        v = v.reshape(shape)
        h = torch.tanh(v) if bent else v
        out = times(kind, h, v.mean(1, keepdim=True).sigmoid())
        return out + h if residual else out

    agree(core, net, numbers(seed, net.size), reference, seed)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 4), c=st.integers(1, 40), seed=SEEDS)
def test_a_vector_may_be_its_own_gate(core: ModuleType, kind: str, rows: int, c: int, seed: int) -> None:
    net = Net(rows, 1, c)
    net.op(kind, [1, 1], net.value(1, c))
    agree(core, net, numbers(seed, net.size), lambda v: times(kind, v, v), seed)


def plan_of_columns(
    core: ModuleType, kind: str, ins: list[tuple[int, int]], out: tuple[int, int], lanes: int = 0
) -> Any:
    """An op over columns of the data (positions, channels) as they lie, not filled up to 16 lanes."""
    net = Net(1, 1, 1)
    net.values = [(positions, 1, c, c, False) for positions, c in ins]
    net.params, net.ops, net.index, net.size = [], [], [], 0
    net.op(kind, [*range(len(ins))], net.value(*out))
    if lanes:
        positions, _, c, ld, tokens = net.values[-1]
        net.values[-1] = (positions, 1, c, ld + lanes, tokens)
    given_ = [(i, 0, False) for i in range(len(ins))]
    none = np.zeros(0, np.int64)
    return core.Plan(net.values, net.params, net.ops, given_, "mse", len(ins), none, np.zeros(0, np.float32), 0)


@pytest.mark.parametrize("lanes", [0, 16])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(shape=SHAPES, seed=SEEDS)
def test_gates_read_columns_of_any_width_as_they_lie(
    core: ModuleType, kind: str, lanes: int, shape: tuple[int, int, int], seed: int
) -> None:
    rows, positions, c = shape
    plan = plan_of_columns(core, kind, [(positions, c), (1, c)], (positions, c), lanes)
    x, g = numbers(seed, rows * positions * c).reshape(rows, -1), numbers(seed + 1, rows * c).reshape(rows, -1)
    out = np.full((rows, positions * c), np.nan, np.float32)
    plan.forward(np.zeros(0, np.float32), [x, g], np.arange(rows), True, out)
    close(out, times(kind, x.reshape(shape), g[:, None]).reshape(out.shape))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4), positions=st.integers(1, 20), seed=SEEDS, residual=st.booleans(),
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=4), same=st.booleans(),
)  # fmt: skip
def test_channels_side_by_side_and_their_gradients_are_torchs(
    core: ModuleType, rows: int, positions: int, widths: list[int], seed: int, residual: bool, same: bool
) -> None:
    """Values of any width, made by layers of their own; one of them twice, and read by others too."""
    net = Net(rows, positions, widths[0])
    x, parts, shapes = numbers(seed, net.size), [1], list[tuple[int, int]]()
    for c in widths[1:]:
        weight = net.weight((net.c, c))
        shapes.append((net.c, c))
        parts.append(net.op("linear", [1], net.value(positions, c), [weight], [net.c, 0, 1]))
    parts += [parts[-1]] if same else []
    c = sum(net.values[i][2] for i in parts)
    joined = net.op("concat", parts, net.value(positions, c))
    if residual:
        weight = net.weight((net.c, c))
        shapes.append((net.c, c))
        other = net.op("linear", [1], net.value(positions, c), [weight], [net.c, 0, 1])
        net.op("add", [other, joined], net.value(positions, c))
    vector = np.concatenate([x, numbers(seed + 1, net.size - x.size, 0.5)])

    def reference(v: Any) -> Any:
        h, at = v[: x.size].reshape(rows, positions, net.c), x.size
        found = [h]
        for one in shapes:
            found.append(h @ v[at : at + one[0] * one[1]].reshape(one))
            at += one[0] * one[1]
        more = found.pop() if residual else 0
        found += [found[-1]] if same else []
        return torch.cat(found, 2) + more

    agree(core, net, vector, reference, seed, 1e-5)


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 4), positions=st.integers(1, 9), widths=st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_columns_side_by_side_are_the_columns(core: ModuleType, rows: int, positions: int, widths: list[int]) -> None:
    plan = plan_of_columns(core, "concat", [(positions, c) for c in widths], (positions, sum(widths)))
    columns = [numbers(i, rows * positions * c).reshape(rows, positions, c) for i, c in enumerate(widths)]
    out = np.full((rows, positions * sum(widths)), np.nan, np.float32)
    plan.forward(np.zeros(0, np.float32), [x.reshape(rows, -1) for x in columns], np.arange(rows), True, out)
    assert np.array_equal(out.reshape(rows, positions, -1), np.concatenate(columns, 2))


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=SEEDS, residual=st.booleans(), data=st.data())
def test_some_channels_in_any_order_and_their_gradients_are_torchs(
    core: ModuleType, shape: tuple[int, int, int], seed: int, residual: bool, data: st.DataObject
) -> None:
    """A part of them, every other one, or any, some of them twice."""
    _, positions, c = shape
    first = data.draw(st.integers(0, c - 1))
    parts = st.integers(first + 1, c).map(lambda end: [*range(first, end)])
    some = data.draw(parts | st.lists(st.integers(0, c - 1), min_size=1, max_size=20))
    net = Net(*shape)
    y = net.op("channels", [1], net.value(positions, len(some)), [], some)
    if residual:  # another reader of the same
        net.op("channels", [1], net.value(positions, len(some)), [], some[::-1])
        net.op("mul", [y, y + 1], net.value(positions, len(some)))

    def reference(v: Any) -> Any:
        x = v.reshape(shape)
        return x[..., some] * x[..., some[::-1]] if residual else x[..., some]

    agree(core, net, numbers(seed, net.size), reference, seed)


@pytest.mark.parametrize("some", [[0, 5], [-1, 0], [0], [0, 1, 2]])
def test_channels_that_are_not_there_are_refused(core: ModuleType, some: list[int]) -> None:
    net = Net(1, 2, 5)
    net.op("channels", [1], net.value(2, 2), [], some)
    with pytest.raises(ValueError, match=r"op channels: number . is missing or out of range|a number for each channel"):
        net.plan(core)


@pytest.mark.parametrize(
    ("kind", "ins", "out", "said"),
    [
        ("mul_channels", [(4, 5), (1, 6)], (4, 5), "one number a channel"),
        ("mul_channels", [(4, 5), (4, 5)], (4, 5), "one number a channel"),
        ("mul_channels", [(4, 5)], (4, 5), "wrong number of inputs"),
        ("add_channels", [(4, 5), (1, 5)], (3, 5), "the shapes of input and output differ"),
        ("concat", [(4, 5), (3, 5)], (4, 10), "not of one height and width"),
        ("concat", [(4, 5), (4, 5)], (4, 9), "are not those of the inputs"),
        ("concat", [], (4, 9), "wrong number of inputs|a plan has inputs"),
    ],
)
def test_what_does_not_fit_is_refused(
    core: ModuleType, kind: str, ins: list[tuple[int, int]], out: tuple[int, int], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        plan_of_columns(core, kind, ins, out)
