"""Local training with the client side of every algorithm, against each paper written out for one client."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from work_cohorts import cohort, pick

from fieldfare.core.errors import UsageError
from fieldfare.core.local import ControlVariate, Dynamic, Fair, Normalised, Personal, Proximal, Twin
from fieldfare.work.dense import mlp
from fieldfare.work.net import Drift, Training
from fieldfare.work.plan import make_plan
from fieldfare.work.train import Train, step_norm

NET = mlp(5, 6, 3)
P = NET.layout.size
SIZES = [9, 4, 0, 12]
PLAIN = Training(lr=0.1, batch_size=4, epochs=2)
MADE = np.random.default_rng(9).standard_normal((4, P), dtype=np.float32) * np.float32(0.1)


def with_state(whole, rows, fresh=(False, True, False, False)):
    rows = rows.copy()
    rows[np.array(fresh)] = np.nan
    return replace(whole, state=rows, fresh=np.array(fresh))


def new(whole, size=P):
    return replace(whole, state=np.full((whole.n, size), np.nan, np.float32), fresh=np.ones(whole.n, np.bool_))


def ends(whole, training, drift=None, start=None, row=None, keys=None):
    keys = whole.keys if keys is None else keys
    plan = make_plan(whole.data, keys, training)
    start, row = (whole.models, whole.row) if start is None else (start, row)
    return NET.fit(start, row, whole.data, plan, keys, training, training.lr, drift or Drift())


def zeroed(whole):
    return np.where(whole.fresh[:, None], np.float32(0), whole.state)


def test_the_delta_is_end_minus_start_and_the_weight_the_examples():
    whole = cohort(NET, SIZES, versions=2)
    out = Train(NET, PLAIN)(whole)
    fit = ends(whole, PLAIN)
    np.testing.assert_array_equal(out.leaves["delta"], fit.params - whole.models[whole.row])
    assert out.weight.tolist() == [9.0, 4.0, 0.0, 12.0]
    np.testing.assert_array_equal(out.metrics["loss"], fit.loss)
    assert set(out.leaves) == {"delta"}
    assert out.state is None
    assert not out.leaves["delta"][2].any()


def test_config_overrides_steps_epochs_and_learning_rate_and_the_schedule_reads_the_round():
    whole = cohort(NET, [9, 4])
    for config, training in [
        ({"steps": 5}, replace(PLAIN, steps=5)),
        ({"epochs": 3}, replace(PLAIN, epochs=3)),
        ({"lr": 0.03}, replace(PLAIN, lr=0.03)),
        ({"round": 3}, replace(PLAIN, lr=0.1 / np.sqrt(3.0))),
    ]:
        told = replace(PLAIN, schedule="inverse_sqrt") if "round" in config else PLAIN
        out = Train(NET, told)(replace(whole, config=config))
        np.testing.assert_array_equal(out.leaves["delta"], Train(NET, training)(whole).leaves["delta"])


def test_fedprox_pulls_towards_the_model_sent():
    whole = cohort(NET, SIZES, versions=2)
    out = Train(NET, PLAIN, (Proximal(0.7),))(whole)
    fit = ends(whole, PLAIN, Drift(mu=0.7, ref=whole.models))
    np.testing.assert_array_equal(out.leaves["delta"], fit.params - whole.models[whole.row])
    free = Train(NET, PLAIN)(whole).leaves["delta"]
    assert (np.linalg.norm(out.leaves["delta"][[0, 3]], axis=1) < np.linalg.norm(free[[0, 3]], axis=1)).all()


@pytest.mark.parametrize("idle", [Proximal(0.0), Twin(0.0), Dynamic(0.0)])
def test_a_declaration_of_zero_is_fedavg_to_the_bit(idle):
    whole = cohort(NET, SIZES)
    plain = Train(NET, PLAIN)(whole).leaves["delta"]
    assert Train(NET, PLAIN, (idle,))(new(whole)).leaves["delta"].tobytes() == plain.tobytes()
    seen = with_state(whole, np.zeros((4, P), np.float32))
    assert Train(NET, PLAIN, (idle,))(seen).leaves["delta"].tobytes() == plain.tobytes()


def test_scaffold_is_option_two_of_the_paper():
    c = MADE[3]
    whole = replace(with_state(cohort(NET, SIZES), MADE), inputs={"c": c})
    out = Train(NET, PLAIN, (ControlVariate(),))(whole)
    c_i = zeroed(whole)
    y = ends(whole, PLAIN, Drift(c - c_i)).params
    steps = np.array([6, 2, 0, 6])
    x = whole.models[whole.row]
    np.testing.assert_array_equal(out.leaves["delta"], y - x)
    for i in (0, 1, 3):
        np.testing.assert_allclose(out.state[i], c_i[i] - c + (x[i] - y[i]) / (steps[i] * 0.1), atol=1e-6)
    np.testing.assert_allclose(out.leaves["dc"], out.state - c_i, atol=1e-6)
    assert not out.leaves["dc"][2].any()


def test_scaffolds_new_variate_is_the_mean_gradient_along_the_path():
    whole = replace(new(cohort(NET, [12])), inputs={"c": np.zeros(P, np.float32)})
    one_step = Training(lr=0.1, batch_size=12)
    out = Train(NET, one_step, (ControlVariate(),))(whole)
    np.testing.assert_allclose(out.state[0], -out.leaves["delta"][0] / 0.1, rtol=1e-6)


def test_feddyn_adds_its_linear_and_quadratic_terms_and_keeps_h():
    whole = with_state(cohort(NET, SIZES), MADE)
    out = Train(NET, PLAIN, (Dynamic(0.4),))(whole)
    h = zeroed(whole)
    end = ends(whole, PLAIN, Drift(-h, 0.4)).params
    np.testing.assert_array_equal(out.leaves["delta"], end - whole.models[whole.row])
    np.testing.assert_allclose(out.state, h - 0.4 * out.leaves["delta"], atol=1e-7)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([0.0, 0.3]),
)
def test_fednovas_norm_is_the_closed_form_of_the_paper(steps, rho, mu):
    tau = np.array(steps)
    got = step_norm(tau, 0.1, rho, False, mu if rho == 0 else 0.0)
    if rho:
        expected = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
    elif mu:
        expected = (1 - (1 - 0.1 * mu) ** tau) / (0.1 * mu)
    else:
        expected = tau
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_fednovas_norm_is_how_far_a_constant_gradient_moves_the_model(mu, nesterov):
    lr, rho, w, v = 0.1, 0.8, 0.0, 0.0
    for _ in range(7):
        g = 1.0 + mu * w
        v = rho * v + g
        w -= lr * (g + rho * v if nesterov else v)
    assert step_norm(np.array([7]), lr, rho, nesterov, mu)[0] == pytest.approx(-w / lr)


def test_fednova_sends_the_delta_per_step_and_the_steps():
    whole = cohort(NET, SIZES)
    out = Train(NET, PLAIN, (Normalised(),))(whole)
    plain = Train(NET, PLAIN)(whole).leaves["delta"]
    assert out.leaves["tau"].tolist() == [[6.0], [2.0], [0.0], [6.0]]
    np.testing.assert_allclose(out.leaves["delta"] * np.maximum(out.leaves["tau"], 1), plain, rtol=1e-5)


def test_fednovas_norm_counts_momentum_and_the_proximal_term():
    training = replace(PLAIN, momentum=0.9)
    out = Train(NET, training, (Normalised(), Proximal(0.2)))(cohort(NET, [12]))
    assert out.leaves["tau"][0, 0] == np.float32(step_norm(np.array([6]), 0.1, 0.9, False, 0.2)[0]) > 12
    plain = Train(NET, training, (Proximal(0.2),))(cohort(NET, [12])).leaves["delta"]
    np.testing.assert_allclose(out.leaves["delta"] * out.leaves["tau"], plain, rtol=1e-5)


def test_qffl_scales_by_the_loss_of_the_model_sent():
    whole, q = cohort(NET, [9, 4, 12], versions=2), 2.0
    out = Train(NET, PLAIN, (Fair(q),))(whole)
    delta = Train(NET, PLAIN)(whole).leaves["delta"].astype(np.float64)
    loss = NET.evaluate(whole.models, whole.row, whole.data)["loss"] + 1e-10
    np.testing.assert_allclose(out.leaves["delta"], loss[:, None] ** q * delta / 0.1, rtol=1e-5)
    square = ((delta / 0.1) ** 2).sum(axis=1)
    np.testing.assert_allclose(out.leaves["h"][:, 0], q * loss ** (q - 1) * square + loss**q / 0.1, rtol=1e-5)


def test_qffl_with_q_of_zero_sends_plain_deltas_over_the_learning_rate():
    whole = cohort(NET, SIZES)
    out = Train(NET, PLAIN, (Fair(0.0),))(whole)
    assert out.leaves["h"].tolist() == [[10.0]] * 4
    plain = Train(NET, PLAIN)(whole).leaves["delta"]
    np.testing.assert_allclose(out.leaves["delta"] / 10.0, plain, rtol=1e-6, atol=1e-12)


def test_fedper_keeps_the_personal_part_on_the_device():
    mask = NET.layout.mask(["2"])
    whole = with_state(cohort(NET, SIZES, versions=2), MADE[:, mask])
    out = Train(NET, PLAIN, (Personal(("2",)),))(whole)
    start = whole.models[whole.row].copy()
    for i in (0, 2, 3):
        start[i, mask] = MADE[i, mask]
    end = ends(whole, PLAIN, start=start, row=np.arange(4)).params
    np.testing.assert_array_equal(out.state, end[:, mask])
    assert not out.leaves["delta"][:, mask].any()
    np.testing.assert_array_equal(out.leaves["delta"][:, ~mask], (end - whole.models[whole.row])[:, ~mask])


def test_fedrep_trains_the_head_alone_and_then_the_body_alone():
    mask = NET.layout.mask(["2"])
    whole = new(cohort(NET, SIZES), int(mask.sum()))
    out = Train(NET, PLAIN, (Personal(("2",), head_epochs=3),))(whole)
    plain = Train(NET, PLAIN, (Personal(("2",)),))(whole)
    assert not np.array_equal(out.state, plain.state)
    sent = whole.models[whole.row]
    head = sent.copy()
    head[:, mask] = out.state
    body = ends(whole, PLAIN, Drift(mask=~mask), head, np.arange(4)).params
    np.testing.assert_array_equal(out.leaves["delta"], (body - sent) * ~mask)
    # the head's loss must have gone down with the body as it was sent
    before = NET.evaluate(sent, np.arange(4), whole.data)["loss"]
    after = NET.evaluate(head, np.arange(4), whole.data)["loss"]
    assert (after[[0, 1, 3]] < before[[0, 1, 3]]).all()


def test_proximal_pulls_personal_training_to_the_model_sent_not_to_the_own_start():
    mask = NET.layout.mask(["2"])
    whole = with_state(cohort(NET, SIZES), MADE[:, mask] + 1)
    out = Train(NET, PLAIN, (Personal(("2",)), Proximal(0.5)))(whole)
    start = whole.models[whole.row].copy()
    for i in (0, 2, 3):
        start[i, mask] = MADE[i, mask] + 1
    end = ends(whole, PLAIN, Drift(mu=0.5, ref=whole.models[whole.row]), start, np.arange(4)).params
    np.testing.assert_array_equal(out.state, end[:, mask])


def test_ditto_trains_a_twin_and_leaves_the_global_training_alone():
    whole = with_state(cohort(NET, SIZES, versions=2), MADE)
    out = Train(NET, PLAIN, (Twin(0.5),))(whole)
    assert out.leaves["delta"].tobytes() == Train(NET, PLAIN)(whole).leaves["delta"].tobytes()
    sent = whole.models[whole.row]
    gone = np.linalg.norm(out.state - sent, axis=1)
    assert gone[1] > 0
    hard = Train(NET, PLAIN, (Twin(5.0),))(whole)
    assert (np.linalg.norm(hard.state - sent, axis=1)[[0, 1, 3]] < gone[[0, 1, 3]]).all()
    np.testing.assert_array_equal(out.state[2], MADE[2])
    fresh = Train(NET, PLAIN, (Twin(0.5),))(new(whole))
    np.testing.assert_array_equal(fresh.state[2], sent[2])
    np.testing.assert_array_equal(fresh.state[1], out.state[1])


def test_dittos_twin_sees_the_examples_in_an_order_of_its_own():
    whole = new(cohort(NET, [30]))
    free = Train(NET, PLAIN, (Twin(0.0),))(whole)
    assert not np.allclose(free.state, whole.models + free.leaves["delta"], atol=1e-5)
    in_one_batch = replace(PLAIN, batch_size=30, shuffle=False)
    same = Train(NET, in_one_batch, (Twin(0.0),))(whole)
    np.testing.assert_allclose(same.state, whole.models + same.leaves["delta"], atol=1e-6)


POINTS = np.array([1.0, -2.0, 0.5], np.float32)
BIAS = mlp(2, 1, loss="squared_error")
"""With inputs of zero a client's loss is (b - its point)**2 in the bias b alone: a quadratic of curvature 2."""


