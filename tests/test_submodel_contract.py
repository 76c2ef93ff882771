"""Sub-models from extraction to lift: nothing trained lifts to nothing, rate 1 is FedAvg, coverage adds up."""

from __future__ import annotations

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.aggregate import chain, coverage, momentum
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Params, View
from fieldfare.work.submodel import (
    Budget,
    Group,
    Level,
    MultiRate,
    Prefix,
    RandomWindow,
    Rolling,
    TopNorm,
    plan,
    replanned,
    submodels,
)
from fieldfare.work.submodel.rules import Moment

DATA = ff.synthetic(clients=12, classes=5, features=16, seed=3, min_examples=12, log_mean=1.0, log_sigma=0.5)
NET = ff.mlp(16, 12, 8, 5)
RULES = (Prefix(), Rolling(), RandomWindow(1), RandomWindow(1, each=True), TopNorm(), MultiRate())
rules = pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__ + str(getattr(r, "each", "")))


def job(model, algorithm, lr=0.1, **more):
    training = ff.Training(lr=lr, batch_size=6, epochs=2)
    return ff.Job(model, DATA, algorithm, training, simulated=ff.Simulated(workers=1), **more)


def trained(model, view=None, rounds=3, lr=0.1, server=None):
    server = server or (chain(coverage()) if view is not None else None)
    chosen = {} if server is None else {"server": server}
    return job(model, ff.FedAvg(rounds, 8, view=view, **chosen), lr).run(runs=None).model


@rules
def test_zero_training_lifts_to_exactly_zero(rule):
    family = submodels(NET, (1, 0.5, 0.25))
    start, end = NET.init(0), trained(family, family.view(rule), lr=0.0)
    assert end.vector.tobytes() == start.vector.tobytes()


@rules
def test_rate_one_for_everyone_is_fedavg_bit_for_bit(rule):
    family = submodels(NET, (1,))
    assert trained(family, family.view(rule)).vector.tobytes() == trained(NET).vector.tobytes()


def test_windows_begin_at_the_first_channel_and_go_around_the_end_and_units_are_whole():
    ring = Group("a", 6)
    at = [Rolling().kept(0, ring, 3, Moment(round_, None)).tolist() for round_ in (1, 2, 5, 7)]
    assert at == [[0, 1, 2], [1, 2, 3], [0, 4, 5], [0, 1, 2]]
    assert Rolling(2).kept(0, Group("a", 8, unit=2), 4, Moment(2, None)).tolist() == [4, 5, 6, 7]
    units = Group("a", 12, unit=4)
    assert [units.keep(rate) for rate in (1.0, 0.7, 0.5, 0.4, 0.25, 0.1)] == [12, 12, 8, 8, 3, 2]


@pytest.mark.parametrize("widths", [(16, 6, 8, 5), (16, 24, 8, 5), (16, 8, 12, 5)])
@pytest.mark.parametrize("by", ["round", "plan", "ring", "masked"])
def test_a_view_of_another_model_is_refused_before_launch(widths, by):
    other = submodels(ff.mlp(*widths), (1, 0.5))
    view, server = other.view(), chain(coverage())
    algorithm = {
        "round": ff.FedAvg(2, 8, server=server, view=view),
        "plan": ff.FedBuff(2, 4, 2, server=chain(coverage(weighted=False)), view=replanned(plan(other, Budget([1e9])))),
        "ring": ff.PacedRing(cycles=4, view=view),
        "masked": ff.SecureSum(ff.FedAvg(2, 8, server=server, view=view)),
    }[by]
    for model in (NET, submodels(NET, (1, 0.5))):
        with pytest.raises(UsageError, match="the view of another model"):
            job(model, algorithm).run(runs=None)


