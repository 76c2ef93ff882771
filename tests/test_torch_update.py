"""Client optimisers, drift, losses and refusals of torch nets, each against torch's own or the formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from torch_cases import SIZES, case, module
from torch_cases import by_hand as loop

from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.work.net import Drift, Training
from fieldfare.work.torch_net import torch_net

torch = pytest.importorskip("torch")
nn = torch.nn

SETTINGS: dict[str, tuple[dict[str, Any], Callable[..., Any]]] = {
    "momentum": ({"momentum": 0.9}, partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
    "nesterov": (
        {"momentum": 0.9, "nesterov": True},
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "weight decay": ({"weight_decay": 0.05}, partial(torch.optim.SGD, lr=0.1, weight_decay=0.05)),
    "adam": ({"optimizer": "adam"}, partial(torch.optim.Adam, lr=0.1)),
    "adam with decay": (
        {"optimizer": "adam", "weight_decay": 0.05, "betas": (0.8, 0.95), "eps": 1e-6},
        partial(torch.optim.Adam, lr=0.1, weight_decay=0.05, betas=(0.8, 0.95), eps=1e-6),
    ),
    "clipped": ({"clip_norm": 0.3}, partial(torch.optim.SGD, lr=0.1)),
}


@pytest.mark.parametrize("kind", ["mlp", "group_norm", "tied"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_an_optimiser_equals_that_of_torch(setting: str, kind: str) -> None:
    options, optimizer = SETTINGS[setting]
    one, mod = case(kind, Training(lr=0.1, batch_size=6, epochs=2, **options)), module(kind)
    for net in (torch_net(mod), torch_net(mod, path="graph")):
        fit = one.fit(net, net.init(0).vector[None])
        for i in range(len(SIZES)):
            vector, loss = loop(mod, one, i, optimizer)
            np.testing.assert_allclose(fit.params[i], vector, atol=2e-5)
            assert fit.loss[i] == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "lstm"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_with_any_optimiser_a_client_gets_the_same_bits_alone(setting: str, kind: str) -> None:
    one, net = case(kind, Training(lr=0.1, batch_size=6, epochs=2, **SETTINGS[setting][0])), torch_net(module(kind))
    start = net.init(0).vector[None]
    whole = one.fit(net, start).params
    np.testing.assert_array_equal(one.part(2, 5).fit(net, start).params, whole[2:])
    np.testing.assert_array_equal(one.part(4, 5).fit(net, start).params, whole[4:])


@pytest.mark.parametrize("kind", ["linear", "group_norm", "tied"])
def test_drift_is_the_gradient_of_the_loss_terms_it_stands_for(kind: str) -> None:
    one, mod = case(kind), module(kind)
    a = np.random.default_rng(0).standard_normal((5, sum(p.numel() for p in mod.parameters()))).astype(np.float32)
    for net in (torch_net(mod), torch_net(mod, path="graph")):
        start = net.init(0).vector[None]
        fit = one.fit(net, start, Drift(a=a, mu=0.7))
        for i in range(len(SIZES)):

            def term(params: Any, before: Any, i: int = i) -> Any:
                flat = torch.cat([p.reshape(-1) for p in params])
                old = torch.cat([p.reshape(-1) for p in before])
                return torch.dot(flat, torch.from_numpy(a[i])) + 0.35 * (flat - old).square().sum()

            vector, _ = loop(mod, one, i, partial(torch.optim.SGD, lr=0.1), extra=term)
            np.testing.assert_allclose(fit.params[i], vector, atol=1e-5)


def test_drift_pulls_to_the_reference_of_each_client() -> None:
    one, net = case("cnn", Training(lr=0.02, batch_size=6, epochs=9)), torch_net(module("cnn"))
    start = np.stack([net.init(0).vector, net.init(0).vector])
    ref = np.stack([start[0] + 0.1, start[0] - 0.1])
    row = np.array([0, 1, 0, 1, 0])
    end = one.fit(net, start, Drift(mu=5.0, ref=ref), row).params
    assert (end[0] - start[0]).mean() > 0.05
    assert (end[1] - start[0]).mean() < -0.05


def test_an_idle_drift_and_an_idle_mask_change_no_more_than_rounding() -> None:
    one, net = case("cnn"), torch_net(module("cnn"))
    start = net.init(0).vector[None]
    plain = one.fit(net, start).params
    np.testing.assert_array_equal(one.fit(net, start, Drift(mu=0.0)).params, plain)
    everything = Drift(mask=np.ones(start.shape[1], np.bool_))
    np.testing.assert_allclose(one.fit(net, start, everything).params, plain, atol=1e-6)


@pytest.mark.parametrize("loss", ["mse", "l1", "bce", "own"])
def test_other_losses_train_as_a_loop_would(loss: str) -> None:
    torch.manual_seed(0)
    mod, one = nn.Sequential(nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 1)), case("mlp")
    y = (one.data.columns["y"] > 2).astype(np.float64 if loss == "mse" else np.int64)
    one = replace(one, data=replace(one.data, columns={"x": one.data.columns["x"], "y": y}))

    def own(output: Any, target: Any) -> Any:
        return (output[:, 0] - target).square().mean()

    def same(output: Any, target: Any) -> Any:
        output, target = output[:, 0], target.float()
        if loss == "bce":
            return nn.functional.binary_cross_entropy_with_logits(output, target)
        return nn.functional.l1_loss(output, target) if loss == "l1" else nn.functional.mse_loss(output, target)

    net = torch_net(mod, loss=own if loss == "own" else loss, metrics=("mae",))
    assert net.describe()["path"] == "graph"
    start = net.init(0).vector[None]
    fit = one.fit(net, start)
    for i in (0, 2, 4):
        np.testing.assert_allclose(
            fit.params[i], loop(mod, one, i, partial(torch.optim.SGD, lr=0.1), same)[0], atol=1e-6
        )
    found = net.evaluate(start, np.zeros(5, np.int64), one.data)
    data = one.data.client(2)
    with torch.no_grad():
        output, target = mod(torch.from_numpy(data["x"])), torch.from_numpy(data["y"])
    assert found["loss"][2] == pytest.approx(float(same(output, target)), abs=1e-6)
    assert found["mae"][2] == pytest.approx(float((output[:, 0] - target).abs().mean()), abs=1e-6)


def test_cross_entropy_is_recognised_however_it_is_spelled() -> None:
    for loss in ("cross_entropy", nn.functional.cross_entropy, nn.CrossEntropyLoss(), None):
        assert torch_net(module("mlp"), loss=loss).describe()["path"] == "stacked"
    smooth = torch_net(module("mlp"), loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    assert smooth.describe()["path"] == "graph"
    assert smooth.loss == "CrossEntropyLoss"


def test_targets_of_minus_100_are_left_out_of_a_sequence() -> None:
    one, net = case("lstm"), torch_net(module("lstm"))
    y = one.data.columns["y"].copy()
    y[:, 3:] = -100
    padded = Block({"x": one.data.columns["x"], "y": y}, one.data.rows, one.data.offsets)
    short = Block({n: c[:, :3] for n, c in one.data.columns.items()}, one.data.rows, one.data.offsets)
    start, row = net.init(0).vector[None], np.zeros(5, np.int64)
    a, b = net.evaluate(start, row, padded), net.evaluate(start, row, short)
    np.testing.assert_allclose(a["loss"], b["loss"], atol=1e-6)
    np.testing.assert_allclose(a["accuracy"], b["accuracy"], atol=1e-12)


def test_pictures_as_bytes_need_a_word_on_what_they_mean() -> None:
    one, mod = case("cnn"), module("cnn")
    pictures = np.random.default_rng(0).integers(0, 256, one.data.columns["x"].shape, dtype=np.uint8)
    data = replace(one.data, columns={"x": pictures, "y": one.data.columns["y"]})
    with pytest.raises(UsageError, match="transform='unit'"):
        replace(one, data=data).fit(torch_net(mod), torch_net(mod).init(0).vector[None])
    floats = replace(one.data, columns={"x": pictures / np.float32(255), "y": one.data.columns["y"]})
    start = torch_net(mod).init(0).vector[None]
    expected = replace(one, data=floats).fit(torch_net(mod), start).params
    for transform in ("unit", lambda batch: batch.float() / 255):
        got = replace(one, data=data).fit(torch_net(mod, transform=transform), start).params
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_random_transform_depends_on_the_client_key() -> None:
    one = case("mlp")
    net = torch_net(module("mlp"), transform=lambda batch: batch + torch.randn_like(batch))
    start = net.init(0).vector[None]
    whole = one.fit(net, start).params
    np.testing.assert_array_equal(one.part(4, 5).fit(net, start).params[0], whole[4])


def test_several_inputs_are_several_arguments() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 5), nn.Linear(3, 5)

        def forward(self, x: Any, z: Any) -> Any:
            return self.a(x) + self.b(z)

    one = case("mlp")
    z = np.random.default_rng(0).standard_normal((len(one.data.rows), 3))
    one = replace(one, data=replace(one.data, columns={**one.data.columns, "z": z}))
    net = torch_net(Sum(), x=("x", "z"))
    assert one.fit(net, net.init(0).vector[None]).loss[2] > 0


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "running statistics": (lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "GroupNorm"),
    "double": (lambda: nn.Linear(3, 2).double(), r"module.float\(\)"),
    "nothing to train": (lambda: nn.Linear(3, 2).requires_grad_(False), "nothing to train"),
    "lazy": (lambda: nn.LazyLinear(2), "no shape yet"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_federated_is_refused_in_one_line(what: str) -> None:
    make, told = REFUSED[what]
    with pytest.raises(UsageError, match=told) as error:
        torch_net(make())
    assert "\n" not in str(error.value)


def test_batch_norm_without_running_statistics_is_accepted() -> None:
    mod = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU(), nn.Linear(6, 5))
    one, net = case("mlp", sizes=np.array([8, 12])), torch_net(mod)
    assert np.isfinite(one.fit(net, net.init(0).vector[None]).params).all()


def test_two_parameters_in_one_memory_are_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Parameter(self.a.weight.detach())

    with pytest.raises(UsageError, match="share memory"):
        torch_net(Shared())


@pytest.mark.parametrize(("labels", "told"), [(7, "0..4"), (-1, "0..4")])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_labels_outside_the_outputs_are_refused(kind: str, labels: int, told: str) -> None:
    one, net = case(kind), torch_net(module(kind))
    wrong = replace(one, data=replace(one.data, columns={**one.data.columns, "y": one.data.columns["y"] * 0 + labels}))
    with pytest.raises(UsageError, match=told):
        wrong.fit(net, net.init(0).vector[None])


def test_a_module_that_does_not_fit_the_data_is_told_of_the_columns() -> None:
    one, net = case("linear"), torch_net(nn.Sequential(nn.Linear(9, 5), nn.LayerNorm(5)))
    with pytest.raises(UsageError, match=r"'x' of float32 \(12,\) per example"):
        one.fit(net, net.init(0).vector[None])
    with pytest.raises(UsageError, match="no column 'z'"):
        one.fit(torch_net(module("linear"), x="z"), net.init(0).vector[None])
    text = replace(one, data=replace(one.data, columns={**one.data.columns, "y": one.data.columns["y"].astype(str)}))
    with pytest.raises(UsageError, match="needs numbers"):
        text.fit(torch_net(module("layer_norm")), torch_net(module("layer_norm")).init(0).vector[None])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"loss": "hinge"}, "loss='hinge'"),
        ({"metrics": ("auc",)}, "'auc' is unknown"),
        ({"transform": "scale"}, "transform='scale'"),
        ({"transform": "unit", "x": ("x", "z")}, "one column"),
    ],
)
def test_an_unknown_option_is_refused_with_those_there_are(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        torch_net(module("mlp"), **options)


def test_flops_are_counted_on_an_example_and_guessed_without() -> None:
    example = {"x": np.zeros((2, 1, 8, 8), np.float32), "y": np.zeros(2, np.int64)}
    net = torch_net(module("cnn"), example=example)
    first = 4 * 9 * 36
    rest = 3 * 4 * 9 * 16 + 12 * 8 + 8 * 5
    assert net.flops() == 2 * (2 * first + 3 * rest)
    bare = torch_net(module("cnn"))
    assert bare.flops() == 6 * bare.layout.size
    assert bare.with_example(example).flops() == net.flops()


def test_flops_of_a_recurrent_net_grow_with_its_length() -> None:
    def flops(length: int) -> float:
        symbols = np.zeros((1, length), np.int64)
        return torch_net(module("lstm"), example={"x": symbols, "y": symbols}).flops()

    assert flops(20) == pytest.approx(2 * flops(10), rel=0.1)
    assert flops(10) > 6 * 10 * (4 + 8 + 8 + 8) * 32
