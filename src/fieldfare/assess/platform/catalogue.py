"""A data catalogue: what data there is, of which columns, made of what, and where it lies; by name and version.

FLINT stores its proxy data back into the catalogue with what federated learning asks of it (Wang et al., MLSys 2023,
section 3.3). Layout: `<root>/<name>/<version>/metadata.json`, in a folder or at a URL; the JSON is for programs of
others. Not here: the data, which stay where they are. Invariants: an entry says of the data what their artefact says,
and changes only in `place`; the same artefact gives the same bytes; an entry holds no secret of a URL.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fieldfare.assess.artefact import Artefact, digest, read_artefact
from fieldfare.assess.platform.places import address, folders, get_bytes, is_url, put_bytes, url_of
from fieldfare.assess.platform.registry import checked
from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.fleet.columns import Text, is_parquet, read_columns
from fieldfare.store.files import write_atomic
from fieldfare.store.text import dumps, plain

METADATA = "metadata.json"
SCHEMA_VERSION = 1
_NEEDED = ("schema_version", "name", "version", "kind", "sha256", "place", "rows", "tables", "values", "lineage")
_PART = re.compile(r"((?:v\d+/)?)part-\d+\.parquet")


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the data: its columns with their types, its rows, and its files `{path, sha256}` in the artefact."""

    name: str
    columns: Mapping[str, str]
    rows: int
    files: tuple[Mapping[str, str], ...]


@dataclass(frozen=True, slots=True)
class Metadata:
    """One version of data in the catalogue: an artefact of `kind` with the content `sha256`, at `place`.

    `rows`: of its first table (a proxy's records, a trace's sessions). `values`: its numbers `{value, unit}`, of a
    proxy the population, quantities and labels. `lineage`: what it was made of, `{kind, path, sha256}` each.
    """

    name: str
    version: str
    kind: str
    sha256: str
    place: str
    rows: int
    tables: tuple[Table, ...]
    values: Mapping[str, Mapping[str, Any]]
    lineage: tuple[Mapping[str, Any], ...]

    def artefact(self) -> Artefact:
        """The data, fetched where `place` is a URL; refused where other content is there now."""
        found = read_artefact(self.place, self.kind)
        if found.sha256 != self.sha256:
            raise UsageError(
                f"{self.place} is not what {self.name} {self.version} was: it has {found.sha256[:12]}, the catalogue "
                f"{self.sha256[:12]}; register it as a new version."
            )
        return found


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Entries in a folder, or at a URL (where two writers of one version at one instant are not kept apart)."""

    root: str

    def put(self, data: Artefact | str | Path, name: str, version: str | None = None) -> Metadata:
        """Register an artefact; the same again changes nothing (but for where it lies), another content is refused.

        `version`: default, the beginning of its hash. Cost: one reading of its files, for their hashes.
        """
        found = data if isinstance(data, Artefact) else read_artefact(data)
        place = _place(address(found.path) if isinstance(data, Artefact) else data)
        mine = describe(found, name, version or found.sha256[:12], place)
        with self._alone(name):
            kept = self._read(mine.name, mine.version)
            if kept is not None and kept.sha256 != mine.sha256:
                raise UsageError(
                    f"{name} {mine.version} is in the catalogue {self.root} already, as the {kept.kind} "
                    f"{kept.sha256[:12]}: give this {mine.kind} {mine.sha256[:12]} a new version."
                )
            if kept is None or plain(asdict(kept)) != plain(asdict(mine)):
                self._write(mine)
        return mine

    def get(self, name: str, version: str | None = None) -> Metadata:
        """An entry; without a version, the only one there is."""
        versions = self.versions(name)
        if version is None and len(versions) != 1:
            have = f"it has {', '.join(versions)}: name one" if versions else "register some first"
            raise UsageError(f"the catalogue {self.root} has no one version of {name!r}: {have}.")
        found = self._read(name, version or versions[0])
        if found is None:
            have = ", ".join(versions) or "none"
            raise UsageError(f"the catalogue {self.root} has no {name} {version}: its versions are {have}.")
        return found

    def names(self) -> list[str]:
        """All data there are."""
        return [one for one in self._folders(self.root) if self.versions(one)]

    def versions(self, name: str) -> list[str]:
        """The versions of a name, in alphabetical order."""
        checked(name, "name of data")
        found = self._folders(f"{self.root.rstrip('/')}/{name}")
        return [one for one in found if self._bytes(name, one) is not None]

    def _folders(self, place: str) -> list[str]:
        if is_url(place):
            found = folders(place)
        else:
            found = sorted(one.name for one in Path(place).iterdir() if one.is_dir()) if Path(place).is_dir() else []
        return [one for one in found if _fits(one)]

    def _file(self, name: str, version: str) -> str:
        return f"{self.root.rstrip('/')}/{checked(name, 'name of data')}/{checked(version, 'version')}/{METADATA}"

    def _bytes(self, name: str, version: str) -> bytes | None:
        file = self._file(name, version)
        if is_url(file):
            return get_bytes(file)
        return Path(file).read_bytes() if Path(file).is_file() else None

    def _read(self, name: str, version: str) -> Metadata | None:
        data = self._bytes(name, version)
        return None if data is None else _of_json(data, self._file(name, version))

    def _write(self, entry: Metadata) -> None:
        file = self._file(entry.name, entry.version)
        data = dumps({"schema_version": SCHEMA_VERSION, **plain(asdict(entry))}, indent=1) + b"\n"
        if is_url(file):
            put_bytes(file, data)
            return
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(Path(file), [data])

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """One writer of a name at a time, in a folder; whoever comes second waits."""
        checked(name, "name of data")
        if is_url(self.root):
            yield
            return
        folder = Path(self.root) / name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _fits(word: str) -> bool:
    try:
        return bool(checked(word, "name"))
    except UsageError:
        return False


def describe(data: Artefact, name: str, version: str, place: str) -> Metadata:
    """What the catalogue says of an artefact; its files are compared with their hashes first."""
    tables = tuple(_tables(data))
    values = {key: {"value": one.value, "unit": one.unit} for key, one in data.values.items()}
    lineage = tuple({key: str(one[key]) for key in ("kind", "path", "sha256")} for one in data.inputs)
    return Metadata(
        checked(name, "name of data"), checked(version, "version"), data.kind, data.sha256, place,
        tables[0].rows if tables else 0, tables, values, lineage,
    )  # fmt: skip


def _tables(data: Artefact) -> Iterator[Table]:
    """First the parts of a proxy, which are one table a version, then the artefact's own tables."""
    told: dict[str, Any] = {**data.manifest["files"], **data.manifest["tables"]}
    for one in told.values():
        if digest(data.path / one["path"]) != one["sha256"]:
            raise UsageError(f"{data.path / one['path']} was changed since it was written: make the artefact again.")
    parts: dict[str, list[str]] = {}
    for key in data.manifest["files"]:
        found = _PART.fullmatch(key)
        if found is not None:
            parts.setdefault(f"rows{'_' if found[1] else ''}{found[1].rstrip('/')}", []).append(key)
    for title, keys in parts.items():
        keys.sort(key=lambda key: int(key.rpartition("-")[2].partition(".")[0]))
        seen = [_seen(data.path / told[key]["path"]) for key in keys]
        files = tuple({"path": str(told[key]["path"]), "sha256": str(told[key]["sha256"])} for key in keys)
        yield Table(title, seen[0][0], sum(rows for _, rows in seen), files)
    for key, one in data.manifest["tables"].items():
        columns, _ = _seen(data.path / one["path"])
        yield Table(key, columns, int(one["rows"]), ({"path": str(one["path"]), "sha256": str(one["sha256"])},))


