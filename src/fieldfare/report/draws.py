"""How often nodes were drawn, against the chances that are on record with every draw: counts, chi-square.

Here: from what nodes said to `Draws`. Not here: reading (`read_nodes`), drawing (`plots_nodes`). Kept: a cycle counts
once, whatever became of its ring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import erfc, exp, lgamma, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.report.table import Floats

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Draws:
    """How often each name was drawn in `cycles` draws: `drawn` and `expected` by its chances, both `[names]`.

    `variance` `[names]`: the sum of chance (1 - chance). `chi2` and `p`: how far the counts are from the chances
    (`chi_square`).
    """

    names: tuple[str, ...]
    cycles: int
    drawn: Ints
    expected: Floats
    variance: Floats
    chi2: float
    p: float


def draws_of(said: Sequence[Mapping[str, Any]]) -> Draws | None:
    """Count the draws on record, the first ring of each cycle; None where nobody drew by chance."""
    seen: set[int] = set()
    rows: list[tuple[Mapping[str, float], Sequence[str]]] = []
    for line in said:
        chance, members, cycle = line.get("chance"), line.get("members"), line.get("cycle")
        if not isinstance(chance, Mapping) or not isinstance(members, list) or not isinstance(cycle, int):
            continue
        if line.get("epoch", 0) > 0 or cycle in seen or not members:
            continue
        seen.add(cycle)
        rows.append((chance, members))
    names = tuple(sorted({name for chance, _ in rows for name in chance}, key=_natural))
    if not names or all(min(chance.values()) > 1 - 1e-9 for chance, _ in rows):
        return None
    p = np.array([[float(chance.get(name, 0.0)) for name in names] for chance, _ in rows])
    took = np.array([[name in members for name in names] for _, members in rows])
    drawn, expected, variance = took.sum(axis=0), p.sum(axis=0), (p * (1 - p)).sum(axis=0)
    chi2, chance_of = chi_square(drawn, expected, variance)
    return Draws(names, len(rows), drawn.astype(np.int64), expected, variance, chi2, chance_of)


def chi_square(drawn: NDArray[Any], expected: Floats, variance: Floats) -> tuple[float, float]:
    """How far counts `[names]` are from what chances say: chi-square, and the chance of one at least as large.

    Draws of one cycle are without replacement, so counts are correlated. Their covariance is taken as
    c (D - d d' / sum d), D = diag(d), d the variances, c such that the total variance is right (Hajek's approximation;
    exact for equal chances, and with one draw a cycle for two names). Names that are certain or impossible say
    nothing.

    >>> chi_square(np.array([30, 30]), np.array([30.0, 30.0]), np.array([15.0, 15.0]))
    (0.0, 1.0)
    """
    open_ = variance > 1e-9
    if open_.sum() < 2:
        return 0.0, 1.0
    d = variance[open_]
    c = d.sum() / (d.sum() - (d**2).sum() / d.sum())
    off = drawn[open_] - expected[open_]
    off = off - d * off.sum() / d.sum()
    chi2 = float((off**2 / d).sum() / c)
    return chi2, chi_square_tail(chi2, int(open_.sum()) - 1)


def chi_square_tail(value: float, freedom: int) -> float:
    """The chance that a chi-square of so many degrees of freedom is at least `value`.

    By the recurrence Q(n + 2) = Q(n) + (x/2)^(n/2) e^(-x/2) / Gamma(n/2 + 1), from the normal tail or e^(-x/2).

    >>> round(chi_square_tail(7.815, 3), 3), round(chi_square_tail(5.991, 2), 3)
    (0.05, 0.05)
    """
    if value <= 0.0:
        return 1.0
    half = value / 2.0
    n, tail = (1, erfc(sqrt(half))) if freedom % 2 else (2, exp(-half))
    while n < freedom:
        tail += exp(n / 2.0 * log(half) - half - lgamma(n / 2.0 + 1.0))
        n += 2
    return min(tail, 1.0)


def _natural(name: str) -> tuple[str, int]:
    head, _, tail = name.rpartition("/")
    return (head, int(tail)) if tail.isdigit() else (name, 0)
