"""Evaluation on clients, after personalisation, and centrally."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from work_cohorts import block, cohort

from fieldfare.core.errors import UsageError
from fieldfare.core.local import ControlVariate, Personal, Twin
from fieldfare.work.dense import mlp
from fieldfare.work.evaluate import Evaluate, FineTune, central_evaluation
from fieldfare.work.net import Training
from fieldfare.work.train import Train

NET = mlp(5, 6, 3)
P = NET.layout.size
OWN = np.random.default_rng(9).standard_normal((3, P), dtype=np.float32)


def loss_of(vector, data, i):
    one = data.part(i, i + 1)
    return NET.evaluate(vector[None], np.zeros(1, np.int64), one)["loss"][0]


def test_every_client_is_measured_on_its_rows_and_empty_ones_weigh_nothing():
    whole = cohort(NET, [9, 0, 40], versions=2)
    out = Evaluate(NET)(whole)
    assert out.leaves == {}
    assert out.state is None
    assert out.metrics["examples"].tolist() == out.weight.tolist() == [9.0, 0.0, 40.0]
    for i in (0, 2):
        assert out.metrics["loss"][i] == loss_of(whole.models[whole.row[i]], whole.data, i)
    assert out.metrics["accuracy"][1] == out.metrics["loss"][1] == 0.0


@pytest.mark.parametrize("local", [(Personal(("2",)),), (Twin(0.1),)])
def test_personal_evaluation_uses_the_clients_own_part_and_new_clients_the_model_sent(local):
    mask = NET.layout.mask(["2"]) if isinstance(local[0], Personal) else np.ones(P, np.bool_)
    whole = replace(cohort(NET, [9, 7, 40]), state=OWN[:, mask], fresh=np.array([False, True, False]))
    out = Evaluate(NET, local)(whole)
    for i in range(3):
        model = whole.models[0].copy()
        if i != 1:
            model[mask] = OWN[i, mask]
        assert out.metrics["loss"][i] == loss_of(model, whole.data, i)


def test_evaluation_ignores_declarations_that_give_no_model_of_ones_own():
    whole = cohort(NET, [9, 7])
    assert Evaluate(NET, (ControlVariate(),)).slots(NET.layout) == {}
    assert Evaluate(NET, (ControlVariate(),))(whole).metrics["loss"].shape == (2,)


def test_held_out_rows_are_measured_when_asked_for():
    whole = cohort(NET, [9, 7])
    held = block([3, 2])
    work = Evaluate(NET, held=True)
    assert work.needs_held
    assert not Evaluate(NET).needs_held
    out = work(replace(whole, held=held))
    assert out.metrics["examples"].tolist() == [3.0, 2.0]
    assert out.metrics["loss"][1] == loss_of(whole.models[0], held, 1)
    with pytest.raises(UsageError, match="held-out share"):
        work(whole)


def test_fine_tuning_measures_before_and_after_local_training():
    training = Training(lr=0.1, batch_size=4, epochs=5)
    whole = cohort(NET, [40, 30])
    whole = replace(whole, held=whole.data)
    out = FineTune(NET, training)(whole)
    assert (out.metrics["loss"] < out.metrics["before_loss"]).all()
    np.testing.assert_array_equal(out.metrics["before_loss"], Evaluate(NET)(whole).metrics["loss"])
    tuned = Train(NET, training)(whole).leaves["delta"][1] + whole.models[0]
    assert out.metrics["loss"][1] == pytest.approx(loss_of(tuned, whole.data, 1), rel=1e-5)
    assert out.leaves == {}
    assert out.state is None
    assert FineTune(NET).needs_held


def test_costs_are_a_third_of_a_step_for_looking_and_a_whole_one_for_tuning():
    sizes = np.array([9, 0])
    looked = Evaluate(NET).cost(sizes, NET.layout, {})
    assert looked.flops.tolist() == [NET.flops() * 3, 0.0]
    assert looked.bytes_down == 4 * P
    assert looked.bytes_up < 100
    assert FineTune(NET, Training(epochs=2)).cost(sizes, NET.layout, {}).flops.tolist() == [NET.flops() * 18, 0.0]


@pytest.mark.parametrize("batch", [1, 7, 50, 4096])
def test_central_evaluation_is_the_mean_over_all_rows_whatever_the_batch(batch):
    data = block([50])
    vector = NET.init(3).vector
    columns = data.client(0)
    got = central_evaluation(NET, columns, batch)(vector)
    whole = NET.evaluate(vector[None], np.zeros(1, np.int64), data)
    assert got["loss"] == pytest.approx(whole["loss"][0], rel=1e-6)
    assert got["accuracy"] == pytest.approx(whole["accuracy"][0])


@pytest.mark.parametrize(
    "columns", [{}, {"x": np.zeros((0, 5)), "y": np.zeros(0)}, {"x": np.zeros((3, 5)), "y": np.zeros(2)}]
)
def test_central_evaluation_refuses_columns_of_no_or_unequal_length(columns):
    with pytest.raises(UsageError, match="one length above 0"):
        central_evaluation(NET, columns)


def test_training_lowers_the_loss_that_central_evaluation_reports():
    whole = cohort(NET, [60])
    rated = central_evaluation(NET, whole.data.client(0))
    delta = Train(NET, Training(lr=0.2, epochs=20))(whole).leaves["delta"][0]
    assert rated(whole.models[0] + delta)["loss"] < 0.9 * rated(whole.models[0])["loss"]
