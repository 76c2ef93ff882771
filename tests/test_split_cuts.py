"""Where a module may be cut, and what each cut costs: the paper's table, residual blocks, modules of odd shapes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from split_cases import SGD, by_hand, columns, data, dense, keys, net_of, nn, small_vgg, torch, whole

from fieldfare.core.errors import UsageError
from fieldfare.models import resnet, vgg5
from fieldfare.work.net import Training
from fieldfare.work.split import legal_cuts, split, split_net

F = nn.functional


def images(*shape: int, rows: int = 2):
    return {"x": np.random.default_rng(0).standard_normal((rows, *shape), dtype=np.float32), "y": np.zeros(rows, int)}


@pytest.fixture(scope="module")
def paper():
    return split_net(lambda: vgg5(), example=images(3, 32, 32))


# cut after, MAC share in %, parameters of the server, MB of activations per batch of 100, MB of state
TABLE = [
    ("pool1", 10.4, 581_386, 3.28, 7.93),
    ("pool2", 66.0, 562_762, 1.64, 6.14),
    ("relu3", 93.8, 525_706, 1.64, 5.84),
]


@pytest.mark.parametrize(("name", "share", "server", "activations", "state"), TABLE)
def test_vgg5_has_the_figures_of_the_paper_at_every_cut(paper, name, share, server, activations, state) -> None:
    cut = paper.cut(name)
    assert cut.macs == 8_488_192
    assert sum(cut.parameters) == 582_346
    assert round(100 * cut.device_share, 1) == share
    assert cut.parameters[1] == server
    assert round(100 * cut.activation_bytes / 1e6, 2) == activations
    assert cut.state_bytes(100, Training(momentum=0.9)) / 1e6 == pytest.approx(state, abs=0.006)


def test_the_state_that_moves_is_parameters_moments_statistics_and_the_last_gradient(paper) -> None:
    cut = paper.cut("pool2")
    statistics = 2 * 64 + 1
    assert cut.total - cut.size == 562_762 + statistics
    assert cut.state_bytes(100, Training()) == 4 * (562_762 + statistics) + 4 * 100 * 64 * 8 * 8
    assert cut.state_bytes(1, Training(optimizer="adam")) == 4 * (3 * 562_762 + statistics) + 4 * 64 * 8 * 8


def test_flops_backward_are_twice_forward_but_for_the_first_layer_which_has_no_gradient_below(paper) -> None:
    for cut in paper.cuts:
        assert cut.server_backward == 2 * cut.server_forward
        assert cut.device_backward == 2 * cut.device_forward - 2 * 884_736
        whole = cut.device_forward + cut.device_backward + cut.server_forward + cut.server_backward
        assert whole == paper.flops()


def test_a_chain_is_cut_after_each_layer_that_leaves_parameters_on_both_sides() -> None:
    assert [cut.name for cut in net_of("vgg").cuts] == [
        "conv1", "norm1", "relu1", "pool1", "conv2", "norm2", "relu2", "pool2", "conv3", "norm3", "relu3", "flatten",
        "dense1", "relu4",
    ]  # fmt: skip
    assert [(cut.number, cut.name, cut.size) for cut in legal_cuts(dense(), columns(2))] == [
        (0, "0", 1300), (1, "1", 1300), (2, "2", 1636), (3, "3", 1636),
    ]  # fmt: skip


def test_a_residual_block_is_never_cut_inside() -> None:
    names = [cut.name for cut in net_of("resnet").cuts]
    assert [name for name in names if ":" not in name] == [
        "conv", "norm", "relu", "block1_1", "block2_1", "block3_1", "pool", "flatten",
    ]  # fmt: skip
    assert [name for name in names if ":" in name] == [
        "block1_1.norm2:add", "block2_1.short:add_1", "block3_1.short:add_2",
    ]  # fmt: skip


def test_resnet20_has_its_known_size() -> None:
    assert sum(p.numel() for p in resnet().parameters()) == 272_474


def test_both_sides_of_every_cut_compute_what_the_whole_module_does() -> None:
    for kind in ("vgg", "resnet", "dense"):
        net = net_of(kind)
        x, model = torch.from_numpy(columns(6)["x"]), net.init(0).vector
        expected = net.module(model).train()(x)
        for cut in net.cuts:
            half = net.half(cut, None)
            half.storage.load(model[cut.size :])
            act = net.half(None, cut).forward(model[: cut.size], [x])
            np.testing.assert_allclose(half._call([act]).detach().numpy(), expected.detach().numpy(), atol=1e-5)


class Odd(nn.Module):
    """Registers layers in another order than it uses them, writes in place, and has constants of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 10)
        self.scale = nn.Parameter(torch.full((8,), 0.5))
        self.first = nn.Linear(64, 8)
        self.register_buffer("shift", torch.linspace(-1, 1, 8))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.act(self.first(x))
        h = h * self.scale + self.shift
        return self.last(F.relu_(h))


