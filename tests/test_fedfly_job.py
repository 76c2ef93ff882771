"""FedFly as a job: what it leaves, that moves change no bit, what is refused, and that it is resumed to the same."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import numpy as np
import pytest
from command_line import PROGRAM, environment, job_file
from split_cases import small_vgg, torch
from test_job_nodes import at_every_moment, left, run

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.mobility import Mobility, waypoints
from fieldfare.models import vgg5
from fieldfare.offload import net_of, offload
from fieldfare.report.read_moves import downtime_s, moves_of, repeated, round_s
from fieldfare.report.read_nodes import read_nodes
from fieldfare.store.nodes import NODES

assert at_every_moment  # a fixture
assert torch

NET = ff.split_net(small_vgg)
DATA = ff.data.digits(4, ff.iid(), test_fraction=0.3, seed=0)
WIRES = ff.Links(
    roles={("device", "edge"): (0.002, 1e6), ("edge", "edge"): (0.005, 1e5), ("edge", "central"): (0.01, 1e7),
           ("device", "central"): (0.012, 1e6)}
)  # fmt: skip
HALF = ((0, 1, 0.5, 1),)

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


job = ff.Job(
    ff.split_net(lambda: vgg5((1, 8, 8), widths=(8, 8, 8, 16), unflatten=True)),
    ff.data.digits(4, ff.iid(), test_fraction=0.8, seed=0),
    ff.FedFly(4, cut="pool2", homes=(0, 0, 1, 1), replica_every=3),
    ff.Training(lr=0.05, momentum=0.9, batch_size=20),
    seed=3,
    callbacks=(death,),
    simulated=ff.Simulated(
        Fleet(flops_per_s=np.array([1e8, 1e8, 2e8, 2e8], np.float32), overhead_s=0.0), workers=1,
        mobility=ff.MovesAt(((0, 1, 0.5, 1), (2, 2, 0.4, 0), (0, 3, 0.6, 0))),
        links=ff.Links(roles={("device", "edge"): (0.002, 1e6), ("edge", "edge"): (0.005, 1e5)}),
    ),
)
"""


def make(policy: Any = ff.PreCopy(), moves: Any = HALF, rounds: int = 1, *, training: Any = None, data: Any = DATA,
         model: Any = NET, simulated: Any = None, **more: Any) -> ff.Job:  # fmt: skip
    method = ff.FedFly(rounds, policy=policy, **{"cut": "pool2", "homes": (0, 0, 1, 1), **more})
    return ff.Job(
        model, data, method, training or ff.Training(lr=0.05, momentum=0.9, batch_size=20), seed=3,
        simulated=simulated or on(moves),
    )  # fmt: skip


def on(moves: Any = (), **more: Any) -> ff.Simulated:
    fleet = Fleet(flops_per_s=np.array([1e7, 1e7, 2e7, 2e7], np.float32), overhead_s=0.0)
    moves = ff.MovesAt(moves) if isinstance(moves, tuple) and moves else moves or None
    return ff.Simulated(**{"fleet": fleet, "links": WIRES, "mobility": moves, "workers": 1, **more})


def bits(result: Any) -> bytes:
    return result.model.vector.tobytes()


def nodes_of(result: Any) -> Any:
    return read_nodes(result.path), json.loads((result.path / NODES).read_text()).get("mobility")


@pytest.mark.slow
def test_a_run_killed_by_the_system_is_resumed_to_the_same_bits(tmp_path):
    job_file(tmp_path, JOB, "job.py")
    common: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False, "timeout": 120}
    whole = subprocess.run([*PROGRAM, "run", "job.py", "-q", "--runs", "whole"], env=environment(tmp_path), **common)
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.run([*PROGRAM, "run", "job.py", "-q"], env=environment(tmp_path, DIE_AFTER="2"), **common)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "runs" / "latest" / "summary.json").exists()
    resumed = subprocess.run([*PROGRAM, "resume", "-q"], env=environment(tmp_path), **common)
    assert resumed.returncode == 0, resumed.stderr
    assert left((tmp_path / "runs" / "latest").resolve()) == left((tmp_path / "whole" / "latest").resolve())


