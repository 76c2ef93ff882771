"""Rings of unlike widths: each coordinate is the mean over the members that have it, whatever happens to the ring."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fieldfare as ff
from fieldfare.algorithms.hadfl.agreed import covering
from fieldfare.algorithms.hadfl.holding import State
from fieldfare.algorithms.hadfl.messages import Broadcast, Select
from fieldfare.algorithms.hadfl.parts import heard_in_part, merged_in_part
from fieldfare.algorithms.hadfl.ring import Frame, hops, step_for
from fieldfare.algorithms.hadfl.session import begin, receive
from fieldfare.algorithms.hadfl.widths import Widths, widths_of
from fieldfare.assembly import assemble
from fieldfare.core.effects import Publish, Send
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.fleet.fleet import Fleet
from fieldfare.sim.sizes import size_of
from fieldfare.testing import Crash, checks, digest, loop, simulate
from fieldfare.testing.checks import Checked
from fieldfare.work.submodel import MultiRate, Prefix, RandomWindow, Rolling, TopNorm, needs, plan, submodels

DATA = replace(ff.synthetic(clients=4, classes=5, features=16, seed=3, min_examples=16), test=None)
NET = ff.mlp(16, 12, 8, 5)
FAMILY = submodels(NET, (1, 0.5, 0.25))
RINGS = {
    "hadfl": lambda **more: ff.HADFL(4, per_cycle=2, **more),
    "hadfl of all": lambda **more: ff.HADFL(4, per_cycle=None, **more),
    "pacedring": lambda **more: ff.PacedRing(4, **more),
    "pacedring of two, 32 bits": lambda **more: ff.PacedRing(4, per_cycle=2, wire="int32", **more),
    "pacedring, overlap": lambda **more: ff.PacedRing(4, overlap=True, **more),
    "pacedring, inverse": lambda **more: ff.PacedRing(4, per_cycle=2, draw="age", counted="inverse", **more),
    "decentralised": lambda **more: ff.DecentralisedFedAvg(3, **more),
    "all-reduce": lambda **more: ff.AllReduce(3, **more),
}
rings = pytest.mark.parametrize("name", list(RINGS))


def job(algorithm, model=FAMILY, lr=0.1, speed=1e6, **more):
    fleet = Fleet(np.array([3, 3, 1, 1], np.float32) * np.float32(speed), 1e6, 1e6, 0.0)
    steps = None if isinstance(algorithm, ff.AllReduce) else 5
    training = ff.Training(lr=lr, batch_size=4, steps=steps)
    simulated = ff.Simulated(fleet, workers=1, links=ff.Links(0.001, 1e5))
    return ff.Job(model, DATA, algorithm, training, simulated=simulated, **more)


def ran(algorithm, **more):
    return job(algorithm, **more).run(None, progress=False)


class Parts:
    """A view of given index sets: client i has `sets[i]`."""

    def __init__(self, *sets):
        self.sets = [np.array(sorted(one), np.int64) for one in sets]

    def plan(self, clients):
        return np.asarray(clients)

    def index(self, level):
        return self.sets[level]

    def layout(self, level):
        return Layout(("w",), ((len(self.sets[level]),),))


def ring_of(n, step, examples=()):
    names = tuple(f"p{i}" for i in range(n))
    return Select(3, 0, names, names, (1.0,) * n, step, 1.0, False, examples=examples)


def go_round(vectors, view, rule="models", examples=()):
    """Every member's session after all frames, and the frames; a vector is of the whole model, zero where not had."""
    size = len(vectors[0])
    ring = ring_of(len(vectors), step_for(max(np.abs(v).max(initial=0) for v in vectors) * 4, len(vectors)), examples)
    cover = covering(ring, Widths(view, len(vectors)), ring.members, size, rule)
    sessions, wires, sent = {}, deque(), []
    for name, vector in zip(ring.members, vectors, strict=True):
        part = vector if cover is None else vector[cover.where]
        sessions[name], out = begin(7, ring, name, part, cover)
        wires += [(sessions[name].after, frame) for frame in out]
        sent += [(name, frame) for frame in out]
    while wires:
        to, frame = wires.popleft()
        sessions[to], out = receive(sessions[to], frame)
        wires += [(sessions[to].after, one) for one in out]
        sent += [(to, one) for one in out]
    return sessions, sent, cover, ring


sets = st.integers(1, 14).flatmap(
    lambda size: st.tuples(
        st.just(size), st.lists(st.sets(st.integers(0, size - 1)), min_size=2, max_size=6)
    )
)  # fmt: skip


