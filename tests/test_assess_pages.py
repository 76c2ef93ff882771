"""What a decision's page draws of settings: rounds beside a buffer, FLINT's figures 7 and 8; or how to have them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_assess_decide as cases

from fieldfare.assess.artefact import Artefact, Draft, Value, read_artefact
from fieldfare.assess.decide import plots, sweeps
from fieldfare.assess.decide.decision import Case, decide
from fieldfare.assess.decide.page import report
from fieldfare.core.errors import UsageError


def simulation(place: Path, *, speed_up: float = 2.0, mode: float = 1.0, **search: Any) -> Artefact:
    """Both modes, three trials of ten evaluations: the other mode needs `speed_up` times as long for as much."""
    told = {"metric": "loss", "target": 0.3, "train": True, **search}
    values = {
        **cases.VALUES["simulation"], "mode_async": Value(mode), "trials": Value(3.0),
        "speed_up": Value(speed_up, "1", 1.5, 2.5),
        "time_to_target_s": Value(3600.0, "s", 3000.0, 4000.0), "device_s_to_target": Value(36_000.0, "s"),
        "sync_time_to_target_s": Value(7200.0, "s"), "sync_device_s_to_target": Value(72_000.0, "s"),
        "metric_final": Value(0.2, "1", 0.19, 0.21), "waste_share": Value(0.1, "share"),
        "sync_metric_final": Value(0.22, "1"), "sync_waste_share": Value(0.25, "share"),
    }  # fmt: skip
    draft = Draft("simulation", params={"model": "B", "search": told, "best": "C20"}, values=values)
    for name, slow in (("evals", 1.0), ("compared", speed_up)):
        t = 600.0 * np.arange(1, 11)
        draft.table(name, {
            "point": ["x"] * 30, "trial": np.repeat([0, 1, 2], 10), "t_s": np.tile(slow * t, 3),
            "device_s": np.tile(8 * slow * t, 3), "version": np.tile(np.arange(10), 3), "metric": ["loss"] * 30,
            "value": np.concatenate([0.2 + 0.01 * k + np.exp(-t / 1000) for k in range(3)]),
        })  # fmt: skip
    return draft.write(place)


def sweep(place: Path, **changes: Any) -> Artefact:
    """A cross of four concurrencies, three buffers, two limits of staleness."""
    rows = [(120, 50, 10), (60, 50, 10), (240, 50, 10), (120, 20, 10), (120, 80, 10), (120, 50, 1)]
    c, k, s = (np.array(one) for one in zip(*rows, strict=True))
    tasks = np.minimum(c, 130) * 100.0
    draft = Draft("simulation", params={"model": "B", "search": {"train": False, "metric": "accuracy"}, "best": "x"})
    columns = {
        "point": [f"C{a}-K{b}-S{d}" for a, b, d in rows], "concurrency": c, "buffer": k, "staleness": s,
        "version_s": k / 2.0, "version_s_p10": k / 3.0, "version_s_p90": k * 1.0, "horizon_s": np.full(6, 7200.0),
        "tasks_started": tasks, "tasks_ok": 0.9 * tasks, "tasks_interrupted": 0.1 * tasks, "tasks_stale": 0.0 * tasks,
        "tasks_timeout": 0.0 * tasks, "tasks_late": 0.0 * tasks, "waste_share": np.full(6, 0.1),
    } | changes  # fmt: skip
    draft.table("points", columns)
    return draft.write(place)


def page(place: Path, *more: Artefact, swap: Artefact | None = None) -> str:
    """The page of the ads case, with more artefacts, or another simulation."""
    found = [read_artefact(one) for one in cases.write(place / "e")]
    if swap is not None:
        found = [one for one in found if one.kind != "simulation"] + [swap]
    return report(decide(Case("ads", ("B",)), [*found, *more]))


def part(whole: str, anchor: str) -> str:
    return re.split(r"<section ", whole.split(f'<section id="{anchor}"')[1])[0]


def test_what_was_not_simulated_is_said_with_the_command_that_makes_it(tmp_path: Path) -> None:
    whole = page(tmp_path)
    for anchor, says in (("modes", "--set compare=true"), ("sweeps", "--set design=cross")):
        found = part(whole, anchor)
        assert f"<code>fieldfare assess simulate JOB.py --trace trace --bench bench --model B {says[:6]}" in found
        assert says in found
        assert "<svg" not in found


def test_the_commands_settings_are_those_a_search_takes() -> None:
    import shlex

    from fieldfare.assess.options import made, settings_of
    from fieldfare.assess.simulate.search import Search, points

    pairs = [word for word in shlex.split(sweeps.SWEEP) if word != "--set"]
    assert len(points(made(Search, settings_of(None, pairs)))) == 12
    assert made(Search, settings_of(None, [sweeps.COMPARE.removeprefix("--set ")])).compare


def test_both_modes_are_drawn_over_time_and_over_devices_time_with_their_bands(tmp_path: Path) -> None:
    found = part(page(tmp_path, swap=simulation(tmp_path / "s")), "modes")
    assert found.count("<polyline") == 4
    assert found.count("<polygon") == 4
    assert "At equal time" in found
    assert "At equal devices&#x27; time" in found
    assert "The buffer reached the target 2 times as fast as rounds (1.5 to 2.5 by seed), for 50 % less" in found
    assert "target 0.3" in found
    cells = re.findall(r"<td[^>]*>([^<]*)", found)
    assert cells[:4] == ["60 min", "120 min", "10 h", "20 h"]


def test_a_line_is_the_median_over_trials_and_its_band_their_ends_up_to_where_the_shortest_ends() -> None:
    table = {"trial": np.array([0, 0, 0, 1, 1, 2, 2]), "t_s": 3600.0 * np.array([1, 2, 3, 1, 2.5, 1, 4]),
             "value": np.array([1.0, 2.0, 3.0, 2.0, 2.0, 5.0, 5.0])}  # fmt: skip
    found = sweeps.line(table, "t_s", "a", "#000", points=4)
    assert found is not None
    assert found.x.tolist() == [1.0, 1.5, 2.0, 2.5]
    assert found.middle.tolist() == [2.0, 2.0, 2.0, 2.5]
    assert (found.low.tolist(), found.high.tolist()) == ([1.0, 1.5, 2.0, 2.0], [5.0] * 4)
    assert sweeps.line({**table, "t_s": np.full(7, np.nan)}, "t_s", "a", "#000") is None


def test_where_rounds_were_sooner_the_sentence_says_so(tmp_path: Path) -> None:
    told = sweeps.compared(simulation(tmp_path / "s", speed_up=0.5))
    assert told is not None
    assert "Synchronous rounds reached the target 2 times as fast as the buffer" in told
    assert "100 % more of devices" in told


def test_a_sweep_is_drawn_and_no_gate_reads_it(tmp_path: Path) -> None:
    folders = [read_artefact(one) for one in cases.write(tmp_path / "e")]
    plain, with_it = (decide(Case("ads", ("B",)), [*folders, *more]) for more in ([], [sweep(tmp_path / "s")]))
    assert (plain.verdict, plain.told["path"]) == (with_it.verdict, with_it.told["path"])
    alone = decide(Case("ads", ("B",)), [one for one in folders if one.kind != "simulation"] + [sweep(tmp_path / "s")])
    assert alone.verdict == "INCOMPLETE"
    found = part(report(with_it), "sweeps")
    assert found.count("<figure") == 3
    for says in ("How long a version takes", "How tasks end, by concurrency", "How tasks end, by staleness"):
        assert says in found
    assert "Past 120 at work the devices there are bind, not concurrency." in found
    assert re.findall(r'class="src" href="#(a[0-9a-f]+)"', found)[0] in re.findall(
        r'id="(a[0-9a-f]+)"', report(with_it)
    )
    with pytest.raises(UsageError, match="both sweep evidence"):
        decide(Case("ads", ("B",)), [*folders, sweep(tmp_path / "s"), sweep(tmp_path / "t", waste_share=np.zeros(6))])


def test_a_picture_has_the_points_that_differ_in_its_axis_alone_and_were_played_whole(tmp_path: Path) -> None:
    table = sweep(tmp_path / "s").table("points")
    assert sweeps.varied(table, "concurrency").tolist() == [1, 0, 2]
    assert sweeps.varied(table, "buffer").tolist() == [3, 0, 4]
    assert sweeps.varied(table, "staleness").tolist() == [5, 0]
    unlimited = {**table, "staleness": np.array([10, 10, 10, 10, 10, -1])}
    assert sweeps.varied(unlimited, "staleness").tolist() == [0, 5]
    drawn = sweeps.outcomes(sweep(tmp_path / "t", stopped_h=[None, None, None, 1.0, 1.0, None]))
    assert "How long a version takes" not in drawn  # one buffer is left
    assert "by staleness" in drawn


def test_a_trained_search_of_several_settings_is_drawn_where_there_is_no_sweep(tmp_path: Path) -> None:
    trained = simulation(tmp_path / "s")
    columns = dict(sweep(tmp_path / "w").table("points"))
    draft = Draft("simulation", params=dict(trained.params), values=dict(trained.values))
    draft.table("points", columns)
    assert "How tasks end, by concurrency" in part(page(tmp_path, swap=draft.write(tmp_path / "both")), "sweeps")


def test_bars_are_as_high_as_their_tasks_an_hour_and_say_what_did_not_count(tmp_path: Path) -> None:
    drawn = sweeps.outcomes(sweep(tmp_path / "s")).split("by concurrency")[1].split("</figure>")[0]
    heights = [float(one) for one in re.findall(r'<rect x="[\d.]+" y="[\d.]+" width="[\d.]+" height="([\d.]+)"', drawn)]
    counted, lost = heights[2::2], heights[3::2]  # behind the two of the key
    assert counted[1] / counted[0] == pytest.approx(2.0, rel=0.01)
    assert counted[0] / lost[0] == pytest.approx(9.0, rel=0.05)
    assert drawn.count(">10.0 %<") == 3
    assert "too stale" not in drawn  # none was


def test_what_is_far_off_at_the_very_beginning_does_not_flatten_a_line() -> None:
    x = np.linspace(0, 10, 80)
    y = np.where(x < 0.3, 100.0, 1.0 + 0.1 * np.sin(x))
    markup = plots.lines([plots.Line("a", "#000", x, y, y, y)], label="l", x_label="x", y_label="y")
    ticks = [float(one) for one in re.findall(r'text-anchor="end" fill="#586776">([\d.]+)<', markup)]
    assert max(ticks) < 2.0
    assert 'overflow="hidden"' in markup


def test_equal_numbers_give_equal_pages(tmp_path: Path) -> None:
    made = [page(tmp_path / at, sweep(tmp_path / at / "w"), swap=simulation(tmp_path / at / "s")) for at in ("a", "b")]
    assert made[0] == made[1]
