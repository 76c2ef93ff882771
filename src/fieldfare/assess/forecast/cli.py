"""The command `fieldfare assess forecast`: what a job takes, with ranges, before anyone runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from fieldfare.assess.options import artefact_at, common, settings_of, tell

SHOWN = (
    "time_to_target_s", "tasks_started", "waste_share", "device_h", "bytes_down", "bytes_up", "updates_per_s_peak",
    "ingress_bytes_per_s_peak", "checkins_per_s_peak", "aggregators", "tee_memory_bytes", "storage_bytes",
    "battery_share_per_day", "energy_j", "carbon_g", "cost",
)  # fmt: skip
FOLDER = click.Path(path_type=Path)


@click.command("forecast")
@click.option("--model", help="The model's name in the bench artefact.")
@click.option("--bench", type=FOLDER, help="A bench artefact: bytes, seconds per record.")
@click.option("--trace", type=FOLDER, help="A trace artefact: supply, sessions, the weekly curve.")
@click.option("--proxy", type=FOLDER, help="A proxy artefact: records per client and their spread.")
@click.option("--features", type=FOLDER, help="A features artefact: what a device holds beside the model.")
@click.option("--simulation", type=FOLDER, help="A simulation artefact: its numbers, the closed form beside them.")
@click.option("--records", type=float, help="Mean records of a task, without --proxy.")
@click.option("--epochs", type=float, default=1.0, show_default=True, help="Passes over a client's records in a task.")
@click.option("--pet", default="none", help="The privacy technique this is the forecast of.")
@common
def command(
    model: str | None, bench: Path | None, trace: Path | None, proxy: Path | None, features: Path | None,
    simulation: Path | None, records: float | None, epochs: float, pet: str, config: Path | None,
    set_: tuple[str, ...], seed: int | None, out: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Device-hours, bytes, servers, energy, carbon, money and time to the target; settings: job.NAME, assume.NAME."""
    from fieldfare.assess.artefact import Artefact, read_artefact
    from fieldfare.assess.forecast.assumptions import assumptions
    from fieldfare.assess.forecast.build import build, means_of, sigma_of
    from fieldfare.core.errors import UsageError

    told = settings_of(config, set_)
    job, assume = (cast(Any, told.pop(name, {})) for name in ("job", "assume"))
    for name, given in (("job", job), ("assume", assume)):
        if not isinstance(given, dict):
            raise UsageError(f"forecast {name}={given!r}: use {name}.NAME=VALUE, or a table [{name}].")
    if told:
        raise UsageError(f"forecast knows no {sorted(told)[0]!r}: settings are job.NAME=... and assume.NAME=....")
    assumed = assumptions(assume)
    kinds = {"bench": bench, "trace": trace, "proxy": proxy, "features": features, "simulation": simulation}
    found: dict[str, Artefact] = {kind: read_artefact(at, kind) for kind, at in kinds.items() if at is not None}
    if bench is not None and model is None:
        raise UsageError("forecast needs --model NAME: which of the bench's models.")
    mean = found["proxy"].number("records_mean") if "proxy" in found else records
    means = means_of(
        model or "", bench=found.get("bench"), trace=found.get("trace"), simulation=found.get("simulation"),
        features=found.get("features"), proxy=found.get("proxy"), records=mean, epochs=epochs, **job,
    )  # fmt: skip
    std = found["proxy"].number("records_std") if "proxy" in found else None
    if std is not None and mean and "sigma" not in job:
        from dataclasses import replace

        means = replace(means, sigma=sigma_of(means.sigma, mean, std))
    made = build(means, assumed, artefact_at(out or "", "forecast"), simulation=found.get("simulation"),
                 inputs=list(found.values()), model=model or "", pet=pet)  # fmt: skip
    tell(made, as_json, shown=SHOWN)
