"""Training on the compiled core against the NumPy loop: the same declarations, and the exact fold where rows lie."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fieldfare as ff
from fieldfare.aggregate.chain import chain, mean
from fieldfare.aggregate.gather import Gather
from fieldfare.aggregate.rows import clip, norms
from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Coverage, Mean, Total
from fieldfare.core.local import ControlVariate, Dynamic, Keep, Normalised, Proximal, Twin
from fieldfare.core.work import Cohort
from fieldfare.sim.compute import Recall, Request, Segment, compute_inline, folds_in_place
from fieldfare.work.dense import relu, sigmoid, tanh
from fieldfare.work.native import threads
from fieldfare.work.native.modules import core
from fieldfare.work.net import Drift, Folding, Training
from fieldfare.work.plan import make_plan
from fieldfare.work.train import Train

pytestmark = pytest.mark.skipif(core() is None, reason="the compiled core is not built here")


def nets(*widths, **more):
    net = ff.mlp(*widths, **more)
    return replace(net, path="native"), replace(net, path="stacked")


def block(sizes, inputs=6, classes=4, seed=0, numbers=False):
    r = np.random.default_rng(seed)
    total = int(sum(sizes))
    x = r.standard_normal((max(total, 1), inputs)).astype(np.float32)
    y = (
        r.standard_normal((max(total, 1), classes)).astype(np.float32)
        if numbers
        else r.integers(0, classes, max(total, 1))
    )
    rows = r.permutation(total)
    return Block({"x": x, "y": y}, rows.astype(np.int64), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def cohort(net, sizes, models=1, seed=0, **more):
    n = len(sizes)
    starts = np.stack([net.init(seed + k).vector for k in range(models)])
    row = np.arange(n, dtype=np.int64) % models
    keys = rng.keys(seed, ("t",), np.arange(n))
    return Cohort(starts, row, net.layout, np.arange(n) * 3, keys, block(sizes, seed=seed), **more)


def both(sizes, training, local=(), models=1, widths=(6, 9, 4), **more):
    return [Train(net, training, local)(cohort(net, sizes, models, **more)) for net in nets(*widths)]


def near(a, b, tolerance=2e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


SIZES = [5, 0, 12, 1, 7]
CASES = {
    "plain": (Training(batch_size=4, epochs=2), ()),
    "steps": (Training(batch_size=3, steps=7), ()),
    "momentum": (Training(batch_size=4, epochs=3, momentum=0.9), ()),
    "nesterov": (Training(batch_size=4, epochs=3, momentum=0.8, nesterov=True), ()),
    "decay and clip": (Training(batch_size=4, epochs=2, weight_decay=0.1, clip_norm=0.3), ()),
    "adam": (Training(batch_size=4, epochs=3, optimizer="adam", lr=0.01, weight_decay=0.01), ()),
    "proximal": (Training(batch_size=4, epochs=2), (Proximal(0.5),)),
    "normalised": (Training(batch_size=4, epochs=2, momentum=0.5), (Normalised(),)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("models", [1, 3])
def test_training_on_the_core_is_that_of_the_numpy_loop_within_rounding(case, models):
    training, local = CASES[case]
    ours, theirs = both(SIZES, training, local, models)
    near(ours.leaves["delta"], theirs.leaves["delta"])
    near(ours.metrics["loss"], theirs.metrics["loss"])
    assert np.abs(theirs.leaves["delta"]).max() > 1e-3


def test_control_variates_dynamic_regularisers_and_kept_moments_reach_the_core():
    r = np.random.default_rng(3)
    size = ff.mlp(6, 9, 4).layout.size
    state = r.standard_normal((len(SIZES), size)).astype(np.float32) * 0.01
    fresh = np.array([False, False, True, False, False])
    inputs = {"c": r.standard_normal(size).astype(np.float32) * 0.01}
    for local, more in (
        ((ControlVariate(),), {"inputs": inputs}),
        ((Dynamic(0.1),), {}),
        ((Keep(),), {}),
    ):
        training = Training(batch_size=4, epochs=2, momentum=0.9 if isinstance(local[0], Keep) else 0.0)
        ours, theirs = both(SIZES, training, local, state=state, fresh=fresh, **more)
        near(ours.leaves["delta"], theirs.leaves["delta"], 1e-4)
        near(ours.state, theirs.state, 1e-4)


def test_moments_of_adam_are_taken_out_and_put_back_as_without_a_break():
    training = Training(batch_size=4, steps=6, optimizer="adam", lr=0.02, shuffle=False)
    native, _ = nets(6, 9, 4)
    data = block([24])
    start, row, keys = native.init(0).vector[None], np.zeros(1, np.int64), np.zeros(1, np.uint64)
    none = np.zeros((1, 2 * native.layout.size + 1), np.float32)
    whole = native.fit(start, row, data, make_plan(data, keys, training), keys, training, 0.02, Drift(), none)
    half = replace(training, steps=3)
    first = native.fit(start, row, data, make_plan(data, keys, half), keys, half, 0.02, Drift(), none)
    rest = Block(data.columns, data.rows[12:], np.array([0, 12]))
    then = native.fit(first.params, row, rest, make_plan(rest, keys, half), keys, half, 0.02, Drift(), first.moments)
    near(then.params, whole.params, 1e-6)
    assert then.moments[0, -1] == 6


@pytest.mark.parametrize("loss", ["masked_cross_entropy", "squared_error"])
def test_other_losses_are_those_of_the_numpy_loop(loss):
    training = Training(batch_size=4, epochs=2, lr=0.05)
    native, stacked = nets(6, 9, 4, loss=loss)
    n = len(SIZES)
    data, keys = block(SIZES, numbers=loss == "squared_error"), rng.keys(0, ("t",), np.arange(n))
    plan = make_plan(data, keys, training)
    start, row = native.init(0).vector[None], np.zeros(n, np.int64)
    ours, theirs = (net.fit(start, row, data, plan, keys, training, 0.05, Drift()) for net in (native, stacked))
    near(ours.params, theirs.params)
    near(ours.loss, theirs.loss)
    measured = [net.evaluate(theirs.params, np.arange(n), data) for net in (native, stacked)]
    assert list(measured[0]) == list(measured[1])
    for name in measured[0]:
        near(measured[0][name], measured[1][name])


@pytest.mark.parametrize("activation", [tanh(), sigmoid(), relu()])
def test_activations_are_those_of_the_numpy_loop(activation):
    training = Training(batch_size=4, epochs=2)
    outs = [Train(net, training)(cohort(net, SIZES)) for net in nets(6, 11, 5, 4, activation=activation)]
    near(outs[0].leaves["delta"], outs[1].leaves["delta"])


def test_parameters_outside_a_mask_stay_as_they_are_on_the_core():
    native, _ = nets(6, 9, 4)
    n, training = 3, Training(batch_size=4, epochs=2, weight_decay=0.1, momentum=0.9)
    data, keys = block([8, 8, 8]), rng.keys(0, ("t",), np.arange(n))
    mask = np.random.default_rng(0).random(native.layout.size) < 0.5
    start, row = native.init(0).vector[None], np.zeros(n, np.int64)
    fit = native.fit(start, row, data, make_plan(data, keys, training), keys, training, 0.1, Drift(mask=mask))
    assert (fit.params[:, ~mask] == start[:, ~mask]).all()
    assert (fit.params[:, mask] != start[:, mask]).any(axis=0).mean() > 0.8


def request(net, sizes, reduce, models=1):
    one = cohort(net, sizes, models)
    segment = Segment(0, one.n, reduce, one.n)
    return Request("train", one.models, one.row, one.layout, one.clients, one.keys, (segment,)), one.data


class Held:
    """Data whose block of any clients is cut from one."""

    def __init__(self, data, clients):
        self.data, self.at = data, {int(c): i for i, c in enumerate(clients)}

    def block(self, clients):
        parts = [self.data.client(self.at[int(c)]) for c in clients]
        sizes = [len(p["y"]) for p in parts]
        columns = {name: np.concatenate([p[name] for p in parts]) for name in self.data.columns}
        return Block(columns, np.arange(sum(sizes)), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def folded(net, sizes, reduce, most, chunk=None, folds=True, training=None, models=1, local=(), spoil=None):
    asked, data = request(net, sizes, reduce, models)
    if spoil is not None:
        data.columns["x"][data.rows[data.offsets[spoil] : data.offsets[spoil + 1]]] = np.nan
    work = Train(net, training or Training(batch_size=4, epochs=2), local)
    if not folds:

        class Rows:
            """The same work, which never folds where rows lie."""

            def __call__(self, cohort):
                return work(replace(cohort, fold=None))

        work_ = Rows()
    else:
        assert work.folds
        work_ = work
    back = threads.limit(most)
    try:
        shares = compute_inline(asked, {"train": work_}, Held(data, asked.clients), chunk)
    finally:
        back()
    part = shares[0].partials[0]["delta"].sum
    refused = np.concatenate([piece.refused for piece in shares[0].pieces])
    return (None, 0, refused) if part is None else (part.settled().copy(), part.weight, refused)


FOLDS = [
    Mean(), Mean(weighted=False), Mean(step=2.0**-20), Mean(before=(clip(0.05),)), Mean(before=(clip(100.0),)),
    Mean(before=(clip(0.35),)),
    Coverage(), Coverage(before=(clip(0.05),)),
]  # fmt: skip


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("models", [1, 2])
def test_folding_where_rows_lie_gives_the_bits_of_folding_the_rows(fold, models):
    native, _ = nets(6, 20, 4)
    sizes = [5, 9, 0, 12, 30, 1, 7]
    rows = folded(native, sizes, {"delta": fold}, 1, folds=False, models=models)
    for most, chunk in ((1, None), (2, None), (5, 3), (3, 1)):
        ours = folded(native, sizes, {"delta": fold}, most, chunk, models=models)
        assert np.array_equal(ours[0], rows[0])
        assert ours[1] == rows[1]
        assert not ours[2].any()


def test_a_diverged_client_is_refused_and_changes_nothing_of_the_others():
    native, _ = nets(6, 20, 4)
    hot = Training(batch_size=4, epochs=3, lr=1e30)
    for folds in (True, False):
        total, weight, refused = folded(native, [5, 9, 8], {"delta": Mean()}, 2, training=hot, folds=folds)
        assert refused.all()
        assert (total, weight) == (None, 0)
    cool = Training(batch_size=4, steps=1, lr=0.1)
    spoilt = folded(native, [5, 9, 8], {"delta": Mean()}, 2, training=cool, spoil=1)
    rows = folded(native, [5, 9, 8], {"delta": Mean()}, 1, training=cool, spoil=1, folds=False)
    assert spoilt[2].tolist() == rows[2].tolist() == [False, True, False]
    assert spoilt[1] == rows[1] == 13
    assert np.array_equal(spoilt[0], rows[0])


def test_a_proximal_term_folds_where_rows_lie_and_a_control_variate_does_not():
    native, stacked = nets(6, 20, 4)
    local = (Proximal(0.3),)
    rows = folded(native, [5, 9, 8], {"delta": Mean()}, 1, folds=False, local=local)
    assert np.array_equal(folded(native, [5, 9, 8], {"delta": Mean()}, 2, local=local)[0], rows[0])
    assert not Train(native, Training(), (ControlVariate(),)).folds
    assert not Train(stacked, Training()).folds


def test_a_work_folds_only_when_a_plain_mean_is_all_that_is_wanted():
    native, _ = nets(6, 9, 4)
    work = Train(native, Training(batch_size=4))
    given = cohort(native, [5, 9])
    out = work(replace(given, fold=Mean(), asked=2))
    assert isinstance(out.leaves["delta"], Total)
    out = work(replace(given, fold=Mean(), asked=2, config={"reply": "model"}))
    assert out.leaves["model"].shape == (2, native.layout.size)
    out = work(replace(given, fold=Mean(weight_step=1e-30), asked=2))
    assert not isinstance(out.leaves["delta"], Total)


@given(
    sizes=st.lists(st.integers(0, 15), min_size=1, max_size=8),
    widths=st.lists(st.integers(1, 40), min_size=0, max_size=2),
    batch=st.integers(1, 9),
    most=st.integers(1, 4),
)
def test_a_clients_row_does_not_depend_on_its_neighbours_or_on_threads(sizes, widths, batch, most):
    native, stacked = nets(6, *widths, 4)
    given_, training = cohort(native, sizes), Training(batch_size=batch, epochs=2)
    back = threads.limit(most)
    try:
        whole = Train(native, training)(given_)
    finally:
        back()
    theirs = Train(stacked, training)(given_)
    near(whole.leaves["delta"], theirs.leaves["delta"], 1e-4)
    for i in range(len(sizes)):
        alone = Train(native, training)(given_.part(i, i + 1))
        assert np.array_equal(alone.leaves["delta"][0], whole.leaves["delta"][i])
        assert alone.metrics["loss"][0] == whole.metrics["loss"][i]


def test_a_job_gives_the_same_bits_with_any_number_of_workers_and_chunks():
    def final(**simulated):
        job = ff.Job(
            model=replace(ff.mlp(64, 32, 10), path="native"), data=ff.data.digits(clients=20),
            algorithm=ff.FedAvg(rounds=3, cohort=10), training=ff.Training(lr=0.3, batch_size=10),
            simulated=ff.Simulated(**simulated),
        )  # fmt: skip
        return job.run(runs=None, progress=False).model.vector

    first = final(workers=1)
    assert np.array_equal(final(workers=2), first)
    assert np.array_equal(final(workers=3, chunk=4), first)


@given(st.integers(1, 300), st.integers(1, 5), st.integers(0, 9))
def test_norms_add_up_in_64_lanes_whatever_the_number_of_rows(size, n, seed):
    rows = np.random.default_rng(seed).standard_normal((n, size)).astype(np.float32)
    for row, found in zip(rows, norms(rows), strict=True):
        lanes = [0.0] * 64
        for k, x in enumerate(row.tolist()):
            lanes[k % 64] += x * x
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
        assert found == np.sqrt(lanes[0])


@pytest.mark.parametrize("kind", ["sub-models", "clipped", "proximal", "mean"])
def test_a_job_ends_with_the_bits_of_one_whose_rows_are_folded_one_by_one(kind, monkeypatch):
    def final():
        net = replace(ff.mlp(64, 32, 10), path="native")
        data, fleet = ff.data.digits(clients=20), ff.fleet.phones()
        algorithm = {
            "sub-models": lambda: ff.HeteroFL(3, 10, view=ff.submodels(net, (1.0, 0.5)).view(assign=np.arange(20) % 2)),
            "clipped": lambda: ff.FedAvg(rounds=3, cohort=10, server=chain(clip(0.1), mean())),
            "proximal": lambda: ff.FedProx(rounds=3, cohort=10, mu=0.1),
            "mean": lambda: ff.FedAvg(rounds=3, cohort=10),
        }[kind]()
        job = ff.Job(
            model=net, data=data, algorithm=algorithm, training=ff.Training(lr=0.3, batch_size=10),
            simulated=ff.Simulated(fleet=fleet),
        )  # fmt: skip
        return job.run(runs=None, progress=False).model.vector

    totals = []
    monkeypatch.setattr(Gather, "take_total", watched(Gather.take_total, totals))
    ours = final()
    assert totals
    monkeypatch.setattr(Train, "folds", False)
    count = len(totals)
    assert np.array_equal(final(), ours)
    assert len(totals) == count


def watched(function, seen):
    def call(*args, **kwargs):
        seen.append(args)
        return function(*args, **kwargs)

    return call


def test_products_of_bfloat16_are_near_those_of_float32_and_keep_their_rows_apart():
    half = Training(batch_size=4, epochs=2, precision="bfloat16")
    if not core().half():
        with pytest.raises(UsageError, match="no products of bfloat16"):
            Train(nets(6, 33, 4)[0], half)
        return
    for widths in ((6, 33, 4), (6, 4), (6, 17, 50, 4)):
        native, _ = nets(*widths)
        given_ = cohort(native, SIZES)
        ours = Train(native, half)(given_).leaves["delta"]
        full = Train(native, replace(half, precision="float32"))(given_).leaves["delta"]
        assert 0 < np.abs(ours - full).max() < 0.05 * np.abs(full).max()
        for i in range(len(SIZES)):
            alone = Train(native, half)(given_.part(i, i + 1)).leaves["delta"][0]
            assert np.array_equal(alone, ours[i])


def test_bfloat16_is_refused_where_nothing_computes_in_it():
    with pytest.raises(UsageError, match="needs the compiled core"):
        Train(nets(6, 9, 4)[1], Training(precision="bfloat16"))
    with pytest.raises(UsageError, match="use 'float32' or 'bfloat16'"):
        Training(precision="half")


def summed(native, block, cap=2.0**40, weights=(5, 9), lr=0.1, step=2.0**-32):
    n, training = 2, Training(batch_size=4, epochs=2, lr=lr)
    keys = rng.keys(0, ("t",), np.arange(n))
    plan = make_plan(block, keys, training)
    start, row = native.init(0).vector[None], np.zeros(n, np.int64)
    rows = native.fit(start, row, block, plan, keys, training, lr, Drift())
    fold = Folding(step, cap, np.array(weights))
    return rows.params - start, native.fit(start, row, block, plan, keys, training, lr, Drift(), fold=fold)


def test_a_finite_delta_beyond_the_cap_over_its_weight_is_refused_and_one_within_is_not():
    native, _ = nets(6, 9, 4)
    delta, _ = summed(native, block([5, 9]))
    most = np.abs(delta).max(axis=1)
    _, fit = summed(native, block([5, 9]), cap=float(most[0]) * 5 * 1.01)
    assert fit.refused.tolist() == [False, bool(most[1] * 9 > most[0] * 5 * 1.01)]
    _, fit = summed(native, block([5, 9]), cap=float(most[0]) * 5 * 0.99)
    assert fit.refused[0]
    _, fit = summed(native, block([5, 9]), cap=float(most[1]) * 9 * 1.01, weights=(0, 9))
    assert fit.refused.tolist() == [False, False]


def test_what_a_client_had_added_before_it_was_refused_is_taken_back():
    native, _ = nets(6, 300, 4)
    delta, _ = summed(native, block([5, 9]))
    place = int(np.abs(delta[0]).argmax())
    assert place >= 7 * 300  # in the last layer, thousands of numbers behind the first
    most = float(np.abs(delta[0]).max()) * 5
    assert np.abs(delta[1]).max() < most
    _, fit = summed(native, block([5, 9]), cap=most * 0.999, weights=(5, 1))
    assert fit.refused.tolist() == [True, False]
    assert np.array_equal(fit.total, np.rint(delta[1].astype(np.float64) * 2.0**32).astype(np.int64))


@pytest.mark.parametrize("widths", [(6, 9, 4), (16, 4)])
def test_rows_that_lie_together_are_read_in_place_with_the_bits_of_copies(widths):
    native, _ = nets(*widths)
    data = block([5, 9], inputs=widths[0])
    together = Block({k: v[data.rows].copy() for k, v in data.columns.items()}, np.arange(14), data.offsets)
    before = together.columns["x"].copy()
    delta, fit = summed(native, data)
    other, again = summed(native, together)
    assert np.array_equal(delta, other)
    assert np.array_equal(fit.total, again.total)
    assert native.evaluate(native.init(0).vector[None], np.zeros(2, np.int64), together)["loss"].tolist() == (
        native.evaluate(native.init(0).vector[None], np.zeros(2, np.int64), data)["loss"].tolist()
    )
    assert np.array_equal(together.columns["x"], before)


def test_large_deltas_and_weights_add_up_exactly():
    native, _ = nets(6, 4)
    data = block([5, 9])
    data.columns["x"][:] *= 1e2
    weights = np.array([2**22 + 5, 2**22 + 9])
    delta, fit = summed(native, data, cap=2.0**62, weights=weights)
    assert np.abs(delta).max() * weights.max() > 2.0**51 * 2.0**-32
    whole = [np.rint(row.astype(np.float64) * 2.0**32).astype(object) for row in delta]
    exact = sum(int(w) * row for w, row in zip(weights, whole, strict=True))
    assert not fit.refused.any()
    assert [int(x) for x in fit.total] == [int(x) for x in exact]


def test_a_loss_that_is_infinite_is_refused_though_the_weights_are_finite():
    native, _ = nets(6, 4, loss="squared_error")
    data = block([5, 9], numbers=True)
    data.columns["y"][data.rows[:5]] = 1e20  # whose square float32 cannot hold
    delta, fit = summed(native, data, lr=0.0)
    assert not delta.any()
    assert np.isinf(fit.loss[0])
    assert fit.refused.tolist() == [True, False]


def test_a_label_of_minus_100_is_refused_by_a_declared_net():
    native, _ = nets(6, 4)
    data = block([5, 9])
    data.columns["y"][data.rows[6]] = -100
    with pytest.raises(UsageError, match="labels from -100"):
        summed(native, data)


def test_clients_of_several_versions_are_pulled_to_the_models_of_their_own():
    local = (Twin(0.7),)
    size = ff.mlp(6, 9, 4).layout.size
    state = np.random.default_rng(5).standard_normal((len(SIZES), size)).astype(np.float32) * 0.1
    fresh = np.array([False, True, False, False, True])
    ours, theirs = both(SIZES, Training(batch_size=4, epochs=2), local, models=3, state=state, fresh=fresh)
    near(ours.leaves["delta"], theirs.leaves["delta"])
    near(ours.state, theirs.state)


def test_a_mean_is_never_folded_in_place_at_the_places_of_a_sub_model():
    native, _ = nets(6, 9, 4)
    asked, _ = request(native, [5], {"delta": Mean()})
    work = Train(native, Training())
    assert folds_in_place(asked, work)
    at = np.arange(native.layout.size)
    again = Recall(np.zeros(1, np.int64), np.zeros(1, np.int64), None)
    for change in (
        {"index": at, "size": len(at)}, {"factor": np.ones(1)}, {"keep": True}, {"serials": np.zeros(1, np.int64)},
        {"recall": again}, {"reduce": {"delta": Mean(), "dc": Mean()}}, {"reduce": {"dc": Mean()}},
        {"reduce": {"delta": Mean(before=(clip(1.0), clip(1.0)))}}, {"reduce": {"delta": Mean(before=(abs,))}},
    ):  # fmt: skip
        assert not folds_in_place(replace(asked, segments=(replace(asked.segments[0], **change),)), work)
    covered = replace(asked.segments[0], reduce={"delta": Coverage()}, index=at, size=len(at))
    assert folds_in_place(replace(asked, segments=(covered,)), work)
    assert not folds_in_place(replace(asked, segments=(asked.segments[0], covered)), work)


def test_of_outputs_that_are_equal_the_first_is_the_answer():
    data = block([20, 31])
    for net in nets(6, 9, 4):
        found = net.evaluate(np.zeros((1, net.layout.size), np.float32), np.zeros(2, np.int64), data)["accuracy"]
        for i in range(2):
            labels = data.columns["y"][data.rows[data.offsets[i] : data.offsets[i + 1]]]
            assert found[i] == pytest.approx(np.mean(labels == 0))
            assert 0 < found[i] < 1
