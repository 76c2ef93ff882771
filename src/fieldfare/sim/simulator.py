"""The simulator: drives algorithms in virtual time, one heap of events, training computed lazily.

A reply is due later than it is asked for, and its inputs are known when asked. So asks pile up until the clock
reaches the first one that is due; then all that are pending, of all nodes, are computed together. Not here: what a
reply says (compute), who answers in time (asks), files (store). Invariant: the sequence of steps and every number in
it depend on (algorithms, model, population, works, seed) only.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fieldfare.core.algorithm import Algorithm, Context
from fieldfare.core.effects import Answer, Publish, Run, Send, Stop, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Evaluated, Event, Gathered, Received, Started, Woke
from fieldfare.core.params import Params
from fieldfare.core.work import Work
from fieldfare.fleet.tasks import LATE, OK, REFUSED
from fieldfare.sim.ahead import Ahead
from fieldfare.sim.asks import Ask, at_work_after, resolve
from fieldfare.sim.at_work import NOBODY, AtWork
from fieldfare.sim.batch import Executor, gather_all
from fieldfare.sim.draw import Selected
from fieldfare.sim.hosted import MOST_NODES, Deadline, Hosted, asked_of, check_nodes
from fieldfare.sim.links import FREE
from fieldfare.sim.links import Links as Links
from fieldfare.sim.observe import Answered, Measured, Observer, Progressed, Published, Sent, Stopped, Worked
from fieldfare.sim.population import Population
from fieldfare.sim.stream import Stream, StreamAsk, second

Evaluation = Callable[[Params], Mapping[str, float]]


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """What a run happens in: fixed before it starts.

    `nodes`: `{node: (role, algorithm)}`. `placement`: `{node: device}` for nodes that have a device of their own.
    `evaluations`: `{name: (function, seconds)}`. `happenings`: scripted fleet events `(time, event, nodes)`.
    """

    nodes: Mapping[str, tuple[str, Algorithm]]
    model: Params
    population: Population
    works: Mapping[str, Work]
    seed: int = 0
    evaluations: Mapping[str, tuple[Evaluation, float]] = field(default_factory=dict)
    placement: Mapping[str, int] = field(default_factory=dict)
    happenings: Sequence[tuple[float, Event, tuple[str, ...]]] = ()
    links: Links = FREE


@dataclass(slots=True, eq=False)
class Progress:
    """All of a run that changes: the clock, the heap, the nodes' states, what is outstanding, bytes by direction.

    `bytes_down` counts when clients are asked, everyone asked, drop-outs too. `bytes_up` counts when a gather is over:
    the replies of all who answer, late ones too (sent, then dropped); what is outstanding at `Stop` is cancelled. Where
    late replies count in the next gather both count when a task is over, in whatever way. A
    node's `Answer` counts when it is sent, none to a gather that is over. `bytes_between`: sent from node to node.
    `streams` by "node work": the clients at work from gather to gather. `asked`: `Run`s on devices so far. `at_work`:
    the devices of other `Run`s that are at work.
    """

    now: float = 0.0
    seq: int = 0
    states: dict[str, Any] = field(default_factory=dict[str, Any])
    heap: list[tuple[float, int, str, Any]] = field(default_factory=list[tuple[float, int, str, Any]])
    asks: dict[int, Ask | StreamAsk] = field(default_factory=dict[int, Any])
    hosted: dict[int, Hosted] = field(default_factory=dict[int, Hosted])
    streams: dict[str, Stream] = field(default_factory=dict[str, Stream])
    selected: Selected = field(default_factory=Selected)
    at_work: AtWork = NOBODY
    asked: int = 0
    steps: int = 0
    bytes_down: float = 0.0
    bytes_up: float = 0.0
    bytes_between: float = 0.0
    stopped: str = ""


class Simulator:
    """Runs a `World` to its end, or step by step.

    `executor` computes; without one nothing is computed, and only who, when and how long is simulated. `observer` is
    told what happened, and cannot change it.
    """

    def __init__(self, world: World, executor: Executor | None, observer: Observer | None = None) -> None:
        self.world = world
        self.executor = executor
        self.observer = observer
        self.progress = Progress()
        self._results: dict[int, Gathered] = {}
        self._ahead: dict[str, Ahead] = {}

    def start(self) -> None:
        """Give every node its state and its `Started`."""
        world, roster = self.world, dict[str, tuple[str, ...]]()
        for node, (role, _) in world.nodes.items():
            roster[role] = (*roster.get(role, ()), node)
        for node, (_, algorithm) in world.nodes.items():
            self.progress.states[node] = algorithm.init(world.model)
        for node in world.nodes:
            self._push(0.0, node, Started(roster, world.population.size))
        for at, event, nodes in world.happenings:
            for node in nodes:
                self._live(node)
                self._push(at, node, event)

    def run(self) -> str:
        """Go on until an algorithm stops or nothing is left to happen; returns the reason."""
        if not self.progress.states:
            self.start()
        while not self.progress.stopped and self.progress.heap:
            self.advance()
        if not self.progress.stopped:
            self.progress.stopped = "nothing left to happen"
            self._tell(Stopped(self.progress.now, self.progress.stopped))
        return self.progress.stopped

    def advance(self) -> None:
        """Take the next event off the heap and perform what the step returns."""
        p = self.progress
        at, seq, node, event = heapq.heappop(p.heap)
        if isinstance(event, Deadline) and event.gather not in p.hosted:
            return
        p.now = at
        match event:
            case None:
                event = self._gathered(seq)
            case Deadline(gather):
                event = p.hosted.pop(gather).finish()
            case Answer():
                event = self._arrived(event)
                if event is None:
                    return
            case Evaluated():
                self._tell(Measured(p.now, event))
            case _:
                pass
        self._step(node, event)

    def _step(self, node: str, event: Event) -> None:
        p = self.progress
        _, algorithm = self.world.nodes[node]
        state, effects = algorithm.step(p.states[node], event, Context(p.now, node, self.world.seed))
        p.states[node] = state
        p.steps += 1
        for effect in effects:
            match effect:
                case Run():
                    self._ask(node, effect)
                case Publish(model, version, evaluate):
                    self._tell(Published(p.now, node, model, version, evaluate))
                    for name in evaluate:
                        self._evaluate(node, model, version, name)
                case Send(to, body):
                    self._live(to)
                    size = size_of(body)
                    p.bytes_between += size
                    arrives = p.now + self.world.links.seconds(size)
                    self._push(arrives, to, Received(node, body))
                    self._tell(Sent(p.now, arrives, node, to, type(body).__name__, size, body))
                case Answer():
                    self._answer(node, effect)
                case Wake(after, tag):
                    self._push(p.now + max(after, 0.0), node, Woke(tag))
                case Stop(reason):
                    p.stopped = reason
                    self._tell(Stopped(p.now, reason))
                    return
        self._tell(Progressed(p.now, p.steps))

    def _push(self, at: float, node: str, event: Event | Answer | Deadline | None) -> int:
        p = self.progress
        p.seq += 1
        heapq.heappush(p.heap, (at, p.seq, node, event))
        return p.seq

    def _ask(self, node: str, run: Run) -> None:
        p, world = self.progress, self.world
        if isinstance(run.on, tuple) and run.on != (node,):
            self._ask_nodes(node, run)
            return
        own = None
        if isinstance(run.on, tuple):
            if node not in world.placement:
                raise UsageError(f"node {node!r} runs {run.work!r} on itself but has no device: place it on one.")
            own = world.placement[node]
        if run.quorum.late == "next" and own is None:
            ask = self._stream(node, run.work).open(run, p.now, world.works, p.selected)
        else:
            busy = p.at_work.at(p.now)
            ask = resolve(node, run, p.now, world.population, world.works, world.seed, own, p.selected, p.asked, busy)
            p.bytes_down += ask.bytes_down
            p.at_work = at_work_after(ask, busy)
        p.asked += 1
        p.asks[self._push(ask.due, node, None)] = ask

    def _stream(self, node: str, work: str) -> Stream:
        """The clients at work for `node`; one gather is open at a time."""
        p, name = self.progress, f"{node} {work}"
        if work not in self.world.works:
            raise UsageError(f"no work is called {work!r}: this job binds {', '.join(self.world.works) or 'none'}.")
        if any(isinstance(ask, StreamAsk) and (ask.node, ask.run.work) == (node, work) for ask in p.asks.values()):
            raise second(node, work)
        if name not in p.streams:
            p.streams[name] = Stream(node, work, self.world.population, self.world.seed)
        return p.streams[name]

    def _ask_nodes(self, node: str, run: Run) -> None:
        p = self.progress
        assert isinstance(run.on, tuple)
        check_nodes(run)
        p.seq += 1
        gather = p.seq
        p.hosted[gather] = Hosted(node, run, p.now)
        for at, to in enumerate(run.on):
            self._live(to)
            asked = asked_of(node, run, gather, at)
            size = size_of(asked.model) + size_of(tuple(asked.inputs.values()))
            p.bytes_down += size
            self._push(p.now + self.world.links.seconds(size), to, asked)
        if run.quorum.deadline_s is not None:
            self._push(p.now + run.quorum.deadline_s, node, Deadline(gather))

    def _live(self, node: str) -> None:
        if node not in self.world.nodes:
            raise UsageError(f"no node is called {node!r}: this run has {', '.join(self.world.nodes)}.")

    def _answer(self, node: str, answer: Answer) -> None:
        p = self.progress
        gather, at = divmod(answer.id, MOST_NODES)
        hosted = p.hosted.get(gather)
        if hosted is None or at >= len(hosted.on) or hosted.on[at] != node:
            return
        size = size_of(tuple(answer.output.values()))
        p.bytes_up += size
        self._push(p.now + self.world.links.seconds(size), hosted.node, answer)

    def _arrived(self, answer: Answer) -> Gathered | None:
        """An answer has reached its asker: the gather's result, if that was all it waited for."""
        p = self.progress
        gather, at = divmod(answer.id, MOST_NODES)
        hosted = p.hosted.get(gather)
        if hosted is None or at in hosted.replies:
            return None
        hosted = p.hosted[gather] = hosted.with_reply(at, answer)
        return p.hosted.pop(gather).finish() if hosted.complete else None

    def _evaluate(self, node: str, model: Params, version: int, name: str) -> None:
        if name not in self.world.evaluations:
            known = ", ".join(self.world.evaluations) or "none"
            raise UsageError(f"no central evaluation is called {name!r}: this job has {known}.")
        function, seconds = self.world.evaluations[name]
        self._push(self.progress.now + seconds, node, Evaluated(version, name, function(model)))

    def _gathered(self, seq: int) -> Gathered:
        """The result of ask number `seq`: computed now, with everything else that is pending."""
        p = self.progress
        ask = p.asks[seq]
        if isinstance(ask, StreamAsk):
            name = f"{ask.node} {ask.run.work}"
            event = self._ahead.setdefault(name, Ahead()).gather(ask, p.streams[name], self.executor)
            p.bytes_down += ask.bytes_down
        elif self.executor is None:
            event = _untrained(ask, self.world.population)
        else:
            if seq not in self._results or self._read_before(ask):
                pending = {n: a for n, a in p.asks.items() if n not in self._results and isinstance(a, Ask)}
                self._results |= gather_all(pending, self.executor, self.world.seed)
            event = self._results.pop(seq)
            self.executor.accept(ask, event)
        del p.asks[seq]
        p.at_work = p.at_work.at(p.now)
        p.bytes_up += ask.bytes_up
        if p.selected.states:
            ids, seconds = (ask.clients, ask.seconds) if isinstance(ask, StreamAsk) else ask.spent
            p.selected.observe(ask.run, ids, seconds, event, self.world.population, p.now)
        if isinstance(ask, Ask) and ask.own:
            self._tell(worked(ask, event, self.world))
        self._tell(Answered(p.now, ask, event, p.bytes_down, p.bytes_up))
        return event

    def computed(self) -> dict[int, Any]:
        """`{ask: (event, new client state)}` of stateful asks computed and not yet delivered.

        A snapshot keeps these: computed anew, they would read what a later commit has written. All others would
        be computed to the same bits.
        """
        asks = self.progress.asks
        return {
            number: (event, self.executor.provisional(asks[number]))
            for number, event in self._results.items()
            if self.executor is not None and asks[number].run.state is not None
        }

    def restore_computed(self, kept: Mapping[int, Any]) -> None:
        """Take back what `computed` gave, beside the `progress` of that moment."""
        self._results = {}
        for number, (event, state) in kept.items():
            self._results[number] = event
            assert self.executor is not None
            self.executor.hold(self.progress.asks[number], state)

    def _read_before(self, ask: Ask) -> bool:
        """Whether an ask not computed yet reads the slot that `ask` is about to write: it reads as of its asking."""
        slot = ask.run.state
        return slot is not None and any(
            other.run.state == slot and number not in self._results for number, other in self.progress.asks.items()
        )

    def _tell(self, observation: Any) -> None:
        if self.observer is not None and observation is not None:
            self.observer(observation)


