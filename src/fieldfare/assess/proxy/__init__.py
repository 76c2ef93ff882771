"""Proxy data: what devices would hold, made of a central table; see `presets`, `share`, `write`, `statistics`."""

from __future__ import annotations
