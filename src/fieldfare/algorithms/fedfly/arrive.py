"""A session arrives at an edge: the destination's side of a handover, and of a failover.

Here: admission and whose turn it is (earliest deadline first), copies and the last difference, ownership by ticket,
the device that attaches. Not here: the source (`leave`). Invariants: without a ticket countersigned for this edge
nothing is owned; what goes on is a session of the ticket's digest, or one that fits what the device holds, or the
round from its beginning: all of them end in the same bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fieldfare.algorithms.fedfly import serve, tensors
from fieldfare.algorithms.fedfly.held import Arrive, Held, Out, State, to_edge
from fieldfare.algorithms.fedfly.messages import (
    Accept,
    Attach,
    Attached,
    Closed,
    Committed,
    Fetch,
    Final,
    Got,
    Pre,
    Prep,
    Ready,
    Reason,
    Reject,
    Release,
    Stored,
    Unknown,
)
from fieldfare.algorithms.fedfly.seal import private_of, public_of, unseal
from fieldfare.algorithms.fedfly.session import (
    Session,
    digest,
    fields,
    from_blob,
    layout_hash,
    owned,
    reference,
)
from fieldfare.algorithms.fedfly.tensors import Array
from fieldfare.algorithms.fedfly.tickets import Ticket, is_countersigned
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Send, Wake
from fieldfare.core.errors import PeerError

if TYPE_CHECKING:
    from fieldfare.algorithms.fedfly.edge import Edge


def prepared(edge: Edge, state: State, src: str, body: Prep, relayed: bool, ctx: Context) -> Out:
    """May a session come? Taken in, refused, or put in line."""
    device = body.device
    held = state.of(device)
    arrive = held.arrive
    if body.epoch < held.epoch or held.owner:
        return state, ()
    if arrive is not None and (arrive.epoch, arrive.attempt) >= (body.epoch, body.attempt):
        same = (arrive.epoch, arrive.attempt, arrive.granted) == (body.epoch, body.attempt, True)
        return state, (_accept(edge, state, device, arrive, ctx),) if same else ()
    reason = _refusal(edge, state, device, body, ctx)
    if reason is not None:
        no = Reject(device, body.epoch, body.attempt, reason)
        return state, (to_edge(state, ctx.me, src, no, relayed),)
    arrive = Arrive(
        src, body.epoch, body.attempt, body.round, body.size_bytes, body.deadline_s, ctx.now, relayed=relayed
    )
    return grant(edge, state.put(device, replace(held, arrive=arrive)), ctx)


def _refusal(edge: Edge, state: State, device: str, body: Prep, ctx: Context) -> Reason | None:
    """Why a session cannot come, if so."""
    if body.model_hash != layout_hash(state.model.layout):
        return "model"
    others = [held for name, held in state.held.items() if name != device]
    coming = [held.arrive for held in others if held.arrive is not None and not held.owner]
    if edge.capacity is not None and sum(held.owner for held in others) + len(coming) >= edge.capacity:
        return "full"
    if edge.ingress_bytes_per_s is not None:
        first = [one for one in coming if one.ready is None and (one.granted or one.deadline_s <= body.deadline_s)]
        bytes_ = body.size_bytes + sum(one.size_bytes for one in first)
        if ctx.now + bytes_ / edge.ingress_bytes_per_s > body.deadline_s:
            return "late"
    return None


def _accept(edge: Edge, state: State, device: str, arrive: Arrive, ctx: Context) -> Effect:
    public = public_of(private_of(edge.key)) if edge.seals else b""
    body = Accept(device, arrive.epoch, arrive.attempt, state.round, public)
    return to_edge(state, ctx.me, arrive.src, body, arrive.relayed)


def grant(edge: Edge, state: State, ctx: Context) -> Out:
    """Those may send whose deadlines are earliest, as many at once as there are ways in."""
    out: list[Effect] = []
    while True:
        line = {d: h.arrive for d, h in state.held.items() if h.arrive is not None and h.arrive.ready is None}
        waiting = [d for d, arrive in line.items() if not arrive.granted]
        if not waiting or (edge.arrivals is not None and len(line) - len(waiting) >= edge.arrivals):
            return state, out
        device = min(waiting, key=lambda d: (line[d].deadline_s, line[d].since_s, d))
        timer = state.timer + 1
        arrive = replace(line[device], granted=True, timer=timer)
        state = replace(state.put(device, replace(state.of(device), arrive=arrive)), timer=timer)
        out += [_accept(edge, state, device, arrive, ctx), Wake(edge.grant_s, ("arrive", device, timer))]


def expired(edge: Edge, state: State, device: str, timer: int, ctx: Context) -> Out:
    """Who was to send has not, for long: the next one."""
    held = state.of(device)
    if held.arrive is None or held.arrive.timer != timer or held.arrive.ready is not None:
        return state, ()
    return grant(edge, state.put(device, replace(held, arrive=None)), ctx)


def _mine(held: Held, body: Pre | Final, src: str) -> Arrive | None:
    """The arrival that a copy belongs to."""
    arrive = held.arrive
    known = arrive is not None and arrive.granted
    return arrive if known and (arrive.src, arrive.epoch, arrive.attempt) == (src, body.epoch, body.attempt) else None  # type: ignore[union-attr]


def _decoded(edge: Edge, state: State, arrive: Arrive, body: Pre | Final) -> Session:
    """The session in a copy. Errors: `PeerError`, where it is damaged or a difference from something not held."""
    wanted = tensors.reference_of(body.blob)
    known: list[dict[str, Array]] = []
    if wanted is not None and arrive.copied is not None:
        known.append(fields(arrive.copied, False))
    plan = state.plan.get(body.device)
    if wanted is not None and state.base is not None and plan is not None:
        known.append(reference(state.base, plan.size))
    against = next((one for one in known if tensors.digest(one) == wanted), None)
    session = from_blob(body.blob, state.model.layout, against, edge.cap_bytes, arrive.src)
    if (session.job, session.device, session.epoch) != (edge.job, body.device, body.epoch):
        raise PeerError(arrive.src, "session", f"it is of {session.device}, epoch {session.epoch}")
    return session


def copied(edge: Edge, state: State, src: str, body: Pre, relayed: bool, ctx: Context) -> Out:
    """A live copy has come."""
    device, held = body.device, state.of(body.device)
    arrive = _mine(held, body, src)
    if arrive is None:
        return state, _unwanted(state, held, src, body, relayed, ctx)
    if body.number > arrive.number:
        try:
            session = _decoded(edge, state, arrive, body)
        except PeerError:
            no = Reject(device, body.epoch, body.attempt, "reference")
            return state, (to_edge(state, ctx.me, src, no, relayed),)
        timer = state.timer + 1
        arrive = replace(arrive, copied=session, number=body.number, timer=timer)
        state = replace(state.put(device, replace(held, arrive=arrive)), timer=timer)
        got = to_edge(state, ctx.me, src, Got(device, body.epoch, body.attempt, body.number), relayed)
        return state, (got, Wake(edge.grant_s, ("arrive", device, timer)))
    return state, (to_edge(state, ctx.me, src, Got(device, body.epoch, body.attempt, body.number), relayed),)


def _unwanted(state: State, held: Held, src: str, body: Pre | Final, relayed: bool, ctx: Context) -> tuple[Effect, ...]:
    if held.owner or held.epoch > body.epoch:
        return ()
    no = Reject(body.device, body.epoch, body.attempt, "unknown")
    return (to_edge(state, ctx.me, src, no, relayed),)


def finished(edge: Edge, state: State, src: str, body: Final, relayed: bool, ctx: Context) -> Out:
    """The frozen session has come: acknowledged by its digest, and nothing more until the centre has committed."""
    device, held = body.device, state.of(body.device)
    arrive = _mine(held, body, src)
    if arrive is None:
        return state, _unwanted(state, held, src, body, relayed, ctx)
    if arrive.ready is None:
        try:
            session = _decoded(edge, state, arrive, body)
            if body.digest not in (digest(session, True), digest(session, False)):
                raise PeerError(src, "session", "what came out is not what went in")
        except PeerError:
            no = Reject(device, body.epoch, body.attempt, "reference")
            return state, (to_edge(state, ctx.me, src, no, relayed),)
        state = state.put(device, replace(held, arrive=replace(arrive, ready=session, copied=None)))
    yes = to_edge(state, ctx.me, src, Ready(device, body.epoch, body.attempt, body.digest), relayed)
    state, out = grant(edge, state, ctx)
    return state, (yes, *out)


def aborted(edge: Edge, state: State, src: str, device: str, epoch: int, attempt: int, ctx: Context) -> Out:
    """The source keeps it."""
    held = state.of(device)
    arrive = held.arrive
    if arrive is None or (arrive.src, arrive.epoch, arrive.attempt) != (src, epoch, attempt):
        return state, ()
    return grant(edge, state.put(device, replace(held, arrive=None, early=None)), ctx)


# Ownership


def own(edge: Edge, state: State, device: str, ticket: Ticket, blob: bytes | None, ctx: Context) -> Out:
    """This edge owns the session by `ticket`; `blob`: the replica of a failover, None where it may still come."""
    held = state.of(device)
    if not is_countersigned(ticket, edge.key) or ticket.job != edge.job or ticket.epoch <= held.epoch:
        if held.restore and held.ticket is not None and blob is not None and held.ticket.epoch == ticket.epoch:
            return _restored(edge, state, device, ticket, blob, ctx)
        return state, ()
    arrive = held.arrive
    session, restore = None, False
    if ticket.kind == "handover" and arrive is not None and arrive.ready is not None:
        session = arrive.ready if digest(arrive.ready, False) == ticket.digest else None
    elif ticket.kind == "failover":
        kept = [held.session, *((arrive.ready, arrive.copied) if arrive is not None else ())]
        session = _newest(ticket, [one for one in kept if one is not None])
        restore = True
    if session is not None:
        session = owned(session, ticket.epoch)
    held = replace(
        held, session=session, owner=True, frozen=False, busy=0, epoch=ticket.epoch, ticket=ticket, attached=False,
        leave=None, arrive=None, restore=restore, refused=0, last_s=0.0, waiting=None,
        wants=held.wants if held.wants != ctx.me else "",
    )  # fmt: skip
    state, out = grant(edge, state.put(device, held), ctx)
    if restore and blob is not None:
        state, more = _restored(edge, state, device, ticket, blob, ctx)
    elif session is None and ticket.kind == "handover" and held.waiting is None:
        more = _fetch(state, device, ticket, ctx)
    else:
        state, more = serve.step(edge, state, device, ctx)
    return state, (*out, *more)


def _newest(ticket: Ticket, kept: list[Session]) -> Session | None:
    """Of copies of one round the one that is furthest: any will do."""
    return max((one for one in kept if one.round == ticket.round), key=lambda one: one.next, default=None)


def _restored(edge: Edge, state: State, device: str, ticket: Ticket, blob: bytes, ctx: Context) -> Out:
    """The replica of a failover has come (or there is none: no bytes)."""
    held = state.of(device)
    kept = [] if held.session is None else [held.session]
    plan = state.plan.get(device)
    if blob and plan is not None and state.base is not None:
        try:
            wanted = tensors.reference_of(blob)
            against = reference(state.base, plan.size)
            kept.append(from_blob(blob, state.model.layout, against if wanted else None, edge.cap_bytes))
        except PeerError:
            pass  # damaged, or of another round: go on from what is here
    session = _newest(ticket, kept)
    session = None if session is None else owned(session, ticket.epoch)
    waiting = held.waiting
    state = state.put(device, replace(held, session=session, restore=False, waiting=None))
    return (state, ()) if waiting is None else attach(edge, state, device, waiting, ctx)


def _fetch(state: State, device: str, ticket: Ticket, ctx: Context, gradient: bool = False) -> tuple[Effect, ...]:
    body = Fetch(device, ticket.round, ticket.epoch)
    to_source = () if ticket.src == ctx.me else (Send(ticket.src, body),)
    return to_source if gradient else (*to_source, Send(state.central, body))


def stored(edge: Edge, state: State, src: str, body: Stored, ctx: Context) -> Out:
    """The source's copy, of a session that did not come, or came without its gradient."""
    held = state.of(body.device)
    ticket, mine = held.ticket, held.session
    if not held.owner or ticket is None or body.epoch != held.epoch or src != ticket.src or held.attached:
        return state, ()
    try:
        session = from_blob(body.blob, state.model.layout, None, edge.cap_bytes, src)
    except PeerError:
        return state, ()
    if session.device != body.device or session.round != ticket.round:
        return state, ()
    if mine is not None and (mine.round, mine.next) == (session.round, session.next):
        session = replace(mine, grad=session.grad)
    elif mine is not None or digest(session, False) != ticket.digest:
        return state, ()
    waiting = held.waiting
    state = state.put(body.device, replace(held, session=owned(session, held.epoch), waiting=None))
    return (state, ()) if waiting is None else attach(edge, state, body.device, waiting, ctx)


