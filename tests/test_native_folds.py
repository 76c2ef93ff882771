"""Who computes, and what is folded where the rows lie: threads or processes, thresholds, factors and places."""

import os
from dataclasses import replace

import numpy as np
import pytest
from test_native_fit import Held, block, cohort, nets, request, summed

import fieldfare as ff
from fieldfare.aggregate.gather import Gather, Partial
from fieldfare.aggregate.rows import clip, norms
from fieldfare.core import rng
from fieldfare.core.folds import Coverage, Mean, Total
from fieldfare.core.local import LowRank
from fieldfare.sim.batch import Executor
from fieldfare.sim.compute import compute_inline
from fieldfare.work.dense import DenseNet, linear
from fieldfare.work.native import kinds
from fieldfare.work.native.modules import core
from fieldfare.work.native.nets import net as declared
from fieldfare.work.net import Drift, Training
from fieldfare.work.plan import make_plan
from fieldfare.work.train import Train

pytestmark = pytest.mark.skipif(core() is None, reason="the compiled core is not built here")

PLAIN = Training(batch_size=4, epochs=2)


@pytest.mark.parametrize("path", ["native", "stacked"])
def test_threads_of_this_process_train_what_is_on_the_core_and_processes_what_is_not(path: str) -> None:
    net = nets(6, 9, 4)[path == "stacked"]
    family = ff.submodels(net, (1.0, 0.5))
    for one in (net, family):
        work = Train(one, PLAIN)
        with Executor({"train": work}, None, workers=2) as executor:
            assert one.threaded is work.threaded is work.folds is (path == "native")
            assert executor.forked(1e15, "train") is (path != "native")
    with Executor({"train": Train(net, PLAIN, (LowRank(2),))}, None, workers=2) as executor:
        assert executor.forked(1e15, "train")  # factors are trained by NumPy or torch


def test_a_net_that_is_declared_for_the_core_is_trained_by_threads_and_folds() -> None:
    work = Train(declared(kinds.linear(6, 4), input=(6,)), PLAIN)
    with Executor({"train": work}, None, workers=2) as executor:
        assert not executor.forked(1e15, "train")
    assert work.folds


def test_a_net_with_a_fit_of_its_own_is_given_no_sum_to_make_and_is_trained_by_processes() -> None:
    class Noisy(DenseNet):
        def fit(self, start, row, data, plan, keys, training, lr, drift, moments=None):
            return super().fit(start, row, data, plan, keys, training, lr, drift, moments)

    work = Train(Noisy((linear(6, 4),), path="native"), PLAIN)
    assert work.net.threaded
    assert not work.threaded
    assert not work.folds
    out = work(replace(cohort(work.net, [5, 9]), fold=Mean(), asked=2))
    assert out.leaves["delta"].shape == (2, work.net.layout.size)


