"""A tree and its arrays as one file that is whole or known not to be, and a folder of the last two of them.

Not here: what the tree means (`codec`). Layout, little endian: magic (8 bytes), format u32, zero u32, length of the
JSON u64, length of the file u64; JSON `{"tree": ..., "arrays": [[dtype, shape, offset], ...]}`; the arrays, each at a
multiple of 64; SHA-256 of all before it. Invariant: a file under its final name was whole when it got that name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.store.files import Buffer, sweep, sync_folder, write_atomic

FORMAT = 1

_MAGIC = b"FFSNAP\r\n"
_HEAD = struct.Struct("<8sIIQQ")
_SUM = 32
_ALIGN = 64
_PIECE = 1 << 24
_NAME = re.compile(r"snapshot-(\d{6,})\.ffs")

Array = NDArray[Any]


class Torn(UsageError):
    """A snapshot that is cut short or altered."""


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _raw(array: Array) -> memoryview:
    """The bytes of a C-ordered array, `[nbytes]`."""
    return memoryview(cast(Any, array.reshape(-1).view(np.uint8))) if array.size else memoryview(b"")


def write_snapshot(path: str | Path, tree: Any, arrays: Sequence[Array]) -> int:
    """Write one snapshot file, durable when this returns, and give its length in bytes; `DiskFull` leaves no trace.

    Arrays are written from where they lie; only one that is not contiguous is copied first, alone.
    """
    sizes = [array.nbytes for array in arrays]
    table = [[array.dtype.str, list(array.shape), 0] for array in arrays]

    def text() -> bytes:
        parts = {"tree": tree, "arrays": table}
        return json.dumps(parts, allow_nan=False, separators=(",", ":")).encode()

    # Offsets count from the end of the JSON, rounded up: so its length does not depend on itself.
    at = 0
    for row, size in zip(table, sizes, strict=True):
        row[2] = at
        at += _up(size)
    body = text()
    total = _up(_HEAD.size + len(body)) + at + _SUM
    digest = hashlib.sha256()

    def pieces() -> Iterator[Buffer]:
        yield _HEAD.pack(_MAGIC, FORMAT, 0, len(body), total)
        yield body
        yield bytes(_up(_HEAD.size + len(body)) - _HEAD.size - len(body))
        for array in arrays:
            yield _raw(np.asarray(array, order="C"))
            yield bytes(_up(array.nbytes) - array.nbytes)

    def summed() -> Iterator[Buffer]:
        for piece in pieces():
            digest.update(piece)
            yield piece
        yield digest.digest()

    write_atomic(Path(path), summed())
    return total


def read_snapshot(path: str | Path) -> tuple[Any, list[Array]]:
    """Tree and arrays (read-only) of a snapshot file: `Torn` if one bit is wrong; sizes are checked first."""
    path = Path(path)
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or head[:8] != _MAGIC:
            raise Torn(f"{path} is no snapshot, or is cut short: use the one before it.")
        _, form, _, json_bytes, total = cast(tuple[bytes, int, int, int, int], _HEAD.unpack(head))
        if form != FORMAT and _sums(file):
            raise UsageError(
                f"{path} has format {form}, this fieldfare reads format {FORMAT}: use the one that wrote it."
            )
        start = _up(_HEAD.size + json_bytes)
        if form != FORMAT or total != length or start + _SUM > length:
            raise Torn(f"{path} is damaged or cut short (it has {length} bytes): use the snapshot before it.")
        digest = hashlib.sha256(head)
        rest = file.read(start - _HEAD.size)
        digest.update(rest)
        try:
            arrays, tree = _read_body(file, rest[:json_bytes], start, length - _SUM, digest)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Torn(f"{path} is damaged ({error}): use the snapshot before it.") from None
        if file.read(_SUM) != digest.digest():
            raise Torn(f"{path} is damaged (its checksum is wrong): use the snapshot before it.")
    return tree, arrays


def _sums(file: BufferedReader) -> bool:
    """Whether the file ends in the SHA-256 of the rest, as in every format."""
    file.seek(0)
    data = file.read()
    return hashlib.sha256(data[:-_SUM]).digest() == data[-_SUM:]


def _read_body(file: BufferedReader, text: bytes, start: int, end: int, digest: Any) -> tuple[list[Array], Any]:
    """Arrays and tree, read and summed in one pass; what lies outside `start..end` is a `ValueError`."""
    parts = json.loads(text)
    arrays: list[Array] = []
    at = start
    for name, shape, offset in parts["arrays"]:
        dtype = np.dtype(str(name))
        size = prod(int(n) for n in shape) * dtype.itemsize
        if dtype.hasobject or any(n < 0 for n in shape) or offset + start != at or at + _up(size) > end:
            raise ValueError("its table of arrays is wrong")
        array = np.empty(shape, dtype)
        raw = _raw(array)
        for piece in range(0, size, _PIECE):
            if file.readinto(raw[piece : piece + _PIECE]) != min(_PIECE, size - piece):
                raise ValueError("it is cut short")
        digest.update(raw)
        digest.update(file.read(_up(size) - size))
        array.flags.writeable = False
        arrays.append(array)
        at += _up(size)
    if at != end:
        raise ValueError("its table of arrays is wrong")
    return arrays, parts["tree"]


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One that was read: its number, tree and arrays, and the newer ones that were torn and passed over."""

    number: int
    tree: Any
    arrays: list[Array]
    torn: tuple[Path, ...] = ()


class Snapshots:
    """The last `keep` snapshots of a folder, `snapshot-000123.ffs`; one process at a time."""

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise UsageError(f"Snapshots(keep={keep}): keep at least one.")
        self.folder = Path(folder)
        self.keep = keep
        self._torn: set[Path] = set()

    def paths(self) -> dict[int, Path]:
        """Number -> file, oldest first."""
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("snapshot-*.ffs"))
        return dict(sorted((int(match[1]), path) for match, path in found if match))

    def write(self, tree: Any, arrays: Sequence[Array]) -> int:
        """Write the next snapshot, then remove those beyond `keep`; gives its number."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sweep()
        number = max(self.paths(), default=-1) + 1
        write_snapshot(self.folder / f"snapshot-{number:06d}.ffs", tree, arrays)
        good = [path for path in self.paths().values() if path not in self._torn]
        for path in [*self._torn, *good[: -self.keep]]:
            with suppress(OSError):
                path.unlink()
        self._torn.clear()
        sync_folder(self.folder)
        return number

    def read(self) -> Snapshot | None:
        """The newest that is whole; None where none was ever written; `Torn` when all are damaged."""
        torn: list[Path] = []
        for number, path in reversed(self.paths().items()):
            try:
                tree, arrays = read_snapshot(path)
            except Torn:
                torn.append(path)
                continue
            self._torn = set(torn)
            return Snapshot(number, tree, arrays, tuple(torn))
        if torn:
            raise Torn(f"every snapshot in {self.folder} is damaged: the run cannot be resumed, start it anew.")
        return None

    def sweep(self) -> None:
        """Remove half-written files that a killed process left behind."""
        if self.folder.is_dir():
            sweep(self.folder)
