"""Torch nets that train something smaller: as declared nets do, on every path, with layers of all kinds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from work_cohorts import block

import fieldfare as ff
from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.core.local import LowRank, Nested, Rounded, Scaled
from fieldfare.core.work import Cohort
from fieldfare.work import compress
from fieldfare.work.inner import rounded
from fieldfare.work.net import Training
from fieldfare.work.submodel import declared, submodels
from fieldfare.work.torch_inner import shares_kept
from fieldfare.work.train import Train

cases = pytest.importorskip("submodel_nets")
torch, nn = cases.torch, cases.nn

DATA = ff.synthetic(clients=12, classes=5, features=16, seed=3, min_examples=12, log_mean=1.0, log_sigma=0.5)
NET = ff.mlp(16, 12, 8, 5)
WIDTHS = (1.0, 0.5, 0.25)
PATHS = ("auto", "graph", "lockstep-4")
EXAMPLE = {name: column[:2] for name, column in DATA.columns.items()}


def twin(path="graph", loss="cross_entropy"):
    """The declared net as a module of the same parameters."""
    body = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))
    start = NET.init(0)
    with torch.no_grad():
        for p, (_, where, shape) in zip(body.parameters(), start.layout.items(), strict=True):
            p.copy_(torch.tensor(start.vector[where].reshape(shape)))
    return ff.torch_net(body, loss, path=path, example=EXAMPLE)


def methods(view):
    """Algorithms by name; those of sub-models by the `view`, which may be None."""
    found = {
        "quantised": ff.quantise(ff.FedAvg(3, 8), bits=4),
        "low rank": ff.low_rank(ff.FedAvg(3, 8), rank=2),
    }
    if view is None:
        return found
    nested = {"distil": 0.5, "temperature": 2.0}
    return {
        **found,
        "heterofl": ff.HeteroFL(3, 8, view=view),
        "fjord": ff.FjORD(3, 8, view=view, shares=WIDTHS),
        "fjord distilled": ff.FjORD(3, 8, view=view, shares=WIDTHS, **nested),
        "nestedfl": ff.NestedFL(3, 8, view=view, shares=WIDTHS),
        "quantised heterofl": ff.quantise(ff.HeteroFL(3, 8, view=view), bits=5),
        "low rank heterofl": ff.low_rank(ff.HeteroFL(3, 8, view=view), rank=2),
        "quantised low rank": ff.quantise(ff.low_rank(ff.FedAvg(3, 8), rank=2), bits=6),
        "frozen low rank": ff.freeze(ff.low_rank(ff.FedAvg(3, 8), rank=2), names=("0",)),
        "nestedfl, own start": ff.NestedFL(3, 8, view=view, shares=WIDTHS, own_start=True),
        "quantised nestedfl": ff.quantise(ff.NestedFL(3, 8, view=view, shares=WIDTHS), bits=5),
    }


NAMES = list(methods(submodels(NET).view()))
every = pytest.mark.parametrize("name", NAMES)


def run(name, net, lr=0.1, data=DATA, workers=1, **training):
    family = submodels(net, WIDTHS)
    training = ff.Training(lr=lr, batch_size=6, epochs=2, **training)
    simulated = ff.Simulated(workers=workers)
    return ff.Job(family, data, methods(family.view())[name], training, simulated=simulated).run(
        runs=None, progress=False
    )


@every
@pytest.mark.parametrize("path", PATHS)
def test_a_module_gives_the_declared_nets_numbers(name, path):
    declared, found = run(name, NET), run(name, twin(path))
    np.testing.assert_allclose(found.model.vector, declared.model.vector, atol=2e-5)
    assert [row["loss"] for row in found.rounds] == pytest.approx([row["loss"] for row in declared.rounds], abs=1e-4)
    assert found.summary["bytes_up"] == declared.summary["bytes_up"]
    assert found.summary["bytes_down"] == declared.summary["bytes_down"]
    assert found.summary["virtual_s"] == pytest.approx(declared.summary["virtual_s"])


@pytest.mark.parametrize("name", [name for name in NAMES if "own start" not in name])
def test_zero_training_lifts_to_exactly_zero(name):
    assert run(name, twin(), lr=0.0).model.vector.tobytes() == NET.init(0).vector.tobytes()


CONV = "vgg_group"


def case(kind, rows=6, **training):
    """(net of a module, a cohort of clients who take all their rows at every step, training)."""
    module, x = cases.made(kind)
    x = np.concatenate([x.numpy()] * (rows // len(x)))
    x = x + np.arange(rows, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * (0 if x.dtype.kind == "i" else 0.1)
    out = module.eval()(torch.from_numpy(x).to(torch.float32 if x.dtype.kind == "f" else torch.int64))
    y = np.arange(out[..., 0].numel()).reshape(out.shape[:-1]) % out.shape[-1]
    columns = {"x": x, "y": y}
    net = ff.torch_net(module, example=columns)
    data = Block(columns, np.arange(rows), np.array([0, rows // 2, rows]))
    keys = rng.keys(0, ("test",), np.arange(2))
    training = Training(**{"lr": 0.1, "batch_size": rows // 2, "epochs": 2, "shuffle": False} | training)
    start = net.init(0).vector
    return net, Cohort(start[None], np.zeros(2, np.int64), net.layout, np.arange(2), keys, data), training


def ends(net, training, cohort, *local):
    return Train(net, training, local)(cohort).leaves["delta"] + cohort.models[cohort.row]


kinds = pytest.mark.parametrize("kind", cases.KINDS)


@kinds
def test_a_step_of_a_net_inside_is_that_nets_own(kind):
    net, cohort, training = case(kind)
    family = submodels(net, (1.0, 0.5))
    places = family._one(family.levels[1]).index(0)
    found = ends(net, training, cohort, Nested((1.0, 0.5), each="only"))
    one = replace(training, epochs=1)
    first = ends(net, one, cohort)
    inside = replace(cohort, models=first[:, places], row=np.arange(2), layout=family.at(0.5).layout)
    second = first.copy()
    second[:, places] = ends(family.at(0.5), one, inside)
    np.testing.assert_allclose(found, second, atol=1e-6)
    assert (np.abs(found - first).max(axis=1) > 1e-4).all()


@kinds
def test_what_is_inside_trains_beside_the_own_net_and_rows_do_not_depend_on_others(kind):
    net, cohort, training = case(kind)
    family = submodels(net, (1.0, 0.5, 0.25))
    level = family.at(0.5)
    places = family._one(family.levels[1]).index(0)
    smaller = replace(cohort, models=cohort.models[:, places], layout=level.layout)
    for local in (Nested((1.0, 0.5, 0.25), 0.3, 2.0, 0.8, "turn", 0.4), Scaled(), Rounded(6)):
        found = Train(net, training, (local,))(smaller)
        plain = Train(net, training)(smaller)
        assert np.isfinite(found.leaves["delta"]).all()
        assert not np.array_equal(found.leaves["delta"], plain.leaves["delta"])
        alone = Train(net, training, (local,))(smaller.part(1, 2))
        assert np.array_equal(alone.leaves["delta"][0], found.leaves["delta"][1])


@pytest.mark.parametrize("local", [Scaled(), Nested((1.0, 0.5, 0.25), back=0.4), Rounded(6)], ids=lambda one: str(one))
def test_large_layers_train_alike_on_every_path(local):
    body = nn.Sequential(nn.Linear(16, 400), nn.ReLU(), nn.Linear(400, 200), nn.ReLU(), nn.Linear(200, 5))
    training = Training(lr=0.05, batch_size=4, epochs=1)
    data, keys = block([9, 6], 16, 5), rng.keys(0, ("test",), np.arange(2))
    found = []
    for path in PATHS:
        net = ff.torch_net(body, path=path, example=EXAMPLE)
        family = submodels(net, (1.0, 0.5))
        layout, places = family.at(0.5).layout, family._one(family.levels[1]).index(0)
        start = net.init(0).vector[None, places]
        cohort = Cohort(start, np.zeros(2, np.int64), layout, np.arange(2), keys, data)
        found.append(Train(net, training, (local,))(cohort).leaves["delta"])
    for one in found[1:]:
        np.testing.assert_allclose(one, found[0], atol=1e-5)


@kinds
def test_factors_compute_as_the_matrix_they_stand_for(kind):
    net, cohort, training = case(kind)
    small = net.factored(2)
    assert small.layout.size < net.layout.size
    vector = compress.factors(net, small, cohort.models[0])
    low = compress.product(net, small, vector)
    np.testing.assert_allclose(compress.product(net, small, compress.factors(net, small, low)), low, atol=1e-5)
    x = net.batch(3)
    with torch.no_grad():
        ours, theirs = small.module(vector).train()(*x), net.module(low).train()(*x)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    found = Train(net, training, (LowRank(2),))(cohort)
    assert (np.abs(found.leaves["delta"]).max(axis=1) > 1e-4).all()
    zero = Train(net, replace(training, lr=0.0), (LowRank(2),))(cohort)
    assert not zero.leaves["delta"].any()


def test_factors_of_convolutions_keep_their_steps_and_edges():
    body = nn.Sequential(
        nn.Conv1d(3, 6, 3, stride=2, padding=2, dilation=2, padding_mode="circular"), nn.ReLU(),
        nn.Conv1d(6, 5, 4, bias=False), nn.Flatten(), nn.LazyLinear(5),
    )  # fmt: skip
    x = torch.randn(4, 3, 16)
    body(x)
    net = ff.torch_net(body, example={"x": x.numpy(), "y": np.zeros(4, int)})
    small = net.factored(2)
    vector = compress.factors(net, small, net.init(0).vector)
    whole = net.module(compress.product(net, small, vector))
    with torch.no_grad():
        np.testing.assert_allclose(small.module(vector)(x), whole(x), atol=1e-5)


class Counting(nn.Module):
    """Its outputs depend on how often it was called: on a buffer that every client must find as it was given."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return self.b(self.a(x).relu()) * (1 + self.calls)


