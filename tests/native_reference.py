"""Computes a plan in float64 with torch's autograd, from the packed parameters and padded buffers that it describes.

It reads a plan as the core does: every activation is `[rows, h, w, ld]`, lanes c..ld are 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from fieldfare.work.native.plan import TOKENS, UNIT, NativePlan, padded


def leaf(plan: NativePlan, vector: Any) -> Any:
    """The packed parameters of a model, float64, to differentiate by."""
    return torch.from_numpy(plan.pack(vector.astype(np.float64))).requires_grad_()


def read(plan: NativePlan, columns: list[Any]) -> dict[int, Any]:
    """The values that rows of the columns become."""
    found = {}
    for given, array in zip(plan.inputs, columns, strict=True):
        v = plan.values[given.value]
        assert v.ld == v.c
        x = torch.from_numpy(np.ascontiguousarray(array))
        if given.kind == TOKENS:
            assert v.tokens
            assert v.c == 1
            found[given.value] = x.to(torch.int64).reshape(-1, v.h, v.w, 1)
            continue
        x = x.double() / 255 if given.kind == UNIT else x.double()
        if given.channels_first:
            found[given.value] = x.reshape(-1, v.c, v.h, v.w).permute(0, 2, 3, 1)
        else:
            found[given.value] = x.reshape(-1, v.h, v.w, v.c)
    return found


def output(plan: NativePlan, packed: Any, columns: list[Any], train: bool = True) -> Any:
    """The plan's output `[rows, h, w, c]`."""
    values = read(plan, columns)
    for op in plan.ops:
        out = plan.values[op.out]
        params = [packed[plan.params[p].at : plan.params[p].at + plan.params[p].size] for p in op.params]
        made = _op(op, [values[i] for i in op.ins], [plan.values[i] for i in op.ins], out, params, train)
        assert made.shape[1:] == (out.h, out.w, out.c), (op, made.shape, out)
        assert out.ld == padded(out.c)
        assert op.out not in values
        values[op.out] = F.pad(made, (0, out.ld - out.c))
    return values[plan.output][..., : plan.values[plan.output].c]


