"""FedFly with widths: the planner of level and cut, sub-models that move, the mean over who covers, what is refused."""

from __future__ import annotations

import json
import subprocess
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from command_line import PROGRAM, environment, job_file
from hypothesis import given, settings
from hypothesis import strategies as st
from split_cases import columns, dense, small_resnet, small_vgg, torch
from test_job_nodes import left, run

import fieldfare as ff
from fieldfare.algorithms.fedfly import central, session
from fieldfare.algorithms.fedfly.merge import merged
from fieldfare.algorithms.fedfly.messages import Plan, Update
from fieldfare.algorithms.fedfly.widths import part_of
from fieldfare.cli_fit import fit
from fieldfare.core.errors import PeerError, UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.fleet.fleet import Fleet
from fieldfare.offload import net_of, offload
from fieldfare.report.read_moves import moves_of
from fieldfare.report.read_nodes import read_nodes
from fieldfare.store.nodes import NODES
from fieldfare.work.net import Training, moments_size
from fieldfare.work.split import Rates, batch_time, split_net
from fieldfare.work.split.memory import counted, device_bytes, server_bytes
from fieldfare.work.split.widths import Seat, Widths, Wire
from fieldfare.work.submodel.rules import MultiRate, Prefix, RandomWindow, Rolling, TopNorm

TRAINING = ff.Training(lr=0.05, momentum=0.9, batch_size=10)
DATA = ff.data.digits(4, ff.iid(), test_fraction=0.8, seed=0)
FAMILY = ff.submodels(split_net(lambda: small_vgg("group"), example=columns(2)), (1, 0.5, 0.25))
WIDTHS = Widths(FAMILY, TRAINING)
MEMORY = (4e9, 60e3, 36e3, 4e9)
"""Of the four devices: the second has no cut of the full width, the third none of half of it."""
LEVELS = (0, 1, 2, 0)
MOVES = ((0, 1, 0.3, 1), (1, 1, 0.5, 1), (2, 2, 0.6, 0))


def on(moves: Any = (), memory: Any = MEMORY, **more: Any) -> ff.Simulated:
    fleet = Fleet(
        flops_per_s=np.array([1e7, 1e7, 2e7, 2e7], np.float32), overhead_s=0.0,
        memory_bytes=np.array(memory, np.float32),
    )  # fmt: skip
    links = ff.Links(
        roles={("device", "edge"): (0.002, 1e6), ("edge", "edge"): (0.001, 1e6), ("edge", "central"): (0.01, 1e7)}
    )
    mobility = ff.MovesAt(moves) if moves else None
    return ff.Simulated(**{"fleet": fleet, "links": links, "mobility": mobility, "workers": 1, **more})


def make(rounds: int = 2, model: Any = FAMILY, simulated: Any = None, moves: Any = (), **more: Any) -> ff.Job:
    method = ff.FedFly(rounds, **{"cut": "plan", "width": "plan", "homes": (0, 0, 1, 1), **more})
    return ff.Job(model, DATA, method, TRAINING, seed=3, simulated=simulated or on(moves))


def bits(result: Any) -> bytes:
    return result.model.vector.tobytes()


def begun(result: Any, device: str) -> list[int]:
    """Bytes of what a device was sent at the start of each round."""
    nodes = read_nodes(result.path)
    rows = nodes.of_kind("Begin")
    return rows["bytes"][rows["dst"] == nodes.names.index(device)].tolist()


# The planner


