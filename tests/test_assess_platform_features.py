"""Feature stores: the join is right at every moment, rows stay rows, Feast is called as it wants to be called."""

from __future__ import annotations

import sys
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from feature_loops import as_of
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.assess.artefact import read_artefact, words
from fieldfare.assess.platform.features import FeatureStore, ParquetFeatures, Schema, by_view, store_at
from fieldfare.cli import app
from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.fleet.columns import Text, read_columns

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")

USERS = [
    {"user": "a", "t_s": 10.0, "clicks": 1, "city": "Oslo"},
    {"user": "a", "t_s": 30.0, "clicks": 3, "city": ""},
    {"user": "b", "t_s": 20.0, "clicks": 7, "city": "Rome"},
]


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def listed(values: Any) -> list[Any]:
    """A column as Python values, missing ones None."""
    if isinstance(values, Text):
        return [one or None for one in words(values)]
    return [None if one != one else one for one in np.asarray(values).tolist()]


def told(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [None if one == "" else one for one in values] for name, values in columns(rows).items()}


@pytest.fixture
def store(tmp_path: Path) -> ParquetFeatures:
    made = ParquetFeatures(tmp_path / "store")
    made.put("users", columns(USERS), ["user"])
    return made


def test_a_value_is_that_of_the_newest_row_at_or_before_the_moment(store: ParquetFeatures) -> None:
    asked = {"user": ["a", "a", "a", "b", "c"], "t_s": [9.9, 10.0, 29.9, 99.0, 99.0]}
    found = store.get_offline(asked, ["users:clicks", "users:city"])
    assert list(found) == ["user", "t_s", "clicks", "city"]
    assert listed(found["clicks"]) == [None, 1, 1, 7, None]
    assert listed(found["city"]) == [None, "Oslo", "Oslo", "Rome", None]
    assert listed(found["user"]) == asked["user"]
    later = store.get_offline({"user": ["a"], "t_s": [30.0]}, ["users:clicks", "users:city"])
    assert (listed(later["clicks"]), listed(later["city"])) == ([3], [None])


ROWS = st.lists(
    st.fixed_dictionaries({
        "user": st.sampled_from("ab"), "shop": st.integers(0, 1), "t_s": st.integers(0, 6).map(lambda v: v / 2),
        "x": st.integers(0, 9), "y": st.sampled_from(["", "p", "q"]),
    }),
    min_size=1, max_size=14,
)  # fmt: skip
ENTITIES = st.lists(
    st.fixed_dictionaries({
        "user": st.sampled_from("abc"), "shop": st.integers(0, 2), "t_s": st.integers(-1, 8).map(lambda v: v / 2),
    }),
    min_size=1, max_size=8,
)  # fmt: skip
LIMIT = st.none() | st.integers(0, 6).map(lambda v: v / 2)


CASES: dict[str, Any] = {
    "rows": ROWS, "entities": ENTITIES, "cut": st.integers(0, 14), "ttl_s": LIMIT, "from_s": LIMIT, "to_s": LIMIT,
}  # fmt: skip


def check_join(
    place: Path, rows: list[dict[str, Any]], entities: list[dict[str, Any]], cut: int, ttl_s: float | None,
    from_s: float | None, to_s: float | None,
) -> None:  # fmt: skip
    store = ParquetFeatures(place)
    for part in (rows[:cut], rows[cut:]):
        if part:
            store.put("v", columns(part), ["user", "shop"], ttl_s=ttl_s)
    found = store.get_offline(columns(entities), ["v:y", "v:x"], from_s, to_s)
    wanted = as_of(entities, rows, ["user", "shop"], ["y", "x"], ttl_s=ttl_s, from_s=from_s, to_s=to_s)
    assert {name: listed(found[name]) for name in ("y", "x")} == told(wanted)


@settings(max_examples=3, deadline=None)
@given(**CASES)
def test_the_join_is_the_loop(tmp_path_factory: pytest.TempPathFactory, **case: Any) -> None:
    check_join(tmp_path_factory.mktemp("store"), **case)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(**CASES)
def test_the_join_is_the_loop_in_many_cases(tmp_path_factory: pytest.TempPathFactory, **case: Any) -> None:
    check_join(tmp_path_factory.mktemp("store"), **case)


