"""Where torch's parameters lie in the packed vector of the core.

Here: one function per packed shape; each takes the places (in the model's vector, or of constants) of a tensor in
torch's shape and gives those of the packed one, -1 for padding. Not here: who asks for them (`build`). Invariant: every
place given occurs once in what is returned.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fieldfare.work.native.plan import padded

I64 = NDArray[np.int64]


def _empty(*shape: int) -> I64:
    return np.full(shape, -1, np.int64)


def linear(places: I64, at: I64, rows: int) -> I64:
    """`[rows][Np]` of a weight `[N, K]`, whose column k multiplies float `at[k]` of an example."""
    out = _empty(rows, padded(len(places)))
    out[at, : len(places)] = places.T
    return out


def channels(places: I64, ld: int) -> I64:
    """`[ld]` of `[c]`."""
    out = _empty(ld)
    out[: len(places)] = places
    return out


def conv(places: I64, groups: int, ld_in: int, ld_out: int) -> I64:
    """`[groups][kh][kw][in][out]`, or `[kh][kw][ld]` where channels stay apart, of `[out, in / groups, kh, kw]`."""
    outs, ins, kh, kw = places.shape
    if groups == 1:
        out = _empty(1, kh, kw, ld_in, ld_out)
        out[0, :, :, :ins, :outs] = places.transpose(2, 3, 1, 0)
        return out
    if ins == 1 and outs == groups:
        out = _empty(kh, kw, ld_out)
        out[:, :, :outs] = places[:, 0].transpose(1, 2, 0)
        return out
    return np.ascontiguousarray(places.reshape(groups, outs // groups, ins, kh, kw).transpose(0, 3, 4, 2, 1))


def table(places: I64, ld: int) -> I64:
    """`[V][ld]` of an embedding `[V, E]`."""
    out = _empty(len(places), ld)
    out[:, : places.shape[1]] = places
    return out


def gates(places: I64, count: int, rows: int) -> I64:
    """`[rows][count * Hp]` of a recurrent weight `[count * H, K]`: the gates side by side, each filled up to Hp."""
    hidden = len(places) // count
    wide = padded(hidden)
    out = _empty(rows, count, wide)
    out[: places.shape[1], :, :hidden] = places.reshape(count, hidden, -1).transpose(2, 0, 1)
    return out.reshape(rows, count * wide)


def gate_biases(places: I64, count: int) -> I64:
    """`[count * Hp]` of `[count * H]`."""
    hidden = len(places) // count
    out = _empty(count, padded(hidden))
    out[:, :hidden] = places.reshape(count, hidden)
    return out.reshape(-1)


def scattered(places: I64, at: I64, size: int) -> I64:
    """`[size]` with `places` (flattened) at `at`."""
    out = _empty(size)
    out[at] = places.reshape(-1)
    return out
