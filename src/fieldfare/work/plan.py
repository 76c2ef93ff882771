"""Which examples every client takes at every step, for a whole cohort at once.

Here: the plan of batches, from (client key, client rows, settings) alone. Not here: any arithmetic on examples.
Invariant: client i's part of a plan depends on `keys[i]` and its own rows only, whatever the cohort around it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.work.net import Plan, Training

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

_SHUFFLE = np.uint64(rng.derive(0, "shuffle"))
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
_PASS = 32
"""Bits of a counter left for the example; the bits above count passes over the data."""


def passes_and_steps(sizes: I64, training: Training, most: I64 | None = None) -> tuple[I64, I64, I64]:
    """Passes over the data, steps and examples taken, `[n]` each, by clients with `sizes` examples.

    A client without examples takes no step. With `training.steps`, or at `most` so many steps `[n]`, the last pass may
    stop early.

    >>> [a.tolist() for a in passes_and_steps(np.array([5, 0]), Training(batch_size=2, epochs=3))]
    [[3, 0], [9, 0], [15, 0]]
    """
    batch = training.batch_size
    per = -(-sizes // batch)
    some = (sizes > 0).astype(np.int64)
    if training.steps is None and most is None:
        passes = some * training.epochs
        return passes, passes * per, passes * sizes
    steps = some * training.epochs * per if training.steps is None else some * training.steps
    steps = steps if most is None else np.minimum(steps, most)
    whole, rest = np.divmod(steps, np.maximum(per, 1))
    return whole + (rest > 0), steps, whole * sizes + np.minimum(rest * batch, sizes)


def make_plan(data: Block, keys: U64, training: Training, most: I64 | None = None) -> Plan:
    """The batches of all clients of `data` under `training`, client by client and step by step.

    `keys` uint64 `[n]`. `most` int64 `[n]` limits each client's steps. Every pass is a fresh shuffle: the order of the
    hash bits of (client key, pass, example), which are all different, so no tie can let the neighbours in.
    `shuffle=False` takes stored order. Cost: one sort of the examples taken; a cohort of equal sizes needs no padding
    and gives the same numbers.
    """
    sizes = data.sizes
    passes, steps, taken = passes_and_steps(sizes, training, most)
    start = np.zeros(data.n + 1, np.int64)
    np.cumsum(taken, out=start[1:])
    key = rng.mix(keys ^ _SHUFFLE) if training.shuffle else None
    if data.n and sizes[0] > 0 and (sizes == sizes[0]).all() and (taken == taken[0]).all():
        rows = _equal(data, key, int(sizes[0]), int(passes[0]), int(taken[0]))
    else:
        rows = _ragged(data, key, sizes, passes, start)
    return Plan(rows, start, steps, training.batch_size, sizes)


def _equal(data: Block, key: U64 | None, size: int, passes: int, taken: int) -> I64:
    """Rows when every client has `size` examples: one table `[n, passes, size]`."""
    if key is None:
        at = np.broadcast_to(np.arange(size), (data.n, passes, size))
    else:
        counters = (np.arange(passes, dtype=np.uint64)[:, None] << np.uint64(_PASS)) + np.arange(size, dtype=np.uint64)
        at = np.argsort(rng.bits(key[:, None, None], counters), axis=-1)
    chosen = data.rows.reshape(data.n, size)[np.arange(data.n)[:, None, None], at]
    return np.ascontiguousarray(chosen.reshape(data.n, -1)[:, :taken]).reshape(-1)


def _ragged(data: Block, key: U64 | None, sizes: I64, passes: I64, start: I64) -> I64:
    """Rows for unequal sizes: (client, pass) pairs sorted in tables padded by at most 2x, one per power of two."""
    rows = np.empty(int(start[-1]), np.int64)
    client = np.repeat(np.arange(data.n), passes)
    turn = np.arange(len(client)) - np.repeat(np.cumsum(passes) - passes, passes)
    size = sizes[client]
    first = start[client] + turn * size
    count = np.minimum(size, start[client + 1] - first)
    grade = np.frexp(size.astype(np.float64))[1]
    for g in np.unique(grade):
        pick = np.flatnonzero(grade == g)
        width = int(size[pick].max())
        column = np.arange(width)
        if key is None:
            at = np.broadcast_to(column, (len(pick), width))
        else:
            counters = (turn[pick, None].astype(np.uint64) << np.uint64(_PASS)) + column.astype(np.uint64)
            words = rng.bits(key[client[pick], None], counters)
            words[column >= size[pick, None]] = _LAST
            at = np.argsort(words, axis=-1)
        inside = column < count[pick, None]
        source = data.offsets[client[pick], None] + at
        rows[(first[pick, None] + column)[inside]] = data.rows[source[inside]]
    return rows
