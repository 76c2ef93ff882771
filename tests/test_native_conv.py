"""Convolutions and pooling on the native core, forward and backward, against torch in float64, in each build."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from native_plans import BUILDS, build, padded
from numpy.typing import NDArray

from fieldfare.work.native import packing

torch = pytest.importorskip("torch")
F = torch.nn.functional

SEEDS = st.integers(0, 2**32 - 1)
CHANNELS = st.sampled_from([1, 3, 15, 16, 17, 32, 40, 64, 70])
PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.fixture(scope="module", params=BUILDS)
def core(request: pytest.FixtureRequest) -> ModuleType:
    return build(request.param)


@dataclass
class Pictures:
    """A plan in the making over pictures `[rows, c, h, w]`: an embedding (so that they have gradients) or an input.

    `torchs` computes the same from the vector's parts, in float64.
    """

    rows: int
    h: int
    w: int
    c: int
    given: bool = False
    values: list[tuple[int, int, int, int, bool]] = field(default_factory=list)
    params: list[tuple[int, int, bool]] = field(default_factory=list)
    index: list[NDArray[np.int64]] = field(default_factory=list)
    ops: list[Any] = field(default_factory=list)
    size: int = 0
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    torchs: list[Any] = field(default_factory=list)
    at: int | None = None

    def __post_init__(self) -> None:
        if self.given:
            self.values = [(self.h, self.w, self.c, self.c, False)]
            return
        self.values = [(self.h, self.w, 1, 1, True), (self.h, self.w, self.c, padded(self.c), False)]
        positions = self.rows * self.h * self.w
        table = self.weight((positions, self.c), packing_of_rows)
        self.ops.append(("embedding", [0], 1, [table], [-1], []))

    def weight(self, shape: tuple[int, ...], packed: Any) -> int:
        places = np.arange(self.size, self.size + int(np.prod(shape))).reshape(shape)
        index = np.asarray(packed(places)).reshape(-1)
        index = np.pad(index, (0, -len(index) % 16), constant_values=-1)
        self.params.append((sum(p[1] for p in self.params), index.size, True))
        self.index.append(index)
        self.size += places.size
        self.shapes.append(shape)
        return len(self.params) - 1

    def value(self, h: int, w: int, c: int) -> int:
        self.values.append((h, w, c, padded(c), False))
        self.at = None
        return len(self.values) - 1

    @property
    def last(self) -> int:
        return len(self.values) - 1 if self.at is None else self.at

    def branch(self, value: int) -> None:
        """The next op reads `value`, not what was written last."""
        self.at = value

    def conv(
        self, cout: int, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int, bias: bool, relu: bool
    ) -> None:
        x, (h, w, c, ld, _) = self.last, self.values[self.last]
        sizes = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip((h, w), kernel, stride, padding, dilation, strict=True)
        ]
        out = self.value(*sizes, cout)
        first = len(self.shapes)
        params = [
            self.weight((cout, c // groups, *kernel), lambda places: packing.conv(places, groups, ld, padded(cout)))
        ]
        if bias:
            params.append(self.weight((cout,), lambda places: packing_of_rows(places[None])))
        self.ops.append(("conv2d", [x], out, params, [*kernel, *stride, *padding, *dilation, groups, int(relu)], []))

        def compute(x: Any, parts: list[Any]) -> Any:
            z = F.conv2d(x, parts[first], parts[first + 1] if bias else None, stride, padding, dilation, groups)
            return z.relu() if relu else z

        self.torchs.append(compute)

    def pool(self, kind: str, kernel: Any, stride: Any, padding: Any, flag: int) -> None:
        x, (h, w, c, _, _) = self.last, self.values[self.last]
        sizes = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip((h, w), kernel, stride, padding, strict=True)]
        self.ops.append((kind, [x], self.value(*sizes, c), [], [*kernel, *stride, *padding, flag], []))
        if kind == "avg_pool":
            self.torchs.append(lambda x, _: F.avg_pool2d(x, kernel, stride, padding, count_include_pad=bool(flag)))
        else:
            self.torchs.append(
                lambda x, _: (
                    F.max_pool2d(x, kernel, stride, padding).relu()
                    if flag
                    else F.max_pool2d(x, kernel, stride, padding)
                )
            )

    def means(self, h: int, w: int) -> None:
        x, c = self.last, self.values[self.last][2]
        self.ops.append(
            ("adaptive_avg_pool" if (h, w) != (1, 1) else "mean_positions", [x], self.value(h, w, c), [], [], [])
        )
        self.torchs.append(lambda x, _: F.adaptive_avg_pool2d(x, (h, w)))

    def plan(self, core: ModuleType) -> Any:
        none = np.zeros(0, np.float32)
        inputs = [(0, 0, True)] if self.given else [(0, 2, False)]
        index = np.concatenate(self.index)
        return core.Plan(self.values, self.params, self.ops, inputs, "mse", self.last, index, none, self.size)


def packing_of_rows(places: NDArray[np.int64]) -> NDArray[np.int64]:
    out = np.full((len(places), padded(places.shape[1])), -1, np.int64)
    out[:, : places.shape[1]] = places
    return out


def drawn(seed: int, size: int) -> NDArray[np.float32]:
    """Normal numbers, all different, so that no maximum is shared."""
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    size = max(float(np.abs(theirs).max(initial=0.0)), 1e-6)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * size)


def agree(core: ModuleType, net: Pictures, seed: int) -> None:
    """Outputs, gradients of weights and inputs, and one step of fused SGD are torch's."""
    rows, (h, w, c, _, _) = net.rows, net.values[-1]
    vector = drawn(seed, net.size)
    pictures = drawn(seed + 1, rows * net.c * net.h * net.w).reshape(rows, net.c, net.h, net.w)
    y = drawn(seed + 2, rows * h * w * c).reshape(rows, -1)
    v = torch.tensor(vector, dtype=torch.float64, requires_grad=True)
    parts, at = list[Any](), 0
    for shape in net.shapes:
        parts.append(v[at : at + int(np.prod(shape))].reshape(shape))
        at += int(np.prod(shape))
    z = torch.from_numpy(pictures).double()
    if not net.given:
        z = parts[0].reshape(rows, net.h, net.w, net.c).permute(0, 3, 1, 2)
    for compute in net.torchs:
        z = compute(z, parts)
    z = z.permute(0, 2, 3, 1).reshape(rows, -1)
    loss = F.mse_loss(z, torch.from_numpy(y).double())
    loss.backward()
    assert v.grad is not None

    plan = net.plan(core)
    tokens = np.arange(rows * net.h * net.w, dtype=np.int64).reshape(rows, -1)
    columns, order = [pictures if net.given else tokens], np.arange(rows)
    out = np.full((rows, h * w * c), np.nan, np.float32)
    plan.forward(vector, columns, order, True, out)
    close(out, z.detach().numpy())
    grad = np.full(net.size, np.nan, np.float32)
    assert plan.gradient(vector, columns, y, order, 0, 0, grad) == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
    at = 0
    for shape in net.shapes:
        end = at + int(np.prod(shape))
        close(grad[at:end], v.grad.numpy()[at:end])
        at = end
    trained = np.full((1, net.size), np.nan, np.float32)
    told = {"lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.0, "nesterov": False, "adam": False}
    told |= {"half": False, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    one = np.array([1], np.int64)
    plan.fit(
        vector[None], 0 * one, columns, y, order, np.array([0, rows]), one, rows * one, rows, np.zeros(1, np.uint64),
        told, 0.0, None, None, None, None, None, trained, None, np.zeros(1), 1,
    )  # fmt: skip
    close(trained[0], vector - 0.5 * v.grad.numpy(), 3e-6)


@st.composite
def convolutions(draw: Any, groups: Any = st.just(1)) -> tuple[Pictures, int]:
    """One convolution of any shape over a padded value (with a gradient) or an input."""
    g = draw(groups)
    c, cout = (
        (draw(CHANNELS), draw(CHANNELS)) if g == 1 else (g * draw(st.integers(1, 6)), g * draw(st.integers(1, 18)))
    )
    kernel, stride, padding = (
        draw(st.tuples(st.integers(1, 5), st.integers(1, 5))),
        draw(PAIR),
        draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
    )
    dilation = draw(st.just((1, 1)) | PAIR)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    h, w = (n + draw(st.integers(0, 9)) for n in least)
    net = Pictures(draw(st.integers(1, 4)), h, w, c, draw(st.booleans()))
    net.conv(cout, kernel, stride, padding, dilation, g, draw(st.booleans()), draw(st.booleans()))
    return net, draw(SEEDS)


@given(convolutions())
@settings(max_examples=60)
def test_a_convolution_of_any_kernel_stride_padding_and_dilation_is_torchs(core: ModuleType, drawn: Any) -> None:
    agree(core, *drawn)


@given(
    channels=st.tuples(st.sampled_from([12, 16, 32, 40, 64]), st.sampled_from([10, 16, 32, 70])),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)), sizes=st.tuples(st.integers(3, 14), st.integers(3, 30)),
    rows=st.integers(1, 6), window=st.sampled_from([None, (2, 2), (3, 3), (1, 2), (3, 1)]),
    relu=st.booleans(), seed=SEEDS,
)  # fmt: skip
@settings(max_examples=50)
def test_a_3x3_convolution_by_fewer_products_is_torchs(
    core: ModuleType, channels: Any, padding: Any, sizes: Any, rows: int, window: Any, relu: bool, seed: int
) -> None:
    net = Pictures(rows, *sizes, channels[0])
    net.conv(channels[1], (3, 3), (1, 1), padding, (1, 1), 1, True, relu)
    h, w, *_ = net.values[-1]
    if window and window[0] <= h and window[1] <= w:
        net.pool("max_pool", window, window, (0, 0), int(relu))
    agree(core, net, seed)


