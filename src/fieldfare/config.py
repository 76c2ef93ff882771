"""A job as plain JSON: the exact configuration kept beside the results. Nothing is read back from it into code."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fieldfare import __version__
from fieldfare.core.recipe import recipe_of


def describe_job(job: Any, net: Any) -> dict[str, Any]:
    """`{"fieldfare", "format", "job": {...}}`: every setting of the job and of what it is made of."""
    settings: dict[str, Any] = {}
    for f in dataclasses.fields(job):
        match f.name:
            case "model":
                settings["model"] = plain(net.describe())
            case "data":
                settings["data"] = job.data.name
            case "callbacks":
                settings["callbacks"] = [getattr(c, "__name__", type(c).__name__) for c in job.callbacks]
            case _:
                settings[f.name] = plain(getattr(job, f.name))
    return {"fieldfare": __version__, "format": 1, "numpy": np.__version__, "job": settings}


def first_difference(kept: Any, now: Any, where: str = "") -> str | None:
    """One line for the first setting in which two descriptions of a job differ; None where they are the same job.

    Settings that change no number (workers, chunk, on, callbacks, name) and those only one of them has are left out;
    so is which compiled core it is (other processors round differently, within tolerance).

    >>> first_difference({"training": {"lr": 0.1}}, {"training": {"lr": 0.2}})
    'training.lr was 0.1 and is 0.2'
    """
    if isinstance(kept, Mapping) and isinstance(now, Mapping):
        inside = (
            first_difference(kept[key], now[key], f"{where}.{key}" if where else key)
            for key in sorted(
                kept.keys() & now.keys(), key=lambda key: (key != "is", key != "name", list(kept).index(key))
            )
            if (f"{where}.{key}" if where else key) not in _NO_MATTER
        )
        return next((found for found in inside if found is not None), None)
    if isinstance(kept, list) and isinstance(now, list) and len(kept) == len(now):
        inside = (first_difference(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(kept, now, strict=True)))
        return next((found for found in inside if found is not None), None)
    was, is_ = (_ADDRESS.sub("", value) if isinstance(value, str) else value for value in (kept, now))
    return None if was == is_ else f"{where} was {_brief(was)} and is {_brief(is_)}".replace(".is was", " was")


def _made_with(value: Any) -> dict[str, Any]:
    """The arguments of the function that made `value`; of an algorithm made of another, the other's too."""
    recipe = recipe_of(value)
    told: dict[str, Any] = {}
    for name, part in (recipe.arguments if recipe is not None else {}).items():
        told |= _made_with(part) if hasattr(part, "step") else {name: plain(part)}
    return told


_NO_MATTER = frozenset(
    {
        "simulated.workers",
        "simulated.chunk",
        "simulated.on",
        "callbacks",
        "name",
        "model.why",
        "model.core",
        "model.steps",
    }
)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def _brief(value: Any) -> str:
    if isinstance(value, Mapping) and "is" in value:
        return str(value["is"])
    return f"{value!r:.80}"


def describe_data(data: Any) -> dict[str, Any]:
    """Statistics of the federation, with the first 10,000 `client_sizes` and, of the first 200 clients, their
    `label_counts` and `client_names` where they have any."""
    facts = dict(data.describe())
    facts["client_sizes"] = data.sizes[:10_000].tolist()
    if data.names is not None:
        facts["client_names"] = [str(name) for name in data.names[:200]]
    if data.classes is not None and "y" in data.columns and data.columns["y"].ndim == 1:
        from fieldfare.data import label_counts

        facts["label_counts"] = label_counts(data.select(np.arange(min(200, data.n_clients)))).tolist()
    return facts


def plain(value: Any) -> Any:
    """`value` as JSON: dataclasses by field with their class under "is", small arrays as lists, large ones by shape.

    What a function made has the arguments it was made with before its fields, where they are not called alike.

    >>> from fieldfare.algorithms import FedAdam
    >>> told = plain(FedAdam(10, 5, lr=0.03))
    >>> told["is"], told["name"], told["lr"], told["rounds"]
    ('FedAvg', 'fedadam', 0.03, 10)
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist() if value.size <= 20 else f"array of {value.dtype} {value.shape}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "describe") and not hasattr(value, "step"):
            return plain(value.describe())
        inside = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"is": type(value).__name__, **{k: v for k, v in _made_with(value).items() if k not in inside}, **inside}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return getattr(value, "__name__", None) or str(value)
