"""Asynchronous jobs: equal to their synchronous limits, and the same bits on any workers and after any stop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fieldfare as ff
from fieldfare.aggregate import chain, mean, median, momentum
from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.core.events import Gathered
from fieldfare.core.local import Twin
from fieldfare.core.work import Cohort
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.selection import Tiers
from fieldfare.run import Saver
from fieldfare.sim.budget import steps_within
from fieldfare.sim.observe import Answered, Published
from fieldfare.sim.population import Population
from fieldfare.sim.simulator import World
from fieldfare.store.runs import RunFolder
from fieldfare.store.tasks import TASKS, read_tasks
from fieldfare.testing import Asking, laws, quadratics, simulate
from fieldfare.work.adapt import as_net
from fieldfare.work.train import Train

ONCE = chain(mean(weighted=False))
ALIKE = Fleet(overhead_s=7.0, flops_per_s=1e30, downlink_bytes_per_s=1e30, uplink_bytes_per_s=1e30)
"""Every task takes seven seconds."""


# Limits in which asynchronous is synchronous


def trained(algorithm: Any, fleet: Any = ALIKE, seed: int = 5) -> tuple[bytes, list[dict[str, Any]]]:
    """(the bits of the model, the rounds) after training on scikit-learn's digits."""
    pytest.importorskip("sklearn")
    job = ff.Job(
        model=ff.mlp(64, 16, 10), data=ff.digits(clients=20), algorithm=algorithm,
        training=ff.Training(lr=0.1, batch_size=10), seed=seed, simulated=ff.Simulated(fleet=fleet, workers=1),
    )  # fmt: skip
    result = job.run(runs=None, progress=False)
    kept = ("round", "virtual_s", "accuracy", "loss", "train_loss", "clients", "bytes_up", "bytes_down")
    return result.model.vector.tobytes(), [{k: row[k] for k in kept} for row in result.rounds]


SERVERS = [ONCE, chain(mean()), chain(mean(weighted=False), momentum(0.9))]


@pytest.mark.data
@pytest.mark.parametrize("server", SERVERS, ids=["once", "weighted", "momentum"])
def test_with_tasks_that_take_the_same_time_and_a_buffer_of_all_at_work_fedbuff_is_fedavg(server) -> None:
    always = Fleet(**{name: getattr(ALIKE, name) for name in ("overhead_s", "flops_per_s", "downlink_bytes_per_s",
                   "uplink_bytes_per_s")}, availability=Availability.always(20))  # fmt: skip
    rounds = trained(ff.FedAvg(rounds=4, cohort=8, server=server))
    assert trained(ff.FedBuff(rounds=4, cohort=8, buffer=8, server=server)) == rounds
    assert trained(ff.FedBuff(rounds=4, cohort=8, buffer=8, server=server), always) == rounds
    stale = ff.Staleness("constant", limit=0)
    assert trained(ff.FedBuff(rounds=4, cohort=8, buffer=8, server=server, stale=stale)) == rounds
    if server is ONCE:
        assert trained(ff.FedBuff(rounds=4, cohort=8, buffer=9, deadline_s=7.0)) == rounds
        assert trained(ff.FedBuff(rounds=4, cohort=8, buffer=7)) != rounds


@pytest.mark.data
def test_with_one_at_work_and_a_buffer_of_one_fedbuff_is_fedavg_of_one() -> None:
    for fleet in (ALIKE, ff.fleet.phones()):
        rounds = trained(ff.FedAvg(rounds=6, cohort=1, server=ONCE), fleet)
        assert trained(ff.FedBuff(rounds=6, cohort=1, buffer=1), fleet) == rounds


@pytest.mark.data
def test_with_one_at_work_and_alpha_one_fedasync_is_fedavg_of_one() -> None:
    """Up to rounding: whole models are folded in fixed point, deltas are added in float32."""
    for fleet in (ALIKE, ff.fleet.phones()):
        model, rows = trained(ff.FedAvg(rounds=6, cohort=1, server=ONCE), fleet)
        other, others = trained(ff.FedAsync(rounds=6, cohort=1, alpha=1.0), fleet)
        assert [row["virtual_s"] for row in rows] == [row["virtual_s"] for row in others]
        assert np.allclose(np.frombuffer(model, np.float32), np.frombuffer(other, np.float32), rtol=0, atol=1e-6)


