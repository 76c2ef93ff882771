"""An edge trains: batches come up, one step each, gradients go down.

Here: what an owner does with its sessions. Not here: moves (`leave`, `arrive`). Invariant: batch s of a session is
applied once, after s - 1 and before s + 1; a batch that comes again is answered with the gradient kept of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldfare.algorithms.fedfly.handover import Committed, Replica, Resume
from fieldfare.algorithms.fedfly.held import Batch, Held, Out, State, sound
from fieldfare.algorithms.fedfly.messages import (
    Backward,
    Begin,
    Between,
    Closed,
    Ends,
    Finish,
    Forward,
    Plan,
    Unknown,
    Update,
)
from fieldfare.algorithms.fedfly.session import Session, device_half, joined, opened, reference, to_blob
from fieldfare.algorithms.fedfly.widths import layout_at, part_of
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Run, Scalar, Send
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Collect
from fieldfare.core.params import Layout, Params

if TYPE_CHECKING:
    from fieldfare.algorithms.fedfly.edge import Edge


def base_of(edge: Edge, state: State, level: int | None) -> Params:
    """What a session of that level began from in the edge's round, which is open: the global model, or its part."""
    assert state.base is not None
    return part_of(edge.view, level, state.round, state.base)


def layout_of(edge: Edge, state: State, session: Session) -> Layout:
    """The layout of both halves of a session."""
    return layout_at(edge.view, session.level, state.model.layout)


def begin(edge: Edge, state: State, device: str) -> Out:
    """Open the session of the edge's round if it is not open yet, and tell the device."""
    held, plan = state.of(device), state.plan.get(device)
    if not held.owner or held.frozen or state.base is None or plan is None:
        return state, ()
    session = held.session
    if session is None or session.round < state.round:
        session = opened(edge.job, device, state.round, held.epoch, base_of(edge, state, plan.level), plan)
        held = replace(held, session=session, busy=0, batch=None)
        state = state.put(device, held)
    elif session.round > state.round or session.next:
        return state, ()
    return state, (begun(edge, state, held, device),)


def begun(edge: Edge, state: State, held: Held, device: str) -> Effect:
    """What a device needs to train from the start of a round."""
    session = held.session
    assert session is not None
    lower = device_half(base_of(edge, state, session.level), session.size, session.stop)
    own = Plan(session.cut, session.size, session.steps, session.tail, session.stop, session.level)
    plan = state.plan.get(device) or own
    return Send(device, Begin(session.round, held.epoch, lower, plan))


def forward(edge: Edge, state: State, device: str, body: Forward, ctx: Context) -> Out:
    """A batch came up."""
    held = state.of(device)
    if not sound(body):
        return state, ()
    if not held.owner or body.epoch > held.epoch:
        coming = held.arrive is not None and held.arrive.epoch == body.epoch
        if coming or body.epoch > held.epoch > 0:
            return state.put(device, held.with_batch(body)), ()
    elif held.waiting is not None or held.restore:
        return state.put(device, held.with_batch(body)), ()
    state, session, out = _current(edge, state, device, body, ctx)
    held = state.of(device)
    if session is None:
        return state, out
    if body.seq == session.next and not session.finished:
        if held.busy:
            return state, ()
        state = state.put(device, held.with_batch(body))
        return (state, ()) if held.frozen else step(edge, state, device, ctx)
    return state, _before(held, session, device, body)


def ends(edge: Edge, state: State, device: str, body: Ends, ctx: Context) -> Out:
    """In a U: the gradient of the batch's end came up."""
    if not sound(body) or not state.of(device).owner:
        return state, ()
    state, session, out = _current(edge, state, device, body, ctx)
    held = state.of(device)
    if session is None or held.frozen or held.busy:
        return state, out
    if body.seq == session.next:
        batch = held.batch
        if batch is None or batch.between is None or not batch.is_of(session):
            return state, (Send(device, Resume(session.round, held.epoch, session.next)),)
        return step(edge, state.put(device, replace(held, batch=replace(batch, ends=body))), device, ctx)
    return state, _before(held, session, device, body)


def _current(
    edge: Edge, state: State, device: str, body: Forward | Ends, ctx: Context
) -> tuple[State, Session | None, Sequence[Effect]]:
    """The session that a batch is for, or what is answered where there is none."""
    held = state.of(device)
    session = held.session
    if not held.owner or body.epoch > held.epoch or (body.epoch < held.epoch and not _expected(held, body)):
        return state, None, (redirect(held, device, body.round, body.epoch),)
    if session is None or body.round > session.round or ctx.now > session.expires_s:
        return state, None, (Send(device, Unknown(body.round, body.epoch)),)
    if body.round < session.round:
        state, out = begin(edge, state, device)
        return state, None, out
    if body.epoch == held.epoch and not held.attached:
        state = state.put(device, replace(held, attached=True))
    return state, session, ()


