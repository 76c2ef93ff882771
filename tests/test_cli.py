"""The command line, command by command: what it writes, what it says, and with which exit code it ends."""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from command_line import EXTRAS, HELLO, environment, fieldfare, job_file, program

import fieldfare as ff
from fieldfare.algorithms.catalogue import ALGORITHMS, DECENTRALISED, OFFLOADING
from fieldfare.cli import EXIT, main
from fieldfare.data import PARTITIONERS
from fieldfare.store.models import read_model
from fieldfare.store.runs import RunFolder

SUMMARY = {"run", "algorithm", "rounds", "seed", "final", "virtual_s", "bytes_down", "bytes_up", "wall_s",
           "clients_per_s", "report"}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a job file and one finished run of it: (folder, the command's outcome)."""
    folder = tmp_path_factory.mktemp("done")
    job_file(folder)
    return folder, fieldfare(folder, "run", "hello.py", "--json")


def test_run_writes_a_folder_with_model_metrics_report_and_source(done):
    folder, outcome = done
    assert outcome.code == 0, outcome.err
    run = folder / "runs" / outcome.result["run"]
    for name in ("model.safetensors", "summary.json", "rounds.jsonl", "clients.jsonl", "config.json", "data.json"):
        assert (run / name).stat().st_size > 0
    assert (run / "job.py").read_text() == HELLO
    assert "<html" in (run / "report.html").read_text()
    assert [row["round"] for row in RunFolder.open(run, write=False).read_lines("rounds.jsonl")] == [1, 2, 3, 4]


def test_the_last_line_of_json_is_the_summary(done):
    folder, outcome = done
    assert set(outcome.result) >= SUMMARY
    assert outcome.out.count("\n") == 1
    assert outcome.result["rounds"] == 4
    assert outcome.result["seed"] == 3
    assert outcome.result["algorithm"] == "fedavg"
    assert 0 <= outcome.result["final"]["accuracy"] <= 1
    assert outcome.result["bytes_up"] == 4 * 4 * 4 * (6 * 5 + 5 + 5 * 3 + 3)
    assert (folder / "runs" / outcome.result["run"] / outcome.result["report"]).is_file()
    assert outcome.result == json.loads((folder / "runs" / "latest" / "summary.json").read_text())


def test_settings_rounds_and_seed_override_the_job(tmp_path):
    job_file(tmp_path)
    outcome = fieldfare(
        tmp_path, "run", "hello.py", "--json", "--rounds", 2, "--seed", 9, "--set", "training.lr=0.5", "-s", "cohort=3"
    )
    assert outcome.result["rounds"] == 2
    assert outcome.result["seed"] == 9
    job = json.loads((tmp_path / "runs" / "latest" / "config.json").read_text())["job"]
    assert job["training"]["lr"] == 0.5
    assert job["algorithm"]["cohort"] == 3
    again = fieldfare(tmp_path, "run", "hello.py", "--json", "--set", "seed=9", "--set", "algorithm.rounds=2",
                      "--set", "training.lr=0.5", "--set", "algorithm.cohort=3")  # fmt: skip
    assert again.result["final"] == outcome.result["final"]


@pytest.mark.parametrize(
    ("setting", "where", "value"),
    [
        ("training.clip_norm=none", ("training", "clip_norm"), None),
        ("training.clip_norm=2", ("training", "clip_norm"), 2),
        ("training.shuffle=FALSE", ("training", "shuffle"), False),
        ("training.betas=0.8, 0.99", ("training", "betas"), [0.8, 0.99]),
        ("training.optimizer=adam", ("training", "optimizer"), "adam"),
        ("simulated.fleet.drop_out=0.1", ("simulated", "fleet", "drop_out"), 0.1),
        ("stop_at.at_least=0.99", ("stop_at", "at_least"), 0.99),
        ("evaluate.clients=3", ("evaluate", "clients"), 3),
        ("name=7", ("name",), "7"),
    ],
)
def test_text_becomes_the_type_that_the_setting_has(tmp_path, setting, where, value):
    job_file(tmp_path)
    outcome = fieldfare(tmp_path, "run", "hello.py", "-q", "--rounds", 1, "--set", setting)
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "runs" / "latest" / "config.json").read_text())["job"]
    for key in where:
        found = found[key]
    assert found == value


def test_latest_leads_to_the_newest_run(tmp_path):
    job_file(tmp_path)
    first = fieldfare(tmp_path, "run", "hello.py", "--json", "--rounds", 1).result["run"]
    latest = tmp_path / "runs" / "latest"
    assert latest.resolve().name == first
    second = fieldfare(tmp_path, "run", "hello.py", "--json", "--rounds", 1).result["run"]
    assert first != second
    assert latest.resolve().name == second
    assert fieldfare(tmp_path, "inspect", "--json").result["run"] == second
    assert fieldfare(tmp_path, "inspect", first, "--json").result["run"] == first


