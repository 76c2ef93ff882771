"""Several pieces of work side by side in forked processes, each result handed over as soon as it is there.

Not here: what the work is. Invariant: a piece gives what it would have given in this process; results travel as JSON.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing as mp
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, TypeVar

from fieldfare.core.errors import UsageError
from fieldfare.sim.pool import WorkerDied
from fieldfare.store.text import dumps
from fieldfare.work.native.timing import measure_no_more

T = TypeVar("T")


def side_by_side(work: Callable[[T], Any], todo: Sequence[T], count: int) -> Iterator[tuple[T, Any]]:
    """(piece, what `work` makes of it, plain JSON) in the order they are done, by `count` processes; one: in this one.

    Errors: a `UsageError` of a piece is raised here; `WorkerDied` where a process was killed. Whoever stops listening
    ends the processes.
    """
    if count <= 1:
        for piece in todo:
            yield piece, json.loads(dumps(work(piece)))
        return
    context = mp.get_context("fork")
    turn = context.Value("q", 0)
    pipes: dict[Any, Any] = {}
    try:
        for _ in range(count):
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(work, todo, turn, theirs, os.getpid()), daemon=True)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*fork.*")
                process.start()
            theirs.close()
            pipes[mine] = process
        left = len(todo)
        while left:
            for pipe in wait(list(pipes)):
                try:
                    kind, at, told = json.loads(pipe.recv_bytes())  # type: ignore[union-attr]
                except EOFError:
                    process = pipes.pop(pipe)
                    process.join()
                    if process.exitcode or not pipes:
                        raise WorkerDied(
                            f"a process ended with {process.exitcode} in the middle of its work (out of memory, killed)"
                            ": what is done is kept; go on with fewer processes."
                        ) from None
                    continue
                if kind == "refused":
                    raise UsageError(told)
                if kind == "failed":
                    raise RuntimeError(f"in another process:\n{told}")
                left -= 1
                yield todo[at], told
    finally:
        for process in pipes.values():
            process.kill()
            process.join()


def _serve(work: Callable[[Any], Any], todo: Sequence[Any], turn: Any, pipe: Any, listener: int) -> None:
    """Take pieces until there are none, or nobody listens; an interrupt is for the process that listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    measure_no_more()
    with contextlib.suppress(BrokenPipeError):
        while os.getppid() == listener:
            with turn.get_lock():
                at, turn.value = turn.value, turn.value + 1
            if at >= len(todo):
                break
            try:
                answer = ["done", at, work(todo[at])]
            except UsageError as error:
                answer = ["refused", at, str(error)]
            except Exception:
                answer = ["failed", at, traceback.format_exc()]
            pipe.send_bytes(dumps(answer))
    pipe.close()
    os._exit(0)
