"""What the name of a metric says about it: one rule for stopping, for records and for reports."""

from __future__ import annotations

import re

_LOWER = ("loss", "error", "perplexity", "deviance", "divergence", "nll")
_LOWER_WORDS = frozenset({"mse", "rmse", "mae", "mape", "rmsle", "logloss", "seconds", "bytes", "s"})


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of `metric` is the better one: losses, errors, times and bytes.

    >>> [lower_is_better(name) for name in ("val_mse", "federated_mae_mean", "log_loss", "accuracy", "virtual_s")]
    [True, True, True, False, True]
    """
    words = re.split(r"[^a-z0-9]+", metric.lower())
    return any(word.endswith(_LOWER) for word in words) or not _LOWER_WORDS.isdisjoint(words)
