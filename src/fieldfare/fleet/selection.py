"""Who takes part: the rules by name, and those that fit in a few lines.

Here: `Uniform`, `Available`, `PowerOfChoice`, `LeastAvailable`, `Rested`, the table `SELECTIONS` and `selection_of`.
Not here: `Oort` (`oort`), `Tiers` (`tiers`), the protocol (`pool`). Invariant: a rule ranks the candidates that it is
given; who may work at all is the driver's business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings
from fieldfare.fleet.oort import Oort
from fieldfare.fleet.pool import F64, I64, Draw, Pool, Reported, Selection, State, alike, draws, lowest, weighted
from fieldfare.fleet.tiers import Tiers, tiers_of

__all__ = [
    "SELECTIONS", "Available", "Draw", "LeastAvailable", "Oort", "Pool", "PowerOfChoice", "Reported", "Rested", "Rule",
    "Selection", "State", "Tiers", "Uniform", "draws", "selection_of", "tiers_of",
]  # fmt: skip

DAY_S = 86400.0


@settings
@dataclass(frozen=True, slots=True)
class Uniform:
    """All candidates alike (McMahan et al., AISTATS 2017); cost O(count) while that is at most half the candidates."""

    name: ClassVar[str] = "uniform"
    reads: ClassVar[frozenset[str]] = frozenset()

    def init(self, n: int) -> State:
        """Nothing to remember."""
        return {}

    def choose(self, state: State, count: int, pool: Pool, draw: Draw) -> tuple[I64, State]:
        """`count` ids of the pool, ascending."""
        pool.serve(self, count)
        return pool.ids[alike(pool.size, count, draw)], state

    def observe(self, state: State, reported: Reported) -> State:
        """Nothing to learn."""
        return state


@settings
@dataclass(frozen=True, slots=True)
class Available:
    """Candidates in proportion to the share of their own predicted task for which they will be available.

    A device expected to stay to the end of its task has weight 1, one expected to leave half-way 1/2; one expected to
    be gone at once comes after all others. `sight="day-before"` expects what the device did in the same span one day
    earlier, which a server can know; `"ahead"` looks at the trace itself: no server can, it bounds what a forecast may
    gain. No paper: the plainest rule that avoids interrupted tasks. Where devices are always on, all are alike.
    """

    sight: Literal["day-before", "ahead"] = "day-before"

    name: ClassVar[str] = "available"
    reads: ClassVar[frozenset[str]] = frozenset({"seconds", "share_between"})

    def init(self, n: int) -> State:
        """Nothing to remember."""
        return {}

    def choose(self, state: State, count: int, pool: Pool, draw: Draw) -> tuple[I64, State]:
        """`count` ids of the pool, ascending; cost O(m)."""
        pool.serve(self, count)
        if pool.share_between is None:
            return pool.ids[alike(pool.size, count, draw)], state
        assert pool.seconds is not None
        begin = np.full(pool.size, pool.now - (DAY_S if self.sight == "day-before" else 0.0))
        share = pool.share_between(begin, begin + pool.seconds)
        return pool.ids[weighted(share, count, draw(0, pool.ids))], state

    def observe(self, state: State, reported: Reported) -> State:
        """Nothing to learn."""
        return state


@settings
@dataclass(frozen=True, slots=True)
class PowerOfChoice:
    """Of `candidates` drawn by data size, those with the highest loss.

    Cho, Wang & Joshi, "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice Selection
    Strategies", 2020 (arXiv 2010.01243), section 4: d candidates without replacement with probability p_k = n_k / n,
    then the m of them with the highest local loss F_k(w). `candidates` is d for a whole cohort (None: twice the devices
    asked), and where a part of one is replaced the same part of d; never fewer than asked, never more than there are.

    Our departure: the loss is the last one that a device told with an update, as in the authors' own variant rpow-d,
    so that no device computes or sends anything beforehand. One that never told counts as infinite, and comes first;
    ties are broken at random. A device without examples is a candidate when no others are left.
    """

    candidates: int | None = None

    name: ClassVar[str] = "power-of-choice"
    reads: ClassVar[frozenset[str]] = frozenset({"examples"})

    def __post_init__(self) -> None:
        if self.candidates is not None and self.candidates < 1:
            raise UsageError(f"PowerOfChoice(candidates={self.candidates}): use a whole number of at least 1.")

    def init(self, n: int) -> State:
        """The last loss told by each device `[n]`; inf: none."""
        return {"loss": np.full(n, np.inf, np.float32)}

    def choose(self, state: State, count: int, pool: Pool, draw: Draw) -> tuple[I64, State]:
        """`count` ids of the pool, ascending; cost O(m)."""
        pool.serve(self, count)
        assert pool.examples is not None
        wanted = 2 * count if self.candidates is None else math.ceil(round(self.candidates * pool.part, 9))
        many = max(count, min(wanted, pool.size))
        among = pool.ids[weighted(pool.examples, many, draw(0, pool.ids))]
        return among[lowest(-state["loss"][among], count, draw(1, among))], state

    def observe(self, state: State, reported: Reported) -> State:
        """The losses told with updates that counted."""
        told = reported.ok & np.isfinite(reported.loss)
        state["loss"][reported.ids[told]] = reported.loss[told]
        return state


@settings
@dataclass(frozen=True, slots=True)
class LeastAvailable:
    """Those first who will hardly be there in the next round: the others can still be asked then.

    Abdelmoniem, Sahu, Canini & Fahmy, "REFL: Resource-Efficient Federated Learning", EuroSys 2023, intelligent
    participant selection: candidates in ascending order of the chance that they are available within [mu, 2 mu] from
    now, ties at random; mu_t = (1 - a) D_(t-1) + a mu_(t-1) with `smoothing` a, over the durations D of rounds.
    A device whose update counted rests for `rest_rounds` rounds; where too few others are there, those that have
    rested longest fill the cohort.

    Our departures. Each device of REFL forecasts for itself; here the forecast is the share of the same span one day
    earlier in which its trace says that it was available. D is the longest task among the updates that counted (in an
    asynchronous run: each task); the first mu is the median predicted task of the candidates.
    """

    smoothing: float = 0.25
    rest_rounds: int = 5

    name: ClassVar[str] = "least-available"
    reads: ClassVar[frozenset[str]] = frozenset({"seconds", "share_between"})

    def __post_init__(self) -> None:
        if not 0.0 <= self.smoothing < 1.0:
            raise UsageError(f"LeastAvailable(smoothing={self.smoothing}): use a number from 0 to below 1.")
        if self.rest_rounds < 0:
            raise UsageError(f"LeastAvailable(rest_rounds={self.rest_rounds}): use a whole number not below 0.")

    def init(self, n: int) -> State:
        """The round of each device's last update `[n]` (0: none), and mu in seconds (0: no round yet)."""
        return {"round": np.zeros(n, np.int32), "mu_s": 0.0}

    def choose(self, state: State, count: int, pool: Pool, draw: Draw) -> tuple[I64, State]:
        """`count` ids of the pool, ascending; cost O(m)."""
        pool.serve(self, count)
        assert pool.seconds is not None
        order: F64 = np.zeros(pool.size)
        if pool.share_between is not None and count < pool.size:
            mu = state["mu_s"] or float(np.median(pool.seconds))
            begin = np.full(pool.size, pool.now + mu - DAY_S)
            order = np.round(pool.share_between(begin, begin + mu), 9)  # what differs by rounding alone is a tie
        last = state["round"][pool.ids]
        rest = np.where(last > 0, last + self.rest_rounds - pool.round + 1, 0)
        order = np.where(rest > 0, 1.0 + rest, order)
        return pool.ids[lowest(order, count, draw(0, pool.ids))], state

    def observe(self, state: State, reported: Reported) -> State:
        """Who rests from now on, and mu."""
        ok = reported.ok
        if ok.any():
            longest = float(reported.seconds[ok].max())
            a = self.smoothing if state["mu_s"] else 0.0
            state["mu_s"] = (1.0 - a) * longest + a * state["mu_s"]
            state["round"][reported.ids[ok]] = reported.round
        return state


