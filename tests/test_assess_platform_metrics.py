"""Prometheus: the metrics of a run, as text and at an endpoint, over and going on; read by Prometheus' own parser."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import fieldfare as ff
from fieldfare.assess.platform.journal import Journal, cite_run, peak_per_s, read_journal
from fieldfare.assess.platform.prometheus import (
    Family,
    Live,
    exposition,
    families,
    number,
    serve,
    source_of,
    write,
)
from fieldfare.cli import app
from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.store.runs import RunFolder
from fieldfare.store.tasks import TASK

SPEC = {
    "fl_virtual_time_seconds", "fl_model_version", "fl_tasks_total", "fl_task_duration_seconds", "fl_staleness",
    "fl_concurrency", "fl_buffer_fill", "fl_available_devices", "fl_bytes_total", "fl_updates_per_second",
    "fl_eval_metric", "fl_executor_up", "fl_device_seconds_total", "fl_checkpoint_age_seconds",
}  # fmt: skip


def job(**more: Any) -> ff.Job:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(160, 4)).astype(np.float32), rng.integers(0, 2, 160)
    data = ff.data.from_numpy(x, y, client=np.arange(160) % 16, test_fraction=0.2)
    return ff.Job(
        data=data, model=ff.mlp(4, 4, 2), algorithm=ff.FedBuff(6, 6, 3), training=ff.Training(lr=0.1, batch_size=10),
        simulated=ff.Simulated(workers=1), evaluate=ff.Evaluation(every=2), **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = job().run(runs=tmp_path_factory.mktemp("runs"), report=False)
    assert found.path is not None
    return found.path


def parsed(text: str) -> dict[str, Any]:
    parser = pytest.importorskip("prometheus_client.parser")
    out: dict[str, Any] = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            out[sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "run")] = sample.value
    return out


def test_every_metric_of_the_specification_is_there_and_agrees_with_the_summary(run: Path) -> None:
    folder, journal = read_journal(run)
    found = families(journal, folder.name)
    assert {one.name for one in found} == SPEC
    told = parsed(exposition(found))
    summary = json.loads((run / "summary.json").read_text())
    assert told["fl_model_version",] == summary["rounds"] == 6
    assert told["fl_virtual_time_seconds",] == summary["virtual_s"]
    assert told["fl_tasks_total", "outcome=ok"] == summary["tasks"]["ok"] == 18
    assert told["fl_bytes_total", "dir=up"] == summary["bytes_up"]
    assert told["fl_device_seconds_total", "outcome=ok"] == summary["device_s"]["ok"]
    assert told["fl_eval_metric", "group=test", "name=accuracy"] == summary["final"]["accuracy"]
    assert told["fl_task_duration_seconds_count",] == sum(summary["tasks"].values())
    assert told["fl_task_duration_seconds_sum",] == pytest.approx(sum(summary["device_s"].values()))
    assert told["fl_staleness_count",] == 18
    assert told["fl_buffer_fill",] == 3
    assert told["fl_executor_up", "executor=local"] == 0
    assert told["fl_available_devices",] == 16


def test_a_run_that_goes_on_is_up_and_its_counters_only_grow(tmp_path: Path) -> None:
    with RunFolder.create_at(tmp_path / "run") as folder:
        folder.write_json("config.json", {"job": {"simulated": {"on": "ray"}}})
        assert parsed(exposition(families(read_journal(folder.path)[1])))["fl_executor_up", "executor=ray"] == 1
        before = -1.0
        for version in (1, 2):
            folder.append("rounds.jsonl", row(version))
            tasks = np.zeros(4, TASK)
            tasks["round"], tasks["start"], tasks["end"] = version, 10 * version - 5, 10 * version
            folder.add_records("tasks.bin", tasks.tobytes())
            folder.flush()
            told = parsed(exposition(families(read_journal(folder.path)[1])))
            assert told["fl_model_version",] == version
            assert told["fl_tasks_total", "outcome=ok"] == 4 * version > before
            assert told["fl_task_duration_seconds_bucket", "le=5"] == 4 * version
            assert told["fl_updates_per_second",] == 4 * version / (10 * version)
            assert told["fl_concurrency",] == 7
            before = told["fl_tasks_total", "outcome=ok"]
    assert read_journal(tmp_path / "run")[1].status == "incomplete"


def row(version: int) -> dict[str, Any]:
    return {"round": version, "version": version, "virtual_s": 10.0 * version, "tasks": {"ok": 4, "stale": 1},
            "device_s": {"ok": 20.0, "stale": 5.0}, "at_work": 7, "clients": 4, "bytes_down": 50.0 * version,
            "bytes_up": 40.0 * version, "staleness": 0.5, "loss": 1.0 / version}  # fmt: skip


@given(st.lists(st.floats(0, 5000), min_size=1, max_size=60))
def test_buckets_of_a_histogram_count_what_is_at_most_their_edge(seconds: list[float]) -> None:
    tasks = np.zeros(len(seconds), TASK)
    tasks["end"] = seconds
    found = next(one for one in families(Journal((row(1),), tasks)) if one.name == "fl_task_duration_seconds")
    for suffix, labels, value in found.samples:
        if suffix == "_bucket":
            edge = float(dict(labels)["le"].replace("+Inf", "inf"))
            assert value == sum(one <= edge for one in seconds)
    assert [value for suffix, _, value in found.samples if suffix == "_count"] == [len(seconds)]


def test_without_tasks_one_by_one_totals_stand_for_histograms() -> None:
    told = parsed(exposition(families(Journal((row(1), row(2))))))
    assert told["fl_task_duration_seconds_count",] == 10
    assert told["fl_task_duration_seconds_sum",] == 50
    assert told["fl_staleness_sum",] == 4
    assert told["fl_task_duration_seconds_bucket", "le=+Inf"] == 10
    assert told["fl_updates_per_second",] == 8 / 20


def test_what_is_not_recorded_has_no_sample() -> None:
    told = families(Journal(()))
    assert {one.name for one in told} == {"fl_model_version", "fl_executor_up"}
    assert "fl_checkpoint_age_seconds" not in exposition(told)


@given(st.text(max_size=20), st.floats(allow_nan=False))
def test_labels_and_numbers_survive_prometheus_own_parser(label: str, value: float) -> None:
    family = Family("fl_x", "gauge", "A \\ b\nc.", (("", (("name", label),), value),))
    if "\r" in label or any(one in label for one in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"):
        return  # the parser of prometheus-client splits lines there, Prometheus itself does not
    parser = pytest.importorskip("prometheus_client.parser")
    (found,) = parser.text_string_to_metric_families(exposition([family]))
    (sample,) = found.samples
    assert sample.labels == {"name": label}
    assert sample.value == value == float(number(value))


def test_a_file_for_a_collector_is_written_whole(tmp_path: Path, run: Path) -> None:
    file = tmp_path / "fl.prom"
    write(file, source_of(str(run))())
    assert parsed(file.read_text())["fl_model_version",] == 6
    assert [one.name for one in tmp_path.iterdir()] == ["fl.prom"]


@pytest.fixture
def endpoint(run: Path) -> Iterator[int]:
    pytest.importorskip("prometheus_client")
    up = serve(source_of(str(run)), 0)
    yield up.port
    up.close()


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_an_endpoint_serves_the_same_samples(run: Path, endpoint: int) -> None:
    served, told = parsed(scraped(endpoint)), parsed(exposition(source_of(str(run))()))
    assert {one[0] for one in served} == {one[0] for one in told}
    for key, value in told.items():
        if key[0] != "fl_checkpoint_age_seconds":
            assert served[key] == value
    with pytest.raises(UsageError, match=f"port {endpoint} of 127.0.0.1 cannot be served"):
        serve(source_of(str(run)), endpoint)


def test_a_jobs_callback_writes_and_serves_while_the_job_runs(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    live = Live(tmp_path / "fl.prom", port=0)
    seen: list[float] = []
    try:
        watch = job(callbacks=(live, lambda _: seen.append(parsed(scraped(live.port or 0))["fl_model_version",])))
        found = watch.run(runs=None)
        assert seen == [1, 2, 3, 4, 5, 6]
        told = parsed((tmp_path / "fl.prom").read_text())
        assert told["fl_tasks_total", "outcome=ok"] == found.summary["tasks"]["ok"]
        watch.run(runs=None)
        assert parsed((tmp_path / "fl.prom").read_text()) == told
    finally:
        live.close()
    with pytest.raises(UsageError, match="nowhere to put its metrics"):
        Live()


def test_without_prometheus_client_an_endpoint_is_refused_and_text_is_not(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with pytest.raises(MissingExtra, match="prometheus"):
        serve(source_of(str(run)), 0)
    assert "fl_model_version" in exposition(source_of(str(run))())


def test_the_command_prints_writes_and_tells_as_json(tmp_path: Path, run: Path) -> None:
    text = CliRunner().invoke(app, ["assess", "metrics", str(run)])
    assert parsed(text.stdout)["fl_model_version",] == 6
    found = CliRunner().invoke(app, ["assess", "metrics", run.name, "--runs", str(run.parent), "--json"])
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["status"] == "complete"
    assert told["values"]["fl_tasks_total"] == {"outcome=ok": 18}
    out = tmp_path / "fl.prom"
    assert CliRunner().invoke(app, ["assess", "metrics", str(run), "--out", str(out), "--every", "5"]).exit_code == 0
    assert parsed(out.read_text())["fl_model_version",] == 6
    for words in (["--every", "5"], ["--out", "x", "--serve", "0"]):
        assert isinstance(CliRunner().invoke(app, ["assess", "metrics", str(run), *words]).exception, UsageError)


def test_a_peak_is_the_fullest_whole_minute() -> None:
    assert peak_per_s(np.array([])) is None
    assert peak_per_s(np.array([1.0, 2.0])) == pytest.approx(0.5)
    assert peak_per_s(np.arange(0, 180.0), np.full(180, 2.0)) == 2.0


def test_a_run_is_cited_by_what_it_recorded(tmp_path: Path, run: Path) -> None:
    assert cite_run(run) == cite_run(run)
    assert cite_run(run)["path"] == run.name
    assert cite_run(run)["sha256"] != cite_run(tmp_path)["sha256"]