def test_a_job_is_chosen_by_name(tmp_path):
    job_file(tmp_path, HELLO.replace("job = ", "small = ").replace("job.run", "small.run") + "\nlarge = small\n")
    fieldfare(tmp_path, "run", "hello.py").refused("small, large", "--job")
    assert fieldfare(tmp_path, "run", "hello.py", "--job", "large", "-q").code == 0
    fieldfare(tmp_path, "run", "hello.py", "--job", "huge").refused("'huge'", "small, large")


def test_without_a_terminal_progress_is_plain_lines_on_standard_error(tmp_path):
    job_file(tmp_path)
    told = fieldfare(tmp_path, "run", "hello.py")
    assert told.code == 0
    assert re.search(r"^round 4/4  accuracy 0\.\d+  loss ", told.err, re.MULTILINE)
    assert "\x1b" not in told.err + told.out
    assert "round 4" not in told.out
    for word in ("accuracy", "virtual time", "clients/s", "report.html"):
        assert word in told.out


def test_quiet_says_nothing_on_standard_error(tmp_path):
    job_file(tmp_path)
    for extra in ((), ("--json",)):
        outcome = fieldfare(tmp_path, "run", "hello.py", "-q", "--rounds", 1, *extra)
        assert (outcome.code, outcome.err) == (0, "")


def test_resume_of_a_complete_run_says_what_it_came_to(done):
    folder, outcome = done
    again = fieldfare(folder, "resume", "--json")
    assert again.code == 0
    assert again.result == outcome.result


def test_inspect_tells_a_run(done):
    folder, outcome = done
    facts = fieldfare(folder, "inspect", "--json").result
    assert facts["status"] == "complete"
    assert facts["rounds_recorded"] == 4
    assert facts["summary"]["final"] == outcome.result["final"]
    assert facts["config"]["job"]["training"]["lr"] == 0.1
    text = fieldfare(folder, "inspect").out
    for word in (facts["run"], "complete", "accuracy", "lr: 0.1"):
        assert word in text


def test_inspect_tells_a_job_file_without_running_it(done):
    folder, _ = done
    before = sorted((folder / "runs").iterdir())
    facts = fieldfare(folder, "inspect", "hello.py", "--json").result["job"]
    assert facts["parameters"] == 53
    assert facts["model_bytes"] == 212
    assert facts["tensors"]["0.weight"] == [5, 6]
    assert facts["model"]["net"] == "dense"
    assert sorted((folder / "runs").iterdir()) == before
    assert "linear(6, 5)" in fieldfare(folder, "inspect", "hello.py").out


def test_data_describe_tells_the_federation(done):
    folder, _ = done
    facts = fieldfare(folder, "data", "describe", "hello.py", "--json").result
    assert facts["clients"] == 12
    assert np.array(facts["label_counts"]).shape == (12, 3)
    text = fieldfare(folder, "data", "describe", "hello.py").out
    assert "gini" in text
    assert "client 11 |" in text
    assert all(f"{words}: " in text for words in ("min", "median", "mean", "max"))
    assert facts["sizes"]["max"] == max(facts["client_sizes"])


@pytest.mark.slow
def test_data_describe_draws_the_label_map(done):
    folder, _ = done
    for name, start in (("map.png", b"\x89PNG"), ("map.svg", b"<?xml")):
        outcome = fieldfare(folder, "data", "describe", "hello.py", "--picture", name, "--json", pictures=True)
        assert outcome.code == 0, outcome.err
        assert (folder / name).read_bytes().startswith(start)
        assert outcome.result["picture"] == name


def test_a_picture_of_an_unknown_kind_is_refused(done):
    folder, _ = done
    fieldfare(folder, "data", "describe", "hello.py", "--picture", "map.bmp").refused("map.bmp", ".png or .svg")


def test_catalogues_name_every_entry_with_its_paper(tmp_path):
    for what, entries in (("algorithms", (*ALGORITHMS, *DECENTRALISED, *OFFLOADING)), ("partitioners", PARTITIONERS)):
        rows = fieldfare(tmp_path, what, "--json").result[what]
        assert [row["name"] for row in rows] == [entry.name for entry in entries]
        assert all(row["paper"] and row["summary"] for row in rows)
        text = fieldfare(tmp_path, what).out
        assert all(entry.name in text for entry in entries)


