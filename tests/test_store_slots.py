"""Client state: what was put is got, what was marked is restored, to the bit."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.core.errors import UsageError
from fieldfare.store import files
from fieldfare.store import slots as slots_file
from fieldfare.store.files import DiskFull
from fieldfare.store.slots import Slots


def ids(*clients: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(clients, np.int64)


def rows(n: int, size: int, seed: int = 0) -> Any:
    return np.random.Generator(np.random.Philox(seed)).normal(size=(n, size)).astype(np.float32)


def logs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_client_never_written_is_fresh_and_zero() -> None:
    slots = Slots(None, {"c": 3})
    got, fresh = slots.get("c", ids(5, 2))
    assert got.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert got.dtype == np.float32
    assert fresh.tolist() == [True, True]


@given(st.integers(0, 4), st.data())
def test_rows_read_piece_by_piece_are_those_got_at_once(written: int, data: st.DataObject) -> None:
    slots = Slots(None, {"c": 3})
    slots.put("c", np.arange(written), rows(written, 3))
    asked = np.array(data.draw(st.lists(st.integers(0, 6), max_size=6, unique=True)), np.int64)
    whole, fresh = slots.get("c", asked)
    later, same = slots.get_lazily("c", asked)
    assert (later.shape, later.dtype, later.size, later.nbytes) == (whole.shape, whole.dtype, whole.size, whole.nbytes)
    assert (later.strides[0] == 0) == (whole.strides[0] == 0)
    assert same.tolist() == fresh.tolist()
    cut = data.draw(st.integers(0, len(asked)))
    assert np.array_equal(np.concatenate([later[:cut], later[cut:]]), whole)
    assert np.array_equal(later, whole)
    assert np.array_equal(np.asarray(later, np.float64), whole)
    back = pickle.loads(pickle.dumps(later))
    assert type(back) is np.ndarray
    assert np.array_equal(back, whole)


def test_what_was_put_is_got_in_the_order_asked() -> None:
    slots = Slots(None, {"c": 2, "h": 1})
    slots.put("c", ids(9, 4), np.array([[1, 2], [3, 4]], np.float32))
    got, fresh = slots.get("c", ids(4, 7, 9, 1000))
    assert got.tolist() == [[3, 4], [0, 0], [1, 2], [0, 0]]
    assert fresh.tolist() == [False, True, False, True]
    assert slots.get("h", ids(4))[1].tolist() == [True]
    assert slots.count("c") == 2


def test_rows_got_are_copies() -> None:
    slots = Slots(None, {"c": 1})
    slots.put("c", ids(1), np.ones((1, 1), np.float32))
    got, _ = slots.get("c", ids(1, 2))
    got += 5
    again, fresh = slots.get("c", ids(1, 2))
    assert again.tolist() == [[1], [0]]
    assert fresh.tolist() == [False, True]


def test_rows_put_are_copied_and_not_looked_at_again() -> None:
    slots, mine = Slots(None, {"c": 1}), np.ones((1, 1), np.float32)
    slots.put("c", ids(1), mine)
    mine += 1
    assert slots.get("c", ids(1))[0].tolist() == [[1]]


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "flush", "restore"]), st.sets(st.integers(0, 40), max_size=12), st.integers(0, 99)
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_puts_flushes_and_restores_in_any_order_agree_with_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[str, set[int], int]]
) -> None:
    folder = tmp_path_factory.mktemp("slots")
    slots = Slots(folder, {"c": 2})
    truth: dict[int, list[float]] = {}
    marks: list[tuple[Any, dict[int, list[float]]]] = [
        ({}, {})
    ]  # of the two snapshots that are kept, and of one that may not have been written
    for what, clients, seed in script:
        chosen = np.array(sorted(clients, key=lambda c: (c * 7 + seed) % 13), np.int64)
        if what == "put":
            new = rows(len(chosen), 2, seed)
            slots.put("c", chosen, new)
            truth |= {int(c): row.tolist() for c, row in zip(chosen, new, strict=True)}
        elif what == "flush":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(slots_file, "_SLACK", 0)  # compact often
                marks = [*marks[-2:], (json.loads(json.dumps(slots.flush())), dict(truth))]
        else:
            marks = marks[: max(1, len(marks) - seed % 3)]  # at times the newest are not there, or torn
            mark, then = marks[-1]
            slots.close()
            slots = Slots.open(folder, {"c": 2}, mark)
            truth = dict(then)
        got, fresh = slots.get("c", np.arange(50))
        assert [c for c in range(50) if not fresh[c]] == sorted(truth)
        assert all(got[c].tolist() == row for c, row in truth.items())
    slots.close()


def test_only_what_changed_is_appended(tmp_path: Path) -> None:
    slots = Slots(tmp_path, {"c": 8})
    slots.put("c", np.arange(1000), rows(1000, 8))
    first = slots.flush()["c"]["bytes"]
    assert slots.flush()["c"]["bytes"] == first
    slots.put("c", ids(3, 1500), rows(2, 8))
    mark = slots.flush()
    assert mark["c"]["bytes"] - first < 200
    slots.close()
    again = Slots.open(tmp_path, {"c": 8}, mark)
    assert again.flush() == mark
    again.close()


def test_no_mark_is_given_before_the_disk_has_the_rows(tmp_path: Path, monkeypatch: Any) -> None:
    slots = Slots(tmp_path, {"c": 1})
    slots.put("c", ids(1), np.ones((1, 1), np.float32))
    slots.flush()
    slots.put("c", ids(1), np.zeros((1, 1), np.float32))
    monkeypatch.setattr(slots_file.os, "fsync", lambda file: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        slots.flush()


def test_a_restored_slot_goes_on_where_it_was(tmp_path: Path) -> None:
    slots = Slots(tmp_path, {"c": 2})
    slots.put("c", ids(1), np.ones((1, 2), np.float32))
    mark = slots.flush()
    slots.put("c", ids(1, 2), np.full((2, 2), 9, np.float32))
    slots.flush()
    slots.close()
    again = Slots.open(tmp_path, {"c": 2}, mark)
    assert again.get("c", ids(1, 2))[0].tolist() == [[1, 1], [0, 0]]
    again.put("c", ids(2), np.full((1, 2), 5, np.float32))
    last = again.flush()
    again.close()
    assert Slots.open(tmp_path, {"c": 2}, last).get("c", ids(1, 2))[0].tolist() == [[1, 1], [5, 5]]


def test_a_log_is_compacted_and_the_last_three_marks_stay_good(tmp_path: Path) -> None:
    slots = Slots(tmp_path, {"c": 100})
    marks = []
    for turn in range(40):
        slots.put("c", np.arange(200), np.full((200, 100), turn, np.float32))
        marks.append(slots.flush())
        assert {f"c.{mark['c']['generation']:06d}.log" for mark in marks[-3:]} == set(logs(tmp_path))
        assert marks[-1]["c"]["bytes"] <= 4 * 200 * 408 + slots_file._SLACK + 200
    assert marks[-1]["c"]["generation"] > 3
    slots.close()
    for turn in (39, 38, 37):
        again = Slots.open(tmp_path, {"c": 100}, marks[turn])
        assert (again.get("c", np.arange(200))[0] == turn).all()
        again.close()


def test_a_restart_without_a_mark_begins_a_new_log_and_forgets_the_old(tmp_path: Path) -> None:
    old = Slots(tmp_path, {"c": 1})
    old.put("c", ids(1), np.ones((1, 1), np.float32))
    old.flush()
    old.close()
    slots = Slots(tmp_path, {"c": 1})
    assert slots.get("c", ids(1))[1].tolist() == [True]
    for _ in range(3):
        slots.put("c", ids(2), np.ones((1, 1), np.float32))
        mark = slots.flush()
    slots.close()
    assert logs(tmp_path) == ["c.000002.log"]
    assert Slots.open(tmp_path, {"c": 1}, mark).get("c", ids(1, 2))[1].tolist() == [True, False]


def test_names_of_slots_may_hold_any_text_and_stay_in_the_folder(tmp_path: Path) -> None:
    sizes = {"../a/b": 1, "c_i": 1, "c_i.000001": 1, "é": 0}
    slots = Slots(tmp_path / "slots", sizes)
    for slot, size in sizes.items():
        slots.put(slot, ids(1), np.ones((1, size), np.float32))
    mark = slots.flush()
    slots.close()
    assert [path.name for path in tmp_path.iterdir()] == ["slots"]
    again = Slots.open(tmp_path / "slots", sizes, mark)
    assert all(not again.get(slot, ids(1))[1][0] for slot in sizes)
    again.close()


def test_without_a_directory_the_mark_is_empty_and_nothing_is_lost() -> None:
    slots = Slots(None, {"c": 1})
    slots.put("c", ids(1), np.ones((1, 1), np.float32))
    assert slots.flush() == {}
    assert slots.get("c", ids(1))[1].tolist() == [False]
    with pytest.raises(UsageError, match="no directory"):
        slots.restore({"c": {"generation": 1, "bytes": 0, "clients": 0, "size": 1}})


@pytest.mark.parametrize(
    ("sizes", "says"), [({}, "does not know"), ({"c": 5}, "stored with 2 numbers per client, this job has 5")]
)
def test_a_mark_of_another_job_is_refused(tmp_path: Path, sizes: dict[str, int], says: str) -> None:
    slots = Slots(tmp_path, {"c": 2})
    slots.put("c", ids(1), np.ones((1, 2), np.float32))
    mark = slots.flush()
    slots.close()
    with pytest.raises(UsageError, match=says):
        Slots.open(tmp_path, sizes, mark)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_log_damaged_anywhere_before_its_mark_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("slots")
    slots = Slots(folder, {"c": 2})
    for turn in range(3):
        slots.put("c", ids(turn, turn + 1), rows(2, 2, turn))
        mark = slots.flush()
    slots.close()
    (path,) = folder.iterdir()
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    path.write_bytes(raw)
    with pytest.raises(UsageError, match="damaged or cut short"):
        Slots.open(folder, {"c": 2}, mark)


def test_a_missing_log_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is missing"):
        Slots.open(tmp_path, {"c": 1}, {"c": {"generation": 1, "bytes": 9, "clients": 1, "size": 1}})


def test_a_full_disk_loses_nothing_and_the_next_flush_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    slots = Slots(tmp_path, {"c": 4})
    slots.put("c", ids(1), np.ones((1, 4), np.float32))
    good = slots.flush()
    slots.put("c", ids(1, 2), np.full((2, 4), 2, np.float32))
    written = [0]
    write = files.os.write

    def full(file: int, data: Any) -> int:
        written[0] += 1
        if written[0] == 2:
            raise OSError(28, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(files.os, "write", full)
    with pytest.raises(DiskFull, match="disk is full"):
        slots.flush()
    monkeypatch.undo()
    assert (tmp_path / "c.000001.log").stat().st_size == good["c"]["bytes"]
    later = slots.flush()
    slots.close()
    assert Slots.open(tmp_path, {"c": 4}, later).get("c", ids(1, 2))[0][:, 0].tolist() == [2, 2]
    assert Slots.open(tmp_path, {"c": 4}, good).get("c", ids(1, 2))[0][:, 0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("clients", "new", "says"),
    [
        (ids(1), np.ones((1, 3), np.float32), "do not fit"),
        (ids(1, 1), np.ones((2, 2), np.float32), "twice"),
        (ids(3, 1, 3), np.ones((3, 2), np.float32), "twice"),
        (ids(-1), np.ones((1, 2), np.float32), "client ids from -1"),
        (ids(1 << 40), np.ones((1, 2), np.float32), "client ids from"),
        (np.array([0.5]), np.ones((1, 2), np.float32), "whole numbers"),
    ],
)
def test_rows_that_do_not_fit_are_refused_in_one_line(clients: Any, new: Any, says: str) -> None:
    slots = Slots(None, {"c": 2})
    with pytest.raises(UsageError, match=says):
        slots.put("c", clients, new)
    assert slots.count("c") == 0


def test_an_unknown_slot_is_refused_naming_those_that_are() -> None:
    with pytest.raises(UsageError, match="'x': this job keeps c"):
        Slots(None, {"c": 1}).get("x", ids(1))


def test_a_population_of_a_million_takes_megabytes(tmp_path: Path) -> None:
    tracemalloc.start()
    slots = Slots(None, {"c": 10}, 1_000_000)
    slots.put("c", np.arange(0, 1_000_000, 1000), rows(1000, 10))
    slots.get("c", np.arange(0, 1_000_000, 500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_an_empty_put_and_get_are_nothing() -> None:
    slots = Slots(None, {"c": 2})
    slots.put("c", ids(), np.empty((0, 2), np.float32))
    got, fresh = slots.get("c", ids())
    assert (got.shape, fresh.shape) == ((0, 2), (0,))


def test_records_larger_than_a_piece_are_split_and_read_back(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(slots_file, "_RECORD_BYTES", 100)
    slots = Slots(tmp_path, {"c": 3})
    new = rows(50, 3)
    slots.put("c", np.arange(50)[::-1].copy(), new)
    mark = slots.flush()
    slots.close()
    again = Slots.open(tmp_path, {"c": 3}, mark)
    assert np.array_equal(again.get("c", np.arange(50)[::-1])[0], new)
    again.close()
