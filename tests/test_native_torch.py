"""Torch nets on the compiled core where they could go wrong unseen: own metrics, changed data, other shapes, losses."""

from functools import partial

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.sim.batch import Executor
from fieldfare.work.native import choose, timing
from fieldfare.work.native.modules import core
from fieldfare.work.net import Drift, Training
from fieldfare.work.plan import make_plan
from fieldfare.work.train import Train

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
pytestmark = pytest.mark.skipif(core() is None, reason="the compiled core is not built here")


def data(shape=(6,), classes=4, sizes=(5, 7), numbers=False):
    r = np.random.default_rng(0)
    total = sum(sizes)
    y = r.standard_normal(total).astype(np.float32) if numbers else r.integers(0, classes, total)
    columns = {"x": r.standard_normal((total, *shape)).astype(np.float32), "y": y}
    return Block(columns, np.arange(total), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def trained(net, block, **more):
    training = Training(**{"batch_size": 4, "epochs": 2, "shuffle": False, **more})
    keys = rng.keys(0, ("t",), np.arange(block.n))
    plan = make_plan(block, keys, training)
    start = net.init(0).vector[None]
    return net.fit(start, np.zeros(block.n, int), block, plan, keys, training, training.lr, Drift())


def both(module, block, **more):
    rows = {name: column[:2] for name, column in block.columns.items()}
    return [ff.torch_net(module, path=path, example=rows, **more) for path in ("auto", "graph")]


def near(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_a_metric_of_the_users_own_is_measured_even_if_it_is_called_accuracy():
    module, block = nn.Linear(6, 4), data()
    top2 = {"accuracy": lambda out, y: (out.topk(2).indices == y[:, None]).any(1).float()}
    auto, graph = both(module, block, metrics=top2)
    assert auto.on_core is not None
    models, row = auto.init(0).vector[None], np.zeros(block.n, int)
    found, wanted = (net.evaluate(models, row, block) for net in (auto, graph))
    assert found["accuracy"].tolist() == wanted["accuracy"].tolist()
    assert found["accuracy"].mean() > both(module, block)[0].evaluate(models, row, block)["accuracy"].mean()


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.uint64])
def test_labels_of_any_kind_are_read_anew_at_every_call(kind):
    module, block = nn.Linear(6, 4), data()
    block.columns["y"] = block.columns["y"].astype(kind)
    auto, graph = both(module, block)
    before = trained(auto, block)
    near(before.params, trained(graph, block).params)
    block.columns["y"][:] = (block.columns["y"] + 1) % 4
    after = trained(auto, block)
    near(after.params, trained(graph, block).params)
    assert np.abs(after.params - before.params).max() > 1e-3


def test_columns_that_do_not_lie_as_the_core_reads_them_give_the_same_numbers():
    module, block = nn.Linear(6, 4), data()
    wanted = trained(both(module, block)[0], block).params
    x = block.columns["x"]
    wide = np.zeros((len(x), 12), np.float32)
    wide[:, ::2] = x
    for other in (wide[:, ::2], x.astype(np.float64), x.astype(">f4")):
        block.columns["x"] = other
        near(trained(both(module, block)[0], block).params, wanted)


def test_symbols_in_uint64_are_symbols():
    r = np.random.default_rng(0)
    module = nn.Sequential(nn.Embedding(9, 5), nn.Flatten(), nn.Linear(15, 4))
    block = data()
    block.columns["x"] = r.integers(0, 9, (12, 3)).astype(np.uint64)
    auto, graph = both(module, block, transform="tokens")
    assert auto.on_core is not None
    near(trained(auto, block).params, trained(graph, block).params)


def test_examples_of_another_shape_than_the_plans_are_left_to_torch():
    pooled = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4))
    block, larger = data((1, 8, 8)), data((1, 12, 12))
    auto, graph = both(pooled, block)
    assert auto.on_core is not None
    near(trained(auto, larger).params, trained(graph, larger).params)
    turned = data((8, 8, 1))
    flat = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 4))
    auto, graph = both(flat, block)
    with pytest.raises(UsageError, match="could not take the columns"):
        trained(auto, turned)
    asked = ff.torch_net(flat, path="native", example={n: c[:2] for n, c in block.columns.items()})
    with pytest.raises(UsageError, match=r"column 'x' has examples of .* where the plan of the compiled core"):
        trained(asked, turned)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss()])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_of_torchs_that_broadcasts_is_torchs(loss):
    block = data(numbers=True)
    auto, graph = both(nn.Linear(6, 1), block, loss=loss)
    assert auto.on_core is None
    near(trained(auto, block).loss, trained(graph, block).loss)
    same = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
    auto, graph = both(same, block, loss=loss)
    near(trained(auto, block).params, trained(graph, block).params)


