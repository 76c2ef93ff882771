"""Bagging of trees: the merge of XGBoost's JSON against XGBoost itself, strangers' bytes, and whole runs."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from algorithm_driver import CONTEXT, flatten, storable
from hypothesis import given, settings
from hypothesis import strategies as st

import fieldfare as ff
from fieldfare.aggregate.trees import MergeTrees, tree_count
from fieldfare.algorithms import ALGORITHMS, Evaluate, build, check, entry
from fieldfare.algorithms.bagging import Bagging
from fieldfare.core.effects import Publish, Run, Stop
from fieldfare.core.errors import PeerError, UsageError
from fieldfare.core.events import Gathered, Started, Woke
from fieldfare.core.folds import Collect, Folded
from fieldfare.core.params import Layout, Params
from fieldfare.core.quorum import Quorum, Sample
from fieldfare.store.runs import RunFolder

xgb = pytest.importorskip("xgboost")

BINARY = {"objective": "binary:logistic", "max_depth": 3, "base_score": 0.5, "nthread": 1, "tree_method": "exact"}
CLASSES = {**BINARY, "objective": "multi:softprob", "num_class": 3, "max_depth": 2}


def points(seed, count=120):
    g = np.random.default_rng(seed)
    x = g.normal(size=(count, 5)).astype(np.float32)
    return x, ((x[:, 0] + x[:, 1] * x[:, 2]) > 0).astype(int) + (x[:, 3] > 1)


def boosted(seed, start=b"", rounds=1, parameters=BINARY, count=120, form="json"):
    """The new trees of a client with rows of its own."""
    x, y = points(seed, count)
    y = y if "num_class" in parameters else np.minimum(y, 1)
    before = xgb.Booster(parameters, model_file=bytearray(start)) if start else None
    booster = xgb.train(parameters, xgb.DMatrix(x, y), rounds, xgb_model=before)
    return bytes(booster[booster.num_boosted_rounds() - rounds :].save_raw(form))


def margins(model, parameters=BINARY):
    x, _ = points(99, 50)
    return xgb.Booster(parameters, model_file=bytearray(model)).predict(xgb.DMatrix(x), output_margin=True)


ONE, TWO, THREE = boosted(1), boosted(2, rounds=2), boosted(3, parameters=CLASSES)


def test_a_merged_model_is_the_mean_of_the_clients_by_their_examples():
    merged = MergeTrees()(b"", {7: ONE, 2: TWO}, {7: 100.0, 2: 300.0})
    np.testing.assert_allclose(margins(merged), 0.25 * margins(ONE) + 0.75 * margins(TWO), atol=1e-6)
    assert tree_count(merged) == 3


def test_without_averaging_it_is_the_sum_as_flower_has_it():
    merged = MergeTrees(average=False)(b"", {7: ONE, 2: TWO}, {7: 100.0, 2: 300.0})
    np.testing.assert_allclose(margins(merged), margins(ONE) + margins(TWO), atol=1e-6)


def test_a_model_goes_on_growing_and_keeps_its_older_trees():
    first = MergeTrees()(b"", {1: ONE, 2: TWO}, {1: 1.0, 2: 1.0})
    new = {1: boosted(1, first), 5: boosted(5, first, rounds=2)}
    second = MergeTrees()(first, new, {1: 3.0, 5: 1.0})
    assert tree_count(second) == tree_count(first) + 3
    older = json.loads(first)["learner"]["gradient_booster"]["model"]["trees"]
    model = json.loads(second)["learner"]["gradient_booster"]["model"]
    assert model["trees"][: len(older)] == older
    assert [tree["id"] for tree in model["trees"]] == [*range(6)]
    assert model["iteration_indptr"] == [0, 1, 2, 3, 4, 5, 6]
    wanted = margins(first) + 0.75 * margins(new[1]) + 0.25 * margins(new[5])
    np.testing.assert_allclose(margins(second), wanted, atol=1e-6)


def test_every_class_keeps_its_trees():
    merged = MergeTrees()(b"", {1: THREE, 2: boosted(4, parameters=CLASSES)}, {1: 1.0, 2: 1.0})
    inside = json.loads(merged)["learner"]["gradient_booster"]["model"]
    assert (inside["tree_info"], inside["iteration_indptr"]) == ([0, 1, 2, 0, 1, 2], [0, 3, 6])
    wanted = (margins(THREE, CLASSES) + margins(boosted(4, parameters=CLASSES), CLASSES)) / 2
    np.testing.assert_allclose(margins(merged, CLASSES), wanted, atol=1e-6)


def test_a_model_of_no_trees_fixes_the_settings_before_anyone_replies():
    own = bytes(xgb.train(BINARY, xgb.DMatrix(np.zeros((1, 5)), [0]), 0).save_raw("json"))
    merged = MergeTrees()(own, {1: ONE}, {1: 1.0})
    np.testing.assert_array_equal(margins(merged), margins(ONE))
    with pytest.raises(PeerError, match="base_score"):
        MergeTrees()(own, {1: boosted(1, parameters={**BINARY, "base_score": 0.4})}, {1: 1.0})


@given(order=st.permutations([3, 1, 2]))
@settings(max_examples=6, deadline=None)
def test_the_order_of_replies_changes_no_bit(order):
    sent, weights = {1: ONE, 2: TWO, 3: boosted(6)}, {1: 5.0, 2: 1.0, 3: 0.5}
    wanted = MergeTrees()(ONE, sent, weights)
    assert MergeTrees()(ONE, {client: sent[client] for client in order}, weights) == wanted


def test_who_sends_nothing_adds_nothing_and_weighs_nothing():
    assert MergeTrees()(ONE, {1: b""}, {1: 9.0}) == ONE
    assert MergeTrees()(b"", {}, {}) == b""
    alone = MergeTrees()(b"", {1: b"", 2: ONE}, {1: 9.0, 2: 1.0})
    np.testing.assert_array_equal(margins(alone), margins(ONE))
    even = MergeTrees()(b"", {1: ONE, 2: ONE}, {1: 0.0, 2: 0.0})
    np.testing.assert_allclose(margins(even), margins(ONE), atol=1e-6)


def changed(edit, of=ONE):
    model = copy.deepcopy(json.loads(of))
    edit(
        model, model["learner"]["gradient_booster"]["model"], model["learner"]["gradient_booster"]["model"]["trees"][0]
    )
    return json.dumps(model).encode()


def put(name, value, at=0):
    def edit(model, booster, tree):
        tree[name][at] = value

    return edit


WRONG = {
    "not json": (b"\x80\x04ub", "no JSON"),
    "ubjson": (boosted(1, form="ubj"), "no JSON"),
    "a list": (b"[]", "no JSON object"),
    "nested": (b"[" * 100_000, "merged"),
    "empty object": (b"{}", "lacks .*learner"),
    "a number": (changed(lambda m, b, t: m.update(learner=3)), "merged"),
    "nan": (ONE.replace(b'"sum_hessian":[', b'"sum_hessian":[NaN,'), "NaN"),
    "beyond float32": (changed(put("sum_hessian", 1e300)), "not finite"),
    "another parent": (changed(put("parents", 0, at=-1)), "do not form one"),
    "a strange split": (changed(put("split_type", 2)), "unknown kind"),
    "infinite": (changed(put("split_conditions", 1e400)), "merged"),
    "text": (changed(put("split_conditions", "x")), "not finite"),
    "another base score": (boosted(1, parameters={**BINARY, "base_score": 0.4}), r"base_score is \[4E-1\]"),
    "other classes": (THREE, "num_class"),
    "another objective": (boosted(1, parameters={**BINARY, "objective": "reg:logistic"}), "objective is 'reg:log"),
    "dart": (boosted(1, parameters={**BINARY, "booster": "dart"}), "'dart'"),
    "wrong count": (changed(lambda m, b, t: b["gbtree_model_param"].update(num_trees="7")), "7 trees and holds 1"),
    "no iterations": (changed(lambda m, b, t: b.update(iteration_indptr=[])), "merged"),
    "no such class": (changed(lambda m, b, t: b.update(tree_info=[1])), "class that does not exist"),
    "a cycle": (changed(put("left_children", 0)), "do not form one"),
    "a child twice": (changed(lambda m, b, t: put("left_children", t["right_children"][0])(m, b, t)), "do not form"),
    "a child too far": (changed(put("left_children", 1000)), "do not form one"),
    "half a split": (changed(put("left_children", -1)), "do not form one"),
    "a fraction": (changed(put("left_children", 1.5)), "no whole numbers"),
    "no such feature": (changed(put("split_indices", 5)), "beyond its 5"),
    "short": (changed(lambda m, b, t: t["base_weights"].pop()), "not all of its"),
    "more nodes": (changed(lambda m, b, t: t["tree_param"].update(num_nodes="99")), "not all of its 99"),
    "vector leaves": (changed(lambda m, b, t: t["tree_param"].update(size_leaf_vector="3")), "one_output_per_tree"),
    "categories": (changed(lambda m, b, t: t.update(categories_nodes=[0], categories_segments=[9],
                                                    categories_sizes=[1])), "categories"),
    "categories coded": (changed(lambda m, b, t: b.update(cats={"enc": [1]})), "categories otherwise"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_reply_that_is_no_such_model_is_refused_by_the_clients_number(name):
    update, says = WRONG[name]
    with pytest.raises(PeerError, match=f"client 4, .*{says}") as error:
        MergeTrees()(ONE, {3: TWO, 4: update}, {3: 1.0, 4: 1.0})
    assert error.value.client == 4
    assert "\n" not in str(error.value)


def test_a_reply_that_is_too_large_is_refused_before_it_is_read():
    with pytest.raises(PeerError, match=f"{len(ONE)} bytes, more than max_bytes=10"):
        MergeTrees(max_bytes=10)(b"", {4: ONE}, {4: 1.0})


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_strangers_bytes_end_in_a_model_or_a_peer_error_and_nothing_else(data):
    text = bytearray(ONE)
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.sampled_from(b'0123456789-.,:[]{}"e x'))
    try:
        merged = MergeTrees()(TWO, {4: bytes(text)}, {4: 1.0})
    except PeerError:
        return
    assert tree_count(merged) >= 2


def gathered(tag, updates, weights=None):
    clients = np.array(sorted(updates), np.int64)
    weights = np.ones(len(clients)) if weights is None else np.array(weights)
    output = {"trees": Folded(dict(updates), len(clients))} if updates else {}
    return Gathered(tag, output, float(weights.sum()), clients, weights, {})


def test_a_round_asks_merges_publishes_and_asks_again():
    algorithm = Bagging(2, 5, quorum=Quorum(deadline_s=9.0))
    state, effects = algorithm.step(algorithm.init(Params(np.empty(0), Layout((), ()))), Started({}, 20), CONTEXT)
    (run,) = effects
    assert (run.work, run.on, run.tag, run.key, run.quorum.deadline_s) == ("train", Sample(5), 1, ("train", 1), 9.0)
    assert run.reduce == {"trees": Collect()}
    assert run.config == {"round": 1}
    state, (publish, run) = algorithm.step(state, gathered(1, {3: ONE, 8: TWO}, [1.0, 3.0]), CONTEXT)
    assert (publish.version, tree_count(publish.model.opaque)) == (1, 3)
    assert run.model is publish.model
    size = (len(ONE) + len(TWO)) // 2
    assert run.config == {"round": 2, "reply_bytes": size}
    state, (last, stop) = algorithm.step(state, gathered(2, {}), CONTEXT)
    assert (last.version, last.model.opaque, stop) == (2, publish.model.opaque, Stop("rounds"))


def test_unknown_and_late_events_change_nothing_and_a_state_can_be_stored():
    algorithm = Evaluate(Bagging(3, 5))
    state, _ = algorithm.step(algorithm.init(Params(np.empty(0), Layout((), ()))), Started({}, 20), CONTEXT)
    state, effects = algorithm.step(state, gathered(1, {3: ONE}), CONTEXT)
    assert [type(effect) for effect in effects] == [Publish, Run]
    for event in (Woke("x"), Started({}, 20), gathered(1, {3: ONE}), gathered(7, {3: ONE})):
        after, nothing = algorithm.step(state, event, CONTEXT)
        assert after is state
        assert tuple(nothing) == ()
    again, same = algorithm.step(storable(state), gathered(2, {4: TWO}), CONTEXT)
    after, effects = algorithm.step(state, gathered(2, {4: TWO}), CONTEXT)
    assert flatten(again) == flatten(after)
    assert flatten(tuple(same)) == flatten(tuple(effects))


def test_a_reply_that_cannot_be_merged_names_client_and_round():
    algorithm = Bagging(3, 5)
    state, _ = algorithm.step(algorithm.init(Params(np.empty(0), Layout((), ()))), Started({}, 20), CONTEXT)
    with pytest.raises(PeerError, match=r"client 9, round 1: .*no JSON"):
        algorithm.step(state, gathered(1, {3: ONE, 9: b"?"}), CONTEXT)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Bagging(0, 5), "rounds >= 1"),
        (lambda: Bagging(2, 5, quorum=Quorum(need=6)), "need <= 5"),
        (lambda: Bagging(2, 5, merge_=1), "did you mean 'merge'"),
        (lambda: Bagging(2, 5).init(Params.pack({"w": np.zeros(3)})), "opaque"),
        (lambda: check(Bagging(2, 5), deployed=True), "deadline_s"),
        (lambda: build("bagging", 2, 5, view=None), "no option 'view'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, says):
    with pytest.raises(UsageError, match=says):
        make()


def test_the_catalogue_has_it():
    known = entry("bagging")
    assert known in ALGORITHMS
    assert (known.model, known.folds) == ("bytes", {"trees": Collect()})
    assert build("bagging", 3, 4) == Bagging(3, 4)


def train(model, data, config, generator):
    before = xgb.Booster(BINARY, model_file=bytearray(model)) if model else None
    parameters = {**BINARY, "subsample": 0.8, "seed": int(generator.integers(2**31))}
    booster = xgb.train(parameters, xgb.DMatrix(data["x"], data["y"]), 1, xgb_model=before)
    return bytes(booster[booster.num_boosted_rounds() - 1 :].save_raw("json"))


def evaluate(model, data):
    chance = xgb.Booster(BINARY, model_file=bytearray(model)).predict(xgb.DMatrix(data["x"]))
    right = np.where(data["y"] == 1, chance, 1 - chance)
    return {"loss": -np.log(right).mean(), "accuracy": (right > 0.5).mean()}


def job(rounds=8, **simulated):
    x, y = points(0, 1200)
    y = np.minimum(y, 1)
    data = ff.federate({"x": x[:600], "y": y[:600]}, ff.iid(15), test={"x": x[600:], "y": y[600:]}).holdout(0.2)
    return ff.Job(
        ff.opaque(train, evaluate, init=b""), data, ff.Bagging(rounds, 6), seed=3,
        evaluate=ff.Evaluation(clients=5, clients_every=4), simulated=ff.Simulated(**simulated),
    )  # fmt: skip


@pytest.mark.slow
def test_trees_of_many_clients_beat_those_of_one():
    rounds, merge = 20, MergeTrees()
    made = job(rounds, workers=1)
    together = made.run(None, progress=False)
    assert tree_count(together.model.opaque) == rounds * 6
    alone = []
    for client in range(10):
        rows, model, generator = made.data.block([client]).client(0), b"", np.random.default_rng(0)
        for _ in range(rounds):
            model = merge(model, {0: train(model, rows, {}, generator)}, {0: 1.0})
        alone.append(evaluate(model, made.data.test)["accuracy"])
    assert together.final["accuracy"] > np.mean(alone) + 0.03
    assert sum(together.final["accuracy"] > one for one in alone) >= 8
    assert {"federated_accuracy_mean", "federated_loss_worst_decile"} <= together.final.keys()


def test_neither_chunks_nor_workers_change_a_bit_of_a_run():
    first = job(3, workers=1, chunk=100).run(None, progress=False)
    for simulated in ({"workers": 1, "chunk": 1}, {"workers": 2, "chunk": 1}):
        again = job(3, **simulated).run(None, progress=False)
        assert again.model.opaque == first.model.opaque
        assert again.final == first.final
    assert first.model.opaque != replace_seed(job(3, workers=1)).run(None, progress=False).model.opaque


def replace_seed(made):
    return made.with_overrides({"seed": 4})


def test_bytes_are_counted_as_the_model_grows():
    result = job(3, workers=1).run(None, progress=False)
    rows = result.rounds
    assert rows[0]["bytes_down"] == 0.0
    down = [after["bytes_down"] - before["bytes_down"] for before, after in pairwise(rows)]
    assert 0 < down[0] < down[1]
    assert rows[2]["bytes_up"] > rows[1]["bytes_up"] > 0


def test_an_evaluation_on_clients_is_sent_the_whole_model():
    made = job(3, workers=1)
    quiet = replace(made, evaluate=replace(made.evaluate, clients=None)).run(None, progress=False)
    told = replace(made, evaluate=ff.Evaluation(clients=3, clients_every=3)).run(None, progress=False)
    more = told.summary["bytes_down"] - quiet.summary["bytes_down"]
    assert told.model.opaque == quiet.model.opaque
    assert more == 3 * len(told.model.opaque)


JOB = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from dataclasses import replace
from test_bagging import job as made

def die(row):
    if row["round"] == int(os.environ.get("DIE_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)

job = replace(made(5, workers=1), callbacks=(die,))
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes_and_exports_what_xgboost_reads(tmp_path):
    (tmp_path / "killed.py").write_text(JOB.format(tests=str(Path(__file__).parent)))
    fieldfare = [sys.executable, "-m", "fieldfare.cli"]
    common = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    killed = subprocess.run([*fieldfare, "run", "killed.py", "-q"], env={**os.environ, "DIE_AT": "4"}, **common)
    assert killed.returncode == -signal.SIGKILL
    resumed = subprocess.run([*fieldfare, "resume", "-q"], **common)
    assert resumed.returncode == 0, resumed.stderr
    wanted = job(5, workers=1).run(None, progress=False).model.opaque
    assert RunFolder.find("latest", tmp_path / "runs").read_model().opaque == wanted
    exported = subprocess.run([*fieldfare, "export", "-o", "trees.json"], **common)
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "trees.json").read_bytes() == wanted
    assert xgb.Booster(model_file=str(tmp_path / "trees.json")).num_boosted_rounds() == 30
    refused = subprocess.run([*fieldfare, "export", "-o", "trees.npz"], **common)
    assert refused.returncode == 2
    assert ".json" in refused.stderr
    assert (tmp_path / "runs" / "latest" / "report.html").stat().st_size > 10_000
