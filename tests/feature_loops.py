"""The point-in-time join as a plain loop, which the feature stores' joins are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def as_of(
    entities: Sequence[Row], rows: Sequence[Row], keys: Sequence[str], features: Sequence[str], *, time: str = "t_s",
    ttl_s: float | None = None, from_s: float | None = None, to_s: float | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """For each entity its features: of the newest row of its keys at or before its moment, the last of equal ones."""
    out: list[dict[str, Any]] = []
    for entity in entities:
        moment = entity["t_s"] if to_s is None else min(entity["t_s"], to_s)
        best: Row | None = None
        for row in rows:
            if any(row[key] != entity[key] for key in keys) or row[time] > moment:
                continue
            if (from_s is not None and row[time] < from_s) or (to_s is not None and row[time] > to_s):
                continue
            if best is None or row[time] >= best[time]:
                best = row
        fresh = best is not None and (ttl_s is None or moment - best[time] <= ttl_s)
        out.append({name: best[name] if fresh and best is not None else None for name in features})
    return out