@given(convolutions(st.sampled_from([2, 3, 8, 20])))
@settings(max_examples=40)
def test_a_convolution_in_groups_is_torchs(core: ModuleType, drawn: Any) -> None:
    agree(core, *drawn)


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(2, 40), st.integers(7, 13)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)), stride=PAIR, padding=PAIR, dilation=PAIR,
    dense=st.booleans(), bent=st.booleans(), seed=SEEDS,
)  # fmt: skip
@settings(max_examples=60)
def test_a_depthwise_convolution_is_torchs(
    core: ModuleType, sizes: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, dense: bool, bent: bool,
    seed: int,
) -> None:  # fmt: skip
    rows, c, size = sizes
    assume(all(d * (k - 1) < size + 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)))
    net = Pictures(rows, size, size + 1, c, dense)
    net.conv(c, kernel, stride, padding, dilation, c, bent, bent)
    agree(core, net, seed)


@st.composite
def pooled(draw: Any) -> tuple[Pictures, int]:
    """A convolution and a max-pool behind it: joined in one op where windows lie side by side."""
    c, cout, k, s, p = draw(CHANNELS), draw(CHANNELS), draw(st.integers(1, 5)), draw(PAIR), draw(st.integers(0, 2))
    window = draw(PAIR)
    step = draw(st.just(window) | PAIR)
    edge = (
        (draw(st.integers(0, window[0] // 2)), draw(st.integers(0, window[1] // 2))) if draw(st.booleans()) else (0, 0)
    )
    h, w = (max(1, (window[i] - 1) * s[i] + k - 2 * p) + draw(st.integers(0, 9)) for i in range(2))
    assume(h + 2 * p >= k and w + 2 * p >= k)
    net = Pictures(draw(st.integers(1, 4)), h, w, c, draw(st.booleans()))
    net.conv(cout, (k, k), s, (p, p), (1, 1), 1, draw(st.booleans()), draw(st.booleans()))
    net.pool("max_pool", window, step, edge, draw(st.integers(0, 1)))
    return net, draw(SEEDS)


@given(pooled())
@settings(max_examples=80)
def test_a_max_pool_behind_a_convolution_is_torchs_whether_they_are_joined_or_not(core: ModuleType, drawn: Any) -> None:
    agree(core, *drawn)


def test_a_convolution_that_others_read_too_is_not_joined_with_its_pool(core: ModuleType) -> None:
    net = Pictures(3, 8, 8, 5)
    net.conv(20, (3, 3), (1, 1), (1, 1), (1, 1), 1, True, True)
    conv = net.last
    net.pool("max_pool", (2, 2), (2, 2), (0, 0), 0)
    pool = net.last
    net.ops.append(("mean_positions", [conv], net.value(1, 1, 20), [], [], []))
    net.ops.append(("mean_positions", [pool], net.value(1, 1, 20), [], [], []))
    net.ops.append(("add", [net.last - 1, net.last], net.value(1, 1, 20), [], [], []))
    first = net.torchs[0]
    net.torchs = [lambda x, parts: (z := first(x, parts)).mean((2, 3), True) + F.max_pool2d(z, 2).mean((2, 3), True)]
    agree(core, net, 5)


@pytest.mark.parametrize("joined", [False, True])
def test_the_gradient_of_a_picture_that_two_read_is_the_sum(core: ModuleType, joined: bool) -> None:
    net = Pictures(2, 9, 8, 18)
    x, ways = net.last, list[Any]()
    for _ in range(2):
        net.branch(x)
        net.conv(16, (3, 3), (1, 1), (1, 1), (1, 1), 1, True, False)
        if joined:
            net.pool("max_pool", (2, 2), (2, 2), (0, 0), 1)
        ways.append((net.last, net.torchs))
        net.torchs = []
    h, w, c, _, _ = net.values[-1]
    net.ops.append(("add", [ways[0][0], ways[1][0]], net.value(h, w, c), [], [], []))

    def along(x: Any, parts: list[Any], steps: list[Any]) -> Any:
        for one in steps:
            x = one(x, parts)
        return x

    net.torchs = [lambda x, parts: along(x, parts, ways[0][1]) + along(x, parts, ways[1][1])]
    agree(core, net, 7)


@st.composite
def pools(draw: Any) -> tuple[Pictures, int]:
    kernel, stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4))), draw(PAIR)
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    net = Pictures(draw(st.integers(1, 4)), draw(st.integers(4, 11)), draw(st.integers(4, 11)), draw(CHANNELS))
    kind = draw(st.sampled_from(["max_pool", "avg_pool", "means"]))
    if kind == "means":
        net.means(*draw(PAIR))
    else:
        net.pool(kind, kernel, stride, padding, draw(st.integers(0, 1)))
    return net, draw(SEEDS)