# The device


def attach(edge: Edge, state: State, device: str, body: Attach, ctx: Context) -> Out:
    """The device comes with its ticket: find from where both can go on."""
    ticket = body.ticket
    wrong = (ticket.job, ticket.device, ticket.dst) != (edge.job, device, ctx.me)
    if wrong or ctx.now > ticket.expires_s or not is_countersigned(ticket, edge.key):
        return state, (Send(device, Unknown(body.round, ticket.epoch)),)
    held, out = state.of(device), list[Effect]()
    if ticket.epoch < held.epoch or (ticket.epoch == held.epoch and not held.owner):
        return state, (serve.redirect(held, device, body.round, ticket.epoch),)
    if ticket.epoch > held.epoch:
        state, more = own(edge, state, device, ticket, None, ctx)
        out += more
    if body.carried:
        state = _carried(edge, state, device, body)
    if body.forward is not None and serve.sound(body.forward):
        state = state.put(device, replace(state.of(device), early=body.forward))
    state, more = _attached(edge, state, device, body, ctx)
    return state, (*out, *more)


def _carried(edge: Edge, state: State, device: str, body: Attach) -> State:
    """The session as the device has brought it, if it is still missing and it is what the ticket says."""
    held, ticket = state.of(device), body.ticket
    if held.session is not None or held.attached or ticket.kind != "handover":
        return state
    try:
        about = f"{edge.job} {device} {ticket.epoch - 1}".encode()
        blob = unseal(body.carried, private_of(edge.key), about, device)
        session = from_blob(blob, state.model.layout, None, edge.cap_bytes, device)
    except PeerError:
        return state
    if session.device != device or digest(session, False) != ticket.digest:
        return state
    return state.put(device, replace(held, session=owned(session, ticket.epoch)))


