"""Bad input is one clear line: what was given, what would be right, what to do. No traceback, and a code above zero."""

from __future__ import annotations

import dataclasses
import json
import operator
import shutil

import numpy as np
import pytest
from command_line import HELLO, environment, fieldfare, job_file, program, without

import fieldfare as ff
from fieldfare.core.params import Layout, Params
from fieldfare.store.models import write_model
from fieldfare.store.runs import RunFolder

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
Y = np.arange(60) % 3
WHO = np.array(["ann", "bob", "eve"])[np.arange(60) // 20]


def data(x=X, y=Y, **options):
    return ff.data.from_numpy(x, y, client=WHO[: len(x)], **options)


def job(**changes):
    given = {
        "model": ff.mlp(4, 3), "data": data(test={"x": X[:9], "y": Y[:9]}), "algorithm": ff.FedAvg(rounds=2, cohort=2),
        "training": ff.Training(lr=0.1, batch_size=5),
    }  # fmt: skip
    return ff.Job(**{**given, **changes})


def refusal(make) -> str:
    """The message of the `UsageError` that `make` raises; it is one line."""
    with pytest.raises(ff.UsageError) as caught:
        make()
    text = str(caught.value)
    assert "\n" not in text
    return text


# Settings, in code.


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: job(leraning=ff.Training()), ("'leraning'", "Job(...)", "did you mean 'training'")),
        (lambda: ff.Training(learning_rate=0.1), ("'learning_rate'", "Training(...)")),
        (lambda: ff.Training(epoch=2), ("'epoch'", "did you mean 'epochs'")),
        (lambda: ff.Evaluation(client=2), ("did you mean 'clients'",)),
        (lambda: ff.FedAvg(round=2, cohort=2), ("'round'", "did you mean 'rounds'")),
        (lambda: ff.fleet.Fleet(dropout=0.1), ("did you mean 'drop_out'",)),
        (lambda: ff.Job(model=ff.mlp(4, 3)), ("Job(...)", "data")),
        (lambda: ff.Training(lr="0.1"), ("Training(lr='0.1')", "use a number")),
        (lambda: ff.Training(batch_size=2.5), ("batch_size=2.5", "a whole number")),
        (lambda: ff.Training(shuffle="yes"), ("shuffle='yes'", "True or False")),
        (lambda: ff.Training(optimizer="sdg"), ("'sdg'", "'sgd' or 'adam'")),
        (lambda: ff.Training(schedule="cosin"), ("'cosin'", "'cosine'")),
        (lambda: ff.Training(betas=(0.9,)), ("betas", "(a number, a number)")),
        (lambda: ff.Training(lr=-0.1), ("lr=-0.1", ">= 0")),
        (lambda: ff.Training(lr=float("nan")), ("lr=nan",)),
        (lambda: ff.Training(lr=float("inf")), ("lr=inf",)),
        (lambda: ff.Training(momentum=-1.0), ("momentum=-1.0",)),
        (lambda: ff.Training(weight_decay=-1.0), ("weight_decay=-1.0",)),
        (lambda: ff.Training(clip_norm=0.0), ("clip_norm=0.0", "None")),
        (lambda: ff.Training(batch_size=0), ("batch_size=0", ">= 1")),
        (lambda: ff.Training(epochs=0), ("epochs=0", ">= 1")),
        (lambda: ff.Training(schedule="step"), ("schedule_rounds",)),
        (lambda: ff.FedAvg(rounds=0, cohort=2), ("rounds=0", ">= 1")),
        (lambda: ff.FedAvg(rounds=2.5, cohort=2), ("rounds=2.5", "a whole number")),
        (lambda: ff.FedAvg(rounds=2, cohort="all"), ("cohort='all'", "Everyone")),
        (lambda: ff.FedAvg(rounds=2, cohort=0).on, ("Sample(0)", ">= 1")),
        (lambda: ff.Evaluation(every=0), ("every=0", ">= 1")),
        (lambda: ff.Evaluation(fine_tune=-1), ("fine_tune=-1",)),
        (lambda: ff.Simulated(workers=0), ("workers=0", ">= 1")),
        (lambda: ff.Simulated(chunk=-3), ("chunk=-3", ">= 1")),
        (lambda: ff.Simulated(evaluation_s=-1.0), ("evaluation_s=-1.0",)),
        (lambda: ff.fleet.Fleet(drop_out=1.5), ("drop_out=1.5", "[0, 1)")),
        (lambda: ff.Quorum(need=0), ("need=0", ">= 1")),
        (lambda: job(bad_updates="skip"), ("bad_updates='skip'", "'refuse' or 'stop'")),
        (lambda: job(seed=1.5), ("seed=1.5", "a whole number")),
        (lambda: job(data=[1, 2]), ("data=[1, 2]", "a federated data set", "federate")),
        (lambda: job(algorithm="fedavg"), ("'fedavg'", "fieldfare algorithms")),
        (lambda: job(callbacks=print), ("callbacks", "a tuple of a function")),
        (lambda: ff.Study({}), ("at least one job",)),
        (lambda: ff.Study({"a/b": job()}), ("'a/b'",)),
        (lambda: ff.Study({"a": 3}), ("arm 'a'", "give a Job")),
        (lambda: ff.Study({"a": {}}), ("arm 'a'", "give a Job")),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_what_would_be_right(make, words):
    told = refusal(make)
    for word in words:
        assert word in told, told


