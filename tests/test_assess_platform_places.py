"""Artefacts at URLs: sent and fetched whole or not at all, by hash; commands read and write them there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.assess.artefact import MANIFEST, Artefact, Draft, Value, read_artefact
from fieldfare.assess.platform import places
from fieldfare.assess.platform.places import fetch, is_url, local, send, url_of
from fieldfare.cli import app
from fieldfare.core.errors import MissingExtra, UsageError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(places.CACHE, str(tmp_path / "cache"))
    fsspec.filesystem("memory").rm("/", recursive=True) if fsspec.filesystem("memory").ls("/") else None
    return tmp_path / "cache"


def artefact(place: Path, value: float = 1.0, kind: str = "forecast") -> Artefact:
    draft = Draft(kind, params={"model": "B"}, values={"device_h": Value(value, "h", value / 2, 2 * value)})
    draft.table("quantities", {"name": ["device_h"], "value": [value]})
    draft.files["sub/notes.txt"] = b"words"
    return draft.write(place)


def memory() -> dict[str, bytes]:
    return {name: bytes(one.getvalue()) for name, one in fsspec.filesystem("memory").store.items()}


@pytest.mark.parametrize("scheme", ["memory://shop", "file://{tmp}"])
def test_what_is_sent_to_a_url_is_fetched_again_to_the_bit(tmp_path: Path, scheme: str) -> None:
    mine = artefact(tmp_path / "a")
    url = send(mine, scheme.format(tmp=tmp_path) + "/forecasts/a")
    got = read_artefact(fetch(url))
    assert got.sha256 == mine.sha256
    assert got.path.name == "a"
    assert np.array_equal(got.table("quantities")["value"], [1.0])
    assert got.file("sub/notes.txt").read_bytes() == b"words"


def test_read_artefact_takes_a_url_also_after_path_took_one_of_its_slashes(tmp_path: Path) -> None:
    mine = artefact(tmp_path / "a")
    send(mine, "memory://shop/a")
    assert read_artefact("memory://shop/a").sha256 == mine.sha256
    assert read_artefact(Path("memory://shop/a"), "forecast").number("device_h") == 1.0
    send(mine, f"file://{tmp_path}/b")
    assert read_artefact(Path(f"file://{tmp_path}/b")).sha256 == mine.sha256


@given(st.from_regex(r"[a-z][a-z0-9+]{1,5}://[a-z]{1,5}(/[a-z.]{1,4}){0,3}", fullmatch=True))
def test_a_url_survives_being_a_path(url: str) -> None:
    wanted = url if not url.startswith(("file:", "local:")) else url.replace("://", ":///")
    assert url_of(url) == wanted
    assert str(Path(str(url_of(Path(url))))) == str(Path(wanted))


def test_paths_are_no_urls(tmp_path: Path) -> None:
    assert not is_url(tmp_path)
    assert not is_url("runs/latest")
    assert not is_url("C:/data")
    odd = tmp_path / "s3:"
    odd.mkdir()
    assert not is_url(f"{odd}/")
    assert local(tmp_path) == tmp_path
    with pytest.raises(UsageError, match="is no URL"):
        fetch(tmp_path)


def test_the_manifest_is_sent_last_and_goes_first_so_that_no_half_is_seen(tmp_path: Path) -> None:
    written: list[str] = []
    store = fsspec.filesystem("memory")
    before = type(store).open

    def watched(self: object, path: str, mode: str = "rb", **more: object) -> object:
        if "w" in mode:
            written.append(path.rpartition("/")[2])
            assert not store.exists(f"/shop/a/{MANIFEST}")
        return before(self, path, mode, **more)

    send(artefact(tmp_path / "a", 1.0), "memory://shop/a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store), "open", watched)
        send(artefact(tmp_path / "b", 2.0), "memory://shop/a")
    assert written[-1] == MANIFEST
    assert len(written) == 3
    assert read_artefact(fetch("memory://shop/a")).number("device_h") == 2.0


def test_the_same_content_is_neither_sent_nor_fetched_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = artefact(tmp_path / "a")
    send(mine, "memory://shop/a")
    got = fetch("memory://shop/a")
    stamp = (got / MANIFEST).stat().st_mtime_ns
    monkeypatch.setattr(places, "_put", lambda *args: pytest.fail("sent again"))
    send(mine, "memory://shop/a")
    assert fetch("memory://shop/a") == got
    assert (got / MANIFEST).stat().st_mtime_ns == stamp


def test_a_file_that_was_changed_or_lost_at_the_url_is_refused(tmp_path: Path) -> None:
    send(artefact(tmp_path / "a"), "memory://shop/a")
    store = fsspec.filesystem("memory")
    table = next(name for name in memory() if "quantities" in name)
    data = memory()[table]
    store.pipe_file(table, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UsageError, match="not what its manifest says"):
        fetch("memory://shop/a")
    store.rm_file(table)
    with pytest.raises(UsageError, match="lacks quantities"):
        fetch("memory://shop/a")
    with pytest.raises(UsageError, match="there is no artefact at memory://shop/b"):
        fetch("memory://shop/b")


def test_a_manifest_that_names_files_outside_of_the_artefact_is_refused(tmp_path: Path) -> None:
    send(artefact(tmp_path / "a"), "memory://shop/a")
    name = next(name for name in memory() if name.endswith(MANIFEST))
    manifest = json.loads(memory()[name])
    manifest["tables"]["quantities"]["path"] = "../../stolen"
    fsspec.filesystem("memory").pipe_file(name, json.dumps(manifest).encode())
    with pytest.raises(UsageError, match="outside of the artefact"):
        fetch("memory://shop/a")


def test_a_damaged_copy_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    send(artefact(tmp_path / "a"), "memory://shop/a")
    got = fetch("memory://shop/a")
    (got / "sub" / "notes.txt").write_bytes(b"other")
    assert (fetch("memory://shop/a") / "sub" / "notes.txt").read_bytes() == b"words"


def test_an_artefact_of_another_kind_at_the_url_is_left_alone(tmp_path: Path) -> None:
    send(artefact(tmp_path / "a"), "memory://shop/a")
    with pytest.raises(UsageError, match="has a forecast artefact"):
        send(artefact(tmp_path / "b", kind="bench"), "memory://shop/a")
    assert read_artefact("memory://shop/a").kind == "forecast"


def test_a_place_that_cannot_be_reached_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="nosuchplace://x cannot be reached") as told:
        fetch("nosuchplace://x")
    assert "\n" not in str(told.value)
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingExtra, match="fsspec"):
        fetch("memory://x")


def test_a_plain_file_at_a_url_is_fetched_as_it_is_now() -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/shop/t.csv", b"a\n1\n")
    assert local("memory://shop/t.csv").read_bytes() == b"a\n1\n"
    store.pipe_file("/shop/t.csv", b"a\n2\n")
    assert local(Path("memory://shop/t.csv")).read_bytes() == b"a\n2\n"
    assert local("memory://shop/t.csv").name == "t.csv"
    with pytest.raises(UsageError, match="no file at"):
        local("memory://shop/u.csv")


def test_a_command_reads_artefacts_from_urls_and_writes_its_own_to_one(tmp_path: Path) -> None:
    told = ["job.versions=100", "job.buffer=10", "job.concurrency=20", "job.compute_s=2.0", "job.down_bytes=1e6",
            "job.up_bytes=1e6"]  # fmt: skip
    given_ = [word for one in told for word in ("--set", one)]
    found = CliRunner().invoke(app, ["assess", "forecast", *given_, "--out", "memory://shop/forecast", "--json"])
    assert found.exit_code == 0, found.output
    told_ = json.loads(found.stdout.splitlines()[-1])
    sha256 = told_["sha256"]
    assert told_["path"] == "memory://shop/forecast"
    assert read_artefact(fetch("memory://shop/forecast")).sha256 == sha256
    privacy = ["--mechanism", "none", "--source", "me", "--out", "memory://shop/privacy", "--json"]
    assert CliRunner().invoke(app, ["assess", "privacy", *privacy]).exit_code == 0
    decide = ["memory://shop/forecast", "memory://shop/privacy", "--models", "B", "--out", str(tmp_path / "d")]
    found = CliRunner().invoke(app, ["assess", "decide", *decide, "--json"], standalone_mode=False)
    assert {one["sha256"] for one in read_artefact(tmp_path / "d").inputs} >= {sha256}


def test_what_was_written_to_a_url_before_does_not_bar_another_kind_once_it_is_gone(tmp_path: Path) -> None:
    for kind in ("forecast", "bench"):
        artefact(places.staged("memory://shop/x"), kind=kind)
        assert read_artefact("memory://shop/x").kind == kind
        fsspec.filesystem("memory").rm("/shop", recursive=True)


def test_another_process_that_was_first_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = artefact(tmp_path / "a")
    send(mine, "memory://shop/a")

    def late(made: Path, target: Path) -> None:
        shutil.copytree(made, target)
        raise OSError(39, "Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(places.os, "replace", late)
        assert read_artefact(fetch("memory://shop/a")).sha256 == mine.sha256
