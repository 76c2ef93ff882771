"""The rows of the result: what each measures, against whom, and its limit.

Here: one function per kind of row. Not here: processes (``measure``), probes (``probes``, ``ours``) and the
table (``show``). A row that cannot be measured is still a row, without a value and with the reason.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

from measure import LOOP, OURS, OURS_JAX, PEERS, WITHOUT_CORE, Arm, ArmFailed, call, prepare, probe, run_arm, run_pair
from workloads import WORKLOADS

CHECK_ROUNDS = 2


@dataclass(frozen=True)
class Way:
    """A row of training: a workload, how our arm does it, the peers beside it, and the aim against the best of them."""

    workload: str
    arm: Arm = OURS
    peers: tuple[Arm, ...] = PEERS
    required: tuple[str, ...] = tuple(peer.name for peer in PEERS if peer.required)  # without these it does not count
    aim: float | None = None


_JAX = tuple(peer for peer in PEERS if peer.name == "fedjax")
_STRONGEST = tuple(peer for peer in PEERS if peer.required)


def _with_core(name: str) -> Way:
    if not (against := WORKLOADS[name].against):
        return Way(name)
    return Way(name, peers=tuple(peer for peer in PEERS if peer.name in against), required=against)


WAYS: dict[str, Way] = {
    **{name: _with_core(name) for name in WORKLOADS if name != "W0"},
    **{f"{name}-nocore": Way(name, WITHOUT_CORE, _STRONGEST, aim=aim) for name, aim in (("W1", 2.5), ("W2", 1.7))},
    **{
        f"{name}-loop": Way(name, LOOP, _STRONGEST, aim=aim)
        for name, aim in (("W1", 1.3), ("W2", 1.4), ("W3", 1.2), ("W4", 1.1))
    },
    **{f"{name}-jax": Way(name, OURS_JAX, _JAX, ("fedjax",)) for name in ("W1", "W2", "W4")},
}
"""By row: the workloads by default, without the compiled core, by the stripped loop that any torch module takes, and of
JAX functions."""


@dataclass
class Row:
    """One line of the result. ``limit``: what the machine or plain NumPy allows, in ``unit``, or None.

    ``missing``: by peer (or "fieldfare"), why its value is not there. ``better``: which way is good.
    """

    name: str
    unit: str
    better: Literal["more", "less"]
    ours: float | None = None
    peers: dict[str, float] = field(default_factory=dict[str, float])
    limit: float | None = None
    missing: dict[str, str] = field(default_factory=dict[str, str])
    command: str = ""
    detail: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        self.command = f"python benchmarks/run.py --only {self.name} --json {self.name}.json"

    @property
    def best(self) -> tuple[str, float] | None:
        """The best peer and its value."""
        if not self.peers:
            return None
        choose = max if self.better == "more" else min
        return choose(self.peers.items(), key=lambda item: item[1])

    @property
    def ratio(self) -> float | None:
        """How many times better than the best peer we are (below 1: worse); of pairs, the smallest ratio."""
        if pairs := self.detail.get("pairs"):
            return min((pairs[name]["ratio"] for name in self.peers), default=None)
        if self.ours is None or self.best is None or self.ours <= 0 or self.best[1] <= 0:
            return None
        return self.ours / self.best[1] if self.better == "more" else self.best[1] / self.ours

    @property
    def incomplete(self) -> str:
        """Why a row of training does not count, or nothing."""
        if self.name not in WAYS:
            return ""
        needed = [OURS.name] * (self.ours is None)
        needed += [name for name in WAYS[self.name].required if name not in self.peers]
        return f"{self.name} lacks {', '.join(needed)}" if needed else ""

    def plain(self) -> dict[str, Any]:
        """The row as JSON has it."""
        return asdict(self) | {"ratio": self.ratio}


@dataclass(frozen=True)
class Effort:
    """How long and how often to measure."""

    min_s: float = 4.0
    repeats: int = 3

    @property
    def probes(self) -> int:
        """Repetitions of what takes well under a minute."""
        return 2 * self.repeats - 1


def _try(row: Row, who: str, action: Callable[[], float]) -> float | None:
    """The action's value, or None with the reason in ``row.missing``."""
    try:
        return action()
    except ArmFailed as error:
        row.missing[who] = str(error)
        return None