@pytest.mark.parametrize("path", ["native", "stacked"])
def test_a_job_on_the_core_trains_in_the_process_it_was_started_in(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    begin = Executor.start
    monkeypatch.setattr(Executor, "start", lambda self, asked: seen.append(os.getpid()) or begin(self, asked))
    ff.Job(
        model=replace(ff.mlp(64, 10), path=path), data=ff.data.digits(clients=6), training=PLAIN,
        algorithm=ff.FedAvg(rounds=2, cohort=4), simulated=ff.Simulated(workers=2),
    ).run(runs=None, progress=False)  # fmt: skip
    assert bool(seen) is (path == "stacked")


def both_ways(net, sizes, segment, models=1, training=PLAIN):
    """(partial sum, refused, whether it was folded in place) of a request, folded where rows lie and row by row."""
    out = []
    for in_place in (True, False):
        asked, data = request(net, sizes, {"delta": Mean()}, models)
        asked = replace(asked, segments=(replace(asked.segments[0], **segment),))
        work, seen = Train(net, training), []

        def call(cohort, work=work, seen=seen, in_place=in_place):
            result = work(cohort if in_place else replace(cohort, fold=None))
            seen.append(isinstance(result.leaves["delta"], Total))
            return result

        call.folds = work.folds
        shares = compute_inline(asked, {"train": call}, Held(data, asked.clients), 3)
        refused = np.concatenate([piece.refused for piece in shares[0].pieces])
        out.append((shares[0].partials[0]["delta"].sum, refused, any(seen)))
    return out


def same(ours, theirs) -> None:
    """The same sums, and the same clients refused."""
    assert ours[1].tolist() == theirs[1].tolist()
    assert (ours[0] is None) == (theirs[0] is None)
    if ours[0] is not None:
        assert np.array_equal(ours[0].settled(), theirs[0].settled())
        assert ours[0].weight == theirs[0].weight
        assert (ours[0].coverage is None) == (theirs[0].coverage is None)
        assert ours[0].coverage is None or np.array_equal(ours[0].coverage, theirs[0].coverage)


@pytest.mark.parametrize("before", [(), (clip(0.3),)])
def test_sub_models_are_summed_and_counted_at_their_own_places_of_the_whole(before) -> None:
    net, size = nets(6, 9, 4)[0], 400
    p = net.layout.size
    at = np.sort(np.random.default_rng(2).permutation(size)[:p])
    change = {"reduce": {"delta": Coverage(before=before)}, "index": at, "size": size}
    ours, theirs = both_ways(net, [5, 9, 0, 12, 7], change)
    assert (ours[2], theirs[2]) == (True, False)
    same(ours, theirs)
    outside = np.setdiff1d(np.arange(size), at)
    assert not ours[0].settled()[outside].any()
    assert not ours[0].coverage[outside].any()
    assert (ours[0].coverage[at] == 33).all()


def test_levels_of_sub_models_meet_in_one_sum_as_their_rows_would() -> None:
    small, large, size = nets(6, 4)[0], nets(6, 9, 4)[0], 150
    places = [np.arange(net.layout.size) * (5 if net is small else 1) for net in (small, large)]
    fold, gathers = Coverage(), []
    for way in range(2):
        gather = Gather({"delta": fold}, 6)
        for net, at, sizes in ((small, places[0], [3, 8]), (large, places[1], [5, 9, 4])):
            change = {"reduce": {"delta": fold}, "index": at, "size": size}
            gather.merge({"delta": Partial(both_ways(net, sizes, change)[way][0])})
        gathers.append(gather.finish()["delta"])
    assert np.array_equal(gathers[0].value, gathers[1].value)
    assert np.array_equal(gathers[0].weight, gathers[1].weight)
    assert sorted(set(np.asarray(gathers[0].weight).tolist())) == [0.0, 11.0, 18.0, 29.0]


def test_replies_with_a_factor_of_their_age_are_never_folded_in_place() -> None:
    net, factor = nets(6, 9, 4)[0], np.array([1.0, 0.5, 0.25, 1.0])
    ours, theirs = both_ways(net, [5, 9, 3, 7], {"factor": factor})
    assert (ours[2], theirs[2]) == (False, False)
    same(ours, theirs)
    assert ours[0].weight != 24


@pytest.mark.parametrize("staleness", [False, True])
def test_an_asynchronous_job_on_the_core_ends_with_the_bits_of_folding_its_rows(staleness, monkeypatch) -> None:
    def final():
        more = {"stale": ff.Staleness(limit=10)} if staleness else {}
        return (
            ff.Job(
                model=replace(ff.mlp(64, 12, 10), path="native"), data=ff.data.digits(clients=20), training=PLAIN,
                algorithm=ff.FedBuff(rounds=6, cohort=8, buffer=3, **more),
                simulated=ff.Simulated(fleet=ff.fleet.phones()),
            )
            .run(runs=None, progress=False)
            .model.vector
        )  # fmt: skip

    ours = final()
    monkeypatch.setattr(Train, "folds", False)
    assert np.array_equal(final(), ours)


def test_the_larger_the_cohort_asked_the_less_a_delta_may_be_and_both_ways_refuse_the_same() -> None:
    net, seen = nets(6, 9, 4)[0], set()
    for power in range(24, 40):
        ours, theirs = both_ways(net, [5, 9, 30, 1], {"asked": 1 << power})
        same(ours, theirs)
        assert ours[2]
        seen.add(int(ours[1].sum()))
    assert {0, 4} < seen, "no cohort lies between one that takes all and one that takes none"
    assert not both_ways(net, [5, 9], {"asked": 1 << 60})[0][2]  # weights themselves could overflow: rows are asked


@pytest.mark.parametrize("models", [1, 2])
def test_a_delta_as_long_as_the_clip_is_left_and_one_a_little_longer_is_shrunk(models) -> None:
    net, sizes = nets(6, 9, 4)[0], [5, 9, 30]
    given = cohort(net, sizes, models)
    lengths = norms(Train(net, PLAIN)(given).leaves["delta"])
    assert len(set(lengths.tolist())) == 3
    for length in lengths.tolist():
        found = []
        for most in (
            length * (1 - 4e-5),
            np.nextafter(length, 0.0),
            length,
            np.nextafter(length, 9.0),
            length * 1.00004,
        ):
            ours, theirs = both_ways(net, sizes, {"reduce": {"delta": Mean(before=(clip(most),))}}, models)
            same(ours, theirs)
            assert ours[2]
            found.append(ours[0].settled())
        assert not np.array_equal(found[0], found[2])
        others = [float(x) for x in lengths if abs(x - length) > 1e-3 * length]
        assert len(others) == 2
        assert np.array_equal(found[2], found[3])
        longer = any(x > length for x in others)
        assert np.array_equal(found[2], found[4]) is not longer  # only those longer still depend on the bound


def test_the_cap_on_a_client_is_the_folds_over_its_weight_and_never_beyond_what_a_double_holds() -> None:
    net = nets(6, 4)[0]
    data = block([5, 9])
    delta, _ = summed(net, data)
    most = [float(x) for x in np.abs(delta).max(axis=1)]
    for i, weight in ((0, 5), (1, 9)):
        other = 1 - i
        weights = [0, 0]
        weights[i], weights[other] = weight, 0
        tight = summed(net, data, cap=most[i] * (1 - 1e-12) * weight, weights=weights)[1].refused
        assert tight[i]
        assert not summed(net, data, cap=most[i] * weight * (1 + 1e-6), weights=weights)[1].refused[i]
    for i in range(2):  # 2^51 steps, whatever the cap
        step = 2.0 ** np.ceil(np.log2(most[i] / 2.0**51))
        for times, refused in ((1.0, False), (0.5, True)):
            found = summed(net, data, cap=2.0**90, weights=(1, 1), step=step * times)[1].refused
            assert found[i] == refused or most[i] == step * times * 2.0**51


def test_hidden_widths_that_fill_no_vector_leave_nothing_behind_in_what_is_clipped_or_capped() -> None:
    training = Training(batch_size=4, epochs=3, clip_norm=0.2, momentum=0.5)
    n = 3
    data, keys = block([8, 3, 8], inputs=21), rng.keys(0, ("t",), np.arange(n))
    plan = make_plan(data, keys, training)
    for widths in ((21, 5, 33, 4), (21, 17, 3, 9, 4), (21, 1, 1, 4)):
        native, stacked = nets(*widths)
        start, row = native.init(0).vector[None], np.zeros(n, np.int64)
        ours, theirs = (net.fit(start, row, data, plan, keys, training, 0.3, Drift()) for net in (native, stacked))
        np.testing.assert_allclose(ours.params, theirs.params, rtol=1e-4, atol=2e-5)
