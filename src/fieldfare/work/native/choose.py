"""Which way a net is trained here: what was asked for, what was measured on this machine, or what is there first.

Here: the choices of this process. Not here: measuring (`timing`). Invariant: with no choice made the first candidate
is taken, so that a process that never measures gives the same bits as another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fieldfare.core.errors import UsageError

PATHS = ("auto", "native", "stacked", "hand", "graph", "lockstep")
"""What may be asked for, by a net's `path=` or by FIELDFARE_PATH (which binds only nets that can go that way)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The way a net takes; `rates`: clients per second on one thread of each way that was measured."""

    path: str
    rates: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def why(self) -> str:
        """One clause for people."""
        if not self.rates:
            return "as the run began"
        ordered = sorted(self.rates.items(), key=lambda one: -one[1])
        return "measured here, clients/s on one thread: " + ", ".join(f"{name} {rate:,.3g}" for name, rate in ordered)


_settled: dict[str, Choice] = {}
_without = False


def asked(path: str) -> str:
    """`path`, or where it is "auto" what FIELDFARE_PATH says."""
    if path != "auto":
        return path
    told = os.environ.get("FIELDFARE_PATH", "auto") or "auto"
    if told not in PATHS:
        raise UsageError(f"FIELDFARE_PATH={told!r}: use one of {', '.join(PATHS)}.")
    return told


def settle(key: str, choice: Choice) -> None:
    """From now on, nets of this `key` go that way in this process."""
    _settled[key] = choice


def settled(key: str) -> Choice | None:
    """The choice that was made for nets of this `key`."""
    return _settled.get(key)


@contextmanager
def without_core() -> Iterator[None]:
    """Inside, no net goes the first of several ways: what is declared of memory is of the ways without the core."""
    global _without
    before, _without = _without, True
    try:
        yield
    finally:
        _without = before


@contextmanager
def taking(key: str, path: str) -> Iterator[None]:
    """Inside, nets of this `key` go that way."""
    before = _settled.get(key)
    _settled[key] = Choice(path)
    try:
        yield
    finally:
        if before is None:
            del _settled[key]
        else:
            _settled[key] = before


def chosen(key: str, candidates: Sequence[str], path: str = "auto") -> str:
    """One of `candidates`, the first unless another was asked for or settled."""
    if _without:
        return candidates[-1]
    told = asked(path)
    if told in candidates:
        return told
    found = _settled.get(key)
    return found.path if found is not None and found.path in candidates else candidates[0]
