"""Who begins next in a stream: a client that may work now and is not at work, drawn one after another.

Large fleets with many free devices are tried by chance, thousands of candidates prepared at a time; where free devices
are few, or a selection rule wants to see them all, every device's next session is tracked. Not here: what a stream
counts (`stream`). Invariant: a draw depends on (seed, node, work), the draws before, the time and the fleet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.effects import Run
from fieldfare.core.quorum import Sample
from fieldfare.core.work import Cost, Work
from fieldfare.fleet.tasks import noise_of, phases
from fieldfare.sim.asks import costs
from fieldfare.sim.draw import Selected
from fieldfare.sim.population import Population
from fieldfare.sim.table import Parts, joined, parts_of

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Found = tuple[int, float, float, bool]
"""(client, seconds of the whole task, when its session ends, whether it will never be heard of again)."""

_BLOCK = 2048
_SMALL = 4096
_HORIZON_S = 600.0
_TRIES = 8
_CHOSEN = 16
"""A selection rule looks at everybody, and so chooses several at a time; of a small pool at most a quarter, so that it
has a choice, and no more than the gather wants replies: what is learnt then counts for those who begin next."""


class Candidates:
    """The clients of one stream that are not at work; `take` gives the next to begin, `leave` takes one back.

    `begun` is the number of the task that begins next. While `tracking`, `until` `[n]` says when the session of a
    device that may begin ends (-inf: it may not), and `idle` lists those devices, some of them with sessions that are
    over by now; `arrivals` is a heap of the sessions to come.
    """

    def __init__(self, population: Population, seed: int, name: tuple[str, str]) -> None:
        self.population, self.seed, self._name = population, seed, name
        self._key = np.array([rng.derive(seed, "refill", *name)], np.uint64)
        self._client_key = np.uint64(rng.derive(seed, "client", "stream", *name))
        self.busy = bytearray(population.size)
        self._busy = np.frombuffer(self.busy, np.bool_)
        self.begun = 0
        self.tracking = False
        self.drawn = self.block = self.place = 0
        self._block_at = self._block_end = -np.inf
        self._list: list[tuple[int, float, float, float, float]] = []
        self.rows: list[int] = []
        self._block: Parts | None = None
        self._taken: list[Parts] = []
        self._tasks: dict[int, tuple[NDArray[np.uint64], F64 | None, list[float]]] = {}
        self._dry = False
        self._until = np.empty(0)
        self._idle: list[int] = []
        self._arrivals: list[tuple[float, int, float]] = []
        self._queue: list[int] = []
        self._uniform: list[float] = []
        self._uniform_at = -1
        self._kind: Any = None
        self._among: I64 | None = None
        self._rule: Any = None
        nothing = np.empty(0)
        self._parts: tuple[Any, F64, F64, F64] = (None, nothing, nothing, nothing)
        self._tried = 0
        fleet = population.fleet
        self._fixed = fleet.network is None and fleet.drift is None
        self._plain, self._drop_out = self._fixed and not fleet.noise, fleet.drop_out

    def prepare(self, run: Run, work: Work, selected: Selected, now: float, target: int) -> None:
        """Get ready for a gather of `run` that wants `target` clients at work."""
        on = run.on
        assert isinstance(on, Sample)
        kind, ruled = (cost_kind(run), on.where), on.by != "uniform"
        self._run, self._work, self._selected = run, work, selected
        if self._kind is None or self._kind[1] != on.where or ruled != (self._rule is not None):
            self._among = self.population.flagged(on)
            self.tracking, self.place, self._list, self._block_end = False, 0, [], -np.inf
        self._rule, self._queue = on.by if ruled else None, []
        n = self.population.size if self._among is None else len(self._among)
        if kind != self._kind:
            self._kind = kind
            if self._block_end > -np.inf:
                self._fill(self._block_at)
        if ruled or n <= _SMALL or 2 * target > n or self._dry:
            if not self.tracking:
                self._track(now)
            elif not ruled and n > _SMALL and 2 * target <= n and len(self._idle) > 8 * target + 1024:
                self.tracking = self._dry = False
                self._until, self._idle, self._arrivals = np.empty(0), [], []
                self._block_end = -np.inf

    def prepared(self) -> tuple[list[tuple[int, float, float, float, float]], float, bool] | None:
        """(candidates prepared, of which `place` is next; until when they hold; whether there is no noise), or None.

        None where finding who begins next takes more than a look at the list: `take` then does it.
        """
        if self.tracking or self._drop_out or not self._fixed:
            return None
        return self._list, self._block_end, self._plain

    def occupy(self, clients: I64) -> None:
        """These clients are at work from now on."""
        self._busy[clients] = True

    def streams(self, first: int, n: int) -> tuple[NDArray[np.uint64], F64 | None]:
        """(random streams, factors on computing time or None) of `n` tasks, from number `first` of the stream."""
        blocks = [self._numbers(at) for at in range(first // _BLOCK, (first + n - 1) // _BLOCK + 1)]
        begin = first % _BLOCK
        keys, noise = (blocks[0][0], blocks[0][1]) if len(blocks) == 1 else (
            np.concatenate([block[0] for block in blocks]),
            None if blocks[0][1] is None else np.concatenate([block[1] for block in blocks]),
        )  # fmt: skip
        return keys[begin : begin + n], None if noise is None else noise[begin : begin + n]

    def _numbers(self, at: int) -> tuple[NDArray[np.uint64], F64 | None, list[float]]:
        """(random streams, factors on computing time, the same as a list) of block `at` of tasks."""
        found = self._tasks.get(at)
        if found is None:
            serials = np.arange(at * _BLOCK, (at + 1) * _BLOCK).astype(np.uint64)
            keys = rng.mix(rng.mix(serials) ^ self._client_key)
            noise = noise_of(self.population.fleet, rng.mix(keys))
            found = keys, noise, [1.0] * _BLOCK if noise is None else noise.tolist()
            self._tasks = {one: block for one, block in self._tasks.items() if one == at - 1} | {at: found}
        return found

    def taken(self, n: int) -> Parts | None:
        """What the last `n` that were taken consist of, without noise; None where that was not prepared."""
        if self.rows and self._block is not None:
            self._taken.append(self._block.pick(self.rows))
        self.rows.clear()
        parts, self._taken = self._taken, []
        return joined(parts) if parts and sum(one.rows.shape[1] for one in parts) == n else None

    def take(self, t: float) -> Found | None:
        """The next client to begin at `t`, or None where nobody may."""
        if self.tracking:
            return self._pick(t)
        busy, entries, at = self.busy, self._list, self.place
        if t < self._block_end:
            while at < len(entries):
                client, begin, until, still, compute = entries[at]
                at += 1
                if begin <= t and not busy[client] and (t < until or (until := self.until(client, t)) > t):
                    self.place = at
                    busy[client] = 1
                    self.rows.append(at - 1)
                    whole = still + compute if self._plain else self._seconds(client, t, still, compute)
                    self.begun += 1
                    return client, whole, until, self._drop_out > 0.0 and self._chance() < self._drop_out
        return self._renew(t)

    def leave(self, client: int, t: float) -> None:
        """`client` is no longer at work."""
        self.busy[client] = 0
        if self.tracking and (self._until[client] > t or self._there(client, t)):
            self._idle.append(client)

    def wait(self, t: float) -> float:
        """When the next client comes, nobody being there at `t`; inf: never."""
        return max(self._arrivals[0][0], t) if self.tracking and self._arrivals else np.inf

    def until(self, client: int, t: float) -> float:
        """When the session of `client` that covers `t` ends; -inf: it is away."""
        sessions = self.population.fleet.availability
        if sessions is None:
            return np.inf
        begin, until = sessions.session_of(t, client)
        return until if begin <= t else -np.inf

    # By chance

    def _renew(self, t: float) -> Found | None:
        """The next of new blocks of candidates; after some in vain, of everybody."""
        self._block_end = -np.inf
        self._next_block(t)
        self._tried += 1
        if self._tried > _TRIES:
            self._dry, self._tried = True, 0
            self._track(t)
        found = self.take(t)
        self._tried = 0
        return found

    def _next_block(self, t: float) -> None:
        self.block, self.place = self.block + 1, 0
        self._fill(t)

    def _fill(self, t: float) -> None:
        """Block number `block` of candidates as seen at `t`: those who may work within the horizon."""
        fleet = self.population.fleet
        n = self.population.size if self._among is None else len(self._among)
        counters = np.arange(self.block * _BLOCK, (self.block + 1) * _BLOCK)
        ids = (rng.bits(self._key, counters) % np.uint64(n)).astype(np.int64)
        ids = ids if self._among is None else self._among[ids]
        self._block_at = t
        if fleet.availability is None:
            self._block_end = np.inf
            begin, until = np.full(_BLOCK, -np.inf), np.full(_BLOCK, np.inf)
        else:
            self._block_end = t + _HORIZON_S
            keep, begin, until = fleet.availability.soon(t, ids, _HORIZON_S)
            ids = ids[keep]
        still, compute = np.zeros(len(ids)), np.zeros(len(ids))
        if self.rows and self._block is not None:
            self._taken.append(self._block.pick(self.rows))
        self.rows.clear()
        self._block = None
        if self._fixed:
            self._block, whole = parts_of(self._run, self._work, self.population, ids, t, None)
            still = whole
            if fleet.noise:
                compute = self._block.phases.compute
                still = whole - compute
        columns = (ids, begin, until, still, compute)
        self._list = list(zip(*(column.tolist() for column in columns), strict=True))

    def _costs(self, ids: I64) -> Cost:
        return costs(self._run, ids, self.population, self._work)[0]

    def _seconds(self, client: int, t: float, still: float, compute: float) -> float:
        """Seconds of a whole task of `client` that begins at `t`: `still`, and `compute` with the task's noise."""
        if not self._fixed:
            keys, _ = self.streams(self.begun, 1)
            return float(parts_of(self._run, self._work, self.population, np.array([client]), t, keys)[1][0])
        first, noise = self.noise_at(self.begun)
        return still + compute * noise[self.begun - first]

    def noise_at(self, serial: int) -> tuple[int, Sequence[float]]:
        """(number of the first task, factors on computing time) of the block of tasks that `serial` is in."""
        at = serial // _BLOCK
        return at * _BLOCK, self._numbers(at)[2]

    def _chance(self) -> float:
        """The next uniform number of the stream."""
        at, place = divmod(self.drawn, _BLOCK)
        if at != self._uniform_at:
            counters = np.arange(at * _BLOCK, (at + 1) * _BLOCK)
            self._uniform, self._uniform_at = rng.uniforms(rng.mix(self._key), counters).tolist(), at
        self.drawn += 1
        return self._uniform[place]

    # By looking at everybody

    def _track(self, t: float) -> None:
        """From now on know of every device that is not at work when it may begin."""
        self.tracking, self._queue, self._idle, self._arrivals = True, [], [], []
        self._until = np.full(self.population.size, -np.inf)
        ids = np.arange(self.population.size) if self._among is None else self._among
        self._later(ids[~self._busy[ids]], t)

    def _later(self, clients: I64, t: float) -> None:
        """Note the sessions that cover `t`, or come after it, of clients that are not at work."""
        sessions = self.population.fleet.availability
        if sessions is None:
            begin, until = np.full(len(clients), -np.inf), np.full(len(clients), np.inf)
        else:
            begin, until = sessions.session(t, clients)
        there = begin <= t
        self._until[clients] = np.where(there, until, -np.inf)
        self._idle.extend(clients[there].tolist())
        coming = ~there & np.isfinite(begin)
        if coming.any():
            found = zip(begin[coming].tolist(), clients[coming].tolist(), until[coming].tolist(), strict=True)
            if coming.sum() > 8:
                self._arrivals.extend(found)
                heapify(self._arrivals)
            else:
                for entry in found:
                    heappush(self._arrivals, entry)

    def _arrive(self, t: float) -> None:
        while self._arrivals and self._arrivals[0][0] <= t:
            _, client, until = heappop(self._arrivals)
            self._idle.append(client)
            self._until[client] = until

    def _pick(self, t: float) -> Found | None:
        self._arrive(t)
        client = self._by_rule(t) if self._rule is not None else self._any(t)
        if client is None:
            return None
        self.busy[client] = 1
        if self._parts[0] is not self._kind and self._fixed:
            ids = np.arange(self.population.size)
            parts = phases(self.population.fleet, ids, self._costs(ids), 0.0)
            self._parts = (self._kind, parts.whole, parts.whole - parts.compute, parts.compute)
        if self._plain:
            whole = float(self._parts[1][client])
        else:
            still, compute = (
                (0.0, 0.0) if len(self._parts[2]) == 0 else (self._parts[2][client], self._parts[3][client])
            )
            whole = float(self._seconds(client, t, still, compute))
        self.begun += 1
        return client, whole, float(self._until[client]), self._drop_out > 0.0 and self._chance() < self._drop_out

    def _any(self, t: float) -> int | None:
        idle = self._idle
        while idle:
            at = int(self._chance() * len(idle))
            client = idle[at]
            idle[at] = idle[-1]
            idle.pop()
            if self._until[client] > t or self._there(client, t):
                return client
        return None

    def _there(self, client: int, t: float) -> bool:
        """Whether `client`, whose session has ended, is in another by `t`; if not, it arrives with its next."""
        sessions = self.population.fleet.availability
        begin, until = (-np.inf, np.inf) if sessions is None else sessions.session_of(t, client)
        if begin <= t:
            self._until[client] = until
            return True
        self._until[client] = -np.inf
        if begin < np.inf:
            heappush(self._arrivals, (begin, client, until))
        return False

    def _by_rule(self, t: float) -> int | None:
        """The next of those that the selection rule has chosen; it chooses several at a time."""
        while self._queue:
            client = self._queue.pop()
            if not self._busy[client] and self._until[client] > t:
                return client
        self._idle = []
        over = np.flatnonzero(np.isfinite(self._until) & (self._until <= t) & ~self._busy)
        self._later(over, t)
        self._arrive(t)
        pool = np.flatnonzero((self._until > t) & ~self._busy)
        if not len(pool):
            return None
        purpose = ("refill", *self._name, self.drawn)
        self.drawn += 1

        def seconds(ids: I64) -> F64:
            return self.population.fleet.durations(ids, self._costs(ids))

        on, need = self._run.on, self._run.quorum.need
        count = max(min(len(pool) // 4, _CHOSEN, need or _CHOSEN), 1)
        part = count / on.count if isinstance(on, Sample) else 1.0
        chosen = self._selected.choose(
            self._rule, self._run, count, self.population, pool, seconds, t, self.seed, purpose, part
        )
        self._queue = chosen[rng.choose(self.seed, (*purpose, "order"), len(chosen), len(chosen))].tolist()
        return self._queue.pop()

    def saved(self) -> dict[str, Any]:
        """Everything that decides the next draws, as plain values."""
        return {
            "tracking": self.tracking, "drawn": self.drawn, "block": self.block, "place": self.place,
            "block_at": float(self._block_at), "open": bool(self._block_end > -np.inf), "begun": self.begun,
            "dry": self._dry, "idle": np.array(self._idle, np.int64), "arrivals": tuple(self._arrivals),
            "queue": tuple(self._queue), "until": self._until, "kind": self._kind is not None,
            "where": None if self._kind is None else self._kind[1], "ruled": self._rule is not None,
        }  # fmt: skip

    def load(self, saved: Mapping[str, Any], run: Run | None, work: Work, busy: Sequence[int]) -> None:
        """Take back what `saved` gave; `run` is the newest of the stream."""
        self.tracking, self.drawn, self.block = saved["tracking"], saved["drawn"], saved["block"]
        self.place, self._block_at, self.begun = saved["place"], saved["block_at"], saved["begun"]
        self._dry, self._idle, self._queue = saved["dry"], saved["idle"].tolist(), list(saved["queue"])
        self._arrivals = [tuple(entry) for entry in saved["arrivals"]]
        self._until = saved["until"].copy()
        self._busy[np.array(busy, np.int64)] = True
        if saved["kind"] and run is not None and isinstance(run.on, Sample):
            self._run, self._work, self._rule = run, work, run.on.by if saved["ruled"] else None
            self._kind, self._among = (cost_kind(run), saved["where"]), self.population.flagged(run.on)
            if saved["open"]:
                self._fill(self._block_at)


def cost_kind(run: Run) -> Any:
    """What the cost of a Run depends on, beside the client: equal for Runs that cost the same.

    The number of the round is no part of it, where there are no sub-models: no work costs more for being asked later.
    """
    config = tuple(sorted((k, v) for k, v in run.config.items() if k != "round"))
    layout = None if run.model is None else (run.model.layout, run.model.bytes)
    return (layout, config) if run.view is None else (layout, config, run.tag)
