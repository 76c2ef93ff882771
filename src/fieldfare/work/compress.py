"""Local training that is compressed: the smaller thing a client trains in the model's place, and what travels.

Here: pairs of a compressor and its lift that are no choice of channels (those are `work.submodel`): rounded weights,
factors, pruned and frozen weights, short replies, and nets trained with sub-models inside. Not here: the training loop.
Invariant: what was not trained lifts to exactly zero; a compressor that leaves all as it was changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.core.local import (
    ControlVariate,
    Dynamic,
    Frozen,
    Heads,
    Keep,
    Local,
    LowRank,
    Nested,
    Personal,
    Pruned,
    Rounded,
    Scaled,
    Sent,
    Twin,
)
from fieldfare.core.params import Layout
from fieldfare.core.work import Cohort, Output
from fieldfare.work.dense import DenseNet, Linear, linear
from fieldfare.work.heads import head_of, named, told_bits
from fieldfare.work.inner import rounded
from fieldfare.work.layers import Inner
from fieldfare.work.net import Net
from fieldfare.work.torch_factors import factors as torch_factors
from fieldfare.work.torch_factors import in_factors as torch_in_factors
from fieldfare.work.torch_factors import product as torch_product
from fieldfare.work.torch_net import TorchNet

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Bools = NDArray[np.bool_]

_BELOW_ONE = np.float32(1 - 2.0**-24)
_COIN = np.uint64(rng.derive(0, "uplink"))
_IN_THE_NET = Scaled | Nested | Rounded
_DECLARED = Scaled | Nested | Rounded | LowRank
_STATEFUL = (ControlVariate, Dynamic, Personal, Twin, Keep)
_APART: tuple[tuple[type[Any], type[Any]], ...] = (
    (Scaled, Nested), (Pruned, Personal), (Frozen, Personal), (Heads, Personal), (LowRank, Nested), (LowRank, Pruned),
    *((LowRank, kind) for kind in _STATEFUL),
)  # fmt: skip


def check(local: tuple[Local, ...], net: Net) -> None:
    """Refuse numbers that cannot be, nets that cannot do it, and pairs that have no meaning together."""
    declared = [one for one in local if isinstance(one, _DECLARED)]
    inside = getattr(net, "net", net)
    if declared and not (isinstance(inside, DenseNet) or type(inside) is TorchNet):
        raise UsageError(
            f"{type(declared[0]).__name__} changes the layers' own step and works for fieldfare.mlp(...) and for torch "
            f"nets: leave it out for a {type(inside).__name__}."
        )
    kinds = {type(one) for one in local}
    for one, other in _APART:
        if one in kinds and other in kinds:
            raise UsageError(f"{one.__name__} and {other.__name__} say different things of the same weights: use one.")
    for one in local:
        match one:
            case Nested(shares=shares, distil=distil) if not (all(0 < s <= 1 for s in shares) and 0 <= distil <= 1):
                raise UsageError(f"Nested(shares={shares}, distil={distil}): shares and distil lie between 0 and 1.")
            case Nested() if isinstance(inside, DenseNet) and inside.loss == "squared_error":
                raise UsageError("Nested is for labels: use a net with loss='cross_entropy'.")
            case Nested() if isinstance(inside, TorchNet) and one.distil + one.back and not inside.of_labels:
                raise UsageError(
                    f"Nested(distil, back) compare what nets say of labels, and the loss of this net is {inside.loss}: "
                    "use loss='cross_entropy', or distil=0, back=0."
                )
            case Rounded(bits) if not 2 <= bits <= 16:
                raise UsageError(f"Rounded(bits={bits}): use 2 to 16.")
            case LowRank(rank) if rank < 1:
                raise UsageError(f"LowRank(rank={rank}): use a rank >= 1.")
            case LowRank(rank) if isinstance(inside, TorchNet):
                inside.factored(rank)
            case Pruned(share) if not 0 < share <= 1:
                raise UsageError(f"Pruned(share={share}): use a number above 0 and at most 1.")
            case Sent(share, bits) if not (0 < share <= 1 and 2 <= bits <= 32):
                raise UsageError(f"Sent(share={share}, bits={bits}): use a share in (0, 1] and 2 to 32 bits.")
            case Frozen(names):
                net.layout.mask(names)
            case Heads(names):
                head_of(net, names)
            case _:
                pass


def trained(net: Any, whole: Any, local: tuple[Local, ...]) -> Any:
    """`net`, a sub-model's of `whole` or that itself, as `local` wants it trained; the same where it wants nothing."""
    asked = tuple(one for one in local if isinstance(one, _IN_THE_NET))
    inside = getattr(net, "net", net)
    if asked and type(inside) is TorchNet and not inside.is_changed:
        changed = inside.changed(getattr(whole, "net", whole), asked)
        return net if changed is inside else changed
    if not asked or not isinstance(inside, DenseNet) or inside.scales or inside.bits or inside.inner:
        return net
    found = _changed(inside, getattr(whole, "net", whole), asked)
    return net if found == inside else found


