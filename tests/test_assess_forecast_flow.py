"""A forecast's numbers fit one another: by hand, of a simulation, beside the very run it was made of, for the gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.assess.artefact import Artefact, Draft, Value
from fieldfare.assess.decide.gates import Evidence, systems_gate
from fieldfare.assess.decide.thresholds import thresholds
from fieldfare.assess.decide.workflow import Try
from fieldfare.assess.forecast.assumptions import ASSUMED, assumptions
from fieldfare.assess.forecast.build import build, means_of, spread_of
from fieldfare.assess.forecast.closed import LogNormal, stays, throughput
from fieldfare.assess.forecast.model import SHARES, Means, quantities, ranges_of, swings
from fieldfare.assess.platform.drift import drift, live
from fieldfare.assess.platform.journal import read_journal
from fieldfare.assess.simulate.build import build as simulate
from fieldfare.assess.simulate.search import Search
from fieldfare.core.errors import UsageError

MIDDLE = {name: one.value for name, one in ASSUMED.items()}
SPANS = {name: (one.value, one.low, one.high) for name, one in ASSUMED.items()}
HAND = Means(versions=500, buffer=20, concurrency=20, compute_s=0.8924, down_bytes=0.76e6, up_bytes=0.76e6, sigma=0.0,
             overhead_s=90.0, peak_over_mean=2.25)  # fmt: skip
SEEN = {
    "versions": Value(500.0), "buffer": Value(20.0), "concurrency": Value(20.0), "mode_async": Value(1.0),
    "staleness": Value(10.0), "tasks_started": Value(11_861.0, "tasks", 11_856.0, 11_864.0),
    "tasks_ok": Value(10_000.0), "device_s": Value(993_518.0), "compute_s": Value(10_584.0),
    "waste_share": Value(0.1569, "share", 0.1565, 0.1571), "horizon_s": Value(63_147.0, "s", 63_120.0, 63_172.0),
    "time_to_target_s": Value(28_483.0, "s", 20_909.0, 51_103.0), "versions_to_target": Value(240.0, "", 190.0, 380.0),
    "updates_per_s_peak": Value(1.317, "1/s", 1.2, 1.4),
}  # fmt: skip


def seen(place: Path, **changes: Value | None) -> Artefact:
    values = {name: one for name, one in {**SEEN, **changes}.items() if one is not None}
    return Draft("simulation", values=values).write(place / "simulation")


def forecast(place: Path, simulation: Artefact, **given: Any) -> tuple[Means, Artefact]:
    job = means_of("", simulation=simulation, **{"down_bytes": 0.76e6, "up_bytes": 0.76e6, "overhead_s": 90.0} | given)
    made = build(job, assumptions(), place / "forecast", simulation=simulation, inputs=[simulation])
    return job, made


def test_every_quantity_is_what_a_hand_gets() -> None:
    job = replace(HAND, model_bytes=0.8e6, kept_bytes=1e6, asset_bytes=2e5)
    found = quantities(job, {**MIDDLE, "device_h_price": 0.5})
    task = 0.8924 + 0.76e6 / 5e6 + 0.76e6 / 1e6 + 90
    time = 500 * task
    client = 10_000 * (3.0 * 0.8924 + 0.8 * 0.152 + 1.0 * 0.76)
    network, server = 8 * 15.2e9 * 1e-7, 2 * 45 * 1.09 * time
    kept = 500 * 0.8e6 + 1e6
    by_hand = {
        "time_to_target_s": time, "version_s": task, "tasks_started": 10_000, "tasks_ok": 10_000, "waste_share": 0,
        "staleness": 1, "device_h": 10_000 * task / 3600, "compute_h": 8_924 / 3600, "bytes_down": 7.6e9,
        "bytes_up": 7.6e9, "updates_per_s": 20 / task, "updates_per_s_peak": 45 / task,
        "ingress_bytes_per_s_peak": 0.76e6 * 45 / task, "egress_bytes_per_s_peak": 0.76e6 * 45 / task,
        "checkins_per_s_peak": 45 / task, "aggregators": 1, "tee_memory_bytes": 0.76e6, "storage_bytes": kept,
        "device_bytes": 1e6, "battery_share_per_task": client / 1e4 / 54_000,
        "battery_share_per_day": client / 1e4 / 54_000, "client_energy_j": client, "network_energy_j": network,
        "server_energy_j": server, "energy_j": client + network + server,
        "carbon_g": (client + network + server) / 3.6e6 * 400,
        "cost": 7.6 * 0.08 + 2 * time / 3600 * 0.4 + kept / 1e9 * 0.023 + 10_000 * task / 3600 * 0.5,
    }  # fmt: skip
    assert found.keys() == by_hand.keys()
    for name, value in by_hand.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    unlike = quantities(replace(job, down_bytes=1e6, uplink_bytes_per_s=2e6), MIDDLE)
    assert unlike["egress_bytes_per_s_peak"] == pytest.approx(1e6 * unlike["checkins_per_s_peak"])
    assert unlike["ingress_bytes_per_s_peak"] == pytest.approx(0.76e6 * unlike["updates_per_s_peak"])
    assert unlike["cost"] == pytest.approx(10 * 0.08 + 2 * unlike["time_to_target_s"] / 3600 * 0.4 + kept / 1e9 * 0.023)
    busy = quantities(replace(HAND, buffer=20_000, concurrency=100_000), MIDDLE)
    assert busy["updates_per_s_peak"] == pytest.approx(2.25e5 / task)
    assert busy["aggregators"] == np.ceil(2.25e5 / task * 0.005 / 0.6) > 20
    assert busy["server_energy_j"] == pytest.approx(2 * 45 * 1.09 * busy["time_to_target_s"] * busy["aggregators"])
    cut = quantities(replace(HAND, timeout_s=46.0, sigma=1.0), MIDDLE)
    busy_s = LogNormal(HAND.task_s, 1.0).capped(46.0)
    assert cut["device_h"] == pytest.approx(cut["tasks_started"] * busy_s / 3600)
    assert cut["compute_h"] == pytest.approx(cut["device_h"] * 0.8924 / HAND.task_s)


def test_what_follows_from_a_simulation_is_computed_of_its_numbers(tmp_path: Path) -> None:
    job, made = forecast(tmp_path, seen(tmp_path))
    found = {name: one.value for name, one in made.values.items()}
    share = 240 / 500
    assert found["time_to_target_s"] == 28_483.0
    assert found["tasks_started"] == pytest.approx(share * 11_861)
    assert found["device_h"] == pytest.approx(share * 993_518 / 3600)
    assert found["compute_h"] == pytest.approx(share * 10_584 / 3600)
    assert found["version_s"] == pytest.approx(28_483 / 240)
    assert found["updates_per_s_peak"] == 1.317
    assert found["ingress_bytes_per_s_peak"] == pytest.approx(1.317 * 0.76e6)
    assert found["checkins_per_s_peak"] == pytest.approx(1.317 * 1.1861)
    assert found["egress_bytes_per_s_peak"] == pytest.approx(1.317 * 1.1861 * 0.76e6)
    assert found["bytes_down"] == pytest.approx(share * 11_861 * 0.76e6)
    assert found["bytes_up"] == pytest.approx(share * 10_000 * 0.76e6)
    assert found["waste_share"] == pytest.approx(1 - 10_000 / 11_861)
    assert found["updates_per_s"] == pytest.approx(share * 10_000 / 28_483)
    assert found["staleness"] == pytest.approx(993_518 / 11_861 / found["version_s"])
    assert found["server_energy_j"] == pytest.approx(2 * 45 * 1.09 * 28_483)
    assert found["network_energy_j"] == pytest.approx(8e-7 * (found["bytes_down"] + found["bytes_up"]))
    assert found["carbon_g"] == pytest.approx(found["energy_j"] / 3.6e6 * 400)
    assert found["storage_bytes"] == 240 * job.down_bytes
    assert made.values["time_to_target_s"].closed == pytest.approx(quantities(job, MIDDLE)["time_to_target_s"])
    assert {made.values[name].how for name in ("tasks_started", "ingress_bytes_per_s_peak", "storage_bytes")} == {
        "simulated", "of simulated", "closed form"
    }  # fmt: skip


def test_the_gate_judges_the_simulated_peak(tmp_path: Path) -> None:
    def answer(limit: float, **changes: Value) -> str:
        _, made = forecast(tmp_path, seen(tmp_path, **changes))
        evidence = Evidence(("B",), ("none",), {("forecast", "any", "any"): made})
        return systems_gate(evidence, Try(), thresholds({"ingress_bytes_per_s": limit})).answer

    assert quantities(replace(HAND, versions=240), MIDDLE)["ingress_bytes_per_s_peak"] < 5e5
    assert answer(5e5) == "no"
    assert answer(1.1e6) == "yes"
    assert answer(5e5, updates_per_s_peak=Value(0.3)) == "yes"


def test_bytes_of_a_net_that_only_stands_for_the_model_are_not_taken_for_the_models(tmp_path: Path) -> None:
    _, small = forecast(tmp_path, seen(tmp_path, bytes_down=Value(17.4e6), bytes_up=Value(17.36e6)))
    assert small.number("bytes_down") == pytest.approx(0.48 * 11_861 * 0.76e6)
    _, own = forecast(tmp_path, seen(tmp_path, bytes_down=Value(11_861 * 0.8e6)))
    assert own.number("bytes_down") == pytest.approx(0.48 * 11_861 * 0.8e6)


def test_ranges_of_shares_stay_between_0_and_1_and_hold_the_value(tmp_path: Path) -> None:
    simulation = seen(tmp_path)
    _, made = forecast(tmp_path, simulation, session_s=561.0, session_sigma=1.05)
    for name in SHARES:
        one = made.values[name]
        assert 0 <= one.low <= one.value <= one.high <= 1, name  # type: ignore[operator]
    waste = made.values["waste_share"]
    assert waste.low <= 0.1565 < 0.1571 <= waste.high < 0.6  # type: ignore[operator]
    tight = replace(HAND, session_s=200.0, session_sigma=1.5, within=True, compute_s=60.0)
    ends = ranges_of(quantities(tight, MIDDLE), swings(tight, {**SPANS, "tasks_per_user_day": (1e4, 1.0, 1e5)}))
    assert all(0 <= end <= 1 for name in SHARES for end in ends[name])


def test_a_range_holds_what_every_trial_came_to(tmp_path: Path) -> None:
    _, made = forecast(tmp_path, seen(tmp_path))
    for name, low, high in (("time_to_target_s", 20_909.0, 51_103.0), ("updates_per_s_peak", 1.2, 1.4)):
        one = made.values[name]
        assert one.low <= low < high <= one.high, name  # type: ignore[operator]
    assert "chance, over trials" in made.table("sensitivity")["input"].names  # type: ignore[union-attr]


def small_job(**training: Any) -> ff.Job:
    return ff.Job(
        data=ff.data.synthetic(clients=30, classes=3, features=6, max_examples=60, seed=1), model=ff.mlp(6, 5, 3),
        algorithm=ff.FedAvg(1, 1), training=ff.Training(lr=0.1, batch_size=5, **training),
        simulated=ff.Simulated(workers=1, fleet=ff.fleet.phones(overhead_s=20.0)),
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_every_trial_of_a_simulation_lies_inside_the_forecast_made_of_it(tmp_path: Path, mode: Any) -> None:
    search = Search(mode=mode, concurrency=(8,), buffer=(4,), versions=60, trials=3, every=2, passes=2,
                    metric="train_loss", target=50.0)  # fmt: skip
    made = simulate(small_job(), search, tmp_path / "simulation")
    reach, whole = made.number("versions_to_target"), made.number("versions")
    assert reach is not None
    assert whole is not None
    assert reach < whole, "a target that is reached early"
    job = means_of("", simulation=made)
    assert job.versions == reach
    told = build(job, ASSUMED, tmp_path / "forecast", simulation=made, inputs=[made])
    assert told.number("tasks_started") == pytest.approx(made.number("tasks_started") * reach / whole)  # type: ignore[operator]
    trials = sorted((tmp_path / "simulation-runs").rglob("rounds.jsonl"))
    trials = [one.parent for one in trials if one.parent.name in "012"]
    assert len(trials) == 3
    lived = [live(read_journal(place)[1]) for place in trials]
    for name, theirs in (("checkins_per_s_peak", "checkins_per_s_peak"), ("staleness_mean", "staleness")):
        assert made.number(name) == pytest.approx(np.median([one[theirs] for one in lived]))
    assert told.number("checkins_per_s_peak") == made.number("checkins_per_s_peak")
    for place in trials:
        found = drift(told, place, tmp_path / "drift")
        table = found.table("drift")
        out = {n for n, v in zip(table["quantity"].names, np.asarray(table["inside"]), strict=True) if not v}  # type: ignore[union-attr]
        assert not out, (place.name, {n: (told.values[n], found.number(n)) for n in out})
        assert {"ingress_bytes_per_s_peak", "checkins_per_s_peak", "staleness"} <= set(table["quantity"].names)  # type: ignore[union-attr]


def test_without_a_target_there_is_no_time_to_it_and_the_gate_says_what_is_missing(tmp_path: Path) -> None:
    none = seen(tmp_path, time_to_target_s=None, versions_to_target=None)
    job, made = forecast(tmp_path, none)
    assert not job.reached
    assert made.values["time_to_target_s"].value is None
    assert "no target" in made.values["time_to_target_s"].note
    assert made.number("tasks_started") == 11_861
    evidence = Evidence(("B",), ("none",), {("forecast", "any", "any"): made})
    reply = systems_gate(evidence, Try(), thresholds())
    assert reply.answer == "missing"
    assert reply.missing == ("forecast: time_to_target_s",)
    _, made = forecast(tmp_path, none, versions=100)
    assert made.number("time_to_target_s") == pytest.approx(63_147 / 5)
    assert made.number("tasks_ok") == pytest.approx(2_000)


def test_a_number_of_versions_that_somebody_gives_comes_before_those_to_the_target(tmp_path: Path) -> None:
    _, made = forecast(tmp_path, seen(tmp_path), versions=250)
    assert made.number("time_to_target_s") == pytest.approx(63_147 / 2)
    assert made.number("device_h") == pytest.approx(993_518 / 2 / 3600)


def test_the_closed_forms_waste_is_that_of_unlike_sessions_met_anywhere(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    length = np.exp(dice.normal(np.log(561) - 1.05**2 / 2, 1.05, 400_000))
    met = dice.choice(length, 400_000, p=length / length.sum()) * dice.random(400_000)  # long ones are met more often
    task = LogNormal(92.0, 0.3)
    took = np.exp(dice.normal(task.mu, task.sigma, 400_000))
    found = throughput(20, 20, task, session_s=561.0, session_sigma=1.05, within=True)
    assert 1 - found.ok_share == pytest.approx((took > met).mean(), rel=0.02)
    assert found.tasks_per_s == pytest.approx(20 / np.minimum(took, met).mean(), rel=0.01)
    first = throughput(20, 20, task, session_s=561.0, session_sigma=1.05)
    assert 1 - first.ok_share == pytest.approx((took > dice.permutation(length)).mean(), rel=0.03)
    alike = throughput(20, 20, task, session_s=561.0)
    assert 1 - alike.ok_share < 0.001 < 1 - first.ok_share < 1 - found.ok_share
    assert np.mean(stays(600.0, 0.5, True)) == pytest.approx(300 * np.exp(0.25), rel=0.03)
    assert throughput(1000, 5, task, supply_per_s=1.0, session_s=561.0, within=True).at_work == pytest.approx(561.0)
    lengths = Draft("trace")
    q = np.linspace(0.01, 0.99, 99)
    lengths.table("lengths", {"quantile": q, "usable_s": [LogNormal(561.0, 1.05).quantile(float(x)) for x in q]})
    trace = lengths.write(tmp_path / "trace")
    assert spread_of(trace) == pytest.approx(1.05, rel=0.01)
    job = means_of("", trace=trace, **{n: getattr(HAND, n) for n in ("versions", "buffer", "concurrency", "compute_s")},
                   down_bytes=1.0, up_bytes=1.0, session_s=561.0)  # fmt: skip
    assert job.session_sigma == pytest.approx(1.05, rel=0.01)
    assert not job.within, "FLINT's rule where nothing was simulated"


def test_epochs_multiply_computing_and_what_is_kept_is_stored(tmp_path: Path) -> None:
    bench = Draft("bench", values={"B.per_record_s": Value(0.012), "B.wire_down_bytes": Value(1e6),
                                   "B.wire_up_bytes": Value(1e6)}).write(tmp_path / "bench")  # fmt: skip
    proxy = Draft("proxy")
    proxy.table("index", {"client": [1, 2, 3], "n": [4, 5, 6]})
    features = Draft("features", values={"assets_bytes": Value(3e5)}).write(tmp_path / "features")
    told = means_of("B", bench=bench, proxy=proxy.write(tmp_path / "proxy"), features=features, records=100, epochs=3,
                    versions=10, buffer=5, concurrency=5)  # fmt: skip
    assert told.compute_s == pytest.approx(3.6)
    assert (told.kept_bytes, told.asset_bytes) == (48.0, 3e5)
    with pytest.raises(UsageError, match="epochs=0"):
        means_of("B", bench=bench, records=100, epochs=0)
