"""The command `fieldfare assess features`: where features live, and what that costs a device."""

from __future__ import annotations

from pathlib import Path

import click

from fieldfare.assess.options import artefact_at, as_json_, out_, set_, settings_of, tell


@click.command("features")
@click.argument("catalogue", metavar="FEATURES.toml", type=click.Path(path_type=Path))
@click.option("--proxy", type=click.Path(path_type=Path), help="A proxy artefact: its mean of records per client.")
@click.option("--records", type=float, help="Records of a client in its window, without --proxy.")
@set_
@out_
@as_json_
def command(
    catalogue: Path, proxy: Path | None, records: float | None, set_: tuple[str, ...], out: Path | None, as_json: bool
) -> None:
    """Choose for every [[feature]] of a TOML file: on the device, cached at inference, or pulled."""
    from fieldfare.assess.artefact import read_artefact
    from fieldfare.assess.features.catalogue import build
    from fieldfare.assess.features.locality import read_features
    from fieldfare.core.errors import UsageError

    told = settings_of(catalogue, set_)
    features = read_features(told.pop("feature", []))
    if proxy is not None:
        made = read_artefact(proxy, "proxy")
        records = made.number("records_mean")
        if (days := made.number("lookback_days")) is not None and days > 0:
            told.setdefault("window_days", days)
    records = told.pop("records", None) if records is None else records
    if records is None or not features:
        raise UsageError("features needs [[feature]] tables in the file and a client's records: --records or --proxy.")
    known = ("tasks_per_day", "link_bytes_per_s", "rtt_s", "device_bytes", "package", "window_days")
    unknown = sorted(set(told) - set(known))
    if unknown:
        raise UsageError(f"{catalogue} knows no {unknown[0]!r}: it has feature, records, {', '.join(known)}.")
    tell(build(features, artefact_at(out or "", "features"), records=records, **told), as_json)
