"""Plans of the native core: every module that is lowered is computed as torch computes it, every other is refused."""

from __future__ import annotations

from typing import Any

import native_reference as reference
import numpy as np
import pytest
import torch_cases
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.core.block import Block
from fieldfare.models import resnet, vgg5
from fieldfare.work.native.fit import Native
from fieldfare.work.native.lower import plan_of
from fieldfare.work.native.modules import core
from fieldfare.work.native.plan import NativePlan, Refusal, padded
from fieldfare.work.torch_net import torch_net

torch = pytest.importorskip("torch")
import submodel_zoo_sequences  # noqa: E402, F401
from submodel_zoo import ZOO, Net  # noqa: E402

nn = torch.nn
F = nn.functional
C, L = nn.Conv2d, nn.Linear


def planned(net: Any) -> NativePlan:
    plan = plan_of(net)
    assert isinstance(plan, NativePlan), str(plan)
    return plan


def labels(module: Any, x: Any, loss: str) -> Any:
    """Targets that fit what `module` gives for `x`."""
    r = np.random.default_rng(2)
    with torch.no_grad():
        given = torch.from_numpy(x)
        out = module(given)
    shape = tuple(out.shape)
    if loss == "cross_entropy":
        at = 1 if out.dim() != 3 else 2
        return r.integers(0, shape[at], shape[:at] + shape[at + 1 :])
    if loss == "bce":
        return r.integers(0, 2, shape).astype(np.float32)
    return r.standard_normal(shape).astype(np.float32)


def net_of(module: Any, x: Any, loss: str = "cross_entropy") -> tuple[Any, dict[str, Any]]:
    columns = {"x": x, "y": labels(module, x, loss)}
    return torch_net(module, loss, example=columns), columns


