"""Studies: several jobs in one folder, each a run of its own, and what is claimed of them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import HELLO, PROGRAM, environment, fieldfare, job_file, program

import fieldfare as ff
from fieldfare.store.runs import RunFolder

STUDY = (
    HELLO.replace('if __name__ == "__main__":', "if False:")
    + """
job = ff.Job(**{**vars(job), "evaluate": ff.Evaluation(clients=5)})
prox = ff.Job(**{**vars(job), "algorithm": ff.FedProx(rounds=4, cohort=4, mu=0.5)})
study = ff.Study(
    {"fedavg": {seed: job.with_overrides({"seed": seed}) for seed in (0, 1)}, "fedprox": prox},
    claims="claims.toml",
    name="avg or prox",
)
"""
)

CLAIMS = """
[[claim]]
name = "prox is near"
measure = "difference"
of = { measure = "final", arm = "fedprox", metric = "accuracy" }
to = { measure = "final", arm = "fedavg", metric = "accuracy" }
sense = "<="
target = 1.0

[[claim]]
name = "bytes"
measure = "total"
arm = "fedprox"
axis = "bytes"
sense = ">="
target = 1

[[claim]]
name = "energy"
measure = "total"
arm = "fedprox"
axis = "energy_j"
sense = ">="
target = 0.001

[[claim]]
name = "device time"
measure = "total"
arm = "fedprox"
axis = "device_s"
sense = ">="
target = 0.001

[[claim]]
name = "four rounds"
measure = "total"
arm = "fedavg"
axis = "round"
sense = "<="
target = 4
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    job_file(folder, STUDY)
    (folder / "claims.toml").write_text(CLAIMS)
    return folder, fieldfare(folder, "run", "hello.py", "--json")


def test_every_arm_is_a_complete_run_and_the_first_is_the_headline(done):
    folder, outcome = done
    assert outcome.code == 0, outcome.err
    run = RunFolder.find("latest", folder / "runs")
    assert run.id == outcome.result["run"]
    assert "avg-or-prox" in run.id
    finals = {}
    for arm in ("fedavg/0", "fedavg/1", "fedprox"):
        one = RunFolder.open(run.path / "arms" / arm, write=False)
        assert one.complete
        assert len(one.read_lines("rounds.jsonl")) == 4
        finals[arm] = one.read_json("summary.json")["final"]
    assert outcome.result["final"] == finals["fedavg/0"]
    assert finals["fedavg/0"] != finals["fedavg/1"]
    assert outcome.result["arms"] == ["fedavg", "fedprox"]
    assert np.array_equal(
        run.read_model().vector, RunFolder.open(run.path / "arms" / "fedavg/0", write=False).read_model().vector
    )


def test_a_study_tells_the_ends_of_all_arms_and_where_their_report_is(done):
    folder, outcome = done
    run = RunFolder.find("latest", folder / "runs")
    told = outcome.result["finals"]
    assert list(told) == ["fedavg/0", "fedavg/1", "fedprox"]
    clients = wall = moved = 0.0
    for name, end in told.items():
        summary = RunFolder.open(run.path / "arms" / name, write=False).read_json("summary.json")
        assert {key: summary[key] for key in end} == end
        assert {"final", "bytes_down", "bytes_up", "virtual_s", "clients_per_s"} <= end.keys()
        assert (run.path / "arms" / name / summary["report"]).resolve() == (run.path / "report.html").resolve()
        clients += end["clients_per_s"] * end["wall_s"]
        wall, moved = wall + end["wall_s"], moved + end["bytes_down"] + end["bytes_up"]
    whole = outcome.result["all_runs"]
    assert whole["runs"] == 3
    assert whole["wall_s"] == pytest.approx(wall)
    assert whole["bytes_down"] + whole["bytes_up"] == moved
    assert whole["clients_per_s"] == pytest.approx(clients / wall)
    assert outcome.result["report"] == "report.html"


def test_all_else_in_the_summary_of_a_study_is_of_its_first_run(done):
    folder, outcome = done
    first = json.loads((folder / "runs" / "latest" / "arms" / "fedavg" / "0" / "summary.json").read_text())
    of_the_study = {"run", "name", "report"}
    assert {key: outcome.result[key] for key in first.keys() - of_the_study} == {
        key: value for key, value in first.items() if key not in of_the_study
    }
    assert outcome.result.keys() - first.keys() == {"arms", "all_runs", "finals", "claims", "claims_sha256"}


def test_a_claim_whose_file_is_gone_does_not_hold(done, tmp_path):
    folder, _ = done
    shutil.copytree(folder / "runs", tmp_path / "runs")
    run = RunFolder.find("latest", tmp_path / "runs")
    (run.path / "claims.toml").unlink()
    told = fieldfare(tmp_path, "claims", run.id, "--json")
    assert told.code == 4
    assert {claim["why"] for claim in told.result["claims"]} == {"its entry in claims.toml is gone"}
    shown = fieldfare(tmp_path, "claims", run.id)
    assert shown.code == 4
    assert "missing" in shown.out


