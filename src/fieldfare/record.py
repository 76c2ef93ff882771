"""What a run leaves behind: per-round and per-client records, from the driver's observations to the run folder.

Invariant: watching changes nothing; a run that was killed and resumed leaves the same lines as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import PeerError
from fieldfare.core.params import Params
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.tasks import OK, REFUSED, Tasks
from fieldfare.report import units
from fieldfare.report.table import RUNNING, SUMMED, summed
from fieldfare.sim.asks import Ask
from fieldfare.sim.observe import Answered, Measured, Observation, Progressed, Published, Sent, Stopped
from fieldfare.sim.simulator import Progress
from fieldfare.store.runs import RunFolder
from fieldfare.store.tasks import TASK, TASKS

Row = dict[str, Any]
_NEWER = "newer"
"""What the row of a version without an evaluation waits for, where it may be the last: a newer version."""
_WHO = "who"
"""Who has trained at an edge since the row before; no part of a row."""
Callback: TypeAlias = Callable[[Mapping[str, Any]], None]

MOST_TASKS = 5_000_000
"""Tasks kept one by one in `tasks.bin`; those after are only counted."""
TOLD = 5
"""Refused updates told one by one; those after are only recorded."""


class Recorder:
    """Builds one row per published version and writes it when its evaluations are in.

    `expects(version)`: the evaluations still to come of a version, asked after each step: a step may ask for more.
    `several`: every node publishes, and trains on a device of its own; a row then tells of all trainings that ended
    since the row before, and the last version is measured by `measure` when the run ends, if nobody has.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        callbacks: tuple[Callback, ...] = (),
        bad_updates: str = "refuse",
        note: Callable[[str], None] = lambda text: None,
        expects: Callable[[int], set[str]] = lambda version: set(),
        shown: Callback = lambda row: None,
        names: Any = None,
        fleet: Fleet | None = None,
        trained: bool = True,
        several: bool = False,
        measure: Callable[[Params], Mapping[str, float]] | None = None,
    ) -> None:
        self.several = several
        self.measure = measure
        self.learnt: dict[str, tuple[float, float]] = {}
        self.version: int | None = None
        self.bytes_between = 0.0
        self.expects = expects
        self.shown = shown
        self.names = names
        self.fleet = fleet
        self.trained = trained
        self.totals: dict[str, Any] = {"tasks": {}, "device_s": {}, "energy_j": 0.0, "compute_s": 0.0, "kept": 0}
        self.folder = folder
        self.callbacks = callbacks
        self.bad_updates = bad_updates
        self.note = note
        self.rows: list[Row] = []
        self.open: list[tuple[Row, set[str]]] = []
        self.training: Row = {}
        self.evaluations: dict[str, Row] = {}
        self.model: Params | None = None
        self.clients_done = 0
        self._told = 0
        self._told_evaluations = 0
        self.before_s = 0.0
        self._began = time.monotonic()
        self._asked = False

    @property
    def wall_s(self) -> float:
        """Seconds of computing so far, those before a resume included."""
        return self.before_s + time.monotonic() - self._began

    def __call__(self, seen: Observation) -> None:
        match seen:
            case Answered():
                self._answered(seen)
            case Published():
                self._published(seen)
            case Sent():
                self.bytes_between += seen.size
                for into in (self.training, self.totals):
                    into["energy_j"] = into.get("energy_j", 0.0) + sum(seen.radio_j)
            case Measured(_, event):
                for row, waiting in self.open:
                    if row["version"] == event.version and event.name in waiting:
                        waiting.discard(event.name)
                        prefix = "" if event.name == "test" else f"{event.name}_"
                        row |= {prefix + name: float(value) for name, value in event.metrics.items()}
            case Progressed() if self.open:
                if self._asked or not self.several:  # with several nodes, whoever publishes asks in the same step
                    for row, waiting in self.open:
                        waiting |= self.expects(row["version"])
                self._asked = False
                self._close_rows()
            case Stopped():
                self._measure_last()
                for _, waiting in self.open:
                    waiting.clear()
                self._close_rows()
            case _:
                pass

    def _answered(self, seen: Answered) -> None:
        ask, event = seen.ask, seen.event
        tag = ask.run.tag
        kind = tag[1] if isinstance(tag, tuple) and len(tag) > 2 and tag[0] == "evaluate" else None
        if kind is not None:
            self._evaluated(str(kind), int(tag[2]), event)
            return
        self._refused(ask, event.missing.get("refused", ()))
        row = self.training
        self._tasks(ask, event, row)
        if ask.run.work.startswith("split/"):
            self._split(ask, event, row)
            row["bytes_down"], row["bytes_up"] = seen.bytes_down, seen.bytes_up
            return
        self.clients_done += len(event.clients)
        own = self.several and getattr(ask, "own", False)
        row["clients"] = len(event.clients) + (row.get("clients", 0) if own else 0)
        row["bytes_down"], row["bytes_up"] = seen.bytes_down, seen.bytes_up
        metrics = dict(event.metrics)
        if (staleness := metrics.pop("staleness", None)) is not None and len(staleness):
            row["staleness"] = float(staleness.mean())
        for name, values in metrics.items():
            told = np.isfinite(values)
            if (weight := float(event.weights[told].sum())) > 0:
                total = float(np.dot(values[told], event.weights[told]))
                if own:
                    before = self.learnt.get(name, (0.0, 0.0))
                    self.learnt[name] = total, weight = total + before[0], weight + before[1]
                row["train_" + name] = total / weight
        missing = {reason: len(ids) for reason, ids in event.missing.items() if len(ids)}
        if missing:
            before = row.get("missing", {}) if own else {}
            row["missing"] = {r: missing.get(r, 0) + before.get(r, 0) for r in {**before, **missing}}
        if self.folder is not None and self.trained and isinstance(event.clients, np.ndarray):
            ok = np.isin(ask.clients, event.clients) if len(event.clients) != len(ask.clients) else slice(None)
            line: Row = {
                "round": ask.run.config.get("round", len(self.rows) + 1), "clients": event.clients.tolist(),
                "weight": event.weights.tolist(), "seconds": np.round(ask.seconds[ok], 4).tolist(),
            }  # fmt: skip
            line |= {"train_" + name: [_short(v) for v in values.tolist()] for name, values in metrics.items()}
            if staleness is not None:
                line["staleness"] = staleness.astype(np.int64).tolist()
            if missing:
                line["missing"] = {reason: list(map(int, ids)) for reason, ids in event.missing.items() if len(ids)}
            self.folder.append("clients.jsonl", line)

    def _split(self, ask: Any, event: Any, row: Row) -> None:
        """Count who has trained at an edge since the row before, a client once for all its batches, and their loss."""
        key = ask.run.key
        if not ask.run.work.endswith("/step") or not len(event.clients) or key is None:
            return
        who = row.setdefault(_WHO, [])
        if key[1] not in who:
            who.append(key[1])
            self.clients_done += 1
            row["clients"] = row.get("clients", 0) + 1
        if "loss" in event.metrics and np.isfinite(event.metrics["loss"]).all():
            total, weight = self.learnt.get("loss", (0.0, 0.0))
            total, weight = total + float(np.dot(event.metrics["loss"], event.weights)), weight + event.weight
            self.learnt["loss"] = total, weight
            row["train_loss"] = total / weight

    def _tasks(self, ask: Any, event: Any, row: Row) -> None:
        """Count what the tasks of this gather took and how they ended, and keep them."""
        tasks: Tasks | None = None if self.fleet is None else ask.tasks(self.fleet)
        if tasks is None or not len(tasks):
            return
        refused = event.missing.get("refused", ())
        if len(refused):
            tasks.outcome[(tasks.outcome == OK) & np.isin(tasks.client, refused)] = REFUSED
        counts, seconds = tasks.by_outcome(), tasks.seconds_by_outcome()
        energy, compute = float(tasks.energy_j.sum()), float(tasks.compute_s.sum())
        totals = self.totals
        for into in (row, totals):
            into["energy_j"] = into.get("energy_j", 0.0) + energy
            into["compute_s"] = into.get("compute_s", 0.0) + compute
            for name, found in (("tasks", counts), ("device_s", seconds)):
                into[name] = {
                    k: into.get(name, {}).get(k, 0) + found.get(k, 0) for k in {**into.get(name, {}), **found}
                }
        if (at_work := getattr(ask, "at_work", None)) is not None:
            row["at_work"] = at_work
        if self.folder is not None and totals["kept"] < MOST_TASKS:
            totals["kept"] += len(tasks)
            records = _records(tasks, int(ask.run.config.get("round", len(self.rows) + 1)), ask.number)
            self.folder.add_records(TASKS, records.tobytes())

    def _refused(self, ask: Any, refused: Any) -> None:
        """Tell who sent what cannot be used, or end the run where the job says so."""
        if not len(refused):
            return
        first = int(refused[0])
        error = PeerError(
            first if self.names is None else self.names[first],
            f"round {ask.run.config.get('round', ask.run.tag)}",
            "its loss or update is not finite, or too large, and is refused",
        )
        advice = "look at its data, or use a lower learning rate"
        if self.bad_updates == "stop":
            raise PeerError(error.client, error.tag, f"{error.reason}: {advice}")
        self._told += 1
        if self._told <= TOLD:
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            last = "; others to come are only recorded, as missing" if self._told == TOLD else ""
            self.note(f"{error}{more}; the run goes on without it: {advice}{last}")

    def _evaluated(self, kind: str, version: int, event: Any) -> None:
        """The mean over clients (each counts once) and over the worst tenth, of those that hold out anything."""
        some = event.weights > 0
        metrics = {name: values[some] for name, values in event.metrics.items() if name != "examples"}
        row: Row = {}
        missing = self._left_out(kind, version, event.clients[some], metrics, event.missing)
        if missing:
            row[f"{kind}_missing"] = {reason: len(ids) for reason, ids in missing.items()}
        for name, measured in metrics.items():
            values = measured[np.isfinite(measured)]
            if not values.size:
                continue
            row[f"{kind}_{name}_mean"] = float(np.mean(values))
            row[f"{kind}_{name}_worst_decile"] = units.worst_decile(values, lower=units.lower_is_better(name))
        for target, waiting in self.open:
            if target["version"] == version:
                target |= row
                waiting.discard(kind)
        if version >= self.evaluations.get(kind, row).get("round", version):
            self.evaluations[kind] = {"round": version, **row}
        if self.folder is not None:
            line = {"round": version, "kind": kind, "clients": event.clients[some].tolist()}
            line |= {"examples": event.weights[some].tolist()}
            line |= {name: [_short(v) for v in values.tolist()] for name, values in metrics.items()}
            if missing:
                line["missing"] = missing
            self.folder.append("evaluation.jsonl", line)

    def _left_out(
        self, kind: str, version: int, clients: Any, metrics: Mapping[str, Any], missing: Mapping[str, Any]
    ) -> dict[str, list[int]]:
        """Ids, by reason, of the clients an evaluation's means leave out; those not finite are told as well."""
        out = {reason: [int(one) for one in ids] for reason, ids in missing.items() if len(ids)}
        infinite = np.zeros(len(clients), np.bool_)
        for values in metrics.values():
            infinite |= np.isinf(values)
        bad = sorted({*out.pop("refused", []), *map(int, clients[infinite])})
        if not bad:
            return out
        self._told_evaluations += 1
        if self._told_evaluations <= TOLD:
            who = bad[0] if self.names is None else self.names[bad[0]]
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            last = "; others to come are only recorded" if self._told_evaluations == TOLD else ""
            self.note(
                f"client {who}{more}, {kind} evaluation of round {version}: what is measured is not finite; "
                f"the means leave it out and look better than they are{last}"
            )
        return {**out, "not finite": bad}

    def _published(self, seen: Published) -> None:
        if not self.several and seen.node != "central":
            return
        if self.several and self.version is not None and seen.version < self.version:
            return  # a ring that was over late: everyone has gone on from a later mean
        self.model, self.version = seen.model, seen.version
        self._asked = True
        for _, waiting in self.open:
            waiting.discard(_NEWER)
        again = [waiting for row, waiting in self.open if row["version"] == seen.version]
        if again:
            again[0].update(seen.evaluate)
            return
        row: Row = {"round": seen.version, "version": seen.version, "virtual_s": seen.now, "wall_s": self.wall_s}
        row |= {k: v for k, v in self.training.items() if k != _WHO}
        if self.several:
            row["bytes_between"] = self.bytes_between
        self.learnt = {}
        self.training = {k: v for k, v in self.training.items() if k.startswith("bytes_")}
        held = {_NEWER} if self.measure is not None and not seen.evaluate else set[str]()
        self.open.append((row, {*seen.evaluate, *held}))

    def _measure_last(self) -> None:
        """Measure the run's model, if the run ended before its evaluation did, or without one."""
        for row, waiting in self.open:
            if row["version"] == self.version and waiting & {"test", _NEWER} and self.measure and self.model:
                row |= {name: float(value) for name, value in self.measure(self.model).items()}

    def _close_rows(self) -> None:
        while self.open and not self.open[0][1]:
            row, _ = self.open.pop(0)
            self.rows.append(row)
            if self.folder is not None:
                self.folder.append("rounds.jsonl", row)
            self.shown(row)
            for callback in self.callbacks:
                try:
                    callback(dict(row))
                except Exception as error:
                    name = getattr(callback, "__name__", type(callback).__name__)
                    error.add_note(f"raised by {name}, a callback of the job, after round {row['round']}")
                    raise

    def nobody(self) -> str | None:
        """One line for a run in which nobody ever counted, so that its model is the one it began with; else None."""
        if self.clients_done or not self.rows:
            return None
        counts: dict[str, int] = {}
        for row in self.rows:
            for reason, count in row.get("missing", {}).items():
                counts[reason] = counts.get(reason, 0) + count
        why = ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "nobody was asked"
        most = max(counts, key=lambda reason: counts[reason], default="")
        return (
            f"in {len(self.rows)} rounds no client counted ({why}), so the model is the one the run began with: "
            f"{_ADVICE.get(most, 'look at the quorum and the fleet')}"
        )

    def final(self) -> dict[str, float]:
        """The last value of every metric."""
        out: dict[str, float] = {}
        for row in self.rows:
            out |= {k: v for k, v in row.items() if k not in _NOT_METRICS and isinstance(v, float)}
        for row in self.evaluations.values():
            out |= {k: v for k, v in row.items() if isinstance(v, float)}
        return out


