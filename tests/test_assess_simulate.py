"""The search over virtual time: points, trials with bands, devices of artefacts, going on, what it costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import fieldfare as ff
from fieldfare.assess.artefact import Artefact, Draft, Value, read_artefact, words
from fieldfare.assess.simulate.build import build, worst_group_gap
from fieldfare.assess.simulate.devices import fleet_for, flops_per_record
from fieldfare.assess.simulate.identity import runs_told, told_of
from fieldfare.assess.simulate.play import play, ranked
from fieldfare.assess.simulate.search import Search, algorithm, points, reached
from fieldfare.assess.simulate.trial import _rates as rates_of
from fieldfare.cli import app
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Params
from fieldfare.fleet.fleet import Fleet
from fieldfare.store.models import write_model
from fieldfare.work.adapt import as_net

SMALL = Search(concurrency=(6,), buffer=(3,), versions=6, trials=2, every=2, target=0.3)


def job(clients: int = 16) -> ff.Job:
    return ff.Job(
        data=ff.data.digits(clients=clients, partition=ff.dirichlet(0.5)), model=ff.mlp(64, 8, 10),
        algorithm=ff.FedAvg(1, 1), training=ff.Training(lr=0.1, batch_size=10),
        simulated=ff.Simulated(workers=1),
    )  # fmt: skip


def trace(place: Path, devices: int = 8) -> Artefact:
    draft = Draft("trace", params={"period_s": 604_800.0, "origin_s": 0.0})
    start = np.arange(devices) * 3600.0
    draft.table("sessions", {
        "client": np.arange(devices), "start_s": start, "end_s": start + 400_000.0, "usable_s": np.full(devices, 4e5),
        "device_class": ["phone" if i % 2 else "tablet" for i in range(devices)], "os": ["a"] * devices,
        "bw_class": ["wifi"] * devices,
    })  # fmt: skip
    return draft.write(place / "trace")


def bench(place: Path) -> Artefact:
    fit = {"B.lognormal_mu": Value(float(np.log(0.01))), "B.lognormal_sigma": Value(0.65)}
    return Draft("bench", values=fit).write(place / "bench")


def test_points_are_all_combinations_that_can_be_and_are_named_by_what_differs() -> None:
    found = points(Search(concurrency=(10, 40), buffer=(5, 20), staleness=(1, -1)))
    assert [one.name for one in found] == [
        "C10-K5-S1",
        "C10-K5-S-1",
        "C40-K5-S1",
        "C40-K5-S-1",
        "C40-K20-S1",
        "C40-K20-S-1",
    ]
    assert algorithm(SMALL, found[1]).stale.limit is None  # type: ignore[union-attr]
    sync = points(Search(mode="sync", buffer=(5, 20)))
    assert [one.name for one in sync] == ["K5", "K20"]
    assert algorithm(Search(mode="sync"), sync[0]).name == "semisync"
    with pytest.raises(UsageError, match="no point is left"):
        points(Search(concurrency=(4,), buffer=(5,)))


def test_a_target_is_reached_when_the_moving_average_has_been_there_five_times() -> None:
    t = [float(i) for i in range(10)]
    assert reached(t, [0.0, 1.0, 0.0] + [1.0] * 7, 0.5, lower=False) == 8.0
    assert reached(t, [1.0] * 10, 0.5, lower=True) is None
    assert reached(t, [0.1] * 10, 0.5, lower=True) == 4.0
    assert reached(t, [1.0] * 10, None, lower=False) is None


@pytest.mark.slow
def test_values_are_medians_over_trials_and_ranges_their_extremes(tmp_path: Path) -> None:
    made = build(job(), Search(**{**_told(SMALL), "trials": 3}), tmp_path / "s")
    rows = made.table("trials")
    finals = np.asarray(rows["metric_final"], np.float64)
    told = made.values["metric_final"]
    assert (told.value, told.low, told.high) == (np.median(finals), finals.min(), finals.max())
    assert len(set(finals.tolist())) > 1
    central = made.number("metric_central")
    assert central is not None
    losses = np.sort((central - finals) / central)
    assert made.values["metric_loss_share"].value == pytest.approx(losses[1])
    assert np.asarray(made.table("evals")["trial"]).max() == 2
    assert made.number("tasks_started") == 18.0
    assert made.number("worst_group_gap") is None


def test_equal_searches_have_equal_hashes_on_any_number_of_workers(tmp_path: Path) -> None:
    search = Search(**{**_told(SMALL), "central": 0.95, "trials": 1})
    one = build(job(), search, tmp_path / "a")
    two = build(job().with_overrides({"workers": 2}), search, tmp_path / "b")
    assert one.sha256 == two.sha256


def test_a_search_goes_on_where_it_was_and_another_one_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    search = Search(**{**_told(SMALL), "central": 0.95})
    whole = build(job(), search, tmp_path / "a")
    play(job(), search, tmp_path / "b-runs")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "b-runs").rglob("rounds.jsonl")}
    assert len(times) == 2
    assert build(job(), search, tmp_path / "b").sha256 == whole.sha256
    assert {p: p.stat().st_mtime_ns for p in times} == times
    other = Search(**{**_told(search), "versions": 7})
    assert build(job(), other, tmp_path / "b").number("versions") == 7
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert build(job(), search, tmp_path / "b").sha256 == whole.sha256
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert len(list(tmp_path.glob("b-runs*"))) == 2
    with pytest.raises(UsageError, match="holds another search"):
        build(job(), other, tmp_path / "b", work=tmp_path / "b-runs")


def _changed(what: str) -> dict[str, Any]:
    """One thing on which the numbers of a trial depend, changed."""
    one = job()
    x, y = (np.array(one.data.columns[name]) for name in "xy")
    match what:
        case "a row":
            x[5] = 1 - x[5]
            return {"data": replace(one.data, columns={"x": x, "y": y})}
        case "test rows":
            return {
                "data": replace(one.data, test={name: rows[:-1] for name, rows in dict(one.data.test or {}).items()})
            }
        case "the net":
            return {"model": ff.mlp(64, 9, 10)}
        case "the rate":
            return {"training": replace(one.training, lr=0.2)}
        case _:
            return {"simulated": ff.Simulated(workers=1, fleet=ff.fleet.phones(overhead_s=70.0))}


@pytest.mark.parametrize("what", ["a row", "test rows", "the net", "the rate", "devices"])
def test_trials_of_other_data_jobs_and_devices_are_not_told_again(tmp_path: Path, what: str) -> None:
    search = Search(**{**_told(SMALL), "trials": 1, "versions": 2, "every": 1, "central": 0.95})
    first = build(job(), search, tmp_path / "s")
    changed = replace(job(), **_changed(what))
    kind = {"a row": "data", "test rows": "data", "devices": "devices"}.get(what, "job")
    with pytest.raises(UsageError, match=f"holds trials of other {kind}"):
        build(changed, search, tmp_path / "t", work=tmp_path / "s-runs")
    again = build(changed, search, tmp_path / "s")
    alone = build(changed, search, tmp_path / "alone")
    assert again.sha256 == alone.sha256 != first.sha256
    assert len(list(tmp_path.glob("s-runs*"))) == 2
    assert runs_told(again.path, again.params).name.startswith("s-runs-")
    assert runs_told(alone.path, alone.params).name == "alone-runs"


def test_what_changes_no_number_changes_no_identity() -> None:
    one = told_of(job(), SMALL)
    assert told_of(replace(job(), name="another", callbacks=(print,)), SMALL) == one
    assert told_of(job().with_overrides({"workers": 2, "seed": 5}), SMALL) == one
    assert told_of(replace(job(), data=replace(job().data, name="renamed")), SMALL) == one


def test_a_trace_of_other_devices_makes_a_new_simulation_in_the_same_place(tmp_path: Path) -> None:
    search = Search(**{**_told(SMALL), "trials": 1, "versions": 2, "every": 1, "central": 0.95})

    def made_(place: str, devices: int) -> Artefact:
        told = trace(tmp_path / f"of {devices}", devices)
        fleet = fleet_for(job(), trace=told, bench=None, model="", seed=0)
        return build(job(), search, tmp_path / place, fleet=fleet, inputs=[told])

    first, again, alone = made_("s", 8), made_("s", 2), made_("alone", 2)
    assert first.number("metric_final") != again.number("metric_final")
    assert again.sha256 == alone.sha256


def test_halving_gives_the_better_half_all_trials_and_the_best_is_among_them(tmp_path: Path) -> None:
    search = Search(concurrency=(8,), buffer=(2, 8), versions=8, trials=4, every=2, central=0.95, halving=True)
    found = play(job(), search, tmp_path / "w")
    counts = {name: sum(one.point.name == name for one in found) for name in ("K2", "K8")}
    assert sorted(counts.values()) == [2, 4]
    best = ranked(found, points(search), search)[0]
    assert counts[best.name] == 4
    made = build(job(), search, tmp_path / "s", work=tmp_path / "w")
    assert made.params["best"] == best.name
    assert words(made.table("points")["point"]) == ["K2", "K8"]


def test_time_alone_is_simulated_for_hours_and_conserves_tasks(tmp_path: Path) -> None:
    search = Search(concurrency=(6,), buffer=(3,), versions=10_000, trials=1, train=False, hours=0.05)
    made = build(job(), search, tmp_path / "s")
    started = sum(made.number(f"tasks_{name}") or 0 for name in ("ok", "interrupted", "stale", "timeout", "straggler"))
    assert made.number("tasks_started") == started > 100
    assert made.number("horizon_s") <= 180.0  # type: ignore[operator]
    assert "metric_final" not in made.values


def test_devices_are_the_traces_at_the_benchs_speeds(tmp_path: Path) -> None:
    one = job(20)
    fleet = fleet_for(one, trace=trace(tmp_path), bench=bench(tmp_path), model="B", seed=3)
    assert fleet is not None
    assert fleet.availability is not None
    assert fleet.availability.row is not None
    assert sorted(np.bincount(fleet.availability.row).tolist()) == [2, 2, 2, 2, 3, 3, 3, 3]
    assert set(fleet.kinds) == {"phone", "tablet"}
    each = flops_per_record(one) / np.asarray(fleet.flops_per_s)
    assert np.median(each) == pytest.approx(0.01, rel=0.6)
    again = fleet_for(one, trace=trace(tmp_path), bench=bench(tmp_path), model="B", seed=3)
    assert np.array_equal(np.asarray(again.flops_per_s), np.asarray(fleet.flops_per_s))  # type: ignore[union-attr]
    fleet.fit(20)
    assert fleet_for(one, trace=None, bench=None, model="", seed=0) is None
    with pytest.raises(UsageError, match="no fit of 'C'"):
        fleet_for(one, trace=None, bench=bench(tmp_path), model="C", seed=0)


def test_devices_differ_in_speed_as_much_as_the_benchs_fit_says(tmp_path: Path) -> None:
    data = ff.data.synthetic(clients=3_000, classes=2, features=4, min_examples=1, max_examples=2, seed=1)
    one = ff.Job(data=data, model=ff.mlp(4, 2), algorithm=ff.FedAvg(1, 1))
    fleet = fleet_for(one, trace=None, bench=bench(tmp_path), model="B", seed=3)
    each = np.log(flops_per_record(one) / np.asarray(fleet.flops_per_s))  # type: ignore[union-attr]
    assert each.mean() == pytest.approx(np.log(0.01), abs=0.05)
    assert each.std() == pytest.approx(0.65, rel=0.05)


def test_updates_per_second_are_counted_in_minutes_of_tasks_that_ended_well() -> None:
    ends = np.concatenate([np.full(60, 30.0), np.full(6, 90.0), np.full(120, 150.0), np.full(999, 170.0), [200.0]])
    tasks = np.zeros(len(ends), [("end", "f8"), ("outcome", "u1")])
    tasks["end"], tasks["outcome"][186:1185] = ends, 1  # those of 170 s failed; the last minute is not over
    mean, p95, peak = rates_of(tasks)  # type: ignore[misc]
    assert mean == pytest.approx((1.0 + 0.1 + 2.0) / 3)
    assert p95 == pytest.approx(1.9)
    assert peak == pytest.approx(2.0)
    assert rates_of(tasks[:0]) is None


def test_the_worst_groups_gap_is_its_loss_over_that_of_everybody(tmp_path: Path) -> None:
    whole, federated = (np.array(told, np.float32) for told in ([9, 0, 0, 9, 0, 0], [0, 0, 0, 0, 1, 0]))

    def gap(rows: tuple[int, int, int]) -> float | None:
        """Phones have class 0, tablets and watches class 1; the federated model says 0 to everybody."""
        y = np.repeat([0, 1, 1], rows)
        data = ff.Federated({"x": np.eye(2)[y], "y": y}, np.cumsum([0, *rows]), np.arange(len(y)), classes=2)
        one = ff.Job(data=data, model=ff.mlp(2, 2), algorithm=ff.FedAvg(1, 1))
        net = as_net(one.model, loss=one.loss, example={name: rows[:2] for name, rows in data.columns.items()})
        write_model(tmp_path / "model.safetensors", Params(federated, net.layout))
        fleet = Fleet(kind=np.arange(3), kinds=("phone", "tablet", "watch"))
        return worst_group_gap(one, Search(), fleet, tmp_path, Params(whole, net.layout))

    assert gap((250, 250, 10)) == pytest.approx(1.0 / (260 / 510))
    assert gap((750, 250, 10)) == pytest.approx(1.0 / (260 / 1010))
    assert gap((750, 199, 10)) is None  # a group of under 200 rows is chance


@pytest.mark.slow
def test_with_classes_of_devices_the_worst_groups_loss_is_compared(tmp_path: Path) -> None:
    one = job(20)
    fleet = fleet_for(one, trace=trace(tmp_path), bench=None, model="B", seed=3)
    made = build(one, SMALL, tmp_path / "s", fleet=fleet)
    assert made.number("worst_group_gap") >= 1.0  # type: ignore[operator]
    gap = made.values["worst_group_gap"]
    assert gap.low is not None, "of every trial"
    assert gap.low <= gap.value <= gap.high  # type: ignore[operator]


def test_the_command_plays_a_job_file_and_bad_input_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import fieldfare as ff\n"
        "job = ff.Job(data=ff.data.digits(clients=12), model=ff.mlp(64, 6, 10), algorithm=ff.FedAvg(1, 1),\n"
        "             simulated=ff.Simulated(workers=1))\n"
    )

    def run(*line: str) -> Any:
        return CliRunner().invoke(app, ["assess", "simulate", *line])

    sets = [f"-s{pair}" for pair in ("concurrency=4", "buffer=2", "versions=4", "trials=1", "central=0.9", "every=2")]
    told = run(str(tmp_path / "job.py"), *sets, "-o", str(tmp_path / "s"), "--json")
    assert told.exit_code == 0, told.exception
    assert read_artefact(tmp_path / "s").sha256 == json.loads(told.output.splitlines()[-1])["sha256"]
    for line, says in (
        (
            ["-s", "metric=auc", "-s", "concurrency=4", "-s", "buffer=2", "-s", "versions=2", "-s", "trials=1"],
            "reports no 'auc'",
        ),
        (["-s", "trails=3"], "did you mean"),
        (["-s", "hours=1"], "goes with train=false"),
        (["-s", "mode=round"], "mode"),
    ):
        failed = run(str(tmp_path / "job.py"), *line, "-o", str(tmp_path / "t"))
        assert failed.exit_code != 0
        assert says in str(failed.exception)


def _told(search: Search) -> dict[str, Any]:
    return {name: getattr(search, name) for name in Search.__dataclass_fields__}
