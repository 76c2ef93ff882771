"""Rings of deltas: nothing is lost, the draw is no bias, fewer bytes travel, and who holds as many commits holds the
same bits."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.algorithms.hadfl.agreed import delta_weights, drawn, model_weights, shares, step_factor
from fieldfare.algorithms.hadfl.coordinator import Coordinator
from fieldfare.algorithms.hadfl.draw import Table, chances
from fieldfare.algorithms.hadfl.member import enter, on_ack, on_tick
from fieldfare.algorithms.hadfl.messages import (
    Ack,
    Backup,
    Behind,
    Broadcast,
    Ping,
    Plan,
    Pong,
    Probe,
    Profile,
    Select,
    Skip,
    Version,
    Whole,
)
from fieldfare.algorithms.hadfl.nodes import decentralised_fedavg, nodes, placed
from fieldfare.algorithms.hadfl.peer import Peer
from fieldfare.algorithms.hadfl.periods import reach
from fieldfare.algorithms.hadfl.ring import Frame, hops, levels, quantise, serial_mean, step_of
from fieldfare.algorithms.hadfl.warmup import link
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Publish, Run, Send, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered, Joined, Left, Received, Started
from fieldfare.fleet.fleet import Fleet
from fieldfare.report.draws import draws_of
from fieldfare.sim.simulator import Links, size_of
from fieldfare.testing import checks, digest, loop, quadratics, simulate
from fieldfare.testing.checks import Checked

PROBLEM = quadratics(n=5, dim=7, examples=(8, 8))
UNLIKE = quadratics(n=4, dim=7, seed=3, examples=(2, 30))
WAYS = [
    {}, {"wire": "int8"}, {"overlap": True}, {"wire": "int8", "overlap": True}, {"per_cycle": 2, "turns": True},
    {"per_cycle": 2, "by_age": True, "wire": "int8"}, {"per_cycle": 3, "overlap": True, "wire": "int16"},
    {"per_cycle": 2, "stride": 2, "turns": True}, {"keep_warmup": True, "wire": "int8"},
]  # fmt: skip
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(f"{k}={v}" for k, v in way.items()) or "plain")
PEER = Peer(9, rule="deltas")
PEERS = {"checks", "overlap", "stride", "counted", "keep_warmup", "probe_bytes", "lr", "evaluate"}


def world(peers=4, cycles=6, problem=PROBLEM, watch=None, per_cycle=None, links=None, steps=4, speeds=(3, 3, 1, 1, 2),
          happenings=(), seed=0, **way):  # fmt: skip
    """`peers` of unlike speed; the settings of `way` go to the role that has them."""
    per_cycle = per_cycle or peers
    peer = Peer(
        cycles, batch_size=4, rule="deltas", per_cycle=per_cycle, **{k: v for k, v in way.items() if k in PEERS}
    )
    boss = {"floor_s": 0.2, "steps": steps} | {k: v for k, v in way.items() if k not in PEERS}
    made = nodes(peers, peer, Coordinator(cycles, per_cycle, **boss))
    if watch is not None:
        made |= {name: (role, Checked(one, watch)) for name, (role, one) in made.items() if role == "peer"}
    fleet = Fleet(
        flops_per_s=np.array(speeds, np.float32)[: problem.data.n_clients] * np.float32(1e3), downlink_bytes_per_s=1e30,
        uplink_bytes_per_s=1e30, overhead_s=0.0,
    )  # fmt: skip
    return problem.world(
        made, placement=placed(peers), fleet=fleet, links=links or Links(0.001, 1e5), happenings=happenings, seed=seed
    )


def said(end, kind):
    return [
        (node, e.to, e.body)
        for node, _, effects in end.transcript.kept
        for e in effects
        if isinstance(e, Send) and isinstance(e.body, kind)
    ]


def states(end):
    return {name: state for name, state in end.driver.progress.states.items() if name != "coordinator"}


class Bases:
    """What every peer's base was after each number of commits, and how often it was seen: `bytes[commits][peer]`."""

    def __init__(self):
        self.bytes = defaultdict(dict)

    def __call__(self, state, event, ctx, new, effects):
        if new.base is not None and new.steps:
            known = self.bytes[new.commits].setdefault(ctx.me, new.base.vector.tobytes())
            assert known == new.base.vector.tobytes()

    def agree(self):
        return all(len(set(found.values())) == 1 for found in self.bytes.values())


