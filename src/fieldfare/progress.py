"""What a person sees while a run goes on: a live line on a terminal, plain lines elsewhere, nothing when quiet.

Invariant: writes to standard error only, so that standard output stays for programs.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from fieldfare.algorithms.evaluate import innermost


class Display(Protocol):
    """Shows rows as they come, what is being done, and notes that nobody should miss; used as a context manager."""

    def row(self, row: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def doing(self, text: str) -> None: ...

    def resumed(self, round_: int) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class Quiet:
    """Shows nothing but notes."""

    def row(self, row: Mapping[str, Any]) -> None:
        pass

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def doing(self, text: str) -> None:
        pass

    def resumed(self, round_: int) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Lines(Quiet):
    """One plain line now and then, and the last: for logs, pipes and notebooks."""

    def __init__(self, rounds: int | None, every_s: float = 2.0, word: str = "round") -> None:
        self.rounds, self.every_s, self.word = rounds, every_s, word
        self._last, self._began, self._clients = -math.inf, time.monotonic(), 0
        self._untold: str | None = None

    def row(self, row: Mapping[str, Any]) -> None:
        self._clients += int(row.get("clients", 0))
        now = time.monotonic()
        facts = facts_of(row, self._clients / max(now - self._began, 1e-9))
        total = f"/{self.rounds}" if self.rounds else ""
        self._untold = f"{self.word} {row['round']}{total}  " + "  ".join(f"{k} {v}" for k, v in facts.items())
        if now - self._last >= self.every_s or row["round"] == self.rounds:
            self._last = now
            self._tell()

    def _tell(self) -> None:
        if self._untold is not None:
            print(self._untold, file=sys.stderr)
            self._untold = None

    def __exit__(self, *_: object) -> None:
        self._tell()

    def doing(self, text: str) -> None:
        print(text, file=sys.stderr)

    def resumed(self, round_: int) -> None:
        print(f"going on after {self.word} {round_}", file=sys.stderr)


_SHORT = {"accuracy": "acc", "clients/s": "c/s", "virtual": "t"}


class Live(Quiet):
    """A progress bar with the newest figures (rich)."""

    def __init__(self, rounds: int | None, title: str) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        console = Console(stderr=True)
        self._short = console.width < 110
        whole = len(f"{rounds}/{rounds}") if rounds else 3
        self._bar = Progress(
            TextColumn("[bold]{task.description}", table_column=Column(no_wrap=True, max_width=16)),
            BarColumn(bar_width=6 if self._short else 24),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=whole)),
            TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            TextColumn("ETA", table_column=Column(no_wrap=True, min_width=3)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
            console=console, refresh_per_second=8, redirect_stdout=_is_terminal(sys.stdout),
        )  # fmt: skip
        self._task = self._bar.add_task(escape(title), total=rounds, facts="")
        self._began, self._clients, self._facts = time.monotonic(), 0, dict[str, str]()

    def row(self, row: Mapping[str, Any]) -> None:
        self._clients += int(row.get("clients", 0))
        self._facts |= facts_of(row, self._clients / max(time.monotonic() - self._began, 1e-9))
        told = {_SHORT.get(k, k): v for k, v in self._facts.items()} if self._short else self._facts
        facts = " ".join(f"[cyan]{k}[/] {v}" for k, v in told.items())
        self._bar.update(self._task, completed=row["round"], facts=facts)

    def note(self, text: str) -> None:
        self._bar.console.print(text, style="yellow", highlight=False, markup=False)

    def doing(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False)

    def resumed(self, round_: int) -> None:
        self._bar.update(self._task, completed=round_)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def facts_of(row: Mapping[str, Any], clients_per_s: float) -> dict[str, str]:
    """The figures worth a glance, as text."""
    out: dict[str, str] = {}
    if "accuracy" in row:
        out["accuracy"] = f"{row['accuracy']:.3f}"
    loss = row.get("loss", row.get("train_loss"))
    if loss is not None:
        out["loss"] = f"{loss:.3f}"
    out["clients/s"] = f"{clients_per_s:,.0f}"
    out["virtual"] = duration(float(row.get("virtual_s", 0.0)))
    return out


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(5), duration(125), duration(7300)
    ('5.0 s', '2.1 min', '2.0 h')
    """
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def display(job: Any, progress: bool | None) -> Display:
    """The display for this job: a live bar on a terminal, plain lines elsewhere; nothing when `progress` is False."""
    rounds = getattr(innermost(job.algorithm), "rounds", None)
    title = job.name or getattr(innermost(job.algorithm), "name", "run")
    if progress is False:
        return Quiet()
    return Live(rounds, title) if _is_terminal(sys.stderr) else Lines(rounds)


def display_of_points(points: int, title: str, progress: bool | None) -> Display:
    """The display of a sweep: one row per point that is done."""
    if progress is False:
        return Quiet()
    return Live(points, title) if _is_terminal(sys.stderr) else Lines(points, word="point")


def _is_terminal(stream: Any) -> bool:
    """Whether `stream` is a terminal; the streams of some notebooks and services cannot tell, or are None."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False
