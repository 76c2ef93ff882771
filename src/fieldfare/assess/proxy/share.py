"""Whose a row of the central table is: by a field, under a keyed hash, or by made-up clients with a wanted skew.

Here: row -> client. Not here: files (`write`), how unlike the clients are (`statistics`). Invariants: clients are
sampled, never rows of a client; names of clients leave no trace but order under a key that nobody keeps; nobody owns a
row twice.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.assess.proxy.presets import Shape, sizes
from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.data import allot
from fieldfare.fleet.columns import Text

Array = NDArray[Any]
I64 = NDArray[np.int64]
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Shared:
    """Rows grouped by client: client i has `rows[offsets[i]:offsets[i + 1]]`; `natural`: by a field of the table."""

    offsets: I64
    rows: I64
    natural: bool

    @property
    def sizes(self) -> I64:
        return np.diff(self.offsets)

    @property
    def owner(self) -> I64:
        """The client of each of `rows`."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.sizes)


@dataclass(frozen=True, slots=True)
class Skew:
    """What made-up clients look like: `label_alpha` of Dirichlet (small: few labels each; None: no skew), and sizes.

    Sizes: of a `shape` (a preset), else Dirichlet with `quantity_beta` (None: equal).
    """

    label_alpha: float | None = None
    quantity_beta: float | None = None
    shape: Shape | None = None

    def __post_init__(self) -> None:
        for name in ("label_alpha", "quantity_beta"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                raise UsageError(f"Skew({name}={value}): use a number above 0.")


def recent(when: Array, lookback_days: float) -> I64:
    """Rows of the last days before the latest `when` (seconds)."""
    latest = float(np.nanmax(when))
    return np.flatnonzero(when >= latest - lookback_days * DAY_S)


def by_field(ids: Array | Text, *, max_clients: int | None = None, key: bytes | None = None) -> Shared:
    """One client per value of a field, in the order of BLAKE2b(value, key); rows without a value are left out.

    `key` None: 32 random bytes that are gone when this returns, so that numbers tell nothing of names. With
    `max_clients` the first so many in that order: a sample of clients with all their rows.
    """
    if isinstance(ids, Text):
        codes, names = ids.codes.astype(np.int64), list(ids.names)
    else:
        if ids.ndim != 1 or ids.dtype.kind not in "iub":
            raise UsageError(
                f"the partition field holds {ids.dtype} of shape {list(ids.shape)}: use one whole number or text a row."
            )
        values, codes = np.unique(ids, return_inverse=True)
        names = [str(value) for value in values.tolist()]
    secret = os.urandom(32) if key is None else key
    hashed = [hashlib.blake2b(name.encode(), key=secret[:64], digest_size=16).digest() for name in names]
    order = np.array(sorted(range(len(hashed)), key=hashed.__getitem__), np.int64)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    client = np.where(codes >= 0, place[np.maximum(codes, 0)], -1)
    kept = np.unique(client[client >= 0])
    if not len(kept):
        raise UsageError("the partition field has no values: name another field, or none for made-up clients.")
    kept = kept[:max_clients]
    return _grouped(client, kept, True)


def made_up(labels: Array | None, rows: int, clients: int, skew: Skew, seed: int) -> Shared:
    """`clients` that do not exist: sizes as `skew` says, label mixes from Dir(alpha p) (Li et al., ICDE 2022).

    Without replacement: labels that run out are replaced by those that remain, so totals are exact. With a shape
    whose sizes add up to more than there is, sizes are scaled down, nobody below one row; rows left over are not used.
    """
    if not 1 <= clients <= rows:
        raise UsageError(f"{clients} made-up clients of {rows} rows: give each at least one row.")
    gen = rng.stream(seed, "proxy", "made-up")
    if skew.shape is not None:
        wanted = sizes(skew.shape, clients, seed)
        wanted = (
            wanted
            if wanted.sum() <= rows
            else 1 + allot.cut((wanted - 1) / max(1, int((wanted - 1).sum())), rows - clients)
        )
    elif skew.quantity_beta is not None:
        wanted = 1 + allot.cut(allot.dirichlet(skew.quantity_beta, clients, gen), rows - clients)
    else:
        wanted = allot.even(rows, clients)
    if skew.label_alpha is None or labels is None:
        chosen = gen.permutation(rows)[: int(wanted.sum())]
        owner = np.repeat(np.arange(clients), wanted)
        out = np.full(rows, -1, np.int64)
        out[chosen] = owner
        return _grouped(out, np.arange(clients), False)
    codes, counts = allot.codes(labels, "made_up")
    mixes = allot.dirichlet(skew.label_alpha * counts / counts.sum() * len(counts), clients, gen)
    held = allot.filled(wanted, mixes, counts, gen)
    spare = counts - held.sum(axis=0)
    owner = allot.owners(codes, np.vstack([held, spare]), gen)
    return _grouped(np.where(owner < clients, owner, -1), np.arange(clients), False)


def sampled(of: Shared, clients: int, seed: int) -> Shared:
    """`clients` of them at random with all their rows, in their old order; all where there are no more."""
    have = len(of.offsets) - 1
    if clients >= have:
        return of
    keep = np.sort(rng.stream(seed, "proxy", "sample").choice(have, clients, replace=False))
    sizes_ = of.sizes[keep]
    offsets = np.concatenate([[0], np.cumsum(sizes_)])
    start = np.repeat(of.offsets[keep] - offsets[:-1], sizes_)
    return Shared(offsets, of.rows[np.arange(offsets[-1]) + start], of.natural)


def numbers(columns: Mapping[str, Array | Text]) -> dict[str, Array]:
    """The columns as arrays; text as its codes."""
    return {name: value.codes if isinstance(value, Text) else value for name, value in columns.items()}


def _grouped(client: I64, kept: I64, natural: bool) -> Shared:
    """Rows by client, of those `kept` (ascending), renumbered from 0; a client's rows ascend."""
    rows = np.flatnonzero(np.isin(client, kept))
    new = np.searchsorted(kept, client[rows])
    order = np.argsort(new, kind="stable")
    return Shared(np.concatenate([[0], np.cumsum(np.bincount(new, minlength=len(kept)))]), rows[order], natural)


def withheld(shared: Shared, share: float, seed: int) -> tuple[Shared, Shared]:
    """(the rows that stay, those that are held out): a row by the seed and its number, each client keeping one."""
    u = rng.uniforms(np.array([rng.derive(seed, "assess", "proxy", "test")], np.uint64), shared.rows)
    out = u < share
    best = np.lexsort((u, shared.owner))[shared.offsets[1:] - 1]  # of each client the row that is held out last
    out[best] = False

    def part(of: NDArray[np.bool_]) -> Shared:
        sizes = np.bincount(shared.owner[of], minlength=len(shared.sizes))
        return Shared(np.concatenate([[0], np.cumsum(sizes)]), shared.rows[of], shared.natural)

    return part(~out), part(out)
