"""Three cases on made-up data, walked from a session log to a decision: `fieldfare assess demo`."""

from __future__ import annotations
