"""Nodes that ask nodes: one gather per ask, quorums and deadlines, refused answers, messages and their time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from fieldfare.core.effects import Answer, Publish, Run, Send, Stop, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Asked, Gathered, Joined, Received, Started, Woke
from fieldfare.core.folds import Collect, Folded, Mean, Total
from fieldfare.core.quorum import Quorum
from fieldfare.sim.simulator import Links, size_of
from fieldfare.testing import Asking, loop, quadratics, simulate

PROBLEM = quadratics(n=2)
both = pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])


@dataclass(frozen=True)
class Answering:
    """A node that answers what `reply` says, `after` seconds later (None: never)."""

    reply: Callable[[Asked], Mapping[str, Any] | Answer]
    after: float | None = 0.0

    def init(self, model):
        return ()

    def step(self, state, event, ctx):
        match event:
            case Asked():
                return (*state, event), () if self.after is None else (Wake(self.after, event.id),)
            case Woke(tag):
                answer = self.reply(next(asked for asked in state if asked.id == tag))
                return state, (answer if isinstance(answer, Answer) else Answer(tag, answer, 2.0, {"m": 1.0}),)
            case _:
                return state, ()


def value(number: float):
    return lambda asked: {"x": np.full(3, number, np.float32)}


def gathered(driver, run: Run, others: Mapping[str, Answering], links: Links = Links(), count: int = 1):
    nodes = {"central": ("central", Asking((run,)))} | {name: ("edge", node) for name, node in others.items()}
    end = driver(PROBLEM.world(nodes, links=links), keep=True)
    events = end.transcript.events(Gathered, "central")
    assert len(events) == count
    return events[0] if count else None, end


def ask(*names: str, **more: Any) -> Run:
    return Run("sum", names, "t", **{"reduce": {"x": Mean()}, **more})


@both
def test_answers_of_nodes_are_folded_and_named(driver):
    event, end = gathered(driver, ask("a", "b"), {"a": Answering(value(1.0)), "b": Answering(value(4.0), 3.0)})
    assert (event.clients, event.weights.tolist(), event.weight, event.missing) == (("a", "b"), [2.0, 2.0], 4.0, {})
    assert event.output["x"].value.tolist() == [2.5] * 3
    assert event.metrics["m"].tolist() == [1.0, 1.0]
    assert end.transcript.steps[-1].now == 3.0


@both
@pytest.mark.parametrize(
    ("quorum", "clients", "missing", "now"),
    [
        (Quorum(need=1), ("b",), {"late": ("a", "c")}, 1.0),
        (Quorum(deadline_s=2.5), ("a", "b"), {"late": ("c",)}, 2.5),
        (Quorum(need=2, deadline_s=9.0), ("a", "b"), {"late": ("c",)}, 2.0),
        (Quorum(deadline_s=0.5), (), {"late": ("a", "b", "c")}, 0.5),
    ],
)
def test_a_quorum_of_nodes_is_met_or_its_deadline_passes(driver, quorum, clients, missing, now):
    nodes = {"a": Answering(value(1), 2.0), "b": Answering(value(2), 1.0), "c": Answering(value(3), None)}
    event, end = gathered(driver, ask("a", "b", "c", quorum=quorum), nodes)
    assert (event.clients, event.missing) == (clients, missing)
    when = [step.now for step in end.transcript.of("central") if step.kind == "Gathered"]
    assert when == [now]


@both
@pytest.mark.parametrize("bad", [np.full(3, np.nan, np.float32), np.full(3, 1e30, np.float32), np.ones(2, np.float32)])
def test_an_answer_that_cannot_be_folded_is_refused_and_named(driver, bad):
    nodes = {"a": Answering(value(1.0)), "b": Answering(lambda asked: {"x": bad}), "c": Answering(value(3.0))}
    event, _ = gathered(driver, ask("a", "b", "c"), nodes)
    assert (event.clients, event.missing) == (("a", "c"), {"refused": ("b",)})
    assert event.output["x"].value.tolist() == [2.0] * 3


@both
def test_totals_and_plain_values_fold_side_by_side(driver):
    total = Total(np.full(3, 5 * 2**32), 2, 2.0**-32, 1.0)
    nodes = {"a": Answering(lambda asked: {"x": total}), "b": Answering(value(1.0))}
    event, _ = gathered(driver, ask("a", "b"), nodes)
    assert event.output["x"].value.tolist() == [7 / 4] * 3
    assert event.output["x"].weight == 4.0


@both
def test_collected_answers_come_by_name_of_node_and_inputs_for_one_reach_only_it(driver):
    nodes = {name: Answering(lambda asked: {"x": asked.inputs.get("mine", b"none")}) for name in ("a", "b")}
    run = ask("a", "b", reduce={"x": Collect()}, each={"b": {"mine": b"for b"}})
    event, _ = gathered(driver, run, nodes)
    assert event.output["x"].value == {"a": b"none", "b": b"for b"}


@both
def test_an_asked_node_sees_the_key_of_the_ask(driver):
    nodes = {"a": Answering(lambda asked: {"x": repr(asked.key).encode()})}
    for run, key in ((ask("a"), ("t",)), (ask("a", key=("k", 1)), ("k", 1))):
        event, _ = gathered(driver, Run(run.work, run.on, run.tag, reduce={"x": Collect()}, key=run.key), nodes)
        assert event.output["x"].value["a"] == repr(key).encode()


@both
@pytest.mark.parametrize(
    ("run", "message"),
    [
        (ask("a", "nobody"), "no node is called 'nobody': this run has central, a."),
        (ask("a", "a"), "a Run asks 2 nodes, 1 different: name each once"),
        (ask("a", quorum=Quorum(need=2)), r"Quorum\(need=2\) can never be met by 1 nodes: use need <= 1."),
        (ask("a", quorum=Quorum(late="next")), "late='next'"),
    ],
)
def test_an_impossible_ask_of_nodes_is_refused_in_one_line(driver, run, message):
    with pytest.raises(UsageError, match=message) as caught:
        gathered(driver, run, {"a": Answering(value(1.0))})
    assert "\n" not in str(caught.value)


@both
def test_an_answer_that_is_a_fold_and_not_its_value_is_told_so(driver):
    nodes = {"a": Answering(lambda asked: {"x": Folded(np.zeros(3), 1.0)})}
    with pytest.raises(UsageError, match="answer with its value, or its total"):
        gathered(driver, ask("a"), nodes)


@both
@pytest.mark.parametrize("shift", [1, 77, 10**9, -(10**9)])
def test_answers_nobody_waits_for_change_nothing(driver, shift):
    wrong = Answering(lambda asked: Answer(asked.id + shift, {"x": np.ones(3, np.float32)}))
    event, _ = gathered(driver, ask("a", quorum=Quorum(deadline_s=5.0)), {"a": wrong})
    assert (event.clients, event.missing) == ((), {"late": ("a",)})


@both
def test_the_first_answer_of_a_node_counts_and_a_second_one_changes_nothing(driver):
    class Twice(Answering):
        def step(self, state, event, ctx):
            state, effects = super().step(state, event, ctx)
            again = [replace(e, output={"x": np.zeros(3, np.float32)}) for e in effects if isinstance(e, Answer)]
            return state, (*effects, *again)

    nodes = {"a": Twice(value(1.0)), "b": Answering(value(4.0), 3.0)}
    event, _ = gathered(driver, ask("a", "b"), nodes)
    assert event.output["x"].value.tolist() == [2.5] * 3


@both
def test_an_answer_counts_when_it_arrives_over_a_slow_link(driver):
    """Twelve bytes take 12 s; asks of no model arrive at once."""
    links = Links(bytes_per_s=1.0)
    nodes = {"a": Answering(value(1.0)), "b": Answering(lambda asked: {"x": np.ones(3)}, 1.0)}
    event, end = gathered(driver, ask("a", "b"), nodes, links)
    assert end.transcript.steps[-1].now == 1.0 + 24.0
    run = ask("a", "b", quorum=Quorum(deadline_s=13.0))
    event, _ = gathered(driver, run, nodes, links)
    assert (event.clients, event.missing) == (("a",), {"late": ("b",)})


@dataclass(frozen=True)
class Chatting:
    """Sends `to` each of `bodies` at the start; keeps what it gets; stops at the last of `hear`."""

    to: str = ""
    bodies: tuple[Any, ...] = ()
    hear: int = -1
    got: tuple[Any, ...] = field(default=())

    def init(self, model):
        return ()

    def step(self, state, event, ctx):
        match event:
            case Started():
                return state, tuple(Send(self.to, body) for body in self.bodies)
            case Received(_, body):
                state = (*state, (ctx.now, body))
                return state, (Stop("heard"),) if len(state) == self.hear else ()
            case _:
                return state, ()


@both
def test_messages_take_the_links_time_by_size_and_arrive_once(driver):
    nodes = {
        "a": ("a", Chatting("b", (np.zeros(4, np.float32), b"xy", None))),
        "b": ("b", Chatting(hear=3)),
    }
    end = driver(PROBLEM.world(nodes, links=Links(0.5, 8.0)), keep=True)
    when = [step.now for step in end.transcript.of("b") if step.kind == "Received"]
    assert when == [0.5, 0.75, 2.5]
    assert end.reason == "heard"


@both
def test_a_message_to_a_node_that_does_not_exist_is_a_usage_error(driver):
    with pytest.raises(UsageError, match="no node is called 'z': this run has a"):
        driver(PROBLEM.world({"a": ("a", Chatting("z", (1,)))}))


@both
def test_scripted_happenings_reach_their_nodes_at_their_time(driver):
    nodes = {name: ("r", Chatting()) for name in "ab"}
    end = driver(PROBLEM.world(nodes, happenings=[(2.0, Joined(1), ("a", "b")), (1.0, Joined(0), ("b",))]), keep=True)
    found = [(step.node, step.now) for step in end.transcript.steps if step.kind == "Joined"]
    assert found == [("b", 1.0), ("a", 2.0), ("b", 2.0)]


@both
def test_a_happening_for_a_node_that_does_not_exist_is_refused(driver):
    with pytest.raises(UsageError, match="no node is called 'z': this run has a"):
        driver(PROBLEM.world({"a": ("a", Chatting())}, happenings=[(1.0, Joined(0), ("z",))]))


def test_a_deadline_that_came_to_nothing_does_not_move_the_clock():
    class Leaving(Asking):
        def step(self, state, event, ctx):
            return state, self.runs if isinstance(event, Started) else ()

    run = ask("a", quorum=Quorum(deadline_s=100.0))
    world = PROBLEM.world({"central": ("central", Leaving((run,))), "a": ("edge", Answering(value(1.0), 2.0))})
    end = simulate(world)
    assert (end.reason, end.driver.progress.now) == ("nothing left to happen", 2.0)


@both
def test_an_evaluation_this_job_does_not_have_is_named(driver):
    class Publishing(Chatting):
        def step(self, state, event, ctx):
            return state, (Publish(PROBLEM.model, 1, ("taste",)),)

    with pytest.raises(UsageError, match="no central evaluation is called 'taste': this job has test"):
        driver(PROBLEM.world({"a": ("a", Publishing())}))


@both
def test_an_error_in_a_step_reaches_the_caller(driver):
    class Failing(Chatting):
        def step(self, state, event, ctx):
            raise ZeroDivisionError("in my own algorithm")

    with pytest.raises(ZeroDivisionError, match="in my own algorithm"):
        driver(PROBLEM.world({"a": ("a", Failing())}))


def test_sizes_of_messages_count_payloads_only():
    assert size_of({"x": np.zeros(3, np.float32), "y": (b"ab", "abc")}) == 12 + 5 + 2
    assert size_of(PROBLEM.model) == PROBLEM.model.bytes
    assert size_of(None) == 0
    assert size_of(1.5) == 8
    assert size_of(Total(np.zeros(2, np.int64), 1, 1.0, 1.0)) == 16 + 24