def test_export_writes_the_model_in_both_forms(done):
    folder, outcome = done
    model = RunFolder.find("latest", folder / "runs").read_model()
    told = fieldfare(folder, "export", "--out", "m.safetensors", "--json").result
    assert told["parameters"] == 53
    assert np.array_equal(read_model(folder / "m.safetensors").vector, model.vector)
    assert fieldfare(folder, "export", outcome.result["run"], "-o", "m.npz").code == 0
    with np.load(folder / "m.npz", allow_pickle=False) as arrays:
        assert {name: arrays[name].tobytes() for name in arrays.files} == {
            name: np.asarray(tensor).tobytes() for name, tensor in model.tensors().items()
        }
    fieldfare(folder, "export", "-o", "m.pt").refused(".pt", ".safetensors or .npz")
    fieldfare(folder, "export", "-o", "nowhere/m.npz").refused("nowhere")


def test_report_is_written_again_where_it_is_asked_for(done):
    folder, _ = done
    told = fieldfare(folder, "report", "--out", "again.html", "--json").result
    assert told["report"] == "again.html"
    assert (folder / "again.html").read_text() == (folder / "runs" / "latest" / "report.html").read_text()
    fieldfare(folder, "report", "--out", "nowhere/r.html").refused("nowhere")


def test_compare_lays_two_runs_over_each_other(done):
    folder, outcome = done
    second = fieldfare(folder, "run", "hello.py", "--json", "--seed", 4, "--runs", "other").result
    names = (f"runs/{outcome.result['run']}", f"other/{second['run']}")
    told = fieldfare(folder, "compare", *names, "--out", "both.html", "--json").result
    assert told["final"] == {outcome.result["run"]: outcome.result["final"], second["run"]: second["final"]}
    assert "<html" in (folder / "both.html").read_text()
    text = fieldfare(folder, "compare", *names, "--out", "both.html").out
    assert f"{second['final']['accuracy']:.4f}" in text
    fieldfare(folder, "compare", names[0]).refused("at least two")


def test_runs_whose_folders_have_one_name_are_compared_under_names_of_their_own(done):
    folder, outcome = done
    second = fieldfare(folder, "run", "hello.py", "--json", "--seed", 5, "--runs", "third").result
    for arm, run in (("wait", f"runs/{outcome.result['run']}"), ("go on", f"third/{second['run']}")):
        (folder / "arms" / arm).mkdir(parents=True)
        shutil.copytree(folder / run, folder / "arms" / arm / "0")
    told = fieldfare(folder, "compare", "arms/wait/0", "arms/go on/0", "--out", "both.html", "--json").result
    assert told["final"] == {"wait/0": outcome.result["final"], "go on/0": second["final"]}
    assert "wait/0, go on/0" in (folder / "both.html").read_text()


def test_a_comparison_shows_whole_run_ids_and_metrics_on_a_narrow_terminal(done, monkeypatch):
    folder, outcome = done
    monkeypatch.setenv("COLUMNS", "40")
    first = outcome.result
    second = fieldfare(folder, "run", "hello.py", "--json", "--seed", 4, "--runs", "narrow").result
    names = (f"runs/{first['run']}", f"narrow/{second['run']}")
    lines = fieldfare(folder, "compare", *names, "--out", "c.html").out.splitlines()
    assert lines[:2] == [f"1: {first['run']}", f"2: {second['run']}"]
    assert lines[2].split() == ["1", "2"]
    shown = {line.split()[0]: line.split()[1:] for line in lines[3:-1]}
    assert shown == {name: [f"{one['final'][name]:.4f}" for one in (first, second)] for name in first["final"]}


CLAIMS = """
[[claim]]
name = "half is right"
measure = "final"
metric = "accuracy"
sense = ">="
target = TARGET
published = 0.5
"""


@pytest.mark.parametrize(("target", "code"), [(0.0, 0), (2.0, 4)])
def test_claims_end_with_code_4_when_one_does_not_hold(tmp_path, target, code):
    job_file(tmp_path, HELLO + "\nstudy = ff.Study({'one': job}, claims='claims.toml')\n")
    (tmp_path / "claims.toml").write_text(CLAIMS.replace("TARGET", str(target)))
    ran = fieldfare(tmp_path, "run", "hello.py", "--rounds", 1, "--json")
    assert ran.code == 0, ran.err
    outcome = fieldfare(tmp_path, "claims", "--json")
    assert outcome.code == code
    assert [claim["holds"] for claim in outcome.result["claims"]] == [code == 0]
    assert outcome.result["claims"] == ran.result["claims"]
    text = fieldfare(tmp_path, "claims")
    assert text.code == code
    assert "half is right" in text.out


