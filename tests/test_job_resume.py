"""Stopped anywhere, in this process: what a resumed run leaves is what one that was never stopped leaves."""

from __future__ import annotations

import errno
import os
import sys

import numpy as np
import pytest
from command_line import HELLO, fieldfare, job_file

import fieldfare as ff
from fieldfare.run import Saver
from fieldfare.store.runs import RunFolder

STOPPING = (
    HELLO
    + """
import os

class Stop(Exception):
    pass

def stop(row):
    if row["round"] == int(os.environ.get("STOP_AT", "0")):
        raise {"interrupt": KeyboardInterrupt, "error": Stop}[os.environ["STOP_BY"]]

job = ff.Job(**{**vars(job), "callbacks": (stop,)})
"""
)

EVALUATED = STOPPING.replace(
    "    seed=3,", "    seed=3,\n    evaluate=ff.Evaluation(every=2, clients=3, clients_every=2, personal=True),"
)


class Stop(Exception):
    pass


def left(folder, name="runs"):
    """What a run leaves, without what depends on the machine's clock."""
    run = RunFolder.find("latest", folder / name)
    lines = {}
    for kind in ("rounds", "clients", "evaluation"):
        lines[kind] = [{k: v for k, v in row.items() if k != "wall_s"} for row in run.read_lines(f"{kind}.jsonl")]
    summary = run.read_json("summary.json")
    kept = {k: summary[k] for k in ("final", "rounds", "stopped", "virtual_s", "bytes_up", "bytes_down")}
    return (run.path / "model.safetensors").read_bytes(), lines, kept


@pytest.fixture
def at_every_moment(monkeypatch):
    """Snapshots after every published version, however long they take."""
    call = Saver.__call__

    def always(saver, seen):
        saver._next = 0.0
        call(saver, seen)

    monkeypatch.setattr(Saver, "__call__", always)


