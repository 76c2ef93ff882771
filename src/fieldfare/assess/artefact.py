"""Artefacts: folders of a manifest and tables, cited by hash.

Here: writing one whole or not at all, reading it, checking that it still is what it was. Not here: what a kind of
artefact means (the tool that writes it says so). Invariants: the hash of an artefact is a function of what is in it
(kind, parameters, values, tables, hashes of its inputs), never of when or where it was written; a folder with a
manifest is complete; a table or a file that is read is what the hash is of, or refused; a manifest is of the shape that
is written here, or refused in one line; nothing of a file is run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any, cast

import numpy as np

from fieldfare import __version__
from fieldfare.core.errors import UsageError
from fieldfare.fleet.columns import Array, Columns, Text, read_columns, text_of, words_of, write_columns
from fieldfare.store.files import write_atomic
from fieldfare.store.text import dumps, plain

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
_HASHED = ("kind", "schema_version", "seed", "params", "values", "inputs", "tables", "files")
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Value:
    """One number that a report may show: SI units; a range where one is known; and how it was come by.

    `how`: measured, simulated, closed form, declared, assumed. `closed`: the closed form's number beside a simulated
    one, where there is both.
    """

    value: float | None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    how: str = "measured"
    closed: float | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Artefact:
    """An artefact on the disk: `manifest` is its JSON; tables are read when asked for."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def params(self) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], self.manifest["params"])

    @property
    def inputs(self) -> Sequence[Mapping[str, Any]]:
        """What it was made of: `{kind, path, sha256}` each; paths are told as given, hashes are what counts."""
        return cast(Sequence[Mapping[str, Any]], self.manifest["inputs"])

    @cached_property
    def sha256(self) -> str:
        """Of what is in it; the same for equal inputs whenever it was written."""
        return _sha256_of(self.manifest)

    @cached_property
    def values(self) -> dict[str, Value]:
        """Its numbers by name."""
        return {name: Value(**one) for name, one in self.manifest["values"].items()}

    def number(self, name: str) -> float | None:
        """The value called `name`, or None where there is none."""
        found = self.values.get(name)
        return None if found is None else found.value

    def table(self, name: str, max_bytes: float = 4e9) -> dict[str, Array | Text]:
        """All columns of a table; `UsageError` where the artefact has none of that name or it was changed since."""
        told = self.manifest["tables"].get(name)
        if told is None:
            raise UsageError(
                f"{self.path} has no table {name!r}: a {self.kind} artefact with {', '.join(self.manifest['tables'])}."
            )
        place = self.file(name)
        found = _as_written(read_columns(place, max_bytes), told.get("types"))
        if _content(found) != told["content"]:
            raise UsageError(f"{place} is not the table that its artefact's hash is of: make the artefact again.")
        return found

    def file(self, name: str) -> Path:
        """Where the table or file called `name` lies; `UsageError` where it is absent or was changed since.

        Cost: one reading of it, the first time. A file's own hash is part of the artefact's; a table's is only of its
        form, so what must be trusted of a table is read by `table`, which looks at its content.
        """
        told = self.manifest["tables"].get(name) or self.manifest["files"].get(name)
        if told is None:
            raise UsageError(f"{self.path} has neither table nor file {name!r}: it is a {self.kind} artefact.")
        place = self.path / told["path"]
        if name not in self._checked:
            if not place.is_file():
                raise UsageError(f"{place} is not there, though {self.path.name} names it: make the artefact again.")
            if digest(place) != told["sha256"]:
                raise UsageError(f"{place} was changed since it was written: make the artefact again.")
            self._checked.add(name)
        return place

    @cached_property
    def _checked(self) -> set[str]:
        """Tables and files whose hashes were compared."""
        return set()


