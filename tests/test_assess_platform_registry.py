"""Registries: versions never change, stages move, weights and lineage are kept by hash; a simulation is published."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import fieldfare as ff
from fieldfare.assess.artefact import Artefact, Draft, Value, read_artefact
from fieldfare.assess.platform import places
from fieldfare.assess.platform.publish import middle_trial, publish, trials
from fieldfare.assess.platform.registry import STAGES, FolderRegistry, Registry, registry_at
from fieldfare.assess.simulate.build import build
from fieldfare.assess.simulate.search import Search
from fieldfare.cli import app
from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.core.params import Params

SIGNATURE = {"columns": {"x": {"dtype": "float32", "shape": [64]}}, "parameters": {"w": [2, 2]}}
LINEAGE = [{"kind": "simulation", "path": "s", "sha256": "ab" * 32}]


@pytest.fixture(params=["folder", "mlflow"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv(places.CACHE, str(tmp_path / "cache"))
    if request.param == "mlflow":
        pytest.importorskip("mlflow")
        return registry_at(f"mlflow:{tmp_path / 'mlruns'}")
    return registry_at(str(tmp_path / "registry"))


def weights(value: float = 1.0) -> Params:
    return Params.pack({"w": np.full((2, 2), value, np.float32), "b": np.arange(2, dtype=np.float32)})


def same(one: Params, other: Params) -> bool:
    return one.layout == other.layout and np.array_equal(one.vector, other.vector)


def test_what_is_put_comes_back_with_signature_and_lineage(registry: Registry) -> None:
    entry = registry.put("ads", "1", weights(), SIGNATURE, LINEAGE)
    again = registry.get("ads", "1")
    assert same(again.model(), weights())
    assert (entry.sha256, again.signature, list(again.lineage)) == (again.sha256, SIGNATURE, LINEAGE)
    assert again.stages == ()
    registry.put("ads", "2", weights(2.0), SIGNATURE, LINEAGE)
    assert registry.get("ads").version == "2"
    assert same(registry.get("ads", "1").model(), weights())


def test_a_version_is_for_good(registry: Registry) -> None:
    registry.put("ads", "1", weights(), SIGNATURE, LINEAGE)
    registry.put("ads", "1", weights(), SIGNATURE, LINEAGE)
    for other in (
        (weights(3.0), SIGNATURE, LINEAGE),
        (weights(), {**SIGNATURE, "columns": {}}, LINEAGE),
        (weights(), SIGNATURE, []),
    ):
        with pytest.raises(UsageError, match=r"already and .*differs: give a new version"):
            registry.put("ads", "1", *other)
    assert same(registry.get("ads", "1").model(), weights())


def test_a_stage_has_one_version_at_a_time(registry: Registry) -> None:
    for version in ("1", "2"):
        registry.put("ads", version, weights(float(version)), SIGNATURE, LINEAGE)
    assert registry.promote("ads", "1", "production").stages == ("production",)
    assert registry.promote("ads", "2", "staging").stages == ("staging",)
    assert registry.promote("ads", "staging", "production").version == "2"
    assert registry.get("ads", "production").version == "2"
    assert registry.get("ads", "1").stages == ()


def test_what_is_not_there_or_not_allowed_is_told(registry: Registry) -> None:
    with pytest.raises(UsageError, match="has no model 'ads'"):
        registry.get("ads")
    registry.put("ads", "1", weights(), SIGNATURE, LINEAGE)
    with pytest.raises(UsageError, match="has no ads 2: it has 1"):
        registry.get("ads", "2")
    with pytest.raises(UsageError, match="has no ads production"):
        registry.get("ads", "production")
    with pytest.raises(UsageError, match="stage 'live': use one of staging"):
        registry.promote("ads", "1", "live")
    for bad in ("../x", "", "a/b", "production", "a'b"):
        with pytest.raises(UsageError, match="use letters"):
            registry.put("ads", bad, weights(), SIGNATURE, LINEAGE)
        with pytest.raises(UsageError, match="use letters"):
            registry.put(bad, "1", weights(), SIGNATURE, LINEAGE)


def test_weights_that_were_changed_in_the_folder_are_refused(tmp_path: Path) -> None:
    entry = FolderRegistry(tmp_path).put("ads", "1", weights(), SIGNATURE, LINEAGE)
    data = bytearray(entry.weights.read_bytes())
    data[-1] ^= 1
    entry.weights.write_bytes(data)
    with pytest.raises(UsageError, match="was changed since it was"):
        FolderRegistry(tmp_path).get("ads")
    (tmp_path / "ads" / "stages.json").write_text("[1")
    with pytest.raises(UsageError, match=r"stages.json is damaged"):
        FolderRegistry(tmp_path).get("ads")


def test_a_version_that_a_killed_program_left_unlisted_can_be_put_again(tmp_path: Path) -> None:
    registry = FolderRegistry(tmp_path)
    registry.put("ads", "1", weights(), SIGNATURE, LINEAGE)
    (tmp_path / "ads" / "versions.json").unlink()
    assert same(registry.put("ads", "1", weights(2.0), SIGNATURE, LINEAGE).model(), weights(2.0))
    assert registry.names() == ["ads"]


def test_writers_at_the_same_time_lose_no_version(tmp_path: Path) -> None:
    registry, versions = FolderRegistry(tmp_path), [str(i) for i in range(12)]

    def put(version: str) -> None:
        registry.put("ads", version, weights(float(version)), SIGNATURE, LINEAGE)
        registry.promote("ads", version, STAGES[int(version) % 3])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(put, versions))
    assert [registry.get("ads", one).model().vector[0] for one in versions] == [float(one) for one in versions]
    assert all(int(registry.get("ads", stage).version) % 3 == i for i, stage in enumerate(STAGES))


def test_without_mlflow_or_an_address_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="mlflow"):
        registry_at("mlflow").get("ads")
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(MissingExtra, match="mlflow"):
        registry_at("mlflow:/nowhere").get("ads")


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    pytest.importorskip("sklearn")
    job = ff.Job(
        data=ff.data.digits(clients=16, partition=ff.dirichlet(0.5)), model=ff.mlp(64, 8, 10),
        algorithm=ff.FedAvg(1, 1), training=ff.Training(lr=0.1, batch_size=10), simulated=ff.Simulated(workers=1),
    )  # fmt: skip
    place = tmp_path_factory.mktemp("simulated")
    made_of = Draft("proxy", values={"clients": Value(16.0)}).write(place / "proxy")
    search = Search(concurrency=(4, 6), buffer=(3,), versions=4, trials=3, every=2, target=0.99, passes=2)
    return build(job, search, place / "simulation", inputs=[made_of])


def test_a_simulations_middle_trial_is_published_with_all_that_it_was_made_of(
    registry: Registry, simulation: Artefact
) -> None:
    made = publish(simulation, registry, name="digits", stage="staging")
    assert made.entry is not None
    kept = registry.get("digits", "staging")
    assert kept.version == simulation.sha256[:12]
    assert [one["kind"] for one in kept.lineage] == ["simulation", "proxy"]
    assert [one["sha256"] for one in kept.lineage] == [simulation.sha256, simulation.inputs[0]["sha256"]]
    assert kept.signature["columns"]["x"] == {"dtype": "float32", "shape": [64]}
    best, trial = simulation.params["best"], middle_trial(simulation)
    runs = simulation.path.with_name("simulation-runs")
    assert kept.weights.read_bytes() == (runs / "arms" / best / str(trial) / "model.safetensors").read_bytes()
    finals = sorted(one["metrics"] for one in map(final, trials(simulation)) if one["best"])
    middle = [one for one in map(final, trials(simulation)) if one["best"] and one["trial"] == trial]
    assert middle[0]["metrics"] == finals[1]
    assert publish(simulation, registry, name="digits").entry == kept


def final(trial: dict[str, Any]) -> dict[str, Any]:
    value = next(value for name, value, _, _ in trial["metrics"] if name == "metric_final")
    return {"metrics": value, "trial": trial["params"]["trial"], "best": trial["tags"]["fieldfare.best"] == "true"}


def test_mlflow_has_a_run_for_every_trial_with_its_settings_and_virtual_time(
    tmp_path: Path, simulation: Artefact
) -> None:
    pytest.importorskip("mlflow")
    registry: Any = registry_at(f"mlflow:{tmp_path / 'mlruns'}")
    made = publish(simulation, registry, name="digits")
    assert len(made.runs) == 6
    assert publish(simulation, registry, name="digits").runs == made.runs
    evals = simulation.table("evals")
    best = [registry.client.get_run(one) for one in made.runs]
    best = [one for one in best if one.data.tags["fieldfare.best"] == "true"]
    assert {one.data.params["concurrency"] for one in best} == {str(int(simulation.number("concurrency") or 0))}
    assert {one.data.params["search.metric"] for one in best} == {"accuracy"}
    assert {one.data.tags["fieldfare.lineage.proxy"] for one in best} == {simulation.inputs[0]["sha256"]}
    for run in best:
        mine = np.asarray(evals["trial"]) == int(run.data.params["trial"])
        told = registry.client.get_metric_history(run.info.run_id, "accuracy")
        assert [one.step for one in told] == np.asarray(evals["version"])[mine].tolist()
        assert [one.value for one in told] == np.asarray(evals["value"])[mine].tolist()
        assert [one.timestamp for one in told] == [round(1000 * t) for t in np.asarray(evals["t_s"])[mine].tolist()]


def test_a_run_that_was_left_half_written_is_made_again(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    registry: Any = registry_at(f"mlflow:{tmp_path / 'mlruns'}")
    told: dict[str, Any] = {"params": {"a": 1}, "tags": {}, "metrics": [("m", 0.5, 2.0, 1)]}
    first = registry.track("k", "one", **told)
    registry.client.update_run(first, status="RUNNING")
    second = registry.track("k", "one", **told)
    assert second != first
    assert registry.track("k", "one", **told) == second


def test_the_command_publishes_and_says_what(tmp_path: Path, simulation: Artefact) -> None:
    decision = Draft("decision", values={"x": Value(1.0)}).write(tmp_path / "decision")
    words = ["assess", "publish", str(simulation.path), "--to", str(tmp_path / "r"), "--name", "digits",
             "--version", "7",
             "--stage", "production", "--with", str(decision.path)]  # fmt: skip
    found = CliRunner().invoke(app, [*words, "--json"])
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["model"]["stages"] == ["production"]
    assert decision.sha256 in [one["sha256"] for one in told["model"]["lineage"]]
    assert read_artefact(tmp_path / "r" / "digits" / "7", "model").number("parameters") == 610
    assert "digits 7 production" in CliRunner().invoke(app, words).output


def test_what_cannot_be_published_is_told(tmp_path: Path, simulation: Artefact) -> None:
    registry = FolderRegistry(tmp_path)
    with pytest.raises(UsageError, match="publish takes a simulation"):
        publish(Draft("bench").write(tmp_path / "b"), registry, name="m")
    with pytest.raises(UsageError, match="name the folder of the simulation's trials"):
        publish(simulation, registry, name="m", work=tmp_path)
