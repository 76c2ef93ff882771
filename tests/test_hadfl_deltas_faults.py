"""Rings of deltas under faults: all survivors hold the same bits, or nothing has changed, whatever the wire and even
where the ring and the next training overlap."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest

from fieldfare.algorithms.hadfl.coordinator import Coordinator
from fieldfare.algorithms.hadfl.messages import Decided, Plan, Select, Skip
from fieldfare.algorithms.hadfl.nodes import nodes, placed
from fieldfare.algorithms.hadfl.peer import Peer
from fieldfare.algorithms.hadfl.ring import Frame, hops, mean_of
from fieldfare.core.effects import Publish, Send
from fieldfare.core.events import Joined, Left, Received
from fieldfare.fleet.drift import Drift
from fieldfare.fleet.fleet import Fleet
from fieldfare.sim.simulator import Links
from fieldfare.testing import Crash, Fault, loop, quadratics, simulate
from fieldfare.testing.checks import Checked

PROBLEM = quadratics(n=6, dim=7)
FOR_EVER = 1e9
WAYS = [{"wire": "int8"}, {"overlap": True}, {"wire": "int8", "overlap": True}]
ways = pytest.mark.parametrize("way", WAYS, ids=["int8", "overlap", "int8 and overlap"])


class Watch:
    """Every peer's base by its number of commits, and every committed mean: one for all, or it fails at once."""

    def __init__(self):
        self.bases = defaultdict(dict)
        self.means = defaultdict(dict)

    def __call__(self, state, event, ctx, new, effects):
        if new.base is None or not new.steps:
            return
        if state.base is not None and new.base is not state.base:
            assert new.commits > state.commits
        known = self.bases[new.commits].setdefault(ctx.me, new.base.vector.tobytes())
        assert known == new.base.vector.tobytes()
        member = state.member
        decided = new.decided
        if decided is state.decided or decided.epoch < 0 or member is None:
            return
        if decided.digest == member.session.digest and decided.epoch == member.ring.epoch:
            total = mean_of(member.session.total, member.ring.step, len(member.ring.members))
            assert total.tobytes() == member.session.result.tobytes()
            self.means[decided.cycle][ctx.me] = total.tobytes()

    def agree(self):
        return all(len(set(found.values())) == 1 for kept in (self.bases, self.means) for found in kept.values())


def world(peers=4, per_cycle=3, cycles=3, watch=None, wire="int32", overlap=False, floor_s=0.2, **more):
    peer = Peer(cycles, batch_size=4, per_cycle=per_cycle, rule="deltas", overlap=overlap)
    made = nodes(peers, peer, Coordinator(cycles, per_cycle, floor_s=floor_s, wire=wire, turns=True))
    if watch is not None:
        made |= {name: (role, Checked(one, watch)) for name, (role, one) in made.items() if role == "peer"}
    more.setdefault("links", Links(0.01, 1e4))
    more.setdefault("fleet", Fleet(flops_per_s=np.array([440, 450, 445, 455, 442, 448], np.float32)))
    return PROBLEM.world(made, placement=placed(peers), **more)


def said(end, kind):
    return [
        (node, e.to, e.body)
        for node, _, effects in end.transcript.kept
        for e in effects
        if isinstance(e, Send) and isinstance(e.body, kind)
    ]


def check(end, watch):
    assert watch.agree()
    told = defaultdict(set)
    for node, _, body in said(end, Decided):
        if node == "coordinator":
            told[body.cycle].add((body.epoch, body.digest, body.serial))
    assert all(len(what) == 1 for what in told.values())
    made = sorted(serial for what in told.values() for epoch, _, serial in what if epoch >= 0)
    assert made == list(range(1, len(made) + 1))
    assert max(watch.bases, default=0) <= len(made)
    for cycle in watch.means:
        ((epoch, _, _),) = told[cycle]
        assert epoch >= 0
    return told


@ways
def test_without_faults_every_cycle_is_committed_once(way):
    watch = Watch()
    end = loop(world(watch=watch, **way), keep=True)
    told = check(end, watch)
    assert sorted(told) == [1, 2, 3]
    assert max(watch.bases) == 3
    assert [len(found) for found in watch.means.values()] == [3, 3, 3]


def moments(way, per_cycle):
    """When each member of the second ring takes each hop: `{(member, hop): seconds}`."""
    end, found = simulate(world(per_cycle=per_cycle, cycles=4, **way), keep=True), {}
    for step, (node, event, _) in zip(end.transcript.steps, end.transcript.kept, strict=True):
        if isinstance(event, Received) and isinstance(event.body, Frame) and event.body.cycle == 2:
            found[node, event.body.hop] = step.now
    return found


