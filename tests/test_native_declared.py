"""Declared nets of the compiled core: the plans of the same torch layers, no torch needed to train them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout
from fieldfare.work.dense import DenseNet, linear, mlp, relu, sigmoid, tanh
from fieldfare.work.native import kinds
from fieldfare.work.native.declared import dense_plan
from fieldfare.work.native.kinds import (
    avg_pool2d,
    batch_norm,
    concat,
    conv2d,
    dropout,
    elu,
    embedding,
    flatten,
    gate,
    gelu,
    group_norm,
    gru,
    hardsigmoid,
    hardswish,
    last,
    layer_norm,
    leaky_relu,
    lstm,
    max_pool2d,
    mean,
    relu6,
    residual,
    silu,
    softplus,
)  # fmt: skip
from fieldfare.work.native.modules import core
from fieldfare.work.native.nets import net
from fieldfare.work.native.plan import NativePlan, Refusal
from fieldfare.work.net import Drift, Training
from fieldfare.work.plan import make_plan


def pictures() -> Any:
    return net(
        conv2d(3, 8, 3, padding=1), group_norm(2, 8), relu(), max_pool2d(2), conv2d(8, 6, (3, 1), 2, (1, 0), 2, False),
        batch_norm(6), silu(), avg_pool2d(2, 1), dropout(0.2), flatten(), linear(6, 10), leaky_relu(0.2), linear(10, 4),
        input=(3, 8, 8), transform="unit",
    )  # fmt: skip


def symbols() -> Any:
    return net(
        embedding(11, 6), lstm(6, 5, 2), dropout(0.3), gru(5, 7, bias=False), layer_norm(7), linear(7, 11), input=(9,)
    )


def blocks() -> Any:
    inner = conv2d(4, 8, 3, 2, 1, bias=False), group_norm(4, 8), relu(), conv2d(8, 8, 3, padding=1, bias=False)
    return net(
        conv2d(1, 4, 3, padding=1), relu(), residual(*inner, shortcut=(conv2d(4, 8, 1, 2, bias=False),)), relu(),
        residual(conv2d(8, 8, 1), gelu()), mean(), linear(8, 3), input=(1, 6, 6),
    )  # fmt: skip


def steps() -> Any:
    return net(lstm(5, 6), last(), tanh(), linear(6, 2), input=(7, 5), loss="mse")


def phone() -> Any:
    """An inverted residual with squeeze-and-excitation, and branches side by side."""
    squeeze = gate(mean(), linear(12, 3), relu(), linear(3, 12), hardsigmoid())
    wide = conv2d(4, 12, 1, bias=False), group_norm(4, 12), hardswish(), conv2d(12, 12, 3, 1, 1, 12), relu6(), squeeze
    return net(
        conv2d(3, 4, 3, 2, 1), residual(*wide, conv2d(12, 4, 1)),
        concat((), (conv2d(4, 7, 1), elu(0.5)), conv2d(4, 2, 1)),
        mean(), concat(linear(13, 5), softplus(2.0)), linear(18, 3), input=(3, 8, 8),
    )  # fmt: skip


def gated_steps() -> Any:
    return net(gate(mean(), linear(5, 5), sigmoid()), concat((), lstm(5, 6)), last(), linear(11, 3), input=(7, 5))


def twins() -> list[tuple[Any, Any, dict[str, Any]]]:
    """Declared nets, the torch modules they are, and rows of data."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    r = np.random.default_rng(0)

    class Sum(nn.Module):
        def __init__(self, layers: Any, shortcut: Any) -> None:
            super().__init__()
            self.layers, self.shortcut = layers, shortcut

        def forward(self, x: Any) -> Any:
            return self.layers(x) + self.shortcut(x)

    class Out(nn.Module):
        def __init__(self, part: Any, last: bool = False) -> None:
            super().__init__()
            self.part, self.last = part, last

        def forward(self, x: Any) -> Any:
            return self.part(x)[0][:, -1] if self.last else self.part(x)[0]

    C, S, L = nn.Conv2d, nn.Sequential, nn.Linear
    first = S(
        C(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2),
        C(8, 6, (3, 1), 2, (1, 0), groups=2, bias=False), nn.BatchNorm2d(6, track_running_stats=False), nn.SiLU(),
        nn.AvgPool2d(2, 1), nn.Dropout(0.2), nn.Flatten(), L(6, 10), nn.LeakyReLU(0.2), L(10, 4),
    )  # fmt: skip
    text = S(
        nn.Embedding(11, 6), Out(nn.LSTM(6, 5, 2, batch_first=True)), nn.Dropout(0.3),
        Out(nn.GRU(5, 7, bias=False, batch_first=True)), nn.LayerNorm(7), L(7, 11),
    )  # fmt: skip
    inner = S(C(4, 8, 3, 2, 1, bias=False), nn.GroupNorm(4, 8), nn.ReLU(), C(8, 8, 3, padding=1, bias=False))
    third = S(
        C(1, 4, 3, padding=1), nn.ReLU(), Sum(inner, S(C(4, 8, 1, 2, bias=False))), nn.ReLU(),
        Sum(S(C(8, 8, 1), nn.GELU()), nn.Identity()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(8, 3),
    )  # fmt: skip

    class Squeeze(nn.Module):
        def __init__(self, *layers: Any) -> None:
            super().__init__()
            self.layers = S(*layers)

        def forward(self, x: Any) -> Any:
            if x.dim() == 4:
                return x * self.layers(x.mean((2, 3)))[:, :, None, None]
            return x * self.layers(x.mean(1))[:, None]

    class Last(nn.Module):
        def forward(self, x: Any) -> Any:
            return x[:, -1]

    class Join(nn.Module):
        def __init__(self, *branches: Any, dim: int = 1) -> None:
            super().__init__()
            self.branches, self.dim = nn.ModuleList(branches), dim

        def forward(self, x: Any) -> Any:
            return torch.cat([one(x) for one in self.branches], self.dim)

    wide = S(
        C(4, 12, 1, bias=False), nn.GroupNorm(4, 12), nn.Hardswish(), C(12, 12, 3, 1, 1, groups=12), nn.ReLU6(),
        Squeeze(L(12, 3), nn.ReLU(), L(3, 12), nn.Hardsigmoid()), C(12, 4, 1),
    )  # fmt: skip
    fifth = S(
        C(3, 4, 3, 2, 1), Sum(wide, nn.Identity()), Join(nn.Identity(), S(C(4, 7, 1), nn.ELU(0.5)), C(4, 2, 1)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), Join(L(13, 5), nn.Softplus(2.0)), L(18, 3),
    )  # fmt: skip
    sixth = S(
        Squeeze(L(5, 5), nn.Sigmoid()),
        Join(nn.Identity(), Out(nn.LSTM(5, 6, batch_first=True)), dim=2),
        Last(),
        L(11, 3),
    )
    fourth = S(Out(nn.LSTM(5, 6, batch_first=True), True), nn.Tanh(), L(6, 2))
    bytes_ = r.integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    tokens = r.integers(0, 11, (4, 9))
    return [
        (pictures(), first, {"x": bytes_, "y": np.arange(4)}),
        (symbols(), text, {"x": tokens, "y": tokens}),
        (blocks(), third, {"x": r.standard_normal((4, 1, 6, 6)).astype(np.float32), "y": np.arange(4) % 3}),
        (phone(), fifth, {"x": r.standard_normal((4, 3, 8, 8)).astype(np.float32), "y": np.arange(4) % 3}),
        (gated_steps(), sixth, {"x": r.standard_normal((4, 7, 5)).astype(np.float32), "y": np.arange(4) % 3}),
        (steps(), fourth, {"x": r.standard_normal((4, 7, 5)).astype(np.float32), "y": np.zeros((4, 2), np.float32)}),
    ]


def test_the_plan_of_a_declared_net_is_that_of_the_torch_layers():
    from fieldfare.work.native.lower import plan_of
    from fieldfare.work.torch_net import torch_net

    for declared, module, columns in twins():
        other = plan_of(torch_net(module, declared.loss, transform=declared.transform, example=columns))
        assert isinstance(other, NativePlan), str(other)
        assert declared.plan.describe() == other.describe()
        assert declared.plan.key() == other.key()


def test_parameters_are_named_and_begin_as_torch_has_them():
    torch = pytest.importorskip("torch")
    from fieldfare.work.torch_resident import layout_of, vector_of

    for declared, module, _ in twins():
        layout = layout_of(module)
        assert declared.layout.shapes == layout.shapes
        ours, theirs = declared.init(1).vector, vector_of(module)
        for (name, at, _), other in zip(declared.layout.items(), layout.names, strict=True):
            assert name.rpartition(".")[2] == other.rpartition(".")[2]
            a, b = np.abs(ours[at]), np.abs(theirs[at])
            if b.min() == b.max():
                assert np.array_equal(ours[at], theirs[at])
            elif len(b) >= 64:
                assert 0.7 < a.std() / b.std() < 1.4
    assert torch.is_tensor(torch.zeros(1))


def test_dense_layers_begin_as_those_of_mlp_do():
    declared = net(linear(6, 5), relu(), linear(5, 3), input=(6,))
    assert declared.layout == mlp(6, 5, 3).layout
    assert np.array_equal(declared.init(3).vector, mlp(6, 5, 3).init(3).vector)
    assert declared.flops() == mlp(6, 5, 3).flops()
    made = dense_plan(mlp(6, 5, 3))
    assert isinstance(made, NativePlan)
    assert made.key() == declared.plan.key()


def test_a_dense_net_has_the_plan_of_its_layers():
    made = dense_plan(
        DenseNet((flatten(), linear(6, 5, False), sigmoid(), linear(5, 3)), "squared_error", scales=(0.5, 2.0))
    )
    assert isinstance(made, NativePlan)
    assert made.describe() == [
        "input 6 (numbers)",
        "linear 6->5 times 0.5",
        "sigmoid",
        "linear 5->3 times 2",
        "loss mse",
    ]
    refused = dense_plan(DenseNet((linear(6, 3),), bits=8))
    assert isinstance(refused, Refusal)
    assert str(refused) == "training at rounded weights has no native form"


def cohort(declared: Any, columns: dict[str, Any]) -> tuple[Any, ...]:
    rows = np.arange(len(columns["y"]))
    block = Block(columns, np.tile(rows, 3), np.array([0, 4, 8, 12]))
    keys = rng.keys(0, ("test",), np.arange(3))
    training = Training(lr=0.1, batch_size=3, epochs=2)
    return declared.init(0).vector[None], np.zeros(3, np.int64), block, make_plan(block, keys, training), keys, training


def test_declared_nets_train_on_the_core_and_get_better():
    if core() is None:
        pytest.skip("the compiled core is not here")
    r = np.random.default_rng(0)
    for declared, columns in (
        (steps(), {"x": r.standard_normal((4, 7, 5)).astype(np.float32), "y": np.ones((4, 2), np.float32)}),
        (blocks(), {"x": r.standard_normal((4, 36)).astype(np.float32), "y": np.arange(4) % 3}),
    ):
        start, row, block, plan, keys, training = cohort(declared, columns)
        fit = declared.fit(start, row, block, plan, keys, training, 0.1, Drift())
        before, after = declared.evaluate(start, row, block), declared.evaluate(fit.params, np.arange(3), block)
        assert (after["loss"] < before["loss"]).all()


def test_without_the_core_a_declared_net_is_described_and_refuses_to_train(monkeypatch: pytest.MonkeyPatch):
    from fieldfare.work.native import nets

    monkeypatch.setattr(nets, "core", lambda: None)
    monkeypatch.setattr(nets, "why_not", lambda: "it was not built")
    declared = steps()
    assert declared.describe()["layers"][1] == "lstm 5->6"
    columns = {"x": np.zeros((4, 7, 5), np.float32), "y": np.zeros((4, 2), np.float32)}
    start, row, block, plan, keys, training = cohort(declared, columns)
    with pytest.raises(UsageError, match=r"trains on the compiled core alone \(it was not built\)") as told:
        declared.fit(start, row, block, plan, keys, training, 0.1, Drift())
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("layers", "shape", "said"),
    [
        ((conv2d(3, 4, 3), linear(4, 5)), (3, 8, 8), "layer '1' .linear. has a weight of shape"),
        ((embedding(4, 8), conv2d(3, 8, 3)), (8,), "layer '1' .conv2d. takes pictures of at least"),
        ((conv2d(1, 4, 9), flatten(), linear(4, 2)), (1, 8, 8), "takes pictures of at least"),
        ((conv2d(2, 4, 3), flatten(), linear(144, 2)), (1, 8, 8), "has a weight for 2 channels, not 1"),
        ((lstm(4, 8), last(), linear(8, 2)), (7, 5), "takes a sequence of 4 numbers a step"),
        ((linear(5, 4), last(), linear(4, 2)), (5,), "takes a sequence, not"),
        ((group_norm(2, 4), flatten(), linear(128, 2)), (2, 8, 8), "is for 4 channels, not for"),
        ((residual(linear(5, 4)), linear(4, 2)), (5,), "broadcasts"),
        ((gate(linear(5, 4)), linear(4, 2)), (5,), "layer '0' .gate. broadcasts"),
        ((concat((), last()), linear(4, 2)), (7, 5), "layer '0' .concat. joins .7, 5. and .5,."),
        ((concat((), conv2d(1, 1, 3)), flatten()), (1, 8, 8), "joins .2, 1, 8, 8. and others"),
        ((linear(5, 4),), (), "give layers and the shape of an example"),
    ],
)
def test_layers_that_do_not_fit_are_refused_when_they_are_declared(layers: Any, shape: Any, said: str):
    with pytest.raises(UsageError, match=said):
        net(*layers, input=shape)


