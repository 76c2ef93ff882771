"""Session logs to availability: the gap rule, coins, shares, fairness, curves; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("duckdb")

from fieldfare.assess.artefact import Draft, Value, words
from fieldfare.assess.trace import STRICT, Criteria, Recipe, TraceConfig, availability_of, build_trace, fleet_of
from fieldfare.assess.trace.criteria import read_config, with_changes
from fieldfare.assess.trace.joint import digits, joint_of
from fieldfare.assess.trace.part import rested
from fieldfare.assess.trace.sql import coins, connected, with_coin
from fieldfare.assess.trace.stats import trough_over_peak
from fieldfare.core.errors import UsageError
from fieldfare.fleet.columns import text_of, write_columns

DAY = 86400.0


def log_of(folder: Path, rows: list[dict[str, Any]], end: str = ".csv") -> Path:
    """A log of rows, written as CSV; what a row lacks is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    place = folder / f"log{end}"
    place.write_text(
        "\n".join([",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]) + "\n"
    )
    return place


def spanning(rows: list[dict[str, Any]], days: float = 7.0) -> list[dict[str, Any]]:
    """Rows, and a client 99 whose two sessions make the log so many days long."""
    more = [{"client": 99, "start_s": 0, "end_s": 1}, {"client": 99, "start_s": days * DAY - 10, "end_s": days * DAY}]
    return [*rows, *more]


def sessions(folder: Path, rows: list[dict[str, Any]], **criteria: Any) -> list[tuple[float, float, float]]:
    """(start, end, usable) of client 1's sessions, in days' seconds."""
    made = build_trace(log_of(folder, spanning(rows)), folder / "out", TraceConfig(criteria=Criteria(**criteria)))
    table = made.table("sessions")
    mine = table["client"] == 1
    return [tuple(float(table[name][i]) for name in ("start_s", "end_s", "usable_s")) for i in np.flatnonzero(mine)]


def at(start: float, end: float, **more: Any) -> dict[str, Any]:
    return {"client": 1, "start_s": start, "end_s": end, **more}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([at(100, 200)], [(100, 200, 100)]),
        ([at(100, 200), at(230, 300)], [(100, 300, 170)]),
        ([at(100, 200), at(230.001, 300)], [(100, 200, 100), (230.001, 300, 69.999)]),
        ([at(230, 300), at(100, 200)], [(100, 300, 170)]),
        ([at(100, 200), at(200, 300)], [(100, 300, 200)]),
        ([at(100, 300), at(150, 200), at(320, 400)], [(100, 400, 280)]),
        ([at(100, 200), at(150, 250)], [(100, 250, 150)]),
        ([at(100, 100), at(110, 120)], [(110, 120, 10)]),
        ([at(100, 300, background="150:160")], [(100, 300, 190)]),
        ([at(100, 300, background="150:190")], [(100, 150, 50), (190, 300, 110)]),
        ([at(100, 300, background="110:120;150:190;200:210")], [(100, 150, 40), (190, 300, 100)]),
        ([at(100, 300, background="50:120;290:400")], [(120, 290, 170)]),
        ([at(100, 300, background="90:400"), at(320, 330)], [(320, 330, 10)]),
    ],
)
def test_the_gap_rule_takes_short_gaps_off_and_splits_at_long_ones(rows, expected, tmp_path):
    assert sessions(tmp_path, rows) == [pytest.approx(one) for one in expected]


def by_hand(rows: list[tuple[float, float, int]], gap: float) -> list[tuple[float, float, float, int]]:
    """(start, end, usable, code) of the sessions of one client's rows (start, end, code), one row after the other."""
    islands: list[list[tuple[float, float, float, int]]] = []
    covered, code_before = -np.inf, -1
    for start, end, code in sorted(rows):
        begins = max(start, covered)
        if start - covered > gap or code != code_before:
            islands.append([])
        if end > begins:
            islands[-1].append((begins, end, end - begins, code))
        covered, code_before = max(end, covered), code
    return [(one[0][0], max(row[1] for row in one), sum(row[2] for row in one), one[0][3]) for one in islands if one]


