"""DepthFL: sub-models cut behind an exit, over nets with exits."""

from __future__ import annotations

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.aggregate import chain, coverage, momentum
from fieldfare.work.submodel import Level, submodels

torch = pytest.importorskip("torch")
DATA = ff.synthetic(clients=9, classes=5, features=16, seed=3, min_examples=12, log_mean=1.0, log_sigma=0.5)


def family(distil=0.5):
    from fieldfare.work.submodel.exits import exit_loss, exits

    torch.manual_seed(0)
    nn = torch.nn
    body = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))
    net = exits(body, ("1", "3"), torch.as_tensor(DATA.columns["x"][:2]))
    levels = [Level(depth=3), Level(depth=2), Level(depth=1)]
    return submodels(net, levels, loss=exit_loss(distil), metrics=("accuracy",), example=DATA.columns)


def trained(lr=0.1, rounds=3, **more):
    one = family()
    algorithm = ff.DepthFL(rounds, 6, view=one.view(**more.pop("where", {})), **more)
    training = ff.Training(lr=lr, batch_size=6)
    job = ff.Job(one, DATA, algorithm, training, simulated=ff.Simulated(workers=1))
    return one, job.run(runs=None, progress=False)


def test_zero_training_lifts_to_exactly_zero_and_every_exit_is_measured():
    one, result = trained(lr=0.0)
    assert result.model.vector.tobytes() == one.init(0).vector.tobytes()
    assert {"accuracy", "accuracy@1d2", "accuracy@1d1"} <= result.final.keys()


@pytest.mark.parametrize("server", [chain(coverage()), chain(coverage(), momentum(0.9))])
def test_layers_that_nobody_has_stay_to_the_bit(server):
    one, result = trained(server=server, where={"assign": (1, 2)})
    start, end = one.init(0).vector, result.model.vector
    had = np.zeros(len(start), bool)
    had[one.view(assign=(1,)).index(1)] = True
    assert 0 < had.sum() < len(start)
    assert end[~had].tobytes() == start[~had].tobytes()
    assert (end[had] != start[had]).any()


def test_all_at_full_depth_is_fedavg_bit_for_bit():
    one, result = trained(where={"assign": (0,)})
    plain = ff.Job(one, DATA, ff.FedAvg(3, 6), ff.Training(lr=0.1, batch_size=6), simulated=ff.Simulated(workers=1))
    assert plain.run(runs=None, progress=False).model.vector.tobytes() == result.model.vector.tobytes()