speed = st.floats(1e5, 1e10)
seats = st.builds(
    Seat, st.builds(Rates, speed, speed, speed, speed, st.floats(0, 5), st.floats(0, 0.1)), st.floats(1e4, 2e5),
    st.floats(1e3, 3e5), st.integers(0, 20), st.none() | st.floats(1e-3, 1e3),
    st.builds(Wire, speed, speed, st.floats(0, 0.1)), st.builds(Wire, speed, speed, st.floats(0, 0.1)),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(seat=seats, split=st.booleans(), whole=st.booleans())
@pytest.mark.slow
def test_the_plan_is_the_quickest_that_fits_of_the_largest_level_that_has_one(seat: Seat, split: bool, whole: bool):
    rates, found = seat.rates, []
    for number, net in enumerate(WIDTHS.nets):
        full, own = 4 * FAMILY.layout.size, 4 * net.layout.size
        if whole:
            one = net.cuts[0]
            flops = one.device_forward + one.device_backward + one.server_forward + one.server_backward
            batch_s = 10 * flops / rates.device_flops_per_s
            sent = 8 * own / seat.alone.down_bps + 8 * own / seat.alone.up_bps + 2 * seat.alone.latency_s
            found.append((-own, batch_s, number, None, *WIDTHS.bytes_of(number, None), sent))
        for cut in net.cuts if split else ():
            batch_s = batch_time(cut, 10, rates).total_s
            sent = 32 * cut.size * (1 / rates.uplink_bps + 1 / rates.downlink_bps) + 2 * rates.latency_s
            sent += 8 * full / seat.behind.down_bps + 8 * own / seat.behind.up_bps + 2 * seat.behind.latency_s
            found.append((-own, batch_s, number, cut, *WIDTHS.bytes_of(number, cut), sent))
    fitting = [
        one for one in found
        if one[4] <= seat.memory_bytes and one[5] <= seat.edge_bytes
        and (seat.deadline_s is None or seat.batches * one[1] + one[6] <= seat.deadline_s * (1 + 1e-12))
    ]  # fmt: skip
    best = WIDTHS.choose(seat, split=split, whole=whole)
    if best is None:
        assert not fitting
        return
    first = min(fitting, key=lambda one: one[:2])
    assert (best.level, best.batch_s) == (first[2], first[1])
    assert best.cut in [one[3] for one in fitting if one[:2] == first[:2]]
    assert (best.memory_bytes, best.edge_bytes) == WIDTHS.bytes_of(best.level, best.cut)
    sent = next(one[6] for one in fitting if (one[2], one[3]) == (best.level, best.cut))
    assert best.round_s == pytest.approx(seat.batches * best.batch_s + sent)


def test_with_all_the_memory_there_is_the_plan_is_that_of_plain_fedfly():
    for speed in (1e5, 1e7, 1e9):
        rates = Rates(speed, 1e10, 1e7, 1e7)
        assert WIDTHS.choose(Seat(rates)).cut == ff.work.split.plan(FAMILY.net.cuts, 10, rates)
        both, alone = WIDTHS.choose(Seat(rates), whole=True), ff.work.split.plan(FAMILY.net.cuts, 10, rates, True)
        assert both.cut == alone


def test_less_memory_on_the_device_less_at_the_edge_and_less_time_give_smaller_levels():
    rates = Rates(1e7, 1e10, 8e6, 8e6)

    def level(**more: Any) -> str | None:
        found = WIDTHS.choose(Seat(rates, batches=5, **more))
        return None if found is None else FAMILY.levels[found.level].name

    assert [level(memory_bytes=m) for m in (1e9, 60e3, 36e3, 2e4)] == ["1", "1/2", "1/4", None]
    assert [level(edge_bytes=m) for m in (1e9, 5e3, 3e3, 1e3)] == ["1", "1/2", "1/4", None]
    whole, half = (WIDTHS.choose(Seat(rates, batches=5), n).round_s for n in (0, 1))
    assert [level(deadline_s=s) for s in (whole, 0.99 * whole, 0.99 * half)] == ["1", "1/2", "1/4"]
    fixed = WIDTHS.choose(Seat(rates, 40e3), only="pool2")
    assert (fixed.cut.name, FAMILY.levels[fixed.level].name) == ("pool2", "1/4")


# What a side takes of memory


NETS = {
    "vgg": lambda: small_vgg("group"), "batch norm": small_vgg, "resnet": lambda: small_resnet("group"), "dense": dense
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETS)
def test_the_memory_of_a_side_is_the_peak_of_the_allocator_in_a_step_of_it(kind):
    from fieldfare.work import torch_resident as resident_
    from fieldfare.work.submodel.cost import _allocated

    net, training = split_net(NETS[kind], example=columns(2)), Training(batch_size=20)

    def measured(start: Any, stop: Any) -> int:
        half = net.half(start, stop)
        model = np.full(half.layout.size, 0.01, np.float32)

        def once() -> None:
            came = [torch.randn(20, *start.activations)] if start is not None else [*net.batch(20)]
            y = net.target(20)
            end = torch.randn(20, *stop.activations) if stop is not None else lambda out: net.loss_of(out, y)
            half.step(model, np.zeros(0, np.float32), came, end, training, 0.1, further=start is not None)

        with resident_.one_thread():
            once()
            kept = [half.storage.flat, half.storage.grad, *(t for pair in half.storage._buffers for t in pair)]
            return _allocated(once) + sum(t.untyped_storage().nbytes() for t in kept)

    for cut in net.cuts[::3]:
        assert 0.95 <= device_bytes(net, cut, training) / measured(None, cut) <= 1.07, cut.name
        assert 0.95 <= server_bytes(net, cut, training) / measured(cut, None) <= 1.05, cut.name


def test_slots_of_the_optimiser_and_the_end_of_a_u_count():
    net, (cut, tail) = FAMILY.net, (FAMILY.net.cut(name) for name in ("pool1", "relu4"))
    plain, momentum = (Training(batch_size=20, momentum=m) for m in (0.0, 0.9))
    slots = device_bytes(net, cut, momentum) - device_bytes(net, cut, plain)
    assert slots == 4 * net.half(None, cut).storage.size >= 4 * moments_size(momentum, cut.size)
    first, last = counted(net, None, cut, plain), counted(net, tail, None, plain)
    both = device_bytes(net, cut, plain, tail)
    assert both == first.held + last.held + max(first.peak, first.turn + last.peak)
    assert both > device_bytes(net, cut, plain)


def test_a_level_of_a_net_that_can_be_cut_computes_what_its_part_of_the_vector_says():
    family = ff.submodels(split_net(small_vgg, example=columns(2)), (1, 0.5))
    model, small = family.init(1), family.at(0.5)
    assert any(name.endswith("running_mean") for name in family.layout.names)
    assert not family.axes.fixed
    assert [cut.name for cut in small.cuts] == [cut.name for cut in family.net.cuts]
    part = family.cut(model, 0.5)
    for name, tensor in part.tensors().items():
        if name != "dense1.weight":  # behind a flatten
            assert (model.tensor(name)[tuple(slice(n) for n in tensor.shape)] == tensor).all(), name
    module = small.module(part)
    with torch.no_grad():
        assert module(torch.from_numpy(columns(3)["x"])).shape == (3, 10)
    assert ff.work.submodel.declared(family, TRAINING, part.layout).memory_bytes > 0


# The mean over who covers


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_mean_of_a_number_is_over_the_samples_of_those_who_have_it(data):
    size, counter = 9, 8
    layout = Layout(("w", "bn.num_batches_tracked"), ((counter,), ()))
    made = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    model = Params(made.standard_normal(size).astype(np.float32), layout)
    updates, places = dict[str, Update](), dict[str, Any]()
    total, weight, top = np.zeros(size), np.zeros(size), [float("-inf")]
    for i in range(data.draw(st.integers(1, 4))):
        name, samples = f"device/{i}", data.draw(st.integers(0, 30))
        index = np.flatnonzero(np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size))))
        whole = data.draw(st.booleans()) or not len(index)
        index = np.arange(size) if whole else index
        ends = sorted(data.draw(st.tuples(*[st.integers(0, len(index))] * 2))) if data.draw(st.booleans()) else None
        only = None if ends is None or ends[0] == ends[1] else tuple(ends)
        vector = made.standard_normal(len(index)).astype(np.float32)
        updates[name] = Update(name, 1, 0, vector, float(samples), 0.0, only)
        if not whole:
            places[name] = index
        for at, value in list(zip(index, vector, strict=True))[slice(*only) if only else slice(None)]:
            total[at] += samples * float(value)
            weight[at] += samples
            top += [float(value)] if at == counter and samples else []
    out = merged(model, updates, places).vector
    for at in range(counter):
        wanted = total[at] / weight[at] if weight[at] else model.vector[at]
        assert out[at] == pytest.approx(wanted, abs=1e-5)
        assert weight[at] or out[at] == model.vector[at]
    assert out[counter] == (max(top) if len(top) > 1 else model.vector[counter])


