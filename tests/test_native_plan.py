"""Plans of the native core: every module that is lowered is computed as torch computes it."""

from __future__ import annotations

from typing import Any

import native_reference as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_models import (
    LOWERED,
    NAMES,
    SIMPLE,
    C,
    F,
    L,
    Seq,
    any_net,
    labels,
    net_of,
    nn,
    numbers,
    on_core,
    planned,
    symbols,
    torch,
)

from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.work.native.fit import Native
from fieldfare.work.native.lower import plan_of
from fieldfare.work.native.modules import core
from fieldfare.work.native.plan import padded
from fieldfare.work.net import Drift, Training
from fieldfare.work.plan import make_plan
from fieldfare.work.torch_net import torch_net


@pytest.mark.parametrize("name", [*SIMPLE, *NAMES, *LOWERED])
def test_a_plan_has_the_output_the_loss_and_the_gradient_of_its_module(name: str):
    net, columns = any_net(name)
    # constants are float32 in a plan: 1/0.25 is exact, others are compared as closely as that allows
    reference.agree(net, planned(net), columns)


@pytest.mark.parametrize("name", [*SIMPLE, *NAMES, *LOWERED])
def test_the_core_computes_a_plan_as_the_reference_does(name: str):
    if core() is None:
        pytest.skip("the compiled core is not here")
    net, columns = any_net(name)
    plan = planned(net)
    on_core(net, plan, columns)


# with a larger eps, as Adam divides by the gradient's size, and rounding is all there is of one that should be 0
WAYS = (
    Training(lr=0.05, batch_size=3, epochs=2),
    Training(lr=0.05, batch_size=2, steps=5, momentum=0.9, weight_decay=0.01),
    Training(lr=0.01, batch_size=4, epochs=2, optimizer="adam", clip_norm=0.5, eps=0.01),
)


@pytest.mark.parametrize("name", [*SIMPLE, *NAMES, *LOWERED])
def test_training_on_the_core_ends_where_autograd_ends(name: str):
    if core() is None:
        pytest.skip("the compiled core is not here")
    net, columns = any_net(name)
    native = Native(planned(net), net.x, net.y, 1.0)
    if native.plan.chance:
        pytest.skip("the core draws dropout from its own stream")
    n = len(columns["y"])
    training = WAYS[len(name) % len(WAYS)]
    block = Block(columns, np.r_[np.arange(n), np.arange(n)[::-1], np.arange(n)], np.arange(4) * n)
    keys = rng.keys(0, ("test",), np.arange(3))
    plan = make_plan(block, keys, training)
    start, row = net.init(0).vector[None], np.zeros(3, np.int64)
    drift = Drift(mu=0.1, mask=np.arange(net.layout.size) % 5 > 0) if len(name) % 2 else Drift()
    mine = native.fit(start, row, block, plan, keys, training, training.lr, drift)
    graph = torch_net(net._module, net._loss, x=net.x, y=net.y, path="graph", example=columns)
    other = graph.fit(start, row, block, plan, keys, training, training.lr, drift)
    assert np.abs(mine.params - other.params).max() <= 5e-5
    assert np.allclose(mine.loss, other.loss, rtol=1e-4, atol=1e-4)
    if drift.mask is not None:
        assert np.array_equal(mine.params[:, ~drift.mask], np.repeat(start[:, ~drift.mask], 3, 0))


@pytest.mark.parametrize(
    ("loss", "outputs"), [("mse", 1), ("mse", 3), ("l1", 3), ("bce", 1), ("bce", 4), ("masked_cross_entropy", 3)]
)
def test_every_loss_of_the_core_is_the_torch_nets(loss: str, outputs: int):
    module = nn.Sequential(L(6, 5), nn.Tanh(), L(5, outputs))
    x = numbers(6)
    columns = {"x": x, "y": labels(module, x, "cross_entropy" if "cross" in loss else loss)}
    net = torch_net(module, loss, example=columns)
    plan = planned(net)
    assert plan.loss == loss
    reference.agree(net, plan, columns)
    on_core(net, plan, columns)
    if outputs == 1:
        columns["y"] = columns["y"][:, 0]
        net = torch_net(module, loss, example=columns)
        reference.agree(net, planned(net), columns)


@pytest.mark.parametrize("loss", [nn.MSELoss(), F.mse_loss, nn.L1Loss(), nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()])
def test_losses_spelled_as_torch_has_them_are_known(loss: Any):
    module = L(6, 3)
    columns = {"x": numbers(6), "y": labels(module, numbers(6), "bce")}
    if type(loss) is nn.CrossEntropyLoss:
        columns["y"] = np.arange(4) % 3
    net = torch_net(module, loss, example=columns)
    plan = planned(net)
    vector = net.init(0).vector
    x, y = torch.from_numpy(columns["x"]), torch.from_numpy(columns["y"])
    with torch.no_grad():
        wanted = float(loss(net.module(vector)(x), y))
    assert abs(reference.gradient(plan, vector, [columns["x"]], columns["y"])[1] - wanted) < 1e-6


