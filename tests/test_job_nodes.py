"""Jobs of several nodes: what they leave, that nothing but the seed matters, that they are resumed to the same bits."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import PROGRAM, environment, fieldfare, job_file

import fieldfare as ff
from fieldfare.algorithms.catalogue import DECENTRALISED, build
from fieldfare.algorithms.evaluate import StopAt
from fieldfare.core.errors import UsageError
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.tasks import OK, OUTCOMES
from fieldfare.run import Saver, assemble
from fieldfare.sim.batch import Executor
from fieldfare.sim.links import Links
from fieldfare.sim.observe import Worked
from fieldfare.sim.simulator import Simulator
from fieldfare.store.codec import Codec, registry
from fieldfare.store.nodes import MESSAGE, WORKED
from fieldfare.store.runs import RunFolder
from fieldfare.store.tasks import read_tasks

METHODS = {
    "hadfl": ff.HADFL(cycles=4), "pacedring": ff.PacedRing(cycles=4), "fedavg": ff.DecentralisedFedAvg(cycles=3),
    "allreduce": ff.AllReduce(cycles=6), "pairs": ff.PairGossip(cycles=8, steps=2),
    "graph": ff.GraphGossip(cycles=6, steps=2),
}  # fmt: skip
methods = pytest.mark.parametrize("name", METHODS)

JOB = """
import os
import signal

import numpy as np

import fieldfare as ff
from fieldfare.fleet.fleet import Fleet

die = int(os.environ.get("DIE_AFTER", "0"))


def death(row):
    if row["round"] == die:
        os.kill(os.getpid(), signal.SIGKILL)


job = ff.Job(
    data=ff.data.synthetic(clients=4, classes=3, features=6, max_examples=60, seed=1).holdout(0.3),
    model=ff.mlp(6, 5, 3),
    algorithm=ff.HADFL(cycles=6),
    training=ff.Training(lr=0.1, batch_size=5),
    evaluate=ff.Evaluation(every=2),
    seed=3,
    callbacks=(death,),
    simulated=ff.Simulated(
        fleet=Fleet(flops_per_s=np.array([9e3, 9e3, 3e3, 3e3], np.float32), overhead_s=0.0), workers=1
    ),
)
"""


def make(algorithm=METHODS["hadfl"], clients=4, **changes):
    given = {
        "model": ff.mlp(6, 5, 3),
        "data": ff.data.synthetic(clients=clients, classes=3, features=6, max_examples=60, seed=1).holdout(0.3),
        "algorithm": algorithm, "training": ff.Training(lr=0.1, batch_size=5), "seed": 3, "simulated": on(clients),
    }  # fmt: skip
    return ff.Job(**{**given, **changes})


def on(clients=4, **more):
    speeds = np.resize(np.array([9e3, 9e3, 3e3, 3e3], np.float32), clients)
    fleet = Fleet(flops_per_s=speeds, overhead_s=0.0, downlink_bytes_per_s=1e5, uplink_bytes_per_s=1e5)
    return ff.Simulated(**{"fleet": fleet, "workers": 1, **more})


def run(job, runs=None, **options):
    return job.run(runs=runs, progress=False, report=False, **options)


def messages(path):
    return np.fromfile(path / "messages.bin", MESSAGE)


def left(path: Path) -> dict[str, Any]:
    """Every file of a run, without what depends on the machine's clock."""
    out: dict[str, Any] = {}
    for name in ("messages.bin", "work.bin", "tasks.bin", "model.safetensors", "said.jsonl", "clients.jsonl",
                 "nodes.json"):  # fmt: skip
        out[name] = (path / name).read_bytes() if (path / name).exists() else b""
    rows = RunFolder.open(path, write=False).read_lines("rounds.jsonl")
    out["rows"] = [{k: v for k, v in row.items() if k != "wall_s"} for row in rows]
    summary = json.loads((path / "summary.json").read_text())
    kept = ("final", "rounds", "stopped", "virtual_s", "bytes_up", "bytes_down", "bytes_between", "tasks", "device_s",
            "compute_s", "energy_j")  # fmt: skip
    return out | {name: summary[name] for name in kept}


