"""Workers on a Ray cluster, or on a Ray started here: the same shares as `pool.Pool`, over many machines.

Here: actors that hold works and data, pieces dealt to them, and others in the place of those that die. Not here: the
cluster (cluster) and what a piece computes (compute). Works, data and requests travel as pickles, between this program
and workers that it started itself on a cluster its user trusts.

An actor folds its pieces where they lie and hands over one share, so a request costs as much traffic per worker as in
`Pool`, whatever the number of pieces. The price: with an actor everything that it folded and did not hand over is
lost, and computed again elsewhere. Only whole shares of live actors are merged, so every piece counts exactly once.
Invariant: results are those of `compute_inline`, bit for bit, whatever dies.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import sys
import traceback
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fieldfare import __version__
from fieldfare.core.errors import UsageError
from fieldfare.core.work import Work
from fieldfare.sim.cluster import address_of, join, leave, library, mapped_files, one_line, own_modules
from fieldfare.sim.compute import Request, Share, Tally, pieces, together
from fieldfare.sim.pool import WorkerDied, one_thread
from fieldfare.work.native.choose import hear, tell
from fieldfare.work.native.modules import kind

START_S = 120.0
_SHARE = -1
_START = -2
_DEATHS = 4


class Worker:
    """One actor: works and data, held once, and the tally of the request under way."""

    def __init__(self, boxed: list[Any]) -> None:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = "1"  # of libraries that are loaded later
        self.broken = ""
        self.serial = 0
        self.tally: Tally | None = None
        try:
            import ray

            self.works, self.data, told = ray.get(boxed[0])
            hear(told)
        except Exception as error:
            self.broken = f"{type(error).__name__}: {error}"
        one_thread()

    def hello(self) -> tuple[int, str, dict[str, str], str]:
        """Process id, machine, versions, and what kept works and data from being read ("" if nothing)."""
        return os.getpid(), os.uname().nodename, versions(), self.broken

    def compute(self, serial: int, boxed: list[Any], start: int, stop: int) -> tuple[Exception, str] | None:
        """Compute and fold clients `start..stop` of request `serial`; gives what the work raised, if it did."""
        import ray

        if self.tally is None or serial != self.serial:
            request = _widened(ray.get(boxed[0]))
            self.serial, self.tally = serial, Tally(request, self.works, self.data)
        try:
            self.tally.compute(start, stop)
        except Exception as error:
            return _portable(error), traceback.format_exc()
        return None

    def share(self) -> Share:
        """What was computed since the last share."""
        assert self.tally is not None
        share, self.tally = self.tally.share, None
        return share


@dataclass(eq=False)
class Member:
    """One place among the workers, and the actor in it: `pid` is 0 until it has said hello through `ready`."""

    actor: Any
    ready: Any
    pid: int = 0
    host: str = ""


class RayPool:
    """`workers` actors (None: one per CPU of the cluster) holding the works and the data; closed by hand.

    `on`: "ray" for the Ray initialised in this process, else the one that RAY_ADDRESS names, else one started here for
    as long as the pool lives; "ray://HOST:PORT" for Ray's client; "ray://auto" for the cluster of this machine.
    `deaths` counts the actors that ended and were replaced. Errors: `UsageError` where none can be started, and
    `WorkerDied` where the same clients end theirs again and again.
    """

    def __init__(
        self, works: Mapping[str, Work], data: Any, workers: int | None = None, on: str = "ray"
    ) -> None:  # fmt: skip
        self._ray = ray = library()
        self.works = works
        self._members: list[Member] = []
        self._own: list[Any] = []
        self._box: list[Any] = []
        self._serial = 0
        self.deaths = 0
        self._joined = join(ray, address_of(on), workers)
        try:
            cpus = int(ray.cluster_resources().get("CPU", 0))
            if (workers or 1) > cpus:
                raise UsageError(
                    f"workers={workers}: this Ray cluster has {cpus} CPUs; use workers <= {cpus}, or none to use all."
                )
            self.count = workers or cpus
            self._own = own_modules()
            for module in self._own:
                ray.cloudpickle.register_pickle_by_value(module)
            with mapped_files(ray):
                self._box = [ray.put((dict(works), data, tell()))]
            self._actor = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(Worker)
            self._members = [self._member() for _ in range(self.count)]
            self._meet()
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The process ids of the actors that are up."""
        return [member.pid for member in self._members if member.pid]

    def compute(self, request: Request, chunk: int | None) -> list[Share]:
        """The shares of all workers; an exception of the work (of the first piece that has one) is raised here."""
        self._serial += 1
        cuts = pieces(request, self.count, chunk, together=together(self.works[request.work]))
        box = [self._ray.put(_slim(request))]
        todo = list(range(len(cuts)))
        held: dict[Member, list[int]] = {member: [] for member in self._members}
        busy: dict[Any, tuple[Member, int]] = {}
        died: Counter[int] = Counter()
        failed: dict[int, tuple[Exception, str]] = {}
        shares: list[Share] = []
        while True:
            working = {member for member, _ in busy.values()}
            for member in self._members:
                if not member.pid or member in working:
                    continue
                if todo and (not failed or todo[0] < min(failed)):
                    at = heapq.heappop(todo)
                    busy[member.actor.compute.remote(self._serial, box, *cuts[at])] = member, at
                elif held[member] and not failed:
                    busy[member.actor.share.remote()] = member, _SHARE
            if not busy and (min(todo, default=len(cuts)) > min(failed) if failed else not todo):
                break
            for ref in self._wait(busy):
                starting = ref not in busy
                member, at = busy.pop(ref) if not starting else (self._starting()[ref], _START)
                try:
                    got = self._ray.get(ref)
                except self._ray.exceptions.RayError as error:
                    for piece in (*held[member], *((at,) if at >= 0 else ())):
                        heapq.heappush(todo, piece)
                    held[member] = []
                    died[at] += 1
                    if died[at] >= _DEATHS + (0 if at >= 0 else self.count):
                        raise WorkerDied(_died(request, cuts, at, died[at], error)) from error
                    self._replace(member)
                    continue
                if starting:
                    _greet(member, got)
                elif at == _SHARE:
                    held[member] = []
                    shares.append(deepcopy(got))  # Ray's arrays are read-only, and hold its store's memory
                elif got is None:
                    held[member].append(at)
                else:
                    error, text = got
                    failed[at] = error, f"in Ray worker process {member.pid} on {member.host}:\n{text}"
        if failed:
            error, note = failed[min(failed)]
            error.add_note(note)
            raise error
        return shares

    def close(self) -> None:
        """End the actors, and leave the cluster if it was joined here."""
        for member in self._members:
            with contextlib.suppress(Exception):
                self._ray.kill(member.actor)
        self._members = []
        self._box = []
        for module in self._own:
            self._ray.cloudpickle.unregister_pickle_by_value(module)
        self._own = []
        if self._joined:
            self._joined = False
            leave(self._ray)

    def _member(self) -> Member:
        actor = self._actor.remote(self._box)
        return Member(actor, actor.hello.remote())

    def _starting(self) -> dict[Any, Member]:
        return {member.ready: member for member in self._members if not member.pid}

    def _replace(self, member: Member) -> None:
        """A new actor in the place of one that died, or that is out of reach and so must not be heard any more."""
        with contextlib.suppress(Exception):
            self._ray.kill(member.actor)
        self.deaths += 1
        new = self._member()
        member.actor, member.ready, member.pid = new.actor, new.ready, 0

    def _wait(self, busy: Mapping[Any, Any]) -> list[Any]:
        """The calls that are done, at least one."""
        waiting = [*busy, *self._starting()]
        done, _ = self._ray.wait(waiting, num_returns=1, timeout=None if busy else START_S)
        if not done:
            raise WorkerDied(
                f"all Ray workers ended and none could be started again within {START_S:g} s: see that the cluster "
                "has free CPUs, then resume the run."
            )
        return done

    def _meet(self) -> None:
        """Wait until all actors are up, or START_S have passed and one is: the others take part when they are."""
        starting = self._starting()
        done, _ = self._ray.wait([*starting], num_returns=len(starting), timeout=START_S)
        if not done:
            raise UsageError(
                f"no Ray worker could be started within {START_S:g} s: see `ray status` for free CPUs, then try again."
            )
        for ref in done:
            try:
                _greet(starting[ref], self._ray.get(ref))
            except self._ray.exceptions.RayError as error:
                raise UsageError(_unready(one_line(error))) from error