def mixed(name: str, effort: Effort) -> Row:
    """Work per second of a cohort of four levels of sub-models, over what cohorts of one level each do with it."""
    row = Row(f"mixed-{name}", "share of uniform", "more", limit=1.0)
    found: list[dict[str, float]] = []

    def shares() -> float:
        for _ in range(effort.repeats):
            found.append(probe("ours.py", "mixed", name, str(effort.min_s)))
        return median(one["mixed"] * mean(1 / one[level] for level in ("1", "1/2", "1/4", "1/8")) for one in found)

    row.ours = _try(row, OURS.name, shares)
    row.detail |= {"cohort": WORKLOADS[name].cohort, "levels": [1, 0.5, 0.25, 0.125], "aim": 0.7}
    row.detail |= {"limit_is": "the same clients in cohorts of one level", "clients_per_s": found}
    return row


@cache
def _peak_flops() -> float:
    return float(probe("probes.py", "matmul")["flops_per_s"])


def workload(name: str, effort: Effort) -> Row:
    """Clients per second, ours in one way against every peer, pair by pair; only equal models count."""
    way = WAYS[name]
    w = WORKLOADS[way.workload]
    row = Row(name, "clients/s", "more")
    peak = _try(row, "limit", _peak_flops)
    row.limit = peak / w.flops_per_client if peak else None
    row.detail |= {"title": w.title, "flops_per_client": w.flops_per_client, "tolerance": w.tolerance}
    row.detail |= {"arm": way.arm.name, "variables": dict(way.arm.variables), "aim": way.aim}
    row.detail["pairs"] = pairs = {}
    begin, mine = prepare(w.name), list[float]()
    for peer in way.peers:
        if reason := peer.unready():
            row.missing[peer.name] = reason
            continue
        try:
            pair = run_pair(
                way.arm, peer, w.name, begin, check=CHECK_ROUNDS, min_s=effort.min_s, repeats=effort.repeats
            )
        except ArmFailed as error:
            row.missing[peer.name] = str(error)
            continue
        mine.extend(pair.ours)
        pairs[peer.name] = {
            "setting": peer.setting(w.name), "ours": pair.ours, "peer": pair.peer, "path": pair.path,
            "model_differs_by": pair.apart, "ratio": pair.ratio,
        }  # fmt: skip
        if pair.apart <= w.tolerance:
            row.peers[peer.name] = median(pair.peer)
        else:
            row.missing[peer.name] = f"model differs by {pair.apart:.2g} (tolerance {w.tolerance:g})"
    row.ours = median(mine) if mine else None
    if row.ours is None:
        row.missing[OURS.name] = "no pair was completed"
    return row


def driver(cohort: int, effort: Effort) -> Row:
    """Client replies per second through the simulator when training costs nothing, 1,000,000 devices."""
    row = Row(f"driver-{cohort}", "replies/s", "more")
    ours: list[float] = []
    plain: list[float] = []

    def alternate() -> float:
        for _ in range(effort.repeats):
            plain.append(probe("probes.py", "loop", str(cohort), str(effort.min_s / 2))["replies_per_s"])
            ours.append(probe("ours.py", "driver", str(cohort), str(effort.min_s / 2))["replies_per_s"])
        return median(ours)

    row.ours = _try(row, OURS.name, alternate)
    row.limit = median(plain) if plain else None
    row.detail |= {"devices": 1_000_000, "limit_is": "a plain NumPy loop without clock, devices or records"}
    return row


