"""A session leaves an edge: the source's side of a handover.

PREP, ACCEPT, PRE and GOT (live copies), FREEZE, FINAL, ACK (`Ready`), COMMIT. Here: what the source sends and when.
Not here: the destination (`arrive`). Invariant: the source may call a handover off until it has asked the centre to
commit; from then on only the centre's answer ends it, and until then the session stands still.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fieldfare.algorithms.fedfly import copies, serve
from fieldfare.algorithms.fedfly.handover import (
    Abort,
    Accept,
    Carry,
    Commit,
    Committed,
    Denied,
    Fetch,
    Final,
    Freeze,
    Got,
    Pre,
    Prep,
    Ready,
    Reject,
    Resume,
    Stored,
    Turn,
)
from fieldfare.algorithms.fedfly.held import Held, Leave, Out, State, to_edge
from fieldfare.algorithms.fedfly.policies import PreCopy, Restart, StopAndCopy, settle
from fieldfare.algorithms.fedfly.seal import seal
from fieldfare.algorithms.fedfly.session import (
    Session,
    digest,
    layout_hash,
    to_blob,
)
from fieldfare.algorithms.fedfly.tickets import Kind, Ticket, signed
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Send, Wake

if TYPE_CHECKING:
    from fieldfare.algorithms.fedfly.edge import Edge

_MOST_TRIES = 40
_WINDOW = 2
"""Pages on their way at once: the next is sent when one is there, and the link is never idle."""


def start(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """Begin to hand the session over to where the device is; or call it off, where it has come back."""
    held = state.of(device)
    leave, session, to = held.leave, held.session, held.wants
    if not held.owner or (leave is not None and (held.frozen or leave.to == to)):
        return state, ()
    if not to or to == ctx.me or to not in state.edges or (session is not None and session.finished):
        return cancel(edge, state, device, ctx) if leave is not None else (state, ())
    out: Sequence[Effect] = ()
    if leave is not None:
        state, out = cancel(edge, state, device, ctx)
        held = state.of(device)
    size = size_bytes(session)
    if session is None or session.next == 0:
        policy = Restart(edge.route)
    else:
        policy = settle(edge.policy, session.next, held.step_s, size)
    leave = Leave(to, held.attempt + 1, policy, held.deadline_s, relayed=policy.route != "direct")
    state = state.put(device, replace(held, leave=leave, attempt=leave.attempt))
    state, more = _prep(edge, state, device, ctx)
    return state, (*out, *more)


def size_bytes(session: Session | None) -> int:
    """Bytes of a session as it stands, without framing."""
    if session is None:
        return 0
    grad = 0 if session.grad is None else session.grad.nbytes
    return session.upper.nbytes + session.slots.nbytes + grad


def _leave(state: State, device: str) -> tuple[Held, Leave]:
    held = state.of(device)
    assert held.leave is not None
    return held, held.leave


def _timed(edge: Edge, state: State, device: str, leave: Leave) -> Out:
    """The record with a new timer."""
    timer = state.timer + 1
    state = replace(state.put(device, replace(state.of(device), leave=replace(leave, timer=timer))), timer=timer)
    after_s = edge.patience_s * 2.0 ** min(leave.tries, 6)
    wake = (Wake(after_s, ("leave", device, timer)),) if leave.tries < _MOST_TRIES else ()
    return state, wake


def _prep(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    held, leave = _leave(state, device)
    session = held.session
    size = 0 if isinstance(leave.policy, Restart) else size_bytes(session)
    hash_ = layout_hash(state.model.layout)
    round_ = state.round if session is None else session.round
    body = Prep(device, held.epoch, leave.attempt, round_, size, leave.deadline_s, hash_)
    state, wake = _timed(edge, state, device, leave)
    return state, (to_edge(state, ctx.me, leave.to, body, leave.relayed), *wake)


def accepted(edge: Edge, state: State, device: str, body: Accept, ctx: Context) -> Out:
    """The destination is ready to take it."""
    held, leave = _leave(state, device)
    if leave.phase == "turn":  # still in line
        return state.put(device, replace(held, leave=replace(leave, tries=0))), ()
    if leave.phase != "prep":
        return state, ()
    leave = replace(leave, against=body.round, public=body.public, free=body.free, tries=0)
    state = state.put(device, replace(held, leave=leave))
    match leave.policy:
        case Restart():
            return _commit(edge, state, device, "restart", ctx)
        case PreCopy(passes) if passes:
            return _turn(edge, state, device, ctx)
        case _:
            return _stop(edge, state, device, ctx)


def _turn(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """Get in line to send a first copy, or a session of which there is none; where there is no line, send."""
    held, leave = _leave(state, device)
    if leave.free or (held.frozen and (leave.copied is not None or leave.policy.route == "carry")):
        return (_final if held.frozen else _copy)(edge, state, device, ctx)
    state, wake = _timed(edge, state, device, replace(leave, phase="turn"))
    return state, (to_edge(state, ctx.me, leave.to, Turn(device, held.epoch, leave.attempt), leave.relayed), *wake)


def turned(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """It is this session's turn."""
    held, leave = _leave(state, device)
    if leave.phase != "turn":
        return state, ()
    state = state.put(device, replace(held, leave=replace(leave, tries=0)))
    return (_final if held.frozen else _copy)(edge, state, device, ctx)