def _untrained(ask: Ask, population: Population) -> Gathered:
    """The answer to an ask of which nothing was computed: who replied, each with the weight of its examples."""
    weight = population.examples[ask.clients].astype(np.float64)
    return Gathered(ask.run.tag, {}, float(weight.sum()), ask.clients, weight, {}, ask.missing)


def worked(ask: Ask, event: Gathered, world: World) -> Worked | None:
    """What a node's `Run` on itself was; None where it never began."""
    begun = ask.begun
    if begun is None or not len(begun.clients):
        return None
    counted: Any = getattr(world.works[ask.run.work], "steps", None)
    steps, outcome = begun.steps, int(begun.outcome[0])
    if steps is None and counted is not None:
        steps = counted(world.population.examples[begun.clients], ask.run.config)
    if outcome == OK and not len(event.clients):
        outcome = LATE if "late" in event.missing else REFUSED
    begun_s, ended_s = float(begun.start[0]), ask.issued + float(begun.seconds[0])
    return Worked(ask.node, begun_s, ended_s, 0 if steps is None else int(steps[0]), outcome, ask.run)


def size_of(body: Any) -> int:
    """Bytes of a message's payload: arrays, bytes and text at their length, numbers at 8."""
    match body:
        case np.ndarray():
            return body.nbytes
        case bytes() | str():
            return len(body)
        case Params():
            return body.bytes
        case Mapping():
            return sum(size_of(k) + size_of(v) for k, v in body.items())
        case tuple() | list():
            return sum(size_of(v) for v in body)
        case None:
            return 0
        case _ if hasattr(body, "__dataclass_fields__"):
            return sum(size_of(getattr(body, name)) for name in body.__dataclass_fields__)
        case _:
            return 8
