"""Jobs that plan their levels themselves: proved before the first round, planned again as devices change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from command_line import fieldfare, job_file

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.fleet import Drift, DriftTable, Fleet, MemoryTable
from fieldfare.run import Saver
from fieldfare.store.runs import RunFolder
from fieldfare.work.submodel import MultiRate, dry, needs, plan, replanned


@pytest.fixture(autouse=True)
def without_the_core(monkeypatch):
    """Memory is declared of the ways without the compiled core, and proved on them."""
    monkeypatch.setenv("FIELDFARE_PATH", "stacked")


FAMILY = ff.submodels(ff.mlp(64, 200, 100, 10), (1, 0.5, 0.25, 0.125))
TRAINING = ff.Training(lr=0.01, batch_size=20)
NEEDS = needs(FAMILY, TRAINING)
DATA = ff.data.synthetic(clients=6, classes=10, features=64, max_examples=60, seed=2)
M = [need.cost.memory_bytes for need in NEEDS]
RAM = np.array([1e6, M[0], M[1] + 1.0, M[2], M[3], 2e4])
"""Levels 1, 1, 1/2, 1/4, 1/8 and none."""


def job(fleet, view=None, rounds=3, cohort=3, model=FAMILY, workers=1, **more):
    view = FAMILY.fitting() if view is None else view
    return ff.Job(model=model, data=DATA, algorithm=ff.HeteroFL(rounds, cohort, view=view), training=TRAINING,
                  simulated=ff.Simulated(fleet=fleet, workers=workers), **more)  # fmt: skip


def run(one):
    return one.run(None, progress=False)


def test_a_job_that_plans_for_itself_trains_what_a_plan_by_hand_trains():
    fleet = Fleet(memory_bytes=RAM)
    found = plan(FAMILY, fleet, TRAINING, known=NEEDS)
    assert found.assign.tolist() == [0, 0, 1, 2, 3, -1]
    by_hand = run(job(found.marked(fleet), found.view(), cohort=ff.Sample(3, where="fits")))
    planned = run(job(fleet))
    assert planned.model.vector.tobytes() == by_hand.model.vector.tobytes()
    assert planned.summary["bytes_down"] == by_hand.summary["bytes_down"]


def downs(done):
    """Bytes sent to clients in each round."""
    return np.diff([0.0, *(row["bytes_down"] for row in done.rounds)]).round().astype(int).tolist()


def test_who_fits_no_level_is_not_asked_and_is_named_in_the_record(capsys):
    done = job(Fleet(memory_bytes=RAM), rounds=6, cohort=5).run(None, progress=False)
    told = done.summary["plan"]
    assert (told["outside"], told["outside_ids"]) == (1, [5])
    assert told["why"][0].startswith("device 5 fits no level: the smallest, 1/8, takes")
    assert told["levels"]["1"] == {"devices": 2, "memory_bytes": M[0]}
    assert [one["ok"] for one in told["dry_runs"]] == [True] * 4
    assert "left out: device 5 fits no level" in capsys.readouterr().err
    assert {row["clients"] for row in done.rounds} == {5}


@pytest.mark.parametrize("cohort", [6, ff.Everyone(), np.arange(1, 6)], ids=["sample", "everyone", "named"])
def test_a_cohort_is_of_those_who_fit(cohort):
    done = run(job(Fleet(memory_bytes=RAM), cohort=cohort))
    assert {row["clients"] for row in done.rounds} == {4 if isinstance(cohort, np.ndarray) else 5}


def test_a_flag_of_the_fleet_counts_beside_the_plan():
    flags = {"wired": np.array([True, False, True, False, False, True])}
    done = run(job(Fleet(memory_bytes=RAM, flags=flags), cohort=ff.Sample(3, where="wired")))
    assert {row["clients"] for row in done.rounds} == {2}
    with pytest.raises(UsageError, match="no such column"):
        run(job(Fleet(memory_bytes=RAM, flags=flags), cohort=ff.Sample(3, where="wirred")))
    flags = {"wired": np.arange(6) == 5}
    with pytest.raises(UsageError, match="none of the devices that are 'wired' fits"):
        run(job(Fleet(memory_bytes=RAM, flags=flags), cohort=ff.Sample(1, where="wired")))


def test_a_job_in_which_nobody_fits_is_refused_with_the_reason():
    with pytest.raises(UsageError, match=r"from 0 s on no device of this fleet fits any level\. device 0 fits"):
        run(job(Fleet(memory_bytes=2e4)))
    later = MemoryTable([0.0, 500.0], np.repeat([[1e6, 2e4]], 6, axis=0))
    with pytest.raises(UsageError, match="from 500 s on no device"):
        run(job(Fleet(memory=later)))


def test_a_view_of_another_model_is_refused():
    with pytest.raises(UsageError, match="the view of another model"):
        run(job(Fleet(memory_bytes=RAM), model=ff.mlp(64, 30, 10)))
    with pytest.raises(UsageError, match="above zero"):
        FAMILY.fitting(deadline_s=0.0)
    with pytest.raises(UsageError, match="from the simulated fleet of a Job"):
        FAMILY.fitting().plan(np.arange(3))


def memory(*columns, at=(0.0, 7.0)):
    """Bytes of all devices alike, from each time on."""
    return MemoryTable(at, np.repeat([list(columns)], 6, axis=0))


def test_rounds_after_a_change_of_memory_go_by_the_new_plan():
    whole = run(job(Fleet(memory_bytes=M[0]), rounds=6))
    at = float(whole.rounds[2]["virtual_s"])
    changed = run(job(Fleet(memory=memory(M[0], M[2], at=(0.0, at))), rounds=6))
    before = plan(FAMILY, Fleet(memory_bytes=np.full(6, M[0])), TRAINING, known=NEEDS)
    after = plan(FAMILY, Fleet(memory_bytes=np.full(6, M[2])), TRAINING, known=NEEDS)
    by_hand = run(job(Fleet(), replanned(before, (4, after)), rounds=6))
    assert changed.model.vector.tobytes() == by_hand.model.vector.tobytes()
    assert downs(changed) == downs(by_hand) == [12 * NEEDS[0].cost.parameters] * 3 + [12 * NEEDS[2].cost.parameters] * 3
    assert changed.summary["plan"]["changes_s"] == [at]


def test_who_fits_only_later_joins_then():
    free = np.full((6, 2), M[0])
    free[4:, 0] = 1e4
    done = run(job(Fleet(memory=MemoryTable([0.0, 2.0], free)), rounds=6, cohort=6))
    assert (done.rounds[0]["clients"], done.rounds[-1]["clients"]) == (4, 6)
    assert done.summary["plan"]["outside_ids"] == [4, 5]


def test_speeds_that_change_are_planned_again_under_a_deadline_and_matter_not_without():
    base = {"memory_bytes": np.full(6, 1e6), "flops_per_s": 2e7, "overhead_s": 0.1}
    slow = Fleet(**base, drift=DriftTable([0.0, 4.0], np.repeat([[1.0, 0.05]], 6, axis=0)))
    down = downs(run(job(slow, FAMILY.fitting(deadline_s=1.5), rounds=8)))
    assert down[-1] < down[0]
    assert len(set(downs(run(job(slow, rounds=8))))) == 1
    drifting = Fleet(**base, drift=Drift(1.0, 0.5, 2.0, seed=3))
    found = run(job(drifting, FAMILY.fitting(deadline_s=1.5), rounds=8))
    assert len(set(downs(found))) > 1
    assert {one["level"] for one in found.summary["plan"]["dry_runs"]} == {"1", "1/2", "1/4", "1/8"}


def test_clients_that_are_always_at_work_get_levels_as_they_begin():
    free = np.full((6, 2), M[0])
    free[:, 1] = M[2]
    free[5] = 1e4
    one = ff.Job(
        model=FAMILY, data=DATA, training=TRAINING,
        algorithm=ff.FedBuff(8, 3, 2, server=ff.aggregate.chain(ff.aggregate.coverage()), view=FAMILY.fitting()),
        simulated=ff.Simulated(fleet=Fleet(memory=MemoryTable([0.0, 4.0], free)), workers=1),
    )  # fmt: skip
    done = run(one)
    assert done.summary["rounds"] == 8
    assert downs(done)[-1] < max(downs(done)[:3])
    assert done.summary["plan"]["outside_ids"] == [5]


def test_rings_hold_the_parts_planned_at_the_start_and_changes_are_refused():
    def ring(fleet):
        return ff.Job(model=FAMILY, data=DATA, training=TRAINING, algorithm=ff.HADFL(2, view=FAMILY.fitting()),
                      simulated=ff.Simulated(fleet=fleet, workers=1))  # fmt: skip

    done = run(ring(Fleet(memory_bytes=np.maximum(RAM, M[3]))))
    assert {name: one["devices"] for name, one in done.summary["plan"]["levels"].items()} == {
        "1": 2, "1/2": 1, "1/4": 1, "1/8": 2,
    }  # fmt: skip
    with pytest.raises(UsageError, match="HADFL trains on every device: device 5 fits no level"):
        run(ring(Fleet(memory_bytes=RAM)))
    with pytest.raises(UsageError, match="the same part in every cycle"):
        run(ring(Fleet(memory=memory(M[0], M[2]))))
    assert run(ring(Fleet(memory=memory(M[0], M[0] + 5.0)))).summary["plan"]["outside"] == 0


def test_rules_that_draw_levels_draw_them_below_the_planned_ones():
    done = run(job(Fleet(memory_bytes=RAM), FAMILY.fitting(MultiRate())))
    found = plan(FAMILY, Fleet(memory_bytes=RAM), TRAINING, known=NEEDS)
    by_hand = run(
        job(found.marked(Fleet(memory_bytes=RAM)), found.view(MultiRate()), cohort=ff.Sample(3, where="fits"))
    )
    assert done.model.vector.tobytes() == by_hand.model.vector.tobytes()


def test_where_a_step_fails_its_devices_get_the_next_level(monkeypatch):
    family = ff.submodels(ff.mlp(64, 210, 100, 10), (1, 0.5, 0.25, 0.125))
    need = needs(family, TRAINING)
    true, tried = dry.dry_run, []

    def failing(family, level, budget, training, **more):
        tried.append((level.name, budget))
        done = true(family, level, budget, training, **more)
        fails = level.name == "1" and budget < 1e6
        return replace(done, ok=False, used_bytes=int(2 * budget)) if fails else done

    monkeypatch.setattr(dry, "dry_run", failing)
    ram = np.array([need[0].cost.memory_bytes, 4e6, 4e6, 4e6, 4e6, 4e6])
    one = job(Fleet(memory_bytes=ram), family.fitting(), model=family)
    told = run(one).summary["plan"]
    assert told["levels"]["1"]["devices"] == 5
    assert told["levels"]["1/2"]["devices"] == 1
    assert [(d["level"], d["ok"]) for d in told["dry_runs"]] == [("1", False), ("1", True), ("1/2", True)]


def test_what_was_proved_of_a_net_is_not_proved_again(monkeypatch):
    family = ff.submodels(ff.mlp(64, 220, 100, 10), (1, 0.5))
    tried = []
    true = dry.dry_run

    def counted(*args, **more):
        tried.append(args[1].name)
        return true(*args, **more)

    monkeypatch.setattr(dry, "dry_run", counted)
    for _ in range(2):
        run(job(Fleet(memory_bytes=4e6), family.fitting(), model=family, rounds=1))
    assert tried == ["1"]
    run(job(Fleet(memory_bytes=4e6), family.fitting(prove=False), model=family, rounds=1))
    assert tried == ["1"]


NESTED = ff.NestedFL(2, 6, distil=0.5, shares=(1, 0.5, 0.25, 0.125), view=FAMILY.fitting())
ALGORITHMS_THAT_CHANGE_STEPS = {
    "nested": NESTED,
    "rounded": ff.quantise(ff.HeteroFL(2, 6, view=FAMILY.fitting()), bits=8),
    "feedback": ff.compress(ff.HeteroFL(2, 6, view=FAMILY.fitting()), share=0.1),
}


@pytest.mark.parametrize("kind", ALGORITHMS_THAT_CHANGE_STEPS)
def test_the_step_that_is_planned_and_proved_is_the_one_the_algorithm_takes(kind):
    algorithm = ALGORITHMS_THAT_CHANGE_STEPS[kind]
    really = needs(FAMILY, TRAINING, algorithm.local)
    more = really[0].cost.memory_bytes
    assert more > M[0] > really[1].cost.memory_bytes
    between = np.full(6, (more + M[0]) / 2)
    done = run(replace(job(Fleet(memory_bytes=between)), algorithm=algorithm)).summary["plan"]
    assert {name: one["devices"] for name, one in done["levels"].items()} == {"1": 0, "1/2": 6, "1/4": 0, "1/8": 0}
    assert [(one["level"], one["ok"]) for one in done["dry_runs"]] == [("1/2", True)]
    assert done["dry_runs"][0]["used_bytes"] == pytest.approx(really[1].cost.memory_bytes, rel=0.05)
    plain = run(job(Fleet(memory_bytes=between), cohort=6)).summary["plan"]
    assert plain["levels"]["1"]["devices"] == 6


def test_a_dry_run_fails_where_only_the_plain_step_fits():
    rows = {"x": np.zeros((4, 64), np.float32), "y": np.arange(4)}
    budget = M[0]
    assert dry.dry_run(FAMILY, 1, budget, TRAINING, example=rows).ok
    done = dry.dry_run(FAMILY, 1, budget, TRAINING, example=rows, local=NESTED.local)
    assert not done.ok
    assert done.used_bytes > 1.1 * budget


def test_a_plan_by_hand_counts_what_it_is_told_of_the_algorithm():
    fleet = Fleet(memory_bytes=np.full(6, M[0]))
    assert plan(FAMILY, fleet, TRAINING).assign.tolist() == [0] * 6
    found = plan(FAMILY, fleet, TRAINING, local=NESTED.local)
    assert found.assign.tolist() == [1] * 6
    assert plan(FAMILY, Fleet(memory_bytes=np.full(6, 7.4e4)), TRAINING).fits.all()
    few = plan(FAMILY, Fleet(memory_bytes=np.full(6, 7.4e4)), TRAINING, local=ff.quantise(NESTED, bits=8).local)
    batch = int(few.why(0).split("batch_size=")[1].split()[0])
    taken = [needs(FAMILY, replace(TRAINING, batch_size=b), few.local)[3].cost.memory_bytes for b in (batch, batch + 1)]
    assert taken[0] <= 7.4e4 < taken[1]


def test_the_report_says_who_was_left_out(tmp_path):
    done = job(Fleet(memory_bytes=RAM), rounds=2).run(tmp_path, progress=False)
    assert done.path is not None
    page = (done.path / "report.html").read_text()
    assert "1 device was left out of training at the start. device 5 fits no level" in page
    whole = job(Fleet(memory_bytes=4e6), rounds=2).run(tmp_path, progress=False)
    assert whole.path is not None
    assert "left out of training" not in (whole.path / "report.html").read_text()


FILE = """
import os
import numpy as np
import fieldfare as ff
from fieldfare.fleet import Fleet, MemoryTable

