"""Writes docs/cli.md from the command line itself; with --check, fails when the file is not in step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from fieldfare.cli import EXIT, app

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"


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


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text() != text:
            sys.exit("docs/cli.md is not in step with the command line: run python scripts/cli_reference.py")
    else:
        PAGE.write_text(text)