@pytest.mark.data
def test_without_over_selection_semisync_is_fedavg() -> None:
    for fleet in (ALIKE, ff.fleet.phones()):
        assert trained(ff.SemiSync(3, 6, over=1.0), fleet) == trained(ff.FedAvg(rounds=3, cohort=6), fleet)
    asked = trained(ff.SemiSync(3, 6, over=1.3), ff.fleet.phones())[1]
    assert [row["clients"] for row in asked] == [6, 6, 6]
    assert asked[-1]["bytes_down"] == 3 * 8 * 4 * ff.mlp(64, 16, 10).layout.size


@pytest.mark.data
def test_with_all_the_time_they_want_clients_that_are_cut_off_are_those_of_fedavg() -> None:
    whole = trained(ff.FedAvg(rounds=3, cohort=6), ff.fleet.phones())
    assert trained(ff.CutOff(3, 6, budget_s=1e6), ff.fleet.phones()) == whole
    slow = ff.fleet.uniform(flops_per_s=1e5)
    assert trained(ff.CutOff(3, 6, budget_s=3.0), slow) != trained(ff.FedAvg(rounds=3, cohort=6), slow)


def test_with_one_tier_tifl_draws_its_cohorts_as_fedavg_does() -> None:
    """The same distribution: the draws are keyed otherwise."""
    problem, n, count = quadratics(n=12), 12, np.zeros(12)
    world = World({"a": ("a", Asking(()))}, problem.model, Population.of(problem.data, ALIKE), problem.world(
        Asking(())).works)  # fmt: skip
    algorithm = ff.TiFL(400, 4, tiers=Tiers(tiers=1, adaptive=False))
    world = problem.world(algorithm, fleet=world.population.fleet)
    cohorts = [e.clients for e in simulate(world, keep=True).transcript.events(Gathered)]
    assert all(len(set(one.tolist())) == 4 for one in cohorts)
    np.add.at(count, np.concatenate(cohorts), 1)
    expect = 400 * 4 / n
    chi2 = float(((count - expect) ** 2 / expect).sum()) / (1 - 4 / n)
    assert chi2 < n - 1 + 5 * np.sqrt(2 * (n - 1))


# The papers' equations, by hand


def by_hand(algorithm: Any, mix: Any) -> None:
    """`mix(model, replies)` with replies (w_new - w_sent, w_new, weight, s(tau)) gives every version that was made."""
    problem = quadratics(n=12)
    fleet = Fleet(overhead_s=(1 + np.arange(12) * 7 % 11).astype(np.float32))
    world, asks = problem.world(algorithm, fleet=fleet), []
    kept: list[Any] = []

    def observe(seen: Any) -> None:
        if isinstance(seen, Answered):
            asks.append(seen.ask)
        elif isinstance(seen, Published):
            kept.append(seen.model.vector)

    simulate(world, observer=observe)
    model, stale = world.model.vector.astype(np.float64), 0
    for ask, made in zip(asks, kept, strict=True):
        replies = []
        for at, number in enumerate(ask.base.tolist()):
            sent, one = ask.runs[number].model, ask.clients[[at]]
            block = problem.data.block(one)
            out = world.works["train"](
                Cohort(sent.vector[None], np.zeros(1, np.int64), sent.layout, one, ask.keys[[at]], block,
                       {"round": number})
            )  # fmt: skip
            delta = out.leaves["delta"][0].astype(np.float64)
            replies.append((delta, sent.vector + delta, out.weight[0], (1.0 + ask.number - number) ** -0.5))
            stale += ask.number > number
        model = mix(model, replies)
        assert np.allclose(made, model, rtol=0, atol=2e-3 * np.abs(model).max())
        model = made.astype(np.float64)
    assert stale > 10