def events(devices: int, fleet: str, effort: Effort) -> Row:
    """Tasks (a start and an end) per second when nothing is trained: FedBuff, 1,000 at work, buffer 100."""
    row = Row(f"events-{devices // 1_000_000}M{'' if fleet == 'phones' else f'-{fleet}'}", "tasks/s", "more")
    ours: list[dict[str, float]] = []
    plain: list[float] = []

    def alternate() -> float:
        for _ in range(effort.repeats):
            plain.append(probe("probes.py", "heap", str(effort.min_s / 2))["tasks_per_s"])
            ours.append(probe("ours.py", "events", str(devices), fleet, str(effort.min_s)))
        return median(one["tasks_per_s"] for one in ours)

    row.ours = _try(row, OURS.name, alternate)
    row.limit = median(plain) if plain else None
    row.detail |= {"devices": devices, "fleet": fleet, "cohort": 1000, "buffer": 100, "processes": 1, "aim": 300_000}
    row.detail |= {"limit_is": "a plain heap of ends, without outcomes, bytes, joules, availability or records"}
    if ours:
        row.detail |= {key: median(one[key] for one in ours) for key in ("mb", "peak_mb", "build_s")}
    return row


def assess_time_only(effort: Effort) -> Row:
    """Tasks per second of a simulation without training in which devices come and go and are chosen among those there.

    1,000,000 devices as FLINT's traces have them; `rested`: the search's rule, over 20,000 devices, which looks at all
    who are there for every task.
    """
    row = Row("assess-time-only", "tasks/s", "more")
    kinds = {"flint-strict": ("1000000", "uniform"), "flash-charging": ("1000000", "uniform"),
             "rested": ("20000", "rested")}  # fmt: skip
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}

    def several() -> float:
        for _ in range(effort.repeats):
            for kind, (devices, by) in kinds.items():
                fleet = "flint-strict" if kind == "rested" else kind
                found[kind].append(probe("ours.py", "events", devices, fleet, str(effort.min_s), by))
        return median(one["tasks_per_s"] for one in found["flint-strict"])

    row.ours = _try(row, OURS.name, several)
    row.detail |= {"devices": 1_000_000, "cohort": 1000, "buffer": 100, "processes": 1, "aim": 100_000}
    row.detail |= {"tasks_per_s": {kind: median(one["tasks_per_s"] for one in of) for kind, of in found.items() if of}}
    return row


FLINT_TASKS_PER_H = 60_000.0


def assess_trained(effort: Effort) -> Row:
    """Client tasks per hour with training, 189,186 parameters and 100 records a task; FLINT had 60,000 on 20 executors.

    The limit is the machine's matrix product in float32 over what a task takes.
    """
    row = Row("assess-trained", "tasks/h", "more")
    found: list[dict[str, float]] = []

    def several() -> float:
        for _ in range(effort.repeats):
            found.append(probe("ours.py", "assess-trained", str(effort.min_s)))
        return 3600.0 * median(one["tasks_per_s"] for one in found)

    row.ours = _try(row, OURS.name, several)
    flops = 2 * (3 * (736 * 256 + 256 * 2) - 736 * 256) * 100
    peak = _try(row, "limit", _peak_flops)
    row.limit = 3600.0 * peak / flops if peak else None
    row.detail |= {"flops_per_task": flops, "records": 100, "batch": 20, "cohort": 100, "buffer": 50, "aim": 1_000_000}
    row.detail |= {"flint_with_20_executors": FLINT_TASKS_PER_H, "fleet": "flint-strict", "by": "rested"}
    return row


def asynchronous(name: str, effort: Effort, buffer: int = 50) -> Row:
    """Clients per second of FedBuff over those of FedAvg on the same workload, 100 at work, in one process by turns."""
    row = Row(f"async-{name}{'' if buffer == 50 else f'-{buffer}'}", "share of sync", "more", limit=1.0)
    found: list[dict[str, float]] = []

    def shares() -> float:
        for _ in range(effort.repeats):
            found.append(probe("ours.py", "async", name, str(buffer), str(effort.min_s)))
        return median(one["async"] / one["sync"] for one in found)

    row.ours = _try(row, OURS.name, shares)
    row.detail |= {"cohort": WORKLOADS[name].cohort, "buffer": buffer, "aim": 0.8, "limit_is": "synchronous rounds"}
    row.detail |= {"clients_per_s": found}
    return row


