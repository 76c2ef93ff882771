"""The command `fieldfare assess decide`: go or no-go, as a page for people and an exit code for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fieldfare.assess.options import artefact_at, as_json_, config_, out_, set_, settings_of


@click.command("decide")
@click.argument("evidence", nargs=-1, type=click.Path(path_type=Path))
@click.option("--threshold", "-t", metavar="NAME=VALUE", multiple=True, help="A limit other than the default.")
@click.option("--name", help="The case's name, without a file.")
@click.option("--models", metavar="A,B", help="Candidate models, the preferred first.")
@click.option("--strict", is_flag=True, help="Exit with 8 for GO WITH CONDITIONS, too.")
@config_
@set_
@out_
@as_json_
def command(
    evidence: tuple[Path, ...], threshold: tuple[str, ...], name: str | None, models: str | None, strict: bool,
    config: Path | None, set_: tuple[str, ...], out: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Walk FLINT's workflow over EVIDENCE (artefact folders): GO 0, NO-GO 8, INCOMPLETE 9 as exit code."""
    from fieldfare.assess.artefact import read_artefact
    from fieldfare.assess.decide.decision import case_of, decide
    from fieldfare.core.errors import UsageError

    told = settings_of(config, set_, name=name, models=models.split(",") if models else None)
    changes = settings_of(None, threshold)
    if changes:
        if not isinstance(told.get("thresholds", {}), dict):
            raise UsageError(f"thresholds={told['thresholds']!r}: use thresholds.NAME=NUMBER, or a table [thresholds].")
        told["thresholds"] = {**told.get("thresholds", {}), **changes}
    if "models" not in told:
        raise UsageError("decide needs the candidate models: models = [...] in the file, or --models A,B.")
    told.setdefault("name", "decision")
    decided = decide(case_of(told), [read_artefact(one) for one in evidence])
    return finish(decided, artefact_at(out or "", "decision"), as_json, strict=strict)


def finish(decided: Any, out: Path, as_json: bool, *, strict: bool = False) -> int:
    """Write the decision with its page, tell it, and give the exit code; `strict`: conditions are a no, too."""
    import json

    from fieldfare.assess.decide.decision import EXIT, write
    from fieldfare.assess.decide.page import report

    made = write(decided, out, report(decided))
    code = EXIT["NO-GO" if strict and decided.verdict == "GO WITH CONDITIONS" else decided.verdict]
    told = decided.told
    if as_json:
        keys = ("verdict", "reason", "binding", "conditions", "missing")
        place = {"path": str(made.path), "report": str(made.file("report.html")), "sha256": made.sha256}
        print(json.dumps({key: told[key] for key in keys} | place | {"exit_code": code}))
        return code
    from rich.console import Console

    colour = {"GO": "green", "GO WITH CONDITIONS": "yellow", "NO-GO": "red"}.get(decided.verdict, "cyan")
    console = Console(highlight=False)
    console.print(f"[bold {colour}]{decided.verdict}[/]  ", end="")
    console.print(str(told["title"]), markup=False)
    console.print(str(told["reason"]), markup=False)
    for one in told["conditions"]:
        console.print(f"condition: {one}", markup=False)
    console.print(f"report: {made.file('report.html')}", soft_wrap=True, markup=False)
    return code
