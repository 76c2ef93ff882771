"""A session arrives at an edge: the destination's side of a handover.

Here: admission and whose turn it is (earliest deadline first), copies and the last difference. Not here: the source
(`leave`), who owns it when (`attach`). Invariant: what is acknowledged is, by its digest, what was sent; it trains
nothing here until the centre has given it to this edge.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fieldfare.algorithms.fedfly import tensors
from fieldfare.algorithms.fedfly.held import Arrive, Held, Out, State, to_edge
from fieldfare.algorithms.fedfly.messages import (
    Accept,
    Final,
    Got,
    Pre,
    Prep,
    Ready,
    Reason,
    Reject,
)
from fieldfare.algorithms.fedfly.seal import private_of, public_of
from fieldfare.algorithms.fedfly.session import (
    Session,
    digest,
    fields,
    from_blob,
    layout_hash,
    reference,
)
from fieldfare.algorithms.fedfly.tensors import Array
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Wake
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
        known.append(reference(state.base, plan.size, plan.stop or state.base.size))
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
    return grant(edge, state.put(device, replace(held, arrive=None, batch=None)), ctx)