def test_new_writes_a_job_that_runs_with_numpy_alone(tmp_path):
    assert fieldfare(tmp_path, "new", "start.py", "--json").result == {"job": "start.py"}
    fieldfare(tmp_path, "new", "start.py").refused("start.py is there already", "--force")
    assert fieldfare(tmp_path, "new", "start.py", "--force").code == 0
    fieldfare(tmp_path, "new", "start.txt").refused(".py")
    ran = program(
        tmp_path, "run", "start.py", "--json", "--rounds", 20, env=environment(tmp_path, EXTRAS, no_proxy="*")
    )
    assert ran.code == 0, ran.err
    assert ran.result["rounds"] == 20
    rows = RunFolder.find("latest", tmp_path / "runs").read_lines("rounds.jsonl")
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_the_starter_says_how_to_run_it(tmp_path):
    told = fieldfare(tmp_path, "new", "deep/job.py")
    assert "fieldfare run deep/job.py" in told.out
    assert "fieldfare run job.py" in (tmp_path / "deep" / "job.py").read_text()


def test_version_help_and_the_entry_point(tmp_path):
    told = fieldfare(tmp_path, "--version")
    assert (told.code, told.out) == (0, f"fieldfare {ff.__version__}\n")
    for words in (("--version", "--json"), ("--json", "--version")):
        assert fieldfare(tmp_path, *words).result == {"version": ff.__version__}
    assert "compare" in fieldfare(tmp_path, "--json").result["commands"]
    fieldfare(tmp_path, "--json", "algorithms").refused("algorithms ... --json")
    shown = fieldfare(tmp_path, "--help")
    assert shown.code == 0
    for command in ("run", "resume", "report", "compare", "inspect", "data", "algorithms", "partitioners", "new",
                    "claims", "export"):  # fmt: skip
        assert re.search(rf"\b{command}\b", shown.out)
    (script,) = entry_points(group="console_scripts", name="fieldfare")
    assert script.load() is main


def test_without_a_command_the_help_is_shown_and_no_error(tmp_path):
    for words, code in (((), 0), (("data",), 2)):
        told = fieldfare(tmp_path, *words)
        assert told.code == code
        assert "Usage" in told.out + told.err
        assert "error" not in told.err


def test_shells_are_offered_completion(tmp_path):
    for shell, word in (("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete ")):
        assert word in fieldfare(tmp_path, "completion", shell).out
        assert word in fieldfare(tmp_path, "completion", shell, "--json").result["script"]
    fieldfare(tmp_path, "completion", "cmd").refused("cmd", "bash")
    words = {"_FIELDFARE_COMPLETE": "bash_complete", "COMP_WORDS": "fieldfare re", "COMP_CWORD": "1"}
    told = program(tmp_path, env=environment(tmp_path, **words))
    assert told.out.split() == ["plain,resume", "plain,report"]


def test_every_command_gives_one_json_object_on_its_last_line(done, tmp_path):
    folder, outcome = done
    (tmp_path / "job.py").write_text(HELLO)
    for words in (
        ("run", folder / "hello.py", "--rounds", 1),
        ("resume", outcome.result["run"], "--runs", folder / "runs"),
        ("report", outcome.result["run"], "--runs", folder / "runs", "--out", tmp_path / "r.html"),
        ("inspect", outcome.result["run"], "--runs", folder / "runs"),
        ("inspect", "job.py"),
        ("data", "describe", "job.py"),
        ("fit", "job.py"),
        ("algorithms",),
        ("partitioners",),
        ("new", "other.py"),
        ("claims", outcome.result["run"], "--runs", folder / "runs"),
        ("export", outcome.result["run"], "--runs", folder / "runs", "--out", "m.npz"),
    ):
        told = fieldfare(tmp_path, *words, "--json")
        assert told.code == 0, (words, told.err)
        assert told.result


def test_errors_are_json_too_when_json_is_asked_for(tmp_path):
    told = fieldfare(tmp_path, "inspect", "nowhere", "--json")
    assert told.result["exit_code"] == told.code == 2
    assert "nowhere" in told.result["error"]


@pytest.mark.parametrize(
    "words",
    [("resume",), ("report",), ("inspect",), ("claims",), ("export",), ("compare", "b"), ("resume", "--json")],
)
def test_a_run_that_is_not_there_is_one_line(tmp_path, words):
    told = fieldfare(tmp_path, words[0], "20990101-nowhere", *words[1:])
    told.refused("20990101-nowhere", "runs")


@pytest.mark.parametrize("words", [("run",), ("inspect",), ("data", "describe")])
def test_a_job_file_that_is_not_there_is_one_line(tmp_path, words):
    fieldfare(tmp_path, *words, "nowhere.py").refused("nowhere.py", "fieldfare new")


def test_the_documented_exit_codes_are_those_of_the_command():
    page = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
    listed = {int(code): text.strip() for code, text in re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)}
    assert listed == EXIT
    assert set(EXIT) == {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 130}
