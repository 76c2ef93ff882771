"""Writing a file so that a reader sees the old one or the new one, never a half; and what a full disk becomes.

Not here: what the files mean. Invariant: after `write_atomic` returns, the bytes and the name are on the disk; if it
raises, the file that stood there before still stands, and no temporary file is left.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from fieldfare.core.errors import UsageError

Buffer: TypeAlias = bytes | bytearray | memoryview

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PIECE = 1 << 24


class DiskFull(UsageError, OSError):
    """No room to write: what was there before is intact."""


@contextmanager
def room(path: Path) -> Generator[None, None, None]:
    """Turn an operating system's "no space" inside the block into one `DiskFull` line about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and not isinstance(error, DiskFull):
            raise DiskFull(
                f"the disk is full: {path.name} could not be written to {path.parent} ({error.strerror}); "
                "what was saved before is intact: free some space and resume the run."
            ) from error
        raise


def write_all(file: int, buffer: Buffer) -> None:
    """Write every byte of `buffer` to an open descriptor, in pieces of 16 MiB."""
    view = memoryview(buffer).cast("B")
    at = 0
    while at < len(view):
        at += os.write(file, view[at : at + _PIECE])


def sync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, pieces: Iterable[Buffer]) -> None:
    """Replace `path` by the concatenation of `pieces`: all of it and durable, or not at all (`DiskFull`)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with room(path):
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                for piece in pieces:
                    write_all(handle, piece)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def sweep(folder: Path) -> None:
    """Remove temporary files that a killed process left in `folder`; only for whoever holds the run's lock."""
    for left in folder.glob(".*.tmp"):
        with suppress(OSError):
            left.unlink()