def test_a_name_that_fieldfare_does_not_have_suggests_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'FedAvg'"):
        ff.FedAvgg  # noqa: B018


def test_numbers_of_numpy_are_as_good_as_pythons():
    training = ff.Training(lr=np.float32(0.5), batch_size=np.int64(4))
    assert (type(training.lr), type(training.batch_size)) == (float, int)
    assert job(algorithm=ff.FedAvg(rounds=np.int32(1), cohort=np.int64(2))).run(runs=None, progress=False).final


# Jobs that could only go wrong.


def test_a_cohort_larger_than_the_population_is_refused():
    assert "cohort of 4" in refusal(lambda: job(algorithm=ff.FedAvg(rounds=2, cohort=4)))
    assert "cohort <= 3" in refusal(lambda: job(algorithm=ff.FedAvg(rounds=2, cohort=ff.Sample(4))))
    told = refusal(lambda: job(evaluate=ff.Evaluation(clients=4)))
    assert "evaluation on clients of 4" in told
    assert "<= 3" in told


def test_a_client_without_examples_is_named():
    told = refusal(lambda: ff.Federated({"x": X, "y": Y}, offsets=[0, 30, 30, 60], rows=np.arange(60)))
    assert "client 1 has no examples" in told
    assert "drop_empty=True" in told


def test_nan_in_the_data_names_client_and_row():
    x = X.copy()
    x[25, 2] = np.nan
    told = refusal(lambda: data(x))
    for word in ("client bob", "'x'", "nan", "row 25"):
        assert word in told


def test_labels_out_of_range_name_client_and_row():
    y = Y.copy()
    y[41] = -1
    told = refusal(lambda: data(y=y))
    for word in ("client eve", "label -1", "row 41"):
        assert word in told
    wide = job(data=data(y=np.where(Y == 2, 7, Y)))
    told = refusal(lambda: wide.run(runs=None, progress=False))
    assert "7" in told
    assert "0..2" in told
    assert told.startswith("client ")


@pytest.mark.parametrize("kind", ["stacked", "by hand", "graph"])
def test_a_label_that_a_torch_model_has_no_output_for_names_client_and_column(kind):
    nn = pytest.importorskip("torch").nn
    y = Y.copy()
    y[30] = 7
    told_by = {
        "stacked": nn.Linear(4, 3),
        "by hand": nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)),
        "graph": nn.Sequential(nn.Linear(4, 3), nn.Softsign()),
    }
    made = data(y=y)
    place = next(i for i in range(made.n_clients) if 30 in made.rows[made.offsets[i] : made.offsets[i + 1]])
    bad = job(data=made, model=told_by[kind], loss="cross_entropy")
    told = refusal(lambda: bad.run(runs=None, progress=False))
    assert told.startswith(f"client {place}: column 'y' has ")
    assert "7" in told


def test_a_model_for_other_features_is_refused():
    told = refusal(lambda: job(model=ff.mlp(5, 3)).run(runs=None, progress=False))
    assert "5" in told
    assert "4" in told


