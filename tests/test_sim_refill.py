"""Who replaces those who end in a stream: all that are there alike, whatever sessions do; a rule chooses few at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_sim_stream import play

from fieldfare.algorithms import FedBuff
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.tasks import INTERRUPTED

ON_S, OFF_S = 20.0, 10.0


def flapping(n: int, **more: Any) -> Fleet:
    """Devices that are there for 20 s and away for 10 s, again and again, each at times of its own."""
    random = np.random.default_rng(n)
    shift = random.uniform(0.0, ON_S + OFF_S, n).astype(np.float32)
    sessions = Availability(
        np.array([0, 1]), np.array([0.0]), np.array([ON_S]), ON_S + OFF_S, np.zeros(n, np.int32), shift
    )
    return Fleet(overhead_s=random.uniform(4.0, 6.0, n).astype(np.float32), availability=sessions, **more)


@pytest.mark.parametrize("more", [{}, {"noise": 0.3}, {"drop_out": 0.2}], ids=["plain", "noise", "drop-out"])
@pytest.mark.parametrize("n", [300, 6000], ids=["tracking", "chance"])
def test_those_who_have_just_come_are_drawn_as_often_as_those_who_came_long_ago(n, more) -> None:
    p = play(FedBuff(400, 20, 20), n, flapping(n, **more))
    assert p.stream.candidates.tracking == (n == 300)
    tasks = p.over.start > 0
    client, start = p.over.client[tasks], p.over.start[tasks]
    since = start - p.world.population.fleet.availability.session(start, client)[0]
    assert 0.0 <= since.min() <= since.max() < ON_S
    count = np.bincount((since / 2.0).astype(np.int64), minlength=10)
    expect = len(since) / 10
    assert float(((count - expect) ** 2 / expect).sum()) < 9 + 5 * np.sqrt(18)
    assert abs((p.over.outcome == INTERRUPTED).mean() - 5.0 / ON_S) < 0.03, "those who begin in the last 5 of 20 s"