def test_the_queries_of_the_gap_rule_do_what_it_says_for_any_rows(tmp_path):
    rng = np.random.default_rng(3)
    rows, expected = [], []
    for client in range(60):
        start = rng.integers(0, 3000, 12).astype(float)
        mine = list(zip(start, start + rng.integers(1, 200, 12), (rng.random(12) < 0.7).astype(int), strict=True))
        rows += [{"client": client, "start_s": s, "end_s": e, "wifi": bool(code)} for s, e, code in mine]
        expected += [(client, *one[:3]) for one in by_hand(mine, 40.0) if one[3]]
    config = TraceConfig(criteria=Criteria(wifi=True, gap_merge_s=40.0))
    table = build_trace(log_of(tmp_path, spanning(rows)), tmp_path / "out", config).table("sessions")
    found = zip(*(table[name].tolist() for name in ("client", "start_s", "end_s", "usable_s")), strict=True)
    assert len(expected) > 200
    assert sorted(one for one in found if one[0] < 60) == sorted(expected)


def test_background_counts_where_the_foreground_is_not_asked_for(tmp_path):
    assert sessions(tmp_path, [at(100, 300, background="150:190")], foreground=False) == [(100, 300, 200)]


def test_another_threshold_of_the_gap_rule_splits_elsewhere(tmp_path):
    rows = [at(100, 200), at(230, 300)]
    assert sessions(tmp_path, rows, gap_merge_s=29.0) == [(100, 200, 100), (230, 300, 70)]


def test_a_session_splits_where_the_outcome_of_a_state_changes(tmp_path):
    rows = [at(100, 200, wifi="true"), at(200, 300, wifi="false"), at(300, 400, wifi="true")]
    assert sessions(tmp_path, rows, wifi=True) == [(100, 200, 100), (300, 400, 100)]
    assert sessions(tmp_path, rows) == [(100, 400, 300)]


def test_a_session_shorter_than_asked_is_left_out(tmp_path):
    assert sessions(tmp_path, [at(100, 160), at(1000, 1059)], min_session_s=60.0) == [(100, 160, 60)]


def test_a_client_rests_after_each_session_that_counts(tmp_path):
    rows = [at(100, 200), at(300, 400), at(1201, 1300), at(1400, 1500)]
    found = sessions(tmp_path, rows, min_gap_between_participation_s=1000.0)
    assert found == [(100, 200, 100), (1201, 1300, 99)]
    resting = [at(1000, 1100, last_participation_s=900), at(2000, 2100)]
    assert sessions(tmp_path, resting, min_gap_between_participation_s=500.0) == [(2000, 2100, 100)]


def test_resting_clients_are_as_if_each_were_looked_at_alone():
    rng = np.random.default_rng(0)
    client = np.sort(rng.integers(0, 40, 800))
    start = np.zeros(800, np.int64)
    for one in np.unique(client):
        mine = client == one
        start[mine] = np.sort(rng.choice(100_000, mine.sum(), replace=False))
    end = start + rng.integers(1, 50, 800)
    expected, due = [], {}
    for who, begin, stop in zip(client.tolist(), start.tolist(), end.tolist(), strict=True):
        expected.append(begin >= due.get(who, 0))
        due[who] = stop + 7000 if expected[-1] else due.get(who, 0)
    assert rested(client, start, end, 7000).tolist() == expected


def test_the_coin_of_sql_is_that_of_the_project_to_the_bit():
    client = np.array([0, 1, -5, 2**62, -(2**63), 77])
    start = np.array([0, 5, 123456789012, 2**40, 3, 1704672000000])
    with connected() as con:
        con.execute("CREATE TABLE t (i INTEGER, client BIGINT, start_ms BIGINT)")
        con.executemany("INSERT INTO t VALUES (?, ?, ?)", [[i, int(c), int(s)] for i, (c, s) in
                                                           enumerate(zip(client, start, strict=True))])  # fmt: skip
        got = con.execute(f"SELECT coin FROM ({with_coin('SELECT * FROM t', 7)}) ORDER BY i").fetchnumpy()["coin"]
    np.testing.assert_array_equal(got, coins(7, client, start))
    assert not np.array_equal(coins(7, client, start), coins(8, client, start))


