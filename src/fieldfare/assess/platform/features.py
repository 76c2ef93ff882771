"""Feature tables: what each entity's features were at its moment, never later; from a folder of Parquet files.

Here: what a feature store does, and the one in a folder. Not here: Feast's (`feast_store`), where features should live
(`assess.features`). Layout: `<root>/<view>/view.json` is {keys, time, ttl_s}, beside it Parquet files of rows, each
with its keys and its time. Invariants: a row comes back for every entity given, in their order; a value is that of the
newest row at or before the entity's moment; of rows of one moment that of the last file, by name, and of its last row.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fieldfare.assess.artefact import column, words
from fieldfare.assess.trace import sql
from fieldfare.core.errors import UsageError
from fieldfare.fleet.columns import Array, Text, read_columns, write_columns
from fieldfare.store.files import write_atomic
from fieldfare.store.text import dumps

TIME = "t_s"
"""The entities' column of moments, seconds of the UTC epoch."""
ROW = "fieldfare_row"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

Table = dict[str, Array | Text]


@dataclass(frozen=True, slots=True)
class Schema:
    """A view: its `keys`, `features` by name with their types, its `time` column, and how old a value may be."""

    view: str
    keys: tuple[str, ...]
    features: Mapping[str, str]
    time: str
    ttl_s: float | None = None


class FeatureStore(Protocol):
    """What holds features: a folder of Parquet files, or Feast."""

    def get_schema(self, view: str) -> Schema:
        """What a view has."""
        ...

    def get_offline(
        self, entities: Mapping[str, Any], features: Sequence[str], from_s: float | None = None,
        to_s: float | None = None,
    ) -> Table:  # fmt: skip
        """The entities' columns and, after them, each of `features` ("view:feature") as of their moment `t_s`.

        Rows of features before `from_s` or after `to_s` are not looked at; entities without `t_s` are as of `to_s`.
        """
        ...


