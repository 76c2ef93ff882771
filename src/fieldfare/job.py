"""The job: what is trained, on which data, by which algorithm. The same object is simulated and deployed.

Here: the description and its checks. Not here: how it runs (`run`) and what is written (`record`). Invariant: nothing
that only makes sense simulated stands outside `Job.simulated`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fieldfare.algorithms.evaluate import innermost
from fieldfare.core.algorithm import several
from fieldfare.core.errors import UsageError
from fieldfare.core.quorum import Everyone, Sample
from fieldfare.core.settings import settings
from fieldfare.data.federated import Federated
from fieldfare.fleet.beside import edge_servers
from fieldfare.fleet.fleet import Fleet, Phones, Recipe
from fieldfare.fleet.mobility import Mobility, Moving, Walk
from fieldfare.overrides import SHORT, override
from fieldfare.sim.links import Links
from fieldfare.work.net import Training

if TYPE_CHECKING:
    from fieldfare.run import Result


@settings
@dataclass(frozen=True, slots=True)
class Evaluation:
    """When the model is measured.

    `every`: rounds between central evaluations on the test set. `clients`: how many clients (a number, a `Sample` or
    `Everyone()`) measure the model on their held-out data every `clients_every` rounds. `personal`: measure each
    client's own model there too (its personal layers, its twin); where an algorithm gives clients none (FedAvg,
    SCAFFOLD, a kept optimiser) that is the model sent, so that arms with and without can be compared. `fine_tune`:
    epochs of local training before that personal measurement, 0 for none. All are done in the last round.
    """

    every: int = 1
    clients: int | Sample | Everyone | None = None
    clients_every: int = 10
    personal: bool = False
    fine_tune: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or self.clients_every < 1:
            raise UsageError(f"Evaluation(every={self.every}, clients_every={self.clients_every}): use numbers >= 1.")
        if self.fine_tune < 0:
            raise UsageError(f"Evaluation(fine_tune={self.fine_tune}): use a number of epochs >= 1, or 0 for none.")


@settings
@dataclass(frozen=True, slots=True, eq=False)
class Simulated:
    """All that only makes sense in a simulation: the devices, and how this machine computes.

    `fleet`: a `Fleet`, a recipe for one (`fieldfare.fleet.phones()`, `generate(...)`, readers of traces), or the name
    of a preset of `generate`. `train=False`: nothing is computed, only who works when, for how long, and what it takes;
    the model stays as it is, and nothing is evaluated. `workers`: processes (None: as many as cores, when the work is
    worth it). `chunk`: clients per stacked call (None: by memory). `on`: "local"; "ray" for the Ray of this process, of
    RAY_ADDRESS, or one started for the run; "ray://HOST:PORT" for a cluster. None of workers, chunk and on changes a
    bit. `evaluation_s`: virtual seconds of one central evaluation. `links`: between the nodes of a run that has
    several; `Links()` are those of the nodes' own devices. Where devices train with edge servers (`FedFly`), `edges`
    are these (a `Fleet`), and `mobility` says which edge each device is at, over time: a `fleet.mobility.Mobility`, a
    `Walk` (`waypoints(...)`), or `MovesAt`; None: nobody moves.
    """

    fleet: Fleet | Recipe | str = field(default_factory=Phones)
    workers: int | None = None
    chunk: int | None = None
    on: str = "local"
    evaluation_s: float = 0.0
    train: bool = True
    links: Links = field(default_factory=Links)
    edges: Fleet = field(default_factory=edge_servers)
    mobility: Mobility | Walk | Moving | None = None

    def __post_init__(self) -> None:
        if isinstance(self.fleet, str):
            from fieldfare.fleet.generate import generate

            object.__setattr__(self, "fleet", generate(self.fleet))
        for name in ("workers", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"Simulated({name}={value}): use a number >= 1, or None for what this machine has.")
        if self.on not in ("local", "ray") and not (self.on.startswith("ray://") and len(self.on) > len("ray://")):
            raise UsageError(f"Simulated(on={self.on!r}): use 'local', 'ray', 'ray://HOST:PORT' or 'ray://auto'.")
        known = self.mobility is None or isinstance(self.mobility, Mobility | Walk) or hasattr(self.mobility, "build")
        if not known:
            raise UsageError(
                f"Simulated(mobility=...) got a {type(self.mobility).__name__}: use a Mobility, waypoints(...), or "
                "MovesAt(...)."
            )
        if not 0.0 <= self.evaluation_s < np.inf:
            raise UsageError(f"Simulated(evaluation_s={self.evaluation_s}): use a number of seconds >= 0.")


@settings
@dataclass(frozen=True, slots=True)
class StopAt:
    """Stop when the central `metric` reaches `at_least`, falls to `at_most`, or has not improved.

    `patience=k`: stop after k evaluations in a row that did not beat the best by more than `margin`. Versions published
    before this was known stay: the run's model is the last published one, and it is evaluated before the run ends.
    """

    metric: str = "accuracy"
    at_least: float | None = None
    at_most: float | None = None
    patience: int | None = None
    margin: float = 0.0


@settings
@dataclass(frozen=True, eq=False)
class Job:
    """A federated job.

    `model`: a declared net (`fieldfare.mlp`), an `nn.Module` or a function that makes one, `jax_net(...)`, an
    `opaque(...)`. `loss`: name or function, for an `nn.Module`. `algorithm`: any `Algorithm`, or `Roles` such as
    `HADFL`, in which every client is a node. `training`: how a client trains. `start_from`: a safetensors file.
    `bad_updates`: "refuse" drops an update that is not finite, names client and round, and goes on; "stop" ends the run
    with that line. `callbacks`: called with every round's record.
    """

    model: Any
    data: Federated = field(
        metadata={"use": "a federated data set, such as fieldfare.digits() or fieldfare.federate()"}
    )
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
        if several(self.algorithm):
            self.algorithm.nodes(self.data.n_clients, self.training)
        elif several(innermost(self.algorithm)):
            raise UsageError(
                f"{type(self.algorithm).__name__}({type(innermost(self.algorithm)).__name__}(...)): what stands around "
                "several nodes is the job's: use Job(stop_at=..., evaluate=...)."
            )
        elif not hasattr(self.algorithm, "step") or not hasattr(self.algorithm, "init"):
            raise UsageError(
                f"Job(algorithm={self.algorithm!r}): an algorithm has init and step; `fieldfare algorithms` lists them."
            )
        self._check_count("a cohort", getattr(innermost(self.algorithm), "cohort", None), "cohort")
        self._check_count("an evaluation on clients", self.evaluate.clients, "Evaluation(clients=...)")

    def _check_count(self, what: str, asked: Any, setting: str) -> None:
        count = asked.count if isinstance(asked, Sample) else asked
        if isinstance(count, int | np.integer) and count > self.data.n_clients:
            raise UsageError(
                f"{what} of {count} can never be drawn from {self.data.n_clients} clients: "
                f"use {setting} <= {self.data.n_clients}."
            )

    def run(self, runs: str | Path | None = "runs", **options: Any) -> Result:
        """Simulate the job; writes `runs/<id>/` (None: nothing). See `fieldfare.run.run` for the options."""
        from fieldfare.run import run

        return run(self, runs, **options)

    def with_overrides(self, changes: Mapping[str, Any]) -> Job:
        """The job with dotted settings replaced: `{"algorithm.rounds": 5, "seed": 1}`; unknown keys are refused.

        What an algorithm was made with counts as a setting of it: `{"algorithm.lr": 0.03}` of a FedAdam. Where rounds
        are called cycles, `rounds` means these.
        """
        job = self
        for key, value in changes.items():
            path = SHORT.get(key, key)
            if path == "algorithm.rounds" and several(job.algorithm) and hasattr(job.algorithm, "cycles"):
                path = "algorithm.cycles"
            job = override(job, path.split("."), value, key)
        return job
