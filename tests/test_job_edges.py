"""What a run does at its edges: wrapped algorithms, early stops, job files that run themselves, another job resumed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from command_line import HELLO, fieldfare, job_file

import fieldfare as ff
from fieldfare.algorithms import Evaluate, EvaluateOnClients, StopAt
from fieldfare.config import first_difference
from fieldfare.core.algorithm import Context
from fieldfare.core.events import Evaluated
from fieldfare.core.metrics import lower_is_better
from fieldfare.report import units
from fieldfare.run import Saver
from fieldfare.store.runs import RunFolder


def make(algorithm=None, **changes):
    data = ff.data.synthetic(clients=8, classes=3, features=4, max_examples=60, seed=1).holdout(0.3)
    given = {"model": ff.mlp(4, 3), "data": data, "algorithm": algorithm or ff.FedAvg(rounds=6, cohort=3), "seed": 1}
    return ff.Job(**{**given, **changes})


def run(job, runs=None):
    return job.run(runs=runs, progress=False, **({"report": False} if runs else {}))


@pytest.mark.parametrize("name", ["FedProx", "Scaffold", "Ditto"])
def test_a_wrapped_algorithm_trains_as_it_does_alone(name):
    extra = {"FedProx": {"mu": 5.0}, "Ditto": {"lam": 0.3}}.get(name, {})
    inner = getattr(ff, name)(rounds=4, cohort=3, **extra)
    alone = run(make(inner))
    for wrapped in (StopAt(inner, patience=100), Evaluate(inner, "test"), EvaluateOnClients(inner, every=2)):
        watched = run(make(wrapped))
        assert np.array_equal(alone.model.vector, watched.model.vector)
        assert watched.summary["algorithm"] == inner.name
        assert watched.summary["rounds"] == 4
    assert not np.array_equal(alone.model.vector, run(make()).model.vector)


@pytest.mark.parametrize(
    ("quorum", "told"),
    [
        (
            ff.Quorum(deadline_s=0.001),
            "in 3 rounds no client counted (late 8, unavailable 1), so the model is the one the run began",
        ),
        (ff.Quorum(deadline_s=1e6), None),
    ],
)
def test_a_run_in_which_nobody_ever_counted_tells_it_once(quorum, told):
    notes: list[str] = []
    job = make(ff.FedAvg(rounds=3, cohort=3, quorum=quorum))
    result = job.run(runs=None, progress=False, note=notes.append)
    assert np.array_equal(result.model.vector, job.model.init(1).vector) == (told is not None)
    assert len(notes) == (told is not None)
    assert all(note.startswith(told) and "longer deadline_s" in note for note in notes)


def test_settings_are_found_inside_wrappers():
    job = make(StopAt(Evaluate(ff.FedAvg(rounds=4, cohort=3)), patience=9))
    changed = job.with_overrides({"rounds": "2", "algorithm.cohort": 4, "algorithm.patience": "7"})
    assert (changed.algorithm.inner.inner.rounds, changed.algorithm.inner.inner.cohort) == (2, 4)
    assert changed.algorithm.patience == 7
    with pytest.raises(ff.UsageError, match="roumds"):
        job.with_overrides({"algorithm.roumds": 2})
    with pytest.raises(ff.UsageError, match="99"):
        make(StopAt(ff.FedAvg(rounds=4, cohort=99), patience=9))


def test_a_job_stops_when_patience_is_over():
    result = run(make(ff.FedAvg(rounds=50, cohort=3), stop_at=ff.StopAt("loss", patience=2, margin=10.0)))
    assert result.summary["rounds"] == 3
    assert "no better in 2 evaluations" in result.summary["stopped"]


def test_an_early_stop_is_evaluated_on_clients_all_the_same(tmp_path):
    evaluate = ff.Evaluation(clients=4, clients_every=10, personal=True)
    job = make(stop_at=ff.StopAt(at_least=0.0), evaluate=evaluate)
    result = run(job, tmp_path)
    assert [row["round"] for row in result.rounds] == [1]
    for name in ("accuracy", "federated_accuracy_mean", "personal_accuracy_mean"):
        assert result.rounds[0][name] == result.final[name]
    lines = RunFolder.find("latest", tmp_path).read_lines("evaluation.jsonl")
    assert sorted((line["round"], line["kind"]) for line in lines) == [(1, "federated"), (1, "personal")]
    assert np.array_equal(result.model.vector, run(make(ff.FedAvg(rounds=1, cohort=3))).model.vector)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_stop_known_late_leaves_the_last_published_model_with_its_own_metrics(every):
    job = make(
        ff.FedAvg(rounds=60, cohort=3), stop_at=ff.StopAt(at_least=0.0),
        evaluate=ff.Evaluation(every=every, clients=4), simulated=ff.Simulated(evaluation_s=8.0),
    )  # fmt: skip
    result = run(job)
    last = result.summary["rounds"]
    assert every < last < 60
    assert [row["round"] for row in result.rounds] == list(range(1, last + 1))
    plain = run(make(ff.FedAvg(rounds=last, cohort=3), evaluate=ff.Evaluation(clients=4)))
    assert np.array_equal(result.model.vector, plain.model.vector)
    for name in ("accuracy", "loss", "federated_loss_mean"):
        assert result.final[name] == result.rounds[-1][name] == plain.final[name]


@pytest.mark.parametrize("at", [1, 4, 5])
def test_a_run_that_stops_late_is_resumed_to_the_same_end(tmp_path, monkeypatch, at):
    call = Saver.__call__

    def always(saver, seen):
        saver._next = 0.0
        call(saver, seen)

    monkeypatch.setattr(Saver, "__call__", always)

    def job(*callbacks):
        return make(
            ff.FedAvg(rounds=60, cohort=3), stop_at=ff.StopAt(at_least=0.0), callbacks=callbacks,
            evaluate=ff.Evaluation(every=3, clients=4, personal=True), simulated=ff.Simulated(evaluation_s=8.0),
        )  # fmt: skip

    def stop(row):
        if row["round"] == at:
            raise InterruptedError

    whole = run(job())
    with pytest.raises(InterruptedError):
        run(job(stop), tmp_path)
    folder = RunFolder.find("latest", tmp_path)
    result = ff.resume_run(folder.path, job=job(), progress=False)
    assert result.final == whole.final
    assert result.summary["stopped"] == whole.summary["stopped"]
    assert [row["round"] for row in result.rounds] == [row["round"] for row in whole.rounds]


def test_a_complete_run_that_lacks_its_report_gets_it_when_resumed(tmp_path):
    text = HELLO + "\nstudy = ff.Study({'one': job, 'two': job.with_overrides({'seed': 4})})\n"
    for name, words in (("hello.py", ("run", "hello.py", "--job", "job")), ("study.py", ("run", "study.py"))):
        job_file(tmp_path, text, name)
        assert fieldfare(tmp_path, *words, "-q").code == 0
        report = (tmp_path / "runs" / "latest" / "report.html").resolve()
        report.unlink()
        again = fieldfare(tmp_path, "resume", "-q")
        assert again.code == 0
        run = report.parent.name
        assert again.err == f"the run {run} is already complete: there is nothing to go on with\n"
        assert report.stat().st_size > 1000
        report.write_text("mine")
        assert fieldfare(tmp_path, "resume", "-q").code == 0
        assert report.read_text() == "mine"


@pytest.mark.parametrize("what", ["job", "study"])
def test_a_job_file_that_runs_itself_while_it_is_read_is_refused(tmp_path, what):
    text = HELLO.split("if __name__")[0] + "study = ff.Study({'one': job})\n" + f"\n{what}.run()\n"
    job_file(tmp_path, text)
    line = text.splitlines().index(f"{what}.run()") + 1
    told = fieldfare(tmp_path, "run", "hello.py", "-q")
    told.refused(f"hello.py, line {line}", f"put {what}.run() under if __name__ == '__main__':")
    assert not (tmp_path / "runs").exists()
    run(make(ff.FedAvg(rounds=1, cohort=1)))


@pytest.mark.parametrize(("name", "lower"), [("mse", True), ("val_mae", True), ("loss", True), ("accuracy", False)])
def test_one_rule_says_which_end_of_a_metric_is_good(name, lower):
    assert lower_is_better(name) is units.lower_is_better(f"federated_{name}_mean") is lower
    algorithm = StopAt(ff.FedAvg(rounds=9, cohort=1), name, patience=1)
    state = algorithm.init(ff.mlp(2, 2).init(0))
    stops = []
    for version, value in enumerate([3.0, 2.0, 1.0] if lower else [1.0, 2.0, 3.0], 1):
        state, effects = algorithm.step(state, Evaluated(version, "test", {name: value}), Context(0.0, "central", 0))
        stops += effects
    assert stops == []
    assert algorithm.step(state, Evaluated(4, "test", {name: 2.5}), Context(0.0, "central", 0))[1]


def test_clients_whose_evaluation_is_not_finite_are_counted_and_told(tmp_path):
    x = np.ones((60, 2), np.float32)
    x[40:] = 3e38
    data = ff.data.from_numpy(x, np.arange(60) % 2, client=np.arange(60) // 10).holdout(0.5)
    notes: list[str] = []
    net = dataclasses.replace(ff.mlp(2, 2), path="stacked")  # whose sums are float32, and overflow
    job = make(ff.FedAvg(rounds=1, cohort=1), data=data, model=net,
               evaluate=ff.Evaluation(clients=ff.Everyone(), clients_every=1))  # fmt: skip
    result = job.run(tmp_path, progress=False, report=False, note=notes.append)
    (line,) = RunFolder.find("latest", tmp_path).read_lines("evaluation.jsonl")
    bad = line["missing"]["not finite"]
    assert set(bad) <= {4, 5}
    assert result.rounds[0]["federated_missing"] == {"not finite": len(bad)}
    assert np.isfinite(result.final["federated_loss_mean"])
    assert any(f"client {bad[0]}, federated evaluation of round 1" in note for note in notes)


def test_shared_and_personal_models_are_measured_on_the_same_clients(tmp_path):
    job = make(ff.Ditto(rounds=4, cohort=3, lam=0.1),
               evaluate=ff.Evaluation(clients=3, clients_every=1, personal=True))  # fmt: skip
    run(job, tmp_path)
    asked: dict[str, list] = {}
    for line in RunFolder.find("latest", tmp_path).read_lines("evaluation.jsonl"):
        asked.setdefault(line["kind"], []).append((line["round"], line["clients"]))
    assert sorted(asked["federated"]) == sorted(asked["personal"])
    assert len({tuple(clients) for _, clients in asked["federated"]}) > 1


def test_a_run_is_not_resumed_with_another_job(tmp_path):
    def stop(row):
        if row["round"] == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(make(callbacks=(stop,)), tmp_path)
    folder = RunFolder.find("latest", tmp_path)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    for changes, told in [
        ({"seed": 2}, "seed was 1 and is 2"), ({"training": ff.Training(lr=0.7)}, "training.lr was 0.1 and is 0.7"),
        ({"algorithm": ff.FedAvg(rounds=7, cohort=3)}, "algorithm.rounds was 6 and is 7"),
        ({"algorithm": ff.Scaffold(rounds=6, cohort=3)}, "algorithm.name was 'fedavg' and is 'scaffold'"),
        ({"algorithm": StopAt(ff.FedAvg(rounds=6, cohort=3), patience=9)}, "algorithm was 'FedAvg' and is 'StopAt'"),
        ({"stop_at": ff.StopAt(at_least=0.9)}, "stop_at was None and is StopAt"),
        ({"simulated": ff.Simulated(evaluation_s=1.0)}, "simulated.evaluation_s was 0.0 and is 1.0"),
    ]:  # fmt: skip
        with pytest.raises(ff.UsageError, match="another job") as caught:
            ff.resume_run(folder.path, job=make(**changes), progress=False)
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before
    same = make(name="other", simulated=ff.Simulated(workers=1, chunk=2))
    assert ff.resume_run(folder.path, job=same, progress=False).summary["rounds"] == 6


def test_a_job_made_of_functions_is_the_same_job_when_it_is_made_again(tmp_path):
    def job(stop_at):
        class Odd:
            def __call__(self, metrics):
                if metrics["round"] == stop_at:
                    raise InterruptedError

        return make(callbacks=(Odd(),), simulated=ff.Simulated(fleet=ff.fleet.phones(drop_out=0.1)))

    with pytest.raises(InterruptedError):
        run(job(2), tmp_path)
    folder = RunFolder.find("latest", tmp_path)
    assert ff.resume_run(folder.path, job=job(0), progress=False).summary["rounds"] == 6
    assert first_difference("<A object at 0x1f>", "<A object at 0x2e>", "loss") is None
