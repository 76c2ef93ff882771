"""Worker processes of the simulator: forked once, one BLAS thread each, arrays through shared memory.

Workers take pieces of a request from a shared counter, fold them where they lie, and send back one share each. Several
requests may be under way, one behind the other: a worker that finds no more pieces of one goes on with the next. The
headers that travel through the pipe are made and read by the same program, parent and child of one fork.
Invariant: results are those of `compute_inline`, bit for bit.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from fieldfare.core.work import Work
from fieldfare.sim.arena import Arena
from fieldfare.sim.compute import Request, Share, Store, Tally, pieces, together
from fieldfare.work.native.threads import limit as limit_native


class WorkerDied(RuntimeError):
    """A worker process ended in the middle of a request (out of memory, killed)."""


def allowed_workers(workers: int | None) -> int:
    """The processes to use for `workers` asked for: `default_workers` for None, and one where forking is not safe."""
    if workers is None:
        return default_workers()
    if workers > 1 and sys.platform != "linux":
        warnings.warn(
            f"workers={workers}: worker processes need Linux, all is computed in this process (to the same bits).",
            stacklevel=3,
        )
        return 1
    return max(1, workers)


def default_workers() -> int:
    """Processes worth starting here: the cores this process may use; 1 where forking is not safe."""
    if sys.platform != "linux":
        return 1
    return max(1, len(os.sched_getaffinity(0)))


_LANES = 3
"""Requests that may be under way at once."""
_LIGHT, _LIGHT_BYTES = 1024, 1 << 14
"""Clients, and bytes of an opaque model, of a request that may wait behind another: its messages fit into a pipe."""


class Lane:
    """Where one request's numbers lie, down and (by worker) up, and the counter of its pieces."""

    def __init__(self, context: Any, count: int) -> None:
        self.next = context.Value("q", 0)
        self.down = Arena()
        self.ups = [Arena() for _ in range(count)]


class Begun:
    """A request under way in a pool."""

    def __init__(self, pool: Pool, lane: Lane, pieces: int) -> None:
        self.pool, self.lane, self.pieces = pool, lane, pieces
        self.shares: list[Share] = []
        self.failed: list[tuple[int, int, Exception, str]] = []

    @property
    def received(self) -> bool:
        """Whether the shares are there; a request that began later, and was waited for, saw to that."""
        return self not in self.pool.open

    def result(self) -> list[Share]:
        """The shares of all workers, once they are there.

        An exception of the work (of the first piece that has one) is raised here.
        """
        while not self.received:
            self.pool.receive()
        if self.failed:
            _, number, error, text = min(self.failed, key=lambda fail: fail[:2])
            error.add_note(f"in worker process {self.pool.pids[number]}:\n{text}")
            raise error
        return self.shares


class Pool:
    """`count` forked workers holding the works and the data; used as a context manager or closed by hand."""

    def __init__(self, works: Mapping[str, Work], data: Any, count: int) -> None:
        context = mp.get_context("fork")
        self.works = works
        self.count = count
        self.open: list[Begun] = []
        self._lanes = [Lane(context, count) for _ in range(_LANES)]
        self._begun = 0
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        for number in range(count):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, number, self._lanes, works, data, os.getpid()), daemon=True
            )
            with warnings.catch_warnings():
                # JAX, if loaded, warns of any fork; no work that uses it is computed in a fork (`forks = False`).
                warnings.filterwarnings("ignore", message=".*fork.*")
                process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def compute(self, request: Request, chunk: int | None) -> list[Share]:
        """The shares of all workers."""
        return self.start(request, chunk).result()

    def start(self, request: Request, chunk: int | None) -> Begun:
        """Put a request behind those that are under way."""
        light = request.n <= _LIGHT and not request.inputs and not request.each and len(request.opaque) <= _LIGHT_BYTES
        while self.open and (not light or len(self.open) >= _LANES):
            self.receive()
        at = self._begun % _LANES
        lane, self._begun = self._lanes[at], self._begun + 1
        arrays = [request.models, request.row, request.clients, request.keys]
        if request.state is not None:  # rows that are one, seen many times, travel as one
            arrays.append(request.state if request.state.strides[0] else request.state[:1])
        if request.fresh is not None:
            arrays.append(request.fresh)
        if request.steps is not None:
            arrays.append(request.steps)
        arrays += request.sides.values()
        arrays += [segment.index for segment in request.segments if segment.index is not None]
        specs = lane.down.write(arrays)
        none = np.empty(0)
        header = replace(
            request, models=none, row=none, clients=none, keys=none,
            state=None if request.state is None else none, fresh=None if request.fresh is None else none,
            steps=None if request.steps is None else none,
            sides=dict.fromkeys(request.sides, none),
            segments=tuple(
                one if one.index is None else replace(one, index=np.empty(0, np.int64)) for one in request.segments
            ),
        )  # fmt: skip
        cuts = pieces(request, self.count, chunk, together=together(self.works[request.work]))
        lane.next.value = 0
        begun = Begun(self, lane, len(cuts))
        with _alive():
            message = ForkingPickler.dumps((at, header, specs, cuts))
            for pipe in self._pipes:
                pipe.send_bytes(message)
        self.open.append(begun)
        return begun

    def receive(self) -> None:
        """Wait for the oldest request under way."""
        begun = self.open.pop(0)
        with _alive():
            for number, (pipe, up) in enumerate(zip(self._pipes, begun.lane.ups, strict=True)):
                match pipe.recv():
                    case ("error", int(piece), error, text):
                        begun.failed.append((piece, number, error, text))
                    case (_, share, specs):
                        begun.shares.append(_receive(share, up.read(specs)))

    def close(self) -> None:
        """End the workers, at the end of the piece each is at; also done when the parent ends."""
        for begun in self.open:
            counter = begun.lane.next
            if counter.get_lock().acquire(timeout=0.1):
                counter.value = begun.pieces
                counter.get_lock().release()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
            pipe.close()
        for process in self._processes:
            process.join(timeout=2)
            if process.is_alive():
                process.kill()
                process.join()
        for lane in self._lanes:
            for arena in (lane.down, *lane.ups):
                arena.close()


