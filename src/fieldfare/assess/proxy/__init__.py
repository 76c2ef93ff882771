"""Proxy data: what devices would hold, made of a central table; see `presets`, `share`, `write`, `statistics`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fieldfare.assess.proxy.write import Config, build, federated

__all__ = ["Config", "build", "federated"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fieldfare.assess.proxy import write

    return getattr(write, name)
