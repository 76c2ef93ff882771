"""Records: rows keep their order, wait for their evaluations, and come out whole when a run stops."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from fieldfare.core.effects import Run
from fieldfare.core.errors import PeerError
from fieldfare.core.events import Evaluated, Gathered
from fieldfare.core.params import Layout, Params
from fieldfare.core.quorum import Sample
from fieldfare.record import TOLD
from fieldfare.record import Recorder as Recording
from fieldfare.sim.asks import Ask
from fieldfare.sim.observe import Answered, Measured, Progressed, Published, Stopped
from fieldfare.store.runs import RunFolder


class Recorder(Recording):
    """Every observation here is a step of its own."""

    def __call__(self, seen):
        super().__call__(seen)
        if not isinstance(seen, Stopped):
            super().__call__(Progressed(0.0, 0))


LAYOUT = Layout.of({"w": (2,)})


def published(version, now=None, evaluate=("test",), node="central"):
    return Published(float(version) if now is None else now, node, Params(np.full(2, version, "f4"), LAYOUT), version,
                     evaluate)  # fmt: skip


def measured(version, name="test", **metrics):
    return Measured(float(version), Evaluated(version, name, metrics))


def answered(round_, clients=(3, 5), loss=(1.0, 3.0), weights=(1.0, 3.0), missing=None, tag=None):
    ids = np.array(clients)
    gone = {reason: np.array(who) for reason, who in (missing or {}).items()}
    asked = np.sort(np.concatenate([ids, *gone.values()])).astype(np.int64)
    ask = Ask(
        "central", Run("train", Sample(2), tag or round_, config={"round": round_}), 0.0, 1.0, asked,
        np.arange(len(asked)) + 0.5, {}, 0.0, 0.0, 0.0, len(asked),
    )  # fmt: skip
    event = Gathered(
        ask.run.tag, {}, float(sum(weights)), ids, np.array(weights, float), {"loss": np.array(loss)}, gone
    )
    return Answered(float(round_), ask, event, 100.0 * round_, 10.0 * round_)


def evaluation(version, kind="federated", accuracy=(0.0, 1.0), weights=(2.0, 2.0)):
    ids = np.arange(len(accuracy))
    ask = Ask(
        "central",
        Run("evaluate", Sample(2), ("evaluate", kind, version)),
        0.0,
        1.0,
        ids,
        ids + 0.5,
        {},
        0.0,
        0.0,
        0.0,
        2,
    )
    metrics = {"accuracy": np.array(accuracy, float), "loss": 1 - np.array(accuracy, float),
               "examples": np.array(weights, float)}  # fmt: skip
    event = Gathered(ask.run.tag, {}, float(sum(weights)), ids, np.array(weights, float), metrics)
    return Answered(float(version), ask, event, 0.0, 0.0)


def test_a_row_is_written_when_its_evaluation_is_in_and_not_before():
    shown: list = []
    recorder = Recorder(None, shown=shown.append)
    recorder(answered(1))
    recorder(published(1))
    recorder(Progressed(1.0, 1))
    assert recorder.rows == []
    recorder(measured(1, accuracy=0.25, loss=2.0))
    assert shown == recorder.rows
    row = recorder.rows[0]
    told = {"round": 1, "clients": 2, "bytes_down": 100.0, "bytes_up": 10.0, "accuracy": 0.25, "loss": 2.0,
            "virtual_s": 1.0}  # fmt: skip
    assert {key: row[key] for key in told} == told
    assert row["train_loss"] == (1.0 * 1 + 3.0 * 3) / 4


def test_rows_keep_their_order_when_evaluations_come_in_another():
    recorder = Recorder(None)
    for version in (1, 2, 3):
        recorder(answered(version))
        recorder(published(version))
    recorder(measured(3, loss=3.0))
    recorder(measured(2, loss=2.0))
    assert recorder.rows == []
    recorder(measured(1, loss=1.0))
    assert [(row["round"], row["loss"]) for row in recorder.rows] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_row_does_not_wait_for_those_that_come_after_it():
    recorder = Recorder(None)
    recorder(published(1))
    recorder(published(2))
    recorder(measured(1, loss=1.0))
    assert [row["round"] for row in recorder.rows] == [1]


def test_a_row_waits_for_all_that_was_announced():
    due = {"federated", "personal"}
    recorder = Recorder(None, expects=lambda version: due if version == 2 else set())
    for version in (1, 2):
        recorder(published(version, evaluate=("test", "other") if version == 2 else ()))
    assert [row["round"] for row in recorder.rows] == [1]
    due.discard("personal")
    recorder(evaluation(2, "personal"))
    recorder(measured(2, accuracy=0.5))
    due.discard("federated")
    recorder(evaluation(2))
    assert len(recorder.rows) == 1
    recorder(measured(2, "other", accuracy=0.75))
    assert recorder.rows[1]["accuracy"] == 0.5
    assert recorder.rows[1]["other_accuracy"] == 0.75
    assert recorder.rows[1]["federated_accuracy_mean"] == recorder.rows[1]["personal_accuracy_mean"] == 0.5


def test_what_was_not_announced_changes_no_row():
    recorder = Recorder(None)
    recorder(published(1, evaluate=()))
    before = [dict(row) for row in recorder.rows]
    recorder(measured(1, accuracy=0.5))
    recorder(published(7, node="edge"))
    assert recorder.rows == before
    assert recorder.model is not None
    assert recorder.model.vector[0] == 1


def test_rows_that_still_wait_are_written_when_the_run_stops():
    recorder = Recorder(None)
    recorder(published(1))
    recorder(published(2))
    recorder(Stopped(2.0, "told to"))
    assert [row["round"] for row in recorder.rows] == [1, 2]
    assert "accuracy" not in recorder.rows[0]


def test_a_round_nobody_answered_has_no_loss_but_says_why():
    recorder = Recorder(None)
    recorder(answered(1, (), (), (), {"late": [1, 2], "drop-out": [4], "refused": []}))
    recorder(published(1, evaluate=()))
    assert recorder.rows[0]["clients"] == 0
    assert recorder.rows[0]["missing"] == {"late": 2, "drop-out": 1}
    assert "train_loss" not in recorder.rows[0]
    recorder(answered(2))
    recorder(published(2, evaluate=()))
    assert "missing" not in recorder.rows[1]


def test_the_lines_on_disk_name_every_client(tmp_path):
    with RunFolder.create(tmp_path, "x") as folder:
        recorder = Recorder(folder)
        recorder(answered(1, (3, 5), missing={"late": [4]}))
        recorder(published(1, evaluate=()))
        recorder(evaluation(1, accuracy=(0.123456789, 1.0, 0.5), weights=(2.0, 3.0, 0.0)))
    assert folder.read_lines("clients.jsonl") == [
        {"round": 1, "clients": [3, 5], "weight": [1.0, 3.0], "seconds": [0.5, 2.5], "train_loss": [1.0, 3.0],
         "missing": {"late": [4]}}
    ]  # fmt: skip
    (line,) = folder.read_lines("evaluation.jsonl")
    assert line == {"round": 1, "kind": "federated", "clients": [0, 1], "examples": [2.0, 3.0],
                    "accuracy": [0.123457, 1.0], "loss": [0.876543, 0.0]}  # fmt: skip
    assert folder.read_lines("rounds.jsonl") == json.loads(json.dumps(recorder.rows))


def test_mean_and_worst_decile_are_over_clients_that_hold_something_out():
    recorder = Recorder(None)
    recorder(evaluation(4, accuracy=(0.0, 0.5, 1.0, 0.7), weights=(1.0, 1.0, 1.0, 0.0)))
    final = recorder.final()
    assert final["federated_accuracy_mean"] == 0.5
    assert final["federated_accuracy_worst_decile"] == 0.0
    assert final["federated_loss_worst_decile"] == 1.0
    recorder(evaluation(5, accuracy=(0.5,), weights=(0.0,)))
    assert "federated_accuracy_mean" not in recorder.final()


def test_the_final_metrics_are_the_last_of_each():
    recorder = Recorder(None)
    for version, evaluate in ((1, ("test",)), (2, ())):
        recorder(answered(version, loss=(version, version)))
        recorder(published(version, evaluate=evaluate))
        if evaluate:
            recorder(measured(version, accuracy=0.5, loss=float("nan")))
    final = recorder.final()
    assert set(final) == {"accuracy", "loss", "train_loss"}
    assert (final["accuracy"], final["train_loss"]) == (0.5, 2.0)
    assert np.isnan(final["loss"])


def test_refused_updates_are_told_a_few_times_with_who_and_when_then_only_recorded():
    notes: list = []
    recorder = Recorder(None, note=notes.append, names=np.array(["a", "b", "c"]))
    for round_ in range(1, TOLD + 4):
        recorder(answered(round_, (0,), (1.0,), (1.0,), {"refused": [1, 2]}))
        recorder(published(round_, evaluate=()))
    assert len(notes) == TOLD
    assert notes[0].startswith("client b, round 1: ")
    assert "and 1 more" in notes[0]
    assert "only recorded" in notes[-1]
    assert "only recorded" not in notes[-2]
    assert [row["missing"] for row in recorder.rows] == [{"refused": 2}] * (TOLD + 3)


def test_a_job_may_end_at_the_first_refused_update():
    recorder = Recorder(None, bad_updates="stop")
    with pytest.raises(PeerError, match=r"client 7, round 3: .*not finite.*learning rate"):
        recorder(answered(3, missing={"refused": [7]}))


def test_wall_time_goes_on_from_where_a_run_was_resumed():
    recorder = Recorder(None)
    recorder.before_s = 100.0
    assert 100.0 <= recorder.wall_s < 100.0 + time.monotonic()


def test_callbacks_get_rows_of_their_own_and_an_error_says_which_and_when():
    seen: list = []

    def first(row):
        seen.append(row["round"])
        row.clear()

    def second(row):
        if row["round"] == 2:
            raise ValueError("full")

    recorder = Recorder(None, (first, second))
    recorder(published(1, evaluate=()))
    with pytest.raises(ValueError, match="full") as caught:
        recorder(published(2, evaluate=()))
    assert caught.value.__notes__ == ["raised by second, a callback of the job, after round 2"]
    assert seen == [1, 2]
    assert [row["round"] for row in recorder.rows] == [1, 2]