@lru_cache(maxsize=256)
def _changed(net: DenseNet, whole: DenseNet, asked: tuple[Local, ...]) -> DenseNet:
    own = [one.outputs for one in net.program.layers[:-1]]
    full = [one.outputs for one in whole.program.layers[:-1]]
    for one in asked:
        match one:
            case Scaled() if own != full:
                net = replace(net, scales=(*(f / o for f, o in zip(full, own, strict=True)), 1.0))
            case Nested(shares, distil, temperature, weight, each, back):
                all_ = [tuple(max(ceil(share * f - 1e-9), 1) for f in full) for share in shares]
                smaller = tuple(
                    w
                    for w in dict.fromkeys(all_)
                    if list(w) != own and all(a <= b for a, b in zip(w, own, strict=True))
                )
                if smaller or own != full:  # the smallest are known as such: nothing is inside them
                    net = replace(net, inner=Inner(smaller, distil, temperature, weight, each, back))
            case Rounded(bits):
                net = replace(net, bits=bits)
            case _:
                pass
    return net


def smaller_start(local: tuple[Local, ...]) -> bool:
    """Whether clients start from something else than the model, or leave some of it as it is."""
    return any(isinstance(one, Rounded | Pruned | Frozen) for one in local)


def of_sub_model(work: Callable[[Cohort], Output], cohort: Cohort, local: tuple[Local, ...], size: int) -> Output:
    """`work` of a sub-model, whose client state is of the whole model of `size`: taken out and put back at its places.

    Coordinates that the client does not have this time keep what they had.
    """
    if cohort.state is None or not any(isinstance(one, Sent) and one.feedback for one in local):
        return work(cohort)
    if cohort.index is None or cohort.fresh is None:
        raise UsageError(
            "compress(feedback=True) with sub-models needs to know which weights each client has: use a driver that "
            "tells Cohort.index, or feedback=False."
        )
    if cohort.fresh.all():
        whole = np.zeros((cohort.n, size), np.float32)
    elif cohort.state.shape[1] == size:
        whole = np.where(cohort.fresh[:, None], np.float32(0), cohort.state)
    else:
        raise UsageError(
            f"client state has {cohort.state.shape[1]} numbers per client, slot 'residual' of this model has {size}: "
            "start the run again, or use the model the state was made with."
        )
    out = work(replace(cohort, state=whole[:, cohort.index]))
    if out.state is None:
        return out
    whole[:, cohort.index] = out.state
    return replace(out, state=whole)


def sent_smaller(
    local: tuple[Local, ...], train: Callable[[Cohort, Bools | None], Output], cohort: Cohort, layout: Layout
) -> Output:
    """`train` from models rounded, pruned or with frozen tensors; one version of the model after the other."""
    versions = np.unique(cohort.row)
    if len(versions) > 1:
        parts = [np.flatnonzero(cohort.row == v) for v in versions]
        outs = [sent_smaller(local, train, _chosen(cohort, at), layout) for at in parts]
        order = np.argsort(np.concatenate(parts))
        return _joined(outs, order)
    model = cohort.models[versions] if len(cohort.models) > 1 else cohort.models
    mask: Bools | None = None
    for one in local:
        match one:
            case Pruned(share):
                largest = pruned(model[0], share)
                model = np.where(largest, model, np.float32(0))
                mask = largest if mask is None else mask & largest
            case Frozen(names):
                mask = ~layout.mask(names) if mask is None else mask & ~layout.mask(names)
            case _:
                pass
    for one in local:
        if isinstance(one, Rounded):
            model = rounded(model, [where for _, where, _ in layout.items()], one.bits)
    mask = None if mask is None or mask.all() else mask
    return train(replace(cohort, models=model, row=np.zeros(cohort.n, np.int64)), mask)


def _chosen(cohort: Cohort, at: I64) -> Cohort:
    o, data = cohort.data.offsets, cohort.data
    rows = np.concatenate([data.rows[o[i] : o[i + 1]] for i in at])
    offsets = np.concatenate([[0], np.cumsum(data.sizes[at])])
    pick = {"row": cohort.row[at], "clients": cohort.clients[at], "keys": cohort.keys[at]}
    more = {
        name: None if (value := getattr(cohort, name)) is None else value[at] for name in ("state", "fresh", "steps")
    }
    return replace(cohort, data=replace(data, rows=rows, offsets=offsets), **pick, **more)