def _before(held: Held, session: Session, device: str, body: Forward | Ends) -> tuple[Effect, ...]:
    """What is answered to a batch that is over: its gradient once more; to any other: that it does not fit."""
    if body.seq != session.next - 1 or session.grad is None:
        return (Send(device, Unknown(body.round, body.epoch)),)
    if held.leave is not None and held.leave.withheld:
        return ()
    between = session.between if isinstance(body, Forward) else None
    return (Send(device, Backward(session.round, held.epoch, body.seq, session.grad, between)),)


def _expected(held: Held, body: Forward | Ends) -> bool:
    """Whether a batch of the epoch before is the next one, sent ahead while the session was on its way here."""
    ticket, session = held.ticket, held.session
    ahead = ticket is not None and ticket.kind == "handover" and body.epoch == held.epoch - 1
    return ahead and session is not None and (body.round, body.seq) == (session.round, session.next)


def redirect(held: Held, device: str, round_: int, epoch: int) -> Effect:
    """What a device is told whose owner this edge is not: who is, or to ask the centre."""
    if held.ticket is not None and held.ticket.epoch > epoch:
        return Send(device, Committed(held.ticket, round_))
    return Send(device, Unknown(round_, epoch))


def computation(edge: Edge, state: State, session: Session, batch: Batch, serial: int, me: str) -> Run:
    """The step of a batch; in a U, as long as its end is not there, what is before it."""
    up, middle = batch.forward, bool(session.tail) and batch.ends is None
    config: dict[str, Scalar] = {
        "seq": session.next, "round": session.position, "cut": session.cut, "count": len(up.y) or len(up.act),
    }  # fmt: skip
    config |= {"tail": session.tail} if session.tail else {}
    config |= {"steps": up.steps} if up.steps else {}
    config |= {} if session.level is None else {"level": session.level}
    inputs: dict[str, Any] = {"act": up.act}
    if not middle:
        inputs |= {"y": up.y} if batch.ends is None else {"g": batch.ends.grad}
        inputs |= {"slots": session.slots} if session.slots.size else {}
    work, leaves = ("middle", ("act",)) if middle else ("step", ("model", "slots", "g"))
    return Run(
        f"split/{work}", (me,), ("fedfly", serial), session.model(layout_of(edge, state, session)), config=config,
        inputs=inputs,
        reduce={leaf: Collect() for leaf in leaves}, key=session.words,
    )  # fmt: skip


def after(session: Session, batch: Batch, event: Gathered, expires_s: float) -> Session:
    """The session after a step."""
    got = {name: next(iter(folded.value.values())) for name, folded in event.output.items()}
    told = event.metrics.get("loss_sum")
    loss = batch.ends.loss if batch.ends is not None else 0.0 if told is None else float(told[0])
    return replace(
        session, next=session.next + 1, upper=np.asarray(got["model"], np.float32), steps=batch.forward.steps,
        slots=np.asarray(got["slots"], np.float32), grad=got["g"], between=batch.between, loss=session.loss + loss,
        samples=session.samples + event.weight, expires_s=expires_s,
    )  # fmt: skip


