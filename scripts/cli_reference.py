"""Writes docs/cli.md and docs/algorithms.md from the code itself; with --check, fails when a page is not in step."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import click

from fieldfare.algorithms.catalogue import ALGORITHMS
from fieldfare.cli import EXIT, app

DOCS = Path(__file__).parent.parent / "docs"


def commands(command: Any, words: str) -> list[str]:
    """Markdown of a command and of its sub-commands."""
    lines: list[str] = []
    subcommands = getattr(command, "commands", None)
    if subcommands:
        for name, inside in subcommands.items():
            lines += commands(inside, f"{words} {name}")
        return lines
    context = click.Context(command, info_name=words)
    usage = " ".join(command.collect_usage_pieces(context))
    lines += [f"## `{words}`", "", (command.help or "").strip(), "", f"    {words} {usage}", ""]
    rows = [p.get_help_record(context) for p in command.get_params(context) if p.name != "help"]
    shown = [row for row in rows if row]
    if shown:
        lines += ["| option | meaning |", "| --- | --- |"]
        lines += [f"| `{name.replace('|', chr(92) + '|')}` | {text.replace('|', '/')} |" for name, text in shown]
        lines.append("")
    return lines


def page() -> str:
    """The whole reference."""
    lines = ["# Command line", "", "Made by `scripts/cli_reference.py` from the command itself.", ""]
    lines += ["Every command takes `--json`: its result is one JSON object on the last line of standard output.", ""]
    lines += ['Shell completion: `eval "$(fieldfare completion bash)"` (or zsh, fish).', ""]
    lines += commands(app, "fieldfare")
    lines += ["## Exit codes", "", "| code | meaning |", "| --- | --- |"]
    lines += [f"| {code} | {text} |" for code, text in EXIT.items()]
    return "\n".join(lines) + "\n"


def algorithms() -> str:
    """The catalogue as a page: a table, then what each constructor's docstring says, departures included."""
    lines = ["# Algorithms", "", "Made by `scripts/cli_reference.py` from the catalogue.", ""]
    lines += ["| name | constructor | what it does | paper | needs |", "| --- | --- | --- | --- | --- |"]
    for entry in ALGORITHMS:
        constructor = f"`ff.{entry.factory.__name__}`"
        needs = ", ".join(entry.needs) or "-"
        lines.append(f"| {entry.name} | {constructor} | {entry.summary} | {entry.paper} | {needs} |")
    lines += ["", "All take `rounds` and `cohort` first, then their own options, then `quorum`, `work` and `view`.", ""]
    for entry in ALGORITHMS:
        text = inspect.getdoc(entry.factory) or ""
        module = inspect.getdoc(inspect.getmodule(entry.factory)) or ""
        lines += [f"## {entry.name}", "", text, "", f"From its module: {module.split(chr(10) + chr(10))[0]}", ""]
    return "\n".join(lines)


PAGES = {"cli.md": page, "algorithms.md": algorithms}

if __name__ == "__main__":
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"docs/{name} is not in step with the code: run python scripts/cli_reference.py")
