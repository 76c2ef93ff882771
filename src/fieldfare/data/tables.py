"""Tables with one row per example: CSV and Parquet files, Hugging Face data sets.

Here: reading columns, and turning them into inputs and labels. Not here: who owns which row (`load.Split`).
Invariant: whatever is learnt from the values (fills, means) is learnt from the clients' training rows alone.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.data.federated import Federated
from fieldfare.data.load import Split, from_numpy
from fieldfare.data.partition import Partition

Array = NDArray[Any]
Fill = float | str | Mapping[str, float | str]
MISSING = ("", "?", "na", "n/a", "nan", "null", "none")


def read_csv(path: str | Path, delimiter: str = ",", missing: Sequence[str] = MISSING) -> dict[str, Array]:
    """Columns of a CSV file with a header: int64, or float64 with NaN where missing, or text with "" there.

    `missing`: spellings of a missing value, compared in lower case without surrounding blanks.
    """
    place = Path(path)
    if not place.is_file():
        raise UsageError(f"{place} is not a file; give the path of a CSV file with a header line.")
    with place.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter)
        header = [name.strip() for name in next(reader, [])]
        lines = []
        for line in reader:
            if not line:
                continue
            if len(line) != len(header):
                raise UsageError(
                    f"{place}, line {reader.line_num}: {len(line)} fields, the header has {len(header)}; mend the "
                    "line, or pass the delimiter."
                )
            lines.append(line)
    if not lines or len(set(header)) < len(header):
        raise UsageError(f"{place} needs a header of different names and at least one line below it.")
    gone = {word.lower() for word in missing}
    return {name: _typed(column, gone) for name, column in zip(header, zip(*lines, strict=True), strict=True)}


def _typed(words: Sequence[str], gone: set[str]) -> Array:
    text = np.array(["" if word.strip().lower() in gone else word.strip() for word in words], np.str_)
    try:
        numbers = np.where(text == "", "nan", text).astype(np.float64)
    except ValueError:
        return text
    return _whole(numbers)


def _whole(numbers: Array) -> Array:
    if np.isfinite(numbers).all() and (np.abs(numbers) < 2**53).all() and (numbers == np.floor(numbers)).all():
        return numbers.astype(np.int64)
    return numbers


def read_parquet(path: str | Path, columns: Sequence[str] | None = None) -> dict[str, Array]:
    """Columns of a Parquet file or folder, missing values as in `read_csv`; lists of equal length become `[rows, k]`.

    Needs the extra `parquet` (pyarrow).
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra.of("pyarrow", extra="parquet") from None
    if not Path(path).exists():
        raise UsageError(f"{path} does not exist; give the path of a Parquet file or a folder of them.")
    try:
        have = pq.ParquetDataset(path).schema.names
        lost = [name for name in columns or () if name not in have]
        table = None if lost else pq.read_table(path, columns=None if columns is None else list(columns))
    except Exception as error:
        raise UsageError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    if table is None:
        raise UsageError(f"{path} has no column {lost[0]!r}; it has {have}.")
    return {name: _from_arrow(name, table.column(name)) for name in table.column_names}


def _from_arrow(name: str, column: Any) -> Array:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array([value or "" for value in column.to_pylist()], np.str_)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        try:
            return np.array(column.to_pylist(), dtype=np.float32)
        except (ValueError, TypeError):
            raise UsageError(f"column {name!r} holds lists of different lengths; pad them first.") from None
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if pa.types.is_boolean(kind):
        return np.array([np.nan if value is None else value for value in column.to_pylist()], np.float64)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise UsageError(f"column {name!r} is {kind}; make it numbers or text, or leave it out with features=[...].")
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    return np.asarray(column.to_numpy())