def on_points(sent, **more):
    whole = cohort(BIAS, [4] * 3, **more)
    whole.data.columns["x"][:] = 0.0
    whole.data.columns["y"][whole.data.rows] = np.repeat(POINTS, 4)[:, None]
    models = np.array([[0.3, -0.7, sent]], np.float32)
    return replace(whole, models=models, row=np.zeros(3, np.int64))


def steps_to(rest, start, rate, count):
    """Where `count` steps of gradient descent end that shrink the way to `rest` by `1 - rate` each."""
    return rest + (1.0 - rate) ** count * (start - rest)


def test_dittos_twin_is_pulled_to_the_model_sent_at_every_ask():
    lr, lam, epochs = 0.1, 1.5, 3
    train = Train(BIAS, Training(lr=lr, batch_size=4, epochs=epochs), (Twin(lam),))
    first, second = 0.2, 4.0
    one = train(new(on_points(first), 3))
    two = train(replace(on_points(second), state=one.state, fresh=np.zeros(3, np.bool_)))
    twin = np.full(3, first)
    for sent, out in ((first, one), (second, two)):
        rest = (2.0 * POINTS + lam * sent) / (2.0 + lam)
        twin = steps_to(rest, twin, lr * (2.0 + lam), epochs)
        np.testing.assert_allclose(out.state[:, 2], twin, atol=1e-5)
        np.testing.assert_allclose(
            out.leaves["delta"][:, 2], steps_to(POINTS, sent, lr * 2.0, epochs) - sent, atol=1e-5
        )


