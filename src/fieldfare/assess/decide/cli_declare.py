"""The command `fieldfare assess declare`: evidence that somebody states, where nobody measured it."""

from __future__ import annotations

from pathlib import Path

import click

from fieldfare.assess.options import artefact_at, as_json_, out_, tell, value_of


@click.command("declare")
@click.argument("kind", metavar="bench|trace|proxy|features|simulation|forecast")
@click.argument("numbers", nargs=-1, metavar="NAME=VALUE...")
@click.option("--source", required=True, help="Who says so: a paper, a person, a dashboard.")
@click.option("--model", default="", help="The model it is of (default: any).")
@click.option("--pet", default="", help="The privacy technique it is of (default: any).")
@out_
@as_json_
def command(
    kind: str, numbers: tuple[str, ...], source: str, model: str, pet: str, out: Path | None, as_json: bool
) -> None:
    """Write numbers that are known from elsewhere as evidence, each told as declared; [VALUE,LOW,HIGH] is a range."""
    from fieldfare.assess.decide.declared import state
    from fieldfare.core.errors import UsageError

    told: dict[str, object] = {}
    for pair in numbers:
        name, equals, text = pair.partition("=")
        if not equals or not name or name in told:
            raise UsageError(f"declare {kind}: {pair}: use NAME=VALUE, each name once.")
        told[name] = value_of(text)
    tell(state(kind, told, artefact_at(out or "", kind), source=source, model=model, pet=pet), as_json)
