"""The search over virtual time: which setting reaches the target when, what it costs devices, with trials and bands."""

from __future__ import annotations
