"""The command `fieldfare assess demo`: three cases walked to three decisions, on data made up on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fieldfare.assess.options import as_json_, quiet_, set_, settings_of

INPUTS = ("epsilon", "attack_success", "wifi", "battery_min", "compliance")


@click.command("demo")
@click.option("--out", "-o", type=click.Path(path_type=Path), default="assess-demo", show_default=True, help="Where.")
@click.option(
    "--case", "cases", multiple=True, type=click.Choice(["ads", "messaging", "search"]), help="Only this one."
)
@click.option("--threshold", "-t", metavar="[CASE.]NAME=VALUE", multiple=True, help="A limit other than the case's.")
@set_
@click.option(
    "--real", metavar="DIR", type=click.Path(path_type=Path), help="Tables of real people and phones in DIR instead."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other data.")
@quiet_
@as_json_
def command(
    out: Path, cases: tuple[str, ...], threshold: tuple[str, ...], set_: tuple[str, ...], real: Path | None, seed: int,
    quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Walk an ads-like, a messaging-like and a search-like case; OUT/CASE/ has decision.json and report.html.

    `--set [CASE.]INPUT=VALUE` changes an input: epsilon, attack_success, wifi, battery_min, compliance.
    `--real DIR` takes impressions, messages and ratings of real people, and FLASH's phones, from the tables in DIR.
    """
    import json

    from rich.console import Console

    from fieldfare.assess.demo.cases import CASES
    from fieldfare.assess.demo.real import REAL
    from fieldfare.assess.demo.real import walk as walk_real
    from fieldfare.assess.demo.walk import Changes, changed, walk

    limits, inputs = settings_of(None, threshold), settings_of(None, set_)
    chosen = cases or tuple(CASES)
    shown = Console(stderr=True, quiet=quiet or as_json, highlight=False)
    told: dict[str, Any] = {}
    for name in chosen:
        changes = Changes(thresholds=_of(limits, name, None), **_of(inputs, name, INPUTS))
        with shown.status(f"{name}") as status:

            def tell(words: str, s: Any = status, n: str = name) -> None:
                s.update(f"{n}: {words}")

            if real is None:
                decided, made = walk(changed(CASES[name], changes), out / name, seed, tell)
            else:
                decided, made = walk_real(changed(REAL[name], changes), real, out / name, seed, tell)
        told[name] = {"verdict": decided.verdict, "reason": decided.told["reason"], "sha256": made.sha256,
                      "report": str(out / name / "report.html")}  # fmt: skip
        if not as_json:
            colour = {"GO": "green", "GO WITH CONDITIONS": "yellow", "NO-GO": "red"}.get(decided.verdict, "cyan")
            console = Console(highlight=False)
            console.print(f"[bold {colour}]{decided.verdict}[/]  ", end="")
            console.print(f"{name}: {decided.told['reason']}", soft_wrap=True, markup=False)
            console.print(f"  {out / name / 'report.html'}", soft_wrap=True, markup=False)
    if as_json:
        print(json.dumps(told))


def _of(found: dict[str, Any], case: str, known: tuple[str, ...] | None) -> dict[str, Any]:
    """What concerns a case: values without a case's name, then those with it."""
    from fieldfare.assess.demo.cases import CASES
    from fieldfare.core.errors import UsageError
    from fieldfare.core.settings import unknown_key

    own = {name: value for name, value in found.items() if name not in CASES}
    inside = found.get(case, {})
    if not isinstance(inside, dict):
        raise UsageError(f"{case}={inside!r}: use {case}.NAME=VALUE.")
    own |= inside
    for name in own if known is not None else ():
        if name not in known:
            raise UsageError(unknown_key(name, known, "--set"))
    return own
