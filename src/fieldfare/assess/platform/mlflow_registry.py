"""MLflow as a registry and as a tracker: models with signature and lineage, a simulation's trials as runs.

Here: the calls of MLflow's client. Not here: what is published (`publish`). MLflow numbers versions itself, so ours is
its tag `fieldfare.version`; a stage is one of its aliases. Invariants: what is there already is not made again; virtual
seconds stand where MLflow has wall time, in milliseconds, so that its charts by time are over virtual time.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fieldfare.assess.artefact import digest
from fieldfare.assess.platform.places import cache_folder
from fieldfare.assess.platform.registry import (
    STAGES,
    WEIGHTS,
    Entry,
    Lineage,
    checked,
    checked_stage,
    cited,
    file_of,
    hashes,
)  # fmt: skip
from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.core.params import Params
from fieldfare.store.text import dumps, plain

ABOUT = "fieldfare.json"
EXPERIMENT = "fieldfare"
_PER_CALL = 1000
_LONGEST = 500


@dataclass(frozen=True)
class MLflowRegistry:
    """Models and runs at an MLflow tracking URI: a server, a database, a folder; "" is MLFLOW_TRACKING_URI's."""

    uri: str = ""
    experiment: str = EXPERIMENT

    @cached_property
    def client(self) -> Any:
        """MLflow's own client."""
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # asked for where plain files are to be written
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise MissingExtra.of("mlflow", extra="mlflow") from None
        where = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not where:
            raise UsageError("mlflow without an address: use mlflow:URI, or set MLFLOW_TRACKING_URI.")
        try:
            return MlflowClient(where)
        except Exception as error:
            raise UsageError(f"MLflow at {where} cannot be reached: {_line(error)}") from None

    def put(
        self, name: str, version: str, weights: Params | str | Path, signature: Mapping[str, Any], lineage: Lineage
    ) -> Entry:
        """See `Registry`: a run that holds the weights, and a model version that names it."""
        checked(name, "model's name")
        checked(version, "version")
        with tempfile.TemporaryDirectory(prefix="fieldfare-") as temporary:
            file = file_of(weights, Path(temporary))
            sha256, sources = digest(file), cited(lineage)
            there = self._versions(name)
            if any(_number(one) == version for one in there):
                kept = self.get(name, version)
                if (kept.sha256, plain(kept.signature), hashes(kept.lineage)) != (
                    sha256, plain(dict(signature)), hashes(sources),
                ):  # fmt: skip
                    raise UsageError(f"MLflow has {name} {version} already and it differs: give a new version.")
                return kept
            about = {"name": name, "version": version, "sha256": sha256, "signature": dict(signature),
                     "lineage": sources}  # fmt: skip
            (Path(temporary) / ABOUT).write_bytes(dumps(about, indent=1) + b"\n")
            tags = {"fieldfare.version": version, "fieldfare.sha256": sha256}
            tags |= {f"fieldfare.lineage.{one['kind']}": str(one["sha256"]) for one in sources}
            run = self.client.create_run(self._experiment(), run_name=f"{name} {version}", tags=tags)
            for one in (file, Path(temporary) / ABOUT):
                self.client.log_artifact(run.info.run_id, str(one), "model")
            self.client.set_terminated(run.info.run_id)
        if not there and not self._known(name):
            self.client.create_registered_model(name)
        source = run.info.artifact_uri.rstrip("/") + "/model"
        self.client.create_model_version(name, source=source, run_id=run.info.run_id, tags=tags, await_creation_for=0)
        return self.get(name, version)

    def get(self, name: str, version: str | None = None) -> Entry:
        """See `Registry`. Cost: one download of the weights, into the cache folder."""
        found = self._find(name, version)
        sha256 = str(found.tags.get("fieldfare.sha256", ""))
        folder = cache_folder() / "mlflow" / found.run_id
        folder.mkdir(parents=True, exist_ok=True)
        place = Path(self.client.download_artifacts(found.run_id, "model", str(folder)))
        weights = place / WEIGHTS
        if not weights.is_file() or digest(weights) != sha256:
            raise UsageError(f"the weights of {name} {_number(found)} in MLflow are not what was put there: put again.")
        about = json.loads((place / ABOUT).read_bytes())
        aliases = self.client.get_registered_model(name).aliases
        held = tuple(stage for stage in STAGES if str(aliases.get(stage, "")) == str(found.version))
        return Entry(name, _number(found), weights, sha256, about["signature"], about["lineage"], held)

    def promote(self, name: str, version: str, stage: str) -> Entry:
        """See `Registry`: the stage is an alias of the model version."""
        found = self._find(name, version)
        self.client.set_registered_model_alias(name, checked_stage(stage), found.version)
        return self.get(name, _number(found))

    def track(
        self, key: str, run_name: str, *, params: Mapping[str, Any], tags: Mapping[str, str],
        metrics: Sequence[tuple[str, float, float, int]],
    ) -> str:  # fmt: skip
        """A run of `metrics` (name, value, virtual seconds, step), its id given; the run of the same key, if there.

        A run that a killed program left half written is removed and made again.
        """
        from mlflow.entities import Metric, Param, RunTag

        experiment = self._experiment()
        for one in self.client.search_runs([experiment], f"tags.`fieldfare.key` = '{key}'"):
            if one.info.status == "FINISHED":
                return str(one.info.run_id)
            self.client.delete_run(one.info.run_id)
        run = self.client.create_run(experiment, run_name=run_name, tags={"fieldfare.key": key})
        told = [Param(name, str(value)[:_LONGEST]) for name, value in params.items()]
        self.client.log_batch(run.info.run_id, params=told, tags=[RunTag(*one) for one in tags.items()])
        all_ = [Metric(name, value, round(1000 * t_s), step) for name, value, t_s, step in metrics]
        for at in range(0, len(all_), _PER_CALL):
            self.client.log_batch(run.info.run_id, metrics=all_[at : at + _PER_CALL])
        self.client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        return str(found.experiment_id if found else self.client.create_experiment(self.experiment))

    def _known(self, name: str) -> bool:
        return any(one.name == name for one in self.client.search_registered_models(f"name = '{name}'"))

    def _versions(self, name: str) -> list[Any]:
        """Our versions of a model, in MLflow's order of numbers."""
        found = self.client.search_model_versions(f"name = '{checked(name, 'model name')}'")
        return sorted((one for one in found if "fieldfare.version" in one.tags), key=lambda one: int(one.version))

    def _find(self, name: str, version: str | None) -> Any:
        there = self._versions(name)
        if not there:
            raise UsageError(f"MLflow has no model {name!r} of ours: put one there first.")
        if version is None:
            return there[-1]
        if version in STAGES:
            number = str(self.client.get_registered_model(name).aliases.get(version, ""))
            chosen = [one for one in there if str(one.version) == number]
        else:
            chosen = [one for one in there if _number(one) == version]
        if not chosen:
            raise UsageError(f"MLflow has no {name} {version}: it has {', '.join(map(_number, there))}.")
        return chosen[-1]


def _number(one: Any) -> str:
    return str(one.tags["fieldfare.version"])


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
