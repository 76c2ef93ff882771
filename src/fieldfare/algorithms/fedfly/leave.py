"""A session leaves an edge: the source's side of a handover, as long as the session trains on.

PREP, ACCEPT, PRE and GOT (live copies), and what is done when nothing comes. Here: what the source sends and when. Not
here: the last part and the commit (`give`), the destination (`arrive`). Invariant: until it is frozen a session trains
here as if it were to stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fieldfare.algorithms.fedfly import copies, give, serve
from fieldfare.algorithms.fedfly.give import timed, under_way
from fieldfare.algorithms.fedfly.handover import Accept, Commit, Got, Pre, Prep, Reject
from fieldfare.algorithms.fedfly.held import Leave, Out, State, to_edge
from fieldfare.algorithms.fedfly.policies import PreCopy, Restart, settle
from fieldfare.algorithms.fedfly.session import digest, layout_hash
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Send, Wake

if TYPE_CHECKING:
    from fieldfare.algorithms.fedfly.edge import Edge

_WINDOW = 2
"""Pages on their way at once: the next is sent when one is there, and the link is never idle."""


def start(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """Begin to hand the session over to where the device is; or call it off, where it has come back."""
    held = state.of(device)
    leave, session, to = held.leave, held.session, held.wants
    if held.owner and leave is not None and leave.to == to and leave.phase in ("prep", "turn"):
        if leave.deadline_s == held.deadline_s:
            return state, ()
        leave = replace(leave, deadline_s=held.deadline_s)
        return _prep(edge, state.put(device, replace(held, leave=leave)), device, ctx)
    if not held.owner or (leave is not None and (held.frozen or leave.to == to)):
        return state, ()
    if not to or to == ctx.me or to not in state.edges or (session is not None and session.finished):
        return give.cancel(edge, state, device, ctx) if leave is not None else (state, ())
    out: Sequence[Effect] = ()
    if leave is not None:
        state, out = give.cancel(edge, state, device, ctx)
        held = state.of(device)
    size = give.size_bytes(session)
    if session is None or session.next == 0:
        policy = Restart(edge.route)
    else:
        policy = settle(edge.policy, session.next, held.step_s, size)
    leave = Leave(to, held.attempt + 1, policy, held.deadline_s, relayed=policy.route != "direct")
    state = state.put(device, replace(held, leave=leave, attempt=leave.attempt))
    state, more = _prep(edge, state, device, ctx)
    return state, (*out, *more)


def _prep(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    held, leave = under_way(state, device)
    session = held.session
    size = 0 if isinstance(leave.policy, Restart) else give.size_bytes(session)
    hash_ = layout_hash(state.model.layout)
    round_ = state.round if session is None else session.round
    body = Prep(device, held.epoch, leave.attempt, round_, size, leave.deadline_s, hash_, type(leave.policy).__name__)
    state, wake = timed(edge, state, device, leave)
    return state, (to_edge(state, ctx.me, leave.to, body, leave.relayed), *wake)


def accepted(edge: Edge, state: State, device: str, body: Accept, ctx: Context) -> Out:
    """The destination is ready to take it."""
    held, leave = under_way(state, device)
    if leave.phase == "turn":  # still in line
        return state.put(device, replace(held, leave=replace(leave, tries=0))), ()
    if leave.phase != "prep":
        return state, ()
    leave = replace(leave, against=body.round, public=body.public, free=body.free, tries=0)
    state = state.put(device, replace(held, leave=leave))
    match leave.policy:
        case Restart():
            return give.commit(edge, state, device, "restart", ctx)
        case PreCopy(passes) if passes:
            return _turn(edge, state, device, ctx)
        case _:
            return give.stop(edge, state, device, ctx)


def _turn(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """Send a first copy, where there is no line, or the session that is frozen."""
    held, leave = under_way(state, device)
    if held.frozen:
        return give.send(edge, state, device, ctx)
    return _copy(edge, state, device, ctx) if leave.free else give.line(edge, state, device, ctx)


def turned(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """It is this session's turn."""
    held, leave = under_way(state, device)
    if leave.phase != "turn":
        return state, ()
    state = state.put(device, replace(held, leave=replace(leave, tries=0)))
    return (give.final if held.frozen else _copy)(edge, state, device, ctx)


def _copy(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """A live copy; the session trains on, and the batches it trains are kept."""
    held, leave = under_way(state, device)
    session = held.session
    assert session is not None
    blob, batches = copies.copy_of(edge, state, leave, session)
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
    state, wake = timed(edge, state, device, leave)
    return state, (*out, *wake)


def got(edge: Edge, state: State, device: str, body: Got, ctx: Context) -> Out:
    """A page is there, the next one goes; or the copy is: another one, if the policy wants it, or the last part."""
    held, leave = under_way(state, device)
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
    return give.stop(edge, state.put(device, replace(held, leave=leave)), device, ctx)


def stepped(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """A step of a session that is to leave is over, its gradient not sent yet."""
    held, leave = under_way(state, device)
    session = held.session
    assert session is not None
    if session.next == session.steps:
        state, out = serve.down(edge, state, device)
        state, more = give.cancel(edge, state, device, ctx)
        return state, (*out, *more)
    if leave.phase != "stop":
        return serve.down(edge, state, device)
    return give.freeze(edge, state, device, True, ctx)


def rejected(edge: Edge, state: State, device: str, body: Reject, ctx: Context) -> Out:
    """It cannot go there, or not as a difference."""
    held, leave = under_way(state, device)
    if leave.phase == "commit":
        return state, ()
    if body.reason == "reference" and leave.phase in ("pre", "final") and leave.tries < edge.tries:
        leave = replace(leave, against=0, copied=None, log=(), number=leave.number + 1, tries=leave.tries + 1)
        state = state.put(device, replace(held, leave=leave))
        return (_copy if leave.phase == "pre" else give.final)(edge, state, device, ctx)
    return _give_up(edge, state, device, ctx)


def late(edge: Edge, state: State, device: str, timer: int, ctx: Context) -> Out:
    """Nothing came in time."""
    held, leave = under_way(state, device)
    if leave.timer != timer:
        return state, ()
    leave = replace(leave, tries=leave.tries + 1)
    state = state.put(device, replace(held, leave=leave))
    if leave.phase == "commit":
        assert leave.ticket is not None
        state, wake = timed(edge, state, device, leave)
        return state, (Send(state.central, Commit(leave.ticket)), *wake)
    if leave.phase == "stop":
        if held.session is not None and held.session.next == held.session.steps:
            return give.cancel(edge, state, device, ctx)
        return timed(edge, state, device, leave) if held.busy else give.freeze(edge, state, device, False, ctx)
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
            return give.final(edge, state.put(device, replace(held, leave=leave)), device, ctx)


def _give_up(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """Keep the session, and try again after a while, a few times."""
    state, out = give.cancel(edge, state, device, ctx)
    held = state.of(device)
    held = replace(held, refused=held.refused + 1)
    again = (Wake(edge.retry_s, ("again", device, held.attempt)),) if held.refused <= edge.retries else ()
    return state.put(device, held), (*out, *again)
