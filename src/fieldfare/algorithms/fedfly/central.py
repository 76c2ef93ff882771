"""FedFly's centre: rounds, aggregation, and the one word on who owns which session.

Here: the directory of owners, tickets, failovers, replicas, the mean. Not here: batches and handovers (edges and
devices do these among themselves). Invariant: per device the epoch of ownership only grows, and for each epoch there
is one owner, decided once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from fieldfare.algorithms.fedfly.handover import Commit, Committed, Denied, Fetch, Lost, Message, Relay, Replica
from fieldfare.algorithms.fedfly.merge import merged
from fieldfare.algorithms.fedfly.messages import Close, Plan, Round, Train, Update
from fieldfare.algorithms.fedfly.tickets import Ticket, countersigned, is_signed, key_of, told
from fieldfare.algorithms.fedfly.widths import layout_at, part_of, places_at
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Publish, Send, Stop, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Left, Received, Started, Woke
from fieldfare.core.params import Params, View

_MOST_TRIES = 40


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """Who owns a device's session in `epoch`, and the `ticket` that says so (None: the first owner)."""

    edge: str
    epoch: int = 0
    ticket: Ticket | None = None


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """The centre in `round` (0: not begun) with the global `model`.

    `plan` of the round and `owners` by device; `updates` of this round; `replicas`, the newest by device; `away`:
    devices not waited for, since they did not come in time; `closing`: the round's time is over, what there is is being
    collected. `tries`: how often the edges were asked again without an update coming in; `silent`: and how often each
    has not answered.
    """

    model: Params
    edges: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    round: int = 0
    plan: Mapping[str, Plan] = field(default_factory=dict[str, Plan])
    owners: Mapping[str, Owner] = field(default_factory=dict[str, Owner])
    updates: Mapping[str, Update] = field(default_factory=dict[str, Update])
    replicas: Mapping[str, Replica] = field(default_factory=dict[str, Replica])
    away: tuple[str, ...] = ()
    closing: bool = False
    timer: int = 0
    tries: int = 0
    silent: Mapping[str, int] = field(default_factory=dict[str, int])


Out = tuple[State, Sequence[Effect]]