@cache
def _population(devices: int, repeats: int) -> dict[str, float]:
    found = [probe("ours.py", "population", str(devices)) for _ in range(repeats)]
    return {key: median(f[key] for f in found) for key in ("mb", "round_s")}


def population_memory(effort: Effort) -> Row:
    """MB for a million devices with data. The limit: their seven columns and indexes as plain arrays."""
    row = Row("population-memory", "MB", "less", limit=1e6 * (8 + 4 + 8 + 3 * 4) / 1e6)
    row.ours = _try(row, OURS.name, lambda: _population(1_000_000, effort.repeats)["mb"])
    row.detail |= {"devices": 1_000_000, "limit_is": "offsets, rows, sizes and three float32 device columns"}
    return row


def flat_in_population(effort: Effort) -> Row:
    """Seconds per round of 100 clients of 1,000,000, over those of 1,000."""
    row = Row("flat-in-population", "times", "less", limit=1.0)

    def times() -> float:
        many, few = (_population(n, effort.repeats)["round_s"] for n in (1_000_000, 1_000))
        row.detail |= {"round_s": {"1000000": many, "1000": few}}
        return many / few

    row.ours = _try(row, OURS.name, times)
    return row


def fold(effort: Effort) -> Row:
    """Seconds for a weighted mean of 100 updates of 10 million float32, one thread."""
    row = Row("fold-100x10M", "s", "less")
    ours: list[dict[str, float]] = []
    plain: list[dict[str, float]] = []

    def alternate() -> float:
        for _ in range(effort.repeats):
            plain.append(probe("probes.py", "fold"))
            ours.append(probe("ours.py", "fold"))
        return median(o["seconds"] for o in ours)

    row.ours = _try(row, OURS.name, alternate)
    if plain:
        row.limit = median(p["read_s"] for p in plain)
        row.detail |= {"numpy_peak_mb": max(p["mb"] for p in plain), "limit_is": "reading the rows once"}
        if ours and max(abs(ours[0][k] - plain[0][k]) for k in ("first", "last")) > 1e-4:
            row.missing["numpy"] = "the means differ"
        else:
            row.peers["numpy"] = median(p["seconds"] for p in plain)
    if ours:
        row.detail["ours_peak_mb"] = max(o["mb"] for o in ours)
    return row


_IMPORTS = {
    "pfl": "import pfl.aggregate.simulate, pfl.algorithm.federated_averaging, pfl.model.pytorch",
    "fedjax": "import fedjax",
    "blazefl": "import blazefl.contrib.fedavg",
    "fluke": "import fluke_stubs; fluke_stubs.install(); import fluke.algorithms.fedavg",
    "flwr": "import flwr.serverapp.strategy, flwr.simulation",
}


def _wall(python: Path, code: str, times: int) -> float:
    code = f"import sys; sys.path.insert(1, 'benchmarks/peers')\n{code}"
    durations: list[float] = []
    for _ in range(times + 1):
        began = time.perf_counter()
        call(python, ["-c", code], limit_s=120)
        durations.append(time.perf_counter() - began)
    return median(durations[1:])  # the first fills the file cache


def import_time(effort: Effort) -> Row:
    """Seconds of a process that imports the package and ends; the limit is one that imports nothing."""
    row = Row("import", "s", "less")
    python = Path(sys.executable)
    row.limit = _try(row, "limit", lambda: _wall(python, "pass", effort.probes))
    row.ours = _try(row, OURS.name, lambda: _wall(python, "import fieldfare", effort.probes))
    _each_peer(row, lambda peer: _wall(peer.python, _IMPORTS[peer.name], effort.probes))
    return row


def install_size(effort: Effort) -> Row:
    """MB of the package with all it requires."""
    row = Row("install-size", "MB", "less")

    def ours() -> float:
        found = probe("probes.py", "size", "fieldfare")
        torch = probe("probes.py", "size", "torch")
        row.detail |= {"packages": found["packages"], "own_mb": found["own_mb"], "torch_mb": torch["mb"]}
        return float(found["mb"])

    row.ours = _try(row, OURS.name, ours)
    _each_peer(row, lambda peer: float(probe("probes.py", "tree", python=peer.python)["mb"]))
    if "fluke" in row.peers:
        row.detail["fluke"] = "without the packages its benchmark stubs: in truth more"
    return row