# What a move changes


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [ff.Restart(), ff.StopAndCopy(), ff.StopAndCopy("relay"), ff.StopAndCopy(compress=True), ff.PreCopy(),
     ff.PreCopy(replay=False), ff.PreCopy(route="relay"), ff.Cheapest(1e5)], ids=str,
)  # fmt: skip
def test_the_model_is_that_of_no_move_to_the_bit_whichever_way_the_session_follows(tmp_path, policy):
    moves = ((0, 1, 0.3, 1), (2, 1, 0.5, 0), (0, 2, 0.6, 0))
    stayed = run(make(moves=(), rounds=2))
    moved = run(make(policy, moves, rounds=2), tmp_path)
    assert len(moves_of(*nodes_of(moved))) == 3
    assert bits(moved) == bits(stayed)
    assert moved.final["accuracy"] == stayed.final["accuracy"]


def test_a_sealed_session_crosses_by_way_of_its_device_alone(tmp_path):
    pytest.importorskip("cryptography")
    moved = run(make(ff.StopAndCopy("carry")), tmp_path)
    nodes, mobility = nodes_of(moved)
    (move,) = moves_of(nodes, mobility)
    assert bits(moved) == bits(run(make(moves=())))
    assert move.sealed_bytes > 1e4
    relayed = nodes.of_kind("Relay")
    assert relayed["bytes"].max() < 1e3
    assert not len(nodes.of_kind("Final", "Stored", "Pre"))


def test_two_workers_make_the_bits_of_one_and_the_same_records(tmp_path):
    one = run(make(rounds=2), tmp_path / "one")
    two = run(make(rounds=2, simulated=on(HALF, workers=2)), tmp_path / "two")
    assert left(one.path) == left(two.path)


def test_a_rounded_session_gives_other_bits_and_nearly_the_same_model():
    stayed, rounded = run(make(moves=())), run(make(ff.PreCopy(lossy="fp16", replay=False)))
    assert bits(stayed) != bits(rounded)
    np.testing.assert_allclose(stayed.model.vector, rounded.model.vector, atol=2e-2)


# What is told of a move


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run without a move, and with one at half of the mover's round, by policy."""
    where = tmp_path_factory.mktemp("moves")
    jobs = {"still": make(moves=()), "restart": make(ff.Restart()), "stop": make(ff.StopAndCopy()), "pre": make()}
    return {name: run(job, where / name) for name, job in jobs.items()}


def test_a_stopped_session_stands_still_as_long_as_its_state_is_on_its_way(runs):
    still, _ = nodes_of(runs["still"])
    (stop,), (pre,) = (moves_of(*nodes_of(runs[name])) for name in ("stop", "pre"))
    assert (stop.policy, stop.kind, stop.repeated) == ("StopAndCopy", "handover", 0)
    assert (stop.src, stop.dst, stop.device, stop.round, stop.epoch) == ("edge/0", "edge/1", "device/0", 1, 1)
    down = downtime_s(stop, still)
    assert stop.state_bytes / 1e5 < down < stop.state_bytes / 1e5 + 0.06
    assert downtime_s(pre, still) < down / 5
    assert pre.first_batch == pre.last_batch + 1


def test_a_restart_repeats_what_was_trained_and_sends_no_state(runs):
    (move,) = moves_of(*nodes_of(runs["restart"]))
    assert (move.kind, move.policy, move.state_bytes) == ("restart", "Restart", 0.0)
    assert move.repeated == move.last_batch + 1 > 3
    assert repeated(nodes_of(runs["still"])[0], "device/0", 1) == 0


def test_the_saving_against_a_restart_is_that_of_the_formula(runs):
    told = {name: round_s(nodes_of(result)[0], "device/0", 1) for name, result in runs.items()}
    whole = told["still"]
    for name in ("stop", "pre"):
        wanted = ff.algorithms.fedfly.policies.saving(0.5, (told[name] - whole) / whole)
        assert abs(1 - told[name] / told["restart"] - wanted) < 0.02