@ways
@pytest.mark.parametrize("per_cycle", [3, 4])
def test_a_member_killed_at_any_hop_leaves_one_mean_among_the_survivors(way, per_cycle):
    places = moments(way, per_cycle)
    assert {hop for _, hop in places} == set(range(hops(per_cycle)))
    assert len(places) == per_cycle * hops(per_cycle)
    every = 1 if per_cycle == 3 else 5
    for (victim, hop), at in sorted(places.items())[::every]:
        watch = Watch()
        gone = [(at, Left(victim), (victim,))]
        end = simulate(world(per_cycle=per_cycle, cycles=4, watch=watch, happenings=gone, **way), keep=True)
        check(end, watch)
        assert end.reason == "cycles", (victim, hop)
        assert len(watch.means[2].keys() - {victim}) in (0, per_cycle - 1), (victim, hop)
        assert max(watch.bases) >= 3
        assert len(watch.bases[max(watch.bases)].keys() - {victim}) == 3


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


def run_schedules(seeds, way):
    committed = 0
    for seed in seeds:
        watch = Watch()
        faults, crashes = schedule(seed)
        check(loop(world(watch=watch, cycles=2, **way), faults, crashes, keep=True), watch)
        committed += len(watch.means)
    return committed


@ways
def test_survivors_agree_under_seeded_schedules_of_faults(way):
    assert run_schedules(range(6), way) >= 6


@pytest.mark.slow
def test_survivors_agree_under_a_thousand_seeded_schedules_of_faults():
    """A third of them each way."""
    assert sum(run_schedules(range(at, 1000, len(WAYS)), way) for at, way in enumerate(WAYS)) >= 1000


def test_news_of_a_commit_before_the_first_plan_is_not_forgotten():
    assert run_schedules([7], WAYS[1]) >= 2


@ways
@pytest.mark.parametrize("when", [1.5, 2.5, 3.5])
def test_a_device_that_leaves_is_bypassed_and_holds_what_the_others_hold_when_it_is_back(way, when):
    watch = Watch()
    gone = [(when, Left("peer/1"), ("peer/1",)), (when + 3.0, Joined("peer/1"), ("peer/1",))]
    end = simulate(world(watch=watch, cycles=12, per_cycle=4, happenings=gone, **way), keep=True)
    told = check(end, watch)
    assert end.reason == "cycles"
    assert sorted(told) == list(range(1, 13))
    assert "peer/1" in watch.bases[max(watch.bases)]
    assert max(cycle for cycle, found in watch.means.items() if "peer/1" in found) > 6


@pytest.mark.parametrize("wire", ["int8", "int32"])
def test_who_takes_the_slow_for_dead_grows_patient(wire):
    watch = Watch()
    links = Links(0.1, 2e3)
    end = simulate(world(watch=watch, cycles=20, per_cycle=4, wire=wire, links=links, floor_s=0.01), keep=True)
    told = check(end, watch)
    late = [epoch for cycle, what in told.items() for epoch, _, _ in what if cycle > 10]
    assert {epoch for what in told.values() for epoch, _, _ in what} > {0}
    assert set(late) == {0}
    assert end.driver.progress.states["coordinator"].patience > 1.0


def test_a_death_costs_less_than_a_cycle():
    spans = {}
    for way in ("whole", "bereft"):
        at = moments({"wire": "int8"}, 4)["peer/2", 2]
        gone = [(at, Left("peer/2"), ("peer/2",))] if way == "bereft" else []
        end = simulate(world(per_cycle=4, cycles=12, wire="int8", happenings=gone), keep=True)
        times = {
            e.version: step.now
            for step, (_, _, es) in zip(end.transcript.steps, end.transcript.kept, strict=True)
            for e in es
            if isinstance(e, Publish)
        }
        spans[way] = times[12] - times[1]
        assert len(times) == 12
    period = next(body.period_s for _, _, body in said(end, Plan))
    assert spans["bereft"] - spans["whole"] < period


@pytest.mark.slow
def test_twenty_devices_whose_speeds_drift_are_planned_anew_and_no_ring_restarts():
    problem = quadratics(n=20, dim=7, examples=(8, 8))
    speeds = np.random.default_rng(0).uniform(1e3, 4e3, 20).astype(np.float32)
    fleet = Fleet(flops_per_s=speeds, downlink_bytes_per_s=1e30, uplink_bytes_per_s=1e30, overhead_s=0.0,
                  drift=Drift(0.3, 0.9, 1.0))  # fmt: skip
    peer = Peer(40, batch_size=4, per_cycle=20, rule="deltas")
    made = nodes(20, peer, Coordinator(40, 20, wire="int16", floor_s=0.2, steps=5))
    end = simulate(problem.world(made, placement=placed(20), fleet=fleet, links=Links(0.001, 1e5)), keep=True)
    assert end.reason == "cycles"
    selects = [body for _, _, body in said(end, Select)]
    assert {body.epoch for body in selects} == {0}
    assert not said(end, Skip)
    assert end.driver.progress.states["coordinator"].plans > 2
    assert end.driver.progress.states["coordinator"].commits == 40
