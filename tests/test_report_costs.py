"""Arms that have spent the same, as tables and pictures in the report of a study."""

from __future__ import annotations

import re

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.report.costs import (
    Mean,
    Situation,
    mean_of,
    metrics_table,
    situations_of,
    summary_table,
    value_at,
)
from fieldfare.report.read import read_run
from fieldfare.report.table import Table

DATA = ff.synthetic(clients=6, classes=3, features=4, seed=3, min_examples=12, log_mean=1.0, log_sigma=0.5)
FAMILY = ff.submodels(ff.mlp(4, 8, 3), (1.0, 0.5))
SHOWN = {"whole": "accuracy", "half": ("accuracy@1/2", "accuracy@none")}


def job(rounds: int, seed: int, view: bool) -> ff.Job:
    algorithm = ff.HeteroFL(rounds, 3, view=FAMILY.view() if view else None, scaled=False)
    model = FAMILY if view else ff.submodels(ff.mlp(4, 8, 3), (1.0,))
    return ff.Job(model, DATA, algorithm, ff.Training(steps=2), seed=seed, simulated=ff.Simulated(workers=1))


def study(point: float) -> ff.Study:
    arms = {
        "cut": {seed: job(4, seed, True) for seed in range(2)},
        "plain": {seed: job(2 + 3 * seed, seed, False) for seed in range(2)},
    }
    told = {"here": (point, {"sub-models": "cut", "whole ones": "plain"})}
    return ff.Study(arms, costs=[ff.EqualCost("After some rounds", "round", told, SHOWN)])


def test_a_value_is_the_last_measured_at_or_before_the_point_and_a_run_that_ended_earlier_has_none():
    columns = {"virtual_s": np.array([1.0, 2.0, 3.0, 4.0]), "accuracy": np.array([0.5, np.nan, 0.7, 0.8])}
    table = Table(n=4, columns=columns)
    assert value_at(table, "accuracy", "virtual_s", 2.5) == 0.5
    assert value_at(table, "accuracy", "virtual_s", 3.0) == 0.7
    assert value_at(table, "accuracy", "virtual_s", 0.5) is None
    assert value_at(table, "accuracy", "virtual_s", 4.5) is None


def test_the_interval_of_a_mean_is_students():
    ten = mean_of([0.1 * n for n in range(10)], 10)
    assert (ten.value, ten.n) == (pytest.approx(0.45), 10)
    assert ten.half == pytest.approx(2.262 * np.std(np.arange(10) / 10, ddof=1) / 10**0.5, abs=1e-6)
    assert mean_of([0.5], 2) == Mean(0.5, 0.0, 1, 2)
    many = mean_of([0.0, 1.0] * 50, 100)
    assert many.half == pytest.approx(1.984 * np.std([0.0, 1.0] * 50, ddof=1) / 10, rel=2e-3)


def test_the_report_of_a_study_has_a_table_over_situations_one_by_metric_and_a_picture(tmp_path):
    result = study(3.0).run(tmp_path, progress=False)
    assert result.path is not None
    run = read_run(result.path)
    (here,) = situations_of(run, run.config["costs"][0])
    assert (here.title, here.point) == ("here", 3.0)
    cut, plain = here.means["sub-models"], here.means["whole ones"]
    at_three = [one.table.column("accuracy")[2] for one in run.arms["cut"]]
    assert cut["whole"].value == pytest.approx(np.mean(at_three))
    assert (cut["whole"].n, cut["half"].n) == (2, 2)
    assert (plain["whole"].n, plain["whole"].asked) == (1, 2), "one seed has two rounds"
    assert plain["half"].asked == 0, "it has no such metric"
    text = (result.path / "report.html").read_text()
    assert '<section id="costs-0"' in text
    assert "1 of 2 seeds" in text
    assert "costs-0-0-" in text, "drawn"
    assert re.search(r"<summary>here: a table</summary>", text)


def test_nobody_who_came_so_far_is_told_and_not_drawn(tmp_path):
    result = study(50.0).run(tmp_path, progress=False)
    assert result.path is not None
    text = (result.path / "report.html").read_text()
    assert "did not come so far" in text
    assert "costs-0-0-" not in text


def test_an_arm_that_there_is_not_is_refused_when_the_study_is_made():
    costs = [ff.EqualCost("t", "bytes", {"s": (1.0, {"a": "nobody"})})]
    with pytest.raises(UsageError, match="names the arm 'nobody'"):
        ff.Study({"one": job(1, 0, True)}, costs=costs)


def test_a_reference_is_no_rival_and_so_never_in_bold():
    means = {name: {"whole": Mean(value, 0.0, 1, 1)} for name, value in {"oracle": 0.9, "a": 0.8, "b": 0.7}.items()}
    one = Situation("here", 1.0, means)
    assert 'best">90.0 %' in summary_table([one], "whole", "accuracy", "bytes", "t")
    assert 'best">80.0 %' in summary_table([one], "whole", "accuracy", "bytes", "t", "oracle")
    assert 'best">90.0 %' not in metrics_table(one, {"whole": "accuracy"}, "oracle")
    assert "best" not in metrics_table(Situation("here", 1.0, {"a": means["a"]}), {"whole": "accuracy"})


def test_the_interval_of_a_share_ends_at_all_of_it():
    one = Situation("here", 1.0, {"a": {"whole": Mean(0.9, 0.3, 2, 2)}})
    assert "60.0–100.0 %" in summary_table([one], "whole", "accuracy", "bytes", "t")
