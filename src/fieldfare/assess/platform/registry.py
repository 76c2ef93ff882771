"""A registry of models: put, get, promote; every version with its signature and its lineage, as hashes of artefacts.

Here: what a registry does, and the one in a folder. Not here: MLflow's (`mlflow_registry`), what is published of a
simulation (`publish`). Layout: `<root>/<name>/<version>/` is an artefact of kind `model` (manifest.json and
model.safetensors), `<root>/<name>/versions.json` lists them in order, `stages.json` is `{stage: version}`.
Invariants: a version never changes; a stage has
one version at a time; weights that are not what the manifest says are refused.
"""

from __future__ import annotations

import fcntl
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fieldfare.assess.artefact import Artefact, Draft, Value, cite, digest, read_artefact
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.store.files import write_atomic
from fieldfare.store.models import read_model, write_model
from fieldfare.store.text import dumps, plain

STAGES = ("staging", "production", "archived")
WEIGHTS = "model.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Lineage = Sequence[Artefact | Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of a model: `weights` is a safetensors file here; `lineage` has `{kind, path, sha256}` each.

    `stages` it is in now; `sha256` is that of the weights file.
    """

    name: str
    version: str
    weights: Path
    sha256: str
    signature: Mapping[str, Any]
    lineage: Sequence[Mapping[str, Any]]
    stages: tuple[str, ...] = ()

    def model(self, layout: Layout | None = None) -> Params:
        """Its parameters; with a `layout`, in its order, refused where they do not fit."""
        return read_model(self.weights, layout)


class Registry(Protocol):
    """What holds models: a folder, or MLflow's model registry."""

    def put(
        self, name: str, version: str, weights: Params | str | Path, signature: Mapping[str, Any], lineage: Lineage
    ) -> Entry:
        """Add a version, for good; the same again changes nothing, another content under its number is refused."""
        ...

    def get(self, name: str, version: str | None = None) -> Entry:
        """A version, by its number or the stage it is in; without one, the last that was put."""
        ...

    def promote(self, name: str, version: str, stage: str) -> Entry:
        """Put a version in a stage, which has one version at a time."""
        ...


@dataclass(frozen=True, slots=True)
class FolderRegistry:
    """Models in a folder that programs may read: artefacts of kind `model`, and a file of stages."""

    root: Path

    def put(
        self, name: str, version: str, weights: Params | str | Path, signature: Mapping[str, Any], lineage: Lineage
    ) -> Entry:
        """See `Registry`. Cost: one copy of the weights."""
        place = self._folder(name) / checked(version, "version")
        with self._alone(name), tempfile.TemporaryDirectory(prefix="fieldfare-") as temporary:
            file = file_of(weights, Path(temporary))
            order = self._versions(name)
            if version in order:
                kept = self.get(name, version)
                if (kept.sha256, plain(kept.signature), hashes(kept.lineage)) != (
                    digest(file), plain(signature), hashes(cited(lineage)),
                ):  # fmt: skip
                    raise UsageError(f"{name} {version} is in {self.root} already and differs: give a new version.")
                return kept
            told = read_model(file)
            draft = Draft("model", params={"name": name, "version": version, "signature": dict(signature)},
                          inputs=cited(lineage))  # fmt: skip
            draft.values["parameters"] = Value(float(told.layout.size), "1")
            draft.values["model_bytes"] = Value(float(file.stat().st_size), "B")
            draft.files[WEIGHTS] = file
            draft.write(place)
            write_atomic(self._folder(name) / "versions.json", [dumps([*order, version], indent=1), b"\n"])
        return self.get(name, version)

    def get(self, name: str, version: str | None = None) -> Entry:
        """See `Registry`. Cost: one reading of the weights file, for its hash."""
        versions, stages = self._versions(name), self._stages(name)
        if not versions:
            raise UsageError(f"{self.root} has no model {name!r}: put one there first.")
        number = versions[-1] if version is None else stages.get(version, version)
        if number not in versions:
            raise UsageError(f"{self.root} has no {name} {number}: it has {', '.join(versions)}.")
        made = read_artefact(self._folder(name) / number, "model")
        told, file = made.manifest["files"][WEIGHTS], made.file(WEIGHTS)
        if digest(file) != told["sha256"]:
            raise UsageError(f"{file} was changed since it was put there: put the model again, as a new version.")
        held = tuple(stage for stage in STAGES if stages.get(stage) == number)
        return Entry(name, number, file, str(told["sha256"]), made.params["signature"], made.inputs, held)

    def promote(self, name: str, version: str, stage: str) -> Entry:
        """See `Registry`."""
        checked_stage(stage)
        number = self.get(name, version).version
        with self._alone(name):
            stages = {**self._stages(name), stage: number}
            write_atomic(self._folder(name) / "stages.json", [dumps(stages, indent=1), b"\n"])
        return self.get(name, number)

    def names(self) -> list[str]:
        """All models there are."""
        return sorted(one.parent.name for one in self.root.glob("*/versions.json"))

    def _folder(self, name: str) -> Path:
        return self.root / checked(name, "model's name")

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """One writer of a model at a time; whoever comes second waits."""
        folder = self._folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _versions(self, name: str) -> list[str]:
        found = _json(self._folder(name) / "versions.json", [])
        return [str(one) for one in found]

    def _stages(self, name: str) -> dict[str, str]:
        found = _json(self._folder(name) / "stages.json", {})
        return {str(stage): str(version) for stage, version in found.items()}


