"""The ten acceptance tests of the platform that follows FLINT (Wang et al., MLSys 2023), by their numbers.

Shapes of the paper's figures where its set-up is not known; exact equality where ours is. What another file tests is
called, not written again. Not here: how fast it is (`benchmarks/`); a test times nothing.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_assess_features as features
import test_assess_proxy as proxy
import test_assess_workflow as workflow
import test_async_runs as runs
import test_flint_shapes as shapes

import fieldfare as ff
from fieldfare.aggregate import chain, mean
from fieldfare.assess.bench.paper import TABLE_5
from fieldfare.assess.forecast.closed import LogNormal, ingress_bytes_per_s, synchronous_round_s, throughput
from fieldfare.assess.proxy.presets import PRESETS, preset, sizes
from fieldfare.assess.simulate.devices import flops_per_record
from fieldfare.assess.simulate.play import Trial, play
from fieldfare.assess.simulate.search import Search
from fieldfare.fleet.availability import Availability
from fieldfare.run import assemble
from fieldfare.sim.simulator import Simulator
from fieldfare.store.runs import RunFolder
from fieldfare.store.tasks import read_tasks

HOURS = 1.5
TASK = LogNormal(shapes.MEAN_S, shapes.SIGMA)
ROOT = Path(__file__).resolve().parents[1]


def timed(n: int, sigma: float, sessions: Availability | None) -> ff.Job:
    """A job whose tasks take 30 s on average, log-normal from task to task."""
    job = ff.Job(
        model=ff.mlp(4, 2), data=ff.data.synthetic(clients=n, classes=2, features=4, min_examples=1, max_examples=1),
        algorithm=ff.FedAvg(1, 1), training=ff.Training(lr=0.1, batch_size=1), seed=1,
    )  # fmt: skip
    fleet = replace(shapes.fleet(sigma, sessions), flops_per_s=flops_per_record(job) / shapes.MEAN_S)
    return replace(job, simulated=ff.Simulated(fleet=fleet, workers=1))


def searched(place: Path, **settings: Any) -> dict[str, Trial]:
    """Trials by point of a search over time alone, with devices that come and go."""
    job = timed(shapes.supply().size, shapes.SIGMA, shapes.supply())
    search = Search(train=False, hours=HOURS, trials=1, versions=10**6, by="uniform", **settings)
    return {one.point.name: one for one in play(job, search, place)}


@pytest.mark.slow
def test_acceptance_1_tasks_rise_with_concurrency_and_are_then_bound_by_supply(tmp_path: Path) -> None:
    found = searched(tmp_path, concurrency=(60, 120, 180, 240), buffer=(50,))
    tasks = [one.started for one in found.values()]
    assert 1.5 < tasks[1] / tasks[0] < 2.05  # the paper: 1.95
    assert max(tasks[1:]) / min(tasks[1:]) < 1.1  # 1.09
    waste = [one.waste for one in found.values()]
    assert waste[0] < min(waste[1:])  # 3.8 % and 10.7 to 11.8 %
    assert all(0.02 < one < 0.2 for one in waste)


@pytest.mark.slow
def test_acceptance_2_the_stale_share_falls_with_the_limit_and_the_interrupted_share_is_flat(tmp_path: Path) -> None:
    found = list(searched(tmp_path, concurrency=(120,), buffer=(50,), staleness=(1, 10, 20, 30, 40)).values())
    stale = [one.tasks.get("stale", 0) / one.started for one in found]
    interrupted = [one.tasks["interrupted"] / one.started for one in found]
    assert stale == sorted(stale, reverse=True)
    for share, low, high in zip(stale, (0.1, 0.01, 0.003, 0.001, 0.0), (0.3, 0.06, 0.03, 0.02, 0.01), strict=True):
        assert low <= share <= high  # 19.1, 3.6, 1.6, 1.0, 0.5 %
    assert max(interrupted) - min(interrupted) < 0.01
    assert 0.02 < min(interrupted) < 0.1  # 7.2 %


@pytest.mark.slow
def test_acceptance_3_a_round_takes_time_in_proportion_to_its_buffer(tmp_path: Path) -> None:
    found = searched(tmp_path, concurrency=(180,), buffer=(20, 40, 80, 120), staleness=(-1,))
    each = [one.version_s / one.point.buffer for one in found.values()]  # type: ignore[operator]
    assert max(each) / min(each) < 1.15
    for one in found.values():
        assert one.version_s == pytest.approx(one.point.buffer / (one.tasks["ok"] / one.horizon_s), rel=0.1)


@pytest.mark.slow
def test_acceptance_4_waiting_costs_by_the_tail_and_over_selection_leaves_out_who_has_much_data(tmp_path: Path) -> None:
    for sigma, waiting, over in ((0.6, 4.6, 1.7), (1.0, 9.2, 1.6), (1.85, 27.0, 0.9)):
        task = LogNormal(30.0, sigma)
        step = throughput(65, 50, task).version_s
        assert synchronous_round_s(65, task) / step == pytest.approx(waiting, rel=0.1)
        assert synchronous_round_s(50, task, 1.3) / step == pytest.approx(over, rel=0.1)
    job = timed(2000, 1.0, None)
    found = {one.mode: play(job, one, tmp_path / one.mode)[0] for one in (
        Search(mode="sync", buffer=(50,), versions=300, trials=1, train=False, by="uniform"),
        Search(concurrency=(65,), buffer=(50,), staleness=(-1,), versions=300, trials=1, train=False, by="uniform"),
    )}  # fmt: skip
    assert found["sync"].horizon_s / found["async"].horizon_s == pytest.approx(1.6, rel=0.12)
    data = ff.data.synthetic(clients=2000, classes=2, features=4, min_examples=1, max_examples=9000, log_sigma=1.85)
    skewed = replace(job, data=data, simulated=replace(job.simulated, fleet=replace(shapes.fleet(0.0, None),
                     flops_per_s=flops_per_record(job)), train=False))  # fmt: skip
    share = {}
    for name, algorithm in (("over", ff.SemiSync(60, 50, over=1.3)), ("async", ff.FedBuff(60, 65, 50))):
        result = replace(skewed, algorithm=algorithm).run(tmp_path / name, progress=False, report=False)
        tasks = read_tasks(result.path)
        assert tasks is not None
        large = data.sizes[tasks["client"][tasks["outcome"] == 0]] >= np.quantile(data.sizes, 0.8)
        share[name] = float(large.mean())
    assert share["over"] < 0.05, "of updates from the fifth of the clients with most records"
    assert share["async"] > 2 * share["over"]


def test_acceptance_5_the_papers_arithmetic() -> None:
    assert ingress_bytes_per_s(610_000, 48 * 3600, 1.0) == pytest.approx(3.53, abs=5e-3)
    assert ingress_bytes_per_s(610_000, 48 * 3600, 0.76e6) == pytest.approx(2.68e6, rel=2e-3)
    assert TABLE_5["A"].mean_s / 5000 == pytest.approx(0.996e-3)
    for name, bytes_ in (("B", 1.52e6), ("D", 3.12e6), ("E", 7.38e6)):
        assert 2 * 4 * TABLE_5[name].params == pytest.approx(bytes_, rel=0.01)
    assert all(0.61 < row.sigma < 0.67 for row in TABLE_5.values())
    assert pytest.approx(0.22, abs=2e-3) == 0.70 * 0.34 * 0.93
    features.test_the_papers_embedding_becomes_sixty_times_smaller()


@pytest.mark.slow
def test_acceptance_6_traces_keep_22_percent_with_troughs_at_7_to_15_percent_of_the_peak(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    from fieldfare.assess.artefact import words
    from fieldfare.assess.trace import STRICT, Recipe, TraceConfig, build_trace, export_fedscale

    recipe, config = Recipe("flint-strict", clients=3000, known=0.5), TraceConfig(criteria=STRICT)
    made = build_trace(replace(recipe, known=1.0), tmp_path / "a", config, seed=1)
    table = made.table("criteria")
    shares = dict(zip(words(table["criterion"]), table["share_devices"].tolist(), strict=True))
    for name, paper in (("wifi", 0.70), ("battery", 0.34), ("os_released", 0.93), ("all", 0.22)):
        assert shares[name] == pytest.approx(paper, abs=0.025), name
    assert made.number("eligible_share_device_s") == pytest.approx(0.22, abs=0.025)
    assert 0.07 <= made.number("trough_over_peak") <= 0.15  # type: ignore[operator]
    assert made.number("weeks") == 2.0
    few = replace(recipe, clients=300)
    coins = [build_trace(few, tmp_path / f"coins{i}", config, seed).sha256 for i, seed in enumerate((1, 1, 2))]
    assert coins[0] == coins[1] != coins[2]
    small = build_trace(few, tmp_path / "few", config, seed=1)
    again = build_trace(export_fedscale(small, tmp_path / "client_behave_trace"), tmp_path / "again")
    for name, origin in (("client", 0.0), ("start_s", small.params["origin_s"]), ("end_s", small.params["origin_s"])):
        found, kept = (np.asarray(one.table("sessions")[name]) for one in (again, small))
        np.testing.assert_allclose(found, kept - origin, atol=1e-6)


@pytest.mark.parametrize("name", list(PRESETS))
def test_acceptance_7_proxies_have_the_papers_sizes(name: str) -> None:
    proxy.test_presets_match_the_mean_within_5_and_the_deviation_within_15_per_cent(name)
    whole, few = sizes(preset(name), 100_000, seed=1), sizes(preset(name), 20_000, seed=2)
    grid = np.unique(whole)
    cdf = [np.searchsorted(np.sort(one), grid, "right") / len(one) for one in (whole, few)]
    assert np.abs(cdf[0] - cdf[1]).max() < 0.02, "fewer clients have the same distribution"


def test_acceptance_7_proxies_split_no_client_are_one_file_an_executor_and_sample_clients(tmp_path: Path) -> None:
    proxy.test_partitions_are_one_a_executor_and_split_no_client(tmp_path)
    proxy.test_a_sample_of_clients_keeps_all_their_rows_and_their_distribution()


@pytest.mark.parametrize("name", ["fedbuff", "fedbuff-stale"])
def test_acceptance_8_one_worker_gives_the_bits_of_four(name: str, tmp_path: Path) -> None:
    make, algorithm = runs.make, runs.ALGORITHMS[name]
    assert runs.ran(make(algorithm(), workers=4, chunk=1), tmp_path) == runs.ran(make(algorithm()), tmp_path)


@pytest.mark.data
def test_acceptance_8_one_at_work_is_sequential_and_alike_tasks_make_rounds() -> None:
    once, fresh = chain(mean(weighted=False)), ff.Staleness("constant", limit=0)
    always = replace(runs.ALIKE, availability=Availability.always(20))
    sequential = runs.trained(ff.FedAvg(rounds=6, cohort=1, server=once))
    assert runs.trained(ff.FedBuff(rounds=6, cohort=1, buffer=1, stale=fresh)) == sequential
    rounds = runs.trained(ff.FedAvg(rounds=4, cohort=8, server=once))
    assert runs.trained(ff.FedBuff(rounds=4, cohort=8, buffer=8, stale=fresh, server=once), always) == rounds


@pytest.mark.parametrize("name", ["fedbuff", "fedbuff-stale", "fedasync"])
def test_acceptance_8_tasks_started_are_those_that_ended_and_those_at_work(name: str, tmp_path: Path) -> None:
    job = runs.make(runs.ALGORITHMS[name](40), train=False)
    result = job.run(tmp_path, progress=False, report=False)
    tasks, told = read_tasks(result.path), result.summary
    assert tasks is not None
    simulator = Simulator(assemble(job).world, None)
    simulator.run()
    started = sum(stream.serial for stream in simulator.progress.streams.values())
    assert started == sum(told["tasks"].values()) + told["running"]
    assert {"ok", "interrupted"} <= told["tasks"].keys()
    assert told["running"] > 0
    assert len(tasks) == sum(told["tasks"].values())
    assert (tasks["end"] - tasks["start"]).sum() == pytest.approx(sum(told["device_s"].values()))


KILLED = """
import os, sys, time
sys.path.insert(0, {tests!r})
from test_async_runs import ALGORITHMS, make
from fieldfare.run import Saver

