"""Where sub-models start: weights as large as those of nets of their size.

Here: one function of the model that a job made. Not here: which channels a level has (the view). Invariant: signs, and
all that is in no smaller level, stay as they were.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fieldfare.core.params import Layout, Params

_EMBEDDED = "rows of an embedding, chosen by number"


def own_started(view: Any, model: Params) -> Params:
    """`model` with the weights of every level times sqrt(inputs in the whole net / inputs in the level's).

    Weights are drawn in proportion to 1 / sqrt(inputs) (He et al., ICCV 2015, eq. 10), so those of a part of a wide net
    are too small for the narrow net they also are, which then learns late or not at all. Inputs: the product of a
    tensor's dimensions but the first; a weight is of the smallest level that has it. Tensors of one dimension and
    embeddings stay. Ours; HeteroFL's scaler mends the same in training, on the activations. `view`: of `submodels`,
    with levels inside one another.
    """
    axes = getattr(view, "view", view).axes  # of a `Fitting`, those of the view inside
    full = dict(zip(model.layout.names, model.layout.shapes, strict=True))
    factor = np.ones(model.size, np.float32)
    layouts: list[Layout] = [view.layout(number) for number in range(len(view.levels))]
    found = [(view.index(number), layout) for number, layout in enumerate(layouts)]
    for index, layout in sorted(found, key=lambda one: -one[1].size):
        for name, where, shape in layout.items():
            if len(shape) > 1 and all(axes.groups[g].whole != _EMBEDDED for part in axes.params[name][0] for g in part):
                factor[index[where]] = np.sqrt(prod(full[name][1:]) / prod(shape[1:]))
    return model.replace(model.vector * factor)