def test_a_model_that_is_none_is_refused():
    for model in (3, "mlp", None):
        assert "model" in refusal(lambda model=model: job(model=model).run(runs=None, progress=False))


def test_evaluation_on_clients_needs_held_out_data_and_clients():
    told = refusal(lambda: job(evaluate=ff.Evaluation(clients=2)).run(runs=None))
    assert "holdout" in told
    told = refusal(lambda: job(evaluate=ff.Evaluation(personal=True)).run(runs=None))
    assert "clients=" in told


def test_stopping_at_a_target_needs_a_target_and_a_test_set():
    told = refusal(lambda: job(stop_at=ff.StopAt()).run(runs=None))
    assert "at_least" in told
    told = refusal(lambda: job(data=data(), stop_at=ff.StopAt(at_least=0.9)).run(runs=None))
    assert "test" in told


def test_a_metric_that_does_not_exist_is_refused_or_told():
    told = refusal(lambda: job(stop_at=ff.StopAt(metric="acuracy", at_least=0.9)).run(runs=None, progress=False))
    assert "acuracy" in told


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"0.weight": (3, 5), "0.bias": (3,)}, ("'0.weight'", "(3, 5)", "(3, 4)")),
        ({"0.weight": (3, 4)}, ("'0.bias'",)),
        ({"0.weight": (3, 4), "0.bias": (3,), "2.weight": (1, 3)}, ("2.weight",)),
    ],
)
def test_starting_from_a_model_of_another_shape_names_the_tensor(tmp_path, shapes, words):
    layout = Layout.of(shapes)
    write_model(tmp_path / "other.safetensors", Params(np.zeros(layout.size, np.float32), layout))
    told = refusal(lambda: job(start_from=tmp_path / "other.safetensors").run(runs=None))
    for word in words:
        assert word in told


def test_starting_from_no_model_or_from_something_else_is_refused(tmp_path):
    assert "no model file" in refusal(lambda: job(start_from=tmp_path / "none.safetensors").run(runs=None))
    (tmp_path / "text.safetensors").write_text("hello")
    assert "no safetensors" in refusal(lambda: job(start_from=tmp_path / "text.safetensors").run(runs=None))