# Weights


def select_of(names, members, count, cycle=4, **more):
    predicted = tuple(float(7 * (i + 1) % 11) for i in range(len(names)))
    return Select(cycle, 0, tuple(members), tuple(names), predicted, 2.0**-20, 1.0, False, 5.0, count=count, **more)


@pytest.mark.parametrize(("k", "count"), [(2, 2), (4, 2), (5, 3), (5, 4)])
@pytest.mark.parametrize("more", [{}, {"ages": (1.0, 6.0, 2.0, 3.0, 1.0)}, {"examples": (5.0, 1.0, 9.0, 4.0, 2.0)}])
def test_by_inverse_chances_the_expected_step_over_all_draws_is_the_mean_over_all_peers(k, count, more):
    names = [f"p{i}" for i in range(k)]
    more = {key: value[:k] for key, value in more.items()}
    rng = np.random.default_rng(k)
    deltas = {name: rng.standard_normal(9).astype(np.float32) for name in names}
    steps = {name: 3 + 2 * i for i, name in enumerate(names)}
    plain = select_of(names, names, count, **more)
    weight = np.exp(plain.table.weights)
    expected, total = np.zeros(9), 0.0
    for order in permutations(range(k), count):
        chance, left = 1.0, weight.sum()
        for i in order:
            chance, left = chance * weight[i] / left, left - weight[i]
        members = [names[i] for i in order]
        select = replace(plain, members=tuple(members))
        factor = delta_weights(select, "inverse")
        offered = [
            np.float32(factor[name] * step_factor(select, steps[name], 1, "inverse")) * deltas[name] for name in members
        ]
        expected += chance * serial_mean(offered, 2.0**-20)
        total += chance
    share = shares(plain)
    mean = sum(share[name] * deltas[name] * 5.0 / steps[name] for name in names)
    assert total == pytest.approx(1.0)
    assert np.abs(expected - mean).max() < 1e-5


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_counted_once_every_step_of_every_peer_enters_once_whatever_is_drawn(rounds):
    names = ("a", "b", "c", "d")
    rng = np.random.default_rng(rounds)
    pairs = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
    for draws in product(pairs, repeat=rounds):
        waiting, steps, cycles = {n: np.zeros(3) for n in names}, dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        entered, learnt = np.zeros(3), np.zeros(3)
        for cycle, members in enumerate((*draws, names), 1):
            select = select_of(names, members, len(members), cycle, examples=(1.0, 2.0, 3.0, 4.0))
            for i, name in enumerate(names):
                delta = rng.standard_normal(3)
                waiting[name], steps[name], cycles[name] = waiting[name] + delta, steps[name] + 2 + i, cycles[name] + 1
                learnt += shares(select)[name] * delta * 5.0 / (2 + i)
            factor = delta_weights(select, "once")
            for name in members:
                scale = factor[name] * step_factor(select, steps[name], cycles[name], "once")
                entered += scale * waiting[name] / len(members)
                waiting[name], steps[name], cycles[name] = np.zeros(3), 0, 0
        assert entered == pytest.approx(learnt, abs=1e-9)


def test_models_weigh_alike_or_by_examples():
    select = select_of("abcd", "db", 2)
    assert model_weights(select) == {"d": 1.0, "b": 1.0}
    assert model_weights(replace(select, examples=(1.0, 1.0, 5.0, 3.0))) == pytest.approx({"d": 1.5, "b": 0.5})


# Wires


@given(st.integers(2, 8), st.integers(0, 40), st.sampled_from(["int8", "int16"]), st.integers(0, 9))
def test_sums_of_short_integers_fit_and_are_within_half_a_step_of_the_mean(n, size, wire, seed):
    rng = np.random.default_rng(seed)
    vectors = [rng.standard_normal(size).astype(np.float32) for _ in range(n)]
    peak = max([float(np.abs(v).max(initial=0.0)) for v in vectors])
    step = step_of(wire, peak, n)
    wide = sum(quantise(v, step, wire, n).astype(np.int64) for v in vectors)
    assert np.abs(wide).max(initial=0) <= n * levels(wire, n) <= np.iinfo(wire).max
    mean = serial_mean(vectors, step, wire)
    assert np.abs(mean - wide * step / n).max(initial=0.0) < 1e-6
    assert np.abs(mean - np.mean(vectors, axis=0)).max(initial=0.0) <= 0.5001 * step + 1e-6


