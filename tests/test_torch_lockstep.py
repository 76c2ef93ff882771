"""Stacks of clients in lockstep against one client at a time: on the CPU here, on a CUDA device where there is one."""

import numpy as np
import pytest

from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.work.net import Drift, Training
from fieldfare.work.plan import make_plan

torch = pytest.importorskip("torch")
nn = torch.nn

from fieldfare.work import torch_lockstep  # noqa: E402
from fieldfare.work.torch_net import torch_net  # noqa: E402


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    )


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 5))


SIZES = [7, 0, 12, 1, 12]


def block(sizes=SIZES):
    r = np.random.default_rng(0)
    total = sum(sizes)
    columns = {"x": r.standard_normal((total, 1, 6, 6)).astype(np.float32), "y": r.integers(0, 5, total)}
    return Block(columns, r.permutation(total), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def both(made, training, drift=None, models=1, moments=None, on=None, monkeypatch=None):
    torch.manual_seed(0)
    module = made()
    data = block()
    keys = rng.keys(0, ("t",), np.arange(data.n))
    plan = make_plan(data, keys, training)
    out = []
    for path in ("lockstep", "graph"):
        net = torch_net(module, path=path)
        starts = np.stack([net.init(0).vector + np.float32(0.01 * k) for k in range(models)])
        row = np.arange(data.n) % models
        more = () if moments is None else (moments,)
        out.append(net.fit(starts, row, data, plan, keys, training, training.lr, drift or Drift(), *more))
        assert (net.lockstep is not None) == (path == "lockstep")
    return out


def near(ours, theirs, tolerance=3e-5):
    np.testing.assert_allclose(ours.params, theirs.params, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-4, atol=1e-5)


TRAININGS = {
    "plain": Training(batch_size=4, epochs=2),
    "momentum": Training(batch_size=4, epochs=2, momentum=0.9, nesterov=True),
    "decay and clip": Training(batch_size=4, steps=5, weight_decay=0.1, clip_norm=0.5),
    "adam": Training(batch_size=5, epochs=2, optimizer="adam", lr=0.01),
}


@pytest.mark.parametrize("case", TRAININGS)
@pytest.mark.parametrize("made", [cnn, dense])
def test_lockstep_trains_like_one_client_at_a_time_within_rounding(case, made):
    near(*both(made, TRAININGS[case]))


@pytest.mark.parametrize("models", [1, 3])
def test_drift_and_masks_and_several_models_go_in_lockstep(models):
    size = torch_net(dense()).layout.size
    r = np.random.default_rng(1)
    a = r.standard_normal((len(SIZES), size)).astype(np.float32) * 0.01
    drift = Drift(a=a, mu=0.3, mask=r.random(size) < 0.6)
    near(*both(dense, Training(batch_size=4, epochs=2), drift, models))


def test_moments_are_taken_up_and_handed_back_in_lockstep():
    training = Training(batch_size=4, epochs=2, optimizer="adam", lr=0.01)
    size = torch_net(dense()).layout.size
    r = np.random.default_rng(2)
    moments = np.abs(r.standard_normal((len(SIZES), 2 * size + 1))).astype(np.float32) * 0.01
    moments[:, -1] = np.arange(len(SIZES))
    ours, theirs = both(dense, training, moments=moments)
    near(ours, theirs)
    np.testing.assert_allclose(ours.moments, theirs.moments, rtol=1e-3, atol=1e-5)


def test_small_stacks_give_what_large_ones_give(monkeypatch):
    training = Training(batch_size=4, epochs=2)
    whole, _ = both(dense, training)
    monkeypatch.setattr(torch_lockstep, "MOST_CLIENTS", 2)
    near(both(dense, training)[0], whole)


def test_what_cannot_be_stacked_is_trained_one_by_one_and_the_description_says_so():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(36, 5)

        def forward(self, x):
            return self.out(x.flatten(1)) * (1.0 if float(x.sum()) > -1e9 else 2.0)

    training = Training(batch_size=4)
    data = block()
    keys = rng.keys(0, ("t",), np.arange(data.n))
    module = Odd()
    nets = [torch_net(module, path=path) for path in ("lockstep", "graph")]
    start = nets[0].init(0).vector[None]
    plan = make_plan(data, keys, training)
    fits = [net.fit(start, np.zeros(data.n, int), data, plan, keys, training, 0.1, Drift()) for net in nets]
    assert np.array_equal(fits[0].params, fits[1].params)
    assert nets[0].lockstep is None
    assert "cannot be stacked" in nets[0].describe()["why"]


@pytest.mark.parametrize("anew", [False, True])
def test_a_module_whose_forward_changes_a_buffer_is_trained_one_by_one(anew):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.out = nn.Linear(36, 5)

        def forward(self, x):
            if anew:
                self.seen = self.seen + 1
            else:
                self.seen += 1
            return self.out(x.flatten(1)) * self.seen

    training, data = Training(batch_size=4), block()
    keys = rng.keys(0, ("t",), np.arange(data.n))
    plan, module = make_plan(data, keys, training), Counting()
    ends = []
    for path in ("lockstep", "graph"):
        net = torch_net(module, path=path)
        start = net.init(0).vector[None]
        ends.append(net.fit(start, np.zeros(data.n, int), data, plan, keys, training, 0.01, Drift()).params)
        assert net.lockstep is None
        assert path == "graph" or "changes the buffer 'seen'" in net.unstacked
    assert np.array_equal(*ends)


def test_on_a_cuda_device_lockstep_is_the_way_and_gives_the_same_within_tolerance(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    monkeypatch.setenv("FIELDFARE_PATH", "auto")
    net = torch_net(cnn())
    assert net.lockstep is not None
    assert net.lockstep.on.type == "cuda"
    for case in TRAININGS.values():
        near(*both(cnn, case), 2e-3)
