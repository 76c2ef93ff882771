"""A device's and an edge's half of a model: the same bits in any stack, and together the training of the whole."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from split_cases import MODULES, SGD, SIZES, by_hand, cohort, data, dense, keys, make, net_of, nn, torch, whole

from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.core.work import Cohort
from fieldfare.models import resnet, vgg5
from fieldfare.work.net import Training
from fieldfare.work.plan import make_plan
from fieldfare.work.split import split, split_net, split_works

TOLERANCE = 2e-6
"""Largest difference of a parameter after 15 steps. On the processors we know it is 0, see the test of bits."""


@pytest.mark.parametrize("kind", MODULES)
def test_one_device_and_one_edge_train_as_the_whole_net_alone_does(kind: str) -> None:
    net, block, key = net_of(kind), data(), keys(4)
    expected, loss = whole(net, block, key, 2, SGD)
    for cut in (net.cuts[0], net.cuts[len(net.cuts) // 2], net.cuts[-1]):
        found, told = by_hand(split(net, cut, SGD), block, key, 2)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
        assert told == pytest.approx(loss, abs=1e-6)
    assert np.abs(expected - net.init(0).vector).max() > 0.05


def test_a_cut_after_any_layer_gives_the_bits_of_the_whole_net() -> None:
    net, block, key = net_of("vgg"), data(), keys(4)
    expected, loss = whole(net, block, key, 0, SGD)
    for cut in net.cuts:
        found, told = by_hand(split(net, cut, SGD), block, key, 0)
        np.testing.assert_array_equal(found, expected)
        assert told == loss


@pytest.mark.parametrize(
    "training",
    [
        Training(lr=0.1, batch_size=8),
        Training(lr=0.01, batch_size=8, optimizer="adam", epochs=2),
        Training(lr=0.05, batch_size=8, momentum=0.9, nesterov=True, steps=7),
        Training(lr=0.05, batch_size=50, shuffle=False, epochs=3),
    ],
)
def test_every_optimiser_and_order_of_batches_agrees_with_the_whole_net(training: Training) -> None:
    net, block, key = net_of("dense"), data(), keys(4)
    for i in (0, 1, 2):
        found, _ = by_hand(split(net, net.cuts[1], training), block, key, i)
        np.testing.assert_allclose(found, whole(net, block, key, i, training)[0], atol=TOLERANCE)


def test_the_learning_rate_follows_the_schedule_of_the_round() -> None:
    net, block, key = net_of("dense"), data(), keys(4)
    one = split(net, net.cuts[1], SGD)
    ends = [by_hand(one, block, key, 0, round_)[0] for round_ in (1, 2, 3)]
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[2], whole(net, block, key, 0, SGD, 3)[0])
    assert (ends[0] != ends[2]).any()


def test_a_change_of_cut_between_two_batches_changes_no_bit() -> None:
    for kind, training in (("vgg", SGD), ("dense", Training(lr=0.01, batch_size=8, optimizer="adam", epochs=2))):
        net, block, key = net_of(kind), data(), keys(4)
        steady, loss = by_hand(split(net, 1, training), block, key, 0)
        moved, told = by_hand(split(net, 1, training), block, key, 0, cuts=(1, 2, 2, 0, 3, 1))
        np.testing.assert_array_equal(moved, steady)
        assert told == loss


def stacked(kind: str, cut: int, training: Training, fresh: bool = False):
    """Cohorts of all works, by name, over three clients with models, slots, inputs and batches of their own."""
    net, block, key = make(kind) if fresh else net_of(kind), data(), keys(4)
    works, at, seqs = split_works(net, training, cut), (0, 2, 3), (2, 4, 1)
    made, cohorts = np.random.default_rng(2), {}
    noise = (1 + 0.01 * made.standard_normal((3, 1))).astype(np.float32)
    for tail in (None, len(net.cuts) - 1):
        one = split(net, cut, training, tail)
        device, server = (half.vector * noise for half in one.halves(net.init(0)))
        slots = dict(zip(("device", "server"), one.slots(), strict=True))
        config = {"round": 1} if tail is None else {"round": 1, "tail": tail}

        def ask(name, side, *more, tail=tail, one=one, slots=slots, config=config, models=(device, server)):
            of = [{leaf: rows[i] for leaf, rows in each.items()} for each in more for i in range(3)]
            each = {i: {"seq": seqs[i], "slots": slots[side]} for i in range(3)}
            for number, inputs in enumerate(of):
                each[number % 3] |= inputs
            asked = cohort(models[side == "server"], block, key, at, config=config, each=each)
            cohorts[name if tail is None else f"{name} U"] = (name, asked)
            return works[name](asked).leaves

        up = ask("split/forward", "device")
        if tail is None:
            done = ask("split/step", "server", up)
        else:
            mid = ask("split/middle", "server", up)
            end = ask("split/tail", "device", mid)
            done = ask("split/step", "server", up, {"g": end["g"]})
        ask("split/backward", "device", {"g": done["g"]})
    return works, cohorts


@pytest.mark.parametrize(("kind", "cut"), [("dense", 1), ("vgg", 7), ("vgg", 0), ("resnet", 3)])
def test_a_row_has_the_same_bits_alone_and_in_any_stack(kind: str, cut: int) -> None:
    works, cohorts = stacked(kind, cut, SGD)
    fresh, _ = stacked(kind, cut, SGD, fresh=True)
    for name, many in cohorts.values():
        together = works[name](many)
        for i in range(3):
            alone = fresh[name](many.part(i, i + 1))
            for leaf, rows in together.leaves.items():
                np.testing.assert_array_equal(alone.leaves[leaf][0], rows[i], err_msg=f"{name} {leaf}")
            assert {m: v[i] for m, v in together.metrics.items()} == {m: v[0] for m, v in alone.metrics.items()}
            assert together.weight[i] == alone.weight[0]
    assert len(np.unique(together.leaves["model"], axis=0)) == 3


def test_nothing_given_is_written_to_and_asking_again_gives_the_same_bits() -> None:
    works, cohorts = stacked("vgg", 7, SGD)
    for name, one in cohorts.values():
        arrays = [one.models, *(v for told in one.each.values() for v in told.values() if isinstance(v, np.ndarray))]
        before = [a.copy() for a in arrays]
        for a in arrays:
            a.flags.writeable = False
        first, second = works[name](one), works[name](one)
        for a, b in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(a, b)
        for leaf in first.leaves:
            for a, b in zip(first.leaves[leaf], second.leaves[leaf], strict=True):
                np.testing.assert_array_equal(a, b)


def test_activations_at_any_address_give_the_same_bits() -> None:
    works, cohorts = stacked("vgg", 7, SGD)
    step = cohorts["split/step"][1]
    expected = works["split/step"](step.part(0, 1)).leaves["g"][0]
    act = step.each[0]["act"]
    for shift in range(1, 9):
        raw = bytearray(act.nbytes + 64)
        moved = np.frombuffer(raw, np.float32, act.size, 4 * shift).reshape(act.shape)
        moved[...] = act
        one = replace(step.part(0, 1), each={0: {**step.each[0], "act": moved}})
        np.testing.assert_array_equal(works["split/step"](one).leaves["g"][0], expected)


def test_running_statistics_count_every_batch_once() -> None:
    net, block, key = net_of("vgg"), data(), keys(4)
    found, _ = by_hand(split(net, "pool2", SGD), block, key, 0)
    tensors = {name: found[at] for name, at, _ in net.layout.items()}
    steps = len(make_plan(block.part(0, 1), key[:1], SGD).step_bounds(0)) - 1
    assert [tensors[f"norm{n}.num_batches_tracked"].item() for n in (1, 2, 3)] == [steps] * 3
    assert (tensors["norm1.running_var"] != 1).all()


def test_counters_of_batches_are_named_for_who_averages() -> None:
    net = net_of("vgg")
    names = [name for name, at, _ in net.layout.items() if net.counters[at].all()]
    assert names == [f"norm{n}.num_batches_tracked" for n in (1, 2, 3)]
    assert net.counters.sum() == 3
    assert not net_of("vgg_group").counters.any()


def test_a_module_that_calls_view_behind_a_convolution_is_cut_all_the_same() -> None:
    from split_cases import columns

    class Viewer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mid, self.last = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3), nn.Linear(64, 10)

        def forward(self, x):
            h = torch.relu(self.mid(torch.relu(self.conv(x.unflatten(1, (1, 8, 8))))))
            return self.last(h.view(h.size(0), -1))

    net, block, key = split_net(Viewer, example=columns(2)), data(), keys(4)
    for cut in net.cuts:
        found, _ = by_hand(split(net, cut, SGD), block, key, 0)
        np.testing.assert_array_equal(found, whole(net, block, key, 0, SGD)[0])
    assert not net._held().channels_last


@pytest.mark.slow
@pytest.mark.parametrize("make_net", [vgg5, resnet])
def test_at_the_size_of_the_paper_split_training_has_the_bits_of_the_whole(make_net) -> None:
    made = np.random.default_rng(0)
    columns = {"x": made.standard_normal((250, 3, 32, 32), dtype=np.float32), "y": made.integers(0, 10, 250)}
    net = split_net(make_net, example={name: column[:2] for name, column in columns.items()})
    block = Block(columns, np.arange(250), np.array([0, 250]))
    training = Training(lr=0.01, momentum=0.9, batch_size=100)
    expected, _ = whole(net, block, keys(1), 0, training)
    for cut in (net.cuts[3], net.cuts[7], net.cuts[10]):
        np.testing.assert_array_equal(by_hand(split(net, cut, training), block, keys(1), 0)[0], expected)


FRESH = """
from split_cases import SGD, by_hand, data, keys, make, split
import hashlib
end, _ = by_hand(split(make("vgg"), "pool2", SGD), data(), keys(4), 0)
print(hashlib.sha256(end.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_a_fresh_process_computes_the_same_bits() -> None:
    end, _ = by_hand(split(net_of("vgg"), "pool2", SGD), data(), keys(4), 0)
    here = Path(__file__).parent
    out = subprocess.run([sys.executable, "-c", FRESH], cwd=here, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == hashlib.sha256(end.tobytes()).hexdigest()


def test_chance_is_drawn_alike_forward_and_backward_and_anew_for_every_batch() -> None:
    made = nn.Sequential(nn.Linear(64, 12), nn.Dropout(0.5), nn.Linear(12, 10), nn.Dropout(0.2), nn.ReLU())
    from split_cases import columns

    net, block, key = split_net(made, example=columns(2)), data(), keys(4)
    works = split_works(net, SGD, "1")
    device = net.init(0).vector[: net.cut("1").size]
    acts = [
        works["split/forward"](cohort(device, block, key, (0,), config={"seq": seq})).leaves["act"][0]
        for seq in (0, 1, 0)
    ]
    np.testing.assert_array_equal(acts[0], acts[2])
    assert ((acts[0] == 0) != (acts[1] == 0)).any()
    one = split(net, "1", Training(lr=0.1, batch_size=8, steps=1))
    end, _ = by_hand(one, block, key, 0)
    dead = (acts[0] == 0).all(axis=0)
    moved = (end - net.init(0).vector)[: 64 * 12].reshape(12, 64)
    assert (moved[~dead] != 0).any(axis=1).all()
    assert not moved[dead].any()


def test_the_middle_of_a_u_draws_the_same_chance_when_it_is_computed_again() -> None:
    from split_cases import columns

    made = nn.Sequential(nn.Linear(64, 12), nn.Linear(12, 12), nn.Dropout(0.5), nn.Linear(12, 10))
    net, block, key = split_net(made, example=columns(2)), data(), keys(4)
    works, one = split_works(net, Training(lr=1.0), "0", "2"), split(net, "0", tail="2")
    server = one.halves(net.init(0))[1].vector
    act, config = np.ones((7, 12), np.float32), {"seq": 2}
    mid = works["split/middle"](cohort(server, block, key, config=config, inputs={"act": act})).leaves["act"][0]
    inputs = {"act": act, "g": np.ones((7, 12), np.float32)}
    done = works["split/step"](cohort(server, block, key, config=config, inputs=inputs)).leaves["model"][0]
    kept = 2.0 * (mid != 0).sum(axis=0)
    assert 0 < kept.sum() < 2 * mid.size
    np.testing.assert_allclose((server - done)[-12:], kept, atol=1e-5)


def test_slots_are_zero_where_a_number_is_a_statistic() -> None:
    _, cohorts = stacked("vgg", 7, SGD)
    net, works = net_of("vgg"), split_works(net_of("vgg"), SGD, 7)
    slots = works["split/step"](cohorts["split/step"][1]).leaves["slots"][0]
    layout = split(net, 7).layouts[1]
    for name, at, _ in layout.items():
        assert slots[at].any() != (".running" in name or ".num_" in name), name


def test_halves_and_slots_join_to_what_was_cut() -> None:
    net = net_of("vgg")
    for training in (Training(), Training(momentum=0.9), Training(optimizer="adam")):
        one = split(net, "pool2", training)
        model = net.init(3)
        np.testing.assert_array_equal(one.join(*one.halves(model)).vector, model.vector)
        assert one.join(*one.halves(model)).layout == net.layout
        sizes = [len(slots) for slots in one.slots()]
        whole_slots = np.arange(sum(sizes) - (training.optimizer == "adam"), dtype=np.float32)
        device, server = one.halve_slots(whole_slots)
        assert [len(device), len(server)] == sizes
        np.testing.assert_array_equal(one.join_slots(device, server), whole_slots)


def test_without_a_name_the_cut_is_that_of_the_model_s_size_where_least_crosses() -> None:
    net, block, key = net_of("vgg"), data(), keys(4)
    works, one = split_works(net, SGD), split(net, "pool1", SGD)
    assert net.cut_of_size(one.cut.size) == one.cut
    device, server = one.halves(net.init(0))
    up = works["split/forward"](cohort(device.vector, block, key, config={"seq": 0}))
    assert up.leaves["act"].shape[2:] == one.cut.activations
    inputs = {name: rows[0] for name, rows in up.leaves.items()}
    done = works["split/step"](cohort(server.vector, block, key, config={"seq": 0}, inputs=inputs))
    given = {**inputs, "slots": one.slots()[1]}
    named = works["split/step"](cohort(server.vector, block, key, config={"seq": 0, "cut": "pool1"}, inputs=given))
    for leaf, rows in done.leaves.items():
        np.testing.assert_array_equal(rows, named.leaves[leaf])
    with pytest.raises(UsageError, match="no cut leaves 17 numbers"):
        works["split/forward"](cohort(np.zeros(17, np.float32), block, key, config={"seq": 0}))


@pytest.mark.parametrize("kind", ["dense", "vgg", "resnet"])
@pytest.mark.parametrize("training", [SGD, Training(lr=0.01, batch_size=8, optimizer="adam")])
def test_a_u_keeps_labels_on_the_device_and_gives_the_bits_of_the_whole_net(kind: str, training: Training) -> None:
    net, block, key = net_of(kind), data(), keys(4)
    one = split(net, 1, training, tail=net.cuts[-1])
    expected, loss = whole(net, block, key, 0, training)
    found, told = by_hand(one, block, key, 0)
    np.testing.assert_array_equal(found, expected)
    assert told == loss
    device = one.halves(net.init(0))[0]
    config = {"seq": 0, "cut": 1, "tail": len(net.cuts) - 1}
    up = split_works(net, training)["split/forward"](cohort(device.vector, block, key, config=config))
    assert set(up.leaves) == {"act"}


def test_costs_of_a_u_add_up_to_whole_training() -> None:
    net = net_of("vgg")
    works, one = split_works(net, SGD, "pool1", "flatten"), split(net, "pool1", SGD, "flatten")
    own, other = one.layouts
    sizes, total = np.array([8]), np.zeros(1)
    for work in works.values():
        total += work.cost(sizes, other if work.server else own, {"seq": 0}).flops
    again = 8 * (one.cut.server_forward - one.tail.server_forward)  # "step" computes what "middle" did
    np.testing.assert_allclose(total - again, 8 * net.flops())


def test_halves_of_a_u_join_to_what_was_cut() -> None:
    net = net_of("vgg")
    one = split(net, "pool1", Training(optimizer="adam"), "flatten")
    model, slots = net.init(3), np.arange(2 * net.layout.size + 1, dtype=np.float32)
    device, server = one.halves(model)
    assert device.layout.names[-1] == "dense2.bias"
    assert server.layout.names[0] == "conv2.weight"
    np.testing.assert_array_equal(one.join(device, server).vector, model.vector)
    np.testing.assert_array_equal(one.join_slots(*one.halve_slots(slots)), slots)
    to = split(net, "pool2", Training(optimizer="adam"))
    moved = one.recut(to, device.vector, server.vector, *one.halve_slots(slots))
    np.testing.assert_array_equal(to.join(*moved[:2]).vector, model.vector)
    np.testing.assert_array_equal(to.join_slots(*moved[2:]), slots)
    with pytest.raises(UsageError, match="leaves the server nothing"):
        split(net, "pool2", tail="pool1")


REFUSED = {
    "a tail alone": ({"seq": 0, "cut": None, "tail": 2}, "without a cut"),
    "unknown cut": ({"seq": 0, "cut": "pool9"}, "no cut is called 'pool9'"),
    "no batch": ({}, "'seq' is missing"),
    "batch behind the end": ({"seq": 6}, "has 6 batches"),
    "batch before the start": ({"seq": -1}, "numbered from 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_ask_that_cannot_be_computed_is_refused_in_one_line(case: str) -> None:
    config, told = REFUSED[case]
    net = net_of("dense")
    work = split_works(net, SGD)["split/forward"]
    config = {name: value for name, value in {"cut": 1, **config}.items() if value is not None}
    with pytest.raises(UsageError, match=told) as error:
        work(cohort(net.init(0).vector[: net.cuts[1].size], data(), keys(4), config=config))
    assert "\n" not in str(error.value)


def test_inputs_of_a_wrong_form_are_refused_in_one_line() -> None:
    works, cohorts = stacked("dense", 1, SGD)
    up, step, back = (cohorts[f"split/{name}"][1] for name in ("forward", "step", "backward"))

    def refused(name: str, one: Cohort, told: str, **changed: object) -> None:
        one = one.part(0, 1)
        one = replace(one, each={0: {**one.each[0], **changed}})
        with pytest.raises(UsageError, match=told) as error:
            works[name](one)
        assert "\n" not in str(error.value)

    act, g = step.each[0]["act"], back.each[0]["g"]
    refused("split/step", step, "float32 of shape", act=act.astype(np.float64))
    refused("split/step", step, "float32 of shape", act=act[:, :3])
    refused("split/step", step, "float32 of shape", act=act[:0])
    refused("split/step", step, "slots are float32", slots=[0.0])
    refused("split/step", step, "slots are float32", slots=np.zeros(3, np.float32))
    refused("split/step", step, "check the cut", cut=2)
    refused("split/step", step, "torch says 'Target 10 ", y=step.each[0]["y"] * 0 + 10)
    refused("split/backward", back, "a gradient for 3 examples", g=g[:3])
    refused("split/middle", step, "is for a U")
    refused("split/forward", up, "check the cut", cut=2)
    with pytest.raises(UsageError, match="clip_norm=1"):
        split_works(net_of("dense"), Training(clip_norm=1.0))


def test_costs_of_the_three_works_add_up_to_whole_training() -> None:
    net = net_of("vgg")
    works, cut = split_works(net, SGD), net.cut("pool2")
    config = {"cut": "pool2", "seq": 2}
    sizes, own, other = np.array(SIZES), *split(net, cut).layouts
    batch = np.array([7.0, 1.0, 8.0, 8.0])  # the third batch of 23, 1, 40 and 12 examples, round and round
    flops = [works[name].cost(sizes, own, config).flops for name in ("split/forward", "split/backward")]
    np.testing.assert_allclose(flops[0] + flops[1], batch * (cut.device_forward + cut.device_backward))
    step = works["split/step"].cost(sizes, other, {**config, "count": 7})
    np.testing.assert_allclose(step.flops, 7 * (cut.server_forward + cut.server_backward))
    each = cut.device_forward + cut.device_backward + cut.server_forward + cut.server_backward
    assert each == pytest.approx(net.flops(), rel=1e-12)
    assert step.bytes_up == step.bytes_down == 0.0


def test_torch_is_left_as_it_was_found() -> None:
    works, cohorts = stacked("vgg", 7, SGD)
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    for name, one in cohorts.values():
        works[name](one)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_a_dense_net_is_the_same_vector_as_in_torch_net() -> None:
    from fieldfare.work.torch_net import torch_net

    torch.manual_seed(0)
    made = dense()
    a, b = split_net(made), torch_net(made)
    assert a.layout == b.layout
    np.testing.assert_array_equal(a.init(0).vector, b.init(0).vector)
