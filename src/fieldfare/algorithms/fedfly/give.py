"""A session is given away: it stands still, its last part crosses, and the centre gives it to another edge.

FREEZE, FINAL, ACK (`Ready`), COMMIT; or the handover is called off. Here: the source's side from the freeze on. Not
here: admission and live copies, which come before (`leave`), the destination (`arrive`). Invariant: the source may call
a handover off until it has asked the centre to commit; from then on only the centre's answer ends it, and until then
the session stands still.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fieldfare.algorithms.fedfly import copies, serve
from fieldfare.algorithms.fedfly.handover import (
    Abort,
    Carry,
    Commit,
    Committed,
    Denied,
    Fetch,
    Final,
    Freeze,
    Ready,
    Resume,
    Stored,
    Turn,
)
from fieldfare.algorithms.fedfly.held import Held, Leave, Out, State, to_edge
from fieldfare.algorithms.fedfly.policies import StopAndCopy
from fieldfare.algorithms.fedfly.seal import seal
from fieldfare.algorithms.fedfly.session import Session, digest, to_blob
from fieldfare.algorithms.fedfly.tickets import Kind, Ticket, signed
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Send, Wake

if TYPE_CHECKING:
    from fieldfare.algorithms.fedfly.edge import Edge

_MOST_TRIES = 40


def under_way(state: State, device: str) -> tuple[Held, Leave]:
    held = state.of(device)
    assert held.leave is not None
    return held, held.leave


def timed(edge: Edge, state: State, device: str, leave: Leave) -> Out:
    """The record with a new timer."""
    timer = state.timer + 1
    state = replace(state.put(device, replace(state.of(device), leave=replace(leave, timer=timer))), timer=timer)
    after_s = edge.patience_s * 2.0 ** min(leave.tries, 6)
    wake = (Wake(after_s, ("leave", device, timer)),) if leave.tries < _MOST_TRIES else ()
    return state, wake


def size_bytes(session: Session | None) -> int:
    """Bytes of a session as it stands, without framing."""
    if session is None:
        return 0
    grad = 0 if session.grad is None else session.grad.nbytes
    return session.upper.nbytes + session.slots.nbytes + grad


def stop(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """Freeze behind the next step, or when none comes for a while."""
    _, leave = under_way(state, device)
    return timed(edge, state, device, replace(leave, phase="stop"))


def freeze(edge: Edge, state: State, device: str, fresh: bool, ctx: Context) -> Out:
    """The session stands still from here; `fresh`: with a gradient that has not gone down."""
    held, leave = under_way(state, device)
    session = held.session
    assert session is not None
    withheld = fresh and isinstance(leave.policy, StopAndCopy)
    out: list[Effect] = []
    if fresh and not withheld:
        state, more = serve.down(edge, state, device)
        out += more
    if not withheld:
        out.append(Send(device, Freeze(session.round, held.epoch, session.next, leave.to)))
    held = replace(state.of(device), frozen=True, leave=replace(leave, withheld=withheld))
    state, more = send(edge, state.put(device, held), device, ctx)
    return state, (*out, *more)


def send(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """The frozen session, at once where what is left of it is short or there is no line."""
    _, leave = under_way(state, device)
    short = leave.copied is not None or leave.policy.route == "carry"
    return (final if leave.free or short else line)(edge, state, device, ctx)


def line(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """Get in line to send something long."""
    held, leave = under_way(state, device)
    state, wake = timed(edge, state, device, replace(leave, phase="turn"))
    return state, (to_edge(state, ctx.me, leave.to, Turn(device, held.epoch, leave.attempt), leave.relayed), *wake)


def final(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """Send the frozen session, whichever way is shortest; sealed by way of the device where the policy says so."""
    held, leave = under_way(state, device)
    session = held.session
    assert session is not None
    carried = leave.policy.route == "carry" and bool(leave.public)
    gradient = leave.withheld or held.last_s + edge.patience_s < ctx.now
    blob, sent = copies.last_of(edge, state, leave, session, gradient, carried)
    kept = replace(sent, grad=session.grad, between=session.between)
    if carried:
        about = f"{edge.job} {device} {held.epoch}".encode()
        sealed = seal(blob, leave.public, edge.key, about)
        carry = Carry(session.round, held.epoch, leave.to, sealed, digest(sent, False))
        state = state.put(device, replace(held, leave=replace(leave, sent=kept)))
        state, out = commit(edge, state, device, "handover", ctx)
        return state, (Send(device, carry), *out)
    batches = copies.batches_of(leave, session)
    shorter = batches is not None and len(batches) < len(blob)
    part, what = (batches, digest(session, True)) if batches is not None and shorter else (blob, digest(sent, gradient))
    body = Final(device, held.epoch, leave.attempt, part, what, len(leave.log) if shorter else 0)
    state, wake = timed(edge, state, device, replace(leave, phase="final", sent=kept))
    return state, (to_edge(state, ctx.me, leave.to, body, leave.relayed), *wake)


def ready(edge: Edge, state: State, device: str, body: Ready, ctx: Context) -> Out:
    """The destination has it, whole: ask the centre to commit."""
    held, leave = under_way(state, device)
    known = (digest(leave.sent, True), digest(leave.sent, False)) if leave.sent is not None else ()
    if leave.phase != "final" or body.digest not in known:
        return state, ()
    return commit(edge, state.put(device, replace(held, leave=replace(leave, tries=0))), device, "handover", ctx)


def commit(edge: Edge, state: State, device: str, kind: Kind, ctx: Context) -> Out:
    held, leave = under_way(state, device)
    what = digest(leave.sent, False) if leave.sent is not None and kind == "handover" else ""
    round_ = state.round if held.session is None else held.session.round
    expires_s = ctx.now + edge.ttl_s
    ticket = Ticket(edge.job, device, ctx.me, leave.to, held.epoch + 1, round_, kind, what, expires_s, leave.withheld)
    ticket = signed(ticket, edge.key)
    state = state.put(device, replace(held, frozen=True))
    state, wake = timed(edge, state, device, replace(leave, phase="commit", ticket=ticket))
    return state, (Send(state.central, Commit(ticket)), *wake)


def given(edge: Edge, state: State, device: str, body: Committed) -> Out:
    """The session is another's: what is kept of it serves until it is released."""
    held = state.of(device)
    leave = held.leave
    session = held.session if leave is None or leave.sent is None else leave.sent
    held = replace(
        held, session=session, owner=False, frozen=False, busy=0, batch=None, leave=None, ticket=body.ticket,
        epoch=body.ticket.epoch, refused=0, restore=False, waiting=None, wants="",
    )  # fmt: skip
    return state.put(device, held), ()


