"""A driver in memory, message by message, with faults by script: what the simulator settles, here really happens.

Every `Run` becomes an ask and a reply per client, every effect has an id (node, step, index), and messages may be
lost, late, repeated, out of order; nodes crash between any two of: journal the event, step, perform the effects; their
devices come and go as the fleet's sessions say. Not here: what clients do (`device`). Invariants: without faults the
transcript is the simulator's, bit for bit; a duplicate never reaches `step`; an accepted reply counts once, and its
client state is committed with it.
"""

from __future__ import annotations

import copy
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from math import inf, isnan
from typing import Any

from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Answer, Effect, Publish, Run, Send, Stop, Tag, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Evaluated, Gathered, Joined, Left, Received, Started, Woke
from fieldfare.sim.at_work import NOBODY
from fieldfare.sim.carry import Carrier
from fieldfare.sim.draw import Selected
from fieldfare.sim.hosted import MOST_NODES, Hosted, asked_of, check_nodes
from fieldfare.sim.sessions import Sessions
from fieldfare.sim.simulator import World, size_of
from fieldfare.sim.stream import StreamAsk, second
from fieldfare.testing.device import LAST, Devices, EffectId, Gathering, gathering
from fieldfare.testing.script import Crash, Fault, Issued, Message, Node, Way
from fieldfare.testing.streams import Streams
from fieldfare.testing.toys import Ending, Slots, recorded
from fieldfare.testing.transcript import Recorded, Transcript, digest

_OWN = (Woke, Evaluated, type(None))


