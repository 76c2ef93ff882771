"""Evaluation and early stop as wrappers: they watch, stop the run in time, and change nothing that is trained."""

from __future__ import annotations

import pytest

from fieldfare.algorithms import Evaluate, EvaluateOnClients, FedAvg, Scaffold, StopAt
from fieldfare.core.effects import Publish
from fieldfare.core.events import Evaluated, Gathered
from fieldfare.core.quorum import Quorum, Sample
from fieldfare.testing import digest, laws, loop, quadratics, simulate

PROBLEM = quadratics(n=8)
both = pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])
INNER = {"fedavg": FedAvg(6, 4), "scaffold": Scaffold(6, 4), "quorum": FedAvg(6, 6, quorum=Quorum(need=3))}
WRAPPED = {
    "central": lambda inner: Evaluate(inner, every=2),
    "clients": lambda inner: EvaluateOnClients(inner, Sample(3), every=2),
    "both": lambda inner: EvaluateOnClients(Evaluate(inner), Sample(3)),
    "patient": lambda inner: StopAt(Evaluate(inner), metric="loss", patience=99),
}


def published(end) -> list[bytes]:
    return [
        e.model.vector.tobytes() for _, _, effects in end.transcript.kept for e in effects if isinstance(e, Publish)
    ]


@both
@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("inner", INNER)
def test_watching_does_not_change_the_trained_model(driver, inner, wrapper):
    plain = driver(PROBLEM.world(INNER[inner]), keep=True)
    watched = driver(PROBLEM.world(WRAPPED[wrapper](INNER[inner])), keep=True)
    assert published(watched) == published(plain)
    assert digest(watched.slots.rows) == digest(plain.slots.rows)


@both
def test_a_run_stops_at_the_first_version_that_reaches_the_target(driver):
    plain = driver(PROBLEM.world(Evaluate(FedAvg(20, 8))), keep=True)
    losses = [event.metrics["loss"] for event in plain.transcript.events(Evaluated)]
    target = losses[7]
    assert sorted(losses[:8], reverse=True) == losses[:8]
    end = driver(PROBLEM.world(StopAt(Evaluate(FedAvg(20, 8)), metric="loss", at_most=target)), keep=True)
    assert end.reason.startswith(f"loss {target:.6g} at version 8: at most")
    assert len(end.transcript.events(Evaluated)) == 8
    assert published(end) == published(plain)[: len(published(end))]


@both
def test_the_last_evaluation_is_waited_for_though_the_rounds_are_over(driver):
    end = driver(PROBLEM.world(Evaluate(FedAvg(3, 4), every=2)), keep=True)
    assert [event.version for event in end.transcript.events(Evaluated)] == [2, 3]
    assert end.reason == "rounds"


@both
def test_a_stop_cancels_the_round_under_way(driver):
    end = driver(PROBLEM.world(StopAt(Evaluate(FedAvg(20, 8)), metric="loss", at_most=1e9)), keep=True)
    assert len(end.transcript.events(Gathered)) == 1
    assert len(published(end)) == 1


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrapped_algorithms_keep_all_laws(wrapper):
    laws(WRAPPED[wrapper](Scaffold(2, 4)))
