"""What goes to a device: the probe, a spec in JSON, and the file that makes a module.

Here: from a job file and a plan to a `Package`; sizes as they are on the wire. Not here: running it (`targets`).
Invariants: a package's name is a hash of what it makes a device do, and of nothing about this machine; declared nets go
as their layers and need NumPy alone, modules as the user's own file.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.core.params import Params
from fieldfare.core.settings import settings
from fieldfare.work.adapt import as_net
from fieldfare.work.dense import Activation, DenseNet, Linear

PROBE = Path(__file__).with_name("probe.py")
LOSSES = ("cross_entropy", "mse", "l1", "bce")
_SCHEMA = re.compile(r"(float16|float32|float64|u?int(?:8|16|32|64)|bool)(?:\[([\d,\s]*)\])?(?:<(\d+))?")


@settings
@dataclass(frozen=True)
class Plan:
    """What a device does: `repeats` times as many steps as `records` and `epochs` make, after `warmup` of them.

    `limit_s`: of one repeat; what takes longer is a timeout. FLINT measured 5,000 records.
    """

    records: int = 5_000
    batch: int = 20
    epochs: int = 1
    warmup: int = 3
    repeats: int = 3
    threads: int = 1
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.01
    limit_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("records", "batch", "epochs", "repeats", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"Plan({name}={getattr(self, name)}): use a whole number >= 1.")
        if self.warmup < 0 or not 0 < self.limit_s < 1e7 or not 0 <= self.lr < float("inf"):
            raise UsageError(
                f"Plan(warmup={self.warmup}, lr={self.lr}, limit_s={self.limit_s}): use warmup >= 0, lr >= 0 and a "
                "limit between 0 and 10,000,000 seconds."
            )
        if self.batch > self.records:
            raise UsageError(f"Plan(batch={self.batch}, records={self.records}): use a batch of at most the records.")


@dataclass(frozen=True, slots=True, eq=False)
class Package:
    """Files by name, of which `spec.json` tells `probe.py` what to do; `folder`: beside which the file of a module lies
    on this machine (None: nowhere)."""

    name: str
    spec: Mapping[str, Any]
    files: Mapping[str, bytes]
    folder: Path | None = None

    @property
    def plan(self) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], self.spec["plan"])

    @property
    def model(self) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], self.spec["model"])

    @property
    def limit_s(self) -> float:
        """After which nothing more is waited for: every repeat, and a minute to start."""
        return float(self.plan["limit_s"]) * (int(self.plan["repeats"]) + 1) + 60.0

    def with_spec(self, **more: Any) -> Package:
        """The package with more in its spec that only says how a device is played (its name stays)."""
        spec = {**self.spec, **more}
        return replace(self, spec=spec, files={**self.files, "spec.json": _json(spec)})


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model as its spec tells it, with the source that makes it where it is a module."""

    spec: Mapping[str, Any]
    source: bytes | None = None
    folder: Path | None = None


@settings
@dataclass(frozen=True)
class About:
    """What a file does not say of a model: its `name` in the artefact, its `version`, bytes of vocabularies and other
    files beside it (None: not told), its `loss` ("" is the job's, or cross-entropy), and its dummy `inputs` by name,
    such as {"x": "float32[64]", "y": "int64<10"}."""

    name: str = ""
    version: str = ""
    assets_bytes: float | None = None
    loss: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if self.assets_bytes is not None and not 0 <= self.assets_bytes < float("inf"):
            raise UsageError(f"About(assets_bytes={self.assets_bytes}): use a number of bytes >= 0, or None.")


def package(model: Model, plan: Plan) -> Package:
    """The package that makes a device train `model` by `plan`; equal ones have equal names."""
    probe = PROBE.read_bytes()
    spec: dict[str, Any] = {"plan": asdict(plan), "model": dict(model.spec)}
    said = hashlib.sha256(probe + _json(spec) + (model.source or b"")).hexdigest()[:16]
    spec["package"] = said
    files = {"probe.py": probe, "spec.json": _json(spec)}
    if model.source is not None:
        files["model.py"] = model.source
    return Package(said, spec, files, model.folder)


def model_of(path: str | Path, name: str | None = None, about: About | None = None) -> Model:
    """The model that a Python file makes: of a `Job` in it, a declared net, a torch net, or an `nn.Module`.

    `name`: what the file calls it (default: `job`, `model`, the only one). The file is the user's own program and is
    run as such. Cost: one serialisation of the model.
    """
    from fieldfare.load import load_names

    about, file = about or About(), Path(path)
    names = load_names(file)
    called, thing = _chosen(names, name, file)
    job = thing if hasattr(thing, "model") and hasattr(thing, "data") else None
    given = {key: schema(text) for key, text in about.inputs.items()}
    example = _rows(given) if job is None else {key: rows[:2] for key, rows in job.data.columns.items()}
    loss = about.loss or (None if job is None else job.loss)
    net: Any = as_net(thing if job is None else job.model, loss=loss, example=example)
    if not isinstance(net, DenseNet) and type(net).__name__ != "TorchNet":
        raise UsageError(f"{file}: a {type(net).__name__} cannot be measured here: use a declared net or an nn.Module.")
    head = {"name": about.name or _title(file, called), "version": about.version, "assets_bytes": about.assets_bytes}
    spec = {**head, **sizes(net), "flops_per_record": _flops(net)}
    if isinstance(net, DenseNet):
        return Model({**spec, "kind": "dense", **_layers(net, given)})
    spec |= {"kind": "module", "file": "model.py", "object": called, "inputs": _inputs(net, job, given)}
    spec["loss"] = net.loss if net.loss in LOSSES else "cross_entropy" if net.loss == "masked_cross_entropy" else "file"
    return Model(spec, file.read_bytes(), file.resolve().parent)


