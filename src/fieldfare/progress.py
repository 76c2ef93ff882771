"""What a person sees while a run goes on: a live line on a terminal, plain lines elsewhere, nothing when quiet.

Invariant: writes to standard error only, so that standard output stays for programs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self


class Display(Protocol):
    """Shows rows as they come, and notes; used as a context manager."""

    def row(self, row: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Lines(Quiet):
    """One plain line now and then: for logs, pipes and notebooks."""

    def __init__(self, rounds: int | None, every_s: float = 2.0) -> None:
        self.rounds, self.every_s = rounds, every_s
        self._last, self._began, self._clients = 0.0, time.monotonic(), 0

    def row(self, row: Mapping[str, Any]) -> None:
        self._clients += int(row.get("clients", 0))
        now = time.monotonic()
        if now - self._last < self.every_s and row["round"] != self.rounds:
            return
        self._last = now
        facts = facts_of(row, self._clients / max(now - self._began, 1e-9))
        total = f"/{self.rounds}" if self.rounds else ""
        print(f"round {row['round']}{total}  " + "  ".join(f"{k} {v}" for k, v in facts.items()), file=sys.stderr)


class Live(Quiet):
    """A progress bar with the newest figures (rich)."""

    def __init__(self, rounds: int | None, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"), TextColumn("ETA"), TimeRemainingColumn(),
            console=Console(stderr=True), refresh_per_second=8,
        )  # fmt: skip
        self._task = self._bar.add_task(title, total=rounds, facts="")
        self._began, self._clients, self._facts = time.monotonic(), 0, dict[str, str]()

    def row(self, row: Mapping[str, Any]) -> None:
        self._clients += int(row.get("clients", 0))
        self._facts |= facts_of(row, self._clients / max(time.monotonic() - self._began, 1e-9))
        facts = "  ".join(f"[cyan]{k}[/] {v}" for k, v in self._facts.items())
        self._bar.update(self._task, completed=row["round"], facts=facts)

    def note(self, text: str) -> None:
        self._bar.console.print(text, style="yellow", highlight=False)

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
    """The display for this job: `progress` True or False, or None for what standard error is."""
    rounds = getattr(job.algorithm, "rounds", None)
    title = job.name or getattr(job.algorithm, "name", "run")
    if progress is False:
        return Quiet()
    if sys.stderr.isatty():
        return Live(rounds, title)
    return Lines(rounds) if progress or progress is None else Quiet()