def test_nothing_of_after_the_moment_ever_changes_a_value(tmp_path: Path, store: ParquetFeatures) -> None:
    asked = {"user": ["a", "b"], "t_s": [25.0, 25.0]}
    before = store.get_offline(asked, ["users:clicks"])
    late = [{"user": one, "t_s": 25.0 + 1e-6, "clicks": 100, "city": "X"} for one in "ab"]
    store.put("users", columns(late), ["user"])
    assert listed(store.get_offline(asked, ["users:clicks"])["clicks"]) == listed(before["clicks"]) == [1, 7]


def test_features_of_several_views_by_other_keys_and_points_in_time_as_timestamps(store: ParquetFeatures) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    when = [datetime(2026, 1, 1, 12, tzinfo=UTC), datetime(2026, 1, 2, 12, tzinfo=UTC)]
    folder = store.root / "items"
    folder.mkdir()
    (folder / "view.json").write_text('{"keys": ["item"], "time": "at", "ttl_s": 3600.0}')
    pq.write_table(
        pa.table({"item": [1, 1], "at": when, "price": [2.0, 4.0], "new": [True, None]}), folder / "p.parquet"
    )
    noon = when[0].timestamp()
    asked = {"user": ["a", "b", "a"], "item": [1, 1, 9], "t_s": [noon, noon + 86_400, noon + 3601]}
    found = store.get_offline(asked, ["users:clicks", "items:price", "items:new"])
    assert listed(found["price"]) == [2.0, 4.0, None]
    assert listed(found["new"]) == [1.0, None, None]
    assert listed(found["clicks"]) == [3, 7, 3]
    later = store.get_offline({"item": [1, 1], "t_s": [noon + 3600, noon + 3601]}, ["items:price"])
    assert listed(later["price"]) == [2.0, None]
    assert store.get_schema("items").features == {"price": "DOUBLE", "new": "BOOLEAN"}


def test_without_moments_all_are_as_of_the_end(store: ParquetFeatures) -> None:
    found = store.get_offline({"user": ["b", "a"]}, ["users:clicks"], to_s=29.0)
    assert listed(found["clicks"]) == [7, 1]
    assert list(found) == ["user", "clicks"]


