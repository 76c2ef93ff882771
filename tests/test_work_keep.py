"""Optimisers that go on where they stopped: moments and counts of steps kept on the device between asks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from work_cohorts import cohort, pick

import fieldfare as ff
from fieldfare.algorithms import check, keep_optimizer
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Dynamic, Keep, Normalised, Personal, Proximal
from fieldfare.work.dense import mlp
from fieldfare.work.net import Training, moments_size
from fieldfare.work.train import Train

NET = mlp(5, 6, 3)
P = NET.layout.size
OPTIMISERS = {
    "momentum": Training(lr=0.1, batch_size=4, momentum=0.9, shuffle=False),
    "nesterov": Training(lr=0.1, batch_size=4, momentum=0.9, nesterov=True, weight_decay=0.01, shuffle=False),
    "adam": Training(lr=0.02, batch_size=4, optimizer="adam", shuffle=False),
}
SIZES = [9, 4, 0, 12]


def torch_graph():
    torch = pytest.importorskip("torch")
    torch.manual_seed(7)
    module = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    return ff.torch_net(module, path="graph")


def torch_conv():
    torch = pytest.importorskip("torch")
    torch.manual_seed(7)
    return ff.torch_net(
        torch.nn.Sequential(
            torch.nn.Unflatten(1, (1, 5, 1)), torch.nn.Conv2d(1, 3, (2, 1)), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Linear(12, 3),
        )
    )  # fmt: skip


def torch_dense():
    torch = pytest.importorskip("torch")
    torch.manual_seed(7)
    return ff.torch_net(torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)))


def jax_logistic(**more):
    jax = pytest.importorskip("jax")

    def loss(params, x, y):
        return -jax.nn.log_softmax(x @ params["w"] + params["b"])[jax.numpy.arange(len(y)), y]

    return ff.jax_net({"w": np.zeros((5, 3), np.float32), "b": np.zeros(3, np.float32)}, loss, **more)


NETS = {
    "dense": lambda: NET, "torch stacked": torch_dense, "torch graph": torch_graph, "torch by hand": torch_conv,
    "jax": jax_logistic,
}  # fmt: skip


def asked(net, sizes, state=None, **more):
    """A cohort on `net`'s first model that keeps `state`, or is new."""
    made = cohort(NET, sizes, **more)
    n, size = made.n, 0 if state is None else state.shape[1]
    made = replace(made, models=net.init(0).vector[None], row=np.zeros(n, np.int64), layout=net.layout)
    fresh = np.full(n, state is None)
    return replace(made, state=np.full((n, size), np.nan, np.float32) if state is None else state, fresh=fresh)


def after(whole, out):
    """What the same clients, each on its own, are asked next: they go on from their own ends."""
    models = whole.models[whole.row] + out.leaves["delta"]
    return replace(whole, models=models, row=np.arange(whole.n), state=out.state, fresh=np.zeros(whole.n, np.bool_))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "jax")) for n in NETS])
