"""How unlike the clients of a proxy are: sizes, labels, features, duplicates.

Here: numbers of columns grouped by client. Not here: sharing rows out (`share`), pictures. Invariant: no Python loop
over clients; what is drawn (pairs) is drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.assess.artefact import Value
from fieldfare.core import rng
from fieldfare.data.statistics import effective_clients, gini, js_divergence

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def of_sizes(sizes: I64, batch: int = 1) -> dict[str, Value]:
    """Population, moments, inequality, and how many clients have less than one batch."""
    top = np.sort(sizes)[::-1][: max(1, len(sizes) // 100)]
    found: dict[str, tuple[float, str]] = {
        "clients": (len(sizes), "clients"), "records": (int(sizes.sum()), "records"),
        "records_mean": (float(sizes.mean()), "records"), "records_std": (float(sizes.std()), "records"),
        "records_max": (int(sizes.max()), "records"), "gini": (gini(sizes), "1"),
        "top_1pct_share": (float(top.sum() / sizes.sum()), "1"),
        "effective_clients": (effective_clients(sizes), "clients"),
        "below_batch": (int((sizes < batch).sum()), "clients"),
    }  # fmt: skip
    quantiles = zip(_QUANTILES, np.quantile(sizes, _QUANTILES), strict=True)
    return {name: Value(value, unit) for name, (value, unit) in found.items()} | {
        f"records_q{round(100 * q):02d}": Value(float(value), "records") for q, value in quantiles
    }


def of_labels(counts: I64, seed: int, pairs: int = 2_000) -> dict[str, Value]:
    """Label ratio and skew of label counts `[N, classes]`.

    `label_skew`: sum n_k/N JSD(p_k || p) in bits; `label_skew_pairs`: mean JSD of two clients, on a sample (FedScale's
    measure); `label_ratio`: the share of the last class where there are two.
    """
    weights, total = counts.sum(axis=1), max(int(counts.sum()), 1)
    out = {"label_skew": Value(float((js_divergence(counts) * weights).sum() / total), "bit")}
    some = np.flatnonzero(weights)
    if len(some) > 1:
        drawn = rng.uniforms(rng.keys(seed, ("proxy", "pairs"), np.arange(2))[:, None], np.arange(pairs))
        first, second = (some[(row * len(some)).astype(np.int64)] for row in drawn)
        other = first != second
        apart = _apart(counts[first[other]], counts[second[other]])
        out["label_skew_pairs"] = Value(float(apart.mean()) if len(apart) else None, "bit")
    if counts.shape[1] == 2:
        out["label_ratio"] = Value(float(counts[:, 1].sum() / total), "1")
    out["labels_per_client"] = Value(float((counts > 0).sum(axis=1).mean()), "labels")
    return out


def _apart(one: I64, other: I64) -> F64:
    """Jensen-Shannon divergence of the label mixes of two clients, row by row `[pairs, classes]`, in bits."""
    p, q = (x / x.sum(axis=1, keepdims=True) for x in (one, other))
    m = (p + q) / 2

    def entropy(x: F64) -> F64:
        return -(x * np.log2(np.where(x > 0, x, 1.0))).sum(axis=1)

    return np.clip(entropy(m) - (entropy(p) + entropy(q)) / 2, 0.0, 1.0)


def of_features(columns: Mapping[str, NDArray[Any]], client: I64, clients: int) -> dict[str, F64]:
    """Per numeric column the share of its variance that lies between clients (0: all alike), mean, deviation."""
    size = np.maximum(np.bincount(client, minlength=clients), 1)
    names, between, means, stds = [], [], [], []
    for name, values in columns.items():
        if values.ndim != 1 or values.dtype.kind not in "iufb":
            continue
        x = np.nan_to_num(values.astype(np.float64))
        mean, var = x.mean(), x.var()
        of_client = np.bincount(client, weights=x, minlength=clients) / size
        explained = float((np.bincount(client, minlength=clients) * (of_client - mean) ** 2).sum() / len(x))
        names.append(name)
        between.append(explained / var if var > 0 else 0.0)
        means.append(mean)
        stds.append(np.sqrt(var))
    return {"name": np.array(names), "between": np.array(between), "mean": np.array(means), "std": np.array(stds)}


def duplicates(columns: Mapping[str, NDArray[Any]]) -> int:
    """Rows that are equal to an earlier one in every column, by a 64-bit hash of the row."""
    rows = len(next(iter(columns.values())))
    found = np.zeros(rows, np.uint64)
    for number, values in enumerate(columns.values()):
        codes = np.unique(values.reshape(rows, -1), axis=0, return_inverse=True)[1].reshape(rows)
        found = rng.mix(found ^ rng.bits(codes.astype(np.uint64), np.full(rows, number)))
    return rows - len(np.unique(found))