def test_a_refused_job_leaves_no_folder(tmp_path):
    refusal(lambda: job(stop_at=ff.StopAt()).run(runs=tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_an_arm_of_a_study_that_cannot_run_is_refused_before_the_first_one_does(tmp_path):
    study = ff.Study({"good": job(), "bad": job(stop_at=ff.StopAt())})
    told = refusal(lambda: study.run(tmp_path / "runs"))
    assert "arm 'bad'" in told
    assert not (tmp_path / "runs").exists()


def test_a_claims_file_that_is_missing_or_wrong_is_refused_before_training(tmp_path):
    told = refusal(lambda: ff.Study({"a": job()}, claims=tmp_path / "none.toml").run(tmp_path / "runs"))
    assert "none.toml" in told
    (tmp_path / "bad.toml").write_text("[[claim]]\nname = 'x'\n")
    assert "target" in refusal(lambda: ff.Study({"a": job()}, claims=tmp_path / "bad.toml").run(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


# On the command line.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "trainig.lr=1"), ("'trainig'", "did you mean 'training'")),
        (("--set", "training.lrr=1"), ("'lrr'", "did you mean 'lr'")),
        (("--set", "training.lr=fast"), ("training.lr='fast'", "use a number", "now 0.1")),
        (("--set", "training.lr=-1"), ("lr=-1", ">= 0")),
        (("--set", "training.lr"), ("'training.lr'", "KEY=VALUE")),
        (("--set", "training.batch_size=2.5"), ("'2.5'", "a whole number")),
        (("--set", "training.shuffle=maybe"), ("'maybe'", "True or False")),
        (("--set", "training=3"), ("training='3'", "a Training")),
        (("--set", "model=3"), ("model='3'", "job file")),
        (("--set", "algorithm=fedprox"), ("algorithm='fedprox'", "job file")),
        (("--set", "algorithm.cohort=50"), ("50", "12 clients")),
        (("--set", "algorithm.cohort=0"), ("Sample(0)",)),
        (("--set", "simulated.workers=many"), ("'many'", "a whole number or None")),
        (("--set", "start_from.x=3"), ("start_from.x",)),
        (("--set", "seed=1.5"), ("'1.5'", "a whole number")),
        (("--set", "stop_at.at_lest=0.5"), ("at_lest", "did you mean 'at_least'")),
        (("--rounds", "0"), ("rounds=0",)),
        (("--rounds", "-3"), ("rounds=-3",)),
        (("--rounds", "few"), ("--rounds", "integer")),
        (("--workers", "0"), ("workers=0",)),
        (("--round", "3"), ("--round",)),
        (("extra.py",), ("extra.py",)),
        (("--runs", "hello.py"), ("hello.py",)),
    ],
)
def test_a_wrong_argument_is_one_line(tmp_path, words, said):
    job_file(tmp_path)
    fieldfare(tmp_path, "run", "hello.py", *words).refused(*said)
    assert not (tmp_path / "runs").exists()


def test_a_command_that_does_not_exist_is_one_line(tmp_path):
    fieldfare(tmp_path, "runn").refused("runn")


IMPORTS = "import fieldfare as ff\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("job = 3\n", ("must make one fieldfare.Job",)),
        ("import fieldfare as ff\njob = ff.Job(\n", ("line 2", "never closed")),
        (IMPORTS + "a = ff.Fedavg(3, 3)\n", ("line 2", "'Fedavg'", "did you mean 'FedAvg'")),
        (IMPORTS + "a = ff.data.from_cvs('x')\n", ("line 2", "'from_cvs'", "did you mean 'from_csv'")),
        ("from fieldfare import Jobb\n", ("line 1", "'Jobb'", "did you mean 'Job'")),
        (IMPORTS + "a = ff.FedProx(3, 3, nu=1)\n", ("line 2", "'nu'", "mu")),
        (IMPORTS + "a = ff.FedPer(3, 3)\n", ("line 2", "FedPer(...)", "'personal'")),
        (IMPORTS + "a = ff.FedProx(3, 3, mu='x')\n", ("line 2", "FedProx(mu='x')", "use a number")),
        (IMPORTS + "a = ff.data.from_csv()\n", ("line 2", "from_csv()", "path")),
        (IMPORTS + "a = ff.dirichlet(alfa=0.3)\n", ("line 2", "'alfa'", "did you mean 'alpha'")),
        (IMPORTS + "a = ff.Job(leraning=3)\n", ("line 2", "'leraning'", "did you mean 'training'")),
        (IMPORTS + "a = ff.digits(clients=5)\n", ("scikit-learn", "fieldfare[digits]")),
        (IMPORTS + "\nimport torch\n", ("line 3", "torch is not installed", "fieldfare[torch]")),
        ("import fieldfair\n", ("line 1", "'fieldfair'")),
    ],
)
def test_a_job_file_that_cannot_be_is_one_line(tmp_path, text, said):
    job_file(tmp_path, text)
    with without("sklearn", "torch"):
        told = fieldfare(tmp_path, "run", "hello.py")
    told.refused(*said)


def test_an_error_of_the_users_own_code_keeps_its_traceback_and_ends_with_code_1(tmp_path):
    for text in ("1 / 0\n", "def f(x):\n    pass\n\nf(y=3)\n", "None.nothing\n", "len(3)\n"):
        job_file(tmp_path, text)
        told = fieldfare(tmp_path, "run", "hello.py", "--json")
        assert told.code == 1
        assert told.err.startswith("Traceback")
        first = told.err.splitlines()[1]
        assert str(tmp_path / "hello.py") in first  # and nothing of ours before it
        assert "fieldfare/cli" not in told.err
        assert told.result["exit_code"] == 1


def test_an_error_of_a_users_callback_is_told_from_the_users_file_on(tmp_path):
    job_file(tmp_path, HELLO + "\ndef end(row):\n    raise KeyError('mine')\n\n"
             "job = ff.Job(**{**vars(job), 'callbacks': (end,)})\n")  # fmt: skip
    told = fieldfare(tmp_path, "run", "hello.py", "-q")
    assert told.code == 1
    lines = told.err.splitlines()
    assert lines[0].startswith("Traceback")
    assert str(tmp_path / "hello.py") in lines[1]
    assert lines[-2:] == ["KeyError: 'mine'", "raised by end, a callback of the job, after round 1"]


