"""FedBuff with sub-models over devices that come and go: interrupted tasks, stale replies, stops and kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.aggregate import chain, coverage, momentum
from fieldfare.assembly import assemble
from fieldfare.core.events import Gathered
from fieldfare.core.quorum import Staleness
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.drift import DriftTable
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.tasks import INTERRUPTED, OK, OUTCOMES
from fieldfare.store.runs import RunFolder
from fieldfare.store.tasks import read_tasks, staleness_of
from fieldfare.testing import loop, simulate
from fieldfare.work.submodel import MultiRate, Prefix, Rolling, TopNorm, submodels

N, ROUNDS = 12, 12
DATA = ff.synthetic(clients=N, classes=5, features=16, seed=3, min_examples=12, log_mean=1.0, log_sigma=0.5)
NET = ff.mlp(16, 12, 8, 5)
FAMILY = submodels(NET, (1, 0.5, 0.25))
SPEED = 1e5 / (1.0 + np.arange(N) % 5)
TRACE = Availability.of(
    [[(0.3 * i % 1.1 + 2.0 * k, 0.3 * i % 1.1 + 2.0 * k + 1.3) for k in range(40)] for i in range(N)]
)
STALE = Staleness("polynomial", 0.5, limit=3)
rules = pytest.mark.parametrize(
    "rule", [Prefix(), Rolling(), TopNorm(), MultiRate()], ids=lambda rule: type(rule).__name__
)


def fleet(**more):
    return Fleet(SPEED, 1e5, 1e5, 0.05, noise=0.3, availability=TRACE, **more)


def job(rule=None, workers=1, chunk=None, server=None, callbacks=(), **more):
    server = server or chain(coverage(weighted=False), momentum(0.5))
    view = FAMILY.view(rule, assign=(0, 1, 2, 2))
    algorithm = ff.FedBuff(ROUNDS, 6, buffer=3, view=view, server=server, stale=STALE, timeout_s=1.1)
    training = ff.Training(lr=0.1, batch_size=6, epochs=3)
    simulated = ff.Simulated(more.pop("fleet", None) or fleet(), workers=workers, chunk=chunk)
    return ff.Job(FAMILY, DATA, algorithm, training, simulated=simulated, callbacks=callbacks)


def left(folder):
    return (folder.path / "model.safetensors").read_bytes(), read_tasks(folder.path).tobytes()


@rules
def test_tasks_are_cut_short_given_up_and_stale_and_the_run_goes_on(rule, tmp_path):
    found = job(rule).run(tmp_path, progress=False, report=False)
    tasks = read_tasks(RunFolder.find("latest", tmp_path).path)
    seen = {OUTCOMES[one] for one in np.unique(tasks["outcome"])}
    assert {"ok", "interrupted"} <= seen
    assert staleness_of(tasks[tasks["outcome"] == OK]).max() > 0
    assert found.summary["rounds"] == ROUNDS
    assert found.model.vector.tobytes() != NET.init(0).vector.tobytes()
    cut = tasks[tasks["outcome"] == INTERRUPTED]
    whole = tasks[tasks["outcome"] == OK]
    assert cut["bytes_up"].max() < whole["bytes_up"].max()


def test_smaller_levels_send_less_and_are_interrupted_less_often(tmp_path):
    told = {}
    for level in (0, 2):
        one = job()
        view = FAMILY.view(assign=(level,))
        algorithm = replace(one.algorithm, view=view)
        replace(one, algorithm=algorithm).run(tmp_path / str(level), progress=False, report=False)
        tasks = read_tasks(RunFolder.find("latest", tmp_path / str(level)).path)
        good = tasks[tasks["outcome"] == OK]
        assert set(good["bytes_up"].tolist()) == {4.0 * len(view.index(level))}
        told[level] = len(good) / len(tasks)
    assert told[2] > told[0]


@rules
def test_each_coordinate_has_the_discounted_weight_of_those_who_had_it_and_moves_by_their_mean_alone(rule):
    world, algorithm = assemble(job(rule, server=chain(coverage(weighted=False)))).world, job(rule).algorithm
    end = simulate(world, keep=True)
    models, late = [NET.init(0)], 0
    for event in end.transcript.events(Gathered):
        tau = event.metrics["staleness"].astype(int)
        factor, had = np.rint(STALE.factor(tau) * 2**16) / 2**16, np.zeros(NET.layout.size)
        for one, old, s in zip(event.clients, tau, factor, strict=True):
            then = event.tag - int(old)
            view = algorithm.view.at(then, models[then - 1])
            had[view.index(int(view.plan(np.array([one]))[0]))] += s
        delta = event.output["delta"]
        assert np.allclose(delta.weight, had, atol=1e-9)
        step = np.where(had == 0, 0, delta.value * np.float32(factor.mean()))
        models.append(models[-1].replace((models[-1].vector + step).astype(np.float32)))
        late += int((tau > 0).sum())
    assert late > 0
    assert len(models) == ROUNDS + 1
    assert np.allclose(models[-1].vector, end.model.vector, atol=1e-6)


@rules
@pytest.mark.sampled(2)
def test_neither_chunks_workers_nor_drivers_change_a_bit(rule):
    whole = job(rule).run(None, progress=False).model.vector.tobytes()
    assert job(rule, chunk=1).run(None, progress=False).model.vector.tobytes() == whole
    assert job(rule, workers=2).run(None, progress=False).model.vector.tobytes() == whole
    world = assemble(job(rule)).world
    assert loop(world).transcript.lines() == simulate(world).transcript.lines()


def test_where_devices_slow_down_levels_take_longer():
    slow = DriftTable([0.0, 1.0, 2.0], [[1.0, 0.5, 0.25]] * N)
    one, other = (job(fleet=made).run(None, progress=False) for made in (fleet(), fleet(drift=slow)))
    assert other.summary["virtual_s"] > one.summary["virtual_s"]


@pytest.mark.slow
@rules
def test_a_stopped_run_is_resumed_to_the_same_bits_and_tasks(rule, tmp_path):
    job(rule).run(tmp_path / "whole", progress=False, report=False)
    whole = left(RunFolder.find("latest", tmp_path / "whole"))
    for at in (2, 7):

        def stop(row, at=at):
            if row["round"] == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            job(rule, callbacks=(stop,)).run(tmp_path / str(at), progress=False, report=False)
        folder = RunFolder.find("latest", tmp_path / str(at)).path
        ff.resume_run(folder, job=job(rule), progress=False)
        assert left(RunFolder.open(folder, write=False)) == whole


JOB = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_submodels_trace import Rolling, job

def die(row):
    if row["round"] == int(os.environ.get("DIE_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)

job = job(Rolling(), callbacks=(die,))
"""


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_bits_and_tasks(tmp_path):
    (tmp_path / "killed.py").write_text(JOB.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, "-m", "fieldfare.cli"]
    common = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    killed = subprocess.run([*command, "run", "killed.py", "-q"], env={**os.environ, "DIE_AT": "7"}, **common)
    assert killed.returncode == -signal.SIGKILL
    resumed = subprocess.run([*command, "resume", "-q"], **common)
    assert resumed.returncode == 0, resumed.stderr
    job(Rolling()).run(tmp_path / "whole", progress=False, report=False)
    assert left(RunFolder.find("latest", tmp_path / "runs")) == left(RunFolder.find("latest", tmp_path / "whole"))