@pytest.fixture
def at_every_moment(monkeypatch):
    """Snapshots after every published version, however long they take."""
    call = Saver.__call__

    def always(saver, seen):
        saver._next = 0.0
        call(saver, seen)

    monkeypatch.setattr(Saver, "__call__", always)


# What a run leaves


@methods
def test_every_method_runs_to_its_end_and_leaves_rows_by_cycle(tmp_path, name):
    result = run(make(METHODS[name]), tmp_path)
    assert result.summary["algorithm"] == METHODS[name].name
    assert [row["round"] for row in result.rounds] == list(range(1, METHODS[name].cycles + 1))
    assert all({"accuracy", "train_loss", "bytes_between", "virtual_s"} <= row.keys() for row in result.rounds)
    assert result.final["accuracy"] == result.rounds[-1]["accuracy"]
    times = [row["virtual_s"] for row in result.rounds]
    assert times == sorted(times)


@methods
def test_the_files_of_the_nodes_add_up_to_the_summary(tmp_path, name):
    result = run(make(METHODS[name]), tmp_path)
    told = json.loads((result.path / "nodes.json").read_text())
    nodes, sent, work = told["nodes"], messages(result.path), np.fromfile(result.path / "work.bin", WORKED)
    peers = [one for one in nodes if one["role"] == "peer"]
    assert [one["device"] for one in peers] == [0, 1, 2, 3]
    assert [one["node"] for one in peers] == [f"peer/{i}" for i in range(4)]
    assert all(one["device"] is None for one in nodes if one["role"] != "peer")
    assert sent["bytes"].sum() == result.summary["bytes_between"]
    assert (result.summary["bytes_up"], result.summary["bytes_down"]) == (0.0, 0.0)
    assert sent["kind"].min() == 0
    assert sent["kind"].max() == len(told["kinds"]) - 1
    assert (sent["arrives_s"] >= sent["sent_s"]).all()
    assert len(work) == sum(result.summary["tasks"].values()) == len(read_tasks(result.path))
    assert (work["outcome"] == OK).all()
    assert (work["ended_s"] - work["begun_s"]).sum() == pytest.approx(sum(result.summary["device_s"].values()))
    assert {nodes[at]["device"] for at in work["node"]} == {0, 1, 2, 3}


def test_messages_name_their_cycle_epoch_and_hop(tmp_path):
    result = run(make(), tmp_path)
    kinds, sent = json.loads((result.path / "nodes.json").read_text())["kinds"], messages(result.path)

    def of(kind):
        return sent[sent["kind"] == kinds.index(kind)]

    assert set(of("Frame")["hop"]) == {0, 1}
    assert set(of("Frame")["epoch"]) == {0}
    assert set(of("Select")["cycle"]) == {1, 2, 3, 4}
    assert set(of("Profile")["cycle"]) == {-1}
    assert set(of("Version")["hop"]) == {-1}
    model = 4 * ff.mlp(6, 5, 3).layout.size
    assert (of("Broadcast")["bytes"] >= model).all()


def test_who_was_drawn_by_what_chance_is_on_record_once_per_cycle(tmp_path):
    result = run(make(), tmp_path)
    said = RunFolder.open(result.path, write=False).read_lines("said.jsonl")
    draws = [line for line in said if "chance" in line]
    assert [line["cycle"] for line in draws] == [1, 2, 3, 4]
    for line in draws:
        assert set(line["members"]) <= set(line["chance"])
        assert sum(line["chance"].values()) == pytest.approx(2.0)
        assert all(key in line for key in ("virtual_s", "epoch"))


def test_a_report_is_written_and_tells_bytes_between_nodes(tmp_path):
    job_file(tmp_path, JOB, "job.py")
    told = fieldfare(tmp_path, "run", "job.py", "-q")
    assert told.code == 0, told.err
    assert "between nodes" in told.out
    assert "between nodes" in (tmp_path / "runs" / "latest" / "report.html").read_text()


