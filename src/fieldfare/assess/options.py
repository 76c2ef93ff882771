"""What the commands of `fieldfare assess` have in common: options, settings of a file, how a result is told.

Invariants: standard output has the result alone, with `--json` one object on its last line; settings come from the
configuration's defaults, then a TOML file, then `--set`, the later the stronger; an unknown one is refused by name.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from fieldfare.core.errors import UsageError

T = TypeVar("T")

out_ = click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder of the artefact to write.")
as_json_ = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on the last line.")
seed_ = click.option("--seed", type=int, help="Seed of all that is drawn (default: 0).")
quiet_ = click.option("--quiet", "-q", is_flag=True, help="No progress display.")
config_ = click.option("--config", "-c", type=click.Path(path_type=Path), help="A TOML file of settings.")
set_ = click.option("--set", "-s", "set_", metavar="KEY=VALUE", multiple=True, help="A setting, over the file's.")


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--config`, `--set`, `--seed`, `--out`, `--quiet` and `--json`."""
    for option in (as_json_, quiet_, out_, seed_, set_, config_):
        command = option(command)
    return command


def settings_of(config: Path | None, set_: Sequence[str], **given: Any) -> dict[str, Any]:
    """Settings as plain values: of the TOML file, then `--set` (TOML values, or text), then what is `given`."""
    found: dict[str, Any] = {}
    if config is not None:
        try:
            found |= tomllib.loads(config.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{config} is not TOML: {error}.") from None
    for pair in set_:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {pair}: use KEY=VALUE.")
        put(found, name.strip().split("."), value_of(text), pair)
    return found | {name: value for name, value in given.items() if value is not None}


def value_of(text: str) -> Any:
    """A number, truth value or list as TOML writes it; anything else is text; `none` is None.

    >>> value_of("0.5"), value_of("wifi"), value_of("[1, 2]"), value_of("none")
    (0.5, 'wifi', [1, 2], None)
    """
    if text.strip().lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def put(found: dict[str, Any], path: Sequence[str], value: Any, whole: str) -> None:
    """Set a value at a dotted path of nested tables."""
    head, *rest = path
    if not rest:
        found[head] = value
        return
    inside = found.setdefault(head, {})
    if not isinstance(inside, dict):
        raise UsageError(f"--set {whole}: {head} is a value, not a table.")
    put(cast(dict[str, Any], inside), rest, value, whole)


def made(kind: Callable[..., T], told: Mapping[str, Any]) -> T:
    """A configuration (a dataclass under `core.settings.settings`) of plain values; lists become tuples."""
    types = {one.name: str(one.type) for one in fields(cast(Any, kind))}
    return kind(**{name: _fit(value, types.get(name, "")) for name, value in told.items()})


def _fit(value: Any, hint: str) -> Any:
    """Lists become tuples; "none" in a list is None; a single value where a tuple is wanted is one of one."""
    if isinstance(value, list):
        return tuple(None if one == "none" else one for one in cast(list[Any], value))
    return (value,) if hint.startswith("tuple[") and not isinstance(value, tuple) else value


def tell(artefact: Any, as_json: bool, *, shown: Sequence[str] = (), title: str = "") -> None:
    """Print an artefact: its values (those `shown`, or all) in words, or as JSON."""
    from fieldfare.assess.platform.places import address

    if as_json:
        values = {name: one.value for name, one in artefact.values.items()}
        told = {"kind": artefact.kind, "path": address(artefact.path), "sha256": artefact.sha256, "values": values}
        print(json.dumps(told, allow_nan=False))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fieldfare.report.units import number

    table = Table(show_header=False, box=None, pad_edge=False)
    for name in shown or artefact.values:
        one = artefact.values.get(name)
        if one is None:
            continue
        span = "" if one.low is None or one.high is None else f" ({number(one.low)} to {number(one.high)})"
        unit = "" if one.unit == "1" else f" {one.unit}"
        how = "not known" if one.value is None else one.how
        table.add_row(escape(name), f"[bold]{number(one.value)}[/]{escape(unit)}{span}", escape(how))
    console = Console(highlight=False)
    console.print(title or f"{artefact.kind} {artefact.sha256[:12]}", markup=False)
    console.print(table)
    console.print(f"written: {address(artefact.path)}", soft_wrap=True, markup=False)


def artefact_at(place: str | Path, default: str) -> Path:
    """Where to write: the folder given, or `assess/<default>` here; for a URL, the folder that is sent there."""
    if ":/" in str(place):
        from fieldfare.assess.platform.places import is_url, staged

        return staged(place) if is_url(place) else Path(place)
    return Path(place) if place else Path("assess") / default