@pytest.fixture(scope="module")
def half_known(tmp_path_factory) -> Path:
    """A made-up log in which half of the clients tell their states."""
    from fieldfare.assess.trace import generate_log

    return generate_log(tmp_path_factory.mktemp("log") / "log.parquet", Recipe(clients=150, known=0.5), seed=2)


CONFIG = TraceConfig(
    criteria=Criteria(
        wifi=True, battery_min=0.8, account_age_min_days=30.0, min_session_s=20.0,
        min_gap_between_participation_s=3600.0,
    ),
    durations_s={"model": 120.0},
)  # fmt: skip


@pytest.mark.slow
def test_coins_are_reproducible_and_one_part_gives_the_bits_of_four(half_known, tmp_path):
    one = build_trace(half_known, tmp_path / "one", CONFIG, seed=5)
    again = build_trace(half_known, tmp_path / "again", CONFIG, seed=5)
    four = build_trace(half_known, tmp_path / "four", with_changes(CONFIG, ["partitions=4", "threads=1"]), seed=5)
    many = build_trace(half_known, tmp_path / "many", with_changes(CONFIG, ["partitions=9"]), seed=5)
    other = build_trace(half_known, tmp_path / "other", CONFIG, seed=6)
    assert one.sha256 == again.sha256 == four.sha256 == many.sha256
    assert one.manifest["tables"] == four.manifest["tables"]
    assert other.manifest["tables"]["sessions"]["content"] != one.manifest["tables"]["sessions"]["content"]


@pytest.mark.slow
def test_little_memory_gives_the_same_bits(half_known, tmp_path):
    one = build_trace(half_known, tmp_path / "one", CONFIG)
    small = build_trace(half_known, tmp_path / "small", with_changes(CONFIG, ["memory_bytes=60e6", "partitions=2"]))
    assert one.sha256 == small.sha256


@pytest.mark.slow
def test_fedscale_charging_swings_by_four(tmp_path):
    config = TraceConfig(criteria=Criteria(charging=True))
    made = build_trace(Recipe("fedscale-charging", clients=3000), tmp_path / "a", config)
    assert 0.2 <= made.number("trough_over_peak") <= 0.3
    assert made.number("eligible_share_devices") == 1.0


@pytest.mark.slow
def test_drawn_states_give_the_share_of_those_that_tell_and_a_range_that_holds_it(tmp_path):
    truth = build_trace(Recipe(clients=1500), tmp_path / "all", TraceConfig(criteria=STRICT), seed=3)
    drawn = build_trace(Recipe(clients=1500, known=0.5), tmp_path / "half", TraceConfig(criteria=STRICT), seed=3)
    seconds, devices = drawn.values["eligible_share_device_s"], drawn.values["eligible_share_devices"]
    assert seconds.value == pytest.approx(seconds.closed, abs=0.005)
    assert seconds.low < seconds.closed < seconds.high
    assert seconds.low - 0.01 < truth.number("eligible_share_device_s") < seconds.high + 0.01
    assert devices.low < truth.number("eligible_share_devices") < devices.high
    assert devices.low > 0.15
    assert devices.value == pytest.approx(devices.closed, abs=0.01)
    assert truth.values["eligible_share_devices"].low is None


def told_and_not(n: int, **states: str) -> list[dict[str, Any]]:
    """n sessions with these states, each of its own client."""
    made = states | {"start_s": 3600, "end_s": 3700}
    return [made | {"client": 1000 * (1 + sum(map(ord, "".join(states.values())))) + i} for i in range(n)]