def test_a_module_that_registers_layers_out_of_order_is_laid_out_as_it_is_executed() -> None:
    net = split_net(Odd, example=columns(2))
    assert net.layout.names == ("first.weight", "first.bias", "scale", "last.weight", "last.bias")
    assert [cut.name for cut in net.cuts] == ["first", "act", "act:mul", "act:add", "act:relu_"]
    model = net.init(4)
    made = net.module(model)
    for name, value in model.tensors().items():
        np.testing.assert_array_equal(made.state_dict()[name].numpy(), value)


def test_layers_that_write_over_their_input_train_split_as_they_do_whole() -> None:
    net = split_net(Odd, example=columns(2))
    expected, _ = whole(net, data(), keys(4), 0, SGD)
    for cut in net.cuts:
        np.testing.assert_array_equal(by_hand(split(net, cut, SGD), data(), keys(4), 0)[0], expected)


def test_nothing_of_torch_is_loaded_before_a_net_is_made() -> None:
    import subprocess
    import sys

    told = "import sys, fieldfare.work.split, fieldfare.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0


class Branching(nn.Module):
    """Asks for a shape, which torch.fx cannot follow and torch.export can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)

    def forward(self, x):
        h = self.norm(self.first(x))
        if h.shape[1] > 4:
            h = torch.relu(h)
        return self.last(h)


class Tied(nn.Module):
    """One weight below and above every place in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.last(torch.relu(self.first(self.mid(torch.relu(self.first(x))))))


def test_a_weight_used_twice_stays_on_one_side() -> None:
    assert [cut.name for cut in legal_cuts(Tied(), columns(2))] == ["first", "first:relu_1"]


class Skipping(nn.Module):
    """The input is used until the end, so nothing crosses alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)) + x)


class Merging(nn.Module):
    """What crosses in the middle is no batch: examples and pieces of them are one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(64, 10)

    def forward(self, x):
        return self.last(self.first(x.reshape(-1, 8)).reshape(-1, 64))


def test_what_cannot_be_cut_is_refused_in_one_line() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.spare = nn.Linear(64, 10), nn.Linear(3, 3)

        def forward(self, x):
            return self.first(x)

    for made, told in ((nn.Linear(64, 10), "cannot be split"), (Lazy(), "'spare.weight' is never used")):
        with pytest.raises(UsageError, match=told) as error:
            legal_cuts(made, columns(2))
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="counted on examples"):
        _ = split_net(dense()).cuts
    with pytest.raises(UsageError, match="pass an nn"):
        split_net(3)
    with pytest.raises(UsageError, match="divisible by 4"):
        vgg5((1, 7, 8))


def test_a_sum_with_the_input_and_a_tensor_without_examples_are_no_places_to_cut() -> None:
    assert [cut.name for cut in legal_cuts(Skipping(), columns(2))] == ["first:add"]
    assert [cut.name for cut in legal_cuts(Merging(), columns(2))] == ["first:reshape_1"]


