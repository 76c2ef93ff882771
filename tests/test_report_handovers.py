"""What a move costs by the share of its round: figures of the runs beside their formulas, in the report of a study."""

from __future__ import annotations

import re
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from split_cases import torch
from test_fedfly_job import DATA, make, on

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.report.handovers import Row, handover_sections, handovers_table, rows_of
from fieldfare.report.read import read_run

assert torch

POINTS = [(0.5, "restart", "restart"), (0.5, "copy", "stop"), (0.9, "restart", "restart 90"), (0.9, "copy", "stop 90")]
TOLD = ff.Handovers("Costs", "still", POINTS, bytes_per_s=1e5, published=[(0.5, 0.33)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two shares and two policies, without training."""
    late = ((0, 1, 0.9, 1),)
    arms = {
        "still": make(moves=(), simulated=on((), train=False)),
        "restart": make(ff.Restart(), simulated=on(((0, 1, 0.5, 1),), train=False)),
        "stop": make(ff.StopAndCopy(), simulated=on(((0, 1, 0.5, 1),), train=False)),
        "restart 90": make(ff.Restart(), simulated=on(late, train=False)),
        "stop 90": make(ff.StopAndCopy(), simulated=on(late, train=False)),
    }
    shown = {"copied": "stop"}
    result = ff.Study(arms, handovers=[TOLD], shown=shown).run(tmp_path_factory.mktemp("study"), progress=False)
    assert result.path is not None
    return result.path


def told_of(folder: Path, **more: Any) -> dict[str, Any]:
    return {**read_run(folder).config["handovers"][0], **more}


@pytest.mark.slow
def test_rows_are_figures_of_the_runs_and_near_their_formulas(folder):
    rows = rows_of(read_run(folder), told_of(folder))
    assert [(round(row.share, 6), row.policy) for row in rows] == [
        (0.5, "restart"), (0.5, "copy"), (0.9, "restart"), (0.9, "copy")]  # fmt: skip
    for again, copied in (rows[:2], rows[2:]):
        assert again.again
        assert not copied.again
        assert again.round_s == pytest.approx((1 + again.share) * again.still_s, rel=0.02)
        assert copied.round_s == pytest.approx(copied.still_s + copied.overhead_s)
        assert copied.overhead_s > 0.0
        assert copied.move is not None
        assert 0.0 < copied.overhead_s - copied.move.state_bytes / 1e5 < 0.05, "and a few round trips"
        assert copied.saved == pytest.approx(copied.wanted, abs=0.01)
        assert copied.restart_s == again.round_s
        assert copied.restart_whole_s == again.whole_s
        assert copied.whole_saved == pytest.approx(copied.whole_wanted, abs=0.03)


@pytest.mark.slow
def test_the_report_of_a_study_has_them_with_the_formula_below_each_figure_and_pictures(folder):
    text = (folder / "report.html").read_text()
    assert re.search(r'<section id="handovers-0"', text)
    row = rows_of(read_run(folder), told_of(folder))[1]
    assert f"<small>formula {100 * row.wanted:.1f} %</small>" in text
    assert "<small>(1 + f) T = " in text
    assert "<small>S / B = " in text
    assert ">33.0 %<" in text
    assert "handovers-0-times-" in text
    assert "handovers-0-saved-" in text
    assert 'id="moves-0"' in text, "a run to be told in full is told"


@pytest.mark.slow
def test_arms_that_are_not_there_have_no_row_and_nothing_is_drawn_where_nothing_is_known(folder):
    run = read_run(folder)
    some = rows_of(run, told_of(folder, points=[[0.5, "copy", "stop"], [0.9, "copy", "nobody"]]))
    assert [isnan(row.saved) for row in some] == [True], "no restart to save against"
    assert rows_of(run, told_of(folder, still="nobody")) == []
    assert rows_of(run, told_of(folder, points=[[0.5, "copy", "still"]])) == [], "in which nobody moves"
    nothing = replace(run, config={**run.config, "handovers": [told_of(folder, still="nobody")]})
    assert handover_sections(nothing, draw=True) == []


def test_a_session_that_stays_says_so():
    row = Row(0.9, "pre-copy", 10.0, 10.0, 19.0, 9.0, 11.0, 20.0, 0.0, None)
    text = handovers_table([row], 1e6, {}, "t")
    assert ">stays<" in text
    assert "to the end of the round" in text
    assert row.wanted == pytest.approx(0.9 / 1.9)
    assert row.whole_wanted == pytest.approx(1 - 10 / 19)


def test_nothing_is_saved_by_the_formula_where_another_device_is_slower():
    row = Row(0.5, "copy", 10.0, 10.5, 15.0, 20.0, 21.0, 21.0, 0.5, None)
    assert row.whole_wanted == row.whole_saved == 0.0
    assert row.wanted == pytest.approx((0.5 - 0.05) / 1.5)


def test_an_arm_that_there_is_not_is_refused_when_the_study_is_made():
    arms = {"still": make(moves=(), data=DATA)}
    with pytest.raises(UsageError, match="names the arm 'restart'"):
        ff.Study(arms, handovers=[ff.Handovers("t", "still", [(0.5, "restart", "restart")])])
    with pytest.raises(UsageError, match="names the arm 'other'"):
        ff.Study(arms, handovers=[ff.Handovers("t", "other", [])])
