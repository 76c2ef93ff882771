"""Checks what `make demo` left: python scripts/demo_check.py runs/latest. One line, exit code 1 if anything lacks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ACCURACY = 0.92
ARMS = 3
PLOTS = 5
SUMMARY = ("format", "fieldfare", "run", "name", "algorithm", "rounds", "seed", "final", "stopped", "virtual_s",
           "bytes_down", "bytes_up", "wall_s", "arms", "claims", "report")  # fmt: skip


def faults(folder: Path) -> Iterator[str]:
    """What lacks in the run folder, one line each."""
    if not (folder / "summary.json").is_file():
        yield f"{folder}/summary.json is not there: the run is not complete"
        return
    summary = json.loads((folder / "summary.json").read_text())
    if lacking := [key for key in SUMMARY if key not in summary]:
        yield f"summary.json lacks {', '.join(lacking)}"
    accuracy = summary.get("final", {}).get("accuracy", 0.0)
    if not accuracy >= ACCURACY:
        yield f"the final accuracy is {accuracy}, at least {ACCURACY} is promised"
    arms = list(summary.get("arms", []))
    if len(arms) < ARMS:
        yield f"{len(arms)} arms, at least {ARMS} are promised"
    yield from _claims(summary)
    for place in (folder, *(folder / "arms" / arm for arm in arms)):
        yield from _files(place)
    if not _lines(folder / "clients.jsonl"):
        yield "clients.jsonl has no line"
    yield from _report(folder / "report.html")


def _claims(summary: dict[str, Any]) -> Iterator[str]:
    claims = summary.get("claims", [])
    if not claims:
        yield "no claim was checked"
    for claim in claims:
        if not claim["holds"]:
            yield f"the claim {claim['name']!r} does not hold"


def _files(place: Path) -> Iterator[str]:
    model = place / "model.safetensors"
    if not model.is_file() or model.stat().st_size < 1000:
        yield f"{model} is not there, or is empty"
    rounds = [line["round"] for line in _lines(place / "rounds.jsonl")]
    if not rounds or rounds != list(range(1, len(rounds) + 1)):
        yield f"{place}/rounds.jsonl does not hold rounds 1, 2, ..."


def _report(path: Path) -> Iterator[str]:
    if not path.is_file():
        yield "report.html is not there"
        return
    page = path.read_text(encoding="utf-8")
    outside = re.findall(r"""(?:src|href)\s*=\s*["']?\s*((?:https?:)?//[^"'\s>]+)|url\(\s*["']?(https?:[^)]+)""", page)
    if outside:
        yield f"report.html loads {''.join(outside[0])} from outside"
    plots = page.count('role="img"') + page.count("<img alt=")
    if plots < PLOTS:
        yield f"report.html has {plots} plots, at least {PLOTS} are promised"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def main(argv: list[str]) -> int:
    """Check the folder named, or runs/latest."""
    folder = Path(argv[1] if len(argv) > 1 else "runs/latest")
    found = list(faults(folder))
    if found:
        print(f"demo: {'; '.join(found)}.", file=sys.stderr)
        return 1
    summary = json.loads((folder / "summary.json").read_text())
    told = f"accuracy {summary['final']['accuracy']:.3f}, {len(summary['arms'])} arms, {len(summary['claims'])} claims"
    print(f"demo: all is well ({told} hold).")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
