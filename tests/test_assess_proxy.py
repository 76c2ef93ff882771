"""Proxy data: presets of the paper's table 2, clients by a field or made up, partition files, statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.assess.artefact import read_artefact
from fieldfare.assess.proxy import statistics
from fieldfare.assess.proxy.presets import PRESETS, preset, sizes
from fieldfare.assess.proxy.share import Skew, by_field, made_up, sampled
from fieldfare.assess.proxy.write import Config, build, federated
from fieldfare.cli import app
from fieldfare.core.errors import UsageError
from fieldfare.data.statistics import js_divergence
from fieldfare.fleet.columns import text_of

ROWS = 3000


def table(seed: int = 0) -> dict[str, Any]:
    gen = np.random.default_rng(seed)
    user = gen.integers(0, 60, ROWS)
    return {
        "user": text_of([f"member-{u}" for u in user]),
        "y": (gen.random(ROWS) < 0.1 + 0.01 * (user % 30)).astype(np.int64),
        "x1": gen.normal(user, 1.0),
        "x2": gen.normal(0, 1, ROWS),
        "when": np.sort(gen.uniform(0, 90 * 86_400.0, ROWS)),
    }


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_match_the_mean_within_5_and_the_deviation_within_15_per_cent(name: str) -> None:
    shape = preset(name)
    found = sizes(shape, 100_000, seed=1)
    assert found.mean() == pytest.approx(shape.mean, rel=0.05)
    assert found.std() == pytest.approx(shape.std, rel=0.15)
    assert 1 <= found.min() <= found.max() <= shape.largest
    for n, share in shape.points:
        assert (found <= n).mean() == pytest.approx(share, abs=0.06)


def test_sizes_depend_on_the_seed_in_order_only() -> None:
    one, other = sizes(preset("A"), 5000, seed=1), sizes(preset("A"), 5000, seed=2)
    assert one.tolist() == sizes(preset("A"), 5000, seed=1).tolist()
    assert one.tolist() != other.tolist()
    assert sorted(one.tolist()) == sorted(other.tolist())
    with pytest.raises(UsageError, match="use A, B, C"):
        preset("D")


def test_clients_of_a_field_are_those_of_the_field_and_their_numbers_say_nothing() -> None:
    columns = table()
    shared = by_field(columns["user"])
    for i in range(len(shared.sizes)):
        mine = columns["user"].codes[shared.rows[shared.offsets[i] : shared.offsets[i + 1]]]
        assert len(set(mine.tolist())) == 1
    assert sorted(shared.rows.tolist()) == list(range(ROWS))
    firsts = {tuple(by_field(columns["user"]).sizes.tolist()) for _ in range(3)}
    assert len(firsts) > 1
    keyed = [by_field(columns["user"], key=b"k").sizes.tolist() for _ in range(2)]
    assert keyed[0] == keyed[1] != by_field(columns["user"], key=b"other").sizes.tolist()


def test_a_sample_of_clients_keeps_all_their_rows_and_their_distribution() -> None:
    gen = np.random.default_rng(0)
    whole = by_field(np.repeat(np.arange(20_000), gen.lognormal(1, 1, 20_000).astype(int) + 1), key=b"k")
    few = sampled(whole, 8000, seed=3)
    grid = np.unique(whole.sizes)
    cdf = [np.searchsorted(np.sort(one.sizes), grid, "right") / len(one.sizes) for one in (whole, few)]
    assert np.abs(cdf[0] - cdf[1]).max() < 0.02
    rows = [set(whole.rows[a:b].tolist()) for a, b in zip(whole.offsets, whole.offsets[1:], strict=False)]
    assert all(set(few.rows[a:b].tolist()) in rows for a, b in zip(few.offsets[:9], few.offsets[1:10], strict=True))


@settings(max_examples=25)
@given(st.integers(1, 60), st.sampled_from([None, 0.05, 0.5, 10.0]), st.sampled_from([None, 0.5]), st.integers(0, 9))
def test_made_up_clients_own_no_row_twice_and_nobody_goes_without(
    clients: int, alpha: float | None, beta: float | None, seed: int
) -> None:
    labels = np.random.default_rng(1).integers(0, 5, 300)
    shared = made_up(labels, 300, clients, Skew(alpha, beta), seed)
    assert len(shared.sizes) == clients
    assert shared.sizes.min() >= 1
    assert sorted(shared.rows.tolist()) == list(range(300))


def test_small_alphas_make_clients_unlike_and_presets_scale_down_to_what_there_is() -> None:
    labels = np.random.default_rng(1).integers(0, 5, 4000)

    def skew(alpha: float) -> float:
        shared = made_up(labels, 4000, 40, Skew(alpha), 1)
        counts = np.zeros((40, 5), np.int64)
        np.add.at(counts, (shared.owner, labels[shared.rows]), 1)
        return float(js_divergence(counts).mean())

    assert skew(0.1) > 2 * skew(1.0) > 4 * skew(10.0)
    shared = made_up(labels, 4000, 400, Skew(1.0, None, preset("A")), 1)
    assert len(shared.rows) == 4000
    assert shared.sizes.max() > 20 * np.median(shared.sizes)


def test_partitions_are_one_a_executor_and_split_no_client(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    made = build(table(), Config("y", "user", executor_memory_bytes=30_000), tmp_path / "p", key=b"k")
    index = {k: np.asarray(v) for k, v in made.table("index").items()}
    parts = sorted(n for n in made.manifest["files"])
    assert len(parts) == index["part"].max() + 1 == 4
    seen: dict[int, int] = {}
    for name in parts:
        with pq.ParquetFile(made.file(name)) as file:
            for g in range(file.num_row_groups):
                clients = file.read_row_group(g, ["client"]).column("client").to_numpy()
                for client in np.unique(clients):
                    assert int(client) not in seen
                    seen[int(client)] = int((clients == client).sum())
                    at = index["client"] == client
                    assert clients[index["offset"][at][0]] == client
                    assert (f"part-{index['part'][at][0]}.parquet", index["row_group"][at][0]) == (name, g)
    assert [seen[i] for i in range(60)] == index["n"].tolist()
    assert (index["label_0"] + index["label_1"]).tolist() == index["n"].tolist()


def test_the_proxy_reads_back_as_federated_data_with_the_same_clients(tmp_path: Path) -> None:
    columns = table()
    made = build(columns, Config("y", "user", features=("x1", "x2")), tmp_path / "p", key=b"k")
    fed = federated(read_artefact(tmp_path / "p"), classes=2)
    shared = by_field(columns["user"], key=b"k")
    assert fed.sizes.tolist() == shared.sizes.tolist()
    rows = shared.rows[: shared.offsets[1]]
    mine = fed.columns["x"][fed.rows[: fed.offsets[1]]]
    assert mine == pytest.approx(np.stack([columns["x1"][rows], columns["x2"][rows]], axis=1), rel=1e-6)
    assert made.values["natural"].value == 1.0
    assert made.sha256 == build(columns, Config("y", "user", features=("x1", "x2")), tmp_path / "q", key=b"k").sha256


def test_several_alphas_make_several_versions_each_with_its_statistics(tmp_path: Path) -> None:
    made = build(table(), Config("y", clients=30, alphas=(0.1, 10.0)), tmp_path / "p")
    assert made.values["label_skew"].value > made.values["label_skew_v1"].value  # type: ignore[operator]
    assert made.values["natural"].value == 0.0
    assert federated(made, 1).n_clients == 30


def test_lookback_keeps_the_last_days_and_needs_a_timestamp(tmp_path: Path) -> None:
    whole = build(table(), Config("y", "user", timestamp="when"), tmp_path / "a", key=b"k")
    month = build(table(), Config("y", "user", timestamp="when", lookback_days=30), tmp_path / "b", key=b"k")
    assert month.number("records") == pytest.approx(whole.number("records") / 3, rel=0.1)  # type: ignore[operator]
    assert month.number("lookback_days") == pytest.approx(30, rel=0.02)
    with pytest.raises(UsageError, match="needs the timestamp"):
        build(table(), Config("y", "user", lookback_days=30), tmp_path / "c")


def test_statistics_see_what_differs_between_clients() -> None:
    columns = table()
    shared = by_field(columns["user"], key=b"k")
    found = statistics.of_features({n: columns[n][shared.rows] for n in ("x1", "x2")}, shared.owner, 60)
    assert found["between"][0] > 0.9
    assert found["between"][1] < 0.1
    doubled = {"a": np.array([1, 2, 1, 1]), "b": np.array([0.5, 0.5, 0.5, 0.6])}
    assert statistics.duplicates(doubled) == 1
    alike = statistics.of_labels(np.array([[5, 5], [1, 1]]), 0)
    apart = statistics.of_labels(np.array([[5, 0], [0, 5]]), 0)
    assert alike["label_skew"].value == alike["label_skew_pairs"].value == 0.0
    assert apart["label_skew_pairs"].value == pytest.approx(1.0)
    assert statistics.of_sizes(np.array([1, 5, 30]), batch=20)["below_batch"].value == 2


def test_columns_that_are_not_there_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column 'label': it has"):
        build(table(), Config("label", "user"), tmp_path / "a")
    with pytest.raises(UsageError, match="no column 'member'"):
        build(table(), Config("y", "member"), tmp_path / "a")
    with pytest.raises(UsageError, match="one whole number or text a row"):
        build(table(), Config("y", "x1"), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_rows_held_out_are_of_each_client_and_in_no_partition(tmp_path: Path) -> None:
    columns = table() | {"row": np.arange(ROWS)}
    config = Config("y", "user", features=("row",), test_share=0.3, seed=2)
    made = build(columns, config, tmp_path / "p", key=b"k")
    fed = federated(made, classes=2)
    assert fed.test is not None
    trained, held = (set(one["x"][:, 0].astype(int).tolist()) for one in (fed.columns, fed.test))
    assert trained | held == set(range(ROWS))
    assert not trained & held
    assert len(held) == made.number("test_records") == ROWS - made.number("records")  # type: ignore[operator]
    assert 0.27 * ROWS < len(held) < 0.33 * ROWS
    of = columns["user"].codes[sorted(held)]
    assert len(set(of.tolist())) == 60
    assert np.asarray(made.table("index")["n"]).sum() == len(trained)
    assert made.sha256 == build(columns, config, tmp_path / "q", key=b"k").sha256
    other = federated(build(columns, Config("y", "user", features=("row",), test_share=0.3, seed=3), tmp_path / "r"))
    assert set(other.test["x"][:, 0].astype(int).tolist()) != held  # type: ignore[index]


def test_a_client_keeps_a_row_and_words_have_one_number_in_both_parts(tmp_path: Path) -> None:
    words = text_of([f"w{i % 7}" for i in range(80)])
    columns = {"user": np.repeat(np.arange(40), 2), "y": np.zeros(80, np.int64), "word": words, "n": np.arange(80) % 7}
    fed = federated(build(columns, Config("y", "user", test_share=0.9), tmp_path / "p"))
    assert fed.n_clients == 40
    assert fed.test is not None
    seen = np.concatenate([fed.columns["x"], fed.test["x"]])
    assert len({tuple(row) for row in seen.tolist()}) == 7
    with pytest.raises(UsageError, match="from 0 to below 1"):
        Config("y", test_share=1.0)


def test_the_moment_of_a_row_is_no_feature_unless_it_is_named_as_one(tmp_path: Path) -> None:
    made = build(table(), Config("y", "user", "when", ("x1",)), tmp_path / "p", key=b"k")
    assert federated(made).columns["x"].shape == (ROWS, 1)
    every = build(table(), Config("y", "user", "when"), tmp_path / "q", key=b"k")
    assert federated(every).columns["x"].shape == (ROWS, 2)
    named = build(table(), Config("y", "user", "when", ("x1", "when")), tmp_path / "r", key=b"k")
    assert federated(named).columns["x"].shape == (ROWS, 2)
    alone = build(table(), Config("y", "user", "when", ("when",)), tmp_path / "s", key=b"k")
    assert federated(alone).columns["x"].max() > 1e6


def test_an_empty_key_is_refused_as_it_hides_nobody(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("user,y\na,1\nb,0\n")
    line = ["assess", "proxy", str(tmp_path / "t.csv"), "--label", "y", "--by", "user", "--key", ""]
    told = CliRunner().invoke(app, [*line, "-o", str(tmp_path / "p")])
    assert "hashes without a key" in str(told.exception)
    assert not (tmp_path / "p").exists()
