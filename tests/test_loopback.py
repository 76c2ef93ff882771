"""The loopback: the simulator's bits without faults, and what messages and crashes may not change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.algorithms import Evaluate, FedAvg, FedMedian, Scaffold
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered
from fieldfare.core.quorum import ALL, Everyone, Quorum
from fieldfare.fleet.fleet import Fleet
from fieldfare.testing import Crash, Fault, digest, loop, quadratics, simulate

PROBLEM = quadratics(n=8)
ALGORITHMS = {
    "fedavg": FedAvg(4, 5), "scaffold": Scaffold(4, Everyone()), "median": FedMedian(3, 5),
    "evaluated": Evaluate(FedAvg(3, 4)),
}  # fmt: skip
QUORUMS = [ALL, Quorum(need=2), Quorum(deadline_s=2.0), Quorum(need=3, deadline_s=1.6), Quorum(need=4, deadline_s=2.0)]


def same(one, other):
    assert one.transcript.lines() == other.transcript.lines()
    assert (one.reason, digest(one.model)) == (other.reason, digest(other.model))
    assert digest(one.slots.rows) == digest(other.slots.rows)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_without_faults_it_is_the_simulator_bit_for_bit(name):
    world = PROBLEM.world(ALGORITHMS[name])
    same(simulate(world), loop(world))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 9),
    quorum=st.sampled_from(QUORUMS),
    drop_out=st.sampled_from([0.0, 0.3]),
    rounds=st.integers(1, 3),
    overhead=st.lists(st.sampled_from([0.5, 1.0, 1.1, 1.6, 2.5]), min_size=9, max_size=9),
)
def test_whatever_the_quorum_the_devices_and_the_drop_outs_they_agree(seed, n, quorum, drop_out, rounds, overhead):
    problem = quadratics(n=n, dim=3, seed=seed)
    fleet = Fleet(overhead_s=np.array(overhead[:n], np.float32), drop_out=drop_out)
    quorum = replace(quorum, need=min(quorum.need, n) if quorum.need else None)
    world = problem.world(Scaffold(rounds, Everyone(), quorum=quorum), fleet=fleet)
    one, other = simulate(world), loop(world)
    same(one, other)
    assert other.driver.bytes_up == pytest.approx(one.driver.progress.bytes_up)
    assert other.driver.bytes_down == pytest.approx(one.driver.progress.bytes_down)


FAULTS = [
    [Fault("repeat", "reply", 0.0, times=99)],
    [Fault("repeat", "ask", 0.3, times=99)],
    [Fault("repeat", "event", 5.0, times=99)],
    [Fault("lose", "ask", 2.0, client=3)],
    [Fault("lose", "reply", 2.0, client=3, times=3)],
    [Fault("delay", "reply", 7.0, times=5)],
    [Fault("delay", "ask", 7.0, tag=2, times=2), Fault("lose", "reply", 1.0), Fault("repeat", "reply", 0.1, times=9)],
]


@pytest.mark.parametrize("faults", FAULTS, ids=range(len(FAULTS)))
@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_arrives_late_or_twice_changes_times_and_nothing_else(name, faults):
    world = PROBLEM.world(ALGORITHMS[name])
    plain, faulty = loop(world), loop(world, faults)
    assert faulty.transcript.timeless() == plain.transcript.timeless()
    assert digest(faulty.slots.rows) == digest(plain.slots.rows)
    assert faulty.slots.puts == plain.slots.puts
    assert (faulty.driver.bytes_down, faulty.driver.bytes_up) == (plain.driver.bytes_down, plain.driver.bytes_up)
    assert set(faulty.driver.devices.computed.values()) == {1}


def test_a_delay_moves_the_gather_and_a_repeat_does_not():
    world = PROBLEM.world(FedAvg(1, Everyone()))
    plain, late = loop(world), loop(world, [Fault("delay", "reply", 7.0, client=0)])
    assert late.transcript.steps[-1].now > plain.transcript.steps[-1].now + 5
    same(plain, loop(world, [Fault("repeat", "reply", 7.0, client=0)]))


@pytest.mark.parametrize("kind", ["ask", "reply"])
def test_a_client_lost_for_good_drops_out_with_and_without_a_deadline(kind):
    for quorum in (ALL, Quorum(deadline_s=9.0)):
        world = PROBLEM.world(Scaffold(2, Everyone(), quorum=quorum))
        end = loop(world, [Fault("lose", kind, client=3, tag=1)], keep=True)
        first, second = end.transcript.events(Gathered)
        assert first.missing["drop-out"].tolist() == [3]
        assert len(first.clients) == 7
        assert len(second.clients) == 8
        assert end.slots.puts == 15
        assert end.driver.devices.computed[("central", 1, 0), 3] == (0 if kind == "ask" else 1)


def test_a_late_reply_is_not_counted_and_its_client_state_not_committed():
    world = PROBLEM.world(Scaffold(2, Everyone(), quorum=Quorum(deadline_s=9.0)))
    end = loop(world, [Fault("delay", "reply", 9.0, client=3, tag=1)], keep=True)
    first, _ = end.transcript.events(Gathered)
    assert first.missing["late"].tolist() == [3]
    assert end.slots.puts == 15


@pytest.mark.parametrize("at", ["before", "journaled", "performed"])
@pytest.mark.parametrize("every", [1, 2, 100])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_coordinator_killed_at_any_step_ends_with_the_model_it_would_have_had(name, at, every):
    world = PROBLEM.world(ALGORITHMS[name])
    whole = loop(world)
    for step in range(1, len(whole.transcript.steps) + 1):
        for after in (0.001, 50.0):
            broken = loop(world, crashes=[Crash("central", step, at, after)], snapshot_every=every)
            assert broken.transcript.timeless() == whole.transcript.timeless()
            assert (broken.reason, digest(broken.model)) == (whole.reason, digest(whole.model))
            assert digest(broken.slots.rows) == digest(whole.slots.rows)
            assert broken.slots.puts == whole.slots.puts
            assert set(broken.driver.devices.computed.values()) == {1}


def test_killed_again_and_again_amid_faults_it_still_ends_the_same():
    world = PROBLEM.world(Scaffold(5, Everyone()))
    whole = loop(world)
    crashes = [Crash("central", step, at, 1.7) for step in (2, 3, 5) for at in ("before", "journaled")]
    faults = [Fault("lose", "reply", 0.4, times=9), Fault("repeat", "ask", 0.2, times=9)]
    broken = loop(world, faults, crashes, snapshot_every=3)
    assert not broken.driver._crashes
    assert broken.transcript.timeless() == whole.transcript.timeless()
    assert digest(broken.slots.rows) == digest(whole.slots.rows)


def test_replies_that_come_while_the_node_is_down_are_asked_for_again_and_computed_once():
    world = PROBLEM.world(FedAvg(2, Everyone()))
    end = loop(world, crashes=[Crash("central", 1, "performed", 100.0)])
    assert end.transcript.steps[1].now == 100.0
    assert set(end.driver.devices.computed.values()) == {1}
    assert digest(end.model) == digest(loop(world).model)


def test_a_replay_that_gives_other_effects_is_an_error():
    class Fickle(FedAvg):
        def step(self, state, event, ctx):
            state, effects = super().step(state, event, ctx)
            turns.append(1)
            return state, tuple(replace(e, config={"turn": len(turns)}) if hasattr(e, "config") else e for e in effects)

    turns: list[int] = []
    with pytest.raises(AssertionError, match="a replayed Started gave other effects than before"):
        loop(PROBLEM.world(Fickle(2, 3)), crashes=[Crash("central", 1, "performed")], snapshot_every=9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_order_of_replies_changes_no_bit(name, seed):
    world = PROBLEM.world(ALGORITHMS[name])
    same(loop(world), loop(world, shuffle=seed))


def test_a_fault_that_could_never_end_is_refused():
    for wrong in (("delay", "reply"), ("repeat", "ask"), ("lose", "event")):
        with pytest.raises(UsageError, match="say how much later, after_s="):
            Fault(*wrong)
