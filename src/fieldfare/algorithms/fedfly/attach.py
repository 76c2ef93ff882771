"""Ownership comes to an edge, by ticket, and the device with it.

Here: what an edge does as the new owner: which session it goes on from, what it asks for where that is missing, the
device that attaches. Not here: how sessions come before (`arrive`), batches (`serve`). Invariants: without a ticket
countersigned for this edge nothing is owned; what goes on is a session of the ticket's digest, or one that fits what
the device holds, or the round from its beginning: all of them end in the same bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fieldfare.algorithms.fedfly import serve, tensors
from fieldfare.algorithms.fedfly.arrive import grant
from fieldfare.algorithms.fedfly.handover import Attach, Attached, Committed, Fetch, Release, Stored
from fieldfare.algorithms.fedfly.held import Held, Out, State, to_edge
from fieldfare.algorithms.fedfly.messages import Closed, Unknown
from fieldfare.algorithms.fedfly.seal import private_of, unseal
from fieldfare.algorithms.fedfly.session import Session, digest, from_blob, owned, reference
from fieldfare.algorithms.fedfly.tickets import Ticket, is_countersigned
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Send
from fieldfare.core.errors import PeerError

if TYPE_CHECKING:
    from fieldfare.algorithms.fedfly.edge import Edge


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
        session = _newest(ticket, [one for one in kept if one is not None], ctx.now)
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
    elif session is None and ticket.kind == "handover" and held.waiting is None and not edge.seals:
        more = _fetch(edge, state, device, ticket, ctx)
    else:
        state, more = serve.step(edge, state, device, ctx)
    return state, (*out, *more)


def _newest(ticket: Ticket, kept: list[Session], now_s: float) -> Session | None:
    """Of copies of one round the one that is furthest: any will do that has not expired."""
    good = [one for one in kept if one.round == ticket.round and now_s <= one.expires_s]
    return max(good, key=lambda one: one.next, default=None)


def _restored(edge: Edge, state: State, device: str, ticket: Ticket, blob: bytes, ctx: Context) -> Out:
    """The replica of a failover has come (or there is none: no bytes)."""
    held = state.of(device)
    kept = [] if held.session is None else [held.session]
    plan = state.plan.get(device)
    if blob and plan is not None and state.base is not None:
        try:
            wanted = tensors.reference_of(blob)
            base = serve.base_of(edge, state, plan.level)
            against = reference(base, plan.size, plan.stop or base.size) if wanted else None
            kept.append(from_blob(blob, state.model.layout, against, edge.cap_bytes, view=edge.view))
        except PeerError:
            pass  # damaged, or of another round: go on from what is here
    session = _newest(ticket, kept, ctx.now)
    session = None if session is None else owned(session, ticket.epoch)
    waiting = held.waiting
    state = state.put(device, replace(held, session=session, restore=False, waiting=None))
    return (state, ()) if waiting is None else attach(edge, state, device, waiting, ctx)


def _fetch(
    edge: Edge, state: State, device: str, ticket: Ticket, ctx: Context, gradient: bool = False
) -> tuple[Effect, ...]:
    body = Fetch(device, ticket.round, ticket.epoch)
    away = ticket.src != ctx.me and ticket.src in state.edges
    to_source = (to_edge(state, ctx.me, ticket.src, body, edge.relayed),) if away else ()
    return to_source if gradient else (*to_source, Send(state.central, body))


def stored(edge: Edge, state: State, src: str, body: Stored, ctx: Context) -> Out:
    """The source's copy, of a session that did not come, or came without its gradient."""
    held = state.of(body.device)
    ticket, mine = held.ticket, held.session
    if not held.owner or ticket is None or body.epoch != held.epoch or src != ticket.src or held.attached:
        return state, ()
    try:
        session = from_blob(body.blob, state.model.layout, None, edge.cap_bytes, src, edge.view)
    except PeerError:
        return state, ()
    if session.device != body.device or session.round != ticket.round:
        return state, ()
    if mine is not None and (mine.round, mine.next) == (session.round, session.next):
        session = replace(mine, grad=session.grad, between=session.between)
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
        state = state.put(device, state.of(device).with_batch(body.forward))
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
        session = from_blob(blob, state.model.layout, None, edge.cap_bytes, device, edge.view)
    except PeerError:
        return state
    if session.device != device or digest(session, False) != ticket.digest:
        return state
    return state.put(device, replace(held, session=owned(session, ticket.epoch)))