@pytest.mark.parametrize("head_epochs", [1, 2, 5])
def test_fedreps_head_takes_the_epochs_that_are_its_own(head_epochs):
    lr = 0.1
    train = Train(BIAS, Training(lr=lr, batch_size=4, epochs=3), (Personal(("0.bias",), head_epochs),))
    start = 0.2
    out = train(new(on_points(start), 1))
    head = steps_to(POINTS, np.full(3, start), lr * 2.0, head_epochs)  # and not one more with the body
    np.testing.assert_allclose(out.state[:, 0], head, atol=1e-5)
    again = train(replace(on_points(-9.0), state=out.state, fresh=np.zeros(3, np.bool_)))
    np.testing.assert_allclose(again.state[:, 0], steps_to(POINTS, head, lr * 2.0, head_epochs), atol=1e-5)


LOCALS = [
    (),
    (Proximal(0.3),),
    (ControlVariate(),),
    (Dynamic(0.3),),
    (Normalised(), Proximal(0.1)),
    (Fair(1.5),),
    (Personal(("2",)),),
    (Personal(("0.bias",), 2), Proximal(0.2)),
    (Twin(0.3),),
]


@given(
    st.sampled_from(LOCALS),
    st.lists(st.integers(0, 13), min_size=2, max_size=5),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.data(),
)
@settings(deadline=None)
def test_what_a_client_sends_and_keeps_depends_on_itself_only(local, sizes, fresh, draw):
    work = Train(NET, PLAIN, local)
    slots = work.slots(NET.layout)
    whole = replace(cohort(NET, sizes, versions=2), inputs={"c": MADE[0]})
    if slots:
        (size,) = slots.values()
        rows = np.random.default_rng(1).standard_normal((len(sizes), size), dtype=np.float32)
        whole = with_state(whole, rows, tuple(fresh[: len(sizes)]))
    order = draw.draw(st.permutations(range(len(sizes))))[: draw.draw(st.integers(1, len(sizes)))]
    every, some = work(whole), work(pick(whole, order))
    assert set(every.leaves) == set(some.leaves)
    for leaf, rows in every.leaves.items():
        assert rows[order].tobytes() == some.leaves[leaf].tobytes()
        assert rows.dtype == np.float32
    assert (every.state is None) == (not slots)
    if every.state is not None:
        assert every.state.shape == (len(sizes), *slots.values())
        assert every.state[order].tobytes() == some.state.tobytes()
    assert every.metrics["loss"][order].tobytes() == some.metrics["loss"].tobytes()


