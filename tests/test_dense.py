"""Dense networks in NumPy: gradients, optimisers, row independence, evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from work_cohorts import block, cohort, pick

from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.work import layers, stacked
from fieldfare.work.dense import DenseNet, flatten, linear, mlp, relu, sigmoid, tanh
from fieldfare.work.net import Drift, Training
from fieldfare.work.plan import make_plan

F8 = np.float64
NETS = {
    "logistic": mlp(5, 3),
    "relu": mlp(5, 7, 4, 3),
    "tanh": mlp(5, 6, 3, activation=tanh()),
    "numbers": DenseNet((linear(5, 6, bias=False), sigmoid(), linear(6, 2)), loss="squared_error"),
    "one output": mlp(5, 4, 1, loss="squared_error"),
    "no bias at the end": DenseNet((linear(5, 4), relu(), linear(4, 3, bias=False))),
}


def fitted(net, whole, training, drift=None, lr=None):
    plan = make_plan(whole.data, whole.keys, training)
    drift = Drift() if drift is None else drift
    return net.fit(whole.models, whole.row, whole.data, plan, whole.keys, training, lr or training.lr, drift)


def loss_and_gradient(net, w, x, y):
    """The textbook in float64: mean loss of one batch, and its gradient with respect to the vector."""
    g = np.zeros_like(w)
    hs = [x.astype(F8)]
    for layer in net.program.layers:
        z = hs[-1] @ w[layer.weight].reshape(layer.outputs, layer.inputs).T
        if layer.bias is not None:
            z = z + w[layer.bias]
        act = {"relu": lambda v: np.maximum(v, 0), "tanh": np.tanh, "sigmoid": lambda v: 1 / (1 + np.exp(-v))}
        hs.append(act.get(layer.activation, lambda v: v)(z))
    z, b = hs[-1], len(x)
    if net.loss == "cross_entropy":
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        loss = -np.log(p[np.arange(b), y]).mean()
        d = (p - np.eye(z.shape[1])[y]) / b
    else:
        loss = ((z - y) ** 2).mean()
        d = 2 * (z - y) / z.size
    for at in range(len(net.program.layers) - 1, -1, -1):
        layer, h = net.program.layers[at], hs[at]
        g[layer.weight] = (d.T @ h).ravel()
        if layer.bias is not None:
            g[layer.bias] = d.sum(0)
        if at:
            below = net.program.layers[at - 1].activation
            slope = {"relu": h > 0, "tanh": 1 - h * h, "sigmoid": h * (1 - h)}[below]
            d = (d @ w[layer.weight].reshape(layer.outputs, layer.inputs)) * slope
    return loss, g


def textbook(net, whole, training, drift, lr):
    """Every client by itself, step by step, in float64, in the order of the seam."""
    plan = make_plan(whole.data, whole.keys, training)
    ends, losses = [], []
    for i in range(whole.n):
        w = whole.models[whole.row[i]].astype(F8)
        ref = w.copy() if drift.ref is None else drift.ref[whole.row[i]].astype(F8)
        mask = 1.0 if drift.mask is None else drift.mask.astype(F8)
        m, v, seen = np.zeros_like(w), np.zeros_like(w), []
        bounds = plan.step_bounds(i)
        for k in range(int(plan.steps[i])):
            rows = plan.rows[bounds[k] : bounds[k + 1]]
            loss, g = loss_and_gradient(net, w, whole.data.columns["x"][rows], whole.data.columns["y"][rows])
            seen.append(loss)
            g = g * mask
            if training.clip_norm is not None:
                g = g * min(1.0, training.clip_norm / (np.linalg.norm(g) + 1e-6))
            g = mask * (g + training.weight_decay * w + (0 if drift.a is None else drift.a[i]) + drift.mu * (w - ref))
            if training.optimizer == "adam":
                b1, b2 = training.betas
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
                w = w - lr * m / (1 - b1 ** (k + 1)) / (np.sqrt(v / (1 - b2 ** (k + 1))) + training.eps)
                continue
            m = training.momentum * m + g
            w = w - lr * (g + training.momentum * m if training.nesterov else m)
        ends.append(w)
        losses.append(np.mean(seen) if seen else 0.0)
    return np.array(ends), np.array(losses)


@pytest.mark.parametrize("name", NETS)
def test_the_textbook_gradient_agrees_with_finite_differences(name):
    net = NETS[name]
    data = block([9], 5, net.program.outputs, net.loss == "squared_error").client(0)
    w = net.init(4).vector.astype(F8)
    _, g = loss_and_gradient(net, w, data["x"], data["y"])
    for at in range(len(w)):
        step = np.zeros_like(w)
        step[at] = 1e-6
        up, down = (loss_and_gradient(net, w + s, data["x"], data["y"])[0] for s in (step, -step))
        assert g[at] == pytest.approx((up - down) / 2e-6, abs=1e-7)


@pytest.mark.parametrize("name", NETS)
def test_training_in_stacks_is_the_textbook_within_rounding(name):
    net, training = NETS[name], Training(lr=0.2, batch_size=4, epochs=2)
    whole = cohort(net, [9, 4, 0, 1, 12], versions=2)
    got = fitted(net, whole, training)
    ends, losses = textbook(net, whole, training, Drift(), 0.2)
    np.testing.assert_allclose(got.params, ends, atol=2e-6)
    np.testing.assert_allclose(got.loss, losses, rtol=1e-5)


OPTIONS = {
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "weight decay": {"weight_decay": 0.1},
    "clipping": {"clip_norm": 0.05},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "all of sgd": {"momentum": 0.5, "weight_decay": 0.02, "clip_norm": 0.2},
    "fixed steps": {"steps": 7},
    "adam, fixed steps": {"optimizer": "adam", "lr": 0.01, "steps": 7, "weight_decay": 0.1},
}


@pytest.mark.parametrize("drifting", [False, True])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_optimiser_and_drift_is_the_textbook_within_rounding(option, drifting):
    net = NETS["relu"]
    training = Training(**{"lr": 0.1, "batch_size": 4, "epochs": 2, **OPTIONS[option]})
    whole = cohort(net, [9, 4, 1, 12], versions=2)
    drift = Drift()
    if drifting:
        made = np.random.default_rng(2)
        drift = Drift(
            (0.1 * made.standard_normal((whole.n, net.layout.size))).astype(np.float32),
            0.3,
            made.standard_normal((2, net.layout.size)).astype(np.float32),
            made.random(net.layout.size) < 0.7,
        )
    got = fitted(net, whole, training, drift)
    ends, losses = textbook(net, whole, training, drift, training.lr)
    np.testing.assert_allclose(got.params, ends, atol=5e-5 if "adam" in option else 4e-6)
    np.testing.assert_allclose(got.loss, losses, rtol=1e-4)


@pytest.mark.parametrize("option", ["momentum", "all of sgd", "adam"])
def test_coordinates_outside_the_mask_do_not_move_at_all(option):
    net = NETS["relu"]
    whole = cohort(net, [9, 4])
    mask = net.layout.mask(["2"])
    got = fitted(net, whole, Training(**{"batch_size": 4, **OPTIONS[option]}), Drift(mu=0.1, mask=mask))
    assert (got.params[:, ~mask] == whole.models[0, ~mask]).all()
    assert (got.params[:, mask] != whole.models[0, mask]).mean() > 0.5


ANY_TRAINING = st.builds(
    Training,
    lr=st.just(0.1),
    batch_size=st.integers(1, 40),
    epochs=st.integers(1, 2),
    steps=st.none() | st.integers(1, 6),
    optimizer=st.sampled_from(["sgd", "sgd", "adam"]),
    momentum=st.sampled_from([0.0, 0.0, 0.9]),
    clip_norm=st.sampled_from([None, 0.5]),
    weight_decay=st.sampled_from([0.0, 0.1]),
)
ANY_NET = st.builds(
    lambda widths, loss: mlp(*widths, loss=loss),
    st.lists(st.sampled_from([1, 2, 5, 16, 33]), min_size=2, max_size=4),
    st.sampled_from(["cross_entropy", "squared_error"]),
)


@given(ANY_NET, st.lists(st.integers(0, 45), min_size=2, max_size=7), ANY_TRAINING, st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_row_i_is_the_same_to_the_bit_whatever_the_cohort_around_it(net, sizes, training, drifting, draw):
    whole = cohort(net, sizes, versions=2)
    order = draw.draw(st.permutations(range(len(sizes))))[: draw.draw(st.integers(1, len(sizes)))]
    part = pick(whole, order)
    a = np.random.default_rng(0).standard_normal((len(sizes), net.layout.size), dtype=np.float32)
    every, some = (Drift(a, 0.1), Drift(a[order], 0.1)) if drifting else (Drift(), Drift())
    one, two = fitted(net, whole, training, every), fitted(net, part, training, some)
    assert one.params[order].tobytes() == two.params.tobytes()
    assert one.loss[order].tobytes() == two.loss.tobytes()
    many, few = (net.evaluate(w.models, w.row, w.data) for w in (whole, part))
    for metric in many:
        assert many[metric][order].tobytes() == few[metric].tobytes()


@pytest.mark.parametrize("widths", [(784, 62), (784, 200, 62)])
def test_rows_are_the_same_alone_and_together_at_the_shapes_of_real_models(widths):
    net, training = mlp(*widths), Training(batch_size=20)
    whole = cohort(net, [40, 37, 40, 1, 64])
    one = fitted(net, whole, training)
    for i in range(whole.n):
        assert fitted(net, pick(whole, [i]), training).params.tobytes() == one.params[i].tobytes()


@pytest.mark.parametrize("sizes", [[20] * 9, [33, 1, 20, 45, 2, 20, 8, 7, 60]])
@pytest.mark.parametrize("net", [mlp(24, 6), mlp(64, 48, 10)], ids=["logistic", "mlp"])
@pytest.mark.parametrize("option", [{}, {"momentum": 0.9}, {"optimizer": "adam"}], ids=str)
def test_the_size_of_the_stack_changes_no_bit(net, sizes, option, monkeypatch):
    whole, training = cohort(net, sizes), Training(batch_size=16, **option)
    one = fitted(net, whole, training)
    for most in (1, 2, 5):
        monkeypatch.setattr(layers, "MOST_CLIENTS", most)
        monkeypatch.setattr(stacked, "PAD_BELOW", min(most, 8))
        assert fitted(net, whole, training).params.tobytes() == one.params.tobytes()


def test_a_batch_that_is_filled_up_gives_the_numbers_of_the_short_one(monkeypatch):
    net, training = NETS["relu"], Training(batch_size=32, epochs=2)
    whole = cohort(net, [3, 17, 40])
    full = fitted(net, whole, training)
    monkeypatch.setattr(stacked, "PAD_BELOW", 10**9)
    short = fitted(net, whole, training)
    np.testing.assert_allclose(full.params, short.params, atol=1e-6)
    np.testing.assert_allclose(full.loss, short.loss, rtol=1e-5)


def test_an_idle_drift_is_no_drift_to_the_bit():
    net = NETS["relu"]
    whole = cohort(net, [9, 4])
    ref = np.zeros((1, net.layout.size), np.float32)
    with_ref = fitted(net, whole, Training(), Drift(mu=0.0, ref=ref))
    assert with_ref.params.tobytes() == fitted(net, whole, Training()).params.tobytes()


def test_training_leaves_its_arguments_untouched():
    net = NETS["relu"]
    whole = cohort(net, [9, 4])
    before = whole.models.copy()
    data = {name: column.copy() for name, column in whole.data.columns.items()}
    got = fitted(net, whole, Training(momentum=0.9), Drift(mu=0.1))
    assert (whole.models == before).all()
    assert all((whole.data.columns[name] == data[name]).all() for name in data)
    assert not np.shares_memory(got.params, whole.models)


def test_divergence_shows_as_a_loss_that_is_not_finite_and_warns_nobody():
    net = NETS["relu"]
    whole = cohort(net, [40, 40])
    got = fitted(net, whole, Training(lr=1e30, epochs=3, batch_size=5))
    assert not np.isfinite(got.loss).any()


def test_a_client_with_bad_data_does_not_touch_its_neighbours():
    net, training = NETS["relu"], Training(batch_size=4)
    whole = cohort(net, [9, 6, 9])
    bad = {**whole.data.columns, "x": whole.data.columns["x"].copy()}
    bad["x"][whole.data.rows[whole.data.offsets[1]]] = np.nan
    spoiled = replace(whole, data=Block(bad, whole.data.rows, whole.data.offsets))
    good, got = fitted(net, whole, training), fitted(net, spoiled, training)
    assert got.params[[0, 2]].tobytes() == good.params[[0, 2]].tobytes()
    assert not np.isfinite(got.loss[1])


@pytest.mark.parametrize("name", NETS)
def test_evaluation_is_the_textbook_within_rounding(name):
    net = NETS[name]
    whole = cohort(net, [70, 0, 3, 32], versions=3)
    got = net.evaluate(whole.models, whole.row, whole.data)
    for i, size in enumerate(whole.data.sizes):
        own = whole.data.client(i)
        w = whole.models[whole.row[i]].astype(F8)
        expected = loss_and_gradient(net, w, own["x"], own["y"])[0] if size else 0.0
        assert got["loss"][i] == pytest.approx(expected, rel=1e-5)


def test_accuracy_counts_the_labels_that_come_first():
    net = DenseNet((linear(2, 2, bias=False),))
    x = np.array([[1, 0], [0, 1], [3, 1], [1, 3]], np.float32)
    data = Block({"x": x, "y": np.array([0, 1, 1, 1])}, np.arange(4), np.array([0, 3, 4, 4]))
    got = net.evaluate(np.eye(2, dtype=np.float32).reshape(1, 4), np.zeros(3, np.int64), data)
    np.testing.assert_allclose(got["accuracy"], [2 / 3, 1.0, 0.0])


def test_images_and_whole_numbers_are_flattened_and_converted():
    net = mlp(6, 3)
    flat = cohort(net, [5, 8])
    x = (flat.data.columns["x"] * 10).astype(np.int16)
    whole = replace(flat, data=replace_x(flat.data, x.astype(np.float32)))
    for other in (x, x.reshape(-1, 2, 3), x.astype(F8), np.asfortranarray(x.astype(np.float32).reshape(-1, 2, 3))):
        same = replace(flat, data=replace_x(flat.data, other))
        assert fitted(net, same, Training()).params.tobytes() == fitted(net, whole, Training()).params.tobytes()
        one = net.evaluate(same.models, same.row, same.data)["loss"]
        assert one.tobytes() == net.evaluate(whole.models, whole.row, whole.data)["loss"].tobytes()


def replace_x(data, x):
    return Block({**data.columns, "x": x}, data.rows, data.offsets)


def test_names_and_shapes_are_those_of_a_torch_sequential():
    net = DenseNet((flatten(), linear(4, 3), relu(), linear(3, 2, bias=False)))
    assert net.layout.names == ("1.weight", "1.bias", "3.weight")
    assert net.layout.shapes == ((3, 4), (3,), (2, 3))
    assert DenseNet((linear(4, 3),), names=("",)).layout.names == ("weight", "bias")
    assert DenseNet((linear(4, 3), relu(), linear(3, 2)), names=("body.0", "head")).layout.names[2] == "head.weight"


def test_the_starting_model_depends_on_the_seed_and_fills_the_range_of_torch():
    net = mlp(100, 50, 10)
    first = net.init(1)
    assert first.vector.tobytes() == net.init(1).vector.tobytes()
    assert first.vector.tobytes() != net.init(2).vector.tobytes()
    for name, width in {"0.weight": 100, "0.bias": 100, "2.weight": 50, "2.bias": 50}.items():
        top = np.abs(first.tensor(name)).max() * np.sqrt(width)
        assert 0.7 < top <= 1.0
    assert abs(first.tensor("0.weight").mean()) < 0.005


def test_flops_count_three_products_of_every_layer_but_the_first():
    assert mlp(784, 62).flops() == 2 * 2 * 784 * 62
    assert mlp(10, 4, 3).flops() == 2 * (3 * (40 + 12) - 40)


def test_the_description_is_plain_json():
    said = DenseNet((flatten(), linear(4, 3), tanh(), linear(3, 2, bias=False))).describe()
    assert said["layers"] == ["flatten()", "linear(4, 3)", "tanh()", "linear(3, 2, bias=False)"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mlp(5), "at least the width"),
        (lambda: linear(0, 3), "at least one input"),
        (lambda: DenseNet((linear(4, 3), relu())), "last layer is linear"),
        (lambda: DenseNet((linear(4, 3), linear(4, 2))), "takes 4 inputs but gets 3"),
        (lambda: DenseNet((relu(), linear(4, 2))), "right after a linear layer"),
        (lambda: DenseNet((linear(4, 2), relu(), tanh(), linear(2, 2))), "right after a linear layer"),
        (lambda: DenseNet((linear(4, 2), flatten(), linear(2, 2))), "only the first layer"),
        (lambda: DenseNet((linear(4, 2),), loss="hinge"), "squared_error"),
        (lambda: DenseNet((linear(4, 2),), names=("a", "b")), "one prefix"),
    ],
)
def test_a_net_that_cannot_be_is_refused_when_declared(make, says):
    with pytest.raises(UsageError, match=says):
        make()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"x": np.zeros((4, 5), np.float32)}, "no column 'y'"),
        ({"x": np.zeros((4, 6), np.float32), "y": np.zeros(4, int)}, "6 numbers per example"),
        ({"x": np.zeros((4, 5), np.float32), "y": np.full(4, 3)}, "labels from 3 to 3"),
        ({"x": np.zeros((4, 5), np.float32), "y": np.full(4, -1)}, "labels from -1"),
        ({"x": np.zeros((4, 5), np.float32), "y": np.zeros(4)}, "squared_error"),
    ],
)
def test_data_that_does_not_fit_the_net_is_refused_in_one_line(columns, says):
    net = mlp(5, 3)
    data = Block(columns, np.arange(4), np.array([0, 4]))
    whole = replace(cohort(net, [4]), data=data)
    with pytest.raises(UsageError, match=says) as refused:
        fitted(net, whole, Training())
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match=says):
        net.evaluate(whole.models, whole.row, data)


@pytest.mark.slow
def test_gradients_agree_with_torch():
    torch = pytest.importorskip("torch")
    net = mlp(5, 7, 3)
    whole = cohort(net, [16])
    training = Training(lr=0.1, batch_size=4, momentum=0.9, weight_decay=0.01, nesterov=True)
    got = fitted(net, whole, training)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3)).double()
    assert [name for name, _ in model.named_parameters()] == list(net.layout.names)
    torch.nn.utils.vector_to_parameters(torch.tensor(whole.models[0].astype(F8)), model.parameters())
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    plan = make_plan(whole.data, whole.keys, training)
    for rows in plan.rows.reshape(-1, 4):
        sgd.zero_grad()
        x, y = (torch.tensor(whole.data.columns[name][rows]) for name in ("x", "y"))
        torch.nn.functional.cross_entropy(model(x.double()), y).backward()
        sgd.step()
    end = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    np.testing.assert_allclose(got.params[0], end, atol=3e-6)
