"""The devices a model is meant for: kinds of device with their share of users and a benchmark's score.

Here: the table and how a measured device is found in it. Not here: times. Invariants: shares add up to 1; a kind that
has no system or version stands for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.fleet.columns import Text, read_columns, words_of


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of device: "" is any system or version; `score` None where no benchmark knows it."""

    model: str
    os: str = ""
    os_version: str = ""
    score: float | None = None
    share: float = 1.0

    @property
    def name(self) -> str:
        return " ".join(one for one in (self.model, self.os, self.os_version) if one)

    def holds(self, model: str, os: str, version: str) -> bool:
        """Whether a measured device is of this kind; case does not matter."""
        pairs = ((self.model, model), (self.os, os), (self.os_version, version))
        return all(mine.lower() in ("", its.lower()) for mine, its in pairs)


def population(rows: Iterable[Kind]) -> tuple[Kind, ...]:
    """Kinds with shares that add up to 1; the same kind twice, or a share that is none, is refused."""
    found = tuple(rows)
    seen: set[tuple[str, str, str]] = set()
    for one in found:
        key = one.model.lower(), one.os.lower(), one.os_version.lower()
        if key in seen or not one.model:
            raise UsageError(f"the population names {one.name or 'a device without a model'} twice or not at all.")
        seen.add(key)
        if not (np.isfinite(one.share) and one.share > 0):
            raise UsageError(f"the population gives {one.name} a share of {one.share}: use a number above 0.")
        if one.score is not None and not (np.isfinite(one.score) and one.score > 0):
            raise UsageError(f"the population gives {one.name} a score of {one.score}: use a number above 0, or none.")
    total = sum(one.share for one in found)
    return tuple(Kind(one.model, one.os, one.os_version, one.score, one.share / total) for one in found)


def read_population(place: str | Path) -> tuple[Kind, ...]:
    """Of a Parquet or CSV table: `device_model`, and any of `os`, `os_version`, `ai_score`, `share`."""
    table = read_columns(place)
    unknown = sorted(set(table) - {"device_model", "os", "os_version", "ai_score", "share"})
    if "device_model" not in table or unknown:
        raise UsageError(
            f"{Path(place).name}: a population has device_model and any of os, os_version, ai_score, share"
            + (f"; it does not know {unknown[0]!r}." if unknown else ".")
        )
    rows = len(table["device_model"])
    if rows == 0:
        raise UsageError(f"{Path(place).name} has no rows: name at least one device_model.")
    texts = {name: _texts(table.get(name), rows) for name in ("device_model", "os", "os_version")}
    scores, shares = _numbers(table.get("ai_score"), rows, place), _numbers(table.get("share"), rows, place)
    if any(one is None for one in shares) and any(one is not None for one in shares):
        raise UsageError(f"{Path(place).name}: some devices have a share and some have none; give all of them one.")
    return population(
        Kind(texts["device_model"][i], texts["os"][i], texts["os_version"][i], scores[i], _share(shares[i]))
        for i in range(rows)
    )


def _share(value: float | None) -> float:
    return 1.0 if value is None else value


def _texts(column: Any, rows: int) -> list[str]:
    if column is None:
        return [""] * rows
    if isinstance(column, Text):
        return words_of(column)
    values = np.asarray(column).tolist()  # versions such as 12 are read as numbers
    return ["" if one != one else f"{one:g}" if isinstance(one, float) else str(one) for one in values]


def _numbers(column: Any, rows: int, place: str | Path) -> list[float | None]:
    if column is None:
        return [None] * rows
    if isinstance(column, Text):
        raise UsageError(f"{Path(place).name}: ai_score and share are numbers.")
    return [None if one != one else float(one) for one in np.asarray(column, np.float64).tolist()]
