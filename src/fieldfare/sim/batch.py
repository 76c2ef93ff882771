"""All asks that are pending, computed together: grouped into requests, computed by a pool, split into gathers.

Invariant: what one gather says does not depend on which others were computed beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fieldfare.aggregate.gather import Gather
from fieldfare.core.effects import Run
from fieldfare.core.events import Gathered
from fieldfare.core.params import Layout
from fieldfare.core.work import Work
from fieldfare.sim.asks import Ask, client_keys, levels
from fieldfare.sim.cluster import ready
from fieldfare.sim.compute import Piece, Request, Segment, Share, compute_inline
from fieldfare.sim.pool import Begun, Pool, allowed_workers, one_thread
from fieldfare.sim.ray import RayPool

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_EMPTY = Layout((), ())
_WORTH_FORKING = 3e8
_BEGUN = 3


def forks(work: Any) -> bool:
    """Whether a process that computes `work` may be forked: not when the work, or its net, says `forks = False`."""
    return bool(getattr(work, "forks", getattr(getattr(work, "net", None), "forks", True)))


class ClientState(Protocol):
    """Where the client-state slots are kept (`store.slots`)."""

    def get(self, slot: str, clients: I64) -> tuple[F32, NDArray[np.bool_]]: ...

    def put(self, slot: str, clients: I64, rows: F32) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Share1:
    """The part of an ask that goes into one request: positions into `ask.clients`, and the sub-model if any."""

    number: int
    ask: Ask
    at: I64
    level: int | None


class Executor:
    """Computes requests here or in `workers` processes (None: as many as cores, if the work is worth it).

    A work that says `forks = False`, for a library with threads of its own, is computed here whatever `workers` says.
    `on`: "local", or where `sim.ray` finds its workers.
    Until it is closed, the libraries' thread pools have one thread each.
    """

    def __init__(
        self, works: Mapping[str, Work], data: Any, slots: ClientState | None = None, workers: int | None = None,
        chunk: int | None = None, on: str = "local",
    ) -> None:  # fmt: skip
        self.works = works
        self.data = data
        self.slots = slots
        self.chunk = chunk
        self.on = ready(on)
        self._asked = workers
        self.workers = threads = allowed_workers(workers if on == "local" else 1)
        if not all(forks(work) for work in works.values()):
            self.workers = 1
        self._eager = workers is not None
        self._pool: Pool | RayPool | None = None
        self._state: dict[int, list[tuple[str, I64, F32]]] = {}
        self._restore: Callable[[], None] | None = one_thread(threads)

    def compute(self, request: Request, flops: float) -> list[Share]:
        if self.on != "local" and request.n > 1:
            if self._pool is None:
                self._pool = RayPool(self.works, self.data, self._asked, self.on)
            return self._pool.compute(request, self.chunk)
        if request.n > 1 and self.forked(flops, request.work):
            return self.start(request).result()
        return compute_inline(request, self.works, self.data, self.chunk)

    def begin(self, request: Request, flops: float) -> Callable[[], list[Share]]:
        """What gives the result of a request: workers begin it now, this process computes it when it is asked for."""
        if request.n > 1 and self.forked(flops, request.work):
            return self.start(request).result
        return lambda: self.compute(request, flops)

    def forked(self, flops: float, work: str) -> bool:
        """Whether requests of so many FLOPs are computed in forked processes; a work with threads of its own is not."""
        if self.on != "local" or self.workers == 1 or getattr(self.works[work], "threaded", False):
            return False
        return self._eager or flops >= _WORTH_FORKING

    def start(self, request: Request) -> Begun:
        """Begin a request in forked processes, without waiting for it."""
        if self._pool is None:
            self._pool = Pool(self.works, self.data, self.workers)
        assert isinstance(self._pool, Pool)
        return self._pool.start(request, self.chunk)

    def keep(self, ask: Ask, slot: str, clients: I64, rows: F32) -> None:
        """New client state, provisional until the gather is accepted."""
        self._state.setdefault(id(ask), []).append((slot, clients, rows))

    def provisional(self, ask: Ask) -> tuple[tuple[str, I64, F32], ...]:
        """What `keep` was given for `ask`, as (slot, ids, rows)."""
        return tuple(self._state.get(id(ask), ()))

    def hold(self, ask: Ask, kept: Sequence[tuple[str, I64, F32]]) -> None:
        """Take back, for `ask`, what `provisional` gave."""
        self._state[id(ask)] = list(kept)

    def accept(self, ask: Ask, event: Gathered) -> None:
        """Commit the client state of the replies that counted."""
        for slot, clients, rows in self._state.pop(id(ask), ()):
            if self.slots is not None:
                ok = np.isin(clients, event.clients)
                self.slots.put(slot, *((clients, rows) if ok.all() else (clients[ok], rows[ok])))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._restore is not None:
            self._restore()
            self._restore = None

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def gather_all(pending: Mapping[int, Ask], executor: Executor, seed: int) -> dict[int, Gathered]:
    """The `Gathered` of every pending ask, from as few stacked computations as there are kinds of them."""
    groups: dict[Any, list[Share1]] = {}
    for number, ask in pending.items():
        for share in _shares(number, ask):
            groups.setdefault(_kind(share, executor.works.get(ask.run.work)), []).append(share)
    parts: dict[int, list[tuple[I64, Any, Any, Any]]] = {number: [] for number in pending}
    gathers = {number: Gather(ask.run.reduce, ask.asked) for number, ask in pending.items()}
    begun: deque[Computed] = deque()  # a few at a time, so that workers do not wait between them
    for shares in groups.values():
        begun.append(_begin(shares, executor, seed))
        if len(begun) > _BEGUN:
            _finish(begun.popleft(), executor, gathers, parts)
    while begun:
        _finish(begun.popleft(), executor, gathers, parts)
    return {number: _event(ask, gathers[number], parts[number]) for number, ask in pending.items()}


def _shares(number: int, ask: Ask) -> list[Share1]:
    if not len(ask.clients):
        return []
    if ask.run.view is None:
        return [Share1(number, ask, np.arange(len(ask.clients)), None)]
    return [Share1(number, ask, at, level) for level, at in levels(ask.run, ask.clients)]


def _stacks(run: Run, work: Any) -> bool:
    """Whether `work` takes what it is told client by client (`stacks = True`), so that asks with inputs go together."""
    plain = run.model is not None and not run.model.opaque and not run.model.sides
    return plain and getattr(work, "stacks", False) and run.view is None and run.state is None


def _told(run: Run, clients: I64) -> list[dict[str, Any]]:
    """All that each client is told, `[n]`: config, inputs and what is its own."""
    return [{**run.config, **run.inputs, **run.each.get(client, {})} for client in clients.tolist()]


def _kind(share: Share1, work: Any) -> Any:
    run = share.ask.run
    if _stacks(run, work):
        assert run.model is not None
        return (run.work, run.model.layout, share.ask.steps is None)
    layout = 0 if run.model is None else (id(run.model.layout), id(run.model.sides) if run.model.sides else 0)
    if run.inputs or run.each or run.view is not None or (run.model is not None and run.model.opaque):
        return (share.number, share.level)
    alike = work.alike(run.config) if hasattr(work, "alike") else tuple(sorted(run.config.items()))
    return (run.work, layout, alike, run.state, share.ask.steps is None)


def _model(share: Share1) -> tuple[F32, Layout]:
    run = share.ask.run
    if run.model is None:
        return np.empty(0, np.float32), _EMPTY
    if share.level is None:
        return run.model.vector, run.model.layout
    assert run.view is not None
    return run.model.vector[run.view.index(share.level)], run.view.layout(share.level)


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """A group of shares whose request has begun: its clients, where each share's are, and what gives the result."""

    shares: list[Share1]
    segments: list[Segment]
    ids: I64
    result: Callable[[], list[Share]]


