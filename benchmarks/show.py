"""Rows for people: a table on the terminal, and a picture of the ratios. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rows import Row


def number(value: float | None) -> str:
    """Three significant digits, thousands separated.

    >>> number(1234.5), number(0.01234), number(None)
    ('1,234', '0.0123', '-')
    """
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Sequence[Row]) -> Table:
    """One line per row, the best peer first among the peers; what is missing in a line of its own."""
    out = Table(title="Fieldfare and its peers")
    for heading in ("", "unit", "ours", "times the best", "limit", "of limit"):
        out.add_column(heading, justify="left" if heading in ("", "unit") else "right", no_wrap=True)
    out.add_column("peers, best first", overflow="fold")
    for row in rows:
        ordered = sorted(row.peers.items(), key=lambda item: item[1], reverse=row.better == "more")
        told = "  ".join(f"{name} {number(value)}" for name, value in ordered)
        if row.missing:
            reasons = "\n".join(f"[yellow]missing {name}: {why}[/]" for name, why in row.missing.items())
            told = f"{told}\n{reasons}" if told else reasons
        share = "-"
        if row.ours and row.limit:
            share = f"{row.ours / row.limit if row.better == 'more' else row.limit / row.ours:.0%}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        out.add_row(row.name, row.unit, number(row.ours), ratio, number(row.limit), share, told)
    return out


def agreement(found: Sequence[tuple[str, str, float | None, str]], against: str) -> Table:
    """How far each arm's model is from the hand-written loop's: (workload, arm, difference, what is wrong)."""
    out = Table(title=f"Models after the check rounds, against the {against}", min_width=72)
    for heading in ("", "arm", "differs by", ""):
        out.add_column(heading)
    for name, arm, difference, reason in found:
        out.add_row(name, arm, "-" if difference is None else f"{difference:.2e}", reason)
    return out


def show(*tables: Table) -> None:
    """Print, wide enough for the peers when the output is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for each in tables:
        console.print(each)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Horizontal bars of how many times better than the best peer each row is, on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [(row, ratio) for row in reversed(rows) if (ratio := row.ratio) is not None]
    figure = Figure(figsize=(8, 1.2 + 0.45 * max(len(shown), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.barh(
        [row.name for row, _ in shown],
        [ratio - 1 for _, ratio in shown],
        left=1.0,
        color=["#2f6f4f" if ratio >= 1 else "#b4552d" for _, ratio in shown],
    )
    for row, ratio in shown:
        best = row.best
        assert best is not None
        axes.annotate(
            f" {ratio:.2f} x {best[0]} ",
            (ratio, row.name),
            ha="left" if ratio >= 1 else "right",
            va="center",
            fontsize=8,
        )
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    ratios = [ratio for _, ratio in shown] or [1.0]
    axes.set_xlim(min(0.5, min(ratios) / 3), max(2.0, max(ratios) * 4))
    axes.set_xlabel("times better than the best peer")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)
