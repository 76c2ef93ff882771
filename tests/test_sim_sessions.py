"""Nodes whose devices come and go: what they are told, what becomes of their training and of messages."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from math import inf, isnan

import numpy as np
import pytest

from fieldfare.algorithms.hadfl.coordinator import Coordinator
from fieldfare.algorithms.hadfl.gossip import Gossip
from fieldfare.algorithms.hadfl.graph import Graph
from fieldfare.algorithms.hadfl.nodes import nodes, of_peers, placed
from fieldfare.algorithms.hadfl.peer import Peer
from fieldfare.core.effects import Run, Send, Stop, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered, Joined, Left, Received, Started, Woke
from fieldfare.core.folds import Stack
from fieldfare.core.quorum import Quorum
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.drift import DriftTable
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.tasks import DROP_OUT, INTERRUPTED, LATE, OK, OUTCOMES, TIMEOUT
from fieldfare.sim.links import Links
from fieldfare.sim.observe import Came, Sent, Worked
from fieldfare.sim.own import begin_own
from fieldfare.sim.population import Population
from fieldfare.testing import checks, quadratics, simulate

PROBLEM = quadratics(n=2, examples=(8, 8))
STEP_S = PROBLEM.net.flops() * 4 / 8.0
"""Seconds of a local step at eight FLOPs a second, in batches of four: ten."""
ALL = Quorum()


def fleet(*sessions, period_s=inf, **more) -> Fleet:
    away = Availability.of(sessions, period_s) if sessions else None
    return Fleet(8.0, 1e9, 1e9, 0.0, availability=away, **more)


@dataclass(frozen=True)
class Works:
    """Trains `steps` at each of `at`, sends `say` at each of its times, and keeps what it is told."""

    at: tuple[float, ...] = ()
    steps: int = 1
    say: tuple[tuple[float, str, int], ...] = ()
    quorum: Quorum = ALL
    until: float | None = None
    again: bool = False

    def init(self, model):
        return (model,)

    def step(self, state, event, ctx):
        match event:
            case Started():
                out = [Wake(at - ctx.now, ("work", n)) for n, at in enumerate(self.at)]
                out += [Wake(at - ctx.now, ("say", n)) for n, (at, _, _) in enumerate(self.say)]
                out += [] if self.until is None else [Wake(self.until - ctx.now, "stop")]
                return (*state, ("started", ctx.now)), out
            case Woke(("work", n)):
                return state, (self._run(state[0], ctx, n),)
            case Woke(("say", n)):
                return state, (Send(self.say[n][1], np.zeros(self.say[n][2], np.uint8)),)
            case Woke("stop"):
                return state, (Stop("until"),)
            case Gathered(tag=n):
                kept = (*state, ("trained", ctx.now, len(event.clients), *event.missing))
                return kept, (self._run(state[0], ctx, n + 1),) if self.again else ()
            case Left(node) | Joined(node):
                return (*state, (type(event).__name__, node, ctx.now)), ()
            case Received(src):
                return (*state, ("heard", src, ctx.now)), ()
            case _:
                return state, ()

    def _run(self, model, ctx, n):
        config = {"steps": self.steps, "round": n + 1, "reply": "model"}
        reduce = {"model": Stack()}
        return Run("train", (ctx.me,), n, model, self.quorum, reduce, config, key=("own", ctx.me, n))


def world(made: dict, of: Fleet, links=Links()):
    places = {name: i for i, name in enumerate(made) if i < 2}
    return PROBLEM.world({n: ("r", a) for n, a in made.items()}, placement=places, fleet=of, links=links)


def told(end, node):
    return end.driver.progress.states[node][1:]


def seen(it, kind):
    """The run and what was seen of a kind; message by message on the loopback it is the same."""
    out = []
    checks.same_everywhere(it)
    end = simulate(it, observer=lambda s: out.append(s) if isinstance(s, kind) else None)
    return end, out


def test_a_node_is_told_when_its_device_goes_and_comes_and_so_is_who_watches():
    it = world({"a": Works(until=100.0), "b": Works()}, fleet([(0.0, 10.0), (20.0, 30.0), (50.0, inf)], [(0.0, inf)]))
    end, came = seen(it, Came)
    sessions = [("Left", "a", 10.0), ("Joined", "a", 20.0), ("Left", "a", 30.0), ("Joined", "a", 50.0)]
    assert told(end, "a") == (("started", 0.0), *sessions)
    assert told(end, "b") == (("started", 0.0),)
    assert [(one.node, one.there, one.now) for one in came] == [(n, what == "Joined", t) for what, n, t in sessions]


def test_a_node_begins_when_its_device_is_there_for_the_first_time_or_never():
    it = world({"a": Works(), "b": Works()}, fleet([(7.0, 9.0)], []))
    end, came = seen(it, Came)
    assert told(end, "a") == (("started", 7.0), ("Left", "a", 9.0))
    assert told(end, "b") == ()
    assert [(one.now, one.node, one.there) for one in came] == [
        (0.0, "a", False), (0.0, "b", False), (7.0, "a", True), (9.0, "a", False),
    ]  # fmt: skip


def test_a_run_in_which_nothing_else_can_happen_ends_though_devices_come_and_go_for_ever():
    it = world({"a": Works(at=(1.0,)), "b": Works()}, fleet([(0.0, 40.0)], [(30.0, 60.0)], period_s=100.0))
    end = simulate(it)
    assert end.reason == "nothing left to happen"
    assert ("trained", 1.0 + STEP_S, 1) in told(end, "a")
    assert end.driver.progress.now < 500.0


def test_training_ends_with_the_session_and_the_node_is_told_first_that_it_left():
    it = world({"a": Works(at=(5.0,), steps=9), "b": Works()}, fleet([(0.0, 5.0 + STEP_S), (900.0, inf)], [(0.0, inf)]))
    end, work = seen(it, Worked)
    cut = 5.0 + STEP_S
    assert told(end, "a")[:3] == (("started", 0.0), ("Left", "a", cut), ("trained", cut, 0, "interrupted"))
    (one,) = work
    assert (one.node, one.begun, one.ended, one.steps, OUTCOMES[one.outcome]) == ("a", 5.0, cut, 9, "interrupted")
    assert one.run.config["round"] == 1


def test_training_asked_for_while_the_device_is_away_begins_when_it_is_back():
    it = world({"a": Works(at=(10.0,)), "b": Works()}, fleet([(0.0, 5.0), (300.0, inf)], [(0.0, inf)]))
    end, work = seen(it, Worked)
    assert [(one.begun, one.ended, one.outcome) for one in work] == [(300.0, 300.0 + STEP_S, OK)]
    assert told(end, "a")[-1] == ("trained", 300.0 + STEP_S, 1)


def test_who_trains_without_end_trains_in_its_sessions_alone():
    sessions = [(100.0 * i, 100.0 * i + 65.0) for i in range(5)]
    it = world({"a": Works(at=(0.0,), again=True), "b": Works(until=450.0)}, fleet(sessions, [(0.0, inf)]))
    _, work = seen(it, Worked)
    assert {OUTCOMES[one.outcome] for one in work} == {"ok", "interrupted"}
    for one in work:
        assert any(begin <= one.begun <= one.ended <= end for begin, end in sessions)
    ends = [one.ended for one in work]
    assert all(one.begun >= end for one, end in zip(work[1:], ends, strict=False))
    for begin, end in sessions[:4]:
        mine = [one for one in work if begin <= one.begun < end]
        assert sum(one.ended - one.begun for one in mine) == pytest.approx(65.0)


def test_messages_to_a_node_that_is_away_are_lost_and_so_are_those_it_would_send():
    says = Works(say=((1.0, "b", 8), (12.0, "b", 8), (25.0, "b", 8)))
    hears = Works(say=((11.0, "a", 8), (12.5, "c", 8)))
    it = world({"a": says, "b": hears, "c": Works()}, fleet([(0.0, inf)], [(0.0, 10.0), (20.0, inf)]))
    end, sent = seen(it, Sent)
    heard = [what for what in told(end, "b") if what[0] == "heard"]
    assert [(src, pytest.approx(at)) for _, src, at in heard] == [("a", 1.0), ("a", 25.0)]
    lost = [(one.src, one.dst, one.now) for one in sent if isnan(one.arrives)]
    assert lost == [("b", "a", 11.0), ("a", "b", 12.0), ("b", "c", 12.5)]
    assert told(end, "c") == (("started", 0.0),)


@pytest.mark.parametrize(
    ("size", "arrives"),
    [(40, 4.5 + 0.0), (60, inf), (45, 5.0)],
    ids=["before it leaves", "amid", "to the last moment"],
)
def test_a_message_is_lost_when_its_sender_leaves_before_all_of_it_is_sent(size, arrives):
    links = Links(0.0, 10.0)
    it = world(
        {"a": Works(say=((0.5, "b", size),)), "b": Works()}, fleet([(0.0, 5.001), (9.0, inf)], [(0.0, inf)]), links
    )
    end, (one,) = seen(it, Sent)
    heard = [at for what in told(end, "b") if what[0] == "heard" for at in what[2:]]
    assert heard == ([] if arrives == inf else [pytest.approx(arrives)])
    assert isnan(one.arrives) == (arrives == inf)


def test_a_message_is_lost_when_its_receiver_leaves_before_all_of_it_is_there():
    links = Links(1.0, 10.0)
    for leaves, lost in ((5.9, True), (6.1, False)):
        it = world({"a": Works(say=((0.0, "b", 50),)), "b": Works()}, fleet([(0.0, inf)], [(0.0, leaves)]), links)
        _, (one,) = seen(it, Sent)
        assert isnan(one.arrives) == lost


def test_a_device_that_is_back_finds_its_links_free():
    links = Links(0.0, 10.0)
    it = world(
        {"a": Works(say=((0.0, "b", 1000), (20.0, "b", 10))), "b": Works()},
        fleet([(0.0, 10.0), (20.0, inf)], [(0.0, inf)]), links,
    )  # fmt: skip
    end, sent = seen(it, Sent)
    assert [one.now for one in sent if isnan(one.arrives)] == [0.0]
    assert told(end, "b")[-1] == ("heard", "a", 21.0)


def test_what_was_sent_to_a_device_that_was_away_does_not_fill_its_link():
    of = replace(fleet([(0.0, inf)], [(0.0, 5.0), (20.0, inf)]), downlink_bytes_per_s=10.0, slow_links=True)
    it = world({"a": Works(say=((10.0, "b", 1000), (20.0, "b", 10))), "b": Works()}, of)
    end = simulate(it)
    assert told(end, "b")[-1] == ("heard", "a", pytest.approx(21.0))


def test_a_scripted_happening_is_no_session():
    it = world({"a": Works(until=50.0), "b": Works()}, fleet([(0.0, 30.0), (40.0, inf)], [(0.0, inf)]))
    end = simulate(replace(it, happenings=((10.0, Left("a"), ("a", "b")), (20.0, Joined("a"), ("a",)))))
    assert told(end, "b") == (("started", 0.0), ("Left", "a", 10.0))
    assert [what[0] for what in told(end, "a")] == ["started", "Left", "Joined", "Left", "Joined"]


def comes_and_goes(seed, n):
    """Sessions of `n` devices, by a seed, with breaks of all lengths; the last is there for good in the end."""
    dice = random.Random(seed)
    out = []
    for _ in range(n):
        at, spans = dice.choice([0.0, 0.0, 3.0]), []
        for _ in range(dice.randint(0, 4)):
            end = at + dice.choice([1.0, 7.3, 40.0])
            spans.append((at, end))
            at = end + dice.choice([0.3, 5.0, 60.0])
        out.append([*spans, (at, inf)])
    return out


@pytest.mark.parametrize("links", [Links(), Links(0.3, 60.0)], ids=["own", "shared"])
@pytest.mark.parametrize("name", ["hadfl", "graph", "pairs"])
def test_on_the_loopback_all_is_as_in_the_simulator_though_devices_come_and_go(name, links):
    four = quadratics(n=4, dim=7, examples=(8, 8))
    made = {
        "hadfl": nodes(4, Peer(4, batch_size=4), Coordinator(4, steps=3, warmup_patience_s=90.0, floor_s=0.5)),
        "graph": of_peers(4, Graph(5, ((0, 1), (1, 2), (2, 3), (3, 0)), 2)), "pairs": of_peers(4, Gossip(8, 2)),
    }[name]  # fmt: skip
    for seed in range(4):
        of = Fleet(
            1e2, 1e3, 5e2, 0.0, availability=Availability.of(comes_and_goes(seed, 4)), slow_links=True
        )  # fmt: skip
        it = four.world(made, placement=placed(4), fleet=of, links=links)
        checks.same_everywhere(it)
        came = []
        simulate(it, observer=lambda one, came=came: came.append(one) if isinstance(one, Came) else None)
        assert came


def test_a_run_on_devices_that_come_and_go_without_end_ends_on_both_drivers():
    it = world({"a": Works(at=(0.0,)), "b": Works()}, fleet([(0.0, 50.0)], [(10.0, 70.0)], period_s=100.0))
    checks.same_everywhere(it)
    checks.durable(it)


def test_hadfl_goes_through_all_its_cycles_though_peers_come_and_go():
    four = quadratics(n=4, dim=7, examples=(8, 8))
    seconds = four.net.flops() * 4 / 1e3
    sessions = [[(0.0, inf)], [(0.0, inf)], [(0.0, 40.0 * seconds), (60.0 * seconds, inf)], [(30.0 * seconds, inf)]]
    of = Fleet(1e3, 1e6, 1e6, 0.0, availability=Availability.of(sessions))
    made = nodes(4, Peer(12, batch_size=4), Coordinator(12, steps=4, warmup_patience_s=40.0 * seconds, floor_s=seconds))
    end, came = seen(four.world(made, placement=placed(4), fleet=of, links=Links()), Came)
    assert end.reason == "cycles"
    assert [(one.node, one.there) for one in came] == [
        ("peer/3", False), ("peer/3", True), ("peer/2", False), ("peer/2", True),
    ]  # fmt: skip
    states = end.driver.progress.states
    assert {states[f"peer/{i}"].applied for i in range(4)} <= set(range(8, 13))


def test_training_whose_device_is_not_back_in_time_is_not_begun():
    it = world(
        {"a": Works(at=(6.0,), quorum=Quorum(deadline_s=30.0)), "b": Works()},
        fleet([(0.0, 5.0), (50.0, inf)], [(0.0, inf)]),
    )
    end, work = seen(it, Worked)
    assert work == []
    assert ("trained", 36.0, 0, "unavailable") in told(end, "a")


# A node's own task


def own(of: Fleet, quorum=Quorum(), now=0.0, config=None, **more):
    run = Run("train", ("a",), 1, PROBLEM.model, quorum, {"model": Stack()}, config or {"steps": 2}, **more)
    return begin_own(run, now, Population.of(PROBLEM.data, of), {"train": PROBLEM.work()}, 0, 0)


def test_a_node_that_trains_its_own_model_waits_for_no_transfer_and_no_start():
    slow = replace(
        fleet(), downlink_bytes_per_s=1.0, uplink_bytes_per_s=1.0, latency_s=9.0, overhead_s=7.0, slow_links=True
    )
    begun = own(slow, now=3.0)
    assert begun.seconds.tolist() == begun.parts.compute.tolist() == [2 * STEP_S]
    assert (begun.cost.bytes_down.tolist(), begun.cost.bytes_up.tolist()) == ([0.0], [0.0])


def test_a_nodes_own_training_drifts():
    of = fleet(drift=DriftTable([0.0, 3.0 + STEP_S], [[1.0, 0.25], [1.0, 1.0]]))
    assert own(of, now=3.0).seconds.tolist() == [pytest.approx(STEP_S + 4 * STEP_S)]


def test_noise_of_a_nodes_own_training_depends_on_its_key_and_not_on_its_device():
    noisy = fleet(noise=0.3)
    one, other = own(noisy, key=("k", 1)), own(noisy, key=("k", 2))
    assert one.seconds.tolist() == own(noisy, key=("k", 1)).seconds.tolist() != other.seconds.tolist()


def test_a_budget_of_seconds_buys_a_nodes_own_training_whole_steps():
    begun = own(fleet(), config={"steps": 9, "budget_s": 3.5 * STEP_S})
    assert begun.steps.tolist() == [3]
    assert begun.seconds.tolist() == [pytest.approx(3 * STEP_S)]


@pytest.mark.parametrize(
    ("of", "quorum", "outcome", "ended", "reason"),
    [
        (fleet(), Quorum(), OK, 2.0, ()),
        (fleet(), Quorum(deadline_s=1.5 * STEP_S), LATE, 1.5, ("late",)),
        (fleet(), Quorum(timeout_s=1.5 * STEP_S), TIMEOUT, 1.5, ("timeout",)),
        (fleet(drop_out=0.999999), Quorum(), DROP_OUT, 2.0, ("drop-out",)),
        (fleet([(0.0, STEP_S)], [(0.0, inf)]), Quorum(), INTERRUPTED, 1.0, ("interrupted",)),
    ],
)
def test_a_nodes_own_training_is_told_with_how_it_ended(of, quorum, outcome, ended, reason):
    it = world({"a": Works(at=(0.0,), steps=2, quorum=quorum), "b": Works()}, of)
    end, work = seen(it, Worked)
    (one,) = work
    assert one.outcome == outcome
    trained = next(what for what in told(end, "a") if what[0] == "trained")
    assert trained == ("trained", pytest.approx(ended * STEP_S), int(outcome == OK), *reason)
    assert (one.begun, one.steps) == (0.0, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"work": "taste"}, "no work is called 'taste'"),
        ({"quorum": Quorum(need=2)}, "can never be met by 1 clients"),
        ({"quorum": Quorum(late="next")}, "late='next'"),
    ],
)
def test_an_impossible_task_of_a_node_is_refused_in_one_line(change, said):
    run = replace(Run("train", ("a",), 1, PROBLEM.model), **change)
    with pytest.raises(UsageError, match=said):
        begin_own(run, 0.0, Population.of(PROBLEM.data, fleet()), {"train": PROBLEM.work()}, 0, 0)
    with pytest.raises(UsageError, match=r"device 7: the population has 0\.\.1"):
        begin_own(Run("train", ("a",), 1), 0.0, Population.of(PROBLEM.data, fleet()), {"train": PROBLEM.work()}, 0, 7)
