"""The simulator and its executor: overlapping asks, drop-outs, fleets, bytes, failing workers, little memory."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.core.effects import Run
from fieldfare.core.effects import Stop as Stop_
from fieldfare.core.errors import PeerError
from fieldfare.core.events import Gathered, Started
from fieldfare.core.folds import Mean, Stack
from fieldfare.core.params import Layout
from fieldfare.core.quorum import ALL, Everyone, Quorum, Sample
from fieldfare.fleet.fleet import Fleet
from fieldfare.run import Saver
from fieldfare.sim import pool
from fieldfare.sim.arena import Arena
from fieldfare.sim.batch import Executor
from fieldfare.sim.compute import Request, Segment, compute_inline, pieces
from fieldfare.sim.observe import Progressed
from fieldfare.sim.population import Population
from fieldfare.sim.simulator import Simulator
from fieldfare.store.runs import RunFolder
from fieldfare.store.slots import Slots
from fieldfare.testing import Asking, Echo, loop, quadratics, simulate


class Stop(Exception):
    pass


def overlapping(sigma: float) -> ff.Job:
    """Ditto, whose personal models everyone measures every round, while the next round trains: slots overlap."""
    data = ff.data.synthetic(clients=6, classes=3, features=4, max_examples=60, seed=1).holdout(0.3)
    return ff.Job(
        model=ff.mlp(4, 3), data=data, algorithm=ff.Ditto(rounds=4, cohort=3, lam=0.3), seed=1,
        evaluate=ff.Evaluation(clients=6, clients_every=1, personal=True),
        simulated=ff.Simulated(fleet=ff.fleet.phones(sigma=sigma), workers=1),
    )  # fmt: skip


def lines(folder: RunFolder) -> dict[str, list[dict[str, object]]]:
    """What a run wrote, without the machine's clock."""
    return {
        kind: [{k: v for k, v in row.items() if k != "wall_s"} for row in folder.read_lines(f"{kind}.jsonl")]
        for kind in ("rounds", "clients", "evaluation")
    }


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.0, 0.8])
def test_a_run_whose_stateful_asks_overlap_is_resumed_from_every_step_to_the_same_lines(tmp_path, monkeypatch, sigma):
    whole = overlapping(sigma).run(tmp_path / "whole", progress=False, report=False)
    expected = lines(RunFolder.find("latest", tmp_path / "whole"))
    steps, overlapped = [0], []

    def stop_at(step):
        def call(saver, seen):
            if isinstance(seen, Progressed):
                steps[0] = max(steps[0], seen.steps)
                if seen.steps == step:
                    overlapped.append(len(saver.simulator.computed()))
                    saver.save()
                    raise Stop

        return call

    step = 0
    while step == 0 or step < steps[0]:
        step += 1
        with monkeypatch.context() as patch:
            patch.setattr(Saver, "__call__", stop_at(step))
            with pytest.raises(Stop):
                overlapping(sigma).run(tmp_path / str(step), progress=False, report=False)
        with monkeypatch.context() as patch:
            patch.setattr(Saver, "__call__", stop_at(-1))
            folder = RunFolder.find("latest", tmp_path / str(step))
            result = overlapping(sigma).run(folder=RunFolder.open(folder.path), progress=False, report=False)
        assert lines(folder) == expected, f"stopped after step {step}"
        assert (result.model.vector == whole.model.vector).all()
    assert step > 10
    assert max(overlapped) > 0, "no step had a computed ask outstanding: this tests nothing"


@pytest.mark.skipif(sys.platform != "linux", reason="memory files are Linux's")
def test_shared_memory_has_no_place_in_a_file_system_and_keeps_what_is_written_as_it_grows():
    arena = Arena()
    try:
        assert os.readlink(f"/proc/self/fd/{arena._fd}").startswith("/memfd:")
        for n in (3, 100_000, 7):
            rows = np.arange(n, dtype=np.float32).reshape(n, 1)
            read = arena.read(arena.write([rows, np.arange(2)]))
            assert np.array_equal(read[0], rows)
            assert np.array_equal(read[1], [0, 1])
            del read
    finally:
        arena.close()


