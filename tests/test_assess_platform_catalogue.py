"""The data catalogue: entries say what an artefact says, the same bytes again, other content refused, read back."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fieldfare.assess.artefact import Artefact, Draft, Value
from fieldfare.assess.platform import places
from fieldfare.assess.platform.catalogue import METADATA, Catalogue
from fieldfare.assess.proxy.write import Config, build
from fieldfare.cli import app
from fieldfare.core.errors import UsageError
from fieldfare.fleet.columns import text_of

pytest.importorskip("pyarrow")
fsspec = pytest.importorskip("fsspec")
SOURCE = {"kind": "table", "path": "clicks.csv", "sha256": "ab" * 32}


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places.CACHE, str(tmp_path / "cache"))
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


@pytest.fixture(params=["folder", "memory://shop/catalogue", "file"])
def catalogue(request: pytest.FixtureRequest, tmp_path: Path) -> Catalogue:
    where = {"folder": str(tmp_path / "catalogue"), "file": f"file://{tmp_path}/catalogue"}
    return Catalogue(where.get(request.param, request.param))


def proxy(place: Path | str, seed: int = 0, versions: int = 1, memory: float = 5e3) -> Artefact:
    gen = np.random.default_rng(seed)
    columns = {
        "y": gen.integers(0, 2, 400), "x": gen.normal(size=400),
        "word": text_of([str(one) for one in gen.choice(["a", "b"], 400)]),
    }  # fmt: skip
    config = Config("y", clients=20, executor_memory_bytes=memory, alphas=(None, 0.5)[:versions])
    return build(columns, config, place, inputs=[SOURCE])


def stored(catalogue: Catalogue, name: str, version: str) -> bytes:
    where = f"{catalogue.root}/{name}/{version}/{METADATA}"
    return places.get_bytes(where) or b"" if places.is_url(where) else Path(where).read_bytes()


def test_an_entry_says_what_the_data_are_and_gives_them_back(catalogue: Catalogue, tmp_path: Path) -> None:
    data = proxy(tmp_path / "proxy")
    catalogue.put(data, "clicks", "1")
    entry = catalogue.get("clicks")
    assert (entry.name, entry.version, entry.kind, entry.rows) == ("clicks", "1", "proxy", 400)
    assert entry.sha256 == data.sha256
    assert list(entry.lineage) == [SOURCE]
    rows = entry.tables[0]
    assert (rows.name, rows.rows) == ("rows", 400)
    assert dict(rows.columns) == {"client": "int64", "y": "int64", "x": "float64", "word": "string"}
    assert len(rows.files) == 2  # 400 rows of 24 bytes over 5,000
    assert {one.name for one in entry.tables} == {"rows", "index", "features"}
    assert entry.values["clients"] == {"value": 20.0, "unit": data.values["clients"].unit}
    back = entry.artefact()
    assert back.sha256 == data.sha256
    assert back.file("part-0.parquet").is_file()
    assert (catalogue.names(), catalogue.versions("clicks")) == (["clicks"], ["1"])


def test_the_same_again_writes_the_same_bytes_and_other_content_is_refused(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    data = proxy(tmp_path / "proxy")
    catalogue.put(data, "clicks", "1")
    before = stored(catalogue, "clicks", "1")
    catalogue.put(data, "clicks", "1")
    assert stored(catalogue, "clicks", "1") == before
    other = proxy(tmp_path / "other", seed=1)
    with pytest.raises(
        UsageError, match=r"clicks 1 is in the catalogue .* already, as the proxy .* new version"
    ) as told:
        catalogue.put(other, "clicks", "1")
    assert "\n" not in str(told.value)
    assert stored(catalogue, "clicks", "1") == before
    catalogue.put(other, "clicks", "2")
    assert catalogue.versions("clicks") == ["1", "2"]
    assert catalogue.get("clicks", "2").sha256 == other.sha256
    with pytest.raises(UsageError, match="it has 1, 2: name one"):
        catalogue.get("clicks")
    with pytest.raises(UsageError, match="has no clicks 3: its versions are 1, 2"):
        catalogue.get("clicks", "3")


def test_data_that_moved_are_found_where_they_are_now(tmp_path: Path) -> None:
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    data = proxy(tmp_path / "proxy")
    catalogue.put(data, "clicks", "1")
    places.send(data, "memory://shop/clicks")
    moved = catalogue.put("memory://shop/clicks", "clicks", "1")
    assert moved.place == catalogue.get("clicks").place == "memory://shop/clicks"
    assert catalogue.get("clicks").artefact().sha256 == data.sha256


def test_other_data_at_the_place_are_not_taken_for_those_of_the_entry(tmp_path: Path) -> None:
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    catalogue.put(proxy(tmp_path / "proxy"), "clicks", "1")
    proxy(tmp_path / "proxy", seed=1)
    with pytest.raises(UsageError, match="is not what clicks 1 was"):
        catalogue.get("clicks").artefact()


def test_a_file_that_was_changed_is_not_registered(tmp_path: Path) -> None:
    data = proxy(tmp_path / "proxy")
    file = data.file("part-0.parquet")
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(UsageError, match="was changed since it was written"):
        Catalogue(str(tmp_path / "catalogue")).put(data, "clicks")


def test_each_version_of_made_up_clients_is_a_table(tmp_path: Path) -> None:
    entry = Catalogue(str(tmp_path / "catalogue")).put(proxy(tmp_path / "proxy", versions=2, memory=1e9), "clicks")
    assert [one.name for one in entry.tables][:2] == ["rows", "rows_v1"]
    assert entry.tables[1].files[0]["path"] == "v1/part-0.parquet"


def test_an_entry_holds_no_secret_of_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Draft("bench", values={"x": Value(None, "s")}).write(tmp_path / "bench")
    monkeypatch.setattr("fieldfare.assess.platform.catalogue.read_artefact", lambda place: data)
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    entry = catalogue.put("s3://key:secret@shop/bench?signature=abc", "speeds", "1")
    assert entry.place == "s3://shop/bench"
    assert not [word for word in (b"secret", b"abc") if word in stored(catalogue, "speeds", "1")]
    assert catalogue.get("speeds").values["x"] == {"value": None, "unit": "s"}


def test_what_is_no_entry_or_no_name_is_told(tmp_path: Path) -> None:
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    with pytest.raises(UsageError, match="register some first"):
        catalogue.get("clicks")
    for bad in ("../x", "", "a/b"):
        with pytest.raises(UsageError, match="use letters"):
            catalogue.get(bad)
    data = Draft("bench").write(tmp_path / "bench")
    catalogue.put(data, "speeds", "1")
    (tmp_path / "catalogue" / "not a name").mkdir()
    (tmp_path / "catalogue" / "empty").mkdir()
    assert catalogue.names() == ["speeds"]
    file = tmp_path / "catalogue" / "speeds" / "1" / METADATA
    for wrong in (b"[1", b"{}", b'{"schema_version": 2}'):
        file.write_bytes(wrong)
        with pytest.raises(UsageError, match="is no catalogue entry of ours"):
            catalogue.get("speeds")
        with pytest.raises(UsageError, match="is no catalogue entry of ours"):
            catalogue.put(data, "speeds", "1")


def test_of_writers_at_one_time_one_content_is_kept(tmp_path: Path) -> None:
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    made = [Draft("bench", seed=i).write(tmp_path / f"b{i}") for i in range(8)]

    def put(data: Artefact) -> str | None:
        try:
            return catalogue.put(data, "speeds", "1").sha256
        except UsageError:
            return None

    with ThreadPoolExecutor(8) as pool:
        kept = [one for one in pool.map(put, made) if one]
    assert kept == [catalogue.get("speeds").sha256]


def test_the_command_registers_data_and_says_what(tmp_path: Path) -> None:
    data = proxy(tmp_path / "proxy")
    words = ["assess", "publish", str(data.path), "--catalogue", "memory://shop/catalogue", "--name", "clicks"]
    found = CliRunner().invoke(app, [*words, "--json"])
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["model"] is None
    assert told["data"]["sha256"] == data.sha256 == Catalogue("memory://shop/catalogue").get("clicks").sha256
    assert told["data"]["version"] == data.sha256[:12]
    assert "proxy of 400 rows in the catalogue" in CliRunner().invoke(app, words).output


@pytest.mark.parametrize(
    ("more", "says"),
    [((), "give --to"), (("--catalogue", "c", "--stage", "staging"), "go with --to"), (("--to", "r"), "simulation")],
)
def test_a_command_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, more: tuple[str, ...], says: str) -> None:
    data = Draft("bench").write(tmp_path / "bench")
    found = CliRunner().invoke(app, ["assess", "publish", str(data.path), "--name", "x", *more], standalone_mode=False)
    assert isinstance(found.exception, UsageError)
    assert says in str(found.exception)
    assert "\n" not in str(found.exception)