class Stop(Exception):
    pass

def stop(row):
    if row["round"] == int(os.environ.get("STOP_AT", "0")):
        raise Stop

family = ff.submodels(ff.mlp(16, 60, 5), (1, 0.5, 0.25))
free = np.full((10, 3), 1e6)
free[::2, 1], free[:, 2], free[7] = 2e4, 1.6e4, 1e4
job = ff.Job(
    family, ff.synthetic(clients=10, classes=5, features=16, seed=3, min_examples=12, max_examples=20),
    ALGORITHM, ff.Training(lr=0.1, batch_size=6), callbacks=(stop,),
    simulated=ff.Simulated(
        workers=int(os.environ.get("WORKERS", "1")), fleet=Fleet(memory=MemoryTable([0, 2, 4], free)),
    ),
)
"""
ALGORITHMS = {
    "rounds": "ff.HeteroFL(8, 5, view=family.fitting())",
    "stream": "ff.FedBuff(8, 5, 3, server=ff.aggregate.chain(ff.aggregate.coverage()), view=family.fitting())",
}


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_a_stopped_run_that_plans_again_is_resumed_to_the_same_bits(tmp_path, monkeypatch, kind):
    call = Saver.__call__

    def always(saver, seen):
        saver._next = 0.0
        call(saver, seen)

    monkeypatch.setattr(Saver, "__call__", always)
    job_file(tmp_path, FILE.replace("ALGORITHM", ALGORITHMS[kind]))
    monkeypatch.setenv("STOP_AT", "4")
    assert fieldfare(tmp_path, "run", "hello.py", "-q").code == 1
    monkeypatch.setenv("STOP_AT", "0")
    resumed = fieldfare(tmp_path, "resume", "-q", "--json")
    assert resumed.code == 0, resumed.err
    monkeypatch.setenv("WORKERS", "2")
    assert fieldfare(tmp_path, "run", "hello.py", "-q", "--runs", "whole").code == 0
    ends = [RunFolder.find("latest", tmp_path / name) for name in ("runs", "whole")]
    one, two = ((end.path / "model.safetensors").read_bytes() for end in ends)
    assert one == two
    rows = ends[0].read_lines("rounds.jsonl")
    assert rows[-1]["accuracy@1/4"] == ends[1].read_lines("rounds.jsonl")[-1]["accuracy@1/4"]
    assert len(set(np.diff([row["bytes_down"] for row in rows]).tolist())) > 1


@pytest.mark.parametrize(
    ("times", "free", "said"),
    [
        ([0.0, 1.0], [[1.0]], "give k times from 0"),
        ([1.0], [[1.0]], "give k times from 0"),
        ([0.0, 0.0], [[1.0, 2.0]], "ascend"),
        ([0.0], [[1.0], [0.0]], "device 1"),
    ],
)
def test_tables_of_memory_that_make_no_sense_are_refused(times, free, said):
    with pytest.raises(UsageError, match=said):
        MemoryTable(times, free)


def test_a_table_of_memory_is_about_the_devices_of_the_job():
    with pytest.raises(UsageError, match="about 5 devices, the job has 6"):
        run(job(Fleet(memory=MemoryTable([0.0], np.full((5, 1), 1e6)))))
    assert Fleet(memory=memory(1e6, 2e6)).describe()["memory"] == "a table of 2 values of each device"