def test_rate_one_is_fedavg_bit_for_bit_for_a_torch_module():
    nets = pytest.importorskip("submodel_nets")
    nn = nets.nn
    body = nn.Linear(16, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 5)
    family = submodels(nn.Sequential(*body), (1, 0.5), example=DATA.columns)
    whole = trained(family.net)
    assert trained(family, family.view(assign=(0,))).vector.tobytes() == whole.vector.tobytes()
    assert trained(family, family.view(assign=(0, 1))).vector.tobytes() != whole.vector.tobytes()


@rules
def test_the_weight_of_a_coordinate_is_that_of_the_clients_who_had_it(rule):
    from fieldfare.assembly import assemble
    from fieldfare.core.events import Gathered
    from fieldfare.testing import simulate

    family = submodels(NET, (1, 0.5, 0.25))
    view = family.view(rule)
    world = assemble(job(family, ff.FedAvg(1, ff.Everyone(), server=chain(coverage()), view=view))).world
    (event,) = simulate(world, keep=True).transcript.events(Gathered)
    at, wanted = view.at(1, NET.init(0)), np.zeros(NET.layout.size)
    for client, level in enumerate(at.plan(np.arange(12))):
        wanted[at.index(level)] += DATA.sizes[client]
    assert event.output["delta"].weight.tolist() == wanted.tolist()
    assert (event.output["delta"].value[wanted == 0] == 0).all()


@pytest.mark.parametrize("server", [chain(coverage()), chain(coverage(), momentum(0.5))], ids=["plain", "momentum"])
def test_what_nobody_had_stays_as_it_was(server):
    family = submodels(NET, (1, 0.5))
    view = family.view(assign=(1,))
    start, end = NET.init(0).vector, trained(family, view, server=server).vector
    had = np.zeros(len(start), bool)
    had[view.index(1)] = True
    assert end[~had].tobytes() == start[~had].tobytes()
    assert (end[had] != start[had]).mean() > 0.8


def test_levels_lie_inside_one_another_and_are_views():
    family = submodels(NET)
    view = family.view()
    assert isinstance(view, View)
    for larger, smaller in ((0, 1), (1, 2), (2, 3)):
        assert set(view.index(smaller)) < set(view.index(larger))
        assert len(view.index(smaller)) == view.layout(smaller).size
    assert view.index(0).tolist() == list(range(NET.layout.size))


def test_a_rolling_window_reaches_every_coordinate_and_a_prefix_does_not():
    family = submodels(NET, (1, 0.5))
    for rule, all_ in ((Rolling(), True), (Prefix(), False)):
        view = family.view(rule)
        had = {int(i) for r in range(1, 25) for i in view.at(r).index(1)}
        assert (len(had) == NET.layout.size) == all_


def test_a_random_window_differs_by_round_and_with_each_by_client_too():
    family = submodels(NET, (1, 0.5))
    view = family.view(RandomWindow(), assign=(1,))
    clients = np.arange(4)
    assert view.plan(clients).tolist() == [1, 1, 1, 1]
    assert view.at(1).index(1).tolist() != view.at(2).index(1).tolist()
    assert view.at(2).index(1).tolist() == view.at(2).index(1).tolist()
    own = family.view(RandomWindow(each=True), assign=(1,))
    levels = own.plan(clients)
    assert len(set(levels)) == 4
    assert len({own.index(n).tobytes() for n in levels}) == 4
    assert {own.layout(n) for n in levels} == {view.layout(1)}


def test_the_channels_of_largest_norm_are_kept():
    family = submodels(NET, (1, 0.25))
    tensors = {name: t.copy() for name, t in NET.init(0).tensors().items()}
    tensors["0.weight"][[2, 5, 11]] *= 100.0
    view = family.view(TopNorm()).at(1, Params.pack(tensors))
    small = Params(Params.pack(tensors).vector[view.index(1)], view.layout(1))
    assert np.array_equal(small.tensor("0.weight"), tensors["0.weight"][[2, 5, 11]])
    assert np.array_equal(small.tensor("2.weight")[0], tensors["2.weight"][small_rows(tensors)][:, [2, 5, 11]][0])
    with pytest.raises(UsageError, match="TopNorm looks at the model"):
        family.view(TopNorm()).index(1)


