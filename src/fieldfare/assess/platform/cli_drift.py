"""The command `fieldfare assess drift`: whether a run keeps to its forecast, as an exit code too."""

from __future__ import annotations

from pathlib import Path

import click

from fieldfare.assess.options import artefact_at, as_json_, out_, tell

OUTSIDE = 8


@click.command("drift")
@click.argument("forecast", type=click.Path(path_type=Path))
@click.argument("run", default="latest")
@click.option("--runs", default="runs", show_default=True, help="Where runs are.")
@click.option("--only", metavar="A,B", help="These quantities alone.")
@out_
@as_json_
def command(forecast: Path, run: str, runs: str, only: str | None, out: Path | None, as_json: bool) -> int:
    """Lay RUN (a path, an id or `latest`; over or going on) beside FORECAST: all inside their ranges 0, else 8."""
    from fieldfare.assess.artefact import read_artefact
    from fieldfare.assess.platform.drift import drift

    chosen = [one.strip() for one in only.split(",")] if only else []
    made = drift(read_artefact(forecast, "forecast"), run, artefact_at(out or "", "drift"), root=runs, only=chosen)
    outside = made.number("outside") or 0.0
    if as_json:
        tell(made, True)
    else:
        _show(made)
    return OUTSIDE if outside else 0


def _show(made: object) -> None:
    """The table, one quantity a line, those outside marked."""
    from typing import Any

    from rich.console import Console
    from rich.table import Table

    from fieldfare.assess.decide.words import words
    from fieldfare.assess.platform.places import address

    artefact: Any = made
    table = Table(box=None, pad_edge=False)
    for head in ("quantity", "forecast", "range", "live", "ratio", ""):
        table.add_column(head, no_wrap=head in ("quantity", "ratio", ""), overflow="fold")
    for name, one in artefact.values.items():
        if one.closed is None:
            continue
        told = {"inside the forecast's range": "inside", "outside the forecast's range": "[red]outside[/]"}
        span = "" if one.low is None else f"{words(one.low, one.unit)} to {words(one.high, one.unit)}"
        ratio = f"{one.value / one.closed:.2f}" if one.closed else ""
        table.add_row(
            name, words(one.closed, one.unit), span, words(one.value, one.unit), ratio, told.get(one.note, "")
        )
    share, outside = artefact.number("versions_share"), artefact.number("outside")
    console = Console(highlight=False)
    console.print(f"{outside:.0f} outside; the run has made {share:.0%} of the versions forecast")
    console.print(table)
    console.print(f"written: {address(artefact.path)}", soft_wrap=True, markup=False)