def test_a_defect_of_ours_keeps_its_whole_traceback(tmp_path, monkeypatch):
    job_file(tmp_path)
    monkeypatch.setattr("fieldfare.run.describe_job", operator.add)
    told = fieldfare(tmp_path, "run", "hello.py", "-q")
    assert told.code == 1
    assert "cli.py" in told.err.splitlines()[1]


def test_a_job_file_that_is_no_python_file_is_one_line(tmp_path):
    job_file(tmp_path, "{}", "job.json")
    fieldfare(tmp_path, "run", "job.json").refused("job.json", "*.py")


@pytest.mark.parametrize("kind", ["torch", "jax"])
def test_a_model_of_a_library_that_is_absent_names_the_extra(tmp_path, kind):
    job_file(tmp_path, HELLO.replace("ff.mlp(6, 5, 3)", f"ff.{kind}_net(len, 'mse')"))
    told = fieldfare_without(tmp_path, kind)
    told.refused(kind, f"fieldfare[{kind}]")


def fieldfare_without(folder, *libraries):
    return program(folder, "run", "hello.py", env=environment(folder, libraries))


BATCH_NORM = """
import torch
import fieldfare as ff

data = ff.data.synthetic(clients=6, classes=3, features=4, max_examples=60)
norm = torch.nn.BatchNorm1d(5)
job = ff.Job(
    data=data, algorithm=ff.FedAvg(rounds=1, cohort=2),
    model=torch.nn.Sequential(torch.nn.Linear(4, 5), norm, torch.nn.Linear(5, 3)),
)
"""


@pytest.mark.slow
def test_a_model_with_running_statistics_is_refused_and_told_what_to_use(tmp_path):
    pytest.importorskip("torch")
    job_file(tmp_path, BATCH_NORM)
    told = fieldfare(tmp_path, "run", "hello.py", "-q").refused("running statistics", "BatchNorm1d")
    assert "GroupNorm" in told or "track_running_stats" in told
    job_file(tmp_path, BATCH_NORM.replace("BatchNorm1d(5)", "BatchNorm1d(5, track_running_stats=False)"))
    assert fieldfare(tmp_path, "run", "hello.py", "-q").code == 0


# Runs that lie on the disk.


@pytest.fixture
def run(tmp_path):
    """A finished run: (folder, path of the run)."""
    job_file(tmp_path)
    assert fieldfare(tmp_path, "run", "hello.py", "-q", "--rounds", 1).code == 0
    return tmp_path, (tmp_path / "runs" / "latest").resolve()


def test_a_run_of_another_format_names_the_version_that_reads_it(run):
    folder, path = run
    about = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**about, "format": 99, "version": "9.9.0"}))
    for words in (("resume",), ("inspect",), ("report",), ("export",), ("compare", path), ("claims",)):
        told = fieldfare(folder, words[0], path, *words[1:])
        told.refused("9.9.0", "format 99")


def test_a_damaged_run_is_one_line(run):
    folder, path = run
    for name, words in (("summary.json", ("inspect", path)), ("run.json", ("inspect", path))):
        (path / name).write_text("{")
        fieldfare(folder, *words).refused(name, "damaged")
    shutil.rmtree(path)
    path.mkdir()
    fieldfare(folder, "inspect", path).refused(path.name)


def test_a_run_without_its_job_file_cannot_be_resumed_and_says_so(run):
    folder, path = run
    (path / "summary.json").unlink()
    (path / "job.py").unlink()
    fieldfare(folder, "resume").refused("job file")


def test_a_locked_run_is_not_resumed(run):
    folder, path = run
    (path / "summary.json").unlink()
    with RunFolder.open(path):
        fieldfare(folder, "resume").refused("being written", "wait for it, or stop it")


def test_a_job_file_that_changed_since_is_refused_or_resumed_as_it_was(run):
    folder, path = run
    (path / "summary.json").unlink()
    (folder / "hello.py").write_text("nonsense(")
    told = fieldfare(folder, "resume", "--json")
    assert told.code == 0, told.err
    assert told.result["rounds"] == 1


