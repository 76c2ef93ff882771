"""A device does one task at a time: who is late is left out of the next draw, or begins when its task is over."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fieldfare.algorithms import CutOff, EvaluateOnClients, FedAsync, FedAvg, FedBuff, SemiSync, TiFL
from fieldfare.core.effects import Run
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Mean
from fieldfare.core.quorum import ALL, Everyone, Quorum, Sample
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.selection import SELECTIONS
from fieldfare.sim.at_work import NOBODY, AtWork, skipping
from fieldfare.sim.draw import Selected, cohort
from fieldfare.sim.observe import Answered
from fieldfare.sim.population import Population
from fieldfare.sim.simulator import Simulator, World
from fieldfare.testing import Asking, digest, loop, quadratics, simulate

PROBLEM = quadratics(n=6)
SLOW = np.array([4.0, 1.0, 3.0, 1.0, 6.0, 2.0], np.float32)
both = pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])


def asked(runs: tuple[Run, ...], driver: Any = simulate, together: bool = False, **fleet: Any) -> list[Any]:
    """(when, who counted, who is missing) of each of `runs`, on six devices that take `SLOW` seconds."""
    made = Fleet(**{"overhead_s": SLOW, **fleet})
    end = driver(PROBLEM.world(Asking(runs, together), fleet=made), keep=True)
    return [
        (step.now, event.clients.tolist(), {reason: ids.tolist() for reason, ids in event.missing.items()})
        for step, (_, event, _) in zip(end.transcript.steps, end.transcript.kept, strict=True)
        if isinstance(event, Gathered)
    ]


def ask(tag: int, on: Any, quorum: Quorum = ALL) -> Run:
    return Run("echo", on, tag, quorum=quorum, reduce={"id": Mean()})


@both
def test_who_is_late_is_left_out_of_the_next_draw(driver) -> None:
    first, second = asked((ask(1, Sample(6), Quorum(need=3)), ask(2, Sample(3))), driver)
    assert first == (2.0, [1, 3, 5], {"late": [0, 2, 4]})
    assert second == (4.0, [1, 3, 5], {})


@both
@pytest.mark.parametrize("on", [Everyone(), np.array([4, 1, 0]), Sample(6)], ids=["everyone", "named", "sample"])
def test_who_is_at_work_begins_when_that_is_over(driver, on) -> None:
    """Devices 0, 2 and 4 are at work until 4, 3 and 6."""
    _, (now, clients, _) = asked((ask(1, Everyone(), Quorum(need=3)), ask(2, on)), driver)
    assert (now, clients) == (12.0, [0, 1, 4] if isinstance(on, np.ndarray) else [0, 1, 2, 3, 4, 5])


@both
def test_who_is_at_work_and_away_after_that_begins_when_it_comes_again(driver) -> None:
    sessions = Availability.of([[(0, 100)]] * 4 + [[(0, 6), (20, 90)], [(0, 100)]], 100.0)
    runs = (ask(1, Everyone(), Quorum(need=3)), ask(2, Everyone()))
    _, (now, clients, _) = asked(runs, driver, availability=sessions)
    assert (now, len(clients)) == (26.0, 6)


@both
def test_who_has_not_begun_when_the_gather_is_over_is_not_asked_any_more(driver) -> None:
    """So a slow device does not fall ever further behind. Devices 0, 2 and 4 are at work until 4, 3 and 6."""
    runs = tuple(ask(tag, Everyone(), Quorum(need=3)) for tag in (1, 2, 3))
    assert asked(runs, driver)[1:] == [
        (4.0, [1, 3, 5], {"late": [2], "unavailable": [0, 4]}),
        (6.0, [1, 3, 5], {"late": [0], "unavailable": [2, 4]}),
    ]


@both
def test_who_is_at_work_beyond_the_deadline_is_unavailable(driver) -> None:
    quorum = Quorum(deadline_s=2.5)
    _, second = asked((ask(1, Everyone(), quorum), ask(2, Everyone(), quorum)), driver)
    assert second == (5.0, [1, 3, 5], {"late": [0, 2], "unavailable": [4]})


@both
def test_asks_that_are_open_at_once_share_no_device_in_time(driver) -> None:
    runs = (ask(1, Sample(3)), ask(2, Sample(3)), ask(3, np.array([4])))
    told = asked(runs, driver, together=True)
    (one, two), last = [who for _, who, _ in told if len(who) == 3], [now for now, who, _ in told if who == [4]]
    assert sorted(one + two) == [0, 1, 2, 3, 4, 5]
    assert last == [12.0]


@both
def test_evaluations_neither_take_devices_nor_wait_for_them(driver) -> None:
    algorithm = FedAvg(5, Sample(6), quorum=Quorum(need=2))
    plain = driver(PROBLEM.world(algorithm, fleet=Fleet(overhead_s=SLOW)))
    measured = driver(PROBLEM.world(EvaluateOnClients(algorithm, on=Sample(4)), fleet=Fleet(overhead_s=SLOW)))
    assert measured.model.vector.tobytes() == plain.model.vector.tobytes()


# The law


def quorums(draw: st.DrawFn) -> Quorum:
    return draw(st.sampled_from([
        ALL, Quorum(need=1), Quorum(deadline_s=4.0), Quorum(timeout_s=5.0), Quorum(1, 8.0, timeout_s=3.0)
    ]))  # fmt: skip


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Rounds and streams of every kind, on unlike devices that may come and go."""
    n = draw(st.integers(3, 8))
    traces = []
    for _ in range(n):
        cuts = sorted(draw(st.sets(st.integers(0, 40), max_size=6)))
        traces.append([(cuts[i], cuts[i + 1]) for i in range(0, len(cuts) - 1, 2)])
    come = draw(st.booleans())
    assume(not come or sum(map(bool, traces)) >= 1)
    fleet = Fleet(
        overhead_s=(1 + np.arange(n) * 7 % 5).astype(np.float32), noise=draw(st.sampled_from([0.0, 0.4])),
        availability=Availability.of(traces, 40.0) if come else None, flops_per_s=200.0,
        drop_out=draw(st.sampled_from([0.0, 0.3])), kind=np.arange(n) % 2, kinds=("slow", "fast"),
    )  # fmt: skip
    count, quorum = draw(st.integers(1, n)), quorums(draw)
    sample = Sample(count, by=draw(st.sampled_from(["uniform", *SELECTIONS])))
    need, deadline = draw(st.integers(1, count)), draw(st.sampled_from([None, 6.0]))
    algorithm = draw(st.sampled_from([
        FedAvg(5, sample, quorum=quorum), FedAvg(5, Everyone(), quorum=quorum), TiFL(5, count, quorum=quorum),
        SemiSync(5, max(count // 2, 1), over=1.4, deadline_s=deadline, by=sample.by),
        CutOff(5, count, budget_s=3.0, by_class={"fast": 2.0}, quorum=quorum),
        Asking(tuple(ask(tag, sample, quorum) for tag in range(5)), draw(st.booleans())),
        FedBuff(5, sample, need, deadline_s=6.0, timeout_s=quorum.timeout_s), FedAsync(5, sample, timeout_s=9.0),
        Asking(tuple(ask(tag, sample, Quorum(need, 6.0, "next")) for tag in range(5))),
    ]))  # fmt: skip
    return quadratics(n=n, seed=draw(st.integers(0, 99))).world(algorithm, fleet=fleet)


@settings(max_examples=80, deadline=None)
@given(worlds())
def test_no_device_has_two_tasks_at_once(world) -> None:
    found: list[Any] = []

    def observe(seen: Any) -> None:
        if isinstance(seen, Answered) and (tasks := seen.ask.tasks(world.population.fleet)) is not None:
            found.append(tasks)

    Simulator(world, None, observe).run()
    client, start, end = (
        np.concatenate([getattr(tasks, name) for tasks in found] or [np.empty(0)])
        for name in ("client", "start", "end")
    )
    order = np.lexsort((end, start, client))
    client, start, end = client[order], start[order], end[order]
    same = client[1:] == client[:-1]
    assert (start[1:][same] >= end[:-1][same]).all()


@settings(max_examples=25, deadline=None)
@given(worlds())
def test_both_drivers_know_of_the_same_devices_at_work(world) -> None:
    one, other = simulate(world), loop(world)
    assert one.transcript.lines() == other.transcript.lines()
    assert digest(one.driver.progress.selected.states) == digest(other.driver.selected.states)


# Who is kept in mind


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20)), max_size=12), st.integers(0, 20))
def test_those_at_work_are_kept_once_each_until_their_last_task_is_over(tasks, now) -> None:
    busy = NOBODY
    for one in tasks:
        busy = busy.joined(np.array([one[0]]), np.array([float(one[1])]))
    busy, left = busy.at(float(now)), {i: max(u for j, u in tasks if j == i) for i, until in tasks if until > now}
    assert dict(zip(busy.ids.tolist(), busy.until.tolist(), strict=True)) == left
    assert busy.ids.tolist() == sorted(left)
    ids = np.array([7, 0, 3, 9])
    assert busy.begin(float(now), ids).tolist() == [left.get(i, now) for i in ids.tolist()]
    assert busy.free(ids).tolist() == [i not in left for i in ids.tolist()]
    some = np.array([1, 3, 4, 8])
    assert some[busy.among(some)].tolist() == [i for i in some.tolist() if i in left]