@pytest.mark.parametrize("rule", [None, Rolling(), RandomWindow(each=True), TopNorm()], ids=str)
def test_every_round_of_a_job_ends_in_the_mean_over_who_covers(monkeypatch, rule):
    rounds: list[Any] = []

    def watched(model: Params, updates: Any, places: Any) -> Params:
        rounds.append((model, updates, places, merged(model, updates, places)))
        return rounds[-1][-1]

    monkeypatch.setattr(central, "merged", watched)
    result = run(make(rule=rule))
    view = FAMILY.view(rule or Prefix(), LEVELS)
    assert len(rounds) == 2
    for number, (model, updates, _, after) in enumerate(rounds, 1):
        now, total, weight = view.at(number, model), np.zeros(model.size), np.zeros(model.size)
        for device, update in updates.items():
            index = now.index(int(now.plan(np.array([int(device[-1])]))[0]))
            assert update.vector.shape == index.shape
            total[index] += update.samples * update.vector.astype(np.float64)
            weight[index] += update.samples
        assert (weight > 0).all(), "two devices have the whole model"
        np.testing.assert_allclose(after.vector, total / weight, atol=1e-6)
    assert result.model.vector.tobytes() == rounds[-1][-1].vector.tobytes()


def test_what_no_device_has_stays_as_it_was_to_the_bit():
    result = run(make(width=1, simulated=on(memory=(4e9,) * 4)))
    index = FAMILY.view(assign=(1,)).index(1)
    start, covered = FAMILY.init(3).vector, np.zeros(FAMILY.layout.size, bool)
    covered[index] = True
    assert (result.model.vector[~covered] == start[~covered]).all()
    assert (result.model.vector[covered] != start[covered]).mean() > 0.9


