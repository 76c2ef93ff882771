"""What clients keep between rounds: one matrix per slot in memory, one append-only log per slot on disk.

Not here: who may write what when (the driver). A log is a chain of records: `FFSR`, CRC-32, n, S, then ids int64 `[n]`
and rows float32 `[n, S]`, little endian. Invariant: a mark given by `flush` can be restored, to the bit, until three
later ones have been made: so the two snapshots that are kept stay good while the next one is being written.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeAlias, cast
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.store.files import room, sync_folder, write_all

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Mark: TypeAlias = dict[str, dict[str, int]]

MOST_CLIENTS = 1 << 31

_HEAD = struct.Struct("<4sIQQ")
_RECORD_BYTES = 1 << 25
_SLACK = 1 << 16
_KEEP = 3


class Rows:
    """The rows `[n, S]` of some clients in a `Table`, copied when they are sliced or made an array, as they are then.

    So that a cohort computed a few clients at a time needs no copy of all its state. A pickle of it is the array.
    """

    def __init__(self, table: Table, at: NDArray[np.int32]) -> None:
        self._table, self._at = table, at
        self.dtype = np.dtype(np.float32)
        self.shape = (len(at), table.size)
        self.strides = (4 * table.size, 4)
        self.size = len(at) * table.size
        self.nbytes = 4 * self.size

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, pick: slice) -> F32:
        return self._table.take(self._at[pick])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        rows = self[:]
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def __reduce__(self) -> Any:
        return self[:].__reduce__()


class Table:
    """Rows of one slot: a matrix that grows, and an int32 row number per client id (row 0 is "never written")."""

    def __init__(self, size: int, population: int = 0) -> None:
        self.size = size
        self.count = 0
        self._most = 1 + population
        self._where = np.zeros(population, np.int32)
        self._rows = np.zeros((1, size), np.float32)
        self._ids = np.full(1, -1, np.int64)
        self._dirty = np.zeros(1, np.bool_)

    def get(self, clients: I64) -> tuple[F32, NDArray[np.bool_]]:
        rows, fresh = self.rows(clients)
        return rows[:] if isinstance(rows, Rows) else rows, fresh

    def rows(self, clients: I64) -> tuple[F32 | Rows, NDArray[np.bool_]]:
        """As `get`, but rows that were written are not copied yet."""
        at = self._find(clients)
        if not at.any():
            return np.broadcast_to(np.zeros(self.size, np.float32), (len(at), self.size)), at == 0
        return Rows(self, at), at == 0

    def take(self, at: NDArray[np.int32]) -> F32:
        """Copies of the rows numbered `at`."""
        return self._rows.take(at, axis=0)

    def put(self, clients: I64, rows: F32, dirty: bool = True) -> None:
        self._reach(clients)
        at = self._where[clients]
        new = np.flatnonzero(at == 0)
        if len(new):
            first = self.count + 1
            self._grow(first + len(new))
            at[new] = np.arange(first, first + len(new), dtype=np.int32)
            self._where[clients[new]] = at[new]
            self._ids[at[new]] = clients[new]
            self.count += len(new)
        self._rows[at] = rows
        self._dirty[at] = dirty

    def _find(self, clients: I64) -> NDArray[np.int32]:
        if not len(clients) or int(clients.max()) < len(self._where):
            return self._where[clients]
        known = clients < len(self._where)
        at = np.zeros(len(clients), np.int32)
        at[known] = self._where[clients[known]]
        return at

    def _reach(self, clients: I64) -> None:
        need = int(clients.max()) + 1 if len(clients) else 0
        if need > len(self._where):
            where = np.zeros(max(need, 2 * len(self._where)), np.int32)
            where[: len(self._where)] = self._where
            self._where = where

    def _grow(self, need: int) -> None:
        have = len(self._rows)
        if need <= have:
            return
        more = have + have // 2 + 15
        capacity = max(need, min(more, self._most) if need <= self._most else more)
        rows = np.empty((capacity, self.size), np.float32)
        ids, dirty = np.empty(capacity, np.int64), np.zeros(capacity, np.bool_)
        rows[:have], ids[:have], dirty[:have] = self._rows, self._ids, self._dirty
        self._rows, self._ids, self._dirty = rows, ids, dirty

    def pieces(self, everything: bool) -> Iterator[tuple[I64, F32]]:
        """Ids and rows that changed since `clean` (or all), about 32 MiB at a time."""
        used = slice(1, self.count + 1)
        chosen = np.arange(1, self.count + 1) if everything else np.flatnonzero(self._dirty[used]) + 1
        step = max(1, _RECORD_BYTES // (8 + 4 * self.size))
        for start in range(0, len(chosen), step):
            at = chosen[start : start + step]
            yield self._ids[at], self._rows[at]

    @property
    def changed(self) -> int:
        """Number of rows put since `clean`."""
        return int(np.count_nonzero(self._dirty[1 : self.count + 1]))

    def clean(self) -> None:
        self._dirty[:] = False


class Slots:
    """Client state by slot: `sizes` `{slot: S}`; in memory only without a `directory`.

    `population`, if known, saves growing. Memory: 4 bytes per client id plus 4 S + 9 per client ever written.
    """

    def __init__(self, directory: str | Path | None, sizes: Mapping[str, int], population: int = 0) -> None:
        self.directory = None if directory is None else Path(directory)
        self.sizes = dict(sizes)
        self._population = min(population, MOST_CLIENTS)
        self._tables = {slot: Table(size, self._population) for slot, size in self.sizes.items()}
        self._logs: dict[str, _Log] = {}
        self._marks: deque[Mark] = deque(maxlen=_KEEP)

    @classmethod
    def open(
        cls, directory: str | Path, sizes: Mapping[str, int], mark: Mapping[str, Any], population: int = 0
    ) -> Self:
        """The slots as they were when `flush` gave `mark`."""
        slots = cls(directory, sizes, population)
        slots.restore(mark)
        return slots

    def get(self, slot: str, clients: I64) -> tuple[F32, NDArray[np.bool_]]:
        """Copies of the rows `[n, S]` of `clients` `[n]`, and who was never written (`[n]`; their rows are zero).

        Where none was ever written the rows are one, read-only, seen `n` times: they take no memory.
        """
        return self._table(slot).get(_ids(clients))

    def get_lazily(self, slot: str, clients: I64) -> tuple[F32 | Rows, NDArray[np.bool_]]:
        """As `get`, but rows ever written are copied when they are sliced: read them before the next `put`."""
        return self._table(slot).rows(_ids(clients))

    def put(self, slot: str, clients: I64, rows: F32) -> None:
        """Replace the rows `[n, S]` of different `clients` `[n]`."""
        table, ids = self._table(slot), _ids(clients)
        if rows.shape != (len(ids), table.size):
            raise UsageError(f"slot {slot!r}: rows of shape {rows.shape} do not fit ({len(ids)}, {table.size}).")
        if len(ids) > 1 and not bool((np.diff(ids) > 0).all()) and len(np.unique(ids)) < len(ids):
            raise UsageError(f"slot {slot!r}: a client stands twice among those written at once; write it once.")
        table.put(ids, rows)

    def count(self, slot: str) -> int:
        """How many clients have state in `slot`."""
        return self._table(slot).count

    def _table(self, slot: str) -> Table:
        if slot not in self._tables:
            raise UsageError(
                f"no client-state slot is called {slot!r}: this job keeps {', '.join(self.sizes) or 'none'}."
            )
        return self._tables[slot]

    def flush(self) -> Mark:
        """Make all rows durable and give the mark to keep in a snapshot; writes what changed, now and then all.

        Without a directory nothing is written and the mark is empty. `DiskFull`: nothing is lost, call it again.
        """
        if self.directory is None:
            return {}
        mark: Mark = {}
        for slot, table in self._tables.items():
            if table.count:
                mark[slot] = self._flush(self.directory, slot, table)
        self._marks.append(mark)
        self._prune()
        return mark

    def _flush(self, directory: Path, slot: str, table: Table) -> dict[str, int]:
        log, row = self._logs.get(slot), 8 + 4 * table.size
        changed, live = table.changed, table.count * row
        if log is not None and log.length + changed * row > 4 * live + _SLACK:
            log.close()
            log = None
        if log is None:
            directory.mkdir(parents=True, exist_ok=True)
            self._logs.pop(slot, None)
            log = _Log.create(directory, slot, max(_generations(directory, slot), default=0) + 1)
            self._write(log, table, everything=True)
            sync_folder(directory)
            self._logs[slot] = log
        elif changed:
            self._write(log, table, everything=False)
        return {"generation": log.generation, "bytes": log.length, "clients": table.count, "size": table.size}

    def _write(self, log: _Log, table: Table, everything: bool) -> None:
        before = log.length
        try:
            for ids, rows in table.pieces(everything):
                log.append(ids, rows)
            log.sync()
        except BaseException:
            with suppress(OSError):
                log.cut(before)
            if everything:
                log.close()
                log.path.unlink(missing_ok=True)
            raise
        table.clean()

    def restore(self, mark: Mapping[str, Any]) -> None:
        """Go back to `mark`: logs are cut there and read; a log that is missing or damaged is a `UsageError`."""
        self.close()
        self._tables = {slot: Table(size, self._population) for slot, size in self.sizes.items()}
        self._marks.clear()
        if mark and self.directory is None:
            raise UsageError("client state was stored with this run, but no directory is given: name it.")
        for slot, at in mark.items():
            assert self.directory is not None
            if slot not in self.sizes:
                raise UsageError(f"the run keeps client state {slot!r}, which this job does not know: use its own job.")
            if at["size"] != self.sizes[slot]:
                raise UsageError(
                    f"client state {slot!r} was stored with {at['size']} numbers per client, this job has "
                    f"{self.sizes[slot]}: resume with the same model."
                )
            log = _Log.reopen(self.directory, slot, at["generation"])
            self._logs[slot] = log
            table = self._tables[slot]
            for ids, rows in log.read(at["bytes"], table.size):
                table.put(ids, rows, dirty=False)
            if table.count != at["clients"]:
                raise log.damaged()
            log.cut(at["bytes"])
        self._marks.append({slot: dict(at) for slot, at in mark.items()})

    def _prune(self) -> None:
        """Remove log files that none of the last three marks names."""
        if self.directory is None or len(self._marks) < _KEEP:
            return
        for slot in self.sizes:
            wanted = {mark[slot]["generation"] for mark in self._marks if slot in mark}
            for generation, path in _generations(self.directory, slot).items():
                if generation not in wanted:
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; what was not flushed is not kept."""
        for log in self._logs.values():
            log.close()
        self._logs.clear()


