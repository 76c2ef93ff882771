"""Columns of one table, read from Parquet or CSV and written to them.

Not here: what a column means (`parquet`, `traces`). Invariant: the size of a table is looked at before memory is
taken; nothing of a file is run.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import MissingExtra, UsageError

Array = NDArray[Any]

MAX_BYTES = 16e9
"""The largest table, as columns in memory, read unless told otherwise: 10,000,000 devices with a week of sessions."""


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A column of text: `codes` int32 `[rows]` into `names`; -1 where it is missing."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def mask(self, *wanted: str) -> NDArray[np.bool_]:
        """Which rows hold one of `wanted`."""
        return np.isin(self.codes, [i for i, name in enumerate(self.names) if name in wanted])


Columns = Mapping[str, Array | Text]


def text_of(words: list[str]) -> Text:
    """A text column; "" is missing."""
    names = {word: i for i, word in enumerate(dict.fromkeys(word for word in words if word))}
    return Text(np.array([names.get(word, -1) for word in words], np.int32), tuple(names))


def words_of(column: Text) -> list[str]:
    """A text column as a list; "" where it is missing."""
    return [column.names[code] if code >= 0 else "" for code in column.codes.tolist()]


def read_columns(path: str | Path, max_bytes: float = MAX_BYTES) -> dict[str, Array | Text]:
    """All columns of a Parquet file (needs the extra `parquet`) or of a CSV file with a header.

    Missing numbers are NaN; points in time become seconds of the UTC epoch. Raises `UsageError` before reading a table
    larger than `max_bytes` in memory.
    """
    place = Path(path)
    if not place.is_file():
        raise UsageError(f"{place} is not a file; give the path of a Parquet or CSV table.")
    return _read_parquet(place, max_bytes) if is_parquet(place) else _read_csv(place, max_bytes)


def is_parquet(place: Path) -> bool:
    """Whether a file begins as Parquet files do."""
    with place.open("rb") as file:
        return file.read(4) == b"PAR1"


def write_columns(place: Path, blocks: Iterator[dict[str, Array | Text]]) -> None:
    """Write blocks of rows as one table, CSV where the name ends so, else Parquet (needs the extra `parquet`)."""
    if place.suffix == ".csv":
        with place.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            for i, block in enumerate(blocks):
                if i == 0:
                    writer.writerow(block)
                columns = [words_of(v) if isinstance(v, Text) else v.tolist() for v in block.values()]
                writer.writerows(zip(*columns, strict=True))
        return
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra.of("pyarrow", extra="parquet") from None
    writer = None
    try:
        for block in blocks:
            table = pa.table({name: _to_arrow(v) for name, v in block.items()})
            writer = writer or pq.ParquetWriter(place, table.schema, compression="zstd")
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _to_arrow(column: Array | Text) -> Any:
    import pyarrow as pa

    if not isinstance(column, Text):
        return pa.array(column)
    codes = pa.array(column.codes, mask=column.codes < 0)
    return pa.DictionaryArray.from_arrays(codes, pa.array(column.names, pa.string()))


def _read_parquet(place: Path, max_bytes: float) -> dict[str, Array | Text]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra.of("pyarrow", extra="parquet") from None
    try:
        with pq.ParquetFile(place) as file:
            schema = file.schema_arrow
            _check_size(place, 8.0 * file.metadata.num_rows * max(1, len(schema)), max_bytes)
            _check_size(place, float(sum(file.metadata.row_group(i).total_byte_size
                                         for i in range(file.metadata.num_row_groups))), max_bytes)  # fmt: skip
            text = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
        table = pq.read_table(place, read_dictionary=text, partitioning=None)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{place} cannot be read as Parquet: {(str(error) or type(error).__name__).splitlines()[0][:200]}"
        ) from None
    return {name: _from_arrow(place, name, table.column(name)) for name in table.column_names}


def _from_arrow(place: Path, name: str, column: Any) -> Array | Text:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind) and not (
        pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
    ):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column, kind = column.dictionary_encode(), None
    if kind is None or pa.types.is_dictionary(kind):
        one = column.unify_dictionaries().combine_chunks()
        one = one.chunk(0) if isinstance(one, pa.ChunkedArray) else one
        codes = one.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        return Text(codes, tuple(str(value) for value in one.dictionary.to_pylist()))
    if pa.types.is_boolean(kind) and not column.null_count:
        return column.to_numpy()
    if pa.types.is_timestamp(kind):
        whole = column.cast(pa.timestamp("us", kind.tz)).cast(pa.int64())
        return np.asarray(whole.to_numpy(), np.float64) * 1e-6
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.asarray(column.to_numpy())
    raise UsageError(f"{place}: column {name!r} is {kind}; make it numbers or text without missing values.")


def _read_csv(place: Path, max_bytes: float) -> dict[str, Array | Text]:
    _check_size(place, 8.0 * place.stat().st_size, max_bytes)
    try:
        with place.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            columns: list[list[str]] = [[] for _ in header]
            for line in reader:
                if not line:
                    continue
                if len(line) != len(header):
                    raise UsageError(
                        f"{place}, line {reader.line_num}: {len(line)} fields, the header has {len(header)}; mend it."
                    )
                for column, word in zip(columns, line, strict=True):
                    column.append(word.strip())
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{place} is neither Parquet nor CSV text: {str(error).splitlines()[0][:100]}.") from None
    if not header or len(set(header)) < len(header):
        raise UsageError(f"{place} needs a header of different names; see docs/fleet.md.")
    return {name: _typed(column) for name, column in zip(header, columns, strict=True)}


def _typed(words: list[str]) -> Array | Text:
    try:
        values = np.array([float(word or "nan") for word in words], np.float64)
    except ValueError:
        return text_of(words)
    whole = np.isfinite(values).all() and (np.abs(values) < 2**53).all() and (values == np.floor(values)).all()
    return values.astype(np.int64) if whole else values


def _check_size(place: Path, held: float, max_bytes: float) -> None:
    if held > max_bytes:
        raise UsageError(
            f"{place} takes about {held:.3g} bytes of memory, more than the {max_bytes:.3g} allowed: pass "
            "max_bytes= if there is enough, or keep fewer rows."
        )
