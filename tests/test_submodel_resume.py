"""A run over sub-models that is stopped and resumed leaves the model that one leaves that was never stopped."""

from __future__ import annotations

import pytest
from command_line import fieldfare, job_file

from fieldfare.run import Saver
from fieldfare.store.runs import RunFolder

JOB = """
import os
import fieldfare as ff
from fieldfare.aggregate import chain, coverage, momentum
from fieldfare.work.submodel import MultiRate, RULE, submodels

class Stop(Exception):
    pass

def stop(row):
    if row["round"] == int(os.environ.get("STOP_AT", "0")):
        raise Stop

family = submodels(ff.mlp(16, 12, 5), (1, 0.5, 0.25))
job = ff.Job(
    family, ff.synthetic(clients=10, classes=5, features=16, seed=3, min_examples=12, max_examples=20),
    ff.FedAvg(4, 5, server=chain(coverage(), momentum(0.5)), view=family.view(MultiRate(RULE()))),
    ff.Training(lr=0.1, batch_size=6), callbacks=(stop,), simulated=ff.Simulated(workers=1),
)
"""


@pytest.mark.parametrize("rule", ["Prefix", "Rolling", "TopNorm"])
def test_a_stopped_run_over_sub_models_is_resumed_to_the_same_bits(tmp_path, monkeypatch, rule):
    call = Saver.__call__

    def always(saver, seen):
        saver._next = 0.0
        call(saver, seen)

    monkeypatch.setattr(Saver, "__call__", always)
    job_file(tmp_path, JOB.replace("RULE", rule))
    monkeypatch.setenv("STOP_AT", "2")
    assert fieldfare(tmp_path, "run", "hello.py", "-q").code == 1
    monkeypatch.setenv("STOP_AT", "0")
    resumed = fieldfare(tmp_path, "resume", "-q", "--json")
    assert resumed.code == 0, resumed.err
    assert fieldfare(tmp_path, "run", "hello.py", "-q", "--runs", "whole").code == 0
    ends = [RunFolder.find("latest", tmp_path / name) for name in ("runs", "whole")]
    one, two = ((run.path / "model.safetensors").read_bytes() for run in ends)
    assert one == two
    last = [run.read_lines("rounds.jsonl")[-1] for run in ends]
    assert last[0]["accuracy@1/4"] == last[1]["accuracy@1/4"]
