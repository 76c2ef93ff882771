"""Cohorts, refused clients, time and bytes in the simulator."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from fieldfare.algorithms import Ditto, FedAvg, Scaffold
from fieldfare.core.effects import Run
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Collect, Mean
from fieldfare.core.params import Params
from fieldfare.core.quorum import Everyone, Quorum, Sample
from fieldfare.fleet.fleet import Fleet
from fieldfare.sim.batch import Executor
from fieldfare.sim.observe import Answered, Progressed, Published, Stopped
from fieldfare.sim.population import Population
from fieldfare.sim.simulator import Simulator, World
from fieldfare.testing import Asking, Echo, Slots, Spoilt, digest, loop, quadratics, simulate

PROBLEM = quadratics(n=12)


def cohorts(run_of, count: int, size: int, seed: int = 0, where=None) -> list[list[int]]:
    """Cohorts of `count` runs in a population of `size`."""
    flags = {"even": np.arange(size) % 2 == 0}
    world = World(
        {"a": ("a", Asking(tuple(run_of(r) for r in range(count))))}, PROBLEM.model,
        Population(size, np.ones(size, np.int64), Fleet(flags=flags)), {"echo": Echo(), "other": Echo()}, seed,
    )  # fmt: skip
    return [event.clients.tolist() for event in simulate(world, keep=True).transcript.events(Gathered)]


def test_a_cohort_depends_on_seed_work_and_key_alone():
    first = cohorts(lambda r: Run("echo", Sample(5), r), 4, 1000)
    assert first == cohorts(lambda r: Run("echo", Sample(5), r), 4, 1000)
    assert first == cohorts(lambda r: Run("echo", Sample(5), ("tag", r), key=(r,)), 4, 1000)
    assert first[:2] == cohorts(lambda r: Run("echo", Sample(5), r), 2, 1000)
    assert first != cohorts(lambda r: Run("echo", Sample(5), r), 4, 1000, seed=1)
    assert first != cohorts(lambda r: Run("other", Sample(5), r), 4, 1000)
    assert len({tuple(cohort) for cohort in first}) == 4


def test_every_client_of_the_population_is_asked_equally_often():
    count = np.zeros(20)
    for cohort in cohorts(lambda r: Run("echo", Sample(4), r), 1500, 20):
        count[cohort] += 1
    chi2 = float(((count - 300) ** 2 / 300).sum()) / (1 - 4 / 20)
    assert abs(chi2 - 19) < 5 * np.sqrt(38)


def test_a_sample_where_draws_among_the_flagged_only():
    drawn = cohorts(lambda r: Run("echo", Sample(3, where="even"), r), 50, 20)
    assert {client for cohort in drawn for client in cohort} == set(range(0, 20, 2))
    with pytest.raises(UsageError, match="only 10 devices are even"):
        cohorts(lambda r: Run("echo", Sample(11, where="even"), r), 1, 20)


def test_an_ask_of_a_few_among_ten_million_makes_no_list_of_all():
    big = Population(10_000_000, np.broadcast_to(np.int64(3), (10_000_000,)), Fleet())
    world = World({"a": ("a", Asking((Run("echo", Sample(3), 1),)))}, PROBLEM.model, big, {"echo": Echo()})
    (event,) = simulate(world, keep=True).transcript.events(Gathered)
    assert len(event.clients) == 3


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("driver", [simulate, loop])
def test_a_client_that_sends_nan_is_refused_and_named_and_the_run_goes_on(driver, workers):
    options = {"workers": workers, "chunk": 5} if driver is simulate else {}
    world = PROBLEM.world(FedAvg(3, Everyone()), works={"train": Spoilt(PROBLEM.work(), (4, 7))})
    end = driver(world, keep=True, **options)
    events = end.transcript.events(Gathered)
    assert [event.missing["refused"].tolist() for event in events] == [[4, 7]] * 3
    assert all(len(event.clients) == len(event.weights) == len(event.metrics["loss"]) == 10 for event in events)
    assert end.reason == "rounds"
    without = np.array([c for c in range(12) if c not in (4, 7)])
    assert digest(end.model) == digest(driver(PROBLEM.world(FedAvg(3, without)), **options).model)


def test_how_large_a_value_may_be_is_settled_by_who_is_asked_not_by_who_replies():
    class Large(Echo):
        def __call__(self, cohort):
            value = np.float32(2.0**62 / 12 * 2.0**-44 * 1.5)
            return replace(super().__call__(cohort), leaves={"id": np.full((cohort.n, 1), value)})

    fold = {"id": Mean(step=2.0**-44)}
    run = Run("large", Everyone(), 1, reduce=fold, quorum=Quorum(need=2))
    for driver in (simulate, loop):
        (event,) = driver(PROBLEM.world(Asking((run,)), works={"large": Large()}), keep=True).transcript.events(
            Gathered
        )
        assert (len(event.clients), len(event.missing["refused"]), len(event.missing["late"])) == (0, 2, 10)


def test_client_state_of_a_refused_reply_is_not_committed():
    world = PROBLEM.world(Scaffold(2, Everyone()))
    world = replace(world, works={"train": Spoilt(world.works["train"], (4,))})
    for driver in (simulate, loop):
        end = driver(world)
        assert sorted(end.slots.rows["c"]) == [c for c in range(12) if c != 4]
        assert end.slots.puts == 22


def test_a_client_whose_loss_is_not_finite_is_refused_whatever_it_sends():
    class Lost(Echo):
        def __call__(self, cohort):
            out = super().__call__(cohort)
            return replace(out, metrics={"loss": np.where(cohort.clients == 3, np.inf, 1.0)})

    run = Run("lost", Everyone(), 1, reduce={"id": Mean()})
    world = PROBLEM.world(Asking((run,)), works={"lost": Lost()})
    for driver in (simulate, loop):
        (event,) = driver(world, keep=True).transcript.events(Gathered)
        assert event.missing["refused"].tolist() == [3]


def test_work_that_loses_rows_is_told_so_in_one_line():
    class Short(Echo):
        def __call__(self, cohort):
            return replace(super().__call__(cohort), weight=np.ones(2))

    with pytest.raises(UsageError, match=r"work 'short' returned 2 weights for 12 clients: return one row per client"):
        simulate(PROBLEM.world(Asking((Run("short", Everyone(), 1),)), works={"short": Short()}))


def test_observers_hear_everything_in_order_of_time_and_change_nothing():
    seen: list[object] = []
    world = PROBLEM.world(FedAvg(3, 5))
    watched = simulate(world, observer=seen.append)
    assert watched.transcript.steps == simulate(world).transcript.steps
    times = [one.now for one in seen]
    assert times == sorted(times)
    assert sum(isinstance(one, Answered) for one in seen) == 3
    assert [one.version for one in seen if isinstance(one, Published)] == [1, 2, 3]
    assert [one.steps for one in seen if isinstance(one, Progressed)] == [1, 2, 3]
    assert [one.reason for one in seen if isinstance(one, Stopped)] == ["rounds"]


def test_bytes_are_those_of_the_model_both_ways():
    end = simulate(PROBLEM.world(FedAvg(3, 5)))
    p = end.driver.progress
    assert p.bytes_down == p.bytes_up == 3 * 5 * PROBLEM.model.bytes


@pytest.mark.parametrize("drive", [simulate, loop])
@pytest.mark.parametrize("work", ["train", "evaluate"])
def test_bytes_down_count_what_a_model_has_beside_its_vector_and_it_takes_time(drive, work):
    plain, fleet = PROBLEM.model, Fleet(downlink_bytes_per_s=1.0, slow_links=True)
    more = Params(plain.vector, plain.layout, {"seen": np.zeros(3, np.int64)}, b"x" * 76)

    def end(model):
        reduce = {"delta": Mean()} if work == "train" else {}
        run = Run(work, Sample(4), 1, model, reduce=reduce, config={"round": 1})
        driver = drive(PROBLEM.world(Asking((run,)), fleet=fleet)).driver
        p = getattr(driver, "progress", driver)
        return p.bytes_down, p.bytes_up, p.now

    (down, up, now), (more_down, more_up, later) = end(plain), end(more)
    assert (down, more_down) == (4 * plain.bytes, 4 * (plain.bytes + 100))
    assert (more_up, later) == (up, pytest.approx(now + 100))


def test_asks_that_are_pending_together_give_what_they_give_alone():
    some = (np.array([t, t + 1, t + 2, t + 7]) for t in range(5))
    runs = tuple(Run("train", ids, t, PROBLEM.model, reduce={"delta": Mean()}) for t, ids in enumerate(some))
    together = simulate(PROBLEM.world(Asking(runs, together=True)), keep=True).transcript.events(Gathered)
    alone = [simulate(PROBLEM.world(Asking((run,))), keep=True).transcript.events(Gathered)[0] for run in runs]
    assert sorted(map(digest, together)) == sorted(map(digest, alone))


def test_asks_with_other_opaque_models_are_not_mixed_up():
    class Reading(Echo):
        def __call__(self, cohort):
            return replace(super().__call__(cohort), leaves={"read": [cohort.opaque] * cohort.n})

    models = [Params(PROBLEM.model.vector, PROBLEM.model.layout, opaque=text) for text in (b"one", b"two")]
    runs = tuple(Run("read", Sample(2), t, m, reduce={"read": Collect()}) for t, m in enumerate(models))
    world = PROBLEM.world(Asking(runs, together=True), works={"read": Reading()})
    events = simulate(world, keep=True).transcript.events(Gathered)
    assert [set(event.output["read"].value.values()) for event in events] == [{b"one"}, {b"two"}]


class Beside(Echo):
    """Tells what the side arrays are: value, type and shape, as bytes; refuses to mix models of other sides."""

    def __call__(self, cohort):
        told = repr([(name, a.dtype.str, a.shape, a.tolist()) for name, a in cohort.sides.items()]).encode()
        assert cohort.part(0, 1).sides is cohort.sides
        return replace(super().__call__(cohort), leaves={"told": [told] * cohort.n})


def sided(**sides) -> Params:
    return Params(PROBLEM.model.vector, PROBLEM.model.layout, sides)


@pytest.mark.parametrize("drive", [simulate, partial(simulate, workers=2), partial(simulate, chunk=1), loop])
def test_a_work_sees_the_side_arrays_of_the_model_it_was_sent(drive):
    one = sided(seen=np.array(2**53 + 1), flags=np.array([True, False]), none=np.empty((0, 3), np.uint8))
    models = [one, one.replace(one.vector + 1), sided(seen=np.array([7], np.int32)), PROBLEM.model]
    runs = tuple(Run("read", Sample(4), t, m, reduce={"told": Collect()}) for t, m in enumerate(models))
    end = drive(PROBLEM.world(Asking(runs, together=True), works={"read": Beside()}), keep=True)
    told = {event.tag: set(event.output["told"].value.values()) for event in end.transcript.events(Gathered)}
    of_one = {
        b"[('seen', '<i8', (), 9007199254740993), ('flags', '|b1', (2,), [True, False]), ('none', '|u1', (0, 3), [])]"
    }
    assert told == {0: of_one, 1: of_one, 2: {b"[('seen', '<i4', (1,), [7])]"}, 3: {b"[]"}}


def test_versions_of_one_model_are_computed_together_and_models_of_other_sides_apart():
    calls = []

    class Counted(Beside):
        def __call__(self, cohort):
            calls.append((len(cohort.models), cohort.n))
            return super().__call__(cohort)

    one = sided(seen=np.array(1))
    models = [one, one.replace(one.vector + 1), sided(seen=np.array(1))]
    runs = tuple(Run("read", Sample(4), t, m, reduce={"told": Collect()}) for t, m in enumerate(models))
    simulate(PROBLEM.world(Asking(runs, together=True), works={"read": Counted()}))
    assert sorted(calls) == [(1, 4), (2, 8)]


def test_client_state_is_read_as_of_asking_whatever_is_computed_beside_it():
    """Asked at 0, clients 0 and 1 reply at 1 and 5; an ask at 1 made before the second reply reads the old state."""

    class Counting(Echo):
        def __call__(self, cohort):
            old = np.zeros(cohort.n) if cohort.fresh.all() else np.where(cohort.fresh, 0, cohort.state[:, 0])
            out = super().__call__(cohort)
            return replace(out, metrics={"old": old}, state=(old + 1).astype(np.float32)[:, None])

    def run(tag, client):
        return Run("count", np.array([client]), tag, reduce={"id": Mean()}, state="n")

    class Twice(Asking):
        def step(self, state, event, ctx):
            if isinstance(event, Gathered):
                return state, (run("again", 1),) if event.tag == "first" else ()
            return state, (run("first", 0), run("second", 1))

    fleet = Fleet(overhead_s=np.array([1.0, 5.0] + [1.0] * 10, np.float32))
    world = PROBLEM.world(Twice(()), fleet=fleet, works={"count": Counting()})
    for driver in (simulate, loop):
        old = {e.tag: e.metrics["old"].tolist() for e in driver(world, keep=True).transcript.events(Gathered)}
        assert old == {"first": [0.0], "second": [0.0], "again": [0.0]}


def test_a_stopped_run_can_be_asked_for_nothing_more():
    world = PROBLEM.world(FedAvg(1, 3))
    with Executor(world.works, PROBLEM.data, Slots(), 1) as executor:
        simulator = Simulator(world, executor)
        assert simulator.run() == simulator.run() == "rounds"


def test_a_run_in_which_nothing_is_asked_ends_by_saying_so():
    for driver in (simulate, loop):
        assert driver(PROBLEM.world(Asking(()))).reason == "nothing left to happen"


@pytest.mark.parametrize("algorithm", [FedAvg(3, 5), Ditto(3, 5), Scaffold(3, 5)], ids=["fedavg", "ditto", "scaffold"])
def test_a_run_can_be_cut_into_advances(algorithm):
    world = PROBLEM.world(algorithm)
    with Executor(world.works, PROBLEM.data, Slots(), 1) as executor:
        simulator, models = Simulator(world, executor), []
        simulator.observer = lambda seen: models.append(seen.model) if isinstance(seen, Published) else None
        simulator.start()
        while not simulator.progress.stopped:
            simulator.advance()
    assert digest(models[-1]) == digest(simulate(world).model)