_ADVICE = {
    "late": "use a quorum with a longer deadline_s, or less work for a client",
    "timeout": "use a quorum with a longer timeout_s, or less work for a client",
    "refused": "look at the data, or use a lower learning rate",
}

_NOT_METRICS = {
    "round", "version", "virtual_s", "wall_s", "bytes_down", "bytes_up", "clients", "missing", "staleness", "energy_j",
    "compute_s", "at_work", "bytes_between",
}  # fmt: skip


def running(progress: Progress) -> int:
    """Tasks at work: of streams, and of nodes on their own devices."""
    own = sum(isinstance(ask, Ask) and ask.own for ask in progress.asks.values())
    return own + sum(len(stream.heap) for stream in progress.streams.values())


def after_last(rows: Sequence[Row], ended: Mapping[str, Any]) -> Row:
    """What a run came to after its last row: its evaluation, and whatever was on its way when the run stopped.

    Running totals are those of the summary `ended` less the last row's, device-seconds and joules less all rows'.

    >>> end = {"virtual_s": 1.5, "wall_s": 0.5, "bytes_down": 9, "bytes_up": 7, "device_s": {"ok": 8}, "energy_j": 5.0}
    >>> after_last([{"round": 1, "energy_j": 1.0}, {"round": 2, "bytes_up": 3, "device_s": {"ok": 6}}], end)["after"]
    {'virtual_s': 1.5, 'wall_s': 0.5, 'bytes_down': 9, 'bytes_up': 4, 'device_s': 2.0, 'energy_j': 4.0}
    """
    last = rows[-1] if rows else {}
    after = {name: ended[name] - last.get(name, 0) for name in RUNNING if name in ended}
    for name in SUMMED:
        after[name] = (summed(ended[name]) or 0.0) - sum(summed(row.get(name)) or 0.0 for row in rows)
    return {"round": last.get("round", 0), "after": after}


def _records(tasks: Tasks, round_: int, number: int) -> NDArray[Any]:
    """The tasks that were counted in `round_`, by the ask `number`, as `store.tasks` keeps them."""
    out = np.empty(len(tasks), TASK)
    for name in TASK.names or ():
        if name not in ("round", "base"):
            out[name] = getattr(tasks, name)
    out["round"] = round_
    out["base"] = np.maximum(round_ - 1 - (number - tasks.base), 0)
    return out


def _short(value: float) -> float:
    return float(f"{value:.6g}")
