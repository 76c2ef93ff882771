"""Levels of depth: the first layers of a net and the head behind them."""

from __future__ import annotations

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.aggregate import chain, coverage
from fieldfare.core.errors import UsageError
from fieldfare.work.submodel import Level, MultiRate, declared, submodels

nets = pytest.importorskip("submodel_nets")
torch, nn = nets.torch, nets.nn
DATA = ff.synthetic(clients=9, classes=5, features=16, seed=3, min_examples=12, log_mean=1.0, log_sigma=0.5)
LEVELS = (Level(1, 3), Level(1, 2), Level(1, 1), Level(0.5, 2))


def made():
    from fieldfare.work.submodel.exits import exits

    torch.manual_seed(3)
    body = nn.Sequential(
        nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 5)
    )
    return exits(body, ("1", "3"), torch.zeros(2, 16))


def family(levels=LEVELS, distil=0.0):
    from fieldfare.work.submodel.exits import exit_loss

    return submodels(made(), levels, loss=exit_loss(distil), metrics=("accuracy",), example=DATA.columns)


def job(model, view, lr=0.1):
    algorithm = ff.FedAvg(3, 9, server=chain(coverage()), view=view)
    return ff.Job(model, DATA, algorithm, ff.Training(lr=lr, batch_size=6), simulated=ff.Simulated(workers=1))


def test_a_level_of_depth_d_is_the_first_d_stages_and_heads():
    net = made()
    names = net.stages_of()
    assert [len(one) for one in names] == [4, 8, 12]
    assert set(names[0]) == {"stages.0.0.weight", "stages.0.0.bias", "heads.0.0.weight", "heads.0.0.bias"}
    x = torch.randn(4, 16)
    whole = net.train()(x)
    for depth in (1, 2, 3):
        shallow = net.shallow(names[depth - 1])
        assert torch.equal(shallow.train()(x), whole[:, :depth])
        assert torch.equal(shallow.eval()(x), whole[:, depth - 1])
    assert torch.equal(net.eval()(x), whole[:, -1])


def test_zero_training_lifts_to_zero_and_what_nobody_had_stays():
    made_ = family()
    start = made_.init(0).vector
    assert job(made_, made_.view(), lr=0.0).run(runs=None).model.vector.tobytes() == start.tobytes()
    view = made_.view(assign=(2,))
    end = job(made_, view).run(runs=None).model.vector
    had = np.zeros(len(start), bool)
    had[view.index(2)] = True
    assert end[~had].tobytes() == start[~had].tobytes()
    assert (end[had] != start[had]).mean() > 0.5


def test_the_deepest_level_is_the_whole_net_bit_for_bit():
    deep, plain = family((Level(1, 3),)), family((1,))
    assert deep.view().index(0).tolist() == list(range(deep.layout.size))
    ends = [job(one, one.view()).run(runs=None).model.vector.tobytes() for one in (deep, plain)]
    assert ends[0] == ends[1]


def test_every_exit_is_measured():
    made_ = family(distil=0.5)
    rows = job(made_, made_.view()).run(runs=None).rounds
    names = {"accuracy", "accuracy@1d2", "accuracy@1d1", "accuracy@1/2d2"}
    assert names <= rows[-1].keys()


def test_depth_saves_memory_of_activations():
    made_ = family()
    view, training = made_.view(), ff.Training(batch_size=64)
    costs = [declared(made_, training, view.layout(level)).saved_bytes for level in (0, 1, 2)]
    assert costs[0] > costs[1] > costs[2]


@pytest.mark.slow
def test_levels_that_are_drawn_are_neither_wider_nor_deeper_than_the_own():
    drawn = [{int(n) for r in range(40) for n in family().view(MultiRate(), (own,)).at(r + 1).plan(np.arange(3))}
             for own in range(4)]  # fmt: skip
    assert drawn == [{0, 1, 2, 3}, {1, 2, 3}, {2}, {3}]


@pytest.mark.parametrize("count", [2, 3])
def test_each_exit_learns_from_the_mean_of_the_others_at_a_temperature(count):
    from fieldfare.work.submodel.exits import exit_loss

    dice, t = np.random.default_rng(0), 2.0
    output, y = dice.standard_normal((4, count, 5)), np.array([0, 3, 1, 4])

    def said(z):
        return np.exp(z) / np.exp(z).sum(-1, keepdims=True)

    cross = np.mean([-np.log(said(output[i, e])[y[i]]) for i in range(4) for e in range(count)])
    sure, apart = said(output / t), []
    for i in range(4):
        for e in range(count):
            others = np.mean([sure[i, o] for o in range(count) if o != e], axis=0)
            apart.append((others * np.log(others / sure[i, e])).sum())
    leaf = torch.tensor(output, requires_grad=True)
    loss = exit_loss(0.7, t)(leaf, torch.tensor(y))
    assert loss.item() == pytest.approx(cross + 0.7 * t**2 * np.mean(apart))
    loss.backward()
    others = (sure.sum(1, keepdims=True) - sure) / (count - 1)
    slope = said(output) - np.eye(5)[y][:, None] + 0.7 * t * (sure - others)
    np.testing.assert_allclose(leaf.grad, slope / (4 * count), atol=1e-12)


def test_distillation_draws_exits_together_and_leaves_one_exit_alone():
    from fieldfare.work.submodel.exits import exit_loss

    logits = torch.randn(6, 3, 5, requires_grad=True)
    y = torch.randint(0, 5, (6,))
    plain, drawn = exit_loss(), exit_loss(1.0)
    assert drawn(logits, y) > plain(logits, y)
    alike = logits[:, :1].expand(-1, 3, -1)
    entropy = -(alike[:, 0].softmax(-1) * alike[:, 0].log_softmax(-1)).sum(-1).mean()
    assert entropy > 0
    assert drawn(alike, y).item() == pytest.approx(plain(alike, y).item(), abs=1e-5)
    assert drawn(logits[:, 0], y) == nn.functional.cross_entropy(logits[:, 0], y)


def test_what_is_no_exit_is_refused_in_one_line():
    from fieldfare.work.submodel.exits import exits

    body = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))
    with pytest.raises(UsageError, match="an exit stands behind one of 0, 1"):
        exits(body, ("2",), torch.zeros(2, 16))
    with pytest.raises(UsageError, match="in the order of the chain"):
        exits(body, ("1", "0"), torch.zeros(2, 16))
    with pytest.raises(UsageError, match=r"give an nn\.Sequential"):
        exits(nn.Linear(3, 3), ("0",), torch.zeros(2, 3))
    with pytest.raises(UsageError, match="needs a net with so many exits"):
        submodels(ff.mlp(16, 8, 5), (Level(1, 2),)).view()
