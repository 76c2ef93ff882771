"""The mean of models that were trained in halves: by name, with true sample counts, to the same bits in any order.

Here: pure functions on updates. Not here: whose updates count (`central`). Invariant: the result depends on the set of
(device, vector, samples) alone; weights of a coordinate sum to one, or its value is the global model's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fieldfare.aggregate.gather import Gather
from fieldfare.algorithms.fedfly.messages import Update
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Coverage
from fieldfare.core.params import Params

COUNTERS = ("num_batches_tracked",)
"""Tensors whose last name is one of these count something: of them the largest is taken, not the mean."""


def merged(model: Params, updates: Mapping[str, Update]) -> Params:
    """w = sum n_k w_k / sum n_k over the devices, exact in fixed point (`core.folds.Mean`); counters: the largest.

    Where an update holds the server half alone, its device half does not count; one that is not finite does not count
    at all. Numbers nobody has trained stay as in
    `model`. FedFly's code divides by a constant instead (weights that sum to 0.4 with its own settings).
    """
    out = model.vector.copy()
    used = [updates[device] for device in sorted(updates) if updates[device].samples > 0]
    if not used:
        return model
    gather = Gather({"w": Coverage()}, len(used))
    counted: list[Update] = []
    for at, update in enumerate(used):
        if update.vector.shape != model.vector.shape:
            raise UsageError(f"an update of shape {update.vector.shape} for a model of {model.size} parameters.")
        index = None if update.only is None else np.arange(*update.only)
        row = {"w": update.vector[None, slice(*update.only) if update.only is not None else slice(None)]}
        weight = np.array([update.samples])
        if gather.check(row, weight).any():
            continue
        gather.add(np.array([at]), row, weight, index, model.size)
        counted.append(update)
    folded = gather.finish().get("w")
    if folded is None:
        return model
    covered = np.broadcast_to(np.asarray(folded.weight) > 0, out.shape)
    out[covered] = folded.value[covered]
    for name, where, _ in model.layout.items():
        if name.rpartition(".")[2] in COUNTERS:
            told = [update.vector[where] for update in counted if _has(update, where)]
            out[where] = np.max(told, axis=0) if told else model.vector[where]
    return model.replace(out)


def _has(update: Update, where: slice) -> bool:
    """Whether an update has those parameters."""
    return update.only is None or update.only[0] <= where.start < update.only[1]
