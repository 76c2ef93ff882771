"""What every arm, ours or a peer's, does alike: read its orders, time its rounds, hand back its model.

Here: the command line of an arm and the meter. Not here: any training, any decision about results.
Needs NumPy alone. An arm is one process (which may start others); orders come as arguments and results
leave as two files, so that an arm can run in an environment of its own.

Invariant: the first ``check`` rounds train the first ``check`` cohorts from the given start and their
model is saved; only rounds after them are timed. Nothing but a round lies between begin and end.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from workloads import WORKLOADS, Floats, Ints, Workload

STARTED = "ARM_STARTED"  # environment: time.time() just before the arm's process was started
MOST_ROUNDS = 400


@dataclass(frozen=True)
class Orders:
    """What an arm is asked to do, and where its results go."""

    workload: Workload
    start: Floats  # [P], torch's order and layout
    cohorts: Ints  # [rounds, cohort]
    check: int  # rounds to train before the model is saved
    min_s: float  # time rounds for at least this long
    setting: str  # of the arm: "p2", "t2", "serial"
    out: Path  # JSON
    end: Path  # .npy, the model after the check rounds

    @property
    def name(self) -> str:
        """The workload's name."""
        return self.workload.name

    def cohort(self, round_: int) -> list[int]:
        """The clients of a round; the list of cohorts begins anew when it is through."""
        return [int(i) for i in self.cohorts[round_ % len(self.cohorts)]]


def read_orders(argv: Sequence[str] | None = None) -> Orders:
    """Orders from a command line; the arguments are those that :func:`arguments` writes."""
    parser = argparse.ArgumentParser(description="Train one workload and time it.")
    parser.add_argument("workload", choices=sorted(WORKLOADS))
    parser.add_argument("--vector", type=Path, required=True, help="starting vector, .npy")
    parser.add_argument("--cohorts", type=Path, required=True, help="clients of each round, .npy")
    parser.add_argument("--check", type=int, default=2, help="rounds before the model is saved")
    parser.add_argument("--min-s", type=float, default=4.0, help="time rounds for at least this long; 0 = none")
    parser.add_argument("--setting", default="", help="of this arm: processes or threads")
    parser.add_argument("--out", type=Path, required=True, help="where the result goes, JSON")
    parser.add_argument("--end", type=Path, required=True, help="where the model goes, .npy")
    a = parser.parse_args(argv)
    start = np.load(a.vector, allow_pickle=False)
    cohorts = np.load(a.cohorts, allow_pickle=False)
    return Orders(WORKLOADS[a.workload], start, cohorts, a.check, a.min_s, a.setting, a.out, a.end)


def arguments(folder: Path, name: str, *, check: int, min_s: float, setting: str, tag: str) -> list[str]:
    """The command line of an arm whose files lie in ``folder`` and whose results are called ``tag``."""
    return [
        name, "--vector", f"{folder}/{name}-start.npy", "--cohorts", f"{folder}/{name}-cohorts.npy",
        "--check", str(check), "--min-s", str(min_s), "--setting", setting,
        "--out", f"{folder}/{tag}.json", "--end", f"{folder}/{tag}.npy",
    ]  # fmt: skip


class Meter:
    """Times an arm's rounds: ``begin`` before each, ``end`` after each, until ``end`` says to stop.

    ``model`` gives the arm's model as a flat vector; it is called once, outside the timed rounds.
    Of an arm's processes only one writes files (``writes``). ``first_at``: ``time.time()`` at the end of the
    first round, if that was not one of this meter's. ``path``: how the arm trains, where it has several ways.
    """

    def __init__(
        self,
        orders: Orders,
        model: Callable[[], Floats],
        *,
        writes: bool = True,
        first_at: float | None = None,
        path: str = "",
    ) -> None:
        self.orders = orders
        self.round = 0  # the round that runs now, or comes next
        self._model = model
        self._writes = writes
        self._path = path
        self._durations: list[float] = []
        self._first_at = first_at
        self._began = time.perf_counter()

    def begin(self) -> None:
        """A round starts now."""
        self._began = time.perf_counter()

    def end(self) -> bool:
        """The round is over, its model final; True when no more are wanted and the results are written."""
        took = time.perf_counter() - self._began
        if self._first_at is None:
            self._first_at = time.time()
        self.round += 1
        if self.round > self.orders.check:
            self._durations.append(took)
        if self.round == self.orders.check and self._writes:
            np.save(self.orders.end, np.ascontiguousarray(self._model(), dtype=np.float32))
        done = self._done()
        if done and self._writes:
            self.orders.out.write_text(json.dumps(self._result(), allow_nan=True))
        return done

    def _done(self) -> bool:
        if self.round < self.orders.check:
            return False
        if self.orders.min_s == 0:
            return True
        timed = len(self._durations)
        return timed >= MOST_ROUNDS or (timed >= 2 and sum(self._durations) >= self.orders.min_s)

    def _result(self) -> dict[str, float | str]:
        timed, clients = sum(self._durations), self.orders.workload.cohort
        started = float(os.environ.get(STARTED, "nan"))
        return {
            "clients_per_s": len(self._durations) * clients / timed if timed else 0.0,
            "best_clients_per_s": clients / min(self._durations) if timed else 0.0,
            "rounds": len(self._durations),
            "first_s": (self._first_at or started) - started,
            "path": self._path,
        }


def run_rounds(meter: Meter, one_round: Callable[[list[int]], None]) -> None:
    """Drive an arm that can be driven: ``one_round(cohort)`` trains these clients and folds them in."""
    while True:
        cohort = meter.orders.cohort(meter.round)
        meter.begin()
        one_round(cohort)
        if meter.end():
            return
