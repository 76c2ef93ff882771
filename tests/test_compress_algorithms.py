"""Algorithms of sub-models: idle declarations change no bit, gradients of what is inside, momentum where covered."""

from __future__ import annotations

import numpy as np
import pytest
from algorithm_driver import Quadratics, drive
from work_cohorts import block

import fieldfare as ff
from fieldfare.aggregate import adam, chain, coverage, momentum, patient, yogi
from fieldfare.core.effects import Publish
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Folded
from fieldfare.core.local import Nested
from fieldfare.core.params import Params
from fieldfare.work.net import Drift, Training
from fieldfare.work.plan import make_plan
from fieldfare.work.submodel import MultiRate, Rolling, submodels

DATA = ff.synthetic(clients=12, classes=5, features=16, seed=3, min_examples=12, log_mean=1.0, log_sigma=0.5)
NET = ff.mlp(16, 12, 8, 5)
WIDTHS = (1.0, 0.5, 0.25)
FAMILY = submodels(NET, WIDTHS)


def job(algorithm, lr=0.1, model=FAMILY, **more):
    training = ff.Training(lr=lr, batch_size=6, epochs=2)
    return ff.Job(model, DATA, algorithm, training, simulated=ff.Simulated(workers=1), **more)


def trained(algorithm, lr=0.1, **more):
    return job(algorithm, lr, **more).run(runs=None).model.vector.tobytes()


def made(view, **more):
    rolling = FAMILY.view(Rolling(), view.assign)
    return {
        "heterofl": ff.HeteroFL(3, 8, view=view, **more),
        "fedrolex": ff.FedRolex(3, 8, view=rolling, **more),
        "fjord": ff.FjORD(3, 8, view=view, shares=WIDTHS, **more),
        "fjord distilled": ff.FjORD(3, 8, view=view, shares=WIDTHS, distil=0.5, **more),
        "fjord by round": ff.FjORD(3, 8, view=FAMILY.view(MultiRate(), view.assign), **more),
        "nestedfl": ff.NestedFL(3, 8, view=view, shares=WIDTHS),
    }


methods = pytest.mark.parametrize("name", list(made(FAMILY.view())))


@methods
def test_zero_training_lifts_to_exactly_zero(name):
    assert trained(made(FAMILY.view())[name], lr=0.0) == NET.init(0).vector.tobytes()


@pytest.mark.parametrize("name", ["heterofl", "fedrolex", "fjord", "nestedfl"])
def test_with_rate_one_for_all_and_nothing_inside_it_is_fedavg_bit_for_bit(name):
    plain = trained(ff.FedAvg(3, 8), model=NET)
    whole = FAMILY.view(assign=(0,))
    algorithm = {
        "heterofl": ff.HeteroFL(3, 8, view=whole),
        "fedrolex": ff.FedRolex(3, 8, view=FAMILY.view(Rolling(), (0,))),
        "fjord": ff.FjORD(3, 8, view=whole, shares=(1.0,)),
        "nestedfl": ff.NestedFL(3, 8, view=whole, shares=(1.0,), beta=0.0, average=0.0),
    }[name]
    assert trained(algorithm) == plain


@methods
def test_neither_chunks_nor_neighbours_change_a_bit(name):
    algorithm = made(FAMILY.view())[name]
    training = ff.Training(lr=0.1, batch_size=6, epochs=2)
    split = ff.Job(FAMILY, DATA, algorithm, training, simulated=ff.Simulated(workers=1, chunk=1))
    assert split.run(runs=None).model.vector.tobytes() == trained(algorithm)


def test_every_method_trains_something_else():
    found = {trained(algorithm) for algorithm in made(FAMILY.view()).values()}
    assert len(found) == 6


BENT = {
    "relu": lambda h: np.maximum(h, 0), "tanh": np.tanh, "sigmoid": lambda h: 1 / (1 + np.exp(-h)), "none": lambda h: h
}  # fmt: skip


