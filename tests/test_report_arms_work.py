"""Tasks and devices of several arms on one page: each arm's own numbers, the same hours, the same groups."""

from __future__ import annotations

import json
import re

import pytest
from report_folders import make_run
from test_report_tasks import put_costs, put_fleet, put_tasks

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.fleet.generate import generate
from fieldfare.fleet.tasks import INTERRUPTED, LATE, OK, OUTCOMES
from fieldfare.report import arms_work, plots_arms_work, style
from fieldfare.report.arms import Arm
from fieldfare.report.arms_work import read_arms, task_sections, tasks_section
from fieldfare.report.html import write_comparison, write_report
from fieldfare.report.plots_arms_work import fair_shares, fewer, lost_shares, same_hours
from fieldfare.report.read import read_run
from fieldfare.report.read_tasks import STRIP_TASKS

matplotlib = pytest.importorskip("matplotlib", reason="pictures need fieldfare[report]")


def arm(root, name, tasks, seeds=1, end=100.0, groups=((0, 1, 5), (1, 1, 50), (0, 1, 7), (1, 0, 60)), **how):
    """An arm whose seeds all did `tasks` [(client, start, end, outcome, round, base)] within `end` seconds."""
    runs = []
    for seed in range(seeds):
        folder = make_run(root / name / str(seed), rounds=3, seed=seed, algorithm=name)
        put_tasks(folder, tasks)
        over_time = {"span_s": end, "running": [0.0, 0.0], "available_share": [0.5, 0.75]}
        put_fleet(folder, list(groups), how.get("kinds", ("old", "new")), over_time=over_time)
        summary = json.loads((folder / "summary.json").read_text())
        told = {OUTCOMES[at]: sum(task[3] == at for task in tasks) for at in range(len(OUTCOMES))}
        (folder / "summary.json").write_text(json.dumps({**summary, "virtual_s": end, "tasks": told}))
        runs.append(read_run(folder))
    return Arm(name, tuple(runs))


WAITS = [(0, 0, 40, OK, 1, 0), (1, 0, 60, LATE, 1, 0), (2, 0, 20, INTERRUPTED, 1, 0)]
GOES_ON = [(0, 0, 10, OK, 1, 0), (1, 0, 30, OK, 1, 0), (0, 10, 20, OK, 2, 1)]


@pytest.fixture
def two(tmp_path):
    return read_arms([arm(tmp_path, "waits", WAITS), arm(tmp_path, "goes on", GOES_ON, end=30.0)])


def pictures(sections):
    return [title for one in sections for title in re.findall(r"<figcaption><b>([^<]*)</b>", one.body)]


def test_the_work_lost_by_each_arm_stands_by_its_causes(two):
    lost = {name: lost_shares(two[0].facts, name) for name in ("tasks", "device_s", "bytes", "energy_j")}
    assert lost["tasks"][[OK, LATE, INTERRUPTED]].tolist() == pytest.approx([1 / 3] * 3)
    assert lost["device_s"][[OK, LATE, INTERRUPTED]].tolist() == pytest.approx([40 / 120, 60 / 120, 20 / 120])
    assert all(values.sum() == pytest.approx(1.0) for values in lost.values())
    assert lost_shares(two[1].facts, "device_s")[OK] == 1.0
    with style.drawing():
        drawn = plots_arms_work.waste(two)
        assert plots_arms_work.waste(two[1:]) is None
    assert "waits 66.7 %; goes on 0" in drawn.note


def test_lost_work_is_the_mean_over_the_seeds_that_lost_some_and_those_that_did_not(tmp_path):
    some, none = arm(tmp_path, "some", WAITS), arm(tmp_path, "none", GOES_ON)
    both = read_arms([Arm("both", (*some.runs, *none.runs))])
    assert lost_shares(both[0].facts, "tasks")[LATE] == pytest.approx((1 / 3 + 0) / 2)


