"""The mean of models that were trained in halves: by name, with true sample counts, to the same bits in any order.

Here: pure functions on updates. Not here: whose updates count (`central`). Invariant: the result depends on the set of
(device, vector, places, samples) alone; weights of a coordinate sum to one, or its value is the global model's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fieldfare.aggregate.gather import Gather
from fieldfare.algorithms.fedfly.messages import Update
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Coverage
from fieldfare.core.params import Params

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

COUNTERS = ("num_batches_tracked",)
"""Tensors whose last name is one of these count something: of them the largest is taken, not the mean."""


def merged(model: Params, updates: Mapping[str, Update], places: Mapping[str, I64] | None = None) -> Params:
    """w = sum n_k w_k / sum n_k over the devices, exact in fixed point (`core.folds.Mean`); counters: the largest.

    `places` `{device: [p] ascending}`: where an update's numbers belong, of devices that train a part of the model: of
    every number the sums are over those who have it (Zhang & Kim, arXiv 2105.14675, in our reading).

    Where an update holds the server half alone, its device half does not count; one that is not finite does not count
    at all. Numbers nobody has trained stay as in
    `model`. FedFly's code divides by a constant instead (weights that sum to 0.4 with its own settings).
    """
    out = model.vector.copy()
    used = [updates[device] for device in sorted(updates) if updates[device].samples > 0]
    if not used:
        return model
    gather = Gather({"w": Coverage()}, len(used))
    counted: list[tuple[F32, I64 | None]] = []
    for at, update in enumerate(used):
        index = (places or {}).get(update.device)
        size = model.size if index is None else len(index)
        if update.vector.shape != (size,):
            raise UsageError(f"an update of shape {update.vector.shape} for a model of {size} parameters.")
        has = slice(None) if update.only is None else slice(*update.only)
        if update.only is not None:
            index = np.arange(*update.only) if index is None else index[has]
        row = {"w": update.vector[None, has]}
        weight = np.array([update.samples])
        if gather.check(row, weight).any():
            continue
        gather.add(np.array([at]), row, weight, index, model.size)
        counted.append((row["w"][0], index))
    folded = gather.finish().get("w")
    if folded is None:
        return model
    covered = np.broadcast_to(np.asarray(folded.weight) > 0, out.shape)
    out[covered] = folded.value[covered]
    for name, where, _ in model.layout.items():
        if name.rpartition(".")[2] in COUNTERS:
            told = [part for vector, index in counted if len(part := _within(vector, index, where))]
            out[where] = np.max(told, axis=0) if told else model.vector[where]
    return model.replace(out)


def _within(vector: F32, index: I64 | None, where: slice) -> F32:
    """Numbers `where` of the model in a `vector` that has numbers `index` of it; empty where it lacks one."""
    if index is None:
        return vector[where]
    first, stop = np.searchsorted(index, (where.start, where.stop))
    return vector[first:stop] if stop - first == where.stop - where.start else vector[:0]
