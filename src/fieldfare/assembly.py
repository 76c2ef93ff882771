"""From a job to the world it happens in: names bound to work, evaluations and stopping put around every node.

Here: `assemble`, and every refusal that can be known before a run starts. Not here: running (`run`), files. Invariant:
what is put around an algorithm, or around each node of one of several, changes no bit of what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fieldfare.algorithms.check import check
from fieldfare.algorithms.evaluate import Evaluate, EvaluateOnClients, innermost
from fieldfare.algorithms.evaluate import StopAt as Stopping
from fieldfare.algorithms.fedfly.methods import FedFly
from fieldfare.algorithms.pairs import around, refuse
from fieldfare.core.algorithm import several
from fieldfare.core.effects import Scalar
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Local
from fieldfare.core.params import Layout, Params
from fieldfare.core.quorum import Everyone, Sample
from fieldfare.core.settings import unknown_key
from fieldfare.core.work import Cohort, Cost, Output, Work
from fieldfare.fleet.fleet import Fleet
from fieldfare.job import Job
from fieldfare.sim.population import Population
from fieldfare.sim.simulator import World
from fieldfare.store.models import read_model
from fieldfare.work.adapt import as_net
from fieldfare.work.evaluate import Evaluate as Measure
from fieldfare.work.evaluate import FineTune, central_evaluation
from fieldfare.work.masked import secured
from fieldfare.work.train import Train

if TYPE_CHECKING:
    from fieldfare.work.submodel.fitting import Fitted


def _settle(net: Any, job: Job, way: str | None) -> None:
    """Choose how `net` is trained here, before anything is: the `way` of a run that is gone on with, or the fastest."""
    net = getattr(net, "net", net)  # of a family
    if isinstance(getattr(net, "path", None), str):
        from fieldfare.work.native.bind import must_be_native
        from fieldfare.work.native.timing import keep_to, settle_fastest, try_stacks

        must_be_native(net)
        if way is not None:
            keep_to(net, way)
        elif job.simulated.train:
            settle_fastest(net, job.training, job.data, _together(job))
        if job.simulated.train:
            try_stacks(net, job.training, job.data)


def _together(job: Job) -> int | None:
    """How many clients train at once, if that is known; 0 where who is computed with whom depends on workers: in
    streams of asks, and with several nodes."""
    algorithm = innermost(job.algorithm)
    if several(job.algorithm) or getattr(algorithm, "folds_late", False):
        return 0
    cohort = getattr(algorithm, "cohort", None)
    return cohort if isinstance(cohort, int) else None


@dataclass(frozen=True, eq=False)
class Assembly:
    """A job bound to this machine: the world to simulate and the work to compute it with.

    `planned`: the levels, of a job that plans them from its fleet. `measure`: the central evaluation, for a run of
    several nodes whose last version nobody has measured. `data`: what the executor reads: the job's, and nothing for
    nodes behind its clients. `offload`: of a job that offloads.
    """

    world: World
    works: Mapping[str, Work]
    net: Any
    slots: Mapping[str, int] = field(default_factory=dict)
    measure: Callable[[Params], Mapping[str, float]] | None = None
    data: Any = None
    offload: Any = None
    planned: Fitted | None = None

    @property
    def several(self) -> bool:
        return bool(self.world.placement)


def assemble(job: Job, way: str | None = None) -> Assembly:
    """Bind the job's names; every refusal that can be known before the start is raised here.

    `way`: how the model of a run that is gone on with was trained.
    """
    split = isinstance(job.algorithm, FedFly)
    if split:
        from fieldfare.offload import net_of, offload

        net: Any = net_of(job)
    else:
        net = as_net(job.model, loss=job.loss, example={name: rows[:2] for name, rows in job.data.columns.items()})
    if several(job.algorithm) and not split:
        _check_several(job, net)
    local = tuple(getattr(innermost(job.algorithm), "local", ()))
    model = net.init(job.seed)
    if job.start_from is not None:
        model = read_model(job.start_from, layout=model.layout)
    works: dict[str, Work] = secured(job.algorithm, works_of(net, job, local), model.size)
    check(job.algorithm, training=job.training, layout=model.layout, clients=job.data.n_clients)
    refuse(job.algorithm, _beside(job, net))
    _check_view(job, model.layout)
    if not job.simulated.train and "secure" in around(job.algorithm):
        raise UsageError("SecureSum needs keys that clients compute, and Simulated(train=False) computes nothing.")
    if not job.simulated.train and job.stop_at is not None:
        raise UsageError("Job(stop_at=...) needs a trained model, and Simulated(train=False) trains none.")
    if job.stop_at is not None:
        if job.data.test is None:
            raise UsageError("Job(stop_at=...) needs a central test set: give the data a test part.")
        _check_metric(net, job, model)
    evaluations: dict[str, Any] = {}
    if job.data.test is not None and job.simulated.train:
        evaluations["test"] = (_central(net, job.data.test), job.simulated.evaluation_s)
    if job.evaluate.clients is not None and job.simulated.train:
        _measurable(job, works)
    elif (job.evaluate.personal or job.evaluate.fine_tune) and job.simulated.train:
        raise UsageError(
            "Evaluation(personal=..., fine_tune=...) needs clients=: say how many measure their own model."
        )
    given = None
    if several(job.algorithm):
        works = works if job.simulated.train else {**works, "train": Still(cast(Train, works["train"]))}
        given = offload(job, net) if split else None
        works = works if given is None else {**works, **given.works(job.simulated.train)}
    if given is not None:
        population, more = (
            given.population,
            {"links": given.links, "happenings": given.happenings, "mobility": given.told},
        )
    else:
        if job.simulated.mobility is not None:
            raise UsageError(
                "Simulated(mobility=...) is for devices that move between edge servers, which "
                f"{type(job.algorithm).__name__} has none of: leave it out, or use FedFly."
            )
        fleet = job.simulated.fleet
        fleet = fleet if isinstance(fleet, Fleet) else fleet.build(job.data.n_clients, job.seed)
        population, more = Population.of(job.data, fleet), _links(job)
    planned = _fitted(job, net, population)
    if planned is not None:
        population = replace(population, marks=planned.ids)
        more = {**more, "refit": planned.seen}
    placement: Mapping[str, int] = {}
    if several(job.algorithm):
        algorithm = _bound(job.algorithm, planned) if given is None else given.bound()
        made = algorithm.nodes(job.data.n_clients, job.training)
        nodes = {name: (role, _watched(job, one)) for name, (role, one) in made.items()}
        placement = algorithm.placement(job.data.n_clients)
    else:
        nodes = {"central": ("central", _watched(job, job.algorithm))}
    world = World(nodes, model, population, works, job.seed, evaluations, placement, **more)
    slots: dict[str, int] = {}
    for work in works.values():
        slots |= work.slots(model.layout)
    measure = evaluations["test"][0] if placement and evaluations else None
    if job.simulated.train:
        _settle(net, job, way)
    return Assembly(world, works, net, slots, measure, population.data, given, planned)


def _check_view(job: Job, layout: Layout) -> None:
    """Refuse sub-models cut from another model than the job's: their places in its vector mean something else."""
    view: Any = getattr(innermost(job.algorithm), "view", None)
    cut = getattr(getattr(view, "view", view), "axes", None)  # of plans, those of the view inside
    if cut is not None and cut.layout != layout:
        raise UsageError(
            f"view=... is the view of another model: it cuts one of {cut.layout.size:,} parameters, and the job's has "
            f"{layout.size:,}, or others: make it of the family that is Job(model=...)."
        )


