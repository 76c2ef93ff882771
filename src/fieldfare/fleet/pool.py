"""What a selection rule is given, what it is told, what it is, and how it draws without replacement.

Here: `Pool`, `Reported`, the protocol `Selection`, and draws over columns. Not here: the rules (`selection`, `oort`,
`tiers`) and who may work at all, which the driver decides. Invariant: a choice depends on the rule's settings, its
state, the pool and the ask's numbers only, so it is the same on any driver and after any resume.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

State: TypeAlias = dict[str, Any]
"""Arrays, floats and ints by name, and nothing else: it is stored as it is."""

Draw: TypeAlias = Callable[[int, I64], F64]
"""`draw(stream, counters)`: one uniform in [0, 1) per counter, `[k]`; streams of one ask are independent."""


def draws(seed: int, *key: str | int) -> Draw:
    """The numbers of the ask `key` of a run: the same for the same (seed, key, stream, counter), on any driver.

    >>> import numpy as np
    >>> draws(0, "train", 7)(0, np.arange(3)).shape
    (3,)
    """

    def draw(stream: int, counters: I64) -> F64:
        return rng.uniforms(np.array([rng.derive(seed, "selection", *key, stream)], np.uint64), counters)

    return draw


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """The candidates of one ask: `ids` `[m]`, ascending; the driver has left out who may not work now.

    `examples` `[m]`: how much data each has. `seconds` `[m]`: the predicted time of this task on each. `now`: virtual
    seconds. `round`: number of the round (in an asynchronous run, of the model's version), from 1.
    `share_between(t0, t1)`: the share of each candidate's own span `[t0, t1]` (`[m]` each, seconds; spans before time
    zero too, as traces are tiled) in which it was available, `[m]`; None where every device always is. A driver may
    leave out (None) what the rule does not read (`reads`). `part`: what is asked for, as a part of a whole cohort; not
    1 where some of those at work are replaced, in an asynchronous run.
    """

    ids: I64
    examples: I64 | None = None
    seconds: F64 | None = None
    now: float = 0.0
    round: int = 1
    share_between: Callable[[F64, F64], F64] | None = None
    part: float = 1.0

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or not (self.ids[1:] > self.ids[:-1]).all():
            raise UsageError("Pool(ids=...): the candidates are not in ascending order of id, each once; sort them.")
        if self.round < 1:
            raise UsageError(f"Pool(round={self.round}): rounds count from 1.")
        for name, column in (("examples", self.examples), ("seconds", self.seconds)):
            if column is not None and len(column) != len(self.ids):
                raise UsageError(f"Pool({name}=...) has {len(column)} values for {len(self.ids)} candidates.")

    @property
    def size(self) -> int:
        """Number of candidates."""
        return len(self.ids)

    def serve(self, rule: Selection, count: int) -> None:
        """Refuse an ask for more devices than there are, or a pool without a column that the rule reads."""
        if not 0 <= count <= self.size:
            raise UsageError(f"{rule.name}: {count} devices are asked of {self.size} candidates; ask for no more.")
        for column in rule.reads:
            if column != "share_between" and getattr(self, column) is None:
                raise UsageError(f"the rule {rule.name!r} reads {column} of its candidates: give Pool({column}=...).")


@dataclass(frozen=True, slots=True, eq=False)
class Reported:
    """What asked devices came back with: `ids` `[k]`, different ones; `ok` `[k]` false where no update counted.

    `loss` `[k]`: mean training loss (nan: not known). `seconds` `[k]`: how long the task took (until it failed).
    `examples` `[k]`: examples trained on. `now`: virtual seconds. `round`: that of the pool they were chosen from.
    """

    ids: I64
    loss: F64
    seconds: F64
    examples: I64
    ok: Bools
    now: float = 0.0
    round: int = 1


class Selection(Protocol):
    """Who takes part: a frozen dataclass of settings with three pure functions over a state that can be stored.

    `choose` and `observe` may update `state` in place; what they return is the state from then on.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[str]]
    """What it reads of a pool: "examples", "seconds", "share_between"."""

    def init(self, n: int) -> State:
        """The state before the first ask, for devices 0..n-1."""
        ...

    def choose(self, state: State, count: int, pool: Pool, draw: Draw) -> tuple[I64, State]:
        """`count` different ids of the pool, ascending, and the state; more than there are is a `UsageError`."""
        ...

    def observe(self, state: State, reported: Reported) -> State:
        """The state after devices came back."""
        ...


def lowest(score: NDArray[Any], count: int, ties: NDArray[Any] | None = None) -> I64:
    """Positions of the `count` lowest scores, ascending; equal ones by `ties`, then by position. Cost O(m), no sort.

    >>> import numpy as np
    >>> lowest(np.array([3.0, 1.0, 2.0, 1.0]), 3).tolist()
    [1, 2, 3]
    """
    if count >= len(score):
        return np.arange(len(score))
    if count == 0:
        return np.empty(0, np.int64)
    last = np.partition(score, count - 1)[count - 1]
    under, level = np.flatnonzero(score < last), np.flatnonzero(score == last)
    missing = count - len(under)
    if missing < len(level):
        level = level[:missing] if ties is None else level[lowest(ties[level], missing)]
    return np.sort(np.concatenate([under, level]))


def weighted(weights: NDArray[Any], count: int, uniform: F64) -> I64:
    """Positions of `count` draws without replacement, each in proportion to `weights` `[m]` among those left.

    The smallest exponential keys -ln(1 - u) / w (Efraimidis & Spirakis, IPL 2006). Weight zero comes last, at random.
    """
    some = weights > 0
    keys = np.full(len(weights), np.inf)
    np.divide(-np.log1p(-uniform), weights, out=keys, where=some)
    return lowest(keys, count, uniform)


def alike(m: int, count: int, draw: Draw, stream: int = 0) -> I64:
    """`count` different positions of `range(m)`, all alike, ascending; cost O(count) while count <= m / 2."""
    if 2 * count > m:
        return lowest(draw(stream, np.arange(m)), count)
    want = count + count // 8 + 16
    while True:
        at = np.minimum((draw(stream, np.arange(want)) * m).astype(np.int64), m - 1) if m else np.empty(0, np.int64)
        first = np.unique(at, return_index=True)[1]
        if len(first) >= count:
            first.sort()
            return np.sort(at[first[:count]])
        want *= 2
