"""The simulator: drives algorithms in virtual time, one heap of events, training computed lazily.

A reply is due later than it is asked for, and its inputs are known when asked. So asks pile up until the clock
reaches the first one that is due; then all that are pending, of all nodes, are computed together. Not here: what a
reply says (compute), who answers in time (asks), files (store). Invariant: the sequence of steps and every number in
it depend on (algorithms, model, population, works, seed) only.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from math import isnan
from typing import Any

import numpy as np

from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Answer, Publish, Run, Send, Stop, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Asked, Evaluated, Event, Gathered, Joined, Left, Received, Started, Woke
from fieldfare.core.params import Params
from fieldfare.sim.ahead import Ahead
from fieldfare.sim.asks import Ask, at_work_after, resolve
from fieldfare.sim.batch import Executor, gather_all
from fieldfare.sim.carry import Carrier
from fieldfare.sim.hosted import MOST_NODES, Deadline, Hosted, asked_of, check_nodes
from fieldfare.sim.links import Links as Links
from fieldfare.sim.observe import Answered, Came, Measured, Observer, Progressed, Published, Sent, Stopped
from fieldfare.sim.own import Known, begin_own, own_ask, worked
from fieldfare.sim.population import Population
from fieldfare.sim.radio import radio_j
from fieldfare.sim.sessions import Sessions
from fieldfare.sim.sizes import size_of as size_of
from fieldfare.sim.stream import Stream, StreamAsk, second
from fieldfare.sim.world import Progress as Progress
from fieldfare.sim.world import World as World


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
        self._known: Known = {}
        fleet = world.population.fleet
        self._sessions = Sessions(fleet.availability if world.placement else None)
        self._carrier = Carrier(world.links, world.placement, fleet, self._sessions, world.nodes)

    def start(self) -> None:
        """Give every node its state, and its `Started` when its device is there for the first time."""
        world, roster = self.world, dict[str, tuple[str, ...]]()
        for node, (role, _) in world.nodes.items():
            roster[role] = (*roster.get(role, ()), node)
        for node, (_, algorithm) in world.nodes.items():
            self.progress.states[node] = algorithm.init(world.model)
        for node in world.nodes:
            begin, end = self._session(node)
            if begin < np.inf:
                number = self._push(max(begin, 0.0), node, Started(roster, world.population.size))
            if begin > 0.0:
                self._tell(Came(0.0, node, False))
                if begin < np.inf:
                    self.progress.turns[node] = number
            elif end < np.inf:
                self.progress.turns[node] = self._push(end, node, Left(node))
        for at, event, nodes in world.happenings:
            for node in nodes:
                self._live(node)
                self._push(at, node, event)

    def run(self) -> str:
        """Go on until an algorithm stops or nothing is left to happen; returns the reason."""
        if not self.progress.states:
            self.start()
        p = self.progress
        while not p.stopped and (len(p.heap) > len(p.turns) or 0 < len(p.heap) >= p.quiet / 2):
            self.advance()
        if not p.stopped:
            p.now = p.acted
            self._stop("nothing left to happen")
        return p.stopped

    def _stop(self, reason: str) -> None:
        """The run is over: what still waits for a link is told to be on its way."""
        p = self.progress
        p.stopped = reason
        waiting = [one for one in p.heap if isinstance(one[3], tuple)]
        for first, _, dst, event in sorted(waiting, key=lambda one: one[1]):
            self._sent(event, dst, first, np.inf)
        self._tell(Stopped(p.now, reason))

    def advance(self) -> None:
        """Take the next event off the heap and perform what the step returns."""
        p = self.progress
        at, seq, node, event = heapq.heappop(p.heap)
        if isinstance(event, Deadline) and event.gather not in p.hosted:
            return
        p.now = at
        turn = p.turns.get(node) == seq
        p.quiet = p.quiet + 1 if turn else 0
        if turn:
            self._turn(node, event)
        match event:
            case None:
                event = self._gathered(seq)
            case tuple():
                self._land(seq, node, at, event)
                return
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
        if effects or state is not p.states[node] or not isinstance(event, Woke):
            p.acted = p.now
        p.states[node] = state
        p.steps += 1
        for effect in effects:
            match effect:
                case Send(to, body):
                    self._live(to)
                    size = size_of(body)
                    p.bytes_between += size
                    self._carry(node, to, size, Received(node, body))
                case Run():
                    self._ask(node, effect)
                case Publish(model, version, evaluate):
                    self._tell(Published(p.now, node, model, version, evaluate))
                    for name in evaluate:
                        self._evaluate(node, model, version, name)
                case Answer():
                    self._answer(node, effect)
                case Wake(after, tag):
                    self._push(p.now + max(after, 0.0), node, Woke(tag))
                case Stop(reason):
                    self._stop(reason)
                    return
        self._tell(Progressed(p.now, p.steps))

    def _push(self, at: float, node: str, event: Event | Answer | Deadline | None) -> int:
        p = self.progress
        p.seq += 1
        heapq.heappush(p.heap, (at, p.seq, node, event))
        return p.seq

    def _session(self, node: str) -> tuple[float, float]:
        """The session of the node's device that covers now, or the next one; (-inf, inf) without a device."""
        device = self.world.placement.get(node)
        return (-np.inf, np.inf) if device is None else self._sessions.at(device, self.progress.now)

    def _turn(self, node: str, event: Event) -> None:
        """The device of `node` comes or goes; when it goes or comes next is known now."""
        p, there = self.progress, not isinstance(event, Left)
        self._tell(Came(p.now, node, there))
        begin, end = self._session(node)
        del p.turns[node]
        if not there:
            for free in (p.up_free, p.down_free):
                free.pop(self.world.placement[node], None)
            for wire in [one for one in p.up_free if isinstance(one, tuple) and one[0] == node]:
                del p.up_free[wire]
        at, then = (end, Left(node)) if there else (begin, Joined(node))
        if at < np.inf:
            p.turns[node] = self._push(at, node, then)

    def _carry(self, src: str, dst: str, size: int, event: Received | Asked | Answer) -> None:
        """Put what `src` has sent on its way to `dst`."""
        p = self.progress
        p.seq += 1
        first, last = self._carrier.send(p.now, src, dst, size, p.up_free)
        way = (event, size, p.now, last, src)
        if first > p.now and self._carrier.waits(src, dst):
            heapq.heappush(p.heap, (first, p.seq, dst, way))
        else:
            self._land(p.seq, dst, first, way)

    def _land(self, number: int, dst: str, first: float, way: tuple[Any, int, float, float, str]) -> None:
        """The first byte of a message is at the link of `dst`."""
        p, (event, size, _, last, src) = self.progress, way
        arrives = self._carrier.land(first, last, src, dst, size, p.down_free)
        if not isnan(arrives):
            heapq.heappush(p.heap, (arrives, number, dst, event))
        self._sent(way, dst, first, arrives)

    def _sent(self, way: tuple[Any, int, float, float, str], dst: str, first: float, arrives: float) -> None:
        event, size, now, last, src = way
        if self.observer is not None and isinstance(event, Received):
            body, (route, _) = event.body, self._carrier.route(src, dst)
            joules = radio_j(route, self._carrier.fleet, size, first, last, arrives)
            self.observer(Sent(now, arrives, src, dst, type(body).__name__, size, body, joules))

    def _ask(self, node: str, run: Run) -> None:
        p, world = self.progress, self.world
        run = run if world.refit is None else world.refit(run, p.now)
        if isinstance(run.on, tuple) and run.on != (node,):
            self._ask_nodes(node, run)
            return
        if isinstance(run.on, tuple):
            if node not in world.placement:
                raise UsageError(f"node {node!r} runs {run.work!r} on itself but has no device: place it on one.")
            begun = begin_own(run, p.now, world.population, world.works, world.seed, world.placement[node],
                              self._known)  # fmt: skip
            ask = own_ask(node, run, p.now, begun, p.asked)
        elif run.quorum.late == "next":
            ask = self._stream(node, run.work).open(run, p.now, world.works, p.selected)
        else:
            busy = p.at_work.at(p.now)
            ask = resolve(node, run, p.now, world.population, world.works, world.seed, None, p.selected, p.asked, busy)
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
            self._carry(node, to, size, asked)
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
        self._carry(node, hosted.node, size, answer)

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
            self._tell(worked(ask, event, self.world.population, self.world.works[ask.run.work], self._known))
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
