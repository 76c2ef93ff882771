"""HADFL end to end on problems with a known answer: what is exact, what is told to whom, and that it learns."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from fieldfare.aggregate.gather import Gather
from fieldfare.algorithms.hadfl.agreed import drawn, herald
from fieldfare.algorithms.hadfl.coordinator import Coordinator
from fieldfare.algorithms.hadfl.messages import (
    Ack,
    Backup,
    Broadcast,
    Decided,
    Plan,
    Probe,
    Profile,
    Select,
    Skip,
    Version,
    Welcome,
)
from fieldfare.algorithms.hadfl.peer import Peer
from fieldfare.algorithms.hadfl.ring import Frame, hops, serial_mean
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Publish, Run, Send, Stop
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered, Received, Started, Woke
from fieldfare.core.folds import Mean
from fieldfare.fleet.fleet import Fleet
from fieldfare.sim.simulator import Links, size_of
from fieldfare.store.codec import Codec, registry
from fieldfare.testing import checks, digest, loop, quadratics, simulate
from fieldfare.testing.checks import Checked

PROBLEM = quadratics(n=5, dim=7, examples=(8, 8))
DELTAS = {"rule": "deltas"}
both = pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])


def quick(n: int = 5, devices: int = 5) -> Fleet:
    """Devices 3 : 3 : 1 : 1 (and 1 more) whose only cost is a step's."""
    speeds = np.array([3e3, 3e3, 1e3, 1e3, 2e3], np.float32)[:devices]
    return Fleet(flops_per_s=speeds, downlink_bytes_per_s=1e30, uplink_bytes_per_s=1e30, overhead_s=0.0)


def world(peers=4, per_cycle=2, cycles=3, peer=None, coordinator=None, watch=None, **more):
    names = [f"peer/{i}" for i in range(peers)]
    one = Peer(cycles, batch_size=4, per_cycle=per_cycle, **(peer or {}))
    one = one if watch is None else Checked(one, watch)
    settings = {"floor_s": 0.2} | (coordinator or {})
    nodes = {"coordinator": ("coordinator", Coordinator(cycles, per_cycle, **settings))}
    nodes |= dict.fromkeys(names, ("peer", one))
    more.setdefault("links", Links(0.001, 1e5))
    more.setdefault("fleet", quick(peers))
    return PROBLEM.world(nodes, placement={name: i for i, name in enumerate(names)}, **more)


def said(end, kind):
    return [
        (node, e.to, e.body)
        for node, _, effects in end.transcript.kept
        for e in effects
        if isinstance(e, Send) and isinstance(e.body, kind)
    ]


@both
def test_with_all_chosen_every_commit_is_the_mean_of_all_models_bit_for_bit(driver):
    entered = defaultdict(dict)

    def watch(state, event, ctx, new, effects):
        if new.member is not None and state.member is None:
            entered[new.member.ring.cycle][ctx.me] = (new.model.vector, new.member.ring.step)

    end = driver(world(peers=5, per_cycle=5, watch=watch), keep=True)
    published = {
        e.version: e.model.vector for _, _, effects in end.transcript.kept for e in effects if isinstance(e, Publish)
    }
    assert sorted(published) == sorted(entered) == [1, 2, 3]
    for cycle, models in entered.items():
        vectors, step = [v for v, _ in models.values()], next(iter(models.values()))[1]
        gather = Gather({"x": Mean(weighted=False, step=step)}, 5)
        gather.add(np.arange(5), {"x": np.array(vectors)}, np.ones(5))
        fold = np.asarray(gather.finish()["x"].value, np.float32)
        assert published[cycle].tobytes() == fold.tobytes() == serial_mean(vectors, step).tobytes()
    assert not said(end, Broadcast)


def test_the_coordinator_sees_no_model_but_to_back_one_up():
    end = simulate(world(cycles=4, coordinator={"backup_every": 2}), keep=True)
    model = PROBLEM.model.bytes
    told = [body for _, to, body in said(end, object) if to == "coordinator"]
    copies = [body for body in told if isinstance(body, Backup)]
    assert [copy.cycle for copy in copies] == [2, 4]
    assert all(size_of(body) < model + 64 for body in copies)
    assert not any(isinstance(body, Broadcast | Frame) for body in told)
    kept = end.driver.progress.states["coordinator"].kept
    assert [one.cycle for one in kept] == [2, 4]
    assert end.driver.progress.states["coordinator"].model.vector.tobytes() == end.model.vector.tobytes()


