"""Rounds over availability: who is there is asked, the next who come are waited for, and sessions cut tasks short."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fieldfare.algorithms import CutOff, FedAvg, SemiSync, TiFL
from fieldfare.core.effects import Run
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Mean
from fieldfare.core.quorum import ALL, Everyone, Quorum, Sample
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.pool import Reported
from fieldfare.fleet.selection import SELECTIONS
from fieldfare.fleet.tasks import DROP_OUT, INTERRUPTED, LATE, OK, TIMEOUT
from fieldfare.sim.observe import Answered
from fieldfare.sim.population import Population
from fieldfare.sim.simulator import Simulator, World
from fieldfare.testing import Asking, digest, loop, quadratics, simulate
from fieldfare.testing.checks import conserved, deaf_to_duplicates, onward, pure, same_everywhere, total

PROBLEM = quadratics(n=6)
SLOW = np.array([4.0, 1.0, 3.0, 1.0, 6.0, 2.0], np.float32)
both = pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])


def come(*sessions: list[tuple[float, float]], period_s: float = 100.0) -> Availability:
    return Availability.of(sessions, period_s)


def gathered(run: Run, sessions: Availability, driver=simulate, **fleet: Any) -> tuple[Gathered, float]:
    """The one `Gathered` of `run` on six devices that take `SLOW` seconds, and when it came."""
    made = Fleet(**{"overhead_s": SLOW, "availability": sessions, **fleet})
    end = driver(PROBLEM.world(Asking((run,)), fleet=made), keep=True)
    (event,) = end.transcript.events(Gathered)
    return event, end.transcript.steps[-1].now


def ask(on: Any = None, quorum: Quorum = ALL) -> Run:
    return Run("echo", Everyone() if on is None else on, 1, quorum=quorum, reduce={"id": Mean()})


def told(event: Gathered) -> dict[str, list[int]]:
    return {reason: ids.tolist() for reason, ids in event.missing.items()}


ALWAYS = [(0, 100)]


@both
def test_a_sample_takes_those_who_are_there(driver) -> None:
    event, now = gathered(ask(Sample(3)), come([], ALWAYS, [], ALWAYS, [], ALWAYS), driver)
    assert (event.clients.tolist(), now) == ([1, 3, 5], 2.0)


@both
def test_a_sample_waits_for_the_next_who_come(driver) -> None:
    """But asks those no more who come when it is over: device 4, at 30."""
    sessions = come([(40, 90)], ALWAYS, [(20, 90)], ALWAYS, [(30, 90)], [])
    event, now = gathered(ask(Sample(4)), sessions, driver)
    assert (event.clients.tolist(), now) == ([1, 2, 3, 4], 36.0)
    event, now = gathered(ask(Sample(4), Quorum(need=3)), sessions, driver)
    assert (event.clients.tolist(), now, told(event)) == ([1, 2, 3], 23.0, {"unavailable": [4]})


@both
def test_who_is_named_is_waited_for(driver) -> None:
    sessions = come([(40, 90)], ALWAYS, [(20, 90)], ALWAYS, [(30, 90)], ALWAYS)
    event, now = gathered(ask(np.array([4, 1, 0])), sessions, driver)
    assert (event.clients.tolist(), now) == ([0, 1, 4], 44.0)
    event, now = gathered(ask(), sessions, driver)
    assert (len(event.clients), now) == (6, 44.0)


@both
def test_who_never_comes_is_missing_as_unavailable(driver) -> None:
    event, now = gathered(ask(), come([], ALWAYS, [(5, 60)], ALWAYS, [], ALWAYS), driver)
    assert (event.clients.tolist(), now, told(event)) == ([1, 2, 3, 5], 8.0, {"unavailable": [0, 4]})


@both
def test_who_comes_after_the_deadline_is_missing_as_unavailable(driver) -> None:
    sessions = come([(40, 90)], ALWAYS, [(5, 90)], ALWAYS, [(10, 90)], ALWAYS)
    event, now = gathered(ask(None, Quorum(deadline_s=9.0)), sessions, driver)
    assert (event.clients.tolist(), now, told(event)) == ([1, 2, 3, 5], 8.0, {"unavailable": [0, 4]})
    event, now = gathered(ask(None, Quorum(deadline_s=7.0)), sessions, driver)
    assert (event.clients.tolist(), now) == ([1, 3, 5], 7.0)
    assert told(event) == {"late": [2], "unavailable": [0, 4]}


@both
def test_a_gather_of_nobody_lasts_to_its_deadline(driver) -> None:
    event, now = gathered(
        ask(np.array([0, 2]), Quorum(deadline_s=9.0)), come([], *[ALWAYS] * 1, [], [], [], []), driver
    )
    assert (len(event.clients), now, told(event)) == (0, 9.0, {"unavailable": [0, 2]})
    event, now = gathered(ask(np.array([0, 2])), come([], ALWAYS, [], [], [], []), driver)
    assert (len(event.clients), now, told(event)) == (0, 0.0, {"unavailable": [0, 2]})


@both
def test_a_fleet_that_never_comes_again_is_refused_in_one_line(driver) -> None:
    over = Availability.of([[(0, 5)]] * 6)
    world = PROBLEM.world(FedAvg(9, 3), fleet=Fleet(overhead_s=2.0, availability=over))
    with pytest.raises(UsageError, match=r"Sample\(3\): no device of this fleet is available after 5 s") as refusal:
        driver(world)
    assert "\n" not in str(refusal.value)


@both
def test_the_end_of_a_session_cuts_a_task_short_and_it_is_known_when_it_happens(driver) -> None:
    sessions = come([(0, 3)], ALWAYS, ALWAYS, ALWAYS, [(0, 5)], ALWAYS)
    event, now = gathered(ask(), sessions, driver)
    assert (event.clients.tolist(), now, told(event)) == ([1, 2, 3, 5], 5.0, {"interrupted": [0, 4]})
    event, now = gathered(ask(None, Quorum(need=3)), sessions, driver)
    assert (event.clients.tolist(), now) == ([1, 3, 5], 2.0)
    assert told(event) == {"interrupted": [0, 4], "late": [2]}


@both
def test_a_time_out_cuts_a_task_short(driver) -> None:
    event, now = gathered(ask(None, Quorum(timeout_s=2.5)), come(*[ALWAYS] * 6), driver)
    assert (event.clients.tolist(), now, told(event)) == ([1, 3, 5], 2.5, {"timeout": [0, 2, 4]})
    sessions = come([(0, 3)], ALWAYS, ALWAYS, ALWAYS, [(0, 5)], ALWAYS)
    event, _ = gathered(ask(None, Quorum(timeout_s=3.5)), sessions, driver)
    assert told(event) == {"interrupted": [0], "timeout": [4]}


def test_over_selection_makes_up_for_those_who_leave() -> None:
    sessions = come([(0, 3)], ALWAYS, ALWAYS, ALWAYS, [(0, 5)], ALWAYS)
    end = simulate(
        PROBLEM.world(SemiSync(4, 3, over=2.0), fleet=Fleet(overhead_s=SLOW, availability=sessions)), keep=True
    )
    for event in end.transcript.events(Gathered):
        assert len(event.clients) == 3


def test_a_round_that_is_always_on_is_the_round_of_a_fleet_without_availability() -> None:
    for by in ("uniform", "oort", "power-of-choice", "tiers", "least-available"):
        for algorithm in (FedAvg(4, Sample(3, by=by)), FedAvg(4, Sample(3, by=by), quorum=Quorum(2, 4.0))):
            plain = simulate(PROBLEM.world(algorithm, fleet=Fleet(overhead_s=SLOW)))
            always = simulate(
                PROBLEM.world(algorithm, fleet=Fleet(overhead_s=SLOW, availability=Availability.always(6)))
            )
            assert plain.transcript.lines() == always.transcript.lines()


@pytest.mark.parametrize("n", [40, 60_000])
def test_those_who_are_there_are_drawn_alike(n) -> None:
    half = Availability.of([[(0, 50)] if i % 2 else [(50, 100)] for i in range(n)], period_s=100.0)
    runs = tuple(Run("echo", Sample(10), t) for t in range(60 if n > 1000 else 600))
    world = World(
        {"a": ("a", Asking(runs))}, PROBLEM.model, Population(n, np.ones(n, np.int64), Fleet(overhead_s=0.01,
        availability=half)), PROBLEM.world(Asking(())).works,
    )  # fmt: skip
    asked: list[np.ndarray] = []
    Simulator(world, None, lambda seen: asked.append(seen.event.clients) if isinstance(seen, Answered) else None).run()
    ids = np.concatenate(asked)
    assert (ids % 2 == 1).all()
    assert all(len(set(one.tolist())) == 10 for one in asked)
    count = np.bincount(ids * 20 // n, minlength=20)
    chi2 = float(((count - len(ids) / 20) ** 2 / (len(ids) / 20)).sum())
    assert chi2 < 19 + 5 * np.sqrt(38)


def test_a_cohort_depends_on_seed_work_key_and_time_alone() -> None:
    half = Availability.of([[(0, 50)] if i % 2 else [(40, 100)] for i in range(30)], period_s=100.0)
    fleet = Fleet(overhead_s=1.0, availability=half)
    problem = quadratics(n=30)

    def cohorts(seed: int, **more: Any) -> list[list[int]]:
        runs = tuple(Run("echo", Sample(5), t, **more) for t in range(4))
        end = simulate(problem.world(Asking(runs), fleet=fleet, seed=seed), keep=True)
        return [event.clients.tolist() for event in end.transcript.events(Gathered)]

    assert cohorts(0) == cohorts(0)
    assert cohorts(0) != cohorts(1)
    assert cohorts(0, quorum=Quorum(deadline_s=50.0)) == cohorts(0)


# Laws


@st.composite
def worlds(draw: st.DrawFn) -> World:
    n = draw(st.integers(3, 8))
    traces = []
    for _ in range(n):
        cuts = sorted(draw(st.sets(st.integers(0, 40), max_size=6)))
        traces.append([(cuts[i], cuts[i + 1]) for i in range(0, len(cuts) - 1, 2)])
    assume(sum(map(bool, traces)) >= 1)
    fleet = Fleet(
        overhead_s=(1 + np.arange(n) * 7 % 5).astype(np.float32), availability=Availability.of(traces, 40.0),
        drop_out=draw(st.sampled_from([0.0, 0.3])), noise=draw(st.sampled_from([0.0, 0.4])), flops_per_s=200.0,
        kind=np.arange(n) % 2, kinds=("slow", "fast"),
    )  # fmt: skip
    count = draw(st.integers(1, n))
    by = draw(st.sampled_from(["uniform", *SELECTIONS]))
    quorum = draw(st.sampled_from([
        ALL, Quorum(need=1), Quorum(deadline_s=8.0), Quorum(timeout_s=3.0), Quorum(1, 8.0, timeout_s=3.0)
    ]))  # fmt: skip
    algorithm = draw(st.sampled_from([
        FedAvg(3, Sample(count, by=by), quorum=quorum), FedAvg(3, Everyone(), quorum=quorum),
        SemiSync(3, max(count // 2, 1), over=1.3, deadline_s=9.0, by=by), TiFL(3, count, quorum=quorum),
        CutOff(3, count, budget_s=3.0, by_class={"fast": 2.0}, quorum=quorum),
    ]))  # fmt: skip
    return quadratics(n=n, seed=draw(st.integers(0, 99))).world(algorithm, fleet=fleet)


@pytest.mark.slow
@settings(max_examples=40)
@given(worlds())
def test_rounds_over_availability_keep_the_laws(world) -> None:
    for law in (pure, total, deaf_to_duplicates, onward, conserved, same_everywhere):
        law(world)
    whole = simulate(world).transcript.lines()
    assert simulate(world, chunk=1).transcript.lines() == simulate(world, chunk=2).transcript.lines() == whole


@settings(max_examples=40)
@given(worlds())
def test_tasks_of_rounds_lie_within_sessions_and_add_up(world) -> None:
    fleet, asks = world.population.fleet, []
    simulate(world, observer=lambda seen: asks.append((seen.ask, seen.event)) if isinstance(seen, Answered) else None)
    for one, event in asks:
        tasks = one.tasks(fleet)
        if tasks is None:
            assert set(event.missing) <= {"unavailable"}
            continue
        begin, until = fleet.availability.session(tasks.start, tasks.client)
        assert (begin <= tasks.start).all()
        assert (tasks.end <= until * (1 + 1e-12)).all()
        assert (tasks.start >= one.issued).all()
        assert len(set(tasks.client.tolist())) == len(tasks)
        assert sum(tasks.seconds_by_outcome().values()) == pytest.approx((tasks.end - tasks.start).sum())
        assert tasks.client[tasks.outcome == OK].size == len(event.clients)
        for code, reason in (
            (INTERRUPTED, "interrupted"),
            (TIMEOUT, "timeout"),
            (LATE, "late"),
            (DROP_OUT, "drop-out"),
        ):
            assert sorted(tasks.client[tasks.outcome == code].tolist()) == list(event.missing.get(reason, ()))
        assert one.bytes_down == pytest.approx(tasks.bytes_down.sum())
        assert one.bytes_up == pytest.approx(tasks.bytes_up.sum())
        replies = tasks.end[tasks.outcome == OK]
        assert not len(replies) or replies.max() <= one.due * (1 + 1e-12)
        timeout = one.run.quorum.timeout_s
        assert timeout is None or (tasks.end - tasks.start <= timeout * (1 + 1e-12)).all()


@both
def test_a_rule_is_told_of_the_seconds_of_tasks_not_of_those_they_were_waited_for(driver, monkeypatch) -> None:
    told: list[tuple[list[int], list[float]]] = []

    def note(ids: Any, loss: Any, seconds: Any, *rest: Any) -> Reported:
        told.append((ids.tolist(), seconds.tolist()))
        return Reported(ids, loss, seconds, *rest)

    monkeypatch.setattr("fieldfare.sim.draw.Reported", note)
    sessions = come([(40, 90)], ALWAYS, [(20, 90)], ALWAYS, [(30, 90)], [(50, 90)])
    gathered(ask(Sample(6, by="least-available")), sessions, driver)
    for ids, seconds in told:
        assert dict(zip(ids, seconds, strict=True)) == dict(enumerate(SLOW.tolist()))
    assert len(told) == 1


@pytest.mark.parametrize("by", ["uniform", *SELECTIONS])
def test_every_rule_asks_those_who_are_there_and_learns_alike_on_both_drivers(by) -> None:
    problem = quadratics(n=10)
    sessions = Availability.of([[(i * 3 % 40, i * 3 % 40 + 15)] for i in range(10)], period_s=60.0)
    fleet = Fleet(overhead_s=(1 + np.arange(10) * 7 % 5).astype(np.float32), availability=sessions, drop_out=0.1)
    world = problem.world(FedAvg(8, Sample(4, by=by)), fleet=fleet)
    one, other = simulate(world), loop(world)
    assert one.transcript.lines() == other.transcript.lines()
    assert digest(one.driver.progress.selected.states) == digest(other.driver.selected.states)
