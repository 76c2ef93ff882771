"""Traces in parts: rows in any order, shared out file by file, to the disk or over Ray, give the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("duckdb")

from test_assess_trace import CONFIG, at, log_of, spanning

from fieldfare.assess.trace import Criteria, Recipe, TraceConfig, build_trace
from fieldfare.assess.trace.criteria import with_changes
from fieldfare.assess.trace.sql import connected
from fieldfare.core.errors import UsageError


@pytest.fixture(scope="module")
def half_known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up log in which half of the clients tell their states."""
    from fieldfare.assess.trace import generate_log

    return generate_log(tmp_path_factory.mktemp("log") / "log.parquet", Recipe(clients=150, known=0.5), seed=2)


def test_rows_of_the_same_times_give_the_same_bits_in_any_order(tmp_path):
    rng = np.random.default_rng(1)
    rows = []
    for client in range(40):
        for start in rng.integers(0, 20, 6) * 1000:
            rows += [{"client": client, "start_s": int(start), "end_s": int(start) + 60, "device_class": kind}
                     for kind in rng.permutation(["a", "b", "c"])]  # fmt: skip
    found = []
    for i in range(3):
        order = rng.permutation(len(rows))
        folder = tmp_path / str(i)
        folder.mkdir()
        config = TraceConfig(partitions=1 + i, threads=1 + i % 2)
        found.append(build_trace(log_of(folder, spanning([rows[j] for j in order])), folder / "out", config))
    assert found[0].number("sessions") == len({(row["client"], row["start_s"]) for row in rows}) + 2
    tables = [{name: table["content"] for name, table in one.manifest["tables"].items()} for one in found]
    assert tables[0] == tables[1] == tables[2]


def test_more_parts_than_clients_are_as_good_as_one(tmp_path):
    log = log_of(tmp_path, spanning([at(100, 200, wifi="true"), at(300, 400, wifi="")]))
    for criteria in (Criteria(wifi=True), Criteria()):
        one = build_trace(log, tmp_path / "one", TraceConfig(criteria))
        many = build_trace(log, tmp_path / "many", TraceConfig(criteria, partitions=9))
        assert one.sha256 == many.sha256


def in_files(folder: Path, log: Path, files: int, end: str) -> list[str]:
    """A log dealt to several files, the last without the columns of regions, all ids of the first text of digits."""
    import duckdb

    folder.mkdir()
    for i in range(files):
        rest = "EXCLUDE (region)" if i == files - 1 and end == "parquet" else ""
        ids = "client % 7 = 3" if i == 0 else f"client % 7 <> 3 AND client % {files - 1} = {i - 1}"
        select = f"SELECT * {rest} REPLACE (('0' || client) AS client) FROM read_parquet('{log}') WHERE {ids}"
        duckdb.sql(f"COPY ({select}) TO '{folder}/{i}.{end}' ({'HEADER' if end == 'csv' else 'FORMAT parquet'})")
    return [f"{folder}/{i}.{end}" for i in range(files)]


@pytest.mark.parametrize("end", ["parquet", "csv"])
def test_rows_shared_out_file_by_file_are_those_of_the_whole_log(half_known, tmp_path, end):
    from collections import Counter

    from fieldfare.assess.trace.part import Plan, count_part, merged, share_out
    from fieldfare.assess.trace.sessions import open_log, pieces_of_files

    pytest.importorskip("pyarrow")
    files = in_files(tmp_path / "log", half_known, 3, end)
    with connected() as con:
        log = open_log(con, files, {}, "k", 2)
        pieces = pieces_of_files(con, files, 4000)
    assert (len(pieces) > 4) == (end == "parquet")
    plan = Plan(log, CONFIG.criteria, 0, 4, threads=1)
    rows = [share_out(plan, pieces[i::3]) for i in range(3)]
    assert all(len(one) == 4 for one in rows)
    shared = [count_part(plan, part, [one[part] for one in rows]) for part in range(4)]
    whole = [count_part(plan, part) for part in range(4)]
    assert sum(sum(one["states"].values()) for one in whole) > 5000
    assert shared == whole
    assert merged(shared) == merged([count_part(Plan(log, CONFIG.criteria, 0, 1), 0)])
    assert isinstance(shared[0]["states"], Counter)


def test_a_file_that_a_machine_does_not_see_is_fetched_there_or_named(half_known, tmp_path):
    from fieldfare.assess.artefact import digest
    from fieldfare.assess.trace.spread import _here

    pytest.importorskip("fsspec")
    there = f"file://{half_known}"
    assert _here(str(half_known), tmp_path, None) == str(half_known)
    assert _here("/elsewhere/log.parquet", tmp_path, (there, digest(half_known))) == str(half_known)
    with pytest.raises(UsageError, match="all machines must see the log"):
        _here("/elsewhere/log.parquet", tmp_path, None)
    with pytest.raises(UsageError, match="was changed while"):
        _here("/elsewhere/log.parquet", tmp_path, (there, "0" * 64))


@pytest.mark.slow
def test_parts_on_ray_give_the_same_bits(half_known, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr("fieldfare.assess.trace.spread.ROWS_A_READER", 4000)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    try:
        files, csv = in_files(tmp_path / "p", half_known, 4, "parquet"), in_files(tmp_path / "c", half_known, 3, "csv")
        for name, log, parts in (("file", half_known, 3), ("one", half_known, 1), ("files", files, 5), ("csv", csv, 2)):
            here = build_trace(log, tmp_path / "here", CONFIG)
            there = build_trace(log, tmp_path / "ray", with_changes(CONFIG, ["on=ray", f"partitions={parts}"]))
            assert here.sha256 == there.sha256, name
        no_states = TraceConfig(criteria=Criteria(min_session_s=20.0), partitions=2)
        here = build_trace(half_known, tmp_path / "here", no_states)
        assert build_trace(half_known, tmp_path / "ray", with_changes(no_states, ["on=ray"])).sha256 == here.sha256
        wanted = TraceConfig(criteria=Criteria(charging=True), on="ray")
        silent = log_of(tmp_path, spanning([at(100, 200, charging=""), at(300, 400, charging="")]))
        with pytest.raises(UsageError, match="no session of the log tells charging") as told:
            build_trace(silent, tmp_path / "none", wanted)
        assert "\n" not in str(told.value)
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_a_trace_starts_a_ray_of_its_own_and_says_what_failed_there_in_one_line(half_known, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr("fieldfare.assess.trace.spread.RAY_BYTES", 1e6)
    with pytest.raises(UsageError, match="the log cannot be computed: ") as told:
        build_trace(half_known, tmp_path / "ray", with_changes(CONFIG, ["on=ray"]))
    assert "\n" not in str(told.value)
