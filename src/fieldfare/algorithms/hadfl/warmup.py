"""Negotiation as a peer lives it: some steps to time, a link to time, and the profile that comes of them.

Invariant: nothing here depends on what training or a payload contains, but for the largest change per step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fieldfare.algorithms.hadfl.agreed import peak
from fieldfare.algorithms.hadfl.holding import State
from fieldfare.algorithms.hadfl.messages import Ping, Pong, Profile
from fieldfare.algorithms.hadfl.periods import typical
from fieldfare.core.effects import Effect, Send
from fieldfare.core.params import Params

RATE = 0.1
"""The share of the learning rate that warm-up trains at."""

_TRIPS = 2
"""There and back without a payload, then with one."""


def ping(state: State, me: str, now: float, size: int) -> tuple[State, tuple[Effect, ...]]:
    """Ask the next peer in the roster for its part in a trip: of nothing at first, then of `size` bytes."""
    if len(state.trips) >= _TRIPS or len(state.peers) < 2 or not size:
        return state, ()
    neighbour = state.peers[(state.peers.index(me) + 1) % len(state.peers)]
    payload = np.zeros(size if state.trips else 0, np.uint8)
    return replace(state, pinged=now), (Send(neighbour, Ping(len(state.trips), payload)),)


def came_back(state: State, body: Pong, me: str, now: float, size: int) -> tuple[State, tuple[Effect, ...]]:
    """A trip is over; the next one."""
    if body.serial != len(state.trips):
        return state, ()
    return ping(replace(state, trips=(*state.trips, now - state.pinged)), me, now, size)


def probed(state: State, size: int) -> bool:
    """Whether all trips are over, or none were wanted."""
    return not size or len(state.trips) >= _TRIPS or len(state.peers) < 2


def link(trips: Sequence[float], size: int) -> tuple[float, float]:
    """Seconds of latency and bytes per second, from two trips both ways; zeros where there were none.

    >>> link([0.2, 1.2], 100)
    (0.1, 200.0)
    """
    if len(trips) < _TRIPS:
        return 0.0, 0.0
    empty, full = trips[0], trips[1]
    return empty / 2.0, 2.0 * size / (full - empty) if full > empty else math.inf


def timed(
    state: State, seconds: float, steps: int, weight: float, model: Params | None, rate: float, keep: bool
) -> State:
    """A training of the warm-up is over, at the share `rate` of the learning rate.

    `keep`: the next one goes on from its `model`.
    """
    change = 0.0 if model is None else peak(model.vector - state.model.vector) / (rate * steps)
    state = replace(
        state, pieces=(*state.pieces, seconds / steps), change=max(change, state.change), examples=max(weight, 1.0)
    )  # fmt: skip
    return replace(state, model=model) if keep and model is not None else state


def profile(state: State, batch_size: int, size: int, deltas: bool) -> Profile:
    """What the coordinator is told."""
    middle, spread = typical(state.pieces[1:])
    return Profile(
        middle, spread, len(state.pieces) - 1, math.ceil(state.examples / batch_size),
        state.change if deltas else peak(state.model.vector), state.examples, *link(state.trips, size),
    )  # fmt: skip
