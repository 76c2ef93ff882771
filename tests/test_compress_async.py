"""Sub-models in asynchronous runs: rate 1 is FedBuff, versions and levels mix, times are those of the level."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.aggregate import chain, coverage, momentum
from fieldfare.assembly import assemble
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Nested, Rounded, Scaled, Sent
from fieldfare.fleet.fleet import Fleet
from fieldfare.run import run
from fieldfare.testing import loop, simulate
from fieldfare.work.submodel import MultiRate, Prefix, Rolling, submodels

DATA = ff.synthetic(clients=12, classes=5, features=16, seed=3, min_examples=12, log_mean=1.0, log_sigma=0.5)
NET = ff.mlp(16, 12, 8, 5)
FAMILY = submodels(NET, (1, 0.5, 0.25))
FLEET = Fleet(1e5 * (1.0 + np.arange(12) % 5), 1e6, 1e6, 0.01, noise=0.3)
COVER = chain(coverage(weighted=False))
rules = pytest.mark.parametrize("rule", [Prefix(), Rolling(), MultiRate()], ids=lambda rule: type(rule).__name__)


def job(view=None, server=COVER, rounds=8, lr=0.1, chunk=None, workers=1, model=FAMILY, **more):
    server = {"server": server} if view is not None else {}
    algorithm = ff.FedBuff(rounds, 6, buffer=3, view=view, **server, **more)
    training = ff.Training(lr=lr, batch_size=6, epochs=2)
    return ff.Job(model, DATA, algorithm, training, simulated=ff.Simulated(FLEET, workers=workers, chunk=chunk))


def ran(*args, **more):
    return job(*args, **more).run(runs=None, progress=False)


def test_rate_one_for_everyone_is_fedbuff_to_the_last_bits():
    one, plain = ran(FAMILY.view(assign=(0,))), ran(model=NET)
    assert one.model.vector.tobytes() == plain.model.vector.tobytes()
    assert one.summary["virtual_s"] == plain.summary["virtual_s"]


@rules
def test_zero_training_lifts_to_exactly_zero(rule):
    assert ran(FAMILY.view(rule), lr=0.0).model.vector.tobytes() == NET.init(0).vector.tobytes()


@rules
def test_neither_chunks_nor_workers_change_a_bit(rule):
    whole = ran(FAMILY.view(rule)).model.vector.tobytes()
    assert ran(FAMILY.view(rule), chunk=1).model.vector.tobytes() == whole
    assert ran(FAMILY.view(rule), workers=2).model.vector.tobytes() == whole
    assert whole != ran(model=NET).model.vector.tobytes()


@pytest.mark.parametrize("server", [COVER, chain(coverage(weighted=False), momentum(0.5)), chain(coverage())])
def test_what_nobody_had_stays_as_it_was(server):
    view = FAMILY.view(assign=(1, 2))
    start, end = NET.init(0).vector, ran(view, server=server).model.vector
    had = np.zeros(len(start), bool)
    had[view.index(1)] = True
    assert end[~had].tobytes() == start[~had].tobytes()
    assert (end[had] != start[had]).mean() > 0.6


def test_smaller_levels_are_sooner_done_and_send_less():
    one, small = ran(FAMILY.view(assign=(0,))), ran(FAMILY.view(assign=(2,)))
    assert small.summary["virtual_s"] < 0.6 * one.summary["virtual_s"]
    assert small.summary["bytes_up"] < 0.3 * one.summary["bytes_up"]


@rules
def test_a_stopped_run_is_resumed_to_the_same_bits(rule, tmp_path):
    whole = ran(FAMILY.view(rule)).model.vector.tobytes()
    seen = []

    def stop(row):
        seen.append(row)
        if len(seen) == 4:
            raise KeyboardInterrupt

    half = replace(job(FAMILY.view(rule)), callbacks=(stop,))
    with pytest.raises(KeyboardInterrupt):
        run(half, tmp_path, progress=False)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink())
    again = ff.resume_run(folder, job=job(FAMILY.view(rule)), progress=False)
    assert again.model.vector.tobytes() == whole


@pytest.mark.parametrize("local", [Nested((1, 0.5, 0.25), back=0.4), Scaled(), Rounded(6), Sent(0.2, 8, False)])
def test_clients_may_train_nested_or_send_little(local):
    found = ran(FAMILY.view(), local=(local,)).model.vector.tobytes()
    assert found != ran(FAMILY.view()).model.vector.tobytes()
    assert ran(FAMILY.view(), local=(local,), chunk=1).model.vector.tobytes() == found
    assert ran(FAMILY.view(), local=(local,), lr=0.0).model.vector.tobytes() == NET.init(0).vector.tobytes()
    with pytest.raises(UsageError, match="needs rounds, or keeps client state"):
        ff.FedBuff(2, 4, buffer=2, local=(Sent(0.2, feedback=True),))


def test_a_fold_that_cannot_lift_is_refused():
    with pytest.raises(UsageError, match="Mean cannot fold sub-models"):
        ff.FedBuff(2, 4, buffer=2, view=FAMILY.view())


@rules
def test_one_by_one_on_the_loopback_it_is_the_same_to_the_bit(rule):
    world = assemble(job(FAMILY.view(rule), server=chain(coverage(weighted=False), momentum(0.5)))).world
    assert loop(world).transcript.lines() == simulate(world).transcript.lines()