@given(sets, st.integers(0, 9))
def test_every_member_holds_the_mean_over_those_that_have_each_coordinate(found, seed):
    size, had = found
    dice = np.random.default_rng(seed)
    vectors = [np.zeros(size, np.float32) for _ in had]
    for vector, where in zip(vectors, had, strict=True):
        vector[sorted(where)] = dice.standard_normal(len(where))
    sessions, sent, cover, ring = go_round(vectors, Parts(*had))
    covered = sorted(set().union(*had))
    assert cover is None or cover.where.tolist() == covered
    whole = np.rint(np.array(vectors, np.float64) / ring.step).astype(np.int64)[:, covered]
    counts = np.array([sum(at in one for one in had) for at in covered])
    expected = (whole.sum(0) * ring.step / np.maximum(counts, 1)).astype(np.float32)
    for session in sessions.values():
        assert session.result.tobytes() == expected.tobytes()
    assert len(sent) == len(had) * hops(len(had))
    true = [np.mean([v[at] for v, one in zip(vectors, had, strict=True) if at in one]) for at in covered]
    assert np.allclose(expected, true, atol=1e-6)


@given(sets, st.lists(st.integers(1, 9), min_size=6, max_size=6))
def test_by_examples_each_coordinate_is_the_weighted_mean_over_those_that_have_it(found, examples):
    size, had = found
    weights = [float(one) for one in examples[: len(had)]]
    dice, n = np.random.default_rng(1), len(had)
    values = np.where([[at in one for at in range(size)] for one in had], dice.standard_normal((n, size)), 0.0)
    factors = [n * w / sum(weights) for w in weights]
    for rule in ("models", "deltas"):
        vectors = [(f * v).astype(np.float32) for f, v in zip(factors, values, strict=True)]
        sessions, _, cover, _ = go_round(vectors, Parts(*had), rule, tuple(weights))
        where = np.arange(size) if cover is None else cover.where
        behind = [sum(w for w, one in zip(weights, had, strict=True) if at in one) for at in where]
        expected = [sum(w * v[at] for w, v in zip(weights, values, strict=True)) / b
                    for at, b in zip(where, behind, strict=True)]  # fmt: skip
        assert np.allclose(sessions["p0"].result, expected, atol=1e-5)


def test_a_frame_holds_what_somebody_in_its_sum_has_and_says_how_many():
    view = Parts(range(12), range(4), range(12))
    _, sent, cover, _ = go_round([np.ones(12, np.float32), np.zeros(12, np.float32), np.ones(12, np.float32)], view)
    quarter = [frame for name, frame in sent if name == "p1"]
    assert [(frame.hop, len(frame.payload), frame.counts) for frame in quarter] == [
        (0, 0, (0, 1)), (1, 4, (1, 2)), (2, 4, (2, 3)), (3, 4, (2, 3))
    ]  # fmt: skip
    assert cover.bits == (0b101, 0b111)


@pytest.mark.parametrize("change", [{"counts": (2, 2)}, {"counts": ()}, {"payload": np.zeros(4, np.int32)}])
def test_a_frame_that_counts_otherwise_changes_nothing(change):
    from fieldfare.algorithms.hadfl.ring import seal

    view, vectors = Parts(range(8), range(2)), [np.ones(8, np.float32), np.zeros(8, np.float32)]
    _, sent, cover, ring = go_round(vectors, view)
    mine, _ = begin(7, ring, "p0", vectors[0][cover.where], cover)
    frame = next(frame for name, frame in sent if name == "p1")
    assert (len(frame.payload), frame.counts) == (0, (0, 1))
    assert receive(mine, seal(replace(frame, **change)))[0] is mine
    assert receive(mine, frame)[0].hop == 1


@rings
def test_rate_one_for_everyone_is_the_ring_without_a_view_to_the_bit(name):
    one, plain = ran(RINGS[name](view=FAMILY.view(assign=(0,)))), ran(RINGS[name](), model=NET)
    assert one.model.vector.tobytes() == plain.model.vector.tobytes()
    for what in ("virtual_s", "bytes_between"):
        assert one.summary.get(what) == plain.summary.get(what)


@rings
def test_what_nobody_has_stays_as_it_was_and_the_rest_is_trained(name):
    view = FAMILY.view(assign=(1, 2))
    start, end = NET.init(0).vector, ran(RINGS[name](view=view)).model.vector
    had = np.zeros(len(start), bool)
    had[view.index(1)] = True
    assert end[~had].tobytes() == start[~had].tobytes()
    assert (end[had] != start[had]).mean() > 0.05