def test_each_declaration_names_its_slot():
    named = {one: Train(NET, PLAIN, local).slots(NET.layout) for one, local in enumerate(LOCALS)}
    assert named[0] == named[1] == named[4] == named[5] == {}
    assert (named[2], named[3], named[8]) == ({"c": P}, {"h": P}, {"twin": P})
    assert named[6] == {"personal": 6 * 3 + 3}
    assert named[7] == {"personal": 6}


def test_cost_counts_the_examples_that_are_really_taken():
    sizes = np.array([9, 4, 0, 12])
    flops = NET.flops()
    plain = Train(NET, PLAIN).cost(sizes, NET.layout, {})
    assert plain.flops.tolist() == [flops * 2 * n for n in sizes]
    assert (plain.bytes_down, plain.bytes_up) == (4 * P, 4 * P)
    assert Train(NET, PLAIN).cost(sizes, NET.layout, {"steps": 4}).flops.tolist() == [
        flops * n for n in (4 + 4 + 1 + 4, 16, 0, 16)
    ]
    scaffold = Train(NET, PLAIN, (ControlVariate(),)).cost(sizes, NET.layout, {})
    assert (scaffold.bytes_down, scaffold.bytes_up) == (8 * P, 8 * P)
    for number in (Normalised(), Fair(0.0), Fair(1.0)):  # tau, and q-FedAvg's h, travel up beside the delta
        cost = Train(NET, PLAIN, (number,)).cost(sizes, NET.layout, {})
        assert (cost.bytes_down, cost.bytes_up) == (4 * P, 4 * P + 4)
    assert (Train(NET, PLAIN, (Twin(1.0),)).cost(sizes, NET.layout, {}).flops == 2 * plain.flops).all()
    rep = Train(NET, PLAIN, (Personal(("2",), 3),)).cost(sizes, NET.layout, {})
    assert rep.flops.tolist() == [flops * 5 * n for n in sizes]


