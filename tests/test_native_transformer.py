"""Modules with attention as plans of the native core: outputs and gradients are torch's, or the plan says why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from fieldfare.work.native import attention, names  # noqa: E402
from fieldfare.work.native.lower import lower  # noqa: E402
from fieldfare.work.native.modules import core  # noqa: E402
from fieldfare.work.native.plan import NativePlan, NoPlan  # noqa: E402

F = nn.functional


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    for layer, read in attention.LAYERS.items():
        monkeypatch.setitem(names.LAYERS, layer, read)
    monkeypatch.setitem(names.METHODS, "attention", attention.scaled_dot_product)
    monkeypatch.setitem(names.FUNCTIONS, F.scaled_dot_product_attention, "attention")


class Around(nn.Module):
    """A module whose forward is a function of its parts."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.told = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Any) -> Any:
        return self.told(self, x)


def plan_of(module: nn.Module, steps: int, c: int) -> NativePlan:
    shape = module(torch.zeros(2, steps, c)).shape
    return lower(module, lambda rows: (torch.zeros(rows, steps, c),), [0], "mse", torch.zeros(shape))


def agree(module: nn.Module, rows: int, steps: int, c: int) -> NativePlan:
    """Outputs and gradients of the mean square, on the core and in float64."""
    torch.manual_seed(3)
    for p in module.parameters():
        nn.init.normal_(p, 0.0, 0.4)
    plan = plan_of(module, steps, c)
    found = core()
    if found is None:
        pytest.skip("the native core is not built")
    made = found.Plan(*plan.arguments())
    vector = torch.cat([p.detach().reshape(-1) for p in module.parameters()]).numpy().copy()
    x = np.random.default_rng(5).standard_normal((rows, steps, c)).astype(np.float32)
    out = module.double()(torch.from_numpy(x).double())
    theirs = out.detach().reshape(rows, -1).numpy()
    ours = np.empty(theirs.shape, np.float32)
    made.forward(vector, [x.reshape(rows, -1)], np.arange(rows), True, ours)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())
    (out**2).mean().backward()
    wanted = torch.cat(
        [torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in module.parameters()]
    )
    grad = np.empty(len(vector), np.float32)
    made.gradient(vector, [x.reshape(rows, -1)], np.zeros_like(ours), np.arange(rows), 0, 0, grad)
    np.testing.assert_allclose(grad, wanted.numpy(), rtol=0, atol=4e-5 * float(wanted.abs().max()))
    return plan


def causal(steps: int) -> Any:
    return nn.Transformer.generate_square_subsequent_mask(steps)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", ["none", "causal"])
def test_multihead_attention_is_torchs(bias: bool, mask: str) -> None:
    hidden = causal(7) if mask == "causal" else None
    module = Around(
        lambda s, x: s.a(x, x, x, attn_mask=hidden, need_weights=False)[0],
        a=nn.MultiheadAttention(12, 3, bias=bias, batch_first=True),
    )
    plan = agree(module, 4, 7, 12)
    assert [op.ints[1] for op in plan.ops if op.kind == "attention"] == [mask == "causal"]


def test_multihead_attention_of_other_queries_is_torchs() -> None:
    module = Around(
        lambda s, x: s.a(s.q(x), x, torch.tanh(x), need_weights=False)[0],
        a=nn.MultiheadAttention(10, 2, batch_first=True), q=nn.Linear(10, 10),
    )  # fmt: skip
    agree(module, 3, 6, 10)


def test_attention_of_heads_that_are_viewed_is_torchs() -> None:
    def forward(s: Any, x: Any) -> Any:
        q, k, v = (one(x).view(x.shape[0], x.shape[1], 4, 5).transpose(1, 2) for one in (s.q, s.k, s.v))
        return s.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape[0], -1, 20))

    module = Around(forward, q=nn.Linear(9, 20), k=nn.Linear(9, 20), v=nn.Linear(9, 20), o=nn.Linear(20, 3))
    agree(module, 3, 8, 9)


def test_attention_of_one_head_is_torchs() -> None:
    module = Around(
        lambda s, x: F.scaled_dot_product_attention(s.q(x), s.q(x), x, scale=0.3), q=nn.Linear(7, 7, bias=False)
    )
    agree(module, 2, 5, 7)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_a_transformer_encoder_is_torchs(first: bool, act: str) -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 20, 0.0, act, batch_first=True, norm_first=first)
    inside = nn.TransformerEncoder(layer, 2, nn.LayerNorm(12), enable_nested_tensor=False)
    module = Around(lambda s, x: s.o(s.e(x, mask=causal(6))), e=inside, o=nn.Linear(12, 3))
    agree(module, 3, 6, 12)


def test_dropout_inside_a_transformer_is_that_of_the_plan() -> None:
    module = Around(lambda s, x: s.e(x), e=nn.TransformerEncoderLayer(8, 2, 12, 0.25, batch_first=True))
    plan = plan_of(module, 5, 8)
    assert [op.floats[-1] for op in plan.ops if op.kind in ("dropout", "attention")] == [0.25] * 4
    numbers = [op.ints[-1] for op in plan.ops if op.kind in ("dropout", "attention")]
    assert len({*numbers}) == 4


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda s, x: s.a(x, x, x, attn_mask=torch.eye(4, dtype=torch.bool))[0], "causal mask alone"),
        (lambda s, x: s.a(x, x, x, attn_mask=torch.ones(4, 4))[0], "adds numbers to scores"),
        (lambda s, x: s.a(x, x, x, key_padding_mask=x[..., 0] > 0)[0], "no native form"),
        (lambda s, x: s.a(x, x, x)[1], "native form"),
        (lambda s, x: F.scaled_dot_product_attention(*[torch.tanh(x).transpose(1, 2)] * 3), "order of axes"),
    ],
)  # fmt: skip
def test_attention_without_a_native_form_says_so(forward: Any, why: str) -> None:
    module = Around(forward, a=nn.MultiheadAttention(6, 2, batch_first=True))
    with pytest.raises(NoPlan, match=why):
        plan_of(module, 4, 6)
