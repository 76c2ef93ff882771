"""The command `fieldfare sweep`: one job over a grid of settings.

Here: the command and the table it prints. Not here: the points (`sweep`), the report (`report.sweep`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import click

from fieldfare.core.errors import UsageError

MOST_SHOWN = 60


@click.command()
@click.argument("job", metavar="JOB.py", type=click.Path(path_type=Path))
@click.option("--over", metavar="KEY=V1,V2", multiple=True, help="A setting and its values; several make a grid.")
@click.option("--seeds", metavar="0,1,2", help="Seeds of every point (default: the job's own).")
@click.option("--system-only", is_flag=True, help="Train nothing; simulate who works when, and what it takes.")
@click.option("--hours", type=float, help="End a point after so many virtual hours (with --system-only).")
@click.option("--set", "-s", "set_", metavar="KEY=VALUE", multiple=True, help="Override, for all points.")
@click.option("--rounds", type=int, help="Short for --set algorithm.rounds=N.")
@click.option("--workers", type=int, help="Worker processes of a trained point (default: as many as cores).")
@click.option("--jobs", type=int, help="Points at a time, with --system-only (default: as many as cores).")
@click.option("--job", "name", metavar="NAME", help="Which job of the file.")
@click.option("--runs", type=click.Path(path_type=Path), default="runs", help="Where run folders are kept.")
@click.option("--quiet", "-q", is_flag=True, help="No progress display.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on the last line.")
def sweep(
    job: Path, over: tuple[str, ...], seeds: str | None, system_only: bool, hours: float | None,
    set_: tuple[str, ...], rounds: int | None, workers: int | None, jobs: int | None, name: str | None, runs: Path,
    quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run a job at every point of a grid of settings, and write one table and one report."""
    from fieldfare.load import load_job
    from fieldfare.sweep import Sweep

    changes: dict[str, Any] = dict(_pair("--set", pair) for pair in set_)
    changes |= {k: v for k, v in (("rounds", rounds), ("workers", workers)) if v is not None}
    values = {key: _values(text) for key, text in (_pair("--over", pair) for pair in over)}
    if len(values) < len(over):
        raise UsageError("--over names a setting twice: give all its values at once, KEY=V1,V2.")
    numbers = _seeds(seeds)
    loaded: Any = load_job(job, name)
    if not hasattr(loaded, "seed") and not isinstance(loaded, Sweep):
        raise UsageError(f"{job} makes a study: a sweep is of one job, choose it with --job.")
    if isinstance(loaded, Sweep):
        loaded = replace(
            loaded, over={**loaded.over, **values}, seeds=numbers or loaded.seeds,
            system_only=system_only or loaded.system_only, hours=loaded.hours if hours is None else hours,
        )  # fmt: skip
    else:
        if not values:
            raise UsageError("sweep needs --over KEY=V1,V2: at least one setting with its values.")
        loaded = Sweep(loaded, values, numbers, system_only, hours, _name_of(loaded))
    if changes:
        loaded = loaded.with_overrides(changes)
    done = loaded.run(
        runs, progress=False if quiet else None, source=job, overrides=changes, job_name=name, jobs=jobs
    )  # fmt: skip
    if as_json:
        from fieldfare.store.text import dumps

        print(dumps(done.summary).decode())
    else:
        show_sweep(done.rows, done.summary, done.path)
    refuse_failed(done.summary)


def refuse_failed(summary: Mapping[str, Any]) -> None:
    """End with exit code 7 where points of a sweep could not be run."""
    if summary.get("failed"):
        raise click.exceptions.Exit(7)


def show_sweep(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], path: Path | None) -> None:
    """A sweep's points in a table, the median over seeds, and where the report is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fieldfare.report.sweep import columns_of, grid_of

    grid, console = grid_of(summary["over"], rows), Console(highlight=False)
    places = grid.places[:MOST_SHOWN]
    told = [(name, "left", [place.words[i] for place in places]) for i, name in enumerate(grid.names)]
    told += [(c.words, "right", [c.write(c.median(place)) for place in places]) for c in columns_of(grid)]
    table, width = Table(box=None, pad_edge=False), 0
    shown: list[list[str]] = []
    for words, side, cells in told:
        width += 2 + max(map(len, (words, *cells)))
        if width > console.width + 2:
            break
        table.add_column(escape(words), justify=cast(Any, side), no_wrap=True)
        shown.append(cells)
    for line in zip(*shown, strict=True):
        table.add_row(*map(escape, line))
    console.print(table)
    if (left := len(grid.places) - MOST_SHOWN) > 0:
        console.print(f"and {left} more: see the report")
    if count := summary.get("failed", 0):
        console.print(f"{count} of {summary['points']} points could not be run: see the report")
    if path is not None:
        console.print(f"report: {path / 'report.html'}", soft_wrap=True, markup=False)


def _name_of(job: Any) -> str:
    return f"sweep-{job.name or getattr(job.algorithm, 'name', 'job')}"


def _pair(option: str, pair: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals or not key.strip():
        what = "KEY=V1,V2, for example --over algorithm.cohort=60,120" if option == "--over" else "KEY=VALUE"
        raise UsageError(f"{option} {pair!r}: write {what}.")
    return key.strip(), value


def _values(text: str) -> Sequence[str]:
    """The values of an axis; what stands in brackets is one.

    >>> _values("1,2"), _values("(0.9, 0.99),none")
    (['1', '2'], ['(0.9, 0.99)', 'none'])
    """
    return [part.strip() for part in re.split(r",(?![^(\[]*[)\]])", text)]


def _seeds(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--seeds {text!r}: write whole numbers between commas, for example --seeds 0,1,2.") from None
    return found
