"""Golden transcripts: every step of three small runs, as digests, on both drivers, as it was when last agreed on.

A difference means that some bit a user could have seen has changed. If that was meant, write them anew with
`FIELDFARE_GOLDEN=write pytest tests/test_golden.py` and say in the commit why.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from test_vocabulary_hierarchy import world as hierarchy
from test_vocabulary_ring import world as ring

from fieldfare.algorithms import FedAvg
from fieldfare.core.quorum import Quorum
from fieldfare.sim.simulator import Links
from fieldfare.testing import loop, quadratics, simulate

FOLDER = Path(__file__).parent / "golden"
RUNS = {
    "fedavg": lambda: quadratics(n=8).world(FedAvg(4, 6, quorum=Quorum(need=4))),
    "hierarchy": lambda: hierarchy(links=Links(0.125, 1024.0)),
    "ring": lambda: ring(rounds=2, peers=3, links=Links(0.125, 1024.0)),
}


@pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_takes_the_steps_it_always_took(name, driver):
    lines, path = driver(RUNS[name]()).transcript.lines(), FOLDER / f"{name}.json"
    if os.environ.get("FIELDFARE_GOLDEN") == "write" and driver is simulate:
        path.write_text(json.dumps(lines, indent=1) + "\n")
    golden = json.loads(path.read_text())
    for at, (now, then) in enumerate(zip(lines, golden, strict=False), 1):
        assert now == then, f"{name}, step {at} of {len(golden)} is another: see the top of this file."
    assert len(lines) == len(golden)


def test_the_golden_runs_are_those_kept():
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(RUNS)