def test_central_runs_keep_no_files_of_nodes(tmp_path):
    result = run(make(ff.FedAvg(rounds=2, cohort=2)), tmp_path)
    assert not any((result.path / name).exists() for name in ("nodes.json", "messages.bin", "work.bin", "said.jsonl"))
    assert "bytes_between" not in result.summary


# Evaluation and stopping


def test_evaluation_every_k_cycles_and_of_the_last_version(tmp_path):
    result = run(make(ff.HADFL(cycles=5), evaluate=ff.Evaluation(every=2)), tmp_path)
    assert [row["round"] for row in result.rounds] == [1, 2, 3, 4, 5]
    assert [row["round"] for row in result.rounds if "accuracy" in row] == [2, 4, 5]
    lines = RunFolder.open(result.path, write=False).read_lines("rounds.jsonl")
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5]


@methods
def test_evaluation_changes_no_bit_of_what_is_trained(name):
    often = run(make(METHODS[name]))
    rarely = run(make(METHODS[name], evaluate=ff.Evaluation(every=100)))
    assert np.array_equal(often.model.vector, rarely.model.vector)
    assert often.final["accuracy"] == rarely.final["accuracy"]


@methods
def test_a_run_stops_at_its_target(name):
    whole = run(make(METHODS[name]))
    level = whole.rounds[1]["accuracy"]
    first = next(row["round"] for row in whole.rounds if row["accuracy"] >= level)
    early = run(make(METHODS[name], stop_at=ff.StopAt(at_least=level)))
    assert early.summary["stopped"].startswith("accuracy")
    assert [row["accuracy"] for row in early.rounds][:first] == [row["accuracy"] for row in whole.rounds][:first]
    assert first <= len(early.rounds) < len(whole.rounds) or first == len(whole.rounds)


def test_an_evaluation_that_takes_longer_than_the_run_still_measures_the_last_version():
    slow = run(make(simulated=on(evaluation_s=1e6)))
    quick = run(make())
    assert slow.final["accuracy"] == quick.final["accuracy"]
    assert np.array_equal(slow.model.vector, quick.model.vector)


def test_evaluation_on_clients_measures_what_was_published(tmp_path):
    plain = run(make())
    result = run(make(evaluate=ff.Evaluation(clients=3, clients_every=2)), tmp_path)
    assert np.array_equal(result.model.vector, plain.model.vector)
    lines = RunFolder.open(result.path, write=False).read_lines("evaluation.jsonl")
    assert {line["kind"] for line in lines} == {"federated"}
    assert all(len(line["clients"]) <= 3 for line in lines)
    assert "federated_accuracy_mean" in result.final


# Nothing but the seed matters


@methods
def test_neither_workers_nor_chunks_change_a_bit(tmp_path, name):
    one = run(make(METHODS[name]), tmp_path / "one")
    two = run(make(METHODS[name], simulated=on(workers=2, chunk=1)), tmp_path / "two")
    assert left(one.path) == left(two.path)


def test_another_seed_gives_another_run():
    assert not np.array_equal(run(make()).model.vector, run(make(seed=4)).model.vector)


def test_learning_rate_batches_and_steps_are_those_of_the_job_training():
    job = make(training=ff.Training(lr=0.03, batch_size=7, steps=9))
    nodes = {name: inner(algorithm) for name, (_, algorithm) in assemble(job).world.nodes.items()}
    assert nodes["peer/0"].batch_size == 7
    assert nodes["coordinator"].steps == 9
    slower = run(make(training=ff.Training(lr=1e-9)))
    assert np.allclose(slower.model.vector, ff.mlp(6, 5, 3).init(3).vector, atol=1e-4)


def inner(algorithm):
    while hasattr(algorithm, "inner"):
        algorithm = algorithm.inner
    return algorithm


SCHEDULES = {
    "cosine": {"schedule": "cosine", "schedule_rounds": 6}, "inverse_sqrt": {"schedule": "inverse_sqrt"},
    "step": {"schedule": "step", "schedule_rounds": 2, "decay": 0.1},
}  # fmt: skip