def from_table(
    table: Mapping[str, Array],
    id_column: str | None = None,
    label: str | None = None,
    *,
    features: Sequence[str] | None = None,
    one_hot: Sequence[str] = (),
    fill: Fill | None = None,
    standardise: bool = False,
    partition: Partition | None = None,
    clients: int | None = None,
    test_fraction: float = 0.0,
    classes: int | None = None,
    seed: int = 0,
    name: str = "table",
) -> Federated:
    """A data set from columns: `x` float32 `[rows, features]`, `y` int64 labels or float32 targets.

    `id_column` names the clients, or `partition` makes them. `features`: columns of `x` (default: all numeric
    ones; a text column left over is an error); `one_hot`: text or number columns that become one 0/1 feature per
    value, in sorted order. `label`: text becomes 0..C-1 in sorted order, whole numbers stay as they are, other
    numbers are targets. A missing value is an error unless `fill` is given: a number, "mean", "median", or one of
    these per column; a missing `one_hot` value is then all zeros. `standardise`: every number feature to mean 0,
    standard deviation 1. Means, medians and deviations come from the clients' training rows, pooled (sums over
    clients are all that needs: real devices could send them through a secure sum).
    """
    known = {name: np.asarray(column) for name, column in table.items()}
    for used in [n for n in (id_column, label, *(features or ()), *one_hot) if n is not None]:
        if used not in known:
            raise UsageError(f"there is no column {used!r}; the columns are {list(known)}.")
    spoken_for = {id_column, label, *one_hot}
    numeric = [n for n in (known if features is None else features) if n not in spoken_for]
    worded = [name for name in numeric if known[name].dtype.kind not in "iufb"]
    if worded:
        raise UsageError(
            f"column {worded[0]!r} holds {known[worded[0]].dtype}, no numbers; add it to one_hot=[...], or leave it "
            "out with features=[...]."
        )
    if not numeric and not one_hot:
        raise UsageError(
            "no feature is left after the id and the label; name some with features=[...] or one_hot=[...]."
        )
    y = None if label is None else _labels(label, known[label])
    ids = None if id_column is None else _ids(id_column, known[id_column])
    split = Split.of(_read_by(partition, known, y), ids, partition, clients, test_fraction, seed)
    blocks = [_numbers(name, known[name], fill, standardise, split.rows) for name in numeric]
    blocks += [_dummies(name, known[name], fill) for name in one_hot]
    columns: dict[str, Array] = {"x": np.concatenate(blocks, axis=1)} | ({} if y is None else {"y": y})
    return split.federated(columns, classes, name)


def _read_by(partition: Partition | None, known: Mapping[str, Array], y: Array | None) -> dict[str, Array]:
    """The column a partitioner reads: the label, a column of the table, or (where it reads none) row numbers."""
    name = getattr(partition, "column", "y")
    if name == "y" and y is not None:
        return {"y": y}
    return {name: known[name]} if name in known else {"row": np.arange(len(next(iter(known.values()))))}


def from_csv(path: str | Path, id_column: str | None = None, label: str | None = None, **options: Any) -> Federated:
    """A data set from a CSV file with a header: `read_csv`, then `from_table` with its options.

    Options of the file itself: `delimiter`, `missing`.
    """
    reading = {name: options.pop(name) for name in ("delimiter", "missing") if name in options}
    return from_table(read_csv(path, **reading), id_column, label, **{"name": Path(path).name, **options})


def from_parquet(
    path: str | Path,
    id_column: str | None = None,
    label: str | None = None,
    *,
    features: Sequence[str] | None = None,
    one_hot: Sequence[str] = (),
    **options: Any,
) -> Federated:
    """A data set from Parquet: `read_parquet` of the columns in use, then `from_table` with its options."""
    used = None
    if features is not None:
        by = getattr(options.get("partition"), "column", "y")
        extra = [] if by in ("y", None) else [by]
        used = list(dict.fromkeys(n for n in (id_column, label, *features, *one_hot, *extra) if n is not None))
    options = {"name": Path(path).name, **options}
    return from_table(read_parquet(path, used), id_column, label, features=features, one_hot=one_hot, **options)


def from_huggingface(
    dataset: Any,
    id_column: str | None = None,
    *,
    x: str | Sequence[str] = "image",
    y: str | None = "label",
    scale: float | None = None,
    partition: Partition | None = None,
    clients: int | None = None,
    test: Any = None,
    test_fraction: float = 0.0,
    classes: int | None = None,
    seed: int = 0,
) -> Federated:
    """A data set from one split of a Hugging Face `datasets.Dataset`, in memory.

    `x`: one column of arrays or images of equal shape, or several columns of numbers side by side (float32).
    `y`: labels; text becomes 0..C-1 in sorted order. `scale` multiplies `x` into float32 (1/255 for images).
    `test`: another split for the central test set.
    """
    if not hasattr(dataset, "with_format") or not hasattr(dataset, "column_names") or isinstance(dataset, Mapping):
        raise UsageError(
            f"from_huggingface needs one split of a datasets.Dataset, got {type(dataset).__name__}; pass for example "
            "load_dataset(name)['train']."
        )
    inputs = _hf_inputs(dataset, x, scale)
    labels, number = _hf_labels(dataset, y) if y is not None else (None, None)
    ids = None if id_column is None else _hf_column(dataset, id_column)
    tests: dict[str, Array] | None = None
    if test is not None:
        tests = {"x": _hf_inputs(test, x, scale)} | ({} if y is None else {"y": _hf_labels(test, y)[0]})
    return from_numpy(
        inputs,
        labels,
        client=ids,
        partition=partition,
        clients=clients,
        test=tests,
        test_fraction=test_fraction,
        classes=number if classes is None else classes,
        seed=seed,
        name=str(getattr(getattr(dataset, "info", None), "dataset_name", None) or "Hugging Face data set"),
    )


