"""Reading run folders: what is absent is absent, what is broken is one line."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from command_line import fieldfare
from hypothesis import given
from hypothesis import strategies as st
from report_folders import make_run, make_study, read_rows, write_lines

import fieldfare as ff
from fieldfare.config import describe_data
from fieldfare.core.errors import UsageError
from fieldfare.report import settings, units
from fieldfare.report.read import data_card, read_participation, read_run
from fieldfare.report.style import spread
from fieldfare.report.table import Table, read_table


def test_a_whole_run_is_read_with_all_its_parts(tmp_path):
    run = read_run(make_run(tmp_path / "one", rounds=10))
    rows = read_rows(tmp_path / "one" / "rounds.jsonl")
    assert run.name == "one"
    assert run.table.n == 10
    np.testing.assert_array_equal(run.table.column("train_loss"), [row["train_loss"] for row in rows])
    assert run.table.missing["late"].sum() == sum(row.get("missing", {}).get("late", 0) for row in rows)
    assert run.final()["accuracy"] == rows[-1]["accuracy"]
    assert run.data is not None
    assert run.data.n_clients == 100
    assert run.data.label_counts is not None
    assert run.data.label_counts.shape == (100, 10)
    assert set(run.evaluations) == {"federated", "personal"}
    assert run.evaluations["federated"].columns["accuracy"].shape == (100,)


def test_a_metric_absent_in_some_rounds_is_drawn_only_where_it_is(tmp_path):
    write_lines(tmp_path / "rounds.jsonl", [{"round": 1, "a": 0.5}, {"round": 2}, {"round": 3, "a": 0.7}])
    x, y = read_table(tmp_path).series("a")
    assert x.tolist() == [1.0, 3.0]
    assert y.tolist() == [0.5, 0.7]


def test_null_is_a_value_that_was_not_finite_and_no_final_value(tmp_path):
    write_lines(tmp_path / "rounds.jsonl", [{"round": 1, "loss": 0.5}, {"round": 2, "loss": None}, {"round": 3}])
    table = read_table(tmp_path)
    assert np.isinf(table.column("loss")).tolist() == [False, True, False]
    assert table.last("loss") is None
    assert table.series("loss")[1].tolist() == [0.5]


def test_the_bytes_axis_is_a_running_total_that_never_falls(tmp_path):
    rows = [{"round": 0}, {"round": 1, "bytes_up": 5, "bytes_down": 10}, {"round": 2}, {"round": 3, "bytes_up": 9}]
    write_lines(tmp_path / "rounds.jsonl", rows)
    table = read_table(tmp_path)
    assert table.axis("bytes_up").tolist() == [0, 5, 5, 9]
    assert table.axis("bytes").tolist() == [0, 15, 15, 19]


def test_a_round_written_twice_counts_once_as_last_written(tmp_path):
    write_lines(tmp_path / "rounds.jsonl", [{"round": 1, "a": 1.0}, {"round": 2, "a": 2.0}, {"round": 2, "a": 3.0}])
    table = read_table(tmp_path)
    assert table.n == 2
    assert table.last("a") == 3.0


def test_a_last_line_cut_off_by_a_kill_is_dropped(tmp_path):
    (tmp_path / "rounds.jsonl").write_text('{"round": 1, "a": 1.0}\n{"round": 2, "a": 0.', encoding="utf-8")
    assert read_table(tmp_path).column("a").tolist() == [1.0]


def test_a_broken_line_in_the_middle_is_named_with_its_number(tmp_path):
    (tmp_path / "rounds.jsonl").write_text('{"round": 1}\n{"round": \n{"round": 3}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"rounds\.jsonl, line 2"):
        read_table(tmp_path)


def test_a_folder_that_is_not_there_is_one_line_that_names_its_neighbours(tmp_path):
    make_run(tmp_path / "20250101-a", rounds=2)
    with pytest.raises(UsageError, match="20250101-a") as caught:
        read_run(tmp_path / "20250101-b")
    assert "\n" not in str(caught.value)


def test_the_folder_above_the_runs_is_no_run_and_says_which_it_holds(tmp_path):
    make_run(tmp_path / "mine", rounds=2)
    with pytest.raises(UsageError, match="holds the runs mine"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "config.json"])
def test_another_format_version_is_refused_by_its_number(tmp_path, name):
    folder = make_run(tmp_path / "one", rounds=2)
    stored = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**stored, "format": 7}))
    with pytest.raises(UsageError, match=r"format 7.*format 1"):
        read_run(folder)


def test_a_run_that_has_not_ended_is_read_as_far_as_it_came(tmp_path):
    folder = make_run(tmp_path / "one", rounds=4)
    for name in ("summary.json", "data.json", "evaluation.jsonl", "clients.jsonl"):
        (folder / name).unlink()
    run = read_run(folder)
    assert run.summary == {}
    assert run.data is None
    assert run.evaluations == {}
    assert read_participation(folder) is None
    assert run.final()["accuracy"] == run.table.last("accuracy")


def test_arms_are_found_with_and_without_seeds_in_the_order_of_the_study(tmp_path):
    folder = make_study(tmp_path / "study", seeds=2, rounds=3)
    make_run(folder / "arms" / "alone", rounds=3)
    run = read_run(folder)
    assert list(run.arms) == ["fedavg", "scaffold", "ours", "alone"]
    assert [len(seeds) for seeds in run.arms.values()] == [2, 2, 2, 1]


def test_only_the_last_evaluation_of_a_kind_is_kept(tmp_path):
    folder = make_run(tmp_path / "one", rounds=2)
    lines = [{"round": r, "kind": "federated", "clients": [1, 2], "accuracy": [0.1 * r, None]} for r in (1, 2)]
    write_lines(folder / "evaluation.jsonl", lines)
    found = read_run(folder).evaluations["federated"]
    assert found.round == 2
    assert found.columns["accuracy"][0] == 0.2
    assert np.isnan(found.columns["accuracy"][1])


def test_participation_counts_every_answer_of_every_client(tmp_path):
    lines = [
        {"round": r, "clients": ids, "seconds": [float(r)] * len(ids)} for r, ids in ((1, [4, 7]), (2, [7]), (3, []))
    ]
    write_lines(tmp_path / "clients.jsonl", lines)
    part = read_participation(tmp_path)
    assert part is not None
    assert sorted(part.times.tolist()) == [1, 2]
    assert part.seen.tolist() == [2, 2, 2]
    assert part.answered.tolist() == [2, 1, 0]
    assert part.seconds is not None
    assert part.seconds[1].tolist() == [2.0, 2.0, 2.0]


def test_the_description_a_data_set_gives_of_itself_is_understood():
    card = data_card(
        {"name": "iid(3)", "clients": 3, "examples": 9, "classes": 2, "sizes": {"min": 3, "median": 3.0, "max": 3},
         "label_skew": {"weighted_js_bits": 0.25}}
    )  # fmt: skip
    assert card is not None
    assert (card.n_clients, card.rows, card.classes, card.label_skew_js) == (3, 9, ("0", "1"), 0.25)
    assert card.sizes_quantiles["median"] == 3.0
    assert card.sizes is None


def cut_in_a_line(run):
    text = (run / "rounds.jsonl").read_text()
    (run / "rounds.jsonl").write_text(text[:-9])


def cut_cleanly(run):
    write_lines(run / "rounds.jsonl", read_rows(run / "rounds.jsonl")[:-1])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_in_a_line, ("rounds.jsonl", "cut off", "6 rounds")),
        (cut_cleanly, ("rounds.jsonl", "ends with round 5", "6 rounds")),
        (lambda run: (run / "rounds.jsonl").unlink(), ("rounds.jsonl", "ends with round 0")),
        (lambda run: (run / "rounds.jsonl").write_text(""), ("rounds.jsonl", "ends with round 0")),
        (lambda run: (run / "summary.json").write_text("{}"), ("summary.json", "lacks run, rounds, final")),
        (lambda run: (run / "summary.json").write_text("{"), ("summary.json", "cannot be read")),
    ],
)
def test_a_complete_run_that_was_damaged_since_is_told_in_one_line_by_report_and_inspect(tmp_path, damage, words):
    run = make_run(tmp_path / "runs" / "one", rounds=6)
    (run / "run.json").write_text(json.dumps({"format": 1, "version": ff.__version__, "id": "one"}))
    assert fieldfare(tmp_path, "inspect", "one").code == 0
    damage(run)
    for command in ("report", "inspect"):
        fieldfare(tmp_path, command, "one").refused(*words)
    with pytest.raises(UsageError):
        read_run(run)


def test_a_run_that_was_killed_in_the_middle_of_a_line_is_read_as_far_as_it_came(tmp_path):
    run = make_run(tmp_path / "one", rounds=6)
    (run / "summary.json").unlink()
    cut_in_a_line(run)
    assert read_run(run).table.n == 5


def test_settings_that_differ_are_exactly_those_named():
    jobs = [{"a": {"is": "FedAvg", "lr": 0.1}, "m": [{"is": "Dense", "out": 3}]}, {"a": {"is": "FedAvg", "lr": 0.2}}]
    assert settings.differing(jobs) == {"a.lr": ["0.1", "0.2"], "m[0]": ["Dense", "–"], "m[0].out": ["3", "–"]}


@given(st.dictionaries(st.text("abc", min_size=1), st.integers() | st.lists(st.integers()) | st.none()))
def test_a_job_never_differs_from_itself(job):
    assert settings.differing([job, dict(job)]) == {}
    assert settings.same_but_seed({**job, "seed": 1}) == settings.same_but_seed({**job, "seed": 2})


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12), st.floats(0.5, 5))
def test_labels_moved_apart_keep_their_order_their_distance_and_the_picture(positions, gap):
    placed = spread(positions, gap, 0.0, 100.0)
    ordered = [placed[i] for i in sorted(range(len(positions)), key=lambda i: (positions[i], i))]
    assert all(b - a >= gap - 1e-6 for a, b in itertools.pairwise(ordered))
    assert min(placed) >= -1e-6
    assert max(placed) <= 100 + 1e-6


def test_labels_that_have_room_stay_where_they_are():
    assert spread([10.0, 50.0, 30.0], 5.0, 0.0, 100.0) == [10.0, 50.0, 30.0]


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_number_is_ever_written_as_nan_or_infinity(value):
    for unit in ("share", "seconds", "bytes", "rounds", "points", "times", ""):
        text = units.in_unit(unit, value)
        assert text
        assert "nan" not in text
        assert "inf" not in text


def test_units_follow_the_size_of_what_is_measured():
    assert [units.duration(s) for s in (0.02, 45, 600, 7 * 3600, 6 * 86400)] == [
        "20 ms",
        "45 s",
        "10 min",
        "7 h",
        "6 days",
    ]
    assert [units.size(b) for b in (12, 3_400, 5.6e6, 7.8e9, 9e12)] == ["12 B", "3.4 kB", "5.6 MB", "7.8 GB", "9 TB"]


def test_an_empty_table_has_columns_of_no_length():
    assert Table().column("loss").shape == (0,)
    assert Table().last("loss") is None


def test_both_forms_of_a_data_sets_sizes_are_read():
    told = {"clients": 3, "sizes": {"min": 3, "median": 4.0, "max": 5}, "client_sizes": [3, 4, 5]}
    new, old = data_card(told), data_card({"clients": 3, "sizes": [3, 4, 5]})
    assert new is not None
    assert old is not None
    assert new.sizes is not None
    assert old.sizes is not None
    assert new.sizes.tolist() == old.sizes.tolist() == [3.0, 4.0, 5.0]
    assert new.sizes_quantiles["median"] == 4.0


def test_a_federation_is_described_with_its_sizes_in_numbers_and_its_clients_by_name():
    rows = np.arange(12, dtype=np.float32).reshape(12, 1)
    wards = np.array(["a", "a", "b", "b", "b", "c"] * 2)
    columns = {"x": rows, "y": np.arange(12) % 2, "ward": wards}
    data = ff.data.federate(columns, ff.data.natural("ward"))
    told = describe_data(data)
    assert told["sizes"]["min"] == 2
    assert told["sizes"]["max"] == 6
    assert told["client_sizes"] == [4, 6, 2]
    assert told["client_names"] == ["a", "b", "c"]
