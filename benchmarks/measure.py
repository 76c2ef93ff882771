"""Arms as processes: which there are, how each is started, and what came of it.

Here: the table of peers with their best settings, one run of one arm, a pair run alternately, the
comparison of end models. Not here: rows of the result, limits, tables. Standard library and NumPy.

Invariant: never are two arms at work at the same time, and every arm of a workload gets the same files.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from arm import STARTED, arguments
from workloads import Floats, cohorts, start

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ENVIRONMENTS = HERE / "peers" / ".envs"
OUT = HERE / "out"
LIMIT_S = 900.0

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class ArmFailed(Exception):
    """An arm did not do what was asked; the message says why, in one line."""


@dataclass(frozen=True)
class Arm:
    """A way to train the workloads. ``settings``: by workload, "" for the others; the best that was found."""

    name: str
    script: str
    environment: str = ""  # "" = the one running this
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    launcher: Callable[[str], Sequence[str]] = lambda setting: ()
    before: tuple[str, ...] = ()  # arguments ahead of the orders
    variables: Mapping[str, str] = field(default_factory=dict[str, str])  # of the arm's environment, beside the usual
    required: bool = False  # a workload row without it is a failure

    def setting(self, workload: str) -> str:
        """Processes or threads for a workload."""
        return self.settings.get(workload, self.settings.get("", ""))

    @property
    def python(self) -> Path:
        """The interpreter of the arm's environment."""
        return ENVIRONMENTS / self.environment / "bin" / "python" if self.environment else Path(sys.executable)

    def unready(self) -> str:
        """Why the arm cannot be run at all, or nothing."""
        if self.environment and not (ENVIRONMENTS / self.environment / ".ready").exists():
            return f"not built: benchmarks/peers/setup {self.environment}"
        return ""


def _torchrun(setting: str) -> Sequence[str]:
    return ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", setting.removeprefix("p"))


OURS = Arm("fieldfare", "ours.py", before=("train",))
# ours without the compiled core: dense models in NumPy stacks, of others all but their dense end by torch
WITHOUT_CORE = replace(OURS, name="fieldfare-nocore", variables={"FIELDFARE_NATIVE": "off", "FIELDFARE_PATH": "auto"})
# and the stripped loop that any torch module takes: every layer left to autograd
LOOP = replace(OURS, name="fieldfare-loop", variables={"FIELDFARE_NATIVE": "off", "FIELDFARE_PATH": "graph"})
# JAX functions of one's own, in their compiled loop
OURS_JAX = replace(OURS, name="fieldfare-jax", variables={"FIELDFARE_BENCH_JAX": "1"})
PEERS = (
    Arm("torch-loop", "peers/train_torch.py", settings={"": "p2"}, required=True),
    Arm("pfl", "peers/train_pfl.py", "pfl", {"": "p2"}, _torchrun, required=True),
    Arm("fedjax", "peers/train_fedjax.py", "fedjax", required=True),
    Arm("blazefl", "peers/train_blazefl.py", "blazefl", {"": "serial", "W3": "t2", "W4": "t2"}, required=True),
    Arm("fluke", "peers/train_fluke.py", "fluke"),
    Arm("flwr", "peers/train_flwr.py", "flwr", {"": "ray2"}),
)


@dataclass(frozen=True)
class Outcome:
    """What one run of an arm gave: its timings, with the way ours went, and its model after the check rounds."""

    timings: Mapping[str, Any]
    end: Floats


def prepare(workload: str) -> Floats:
    """Write the workload's starting vector and cohorts where every arm finds them; returns the start.

    Cohorts are those our own simulator draws; while it cannot be asked, drawn here.
    """
    OUT.mkdir(exist_ok=True)
    vector = start(workload)
    np.save(OUT / f"{workload}-start.npy", vector)
    file = OUT / f"{workload}-cohorts.npy"
    try:
        call(OURS.python, [str(HERE / OURS.script), "cohorts", workload, "50", str(file)])
    except ArmFailed:
        np.save(file, cohorts(workload, 50))
    return vector


