"""Gathers whose late replies count in the next: clients at work across `Run`s, replaced as they end.

An open gather is planned to its end as soon as it is asked for, from costs alone, by one loop over ends and starts:
so a task costs about a microsecond, and values are computed later, many at once (`ahead`). At one instant all ends
come before all starts. Not here: who is a candidate (`candidates`). Invariant: a plan is a pure function of the
stream's state, the `Run` and the fleet; a stream that was saved and loaded goes on as if it had not been.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.effects import Run
from fieldfare.core.errors import UsageError
from fieldfare.core.quorum import Sample
from fieldfare.core.work import Work
from fieldfare.fleet.tasks import DROP_OUT, INTERRUPTED, OK, STALE, TIMEOUT, Tasks, account
from fieldfare.sim.asks import Ask, begin, check_stacks, client_keys
from fieldfare.sim.candidates import Candidates
from fieldfare.sim.draw import Selected
from fieldfare.sim.population import Population
from fieldfare.sim.table import PARTS, Parts, Rows, Table, joined, parts_of

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_IN_VAIN = 100_000
"""Tasks that end in a row without a reply that counts, before a gather is given up as one that would never be over."""
_REASONS = ((INTERRUPTED, "interrupted"), (TIMEOUT, "timeout"), (STALE, "stale"), (DROP_OUT, "drop-out"))
_SAVED = ("client", "base", "serial", "start", "end", "code", "key")


@dataclass(frozen=True, slots=True, eq=False)
class StreamAsk:
    """One gather of a stream, planned: like `Ask`, with the age of every reply.

    `clients` int64 `[n]` ascending (one may reply twice), `start`, `seconds` `[n]` each task's own; `serials` `[n]`
    name the tasks; `keys` `[n]` their streams; `base` `[n]` the number of the Run each started from, `runs` those Runs;
    `staleness` `[n]` and its `factor` `[n]`; `over`: all tasks that ended in this gather; `begun`: how many began;
    `at_work`: how many go on.
    """

    node: str
    run: Run
    issued: float
    due: float
    number: int
    clients: I64
    start: F64
    seconds: F64
    serials: I64
    keys: NDArray[np.uint64]
    base: I64
    runs: Mapping[int, Run]
    staleness: I64
    factor: F64
    missing: Mapping[str, I64]
    over: Tasks
    steps: I64 | None
    flops: float
    bytes_down: float
    bytes_up: float
    asked: int
    begun: int
    at_work: int
    own: bool = False

    def tasks(self, fleet: Any) -> Tasks:
        return self.over


def second(node: str, work: str) -> UsageError:
    """Why a stream's `Run` is refused while another of its gathers is open."""
    return UsageError(
        f"node {node!r} asks for {work!r} with Quorum(late='next') while such a Run is open: wait for its answer."
    )