@pytest.mark.parametrize("loss", [F.nll_loss, nn.NLLLoss(), "cross_entropy", "masked_cross_entropy"])
def test_a_log_softmax_at_the_end_is_part_of_the_loss(loss: Any):
    for end in (lambda h: F.log_softmax(h, 1), lambda h: h.log_softmax(-1), nn.LogSoftmax(1)):
        module = Seq(lambda s, x, end=end: end(s.a(x)), a=L(6, 3))
        columns = {"x": numbers(6), "y": np.arange(4) % 3}
        net = torch_net(module, loss, example=columns)
        plan = planned(net)
        assert plan.describe()[1:] == ["linear 6->3", f"loss {loss if isinstance(loss, str) else 'cross_entropy'}"]
        vector = net.init(0).vector.astype(np.float64)
        same = net.module(vector.astype(np.float32)).double()
        value = net._loss(same(torch.from_numpy(columns["x"]).double()), torch.from_numpy(columns["y"]))
        value.backward()
        _, found, slope = reference.gradient(plan, vector, [columns["x"]], columns["y"])
        wanted = torch.cat([p.grad.reshape(-1) for p in same.parameters()]).numpy()
        assert abs(found - float(value.detach())) < 1e-9
        assert np.abs(slope - wanted).max() < 1e-9
    refused = plan_of(torch_net(L(6, 3), F.nll_loss, example={"x": numbers(6), "y": np.arange(4) % 3}))
    assert str(refused).startswith("logarithms of a softmax have a native form")


def test_bytes_are_read_as_units_or_as_symbols():
    r = np.random.default_rng(0)
    columns = {"x": r.integers(0, 256, (4, 3, 6, 6), dtype=np.uint8), "y": np.arange(4) % 3}
    net = torch_net(nn.Sequential(C(3, 4, 3), nn.Flatten(), L(64, 3)), transform="unit", example=columns)
    plan = planned(net)
    assert (plan.inputs[0].kind, plan.inputs[0].channels_first) == (1, True)
    reference.agree(net, plan, columns)
    on_core(net, plan, columns)
    columns = {"x": r.integers(0, 11, (4, 6), dtype=np.uint8), "y": r.integers(0, 11, (4, 6))}
    net = torch_net(nn.Sequential(nn.Embedding(11, 5), L(5, 11)), transform="tokens", example=columns)
    plan = planned(net)
    assert plan.inputs[0].kind == 2
    reference.agree(net, plan, columns)
    on_core(net, plan, columns)


def test_whole_numbers_made_float_are_numbers():
    columns = {"x": np.arange(24).reshape(4, 6) % 5, "y": np.arange(4) % 3}
    net = torch_net(Seq(lambda s, x: s.a(x.float()), a=L(6, 3)), example=columns)
    plan = planned(net)
    assert plan.inputs[0].kind == 0
    vector = net.init(0).vector
    out = reference.gradient(plan, vector, [columns["x"]], columns["y"])[0]
    with torch.no_grad():
        assert np.allclose(out.reshape(4, 3), net.module(vector)(torch.from_numpy(columns["x"])).numpy(), atol=1e-5)


def test_several_columns_are_several_inputs():
    module = Seq(lambda s, a, b: s.o(s.a(a) + s.e(b).mean(1)), a=L(6, 5), e=nn.Embedding(11, 5), o=L(5, 3))
    columns = {"a": numbers(6), "b": symbols(7), "y": np.arange(4) % 3}
    net = torch_net(module, x=("a", "b"), example=columns)
    plan = planned(net)
    assert [i.kind for i in plan.inputs] == [0, 2]
    reference.agree(net, plan, columns)
    on_core(net, plan, columns)


def test_relu_is_part_of_the_op_before_it_and_goes_behind_a_max_pool():
    net, _ = any_net("W3")
    assert planned(net).describe() == [
        "input 10x10x1 (numbers)", "conv2d 3x3 1->32 relu", "conv2d 3x3 32->64", "max_pool 2x2 relu",
        "linear 576->128 relu", "linear 128->62", "loss cross_entropy",
    ]  # fmt: skip
    net, _ = any_net("relu read twice")
    lines = planned(net).describe()
    assert lines[1] == "conv2d 3x3 2->4"
    assert "max_pool 3x3 relu" in lines


