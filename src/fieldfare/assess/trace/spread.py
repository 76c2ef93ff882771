"""A trace on a Ray cluster: the log's files are read once each, their rows shared out by client, parts computed apart.

Here: tasks and what goes between them. Not here: what a part does (`part`). A task reads some rows of a file and gives
one table of rows for each part; a part's two passes take its tables from Ray's store, which goes to the disk where
memory ends.
This program gets counts, and the sessions that meet the criteria. A log at a URL is fetched by the tasks that read it;
one in a folder must be seen by all machines under its path. Invariant: the artefact is that of one machine, to the bit.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fieldfare.assess.artefact import digest
from fieldfare.assess.platform.places import copies
from fieldfare.assess.steps import Tell
from fieldfare.assess.trace.part import Counts, Done, Plan, count_part, finish_part, share_out
from fieldfare.assess.trace.sessions import Piece, pieces_of_files
from fieldfare.assess.trace.sql import connected
from fieldfare.core.errors import UsageError

RAY_BYTES = 2e9
"""What DuckDB may use in a task, unless told otherwise: several of them share a machine."""
ROWS_A_READER = 5_000_000
"""Of a Parquet file a task reads so many rows at most; a CSV file is read by one."""
READERS = 1000
"""Tasks that read, at most: of a log in more pieces each reads several."""

Origins = Mapping[str, tuple[str, str]]
"""(URL, SHA-256) of each file that was fetched."""


def spread(
    plan: Plan, on: str, origins: Origins, chances: Callable[[Plan, Sequence[Counts]], Plan], tell: Tell
) -> tuple[Plan, list[Done]]:
    """The plan with its chances, and what each part gives. `chances` makes them of all parts' counts."""
    from fieldfare.sim.cluster import address_of, join, leave, library, one_line, ready

    ready(on)
    ray = library()
    plan = replace(plan, threads=1, memory_bytes=plan.memory_bytes or RAY_BYTES)
    joined = join(ray, address_of(on), None)
    try:
        return _computed(ray, plan, origins, chances, tell)
    except Exception as error:
        cause = getattr(error, "cause", error)  # of what a task raised
        if isinstance(cause, UsageError):
            raise UsageError(str(cause)) from None
        raise UsageError(f"a part of the trace failed on Ray: {one_line(error)}") from None
    finally:
        if joined:
            leave(ray)


def steps(plan: Plan) -> int:
    """Steps of a trace: looking over the log, reading it where it is shared out, each part once or twice, writing."""
    return 2 + plan.parts * (2 if plan.criteria.states() else 1)


def _computed(
    ray: Any, plan: Plan, origins: Origins, chances: Callable[[Plan, Sequence[Counts]], Plan], tell: Tell
) -> tuple[Plan, list[Done]]:
    files = [os.path.abspath(one) for one in plan.log.paths]
    found = {os.path.abspath(one): told for one, told in origins.items()}
    with connected() as con:
        pieces = pieces_of_files(con, files, ROWS_A_READER)
    readers = min(len(pieces), READERS)
    tell(f"sharing the log out by client, {len(pieces)} pieces on Ray", 1, steps(plan))
    shared = ray.put(plan)
    read = ray.remote(_read).options(num_returns=plan.parts)
    rows: list[Any] = [read.remote(shared, pieces[i::readers], found) for i in range(readers)]
    rows = rows if plan.parts > 1 else [[one] for one in rows]
    mine = [[one[part] for one in rows] for part in range(plan.parts)]
    if plan.criteria.states():
        counts = _all(ray, _count, shared, mine, "sessions and what they tell", 1, plan, tell)
        plan = chances(plan, counts)
        shared = ray.put(plan)
    over = steps(plan) - 1 - plan.parts
    return plan, _all(ray, _finish, shared, mine, "coins and criteria", over, plan, tell)


def _all(
    ray: Any, task: Any, shared: Any, rows: Sequence[Sequence[Any]], what: str, over: int, plan: Plan, tell: Tell
) -> list[Any]:
    """What a task gives for every part, in their order; the first that fails ends it."""
    refs = [ray.remote(task).remote(shared, part, *one) for part, one in enumerate(rows)]
    found, waiting = dict[Any, Any](), list(refs)
    while waiting:
        ended, waiting = ray.wait(waiting, num_returns=1)
        found |= {one: ray.get(one) for one in ended}
        tell(f"{what}, {len(found)} of {plan.parts} parts on Ray", over + len(found) - 1, steps(plan))
    return [found[one] for one in refs]


def _count(plan: Plan, part: int, *rows: Any) -> Counts:
    return count_part(plan, part, rows)


def _finish(plan: Plan, part: int, *rows: Any) -> Done:
    return finish_part(plan, part, rows)


def _read(plan: Plan, pieces: Sequence[Piece], origins: Origins) -> Any:
    """Rows of some pieces for every part; files that are not seen on this machine are fetched from their URLs."""
    with tempfile.TemporaryDirectory(prefix="fieldfare-trace-", dir=plan.folder or None) as folder:
        files = list(dict.fromkeys(file for file, _, _ in pieces))
        here = {one: _here(one, Path(folder) / str(i), origins.get(one)) for i, one in enumerate(files)}
        made = share_out(plan, [(here[file], first, end) for file, first, end in pieces])
    return made if plan.parts > 1 else made[0]


def _here(file: str, folder: Path, origin: tuple[str, str] | None) -> str:
    if Path(file).is_file():
        return file
    if origin is None:
        raise UsageError(f"{file} is not on {os.uname().nodename}: all machines must see the log, or give it as a URL.")
    url, sha256 = origin
    (copy,) = copies(url, folder)
    if digest(copy) != sha256:
        raise UsageError(f"{url} was changed while the trace was computed: start it again.")
    return str(copy)
