"""The command `fieldfare assess metrics`: a run's metrics, as text, in a file, or at an endpoint."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click


@click.command("metrics")
@click.argument("run", default="latest")
@click.option("--runs", default="runs", show_default=True, help="Where runs are.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Write them there, for a textfile collector.")
@click.option("--every", type=float, metavar="SECONDS", help="With --out: again and again, until the run is over.")
@click.option("--serve", "port", type=int, metavar="PORT", help="Serve them at http://ADDRESS:PORT/metrics (0: any).")
@click.option("--address", default="127.0.0.1", show_default=True, help="With --serve.")
@click.option("--json", "as_json", is_flag=True, help="Print them as one JSON object on the last line.")
def command(
    run: str, runs: str, out: Path | None, every: float | None, port: int | None, address: str, as_json: bool
) -> None:
    """Metrics of RUN (a path, an id or `latest`) for Prometheus, of a run that is over or going on."""
    import json
    import sys
    import time

    from fieldfare.assess.platform import prometheus
    from fieldfare.assess.platform.journal import read_journal
    from fieldfare.core.errors import UsageError

    if every is not None and (out is None or every <= 0):
        raise UsageError("--every SECONDS: use a number above 0, with --out FILE.")
    if port is not None and (out is not None or as_json):
        raise UsageError("--serve PORT goes without --out and --json.")
    folder, journal = read_journal(run, runs)
    found = prometheus.families(journal, folder.name)
    if port is not None:
        endpoint = prometheus.serve(prometheus.source_of(str(folder)), port, address)
        print(f"http://{address}:{endpoint.port}/metrics", file=sys.stderr, flush=True)
        with suppress(KeyboardInterrupt):
            endpoint.thread.join()
        endpoint.close()
        return
    if out is not None:
        prometheus.write(out, found)
        while every is not None and journal.status == "running":
            time.sleep(every)
            _, journal = read_journal(folder)
            found = prometheus.families(journal, folder.name)
            prometheus.write(out, found)
    if as_json:
        values: dict[str, dict[str, float]] = {}
        for one in found:
            for suffix, labels, value in one.samples:
                key = ",".join(f"{name}={word}" for name, word in labels if name != "run")
                values.setdefault(one.name + suffix, {})[key] = value
        print(json.dumps({"kind": "metrics", "run": folder.name, "status": journal.status, "values": values}))
    elif out is None:
        print(prometheus.exposition(found), end="")