def test_states_are_drawn_jointly(tmp_path):
    rows = [*told_and_not(300, wifi="true", battery="0.9"), *told_and_not(300, wifi="false", battery="0.1")]
    rows += [*told_and_not(400, wifi="", battery="")]
    config = TraceConfig(criteria=Criteria(wifi=True, battery_min=0.8))
    made = build_trace(log_of(tmp_path, spanning(rows)), tmp_path / "out", config)
    table = made.table("intersections")
    shares = dict(zip(words(table["criteria"]), table["share_device_s"].tolist(), strict=True))
    assert shares["wifi+battery"] == pytest.approx(0.5, abs=0.05)  # a quarter, were they drawn apart
    assert shares["wifi"] == pytest.approx(shares["wifi+battery"], abs=0.005)


def test_what_is_known_is_kept_and_the_rest_is_drawn_given_it(tmp_path):
    rows = [*told_and_not(300, wifi="true", battery="0.9"), *told_and_not(300, wifi="false", battery="0.1")]
    rows += [*told_and_not(400, wifi="true", battery="")]
    config = TraceConfig(criteria=Criteria(wifi=True, battery_min=0.8))
    made = build_trace(log_of(tmp_path, spanning(rows)), tmp_path / "out", config)
    assert made.number("eligible_share_device_s") == pytest.approx(0.7, abs=0.01)


def test_chances_have_a_beta_prior_of_one_and_one():
    joint = joint_of(("wifi", "battery"), {(0, "ios", 4): 6, (0, "ios", 0): 2, (0, "ios", 8): 5, (1, "ios", 8): 1})
    assert digits(8, 2) == (2, 2)
    assert joint.chances[0, "ios", 8].mean == pytest.approx(7 / 10)  # Beta(1 + 6, 1 + 2)
    assert joint.chances[0, "ios", 8].variance == pytest.approx(7 * 3 / (100 * 11))
    assert joint.chances[1, "ios", 8].mean == pytest.approx(0.5)
    assert (joint.known, joint.unknown, joint.thin) == (8, 6, 2)


def test_states_that_no_session_tells_are_refused_in_one_line(tmp_path):
    rows = [at(100, 200, wifi=""), at(300, 400, wifi="")]
    with pytest.raises(UsageError, match="no session of the log tells wifi") as error:
        sessions(tmp_path, rows, wifi=True)
    assert "\n" not in str(error.value)


def bench(folder: Path, rows: list[tuple[str, str, str, int]]) -> Path:
    draft = Draft("bench", values={"tiny.p95_task_s": Value(9.0, "s"), "tiny.mean_s": Value(5.0, "s")})
    columns = list(zip(*rows, strict=True))
    draft.table("eligible", {"device_model": list(columns[0]), "os": list(columns[1]), "os_version": text_of(
        list(columns[2])), "eligible": list(columns[3])})  # fmt: skip
    return draft.write(folder / "bench").path


def test_devices_are_allowed_by_the_list_of_a_bench_artefact(tmp_path):
    allow = bench(tmp_path, [("Pixel 4", "android", "12", 1), ("Pixel 5", "android", "", 1), ("Old", "android", "", 0)])
    rows = [
        at(100, 200, device_model="pixel 4", os="Android", os_version=12), at(1000, 1100, device_model="Pixel 4",
        os="Android", os_version=11), at(2000, 2100, device_model="Pixel 5", os="android", os_version=11),
        at(3000, 3100, device_model="Old", os="android"), at(4000, 4100),
    ]  # fmt: skip
    config = TraceConfig(criteria=Criteria(device_allow=str(allow)))
    made = build_trace(log_of(tmp_path, spanning(rows)), tmp_path / "out", config)
    assert made.table("sessions")["start_s"].tolist() == [100.0, 2000.0]
    assert [one["kind"] for one in made.inputs] == ["session log", "bench"]
    assert str(tmp_path) not in str(made.params)
    assert made.number("p_usable.tiny") == 1.0