def small_rows(tensors):
    parts = tensors["2.weight"], tensors["2.bias"][:, None], tensors["4.weight"].T
    norms = sum(np.square(part.astype(np.float64)).sum(axis=1) for part in parts)
    return np.sort(np.argsort(-norms)[:2])


def test_a_level_drawn_every_round_is_never_larger_than_the_clients_own():
    family = submodels(NET, (1, 0.5, 0.25))
    view, clients = family.view(MultiRate(seed=4)), np.arange(3000)
    drawn = view.at(7).plan(clients)
    assert (drawn >= view.assign[clients % 3]).all()
    share = [(drawn[clients % 3 == 0] == level).mean() for level in range(3)]
    assert np.allclose(share, 1 / 3, atol=0.06)
    assert (view.at(8).plan(clients) != drawn).mean() > 0.2
    assert (view.at(7).plan(clients[::-1]) == drawn[::-1]).all()


def test_smaller_levels_cost_less():
    from fieldfare.work.train import Train

    family = submodels(NET, (1, 0.5))
    work, sizes = Train(family, ff.Training()), np.array([10, 20])
    whole, half = (work.cost(sizes, family.view().layout(level), {}) for level in (0, 1))
    assert (half.flops < 0.6 * whole.flops).all()
    assert half.bytes_down == 4.0 * family.view().layout(1).size == half.bytes_up
    assert work.cost(sizes, NET.layout, {}).flops.tolist() == Train(NET).cost(sizes, NET.layout, {}).flops.tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_mixed_levels_are_the_same_bits_in_any_chunk_and_number_of_workers(workers):
    family = submodels(NET, (1, 0.5, 0.25))
    algorithm = ff.FedAvg(2, 8, server=chain(coverage()), view=family.view(MultiRate()))
    here = job(family, algorithm).run(runs=None).model
    simulated = ff.Simulated(workers=workers, chunk=2)
    there = ff.Job(family, DATA, algorithm, ff.Training(lr=0.1, batch_size=6, epochs=2), simulated=simulated)
    assert there.run(runs=None).model.vector.tobytes() == here.vector.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("rule", [Rolling(), MultiRate(TopNorm())], ids=["rolling", "multi-rate"])
def test_a_run_over_sub_models_keeps_all_laws(rule):
    from fieldfare.assembly import assemble
    from fieldfare.testing import laws

    family = submodels(ff.mlp(16, 6, 5), (1, 0.5))
    algorithm = ff.FedAvg(3, 5, server=chain(coverage(), momentum(0.5)), view=family.view(rule))
    laws(assemble(job(family, algorithm)).world)


def test_levels_larger_than_a_pipe_holds_go_to_workers_behind_one_another():
    family = submodels(ff.mlp(16, 2000, 5), (1, 0.5, 0.25, 0.125))
    algorithm = ff.FedAvg(2, 12, server=chain(coverage()), view=family.view())
    training, ends = ff.Training(lr=0.05, batch_size=6), set[bytes]()
    for workers in (1, 2):
        made = ff.Job(family, DATA, algorithm, training, simulated=ff.Simulated(workers=workers))
        ends.add(made.run(runs=None).model.vector.tobytes())
    assert 8 * family.layout.size > 1 << 16
    assert len(ends) == 1


def test_what_cannot_be_is_refused_in_one_line():
    family = submodels(NET, (1, 0.5))
    with pytest.raises(UsageError, match="assign= names levels 0 to 1"):
        family.view(assign=(0, 2))
    with pytest.raises(UsageError, match="at least one level"):
        submodels(NET, ())
    with pytest.raises(UsageError, match="a number above 0"):
        Level(1.5)
    with pytest.raises(UsageError, match="needs a net with so many exits"):
        submodels(NET, (1, Level(0.5, depth=2))).view()
    with pytest.raises(UsageError, match="sub-models of a Opaque"):
        submodels(ff.opaque(lambda *a: None, init=np.zeros(3)))