def test_rows_keep_their_order_and_number_in_a_table_of_many(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n, m = 40_000, 30_000
    store = ParquetFeatures(tmp_path)
    store.put("v", {"k": rng.integers(0, 500, n), "t_s": rng.random(n), "x": np.arange(n)}, ["k"])
    asked = {"k": rng.integers(0, 520, m), "t_s": rng.random(m)}
    found = store.get_offline(asked, ["v:x"])
    assert np.array_equal(np.asarray(found["k"]), asked["k"])
    got = listed(found["x"])
    k, t, x = (np.asarray(store_column) for store_column in _columns(tmp_path / "v"))
    for i in range(0, m, 997):
        mine = np.flatnonzero((k == asked["k"][i]) & (t <= asked["t_s"][i]))
        wanted = x[mine[np.argmax(t[mine])]] if len(mine) else None
        assert got[i] == wanted


def _columns(folder: Path) -> tuple[Any, ...]:
    return tuple(read_columns(next(folder.glob("*.parquet"))).values())


def test_a_schema_tells_keys_features_and_age(store: ParquetFeatures) -> None:
    assert store.get_schema("users") == Schema("users", ("user",), {"clicks": "BIGINT", "city": "VARCHAR"}, "t_s", None)


@pytest.mark.parametrize(
    ("entities", "features", "what"),
    [
        ({"user": ["a"], "t_s": [1.0]}, ["users:nope"], "has no feature 'nope': it has clicks, city"),
        ({"user": ["a"], "t_s": [1.0]}, ["shops:x"], "has no view 'shops': it has users"),
        ({"user": ["a"], "t_s": [1.0]}, ["clicks"], "use VIEW:FEATURE"),
        ({"user": ["a"], "t_s": [1.0]}, [], "no feature is asked for"),
        ({"user": ["a"], "t_s": [1.0]}, ["users:clicks", "u2:clicks"], "two of the features are called 'clicks'"),
        ({"id": ["a"], "t_s": [1.0]}, ["users:clicks"], "the entities have no 'user'"),
        ({"user": ["a"]}, ["users:clicks"], "the entities have no t_s"),
        ({"user": ["a"], "t_s": [None]}, ["users:clicks"], "none of them missing"),
        ({"user": ["a", "b"], "t_s": [1.0]}, ["users:clicks"], "rows, not one number"),
        ({"user": ["a"], "t_s": [1.0], "clicks": [0]}, ["users:clicks"], "have a column 'clicks' already"),
        ({"user": ["a"], "t_s": [1.0]}, ["../x:y"], "use letters"),
    ],
)
def test_what_cannot_be_joined_is_told(store: ParquetFeatures, entities: Any, features: Any, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        store.get_offline(entities, features)


def test_rows_of_other_keys_or_without_them_are_not_put(store: ParquetFeatures) -> None:
    with pytest.raises(UsageError, match=r"view 'users' has .*'user'"):
        store.put("users", columns(USERS), ["user", "city"])
    with pytest.raises(UsageError, match="no column 'id'"):
        store.put("other", columns(USERS), ["id"])
    (store.root / "users" / "view.json").write_text("{}")
    with pytest.raises(UsageError, match=r"view.json is damaged"):
        store.get_schema("users")
    with pytest.raises(UsageError, match="is no folder"):
        store_at(str(store.root / "nowhere"))


@pytest.fixture
def feast(monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """A small module with Feast's names, call signatures (0.67) and habits, over the rows above."""
    pytest.importorskip("pandas")
    import pandas as pd

    class RetrievalJob:
        def __init__(self, frame: Any) -> None:
            self.frame = frame

        def to_df(self, validation_reference: Any = None, timeout: int | None = None) -> Any:
            return self.frame

    some = types.SimpleNamespace
    view = some(
        name="users", join_keys=["user"], ttl=timedelta(0), batch_source=some(timestamp_field="at"),
        features=[some(name="clicks", dtype="Int64"), some(name="city", dtype="String")],
    )  # fmt: skip

    class FakeStore:
        def __init__(self, repo_path: str | None = None, config: Any = None, fs_yaml_file: Any = None) -> None:
            if repo_path != "repo":
                raise FileNotFoundError(f"Can't find {repo_path}/feature_store.yaml")

        def get_feature_view(self, name: str, allow_registry_cache: bool = False) -> Any:
            if name != "users":
                raise LookupError(f"Feature view {name} does not exist in project x")
            return view

        def get_historical_features(
            self, entity_df: Any = None, features: Any = (), full_feature_names: bool = False,
            start_date: datetime | None = None, end_date: datetime | None = None,
        ) -> RetrievalJob:  # fmt: skip
            assert isinstance(features, list)
            assert str(entity_df["event_timestamp"].dtype.tz) == "UTC"
            frame = entity_df.copy()
            asked = [
                {"user": u, "t_s": t.timestamp()} for u, t in zip(frame["user"], frame["event_timestamp"], strict=True)
            ]
            names = [one.split(":")[1] for one in features]
            found = as_of(asked, USERS, ["user"], names)
            for name in names:
                frame[name] = pd.array([one[name] for one in found], dtype="Int64" if name == "clicks" else "object")
            known = {
                row["user"] for row in USERS
            }  # as the file store does: out with those that have rows, all too late
            late = [one[names[0]] is None and row["user"] in known for one, row in zip(found, asked, strict=True)]
            frame = frame[[not one for one in late]]
            return RetrievalJob(frame.sort_values("event_timestamp", ascending=False).reset_index(drop=True))

    monkeypatch.setitem(sys.modules, "feast", types.SimpleNamespace(FeatureStore=FakeStore))
    return store_at("feast:repo")


def test_feast_gives_what_the_folder_gives_in_the_order_of_the_entities(
    feast: FeatureStore, store: ParquetFeatures
) -> None:
    asked = {"user": ["b", "a", "a", "c"], "t_s": [99.0, 9.0, 29.9, 50.0]}
    ours, theirs = (one.get_offline(asked, ["users:clicks", "users:city"]) for one in (store, feast))
    assert {name: listed(v) for name, v in theirs.items()} == {name: listed(v) for name, v in ours.items()}
    early = feast.get_offline({"user": ["a"]}, ["users:clicks"], to_s=15.0)
    assert listed(early["clicks"]) == [1]
    assert feast.get_schema("users") == Schema("users", ("user",), {"clicks": "Int64", "city": "String"}, "at", None)


def test_what_feast_cannot_do_or_does_not_have_is_told(feast: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"user": ["a"], "t_s": [99.0]}
    with pytest.raises(UsageError, match="give no from_s"):
        feast.get_offline(asked, ["users:clicks"], from_s=1.0)
    with pytest.raises(UsageError, match="Feast has no view 'shops'"):
        feast.get_offline(asked, ["shops:x"])
    with pytest.raises(UsageError, match="has no feature 'x'"):
        feast.get_offline(asked, ["users:x"])
    with pytest.raises(UsageError, match="is no Feast repository"):
        store_at("feast:elsewhere").get_schema("users")
    monkeypatch.setitem(sys.modules, "feast", None)
    with pytest.raises(MissingExtra, match="feast"):
        store_at("feast:repo").get_schema("users")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_feast_itself_gives_what_the_folder_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: ParquetFeatures
) -> None:
    feast = pytest.importorskip("feast")
    import pandas as pd

    (tmp_path / "feature_store.yaml").write_text(
        "project: shop\nregistry: registry.db\nprovider: local\noffline_store: {type: file}\n"
        "online_store: {type: sqlite, path: online.db}\nentity_key_serialization_version: 3\n"
    )
    monkeypatch.chdir(tmp_path)
    begin = 1.7e9
    when = pd.to_datetime([(begin + row["t_s"]) * 1e6 for row in USERS], unit="us", utc=True)
    rows = {"user": [row["user"] for row in USERS], "at": when, "clicks": [row["clicks"] for row in USERS]}
    pd.DataFrame(rows).to_parquet("users.parquet")
    user = feast.Entity(name="user", join_keys=["user"], value_type=feast.ValueType.STRING)
    source = feast.FileSource(path="users.parquet", timestamp_field="at")
    fields = [feast.Field(name="clicks", dtype=feast.types.Int64)]
    feast.FeatureStore(".").apply(
        [
            user,
            feast.FeatureView(name="users", entities=[user], schema=fields, source=source, ttl=timedelta(seconds=15)),
        ]
    )
    asked = {"user": ["b", "a", "a", "c", "a"], "t_s": [21.0, 9.0, 29.9, 50.0, 30.0]}
    late = {**asked, "t_s": [begin + one for one in asked["t_s"]]}
    about = store.root / "users" / "view.json"
    about.write_text(about.read_text().replace("null", "15.0"))
    theirs = store_at("feast:.").get_offline(late, ["users:clicks"])
    assert listed(theirs["clicks"]) == listed(store.get_offline(asked, ["users:clicks"])["clicks"])
    assert listed(theirs["clicks"]) == [7, None, None, None, 3]


def test_the_proxy_tool_joins_features_as_of_each_row(store: ParquetFeatures, tmp_path: Path) -> None:
    import json

    (tmp_path / "t.csv").write_text("user,at,y\na,9,0\na,12,1\nb,50,0\na,40,1\n")
    given_ = ["assess", "proxy", str(tmp_path / "t.csv"), "--label", "y", "--by", "user", "--key", "k", "--set",
              "timestamp=at", "--store", str(store.root), "--out", str(tmp_path / "p"), "--json"]  # fmt: skip
    found = CliRunner().invoke(app, [*given_, "--feature", "users:clicks"])
    assert found.exit_code == 0, found.output
    made = read_artefact(tmp_path / "p", "proxy")
    assert made.sha256 == json.loads(found.stdout.splitlines()[-1])["sha256"]
    assert [one["kind"] for one in made.inputs] == ["table", "features"]
    rows = [read_columns(made.file(name)) for name in made.manifest["files"] if "part-" in name]
    pairs = [(listed(one["at"]), listed(one["clicks"])) for one in rows]
    told_ = {at: value for each in pairs for at, value in zip(*each, strict=True)}
    assert told_ == {9.0: None, 12.0: 1.0, 50.0: 7.0, 40.0: 3.0}
    assert isinstance(CliRunner().invoke(app, given_).exception, UsageError)


def test_features_go_by_view_in_their_order() -> None:
    assert by_view(["b:x", "a:y", "b:z"]) == {"b": ["x", "z"], "a": ["y"]}