def test_fedbuff_adds_the_mean_of_discounted_deltas() -> None:
    by_hand(ff.FedBuff(20, 9, 3), lambda w, r: w + sum(s * d for d, _, _, s in r) / 3)
    weighted = ff.FedBuff(20, 9, 3, server=chain(mean()))
    by_hand(weighted, lambda w, r: w + sum(n * s * d for d, _, n, s in r) / sum(n for _, _, n, _ in r))


def test_numbers_that_cannot_be_are_refused_in_one_line() -> None:
    for wrong, told in (
        (lambda: ff.FedBuff(0, 3), "at least one version"),
        (lambda: ff.FedBuff(2, 3, 0), "buffer >= 1"),
        (lambda: ff.FedBuff(2, np.arange(3)), "a whole number or a Sample"),
        (lambda: ff.FedBuff(2, 3, server=chain(median())), "folded by a mean"),
        (lambda: ff.FedBuff(2, 3, server=chain(mean(weighted=False, weight_step=0.5))), "leave weight_step out"),
        (lambda: ff.FedBuff(2, 3, deadline_s=0.0), "positive number of seconds"),
        (lambda: ff.FedBuff(2, 3, local=(Twin(1.0),)), "Twin needs rounds"),
        (lambda: ff.FedAsync(2, 3, alpha=0.0), "above 0 and at most 1"),
        (lambda: ff.FedAsync(2, 3, mu=-1.0), ">= 0"),
        (lambda: ff.SemiSync(2, ff.Sample(3)), "use a whole number"),
        (lambda: ff.SemiSync(2, 3, over=0.9), ">= 1"),
        (lambda: ff.CutOff(2, 3), "give budget_s="),
        (lambda: ff.CutOff(2, 3, by_class={"old": 0.0}), "positive number of seconds"),
        (lambda: ff.Staleness("linear"), "'constant', 'polynomial' or 'hinge'"),
        (lambda: ff.Staleness(limit=-1), "versions >= 0"),
        (lambda: ff.Quorum(2, refill=True), "use late='next'"),
        (lambda: ff.Quorum(late="next", refill=True), "never over"),
    ):
        with pytest.raises(ff.UsageError, match=re.escape(told)) as refusal:
            wrong().quorum  # noqa: B018
        assert "\n" not in str(refusal.value)


def test_fedasync_mixes_every_reply_in_by_its_age() -> None:
    by_hand(ff.FedAsync(40, 9, alpha=0.6), lambda w, r: (1 - 0.6 * r[0][3]) * w + 0.6 * r[0][3] * r[0][1])


