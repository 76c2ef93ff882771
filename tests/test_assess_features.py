"""Features and vocabularies: what it costs a device to have them, and the commands for both and for proxies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fieldfare.assess.artefact import read_artefact, words
from fieldfare.assess.features.catalogue import build
from fieldfare.assess.features.locality import Feature, choose, options, read_features
from fieldfare.assess.features.vocabulary import LIMITS_BYTES, advise, collided, embedding_bytes
from fieldfare.cli import app
from fieldfare.core.errors import UsageError


def test_the_papers_embedding_becomes_sixty_times_smaller() -> None:
    assert embedding_bytes(500_000, 300) / embedding_bytes(50_000, 50) == 60
    assert embedding_bytes(500_000, 300) > 500e6
    assert embedding_bytes(50_000, 50) == LIMITS_BYTES["own app"]


def test_words_that_share_a_bucket_are_as_many_as_draws_say() -> None:
    drawn = np.random.default_rng(0).integers(0, 500, (400, 300))
    alone = np.mean([(np.bincount(one, minlength=500)[one] == 1).mean() for one in drawn])
    assert collided(300, 500) == pytest.approx(1 - alone, abs=0.01)
    assert collided(1, 1) == 0.0
    assert collided(2, 1) == 1.0


def test_advice_is_within_the_limit_where_anything_is_and_loses_little_first() -> None:
    best = advise(500_000, 8)[0]
    assert best.bytes <= LIMITS_BYTES["own app"]
    assert best.lost <= 0.2
    assert best.rows == 50_000
    small = advise(1000, 8, limit_bytes=LIMITS_BYTES["kit for other apps"])[0]
    assert (small.name, small.lost) == ("hashing to 8,192", pytest.approx(collided(1000, 8192))) or small.name == "file"
    assert not any(advise(500_000, 8, dims=(300,), limit_bytes=1e3)[0].fits()[name] for name in ("kit for other apps",))


def test_each_option_costs_what_it_says_and_what_is_not_possible_has_a_reason() -> None:
    told = {one.option: one for one in options(Feature("skills", "cloud", 4, 1000, 9e5), 100, 2, 1e5, 0.1)}
    assert told["on_device"].refused == "born in the cloud"
    assert told["cache_at_inference"].device_bytes == 400 + 9e5
    assert told["cache_at_inference"].task_bytes == pytest.approx(9e5 / 30 / 2)
    assert told["pull"].latency_s == pytest.approx(0.1 + 400 / 1e5)
    typed = {one.option: one for one in options(Feature("typed", "device"), 100, 1, 1e5, 0.1)}
    assert not typed["on_device"].refused
    assert typed["pull"].refused == "born on the device, and may not leave it"


def test_a_device_holds_no_more_days_than_it_may_and_the_vocabulary_of_what_it_pulls() -> None:
    seen = Feature("seen", "cloud", 4, 1000, 9e5, retention_days=30.0)
    told = {one.option: one for one in options(seen, 300, 2, 1e5, 0.1, 90.0)}
    assert told["cache_at_inference"].device_bytes == pytest.approx(400 + 9e5)
    assert told["pull"].device_bytes == 9e5
    assert told["pull"].task_bytes == pytest.approx(1200 + 9e5 / 30 / 2)
    for window_days in (None, 30.0, 7.0):
        assert options(seen, 300, 2, 1e5, 0.1, window_days)[1].device_bytes == 1200 + 9e5
    full = choose([seen], records=300, prefer=("pull",), device_bytes=8e5)[0]
    assert "no room left" in full.refused
    with pytest.raises(UsageError, match="window_days=0"):
        choose([seen], records=300, window_days=0)


def test_a_full_device_pulls_what_no_longer_fits_and_what_fits_nowhere_is_named() -> None:
    features = [
        Feature("large", bytes_per_record=1000, transform="cloud"),
        Feature("small", bytes_per_record=10, transform="cloud"),
    ]
    room = choose(features, records=100, device_bytes=1e5 + 500)
    assert [one.option for one in room] == ["cache_at_inference", "pull"]
    assert [one.option for one in choose(features, records=100)] == ["cache_at_inference", "cache_at_inference"]
    stuck = choose([Feature("typed", "device", transform="cloud")], records=10)[0]
    assert "on_device: processed in the cloud" in stuck.refused


def test_the_catalogue_adds_up(tmp_path: Path) -> None:
    made = build([Feature("a", "device"), Feature("b", "cloud", 8, 5000, 5e4)], tmp_path / "f", records=10)
    table = made.table("features")
    assert words(table["option"]) == ["on_device", "cache_at_inference"]
    assert made.number("device_bytes") == 40 + 80 + 5e4
    assert made.number("assets_bytes") == 5e4
    assert made.table("vocabulary")["rank"].tolist()[0] == 0  # type: ignore[union-attr]


def test_features_of_a_file_are_checked_by_name() -> None:
    with pytest.raises(UsageError, match="knows no 'bytes'"):
        read_features([{"name": "a", "bytes": 4}])
    with pytest.raises(UsageError, match="needs a name"):
        read_features([{"source": "cloud"}])
    with pytest.raises(UsageError, match="one name"):
        read_features([{"name": "a"}, {"name": "a"}])
    with pytest.raises(UsageError, match="source='edge'"):
        read_features([{"name": "a", "source": "edge"}])


def table(place: Path) -> Path:
    gen = np.random.default_rng(0)
    lines = [f"u{gen.integers(20)},{gen.integers(2)},{gen.normal():.4f}" for _ in range(400)]
    place.write_text("\n".join(["user,label,x", *lines]) + "\n")
    return place


def run(*words_: str):
    return CliRunner().invoke(app, ["assess", *words_])


def test_the_commands_write_artefacts_and_tell_them_as_json(tmp_path: Path) -> None:
    source = table(tmp_path / "t.csv")
    told = run(
        "proxy", str(source), "--label", "label", "--by", "user", "--key", "k", "-o", str(tmp_path / "p"), "--json"
    )
    assert told.exit_code == 0, told.output
    result = json.loads(told.output.splitlines()[-1])
    assert result["values"]["clients"] == 20
    assert read_artefact(tmp_path / "p", "proxy").sha256 == result["sha256"]
    (tmp_path / "f.toml").write_text('[[feature]]\nname = "x"\nsource = "device"\n')
    told = run(
        "features", str(tmp_path / "f.toml"), "--proxy", str(tmp_path / "p"), "-o", str(tmp_path / "f"), "--json"
    )
    assert json.loads(told.output.splitlines()[-1])["values"]["device_bytes"] == 4 * 400 / 20


def test_settings_of_a_file_and_of_the_command_line_reach_the_proxy(tmp_path: Path) -> None:
    source = table(tmp_path / "t.csv")
    (tmp_path / "c.toml").write_text('label = "label"\nclients = 7\nalphas = [0.5, "none"]\n')
    out = str(tmp_path / "p")
    assert run("proxy", str(source), "-c", str(tmp_path / "c.toml"), "-s", "clients=9", "-o", out).exit_code == 0
    made = read_artefact(out, "proxy")
    assert made.params["alphas"] == [0.5, None]
    assert made.number("clients") == 9
    assert made.number("clients_v1") == 9


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["proxy", "TABLE"], "needs the label's column"),
        (["proxy", "TABLE", "--label", "lable"], "no column 'lable'"),
        (["proxy", "TABLE", "--label", "label", "-s", "clinets=3"], "did you mean"),
        (["proxy", "TABLE", "--label", "label", "-s", "clients=many"], "clients"),
        (["proxy", "nowhere.csv", "--label", "label"], "nowhere.csv"),
        (["features", "TABLE", "--records", "3"], "is not TOML"),
        (["proxy", "TABLE", "--label", "label", "-s", "max_clients=0"], "max_clients=0"),
        (["features", "FEATURES", "-s", "feature=[1]"], "use tables [[feature]]"),
        (["features", "FEATURES", "-s", "feature.name=a"], "feature is a value, not a table"),
        (["features", "FEATURES", "-s", "records=x"], "records='x'): use a number above 0"),
        (["features", "FEATURES", "--records", "3", "-s", "rtt_s=x"], "rtt_s='x'): use a number"),
        (["features", "FEATURES", "--records", "3", "-s", "package=kit"], "package='kit': use one of kit for other"),
        (["features", "NAME", "--records", "3"], "Feature(name=3)"),
        (["features", "BYTES", "--records", "3"], "bytes_per_record='x'"),
        (["features", "NAN", "--records", "3"], "sizes are finite"),
        (["features", "ROWS", "--records", "3"], "vocabulary_rows=5.5"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, line: list[str], says: str) -> None:
    places = {"TABLE": str(table(tmp_path / "t.csv"))}
    tables = {"FEATURES": "vocabulary_rows=9", "BYTES": 'bytes_per_record="x"', "NAN": "bytes_per_record=nan",
              "ROWS": "vocabulary_rows=5.5", "NAME": ""}  # fmt: skip
    for name, of in tables.items():
        places[name] = str(tmp_path / f"{name}.toml")
        called = 3 if name == "NAME" else '"a"'
        Path(places[name]).write_text(f"[[feature]]\nname = {called}\n{of}\n")
    told = run(*(places.get(word, word) for word in line), "-o", str(tmp_path / "out"))
    assert isinstance(told.exception, UsageError | OSError), told.exception
    assert told.exit_code != 0
    assert says in str(told.exception)
    assert not (tmp_path / "out").exists()