def _begin(shares: list[Share1], executor: Executor, seed: int) -> Computed:
    """Put a group together, and begin it."""
    run = shares[0].ask.run
    versions: dict[int, int] = {}
    vectors: list[F32] = []
    row: list[I64] = []
    segments: list[Segment] = []
    clients: list[I64] = []
    keys: list[NDArray[np.uint64]] = []
    steps: list[I64] = []
    start = 0
    layout = _EMPTY
    for share in shares:
        vector, layout = _model(share)
        known = versions.get(id(share.ask.run.model)) if share.level is None else None
        if known is None:
            known = versions[id(share.ask.run.model)] = len(vectors)
            vectors.append(vector)
        n = len(share.at)
        row.append(np.full(n, known))
        whole = n == len(share.ask.clients)
        clients.append(share.ask.clients if whole else share.ask.clients[share.at])
        stream = client_keys(share.ask, seed)
        keys.append(stream if whole else stream[share.at])
        if share.ask.steps is not None:
            steps.append(share.ask.steps[share.at])
        index = None if share.level is None or run.view is None else run.view.index(share.level)
        size = None if index is None or share.ask.run.model is None else share.ask.run.model.size
        segments.append(Segment(start, start + n, share.ask.run.reduce, share.ask.asked, index, size))
        start += n
    ids = clients[0] if len(clients) == 1 else np.concatenate(clients)
    state, fresh = None, None
    if run.state and executor.slots is not None:  # read piece by piece, where the slots can
        state, fresh = getattr(executor.slots, "get_lazily", executor.slots.get)(run.state, ids)
    config, inputs = run.config, run.inputs
    each = {i: run.each[c] for i, c in enumerate(ids.tolist()) if c in run.each} if run.each else {}
    if len(shares) > 1 and _stacks(run, executor.works.get(run.work)):
        told = [one for share, own in zip(shares, clients, strict=True) for one in _told(share.ask.run, own)]
        config, inputs, each = {}, {}, dict(enumerate(told))
    request = Request(
        run.work,
        vectors[0][None] if len(vectors) == 1 else np.stack(vectors),
        row[0] if len(row) == 1 else np.concatenate(row), layout, ids,
        keys[0] if len(keys) == 1 else np.concatenate(keys),
        tuple(segments), config, inputs, each,
        state, fresh, run.model.opaque if run.model is not None else b"", np.concatenate(steps) if steps else None,
        sides={} if run.model is None else run.model.sides,
    )  # fmt: skip
    return Computed(shares, segments, ids, executor.begin(request, sum(share.ask.flops for share in shares)))