@methods
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_of_the_learning_rate_goes_by_each_peers_own_cycles(name, schedule):
    training = ff.Training(lr=0.3, batch_size=5, **SCHEDULES[schedule])
    taken: dict[str, list[tuple[int, float]]] = {}

    def watched(seen):
        if isinstance(seen, Worked) and seen.run.config["round"]:
            config = seen.run.config
            rate = config["lr"] if "lr" in config else training.lr_at(config["round"])
            taken.setdefault(seen.node, []).append((config["round"], rate, "lr" in config))

    world = assemble(make(METHODS[name], training=training)).world
    with Executor(world.works, make().data, workers=1) as executor:
        Simulator(world, executor, watched).run()
    for rates in taken.values():
        cycles = [one for one in rates if not one[2]]
        assert {one[0] for one in cycles} == set(range(1, METHODS[name].cycles + 1))
        assert all(rate == training.lr_at(cycle) for cycle, rate, _ in cycles)
        assert {rate for _, rate, warm in rates if warm} <= {0.1 * 0.3}
        assert min(rate for _, rate, _ in cycles) < max(rate for _, rate, _ in cycles)
    assert len(taken) == 4


@methods
def test_a_schedule_trains_otherwise_and_one_that_stays_where_it_is_does_not(name):
    given = {"lr": 0.3, "batch_size": 5}
    plain = run(make(METHODS[name], training=ff.Training(**given)))
    flat = run(make(METHODS[name], training=ff.Training(**given, schedule="step", schedule_rounds=1, decay=1.0)))
    falling = run(make(METHODS[name], training=ff.Training(**given, schedule="step", schedule_rounds=1, decay=0.1)))
    assert np.array_equal(plain.model.vector, flat.model.vector)
    assert not np.array_equal(plain.model.vector, falling.model.vector)


@pytest.mark.parametrize("algorithm", [ff.HADFL(3), ff.HADFL(2, mode="lcm"), ff.DecentralisedFedAvg(3),
                                       ff.PacedRing(3, pace=None)])  # fmt: skip
def test_epochs_are_so_many_steps_of_whoever_has_so_much_data(algorithm):
    even = ff.data.synthetic(clients=4, classes=3, features=6, min_examples=20, max_examples=20, seed=1)
    twice, steps = (
        run(make(algorithm, data=even, training=ff.Training(batch_size=5, **work)))
        for work in ({"epochs": 2}, {"steps": 8})
    )
    assert np.array_equal(twice.model.vector, steps.model.vector)
    assert twice.summary["virtual_s"] == steps.summary["virtual_s"]


def test_each_device_takes_its_own_epochs_in_lock_step():
    data = make().data
    world = assemble(make(ff.DecentralisedFedAvg(2), training=ff.Training(batch_size=5, epochs=3))).world
    told = []
    with Executor(world.works, data, workers=1) as executor:
        Simulator(world, executor, lambda seen: told.append(seen) if isinstance(seen, Worked) else None).run()
    for device, examples in enumerate(np.diff(data.offsets)):
        steps = {one.steps for one in told if one.node == f"peer/{device}" and "lr" not in one.run.config}
        assert steps == {3 * int(np.ceil(examples / 5))}


def test_settings_are_overridden_by_name_and_rounds_mean_cycles():
    job = make().with_overrides({"algorithm.cycles": 2, "algorithm.per_cycle": "none", "training.lr": 0.2})
    assert (job.algorithm.cycles, job.algorithm.per_cycle, job.training.lr) == (2, None, 0.2)
    assert make().with_overrides({"rounds": "7"}).algorithm.cycles == 7
    assert len(run(job).rounds) == 2
    with pytest.raises(UsageError, match="did you mean 'cycles'"):
        make().with_overrides({"algorithm.cycle": 3})


def test_the_command_line_overrides_cycles_and_lists_the_methods(tmp_path):
    job_file(tmp_path, JOB, "job.py")
    told = fieldfare(tmp_path, "run", "job.py", "-q", "--json", "--set", "algorithm.cycles=3")
    assert told.result["rounds"] == 3
    rows = {row["name"]: row for row in fieldfare(tmp_path, "algorithms", "--json").result["algorithms"]}
    for entry in DECENTRALISED:
        assert rows[entry.name]["use"] == f"ff.{entry.factory.__name__}"
        assert rows[entry.name]["paper"]


