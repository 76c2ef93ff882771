"""The seam for papers whose replies carry more than a delta: how the leaves of a gather become one delta.

`FedAvg` holds a `Rule` and calls it once per round, before the server chain; so every rule composes with clipping,
momentum and the rest. Here: the protocol and the plain rule. Each paper's own rule is in the paper's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fieldfare.core.events import Gathered
from fieldfare.core.folds import Fold, Folded
from fieldfare.core.params import Params, View


class Rule(Protocol):
    """Frozen data with pure methods; its state is numbers, arrays and tuples, so that it can be stored."""

    def init(self, size: int) -> Any:
        """The state for a model of `size` parameters."""
        ...

    def folds(self) -> Mapping[str, Fold]:
        """Folds of the leaves besides "delta"."""
        ...

    def inputs(self, state: Any) -> Mapping[str, Any]:
        """Arrays sent to every client of the round."""
        ...

    def combine(self, delta: Folded, event: Gathered, state: Any, share: float) -> tuple[Folded, Any]:
        """The delta `[P]` for the chain, and the new state; `share` is accepted clients over all clients.

        Called only for a gather that holds every leaf; `event` is left untouched.
        """
        ...


def at_round(view: View, round_: int, model: Params) -> View:
    """The view of a round (from 1) on `model`, of one that is another every round (`at`), else itself."""
    at = getattr(view, "at", None)
    return view if at is None else at(round_, model)


@dataclass(frozen=True, slots=True)
class Plain:
    """The delta as it was folded: FedAvg, and all that differs from it in the chain or on the client only."""

    def init(self, size: int) -> None:
        return None

    def folds(self) -> Mapping[str, Fold]:
        return {}

    def inputs(self, state: None) -> Mapping[str, Any]:
        return {}

    def combine(self, delta: Folded, event: Gathered, state: None, share: float) -> tuple[Folded, None]:
        return delta, state