def test_every_arm_is_drawn_with_devices_of_its_own_and_waste_and_groups_stand_side_by_side(two):
    with style.drawing():
        sections = task_sections(two, draw=True)
    assert [one.anchor for one in sections] == ["devices", "participation", "waste"]
    assert pictures(sections) == [
        "Tasks at work and devices available, on one clock", "waits: a few devices, task by task",
        "goes on: a few devices, task by task", "How far devices came", "Who takes part, by class of device",
        "Who takes part, by examples held", "Lost work, by cause",
    ]  # fmt: skip
    assert "waits, by how tasks ended" in sections[-1].body
    assert "goes on, by how tasks ended" not in sections[-1].body


def test_of_many_arms_the_first_are_drawn_and_the_page_says_so(two, monkeypatch):
    monkeypatch.setattr(arms_work, "DRAWN_UP_TO", 1)
    with style.drawing():
        devices, *rest = task_sections(two, draw=True, word="run")
    assert devices.lead == "What the devices of each run did at the same hours, of the first 1 of 2 runs."
    assert "waits: a few devices, task by task" in pictures([devices])
    assert "goes on: a few devices, task by task" not in pictures([devices])
    assert all("goes on" in one.body for one in rest)


def test_without_pictures_the_numbers_of_every_arm_stay(two):
    sections = task_sections(two, draw=False)
    assert [one.anchor for one in sections] == ["participation", "waste"]
    assert pictures(sections) == []
    assert "goes on, in numbers" in sections[0].body


def test_strips_end_when_one_device_has_done_many_tasks_in_the_arm_where_that_is_soonest(tmp_path):
    often = [(0, at, at + 1, OK, at + 1, at) for at in range(3 * STRIP_TASKS)]
    works = read_arms([arm(tmp_path, "often", often, end=900.0), arm(tmp_path, "waits", WAITS, end=900.0)])
    assert works[0].work.strip.until_s == STRIP_TASKS
    assert works[1].work.strip.until_s == 900.0
    assert same_hours(works) == STRIP_TASKS
    assert same_hours(works[1:]) == 900.0
    assert same_hours([]) == 0.0
    cut = fewer(works[1].work.strip, 30.0, each=1)
    assert cut.until_s == 30.0
    assert cut.most == 1
    assert set(cut.tasks["client"].tolist()) <= set(cut.devices)
    assert (cut.tasks["start"] < 30.0).all()


def test_an_arm_that_stopped_earlier_says_where_on_the_others_hours(two):
    with style.drawing():
        waits, goes_on = plots_arms_work.strips(two)
    assert "stopped" in goes_on.markup
    assert "stopped" not in waits.markup


def test_who_is_heard_is_compared_by_the_groups_of_the_first_arm(tmp_path):
    works = read_arms([
        arm(tmp_path, "one", WAITS, seeds=2), arm(tmp_path, "two", GOES_ON),
        arm(tmp_path, "others", GOES_ON, kinds=("a", "b")),
    ])  # fmt: skip
    groups, found = fair_shares(works, "class")
    assert groups == ["old", "new"]
    assert {name: values.tolist() for name, values in found.items()} == {
        "one": [2.0, 0.0], "two": pytest.approx([4 / 3, 2 / 3]),
    }  # fmt: skip
    alike = [arm(tmp_path / "alike", name, WAITS, groups=[(0, 1, 3)] * 4, kinds=("phone",)) for name in "ab"]
    assert fair_shares(read_arms(alike), "class") is None
    with style.drawing():
        assert plots_arms_work.participation(read_arms(alike), "class") is None


def test_how_far_devices_came_adds_up_to_all_of_them(two):
    for one in two:
        shares = plots_arms_work.stages_of([facts["participation"] for facts in one.facts])
        assert sum(shares.values()) == pytest.approx(1.0)
    assert shares == {"counted": 0.5, "asked in vain": 0.0, "available, never asked": 0.25, "never available": 0.25}


