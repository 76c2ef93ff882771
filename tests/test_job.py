"""A job's comforts: stopping early, callbacks, starting from a model, evaluation on clients, personal models."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import HELLO, fieldfare, job_file

import fieldfare as ff
from fieldfare.algorithms import keep_optimizer
from fieldfare.store.models import write_model
from fieldfare.store.runs import RunFolder


def moons(clients=10, each=20, swapped=(), seed=0, test=True):
    """Two classes that a line parts; clients in `swapped` call them the other way round (so no one model fits)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, clients * each)
    x = rng.normal(size=(len(y), 2)).astype(np.float32) + 3.0 * (2 * y[:, None] - 1).astype(np.float32)
    who = np.arange(len(y)) // each
    labels = np.where(np.isin(who, swapped), 1 - y, y)
    central = {"x": x[:50], "y": y[:50]} if test else None
    return ff.data.from_numpy(x, labels, client=who, test=central, classes=2)


def make(algorithm=None, data=None, **changes):
    given = {
        "model": ff.mlp(2, 2), "data": data or moons(), "algorithm": algorithm or ff.FedAvg(rounds=6, cohort=4),
        "training": ff.Training(lr=0.02, batch_size=5), "seed": 1, "simulated": ff.Simulated(workers=1),
    }  # fmt: skip
    return ff.Job(**{**given, **changes})


def run(job, folder=None):
    return job.run(runs=folder, progress=False, **({"report": False} if folder else {}))


def test_a_run_gives_final_metrics_model_rows_and_summary_and_writes_nothing_if_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(make())
    assert result.path is None
    assert [row["round"] for row in result.rounds] == [1, 2, 3, 4, 5, 6]
    assert result.final["accuracy"] == result.rounds[-1]["accuracy"]
    assert result.summary["final"] == result.final
    assert result.model.vector.shape == (6,)
    assert list(tmp_path.iterdir()) == []


def test_virtual_time_and_bytes_grow_and_do_not_depend_on_the_machine():
    first, second = run(make()), run(make())
    virtual = [row["virtual_s"] for row in first.rounds]
    assert all(a < b for a, b in zip([0.0, *virtual], virtual, strict=False))
    assert [row["bytes_up"] for row in first.rounds] == [r * 4 * 6 * 4 for r in range(1, 7)]
    assert virtual == [row["virtual_s"] for row in second.rounds]