def test_snapshots_of_another_model_are_not_resumed(run):
    folder, path = run
    (path / "summary.json").unlink()
    source = (path / "job.py").read_text()
    (path / "job.py").write_text(source.replace("mlp(6, 5, 3)", "mlp(6, 7, 3)"))
    told = fieldfare(folder, "resume", "-q")
    told.refused("model")


def test_an_incomplete_run_cannot_be_exported_yet(run):
    folder, path = run
    (path / "summary.json").unlink()
    fieldfare(folder, "export").refused("not complete", "fieldfare resume")


# While it runs.

WILD = """
import numpy as np
import fieldfare as ff

x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
x[40:60] *= 1e30
who = np.array(["ann", "bob", "eve", "kim", "lee"])[np.arange(100) // 20]
data = ff.data.from_numpy(x, np.arange(100) % 3, client=who, test={"x": x[:9], "y": np.arange(9) % 3})
job = ff.Job(model=ff.mlp(4, 3), data=data, algorithm=ff.FedAvg(rounds=8, cohort=4), seed=1)
"""


def test_a_client_whose_loss_is_not_finite_is_named_and_left_out(tmp_path):
    job_file(tmp_path, WILD)
    told = fieldfare(tmp_path, "run", "hello.py", "-q", "--json")
    assert told.code == 0
    assert "client eve, round " in told.err
    assert "goes on without it" in told.err
    assert "learning rate" in told.err
    run = RunFolder.find("latest", tmp_path / "runs")
    rows = run.read_lines("rounds.jsonl")
    assert len(rows) == 8
    hit = [row["round"] for row in rows if "missing" in row]
    assert 0 < len(hit) <= 8
    assert all(row["missing"] == {"refused": 1} and row["clients"] == 3 for row in rows if "missing" in row)
    assert all(np.isfinite(row["train_loss"]) for row in rows)
    lines = {line["round"]: line for line in run.read_lines("clients.jsonl")}
    assert [r for r in lines if "missing" in lines[r]] == hit
    assert all(lines[r]["missing"] == {"refused": [2]} and 2 not in lines[r]["clients"] for r in hit)
    assert np.isfinite(run.read_model().vector).all()
    assert told.err.count("client eve") == min(len(hit), 5)


def test_a_job_may_stop_at_the_first_bad_update(tmp_path):
    job_file(tmp_path, WILD)
    told = fieldfare(tmp_path, "run", "hello.py", "-q", "--set", "bad_updates=stop")
    told.refused("client eve, round ", "not finite", "learning rate", code=3)
    assert fieldfare(tmp_path, "inspect", "--json").result["status"] == "incomplete"


def test_when_every_client_diverges_the_model_stays_and_each_round_says_so(tmp_path):
    job_file(
        tmp_path, WILD.replace("seed=1", "seed=1, training=ff.Training(lr=1e38)").replace("x[40:60] *= 1e30\n", "")
    )
    told = fieldfare(tmp_path, "run", "hello.py", "-q")
    assert told.code == 0
    assert "and 3 more" in told.err
    rows = RunFolder.find("latest", tmp_path / "runs").read_lines("rounds.jsonl")
    assert [row["clients"] for row in rows] == [0] * 8
    assert [row["missing"] for row in rows] == [{"refused": 4}] * 8
    assert len({row["loss"] for row in rows}) == 1


def test_a_worker_process_that_dies_is_one_line_with_what_to_do(tmp_path):
    fatal = """
import os, signal
import fieldfare as ff

class Fatal:
    def __init__(self, net):
        self.net, self.layout = net, net.layout

    def fit(self, *given):
        os.kill(os.getpid(), signal.SIGKILL)

    def __getattr__(self, name):
        return getattr(self.net, name)
"""
    job_file(tmp_path, fatal + HELLO.replace("ff.mlp(6, 5, 3)", "Fatal(ff.mlp(6, 5, 3))"))
    told = fieldfare(tmp_path, "run", "hello.py", "-q", "--workers", 2)
    told.refused("worker", "memory", "resume", code=6)


def test_every_message_ends_as_a_sentence():
    for make in (
        lambda: ff.Training(lr=-1),
        lambda: ff.Training(lr="x"),
        lambda: job(algorithm=ff.FedAvg(2, 9)),
        lambda: job(training=3),
    ):
        assert refusal(make).endswith(".")


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ff.Training().lr = 0.5  # type: ignore[misc]