def numbers(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal((4, *shape)).astype(np.float32)


def symbols(*shape: int, most: int = 11) -> Any:
    return np.random.default_rng(1).integers(0, most, (4, *shape))


class Seq(Net):
    """A module from a function, its parts, and a name of its own."""


def made(name: str) -> tuple[Any, Any]:
    """A module and its input for four examples."""
    torch.manual_seed(3)
    match name:
        case "W2":
            return nn.Sequential(L(784, 200), nn.ReLU(), L(200, 200), nn.ReLU(), L(200, 62)), numbers(784)
        case "W3":
            return nn.Sequential(
                C(1, 32, 3), nn.ReLU(), C(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), L(576, 128), nn.ReLU(),
                L(128, 62),
            ), numbers(1, 10, 10)  # fmt: skip
        case "W4":
            return torch_cases.CharLSTM(), symbols(6)
        case "vgg5 groups":
            return vgg5((3, 8, 8), norm="group", widths=(8, 16, 16, 20)), numbers(3, 8, 8)
        case "vgg5 batch":
            return vgg5((1, 8, 8), norm="batch_alone", widths=(4, 6, 6, 20), unflatten=True), numbers(64)
        case "resnet groups":
            return resnet((3, 8, 8), norm="group", blocks=1, width=8), numbers(3, 8, 8)
        case "resnet batch":
            return resnet((3, 8, 8), norm="batch_alone", blocks=1, width=4), numbers(3, 8, 8)
        case "last hidden state":
            return Seq(lambda s, x: s.o(s.r(s.e(x))[1][0][-1]), e=nn.Embedding(11, 6, padding_idx=0),
                       r=nn.LSTM(6, 5, 2, batch_first=True), o=L(5, 3)), symbols(7)  # fmt: skip
        case "gru, time first":

            def f(s: Any, x: Any) -> Any:
                out, h = s.r(x.transpose(0, 1))
                return s.o(out[-1]) + s.p(h.squeeze(0))

            return Seq(f, r=nn.GRU(6, 5, bias=False), o=L(5, 3), p=L(5, 3)), numbers(7, 6)
        case "embedding mean":
            return Seq(lambda s, x: s.o(s.e(x).mean(1)), e=nn.Embedding(11, 20), o=L(20, 3)), symbols(7)
        case "gpt-like positions":
            return Seq(lambda s, x: s.o(F.gelu(s.n(s.e(x)), approximate="tanh")), e=nn.Embedding(11, 20),
                       n=nn.LayerNorm(20), o=L(20, 11)), symbols(7)  # fmt: skip
        case "functional":

            def f(s: Any, x: Any) -> Any:
                h = F.max_pool2d(F.leaky_relu(s.a(x), 0.2), 3, 2, 1)
                h = F.avg_pool2d(torch.sigmoid(s.b(h)), 2, count_include_pad=False)
                return F.linear(torch.flatten(h, 1), s.w, s.v)

            w, v = nn.Parameter(torch.randn(3, 24)), nn.Parameter(torch.randn(3))
            return Seq(f, a=C(2, 5, 3, 2, 2), b=C(5, 6, (3, 1), padding=(1, 0), bias=False), w=w, v=v), numbers(
                2, 13, 13
            )
        case "asks for shapes":

            def f(s: Any, x: Any) -> Any:
                b, _c, h, w = x.shape
                assert x.dim() == 4
                assert len(x) == b
                return s.o(s.a(x).relu().view(b, 4 * h * w))

            return Seq(f, a=C(1, 4, 3, padding=1), o=L(100, 3)), numbers(1, 5, 5)
        case "squeeze, unsqueeze":
            return Seq(lambda s, x: s.o(s.a(x.unsqueeze(1)).mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)),
                       a=C(1, 4, 3, groups=1), o=L(4, 3)), numbers(5, 5)  # fmt: skip
        case "view of a vector":
            return Seq(lambda s, x: s.o(s.a(x.view(-1, 1, 6, 6)).tanh().reshape(len(x), -1)),
                       a=C(1, 4, 3, groups=1), o=L(64, 3)), numbers(36)  # fmt: skip
        case "channels last data":
            return Seq(lambda s, x: s.o(s.a(x.permute(0, 3, 1, 2)).flatten(1)), a=C(3, 4, 3), o=L(36, 3)), numbers(
                5, 5, 3
            )
        case "bytes-like pictures":
            return Seq(lambda s, x: s.o(s.a((x - 0.5) / 0.25).flatten(1)), a=C(3, 4, 3), o=L(36, 3)), numbers(3, 5, 5)
        case "convolution of a sequence":
            return nn.Sequential(nn.Conv1d(3, 5, 3, 2, 1), nn.GELU(), nn.AvgPool1d(2), nn.Flatten(), L(10, 3)), numbers(
                3, 9
            )
        case "depthwise":
            return nn.Sequential(C(3, 20, 1), C(20, 20, 3, 2, 1, groups=20), nn.SiLU(), nn.AdaptiveAvgPool2d(2),
                                 nn.Flatten(), L(80, 3)), numbers(3, 7, 7)  # fmt: skip
        case "gates":
            return Seq(lambda s, x: s.o(s.a(x) * s.b(x).sigmoid() + 1.5), a=L(6, 20), b=L(6, 20), o=L(20, 3)), numbers(
                6
            )
        case "scales and shifts":
            return Seq(lambda s, x: s.o(2 * (s.a(x) * s.g + s.h) - s.a(x)), a=L(6, 5), o=L(5, 3),
                       g=nn.Parameter(torch.randn(5)), h=nn.Parameter(torch.randn(5))), numbers(6)  # fmt: skip
        case "products with a matrix":
            return Seq(lambda s, x: (x @ s.a).relu() @ s.b.t() + s.h, a=nn.Parameter(torch.randn(6, 5)),
                       b=nn.Parameter(torch.randn(3, 5)), h=nn.Parameter(torch.randn(3))), numbers(6)  # fmt: skip
        case "in place":

            def f(s: Any, x: Any) -> Any:
                h = F.relu(s.a(x), inplace=True)
                k = s.b(x)
                k += h
                return s.o(k.tanh_())

            return Seq(f, a=L(6, 5), b=L(6, 5), o=L(5, 3)), numbers(6)
        case "a layer used twice":
            one = L(6, 6)
            return nn.Sequential(one, nn.ReLU(), one, nn.Tanh(), L(6, 3)), numbers(6)
        case "dead ends":

            def f(s: Any, x: Any) -> Any:
                s.b(x)
                return s.a(x)

            return Seq(f, a=L(6, 3), b=L(6, 7), c=L(2, 2)), numbers(6)
        case "frozen":
            module = nn.Sequential(L(6, 5), nn.ReLU(), L(5, 5), nn.ReLU(), L(5, 3))
            module[2].weight.requires_grad_(False)
            module[0].requires_grad_(False)
            return module, numbers(6)
        case "subclass":

            class Mine(nn.Linear):
                def forward(self, x: Any) -> Any:
                    return super().forward(x) * 0.5

            return nn.Sequential(Mine(6, 5), nn.ReLU(), L(5, 3)), numbers(6)
        case "segmentation":
            return nn.Sequential(C(2, 8, 3, padding=1), nn.ReLU(), C(8, 3, 1)), numbers(2, 5, 5)
        case "flattened norm":
            return nn.Sequential(C(2, 3, 3), nn.Flatten(), nn.LayerNorm(27), nn.ReLU(), L(27, 3)), numbers(2, 5, 5)
        case "pooled maximum":
            return nn.Sequential(C(2, 20, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), L(20, 3)), numbers(
                2, 5, 5
            )
        case "relu read twice":

            def f(s: Any, x: Any) -> Any:
                h = s.a(x)
                return s.o((F.max_pool2d(h.relu(), 3) + h.mean((2, 3), keepdim=True) * 0.5).flatten(1))

            return Seq(f, a=C(2, 4, 3), o=L(4, 3)), numbers(2, 5, 5)
    raise AssertionError(name)


