"""Session logs: their columns, read from Parquet or CSV by DuckDB and looked over before anything is computed.

A row is a session of one client: `client` (whole numbers, or text, which becomes numbers by a keyed hash), `start_s`,
`end_s` (seconds, of UTC's epoch or from a Monday 0 h; or timestamps), and, all optional: `background` (spans within the
session, text "s:e;s:e" or a list of pairs), `wifi`, `charging` (true or false), `battery` (0 to 1), `os`, `os_version`,
`os_release_date`, `device_model`, `device_class`, `region`, `tz_offset_s` (east of UTC), `account_age_days`,
`reputation`, `last_participation_s`, `bw_class`. Empty (or not finite) is unknown. Other columns are left alone. Not
here: what is made of them (`gaps`, `part`). Invariant: time is whole milliseconds from here on, so that every sum is
exact; a text that is not understood is refused, never unknown.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fieldfare.assess.trace.sql import name as named
from fieldfare.assess.trace.sql import text, told
from fieldfare.core.errors import UsageError
from fieldfare.fleet.availability import DAY_S, LAST_EPOCH_S, WEEK_S
from fieldfare.fleet.columns import is_parquet

HOUR_MS, DAY_MS, WEEK_MS, BIN_MS = 3_600_000, 86_400_000, 604_800_000, 300_000
MONDAY_MS = 4 * DAY_MS
"""The first Monday 0 h of UTC's epoch, 5 January 1970."""

_KINDS = {
    "client": "BIGINT", "start_s": "DOUBLE", "end_s": "DOUBLE", "wifi": "BOOLEAN", "battery": "DOUBLE",
    "charging": "BOOLEAN", "os": "VARCHAR", "os_version": "VARCHAR", "os_release_date": "DATE",
    "device_model": "VARCHAR", "device_class": "VARCHAR", "region": "VARCHAR", "tz_offset_s": "DOUBLE",
    "account_age_days": "DOUBLE", "reputation": "DOUBLE", "last_participation_s": "DOUBLE", "bw_class": "VARCHAR",
}  # fmt: skip
_ALIASES = {"client": ("client_id", "id", "device", "user"), "start_s": ("start",), "end_s": ("end",)}
ATTRIBUTES = tuple(one for one in _KINDS if one not in ("client", "start_s", "end_s", "battery", "charging"))


Piece = tuple[str, int, int]
"""A file's rows from the first on to before the second number; of 0 and 0 all of them."""


@dataclass(frozen=True)
class Log:
    """A log that was looked over: how to read it, and what it spans.

    `select`: a query of `client`, `start_ms`, `end_ms`, `background` (list of structs of milliseconds, or NULL) and the
    columns of the schema, NULL where the log has none. `has`: columns that the log has. `from_ms`, `to_ms`: the window
    used; `origin_ms`: a Monday 0 h at or before it; `rows`: in the log. `source` is what `select` reads, `kinds` the
    types of its columns.
    """

    paths: tuple[str, ...]
    select: str
    has: frozenset[str]
    rows: int
    from_ms: int
    to_ms: int
    origin_ms: int
    source: str = ""
    kinds: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def bins(self) -> int:
        """Spans of five minutes in the window."""
        return (self.to_ms - self.from_ms) // BIN_MS

    def of(self, pieces: Sequence[Piece]) -> Log:
        """The same log, of these pieces alone: with all columns, in the types they have in the whole."""
        empty = ", ".join(f"NULL::{kind} AS {named(one)}" for one, kind in self.kinds.items())
        some = [f"SELECT {empty} WHERE false"]
        whole = [file for file, _, end in pieces if not end]
        some += [f"SELECT * FROM {_source(whole, self.kinds)}"] if whole else []
        some += [
            f"SELECT * EXCLUDE (file_row_number) FROM read_parquet({text(file)}, file_row_number = true) "
            f"WHERE file_row_number >= {first} AND file_row_number < {end}"
            for file, first, end in pieces if end
        ]  # fmt: skip
        source = f"({' UNION ALL BY NAME '.join(some)})"
        paths = tuple(dict.fromkeys(file for file, _, _ in pieces))
        return replace(self, paths=paths, source=source, select=self.select.replace(self.source, source))

    def need(self, criterion: str, *columns: str) -> None:
        """Refuse a criterion whose columns the log lacks."""
        for one in columns:
            if one not in self.has:
                raise UsageError(
                    f"criterion {criterion}: the log has no column {one!r}; leave the criterion out, or say what the "
                    f"column is called (columns.{one} = NAME)."
                )


