"""Flower clients as they are: parameters as lists of arrays, both forms of client_fn, their own rows and weights."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Proximal

DATA = ff.data.synthetic(clients=10, classes=3, features=4, min_examples=5, max_examples=30, seed=1).holdout(0.3)
SEEN = []


class Mean:
    """Moves its weights towards the mean of its rows, jittered; counts its calls in an integer parameter."""

    def __init__(self, partition):
        self.rows, self.held = DATA.block([partition]).client(0), DATA.held_block([partition]).client(0)

    def get_parameters(self, config):
        return [np.zeros((2, 2)), np.zeros((), np.int64), np.zeros(1, np.float32)]

    def fit(self, parameters, config):
        SEEN.append((parameters, config))
        w, count, bias = parameters
        jitter = np.random.normal(size=(2, 2)) * 0.1  # noqa: NPY002
        w = w + 0.5 * (self.rows["x"].mean(axis=0).reshape(2, 2) - w) + jitter
        return [w, count + 2, bias], len(self.rows["y"]), {"drift": float(np.abs(w).max()), "note": "text"}

    def evaluate(self, parameters, config):
        SEEN.append((parameters, config))
        gap = float(((self.held["x"].mean(axis=0) - parameters[0].reshape(-1)) ** 2).mean())
        return gap, 2 * len(self.held["y"]), {"calls": int(parameters[1])}


def client_fn(context):
    return Mean(context.node_config["partition-id"])


def evaluate_fn(server_round, parameters, config):
    return float(np.abs(parameters[0]).max()), {"calls": int(parameters[1]), "round": server_round}


def job(model=None, data=DATA, clients=4, rounds=3, **simulated):
    model = model or ff.flower_client(client_fn, evaluate_fn=evaluate_fn)
    return ff.Job(
        model, data, ff.FedAvg(rounds=rounds, cohort=5), ff.Training(lr=0.3), seed=3,
        evaluate=ff.Evaluation(clients=clients, clients_every=2), simulated=ff.Simulated(**simulated),
    )  # fmt: skip


def test_a_round_is_the_mean_of_what_the_clients_send_by_their_examples():
    model = ff.flower_client(client_fn, evaluate_fn=evaluate_fn)
    result = job(model, rounds=1, workers=1).run(None, progress=False)
    w, count, bias = model.model(result.model)
    assert (w.dtype, count.dtype, bias.dtype) == (np.float64, np.int64, np.float32)
    assert (count, bias.shape) == (2, (1,))
    assert result.final["calls"] == 2.0
    assert result.final["loss"] == np.abs(w).max()
    assert {"train_drift", "federated_loss_mean", "federated_calls_mean"} <= result.final.keys()
    assert "train_note" not in result.final
    assert np.abs(w).max() > 0.05


def test_neither_chunks_nor_workers_change_a_bit_although_clients_use_the_global_generator():
    first = job(workers=1, chunk=100).run(None, progress=False)
    for simulated in ({"workers": 1, "chunk": 1}, {"workers": 2, "chunk": 1}):
        again = job(**simulated).run(None, progress=False)
        assert again.model.vector.tobytes() == first.model.vector.tobytes()
        assert again.final == first.final


def test_parameters_come_in_the_dtypes_and_shapes_they_began_with():
    SEEN.clear()
    job(workers=1).run(None, progress=False)
    for parameters, _ in SEEN:
        assert [(p.dtype.name, p.shape) for p in parameters] == [("float64", (2, 2)), ("int64", ()), ("float32", (1,))]


def test_the_config_is_the_users_for_the_round_or_the_jobs_settings():
    SEEN.clear()
    model = ff.flower_client(
        client_fn, fit_config=lambda r: {"r": r}, evaluate_config={"steps": 3}, evaluate_fn=evaluate_fn
    )
    job(model, rounds=2, workers=1).run(None, progress=False)
    told = [config for _, config in SEEN]
    assert told[:5] == [{"r": 1}] * 5
    assert {"r": 2} in told
    assert told[-1] == {"steps": 3}
    SEEN.clear()
    job(rounds=1, workers=1).run(None, progress=False)
    fit, measured = SEEN[0][1], SEEN[-1][1]
    assert (fit["server_round"], fit["server-round"], fit["lr"], fit["epochs"]) == (1, 1, 0.3, 1)
    assert measured["server_round"] == 1


def test_weights_of_an_evaluation_are_what_the_clients_say():
    work = ff.flower_client(client_fn).works(ff.Training(), ())["evaluate"]
    assert not work.needs_held
    from fieldfare.core.work import Cohort

    clients = np.array([2, 5])
    made = ff.flower_client(client_fn).init(0)
    whole = Cohort(
        made.vector[None], np.zeros(2, np.int64), made.layout, clients, np.arange(2, dtype=np.uint64),
        DATA.block(clients), {"version": 3},
    )  # fmt: skip
    out = work(whole)
    assert out.weight.tolist() == (2.0 * DATA.held_sizes[clients]).tolist()
    assert out.metrics["calls"].tolist() == [0.0, 0.0]


def test_clients_that_read_their_own_rows_need_no_held_out_part():
    bare = replace(DATA, held_offsets=None, held_rows=None, test=None)
    final = job(data=bare, workers=1).run(None, progress=False).final
    assert "federated_loss_mean" in final
    assert "loss" not in final


def test_the_older_client_fn_gets_the_id_as_text():
    for old in (lambda cid: Mean(int(cid)), annotated):
        assert ff.flower_client(old).init(0).size == 6
    kinds = []
    ff.flower_client(lambda number: kinds.append(type(number).__name__) or Mean(0))
    assert kinds == ["Context"]


def annotated(name: str):
    assert type(name) is str
    return Mean(int(name))


def test_a_context_is_new_for_every_call():
    seen = []

    def note(context):
        seen.append(len(context.state))
        context.state["calls"] = 1
        return Mean(0)

    clients = ff.flower_client(note)
    clients.init(0)
    clients.init(1)
    assert seen == [0, 0, 0]


def test_the_context_says_partition_partitions_and_the_runs_settings():
    seen = []

    def look(context):
        seen.append(context)
        return Mean(context.node_config["partition-id"])

    ff.flower_client(look, num_partitions=10, run_config={"local-epochs": 2})
    assert seen[0].node_config == {"partition-id": 0, "num-partitions": 10}
    assert (seen[0].run_config, seen[0].node_id, seen[0].run_id) == ({"local-epochs": 2}, 0, 0)


def test_a_wrapped_client_is_unwrapped():
    wrapped = ff.flower_client(lambda context: SimpleNamespace(numpy_client=client_fn(context)))
    assert wrapped.init(0).size == 6


def test_initial_parameters_may_be_given_and_else_depend_on_the_seed():
    class Random(Mean):
        def get_parameters(self, config):
            return [np.random.normal(size=(2, 2))]  # noqa: NPY002

    model = ff.flower_client(lambda cid: Random(int(cid)))
    assert model.init(1).vector.tobytes() == model.init(1).vector.tobytes() != model.init(2).vector.tobytes()
    given = ff.flower_client(client_fn, initial=[np.ones(3)])
    assert given.init(1).vector.tolist() == [1.0, 1.0, 1.0]


class Silent:
    def fit(self, parameters, config):
        return parameters


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ff.flower_client("client"), "client_fn"),
        (lambda: ff.flower_client(lambda cid: object()), "without fit for client 0"),
        (lambda: ff.flower_client(lambda cid: Silent()), "initial="),
        (lambda: ff.flower_client(client_fn, initial=[]), "no parameters"),
        (lambda: job(ff.flower_client(client_fn)).run(None, progress=False), "evaluate_fn"),
        (lambda: job(ff.flower_client(lambda cid: Silent(), initial=[np.ones(2)], evaluate_fn=evaluate_fn),
                     workers=1).run(None, progress=False), r"fit of client \d returned no"),
        (lambda: ff.flower_client(client_fn).works(ff.Training(), (Proximal(0.1),)), "Proximal .* FedAvg"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(make, says):
    with pytest.raises(UsageError, match=says) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_an_error_of_a_client_names_it():
    class Broken(Mean):
        def fit(self, parameters, config):
            raise OSError("no such partition")

    model = ff.flower_client(lambda cid: Broken(int(cid)), evaluate_fn=evaluate_fn)
    with pytest.raises(OSError, match="no such partition") as error:
        job(model, workers=1).run(None, progress=False)
    assert error.value.__notes__[0].startswith("raised by train of client ")


def test_flower_is_neither_needed_nor_imported():
    code = (
        "import sys, numpy as np, fieldfare as ff\n"
        "class C:\n    def get_parameters(self, config): return [np.zeros(2)]\n"
        "    def fit(self, p, c): return p, 1, {}\n"
        "ff.flower_client(lambda cid: C()); print(any(m.partition('.')[0] == 'flwr' for m in sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"
