"""Any `nn.Module` as a net: row i depends on client i alone, and equals the loop a user would write."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from torch_cases import KINDS, NO_CHANCE, SIZES, Tied, case, columns, module
from torch_cases import by_hand as loop

from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.work import torch_resident
from fieldfare.work.net import Drift, Training
from fieldfare.work.torch_loops import slopes
from fieldfare.work.torch_net import torch_net

torch = pytest.importorskip("torch")
nn = torch.nn


@pytest.mark.parametrize("path", ["auto", "graph"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_gets_the_same_bits_alone_and_among_others(kind: str, path: str) -> None:
    one, net = case(kind), torch_net(module(kind), path=path)
    start = net.init(0).vector[None]
    whole = one.fit(net, start)
    assert len(np.unique(whole.params.round(5), axis=0)) == 5
    for a, b in ((0, 1), (1, 3), (2, 5), (4, 5)):
        fresh = torch_net(module(kind), path=path)
        part = one.part(a, b).fit(fresh, start)
        np.testing.assert_array_equal(part.params, whole.params[a:b])
        np.testing.assert_array_equal(part.loss, whole.loss[a:b])


@pytest.mark.parametrize("path", ["auto", "graph"])
@pytest.mark.parametrize("kind", NO_CHANCE)
def test_training_equals_a_loop_with_torch_optim(kind: str, path: str) -> None:
    one, mod = case(kind), module(kind)
    net = torch_net(mod, path=path)
    fit = one.fit(net, net.init(0).vector[None])
    for i in range(len(SIZES)):
        vector, loss = loop(mod, one, i, partial(torch.optim.SGD, lr=0.1))
        np.testing.assert_allclose(fit.params[i], vector, atol=2e-6)
        assert fit.loss[i] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("engine", [True, False])
def test_a_step_has_the_gradients_that_autograd_gives_and_zeros_for_what_is_not_used(
    engine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not engine:
        monkeypatch.setattr(torch.autograd, "Variable", object)
    of = slopes()
    a, b, idle = (torch.randn(3, 2, requires_grad=True) for _ in range(3))
    for shape in ((), (1,)):
        (one, none, two) = of((a * b).exp().sum().reshape(shape), (a, idle, b))
        want = torch.autograd.grad((a * b).exp().sum(), (a, b))
        assert torch.equal(one, want[0])
        assert torch.equal(two, want[1])
        assert torch.equal(none, torch.zeros(3, 2))
        assert not one.requires_grad
    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        of(a * b, (a,))
    with pytest.raises(RuntimeError, match="does not require grad"):
        of(torch.ones(()), (a,))


def test_by_graph_a_layer_that_is_not_used_stays_as_it_is_with_every_optimiser() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(12, 5), nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x.flatten(1))

    net = torch_net(Half(), path="graph")
    start = net.init(0).vector[None]
    for training in (Training(lr=0.1), Training(lr=0.1, momentum=0.9), Training(lr=0.1, optimizer="adam")):
        ends = case("mlp", training).fit(net, start).params
        assert (ends[:, 65:] == start[:, 65:]).all()
        assert (ends[:, :65] != start[:, :65]).any()


@pytest.mark.parametrize("kind", ["mlp", "dropout", "cnn", "group_norm"])
def test_the_path_by_hand_equals_the_graph(kind: str) -> None:
    mod = module(kind)
    for layer in mod.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    one = case(kind, Training(lr=0.2, batch_size=6, epochs=2))
    a, b = torch_net(mod), torch_net(mod, path="graph")
    assert (a.describe()["path"], b.describe()["path"]) != ("graph", "graph")
    start = a.init(0).vector[None]
    x, y = one.fit(a, start), one.fit(b, start)
    np.testing.assert_allclose(x.params, y.params, atol=2e-6)
    np.testing.assert_allclose(x.loss, y.loss, atol=1e-5)


def test_a_pure_dense_module_is_trained_alike_stacked_by_hand_and_by_graph() -> None:
    one, mod = case("mlp", Training(lr=0.2, batch_size=6, epochs=2)), module("mlp")
    stacked, hand, graph = torch_net(mod), torch_net(mod), torch_net(mod, path="graph")
    hand._dense = None
    assert stacked.describe()["path"] == "stacked"
    start = stacked.init(0).vector[None]
    ends = [one.fit(net, start).params for net in (stacked, hand, graph)]
    np.testing.assert_allclose(ends[0], ends[1], atol=2e-6)
    np.testing.assert_allclose(ends[1], ends[2], atol=2e-6)


@pytest.mark.parametrize("kind", ["dropout", "cnn", "lstm"])
def test_dropout_depends_on_the_client_key_and_changes_with_it(kind: str) -> None:
    one, net = case(kind), torch_net(module(kind))
    start = net.init(0).vector[None]
    first = one.fit(net, start).params
    torch.manual_seed(99)
    np.testing.assert_array_equal(first, one.fit(net, start).params)
    other = replace(one, keys=one.keys + np.uint64(1))
    assert (other.fit(net, start).params != first).any(axis=1).sum() == 4


@pytest.mark.parametrize("kind", ["dropout", "lstm", "mlp"])
def test_torch_is_left_as_it_was_found(kind: str) -> None:
    one, mod = case(kind), module(kind)
    before, threads = {k: v.clone() for k, v in mod.state_dict().items()}, torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    net = torch_net(mod)
    start = net.init(0).vector[None]
    one.fit(net, start)
    net.evaluate(start, np.zeros(5, np.int64), one.data)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert all(torch.equal(v, before[k]) for k, v in mod.state_dict().items())


def test_a_module_that_calls_view_behind_a_convolution_is_trained_all_the_same() -> None:
    one, net = case("viewer"), torch_net(module("viewer"))
    start = net.init(0).vector[None]
    assert net._held().channels_last
    one.fit(net, start)
    assert not net._held().channels_last


def test_each_client_starts_from_its_own_row() -> None:
    one, net = case("cnn"), torch_net(module("cnn"))
    start = np.stack([net.init(0).vector, net.init(0).vector * 0.5])
    row = np.array([0, 1, 1, 1, 0])
    mixed = one.fit(net, start, row=row).params
    np.testing.assert_array_equal(mixed[2], one.fit(net, start[1:]).params[2])
    np.testing.assert_array_equal(mixed[3], start[1])


def test_a_client_without_a_step_keeps_its_model_and_has_loss_zero() -> None:
    one, net = case("lstm"), torch_net(module("lstm"))
    start = net.init(0).vector[None]
    fit = one.fit(net, start)
    np.testing.assert_array_equal(fit.params[3], start[0])
    assert fit.loss[3] == 0.0
    fit.params[0] = 0.0  # the caller may write


@pytest.mark.parametrize("kind", ["linear", "cnn", "lstm"])
def test_evaluation_equals_the_module_in_evaluation_mode(kind: str) -> None:
    one, mod = case(kind), module(kind)
    net = torch_net(mod)
    found = net.evaluate(net.init(0).vector[None], np.zeros(5, np.int64), one.data)
    mod = mod.eval()
    for i in (0, 2, 4):
        data = one.data.client(i)
        with torch.no_grad():
            output, y = mod(torch.from_numpy(data["x"])), torch.from_numpy(data["y"])
        output, y = output.reshape(-1, output.shape[-1]), y.reshape(-1)
        assert found["loss"][i] == pytest.approx(float(nn.functional.cross_entropy(output, y)), abs=1e-6)
        assert found["accuracy"][i] == pytest.approx(float((output.argmax(1) == y).double().mean()), abs=1e-12)
    assert found["loss"][3] == found["accuracy"][3] == 0.0


def test_evaluation_of_many_examples_goes_through_in_batches() -> None:
    net = torch_net(module("group_norm"))
    data = Block(columns("group_norm", 700), np.arange(700), np.array([0, 700]))
    model = net.init(0).vector[None]
    found = net.evaluate(model, np.zeros(1, np.int64), data)
    with torch.no_grad():
        output = module("group_norm")(torch.from_numpy(data.columns["x"]))
    right = (output.argmax(1).numpy() == data.columns["y"]).mean()
    assert found["accuracy"][0] == pytest.approx(right)


def test_a_tied_weight_is_in_the_vector_once_and_trained_once() -> None:
    net = torch_net(Tied())
    assert net.layout.names == ("emb.weight",)
    one = case("tied")
    back = net.module(one.fit(net, net.init(0).vector[None]).params[0])
    assert back.out.weight is back.emb.weight


def test_frozen_parameters_are_not_part_of_the_model() -> None:
    mod = module("mlp")
    mod[0].requires_grad_(False)
    net = torch_net(mod)
    assert net.layout.names == ("2.weight", "4.weight", "4.bias")
    one = case("mlp")
    trained = net.module(one.fit(net, net.init(0).vector[None]).params[0])
    assert torch.equal(trained[0].weight, mod[0].weight)
    assert not torch.equal(trained[4].weight, mod[4].weight)
    assert net.describe()["frozen"] == 12 * 9 + 9


def test_a_head_before_frozen_layers_is_trained_without_their_graph() -> None:
    mod = module("cnn")
    mod[0].requires_grad_(False)
    mod[2].requires_grad_(False)
    net = torch_net(mod)
    assert net.describe()["path"] == "dense end by hand"
    one, graph = case("cnn", Training(lr=0.1, batch_size=6, shuffle=False)), torch_net(mod, path="graph")
    mod[6].p = 0.0
    one.fit(graph, graph.init(0).vector[None])
    assert np.isfinite(one.fit(net, net.init(0).vector[None]).params).all()


@pytest.mark.parametrize("anew", [False, True])
def test_buffers_are_given_back_to_every_client_as_they_were(anew: bool) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.out = nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if anew:
                self.seen = self.seen + 1
            else:
                self.seen += 1
            return self.out(x) * self.seen

    torch.manual_seed(0)
    net, one = torch_net(Counting()), case("linear")
    start = net.init(0)
    assert start.sides["seen"].tolist() == 0.0
    whole = one.fit(net, start.vector[None])
    np.testing.assert_array_equal(one.part(2, 3).fit(net, start.vector[None]).params[0], whole.params[2])


def test_a_function_that_makes_a_module_is_seeded_by_the_run() -> None:
    net = torch_net(lambda: nn.Linear(3, 2))
    torch.manual_seed(1)
    a = net.init(1).vector
    torch.manual_seed(2)
    np.testing.assert_array_equal(a, net.init(1).vector)
    assert (a != net.init(2).vector).any()


def test_a_module_starts_from_the_parameters_it_had_when_it_was_given() -> None:
    mod = module("linear")
    net = torch_net(mod)
    before = net.init(0).vector.copy()
    with torch.no_grad():
        mod.weight.zero_()
    np.testing.assert_array_equal(before, net.init(3).vector)
    assert before[:60].any()


def test_a_net_survives_pickling_and_copying() -> None:
    one, net = case("cnn"), torch_net(module("cnn"), path="graph")
    start = net.init(0).vector[None]
    expected = one.fit(net, start).params
    np.testing.assert_array_equal(one.fit(pickle.loads(pickle.dumps(net)), start).params, expected)
    np.testing.assert_array_equal(one.fit(copy.deepcopy(net), start).params, expected)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "lstm"])
def test_read_only_and_foreign_columns_give_the_same_numbers(kind: str) -> None:
    one, net = case(kind), torch_net(module(kind))
    start = net.init(0).vector[None]
    expected = one.fit(net, start).params
    x, y = (one.data.columns[name].copy() for name in "xy")
    x.flags.writeable = y.flags.writeable = False
    strided = np.stack([x, x], axis=-1)[..., 0]
    for given in (x, strided, x.astype(x.dtype.newbyteorder(">"))):
        same = replace(one, data=replace(one.data, columns={"x": given, "y": y.astype(np.int32)}))
        np.testing.assert_array_equal(same.fit(net, start).params, expected)


def test_masked_coordinates_stay_as_they_are() -> None:
    training = Training(lr=0.1, batch_size=6, momentum=0.9, weight_decay=0.1)
    one, net = case("group_norm", training), torch_net(module("group_norm"))
    start = net.init(0).vector[None]
    mask = net.layout.mask(["4"])
    end = one.fit(net, start, Drift(mask=mask)).params
    np.testing.assert_array_equal(end[:, ~mask], np.repeat(start[:, ~mask], 5, axis=0))
    assert (end[0, mask] != start[0, mask]).any()


def test_what_is_told_of_a_net_is_plain_and_says_which_path_and_why() -> None:
    told = torch_net(module("lstm")).describe()
    assert told["path"] == "graph"
    assert "CharLSTM" in told["why"]
    assert told["module"][0] == "CharLSTM("
    assert torch_net(module("cnn")).describe()["path"] == "dense end by hand"
    with pytest.raises(UsageError, match="use one of auto, native"):
        torch_net(module("cnn"), path="magic")  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of glibc")
def test_the_allocator_is_told_to_keep_memory_by_training_only_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda what, value: told.append((what, value)))
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    torch_resident.keep_memory.cache_clear()
    one, net = case("lstm"), torch_net(module("lstm"))
    start = net.init(0).vector[None]
    net.evaluate(start, np.zeros(5, np.int64), one.data)
    assert told == []
    for _ in range(2):
        one.fit(net, start)
    assert told == [(-1, 256 << 20), (-3, 32 << 20)]


def test_counting_flops_does_not_import_torchs_compiler() -> None:
    code = """
import sys, torch, numpy as np, fieldfare as ff
rows = {"x": np.zeros((2, 4), np.float32), "y": np.zeros(2, np.int64)}
assert ff.torch_net(torch.nn.Linear(4, 3), example=rows).flops() == 48.0
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", ["auto", "stacked", "hand", "native", "lockstep-4"])
def test_a_loss_of_the_users_own_is_taken_whatever_its_name(path: str) -> None:
    def cross_entropy(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, y, label_smoothing=0.3)

    one, made = case("linear"), nn.Linear(12, 5)
    nets = [torch_net(made, cross_entropy, path=p) for p in (path, "graph")]
    ends = [one.fit(net, net.init(0).vector[None]).params for net in nets]
    np.testing.assert_allclose(*ends, rtol=1e-5, atol=1e-6)