class Stream:
    """The clients at work for one work of one node, from gather to gather."""

    def __init__(self, node: str, work: str, population: Population, seed: int) -> None:
        self.node, self.work, self.population, self.seed = node, work, population, seed
        self.number = self.serial = 0
        self.heap: list[tuple[float, int, int, int, int]] = []
        self.runs: dict[int, Run] = {}
        self._at_work: dict[int, int] = {}
        self.candidates = Candidates(population, seed, (node, work))
        self.table = Table()
        self._new: list[tuple[int, int, float, float, int]] = []

    def open(self, run: Run, now: float, works: Mapping[str, Work], selected: Selected) -> StreamAsk:
        """The whole of the gather that `run` opens at `now`."""
        on, quorum = run.on, run.quorum
        if not isinstance(on, Sample):
            raise UsageError("Quorum(late='next') is for samples of devices: ask for Sample(n), or use late='drop'.")
        if run.state is not None or run.inputs or run.each:
            raise UsageError(
                f"{run.work!r} is asked with client state or inputs, and Quorum(late='next') keeps replies "
                "over from other Runs: use late='drop'."
            )
        if run.work not in works:
            raise UsageError(f"no work is called {run.work!r}: this job binds {', '.join(works) or 'none'}.")
        check_stacks(run, quorum.need or on.count)
        self.number += 1
        self.runs[self.number] = run
        deadline = np.inf if quorum.deadline_s is None else now + quorum.deadline_s
        began = self.serial
        fresh = not self.heap
        if fresh:
            self.candidates.tracking = False
            self._open_fresh(run, now, works, selected)
        need = quorum.need if quorum.need is not None else on.count if not quorum.refill else 1 << 62
        at_work = on.count if quorum.refill or fresh else len(self.heap) + on.count
        self.candidates.begun = self.serial
        self.candidates.prepare(run, works[run.work], selected, now, at_work)
        held_back = list[int]()
        asking, work = 0 if fresh or quorum.refill else on.count, works[run.work]
        due, over = self._plan(run, work, now, need, deadline, asking, held_back)
        for client in held_back:
            self._leave(client, due)
        self._flush(run, work)
        return self._ask(run, now, due, over, self.serial - began)

    def _leave(self, client: int, t: float) -> None:
        if self.candidates.tracking:
            self.candidates.leave(client, t)
        else:
            self.candidates.busy[client] = 0

    def _plan(
        self, run: Run, work: Work, now: float, need: int, deadline: float, asking: int, held_back: list[int]
    ) -> tuple[float, list[int]]:
        """Ends and starts in order of time until the gather is over: (when, the slots of tasks that ended).

        Without refilling `asking` clients begin, each once there is one that may: who is not at work and has not been
        asked in this gather. Those who ended and could have been asked again are added to `held_back`: they stay busy.
        """
        quorum, number, heap, new = run.quorum, self.number, self.heap, self._new
        free, fresh = self.table.free, self.table.slot
        oldest = -(1 << 62) if quorum.stale.limit is None else number - quorum.stale.limit
        timeout = np.inf if quorum.timeout_s is None else quorum.timeout_s
        oldest, got, over, t, serial = max(oldest, 0), 0, list[int](), now, self.serial
        candidates, refill = self.candidates, quorum.refill
        target = run.on.count if refill and isinstance(run.on, Sample) else 0
        take, leave, wait, busy = candidates.take, candidates.leave, candidates.wait, candidates.busy
        last, in_vain = 0, max(_IN_VAIN, 100 * target)
        in_no_time, asked = 0, set[int]()
        while True:
            while heap and heap[0][0] <= t:
                _, _, slot, base, client = heappop(heap)
                over.append(slot)
                if asking and client in asked:
                    held_back.append(client)
                elif candidates.tracking:
                    leave(client, t)
                else:
                    busy[client] = 0
                if base >= oldest:
                    got, last = got + 1, len(over)
                    if got >= need:
                        self.serial = serial
                        return t, over
                elif len(over) - last > in_vain:
                    self.serial = serial
                    raise self._in_vain(run, work, over, len(over) - last)
            if t >= deadline:
                self.serial = serial
                return t, over
            missing = target - len(heap) if refill else asking
            if missing > 0:
                while missing > 0:
                    found = take(t)
                    if found is None:
                        break
                    client, whole, until, silent = found
                    end, code = t + whole, OK
                    if whole > timeout:
                        end, code = t + timeout, TIMEOUT
                    if until < end:
                        end, code = until, INTERRUPTED
                    if silent and code == OK:
                        code = DROP_OUT
                    slot = free.pop() if free else fresh()
                    heappush(heap, (end, serial, slot, number if code == OK else -1, client))
                    new.append((slot, client, t, end, code))
                    serial += 1
                    missing -= 1
                    if not refill:
                        asked.add(client)
                asking = 0 if refill else missing
            if 2 < target == len(heap) and (prepared := candidates.prepared()) is not None:
                entries, block_end, plain = prepared
                ends = min(deadline, block_end)
                t, serial, got, last = self._steadily(
                    entries, plain, (t, ends, timeout), (oldest, need, in_vain), over, (serial, got, last)
                )
                if got >= need:
                    self.serial = serial
                    return t, over
                if len(heap) < target:
                    continue
            after = heap[0][0] if heap else np.inf
            if missing > 0:
                after = min(after, wait(t))
            if after == t and (in_no_time := in_no_time + 1) > in_vain:
                raise UsageError(
                    f"{in_no_time} tasks of {run.work!r} took no time at all, so this gather would never be over: give "
                    "the fleet an overhead_s, or the quorum a need."
                )
            if after > deadline or after == np.inf:
                self.serial = serial
                return (t if deadline == np.inf else deadline), over
            t = after

    def _steadily(
        self, entries: list[tuple[int, float, float, float, float]], plain: bool, times: tuple[float, float, float],
        limits: tuple[int, int, int], over: list[int], counts: tuple[int, int, int],
    ) -> tuple[float, int, int, int]:  # fmt: skip
        """One end and one start, again and again, while nothing else happens: as `_plan` would do it, only quicker.

        Stops before an end at the time of another, before one at or after the second of `times`, and where the list of
        candidates is through: then with one client too few at work. The reply that ends the gather begins nobody.
        """
        heap, new, number, candidates = self.heap, self._new, self.number, self.candidates
        (t, ends, timeout), (oldest, need, in_vain) = times, limits
        serial, got, last = counts
        free, fresh, rows, session = self.table.free, self.table.slot, candidates.rows, candidates.until
        at, stop, busy, done = candidates.place, len(entries), candidates.busy, len(over)
        first, noise = (0, ()) if plain else candidates.noise_at(serial)
        while True:
            now, _, slot, base, client = heap[0]
            if not t < now < ends or heap[1][0] <= now or heap[2][0] <= now or done - last >= in_vain:
                break
            t = now
            over.append(slot)
            done += 1
            busy[client] = 0
            if base >= oldest:
                got, last = got + 1, done
                if got >= need:
                    heappop(heap)
                    break
            while at < stop:
                client, begin, until, still, compute = entries[at]
                at += 1
                if begin <= now and not busy[client] and (now < until or (until := session(client, now)) > now):
                    break
            else:
                heappop(heap)
                break
            busy[client] = 1
            rows.append(at - 1)
            if plain:
                whole = still + compute
            else:
                if serial - first >= len(noise):
                    first, noise = candidates.noise_at(serial)
                whole = still + compute * noise[serial - first]
            end, code = now + whole, OK
            if whole > timeout:
                end, code = now + timeout, TIMEOUT
            if until < end:
                end, code = until, INTERRUPTED
            slot = free.pop() if free else fresh()
            heapreplace(heap, (end, serial, slot, number if code == OK else -1, client))
            new.append((slot, client, now, end, code))
            serial += 1
        candidates.place, candidates.begun = at, serial
        return t, serial, got, last

    def _in_vain(self, run: Run, work: Work, over: list[int], count: int) -> UsageError:
        """Why a gather in which no task comes to a reply that counts would never be over."""
        self._flush(run, work)
        code, timeout = self.table.codes(over[-count:]), run.quorum.timeout_s
        ended = {
            "too old": (code == OK).sum(), "interrupted": (code == INTERRUPTED).sum(),
            "timed out": (code == TIMEOUT).sum(), "dropped out": (code == DROP_OUT).sum(),
        }  # fmt: skip
        told = ", ".join(f"{number} {how}" for how, number in ended.items() if number)
        return UsageError(
            f"{count} tasks of {run.work!r} ended in a row without a reply that counts ({told}): the tasks are too long"
            f" for the sessions{'' if timeout is None else f' or for timeout_s={timeout:g}'}; make them shorter, or "
            "give deadline_s."
        )

    def _open_fresh(self, run: Run, now: float, works: Mapping[str, Work], selected: Selected) -> None:
        """With nobody at work, the cohort is drawn and timed exactly as that of any other `Run`.

        Where clients are replaced, those who could only begin later are left to be found when they can: by then there
        may be a newer model.
        """
        b = begin(run, now, self.population, works, self.seed, None, selected, streaming=True)
        ask = Ask(self.node, run, now, now, b.clients, b.seconds, {}, 0.0, 0.0, 0.0, len(b.clients))
        at = np.flatnonzero(b.start <= now) if run.quorum.refill else np.arange(len(b.clients))
        clients, start, end, outcome = b.clients[at], b.start[at], now + b.seconds[at], b.outcome[at]
        n = len(clients)
        if not n:
            return
        slots = np.array([self.table.slot() for _ in range(n)], np.int64)
        serials = np.arange(self.serial, self.serial + n)
        self.serial += n
        p, cost = b.parts.pick(at), b.cost
        rows = np.stack([p.overhead, p.down, p.compute, p.up, cost.flops[at], cost.bytes_down[at], cost.bytes_up[at]])
        parts = Parts(rows, None if b.steps is None else b.steps[at])
        self._write(slots, clients, start, end, outcome, client_keys(ask, self.seed)[at], serials, parts)
        base = np.where(outcome == OK, self.number, -1)
        columns = (end.tolist(), serials.tolist(), slots.tolist(), base.tolist(), clients.tolist())
        self.heap.extend(zip(*columns, strict=True))
        heapify(self.heap)
        self.candidates.occupy(clients)

    def _flush(self, run: Run, work: Work) -> None:
        """Write the tasks begun in this plan into the table."""
        n = len(self._new)
        if not n:
            return
        slots, clients, start, end, code = (np.array(column) for column in zip(*self._new, strict=True))
        self._new.clear()
        first = self.serial - n
        key, noise = self.candidates.streams(first, n)
        parts = self.candidates.taken(n)
        if parts is None:
            parts, _ = parts_of(run, work, self.population, clients, start, key)
        elif noise is not None:
            parts = parts.with_noise(noise)
        self._write(slots, clients, start, end, code, key, np.arange(first, self.serial), parts)

    def _write(
        self, slots: I64, client: I64, start: F64, end: F64, code: Any, key: Any, serial: I64, parts: Parts
    ) -> None:
        self._at_work[self.number] = self._at_work.get(self.number, 0) + len(slots)
        base = np.full(len(slots), self.number)
        self.table.write(slots, Rows(client, base, serial, start, end, code, key, parts))

    def _ask(self, run: Run, now: float, due: float, over: list[int], begun: int) -> StreamAsk:
        """The gather's replies and the account of all tasks that ended in it; their slots are free again."""
        slots = np.array(over, np.int64)
        rows = self.table.read(slots[np.argsort(self.table.clients(slots), kind="stable")])
        self.table.free.extend(over)
        tau = self.number - rows.base
        code, stale = rows.code, run.quorum.stale
        if stale.limit is not None:
            code[(code == OK) & (tau > stale.limit)] = STALE
        ends = set(code.tolist())
        parts = rows.parts
        tasks = account(
            self.population.fleet, rows.client, rows.start, rows.end, code, rows.base, parts.phases, parts.cost
        )
        missing: dict[str, I64] = {}
        good = rows
        if ends != {OK}:
            at = np.flatnonzero(code == OK)
            good, tau = rows.pick(at), tau[at]
            missing = {reason: rows.client[code == c] for c, reason in _REASONS if c in ends}
        kept = {one: self.runs[one] for one in sorted(set(good.base.tolist()))}
        self._forget(rows.base)
        return StreamAsk(
            self.node, run, now, due, self.number, good.client, good.start, good.end - good.start, good.serial,
            good.key, good.base, kept, tau, stale.factor(tau), missing, tasks, good.parts.steps,
            float(good.parts.cost.flops.sum()), float(tasks.bytes_down.sum()), float(tasks.bytes_up.sum()),
            run.quorum.need or max(len(good.client), 1), begun, len(self.heap),
        )  # fmt: skip

    def _forget(self, ended: I64) -> None:
        """Let go of the Runs from which nobody is at work any more."""
        self._at_work[self.number] = self._at_work.get(self.number, 0)
        counts = Counter(ended.tolist())
        for number, count in counts.items():
            self._at_work[number] -= count
        for number in {*counts, self.number - 1}:
            if not self._at_work.get(number, 1) and number != self.number:
                del self._at_work[number], self.runs[number]

    def pending(self) -> Rows:
        """The tasks at work that will end with a reply, in order of their ends."""
        return self.table.read(np.array([entry[2] for entry in sorted(self.heap) if entry[3] >= 0], np.int64))

    def saved(self) -> dict[str, Any]:
        """Everything that goes on, as plain values."""
        live = np.array([entry[2] for entry in self.heap], np.int64)
        rows = self.table.read(live)
        return {
            "number": self.number, "serial": self.serial, "heap": tuple(self.heap), "live": live,
            "table": {name: getattr(rows, name) for name in _SAVED},
            "runs": dict(self.runs), "candidates": self.candidates.saved(),
        }  # fmt: skip

    def load(self, saved: Mapping[str, Any], works: Mapping[str, Work]) -> None:
        """Take back what `saved` gave; what the tasks at work consist of is worked out anew."""
        self.number, self.serial = saved["number"], saved["serial"]
        self.heap = [tuple(entry) for entry in saved["heap"]]
        heapify(self.heap)
        self.runs, live = dict(saved["runs"]), np.asarray(saved["live"])
        held = {name: np.asarray(saved["table"][name]) for name in _SAVED}
        parts = [Parts(np.empty((len(PARTS), 0)), None)]
        order, numbers = np.argsort(held["base"], kind="stable"), np.unique(held["base"]).tolist()
        for number in numbers:
            at = np.flatnonzero(held["base"] == number)
            one = held["client"][at], held["start"][at], held["key"][at]
            parts.append(parts_of(self.runs[number], works[self.work], self.population, *one)[0])
        back = np.argsort(order, kind="stable")
        self.table = Table.holding(live, Rows(**held, parts=joined(parts).pick(back)))
        self._at_work = Counter(held["base"].tolist())
        if self.number:
            self._at_work.setdefault(self.number, 0)
        self.candidates.load(
            saved["candidates"], self.runs.get(self.number), works[self.work], [entry[4] for entry in self.heap]
        )
