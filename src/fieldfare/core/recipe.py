"""How a thing was made, so that it can be made again with one argument changed.

Here: the record that `core.settings` keeps of a constructor's call, on what it gives. Not here: how a text becomes an
argument (`overrides`). Invariant: what `dataclasses.replace` makes of a recorded thing has no record, so a record never
tells of a thing that has been changed since.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

T = TypeVar("T")


class Recorded:
    """What a function with `settings` makes and keeps the record of its making, `made`: no field, and no part of `==`.

    >>> from fieldfare.algorithms import FedAdam
    >>> recipe_of(FedAdam(10, 5, lr=0.03)).arguments["lr"]
    0.03
    """

    __slots__ = ("made",)
    made: Recipe


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """The call `make(**arguments)`, defaults written out; `takes` names all that `make` could be given."""

    make: Callable[..., Any]
    arguments: Mapping[str, Any]
    takes: tuple[str, ...]

    def again(self, **changes: Any) -> Any:
        """The thing, made with these arguments changed."""
        return self.make(**{**self.arguments, **changes})


def recipe_of(thing: Any) -> Recipe | None:
    """How `thing` was made, if that is recorded."""
    return cast("Recipe | None", getattr(thing, "made", None)) if isinstance(thing, Recorded) else None


def recorded(thing: T, recipe: Recipe) -> T:
    """`thing` with its recipe, as a copy if it has one already; what keeps no record is given back as it is."""
    if not isinstance(thing, Recorded):
        return thing
    thing = copy.copy(thing) if recipe_of(thing) is not None else thing
    object.__setattr__(thing, "made", recipe)
    return thing
