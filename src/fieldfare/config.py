"""A job as plain JSON: the exact configuration kept beside the results. Nothing is read back from it into code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fieldfare import __version__


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


def describe_data(data: Any) -> dict[str, Any]:
    """Statistics of the federation, with the label counts of the first 200 clients and the first 10,000 sizes."""
    facts = dict(data.describe())
    facts["sizes"] = data.sizes[:10_000].tolist()
    if data.classes is not None and "y" in data.columns and data.columns["y"].ndim == 1:
        from fieldfare.data import label_counts

        facts["label_counts"] = label_counts(data.select(np.arange(min(200, data.n_clients)))).tolist()
    return facts


def plain(value: Any) -> Any:
    """`value` as JSON: dataclasses by field with their class under "is", small arrays as lists, large ones by shape."""
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
        return {"is": type(value).__name__, **inside}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return getattr(value, "__name__", None) or str(value)
