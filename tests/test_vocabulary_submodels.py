"""Mixed sub-models: three nested prefixes of the vector, averaged coordinate by coordinate over who had them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from fieldfare.aggregate import chain, coverage, momentum
from fieldfare.algorithms import FedAvg
from fieldfare.core.block import Block
from fieldfare.core.effects import Publish
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered
from fieldfare.core.params import Layout, View
from fieldfare.core.quorum import Everyone
from fieldfare.testing import digest, laws, loop, quadratics, simulate
from fieldfare.testing.toys import Parabola
from fieldfare.work.net import Training
from fieldfare.work.train import Train

PROBLEM = quadratics(n=9, dim=8)
SIZES = (2, 4, 8)
both = pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])


@dataclass(frozen=True)
class Nested:
    """Client i gets level `levels[i % len(levels)]`: the first 2, 4 or all 8 parameters."""

    levels: tuple[int, ...] = (0, 1, 2)

    def plan(self, clients):
        return np.array(self.levels)[clients % len(self.levels)]

    def index(self, level):
        return np.arange(SIZES[level])

    def layout(self, level):
        return PROBLEM.model.layout if level == 2 else Layout.of({"body": (SIZES[level],)})


@dataclass(frozen=True)
class Prefix:
    """Local training of whatever prefix is sent, on the same prefix of the examples."""

    def _train(self, layout: Layout) -> Train:
        return Train(Parabola(layout), Training(lr=0.1, batch_size=4))

    def __call__(self, cohort):
        x = cohort.data.columns["x"][:, : cohort.layout.size]
        data = Block({"x": x}, cohort.data.rows, cohort.data.offsets)
        return self._train(cohort.layout)(replace(cohort, data=data))

    def cost(self, examples, layout, config):
        return self._train(layout).cost(examples, layout, config)

    def slots(self, layout):
        return {}


def world(levels, on=None, rounds: int = 3, server=None):
    on, server = Everyone() if on is None else on, server or chain(coverage())
    algorithm = FedAvg(rounds, on, server=server, view=Nested(levels))
    return PROBLEM.world(algorithm, works={"train": Prefix()})


def published(end):
    return [e.model.vector for _, _, effects in end.transcript.kept for e in effects if isinstance(e, Publish)]


def test_the_toy_is_a_view():
    assert isinstance(Nested(), View)


@both
@pytest.mark.parametrize("server", [None, chain(coverage(), momentum(0.5))])
def test_coordinates_nobody_had_stay_as_they_were(driver, server):
    for on, level in ((np.array([0, 3, 6]), 0), (np.array([0, 1, 4]), 1)):
        vectors = published(driver(world((0, 1, 2), on, server=server), keep=True))
        for vector in vectors:
            assert vector[SIZES[level] :].tobytes() == PROBLEM.model.vector[SIZES[level] :].tobytes()
        assert (vectors[-1][: SIZES[level]] != PROBLEM.model.vector[: SIZES[level]]).all()


@both
def test_rate_one_for_everyone_is_fedavg_bit_for_bit(driver):
    plain = driver(PROBLEM.world(FedAvg(3, Everyone()), works={"train": Prefix()}), keep=True)
    assert [v.tobytes() for v in published(driver(world((2,)), keep=True))] == [v.tobytes() for v in published(plain)]


@both
def test_each_coordinate_is_the_mean_over_those_who_had_it(driver):
    (event,) = driver(world((0, 1, 2), rounds=1), keep=True).transcript.events(Gathered)
    sizes, clients = PROBLEM.data.sizes, np.arange(9)
    alone = {}
    for c in clients:
        (one,) = driver(world((0, 1, 2), np.array([c]), rounds=1), keep=True).transcript.events(Gathered)
        alone[c] = one.output["delta"].value
    for j in range(8):
        having = [c for c in clients if SIZES[c % 3] > j]
        weight = sizes[having].sum()
        assert event.output["delta"].weight[j] == weight
        mean = sum(float(alone[c][j]) * sizes[c] for c in having) / weight
        assert event.output["delta"].value[j] == pytest.approx(mean, abs=1e-6)


@both
def test_smaller_models_cost_fewer_bytes(driver):
    def down(levels):
        end = driver(world(levels, rounds=1))
        return end.driver.bytes_down if driver is loop else end.driver.progress.bytes_down

    assert (down((0,)), down((2,)), down((0, 1, 2))) == (9 * 8, 9 * 32, 3 * (8 + 16 + 32))


def test_a_plain_mean_refuses_sub_models_in_one_line():
    with pytest.raises(UsageError, match=r"use Coverage\(\) for a Run with a view"):
        simulate(world((0, 1, 2), server=FedAvg(1, 1).server))


def test_sub_models_keep_all_laws():
    laws(world((0, 1, 2)))
    assert digest(simulate(world((0, 1, 2))).model) != digest(simulate(world((2,))).model)
