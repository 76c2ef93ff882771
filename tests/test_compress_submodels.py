"""Short replies, frozen, factored and pruned weights of sub-models, heads by class: who trained a weight counts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.aggregate import chain, coverage, momentum
from fieldfare.aggregate.gather import Gather
from fieldfare.algorithms import check
from fieldfare.assembly import assemble
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered
from fieldfare.core.folds import COVERED, Coverage
from fieldfare.core.local import LowRank, Pruned, Sent
from fieldfare.run import run
from fieldfare.sim.asks import levels
from fieldfare.testing import Fault, loop, simulate
from fieldfare.work import compress
from fieldfare.work.submodel import MultiRate, Prefix, Rolling, submodels
from fieldfare.work.train import Train

DATA = ff.synthetic(clients=12, classes=5, features=16, seed=3, min_examples=12, log_mean=1.0, log_sigma=0.5)
NET = ff.DenseNet(ff.mlp(16, 12, 8, 5).layers, loss="masked_cross_entropy")
FAMILY = submodels(NET, (1, 0.5, 0.25))
COVER = chain(coverage())
SIZES = 8 + 2 * (np.arange(12) % 4)


def data_of(y):
    """Twelve clients with made examples, client c with the labels `y[c]`, round and round."""
    labels = np.concatenate([np.resize(own, size) for own, size in zip(y, SIZES, strict=True)])
    x = np.random.default_rng(0).standard_normal((len(labels), 16)).astype(np.float32)
    names = tuple(str(c) for c in range(12))
    return ff.Federated({"x": x, "y": labels}, np.concatenate([[0], np.cumsum(SIZES)]), np.arange(len(x)), names, 5)


CLASSES = [sorted({c % 5, (c * 3 + 1) % 5}) for c in range(12)]
SKEWED = data_of(CLASSES)
rules = pytest.mark.parametrize("rule", [Prefix(), Rolling(), MultiRate()], ids=lambda rule: type(rule).__name__)


def job(algorithm, lr=0.1, model=FAMILY, data=DATA, workers=1, chunk=None, **more):
    training = ff.Training(lr=lr, batch_size=6, epochs=2)
    return ff.Job(model, data, algorithm, training, simulated=ff.Simulated(workers=workers, chunk=chunk), **more)


def trained(*args, **more):
    return job(*args, **more).run(runs=None, progress=False).model.vector.tobytes()


def fed(view, rounds=4, **more):
    return ff.FedAvg(rounds, 8, server=COVER, view=view, **more)


def made(algorithm):
    return {
        "top-k, fed back": ff.compress(algorithm, share=0.1),
        "int8, fed back": ff.compress(algorithm, bits=8, feedback=True),
        "frozen": ff.freeze(algorithm, names=("0", "4.bias")),
        "low rank": ff.low_rank(algorithm, rank=2),
        "pruned": ff.prune(algorithm, share=0.4),
        "heads": ff.masked_heads(algorithm),
        "all at once": ff.compress(
            ff.masked_heads(ff.prune(ff.freeze(algorithm, names=("2",)), share=0.6)), share=0.2, bits=8
        ),
        "factors of what is not frozen": ff.compress(
            ff.masked_heads(ff.low_rank(ff.freeze(algorithm, names=("2.weight",)), rank=2)), share=0.3
        ),
    }  # fmt: skip


every = pytest.mark.parametrize("name", list(made(ff.FedAvg(3, 8))))


class Watched:
    """Local training, whose calls are kept beside those of the same without short replies."""

    def __init__(self, work):
        self.work, self.plain, self.calls = work, replace(work, local=self._without(work.local)), []

    def _without(self, local):
        return tuple(one for one in local if not isinstance(one, Sent))

    def __getattr__(self, name):
        return getattr(self.work, name)

    def __call__(self, cohort):
        out = self.work(cohort)
        self.calls.append((cohort, out, self.plain(cohort)))
        return out


class Told:
    """An algorithm, with the answers and asks that it saw."""

    def __init__(self, inner):
        self.inner, self.asked, self.events = inner, [], []

    def init(self, model):
        return self.inner.init(model)

    def step(self, state, event, ctx):
        if isinstance(event, Gathered):
            self.events.append(event)
        state, effects = self.inner.step(state, event, ctx)
        self.asked += [one for one in effects if hasattr(one, "reduce")]
        return state, effects


def watched(the_job):
    """(what local training was asked and said, what the algorithm asked and got, how it ended)."""
    world = assemble(the_job).world
    work = Watched(world.works["train"])
    told = {node: (role, Told(one)) for node, (role, one) in world.nodes.items()}
    ending = simulate(replace(world, works={**world.works, "train": work}, nodes=told))
    return work.calls, told["central"][1], ending


# Feedback


@rules
@pytest.mark.parametrize("inside", ["whole", "pruned", "heads"])
@pytest.mark.parametrize("sent", [{"share": 0.1}, {"bits": 4}, {"share": 0.3, "bits": 6}], ids=str)
def test_what_was_sent_and_what_is_kept_make_all_that_was_learnt(rule, sent, inside):
    plain = fed(FAMILY.view(rule), rounds=5)
    algorithm = ff.compress(made(plain).get(inside, plain), feedback=True, **sent)
    calls, _, ending = watched(job(algorithm))
    size = NET.layout.size
    true, went = np.zeros((12, size)), np.zeros((12, size))
    had = np.zeros((12, size), int)
    for cohort, out, plain in calls:
        at = np.arange(size) if cohort.index is None else cohort.index
        for i, client in enumerate(cohort.clients):
            true[client, at] += plain.leaves["delta"][i]
            went[client, at] += out.leaves["delta"][i]
            had[client, at] += 1
            elsewhere = np.setdiff1d(np.arange(size), at)
            before = np.zeros(size) if cohort.fresh[i] else cohort.state[i]
            assert (out.state[i][elsewhere] == before[elsewhere]).all()
    kept = np.zeros((12, size))
    for client, row in ending.slots.rows["residual"].items():
        kept[client] = row
    assert (had > 1).any()
    assert isinstance(rule, Prefix) == (not ((had > 0) & (had < had.max(axis=1, keepdims=True))).any())
    assert (kept != 0).any()
    assert (kept[had == 0] == 0).all()
    np.testing.assert_allclose(went + kept, true, atol=2e-6)


def test_feedback_is_the_default_of_top_k_with_a_view_too_and_keeps_the_whole_model():
    algorithm = ff.compress(fed(FAMILY.view()), share=0.1)
    assert algorithm.slot == "residual"
    assert assemble(job(algorithm)).slots == {"residual": NET.layout.size}
    assert ff.compress(fed(FAMILY.view()), bits=8).slot is None


def test_feedback_makes_top_k_of_sub_models_learn_what_it_would_forget():
    def loss(algorithm):
        return job(algorithm).run(runs=None, progress=False).final["loss"]

    view = FAMILY.view(assign=(0, 1))
    plain = loss(ff.FedAvg(30, 12, server=COVER, view=view))
    gaps = [loss(ff.compress(ff.FedAvg(30, 12, server=COVER, view=view), share=0.02, feedback=f)) - plain
            for f in (True, False)]  # fmt: skip
    assert 0 < gaps[0] < 0.7 * gaps[1]


def test_a_driver_that_does_not_say_where_a_sub_model_is_is_refused_state():
    calls, *_ = watched(job(ff.compress(fed(FAMILY.view(), rounds=1), share=0.1)))
    cohort = next(cohort for cohort, *_ in calls if cohort.models.shape[1] < NET.layout.size)
    work = assemble(job(ff.compress(fed(FAMILY.view()), share=0.1))).works["train"]
    with pytest.raises(UsageError, match=r"tells Cohort\.index"):
        work(replace(cohort, index=None))
    with pytest.raises(UsageError, match="slot 'residual' of this model has"):
        work(replace(cohort, state=np.ones((cohort.n, 3), np.float32), fresh=np.zeros(cohort.n, bool)))


# Laws of all


@every
def test_zero_training_lifts_to_exactly_zero(name):
    assert trained(made(fed(FAMILY.view()))[name], lr=0.0) == NET.init(0).vector.tobytes()


@every
@rules
@pytest.mark.sampled(3)
def test_neither_chunks_nor_workers_change_a_bit(name, rule):
    algorithm = made(fed(FAMILY.view(rule), rounds=3))[name]
    whole = trained(algorithm, data=SKEWED)
    assert trained(algorithm, data=SKEWED, chunk=1) == whole
    assert trained(algorithm, data=SKEWED, workers=2) == whole
    assert whole != trained(fed(FAMILY.view(rule), rounds=3), data=SKEWED)


@every
@rules
def test_one_by_one_on_the_loopback_it_is_the_same_to_the_bit(name, rule):
    world = assemble(job(made(fed(FAMILY.view(rule), rounds=3))[name], data=SKEWED)).world
    one, other = loop(world), simulate(world)
    assert one.transcript.lines() == other.transcript.lines()
    for client, row in other.slots.rows.get("residual", {}).items():
        assert np.array_equal(one.slots.rows["residual"][client], row)


@every
def test_a_level_of_rate_one_for_all_is_as_without_a_view(name):
    one = made(fed(FAMILY.view(assign=(0,)), rounds=3))[name]
    assert trained(one, data=SKEWED) == trained(made(ff.FedAvg(3, 8))[name], data=SKEWED, model=NET)


def methods(family):
    view, shares = family.view(), (1.0, 0.5, 0.25)
    return {
        "heterofl": ff.HeteroFL(2, 8, view=view), "fedrolex": ff.FedRolex(2, 8, view=family.view(Rolling())),
        "fjord": ff.FjORD(2, 8, view=view, shares=shares), "nestedfl": ff.NestedFL(2, 8, view=view, shares=shares),
    }  # fmt: skip


@every
@pytest.mark.parametrize("method", list(methods(FAMILY)))
def test_every_method_of_sub_models_takes_every_compressor_or_is_refused_with_the_reason(method, name):
    plain = methods(FAMILY)[method]
    algorithm = made(plain)[name]
    if method in ("fjord", "nestedfl") and ("low rank" in name or "factors" in name):
        with pytest.raises(UsageError, match="the same weights"):
            trained(algorithm)
        return
    whole = trained(algorithm, data=SKEWED)
    assert whole == trained(algorithm, data=SKEWED, chunk=1)
    assert whole != trained(plain, data=SKEWED)
    assert trained(algorithm, data=SKEWED, lr=0.0) == NET.init(0).vector.tobytes()
    if name == "frozen":
        mask = NET.layout.mask(("0", "4.bias"))
        assert np.array_equal(np.frombuffer(whole, np.float32)[mask], NET.init(0).vector[mask])


@pytest.mark.parametrize("kind", ["top-k, fed back", "all at once"])
def test_replies_that_come_twice_or_are_asked_for_again_leave_the_residuals_as_they_are(kind):
    world = assemble(job(made(fed(FAMILY.view(MultiRate())))[kind], data=SKEWED)).world
    plain = loop(world)
    faults = [Fault("repeat", "reply", 0.3, times=9), Fault("lose", "ask", 0.1, times=5)]
    again = loop(world, faults)
    assert again.model.vector.tobytes() == plain.model.vector.tobytes()
    rows = [one.slots.rows["residual"] for one in (plain, again)]
    assert rows[0].keys() == rows[1].keys()
    assert all(np.array_equal(rows[0][client], rows[1][client]) for client in rows[0])


@rules
@pytest.mark.parametrize("name", ["top-k, fed back", "int8, fed back", "all at once"])
@pytest.mark.sampled(3)
def test_a_stopped_run_is_resumed_to_the_same_bits(name, rule, tmp_path):
    algorithm = made(fed(FAMILY.view(rule), rounds=6))[name]
    whole = trained(algorithm)
    seen = []

    def stop(row):
        seen.append(row)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(replace(job(algorithm), callbacks=(stop,)), tmp_path, progress=False)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink())
    again = ff.resume_run(folder, job=job(algorithm), progress=False)
    assert again.model.vector.tobytes() == whole


@pytest.mark.parametrize(
    "idle",
    [
        lambda a: ff.compress(a, feedback=True), lambda a: ff.prune(a, share=1.0), lambda a: ff.low_rank(a, rank=99),
    ],
    ids=["all numbers in 32 bits", "nothing pruned", "full rank"],
)  # fmt: skip
def test_what_leaves_all_as_it_was_changes_no_bit(idle):
    assert trained(idle(fed(FAMILY.view()))) == trained(fed(FAMILY.view()))


# Coverage


def by_hand(calls, asked):
    """The folded deltas of one ask, coordinate by coordinate in whole numbers: (value, weight)."""
    size, step = NET.layout.size, 2.0**-32
    total, behind = [0] * size, [0] * size
    for cohort, out, _ in calls:
        at = range(size) if cohort.index is None else cohort.index.tolist()
        covered = out.leaves.get(COVERED)
        for i in range(cohort.n):
            weight = int(out.weight[i])
            for place, where in enumerate(at):
                if covered is None or covered[i, place]:
                    total[where] += weight * round(float(out.leaves["delta"][i, place]) / step)
                    behind[where] += weight
    value = [np.float32(np.float64(t * step) / max(b, 1)) for t, b in zip(total, behind, strict=True)]
    return np.array(value, np.float32), np.array(behind, float)


@every
@rules
def test_sums_and_coverage_are_those_of_a_loop_over_clients_and_coordinates(name, rule):
    calls, told, _ = watched(job(made(fed(FAMILY.view(rule), rounds=1))[name], data=SKEWED))
    (event,) = told.events
    value, weight = by_hand(calls, told.asked[0])
    assert np.array_equal(event.output["delta"].weight, weight)
    assert np.array_equal(event.output["delta"].value, value)
    assert event.weight == sum(out.weight.sum() for _, out, _ in calls)


@rules
def test_who_covers_what_is_what_the_declarations_say(rule):
    view = FAMILY.view(rule)
    for name in ("frozen", "pruned", "heads"):
        calls, told, _ = watched(job(made(fed(view, rounds=1))[name], data=SKEWED))
        run_ = told.asked[0]
        seen = 0
        for cohort, out, _ in calls:
            covered, delta = out.leaves[COVERED], out.leaves["delta"]
            assert (delta[~covered] == 0).all()
            layout, model = cohort.layout, cohort.models[0]
            for i, client in enumerate(cohort.clients):
                (level, _), *_ = levels(run_, np.array([client]))
                assert np.array_equal(run_.view.index(level), cohort.index)
                match name:
                    case "frozen":
                        wanted = ~layout.mask(("0", "4.bias"))
                    case "pruned":
                        largest = np.sort(np.abs(model))[::-1][: int(np.ceil(0.4 * layout.size))]
                        wanted = np.abs(model) >= largest[-1]
                    case _:
                        have = np.isin(np.arange(5), CLASSES[client])
                        wanted = np.ones(layout.size, bool)
                        for tensor, where, shape in layout.items():
                            if tensor.startswith("4."):
                                wanted[where] = np.repeat(have, int(np.prod(shape[1:])))
                assert np.array_equal(covered[i], wanted)
                seen += 1
        assert seen == 8


@rules
@pytest.mark.parametrize("around", [partial(ff.prune, share=0.4), partial(ff.freeze, names=("4", "0.bias"))])
def test_of_two_declarations_a_weight_is_covered_where_both_cover_it(rule, around):
    plain, seen = ff.FedAvg(1, 8, server=COVER, view=FAMILY.view(rule)), []
    for algorithm in (around(plain), ff.masked_heads(plain), ff.masked_heads(around(plain))):
        calls, _, _ = watched(job(algorithm, data=SKEWED))
        seen.append({int(c): out.leaves[COVERED][i] for cohort, out, _ in calls for i, c in enumerate(cohort.clients)})
    assert len(seen[0]) == 8
    for client, one in seen[0].items():
        assert np.array_equal(seen[2][client], one & seen[1][client])
        assert not np.array_equal(seen[2][client], seen[1][client])


@pytest.mark.parametrize("server", [COVER, chain(coverage(), momentum(0.9))], ids=["plain", "momentum"])
@pytest.mark.parametrize("first", [True, False], ids=["frozen first", "pruned first"])
def test_frozen_tensors_stay_to_the_bit_and_count_for_nobody(server, first):
    algorithm = ff.FedAvg(4, 8, server=server, view=FAMILY.view())
    algorithm = algorithm if first else ff.prune(algorithm, share=0.7)
    algorithm = ff.freeze(algorithm, names=("0", "2.bias"))
    algorithm = ff.prune(algorithm, share=0.7) if first else algorithm
    calls, told, ending = watched(job(algorithm))
    mask = NET.layout.mask(("0", "2.bias"))
    assert ending.model.vector[mask].tobytes() == NET.init(0).vector[mask].tobytes()
    assert (ending.model.vector[~mask] != NET.init(0).vector[~mask]).any()
    for event in told.events:
        assert (event.output["delta"].weight[mask] == 0).all()
    for cohort, out, _ in calls:
        largest = compress.pruned(cohort.models[0], 0.7)
        assert (out.leaves[COVERED] == (largest & ~cohort.layout.mask(("0", "2.bias")))).all()


def test_momentum_of_a_pruned_weight_waits_until_a_mask_has_it_again():
    view = FAMILY.view(assign=(1,))
    algorithm = ff.prune(ff.FedAvg(6, 8, server=chain(coverage(), momentum(0.9)), view=view), share=0.3)
    _, told, _ = watched(job(algorithm))
    weights = np.stack([event.output["delta"].weight for event in told.events])
    assert ((weights > 0).any(axis=0) & (weights == 0).any(axis=0)).any(), "masks move"
    models = [ask.model.vector for ask in told.asked]
    for before, after, weight in zip(models, models[1:], weights, strict=False):
        assert np.array_equal(before[weight == 0], after[weight == 0])


def test_deltas_of_factors_are_of_low_rank_in_the_level_s_own_matrices():
    calls, *_ = watched(job(ff.low_rank(fed(FAMILY.view(), rounds=1), rank=1)))
    widths = set()
    for cohort, out, _ in calls:
        net = FAMILY.of(cohort.layout)
        small = compress.factored(net, 1)
        start = compress.product(net, small, compress.factors(net, small, cohort.models[0]))
        for layer in net.program.layers[:2]:
            shape = (layer.outputs, layer.inputs)
            widths.add(shape)
            for delta in out.leaves["delta"]:
                assert np.linalg.matrix_rank(delta[layer.weight].reshape(shape), tol=1e-5) <= 2
                end = (start + delta)[layer.weight].reshape(shape)
                assert np.linalg.matrix_rank(end, tol=1e-5) <= 1
    assert len(widths) == 6


def test_the_scaler_of_a_factored_sub_model_is_not_lost():
    family = submodels(ff.mlp(16, 12, 8, 5, activation=ff.work.dense.tanh()), (1, 0.5))
    view = family.view(assign=(1,))
    scaled, plain = (ff.low_rank(ff.HeteroFL(2, 8, view=view, scaled=s), rank=2) for s in (True, False))
    assert trained(scaled, model=family) != trained(plain, model=family)
    full = (ff.low_rank(ff.HeteroFL(2, 8, view=view), rank=99), ff.HeteroFL(2, 8, view=view))
    assert trained(full[0], model=family) == trained(full[1], model=family)


# Heads


def test_with_all_classes_everywhere_it_is_fedavg_bit_for_bit():
    data = data_of([range(5)] * 12)
    assert trained(ff.masked_heads(ff.FedAvg(3, 8)), model=NET, data=data) == trained(
        ff.FedAvg(3, 8), model=NET, data=data
    )
    view = FAMILY.view()
    assert trained(ff.masked_heads(fed(view)), data=data) == trained(fed(view), data=data)


def test_without_sub_models_a_row_of_the_head_is_the_mean_of_those_who_have_its_class():
    calls, told, ending = watched(job(ff.masked_heads(ff.FedAvg(1, 12)), model=NET, data=SKEWED))
    ((_, out, _),) = calls
    where = {name: at for name, at, _ in NET.layout.items()}
    for label in range(5):
        have = np.array([label in own for own in CLASSES])
        assert 0 < have.sum() < 12
        rows = out.leaves["delta"][:, where["4.bias"]][:, label]
        assert (rows[~have] == 0).all()
        found = (ending.model.vector - NET.init(0).vector)[where["4.bias"]][label]
        np.testing.assert_allclose(found, np.average(rows[have], weights=SIZES[have]), rtol=1e-4, atol=1e-7)
        assert told.events[0].output["delta"].weight[where["4.bias"]][label] == SIZES[have].sum()
    assert (told.events[0].output["delta"].weight[where["0.weight"]] == SIZES.sum()).all()


def test_a_class_that_nobody_asked_has_leaves_its_row_and_its_momentum_alone():
    data = data_of([[label % 4 for label in own] for own in CLASSES])
    algorithm = ff.masked_heads(ff.FedAvgM(3, 8))
    end = job(algorithm, model=NET, data=data).run(runs=None, progress=False).model
    for name in ("4.weight", "4.bias"):
        assert end.tensor(name)[4].tobytes() == NET.init(0).tensor(name)[4].tobytes()
        assert (end.tensor(name)[:4] != NET.init(0).tensor(name)[:4]).any()


def test_weight_decay_and_other_losses_leave_rows_of_absent_classes_out_too():
    net = ff.mlp(16, 12, 8, 5)
    training = ff.Training(lr=0.1, batch_size=6, weight_decay=0.1)
    one = ff.Job(net, SKEWED, ff.masked_heads(ff.FedAvg(1, 12)), training, simulated=ff.Simulated(workers=1))
    ((_, out, _),), told, _ = watched(one)
    assert (out.leaves["delta"][~out.leaves[COVERED]] == 0).all()
    assert told.events[0].output["delta"].weight.min() < SIZES.sum()


def test_classes_are_those_of_the_examples_that_are_taken():
    training = ff.Training(lr=0.1, batch_size=2, steps=1)
    algorithm = ff.masked_heads(ff.FedAvg(1, 12))
    one = ff.Job(NET, SKEWED, algorithm, training, simulated=ff.Simulated(workers=1))
    ((_, out, _),), *_ = watched(one)
    at = next(where for name, where, _ in NET.layout.items() if name == "4.bias")
    covered = out.leaves[COVERED][:, at]
    assert set(covered.sum(axis=1)) <= {1, 2}
    two = covered.sum(axis=1) == 2  # of one class the softmax is 1
    assert 0 < two.sum() < 12
    assert np.array_equal(covered[two], out.leaves["delta"][two][:, at] != 0)


def torch_nets():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))
    yield "sequence", net, "masked_cross_entropy", {"4.weight", "4.bias"}
    chain_ = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))
    from fieldfare.work.submodel.exits import exit_loss

    exits = ff.exits(chain_, after=("1",), example=SKEWED.columns["x"][:2])
    names = {"heads.0.0.weight", "heads.0.0.bias", "stages.1.4.weight", "stages.1.4.bias"}
    yield "exits", exits, exit_loss(), names


@pytest.mark.parametrize("which", [0, 1], ids=["sequence", "exits"])
def test_heads_of_modules_are_found_and_their_rows_counted(which):
    from fieldfare.work.heads import head_of

    _, net, loss, names = [*torch_nets()][which]
    levels_ = (1, 0.5) if which == 0 else (ff.Level(1), ff.Level(1, 1), ff.Level(0.5, 1))
    family = submodels(net, levels_, loss=loss, metrics=("accuracy",), example=SKEWED.columns)
    assert set(head_of(family)) == names
    algorithm = ff.masked_heads(ff.FedAvg(1, 12, server=COVER, view=family.view()))
    calls, told, _ = watched(job(algorithm, model=family, data=SKEWED))
    weight = told.events[0].output["delta"].weight
    for name, where, shape in family.layout.items():
        if name in names and name.endswith("bias"):
            had = np.isin(np.arange(12), [
                c for cohort, *_ in calls for c in cohort.clients if name in cohort.layout.names])  # fmt: skip
            wanted = [SIZES[[label in own for own in CLASSES] & had].sum() for label in range(5)]
            assert weight[where].tolist() == wanted
            assert shape == (5,)
    assert trained(algorithm, model=family, data=SKEWED) == trained(algorithm, model=family, data=SKEWED, chunk=1)


def test_frozen_layers_that_a_shallow_level_lacks_are_no_hindrance():
    _, net, loss, _ = [*torch_nets()][1]
    family = submodels(net, (ff.Level(1), ff.Level(1, 1)), loss=loss, metrics=("accuracy",), example=SKEWED.columns)
    algorithm = ff.freeze(ff.FedAvg(2, 8, server=COVER, view=family.view()), names=("stages.1.2",))
    _, told, ending = watched(job(algorithm, model=family, data=SKEWED))
    mask = family.layout.mask(("stages.1.2",))
    assert ending.model.vector[mask].tobytes() == family.init(0).vector[mask].tobytes()
    weight = told.events[0].output["delta"].weight
    assert (weight[mask] == 0).all()
    assert (weight[~mask] > 0).all()


# Bytes


def test_bytes_are_those_that_travel_of_a_level():
    def up(algorithm):
        work = assemble(job(algorithm)).works["train"]
        return [work.cost(np.array([10]), FAMILY.view().layout(level), {}).bytes_up for level in range(3)]

    sizes = [FAMILY.view().layout(level) for level in range(3)]
    view = FAMILY.view()
    still = [int(one.mask(("0",)).sum()) for one in sizes]
    assert up(ff.freeze(fed(view), names=("0",))) == [4.0 * (one.size - s) for one, s in zip(sizes, still, strict=True)]
    assert up(ff.masked_heads(fed(view))) == [4.0 * one.size + 1 for one in sizes]
    few = [int(np.ceil(0.1 * one.size)) for one in sizes]
    places = [min(32 * f, one.size) / 8 for f, one in zip(few, sizes, strict=True)]
    assert up(ff.compress(fed(view), share=0.1)) == [4.0 * f + p for f, p in zip(few, places, strict=True)]
    whole = up(ff.compress(ff.low_rank(fed(view), rank=2), bits=8))
    assert whole == [one.size + 4.0 for one in sizes], "numbers of the delta, not of the factors"


def test_no_more_numbers_travel_than_are_paid_for():
    algorithm = ff.compress(ff.prune(ff.freeze(fed(FAMILY.view(), rounds=2), names=("0",)), share=0.5), share=0.2)
    calls, *_ = watched(job(algorithm))
    for _, out, _ in calls:
        trained_ = out.leaves[COVERED].sum(axis=1)
        assert ((out.leaves["delta"] != 0).sum(axis=1) <= np.ceil(0.2 * trained_)).all()


# Refusals


def test_what_has_no_meaning_is_refused_before_launch_in_one_line():
    with pytest.raises(UsageError, match="Stack cannot leave out who lacks a class"):
        check(ff.masked_heads(ff.FedMedian(2, 8)))
    with pytest.raises(UsageError, match="its replies carry more than a delta"):
        check(ff.masked_heads(replace(ff.FedNova(2, 8), server=COVER)))
    with pytest.raises(UsageError, match="is for labels"):
        job(ff.masked_heads(ff.FedAvg(2, 8)), model=ff.DenseNet(NET.layers, loss="squared_error")).run(runs=None)
    with pytest.raises(UsageError, match="one row per class in every tensor"):
        job(ff.masked_heads(ff.FedAvg(2, 8), names=("0", "4")), model=NET).run(runs=None)
    with pytest.raises(UsageError, match="no parameter is called"):
        job(ff.freeze(fed(FAMILY.view()), names=("9",))).run(runs=None)
    with pytest.raises(UsageError, match="LowRank and Pruned say different things"):
        Train(NET, local=(LowRank(2), Pruned(0.5)))
    with pytest.raises(UsageError, match="cannot be combined with sub-models"):
        check(ff.keep_optimizer(fed(FAMILY.view())))


def test_a_leaf_of_another_shape_is_refused():
    gather = Gather({"delta": Coverage()}, 2)
    rows = np.ones((2, 3), np.float32)
    for covered in (np.ones((2, 2), bool), np.ones((2, 3))):
        with pytest.raises(UsageError, match="send a bool for each number"):
            gather.take(np.arange(2), {"delta": rows, COVERED: covered}, np.ones(2), np.zeros(2, bool))
