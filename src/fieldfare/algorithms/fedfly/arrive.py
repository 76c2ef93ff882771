"""A session arrives at an edge: the destination's side of a handover.

Here: admission and whose turn it is (earliest deadline first), copies and the last difference. Not here: the source
(`leave`), who owns it when (`attach`). Invariant: what is acknowledged is, by its digest, what was sent; it trains
nothing here until the centre has given it to this edge.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fieldfare.algorithms.fedfly import copies, serve, tensors
from fieldfare.algorithms.fedfly.handover import Accept, Final, Got, Pre, Prep, Ready, Reason, Reject, Turn
from fieldfare.algorithms.fedfly.held import Arrive, Held, Out, State, to_edge
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
from fieldfare.core.events import Gathered

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
        if (arrive.src, arrive.epoch, arrive.attempt) != (src, body.epoch, body.attempt):
            return state, ()
        arrive = replace(arrive, deadline_s=body.deadline_s)
        return state.put(device, replace(held, arrive=arrive)), (_accept(edge, state, device, arrive, ctx),)
    reason = _refusal(edge, state, device, body, ctx)
    if reason is not None:
        no = Reject(device, body.epoch, body.attempt, reason)
        return state, (to_edge(state, ctx.me, src, no, relayed),)
    arrive = Arrive(
        src, body.epoch, body.attempt, body.round, body.size_bytes, body.deadline_s, ctx.now, relayed=relayed
    )
    state, out = _kept(edge, state, device, arrive)
    return state, (_accept(edge, state, device, arrive, ctx), *out)


def _kept(edge: Edge, state: State, device: str, arrive: Arrive) -> Out:
    """The record with a new timer: whoever is not heard of for long is forgotten."""
    timer = state.timer + 1
    held = replace(state.of(device), arrive=replace(arrive, timer=timer))
    return replace(state.put(device, held), timer=timer), (Wake(edge.grant_s, ("arrive", device, timer)),)


def _refusal(edge: Edge, state: State, device: str, body: Prep, ctx: Context) -> Reason | None:
    """Why a session cannot come, if so."""
    if body.model_hash != layout_hash(state.model.layout):
        return "model"
    others = [held for name, held in state.held.items() if name != device]
    coming = [held.arrive for held in others if held.arrive is not None and not held.owner]
    if edge.capacity is not None and sum(held.owner for held in others) + len(coming) >= edge.capacity:
        return "full"
    if edge.ingress_bytes_per_s is not None:
        first = [one for one in coming if one.ready is None and (one.turn or one.deadline_s <= body.deadline_s)]
        bytes_ = body.size_bytes + sum(one.size_bytes for one in first)
        if ctx.now + bytes_ / edge.ingress_bytes_per_s > body.deadline_s:
            return "late"
    return None


def _accept(edge: Edge, state: State, device: str, arrive: Arrive, ctx: Context) -> Effect:
    public = public_of(private_of(edge.key)) if edge.seals else b""
    body = Accept(device, arrive.epoch, arrive.attempt, state.round, edge.arrivals is None, public)
    return to_edge(state, ctx.me, arrive.src, body, arrive.relayed)


def asked(edge: Edge, state: State, src: str, body: Turn, relayed: bool, ctx: Context) -> Out:
    """A source has something long to send: it is its turn, or it stays in line."""
    device, held = body.device, state.of(body.device)
    arrive = _mine(held, body, src)
    if arrive is None:
        return state, _unwanted(state, held, src, body, relayed, ctx)
    state, out = _kept(edge, state, device, replace(arrive, asks=True))
    state, more = grant(edge, state, ctx)
    mine = state.of(device).arrive
    if mine is not None and mine.turn and not arrive.turn:
        return state, (*out, *more)
    yes = mine is not None and mine.turn
    said = to_edge(state, ctx.me, src, body, relayed) if yes else _accept(edge, state, device, arrive, ctx)
    return state, (*out, *more, said)


def grant(edge: Edge, state: State, ctx: Context) -> Out:
    """Those may send whose deadlines are earliest, as many at once as there are ways in."""
    out: list[Effect] = []
    while True:
        line = {d: h.arrive for d, h in state.held.items() if h.arrive is not None and h.arrive.ready is None}
        waiting = [d for d, arrive in line.items() if arrive.asks and not arrive.turn]
        busy = sum(arrive.turn for arrive in line.values())
        if not waiting or (edge.arrivals is not None and busy >= edge.arrivals):
            return state, out
        device = min(waiting, key=lambda d: (line[d].deadline_s, line[d].since_s, d))
        arrive = replace(line[device], turn=True)
        state, more = _kept(edge, state, device, arrive)
        now = Turn(device, arrive.epoch, arrive.attempt)
        out += [to_edge(state, ctx.me, arrive.src, now, arrive.relayed), *more]


def expired(edge: Edge, state: State, device: str, timer: int, ctx: Context) -> Out:
    """Who was to send has not, for long: the next one."""
    held = state.of(device)
    if held.arrive is None or held.arrive.timer != timer or held.arrive.ready is not None:
        return state, ()
    return grant(edge, state.put(device, replace(held, arrive=None)), ctx)


def _mine(held: Held, body: Pre | Final | Turn, src: str) -> Arrive | None:
    """The arrival that a message belongs to."""
    arrive = held.arrive
    if arrive is None or (arrive.src, arrive.epoch, arrive.attempt) != (src, body.epoch, body.attempt):
        return None
    return arrive


def _decoded(edge: Edge, state: State, arrive: Arrive, device: str, epoch: int, blob: bytes) -> Session:
    """The session in a copy. Errors: `PeerError`, where it is damaged or a difference from something not held."""
    wanted = tensors.reference_of(blob)
    known: list[dict[str, Array]] = []
    if wanted is not None and arrive.copied is not None:
        known.append(fields(arrive.copied, False))
    plan = state.plan.get(device)
    if wanted is not None and state.base is not None and plan is not None:
        base = serve.base_of(edge, state, plan.level)
        known.append(reference(base, plan.size, plan.stop or base.size))
    against = next((one for one in known if tensors.digest(one) == wanted), None)
    session = from_blob(blob, state.model.layout, against, edge.cap_bytes, arrive.src, edge.view)
    if (session.job, session.device, session.epoch) != (edge.job, device, epoch):
        raise PeerError(arrive.src, "session", f"it is of {session.device}, epoch {session.epoch}")
    return session


def copied(edge: Edge, state: State, src: str, body: Pre, relayed: bool, ctx: Context) -> Out:
    """A page of a live copy has come, and with the last of them the copy."""
    device, held = body.device, state.of(body.device)
    arrive = _mine(held, body, src)
    if arrive is None:
        return state, _unwanted(state, held, src, body, relayed, ctx)

    def said(told: Got | Reject) -> Effect:
        return to_edge(state, ctx.me, src, told, relayed)

    if body.number <= arrive.number:
        return state, (said(Got(device, body.epoch, body.attempt, body.number, body.page, True)),)
    if not 0 <= body.page < body.pages <= copies.MOST_PAGES:
        return state, (said(Reject(device, body.epoch, body.attempt, "reference")),)
    pages = arrive.pages if arrive.coming == body.number and len(arrive.pages) == body.pages else (None,) * body.pages
    pages = (*pages[: body.page], body.blob, *pages[body.page + 1 :])
    arrive = replace(arrive, coming=body.number, pages=pages)
    if arrive.replay and arrive.replaying:
        return state, ()
    try:
        if sum(len(page) for page in pages if page is not None) > edge.cap_bytes:
            raise PeerError(src, "copy", f"more than {edge.cap_bytes} bytes")
        blob = copies.whole(pages)
        if blob is not None and body.batches:
            return _begin_replay(edge, state, device, arrive, blob, body.digest, False, ctx)
        if blob is not None:
            session = _decoded(edge, state, arrive, device, body.epoch, blob)
            arrive = replace(arrive, copied=session, number=body.number, pages=(), asks=False, turn=False)
    except PeerError:
        return state, (said(Reject(device, body.epoch, body.attempt, "reference")),)
    state, wake = _kept(edge, state, device, arrive)
    got = Got(device, body.epoch, body.attempt, body.number, body.page, blob is not None)
    state, out = grant(edge, state, ctx)
    return state, (said(got), *wake, *out)


def _unwanted(
    state: State, held: Held, src: str, body: Pre | Final | Turn, relayed: bool, ctx: Context
) -> tuple[Effect, ...]:
    if held.owner or held.epoch > body.epoch:
        return ()
    no = Reject(body.device, body.epoch, body.attempt, "unknown")
    return (to_edge(state, ctx.me, src, no, relayed),)


def finished(edge: Edge, state: State, src: str, body: Final, relayed: bool, ctx: Context) -> Out:
    """The frozen session has come, or the batches that make it of the last copy."""
    device, held = body.device, state.of(body.device)
    arrive = _mine(held, body, src)
    if arrive is None:
        return state, _unwanted(state, held, src, body, relayed, ctx)
    if arrive.ready is not None:
        return _ready(edge, state, device, arrive, ctx)
    if arrive.replay and body.batches:
        return state, ()
    try:
        if body.batches:
            return _begin_replay(edge, state, device, arrive, body.blob, body.digest, True, ctx)
        session = _decoded(edge, state, arrive, device, body.epoch, body.blob)
        if body.digest not in (digest(session, True), digest(session, False)):
            raise PeerError(src, "session", "what came out is not what went in")
    except PeerError:
        return state, (to_edge(state, ctx.me, src, Reject(device, body.epoch, body.attempt, "reference"), relayed),)
    return _ready(edge, state, device, replace(arrive, ready=session, digest=body.digest), ctx)


def _ready(edge: Edge, state: State, device: str, arrive: Arrive, ctx: Context) -> Out:
    """Acknowledge the session by its digest, and nothing more until the centre has committed."""
    arrive = replace(arrive, copied=None, replay=(), replaying=0)
    state = state.put(device, replace(state.of(device), arrive=arrive))
    yes = Ready(device, arrive.epoch, arrive.attempt, arrive.digest)
    state, out = grant(edge, state, ctx)
    return state, (to_edge(state, ctx.me, arrive.src, yes, arrive.relayed), *out)


def _begin_replay(
    edge: Edge, state: State, device: str, arrive: Arrive, blob: bytes, what: str, final: bool, ctx: Context
) -> Out:
    """Train what came instead of a copy, or of the session. Errors: `PeerError` for anything else."""
    if arrive.copied is None:
        raise PeerError(arrive.src, "batches", "there is no copy to train them on")
    replay, expires_s = copies.batches_in(blob, arrive.copied, edge.cap_bytes, arrive.src)
    arrive = replace(arrive, replay=replay, expires_s=expires_s, digest=what, final=final)
    return _replay(edge, state, device, arrive, ctx)


def _replay(edge: Edge, state: State, device: str, arrive: Arrive, ctx: Context) -> Out:
    """Train the next of the batches that were sent instead of what they made."""
    session, serial = arrive.copied, state.serial + 1
    assert session is not None
    run = serve.computation(edge, state, session, arrive.replay[0], serial, ctx.me)
    arrive = replace(arrive, replaying=serial)
    running = {**state.running, serial: (device, session.round, arrive.epoch, session.next)}
    state = state.put(device, replace(state.of(device), arrive=arrive))
    return replace(state, serial=serial, running=running), (run,)


def replayed(edge: Edge, state: State, device: str, serial: int, event: Gathered, ctx: Context) -> Out:
    """One of those batches is trained; behind the last the session must be the one that was meant."""
    state = replace(state, running={n: one for n, one in state.running.items() if n != serial})
    held = state.of(device)
    arrive = held.arrive
    if arrive is None or arrive.replaying != serial or arrive.copied is None:
        return state, ()
    if len(event.clients):
        session = serve.after(arrive.copied, arrive.replay[0], event, arrive.expires_s)
        arrive = replace(arrive, copied=session, replay=arrive.replay[1:], replaying=0)
        if arrive.replay:
            return _replay(edge, state, device, arrive, ctx)
        same = digest(session) == arrive.digest
        if same and arrive.final:
            return _ready(edge, state, device, replace(arrive, ready=session), ctx)
        if same:
            last = len(arrive.pages) - 1
            got = Got(device, arrive.epoch, arrive.attempt, arrive.coming, last, True)
            arrive = replace(arrive, number=arrive.coming, pages=())
            state = state.put(device, replace(held, arrive=arrive))
            return state, (to_edge(state, ctx.me, arrive.src, got, arrive.relayed),)
    arrive = replace(arrive, copied=None, replay=(), replaying=0)
    state = state.put(device, replace(held, arrive=arrive))
    no = Reject(device, arrive.epoch, arrive.attempt, "reference")
    return state, (to_edge(state, ctx.me, arrive.src, no, arrive.relayed),)


def aborted(edge: Edge, state: State, src: str, device: str, epoch: int, attempt: int, ctx: Context) -> Out:
    """The source keeps it."""
    held = state.of(device)
    arrive = held.arrive
    if arrive is None or (arrive.src, arrive.epoch, arrive.attempt) != (src, epoch, attempt):
        return state, ()
    return grant(edge, state.put(device, replace(held, arrive=None, batch=None)), ctx)
