"""Fleets as files: what is written reads back equal; what is wrong is told in one line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.fleet import Availability, Fleet, generate
from fieldfare.fleet.columns import read_columns
from fieldfare.fleet.describe import describe_fleet, size_of
from fieldfare.fleet.network import Network
from fieldfare.fleet.parquet import NUMBERS, write_fleet
from fieldfare.fleet.traces import from_file, read_fleet, take_devices

DAY = 86400.0


def same(a, b):
    """Whether two fleets are equal, to the bit where they hold arrays."""
    for name in (*NUMBERS, "kind"):
        x, y = getattr(a, name), getattr(b, name)
        assert np.ndim(x) == np.ndim(y), name
        assert np.array_equal(np.asarray(x), np.asarray(y)), name
    assert (a.kinds, a.name, a.note, a.noise, a.drop_out) == (b.kinds, b.name, b.note, b.noise, b.drop_out)
    assert a.flags.keys() == b.flags.keys()
    assert all(np.array_equal(a.flags[k], b.flags[k]) for k in a.flags)
    for part, names in (
        ("availability", ("offsets", "start", "end", "period_s", "row", "shift_s")),
        ("network", ("offsets", "t_s", "down_bytes_per_s", "up_bytes_per_s", "period_s", "row", "shift_s")),
    ):
        x, y = getattr(a, part), getattr(b, part)
        assert (x is None) == (y is None), part
        for name in names if x is not None else ():
            u, v = getattr(x, name), getattr(y, name)
            assert (u is None) == (v is None), name
            assert u is None or (np.array_equal(u, v) and np.asarray(u).dtype == np.asarray(v).dtype), name
    return True


def everything(n=6):
    f = np.float32
    night = Availability.of([[(0, 3600.5), (7200, 10800)], [], [(80000, DAY)]], period_s=DAY)
    net = Network.of([([0, 10, 25.5], [1e6, 0, 3e6], [2e5, 1e5, 0]), ([0.0], [5e5], [1e5])], period_s=40.0)
    return Fleet(
        flops_per_s=np.linspace(0.3e9, 5e9, n, dtype=f),
        downlink_bytes_per_s=np.full(n, 1.1e6, f),
        uplink_bytes_per_s=np.geomspace(1e5, 1e6, n, dtype=f),
        memory_bytes=np.full(n, 4.1e9, f),
        latency_s=np.linspace(0, 0.3, n, dtype=f),
        overhead_s=1.5,
        timezone_s=np.linspace(-3600, 7200, n, dtype=f),
        noise=0.1,
        drop_out=0.05,
        flags={"wifi": np.arange(n) % 2 == 0},
        name="all",
        note="made by hand, ä",
        kind=np.array([2, 0, 1, 0, 0, 2], np.int16),
        kinds=("low", "mid", "high"),
        availability=replace(night, row=np.array([0, 1, 2, 0, 1, 2], np.int32), shift_s=np.arange(n, dtype=f) * 0.1),
        network=net.take(np.array([0, 1, 0, 1, 0, 1]), np.arange(n, dtype=f)),
    )


def need(format):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    return format


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_a_fleet_written_reads_back_equal(tmp_path, format):
    fleet = everything()
    assert same(read_fleet(write_fleet(fleet, tmp_path / "fleet", format=need(format))), fleet)


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_a_generated_fleet_reads_back_equal(tmp_path, format):
    fleet = generate("flint-strict").build(300, seed=1)
    fleet = replace(fleet, kind=fleet.kind.astype(np.int16))
    assert same(read_fleet(write_fleet(fleet, tmp_path / "f", format=need(format))), fleet)


def test_links_said_to_be_slow_are_read_back_as_such(tmp_path):
    fleet = Fleet(uplink_bytes_per_s=np.array([5.0, 50.0], np.float32), slow_links=True)
    assert same(back := read_fleet(write_fleet(fleet, tmp_path / "f", format="csv")), fleet)
    assert back.slow_links
    (tmp_path / "f" / "fleet.json").write_text('{"slow_links": "yes"}')
    with pytest.raises(UsageError, match="slow_links = 'yes'; use true or false"):
        read_fleet(tmp_path / "f")


def test_a_fleet_of_plain_numbers_keeps_its_size(tmp_path):
    back = read_fleet(write_fleet(Fleet(flops_per_s=3e9, overhead_s=0.5), tmp_path / "f", n=7, format="csv"))
    assert size_of(back) == 7
    assert (back.flops_per_s == 3e9).all()
    assert back.overhead_s == 0.5


def test_availability_that_ends_and_one_without_sessions_read_back_equal(tmp_path):
    for i, available in enumerate((Availability.of([[(0, 5.25), (7, np.inf)], []]), Availability.of([[], []], DAY))):
        fleet = Fleet(availability=available, name="x")
        assert same(read_fleet(write_fleet(fleet, tmp_path / str(i), format="csv")), fleet)


def test_writing_again_leaves_no_table_of_before(tmp_path):
    write_fleet(everything(), tmp_path / "f", format="csv")
    assert read_fleet(write_fleet(Fleet(name="x"), tmp_path / "f", n=2, format="csv")).availability is None


def write(place, text):
    place.write_text(text, encoding="utf-8")
    return place


def test_a_table_of_availability_alone_repeats_by_its_whole_days_and_says_so(tmp_path):
    days = "".join(f"0,{d * 86400 + 600},{d * 86400 + 4200}\n" for d in range(3)) + "1,100,260000\n"
    fleet = read_fleet(write(tmp_path / "log.csv", "device,start_s,end_s\n" + days))
    assert fleet.availability.period_s == 3 * DAY
    assert "3 whole days" in fleet.note
    assert fleet.availability.at(3 * DAY + 700.0, np.array([0])).all()


def test_a_table_of_devices_alone_is_a_fleet(tmp_path):
    table = "flops_per_s,kind,flag_wifi,downlink_bytes_per_s\n1e9,old,true,2e6\n3e9,new,False,\n"
    with pytest.raises(UsageError, match="device 1 has downlink_bytes_per_s = nan"):
        read_fleet(write(tmp_path / "d.csv", table))
    fleet = read_fleet(write(tmp_path / "d.csv", table.replace(",\n", ",4e6\n")))
    assert fleet.kinds == ("new", "old")
    assert fleet.kind.tolist() == [1, 0]
    assert fleet.flags["wifi"].tolist() == [True, False]
    assert fleet.downlink_bytes_per_s.tolist() == [2e6, 4e6]
    assert fleet.overhead_s == Fleet().overhead_s


def test_a_table_of_links_alone_is_replayed_and_its_means_are_the_columns(tmp_path):
    table = "trace,t_s,down_bytes_per_s,up_bytes_per_s\n0,0,1e6,1e5\n0,10,3e6,3e5\n1,0,5e5,1e5\n"
    fleet = read_fleet(write(tmp_path / "n.csv", table))
    assert fleet.downlink_bytes_per_s.tolist() == [2e6, 5e5]
    assert fleet.network.download(0.0, 1.3e7, np.array([0])).tolist() == [11.0]


def test_a_recipe_from_a_file_samples_where_the_sizes_differ(tmp_path):
    place = write_fleet(everything(), tmp_path / "f", format="csv")
    recipe = from_file(str(place))
    assert same(recipe.build(6, seed=5), read_fleet(place))
    many, more = recipe.build(40, seed=5), recipe.build(50, seed=5)
    assert same(take_devices(more, np.arange(40)), replace(many, note=more.note))
    assert "40 devices sampled" in many.note
    assert set(many.flops_per_s.tolist()) == set(everything().flops_per_s.tolist())
    speeds = everything().flops_per_s.tolist()
    who = np.array([speeds.index(s) for s in many.flops_per_s.tolist()])
    asked = np.arange(40)
    old, new = everything(), many
    t = np.linspace(0, 3 * DAY, 40)
    assert np.array_equal(new.availability.session(t, asked), old.availability.session(t, who))
    assert np.array_equal(new.network.download(t, 1e6, asked), old.network.download(t, 1e6, who))
    assert describe_fleet(many, 40).facts["devices"] == 40


BAD = [
    ("device,start_s,end_s\n0,0,100\n0,50,90000\n", r"device 0: intervals \(0, 100\) and \(50, 90000\) overlap"),
    ("device,start_s,end_s\n0,0,90000\n3,500,100\n", r"device 3: its interval \(500, 100\) runs backwards"),
    ("device,start_s,end_s\n0,0,600\n", "holds 0.167 hours: to repeat it, at least one whole day"),
    ("device,start_s,end_s\n0,0,inf\n", r"device 0: its interval \(0, inf\) is not finite: give both times in seconds"),
    ("device,start_s,end_s\n0,0,9e4\n2,5,nan\n", r"device 2: its interval \(5, nan\) is not finite"),
    ("device,start_s,end_s\n0,0,5e5\n0,1e6,3e8\n", "lasts 9.51 years, .* look like milliseconds; give seconds"),
    ("device,start_s,end_s\n0,1700000000000,1700086400000\n", "from second 1.7e\\+12 on: .* milliseconds"),
    ("flops_per_s,overhead_s\n1e9,1000\n1e9,2000\n", "overhead_s has a median of 1500, .* give seconds"),
    ("device,start_s,end_s\n0.5,0,600\n", "'device' must hold whole numbers from 0"),
    ("device,start_s,end_s\n-1,0,600\n", "'device' must hold whole numbers from 0"),
    ("device,start_s,end_s,colour\n0,0,600,red\n", "unknown column 'colour'"),
    ("device,start_s,end_s\n0,0,later\n", "'end_s' must hold numbers"),
    ("device,start_s,end_s\n0,0\n", "line 2: 2 fields, the header has 3"),
    ("flops_per_s\n1e9\n0\n", "device 1 has flops_per_s = 0.0: use a finite number above zero"),
    ("flops_per_s\n1.5\n3\n", "flops_per_s has a median of 2.25, which looks like another unit: give FLOP/s"),
    ("memory_bytes\n4\n6\n", "memory_bytes has a median of 5, .* give bytes"),
    ("latency_s\n40\n60\n", "give seconds"),
    ("downlink_bytes_per_s\n10\n100\n", "median of 55.*Mbit/s"),
    ("flops_per_s,downlink_Mbps\n1e9,100\n", r"'downlink_Mbps' is in Mbps: .*125000.*'downlink_bytes_per_s'"),
    ("flops_per_second\n1e9\n", "unknown column 'flops_per_second': did you mean 'flops_per_s'"),
    ("flops_per_s,flag_wifi\n1e9,perhaps\n", "'flag_wifi' must hold true or false"),
    ("flops_per_s,kind\n1e9,\n", "device 0 has no kind"),
    ("device,flops_per_s\n1,1e9\n0,1e9\n", "device must be 0 to 1 in order"),
    ("flops_per_s\n", "hold no device"),
    ("flops_per_s,flops_per_s\n1,1\n", "header of different names"),
    ("trace,t_s,down_bytes_per_s,up_bytes_per_s\n0,0,0,1e5\n", "downlink throughput 0 throughout"),
    ("trace,t_s,down_bytes_per_s,up_bytes_per_s\n0,5,1e6,1e5\n0,2,1e6,1e5\n", "must begin at 0 and ascend"),
    ("trace,t_s,down_bytes_per_s,up_bytes_per_s\n1,0,1e6,1e5\n", "trace 0 has no rows"),
    ("trace,t_s,down_bytes_per_s,up_bytes_per_s\n0,0,1e6,\n", "no uplink"),
    ("trace,t_s,down_mbit,up_bytes_per_s\n0,0,10,1e5\n", "'down_mbit' is in mbit: .*125000.*'down_bytes_per_s'"),
    ("a,b\n1,2\n", "unknown column 'a'"),
]


@pytest.mark.parametrize(("text", "words"), BAD, ids=range(len(BAD)))
def test_a_bad_table_is_refused_in_one_line(tmp_path, text, words):
    with pytest.raises(UsageError, match=words) as told:
        read_fleet(write(tmp_path / "t.csv", text))
    assert "\n" not in str(told.value)


def test_a_description_that_is_wrong_is_refused_in_one_line(tmp_path):
    place = write_fleet(everything(), tmp_path / "f", format="csv")
    good = json.loads((place / "fleet.json").read_text())
    for change, words in (
        ({"noise": "loud"}, "noise must be a number"),
        ({"columns": {"speed": 1.0}}, "columns has 'speed'"),
        ({"kinds": ["low"]}, "kind 'high' is not among the kinds"),
        ({"version": 2}, "no description of a fleet of version 1"),
        ({"columns": []}, "no description of a fleet"),
        ({"availability_period_s": 10.0}, r"outside \[0, 10\]"),
    ):
        (place / "fleet.json").write_text(json.dumps(good | change))
        with pytest.raises(UsageError, match=words):
            read_fleet(place)
    (place / "fleet.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match="is not JSON"):
        read_fleet(place)


def test_files_that_are_not_there_or_not_tables_are_refused_in_one_line(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read_fleet(tmp_path / "none.parquet")
    with pytest.raises(UsageError, match="holds no devices, availability or network table"):
        read_fleet(tmp_path)
    (tmp_path / "x").write_bytes(b"ab\x00\x01\xff" * 30)
    with pytest.raises(UsageError, match="neither Parquet, CSV, JSON nor a pickle"):
        read_fleet(tmp_path / "x")
    (tmp_path / "y.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(UsageError, match="neither Parquet nor CSV"):
        read_fleet(tmp_path / "y.csv")
    (tmp_path / "z.parquet").write_bytes(b"PAR1 and then nothing")
    pytest.importorskip("pyarrow")
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        read_fleet(tmp_path / "z.parquet")


def test_a_table_too_large_is_refused_before_it_is_read(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    zeros = pa.table({"device": np.zeros(1_000_000, np.int32), "start_s": np.zeros(1_000_000, np.float32)})
    pq.write_table(zeros, tmp_path / "z.parquet")
    assert (tmp_path / "z.parquet").stat().st_size < 20_000  # runs of one value: the file is small, its columns are not
    with pytest.raises(UsageError, match=r"takes about 1\.6e\+07 bytes of memory, more than the 1e\+06 allowed"):
        read_columns(tmp_path / "z.parquet", max_bytes=1e6)
    with pytest.raises(UsageError, match="too many for max_bytes"):
        read_fleet(write(tmp_path / "d.csv", "device,start_s,end_s\n2000000000,0,90000\n"), max_bytes=1e9)
    with pytest.raises(UsageError, match="more than"):
        read_columns(write(tmp_path / "e.csv", "a\n" + "1\n" * 5000), max_bytes=1e4)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1....PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"fieldfare\[parquet\]"):
        read_fleet(tmp_path / "x.parquet")
    with pytest.raises(MissingExtra, match=r"fieldfare\[parquet\]"):
        write_fleet(everything(), tmp_path / "f")
    assert same(read_fleet(write_fleet(everything(), tmp_path / "g", format="csv")), everything())


def test_text_of_parquet_may_be_plain_or_a_dictionary_in_many_pieces(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    words = ["b", "a", None, "c", "a", "b"]
    for name, column in (("plain", pa.array(words)), ("coded", pa.array(words).dictionary_encode())):
        pq.write_table(pa.table({"w": column, "x": [1, None, 3, 4, 5, 6]}), tmp_path / name, row_group_size=2)
        columns = read_columns(tmp_path / name)
        read = columns["w"]
        assert [read.names[c] if c >= 0 else None for c in read.codes] == words
        assert read.mask("a").tolist() == [False, True, False, False, True, False]
        assert np.isnan(columns["x"][1])
