"""Reports of tasks: sums over tasks.bin made by hand, which pictures are there and which are not, spoiled files."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_folders import make_run, write_lines

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.core.quorum import Staleness
from fieldfare.devices import every_device
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.generate import generate
from fieldfare.fleet.tasks import DROP_OUT, INTERRUPTED, LATE, OK, STALE, TIMEOUT
from fieldfare.report import arms as side_by_side
from fieldfare.report import plots, plots_time, style
from fieldfare.report.claims import compute_claims
from fieldfare.report.groups import by_class, by_examples, gini, groups_of
from fieldfare.report.html import write_comparison, write_report
from fieldfare.report.read import read_run
from fieldfare.report.read_tasks import facts_of_run, mean_at_work, read_work, shown_devices, work_facts, work_of_run
from fieldfare.report.table import Table, metrics_of
from fieldfare.store.devices import DEVICE, MOST, read_devices, read_fleet
from fieldfare.store.tasks import TASK, staleness_of

matplotlib = pytest.importorskip("matplotlib", reason="pictures need fieldfare[report]")

HEADINGS = {
    "costs": "Accuracy against virtual time, device-hours, bytes and joules",
    "at work": "Tasks at work",
    "available": "Tasks at work and devices available",
    "stale": "How stale replies were",
    "strip": "A few devices, task by task",
    "class": "Who takes part, by class of device",
    "size": "Who takes part, by examples held",
    "lost": "Lost work, by cause",
}


def put_tasks(folder, rows, columns=("client", "start", "end", "outcome", "round", "base")):
    """Write tasks as (client, start, end, outcome, round, base); each computes half its time and moves 10 and 5 B."""
    tasks = np.zeros(len(rows), TASK)
    for name, values in zip(columns, zip(*rows, strict=True), strict=True):
        tasks[name] = values
    tasks["compute_s"] = (tasks["end"] - tasks["start"]) / 2
    tasks["bytes_down"], tasks["bytes_up"], tasks["energy_j"] = 10, 5, 2
    (folder / "tasks.bin").write_bytes(tasks.tobytes())
    return tasks


def put_fleet(folder, devices, kinds=(), every=1, size=None, **facts):
    """Write (class, whether ever available, examples) of each device."""
    rows = np.array(devices, DEVICE)
    (folder / "devices.bin").write_bytes(rows.tobytes())
    counts = np.bincount(rows["kind"][rows["kind"] >= 0], minlength=len(kinds)).tolist()
    told = {"name": "made", "note": "", "devices": size or len(rows) * every, "every": every}
    told["kinds"] = dict(zip(kinds, counts, strict=True))
    (folder / "fleet.json").write_text(json.dumps({**told, **facts}), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """Four devices of two classes over 100 s: one never available, one asked in vain, two that count."""
    put_tasks(
        tmp_path,
        [(0, 0, 40, OK, 1, 0), (1, 0, 20, INTERRUPTED, 1, 0), (0, 40, 100, OK, 3, 0), (2, 50, 90, STALE, 9, 0),
         (2, 10, 30, OK, 2, 0)],
    )  # fmt: skip
    put_fleet(tmp_path, [(0, 1, 5), (1, 1, 50), (0, 1, 7), (1, 0, 60)], ("old", "new"),
              over_time={"span_s": 100.0, "running": [0.0, 1.0], "available_share": [0.5, 0.75]})  # fmt: skip
    return tmp_path


def test_tasks_are_added_up_by_how_they_ended(folder):
    facts = work_facts(read_work(folder, stale=True))
    assert facts["tasks"] == 5
    assert facts["waste"] == {
        "ok": {"tasks": 3, "device_s": 120.0, "compute_s": 60.0, "bytes_down": 30, "bytes_up": 15, "energy_j": 6},
        "stale": {"tasks": 1, "device_s": 40.0, "compute_s": 20.0, "bytes_down": 10, "bytes_up": 5, "energy_j": 2},
        "interrupted": {
            "tasks": 1,
            "device_s": 20.0,
            "compute_s": 10.0,
            "bytes_down": 10,
            "bytes_up": 5,
            "energy_j": 2,
        },
    }
    assert list(facts["waste"]) == ["ok", "stale", "interrupted"]
    assert facts["lost_device_share"] == pytest.approx(60 / 180)


def test_staleness_counts_the_versions_made_meanwhile_and_what_was_thrown_away(folder):
    work = read_work(folder, stale=True)
    assert work.staleness.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert work.thrown_away.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert work_facts(work)["staleness"] == {"mean": 1.0, "p50": 1, "p90": 2, "p99": 2, "max": 2, "thrown_away": 1}
    assert "staleness" not in work_facts(read_work(folder, stale=False))


def test_tasks_at_work_are_means_over_time_and_those_still_running_count(folder):
    work = read_work(folder, stale=True)
    assert work.edges.tolist() == [0.0, 50.0, 100.0]
    assert work.at_work.tolist() == [(40 + 20 + 10 + 20) / 50, (50 + 40) / 50 + 1.0]
    assert work.available.tolist() == [0.5, 0.75]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=20), st.integers(1, 30))
def test_time_at_work_is_the_time_of_the_tasks_within_the_span(pairs, bins):
    start = np.array([min(pair) for pair in pairs], np.float64)
    end = np.array([max(pair) for pair in pairs], np.float64)
    edges = np.linspace(0.0, 80.0, bins + 1)
    total = float((mean_at_work(start, end, edges) * np.diff(edges)).sum())
    assert total == pytest.approx(float((np.minimum(end, 80) - np.minimum(start, 80)).sum()), abs=1e-6)


def test_groups_say_how_far_devices_came_and_who_is_left_out(folder):
    work = read_work(folder, stale=True)
    kinds = by_class(work)
    assert kinds.names == ("old", "new")
    assert [(name, shares.tolist()) for name, shares in kinds.stages()] == [
        ("counted", [1.0, 0.0]), ("asked in vain", [0.0, 0.5]), ("available, never asked", [0.0, 0.0]),
        ("never available", [0.0, 0.5]),
    ]  # fmt: skip
    assert kinds.ratio().tolist() == [2.0, 0.0]
    assert kinds.learnt.tolist() == [5 * 2 + 7, 0]
    sizes = by_examples(work)
    assert sizes.names == ("5", "7", "50", "60")
    assert sizes.counted.tolist() == [2.0, 1.0, 0.0, 0.0]
    facts = work_facts(work)["participation"]
    assert facts["reached"] == 2
    assert facts["asked"] == 3
    assert facts["available"] == 3
    assert facts["examples_reached_share"] == pytest.approx(12 / 122)
    assert facts["by_class"][1] == {
        "group": "new", "devices": 2, "available": 1, "asked": 1, "reached": 0, "tasks": 1, "counted": 0,
        "examples": 110, "updates_over_devices": 0.0,
    }  # fmt: skip


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200))
def test_tenths_of_data_size_hold_every_device_once_and_equal_sizes_together(tmp_path_factory, sizes):
    folder = tmp_path_factory.mktemp("sizes")
    put_tasks(folder, [(0, 0, 1, OK, 1, 0)])
    put_fleet(folder, [(-1, 1, size) for size in sizes])
    groups = by_examples(read_work(folder, stale=False))
    assert groups.devices.sum() == len(sizes)
    assert groups.examples.sum() == sum(sizes)
    assert len(groups.names) <= 10
    assert (groups.devices > 0).all()
    lows = [int(re.split("–", name)[0]) for name in groups.names]
    assert lows == sorted(set(lows))


def test_of_many_classes_the_largest_are_named_and_the_rest_is_one_group(tmp_path):
    kinds = [f"phone {at}" for at in range(40)]
    put_tasks(tmp_path, [(0, 0, 1, OK, 1, 0)])
    put_fleet(tmp_path, [(at, 1, 3) for at in range(40) for _ in range(1 + (at < 5))], kinds)
    groups = by_class(read_work(tmp_path, stale=False))
    assert len(groups.names) == 10
    assert groups.names[:5] == tuple(kinds[:5])
    assert groups.names[-1] == "other"
    assert groups.devices.sum() == 45


def test_devices_alike_in_class_and_size_are_no_groups(tmp_path):
    put_tasks(tmp_path, [(0, 0, 1, OK, 1, 0)])
    put_fleet(tmp_path, [(0, 1, 3)] * 20, ("phone",))
    assert groups_of(read_work(tmp_path, stale=False)) == []


def test_of_a_large_fleet_the_devices_kept_stand_for_the_rest(tmp_path):
    put_tasks(tmp_path, [(0, 0, 1, OK, 1, 0), (3, 0, 1, OK, 1, 0), (4, 0, 1, OK, 1, 0), (4, 1, 2, LATE, 1, 0)])
    put_fleet(tmp_path, [(0, 1, 3), (0, 1, 4), (1, 1, 5)], ("a", "b"), every=2, size=5)
    work = read_work(tmp_path, stale=False)
    assert work.counted.tolist() == [1, 0, 1]
    assert work.begun.tolist() == [1, 0, 2]
    assert work.n == 4
    assert work_facts(work)["participation"]["every"] == 2


def test_the_strip_shows_the_most_active_devices_and_others_by_chance():
    begun = np.zeros(1000, np.int64)
    begun[100:200] = 1
    begun[[7, 5, 3, 900, 800, 700]] = [9, 9, 8, 7, 6, 5]
    shown, most = shown_devices(begun, seed=1)
    assert shown[:most] == [5, 7, 3, 900, 800, 700]
    assert len(shown) == 12
    assert all(100 <= one < 200 for one in shown[most:])
    assert shown_devices(begun, seed=1)[0] == shown
    assert shown_devices(begun, seed=2)[0] != shown


def test_gini_is_zero_for_all_alike_and_for_nothing():
    assert gini(np.ones(50)) == pytest.approx(0.0, abs=1e-12)
    assert gini(np.zeros(3)) == 0.0
    assert gini(np.array([0.0, 1.0])) == 0.5


@pytest.mark.parametrize("step", [1, 2, 7])
def test_every_nth_device_has_its_own_availability(step):
    full = generate("flash-charging").build(300, 0).availability
    some = every_device(full, step)
    ids = np.arange(0, 300, step)
    assert some.size == len(ids)
    for t in (0.0, 5e4, 7e5):
        assert np.array_equal(some.session(t, np.arange(len(ids))), full.session(t, ids))
    shared = Availability(full.offsets, full.start, full.end, full.period_s, np.arange(300, dtype=np.int32) // 2)
    again = every_device(shared, step)
    assert np.array_equal(again.session(9.0, np.arange(len(ids))), shared.session(9.0, ids))


def test_a_file_cut_within_a_record_is_told_in_one_line_and_the_rest_counts(tmp_path):
    run = make_run(tmp_path / "run", rounds=5)
    put_tasks(run, [(0, 0, 1, OK, 1, 0), (1, 0, 2, LATE, 1, 0)])
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "tasks": {"ok": 1, "late": 1}}))
    assert "note" not in facts_of_run(run)
    raw = (run / "tasks.bin").read_bytes()
    (run / "tasks.bin").write_bytes(raw + raw[:10])
    assert facts_of_run(run)["note"] == "tasks.bin ends within a record: its last 10 bytes are left out."
    (run / "tasks.bin").write_bytes(raw[:-1])
    note = facts_of_run(run)["note"]
    assert note.startswith("tasks.bin holds 1 of the run's 2 tasks")
    assert note in write_report(run).read_text(encoding="utf-8").replace("&#x27;", "'")


@pytest.mark.parametrize(
    ("name", "value"),
    [("outcome", 7), ("end", np.nan), ("end", -1.0), ("start", -5.0), ("client", 4), ("energy_j", -1.0),
     ("compute_s", np.nan)],
)  # fmt: skip
def test_a_record_that_is_no_task_is_one_line_that_names_it(folder, name, value):
    tasks = np.fromfile(folder / "tasks.bin", TASK)
    tasks[name][3] = value
    (folder / "tasks.bin").write_bytes(tasks.tobytes())
    with pytest.raises(UsageError, match=r"tasks\.bin: record 3 is no task") as told:
        read_work(folder, stale=True)
    assert "\n" not in str(told.value)


def test_devices_that_do_not_fit_the_fleet_are_one_line(folder):
    raw = (folder / "devices.bin").read_bytes()
    (folder / "devices.bin").write_bytes(raw[:-2])
    with pytest.raises(UsageError, match="ends within a record"):
        read_work(folder, stale=True)
    (folder / "devices.bin").write_bytes(raw[: -DEVICE.itemsize])
    with pytest.raises(UsageError, match="about other devices"):
        read_work(folder, stale=True)
    (folder / "devices.bin").write_bytes(raw)
    (folder / "fleet.json").write_text('{"devices": 4')
    with pytest.raises(UsageError, match=r"fleet\.json cannot be read"):
        read_work(folder, stale=True)


def test_tasks_without_a_fleet_still_add_up(folder):
    (folder / "fleet.json").unlink()
    (folder / "devices.bin").unlink()
    work = read_work(folder, stale=False, span_s=200.0)
    assert work.edges[-1] == 200.0
    assert work_facts(work)["participation"] == {}
    assert work.available is None


def test_a_run_of_before_tasks_were_kept_still_gives_its_report(tmp_path):
    run = make_run(tmp_path / "old", rounds=5)
    text = write_report(run).read_text(encoding="utf-8")
    assert facts_of_run(run) is None
    assert "Accuracy against virtual time" in text
    assert "Accuracy against bytes moved" in text
    assert not any(heading in text for heading in HEADINGS.values())


def job(algorithm, fleet, seed=0, train=True):
    return ff.Job(
        model=ff.mlp(64, 8, 10), data=ff.data.digits(clients=60, partition=ff.dirichlet(0.3)), algorithm=algorithm,
        training=ff.Training(lr=0.1, batch_size=10, epochs=1), simulated=ff.Simulated(fleet=fleet, train=train),
        seed=seed,
    )  # fmt: skip


def slow_phones():
    return generate("flash-charging", drop_out=0.1, flops_per_s=400.0)


def headings(text):
    found = set(re.findall(r"<figcaption><b>([^<]*)</b>", text))
    return {name for name, heading in HEADINGS.items() if heading in found}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    made = {
        "plain": job(ff.FedAvg(rounds=4, cohort=6), ff.fleet.phones()),
        "semisync": job(ff.SemiSync(rounds=6, cohort=6, deadline_s=600.0), slow_phones()),
        "fedbuff": job(ff.FedBuff(rounds=12, cohort=9, buffer=4, stale=Staleness(limit=3)), slow_phones()),
        "untrained": job(ff.FedBuff(rounds=12, cohort=9, buffer=4), slow_phones(), train=False),
    }
    return {name: one.run(root / name, progress=False).path for name, one in made.items()}


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("plain", {"costs", "at work", "strip", "size"}),
        ("semisync", {"costs", "available", "strip", "class", "size", "lost"}),
        ("fedbuff", {"costs", "available", "strip", "class", "size", "lost", "stale"}),
        ("untrained", {"available", "strip", "class", "size", "lost", "stale"}),
    ],
)
def test_a_picture_is_there_where_it_says_something_and_only_there(runs, name, drawn):
    assert headings((runs[name] / "report.html").read_text(encoding="utf-8")) == drawn


@pytest.mark.parametrize("name", ["plain", "fedbuff"])
def test_the_same_run_gives_the_same_page(runs, name):
    first = (runs[name] / "report.html").read_bytes()
    assert write_report(runs[name]).read_bytes() == first


def test_what_is_told_as_json_agrees_with_the_summary(runs):
    for folder in runs.values():
        summary = json.loads((folder / "summary.json").read_text())
        facts = facts_of_run(folder)
        assert {name: row["tasks"] for name, row in facts["waste"].items()} == summary["tasks"]
        for name, seconds in summary["device_s"].items():
            assert facts["waste"][name]["device_s"] == pytest.approx(seconds)
        assert sum(row["energy_j"] for row in facts["waste"].values()) == pytest.approx(summary["energy_j"], rel=1e-5)
        assert facts["participation"]["counted"] == summary["tasks"]["ok"]
        assert "note" not in facts


def test_staleness_of_the_tasks_is_that_of_the_rounds(runs):
    rows = [json.loads(line) for line in (runs["fedbuff"] / "rounds.jsonl").read_text().splitlines()]
    tasks = np.fromfile(runs["fedbuff"] / "tasks.bin", TASK)
    for row in rows:
        mine = tasks[(tasks["round"] == row["round"]) & (tasks["outcome"] == OK)]
        assert staleness_of(mine).mean() == pytest.approx(row["staleness"])


def test_a_task_names_the_version_it_began_from_and_the_first_is_the_model_the_run_began_with(runs):
    for name, folder in runs.items():
        tasks = np.fromfile(folder / "tasks.bin", TASK)
        assert tasks["base"].min() == 0, name
        assert (tasks["base"] < tasks["round"]).all(), name
        published = {0: 0.0} | {
            row["version"]: row["virtual_s"]
            for row in map(json.loads, (folder / "rounds.jsonl").read_text().splitlines())
        }
        if name in ("fedbuff", "untrained"):
            assert staleness_of(tasks).max() > 0
        else:
            assert (tasks["base"] == tasks["round"] - 1).all(), name
        begun = np.array([published[one] for one in tasks["base"].tolist()])
        assert (tasks["start"] >= begun - 1e-9).all(), name


def test_a_stream_keeps_as_many_at_work_to_the_end_as_at_the_start(runs):
    work = work_of_run(read_run(runs["fedbuff"]))
    assert work.at_work.min() > 6
    assert work.at_work.max() <= 9 + 1e-6


def test_a_run_keeps_of_its_fleet_what_its_report_needs_and_no_more(runs):
    facts, devices = read_fleet(runs["fedbuff"]), read_devices(runs["fedbuff"])
    fleet = slow_phones().build(60, 0)
    assert list(facts["kinds"]) == list(fleet.kinds)
    assert sum(facts["kinds"].values()) == 60
    assert np.array_equal(devices["kind"], fleet.kind)
    assert devices["examples"].sum() == sum(json.loads((runs["fedbuff"] / "data.json").read_text())["client_sizes"])
    span = facts["over_time"]["span_s"]
    begin, _ = fleet.availability.session(0.0, np.arange(60))
    assert np.array_equal(devices["available"], begin < span)
    for one, sessions in facts["sessions"].items():
        for start, end in sessions:
            middle = (start + end) / 2
            assert fleet.availability.at(middle, np.array([int(one)])).all()
            assert 0 <= start < end <= span
    assert MOST * DEVICE.itemsize < 4e6


def test_no_task_lies_outside_the_sessions_of_a_device_in_the_strip(runs):
    strip = work_of_run(read_run(runs["fedbuff"])).strip
    assert len(strip.tasks)
    for task in strip.tasks:
        around = [a <= task["start"] + 1e-3 and task["end"] <= b + 1e-3 for a, b in strip.sessions[int(task["client"])]]
        assert any(around)


def test_runs_are_laid_over_each_other_at_equal_time_device_hours_bytes_and_joules(runs, tmp_path):
    text = write_comparison([runs["semisync"], runs["fedbuff"]], tmp_path / "out.html").read_text(encoding="utf-8")
    for against in ("virtual time", "device-hours", "bytes moved", "energy"):
        assert f"Accuracy (central test) against {against}" in text
    assert 'aria-label="accuracy (central test) of every run at equal cost"' in text
    assert "device time to" in text
    assert "energy to" in text
    assert 'aria-label="Tasks of every run"' in text
    assert "lost: late" in text


def put_costs(folder, per_round_s, accuracy):
    rows = [
        {"round": at + 1, "virtual_s": 10.0 * (at + 1), "bytes_down": 5 * (at + 1), "bytes_up": 5 * (at + 1),
         "accuracy": value, "device_s": {"ok": per_round_s - 1.0, "late": 1.0}, "energy_j": 3.0, "staleness": 1.0,
         "compute_s": 2.0, "at_work": 4, "tasks": {"ok": 3}}
        for at, value in enumerate(accuracy)
    ]  # fmt: skip
    write_lines(folder / "rounds.jsonl", rows)
    return folder


def test_arms_are_compared_at_what_the_cheapest_of_them_spent(tmp_path):
    cheap = put_costs(make_run(tmp_path / "cheap", rounds=3), 100.0, [0.1, 0.2, 0.3])
    dear = put_costs(make_run(tmp_path / "dear", rounds=3), 150.0, [0.15, 0.5, 0.6])
    arms = [side_by_side.Arm(one.name, (read_run(one),)) for one in (cheap, dear)]
    table = side_by_side.equal_table(arms)
    assert "after 5 device-min" in table
    cells = [re.findall(r">([\d.]+ %)<", row) for row in table.split("<tr>")[2:]]
    assert cells == [["30.0 %", "30.0 %", "30.0 %", "30.0 %"], ["60.0 %", "50.0 %", "60.0 %", "60.0 %"]]
    effort = side_by_side.effort_table(arms)
    assert "device time to 30 % accuracy" in effort
    assert "5 device-min" in effort
    assert side_by_side.equal_table(arms[:1]) == ""


def test_a_claim_may_be_about_device_hours_and_joules(tmp_path):
    run = put_costs(make_run(tmp_path / "one", rounds=3), 100.0, [0.1, 0.2, 0.3])
    (run / "claims.toml").write_text(
        '[[claim]]\nname = "soon"\nmeasure = "time_to"\nmetric = "accuracy"\nthreshold = 0.2\naxis = "device_s"\n'
        'sense = "<="\ntarget = 250.0\n'
        '[[claim]]\nname = "cheap"\nmeasure = "at"\nmetric = "accuracy"\naxis = "energy_j"\npoint = 8.0\n'
        'sense = ">="\ntarget = 0.2\n'
    )
    for name in ("virtual_s", "bytes_down", "bytes_up", "wall_s"):
        summary = json.loads((run / "summary.json").read_text())
        summary.pop(name)
        (run / "summary.json").write_text(json.dumps(summary))
    soon, cheap = compute_claims(run)
    assert (soon["ours"], soon["holds"], soon["unit"]) == (200.0, True, "device")
    assert (cheap["ours"], cheap["holds"]) == (0.2, True)


def test_seeds_have_a_band_at_equal_device_hours(tmp_path):
    seeds = [put_costs(make_run(tmp_path / str(at), rounds=3, seed=at), 100.0 + at, [0.1, 0.2 + 0.1 * at, 0.5])
             for at in range(5)]  # fmt: skip
    tables = [read_run(one).table for one in seeds]
    from fieldfare.report.plots_arms import aligned

    grid, middle, low, high = aligned(tables, "accuracy", "device_s")
    assert grid[0] == 104.0
    assert grid[-1] == 300.0
    assert (high > low).any()
    assert (low <= middle).all()
    assert (middle <= high).all()


def test_what_tasks_took_is_an_axis_and_no_metric(tmp_path):
    table = read_run(put_costs(make_run(tmp_path / "one", rounds=3), 100.0, [0.1, 0.2, 0.3])).table
    assert metrics_of(table) == ["accuracy"]
    assert table.axis("device_s").tolist() == [100.0, 200.0, 300.0]
    assert table.axis("energy_j").tolist() == [3.0, 6.0, 9.0]
    assert table.total("device_s") == 300.0
    assert np.isnan(Table(2).axis("device_s")).all()
    with style.drawing():
        drawn = plots_time.costs(table, plots.ACCURACY, what="Accuracy")
    assert "A task counts whole when its round is over, also where it goes on" in drawn.note


def test_every_way_a_task_may_end_has_its_words_and_colour(folder, tmp_path):
    run = make_run(tmp_path / "run", rounds=5)
    put_tasks(run, [(0, at, at + 1, at, 1, 0) for at in (OK, INTERRUPTED, TIMEOUT, LATE, STALE, 5, DROP_OUT)])
    text = write_report(run).read_text(encoding="utf-8")
    for words in ("counted", "interrupted", "timed out", "late", "too stale", "refused", "dropped out"):
        assert f"{words}<small>" in text


@pytest.mark.slow
def test_a_million_tasks_of_a_million_devices_are_added_up(tmp_path):
    n = 1_000_000
    gen = np.random.default_rng(0)
    tasks = np.zeros(n, TASK)
    tasks["start"] = np.sort(gen.uniform(0, 1e5, n))
    tasks["end"] = tasks["start"] + gen.lognormal(5, 1, n)
    tasks["client"], tasks["outcome"] = gen.integers(0, n, n), gen.choice(7, n)
    tasks["round"], tasks["base"] = 100, 99 - gen.integers(0, 20, n)
    tasks.tofile(tmp_path / "tasks.bin")
    work = read_work(tmp_path, stale=True)
    assert work.n == n
    assert np.array_equal(work.count, np.bincount(tasks["outcome"], minlength=7))
    assert work.begun.sum() == n
    assert work.staleness.sum() == work.count[OK]
    assert work.taken["device_s"].sum() == pytest.approx((tasks["end"] - tasks["start"]).sum())
    assert (work.at_work * np.diff(work.edges)).sum() == pytest.approx((tasks["end"] - tasks["start"]).sum(), rel=1e-6)
