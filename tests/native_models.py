"""Modules of many kinds for the native planner, with rows of data that fit them."""

from __future__ import annotations

from typing import Any

import native_phones as phones
import native_reference as reference
import numpy as np
import pytest
import torch_cases

from fieldfare.core.block import Block
from fieldfare.models import resnet, vgg5
from fieldfare.work.native.fit import Native
from fieldfare.work.native.lower import plan_of
from fieldfare.work.native.modules import core
from fieldfare.work.native.plan import NativePlan
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
        case "states of zeros":

            def f(s: Any, x: Any) -> Any:
                b = x.size(0)
                s.r.flatten_parameters()
                h, _ = s.r(s.e(x.long()), (*[torch.zeros(1, b, 5, dtype=s.o.weight.dtype)] * 2,))
                return s.o(h.contiguous().view(-1, 5)).view(b, -1, 11)

            return Seq(f, e=nn.Embedding(11, 6), r=nn.LSTM(6, 5, batch_first=True), o=L(5, 11)), symbols(7)
        case "sums":
            return Seq(lambda s, x: s.o(sum([s.e(x).sum(1), s.f(x).sum(dim=1)])), e=nn.Embedding(11, 6),
                       f=nn.Embedding(11, 6), o=L(6, 3)), symbols(7)  # fmt: skip
        case "layers made on the way":
            return Seq(
                lambda s, x: s.o(nn.Flatten()(nn.MaxPool2d(2)(nn.ReLU()(s.a(x))))), a=C(1, 4, 3), o=L(16, 3)
            ), numbers(1, 6, 6)
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
        case "phone v2":
            return phones.V2(3, 16, 4), numbers(3, 9, 10)
        case "phone v3":
            return phones.V3(3, 16, 4), numbers(3, 9, 10)
        case "phone v3 of groups":
            return phones.V3(3, 16, 4, phones.groups), numbers(3, 9, 10)
        case "bends":
            return nn.Sequential(
                L(6, 20), nn.ReLU6(), L(20, 7), nn.Hardtanh(-0.5, 0.75), L(7, 20), nn.Hardsigmoid(), L(20, 9),
                nn.Hardswish(), L(9, 20), nn.ELU(0.5), L(20, 9), nn.SELU(), L(9, 20), nn.CELU(2.0), L(20, 9),
                nn.Softplus(2.0, 5.0), L(9, 3),
            ), numbers(6)  # fmt: skip
        case "bends of functions":

            def f(s: Any, x: Any) -> Any:
                h = F.relu6(s.a(x)) + F.hardtanh(s.b(x), -0.5, 0.5) - F.hardswish(s.c(x), inplace=True)
                h = F.hardsigmoid(s.d(h)) + F.elu(s.d(h), 0.5) + F.selu(s.d(h)) + torch.celu(s.d(h), 0.5)
                h = F.softplus(h, 2.0).clamp(0.5, 2.0) + torch.clamp(s.d(h), min=-1.0) + s.d(h).clamp_max(1.0)
                return s.o(1 - h.clamp_(-3, 3) * 0.5)

            return Seq(f, a=L(6, 20), b=L(6, 20), c=L(6, 20), d=L(20, 20), o=L(20, 3)), numbers(6)
        case "joined":

            def f(s: Any, x: Any) -> Any:
                h = s.a(x)
                h = torch.cat([x, h, s.b(h), h], 1)
                v = h.mean((2, 3))
                return s.o(torch.concat((v, s.p(v), F.max_pool2d(h, 5).flatten(1)), dim=-1))

            return Seq(f, a=C(3, 5, 3, padding=1), b=C(5, 18, 1), p=L(31, 7), o=L(69, 3)), numbers(3, 5, 5)
        case "halves":

            def f(s: Any, x: Any) -> Any:
                a, b = s.a(x).chunk(2, 1)
                p, q, r = torch.split(s.b(b), [4, 8, 5], dim=1)
                h = torch.cat([a[:, 3:], F.channel_shuffle(q, 4), r[:, ::2], p.narrow(1, 1, 2)], 1)
                return s.o(F.glu(h[:, -14:], 1).mean((2, 3)))

            return Seq(f, a=C(3, 18, 3), b=C(9, 17, 1), o=L(7, 3)), numbers(3, 6, 5)
        case "halves of inputs":
            return Seq(lambda s, x: s.o(torch.cat([s.a(x[:, :, :4]), x[..., 2:]], 2)[:, -1]), a=L(4, 9), o=L(13, 3)), (
                numbers(7, 6)
            )
        case "phone of shuffles":
            return phones.Shuffle(3, 16, 4), numbers(3, 9, 10)
        case "joined sequences":
            return Seq(lambda s, x: s.o(torch.cat([s.r(x)[0], x, s.a(x)], 2)[:, -1]), r=nn.GRU(6, 5, batch_first=True),
                       a=L(6, 17), o=L(28, 3)), numbers(7, 6)  # fmt: skip
        case "gates of places":

            def f(s: Any, x: Any) -> Any:
                h = s.a(x)
                g = s.g(h.mean((2, 3)))[:, :, None, None]
                h = g.sigmoid() * h + s.b(F.adaptive_avg_pool2d(x, 1))
                h -= g
                return s.o(h.flatten(1))

            return Seq(f, a=C(3, 18, 3), g=L(18, 18), b=C(3, 18, 1), o=L(162, 3)), numbers(3, 5, 5)
        case "lines":
            return nn.Sequential(
                nn.Conv1d(3, 17, 5, 2, 4, 2), nn.BatchNorm1d(17, track_running_stats=False), nn.ReLU6(),
                nn.Conv1d(17, 17, 3, padding=1, groups=17), nn.MaxPool1d(3, 2, 1), nn.Conv1d(17, 6, 1), nn.Hardswish(),
                nn.AvgPool1d(2, 1), nn.AdaptiveAvgPool1d(2), nn.Flatten(), L(12, 3),
            ), numbers(3, 21)  # fmt: skip
        case "gated lines":

            def f(s: Any, x: Any) -> Any:
                h = F.conv1d(x, s.w, stride=2, padding=1)
                h = F.max_pool1d(h, 2, 1) * F.hardsigmoid(s.g(F.adaptive_avg_pool1d(h, 1)))
                return s.o(torch.cat([F.adaptive_max_pool1d(h, 1), F.adaptive_avg_pool1d(h, 1)], 1).flatten(1))

            return Seq(f, w=nn.Parameter(torch.randn(7, 3, 3)), g=nn.Conv1d(7, 7, 1), o=L(14, 3)), numbers(3, 12)
    raise AssertionError(name)


