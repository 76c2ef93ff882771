"""What a federated data set must satisfy, checked once at construction; each failure is one line.

Here: pure checks over arrays. Not here: how the arrays were read. Invariant: a check reads a column in pieces
of a few megabytes, so a memory-mapped column is streamed, never loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError

Array = NDArray[Any]
Who = Callable[[Array], tuple[str, int] | None]
_PIECE = 1 << 21  # elements looked at together


def check_columns(columns: Mapping[str, Array], what: str) -> int:
    """Rows of the columns, all equal; a `UsageError` for none, ragged, scalar or object columns."""
    if not columns:
        raise UsageError(f"{what}: no columns were given; give at least one, for example {{'x': x, 'y': y}}.")
    for name, column in columns.items():
        if column.ndim == 0:
            raise UsageError(f"{what} {name!r} is a single number; give an array with one entry per example.")
        if column.dtype == object:
            raise UsageError(
                f"{what} {name!r} holds Python objects (ragged or mixed rows); give one numeric array, "
                "for example np.stack(rows)."
            )
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name!r}: {n}" for name, n in lengths.items())
        raise UsageError(f"{what}s differ in length ({told}); every column needs one entry per example.")
    return next(iter(lengths.values()))


def check_index(offsets: Array, rows: Array, n_rows: int, what: str) -> None:
    """A `UsageError` unless (offsets, rows) is a CSR index into `n_rows` rows."""
    if offsets.ndim != 1 or rows.ndim != 1 or offsets.dtype.kind not in "iu" or rows.dtype.kind not in "iu":
        raise UsageError(
            f"{what} index: offsets {offsets.dtype}{list(offsets.shape)} and rows {rows.dtype}{list(rows.shape)} "
            "must be flat arrays of integers."
        )
    if len(offsets) < 2:
        raise UsageError(f"{what} index: offsets has {len(offsets)} entries; one client needs two, [0, n_rows].")
    if offsets[0] != 0 or offsets[-1] != len(rows):
        raise UsageError(
            f"{what} index: offsets runs from {offsets[0]} to {offsets[-1]}; it must run from 0 to "
            f"{len(rows)}, the length of rows."
        )
    falls = np.flatnonzero(offsets[1:] < offsets[:-1])
    if len(falls):
        i = int(falls[0])
        raise UsageError(
            f"{what} index: offsets[{i + 1}] = {offsets[i + 1]} is below offsets[{i}] = {offsets[i]}; "
            "offsets must not fall."
        )
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < n_rows:
        bad = rows.min() if rows.min() < 0 else rows.max()
        raise UsageError(f"{what} index: row {bad} does not exist; the columns have rows 0..{n_rows - 1}.")


def check_finite(name: str, column: Array, who: Who) -> None:
    """A `UsageError` naming the owner of the first NaN or infinity; owner-less rows are let pass.

    A sum per piece finds trouble at memory speed (a NaN or an infinity survives it); only a suspect piece is
    looked at element by element.
    """
    if column.dtype.kind not in "fc":
        return
    bad = _where(column, lambda piece: ~np.isfinite(piece), _may_be_infinite)
    found = who(bad) if len(bad) else None
    if found:
        owner, row = found
        values = np.asarray(column[row]).reshape(-1)
        value = values[~np.isfinite(values)][0]
        raise UsageError(
            f"{owner}: column {name!r} is {value} in row {row} ({len(bad)} such rows of {len(column)}); drop or "
            "fill them first (the table loaders take fill='mean'), or pass check=False."
        )


def check_labels(column: Array, classes: int, who: Who, name: str = "y") -> None:
    """A `UsageError` unless every owned label is an integer in 0..classes-1."""
    if classes < 1:
        raise UsageError(f"classes={classes} is no number of classes; give 1 or more, or None without labels.")
    if column.dtype.kind not in "iu":
        raise UsageError(
            f"column {name!r} is {column.dtype}, but classes={classes} needs integer labels 0..{classes - 1}: convert "
            "with np.unique(y, return_inverse=True)[1], or pass classes=None for regression."
        )
    if not column.size or (int(column.min()) >= 0 and int(column.max()) < classes):
        return
    bad = _where(column, lambda piece: (piece < 0) | (piece >= classes), lambda piece: True)
    found = who(bad)
    if found:
        owner, row = found
        labels = np.asarray(column[row]).reshape(-1)
        label = labels[(labels < 0) | (labels >= classes)][0]
        raise UsageError(
            f"{owner}: label {label} in row {row} is outside 0..{classes - 1}; relabel from 0, or pass "
            f"classes={max(int(column.max()), 0) + 1}."
        )


def check_test(test: Mapping[str, Array], columns: Mapping[str, Array]) -> None:
    """A `UsageError` unless each test column looks like the clients' column of that name."""
    check_columns(test, "test column")
    for name, column in test.items():
        if name not in columns:
            raise UsageError(f"test column {name!r} is not among the clients' columns {sorted(columns)}.")
        if column.shape[1:] != columns[name].shape[1:]:
            raise UsageError(
                f"test column {name!r} has {list(column.shape[1:])} per example, the clients' has "
                f"{list(columns[name].shape[1:])}; they must be equal."
            )


def _may_be_infinite(piece: Array) -> bool:
    with np.errstate(all="ignore"):
        wide = np.float32 if piece.dtype == np.float16 else None
        return not bool(np.isfinite(np.add.reduce(piece.reshape(-1), dtype=wide)))


def _pieces(column: Array) -> Iterator[tuple[int, Array]]:
    each = max(1, int(np.prod(column.shape[1:], dtype=np.int64)))
    step = max(1, _PIECE // each)
    for start in range(0, len(column), step):
        yield start, np.asarray(column[start : start + step])


def _where(column: Array, wrong: Callable[[Array], Array], suspect: Callable[[Array], bool]) -> Array:
    """Rows with at least one wrong element, ascending int64."""
    found = [np.empty(0, np.int64)]
    for start, piece in _pieces(column):
        if suspect(piece):
            mask = wrong(piece)
            found.append(start + np.flatnonzero(mask.reshape(len(piece), -1).any(axis=1)))
    return np.concatenate(found)
