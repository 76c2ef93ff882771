"""Sub-models in asynchronous runs: rate 1 is FedBuff, versions and levels mix, times are those of the level."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.aggregate import chain, coverage, momentum
from fieldfare.assembly import assemble
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Coverage
from fieldfare.core.local import Heads, Nested, Pruned, Rounded, Scaled, Sent
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
@pytest.mark.sampled(3)
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


LABELS = DATA.columns["y"] % 2
LABELS[DATA.rows] += np.repeat(np.arange(12), np.diff(DATA.offsets)) % 4
SKEWED = ff.Federated({"x": DATA.columns["x"], "y": LABELS}, DATA.offsets, DATA.rows, None, 5)
WRAPPED = {
    "top-k": lambda a: ff.compress(a, share=0.2),
    "int8": lambda a: ff.compress(a, bits=8),
    "frozen": lambda a: ff.freeze(a, names=("0",)),
    "low rank": lambda a: ff.low_rank(a, rank=2),
    "pruned": lambda a: ff.prune(a, share=0.3),
    "heads": lambda a: ff.masked_heads(a),
    "heads alone": lambda a: ff.freeze(ff.masked_heads(a), names=("0", "2")),
    "all at once": lambda a: ff.compress(ff.masked_heads(ff.prune(ff.freeze(a, names=("2",)), share=0.5)), share=0.3),
}
every = pytest.mark.parametrize("name", list(WRAPPED))
LATE = ff.Staleness("polynomial", 0.7)


def wrapped(name, view, rounds=6, model=FAMILY, server=COVER, **more):
    plain = ff.FedBuff(rounds, 8, buffer=3, view=view, **({"server": server} if view is not None else {}), stale=LATE)
    training = ff.Training(lr=more.pop("lr", 0.1), batch_size=6, epochs=2)
    algorithm = plain if name is None else WRAPPED[name](plain)
    return ff.Job(model, SKEWED, algorithm, training, simulated=ff.Simulated(FLEET, **{"workers": 1, **more}))


def bits(one):
    return one.run(runs=None, progress=False).model.vector.tobytes()


@every
@rules
@pytest.mark.sampled(3)
def test_each_compressor_runs_without_rounds_to_the_same_bits_on_any_workers(name, rule):
    view = FAMILY.view(rule)
    whole = bits(wrapped(name, view))
    assert bits(wrapped(name, view, chunk=1)) == whole
    assert bits(wrapped(name, view, workers=2)) == whole
    assert whole != bits(wrapped(None, view))
    assert bits(wrapped(name, view, lr=0.0)) == NET.init(0).vector.tobytes()


@every
@pytest.mark.parametrize("view", [FAMILY.view(Rolling()), None], ids=["rolling", "whole"])
def test_each_compressor_without_rounds_is_the_same_on_the_loopback(name, view):
    world = assemble(wrapped(name, view, model=NET if view is None else FAMILY)).world
    assert loop(world).transcript.lines() == simulate(world).transcript.lines()


class Told:
    """An algorithm, with the answers it got and the models it gave."""

    def __init__(self, inner):
        self.inner, self.seen = inner, []

    def init(self, model):
        return self.inner.init(model)

    def step(self, state, event, ctx):
        after, effects = self.inner.step(state, event, ctx)
        if isinstance(event, Gathered):
            self.seen.append((event, state.model.vector, after.model.vector))
        return after, effects


@pytest.mark.parametrize("name", [None, "pruned", "heads", "heads alone"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_weight_moves_by_the_mean_of_who_trained_it_times_that_of_the_buffer_s_discounts(name, weighted):
    view = FAMILY.view(Rolling())
    world = assemble(wrapped(name, view, server=chain(coverage(weighted=weighted)))).world
    told = {node: (role, Told(one)) for node, (role, one) in world.nodes.items()}
    simulate(replace(world, nodes=told))
    stale, nowhere = 0, 0
    for event, before, after in told["central"][1].seen:
        s = LATE.factor(event.metrics["staleness"].astype(int))
        n = event.weights if weighted else np.ones(len(s))
        delta = event.output["delta"]
        moved = delta.weight > 0
        stale += bool((s < 1).any())
        nowhere += delta.weight.max() < 0.99 * (s * n).sum()
        mean = (s * n).sum() / n.sum()
        np.testing.assert_allclose((after - before)[moved], mean * delta.value[moved], rtol=1e-2, atol=1e-6)
        assert after[~moved].tobytes() == before[~moved].tobytes()
    assert stale > 1
    assert nowhere > 0 or name != "heads alone", "no weight has all of the buffer's clients"


def test_clients_of_other_versions_prune_other_weights_and_each_counts_for_its_own():
    made = wrapped("pruned", None, model=NET)
    assert isinstance(made.algorithm.server.fold, Coverage)
    world = assemble(made).world
    told = {node: (role, Told(one)) for node, (role, one) in world.nodes.items()}
    simulate(replace(world, nodes=told))
    weights = [np.unique(event.output["delta"].weight) for event, *_ in told["central"][1].seen]
    assert max(map(len, weights)) > 2, "some weights have some of the buffer's clients"


def test_what_cannot_go_without_rounds_is_refused_with_the_reason():
    plain = ff.FedBuff(2, 4, buffer=2)
    with pytest.raises(UsageError, match="begins again before it is known whether its last reply counted"):
        ff.compress(plain, share=0.1, feedback=True)
    assert not ff.compress(plain, share=0.1).local[0].feedback
    for local in (Pruned(0.5), Heads()):
        with pytest.raises(UsageError, match="which a mean cannot tell"):
            ff.FedBuff(2, 4, buffer=2, local=(local,))


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