class Loopback:
    """Runs a `World` by messages. `faults` and `crashes` are the script; `snapshot_every` steps a node's state is
    saved; `shuffle`: a seed that deals the reply times of every cohort out anew, so that replies come in another
    order at the same times (for quorums of all)."""

    def __init__(
        self, world: World, faults: Sequence[Fault] = (), crashes: Sequence[Crash] = (), *, snapshot_every: int = 1,
        shuffle: int | None = None,
    ) -> None:  # fmt: skip
        self.world, self.snapshot_every, self.shuffle = world, snapshot_every, shuffle
        self.now, self.number, self.stopped = 0.0, 0, ""
        self.model, self.version, self.bytes_down, self.bytes_up = world.model, 0, 0.0, 0.0
        self.devices, self.selected, self.at_work = Devices(world, Slots()), Selected(), NOBODY
        self.streams, self.planned = Streams(world, self.selected), dict[EffectId, StreamAsk]()
        self.nodes: dict[str, Node] = {}
        self.gathers: dict[EffectId, Gathering] = {}
        self.hosted: dict[int, tuple[EffectId, Hosted]] = {}
        self._carried: dict[EffectId, float | None] = {}
        self._up_free, self._down_free = dict[Any, float](), dict[int, float]()
        fleet = world.population.fleet
        self._sessions = Sessions(fleet.availability if world.placement else None)
        self._carrier = Carrier(world.links, world.placement, fleet, self._sessions, world.nodes)
        self._turns, self._quiet = dict[str, tuple[Any, ...]](), 0
        self._heap: list[tuple[float, int, int, int, Any]] = []
        self._unique = itertools.count()
        self._script = [[fault, fault.times] for fault in faults]
        self._crashes = list(crashes)

    def run(self) -> str:
        """Deliver messages until an algorithm stops or none is left; returns the reason."""
        if not self.nodes:
            self._start()
        while self._heap and not self.stopped and (not self._turns or self._goes_on()):
            self.advance()
        self.stopped = self.stopped or "nothing left to happen"
        return self.stopped

    def advance(self) -> None:
        """Deliver the next message."""
        self.now, *_, item = heapq.heappop(self._heap)
        if self._is_turn(item):
            self._quiet += 1
            self._turn(item)
        elif not self._over(item):
            self._quiet = 0
        match item:
            case str():
                self._restart(item)
            case Gathering():
                self._close(item)
            case tuple() as id_, StreamAsk() as ask:
                self._stream_over(id_, ask)
            case Way():
                self._land(item, self.now)
            case Gathering(), int(at), bool(copy_):
                self._ask(item[0], at, copy_)
            case Message() if not self.nodes[item.node].up:
                if not isinstance(item.event, _OWN) and item.reply is None:
                    self.nodes[item.node].waiting.append(item)
            case Message(reply=int(at)):
                self._reply(self.gathers[item.id], at)
            case Message(event=Answer()):
                self._answered(item)
            case Message() if item.event is None:
                self._expired(item)
            case Message():
                self._step(item)

    def _start(self) -> None:
        world, roster = self.world, dict[str, tuple[str, ...]]()
        for node, (role, algorithm) in world.nodes.items():
            roster[role] = (*roster.get(role, ()), node)
            state = algorithm.init(world.model)
            self.nodes[node] = Node(state, copy.deepcopy(state))
        for node in world.nodes:
            started = Message(("started", node), node, Started(roster, world.population.size))
            begin, end = self._session(node)
            if begin < inf:
                self._send(max(begin, 0.0), started)
            if 0.0 < begin < inf:
                self._turns[node] = started.id
            elif begin <= 0.0 and end < inf:
                self._next_turn(node, end, Left(node))
        for place, (at, event, nodes) in enumerate(world.happenings):
            for node in nodes:
                self._live(node)
                self._send(at, Message(("happening", place, node), node, event))

    # Sessions of nodes' own devices: no messages, so no fault befalls them

    def _session(self, node: str) -> tuple[float, float]:
        device = self.world.placement.get(node)
        return (-inf, inf) if device is None else self._sessions.at(device, self.now)

    def _next_turn(self, node: str, at: float, event: Joined | Left) -> None:
        self._turns.pop(node, None)
        if at < inf:
            message = Message(("turn", node, at), node, event)
            self._turns[node] = message.id
            self._push(at, message)

    def _turn(self, item: Message) -> None:
        """The device of a node comes or goes; when it goes or comes next is known now."""
        node, (begin, end) = item.node, self._session(item.node)
        if not isinstance(item.event, Left):
            self._next_turn(node, end, Left(node))
            return
        for free in (self._up_free, self._down_free):
            free.pop(self.world.placement[node], None)
        for wire in [one for one in self._up_free if isinstance(one, tuple) and one[0] == node]:
            del self._up_free[wire]
        self._next_turn(node, begin, Joined(node))

    def _is_turn(self, item: Any) -> bool:
        return isinstance(item, Message) and self._turns.get(item.node) == item.id

    def _over(self, item: Any) -> bool:
        """Whether nothing will come of it any more."""
        match item:
            case Gathering(id=id_) | (Gathering(id=id_), *_) | (tuple() as id_, StreamAsk()):
                return id_ in self.nodes[id_[0]].seen
            case Message(id=("deadline", int(number)), event=None):
                return number not in self.hosted
            case Message(id=("deadline", id_), event=None) | Message(id=id_):
                return id_ in self.nodes[item.node].seen
            case _:
                return False

    def _goes_on(self) -> bool:
        """Not where all that comes is that devices come and go, and has been for a while."""
        if any(not self._is_turn(item) and not self._over(item) for *_, item in self._heap):
            return True
        return len(self._turns) >= self._quiet / 2

    # Messages and their faults

    def _push(self, at: float, item: Any, number: int | None = None, order: int = 0) -> int:
        if number is None:
            self.number += 1
            number = self.number
        heapq.heappush(self._heap, (at, number, order, next(self._unique), item))
        return number

    def _fault(self, kind: str, node: str, tag: Tag | None, client: int | None) -> Fault | None:
        for entry in self._script:
            fault, left = entry
            wanted = ((fault.node, node), (fault.tag, tag), (fault.client, client))
            if left and fault.kind == kind and all(want in (None, is_) for want, is_ in wanted):
                entry[1] -= 1
                return fault
        return None

    def _send(self, at: float, message: Message, number: int | None = None) -> None:
        """Put an event on its way to a node."""
        fault = self._fault("event", message.node, getattr(message.event, "tag", None), None)
        self._carry(fault, at, message, number, 0)

    def _carry(self, fault: Fault | None, at: float, message: Message, number: int | None, order: int) -> None:
        """Put a message on its way: `after_s` later, or then once more, if the script says so."""
        later = 0.0 if fault is None or fault.after_s is None else fault.after_s
        again = fault is not None and fault.do == "repeat"
        number = self._push(at if again else at + later, message, number, order)
        if again:
            self._push(at + later, message, number, order)

    def _between(self, src: str, message: Message, size: int, number: int) -> None:
        """Put a message from node to node on its way: over the links once, and again when it would have come."""
        if message.id in self._carried:
            arrives = self._carried[message.id]
            if arrives is not None and not isnan(arrives):
                self._send(max(self.now, arrives), message, number)
            return
        self._carried[message.id] = None
        first, last = self._carrier.send(self.now, src, message.node, size, self._up_free)
        way = Way(message, size, src, number, last)
        if first > self.now and self._carrier.waits(src, message.node):
            self._push(first, way, number)
        else:
            self._land(way, first)

    def _land(self, way: Way, first: float) -> None:
        message = way.message
        arrives = self._carrier.land(first, way.last, way.src, message.node, way.size, self._down_free)
        self._carried[message.id] = arrives
        if not isnan(arrives):
            self._send(arrives, message, way.number)

    def _ask(self, gather: Gathering, at: int, copy_: bool = False) -> None:
        """An ask (or the second `copy_` of one) reaches a client, unless it is lost; the client replies."""
        client, node = int(gather.clients[at]), gather.id[0]
        fault = None if copy_ else self._fault("ask", node, gather.run.tag, client)
        if fault is not None and fault.do != "repeat":
            self._again(gather, at, self.now, fault.after_s)
            return
        ready, _ = self.devices.reply(gather, at, self.now)
        message, order = Message(gather.id, node, reply=at), int(gather.order[at])
        if fault is not None and fault.after_s is not None:
            self._push(self.now + fault.after_s, (gather, at, True), gather.number, client)
        fault = self._fault("reply", node, gather.run.tag, client)
        if fault is not None and fault.do == "lose":
            self._again(gather, at, ready, fault.after_s)
            return
        self._carry(fault, ready, message, gather.number, order)

    def _again(self, gather: Gathering, at: int, when: float, after_s: float | None) -> None:
        """Ask once more, `after_s` later; or give the client up."""
        if after_s is None:
            gather.lost.add(at)
            self._push(when, gather, gather.number, int(gather.clients[at]))
        else:
            self._push(when + after_s, (gather, at, False), gather.number, int(gather.clients[at]))

    # Gathers

    def _reply(self, gather: Gathering, at: int) -> None:
        if gather.id in self.nodes[gather.id[0]].seen or at in gather.replies:
            return
        gather.replies[at] = self.devices.cache[gather.id, int(gather.clients[at])][1]
        self._close(gather)

    def _close(self, gather: Gathering, expired: bool = False) -> None:
        node = self.nodes[gather.id[0]]
        if not node.up or gather.id in node.seen or not (gather.complete(self.now) or expired):
            return
        event, accepted = gather.finish()

        def accept() -> None:
            self.devices.commit(gather, accepted)
            spent = gather.seconds - gather.waited
            self.selected.observe(gather.run, gather.clients, spent, event, self.world.population, self.now)
            self.bytes_up += gather.sent

        self._step(Message(gather.id, gather.id[0], event), accept)

    def _expired(self, message: Message) -> None:
        """A deadline: of a gather on devices by its effect id, or of one on nodes by its number."""
        match message.id:
            case ("deadline", int(number)):
                if number in self.hosted:
                    id_, hosted = self.hosted[number]
                    self._step(Message(id_, message.node, hosted.finish()), lambda: self.hosted.pop(number))
            case _:
                self._close(self.gathers[message.id[1]], expired=True)

    def _answered(self, message: Message) -> None:
        number, at = divmod(message.event.id, MOST_NODES)
        if number not in self.hosted or at in self.hosted[number][1].replies:
            return
        id_, hosted = self.hosted[number]
        hosted = hosted.with_reply(at, message.event)
        self.hosted[number] = (id_, hosted)
        if hosted.complete:
            self._step(Message(id_, message.node, hosted.finish()), lambda: self.hosted.pop(number))

    # Steps, crashes, restarts

    def _step(self, message: Message, accept: Callable[[], object] = bool) -> None:
        """Journal (and `accept` the replies that were folded), step, perform; a duplicate or a crash ends it."""
        node, name = self.nodes[message.node], message.node
        if message.id in node.seen:
            return
        if self._dies(name, node.steps + 1, "before"):
            if not isinstance(message.event, (*_OWN, Gathered)):
                node.waiting.append(message)
            return
        node.seen.add(message.id)
        node.steps += 1
        accept()
        _, algorithm = self.world.nodes[name]
        node.state, effects = algorithm.step(node.state, message.event, self._context(name, self.now))
        node.journal.append((self.now, message.event, digest(tuple(effects))))
        if self._dies(name, node.steps, "journaled"):
            return
        for index, effect in enumerate(effects):
            self._perform((name, node.steps, index), effect)
            if self.stopped:
                return
        if self._dies(name, node.steps, "performed"):
            return
        if node.steps - node.saved_steps >= self.snapshot_every:
            node.saved, node.saved_steps, node.journal = copy.deepcopy(node.state), node.steps, []
            node.issued = {id_: issued for id_, issued in node.issued.items() if not self._done(id_, issued)}

    def _context(self, node: str, now: float) -> Context:
        return Context(now, node, self.world.seed)

    def _dies(self, name: str, step: int, at: str) -> bool:
        for crash in self._crashes:
            if (crash.node, crash.step, crash.at) == (name, step, at):
                self._crashes.remove(crash)
                self.nodes[name].up, self.nodes[name].state = False, None
                self._push(self.now + crash.after_s, name)
                return True
        return False

    def _restart(self, name: str) -> None:
        """Load the snapshot, replay the journal, issue again what was not answered, take what waited."""
        node, algorithm = self.nodes[name], self.world.nodes[name][1]
        algorithm = algorithm.inner if isinstance(algorithm, Recorded) else algorithm
        state = copy.deepcopy(node.saved)
        for step, (now, event, told) in enumerate(node.journal, node.saved_steps + 1):
            state, effects = algorithm.step(state, event, self._context(name, now))
            if digest(tuple(effects)) != told:
                raise AssertionError(f"node {name}: a replayed {type(event).__name__} gave other effects than before.")
            for index, effect in enumerate(effects):
                node.issued.setdefault((name, step, index), Issued(effect, now, None))
        node.state, node.up = state, True
        for id_, issued in list(node.issued.items()):
            if not self._done(id_, issued) and not self.stopped:
                self._perform(id_, issued.effect)
        waiting, node.waiting = node.waiting, []
        for message in waiting:
            self._push(self.now, message)

    # Effects

    def _done(self, id_: EffectId, issued: Issued) -> bool:
        """Whether nothing of an effect is outstanding."""
        if issued.number is None:
            return False
        match issued.effect:
            case Send(to, _):
                return id_ in self.nodes[to].seen
            case Run() | Wake():
                return id_ in self.nodes[id_[0]].seen
            case Publish(evaluate=names):
                return all((*id_, name) in self.nodes[id_[0]].seen for name in names)
            case _:
                return True

    def _perform(self, id_: EffectId, effect: Effect) -> None:
        """Perform an effect, or again what of it was not answered: under the same ids and in its old place."""
        node, world = id_[0], self.world
        issued = self.nodes[node].issued.get(id_)
        first = issued is None or issued.number is None
        start = self.now if first or issued is None else issued.now
        base = self.number if first or issued is None or issued.number is None else issued.number
        self.nodes[node].issued[id_] = Issued(effect, start, base)
        number = itertools.count(base + 1)

        def due(after: float) -> float:
            return max(self.now, start + after)

        match effect:
            case Run(on=tuple() as on) if on != (node,):
                self._run_nodes(id_, effect, start, number, first)
            case Run():
                late = effect.quorum.late == "next" and not isinstance(effect.on, tuple)
                (self._run_stream if late else self._run_devices)(id_, effect, next(number))
            case Publish(model, version, evaluate):
                self.model, self.version = model, version
                for name in evaluate:
                    if name not in world.evaluations:
                        known = ", ".join(world.evaluations) or "none"
                        raise UsageError(f"no central evaluation is called {name!r}: this job has {known}.")
                    function, seconds = world.evaluations[name]
                    event = Evaluated(version, name, function(model))
                    self._send(due(seconds), Message((*id_, name), node, event), next(number))
            case Send(to, body):
                self._live(to)
                self._between(node, Message(id_, to, Received(node, body)), size_of(body), next(number))
            case Answer(id=asked, output=output):
                place, at = divmod(asked, MOST_NODES)
                _, hosted = self.hosted.get(place, (None, None))
                if hosted is not None and at < len(hosted.on) and hosted.on[at] == node:
                    size = size_of(tuple(output.values()))
                    self.bytes_up += size
                    self._between(node, Message(id_, hosted.node, effect), size, next(number))
            case Wake(after, tag):
                self._send(due(max(after, 0.0)), Message(id_, node, Woke(tag)), next(number))
            case Stop(reason):
                self.stopped = reason
        if first:
            self.number = next(number) - 1

    def _run_stream(self, id_: EffectId, run: Run, number: int) -> None:
        """A gather whose late replies count in the next: planned once, delivered as one message when it is over."""
        if id_ not in self.planned:
            node = self.nodes[id_[0]]
            if any(one[0] == id_[0] and ask.run.work == run.work and one not in node.seen
                   for one, ask in self.planned.items()):  # fmt: skip
                raise second(id_[0], run.work)
            self.planned[id_] = self.streams.open(id_[0], run, self.now)
        self._push(max(self.now, self.planned[id_].due), (id_, self.planned[id_]), number)

    def _stream_over(self, id_: EffectId, ask: StreamAsk) -> None:
        if id_ in self.nodes[id_[0]].seen or not self.nodes[id_[0]].up:
            return
        event = self.streams.finish(ask)

        def accept() -> None:
            self.bytes_down += ask.bytes_down
            self.bytes_up += ask.bytes_up
            self.selected.observe(run=ask.run, ids=ask.clients, seconds=ask.seconds, event=event,
                                  population=self.world.population, now=self.now)  # fmt: skip

        self._step(Message(id_, id_[0], event), accept)

    def _run_devices(self, id_: EffectId, run: Run, number: int) -> None:
        gather = self.gathers.get(id_)
        if gather is None:
            own = None
            if isinstance(run.on, tuple):
                if id_[0] not in self.world.placement:
                    raise UsageError(f"node {id_[0]!r} runs {run.work!r} on itself but has no device: place it on one.")
                own = self.world.placement[id_[0]]
            gather, self.at_work = gathering(
                id_, run, self.now, number, self.world, own, self.shuffle, self.selected, self.at_work.at(self.now)
            )
            self.gathers[id_] = gather
            self.bytes_down += float(gather.bytes_down.sum())
        for at in range(len(gather.clients)):
            if at not in gather.replies and at not in gather.lost:
                self._ask(gather, at)
        self._push(self.now, gather, number)
        if run.quorum.deadline_s is None:
            self._push(max(self.now, gather.patience), gather, number, LAST)
        else:
            deadline = Message(("deadline", id_), id_[0])
            self._push(max(self.now, gather.issued + run.quorum.deadline_s), deadline, number, LAST)

    def _run_nodes(self, id_: EffectId, run: Run, start: float, number: Iterator[int], first: bool) -> None:
        assert isinstance(run.on, tuple)
        check_nodes(run)
        gather = next(number)
        if first:
            self.hosted[gather] = (id_, Hosted(id_[0], run, self.now))
        _, hosted = self.hosted[gather]
        for at, to in enumerate(run.on):
            self._live(to)
            asked = asked_of(id_[0], run, gather, at)
            size = size_of(asked.model) + size_of(tuple(asked.inputs.values()))
            self.bytes_down += size if first else 0
            self._between(id_[0], Message((*id_, at), to, asked), size, next(number))
        if run.quorum.deadline_s is not None:
            expiry = max(self.now, start + run.quorum.deadline_s)
            self._push(expiry, Message(("deadline", gather), id_[0]), next(number))
        if hosted.complete:
            self._push(self.now, Message(("deadline", gather), id_[0]), gather)

    def _live(self, node: str) -> None:
        if node not in self.nodes:
            raise UsageError(f"no node is called {node!r}: this run has {', '.join(self.nodes)}.")


def loop(
    world: World, faults: Sequence[Fault] = (), crashes: Sequence[Crash] = (), *, keep: bool = False,
    snapshot_every: int = 1, shuffle: int | None = None,
) -> Ending:  # fmt: skip
    """Run `world` in a `Loopback`, recorded: as `simulate`, with faults."""
    transcript = Transcript(keep=keep)
    driver = Loopback(recorded(world, transcript), faults, crashes, snapshot_every=snapshot_every, shuffle=shuffle)
    reason = driver.run()
    return Ending(driver.model, transcript, driver.devices.slots, driver, reason)