@given(pools())
@settings(max_examples=80)
def test_pooling_is_torchs(core: ModuleType, drawn: Any) -> None:
    agree(core, *drawn)


def test_of_equal_numbers_the_first_is_the_maximum_as_in_torch(core: ModuleType) -> None:
    for before in (False, True):
        net = Pictures(1, 4, 4, 1)
        if before:
            net.conv(16, (1, 1), (1, 1), (0, 0), (1, 1), 1, False, False)
        net.pool("max_pool", (2, 2), (2, 2), (0, 0), 0)
        vector = np.ones(net.size, np.float32)
        grad = np.zeros(net.size, np.float32)
        tokens, one = np.arange(16).reshape(1, 16), np.arange(1)
        y = np.zeros((1, 4 * net.values[-1][2]), np.float32)
        net.plan(core).gradient(vector, [tokens], y, one, 0, 0, grad)
        held = grad[:16].reshape(4, 4) != 0
        assert np.array_equal(held, np.tile([[True, False], [False, False]], (2, 2)))


def test_what_is_not_a_number_is_seen_behind_a_max_pool(core: ModuleType) -> None:
    for before in (False, True):
        for place in range(4):
            net = Pictures(1, 2, 2, 16)
            if before:
                net.conv(16, (1, 1), (1, 1), (0, 0), (1, 1), 1, False, True)
            net.pool("max_pool", (2, 2), (2, 2), (0, 0), 1)
            vector = np.ones(net.size, np.float32)
            vector[place * 16] = np.nan
            out = np.zeros((1, 16), np.float32)
            net.plan(core).forward(vector, [np.arange(4).reshape(1, 4)], np.arange(1), True, out)
            assert np.isnan(out[0, 0])


