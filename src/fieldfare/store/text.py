"""Strict JSON for people and other programs: no NaN, no infinity, no Python-only values.

Not here: the exact form that a run is resumed from (`codec`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from math import isfinite
from pathlib import PurePath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError


def plain(value: Any) -> Any:
    """`value` as dicts with text keys, lists, text, numbers, bools and None; NaN and infinities become None.

    >>> plain({"loss": float("nan"), 3: (1, np.float32(0.5))})
    {'loss': None, '3': [1, 0.5]}
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(cast(NDArray[Any], value).tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key): plain(part) for key, part in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in cast(Iterable[Any], value)]
    if isinstance(value, PurePath):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    kind = type(cast(object, value)).__qualname__
    raise UsageError(f"a {kind} cannot be written as JSON: use numbers, text, lists, dicts or arrays.")


def _key(key: Any) -> str:
    if isinstance(key, tuple):
        return "/".join(map(str, cast(tuple[Any, ...], key)))
    return str(key)


def dumps(value: Any, indent: int | None = None) -> bytes:
    """Strict JSON, one line unless `indent` is given."""
    return json.dumps(plain(value), allow_nan=False, indent=indent, ensure_ascii=True).encode()