def test_user_attributes_and_the_age_of_the_system_count_only_where_known(tmp_path):
    rows = [
        at(100, 200, account_age_days=40, reputation=0.9, os_release_date="2020-01-01"),
        at(1000, 1100, account_age_days=20, reputation=0.9, os_release_date="2020-01-01"),
        at(2000, 2100, account_age_days=40, reputation=0.1, os_release_date="2020-01-01"),
        at(3000, 3100, account_age_days=40, reputation=0.9, os_release_date="2019-08-31"),
        at(4000, 4100, account_age_days=40, reputation=0.9),
    ]
    found = sessions(tmp_path, rows, account_age_min_days=30.0, reputation_min=0.5, os_released_after="2019-09-01")
    assert [start for start, *_ in found] == [100]


def test_groups_that_a_filter_leaves_fewer_of_are_flagged(tmp_path):
    rows = []
    for client in range(100):
        tier = "new" if client < 60 else "old"
        wifi = "true" if tier == "new" or client % 4 == 0 else "false"
        rows.append({"client": client + 100, "start_s": 60 * client, "end_s": 60 * client + 50, "wifi": wifi,
                     "battery": 0.9, "device_class": tier, "os": "android"})  # fmt: skip
    rows.append({"client": 100, "start_s": 7 * DAY - 60, "end_s": 7 * DAY, "wifi": "true", "battery": 0.9,
                 "device_class": "new", "os": "android"})  # fmt: skip
    config = TraceConfig(criteria=Criteria(wifi=True, battery_min=0.8))
    made = build_trace(log_of(tmp_path, rows), tmp_path / "out", config)
    table = made.table("fairness")
    rows_ = list(zip(words(table["filter"]), words(table["by"]), words(table["group"]), table["share_before"].tolist(),
                     table["share_after"].tolist(), table["flagged"].tolist(), strict=True))  # fmt: skip
    found = {(name, group): rest for name, by, group, *rest in rows_ if by == "tier"}
    assert found["wifi", "old"] == [pytest.approx(0.4), pytest.approx(1 / 7), 1]
    assert found["wifi", "new"] == [pytest.approx(0.6), pytest.approx(6 / 7), 0]
    assert found["battery", "old"] == [pytest.approx(1 / 7), pytest.approx(1 / 7), 0]
    assert found["all", "old"][2] == 1
    assert {by for _, by, *_ in rows_} == {"tier", "os"}  # no region was told
    assert made.number("flagged_groups") == 2


def test_shares_of_every_intersection_and_the_gain_without_each(tmp_path):
    rows = []
    for client in range(8):  # every combination of three criteria, once
        a, b, c = client & 1, client >> 1 & 1, client >> 2
        rows.append({"client": client, "start_s": 1000 * client, "end_s": 1000 * client + 100, "wifi": bool(a),
                     "charging": bool(b), "reputation": c})  # fmt: skip
    rows.append({"client": 7, "start_s": 7 * DAY - 50, "end_s": 7 * DAY, "wifi": False, "charging": True,
                 "reputation": 1})  # fmt: skip
    config = TraceConfig(criteria=Criteria(wifi=True, charging=True, reputation_min=0.5))
    made = build_trace(log_of(tmp_path, rows), tmp_path / "out", config)
    table = made.table("intersections")
    devices = dict(zip(words(table["criteria"]), table["share_devices"].tolist(), strict=True))
    assert len(devices) == 7
    assert devices["wifi"] == 0.5
    assert devices["wifi+charging"] == 0.25
    assert devices["wifi+charging+reputation"] == 0.125
    criteria = made.table("criteria")
    assert criteria["leave_one_out_gain"].tolist() == [0.125, 0.125, 0.125, 0.0]
    assert criteria["share_device_s"].tolist()[-1] == pytest.approx(100 / 850)
    assert criteria["leave_one_out_gain_s"].tolist()[0] == pytest.approx((100 + 50) / 850)
    assert made.number("clients") == 1


