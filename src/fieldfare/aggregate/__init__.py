"""Pure reductions and server chains over parameter vectors.

`chain(clip(1.0), mean(), momentum(0.9), scale(0.5))` reads from left to right: row maps, one fold, transforms.
"""

from fieldfare.aggregate.chain import Chain, RowRule, Transform, chain, coverage, mean
from fieldfare.aggregate.optimise import adagrad, adam, bound, decay, momentum, patient, scale, yogi
from fieldfare.aggregate.robust import geometric_median, krum, median, mixed, trimmed_mean
from fieldfare.aggregate.rows import clip

__all__ = [
    "Chain", "RowRule", "Transform", "adagrad", "adam", "bound", "chain", "clip", "coverage", "decay",
    "geometric_median", "krum", "mean", "median", "mixed", "momentum", "patient", "scale", "trimmed_mean", "yogi",
]  # fmt: skip