def _seen(file: Path) -> tuple[dict[str, str], int]:
    """(type of each column, rows) of a Parquet or CSV file; of Parquet its foot alone is read."""
    if not is_parquet(file):
        found = read_columns(file)
        rows = len(next(iter(found.values()))) if found else 0
        return {key: "string" if isinstance(one, Text) else str(one.dtype) for key, one in found.items()}, rows
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra.of("pyarrow", extra="parquet") from None
    with pq.ParquetFile(file) as opened:
        return {one.name: _word(str(one.type)) for one in opened.schema_arrow}, int(opened.metadata.num_rows)


def _word(kind: str) -> str:
    """A column's type in one word: a column of few texts is one of texts."""
    return "string" if kind.startswith(("dictionary", "large_string")) else kind.replace("double", "float64")


def _place(given: str | Path) -> str:
    """Where the artefact is: a URL without what is secret in it, or a whole path."""
    where = url_of(given)
    if where is None:
        return str(Path(given).resolve())
    return re.sub(r"://[^/@]*@", "://", where.partition("?")[0])


def _of_json(data: bytes, where: str) -> Metadata:
    try:
        told = json.loads(data)
        missing = [key for key in _NEEDED if key not in told]
        if missing or told["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"without {', '.join(missing)}" if missing else f"version {told['schema_version']}")
        tables = tuple(Table(str(one["name"]), dict(one["columns"]), int(one["rows"]), tuple(one["files"]))
                       for one in told["tables"])  # fmt: skip
        name, version, kind, sha256, place = (str(told[key]) for key in _NEEDED[1:6])
        return Metadata(
            name, version, kind, sha256, place, int(told["rows"]), tables, dict(told["values"]), tuple(told["lineage"])
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{where} is no catalogue entry of ours ({error}): put it back as it was.") from None