def _hf_column(dataset: Any, name: str) -> Array:
    if name not in dataset.column_names:
        raise UsageError(f"the data set has no column {name!r}; it has {list(dataset.column_names)}.")
    values = dataset.select_columns([name]).with_format("numpy")[:][name]
    return np.asarray(values)


def _hf_inputs(dataset: Any, x: str | Sequence[str], scale: float | None) -> Array:
    if isinstance(x, str):
        array = _hf_column(dataset, x)
    else:
        array = np.stack([_hf_column(dataset, name).astype(np.float32) for name in x], axis=1)
    if array.dtype == object:
        raise UsageError(f"column {x!r} holds arrays of different shapes; resize or pad them first.")
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    return array if scale is None else array.astype(np.float32) * np.float32(scale)


def _hf_labels(dataset: Any, y: str) -> tuple[Array, int | None]:
    column = _labels(y, _hf_column(dataset, y))
    feature = dataset.features[y]
    return column, getattr(feature, "num_classes", None)


def _ids(name: str, column: Array) -> Array:
    if column.dtype.kind == "U" and (column == "").any():
        row = int(np.flatnonzero(column == "")[0])
        raise UsageError(f"the client id {name!r} is missing in row {row}; drop the row or name its client.")
    return column


def _labels(name: str, column: Array) -> Array:
    if column.dtype.kind in "iub":
        return column.astype(np.int64)
    gone = np.flatnonzero(column == "") if column.dtype.kind == "U" else np.flatnonzero(np.isnan(column))
    if len(gone):
        raise UsageError(f"label {name!r} is missing in row {gone[0]} ({len(gone)} such rows); drop these rows.")
    if column.dtype.kind == "U":
        return np.unique(column, return_inverse=True)[1].reshape(-1).astype(np.int64)
    whole = _whole(column.astype(np.float64))
    return whole if whole.dtype == np.int64 else column.astype(np.float32)


def _numbers(name: str, column: Array, fill: Fill | None, standardise: bool, rows: Array) -> Array:
    """One feature (or a list column) as float32 `[rows, k]`, filled and standardised by the training `rows`."""
    values = column.astype(np.float64).reshape(len(column), -1)
    gone = np.isnan(values)
    if gone.any():
        how = fill.get(name) if isinstance(fill, Mapping) else fill
        if how is None:
            lines = np.flatnonzero(gone.any(axis=1))
            raise UsageError(
                f"column {name!r} is missing in row {lines[0]} ({len(lines)} such rows of {len(values)}); pass "
                "fill='mean', 'median' or a number, or leave the column out with features=[...]."
            )
        values[gone] = np.broadcast_to(_filling(name, values[rows], how), values.shape)[gone]
    if standardise:
        mean, deviation = values[rows].mean(axis=0), values[rows].std(axis=0)
        values = (values - mean) / np.where(deviation > 0, deviation, 1.0)
    return values.astype(np.float32)


def _filling(name: str, values: Array, how: float | str) -> Array | float:
    if isinstance(how, int | float):
        return float(how)
    if how not in ("mean", "median"):
        raise UsageError(f"fill={how!r} for column {name!r} is unknown; use 'mean', 'median' or a number.")
    if np.isnan(values).all(axis=0).any():
        raise UsageError(f"column {name!r} has no value in any training row, so no {how}; fill it with a number.")
    return np.nanmean(values, axis=0) if how == "mean" else np.nanmedian(values, axis=0)


def _dummies(name: str, column: Array, fill: Fill | None) -> Array:
    """One 0/1 feature per value of the column, float32 `[rows, values]`."""
    gone = column == "" if column.dtype.kind == "U" else np.isnan(column.astype(np.float64))
    if gone.any() and (fill is None or (isinstance(fill, Mapping) and name not in fill)):
        raise UsageError(
            f"column {name!r} is missing in row {np.flatnonzero(gone)[0]} ({int(gone.sum())} such rows); pass fill= to "
            "make such a row all zeros."
        )
    values = np.unique(column[~gone])
    return (column[:, None] == values[None, :]).astype(np.float32)
