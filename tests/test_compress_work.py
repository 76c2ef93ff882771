"""Compressed local training and short replies: lifts of nothing are nothing, idle settings change no bit, bytes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from work_cohorts import cohort

import fieldfare as ff
from fieldfare.aggregate import chain, clip, mean, momentum
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Coverage
from fieldfare.core.local import Frozen, LowRank, Pruned, Rounded, Sent
from fieldfare.work import compress
from fieldfare.work.inner import rounded
from fieldfare.work.net import Training
from fieldfare.work.submodel import submodels
from fieldfare.work.train import Train

DATA = ff.synthetic(clients=12, classes=5, features=16, seed=3, min_examples=12, log_mean=1.0, log_sigma=0.5)
NET = ff.mlp(16, 12, 8, 5)
SMALL = ff.mlp(5, 6, 4, 3)
TRAINING = Training(lr=0.1, batch_size=4, epochs=2)
PAIRS = (Rounded(4), LowRank(2), Pruned(0.3), Frozen(("0", "2.weight")))
pairs = pytest.mark.parametrize("pair", PAIRS, ids=lambda one: type(one).__name__)


def trained(algorithm, lr=0.1, model=NET, **more):
    training = ff.Training(lr=lr, batch_size=6, epochs=2)
    job = ff.Job(model, DATA, algorithm, training, simulated=ff.Simulated(workers=1), **more)
    return job.run(runs=None)


def wrapped(algorithm):
    return {
        "int8": ff.compress(algorithm, bits=8), "top-k": ff.compress(algorithm, share=0.1),
        "top-k of 8 bits": ff.compress(algorithm, share=0.1, bits=8), "int4, fed back": ff.compress(
            algorithm, bits=4, feedback=True), "quantised": ff.quantise(algorithm, bits=6),
        "low rank": ff.low_rank(algorithm, rank=2), "pruned": ff.prune(algorithm, share=0.5),
        "frozen": ff.freeze(algorithm, names=("0",)),
    }  # fmt: skip


every = pytest.mark.parametrize("name", list(wrapped(ff.FedAvg(3, 8))))


@every
def test_zero_training_lifts_to_exactly_zero(name):
    end = trained(wrapped(ff.FedAvg(3, 8))[name], lr=0.0).model
    assert end.vector.tobytes() == NET.init(0).vector.tobytes()


@every
def test_it_learns_and_is_not_plain(name):
    plain, found = trained(ff.FedAvg(20, 8)), trained(wrapped(ff.FedAvg(20, 8))[name])
    assert found.model.vector.tobytes() != plain.model.vector.tobytes()
    assert found.final["loss"] < trained(ff.FedAvg(1, 8), lr=0.0).final["loss"]


@pytest.mark.parametrize(
    "idle",
    [ff.compress(ff.FedAvg(3, 8)), ff.low_rank(ff.FedAvg(3, 8), rank=99), ff.prune(ff.FedAvg(3, 8), share=1.0)],
    ids=["all numbers in 32 bits", "full rank", "nothing pruned"],
)
def test_a_compressor_that_leaves_all_as_it_is_is_fedavg_bit_for_bit(idle):
    assert trained(idle).model.vector.tobytes() == trained(ff.FedAvg(3, 8)).model.vector.tobytes()


def test_int8_and_top_k_work_under_sub_models():
    family = submodels(NET, (1, 0.5))
    for algorithm in (ff.HeteroFL(3, 8, view=family.view()), ff.NestedFL(3, 8, view=family.view(), shares=(1, 0.5))):
        plain = trained(algorithm, model=family)
        for name in ("int8", "top-k", "quantised"):
            found = trained(wrapped(algorithm)[name], model=family)
            assert np.isfinite(found.final["loss"])
            assert found.model.vector.tobytes() != plain.model.vector.tobytes()


@given(st.integers(0, 999), st.sampled_from([1.0, 0.5, 0.1]), st.sampled_from([32, 8, 4, 2]))
@settings(max_examples=40, deadline=None)
def test_what_is_sent_and_what_is_left_make_the_delta(seed, share, bits):
    made = np.random.default_rng(seed)
    delta, seen = made.standard_normal((2, 3, 40), np.float32)
    keys = made.integers(0, 2**63, 3).astype(np.uint64)
    sent, left = compress.encoded(Sent(share, bits), delta, seen, keys)
    np.testing.assert_allclose(sent + left, delta + seen, atol=1e-6)
    assert ((sent != 0).sum(1) <= np.ceil(share * 40)).all()
    if bits < 32:
        levels = [len(np.unique(row)) for row in sent]
        assert max(levels) <= 2**bits
    alone = [compress.encoded(Sent(share, bits), delta[[i]], seen[[i]], keys[[i]])[0][0] for i in range(3)]
    assert np.array_equal(sent, np.stack(alone))


def test_the_largest_travel_and_the_first_of_equals():
    delta = np.array([[3.0, -4.0, 1.0, 1.0], [0.0, 1.0, -1.0, 1.0]], np.float32)
    sent, left = compress.encoded(Sent(0.5), delta, None, np.zeros(2, np.uint64))
    assert sent.tolist() == [[3.0, -4.0, 0.0, 0.0], [0.0, 1.0, -1.0, 0.0]]
    assert left.tolist() == [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]


def test_rounding_has_the_right_mean():
    delta = np.tile(np.array([[0.1, -0.37, 1.0, 0.61]], np.float32), (4000, 1))
    keys = np.random.default_rng(0).integers(0, 2**63, 4000).astype(np.uint64)
    sent, _ = compress.encoded(Sent(bits=3), delta, None, keys)
    assert len(np.unique(sent)) > 4
    np.testing.assert_allclose(sent.mean(0), delta[0], atol=0.02)  # four standard errors
    assert (sent[:, 2] == 1.0).all()


def test_what_was_left_out_travels_next_time():
    net, one = SMALL, cohort(SMALL, [6], state=np.zeros((1, SMALL.layout.size), np.float32), fresh=np.array([True]))
    plain = Train(net, TRAINING)(one).leaves["delta"]
    work = Train(net, TRAINING, (Sent(0.1),))
    first = work(one)
    assert first.state is not None
    np.testing.assert_allclose(first.leaves["delta"] + first.state, plain, atol=1e-7)
    again = work(cohort(net, [6], state=first.state, fresh=np.array([False])))
    np.testing.assert_allclose(again.leaves["delta"] + again.state, plain + first.state, atol=1e-7)
    assert work.slots(net.layout) == {"residual": net.layout.size}
    assert Train(net, TRAINING, (Sent(0.1, feedback=False),)).slots(net.layout) == {}


def test_feedback_makes_top_k_learn_what_it_would_forget():
    plain = trained(ff.FedAvg(30, 12)).final["loss"]
    gaps = [
        trained(ff.compress(ff.FedAvg(30, 12), share=0.02, feedback=feedback)).final["loss"] - plain
        for feedback in (True, False)
    ]
    assert 0 < gaps[0] < 0.7 * gaps[1]


@pairs
def test_what_is_not_trained_stays_and_rows_do_not_depend_on_others(pair):
    many = cohort(SMALL, [5, 9, 3, 7], versions=2)
    work = Train(SMALL, TRAINING, (pair,))
    whole = work(many)
    for i in range(4):
        alone = work(many.part(i, i + 1))
        assert np.array_equal(alone.leaves["delta"][0], whole.leaves["delta"][i])
        assert alone.metrics["loss"][0] == whole.metrics["loss"][i]
    delta = whole.leaves["delta"]
    if isinstance(pair, Pruned):
        masks = np.stack([compress.pruned(model, pair.share) for model in many.models])
        assert (delta[~masks[many.row]] == 0).all()
        assert masks.sum(1).tolist() == [int(np.ceil(0.3 * SMALL.layout.size))] * 2
    if isinstance(pair, Frozen):
        mask = SMALL.layout.mask(pair.names)
        assert (delta[:, mask] == 0).all()
        assert (delta[:, ~mask] != 0).any()
        plain = Train(SMALL, TRAINING)(many).leaves["delta"]
        assert not np.array_equal(plain[:, ~mask], delta[:, ~mask])


def test_factors_of_a_matrix_of_that_rank_are_that_matrix_and_their_delta_is_of_low_rank():
    net = ff.mlp(6, 5, 4)
    small = compress.factored(net, 2)
    assert [(one.inputs, one.outputs) for one in small.program.layers] == [(6, 2), (2, 5), (5, 2), (2, 4)]
    start = net.init(0).vector
    low = compress.product(net, small, compress.factors(net, small, start))
    again = compress.product(net, small, compress.factors(net, small, low))
    np.testing.assert_allclose(again, low, atol=1e-6)
    for layer in net.program.layers:
        shape = layer.outputs, layer.inputs
        u, s, v = np.linalg.svd(start[layer.weight].reshape(shape), full_matrices=False)
        np.testing.assert_allclose(low[layer.weight].reshape(shape), u[:, :2] * s[:2] @ v[:2], atol=1e-5)
        assert np.array_equal(low[layer.bias], start[layer.bias])
    delta = Train(SMALL, TRAINING, (LowRank(1),))(cohort(SMALL, [8])).leaves["delta"][0]
    first = SMALL.program.layers[0]
    assert np.linalg.matrix_rank(delta[first.weight].reshape(first.outputs, first.inputs), tol=1e-5) <= 2


def test_both_factors_of_a_frozen_matrix_stay_while_others_train():
    net = ff.mlp(6, 5, 4, 3)
    small = compress.factored(net, 2)
    shapes = dict(zip(small.layout.names, small.layout.shapes, strict=True))
    parts = [shapes[name] for name in compress.in_factors(net, small, ("2.weight",))]
    assert parts == [(2, 5), (4, 2)]
    assert [shapes[name] for name in compress.in_factors(net, small, ("2",))] == [(2, 5), (4, 2), (4,)]
    declared = LowRank(2), Frozen(("2.weight",))
    found = float(Train(net, local=declared).cost(np.array([10]), net.layout, {}).bytes_up)
    assert found == 4.0 * (small.layout.size - 2 * 5 - 4 * 2)


def test_gradients_are_taken_at_rounded_weights():
    net, bits = SMALL, 3
    one = cohort(net, [4])
    training = Training(lr=0.1, batch_size=4, steps=1)
    start = rounded(one.models, [where for _, where, _ in net.layout.items()], bits)
    from dataclasses import replace

    plain = Train(net, training)(replace(one, models=start)).leaves["delta"]
    np.testing.assert_allclose(Train(net, training, (Rounded(bits),))(one).leaves["delta"], plain, atol=1e-7)
    two = Training(lr=0.1, batch_size=4, steps=2)
    found = Train(net, two, (Rounded(bits),))(one).leaves["delta"]
    middle = start + plain
    at = rounded(middle, [where for _, where, _ in net.layout.items()], bits)
    from fieldfare.work.plan import make_plan

    plan = make_plan(one.data, one.keys, two)
    rest = one.data.rows[[]], plan.rows[4:8]
    data = replace(one.data, rows=rest[1])
    ordered = Training(lr=0.1, batch_size=4, steps=1, shuffle=False)
    second = Train(net, ordered)(replace(one, models=at, data=data)).leaves["delta"]
    np.testing.assert_allclose(found, plain + second, atol=1e-6)


def test_bytes_are_those_that_travel():
    size, sizes = NET.layout.size, np.array([10])

    def cost(*local):
        found = Train(NET, local=local).cost(sizes, NET.layout, {})
        return float(found.bytes_down), float(found.bytes_up)

    ten = int(np.ceil(0.1 * size))
    low = compress.factored(NET, 2).layout.size
    assert cost() == (4.0 * size, 4.0 * size)
    assert cost(Sent(bits=8)) == (4.0 * size, size + 4.0)
    assert cost(Sent(0.1)) == (4.0 * size, 4.0 * ten + min(32 * ten, size) / 8)
    assert cost(Sent(0.01)) == (4.0 * size, 8.0 * np.ceil(0.01 * size))
    assert cost(Rounded(8)) == (size + 4.0 * 6, 4.0 * size)
    assert cost(LowRank(2)) == (4.0 * low, 4.0 * low)
    assert cost(Frozen(("0",))) == (4.0 * size, 4.0 * (size - 12 * 17))
    half = int(np.ceil(0.5 * size))
    assert cost(Pruned(0.5)) == (4.0 * half + size / 8, 4.0 * half)
    assert cost(Pruned(0.5), Sent(bits=8))[1] == half + 4.0
    for order in (1, -1):  # whichever is put around the other
        assert cost(*(Pruned(0.5), Rounded(8))[::order]) == (half + 4.0 * 6 + size / 8, 4.0 * half)
        assert cost(*(LowRank(2), Rounded(8))[::order])[0] == low + 4.0 * 9
    assert trained(ff.compress(ff.FedAvg(2, 8), bits=8)).summary["bytes_up"] == 16 * (size + 4)


@pytest.mark.parametrize("around", [partial(ff.prune, share=0.5), ff.masked_heads])
@pytest.mark.parametrize(("method", "weight_step"), [(ff.FedAvg, 0.5), (ff.FedBuff, 1.0)])
def test_a_mean_becomes_coverage_of_the_same_rows_votes_and_steps(around, method, weight_step):
    server = chain(clip(0.5), mean(weighted=False, step=2.0**-20, weight_step=weight_step), momentum(0.9))
    made = around(method(2, 8, server=server)).server
    assert made.fold == Coverage(False, 2.0**-20, weight_step, server.fold.before)
    assert made.after == server.after


def test_what_has_no_meaning_is_refused_in_one_line():
    with pytest.raises(UsageError, match="it keeps 'c' in client state"):
        ff.compress(ff.Scaffold(2, 4), share=0.1)
    with pytest.raises(UsageError, match="wrap it once"):
        ff.quantise(ff.quantise(ff.FedAvg(2, 4)))
    with pytest.raises(UsageError, match="give FedAvg"):
        ff.prune(ff.FedAsync(2, 4), share=0.5)
    for bad, said in ((Sent(0.0), "a share in"), (Rounded(1), "use 2 to 16"), (LowRank(0), "a rank >= 1")):
        with pytest.raises(UsageError, match=said):
            Train(NET, local=(bad,))
    with pytest.raises(UsageError, match="no parameter is called"):
        Train(NET, local=(Frozen(("9",)),))