@given(st.floats(0.1, 60.0), st.lists(st.integers(0, 40), min_size=3, max_size=3), st.booleans())
def test_a_budget_of_time_gives_the_whole_steps_that_fit_beside_the_transfers_and_at_least_one(
    budget_s, sizes, by_class
) -> None:
    fleet = Fleet(
        flops_per_s=np.array([10, 20, 40], np.float32), overhead_s=1.0, downlink_bytes_per_s=10.0,
        uplink_bytes_per_s=5.0, slow_links=True, kind=np.array([0, 1, 1]), kinds=("slow", "fast"),
    )  # fmt: skip
    problem = quadratics(n=3, dim=2)
    work, examples = problem.work(batch_size=4, epochs=2), np.array(sizes)
    config = {"budget_s:fast": budget_s, "budget_s": 7.0} if by_class else {"budget_s": budget_s}
    cost = work.cost(examples, problem.model.layout, config)
    most, less = steps_within(config, fleet, np.arange(3), work, examples, cost)
    for i, size in enumerate(sizes):
        full = 2 * -(-size // 4)
        mine = 7.0 if by_class and i == 0 else budget_s
        each = float(np.asarray(cost.flops)[i]) / float(fleet.flops_per_s[i]) / max(full, 1)
        fit = max(int((mine - 1.0 - 8 / 10 - 8 / 5) // each), 1) if each else full
        assert most[i] == min(fit, full)
        assert np.asarray(less.flops)[i] == pytest.approx(np.asarray(cost.flops)[i] * most[i] / max(full, 1))
    assert steps_within({}, fleet, np.arange(3), work, examples, cost) is None
    with pytest.raises(ff.UsageError, match="'middle': this fleet has slow, fast"):
        steps_within({"budget_s:middle": 1.0}, fleet, np.arange(3), work, examples, cost)


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 4, 8])
@pytest.mark.parametrize("buffer", [1, 5, 11])
def test_any_concurrency_and_buffer_keep_all_laws(concurrency, buffer) -> None:
    for more in ({}, {"stale": ff.Staleness("hinge", limit=2)}, {"server": chain(mean(), momentum(0.9))}):
        laws(ff.FedBuff(3, concurrency, buffer, **more))
    laws(ff.FedAsync(4, concurrency, mu=0.1))


# The same bits


def make(algorithm: Any, *callbacks: Any, model: Any = None, **simulated: Any) -> ff.Job:
    """A job on 20 unlike devices that come and go."""
    data = ff.data.synthetic(clients=20, classes=4, features=8, max_examples=60, seed=1)
    come = Availability.of([[(i * 7 % 60, i * 7 % 60 + 40), (120, 190)] for i in range(20)], period_s=200.0)
    fleet = Fleet(
        overhead_s=(2 + np.arange(20) * 7 % 11).astype(np.float32), availability=come, drop_out=0.1, noise=0.3,
        flops_per_s=1e4,
    )  # fmt: skip
    return ff.Job(
        model=model or ff.mlp(8, 6, 4), data=data, algorithm=algorithm, training=ff.Training(lr=0.1, batch_size=5),
        seed=3, simulated=ff.Simulated(**{"fleet": fleet, "workers": 1, **simulated}), callbacks=callbacks,
    )  # fmt: skip


ALGORITHMS = {
    "fedbuff": lambda rounds=6: ff.FedBuff(rounds, 9, 4),
    "fedbuff-stale": lambda rounds=6: ff.FedBuff(rounds, 9, 2, ff.Staleness(limit=2), timeout_s=12.0),
    "fedbuff-oort": lambda rounds=6: ff.FedBuff(rounds, ff.Sample(9, by="oort"), 4),
    "fedbuff-deadline": lambda rounds=6: ff.FedBuff(rounds, 9, 6, deadline_s=8.0),
    "fedasync": lambda rounds=6: ff.FedAsync(2 * rounds, 9, mu=0.01),
    "semisync": lambda rounds=6: ff.SemiSync(rounds, 5, deadline_s=30.0),
    "tifl": lambda rounds=6: ff.TiFL(rounds, 4),
    "cutoff": lambda rounds=6: ff.CutOff(rounds, 5, budget_s=9.0),
}
each = pytest.mark.parametrize("name", ALGORITHMS)


def left(folder: RunFolder) -> tuple[Any, ...]:
    """What a run leaves, without what depends on the machine's clock."""
    lines = [
        [{k: v for k, v in row.items() if k != "wall_s"} for row in folder.read_lines(f"{kind}.jsonl")]
        for kind in ("rounds", "clients")
    ]
    summary = folder.read_json("summary.json")
    names = ("final", "rounds", "stopped", "virtual_s", "bytes_up", "bytes_down", "tasks", "device_s", "compute_s",
             "energy_j", "running")  # fmt: skip
    return (
        (folder.path / "model.safetensors").read_bytes(), (folder.path / TASKS).read_bytes(), lines,
        {name: summary[name] for name in names},
    )  # fmt: skip


def ran(job: ff.Job, folder: Path) -> tuple[Any, ...]:
    result = job.run(folder, progress=False, report=False)
    assert result.path is not None
    return left(RunFolder.open(result.path, write=False))


@each
@pytest.mark.sampled(2)
def test_neither_workers_nor_chunks_change_a_bit_of_what_a_run_leaves(name, tmp_path) -> None:
    whole = ran(make(ALGORITHMS[name]()), tmp_path)
    assert ran(make(ALGORITHMS[name](), chunk=1), tmp_path) == whole
    assert ran(make(ALGORITHMS[name](), chunk=100, workers=2), tmp_path) == whole


@each
def test_what_a_run_leaves_of_its_tasks_adds_up(name, tmp_path) -> None:
    result = make(ALGORITHMS[name]()).run(tmp_path, progress=False, report=False)
    tasks, summary = read_tasks(result.path), result.summary
    assert tasks is not None
    assert len(tasks) == sum(summary["tasks"].values())
    assert (tasks["end"] - tasks["start"]).sum() == pytest.approx(sum(summary["device_s"].values()))
    assert tasks["energy_j"].sum() == pytest.approx(summary["energy_j"], rel=1e-5)
    assert tasks["compute_s"].sum() == pytest.approx(summary["compute_s"], rel=1e-5)
    assert tasks["bytes_down"].sum() == pytest.approx(summary["bytes_down"], rel=1e-5)
    assert tasks["bytes_up"].sum() == pytest.approx(summary["bytes_up"], rel=1e-5)
    assert sum(row["clients"] for row in result.rounds) == summary["tasks"]["ok"]
    if "fed" in name:
        assert summary["running"] > 0
        assert result.rounds[-1]["at_work"] == summary["running"]


@pytest.mark.parametrize("path", ["auto", "graph"])
def test_a_torch_model_trained_asynchronously_has_the_same_bits_in_any_chunks(path, tmp_path) -> None:
    nn = pytest.importorskip("torch").nn

    def net() -> Any:
        return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 4))

    def model() -> Any:
        return ff.torch_net(net) if path == "auto" else ff.torch_net(net, path=path)

    for algorithm in (ff.FedBuff(4, 9, 3), ff.CutOff(2, 5, budget_s=9.0)):
        whole = ran(make(algorithm, model=model()), tmp_path)
        assert ran(make(algorithm, model=model(), chunk=1), tmp_path) == whole
        assert ran(make(algorithm, model=model(), workers=2), tmp_path) == whole


