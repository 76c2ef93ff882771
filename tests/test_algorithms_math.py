"""Each algorithm against something outside itself: fixed points on quadratics, and the papers' formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from algorithm_driver import CONTEXT, Quadratics, answer, drive

from fieldfare.aggregate import chain, clip, coverage, mean, momentum, scale
from fieldfare.aggregate.gather import Gather
from fieldfare.algorithms import (
    Ditto,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBN,
    FedDyn,
    FedNova,
    FedPer,
    FedProx,
    FedRep,
    Krum,
    QFedAvg,
    Scaffold,
)
from fieldfare.core.effects import Run
from fieldfare.core.events import Gathered, Started
from fieldfare.core.folds import Folded, Mean
from fieldfare.core.local import Personal, Proximal, Twin
from fieldfare.core.quorum import Everyone

ALL = Everyone()


def shrink(world: Quadratics) -> np.ndarray:
    """1 - (1 - lr a)**steps: how far a client goes towards its own optimum in one round, `[N, P]`."""
    return 1 - (1 - world.lr * world.a) ** world.steps[:, None]


def fixed_point(world: Quadratics, pull: np.ndarray, share: np.ndarray) -> np.ndarray:
    p = (share / share.sum())[:, None]
    return (p * pull * world.b).sum(0) / (p * pull).sum(0)


def drifting(steps: int | tuple[int, ...] = 20) -> Quadratics:
    """Two clients that disagree on where and how curved the valley is."""
    a = np.array([[1.0, 0.2, 1.0], [0.1, 2.0, 1.0]])
    b = np.array([[1.0, -1.0, 1.0], [-1.0, 1.0, -2.0]])
    return Quadratics(a, b, np.broadcast_to(np.array(steps), 2), np.ones(2), lr=0.1)


def test_one_round_of_fedavg_is_the_weighted_mean_of_the_clients_end_points() -> None:
    world = Quadratics.random(0)
    p = world.weights / world.weights.sum()
    assert drive(FedAvg(1, ALL), world).model == pytest.approx((p[:, None] * shrink(world) * world.b).sum(0), abs=1e-6)


def test_fedavg_goes_to_its_own_fixed_point_which_is_not_the_optimum() -> None:
    world = drifting()
    end = drive(FedAvg(60, ALL), world).model
    assert end == pytest.approx(fixed_point(world, shrink(world), world.weights), abs=1e-5)
    assert np.abs(end - world.optimum()).max() > 0.1


def test_fednova_removes_the_objective_inconsistency_of_unequal_local_steps() -> None:
    world = Quadratics(
        np.ones((2, 3)), np.array([[1.0] * 3, [-1.0] * 3]), np.array([2, 30]), np.array([1.0, 3.0]), 1e-3
    )
    nova, avg = drive(FedNova(400, ALL), world).model, drive(FedAvg(400, ALL), world).model
    per_step = shrink(world) / world.steps[:, None]
    assert nova == pytest.approx(fixed_point(world, per_step, world.weights), abs=1e-3)
    right = world.optimum(world.weights)
    assert np.abs(nova - right).max() < 0.02
    assert np.abs(avg - right).max() > 0.4


def test_fednova_with_equal_steps_is_fedavg() -> None:
    world = Quadratics.random(1)
    world.steps[:] = 4
    nova, avg = drive(FedNova(5, ALL), world).model, drive(FedAvg(5, ALL), world).model
    assert nova == pytest.approx(avg, abs=1e-6)


def test_scaffold_reaches_the_optimum_where_fedavg_drifts() -> None:
    world = drifting()
    fair = drive(FedAvg(80, ALL, server=chain(mean(weighted=False))), world).model
    controlled = drive(Scaffold(80, ALL), world).model
    assert np.abs(controlled - world.optimum()).max() < 1e-4
    assert np.abs(fair - world.optimum()).max() > 1000 * np.abs(controlled - world.optimum()).max()


def test_scaffold_with_zero_control_variates_is_unweighted_fedavg() -> None:
    world = Quadratics.random(2)
    first = drive(Scaffold(1, ALL), world).models[0]
    assert first.tobytes() == drive(FedAvg(1, ALL, server=chain(mean(weighted=False))), world).models[0].tobytes()


def test_scaffold_moves_its_variate_by_the_share_of_clients_that_answered() -> None:
    world = Quadratics.random(3, n=8)
    algorithm = Scaffold(1, 2)
    state, (run,) = algorithm.step(algorithm.init(world.model()), Started({}, 8), CONTEXT)
    assert isinstance(run, Run)
    assert run.inputs["c"].tolist() == [0.0] * 5
    gathered = answer(run, world, algorithm.local)
    state, _ = algorithm.step(state, gathered, CONTEXT)
    assert state.rule == pytest.approx(2 / 8 * gathered.output["dc"].value)


def test_scaffold_over_named_clients_counts_those_as_all_there_are() -> None:
    world = Quadratics.random(3, n=8)
    algorithm = Scaffold(1, np.array([0, 3]))
    state, (run,) = algorithm.step(algorithm.init(world.model()), Started({}, 8), CONTEXT)
    assert isinstance(run, Run)
    gathered = answer(run, world, algorithm.local)
    state, _ = algorithm.step(state, gathered, CONTEXT)
    assert state.rule == pytest.approx(gathered.output["dc"].value)


def test_scaffold_keeps_c_the_mean_of_the_clients_variates() -> None:
    world = Quadratics.random(4, n=6)
    record = drive(Scaffold(25, 3), world)
    variates = np.array([world.slots["c"].get(i, np.zeros(5)) for i in range(6)])
    assert record.states[-1].rule == pytest.approx(variates.mean(0), abs=1e-5)


@pytest.mark.parametrize("cohort", [ALL, 3])
def test_feddyn_reaches_the_exact_optimum_of_clients_that_differ(cohort: object) -> None:
    world = Quadratics.random(5, n=6)
    end = drive(FedDyn(600, cohort, alpha=1.0), world).model  # type: ignore[arg-type]
    assert end == pytest.approx(world.optimum(), abs=1e-4)
    avg = drive(FedAvg(600, ALL, server=chain(mean(weighted=False))), world).model
    assert np.abs(avg - world.optimum()).max() > 0.01


def test_feddyn_keeps_h_the_mean_of_the_clients_gradients() -> None:
    world = Quadratics.random(6, n=6)
    record = drive(FedDyn(10, 3, alpha=0.5), world)
    kept = np.array([world.slots["h"].get(i, np.zeros(5)) for i in range(6)])
    assert record.states[-1].rule == pytest.approx(kept.mean(0), abs=1e-5)


def test_qfedavg_of_power_zero_is_the_unweighted_fedavg_step() -> None:
    world = Quadratics.random(7)
    fair, avg = drive(QFedAvg(4, ALL, q=0.0), world), drive(FedAvg(4, ALL, server=chain(mean(weighted=False))), world)
    assert np.array(fair.models) == pytest.approx(np.array(avg.models), abs=1e-6)


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0])
def test_a_step_of_qfedavg_is_the_papers_formula(q: float) -> None:
    world = Quadratics.random(8)
    big = 1 / world.lr
    gradients = big * shrink(world) * world.b
    losses = np.array([world.loss(i, np.zeros(5)) for i in range(8)])
    h = q * losses ** (q - 1) * (gradients**2).sum(1) + big * losses**q
    expected = (losses[:, None] ** q * gradients).sum(0) / h.sum()
    assert drive(QFedAvg(1, ALL, q=q), world).model == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_qfedavg_evens_out_the_losses() -> None:
    world = Quadratics(np.ones((5, 3)), np.array([[1.0] * 3] * 4 + [[-1.0] * 3]), np.full(5, 3), np.ones(5))
    ends = [drive(QFedAvg(60, ALL, q=q), world).model for q in (0.0, 1.0, 3.0)]
    spread = [np.ptp([world.loss(i, end) for i in range(5)]) for end in ends]
    assert spread[0] > 1.5 * spread[1] > 1.5 * spread[2]


def test_fedprox_of_zero_is_fedavg() -> None:
    assert replace(FedProx(3, 5, mu=0.0), name="fedavg") == FedAvg(3, 5)


def test_fedprox_declares_its_pull_and_clients_go_less_far() -> None:
    assert FedProx(3, 5, mu=0.3).local == (Proximal(0.3),)
    world = Quadratics.random(9)
    world.steps[:] = 50
    near, far = drive(FedProx(1, ALL, mu=10.0), world).model, drive(FedAvg(1, ALL), world).model
    assert np.linalg.norm(near) < 0.5 * np.linalg.norm(far)


def test_momentum_of_zero_is_fedavg_bit_for_bit() -> None:
    world = Quadratics.random(10)
    assert [m.tobytes() for m in drive(FedAvgM(4, ALL, beta=0.0), world).models] == [
        m.tobytes() for m in drive(FedAvg(4, ALL), world).models
    ]


def test_server_momentum_in_the_long_run_multiplies_a_constant_delta() -> None:
    algorithm = FedAvgM(300, 2, beta=0.9)
    world = Quadratics.random(11)
    state, _ = algorithm.step(algorithm.init(world.model()), Started({}, 8), CONTEXT)
    for r in range(1, 301):
        before = state.model.vector
        delta = {"delta": Folded(np.full(5, 0.01, np.float32), 2.0)}
        state, _ = algorithm.step(state, Gathered(r, delta, 2.0, np.arange(2), np.ones(2), {}), CONTEXT)
    assert state.model.vector - before == pytest.approx(0.1, rel=1e-3)


def test_the_first_step_of_fedadam_is_the_papers() -> None:
    world = Quadratics.random(12)
    delta = drive(FedAvg(1, ALL), world).model
    v = 0.99 * 1e-3**2 + 0.01 * delta**2
    expected = 0.5 * (0.1 * delta) / (np.sqrt(v) + 1e-3)
    assert drive(FedAdam(1, ALL, lr=0.5), world).model == pytest.approx(expected, rel=1e-5)


def test_ditto_trains_the_global_model_of_fedavg_bit_for_bit_and_twins_stay_between() -> None:
    world = Quadratics.random(13)
    plain, ditto = drive(FedAvg(30, ALL), world), drive(Ditto(30, ALL, lam=1.0), world)
    assert [m.tobytes() for m in plain.models] == [m.tobytes() for m in ditto.models]
    assert Ditto(1, 1, lam=0.5).local == (Twin(0.5),)
    twin, own = world.slots["twin"][0], world.b[0]
    assert np.linalg.norm(twin - own) < np.linalg.norm(ditto.model - own)


def test_personal_tensors_stay_as_they_began_at_the_server_and_fit_each_device() -> None:
    world = Quadratics.random(14)
    world.steps[:] = 30
    record = drive(FedPer(20, ALL, personal=["head"]), world)
    assert record.model[3:].tolist() == [0.0, 0.0]
    assert world.slots["personal"][4][3:] == pytest.approx(world.b[4][3:], abs=1e-2)
    assert (record.model[:3] != 0).all()


def test_personal_variants_declare_what_stays_on_the_device() -> None:
    assert FedPer(1, 1, personal=["head"]).local == (Personal(("head",)),)
    assert FedRep(1, 1, personal=["head"], head_epochs=3).local == (Personal(("head",), 3),)
    assert FedBN(1, 1, norms=["norm1", "norm2"]).local == (Personal(("norm1", "norm2")),)
    assert {f.slot for f in (FedPer(1, 1, personal=["a"]), FedBN(1, 1, norms=["a"]))} == {"personal"}


def test_krum_trains_where_the_mean_is_led_astray() -> None:
    world = Quadratics.random(15, n=9)
    world.a[:], world.steps[:] = 1.0, 5
    world.b[:] = 1.0 + 0.01 * world.b
    world.b[7:] = -1000.0
    honest = drive(Krum(30, ALL, byzantine=2), world).model
    assert honest == pytest.approx(1.0, abs=0.1)
    assert np.abs(drive(FedAvg(30, ALL), world).model).max() > 10


def test_a_clip_before_the_mean_bounds_the_step_of_the_model() -> None:
    world = Quadratics.random(16)
    world.b *= 100
    record = drive(FedAvg(3, ALL, server=chain(clip(0.5), mean(), scale(0.1))), world)
    steps = np.diff([np.zeros(5), *record.models], axis=0)
    assert (np.linalg.norm(steps, axis=1) <= 0.05 * (1 + 1e-5)).all()


def test_coverage_without_sub_models_is_the_mean() -> None:
    world = Quadratics.random(17)
    chains = [chain(fold, momentum(0.5)) for fold in (coverage(), mean())]
    a, b = (drive(FedAvg(4, ALL, server=server), world) for server in chains)
    assert a.model == pytest.approx(b.model, abs=1e-6)


def test_the_server_chain_works_behind_any_rule() -> None:
    world = Quadratics.random(18)
    whole = drive(Scaffold(1, ALL), world).model
    half = drive(Scaffold(1, ALL, server=chain(mean(weighted=False), scale(0.5))), world).model
    assert half == pytest.approx(0.5 * whole, abs=1e-6)


def test_fednova_averages_tau_as_its_chain_averages_deltas() -> None:
    for weighted in (True, False):
        fold = FedNova(1, 1, server=chain(mean(weighted=weighted))).rule.folds()["tau"]
        assert isinstance(fold, Mean)
        assert fold.weighted is weighted


def test_fednova_takes_thousands_of_local_steps_from_large_cohorts() -> None:
    fold = FedNova(1, 1).rule.folds()["tau"]
    gather = Gather({"tau": fold}, 100)
    assert not gather.check({"tau": np.full((100, 1), 5000.0, np.float32)}, np.full(100, 10_000.0)).any()
