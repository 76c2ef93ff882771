"""The job: what is trained, on which data, by which algorithm. The same object is simulated and deployed.

Here: the description and its checks. Not here: how it runs (`run`) and what is written (`record`). Invariant: nothing
that only makes sense simulated stands outside `Job.simulated`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.core.quorum import Everyone, Sample
from fieldfare.data.federated import Federated
from fieldfare.fleet.fleet import Fleet, Phones
from fieldfare.work.net import Training

if TYPE_CHECKING:
    from fieldfare.run import Result


@dataclass(frozen=True, slots=True)
class Evaluation:
    """When the model is measured.

    `every`: rounds between central evaluations on the test set. `clients`: how many clients (a number, a `Sample` or
    `Everyone()`) measure the model on their held-out data every `clients_every` rounds. `personal`: measure each
    client's own model there too (its personal layers, its twin). `fine_tune`: epochs of local training before that
    personal measurement, 0 for none. All are done in the last round.
    """

    every: int = 1
    clients: int | Sample | Everyone | None = None
    clients_every: int = 10
    personal: bool = False
    fine_tune: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or self.clients_every < 1:
            raise UsageError(f"Evaluation(every={self.every}, clients_every={self.clients_every}): use numbers >= 1.")


@dataclass(frozen=True, slots=True, eq=False)
class Simulated:
    """All that only makes sense in a simulation: the devices, and how this machine computes.

    `workers`: processes (None: as many as cores, when the work is worth it). `chunk`: clients per stacked call (None:
    by memory). `evaluation_s`: virtual seconds of one central evaluation. None of workers and chunk changes a bit.
    """

    fleet: Fleet | Phones = field(default_factory=Phones)
    workers: int | None = None
    chunk: int | None = None
    evaluation_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StopAt:
    """Stop when the central `metric` reaches `at_least` (or falls to `at_most`)."""

    metric: str = "accuracy"
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True, eq=False)
class Job:
    """A federated job.

    `model`: a declared net (`fieldfare.mlp`), an `nn.Module` or a function that makes one, `jax_net(...)`, an
    `opaque(...)`. `loss`: name or function, for an `nn.Module`. `algorithm`: any `Algorithm`. `training`: how a client
    trains. `start_from`: a safetensors file. `bad_updates`: "refuse" drops an update that is not finite, names client
    and round, and goes on; "stop" ends the run with that line. `callbacks`: called with every round's record.
    """

    model: Any
    data: Federated
    algorithm: Any
    training: Training = field(default_factory=Training)
    loss: Any = None
    evaluate: Evaluation = Evaluation()
    stop_at: StopAt | None = None
    start_from: str | Path | None = None
    bad_updates: Literal["refuse", "stop"] = "refuse"
    callbacks: tuple[Callable[[Mapping[str, Any]], None], ...] = ()
    seed: int = 0
    name: str = ""
    simulated: Simulated = field(default_factory=Simulated)

    def __post_init__(self) -> None:
        if not hasattr(self.algorithm, "step") or not hasattr(self.algorithm, "init"):
            raise UsageError(
                f"Job(algorithm={self.algorithm!r}): an algorithm has init and step; `fieldfare algorithms` lists them."
            )
        if not isinstance(self.data, Federated):
            raise UsageError(
                f"Job(data=...) got a {type(self.data).__name__}: pass a federated data set, for example "
                "fieldfare.federate({'x': x, 'y': y}, fieldfare.iid(clients=100))."
            )
        cohort = getattr(self.algorithm, "cohort", None)
        count = cohort.count if isinstance(cohort, Sample) else cohort
        if isinstance(count, int | np.integer) and count > self.data.n_clients:
            raise UsageError(
                f"a cohort of {count} can never be drawn from {self.data.n_clients} clients: "
                f"use cohort <= {self.data.n_clients}."
            )
        if self.bad_updates not in ("refuse", "stop"):
            raise UsageError(f"Job(bad_updates={self.bad_updates!r}): use 'refuse' or 'stop'.")

    def run(self, runs: str | Path | None = "runs", **options: Any) -> Result:
        """Simulate the job; writes `runs/<id>/` (None: nothing). See `fieldfare.run.run` for the options."""
        from fieldfare.run import run

        return run(self, runs, **options)

    def with_overrides(self, changes: Mapping[str, Any]) -> Job:
        """The job with dotted settings replaced: `{"algorithm.rounds": 5, "seed": 1}`; unknown keys are refused."""
        job = self
        for key, value in changes.items():
            job = _override(job, key.split("."), value, key)
        return job


_SHORT = {
    "rounds": "algorithm.rounds",
    "cohort": "algorithm.cohort",
    "lr": "training.lr",
    "workers": "simulated.workers",
}


def _override(target: Any, path: list[str], value: Any, whole: str) -> Any:
    head, *rest = path
    if isinstance(target, Job) and not rest and head in _SHORT:
        head, *rest = _SHORT[head].split(".")
    if not dataclasses.is_dataclass(target) or isinstance(target, type):
        raise UsageError(f"{whole!r}: {type(target).__name__} has no settings to override.")
    names = [f.name for f in dataclasses.fields(target) if f.init]
    if head not in names:
        raise UsageError(unknown_key(head, names, whole))
    old = getattr(target, head)
    new = _override(old, rest, value, whole) if rest else _typed(old, value, whole)
    return replace(target, **{head: new})


def unknown_key(given: str, known: list[str], where: str) -> str:
    """One line for a setting that does not exist, with the nearest that does."""
    close = difflib.get_close_matches(given, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}."
    return f"unknown key {given!r} in {where!r}: {hint}"


def _typed(old: Any, value: Any, whole: str) -> Any:
    """A command line's text as the type the setting has now."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in ("none", "null"):
        return None
    if isinstance(old, bool) or text.lower() in ("true", "false"):
        if text.lower() not in ("true", "false", "0", "1"):
            raise UsageError(f"{whole}={value!r}: use true or false.")
        return text.lower() in ("true", "1")
    if isinstance(old, str):
        return text
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if old is None or not isinstance(old, float) else float(number)
    if isinstance(old, int | float):
        raise UsageError(f"{whole}={value!r}: a number is needed (now {old!r}).")
    return text