@contextlib.contextmanager
def _alive() -> Iterator[None]:
    """A pipe that breaks is told as what it means."""
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise WorkerDied(
            "a worker process ended in the middle of a computation (killed, or out of memory): "
            "resume the run with fewer workers or a smaller chunk."
        ) from error


def _serve(pipe: Any, number: int, lanes: list[Lane], works: Mapping[str, Work], data: Any, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # die with the parent
        if os.getppid() != parent:  # it died before that was set
            os._exit(1)
    one_thread()
    _hold_on_to_memory()
    store: Store = {}
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            return
        if message is None:
            return
        lane, header, specs, cuts = message
        lane = lanes[lane]
        counter, at = lane.next, -1
        try:
            arrays = lane.down.read(specs)
            request = replace(header, models=arrays[0], row=arrays[1], clients=arrays[2], keys=arrays[3])
            rest = arrays[4:]
            if header.state is not None:
                state = rest.pop(0)
                if len(state) < request.n:
                    state = np.broadcast_to(state, (request.n, *state.shape[1:]))
                request = replace(request, state=state)
            if header.fresh is not None:
                request = replace(request, fresh=rest.pop(0))
            if header.steps is not None:
                request = replace(request, steps=rest.pop(0))
            many = len(header.sides)
            request = replace(request, sides=dict(zip(header.sides, rest[:many], strict=True)))
            if rest[many:]:
                index = iter(rest[many:])
                parts = (one if one.index is None else replace(one, index=next(index)) for one in header.segments)
                request = replace(request, segments=tuple(parts))
            tally = Tally(request, works, data, store)
            tally.recall()
            while True:
                with counter.get_lock():
                    at = counter.value
                    counter.value = at + 1
                if at >= len(cuts):
                    break
                tally.compute(*cuts[at])
            share, out = _strip(tally.share)
            pipe.send(("share", share, lane.ups[number].write(out)))
        except Exception as error:
            pipe.send(("error", at, _portable(error), traceback.format_exc()))


def _hold_on_to_memory() -> None:
    """Keep what is freed for the next piece: small stacks spend a third of their time on getting it anew, else."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt  # of glibc
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
        mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD


def _portable(error: Exception) -> Exception:
    """The error itself where it survives the pipe as it is, else a `RuntimeError` with its type's name and text."""
    try:
        ForkingPickler.dumps(error)
        reduced: Any = error.__reduce__()
        back = reduced[0](*reduced[1])  # as the other end of the pipe will make it
        if type(back) is type(error) and str(back) == str(error):
            return error
    except Exception:
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


def _strip(share: Share) -> tuple[Share, list[Any]]:
    """Take the large arrays out of a share, so that they go through shared memory."""
    out: list[Any] = []
    for piece in share.pieces:
        if piece.state is not None:
            out.append(piece.state)
            piece.state = np.empty(0, np.float32)
        for leaf, rows in piece.rows.items():
            if isinstance(rows, np.ndarray):
                out.append(rows)
                piece.rows[leaf] = None
    for partials in share.partials.values():
        for partial in partials.values():
            if partial.sum is not None:
                out.append(partial.sum.total)
                partial.sum.total = np.empty(0, np.int64)
                if partial.sum.coverage is not None:
                    out.append(partial.sum.coverage)
                    partial.sum.coverage = np.empty(0, np.int64)
            for i, rows in enumerate(partial.rows):
                if isinstance(rows, np.ndarray):
                    out.append(rows)
                    partial.rows[i] = None
    return share, out


def _receive(share: Share, arrays: list[Any]) -> Share:
    at = iter(arrays)
    for piece in share.pieces:
        if piece.state is not None:
            piece.state = next(at).copy()
        for leaf, rows in piece.rows.items():
            if rows is None:
                piece.rows[leaf] = next(at).copy()
    for partials in share.partials.values():
        for partial in partials.values():
            if partial.sum is not None:
                partial.sum.total = next(at).copy()
                if partial.sum.coverage is not None:
                    partial.sum.coverage = next(at).copy()
            for i, rows in enumerate(partial.rows):
                if rows is None:
                    partial.rows[i] = next(at).copy()
    return share


def one_thread(native: int = 1) -> Callable[[], None]:
    """One BLAS and OpenMP thread in this process: small matrices lose 20-50x to thread hand-offs otherwise.

    `native` threads for the compiled core, which gives each whole clients. Returns what sets them back as they were.
    """
    from threadpoolctl import threadpool_limits

    limits, alone = threadpool_limits(1), limit_native(native)
    torch = sys.modules.get("torch")
    threads = 1 if torch is None else torch.get_num_threads()
    if torch is not None:
        torch.set_num_threads(1)

    def restore() -> None:
        limits.restore_original_limits()
        alone()
        if torch is not None:
            torch.set_num_threads(threads)

    return restore
