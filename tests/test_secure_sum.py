"""Secure sums: bit for bit the plain fold over those whose words came, and nothing said of who had which part."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fieldfare as ff
from fieldfare.aggregate import adam, chain, clip, coverage, momentum
from fieldfare.aggregate.gather import Gather
from fieldfare.aggregate.masking import folded, masked, public, rebuild, shares, unmasked, words_of
from fieldfare.algorithms import FedAvg, Krum, Scaffold, innermost
from fieldfare.algorithms.secure_sum import SecureSum
from fieldfare.assembly import assemble
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Coverage, Mean, ModSum
from fieldfare.core.quorum import Everyone, Quorum, Sample
from fieldfare.fleet.fleet import Fleet
from fieldfare.testing import Fault, checks, digest, laws, loop, quadratics, simulate
from fieldfare.work.masked import secured
from fieldfare.work.submodel import MultiRate, Prefix, RandomWindow, Rolling, TopNorm, submodels

PROBLEM = quadratics(n=8)
DATA = replace(ff.synthetic(clients=8, classes=5, features=16, seed=3, min_examples=12), test=None)
NET = ff.mlp(16, 12, 8, 5)
FAMILY = submodels(NET, (1, 0.5, 0.25))
COVER = chain(coverage())
RULES = [Prefix(), Rolling(), RandomWindow(each=True), TopNorm(), MultiRate()]
both = pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])


def world(algorithm, fleet=None, lr=0.1):
    """A world of sub-models, whose training is under masks where `algorithm` says so."""
    simulated = ff.Simulated(fleet or Fleet(), workers=1)
    return assemble(ff.Job(FAMILY, DATA, algorithm, ff.Training(lr=lr, batch_size=6), simulated=simulated)).world


def toy(algorithm, **more):
    train = PROBLEM.work(*innermost(algorithm).local)
    return PROBLEM.world(algorithm, works=secured(algorithm, {"train": train}, PROBLEM.model.size), **more)


def mixed(on=6, rounds=3, rule=None, **more):
    return FedAvg(rounds, on, server=more.pop("server", COVER), view=FAMILY.view(rule, assign=(0, 1, 2, 1)), **more)


@given(
    st.integers(1, 20), st.lists(st.sets(st.integers(0, 19)), min_size=1, max_size=5), st.integers(0, 99),
    st.sampled_from([True, False]),
)  # fmt: skip
def test_unmasked_words_are_the_fold_of_the_parts_bit_for_bit(size, had, seed, weighted):
    dice, fold = np.random.default_rng(seed), Coverage(weighted)
    index = [np.array(sorted(at for at in one if at < size), np.int64) for one in had]
    rows = [dice.standard_normal(len(one)).astype(np.float32) for one in index]
    weights, n = dice.integers(0, 9, len(had)).astype(np.float64), len(had)
    gather = Gather({"delta": fold}, n)
    for i in range(n):
        gather.add(np.array([i]), {"delta": rows[i][None]}, weights[[i]], index[i], size)
    plain = gather.finish()["delta"]
    keys = {i: public(1000 + i) for i in range(n)}
    sums = Gather({"masked": ModSum(63)}, n)
    for i in range(n):
        words = words_of({"delta": rows[i][None]}, weights[[i]], {"delta": fold}, index[i], size, 63, n)[0]
        sums.add(np.array([i]), {"masked": masked(words, i, 1000 + i, 7 + i, keys, 63)[None]}, np.ones(1))
    total = sums.finish()["masked"].value
    found = folded(unmasked(total, range(n), keys, {i: 7 + i for i in range(n)}, 63), {"delta": fold}, {"delta": size})
    assert found["delta"].value.tobytes() == plain.value.tobytes()
    assert found["delta"].weight.tolist() == plain.weight.tolist()


@given(st.integers(0, 2**60), st.sets(st.integers(0, 10**6), min_size=2, max_size=6), st.integers(2, 6))
def test_any_enough_shares_bring_the_secret_back(value, ids, need):
    ids, need = sorted(ids), min(need, len(ids))
    points = dict(zip(ids, shares(value, ids, need, 3), strict=True))
    assert rebuild(dict(list(points.items())[-need:])) == value


@both
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_with_sub_models_it_is_the_plain_coverage_fold_bit_for_bit(driver, rule):
    plain = mixed(rule=rule)
    assert digest(driver(world(SecureSum(plain))).model) == digest(driver(world(plain)).model)


@both
@pytest.mark.parametrize(
    "around",
    [
        partial(ff.prune, share=0.4), partial(ff.freeze, names=("2",)), ff.masked_heads,
        partial(ff.compress, share=0.2), partial(ff.low_rank, rank=2), partial(ff.quantise, bits=4),
    ],
)  # fmt: skip
def test_what_clients_leave_out_of_their_parts_counts_for_nobody_under_masks_either(driver, around):
    plain = around(mixed(Everyone(), server=chain(clip(0.5), coverage(), momentum(0.9))))
    assert digest(driver(world(SecureSum(plain))).model) == digest(driver(world(plain)).model)


@both
def test_server_chains_row_maps_and_cohorts_of_everyone_are_the_same(driver):
    for server in (chain(clip(0.5), coverage(), momentum(0.9)), chain(coverage(weighted=False), adam(0.9, 0.99, 1e-3))):
        plain = mixed(Everyone(), server=server)
        assert digest(driver(world(SecureSum(plain))).model) == digest(driver(world(plain)).model)


@both
def test_without_sub_models_it_is_the_plain_mean_and_further_leaves_are_summed_too(driver):
    for plain in (FedAvg(3, 5), Scaffold(3, 5), ff.FedNova(2, 5), ff.FedProx(2, Everyone(), mu=0.1), ff.QFedAvg(2, 4)):
        assert digest(driver(toy(SecureSum(plain))).model) == digest(driver(toy(plain)).model)


def test_the_drivers_say_the_same_event_by_event():
    one = world(SecureSum(mixed()))
    assert loop(one).transcript.lines() == simulate(one).transcript.lines()


@both
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_drop_outs_it_is_the_plain_fold_over_those_whose_words_came(driver, seed):
    fleet = Fleet(drop_out=0.15)
    end = driver(replace(world(SecureSum(mixed(Everyone(), 1), need=3), fleet), seed=seed), keep=True)
    (alive,) = [e.clients for e in end.transcript.events(Gathered) if e.tag[1] == "masked"]
    assert 3 <= len(alive) < 8
    assert digest(end.model) == digest(driver(replace(world(mixed(alive, 1)), seed=seed)).model)


@pytest.mark.parametrize("phase", ["keys", "shares", "masked", "unmask"])
def test_a_message_lost_in_one_phase_loses_that_client_and_no_bit_of_the_others(phase):
    end = loop(world(SecureSum(mixed(Everyone(), 1))), [Fault("lose", "reply", client=3, tag=("secure", phase, 1))])
    on = np.array([c for c in range(8) if c != 3 or phase == "unmask"])
    assert digest(end.model) == digest(loop(world(mixed(on, 1))).model)


@both
def test_a_straggler_under_masks_is_late_and_its_masks_are_taken_off(driver):
    slow = np.array([2e6] * 5 + [1e3] + [2e6] * 2, np.float32)
    plain = mixed(Everyone(), 2, quorum=Quorum(deadline_s=5.0))
    end = driver(world(SecureSum(plain), Fleet(slow)), keep=True)
    counted = [e.clients.tolist() for e in end.transcript.events(Gathered) if e.tag[1] == "masked"]
    assert counted == [[0, 1, 2, 3, 4, 6, 7]] * 2
    assert digest(end.model) == digest(driver(world(mixed(np.array(counted[0]), 2))).model)


class Told:
    """An algorithm, and the answers it was told."""

    def __init__(self, inner):
        self.inner, self.answers = inner, []

    def init(self, model):
        return self.inner.init(model)

    def step(self, state, event, ctx):
        self.answers += [event] if isinstance(event, Gathered) else []
        return self.inner.step(state, event, ctx)


@pytest.mark.parametrize("lost", [(3,), (0, 3, 6), (0, 3, 5, 6)])
def test_the_inner_algorithm_is_told_who_is_gone_and_of_half_no_sum(lost):
    told = Told(mixed(Everyone(), 1))
    end = loop(
        world(SecureSum(told)), [Fault("lose", "reply", client=one, tag=("secure", "masked", 1)) for one in lost]
    )
    (answer,) = told.answers
    if len(lost) == 4:  # more than half of the eight must stay
        assert (dict(answer.output), digest(end.model)) == ({}, digest(NET.init(0)))
        return
    assert answer.clients.tolist() == [one for one in range(8) if one not in lost]
    assert answer.missing["drop-out"].tolist() == [*lost]
    plain = Told(mixed(answer.clients, 1))
    loop(world(plain))
    assert answer.weight == plain.answers[0].weight


@both
def test_too_few_to_the_end_lose_the_round_and_the_run_goes_on(driver):
    end = driver(world(SecureSum(mixed(Sample(4), 2), need=5)))
    assert (end.reason, digest(end.model)) == ("rounds", digest(NET.init(0)))


def test_the_server_sees_neither_an_update_nor_who_had_which_part():
    end = simulate(world(SecureSum(mixed(Everyone(), 1))), keep=True)
    events = end.transcript.events(Gathered)
    assert [event.tag[1] for event in events] == ["keys", "shares", "masked", "unmask"]
    words = events[2].output["masked"].value
    assert words.shape == (2 * NET.layout.size,)
    assert np.count_nonzero(words) == len(words)
    assert words.max() > 2**60
    assert events[2].weights.tolist() == [1.0] * 8
    assert not events[2].metrics
    alone = loop(world(SecureSum(mixed(Everyone(), 1))))
    rows = {
        client: reply.leaves["masked"][0]
        for (_, client), (_, reply) in alone.driver.devices.cache.items() if "masked" in reply.leaves
    }  # fmt: skip
    index = FAMILY.view().index(2)
    outside = np.setdiff1d(np.arange(NET.layout.size), index)
    for row in rows.values():
        high = (row >> np.uint64(62)).astype(float)
        assert abs(high[outside].mean() - 0.5) < 0.2
        assert len(np.unique(row)) == len(row)


def test_all_send_as_much_whatever_their_part_and_words_are_counted():
    algorithm = SecureSum(mixed(np.array([0, 1, 2]), 1), bits=40)
    work = world(algorithm).works["train"]
    config = {"secure": "masked", "among": 3, "bits": 40, "round": 1}
    sizes, view = np.array([12]), FAMILY.view()
    told = [work.cost(sizes, view.layout(level), config) for level in range(3)]
    assert {(float(one.bytes_down), float(one.bytes_up)) for one in told} == {
        (4.0 * NET.layout.size + 48, 5.0 * 2 * NET.layout.size)
    }
    assert told[2].flops < 0.5 * told[0].flops


def test_fewer_bits_with_a_coarser_step_are_the_plain_fold_of_that_step():
    plain = mixed(server=chain(coverage(step=2.0**-16)))
    found = simulate(world(SecureSum(plain, bits=40))).model.vector
    assert found.tobytes() == simulate(world(plain)).model.vector.tobytes()
    fine = simulate(world(mixed())).model.vector
    assert 0 < np.abs(found - fine).max() < 1e-3


def test_who_sends_what_does_not_fit_counts_for_nothing():
    fold = {"delta": Mean()}
    rows = np.array([[1.0, 2.0], [np.nan, 1.0], [3e9, 1.0]], np.float32)
    words = words_of({"delta": rows}, np.array([2.0, 1.0, 1.0]), fold, None, 2, 63, 3)
    assert words.view(np.int64).tolist() == [[2 << 32, 4 << 32, 2], [0, 0, 0], [0, 0, 0]]
    end = simulate(world(SecureSum(mixed(Everyone(), 2)), lr=1e30))
    assert np.isfinite(end.model.vector).all()


def test_it_keeps_all_laws_alone_and_evaluated():
    laws(toy(SecureSum(FedAvg(2, 5))))
    checks.durable(world(SecureSum(mixed(rounds=1))))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SecureSum(ff.FedBuff(2, 4, buffer=2)), "without rounds"),
        (lambda: SecureSum(ff.FedAsync(2, 4)), "without rounds"),
        (lambda: SecureSum(ff.HADFL(2)), "no sum over clients at a server"),
        (lambda: SecureSum(Krum(2, 5, byzantine=1)), "which secure aggregation hides"),
        (lambda: SecureSum(FedAvg(2, 4), need=1), "hide nobody"),
        (lambda: SecureSum(FedAvg(2, 4), bits=16), "32 to 63"),
    ],
)
def test_what_cannot_be_summed_under_masks_is_refused_in_one_line(make, says):
    with pytest.raises(UsageError, match=says) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_a_run_without_training_is_refused():
    bare = ff.Job(FAMILY, DATA, SecureSum(mixed()), simulated=ff.Simulated(workers=1, train=False))
    with pytest.raises(UsageError, match="keys that clients compute"):
        bare.run(None, progress=False)


def test_a_job_runs_with_it_is_recorded_and_stopped_early(tmp_path):
    digits = ff.data.digits(clients=8, partition=ff.iid())
    family = submodels(ff.mlp(64, 24, 10), (1, 0.5))
    algorithm = SecureSum(ff.FedAvg(20, 4, server=COVER, view=family.view()))
    job = ff.Job(family, digits, algorithm, ff.Training(lr=0.3, batch_size=16), stop_at=ff.StopAt(at_least=0.5))
    found = job.run(tmp_path, progress=False)
    assert found.final["accuracy"] >= 0.5
