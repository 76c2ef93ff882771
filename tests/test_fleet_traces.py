"""Fleets from tables of real phones and from the files of FedScale and FLASH."""

from __future__ import annotations

import contextlib
import json
import pickle
import pickletools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import realdata
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.config import plain
from fieldfare.core.errors import UsageError
from fieldfare.core.work import Cost
from fieldfare.fleet import Availability, Fleet
from fieldfare.fleet.columns import text_of
from fieldfare.fleet.describe import describe_fleet, size_of
from fieldfare.fleet.logs import flash_sessions, flash_states, minute_sessions
from fieldfare.fleet.measured import (
    FEMNIST_FLOPS,
    KINDS,
    class_speeds,
    phone_speeds,
    radio_watts,
    replayed,
    speed_of,
    speedtest_links,
)
from fieldfare.fleet.pickles import (
    behaviour_of,
    behaviour_table,
    capacity_of,
    capacity_table,
    load_plain,
    models_of,
    write_fedscale,
)
from fieldfare.fleet.tasks import phases
from fieldfare.fleet.traces import find, phones_of, read_fleet

DAY, WEEK = 86400.0, 604800.0


# FedScale's pickles


@st.composite
def availabilities(draw):
    period = float(draw(st.sampled_from([DAY, 5 * DAY, WEEK, 1000.0])))
    devices = []
    for _ in range(draw(st.integers(1, 4))):
        cuts = sorted(draw(st.sets(st.integers(0, int(period)), max_size=8)))
        devices.append(list(zip(cuts[::2], cuts[1::2], strict=False)))
    return Availability.of(devices, period)


def round_trip(tmp_path, available):
    place = write_fedscale(tmp_path / "client_behave_trace", behaviour_table(available))
    return read_fleet(place).availability


@given(availabilities())
def test_availability_written_for_fedscale_reads_back_equal(tmp_path_factory, available):
    back = round_trip(tmp_path_factory.mktemp("f"), available)
    assert back.period_s == available.period_s
    for name in ("offsets", "start", "end"):
        assert np.array_equal(getattr(back, name), getattr(available, name))


@given(availabilities(), st.lists(st.integers(-2000, 900_000), min_size=4, max_size=4), st.data())
def test_shifted_and_shared_traces_read_back_as_the_same_sessions(tmp_path_factory, available, shifts, data):
    row = np.array(data.draw(st.lists(st.integers(0, available.size - 1), min_size=4, max_size=4)), np.int32)
    shared = replace(available, row=row, shift_s=np.array(shifts, np.float32))
    back = round_trip(tmp_path_factory.mktemp("f"), shared)
    t = np.array(data.draw(st.lists(st.integers(0, 1_000_000), min_size=8, max_size=8)), np.float64)
    for device in range(4):
        who = np.full(8, device)
        assert np.array_equal(back.session(t, who), shared.session(t, who))


# one entry as FedScale's file has them: its duration is the sum of its spans
ENTRY = {
    "duration": 211625, "inactive": [65881, 133574, 208292, 276575, 295006, 356236, 400906, 475099],
    "finish_time": 518400, "active": [12788, 100044, 188992, 271372, 276663, 352625, 356267, 441193],
    "model": "CPH1801",
}  # fmt: skip


def test_a_fedscale_entry_gives_its_duration():
    available, note = behaviour_of({7: ENTRY})
    assert available.means()[0] * 518400 == pytest.approx(ENTRY["duration"])
    assert "repeats after 518400 s" in note
    assert models_of({7: ENTRY}) == ["CPH1801"]
    out = behaviour_table(available, ["CPH1801"])[0]
    assert {k: out[k] for k in ENTRY} == ENTRY


