"""How a net finds its way on a machine: asked for, measured once, kept to by a run that is gone on with."""

import json
from dataclasses import replace

import pytest

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.run import _check_same
from fieldfare.store.runs import RunFolder
from fieldfare.work.native import choose, timing
from fieldfare.work.native.modules import core

pytestmark = pytest.mark.skipif(core() is None, reason="the compiled core is not built here")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Nothing asked for, nothing settled, a cache of its own."""
    monkeypatch.setenv("FIELDFARE_PATH", "auto")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choose, "_settled", {})
    return tmp_path


def job(net, **more):
    return ff.Job(
        model=net, data=ff.data.digits(clients=10), algorithm=ff.FedAvg(rounds=2, cohort=4),
        training=ff.Training(lr=0.3, batch_size=10), **more,
    )  # fmt: skip


def measured(monkeypatch, **rates):
    calls = []
    monkeypatch.setattr(timing, "rates_of", lambda *a: calls.append(a) or dict(rates))
    return calls


@pytest.mark.parametrize(
    ("rates", "path"),
    [
        ({"native": 100.0, "stacked": 10.0}, "native"),
        ({"native": 100.0, "stacked": 104.0}, "native"),
        ({"native": 100.0, "stacked": 106.0}, "stacked"),
    ],
)
def test_the_faster_way_is_taken_and_remembered_for_the_machine(home, monkeypatch, rates, path):
    calls = measured(monkeypatch, **rates)
    net = ff.mlp(64, 7, 10)
    timing.settle_fastest(net, ff.Training(), ff.data.digits(clients=10))
    assert (net.on_core is not None) == (path == "native")
    told = net.describe()
    assert told["path"] == path
    assert "measured here" in told["why"]
    assert len(calls) == 1
    kept = json.loads((home / "fieldfare" / "paths.json").read_text())
    assert kept[timing.machine()][net.native.key]["path"] == path
    choose._settled.clear()
    timing.settle_fastest(ff.mlp(64, 7, 10), ff.Training(), ff.data.digits(clients=10))
    assert len(calls) == 1
    assert choose.settled(net.native.key).path == path


def test_both_ways_are_really_measured(home):
    net = ff.mlp(64, 7, 10)
    rates = timing.rates_of(
        net, net.native.key, ("native", "stacked"), ff.Training(), ff.data.digits(clients=10).block([0, 1])
    )
    assert set(rates) == {"native", "stacked"}
    assert min(rates.values()) > 1
    assert choose.settled(net.native.key) is None


@pytest.mark.parametrize("spoilt", ["", "{", "[]", '{"x": 3}', '{"M": {"K": {"path": "rm", "rates": {}}}}'])
def test_a_spoilt_memory_only_costs_the_measurement(home, monkeypatch, spoilt):
    net = ff.mlp(64, 7, 10)
    file = home / "fieldfare" / "paths.json"
    file.parent.mkdir()
    file.write_text(spoilt.replace("M", json.dumps(timing.machine())[1:-1]).replace("K", net.native.key))
    calls = measured(monkeypatch, native=2.0, stacked=1.0)
    timing.settle_fastest(net, ff.Training(), ff.data.digits(clients=10))
    assert len(calls) == 1
    assert net.on_core is not None


def test_what_is_asked_for_is_not_measured(home, monkeypatch):
    calls = measured(monkeypatch, native=1.0, stacked=2.0)
    for path in ("native", "stacked"):
        net = replace(ff.mlp(64, 7, 10), path=path)
        timing.settle_fastest(net, ff.Training(), ff.data.digits(clients=10))
        assert net.describe()["path"] == path
    monkeypatch.setenv("FIELDFARE_PATH", "stacked")
    assert ff.mlp(64, 7, 10).on_core is None
    monkeypatch.setenv("FIELDFARE_PATH", "fastest")
    with pytest.raises(UsageError, match="FIELDFARE_PATH='fastest': use one of auto, native"):
        assert ff.mlp(64, 7, 10).on_core
    assert not calls


def test_a_run_that_is_gone_on_with_goes_the_way_it_began(home, monkeypatch, tmp_path):
    measured(monkeypatch, native=1.0, stacked=2.0)
    whole = job(ff.mlp(64, 7, 10)).run(runs=tmp_path / "a", progress=False)
    assert json.loads((whole.path / "config.json").read_text())["job"]["model"]["path"] == "stacked"
    choose._settled.clear()
    (home / "fieldfare" / "paths.json").unlink()
    measured(monkeypatch, native=2.0, stacked=1.0)
    net = ff.mlp(64, 7, 10)
    timing.settle_fastest(net, ff.Training(), ff.data.digits(clients=10))
    assert net.on_core is not None
    folder = RunFolder.open(whole.path)
    try:
        _check_same(job(net), net, folder)
    finally:
        folder.close()
    assert net.on_core is None


def test_a_net_that_cannot_train_on_the_core_is_refused_where_that_was_asked_for(home):
    net = replace(ff.mlp(64, 7, 10), path="native", bits=4)
    with pytest.raises(UsageError, match=r"path='native'.*use path='auto'"):
        job(net).run(runs=None, progress=False)