# Jobs


def test_devices_get_the_widths_and_cuts_they_fit_and_every_level_is_measured(tmp_path):
    result = run(make(), tmp_path)
    job = make()
    found = offload(job, net_of(job))
    names = [row["level"] for row in found.table]
    assert names == [FAMILY.levels[level].name for level in LEVELS]
    assert all(row["memory_bytes"] <= row["free_bytes"] for row in found.table)
    assert {"accuracy", "accuracy@1/2", "accuracy@1/4"} <= result.final.keys()
    assert result.summary["stopped"] == "rounds"
    for i, level in enumerate(LEVELS):
        cut = found.plans[i]
        (plan,) = {one for name, one in found.bound().nodes(4)["central"][1].plans.items() if name == f"device/{i}"}
        assert (plan.size, plan.level) == (cut.size, level or None)
        words = len(plan.cut) + 8 * (3 if plan.level is None else 4)
        assert begun(result, f"device/{i}") == [4 * cut.size + words + 16] * 2, "half a model, and numbers"


def test_what_crosses_the_cut_is_as_wide_as_the_level(tmp_path):
    for level in (0, 1):
        result = run(make(1, cut="pool1", width=level, simulated=on(memory=(4e9,) * 4)), tmp_path / str(level))
        nodes, cut = read_nodes(result.path), WIDTHS.nets[level].cut("pool1")
        up = nodes.of_kind("Forward")["bytes"].max()
        assert up == 10 * cut.activation_bytes + 10 * 8 + 5 * 8
        assert nodes.of_kind("Backward")["bytes"].max() == 10 * cut.activation_bytes + 3 * 8
        final = {int(one) for one in nodes.of_kind("Update")["bytes"]}
        assert len(final) == 1
        assert 4 * WIDTHS.nets[level].layout.size < final.pop() < 4 * WIDTHS.nets[level].layout.size + 100


@pytest.mark.slow
def test_a_level_of_one_for_all_is_plain_fedfly_in_every_bit_byte_and_second(tmp_path):
    roomy = on(((0, 1, 0.5, 1),), memory=(4e9,) * 4)
    plain = run(make(model=FAMILY.net, width=None, simulated=roomy), tmp_path / "plain")
    for width in (0, "plan", None):
        same = run(make(width=width, simulated=roomy), tmp_path / str(width))
        assert bits(same) == bits(plain)
        for name in ("virtual_s", "bytes_between"):
            assert same.summary[name] == plain.summary[name]