def _finish(
    computed: Computed, executor: Executor, gathers: Mapping[int, Gather],
    parts: Mapping[int, list[tuple[I64, Any, Any, Any]]],
) -> None:  # fmt: skip
    """Share out what a group came to."""
    shares, segments, ids = computed.shares, computed.segments, computed.ids
    run, done = shares[0].ask.run, computed.result()
    for share in done:
        for number, partials in share.partials.items():
            gathers[shares[number].number].merge(partials)
    found = sorted((piece for share in done for piece in share.pieces), key=lambda piece: piece.start)
    weight = _join([piece.weight for piece in found])
    refused = _join([piece.refused for piece in found])
    named = dict.fromkeys(name for piece in found for name in piece.metrics)
    metrics = {name: _join([_metric(piece, name) for piece in found]) for name in named}
    for share, segment in zip(shares, segments, strict=True):
        pick = slice(segment.start, segment.stop)
        parts[share.number].append((share.at, weight[pick], refused[pick], {k: v[pick] for k, v in metrics.items()}))
        for piece in found:
            a, b = max(segment.start, piece.start), min(segment.stop, piece.stop)
            if a < b and piece.state is not None and run.state is not None:
                executor.keep(share.ask, run.state, ids[a:b], piece.state[a - piece.start : b - piece.start])


def _metric(piece: Piece, name: str) -> F64:
    """A metric of a piece's clients, not a number where its work did not tell it."""
    told = piece.metrics.get(name)
    return np.full(piece.stop - piece.start, np.nan) if told is None else told


def _join(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _event(ask: Ask, gather: Gather, parts: list[tuple[I64, Any, Any, Any]]) -> Gathered:
    if not parts:
        return Gathered(ask.run.tag, {}, 0.0, ask.clients, np.empty(0), {}, ask.missing)
    if len(parts) == 1:
        _, weight, refused, metrics = parts[0]
    else:
        order = np.argsort(np.concatenate([at for at, *_ in parts]), kind="stable")
        weight = np.concatenate([w for _, w, _, _ in parts])[order]
        refused = np.concatenate([r for _, _, r, _ in parts])[order]
        metrics = {k: np.concatenate([m[k] for *_, m in parts])[order] for k in parts[0][3]}
    clients, missing = ask.clients, ask.missing
    if refused.any():
        missing = {**missing, "refused": clients[refused]}
        clients, weight = clients[~refused], weight[~refused]
        metrics = {name: values[~refused] for name, values in metrics.items()}
    return Gathered(ask.run.tag, gather.finish(), float(weight.sum()), clients, weight, metrics, missing)
