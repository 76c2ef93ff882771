"""The feature catalogue: where a feature lives, what it costs a device to have it, which vocabulary to choose."""

from __future__ import annotations
