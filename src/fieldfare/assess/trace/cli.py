"""The command `fieldfare assess trace`: a session log, or a made-up one, to a trace artefact.

Here: options and what is printed. Not here: the pipeline (`build`). Invariant: standard output is for the result; what
is being done goes to standard error.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from fieldfare.core.errors import UsageError


@click.command("trace")
@click.argument("logs", metavar="[LOG]...", nargs=-1)
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), default="trace", show_default=True, help="Folder, or URL."
)
@click.option("--generate", "preset", metavar="PRESET", help="Make a log up: flint-strict or fedscale-charging.")
@click.option("--clients", type=int, default=2000, show_default=True, help="Of a made-up log.")
@click.option("--known", type=float, default=1.0, show_default=True, help="Made-up clients whose states are told.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file of settings; [criteria] is a table of it.")
@click.option("--set", "-s", "set_", metavar="KEY=VALUE", multiple=True, help="Override, e.g. criteria.wifi=true.")
@click.option("--strict", is_flag=True, help="Wi-Fi, battery of 80 %, an OS of September 2019 or later.")
@click.option("--device-allow", type=click.Path(path_type=Path), help="Bench artefact whose devices may train.")
@click.option("--variant", default="charging_wifi", show_default=True, help="Of FLASH's intervals.")
@click.option("--on", metavar="local|ray[://HOST:PORT]", help="Where to compute, to the same bits.")
@click.option("--partitions", type=int, help="Parts of the log, by client (default: by size).")
@click.option("--memory", type=float, metavar="BYTES", help="What DuckDB may use before it spills to the disk.")
@click.option("--fedscale", type=click.Path(path_type=Path), help="Write the trace as FedScale's pickle, too.")
@click.option("--csv", type=click.Path(path_type=Path), help="Write the trace as CSV ID,start,end, too.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of coins and made-up logs.")
@click.option("--quiet", "-q", is_flag=True, help="No progress display.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on the last line.")
def command(
    logs: tuple[str, ...], out: Path, preset: str | None, clients: int, known: float, config: Path | None,
    set_: tuple[str, ...], strict: bool, device_allow: Path | None, variant: str, on: str | None,
    partitions: int | None, memory: float | None, fedscale: Path | None, csv: Path | None, seed: int, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Which devices may train, when and for how long: session logs under criteria.

    LOG: Parquet or CSV of sessions (files, folders, URLs), or FLASH's, ExtraSensory's or FedScale's files.
    """
    from fieldfare.assess.options import artefact_at
    from fieldfare.assess.steps import Steps
    from fieldfare.assess.trace.build import build_trace
    from fieldfare.assess.trace.criteria import STRICT, TraceConfig, read_config, with_changes
    from fieldfare.assess.trace.generate import Recipe
    from fieldfare.assess.trace.replay import export_csv, export_fedscale

    if bool(logs) == (preset is not None):
        raise UsageError("trace: give a session log, or --generate PRESET where there is none (not both).")
    if strict and config is not None:
        raise UsageError("trace: --strict and --config both give criteria; use one, changed with --set.")
    settings = read_config(config, () if strict else set_)
    if strict:
        settings = with_changes(TraceConfig(criteria=STRICT), set_)
    if device_allow is not None:
        settings = replace(settings, criteria=replace(settings.criteria, device_allow=str(device_allow)))
    given: dict[str, Any] = {"on": on, "partitions": partitions, "memory_bytes": memory}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    source: Any = list(logs)
    if preset is not None:
        source = Recipe(preset=preset, clients=clients, weeks=settings.weeks, known=known)
    with Steps("trace", quiet or as_json) as tell:
        made = build_trace(source, artefact_at(out, "trace"), settings, seed, variant, tell)
    if fedscale is not None:
        export_fedscale(made, fedscale)
    if csv is not None:
        export_csv(made, csv)
    _show(made, as_json)


def _show(made: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from fieldfare.assess.artefact import words
    from fieldfare.assess.platform.places import address
    from fieldfare.store.text import dumps

    if as_json:
        values = {name: asdict(one) for name, one in made.values.items()}
        print(dumps({"kind": made.kind, "path": address(made.path), "sha256": made.sha256, "values": values}).decode())
        return
    table = made.table("criteria")
    print(f"{'criterion':14} {'devices':>9} {'device-s':>9} {'gain without':>13}")
    rows = zip(words(table["criterion"]), *(table[name].tolist() for name in
               ("share_devices", "share_device_s", "leave_one_out_gain")), strict=True)  # fmt: skip
    for name, devices, seconds, gain in rows:
        print(f"{name:14} {devices:9.1%} {seconds:9.1%} {gain:13.1%}")
    number = made.number
    trough, median = (number(one) for one in ("trough_over_peak", "median_usable_s"))
    told = ["-" if one is None else f"{one:.4g}" for one in (trough, median)]
    print(
        f"{number('sessions'):,.0f} sessions of {number('clients'):,.0f} clients in {number('weeks'):.3g} weeks, "
        f"{number('supply_per_s'):.3g} begin a second; trough / peak {told[0]}; median {told[1]} s"
    )
    print(f"{address(made.path)}  sha256 {made.sha256}")