def test_two_asks_of_one_epoch_are_one_of_two_where_the_optimiser_is_kept(name, optimiser):
    net, training = NETS[name](), OPTIMISERS[optimiser]
    whole = asked(net, SIZES)
    once = Train(net, replace(training, epochs=2), (Keep(),))(whole)
    work = Train(net, training, (Keep(),))
    first = work(whole)
    second = work(after(whole, first))
    twice = first.leaves["delta"] + second.leaves["delta"]
    np.testing.assert_allclose(twice, once.leaves["delta"], atol=2e-6)
    np.testing.assert_allclose(second.state, once.state, rtol=1e-4, atol=2e-6)
    assert once.state.shape == (4, moments_size(training, net.layout.size))
    assert not once.state[2].any()
    if optimiser == "adam":
        assert once.state[:, -1].tolist() == [6, 2, 0, 6]
    forgetful = Train(net, training)(after(whole, first)).leaves["delta"]
    assert np.abs(forgetful - second.leaves["delta"])[[0, 1, 3]].max(axis=1).min() > 1e-4


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_torch_and_the_dense_net_keep_the_same_numbers(optimiser):
    dense, graph = torch_dense(), torch_graph()
    work = [Train(net, OPTIMISERS[optimiser], (Keep(),)) for net in (dense, graph)]
    a, b = (one(asked(net, SIZES)) for one, net in zip(work, (dense, graph), strict=True))
    c, d = (one(after(asked(net, SIZES), out)) for one, net, out in zip(work, (dense, graph), (a, a), strict=True))
    for left, right in ((a, b), (c, d)):
        np.testing.assert_allclose(left.state, right.state, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(left.leaves["delta"], right.leaves["delta"], rtol=1e-3, atol=1e-6)


def test_a_new_client_begins_as_without_keeping():
    for training in OPTIMISERS.values():
        whole = asked(NET, SIZES)
        kept = Train(NET, training, (Keep(), Proximal(0.1)))(whole)
        assert kept.leaves["delta"].tobytes() == Train(NET, training, (Proximal(0.1),))(whole).leaves["delta"].tobytes()


@given(
    st.sampled_from(["momentum", "adam"]),
    st.sampled_from(["dense", "torch by hand"]),
    st.lists(st.integers(0, 13), min_size=2, max_size=5),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.data(),
)
@settings(deadline=None, max_examples=40)
def test_what_a_client_keeps_depends_on_itself_only(optimiser, name, sizes, fresh, draw):
    net, training = NETS[name](), replace(OPTIMISERS[optimiser], shuffle=True)
    work = Train(net, training, (Keep(),))
    size = moments_size(training, net.layout.size)
    rows = np.random.default_rng(1).random((len(sizes), size), dtype=np.float32) * np.float32(0.1)
    if optimiser == "adam":
        rows[:, -1] = np.arange(len(sizes)) * 7
    given_rows = rows.copy()
    whole = replace(asked(net, sizes, rows), fresh=np.array(fresh[: len(sizes)]))
    order = draw.draw(st.permutations(range(len(sizes))))[: draw.draw(st.integers(1, len(sizes)))]
    every, some = work(whole), work(pick(whole, order))
    assert every.state[order].tobytes() == some.state.tobytes()
    assert every.leaves["delta"][order].tobytes() == some.leaves["delta"].tobytes()
    np.testing.assert_array_equal(rows, given_rows)
    for i, examples in enumerate(sizes):
        if not examples:
            np.testing.assert_array_equal(every.state[i], 0.0 if fresh[i] else rows[i])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Train(NET, Training(), (Keep(),)), "plain SGD has no slots to keep"),
        (lambda: Train(NET, OPTIMISERS["adam"], (Keep(), Dynamic(0.1))), "each keep client state"),
        (lambda: Train(NET, OPTIMISERS["adam"], (Keep(), Personal(("2",)))), "each keep client state"),
        (lambda: Train(NET, OPTIMISERS["momentum"], (Keep(), Normalised())), "begins at zero"),
        (lambda: Train(Bare(), OPTIMISERS["momentum"], (Keep(),)), "this Bare cannot be kept"),
        (lambda: check(keep_optimizer(ff.FedAvg(1, 5)), training=Training()), "plain SGD has no slots"),
        (lambda: check(ff.FedAvg(1, 5, local=(Keep(),))), "keep 'optimizer'"),
        (lambda: keep_optimizer(ff.Scaffold(1, 5)), "keeps 'c'"),
        (lambda: keep_optimizer(keep_optimizer(ff.FedAvg(1, 5))), "keeps 'optimizer'"),
        (lambda: keep_optimizer(ff.Bagging(1, 5)), "give FedAvg"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(make, says):
    with pytest.raises(UsageError, match=says) as refused:
        make()
    assert "\n" not in str(refused.value)


class Bare:
    """A net that knows nothing of moments."""

    layout = NET.layout


def test_an_optimiser_of_the_nets_own_cannot_be_kept():
    optax = pytest.importorskip("optax")
    net = jax_logistic(optimizer=optax.adam)
    with pytest.raises(UsageError, match="jax_net without optimizer="):
        Train(net, Training(momentum=0.9), (Keep(),))


def run(algorithm, training, **simulated):
    data = ff.data.synthetic(clients=12, classes=3, features=5, min_examples=5, max_examples=30, seed=1)
    job = ff.Job(NET, data, algorithm, training, seed=3, simulated=ff.Simulated(**simulated))
    return job.run(None, progress=False).model.vector


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_run_of_one_client_is_its_own_uninterrupted_training(optimiser):
    training = OPTIMISERS[optimiser]
    data = ff.data.synthetic(clients=1, classes=3, features=5, min_examples=5, max_examples=30, seed=1)

    def end(algorithm, epochs):
        made = ff.Job(NET, data, algorithm, replace(training, epochs=epochs), seed=3)
        return made.run(None, progress=False).model.vector

    once = end(ff.FedAvg(rounds=1, cohort=1), 6)
    np.testing.assert_allclose(end(keep_optimizer(ff.FedAvg(rounds=6, cohort=1)), 1), once, rtol=1e-4, atol=1e-5)
    assert np.abs(end(ff.FedAvg(rounds=6, cohort=1), 1) - once).max() > 1e-3


@pytest.mark.parametrize("optimiser", ["momentum", "adam"])
def test_neither_chunks_nor_workers_change_a_bit_of_a_run_that_keeps_the_optimiser(optimiser):
    algorithm, training = keep_optimizer(ff.FedProx(rounds=4, cohort=6, mu=0.1)), OPTIMISERS[optimiser]
    first = run(algorithm, training, workers=1, chunk=100)
    for simulated in ({"workers": 1, "chunk": 1}, {"workers": 2, "chunk": 100}, {"workers": 2, "chunk": 1}):
        assert run(algorithm, training, **simulated).tobytes() == first.tobytes()
    assert first.tobytes() != run(ff.FedProx(rounds=4, cohort=6, mu=0.1), training).tobytes()