def numeric(net, shares, start, x, y, each, distil=0.0, temperature=1.0, weight=1.0, turn=0, back=0.0):
    """The gradient of the loss of one step, in float64, by differences; the teacher is held."""
    hidden = [one.outputs for one in net.program.layers[:-1]]
    inside = [[max(int(np.ceil(s * h - 1e-9)), 1) for h in hidden] for s in shares if s < 1]

    def logits(vector, widths):
        h, sizes = x.astype(np.float64), [net.program.inputs, *widths, net.program.outputs]
        for i, layer in enumerate(net.program.layers):
            w = vector[layer.weight].reshape(layer.outputs, layer.inputs)[: sizes[i + 1], : sizes[i]]
            h = h @ w.T + vector[layer.bias][: sizes[i + 1]]
            h = BENT[layer.activation](h)
        return h

    def log_softmax(z):
        return z - z.max(1, keepdims=True) - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))

    at_start = start.astype(np.float64)
    teacher = log_softmax(logits(at_start, hidden) / temperature)
    chosen = inside if each == "all" else [inside[turn % len(inside)]]
    below = np.mean([np.exp(log_softmax(logits(at_start, widths) / temperature)) for widths in chosen], axis=0)

    def loss(vector):
        def cross(widths):
            return -log_softmax(logits(vector, widths))[np.arange(len(y)), y].mean()

        def one(widths):
            student = log_softmax(logits(vector, widths) / temperature)
            kl = (np.exp(teacher) * (teacher - student)).sum(1).mean()
            return (1 - distil) * cross(widths) + distil * temperature**2 * kl

        def own():
            kl = (below * (np.log(below) - log_softmax(logits(vector, hidden) / temperature))).sum(1).mean()
            return (1 - back) * cross(hidden) + back * temperature**2 * kl

        match each:
            case "all":
                return own() + weight * np.mean([one(widths) for widths in inside])
            case "turn":
                return own() + weight * one(inside[turn % len(inside)])
            case _:
                at = turn % (len(inside) + 1)
                return weight * one(inside[at - 1]) if at else cross(hidden)

    out, e = np.empty(len(start)), 1e-6
    for i in range(len(start)):
        step = np.zeros(len(start))
        step[i] = e
        out[i] = (loss(start + step) - loss(start - step)) / (2 * e)
    return out


@pytest.mark.parametrize(
    ("each", "distil", "back"),
    [
        ("all", 0.0, 0.0),
        ("all", 0.6, 0.3),
        ("turn", 0.0, 0.7),
        ("turn", 0.6, 0.0),
        ("only", 0.0, 0.0),
        ("only", 0.6, 0.0),
        ("only", 0.6, 0.3),
    ],
)
def test_the_gradient_of_what_is_inside_is_that_of_the_declared_loss(each, distil, back):
    from fieldfare.work import compress

    bend = {"all": None, "turn": ff.work.dense.tanh(), "only": ff.work.dense.sigmoid()}[each]
    net = ff.mlp(5, 6, 4, 3, activation=bend)
    declared = Nested((1.0, 0.5, 0.25), distil, 2.0, 0.7, each, back)
    inner = compress.trained(net, net, (declared,))
    data = block([7])
    training = Training(lr=1.0, batch_size=7, steps=2, shuffle=False)
    keys = np.array([5], np.uint64)
    plan = make_plan(data, keys, training)
    at = start = net.init(3).vector
    for step in range(2):
        one = Training(lr=1.0, batch_size=7, steps=step + 1, shuffle=False)
        plan = make_plan(data, keys, one)
        end = inner.fit(at[None], np.zeros(1, np.int64), data, plan, keys, one, 1e-3, Drift()).params[0]
        x, y = data.columns["x"][data.rows], data.columns["y"][data.rows]
        wanted = numeric(net, declared.shares, start.astype(np.float64), x, y, each, distil, 2.0, 0.7, step, back)
        found = (start.astype(np.float64) - end) / 1e-3
        np.testing.assert_allclose(found, wanted, atol=3e-4)
        start = end


def test_a_scaled_net_computes_as_one_whose_layers_are_divided():
    from fieldfare.work import compress

    small = ff.mlp(5, 3, 2, 3)
    scaled = compress.trained(small, ff.mlp(5, 6, 8, 3), (ff.core.local.Scaled(),))
    assert scaled.scales == (2.0, 4.0, 1.0)
    data, keys = block([9]), np.array([5], np.uint64)
    training = Training(lr=0.1, batch_size=9, steps=1)
    plan = make_plan(data, keys, training)
    start = small.init(0).vector
    fits = (scaled, start), (small, by_hand(small, start, (2.0, 4.0)))
    ends = [net.fit(at[None], np.zeros(1, np.int64), data, plan, keys, training, 0.1, Drift()) for net, at in fits]
    np.testing.assert_allclose(ends[0].loss, ends[1].loss, rtol=1e-5)
    assert scaled.evaluate(start[None], np.zeros(1, np.int64), data)["loss"] == pytest.approx(
        small.evaluate(start[None], np.zeros(1, np.int64), data)["loss"]
    )
    moved = (ends[1].params[0] - by_hand(small, start, (2.0, 4.0))) * by_hand(small, np.ones_like(start), (2.0, 4.0))
    np.testing.assert_allclose(ends[0].params[0] - start, moved, atol=1e-6)


def by_hand(net, vector, scales):
    out = vector.copy()
    for layer, scale in zip(net.program.layers, scales, strict=False):
        out[layer.weight] *= scale
        out[layer.bias] *= scale
    return out