def test_members_send_twice_the_model_less_two_chunks_and_the_rest_receive_one():
    end = simulate(world(per_cycle=3, cycles=2), keep=True)
    selects = {body.cycle: body for _, _, body in said(end, Select)}
    for cycle, select in selects.items():
        frames = [(node, body) for node, _, body in said(end, Frame) if body.cycle == cycle]
        assert len(frames) == 3 * hops(3)
        assert sum(frame.payload.nbytes for _, frame in frames) == 2 * 2 * 4 * 7
        got = [(node, to, size_of(body.vector)) for node, to, body in said(end, Broadcast) if body.cycle == cycle]
        (rest,) = {f"peer/{i}" for i in range(4)} - {*select.members}
        assert got == [(herald(select, 0), rest, 4 * 7)]
    between = sum(size_of(body) for _, _, body in said(end, object))
    assert end.driver.progress.bytes_between == between


def test_unlike_devices_take_unlike_steps_and_wait_little():
    end = simulate(world(cycles=3), keep=True)
    plans = {to: body for _, to, body in said(end, Plan)}
    profiles = {node: body for node, _, body in said(end, Profile)}
    for name, told in plans.items():
        assert told.period_s / profiles[name].step_s - told.steps < 1.0 + 1e-9
    pace = {name: profile.step_s for name, profile in profiles.items()}
    assert pace["peer/2"] == pytest.approx(3 * pace["peer/0"])
    assert plans["peer/0"].steps // plans["peer/2"].steps in (2, 3)
    assert end.driver.progress.states["coordinator"].plans == 1


def test_everyone_can_redo_the_draw_and_a_coordinator_that_chooses_is_ignored():
    end = simulate(world(cycles=3), keep=True)
    select = said(end, Select)[0][2]
    assert all(drawn(body, 2, 0) for _, _, body in said(end, Select))
    assert not drawn(replace(select, members=select.members[::-1]), 2, 0)
    other = tuple(name for name in select.names if name not in select.members)
    chosen = replace(select, members=other)
    peer, ctx = Peer(3), Context(0.0, "peer/0", 0)
    state, _ = peer.step(peer.init(PROBLEM.model), Started({"coordinator": ("c",), "peer": select.names}), ctx)
    assert peer.step(state, Received("c", chosen), ctx)[0] is state
    assert peer.step(state, Received("peer/1", select), ctx)[0] is state
    assert peer.step(state, Received("c", select), ctx)[0].selects == {select.cycle: select}


def test_a_draw_by_age_is_told_with_its_ages_and_redone_by_every_peer():
    end = simulate(world(cycles=5, coordinator={"by_age": True}), keep=True)
    selects = {body.cycle: body for _, _, body in said(end, Select)}
    assert all(drawn(body, 2, 0) for body in selects.values())
    assert selects[1].ages == (1.0,) * 4
    assert {age for body in selects.values() for age in body.ages} > {1.0, 2.0}
    assert end.driver.progress.states["coordinator"].decisions.keys() == selects.keys()


@pytest.mark.parametrize("blend", [0.5, 1.0])
def test_those_outside_the_ring_merge_the_mean_between_two_trainings(blend):
    seen = []

    def watch(state, event, ctx, new, effects):
        if state.incoming is not None and new.incoming is None and new.applied == state.incoming.cycle:
            seen.append(new.version)
            assert state.applied < new.applied

    end = simulate(world(cycles=3, peer={"blend": blend, "stride": 1}, watch=watch), keep=True)
    assert len(seen) >= 3
    runs = [e for _, _, effects in end.transcript.kept for e in effects if isinstance(e, Run)]
    assert {run.config["steps"] for run in runs} == {5, 1}


def test_it_learns_and_a_draw_by_the_bell_stays_off_the_optimum_of_unlike_clients():
    best, start = PROBLEM.loss(PROBLEM.model.replace(PROBLEM.optimum)), PROBLEM.loss(PROBLEM.model)
    whole = PROBLEM.loss(simulate(world(peers=5, per_cycle=5, cycles=25)).model)
    drawn_ = PROBLEM.loss(simulate(world(peers=5, per_cycle=2, cycles=25)).model)
    assert whole < 1.1 * best < start
    assert whole < drawn_ < start


def test_simulator_and_loopback_give_the_same_bits_and_so_does_a_second_run():
    checks.same_everywhere(world(cycles=2))
    one, other = simulate(world()), simulate(world())
    assert digest(one.model) == digest(other.model)
    assert digest(one.model) != digest(simulate(world(seed=1)).model)


def test_the_laws_of_one_run():
    small = world(peers=3, per_cycle=2, cycles=2)
    for law in (checks.pure, checks.total, checks.storable, checks.deaf_to_duplicates, checks.onward, checks.conserved):
        law(small)


@pytest.mark.slow
def test_the_laws_of_many_runs():
    small = world(peers=3, per_cycle=2, cycles=1)
    checks.durable(small)
    checks.orderless(small)
    checks.divisible(small)