def test_fedscale_traces_of_unlike_lengths_are_each_tiled_by_their_own():
    short = {"active": [0, 80000], "inactive": [100, 90000], "finish_time": 100_000}
    long = {"active": [5], "inactive": [DAY], "finish_time": 2.5 * DAY}
    available, note = behaviour_of({3: long, 1: short})
    assert available.period_s == 2 * DAY
    assert "each tiled by its own length" in note
    first = np.zeros(1, np.int64)
    for t, there in ((50.0, True), (150.0, False), (100_050.0, True), (170_000.0, False)):
        assert available.at(t, first)[0] == there  # the client with the lowest id is device 0
    assert available.at(10.0, first + 1).all()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"active": [0, 50], "inactive": [100, 200]}, r"device 0: intervals \(0, 100\) and \(50, 200\) overlap"),
        ({"active": [100], "inactive": [50]}, "runs backwards"),
        ({"active": [0, 50], "inactive": [100]}, "2 active times and 1 inactive"),
        ({"active": [0], "inactive": ["x"]}, "'inactive' must be a list of seconds"),
        ({"active": 3, "inactive": [5]}, "'active' must be a list of seconds"),
        ({"active": [0], "inactive": [10**400]}, "too large a number"),
        ({"active": [0], "inactive": [5], "finish_time": 0}, "finish_time must be seconds above zero"),
        ({"active": [0], "inactive": [5], "finish_time": None}, "'finish_time' must be a number"),
    ],
)
def test_a_bad_fedscale_trace_is_refused_in_one_line(entry, words):
    with pytest.raises(UsageError, match=words) as told:
        behaviour_of({1: {"finish_time": DAY} | entry})
    assert "\n" not in str(told.value)


def test_fedscale_capacities_become_speeds_and_links_and_back(tmp_path):
    table = {i: {"computation": float(10 * i), "communication": 6100.0 + i} for i in range(1, 40)}
    fleet = read_fleet(write_fedscale(tmp_path / "client_device_capacity", table))
    assert size_of(fleet) == 39
    assert fleet.downlink_bytes_per_s[0] == fleet.uplink_bytes_per_s[0] == 6101.0 * 125
    # three forward passes of 0.6 GFLOP take 3 x 10 ms on the first device
    assert phases(fleet, np.array([0]), Cost(np.array([1.8e9]), 0.0, 0.0, 0.0), 0.0).compute[0] == pytest.approx(0.03)
    back = capacity_table(fleet, 39)
    assert back[4]["computation"] == pytest.approx(50.0)
    assert back[4]["communication"] == pytest.approx(6105.0)
    for bad, words in (
        ({"computation": 0, "communication": 6000}, "computation = 0"),
        ({"computation": 5, "communication": -1}, "communication = -1"),
        ({"computation": 5, "communication": 6}, "median of 750.*1 Mbit/s = 125000"),
    ):
        with pytest.raises(UsageError, match=words):
            capacity_of({1: bad})