def test_a_batch_larger_than_any_client_is_a_full_batch():
    auto, graph = both(nn.Linear(6, 4), data())
    near(trained(auto, data(), batch_size=2**40).params, trained(graph, data(), batch_size=2**20).params)


def test_statistics_of_a_batch_are_measured_over_as_many_rows_as_torchs():
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 4))
    block = data(sizes=(300, 7))
    auto, graph = both(module, block)
    assert auto.on_core is not None
    models, row = auto.init(0).vector[None], np.zeros(block.n, int)
    found, wanted = (net.evaluate(models, row, block) for net in (auto, graph))
    near(found["loss"], wanted["loss"])
    with pytest.raises(UsageError, match="more than one value a channel"):
        trained(auto, data(sizes=(1, 4)))


def test_bfloat16_is_computed_in_whatever_was_measured_before(monkeypatch, tmp_path):
    if not core().half():
        pytest.skip("this processor has no products of bfloat16")
    monkeypatch.setenv("FIELDFARE_PATH", "auto")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choose, "_settled", {})
    monkeypatch.setattr(timing, "rates_of", lambda *a: {"native": 1.0, "stacked": 9.0})
    net = ff.mlp(64, 7, 10)
    timing.settle_fastest(net, Training(), ff.data.digits(clients=5))
    assert net.on_core is None
    monkeypatch.setattr(choose, "_settled", {})
    timing.settle_fastest(net, Training(precision="bfloat16"), ff.data.digits(clients=5))
    assert net.on_core is not None


def test_labels_that_do_not_count_have_no_gradient():
    block = data(sizes=(6, 7))
    block.columns["y"][[0, 3, 8]] = -100
    auto, graph = both(nn.Linear(6, 4), block)
    ours, theirs = trained(auto, block), trained(graph, block)
    near(ours.params, theirs.params)
    near(ours.loss, theirs.loss)