NAMES = (
    "W2", "W3", "W4", "vgg5 groups", "vgg5 batch", "resnet groups", "resnet batch", "last hidden state",
    "gru, time first", "embedding mean", "gpt-like positions", "functional", "asks for shapes", "squeeze, unsqueeze",
    "view of a vector", "channels last data", "bytes-like pictures", "convolution of a sequence", "depthwise", "gates",
    "scales and shifts", "products with a matrix", "in place", "a layer used twice", "dead ends", "frozen", "subclass",
    "segmentation", "flattened norm", "pooled maximum", "relu read twice",
)  # fmt: skip
LOWERED = (
    "conv1d", "instance", "ln_several", "ln_several_noaffine", "gn_each", "grouped", "depth_mult", "convnext",
    "permute_flat", "bn_noaffine", "tied_layers", "constant_shape", "ones_mask", "bucket", "lowrank",
)  # fmt: skip


def any_net(name: str) -> tuple[Any, dict[str, Any]]:
    if name in torch_cases.KINDS:
        columns = torch_cases.columns(name, 5)
        return torch_net(torch_cases.module(name), example=columns), columns
    if name in ZOO:
        torch.manual_seed(1)
        module, x = ZOO[name]()
        return net_of(module, x.numpy())
    return net_of(*made(name))


SIMPLE = tuple(kind for kind in torch_cases.KINDS if kind != "tied")


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
    vector = net.init(0).vector
    rows = np.arange(len(columns["y"]))
    block = Block(columns, rows, np.array([0, len(rows)]))
    native = Native(plan, net.x, net.y, 1.0)
    out, value, slope = reference.gradient(plan, vector, [columns[x] for x in net.x], columns["y"], False)
    given = native.outputs(vector, block).reshape(out.shape)
    assert np.abs(given - out).max() <= 2e-5 * max(1.0, np.abs(out).max())
    if not plan.chance:
        found, mine = native.gradient(vector, block)
        assert abs(found - value) <= 2e-5 * max(1.0, abs(value))
        assert np.abs(mine - slope).max() <= 2e-5 * max(1.0, np.abs(slope).max())


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
    columns = {"x": r.integers(0, 11, (4, 6), dtype=np.uint8), "y": r.integers(0, 11, (4, 6))}
    net = torch_net(nn.Sequential(nn.Embedding(11, 5), L(5, 11)), transform="tokens", example=columns)
    plan = planned(net)
    assert plan.inputs[0].kind == 2
    reference.agree(net, plan, columns)


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


def chance(s: Any, x: Any) -> Any:
    return s.a(x) + torch.randn(3)