class Malicious:
    """A pickle that would write a file when loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.write_text, (self.target, "executed")


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(tmp_path, protocol):
    target = tmp_path / "proof"
    data = pickle.dumps({1: {"active": [0], "inactive": [5], "finish_time": Malicious(target)}}, protocol=protocol)
    (tmp_path / "client_behave_trace").write_bytes(data)
    with pytest.raises(UsageError, match=r"pickle that asks for .*nothing was run") as told:
        load_plain(tmp_path / "client_behave_trace")
    assert "\n" not in str(told.value)
    with pytest.raises(UsageError):
        read_fleet(tmp_path / "client_behave_trace")
    assert not target.exists()
    pickle.loads(data)  # the same bytes do run where classes are let in
    assert target.read_text() == "executed"


@pytest.mark.parametrize("value", [np.float64(3.0), np.zeros(3), {1, 2}, b"x", (1, 2), object(), len, 1 + 2j])
def test_no_object_of_any_class_is_built(tmp_path, value):
    (tmp_path / "p").write_bytes(pickle.dumps({1: value}))
    with pytest.raises(UsageError, match="only numbers, text, lists and dictionaries"):
        load_plain(tmp_path / "p")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol_is_read(tmp_path, protocol):
    plain = {1: [0, -1, 2**40, 2.5, True, False, None, "ä", ""], "b": {"c": [[], {}]}, 300: list(range(2000))}
    (tmp_path / "p").write_bytes(pickle.dumps(plain, protocol=protocol))
    assert load_plain(tmp_path / "p") == plain


def plain_or_refused(place, read=load_plain):
    """What is read; None where it is refused in one line."""
    with contextlib.suppress(UsageError):
        return read(place)
    with pytest.raises(UsageError, match=r"^[^\n]*$"):
        read(place)
    return None


def test_every_opcode_is_either_plain_data_or_refused(tmp_path):
    """Whatever opcode a file begins with, reading it gives plain data or one line; no exception escapes."""
    for op in pickletools.opcodes:
        for before in (b"", b"}", b"](", b"(", b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system"):
            for after in (b".", b"os\nsystem\n.", b"\x00" * 9 + b".", b"\xff" * 9 + b".", b"1\n."):
                (tmp_path / "p").write_bytes(b"\x80\x04" + before + op.code.encode("latin-1") + after)
                read = plain_or_refused(tmp_path / "p")
                assert read is None or isinstance(read, int | float | str | list | dict)


@given(st.binary(max_size=60))
def test_noise_is_refused_in_one_line(tmp_path_factory, noise):
    place = tmp_path_factory.mktemp("n") / "p"
    place.write_bytes(b"\x80" + noise)
    plain_or_refused(place, read_fleet)


def test_a_pickle_too_large_or_of_something_else_is_refused(tmp_path):
    (tmp_path / "p").write_bytes(pickle.dumps({1: list(range(1000))}))
    with pytest.raises(UsageError, match="more than the 100 that are read"):
        load_plain(tmp_path / "p", max_bytes=100)
    with pytest.raises(UsageError, match="no table of FedScale's"):
        read_fleet(tmp_path / "p")
    with pytest.raises(UsageError, match="is not a file"):
        load_plain(tmp_path / "q")


# FLASH's JSON files


def state_log(*events):
    return "\n".join(f"2020-02-{day:02d} {time}\t{state}" for day, time, state in events) + "\n"


STATES = {
    "a": {
        "guid": "a",
        "model": "SM-A105G",
        "messages": state_log(
            (1, "01:00:00", "WIFI"), (1, "02:00:00", "battery_charged_on"), (1, "03:00:00", "screen_lock"),
            (1, "04:00:00", "80%"), (1, "05:00:00", "screen_unlock"), (1, "22:00:00", "screen_lock"),
            (2, "06:00:00", "4G"), (2, "07:00:00", "wifi"), (3, "01:00:00", "battery_charged_off"),
        ),
    },
    "b": {"guid": "b", "model": "", "messages": state_log((1, "00:30:00", "wifi"), (1, "09:00:00", "phone_off"))},
}  # fmt: skip


def hours(available, device):
    held = slice(available.offsets[device], available.offsets[device + 1])
    return [(s / 3600, e / 3600) for s, e in zip(available.start[held], available.end[held], strict=True)]


def test_flash_state_traces_give_the_spans_in_which_all_criteria_hold(tmp_path):
    available, models, note = flash_states(STATES)
    assert available.period_s == 2 * DAY
    assert hours(available, 0) == [(3, 5), (22, 30), (31, 48)]
    assert hours(available, 1) == []
    assert models == ["SM-A105G", ""]
    assert "locked and charging and wifi" in note
    assert hours(flash_states(STATES, ("wifi",))[0], 1) == [(0.5, 9)]
    assert hours(flash_states(STATES, ("charging", "battery_80"))[0], 0) == [(4, 48)]
    (tmp_path / "state_traces.json").write_text(json.dumps(STATES))
    assert hours(read_fleet(tmp_path / "state_traces.json").availability, 0) == hours(available, 0)


def test_flash_speeds_are_read_as_kilobytes_a_second(tmp_path):
    table = {"x": {"down_u": 7491.4, "down_sigma": 3369.3, "up_u": 4935.2, "up_sigma": 2767.3}}
    (tmp_path / "speed_distri.json").write_text(json.dumps(table))
    assert read_fleet(tmp_path / "speed_distri.json").downlink_bytes_per_s.tolist() == [7491400.0]
    (tmp_path / "speed_distri.json").write_text(json.dumps({"x": {"down_u": 0, "up_u": "fast"}}))
    with pytest.raises(UsageError, match="down_u must be a number"):
        read_fleet(tmp_path / "speed_distri.json")


def test_a_wrong_state_trace_is_refused_in_one_line(tmp_path):
    for messages, words in (
        ("2020-02-01 00:00:00\tdancing\n", r"'a', line 1: .* is not"),
        ("yesterday\twifi\n", "line 1"),
        ("", "hold no event"),
        (3, "no text under 'messages'"),
        (state_log((1, "01:00:00", "wifi"), (1, "09:00:00", "4g")), "at least one whole day"),
    ):
        with pytest.raises(UsageError, match=words):
            flash_states({"a": {"messages": messages}})
    with pytest.raises(UsageError, match="no 'moon'"):
        flash_states(STATES, ("moon",))
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        read_fleet(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(UsageError, match="neither FLASH's state_traces"):
        read_fleet(tmp_path / "x.json")


# logs and measurements as columns


def flash_table(rows):
    device, start, end, state, censored = (np.array(c) for c in zip(*rows, strict=True))
    variant = text_of(["charging_wifi"] * len(rows))
    return {"device": device, "variant": variant, "start_s": start, "end_s": end, "state": state, "censored": censored}


ROWS = [
    (4, 0, 50_000, 2, 0), (4, 50_000, 200_000, 0, 0), (4, 200_000, 540_000, 2, 1),
    (9, 0, 100_000, 1, 0), (9, 100_000, 100_600, 2, 0), (9, 100_600, 540_000, 0, 1),
    (2, 0, 470_000, 0, 0), (2, 470_000, 480_000, 2, 0), (2, 480_000, 540_000, 0, 1),
]  # fmt: skip


def test_flash_intervals_of_the_training_state_are_cut_to_five_days():
    available, note = flash_sessions(flash_table(ROWS))
    assert available.period_s == 5 * DAY
    # devices in order of their number: 2, 4, 9; time 0 is hour 12; only state 2 counts
    assert available.start.tolist() == [426_800, 0, 156_800, 56_800]
    assert available.end.tolist() == [432_000, 6800, 432_000, 57_400]
    assert "hours 12 to 132" in note
    assert "2 of 3 logs end within it (censored: keep)" in note
    assert flash_sessions(flash_table(ROWS), censored="away")[0].start.tolist() == [426_800, 0, 56_800]
    left = flash_sessions(flash_table(ROWS), censored="leave-out")[0]
    assert left.size == 1
    assert left.start.tolist() == [426_800]
    with pytest.raises(UsageError, match="no variant 'solar'; it has charging_wifi"):
        flash_sessions(flash_table(ROWS), "solar")
    with pytest.raises(UsageError, match=r"device 1: intervals .* overlap"):
        flash_sessions(flash_table([*ROWS, (4, 100, 60_000, 2, 0)]))


def minutes(users, **columns):
    """A row a minute for each (user, first minute of the week, number of minutes)."""
    user = np.concatenate([np.full(k, u) for u, _, k in users])
    t = np.concatenate([np.arange(k) * 60 for _, _, k in users])
    first = np.concatenate([np.full(k, f) for _, f, k in users]) + t // 60
    table = {"user": user, "t_s": t, "local_minute_of_day": first % 1440, "local_weekday": first // 1440 % 7}
    return table | {name: np.asarray(make(first)) for name, make in columns.items()}


def test_minutes_become_sessions_in_local_time_and_short_logs_fill_the_week():
    night = {"charging": lambda m: (m % 1440 < 360).astype(int), "network": lambda m: np.ones(len(m))}
    table = minutes([(0, 1440 + 300, 3 * 1440), (1, 0, 8 * 1440), (2, 0, 60)], **night)
    available, note = minute_sessions(table)
    assert available.size == 2
    assert available.period_s == WEEK
    assert "1 logs under a day left out" in note
    monday = np.arange(7) * DAY
    for device in (0, 1):
        who = np.full(7, device)
        assert available.at(monday + 3 * 3600, who).all()
        assert not available.at(monday + 7 * 3600, who).any()
    unknown = table | {"network": np.where(table["user"] == 1, -1, 1)}
    assert minute_sessions(unknown)[0].means()[1] == 0.0
    with pytest.raises(UsageError, match="no criterion 'solar'"):
        minute_sessions(table, ("solar",))
    with pytest.raises(UsageError, match="rows of user 0 do not ascend"):
        minute_sessions(table | {"t_s": table["t_s"][::-1].copy()})


def test_a_state_holds_over_a_short_gap_and_not_over_a_long_one():
    table = minutes([(0, 0, 1441)], charging=lambda m: np.ones(len(m)), network=lambda m: np.ones(len(m)))
    keep = ~((table["t_s"] > 3600) & (table["t_s"] < 3600 + 300)) & ~((table["t_s"] > 7200) & (table["t_s"] < 14400))
    available, _ = minute_sessions({name: column[keep] for name, column in table.items()})
    assert available.end[:2].tolist() == [7200 + 600, DAY + 7800]
    assert available.start[:2].tolist() == [0, 14400]


CLASSES = {
    "task_model": text_of(["cnn_femnist"] * 3 + ["cnn_celeba"]),
    "device_class": text_of(["high_end(x)", "low_end(y)", "mid(z)", "low_end(y)"]),
    "mean_ms_per_batch": np.array([179.0, 1642.0, 588.0, 5392.0]),
    "std_ms_per_batch": np.array([2.3, 99.5, 23.9, 982.5]),
    "population_weight": np.array([159, 18820, 16428, 18820]),
}  # fmt: skip


def test_a_class_takes_its_measured_seconds_for_the_measured_work():
    speeds = class_speeds(CLASSES)
    assert speeds.share == pytest.approx(np.array([18820, 16428, 159]) / 35407)
    for speed, seconds in zip(speeds.flops_per_s, (1.642, 0.588, 0.179), strict=True):
        cost = Cost(np.array([10 * FEMNIST_FLOPS]), 0.0, 0.0, 0.0)
        task = phases(Fleet(flops_per_s=float(speed)), np.array([0]), cost, 0.0)
        assert task.compute[0] == pytest.approx(seconds)
    key = np.arange(1, 20_000, dtype=np.uint64)
    flops, kind, _ = speeds.draw(key)
    assert np.bincount(kind, minlength=3) / len(key) == pytest.approx(speeds.share, abs=0.01)
    assert flops[kind == 0].mean() == pytest.approx(speeds.flops_per_s[0], rel=0.01)
    with pytest.raises(UsageError, match="low, mid and high are needed"):
        class_speeds(CLASSES | {"task_model": text_of(["a"] * 4)})
    with pytest.raises(UsageError, match="mean_ms_per_batch = 0"):
        class_speeds(CLASSES | {"mean_ms_per_batch": np.zeros(4)})


@given(st.lists(st.floats(50, 200_000), min_size=2, max_size=10).map(sorted))
def test_speed_rises_with_the_score_and_meets_what_was_measured(scores):
    anchors, speeds = (383.0, 6702.0, 33289.0), class_speeds(CLASSES).flops_per_s
    assert speed_of(np.array(anchors), anchors, speeds) == pytest.approx(speeds)
    assert (np.diff(speed_of(np.array(scores), anchors, speeds)) >= -1e-3).all()
    assert speed_of(np.array([2 * 33289.0]), anchors, speeds)[0] == pytest.approx(2 * speeds[2])


def test_phones_without_a_score_are_of_a_class_by_its_share():
    totals = {"ai_score": np.array([np.nan, 6702.0, np.nan, 400.0]), "benchmark_name": text_of(["", "A", "", "B"])}
    phones = {"model": text_of(["A", "B"]), "ram_gb": np.array([8.0, 0.0])}
    speeds = phone_speeds(totals, class_speeds(CLASSES), phones)
    assert speeds.share.sum() == pytest.approx(1.0)
    assert speeds.share[:2].tolist() == [0.25, 0.25]
    assert speeds.kind.tolist() == [1, 0, 0, 1, 2]
    assert (speeds.memory_bytes / 2**30).tolist() == [8.0, 0.5, 3.0, 4.0, 6.0]


def test_links_come_together_and_in_bytes():
    table = {
        "radio_type": text_of(["4G-LTE", "5G-NSA-mmWave", "4G-LTE"]), "down_Bps": np.array([0.0, 1e8, 2e7]),
        "up_Bps": np.array([1e6, 9e6, 4e6]), "latency_ms": np.array([10.0, 50.0, 80.0]),
    }  # fmt: skip
    links = speedtest_links(table)
    assert links.down.tolist() == [1e8, 2e7]
    assert links.latency_s.tolist() == [0.05, 0.08]
    assert links.mmwave.tolist() == [True, False]
    assert speedtest_links(table, ("4G-LTE",)).up.tolist() == [4e6]
    with pytest.raises(UsageError, match="no radio type '6G'"):
        speedtest_links(table, ("6G",))
    with pytest.raises(UsageError, match=r"median of 60.*Mbit/s"):
        speedtest_links(table | {"down_Bps": np.array([0.0, 100.0, 20.0])})
    with pytest.raises(UsageError, match="no column 'down_Bps' of numbers"):
        speedtest_links({k: v for k, v in table.items() if k != "down_Bps"})


def test_throughput_traces_are_replayed_with_an_uplink_of_a_share():
    table = {
        "source": text_of(["a", "a", "a", "b"]), "trace": text_of(["a/0", "a/0", "a/0", "b/0"]),
        "tech": text_of(["4G", "4G", "4G", "5G_mmWave"]), "t_s": np.array([0.0, 1.0, 1.0, 0.0]),
        "down_Bps": np.array([1e6, 2e6, 4e6, 9e7]), "up_Bps": np.array([np.nan, 5.0, 5.0, 5.0]),
    }  # fmt: skip
    net, fast = replayed(table, ("a", "b"), 0.5)
    assert net.down_bytes_per_s.tolist() == [1e6, 3e6, 9e7]  # two rows of one second: their mean
    assert net.up_bytes_per_s.tolist() == [5e5, 1.5e6, 4.5e7]
    assert fast.tolist() == [False, True]
    assert replayed(table, ("b",), 0.5)[0].size == 1
    with pytest.raises(UsageError, match="no source 'c'; it has a, b"):
        replayed(table, ("c",), 0.5)
    with pytest.raises(UsageError, match="uplink_ratio=0"):
        replayed(table, ("a",), 0.0)


def test_radio_power_is_that_of_the_rate():
    table = {
        "band": text_of(["low-band", "low-band", "mmWave"]), "down_Bps": np.array([1e5, 1e7, 1e8]),
        "up_Bps": np.zeros(3), "radio_power_mW": np.array([2000.0, 3000.0, 6000.0]),
    }  # fmt: skip
    watts = radio_watts(table, np.array([1e4, 1e6, 1e9, 1e8]), np.array([False, False, False, True]))
    assert watts.tolist() == pytest.approx([2.0, 2.5, 3.0, 6.0], abs=0.07)


TABLES = {
    "traces_availability/flash_intervals.parquet": "device,variant,start_s,end_s,state,censored\n"
    + "".join(f"{d},charging_wifi,{a},{b},{s},{c}\n" for d, a, b, s, c in ROWS),
    "traces_devices/flash_batch_train_time.csv": "task_model,device_class,mean_ms_per_batch,std_ms_per_batch,"
    "population_weight\ncnn_femnist,low(a),1642,99,50\ncnn_femnist,mid(b),588,23,40\ncnn_femnist,high(c),179,2,10\n",
    "traces_devices/flash_device_totals.parquet": "benchmark_name,ai_score\nA,6702\nB,\n",
    "traces_devices/ai_benchmark_2020_phones.parquet": "model,ram_gb,ai_score\nA,8,6702\n",
    "traces_network/speedtests_5g_4g.parquet": "radio_type,down_Bps,up_Bps,latency_ms\n4G-LTE,1e6,2e5,50\n"
    "5G-NSA-Low-Band,5e6,1e6,40\n5G-SA-Low-Band,4e6,3e6,60\n",
    "traces_power/radio_power_5g.parquet": "band,down_Bps,up_Bps,radio_power_mW\nmmWave,1e7,0,5000\n"
    "low-band,1e6,0,2500\n",
}


def test_a_recipe_combines_a_folder_of_tables_and_says_what_it_assumed(tmp_path):
    for name, text in TABLES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)  # CSV under any name: what a file holds decides
    fleet = phones_of(str(tmp_path), overhead_s=2.0, drop_out=0.1).build(300, seed=1)
    fleet.fit(300)
    tests = {(1e6, 2e5, np.float32(0.05)), (5e6, 1e6, np.float32(0.04)), (4e6, 3e6, np.float32(0.06))}
    rows = zip(fleet.downlink_bytes_per_s, fleet.uplink_bytes_per_s, fleet.latency_s, strict=True)
    assert {(float(d), float(u), late) for d, u, late in rows} == tests  # down, up and latency of one test together
    assert fleet.radio_w.tolist() == [2.5] * 300
    assert set(np.bincount(fleet.availability.row)) <= set(range(60, 150))
    assert (fleet.overhead_s, fleet.drop_out) == (2.0, 0.1)
    assert np.unique(fleet.memory_bytes / 2.0**30).tolist() == [3.0, 4.0, 6.0, 8.0]
    for word in ("sampled independently", "hours 12 to 132", "5 whole days", "3 speed tests", "assumed"):
        assert word in fleet.note
    shuffled = phones_of(str(tmp_path), days="shuffled").build(300, seed=1)
    assert np.unique(shuffled.availability.shift_s).tolist() == [0.0, DAY, 2 * DAY, 3 * DAY, 4 * DAY]
    assert phones_of(str(tmp_path), availability="always").build(3, seed=1).availability is None
    settings = plain(phones_of("tables", network="replay", sources=("norway_hsdpa",)))
    assert settings["network"] == "replay"
    assert settings["sources"] == ["norway_hsdpa"]
    with pytest.raises(UsageError, match="a fleet of 0 devices"):
        phones_of(str(tmp_path)).build(0, 0)


def test_a_missing_file_is_named_in_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"flash_batch_train_time.csv is neither in .*give the folder"):
        phones_of(str(tmp_path)).build(3, 0)
    (tmp_path / "traces_devices").mkdir()
    (tmp_path / "traces_devices" / "flash_batch_train_time.csv").write_text("x\n1\n")
    assert find(tmp_path, "flash_batch_train_time.csv").parent.name == "traces_devices"
    assert find(tmp_path / "traces_devices", "flash_batch_train_time.csv").is_file()


def test_a_setting_that_does_not_exist_is_refused_at_construction():
    with pytest.raises(UsageError, match="did you mean 'variant'"):
        phones_of("x", varient="charging_wifi")
    with pytest.raises(UsageError, match="'speedtests', 'replay' or 'flash-wifi'"):
        phones_of("x", network="wifi")


# the real tables


def folder():
    realdata.file("traces_network")
    realdata.file("traces_power")
    pytest.importorskip("pyarrow")
    return str(realdata.file("traces_availability").parent)


@pytest.mark.data
def test_the_phones_of_flash_are_available_as_their_table_says():
    """Its README: 17 % may train at once, 8 to 26 % over the day; median device 14 %; 4 % never; 25 % under 35 s."""
    fleet = read_fleet(f"{folder()}/traces_availability/flash_intervals.parquet")
    facts = describe_fleet(fleet, size_of(fleet)).facts
    assert facts["devices"] == 240
    assert facts["period_s"] == 5 * DAY
    assert facts["available_share_mean"] == pytest.approx(0.17, abs=0.01)
    assert facts["available_share_min"] == pytest.approx(0.08, abs=0.015)
    assert facts["available_share_max"] == pytest.approx(0.26, abs=0.015)
    assert facts["device_share"]["p50"] == pytest.approx(0.14, abs=0.015)
    assert facts["median_window_s"] == pytest.approx(14 * 60, rel=0.1)
    assert facts["windows_under_35_s_share"] == pytest.approx(0.25, abs=0.02)
    assert facts["never_available_share"] <= 0.045
    both = read_fleet(f"{folder()}/traces_availability/flash_intervals.parquet", "charging_wifi_or_batt50")
    assert np.array_equal(both.availability.start, fleet.availability.start)  # evaluating (state 1) is no training


@pytest.mark.data
@pytest.mark.parametrize("network", ["speedtests", "replay", "flash-wifi"])
@pytest.mark.parametrize("devices", ["flash", "flash-classes", "ai-benchmark-2020", "ai-benchmark-2025"])
def test_measured_phones_are_the_same_whatever_the_size_of_the_fleet(network, devices):
    recipe = phones_of(folder(), devices=devices, network=network, days="shuffled")
    few, many = recipe.build(50, seed=3), recipe.build(400, seed=3)
    who = np.arange(50)
    for name in ("flops_per_s", "downlink_bytes_per_s", "uplink_bytes_per_s", "latency_s", "memory_bytes", "kind"):
        assert np.array_equal(getattr(few, name), getattr(many, name)[:50]), name
    t = np.linspace(0, 20 * DAY, 50)
    assert np.array_equal(few.availability.session(t, who), many.availability.session(t, who))
    assert "sampled independently" in few.note
    assert few.kinds == KINDS
    assert 1e8 < np.median(many.flops_per_s) < 1e10
    assert 1e4 < np.median(many.uplink_bytes_per_s) <= np.median(many.downlink_bytes_per_s) < 1e9
    assert not np.array_equal(few.flops_per_s, recipe.build(50, seed=4).flops_per_s)
    many.fit(400)


@pytest.mark.data
def test_links_that_are_replayed_move_a_model_of_a_megabyte():
    fleet = phones_of(folder(), network="replay").build(2000, seed=0)
    cost = Cost(np.full(2000, 1e9), 1e6, 1e6, 0.0)
    one = phases(fleet, np.arange(2000), cost, 0.0)
    later = phases(fleet, np.arange(2000), cost, 12_345.0)
    assert np.isfinite(one.whole).all()
    assert (one.down > 0).all()
    assert (one.down != later.down).mean() > 0.9  # links change
    moved = fleet.network.downloaded(1.0, one.down, np.arange(2000))
    assert moved == pytest.approx(np.full(2000, 1e6), rel=1e-6)


@pytest.mark.data
def test_extrasensory_phones_charge_at_night():
    """Its README: charging and Wi-Fi holds in 64 % of the recorded minutes at 05 h and in 13 % at 09 h."""
    fleet = phones_of(folder(), availability="extrasensory", network="flash-wifi").build(30, seed=0)
    log = replace(fleet.availability, row=None)
    share = log.share(np.arange(7 * 24) * 3600.0 + 1800).reshape(7, 24).mean(0)
    assert share[[3, 4, 5]].mean() > 2 * share[[9, 10, 11]].mean()
    assert log.period_s == WEEK


@pytest.mark.data
def test_device_classes_and_radio_power_are_as_measured():
    fleet = phones_of(folder(), devices="flash-classes").build(5000, seed=1)
    shares = np.bincount(fleet.kind, minlength=3) / 5000
    assert shares == pytest.approx([0.5315, 0.4640, 0.0045], abs=0.02)
    for kind, seconds in enumerate((1.642, 0.588, 0.179)):
        speed = float(np.mean(fleet.flops_per_s[fleet.kind == kind]))
        assert 10 * FEMNIST_FLOPS / speed == pytest.approx(seconds, rel=0.02)
    assert 1.2 < fleet.radio_w.min() <= fleet.radio_w.max() < 9.7


@pytest.mark.data
def test_the_tables_of_links_are_fleets_of_their_own():
    folder()
    net = read_fleet(realdata.file("traces_network/throughput_traces.parquet"))
    assert size_of(net) == net.network.size == 828
    assert size_of(read_fleet(realdata.file("traces_network/speedtests_5g_4g.parquet"))) == 11023
    assert size_of(read_fleet(realdata.file("traces_network/flash_wifi_19_devices.csv"))) == 19
    assert size_of(read_fleet(realdata.file("traces_availability/extrasensory_minutes.parquet"))) == 30


@pytest.mark.data
@pytest.mark.parametrize(
    "table",
    ["traces_devices/ai_benchmark_2020_phones.parquet", "traces_devices/ai_benchmark_2025_socs.parquet",
     "traces_devices/flash_batch_train_time.csv", "traces_devices/flash_device_totals.parquet",
     "traces_power/radio_power_5g.parquet"],
)  # fmt: skip
def test_a_table_that_is_no_fleet_of_its_own_says_what_takes_it(table):
    with pytest.raises(UsageError, match=r"is a table for fleet.phones_of\(FOLDER\)"):
        read_fleet(realdata.file(table))
