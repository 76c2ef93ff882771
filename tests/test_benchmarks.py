"""The benchmark's rows of training: which way ours goes in each, and that the way is told. A test times nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    import rows

    return rows


def test_each_way_without_the_core_is_a_row_beside_the_required_peers(rows: Any) -> None:
    aims = {name: way.aim for name, way in rows.WAYS.items() if way.aim is not None}
    assert aims == {
        "W1-nocore": 2.5, "W2-nocore": 1.7, "W1-loop": 1.3, "W2-loop": 1.4, "W3-loop": 1.2, "W4-loop": 1.1
    }  # fmt: skip
    for name in aims:
        assert name in rows.ROWS
        assert {peer.name for peer in rows.WAYS[name].peers} == {"torch-loop", "pfl", "fedjax", "blazefl"}


def test_a_row_of_training_without_one_of_its_peers_does_not_count(rows: Any) -> None:
    row = rows.Row("W1-loop", "clients/s", "more", ours=2.0, peers=dict.fromkeys(("torch-loop", "pfl", "fedjax"), 1.0))
    assert row.incomplete == "W1-loop lacks blazefl"
    row.peers["blazefl"] = 1.0
    assert row.incomplete == ""
    assert rows.Row("W5", "clients/s", "more").incomplete == "W5 lacks fieldfare, torch-loop"
    assert rows.Row("import", "s", "less").incomplete == ""


def test_a_pair_runs_our_arm_as_the_row_says_and_both_on_its_workload(rows: Any, monkeypatch: Any) -> None:
    import measure

    seen: list[tuple[str, str, dict[str, str]]] = []

    def pair(arm: Any, peer: Any, workload: str, begin: Any, **_: Any) -> Any:
        seen.append((arm.name, workload, dict(arm.variables)))
        apart = 0.0 if peer.name == "pfl" else 1.0
        return measure.Pair((30.0,), (10.0,), apart, "graph")

    monkeypatch.setattr(rows, "run_pair", pair)
    monkeypatch.setattr(rows, "prepare", lambda name: name)
    monkeypatch.setattr(rows, "_peak_flops", lambda: 1e12)
    monkeypatch.setattr(measure.Arm, "unready", lambda _: "")
    row = rows.workload("W2-loop", rows.Effort())
    assert seen == [("fieldfare-loop", "W2", {"FIELDFARE_NATIVE": "off", "FIELDFARE_PATH": "graph"})] * 4
    assert (row.name, row.ours, row.ratio, row.peers) == ("W2-loop", 30.0, 3.0, {"pfl": 10.0})
    assert (row.detail["aim"], row.detail["pairs"]["pfl"]["path"]) == (1.4, "graph")
    assert row.missing["blazefl"].startswith("model differs by 1")
    assert row.incomplete == "W2-loop lacks torch-loop, fedjax, blazefl"


@pytest.mark.parametrize(("row", "path"), [("W1-nocore", "stacked"), ("W1-loop", "graph")])
def test_under_the_variables_of_a_row_the_net_goes_its_way(rows: Any, monkeypatch: Any, row: str, path: str) -> None:
    import ours
    from workloads import WORKLOADS, start

    for name, value in rows.WAYS[row].arm.variables.items():
        monkeypatch.setenv(name, value)
    workload = WORKLOADS[rows.WAYS[row].workload]
    assert ours.way(workload, start(workload.name), ours.federated(workload)) == path
