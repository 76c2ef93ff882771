"""Sweeps: one job over a grid of settings; what a point tells, what is kept, what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
from command_line import HELLO, PROGRAM, environment, fieldfare, job_file

import fieldfare as ff
from fieldfare.cli_sweep import _values
from fieldfare.points import system_row
from fieldfare.report import plots_sweep, style
from fieldfare.report.sweep import columns_of, grid_of
from fieldfare.side_by_side import side_by_side
from fieldfare.sim.pool import WorkerDied
from fieldfare.store.runs import RunFolder

ASYNC = HELLO.replace(
    "algorithm=ff.FedAvg(rounds=4, cohort=4),",
    "algorithm=ff.FedBuff(rounds=12, cohort=4, buffer=2),\n"
    "    simulated=ff.Simulated(fleet=ff.fleet.phones(flops_per_s=3e3)),",
)


def job(**changes):
    """Asynchronous training of 40 clients on unlike phones."""
    return ff.Job(
        data=ff.data.synthetic(clients=40, classes=3, features=4, max_examples=80, seed=2),
        model=ff.mlp(4, 3),
        algorithm=ff.FedBuff(rounds=30, cohort=8, buffer=4),
        simulated=ff.Simulated(fleet=ff.fleet.phones(1.0, flops_per_s=3e3)),
    ).with_overrides(changes)


def told(rows):
    """Rows without what depends on the machine."""
    return [{k: v for k, v in row.items() if k != "wall_s"} for row in rows]


def test_the_points_are_the_product_of_all_values_and_seeds():
    sweep = ff.Sweep(job(), {"algorithm.cohort": (4, 8), "algorithm.stale.limit": ("none", 2)}, seeds=(0, 1))
    points = sweep.points()
    assert [point.number for point in points] == list(range(8))
    assert points[0].label == "cohort=4, limit=none"
    assert [p.seed for p in points[:4]] == [0, 1, 0, 1]
    made = [sweep.job_at(point) for point in points]
    assert [(j.algorithm.cohort, j.algorithm.stale.limit, j.seed) for j in made[2:5]] == [
        (4, 2, 0),
        (4, 2, 1),
        (8, None, 0),
    ]


@pytest.mark.parametrize("train", [False, True])
def test_a_row_tells_what_the_run_of_the_same_job_tells(train, tmp_path):
    sweep = ff.Sweep(job(), {"algorithm.buffer": (2, 5)}, seeds=(3,), system_only=not train)
    rows = sweep.run(tmp_path / "swept", progress=False, jobs=1).rows
    for row, buffer in zip(rows, (2, 5), strict=True):
        alone = job(**{"algorithm.buffer": buffer, "seed": 3, "simulated.train": train})
        alone = alone.run(tmp_path / "alone", progress=False)
        for name in ("virtual_s", "tasks", "running", "bytes_down", "bytes_up", "energy_j"):
            assert row[name] == alone.summary[name], name
        assert row["versions"] == len(alone.rounds) == 30
        assert sum(row["device_h"].values()) == pytest.approx(sum(alone.summary["device_s"].values()) / 3600)
        weight = [r["clients"] for r in alone.rounds]
        assert row["staleness"]["mean"] == pytest.approx(
            np.average([r["staleness"] for r in alone.rounds], weights=weight)
        )
        assert bool(row["final"]) == train
        took = np.diff([r["virtual_s"] for r in alone.rounds], prepend=0.0)
        assert row["version_s"]["median"] == pytest.approx(float(np.median(took)))
        assert row["concurrency"] <= 8.0


def test_a_sweep_of_one_process_and_of_several_gives_the_same_rows(tmp_path):
    sweep = ff.Sweep(job(), {"algorithm.cohort": (4, 8, 12)}, seeds=(0, 1), system_only=True)
    alone, several = (sweep.run(tmp_path, progress=False, jobs=n) for n in (1, 3))
    assert told(alone.rows) == told(several.rows)
    assert [row["point"] for row in several.rows] == list(range(6))
    assert len({json.dumps(row["tasks"]) + str(row["virtual_s"]) for row in alone.rows}) == 6
    kept = RunFolder.open(several.path, write=False)
    assert told(kept.read_lines("sweep.jsonl")) == told(alone.rows)
    assert kept.read_json("summary.json")["points"] == 6


def test_longer_waiting_for_a_fuller_buffer_takes_proportionally_longer(tmp_path):
    sweep = ff.Sweep(job(), {"buffer": (2, 4, 8)}, system_only=True)
    with pytest.raises(ff.UsageError, match="buffer"):
        sweep.run(None, progress=False)
    rows = (
        ff.Sweep(job(**{"algorithm.rounds": 200}), {"algorithm.buffer": (2, 4, 8)}, system_only=True)
        .run(None, progress=False, jobs=1)
        .rows
    )
    means = [row["version_s"]["mean"] for row in rows]
    assert means[1] / means[0] == pytest.approx(2, rel=0.05)
    assert means[2] / means[0] == pytest.approx(4, rel=0.05)


def test_hours_end_a_point_at_its_last_whole_version():
    whole = system_row(job(**{"simulated.train": False}))
    part = system_row(job(**{"simulated.train": False}), hours=0.5 * whole["virtual_s"] / 3600)
    assert 0 < part["versions"] < whole["versions"]
    assert part["virtual_s"] <= 0.5 * whole["virtual_s"]
    assert part["stopped"] == "hours"
    with pytest.raises(ff.UsageError, match="no version is made within hours"):
        system_row(job(**{"simulated.train": False}), hours=1e-9)


def test_synchronous_jobs_are_swept_over_deadlines_and_none():
    one = replace(job(), algorithm=ff.SemiSync(rounds=6, cohort=4, deadline_s=30.0))
    rows = ff.Sweep(one, {"algorithm.deadline_s": ("none", "2.0")}, system_only=True).run(None, progress=False).rows
    assert [row["settings"]["algorithm.deadline_s"] for row in rows] == [None, 2.0]
    assert rows[1]["virtual_s"] <= 12.0 < rows[0]["virtual_s"]
    assert rows[1]["version_s"]["max"] == pytest.approx(2.0)
    assert rows[0]["staleness"] == {}


def test_a_sweep_that_was_stopped_goes_on_with_the_points_that_are_left(tmp_path, monkeypatch):
    from fieldfare import sweep as module

    sweep = ff.Sweep(job(), {"algorithm.cohort": (4, 8, 12)}, seeds=(0, 1), system_only=True)
    whole = sweep.run(tmp_path / "whole", progress=False, jobs=1)
    made = []

    def failing(one, hours):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(one)
        return system_row(one, hours)

    monkeypatch.setattr(module, "system_row", failing)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(tmp_path / "part", progress=False, jobs=1)
    folder = RunFolder.find("latest", tmp_path / "part")
    assert not folder.complete
    assert len(folder.read_lines("sweep.jsonl")) == 3
    with (folder.path / "sweep.jsonl").open("ab") as file:
        file.write(b'{"point": 5, "cut')
    made.clear()
    made.extend("no" for _ in range(4))
    other = ff.Sweep(job(), {"algorithm.cohort": (4, 8)}, seeds=(0, 1), system_only=True)
    with pytest.raises(ff.UsageError, match="has over"):
        ff.resume_run(folder.path, job=other, progress=False)
    done = sweep.run(folder=RunFolder.open(folder.path), progress=False, jobs=1)
    assert len(made) == 7
    assert told(done.rows) == told(whole.rows)
    again = ff.resume_run(folder.path, progress=False)
    assert told(again.rows) == told(whole.rows)


def test_the_command_writes_table_summary_and_report_and_reports_again(tmp_path):
    job_file(tmp_path, ASYNC)
    done = fieldfare(
        tmp_path, "sweep", "hello.py", "--over", "algorithm.cohort=4,8", "--over", "algorithm.stale.limit=none,1",
        "--seeds", "0,1", "--system-only", "--rounds", 5, "--json", "--jobs", 1, "-q",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.err == ""
    run = tmp_path / "runs" / done.result["run"]
    rows = [json.loads(line) for line in (run / "sweep.jsonl").read_text().splitlines()]
    assert len(rows) == done.result["points"] == 8
    assert {row["versions"] for row in rows} == {5}
    assert rows[0]["settings"] == {"algorithm.cohort": 4, "algorithm.stale.limit": None}
    page = (run / "report.html").read_text()
    assert "cohort 4, 8 × limit none, 1" in page
    (run / "report.html").unlink()
    assert fieldfare(tmp_path, "report", run.name).code == 0
    assert (run / "report.html").read_text() == page
    shown = fieldfare(tmp_path, "resume", run.name)
    assert shown.code == 0
    assert "tasks/h" in shown.out


def test_a_trained_sweep_keeps_every_point_as_a_run_and_can_be_gone_on_with_by_the_command(tmp_path):
    job_file(tmp_path, ASYNC)
    done = fieldfare(tmp_path, "sweep", "hello.py", "--over", "training.lr=0.05,0.2", "--seeds", "0,1", "--json", "-q")
    assert done.code == 0, done.err
    run = tmp_path / "runs" / done.result["run"]
    arms = sorted(path.parent.relative_to(run / "arms").as_posix() for path in run.glob("arms/*/*/summary.json"))
    assert arms == ["lr=0.05/0", "lr=0.05/1", "lr=0.2/0", "lr=0.2/1"]
    rows = (run / "sweep.jsonl").read_text().splitlines()
    assert all("accuracy" in json.loads(row)["final"] for row in rows)
    (run / "summary.json").unlink()
    (run / "sweep.jsonl").write_text(rows[0] + "\n")
    (run / "arms" / "lr=0.2" / "1" / "summary.json").unlink()
    again = fieldfare(tmp_path, "resume", run.name, "--json", "-q")
    assert again.code == 0, again.err
    after = [json.loads(row) for row in (run / "sweep.jsonl").read_text().splitlines()]
    assert told(after) == told(map(json.loads, rows))


HOPELESS = ff.Sweep(job(), {"algorithm.timeout_s": (0.5, "none", 60.0)}, seeds=(0, 1), system_only=True)
"""No task of these phones is over in half a second, so with that no version would ever come."""


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.sampled(2)
def test_a_point_that_cannot_be_run_ends_no_other(jobs, tmp_path, capsys):
    done = HOPELESS.run(tmp_path, progress=False, jobs=jobs)
    assert [row.get("failed", False) for row in done.rows] == [True, True, False, False, False, False]
    assert all("the tasks are too long" in row["stopped"] for row in done.rows[:2])
    assert done.summary["failed"] == 2
    alone = replace(HOPELESS, over={"algorithm.timeout_s": ("none", 60.0)}).run(tmp_path, progress=False, jobs=1)
    drop = ("wall_s", "point")
    assert [{k: v for k, v in row.items() if k not in drop} for row in done.rows[2:]] == [
        {k: v for k, v in row.items() if k not in drop} for row in alone.rows
    ]
    assert capsys.readouterr().err.count("point timeout_s=0.5, seed") == 2
    text = (done.path / "report.html").read_text()
    assert "could not be run, and is left out below: timeout_s=0.5, seed 0; timeout_s=0.5, seed 1" in text
    assert "A gap is a point without this number" in text


@pytest.mark.slow
def test_resuming_goes_past_a_point_that_cannot_be_run(tmp_path, monkeypatch):
    done = HOPELESS.run(tmp_path / "whole", progress=False, jobs=1)
    import fieldfare.sweep as module

    real, seen = module.system_row, []

    def stop(one, hours):
        seen.append(one)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(one, hours)

    monkeypatch.setattr(module, "system_row", stop)
    with pytest.raises(KeyboardInterrupt):
        HOPELESS.run(tmp_path / "runs", progress=False, jobs=1)
    monkeypatch.setattr(module, "system_row", real)
    folder = RunFolder.open(RunFolder.find("latest", tmp_path / "runs").path)
    assert told(HOPELESS.run(folder=folder, progress=False, jobs=1).rows) == told(done.rows)


def test_a_trained_sweep_goes_past_a_point_whose_training_fails(tmp_path):
    sweep = ff.Sweep(job(bad_updates="stop"), {"training.lr": (0.1, 1e30)})
    done = sweep.run(tmp_path, progress=False)
    assert [row.get("failed", False) for row in done.rows] == [False, True]
    assert "not finite" in done.rows[1]["stopped"]


def test_a_sweep_of_which_no_point_can_be_run_says_why(tmp_path):
    hopeless = replace(HOPELESS, over={"algorithm.timeout_s": (0.5, 0.4)})
    with pytest.raises(ff.UsageError, match=r"no point of this sweep can be run; the first, timeout_s=0.5: .*too long"):
        hopeless.run(tmp_path, progress=False)


def test_the_command_ends_with_code_7_where_points_could_not_be_run(tmp_path):
    (tmp_path / "a.py").write_text(ASYNC)
    words = ("a.py", "--over", "algorithm.timeout_s=0.5,none", "--system-only", "-q")
    done = fieldfare(tmp_path, "sweep", *words)
    assert done.code == 7
    assert "1 of 2 points could not be run" in done.out
    assert "timeout_s=0.5, seed" in done.err
    assert fieldfare(tmp_path, "sweep", *words, "--json").code == 7
    assert fieldfare(tmp_path, "resume", "-q", "--json").result["failed"] == 1


def test_a_gap_in_a_curve_is_where_a_point_could_not_be_run():
    rows = [system_row(job(**{"simulated.train": False, "algorithm.buffer": n})) for n in (2, 3, 4)]
    for number, row in enumerate(rows):
        row |= {"point": number, "settings": {"algorithm.buffer": 2 + number}, "seed": 0}
    rows[1] = {"point": 1, "settings": {"algorithm.buffer": 3}, "seed": 0, "failed": True, "stopped": "no", "wall_s": 0}
    grid = grid_of({"algorithm.buffer": (2, 3, 4)}, rows)
    assert [place.values for place in grid.places] == [(2,), (4,)]
    with style.drawing():
        drawn = [one for one in plots_sweep.sweep_pictures(grid) if one is not None]
    assert sum("A gap is a point" in one.note for one in drawn) == len(drawn) - 1 > 2


@pytest.mark.slow
def test_an_interrupted_sweep_keeps_its_points_and_resume_ends_with_the_same_rows(tmp_path):
    job_file(tmp_path, ASYNC.replace("rounds=12", "rounds=3000"))
    args = ("hello.py", "--over", "algorithm.cohort=4,6,8,10", "--seeds", "0,1,2", "--system-only", "--jobs", "2")
    process = subprocess.Popen(
        [*PROGRAM, "sweep", *args], cwd=tmp_path, env=environment(tmp_path), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    table = tmp_path / "runs" / "latest" / "sweep.jsonl"
    while time.monotonic() < until and not (table.exists() and table.read_text().count("\n") >= 2):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    kept = table.read_text().count("\n")
    assert 2 <= kept < 12
    assert fieldfare(tmp_path, "resume", "-q").code == 0
    rows = [json.loads(row) for row in table.read_text().splitlines()]
    whole = fieldfare(tmp_path, "sweep", *args, "-q")
    assert whole.code == 0
    assert told(rows) == told(map(json.loads, table.resolve().read_text().splitlines()))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "needs --over KEY=V1,V2"),
        (("--over", "algorithm.cohort"), "write KEY=V1,V2"),
        (("--over", "algorithm.cohort="), "a value is empty"),
        (("--over", "algorithm.cohort=4,,8"), "a value is empty"),
        (("--over", "algorithm.cohort=4,4"), "a value is there twice"),
        (("--over", "algorithm.cohrt=4,8"), "did you mean 'cohort'"),
        (("--over", "algorithm.cohort=4,x"), "use a whole number"),
        (("--over", "algorithm.cohort=4,400"), "can never be drawn"),
        (("--over", "algorithm.cohort=4", "--over", "algorithm.cohort=8"), "names a setting twice"),
        (("--over", "seed=1,2"), "use --seeds"),
        (("--over", "algorithm.cohort=4,8", "--seeds", "a"), "--seeds 'a'"),
        (("--over", "algorithm.cohort=4,8", "--hours", "2"), "only with system_only"),
        (("--over", "algorithm.cohort=4,8", "--jobs", "0"), "use a number of processes >= 1"),
        (("--over", "training.lr=" + ",".join(f"0.{i:05d}" for i in range(1, 10_002))), "10,001 points"),
    ],
)  # fmt: skip
@pytest.mark.sampled(3)
def test_what_cannot_be_swept_is_refused_in_one_line(args, words, tmp_path):
    job_file(tmp_path, ASYNC)
    fieldfare(tmp_path, "sweep", "hello.py", *args).refused(words)
    assert not (tmp_path / "runs").exists()


def test_values_in_brackets_are_one():
    assert _values("1,2") == ["1", "2"]
    assert _values("(0.9, 0.99),none") == ["(0.9, 0.99)", "none"]


def test_pictures_show_every_number_along_one_axis_two_and_as_a_map():
    long = tuple(range(1, 8))
    grids = [{"a.x": (1, 2, 3)}, {"a.x": (1, 2), "a.y": (None, "b")}, {"a.x": long, "a.y": long},
             {"a.x": (1, 2), "a.y": long, "a.z": (1, 2)}]  # fmt: skip
    import itertools

    for over in grids:
        rows = []
        for number, values in enumerate(itertools.product(*over.values())):
            rows.append({
                "point": number, "settings": dict(zip(over, values, strict=True)), "seed": 0, "virtual_s": 9.0,
                "versions": 3, "version_s": {"median": 1.0 + number, "p90": 4.0}, "tasks": {"ok": 5, "stale": number},
                "shares": {"ok": 0.5, "stale": 0.5}, "wasted_share": 0.5, "tasks_per_h": 3.0, "device_h": {"ok": 1.0},
                "wasted_time_share": 0.1, "concurrency": 2.0, "bytes_down": 1.0, "bytes_up": 1.0, "energy_j": 2.0,
                "staleness": {"mean": 1.0, "p99": 3.0}, "final": {"accuracy": 0.5}, "wall_s": 1.0, "tasks_over": 5,
            })  # fmt: skip
        grid = grid_of(over, rows)
        assert "final accuracy" in [column.words for column in columns_of(grid)]
        with style.drawing():
            drawn = [one for one in plots_sweep.sweep_pictures(grid) if one is not None]
        bars = ["Tasks by how they ended"] if len(grid.places) <= plots_sweep.MOST_BARS else []
        assert [one.title for one in drawn][: len(bars)] == bars
        assert len(drawn) == len(bars) + 7
        assert all(("over x and y" in one.title) == (over is grids[2]) for one in drawn[len(bars) :])


def test_a_killed_process_is_told_and_a_refusal_comes_through():
    def work(piece):
        if piece == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return piece

    with pytest.raises(WorkerDied, match="what is done is kept"):
        list(side_by_side(work, range(4), 2))

    def refuse(piece):
        raise ff.UsageError(f"piece {piece} is wrong")

    with pytest.raises(ff.UsageError, match="is wrong"):
        list(side_by_side(refuse, range(4), 2))
    assert sorted(side_by_side(lambda piece: piece * piece, range(5), 3)) == [(i, i * i) for i in range(5)]
