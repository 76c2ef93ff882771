"""Which search of which job on which data and devices a folder of trials is of, so that no trial of another is told.

Here: hashes of what a trial depends on, and the folder for them. Not here: opening it (`play`). Invariants: what
changes no number (workers, chunk, on, names, callbacks) changes no hash; all of the rows and of the devices are looked
at, not their names; finished trials are told again only for equal hashes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fieldfare.assembly import assemble
from fieldfare.assess.simulate.search import Search, job_of, points
from fieldfare.core.errors import UsageError
from fieldfare.fleet.fleet import Fleet
from fieldfare.job import Job
from fieldfare.store.text import dumps, plain

FILE = "search.json"
_SEARCHED = ("model", "data", "algorithm", "evaluate", "callbacks", "seed", "name", "simulated", "start_from")
_MACHINE = ("workers", "chunk", "on", "fleet", "train")
_CORE = ("why", "core", "steps")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def told_of(job: Job, search: Search, fleet: Any = None) -> dict[str, Any]:
    """What a folder of trials is of: the search's settings, and hashes of job, data and devices.

    Cost: one pass over the data.
    """
    return {"search": plain(asdict(search)), "made_of": made_of(job, search, fleet)}


def made_of(job: Job, search: Search, fleet: Any = None) -> dict[str, str]:
    """Hashes of the job (without what a search sets of it), of its data's rows and clients, and of the devices."""
    net = assemble(job_of(job, search, points(search)[0], 0, fleet)).net
    model = {name: one for name, one in dict(net.describe()).items() if name not in _CORE}
    settings = {f.name: getattr(job, f.name) for f in fields(job) if f.name not in _SEARCHED}
    machine = {f.name: getattr(job.simulated, f.name) for f in fields(job.simulated) if f.name not in _MACHINE}
    begin = None if job.start_from is None else hashlib.sha256(Path(job.start_from).read_bytes()).hexdigest()
    of_job = [model, _source(job.model), _source(job.loss), settings, machine, begin]
    data = {f.name: getattr(job.data, f.name) for f in fields(job.data) if f.name != "name"}
    return {
        "job": _hash(of_job),
        "data": _hash(data),
        "devices": _hash(job.simulated.fleet if fleet is None else fleet),
    }


def runs_of(out: Path, wanted: Mapping[str, Mapping[str, Any]]) -> Path:
    """The folder of trials beside `out` that are of all that is `wanted` (`told_of` by folder in it), or a new one.

    `<out>-runs` where that is free or of it; else `<out>-runs-<hash>`, and what is in the first stays.
    """
    first = out.with_name(out.name + "-runs")
    if all(_free(first / name) or kept(first / name) == one for name, one in wanted.items()):
        return first
    return out.with_name(f"{first.name}-{hashlib.sha256(dumps(wanted)).hexdigest()[:8]}")


def runs_told(out: Path, params: Mapping[str, Any]) -> Path:
    """The folder of the trials that the simulation `out` was made of, by its parameters; else `<out>-runs`."""
    first = out.with_name(out.name + "-runs")
    told = {name: params.get(name) for name in ("search", "made_of")}
    found = (one for one in (first, *sorted(out.parent.glob(f"{first.name}-*"))) if kept(one) == told)
    return next(found, first)


def kept(folder: Path) -> dict[str, Any] | None:
    """What a folder says that it is of; None where it says nothing."""
    with suppress(OSError, ValueError):
        return dict(json.loads((folder / FILE).read_bytes()))
    return None


def _free(folder: Path) -> bool:
    return not (folder / "run.json").exists()


def _source(value: Any) -> str:
    """The text of a user's own class or function: its settings do not tell what it computes."""
    made = value if inspect.isroutine(value) or isinstance(value, type) else type(cast(object, value))
    if value is None or str(getattr(made, "__module__", "")).split(".")[0] in ("fieldfare", "builtins"):
        return ""
    with suppress(OSError, TypeError):
        return inspect.getsource(made)
    return ""


def _hash(value: Any) -> str:
    """Of plain values, arrays by content, and dataclasses of them; of anything else its words.

    >>> _hash({"a": [1, 2.0]}) == _hash({"a": (1, 2.0)}) != _hash({"a": [1, 2.5]})
    True
    """
    out = hashlib.sha256()
    _add(out, value)
    return out.hexdigest()[:16]


def _add(out: Any, value: Any) -> None:
    def put(mark: str, size: int = 0) -> None:
        out.update(f"{mark}:{size};".encode())

    if isinstance(value, np.ndarray):
        array = cast(NDArray[Any], value)
        put(f"array {array.dtype} {array.shape}")
        out.update(repr(array.tolist()).encode() if array.dtype.kind == "O" else np.ascontiguousarray(array).data)
    elif is_dataclass(value) and not isinstance(value, type):
        skipped = ("name", "note") if isinstance(value, Fleet) else ()
        told = [f.name for f in fields(value) if f.name not in skipped]
        put(type(value).__qualname__, len(told))
        for name in told:
            _add(out, name)
            _add(out, getattr(value, name))
    elif isinstance(value, Mapping):
        there = sorted(cast(Mapping[Any, Any], value).items(), key=lambda one: str(one[0]))
        put("map", len(there))
        for name, one in there:
            _add(out, str(name))
            _add(out, one)
    elif isinstance(value, (list, tuple)):
        listed = cast(Sequence[Any], value)
        put("list", len(listed))
        for one in listed:
            _add(out, one)
    elif inspect.isroutine(value) or isinstance(value, type):
        _add(out, f"{value.__module__}.{value.__qualname__}")
    else:
        words = _ADDRESS.sub("", repr(value))
        put("is", len(words))
        out.update(words.encode())


def refuse(work: Path, told: Mapping[str, Any]) -> None:
    """Raise for a folder that is of something else, saying of what."""
    there = kept(work)
    if there == told:
        return
    made, now = (dict(one.get("made_of") or {}) for one in (there or {}, told))
    changed = [name for name in now if made.get(name) != now[name]]
    same_search = there is not None and there.get("search") == told["search"]
    what = f"trials of other {' and '.join(changed)}" if same_search and changed else "another search"
    raise UsageError(f"{work} holds {what}: name another folder, or remove it.")