def run_arm(arm: Arm, workload: str, *, check: int, min_s: float) -> Outcome:
    """One run in a process of its own; :func:`prepare` must have been called. Errors: :class:`ArmFailed`."""
    if reason := arm.unready():
        raise ArmFailed(reason)
    setting, tag = arm.setting(workload), f"{workload}-{arm.name}"
    for leftover in (OUT / f"{tag}.json", OUT / f"{tag}.npy"):
        leftover.unlink(missing_ok=True)
    orders = arguments(OUT, workload, check=check, min_s=min_s, setting=setting, tag=tag)
    call(arm.python, [*arm.launcher(setting), str(HERE / arm.script), *arm.before, *orders], variables=arm.variables)
    try:
        timings = json.loads((OUT / f"{tag}.json").read_text())
        return Outcome(timings, np.load(OUT / f"{tag}.npy", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise ArmFailed(f"left no result: {error}") from error


def call(
    python: Path, command: Sequence[str], *, limit_s: float = LIMIT_S, variables: Mapping[str, str] | None = None
) -> str:
    """Standard output of ``python command…``, alone and with one BLAS thread; errors: :class:`ArmFailed`."""
    environment = {
        **os.environ, **ONE_THREAD, "PYTHONPATH": str(HERE), "PYTHONWARNINGS": "ignore",
        "PYTHONDONTWRITEBYTECODE": "1", STARTED: repr(time.time()), **(variables or {}),
    }  # fmt: skip
    process = subprocess.Popen(
        [str(python), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise ArmFailed(f"took longer than {limit_s:.0f} s") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it may have left running
    if process.returncode:
        lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["no message"]
        told = next((x for x in reversed(lines) if "Error" in x or "error:" in x), lines[-1])
        raise ArmFailed(f"ended with {process.returncode}: {told[:200]}")
    return out


def probe(script: str, *command: str, python: Path | None = None, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """The JSON that ``script command…`` prints as its last line; errors: :class:`ArmFailed`."""
    out = call(python or Path(sys.executable), [str(HERE / script), *command], limit_s=limit_s)
    try:
        return json.loads(out.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise ArmFailed(f"{script} {' '.join(command)} printed no result") from error


def apart(a: Floats, b: Floats, begin: Floats) -> float:
    """How far two end models are from each other, as a share of the way ``b`` went from the start."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    way = float(np.linalg.norm(b - begin))
    return float(np.linalg.norm(a - b)) / way if way else float("inf")


@dataclass(frozen=True)
class Pair:
    """Ours and one peer, run alternately: clients per second of each run, how far the models differ, our way."""

    ours: tuple[float, ...]
    peer: tuple[float, ...]
    apart: float
    path: str = ""

    @property
    def ratio(self) -> float:
        """Ours to the peer: the median over the runs that followed each other."""
        return median(o / p for o, p in zip(self.ours, self.peer, strict=True))


def run_pair(arm: Arm, peer: Arm, workload: str, begin: Floats, *, check: int, min_s: float, repeats: int) -> Pair:
    """Our `arm`, peer, ours, peer, ...; errors: :class:`ArmFailed`, saying whose."""
    ours: list[float] = []
    theirs: list[float] = []
    worst, path = 0.0, ""
    for _ in range(repeats):
        try:
            mine = run_arm(arm, workload, check=check, min_s=min_s)
        except ArmFailed as error:
            raise ArmFailed(f"{arm.name} {error}") from error
        other = run_arm(peer, workload, check=check, min_s=min_s)
        ours.append(mine.timings["clients_per_s"])
        theirs.append(other.timings["clients_per_s"])
        worst, path = max(worst, apart(other.end, mine.end, begin)), str(mine.timings.get("path", ""))
    return Pair(tuple(ours), tuple(theirs), worst, path)