def test_a_ring_too_long_for_eight_bits_is_refused_in_one_line():
    with pytest.raises(UsageError, match="at most 42 members"):
        Coordinator(3, 50, wire="int8")
    for peer, boss in ((Peer(3), Coordinator(3, wire="int8")),
                       (Peer(3, rule="deltas", counted="inverse"), Coordinator(3, turns=True))):  # fmt: skip
        with pytest.raises(UsageError):
            nodes(4, peer, boss)
    for wrong in ({"pace": 0.0}, {"pace": 1.5}, {"least": 0}):
        with pytest.raises(UsageError):
            Coordinator(3, **wrong)
    with pytest.raises(UsageError, match="use rule='deltas'"):
        Peer(3, overlap=True)


@pytest.mark.parametrize(("wire", "width"), [("int8", 1), ("int16", 2), ("int32", 4)])
@pytest.mark.parametrize("per_cycle", [2, 3, 4])
def test_bytes_of_a_cycle_are_those_of_the_formula(wire, width, per_cycle):
    end = simulate(world(cycles=3, per_cycle=per_cycle, wire=wire, backup_every=2), keep=True)
    selects = {body.cycle: body for _, _, body in said(end, Select)}
    sent, model = defaultdict(int), PROBLEM.model.size
    for node, _, body in said(end, Frame):
        assert body.payload.nbytes in (width * (model // per_cycle), width * -(-model // per_cycle))
        assert size_of(body) == body.payload.nbytes + size_of(replace(body, payload=body.payload[:0]))
        sent[body.cycle, node] += body.payload.nbytes
    for cycle, select in selects.items():
        total = sum(sent[cycle, name] for name in select.members)
        assert total == hops(per_cycle) * model * width
        assert {name for at, name in sent if at == cycle} == set(select.members)
        told = [body for _, _, body in said(end, Broadcast) if body.cycle == cycle]
        assert [body.vector.nbytes for body in told] == [width * model] * (4 - per_cycle)
    assert [body.vector.nbytes for _, _, body in said(end, Backup)] == [4 * model] * 2
    assert end.driver.progress.bytes_between == sum(size_of(body) for _, _, body in said(end, object))


# Whole runs


@ways
def test_what_was_learnt_is_in_the_base_or_still_with_its_peer(way):
    learnt, warm = defaultdict(lambda: np.zeros(7)), {}
    runs = {}

    def watch(state, event, ctx, new, effects):
        if isinstance(event, Gathered) and state.stage == "train":
            learnt[ctx.me] += event.output["model"].value[0].astype(np.float64) - runs[ctx.me]
        if isinstance(event, Gathered) and state.stage == "warm":
            warm[ctx.me] = event.output["model"].value[0]
        for effect in effects:
            if isinstance(effect, Run):
                runs[ctx.me] = effect.model.vector

    end = simulate(world(cycles=7, watch=watch, **way), keep=True)
    counts = {to: body.steps for _, to, body in said(end, Plan)}
    mean = sum(counts.values()) / len(counts)
    start = np.mean(list(warm.values()), axis=0) if "keep_warmup" in way else PROBLEM.model.vector
    moved, commits = np.zeros(7), max(state.commits for state in states(end).values())
    for name, state in states(end).items():
        own = state.model.vector.astype(np.float64) - state.under
        own -= 0.0 if state.shared is None else state.shared
        moved += (learnt[name] - own) * (mean / counts[name]) / 4
    assert commits == (8 if "keep_warmup" in way else 7)
    bases = [state.base.vector for state in states(end).values() if state.commits == commits]
    assert np.abs(bases[0] - (start + moved)).max() < 2e-6
    assert np.abs(moved).max() > 0.1


@ways
def test_who_holds_as_many_commits_holds_the_same_bits(way):
    bases = Bases()
    end = simulate(world(cycles=7, watch=bases, **way))
    assert end.reason == "cycles"
    assert bases.agree()
    full = [len(found) for found in bases.bytes.values()]
    assert sum(size == 4 for size in full) >= (4 if "per_cycle" in way or "stride" in way else 7)


@ways
def test_a_second_run_gives_the_same_bits_and_another_seed_others(way):
    one, other = simulate(world(**way), keep=True), simulate(world(**way), keep=True)
    assert digest(one.model) == digest(other.model)
    assert [(n, digest(e)) for n, e, _ in one.transcript.kept] == [(n, digest(e)) for n, e, _ in other.transcript.kept]
    assert digest(one.model) != digest(simulate(world(seed=1, **way)).model)


@pytest.mark.parametrize("way", [WAYS[3], WAYS[5]], ids=["all, int8, overlap", "two by age, int8"])
def test_the_laws_of_one_run(way):
    small = world(peers=3, cycles=2, **way)
    for law in (checks.pure, checks.total, checks.storable, checks.deaf_to_duplicates, checks.onward, checks.conserved):
        law(small)
    checks.same_everywhere(world(peers=3, cycles=2, **way))


@pytest.mark.slow
@pytest.mark.parametrize("way", [{}, {"wire": "int8"}, {"overlap": True}, {"per_cycle": 2, "turns": True}])
def test_it_comes_near_the_optimum_of_unlike_clients(way):
    best, start = UNLIKE.loss(UNLIKE.model.replace(UNLIKE.optimum)), UNLIKE.loss(UNLIKE.model)
    one = world(problem=UNLIKE, cycles=90, weigh="examples", lr=0.01, **way)
    found = UNLIKE.loss(simulate(replace(one, works={**one.works, "train": UNLIKE.work(lr=0.01, batch_size=32)})).model)
    assert found - best < 0.02 * (start - best)


def test_training_does_not_wait_for_the_ring_where_they_overlap():
    slow = Links(0.05, 2e3)
    waits = {}
    for overlap in (False, True):
        end = simulate(world(cycles=8, overlap=overlap, links=slow, slack=4.0), keep=True)
        waits[overlap] = [step.now for step in end.transcript.of("peer/0") if step.kind == "Gathered"][-1]
        assert [e.version for _, _, es in end.transcript.kept for e in es if isinstance(e, Publish)] == list(
            range(1, 9)
        )
    assert waits[True] < 0.8 * waits[False]


def test_who_comes_back_is_told_the_base_by_a_peer_and_holds_what_the_others_hold():
    bases = Bases()
    gone = [(6.0, Left("peer/1"), ("peer/1",)), (9.0, Joined("peer/1"), ("peer/1",))]
    end = simulate(world(cycles=20, watch=bases, happenings=gone, wire="int8", backup_every=7), keep=True)
    assert end.reason == "cycles"
    assert bases.agree()
    (asked,) = {node for node, _, _ in said(end, Behind)}
    assert asked == "peer/1"
    assert said(end, Whole)
    commits = {name: state.commits for name, state in states(end).items()}
    assert len(set(commits.values())) == 1
    assert commits["peer/1"] >= 18


@pytest.mark.slow
@pytest.mark.parametrize("way", [{}, {"by_age": True}], ids=["bell", "age"])
def test_draws_of_a_whole_run_are_as_frequent_as_their_chances(way):
    end = simulate(world(cycles=300, per_cycle=2, steps=1, lr=0.01, **way), keep=True)
    records = [body.record() for body in {b.cycle: b for _, _, b in said(end, Select)}.values()]
    found = draws_of(records)
    assert len(records) == 300
    assert found.drawn.sum() == 600
    assert found.p > 0.001
    assert abs(found.drawn - found.expected).max() < 4.0 * np.sqrt(found.variance.max())


def test_by_turns_nobody_waits_for_two_blocks_in_a_whole_run():
    end = simulate(world(peers=5, cycles=40, per_cycle=2, steps=1, turns=True), keep=True)
    selects = {body.cycle: body for _, _, body in said(end, Select)}
    assert all(drawn(body, 2, 0) for body in selects.values())
    for start in range(1, 40, 3):
        block = [name for cycle in range(start, min(start + 3, 41)) for name in selects[cycle].members]
        assert len(set(block)) == 5 or start + 3 > 41


# Pace and patience


@pytest.mark.parametrize(
    ("took", "then"), [(8.0, None), (7.9, None), (4.0, 4), (2.0, 8), (6.0, 1), (0.4, 40)],
    ids=["no time left", "not even a step", "as planned", "twice as fast", "slower", "ten times as fast"],
)  # fmt: skip
def test_a_peer_whose_speed_changes_takes_the_steps_that_still_fit_in_the_period(took, then):
    peer, ctx = Peer(9, rule="deltas", checks=2), Context(0.0, "a", 0)
    state = replace(
        peer.init(PROBLEM.model), stage="train", cycle=1, steps=8, period_s=8.0, serial=1, under_way=4, left=4
    )
    done = Gathered(("train", 1), {}, 8.0, np.array([0]), np.ones(1), {})
    state, out = peer.step(state, done, replace(ctx, now=took))
    runs = [e.config["steps"] for e in out if isinstance(e, Run)]
    assert runs == ([] if then is None else [then])
    assert state.stage == ("wait" if then is None else "train")
    assert state.pace == took / 4


def test_with_checks_and_steady_speeds_everybody_keeps_to_the_plan():
    for often in (1, 2, 3):
        end = simulate(world(cycles=4, steps=8, checks=often), keep=True)
        plans = {to: body.steps for _, to, body in said(end, Plan)}
        for name, steps in plans.items():
            runs = [e for node, _, es in end.transcript.kept for e in es if node == name and isinstance(e, Run)]
            assert sum(run.config["steps"] for run in runs[4:]) == 4 * steps
            assert len(runs[4:]) == 4 * often


def test_a_neighbour_in_an_earlier_ring_says_that_it_lives():
    state = replace(PEER.init(PROBLEM.model), stage="ring", cycle=3, inside=3, period_s=5.0, peers=("a", "b"))
    _, (ack,) = PEER.step(state, Received("b", Probe(4, 0, 0)), Context(0.0, "a", 0))
    assert (ack.to, ack.body.cycle, ack.body.due_s) == ("b", 4, 5.0)
    assert PEER.step(state, Received("b", Probe(2, 0, 0)), Context(0.0, "a", 0)) == (state, ())


def test_who_waits_for_one_that_lives_asks_less_and_less_often():
    select = select_of("ab", "ab", 2)
    member, out = enter(1, replace(select, hop_s=1.0, ack_s=4.0), "a", np.ones(6, np.float32), 0.0, "boss", 0, ())
    waits = []
    for _ in range(9):
        (wake,) = [e for e in out if isinstance(e, Wake)]
        waits.append(wake.after)
        if member.probed and not member.acked:
            member, out = on_ack(member, "b", Ack(4, 0.0))
        else:
            member, out = on_tick(member, member.timer)
    assert waits == [1.0, 4.0, 1.0, 4.0, 2.0, 4.0, 4.0, 4.0, 8.0]
    assert [type(e.body) for e in out if isinstance(e, Send)] == [Probe]
    _, out = on_tick(member, member.timer)
    assert [(type(e.body), e.to) for e in out if isinstance(e, Send)] == [(Skip, "boss")]


# Negotiation


def test_the_mean_of_the_warm_up_is_the_common_start():
    warm, first = {}, {}

    def watch(state, event, ctx, new, effects):
        if isinstance(event, Gathered) and state.stage == "warm":
            warm[ctx.me] = event.output["model"].value[0]
        for effect in effects:
            if isinstance(effect, Run) and new.stage == "train" and ctx.me not in first:
                first[ctx.me] = effect.model.vector

    for rule in ("deltas", "models"):
        warm.clear(), first.clear()
        plain = world(cycles=2, keep_warmup=True, watch=watch)
        if rule == "models":
            peer = Peer(2, batch_size=4, per_cycle=4, keep_warmup=True)
            made = nodes(4, peer, Coordinator(2, 4, floor_s=0.2, steps=4))
            made |= {name: (role, Checked(one, watch)) for name, (role, one) in made.items() if role == "peer"}
            plain = replace(plain, nodes=made)
        end = simulate(plain, keep=True)
        assert {start.tobytes() for start in first.values()} == {first["peer/0"].tobytes()}
        assert np.abs(first["peer/0"] - np.mean(list(warm.values()), axis=0)).max() < 1e-6
        assert np.abs(first["peer/0"] - PROBLEM.model.vector).max() > 0.01
        assert [e.version for _, _, es in end.transcript.kept for e in es if isinstance(e, Publish)] == [1, 2]


def test_a_probe_goes_both_ways_and_finds_the_link():
    end = simulate(world(cycles=2, probe_bytes=4000, links=Links(0.25, 8e3)), keep=True)
    assert len(said(end, Ping)) == len(said(end, Pong)) == 8
    for _, _, profile in said(end, Profile):
        assert profile.latency_s == pytest.approx(0.25, abs=0.01)
        assert profile.bytes_per_s == pytest.approx(8e3, rel=0.01)
    select = next(body for _, _, body in said(end, Select))
    assert select.hop_s > 3 * 0.25
    assert link((1.0, 1.0), 10) == (0.5, float("inf"))
    assert link((1.0,), 10) == (0.0, 0.0)


def test_a_neighbour_that_does_not_answer_delays_no_profile_for_ever():
    peer, ctx = Peer(3, warmup=2, probe_bytes=10), Context(0.0, "a", 0)
    state, out = peer.step(peer.init(PROBLEM.model), Started({"coordinator": ("c",), "peer": ("a", "b")}), ctx)
    assert [type(e.body) for e in out if isinstance(e, Send)] == [Ping]
    for serial in (1, 2):
        done = Gathered(("train", serial), {}, 8.0, np.array([0]), np.ones(1), {})
        state, out = peer.step(state, done, replace(ctx, now=float(serial)))
    (wake,) = out
    state, out = peer.step(state, checks.Woke(wake.tag), replace(ctx, now=9.0))
    assert [type(e.body) for e in out] == [Profile]
    assert out[0].body.bytes_per_s == 0.0
    assert state.stage == "idle"


# The coordinator, told things by hand


def planned(peers=("a", "b", "c"), model=PROBLEM.model, bytes_per_s=0.0, **more):
    """A coordinator whose peers, of 1, 2, ... seconds per step and 40 steps per epoch, have just been planned for."""
    boss, ctx = Coordinator(9, len(peers), rule="deltas", **more), Context(0.0, "boss", 0)
    state, _ = boss.step(boss.init(model), Started({"coordinator": ("boss",), "peer": peers}), ctx)
    for i, name in enumerate(peers, 1):
        profile = Profile(float(i), 0.0, 3, 40, 0.5, 10.0 * i, 0.0, bytes_per_s)
        state, out = boss.step(state, Received(name, profile), ctx)
    return boss, state, out, ctx


def bodies(effects, kind):
    return [e.body for e in effects if isinstance(e, Send) and isinstance(e.body, kind)]


def test_a_period_is_as_short_as_the_ring_allows():
    for bytes_per_s, pace, expected in ((1e9, 0.2, 15.0), (1.0, 0.2, 120.0), (2.0, 0.5, 39.0), (1.0, None, 120.0)):
        _, state, out, _ = planned(pace=pace, bytes_per_s=bytes_per_s)
        # 7 numbers of 4 bytes through a ring of 3: 4 hops of 28 / 3 bytes
        assert state.period_s == expected
        assert [plan.steps for plan in bodies(out, Plan)] == [int(expected // c) for c in (1.0, 2.0, 3.0)]
    _, state, _, _ = planned(pace=0.5, bytes_per_s=2.0, wire="int8")
    assert state.period_s == 15.0


def test_a_mean_delta_is_worth_a_mean_steps_cycle_and_no_more_than_the_reach():
    even = [0.25] * 4
    assert reach([88, 44, 44, 22], even, None) == 49.5
    assert reach([88, 44, 44, 22], even, 9.0) == pytest.approx((88**2 + 2 * 44**2 + 22**2) / 198)
    assert reach([220, 22, 22, 22], even, 1.75) == pytest.approx(1.75 * 4 / (3 / 22 + 1 / 220))
    assert reach([66, 22], [0.25, 0.75], 9.0) == pytest.approx((0.25 * 66**2 + 0.75 * 22**2) / 33)
    for most, expected in ((None, 22.0 / 3), (9.0, (144 + 36 + 16) / 22)):
        _, state, out, _ = planned(steps=4, reach=most)
        assert sorted(state.counts.values()) == [4, 6, 12]
        assert bodies(out, Select)[0].mean_steps == pytest.approx(expected)
    with pytest.raises(UsageError):
        Coordinator(3, reach=0.5)


def test_the_unit_of_short_sums_takes_the_largest_change_to_the_last_level():
    _, _, out, _ = planned(wire="int8", weigh="examples", steps=4)
    select = bodies(out, Select)[0]
    largest = 0.5 * select.mean_steps * 3 * 30.0 / 60.0
    assert select.step * levels("int8", 3) == pytest.approx(largest)
    assert select.wire == "int8"
    assert select.examples == (10.0, 20.0, 30.0)


def test_the_dead_is_left_out_of_what_is_drawn_already_until_it_reports():
    boss, state, _, ctx = planned(("a", "b", "c", "d"))
    for name in "abcd":
        state, out = boss.step(state, Received(name, Version(1, 10.0, 1.0, 0.5)), ctx)
    assert {body.cycle for body in bodies(out, Select)} == {2}
    ring = state.rings[1]
    dead = ring.members[0]
    state, out = boss.step(state, Received(ring.members[1], Skip(1, 0, dead)), ctx)
    again = {body.cycle: body for body in bodies(out, Select)}
    assert sorted(again) == [1, 2]
    assert all(body.epoch == 1 and dead not in body.members and len(body.members) == 3 for body in again.values())
    assert dead not in state.alive
    for name in sorted(set("abcd") - {dead}):
        state, out = boss.step(state, Received(name, Version(2, 20.0, 1.0, 0.5)), ctx)
    (third,) = {body.cycle: body for body in bodies(out, Select)}.values()
    assert third.cycle == 3
    assert dead not in third.names
    state, _ = boss.step(state, Received(dead, Version(3, 30.0, 1.0, 0.5)), ctx)
    assert dead in state.alive


def test_decentralised_fedavg_can_weigh_by_examples():
    made = decentralised_fedavg(4, 3, 2, weigh="examples")
    assert made["coordinator"][1].weigh == "examples"
    select = Select(1, 0, ("a", "b"), ("a", "b"), (1.0, 1.0), 1.0, 1.0, False, examples=(1.0, 3.0))
    assert chances(Table(1, 2, ("a", "b"), (1.0, 1.0))) == {"a": 1.0, "b": 1.0}
    assert model_weights(select) == {"a": 0.5, "b": 1.5}


def test_a_peer_that_has_missed_a_commit_holds_the_next_until_it_has_it():
    peer, ctx = Peer(3, rule="deltas"), Context(0.0, "a", 0)
    state, _ = peer.step(peer.init(PROBLEM.model), Started({"coordinator": ("c",), "peer": ("a", "b")}), ctx)
    state = replace(state, stage="train", cycle=3, steps=2, under=PROBLEM.model.vector)
    one = np.arange(7, dtype=np.int32)
    second = Broadcast(2, 9.0, one, 2, 0.5, 2)
    late, _ = peer.step(state, Received("b", second), ctx)
    assert (late.commits, list(late.held)) == (0, [2])
    both, _ = peer.step(late, Received("b", Broadcast(1, 9.0, 4 * one, 1, 0.5, 2)), ctx)
    assert (both.commits, both.held) == (2, {})
    assert both.base.vector == pytest.approx(PROBLEM.model.vector + 5 * one * 0.25)
    whole, _ = peer.step(late, Received("b", Whole(1, 1, PROBLEM.model.vector + np.float32(1.0))), ctx)
    assert (whole.commits, whole.applied) == (2, 2)
    assert whole.base.vector == pytest.approx(PROBLEM.model.vector + 1.0 + one * 0.25)
    for other in (Broadcast(1, 9.0, one[:3], 1, 0.5, 2), Whole(0, 0, one.astype(np.float32)), Behind(0)):
        after, out = peer.step(state, Received("b", other), ctx)
        assert after is state
        assert not out
    assert loop is not None