@pytest.mark.parametrize(
    "policy",
    [
        ff.Restart(),
        ff.StopAndCopy(),
        ff.StopAndCopy("relay", compress=True),
        ff.StopAndCopy("carry"),
        ff.PreCopy(),
        ff.PreCopy(replay=False),
    ],
    ids=str,
)
@pytest.mark.sampled(3)
def test_sub_models_that_move_end_in_the_bits_of_those_that_stay(tmp_path, policy):
    if policy.route == "carry":
        pytest.importorskip("cryptography")
    stayed = run(make(replica_every=2))
    moved = run(make(policy=policy, moves=MOVES, replica_every=2), tmp_path)
    nodes = read_nodes(moved.path)
    assert len(moves_of(nodes, offload_told(moved))) == 3
    assert bits(moved) == bits(stayed)


def offload_told(result: Any) -> Any:
    return json.loads((result.path / NODES).read_text()).get("mobility")


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"rule": Rolling()}, {"rule": RandomWindow(each=True)}, {"tail": "relu4"}], ids=str)
def test_windows_that_change_and_labels_that_stay_move_as_well(more):
    job, memory = {"policy": ff.StopAndCopy(compress=True), **more}, (4e9, 65e3, 40e3, 4e9)
    stayed, moved = (run(make(simulated=on(moves, memory), **job)) for moves in ((), MOVES))
    assert bits(moved) == bits(stayed)
    if "rule" in more:
        assert bits(moved) != bits(run(make(simulated=on((), memory)))), "other channels"


@pytest.mark.slow
def test_levels_of_fewer_layers_are_cut_and_move_too():
    from fieldfare.work.submodel.exits import exit_loss, exits

    nn = torch.nn
    layers = {"a": nn.Sequential(nn.Linear(64, 32), nn.ReLU()), "b": nn.Sequential(nn.Linear(32, 32), nn.ReLU())}
    module = nn.Sequential(OrderedDict({**layers, "c": nn.Linear(32, 10)}))
    net = split_net(exits(module, after=("a", "b"), example=columns(2)["x"]), exit_loss(distil=0.3), ("accuracy",))
    family = ff.submodels(net, (ff.Level(1), ff.Level(1, 2), ff.Level(0.5, 1)))
    memory = (4e9, 4e9, 26e3, 4e9)
    stayed, moved = (
        run(make(model=family, width=("plan", 1, "plan", 0), simulated=on(moves, memory))) for moves in ((), MOVES)
    )
    assert bits(moved) == bits(stayed)
    assert {"accuracy", "accuracy@1d2", "accuracy@1/2d1"} <= moved.final.keys()


@pytest.mark.slow
def test_two_workers_train_sub_models_to_the_bits_of_one():
    one, two = (run(make(1, simulated=on(MOVES[:2], workers=workers))) for workers in (1, 2))
    assert bits(one) == bits(two)
    assert one.summary["bytes_between"] == two.summary["bytes_between"]


def test_a_rounded_session_of_a_sub_model_crosses_and_gives_nearly_the_same():
    stayed, rounded = run(make()), run(make(policy=ff.PreCopy(lossy="fp16", replay=False), moves=MOVES))
    assert bits(stayed) != bits(rounded)
    np.testing.assert_allclose(stayed.model.vector, rounded.model.vector, atol=2e-2)


def test_when_an_edge_is_cut_off_its_sub_models_go_on_at_another_to_the_same_bits(tmp_path):
    quiet = run(make(replica_every=1, patience_s=1.0))
    links = replace(on().links, outages={"edge/0": ((0.1, 1e9),)})
    result = run(make(replica_every=1, patience_s=1.0, simulated=on(links=links)), tmp_path)
    nodes = read_nodes(result.path)
    assert len(nodes.of_kind("Lost")) >= 2
    assert bits(result) == bits(quiet)


