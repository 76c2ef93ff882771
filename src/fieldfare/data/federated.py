"""A federated data set: shared columns and one index that says which rows are whose.

Here: `Federated` and `federate`. Not here: how rows are read (`load`) or shared out (`partition`).
Invariant: a client is two numbers in an array, never a Python object, so a million clients cost megabytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.data import checks, statistics
from fieldfare.data.partition import Partition, prepared, shared_out, told

Array = NDArray[Any]
I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class Federated:
    """Data of N clients: client i owns `columns[name][rows[offsets[i]:offsets[i + 1]]]`.

    `columns`: arrays of equal leading length, in memory or memory-mapped; by custom `x` (inputs) and `y`
    (labels int `[rows]` or `[rows, time]`, or float targets). `offsets`: int64 `[N + 1]`. `rows`: int32 or int64
    `[M]`; a row may belong to several clients. `names`: one per client, or None for 0..N-1. `classes`: number of
    labels, None for none. `test`: central test columns. `held_offsets`, `held_rows`: an index of the same
    clients' held-out examples (`holdout` makes it). `name`: what the records of a run call the data; the
    loaders say how it was made.

    Construction checks everything, NaN included, in one pass over the columns; `check=False` leaves out the pass
    over the values (for a large memory-mapped file). `drop_empty=True` leaves out clients without examples,
    which are otherwise a `UsageError`.

    >>> fed = Federated({"x": np.eye(4)}, offsets=[0, 3, 4], rows=[0, 1, 2, 3])
    >>> fed.n_clients, fed.sizes.tolist()
    (2, [3, 1])
    """

    columns: Mapping[str, Array]
    offsets: I64
    rows: NDArray[np.integer]
    names: Array | Sequence[str] | None = None
    classes: int | None = None
    test: Mapping[str, Array] | None = None
    held_offsets: I64 | None = None
    held_rows: NDArray[np.integer] | None = None
    name: str = "data"
    check: InitVar[bool] = True
    drop_empty: InitVar[bool] = False

    def __post_init__(self, check: bool, drop_empty: bool) -> None:
        columns = {name: np.asanyarray(column) for name, column in self.columns.items()}
        n_rows = checks.check_columns(columns, "column")
        self._set(columns=columns)
        offsets, rows = _index(self.offsets, self.rows, n_rows, "client")
        self._set(offsets=offsets, rows=rows)
        if self.names is not None:
            names = np.asarray(self.names)
            names = names if names.dtype.kind in "iuU" else names.astype(np.str_)
            if names.shape != (self.n_clients,):
                raise UsageError(f"names has shape {list(names.shape)}; {self.n_clients} clients need as many names.")
            self._set(names=names)
        if (self.held_offsets is None) != (self.held_rows is None):
            raise UsageError("held_offsets and held_rows belong together; give both, or neither.")
        if self.held_offsets is not None and self.held_rows is not None:
            held = _index(self.held_offsets, self.held_rows, n_rows, "held-out")
            if len(held[0]) != len(offsets):
                raise UsageError(
                    f"the held-out index has {len(held[0]) - 1} clients, not {self.n_clients}; give every client one."
                )
            self._set(held_offsets=held[0], held_rows=held[1])
        self._settle_empty(drop_empty)
        if self.test is not None:
            test = {name: np.asanyarray(column) for name, column in self.test.items()}
            checks.check_test(test, columns)
            self._set(test=test)
        if check:
            self._check_values()

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def _settle_empty(self, drop_empty: bool) -> None:
        empty = np.flatnonzero(self.sizes == 0)
        if not len(empty):
            return
        if not drop_empty:
            raise UsageError(
                f"{self.who(int(empty[0]))} has no examples ({len(empty)} such of {self.n_clients} clients); pass "
                "drop_empty=True to leave them out."
            )
        keep = np.flatnonzero(self.sizes > 0)
        if not len(keep):
            raise UsageError("no client has an example; give rows to at least one.")
        self._set(**_selected(self, keep))

    def _check_values(self) -> None:
        tables = [(self.columns, self._owner)]
        if self.test is not None:
            tables.append((self.test, lambda bad: ("the central test set", int(bad[0]))))
        for columns, who in tables:
            for name, column in columns.items():
                checks.check_finite(name, column, who)
            if self.classes is not None and "y" in columns:
                checks.check_labels(columns["y"], self.classes, who)

    def _owner(self, bad: Array) -> tuple[str, int] | None:
        """Name and row of the first client entry whose row is among `bad`."""
        for offsets, rows in ((self.offsets, self.rows), (self.held_offsets, self.held_rows)):
            if offsets is not None and rows is not None:
                at = np.flatnonzero(np.isin(rows, bad))
                if len(at):
                    return self.who(int(np.searchsorted(offsets, at[0], "right") - 1)), int(rows[at[0]])
        return None

    @property
    def n_clients(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_rows(self) -> int:
        """Rows of the columns (held by clients or not)."""
        return len(next(iter(self.columns.values())))

    @property
    def sizes(self) -> I64:
        """Training examples per client, int64 `[N]`."""
        return np.diff(self.offsets)

    @property
    def held_sizes(self) -> I64:
        """Held-out examples per client, int64 `[N]`; zeros without a held-out part."""
        return np.zeros(self.n_clients, np.int64) if self.held_offsets is None else np.diff(self.held_offsets)

    def who(self, client: int) -> str:
        """How messages call a client: its name, or its number."""
        return f"client {client}" if self.names is None else f"client {self.names[client]!s}"

    def block(self, ids: ArrayLike) -> Block:
        """Training rows of the clients `ids`, int `[n]`; repeats allowed. Cost: O(examples of these clients)."""
        return Block(self.columns, *self._gather(self.offsets, self.rows, ids))

    def held_block(self, ids: ArrayLike) -> Block:
        """Held-out rows of the clients `ids`; a client may have none. A `UsageError` before `holdout`."""
        if self.held_offsets is None or self.held_rows is None:
            raise UsageError("there is no held-out part; make one with .holdout(0.2, seed=0).")
        return Block(self.columns, *self._gather(self.held_offsets, self.held_rows, ids))

    def _gather(self, offsets: I64, rows: NDArray[np.integer], ids: ArrayLike) -> tuple[I64, I64]:
        clients = _ids(ids, self.n_clients)
        n = len(clients)
        if n and (n == 1 or (clients[-1] - clients[0] == n - 1 and bool(np.all(np.diff(clients) == 1)))):
            first, last = offsets[clients[0]], offsets[clients[-1] + 1]
            taken = rows[first:last]
            return taken.astype(np.int64, copy=False), offsets[clients[0] : clients[-1] + 2] - first
        return _taken(offsets, rows, clients)

    def holdout(self, fraction: float, seed: int = 0) -> Federated:
        """The same clients, each with about `fraction` of its examples moved to its held-out part.

        A client keeps at least one training example; which are held out depends on (seed, client, position)
        only. An earlier held-out part is an error. Cost: one sort of the index.
        """
        if not 0.0 < fraction < 1.0:
            raise UsageError(f"holdout({fraction}) must lie between 0 and 1; 0.2 holds out a fifth.")
        if self.held_offsets is not None:
            raise UsageError("there is a held-out part already; call holdout on the data it was made from.")
        sizes = self.sizes
        quota = np.minimum(np.floor(fraction * sizes + 0.5).astype(np.int64), sizes - 1)
        if not quota.any():
            raise UsageError(
                f"holdout({fraction}) holds out nothing: the largest client has {sizes.max()} examples; use a "
                "larger fraction, or leave out whole clients with .select(ids)."
            )
        client = np.repeat(np.arange(self.n_clients), sizes)
        place = np.arange(len(self.rows)) - np.repeat(self.offsets[:-1], sizes)
        lot = rng.uniforms(rng.keys(seed, ("holdout",), np.arange(self.n_clients))[client], place)
        order = np.lexsort((lot, client))
        held = np.zeros(len(self.rows), np.bool_)
        held[order[place < quota[client]]] = True
        return dataclasses.replace(
            self,
            offsets=_offsets(sizes - quota),
            rows=self.rows[~held],
            held_offsets=_offsets(quota),
            held_rows=self.rows[held],
            check=False,
        )

    def select(self, ids: ArrayLike) -> Federated:
        """The clients `ids` alone, renumbered 0..n-1; the columns stay shared."""
        return dataclasses.replace(self, **_selected(self, _ids(ids, self.n_clients)), check=False)

    def tile(self, clients: int) -> Federated:
        """A population of `clients`: client i has the rows of client i mod N. For tests of scale.

        Cost: 4 or 8 bytes per example of the index; no example is copied.
        """
        if clients < 1:
            raise UsageError(f"tile({clients}) makes no population; give 1 client or more.")
        fields = _selected(self, np.arange(clients) % self.n_clients)
        return dataclasses.replace(self, **{**fields, "names": None}, check=False)

    def describe(self) -> dict[str, Any]:
        """Sizes, skew and shapes as plain numbers, ready for JSON: see `fieldfare.data.statistics`."""
        return statistics.describe(self)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k}: {c.dtype}{list(c.shape[1:]) or ''}" for k, c in self.columns.items())
        parts = [f"{self.n_clients:,} clients", f"{len(self.rows):,} examples", shapes]
        parts += [f"{self.classes} classes"] if self.classes is not None else []
        parts += [f"{len(self.held_rows):,} held out"] if self.held_rows is not None else []
        parts += [f"{len(next(iter(self.test.values()))):,} test rows"] if self.test else []
        return f"Federated({'; '.join(parts)})"


def federate(
    columns: Mapping[str, ArrayLike],
    partitioner: Partition,
    seed: int = 0,
    *,
    clients: int | None = None,
    test: Mapping[str, ArrayLike] | None = None,
    classes: int | None = None,
    name: str | None = None,
    check: bool = True,
) -> Federated:
    """Share the rows of `columns` out to clients.

    `clients` fills in a partitioner that left its number open. `classes` defaults to the largest label + 1 where
    `y` is a column of integers, else None. The partition depends on `seed` and the column it reads.

    >>> from fieldfare.data import iid
    >>> federate({"x": np.eye(6), "y": np.arange(6) % 2}, iid(3)).sizes.tolist()
    [2, 2, 2]
    """
    arrays = {name: tidy(column) for name, column in columns.items()}
    tests = None if test is None else {name: tidy(column) for name, column in test.items()}
    checks.check_columns(arrays, "column")
    plan = prepared(partitioner, clients)
    offsets, rows, names = shared_out(plan, arrays, seed)
    classes = classes_of(arrays, tests) if classes is None else classes
    return Federated(
        arrays, offsets, rows, names, classes, tests, name=name or f"{told(plan)}, seed {seed}", check=check
    )


def classes_of(columns: Mapping[str, Array], test: Mapping[str, Array] | None) -> int | None:
    """The largest label + 1 over both tables where `y` is a column of integers, else None."""
    if "y" not in columns or columns["y"].dtype.kind not in "iu":
        return None
    tops = [int(table["y"].max()) for table in (columns, test) if table and "y" in table and table["y"].size]
    return max(tops, default=0) + 1


def tidy(column: ArrayLike) -> Array:
    """`column` as an array, truth values as 0 and 1; memory maps stay what they are."""
    array = np.asanyarray(column)
    return array.astype(np.int64) if array.dtype == np.bool_ else array


def _index(offsets: ArrayLike, rows: ArrayLike, n_rows: int, what: str) -> tuple[I64, NDArray[np.integer]]:
    at, which = np.asarray(offsets), np.asarray(rows)
    if which.size == 0 and which.dtype.kind not in "iu":
        which = which.astype(np.int64)
    checks.check_index(at, which, n_rows, what)
    which = which if which.dtype in (np.dtype(np.int32), np.dtype(np.int64)) else which.astype(np.int64)
    return at.astype(np.int64, copy=False), which


def _ids(ids: ArrayLike, n_clients: int) -> I64:
    clients = np.atleast_1d(np.asarray(ids))
    if clients.size == 0:
        return np.empty(0, np.int64)
    if clients.ndim != 1 or clients.dtype.kind not in "iu":
        raise UsageError(f"client ids {clients.dtype}{list(clients.shape)} must be a flat array of integers.")
    if int(clients.min()) < 0 or int(clients.max()) >= n_clients:
        bad = clients[(clients < 0) | (clients >= n_clients)][0]
        raise UsageError(f"client {bad} does not exist; the ids are 0..{n_clients - 1}.")
    return clients.astype(np.int64, copy=False)


def _offsets(sizes: I64) -> I64:
    out = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=out[1:])
    return out


def _taken(offsets: I64, rows: NDArray[np.integer], clients: I64) -> tuple[I64, I64]:
    """(rows, offsets) of the chosen clients, one after another, int64."""
    starts = offsets[clients]
    at = _offsets(offsets[clients + 1] - starts)
    places = np.arange(at[-1]) + np.repeat(starts - at[:-1], np.diff(at))
    return rows[places].astype(np.int64, copy=False), at


def _selected(fed: Federated, clients: I64) -> dict[str, Any]:
    """The per-client fields of `fed` for these clients, rows in their own dtype."""
    rows, offsets = _taken(fed.offsets, fed.rows, clients)
    out: dict[str, Any] = {"offsets": offsets, "rows": rows.astype(fed.rows.dtype, copy=False)}
    out["names"] = None if fed.names is None else np.asarray(fed.names)[clients]
    if fed.held_offsets is not None and fed.held_rows is not None:
        held, at = _taken(fed.held_offsets, fed.held_rows, clients)
        out |= {"held_offsets": at, "held_rows": held.astype(fed.held_rows.dtype, copy=False)}
    return out