def open_log(
    con: Any, paths: Sequence[str | Path], columns: Mapping[str, Any], id_key: str, weeks: int,
    from_s: float | None = None, to_s: float | None = None,
) -> Log:  # fmt: skip
    """Look over the log in `paths` (files, folders or patterns); one pass. `id_key`: of the hash of text ids.

    The window begins at `from_s` (default: the first session, on a multiple of five minutes) and holds `weeks` whole
    weeks at most; a log whose last six hours are empty counts as whole. Raises `UsageError` in one line for anything
    amiss.
    """
    files = _files(paths)
    source = _source(files)
    with told(f"{files[0]} cannot be read"):
        kinds = {str(r[0]): str(r[1]) for r in con.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
    found = _found(kinds, columns, files[0])
    select, faults = _select(found, kinds, source, id_key)
    with told(f"{files[0]} cannot be read"):
        row = con.execute(_look(faults, select)).fetchone()
    rows, first, last, *bad = row
    if not rows:
        raise UsageError(f"{files[0]} holds no session: give a log with at least one row.")
    for (_, why), count in zip(faults, bad, strict=True):
        if count:
            raise UsageError(f"{files[0]}: {count} of {rows} rows {why}")
    start, stop = _window(first, last, weeks, from_s, to_s, files[0])
    epoch = start >= 100_000_000_000  # before April 1973, times count from a Monday 0 h of their own
    phase = MONDAY_MS if epoch else 0
    origin = start - (start - phase) % WEEK_MS
    return Log(tuple(files), select, frozenset(found), int(rows), start, stop, origin, source, kinds)


def pieces_of_files(con: Any, files: Sequence[str], rows: int) -> list[Piece]:
    """Files in pieces of at most so many rows; a CSV file is one piece. Of Parquet files only the feet are read."""
    if not is_parquet(Path(files[0])):
        return [(one, 0, 0) for one in files]
    listed = "[" + ", ".join(text(one) for one in files) + "]"
    with told(f"{files[0]} cannot be read"):
        counts = dict(con.execute(f"SELECT file_name, num_rows FROM parquet_file_metadata({listed})").fetchall())
    found: list[Piece] = []
    for file in files:
        count = counts[file]
        found += [(file, at, min(at + rows, count)) for at in range(0, count, rows)] if count > rows else [(file, 0, 0)]
    return found


def _files(paths: Sequence[str | Path]) -> list[str]:
    out: list[str] = []
    for one in paths:
        place = Path(one)
        if place.is_dir():
            found = sorted(str(p) for p in place.iterdir() if p.suffix in (".parquet", ".csv") and p.is_file())
        else:
            found = [str(place)] if place.is_file() else sorted(glob.glob(str(one)))
        if not found:
            raise UsageError(f"{one} is no file, nor a folder of .parquet or .csv files: give a session log.")
        out.extend(found)
    return out


def _source(files: Sequence[str], kinds: Mapping[str, str] | None = None) -> str:
    forms = {is_parquet(Path(one)) for one in files}
    if len(forms) > 1:
        raise UsageError(f"{files[0]} and the others are Parquet and CSV mixed: give a log of one form.")
    listed = "[" + ", ".join(text(one) for one in files) + "]"
    if forms.pop():
        return f"read_parquet({listed}, union_by_name = true)"
    told = ", ".join(f"{text(one)}: {text(kind)}" for one, kind in (kinds or {}).items())
    return f"read_csv({listed}, header = true{f', types = {{{told}}}' if told else ''})"


def _found(kinds: Mapping[str, str], columns: Mapping[str, Any], place: str) -> dict[str, str]:
    """Where each column of the schema stands in the log, by its name there."""
    lower = {one.lower(): one for one in kinds}
    out: dict[str, str] = {}
    known = (*_KINDS, "background")
    for ours, theirs in columns.items():
        if ours not in known:
            raise UsageError(f"columns.{ours}: a session log has no such column; it takes {', '.join(known)}.")
        if str(theirs).lower() not in lower:
            raise UsageError(f"columns.{ours} = {theirs!r}: {place} has no such column; it has {', '.join(kinds)}.")
        out[ours] = lower[str(theirs).lower()]
    for ours in known:
        for one in (ours, *_ALIASES.get(ours, ())):
            if ours not in out and one in lower:
                out[ours] = lower[one]
    for ours in ("client", "start_s", "end_s"):
        if ours not in out:
            raise UsageError(f"{place}: column {ours!r} is missing; it has {', '.join(kinds)}.")
    return out


def _select(
    found: Mapping[str, str], kinds: Mapping[str, str], source: str, id_key: str
) -> tuple[str, list[tuple[str, str]]]:
    """(the query, [(a condition that is true of a wrong row, what is wrong)]); conditions are on the query's rows."""
    exprs: dict[str, str] = {}
    faults: list[tuple[str, str]] = []
    for ours, kind in _KINDS.items():
        if ours not in found:
            exprs[ours] = f"NULL::{kind}"
            continue
        raw = named(found[ours])
        held = kinds[found[ours]]
        if held in ("DOUBLE", "FLOAT"):
            raw = f"(CASE WHEN isfinite({raw}) THEN {raw} END)"  # isnan: DuckDB 2.0 folds it by a file's statistics
        elif held.startswith("TIMESTAMP") and kind == "DOUBLE":
            raw = f"epoch({raw})"
        if ours == "client" and held in ("VARCHAR", "UUID"):
            exprs[ours] = f"(md5_number_lower({text(id_key)} || {raw}::VARCHAR) >> 1)::BIGINT"
        elif ours == "client":
            exprs[ours] = f"CASE WHEN {raw} = floor({raw}) THEN try_cast({raw} AS BIGINT) END"
            exprs["bad_client"] = f"{raw} IS NOT NULL AND {exprs[ours]} IS NULL"
            faults.append(("bad_client", "have another client than a whole number or text: number them."))
        elif kind == "VARCHAR":
            exprs[ours] = f"nullif(trim({raw}::VARCHAR), '')"
        else:
            exprs[ours] = f"try_cast({raw} AS {kind})"
            what = {"BOOLEAN": "true or false", "DATE": "a date such as 2019-09-01"}
            faults.append((f"bad_{ours}", f"have another {ours} than {what.get(kind, 'a number')}: mend them."))
            exprs[f"bad_{ours}"] = f"{raw} IS NOT NULL AND {exprs[ours]} IS NULL"
    spans, wrong = _background(found, kinds)
    inner = ", ".join(f"{expr} AS {key}" for key, expr in (exprs | {"spans": spans}).items())
    ms = {key: f"round({key} * 1000)::BIGINT" for key in ("start_s", "end_s", "tz_offset_s", "last_participation_s")}
    rest = ", ".join(one for one in _KINDS if one not in ("client", "start_s", "end_s"))
    good = "isfinite(start_s) AND isfinite(end_s) AND abs(start_s) < 1e15 AND abs(end_s) < 1e15"
    faults += [
        ("client IS NULL", "name no client: give each its id."),
        (f"NOT coalesce({good}, false)", "lack a start or an end in seconds: give both."),
        ("end_ms < start_ms", "end before they start: give (start, end) in this order."),
        ("start_ms < 0", "start before second 0: give seconds of UTC's epoch, or from a Monday 0 h."),
        (f"end_s > {LAST_EPOCH_S:g}", "end after the year 5138: the times look like milliseconds; give seconds."),
        ("battery < 0 OR battery > 1", "have a battery outside of 0 to 1: give shares, and leave unknown ones empty."),
        ("abs(tz_offset_s) > 64800", "have a tz_offset_s of more than 18 hours: give seconds east of UTC."),
        (wrong, "have background spans that do not ascend or cannot be read: write start:end;start:end in seconds."),
    ]
    bad = ", ".join(one for one in exprs if one.startswith("bad_")) or "false AS bad_none"
    outer = (
        f"SELECT client, CASE WHEN {good} THEN {ms['start_s']} END AS start_ms, "
        f"CASE WHEN {good} THEN {ms['end_s']} END AS end_ms, "
        f"round(tz_offset_s * 1000)::BIGINT AS tz_ms, round(last_participation_s * 1000)::BIGINT AS last_ms, "
        f"spans AS background, start_s, end_s, {rest}, {bad} FROM (SELECT {inner} FROM {source})"
    )
    return outer, faults


def _background(found: Mapping[str, str], kinds: Mapping[str, str]) -> tuple[str, str]:
    """(spans as a list of structs of milliseconds, condition of a wrong list) of the column `background`."""
    kind = "STRUCT(s BIGINT, e BIGINT)[]"
    if "background" not in found:
        return f"NULL::{kind}", "false"
    raw, held = named(found["background"]), kinds[found["background"]]
    if held == "VARCHAR":
        times = [f"round(try_cast(split_part(x, ':', {i}) AS DOUBLE) * 1000)::BIGINT" for i in (1, 2)]
        made = f"[{{'s': {times[0]}, 'e': {times[1]}}} for x in string_split({raw}, ';') if trim(x) <> '']"
    elif held.endswith("[][]") or held.endswith("[2][]"):
        made = f"[{{'s': round(x[1] * 1000)::BIGINT, 'e': round(x[2] * 1000)::BIGINT}} for x in {raw}]"
    else:
        raise UsageError(f"column {found['background']!r} is {held}: give text 's:e;s:e', or lists of (start, end).")
    times = "flatten([[x.s, x.e] for x in background])"
    wrong = f"list_sort({times}) <> {times} OR len({times}) <> list_count({times})"
    return f"({made})::{kind}", wrong


def _look(faults: Sequence[tuple[str, str]], select: str) -> str:
    counts = ", ".join(f"count(*) FILTER (WHERE {condition})" for condition, _ in faults)
    return f"SELECT count(*), min(start_ms), max(end_ms), {counts} FROM ({select})"


def _window(first: int, last: int, weeks: int, from_s: float | None, to_s: float | None, place: str) -> tuple[int, int]:
    start = (first if from_s is None else round(from_s * 1000)) // BIN_MS * BIN_MS
    stop = last if to_s is None else round(to_s * 1000)
    span = stop - start + (6 * HOUR_MS if to_s is None else 0)
    whole = min(weeks, span // WEEK_MS)
    length = whole * WEEK_MS if whole else span // DAY_MS * DAY_MS
    if length <= 0:
        raise UsageError(
            f"{place} spans {max(0, stop - start) / HOUR_MS:.3g} hours: a trace needs at least one whole day "
            f"({DAY_S:.0f} s), better one or two whole weeks ({WEEK_S:.0f} s each)."
        )
    return start, start + length
