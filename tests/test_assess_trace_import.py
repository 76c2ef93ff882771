"""Others' availability logs in and out; the command `fieldfare assess trace`; its pictures."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import realdata
from click.testing import CliRunner, Result

pytest.importorskip("duckdb")

from fieldfare.assess.artefact import read_artefact, words
from fieldfare.assess.trace import (
    STRICT,
    Criteria,
    Recipe,
    TraceConfig,
    availability_of,
    build_trace,
    export_csv,
    export_fedscale,
    generate_log,
    import_log,
    p_usable,
)
from fieldfare.assess.trace.cli import command
from fieldfare.assess.trace.generate import template
from fieldfare.assess.trace.importers import is_foreign, of_event_lines, session_table
from fieldfare.core.errors import UsageError
from fieldfare.fleet import pickles
from fieldfare.fleet.columns import read_columns, write_columns

DAY = 86400.0
LINES = """2020-01-06 00:00:00\tphone_on
2020-01-06 01:00:00\twifi
2020-01-06 01:00:00\tbattery_charged_on
2020-01-06 02:00:00\t80%
2020-01-06 02:00:00\tscreen_lock
2020-01-06 03:00:00\t4g
2020-01-06 04:00:00\tphone_off
2020-01-06 05:00:00\tphone_on
2020-01-06 05:30:00\twifi
2020-01-07 06:00:00\tscreen_unlock
"""


@pytest.fixture
def trace(tmp_path) -> Any:
    """A trace of few clients, some of whose sessions reach the end of the week."""
    place = tmp_path / "log.csv"
    rows = [(7, 100, 200), (7, 5000, 9000), (3, 50, 60), (3, 7 * DAY - 100, 7 * DAY), (12, 3 * DAY, 4 * DAY)]
    text = "".join(f"{client},{start:.0f},{end:.0f},phone {client}\n" for client, start, end in rows)
    place.write_text("client,start_s,end_s,device_model\n" + text)
    return build_trace(place, tmp_path / "trace")


def test_a_trace_goes_out_as_fedscales_pickle_and_comes_back(trace, tmp_path):
    place = export_fedscale(trace, tmp_path / "client_behave_trace")
    table = pickles.load_plain(place)
    assert sorted(table) == [3, 7, 12]
    assert table[7] == {
        "duration": 4100, "inactive": [200, 9000], "finish_time": 604800, "active": [100, 5000], "model": "phone 7",
    }  # fmt: skip
    again = build_trace(place, tmp_path / "again")
    for name in ("client", "start_s", "end_s", "usable_s"):
        np.testing.assert_array_equal(again.table("sessions")[name], trace.table("sessions")[name])
    assert words(again.table("sessions")["device_class"]) == words(trace.table("sessions")["device_class"])
    assert again.inputs[0]["kind"] == "availability log"


def test_a_trace_goes_out_as_csv_and_comes_back(trace, tmp_path):
    place = export_csv(trace, tmp_path / "clients.csv")
    assert place.read_text().splitlines()[:2] == ["ID,start,end", "3,50,60"]
    again = build_trace(place, tmp_path / "again")
    for name in ("client", "start_s", "end_s", "usable_s"):
        np.testing.assert_array_equal(again.table("sessions")[name], trace.table("sessions")[name])
    assert availability_of(again).session(0.0, np.arange(3))[0].tolist() == [50.0, 100.0, 3 * DAY]


def test_a_pickle_that_asks_for_a_class_is_refused_and_nothing_is_run(tmp_path):
    place = tmp_path / "trace"
    place.write_bytes(pickle.dumps({1: Path("/")}))
    with pytest.raises(UsageError, match="nothing was run"):
        build_trace(place, tmp_path / "out")
    place.write_bytes(pickle.dumps({1: {"a": 1}}, protocol=4))
    with pytest.raises(UsageError, match="no client_behave_trace"):
        build_trace(place, tmp_path / "out")


def test_event_lines_become_spans_that_tell_what_is_known(tmp_path):
    table = of_event_lines({"guid": {"messages": LINES, "model": "SM-A510"}})
    hours = [(start % DAY / 3600, (end - 1) % DAY / 3600) for start, end in
             zip(table["start_s"].tolist(), table["end_s"].tolist(), strict=True)]  # fmt: skip
    assert [round(start, 3) for start, _ in hours] == [0.0, 1.0, 2.0, 3.0, 5.0, 5.5]
    np.testing.assert_array_equal(table["wifi"], [np.nan, 1, 1, 0, 0, 1])
    np.testing.assert_array_equal(table["charging"], [np.nan, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(table["battery"], [np.nan, np.nan, 0.8, 0.8, 0.8, 0.8])
    assert words(table["screen"]) == ["", "", "lock", "lock", "lock", "lock"]
    assert set(words(table["device_model"])) == {"SM-A510"}


def test_event_lines_are_read_from_flashs_json_and_made_a_trace(tmp_path):
    place = tmp_path / "state_traces.json"
    place.write_text(json.dumps({"guid": {"messages": LINES, "model": "SM-A510"}}))
    assert is_foreign(place)
    config = TraceConfig(criteria=Criteria(wifi=True, charging=True))
    made = build_trace(place, tmp_path / "out", config)
    sessions = made.table("sessions")
    found = zip((sessions["start_s"] % DAY / 3600).tolist(), sessions["usable_s"].tolist(), strict=True)
    assert [one for one in found if one[0]] == [(1.0, 7200.0), (5.5, 18.5 * 3600.0)]  # that of 0 h tells nothing yet
    assert made.number("drawn_sessions") == 1
    place.write_text(json.dumps({"guid": {"messages": "yesterday\twifi"}}))
    with pytest.raises(UsageError, match="line 1"):
        build_trace(place, tmp_path / "out")


def test_a_table_of_nobody_known_is_no_import(tmp_path):
    place = tmp_path / "log.csv"
    place.write_text("client,start_s,end_s\n1,0,1\n")
    assert not is_foreign(place)
    with pytest.raises(UsageError, match="needs no import"):
        session_table(place)
    with pytest.raises(UsageError, match="does not exist"):
        session_table(tmp_path / "none")


def never(source: Path, first_h: float, last_h: float) -> float:
    """Share of FLASH's 240 phones that are not once charging and on Wi-Fi within these hours of the log."""
    table = read_columns(source)
    mine = table["variant"].mask("charging_wifi") & (np.asarray(table["state"]) == 2)
    within = mine & (table["end_s"] > first_h * 3600) & (table["start_s"] < last_h * 3600)
    return 1 - len(np.unique(table["device"][within])) / 240


