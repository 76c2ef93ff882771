"""FedFly over a real split net in the simulator: batch statistics, momentum and a schedule move with the session."""

from __future__ import annotations

import numpy as np
import pytest
from fedfly_toy import SECRET

torch = pytest.importorskip("torch")

from split_cases import columns, net_of, whole  # noqa: E402

from fieldfare.algorithms.fedfly.central import Central  # noqa: E402
from fieldfare.algorithms.fedfly.device import Device  # noqa: E402
from fieldfare.algorithms.fedfly.edge import Edge  # noqa: E402
from fieldfare.algorithms.fedfly.messages import Begin, Plan, Update  # noqa: E402
from fieldfare.algorithms.fedfly.nodes import nodes, placed  # noqa: E402
from fieldfare.algorithms.fedfly.policies import PreCopy, Restart, StopAndCopy  # noqa: E402
from fieldfare.core import rng  # noqa: E402
from fieldfare.core.effects import Send  # noqa: E402
from fieldfare.core.events import Moved  # noqa: E402
from fieldfare.data.federated import Federated  # noqa: E402
from fieldfare.fleet.fleet import Fleet  # noqa: E402
from fieldfare.sim.population import Population  # noqa: E402
from fieldfare.sim.simulator import Links, World  # noqa: E402
from fieldfare.testing import digest, simulate  # noqa: E402
from fieldfare.work.net import Training  # noqa: E402
from fieldfare.work.split import split_works  # noqa: E402
from fieldfare.work.train import Train  # noqa: E402

SIZES = (20, 13, 16, 1, 1)
TRAINING = Training(
    lr=0.05, batch_size=8, momentum=0.9, weight_decay=1e-3, schedule="step", schedule_rounds=1, decay=0.5
)
OFFSETS = np.r_[0, np.cumsum(SIZES)]
DATA = Federated(columns(OFFSETS[-1]), OFFSETS, np.arange(OFFSETS[-1]))


def world(policy=None, moves=(), rounds=2, cut=1, alone=("device/2",), elsewhere=None, **more):
    net = net_of("vgg")
    one = net.cut(cut)
    plans = {f"device/{i}": Plan(one.name, one.size) for i in range(3) if f"device/{i}" not in alone}
    central = Central(rounds, plans, whole=dict.fromkeys(alone, 0), secret=SECRET, elsewhere=elsewhere or {})
    made = nodes(central, Edge(policy=policy or StopAndCopy(), **more), Device(), 2)
    place = {f"device/{i}": i for i in range(3)} | {"edge/0": 3, "edge/1": 4}
    assert {*placed(made)} == {*place}
    works = {**split_works(net, TRAINING), "train": Train(net, TRAINING)}
    fleet = Fleet(flops_per_s=1e6, overhead_s=0.0)
    events = [(t, Moved(d, to), (d, "edge/0", "edge/1")) for t, d, to in moves]
    return World(made, net.init(0), Population.of(DATA, fleet), works, placement=place, happenings=events,
                 links=Links(0.01, 1e5))  # fmt: skip


def bits(end):
    assert end.reason == "rounds"
    return digest(end.model)


@pytest.mark.slow
def test_a_split_device_learns_what_one_that_trains_whole_learns():
    end = simulate(world(rounds=1), keep=True)
    bits(end)
    updates = {e.body.device: e.body for *_, out in end.transcript.kept for e in out
               if isinstance(e, Send) and isinstance(e.body, Update)}  # fmt: skip
    assert {name: update.samples for name, update in updates.items()} == {
        "device/0": 20, "device/1": 13, "device/2": 16,
    }  # fmt: skip
    for i in range(3):
        key = rng.keys(0, ("client", "split", f"device/{i}", "1"), np.zeros(1, np.int64))
        keys = np.repeat(key, 3)
        alone, _ = whole(net_of("vgg"), DATA.block(np.arange(3)), keys, i, TRAINING)
        np.testing.assert_allclose(updates[f"device/{i}"].vector, alone, atol=2e-5)
        assert updates[f"device/{i}"].loss > 0


@pytest.mark.slow
@pytest.mark.parametrize("policy", [Restart(), StopAndCopy(), PreCopy(2)], ids=["restart", "stop", "pre"])
def test_a_real_net_ends_in_the_same_bits_whenever_its_devices_move(policy):
    still = simulate(world())
    stayed, length, changed = bits(still), still.driver.progress.now, 0
    for share in (0.1, 0.3, 0.6, 0.9):
        t = share * length
        moves = [(t, "device/0", "edge/1"), (t * 1.05, "device/1", "edge/0"), (t * 1.4, "device/0", "edge/0")]
        end = simulate(world(policy, moves, replica_every=1))
        assert bits(end) == stayed
        changed += sum(owner.epoch for owner in end.driver.progress.states["central"].owners.values())
    assert changed >= 5


@pytest.mark.slow
def test_a_device_that_has_moved_is_cut_anew_from_the_next_round_on_and_no_bit_changes():
    net = net_of("vgg")
    other = net.cut(5)
    elsewhere = {"edge/1": {"device/0": Plan(other.name, other.size)}}
    still = simulate(world(rounds=3))
    at = 0.2 * still.driver.progress.now
    end = simulate(world(PreCopy(), [(at, "device/0", "edge/1")], rounds=3, elsewhere=elsewhere), keep=True)
    assert bits(end) == bits(still)
    begun = [(e.body.round, e.body.plan.cut) for *_, out in end.transcript.kept for e in out
             if isinstance(e, Send) and isinstance(e.body, Begin) and e.to == "device/0"]  # fmt: skip
    assert begun == [(1, net.cut(1).name), (2, other.name), (3, other.name)]
