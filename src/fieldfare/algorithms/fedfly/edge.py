"""FedFly's edge server: any number of sessions, source and destination of moves at once.

Here: settings, and which part answers what. The parts: `serve` (batches), `leave` and `arrive` (handovers), `held`
(state). Invariant: an edge trains a session only by the centre's word that it owns it, and what crosses to another
edge is bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fieldfare.algorithms.fedfly import arrive, attach, give, leave, serve
from fieldfare.algorithms.fedfly.handover import (
    Abort,
    Accept,
    Attach,
    Committed,
    Denied,
    Fetch,
    Final,
    Got,
    Message,
    Move,
    Pre,
    Prep,
    Ready,
    Reject,
    Relay,
    Release,
    Stored,
    Turn,
)
from fieldfare.algorithms.fedfly.held import Held, Out, State
from fieldfare.algorithms.fedfly.messages import Alive, Close, Ends, Finish, Forward, Round
from fieldfare.algorithms.fedfly.policies import STOP_AND_COPY, Cheapest, Policy, Route
from fieldfare.algorithms.fedfly.tensors import CAP_BYTES
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Send
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Gathered, Moved, Received, Started, Woke
from fieldfare.core.params import Params, View


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge server of FedFly. `key`: its own, from the centre's secret (`tickets.key_of`); `job`: the run's name.

    `policy`: how sessions follow their devices. Patience: it asks again after `patience_s`, each time twice as long,
    `tries` times; then it keeps the session and tries again after `retry_s`, up to `retries` times. `lanes`: steps at
    once (None: all). Admission: `capacity` sessions; `arrivals` may send at once (None: all), those with the earliest
    deadlines; with `ingress_bytes_per_s` a session that cannot be here by its deadline is refused. `grant_s`: for how
    long a turn to send is kept. `relays`: through the centre where the other edge does not answer. `replica_every`
    batches the centre gets a copy (0: never). `ttl_s`: a parked session and a ticket are dropped after it. `seals`:
    sealed sessions are taken, which needs `cryptography`. `view`: the sub-models that the levels of plans name.
    """

    key: bytes = b""
    job: str = "fedfly"
    policy: Policy = STOP_AND_COPY
    patience_s: float = 60.0
    tries: int = 3
    retry_s: float = 60.0
    retries: int = 3
    lanes: int | None = None
    capacity: int | None = None
    arrivals: int | None = None
    ingress_bytes_per_s: float | None = None
    grant_s: float = 600.0
    relays: bool = True
    replica_every: int = 0
    ttl_s: float = 86400.0
    cap_bytes: int = CAP_BYTES
    page_bytes: int = 1 << 17
    view: View | None = None
    messages: ClassVar[Message | State | None] = None
    """For those who store what is under way: the types of all that is said and held."""

    def __post_init__(self) -> None:
        for name in ("patience_s", "retry_s", "grant_s", "ttl_s"):
            if not getattr(self, name) > 0.0:
                raise UsageError(f"Edge({name}={getattr(self, name)}): use seconds above 0.")
        for name in ("lanes", "capacity", "arrivals"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"Edge({name}={value}): use a number >= 1, or None.")
        if self.tries < 1 or self.replica_every < 0 or self.retries < 0:
            raise UsageError(
                f"Edge(tries={self.tries}, retries={self.retries}, replica_every={self.replica_every}): use tries >= 1 "
                "and the others >= 0."
            )

    @property
    def route(self) -> Route:
        """How state crosses."""
        return self.policy.other.route if isinstance(self.policy, Cheapest) else self.policy.route

    @property
    def seals(self) -> bool:
        """Whether sessions come sealed."""
        return self.route == "carry"

    @property
    def relayed(self) -> bool:
        """Whether edges speak to each other through the centre."""
        return self.route != "direct"

    def init(self, model: Params) -> State:
        return State(model)

    def step(self, state: State, event: Event, ctx: Context) -> Out:
        match event:
            case Started(roster=roster):
                return replace(state, central=roster["central"][0], edges=roster["edge"]), ()
            case _ if not state.central:
                return state, ()
            case Received(src, Relay(first, to, body)) if src == state.central and to == ctx.me:
                return self._heard(state, first, body, True, ctx)
            case Received(src, body):
                return self._heard(state, src, body, False, ctx)
            case Gathered(tag=("fedfly", int(serial))) if serial in state.running:
                return self._stepped(state, serial, event, ctx)
            case Moved(str() as device, to) if device in state.held and state.of(device).owner:
                held = state.of(device)
                return self._move(state, device, to, held.deadline_s if held.wants == to else float("inf"), ctx)
            case Woke(tag=("leave", str() as device, int(timer))) if state.of(device).leave is not None:
                return leave.late(self, state, device, timer, ctx)
            case Woke(tag=("arrive", str() as device, int(timer))):
                return arrive.expired(self, state, device, timer, ctx)
            case Woke(tag=("again", str() as device, int(attempt))) if state.of(device).attempt == attempt:
                return leave.start(self, state, device, ctx)
            case _:
                return state, ()

    def _heard(self, state: State, src: str, body: object, relayed: bool, ctx: Context) -> Out:
        match body:
            case Forward():
                return serve.forward(self, state, src, body, ctx)
            case Ends():
                return serve.ends(self, state, src, body, ctx)
            case Finish():
                return serve.finish(self, state, src, body)
            case Attach():
                state, out = attach.attach(self, state, src, body, ctx)
                return self._further(state, out, src, ctx)
            case Move(to, deadline_s) if state.of(src).owner:
                return self._move(state, src, to, deadline_s, ctx)
            case Round() if src == state.central:
                return self._round(state, body, ctx)
            case Close(device, round_) if src == state.central and round_ == state.round:
                return state, serve.part(self, state, device)
            case Committed(ticket) if src == state.central and ticket.dst == ctx.me:
                state, out = attach.committed(self, state, body, ctx)
                return self._further(state, out, ticket.device, ctx)
            case Committed(ticket) if src == state.central and ticket.epoch > state.of(ticket.device).epoch:
                return give.given(self, state, ticket.device, body)
            case Denied(device) if src == state.central:
                return give.denied(state, device, body)
            case Prep() if src in state.edges:
                return arrive.prepared(self, state, src, body, relayed, ctx)
            case Turn(device, epoch, attempt) if _is_about(state.of(device), src, epoch, attempt):
                return leave.turned(self, state, device, ctx)
            case Turn() if src in state.edges:
                return arrive.asked(self, state, src, body, relayed, ctx)
            case Pre() if src in state.edges:
                return arrive.copied(self, state, src, body, relayed, ctx)
            case Final() if src in state.edges:
                return arrive.finished(self, state, src, body, relayed, ctx)
            case Abort(device, epoch, attempt):
                return arrive.aborted(self, state, src, device, epoch, attempt, ctx)
            case Accept(device, epoch, attempt) if _is_about(state.of(device), src, epoch, attempt):
                return leave.accepted(self, state, device, body, ctx)
            case Got(device, epoch, attempt) if _is_about(state.of(device), src, epoch, attempt):
                return leave.got(self, state, device, body, ctx)
            case Ready(device, epoch, attempt) if _is_about(state.of(device), src, epoch, attempt):
                return give.ready(self, state, device, body, ctx)
            case Reject(device, epoch, attempt) if _is_about(state.of(device), src, epoch, attempt):
                return leave.rejected(self, state, device, body, ctx)
            case Fetch(device) if src in state.edges:
                return give.fetched(state, device, body, src, ctx, relayed)
            case Stored(device) if src in state.edges:
                state, out = attach.stored(self, state, src, body, ctx)
                return self._further(state, out, device, ctx)
            case Release(device, epoch) if src in state.edges:
                return give.released(state, device, epoch)
            case _:
                return state, ()

    def _stepped(self, state: State, serial: int, event: Gathered, ctx: Context) -> Out:
        whose = state.running[serial][0]
        coming = state.of(whose).arrive
        if coming is not None and coming.replaying == serial:
            return arrive.replayed(self, state, whose, serial, event, ctx)
        state, device = serve.stepped(self, state, serial, event, ctx)
        out: list[Effect] = []
        if device:
            act = leave.stepped(self, state, device, ctx) if state.of(device).leave is not None else None
            state, more = act if act is not None else serve.down(self, state, device)
            out += more
        elif event.missing.get("refused") is not None and state.of(whose).owner:
            state, more = self._spoiled(state, whose, ctx)
            out += more
        else:
            state, more = serve.step(self, state, whose, ctx)
            out += more
        state, more = serve.next_lane(self, state, ctx)
        return state, (*out, *more)

    def _spoiled(self, state: State, device: str, ctx: Context) -> Out:
        """A step gave what is not finite, as it would again: the round is over for the session, and counts nothing."""
        state, closed = serve.spoiled(self, state, device)
        if state.of(device).leave is None:
            return state, (*closed, *serve.told(self, state, device))
        state, out = give.cancel(self, state, device, ctx)
        return state, (*closed, *out)

    def _move(self, state: State, device: str, to: str, deadline_s: float, ctx: Context) -> Out:
        held = replace(state.of(device), wants=to, deadline_s=deadline_s, refused=0)
        return leave.start(self, state.put(device, held), device, ctx)

    def _further(self, state: State, out: object, device: str, ctx: Context) -> Out:
        """After a session has come: on to where its device has moved since."""
        more: object = ()
        if state.of(device).attached and state.of(device).wants:
            state, more = leave.start(self, state, device, ctx)
        return state, (*out, *more)  # type: ignore[misc]

    def _round(self, state: State, body: Round, ctx: Context) -> Out:
        """A round opens; or the centre asks again about one that is open."""
        if body.round < state.round or body.model.layout != state.model.layout:
            return state, ()
        again = body.round == state.round
        if not again:
            held = {device: _after_round(held, body.round) for device, held in state.held.items()}
            state = replace(state, round=body.round, base=body.model, plan=body.plan, held=held)
        out: list[Effect] = [Send(state.central, Alive(body.round))] if again else []
        for device, epoch in body.owners.items():
            if epoch > state.of(device).epoch:
                out.append(Send(state.central, Fetch(device, body.round, epoch)))
            elif epoch == 0 and device not in state.held:
                state = state.put(device, Held(owner=True, attached=True))
        for device, held in state.held.items():
            if held.owner and not held.frozen and held.attached and not held.restore:
                done = held.session is not None and held.session.round == state.round and held.session.finished
                state, more = (state, serve.told(self, state, device)) if done else serve.begin(self, state, device)
                out += more
                if not done and held.wants:
                    state, more = leave.start(self, state, device, ctx)
                    out += more
            elif held.owner and held.waiting is not None and not again:
                state, more = attach.attach(self, state, device, held.waiting, ctx)
                out += more
        return state, out


def _after_round(held: Held, round_: int) -> Held:
    """What is kept of a device when a round begins: nothing of an older one that is not this edge's own."""
    if held.owner:
        return held
    over = held.arrive is not None and held.arrive.ready is not None and held.arrive.round < round_
    return replace(held, session=None, batch=None, arrive=None if over else held.arrive)


def _is_about(held: Held, src: str, epoch: int, attempt: int) -> bool:
    """Whether a message is from the destination of the handover under way."""
    on = held.leave
    return on is not None and (on.to, held.epoch, on.attempt) == (src, epoch, attempt)
