"""Which way a net is trained here: what was asked for, what was measured on this machine, or what is there first.

Here: the choices of this process. Not here: measuring (`timing`). Invariant: with no choice made the first candidate
is taken, so that a process that never measures goes the way of another that does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fieldfare.core.errors import UsageError

PATHS = ("auto", "native", "stacked", "hand", "graph", "lockstep")
"""What may be asked for, by a net's `path=` or by FIELDFARE_PATH (which binds only nets that can go that way);
"lockstep-16" is "lockstep" in stacks of 16 clients."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The way a net takes; `rates`: clients per second on one thread of each way that was measured.

    `of`: what it was measured for: net, batches, optimiser, largest stack; "" of one that was not measured.
    """

    path: str
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    of: str = ""

    @property
    def why(self) -> str:
        """One clause for people."""
        if not self.rates:
            return f"nothing else computes in {self.of}" if self.of == "bfloat16" else "as the run began"
        ordered = sorted(self.rates.items(), key=lambda one: -one[1])
        told = (f"{name} {rate:,.0f}" if rate >= 100 else f"{name} {rate:.3g}" for name, rate in ordered)
        return f"measured here, clients/s on one thread: {', '.join(told)}"


_settled: dict[str, Choice] = {}
_without = False


def asked(path: str) -> str:
    """`path`, or where it is "auto" what FIELDFARE_PATH says."""
    if path != "auto":
        return path
    told = os.environ.get("FIELDFARE_PATH", "auto") or "auto"
    if not known(told):
        raise UsageError(f"FIELDFARE_PATH={told!r}: use one of {', '.join(PATHS)}, or lockstep-16.")
    return told


def known(path: str) -> bool:
    """Whether `path` may be asked for.

    >>> known("lockstep-16"), known("lockstep-0"), known("fastest")
    (True, False, False)
    """
    way, dash, stack = path.partition("-")
    sized = way == "lockstep" and stack.isdecimal() and stack.isascii() and 0 < int(stack) < 1 << 20
    return sized if dash else path in PATHS


def way_of(path: str) -> str:
    """`path` without the size of its stacks.

    >>> way_of("lockstep-16"), way_of("native")
    ('lockstep', 'native')
    """
    return path.partition("-")[0]


def stack_of(path: str) -> int | None:
    """How many clients go in one stack of `path`; None where that is not said.

    >>> stack_of("lockstep-16"), stack_of("lockstep")
    (16, None)
    """
    told = path.partition("-")[2]
    return int(told) if told else None


def settle(key: str, choice: Choice) -> None:
    """From now on, nets of this `key` go that way in this process."""
    _settled[key] = choice


def unsettle(key: str) -> None:
    """From now on, nets of this `key` go the first way there is."""
    _settled.pop(key, None)


def settled(key: str) -> Choice | None:
    """The choice that was made for nets of this `key`."""
    return _settled.get(key)


_TOLD = ("FIELDFARE_PATH", "FIELDFARE_NATIVE")


def tell() -> tuple[dict[str, str], dict[str, Choice]]:
    """What this process has been asked and has settled, for one elsewhere that computes for it."""
    return {name: os.environ.get(name, "") for name in _TOLD}, dict(_settled)


def hear(told: tuple[dict[str, str], dict[str, Choice]]) -> None:
    """Go the ways of the process that `tell` was called in."""
    os.environ.update(told[0])
    _settled.update(told[1])


@contextmanager
def without_core() -> Iterator[None]:
    """Inside, nets train one client at a time: what is declared of memory is of ways without core or stacks."""
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
    """One of `candidates` (a "lockstep" may have a size), the first unless another was asked for or settled."""
    if _without:
        return plain(candidates)
    told = asked(path)
    if way_of(told) in candidates:
        return told
    found = _settled.get(key)
    return found.path if found is not None and way_of(found.path) in candidates else candidates[0]


def plain(candidates: Sequence[str]) -> str:
    """The candidate that needs neither the core nor stacks in lockstep.

    >>> plain(("native", "torch", "lockstep"))
    'torch'
    """
    return next(one for one in candidates if one not in ("native", "lockstep"))
