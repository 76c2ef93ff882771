"""FedFly's roles keep every law of algorithms: pure, total, storable, durable, and the same on each driver."""

from __future__ import annotations

import pytest
from fedfly_toy import roles, world

from fieldfare.algorithms.fedfly.device import Device
from fieldfare.algorithms.fedfly.edge import Edge
from fieldfare.algorithms.fedfly.policies import PreCopy, Restart, StopAndCopy
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Moved
from fieldfare.testing import laws


@pytest.mark.slow
@pytest.mark.parametrize("policy", [Restart(), StopAndCopy("relay"), PreCopy(2)], ids=["restart", "stop", "pre"])
def test_a_run_with_a_move_keeps_all_laws(policy):
    moved = [(3.5, Moved("device/0", "edge/1"), ("device/0", "edge/0", "edge/1"))]
    laws(world(moved, devices=1, rounds=1, steps=3, edge=Edge(policy=policy, replica_every=1)))


def test_settings_that_cannot_be_are_refused_in_one_line():
    for make in (
        lambda: Edge(patience_s=0.0), lambda: Edge(lanes=0), lambda: Edge(tries=0), lambda: Device(mark_every=0),
        lambda: PreCopy(99), lambda: roles(edges=0),
    ):  # fmt: skip
        with pytest.raises(UsageError) as told:
            make()
        assert "\n" not in str(told.value)