call = Saver.__call__

def always(saver, seen):
    saver._next = 0.0
    call(saver, seen)

Saver.__call__ = always

def slow(row):
    with open({log!r}, "a") as log:
        log.write(f"{{os.getpid()}} {{row['round']}}\\n")
    time.sleep(0.03)

job = make(ALGORITHMS["fedbuff-stale"]({rounds}), slow, workers=2, chunk=1)
"""


def children(pid: int) -> list[int]:
    """Processes that `pid` started, Linux only."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, task.read_text().split())
    return found


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds workers in /proc")
def test_acceptance_8_after_kills_of_leader_and_workers_at_most_one_version_is_computed_again(tmp_path: Path) -> None:
    log, rounds, dice = tmp_path / "versions", 60, random.Random(7)
    (tmp_path / "killed.py").write_text(
        KILLED.format(tests=str(Path(__file__).parent), log=str(log), rounds=rounds), "utf-8"
    )

    def versions() -> list[tuple[int, int]]:
        return [tuple(map(int, line.split())) for line in log.read_text().splitlines()] if log.exists() else []  # type: ignore[misc]

    killed: list[str] = []
    verb, at = ["run", "killed.py"], 0
    for whom in ("leader", "worker", "leader", "worker", None):
        process = subprocess.Popen([*runs.FIELDFARE, *verb, "-q"], cwd=tmp_path, stderr=subprocess.PIPE)
        verb, at = ["resume"], at + dice.randint(4, 11)
        while whom and process.poll() is None and not any(v >= at for _, v in versions()):
            time.sleep(0.002)
        time.sleep(dice.random() * 0.03)
        if whom and process.poll() is None:
            os.kill(process.pid if whom == "leader" else dice.choice(children(process.pid)), 9)
            killed.append(whom)
        process.communicate(timeout=300)
        assert (process.returncode == 0) == (whom is None)
    assert killed == ["leader", "worker"] * 2
    done = versions()
    for (pid, before), (other, after) in pairwise(done):
        assert after in ((before + 1,) if pid == other else (before, before + 1))
    whole = runs.ran(runs.make(runs.ALGORITHMS["fedbuff-stale"](rounds)), tmp_path / "whole")
    assert runs.left(RunFolder.find("latest", tmp_path / "runs")) == whole