@rings
def test_zero_training_changes_no_bit(name):
    found = ran(RINGS[name](view=FAMILY.view()), lr=0.0).model.vector
    start = NET.init(0).vector
    assert np.abs(found - start).max() <= 1e-6 * np.abs(start).max()
    if name.startswith("paced"):
        assert found.tobytes() == start.tobytes()


def watched(algorithm, watch, **more):
    """The job's world, whose peers are watched."""
    world = assemble(job(algorithm, **more)).world
    return replace(world, nodes={n: (r, Checked(a, watch) if r == "peer" else a) for n, (r, a) in world.nodes.items()})


def test_a_committed_mean_is_that_of_the_models_that_entered_each_where_it_was_trained():
    view, entered, after = FAMILY.view(assign=(0, 1, 2, 1)), defaultdict(dict), defaultdict(dict)

    def watch(state, event, ctx, new, effects):
        if new.member is not None and state.member is None:
            entered[new.member.ring.cycle][ctx.me] = (new.model.vector, new.member.ring.step)
        for effect in effects:
            if isinstance(effect, Publish):
                after[effect.version] = (state.model.vector, effect.model.vector)

    simulate(watched(ff.HADFL(3, per_cycle=None, view=view), watch))
    assert sorted(entered) == sorted(after) == [1, 2, 3]
    for cycle, models in entered.items():
        total, count = np.zeros(NET.layout.size, np.int64), np.zeros(NET.layout.size, np.int64)
        step = next(iter(models.values()))[1]
        for name, (vector, _) in models.items():
            index = view.index(int(view.plan(np.array([int(name[5:])]))[0]))
            total[index] += np.rint(vector[index].astype(np.float64) / step).astype(np.int64)
            count[index] += 1
        assert count.max() == 4
        mean = (total * step / count).astype(np.float32)
        assert after[cycle][1].tobytes() == mean.tobytes()


def test_all_devices_hold_the_same_base_where_deltas_travel_and_small_parts_are_sent_by_nobody_else():
    ends = {}

    def watch(state, event, ctx, new, effects):
        ends[ctx.me] = (new.commits, new.base.vector.tobytes())

    simulate(watched(ff.PacedRing(4, per_cycle=2, view=FAMILY.view(assign=(0, 1, 2, 2))), watch))
    assert len(set(ends.values())) == 1
    assert next(iter(ends.values()))[0] == 4


def test_what_is_sent_is_counted_byte_by_byte_and_less_than_whole_models():
    def bytes_of(view):
        seen = []

        def watch(state, event, ctx, new, effects):
            seen.extend(e.body for e in effects if isinstance(e, Send))

        end = simulate(watched(ff.DecentralisedFedAvg(2, view=view), watch), keep=True)
        told = [e.body for _, _, effects in end.transcript.kept for e in effects if isinstance(e, Send)]
        assert end.driver.progress.bytes_between == sum(size_of(body) for body in told)
        return sum(body.payload.nbytes for body in seen if isinstance(body, Frame))

    whole, mixed, small = (bytes_of(FAMILY.view(assign=one)) for one in ((0,), (0, 2, 2, 2), (2,)))
    assert whole == 2 * 4 * hops(4) / 4 * 4 * NET.layout.size
    assert small == 2 * 4 * hops(4) / 4 * 4 * len(FAMILY.view().index(2))
    assert small < mixed < whole


def test_smaller_parts_are_trained_sooner():
    whole, small = (
        ran(ff.DecentralisedFedAvg(4, view=FAMILY.view(assign=(at,))), speed=1e4).summary["virtual_s"] for at in (0, 2)
    )
    assert small < 0.5 * whole


@pytest.mark.parametrize("name", ["hadfl of all", "pacedring", "pacedring of two, 32 bits"])
@pytest.mark.parametrize("at", ["before", "performed"])
@pytest.mark.sampled(3)
def test_a_member_that_dies_in_the_ring_leaves_the_others_with_the_same_bits(name, at):
    for step in (9, 14, 19, 24):
        applied = defaultdict(dict)

        def watch(state, event, ctx, new, effects, applied=applied):
            if new.decided is not state.decided and new.decided.epoch >= 0 and state.member is not None:
                member = state.member
                if new.decided.digest == member.session.digest and new.decided.epoch == member.ring.epoch:
                    applied[new.decided.cycle][ctx.me] = member.session.result.tobytes()

        world = watched(RINGS[name](view=FAMILY.view(assign=(0, 1, 2, 1))), watch)
        end = loop(world, crashes=[Crash("peer/1", step, at, 1e9)])
        assert end.reason == "cycles"
        assert end.driver.now < 1e9
        assert 4 in applied
        assert all(len(set(found.values())) == 1 for found in applied.values())


