"""When a gather is over: over-selection, stragglers and drop-outs as data, written once for all algorithms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fieldfare.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Quorum:
    """`need` replies (default: all asked) or `deadline_s` seconds after the ask, whichever is first.

    Drop-outs: who waits cannot know that a reply will never come. So a gather that lacks replies and has no deadline
    is over when the slowest client asked would have replied, drop-outs included; with a deadline it is over then.
    `late="drop"` throws later replies away; `late="next"` keeps them for the next `Run` of the same work,
    for algorithms that fold stale updates.
    """

    need: int | None = None
    deadline_s: float | None = None
    late: Literal["drop", "next"] = "drop"

    def __post_init__(self) -> None:
        if self.need is not None and self.need < 1:
            raise UsageError(f"Quorum(need={self.need}): a quorum needs at least one reply; use need >= 1.")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise UsageError(f"Quorum(deadline_s={self.deadline_s}): a deadline is a positive number of seconds.")


ALL = Quorum()


@dataclass(frozen=True, slots=True)
class Sample:
    """`count` different clients, drawn by the driver over the population's columns.

    `by`: name of a selection rule of the fleet ("uniform"). `where`: name of a boolean column, or None.
    """

    count: int
    where: str | None = None
    by: str = "uniform"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"Sample({self.count}): a cohort has at least one client; use count >= 1.")


@dataclass(frozen=True, slots=True)
class Everyone:
    """All clients of the population, in order of id."""
