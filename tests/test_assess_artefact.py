"""Artefacts: written whole, read back equal, cited by a hash of what is in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fieldfare.assess.artefact import Artefact, Draft, Value, read_artefact, words
from fieldfare.core.errors import UsageError


def draft(seed: int = 1) -> Draft:
    made = Draft("trace", seed=seed, params={"gap_merge_s": 30.0}, values={"share": Value(0.22, "1", 0.2, 0.24)})
    made.table("sessions", {"client": [0, 1], "start_s": [0.5, None], "os": ["android", None]})
    made.files["note.txt"] = b"hello"
    return made


def test_what_was_written_reads_back_equal(tmp_path: Path) -> None:
    draft().write(tmp_path / "trace")
    found = read_artefact(tmp_path / "trace", "trace")
    table = found.table("sessions")
    assert np.asarray(table["client"]).tolist() == [0, 1]
    assert np.isnan(np.asarray(table["start_s"])[1])
    assert words(table["os"]) == ["android", ""]
    assert found.values["share"] == Value(0.22, "1", 0.2, 0.24)
    assert found.file("note.txt").read_bytes() == b"hello"


def test_the_hash_is_of_the_content_not_of_time_or_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    first = draft().write(tmp_path / "a")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    assert draft().write(tmp_path / "b").sha256 == first.sha256
    assert draft(seed=2).write(tmp_path / "c").sha256 != first.sha256


def test_an_input_that_changes_changes_the_hash_of_what_was_made_of_it(tmp_path: Path) -> None:
    def after(source: Artefact) -> str:
        return Draft("forecast", inputs=[source]).write(tmp_path / "forecast").sha256

    assert after(draft(1).write(tmp_path / "a")) != after(draft(2).write(tmp_path / "a"))


def test_an_edited_table_or_manifest_is_refused(tmp_path: Path) -> None:
    made = draft().write(tmp_path / "a")
    place = made.file("sessions")
    place.write_bytes(place.read_bytes() + b" ")
    with pytest.raises(UsageError, match="was changed since it was written"):
        read_artefact(tmp_path / "a").table("sessions")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    manifest["values"]["share"]["value"] = 0.9
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="was changed since it was written"):
        read_artefact(tmp_path / "a")


def test_another_kind_a_foreign_folder_and_columns_of_unlike_length_are_refused(tmp_path: Path) -> None:
    draft().write(tmp_path / "a")
    with pytest.raises(UsageError, match="a bench artefact is needed"):
        read_artefact(tmp_path / "a", "bench")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="name another folder"):
        draft().write(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    made = Draft("trace")
    made.table("t", {"a": [1], "b": [1, 2]})
    with pytest.raises(UsageError, match="rows"):
        made.write(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []
