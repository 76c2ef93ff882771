"""How a net finds its way on a machine: asked for, measured once, kept to by a run that is gone on with."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import fieldfare as ff
from fieldfare import study
from fieldfare.assembly import Still, assemble
from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.run import _check_same, kept_way
from fieldfare.sim.batch import forks
from fieldfare.sim.compute import pieces
from fieldfare.store.runs import RunFolder
from fieldfare.work import torch_lockstep
from fieldfare.work.evaluate import FineTune
from fieldfare.work.masked import Masked
from fieldfare.work.native import choose, timing
from fieldfare.work.native.modules import core
from fieldfare.work.net import BadExamples, Drift
from fieldfare.work.plan import make_plan
from fieldfare.work.submodel.family import Family
from fieldfare.work.torch_net import torch_net
from fieldfare.work.train import Train

torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = pytest.mark.skipif(core() is None, reason="the compiled core is not built here")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Nothing asked for, nothing settled, a cache of its own."""
    monkeypatch.setenv("FIELDFARE_PATH", "auto")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choose, "_settled", {})
    monkeypatch.setattr(timing, "_known", {})
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
    ((told, found),) = kept[timing.machine()].items()
    assert told == f"{net.key}, batches of 20, sgd"
    assert found["path"] == path
    choose._settled.clear()
    timing._known.clear()
    timing.settle_fastest(ff.mlp(64, 7, 10), ff.Training(), ff.data.digits(clients=10))
    assert len(calls) == 1
    assert choose.settled(net.native.key).path == path


def test_both_ways_are_really_measured(home):
    net = ff.mlp(64, 7, 10)
    data = ff.data.digits(clients=10)
    rates = timing.rates_of(net, net.key, net.ways, ff.Training(), data, np.arange(10))
    assert set(rates) == {"native", "stacked"}
    assert min(rates.values()) > 1
    assert choose.settled(net.native.key) is None