def test_the_run_of_an_arm_that_is_drawn_is_its_first_or_the_one_asked_for(tmp_path):
    several = arm(tmp_path, "waits", WAITS, seeds=3)
    assert [one.shown for one in read_arms([several])] == ["0"]
    assert [one.shown for one in read_arms([several], {"The last": "waits/2"})] == ["2"]
    assert [one.shown for one in read_arms([several], {"Nothing": "waits/9"})] == ["0"]
    assert len(read_arms([several])[0].facts) == 3


def test_arms_keep_their_colours_where_others_keep_no_tasks(tmp_path):
    bare = Arm("bare", (read_run(make_run(tmp_path / "bare", rounds=3)),))
    works = read_arms([bare, arm(tmp_path, "waits", WAITS)])
    assert [(one.name, one.rank) for one in works] == [("waits", 1)]
    section = tasks_section([bare, Arm("waits", ())], works)
    assert section.body.count("–") >= 3
    assert tasks_section([bare], []) is None
    assert task_sections([], draw=True) == []


@pytest.mark.slow
def test_a_study_shows_the_devices_of_every_arm_and_no_identifier_is_there_twice(tmp_path):
    fleet = generate("flash-charging", drop_out=0.1, flops_per_s=400.0)

    def job(algorithm, seed):
        return ff.Job(
            model=ff.mlp(64, 8, 10), data=ff.data.digits(clients=60, partition=ff.dirichlet(0.3)), seed=seed,
            algorithm=algorithm, training=ff.Training(lr=0.1, batch_size=10),
            simulated=ff.Simulated(fleet=fleet, train=False),
        )  # fmt: skip

    arms = {"waits": ff.SemiSync(rounds=3, cohort=6, deadline_s=600.0), "goes on": ff.FedBuff(8, 9, buffer=4)}
    study = ff.Study({name: {seed: job(one, seed) for seed in range(2)} for name, one in arms.items()},
                     shown={"as it happened": "waits/1"})  # fmt: skip
    folder = study.run(tmp_path, progress=False).path
    text = (folder / "report.html").read_text(encoding="utf-8")
    titles = re.findall(r"<figcaption><b>([^<]*)</b>", text)
    assert "waits: a few devices, task by task (seed 1)" in titles
    assert "goes on: a few devices, task by task (seed 0)" in titles
    assert "goes on: how stale replies were (seed 0)" in titles
    assert not any(title.startswith("waits: how stale") for title in titles)
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(names)
    assert write_report(folder).read_text(encoding="utf-8") == text
    with pytest.raises(UsageError, match="shown"):
        ff.Study(study.arms, shown={"no such": "elsewhere"})


def test_synchronous_and_asynchronous_runs_lie_over_each_other_at_equal_time_and_device_hours(tmp_path):
    folders = []
    for name, tasks, cost, levels in (
        ("sync", WAITS, 150.0, [0.2, 0.3, 0.4]),
        ("async", GOES_ON, 50.0, [0.3, 0.4, 0.5]),
    ):
        one = arm(tmp_path, name, tasks).runs[0].path
        folders.append(put_costs(one, cost, levels))
    text = write_comparison(folders, tmp_path / "out.html").read_text(encoding="utf-8")
    titles = re.findall(r"<figcaption><b>([^<]*)</b>", text)
    for title in (
        "Accuracy (central test) against virtual time", "Accuracy (central test) against device-hours",
        "sync: a few devices, task by task", "async: a few devices, task by task", "Lost work, by cause",
    ):  # fmt: skip
        assert title in titles
    for words in ("device time to 40 % accuracy", "after 150 device-s", "after 30 s of virtual time"):
        assert words in text
    row = text.split('aria-label="accuracy (central test) of every run at equal cost"')[1].split("</table>")[0]
    assert [re.findall(r">([\d.]+ %)<", one)[:2] for one in row.split("<tr>")[2:]] == [
        ["40.0 %", "20.0 %"], ["50.0 %", "50.0 %"],
    ]  # fmt: skip