@pytest.mark.slow
def test_acceptance_9_both_throughputs_are_rows_of_the_benchmarks_and_are_measured(monkeypatch: Any) -> None:
    folder = ROOT / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    import rows

    assert {"assess-time-only", "assess-trained"} <= rows.ROWS.keys()
    lines = [[*what] for what in (("events", "20000", "flint-strict", "0.2", "rested"), ("assess-trained", "0.2"))]
    told = [json.loads(subprocess.run([sys.executable, "ours.py", *line], cwd=folder, check=True, capture_output=True,
                                      text=True).stdout.splitlines()[-1]) for line in lines]  # fmt: skip
    assert all(one["tasks_per_s"] > 0 for one in told)
    assert told[1]["parameters"] == pytest.approx(189_000, rel=0.01)


def test_acceptance_10_the_papers_ads_case_is_a_go_and_each_gate_walks_its_loop(tmp_path: Path) -> None:
    workflow.test_the_papers_ads_inputs_are_a_go(tmp_path / "go")
    for gate, key, name, value in (
        ("G2", "bench", "B.storage_bytes", 11e6), ("G3", "simulation", "metric_loss_share", 0.06),
        ("G4", "forecast", "ingress_bytes_per_s_peak", 3.1e6),
    ):  # fmt: skip
        workflow.test_a_gate_that_says_no_goes_back_to_the_models_and_on_with_the_next(
            tmp_path / gate, (key, "B", "any"), name, value, gate
        )
    workflow.test_a_privacy_budget_that_is_not_kept_goes_back_to_the_search_with_the_next_technique(tmp_path / "G5")
    workflow.test_without_a_field_to_partition_by_clients_are_made_up_and_the_walk_goes_on(tmp_path / "G1")
    for number, key in enumerate(workflow.ADS):
        workflow.test_missing_evidence_is_incomplete_and_never_a_pass(tmp_path / f"{number}", key)
