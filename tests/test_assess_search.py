"""Points of a search: rates, schedules, cohorts; crosses and draws; halving on virtual time; seeds that choose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import fieldfare as ff
from fieldfare.assess.artefact import read_artefact, words
from fieldfare.assess.options import made, settings_of
from fieldfare.assess.simulate.build import build
from fieldfare.assess.simulate.play import choose, play, ranked, tuning
from fieldfare.assess.simulate.search import TUNE_SEED, Point, Search, algorithm, asked, job_of, points
from fieldfare.assess.simulate.trial import Trial, worth
from fieldfare.cli import app
from fieldfare.core.errors import UsageError
from fieldfare.store.lines import read_lines

SMALL = Search(concurrency=(6,), buffer=(3,), versions=8, trials=2, every=2, central=0.95)


def job(clients: int = 16) -> ff.Job:
    return ff.Job(
        data=ff.data.digits(clients=clients, partition=ff.dirichlet(0.5)), model=ff.mlp(64, 8, 10),
        algorithm=ff.FedAvg(1, 1), training=ff.Training(lr=0.1, batch_size=10),
        simulated=ff.Simulated(workers=1),
    )  # fmt: skip


def names(search: Search) -> list[str]:
    return [one.name for one in points(search)]


# --- points


def test_rates_and_schedules_of_clients_and_server_are_axes_of_the_grid() -> None:
    found = names(Search(lr=(0.1, 0.3), server_lr=(1.0, 0.5)))
    assert found == ["lr0.1-slr1.0", "lr0.1-slr0.5", "lr0.3-slr1.0", "lr0.3-slr0.5"]
    assert names(Search(server=("mean", "adam"), server_decay=(0.9, 0.5))) == [
        "mean-sd0.9", "mean-sd0.5", "adam-sd0.9", "adam-sd0.5",
    ]  # fmt: skip


def test_a_decay_is_of_steps_alone_so_that_other_schedules_are_one_point() -> None:
    assert names(Search(schedule=("cosine", "step"), decay=(0.5, 0.9))) == ["cosine", "step-d0.5", "step-d0.9"]
    assert points(Search(decay=(0.5,)))[0].schedule == "step"


def test_a_points_job_trains_at_its_rates() -> None:
    few = Search(concurrency=(4,), buffer=(2,))
    search = replace(few, lr=(0.3,), schedule=("cosine",), versions=40)
    training = job_of(job(), search, points(search)[0], 0, None).training
    assert [training.lr_at(v) for v in (1, 21, 41)] == pytest.approx([0.3, 0.15, 0.0])
    search = replace(few, decay=(0.5,), decay_every=10)
    training = job_of(job(), search, points(search)[0], 0, None).training
    assert [training.lr_at(v) for v in (1, 10, 11, 21)] == pytest.approx([0.1, 0.1, 0.05, 0.025])
    assert job_of(job(), few, points(few)[0], 3, None).training == job().training


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_servers_rate_and_decay_are_behind_the_mean(mode: Any) -> None:
    search = Search(mode=mode, server_lr=(0.5,), server_decay=(0.1,), decay_every=2)
    server = algorithm(search, points(search)[0]).server
    plain = algorithm(Search(mode=mode), points(Search(mode=mode))[0]).server
    state, steps = server.init(2), []
    for _ in range(4):
        told, state = server.update(type("F", (), {"value": np.ones(2, np.float32), "weight": 1.0})(), state)
        steps.append(float(told[0]))
    assert steps == pytest.approx([0.5, 0.5, 0.05, 0.05])
    assert plain.after == ()
    assert plain.fold.weighted == (mode == "sync")  # type: ignore[union-attr]


def test_optimisers_of_the_server_are_by_name() -> None:
    search = Search(server=("momentum", "adam", "yogi", "adagrad", "mean"))
    kinds = [[type(one).__name__ for one in algorithm(search, point).server.after] for point in points(search)]
    assert kinds == [["Momentum"], ["Adaptive"], ["Adaptive"], ["Adaptive"], []]


def test_a_cohort_is_how_many_are_asked_in_a_round_and_never_fewer_than_replies() -> None:
    search = Search(mode="sync", buffer=(10, 20), cohort=(15, 30))
    assert names(search) == ["K10-N15", "K10-N30", "K20-N30"]
    assert [algorithm(search, one).on.count for one in points(search)] == [15, 30, 30]
    over = Search(mode="sync", buffer=(10, 20, 7))
    assert [asked(over, one) for one in points(over)] == [13, 26, 10]
    assert points(Search(cohort=(50,)))[0].cohort == 0  # a buffer has none
    with pytest.raises(UsageError, match="above every cohort"):
        points(Search(mode="sync", buffer=(20,), cohort=(10,)))


def test_a_cross_varies_one_axis_at_a_time_from_the_first_of_each() -> None:
    search = Search(concurrency=(40, 10), buffer=(10, 20), staleness=(10, 1, 3), design="cross")
    assert names(search) == ["C40-K10-S10", "C10-K10-S10", "C40-K20-S10", "C40-K10-S1", "C40-K10-S3"]


def test_draws_are_different_points_that_depend_on_the_seed_alone() -> None:
    search = Search(concurrency=(20, 40), buffer=(5, 10), lr=(0.01, 1.0), server_lr=(0.1, 1.0), design="random",
                    draw=12, between=("lr", "concurrency"))  # fmt: skip
    found = points(search)
    assert found == points(replace(search, versions=7))
    assert found != points(replace(search, seed=1))
    assert len({one.name for one in found}) == 12
    rates = np.array([one.lr for one in found])
    assert ((rates >= 0.01) & (rates <= 1.0)).all()
    assert 2 <= (rates < 0.1).sum() <= 10  # even in the logarithm: half of them in expectation
    assert all(20 <= one.concurrency <= 40 for one in found)
    assert len({one.concurrency for one in found}) > 2
    assert {one.server_lr for one in found} == {0.1, 1.0}
    assert len(points(replace(search, between=(), draw=500))) == 16  # all there are


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"design": "random"}, "draw >= 1 goes with"),
        ({"draw": 3}, "draw >= 1 goes with"),
        ({"between": ("lr",), "lr": (0.1, 1.0)}, 'goes with design="random"'),
        ({"design": "random", "draw": 2, "between": ("lr",), "lr": (1.0, 0.1)}, "the lower first"),
        ({"design": "random", "draw": 2, "between": ("by",)}, "give by two numbers"),
        ({"lr": (0.1, 0.1)}, "give different numbers above 0"),
        ({"decay": (1.5,)}, "above 0 up to 1"),
        ({"schedule": ("step",)}, "needs decay"),
        ({"schedule": ("cosine",), "decay": (0.5,)}, 'of schedule "step"'),
        ({"schedule": ("linear",)}, "'constant', 'cosine'"),
        ({"server": ("adamw",)}, "'mean', 'momentum'"),
        ({"rungs_h": (2.0, 1.0)}, "rising hours"),
        ({"rungs_h": (1.0,), "keep": 1.0}, "a share below 1"),
        ({"rungs_h": (1.0,), "halving": True}, "choose one"),
        ({"train": False, "tune": 2}, "without training nothing tells points apart"),
        ({"cohort": (0,)}, "whole numbers >= 1"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Search(**settings)


def test_all_of_it_is_told_by_a_file_and_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('server_lr = [0.5, 1.0]\nschedule = ["step"]\ndecay = 0.5\ndesign = "random"\n')
    told = settings_of(tmp_path / "s.toml", ["draw=3", "between=[\"server_lr\"]", "rungs_h=[1, 2]", "tune=2",
                                             "cohort=[]", "compare=true"])  # fmt: skip
    search = made(Search, told)
    assert (search.draw, search.between, search.rungs_h, search.decay) == (3, ("server_lr",), (1, 2), (0.5,))
    assert len(points(search)) == 3


# --- which is picked


def trial(point: Point, number: int, final: float, target_s: float | None = None, evals: Any = ()) -> Trial:
    return Trial(point, number, 1, 1.0, {"ok": 1}, 1.0, 1.0, 1.0, 1.0, list(evals), target_s=target_s, final=final)


def test_the_pick_is_by_the_median_over_trials_and_never_by_the_best_seed() -> None:
    search = Search(lr=(0.1, 0.3), trials=3, metric="accuracy")
    steady, lucky = points(search)
    found = [trial(steady, i, 0.8) for i in range(3)] + [trial(lucky, i, v) for i, v in enumerate((0.99, 0.5, 0.6))]
    assert ranked(found, [steady, lucky], search)[0] == steady
    assert worth(search, found[3:]) == (np.inf, -0.6)
    fast = [trial(steady, i, 0.8, t) for i, t in enumerate((50.0, None, 60.0))]
    slow = [trial(lucky, i, 0.8, t) for i, t in enumerate((10.0, None, None))]
    assert ranked(fast + slow, [steady, lucky], search)[0] == steady  # two of three reached the target, against one
    late = [trial(lucky, i, 0.8, t) for i, t in enumerate((55.0, 40.0, 70.0))]
    assert worth(search, fast)[0] == 60.0
    assert ranked(fast + late, [steady, lucky], search)[0] == lucky


def test_at_an_hour_only_what_was_known_by_then_counts() -> None:
    search = Search(lr=(0.1, 0.3), metric="loss", target=0.5)
    early, late = points(search)
    rising = [(1800.0 * i, i, 1.0 - 0.02 * i, 0.0) for i in range(1, 9)]
    falling = [(1800.0 * i, i, 2.0 - 0.24 * i, 0.0) for i in range(1, 9)]
    found = [trial(early, 0, 0.84, None, rising), trial(late, 0, 0.08, 14_000.0, falling)]
    assert ranked(found, [early, late], search, 1.0)[0] == early
    assert ranked(found, [early, late], search, 4.0)[0] == late
    assert worth(search, found[1:], 1.0)[0] == np.inf


RUNGS = replace(SMALL, lr=(0.001, 0.1, 0.3, 0.03), trials=2, versions=40, rungs_h=(0.002, 0.004))


@pytest.mark.slow
def test_halving_on_virtual_time_drops_points_by_their_medians_whenever_it_was_stopped(tmp_path: Path) -> None:
    best, found = choose(job(), RUNGS, tmp_path / "a")
    stopped = {one.point.name: one.stopped_h for one in found}
    assert sorted(str(one) for one in stopped.values()) == ["0.002", "0.002", "0.004", "None"]
    assert stopped[best.name] is None
    assert stopped["lr0.001"] == 0.002
    assert all(one.versions == 40 for one in found if one.stopped_h is None)
    for one in found:
        if one.stopped_h is not None:
            assert one.horizon_s == 3600.0 * one.stopped_h
            assert all(t <= one.horizon_s for t, *_ in one.evals)
            assert not (Path(one.folder) / "summary.json").exists()
            ends = [row["virtual_s"] for row in read_lines(Path(one.folder) / "rounds.jsonl")]
            assert ends[-2] <= one.horizon_s < ends[-1]
    for done in (tmp_path / "a" / "arms" / best.name).rglob("summary.json"):
        done.unlink()  # as if it had been killed after its last rung
    again = choose(job(), RUNGS, tmp_path / "a")
    assert again[0] == best
    assert [_told(one) for one in again[1]] == [_told(one) for one in found]


@pytest.mark.slow
def test_a_run_that_was_stopped_on_the_way_ends_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    best, found = choose(job(), RUNGS, tmp_path / "a")
    alone = play(job(), replace(RUNGS, rungs_h=()), tmp_path / "b", at=[best])
    assert [_told(one) for one in found if one.point == best] == [_told(one) for one in alone]
    model = [(tmp_path / x / "arms" / best.name / "1" / "model.safetensors").read_bytes() for x in "ab"]
    assert model[0] == model[1]


def _told(one: Trial) -> Any:
    return (one.point, one.number, one.versions, one.horizon_s, one.tasks, one.device_s, one.evals, one.final)


@pytest.mark.slow
def test_points_are_chosen_on_other_seeds_than_those_that_are_told(tmp_path: Path) -> None:
    search = replace(SMALL, lr=(0.01, 0.1, 0.3), tune=2, trials=3)
    whole = build(job(), search, tmp_path / "s")
    best = str(whole.params["best"])
    assert tuning(search).seed == TUNE_SEED
    told, tuned = whole.table("trials"), whole.table("tuning")
    assert set(words(told["point"])) == {best}
    assert np.asarray(told["trial"]).tolist() == [0, 1, 2]
    assert len(words(tuned["point"])) == 6
    by_median = {name: np.median(np.asarray(tuned["metric_final"])[np.array(words(tuned["point"])) == name])
                 for name in set(words(tuned["point"]))}  # fmt: skip
    assert best == max(by_median, key=lambda name: by_median[name])
    assert not set(np.asarray(told["horizon_s"]).tolist()) & set(np.asarray(tuned["horizon_s"]).tolist())
    alone = build(job(), replace(search, lr=(float(best.removeprefix("lr")),), tune=0), tmp_path / "alone")
    assert alone.number("metric_final") == whole.number("metric_final")
    assert np.asarray(whole.table("points")["chosen"]).sum() == 1


def test_a_run_that_ended_before_the_hour_is_told_up_to_its_end(tmp_path: Path) -> None:
    search = replace(SMALL, lr=(0.001, 0.3), trials=1, rungs_h=(5.0,))
    _, found = choose(job(), search, tmp_path / "a")
    dropped = next(one for one in found if one.stopped_h is not None)
    assert dropped.horizon_s < 3600
    assert dropped.versions == 8


def test_where_hours_leave_one_point_tuning_stops_there(tmp_path: Path) -> None:
    search = replace(SMALL, lr=(0.001, 0.3), tune=1, trials=1, versions=40, rungs_h=(0.004,))
    whole = build(job(), search, tmp_path / "s")
    assert whole.params["best"] == "lr0.3"
    assert np.asarray(whole.table("tuning")["stopped_h"]).tolist() == [0.004, 0.004]
    assert not list((tmp_path / "s-runs" / "tune").rglob("summary.json"))
    assert whole.number("versions") == 40


def test_points_may_be_compared_on_other_rows_than_those_that_are_told(tmp_path: Path) -> None:
    search = replace(SMALL, lr=(0.01, 0.3), tune=1, trials=1)
    build(job(), search, tmp_path / "s", tuned_on=(job(clients=12), None))
    told = [json.loads(one.read_text())["clients"] for one in sorted((tmp_path / "s-runs" / "tune").rglob("data.json"))]
    assert told == [12, 12]


# --- rounds beside a buffer


@pytest.mark.slow
def test_the_other_mode_is_played_beside_and_changes_no_number_of_the_first(tmp_path: Path) -> None:
    search = replace(SMALL, target=0.2, versions=20, trials=2)
    alone = build(job(), search, tmp_path / "a")
    both = build(job(), replace(search, compare=True), tmp_path / "b")
    shared = {name: one for name, one in both.values.items() if name in alone.values}
    assert shared == dict(alone.values)
    assert {"sync_time_to_target_s", "sync_device_s_to_target", "sync_metric_final", "speed_up"} <= set(both.values)
    evals, other = both.table("evals"), both.table("compared")
    assert list(evals) == list(other)
    assert set(np.asarray(other["trial"]).tolist()) == {0, 1}
    for table in (evals, other):
        for k in (0, 1):
            mine = np.asarray(table["device_s"])[np.asarray(table["trial"]) == k]
            assert (np.diff(mine) > 0).all()
    assert (
        np.asarray(evals["device_s"])[np.asarray(evals["version"]) == 20].max() <= both.values["device_s"].high * 1.001
    )  # type: ignore[operator]
    ratio = both.values["speed_up"]
    assert ratio.low <= ratio.value <= ratio.high  # type: ignore[operator]


def test_versions_and_devices_time_are_told_up_to_the_target(tmp_path: Path) -> None:
    made_ = build(job(), replace(SMALL, target=0.2, versions=20), tmp_path / "a")
    reached, whole = made_.number("versions_to_target"), made_.number("versions")
    assert reached is not None
    assert 10 <= reached <= whole == 20  # type: ignore[operator]
    assert made_.number("device_s_to_target") <= made_.number("device_s")  # type: ignore[operator]


def test_a_sweep_over_time_alone_tells_outcomes_and_quantiles_of_every_point(tmp_path: Path) -> None:
    search = Search(concurrency=(8, 4), buffer=(2, 4), staleness=(10, 1), design="cross", train=False, trials=1,
                    versions=200)  # fmt: skip
    table = build(job(), search, tmp_path / "s").table("points")
    assert words(table["point"]) == ["C8-K2-S10", "C4-K2-S10", "C8-K4-S10", "C8-K2-S1"]
    counted = sum(np.asarray(table[f"tasks_{name}"]) for name in ("ok", "interrupted", "stale", "timeout", "late"))
    assert np.array_equal(counted, np.asarray(table["tasks_started"]))
    low, middle, high = (np.asarray(table[name]) for name in ("version_s_p10", "version_s", "version_s_p90"))
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert np.asarray(table["tasks_stale"])[3] > 0


def test_the_command_searches_rates_of_the_server_with_rungs_and_a_tuning_seed(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import fieldfare as ff\n"
        "job = ff.Job(data=ff.data.digits(clients=12), model=ff.mlp(64, 6, 10), algorithm=ff.FedAvg(1, 1),\n"
        "             simulated=ff.Simulated(workers=1))\n"
    )
    pairs = ("concurrency=4", "buffer=2", "versions=20", "trials=1", "central=0.9", "every=2", "server_lr=[0.1, 1.0]",
             "rungs_h=0.01", "tune=1", 'schedule=["cosine"]')  # fmt: skip
    line = ["assess", "simulate", str(tmp_path / "job.py"), *(f"-s{one}" for one in pairs), "-o", str(tmp_path / "s")]
    told = CliRunner().invoke(app, [*line, "--json"])
    assert told.exit_code == 0, told.exception
    whole = read_artefact(tmp_path / "s")
    assert whole.params["best"] == "slr1.0"
    assert whole.number("server_lr") == 1.0
    assert words(whole.table("points")["schedule"]) == ["cosine", "cosine"]