@pytest.mark.parametrize("transform", [momentum(0.9), patient(0.5), patient(0.9, 1.0), adam(), yogi()])
def test_a_server_chain_acts_only_where_it_is_covered(transform):
    server = chain(coverage(), transform)
    state = server.init(3)
    ones = np.ones(3, np.float32)
    _, state = server.update(Folded(ones, np.array([2.0, 2.0, 2.0])), state)
    update, after = server.update(Folded(ones, np.array([2.0, 0.0, 1.0])), state)
    assert update[1] == 0 != update[0]
    slots = [np.atleast_2d(np.asarray(s)) for s in (state[0], after[0])]
    assert (slots[0][:, 1] == slots[1][:, 1]).all()
    assert (slots[0][:, 0] != slots[1][:, 0]).any()
    update, after = server.update(Folded(ones, np.array([2.0, 0.0, 1.0])), after)
    assert update[1] == 0
    assert np.atleast_2d(np.asarray(after[0]))[:, 1].tolist() == slots[0][:, 1].tolist()


@pytest.mark.parametrize("server", [chain(coverage(), t) for t in (momentum(0.9), patient(0.9), adam())])
def test_coordinates_that_nobody_has_stay_to_the_bit_through_a_run_with_server_state(server):
    view = FAMILY.view(assign=(1,))
    algorithm = ff.HeteroFL(4, 8, view=view, server=server)
    start, end = NET.init(0).vector, job(algorithm).run(runs=None).model.vector
    had = np.zeros(len(start), bool)
    had[view.index(1)] = True
    assert end[~had].tobytes() == start[~had].tobytes()
    assert (end[had] != start[had]).mean() > 0.8


def test_patience_is_longer_where_fewer_report_and_plain_momentum_without_power():
    u, v, w = np.ones(3, np.float32), np.full(3, 2.0, np.float32), np.array([8.0, 4.0, 2.0])
    assert patient(0.5, 1.0).update(u, v, w)[0].tolist() == [2.0, 2.5, 2.75]
    for weight in (w, 3.0):
        assert patient(0.5, 0.0).update(u, v, weight)[0].tolist() == momentum(0.5).update(u, v, weight)[0].tolist()
    assert patient(0.5, 1.0).update(u, v, np.full(3, 4.0))[0].tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(UsageError, match="from 0 to 1"):
        patient(0.5, 2.0)


def test_what_is_inside_is_paid_for():
    from fieldfare.work.train import Train

    sizes, layout = np.array([10]), NET.layout
    each = {e: Train(NET, local=(Nested((0.5, 0.25), each=e),)).cost(sizes, layout, {}).flops[0] for e in
            ("all", "turn", "only")}  # fmt: skip
    plain = Train(NET).cost(sizes, layout, {}).flops[0]
    small = [ff.mlp(16, 6, 4, 5).flops() * 10, ff.mlp(16, 3, 2, 5).flops() * 10]
    assert each == {"all": plain + sum(small), "turn": plain + sum(small) / 2, "only": (plain + sum(small)) / 3}


def test_what_has_no_meaning_is_refused_in_one_line():
    with pytest.raises(UsageError, match=r"HeteroFL\(view=...\) by Rolling: use family.view\(\)"):
        ff.HeteroFL(3, 8, view=FAMILY.view(Rolling()))
    with pytest.raises(UsageError, match=r"FedRolex\(view=...\) by Prefix: use"):
        ff.FedRolex(3, 8, view=FAMILY.view())
    with pytest.raises(UsageError, match="levels of fewer channels"):
        ff.DepthFL(3, 8, view=FAMILY.view())
    with pytest.raises(UsageError, match="Mean cannot fold sub-models"):
        job(ff.HeteroFL(3, 8, view=FAMILY.view(), server=chain(ff.aggregate.mean()))).run(runs=None)
    with pytest.raises(UsageError, match="shares and distil lie between 0 and 1"):
        job(ff.FjORD(3, 8, view=FAMILY.view(), shares=(2.0,))).run(runs=None)


def test_sub_models_of_all_methods_are_vectors_of_the_whole_layout():
    for algorithm in made(FAMILY.view()).values():
        model = job(algorithm).run(runs=None).model
        assert isinstance(model, Params)
        assert model.layout == NET.layout


def test_the_published_mean_is_of_the_models_of_the_rounds_which_go_on_as_without_it():
    def record(average):
        return drive(ff.FedAvg(4, 6, average=average), Quadratics.random(1, 8), 1)

    def published(found):
        return [e.model.vector.astype(float) for effects in found.effects for e in effects if isinstance(e, Publish)]

    plain, mean = record(0.0), record(0.6)
    ends = [[s.model.vector.tobytes() for s in found.states] for found in (plain, mean)]
    assert ends[0] == ends[1]
    models, wanted = published(plain), published(plain)[0]
    for t, (model, found) in enumerate(zip(models, published(mean), strict=True), start=1):
        wanted = wanted + max(0.4, 1 / t) * (model - wanted)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    with pytest.raises(UsageError, match="share of the past"):
        ff.FedAvg(2, 4, average=1.0)