def sizes(net: Any) -> dict[str, Any]:
    """Bytes and numbers of a net: its safetensors file as it is stored and sent down, and an update as it is sent up.

    Frozen parameters are stored and not sent (as the paper's table has it); buffers go down and not up. What an update
    carries beside its numbers (weight, metrics) is not counted.
    """
    model = net.init(0)
    frozen = 0
    if hasattr(net, "module"):
        frozen = sum(p.numel() * p.element_size() for p in net.module(model).parameters() if not p.requires_grad)
    down, up = _length(model), _length(Params(model.vector, model.layout))
    return {
        "params": int(model.size) + frozen // 4, "params_trainable": int(model.size), "storage_bytes": down + frozen,
        "wire_down_bytes": down, "wire_up_bytes": up,
    }  # fmt: skip


def schema(text: str) -> dict[str, Any]:
    """Dummy inputs of a column from text: dtype, shape of one record, and for whole numbers what they are below.

    >>> schema("int64[80]<50000")
    {'dtype': 'int64', 'shape': [80], 'below': 50000}
    """
    found = _SCHEMA.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f'inputs: {text!r} says no column: write it as "float32[3,32,32]", "int64[80]<50000", "int64<10".'
        )
    dtype, shape, below = found.groups()
    sides = [int(side) for side in (shape or "").split(",") if side.strip()]
    return {"dtype": dtype, "shape": sides, "below": int(below) if below else None}


def _chosen(names: Mapping[str, Any], name: str | None, file: Path) -> tuple[str, Any]:
    found = {key: one for key, one in names.items() if not key.startswith("_") and _measurable(one)}
    if name is not None:
        if name not in names:
            raise UsageError(f"{file} makes nothing called {name!r}: it has {', '.join(found) or 'no model'}.")
        return name, names[name]
    for usual in ("job", "model"):
        if usual in found:
            return usual, found[usual]
    if len(found) == 1:
        return next(iter(found.items()))
    have = f"it has {', '.join(found)}: name one as {file.name}:NAME" if found else "it has none"
    raise UsageError(f"{file} must make one model or job to measure; {have}.")


def _measurable(one: Any) -> bool:
    kind = type(one).__mro__
    return not isinstance(one, type) and any(
        base.__name__ in ("Job", "DenseNet", "TorchNet", "Module") for base in kind
    )


def _title(file: Path, called: str) -> str:
    return file.stem if called in ("job", "model") else called


def _rows(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Two records of zeros of the inputs given, on which FLOPs are counted."""
    return {key: np.zeros((2, *one["shape"]), one["dtype"]) for key, one in given.items()} or None


def _flops(net: Any) -> float | None:
    if not isinstance(net, DenseNet) and getattr(net, "example", None) is None:
        return None
    return float(net.flops())


def _layers(net: DenseNet, given: Mapping[str, Any]) -> dict[str, Any]:
    if net.inner is not None or net.bits is not None or any(scale != 1.0 for scale in net.scales):
        raise UsageError("a net that trains others inside itself cannot be measured as layers: measure the plain net.")
    layers: list[list[Any]] = []
    for layer in net.layers:
        match layer:
            case Linear(width, out, bias):
                layers.append(["linear", width, out, bias])
            case Activation(kind):
                layers.append([kind])
            case _:
                continue
    loss = "squared_error" if net.loss == "squared_error" else "cross_entropy"
    outputs = net.program.outputs
    y: dict[str, Any] = {"dtype": "int64", "shape": [], "below": outputs}
    inputs: dict[str, Any] = {"x": {"dtype": "float32", "shape": [net.program.inputs], "below": None}, "y": y}
    if loss == "squared_error":
        inputs["y"] = {"dtype": "float32", "shape": [outputs], "below": None}
    if given:
        raise UsageError("inputs are for modules: a declared net says what it takes.")
    return {"layers": layers, "loss": loss, "inputs": inputs}


def _inputs(net: Any, job: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the module takes and is compared with, for one record: as given, else as the job's data have it."""
    if given:
        if "y" not in given or len(given) < 2:
            raise UsageError(f"inputs {', '.join(given)}: say what the module takes, in order, and what y is.")
        return dict(given)
    if job is None:
        raise UsageError(
            'a module without data does not say what it takes: give inputs, such as --input "x=float32[64]" --input '
            '"y=int64<10".'
        )
    said: dict[str, Any] = {}
    columns = job.data.columns
    for name, tensor in zip(net.x, net.batch(2), strict=False):
        said[name] = _column(tensor, columns.get(name))
    said["y"] = _column(net.target(2), columns.get(net.y))
    return said


def _column(tensor: Any, rows: Any) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    below = None
    if not tensor.dtype.is_floating_point:
        below = int(np.max(rows)) + 1 if rows is not None and len(rows) else int(tensor.max()) + 1
    unit = {"unit": True} if below is None and float(tensor.min()) >= 0.0 and float(tensor.max()) <= 1.0 else {}
    return {"dtype": dtype, "shape": list(tensor.shape[1:]), "below": below, **unit}


def _length(model: Params) -> int:
    from fieldfare.store.models import write_model

    with tempfile.TemporaryDirectory(prefix="fieldfare-bench-") as folder:
        place = Path(folder) / "model.safetensors"
        write_model(place, model)
        return place.stat().st_size


def _json(spec: Mapping[str, Any]) -> bytes:
    return json.dumps(spec, sort_keys=True, indent=1, allow_nan=False).encode()
