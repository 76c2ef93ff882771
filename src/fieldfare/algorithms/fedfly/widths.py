"""A device's own size of model: what of the global model it trains, by the level that its plan names.

Here: a part of a model, its layout and its places. Not here: which level a device has (a driver plans it), what is done
with the parts (`serve`, `merge`). Invariant: without a level all is the whole model, the same object.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.params import Layout, Params, View, view_at

I64 = NDArray[np.int64]


def layout_at(view: View | None, level: int | None, layout: Layout) -> Layout:
    """The layout of a level of a model of `layout`."""
    return layout if view is None or level is None else view.layout(level)


def places_at(view: View | None, level: int | None, round_: int, model: Params) -> I64 | None:
    """Where in the vector of the round's `model` a level's numbers are, int64 `[p]` ascending; None: it is all of it.

    Every node that holds the round's model finds the same, so the places never travel.
    """
    of_round = None if level is None else view_at(view, round_, model)
    return None if of_round is None or level is None else of_round.index(level)


def part_of(view: View | None, level: int | None, round_: int, model: Params) -> Params:
    """The model of a level in a round, cut out of the round's `model`."""
    places = places_at(view, level, round_, model)
    return model if places is None else Params(model.vector[places], layout_at(view, level, model.layout))