def test_eight_criteria_at_once_are_counted_as_one_by_one(tmp_path):
    allow = bench(tmp_path, [("good", "android", "", 1)])
    rng = np.random.default_rng(1)
    able = rng.random((300, 8)) < 0.75
    rows = [
        {"client": 1000 + int(i) // 2, "start_s": 570 * i, "end_s": 570 * i + (100 if one[7] else 10),
         "wifi": bool(one[0]), "battery": 0.9 if one[1] else 0.1, "charging": bool(one[2]), "os": "android",
         "os_release_date": "2020-01-01" if one[3] else "2018-01-01", "device_model": "good" if one[4] else "bad",
         "account_age_days": 100 if one[5] else 1, "reputation": float(one[6])}
        for i, one in enumerate(able)
    ]  # fmt: skip
    criteria = Criteria(
        wifi=True, battery_min=0.5, charging=True, os_released_after="2019-09-01", device_allow=str(allow),
        account_age_min_days=30.0, reputation_min=0.5, min_session_s=60.0,
    )  # fmt: skip
    made = build_trace(log_of(tmp_path, rows), tmp_path / "out", TraceConfig(criteria=criteria))
    table = made.table("intersections")
    asked = criteria.asked()
    seconds = np.where(able[:, 7], 100, 10)
    assert len(table["n"]) == 255
    for names, devices, share in zip(words(table["criteria"]), table["share_devices"], table["share_device_s"],
                                     strict=True):  # fmt: skip
        met = able[:, [asked.index(one) for one in names.split("+")]].all(1)
        assert devices == pytest.approx(met.reshape(150, 2).any(1).mean())
        assert share == pytest.approx(seconds[met].sum() / seconds.sum())


def test_the_weekly_curve_is_the_mean_number_of_clients_at_once(tmp_path):
    rows = [
        {"client": 1, "start_s": 0, "end_s": 450}, {"client": 2, "start_s": 150, "end_s": 300},
        {"client": 1, "start_s": 7 * DAY + 300, "end_s": 7 * DAY + 600},
        {"client": 2, "start_s": 14 * DAY - 300, "end_s": 14 * DAY},
    ]  # fmt: skip
    made = build_trace(log_of(tmp_path, rows), tmp_path / "out")
    weekly, heat = made.table("weekly"), made.table("heat")
    assert weekly["available"][:3].tolist() == [0.75, 0.75, 0.0]
    assert weekly["available"][-1] == 0.5
    assert weekly["share_of_peak"][0] == 1.0
    assert weekly["available"].sum() * 300 * 2 == pytest.approx(450 + 150 + 300 + 300)
    assert len(heat["hour"]) == 168
    assert heat["share"][0] == 1.0
    assert (heat["weekday"][24], heat["hour"][24]) == (1, 0)
    lengths = made.table("lengths")
    assert lengths["usable_s"][4] == 300.0
    assert made.number("median_usable_s") == 300.0
    assert made.number("supply_per_s") == pytest.approx(4 / (14 * DAY))


def test_epochs_of_utc_fall_on_their_weekdays(tmp_path):
    tuesday = 1704672000 + DAY + 5 * 3600  # 9 January 2024, 5 h
    rows = [{"client": 1, "start_s": tuesday, "end_s": tuesday + 600},
            {"client": 2, "start_s": tuesday + 6.9 * DAY, "end_s": tuesday + 6.9 * DAY + 60}]  # fmt: skip
    made = build_trace(log_of(tmp_path, rows), tmp_path / "out")
    heat = made.table("heat")
    busiest = int(np.nanargmax(heat["share"]))
    assert (heat["weekday"][busiest], heat["hour"][busiest]) == (1, 5)
    assert availability_of(made).session(DAY + 5 * 3600 + 10.0, np.array([0]))[0] == [DAY + 5 * 3600]


def test_a_log_of_days_folds_into_the_hours_it_has(tmp_path):
    rows = [at(1000 + day * DAY, 2000 + day * DAY) for day in range(3)]
    made = build_trace(log_of(tmp_path, [*rows, at(3 * DAY - 100, 3 * DAY)]), tmp_path / "out")
    available = made.table("weekly")["available"]
    assert np.isfinite(available).sum() == 3 * 288
    assert made.number("weeks") == pytest.approx(3 / 7)