def _fitted(job: Job, net: Any, population: Population) -> Fitted | None:
    """The plan of levels, of a job whose algorithm has a view `family.fitting()`."""
    from fieldfare.work.submodel.fitting import Fitting, fitted

    asked = getattr(innermost(job.algorithm), "view", None)
    if not isinstance(asked, Fitting):
        return None
    rows = {name: column[:2] for name, column in job.data.columns.items()}
    local = tuple(getattr(innermost(job.algorithm), "local", ()))
    planned = fitted(asked, net, population.fleet, job.training, population.examples, rows, local)
    if several(job.algorithm) and (told := planned.told()):
        raise UsageError(f"{type(job.algorithm).__name__} trains on every device: {told[0]}")
    if several(job.algorithm) and not planned.steady:
        raise UsageError(
            f"{type(job.algorithm).__name__}: a device trains the same part in every cycle, and memory or speeds of "
            "this fleet ask for another later: use an algorithm with a server, or a fleet that does not change."
        )
    return planned


def _bound(algorithm: Any, planned: Fitted | None) -> Any:
    """An algorithm of several nodes with the parts that were planned for its devices at the start."""
    return algorithm if planned is None else replace(algorithm, view=planned.first.view(algorithm.view.rule))


def _beside(job: Job, net: Any) -> tuple[str, ...]:
    """What a job puts around its algorithm, in the words of the table of pairs."""
    inside, fleet = getattr(net, "net", net), job.simulated.fleet
    found = {
        "masked loss": getattr(net, "loss", None) == "masked_cross_entropy",
        "module": type(inside).__name__ == "TorchNet",
        "sessions": isinstance(fleet, Fleet) and fleet.availability is not None,
        "ray": job.simulated.on != "local",
    }
    return tuple(name for name, so in found.items() if so)


def _links(job: Job) -> dict[str, Any]:
    links = getattr(job.simulated, "links", None)
    return {} if links is None else {"links": links}