def test_settings_of_layers_and_data_that_do_not_fit_are_refused():
    for wrong in (
        lambda: conv2d(3, 4, 3, groups=2), lambda: max_pool2d(2, padding=2), lambda: dropout(1.0), lambda: residual(),
        lambda: gate(), lambda: concat(relu()), lambda: softplus(0.0),
        lambda: group_norm(3, 4), lambda: lstm(0, 3), lambda: embedding(0, 3), lambda: conv2d(1, 1, 0),
        lambda: net(linear(3, 2), input=(3,), loss="hinge"), lambda: net(linear(3, 2), input=(3,), transform="half"),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            wrong()
    with pytest.raises(UsageError, match="no sub-models"):
        steps().of(Layout.of({"w": (2,)}))
    if core() is None:
        return
    wide = Block({"x": np.zeros((4, 8), np.float32), "y": np.zeros((4, 2), np.float32)}, np.arange(4), np.array([0, 4]))
    with pytest.raises(UsageError, match="was declared"):
        steps().evaluate(steps().init(0).vector[None], np.zeros(1, np.int64), wide)


def test_every_layer_that_is_offered_is_a_function_of_the_module():
    assert all(callable(getattr(kinds, name)) for name in kinds.__all__)


def test_a_job_trains_a_declared_net_and_its_copies():
    import pickle

    import fieldfare as ff

    if core() is None:
        pytest.skip("the compiled core is not here")
    model = net(
        conv2d(1, 8, 3, padding=1), relu(), max_pool2d(2), flatten(), linear(128, 10), input=(1, 8, 8)
    )  # fmt: skip
    data = ff.data.digits(clients=20, partition=ff.iid())
    jobs = [
        ff.Job(
            model=one, data=data, algorithm=ff.FedAvg(rounds=3, cohort=5), training=ff.Training(lr=0.2, batch_size=10)
        )
        for one in (model, pickle.loads(pickle.dumps(model)))
    ]
    first, second = (one.run(runs=None, progress=False) for one in jobs)
    assert first.final == second.final
    assert first.final["loss"] < 2.1