def test_long_enough_sessions_are_told_for_named_durations(tmp_path):
    rows = spanning([at(100 * i, 100 * i + i) for i in range(1, 20)])
    config = TraceConfig(criteria=Criteria(gap_merge_s=0.0), durations_s={"small": 10.0, "large": 1000.0})
    made = build_trace(log_of(tmp_path, rows), tmp_path / "out", config)
    assert made.number("p_usable.small") == pytest.approx(11 / 21)
    assert made.number("p_usable.large") == 0.0


def test_a_trace_without_an_eligible_session_is_still_told(tmp_path):
    rows = spanning([at(100, 200, reputation=0.1)])
    made = build_trace(log_of(tmp_path, rows), tmp_path / "out", TraceConfig(criteria=Criteria(reputation_min=0.5)))
    assert made.number("eligible_share_devices") == 0.0
    assert made.number("median_usable_s") is None
    assert made.number("trough_over_peak") is None
    with pytest.raises(UsageError, match="no device meets its criteria"):
        availability_of(made)


def test_text_ids_become_numbers_and_nans_are_unknown(tmp_path):
    place = tmp_path / "log.parquet"
    write_columns(place, iter([{
        "client_id": text_of(["anna", "ben", "anna"]), "start": np.array([0.0, 10.0, 7 * DAY - 50]),
        "end": np.array([50.0, 90.0, 7 * DAY]), "wifi": np.array([1.0, np.nan, 1.0]),
        "battery": np.array([np.nan, 0.5, np.nan]),
    }]))  # fmt: skip
    made = build_trace(place, tmp_path / "out")
    assert len(np.unique(made.table("sessions")["client"])) == 2
    assert words(made.table("sessions")["bw_class"]) == ["wifi", "unknown", "wifi"]
    other = build_trace(place, tmp_path / "other", seed=1)
    assert made.table("sessions")["client"].tolist() != other.table("sessions")["client"].tolist()


def test_timestamps_are_seconds_of_utcs_epoch(tmp_path):
    place = tmp_path / "log.csv"
    place.write_text(
        "client,start,end\nu1,2024-01-08 05:00:00,2024-01-08 05:10:00.5\nu2,2024-01-14 23:00:00,2024-01-15 00:00:00\n"
    )
    made = build_trace(place, tmp_path / "out")
    assert made.table("sessions")["start_s"].tolist() == [1704690000.0, 1705273200.0]
    assert made.table("sessions")["usable_s"].tolist() == [600.5, 3600.0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("client,start_s\n1,0\n", "column 'end_s' is missing"),
        ("client,start_s,end_s\n", "holds no session"),
        ("client,start_s,end_s\n1,0,100\n1,200,100\n", "1 of 2 rows end before they start"),
        ("client,start_s,end_s\n1,-5,100\n", "start before second 0"),
        ("client,start_s,end_s\n1,0,100\n,200,300\n", "1 of 2 rows name no client"),
        ("client,start_s,end_s\n1.5,0,100\n", "another client than a whole number"),
        ("client,start_s,end_s\n1,0,100\n1,200,\n", "lack a start or an end"),
        ("client,start_s,end_s\n1,1704672000000,1704672600000\n", "look like milliseconds"),
        ("client,start_s,end_s\n1,0,100\n", "needs at least one whole day"),
        ("client,start_s,end_s,battery\n1,0,100,80\n", "battery outside of 0 to 1"),
        ("client,start_s,end_s,wifi\n1,0,100,perhaps\n", "another wifi than true or false"),
        ("client,start_s,end_s,os_release_date\n1,0,100,soon\n", "another os_release_date than a date"),
        ("client,start_s,end_s,background\n1,0,100,50:40\n", "background spans"),
        ("client,start_s,end_s,background\n1,0,100,ten:40\n", "background spans"),
    ],
)
def test_a_log_that_is_wrong_is_refused_in_one_line(text, says, tmp_path):
    place = tmp_path / "log.csv"
    place.write_text(text)
    with pytest.raises(UsageError, match=says) as error:
        build_trace(place, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("criteria.battery_min=80", "give a share of the charge"),
        ("criteria.wifi=perhaps", "wifi"),
        ("criteria.os_released_after=soon", "give a date"),
        ("criteria.batery_min=0.8", "battery_min"),
        ("weeks=0", "at least one whole week"),
        ("weeks", "write KEY=VALUE"),
    ],
)
def test_settings_that_are_wrong_are_refused_in_one_line(change, says):
    with pytest.raises(UsageError, match=says) as error:
        read_config(None, [change])
    assert "\n" not in str(error.value)