BAD = {
    "a kernel larger than the picture": ("conv2d", {0: 9}),
    "another stride than the output has": ("conv2d", {2: 2}),
    "another padding than the output has": ("conv2d", {5: 0}),
    "dilation beyond the picture": ("conv2d", {6: 4}),
    "no stride": ("conv2d", {3: 0}),
    "less than no padding": ("conv2d", {4: -1}),
    "groups that do not part the channels": ("conv2d", {8: 5}),
    "groups of which there are no weights": ("conv2d", {8: 2}),
    "a relu that is neither there nor not": ("conv2d", {9: 2}),
    "a window larger than the picture": ("max_pool", {0: 9}),
    "padding larger than half a window": ("max_pool", {4: 2}),
    "another stride of windows": ("max_pool", {2: 1, 3: 1}),
    "huge numbers": ("conv2d", {0: 2**40}),
}


@pytest.mark.parametrize("what", BAD)
def test_a_wrong_plan_is_refused(core: ModuleType, what: str) -> None:
    kind, changes = BAD[what]
    net = Pictures(2, 6, 6, 4)
    net.conv(6, (3, 3), (1, 1), (1, 1), (1, 1), 1, True, False)
    net.pool("max_pool", (2, 2), (2, 2), (0, 0), 0)
    net.plan(core)
    at = next(i for i, op in enumerate(net.ops) if op[0] == kind)
    name, ins, out, params, ints, floats = net.ops[at]
    net.ops[at] = (name, ins, out, params, [changes.get(i, n) for i, n in enumerate(ints)], floats)
    with pytest.raises(ValueError, match=kind.split("_")[-1] + "|conv2d"):
        net.plan(core)


@pytest.mark.parametrize("shape", [(2, 3, 6, 16), (3, 3, 17, 32), (3, 3, 6, 32), (4, 3, 6, 16)])
def test_an_output_of_another_size_is_refused(core: ModuleType, shape: tuple[int, int, int, int]) -> None:
    net = Pictures(2, 6, 6, 4)
    net.conv(6, (3, 3), (1, 1), (1, 1), (1, 1), 1, True, False)
    net.pool("max_pool", (2, 2), (2, 2), (0, 0), 0)
    net.values[-1] = (*shape, False)
    with pytest.raises(ValueError, match="output"):
        net.plan(core)


def test_weights_of_another_size_are_refused(core: ModuleType) -> None:
    net = Pictures(2, 6, 6, 4)
    net.conv(6, (3, 3), (1, 1), (1, 1), (1, 1), 1, True, False)
    at, size, _ = net.params[1]
    net.params[1:] = [(at, size - 16, True), (at + size - 16, 32, True)]
    with pytest.raises(ValueError, match="parameter"):
        net.plan(core)