@dataclass
class Draft:
    """What is to be written: fill `values`, call `table` and `add`, then `write`."""

    kind: str
    seed: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    inputs: Sequence[Artefact | Mapping[str, Any]] = ()
    values: dict[str, Value] = field(default_factory=dict[str, Value])
    tables: dict[str, Columns] = field(default_factory=dict[str, Columns])
    files: dict[str, bytes | Path] = field(default_factory=dict[str, "bytes | Path"])

    def table(self, name: str, columns: Mapping[str, Any]) -> None:
        """Add a table of columns: arrays, lists of numbers (None is NaN), lists of text ("" or None is missing)."""
        self.tables[name] = {key: column(value) for key, value in columns.items()}

    def write(self, place: str | Path) -> Artefact:
        """The artefact, written whole: an artefact of the same kind that stood there is replaced.

        A folder with anything else in it is refused. Tables are Parquet where pyarrow is installed, else CSV.
        """
        folder = Path(place)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and _kind_at(folder) != self.kind:
            raise UsageError(f"{folder} is there already and is no {self.kind} artefact: name another folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            manifest = self._fill(made)
            made.chmod(0o755)
            aside = made.with_name(f"{made.name}.old")  # so that a kill leaves the old one or the new one
            if folder.exists():
                os.replace(folder, aside)
            os.replace(made, folder)
            shutil.rmtree(aside, ignore_errors=True)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        written = Artefact(folder, manifest)
        from fieldfare.assess.platform.places import sent

        sent(written)
        return written

    def _fill(self, made: Path) -> dict[str, Any]:
        end = ".parquet" if find_spec("pyarrow") else ".csv"
        tables: dict[str, Any] = {}
        for name, columns in self.tables.items():
            rows = {len(one) for one in columns.values()}
            if len(rows) != 1:
                raise UsageError(
                    f"table {name!r} of {self.kind}: its columns have {sorted(rows)} rows, not one number."
                )
            write_columns(made / (name + end), iter([dict(columns)]))
            told = {"path": name + end, "rows": rows.pop(), "columns": list(columns), "types": _types(columns)}
            tables[name] = {**told, "sha256": digest(made / (name + end)), "content": _content(columns)}
        files: dict[str, Any] = {}
        for name, data in self.files.items():
            target = made / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, Path):
                shutil.move(data, target)
            else:
                target.write_bytes(data)
            files[name] = {"path": name, "bytes": target.stat().st_size, "sha256": digest(target)}
        manifest = {
            "kind": self.kind, "schema_version": SCHEMA_VERSION, "created": _now(), "tool_version": __version__,
            "seed": self.seed, "params": plain(self.params),
            "inputs": [cite(one) if isinstance(one, Artefact) else plain(one) for one in self.inputs],
            "values": {name: plain(_fields(one)) for name, one in self.values.items()},
            "tables": tables, "files": files,
        }  # fmt: skip
        manifest["sha256"] = _sha256_of(manifest)
        write_atomic(made / MANIFEST, [dumps(manifest, indent=1), b"\n"])
        return manifest


def read_artefact(place: str | Path, kind: str | None = None) -> Artefact:
    """The artefact in a folder, refused where it is of another `kind` or its manifest does not bear its own hash.

    A URL is fetched first (extra `fsspec`).
    """
    folder = Path(place)
    if ":/" in str(place):
        from fieldfare.assess.platform.places import fetch, is_url

        folder = fetch(place) if is_url(place) else folder
    file = folder / MANIFEST
    if not file.is_file():
        raise UsageError(
            f"{folder} is no artefact: give a folder with a {MANIFEST}" + (f" of kind {kind}." if kind else ".")
        )
    if file.stat().st_size > _MOST_BYTES:
        raise UsageError(f"{file} has {file.stat().st_size} bytes: a manifest is smaller than {_MOST_BYTES}.")
    try:
        manifest = json.loads(file.read_text("utf-8"))
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{file} is not JSON of an artefact ({error}): make it again.") from None
    wrong = _misshapen(manifest)
    if wrong:
        raise UsageError(f"{file} {wrong}: it is no artefact's manifest; make it again.")
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise UsageError(
            f"{file} has schema version {manifest['schema_version']}, this program reads {SCHEMA_VERSION}."
        )
    if kind is not None and manifest["kind"] != kind:
        raise UsageError(f"{folder} is a {manifest['kind']} artefact, a {kind} artefact is needed here.")
    if manifest["sha256"] != _sha256_of(manifest):
        raise UsageError(f"{file} was changed since it was written: make the artefact again.")
    return Artefact(folder, manifest)


_HEX = re.compile(r"[0-9a-f]{64}")
_PARTS: Mapping[str, type] = {"kind": str, "params": dict, "values": dict, "inputs": list, "tables": dict,
                              "files": dict, "sha256": str}  # fmt: skip


def _misshapen(found: Any) -> str:
    """What of a manifest is not as it is written here; "" where all of it is."""
    if not isinstance(found, dict):
        return "is not an object"
    manifest = cast(dict[str, Any], found)
    missing = [name for name in (*_HASHED, "sha256") if name not in manifest]
    if missing:
        return f"lacks {', '.join(missing)}"
    for name, kind in _PARTS.items():
        if not isinstance(manifest[name], kind):
            return f"has a {type(manifest[name]).__name__} as {name}"
    for name, one in manifest["values"].items():
        if not isinstance(one, dict) or not _fits(cast(dict[str, Any], one)):
            return f"tells {str(name)!r} as {str(one)[:60]}, not as a finite number with unit and range"
    for one in manifest["inputs"]:
        if not isinstance(one, dict) or not _HEX.fullmatch(str(cast(dict[str, Any], one).get("sha256"))):
            return "names an input without a SHA-256"
        if not all(isinstance(one.get(key), str) for key in ("kind", "path")):
            return "names an input without kind and path"
    wanted = {"tables": {"path": str, "rows": int, "columns": list, "content": str, "sha256": str},
              "files": {"path": str, "bytes": int, "sha256": str}}  # fmt: skip
    for part, keys in wanted.items():
        for name, one in manifest[part].items():
            if not isinstance(one, dict) or not all(isinstance(one.get(k), kind) for k, kind in keys.items()):
                return f"does not tell {', '.join(keys)} of {str(name)!r}"
            if Path(one["path"]).is_absolute() or ".." in Path(one["path"]).parts:
                return f"names {one['path']}, which is outside of the artefact"
    return ""


