"""Claims about devices that move, and wires by role: what is measured, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from split_cases import torch
from test_fedfly_job import HALF, make, on
from test_job_nodes import run

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.report.claims import compute_claims, read_claims
from fieldfare.report.claims_moves import FIGURES
from fieldfare.sim.carry import Carrier
from fieldfare.sim.links import Links
from fieldfare.sim.sessions import Sessions

assert torch

CLAIMS = """
[[claim]]
name = "down"
measure = "move"
arm = "stop"
figure = "downtime_s"
still = "still"
sense = ">="
target = 0.1

[[claim]]
name = "saving"
measure = "move"
arm = "stop"
figure = "saving_off"
still = "still"
restart = "restart"
sense = "<="
target = 0.02

[[claim]]
name = "bits"
measure = "same_model"
arm = "pre"
to = "still"
sense = "="
target = 1
tolerance = 0

[[claim]]
name = "other bits"
measure = "same_model"
arm = "pre"
to = "rounded"
sense = "="
target = 0
tolerance = 0

[[claim]]
name = "moves"
measure = "moves"
arm = "pre"
sense = "="
target = 1
tolerance = 0

[[claim]]
name = "five times"
measure = "ratio"
of = { measure = "move", arm = "pre", figure = "downtime_s", still = "still" }
to = { measure = "move", arm = "stop", figure = "downtime_s", still = "still" }
sense = "<="
target = 0.2

[[claim]]
name = "restarts"
measure = "move"
arm = "restart"
figure = "restarts"
sense = "="
target = 1
tolerance = 0

[[claim]]
name = "nobody moves"
measure = "move"
arm = "still"
figure = "repeated"
sense = "="
target = 0
tolerance = 0
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The claims above, of a study of five arms."""
    where = tmp_path_factory.mktemp("study")
    file = where / "made.claims.toml"
    file.write_text(CLAIMS)
    arms = {"still": make(moves=()), "stop": make(ff.StopAndCopy()), "restart": make(ff.Restart()), "pre": make(),
            "rounded": make(ff.PreCopy(lossy="fp16", replay=False))}  # fmt: skip
    result = ff.Study(arms, claims=file).run(where / "runs", progress=False)
    assert result.path is not None
    return {claim["name"]: claim for claim in compute_claims(result.path)}


def test_claims_about_moves_hold_where_they_are_true(told):
    wrong = {name: claim for name, claim in told.items() if not claim["holds"] and name != "nobody moves"}
    assert wrong == {}
    assert told["down"]["unit"] == "s"
    assert told["bits"]["measure"] == "share of seeds in which pre and still end in the same bytes"


def test_a_figure_of_moves_that_never_came_is_no_number(told):
    assert told["nobody moves"]["ours"] is None
    assert told["nobody moves"]["why"] == "in still no session changed hands"


def test_a_figure_that_there_is_not_is_refused(tmp_path: Path):
    file = tmp_path / "claims.toml"
    file.write_text(CLAIMS.replace('"saving_off"', '"luck"'))
    with pytest.raises(UsageError, match=r"claim 'saving': figure is 'luck', one of downtime_s"):
        read_claims(file)


def test_the_claims_of_the_study_name_figures_that_there_are():
    path = Path(__file__).resolve().parents[1] / "examples" / "fedfly_study.claims.toml"
    claims = tomllib.loads(path.read_text())["claim"]
    assert {claim["figure"] for claim in claims if "figure" in claim} <= FIGURES.keys()
    assert len({claim["name"] for claim in claims}) == len(claims) == len(read_claims(path))


# Wires by role


def carrier(links: Links) -> Carrier:
    fleet = ff.fleet.uniform(uplink_bytes_per_s=1e5, downlink_bytes_per_s=1e5)
    place = {"device/0": 0, "device/1": 1, "edge/0": 2, "edge/1": 3}
    return Carrier(links, place, fleet, Sessions(None), ["central", *place])


def test_two_roles_have_a_wire_between_each_two_nodes_on_which_nothing_else_waits():
    one = carrier(Links(roles={("device", "edge"): (0.5, 1e3)}))
    up: dict[Any, float] = {}
    assert one.send(0.0, "device/0", "edge/0", 1000, up) == (0.5, 1.5)
    assert one.send(0.0, "device/0", "edge/0", 1000, up) == (1.5, 2.5)
    assert one.send(0.0, "device/0", "edge/1", 1000, up) == (0.5, 1.5)
    assert one.send(0.0, "device/1", "edge/0", 1000, up) == (0.5, 1.5)
    assert one.send(0.0, "edge/0", "device/0", 1000, up) == (0.5, 1.5)
    assert one.land(0.5, 1.5, "device/0", "edge/0", 1000, {}) == 1.5


def test_a_pair_of_nodes_is_said_before_their_roles_and_other_roles_pass_their_devices_links():
    one = carrier(Links(pairs={("device/0", "edge/0"): (0.0, 1e4)}, roles={("device", "edge"): (0.5, 1e3)}))
    assert one.route("edge/0", "device/0")[0].up == 1e4
    assert one.route("device/1", "edge/0")[0].up == 1e3
    assert one.route("edge/0", "edge/1")[0].up == 1e5


def test_moves_come_when_they_would_whatever_the_policy(tmp_path: Path):
    told = [run(make(policy, HALF, simulated=on(HALF, train=False)), tmp_path / name).path / "nodes.json"
            for name, policy in {"a": ff.Restart(), "b": ff.StopAndCopy()}.items()]  # fmt: skip
    moves = [path.read_text().split('"moves"')[1].split('"kinds"')[0] for path in told]
    assert moves[0] == moves[1]