def own_noise(s: Any, x: Any) -> Any:
    return s.a(x + torch.randn_like(x))


def by_value(s: Any, x: Any) -> Any:
    return s.a(x) if x.sum() > 0 else s.a(-x)


def by_training(s: Any, x: Any) -> Any:
    return s.a(x) * 2 if s.training else s.a(x)


def by_size(s: Any, x: Any) -> Any:
    return s.a(x) * len(x)


def first_of_batch(s: Any, x: Any) -> Any:
    return s.a(x) + s.a(x)[0]


def stale(s: Any, x: Any) -> Any:
    h = s.a(x)
    g = h.view(-1, 3)
    h.relu_()
    return h + g


def counting(s: Any, x: Any) -> Any:
    s.n += 1
    return s.a(x)


def always_drops(s: Any, x: Any) -> Any:
    return s.a(F.dropout(x, 0.5))


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned round."""

    @staticmethod
    def forward(context: Any, x: Any) -> Any:
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, d: Any) -> Any:
        return -d


def unlearnt(s: Any, x: Any) -> Any:
    with torch.no_grad():
        h = s.b(x)
    return s.a(h)


def in_half(s: Any, x: Any) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return s.a(x).float()


def cells(s: Any, x: Any) -> Any:
    return s.a(s.r(x)[1][1][-1])


REFUSED: dict[str, tuple[Any, str]] = {
    "bilinear": (lambda: Seq(lambda s, x: s.mix(s.a(x), s.a(x)), a=L(6, 3), mix=nn.Bilinear(3, 3, 3)),
                 "nn.Bilinear 'mix' has no native form"),
    "function": (lambda: Seq(lambda s, x: torch.cat([s.a(x), s.a(x)], 1), a=L(6, 3)), "torch.cat has no native form"),
    "method": (lambda: Seq(lambda s, x: s.a(x).cumsum(1), a=L(6, 3)), "Tensor.cumsum has no native form"),
    "chance": (lambda: Seq(chance, a=L(6, 3)), "the forward of Seq draws random numbers of its own"),
    "noise": (lambda: Seq(own_noise, a=L(6, 3)), "torch.randn_like has no native form"),
    "values": (lambda: Seq(by_value, a=L(6, 3)), "the forward of Seq decides by values"),
    "training": (lambda: Seq(by_training, a=L(6, 3)), "the forward of Seq differs between training and evaluation"),
    "size": (lambda: Seq(by_size, a=L(6, 3)), "the forward of Seq depends on the size of the batch"),
    "one of many": (lambda: Seq(first_of_batch, a=L(6, 3)), "operator.getitem takes one example of the batch"),
    "stale": (lambda: Seq(stale, a=L(6, 3)), "operator.add reads what Tensor.relu_ has changed in place"),
    "dropout": (lambda: Seq(always_drops, a=L(6, 3)), "F.dropout drops in evaluation too"),
    "channels": (lambda: nn.Sequential(L(6, 3), nn.Dropout1d(0.5)), "nn.Dropout1d '1' has no native form"),
    "weights": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(L(6, 3))), "ParametrizedLinear '0'"),
    "two outputs": (lambda: Seq(lambda s, x: (s.a(x), x), a=L(6, 3)), "a module of several outputs"),
    "spread": (lambda: Seq(lambda s, x: s.a(x) * s.g, a=L(6, 3), g=nn.Parameter(torch.ones(1))),
               "operator.mul spreads one trained number over channels"),
    "backward": (lambda: Seq(lambda s, x: Reversed.apply(s.a(x)), a=L(6, 3)),
                 "Reversed.apply has a backward of its own"),
    "no gradient": (lambda: Seq(unlearnt, b=L(6, 6), a=L(6, 3)), "torch.no_grad in a forward has no native form"),
    "half": (lambda: Seq(in_half, a=L(6, 3)), "nn.Linear 'a' gives torch.bfloat16, which has no native form"),
    "logs": (lambda: Seq(lambda s, x: s.b(F.log_softmax(s.a(x), 1)), a=L(6, 4), b=L(4, 3)),
             "nn.Linear 'b' has no native form"),
    "logs of examples": (lambda: Seq(lambda s, x: F.log_softmax(s.a(x), 0), a=L(6, 3)),
                         "logarithms of a softmax have a native form along the classes"),
    "examples": (lambda: Seq(lambda s, x: s.a(x).softmax(0), a=L(6, 3)), "Tensor.softmax has no native form"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*REFUSED])
def test_what_has_no_plan_is_refused_with_the_op_and_the_reason(name: str):
    make, said = REFUSED[name]
    columns = {"x": numbers(6), "y": np.arange(4) % 3}
    refused = plan_of(torch_net(make(), example=columns))
    assert isinstance(refused, Refusal)
    assert str(refused).startswith(said)
    assert "\n" not in str(refused)


def test_buffers_that_change_hooks_and_forwards_of_one_layer_are_refused():
    columns = {"x": numbers(6), "y": np.arange(4) % 3}
    module = Seq(counting, a=L(6, 3))
    module.register_buffer("n", torch.zeros(1))
    assert str(plan_of(torch_net(module, example=columns))) == "the forward of Seq changes a buffer"
    module = nn.Sequential(L(6, 3))
    module[0].register_forward_hook(lambda m, i, o: o)
    assert str(plan_of(torch_net(module, example=columns))) == "a hook on Linear '0' runs in Python"
    module = nn.Sequential(L(6, 3))
    module[0].forward = lambda x: x[:, :3]
    assert str(plan_of(torch_net(module, example=columns))) == "Linear '0' has a forward of its own"


def test_cells_directions_and_tied_weights_are_refused():
    columns = {"x": numbers(7, 6), "y": np.arange(4) % 3}
    module = Seq(cells, r=nn.LSTM(6, 5, batch_first=True), a=L(5, 3))
    assert str(plan_of(torch_net(module, example=columns))) == "operator.getitem of the cell states has no native form"
    module = Seq(lambda s, x: s.a(s.r(x)[0][:, -1]), r=nn.GRU(6, 5, batch_first=True, bidirectional=True), a=L(10, 3))
    assert str(plan_of(torch_net(module, example=columns))) == (
        "nn.GRU 'r' has no native form when bidirectional or projected"
    )
    net, _ = any_net("tied")
    assert str(plan_of(net)) == "parameter 'emb.weight' is used in two forms, which the native core cannot tie"


def test_losses_and_transforms_that_are_functions_are_refused():
    columns = {"x": numbers(6), "y": np.arange(4) % 3}

    def cross_entropy(output: Any, y: Any) -> Any:
        return F.cross_entropy(output * 2, y)

    said = "loss 'cross_entropy' has no native form: cross_entropy, masked_cross_entropy, mse, bce, l1 have one"
    assert str(plan_of(torch_net(L(6, 3), cross_entropy, example=columns))) == said
    weighted = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert str(plan_of(torch_net(L(6, 3), weighted, example=columns))).startswith("loss 'CrossEntropyLoss' has no")
    net = torch_net(L(6, 3), transform=lambda x: x * 2, example=columns)
    assert str(plan_of(net)) == "a function as transform runs in Python on every batch"
    assert str(plan_of(torch_net(L(6, 3), path="graph", example=columns))).startswith("path='graph'")
    assert str(plan_of(torch_net(L(6, 3)))).startswith("a net without example rows")
    assert isinstance(plan_of(torch_net(L(6, 3)), columns), NativePlan)


def test_tracing_leaves_the_module_and_the_random_state_as_they_were():
    module = nn.Sequential(L(6, 5), nn.Dropout(0.5), L(5, 3)).eval()
    before, names = torch.get_rng_state(), [*module.__dict__]
    net = torch_net(module, example={"x": numbers(6), "y": np.arange(4) % 3})
    planned(net)
    assert torch.equal(before, torch.get_rng_state())
    assert not module.training
    assert [*module.__dict__] == names


BENDS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.LeakyReLU)


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
    reference.agree(net, planned(net), columns, 1e-8)


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
    assert sum(op.kind == kind for op in plan.ops) == layers
    assert all(v.tokens or v.ld == padded(v.c) for v in plan.values)
