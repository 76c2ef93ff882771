"""How many bytes a message's payload is. Invariant: a size depends on the payload alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from fieldfare.core.params import Params

_FIELDS: dict[type, tuple[str, ...]] = {}


def size_of(body: Any) -> int:
    """Bytes of a message's payload: arrays, bytes and text at their length, numbers at 8.

    >>> size_of({"x": np.zeros(3, np.float32), "y": (b"ab", 1.5)})
    24
    """
    kind: type = body.__class__
    if kind is int or kind is float:
        return 8
    if kind is str or kind is bytes:
        return len(body)
    if kind is tuple or kind is list:
        total = 0
        for value in body:
            total += size_of(value)
        return total
    if isinstance(body, np.ndarray):
        return body.nbytes
    names = _FIELDS.get(kind)
    if names is None:
        return _other(body)
    total = 0
    for name in names:
        total += size_of(getattr(body, name))
    return total


def _other(body: Any) -> int:
    match body:
        case None:
            return 0
        case str() | bytes():
            return len(body)
        case Params():
            return body.bytes
        case Mapping():
            parts = cast(Mapping[Any, Any], body).items()
            return sum(size_of(k) + size_of(v) for k, v in parts)
        case tuple() | list():
            return sum(size_of(v) for v in cast(Any, body))
        case _ if hasattr(body, "__dataclass_fields__"):
            _FIELDS[type(body)] = tuple(body.__dataclass_fields__)
            return size_of(body)
        case _:
            return 8