class Sine(nn.Module):
    """A layer that the core does not know."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x):
        return self.out(torch.sin(self.into(x)))


def sine(path="auto"):
    torch.manual_seed(0)
    data = ff.data.digits(clients=40)
    return torch_net(Sine(), path=path, example={name: rows[:2] for name, rows in data.columns.items()}), data


def timed(monkeypatch, **rates):
    """Ways take what `rates` says; the ways asked for are noted."""
    calls = []

    def rate(net, key, way, training, data, clients):
        calls.append((way, len(clients)))
        return rates[way.replace("-", "_")]

    monkeypatch.setattr(timing, "_rate", rate)
    monkeypatch.setattr(timing.threads, "allowed", lambda: 2)
    return calls


@pytest.mark.parametrize(
    ("rates", "tried", "path"),
    [
        ({"torch": 900.0, "lockstep_4": 149.0}, [4], "torch"),
        ({"torch": 900.0, "lockstep_4": 151.0, "lockstep_16": 940.0}, [4, 16], "torch"),
        ({"torch": 900.0, "lockstep_4": 300.0, "lockstep_16": 950.0}, [4, 16], "lockstep-16"),
        ({"torch": 900.0, "lockstep_4": 950.0, "lockstep_16": 990.0}, [4, 16], "lockstep-16"),
        ({"torch": 49.0}, [], "torch"),
    ],
)
def test_stacks_grow_while_they_gain_and_the_fastest_is_taken(home, monkeypatch, rates, tried, path):
    calls = timed(monkeypatch, **rates)
    net, data = sine()
    timing.settle_fastest(net, ff.Training(), data, cohort=40)
    assert calls == [("torch", 2), *((f"lockstep-{size}", size) for size in tried)]
    assert net.describe()["path"] == path.replace("torch", "graph")
    assert "measured here" in net.describe()["why"]
    assert net.threaded is False
    assert net.together == (16 if path == "lockstep-16" else 1)
    choose._settled.clear()
    timing._known.clear()
    again, _ = sine()
    timing.settle_fastest(again, ff.Training(), data, cohort=40)
    assert len(calls) == 1 + len(tried)
    assert again.describe()["path"] == net.describe()["path"]


@pytest.mark.parametrize(("cohort", "most"), [(7, 0), (8, 4), (31, 4), (32, 16), (None, 16)])
def test_no_stack_is_larger_than_what_each_core_has_of_a_cohort(home, monkeypatch, cohort, most):
    calls = timed(monkeypatch, torch=100.0, lockstep_4=200.0, lockstep_16=400.0, lockstep_64=800.0)
    net, data = sine()
    timing.settle_fastest(net, ff.Training(), data, cohort=cohort)
    assert max((size for way, size in calls if way != "torch"), default=0) == most


def test_a_wide_stack_is_really_measured_and_trained(home):
    net, data = sine()
    rates = timing.rates_of(net, net.key, net.ways, ff.Training(batch_size=10), data, np.arange(40), 4)
    assert set(rates) == {"torch", "lockstep-4"}
    assert min(rates.values()) > 1


def test_what_is_only_looped_over_is_not_taken_in_stacks(home):
    torch.manual_seed(0)

    class Odd(Sine):
        def forward(self, x):
            return self.out(torch.sin(self.into(x)) * (1.0 if float(x.sum()) > -1e9 else 2.0))

    data = ff.data.digits(clients=40)
    net = torch_net(Odd(), example={name: rows[:2] for name, rows in data.columns.items()})
    assert "lockstep" in net.ways
    rates = timing.rates_of(net, net.key, net.ways, ff.Training(batch_size=10), data, np.arange(40), 4)
    assert set(rates) == {"torch"}
    assert net.ways == ("torch",)
    assert "cannot be stacked" in net.unstacked


@pytest.mark.parametrize("stack", [4, 16])
def test_stacks_on_a_processor_give_the_same_bits_on_any_number_of_workers_and_in_any_chunks(home, stack):
    ends = []
    for simulated in ({"workers": 1}, {"workers": 2}, {"workers": 3, "chunk": 3}, {"workers": 1, "chunk": 1}):
        net, data = sine(f"lockstep-{stack}")
        made = ff.Job(
            model=net, data=data, algorithm=ff.FedAvg(rounds=2, cohort=23), training=ff.Training(batch_size=10),
            simulated=ff.Simulated(**simulated),
        )  # fmt: skip
        ends.append(made.run(runs=None, progress=False).model.vector)
    for end in ends[1:]:
        assert np.array_equal(ends[0], end)
    net, data = sine("graph")
    made = replace(made, model=net)
    np.testing.assert_allclose(made.run(runs=None, progress=False).model.vector, ends[0], rtol=1e-4, atol=1e-6)


def test_a_piece_is_one_stack_whatever_else_is_said():
    request = SimpleNamespace(n=37, segments=(), state=None, models=np.zeros((1, 10), np.float32))
    cuts = {tuple(pieces(request, workers, chunk, together=16)) for workers in (1, 2, 5) for chunk in (None, 1, 20)}
    assert cuts == {((0, 16), (16, 32), (32, 37))}
    assert pieces(request, 1, 20) == [(0, 20), (20, 37)]


@pytest.mark.parametrize("algorithm", [ff.FedBuff(rounds=2, cohort=8, buffer=4), ff.FedAvg(rounds=2, cohort=8)])
def test_streams_of_asks_are_not_stacked_as_who_is_with_whom_depends_on_workers(home, monkeypatch, algorithm):
    calls = timed(monkeypatch, torch=100.0, lockstep_4=900.0)
    net, data = sine()
    if isinstance(algorithm, ff.FedBuff):  # though rounds of the same net were stacked in this process
        choose.settle(net.key, choose.Choice("lockstep-4"))
    assemble(replace(job(net), data=data, algorithm=algorithm))
    assert {way for way, _ in calls} == ({"torch"} if isinstance(algorithm, ff.FedBuff) else {"torch", "lockstep-4"})
    assert net.together == (1 if isinstance(algorithm, ff.FedBuff) else 4)


def test_another_cohort_batch_or_optimiser_is_measured_again_and_what_is_known_is_not(home, monkeypatch):
    calls = timed(monkeypatch, torch=100.0, lockstep_4=200.0, lockstep_16=400.0)
    net, data = sine()
    for cohort, training, stack in (
        (8, ff.Training(), 4), (40, ff.Training(), 16), (8, ff.Training(), 4), (40, ff.Training(batch_size=5), 16),
        (40, ff.Training(optimizer="adam"), 16), (40, ff.Training(), 16),
    ):  # fmt: skip
        timing.settle_fastest(net, training, data, cohort)
        assert net.lockstep.stack == stack
    assert [way for way, _ in calls].count("torch") == 4


def test_processes_side_by_side_measure_nothing_but_know_what_is_known(home, monkeypatch):
    calls = timed(monkeypatch, torch=100.0, lockstep_4=200.0)
    net, data = sine()
    timing.settle_fastest(net, ff.Training(), data, 8)
    monkeypatch.setattr(timing, "_measuring", False)
    before = len(calls)
    timing.settle_fastest(net, ff.Training(batch_size=3), data, 8)
    assert net.lockstep is None
    timing.settle_fastest(net, ff.Training(), data, 8)
    assert net.lockstep.stack == 4
    assert len(calls) == before


def test_models_whose_steps_take_very_long_have_rates_too(home, monkeypatch):
    monkeypatch.setattr(timing, "_took", lambda once: 11.0)
    net, data = sine()
    rates = timing.rates_of(net, net.key, net.ways, ff.Training(), data, np.arange(40), 4)
    assert rates == {"torch": pytest.approx(2 / 44, rel=1e-3)}


def test_a_bad_example_that_is_met_while_ways_are_measured_is_told_with_its_client(home):
    net, data = sine()
    y = data.columns["y"].copy()
    y[:] = 77
    spoilt = replace_columns(data, {**data.columns, "y": y})
    with pytest.raises(UsageError, match=r"^client \d+: column 'y'"):
        timing.settle_fastest(net, ff.Training(), spoilt, 40)


def replace_columns(data, columns):
    return SimpleNamespace(sizes=data.sizes, block=lambda ids: replace(data.block(ids), columns=columns))


def test_a_stack_that_there_is_no_memory_for_is_not_taken(home, monkeypatch):
    def fit(*args, **kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch_lockstep, "fit", fit)
    net, data = sine()
    rates = timing.rates_of(net, net.key, net.ways, ff.Training(), data, np.arange(40), 16)
    assert set(rates) == {"torch"}


class Tossed(Sine):
    def forward(self, x):
        return self.out(torch.sin(nn.functional.dropout(self.into(x), 0.5, self.training)))


def test_what_cannot_be_stacked_is_known_before_anything_is_described(home):
    data = ff.data.digits(clients=10)
    torch.manual_seed(0)
    net = torch_net(Tossed(), path="lockstep", example={name: rows[:2] for name, rows in data.columns.items()})
    told = assemble(job(net)).net.describe()
    assert told["path"] == "graph"
    assert "not in lockstep: it cannot be stacked" in told["why"]


@pytest.mark.parametrize("column", ["x", "y"])
def test_a_clients_bad_examples_are_told_as_elsewhere_and_stacks_stay(home, column):
    class Symbols(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.o = nn.Embedding(9, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.o(torch.sin(self.e(x)).mean(1))

    columns = {"x": np.zeros((12, 4), np.int64), "y": np.zeros(12, np.int64)}
    torch.manual_seed(0)
    net = torch_net(Symbols(), path="lockstep-4", example=columns)
    spoilt = {**columns, column: columns[column].copy()}
    spoilt[column][7] = 50
    data = Block(spoilt, np.arange(12), np.array([0, 3, 6, 9, 12]))
    training = ff.Training(batch_size=3)
    plan = make_plan(data, np.arange(4, dtype=np.uint64), training)
    start, row = net.init(0).vector[None], np.zeros(4, np.int64)
    with pytest.raises(BadExamples, match=f"column '{column}' has a") as found:
        net.fit(start, row, data, plan, np.arange(4, dtype=np.uint64), training, 0.1, Drift())
    assert found.value.place == 2
    assert net.lockstep is not None


def test_frozen_parameters_and_buffers_are_held_in_stacks(home):
    class Held(Sine):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.full((8,), 0.5))
            self.into.weight.requires_grad_(False)

        def forward(self, x):
            return self.out(torch.sin(self.into(x) + self.shift))

    ends = []
    data = ff.data.digits(clients=10)
    for path in ("graph", "lockstep-4"):
        torch.manual_seed(0)
        net = torch_net(Held(), path=path, example={name: rows[:2] for name, rows in data.columns.items()})
        ends.append(job(net).run(runs=None, progress=False).model.vector)
        assert (net.lockstep is not None) == (path != "graph")
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("said", [{"loss": "masked_cross_entropy"}, {"transform": lambda x: x * 2.0}])
def test_a_loss_or_transform_of_each_clients_own_is_not_stacked(home, said):
    torch.manual_seed(0)
    net = torch_net(Sine(), path="lockstep-4", **said)
    assert net.lockstep is None
    assert net.unstacked


def test_layers_that_print_an_address_are_known_again():
    class Odd(Sine):
        def extra_repr(self):
            return f"{object()}"

    torch.manual_seed(0)
    assert torch_net(Odd()).key == torch_net(Odd()).key
    assert torch_net(Odd()).key != torch_net(Sine()).key


def test_secure_sums_have_the_same_bits_in_stacks_on_any_number_of_workers(home):
    ends = []
    for workers in (1, 2):
        net, data = sine("lockstep-4")
        made = replace(job(net), data=data, algorithm=ff.SecureSum(ff.FedAvg(rounds=2, cohort=9)))
        ends.append(replace(made, simulated=ff.Simulated(workers=workers)).run(runs=None, progress=False).model.vector)
    assert np.array_equal(*ends)


def test_a_family_and_a_study_fork_only_where_its_net_does(home, monkeypatch, tmp_path):
    net, data = sine()
    assert forks(Train(ff.submodels(net, (1.0, 0.5))))
    monkeypatch.setattr(torch_lockstep, "device", lambda: "cpu")  # as if it were one
    assert not forks(Train(ff.submodels(net, (1.0, 0.5))))
    monkeypatch.setattr(study, "side_by_side", lambda *a: pytest.fail("it forked"))
    monkeypatch.setenv("FIELDFARE_PATH", "graph")
    arms = {"one": replace(job(net), data=data), "two": replace(job(net), data=data, seed=1)}
    result = ff.Study(arms=arms, processes=2).run(tmp_path / "runs", progress=False)
    assert (result.path / "report.html").exists()


@pytest.mark.parametrize("kind", [Masked, FineTune, Still, Train, Family])
def test_whoever_trains_says_how_many_are_trained_as_one(kind):
    assert isinstance(kind.together, property)


def test_on_a_device_stacks_on_it_are_the_way_and_nothing_is_measured(home, monkeypatch):
    calls = timed(monkeypatch)
    monkeypatch.setattr(torch_lockstep, "device", lambda: "cpu")  # as if it were one
    net, data = sine()
    timing.settle_fastest(net, ff.Training(), data, cohort=40)
    assert net.ways == ("lockstep", "torch")
    assert net.lockstep is not None
    assert not calls
    timing.keep_to(net, "graph")  # a run that began without it keeps to its way
    assert net.lockstep is None
    monkeypatch.setenv("FIELDFARE_PATH", "graph")
    assert net.lockstep is None


def test_a_run_in_stacks_that_is_gone_on_with_keeps_its_stacks(home, monkeypatch, tmp_path):
    timed(monkeypatch, torch=100.0, lockstep_4=900.0)
    net, data = sine()
    made = replace(job(net), data=data, algorithm=ff.FedAvg(rounds=2, cohort=8))
    whole = made.run(runs=tmp_path / "a", progress=False)
    assert json.loads((whole.path / "config.json").read_text())["job"]["model"]["path"] == "lockstep-4"
    choose._settled.clear()
    net, _ = sine()
    assert net.lockstep is None
    folder = RunFolder.open(whole.path)
    try:
        assemble(replace(made, model=net), kept_way(folder))
        _check_same(replace(made, model=net), net, folder)
    finally:
        folder.close()
    assert net.lockstep.stack == 4
    monkeypatch.setenv("FIELDFARE_PATH", "graph")
    folder = RunFolder.open(whole.path)
    with pytest.raises(UsageError, match=r"model.path was 'lockstep-4'.*FIELDFARE_PATH and FIELDFARE_NAT"):
        _check_same(replace(made, model=net), net, folder)


def test_a_process_elsewhere_goes_the_ways_of_the_one_it_computes_for(home, monkeypatch):
    net, _ = sine()
    choose.settle(net.key, choose.Choice("lockstep-4"))
    told = choose.tell()
    monkeypatch.setattr(choose, "_settled", {})
    assert net.lockstep is None
    choose.hear(told)
    assert net.lockstep.stack == 4


def test_what_was_measured_with_another_core_is_measured_again(home, monkeypatch):
    before = timing.machine()
    monkeypatch.setattr(timing, "kind", lambda: "other")
    assert timing.machine() != before


@pytest.mark.parametrize("path", ["lockstep-0", "lockstep-", "lockstep-x", "lockstep-٣", "native-4", "fast"])
def test_a_way_that_is_none_is_refused_in_one_line(home, monkeypatch, path):
    with pytest.raises(UsageError, match="use one of auto, native"):
        sine(path)
    monkeypatch.setenv("FIELDFARE_PATH", path)
    with pytest.raises(UsageError, match="use one of auto, native"):
        choose.asked("auto")


SPOILT = [
    "", "{", "[]", '{"x": 3}', '{"M": {"K": 3}}', '{"M": {"K": {"path": "rm", "rates": {}}}}',
    '{"M": {"K": {"path": "stacked-4", "rates": {}}}}', '{"M": {"K": {"path": "stacked", "rates": {"x": "y"}}}}',
    '{"M": {"K": {"path": "stacked", "rates": {"x": NaN}}}}', '{"M": {"K": {"path": "lockstep-x", "rates": {}}}}',
]  # fmt: skip


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_spoilt_memory_only_costs_the_measurement(home, monkeypatch, spoilt):
    net = ff.mlp(64, 7, 10)
    file = home / "fieldfare" / "paths.json"
    file.parent.mkdir()
    told = f"{net.key}, batches of 20, sgd"
    file.write_text(spoilt.replace("M", json.dumps(timing.machine())[1:-1]).replace("K", told))
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
    timing._known.clear()
    (home / "fieldfare" / "paths.json").unlink()
    measured(monkeypatch, native=2.0, stacked=1.0)
    net = ff.mlp(64, 7, 10)
    timing.settle_fastest(net, ff.Training(), ff.data.digits(clients=10))
    assert net.on_core is not None
    calls = measured(monkeypatch, native=2.0, stacked=1.0)
    folder = RunFolder.open(whole.path)
    try:
        assemble(job(net), kept_way(folder))
        _check_same(job(net), net, folder)
    finally:
        folder.close()
    assert not calls
    assert net.on_core is None
    assert net.describe()["why"].endswith("as the run began")
    assemble(job(net))  # a new run is measured
    assert net.on_core is not None


def test_a_net_that_cannot_train_on_the_core_is_refused_where_that_was_asked_for(home):
    net = replace(ff.mlp(64, 7, 10), path="native", bits=4)
    with pytest.raises(UsageError, match=r"path='native'.*use path='auto'"):
        job(net).run(runs=None, progress=False)
