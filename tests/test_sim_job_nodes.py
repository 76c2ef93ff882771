"""A job of several nodes over slow links, on devices that drift, come and go: killed and resumed to the same bits."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from fieldfare import HADFL, Job, Simulated, Training, digits, mlp
from fieldfare.fleet import Availability, Drift, Fleet
from fieldfare.resume import resume_run
from fieldfare.sim.links import Links


class KilledError(Exception):
    """Stands for the kill."""


def job(kill_at: int = 0) -> Job:
    """HADFL whose messages queue, wait for outages and get lost; it ends with an error in row `kill_at`."""
    net, rows = mlp(64, 16, 10), []
    sessions = [[(0.0, inf)], [(0.0, inf)], [(0.0, 60.0), (75.0, 140.0), (150.0, inf)], [(3.0, inf)]]
    fleet = Fleet(
        np.array([3, 3, 1, 1], np.float32) * np.float32(net.flops() * 16), 6e3, 5e3, 0.0, latency_s=0.05,
        drift=Drift(0.3, every_s=5.0), availability=Availability.of(sessions),
    )  # fmt: skip

    def die(row):
        rows.append(row)
        if len(rows) == kill_at:
            raise KilledError

    links = Links(outages={("peer/0", "peer/1"): ((30.0, 33.0),), "peer/3": ((70.0, 71.0),)})
    return Job(
        mlp(64, 16, 10), digits(4, seed=0), HADFL(cycles=6, per_cycle=2), Training(lr=0.1, batch_size=16),
        simulated=Simulated(fleet=fleet, links=links, workers=1), callbacks=(die,), seed=1,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_over_links_goes_on_to_the_same_bits(tmp_path):
    pytest.importorskip("sklearn")
    whole = job().run(tmp_path / "whole", progress=False, report=False)
    assert whole.summary["stopped"] == "cycles"
    for kill_at in (1, 4):
        with pytest.raises(KilledError):
            job(kill_at).run(tmp_path / str(kill_at), progress=False, report=False)
        again = resume_run("latest", tmp_path / str(kill_at), progress=False, job=job())
        assert again.model.vector.tobytes() == whole.model.vector.tobytes()
        for name in ("messages.bin", "work.bin", "said.jsonl"):
            assert (again.path / name).read_bytes() == (whole.path / name).read_bytes()