def test_width_and_cut_are_those_for_the_new_edge_from_the_round_after_a_move(tmp_path):
    edges = Fleet(flops_per_s=np.array([1e10, 1e10]), memory_bytes=np.array([1e9, 5e3]), overhead_s=0.0)
    began: dict[bool, list[int]] = {}
    for again in (False, True):
        simulated = on(((0, 1, 0.5, 1),), (4e9,) * 4, edges=edges, train=False)
        job = make(3, replan=again, homes=(0, 0, 0, 0), simulated=simulated)
        began[again] = begun(run(job, tmp_path / str(again)), "device/0")
    assert len(set(began[False])) == 1
    first, *rest = began[True]
    assert first == began[False][0]
    assert len(set(rest)) == 1
    job = make(3, replan=True, homes=(0, 0, 0, 0), simulated=simulated)
    sizes = offload(job, net_of(job)).sizes
    there = sizes.moved[1][0]
    assert there.level > sizes.options[0].level
    assert rest[0] - 8 * 6 - len(there.cut.name) == 4 * there.cut.size


def test_devices_that_train_alone_have_the_width_they_fit_too():
    cuts = (None, "plan", None, "plan or whole")
    job = make(cut=cuts, simulated=on(memory=(4e9, 60e3, 70e3, 4e9)))
    found = offload(job, net_of(job))
    table = found.table
    assert [row["cut"] is None for row in table][:3] == [True, False, True]
    assert table[2]["level"] == "1/2"
    assert found.sizes.whole() == {2: 1}
    result = run(job)
    assert np.isfinite(result.model.vector).all()
    assert result.summary["stopped"] == "rounds"


def test_a_round_that_is_planned_for_a_deadline_waits_for_nobody():
    free = make(3, simulated=on(memory=(4e9,) * 4))
    rounds = [row["round_s"] for row in offload(free, net_of(free)).table]
    tight = make(3, deadline_s=0.6 * max(rounds), simulated=on(memory=(4e9,) * 4))
    table = offload(tight, net_of(tight)).table
    assert {row["level"] for row in table} != {"1"}
    result = run(tight)
    assert [row["clients"] for row in result.rounds] == [4, 4, 4]


JOB = """
import os
import signal

import numpy as np

import fieldfare as ff
from fieldfare.fleet.fleet import Fleet
from fieldfare.models import vgg5

die = int(os.environ.get("DIE_AFTER", "0"))


def death(row):
    if row["round"] == die:
        os.kill(os.getpid(), signal.SIGKILL)


data = ff.data.digits(4, ff.iid(), test_fraction=0.8, seed=0)
net = ff.split_net(
    lambda: vgg5((1, 8, 8), norm="group", widths=(8, 8, 8, 16), unflatten=True),
    example={name: rows[:2] for name, rows in data.columns.items()},
)
job = ff.Job(
    ff.submodels(net, (1, 0.5, 0.25)),
    data,
    ff.FedFly(3, width="plan", homes=(0, 0, 1, 1), replica_every=2),
    ff.Training(lr=0.05, momentum=0.9, batch_size=10),
    seed=3,
    callbacks=(death,),
    simulated=ff.Simulated(
        Fleet(flops_per_s=1e7, overhead_s=0.0, memory_bytes=np.array([4e9, 60e3, 36e3, 4e9], np.float32)), workers=1,
        mobility=ff.MovesAt(((0, 1, 0.5, 1), (1, 2, 0.4, 1), (2, 2, 0.6, 0))),
        links=ff.Links(roles={("device", "edge"): (0.002, 1e6), ("edge", "edge"): (0.005, 1e5)}),
    ),
)
"""


@pytest.mark.slow
def test_a_killed_run_of_sub_models_is_resumed_to_the_same_bits(tmp_path):
    job_file(tmp_path, JOB, "job.py")
    common: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False, "timeout": 120}
    whole = subprocess.run([*PROGRAM, "run", "job.py", "-q", "--runs", "whole"], env=environment(tmp_path), **common)
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.run([*PROGRAM, "run", "job.py", "-q"], env=environment(tmp_path, DIE_AFTER="1"), **common)
    assert killed.returncode < 0
    resumed = subprocess.run([*PROGRAM, "resume", "-q"], env=environment(tmp_path), **common)
    assert resumed.returncode == 0, resumed.stderr
    assert left((tmp_path / "runs" / "latest").resolve()) == left((tmp_path / "whole" / "latest").resolve())


