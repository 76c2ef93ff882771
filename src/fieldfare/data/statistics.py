"""What a federated data set looks like, in numbers: sizes, label skew, shapes.

Here: pure functions of a `Federated`. Not here: drawing them. Invariant: no Python loop over clients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError

if TYPE_CHECKING:
    from fieldfare.data.federated import Federated

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
_PIECE = 1 << 22  # labels counted together
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def label_counts(fed: Federated, column: str = "y") -> I64:
    """Labels per client and class, int64 `[N, classes]`; every step of a sequence label counts.

    Memory: 8 bytes x N x classes. A `UsageError` where the data has no classes.
    """
    if fed.classes is None or column not in fed.columns:
        raise UsageError(
            f"label_counts needs column {column!r} and a number of classes, got columns {sorted(fed.columns)} and "
            f"classes={fed.classes}; pass classes=... when the data is made."
        )
    y, classes = fed.columns[column], fed.classes
    out = np.zeros((fed.n_clients, classes), np.int64)
    start = 0
    while start < fed.n_clients:
        limit = fed.offsets[start] + _PIECE
        stop = max(start + 1, int(np.searchsorted(fed.offsets, limit, "right")) - 1)
        rows = fed.rows[fed.offsets[start] : fed.offsets[stop]]
        labels = y[rows].reshape(len(rows), -1).astype(np.int64)
        client = np.repeat(np.arange(stop - start), np.diff(fed.offsets[start : stop + 1]))
        cells = (client[:, None] * classes + labels).reshape(-1)
        out[start:stop] = np.bincount(cells, minlength=(stop - start) * classes).reshape(-1, classes)
        start = stop
    return out


def js_divergence(counts: I64) -> F64:
    """Jensen-Shannon divergence of each row's label distribution to the pooled one, in bits, float64 `[N]`.

    0: the global mix; at most 1 (Lin 1991, IEEE Trans. Inf. Theory 37). A row of zeros gives 0.

    >>> js_divergence(np.array([[4, 4], [1, 1]])).tolist()
    [0.0, 0.0]
    """
    total = counts.sum(axis=1, keepdims=True)
    p = counts / np.maximum(total, 1)
    q = np.broadcast_to(counts.sum(axis=0) / max(int(counts.sum()), 1), p.shape)
    m = 0.5 * (p + q)
    js = 0.5 * (_relative_entropy(p, m) + _relative_entropy(q, m))
    return np.where(total[:, 0] > 0, np.clip(js, 0.0, 1.0), 0.0)


def _relative_entropy(p: F64, m: F64) -> F64:
    log_ratio = np.zeros_like(p)
    np.log2(np.divide(p, m, out=np.ones_like(p), where=p > 0), out=log_ratio)
    return (p * log_ratio).sum(axis=1)


def gini(sizes: I64) -> float:
    """Gini coefficient of the sizes: 0 when all are equal, towards 1 when one client has everything.

    >>> gini(np.array([5, 5, 5])), gini(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    ordered = np.sort(sizes).astype(np.float64)
    n, total = len(ordered), ordered.sum()
    if total == 0:
        return 0.0
    return float(max(0.0, (2.0 * (np.arange(1, n + 1) * ordered).sum() / total - (n + 1)) / n))


def effective_clients(sizes: I64) -> float:
    """1 / sum p_i^2 with p_i client i's share of the examples: N when sizes are equal, 1 when one has all.

    >>> effective_clients(np.array([5, 5, 5, 5]))
    4.0
    """
    shares = sizes / max(int(sizes.sum()), 1)
    total = float((shares**2).sum())
    return 1.0 / total if total else 0.0


def describe(fed: Federated) -> dict[str, Any]:
    """Statistics of the training part (and totals of the others) as plain numbers, ready for JSON.

    `sizes`: examples per client. `label_skew`: mean Jensen-Shannon divergence to the global label mix, in bits,
    over clients and weighted by size, and the mean number of different labels; None without classes. With labels
    per step (sequences) the weights are steps.
    """
    sizes = fed.sizes
    return {
        "name": fed.name,
        "clients": fed.n_clients,
        "examples": int(sizes.sum()),
        "held_examples": int(fed.held_sizes.sum()),
        "test_examples": 0 if not fed.test else len(next(iter(fed.test.values()))),
        "columns": {k: {"dtype": str(c.dtype), "shape": list(c.shape[1:])} for k, c in fed.columns.items()},
        "classes": fed.classes,
        "sizes": size_summary(sizes),
        "gini": gini(sizes),
        "effective_clients": effective_clients(sizes),
        "label_skew": label_skew(fed),
    }


def size_summary(sizes: I64) -> dict[str, float]:
    """min, max, mean, standard deviation and the quantiles 5, 25, 50 (`median`), 75, 95 % of the sizes."""
    quantiles = np.quantile(sizes, _QUANTILES)
    names = ("q05", "q25", "median", "q75", "q95")
    named = {name: float(q) for name, q in zip(names, quantiles, strict=True)}
    return {
        "min": int(sizes.min()),
        **named,
        "max": int(sizes.max()),
        "mean": float(sizes.mean()),
        "std": float(sizes.std()),
    }


def label_skew(fed: Federated) -> dict[str, Any] | None:
    """Label counts and divergences of the data, or None without classes."""
    if fed.classes is None or "y" not in fed.columns:
        return None
    counts = label_counts(fed)
    js, weights = js_divergence(counts), counts.sum(axis=1)
    return {
        "mean_js_bits": float(js.mean()),
        "weighted_js_bits": float((js * weights).sum() / max(int(weights.sum()), 1)),
        "max_js_bits": float(js.max()),
        "mean_labels": float((counts > 0).sum(axis=1).mean()),
        "label_totals": counts.sum(axis=0).tolist(),
    }