def _fits(one: Mapping[str, Any]) -> bool:
    """Whether it is a `Value`: numbers finite or None, no truth values, words as text."""
    numbers, texts = ("value", "low", "high", "closed"), ("unit", "how", "note")
    if "value" not in one or not set(one) <= {*numbers, *texts}:
        return False
    good = all(one[k] is None or (isinstance(one[k], (int, float)) and not isinstance(one[k], bool)
                                  and isfinite(one[k])) for k in numbers if k in one)  # fmt: skip
    return good and all(isinstance(one[k], str) for k in texts if k in one)


def cite(one: Artefact) -> dict[str, Any]:
    """`{kind, path, sha256}`: how an artefact is named as an input; the path is its folder's name."""
    return {"kind": one.kind, "path": one.path.name, "sha256": one.sha256}


def cite_file(place: str | Path, kind: str) -> dict[str, Any]:
    """A plain file as an input, `{kind, path, sha256}`."""
    return {"kind": kind, "path": Path(place).name, "sha256": digest(Path(place))}


def column(values: Any) -> Array | Text:
    """An array or text column of a list: None is NaN among numbers, and missing among text."""
    if isinstance(values, Text):
        return values
    if isinstance(values, (list, tuple)):
        listed = cast(Sequence[Any], values)
        if any(isinstance(one, str) for one in listed):
            return text_of(["" if one is None else str(one) for one in listed])
        if any(one is None for one in listed):
            return np.array([np.nan if one is None else float(one) for one in listed])
    found = np.asarray(values)
    return text_of([str(one) for one in found.tolist()]) if found.dtype.kind in "UO" else found


def words(values: Array | Text) -> list[str]:
    """A text column as a list; "" where it is missing."""
    if isinstance(values, Text):
        return words_of(values)
    return [str(one) for one in values.tolist()]


def digest(place: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _types(columns: Columns) -> dict[str, str]:
    """What NumPy calls the columns of numbers, which a CSV does not keep."""
    return {name: one.dtype.str for name, one in columns.items() if not isinstance(one, Text)}


def _as_written(found: Columns, types: Mapping[str, str] | None) -> dict[str, Array | Text]:
    """Columns that were read, of the types that were written; those that cannot be are left as they are."""
    if types is None:
        return dict(found)
    out: dict[str, Array | Text] = {}
    for name, one in found.items():
        wanted = types.get(name)
        if isinstance(one, Text):
            out[name] = one if wanted != "|b1" else one.mask("True")
        elif wanted is None:  # a text of nothing but numbers, or missing everywhere
            out[name] = text_of(["" if value != value else str(value) for value in one.tolist()])
        else:
            with np.errstate(invalid="ignore"):
                out[name] = one.astype(np.dtype(wanted)) if re.fullmatch(r"[<>|=][biuf]\d", wanted) else one
    return out


def _content(columns: Columns) -> str:
    """SHA-256 of what columns hold: independent of the file's form and of its library's version."""
    found = hashlib.sha256()
    for name, one in columns.items():
        found.update(name.encode() + b"\0")
        if isinstance(one, Text):
            found.update("\0".join(words(one)).encode())
        else:
            found.update(one.dtype.str.encode() + np.ascontiguousarray(one).tobytes())
    return found.hexdigest()


def _sha256_of(manifest: Mapping[str, Any]) -> str:
    told = {name: manifest[name] for name in _HASHED}
    told["tables"] = {name: [one["content"], one["columns"]] for name, one in manifest["tables"].items()}
    told["inputs"] = [one["sha256"] for one in manifest["inputs"]]
    return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _fields(one: Value) -> dict[str, Any]:
    return {name: getattr(one, name) for name in Value.__dataclass_fields__}


def _kind_at(folder: Path) -> str | None:
    try:
        return read_artefact(folder).kind
    except UsageError:
        return None


def _now() -> str:
    """Time of writing, ISO 8601; that of SOURCE_DATE_EPOCH where it is set."""
    set_ = os.environ.get("SOURCE_DATE_EPOCH")
    when = datetime.fromtimestamp(int(set_), UTC) if set_ else datetime.now(UTC)
    return when.isoformat(timespec="seconds")
