"""Artefacts and tables at URLs: any place that fsspec can reach (s3://, gs://, az://, hdfs://, memory://, file://).

Here: fetching into a folder named by content, sending with the manifest last, folders that stand for a URL until what
is written there is whole, copies of tables. Not here: what artefacts mean. Invariants: what was fetched is what its
manifest says, by hash, or it is refused; a reader at the URL sees a whole artefact or none; nothing of what was fetched
is run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from fieldfare.assess.artefact import MANIFEST, Artefact, digest, read_artefact
from fieldfare.core.errors import MissingExtra, UsageError

CACHE = "FIELDFARE_CACHE"
"""The environment's name for where fetched artefacts lie; else ~/.cache/fieldfare (or XDG_CACHE_HOME's)."""

_URL = re.compile(r"([A-Za-z][\w+.-]+(?:::[A-Za-z][\w+.-]+)*):/(/?)(.*)", re.DOTALL)
_STAGED: dict[Path, str] = {}


def url_of(place: str | Path) -> str | None:
    """The URL that `place` is, also after `Path` took one of its slashes; None for a path of this machine.

    >>> url_of(Path("s3://shop/forecast")), url_of(Path("file:///srv/trace")), url_of("runs/latest")
    ('s3://shop/forecast', 'file:///srv/trace', None)
    """
    found = _URL.fullmatch(str(place))
    if found is None or Path(place).exists():
        return None
    scheme, _, rest = found.groups()
    rest = rest.lstrip("/")
    return f"{scheme}:///{rest}" if scheme in ("file", "local") else f"{scheme}://{rest}"


def is_url(place: str | Path) -> bool:
    """Whether `place` is a URL and no path of this machine."""
    return url_of(place) is not None


def fetch(url: str | Path, kind: str | None = None) -> Path:
    """The artefact at a URL, as a folder of this machine; fetched once for every content.

    Raises `UsageError` where there is none, or where a file is not what the manifest says.
    """
    where = _url(url)
    store, root = _reach(where)
    cache = cache_folder() / "artefacts"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as temporary:
        made = Path(temporary) / _name(root)
        made.mkdir()
        if not _get(store, f"{root}/{MANIFEST}", made / MANIFEST):
            raise UsageError(f"there is no artefact at {where}: it has no {MANIFEST}.")
        artefact = read_artefact(made, kind)
        target = cache / artefact.sha256[:16] / made.name
        if _whole(target, artefact):
            return target
        for one in _parts(artefact):
            (made / one["path"]).parent.mkdir(parents=True, exist_ok=True)
            if not _get(store, f"{root}/{one['path']}", made / one["path"]):
                raise UsageError(f"{where} lacks {one['path']}, which its manifest names: send the artefact again.")
            _same(made / one["path"], one["sha256"], f"{where}/{one['path']}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        try:
            os.replace(made, target)
        except OSError:
            if not _whole(target, artefact):  # else another process was first
                raise
    return target


def send(artefact: Artefact | str | Path, url: str | Path) -> str:
    """Put an artefact at a URL: its files first, the manifest last; the URL is given back.

    The same content is not sent again; an artefact of the same kind is replaced; another one is refused.
    """
    mine = artefact if isinstance(artefact, Artefact) else read_artefact(artefact)
    where = _url(url)
    store, root = _reach(where)
    for one in _parts(mine):
        _same(mine.path / one["path"], one["sha256"], str(mine.path / one["path"]))
    with tempfile.TemporaryDirectory(prefix="fieldfare-") as temporary:
        there = Path(temporary) / _name(root)
        there.mkdir()
        if _get(store, f"{root}/{MANIFEST}", there / MANIFEST):
            kept = read_artefact(there)
            if kept.kind != mine.kind:
                raise UsageError(f"{where} has a {kept.kind} artefact: send this {mine.kind} artefact elsewhere.")
            if kept.sha256 == mine.sha256 and all(store.exists(f"{root}/{one['path']}") for one in _parts(kept)):
                return where
            store.rm_file(f"{root}/{MANIFEST}")
    for one in _parts(mine):
        _put(store, mine.path / one["path"], f"{root}/{one['path']}", where)
    _put(store, mine.path / MANIFEST, f"{root}/{MANIFEST}", where)
    return where


def local(place: str | Path) -> Path:
    """A file of this machine for `place`: itself, or what is at the URL now, fetched."""
    where = url_of(place)
    if where is None:
        return Path(place)
    store, path = _reach(where)
    folder = cache_folder() / "files" / hashlib.sha256(where.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / _name(path)
    handle, temporary = tempfile.mkstemp(prefix=".fetch-", dir=folder)
    os.close(handle)
    try:
        if not _get(store, path, Path(temporary)):
            raise UsageError(f"there is no file at {where}.")
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def copies(url: str | Path, folder: Path) -> dict[Path, str]:
    """Files of this machine for the file, the folder of .parquet and .csv files, or the pattern (`*`) at a URL.

    Gives where each is from, as a URL. Each is copied into `folder`; those of a place that is this machine's own
    (`file://`) are used where they lie.
    """
    where = _url(url)
    store, path = _reach(where)
    out: dict[Path, str] = {}
    for number, one in enumerate(_listed(store, path, where)):
        its = where if one == path else str(store.unstrip_protocol(one))
        if getattr(store, "local_file", False):
            out[Path(one)] = its
            continue
        target = folder / str(number) / _name(one.partition("?")[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _get(store, one, target):
            raise UsageError(f"there is no file at {its}.")
        out[target] = its
    return out


def _listed(store: Any, path: str, where: str) -> list[str]:
    try:
        if "*" in path:
            found = sorted(str(one) for one in store.glob(path) if store.isfile(one))
        elif store.isfile(path) or not store.isdir(path):
            found = [path] if store.exists(path) else []
        else:
            found = sorted(str(one) for one in store.ls(path, detail=False) if str(one).endswith((".parquet", ".csv")))
    except Exception as error:
        raise UsageError(f"{where} cannot be looked at: {_line(error)}") from None
    if not found:
        raise UsageError(f"{where} is no file, nor a folder of .parquet or .csv files.")
    return found


def put_bytes(url: str | Path, data: bytes) -> None:
    """Write one small file at a URL, over what is there."""
    where = _url(url)
    store, path = _reach(where)
    with tempfile.TemporaryDirectory(prefix="fieldfare-") as temporary:
        file = Path(temporary) / "file"
        file.write_bytes(data)
        _put(store, file, path, where)


def get_bytes(url: str | Path) -> bytes | None:
    """The bytes of one small file at a URL; None where there is none."""
    store, path = _reach(_url(url))
    with tempfile.TemporaryDirectory(prefix="fieldfare-") as temporary:
        file = Path(temporary) / "file"
        return file.read_bytes() if _get(store, path, file) else None


def folders(url: str | Path) -> list[str]:
    """Names of the folders in the folder at a URL; none where there is no such folder."""
    store, path = _reach(_url(url))
    try:
        return sorted(_name(str(one["name"])) for one in store.ls(path, detail=True) if one["type"] == "directory")
    except (FileNotFoundError, NotADirectoryError):
        return []


def staged(url: str | Path) -> Path:
    """A folder of this machine that stands for a URL: what `Draft.write` puts there is sent to the URL when whole."""
    where = _url(url)
    folder = cache_folder() / "staged" / hashlib.sha256(where.encode()).hexdigest()[:16]
    place = folder / _name(where)
    shutil.rmtree(place, ignore_errors=True)
    _STAGED[place] = where
    return place


def sent(artefact: Artefact) -> None:
    """Send an artefact that was written into a staged folder to the URL it stands for; nothing for others."""
    where = _STAGED.get(artefact.path)
    if where is not None:
        send(artefact, where)


def address(place: Path) -> str:
    """Where an artefact is, for people: the URL that a staged folder stands for, else the path.

    >>> address(Path("assess/trace"))
    'assess/trace'
    """
    return _STAGED.get(place, str(place))


def cache_folder() -> Path:
    """Where fetched and staged artefacts lie on this machine; it may be removed at any time."""
    told = os.environ.get(CACHE)
    return Path(told) if told else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fieldfare"


def _url(place: str | Path) -> str:
    where = url_of(place)
    if where is None:
        raise UsageError(f"{place} is no URL: use SCHEME://PLACE, for example s3://bucket/forecast.")
    return where.rstrip("/")


def _reach(where: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it."""
    try:
        import fsspec
    except ImportError:
        raise MissingExtra.of("fsspec", extra="fsspec") from None
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(where)
    except ImportError as error:
        raise MissingExtra(f"{where} cannot be reached: {_line(error)}") from None
    except ValueError as error:
        raise UsageError(f"{where} cannot be reached: {_line(error)}") from None
    return found[0], found[1].rstrip("/")