def test_moves_come_at_the_stated_share_of_the_round_of_a_run_without_them(runs):
    _, mobility = nodes_of(runs["pre"])
    ((at, device, src, dst, gap),) = mobility["moves"]
    work = nodes_of(runs["still"])[0].trainings(nodes_of(runs["still"])[0].names.index("device/0"))
    begin, end = work["begun_s"].min(), work["ended_s"].max()
    assert at == pytest.approx(begin + 0.5 * (end - begin))
    assert (device, src, dst, gap) == ("device/0", "edge/0", "edge/1", 0.0)
    assert mobility["homes"] == {f"device/{i}": f"edge/{i // 2}" for i in range(4)}


def test_without_training_a_run_takes_as_long_and_trains_nothing(runs):
    still = run(make(moves=(), simulated=on(train=False)))
    assert still.summary["virtual_s"] == runs["still"].summary["virtual_s"]
    assert still.summary["bytes_between"] == runs["still"].summary["bytes_between"]
    stop = run(make(ff.StopAndCopy(), simulated=on(HALF, train=False)))
    assert stop.summary["virtual_s"] == runs["stop"].summary["virtual_s"]


def test_a_row_tells_of_devices_and_not_of_their_batches(runs):
    (row,) = runs["pre"].rounds
    assert row["clients"] == 4
    assert {"accuracy", "train_loss", "bytes_between", "energy_j"} <= row.keys()
    assert "who" not in row


# Who trains, and what


def test_devices_train_whole_beside_those_that_offload(tmp_path):
    result = run(make(cut=("pool2", None, "conv3", None)), tmp_path)
    nodes, _ = nodes_of(result)
    down = nodes.of_kind("Begin")["dst"]
    assert {nodes.names[at] for at in down} == {"device/0", "device/2"}
    assert result.final["accuracy"] > 0.1
    assert len(moves_of(*nodes_of(result))) == 1


def test_labels_stay_on_the_devices_of_a_u(tmp_path):
    result = run(make(tail="relu4"), tmp_path)
    nodes, _ = nodes_of(result)
    assert len(nodes.of_kind("Ends"))
    assert bits(result) == bits(run(make(moves=(), tail="relu4")))


def test_a_planned_cut_is_early_on_a_slow_device_and_none_on_a_fast_one(tmp_path):
    fleet = Fleet(flops_per_s=np.array([1e5, 1e5, 1e11, 1e11], np.float32), overhead_s=0.0)
    result = run(make(cut="plan or whole", simulated=on(HALF, fleet=fleet, train=False)), tmp_path)
    nodes, _ = nodes_of(result)
    assert {nodes.names[at] for at in nodes.of_kind("Begin")["dst"]} == {"device/0", "device/1"}
    first = NET.with_example({"x": DATA.columns["x"][:2], "y": DATA.columns["y"][:2]}).cuts[0]
    work = nodes.trainings(nodes.names.index("device/0"))
    spent = (work["ended_s"] - work["begun_s"])[:1]
    assert spent == pytest.approx(20 * first.device_forward / 1e5)


def test_a_cut_is_planned_for_who_else_is_at_the_edge():
    edges = ff.fleet.uniform(flops_per_s=2e8)
    links = ff.Links(roles={("device", "edge"): (0.002, 1e7)})
    fleet = Fleet(flops_per_s=1e8, overhead_s=0.0)
    found = {}
    for homes in ((0, 1, 1, 1), (0, 0, 0, 1)):
        job = make(cut="plan", homes=homes, moves=(), simulated=ff.Simulated(fleet, edges=edges, links=links))
        plans = offload(job, net_of(job)).plans
        found[homes] = [plans[i].device_share for i in range(4)]
    assert found[0, 1, 1, 1][0] < found[0, 1, 1, 1][1], "alone at its edge it leaves more to it"
    assert found[0, 0, 0, 1][3] == found[0, 1, 1, 1][0]


