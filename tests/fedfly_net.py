"""A small driver with true losses, for FedFly's protocol: messages may be lost, late, twice and out of order.

Nodes die: for ever, for a while with all they held ("durable"), or for a while and forget it ("amnesia"). Works are
computed when they are asked for. After every step the owners are checked: per device and epoch there is one at most,
the one the centre has named. `updates`: what was told of whole trainings, (samples, loss) by (round, device).
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import numpy as np
from fedfly_toy import BATCH, MODEL, PROBLEM, U_MODEL, WORKS, roles

from fieldfare.algorithms.fedfly.edge import Edge
from fieldfare.algorithms.fedfly.messages import Update
from fieldfare.core import rng
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Publish, Run, Send, Stop, Wake
from fieldfare.core.events import Gathered, Joined, Moved, Received, Started, Woke
from fieldfare.core.folds import Folded
from fieldfare.core.work import Cohort

FOR_EVER = 1e12


@dataclass(frozen=True)
class Death:
    """Node `node` dies in its step number `step`: "before" the event counts, or once it does, its effects unperformed
    ("journaled") or performed ("performed"). `how`: what it still knows when it is back, `after_s` later."""

    node: str
    step: int
    at: str = "performed"
    how: str = "durable"
    after_s: float = FOR_EVER


@dataclass
class Net:
    nodes: dict
    moves: list = field(default_factory=list)
    dice: random.Random = field(default_factory=lambda: random.Random(0))
    lose: float = 0.0
    repeat: float = 0.0
    spread_s: float = 0.0
    deaths: list = field(default_factory=list)
    latency_s: float = 0.01
    work_s: float = 1.0
    drop: object = None
    keep: bool = False
    until_s: float = 1e6
    initial: object = MODEL

    def __post_init__(self):
        self.now, self.heap, self.number, self.stopped, self.model = 0.0, [], 0, "", None
        self.owners, self.named, self.kept, self.versions, self.updates = {}, set(), [], {}, {}

    def run(self):
        names = list(self.nodes)
        self.roster = {}
        for node, (role, _) in self.nodes.items():
            self.roster[role] = (*self.roster.get(role, ()), node)
        own = [n for role in ("device", "edge") for n in names if self.nodes[n][0] == role]
        self.place = {n: i for i, n in enumerate(own)}
        self.states = {n: self.nodes[n][1].init(self.initial) for n in names}
        self.steps = dict.fromkeys(names, 0)
        self.lives = dict.fromkeys(names, 0)
        self.down, self.waiting = {}, {n: [] for n in names}
        for n in names:
            self.push(0.0, n, Started(self.roster, 8))
        for at, event, who in self.moves:
            for n in who:
                self.push(at, n, event)
        while self.heap and not self.stopped and self.now < self.until_s:
            self.now, _, node, event, life = heapq.heappop(self.heap)
            assert self.number < 5_000, f"a storm: {self.number} events in {self.now:.0f} s"
            if event is None:
                self.back(node)
            elif node in self.down:
                if not isinstance(event, Received | Moved):
                    self.waiting[node].append((event, life))
                elif isinstance(event, Moved):
                    self.waiting[node].append((event, None))
            elif life is None or life == self.lives[node]:
                self.step(node, event)
        self.reason = self.stopped or "nothing left to happen"
        return self

    def push(self, at, node, event, life=None):
        self.number += 1
        heapq.heappush(self.heap, (at, self.number, node, event, life))

    def back(self, node):
        death, effects = self.down.pop(node)
        waiting, self.waiting[node] = self.waiting[node], []
        if death.how == "amnesia":
            self.lives[node] += 1
            self.states[node] = self.nodes[node][1].init(self.initial)
            self.push(self.now, node, Started(self.roster, 8))
            if self.nodes[node][0] == "device":
                self.push(self.now, node, Joined(node))
        else:
            self.perform(node, effects)
        for event, life in waiting:
            self.push(self.now, node, event, life)

    def step(self, node, event):
        self.steps[node] += 1
        death = next((d for d in self.deaths if (d.node, d.step) == (node, self.steps[node])), None)
        if death is not None and death.at == "before":
            if not isinstance(event, Received):
                self.waiting[node].append((event, self.lives[node]))
            return self.die(node, death, ())
        old = self.states[node]
        new, effects = self.nodes[node][1].step(old, event, Context(self.now, node, 0))
        self.states[node] = new
        if self.keep:
            self.kept.append((node, event, tuple(effects)))
        if self.nodes[node][0] == "edge":
            self.check(node, new)
        elif node == "central":
            self.named |= {(device, one.epoch, one.edge) for device, one in new.owners.items()}
        if death is not None and death.at == "journaled":
            return self.die(node, death, tuple(effects))
        self.perform(node, effects)
        if death is not None:
            self.die(node, death, ())

    def die(self, node, death, effects):
        self.down[node] = death, effects
        if death.after_s < FOR_EVER:
            self.push(self.now + death.after_s, node, None)

    def check(self, node, state):
        for device, held in state.held.items():
            if held.owner:
                assert (device, held.epoch, node) in self.named, f"{node} owns {device} without the centre's word"
                first = self.owners.setdefault((device, held.epoch), node)
                assert first == node, f"{device} has two owners in epoch {held.epoch}: {first} and {node}"

    def perform(self, node, effects):
        for effect in effects:
            match effect:
                case Send(to, body):
                    self.send(node, to, body)
                case Run():
                    self.compute(node, effect)
                case Wake(after, tag):
                    self.push(self.now + after, node, Woke(tag), self.lives[node])
                case Publish(model, version):
                    assert version not in self.versions, f"version {version} twice"
                    self.model, self.versions[version] = model, model.vector.tobytes()
                case Stop(reason):
                    self.stopped = reason

    def send(self, node, to, body):
        if isinstance(body, Update) and body.only is None and self.nodes[node][0] == "edge":
            steps = self.nodes["central"][1].plans[body.device].steps
            assert body.samples == steps * BATCH, f"{body.device}: {body.samples} examples in {steps} batches"
            told = self.updates.setdefault((body.round, body.device), (body.samples, body.loss))
            assert told == (body.samples, body.loss), f"{body.device}: a loss of {body.loss} after one of {told[1]}"
        if self.drop is not None and self.drop(node, to, body):
            return
        for copy in range(2 if self.dice.random() < self.repeat else 1):
            if self.dice.random() < self.lose:
                continue
            late = self.dice.random() ** 3 * self.spread_s * (1 + 3 * copy)
            self.push(self.now + self.latency_s + late, to, Received(node, body))

    def compute(self, node, run):
        key = rng.keys(0, ("client", *run.key), np.zeros(1, np.int64))
        device = np.array([self.place[node]])
        one = Cohort(run.model.vector[None], np.zeros(1, np.int64), run.model.layout, device, key,
                     PROBLEM.data.block(device), run.config, run.inputs)  # fmt: skip
        out = WORKS[run.work](one)
        got = {k: Folded({int(device[0]): out.leaves[k][0]}, 1.0) for k in run.reduce}
        event = Gathered(run.tag, got, float(out.weight[0]), device, out.weight, out.metrics)
        self.push(self.now + self.work_s, node, event, self.lives[node])


def net(
    moves=(),
    *,
    devices=2,
    edges=3,
    rounds=2,
    steps=3,
    edge=None,
    device=None,
    central=None,
    homes=None,
    u=False,
    **more,
):
    """A run of three edges; every device begins at edge 0 unless `homes` says otherwise."""
    homes = homes or {f"device/{i}": "edge/0" for i in range(devices)}
    edge = Edge(patience_s=4.0, retry_s=6.0, grant_s=60.0) if edge is None else edge
    made = roles(devices, edges, rounds, steps, edge=edge, central=central, homes=homes, u=u,
                 **({} if device is None else {"device": device}))  # fmt: skip
    return Net(made, list(moves), initial=U_MODEL if u else MODEL, **more)