def _joined(outs: list[Output], order: I64) -> Output:
    first = outs[0]
    leaves = {leaf: np.concatenate([out.leaves[leaf] for out in outs])[order] for leaf in first.leaves}
    metrics = {name: np.concatenate([out.metrics[name] for out in outs])[order] for name in first.metrics}
    state = None if first.state is None else np.concatenate([out.state for out in outs if out.state is not None])[order]
    return Output(leaves, np.concatenate([out.weight for out in outs])[order], metrics, state)


def pruned(model: F32, share: float) -> Bools:
    """Bool `[P]`: the ceil(share P) weights of largest magnitude; of equal ones the first."""
    keep = np.zeros(len(model), np.bool_)
    keep[np.argsort(-np.abs(model), kind="stable")[: ceil(share * len(model) - 1e-9)]] = True
    return keep


def encoded(
    sent: Sent, delta: F32, seen: F32 | None, keys: U64, covered: Bools | None = None
) -> tuple[F32, F32]:  # fmt: skip
    """The deltas `[n, P]` as the server reads them, and what was left out, `[n, P]`.

    `covered` `[n, P]`: only there numbers travel, and are counted for the share; elsewhere what was `seen` is left.
    Top-k with memory (Stich et al., NeurIPS 2018, alg. 1); rounding up or down by chance, so that the mean is right
    (Alistarh et al., NeurIPS 2017, section 3.1, with the largest number as the scale: our reading).
    """
    wanted = delta if seen is None else delta + seen
    if covered is not None:
        wanted = np.where(covered, wanted, np.float32(0))
    out = wanted.copy()
    size = wanted.shape[1]
    numbers = [size] * len(out) if covered is None else covered.sum(axis=1).tolist()
    for row, many in zip(out, numbers, strict=True):
        if (count := ceil(sent.share * many - 1e-9)) < many:
            row[np.argsort(-np.abs(row), kind="stable")[count:]] = 0
    if sent.bits < 32:
        most = np.float32(2 ** (sent.bits - 1) - 1)
        step: F32 = np.abs(out).max(axis=1, keepdims=True, initial=0) / most
        step[~(step > 0)] = 1
        coin = rng.uniforms((keys ^ _COIN)[:, None], np.arange(size))
        coin32 = np.minimum(coin.astype(np.float32), _BELOW_ONE)  # or nothing, rounded up, would be something
        out = np.clip(np.floor(out / step + coin32), -most, most) * step
    left = wanted - out
    return out, left if covered is None or seen is None else np.where(covered, left, seen)


def travelling(local: tuple[Local, ...], net: Any, layout: Layout) -> tuple[float, float, Any]:
    """(bytes down, bytes up, the net that is trained) of one client, for a model of `layout`.

    A scale of 4 bytes goes with every vector of few bits; places of chosen numbers travel as 4 bytes each or as a bit
    for every number, whichever is less. Down go the numbers that are left, or those of factors, in the bits there are.
    """
    size, up, sent, places = layout.size, 32.0 * layout.size, layout, 0.0
    numbers, bits = float(size), next((one.bits for one in local if isinstance(one, Rounded)), None)
    told = told_bits(local, net)
    short = any(isinstance(one, Sent) and (one.share < 1 or one.bits < 32) for one in local)
    for one in sorted(local, key=lambda one: isinstance(one, LowRank)):
        match one:
            case Pruned(share):
                count = ceil(share * size - 1e-9)
                numbers, places, up = float(count), _places(count, size), min(up, 32.0 * count)
            case Frozen(names):
                up = min(up, 32.0 * int((~layout.mask(names)).sum()))
            case LowRank(rank) if isinstance(inside := getattr(net, "net", net), DenseNet | TorchNet):
                net = factored(inside, rank)
                sent, numbers = net.layout, float(net.layout.size)
                if not short:  # else the largest numbers of the product travel, or all of them in few bits
                    still = in_factors(inside, net, frozen(local))
                    up = 32.0 * int((~net.layout.mask(still)).sum())
            case _:
                pass
    down = numbers * 32.0 if bits is None else numbers * bits + 32.0 * len(sent.names)
    down += places
    for one in local:
        if isinstance(one, Sent):
            numbers = up / 32.0
            count = ceil(one.share * numbers - 1e-9)
            up = count * one.bits + (32.0 if one.bits < 32 else 0.0)
            up += _places(count, int(numbers)) if count < numbers else 0.0
    return down / 8, (up + told) / 8, net