def test_a_cut_is_planned_again_for_the_new_edge_from_the_round_after_the_move(tmp_path):
    edges = Fleet(flops_per_s=np.array([1e11, 1e5], np.float32), overhead_s=0.0)
    began: dict[bool, list[int]] = {}
    for again in (False, True):
        where = tmp_path / str(again)
        result = run(make(cut="plan", replan=again, rounds=3, simulated=on(HALF, edges=edges, train=False)), where)
        nodes, mobility = nodes_of(result)
        assert [move.dst for move in moves_of(nodes, mobility)] == ["edge/1"]
        rows = nodes.of_kind("Begin")
        mine = rows[rows["dst"] == nodes.names.index("device/0")]
        began[again] = mine["bytes"].tolist()
    assert len(set(began[False])) == 1
    assert began[True][0] == began[False][0] < began[True][1] == began[True][2]


def test_devices_that_walk_move_between_edges_and_end_in_the_bits_of_those_that_do_not(tmp_path):
    walk = waypoints(4, grid=(1, 2), spacing_m=20.0, speed_m_s=(20.0, 40.0), pause_s=0.1, horizon_s=20.0,
                     hysteresis_m=1.0, step_s=0.1, seed=1)  # fmt: skip
    homes = tuple(walk.mobility.homes().tolist())
    moved = run(make(moves=walk, rounds=2, homes=None), tmp_path)
    nodes, mobility = nodes_of(moved)
    assert len(moves_of(nodes, mobility)) >= 2
    assert len(mobility["walk"]["x_m"]) == 4
    assert bits(moved) == bits(run(make(moves=(), rounds=2, homes=homes)))


def test_while_no_edge_reaches_a_device_nothing_is_sent_to_it(tmp_path):
    table = Mobility.of([[(0, 0), (0.5, -1), (1.5, 1)], [(0, 0)], [(0, 1)], [(0, 1)]], edges=2)
    moved = run(make(moves=table, homes=None), tmp_path)
    nodes, _ = nodes_of(moved)
    mine = nodes.messages[nodes.messages["dst"] == nodes.names.index("device/0")]
    assert not ((mine["arrives_s"] > 0.5) & (mine["arrives_s"] < 1.5)).any()
    assert bits(moved) == bits(run(make(moves=())))


def test_a_device_that_comes_and_goes_finds_its_session_again():
    there = Availability.of([[(0.0, 0.4), (1.1, np.inf)], [(0, np.inf)], [(0, np.inf)], [(0, np.inf)]])
    fleet = Fleet(flops_per_s=np.array([1e7, 1e7, 2e7, 2e7], np.float32), overhead_s=0.0, availability=there)
    away = run(make(moves=(), patience_s=5.0, simulated=on(fleet=fleet)))
    assert away.summary["stopped"] == "rounds"
    assert bits(away) == bits(run(make(moves=())))


@pytest.mark.parametrize(
    ("cut", "moves"), [("pool2", ()), (("pool2", None, "pool2", None), ()), ("pool2", ((0, 1, 0.1, 1),))]
)
def test_a_model_that_is_not_finite_ends_its_rounds_without_an_update(cut, moves):
    result = run(make(moves=moves, rounds=2, cut=cut, training=ff.Training(lr=1e12, momentum=0.9, batch_size=20)))
    assert (result.summary["stopped"], len(result.rounds)) == ("rounds", 2)
    assert np.isfinite(result.model.vector).all()


