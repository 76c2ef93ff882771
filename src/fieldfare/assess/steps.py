"""What a person sees while a long command of `fieldfare assess` goes through its steps.

Here: a bar on a terminal, plain lines elsewhere. Not here: runs and sweeps (`fieldfare.progress`). Invariant: writes to
standard error only, and nothing when quiet.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Protocol, Self

from fieldfare.progress import _is_terminal


class Tell(Protocol):
    """Called with what is being done: `done` of `total` steps are over; a total of 0 is not known yet."""

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None: ...


def silent(text: str, done: int = 0, total: int = 0) -> None:
    """A `Tell` that tells nobody."""


class Steps:
    """A `Tell` for people, used as a context manager: the newest step, how many are over, the time taken."""

    def __init__(self, title: str, quiet: bool = False) -> None:
        self._title, self._quiet = title, quiet
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if not self._quiet and _is_terminal(sys.stderr):
            self._bar = _bar()
            self._task = self._bar.add_task(self._title, total=None, step="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total or None, step=text)
        elif not self._quiet:
            print(f"{self._title}: {text}", file=sys.stderr)


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    return Progress(
        SpinnerColumn(), TextColumn("[bold]{task.description}", markup=True), BarColumn(bar_width=24),
        TextColumn("{task.fields[step]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        TimeElapsedColumn(), console=Console(stderr=True), transient=True,
    )  # fmt: skip
