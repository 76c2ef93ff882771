"""Attention and the layers of torch that are made around it, as ops of the native core.

Here: nn.MultiheadAttention, F.scaled_dot_product_attention, nn.TransformerEncoder and its layer, learned positions.
Not here: other layers (`names`), the op (`native/ops_attention.h`). Invariant: masks are none or the causal one; any
other is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fieldfare.work.native import packing
from fieldfare.work.native.axes import full
from fieldfare.work.native.build import Tensor, Weight
from fieldfare.work.native.functions import Cells, Fixed, Reading
from fieldfare.work.native.plan import NoPlan


def _causal(r: Reading, mask: Any, queries: int, keys: int) -> bool:
    """Whether `mask` (True or -inf: not seen) is the causal one; False where it hides nothing."""
    if mask is None:
        return False
    value = mask.value if isinstance(mask, Fixed) else mask
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != (queries, keys):
        r.refuse("has a native form with one constant mask for all, or none")
    hidden = value if value.dtype == torch.bool else value == -torch.inf
    if value.dtype != torch.bool and bool(value[~hidden].any()):
        r.refuse("adds numbers to scores, which has no native form")
    if not hidden.any():
        return False
    if not torch.equal(hidden, torch.ones_like(hidden).triu(1)):
        r.refuse("has a native form with the causal mask alone")
    return True


def _attended(
    r: Reading, q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool, p: float, scale: float | None
) -> int:
    """The value of softmax(scale Q K') V, over sequences of queries, keys and values that are settled."""
    of, built = [r.built.of(x) for x in (q, k, v)], r.built
    if any(one.w != 1 for one in of) or of[1].h != of[2].h or len({one.c for one in of}) > 1:
        r.refuse("has a native form for sequences of one width alone")
    out = built.value(of[0].h, 1, of[0].c)
    scale = (of[0].c // heads) ** -0.5 if scale is None else scale
    built.op("attention", [q, k, v], out, ints=[heads, causal, built._drops], floats=[scale, p])
    built._drops += p > 0
    return out


def multihead(
    r: Reading, part: Any, query: Any, key: Any, value: Any, key_padding_mask: Any = None, need_weights: bool = True,
    attn_mask: Any = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Tensor, Cells]:  # fmt: skip
    """nn.MultiheadAttention; the weights it gives beside its output have no native form."""
    if key_padding_mask is not None or part.bias_k is not None or part.add_zero_attn or part.in_proj_weight is None:
        r.refuse("has no native form with padded keys, keys of its own, or keys of another width")
    order, width = "bhc" if part.batch_first else "hbc", part.embed_dim
    weight, bias = r.weight(part.in_proj_weight), r.optional(part.in_proj_bias)
    some = list[Tensor]()
    for at, x in enumerate((query, key, value)):
        own = slice(at * width, (at + 1) * width)
        one = Weight(weight.name, weight.places[own])
        other = None if bias is None else Weight(bias.name, bias.places[own])
        some.append(r.built.linear(r.tensor(x), one, other, r.what))
    q, k, v = (r.built.ordered(x, order, r.what) for x in some)
    causal = _causal(r, attn_mask, r.built.of(q).h, r.built.of(k).h)
    out = _attended(r, q, k, v, part.num_heads, causal, part.dropout, None)
    made = Tensor(out, tuple(r.built.axis(Tensor(out, ()), letter) for letter in order))
    last = part.out_proj
    return r.built.linear(made, r.weight(last.weight), r.optional(last.bias), r.what), Cells()


def scaled_dot_product(
    r: Reading, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """F.scaled_dot_product_attention of `[B, heads, T, d]` whose heads are channels side by side, or of `[B, T, c]`."""
    q, k, v = (r.built.settled(r.tensor(x)) for x in (query, key, value))
    c = r.built.of(q).c
    heads = q.shape[1] if len(q.axes) == 4 else 1
    for x in (q, k, v):
        b, h = r.built.axis(x, "b"), r.built.axis(x, "h")
        each = full("c", c // heads)
        own = (("c", heads, c // heads),) if heads > 1 else ()
        if x.axes != ((b, own, h, each) if len(q.axes) == 4 else (b, h, each)):
            r.refuse(f"reads {x.shape} in an order of axes that has no native form")
    causal = is_causal or _causal(r, _turned_mask(attn_mask), r.built.of(q).h, r.built.of(k).h)
    if dropout_p and not r.train:
        raise NoPlan("scaled_dot_product_attention", "drops in evaluation too: give it dropout_p=0 there")
    out = Tensor(_attended(r, q, k, v, heads, causal, dropout_p, scale), ())
    axes = [*q.axes]
    axes[-2] = r.built.axis(out, "h")
    return Tensor(out.source, tuple(axes))


def _turned_mask(mask: Any) -> Any:
    """F.scaled_dot_product_attention's masks say what is seen, where nn's say what is not."""
    value = mask.value if isinstance(mask, Fixed) else mask
    return ~value if isinstance(value, torch.Tensor) and value.dtype == torch.bool else value


def _layer(r: Reading, part: Any, x: Any) -> Any:
    from fieldfare.work.native.names import LAYERS

    read = LAYERS.get(type(part))
    if read is None:
        r.refuse(f"has a {type(part).__name__} inside, which has no native form")
    return read(r, part, x)


def _bend(r: Reading, part: Any, x: Any) -> Any:
    known = {nn.functional.relu: "relu", torch.relu: "relu", nn.functional.gelu: "gelu"}
    act = part.activation
    return (
        _layer(r, act, x)
        if isinstance(act, nn.Module)
        else r.pointwise(known.get(act) or r.refuse("bends by a function that has no native form"), x)
    )


def encoder_layer(
    r: Reading, part: Any, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False
) -> Tensor:
    """nn.TransformerEncoderLayer."""
    if src_key_padding_mask is not None:
        r.refuse("has no native form with padded keys")

    def around(x: Any) -> Tensor:
        out, _ = multihead(r, part.self_attn, x, x, x, attn_mask=src_mask)
        return _layer(r, part.dropout1, out)

    def forward(x: Any) -> Tensor:
        h = _layer(r, part.dropout, _bend(r, part, _layer(r, part.linear1, x)))
        return _layer(r, part.dropout2, _layer(r, part.linear2, h))

    x = r.tensor(src)
    if part.norm_first:
        x = r.add(x, around(_layer(r, part.norm1, x)))
        return r.add(x, forward(_layer(r, part.norm2, x)))
    x = _layer(r, part.norm1, r.add(x, around(x)))
    return _layer(r, part.norm2, r.add(x, forward(x)))


def encoder(
    r: Reading, part: Any, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: Any = None
) -> Tensor:
    """nn.TransformerEncoder."""
    for one in part.layers:
        if type(one) is not nn.TransformerEncoderLayer:
            r.refuse(f"has a {type(one).__name__} inside, which has no native form")
        src = encoder_layer(r, one, src, mask, src_key_padding_mask)
    return src if part.norm is None else _layer(r, part.norm, src)


def rows(r: Reading, symbols: Fixed, weight: Weight) -> Weight:
    """The rows of a table that constant `symbols` name: learned positions."""
    own = symbols.value.detach().numpy()
    if own.dtype.kind not in "iu" or len(set(own.reshape(-1).tolist())) != own.size:
        r.refuse("of constant symbols has a native form where each is named once")
    return Weight(weight.name, weight.places[own])


def offset(r: Reading, x: Tensor, weight: Weight) -> Tensor | None:
    """x + a parameter of an example's shape, or None where it has another."""
    x = r.built.settled(x)
    v = r.built.of(x)
    shape = weight.shape[1:] if len(weight.shape) == len(x.axes) and weight.shape[0] == 1 else weight.shape
    if shape != x.shape[1:] or x.axes != tuple(r.built.axis(x, letter) for letter in "bhc") or v.w != 1 or v.h == 1:
        return None
    out = r.built.value(v.h, 1, v.c)
    places = weight.places.reshape(v.h, v.c)
    param = r.built.param(Weight(weight.name, places), packing.table(places, r.built.values[out].ld))
    r.built.op("offset", [x], out, [param])
    return Tensor(out, x.axes)


LAYERS: dict[type, Callable[..., Any]] = {
    nn.MultiheadAttention: multihead,
    nn.TransformerEncoderLayer: encoder_layer,
    nn.TransformerEncoder: encoder,
}