# What is refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": ff.mlp(64, 16, 10)}, r"FedFly cuts a model in two.*DenseNet.*use an nn\.Module"),
        ({"cut": "pool9"}, r"no cut is called 'pool9': this net can be cut after"),
        ({"cut": ("pool2", "pool2")}, r"names 2 cuts and the data has 4 clients"),
        ({"homes": (0, 0, 1, 5)}, r"FedFly\(homes=.*edges are numbered 0 to 1"),
        ({"tail": "pool1"}, r"device 0 is cut behind 'pool2'.*choose a later tail"),
        ({"training": ff.Training(clip_norm=1.0)}, r"clip_norm=1\.0.*both sides of a cut"),
        ({"simulated": on(Mobility.of([[(0, 0)]], edges=2))}, r"about 1 devices and 2 edges, and the job has 4"),
        ({"simulated": on(((0, 2, 0.5, 1),))}, r"device 0 trains nothing with an edge in round 2"),
        (
            {"simulated": on(Mobility.of([[(0, -1)], *[[(0, 1)]] * 3], edges=2)), "homes": None},
            r"no edge ever reaches device 0, and FedFly\(deadline_s=None\) waits for it: give a deadline",
        ),
        (
            {"simulated": on(Mobility.of([[(0, 0)]] * 4, edges=2))},
            r"FedFly\(homes=\.\.\.\) begins device 2 at edge 1, and Simulated\(mobility=\.\.\.\) at edge 0: leave",
        ),
        ({"simulated": on(links=ff.Links(roles={("phone", "edge"): (0.0, 1.0)}))}, r"no node is a 'phone'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(change, said):
    with pytest.raises(UsageError, match=said) as refused:
        run(make(**{"moves": (), **change}))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [lambda: ff.FedFly(0), lambda: ff.FedFly(1, edges=0), lambda: ff.FedFly(1, policy="fast"),
     lambda: ff.FedFly(1, cut=1.5), lambda: ff.FedFly(1, lanes=0), lambda: ff.MovesAt(((0, 0, 0.5, 1),)),
     lambda: ff.MovesAt(((0, 1, 1.0, 1),)), lambda: ff.Simulated(mobility=3),
     lambda: ff.Links(roles={("a", "b"): (0.0, 0.0)})],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused_where_they_are_made(wrong):
    with pytest.raises(UsageError):
        wrong()


def test_gaps_are_on_record_for_the_picture_of_who_was_where(tmp_path):
    gone = Mobility.of([[(0, 0), (1, -1), (2, 0)], [(0, 0)], [(0, 1)], [(0, 1), (500, -1)]], 2)
    _, mobility = nodes_of(run(make(simulated=on(gone)), tmp_path))
    assert mobility["gaps"] == [["device/0", 1.0, 2.0], ["device/3", 500.0, None]]


def test_moves_of_a_job_without_edge_servers_are_refused_in_one_line(tmp_path):
    for method in (ff.FedAvg(1, cohort=4), ff.HADFL(1)):
        job = ff.Job(NET, DATA, method, simulated=ff.Simulated(mobility=ff.MovesAt(HALF)))
        with pytest.raises(
            UsageError, match=rf"^Simulated\(mobility=.*{type(method).__name__} has none of.*use FedFly"
        ):
            job.run(tmp_path, progress=False)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(lambda: ff.PreCopy(lossy="fp8"), r"^PreCopy\(lossy='fp8'\)"),
     (lambda: ff.Restart("moon"), r"^Restart\(route='moon'\)"),
     (lambda: ff.StopAndCopy(compress="yes"), r"^StopAndCopy\(compress='yes'\)"),
     (lambda: ff.Cheapest(1e6, other=ff.Restart()), r"^Cheapest\(other="),
     (lambda: ff.FedFly(0), r"^FedFly\(rounds=0\): use a number >= 1"),
     (lambda: ff.FedFly(1, patience_s=0), r"^FedFly\(patience_s=0\): use seconds above 0"),
     (lambda: ff.FedFly(1, capacity=0), r"^FedFly\(capacity=0\): use a number >= 1"),
     (lambda: ff.FedFly(1, replica_every=-1), r"^FedFly\(replica_every=-1\): use a number >= 0"),
     (lambda: ff.FedFly(1, deadline_s=-1.0), r"^FedFly\(deadline_s=-1\.0\): use seconds above 0")],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_called_as_it_was_given(wrong, said):
    with pytest.raises(UsageError, match=said):
        wrong()


def test_a_net_that_the_data_does_not_fit_is_refused_in_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"the data does not fit the net: of examples of shape \(64,\) torch says"):
        run(make(moves=(), model=ff.split_net(lambda: vgg5())), tmp_path)