@pytest.mark.data
def test_flashs_intervals_give_the_figures_told_of_them(tmp_path):
    pytest.importorskip("pyarrow")
    source = realdata.file("traces_availability/flash_intervals.parquet")
    config = TraceConfig(criteria=Criteria(wifi=True, charging=True, gap_merge_s=0.0), from_s=43200, to_s=475200)
    made = build_trace(source, tmp_path / "out", config)
    curve = made.table("weekly")["available"] / 240
    assert made.number("logged_clients") == 240
    assert np.nanmean(curve) == pytest.approx(0.17, abs=0.01)
    assert np.nanmin(curve) == pytest.approx(0.08, abs=0.02)
    assert np.nanmax(curve) == pytest.approx(0.26, abs=0.02)
    assert made.number("median_usable_s") == pytest.approx(14 * 60, rel=0.1)
    assert 1 - made.number("eligible_share_devices") == pytest.approx(never(source, 12, 132)) == pytest.approx(5 / 240)
    assert never(source, 12, 120) == pytest.approx(9 / 240)  # the 4 % told of them: half a day less
    fewer = build_trace(source, tmp_path / "fewer", replace(config, to_s=120 * 3600.0))  # of whole days, four
    assert (
        1 - fewer.number("eligible_share_devices") == pytest.approx(never(source, 12, 108)) == pytest.approx(15 / 240)
    )
    half = build_trace(source, tmp_path / "half", TraceConfig(
        criteria=Criteria(wifi=True), from_s=43200, to_s=475200), variant="charging_wifi_or_batt50")  # fmt: skip
    assert np.nanmean(half.table("weekly")["available"] / 240) == pytest.approx(0.55, abs=0.02)