def test_all_that_is_said_can_be_stored():
    codec = Codec(registry(Peer(1), Coordinator(1)))
    for body in (Plan(3, 1.0), Probe(1, 0, 2), Ack(1, 0.5), Skip(1, 0, "p"), Welcome(1, 2, 3.0, 4.0, PROBLEM.model)):
        assert digest(codec.decode(*codec.encode(body))) == digest(body)


def test_one_even_step_with_all_peers_is_lock_step_all_reduce():
    works = {"train": PROBLEM.work(batch_size=8)}
    small = world(peers=4, per_cycle=4, cycles=4, coordinator={"mode": "even", "steps": 1}, works=works)
    end = simulate(small, keep=True)
    published = [e for _, _, effects in end.transcript.kept for e in effects if isinstance(e, Publish)]
    assert [one.version for one in published] == [1, 2, 3, 4]
    w, centre = PROBLEM.model.vector, PROBLEM.data.columns["x"][:32].mean(axis=0)
    for one in published:
        w = w - np.float32(0.1) * (w - centre)
        assert np.abs(one.model.vector - w).max() < 1e-6


def test_deltas_per_step_come_nearer_the_optimum_than_models_where_speeds_and_sizes_differ():
    unlike = quadratics(n=4, dim=7, seed=3, examples=(2, 30))
    best = unlike.loss(unlike.model.replace(unlike.optimum))
    found = {}
    for rule in ("models", "deltas"):
        one = world(per_cycle=4, cycles=40, peer={"rule": rule, "lr": 0.02}, coordinator={"steps": 4})
        plain = unlike.world(dict(one.nodes), placement=one.placement, links=one.links, fleet=quick(4, 4))
        plain = replace(plain, works={**plain.works, "train": unlike.work(lr=0.02, batch_size=32)})
        found[rule] = unlike.loss(simulate(plain).model) - best
    assert 0 <= found["deltas"] < 0.2 * found["models"]


def test_what_was_learnt_outside_the_ring_is_shifted_onto_the_new_mean():
    seen = []

    def watch(state, event, ctx, new, effects):
        if isinstance(event, Gathered) and new.stands > state.stands > 0 and state.shared is None:
            assert new.pending > 0
            trained = event.output["model"].value[0]
            learnt = trained - state.under
            seen.append(np.abs(new.model.vector - new.base.vector - learnt).max())

    end = simulate(world(cycles=6, peer={"rule": "deltas", "stride": 2}, coordinator=DELTAS, watch=watch))
    assert end.reason == "cycles"
    assert len(seen) > 3
    assert max(seen) < 1e-6


# The coordinator, told things by hand


def supervised(cycles=9, **more):
    """A coordinator whose two peers, of 1 s and 2 s per step, have just been planned for."""
    boss = Coordinator(cycles, 2, **more)
    ctx = Context(0.0, "c", 0)
    state, _ = boss.step(boss.init(PROBLEM.model), Started({"coordinator": ("c",), "peer": ("a", "b")}), ctx)
    state, _ = boss.step(state, Received("a", Profile(1.0, 0.0, 3, 10, 1.0)), ctx)
    state, effects = boss.step(state, Received("b", Profile(2.0, 0.0, 3, 10, 1.0)), ctx)
    return boss, state, effects, ctx


def bodies(effects, kind):
    return [e.body for e in effects if isinstance(e, Send) and isinstance(e.body, kind)]


def test_a_pace_that_drifts_for_two_cycles_makes_a_new_plan_and_one_that_jumps_once_does_not():
    boss, state, effects, ctx = supervised()
    assert [(plan.steps, plan.period_s) for plan in bodies(effects, Plan)] == [(20, 20.0), (10, 20.0)]
    for cycle, pace, plans in ((1, 1.5, 0), (2, 1.0, 0), (3, 1.5, 0), (4, 1.5, 1), (5, 1.5, 0)):
        state, _ = boss.step(state, Received("a", Version(cycle, 20.0 * cycle, pace, 1.0)), ctx)
        state, effects = boss.step(state, Received("b", Version(cycle, 10.0 * cycle, 2.0, 1.0)), ctx)
        assert len(bodies(effects, Plan)) == plans
        assert {body.cycle for body in bodies(effects, Select)} == {cycle + 1}
    assert state.counts == {"a": 13, "b": 10}