def _copy(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """A live copy; the session trains on, and the batches it trains are kept."""
    held, leave = _leave(state, device)
    session = held.session
    assert session is not None
    blob, batches = copies.copy_of(state, leave, session)
    leave = replace(
        leave, phase="pre", blob=blob, batches=batches, digest=digest(session) if batches else "", copied=session,
        log=(), page=0, acked=(),
    )  # fmt: skip
    return _pages(edge, state, device, leave, range(min(_WINDOW, copies.pages_of(blob, edge.page_bytes))), ctx)


def _pages(edge: Edge, state: State, device: str, leave: Leave, which: Iterable[int], ctx: Context) -> Out:
    """Send some pages of the copy under way: few at a time, so that what is urgent gets between them."""
    held, size, which = state.of(device), edge.page_bytes, list(which)
    count = copies.pages_of(leave.blob, size)
    out: list[Effect] = []
    for page in which:
        part = leave.blob[page * size : (page + 1) * size]
        number, made = leave.number, (leave.batches, leave.digest)
        body = Pre(device, held.epoch, leave.attempt, number, page, count, part, *made)
        out.append(to_edge(state, ctx.me, leave.to, body, leave.relayed))
    leave = replace(leave, page=max([leave.page, *(page + 1 for page in which)]))
    state, wake = _timed(edge, state, device, leave)
    return state, (*out, *wake)


def got(edge: Edge, state: State, device: str, body: Got, ctx: Context) -> Out:
    """A page is there, the next one goes; or the copy is: another one, if the policy wants it, or the last part."""
    held, leave = _leave(state, device)
    session, before = held.session, leave.copied
    if leave.phase != "pre" or body.number != leave.number or session is None or before is None:
        return state, ()
    leave = replace(leave, tries=0, acked=tuple(sorted({*leave.acked, body.page})))
    if not body.whole:
        more = leave.page < copies.pages_of(leave.blob, edge.page_bytes)
        return _pages(edge, state, device, leave, [leave.page] if more else (), ctx)
    leave = replace(leave, blob=b"")
    passes = leave.policy.passes if isinstance(leave.policy, PreCopy) else 0
    if leave.number + 1 < passes and session.next > before.next and session.round == before.round:
        leave = replace(leave, number=leave.number + 1)
        return _copy(edge, state.put(device, replace(held, leave=leave)), device, ctx)
    return _stop(edge, state.put(device, replace(held, leave=leave)), device, ctx)


def _stop(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """Freeze behind the next step, or when none comes for a while."""
    _, leave = _leave(state, device)
    return _timed(edge, state, device, replace(leave, phase="stop"))


def stepped(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """A step of a session that is to leave is over, its gradient not sent yet."""
    held, leave = _leave(state, device)
    session = held.session
    assert session is not None
    if session.next == session.steps:
        state, out = serve.down(edge, state, device)
        state, more = cancel(edge, state, device, ctx)
        return state, (*out, *more)
    if leave.phase != "stop":
        return serve.down(edge, state, device)
    return _freeze(edge, state, device, True, ctx)


def _freeze(edge: Edge, state: State, device: str, fresh: bool, ctx: Context) -> Out:
    """The session stands still from here; `fresh`: with a gradient that has not gone down."""
    held, leave = _leave(state, device)
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
    state, more = _turn(edge, state.put(device, held), device, ctx)
    return state, (*out, *more)


def _final(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """Send the frozen session, whichever way is shortest; sealed by way of the device where the policy says so."""
    held, leave = _leave(state, device)
    session = held.session
    assert session is not None
    carried = leave.policy.route == "carry" and bool(leave.public)
    gradient = leave.withheld or held.last_s + edge.patience_s < ctx.now
    blob, sent = copies.last_of(state, leave, session, gradient, carried)
    kept = replace(sent, grad=session.grad, between=session.between)
    if carried:
        about = f"{edge.job} {device} {held.epoch}".encode()
        sealed = seal(blob, leave.public, edge.key, about)
        carry = Carry(session.round, held.epoch, leave.to, sealed, digest(sent, False))
        state = state.put(device, replace(held, leave=replace(leave, sent=kept)))
        state, out = _commit(edge, state, device, "handover", ctx)
        return state, (Send(device, carry), *out)
    batches = copies.batches_of(leave, session)
    shorter = batches is not None and len(batches) < len(blob)
    part, what = (batches, digest(session, True)) if batches is not None and shorter else (blob, digest(sent, gradient))
    body = Final(device, held.epoch, leave.attempt, part, what, len(leave.log) if shorter else 0)
    state, wake = _timed(edge, state, device, replace(leave, phase="final", sent=kept))
    return state, (to_edge(state, ctx.me, leave.to, body, leave.relayed), *wake)


def ready(edge: Edge, state: State, device: str, body: Ready, ctx: Context) -> Out:
    """The destination has it, whole: ask the centre to commit."""
    held, leave = _leave(state, device)
    known = (digest(leave.sent, True), digest(leave.sent, False)) if leave.sent is not None else ()
    if leave.phase != "final" or body.digest not in known:
        return state, ()
    return _commit(edge, state.put(device, replace(held, leave=replace(leave, tries=0))), device, "handover", ctx)


def _commit(edge: Edge, state: State, device: str, kind: Kind, ctx: Context) -> Out:
    held, leave = _leave(state, device)
    what = digest(leave.sent, False) if leave.sent is not None and kind == "handover" else ""
    round_ = state.round if held.session is None else held.session.round
    expires_s = ctx.now + edge.ttl_s
    ticket = Ticket(edge.job, device, ctx.me, leave.to, held.epoch + 1, round_, kind, what, expires_s, leave.withheld)
    ticket = signed(ticket, edge.key)
    state = state.put(device, replace(held, frozen=True))
    state, wake = _timed(edge, state, device, replace(leave, phase="commit", ticket=ticket))
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


def rejected(edge: Edge, state: State, device: str, body: Reject, ctx: Context) -> Out:
    """It cannot go there, or not as a difference."""
    held, leave = _leave(state, device)
    if leave.phase == "commit":
        return state, ()
    if body.reason == "reference" and leave.phase in ("pre", "final") and leave.tries < edge.tries:
        leave = replace(leave, against=0, copied=None, log=(), number=leave.number + 1, tries=leave.tries + 1)
        state = state.put(device, replace(held, leave=leave))
        return (_copy if leave.phase == "pre" else _final)(edge, state, device, ctx)
    return _give_up(edge, state, device, ctx)


def late(edge: Edge, state: State, device: str, timer: int, ctx: Context) -> Out:
    """Nothing came in time."""
    held, leave = _leave(state, device)
    if leave.timer != timer:
        return state, ()
    leave = replace(leave, tries=leave.tries + 1)
    state = state.put(device, replace(held, leave=leave))
    if leave.phase == "commit":
        assert leave.ticket is not None
        state, wake = _timed(edge, state, device, leave)
        return state, (Send(state.central, Commit(leave.ticket)), *wake)
    if leave.phase == "stop":
        if held.session is not None and held.session.next == held.session.steps:
            return cancel(edge, state, device, ctx)
        return _timed(edge, state, device, leave) if held.busy else _freeze(edge, state, device, False, ctx)
    if leave.tries > edge.tries and not leave.relayed and edge.relays and leave.phase == "prep":
        leave = replace(leave, relayed=True, tries=0)
        return _prep(edge, state.put(device, replace(held, leave=leave)), device, ctx)
    if leave.tries > edge.tries:
        return _give_up(edge, state, device, ctx)
    match leave.phase:
        case "prep":
            return _prep(edge, state, device, ctx)
        case "turn":
            return _turn(edge, state, device, ctx)
        case "pre":
            missing = [page for page in range(leave.page) if page not in leave.acked]
            return _pages(edge, state, device, leave, missing[:_WINDOW] or [leave.page - 1], ctx)
        case _:
            leave = replace(leave, copied=None, log=())
            return _final(edge, state.put(device, replace(held, leave=leave)), device, ctx)


def _give_up(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """Keep the session, and try again after a while, a few times."""
    state, out = cancel(edge, state, device, ctx)
    held = state.of(device)
    held = replace(held, refused=held.refused + 1)
    again = (Wake(edge.retry_s, ("again", device, held.attempt)),) if held.refused <= edge.retries else ()
    return state.put(device, held), (*out, *again)


def cancel(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """Call a handover off: the session trains on here."""
    held, leave = _leave(state, device)
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
