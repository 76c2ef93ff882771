"""Two levels: FedAvg asks edges as if they were devices; each asks its own devices and answers.

What holds: an edge that answers its exact total gives the bits of the flat run. One that answers the mean, rounded to
float32, gives it up to that rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from fieldfare.algorithms import FedAvg, FedAvgM
from fieldfare.core.effects import Answer, Publish, Run
from fieldfare.core.events import Asked, Gathered
from fieldfare.core.folds import Mean, Total
from fieldfare.core.quorum import Everyone
from fieldfare.sim.simulator import Links
from fieldfare.testing import Fault, laws, loop, quadratics, simulate

PROBLEM = quadratics(n=9)
both = pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])


@dataclass(frozen=True)
class Edge:
    """Answers an `Asked` by one round on `devices`: with the exact total, or (not `exact`) with the mean."""

    devices: tuple[int, ...]
    exact: bool = True

    def init(self, model):
        return model.size

    def step(self, state, event, ctx):
        match event:
            case Asked(id=id_, work=work, model=model, inputs=inputs, config=config, key=key):
                fold = {"delta": Mean(total=self.exact)}
                on = np.array(self.devices, np.int64)
                return state, (
                    Run(work, on, ("below", id_), model, reduce=fold, config=config, inputs=inputs, key=key),
                )
            case Gathered(tag=("below", int(id_)), output=output):
                nothing = Total(np.zeros(state, np.int64), 0, Mean().step, 1.0)
                value = (
                    nothing if "delta" not in output else output["delta"].total if self.exact else output["delta"].value
                )
                return state, (Answer(id_, {"delta": value}, event.weight),)
            case _:
                return state, ()


def models(end) -> list[bytes]:
    """The bits of every model published."""
    effects = [effect for _, _, effects in end.transcript.kept for effect in effects]
    return [effect.model.vector.tobytes() for effect in effects if isinstance(effect, Publish)]


def world(exact: bool = True, problem=PROBLEM, algorithm=FedAvg, **more):
    nodes = {"central": ("central", algorithm(4, ("edge/0", "edge/1")))}
    nodes |= {f"edge/{e}": ("edge", Edge(tuple(range(e, 9, 2)), exact)) for e in (0, 1)}
    return problem.world(nodes, **more)


@both
@pytest.mark.parametrize("algorithm", [FedAvg, FedAvgM])
def test_one_inner_round_is_the_flat_round_bit_for_bit(driver, algorithm):
    flat = driver(PROBLEM.world(algorithm(4, Everyone())), keep=True)
    tree = driver(world(algorithm=algorithm, links=Links(0.2, 1e3)), keep=True)
    assert models(tree) == models(flat)
    events = flat.transcript.events(Gathered), tree.transcript.events(Gathered, "central")
    assert [e.weight for e in events[0]] == [e.weight for e in events[1]]


@both
def test_answering_the_mean_is_the_flat_round_up_to_its_rounding_and_no_closer(driver):
    wide = quadratics(n=9, dim=2000)
    flat = driver(wide.world(FedAvg(4, Everyone()))).model.vector
    rough, exact = (driver(world(exact, wide)).model.vector for exact in (False, True))
    assert np.array_equal(exact, flat)
    assert not np.array_equal(rough, flat)
    np.testing.assert_allclose(rough, flat, rtol=2**-20, atol=2**-22)


@both
def test_devices_that_drop_out_are_the_same_ones_below_an_edge(driver):
    def fleet(plain):
        return replace(plain, population=replace(plain.population, fleet=replace(plain.population.fleet, drop_out=0.5)))

    flat = driver(fleet(PROBLEM.world(FedAvg(4, Everyone()))), keep=True)
    assert models(driver(fleet(world()), keep=True)) == models(flat)


def test_a_device_that_is_late_or_doubled_below_an_edge_changes_no_bit():
    faults = [Fault("lose", "reply", 3.0, client=3), Fault("repeat", "event", 1.0, node="central", times=9)]
    assert models(loop(world(), faults, keep=True)) == models(simulate(world(), keep=True))


def test_the_hierarchy_keeps_all_laws():
    laws(world())
