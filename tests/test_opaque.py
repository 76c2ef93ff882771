"""Any function as a client: what it gets, what it may return, what is refused, and that nothing leaks between calls."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from work_cohorts import block, pick

import fieldfare as ff
from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Collect
from fieldfare.core.local import Proximal
from fieldfare.core.params import Layout
from fieldfare.core.work import Cohort

SIZES = [9, 4, 13]


def cohort(model, sizes=SIZES, held=None, **more):
    """Clients 1, 4, 7, ... that are sent `model`."""
    clients = np.arange(len(sizes)) * 3 + 1
    params = model.init(0)
    return Cohort(
        params.vector[None], np.zeros(len(sizes), np.int64), params.layout, clients, rng.keys(0, ("test",), clients),
        block(sizes), {"round": 2}, opaque=params.opaque, held=None if held is None else block(held), **more,
    )  # fmt: skip


def works(model, training=None):
    return model.works(training or ff.Training(), ())


def mean_of(model, data, config, rng):
    return data["x"].mean(axis=0)


def centred(model, data):
    return {"loss": float(((data["x"] - model) ** 2).mean()), "spread": float(data["x"].std())}


def test_a_vector_is_sent_as_the_difference_and_weighs_its_examples():
    model = ff.opaque(mean_of, init=np.ones(5))
    whole = cohort(model)
    out = works(model)["train"](whole)
    wanted = np.stack([whole.data.client(i)["x"].mean(axis=0) - 1 for i in range(3)])
    np.testing.assert_allclose(out.leaves["delta"], wanted, atol=1e-6)
    assert out.weight.tolist() == [9.0, 4.0, 13.0]
    assert out.metrics == {}


@pytest.mark.parametrize("form", ["list", "dict", "like a list", "like a dict", "vector"])
def test_functions_see_the_model_in_the_form_it_was_given_and_may_write_to_it(form):
    shapes = {"w": (2, 3), "b": (3,)}
    zeros = {name: np.zeros(shape) for name, shape in shapes.items()}
    given = {
        "list": {"init": [*zeros.values()]},
        "dict": {"init": zeros},
        "like a list": {"like": [*shapes.values()]},
        "like a dict": {"like": shapes, "init": np.arange(9)},
        "vector": {"init": np.zeros((3, 3))},
    }[form]
    seen = []

    def train(model, data, config, rng):
        parts = model.values() if isinstance(model, dict) else model if isinstance(model, list) else [model]
        seen.append([(type(model), part.shape, part.dtype) for part in parts])
        for part in parts:
            part += 1
        return model

    model = ff.opaque(train, **given)
    out = works(model)["train"](cohort(model))
    np.testing.assert_array_equal(out.leaves["delta"], np.ones((3, 9), np.float32))
    kind = {"vector": np.ndarray}.get(form, dict if "dict" in form else list)
    wanted = [(3, 3)] if form == "vector" else [*shapes.values()]
    assert seen[2] == [(kind, shape, np.dtype(np.float32)) for shape in wanted]
    back = model.model(model.init(0))
    assert type(back) is kind
    assert model.init(0).layout.names == {"v": ("model",)}.get(form[0], ("w", "b") if "dict" in form else ("0", "1"))


def test_a_weight_and_metrics_may_come_with_the_model():
    def train(model, data, config, rng):
        return model + 1, 0.5 * len(data["y"]), {"loss": 0.25, "kept": len(data["y"])}

    model = ff.opaque(train, init=np.zeros(2))
    out = works(model)["train"](cohort(model))
    assert out.weight.tolist() == [4.5, 2.0, 6.5]
    assert {name: values.tolist() for name, values in out.metrics.items()} == {"loss": [0.25] * 3, "kept": [9, 4, 13]}
    alone = ff.opaque(lambda m, d, c, r: (m, 3), init=np.zeros(2))
    assert works(alone)["train"](cohort(alone)).weight.tolist() == [3.0] * 3


def test_settings_of_the_job_and_of_the_ask_reach_the_function():
    seen = []
    model = ff.opaque(lambda m, d, config, r: seen.append(config) or m, init=np.zeros(2))
    training = ff.Training(lr=0.4, epochs=3, batch_size=7, schedule="inverse_sqrt")
    works(model, training)["train"](cohort(model))
    told = {"lr": 0.4 / np.sqrt(2.0), "epochs": 3, "batch_size": 7, "steps": None, "round": 2}
    assert seen == [told] * 3
    assert seen[0] is not seen[1]


def test_a_metric_that_some_clients_tell_is_not_a_number_for_the_others():
    def train(model, data, config, rng):
        return model, 1, {"big": 1.0} if len(data["y"]) > 5 else {}

    model = ff.opaque(train, init=np.zeros(2))
    told = works(model)["train"](cohort(model)).metrics["big"]
    np.testing.assert_array_equal(told, [1.0, np.nan, 1.0])


def chance(model, data, config, generator):
    return np.array([generator.random(), random.random(), np.random.random()], np.float32)  # noqa: NPY002


def test_a_rows_randomness_is_its_own_in_every_generator_and_the_callers_is_left_alone():
    model = ff.opaque(chance, init=np.zeros(3))
    whole = cohort(model)
    before = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    rows = works(model)["train"](whole).leaves["delta"]
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before  # noqa: NPY002
    assert len(np.unique(rows)) == 9
    part = works(model)["train"](pick(whole, [2, 0])).leaves["delta"]
    assert part.tobytes() == rows[[2, 0]].tobytes()


def test_torchs_generator_too_is_the_clients_own():
    torch = pytest.importorskip("torch")
    model = ff.opaque(lambda m, d, c, r: torch.rand(3).numpy(), init=np.zeros(3))
    whole = cohort(model)
    before = torch.get_rng_state()
    rows = works(model)["train"](whole).leaves["delta"]
    assert torch.equal(torch.get_rng_state(), before)
    assert works(model)["train"](pick(whole, [1])).leaves["delta"].tobytes() == rows[1].tobytes()
    assert len(np.unique(rows)) == 9


def test_bytes_go_there_and_back_as_they_are():
    def train(model, data, config, rng):
        return model + bytes([len(data["y"])]), 2

    model = ff.opaque(train, init=b"start", leaf="grown", reply_bytes=500)
    whole = cohort(model)
    work = works(model)["train"]
    out = work(whole)
    assert out.leaves == {"grown": [b"start\x09", b"start\x04", b"start\x0d"]}
    assert out.weight.tolist() == [2.0] * 3
    assert model.init(0).opaque == b"start"
    assert model.model(model.init(0)) == b"start"
    cost = work.cost(np.array([9, 4]), Layout((), ()), {"round": 1})
    assert (cost.bytes_down, cost.bytes_up) == (0.0, 500.0)
    assert work.cost(np.array([9]), Layout((), ()), {"reply_bytes": 7}).bytes_up == 7.0


def test_cost_counts_examples_passes_and_the_vector():
    work = works(ff.opaque(mean_of, init=np.zeros(5)), ff.Training(epochs=2))["train"]
    cost = work.cost(np.array([10, 20]), Layout(("model",), ((5,),)), {})
    np.testing.assert_allclose(cost.flops, [6 * 5 * 20, 6 * 5 * 40])
    assert (cost.bytes_down, cost.bytes_up) == (20.0, 20.0)
    steps = work.cost(np.array([10, 20]), Layout(("model",), ((5,),)), {"steps": 3})
    np.testing.assert_allclose(steps.flops, [6 * 5 * 3 * 20] * 2)


def test_a_function_of_a_generator_makes_the_first_model():
    model = ff.opaque(mean_of, init=lambda generator: generator.normal(size=4))
    assert model.init(1).vector.tobytes() == model.init(1).vector.tobytes() != model.init(2).vector.tobytes()


def test_held_out_rows_are_measured_and_who_has_none_is_not_called():
    model = ff.opaque(mean_of, centred, init=np.zeros(5))
    whole = cohort(model, held=[3, 0, 5])
    work = works(model)["evaluate"]
    assert work.needs_held
    out = work(whole)
    assert out.leaves == {}
    assert out.weight.tolist() == [3.0, 0.0, 5.0]
    for i in (0, 2):
        told = centred(np.zeros(5, np.float32), whole.held.client(i))
        assert {name: out.metrics[name][i] for name in told} == told
    assert np.isnan(out.metrics["loss"][1])
    assert out.diverged.tolist() == [False] * 3
    assert out.metrics["examples"].tolist() == [3.0, 0.0, 5.0]
    assert model.central(block([30]).columns)(model.init(0))["loss"] > 0


def test_the_loss_alone_is_a_metric():
    model = ff.opaque(mean_of, lambda m, d: np.float32(0.5), init=np.zeros(5))
    assert model.central({"x": np.zeros((2, 5))})(model.init(0)) == {"loss": 0.5}


def broken(model, data, config, rng):
    raise KeyError("eta")


def test_an_error_of_the_function_is_passed_on_and_names_the_client():
    model = ff.opaque(broken, lambda m, d: 1 / 0, init=np.zeros(2))
    with pytest.raises(KeyError, match="eta") as error:
        works(model)["train"](cohort(model))
    assert error.value.__notes__ == ["raised by train of client 1"]
    with pytest.raises(ZeroDivisionError) as error:
        works(model)["evaluate"](cohort(model, held=[0, 1, 1]))
    assert error.value.__notes__ == ["raised by evaluate of client 4"]


def test_the_client_is_named_from_a_worker_process_too():
    with pytest.raises(KeyError, match="eta") as error:
        job(ff.opaque(broken, distance, init=np.zeros(4)), workers=2).run(None, progress=False)
    assert "raised by train of client" in "".join(error.value.__notes__)


def returning(value, **more):
    made = ff.opaque(lambda model, data, config, rng: value, **{"init": np.zeros(2), **more})
    return works(made)["train"](cohort(made))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ff.opaque("train"), "give a function"),
        (lambda: ff.opaque(mean_of, 3, init=b""), "evaluate"),
        (lambda: ff.opaque(mean_of), "init="),
        (lambda: ff.opaque(mean_of, init="text"), "type str"),
        (lambda: ff.opaque(mean_of, init=np.zeros(4), like=[(5,)]), "4 numbers .* 5"),
        (lambda: returning(np.zeros(3)), r"\(3,\).* instead of \[\(2,\)\] for client 1"),
        (lambda: returning([np.zeros(2)]), "a list instead of an array for client 1"),
        (lambda: returning(None), "NoneType instead of an array"),
        (lambda: returning({"w": np.zeros(2)}, init={"v": np.zeros(2)}), "arrays w instead of v"),
        (lambda: returning(np.array(["a", "b"])), "could not convert"),
        (lambda: returning((np.zeros(2), 1, "text")), "tuple of 3 for client 1"),
        (lambda: returning((np.zeros(2), np.zeros(2))), "tuple of 2"),
        (lambda: returning((np.zeros(2), 1, {"loss": "low"})), "train of client 1 returned"),
        (lambda: returning("text", init=b""), "a str for client 1: return bytes"),
        (lambda: ff.opaque(mean_of, init=b"").central({}), "give evaluate="),
        (lambda: ff.opaque(mean_of, lambda m, d: "good", init=b"").central({})(ff.opaque(mean_of, init=b"").init(0)),
         "returned 'good'"),
        (lambda: ff.opaque(mean_of, init=b"").works(ff.Training(), (Proximal(0.1),)), "Proximal .* FedAvg"),
        (lambda: works(ff.opaque(mean_of, init=np.zeros(3)))["train"](cohort(ff.opaque(mean_of, init=np.zeros(2)))),
         "sub-models"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(make, says):
    with pytest.raises(UsageError, match=says) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_a_loss_told_by_some_only_is_not_a_number_for_the_others_who_have_not_diverged():
    model = ff.opaque(lambda m, d, c, r: (m, 1, {"loss": 1.0} if len(d["y"]) > 5 else {}), init=np.zeros(2))
    out = works(model)["train"](cohort(model))
    np.testing.assert_array_equal(out.metrics["loss"], [1.0, np.nan, 1.0])
    assert not out.diverged.any()
    model = ff.opaque(lambda m, d, c, r: (m, 1, {"loss": np.inf} if len(d["y"]) > 5 else {}), init=np.zeros(2))
    assert works(model)["train"](cohort(model)).diverged.tolist() == [True, False, True]


def told_by_some(model, data, config, rng):
    size = len(data["y"])
    return model + 1, size, {"loss": np.inf if size % 5 == 0 else 1.0} if size % 2 else {}


def test_a_run_in_which_some_tell_their_loss_does_not_depend_on_the_chunk():
    found = []
    for chunk in (1, 100):
        made = job(ff.opaque(told_by_some, distance, init=np.zeros(4)), workers=1, chunk=chunk)
        result = made.run(None, progress=False)
        found.append((result.model.vector.tobytes(), [row["missing"] for row in result.rounds if "missing" in row]))
        assert {row["train_loss"] for row in result.rounds if "train_loss" in row} == {1.0}
    assert found[0] == found[1]
    assert found[0][1]


def gradient_step(model, data, config, rng):
    pick = rng.permutation(len(data["y"]))[:5]
    return model - config["lr"] * (model - data["x"][pick].mean(axis=0))


def job(model, algorithm=None, **simulated):
    data = ff.data.synthetic(clients=12, classes=3, features=4, min_examples=5, max_examples=30, seed=1)
    return ff.Job(
        model, data.holdout(0.3), algorithm or ff.FedAvg(rounds=3, cohort=6), ff.Training(lr=0.1), seed=3,
        evaluate=ff.Evaluation(clients=4, clients_every=2), simulated=ff.Simulated(**simulated),
    )  # fmt: skip


def distance(model, data):
    return {"loss": float(((data["x"] - model) ** 2).mean())}


def test_neither_chunks_nor_workers_change_a_bit_of_a_run():
    model = ff.opaque(gradient_step, distance, init=np.zeros(4))
    first = job(model, workers=1, chunk=100).run(None, progress=False)
    for simulated in ({"workers": 1, "chunk": 1}, {"workers": 2}, {"workers": 2, "chunk": 1}):
        again = job(model, **simulated).run(None, progress=False)
        assert again.model.vector.tobytes() == first.model.vector.tobytes()
        assert again.final == first.final
    assert {"federated_loss_mean", "federated_loss_worst_decile"} <= first.final.keys()
    assert first.model.vector.any()


@pytest.mark.parametrize(
    "algorithm", [ff.FedAdam(rounds=2, cohort=5), ff.FedMedian(rounds=2, cohort=5), ff.Krum(2, 5, byzantine=1)]
)
def test_algorithms_without_local_declarations_take_functions(algorithm):
    result = job(ff.opaque(gradient_step, distance, init=np.zeros(4)), algorithm).run(None, progress=False)
    assert result.model.vector.any()


def test_an_algorithm_that_declares_something_is_refused_before_the_run():
    with pytest.raises(UsageError, match="Proximal changes what a client does"):
        job(ff.opaque(gradient_step, distance, init=np.zeros(4)), ff.FedProx(2, 5, mu=0.1)).run(None, progress=False)
    made = job(ff.opaque(gradient_step, init=np.zeros(4)))
    made = replace(made, data=replace(made.data, test=None))
    with pytest.raises(UsageError, match="work 'evaluate' and this model binds train"):
        made.run(None, progress=False)


def test_a_function_that_must_not_be_forked_runs_in_this_process():
    seen = []
    model = ff.opaque(lambda m, d, c, r: seen.append(1) or m, distance, init=np.zeros(4), forks=False)
    job(model, workers=2).run(None, progress=False)
    assert len(seen) == 18


def test_bytes_are_collected_by_client():
    from fieldfare.aggregate.gather import Gather

    model = ff.opaque(lambda m, d, c, r: bytes([len(d["y"])]), init=b"")
    whole = cohort(model)
    out = works(model)["train"](whole)
    gather = Gather({"trees": Collect()}, 3)
    assert not gather.check(out.leaves, out.weight).any()
    gather.add(whole.clients, out.leaves, out.weight)
    assert gather.finish()["trees"].value == {1: b"\x09", 4: b"\x04", 7: b"\x0d"}


def test_the_description_is_plain_json():
    import json

    told = json.loads(json.dumps(ff.opaque(mean_of, centred, like=[(2, 3)]).describe()))
    assert (told["train"], told["evaluate"], told["form"]) == ("mean_of", "centred", "list")
    assert (told["tensors"], told["size"]) == ({"0": [2, 3]}, 6)


def test_a_start_from_a_file_replaces_the_first_model(tmp_path):
    from fieldfare.store.models import write_model

    model = ff.opaque(gradient_step, distance, init=np.zeros(4))
    write_model(tmp_path / "start.safetensors", replace(model.init(0), vector=np.full(4, 9.0, np.float32)))
    made = replace(job(model), start_from=tmp_path / "start.safetensors")
    assert made.run(None, progress=False).model.vector.min() > 5
