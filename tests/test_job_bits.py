"""Same seed, same bits: any number of workers, any chunk, stopped and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.store.runs import RunFolder

ALGORITHMS = {
    "fedavg": lambda: ff.FedAvg(rounds=3, cohort=7),
    "scaffold": lambda: ff.Scaffold(rounds=3, cohort=7),
    "fedadam": lambda: ff.FedAdam(rounds=3, cohort=7),
    "ditto": lambda: ff.Ditto(rounds=3, cohort=7, lam=0.5),
    "median": lambda: ff.FedMedian(rounds=3, cohort=7),
    "fedbuff": lambda: ff.FedBuff(rounds=8, cohort=7, buffer=3),
    "fedasync": lambda: ff.FedAsync(rounds=12, cohort=7),
}


def make(algorithm, **simulated):
    data = ff.data.synthetic(clients=20, classes=4, features=8, max_examples=60, seed=1)
    return ff.Job(
        model=ff.mlp(8, 6, 4),
        data=data,
        algorithm=algorithm,
        training=ff.Training(lr=0.1, batch_size=5),
        seed=3,
        simulated=ff.Simulated(fleet=ff.fleet.phones(drop_out=0.1), **simulated),
    )


def vector(job, **options):
    return job.run(runs=None, progress=False, **options).model.vector.tobytes()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_chunks_and_workers_change_no_bit(name):
    expected = vector(make(ALGORITHMS[name](), workers=1))
    assert vector(make(ALGORITHMS[name](), workers=1, chunk=1)) == expected
    assert vector(make(ALGORITHMS[name](), workers=2, chunk=3)) == expected


def test_another_seed_gives_another_model():
    job = make(ff.FedAvg(rounds=2, cohort=7), workers=1)
    assert vector(job) != vector(job.with_overrides({"seed": 4}))


def test_watching_with_evaluation_on_clients_does_not_change_the_model():
    plain = make(ff.FedAvg(rounds=4, cohort=7), workers=1)
    data = plain.data.holdout(0.3)
    quiet = ff.Job(**{**vars(plain), "data": data})
    watched = ff.Job(**{**vars(quiet), "evaluate": ff.Evaluation(every=2, clients=5, clients_every=2)})
    assert vector(quiet) == vector(watched)


JOB = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_job_bits import make
import fieldfare as ff

def die(row):
    if row["round"] == int(os.environ.get("DIE_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)

job = make({algorithm}, workers=1)
job = ff.Job(**{{**vars(job), "callbacks": (die,)}})
"""


@pytest.mark.parametrize(
    "algorithm", ["ff.FedAvg(rounds=5, cohort=7)", "ff.Scaffold(rounds=5, cohort=7)", "ff.FedAdam(rounds=5, cohort=7)"]
)
@pytest.mark.sampled(3)
def test_a_killed_run_resumes_to_the_same_bits_and_the_same_lines(tmp_path, algorithm):
    file = tmp_path / "killed.py"
    file.write_text(JOB.format(tests=str(Path(__file__).parent), algorithm=algorithm))
    fieldfare = [sys.executable, "-m", "fieldfare.cli"]
    common = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    env = {**os.environ, "DIE_AT": "4"}
    killed = subprocess.run([*fieldfare, "run", "killed.py", "-q"], env=env, **common)
    assert killed.returncode == -signal.SIGKILL
    resumed = subprocess.run([*fieldfare, "resume", "-q"], **common)
    assert resumed.returncode == 0, resumed.stderr
    whole = subprocess.run([*fieldfare, "run", "killed.py", "-q", "--runs", "whole"], **common)
    assert whole.returncode == 0, whole.stderr
    a, b = RunFolder.find("latest", tmp_path / "runs"), RunFolder.find("latest", tmp_path / "whole")
    assert np.array_equal(a.read_model().vector, b.read_model().vector)
    for name in ("rounds.jsonl", "clients.jsonl"):
        left, right = a.read_lines(name), b.read_lines(name)
        for line in (*left, *right):
            line.pop("wall_s", None)
        assert left == right
    first, second = a.read_json("summary.json"), b.read_json("summary.json")
    for key in ("final", "virtual_s", "bytes_up", "bytes_down", "rounds"):
        assert first[key] == second[key]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(tmp_path):
    file = tmp_path / "killed.py"
    file.write_text(JOB.format(tests=str(Path(__file__).parent), algorithm="ff.Scaffold(rounds=400, cohort=7)"))
    fieldfare = [sys.executable, "-m", "fieldfare.cli"]
    whole = subprocess.run([*fieldfare, "run", "killed.py", "-q", "--runs", "whole"], cwd=tmp_path, check=True)
    assert whole.returncode == 0
    expected = RunFolder.find("latest", tmp_path / "whole").read_model().vector
    process = subprocess.Popen([*fieldfare, "run", "killed.py", "-q"], cwd=tmp_path)
    for wait_s in (1.3, 0.9, 1.1, 0.8):
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (tmp_path / "runs" / "latest" / "job.py").exists():
            process = subprocess.Popen([*fieldfare, "run", "killed.py", "-q"], cwd=tmp_path)
        else:
            process = subprocess.Popen([*fieldfare, "resume", "-q"], cwd=tmp_path)
    assert process.wait() == 0
    assert np.array_equal(RunFolder.find("latest", tmp_path / "runs").read_model().vector, expected)