def frozen(local: tuple[Local, ...]) -> tuple[str, ...]:
    """The names of what `local` leaves as it is."""
    return tuple(name for one in local if isinstance(one, Frozen) for name in one.names)


def _places(count: int, size: int) -> float:
    """Bits that say which `count` of `size` numbers travel."""
    return 0.0 if count == size else float(min(32 * count, size))


def factored(net: Any, rank: int) -> Any:
    """The net in which each linear layer of larger rank is two: inputs to rank without bias, rank to outputs."""
    inside = getattr(net, "net", net)
    return inside.factored(rank) if isinstance(inside, TorchNet) else _factored(inside, rank)


@lru_cache(maxsize=64)
def _factored(net: DenseNet, rank: int) -> DenseNet:
    layers: list[Any] = []
    scales: list[float] = []
    own = iter(net.scales)
    for layer in net.layers:
        if isinstance(layer, Linear):
            scale = next(own, 1.0)
            split = _splits(layer, rank)
            layers += [linear(layer.inputs, rank, False), linear(rank, layer.outputs, layer.bias)] if split else [layer]
            scales += [1.0, scale] if split else [scale]
        else:
            layers.append(layer)
    return DenseNet(tuple(layers), net.loss, net.x, net.y, scales=tuple(scales) if net.scales else (), bits=net.bits)


def in_factors(net: Any, small: DenseNet, names: tuple[str, ...]) -> tuple[str, ...]:
    """The tensors of a factored net in which those called `names` of the whole one are: both factors of a matrix."""
    if not names:
        return ()
    inside: Any = getattr(net, "net", net)
    if isinstance(inside, TorchNet):
        return torch_in_factors(inside.layout, small.layout, set(named(inside.layout, names)))
    chosen, own = set(named(inside.layout, names)), iter(small.layout.names)
    out: list[str] = []
    ranks = [one.outputs for one in small.program.layers]
    at, wholes = 0, iter(inside.layout.names)
    for one in inside.program.layers:
        split = ranks[at] != one.outputs
        at += 2 if split else 1
        parts = [next(own) for _ in range(1 + split)]
        out += parts if next(wholes) in chosen else []
        if one.bias is not None:
            part = next(own)
            out += [part] if next(wholes) in chosen else []
    return tuple(out)


def _splits(layer: Linear, rank: int) -> bool:
    return rank < min(layer.inputs, layer.outputs)


def factors(net: Any, small: Any, model: F32) -> F32:
    """The vector of the factored net: V sqrt(s) and sqrt(s) U of every matrix's largest singular values, float32."""
    if isinstance(small, TorchNet):
        return torch_factors(getattr(net, "net", net).layout, small.layout, model)
    parts: list[F32] = []
    for weight, bias, rank in _walk(getattr(net, "net", net), small, model):
        if rank is None:
            parts.append(weight.reshape(-1))
        else:
            u, s, v = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
            root = np.sqrt(s[:rank])
            parts += [(root[:, None] * v[:rank]).astype(np.float32).reshape(-1),
                      (u[:, :rank] * root).astype(np.float32).reshape(-1)]  # fmt: skip
        if bias is not None:
            parts.append(bias)
    return np.concatenate(parts)


def _walk(net: DenseNet, small: DenseNet, model: F32) -> list[tuple[F32, F32 | None, int | None]]:
    """(weight, bias, rank of its factors or None) of every linear layer of the whole net."""
    out: list[tuple[F32, F32 | None, int | None]] = []
    ranks = [one.outputs for one in small.program.layers]
    at = 0
    for one in net.program.layers:
        split = ranks[at] != one.outputs
        weight = model[one.weight].reshape(one.outputs, one.inputs)
        out.append((weight, None if one.bias is None else model[one.bias], ranks[at] if split else None))
        at += 2 if split else 1
    return out


def product(net: Any, small: Any, vector: F32) -> F32:
    """The whole net's vector that a factored one stands for: U V in place of each pair."""
    inside: Any = getattr(net, "net", net)
    if isinstance(small, TorchNet):
        return torch_product(inside.layout, small.layout, vector)
    out = np.empty(inside.layout.size, np.float32)
    at = 0
    for one in inside.program.layers:
        first = small.program.layers[at]
        weight = vector[first.weight].reshape(first.outputs, first.inputs)
        if (first.inputs, first.outputs) != (one.inputs, one.outputs):
            at += 1
            second = small.program.layers[at]
            weight = vector[second.weight].reshape(second.outputs, second.inputs) @ weight
        out[one.weight] = weight.reshape(-1)
        last = small.program.layers[at]
        if one.bias is not None and last.bias is not None:
            out[one.bias] = vector[last.bias]
        at += 1
    return out