def test_the_final_metrics_are_those_of_the_model_that_is_given_back():
    result = run(make())
    test = make().data.test
    logits = test["x"] @ np.asarray(result.model.tensors()["0.weight"]).T + np.asarray(result.model.tensors()["0.bias"])
    assert result.final["accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == test["y"]))


# Stopping early.


def test_a_run_stops_when_its_target_is_reached():
    whole = run(make())
    target = whole.rounds[2]["loss"]
    first = next(row["round"] for row in whole.rounds if row["loss"] <= target)
    stopped = run(make(stop_at=ff.StopAt("loss", at_most=target)))
    assert len(stopped.rounds) == first < 6
    assert stopped.final["loss"] <= target
    assert stopped.summary["rounds"] == first
    assert "loss" in stopped.summary["stopped"]
    short = run(make(ff.FedAvg(rounds=first, cohort=4)))
    assert np.array_equal(stopped.model.vector, short.model.vector)


def test_a_target_that_is_not_reached_changes_nothing():
    stopped = run(make(stop_at=ff.StopAt("accuracy", at_least=1.5)))
    assert stopped.summary["stopped"] == "rounds"
    assert np.array_equal(stopped.model.vector, run(make()).model.vector)


def test_a_target_is_looked_at_only_when_the_model_is_measured():
    stopped = run(make(evaluate=ff.Evaluation(every=3), stop_at=ff.StopAt("accuracy", at_least=0.0)))
    assert len(stopped.rounds) == 3


def test_the_central_test_is_made_every_so_many_rounds_and_in_the_last():
    rows = run(make(evaluate=ff.Evaluation(every=4))).rounds
    assert [row["round"] for row in rows if "accuracy" in row] == [4, 6]
    assert all("train_loss" in row for row in rows)


def test_a_central_evaluation_may_take_virtual_time():
    plain = run(make())
    slow = run(make(simulated=ff.Simulated(workers=1, evaluation_s=100.0)))
    assert np.array_equal(plain.model.vector, slow.model.vector)
    assert [row["accuracy"] for row in slow.rounds] == [row["accuracy"] for row in plain.rounds]
    assert [row["virtual_s"] for row in slow.rounds] == [row["virtual_s"] for row in plain.rounds]
    assert slow.summary["virtual_s"] == pytest.approx(plain.summary["virtual_s"] + 100.0)


def test_without_a_test_set_the_training_loss_is_what_is_known():
    result = run(make(data=moons(test=False)))
    assert set(result.final) == {"train_loss"}


# Callbacks.


def test_callbacks_get_every_rounds_metrics_in_order():
    seen: list = []
    result = run(make(callbacks=(seen.append,), evaluate=ff.Evaluation(every=2)))
    assert seen == result.rounds
    assert {"round", "accuracy", "loss", "train_loss", "virtual_s", "bytes_up", "clients"} <= set(seen[-1])


def test_what_a_callback_does_to_its_row_changes_no_record(tmp_path):
    result = run(make(callbacks=(dict.clear, lambda row: row.update(accuracy=2.0))), tmp_path)
    assert result.final["accuracy"] <= 1
    assert all("accuracy" in row for row in RunFolder.open(result.path, write=False).read_lines("rounds.jsonl"))


def test_a_callback_that_fails_is_named_with_the_round_and_the_run_can_go_on(tmp_path):
    failing = HELLO + '\ndef upload(row):\n    if row["round"] == FAIL:\n        raise KeyError("no server")\n\n'
    failing += "job = ff.Job(**{**vars(job), 'callbacks': (upload,)})\n"
    file = job_file(tmp_path, failing.replace("FAIL", "3"))
    told = fieldfare(tmp_path, "run", "hello.py", "-q", "--json")
    assert told.code == 1
    assert "no server" in told.err
    assert "raised by upload, a callback of the job, after round 3" in told.err
    assert told.result["exit_code"] == 1
    run_path = (tmp_path / "runs" / "latest").resolve()
    (run_path / "job.py").write_text(failing.replace("FAIL", "-1"))
    resumed = fieldfare(tmp_path, "resume", "--json")
    assert resumed.code == 0, resumed.err
    file.write_text(failing.replace("FAIL", "-1"))
    assert fieldfare(tmp_path, "run", "hello.py", "--json").result["final"] == resumed.result["final"]


# Starting from a model.


def test_a_run_starts_from_a_saved_model(tmp_path):
    first = run(make(), tmp_path)
    still = run(make(start_from=first.path / "model.safetensors", training=ff.Training(lr=0.0)))
    assert np.array_equal(still.model.vector, first.model.vector)
    onward = run(make(ff.FedAvg(rounds=1, cohort=4), start_from=first.path / "model.safetensors"))
    assert not np.array_equal(onward.model.vector, first.model.vector)
    assert onward.rounds[0]["train_loss"] < first.rounds[0]["train_loss"] / 2


def test_the_command_line_may_name_the_model_to_start_from(tmp_path):
    job_file(tmp_path)
    assert fieldfare(tmp_path, "run", "hello.py", "-q").code == 0
    exported = fieldfare(tmp_path, "export", "-o", "start.safetensors")
    assert exported.code == 0
    told = fieldfare(
        tmp_path, "run", "hello.py", "--json", "--set", "start_from=start.safetensors", "--set", "training.lr=0"
    )
    before = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    assert told.code == 0, told.err
    found = RunFolder.find("latest", tmp_path / "runs").read_model()
    from fieldfare.store.models import read_model

    assert np.array_equal(found.vector, read_model(tmp_path / "start.safetensors").vector)
    assert before["rounds"] == 4


def test_a_model_file_of_another_library_is_a_start_too(tmp_path):
    from safetensors.numpy import save_file

    weight = np.array([[-1.0, -1.0], [1.0, 1.0]])
    save_file({"0.weight": weight, "0.bias": np.zeros(2)}, tmp_path / "theirs.safetensors")
    result = run(make(start_from=str(tmp_path / "theirs.safetensors"), training=ff.Training(lr=0.0)))
    assert np.array_equal(result.model.tensors()["0.weight"], weight)
    assert result.final["accuracy"] > 0.95


# Evaluation on clients.


def lines_of(result, kind="federated"):
    lines = RunFolder.open(result.path, write=False).read_lines("evaluation.jsonl")
    return [line for line in lines if line["kind"] == kind]


def test_the_distribution_over_clients_is_recorded_with_mean_and_worst_decile(tmp_path):
    data = moons(swapped=(0, 1, 2)).holdout(0.3)
    result = run(make(data=data, evaluate=ff.Evaluation(clients=ff.Everyone(), clients_every=3)), tmp_path)
    lines = lines_of(result)
    assert [line["round"] for line in lines] == [3, 6]
    assert lines[-1]["clients"] == list(range(10))
    assert lines[-1]["examples"] == [6.0] * 10
    accuracy = np.array(lines[-1]["accuracy"])
    row = result.rounds[-1]
    assert row["federated_accuracy_mean"] == pytest.approx(accuracy.mean(), rel=1e-5)
    assert row["federated_accuracy_worst_decile"] == pytest.approx(accuracy.min(), rel=1e-5)
    loss = np.array(lines[-1]["loss"])
    assert row["federated_loss_worst_decile"] == pytest.approx(loss.max(), rel=1e-5)
    assert result.final["federated_accuracy_worst_decile"] == row["federated_accuracy_worst_decile"]
    assert row["federated_accuracy_worst_decile"] < 0.3 < 0.6 < row["federated_accuracy_mean"]
    assert [row["round"] for row in result.rounds if "federated_loss_mean" in row] == [3, 6]


def test_each_line_of_the_evaluation_is_the_accuracy_on_that_clients_held_out_rows(tmp_path):
    data = moons(swapped=(0, 1, 2)).holdout(0.3)
    result = run(make(data=data, evaluate=ff.Evaluation(clients=ff.Everyone())), tmp_path)
    weight, bias = (np.asarray(result.model.tensors()[name]) for name in ("0.weight", "0.bias"))
    for client, told in zip(*[lines_of(result)[-1][key] for key in ("clients", "accuracy")], strict=True):
        block = data.held_block([client])
        x, y = block.columns["x"][block.rows], block.columns["y"][block.rows]
        assert told == pytest.approx(np.mean((x @ weight.T + bias).argmax(axis=1) == y), rel=1e-5)


def test_clients_that_hold_out_nothing_are_not_counted_as_wrong(tmp_path):
    x = np.random.default_rng(0).normal(size=(41, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    who = np.array([0] * 20 + [1] * 20 + [2])
    data = ff.data.from_numpy(x, y, client=who, classes=2).holdout(0.3)
    assert data.held_sizes.tolist() == [6, 6, 0]
    result = run(make(ff.FedAvg(rounds=2, cohort=3), data, evaluate=ff.Evaluation(clients=ff.Everyone())), tmp_path)
    line = lines_of(result)[-1]
    assert line["clients"] == [0, 1]
    assert result.final["federated_accuracy_mean"] == pytest.approx(np.mean(line["accuracy"]), rel=1e-5)
    assert result.final["federated_loss_mean"] > 0


def test_a_sample_of_clients_may_evaluate(tmp_path):
    result = run(make(data=moons().holdout(0.3), evaluate=ff.Evaluation(clients=4, clients_every=2)), tmp_path)
    cohorts = [tuple(line["clients"]) for line in lines_of(result)]
    assert [len(cohort) for cohort in cohorts] == [4, 4, 4]
    assert len(set(cohorts)) > 1


PERSONAL = {
    "ditto": lambda **o: ff.Ditto(lam=0.1, **o),
    "fedper": lambda **o: ff.FedPer(personal=["2"], **o),
    "fedrep": lambda **o: ff.FedRep(personal=["2"], **o),
    "fedbn": lambda **o: ff.FedBN(norms=["2"], **o),
}


@pytest.mark.parametrize("name", PERSONAL)
def test_a_personal_model_serves_clients_that_the_shared_one_cannot(tmp_path, name):
    data = moons(swapped=(0, 1, 2, 3, 4)).holdout(0.3)
    job = make(
        PERSONAL[name](rounds=12, cohort=10), data, model=ff.mlp(2, 4, 2), training=ff.Training(lr=0.1, batch_size=5),
        evaluate=ff.Evaluation(clients=ff.Everyone(), clients_every=6, personal=True),
    )  # fmt: skip
    result = run(job, tmp_path)
    final = result.final
    # Half the clients name the classes the other way round: one model is right on half of the clients at best.
    assert final["federated_accuracy_mean"] < 0.7
    assert final["personal_accuracy_mean"] > 0.9
    assert final["personal_accuracy_worst_decile"] > final["federated_accuracy_worst_decile"]
    assert [line["round"] for line in lines_of(result, "personal")] == [6, 12]


def test_fine_tuning_is_measured_before_and_after(tmp_path):
    data = moons(swapped=(0, 1, 2, 3, 4)).holdout(0.3)
    job = make(
        ff.FedAvg(rounds=3, cohort=10), data, training=ff.Training(lr=0.1, batch_size=5),
        evaluate=ff.Evaluation(clients=ff.Everyone(), fine_tune=20),
    )  # fmt: skip
    final = run(job, tmp_path).final
    assert final["fine_tuned_before_accuracy_mean"] == final["federated_accuracy_mean"]
    assert final["fine_tuned_accuracy_mean"] > final["fine_tuned_before_accuracy_mean"] + 0.2
    assert final["fine_tuned_before_loss_worst_decile"] > final["fine_tuned_before_loss_mean"]


@pytest.mark.parametrize(
    "algorithm",
    [ff.FedAvg(3, 5), ff.Scaffold(3, 5), keep_optimizer(ff.FedAvg(3, 5))],
    ids=["fedavg", "scaffold", "kept optimizer"],
)
def test_where_clients_have_no_model_of_their_own_the_personal_measure_is_of_the_model_sent(algorithm):
    training = ff.Training(lr=0.1, momentum=0.9 if algorithm.slot == "optimizer" else 0.0)
    evaluate = ff.Evaluation(clients=ff.Everyone(), clients_every=1, personal=True)
    final = run(make(algorithm, moons().holdout(0.3), training=training, evaluate=evaluate)).final
    federated = {name[10:]: value for name, value in final.items() if name.startswith("federated_")}
    assert federated == {name[9:]: value for name, value in final.items() if name.startswith("personal_")}
    assert federated


def test_measuring_personal_models_changes_no_bit_of_the_shared_one():
    data = moons(swapped=(0, 1)).holdout(0.3)
    quiet = make(ff.Ditto(rounds=4, cohort=5, lam=0.1), data)
    loud = ff.Job(**{**vars(quiet), "evaluate": ff.Evaluation(clients=5, clients_every=1, personal=True)})
    assert np.array_equal(run(quiet).model.vector, run(loud).model.vector)


# Clients that do not answer.


def test_late_clients_and_drop_outs_are_recorded_by_reason_and_by_client(tmp_path):
    fleet = ff.fleet.Fleet(
        overhead_s=np.where(np.arange(10) < 3, 50.0, 1.0).astype(np.float32), drop_out=0.2, name="mixed"
    )
    job = make(
        ff.FedAvg(rounds=20, cohort=10, quorum=ff.Quorum(deadline_s=10.0)),
        simulated=ff.Simulated(fleet=fleet, workers=1),
    )
    result = run(job, tmp_path)
    lines = RunFolder.open(result.path, write=False).read_lines("clients.jsonl")
    late = [set(line["missing"].get("late", ())) for line in lines]
    gone = [set(line["missing"].get("drop-out", ())) for line in lines]
    at_work = [set(line["missing"].get("unavailable", ())) for line in lines]
    assert all(found <= {0, 1, 2} for found in late)
    assert all(found <= {0, 1, 2} for found in at_work)
    assert max(map(len, at_work)) > 0
    assert sum(map(len, gone)) > 10
    for row, line, slow, lost, busy in zip(result.rounds, lines, late, gone, at_work, strict=True):
        assert set(line["clients"]) | slow | lost | busy == set(range(10))
        assert row["clients"] == len(line["clients"])
        assert row["missing"].get("late", 0) == len(slow)
        assert row["missing"].get("drop-out", 0) == len(lost)


# Overrides.


def test_overrides_give_another_job_and_leave_the_first_as_it_was():
    job = make()
    other = job.with_overrides({"rounds": 2, "training.lr": "0.5", "simulated.fleet.drop_out": 0.1})
    assert (other.algorithm.rounds, other.training.lr, other.simulated.fleet.drop_out) == (2, 0.5, 0.1)
    assert (job.algorithm.rounds, job.training.lr, job.simulated.fleet.drop_out) == (6, 0.02, 0.0)
    assert other.data is job.data


@pytest.mark.parametrize("key", ["training.nothing", "nothing", "training.lr.more", "data.columns.x", "algorithm.init"])
def test_overrides_of_what_is_no_setting_are_refused(key):
    with pytest.raises(ff.UsageError, match=key.split(".")[-1] + "|no settings"):
        make().with_overrides({key: 1})


def test_a_model_that_was_written_and_read_keeps_its_bits(tmp_path):
    result = run(make(), tmp_path)
    write_model(tmp_path / "again.safetensors", result.model)
    assert (tmp_path / "again.safetensors").read_bytes() == (result.path / "model.safetensors").read_bytes()
