"""A job file to a `Job` or `Study`: the file is the user's own program and is run as such."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from fieldfare.core.errors import UsageError
from fieldfare.core.settings import unknown_key
from fieldfare.job import Job
from fieldfare.study import Study

_MODULE = "fieldfare_job"


def load_job(path: str | Path, name: str | None = None, folder: str | Path | None = None) -> Job | Study:
    """The job called `name` (default: `study`, else `job`, else the only one) that the Python file `path` makes.

    `folder` is put on the import path instead of the file's own (a copy finds what lay beside the original).
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
    sys.path.insert(0, str(Path(folder) if folder else file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except TypeError as error:
        raise UsageError(_keyword(error, path)) from error
    except SyntaxError as error:
        raise UsageError(f"{path}, line {error.lineno}: {error.msg}.") from None
    finally:
        sys.path.pop(0)
    return _find(vars(module), name, path)


def _find(names: dict[str, Any], name: str | None, path: str | Path) -> Job | Study:
    jobs = {key: value for key, value in names.items() if isinstance(value, Job | Study)}
    if name is not None:
        if name not in jobs:
            raise UsageError(f"{path} makes no job called {name!r}: it has {', '.join(jobs) or 'none'}.")
        return jobs[name]
    for usual in ("study", "job"):
        if usual in jobs:
            return jobs[usual]
    if len(jobs) == 1:
        return next(iter(jobs.values()))
    have = f"it has {', '.join(jobs)}: choose one with --job" if jobs else "it has none: write job = fieldfare.Job(...)"
    raise UsageError(f"{path} must make one fieldfare.Job called job; {have}.")


def _keyword(error: TypeError, path: str | Path) -> str:
    """One line for a call with a keyword that does not exist."""
    match = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if match is None:
        raise error
    import dataclasses

    import fieldfare

    what, key = match.groups()
    cls = getattr(fieldfare, what, None)
    known = [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    return f"{path}: " + unknown_key(key, known, f"{what}(...)")
