"""The loss over a client's own classes: rows of the last layer for classes it lacks are left as they are."""

from __future__ import annotations

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.core.block import Block
from fieldfare.work.net import Drift, Training
from fieldfare.work.plan import make_plan

RNG = np.random.default_rng(1)
X = RNG.standard_normal((40, 6), dtype=np.float32)
Y = np.concatenate([RNG.choice([0, 3], 20), RNG.choice([1, 2, 4], 20)])
DATA = Block({"x": X, "y": Y}, np.arange(40), np.array([0, 20, 40]))
KEYS = np.array([5, 9], np.uint64)


def nets():
    yield ff.DenseNet(tuple(ff.mlp(6, 8, 5).layers), loss="masked_cross_entropy")
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    yield ff.torch_net(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), loss="masked_cross_entropy")


def fit(net, training=None):
    training = training or Training(lr=0.1, batch_size=7, epochs=3)
    start = net.init(0).vector
    plan = make_plan(DATA, KEYS, training)
    return start, net.fit(start[None], np.zeros(2, np.int64), DATA, plan, KEYS, training, training.lr, Drift())


@pytest.mark.parametrize("which", [0, 1], ids=["declared", "torch"])
def test_the_rows_of_absent_classes_have_no_gradient(which):
    net = [*nets()][which]
    start, found = fit(net)
    last = net.layout.names[-2:]
    for i, have in enumerate(([0, 3], [1, 2, 4])):
        for name in last:
            at = net.layout.names.index(name)
            where = slice(net.layout.offsets[at], net.layout.offsets[at + 1])
            shape = net.layout.shapes[at]
            moved = (found.params[i][where] != start[where]).reshape(shape[0], -1).any(axis=1)
            assert np.flatnonzero(moved).tolist() == have


def test_both_adapters_compute_the_same_loss():
    dense, torch_net = nets()
    start = dense.init(0).vector
    training = Training(lr=0.1, batch_size=7, epochs=2)
    plan = make_plan(DATA, KEYS, training)
    row = np.zeros(2, np.int64)
    a, b = (n.fit(start[None], row, DATA, plan, KEYS, training, 0.1, Drift()) for n in (dense, torch_net))
    np.testing.assert_allclose(a.params, b.params, atol=1e-5)
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)
    assert dense.evaluate(a.params, np.arange(2), DATA).keys() == {"loss", "accuracy"}


def test_a_client_with_all_classes_trains_as_with_the_plain_loss():
    y = np.arange(40) % 5
    data = Block({"x": X, "y": y}, np.arange(40), np.array([0, 40]))
    training = Training(lr=0.1, batch_size=7)
    plan = make_plan(data, KEYS[:1], training)
    ends = []
    for loss in ("cross_entropy", "masked_cross_entropy"):
        net = ff.DenseNet(tuple(ff.mlp(6, 8, 5).layers), loss=loss)
        start = net.init(0).vector[None]
        ends.append(net.fit(start, np.zeros(1, np.int64), data, plan, KEYS[:1], training, 0.1, Drift()).params)
    assert ends[0].tobytes() == ends[1].tobytes()