@pytest.mark.parametrize("name", ["hadfl", "pacedring"])
def test_message_by_message_it_is_the_same_to_the_bit(name):
    world = assemble(job(RINGS[name](view=FAMILY.view()))).world
    assert loop(world).transcript.lines() == simulate(world).transcript.lines()


@pytest.mark.parametrize("name", ["hadfl", "pacedring", "pacedring, overlap"])
def test_what_peers_hold_can_be_stored_and_a_crash_changes_no_bit(name):
    world = assemble(job(RINGS[name](view=FAMILY.view()))).world
    checks.storable(world)
    whole = digest(simulate(world).model)
    assert digest(loop(world, crashes=[Crash("peer/2", 12, "journaled", 0.0)]).model) == whole


def test_means_of_some_bands_are_taken_each_where_it_is_the_newest():
    widths = Widths(Parts(range(6), range(4), range(2)), 3)
    model = Params.pack({"w": np.zeros(6)})
    state = State(model, peers=("a", "b", "c"))
    small = Broadcast(3, 30.0, np.full(2, 3, np.float32), behind=(0.0, 0.0, 2.0))
    order = [sorted(levels) for levels, _ in widths.bands]
    assert order == [[0], [0, 1], [0, 1, 2]]
    whole, old = Broadcast(2, 20.0, np.full(6, 2, np.float32)), Broadcast(1, 10.0, np.full(6, 1, np.float32))
    for told in ((small, whole, old), (whole, old, small), (old, small, whole)):
        one = state
        for body in told:
            one = heard_in_part(one, body, widths)
        assert [body.cycle for body in one.partial] == [2, 3]
        after = merged_in_part(one, widths, 1, 0.5)
        assert after.model.vector.tolist() == [1.5, 1.5, 1.0, 1.0, 2.0, 2.0]
        assert (after.applied, after.fresh, after.version) == (3, (2, 2, 3), 15.0)
        assert heard_in_part(after, old, widths) is after
    late = heard_in_part(merged_in_part(heard_in_part(state, small, widths), widths, 2, 0.5), whole, widths)
    assert merged_in_part(late, widths, 2, 0.5).model.vector.tolist() == [1.5, 1.5, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("rule", [Rolling(), RandomWindow(), RandomWindow(each=True), TopNorm(), MultiRate()])
def test_parts_that_would_move_are_refused_in_one_line(rule):
    for method in (ff.HADFL, ff.PacedRing, ff.DecentralisedFedAvg, ff.AllReduce):
        with pytest.raises(UsageError, match="the same part in every cycle") as refusal:
            method(3, view=FAMILY.view(rule))
        assert "\n" not in str(refusal.value)
    assert widths_of(None, 2, "HADFL") is None
    assert widths_of(FAMILY.view(Prefix()), 2, "HADFL") is not None


def test_parts_that_the_job_plans_from_its_fleet_are_those_of_the_plan():
    family, training = submodels(ff.mlp(16, 64, 32, 5), (1, 0.5, 0.25)), ff.Training(lr=0.1, batch_size=4, steps=5)
    needed = [need.cost.memory_bytes for need in needs(family, training)]
    fleet = Fleet(1e6, 1e6, 1e6, 0.0, memory_bytes=np.array([*(1.2 * one for one in needed), 1e6]))
    found = plan(family, fleet, training)
    assert found.assign.tolist() == [0, 1, 2, 0]
    one, other = (
        ff.Job(family, DATA, ff.HADFL(3, view=view), training, simulated=ff.Simulated(fleet, workers=1)).run(
            None, progress=False
        )
        for view in (found.view(), family.fitting())
    )
    assert one.model.vector.tobytes() == other.model.vector.tobytes()
    small = Fleet(1e6, 1e6, 1e6, 0.0, memory_bytes=np.array([1e6, 1e6, 1e6, 1.0]))
    with pytest.raises(UsageError, match="HADFL trains on every device"):
        ff.Job(family, DATA, ff.HADFL(3, view=family.fitting()), training, simulated=ff.Simulated(small)).run(
            None, progress=False
        )


def test_a_run_is_recorded_and_every_level_learns(tmp_path):
    digits = ff.data.digits(clients=4, partition=ff.iid())
    family = submodels(ff.mlp(64, 24, 10), (1, 0.5))
    algorithm = ff.PacedRing(12, view=family.view())
    found = ff.Job(family, digits, algorithm, ff.Training(lr=0.2, batch_size=16, steps=20)).run(
        tmp_path, progress=False
    )
    assert found.final["accuracy"] > 0.7
    assert found.final["accuracy@1/2"] > 0.7
