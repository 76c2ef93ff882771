"""FedFly as a job: what it leaves, that moves change no bit, what is refused, and that it is resumed to the same bits."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import numpy as np
import pytest
from command_line import PROGRAM, environment, job_file
from split_cases import small_vgg, torch
from test_job_nodes import at_every_moment, left, run

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.mobility import Mobility, waypoints
from fieldfare.report.read_moves import downtime_s, moves_of, repeated, round_s
from fieldfare.report.read_nodes import read_nodes
from fieldfare.store.nodes import NODES

assert at_every_moment  # a fixture
assert torch

NET = ff.split_net(small_vgg)
DATA = ff.data.digits(4, ff.iid(), test_fraction=0.3, seed=0)
WIRES = ff.Links(
    roles={("device", "edge"): (0.002, 1e6), ("edge", "edge"): (0.005, 1e5), ("edge", "central"): (0.01, 1e7),
           ("device", "central"): (0.012, 1e6)}
)  # fmt: skip
HALF = ((0, 1, 0.5, 1),)

JOB = """
import os
import signal

import numpy as np

import fieldfare as ff
from fieldfare.fleet.fleet import Fleet
from fieldfare.models import vgg5

die = int(os.environ.get("DIE_AFTER", "0"))


def death(row):
    if row["round"] == die:
        os.kill(os.getpid(), signal.SIGKILL)


job = ff.Job(
    ff.split_net(lambda: vgg5((1, 8, 8), widths=(8, 8, 8, 16), unflatten=True)),
    ff.data.digits(4, ff.iid(), test_fraction=0.8, seed=0),
    ff.FedFly(4, cut="pool2", homes=(0, 0, 1, 1), replica_every=3),
    ff.Training(lr=0.05, momentum=0.9, batch_size=20),
    seed=3,
    callbacks=(death,),
    simulated=ff.Simulated(
        Fleet(flops_per_s=np.array([1e8, 1e8, 2e8, 2e8], np.float32), overhead_s=0.0), workers=1,
        mobility=ff.MovesAt(((0, 1, 0.5, 1), (2, 2, 0.4, 0), (0, 3, 0.6, 0))),
        links=ff.Links(roles={("device", "edge"): (0.002, 1e6), ("edge", "edge"): (0.005, 1e5)}),
    ),
)
"""


def make(policy: Any = ff.PreCopy(), moves: Any = HALF, rounds: int = 1, *, training: Any = None, data: Any = DATA,
         model: Any = NET, simulated: Any = None, **more: Any) -> ff.Job:  # fmt: skip
    method = ff.FedFly(rounds, policy=policy, **{"cut": "pool2", "homes": (0, 0, 1, 1), **more})
    return ff.Job(
        model, data, method, training or ff.Training(lr=0.05, momentum=0.9, batch_size=20), seed=3,
        simulated=simulated or on(moves),
    )  # fmt: skip


def on(moves: Any = (), **more: Any) -> ff.Simulated:
    fleet = Fleet(flops_per_s=np.array([1e7, 1e7, 2e7, 2e7], np.float32), overhead_s=0.0)
    moves = ff.MovesAt(moves) if isinstance(moves, tuple) and moves else moves or None
    return ff.Simulated(**{"fleet": fleet, "links": WIRES, "mobility": moves, "workers": 1, **more})


def bits(result: Any) -> bytes:
    return result.model.vector.tobytes()


def nodes_of(result: Any) -> Any:
    return read_nodes(result.path), json.loads((result.path / NODES).read_text()).get("mobility")


@pytest.mark.slow
def test_a_run_killed_by_the_system_is_resumed_to_the_same_bits(tmp_path):
    job_file(tmp_path, JOB, "job.py")
    common: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False, "timeout": 120}
    whole = subprocess.run([*PROGRAM, "run", "job.py", "-q", "--runs", "whole"], env=environment(tmp_path), **common)
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.run([*PROGRAM, "run", "job.py", "-q"], env=environment(tmp_path, DIE_AFTER="2"), **common)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "runs" / "latest" / "summary.json").exists()
    resumed = subprocess.run([*PROGRAM, "resume", "-q"], env=environment(tmp_path), **common)
    assert resumed.returncode == 0, resumed.stderr
    assert left((tmp_path / "runs" / "latest").resolve()) == left((tmp_path / "whole" / "latest").resolve())