def test_a_criterion_whose_column_the_log_lacks_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no column 'battery'"):
        sessions(tmp_path, [at(0, 100)], battery_min=0.5)
    rows = spanning([at(100, 200, charge=0.9), at(1000, 1100, charge=0.1)])
    config = TraceConfig(criteria=Criteria(battery_min=0.5), columns={"battery": "charge"})
    assert build_trace(log_of(tmp_path, rows), tmp_path / "out", config).table("sessions")["start_s"][0] >= 0


def test_settings_are_read_from_toml_and_changed_on_the_command_line(tmp_path):
    place = tmp_path / "trace.toml"
    place.write_text('weeks = 1\n[criteria]\nwifi = true\ncharging = "any"\nos_released_after = 2019-09-01\n')
    config = read_config(place, ["criteria.battery_min=0.5", "wifi=any"])
    assert config.criteria == Criteria(battery_min=0.5, os_released_after="2019-09-01")
    assert config.weeks == 1


def test_a_fleet_replays_the_trace(tmp_path):
    rows = [{"client": 30, "start_s": 100, "end_s": 200, "device_class": "new"},
            {"client": 10, "start_s": 300, "end_s": 400, "device_class": "old"},
            {"client": 30, "start_s": 7 * DAY - 60, "end_s": 7 * DAY, "device_class": "new"}]  # fmt: skip
    made = build_trace(log_of(tmp_path, rows), tmp_path / "out")
    fleet = fleet_of(made, noise=0.1)
    assert fleet.availability.size == 2
    assert fleet.availability.period_s == 7 * DAY
    assert fleet.availability.session(7 * DAY + 250.0, np.array([0, 1]))[0].tolist() == [7 * DAY + 300, 14 * DAY - 60]
    assert [fleet.kinds[i] for i in fleet.kind] == ["old", "new"]
    fleet.fit(2)


def test_a_window_that_begins_in_mid_week_replays_at_its_times_of_the_week(tmp_path):
    wednesday = 2 * DAY
    rows = [at(wednesday + 100, wednesday + 200), at(7 * DAY + 50, 7 * DAY + 90),
            at(wednesday + 7 * DAY - 60, wednesday + 7 * DAY)]  # fmt: skip
    made = build_trace(log_of(tmp_path, rows), tmp_path / "out")
    available = availability_of(made)
    assert available.session(0.0, np.array([0]))[0].tolist() == [50.0]
    assert available.session(wednesday, np.array([0]))[0].tolist() == [wednesday + 100]


def test_the_trough_is_an_hourly_mean():
    week = np.tile(np.r_[np.full(1008, 10.0), np.full(1008, 2.0)], 1)
    week[1500] = 0.0
    assert trough_over_peak(week) == pytest.approx(22 / 120)
    assert trough_over_peak(np.zeros(2016)) is None


def test_parts_without_a_client_change_nothing(tmp_path):
    log = log_of(tmp_path, spanning([at(100, 200, wifi="true", os="ios"), at(1000, 1100, wifi="", os="android")]))
    config = TraceConfig(criteria=Criteria(wifi=True))
    one = build_trace(log, tmp_path / "one", config)
    assert build_trace(log, tmp_path / "many", with_changes(config, ["partitions=9"])).sha256 == one.sha256