@dataclass(frozen=True, slots=True)
class ParquetFeatures:
    """Views as folders of Parquet files; joined by DuckDB (extra `assess`)."""

    root: Path

    def put(
        self, view: str, columns: Mapping[str, Any], keys: Sequence[str], *, time: str = TIME,
        ttl_s: float | None = None,
    ) -> Path:  # fmt: skip
        """Add rows to a view, as one more file; a new view is made of `keys` and `time`."""
        folder, about = self._folder(view), {"keys": list(keys), "time": time, "ttl_s": ttl_s}
        table = {name: column(values) for name, values in columns.items()}
        if lost := [name for name in (*keys, time) if name not in table]:
            raise UsageError(f"view {view!r}: the rows have no column {lost[0]!r}; they have {', '.join(table)}.")
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "view.json").exists():
            write_atomic(folder / "view.json", [dumps(about, indent=1), b"\n"])
        elif self._about(view) != about:
            raise UsageError(f"view {view!r} has {self._about(view)}, not {about}: give the same, or another view.")
        file = folder / f"part-{len(_files(folder)):06d}.parquet"
        write_columns(file, iter([table]))
        return file

    def get_schema(self, view: str) -> Schema:
        """See `FeatureStore`; types are DuckDB's."""
        with sql.connected() as con:
            return self._schema(con, view)[0]

    def get_offline(
        self, entities: Mapping[str, Any], features: Sequence[str], from_s: float | None = None,
        to_s: float | None = None,
    ) -> Table:  # fmt: skip
        """See `FeatureStore`. Cost: one pass over the views' files, and DuckDB's as-of join; spills to the disk."""
        table = moments(entities, to_s)
        wanted = by_view(features)
        out: Table = {name: column(values) for name, values in entities.items()}
        with tempfile.TemporaryDirectory(prefix="fieldfare-") as folder, sql.connected() as con:
            for view, names in wanted.items():
                schema, types = self._schema(con, view)
                check(schema, names, table)
                query = self._query(schema, names, types, from_s, to_s)
                out |= _joined(con, query, {name: table[name] for name in (*schema.keys, TIME)}, Path(folder))
        return out

    def _query(
        self, schema: Schema, names: Sequence[str], types: Mapping[str, str], from_s: float | None, to_s: float | None
    ) -> str:
        """The as-of join of the view `e` of entities with the rows of a view of features, its result unordered."""
        keys = ", ".join(map(sql.name, schema.keys))
        cast = ", ".join(f"TRY_CAST({sql.name(key)} AS {types[key]}) AS {sql.name(key)}" for key in schema.keys)
        same = " AND ".join(f"e.{key} = f.{key}" for key in map(sql.name, schema.keys))
        t = _seconds(schema.time, types[schema.time])
        limits = [f"{t} IS NOT NULL", *([] if from_s is None else [f"{t} >= {float(from_s)!r}"]),
                  *([] if to_s is None else [f"{t} <= {float(to_s)!r}"])]  # fmt: skip
        fresh = "TRUE" if schema.ttl_s is None else f"e.{TIME} - f.fieldfare_t <= {schema.ttl_s!r}"
        shown = ", ".join(f"CASE WHEN {fresh} THEN f.{sql.name(one)} END AS {sql.name(one)}" for one in names)
        return f"""
            WITH f AS (
                SELECT {keys}, {t} AS fieldfare_t, {", ".join(_plain(one, types[one]) for one in names)}
                FROM {self._rows(schema.view, numbered=True)} WHERE {" AND ".join(limits)}
                QUALIFY row_number() OVER (PARTITION BY {keys}, {t} ORDER BY filename DESC, file_row_number DESC) = 1
            ), e AS (SELECT {cast}, {TIME}, {ROW} FROM entities)
            SELECT e.{ROW}, {shown} FROM e ASOF LEFT JOIN f ON {same} AND e.{TIME} >= f.fieldfare_t"""

    def _schema(self, con: Any, view: str) -> tuple[Schema, dict[str, str]]:
        """A view's schema, and the types of all its columns."""
        about = self._about(view)
        types = {
            str(row[0]): str(row[1]) for row in con.execute(f"DESCRIBE SELECT * FROM {self._rows(view)}").fetchall()
        }
        keys, time = tuple(about["keys"]), str(about["time"])
        if lost := [name for name in (*keys, time) if name not in types]:
            raise UsageError(f"view {view!r}: its files have no column {lost[0]!r}; they have {', '.join(types)}.")
        features = {name: kind for name, kind in types.items() if name not in (*keys, time)}
        return Schema(view, keys, features, time, about["ttl_s"]), types

    def _folder(self, view: str) -> Path:
        if not _NAME.fullmatch(view):
            raise UsageError(f"view {view!r}: use letters, digits, dots, dashes and underscores.")
        return self.root / view

    def _about(self, view: str) -> dict[str, Any]:
        file = self._folder(view) / "view.json"
        try:
            told = json.loads(file.read_bytes())
            return {"keys": [str(one) for one in told["keys"]], "time": str(told["time"]),
                    "ttl_s": None if told.get("ttl_s") is None else float(told["ttl_s"])}  # fmt: skip
        except FileNotFoundError:
            there = sorted(one.parent.name for one in self.root.glob("*/view.json"))
            raise UsageError(f"{self.root} has no view {view!r}: it has {', '.join(there) or 'none'}.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file} is damaged ({error!r}): it says keys, time and ttl_s.") from None

    def _rows(self, view: str, *, numbered: bool = False) -> str:
        files = _files(self._folder(view))
        if not files:
            raise UsageError(f"view {view!r} of {self.root} has no Parquet file yet: put rows there.")
        listed = ", ".join(sql.text(str(one)) for one in files)
        more = ", filename = true, file_row_number = true" if numbered else ""
        return f"read_parquet([{listed}], union_by_name = true{more})"


def store_at(where: str) -> FeatureStore:
    """A feature store by its address: `feast:REPO` (extra `feast`), anything else is a folder of Parquet files."""
    if where.startswith("feast:"):
        from fieldfare.assess.platform.feast_store import FeastFeatures

        return FeastFeatures(where.removeprefix("feast:"))
    if not Path(where).is_dir():
        raise UsageError(f"{where} is no folder: name a feature store's folder, or feast:REPO.")
    return ParquetFeatures(Path(where))