class Block3(nn.Module):
    """A picture that three read, by convolutions of 3x3 with many channels."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 32, 3, padding=1)
        self.a, self.b = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.out = nn.Linear(32, 4)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.out((h + self.a(h) * self.b(h)).mean((2, 3)))


def test_gradients_of_a_picture_that_several_convolutions_read_add_up():
    block = data((2, 9, 9), sizes=(4, 4))
    auto, graph = both(Block3(), block)
    assert auto.on_core is not None
    near(trained(auto, block).params, trained(graph, block).params)


def test_labels_and_symbols_just_beyond_the_last_are_refused_and_the_last_is_not():
    block = data()
    block.columns["y"][:] = 3
    auto, _ = both(nn.Linear(6, 4), block)
    trained(auto, block)
    block.columns["y"][7] = 4
    with pytest.raises(UsageError, match="has the label 4 that the model has no output for"):
        trained(auto, block)
    module = nn.Sequential(nn.Embedding(9, 5), nn.Flatten(), nn.Linear(15, 4))
    block = data()
    block.columns["x"] = np.full((12, 3), 8)
    auto, _ = both(module, block, transform="tokens")
    assert auto.on_core is not None
    trained(auto, block)
    block.columns["x"][7, 1] = 9
    with pytest.raises(UsageError, match="has the symbol 9"):
        trained(auto, block)


class Attends(nn.Module):
    def __init__(self, always):
        super().__init__()
        self.always, self.out = always, nn.Linear(8, 4)
        self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))

    def forward(self, x):
        p = 0.3 if self.always or self.training else 0.0
        told = nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), dropout_p=p)
        return self.out(told.mean(1))


def test_attention_that_drops_in_training_alone_is_on_the_core():
    auto, graph = both(Attends(False), data((5, 6)))
    assert auto.on_core is not None
    models, row, block = auto.init(0).vector[None], np.zeros(2, int), data((5, 6))
    near(auto.evaluate(models, row, block)["loss"], graph.evaluate(models, row, block)["loss"])


def test_attention_that_drops_in_evaluation_too_is_left_to_torch():
    auto, _ = both(Attends(True), data((5, 6)))
    assert "drops in evaluation too" in str(auto.native)


def test_labels_of_another_width_than_the_examples_stay_on_the_core():
    block = data()
    auto, graph = both(nn.Linear(6, 4), block)
    block.columns["y"] = block.columns["y"].astype(np.uint8)
    assert auto._core_for(block) is not None
    near(trained(auto, block).params, trained(graph, block).params)


def test_want_of_memory_on_the_core_is_one_line(monkeypatch):
    auto, _ = both(nn.Linear(6, 4), data())
    native = auto.on_core

    class Poor:
        def fit(self, *given):
            raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(native, "_made", Poor())
    with pytest.raises(UsageError, match="not enough memory to train on the compiled core"):
        trained(auto, data())


@pytest.mark.parametrize("path", ["auto", "native", "stacked", "hand", "graph", "lockstep"])
def test_processes_are_forked_for_the_ways_without_the_core_alone(path):
    block = data()
    net = ff.torch_net(nn.Linear(6, 4), path=path, example={name: rows[:2] for name, rows in block.columns.items()})
    native = path in ("auto", "native")
    work = Train(net, Training())
    assert net.threaded is net.folds(Training()) is work.threaded is work.folds is native
    with Executor({"train": work}, None, workers=2) as executor:
        assert executor.forked(1e15, "train") is not native
    again = Train(ff.torch_net(nn.Linear(6, 4), path=path), Training())
    with Executor({"train": again}, None, workers=2) as executor:
        assert executor.forked(1e15, "train")  # without an example there is no plan for the core


def test_what_only_torch_computes_is_left_to_processes():
    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(torch.fft.fft(x).real)

    block = data()
    net = ff.torch_net(Odd(6, 4), example={name: rows[:2] for name, rows in block.columns.items()})
    assert isinstance(net.native, str)
    assert not net.threaded
    assert not Train(net, Training()).folds


@pytest.mark.parametrize(
    ("loss", "native"),
    [
        (nn.MSELoss(), True), (nn.L1Loss(), True), (nn.BCEWithLogitsLoss(), True), (nn.MSELoss(reduction="sum"), False),
        (nn.L1Loss(reduction="sum"), False), (nn.BCEWithLogitsLoss(pos_weight=torch.full((4,), 3.0)), False),
        (nn.BCEWithLogitsLoss(weight=torch.full((4,), 3.0)), False), (partial(F.mse_loss, reduction="sum"), False),
        (nn.HuberLoss(), False),
    ],
)  # fmt: skip
def test_a_loss_of_torchs_with_options_of_its_own_is_left_to_torch(loss, native):
    block = data(numbers=True)
    block.columns["y"] = np.abs(np.stack([block.columns["y"]] * 4, axis=1)).clip(0, 1)
    auto, graph = both(nn.Linear(6, 4), block, loss=loss)
    assert isinstance(auto.native, str) is not native
    near(trained(auto, block, lr=0.02).params, trained(graph, block, lr=0.02).params)


def test_weights_and_left_out_labels_of_nll_are_left_to_torch():
    for loss, native in (
        (nn.NLLLoss(), True),
        (nn.NLLLoss(weight=torch.rand(4)), False),
        (nn.NLLLoss(ignore_index=2), False),
    ):
        block = data()
        auto, graph = both(nn.Sequential(nn.Linear(6, 4), nn.LogSoftmax(1)), block, loss=loss)
        assert isinstance(auto.native, str) is not native
        near(trained(auto, block).params, trained(graph, block).params)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_bytes_alone_become_units_on_the_core(kind):
    block = data()
    block.columns["x"] = np.arange(72).reshape(12, 6).astype(kind)
    auto, graph = both(nn.Linear(6, 4), block, transform="unit")
    assert isinstance(auto.native, str) is (kind is not np.uint8)
    near(trained(auto, block).params, trained(graph, block).params)