def test_a_plan_of_sub_models_is_that_of_the_smaller_module():
    from fieldfare.core.params import Layout

    columns = {"x": numbers(6), "y": np.arange(4) % 3}
    net = torch_net(nn.Sequential(L(6, 8), nn.ReLU(), L(8, 3)), example=columns)
    small = net.of(Layout.of({"0.weight": (4, 6), "0.bias": (4,), "2.weight": (3, 4), "2.bias": (3,)}))
    plan = planned(small)
    assert plan.describe()[1:3] == ["linear 6->4 relu", "linear 4->3"]
    assert plan.vector_size == small.layout.size
    reference.agree(small, plan, columns)


def test_the_key_tells_plans_apart_and_is_the_same_for_the_same_module():
    one, other = planned(any_net("W2")[0]), planned(any_net("W2")[0])
    assert one.key() == other.key() != planned(any_net("W3")[0]).key()


def test_packing_and_back_keeps_the_vector():
    for name in ("W3", "W4", "frozen", "depthwise"):
        plan = planned(any_net(name)[0])
        vector = np.arange(plan.vector_size, dtype=np.float64) + 1
        assert np.array_equal(plan.unpack(plan.pack(vector)), vector)


BENDS = (
    nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.ELU,
    nn.Softplus,
)  # fmt: skip


@st.composite
def pictures(draw: Any) -> tuple[Any, tuple[int, ...]]:
    """A random chain of layers over pictures, and the shape it takes."""
    c, h, w = draw(st.integers(1, 5)), draw(st.integers(3, 9)), draw(st.integers(3, 9))
    first, layers = (c, h, w), list[Any]()
    for _ in range(draw(st.integers(1, 4))):
        match draw(st.sampled_from(("conv", "max", "mean", "bend", "group", "layer", "batch", "drop"))):
            case "conv":
                kh, kw = draw(st.integers(1, min(3, h))), draw(st.integers(1, min(3, w)))
                s, p, groups = draw(st.integers(1, 2)), draw(st.integers(0, 1)), draw(st.sampled_from((1, c)))
                out = groups * draw(st.integers(1, 20 // groups)) if groups <= 20 else groups
                layers.append(C(c, out, (kh, kw), s, p, groups=groups, bias=draw(st.booleans())))
                c, h, w = out, (h + 2 * p - kh) // s + 1, (w + 2 * p - kw) // s + 1
            case "max" | "mean" as kind if min(h, w) >= 2:
                p = draw(st.integers(0, 1))
                layers.append(nn.MaxPool2d(2, 2, p) if kind == "max" else nn.AvgPool2d(2, 2, p))
                h, w = (h + 2 * p - 2) // 2 + 1, (w + 2 * p - 2) // 2 + 1
            case "bend":
                layers.append(draw(st.sampled_from(BENDS))())
            case "group":
                layers.append(nn.GroupNorm(draw(st.sampled_from([n for n in range(1, c + 1) if c % n == 0])), c, 1e-2))
            case "layer":
                layers.append(nn.LayerNorm((c, h, w), 1e-2))
            case "batch":
                layers.append(nn.BatchNorm2d(c, 1e-2, track_running_stats=False))
            case "drop":
                layers.append(nn.Dropout(0.3))
            case _:
                pass
    end = draw(st.sampled_from(("flat", "mean", "two")))
    if end == "mean":
        layers.append(nn.AdaptiveAvgPool2d(1))
        h = w = 1
    layers += [nn.Flatten(), L(c * h * w, 4)]
    if end == "two":
        layers += [nn.ReLU(), L(4, 3)]
    return nn.Sequential(*layers), first


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(pictures())
def test_random_chains_over_pictures_are_lowered_exactly(drawn: tuple[Any, tuple[int, ...]]):
    module, shape = drawn
    net, columns = net_of(module, numbers(*shape))
    plan = planned(net)
    reference.agree(net, plan, columns, 1e-8)
    on_core(net, plan, columns)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.integers(1, 5), st.sampled_from(("lstm", "gru")),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_random_recurrent_nets_are_lowered_exactly(
    width: int, hidden: int, layers: int, time: int, kind: str, bias: bool, last: bool
):
    of = nn.LSTM if kind == "lstm" else nn.GRU
    module = Seq(
        lambda s, x: s.o(s.r(s.e(x))[0][:, -1] if last else s.r(s.e(x))[0]),
        e=nn.Embedding(11, width), r=of(width, hidden, layers, batch_first=True, bias=bias), o=L(hidden, 3),
    )  # fmt: skip
    net, columns = net_of(module, symbols(time))
    plan = planned(net)
    reference.agree(net, plan, columns)
    on_core(net, plan, columns)
    assert sum(op.kind == kind for op in plan.ops) == layers
    assert all(v.tokens or v.ld == padded(v.c) for v in plan.values)
