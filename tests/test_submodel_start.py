"""Levels that begin as nets of their own size: how large their weights are, and what stays as it was."""

from __future__ import annotations

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.work.submodel import Rolling, submodels

LEVELS = (1.0, 0.5, 0.125)
NET = ff.mlp(24, 64, 32, 5)
FAMILY = submodels(NET, LEVELS)


def started(family=FAMILY, view=None, **more):
    algorithm = ff.NestedFL(2, 4, view=view or family.view(), own_start=True, **more)
    return algorithm.init(family.init(3)).model


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_begins_with_weights_as_large_as_those_of_a_net_of_its_size(level):
    inside = FAMILY.cut(started(), level)
    for name, where, shape in inside.layout.items():
        values = inside.vector[where].reshape(shape)
        if len(shape) == 2:
            smaller = [one for one in LEVELS if one < level]
            new = np.ones(shape, bool)
            for one in smaller:
                layout = FAMILY.at(one).layout
                o, i = layout.shapes[layout.names.index(name)]
                new[:o, :i] = False
            if new.any():  # the first layer has all its inputs in every level, and 0.5 there what 1 has
                bound = 1 / np.sqrt(shape[1])
                assert 0.8 * bound < np.abs(values[new]).max() <= bound * (1 + 1e-6)


def test_biases_and_signs_stay_and_without_it_no_bit_changes():
    found, plain = started(), NET.init(3)
    assert np.array_equal(np.sign(found.vector), np.sign(plain.vector))
    for name, where, shape in NET.layout.items():
        same = found.vector[where] == plain.vector[where]
        assert same.all() if len(shape) == 1 or name == "0.weight" else not same.all()
    without = ff.NestedFL(2, 4, view=FAMILY.view(), shares=LEVELS).init(plain).model
    assert without.vector.tobytes() == plain.vector.tobytes()
    whole = submodels(NET, (1.0,))
    assert started(whole).vector.tobytes() == plain.vector.tobytes()


def test_embeddings_stay_and_tied_layers_are_found():
    nn = pytest.importorskip("torch").nn
    net = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    family = submodels(net, (1.0, 0.25), example={"x": np.zeros((2, 5), np.int64), "y": np.zeros((2, 5), np.int64)})
    before, after = family.init(3), started(family)
    ratio = {name: np.unique((after.vector / before.vector)[at].round(4)) for name, at, _ in before.layout.items()}
    assert {name: one.tolist() for name, one in ratio.items()} == {
        "0.weight": [1.0], "1.weight": [1.0, 2.0], "1.bias": [1.0], "3.weight": [1.0, 2.0], "3.bias": [1.0],
    }  # fmt: skip


def test_a_run_starts_there_and_what_nobody_has_stays_there():
    data = ff.synthetic(clients=12, classes=5, features=24, seed=3, min_examples=12, log_mean=1.0, log_sigma=0.5)
    view = FAMILY.view(assign=(1,))
    for lr, share in ((0.0, 0.0), (0.1, 0.8)):
        algorithm = ff.NestedFL(3, 8, view=view, shares=LEVELS, own_start=True)
        training = ff.Training(lr=lr, batch_size=6, epochs=1)
        job = ff.Job(FAMILY, data, algorithm, training, seed=3, simulated=ff.Simulated(workers=1))
        start, end = started(view=view).vector, job.run(runs=None).model.vector
        had = np.zeros(len(start), bool)
        had[view.index(1)] = True
        assert end[~had].tobytes() == start[~had].tobytes()
        assert (end[had] != start[had]).mean() >= share
        assert lr or end.tobytes() == start.tobytes()


@pytest.mark.parametrize("view", [None, FAMILY.view(Rolling())])
def test_it_is_for_levels_inside_one_another(view):
    with pytest.raises(UsageError, match=r"own_start=True\) is for sub-models inside one another: give view="):
        ff.FedAvg(2, 4, view=view, own_start=True)
