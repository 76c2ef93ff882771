"""HADFL under faults on the loopback: all survivors hold the same bits, or none has changed."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest

from fieldfare.algorithms.hadfl.coordinator import Coordinator
from fieldfare.algorithms.hadfl.messages import Decided
from fieldfare.algorithms.hadfl.peer import Peer
from fieldfare.algorithms.hadfl.ring import Frame, hops, sound
from fieldfare.core.effects import Send
from fieldfare.core.events import Gathered, Joined, Left, Received
from fieldfare.fleet.fleet import Fleet
from fieldfare.sim.simulator import Links
from fieldfare.testing import Crash, Fault, loop, quadratics, simulate
from fieldfare.testing.checks import Checked

PROBLEM = quadratics(n=6, dim=7)
FOR_EVER = 1e9


class Watch:
    """What every peer's model became at the commit of each cycle: `applied[cycle][peer]`, bytes."""

    def __init__(self):
        self.applied = defaultdict(dict)
        self.frames = defaultdict(list)

    def __call__(self, state, event, ctx, new, effects):
        if new.model is not state.model and not isinstance(event, Gathered):
            assert new.applied > state.applied
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.body, Frame):
                self.frames[ctx.me].append(effect.body)
        if new.decided is not state.decided and new.decided.epoch >= 0 and state.member is not None:
            member = state.member
            if new.decided.digest == member.session.digest and new.decided.epoch == member.ring.epoch:
                self.applied[new.decided.cycle][ctx.me] = member.session.result.tobytes()

    def agree(self):
        return all(len(set(models.values())) == 1 for models in self.applied.values())


def world(peers=4, per_cycle=3, cycles=3, watch=None, **more):
    names = [f"peer/{i}" for i in range(peers)]
    peer = Peer(cycles, batch_size=4, per_cycle=per_cycle)
    peer = peer if watch is None else Checked(peer, watch)
    nodes = {"coordinator": ("coordinator", Coordinator(cycles, per_cycle, floor_s=0.2))}
    nodes |= dict.fromkeys(names, ("peer", peer))
    more.setdefault("links", Links(0.01, 1e4))
    more.setdefault("fleet", Fleet(flops_per_s=np.array([440, 450, 445, 455, 442, 448], np.float32)))
    return PROBLEM.world(nodes, placement={name: i for i, name in enumerate(names)}, **more)


def decisions(end):
    """{cycle: {(epoch, digest)}} of everything the coordinator ever said."""
    out = defaultdict(set)
    for node, _, effects in end.transcript.kept:
        for effect in effects:
            if node == "coordinator" and isinstance(effect, Send) and isinstance(effect.body, Decided):
                out[effect.body.cycle].add((effect.body.epoch, effect.body.digest))
    return out


def steps_of_ring(per_cycle=3):
    """(node, number of its step) of every step in which a member of the first ring takes a frame or a token."""
    end, count, found = loop(world(per_cycle=per_cycle, cycles=1), keep=True), defaultdict(int), []
    for node, event, _ in end.transcript.kept:
        count[node] += 1
        if node != "coordinator" and isinstance(event, Received) and getattr(event.body, "cycle", None) == 1:
            found.append((node, count[node]))
    return found


def check(end, watch, dead=()):
    assert watch.agree()
    told = decisions(end)
    assert all(len(what) == 1 for what in told.values())
    for cycle, models in watch.applied.items():
        ((epoch, digest),) = told[cycle]
        assert epoch >= 0
        assert len(digest) == 16
        assert len(models) >= 1
    return told


def test_without_faults_every_cycle_is_committed_by_all_members():
    watch = Watch()
    end = loop(world(watch=watch), keep=True)
    told = check(end, watch)
    assert end.reason == "cycles"
    assert sorted(told) == [1, 2, 3]
    assert all(len(models) == 3 for models in watch.applied.values())
    assert all(epoch == 0 for what in told.values() for epoch, _ in what)
    per = hops(3)
    for frames in watch.frames.values():
        assert len(frames) % per == 0
        assert all(sound(frame) for frame in frames)


