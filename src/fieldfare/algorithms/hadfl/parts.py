"""HADFL's broadcast means where widths are unlike: a mean is of some bands, and each band has the newest it was told.

Here: what a peer outside the ring does with means of models. Not here: rings without widths, deltas (`rules`).
Invariant: what a peer trains itself is blended, what it only keeps is taken as told (our reading), and what no mean is
about stays as it is, to the bit. Where all have the whole model it is what `rules.Models` does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fieldfare.algorithms.hadfl.agreed import blend
from fieldfare.algorithms.hadfl.holding import State
from fieldfare.algorithms.hadfl.messages import Broadcast, Whole
from fieldfare.algorithms.hadfl.widths import Widths, newer


def last_of(state: State, widths: Widths) -> tuple[int, ...]:
    """The last cycle in each band of the model."""
    return state.fresh or (state.applied,) * len(widths.bands)


def heard_in_part(state: State, body: Broadcast | Whole, widths: Widths) -> State:
    """Keep the means that are the newest about some band."""
    if not isinstance(body, Broadcast) or body.members or any(one.cycle == body.cycle for one in state.partial):
        return state
    cover, seen = widths.told(body.behind), set[int]()
    fresh = last_of(state, widths)
    if body.vector.shape != cover.where.shape or all(fresh[number] >= body.cycle for number in cover.numbers):
        return state
    kept: list[Broadcast] = []
    for one in sorted((*state.partial, body), key=lambda one: -one.cycle):
        about = widths.told(one.behind).numbers
        kept += [] if seen.issuperset(about) else [one]
        seen.update(about)
    return replace(state, partial=tuple(reversed(kept)))


def merged_in_part(state: State, widths: Widths, me: int, share: float) -> State:
    """The means that were broadcast, oldest first: blended into the part that this peer trains, taken elsewhere."""
    if not state.partial:
        return state
    mine, fresh = state.model.vector, last_of(state, widths)
    mean, taken, own = mine.copy(), np.zeros(len(mine), np.bool_), np.zeros(len(mine), np.bool_)
    own[widths.index(me)] = True
    version, applied = state.version, state.applied
    for one in state.partial:
        cover = widths.told(one.behind)
        news = np.array([fresh[number] < one.cycle for number in cover.numbers], np.bool_)[cover.band]
        where = cover.where[news]
        mean[where], taken[where] = one.vector[news], True
        fresh, applied = newer(widths, fresh, one.cycle, one.behind), max(applied, one.cycle)
        if own[where].any():
            version = share * one.version + (1.0 - share) * state.version
    told = np.where(own, blend(mean, mine, share), mean)
    model = state.model.replace(np.where(taken, told, mine).astype(np.float32))
    return replace(state, model=model, version=version, applied=applied, fresh=fresh, partial=())
