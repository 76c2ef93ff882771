"""Streams: clients always at work, whoever ends is replaced, and late replies count in the next gather."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fieldfare.algorithms import FedAsync, FedBuff
from fieldfare.core.effects import Run
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Mean
from fieldfare.core.quorum import Quorum, Sample, Staleness
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.drift import Drift
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.network import Network
from fieldfare.fleet.selection import SELECTIONS
from fieldfare.fleet.tasks import DROP_OUT, INTERRUPTED, OK, STALE, TIMEOUT, Tasks, noise_of, phases
from fieldfare.sim import ahead
from fieldfare.sim import stream as stream_module
from fieldfare.sim.ahead import Ahead
from fieldfare.sim.asks import costs
from fieldfare.sim.batch import Executor
from fieldfare.sim.candidates import Candidates
from fieldfare.sim.draw import Selected
from fieldfare.sim.observe import Answered
from fieldfare.sim.population import Population
from fieldfare.sim.simulator import Simulator, World
from fieldfare.sim.stream import Stream, StreamAsk
from fieldfare.store.codec import Codec, registry
from fieldfare.testing import Asking, Echo, Slots, digest, loop, quadratics, simulate
from fieldfare.testing.transcript import Recorded, Transcript

PROBLEM = quadratics(n=12)
MODEL = PROBLEM.model


# How streams are played: system only, every gather kept


@dataclass
class Played:
    """What happened: the gathers, tasks over and at work `[n]`, the stream, when the run ended."""

    world: World
    asks: list[StreamAsk]
    events: list[Gathered]
    stream: Stream
    end_s: float

    @property
    def over(self) -> Tasks:
        return joined([ask.over for ask in self.asks])

    @property
    def running(self) -> dict[str, np.ndarray]:
        slots = np.array([entry[2] for entry in self.stream.heap], np.int64)
        rows = self.stream.table.read(slots)
        return {name: getattr(rows, name) for name in ("client", "base", "serial", "start", "end", "code", "key")}


def joined(parts: list[Tasks]) -> Tasks:
    return Tasks(*(np.concatenate([getattr(part, name) for part in parts]) for name in Tasks.__slots__))


def play(algorithm: Any, n: int, fleet: Fleet, seed: int = 0, examples: Any = None) -> Played:
    """Run `algorithm` on a fleet of `n` devices, nothing trained."""
    examples = np.full(n, 10) if examples is None else examples
    world = World(
        {"central": ("central", algorithm)}, MODEL, Population(n, examples, fleet), PROBLEM.world(algorithm).works, seed
    )  # fmt: skip
    asks: list[StreamAsk] = []
    events: list[Gathered] = []

    def observe(seen: Any) -> None:
        if isinstance(seen, Answered):
            asks.append(seen.ask)
            events.append(seen.event)

    simulator = Simulator(world, None, observe)
    simulator.run()
    (stream,) = simulator.progress.streams.values()
    return Played(world, asks, events, stream, simulator.progress.now)


def check_laws(p: Played, cohort: int, need: int | None, deadline_s: float | None = None, where: Any = None) -> None:
    """All that holds of any stream whose clients are replaced."""
    over, running, fleet = p.over, p.running, p.world.population.fleet
    begun = sum(ask.begun for ask in p.asks)
    assert begun == len(over) + len(running["client"]) == p.stream.serial
    assert sorted([*p.stream.runs]) == sorted({p.stream.number, *running["base"].tolist()})
    check_gathers(p, need, deadline_s)
    client = np.concatenate([over.client, running["client"]])
    start, end = np.concatenate([over.start, running["start"]]), np.concatenate([over.end, running["end"]])
    base = np.concatenate([over.base, running["base"]])
    order = np.lexsort((start, client))
    same = client[order][1:] == client[order][:-1]
    assert (start[order][1:][same] >= end[order][:-1][same]).all(), "a client works twice at the same time"
    issued, due = np.array([a.issued for a in p.asks]), np.array([a.due for a in p.asks])
    assert (start >= issued[base - 1]).all()
    assert (start <= due[base - 1]).all()
    late = base < len(p.asks)
    assert (start[late] < issued[base[late]]).all(), "who begins at the instant of a new version begins from it"
    sessions = fleet.availability
    if sessions is not None:
        begin, until = sessions.session(start, client)
        assert (begin <= start).all()
        assert (end <= until).all()
    if where is not None:
        assert fleet.flags[where][client].all()
    check_busy(p, cohort, client, start, end, where)
    check_account(p, over)


def check_gathers(p: Played, need: int | None, deadline_s: float | None) -> None:
    now = 0.0
    for number, (ask, event) in enumerate(zip(p.asks, p.events, strict=True), 1):
        assert (ask.number, ask.issued) == (number, now)
        over, now = ask.over, ask.due
        assert (over.end >= ask.issued).all()
        assert (over.end <= ask.due).all()
        good = over.outcome == OK
        assert event.clients.tolist() == ask.clients.tolist() == over.client[good].tolist()
        assert ask.staleness.tolist() == event.metrics["staleness"].tolist() == (number - over.base[good]).tolist()
        limit = ask.run.quorum.stale.limit
        assert limit is None or (ask.staleness <= limit).all()
        assert limit is None or ((number - over.base)[over.outcome == STALE] > limit).all()
        told = {"interrupted": INTERRUPTED, "timeout": TIMEOUT, "stale": STALE, "drop-out": DROP_OUT}
        for reason, code in told.items():
            assert list(event.missing.get(reason, ())) == over.client[over.outcome == code].tolist()
        assert set(event.missing) <= set(told)
        assert (ask.bytes_down, ask.bytes_up) == (over.bytes_down.sum(), over.bytes_up.sum())
        replies, end = int(good.sum()), ask.issued + (np.inf if deadline_s is None else deadline_s)
        assert need is None or replies <= need
        if need is not None and replies == need:
            assert ask.due == max(over.end[good].max(), ask.issued)
        else:
            assert ask.due == end or not ask.at_work


def check_busy(p: Played, cohort: int, client: np.ndarray, start: np.ndarray, end: np.ndarray, where: Any) -> None:
    """Never more than `cohort` at work; fewer only where nobody else may begin."""
    fleet, n = p.world.population.fleet, p.world.population.size
    instants = np.unique(np.concatenate([start, end]))
    instants = instants[instants < p.end_s]
    if fleet.availability is not None:
        begin, until = fleet.availability.session(0.0, np.arange(n))
        instants = np.concatenate([instants, begin[(begin > 0) & (begin < p.end_s)], until[until < p.end_s]])
    for t in instants[:400].tolist():
        busy = client[(start <= t) & (end > t)]
        assert len(busy) == len(set(busy.tolist())) <= cohort
        if len(busy) < cohort:
            others = np.setdiff1d(np.arange(n) if where is None else np.flatnonzero(fleet.flags[where]), busy)
            free = others if fleet.availability is None else others[fleet.availability.at(t, others)]
            assert not len(free), f"{len(busy)} of {cohort} at work at {t}, while {free} may"


def check_account(p: Played, over: Tasks) -> None:
    """Times, bytes and joules are those of the parts that were done."""
    fleet, spent = p.world.population.fleet, over.end - over.start
    assert sum(over.by_outcome().values()) == len(over)
    assert sum(over.seconds_by_outcome().values()) == pytest.approx(spent.sum())
    for ask in p.asks:
        t = ask.over
        cost, _ = costs(ask.run, t.client, p.world.population, p.world.works["train"])
        done = (t.outcome != INTERRUPTED) & (t.outcome != TIMEOUT)
        assert (t.bytes_down[done] == np.asarray(cost.bytes_down)[done]).all()
        answered = done & (t.outcome != DROP_OUT)
        assert (t.bytes_up[answered] == np.asarray(cost.bytes_up)[answered]).all()
        assert (t.bytes_up[t.outcome == DROP_OUT] == 0).all()
        for some, whole in ((t.bytes_down, cost.bytes_down), (t.bytes_up, cost.bytes_up)):
            assert ((some >= 0) & (some <= np.asarray(whole) * (1 + 1e-12))).all()
        assert (t.compute_s <= (t.end - t.start) + 1e-9).all()
        assert (t.energy_j >= fleet.compute_w * t.compute_s - 1e-9).all()
        if not fleet.noise:
            whole = phases(fleet, t.client, cost, t.start).whole
            assert np.allclose(t.end[done] - t.start[done], whole[done])
            assert (t.end - t.start <= whole * (1 + 1e-9) + 1e-9).all()
        timeout = ask.run.quorum.timeout_s
        if timeout is not None:
            assert ((t.end - t.start) <= timeout * (1 + 1e-12) + 1e-9).all()
            assert np.allclose((t.end - t.start)[t.outcome == TIMEOUT], timeout)
        else:
            assert not (t.outcome == TIMEOUT).any()


# Worlds


def sessions(draw: st.DrawFn, n: int) -> Availability:
    """Traces of whole seconds that repeat every 60; some devices never come."""
    out = []
    for _ in range(n):
        cuts = sorted(draw(st.sets(st.integers(0, 60), min_size=0, max_size=6)))
        out.append([(cuts[i], cuts[i + 1]) for i in range(0, len(cuts) - 1, 2)])
    assume(any(out))
    return Availability.of(out, period_s=60.0)


def links(n: int) -> Network:
    """Slow links that change, all alike but for their phase."""
    rates = [np.array(pair, np.float32) for pair in ((40, 0), (5, 20))]
    one = Network(np.array([0, 2]), np.array([0.0, 7.0]), *rates, np.array([13.0]))
    return one.take(np.zeros(n, np.int64), (np.arange(n) % 13).astype(np.float32))


@st.composite
def fleets(draw: st.DrawFn, n: int, available: bool = True) -> Fleet:
    whole = draw(st.booleans())  # whole seconds: many ends at one instant
    seconds = np.array(draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)), np.float32)
    overhead: Any = seconds if whole else seconds * np.float32(1.37) + np.float32(0.11)
    more: dict[str, Any] = {"flops_per_s": 1e12 if whole else 300.0, "latency_s": 0.0 if whole else 0.125}
    if draw(st.booleans()):
        more |= {"downlink_bytes_per_s": 40.0, "uplink_bytes_per_s": 10.0, "slow_links": True}
    if draw(st.integers(0, 3)) == 0:
        more["network"] = links(n)
    if draw(st.integers(0, 3)) == 0:
        more["drift"] = Drift(0.8, every_s=7.0)
    if available and draw(st.booleans()):
        more["availability"] = sessions(draw, n)
    return Fleet(
        overhead_s=overhead, noise=draw(st.sampled_from([0.0, 0.0, 0.5])), drop_out=draw(st.sampled_from([0.0, 0.3])),
        flags={"even": np.arange(n) % 2 == 0}, **more,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def soon_in_vain(monkeypatch) -> None:
    monkeypatch.setattr(stream_module, "_IN_VAIN", 300)


RULES = ["uniform", "uniform", *SELECTIONS]
stalenesses = st.builds(
    Staleness, st.sampled_from(["constant", "polynomial", "hinge"]), limit=st.sampled_from([None, None, 0, 1, 4])
)


@st.composite
def plays(draw: st.DrawFn) -> tuple[Played, int, int | None, float | None, str | None]:
    n = draw(st.integers(2, 11))
    fleet = draw(fleets(n))
    where = draw(st.sampled_from([None, None, "even"]))
    cohort = draw(st.integers(1, n if where is None else (n + 1) // 2))
    deadline = draw(st.sampled_from([None, None, 2.0, 17.0]))
    algorithm = FedBuff(
        draw(st.integers(1, 9)), Sample(cohort, where, draw(st.sampled_from(RULES))), draw(st.integers(1, 7)),
        draw(stalenesses), timeout_s=draw(st.sampled_from([None, 5.0])), deadline_s=deadline,
    )  # fmt: skip
    seed = draw(st.integers(0, 999))
    try:
        return play(algorithm, n, fleet, seed), cohort, algorithm.buffer, deadline, where
    except UsageError as error:  # those flagged are never there
        assume("is available after" not in str(error) and "ended in a row without" not in str(error))
        raise


@settings(max_examples=40)
@given(plays())
def test_a_stream_keeps_its_laws_on_any_fleet(played) -> None:
    p, cohort, need, deadline, where = played
    check_laws(p, cohort, need, deadline, where)


@pytest.mark.slow
@settings(max_examples=300)
@given(plays())
def test_a_stream_keeps_its_laws_on_many_fleets(played) -> None:
    p, cohort, need, deadline, where = played
    check_laws(p, cohort, need, deadline, where)


@pytest.mark.parametrize("by", ["uniform", *SELECTIONS])
def test_every_selection_rule_refills_a_stream_over_sessions(by) -> None:
    n = 40
    night = Availability.of([[(i % 50, i % 50 + 45)] for i in range(n)], period_s=100.0)
    fleet = Fleet(overhead_s=(3 + np.arange(n) % 7).astype(np.float32), availability=night, drop_out=0.1, noise=0.2)
    p = play(FedBuff(20, Sample(12, by=by), 6), n, fleet)
    check_laws(p, 12, 6)
    assert (p.over.outcome == INTERRUPTED).any()
    assert len(set(p.over.client.tolist())) > 12


@pytest.mark.parametrize("kind", ["always", "sessions", "rare", "noise", "network", "drift", "flagged", "drop-out"])
def test_a_large_fleet_that_is_tried_by_chance_keeps_the_laws(kind) -> None:
    n, more, where = 9000, {}, None
    if kind in ("sessions", "rare"):
        length = 40 if kind == "sessions" else 2
        more["availability"] = Availability.of([[(i % 50, i % 50 + length)] for i in range(n)], period_s=90.0)
        if kind == "rare":
            more["availability"] = Availability.of([[(i % 50, i % 50 + 40)] * (i < 30) for i in range(n)], 90.0)
    elif kind == "noise":
        more["noise"] = 0.7
    elif kind == "network":
        more["network"] = links(n)
    elif kind == "drift":
        more |= {"drift": Drift(0.8, every_s=7.0), "flops_per_s": 40.0}
    elif kind == "drop-out":
        more["drop_out"] = 0.2
    elif kind == "flagged":
        more["flags"], where = {"even": np.arange(n) % 2 == 0}, "even"
    fleet = Fleet(overhead_s=(3 + np.arange(n) * 7 % 11).astype(np.float32), **more)
    p = play(FedBuff(12, Sample(20, where), 15), n, fleet)
    check_laws(p, 20, 15, None, where)
    assert p.stream.candidates.tracking == (kind == "rare")
    if kind == "drop-out":
        assert 0.1 < (p.over.outcome == DROP_OUT).mean() < 0.3


def test_who_refills_a_stream_is_drawn_alike_by_chance_and_by_tracking() -> None:
    for n in (300, 6000):
        p = play(FedBuff(300, 50, 50), n, Fleet(overhead_s=0.0, flops_per_s=200.0, noise=0.5))
        assert p.stream.candidates.tracking == (n == 300)
        count = np.bincount(p.over.client, minlength=n)
        expect = len(p.over) / n
        chi2 = float(((count - expect) ** 2 / expect).sum())
        assert abs(chi2 - n) < 5 * np.sqrt(2 * n), "neither too uneven, nor too even for chance"


def test_with_devices_in_plenty_as_many_as_asked_are_always_at_work() -> None:
    p = play(FedBuff(30, 7, 3), 50, Fleet(overhead_s=(1 + np.arange(50) * 7 % 11).astype(np.float32)))
    assert len(p.running["client"]) + len(p.asks[-1].over) >= 7
    assert p.over.seconds_by_outcome()["ok"] <= 7 * p.end_s
    busy = sum(p.over.seconds_by_outcome().values()) + (p.end_s - p.running["start"]).sum()
    assert busy == pytest.approx(7 * p.end_s)


def test_ends_come_before_starts_at_one_instant_and_what_begins_then_begins_from_the_new_version() -> None:
    p = play(FedBuff(4, 6, 2), 6, Fleet(overhead_s=2.0, flops_per_s=1e12, downlink_bytes_per_s=1e12,
                                         uplink_bytes_per_s=1e12))  # fmt: skip
    assert [ask.due for ask in p.asks] == pytest.approx([2.0, 2.0, 2.0, 4.0])
    assert [ask.begun for ask in p.asks] == [6, 0, 0, 6]
    assert [ask.staleness.tolist() for ask in p.asks][:3] == [[0, 0], [1, 1], [2, 2]]
    p = play(FedBuff(3, 6, 6, deadline_s=float(p.asks[0].due)), 6, p.world.population.fleet)
    assert [ask.staleness.tolist() for ask in p.asks] == [[0] * 6] * 3


def test_a_version_whose_time_is_over_at_the_instant_of_its_replies_takes_them() -> None:
    fleet = Fleet(overhead_s=2.0, flops_per_s=1e30, downlink_bytes_per_s=1e30, uplink_bytes_per_s=1e30)
    p = play(FedBuff(3, 3, 9, deadline_s=2.0), 3, fleet)
    assert [ask.due for ask in p.asks] == [2.0, 4.0, 6.0]
    assert [len(ask.clients) for ask in p.asks] == [3, 3, 3]
    assert [ask.staleness.max() for ask in p.asks] == [0, 0, 0]


def test_a_task_that_ends_with_its_session_is_whole_and_who_leaves_first_is_interrupted_not_dropped_out() -> None:
    exact = {"flops_per_s": 3e38, "downlink_bytes_per_s": 3e38, "uplink_bytes_per_s": 3e38}
    come = Availability.of([[(0, 30)]] * 3, period_s=100.0)
    p = play(FedBuff(4, 3, 3), 3, Fleet(overhead_s=10.0, availability=come, **exact))
    assert p.over.outcome.tolist() == [OK] * 12
    assert p.asks[2].due == 30.0
    p = play(FedBuff(4, 3, 3), 3, Fleet(overhead_s=20.0, availability=come, drop_out=0.9, **exact), seed=1)
    cut = p.over.start % 100 == 20.0
    assert cut.any()
    assert (p.over.outcome[cut] == INTERRUPTED).all()
    assert {OK, DROP_OUT} >= set(p.over.outcome[~cut].tolist())


@pytest.mark.parametrize("n", [12, 5000])
def test_a_task_takes_the_time_of_the_run_it_began_in(n) -> None:
    fleet = Fleet(overhead_s=(3 + np.arange(n) * 7 % 11).astype(np.float32), flops_per_s=40.0)
    kinds, seen = {k: (1, 1, 6, 2, 6, 6)[k % 6] for k in range(1, 25)}, 0
    runs = tuple(buffered(cohort=8, refill=True, steps=lambda k: kinds[k])(k) for k in kinds)
    p = play(Asking(runs), n, fleet)
    for number, run in enumerate(runs, 1):
        at = np.flatnonzero((p.over.base == number) & (p.over.outcome == OK))
        cost, _ = costs(run, p.over.client[at], p.world.population, p.world.works["train"])
        whole = phases(fleet, p.over.client[at], cost, 0.0)
        seen += len(at) if kinds[number] == 6 else 0
        assert np.allclose(p.over.end[at] - p.over.start[at], whole.whole)
        assert np.allclose(p.over.compute_s[at], whole.compute)
    assert seen > 10


@pytest.mark.parametrize("kind", ["always", "sessions", "noise"])
@pytest.mark.parametrize("deadline", [None, 4.0])
def test_a_stream_goes_the_same_way_whichever_way_it_is_looked_through(monkeypatch, kind, deadline) -> None:
    n, more = 6000, {}
    if kind == "sessions":
        more["availability"] = Availability.of([[(i % 50, i % 50 + 40)] for i in range(n)], period_s=90.0)
    elif kind == "noise":
        more["noise"] = 0.7
    fleet = Fleet(overhead_s=(3 + np.arange(n) * 7 % 11).astype(np.float32), **more)
    algorithm = FedBuff(40, 25, 10, Staleness(limit=2), timeout_s=9.0, deadline_s=deadline)
    quick = play(algorithm, n, fleet)
    monkeypatch.setattr(Candidates, "prepared", lambda self: None, raising=False)
    slow = play(algorithm, n, fleet)
    assert digest([ask.over for ask in quick.asks]) == digest([ask.over for ask in slow.asks])
    assert digest(quick.stream.saved()["candidates"]) == digest(slow.stream.saved()["candidates"])
    check_laws(quick, 25, 10, deadline)


def test_a_client_that_is_not_there_at_the_start_begins_from_the_model_of_when_it_comes() -> None:
    come = Availability.of([[(0, 100)], [(50, 100)], [(50, 100)]], period_s=100.0)
    p = play(FedBuff(8, 3, 1), 3, Fleet(overhead_s=10.0, availability=come))
    assert p.asks[0].begun == 1
    assert p.over.base[p.over.client == 1][0] > 1
    check_laws(p, 3, 1)


def test_a_stream_waits_for_the_next_who_come() -> None:
    come = Availability.of([[(30, 100)], [(50, 100)]], period_s=1000.0)
    p = play(FedBuff(2, 2, 1), 2, Fleet(overhead_s=10.0, availability=come))
    assert p.over.start.tolist() == pytest.approx([30.0, 40.0], abs=1e-2)


def test_a_stream_whose_devices_never_come_again_says_so_in_one_line() -> None:
    come = Availability.of([[(0, 25)], [(0, 25)]])
    with pytest.raises(UsageError, match=r"no device of this fleet is available after 25 s.*repeats") as refusal:
        play(FedBuff(20, 2, 2), 2, Fleet(overhead_s=10.0, availability=come))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("changes", "told"), [
    ({"availability": True}, r"ended in a row without a reply that counts \(301 interrupted\)"),
    ({"timeout_s": 5.0}, r"\(301 timed out\): .* timeout_s=5; make them shorter"),
    ({"stuck": True}, r"took no time at all"),
])  # fmt: skip
def test_a_gather_that_would_never_be_over_is_refused_in_one_line(changes, told) -> None:
    come = Availability.of([[(0, 9)], [(5, 14)]], period_s=20.0)
    fleet = Fleet(overhead_s=10.0, availability=come if "availability" in changes else None)
    quorum = Quorum(2, None, "next", True, timeout_s=changes.get("timeout_s"))
    if "stuck" in changes:
        fleet = Fleet(overhead_s=0.0)
        quorum = Quorum(None, 5.0, "next", True)
    run = Run("echo" if "stuck" in changes else "train", Sample(2), 1, MODEL, quorum)
    with pytest.raises(UsageError, match=told) as refusal:
        simulate(quadratics(n=2).world(Asking((run,)), fleet=fleet))
    assert "\n" not in str(refusal.value)


# Without refilling: rounds whose late replies count in the next


def rounds_of(count: int, quorum: Quorum, **more: Any) -> Asking:
    """An algorithm that asks `count` times, one after the other."""
    on = more.pop("on", Sample(4))
    return Asking(tuple(
        Run("train", on, tag, MODEL, quorum, {"delta": Mean()}, {"round": tag}, key=("train", tag))
        for tag in range(1, count + 1)
    ))  # fmt: skip


def test_rounds_that_do_not_replace_anybody_ask_each_time_as_many_as_they_say() -> None:
    slow = np.array([1, 1, 1, 1, 6, 6, 6, 6, 6, 6, 6, 6], np.float32)
    for fleet, begun in (
        (Fleet(overhead_s=np.arange(12).astype(np.float32) + 1), [4, 4, 4]),
        (Fleet(overhead_s=slow), None),
        (Fleet(overhead_s=2.0), [4, 0, 4, 0, 4, 0, 4, 0]),  # of whom two are enough, at the instant they are asked
    ):
        p = play(rounds_of(8, Quorum(2, late="next")), 12, fleet)
        assert [ask.begun for ask in p.asks][: len(begun or ())] == (begun or [])
        assert all(ask.begun <= 4 for ask in p.asks)
        assert sum(ask.begun for ask in p.asks) == len(p.over) + len(p.running["client"])


def test_a_round_asks_nobody_twice_where_too_few_are_there() -> None:
    come = Availability.of([[(0, 1000)]] * 3 + [[(20, 1000)]] * 3, period_s=1000.0)
    fleet = Fleet(overhead_s=np.array([3, 50, 50, 3, 3, 3], np.float32), availability=come)
    p = play(rounds_of(2, Quorum(1, late="next")), 6, fleet)
    assert p.asks[0].begun == 4
    assert p.asks[1].begun <= 4
    check = np.bincount(p.over.base, minlength=3) + np.bincount(p.running["base"], minlength=3)
    assert (check <= 4).all()


def test_where_clients_are_scarce_a_gather_asks_fewer_and_nobody_twice() -> None:
    runs = tuple(
        Run("train", Sample(3), tag, MODEL, Quorum(tag, late="next"), {"delta": Mean()}, key=("train", tag))
        for tag in (1, 2)
    )
    p = play(Asking(runs), 3, Fleet(overhead_s=np.array([1, 20, 40], np.float32)))
    assert [ask.begun for ask in p.asks] == [3, 1]
    assert p.asks[1].clients.tolist() == [0, 1]
    assert p.asks[1].due == pytest.approx(20.0, abs=0.1)


@st.composite
def scarce(draw: st.DrawFn) -> tuple[Played, int]:
    """Rounds that replace nobody, of nearly everybody there is."""
    n = draw(st.integers(2, 8))
    count = draw(st.integers(max(1, n - 2), n))
    deadline = draw(st.sampled_from([None, 4.0, 30.0]))
    need, timeout = draw(st.sampled_from([None, 1, 2, n])), draw(st.sampled_from([None, 5.0]))
    quorum = Quorum(need, deadline, "next", timeout_s=timeout)
    on = Sample(count, by=draw(st.sampled_from(RULES)))
    try:
        return play(rounds_of(8, quorum, on=on), n, draw(fleets(n)), draw(st.integers(0, 99))), count
    except UsageError as error:
        assume("is available after" not in str(error))
        raise


@settings(max_examples=60)
@given(scarce())
def test_no_gather_asks_a_client_twice_or_one_that_is_at_work(played) -> None:
    p, count = played
    columns = {
        name: np.concatenate([getattr(p.over, name), p.running[name]]) for name in ("client", "base", "start", "end")
    }
    pairs = list(zip(columns["base"].tolist(), columns["client"].tolist(), strict=True))
    assert len(set(pairs)) == len(pairs), "asked twice in one gather"
    begun = np.bincount(columns["base"], minlength=len(p.asks) + 1)[1:]
    assert begun.tolist() == [ask.begun for ask in p.asks]
    assert (begun <= count).all()
    order = np.lexsort((columns["start"], columns["client"]))
    same = columns["client"][order][1:] == columns["client"][order][:-1]
    assert (columns["start"][order][1:][same] >= columns["end"][order][:-1][same]).all()


def test_a_deadline_without_replacing_leaves_the_late_to_the_next_round() -> None:
    slow = np.array([1, 3, 5, 7], np.float32)
    p = play(rounds_of(3, Quorum(deadline_s=4.0, late="next")), 4, Fleet(overhead_s=slow))
    assert [ask.due for ask in p.asks[:2]] == pytest.approx([4.0, 7.0], abs=1e-3)
    assert p.asks[0].clients.tolist() == [0, 1]
    assert p.asks[1].clients.tolist()[2:] == [2, 3]
    assert [ask.staleness.tolist() for ask in p.asks[:2]] == [[0, 0], [0, 0, 1, 1]]


# Saved, loaded, chunked, computed ahead


def opened(stream: Stream, world: World, make: Any, first: int, last: int, now: float, selected: Selected):
    """Gathers `first` to `last` of a stream, told to its selection rule, as digests; and after each what is saved."""
    out, saved = [], []
    for number in range(first, last + 1):
        saved.append((now, copy.deepcopy(stream.saved()), copy.deepcopy(selected.saved())))
        ask = stream.open(make(number), now, world.works, selected)
        now = ask.due
        loss = {"loss": 1.0 + ask.clients % 3}
        event = Gathered(number, {}, 0.0, ask.clients, np.ones(len(ask.clients)), loss)
        selected.observe(ask.run, ask.clients, ask.seconds, event, world.population, now)
        out.append(digest((ask.due, ask.clients, ask.serials, ask.keys, ask.base, ask.over, ask.steps, ask.begun)))
    return out, saved


def world_of(n: int, fleet: Fleet, seed: int = 0) -> World:
    algorithm = FedBuff(1, 1)
    return World({}, MODEL, Population(n, 3 + np.arange(n) % 9, fleet), PROBLEM.world(algorithm).works, seed)


def buffered(by: Any = "uniform", cohort: int = 5, where: str | None = None, refill: bool = True, **config: Any):
    quorum = Quorum(3, 40.0, "next", refill, Staleness(limit=3), 30.0)

    def make(number: int) -> Run:
        more = {key: value(number) for key, value in config.items()}
        more = {key: value for key, value in more.items() if value is not None}
        return Run("train", Sample(cohort, where, by), number, MODEL, quorum, {"delta": Mean()},
                   {"round": number, **more}, key=("train", number))  # fmt: skip

    return make


@pytest.mark.slow
@settings(max_examples=30)
@given(st.data(), st.integers(6, 11), st.booleans())
def test_a_stream_saved_at_any_gather_and_loaded_goes_on_as_if_it_had_not_been(data, n, refill) -> None:
    fleet = data.draw(fleets(n))
    make = buffered(data.draw(st.sampled_from(RULES)), data.draw(st.integers(1, n)), refill=refill)
    world = world_of(n, fleet, data.draw(st.integers(0, 99)))
    check_resumption(world, make, 8)


def check_resumption(world: World, make: Any, last: int) -> None:
    stream, selected = Stream("central", "train", world.population, world.seed), Selected()
    try:
        whole, saved = opened(stream, world, make, 1, last, 0.0, selected)
    except UsageError as error:
        assume("is available after" not in str(error) and "ended in a row without" not in str(error))
        raise
    codec = Codec(registry(StreamAsk))
    for number, (now, kept, rules) in enumerate(saved, 1):
        kept, rules = codec.decode(*copy.deepcopy(codec.encode((kept, rules))))
        again, told = Stream("central", "train", world.population, world.seed), Selected()
        again.load(kept, world.works)
        told.load(rules)
        rest, _ = opened(again, world, make, number, last, now, told)
        assert rest == whole[number - 1 :], f"loaded before gather {number}"
        assert digest(again.saved()["candidates"]) == digest(stream.saved()["candidates"])
        assert sorted((end, serial, client) for end, serial, _, _, client in again.heap) == sorted(
            (end, serial, client) for end, serial, _, _, client in stream.heap
        )


@pytest.mark.parametrize("kind", ["always", "sessions", "rare", "later", "noise", "network", "drift"])
@pytest.mark.sampled(3)
def test_a_large_stream_saved_at_any_gather_and_loaded_goes_on_as_if_it_had_not_been(kind) -> None:
    n, more = 5000, {}
    if kind == "sessions":
        more["availability"] = Availability.of([[(i % 50, i % 50 + 40)] for i in range(n)], period_s=90.0)
    elif kind == "rare":
        more["availability"] = Availability.of([[(i % 50, i % 50 + 40)] * (i < 30) for i in range(n)], 90.0)
    elif kind == "later":  # looked through one by one, until they are many
        more["availability"] = Availability.of([[(0 if i < 15 else 15, 900)] for i in range(n)], 900.0)
    elif kind == "noise":
        more["noise"] = 0.5
    elif kind == "network":
        more["network"] = links(n)
    elif kind == "drift":
        more |= {"drift": Drift(0.8, every_s=7.0), "flops_per_s": 40.0}
    fleet = Fleet(overhead_s=(3 + np.arange(n) * 7 % 11).astype(np.float32), drop_out=0.1, **more)
    check_resumption(world_of(n, fleet), buffered(cohort=20, budget_s=lambda k: 20.0 if k > 4 else None), 20)


def transcript(algorithm: Any, problem: Any = PROBLEM, driver: Any = simulate, **options: Any) -> list[str]:
    fleet = options.pop("fleet", None)
    return driver(problem.world(algorithm, fleet=fleet), **options).transcript.lines()


@pytest.mark.parametrize("enough", [0, 1, 5, 10**6])
@pytest.mark.parametrize("algorithm", [
    FedBuff(9, 8, 3), FedBuff(9, 8, 3, Staleness(limit=1)), FedBuff(5, 8, 8), FedAsync(15, 9, mu=0.1),
    FedBuff(9, Sample(8, by="oort"), 2), FedBuff(9, Sample(8, by="power-of-choice"), 3),
], ids=lambda a: f"{a.name} {a.on.by}")  # fmt: skip
@pytest.mark.sampled(3)
def test_what_is_computed_ahead_changes_no_bit(monkeypatch, algorithm, enough) -> None:
    fleet = Fleet(overhead_s=(1 + np.arange(12) * 7 % 11).astype(np.float32), drop_out=0.2, noise=0.3)
    whole = transcript(algorithm, fleet=fleet, driver=loop)
    monkeypatch.setattr(ahead, "_ENOUGH", enough)
    monkeypatch.setattr(ahead, "_EACH", enough)
    for options in ({}, {"chunk": 1}, {"chunk": 3}, {"workers": 2}):
        assert transcript(algorithm, fleet=fleet, **options) == whole
    monkeypatch.setattr(ahead, "_HELD_BYTES", 2 * 4 * MODEL.size)
    assert transcript(algorithm, fleet=fleet) == whole


@dataclass(frozen=True)
class Counting:
    """A work that notes the key of every task it computes."""

    inner: Any
    seen: Counter[int] = field(default_factory=Counter)

    def __call__(self, cohort):
        self.seen.update(cohort.keys.tolist())
        return self.inner(cohort)

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize("limit", [None, 0, 1, 3])
def test_a_task_is_computed_at_most_once_and_one_known_to_be_too_old_never(limit) -> None:
    fleet = Fleet(overhead_s=(1 + (np.arange(12) * 7 % 11) ** 2).astype(np.float32), drop_out=0.2)
    algorithm = FedBuff(25, 9, 2, Staleness(limit=limit))
    work = Counting(PROBLEM.work())
    asks: list[StreamAsk] = []

    def observe(seen: Any) -> None:
        if isinstance(seen, Answered):
            asks.append(seen.ask)

    end = simulate(PROBLEM.world(algorithm, fleet=fleet, works={"train": work}), observer=observe)
    used = {key for ask in asks for key in ask.keys.tolist()}
    assert set(work.seen.values()) == {1}
    assert used <= set(work.seen)
    (held,) = (one.held for one in end.driver._ahead.values())
    (stream,) = end.driver.progress.streams.values()
    at_work = set(stream.pending().serial.tolist())
    assert set(held) <= at_work
    assert (len(held) > 0) == (limit != 0)
    assert all(row.base is None for one in held.values() for row in (one.rows or {}).values()), (
        "a row holds its neighbours"
    )
    stale = sum(len(ask.missing.get("stale", ())) for ask in asks)
    assert (stale > 0) == (limit is not None)
    assert len(work.seen) <= sum(len(ask.clients) for ask in asks) + stale + len(held)
    if limit == 0:
        assert set(work.seen) == used


@pytest.mark.parametrize("limit", [None, 1])
def test_workers_hold_what_they_compute_ahead_until_its_gather_and_forget_what_is_too_old(monkeypatch, limit) -> None:
    fleet = Fleet(overhead_s=(1 + (np.arange(12) * 7 % 11) ** 2).astype(np.float32))
    world = PROBLEM.world(FedBuff(25, 9, 2, Staleness(limit=limit)), fleet=fleet)
    started: list[Any] = []
    start = Executor.start
    monkeypatch.setattr(Executor, "start", lambda self, request: started.append(request) or start(self, request))
    monkeypatch.setattr(ahead, "_EACH", 3)
    asks: list[StreamAsk] = []
    simulate(world, workers=2, observer=lambda seen: asks.append(seen.ask) if isinstance(seen, Answered) else None)
    segments = [segment for request in started for segment in request.segments]
    held = [serial for one in segments if one.serials is not None for serial in one.serials.tolist()]
    recalled = [serial for one in segments if one.recall is not None for serial in one.recall.serials.tolist()]
    used = [serial for ask in asks for serial in ask.serials.tolist()]
    forgotten = [serial for request in started for serial in request.forget]
    assert len(set(held)) == len(held)
    assert len(set(recalled)) == len(recalled)
    assert set(recalled) == set(held) & set(used)
    assert len(recalled) > (5 if limit else len(used) / 3)
    assert set(forgotten) <= set(held) - set(used)
    assert (len(forgotten) > 0) == (limit == 1)


def test_an_error_of_a_task_computed_ahead_is_told_as_any_other() -> None:
    @dataclass(frozen=True)
    class Failing:
        inner: Any

        def __call__(self, cohort):
            if 7 in cohort.clients:
                raise ValueError("client 7 is broken")
            return self.inner(cohort)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    fleet = Fleet(overhead_s=np.where(np.arange(12) == 7, 500.0, 1.0 + np.arange(12)).astype(np.float32))
    world = PROBLEM.world(FedBuff(90, 12, 2), fleet=fleet, works={"train": Failing(PROBLEM.work())})
    with pytest.raises(ValueError, match="client 7 is broken") as failed:
        simulate(world, workers=2)
    assert "in worker process" in failed.value.__notes__[0]


def test_a_budget_in_seconds_limits_the_steps_of_tasks_in_streams_each_by_its_own_run() -> None:
    fleet = Fleet(overhead_s=(1 + np.arange(12) * 7 % 11).astype(np.float32), flops_per_s=30.0)
    budgets = {k: (None, 14.0, 25.0, None, 14.0)[k % 5] for k in range(1, 26)}
    runs = tuple(
        replace(buffered(cohort=8, budget_s=lambda k: budgets[k])(k), quorum=Quorum(2, None, "next", True))
        for k in budgets
    )
    world = PROBLEM.world(Asking(runs), fleet=fleet)
    asks: list[Any] = []
    whole = simulate(world, observer=lambda seen: asks.append(seen.ask) if isinstance(seen, Answered) else None)
    for ask in asks:
        for number in np.unique(ask.base).tolist():
            at = np.flatnonzero(ask.base == number)
            most = costs(ask.runs[number], ask.clients[at], world.population, world.works["train"])[1]
            if most is None:
                assert ask.steps is None or (ask.steps[at] > 10**6).all()
            else:
                assert ask.steps[at].tolist() == most.tolist()
    limited = [ask.steps is not None and bool((ask.steps < 3).any()) for ask in asks]
    assert any(limited)
    assert loop(world).transcript.lines() == whole.transcript.lines()
    assert simulate(world, chunk=1).transcript.lines() == whole.transcript.lines()


def test_noise_has_mean_one_and_is_a_tasks_own() -> None:
    fleet = Fleet(overhead_s=0.0, flops_per_s=1.0, noise=0.6, downlink_bytes_per_s=1e30, uplink_bytes_per_s=1e30)
    p = play(FedBuff(400, 20, 20), 30, fleet)
    cost = costs(p.asks[0].run, p.over.client, p.world.population, p.world.works["train"])[0]
    factor = (p.over.end - p.over.start) / np.asarray(cost.flops)
    assert abs(np.log(factor).mean() + 0.18) < 5 * 0.6 / np.sqrt(len(factor))
    assert abs(np.log(factor).std() - 0.6) < 0.03
    assert len(set(np.round(factor, 9).tolist())) == len(factor)
    assert np.allclose(p.over.compute_s, p.over.end - p.over.start)
    assert noise_of(replace(fleet, noise=0.0), np.zeros(3, np.uint64)) is None


# What a stream is told of, and refuses


@pytest.mark.parametrize("driver", [simulate, loop])
def test_what_a_stream_cannot_do_is_refused_in_one_line(driver) -> None:
    late = Quorum(2, late="next")
    with pytest.raises(UsageError, match=r"is for samples of devices"):
        driver(PROBLEM.world(Asking((Run("train", np.arange(3), 1, MODEL, late, {"delta": Mean()}),))))
    with pytest.raises(UsageError, match="client state or inputs"):
        driver(PROBLEM.world(Asking((Run("train", Sample(3), 1, MODEL, late, {"delta": Mean()}, state="c"),))))
    with pytest.raises(UsageError, match=r"no work is called 'nothing'"):
        driver(PROBLEM.world(Asking((Run("nothing", Sample(3), 1, MODEL, late),))))


@pytest.mark.parametrize("driver", [simulate, loop])
def test_a_second_gather_of_an_open_stream_is_refused_in_one_line(driver) -> None:
    late = Quorum(2, late="next")
    two = tuple(Run("train", Sample(3), tag, MODEL, late, {"delta": Mean()}) for tag in (1, 2))
    with pytest.raises(UsageError, match=r"while such a Run is open: wait for its answer"):
        driver(PROBLEM.world(Asking(two, together=True)))


def test_streams_of_several_works_go_side_by_side() -> None:
    late = Quorum(2, None, "next", True)
    runs = tuple(
        Run(work, Sample(4), (work, 1), MODEL, late, {leaf: Mean(weighted=False)})
        for work, leaf in (("train", "delta"), ("echo", "id"))
    )
    world = PROBLEM.world(Asking(runs, together=True))
    one, other, forked = simulate(world), loop(world), simulate(world, workers=2)
    assert one.transcript.lines() == other.transcript.lines() == forked.transcript.lines()
    assert set(one.driver.progress.streams) == {"central train", "central echo"}


def test_a_spoilt_reply_is_refused_also_when_it_was_computed_ahead() -> None:
    from fieldfare.testing import Spoilt

    fleet = Fleet(overhead_s=(1 + np.arange(12) * 7 % 11).astype(np.float32))
    world = PROBLEM.world(FedBuff(12, 8, 2), fleet=fleet, works={"train": Spoilt(PROBLEM.work(), (3, 4, 5))})
    end = simulate(world, keep=True)
    events = end.transcript.events(Gathered)
    refused = [event.missing["refused"].tolist() for event in events if "refused" in event.missing]
    assert refused
    assert {one for some in refused for one in some} <= {3, 4, 5}
    assert all(np.isfinite(end.model.vector))
    assert loop(world).transcript.lines() == end.transcript.lines()
    assert simulate(world, workers=2).transcript.lines() == end.transcript.lines()


def test_a_selection_rule_is_told_of_the_later_reply_of_a_client_that_replied_twice() -> None:
    run = buffered("power-of-choice")(1)
    world = world_of(6, Fleet())
    selected = Selected()
    draw = selected.choose(
        "power-of-choice", run, 2, world.population, np.arange(6), lambda ids: ids * 1.0, 0.0, 0, ("a",)
    )
    ids = np.array([1, 1, 4])
    loss = {"loss": np.array([5.0, 2.0, 3.0])}
    event = Gathered(1, {}, 3.0, ids, np.ones(3), loss)
    selected.observe(run, ids, np.array([9.0, 7.0, 8.0]), event, world.population, 10.0)
    (state,) = selected.states.values()
    assert state["loss"][[1, 4]].tolist() == [2.0, 3.0]
    assert np.isinf(state["loss"][[0, 2, 3, 5]]).all()
    assert len(draw) == 2


def test_models_of_bytes_are_told_apart_in_a_stream() -> None:
    from fieldfare.core.folds import Collect
    from fieldfare.core.params import Layout, Params

    @dataclass(frozen=True)
    class Reading(Echo):
        def __call__(self, cohort):
            return replace(super().__call__(cohort), leaves={"read": [cohort.opaque] * cohort.n})

    models = [Params(np.empty(0, np.float32), Layout((), ()), opaque=b"%d" % k) for k in range(6)]
    runs = tuple(
        Run("read", Sample(8), k, models[k], Quorum(3, None, "next", True), {"read": Collect()}) for k in range(6)
    )
    fleet = Fleet(overhead_s=(1 + np.arange(12) * 7 % 11).astype(np.float32))
    world = PROBLEM.world(Asking(runs), fleet=fleet, works={"read": Reading()})
    asks: list[Any] = []
    end = simulate(world, keep=True, observer=lambda s: asks.append(s.ask) if isinstance(s, Answered) else None)
    mixed = 0
    for ask, event in zip(asks, end.transcript.events(Gathered), strict=True):
        told = event.output["read"].value
        last = dict(zip(ask.clients.tolist(), ask.base.tolist(), strict=True))
        assert {c: int(v) + 1 for c, v in told.items()} == last
        mixed += len(set(last.values())) > 1
    assert mixed
    assert loop(world).transcript.lines() == end.transcript.lines()
    assert simulate(world, workers=2).transcript.lines() == end.transcript.lines()


def test_a_stack_of_replies_with_their_ages_is_folded_in_order_of_client() -> None:
    from fieldfare.core.folds import Stack

    fleet = Fleet(overhead_s=(1 + np.arange(12) * 7 % 11).astype(np.float32))
    runs = tuple(
        Run("train", Sample(8), k, MODEL, Quorum(3, None, "next", True), {"delta": Stack()}, {"round": k})
        for k in range(1, 7)
    )
    world = PROBLEM.world(Asking(runs), fleet=fleet)
    end = simulate(world, keep=True)
    for event in end.transcript.events(Gathered):
        factor = Staleness().factor(event.metrics["staleness"].astype(np.int64))
        assert event.output["delta"].weight.tolist() == (event.weights * factor).tolist()
    assert simulate(world, chunk=1).transcript.lines() == loop(world).transcript.lines() == end.transcript.lines()
    assert simulate(world, workers=2).transcript.lines() == end.transcript.lines()


def test_an_observer_of_a_simulated_stream_may_be_recorded() -> None:
    written = Transcript()
    play(Recorded(FedBuff(3, 4, 2), written), 8, Fleet(overhead_s=1.0))
    assert [step.kind for step in written.steps] == ["Started", "Gathered", "Gathered", "Gathered"]


def test_without_training_tasks_are_those_of_a_run_that_trains() -> None:
    fleet = Fleet(overhead_s=(1 + np.arange(12) * 7 % 11).astype(np.float32), drop_out=0.1)
    world = PROBLEM.world(FedBuff(9, 5, 3), fleet=fleet)
    kept: list[list[Any]] = []
    for executor in (None, Executor(world.works, PROBLEM.data, Slots(), 1)):
        kept.append([])
        Simulator(
            world, executor, lambda seen: kept[-1].append(seen.ask.over) if isinstance(seen, Answered) else None
        ).run()
        if executor is not None:
            executor.close()
    assert digest(kept[0]) == digest(kept[1])


def test_values_of_a_gather_of_nobody_are_none() -> None:
    come = Availability.of([[(0, 5)], [(0, 5)]], period_s=100.0)
    p = play(FedBuff(2, 2, 2, deadline_s=20.0), 2, Fleet(overhead_s=10.0, availability=come))
    assert [len(ask.clients) for ask in p.asks] == [0, 0]
    assert p.events[0].missing["interrupted"].tolist() == [0, 1]
    assert Ahead().gather(p.asks[0], p.stream, None).weight == 0.0