def test_memory_that_is_not_to_be_had_is_no_full_disk(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    arena = Arena()
    try:
        with pytest.raises(ff.UsageError, match="bytes of memory shared with the worker processes"):
            arena.write([np.zeros(8)])
    finally:
        arena.close()


class Odd(Exception):
    """Cannot be made anew from its arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Failing(Echo):
    """Fails for clients above 1, naming the first."""

    def __init__(self, make):
        self.make = make

    def __call__(self, cohort):
        for client in cohort.clients.tolist():
            if client > 1:
                raise self.make(client)
        return super().__call__(cohort)


def noted(client):
    error = KeyError(client)
    error.add_note("mine")
    return error


def fails(make, workers):
    """The error of a run in which clients 2 to 7 fail, and the executor asked once more after that."""
    world = quadratics(n=8).world(Asking((Run("bad", Everyone(), 1),)), works={"bad": Failing(make)})
    with Executor(world.works, None, workers=workers) as executor:
        for _ in range(2):
            simulator = Simulator(world, executor)
            with pytest.raises(Exception) as caught:
                simulator.run()
    return caught.value


@pytest.mark.parametrize(
    "make",
    [noted, lambda c: PeerError(c, 1, "nonsense"), lambda c: ff.UsageError(f"client {c}"), lambda c: OSError(c, "no")],
    ids=["KeyError", "PeerError", "UsageError", "OSError"],
)
def test_an_exception_of_a_work_is_the_same_for_any_number_of_workers(make):
    one, two = fails(make, 1), fails(make, 2)
    assert (type(two), str(two), two.args) == (type(one), str(one), one.args)
    assert str(one) == str(make(2))
    assert [*getattr(one, "__notes__", [])] == two.__notes__[:-1]
    assert "in worker process" in two.__notes__[-1]


def test_an_exception_that_cannot_travel_is_told_by_name_and_text():
    error = fails(lambda c: Odd(c, 5), 2)
    assert (type(error), str(error)) == (RuntimeError, "Odd: 2 and 5")


def blas_threads() -> list[int]:
    from threadpoolctl import threadpool_info

    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_an_executor_that_is_closed_gives_the_libraries_their_threads_back():
    from threadpoolctl import threadpool_limits

    with threadpool_limits(2):
        before = blas_threads()
        with Executor({}, None):
            assert set(blas_threads()) == {1}
        assert blas_threads() == before
    assert set(before) == {2}


def test_worker_processes_are_not_forked_where_that_is_not_safe(monkeypatch):
    monkeypatch.setattr(pool.sys, "platform", "darwin")
    with pytest.warns(UserWarning, match="worker processes need Linux"), Executor({}, None, workers=3) as executor:
        assert executor.workers == 1
    with Executor({}, None, workers=1) as executor:
        assert executor.workers == 1


def requests(problem, count: int, clients: int = 9) -> list[Request]:
    """Requests of different clients and models."""
    rng = np.random.default_rng(0)
    return [
        Request(
            "train", rng.normal(size=(1, problem.model.size)).astype(np.float32), np.zeros(clients, np.int64),
            problem.model.layout, np.arange(k, k + clients), np.arange(clients).astype(np.uint64) + np.uint64(k),
            (Segment(0, clients, {"delta": Mean()}, clients),), {"round": 1},
        )
        for k in range(count)
    ]  # fmt: skip


def folded(shares) -> list[int]:
    return sum(share.partials[0]["delta"].sum.settled() for share in shares if share.partials).tolist()


def test_requests_behind_one_another_give_what_each_gives_alone_whichever_is_waited_for_first():
    problem = quadratics(n=20)
    works, data = {"train": problem.work()}, problem.data
    asked = requests(problem, 8)
    alone = [folded(compute_inline(request, works, data, None)) for request in asked]
    assert len({tuple(one) for one in alone}) == len(asked)
    workers = pool.Pool(works, data, 2)
    try:
        begun = [workers.start(request, 2) for request in asked]
        assert len(workers.open) <= 3
        assert {k: folded(begun[k].result()) for k in (7, 2, 0, 5, 1, 6, 3, 4)} == dict(enumerate(alone))
    finally:
        workers.close()


def test_workers_that_are_busy_with_requests_nobody_waits_for_end_with_the_piece_they_are_at():
    class Slow(Echo):
        def __call__(self, cohort):
            time.sleep(0.2)
            return super().__call__(cohort)

    request = replace(requests(quadratics(n=4), 1, 200)[0], segments=(Segment(0, 200, {}, 200),))
    workers = pool.Pool({"train": Slow()}, None, 2)
    processes = list(workers._processes)
    workers.start(request, 1)
    workers.start(request, 1)
    workers.close()
    assert [process.exitcode for process in processes] == [0, 0], "killed, not ended"


@pytest.mark.slow
def test_a_worker_that_does_not_end_is_killed_and_waited_for():
    workers = pool.Pool({}, None, 2)
    for process in workers._processes:
        os.kill(process.pid, signal.SIGSTOP)
    started = [process.pid for process in workers._processes]
    workers.close()
    assert [process.exitcode for process in workers._processes] == [-signal.SIGKILL] * 2
    assert not any(os.path.exists(f"/proc/{pid}") for pid in started)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"overhead_s": -1.0}, "device 0 has overhead_s = -1.0: use a finite number not below zero."),
        ({"overhead_s": np.array([0, 1, np.nan])}, "device 2 has overhead_s = nan"),
        ({"overhead_s": float("inf")}, "overhead_s = inf"),
        ({"flops_per_s": np.array([1.0, np.nan])}, "device 1 has flops_per_s = nan: use a finite number above zero."),
        ({"uplink_bytes_per_s": np.array([1.0, np.inf])}, "device 1 has uplink_bytes_per_s = inf"),
        ({"downlink_bytes_per_s": 0}, "device 0 has downlink_bytes_per_s = 0"),
        ({"downlink_bytes_per_s": 10}, "has a median of 10: .*1 Mbit/s = 125000.*slow_links=True"),
        ({"uplink_bytes_per_s": np.array([5.0, 2e6, 7.5])}, r"Fleet\(uplink_bytes_per_s=...\) has a median of 7.5"),
        ({"flops_per_s": [1.0, 2.0]}, "use an array or a number"),
        ({"flops_per_s": np.ones((2, 2))}, "a number for all devices, or an array of one each"),
        ({"flops_per_s": np.array(["fast"])}, "a number for all devices, or an array of one each"),
        ({"drop_out": float("nan")}, "a probability"),
        ({"flags": {"plugged": [True, False]}}, "'plugged' is no array of one bool per device"),
        ({"flags": {"plugged": np.array([1, 0])}}, "'plugged' is no array of one bool per device"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused_in_one_line(columns, words):
    with pytest.raises(ff.UsageError, match=words) as refused:
        Fleet(**columns)
    assert "\n" not in str(refused.value)


def test_links_that_look_like_mbit_are_refused_unless_they_are_said_to_be_slow():
    with pytest.raises(ff.UsageError, match=r"phones\(uplink_bytes_per_s=...\) has a median of 2.5: .* 125000\)\.$"):
        ff.fleet.phones(uplink_bytes_per_s=2.5)
    with pytest.raises(ff.UsageError, match=r"Fleet\(downlink_bytes_per_s=...\) has a median of 999"):
        ff.fleet.uniform(downlink_bytes_per_s=999.0)
    few = np.array([10.0, 1e3, 1e6], np.float32)
    assert Fleet(downlink_bytes_per_s=few, uplink_bytes_per_s=1e3).uplink_bytes_per_s == 1e3
    assert Fleet(uplink_bytes_per_s=10.0, slow_links=True).uplink_bytes_per_s == 10.0


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"flops_per_s": np.ones(3)},
            "the fleet's flops_per_s has 3 values for 6 clients: give one per client, or one",
        ),
        ({"overhead_s": np.ones(7)}, "the fleet's overhead_s has 7 values for 6 clients"),
        ({"flags": {"wifi": np.ones(5, bool)}}, "the fleet's wifi has 5 values for 6 clients: give one per client."),
    ],
)
def test_a_fleet_of_another_number_of_devices_than_clients_is_refused(columns, words):
    with pytest.raises(ff.UsageError, match=words):
        Population(6, np.ones(6, np.int64), Fleet(**columns))


def test_a_flag_is_searched_once_however_often_it_is_drawn_from(monkeypatch):
    population = Population(6, np.ones(6, np.int64), Fleet(flags={"wifi": np.array([1, 0, 1, 1, 0, 1], bool)}))
    calls, search = [], np.flatnonzero
    monkeypatch.setattr(np, "flatnonzero", lambda a: calls.append(1) or search(a))
    drawn = [population.sample(Sample(2, "wifi"), 0, ("cohort", tag)) for tag in range(20)]
    assert len(calls) == 1
    assert {int(client) for cohort in drawn for client in cohort} == {0, 2, 3, 5}


@pytest.mark.parametrize("quorum", [ALL, Quorum(need=2), Quorum(deadline_s=2.5)], ids=["all", "need", "deadline"])
@pytest.mark.parametrize("drop_out", [0.0, 0.4])
def test_bytes_go_down_to_all_who_are_asked_and_up_from_all_who_answer_late_or_not(quorum, drop_out):
    problem = quadratics(n=6, dim=3)
    fleet = Fleet(overhead_s=np.array([4, 1, 3, 1, 6, 2], np.float32), drop_out=drop_out)
    run = Run("train", Everyone(), 1, problem.model, quorum, key=("k",), config={"round": 1})
    world = problem.world(Asking((run,)), fleet=fleet)
    one, other = simulate(world, keep=True), loop(world)
    (event,) = one.transcript.events(Gathered)
    silent = len(event.missing.get("drop-out", ()))
    assert (silent > 0) == (drop_out > 0)
    size = problem.model.bytes
    assert one.driver.progress.bytes_down == other.driver.bytes_down == 6 * size
    assert one.driver.progress.bytes_up == other.driver.bytes_up == (6 - silent) * size


def test_bytes_count_down_when_asked_and_not_up_when_the_run_stops_before_the_answer():
    problem = quadratics(n=6, dim=3)
    fleet = Fleet(overhead_s=np.arange(1, 7).astype(np.float32))
    quick, slow = (Run("train", np.array([c]), c, problem.model, config={"round": 1}) for c in (0, 5))
    end = simulate(problem.world(FirstOnly((quick, slow)), fleet=fleet))
    assert end.driver.progress.bytes_down == 2 * problem.model.bytes
    assert end.driver.progress.bytes_up == problem.model.bytes


class FirstOnly:
    """Asks for all `runs` at once and stops at the first answer."""

    def __init__(self, runs):
        self.runs = runs

    def init(self, model):
        return 0

    def step(self, state, event, ctx):
        return state, self.runs if isinstance(event, Started) else (Stop_("enough"),)


def test_rows_never_written_take_no_memory_and_a_table_grows_no_further_than_the_population():
    slots = Slots(None, {"c": 1000}, population=40)
    rows, fresh = slots.get("c", np.arange(40))
    assert fresh.all()
    assert rows.shape == (40, 1000)
    assert not rows.any()
    assert rows.base is not None
    assert rows.strides[0] == 0
    assert not rows.flags.writeable
    for start in range(0, 40, 8):
        slots.put("c", np.arange(start, start + 8), np.full((8, 1000), start + 1, np.float32))
    assert len(slots._tables["c"]._rows) == 41
    rows, fresh = slots.get("c", np.array([39, 0]))
    assert (rows[:, 0].tolist(), fresh.any()) == ([33.0, 1.0], False)
    slots.put("c", np.array([77]), np.ones((1, 1000), np.float32))
    assert slots.count("c") == 41


class Counting(Echo):
    """Keeps per client how often it was asked, in two numbers."""

    def __call__(self, cohort):
        out = super().__call__(cohort)
        assert cohort.state.shape == (cohort.n, 2)
        state = cohort.state + np.array([1, 10], np.float32) * (1 + cohort.clients[:, None])
        return replace(out, state=state.astype(np.float32))

    def slots(self, layout):
        return {"asked": 2}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("chunk", [None, 2])
def test_state_is_read_and_kept_alike_by_one_process_and_several(workers, chunk):
    runs = tuple(Run("count", np.arange(n), n, state="asked") for n in (5, 8, 1))
    world = quadratics(n=8).world(Asking(runs), works={"count": Counting()})
    slots = Slots(None, {"asked": 2}, 8)
    with Executor(world.works, None, slots, workers, chunk) as executor:
        Simulator(world, executor).run()
    times = np.array([3, 2, 2, 2, 2, 1, 1, 1]) * np.arange(1, 9)
    assert slots.get("asked", np.arange(8))[0].tolist() == np.stack([times, 10 * times], 1).tolist()


@pytest.mark.parametrize("make", [ff.Scaffold, ff.FedDyn, ff.Ditto])
def test_a_round_needs_little_more_memory_than_the_state_before_it_and_after_it(make):
    """What was kept, what will be, and the rows of one chunk: no copy of the whole cohort's state besides."""
    clients, data = 100, ff.data.synthetic(clients=100, classes=5, features=300)
    model = ff.mlp(300, 60, 5)
    algorithm = make(2, ff.Everyone())
    job = ff.Job(model, data, algorithm, simulated=ff.Simulated(workers=1, chunk=5))
    job.with_overrides({"algorithm.cohort": 1}).run(None, progress=False)  # what is imported at first use
    tracemalloc.start()
    try:
        job.run(None, progress=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.9 * clients * 4 * model.layout.size


def test_chunks_count_every_row_a_client_needs(monkeypatch):
    monkeypatch.setattr("fieldfare.sim.compute.CHUNK_BYTES", 4000)

    def most(leaves, kept):
        request = Request(
            "train", np.zeros((1, 100), np.float32), np.zeros(50, np.int64), Layout((), ()), np.arange(50),
            np.zeros(50, np.uint64), (Segment(0, 50, dict.fromkeys("abc"[:leaves], Mean()), 50),),
            state=np.zeros((50, kept), np.float32) if kept else None,
        )  # fmt: skip
        cuts = pieces(request, 1, None)
        assert [a for a, _ in cuts[1:]] == [b for _, b in cuts[:-1]]
        return max(b - a for a, b in cuts)

    assert (most(0, 0), most(1, 0), most(3, 0), most(1, 150)) == (10, 5, 2, 2)


@pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])
def test_a_stack_that_cannot_hold_the_cohort_is_refused_before_anyone_trains(driver):
    problem = quadratics(n=6, dim=3)

    def end(max_bytes, **more):
        run = Run(
            "train", Everyone(), 1, problem.model, reduce={"delta": Stack(max_bytes)}, config={"round": 1}, **more
        )
        return driver(problem.world(Asking((run,)), works=works))

    works = {}
    row = 4 * problem.model.size
    assert end(6 * row).reason == "all answered"
    assert end(2 * row, quorum=Quorum(need=2)).reason == "all answered"
    works = {"train": Failing(lambda c: AssertionError(f"{c} was trained"))}
    with pytest.raises(ff.UsageError, match=f"would hold {6 * row} bytes, 6 rows of {row}, more than max_bytes"):
        end(6 * row - 1)
