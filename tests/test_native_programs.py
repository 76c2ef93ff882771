"""Random programs over tensors: whatever of them has a plan is computed exactly, in place or not."""

from __future__ import annotations

from typing import Any

import native_reference as reference
import numpy as np
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from native_models import C, F, L, nn, numbers, on_core, torch

from fieldfare.work.native.lower import plan_of
from fieldfare.work.native.plan import NativePlan
from fieldfare.work.torch_net import torch_net


class Program(nn.Module):
    """Runs `steps` one after the other on the tensors that there are so far; the last one is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Any] = []
        self.parts = nn.ModuleList()
        self.extra = nn.ParameterList()

    def forward(self, x: Any) -> Any:
        found = [x]
        for step in self.steps:
            found.append(step(self, found))
        return found[-1]


OPS = (
    "relu", "relu_", "tanh", "relu6", "clamp_", "hardswish", "softplus", "gate", "cat", "cat", "part", "chunk",
    "shuffle", "line", "add", "iadd", "mul", "permute", "transpose", "flatten", "view", "unsqueeze", "squeeze",
    "linear", "linear", "conv", "pool", "mean", "select", "norm", "scale", "shift", "group", "gru", "whole norm",
)  # fmt: skip


def shapes(program: Program, x: Any) -> list[Any]:
    found = [x]
    with torch.no_grad():
        for step in program.steps:
            found.append(step(program, [one.clone() for one in found]))
    return [tuple(one.shape) for one in found]


def part(program: Program, made: Any) -> int:
    program.parts.append(made)
    return len(program.parts) - 1


def extra(program: Program, *shape: int) -> int:
    program.extra.append(nn.Parameter(torch.randn(*shape)))
    return len(program.extra) - 1


def step_of(draw: Any, program: Program, known: list[Any]) -> Any:
    """One more step, or None where the drawn one does not fit."""
    at = draw(st.sampled_from([len(known) - 1] * 3 + [*range(len(known))]))
    shape = known[at]
    n = len(shape)
    match draw(st.sampled_from(OPS)):
        case "relu":
            return lambda p, found: F.relu(found[at])
        case "relu_":
            return lambda p, found: found[at].relu_()
        case "tanh":
            return lambda p, found: torch.tanh(found[at])
        case "relu6":
            return lambda p, found: F.relu6(found[at])
        case "clamp_":
            return lambda p, found: found[at].clamp_(-0.5, 0.75)
        case "hardswish":
            return lambda p, found: F.hardswish(found[at], inplace=True)
        case "softplus":
            return lambda p, found: F.softplus(found[at])
        case "gate" if n > 2:  # by what is the same along some axes
            dims = draw(st.sampled_from((tuple(range(2, n)), (1,), (n - 1,))))
            return lambda p, found: found[at] * found[at].mean(dims, keepdim=True).sigmoid()
        case "cat":
            where = draw(st.integers(1, n - 1)) if n > 1 else 0
            rest = [i for i, one in enumerate(known) if len(one) == n and one[:where] == shape[:where]]
            b = draw(st.sampled_from([i for i in rest if known[i][where + 1 :] == shape[where + 1 :]]))
            return lambda p, found: torch.cat([found[at], found[b]], where)
        case "part":
            where = draw(st.integers(1, n - 1)) if n > 1 else 0
            first, step = draw(st.integers(0, shape[where] - 1)), draw(st.integers(1, 2))
            at_ = (slice(None),) * where + (slice(first, None, step),)
            return lambda p, found: found[at][at_]
        case "chunk" if n > 1 and shape[1] % 2 == 0:
            i = draw(st.integers(0, 1))
            return lambda p, found: found[at].chunk(2, 1)[i]
        case "shuffle" if n > 2 and shape[1] % 2 == 0:
            return lambda p, found: F.channel_shuffle(found[at], 2) if n > 2 else found[at]
        case "line" if n == 3:
            i = part(program, nn.Conv1d(shape[1], draw(st.sampled_from((2, 4))), 3, padding=1))
            return lambda p, found: p.parts[i](found[at])
        case "add" | "mul" | "iadd" as kind:
            others = [i for i, one in enumerate(known) if one == shape]
            b = draw(st.sampled_from(others))
            if kind == "add":
                return lambda p, found: found[at] + found[b]
            if kind == "mul":
                return lambda p, found: found[at] * found[b]
            return lambda p, found: found[at].add_(found[b])
        case "permute":
            order = draw(st.permutations(range(n)))
            return lambda p, found: found[at].permute(*order)
        case "transpose" if n > 2:
            return lambda p, found: found[at].transpose(1, 2)
        case "flatten":
            first = draw(st.integers(0, n - 1))
            return lambda p, found: found[at].flatten(first)
        case "view" if n > 1 and shape[-1] % 2 == 0:
            return lambda p, found: found[at].reshape(*found[at].shape[:-1], 2, -1)
        case "unsqueeze" if n < 5:
            where = draw(st.integers(0, n))
            return lambda p, found: found[at].unsqueeze(where)
        case "squeeze":
            return lambda p, found: found[at].squeeze(draw_at) if (draw_at := n - 1) else found[at]
        case "linear":
            out = draw(st.sampled_from((shape[-1], 3, 18)))
            i = part(program, L(shape[-1], out))
            return lambda p, found: p.parts[i](found[at])
        case "conv" if n == 4 and min(shape[2:]) > 1:
            i = part(program, C(shape[1], draw(st.sampled_from((2, 4))), 2, padding=draw(st.integers(0, 1))))
            return lambda p, found: p.parts[i](found[at])
        case "pool" if n == 4 and min(shape[2:]) > 1:
            return lambda p, found: F.max_pool2d(found[at], 2, 1)
        case "mean" if n > 2:
            dims = draw(st.sampled_from(((1,), (2,), (1, 2), tuple(range(2, n)), (n - 1,))))
            keep = draw(st.booleans())
            return lambda p, found: found[at].mean(dims, keepdim=keep)
        case "select" if n > 2:
            where, place = draw(st.integers(1, n - 1)), draw(st.sampled_from((0, -1)))
            return lambda p, found: found[at].select(where, place)
        case "norm":
            i = part(program, nn.LayerNorm(shape[-1], 0.1))
            return lambda p, found: p.parts[i](found[at])
        case "whole norm" if n > 1:
            i = part(program, nn.LayerNorm(shape[1:], 0.1))
            return lambda p, found: p.parts[i](found[at])
        case "group" if n > 1:
            i = part(program, nn.GroupNorm(1, shape[1], 0.1))
            return lambda p, found: p.parts[i](found[at])
        case "scale":
            i = extra(program, shape[-1])
            return lambda p, found: found[at] * p.extra[i]
        case "shift" if n > 2:
            i = extra(program, shape[1], *[1] * (n - 2))
            return lambda p, found: found[at] + p.extra[i]
        case "gru" if n == 3:
            i = part(program, nn.GRU(shape[2], 3, batch_first=True))
            return lambda p, found: p.parts[i](found[at])[0]
    return None


@st.composite
def programs(draw: Any) -> tuple[Program, Any]:
    shape = draw(st.sampled_from(((6,), (3, 4), (2, 4, 4), (1, 4, 2))))
    x = numbers(*shape)
    torch.manual_seed(0)
    program = Program()
    for _ in range(draw(st.integers(1, 7))):
        known = shapes(program, torch.from_numpy(x))
        step = step_of(draw, program, known)
        if step is None:
            continue
        program.steps.append(step)
        try:
            shapes(program, torch.from_numpy(x))
        except (RuntimeError, ValueError, IndexError):
            program.steps.pop()
    known = shapes(program, torch.from_numpy(x))
    assume(known[-1][0] == len(x))
    i = part(program, L(int(np.prod(known[-1][1:])), 3))
    program.steps.append(lambda p, found: p.parts[i](found[-1].flatten(1)) if found[-1].dim() > 1 else found[-1])
    assume(len(shapes(program, torch.from_numpy(x))[-1]) == 2)
    return program, x


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(programs())
def test_random_programs_that_have_a_plan_are_computed_exactly(drawn: tuple[Program, Any]):
    program, x = drawn
    columns = {"x": x, "y": np.arange(4) % 3}
    with torch.enable_grad():
        try:
            program(torch.from_numpy(x.copy())).sum().backward()
        except RuntimeError:  # changed in place, and needed for the gradient
            assume(False)
    net = torch_net(program, example=columns)
    plan = plan_of(net)
    event("a plan" if isinstance(plan, NativePlan) else "refused")
    if isinstance(plan, NativePlan):
        reference.agree(net, plan, columns, 1e-8)
        on_core(net, plan, columns)
    else:
        assert "\n" not in str(plan)
