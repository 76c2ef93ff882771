"""Sessions a second of `fieldfare assess trace`, and the memory it takes, on a made-up log.

Each step runs in a process of its own, whose peak memory is read at its end. One line of JSON on standard output.

    python benchmarks/trace_sessions.py --sessions 5000000 --json trace_sessions.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

STEP = """
import json, resource, sys, time
sys.path.insert(0, {source!r})
from fieldfare.assess.trace import STRICT, Recipe, TraceConfig, build_trace, generate_log
import numpy, duckdb, pyarrow.parquet as parquet
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
{step}
print(json.dumps(dict(wall_s=time.perf_counter() - start, cpu_s=time.process_time(), rows=parquet.read_metadata({log!r})
      .num_rows, peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, idle_bytes=before * 1024)))
"""
SESSIONS_A_CLIENT = 116
"""In two weeks of "flint-strict"."""


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--sessions", type=int, default=5_000_000, help="about how many rows")
    words.add_argument("--known", type=float, default=0.6, help="share of clients that tell their states")
    words.add_argument("--memory", type=float, default=1e9, help="bytes DuckDB may use")
    words.add_argument("--json", type=Path)
    given = words.parse_args()
    clients = max(1, given.sessions // SESSIONS_A_CLIENT)
    with tempfile.TemporaryDirectory(prefix="trace-sessions-") as folder:
        log, out = f"{folder}/log.parquet", f"{folder}/trace"
        make = run(log, f"generate_log({log!r}, Recipe(clients={clients}, known={given.known}))")
        config = f"TraceConfig(criteria=STRICT, memory_bytes={given.memory!r}, spill_folder={folder!r})"
        made = run(log, f"build_trace({log!r}, {out!r}, {config})")
    told = {
        "name": "trace-sessions", "unit": "sessions/s", "ours": made["rows"] / made["wall_s"], "sessions": made["rows"],
        "clients": clients, "memory_limit_bytes": given.memory, "build": made, "generate": make,
        "cores": os.cpu_count(),
    }  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))


def run(log: str, step: str) -> dict[str, float]:
    """What a step took in a process of its own."""
    source = str(Path(__file__).resolve().parents[1] / "src")
    program = STEP.format(source=source, step=step, log=log)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
