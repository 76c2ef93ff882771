"""The command `fieldfare assess proxy`: a central table becomes federated data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fieldfare.assess.options import artefact_at, common, made, settings_of, tell

SHOWN = (
    "clients", "records", "records_mean", "records_std", "records_max", "gini", "top_1pct_share", "effective_clients",
    "label_ratio", "label_skew", "labels_per_client", "below_batch", "duplicates", "lookback_days",
    "test_records",
)  # fmt: skip


@click.command("proxy")
@click.argument("table")
@click.option("--label", help="The label's column.")
@click.option("--by", "partition_field", metavar="FIELD", help="Clients are this column's values (kept under a hash).")
@click.option("--preset", type=click.Choice(["A", "B", "C"]), help="Made-up clients of these sizes (FLINT, table 2).")
@click.option("--clients", type=int, help="How many made-up clients, without --by.")
@click.option("--test-share", type=float, help="Of each client's rows, held out to measure on (default: none).")
@click.option(
    "--key", metavar="TEXT", envvar="FIELDFARE_PROXY_KEY", show_envvar=True,
    help="The hash's key, for the same numbers again (default: random, forgotten).",
)  # fmt: skip
@click.option("--store", metavar="FOLDER|feast:REPO", help="A feature store: its values as of each row's moment.")
@click.option("--feature", "wanted", metavar="VIEW:NAME", multiple=True, help="A feature of --store to join.")
@common
def command(
    table: str, key: str | None, store: str | None, wanted: tuple[str, ...], as_json: bool, out: Path | None,
    config: Path | None, **given: Any,
) -> None:  # fmt: skip
    """Share the rows of a Parquet or CSV TABLE (a file or a URL) out to clients: by a field, or with a wanted skew."""
    from fieldfare.assess.artefact import cite_file
    from fieldfare.assess.platform.features import with_features
    from fieldfare.assess.platform.places import local
    from fieldfare.assess.proxy.write import Config, build
    from fieldfare.core.errors import UsageError
    from fieldfare.fleet.columns import read_columns

    given.pop("quiet")
    told = settings_of(config, given.pop("set_"), **given)
    if "label" not in told:
        raise UsageError("proxy needs the label's column: give --label NAME, or label = ... in the file.")
    file = local(table)
    columns, made_of = read_columns(file), [cite_file(file, "table")]
    if store is not None or wanted:
        if store is None or not wanted:
            raise UsageError("--store WHERE and --feature VIEW:NAME go together.")
        columns, cited = with_features(columns, store, wanted, told.get("timestamp"))
        made_of.append(cited)
    if key is not None and not key:
        raise UsageError("--key '' hashes without a key: give one, or none for a random one that is forgotten.")
    secret = None if key is None else key.encode()
    artefact = build(columns, made(Config, told), artefact_at(out or "", "proxy"), inputs=made_of, key=secret)
    tell(artefact, as_json, shown=SHOWN)
