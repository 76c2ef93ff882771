"""Measure Fieldfare against its peers: one program, one JSON, ratios against peers and limits.

    python benchmarks/run.py --json out.json              everything (about two hours on two cores)
    python benchmarks/run.py --only W1,import --json out.json
    python benchmarks/run.py --quick --json out.json      each pair once and briefly: shows that it works
    python benchmarks/run.py --check                      no timing: do all arms train the same model?

Exit status 1 when a row of W1 to W4 lacks ours, pfl, fedjax, blazefl or the hand-written torch loop.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from measure import OURS, PEERS, ArmFailed, apart, prepare, run_arm
from rows import CHECK_ROUNDS, ROWS, WAYS, Effort, Row
from show import agreement, plot, show, table
from workloads import WORKLOADS

QUICK = Effort(min_s=1.0, repeats=1)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ROWS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"unknown row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return names


def check(names: Sequence[str]) -> int:
    """Train the check rounds with every arm and compare the models; the number of those that are too far."""
    found: list[tuple[str, str, float | None, str]] = []
    wrong = 0
    reference = PEERS[0]
    for name in names:
        way = WAYS[name]
        workload, tolerance = way.workload, WORKLOADS[way.workload].tolerance
        others = way.peers[1:] if way.arm is OURS else ()  # for the other ways the workload's own row compares them
        begin = prepare(workload)
        try:
            expected = run_arm(reference, workload, check=CHECK_ROUNDS, min_s=0).end
        except ArmFailed as error:
            found.append((name, reference.name, None, str(error)))
            wrong += 1
            continue
        for arm in (*others, way.arm):
            try:
                difference = apart(run_arm(arm, workload, check=CHECK_ROUNDS, min_s=0).end, expected, begin)
                far = not difference <= tolerance
                wrong += far
                found.append((name, arm.name, difference, f"[red]more than {tolerance:g}[/]" if far else ""))
            except ArmFailed as error:
                wrong += 1
                found.append((name, arm.name, None, str(error)))
            print(f"{name} {arm.name}", file=sys.stderr)
    show(agreement(found, reference.name))
    return wrong


def write(rows: Sequence[Row], path: Path) -> None:
    """All rows so far, as JSON; replaces the file in one move."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps([row.plain() for row in rows], indent=1) + "\n")
    part.replace(path)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_names, default=list(ROWS), metavar="NAME,…", help=", ".join(ROWS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the rows go")
    parser.add_argument("--quick", action="store_true", help="once and briefly; not for quoting")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="bars of the ratios to the best peer")
    parser.add_argument("--check", action="store_true", help="compare the arms' models only")
    options = parser.parse_args(argv)
    if options.check:
        return min(check([name for name in options.only if name in WAYS]), 1)
    if options.json is None:
        parser.error("--json FILE is needed (or --check)")
    effort, rows = QUICK if options.quick else Effort(), list[Row]()
    for name in options.only:
        print(f"{name} …", file=sys.stderr, flush=True)
        row = ROWS[name](effort)
        row.detail |= {"quick": options.quick, "load_before": os.getloadavg()[0]}
        rows.append(row)
        write(rows, options.json)
    show(table(rows))
    if options.plot is not None:
        plot(rows, options.plot)
    incomplete = [row.incomplete for row in rows if row.incomplete]
    for line in incomplete:
        print(f"does not count: {line}", file=sys.stderr)
    return 1 if incomplete else 0


if __name__ == "__main__":
    sys.exit(main())