def _ids(clients: I64) -> I64:
    ids = np.asarray(clients)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UsageError(f"clients are whole numbers in one dimension, not {ids.dtype} {ids.shape}.")
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= MOST_CLIENTS):
        raise UsageError(f"client ids from {ids.min()} to {ids.max()}: use 0 to {MOST_CLIENTS - 1}.")
    return ids.astype(np.int64, copy=False)


def _name(slot: str, generation: int) -> str:
    return f"{quote(slot, safe='')}.{generation:06d}.log"


def _generations(directory: Path, slot: str) -> dict[int, Path]:
    pattern = re.compile(re.escape(quote(slot, safe="")) + r"\.(\d{6,})\.log")
    if not directory.is_dir():
        return {}
    found = ((pattern.fullmatch(path.name), path) for path in directory.iterdir())
    return {int(match[1]): path for match, path in found if match}


class _Log:
    """One generation of a slot's log, open for appending."""

    def __init__(self, path: Path, generation: int, file: int, length: int) -> None:
        self.path, self.generation, self.length = path, generation, length
        self._file = file

    @classmethod
    def create(cls, directory: Path, slot: str, generation: int) -> _Log:
        path = directory / _name(slot, generation)
        with room(path):
            return cls(path, generation, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), 0)

    @classmethod
    def reopen(cls, directory: Path, slot: str, generation: int) -> _Log:
        path = directory / _name(slot, int(generation))
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            raise UsageError(f"{path} is missing: the client state of this run is lost, start it anew.") from None
        return cls(path, generation, file, os.fstat(file).st_size)

    def damaged(self) -> UsageError:
        return UsageError(f"{self.path} is damaged or cut short: the run cannot be resumed from here, start it anew.")

    def append(self, ids: I64, rows: F32) -> None:
        size = rows.shape[1]
        body = [memoryview(cast(Any, part)).cast("B") for part in (ids.astype("<i8"), rows.astype("<f4")) if part.size]
        check = zlib.crc32(struct.pack("<QQ", len(ids), size))
        for part in body:
            check = zlib.crc32(part, check)
        with room(self.path):
            os.lseek(self._file, self.length, os.SEEK_SET)
            for part in (_HEAD.pack(b"FFSR", check, len(ids), size), *body):
                write_all(self._file, part)
        self.length += _HEAD.size + sum(len(part) for part in body)

    def sync(self) -> None:
        with room(self.path):
            os.fsync(self._file)

    def read(self, end: int, size: int) -> Iterator[tuple[I64, F32]]:
        """The records up to byte `end`; lengths are checked before memory is taken."""
        if end > self.length:
            raise self.damaged()
        at = 0
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            while at < end:
                head = file.read(_HEAD.size)
                if len(head) < _HEAD.size:
                    raise self.damaged()
                magic, check, n, width = cast(tuple[bytes, int, int, int], _HEAD.unpack(head))
                length = n * (8 + 4 * size)
                if magic != b"FFSR" or width != size or at + _HEAD.size + length > end:
                    raise self.damaged()
                body = file.read(length)
                if len(body) < length or zlib.crc32(body, zlib.crc32(struct.pack("<QQ", n, size))) != check:
                    raise self.damaged()
                ids = np.frombuffer(body, "<i8", n).astype(np.int64, copy=False)
                yield ids, np.frombuffer(body, "<f4", n * size, 8 * n).astype(np.float32, copy=False).reshape(n, size)
                at += _HEAD.size + length

    def cut(self, length: int) -> None:
        self.length = length
        os.ftruncate(self._file, length)
        os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
