"""Every registered algorithm, and FedAvg with any server chain, keeps all laws on both drivers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.aggregate import (
    adagrad,
    adam,
    bound,
    chain,
    clip,
    coverage,
    decay,
    geometric_median,
    krum,
    mean,
    median,
    mixed,
    momentum,
    scale,
    trimmed_mean,
    yogi,
)
from fieldfare.algorithms import ALGORITHMS, Evaluate, EvaluateOnClients, FedAvg, StopAt
from fieldfare.core.params import Layout, Params
from fieldfare.core.quorum import ALL, Everyone, Quorum, Sample
from fieldfare.fleet.fleet import Fleet
from fieldfare.testing import Echo, loop, quadratics, simulate
from fieldfare.testing import laws as all_laws
from fieldfare.testing.checks import conserved, deaf_to_duplicates, onward, orderless, pure, same_everywhere, total

NAMES = [entry.name for entry in ALGORITHMS]
BY_NAME = {entry.name: entry for entry in ALGORITHMS}
entries = pytest.mark.parametrize("name", NAMES)


def make(name: str, rounds: int, cohort, **options):
    if BY_NAME[name].model == "bytes":
        options["merge"] = Append()
    if BY_NAME[name].cohort != "any":
        options.pop("quorum", None)
        cohort = cohort if isinstance(cohort, int) else cohort.count if isinstance(cohort, Sample) else len(cohort)
        options |= {"buffer": min(3, cohort)} if name == "fedbuff" else {"over": 1.0} if name == "semisync" else {}
    return BY_NAME[name].factory(rounds, cohort, **{**BY_NAME[name].example, **options})


def world_of(name: str, algorithm, problem=None, **more):
    """The world an algorithm wants: quadratics, or for a model of bytes clients that send bytes."""
    world = (problem or quadratics()).world(algorithm, **more)
    if BY_NAME[name].model != "bytes":
        return world
    start = Params(np.empty(0, np.float32), Layout((), ()), opaque=b"start")
    evaluations = {"test": (lambda model: {"loss": float(len(model.opaque))}, 0.25)}
    return replace(world, model=start, works={"train": Planting(), "evaluate": Echo()}, evaluations=evaluations)


@dataclass(frozen=True)
class Append:
    """A merge for models of bytes: what clients sent, behind one another."""

    def __call__(self, model, updates, weights):
        return model + b"".join(updates[client] for client in sorted(updates))


@dataclass(frozen=True)
class Planting(Echo):
    """A client's "trees": its key, and the size of the model it was sent."""

    def __call__(self, cohort):
        trees = [b"%d %d;" % (key, len(cohort.opaque)) for key in cohort.keys.tolist()]
        return replace(super().__call__(cohort), leaves={"trees": trees})


@entries
def test_a_registered_algorithm_keeps_all_laws(name):
    all_laws(world_of(name, make(name, 3, 6)))


@entries
@settings(max_examples=8, deadline=None)
@given(
    n=st.integers(3, 9), dim=st.integers(2, 6), seed=st.integers(0, 10**6), count=st.integers(1, 9),
    quorum=st.sampled_from([ALL, Quorum(need=2), Quorum(deadline_s=1.2), Quorum(need=3, deadline_s=0.9)]),
    drop_out=st.sampled_from([0.0, 0.25]),
)  # fmt: skip
@pytest.mark.sampled(4)
def test_it_keeps_them_for_any_cohort_quorum_and_drop_outs(name, n, dim, seed, count, quorum, drop_out):
    problem, count = quadratics(n=n, dim=dim, seed=seed), min(count, n)
    quorum = replace(quorum, need=min(quorum.need, count) if quorum.need else None)
    fleet = Fleet(overhead_s=(0.5 + 0.1 * (np.arange(n) * 7 % 11)).astype(np.float32), drop_out=drop_out)
    on = Sample(count) if seed % 3 else np.arange(count)
    world = world_of(name, make(name, 2, on, quorum=quorum), problem, fleet=fleet)
    for law in (pure, total, deaf_to_duplicates, orderless, onward, conserved, same_everywhere):
        law(world)
    whole = simulate(world).transcript.lines()
    assert simulate(world, chunk=1).transcript.lines() == simulate(world, chunk=2).transcript.lines() == whole


FOLDS = [mean(), mean(weighted=False), mean(step=2.0**-20), coverage(), median(), trimmed_mean(0.2), krum(1),
         krum(1, keep=3), geometric_median(), mixed(median(), 1)]  # fmt: skip
AFTER = [momentum(0.9), momentum(0.5, nesterov=True), adam(), yogi(), adagrad(), bound(0.5), decay(0.9), scale(0.5)]
chains = st.builds(
    lambda before, fold, after: chain(*before, fold, *after),
    st.lists(st.sampled_from([clip(0.5), clip(100.0)]), max_size=2),
    st.sampled_from(FOLDS),
    st.lists(st.sampled_from(AFTER), max_size=3),
)


@settings(max_examples=15, deadline=None)
@given(server=chains, seed=st.integers(0, 10**6))
def test_fedavg_with_any_server_chain_keeps_the_laws(server, seed):
    world = quadratics(n=6, dim=4, seed=seed).world(FedAvg(2, Everyone(), server=server))
    for law in (pure, total, deaf_to_duplicates, orderless, onward, conserved, same_everywhere):
        law(world)
    assert simulate(world, chunk=1).transcript.lines() == simulate(world).transcript.lines()


@pytest.mark.parametrize("fold", FOLDS, ids=repr)
@pytest.mark.sampled(3)
def test_every_fold_keeps_all_laws(fold):
    all_laws(FedAvg(2, Everyone(), server=chain(clip(1.0), fold, momentum(0.9))))


@entries
@pytest.mark.sampled(4)
def test_it_keeps_them_inside_every_wrapper(name):
    inner = make(name, 2, 5)
    wrapped = StopAt(EvaluateOnClients(Evaluate(inner), Sample(2), every=2), metric="loss", patience=9)
    world = world_of(name, wrapped)
    for law in (pure, total, deaf_to_duplicates, orderless, onward, conserved, same_everywhere):
        law(world)


@entries
def test_clients_are_trained_once_per_round_they_are_asked_in(name):
    end = loop(world_of(name, make(name, 3, 5)))
    computed = end.driver.streams.computed or end.driver.devices.computed
    assert len(computed) == {"fedbuff": 9, "fedasync": 3}.get(name, 15)
    assert set(computed.values()) == {1}