@pytest.mark.parametrize("at", ["before", "performed"])
def test_a_member_that_dies_at_any_step_of_the_ring_leaves_the_others_with_the_same_bits(at):
    places = steps_of_ring()
    assert len({node for node, _ in places}) >= 3
    for node, step in places[::5]:
        watch = Watch()
        end = loop(world(watch=watch, cycles=2), crashes=[Crash(node, step, at, FOR_EVER)], keep=True)
        check(end, watch)
        assert end.driver.now < FOR_EVER
        alive = {m for models in watch.applied.values() for m in models} - {node}
        assert 2 in watch.applied
        assert len(alive) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("at", ["before", "journaled", "performed"])
def test_a_member_killed_at_each_step_of_the_ring_for_ever_or_for_a_while(at):
    for after_s in (FOR_EVER, 0.5, 5.0):
        for node, step in steps_of_ring():
            watch = Watch()
            end = loop(world(watch=watch, cycles=2), crashes=[Crash(node, step, at, after_s)], keep=True)
            check(end, watch)


def schedule(seed, peers=4):
    """Faults and at most one death, by a seed."""
    dice = random.Random(seed)
    names = [f"peer/{i}" for i in range(peers)]
    faults = []
    for _ in range(dice.randint(0, 6)):
        do = dice.choice(["delay", "repeat", "lose"])
        node = dice.choice([*names, "coordinator"])
        faults.append(Fault(do, "event", dice.choice([0.02, 0.3, 1.5]), node=node, times=dice.randint(1, 20)))
    crashes = []
    if dice.random() < 0.6:
        after_s = dice.choice([0.1, 2.0, FOR_EVER])
        at = dice.choice(["before", "journaled", "performed"])
        crashes.append(Crash(dice.choice(names), dice.randint(2, 40), at, after_s))
    return faults, crashes


def run_schedules(seeds):
    committed = 0
    for seed in seeds:
        watch = Watch()
        faults, crashes = schedule(seed)
        end = loop(world(watch=watch, cycles=2), faults, crashes, keep=True)
        check(end, watch)
        committed += len(watch.applied)
    return committed


def test_survivors_agree_under_seeded_schedules_of_faults():
    assert run_schedules(range(12)) >= 12


@pytest.mark.slow
def test_survivors_agree_under_a_thousand_seeded_schedules_of_faults():
    assert run_schedules(range(1000)) >= 1000


@pytest.mark.parametrize("when", [1.5, 2.5, 3.5])
def test_a_device_that_leaves_is_bypassed_and_comes_back_from_the_last_backup(when):
    watch = Watch()
    gone = [(when, Left("peer/1"), ("peer/1",)), (when + 3.0, Joined("peer/1"), ("peer/1",))]
    end = simulate(world(watch=watch, cycles=8, per_cycle=4, happenings=gone), keep=True)
    told = check(end, watch)
    assert end.reason == "cycles"
    assert sorted(told) == list(range(1, 9))
    assert max(cycle for cycle, models in watch.applied.items() if "peer/1" in models) > 4


def slowed(delay_s):
    """Three rings of all, in which everything reaches one member so much later; a hop is waited for 0.23 s."""
    watch = Watch()
    faults = [Fault("delay", "event", delay_s, node="peer/2", times=1 << 30)]
    end = loop(world(watch=watch, cycles=3, per_cycle=4), faults, keep=True)
    return check(end, watch), watch, end


@pytest.mark.parametrize("delay_s", [0.1, 0.3])
def test_a_slow_member_that_answers_is_not_dead(delay_s):
    told, watch, end = slowed(delay_s)
    assert [{epoch for epoch, _ in what} for what in told.values()] == [{0}] * 3
    assert [len(models) for models in watch.applied.values()] == [4] * 3
    assert end.driver.nodes["coordinator"].state.patience == 1.0


def test_who_answers_too_late_is_passed_by_comes_back_and_is_waited_for_longer():
    told, watch, end = slowed(0.5)
    assert {epoch for epoch, _ in told[1]} == {1}
    assert "peer/2" not in watch.applied[1]
    assert len(watch.applied[3]) == 4
    assert end.driver.nodes["coordinator"].state.patience == 2.0


def test_a_coordinator_that_dies_and_comes_back_says_what_it_said():
    whole = loop(world(cycles=2), keep=True)
    steps = len(whole.transcript.of("coordinator"))
    for step in range(6, steps, 3):
        watch = Watch()
        end = loop(world(cycles=2, watch=watch), crashes=[Crash("coordinator", step, "journaled", 0.05)], keep=True)
        check(end, watch)
        assert len(watch.applied) == 2
    assert np.isfinite(whole.model.vector).all()