@pytest.mark.data
def test_extrasensorys_minutes_leave_states_open_that_are_drawn(tmp_path):
    pytest.importorskip("pyarrow")
    source = realdata.file("traces_availability/extrasensory_minutes.parquet")
    config = TraceConfig(criteria=Criteria(wifi=True, charging=True, gap_merge_s=60.0))
    made = build_trace(source, tmp_path / "out", config)
    assert made.number("logged_clients") == 30
    assert made.number("drawn_sessions") > 100
    share = made.values["eligible_share_device_s"]
    assert share.low < share.value < share.high
    heat = made.table("heat")
    by_hour = [np.nansum(heat["available"][heat["hour"] == hour]) for hour in (5, 9)]
    assert by_hour[0] > 1.5 * by_hour[1]


def test_a_made_up_log_has_the_same_clients_whatever_their_number(tmp_path):
    pytest.importorskip("pyarrow")
    few, many = (read_columns(generate_log(tmp_path / f"{n}.parquet", Recipe(clients=n, weeks=1))) for n in (5, 9))
    held = many["client"] < 5
    for name in ("client", "start_s", "end_s", "battery", "reputation"):
        np.testing.assert_array_equal(few[name], many[name][held])
    assert (few["end_s"] > few["start_s"]).all()


def test_the_template_has_weekend_and_night_lows():
    week = template("flint-strict").reshape(7, 24)
    assert week.mean() == pytest.approx(1.0)
    assert week[5:].max() / week[:5].max() == pytest.approx(0.67, abs=0.02)
    assert week.min() / week.max() == pytest.approx(0.095, abs=0.01)


@pytest.mark.parametrize(
    ("given", "says"),
    [({"preset": "flint"}, "no preset 'flint'"), ({"clients": 0}, "at least one of each"), ({"known": 2.0}, "a share")],
)
def test_a_recipe_that_is_wrong_is_refused(given, says):
    with pytest.raises(UsageError, match=says):
        Recipe(**given)


def test_the_share_of_long_enough_sessions(trace):
    assert p_usable(trace, 100.0) == 0.8
    assert p_usable(trace, 1e6) == 0.0


def run(*args: Any) -> Result:
    return CliRunner().invoke(command, [str(one) for one in args])


def test_the_command_writes_an_artefact_and_tells_it_as_json(tmp_path):
    out = tmp_path / "trace"
    done = run("--generate", "flint-strict", "--clients", 60, "--strict", "--set", "weeks=1", "--out", out, "--json",
               "-q", "--csv", tmp_path / "t.csv", "--fedscale", tmp_path / "t.pickle")  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    made = read_artefact(out, "trace")
    assert told["sha256"] == made.sha256
    assert told["values"]["weeks"]["value"] == 1.0
    assert made.params["made_up"]["preset"] == "flint-strict"
    assert made.params["criteria"]["battery_min"] == STRICT.battery_min
    assert not made.inputs
    assert done.stderr == ""
    assert (tmp_path / "t.csv").is_file()
    assert (tmp_path / "t.pickle").is_file()


def test_the_command_prints_a_table_and_what_it_does(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text(f"client,start_s,end_s,wifi\n1,0,100,true\n2,200,300,false\n1,{7 * DAY - 60},{7 * DAY},true\n")
    config = tmp_path / "trace.toml"
    config.write_text("[criteria]\nwifi = true\n")
    done = run(log, "--config", config, "--out", tmp_path / "trace")
    assert done.exit_code == 0, done.output
    assert "wifi               50.0%" in done.stdout
    assert "looking over the log" in done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "give a session log"),
        (("no-such-file.parquet",), "is no file"),
        (("--generate", "flint"), "no preset"),
        (("--generate", "flint-strict", "--set", "batery=3"), "batery"),
        (("--generate", "flint-strict", "--strict", "--config", "x.toml"), "use one"),
        (("--generate", "flint-strict", "--config", "x.toml"), "is not a file"),
    ],
)
def test_the_command_refuses_what_is_wrong_in_one_line(args, says, tmp_path):
    done = run(*args, "--out", tmp_path / "out")
    assert isinstance(done.exception, UsageError)
    assert says in str(done.exception)
    assert "\n" not in str(done.exception)