@pytest.mark.parametrize("text", [CLAIMS.replace("target = 1.0", "target = 2.0"), CLAIMS + "\n", ""])
def test_under_a_claims_file_that_was_changed_since_no_claim_holds(done, tmp_path, text):
    folder, outcome = done
    shutil.copytree(folder / "runs", tmp_path / "runs")
    run = RunFolder.find("latest", tmp_path / "runs")
    assert outcome.result["claims_sha256"] == hashlib.sha256(CLAIMS.encode()).hexdigest()
    assert fieldfare(tmp_path, "claims", run.id, "--json").result["changed"] is None
    (run.path / "claims.toml").write_text(text)
    told = fieldfare(tmp_path, "claims", run.id, "--json")
    assert told.code == 4
    assert [claim["holds"] for claim in told.result["claims"]] == [False] * 5
    assert "claims.toml was changed since the run was made" in told.result["changed"]
    shown = fieldfare(tmp_path, "claims", run.id)
    assert shown.code == 4
    assert shown.err.strip() == told.result["changed"]
    assert "\n" not in shown.err.strip()
    again = fieldfare(tmp_path, "resume", run.id, "--json")
    assert again.result["claims_sha256"] == outcome.result["claims_sha256"]
    assert fieldfare(tmp_path, "claims", run.id).code == 4
    (run.path / "claims.toml").write_text(CLAIMS)
    assert fieldfare(tmp_path, "claims", run.id).code == 0


def test_an_arm_is_the_run_that_its_job_would_be_alone(done, tmp_path):
    folder, _ = done
    job_file(tmp_path, STUDY.replace("claims=", "# "))
    told = fieldfare(tmp_path, "run", "hello.py", "--job", "prox", "--json")
    arm = RunFolder.open(folder / "runs" / "latest" / "arms" / "fedprox", write=False)
    assert told.result["final"] == arm.read_json("summary.json")["final"]
    assert np.array_equal(arm.read_model().vector, RunFolder.find("latest", tmp_path / "runs").read_model().vector)


def test_claims_are_recomputed_from_the_arms_tables(done):
    folder, outcome = done
    told = fieldfare(folder, "claims", "--json")
    assert told.code == 0
    assert told.result["claims"] == outcome.result["claims"]
    near, moved, energy, time, rounds = told.result["claims"]
    arms = folder / "runs" / "latest" / "arms"
    final = {a: json.loads((arms / a / "summary.json").read_text())["final"]["accuracy"]
             for a in ("fedavg/0", "fedavg/1", "fedprox")}  # fmt: skip
    assert near["ours"] == pytest.approx(final["fedprox"] - np.median([final["fedavg/0"], final["fedavg/1"]]))
    assert (rounds["ours"], rounds["holds"]) == (4, True)
    prox = json.loads((arms / "fedprox" / "summary.json").read_text())
    assert moved["ours"] == prox["bytes_down"] + prox["bytes_up"]
    assert energy["ours"] == pytest.approx(prox["energy_j"], rel=1e-9)
    assert time["ours"] == pytest.approx(sum(prox["device_s"].values()), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "column"), [("rounds.jsonl", "bytes_up"), ("rounds.jsonl", "energy_j"), ("totals.json", "bytes_up")]
)
def test_a_total_of_an_arm_whose_table_is_spoilt_does_not_hold(done, tmp_path, name, column):
    folder, _ = done
    shutil.copytree(folder / "runs", tmp_path / "runs")
    run = RunFolder.find("latest", tmp_path / "runs")
    table = run.path / "arms" / "fedprox" / name
    rows = [json.loads(line) for line in table.read_text().splitlines()] if name == "rounds.jsonl" else []
    for row in rows:
        row[column] = 10 * row[column]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows) or '{"round": 4, "after": {"bytes_up": 99}}')
    told = fieldfare(tmp_path, "claims", run.id, "--json")
    assert told.code == 4
    *spoilt, rounds = told.result["claims"]
    assert [(claim["ours"], claim["holds"]) for claim in spoilt] == [(None, False)] * 4
    assert rounds["holds"]
    assert all(column in claim["why"] or "virtual_s" in claim["why"] for claim in spoilt)


def test_the_claims_file_may_lie_beside_the_job_file(done):
    folder, _ = done
    (folder / "elsewhere").mkdir()
    told = fieldfare(folder / "elsewhere", "run", "../hello.py", "--json", "--rounds", 1)
    assert told.code == 0, told.err
    assert [claim["holds"] for claim in told.result["claims"]] == [True] * 5


def test_overrides_reach_every_arm(done):
    folder, _ = done
    told = fieldfare(folder, "run", "hello.py", "--json", "--rounds", 2, "--set", "training.lr=0.3", "--runs", "other")
    assert told.code == 0, told.err
    for arm in ("fedavg/0", "fedavg/1", "fedprox"):
        config = json.loads((folder / "other" / "latest" / "arms" / arm / "config.json").read_text())
        assert (config["job"]["algorithm"]["rounds"], config["job"]["training"]["lr"]) == (2, 0.3)