@given(st.sets(st.integers(0, 30)))
def test_numbers_are_counted_past_those_taken(taken) -> None:
    free = [i for i in range(31) if i not in taken]
    assert skipping(np.array(sorted(taken), np.int64), np.arange(len(free))).tolist() == free


@pytest.mark.parametrize("where", [None, "odd"])
def test_those_who_are_not_at_work_are_drawn_alike(where) -> None:
    n = 24
    people = Population(n, np.ones(n, np.int64), Fleet(flags={"odd": np.arange(n) % 2 == 1}))
    busy = AtWork().joined(np.arange(0, n, 3), np.full(n // 3, 9.0)).at(0.0)
    count = np.zeros(n)
    for tag in range(2000):
        run = Run("echo", Sample(4, where=where), tag)
        ids, start = cohort(run, people, 0, 0.0, lambda ids: np.ones(len(ids)), Selected(), busy)
        assert (start == 0.0).all()
        count[ids] += 1
    free = np.array([i for i in range(n) if i % 3 and (where is None or i % 2)])
    assert count.sum() == count[free].sum()
    expected = 4 * 2000 / len(free)
    chi2 = float(((count[free] - expected) ** 2 / expected).sum()) / (1 - 4 / len(free))
    assert abs(chi2 - (len(free) - 1)) < 5 * np.sqrt(2 * len(free))


@pytest.mark.parametrize("come", [False, True])
def test_late_devices_among_ten_million_make_no_list_of_all(come) -> None:
    n = 10_000_000
    row = np.zeros(n, np.int32)
    sessions = Availability(np.array([0, 1]), np.array([0.0]), np.array([90.0]), 100.0, row) if come else None
    people = Population(n, np.broadcast_to(np.int64(1), (n,)), Fleet(availability=sessions))
    late = np.random.default_rng(0).choice(n, 1000, replace=False)
    tracemalloc.start()
    busy = AtWork().joined(late, np.full(1000, 50.0)).at(10.0)
    ids, _ = cohort(Run("echo", Sample(5000), 1), people, 0, 10.0, lambda ids: np.ones(len(ids)), Selected(), busy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(ids.tolist())) == 5000
    assert not set(ids.tolist()) & set(late.tolist())
    assert peak < 16e6


def test_a_run_in_which_nobody_is_late_keeps_nobody_in_mind() -> None:
    late: list[int] = []

    def observe(seen: Any) -> None:
        if isinstance(seen, Answered):
            late.append(len(simulator.progress.at_work))

    for quorum, expected in ((ALL, 0), (Quorum(need=4), 2)):
        late.clear()
        world = PROBLEM.world(FedAvg(3, Sample(6), quorum=quorum), fleet=Fleet(overhead_s=SLOW))
        simulator = Simulator(world, None, observe)
        simulator.run()
        assert late[0] == expected
        assert max(late) <= 2