def test_a_method_without_a_cohort_is_not_built_as_one_with():
    with pytest.raises(UsageError, match=r"make it by HADFL\(cycles\)"):
        build("hadfl", 3, 4)


# Without training


@methods
def test_without_training_all_is_said_and_done_when_it_would_be(tmp_path, name):
    trained, still = (
        left(run(make(METHODS[name], simulated=on(train=train)), tmp_path).path) for train in (True, False)
    )
    for file in ("messages.bin", "work.bin", "tasks.bin", "said.jsonl", "virtual_s", "bytes_between", "energy_j"):
        assert still[file] == trained[file]
    times = [[(row["round"], row["virtual_s"]) for row in one["rows"]] for one in (trained, still)]
    assert times[0] == times[1]


@methods
def test_without_training_the_model_stays_as_it_is_and_nothing_is_measured(name):
    still = run(make(METHODS[name], simulated=on(train=False)))
    assert np.array_equal(still.model.vector, ff.mlp(6, 5, 3).init(3).vector)
    assert not any("accuracy" in row for row in still.rounds)


def test_a_sweep_without_training_has_a_row_per_point():
    from fieldfare.points import system_row

    job = make(simulated=on(train=False))
    row, whole = system_row(job), run(job)
    assert row["virtual_s"] == whole.summary["virtual_s"]
    assert row["tasks"] == whole.summary["tasks"]
    assert row["bytes_between"] == whole.summary["bytes_between"]
    assert row["versions"] == 4