def first_round(effort: Effort) -> Row:
    """Seconds from the start of the process to the end of the first round, 100 clients doing next to nothing."""
    row = Row("first-round", "s", "less")

    def ours() -> float:
        took: list[float] = []
        for _ in range(effort.probes):
            began = time.time()
            took.append(probe("ours.py", "first-round")["ended"] - began)
        return median(took)

    def theirs(peer: Arm) -> float:
        runs = [run_arm(peer, "W0", check=1, min_s=0) for _ in range(effort.repeats)]
        return median(run.timings["first_s"] for run in runs)

    prepare("W0")
    row.ours = _try(row, OURS.name, ours)
    _each_peer(row, theirs)
    return row


def _each_peer(row: Row, action: Callable[[Arm], float]) -> None:
    for peer in PEERS:
        if not peer.environment:
            continue  # the hand-written loop is no package
        if reason := peer.unready():
            row.missing[peer.name] = reason
            continue
        value = _try(row, peer.name, lambda peer=peer: action(peer))
        if value is not None:
            row.peers[peer.name] = value


def scaling(name: str, effort: Effort) -> Row:
    """What a second core brings to training, over what it brings to a bare matrix product."""
    row = Row(f"scaling-{name}", "share of a product's", "more", limit=1.0)
    found: list[dict[str, float]] = []

    def share() -> float:
        for _ in range(effort.repeats):
            bare = [probe("probes.py", "matmul", *cores)["flops_per_s"] for cores in (("1",), ())]
            found.append({**probe("ours.py", "scaling", name, str(effort.min_s)), "bare": bare[1] / bare[0]})
        return median(one["all"] / one["one"] / one["bare"] for one in found)

    row.ours = _try(row, OURS.name, share)
    row.detail |= {"aim": 0.95, "runs": found, "limit_is": "a bare product on as many cores"}
    return row


def memory(name: str, cohort: int, effort: Effort) -> Row:
    """Memory of rounds with a large cohort, above the data and the imported libraries."""
    row = Row(f"memory-{name}-{cohort}", "MB", "less")
    row.ours = _try(row, OURS.name, lambda: probe("ours.py", "memory", name, str(cohort))["mb"])
    row.detail |= {"aim": 600, "cohort": cohort}
    return row


ROWS: dict[str, Callable[[Effort], Row]] = {
    **{name: (lambda effort, name=name: workload(name, effort)) for name in WAYS},
    "driver-10000": lambda effort: driver(10_000, effort),
    "driver-100": lambda effort: driver(100, effort),
    "events-1M": lambda effort: events(1_000_000, "phones", effort),
    "events-1M-flash-charging": lambda effort: events(1_000_000, "flash-charging", effort),
    "events-10M": lambda effort: events(10_000_000, "phones", effort),
    "events-10M-flash-charging": lambda effort: events(10_000_000, "flash-charging", effort),
    "assess-time-only": assess_time_only,
    "assess-trained": assess_trained,
    **{f"async-{name}": (lambda effort, name=name: asynchronous(name, effort)) for name in ("W1", "W2", "W3")},
    **{
        f"async-{name}-{buffer}": (lambda effort, name=name, buffer=buffer: asynchronous(name, effort, buffer))
        for name in ("W1", "W2", "W3")
        for buffer in (20, 10)
    },
    **{f"mixed-{name}": (lambda effort, name=name: mixed(name, effort)) for name in ("W2", "W3", "W4")},
    "scaling-W2": lambda effort: scaling("W2", effort),
    "memory-W2-10000": lambda effort: memory("W2", 10_000, effort),
    "population-memory": population_memory,
    "flat-in-population": flat_in_population,
    "fold-100x10M": fold,
    "import": import_time,
    "install-size": install_size,
    "first-round": first_round,
}
