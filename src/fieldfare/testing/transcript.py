"""What happened in a run, as digests: every step's event and effects, in order, on any driver.

Here: `digest`, `Recorded` (a wrapper that writes down the steps of an algorithm) and `Transcript`. Not here: drivers.
Invariant: two values have one digest exactly when they hold the same bits in the same structure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np

from fieldfare.core.algorithm import Algorithm, Context
from fieldfare.core.effects import Effect
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event
from fieldfare.core.params import Params

E = TypeVar("E")


def digest(value: Any) -> str:
    """Sixteen hex digits of everything in `value`: arrays by dtype, shape and bytes, dataclasses by name and fields.

    Cost: one pass over the bytes. Functions count by name; an object that is none of these is a `UsageError`.

    >>> digest({"a": np.zeros(2)}) == digest({"a": np.zeros(2)}) != digest({"a": np.zeros(3)})
    True
    """
    out = hashlib.blake2b(digest_size=8)
    _write(value, out.update)
    return out.hexdigest()


def _write(value: Any, put: Callable[[bytes], None]) -> None:
    match value:
        case None | bool() | int() | str():
            put(f"{type(value).__name__} {value!r};".encode())
        case float():
            put(f"float {value.hex()};".encode())
        case bytes():
            put(f"bytes {len(value)};".encode() + value)
        case np.ndarray():
            put(f"array {value.dtype.str} {value.shape};".encode())
            put(np.ascontiguousarray(value).tobytes())
        case np.generic():
            _write(np.asarray(value), put)
        case Mapping():
            put(f"map {len(value)};".encode())
            for key in sorted(value, key=lambda key: (type(key).__name__, key)):
                _write(key, put)
                _write(value[key], put)
        case tuple() | list():
            put(f"{type(value).__name__} {len(value)};".encode())
            for part in value:
                _write(part, put)
        case _ if is_dataclass(value) and not isinstance(value, type):
            put(f"{type(value).__qualname__} {len(fields(value))};".encode())
            for f in fields(value):
                _write(getattr(value, f.name), put)
        case _ if callable(value) and hasattr(value, "__qualname__"):
            put(f"function {value.__qualname__};".encode())
        case _:
            raise UsageError(f"a {type(value).__qualname__} has no digest: use numbers, text, arrays or dataclasses.")


@dataclass(frozen=True, slots=True)
class Step:
    """One step: who, when (seconds), and digests of the event and of the effects; `kind` names the event."""

    node: str
    now: float
    kind: str
    event: str
    effects: str


@dataclass(slots=True, eq=False)
class Transcript:
    """The steps of a run so far, and with `keep` the events and effects themselves."""

    steps: list[Step] = field(default_factory=list[Step])
    keep: bool = False
    kept: list[tuple[str, Event, tuple[Effect, ...]]] = field(default_factory=list[Any])

    def of(self, node: str) -> list[Step]:
        """The steps of one node."""
        return [step for step in self.steps if step.node == node]

    def timeless(self) -> list[Step]:
        """The steps without their times, for runs that differ in nothing else."""
        return [replace(step, now=0.0) for step in self.steps]

    def events(self, kind: type[E], node: str | None = None) -> list[E]:
        """The events of one type that were kept, in order, of one node or all."""
        return [event for me, event, _ in self.kept if isinstance(event, kind) and node in (None, me)]

    def lines(self) -> list[str]:
        """One line per step, as golden files hold them."""
        return [f"{s.now:.9g} {s.node} {s.kind} {s.event} {s.effects}" for s in self.steps]


@dataclass(frozen=True, slots=True)
class Recorded:
    """`inner`, whose every step is written to `transcript`; it changes nothing."""

    inner: Algorithm
    transcript: Transcript

    def init(self, model: Params) -> Any:
        return self.inner.init(model)

    def step(self, state: Any, event: Event, ctx: Context) -> tuple[Any, Sequence[Effect]]:
        state, effects = self.inner.step(state, event, ctx)
        kind = type(event).__name__
        self.transcript.steps.append(Step(ctx.me, ctx.now, kind, digest(event), digest(tuple(effects))))
        if self.transcript.keep:
            self.transcript.kept.append((ctx.me, event, tuple(effects)))
        return state, effects
