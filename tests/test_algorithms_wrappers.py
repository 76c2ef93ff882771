"""Evaluation and stopping wrappers: what they ask, what they hold back, and when they end a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from algorithm_driver import CONTEXT, Quadratics, drive, flatten

from fieldfare.algorithms import Ditto, Evaluate, EvaluateOnClients, FedAvg, FedPer, StopAt, innermost
from fieldfare.core.effects import Publish, Run, Stop
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Evaluated, Gathered, Started
from fieldfare.core.folds import Folded
from fieldfare.core.quorum import Everyone, Quorum, Sample


def world() -> Quadratics:
    return Quadratics.random(0)


def evaluated(record: Any) -> list[int]:
    return [effect.version for effect in record.flat if isinstance(effect, Publish) and effect.evaluate]


def asked(record: Any) -> list[tuple[Any, ...]]:
    return [effect.tag for effect in record.flat if isinstance(effect, Run) and effect.work == "evaluate"]


def gathered(tag: Any, **metrics: float) -> Gathered:
    delta = {"delta": Folded(np.full(5, 0.1, np.float32), 1.0)}
    return Gathered(tag, delta, 1.0, np.arange(1), np.ones(1), {k: np.array([v]) for k, v in metrics.items()})


@pytest.mark.parametrize(("every", "versions"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (3, [3, 5]), (9, [5])])
def test_every_kth_version_and_the_last_are_evaluated(every: int, versions: list[int]) -> None:
    assert evaluated(drive(Evaluate(FedAvg(5, 4), "test", every), world())) == versions
    record = drive(EvaluateOnClients(FedAvg(5, 4), Sample(3), every), world())
    assert asked(record) == [("evaluate", "federated", version) for version in versions]


@pytest.mark.parametrize("swap", [False, True])
def test_the_last_version_is_evaluated_whichever_wrapper_is_outside(swap: bool) -> None:
    def central(inner: Any) -> Evaluate:
        return Evaluate(inner, "test", 4)

    def clients(inner: Any) -> EvaluateOnClients:
        return EvaluateOnClients(inner, every=4)

    inner = StopAt(FedAvg(5, 4), "loss", at_most=-1.0)
    record = drive(central(clients(inner)) if swap else clients(central(inner)), world())
    assert evaluated(record) == [4, 5]
    assert asked(record) == [("evaluate", "federated", 4), ("evaluate", "federated", 5)]
    assert record.stopped == ["rounds"]


def test_a_stop_waits_for_the_evaluations_that_are_due_and_for_nothing_else() -> None:
    algorithm = EvaluateOnClients(Evaluate(FedAvg(1, 1)))
    state, _ = algorithm.step(algorithm.init(world().model()), Started({}, 8), CONTEXT)
    state, effects = algorithm.step(state, gathered(1), CONTEXT)
    assert [type(effect) for effect in effects] == [Publish, Run]
    for late in (gathered(1), gathered(2), gathered(("evaluate", "personal", 1))):
        same, effects = algorithm.step(state, late, CONTEXT)
        assert same is state
        assert tuple(effects) == ()
    state, effects = algorithm.step(state, Evaluated(1, "test", {"loss": 1.0}), CONTEXT)
    assert tuple(effects) == ()
    state, effects = algorithm.step(state, gathered(("evaluate", "federated", 1), loss=1.0), CONTEXT)
    assert tuple(effects) == (Stop("rounds"),)


def test_a_stop_waits_whichever_answer_comes_last() -> None:
    algorithm = EvaluateOnClients(Evaluate(FedAvg(1, 1)))
    state, _ = algorithm.step(algorithm.init(world().model()), Started({}, 8), CONTEXT)
    state, _ = algorithm.step(state, gathered(1), CONTEXT)
    state, effects = algorithm.step(state, gathered(("evaluate", "federated", 1), loss=1.0), CONTEXT)
    assert tuple(effects) == ()
    state, effects = algorithm.step(state, Evaluated(1, "test", {"loss": 1.0}), CONTEXT)
    assert tuple(effects) == (Stop("rounds"),)


def test_the_ask_of_clients_carries_the_version_its_own_key_and_the_published_model() -> None:
    record = drive(EvaluateOnClients(FedAvg(2, 4), Sample(3), quorum=Quorum(need=2)), world())
    publish = next(effect for effect in record.flat if isinstance(effect, Publish))
    ask = next(effect for effect in record.flat if isinstance(effect, Run) and effect.work == "evaluate")
    assert ask.model is publish.model
    assert ask.key == ("evaluate", 1)
    assert ask.config == {"version": 1}
    assert ask.on == Sample(3)
    assert ask.quorum == Quorum(need=2)
    assert ask.state is None
    assert ask.reduce == {}


def test_personal_evaluation_uses_the_slot_of_the_algorithm() -> None:
    assert EvaluateOnClients(Evaluate(Ditto(1, 1)), kind="personal").slot == "twin"
    assert EvaluateOnClients(FedPer(1, 1, personal=["head"]), kind="personal").slot == "personal"
    assert EvaluateOnClients(FedAvg(1, 1), kind="personal").slot is None
    assert EvaluateOnClients(Ditto(1, 1), kind="personal", slot="own").slot == "own"
    assert EvaluateOnClients(Ditto(1, 1)).slot is None


def test_both_kinds_of_evaluation_stand_side_by_side() -> None:
    record = drive(EvaluateOnClients(EvaluateOnClients(Ditto(2, 4)), kind="personal"), world())
    assert sorted(asked(record)) == [("evaluate", kind, v) for kind in ("federated", "personal") for v in (1, 2)]
    assert record.stopped == ["rounds"]
    with pytest.raises(UsageError, match="inside another"):
        EvaluateOnClients(Evaluate(EvaluateOnClients(FedAvg(1, 1))))


def test_two_central_evaluations_are_both_asked_and_awaited() -> None:
    record = drive(Evaluate(Evaluate(FedAvg(2, 4), "test"), "valid"), world())
    assert [effect.evaluate for effect in record.flat if isinstance(effect, Publish)] == [("test", "valid")] * 2
    assert [e.name for e in record.events if isinstance(e, Evaluated)] == ["test", "valid"] * 2
    assert record.stopped == ["rounds"]


@pytest.mark.parametrize("outside", [True, False])
def test_a_run_stops_at_the_first_version_that_is_good_enough(outside: bool) -> None:
    full = drive(Evaluate(FedAvg(9, Everyone())), world())
    losses = [event.metrics["loss"] for event in full.events if isinstance(event, Evaluated)]
    aim = losses[3]
    job = FedAvg(9, Everyone())
    record = drive(
        StopAt(Evaluate(job), "loss", at_most=aim) if outside else Evaluate(StopAt(job, "loss", at_most=aim)), world()
    )
    assert "at version 4: at most" in record.stopped[0]
    assert flatten(record.models[:4]) == flatten(full.models[:4])


def test_a_run_stops_on_the_mean_over_clients_when_stopping_stands_inside() -> None:
    job = EvaluateOnClients(StopAt(FedAvg(9, Everyone()), "loss", at_most=1e9, name="federated"))
    assert "at version 1" in drive(job, world()).stopped[0]


def test_patience_counts_evaluations_that_did_not_improve() -> None:
    algorithm = StopAt(FedAvg(99, 1), "accuracy", patience=2, margin=0.01)
    state = algorithm.init(world().model())
    seen = []
    for version, accuracy in enumerate([0.5, 0.6, 0.605, 0.7, 0.705, 0.709], 1):
        state, effects = algorithm.step(state, Evaluated(version, "test", {"accuracy": accuracy}), CONTEXT)
        seen.append([effect.reason for effect in effects if isinstance(effect, Stop)])
    assert seen[:5] == [[], [], [], [], []]
    assert seen[5] == ["accuracy 0.709 at version 6: no better in 2 evaluations"]
    assert algorithm.step(state, gathered(1), CONTEXT) == (state, ())


def test_patience_on_a_loss_wants_it_lower() -> None:
    algorithm = StopAt(FedAvg(99, 1), "loss", patience=1)
    state = algorithm.init(world().model())
    for version, loss in enumerate([3.0, 2.0, 1.0], 1):
        state, effects = algorithm.step(state, Evaluated(version, "test", {"loss": loss}), CONTEXT)
        assert effects == ()
    _, effects = algorithm.step(state, Evaluated(4, "test", {"loss": 1.5}), CONTEXT)
    assert len(effects) == 1


def test_stopping_listens_to_the_named_evaluation_and_the_metric_it_was_given() -> None:
    algorithm = StopAt(FedAvg(99, 1), at_least=0.5, name="test")
    state = algorithm.init(world().model())
    for event in (Evaluated(1, "valid", {"accuracy": 0.9}), Evaluated(1, "test", {"loss": 0.9})):
        assert algorithm.step(state, event, CONTEXT) == (state, ())
    _, effects = algorithm.step(state, Evaluated(1, "test", {"accuracy": 0.5}), CONTEXT)
    assert effects == (Stop("accuracy 0.5 at version 1: at least 0.5"),)


def test_the_mean_over_clients_is_by_weight_and_leaves_out_what_is_not_finite() -> None:
    from fieldfare.algorithms.evaluate import means

    event = Gathered(
        1, {}, 6.0, np.arange(3), np.array([1.0, 3.0, 2.0]),
        {"loss": np.array([1.0, 2.0, np.nan]), "none": np.full(3, np.nan)},
    )  # fmt: skip
    assert means(event) == {"loss": 1.75}


@pytest.mark.parametrize(
    "make",
    [
        lambda: StopAt(FedAvg(1, 1)), lambda: StopAt(FedAvg(1, 1), at_least=0.5, at_most=0.6),
        lambda: StopAt(FedAvg(1, 1), patience=0), lambda: Evaluate(FedAvg(1, 1), every=0),
        lambda: EvaluateOnClients(FedAvg(1, 1), every=0),
    ],
)  # fmt: skip
def test_a_wrapper_that_cannot_work_is_refused(make: Any) -> None:
    with pytest.raises(UsageError):
        make()


def test_the_innermost_algorithm_is_found_under_any_wrapping() -> None:
    job = FedAvg(1, 1)
    assert innermost(StopAt(Evaluate(EvaluateOnClients(job)), patience=1)) is job
    assert innermost(job) is job
