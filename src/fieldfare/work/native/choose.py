"""Which way a net is trained here: what was asked for, what was measured on this machine, or what is there first.

Here: the table of choices of this process. Not here: measuring (`timing`). Invariant: with no choice made the first
candidate is taken, so that a process that never measures gives the same bits as another.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from fieldfare.core.errors import UsageError

PATHS = ("auto", "native", "stacked", "hand", "graph")
"""What may be asked for, by a net's `path=` or FIELDFARE_PATH."""

_settled: dict[str, str] = {}


def asked(path: str) -> str:
    """`path`, or where it is "auto" what FIELDFARE_PATH says."""
    if path != "auto":
        return path
    told = os.environ.get("FIELDFARE_PATH", "auto") or "auto"
    if told not in PATHS:
        raise UsageError(f"FIELDFARE_PATH={told!r}: use one of {', '.join(PATHS)}.")
    return told


def settle(key: str, path: str) -> None:
    """From now on, nets of this `key` take `path` in this process."""
    _settled[key] = path


def chosen(key: str, candidates: Sequence[str], path: str = "auto") -> str:
    """One of `candidates`, the first unless another was asked for or settled."""
    told = asked(path)
    if told in candidates:
        return told
    found = _settled.get(key)
    return found if found in candidates else candidates[0]
