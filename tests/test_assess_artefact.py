"""Artefacts: written whole, read back equal, cited by a hash of what is in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldfare.assess.artefact import Artefact, Draft, Value, _sha256_of, digest, read_artefact, words
from fieldfare.core.errors import UsageError
from fieldfare.fleet.columns import text_of


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


def forged(place: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The artefact with its manifest changed, and the hash that anybody can compute put right."""
    file = place / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    with suppress(Exception):
        manifest["sha256"] = _sha256_of(manifest)
    file.write_text(json.dumps(manifest))
    return place


def test_a_table_put_in_the_place_of_another_is_refused_though_its_digest_was_put_right(tmp_path: Path) -> None:
    made, other = draft().write(tmp_path / "a"), draft()
    other.table("sessions", {"client": [0, 1], "start_s": [99.0, None], "os": ["android", None]})
    swapped = other.write(tmp_path / "b").file("sessions")
    made.file("sessions").write_bytes(swapped.read_bytes())

    def put_right(manifest: dict[str, Any]) -> None:
        manifest["tables"]["sessions"]["sha256"] = digest(swapped)

    found = read_artefact(forged(tmp_path / "a", put_right))
    assert found.sha256 == made.sha256
    with pytest.raises(UsageError, match="is not the table that its artefact's hash is of: make the artefact again"):
        found.table("sessions")


def test_a_file_that_was_changed_or_is_gone_is_refused(tmp_path: Path) -> None:
    made = draft().write(tmp_path / "a")
    (tmp_path / "a" / "note.txt").write_text("other")
    assert made.manifest["files"]["note.txt"]["bytes"] == 5
    with pytest.raises(UsageError, match=r"note\.txt was changed since it was written"):
        made.file("note.txt")
    (tmp_path / "a" / "note.txt").unlink()
    with pytest.raises(UsageError, match=r"note\.txt is not there"):
        made.file("note.txt")


def test_tables_without_pyarrow_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fieldfare.assess.artefact.find_spec", lambda name: None)
    made = Draft("trace")
    made.table("t", {
        "small": np.array([1, 2], np.int32),
        "half": np.array([0.1, np.nan], np.float32), "yes": np.array([True, False]),
        "number": ["1", "20"], "none": text_of(["", ""]), "word": ["a", None], "whole": np.array([1.0, 2.0]),
    })  # fmt: skip
    made.write(tmp_path / "a")
    found = read_artefact(tmp_path / "a").table("t")
    assert (tmp_path / "a" / "t.csv").is_file()
    assert [words(found[name]) for name in ("number", "none", "word")] == [["1", "20"], ["", ""], ["a", ""]]
    assert [found[name].dtype.str for name in ("small", "half", "yes", "whole")] == ["<i4", "<f4", "|b1", "<f8"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("values", [], "has a list as values"),
        ("tables", [], "has a list as tables"),
        ("params", [], "has a list as params"),
        ("inputs", ["a"], "names an input without a SHA-256"),
        ("inputs", [{"kind": "bench", "path": "b"}], "names an input without a SHA-256"),
        ("inputs", [{"kind": "b", "path": "b", "sha256": "<script>alert(1)</script>"}], "names an input without a SHA"),
        ("inputs", [{"kind": 3, "path": "b", "sha256": "0" * 64}], "names an input without kind and path"),
        ("values", {"share": "much"}, "tells 'share' as much"),
        ("values", {"share": {"value": "0.2"}}, "not as a finite number"),
        ("values", {"share": {"value": True}}, "not as a finite number"),
        ("values", {"share": {"value": float("-inf")}}, "not as a finite number"),
        ("values", {"share": {"value": 1, "colour": "red"}}, "not as a finite number"),
        ("values", {"share": {"value": 1, "unit": 3}}, "not as a finite number"),
        ("tables", {"t": {"path": "t.csv", "rows": 1, "columns": ["a"], "sha256": ""}}, "does not tell path, rows"),
        ("files", {"t": {"path": "../../x", "bytes": 1, "sha256": ""}}, "is outside of the artefact"),
        ("kind", 3, "has a int as kind"),
    ],
)
def test_a_manifest_of_another_shape_is_refused_in_one_line_and_never_overwritten(
    tmp_path: Path, part: str, value: Any, says: str
) -> None:
    draft().write(tmp_path / "a")
    place = forged(tmp_path / "a", lambda manifest: manifest.__setitem__(part, value))
    with pytest.raises(UsageError, match=says) as told:
        read_artefact(place)
    assert "\n" not in str(told.value)
    with pytest.raises(UsageError, match="name another folder"):
        draft().write(place)


def test_a_manifest_that_is_no_object_is_refused(tmp_path: Path) -> None:
    draft().write(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text("[1]")
    with pytest.raises(UsageError, match="is not an object"):
        read_artefact(tmp_path / "a")