def test_a_module_with_a_branch_is_followed_by_export() -> None:
    net = split_net(Branching, example=columns(2))
    assert net.describe()["by"] == "export"
    assert net.layout.names[:2] == ("first.weight", "first.bias")
    assert len(net.layout.names) == 9
    assert net.cuts[0].activations == (8,)
    expected, _ = whole(net, data(), keys(4), 0, SGD)
    for cut in net.cuts:
        np.testing.assert_array_equal(by_hand(split(net, cut, SGD), data(), keys(4), 0)[0], expected)
    moved = {name: expected[at] - net.init(0).vector[at] for name, at, _ in net.layout.items()}
    assert all(step.any() for step in moved.values())
    assert moved["norm.num_batches_tracked"] == 6
    with pytest.raises(UsageError, match="fx cannot follow"):
        split_net(Branching)


def test_nodes_compare_nets_by_digest() -> None:
    a, b = split_net(small_vgg), split_net(small_vgg, example=columns(2))
    assert a.digest == b.digest
    assert a.digest != split_net(lambda: small_vgg("group")).digest


def test_a_net_survives_a_trip_to_another_process() -> None:
    net = net_of("vgg")
    net.half(None, net.cuts[3])
    again = pickle.loads(pickle.dumps(split_net(small_vgg(), example=columns(2))))
    assert again.layout == net.layout
    assert [cut.name for cut in again.cuts] == [cut.name for cut in net.cuts]


def test_a_net_that_can_be_cut_is_trained_and_measured_whole_like_any_other() -> None:
    import fieldfare as ff

    data = ff.federate(columns(96), ff.iid(clients=4), test=columns(40))
    training = Training(lr=0.1, batch_size=8, momentum=0.9)
    job = ff.Job(split_net(small_vgg, example=columns(2)), data, ff.FedAvg(rounds=2, cohort=4), training, seed=3)
    result = job.run(runs=None, progress=False)
    tensors = result.model.tensors()
    assert tensors["norm1.num_batches_tracked"] == 6.0
    module = split_net(small_vgg).module(result.model)
    with torch.no_grad():
        output, y = module(torch.from_numpy(data.test["x"])), torch.from_numpy(data.test["y"])
    assert result.final["loss"] == pytest.approx(float(F.cross_entropy(output, y)), rel=1e-5)


def test_augmentation_is_one_operation_on_the_device_and_the_same_split_and_whole() -> None:
    from fieldfare.core.block import Block

    made = np.random.default_rng(0)
    x, y = made.integers(0, 256, (24, 3, 32, 32), np.uint8), made.integers(0, 10, 24)
    net = split_net(
        lambda: vgg5(widths=(8, 8, 8, 16), augment=True), transform="unit", example={"x": x[:2], "y": y[:2]}
    )
    assert net.cuts[0].name == "conv1"
    block, training = Block({"x": x, "y": y}, np.arange(24), np.array([0, 24])), Training(lr=0.1, batch_size=8)
    expected, loss = whole(net, block, keys(1), 0, training)
    found, told = by_hand(split(net, "pool2", training), block, keys(1), 0)
    np.testing.assert_array_equal(found, expected)
    assert told == loss


class ByValue(nn.Module):
    """Goes by a value, which neither torch.fx nor torch.export can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(-x if x.sum() > 0 else x)


def test_a_module_that_nothing_can_follow_is_refused_in_one_line_and_nothing_is_printed(capfd) -> None:
    rows = {"x": np.zeros((2, 4), np.float32), "y": np.zeros(2, np.int64)}
    with pytest.raises(UsageError, match=r"neither torch\.fx .* nor torch\.export .* can follow ByValue"):
        split_net(ByValue, example=rows)
    assert capfd.readouterr() == ("", "")
