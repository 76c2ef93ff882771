"""JAX functions as a net: the same mathematics as the declared net, row by row, whatever stands beside a row."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from work_cohorts import block, cohort, pick

import fieldfare as ff
from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.core.local import ControlVariate, Fair, Normalised, Personal, Proximal
from fieldfare.sim.batch import Executor
from fieldfare.work import jax_net, jax_step
from fieldfare.work.dense import mlp
from fieldfare.work.native import threads
from fieldfare.work.net import Drift, Training
from fieldfare.work.plan import make_plan
from fieldfare.work.train import Train

jax = pytest.importorskip("jax")
jnp = jax.numpy
optax = pytest.importorskip("optax")

DENSE = mlp(5, 6, 3)
P = DENSE.layout.size
SIZES = [9, 7, 0, 13]
PLAIN = Training(lr=0.1, batch_size=4, epochs=2)
MADE = np.random.default_rng(9).standard_normal((4, P), dtype=np.float32) * np.float32(0.1)


def predict(params, x):
    """The network of `mlp(5, 6, 3)`: a pytree whose leaves lie in the vector as its tensors do."""
    h = jax.nn.relu(x @ params[0]["weight"].T + params[0]["zbias"])
    return h @ params[1]["weight"].T + params[1]["zbias"]


def each(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(predict(params, x), y)


def mean(params, x, y):
    return each(params, x, y).mean()


def start(seed=0):
    w = DENSE.init(seed).tensors()
    return [{"weight": w[f"{i}.weight"], "zbias": w[f"{i}.bias"]} for i in (0, 2)]


NETS = {"each": ff.jax_net(start(), each, predict), "mean": ff.jax_net(start(), mean, predict)}
slow = pytest.mark.slow
both = pytest.mark.parametrize("net", [NETS["each"], pytest.param(NETS["mean"], marks=slow)], ids=NETS)


def ends(net, whole, training=PLAIN, drift=None):
    plan = make_plan(whole.data, whole.keys, training)
    return net.fit(whole.models, whole.row, whole.data, plan, whole.keys, training, training.lr, drift or Drift())


def test_the_vector_holds_the_leaves_under_the_names_of_their_paths():
    net = NETS["each"]
    assert net.layout.names == ("0.weight", "0.zbias", "1.weight", "1.zbias")
    assert net.layout.shapes == ((6, 5), (6,), (3, 6), (3,))
    model = net.init(3)
    assert model.vector.tobytes() == DENSE.init(0).vector.tobytes()
    back = net.params(model)
    np.testing.assert_array_equal(back[1]["weight"], start()[1]["weight"])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("each", {}), ("each", {"steps": 7}), ("each", {"shuffle": False}), ("mean", {}),
        pytest.param("each", {"optimizer": "adam", "lr": 0.01}, marks=slow),
        pytest.param("each", {"momentum": 0.9}, marks=slow),
        pytest.param("each", {"momentum": 0.9, "nesterov": True}, marks=slow),
        pytest.param("each", {"weight_decay": 0.1, "clip_norm": 0.2}, marks=slow),
        pytest.param("mean", {"momentum": 0.9, "steps": 7}, marks=slow),
    ],
    ids=str,
)  # fmt: skip
def test_every_optimiser_is_that_of_the_declared_net(name, change):
    net = NETS[name]
    whole, training = cohort(DENSE, SIZES, versions=2), replace(PLAIN, **change)
    ours, theirs = ends(net, whole, training), ends(DENSE, whole, training)
    np.testing.assert_allclose(ours.params, theirs.params, atol=2e-6)
    np.testing.assert_allclose(ours.loss, theirs.loss, atol=1e-5)
    assert ours.loss[2] == 0.0
    np.testing.assert_array_equal(ours.params[2], whole.models[whole.row[2]])


@pytest.mark.parametrize(
    "drift",
    [
        pytest.param(Drift(a=MADE), marks=slow),
        pytest.param(Drift(mu=0.5), marks=slow),
        Drift(MADE, 0.5, MADE, np.arange(P) < 30),
    ],
    ids=["a", "mu", "all"],
)  # fmt: skip
def test_the_drift_is_that_of_the_declared_net(drift):
    net, whole = NETS["each"], cohort(DENSE, SIZES, versions=4)
    training = replace(PLAIN, epochs=1, clip_norm=0.5, weight_decay=0.05)
    ours, theirs = ends(net, whole, training, drift), ends(DENSE, whole, training, drift)
    np.testing.assert_allclose(ours.params, theirs.params, atol=2e-6)
    if drift.mask is not None:
        still = ~drift.mask
        np.testing.assert_array_equal(ours.params[:, still], whole.models[whole.row][:, still])


@both
def test_a_row_depends_on_no_other(net):
    whole = cohort(DENSE, SIZES, versions=2)
    fit, found = ends(net, whole), net.evaluate(whole.models, whole.row, whole.data)
    for order in ([3], [1, 0], [3, 2, 1, 0]):
        part = pick(whole, order)
        again = ends(net, part)
        assert again.params.tobytes() == fit.params[order].tobytes()
        assert again.loss.tobytes() == fit.loss[order].tobytes()
        measured = net.evaluate(part.models, part.row, part.data)
        assert {k: v.tobytes() for k, v in measured.items()} == {k: v[order].tobytes() for k, v in found.items()}


@both
def test_measures_are_those_of_the_declared_net(net):
    data = block([300, 0, 1, 70, 256])
    models, row = np.stack([DENSE.init(s).vector for s in range(2)]), np.array([0, 0, 1, 1, 0])
    ours, theirs = net.evaluate(models, row, data), DENSE.evaluate(models, row, data)
    assert set(ours) == {"loss", "accuracy"}
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6)


def test_numbers_are_measured_by_their_squared_error():
    net = ff.jax_net({"w": np.zeros((5, 3))}, lambda p, x, y: ((x @ p["w"] - y) ** 2).mean(), lambda p, x: x @ p["w"])
    data = block([40, 3], numbers=True)
    found = net.evaluate(net.init(0).vector[None], np.zeros(2, np.int64), data)
    wanted = [(data.client(i)["y"] ** 2).mean() for i in range(2)]
    np.testing.assert_allclose(found["mse"], wanted, rtol=1e-5)
    np.testing.assert_allclose(found["loss"], wanted, rtol=1e-5)


def test_a_function_makes_the_first_model_of_the_runs_seed():
    def init(key):
        return {"w": jax.random.normal(key, (5, 3)), "b": jnp.zeros(3)}

    net = ff.jax_net(init, lambda p, x, y: (x @ p["w"] + p["b"]).sum(axis=1))
    assert net.layout.names == ("b", "w")
    assert net.init(1).vector.tobytes() == net.init(1).vector.tobytes() != net.init(2).vector.tobytes()


@slow
def test_optax_state_is_new_at_every_ask_and_a_function_gets_the_rounds_rate():
    whole = cohort(DENSE, [9])
    ready = ff.jax_net(start(), each, optimizer=optax.sgd(0.1, momentum=0.9))
    made = ff.jax_net(start(), each, optimizer=lambda lr: optax.sgd(lr, momentum=0.9))
    theirs = ends(DENSE, whole, replace(PLAIN, momentum=0.9)).params
    first = ends(ready, whole).params
    np.testing.assert_allclose(first, theirs, atol=2e-6)
    assert ends(ready, whole).params.tobytes() == first.tobytes()
    np.testing.assert_allclose(ends(made, whole).params, theirs, atol=2e-6)
    slower = ends(made, whole, replace(PLAIN, lr=0.01)).params
    assert np.abs(slower - whole.models[0]).max() < np.abs(first - whole.models[0]).max()


@slow
def test_optax_moves_nothing_outside_the_mask_not_even_by_decay():
    whole, mask = cohort(DENSE, SIZES), np.arange(P) < 36
    net = ff.jax_net(start(), each, optimizer=lambda lr: optax.adamw(lr, weight_decay=0.5))
    end = ends(net, whole, drift=Drift(mask=mask)).params
    np.testing.assert_array_equal(end[:, ~mask], whole.models[whole.row][:, ~mask])
    assert (end[0, mask] != whole.models[0, mask]).any()


def noisy(params, x, y, key):
    return each(params, x if key is None else x + jax.random.normal(key, x.shape), y)


@slow
def test_chance_comes_from_the_clients_key_alone_and_measuring_has_none():
    net, whole = ff.jax_net(start(), noisy, predict), cohort(DENSE, SIZES)
    fit = ends(net, whole)
    assert fit.params.tobytes() != ends(NETS["each"], whole).params.tobytes()
    assert ends(net, pick(whole, [3, 0])).params.tobytes() == fit.params[[3, 0]].tobytes()
    other = replace(whole, keys=whole.keys + np.uint64(1))
    assert ends(net, other).params[3].tobytes() != fit.params[3].tobytes()
    measured = net.evaluate(whole.models, whole.row, whole.data)["loss"]
    np.testing.assert_array_equal(measured, NETS["each"].evaluate(whole.models, whole.row, whole.data)["loss"])


def test_several_columns_come_as_a_tuple():
    def two(params, x, y):
        return (x[0] @ params["w"])[:, 0] * x[1][:, 0] + y

    net = ff.jax_net({"w": np.ones((5, 1))}, two, x=("x", "z"))
    data = block([6])
    data = replace(data, columns={**data.columns, "z": data.columns["x"][:, :2].astype(np.float64)})
    rows = data.client(0)
    wanted = (rows["x"].sum(axis=1) * rows["z"][:, 0] + rows["y"]).mean()
    found = net.evaluate(net.init(0).vector[None], np.zeros(1, np.int64), data)
    np.testing.assert_allclose(found["loss"], wanted, rtol=1e-5)


@slow
def test_local_declarations_work_as_with_any_net():
    whole = cohort(DENSE, [9, 4])
    for local in [(Proximal(0.7),), (Personal(("0",)),)]:
        if isinstance(local[0], Personal):
            whole = replace(whole, state=np.zeros((2, 36), np.float32), fresh=np.ones(2, np.bool_))
        ours, theirs = (Train(net, PLAIN, local)(whole).leaves["delta"] for net in (NETS["each"], DENSE))
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def job(**simulated):
    data = ff.data.synthetic(clients=12, classes=3, features=5, min_examples=5, max_examples=30, seed=1)
    return ff.Job(
        NETS["each"], data, ff.FedAvg(rounds=2, cohort=6), ff.Training(lr=0.1, batch_size=8), seed=3,
        simulated=ff.Simulated(**simulated),
    )  # fmt: skip


def test_neither_chunks_nor_workers_change_a_bit_of_a_run():
    first = job(workers=1, chunk=1).run(None, progress=False).model.vector.tobytes()
    assert job(workers=2, chunk=100).run(None, progress=False).model.vector.tobytes() == first


def test_threads_change_no_bit_and_of_several_errors_the_first_clients_is_told(monkeypatch):
    net, whole = NETS["each"], cohort(DENSE, SIZES, versions=2)
    found = []
    monkeypatch.setattr(threads, "worth", lambda clients, flops: found[-1])
    for count in (1, 3):
        found.append(count)
        fit = ends(net, whole, replace(PLAIN, momentum=0.9))
        found.append((fit.params.tobytes(), fit.loss.tobytes()))
    assert found[1] == found[3]

    def fails(i):
        if i in (3, 7):
            raise ValueError(f"client {i}")

    for most in (1, 4):
        with pytest.raises(ValueError, match="client 3"):
            jax_net._spread(fails, 9, most)


def test_settings_of_jax_within_a_with_hold_on_any_number_of_threads(monkeypatch):
    def diverges(params, x, y):
        return jnp.log(-jnp.abs(each(params, x, y)))

    net, whole = ff.jax_net(start(), diverges), cohort(DENSE, SIZES, versions=1)
    for count in (1, 2):
        monkeypatch.setattr(threads, "worth", lambda clients, flops, count=count: count)
        with jax.debug_nans(True), pytest.raises(FloatingPointError):
            ends(net, whole)


def test_steps_of_any_number_are_cut_into_runs_of_powers_of_four():
    data = block([100])
    net = ff.jax_net(start(), each, predict)
    plan = make_plan(data, np.zeros(1, np.uint64), Training(batch_size=4, steps=23))
    runs = list(net._groups(data, plan, 0))
    assert [len(y) for _, _, y in runs] == [16, 4, 1, 1, 1]
    seen = np.concatenate([y.reshape(-1) for _, _, y in runs])
    assert seen.tolist() == data.columns["y"][plan.rows[: len(seen)]].tolist()


def test_a_process_with_jax_is_never_forked():
    works = {"train": Train(NETS["each"]), "other": Train(DENSE)}
    assert Executor(works, None, workers=2).workers == 1
    assert Executor({"train": Train(DENSE)}, None, workers=2).workers == 2


def test_other_nets_are_computed_by_workers_although_jax_is_there():
    jnp.ones(2).block_until_ready()
    made = replace(job(workers=2, chunk=2), model=DENSE)
    alone = replace(job(workers=1), model=DENSE)
    first, second = (one.run(None, progress=False).model.vector.tobytes() for one in (made, alone))
    assert first == second


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ff.jax_net(start(), "cross_entropy"), "give a function"),
        (lambda: ff.jax_net(start(), each, 3), "predict"),
        (lambda: ff.jax_net(start(), each, optimizer="adam"), "Training"),
        (lambda: ff.jax_net({"w": np.zeros(3, np.int32)}, each), "'w' .* int32"),
        (lambda: ff.jax_net({"w": jnp.zeros(3, jnp.bfloat16)}, each), "'w' .* bfloat16"),
        (lambda: ff.jax_net({"a": {"b": np.zeros(2)}, "a.b": np.zeros(2)}, each), "twice"),
        (lambda: ff.jax_net({}, each), "no array"),
        (lambda: ends(ff.jax_net(start(), predict_only), cohort(DENSE, [4])), r"shape \(2, 3\) .* one per example"),
        (lambda: ends(ff.jax_net(start(), each, x="pixels"), cohort(DENSE, [4])), "no column 'pixels'"),
        (lambda: ends(ff.jax_net(start(), each, optimizer=optax.adam), cohort(DENSE, [4]),
                      replace(PLAIN, momentum=0.5)), "in one place"),
        (lambda: Train(ff.jax_net(start(), each, optimizer=optax.adam), PLAIN, (ControlVariate(),)), "of its own"),
        (lambda: Train(ff.jax_net(start(), each, optimizer=optax.sgd), PLAIN, (Normalised(),)), "of its own"),
        (lambda: Train(ff.jax_net(start(), each, optimizer=optax.adam), PLAIN, (Fair(0.0),)), "of its own"),
        (lambda: strange.evaluate(DENSE.init(0).vector[None], np.zeros(1, int), odd()), "logits"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(make, says):
    with pytest.raises(UsageError, match=says) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def predict_only(params, x, y):
    return predict(params, x)


def odd():
    data = block([3])
    x = data.columns["x"]
    return replace(data, columns={"x": x, "y": np.zeros((len(x), 2), np.int64)})


strange = ff.jax_net(start(), lambda params, x, y: x.sum(axis=1), lambda params, x: x)


def test_an_error_of_the_users_functions_says_what_they_were_called_with():
    def wrong(params, x, y):
        return (x @ params[1]["weight"]).sum()

    with pytest.raises(TypeError) as error:
        ends(ff.jax_net(start(), wrong), cohort(DENSE, [4]))
    assert any("x float32[2, 5], y int32[2]" in note for note in error.value.__notes__)


def test_without_jax_the_extra_is_named(monkeypatch):
    jax_step.need_jax.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'fieldfare\[jax\]'"):
        ff.jax_net(start(), each)
    monkeypatch.undo()
    jax_step.need_jax.cache_clear()


def test_importing_the_adapter_does_not_import_jax():
    code = "import sys, fieldfare.work.jax_net, fieldfare.work.flower_client; print('jax' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    ).stdout
    assert said.strip() == "False"


def test_the_description_is_plain_json_and_names_the_functions():
    import json

    told = json.loads(json.dumps(ff.jax_net(start(), each, predict, optax.adam).describe()))
    assert (told["loss"], told["predict"], told["optimizer"], told["size"]) == ("each", "predict", "adam", P)
    assert NETS["each"].flops() == 6 * P
    assert ff.jax_net(start(), each, flops=7).flops() == 7.0
