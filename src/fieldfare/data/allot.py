"""The arithmetic the partitioners share: shares to counts, counts to rows, and the repair of small clients.

Invariant: whatever goes in, the counts of a label add up to its rows, so every row is used exactly once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError

Array = NDArray[Any]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def wanted(plan: object, clients: int | None, n_rows: int, least: int = 1) -> int:
    """The number of clients, once it is known to be possible with `least` rows each."""
    if clients is None:
        raise UsageError(f"{plan} leaves the number of clients open; give clients=...")
    if clients * least > n_rows:
        raise UsageError(
            f"{plan} needs {clients * least} rows ({clients} clients with {least} or more); there are {n_rows}: use "
            f"clients <= {n_rows // least}."
        )
    return clients


def codes(y: Array, plan: object) -> tuple[I64, I64]:
    """(label number of each row `[rows]`, rows of each label `[labels]`), labels in sorted order."""
    if y.ndim != 1 or y.dtype.kind == "f":
        raise UsageError(
            f"{plan} needs one label per row, got {y.dtype}{list(y.shape)}; name a column of labels with column=..., "
            "or bin the values first."
        )
    _, number, counts = np.unique(y, return_inverse=True, return_counts=True)
    return number.reshape(-1).astype(np.int64), counts.astype(np.int64)


def index(owner: I64, clients: int) -> tuple[I64, I64]:
    """The CSR index (offsets, rows) of the rows' owners; a client's rows ascend."""
    offsets = np.zeros(clients + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=clients), out=offsets[1:])
    return offsets, np.argsort(owner, kind="stable").astype(np.int64)


def even(total: int, parts: int) -> I64:
    """`total` in `parts` whole numbers that differ by at most one, larger ones first."""
    return total // parts + (np.arange(parts) < total % parts)


def cut(shares: F64, total: int) -> I64:
    """`total` cut at the rounded-down cumulative shares (which need not add up to one)."""
    edges = np.cumsum(shares)
    marks = np.floor(edges / edges[-1] * total).astype(np.int64)
    marks[-1] = total
    return np.diff(marks, prepend=0)


def dirichlet(alpha: float | F64, clients: int, gen: np.random.Generator) -> F64:
    """One draw of Dir(alpha) over the clients `[clients]`; with a vector alpha one per client `[clients, labels]`.

    A concentration so small that the draw underflows becomes what it tends to: all weight on one entry.
    """
    if isinstance(alpha, float | int):
        draw = gen.dirichlet(np.full(clients, alpha))[None]
        prior = np.full(clients, 1.0 / clients)
    else:
        draw = gen.dirichlet(alpha, size=clients)
        prior = alpha / alpha.sum()
    broken = ~np.isfinite(draw).all(axis=1) | (draw.sum(axis=1) <= 0)
    if broken.any():
        draw[broken] = 0.0
        draw[broken, gen.choice(len(prior), size=int(broken.sum()), p=prior)] = 1.0
    return draw[0] if isinstance(alpha, float | int) else draw


def by_share(shares: F64, n_rows: int, least: int, gen: np.random.Generator) -> tuple[I64, I64]:
    """The index of clients whose sizes follow `shares`, rows dealt at random."""
    owner = np.empty(n_rows, np.int64)
    owner[gen.permutation(n_rows)] = np.repeat(np.arange(len(shares)), cut(shares, n_rows))
    return index(repaired(owner, len(shares), least, gen), len(shares))


def owners(codes: I64, counts: I64, gen: np.random.Generator) -> I64:
    """A random owner for each row so that client i owns `counts[i, c]` rows of label c."""
    order = gen.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    clients, labels = counts.shape
    owner = np.empty(len(codes), np.int64)
    owner[order] = np.repeat(np.tile(np.arange(clients), labels), counts.T.reshape(-1))
    return owner


def hands(clients: int, k: int, n_labels: int, gen: np.random.Generator) -> NDArray[np.bool_]:
    """Which labels each client holds, bool `[clients, labels]`: k each, dealt from shuffled decks.

    A client that spans two decks takes from the new one only labels it does not hold yet, so a deck is always
    dealt out whole and no label is held by two clients more than another.
    """
    dealt = np.empty(clients * k + n_labels, np.int64)
    done = 0
    while done < clients * k:
        deck = gen.permutation(n_labels)
        mine = dealt[done - done % k : done]
        clash = np.isin(deck, mine)
        fresh = np.flatnonzero(~clash)[: (k - len(mine)) % k]
        rest = np.setdiff1d(np.arange(n_labels), fresh)
        deck = deck[np.concatenate([fresh, gen.permutation(rest)])] if len(mine) else deck
        dealt[done : done + n_labels] = deck
        done += n_labels
    held = np.zeros((clients, n_labels), np.bool_)
    held[np.repeat(np.arange(clients), k), dealt[: clients * k]] = True
    return held


def filled(sizes: I64, mixes: F64, counts: I64, gen: np.random.Generator) -> I64:
    """Label counts `[clients, labels]`: in random order each client draws `sizes[i]` labels from `mixes[i]`.

    Without replacement: a label that runs out is dropped and the rest of the mix scaled up; a client whose whole
    mix ran out draws from what remains. At most labels + 1 draws per client, then done.
    """
    left = counts.astype(np.int64).copy()
    out = np.zeros(mixes.shape, np.int64)
    for i in gen.permutation(len(sizes)):
        short = int(sizes[i])
        while short:
            weight = np.where(left > 0, mixes[i], 0.0)
            if not weight.sum() > 0:
                weight = left.astype(np.float64)
            take = np.minimum(gen.multinomial(short, weight / weight.sum()), left)
            out[i] += take
            left -= take
            short -= int(take.sum())
    return out


def repaired(owner: I64, clients: int, least: int, gen: np.random.Generator) -> I64:
    """`owner` with no client below `least` rows: the largest give random rows, down to a common level.

    Deterministic in the generator; cost one sort; does nothing where nobody is short.
    """
    sizes = np.bincount(owner, minlength=clients)
    short = np.maximum(least - sizes, 0)
    need = int(short.sum())
    if not need:
        return owner
    ranked = np.sort(sizes)[::-1]
    spare = np.cumsum(ranked) - np.arange(1, clients + 1) * np.append(ranked[1:], 0)
    givers = int(np.searchsorted(spare, need)) + 1
    level = (int(ranked[:givers].sum()) - need) // givers
    give = np.maximum(sizes - level, 0)
    surplus = int(give.sum()) - need
    give[np.flatnonzero(give)[:surplus]] -= 1
    order = gen.permutation(len(owner))
    order = order[np.argsort(owner[order], kind="stable")]
    place = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    freed = gen.permutation(order[place < np.repeat(give, sizes)])
    out = owner.copy()
    out[freed] = np.repeat(np.arange(clients), short)
    return out