NAMES = (
    "W2", "W3", "W4", "vgg5 groups", "vgg5 batch", "resnet groups", "resnet batch", "last hidden state",
    "gru, time first", "embedding mean", "gpt-like positions", "functional", "asks for shapes", "squeeze, unsqueeze",
    "view of a vector", "channels last data", "bytes-like pictures", "convolution of a sequence", "depthwise", "gates",
    "scales and shifts", "products with a matrix", "in place", "a layer used twice", "dead ends", "frozen", "subclass",
    "states of zeros", "sums", "layers made on the way", "segmentation", "flattened norm",
    "pooled maximum", "relu read twice", "phone v2", "phone v3", "phone v3 of groups", "bends", "bends of functions",
    "halves", "halves of inputs", "phone of shuffles", "joined", "joined sequences", "gates of places", "lines",
    "gated lines",
)  # fmt: skip
LOWERED = (
    "conv1d", "instance", "ln_several", "ln_several_noaffine", "gn_each", "grouped", "depth_mult", "convnext",
    "permute_flat", "bn_noaffine", "tied_layers", "constant_shape", "ones_mask", "bucket", "lowrank", "se",
    "mobile", "dense", "inception", "csp", "channelshuffle", "shuffle", "shuffle_bare", "res2net", "glu", "chunk_gate",
    "slice_skip", "every_other", "wavenet",
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


def on_core(net: Any, plan: NativePlan, columns: dict[str, Any]) -> None:
    """Where the core is here, it gives the reference's output, loss and gradient, up to rounding."""
    if core() is None:
        return
    vector, rows = net.init(0).vector, np.arange(len(columns["y"]))
    block = Block(columns, rows, np.array([0, len(rows)]))
    out, value, slope = reference.gradient(plan, vector, [columns[x] for x in net.x], columns["y"], False)
    native = Native(plan, net.x, net.y, 1.0)
    assert np.allclose(native.outputs(vector, block).reshape(out.shape), out, atol=1e-4, rtol=1e-4)
    if not plan.chance:
        found, mine = native.gradient(vector, block)
        assert abs(found - value) <= 1e-4 * max(1.0, abs(value))
        assert np.abs(mine - slope).max() <= 1e-4 * max(1.0, float(np.abs(slope).max()))