def denied(state: State, device: str, body: Denied) -> Out:
    """The centre has given the session to somebody else in the meantime."""
    held = state.of(device)
    if body.epoch <= held.epoch:
        return state, ()
    held = replace(
        held, owner=False, frozen=False, busy=0, batch=None, leave=None, epoch=body.epoch, ticket=None, wants=""
    )
    return state.put(device, held), ()


def cancel(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """Call a handover off: the session trains on here."""
    held, leave = under_way(state, device)
    session = held.session
    out: list[Effect] = [
        to_edge(state, ctx.me, leave.to, Abort(device, held.epoch, leave.attempt), leave.relayed)
    ]  # fmt: skip
    state = state.put(device, replace(held, leave=None, frozen=False))
    if held.frozen and session is not None:
        if leave.withheld:
            state, more = serve.down(edge, state, device)
            out += more
        out.append(Send(device, Resume(session.round, held.epoch, session.next)))
    state, more = serve.go_on(edge, state, device, ctx)
    return state, (*out, *more)


def fetched(state: State, device: str, body: Fetch, src: str, ctx: Context, relayed: bool) -> Out:
    """The new owner has lost it, or needs its gradient: the copy kept here."""
    session = state.of(device).session
    if session is None or state.of(device).owner or session.round != body.round:
        return state, ()
    stored = Stored(device, session.round, body.epoch, to_blob(session))
    return state, (to_edge(state, ctx.me, src, stored, relayed),)


def released(state: State, device: str, epoch: int) -> Out:
    """The device is at its new owner: the copy goes, the way there stays known."""
    held = state.of(device)
    if held.owner or epoch < held.epoch:
        return state, ()
    return state.put(device, replace(held, session=None)), ()