def step(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """Train the batch that is there, at once or when a lane is free; in a U, first what is before its end."""
    held = state.of(device)
    session, batch = held.session, held.batch
    if session is None or batch is None or not held.owner or held.busy or held.frozen or session.finished:
        return state, ()
    if not batch.is_of(session):
        return state.put(device, replace(held, batch=None)), ()
    if session.tail and batch.between is not None and batch.ends is None:
        return state, (Send(device, Between(session.round, held.epoch, session.next, batch.between)),)
    if edge.lanes is not None and len(state.running) >= edge.lanes:
        queue = state.queue if device in state.queue else (*state.queue, device)
        return replace(state, queue=queue), ()
    serial = state.serial + 1
    run = computation(edge, state, session, batch, serial, ctx.me)
    held = replace(held, busy=serial)
    running = {**state.running, serial: (device, session.round, held.epoch, session.next)}
    queue = tuple(one for one in state.queue if one != device)
    return replace(state.put(device, held), serial=serial, running=running, queue=queue), (run,)


def stepped(edge: Edge, state: State, serial: int, event: Gathered, ctx: Context) -> tuple[State, str]:
    """A computation is over: (the state after it, the device whose batch is trained, or "" where none is)."""
    device, round_, epoch, seq = state.running[serial]
    running = {n: one for n, one in state.running.items() if n != serial}
    state = replace(state, running=running)
    held = state.of(device)
    session, batch = held.session, held.batch
    if held.busy != serial or session is None or (session.round, held.epoch, session.next) != (round_, epoch, seq):
        return state, ""
    held = replace(held, busy=0)
    if not len(event.clients) or batch is None:
        return state.put(device, held), ""
    if "g" not in event.output:
        (act,) = event.output["act"].value.values()
        return state.put(device, replace(held, batch=replace(batch, between=act))), ""
    leave, step_s = held.leave, ctx.now - held.last_s if held.last_s else 0.0
    if leave is not None and leave.copied is not None:
        leave = replace(leave, log=(*leave.log, batch))
    session = after(session, batch, event, ctx.now + edge.ttl_s)
    held = replace(held, session=session, batch=None, step_s=step_s, last_s=ctx.now, leave=leave)
    return state.put(device, held), device


def spoiled(edge: Edge, state: State, device: str) -> Out:
    """The session is over with nothing to count, since what it trains is not finite; the device is told."""
    held = state.of(device)
    session = held.session
    assert session is not None
    lower = np.zeros(layout_of(edge, state, session).size - len(session.upper), np.float32)
    over = replace(session, lower=lower, samples=0.0, loss=0.0, grad=None, between=None)
    state = state.put(device, replace(held, session=over, busy=0, batch=None))
    return state, (Send(device, Closed(session.round, held.epoch)),)


def down(edge: Edge, state: State, device: str) -> Out:
    """The last gradient goes to the device; every so often a replica goes to the centre."""
    held = state.of(device)
    session = held.session
    assert session is not None
    assert session.grad is not None
    out: list[Effect] = [Send(device, Backward(session.round, held.epoch, session.next - 1, session.grad))]
    if edge.replica_every and session.next % edge.replica_every == 0 and state.base is not None:
        base = base_of(edge, state, session.level)
        blob = to_blob(session, reference(base, session.size, session.stop), gradient=False)
        out.append(Send(state.central, Replica(device, session.round, held.epoch, session.next, blob)))
    return state, out


def next_lane(edge: Edge, state: State, ctx: Context) -> Out:
    """A lane is free: whoever waits longest."""
    out: list[Effect] = []
    while state.queue and (edge.lanes is None or len(state.running) < edge.lanes):
        device, rest = state.queue[0], state.queue[1:]
        state, more = step(edge, replace(state, queue=rest), device, ctx)
        out += more
    return state, out


def finish(edge: Edge, state: State, device: str, body: Finish) -> Out:
    """The device is through: its half is part of the session, and both halves go to the centre."""
    held = state.of(device)
    session = held.session
    if not held.owner or body.epoch != held.epoch or session is None:
        return state, (redirect(held, device, body.round, body.epoch),)
    if session.round > body.round:
        return state, (Send(device, Closed(body.round, body.epoch)),)
    if (
        session.round < body.round
        or session.next != session.steps
        or len(body.lower) + len(session.upper) != layout_of(edge, state, session).size
    ):
        return state, (Send(device, Unknown(body.round, body.epoch)),)
    if held.frozen:
        return state, ()
    if not session.finished:
        session = replace(session, lower=body.lower, grad=None, between=None)
        state = state.put(device, replace(held, session=session, attached=True))
    closed = Send(device, Closed(session.round, held.epoch))
    return state, (closed, *told(edge, state, device))


def told(edge: Edge, state: State, device: str) -> tuple[Effect, ...]:
    """A finished session of the edge's round, for the centre."""
    held = state.of(device)
    session = held.session
    if not held.owner or held.frozen or session is None or session.lower is None or session.round != state.round:
        return ()
    vector = joined(session, layout_of(edge, state, session).size)
    update = Update(device, session.round, held.epoch, vector, session.samples, session.loss)
    return (Send(state.central, update),)


def part(edge: Edge, state: State, device: str) -> tuple[Effect, ...]:
    """What there is of a session whose device is not waited for: the server half, with the examples it has seen."""
    held = state.of(device)
    session = held.session
    if not held.owner or session is None or session.round != state.round or not session.samples:
        return ()
    if session.finished:
        return told(edge, state, device)
    vector, only = joined(session, layout_of(edge, state, session).size), (session.size, session.stop)
    update = Update(device, session.round, held.epoch, vector, session.samples, session.loss, only)
    return (Send(state.central, update),)


def go_on(edge: Edge, state: State, device: str, ctx: Context) -> Out:
    """An owner's session is free again: open the round if it is over, train the batch that waits, or tell its end."""
    held = state.of(device)
    session = held.session
    if not held.owner or held.frozen:
        return state, ()
    if session is None or session.round < state.round:
        return begin(edge, state, device)
    if session.finished:
        return state, told(edge, state, device)
    return step(edge, state, device, ctx)
