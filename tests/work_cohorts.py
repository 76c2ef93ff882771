"""Small cohorts for the tests of local training: made data, any sizes, any net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.core.work import Cohort
from fieldfare.work.dense import DenseNet


def block(sizes: Sequence[int], inputs: int = 5, outputs: int = 3, numbers: bool = False) -> Block:
    """Made examples for clients of `sizes`, with rows scattered over the columns."""
    total = int(sum(sizes))
    made = np.random.default_rng(7)
    x = made.standard_normal((total + 11, inputs), dtype=np.float32)
    y = (
        made.standard_normal((total + 11, outputs), dtype=np.float32)
        if numbers
        else made.integers(0, outputs, total + 11)
    )
    rows = made.permutation(total + 11)[:total]
    return Block({"x": x, "y": y}, rows, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def cohort(net: DenseNet, sizes: Sequence[int], seed: int = 0, versions: int = 1, **more: Any) -> Cohort:
    """A cohort over `block(sizes)`, from one or several starting models."""
    n = len(sizes)
    data = block(sizes, net.program.inputs, net.program.outputs, net.loss == "squared_error")
    models = np.stack([net.init(seed + v).vector for v in range(versions)])
    clients = np.arange(n) * 3 + 1
    return Cohort(
        models, np.arange(n) % versions, net.layout, clients, rng.keys(seed, ("test",), clients), data, **more
    )


def pick(whole: Cohort, order: Sequence[int]) -> Cohort:
    """Some clients of a cohort, in another order, with data, key, state and model of their own."""
    at = np.asarray(order, np.int64)
    o = whole.data.offsets
    rows = [whole.data.rows[o[i] : o[i + 1]] for i in at]
    sizes = whole.data.sizes[at]
    data = Block(
        whole.data.columns, np.concatenate([np.empty(0, np.int64), *rows]), np.concatenate([[0], np.cumsum(sizes)])
    )
    return Cohort(
        whole.models, whole.row[at], whole.layout, whole.clients[at], whole.keys[at], data, whole.config, whole.inputs,
        {}, None if whole.state is None else whole.state[at], None if whole.fresh is None else whole.fresh[at],
    )  # fmt: skip
