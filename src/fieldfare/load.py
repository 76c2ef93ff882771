"""A job file to a `Job`, `Study` or `Sweep`: the file is the user's own program and is run as such.

Here: running it, choosing the job it makes, and telling in one line what an import or a call of ours wanted. An error
of the user's own code is left as it is, with its traceback.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.core.settings import unknown_key
from fieldfare.job import Job
from fieldfare.run import LOADING
from fieldfare.study import Study
from fieldfare.sweep import Sweep

_MODULE = "fieldfare_job"
_EXTRAS = {
    "sklearn": "digits", "matplotlib": "report", "torch": "torch", "jax": "jax", "optax": "jax", "xgboost": "xgboost",
    "pyarrow": "parquet", "PIL": "images", "datasets": "hf", "tensorboardX": "tensorboard", "mlflow": "mlflow",
    "ray": "ray", "onnx": "onnx", "onnxscript": "onnx", "duckdb": "assess", "fsspec": "fsspec",
    "prometheus_client": "prometheus", "feast": "feast", "dp_accounting": "privacy",
}  # fmt: skip


def load_job(path: str | Path, name: str | None = None, folder: str | Path | None = None) -> Job | Study | Sweep:
    """The job called `name` (default: `study`, else `sweep`, `job`, the only one) that the Python file `path` makes.

    `folder`: see `load_names`.
    """
    return _find(load_names(path, folder), name, path)


def load_names(path: str | Path, folder: str | Path | None = None) -> dict[str, Any]:
    """What the Python file `path` makes, by name.

    `folder` is put on the import path, and stays there, instead of the file's own: a copy finds what lay beside the
    original.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"there is no job file {path}: name a Python file, or start one with `fieldfare new {path}`.")
    if file.suffix != ".py":
        raise UsageError(f"{path} is no job file: a job is a Python file (*.py) that makes a fieldfare.Job called job.")
    spec = importlib.util.spec_from_file_location(_MODULE, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    beside = str(Path(folder) if folder else file.resolve().parent)
    if beside not in sys.path:
        sys.path.insert(0, beside)
    token = LOADING.set(True)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{error.filename}, line {error.lineno}: {error.msg}.") from None
    except (ImportError, AttributeError, TypeError, UsageError) as error:
        told = _told(error)
        if told is None:
            raise
        frames = traceback.extract_tb(error.__traceback__)
        where = next((f.lineno for f in reversed(frames) if Path(f.filename).resolve() == file.resolve()), 0)
        said = f"{path}, line {where}: {told}"
        kind = type(error) if isinstance(error, UsageError) else UsageError
        raise (MissingExtra if isinstance(error, ImportError) else kind)(said) from error
    finally:
        LOADING.reset(token)
    return vars(module)


def _find(names: dict[str, Any], name: str | None, path: str | Path) -> Job | Study | Sweep:
    jobs = {key: value for key, value in names.items() if isinstance(value, Job | Study | Sweep)}
    if name is not None:
        if name not in jobs:
            raise UsageError(f"{path} makes no job called {name!r}: it has {', '.join(jobs) or 'none'}.")
        return jobs[name]
    for usual in ("study", "sweep", "job"):
        if usual in jobs:
            return jobs[usual]
    if len(jobs) == 1:
        return next(iter(jobs.values()))
    have = f"it has {', '.join(jobs)}: choose one with --job" if jobs else "it has none: write job = fieldfare.Job(...)"
    raise UsageError(f"{path} must make one fieldfare.Job called job; {have}.")


def _told(error: Exception) -> str | None:
    """One line for what the file wanted of us or of a library that is absent; None for the user's own mistakes."""
    match error:
        case ModuleNotFoundError(name=str(wanted)):
            library = wanted.partition(".")[0]
            if library in _EXTRAS:
                return f"{library} is not installed; run pip install 'fieldfare[{_EXTRAS[library]}]'."
            return f"there is no module {wanted!r} here; install it, or put it beside the job file."
        case ImportError(name=str(module)) if _ours(module):
            wanted = re.search(r"cannot import name '(\w+)'", str(error))
            return _no_such(wanted[1], sys.modules.get(module)) if wanted else None
        case AttributeError(name=str(wanted), obj=ModuleType() as module) if _ours(module.__name__):
            return _no_such(wanted, module)
        case AttributeError() if str(error).startswith("module 'fieldfare"):
            return f"{error}."
        case TypeError():
            return _bad_call(error)
        case UsageError():
            return str(error)
        case _:
            return None


def _ours(module: str) -> bool:
    return module.partition(".")[0] == "fieldfare"


def _no_such(wanted: str, module: ModuleType | None) -> str:
    known = [name for name in dir(module) if not name.startswith("_")]
    return unknown_key(wanted, known, module.__name__ if module else "fieldfare")


def _bad_call(error: TypeError) -> str | None:
    """A call of ours with an argument that does not exist, or without one that must be given."""
    match = re.search(r"(\w+)(?:\.__init__)?\(\) (.*)", str(error))
    if match is None:
        return None
    what, said = match.groups()
    ours = [vars(m)[what] for n, m in list(sys.modules.items()) if _ours(n) and what in vars(m)]
    ours = [one for one in ours if callable(one) and _ours(str(getattr(one, "__module__", "")))]
    if not ours:
        return None
    known = [p.name for p in inspect.signature(ours[0]).parameters.values() if p.kind is not p.VAR_KEYWORD]
    if key := re.search(r"unexpected keyword argument '(\w+)'", said):
        return unknown_key(key[1], known, f"{what}(...)")
    return f"{what}() {said}; it takes {', '.join(known)}."
