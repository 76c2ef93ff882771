"""HADFL: unlike devices train by their own speed and average in rings, with no server in the data path.

Cao, Lian, Liu, Zhu & Ji, DAC 2021 (arXiv 2111.08274). Only its abstract and summaries were at hand, so what is marked
"our reading" fills a gap and may not be what the authors did. Roles: `coordinator` (strategy, supervision, back-ups)
and `peer`, made together by `nodes`. Pure parts: `versions` (prediction), `periods` (local steps), `draw` (who
synchronises), `ring` (chunks), `session` and `member` (one ring as its members live it), `agreed` (what all can redo).
Beside it `gossip` and `graph`: baselines without a coordinator. `methods`: all of them as a job names them.
"""

from __future__ import annotations

from fieldfare.algorithms.hadfl.methods import (
    HADFL,
    AllReduce,
    DecentralisedFedAvg,
    GraphGossip,
    PacedRing,
    PairGossip,
)  # fmt: skip

__all__ = ["HADFL", "AllReduce", "DecentralisedFedAvg", "GraphGossip", "PacedRing", "PairGossip"]
