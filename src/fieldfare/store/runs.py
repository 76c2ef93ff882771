"""The folder of a run: its name, its lock, its small files, its model; the only place that reads the wall clock.

Not here: client state (`slots`), snapshots. Layout of `runs/20261121-031500-fedavg-a1b2/`: `run.json` (format,
version), `job.py`, JSON files, `*.jsonl`, `model.safetensors`, `lock`; `summary.json` stands there once it is complete.
Invariant: one process at a time writes to a folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from fieldfare import __version__
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.store import models
from fieldfare.store.files import room, sweep, sync_folder, write_atomic
from fieldfare.store.lines import RECORDS, LineFiles, read_lines
from fieldfare.store.text import dumps

FORMAT = 1

_LOCKED: set[str] = set()  # folders this process writes to: a POSIX lock does not stop its own process


class RunFolder:
    """One run on disk. Use `create` or `open`; `with` closes it and gives the lock back."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._lock = lock
        self._lines = LineFiles(path)

    @classmethod
    def create(cls, root: str | Path = "runs", name: str | None = None) -> Self:
        """A new, locked folder under `root` whose id is the time (UTC), `name` and four random digits."""
        root = Path(root)
        word = re.sub(r"[^a-z0-9]+", "-", (name or "run").lower()).strip("-")[:40] or "run"
        while True:
            now = datetime.now(UTC)
            path = root / f"{now:%Y%m%d-%H%M%S}-{word}-{secrets.token_hex(2)}"
            with room(path):
                root.mkdir(parents=True, exist_ok=True)
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    continue
        run = cls.create_at(path)
        sync_folder(run.path.parent)
        _point(run.path.parent / "latest", run.id)
        return run

    @classmethod
    def create_at(cls, path: str | Path) -> Self:
        """A new, locked run in exactly the folder `path` (an arm of a study); one that holds a run is refused."""
        folder = Path(path)
        with room(folder):
            folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        lock = _take(folder)
        run = cls(folder, lock)
        try:
            if (folder / "run.json").exists():
                raise UsageError(f"{path} already holds a run: open it, or choose another folder.")
            created = datetime.now(UTC).isoformat(timespec="seconds")
            run.write_json("run.json", {"format": FORMAT, "version": __version__, "id": run.id, "created": created})
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: str | Path, write: bool = True) -> Self:
        """An existing run; `write=True` takes the lock (a second process is refused), `write=False` only reads."""
        folder = Path(path).resolve()
        try:
            about: Any = json.loads((folder / "run.json").read_bytes())
            form, version = about["format"], about["version"]
        except OSError:
            raise UsageError(f"{path} is no run folder (it has no run.json): name one under runs/.") from None
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{path}/run.json is damaged: this run cannot be opened.") from None
        if form != FORMAT and version == __version__:
            raise UsageError(
                f"{path}/run.json says format {form!r}, which no fieldfare {version} writes (it writes {FORMAT}): "
                "the file was changed; put it back as it was, or run the job again."
            )
        if form != FORMAT:
            raise UsageError(
                f"{path} was written by fieldfare {version} in format {form}, this version {__version__} reads format "
                f"{FORMAT}: use fieldfare {version} for it."
            )
        run = cls(folder, _take(folder) if write else None)
        if write:
            sweep(folder)
        return run

    @classmethod
    def find(cls, which: str = "latest", root: str | Path = "runs", write: bool = False) -> Self:
        """The run called `which`: a path, an id, the beginning of one id, or `latest`."""
        root = Path(root)
        if (Path(which) / "run.json").is_file():
            return cls.open(which, write)
        if (root / which / "run.json").is_file():
            return cls.open(root / which, write)
        there = run_paths(root)
        near = [path for path in there if path.name.startswith(which) or path.name.endswith(which)]
        if len(near) == 1:
            return cls.open(near[0], write)
        if not there:
            raise UsageError(
                f"there is no run {which!r}: there are no runs under {root} yet; make one with "
                "`fieldfare run JOB.py`, or give --runs."
            )
        have = ", ".join(path.name for path in (near or there)[-3:])
        raise UsageError(f"{len(near) or 'no'} runs under {root} are called {which!r}: the last there are {have}.")

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def complete(self) -> bool:
        """Whether the run came to its end: it has a summary."""
        return (self.path / "summary.json").is_file()

    @property
    def status(self) -> Literal["complete", "running", "incomplete"]:
        """`running` while some process holds the lock."""
        if self.complete:
            return "complete"
        return "running" if self._lock is not None or _held(self.path) else "incomplete"

    def file(self, name: str) -> Path:
        """The path of `name` in this folder; a name that leads elsewhere is refused."""
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise UsageError(f"{name!r} is no file name inside a run folder: use a plain name.")
        return self.path / name

    def write_json(self, name: str, value: Any) -> None:
        """Write strict JSON (NaN and infinities as null), whole or not at all."""
        write_atomic(self._own(name), [dumps(value, indent=1) + b"\n"])

    def read_json(self, name: str) -> Any:
        """What `write_json` wrote; a missing or damaged file is one line."""
        path = self.file(name)
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            raise UsageError(f"the run {self.id} has no {name}: it may not have come that far.") from None
        except ValueError as error:
            raise UsageError(f"{path} is damaged ({error}).") from None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`: from now on the run is complete."""
        self.flush()
        self.write_json("summary.json", summary)

    def append(self, name: str, value: Any) -> None:
        """Add one JSON line to `name` (ends in `.jsonl`); it is on the disk after `flush`."""
        self._own(name)
        if not name.endswith(".jsonl"):
            raise UsageError(f"append({name!r}): a file of lines ends in .jsonl.")
        self._lines.append(name, value)

    def add_records(self, name: str, records: bytes) -> None:
        """Add whole records to a file of them (`store.lines.RECORDS`: `tasks.bin`, `messages.bin`, `work.bin`)."""
        if name not in RECORDS:
            raise UsageError(f"add_records({name!r}): the files of records are {', '.join(RECORDS)}.")
        self._held()
        self._lines.add(name, records)

    def flush(self, sync: bool = True) -> dict[str, int]:
        """Write all appended lines, durably if `sync`; gives marks `{name: bytes}` for a snapshot."""
        return self._lines.flush(sync)

    def truncate(self, marks: Mapping[str, int]) -> None:
        """Back to the marks of a snapshot: later lines are forgotten, also those of files without a mark."""
        for name in marks:
            self._own(name)
        self._lines.truncate(marks)

    def read_lines(self, name: str) -> list[Any]:
        """All whole lines on disk; [] if there are none."""
        return read_lines(self.file(name))

    def write_model(self, model: Params, name: str = "model.safetensors") -> Path:
        """Write the model as safetensors, whole or not at all."""
        path = self._own(name)
        models.write_model(path, model)
        return path

    def read_model(self, name: str = "model.safetensors", layout: Layout | None = None) -> Params:
        return models.read_model(self.file(name), layout)

    def copy_source(self, source: str | Path) -> Path:
        """Keep the job file as `job.py`."""
        path = self._own("job.py")
        try:
            text = Path(source).read_bytes()
        except OSError as error:
            raise UsageError(f"the job file {source} cannot be read ({error.strerror}).") from None
        write_atomic(path, [text])
        return path

    def close(self) -> None:
        """Write what was appended and give the lock back."""
        if self._lock is not None:
            try:
                self.flush()
            finally:
                self._lines.close()
                os.close(self._lock)
                self._lock = None
                _LOCKED.discard(str(self.path))

    def _own(self, name: str) -> Path:
        self._held()
        return self.file(name)

    def _held(self) -> None:
        if self._lock is None:
            raise UsageError(f"the run {self.id} is closed or open for reading only: open it with write=True.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def run_paths(root: str | Path = "runs") -> list[Path]:
    """The run folders under `root`, oldest first."""
    return sorted(path.parent for path in Path(root).glob("*/run.json") if not path.parent.is_symlink())


def _take(folder: Path) -> int:
    """Lock the folder for this process until the descriptor given is closed or the process ends, however it ends."""
    busy = UsageError(f"the run {folder.name} is being written by another process: wait for it, or stop it first.")
    if str(folder) in _LOCKED:
        raise busy
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise busy from None
    _LOCKED.add(str(folder))
    return handle


def _held(folder: Path) -> bool:
    """Whether someone writes to the folder."""
    if str(folder) in _LOCKED:
        return True
    try:
        handle = os.open(folder / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _point(link: Path, target: str) -> None:
    """Make the symlink `link` lead to `target`, atomically; a file system without links goes without."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.{secrets.token_hex(2)}.tmp")
    try:
        os.symlink(target, temporary)
        os.replace(temporary, link)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