@pytest.mark.usefixtures("at_every_moment")
@pytest.mark.parametrize("algorithm", ["ff.FedAvg(rounds=4, cohort=4)", "ff.Ditto(rounds=4, cohort=4, lam=0.3)"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_run_stopped_after_any_round_is_resumed_to_the_same_bits_and_lines(tmp_path, monkeypatch, algorithm, at):
    job_file(tmp_path, EVALUATED.replace("ff.FedAvg(rounds=4, cohort=4)", algorithm))
    monkeypatch.setenv("STOP_BY", "error")
    monkeypatch.setenv("STOP_AT", str(at))
    assert fieldfare(tmp_path, "run", "hello.py", "-q").code == 1
    monkeypatch.setenv("STOP_AT", "0")
    resumed = fieldfare(tmp_path, "resume", "-q", "--json")
    assert resumed.code == 0, resumed.err
    assert fieldfare(tmp_path, "run", "hello.py", "-q", "--runs", "whole").code == 0
    assert left(tmp_path) == left(tmp_path, "whole")


def test_a_run_whose_snapshots_are_rare_is_resumed_to_the_same_bits_and_lines(tmp_path, monkeypatch):
    job_file(tmp_path, EVALUATED)
    monkeypatch.setenv("STOP_BY", "error")
    monkeypatch.setenv("STOP_AT", "4")
    assert fieldfare(tmp_path, "run", "hello.py", "-q").code == 1
    for newest in sorted((tmp_path / "runs" / "latest" / "snapshots").glob("*.ffs"))[1:]:
        newest.unlink()
    monkeypatch.setenv("STOP_AT", "0")
    assert fieldfare(tmp_path, "resume", "-q").code == 0
    assert fieldfare(tmp_path, "run", "hello.py", "-q", "--runs", "whole").code == 0
    assert left(tmp_path) == left(tmp_path, "whole")


def test_a_job_that_imports_what_lies_beside_it_runs_and_resumes_from_its_copy(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "rates_beside.py").write_text("LR = 0.1\n")
    (tmp_path / "sub" / "later_beside.py").write_text("ROUND = 1\n")
    text = STOPPING.replace("lr=0.1", "lr=__import__('rates_beside').LR")
    text = text.replace("def stop(row):\n", "def stop(row):\n    import later_beside\n\n    later_beside.ROUND\n")
    job_file(tmp_path / "sub", text)
    monkeypatch.setenv("STOP_BY", "error")
    monkeypatch.setenv("STOP_AT", "2")
    assert fieldfare(tmp_path, "run", "sub/hello.py", "-q").code == 1
    for name in ("rates_beside", "later_beside"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("STOP_AT", "0")
    resumed = fieldfare(tmp_path, "resume", "-q")
    assert resumed.code == 0, resumed.err


def test_a_run_stopped_several_times_ends_the_same(tmp_path, monkeypatch):
    job_file(tmp_path, EVALUATED)
    monkeypatch.setenv("STOP_BY", "error")
    monkeypatch.setenv("STOP_AT", "1")
    assert fieldfare(tmp_path, "run", "hello.py", "-q").code == 1
    for at in (2, 2, 3, 4):
        monkeypatch.setenv("STOP_AT", str(at))
        assert fieldfare(tmp_path, "resume", "-q").code == 1
    monkeypatch.setenv("STOP_AT", "0")
    assert fieldfare(tmp_path, "resume", "-q").code == 0
    assert fieldfare(tmp_path, "run", "hello.py", "-q", "--runs", "whole").code == 0
    assert left(tmp_path) == left(tmp_path, "whole")


def test_an_interrupt_ends_with_130_and_says_how_to_go_on(tmp_path, monkeypatch):
    job_file(tmp_path, STOPPING)
    monkeypatch.setenv("STOP_BY", "interrupt")
    monkeypatch.setenv("STOP_AT", "2")
    fieldfare(tmp_path, "run", "hello.py", "-q").refused("interrupted", "fieldfare resume", code=130)
    assert fieldfare(tmp_path, "inspect", "--json").result["status"] == "incomplete"
    monkeypatch.setenv("STOP_AT", "0")
    told = fieldfare(tmp_path, "resume")
    assert told.code == 0
    assert fieldfare(tmp_path, "run", "hello.py", "-q", "--runs", "whole").code == 0
    assert left(tmp_path) == left(tmp_path, "whole")


def test_overrides_of_the_command_line_hold_when_the_run_is_resumed(tmp_path, monkeypatch):
    job_file(tmp_path, STOPPING)
    monkeypatch.setenv("STOP_BY", "error")
    monkeypatch.setenv("STOP_AT", "2")
    words = ("run", "hello.py", "-q", "--rounds", 3, "--seed", 8, "--set", "training.lr=0.3")
    assert fieldfare(tmp_path, *words).code == 1
    monkeypatch.setenv("STOP_AT", "0")
    told = fieldfare(tmp_path, "resume", "--json")
    assert (told.result["rounds"], told.result["seed"]) == (3, 8)
    assert fieldfare(tmp_path, *words, "--runs", "whole").code == 0
    assert left(tmp_path) == left(tmp_path, "whole")


def test_a_run_stopped_before_its_first_snapshot_begins_again(tmp_path, monkeypatch):
    job_file(tmp_path, STOPPING)
    monkeypatch.setenv("STOP_BY", "error")
    monkeypatch.setenv("STOP_AT", "1")
    fieldfare(tmp_path, "run", "hello.py", "-q")
    path = (tmp_path / "runs" / "latest").resolve()
    for snapshot in (path / "snapshots").glob("*"):
        snapshot.unlink()
    monkeypatch.setenv("STOP_AT", "0")
    assert fieldfare(tmp_path, "resume", "-q").code == 0
    assert fieldfare(tmp_path, "run", "hello.py", "-q", "--runs", "whole").code == 0
    assert left(tmp_path) == left(tmp_path, "whole")


def test_a_run_stopped_before_its_configuration_was_written_is_still_whole_in_the_end(tmp_path):
    job = make()
    with RunFolder.create(tmp_path / "runs", "early") as folder:
        path = folder.path
    with pytest.raises(ff.UsageError, match="stopped before it began"):
        ff.resume_run(path)
    result = job.run(folder=RunFolder.open(path), progress=False, report=False)
    assert RunFolder.open(path, write=False).read_json("config.json")["job"]["seed"] == 1
    assert np.array_equal(result.model.vector, job.run(runs=None, progress=False).model.vector)


def make(**changes):
    data = ff.data.synthetic(clients=8, classes=3, features=4, max_examples=60, seed=1)
    given = {"model": ff.mlp(4, 3), "data": data, "algorithm": ff.FedAvg(rounds=6, cohort=3), "seed": 1}
    return ff.Job(**{**given, **changes})


def test_a_job_without_a_file_is_resumed_from_its_folder_in_python(tmp_path):
    def stop(row):
        if row["round"] == 3:
            raise Stop

    with pytest.raises(Stop):
        make(callbacks=(stop,)).run(tmp_path, progress=False)
    folder = RunFolder.find("latest", tmp_path)
    with pytest.raises(ff.UsageError, match="no job file"):
        ff.resume_run("latest", tmp_path)
    result = ff.resume_run(folder.path, job=make(), progress=False)
    assert np.array_equal(result.model.vector, make().run(runs=None, progress=False).model.vector)
    assert [row["round"] for row in result.rounds] == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("at_every_moment")
def test_values_that_are_not_finite_survive_a_resume(tmp_path):
    wild = {"training": ff.Training(lr=3e37), "data": ff.data.from_numpy(
        np.full((40, 2), 1e4, np.float32), np.arange(40) % 2, client=np.arange(40) // 10,
        test={"x": np.full((4, 2), 1e30, np.float32), "y": np.array([0, 1, 0, 1])})}  # fmt: skip

    def job(*callbacks):
        given = {**wild, "model": ff.mlp(2, 2), "algorithm": ff.FedAvg(rounds=5, cohort=2), "callbacks": callbacks}
        return ff.Job(**given, evaluate=ff.Evaluation(every=2), start_from=tmp_path / "big.safetensors")

    from fieldfare.core.params import Params
    from fieldfare.store.models import write_model

    layout = ff.mlp(2, 2).layout
    write_model(tmp_path / "big.safetensors", Params(np.full(layout.size, 1e30, np.float32), layout))

    def stop(row):
        if row["round"] == 4:
            raise Stop

    whole = job().run(runs=None, progress=False)
    assert not np.isfinite(whole.final["loss"])
    with pytest.raises(Stop):
        job(stop).run(tmp_path / "runs", progress=False)
    folder = RunFolder.find("latest", tmp_path / "runs")
    result = job().run(folder=RunFolder.open(folder.path), progress=False, report=False)
    assert str(result.final) == str(whole.final)


def full_after(monkeypatch, folder, limit):
    """From now on the disk under `folder` takes `limit` more bytes, then none."""
    room = [limit]
    write, real = os.write, os.path.realpath(folder)

    def limited(file, data):
        if not os.path.realpath(f"/proc/self/fd/{file}").startswith(real):
            return write(file, data)
        if len(data) > room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= len(data)
        return write(file, data)

    monkeypatch.setattr(os, "write", limited)


@pytest.mark.parametrize("limit", [0, 2_000, 6_000, 9_000, 14_000, 20_000])
def test_a_disk_that_is_full_at_any_moment_loses_nothing_but_the_round(tmp_path, monkeypatch, limit):
    job_file(tmp_path, HELLO.replace("rounds=4", "rounds=12"))
    with monkeypatch.context() as patch:
        full_after(patch, tmp_path / "runs", limit)
        told = fieldfare(tmp_path, "run", "hello.py", "-q")
    told.refused("disk is full", code=5)
    if not (tmp_path / "runs" / "latest" / "config.json").exists():
        fieldfare(tmp_path, "resume").refused()
        return
    resumed = fieldfare(tmp_path, "resume", "-q")
    assert resumed.code == 0, resumed.err
    assert fieldfare(tmp_path, "run", "hello.py", "-q", "--runs", "whole").code == 0
    assert left(tmp_path) == left(tmp_path, "whole")


def test_a_disk_that_is_full_when_the_report_is_written_keeps_the_run(tmp_path, monkeypatch):
    job_file(tmp_path)
    assert fieldfare(tmp_path, "run", "hello.py", "-q").code == 0
    path = (tmp_path / "runs" / "latest").resolve()
    (path / "report.html").unlink()
    with monkeypatch.context() as patch:
        full_after(patch, tmp_path / "runs", 100)
        fieldfare(tmp_path, "report").refused("disk is full", code=5)
    assert not (path / "report.html").exists()
    assert fieldfare(tmp_path, "report").code == 0
    assert fieldfare(tmp_path, "inspect", "--json").result["status"] == "complete"


def test_a_study_stopped_in_an_arm_goes_on_there(tmp_path, monkeypatch):
    text = STOPPING + "\nstudy = ff.Study({'one': {0: job.with_overrides({'seed': 0}), 1: job}, 'two': job})\n"
    text = text.replace('os.environ.get("STOP_AT", "0")', 'os.environ.get("STOP_AT", "0").split(",")[calls()]')
    text += "\n_calls = []\n\ndef calls():\n    _calls.append(1)\n    return min(len(_calls) - 1, 99)\n"
    monkeypatch.setenv("STOP_BY", "error")
    monkeypatch.setenv("STOP_AT", ",".join(["0"] * 5 + ["2"] + ["0"] * 94))
    job_file(tmp_path, text)
    assert fieldfare(tmp_path, "run", "hello.py", "-q").code == 1
    arms = (tmp_path / "runs" / "latest" / "arms").resolve()
    assert (arms / "one" / "0" / "summary.json").exists()
    assert not (arms / "one" / "1" / "summary.json").exists()
    before = (arms / "one" / "0" / "summary.json").read_bytes()
    monkeypatch.setenv("STOP_AT", ",".join(["0"] * 100))
    resumed = fieldfare(tmp_path, "resume", "-q", "--json")
    assert resumed.code == 0, resumed.err
    assert (arms / "one" / "0" / "summary.json").read_bytes() == before
    assert fieldfare(tmp_path, "run", "hello.py", "-q", "--runs", "whole").code == 0
    for arm in ("one/0", "one/1", "two"):
        models = [tmp_path / runs / "latest" / "arms" / arm / "model.safetensors" for runs in ("runs", "whole")]
        assert models[0].read_bytes() == models[1].read_bytes()
    assert left(tmp_path) == left(tmp_path, "whole")
