"""What has no plan of the native core is refused in one sentence, with the op and the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from native_models import F, L, Seq, any_net, nn, numbers, planned, torch

from fieldfare.work.native.lower import plan_of
from fieldfare.work.native.plan import NativePlan, Refusal
from fieldfare.work.torch_net import torch_net


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


def part_of_changed(s: Any, x: Any) -> Any:
    h = s.a(x)
    g = h[:, 1:]
    h.relu_()
    return s.o(g)


def step_of_changed(s: Any, x: Any) -> Any:
    h = s.a(x[:, None])
    g = h[:, :, 1]
    return h.relu_().mean(2) + g


REFUSED: dict[str, tuple[Any, str]] = {
    "bilinear": (lambda: Seq(lambda s, x: s.mix(s.a(x), s.a(x)), a=L(6, 3), mix=nn.Bilinear(3, 3, 3)),
                 "nn.Bilinear 'mix' has no native form"),
    "function": (lambda: Seq(lambda s, x: torch.roll(s.a(x), 1, 1), a=L(6, 3)), "torch.roll has no native form"),
    "examples joined": (lambda: Seq(lambda s, x: torch.cat([s.a(x), s.a(x)])[:4], a=L(6, 3)),
                        "torch.cat joins (2, 3) and others along an axis that is not that of channels"),
    "a constant joined": (lambda: Seq(lambda s, x: s.o(torch.cat([s.a(x), torch.ones(len(x), 1)], 1)),
                                      a=L(6, 3), o=L(4, 3)), "torch.cat computes with parameters or constants alone"),
    "a part changed in place": (lambda: Seq(lambda s, x: s.o(s.a(x)[:, :2].relu_()), a=L(6, 3), o=L(2, 3)),
                                "Tensor.relu_ changes a part of a tensor in place"),
    "a part of what is changed": (lambda: Seq(part_of_changed, a=L(6, 3), o=L(2, 3)),
                                  "nn.Linear 'o' reads what Tensor.relu_ has changed in place"),
    "a step of what is changed": (lambda: Seq(step_of_changed, a=nn.Conv1d(1, 3, 1)),
                                  "operator.add reads what Tensor.relu_ has changed in place"),
    "a part of the positions": (lambda: Seq(lambda s, x: s.b(x[:, None])[:, :, 1:].mean(2), b=nn.Conv1d(1, 3, 1)),
                                "operator.getitem of a part of an axis has a native form"),
    "bounds": (lambda: Seq(lambda s, x: s.a(x).clamp(1.0, 0.0), a=L(6, 3)),
               "Tensor.clamp has a native form between numbers"),
    "outer product": (lambda: Seq(lambda s, x: s.o((s.a(x)[:, :, None] * s.a(x)[:, None]).flatten(1)),
                                  a=L(6, 3), o=L(9, 3)), "operator.mul broadcasts (2, 3, 1) and (2, 1, 3)"),
    "method": (lambda: Seq(lambda s, x: s.a(x).cumsum(1), a=L(6, 3)), "Tensor.cumsum has no native form"),
    "chance": (lambda: Seq(chance, a=L(6, 3)), "the forward of Seq draws random numbers of its own"),
    "noise": (lambda: Seq(own_noise, a=L(6, 3)), "torch.randn_like has no native form"),
    "values": (lambda: Seq(by_value, a=L(6, 3)), "the forward of Seq decides by values"),
    "training": (lambda: Seq(by_training, a=L(6, 3)), "the forward of Seq differs between training and evaluation"),
    "size": (lambda: Seq(by_size, a=L(6, 3)), "the forward of Seq depends on the size of the batch"),
    "one of many": (lambda: Seq(first_of_batch, a=L(6, 3)), "operator.getitem takes one example of the batch"),
    "some of many": (lambda: Seq(lambda s, x: s.a(x[:100]), a=L(6, 3)),
                     "operator.getitem takes some examples of the batch"),
    "a divisor of 0": (lambda: Seq(lambda s, x: s.a(x) / 0, a=L(6, 3)),
                       "operator.truediv has a native form for a constant"),
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


IN_PLACE = {
    "F.relu6": lambda h: F.relu6(h, inplace=True), "F.hardtanh_": F.hardtanh_, "clamp_": lambda h: h.clamp_(-1.0, 1.0),
    "clip_": lambda h: h.clip_(0.0, 1.0), "F.elu_": F.elu_, "F.relu_": F.relu_, "tanh_": lambda h: h.tanh_(),
    "nn.Hardswish": nn.Hardswish(inplace=True), "nn.ReLU6": nn.ReLU6(inplace=True), "nn.ELU": nn.ELU(inplace=True),
    "nn.SELU": nn.SELU(inplace=True), "nn.CELU": nn.CELU(inplace=True), "nn.SiLU": nn.SiLU(inplace=True),
    "nn.LeakyReLU": nn.LeakyReLU(inplace=True), "nn.Hardsigmoid": nn.Hardsigmoid(inplace=True),
    "mul_": lambda h: h.mul_(2.0), "add_": lambda h: h.add_(1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", [*IN_PLACE])
def test_what_was_changed_in_place_is_not_read_as_it_was(name: str):
    change = IN_PLACE[name]
    parts = {"change": change} if isinstance(change, nn.Module) else {}

    def f(s: Any, x: Any) -> Any:
        h = s.a(x)
        y = s.change(h) if parts else change(h)
        return y + h

    columns = {"x": numbers(6), "y": np.arange(4) % 3}
    refused = plan_of(torch_net(Seq(f, a=L(6, 3), **parts), example=columns))
    assert isinstance(refused, Refusal)
    assert "has changed in place" in str(refused)


def test_a_part_of_an_input_that_is_changed_in_place_is_not_read_as_it_was():
    def f(s: Any, x: Any) -> Any:
        part = x[:, :3]
        x.mul_(2.0)
        return s.a(part)

    columns = {"x": numbers(6), "y": np.arange(4) % 3}
    assert isinstance(plan_of(torch_net(Seq(f, a=L(3, 3)), example=columns)), Refusal)


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

    said = "loss 'cross_entropy (own)' has no native form: cross_entropy, masked_cross_entropy, mse, bce, l1 have one"
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