@pytest.mark.parametrize(
    ("training", "local", "says"),
    [
        (Training(momentum=0.9), (ControlVariate(),), "option II"),
        (Training(optimizer="adam"), (ControlVariate(),), "option II"),
        (Training(optimizer="adam"), (Normalised(),), "use optimizer='sgd'"),
        (PLAIN, (ControlVariate(), Dynamic(0.1)), "each keep client state"),
        (PLAIN, (Twin(0.1), Personal(("2",))), "each keep client state"),
        (PLAIN, (Proximal(0.1), Proximal(0.2)), "twice"),
        (PLAIN, (Fair(1.0), Normalised()), "both rescale"),
        (PLAIN, (Fair(-1.0),), "q >= 0"),
        (PLAIN, (Personal(("head",)),), "no parameter is called 'head'"),
    ],
)
def test_declarations_that_cannot_work_together_are_refused_when_declared(training, local, says):
    with pytest.raises(UsageError, match=says):
        Train(NET, training, local)


def test_what_an_ask_lacks_is_said_in_one_line():
    whole = cohort(NET, SIZES)
    cases = [
        (Train(NET, PLAIN, (ControlVariate(),)), new(whole), "needs the server's c"),
        (Train(NET, PLAIN, (Dynamic(0.1),)), whole, r"Run\(state='h'\)"),
        (Train(NET, PLAIN, (Dynamic(0.1),)), with_state(whole, MADE[:, :7]), "7 numbers per client"),
        (Train(mlp(5, 3), PLAIN), whole, "came to a net of 18"),
    ]
    for work, asked, says in cases:
        with pytest.raises(UsageError, match=says) as refused:
            work(asked)
        assert "\n" not in str(refused.value)


def test_a_client_that_diverges_is_reported_by_its_loss_and_spoils_no_other():
    whole = cohort(NET, [9, 4, 9])
    x = whole.data.columns["x"].copy()
    x[whole.data.rows[whole.data.offsets[1]]] = np.inf
    spoiled = replace(whole, data=replace(whole.data, columns={**whole.data.columns, "x": x}))
    good, out = Train(NET, PLAIN)(whole), Train(NET, PLAIN)(spoiled)
    assert np.isfinite(out.metrics["loss"]).tolist() == [True, False, True]
    assert out.leaves["delta"][[0, 2]].tobytes() == good.leaves["delta"][[0, 2]].tobytes()
