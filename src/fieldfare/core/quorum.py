"""When a gather is over: over-selection, stragglers and drop-outs as data, written once for all algorithms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fieldfare.core.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Staleness:
    """How much a reply counts that is tau versions old: a factor s(tau) on its weight, with s(0) = 1.

    `rule`: "constant" (1), "polynomial" ((1 + tau)**-a; FedBuff: a = 1/2, Nguyen et al., AISTATS 2022, section 5),
    "hinge" (1 up to b, then 1 / (a (tau - b) + 1); Xie, Koyejo & Gupta, 2019, section 5.2). `limit`: replies older
    than that are not counted at all, but missing as "stale".
    """

    rule: Literal["constant", "polynomial", "hinge"] = "polynomial"
    a: float = 0.5
    b: float = 4.0
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.rule not in ("constant", "polynomial", "hinge"):
            raise UsageError(f"Staleness(rule={self.rule!r}): use 'constant', 'polynomial' or 'hinge'.")
        if not 0.0 <= self.a <= 100.0 or not 0.0 <= self.b <= 1e9:
            raise UsageError(f"Staleness(a={self.a}, b={self.b}): use numbers >= 0.")
        if self.limit is not None and self.limit < 0:
            raise UsageError(f"Staleness(limit={self.limit}): use a number of versions >= 0, or None.")

    def factor(self, tau: NDArray[np.int64]) -> NDArray[np.float64]:
        """s(tau), `[n]`.

        >>> Staleness().factor(np.array([0, 3])).tolist()
        [1.0, 0.5]
        """
        t = tau.astype(np.float64)
        match self.rule:
            case "constant":
                return np.ones(len(t))
            case "polynomial":
                return (1.0 + t) ** -self.a
            case _:
                return 1.0 / (self.a * np.maximum(t - self.b, 0.0) + 1.0)


@dataclass(frozen=True, slots=True)
class Quorum:
    """`need` replies (default: all asked) or `deadline_s` seconds after the ask, whichever is first.

    Without a deadline a gather that lacks replies is over when the last client asked would have replied, those that
    dropped out included: who waits cannot know that a reply will never come. `timeout_s`: a client gives up a task
    that takes longer. `late="drop"` throws later replies away. `late="next"` keeps them for the next `Run` of the same
    work by the same node, where they count by `stale`: their age is the number of such Runs begun since their own; a
    client that is at work, or was already asked in this Run, is not asked, so where clients are scarce fewer are asked.
    `refill`: while the gather is open, whoever ends, in whatever way, is replaced by a client asked for this Run, so
    that as many as `on` says are always at work, those of earlier Runs included (needs `late="next"`).
    """

    need: int | None = None
    deadline_s: float | None = None
    late: Literal["drop", "next"] = "drop"
    refill: bool = False
    stale: Staleness = Staleness()
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.need is not None and self.need < 1:
            raise UsageError(f"Quorum(need={self.need}): a quorum needs at least one reply; use need >= 1.")
        for name in ("deadline_s", "timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"Quorum({name}={value}): use a positive number of seconds.")
        if self.refill and self.late != "next":
            raise UsageError(
                "Quorum(refill=True): replaced clients are still at work when the gather is over, so their "
                "replies belong to the next: use late='next'."
            )
        if self.refill and self.need is None and self.deadline_s is None:
            raise UsageError("Quorum(refill=True) without need or deadline_s is never over: give one.")


ALL = Quorum()


@dataclass(frozen=True, slots=True)
class Sample:
    """`count` different clients, drawn by the driver over the population's columns.

    `by`: a selection rule of the fleet, or its name ("uniform"; see `fleet.selection`). `where`: name of a boolean
    column, or None.
    """

    count: int
    where: str | None = None
    by: Any = "uniform"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"Sample({self.count}): a cohort has at least one client; use count >= 1.")


@dataclass(frozen=True, slots=True)
class Everyone:
    """All clients of the population, in order of id."""