def registry_at(where: str) -> Registry:
    """A registry by its address: `mlflow` or `mlflow:URI` (extra `mlflow`), anything else is a folder."""
    if where == "mlflow" or where.startswith("mlflow:"):
        from fieldfare.assess.platform.mlflow_registry import MLflowRegistry

        return MLflowRegistry(where.removeprefix("mlflow").removeprefix(":"))
    return FolderRegistry(Path(where))


def cited(lineage: Lineage) -> list[dict[str, Any]]:
    """Lineage as `{kind, path, sha256}` each."""
    return [cite(one) if isinstance(one, Artefact) else dict(one) for one in lineage]


def hashes(lineage: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of a lineage counts."""
    return [str(one["sha256"]) for one in lineage]


def file_of(weights: Params | str | Path, folder: Path) -> Path:
    """A copy of the weights as a safetensors file in `folder`; a file of ours or of another library stays as it is."""
    target = folder / WEIGHTS
    if isinstance(weights, Params):
        write_model(target, weights)
    else:
        read_model(weights)
        target.write_bytes(Path(weights).read_bytes())
    return target


def signature_of(run: str | Path) -> dict[str, Any]:
    """What the model of a run takes and holds: columns of its data (dtype, shape), parameters by name."""
    folder = Path(run)
    data = _json(folder / "data.json", {})
    model = read_model(folder / WEIGHTS)
    columns = {name: {"dtype": one["dtype"], "shape": one["shape"]} for name, one in data.get("columns", {}).items()}
    return {"columns": columns, "parameters": {name: list(shape) for name, _, shape in model.layout.items()}}


def checked(word: str, what: str) -> str:
    """A name that is safe as one part of a path; else `UsageError`."""
    if not _NAME.fullmatch(word) or word in STAGES:
        raise UsageError(f"{what} {word!r}: use letters, digits, dots and dashes, up to 100, and no stage's name.")
    return word


def checked_stage(stage: str) -> str:
    """A stage's name; else `UsageError`."""
    if stage not in STAGES:
        raise UsageError(f"stage {stage!r}: use one of {', '.join(STAGES)}.")
    return stage


def _json(file: Path, missing: Any) -> Any:
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return missing
    except ValueError as error:
        raise UsageError(f"{file} is damaged ({error}): put it back as it was.") from None
    if not isinstance(found, type(missing)):
        raise UsageError(f"{file} is damaged: it holds a {type(found).__name__}.")
    return found