def _attached(edge: Edge, state: State, device: str, body: Attach, ctx: Context) -> Out:
    held, ticket, patient = state.of(device), body.ticket, body.tries < edge.tries
    if held.frozen:
        return state, ()
    held = replace(held, wants=body.near) if body.near and body.near != ctx.me else held
    missing = held.restore or (held.session is None and ticket.kind == "handover")
    if missing and edge.seals and not held.restore and not body.carried and not body.tries:
        return state.put(device, replace(held, waiting=body)), ()  # the device will bring it
    if missing and patient and not held.attached:
        return state.put(device, replace(held, waiting=body)), _fetch(edge, state, device, ticket, ctx)
    held = replace(held, restore=False, waiting=None)
    if held.session is None or held.session.round < state.round:
        state, held = _anew(edge, state, device, held)
    session, first = held.session, not held.attached
    fits, holds = session is not None and _fits(body, session), _holds(body, session)
    if session is None or body.round > session.round or (session.round > state.round and not fits):
        state = state.put(device, replace(held, waiting=body))
        return state, (Send(state.central, Fetch(device, ticket.round, ticket.epoch)),)
    if not (fits or (session.next == 0 and not holds)):
        if not first:
            return state.put(device, held), ()
        if session.next - 1 in holds and patient and ticket.kind == "handover":
            state = state.put(device, replace(held, waiting=body))
            return state, _fetch(edge, state, device, ticket, ctx, gradient=True)
        state, held = _anew(edge, state, device, replace(held, session=None))
    if held.session is None:
        return state, ()
    state = state.put(device, replace(held, attached=True, waiting=None))
    out: list[Effect] = []
    if first and ticket.src != ctx.me and ticket.src in state.edges:
        out.append(to_edge(state, ctx.me, ticket.src, Release(device, ticket.epoch), edge.relayed))
    state, more = _answer(edge, state, device, body, held.session, ctx)
    return state, (*out, *more)


def _anew(edge: Edge, state: State, device: str, held: Held) -> tuple[State, Held]:
    """The edge's round from its beginning, where its global model is here."""
    state, _ = serve.begin(edge, state.put(device, held), device)
    return state, state.of(device)


def _holds(body: Attach, session: Session | None) -> set[int]:
    """Before which batches of the session's round the device has its half."""
    return {body.applied, *body.marks} if session is not None and body.round == session.round else set()


def _fits(body: Attach, session: Session) -> bool:
    """Whether device and session can go on from where they are."""
    holds = _holds(body, session)
    return session.finished or session.next in holds or (session.next - 1 in holds and session.grad is not None)


def _answer(edge: Edge, state: State, device: str, body: Attach, session: Session, ctx: Context) -> Out:
    """Tell the device from where to go on, or just go on where it has brought the next batch."""
    held, holds = state.of(device), _holds(body, session)
    if session.finished:
        return state, (Send(device, Closed(session.round, held.epoch)), *serve.told(edge, state, device))
    if not holds:
        return state, (serve.begun(edge, state, held, device),) if state.base is not None else ()
    ahead = held.batch is not None and held.batch.is_of(session)
    if ahead and (body.round, body.applied) == (session.round, session.next):
        return serve.step(edge, state, device, ctx)
    grad, between = (None, None) if session.next in holds else (session.grad, session.between)
    return state, (Send(device, Attached(session.round, held.epoch, session.next, body.applied, grad, between)),)


def committed(edge: Edge, state: State, body: Committed, ctx: Context) -> Out:
    """The centre has given this edge a session."""
    blob = body.blob if body.ticket.kind == "failover" else None
    return own(edge, state, body.ticket.device, body.ticket, blob, ctx)
