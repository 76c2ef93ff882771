"""Writes docs/cli.md and docs/algorithms.md from the code itself; with --check, fails when a page is not in step."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import click

from fieldfare.algorithms.catalogue import ALGORITHMS, DECENTRALISED, OFFLOADING
from fieldfare.cli import EXIT, app

DOCS = Path(__file__).parent.parent / "docs"


def commands(command: Any, words: str) -> list[str]:
    """Markdown of a command and of its sub-commands."""
    lines: list[str] = []
    context = click.Context(command, info_name=words)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            lines += commands(command.get_command(context, name), f"{words} {name}")
        return lines
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


def prose(docstring: str | None) -> list[str]:
    """The paragraphs of a docstring as Markdown, without the one that says what is where in the code."""
    paragraphs = (docstring or "").split("\n\n")
    lines = "\n\n".join(one for one in paragraphs if not one.startswith("Here:")).split("`")
    lines[::2] = [outside.replace("**", r"\*\*").replace("\n+ ", "\n\\+ ") for outside in lines[::2]]
    return ["`".join(lines), ""]


def algorithms() -> str:
    """The catalogue as a page: a table, then what each constructor and its module say, departures included."""
    lines = ["# Algorithms", "", "Made by `scripts/cli_reference.py` from the catalogue.", ""]
    lines += ["| name | constructor | what it does | paper | needs |", "| --- | --- | --- | --- | --- |"]
    for entry in ALGORITHMS:
        constructor = f"`ff.{entry.factory.__name__}`"
        needs = ", ".join(entry.needs) or "-"
        lines.append(f"| {entry.name} | {constructor} | {entry.summary} | {entry.paper} | {needs} |")
    lines += [
        "",
        "All take `rounds` and `cohort` first, then their own options, then `quorum`, `work` and (not bagging) `view`.",
        "",
        "Without a server, every client a node of its own ([more](run-folder.md#runs-of-several-nodes)):",
        "",
        "| name | constructor | what it does | paper | needs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for several in DECENTRALISED:
        needs = ", ".join(several.needs) or "-"
        constructor = f"`ff.{several.factory.__name__}`"
        lines.append(f"| {several.name} | {constructor} | {several.summary} | {several.paper} | {needs} |")
    lines += [
        "",
        "These take `cycles` first; learning rate, batches, and local steps where they are not their own, are those of "
        "`Training`.",
        "",
        "With edge servers beside the clients ([more](fedfly.md)), by `rounds`:",
        "",
        "| name | constructor | what it does | paper | needs |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {one.name} | `ff.{one.factory.__name__}` | {one.summary} | {one.paper} | {', '.join(one.needs)} |"
          for one in OFFLOADING),
        "",
    ]  # fmt: skip
    told: dict[Any, str] = {}
    for entry in (*ALGORITHMS, *DECENTRALISED, *OFFLOADING):
        module = inspect.getmodule(entry.factory)
        lines += [f"## {entry.name}", "", *prose(inspect.getdoc(entry.factory))]
        if module in told:
            lines += [f"More under [{told[module]}](#{told[module]}).", ""]
        else:
            told[module] = entry.name
            lines += prose(inspect.getdoc(module))
    return "\n".join(lines)


PAGES = {"cli.md": page, "algorithms.md": algorithms}

if __name__ == "__main__":
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"docs/{name} is not in step with the code: run python scripts/cli_reference.py")