# What is refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"simulated": on(memory=(4e9, 4e9, 1e4, 4e9))},
         r"device 2 fits no level .*: the least, 1/4 cut behind 'pool1', takes [\d,]+ bytes of memory at batch 10 and "
         r"10,000 are free"),
        ({"width": 0}, r"device 1 fits no level .*: the least, 1 cut behind 'conv1'"),
        ({"cut": ("plan", "plan", "dense1", "plan"), "simulated": on(memory=(4e9, 4e9, 3e4, 4e9))},
         r"device 2 fits .*1/4 cut behind 'dense1', takes"),
        ({"deadline_s": 1e-3}, r"device 0 fits no level .*: a round of .* takes .* s and the deadline is 0\.001 s"),
        ({"simulated": on(edges=ff.fleet.uniform(memory_bytes=2e3))}, r"device 0 fits .* bytes at the edge, where its"),
        ({"model": FAMILY.net}, r"FedFly\(width=\.\.\.\) chooses among the levels of a family"),
        ({"model": ff.submodels(ff.mlp(64, 16, 10))}, r"the DenseNet of this family cannot be.*ff\.split_net"),
        ({"width": 7}, r"device 0 has level 7, and the family has levels 0 to 2"),
        ({"width": (0, 1)}, r"names 2 widths and the data has 4 clients"),
        ({"rule": MultiRate()}, r"FedFly\(rule=MultiRate.*another level every round"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_before_the_start(change, said):
    with pytest.raises(UsageError, match=said) as refused:
        run(make(**change))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong", [lambda: ff.FedFly(1, width="wide"), lambda: ff.FedFly(1, rule=Rolling()), lambda: ff.FedFly(1, width=0.5)]
)
def test_widths_that_mean_nothing_are_refused_where_they_are_made(wrong):
    with pytest.raises(UsageError):
        wrong()


def test_a_session_of_a_level_is_taken_by_those_alone_who_have_the_levels():
    model, view = FAMILY.init(0), FAMILY.view()
    cut = WIDTHS.nets[1].cut("pool1")
    one = session.opened("job", "device/0", 1, 0, part_of(view, 1, 1, model), Plan(cut.name, cut.size, level=1))
    blob = session.to_blob(one)
    assert session.digest(session.from_blob(blob, FAMILY.layout, view=view)) == session.digest(one)
    for layout, levels in ((FAMILY.layout, None), (WIDTHS.nets[1].layout, None)):
        with pytest.raises(PeerError):
            session.from_blob(blob, layout, view=levels)
    for wrong in (2, 5, -1, None):
        with pytest.raises(PeerError):
            session.from_blob(session.to_blob(replace(one, level=wrong)), FAMILY.layout, view=view)


def test_plans_that_name_levels_need_the_view_that_has_them():
    with pytest.raises(UsageError, match=r"view=None.*plans name levels"):
        central.Central(1, {"device/0": Plan("first", 12, level=1)})


@pytest.mark.slow
def test_fit_prints_the_width_and_the_cut_of_every_device_of_such_a_job(tmp_path):
    job_file(tmp_path, JOB, "job.py")
    path = f"{tmp_path / 'job.py'}:job"
    wide = CliRunner(env={"COLUMNS": "200"})
    told = wide.invoke(fit, [path])
    assert told.exit_code == 0, told.output
    rows = [line.split() for line in told.output.splitlines()]
    assert [row[2] for row in rows[-4:]] == ["1", "1/2", "1/4", "1"]
    found = json.loads(wide.invoke(fit, [path, "--json"]).output.splitlines()[-1])
    assert [row["level"] for row in found["devices"]] == ["1", "1/2", "1/4", "1"]
    assert [row["cut"] for row in found["devices"]] == [row[3] for row in rows[-4:]]
    assert "devices" not in json.loads(wide.invoke(fit, [path, "--ram", "1MB", "--json"]).output)