def test_without_duckdb_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UsageError, match=r"pip install 'fieldfare\[assess\]'"):
        build_trace(Recipe(clients=3, weeks=1), tmp_path / "out")


def test_pictures_show_the_week_the_hours_and_the_criteria(trace, tmp_path):
    pytest.importorskip("matplotlib")
    from fieldfare.assess.trace.pictures import criteria_picture, heat_picture, weekly_picture
    from fieldfare.report import style

    with style.drawing():
        found = [weekly_picture(trace), heat_picture(trace), criteria_picture(trace)]
        again = weekly_picture(trace)
    assert all(one.markup.startswith("<svg") for one in found)
    assert "Mon" in found[0].markup
    assert "Share of devices: all of them 100 %." in found[2].alt
    assert again == found[0]


def test_a_log_in_several_parts_is_one_log(tmp_path):
    pytest.importorskip("pyarrow")
    whole = generate_log(tmp_path / "log.parquet", Recipe(clients=8, weeks=1))
    columns = read_columns(whole)
    folder = tmp_path / "parts"
    folder.mkdir()
    for i in range(2):
        held = columns["client"] % 2 == i
        part = {name: columns[name][held] for name in ("client", "start_s", "end_s", "battery")}
        write_columns(folder / f"{i}.parquet", iter([part]))
    config = TraceConfig(criteria=Criteria(battery_min=0.5))
    one, two = build_trace(whole, tmp_path / "one", config), build_trace(folder, tmp_path / "two", config)
    for name in ("client", "start_s", "usable_s"):
        np.testing.assert_array_equal(one.table("sessions")[name], two.table("sessions")[name])
    assert len(two.inputs) == 2


def test_importing_writes_a_session_log(trace, tmp_path):
    place = import_log(export_fedscale(trace, tmp_path / "t"), tmp_path / "log" / "log.csv")
    assert place.read_text().splitlines()[0] == "client,start_s,end_s,charging,device_model"


def test_a_simulated_job_replays_a_trace(tmp_path):
    import fieldfare as ff
    from fieldfare.assess.trace import fleet_of

    log = tmp_path / "log.csv"
    rows = "".join(f"{c},{c * 3600},{c * 3600 + 1800}\n{c},{DAY + c * 60},{DAY + 9000}\n" for c in range(6))
    log.write_text(f"client,start_s,end_s\n{rows}0,{7 * DAY - 60},{7 * DAY}\n")
    made = build_trace(log, tmp_path / "trace")
    job = ff.Job(
        data=ff.data.synthetic(clients=6, classes=3, features=6, max_examples=60, seed=1),
        model=ff.mlp(6, 5, 3), algorithm=ff.FedAvg(rounds=1, cohort=6), training=ff.Training(lr=0.1, batch_size=5),
        simulated=ff.Simulated(fleet=fleet_of(made, overhead_s=10.0), train=False),
    )  # fmt: skip
    summary = job.run(progress=False).summary
    assert summary["virtual_s"] == pytest.approx(5 * 3600 + 10.0, abs=5.0)  # the last client comes at 5 h


def test_a_log_as_csv_is_that_of_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    recipe, config = Recipe(clients=12, weeks=1, known=0.5), TraceConfig(criteria=STRICT)
    made = [build_trace(generate_log(tmp_path / f"log.{end}", recipe), tmp_path / end, config) for end in
            ("csv", "parquet")]  # fmt: skip
    contents = [{name: one["content"] for name, one in a.manifest["tables"].items()} for a in made]
    assert contents[0] == contents[1]