@dataclass(frozen=True, slots=True)
class Central:
    """`rounds` rounds over the devices of `plans` (a cut each) and `whole` (that train without an edge: their steps).

    `homes`: the edge each device begins at (None: in turn). `elsewhere` `{edge: {device: Plan}}`: its cut where another
    one is better there, from the round behind a move on. `secret`: the job's, from which the edges' keys are made.
    After `deadline_s` a round goes on without those who are missing: dropped, or with `late="half"` with the server
    half there is, by its samples. Every `patience_s` the edges are asked again; an edge that has not answered `tries`
    times has its sessions given to others. `evaluate`: central evaluations of each mean. `view`: the sub-models that
    the levels of plans, and `levels` of those in `whole`, name; the mean is then over those who cover a number.
    """

    rounds: int
    plans: Mapping[str, Plan]
    homes: Mapping[str, str] | None = None
    whole: Mapping[str, int] = field(default_factory=dict[str, int])
    secret: bytes = b""
    job: str = "fedfly"
    deadline_s: float | None = None
    late: Literal["drop", "half"] = "drop"
    patience_s: float = 300.0
    tries: int = 3
    ttl_s: float = 86400.0
    evaluate: tuple[str, ...] = ()
    elsewhere: Mapping[str, Mapping[str, Plan]] = field(default_factory=dict[str, Mapping[str, Plan]])
    view: View | None = None
    levels: Mapping[str, int] = field(default_factory=dict[str, int])
    messages: ClassVar[Message | None] = None
    """For those who store what is under way: the types of all that is said."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.patience_s > 0.0 or self.tries < 1 or not (self.plans or self.whole):
            raise UsageError(
                f"Central(rounds={self.rounds}, patience_s={self.patience_s}, tries={self.tries}) over "
                f"{len(self.plans) + len(self.whole)} devices: use rounds and tries >= 1, patience_s above 0 and at "
                "least one device."
            )
        both = sorted({*self.plans} & {*self.whole})
        if both:
            raise UsageError(f"Central: {both[0]!r} is in plans and in whole: a device trains split or whole.")
        if self.deadline_s is not None and not self.deadline_s > 0.0:
            raise UsageError(f"Central(deadline_s={self.deadline_s}): use seconds above 0, or None.")
        every = (self.plans, *self.elsewhere.values())
        if self.view is None and (self.levels or any(p.level is not None for ps in every for p in ps.values())):
            raise UsageError("Central(view=None): plans name levels of a model; give the view that has them.")

    def init(self, model: Params) -> State:
        return State(model)

    def step(self, state: State, event: Event, ctx: Context) -> Out:
        match event:
            case Started(roster=roster) if not state.edges:
                edges, devices = roster.get("edge", ()), roster["device"]
                homes = self.homes or {}
                if unknown := [d for d in (*self.plans, *self.whole) if d not in devices]:
                    raise UsageError(f"Central: no device is called {unknown[0]!r}: there are {', '.join(devices)}.")
                if self.plans and not edges:
                    raise UsageError("Central: devices train split and there is no edge: add a node of role 'edge'.")
                owners = {d: Owner(homes.get(d) or edges[at % len(edges)]) for at, d in enumerate(self.plans)}
                return self._open(replace(state, edges=edges, devices=devices, owners=owners), ctx)
            case _ if not state.round:
                return state, ()
            case Received(src, body):
                if src in state.silent:
                    state = replace(state, silent={edge: n for edge, n in state.silent.items() if edge != src})
                return self._heard(state, src, body, ctx)
            case Left(str() as node) if node in state.edges:
                return self._edge_died(state, node, ctx)
            case Woke(tag=("again", int(timer))) if timer == state.timer:
                return self._again(state, ctx)
            case Woke(tag=("deadline", int(round_))) if round_ == state.round:
                return self._close(state, ctx)
            case Woke(tag=("closed", int(round_))) if round_ == state.round and state.closing:
                return self._over(state, ctx)
            case _:
                return state, ()

    def _heard(self, state: State, src: str, body: object, ctx: Context) -> Out:
        match body:
            case Update(device, round_, epoch) if round_ == state.round:
                owner = state.owners.get(device)
                nothing = not body.samples  # what the device, or its edge, has computed is not finite
                mine = src == device in self.whole or (
                    owner is not None and owner.epoch == epoch and (src == owner.edge or (nothing and src == device))
                )
                size = layout_at(self.view, self._level(state, device), state.model.layout).size
                whole = body.vector.shape == (size,) and (body.only is None or state.closing)
                fits = whole or nothing
                if not mine or not fits or device in state.updates:
                    return state, ()
                away = tuple(one for one in state.away if one != device or body.only is not None)
                state = replace(state, updates={**state.updates, device: body}, away=away, tries=0)
                return self._over(state, ctx) if self._complete(state) else (state, ())
            case Commit(ticket) if src in state.edges:
                return self._commit(state, src, ticket, ctx)
            case Lost(round_, epoch, edge, near, reason) if src in state.owners:
                owner = state.owners[src]
                if owner.epoch > epoch and owner.ticket is not None and reason != "reboot":
                    return state, (Send(src, Committed(owner.ticket, state.round)),)
                return self._fail_over(state, src, "" if reason == "unknown" else edge, near, reason == "reboot", ctx)
            case Replica(device, round_, epoch, seq) if round_ == state.round:
                owner, known = state.owners.get(device), state.replicas.get(device)
                older = known is not None and known.round == round_ and known.seq >= seq
                if owner is None or (owner.edge, owner.epoch) != (src, epoch) or older:
                    return state, ()
                return replace(state, replicas={**state.replicas, device: body}), ()
            case Fetch(device) if src in state.edges and device in state.owners:
                owner = state.owners[device]
                out: list[Effect] = [Send(src, replace(self._round(state, src), owners={}))]
                if owner.ticket is not None:
                    out.append(Send(src, self._committed(state, device, owner.ticket)))
                return state, out
            case Relay(first, to, inner) if src == first and src in state.edges and to in state.edges:
                return state, (Send(to, Relay(src, to, inner)),)
            case _:
                return state, ()

    # Rounds

    def _open(self, state: State, ctx: Context) -> Out:
        """The next round, from the model there is; or the end."""
        if state.round == self.rounds:
            return state, (Stop("rounds"),)
        round_ = state.round + 1
        plan = {device: self._plan(device, state.owners[device].edge) for device in self.plans}
        state = replace(state, round=round_, plan=plan, updates={}, replicas={}, closing=False, tries=0)
        out: list[Effect] = [Send(edge, self._round(state, edge)) for edge in state.edges]
        out += [self._train(state, device) for device in self.whole]
        if self.deadline_s is not None:
            out.append(Wake(self.deadline_s, ("deadline", round_)))
        state, more = self._timed(state)
        return state, (*out, *more)

    def _round(self, state: State, edge: str) -> Round:
        owners = {device: owner.epoch for device, owner in state.owners.items() if owner.edge == edge}
        return Round(state.round, state.model, owners, state.plan)

    def _plan(self, device: str, edge: str) -> Plan:
        """How a device trains with an edge."""
        return self.elsewhere.get(edge, {}).get(device, self.plans[device])

    def _level(self, state: State, device: str) -> int | None:
        """The level of the model that a device has in this round."""
        plan = state.plan.get(device)
        return self.levels.get(device) if plan is None else plan.level

    def _train(self, state: State, device: str) -> Send:
        """What a device that trains without an edge is sent."""
        model = part_of(self.view, self.levels.get(device), state.round, state.model)
        return Send(device, Train(state.round, model, self.whole[device]))

    def _missing(self, state: State) -> list[str]:
        return [device for device in (*self.plans, *self.whole) if device not in state.updates]

    def _complete(self, state: State) -> bool:
        return all(device in state.away for device in self._missing(state)) and (bool(state.updates) or state.closing)

    def _over(self, state: State, ctx: Context) -> Out:
        away = tuple(sorted({*state.away, *self._missing(state)}))
        found = {d: places_at(self.view, self._level(state, d), state.round, state.model) for d in state.updates}
        model = merged(state.model, state.updates, {d: one for d, one in found.items() if one is not None})
        state, out = self._open(replace(state, model=model, away=away), ctx)
        published = state.round - 1 if len(out) > 1 else state.round
        return state, (Publish(model, published, self.evaluate), *out)

    def _close(self, state: State, ctx: Context) -> Out:
        """The round's time is over."""
        missing = [device for device in self._missing(state) if device in state.owners]
        if self.late == "drop" or not missing:
            return self._over(state, ctx)
        out = [Send(state.owners[device].edge, Close(device, state.round)) for device in missing]
        away = tuple(sorted({*state.away, *self._missing(state)}))
        return replace(state, closing=True, away=away), (*out, Wake(self.patience_s, ("closed", state.round)))

    def _timed(self, state: State) -> Out:
        timer = state.timer + 1
        after_s = self.patience_s * 2.0 ** min(state.tries, 6)
        wake = (Wake(after_s, ("again", timer)),) if state.tries < _MOST_TRIES else ()
        return replace(state, timer=timer), wake

    def _again(self, state: State, ctx: Context) -> Out:
        """Nobody has said anything for a while: ask those who owe something."""
        missing = self._missing(state)
        edges = sorted({state.owners[device].edge for device in missing if device in state.owners})
        out: list[Effect] = [Send(edge, self._round(state, edge)) for edge in edges]
        tickets = [(device, state.owners[device].ticket) for device in missing if device in state.owners]
        out += [Send(device, Committed(t, state.round)) for device, t in tickets if t is not None]
        out += [self._train(state, device) for device in missing if device in self.whole]
        silent = {edge: state.silent.get(edge, 0) + 1 for edge in edges}
        state, more = self._timed(replace(state, tries=state.tries + 1, silent=silent))
        for edge in edges:
            if silent[edge] > self.tries:
                state, given = self._edge_died(state, edge, ctx)
                out += given
        return state, (*out, *more)

    # Owners

    def _commit(self, state: State, src: str, ticket: Ticket, ctx: Context) -> Out:
        """A source wants to hand over: yes, if the session is its own still; the same answer whenever it asks."""
        owner = state.owners.get(ticket.device)
        if owner is None or ticket.dst not in state.edges or ticket.job != self.job:
            return state, ()
        known = owner.ticket
        if known is not None and (known.epoch, known.src, known.dst) == (ticket.epoch, ticket.src, ticket.dst):
            return state, (Send(src, Committed(known, state.round)), Send(ticket.device, Committed(known, state.round)))
        mine = (owner.edge, owner.epoch + 1, ticket.src) == (src, ticket.epoch, src)
        if not mine or not is_signed(ticket, key_of(self.secret, src)):
            return state, (Send(src, Denied(ticket.device, owner.epoch, owner.edge)),)
        return self._given(state, ticket, {src})

    def _given(self, state: State, ticket: Ticket, hears: set[str]) -> Out:
        ticket = countersigned(ticket, key_of(self.secret, ticket.dst))
        ticket = told(ticket, key_of(self.secret, ticket.device))
        owner = Owner(ticket.dst, ticket.epoch, ticket)
        state = replace(state, owners={**state.owners, ticket.device: owner})
        here = Send(ticket.dst, self._committed(state, ticket.device, ticket))
        others = [Send(one, Committed(ticket, state.round)) for one in sorted({*hears, ticket.device} - {ticket.dst})]
        return state, (here, *others)

    def _committed(self, state: State, device: str, ticket: Ticket) -> Committed:
        """What the new owner is told: with the last replica, where the session has to be restored."""
        replica = state.replicas.get(device) if ticket.kind == "failover" else None
        return Committed(ticket, state.round, b"" if replica is None else replica.blob)

    def _fail_over(self, state: State, device: str, dead: str, near: str, anew: bool, ctx: Context) -> Out:
        """Give a session whose owner is lost to another edge: the one the device is at, or the next one."""
        owner = state.owners[device]
        first = near if near in state.edges else owner.edge
        place = state.edges.index(first)
        order = [state.edges[(place + i) % len(state.edges)] for i in range(len(state.edges))]
        to = next((edge for edge in order if edge != dead), first)
        ticket = Ticket(
            self.job, device, owner.edge, to, owner.epoch + 1, state.round, "failover", "", ctx.now + self.ttl_s
        )
        if anew:
            state = replace(state, replicas={d: r for d, r in state.replicas.items() if d != device})
        return self._given(state, ticket, {owner.edge})

    def _edge_died(self, state: State, edge: str, ctx: Context) -> Out:
        """An edge has gone: its sessions go to others, their devices move on from there."""
        out: list[Effect] = []
        for device, owner in state.owners.items():
            if owner.edge == edge and len(state.edges) > 1:
                place = state.edges.index(edge)
                near = state.edges[(place + 1) % len(state.edges)]
                state, more = self._fail_over(state, device, edge, near, False, ctx)
                out += more
        return state, out
