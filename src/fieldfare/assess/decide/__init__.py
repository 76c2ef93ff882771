"""The decision: FLINT's workflow as data, gates with thresholds, the walk over what evidence there is."""

from __future__ import annotations