def _get(store: Any, path: str, target: Path) -> bool:
    """Copy a file here; False where there is none."""
    try:
        with store.open(path, "rb") as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 22)
    except (FileNotFoundError, IsADirectoryError):
        return False
    except Exception as error:
        raise UsageError(f"{path} cannot be fetched: {_line(error)}") from None
    return True


def _put(store: Any, source: Path, path: str, where: str) -> None:
    try:
        store.makedirs(path.rpartition("/")[0], exist_ok=True)
        with source.open("rb") as file, store.open(path, "wb") as target:
            shutil.copyfileobj(file, target, 1 << 22)
    except Exception as error:
        raise UsageError(f"{source.name} cannot be sent to {where}: {_line(error)}") from None


def _parts(artefact: Artefact) -> list[dict[str, Any]]:
    return [*artefact.manifest["tables"].values(), *artefact.manifest["files"].values()]


def _same(file: Path, sha256: str, told: str) -> None:
    if digest(file) != sha256:
        raise UsageError(f"{told} is not what its manifest says: it was changed or cut short; send the artefact again.")


def _whole(target: Path, artefact: Artefact) -> bool:
    """Whether the cache has this content, whole and unchanged."""
    try:
        if read_artefact(target).sha256 != artefact.sha256:
            return False
    except UsageError:
        return False
    return all((target / one["path"]).is_file() and digest(target / one["path"]) == one["sha256"]
               for one in _parts(artefact))  # fmt: skip


def _name(path: str) -> str:
    return PurePosixPath(path.rstrip("/")).name or "artefact"


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