def test_buffers_of_nets_inside_are_every_clients_own():
    _, cohort, training = case("mlp")
    net = ff.torch_net(Counting(), example=cohort.data.columns)
    cohort = replace(cohort, models=net.init(0).vector[None], layout=net.layout)
    work = Train(net, training, (Nested((1.0, 0.5), back=0.4),))
    whole = work(cohort)
    assert np.array_equal(work(cohort.part(1, 2)).leaves["delta"][0], whole.leaves["delta"][1])
    assert np.array_equal(work(cohort).leaves["delta"], whole.leaves["delta"])


def test_layers_that_cannot_be_factored_stay_whole_and_a_net_of_such_is_refused():
    def split(kind):
        net = case(kind)[0]
        return {name.removesuffix(".0.weight") for name in net.factored(2).layout.names if name.endswith(".0.weight")}

    assert split("encoder") == {f"encoder.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)} | {"out"}
    assert split("gated") == {"a", "up", "down", "less", "more", "out"}
    assert split("lstm") == {"out"}
    assert "out" not in split("tied")
    rows = {"x": np.zeros((2, 3, 4), np.float32), "y": np.zeros((2, 3), int)}

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = nn.GRU(4, 5), nn.Linear(5, 5)

        def forward(self, x):
            return nn.functional.linear(self.layer(x)[0], self.out.weight)

    with pytest.raises(UsageError, match=r"no layer .*layer: GRU is no linear .*; out: the module reads its weight"):
        Train(ff.torch_net(Alone(), example=rows), local=(LowRank(2),))


def test_a_rank_that_no_layer_has_changes_no_bit():
    family = submodels(twin(), (1,))
    plain, found = (
        ff.Job(family, DATA, one, Training(lr=0.1), simulated=ff.Simulated(workers=1)).run(runs=None, progress=False)
        for one in (ff.FedAvg(3, 8), ff.low_rank(ff.FedAvg(3, 8), rank=99))
    )
    assert found.model.vector.tobytes() == plain.model.vector.tobytes()


@pytest.mark.parametrize("kind", [CONV, "mlp", "lstm"])
def test_with_rate_one_for_all_and_nothing_inside_it_is_fedavg_bit_for_bit(kind):
    net, cohort, training = case(kind)
    plain = ends(net, training, cohort).tobytes()
    for local in (Scaled(), Nested((1.0,))):
        assert compress.trained(net, net, (local,)) is net
        assert ends(net, training, cohort, local).tobytes() == plain


@pytest.mark.parametrize("net", [NET, twin("auto"), twin()], ids=["declared", "stacked", "graph"])
def test_nothing_is_inside_the_smallest(net):
    family = submodels(net, WIDTHS)
    level = family.at(0.25)
    data = block([9, 4], 16, 5)
    keys = rng.keys(0, ("test",), np.arange(2))
    cohort = Cohort(level.init(0).vector[None], np.zeros(2, np.int64), level.layout, np.arange(2), keys, data)
    training = Training(lr=0.1, batch_size=4, epochs=3)
    plain = Train(net, training)(cohort).leaves["delta"]
    for each in ("all", "turn", "only"):
        assert np.array_equal(Train(net, training, (Nested(WIDTHS, each=each),))(cohort).leaves["delta"], plain)


def test_outputs_of_cut_layers_are_divided_before_the_norm_and_in_training_alone():
    net, cohort, _ = case(CONV)
    level = submodels(net, (1.0, 0.5)).at(0.5)
    scaled = compress.trained(level, net, (Scaled(),))
    shares = shares_kept(level, net)
    assert set(shares.values()) == {0.5}
    kinds = {type(level._module.get_submodule(name)) for name in shares}
    assert kinds == {nn.Conv2d, nn.Linear}
    x = level.batch(3)[0]
    first = next(name for name, part in level._module.named_modules() if isinstance(part, nn.Conv2d))
    plain, divided = (one._module.get_submodule(first) for one in (level, scaled))
    assert torch.equal(plain.train()(x) / 0.5, divided.train()(x))
    assert torch.equal(plain.eval()(x), divided.eval()(x))
    at = level.init(0).vector[None], np.zeros(2, np.int64), cohort.data
    for a, b in zip(level.evaluate(*at).values(), scaled.evaluate(*at).values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)  # one of them is measured by the compiled core, where that is here


def test_recurrent_embedding_and_attention_outputs_are_divided_too():
    def names(kind):
        net = case(kind)[0]
        return set(shares_kept(submodels(net, (1.0, 0.5)).at(0.5), net))

    assert names("lstm") == {"emb", "layer"}
    assert names("encoder") == {"emb"} | {
        f"encoder.layers.{i}.{part}"
        for i in (0, 1)
        for part in ("self_attn", "self_attn.out_proj", "linear1", "linear2")
    }


def test_gradients_are_taken_at_rounded_weights():
    net, cohort, training = case(CONV, epochs=1)
    where = [at for _, at, _ in net.layout.items()]
    start = rounded(cohort.models, where, 4)
    plain = Train(net, training)(replace(cohort, models=start)).leaves["delta"]
    found = Train(net, training, (Rounded(4),))
    np.testing.assert_allclose(found(cohort).leaves["delta"], plain, atol=1e-7)
    two = Train(net, replace(training, epochs=2), (Rounded(4),))(cohort).leaves["delta"]
    middle = start + plain
    again = replace(cohort, models=rounded(middle, where, 4), row=np.arange(2))
    second = Train(net, training)(again).leaves["delta"]
    np.testing.assert_allclose(two, plain + second, atol=1e-6)


@pytest.mark.parametrize("each", ["all", "turn", "only"])
def test_masked_losses_and_momentum_are_those_of_the_declared_net_too(each):
    net = ff.work.dense.DenseNet(NET.layers, "masked_cross_entropy")
    local = Nested(WIDTHS, 0.4, 2.0, 0.7, each, 0.3), Rounded(6)
    training = Training(lr=0.05, batch_size=4, epochs=2, momentum=0.9)
    data, keys = block([9, 6, 3], 16, 5), rng.keys(0, ("test",), np.arange(3))
    cohort = Cohort(NET.init(0).vector[None], np.zeros(3, np.int64), NET.layout, np.arange(3), keys, data)
    declared, found = (
        Train(one, training, local)(cohort) for one in (net, twin(loss="masked_cross_entropy"))
    )  # fmt: skip
    np.testing.assert_allclose(found.leaves["delta"], declared.leaves["delta"], atol=1e-5)
    np.testing.assert_allclose(found.metrics["loss"], declared.metrics["loss"], atol=1e-5)


def test_sequences_learn_from_one_another_where_targets_count():
    net, cohort, training = case("lstm")
    columns = dict(cohort.data.columns)
    columns["y"] = columns["y"].copy()
    columns["y"][:, 4:] = -100
    data = replace(cohort.data, columns=columns)
    local = Nested((1.0, 0.5), 0.5, 2.0, 1.0, "all", 0.5)
    found = ends(net, training, replace(cohort, data=data), local)
    # a causal net does not see later places: sequences cut there are the same
    short = {"x": columns["x"][:, :4].copy(), "y": columns["y"][:, :4].copy()}
    wanted = ends(net, training, replace(cohort, data=replace(cohort.data, columns=short)), local)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def pictures():
    """The same clients, their features as pictures of 4 x 4, and a convolutional net with group norms."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    columns, test = (
        {"x": one["x"].reshape(-1, 1, 4, 4), "y": one["y"]} for one in (DATA.columns, DATA.test)
    )  # fmt: skip
    return body, replace(DATA, columns=columns, test=test)


@every
@pytest.mark.sampled(3)
def test_a_convolutional_net_with_group_norms_learns_with_each(name):
    body, data = pictures()
    net = ff.torch_net(body, example=data.columns)
    first, found = run(name, net, 0.0, data), run(name, net, 0.2, data)
    assert (first.model.vector.tobytes() == net.init(0).vector.tobytes()) == ("own start" not in name)
    assert found.final["loss"] < first.final["loss"]


def test_nets_with_exits_learn_from_widths_inside_at_every_exit():
    from fieldfare.work.submodel import Level
    from fieldfare.work.submodel.exits import exit_loss, exits

    body = twin()._module
    net = exits(body, ("1", "3"), torch.as_tensor(EXAMPLE["x"]))
    levels = [Level(), Level(0.5), Level(depth=2), Level(0.5, 2)]
    family = submodels(net, levels, loss=exit_loss(), metrics=("accuracy",), example=DATA.columns)
    view = family.view()
    data, keys = block([8], 16, 5), rng.keys(0, ("test",), np.arange(1))
    data.columns["y"][data.rows[3]] = -100  # a target that does not count
    training = Training(lr=0.1, batch_size=8, epochs=1)
    start = family.init(0).vector
    for level in (0, 2):
        own, inside = view.layout(level), view.layout(level + 1)
        cohort = Cohort(start[None, view.index(level)], np.zeros(1, np.int64), own, np.arange(1), keys, data)
        local = Nested((1.0, 0.5), 0.5, 2.0, 1.0, "turn", 0.4)
        found = Train(family, training, (local,))(cohort).leaves["delta"][0]
        changed = family.net.of(own).changed(family.net, (local,))
        assert [one.layout for one in changed._within.nets] == [inside]
        # by hand
        whole, small = family.at(levels[level]).module(cohort.models[0]).train(), family.at(levels[level + 1])
        small = small.module(start[view.index(level + 1)]).train()
        x, y = (torch.from_numpy(data.columns[name][data.rows]) for name in ("x", "y"))
        a, b = whole(x), small(x)

        def apart(teacher, student, y=y):
            p, q = (teacher.detach() / 2).softmax(-1), (student / 2).softmax(-1)
            return 4 * (p * (p.log() - q.log())).sum(-1)[y >= 0].mean()

        (0.6 * exit_loss()(a, y) + 0.4 * apart(b, a)).backward()
        (0.5 * exit_loss()(b, y) + 0.5 * apart(a, b)).backward()
        wanted = np.zeros(len(start), np.float32)
        for part, at in ((whole, level), (small, level + 1)):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in part.parameters()]
            wanted[view.index(at)] -= 0.1 * torch.cat([g.reshape(-1) for g in grads]).numpy()
        np.testing.assert_allclose(found, wanted[view.index(level)], atol=1e-6)


def test_costs_are_those_of_what_is_trained():
    net, _, training = case(CONV)
    sizes, low = np.array([10]), net.factored(2)

    def cost(*local):
        return Train(net, training, local).cost(sizes, net.layout, {})

    plain, half = cost(), submodels(net, (0.5,)).at(0.5).flops() * sizes[0] * 2
    assert cost(Nested((1.0, 0.5), each="all")).flops == pytest.approx(plain.flops + half)
    assert cost(Nested((1.0, 0.5), each="only")).flops == pytest.approx((plain.flops + half) / 2)
    found = cost(LowRank(2))
    assert (float(found.bytes_down), float(found.bytes_up)) == (4.0 * low.layout.size, 4.0 * low.layout.size)
    assert low.flops() < net.flops()
    assert found.flops == pytest.approx(low.flops() * sizes[0] * 2)
    tensors = len(net.layout.names)
    assert float(cost(Rounded(8)).bytes_down) == net.layout.size + 4.0 * tensors
    assert declared(low, training).memory_bytes < declared(net, training).memory_bytes


def test_what_has_no_meaning_is_refused_in_one_line():
    rows = {"x": np.zeros((2, 16), np.float32), "y": np.zeros((2, 5), np.float32)}
    numbers = ff.torch_net(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5)), "mse", example=rows)
    with pytest.raises(UsageError, match=r"compare what nets say of labels, and the loss of this net is mse"):
        Train(numbers, local=(Nested((1.0, 0.5), 0.5),))
    Train(numbers, local=(Nested((1.0, 0.5)),))
    blind = ff.torch_net(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5)))
    cohort = replace(case("mlp")[1], layout=blind.layout, models=blind.init(0).vector[None])
    with pytest.raises(UsageError, match="no example to look at"):
        Train(blind, local=(Nested((1.0, 0.5)),))(cohort)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nestedfl", "fjord", "heterofl", "low rank", "quantised"])
def test_one_and_two_workers_give_the_same_bits(name):
    assert run(name, twin()).model.vector.tobytes() == run(name, twin(), workers=2).model.vector.tobytes()