@settings
@dataclass(frozen=True, slots=True)
class Rested:
    """Those who took part least often so far, ties by chance: everybody has a turn before anybody has two.

    FLINT's arrival-driven selection takes each session once (Wang et al., MLSys 2023, section 3.4). Departure: turns
    are counted by device, and whoever has had one is asked again while nobody else is there.
    """

    name: ClassVar[str] = "rested"
    reads: ClassVar[frozenset[str]] = frozenset()

    def init(self, n: int) -> State:
        """How often each device was asked `[n]`."""
        return {"times": np.zeros(n, np.int32)}

    def choose(self, state: State, count: int, pool: Pool, draw: Draw) -> tuple[I64, State]:
        """`count` ids of the pool, ascending; cost O(m)."""
        pool.serve(self, count)
        return pool.ids[lowest(state["times"][pool.ids], count, draw(0, pool.ids))], state

    def observe(self, state: State, reported: Reported) -> State:
        """A turn for everybody who was asked, whatever came of it."""
        np.add.at(state["times"], reported.ids, 1)
        return state


class Rule(NamedTuple):
    """A registered rule: the class of its settings, what it does in one line, where it is from."""

    settings: type[Selection]
    summary: str
    paper: str


SELECTIONS: dict[str, Rule] = {
    "uniform": Rule(Uniform, "all candidates alike", "McMahan et al., AISTATS 2017, arXiv 1602.05629"),
    "available": Rule(Available, "in proportion to how much of its task a device is expected to stay for", "none"),
    "oort": Rule(Oort, "high loss and high speed first, with exploration", "Lai et al., OSDI 2021, arXiv 2010.06081"),
    "power-of-choice": Rule(
        PowerOfChoice, "the highest losses among candidates drawn by data size", "Cho et al. 2020, arXiv 2010.01243"
    ),
    "least-available": Rule(
        LeastAvailable, "those first who will hardly be there later",
        "Abdelmoniem et al. (REFL), EuroSys 2023, arXiv 2111.01108",
    ),
    "rested": Rule(Rested, "those who took part least often so far", "after Wang et al. (FLINT), MLSys 2023"),
    "tiers": Rule(Tiers, "one tier of like speed at a time", "Chai et al. (TiFL), HPDC 2020, arXiv 2001.09249"),
}  # fmt: skip


def selection_of(by: str | Selection) -> Selection:
    """The rule of that name with its defaults, or the rule itself; an unknown name is a `UsageError`.

    >>> selection_of("oort").name
    'oort'
    """
    if not isinstance(by, str):
        if isinstance(by, type) or not all(hasattr(by, part) for part in ("init", "choose", "observe", "name")):
            raise UsageError(
                f"by={by!r} is no selection rule: give a name ({', '.join(SELECTIONS)}) or a rule's settings."
            )
        return by
    if by not in SELECTIONS:
        close = get_close_matches(by, SELECTIONS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(SELECTIONS)}."
        raise UsageError(f"by={by!r}: no selection rule has this name; {hint}")
    return SELECTIONS[by].settings()
