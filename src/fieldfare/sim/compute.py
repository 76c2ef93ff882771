"""From asks to results: what is pending, computed in chunks and folded where it lies.

Here: the request that a pool of workers or this process can compute, and the pure function that computes part of it.
Not here: processes (pool) and time (simulator). Invariant: a result does not depend on chunk or worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.aggregate.gather import Gather, Partial
from fieldfare.aggregate.rows import Clip
from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Coverage, Fold, Mean, Total
from fieldfare.core.params import Layout
from fieldfare.core.work import Cohort, Work

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

CHUNK_BYTES, _TOGETHER_BYTES = 160 << 20, 1 << 20
_IN_PLACE = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """One computed task: its row of each leaf, weight, metrics, and whether it diverged.

    `rows`: None where another process, that computed them, holds them.
    """

    rows: Mapping[str, Any] | None
    weight: float
    metrics: Mapping[str, float]
    bad: bool


Store = dict[tuple[str, int], Held]
"""What a process holds, by stream and number of the task."""


@dataclass(frozen=True, slots=True, eq=False)
class Recall:
    """Tasks computed before, whose rows are folded now by whoever holds them: numbers, clients, factors `[m]`."""

    serials: I64
    clients: I64
    factor: F64 | None


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One `Run`'s share of a request: clients `start..stop`, folded by `reduce` for a cohort of `asked`.

    `index` int64 `[p]` and `size`: the coordinates of the whole vector that a sub-model's rows are. `factor` `[n]`: on
    the weights, where replies are stale. `recall`: what else is folded with them. `keep`: the rows are handed back as
    they are, and nothing is folded; with `serials` `[n]` the process that computes them holds them under these numbers.
    """

    start: int
    stop: int
    reduce: Mapping[str, Fold]
    asked: int
    index: I64 | None = None
    size: int | None = None
    factor: F64 | None = None
    keep: bool = False
    serials: I64 | None = None
    recall: Recall | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Clients of one or several `Run`s that share work, layout and settings, to be computed together.

    `stream` and `forget`: whose tasks are held, and the numbers of those that nobody will recall.
    """

    work: str
    models: F32
    row: I64
    layout: Layout
    clients: I64
    keys: NDArray[np.uint64]
    segments: tuple[Segment, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    each: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    state: F32 | None = None
    fresh: NDArray[np.bool_] | None = None
    opaque: bytes = b""
    steps: I64 | None = None
    sides: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    stream: str = ""
    forget: tuple[int, ...] = ()

    @property
    def n(self) -> int:
        return len(self.clients)

    @property
    def index(self) -> I64 | None:
        """The places of a sub-model in the whole vector: who shares one is of one level, and so of one segment."""
        return self.segments[0].index if self.segments else None


@dataclass(slots=True, eq=False)
class Piece:
    """Results of clients `start..stop`: weights, metrics, which were refused, new state rows; and `rows` by leaf of the
    last of them, if those are kept."""

    start: int
    stop: int
    weight: F64
    metrics: Mapping[str, F64]
    refused: NDArray[np.bool_]
    state: F32 | None
    rows: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(slots=True, eq=False)
class Share:
    """What one worker computed: its pieces, and per segment the partial folds; `refused`: recalled, but not folded."""

    pieces: list[Piece] = field(default_factory=list[Piece])
    partials: dict[int, dict[str, Partial]] = field(default_factory=dict[int, dict[str, Partial]])
    refused: list[int] = field(default_factory=list[int])


def pieces(
    request: Request, workers: int, chunk: int | None, in_place: bool = False, together: int = 1
) -> list[tuple[int, int]]:  # fmt: skip
    """Cut a request into runs of clients: bounded in memory, several per worker, never across nothing.

    `in_place`: no row is kept, so that many may go together. `together`: that many clients are trained as one, whatever
    else is said, so that who they are depends neither on `chunk` nor on the number of workers.
    """
    if together > 1:
        return [(a, min(a + together, request.n)) for a in range(0, request.n, together)]
    leaves = max((len(segment.reduce) for segment in request.segments), default=0)
    kept = 0 if request.state is None else 2 * request.state.shape[1]
    most = max(1, CHUNK_BYTES // max(4 * (request.models.shape[1] * (1 + leaves) + kept), 1))
    if in_place:
        most = max(most, _IN_PLACE)
    if chunk is not None:
        most = min(most, chunk)
    if workers > 1:
        most = min(most, max(1, -(-request.n // (workers * 2))))
    return [(a, min(a + most, request.n)) for a in range(0, request.n, most)]


class Tally:
    """Computes pieces of one request and keeps the partial folds of each segment.

    `store`: what this process holds of earlier requests, for those that recall it.
    """

    def __init__(self, request: Request, works: Mapping[str, Work], data: Any, store: Store | None = None) -> None:
        self.request, self.store = request, {} if store is None else store
        self.work = works[request.work]
        self.data = data
        self.share = Share()
        self._gathers: dict[int, Gather] = {}

    def compute(self, start: int, stop: int) -> None:
        """Run the work on clients `start..stop` and fold their rows."""
        request = self.request
        pick = slice(start, stop)
        clients = request.clients[pick]
        each = {i - start: v for i, v in request.each.items() if start <= i < stop} if request.each else {}
        fold, asked = self._in_place()
        out = self.work(
            Cohort(
                request.models, request.row[pick], request.layout, clients, request.keys[pick],
                self.data.block(clients) if self.data is not None else Block.empty(len(clients)),
                request.config, request.inputs, each,
                None if request.state is None else request.state[pick],
                None if request.fresh is None else request.fresh[pick],
                request.opaque,
                self.data.held_block(clients) if getattr(self.work, "needs_held", False) else None,
                None if request.steps is None else request.steps[pick],
                sides=request.sides, index=request.index, fold=fold, asked=asked,
            )
        )  # fmt: skip
        if len(out.weight) != len(clients):
            raise UsageError(
                f"work {request.work!r} returned {len(out.weight)} weights for {len(clients)} clients: "
                "return one row per client, in the order given."
            )
        bad, kept = out.diverged, dict[str, Any]()
        if isinstance(total := out.leaves.get("delta"), Total) and out.refused is not None:
            bad |= out.refused
            gather = self._gather(0, request.segments[0])
            if not bad.all():  # else nobody sent anything
                gather.take_total("delta", total, request.segments[0].index, request.segments[0].size)
            self.share.pieces.append(Piece(start, stop, out.weight, out.metrics, bad, out.state, kept))
            return
        for number, segment in enumerate(request.segments):
            a, b = max(segment.start, start) - start, min(segment.stop, stop) - start
            if a < b and segment.serials is not None:
                for i in range(a, b):
                    rows = {leaf: own(values[i]) for leaf, values in out.leaves.items()}
                    serial = int(segment.serials[start + i - segment.start])
                    self.store[request.stream, serial] = Held(rows, float(out.weight[i]), {}, bool(bad[i]))
            elif a < b and segment.keep:
                kept = {leaf: rows[a:b].copy() if a else rows for leaf, rows in out.leaves.items()}
            elif a < b:
                self._fold(number, segment, start, clients[a:b], out.leaves, out.weight, slice(a, b), bad)
        self.share.pieces.append(Piece(start, stop, out.weight, out.metrics, bad, out.state, kept))

    def _in_place(self) -> tuple[Mean | Coverage | None, int]:
        """The fold and the cohort's size, where a mean of their delta is all that is wanted of these clients."""
        if not folds_in_place(self.request, self.work):
            return None, 0
        segment = self.request.segments[0]
        fold = segment.reduce["delta"]
        assert isinstance(fold, Mean | Coverage)
        return fold, segment.asked

    def recall(self) -> None:
        """Fold what this process holds of what the request recalls, and forget what it says."""
        for number, segment in enumerate(self.request.segments):
            if (call := segment.recall) is None:
                continue
            names = [(self.request.stream, serial) for serial in call.serials.tolist()]
            at = np.array([i for i, name in enumerate(names) if name in self.store], np.int64)
            held = [self.store.pop(names[i]) for i in at.tolist()]
            factor = None if call.factor is None else call.factor[at]
            bad = fold_held(self._gather(number, segment), call.clients[at], held, factor)
            self.share.refused += call.serials[at[bad]].tolist()
        for serial in self.request.forget:
            self.store.pop((self.request.stream, serial), None)

    def _gather(self, number: int, segment: Segment) -> Gather:
        gather = self._gathers.get(number)
        if gather is None:
            gather = Gather(segment.reduce, segment.asked, segment.factor is not None)
            self._gathers[number] = gather
            self.share.partials[number] = gather.partials
        return gather

    def _fold(
        self, number: int, segment: Segment, start: int, clients: I64, leaves: Mapping[str, Any], weight: F64,
        where: slice, bad: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        if not segment.reduce:
            return
        gather = self._gather(number, segment)
        whole = where == slice(0, len(weight))
        rows = leaves if whole else {leaf: value[where] for leaf, value in leaves.items()}
        factor = segment.factor
        if factor is not None:
            first = start + (where.start or 0) - segment.start
            factor = factor[first : first + len(clients)]
        bad[where] = gather.take(clients, rows, weight[where], bad[where], segment.index, segment.size, factor)


def together(work: Any) -> int:
    """How many clients `work` trains as one."""
    return int(getattr(work, "together", 1))


def folds_in_place(request: Request, work: Any) -> bool:
    """Whether one mean of `delta`, clipped or not, is all that is wanted, and `work` may fold it where it lies."""
    if len(request.segments) != 1 or not getattr(work, "folds", False):
        return False
    one = request.segments[0]
    told = one.keep or one.serials is not None or one.recall is not None or one.factor is not None
    if told or list(one.reduce) != ["delta"]:
        return False
    fold = one.reduce["delta"]
    if not isinstance(fold, Mean | Coverage) or (isinstance(fold, Mean) and one.index is not None):
        return False
    return all(type(before) is Clip for before in fold.before) and len(fold.before) <= 1


def fold_held(gather: Gather, clients: I64, held: Sequence[Held], factor: F64 | None) -> NDArray[np.bool_]:
    """Fold the rows of `held` tasks of `clients` `[m]`, a megabyte or so at once; which of them were refused `[m]`."""
    bad = np.array([one.bad for one in held], np.bool_)
    weight = np.array([one.weight for one in held], np.float64)
    found = [one.rows or {} for one in held]
    size = sum(row.nbytes for row in found[0].values() if isinstance(row, np.ndarray)) if found else 0
    step = max(1, _TOGETHER_BYTES // max(size, 1))
    for first in range(0, len(held), step):
        some = slice(first, first + step)
        rows = {leaf: _stacked([rows[leaf] for rows in found[some]]) for leaf in found[first]}
        bad[some] = gather.take(
            clients[some], rows, weight[some], bad[some], factor=None if factor is None else factor[some]
        )
    return bad


def own(row: Any) -> Any:
    """A row that keeps no others in memory."""
    return row.copy() if isinstance(row, np.ndarray) else row


def _stacked(rows: list[Any]) -> Any:
    if not isinstance(rows[0], np.ndarray):
        return rows
    return rows[0][None] if len(rows) == 1 else np.stack(rows)


def compute_inline(request: Request, works: Mapping[str, Work], data: Any, chunk: int | None) -> list[Share]:
    """The whole request in this process."""
    tally = Tally(request, works, data)
    for start, stop in pieces(request, 1, chunk, folds_in_place(request, tally.work), together(tally.work)):
        tally.compute(start, stop)
    return [tally.share]