def _watched(job: Job, algorithm: Any) -> Any:
    """A node's algorithm inside the evaluations, and the stopping, that the job asks for."""
    if not job.simulated.train:
        return algorithm
    if job.stop_at is not None:
        settings = {f.name: getattr(job.stop_at, f.name) for f in fields(job.stop_at)}
        algorithm = Stopping(algorithm, **settings, name="test")
    if job.data.test is not None:
        algorithm = Evaluate(algorithm, central="test", every=job.evaluate.every)
    if job.evaluate.clients is not None:
        on = Sample(job.evaluate.clients) if isinstance(job.evaluate.clients, int) else job.evaluate.clients
        if isinstance(job.algorithm, FedFly):  # not of edges
            on = Sample(job.data.n_clients, "device") if isinstance(on, Everyone) else replace(on, where="device")
        every = job.evaluate.clients_every
        algorithm = EvaluateOnClients(algorithm, on, every, "evaluate", "federated")
        if job.evaluate.fine_tune:
            algorithm = EvaluateOnClients(algorithm, on, every, "personalise", "fine_tuned")
        elif job.evaluate.personal:
            algorithm = EvaluateOnClients(algorithm, on, every, "personalise", "personal")
    return algorithm


def _check_several(job: Job, net: Any) -> None:
    """Refuse of a run of several nodes what only a server could do."""
    name = type(job.algorithm).__name__
    if hasattr(net, "works"):
        raise UsageError(
            f"{name} averages vectors among devices, and this model is trained by functions of its own (opaque): use "
            "a net, or an algorithm with a server."
        )
    if job.stop_at is not None and job.stop_at.patience is not None:
        raise UsageError(
            f"StopAt(patience=...) counts evaluations at one node, and {name} publishes from several: use at_least= or "
            "at_most=."
        )
    if job.evaluate.personal and job.simulated.train:
        raise UsageError(
            f"Evaluation(personal=True) measures what a server's clients keep, and {name} has no server: leave it out."
        )


@dataclass(frozen=True, slots=True)
class Still:
    """A training that costs what `work` costs and gives back the model it was sent, for `Simulated(train=False)`."""

    work: Train

    @property
    def together(self) -> int:
        return self.work.together

    def __call__(self, cohort: Cohort) -> Output:
        return Output({"model": cohort.models[cohort.row]}, cohort.data.sizes.astype(np.float64))

    def cost(self, examples: Any, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        return self.work.cost(examples, layout, config)

    def steps(self, examples: Any, config: Mapping[str, Scalar]) -> Any:
        return self.work.steps(examples, config)

    def alike(self, config: Mapping[str, Scalar]) -> Any:
        return self.work.alike(config)

    def slots(self, layout: Layout) -> Mapping[str, int]:
        return {}


def works_of(net: Any, job: Job, local: tuple[Local, ...]) -> dict[str, Work]:
    """The client computations a job binds, by name: "train", "evaluate", and "personalise" where it is wanted."""
    if hasattr(net, "works"):
        return dict(net.works(job.training, local))
    works: dict[str, Work] = {"train": Train(net, job.training, local), "evaluate": Measure(net, (), held=True)}
    if job.evaluate.fine_tune:
        tuning = replace(job.training, epochs=job.evaluate.fine_tune, steps=None)
        works["personalise"] = FineTune(net, tuning, local)
    elif job.evaluate.personal:
        works["personalise"] = Measure(net, local, held=True)
    return works


def _central(net: Any, test: Mapping[str, Any]) -> Callable[[Params], Mapping[str, float]]:
    if hasattr(net, "central"):
        return net.central(test)
    measure = central_evaluation(net, test)
    return lambda model: measure(model.vector)


def _check_metric(net: Any, job: Job, model: Params) -> None:
    """Refuse to stop at a metric that the model does not give, found out on one row."""
    assert job.stop_at is not None
    assert job.data.test is not None
    if not hasattr(net, "central"):
        known = _central(net, {name: column[:1] for name, column in job.data.test.items()})(model)
        if job.stop_at.metric not in known:
            raise UsageError(unknown_key(job.stop_at.metric, known, "StopAt(metric=...)"))


def _measurable(job: Job, works: Mapping[str, Work]) -> None:
    """Refuse an evaluation on clients that the model, or the data, cannot give."""
    wanted = ["evaluate", *(["personalise"] if job.evaluate.personal or job.evaluate.fine_tune else [])]
    if lacking := [name for name in wanted if name not in works]:
        raise UsageError(
            f"Evaluation(clients=...) asks for the work {lacking[0]!r} and this model binds {', '.join(works)}: "
            "give it (opaque(evaluate=...)), or leave this evaluation out."
        )
    if getattr(works["evaluate"], "needs_held", True) and getattr(job.data, "held_offsets", None) is None:
        raise UsageError(
            "Evaluation(clients=...) measures on the clients' held-out data and this data has none: "
            "use data.holdout(0.2)."
        )
