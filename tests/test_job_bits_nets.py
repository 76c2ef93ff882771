"""Same seed, same bits, for every kind of model: any number of workers, any chunk, killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.algorithms import keep_optimizer
from fieldfare.store.runs import RunFolder


def torch_cnn():
    nn = pytest.importorskip("torch").nn

    def made():
        return nn.Sequential(
            nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(12, 4)
        )

    return ff.torch_net(made)


def torch_graph():
    nn = pytest.importorskip("torch").nn

    def made():
        return nn.Sequential(nn.Linear(16, 6), nn.LayerNorm(6), nn.GELU(), nn.Dropout(0.3), nn.Linear(6, 4))

    return ff.torch_net(made, path="graph")


def jax_dropout():
    jax = pytest.importorskip("jax")

    def loss(params, x, y, key):
        x = x if key is None else x * jax.random.bernoulli(key, 0.7, x.shape)
        return -jax.nn.log_softmax(x @ params["w"])[jax.numpy.arange(len(y)), y]

    return ff.jax_net({"w": np.zeros((16, 4), np.float32)}, loss)


def to_the_mean(model, data, config, rng):
    pick = rng.permutation(len(data["y"]))[:5]
    near = model - config["lr"] * (model - data["x"][pick].mean(axis=0)) + 0.01 * np.random.normal(size=16)  # noqa: NPY002
    return near, len(pick), {"loss": float(np.abs(model).sum())} if len(data["y"]) % 2 else {}


def opaque_mean():
    return ff.opaque(to_the_mean, lambda model, data: {"loss": float(np.abs(model).sum())}, init=np.zeros(16))


ADAM = ff.Training(lr=0.02, batch_size=5, optimizer="adam")
MODELS = {
    "torch cnn with dropout": (torch_cnn, None),
    "torch graph with dropout": (torch_graph, None),
    "opaque": (opaque_mean, None),
    "jax with a key": (jax_dropout, None),
    "dense that keeps Adam": (lambda: ff.mlp(16, 6, 4), ADAM),
    "torch cnn that keeps Adam": (torch_cnn, ADAM),
    "jax that keeps Adam": (jax_dropout, ADAM),
}
KILLED = ("torch cnn that keeps Adam", "opaque", "jax that keeps Adam", "dense that keeps Adam")
CASES = [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("jax")) for name in MODELS]


def make(name, rounds=3, **simulated):
    model, training = MODELS[name]
    algorithm = ff.FedAvg(rounds=rounds, cohort=7)
    return ff.Job(
        model=model(),
        data=ff.data.synthetic(clients=20, classes=4, features=16, min_examples=1, max_examples=30, seed=1),
        algorithm=algorithm if training is None else keep_optimizer(algorithm),
        training=training or ff.Training(lr=0.1, batch_size=5),
        seed=3,
        simulated=ff.Simulated(fleet=ff.fleet.phones(drop_out=0.1), **simulated),
    )


@pytest.mark.parametrize("name", CASES)
def test_chunks_and_workers_change_no_bit(name):
    first = make(name, workers=1, chunk=100).run(None, progress=False)
    assert np.isfinite(first.model.vector).all()
    assert first.model.vector.any()
    for workers, chunk in ((1, 1), (2, 100), (2, 1)):
        again = make(name, workers=workers, chunk=chunk).run(None, progress=False)
        assert again.model.vector.tobytes() == first.model.vector.tobytes()
        assert again.final == first.final


JOB = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_job_bits_nets import make
import fieldfare as ff

def die(row):
    if row["round"] == int(os.environ.get("DIE_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)

job = make({name!r}, rounds=5, workers=1)
job = ff.Job(**{{**vars(job), "callbacks": (die,)}})
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_resumes_to_the_same_bits_and_the_same_lines(tmp_path, name):
    MODELS[name][0]()
    (tmp_path / "killed.py").write_text(JOB.format(tests=str(Path(__file__).parent), name=name))
    fieldfare = [sys.executable, "-m", "fieldfare.cli"]
    common = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    killed = subprocess.run([*fieldfare, "run", "killed.py", "-q"], env={**os.environ, "DIE_AT": "4"}, **common)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = subprocess.run([*fieldfare, "resume", "-q"], **common)
    assert resumed.returncode == 0, resumed.stderr
    whole = subprocess.run([*fieldfare, "run", "killed.py", "-q", "--runs", "whole"], **common)
    assert whole.returncode == 0, whole.stderr
    a, b = RunFolder.find("latest", tmp_path / "runs"), RunFolder.find("latest", tmp_path / "whole")
    assert a.read_model().vector.tobytes() == b.read_model().vector.tobytes()
    for file in ("rounds.jsonl", "clients.jsonl"):
        left, right = a.read_lines(file), b.read_lines(file)
        for line in (*left, *right):
            line.pop("wall_s", None)
        assert left == right
        assert left