def test_an_odd_pace_of_who_is_away_counts_once():
    boss, state, _, ctx = supervised()
    state, _ = boss.step(state, Received("a", Version(1, 20.0, 1.0, 1.0)), ctx)
    state, _ = boss.step(state, Received("b", Version(1, 10.0, 3.0, 1.0)), ctx)
    assert state.strayed == {"b": 1}
    for cycle in (2, 3, 4):
        state, _ = boss.step(state, Received("a", Version(cycle, 20.0 * cycle, 1.0, 1.0)), ctx)
        for later in range(1, 6):
            state, _ = boss.step(state, Woke(("cycle", cycle)), replace(ctx, now=1e3 * cycle + 100.0 * later))
    assert state.cycle > 4
    assert (state.plans, state.strayed) == (1, {"b": 1})
    state, _ = boss.step(state, Received("b", Version(state.cycle, 50.0, 3.0, 1.0)), ctx)
    state, _ = boss.step(state, Received("a", Version(state.cycle, 100.0, 1.0, 1.0)), ctx)
    assert state.plans == 2


def test_a_cycle_is_decided_once_whatever_comes_after():
    from fieldfare.algorithms.hadfl.messages import Prepared

    boss, state, effects, ctx = supervised()
    (members,) = {body.members for body in bodies(effects, Select)}
    first, second = members
    state, effects = boss.step(state, Received(first, Prepared(1, 0, "x" * 16, (1.0, 2.0))), ctx)
    (yes,) = bodies(effects, Decided)
    for late in (Skip(1, 0, first), Prepared(1, 0, "y" * 16, (0.0, 0.0)), Skip(1, 5, second)):
        after, effects = boss.step(state, Received(second, late), ctx)
        assert [digest(body) for body in bodies(effects, Decided)] == [digest(yes)]
        assert digest(after.decisions) == digest(state.decisions)


def test_one_survivor_calls_the_cycle_off_and_a_prepared_that_comes_late_is_refused():
    from fieldfare.algorithms.hadfl.messages import Prepared

    boss, state, effects, ctx = supervised()
    first, second = bodies(effects, Select)[0].members
    state, effects = boss.step(state, Received(second, Skip(1, 0, first)), ctx)
    assert [(body.cycle, body.epoch) for body in bodies(effects, Decided)] == [(1, -1)] * 2
    _, effects = boss.step(state, Received(first, Prepared(1, 0, "x" * 16, (1.0, 2.0))), ctx)
    assert [body.epoch for body in bodies(effects, Decided)] == [-1]


def test_weights_that_outgrow_the_sums_restart_the_ring_with_coarser_ones():
    boss, state, effects, ctx = supervised()
    select = bodies(effects, Select)[0]
    _, effects = boss.step(state, Received("a", Skip(1, 0, "a", peak=100.0)), ctx)
    again = bodies(effects, Select)[0]
    assert (again.epoch, again.members) == (1, select.members)
    assert again.step > 50 * select.step


def test_a_peer_that_says_nothing_is_left_out_until_it_reports():
    boss, state, _, ctx = supervised()
    state, _ = boss.step(state, Received("a", Version(1, 20.0, 1.0, 1.0)), ctx)
    for later in range(1, 6):
        state, effects = boss.step(state, Woke(("cycle", 1)), replace(ctx, now=100.0 * later))
        if bodies(effects, Select):
            break
    assert state.alive == ("a",)
    assert bodies(effects, Select)[0].members == ()
    state, effects = boss.step(state, Received("b", Version(1, 10.0, 2.0, 1.0)), ctx)
    assert state.alive == ("a", "b")


def test_reports_in_another_order_do_not_take_a_peer_back():
    boss, state, _, ctx = supervised()
    for body in (Version(1, 20.0, 1.0, 1.0), Version(2, 40.0, 1.0, 1.0)):
        state, _ = boss.step(state, Received("a", body), ctx)
    after, effects = boss.step(state, Received("a", Version(1, 20.0, 1.0, 1.0)), ctx)
    assert after is state
    assert not effects


def test_a_run_in_which_nobody_is_left_comes_to_an_end():
    boss, state, _, ctx = supervised()
    for later in range(1, 100):
        state, effects = boss.step(state, Woke(("cycle", 1)), replace(ctx, now=100.0 * later))
        if any(isinstance(e, Stop) for e in effects):
            break
    assert effects[0].reason == "no peer reports any more"


def test_settings_that_cannot_be_are_refused_in_one_line():
    for wrong in ({"cycles": 0}, {"cycles": 1, "per_cycle": 1}, {"cycles": 1, "slack": 0.5}):
        with pytest.raises(UsageError) as error:
            Coordinator(**wrong)
        assert "\n" not in str(error.value)
    for wrong in ({"cycles": 0}, {"cycles": 1, "blend": 0.0}, {"cycles": 1, "stride": 0}):
        with pytest.raises(UsageError):
            Peer(**wrong)
    assert Stop("cycles").reason == "cycles"