def _attached(edge: Edge, state: State, device: str, body: Attach, ctx: Context) -> Out:
    held, ticket, patient = state.of(device), body.ticket, body.tries < edge.tries
    missing = held.restore or (held.session is None and ticket.kind == "handover")
    if missing and patient and not held.attached:
        state = state.put(device, replace(held, waiting=body))
        return state, _fetch(state, device, ticket, ctx)
    held = replace(held, restore=False, waiting=None)
    session = held.session
    if session is None or session.round < state.round:
        state, _ = serve.begin(edge, state.put(device, held), device)
        held = state.of(device)
        session = held.session
    if session is None or body.round > session.round:
        state = state.put(device, replace(held, waiting=body))
        return state, (Send(state.central, Fetch(device, ticket.round, ticket.epoch)),)
    first, holds = not held.attached, {body.applied, *body.marks} if body.round == session.round else set[int]()
    fits = session.next in holds or (session.next - 1 in holds and session.grad is not None)
    if session.finished or fits or (session.next == 0 and not holds):
        pass
    elif not first:
        return state.put(device, held), ()
    elif session.next - 1 in holds and patient and ticket.kind == "handover":
        state = state.put(device, replace(held, waiting=body))
        return state, _fetch(state, device, ticket, ctx, gradient=True)
    elif session.round == state.round:
        state, _ = serve.begin(edge, state.put(device, replace(held, session=None)), device)
        held = state.of(device)
        session = held.session
        if session is None:
            return state, ()
    state = state.put(device, replace(held, attached=True, waiting=None))
    out: list[Effect] = []
    if first and ticket.src != ctx.me and ticket.src in state.edges:
        out.append(Send(ticket.src, Release(device, ticket.epoch)))
    state, more = _answer(edge, state, device, body, session, ctx)
    return state, (*out, *more)


def _answer(edge: Edge, state: State, device: str, body: Attach, session: Session, ctx: Context) -> Out:
    """Tell the device from where to go on, or just go on where it has brought the next batch."""
    held = state.of(device)
    holds = {body.applied, *body.marks} if body.round == session.round else set[int]()
    if session.finished:
        return state, (Send(device, Closed(session.round, held.epoch)), *serve.told(state, device))
    if not holds:
        return state, (serve.begun(state, held, device),) if state.base is not None else ()
    early = held.early
    if early is not None and (early.round, early.seq) == (session.round, session.next) == (body.round, body.applied):
        state, out = serve.step(edge, state, device, ctx)
        return state, out
    grad = None if session.next in holds else session.grad
    return state, (Send(device, Attached(session.round, held.epoch, session.next, grad)),)


def committed(edge: Edge, state: State, body: Committed, ctx: Context) -> Out:
    """The centre has given this edge a session."""
    blob = body.blob if body.ticket.kind == "failover" else None
    return own(edge, state, body.ticket.device, body.ticket, blob, ctx)
