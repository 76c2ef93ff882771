"""The script of a `Loopback` and what it keeps: faults, crashes, messages under way, what is on a node's disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fieldfare.core.effects import Effect, Tag
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event
from fieldfare.testing.device import EffectId


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls the first `times` messages that match; None matches all.

    `kind`: "ask" (to a client), "reply" (from one), "event" (to a node). `do`: "lose" (asked or sent again `after_s`
    later, never if None), "delay" (by `after_s`), "repeat" (a second copy `after_s` later). A client that crashes
    before computing is a lost ask, one that crashes after it a lost reply. `node`: the asker, or the receiver.
    """

    do: Literal["lose", "delay", "repeat"]
    kind: Literal["ask", "reply", "event"]
    after_s: float | None = None
    node: str | None = None
    tag: Tag | None = None
    client: int | None = None
    times: int = 1

    def __post_init__(self) -> None:
        if self.after_s is None and (self.do != "lose" or self.kind == "event"):
            raise UsageError(f"Fault({self.do!r}, {self.kind!r}): say how much later, after_s=.")


@dataclass(frozen=True, slots=True)
class Crash:
    """Node `node` dies in its step number `step` (from 1): before the event is journaled, once it is ("journaled":
    no effect performed), or when all effects are; it comes back `after_s` later."""

    node: str
    step: int
    at: Literal["before", "journaled", "performed"]
    after_s: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """On its way to `node`: an event, or the reply at position `reply` of gather `id`; `about` is what it answers."""

    id: tuple[Any, ...]
    node: str
    event: Any = None
    reply: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """A message whose first byte is not at its receiver's link yet: its size, sender, number, and its last byte."""

    message: Message
    size: int
    src: str
    number: int
    last: float


@dataclass(frozen=True, slots=True, eq=False)
class Issued:
    """An effect: when it was issued, and the number its messages count from (None: not performed yet)."""

    effect: Effect
    now: float
    number: int | None


@dataclass(slots=True, eq=False)
class Node:
    """A node: what dies with it (`state`), and what is on its disk (all the rest)."""

    state: Any
    saved: Any
    steps: int = 0
    saved_steps: int = 0
    journal: list[tuple[float, Event, str]] = field(default_factory=list[Any])
    seen: set[tuple[Any, ...]] = field(default_factory=set[Any])
    issued: dict[EffectId, Issued] = field(default_factory=dict[EffectId, Issued])
    up: bool = True
    waiting: list[Message] = field(default_factory=list[Message])