def _op(op: Any, xs: list[Any], ins: list[Any], out: Any, params: list[Any], train: bool) -> Any:
    x, v, ints = xs[0], ins[0], op.ints
    real = x[..., : v.c]
    first = real.permute(0, 3, 1, 2)
    c = out.c
    match op.kind:
        case "linear":
            k, relu, each = ints
            assert k == (v.c if each or v.h * v.w == 1 else v.size)
            rows = (x if each else x.reshape(len(x), 1, 1, -1))[..., :k]
            h = rows @ params[0].reshape(k, out.ld)
            h = h + params[1] if len(params) > 1 else h
            assert bool((h[..., c:] == 0).all())
            h = h[..., :c] * (op.floats[0] if train and op.floats else 1.0)
            return h.relu() if relu else h
        case "conv2d":
            kh, kw, sh, sw, ph, pw, dh, dw, groups, relu = ints
            if groups == 1:
                w = params[0].reshape(kh, kw, v.ld, out.ld).permute(3, 2, 0, 1)
                given = x
            elif groups == v.c == c:
                w, given = params[0].reshape(kh, kw, 1, out.ld).permute(3, 2, 0, 1)[:c], real
            else:
                n = groups * kh * kw * (v.c // groups) * (c // groups)
                assert params[0].numel() == -(-n // 16) * 16
                w = params[0][:n].reshape(groups, kh, kw, v.c // groups, c // groups).permute(0, 4, 3, 1, 2)
                w, given = w.reshape(c, v.c // groups, kh, kw), real
            b = None if len(params) == 1 else params[1][: len(w)]
            h = F.conv2d(given.permute(0, 3, 1, 2), w, b, (sh, sw), (ph, pw), (dh, dw), groups)
            assert bool((h[:, c:] == 0).all())
            h = h[:, :c].permute(0, 2, 3, 1)
            return h.relu() if relu else h
        case "max_pool":
            h = F.max_pool2d(first, ints[:2], ints[2:4], ints[4:6]).permute(0, 2, 3, 1)
            return h.relu() if ints[6] else h
        case "avg_pool":
            h = F.avg_pool2d(first, ints[:2], ints[2:4], ints[4:6], False, bool(ints[6]))
            return h.permute(0, 2, 3, 1)
        case "adaptive_avg_pool":
            return F.adaptive_avg_pool2d(first, (out.h, out.w)).permute(0, 2, 3, 1)
        case "relu":
            return real.relu()
        case "tanh":
            return real.tanh()
        case "sigmoid":
            return real.sigmoid()
        case "silu":
            return F.silu(real)
        case "gelu":
            return F.gelu(real)
        case "gelu_tanh":
            return F.gelu(real, approximate="tanh")
        case "leaky_relu":
            return F.leaky_relu(real, op.floats[0])
        case "hardtanh":
            return F.hardtanh(real, *op.floats)
        case "clamp":
            return torch.clamp(real, *op.floats)
        case "hardsigmoid":
            return F.hardsigmoid(real)
        case "hardswish":
            return F.hardswish(real)
        case "elu":
            a, b, slope = op.floats
            return torch.where(real > 0, b * real, a * b * torch.expm1(slope * real.clamp(max=0.0)))
        case "softplus":
            return F.softplus(real, *op.floats)
        case "group_norm" | "batch_norm":  # written out: torch's falls over channels that lie last
            of = real.reshape(*real.shape[:3], ints[0] if ints else c, -1)
            over = (1, 2, 4) if op.kind == "group_norm" else (0, 1, 2)
            away = of - of.mean(over, keepdim=True)
            h = (away / (away.square().mean(over, keepdim=True) + op.floats[0]).sqrt()).reshape(real.shape)
            return h * params[0][:c] + params[1][:c] if params else h
        case "layer_norm" if ints[0] == 1:
            return F.layer_norm(real, (c,), *([p[:c] for p in params] or [None, None]), op.floats[0])
        case "layer_norm":
            pair = [p.reshape(out.h, out.w, out.ld)[..., :c] for p in params] or [None, None]
            return F.layer_norm(real, (out.h, out.w, c), *pair, op.floats[0])
        case "affine":
            return real * params[0][:c] + params[1][:c]
        case "embedding":
            padding = None if ints[0] < 0 else ints[0]
            return F.embedding(x[..., 0], params[0].reshape(-1, out.ld)[:, :c], padding)
        case "lstm" | "gru":
            count = 4 if op.kind == "lstm" else 3
            part = (torch.nn.LSTM if count == 4 else torch.nn.GRU)(v.c, c, batch_first=True, bias=len(params) > 2)
            hp = out.ld
            of = [params[0].reshape(v.ld, count, hp)[: v.c, :, :c], params[1].reshape(hp, count, hp)[:c, :, :c]]
            weights = {
                "weight_ih_l0": of[0].permute(1, 2, 0).reshape(-1, v.c),
                "weight_hh_l0": of[1].permute(1, 2, 0).reshape(-1, c),
            }
            for name, p in zip(("bias_ih_l0", "bias_hh_l0"), params[2:], strict=False):
                weights[name] = p.reshape(count, hp)[:, :c].reshape(-1)
            h = torch.func.functional_call(part.double(), weights, (real[:, :, 0],))[0]
            return h[:, :, None]
        case "select":
            return real[:, ints[0]][:, None]
        case "mean_positions":
            return real.mean((1, 2), keepdim=True)
        case "dropout":
            assert not train, "only a plan without chance is compared"
            return real
        case "add":
            return real + xs[1][..., :c]
        case "mul":
            return real * xs[1][..., :c]
        case "mul_channels" | "add_channels":
            assert (ins[1].h, ins[1].w, ins[1].c) == (1, 1, c)
            return real * xs[1][..., :c] if op.kind == "mul_channels" else real + xs[1][..., :c]
        case "channels":
            return real[..., list(ints)]
        case "concat":
            return torch.cat([one[..., : of.c] for one, of in zip(xs, ins, strict=True)], 3)
        case "flatten":
            return real.reshape(len(x), 1, 1, -1)
    raise AssertionError(op.kind)


def loss(plan: NativePlan, made: Any, y: Any) -> Any:
    """The plan's mean loss of its output for targets `y`."""
    y = torch.from_numpy(np.ascontiguousarray(y))
    flat = made.reshape(-1, made.shape[-1])
    match plan.loss:
        case "cross_entropy" | "masked_cross_entropy":
            return F.cross_entropy(flat, y.reshape(-1).long())
        case "mse":
            return F.mse_loss(made.reshape(-1), y.double().reshape(-1))
        case "l1":
            return F.l1_loss(made.reshape(-1), y.double().reshape(-1))
        case _:
            return F.binary_cross_entropy_with_logits(made.reshape(-1), y.double().reshape(-1))


def gradient(plan: NativePlan, vector: Any, columns: list[Any], y: Any, train: bool = True) -> tuple[Any, float, Any]:
    """Output, loss and gradient `[P]` of a model."""
    packed = leaf(plan, vector)
    made = output(plan, packed, columns, train)
    value = loss(plan, made, y)
    value.backward()
    slope = packed.grad.numpy()
    trained = np.zeros(len(plan.index), bool)
    for p in plan.params:
        trained[p.at : p.at + p.size] = p.trained
    assert not slope[(plan.index == -1) & trained].any(), "padding has a gradient"
    return made.detach().numpy(), float(value.detach()), plan.unpack(slope)


def check(plan: NativePlan) -> None:
    """What the core asks of every plan."""
    at = 0
    for p in plan.params:
        assert p.at == at
        assert p.size % 16 == 0
        assert p.size
        own = plan.index[p.at : p.at + p.size]
        assert (own >= -1).all() if p.trained else (own < 0).all()
        at += p.size
    assert at == len(plan.index)
    own = np.sort(plan.index[plan.index >= 0])
    assert np.array_equal(own, np.arange(plan.vector_size))
    assert plan.index.min(initial=-1) >= -1 - len(plan.constants)
    known = {i.value for i in plan.inputs}
    for op in plan.ops:
        assert set(op.ins) <= known
        assert op.out not in known
        known.add(op.out)
    assert known == set(range(len(plan.values)))
    assert plan.output in known


def batch(net: Any, columns: dict[str, Any]) -> tuple[Any, ...]:
    """What the module of a torch net takes, numbers in float64."""
    found = []
    for name in net.x:
        x = torch.from_numpy(np.ascontiguousarray(columns[name]))
        if net._transform == "unit":
            x = x.double() / 255
        elif x.is_floating_point():
            x = x.double()
        else:
            x = x.long()
        found.append(x)
    return tuple(found)


def agree(net: Any, plan: NativePlan, columns: dict[str, Any], tolerance: float = 1e-9) -> None:
    """A plan computes the module's output, loss and gradient; dropout is left out of both."""
    check(plan)
    r = np.random.default_rng(5)
    vector = net.init(0).vector + 0.1 * r.standard_normal(plan.vector_size).astype(np.float32)
    module = net.module(vector).double()
    module.train()
    for part in module.modules():
        if type(part) is torch.nn.Dropout:
            part.p = 0.0
        elif isinstance(part, torch.nn.RNNBase):
            part.dropout = 0.0
    wanted = module(*(x.clone() for x in batch(net, columns)))
    y = torch.from_numpy(np.ascontiguousarray(columns[net.y]))
    value = net._loss(wanted, y)
    value.backward()
    trained = [p for p in module.parameters() if p.requires_grad]
    slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    slope = torch.cat([s.reshape(-1) for s in slopes]).numpy()
    made, found, mine = gradient(plan, vector, [columns[name] for name in net.x], columns[net.y], False)
    scale = max(1.0, float(np.abs(slope).max()))
    assert abs(found - float(value.detach())) <= tolerance
    assert np.abs(mine - slope).max() <= tolerance * scale
    wanted = wanted.detach().numpy()
    assert np.allclose(np.sort(made.reshape(-1)), np.sort(wanted.reshape(-1)), atol=tolerance * 10, rtol=0)