def test_without_training_the_tasks_are_those_of_a_run_that_trains(tmp_path) -> None:
    for name in ("fedbuff", "fedbuff-stale", "fedasync", "semisync", "cutoff"):
        whole = ran(make(ALGORITHMS[name]()), tmp_path)
        timed = ran(make(ALGORITHMS[name](), train=False), tmp_path)
        assert timed[1] == whole[1]
        assert {k: v for k, v in timed[3].items() if k != "final"} == {
            k: v for k, v in whole[3].items() if k != "final"
        }


NETS = {
    "mlp": lambda: ff.mlp(4, 3, 3),
    "torch": lambda: ff.torch_net(lambda: pytest.importorskip("torch").nn.Linear(4, 3)),
}


@pytest.mark.parametrize("net", NETS)
@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 14)), min_size=1, max_size=7),
    st.integers(1, 3),
    st.booleans(),
)
def test_a_limit_on_steps_is_each_clients_own(net, clients, epochs, alike) -> None:
    sizes = np.array([clients[0][0] if alike else size for size, _ in clients])
    most = np.array([limit for _, limit in clients])
    g = rng.stream(0, "limits")
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    x = g.standard_normal((max(int(offsets[-1]), 1), 4)).astype(np.float32)
    y = g.integers(0, 3, len(x))
    block = Block({"x": x, "y": y}, np.arange(offsets[-1]), offsets)
    trained_by = NETS[net]()
    trained_by = as_net(trained_by, example={"x": x[:1], "y": y[:1]})
    model, keys = trained_by.init(0), rng.keys(0, ("k",), np.arange(len(sizes)))

    def delta(at: slice, training: ff.Training, limit: Any) -> np.ndarray:
        some = block.part(at.start, at.stop)
        row = np.zeros(some.n, np.int64)
        who = np.arange(at.start, at.stop)
        cohort = Cohort(model.vector[None], row, model.layout, who, keys[at], some, steps=limit)
        return Train(trained_by, training)(cohort).leaves["delta"]

    training = ff.Training(lr=0.3, batch_size=4, epochs=epochs)
    together = delta(slice(0, len(sizes)), training, most)
    for i in range(len(sizes)):
        at, per = slice(i, i + 1), -(-int(sizes[i]) // 4) * epochs
        assert together[i].tobytes() == delta(at, training, most[at])[0].tobytes()
        steps = min(per, int(most[i]))
        if steps:
            assert together[i].tobytes() == delta(at, replace(training, steps=steps), None)[0].tobytes()
        else:
            assert not together[i].any()


# Stopped and resumed


class Stop(Exception):
    pass


@pytest.fixture
def at_every_moment(monkeypatch) -> None:
    """Snapshots after every published version, however long they take."""
    call = Saver.__call__

    def always(saver: Saver, seen: Any) -> None:
        saver._next = 0.0
        call(saver, seen)

    monkeypatch.setattr(Saver, "__call__", always)


@pytest.mark.usefixtures("at_every_moment")
@each
@pytest.mark.sampled(2)
def test_a_run_stopped_after_any_version_is_resumed_to_the_same_bits_and_tasks(name, tmp_path) -> None:
    whole = ran(make(ALGORITHMS[name]()), tmp_path / "whole")

    def stop(row: Any) -> None:
        if row["round"] in stops:
            stops.remove(row["round"])
            raise Stop

    for at in ({1}, {2}, {5}, {1, 2, 3, 5}):
        stops = set(at)
        with pytest.raises(Stop):
            make(ALGORITHMS[name](), stop).run(tmp_path / "runs", progress=False, report=False)
        path = RunFolder.find("latest", tmp_path / "runs").path
        while stops:
            with pytest.raises(Stop):
                make(ALGORITHMS[name](), stop).run(folder=RunFolder.open(path), progress=False, report=False)
        make(ALGORITHMS[name](), stop).run(folder=RunFolder.open(path), progress=False, report=False)
        assert left(RunFolder.open(path, write=False)) == whole, f"stopped after {at}"


JOB = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_async_runs import ALGORITHMS, make

def die(row):
    if row["round"] == int(os.environ.get("DIE_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)

job = make(ALGORITHMS[{name!r}]({rounds}), die)
"""

FIELDFARE = [sys.executable, "-m", "fieldfare.cli"]


def written(folder: Path, name: str, rounds: int) -> Path:
    file = folder / "killed.py"
    file.write_text(JOB.format(tests=str(Path(__file__).parent), name=name, rounds=rounds))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedbuff", "fedbuff-oort", "fedasync"])
def test_a_killed_run_resumes_to_the_same_bits_and_the_same_tasks(tmp_path, name) -> None:
    written(tmp_path, name, 30)
    common: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    killed = subprocess.run([*FIELDFARE, "run", "killed.py", "-q"], env={**os.environ, "DIE_AT": "23"}, **common)
    assert killed.returncode == -signal.SIGKILL
    resumed = subprocess.run([*FIELDFARE, "resume", "-q"], **common)
    assert resumed.returncode == 0, resumed.stderr
    whole = ran(make(ALGORITHMS[name](30)), tmp_path / "whole")
    assert left(RunFolder.find("latest", tmp_path / "runs")) == whole


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits_and_the_same_tasks(tmp_path) -> None:
    written(tmp_path, "fedbuff-stale", 1500)
    whole = ran(make(ALGORITHMS["fedbuff-stale"](1500)), tmp_path / "whole")
    process = subprocess.Popen([*FIELDFARE, "run", "killed.py", "-q"], cwd=tmp_path)
    kills = 0
    for wait_s in (1.3, 0.9, 1.1, 0.8):
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        begun = (tmp_path / "runs" / "latest" / "job.py").exists()
        process = subprocess.Popen([*FIELDFARE, *(["resume"] if begun else ["run", "killed.py"]), "-q"], cwd=tmp_path)
    assert process.wait() == 0
    assert kills > 0
    assert left(RunFolder.find("latest", tmp_path / "runs")) == whole