# Refusals


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"algorithm": ff.HADFL(cycles=3, per_cycle=5)}, r"HADFL\(per_cycle=5\).*from 4 clients: use per_cycle <= 4"),
        ({"clients": 1}, "averages among devices and the data has 1 client"),
        ({"algorithm": ff.AllReduce(3), "clients": 1}, "averages among devices"),
        ({"algorithm": ff.GraphGossip(3, graph=((0, 9),))}, r"an edge \(0, 9\) and there are 4 devices"),
        (
            {"algorithm": ff.AllReduce(3), "training": ff.Training(epochs=2)},
            r"AllReduce averages after 1 local step: Training\(epochs=2\) would not be heeded",
        ),
        (
            {"algorithm": ff.PairGossip(3, 2), "training": ff.Training(epochs=2)},
            r"PairGossip averages after 2 local steps",
        ),
        (
            {"algorithm": ff.GraphGossip(3), "training": ff.Training(steps=5)},
            r"Training\(steps=5\) would not be heeded",
        ),
        ({"algorithm": ff.AllReduce(3), "training": ff.Training(momentum=0.9)}, "keeps no moments"),
        ({"algorithm": ff.PairGossip(3), "training": ff.Training(optimizer="adam")}, "keeps no moments"),
        (
            {"algorithm": ff.HADFL(3, stride=1), "training": ff.Training(momentum=0.9)},
            "HADFL trains one step at a time",
        ),
        ({"algorithm": ff.PacedRing(3), "training": ff.Training(steps=1, momentum=0.9)}, "keeps no moments"),
        (
            {"algorithm": ff.DecentralisedFedAvg(3), "training": ff.Training(steps=1, optimizer="adam")},
            "or more steps",
        ),
        ({"stop_at": ff.StopAt(patience=3)}, "publishes from several: use at_least= or at_most="),
        ({"evaluate": ff.Evaluation(clients=2, personal=True)}, "has no server: leave it out"),
        ({"algorithm": StopAt(ff.HADFL(3), at_least=0.5)}, r"StopAt\(HADFL\(\.\.\.\)\).*use Job\(stop_at"),
        ({"model": "opaque"}, "averages vectors among devices"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(changes, says):
    if changes.get("model") == "opaque":
        changes = {"model": ff.opaque(lambda model, data, config: model, init=lambda seed: b"")}
    with pytest.raises(UsageError, match=says) as refusal:
        assemble(make(**changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("made", [
    lambda: ff.HADFL(cycles=0), lambda: ff.HADFL(3, per_cycle=1), lambda: ff.HADFL(3, blend=0.0),
    lambda: ff.PacedRing(0), lambda: ff.DecentralisedFedAvg(0), lambda: ff.AllReduce(0), lambda: ff.PairGossip(0),
    lambda: ff.PairGossip(3, steps=0), lambda: ff.GraphGossip(0), lambda: ff.HADFL(cycle=3),
    lambda: ff.HADFL(3, smoothing=1.0), lambda: ff.HADFL(3, drift=-1.0), lambda: ff.HADFL(3, drift=float("nan")),
    lambda: ff.HADFL(3, slack=float("nan")), lambda: ff.HADFL(3, slack=float("inf")),
    lambda: ff.PacedRing(3, latency_s=float("nan"), bytes_per_s=1.0),
    lambda: ff.AllReduce(3, latency_s=0.0, bytes_per_s=0.0), lambda: ff.AllReduce(3, bytes_per_s=1e5),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused_when_they_are_given(made):
    with pytest.raises(UsageError) as refusal:
        made()
    assert "\n" not in str(refusal.value)


# Stopped anywhere, and gone on with


@methods
def test_all_that_is_under_way_can_be_stored(name):
    world = assemble(make(METHODS[name])).world
    found = registry(*(algorithm for _, algorithm in world.nodes.values()))
    said = {"hadfl", "pacedring", "fedavg", "allreduce"}
    wanted = {"Select", "Frame", "Broadcast", "Decided", "Welcome", "Probe"} if name in said else {"Offer"}
    assert wanted <= {label.rpartition(".")[2] for label in found}
    Codec(found)


class Stop(Exception):
    pass


@pytest.mark.usefixtures("at_every_moment")
@methods
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.sampled(3)
def test_a_run_stopped_after_any_cycle_is_resumed_to_the_same_bits_and_files(tmp_path, name, at):
    def stop(row):
        if row["round"] == at:
            raise Stop

    job = make(METHODS[name], evaluate=ff.Evaluation(every=2))
    whole = run(job, tmp_path / "whole")
    with pytest.raises(Stop):
        run(replace(job, callbacks=(stop,)), tmp_path / "cut")
    path = RunFolder.find("latest", tmp_path / "cut").path
    resumed = run(job, folder=RunFolder.open(path))
    assert np.array_equal(resumed.model.vector, whole.model.vector)
    assert left(path) == left(whole.path)


@pytest.mark.usefixtures("at_every_moment")
@methods
def test_a_run_saved_between_any_two_steps_goes_on_to_the_same_bits(tmp_path, name):
    """Stopped by the clock of its steps, so that frames and tokens are under way."""
    job = make(METHODS[name])
    whole = run(job, tmp_path / "whole")
    for at in (9, 37, 60) if name in ("pairs", "graph") else (40, 90, 133):
        folder = RunFolder.create_at(tmp_path / f"cut-{at}")
        with pytest.raises(Stop):
            stopped_after(job, folder, at)
        run(job, folder=RunFolder.open(folder.path))
        assert left(folder.path) == left(whole.path)


def stopped_after(job, folder, steps):
    """Run `job`, save after `steps` steps, and stop there."""
    from fieldfare.sim.observe import Progressed

    call = Saver.__call__

    def saving(saver, seen):
        if isinstance(seen, Progressed) and seen.steps == steps:
            saver.save()
            raise Stop
        if isinstance(seen, Progressed) and seen.steps > steps:
            raise AssertionError("gone too far")

    Saver.__call__ = saving
    try:
        run(job, folder=folder, fresh=True)
    finally:
        Saver.__call__ = call
        folder.close()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ff.HADFL(cycles=6)", "ff.PairGossip(cycles=12)"])
def test_a_run_killed_by_the_system_is_resumed_to_the_same_bits(tmp_path, method):
    job_file(tmp_path, JOB.replace("ff.HADFL(cycles=6)", method), "job.py")
    common: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False, "timeout": 120}
    whole = subprocess.run([*PROGRAM, "run", "job.py", "-q", "--runs", "whole"], env=environment(tmp_path), **common)
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.run([*PROGRAM, "run", "job.py", "-q"], env=environment(tmp_path, DIE_AFTER="4"), **common)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "runs" / "latest" / "summary.json").exists()
    resumed = subprocess.run([*PROGRAM, "resume", "-q"], env=environment(tmp_path), **common)
    assert resumed.returncode == 0, resumed.stderr
    assert left((tmp_path / "runs" / "latest").resolve()) == left((tmp_path / "whole" / "latest").resolve())


def test_a_run_folder_is_resumed_only_with_the_settings_it_was_begun_with(tmp_path):
    with RunFolder.create(tmp_path) as folder:
        run(make(), folder=folder, fresh=True)
        path = folder.path
    (path / "summary.json").unlink()
    with pytest.raises(UsageError, match=r"another job: algorithm\.cycles was 4 and is 5"):
        run(make(ff.HADFL(cycles=5)), folder=RunFolder.open(path))


# On fleets


@methods
def test_devices_own_links_carry_what_nodes_say(tmp_path, name):
    quick = run(make(METHODS[name]))
    slow = run(
        make(METHODS[name], simulated=on(fleet=replace(on().fleet, uplink_bytes_per_s=20.0, slow_links=True))), tmp_path
    )
    assert slow.summary["virtual_s"] > quick.summary["virtual_s"]
    sent = messages(slow.path)
    taken = (sent["arrives_s"] - sent["sent_s"])[np.isfinite(sent["arrives_s"])]
    assert taken.max() >= 4 * ff.mlp(6, 5, 3).layout.size / 20.0 / 4
    free = run(make(METHODS[name], simulated=on(links=Links(0.0, float("inf")))))
    assert free.summary["virtual_s"] <= quick.summary["virtual_s"]


def sessions(awake=9.0, asleep=4.0):
    """Device 1 comes and goes, the others stay."""
    always = [(0.0, 1e5)]
    turns = [(at, at + awake) for at in np.arange(0.0, 2000.0, awake + asleep)]
    return Availability.of([always, turns, always, always], period_s=np.inf)


@pytest.mark.parametrize("name", ["hadfl", "pacedring"])
def test_devices_that_come_and_go_are_on_record_and_the_run_goes_on(tmp_path, name):
    fleet = replace(on().fleet, availability=sessions())
    made = replace(METHODS[name], cycles=8)
    result = run(make(made, simulated=on(fleet=fleet)), tmp_path)
    assert result.rounds
    assert result.summary["stopped"] == "cycles"
    said = RunFolder.open(result.path, write=False).read_lines("said.jsonl")
    came = [line for line in said if "there" in line]
    assert came
    assert {line["node"] for line in came} == {"peer/1"}
    assert [line["there"] for line in came] == [i % 2 == 1 for i in range(len(came))]
    work = np.fromfile(result.path / "work.bin", WORKED)
    outcomes = {OUTCOMES[code]: int(n) for code, n in zip(*np.unique(work["outcome"], return_counts=True), strict=True)}
    assert outcomes == result.summary["tasks"]
    assert outcomes["interrupted"] > 0
    assert np.isnan(messages(result.path)["arrives_s"]).any()


@pytest.mark.usefixtures("at_every_moment")
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_run_on_slow_links_with_devices_that_go_is_resumed_to_the_same_bits(tmp_path, share):
    fleet = replace(on().fleet, availability=sessions(), uplink_bytes_per_s=400.0, slow_links=True)
    job = make(ff.HADFL(cycles=8, latency_s=0.0, bytes_per_s=40.0), simulated=on(fleet=fleet))
    whole = run(job, tmp_path / "whole")
    assert np.isnan(messages(whole.path)["arrives_s"]).any()
    at = whole.rounds[int(share * (len(whole.rounds) - 1))]["round"]

    def stop(row):
        if row["round"] == at:
            raise Stop

    with pytest.raises(Stop):
        run(replace(job, callbacks=(stop,)), tmp_path / "cut")
    path = RunFolder.find("latest", tmp_path / "cut").path
    run(job, folder=RunFolder.open(path))
    assert left(path) == left(whole.path)