def with_features(
    columns: Mapping[str, Array | Text], where: str, features: Sequence[str], time: str | None = None
) -> tuple[Table, dict[str, Any]]:
    """A table of examples with features as of each row's moment (its column `time`), and how to cite them.

    The citation's hash is of the values that were joined, whichever store they are from.
    """
    moment = time or TIME
    if moment not in columns:
        raise UsageError(f"the table has no column {moment!r} of moments: name it (timestamp), to join features.")
    keys = {name: values for name, values in columns.items() if name != moment}
    joined = store_at(where).get_offline({**keys, TIME: columns[moment]}, features)
    names = [one.partition(":")[2] for one in features]
    found = hashlib.sha256()
    for name in names:
        values = joined[name]
        told = "\0".join(words(values)).encode() if isinstance(values, Text) else np.ascontiguousarray(values).tobytes()
        found.update(name.encode() + b"\0" + told)
    cited = {"kind": "features", "path": ",".join(features), "sha256": found.hexdigest()}
    return {**columns, **{name: joined[name] for name in names}}, cited


def by_view(features: Sequence[str]) -> dict[str, list[str]]:
    """Features by their view, in their order.

    >>> by_view(["a:x", "b:z", "a:y"])
    {'a': ['x', 'y'], 'b': ['z']}
    """
    out: dict[str, list[str]] = {}
    for one in features:
        view, colon, name = one.partition(":")
        if not colon or not view or not name:
            raise UsageError(f"feature {one!r}: use VIEW:FEATURE.")
        out.setdefault(view, []).append(name)
    names = [name for each in out.values() for name in each]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two of the features are called {twice[0]!r}: ask for them one after the other.")
    if not names:
        raise UsageError("no feature is asked for: give VIEW:FEATURE.")
    return out


def moments(entities: Mapping[str, Any], to_s: float | None) -> Table:
    """The entities' columns with their moments, none later than `to_s`; `UsageError` where there are none."""
    table: Table = {name: column(values) for name, values in entities.items()}
    rows = {len(values) for values in table.values()}
    if len(rows) != 1:
        raise UsageError(f"the entities' columns have {sorted(rows)} rows, not one number.")
    if TIME not in table:
        if to_s is None:
            raise UsageError(f"the entities have no {TIME}: give moments, or to_s for all of them.")
        table[TIME] = np.full(rows.pop(), float(to_s))
        return table
    given = table[TIME]
    if isinstance(given, Text) or not np.isfinite(np.asarray(given, np.float64)).all():
        raise UsageError(f"the entities' {TIME} must be numbers, seconds of the UTC epoch, none of them missing.")
    t = np.asarray(given, np.float64)
    table[TIME] = t if to_s is None else np.minimum(t, float(to_s))
    return table


def check(schema: Schema, names: Sequence[str], table: Table) -> None:
    """Refuse a feature that a view does not have, keys that the entities lack, and names that would be lost."""
    for name in names:
        if name not in schema.features:
            raise UsageError(f"view {schema.view!r} has no feature {name!r}: it has {', '.join(schema.features)}.")
        if name in table:
            raise UsageError(f"the entities have a column {name!r} already: rename it.")
    for name in schema.keys:
        if name not in table:
            raise UsageError(f"view {schema.view!r} goes by {', '.join(schema.keys)}: the entities have no {name!r}.")


def _joined(con: Any, query: str, entities: Table, folder: Path) -> Table:
    """The features that `query` finds, a row for each of the entities, in their order."""
    given, target = folder / "entities.parquet", folder / "joined.parquet"
    numbered: Table = {**entities, ROW: np.arange(len(entities[TIME]))}
    write_columns(given, iter([numbered]))
    con.execute(f"CREATE OR REPLACE TEMP VIEW entities AS SELECT * FROM read_parquet({sql.text(str(given))})")
    con.execute(f"COPY ({query}) TO {sql.text(str(target))} (FORMAT parquet)")
    found = read_columns(target)
    order = np.argsort(np.asarray(found.pop(ROW)), kind="stable")
    return {name: _taken(values, order) for name, values in found.items()}


def _seconds(name: str, kind: str) -> str:
    """A time column in seconds."""
    if kind.startswith(("TIMESTAMP", "DATE")):
        return f"epoch_us({sql.name(name)}::TIMESTAMPTZ) / 1e6"
    return f"{sql.name(name)}::DOUBLE"


def _plain(name: str, kind: str) -> str:
    """A feature as a number or a text."""
    return f"{sql.name(name)}::DOUBLE AS {sql.name(name)}" if kind == "BOOLEAN" else sql.name(name)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _taken(values: Array | Text, order: Array) -> Array | Text:
    return column([words(values)[i] for i in order]) if isinstance(values, Text) else values[order]