def test_commands_take_a_study_like_any_run(done):
    folder, outcome = done
    assert fieldfare(folder, "inspect", "--json").result["summary"]["final"] == outcome.result["final"]
    jobs = fieldfare(folder, "inspect", "hello.py", "--json").result
    assert list(jobs) == ["fedavg/0", "fedavg/1", "fedprox"]
    assert fieldfare(folder, "data", "describe", "hello.py", "--json").result["clients"] == 12
    assert fieldfare(folder, "export", "-o", "m.npz").code == 0
    assert fieldfare(folder, "report", "--json").code == 0
    assert fieldfare(folder, "resume", "--json").result["final"] == outcome.result["final"]
    text = fieldfare(folder, "run", "hello.py", "-q", "--runs", "third")
    assert "prox is near" in text.out


def test_a_study_runs_from_python_without_a_command(tmp_path):
    data = ff.data.synthetic(clients=8, classes=3, features=4, max_examples=60, seed=1)
    jobs = {
        name: ff.Job(model=ff.mlp(4, 3), data=data, algorithm=make(rounds=2, cohort=3))
        for name, make in {"a": ff.FedAvg, "b": ff.FedAdam}.items()
    }
    result = ff.Study(jobs).run(tmp_path, progress=False)
    assert result.final == jobs["a"].run(runs=None, progress=False).final
    assert (tmp_path / "latest" / "arms" / "b" / "summary.json").exists()


def test_a_quick_study_runs_its_first_seeds_and_marks_what_wants_more(tmp_path):
    text = STUDY.replace('claims="claims.toml",', 'claims="claims.toml", quick=1,')
    job_file(tmp_path, text)
    claims = CLAIMS.replace('measure = "total"\narm = "fedavg"', 'measure = "total"\narm = "fedavg"\nseeds = 2')
    (tmp_path / "claims.toml").write_text(claims)
    told = fieldfare(tmp_path, "run", "hello.py", "--quick", "--json", "-q").result
    assert sorted(told["finals"]) == ["fedavg/0", "fedprox"]
    early = {claim["name"]: claim["preliminary"] for claim in told["claims"]}
    assert [name for name, one in early.items() if one] == ["four rounds"]
    again = fieldfare(tmp_path, "claims")
    assert again.code == 0
    assert "so far" in again.out
    (tmp_path / "runs" / told["run"] / "summary.json").unlink()
    gone_on = fieldfare(tmp_path, "resume", "--json", "-q").result
    assert gone_on["finals"].keys() == told["finals"].keys()
    assert gone_on["claims"] == told["claims"]


def test_only_a_study_has_a_quick_form(tmp_path):
    job_file(tmp_path, HELLO)
    fieldfare(tmp_path, "run", "hello.py", "--quick").refused("makes no study")


def test_arms_side_by_side_end_as_they_do_one_by_one(tmp_path):
    job_file(tmp_path, STUDY.replace('claims="claims.toml",', ""))
    alone = fieldfare(tmp_path, "run", "hello.py", "--json", "-q").result
    job_file(tmp_path, STUDY.replace('claims="claims.toml",', "processes=2,"))
    together = program(tmp_path, "run", "hello.py", "--json", "-q").result
    for name, one in alone["finals"].items():
        assert together["finals"][name]["final"] == one["final"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("quick=0", "use numbers >= 1"),
        ('shown={"a": "nobody/3"}', "names the arm 'nobody'"),
        ('panels=[ff.study.Panel("p", {"a": "fedavg"}, 0.9, "b")]', "is no label"),
    ],
)
def test_what_a_study_cannot_show_is_refused(tmp_path, settings, words):
    job_file(tmp_path, "import fieldfare.study\n" + STUDY.replace('claims="claims.toml",', settings + ","))
    fieldfare(tmp_path, "run", "hello.py").refused(words)


@pytest.mark.slow
def test_arms_side_by_side_stop_soon_when_their_study_is_killed_and_it_can_be_gone_on_with(tmp_path):
    job_file(tmp_path, STUDY.replace('claims="claims.toml",', "processes=2,").replace("(0, 1)", "range(40)"))
    env = environment(tmp_path)
    study = subprocess.Popen([*PROGRAM, "run", "hello.py", "-q"], cwd=tmp_path, env=env)
    ended = list[Path]()
    while len(ended) < 4:
        time.sleep(0.05)
        ended = list((tmp_path / "runs").glob("*/arms/fedavg/*/summary.json"))
    study.kill()
    study.wait()
    for _ in range(100):
        before, ended = len(ended), list((tmp_path / "runs").glob("*/arms/*/*/summary.json"))
        time.sleep(0.1)
        if before == len(ended):
            break
    assert len(ended) < 41
    told = program(tmp_path, "resume", "--json", "-q").result
    assert len(told["finals"]) == 41
