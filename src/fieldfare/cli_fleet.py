"""The commands `fieldfare fleet ...`: what a fleet is before anything runs on it.

Here: the commands and the small table they print. Not here: the numbers (`fleet.describe`), the picture
(`report.plots_fleet`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


@click.group()
def fleet() -> None:
    """Look at fleets of devices: presets, and files of traces."""


@fleet.command("describe")
@click.option("--preset", metavar="NAME", help="flint-strict, flash-charging or fedscale-charging.")
@click.option("--file", type=click.Path(path_type=Path), help="A table of device traces.")
@click.option("--devices", type=int, help="How many devices to make (preset: 100,000; file: those it holds).")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other devices.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Write the picture here (PNG or SVG).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on the last line.")
def describe(
    preset: str | None, file: Path | None, devices: int | None, seed: int, out: Path | None, as_json: bool
) -> None:
    """Availability over time, windows, speed and links of a fleet, in numbers and as a picture."""
    from fieldfare.fleet.describe import describe_fleet, fleet_of

    described = describe_fleet(*fleet_of(preset, file, devices, seed))
    facts = dict(described.facts)
    if out is not None:
        from fieldfare.report.plots_fleet import save_fleet

        facts["picture"] = str(save_fleet(described, out))
    if as_json:
        from fieldfare.store.text import dumps

        print(dumps(facts).decode())
        return
    _show(facts, described.share)


def _show(facts: Mapping[str, Any], share: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from fieldfare.progress import duration
    from fieldfare.show import size

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.3g} %"

    def rate(value: float) -> str:
        return f"{size(value)}/s"

    def spread(values: Mapping[str, float | None], words: Any) -> str:
        told = [words(values[q]) if values[q] is not None else "always" for q in ("p10", "p50", "p90")]
        return " · ".join(told)

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("fleet", f"[bold]{facts['name']}[/], {facts['devices']:,} devices")
    table.add_row("available", f"[bold]{percent(facts['available_share_mean'])}[/] on average, "
                  f"{percent(facts['available_share_min'])} to {percent(facts['available_share_max'])} "
                  f"(trough/peak {facts['trough_over_peak'] or 0:.3g})")  # fmt: skip
    table.add_row("never available", percent(facts["never_available_share"]))
    table.add_row("percentiles", "10th · 50th · 90th")
    table.add_row("  windows", spread(facts["window_s"], duration))
    table.add_row("  device's share", spread(facts["device_share"], percent))
    table.add_row("  FLOP/s", spread(facts["flops_per_s"], "{:.3g}".format))
    table.add_row("  down", spread(facts["downlink_bytes_per_s"], rate))
    table.add_row("  up", spread(facts["uplink_bytes_per_s"], rate))
    table.add_row("  memory", spread(facts["memory_bytes"], size))
    if "kinds" in facts:
        table.add_row("classes", ", ".join(f"{name} {percent(part)}" for name, part in facts["kinds"].items()))
    console = Console(highlight=False)
    console.print(table)
    console.print("available over the period, from none to the peak:", markup=False)
    console.print(f"  |{sparkline(share, 84)}|", markup=False)
    if facts["note"]:
        console.print(facts["note"], markup=False)
    if "picture" in facts:
        console.print(f"picture: {facts['picture']}", soft_wrap=True, markup=False)


def sparkline(values: Any, width: int) -> str:
    """A curve from 0 to its highest value as one line of block characters.

    >>> sparkline([0.0, 0.5, 1.0], 3)
    ' ▄█'
    """
    blocks = " ▁▂▃▄▅▆▇█"
    width = min(width, len(values))
    cells = [values[i * len(values) // width : (i + 1) * len(values) // width] for i in range(width)]
    means = [float(sum(cell) / len(cell)) for cell in cells]
    top = max(means) or 1.0
    return "".join(blocks[round(8 * mean / top)] for mean in means)
