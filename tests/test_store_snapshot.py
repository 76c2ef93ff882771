"""Snapshots: whole or known not to be."""

from __future__ import annotations

import errno
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.core.errors import UsageError
from fieldfare.store import files
from fieldfare.store.files import DiskFull
from fieldfare.store.snapshot import Snapshots, Torn, read_snapshot, write_snapshot

ARRAYS = [
    np.arange(5, dtype=np.float32), np.zeros((0, 3)), np.array(7), np.array([True, False]),
    np.arange(6).reshape(2, 3).T, np.array(["ab", "c"]), np.arange(200, dtype=np.uint8), np.array([1 + 2j]),
]  # fmt: skip


def test_a_snapshot_comes_back_with_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "one.ffs"
    size = write_snapshot(path, {"a": [1, None, "ü"]}, ARRAYS)
    assert size == path.stat().st_size
    tree, arrays = read_snapshot(path)
    assert tree == {"a": [1, None, "ü"]}
    for want, got in zip(ARRAYS, arrays, strict=True):
        assert (got.dtype, got.shape, got.tobytes()) == (want.dtype, want.shape, want.tobytes())
        assert not got.flags.writeable


def test_arrays_start_at_multiples_of_64_bytes(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "s", 0, [np.full(3, 7.25), np.full(2, 9.5)])
    raw = (tmp_path / "s").read_bytes()
    assert raw.index(struct.pack("<d", 7.25)) % 64 == raw.index(struct.pack("<d", 9.5)) % 64 == 0


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_snapshot_with_any_byte_changed_or_cut_anywhere_is_torn(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("torn") / "s"
    write_snapshot(path, {"k": "v"}, ARRAYS)
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    path.write_bytes(raw)
    with pytest.raises(Torn) as error:
        read_snapshot(path)
    assert "\n" not in str(error.value)


def test_a_table_that_asks_for_more_memory_than_the_file_has_is_torn(tmp_path: Path) -> None:
    body = b'{"tree":0,"arrays":[["<f8",[1000000000000],0]]}'
    total = 128 + 32
    head = struct.pack("<8sIIQQ", b"FFSNAP\r\n", 1, 0, len(body), total)
    (tmp_path / "s").write_bytes((head + body).ljust(total, b"\0"))
    with pytest.raises(Torn, match="table of arrays"):
        read_snapshot(tmp_path / "s")


def test_a_snapshot_of_a_newer_format_says_so_rather_than_torn(tmp_path: Path) -> None:
    import hashlib

    head = struct.pack("<8sIIQQ", b"FFSNAP\r\n", 2, 0, 3, 999) + b"whatever"
    (tmp_path / "snapshot-000001.ffs").write_bytes(head + hashlib.sha256(head).digest())
    with pytest.raises(UsageError, match=r"format 2.*reads format 1") as error:
        Snapshots(tmp_path).read()
    assert not isinstance(error.value, Torn)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    store = Snapshots(tmp_path)
    assert store.read() is None
    assert [store.write(i, [np.array(i)]) for i in range(5)] == list(range(5))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["snapshot-000003.ffs", "snapshot-000004.ffs"]
    got = store.read()
    assert got is not None
    assert (got.number, got.tree, int(got.arrays[0]), got.torn) == (4, 4, 4, ())


def test_when_the_newest_is_torn_the_one_before_is_used_and_kept(tmp_path: Path) -> None:
    store = Snapshots(tmp_path)
    for i in range(3):
        store.write(i, [])
    newest = tmp_path / "snapshot-000002.ffs"
    newest.write_bytes(newest.read_bytes()[:-1])
    got = store.read()
    assert got is not None
    assert (got.tree, got.torn) == (1, (newest,))
    assert store.write(9, []) == 3
    assert sorted(store.paths()) == [1, 3]


def test_when_all_are_torn_it_says_so(tmp_path: Path) -> None:
    store = Snapshots(tmp_path)
    store.write(0, [])
    (tmp_path / "snapshot-000000.ffs").write_bytes(b"")
    with pytest.raises(Torn, match="every snapshot"):
        store.read()


def test_numbers_go_on_past_six_digits(tmp_path: Path) -> None:
    store = Snapshots(tmp_path)
    store.write(0, [])
    (tmp_path / "snapshot-000000.ffs").rename(tmp_path / "snapshot-999999.ffs")
    assert store.write(1, []) == 1_000_000
    got = store.read()
    assert got is not None
    assert got.tree == 1


def test_a_full_disk_leaves_the_last_snapshot_and_no_half_file(tmp_path: Path, monkeypatch: Any) -> None:
    store = Snapshots(tmp_path)
    store.write("good", [np.arange(1000)])
    write, room_left = os.write, [5000]

    def full(file: int, data: Any) -> int:
        if room_left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room_left[0] -= len(data)
        return write(file, data)

    monkeypatch.setattr(files.os, "write", full)
    with pytest.raises(DiskFull, match=r"disk is full.*snapshot-000001.*intact") as error:
        store.write("lost", [np.arange(1000), np.arange(100_000)])
    assert isinstance(error.value, UsageError)
    assert isinstance(error.value, OSError)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["snapshot-000000.ffs"]
    got = store.read()
    assert got is not None
    assert got.tree == "good"


def test_a_real_limit_of_the_operating_system_is_told_as_a_full_disk(tmp_path: Path) -> None:
    code = f"""
import resource, signal
import numpy as np
from fieldfare.store.files import DiskFull
from fieldfare.store.snapshot import Snapshots
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Snapshots({str(tmp_path)!r})
store.write("good", [])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, {resource.RLIM_INFINITY}))
try:
    store.write("lost", [np.zeros(10_000)])
except DiskFull as error:
    print(error)
print(store.read().tree, len(list(store.folder.iterdir())))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0].startswith("the disk is full")
    assert said[1:] == ["good 1"]


def _mounted(folder: Path) -> bool:
    folder.mkdir()
    if os.geteuid():
        return False
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_disk_of_256_kib_fills_up_and_keeps_its_last_snapshot(tmp_path: Path) -> None:
    small = tmp_path / "small"
    if not _mounted(small):
        pytest.skip("mounting a small file system needs root")
    try:
        store = Snapshots(small)
        store.write("good", [np.zeros(10_000)])
        with pytest.raises(DiskFull):
            store.write("more", [np.zeros(25_000)])
        got = store.read()
        assert got is not None
        assert got.tree == "good"
        assert not list(small.glob(".*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".snapshot-000001.ffs.77.tmp").write_bytes(b"half")
    store = Snapshots(tmp_path)
    store.write(0, [])
    store.sweep()
    assert [p.name for p in tmp_path.iterdir()] == ["snapshot-000000.ffs"]


def test_a_writer_that_cannot_write_raises_what_the_system_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_snapshot(tmp_path / "absent" / "s", 0, [])