def versions() -> dict[str, str]:
    """What must be the same on all machines for equal bits: the libraries that compute, where they are loaded."""
    loaded = {name: sys.modules.get(name) for name in ("numpy", "torch", "jax")}
    found = {name: str(getattr(module, "__version__", "")) for name, module in loaded.items() if module is not None}
    return {"fieldfare": __version__, "the compiled core": kind() or "none"} | found


def _slim(request: Request) -> Request:
    """A request whose state is an array of its own, of one row where it is one seen many times."""
    if request.state is None:
        return request
    once = len(request.state) > 0 and not request.state.strides[0]
    return replace(request, state=np.asarray(request.state[:1] if once else request.state))


def _widened(request: Request) -> Request:
    if request.state is None or len(request.state) == request.n:
        return request
    return replace(request, state=np.broadcast_to(request.state, (request.n, *request.state.shape[1:])))


def _portable(error: Exception) -> Exception:
    """The error itself where it survives the way as it is, else a `RuntimeError` with its type's name and text."""
    import ray

    with contextlib.suppress(Exception):
        # Bytes made on this line, of this process's own exception: nothing that came over a wire is read here.
        back = ray.cloudpickle.loads(ray.cloudpickle.dumps(error))
        if type(back) is type(error) and str(back) == str(error):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _greet(member: Member, hello: tuple[int, str, dict[str, str], str]) -> None:
    """Take an actor in; refuse one that lacks what the job needs, or has other versions of it."""
    pid, host, theirs, broken = hello
    if broken:
        raise UsageError(_unready(broken))
    mine = versions()
    for name in mine.keys() & theirs.keys():
        if mine[name] != theirs[name]:
            remedy = (
                "set FIELDFARE_NATIVE to one that all have" if "core" in name else "install the same on all machines"
            )
            raise UsageError(
                f"the Ray worker on {host} has {name} {theirs[name]} and this program {mine[name]}: results would not "
                f"be the same; {remedy}."
            )
    member.pid, member.host = pid, host


def _unready(why: str) -> str:
    return (
        f"a Ray worker could not take up the job ({why}): install fieldfare, and all that the job imports, "
        "in the same versions on every machine of the cluster."
    )


def _died(request: Request, cuts: list[tuple[int, int]], at: int, times: int, error: Exception) -> str:
    match at:
        case value if value == _SHARE:
            when = "handing over results"
        case value if value == _START:
            when = "starting"
        case _:
            start, stop = cuts[at]
            when = f"computing clients {request.clients[start]} to {request.clients[stop - 1]}"
    return (
        f"Ray workers ended {times} times while {when} (killed, or out of memory; {one_line(error)}): "
        "resume the run with fewer workers or a smaller chunk."
    )
