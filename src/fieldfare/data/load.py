"""Data sets from arrays: scikit-learn's digits, arrays in memory, `.npz` files.

Here also: `Split` and `assembled`, the one way every loader turns rows into clients. Not here: tables (`tables`),
images (`images`), text (`text`), generated data (`generate`). Invariant: columns are not copied; only the central
test rows are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.core.rng import stream
from fieldfare.data import checks
from fieldfare.data.federated import Federated, classes_of, tidy
from fieldfare.data.partition import Partition, as_ids, dirichlet, natural, prepared, shared_out, told

Array = NDArray[Any]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Who owns which rows: the clients' index, their names, and the rows kept for a central test, int64 `[t]`."""

    offsets: I64
    rows: I64
    names: Array | None
    test_rows: I64

    @staticmethod
    def of(
        columns: Mapping[str, Array],
        client: ArrayLike | None,
        partition: Partition | None,
        clients: int | None = None,
        test_fraction: float = 0.0,
        seed: int = 0,
    ) -> Split:
        """Split rows by their client ids, or by a partitioner; exactly one of the two is given.

        The test rows are `test_fraction` of each client's rows where the clients are given (everyone keeps one
        at least), and of all rows, at random, where they are made.
        """
        n_rows = checks.check_columns(columns, "column")
        if (client is None) == (partition is None):
            raise UsageError("say who owns the rows once: by client ids (client=, id_column=) or by partition=.")
        if not 0.0 <= test_fraction < 1.0:
            raise UsageError(f"test_fraction={test_fraction} must be at least 0 and below 1; 0.2 keeps a fifth.")
        if partition is not None:
            order = stream(seed, "split").permutation(n_rows)
            kept = np.sort(order[round(test_fraction * n_rows) :])
            column = getattr(partition, "column", "y")
            seen = {name: np.asarray(c)[kept] for name, c in columns.items() if name == column}
            plan = prepared(partition, clients)
            offsets, rows, names = shared_out(plan, seen or {"row": kept}, seed)
            return Split(offsets, kept[rows], names, np.setdiff1d(order, kept))
        ids = as_ids(client)
        if clients is not None:
            raise UsageError(f"clients={clients} has no meaning where the rows name their clients; leave it out.")
        if len(ids) != n_rows:
            raise UsageError(f"there are {len(ids)} client ids for {n_rows} rows; give one per row.")
        offsets, rows, names = shared_out(natural(), {"client": ids}, seed)
        if not test_fraction:
            return Split(offsets, rows, names, np.empty(0, np.int64))
        held = Federated({"row": np.arange(n_rows)}, offsets, rows, names).holdout(test_fraction, seed)
        return Split(held.offsets, held.rows, names, np.sort(held.held_rows))

    def federated(
        self, columns: Mapping[str, Array], classes: int | None = None, name: str = "data", check: bool = True
    ) -> Federated:
        """The data set over these columns, its test columns gathered."""
        test = {name: column[self.test_rows] for name, column in columns.items()} if len(self.test_rows) else None
        number = classes_of(columns, None) if classes is None else classes
        return Federated(columns, self.offsets, self.rows, self.names, number, test, name=name, check=check)


def from_numpy(
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    client: ArrayLike | None = None,
    partition: Partition | None = None,
    clients: int | None = None,
    test: Mapping[str, ArrayLike] | None = None,
    test_fraction: float = 0.0,
    classes: int | None = None,
    seed: int = 0,
    name: str = "arrays",
    check: bool = True,
) -> Federated:
    """A data set over arrays (or memory maps) of equal length, owned by the ids `client` or by a `partition`.

    `test`: central test columns of your own, or `test_fraction` to take them from the rows. `classes` defaults to
    the largest label + 1 for integer `y`. Nothing is copied but the test rows. `check=False` skips the search for
    NaN, which reads every byte.

    >>> from_numpy(np.eye(4), [0, 1, 0, 1], client=["ann", "bob", "ann", "ann"]).sizes.tolist()
    [3, 1]
    """
    columns = {"x": tidy(x)} | ({} if y is None else {"y": tidy(y)})
    split = Split.of(columns, client, partition, clients, test_fraction, seed)
    if test is None:
        return split.federated(columns, classes, name, check)
    if test_fraction:
        raise UsageError("test and test_fraction were both given; give one of them.")
    tests = {name: tidy(column) for name, column in test.items()}
    number = classes_of(columns, tests) if classes is None else classes
    return Federated(columns, split.offsets, split.rows, split.names, number, tests, name=name, check=check)


def from_npz(
    path: str | Path,
    *,
    x: str = "x",
    y: str | None = "y",
    client: str | None = None,
    partition: Partition | None = None,
    clients: int | None = None,
    test: Mapping[str, str] | None = None,
    test_fraction: float = 0.0,
    scale: float | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> Federated:
    """A data set from the arrays of an `.npz` file; pickled arrays are refused.

    `x`, `y`, `client`: names of arrays in the file. `test`: which arrays are the central test columns, for example
    `{"x": "x_test", "y": "y_test"}`. `scale` multiplies `x` (and the test `x`) and makes it float32: 1/255 for
    bytes of an image.
    """
    arrays = _npz(Path(path))

    def take(name: str) -> Array:
        if name not in arrays:
            raise UsageError(f"{path} has no array {name!r}; it has {sorted(arrays)}.")
        return arrays[name]

    def scaled(array: Array) -> Array:
        return array if scale is None else array.astype(np.float32) * np.float32(scale)

    tests = None if test is None else {k: scaled(take(n)) if k == "x" else take(n) for k, n in test.items()}
    return from_numpy(
        scaled(take(x)),
        None if y is None else take(y),
        client=None if client is None else take(client),
        partition=partition,
        clients=clients,
        test=tests,
        test_fraction=test_fraction,
        classes=classes,
        seed=seed,
        name=Path(path).name,
    )


def _npz(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise UsageError(f"{path} is not a file; give the path of an .npz file.")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise UsageError(f"{path} holds one array; load it with np.load(path, mmap_mode='r') and from_numpy.")
        with loaded as file:
            return {name: file[name] for name in file.files}
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{path} cannot be read as .npz without pickles ({error}); save it with np.savez.") from None


def digits(
    clients: int | None = None,
    partition: Partition = dirichlet(0.3),
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Federated:
    """scikit-learn's handwritten digits shared out to `clients` (100 unless the partition says otherwise).

    1,797 images of 8 x 8 pixels: `x` float32 `[rows, 64]` in [0, 1], `y` int64 0..9; a random `test_fraction` is
    the central test set. Needs the extra `digits`; downloads nothing. Data: Alpaydin & Kaynak 1998 (UCI), the
    copy of its test part that scikit-learn ships.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra.of("scikit-learn", extra="digits") from None
    x, y = load_digits(return_X_y=True)
    plan = prepared(partition, clients, default=100)
    columns = {"x": (x / 16.0).astype(np.float32), "y": y.astype(np.int64)}
    name = f"digits, {told(plan)}, test fraction {test_fraction:g}, seed {seed}"
    return Split.of(columns, None, plan, None, test_fraction, seed).federated(columns, 10, name)
