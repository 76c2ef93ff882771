"""JSON lines, and records of one size, that grow: buffered, marked, cut back to a mark when a run is resumed.

Invariant: what `flush` gave a mark for is on the disk, and `truncate(marks)` brings exactly that back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fieldfare.core.errors import UsageError
from fieldfare.store.files import room, sync_folder, write_all
from fieldfare.store.nodes import MESSAGE, MESSAGES, WORK, WORKED
from fieldfare.store.tasks import TASK, TASKS
from fieldfare.store.text import dumps

RECORDS = {TASKS: TASK.itemsize, MESSAGES: MESSAGE.itemsize, WORK: WORKED.itemsize}
"""The files of records, and how many bytes one is."""
_BUFFER = 1 << 20


def read_lines(path: str | Path) -> list[Any]:
    """Every whole line of a JSON-lines file; a last line cut short by a kill is left out; [] without a file."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UsageError(f"{path} is damaged: a line in it is no JSON ({error}).") from None


class Lines:
    """One file of JSON lines, open for appending; O(1) per line, one write per MiB or `flush`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending = bytearray()
        new = not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._length = self._whole()
        os.ftruncate(self._file, self._length)
        os.lseek(self._file, self._length, os.SEEK_SET)
        if new:
            sync_folder(path.parent)

    def _whole(self) -> int:
        """Length up to and with the last line end, found from the back."""
        end = os.fstat(self._file).st_size
        while end:
            start = max(0, end - (1 << 16))
            at = os.pread(self._file, end - start, start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
        return 0

    def append(self, value: Any) -> None:
        self.add(dumps(value) + b"\n")

    def add(self, part: bytes) -> None:
        """Append bytes as they are."""
        self._pending += part
        if len(self._pending) >= _BUFFER:
            self._write()

    def _write(self) -> None:
        with room(self.path):
            try:
                write_all(self._file, self._pending)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(self._file, self._length)
                    os.lseek(self._file, self._length, os.SEEK_SET)
                raise
        self._length += len(self._pending)
        self._pending = bytearray()

    def flush(self, sync: bool = True) -> int:
        """Write what is pending, durably if `sync`; gives the length of the file in bytes."""
        if self._pending:
            self._write()
        if sync:
            with room(self.path):
                os.fsync(self._file)
        return self._length

    def truncate(self, length: int) -> None:
        """Forget all beyond `length` bytes; a file that is shorter than that is a `UsageError`."""
        self._pending = bytearray()
        if length > self._length:
            raise UsageError(f"{self.path} has {self._length} bytes and should have {length}: it was cut, start anew.")
        os.ftruncate(self._file, length)
        os.lseek(self._file, length, os.SEEK_SET)
        os.fsync(self._file)
        self._length = length

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Records(Lines):
    """One file of binary records of `size` bytes each; a last record cut short by a kill is left out."""

    def __init__(self, path: Path, size: int) -> None:
        self._size = size
        super().__init__(path)

    def _whole(self) -> int:
        end = os.fstat(self._file).st_size
        return end - end % self._size


class LineFiles:
    """The files of a folder that grow, by name: JSON lines (`rounds.jsonl`), and records (`RECORDS`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Lines] = {}

    def _lines(self, name: str) -> Lines:
        if name not in self._open:
            path = self.folder / name
            self._open[name] = Records(path, RECORDS[name]) if name in RECORDS else Lines(path)
        return self._open[name]

    def append(self, name: str, value: Any) -> None:
        self._lines(name).append(value)

    def add(self, name: str, part: bytes) -> None:
        self._lines(name).add(part)

    def flush(self, sync: bool = True) -> dict[str, int]:
        return {name: lines.flush(sync) for name, lines in sorted(self._open.items())}

    def truncate(self, marks: Mapping[str, int]) -> None:
        """Back to `marks`; files that had no mark become empty, files with a mark must be there."""
        present = {path.name for path in self.folder.glob("*.jsonl")}
        present |= {name for name in RECORDS if (self.folder / name).exists()}
        for name in sorted(present | set(marks)):
            self._lines(name).truncate(marks.get(name, 0))

    def close(self) -> None:
        for lines in self._open.values():
            lines.close()
        self._open.clear()
