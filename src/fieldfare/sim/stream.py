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

from fieldfare.core import rng
from fieldfare.core.effects import Run
from fieldfare.core.errors import UsageError
from fieldfare.core.quorum import Sample
from fieldfare.core.work import Work
from fieldfare.fleet.tasks import DROP_OUT, INTERRUPTED, LATE, OK, STALE, TIMEOUT, Tasks, account, noise_of, phases
from fieldfare.sim.asks import Ask, begin, check_stacks, client_keys, costs
from fieldfare.sim.candidates import Candidates, cost_kind
from fieldfare.sim.draw import Selected
from fieldfare.sim.population import Population

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_IN_VAIN = 100_000
"""Tasks that end in a row without a reply that counts, before a gather is given up as one that would never be over."""
UNLIMITED = np.iinfo(np.int64).max
"""The most steps of a client that no budget limits, beside others that one does."""
_COLUMNS = (
    ("client", np.int64), ("start", np.float64), ("end", np.float64), ("code", np.int8), ("base", np.int64),
    ("key", np.uint64), ("serial", np.int64),
)  # fmt: skip


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
        self._kind: Any = None
        self._kind_since = 0
        self.candidates = Candidates(population, seed, (node, work))
        self._table = {name: np.zeros(0, kind) for name, kind in _COLUMNS}
        self._free: list[int] = []
        self._new: list[tuple[int, int, float, float, int, int]] = []

    def open(self, run: Run, now: float, works: Mapping[str, Work], selected: Selected) -> StreamAsk:
        """The whole of the gather that `run` opens at `now`."""
        on, quorum = run.on, run.quorum
        if not isinstance(on, Sample):
            raise UsageError("Quorum(late='next') is for samples of devices: ask for Sample(n), or use late='drop'.")
        if run.state is not None or run.view is not None or run.inputs or run.each:
            raise UsageError(
                f"{run.work!r} is asked with client state, a view or inputs, and Quorum(late='next') keeps replies "
                "over from other Runs: use late='drop'."
            )
        if run.work not in works:
            raise UsageError(f"no work is called {run.work!r}: this job binds {', '.join(works) or 'none'}.")
        check_stacks(run, quorum.need or on.count)
        self.number += 1
        self.runs[self.number] = run
        kind = cost_kind(run)
        if kind != self._kind:
            self._kind, self._kind_since = kind, self.number
        deadline = np.inf if quorum.deadline_s is None else now + quorum.deadline_s
        began = self.serial
        fresh = not self.heap
        if fresh:
            self.candidates.tracking = False
            self._open_fresh(run, now, works, selected)
        need = quorum.need if quorum.need is not None else on.count if not quorum.refill else 1 << 62
        at_work = on.count if quorum.refill or fresh else len(self.heap) + on.count
        self.candidates.begun = self.serial
        self.candidates.prepare(run, works[run.work], selected, now, at_work, kind)
        held_back = list[int]()
        due, over = self._plan(run, now, need, deadline, 0 if fresh or quorum.refill else on.count, held_back)
        for client in held_back:
            self._leave(client, due)
        self._flush(run)
        return self._ask(run, now, due, over, works, self.serial - began)

    def _leave(self, client: int, t: float) -> None:
        if self.candidates.tracking:
            self.candidates.leave(client, t)
        else:
            self.candidates.busy[client] = 0

    def _plan(
        self, run: Run, now: float, need: int, deadline: float, asking: int, held_back: list[int]
    ) -> tuple[float, list[int]]:
        """Ends and starts in order of time until the gather is over: (when, the slots of tasks that ended).

        Without refilling `asking` clients begin, each once there is one that may: who is not at work and has not been
        asked in this gather. Those who ended and could have been asked again are added to `held_back`: they stay busy.
        """
        quorum, number, heap, free, new = run.quorum, self.number, self.heap, self._free, self._new
        oldest = -(1 << 62) if quorum.stale.limit is None else number - quorum.stale.limit
        timeout = np.inf if quorum.timeout_s is None else quorum.timeout_s
        oldest, got, over, t, serial = max(oldest, 0), 0, list[int](), now, self.serial
        candidates, refill = self.candidates, quorum.refill
        target = run.on.count if refill and isinstance(run.on, Sample) else 0
        take, leave, wait, busy = candidates.take, candidates.leave, candidates.wait, candidates.busy
        width, last, in_vain = len(self._table["client"]), 0, max(_IN_VAIN, 100 * target)
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
                    raise self._in_vain(run, over, len(over) - last)
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
                    if free:
                        slot = free.pop()
                    else:
                        slot, width = width, width + 1
                    heappush(heap, (end, serial, slot, number if code == OK else -1, client))
                    new.append((slot, client, t, end, code, serial))
                    serial += 1
                    missing -= 1
                    if not refill:
                        asked.add(client)
                asking = 0 if refill else missing
            if 2 < target == len(heap) and (prepared := candidates.prepared()) is not None:
                entries, block_end, plain = prepared
                ends = min(deadline, block_end)
                t, serial, width, got, last = self._steadily(
                    entries, plain, (t, ends, timeout), (oldest, need, in_vain), over, (serial, width, got, last)
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
        limits: tuple[int, int, int], over: list[int], counts: tuple[int, int, int, int],
    ) -> tuple[float, int, int, int, int]:  # fmt: skip
        """One end and one start, again and again, while nothing else happens: as `_plan` would do it, only quicker.

        Stops before an end at the time of another, before one at or after the second of `times`, and where the list of
        candidates is through: then with one client too few at work. The reply that ends the gather begins nobody.
        """
        heap, free, new, number, candidates = self.heap, self._free, self._new, self.number, self.candidates
        (t, ends, timeout), (oldest, need, in_vain) = times, limits
        serial, width, got, last = counts
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
                if begin <= now < until and not busy[client]:
                    break
            else:
                heappop(heap)
                break
            busy[client] = 1
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
            if free:
                slot = free.pop()
            else:
                slot, width = width, width + 1
            heapreplace(heap, (end, serial, slot, number if code == OK else -1, client))
            new.append((slot, client, now, end, code, serial))
            serial += 1
        candidates.place, candidates.begun = at, serial
        return t, serial, width, got, last

    def _in_vain(self, run: Run, over: list[int], count: int) -> UsageError:
        """Why a gather in which no task comes to a reply that counts would never be over."""
        self._flush(run)
        code, timeout = self._table["code"][over[-count:]], run.quorum.timeout_s
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
        slots = np.array([self._slot() for _ in range(n)], np.int64)
        serials = np.arange(self.serial, self.serial + n)
        self.serial += n
        self._write(slots, clients, start, end, outcome, client_keys(ask, self.seed)[at], serials)
        base = np.where(outcome == OK, self.number, -1)
        columns = (end.tolist(), serials.tolist(), slots.tolist(), base.tolist(), clients.tolist())
        self.heap.extend(zip(*columns, strict=True))
        heapify(self.heap)
        self.candidates.occupy(clients)

    def _slot(self) -> int:
        if not self._free:
            width = len(self._table["client"])
            self._reach(max(2 * width, 64))
            self._free = list(range(len(self._table["client"]) - 1, width - 1, -1))
        return self._free.pop()

    def _reach(self, width: int) -> None:
        for name, column in self._table.items():
            if len(column) < width:
                self._table[name] = np.concatenate([column, np.zeros(width - len(column), column.dtype)])

    def _flush(self, run: Run) -> None:
        """Write the tasks begun in this plan into the table."""
        if not self._new:
            return
        slots, clients, start, end, code, serial = (np.array(column) for column in zip(*self._new, strict=True))
        self._reach(int(slots.max()) + 1)
        self._new.clear()
        key = self.candidates.keys(serial)
        self._write(slots, clients, start, end, code, key, serial)

    def _write(self, slots: I64, client: I64, start: F64, end: F64, code: Any, key: Any, serial: I64) -> None:
        base = np.full(len(slots), self.number)
        self._at_work[self.number] = self._at_work.get(self.number, 0) + len(slots)
        for name, values in zip(self._table, (client, start, end, code, base, key, serial), strict=True):
            self._table[name][slots] = values

    def _ask(
        self, run: Run, now: float, due: float, over: list[int], works: Mapping[str, Work], begun: int
    ) -> StreamAsk:
        """The gather's replies and the account of all tasks that ended in it; their slots are free again."""
        slots = np.array(over, np.int64)
        slots = slots[np.lexsort((self._table["serial"][slots], self._table["client"][slots]))]
        columns = {name: column[slots] for name, column in self._table.items()}
        self._free.extend(over)
        tau = self.number - columns["base"]
        code = columns["code"].astype(np.int8)
        stale = run.quorum.stale
        if stale.limit is not None:
            code[(code == OK) & (tau > stale.limit)] = STALE
        good = np.flatnonzero(code == OK)
        tasks, flops, steps = self._account(columns, code, works)
        missing = {} if len(good) == len(code) else {
            reason: columns["client"][code == c]
            for c, reason in ((INTERRUPTED, "interrupted"), (TIMEOUT, "timeout"), (STALE, "stale"),
                              (DROP_OUT, "drop-out"), (LATE, "late"))
            if (code == c).any()
        }  # fmt: skip
        base = columns["base"][good]
        kept = {one: self.runs[one] for one in sorted(set(base.tolist()))}
        self._forget(columns["base"])
        tau = tau[good]
        return StreamAsk(
            self.node, run, now, due, self.number, columns["client"][good], columns["start"][good],
            (columns["end"] - columns["start"])[good], columns["serial"][good], columns["key"][good], base, kept, tau,
            stale.factor(tau), missing, tasks, None if steps is None else steps[good], float(flops[good].sum()),
            float(tasks.bytes_down.sum()), float(tasks.bytes_up.sum()), run.quorum.need or max(len(good), 1), begun,
            len(self.heap),
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

    def _account(
        self, columns: Mapping[str, Any], code: NDArray[np.int8], works: Mapping[str, Work]
    ) -> tuple[Tasks, F64, I64 | None]:
        """What the ended tasks took, each by the cost of the Run it belongs to."""
        fleet, client, base = self.population.fleet, columns["client"], columns["base"]
        run = self.runs[self.number]
        cost, steps = costs(run, client, self.population, works[run.work])
        if len(base) and int(base.min()) < self._kind_since:
            for number in np.unique(base).tolist():
                at = np.flatnonzero(base == number)
                own, most = costs(self.runs[number], client[at], self.population, works[run.work])
                for name in ("flops", "bytes_down", "bytes_up"):
                    getattr(cost, name)[at] = getattr(own, name)
                if steps is not None or most is not None:
                    steps = np.full(len(base), UNLIMITED) if steps is None else steps
                    steps[at] = UNLIMITED if most is None else most
        noise = noise_of(fleet, rng.mix(columns["key"]))
        parts = phases(fleet, client, cost, columns["start"], noise)
        tasks = account(fleet, client, columns["start"], columns["end"], code, base, parts, cost)
        return tasks, np.asarray(cost.flops), steps

    def pending(self) -> tuple[Mapping[str, Any], I64]:
        """Columns of the tasks at work that will end with a reply, in order of their ends, and their ends' order."""
        entries = sorted(entry for entry in self.heap if entry[3] >= 0)
        slots = np.array([entry[2] for entry in entries], np.int64)
        return {name: column[slots] for name, column in self._table.items()}, slots

    def saved(self) -> dict[str, Any]:
        """Everything that goes on, as plain values."""
        live = np.array([entry[2] for entry in self.heap], np.int64)
        return {
            "number": self.number, "kind_since": self._kind_since, "serial": self.serial,
            "heap": tuple(self.heap), "live": live,
            "table": {name: column[live] for name, column in self._table.items()},
            "runs": dict(self.runs), "candidates": self.candidates.saved(),
        }  # fmt: skip

    def load(self, saved: Mapping[str, Any], works: Mapping[str, Work]) -> None:
        self.number, self.serial = saved["number"], saved["serial"]
        self.heap = [tuple(entry) for entry in saved["heap"]]
        heapify(self.heap)
        live = np.asarray(saved["live"])
        width = int(live.max()) + 1 if len(live) else 0
        self._table = {name: np.zeros(width, kind) for name, kind in _COLUMNS}
        for name, values in saved["table"].items():
            self._table[name][live] = values
        self._free = sorted(set(range(width)) - set(live.tolist()), reverse=True)
        self.runs = dict(saved["runs"])
        self._at_work = dict(
            zip(*(a.tolist() for a in np.unique(saved["table"]["base"], return_counts=True)), strict=True)
        )
        if self.number:
            self._at_work.setdefault(self.number, 0)
        newest = self.runs.get(self.number)
        self._kind_since = saved["kind_since"]
        self._kind = None if newest is None else cost_kind(newest)
        self.candidates.load(saved["candidates"], newest, works[self.work], [entry[4] for entry in self.heap])
