"""FedFly's device: its data, the first half of the model, and the ticket that says which edge has the other half.

Here: whom it talks to, what it sends again, attaching to a new owner. Not here: what it computes (`half`), the server
half (`edge`), who owns it (`central`). Invariant: it follows the newest ticket alone, and takes a gradient from the
owner of that ticket or from the one before, of the batch it waits for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fieldfare.algorithms.fedfly import half
from fieldfare.algorithms.fedfly.half import COMPUTING, Lack, Out, State, answered
from fieldfare.algorithms.fedfly.handover import Attach, Attached, Carry, Committed, Freeze, Lost, Message, Move, Resume
from fieldfare.algorithms.fedfly.messages import Backward, Begin, Between, Closed, Forward, Train, Unknown, Update
from fieldfare.algorithms.fedfly.tickets import Ticket, is_told
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Run, Scalar, Send, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Gathered, Joined, Left, Moved, Received, Started, Woke
from fieldfare.core.folds import Collect
from fieldfare.core.params import Params

_MOST_TRIES = 40


@dataclass(frozen=True, slots=True)
class Device:
    """A device of FedFly. It waits `patience_s` for an answer, then asks again, twice as patiently each time.

    After `tries` times it asks the centre for another owner. Before every `mark_every`-th batch it keeps its half, the
    last `marks` of them, so that it can go back to where a replica is. `hint_s`: how soon a session should be where the
    device has moved. `forgets`: a device that leaves has lost what it held when it is back. `lr`: of a training without
    an edge (None: the work's own). `key`: its own, from the centre's secret: a ticket the centre has not told it under
    that key is not followed. The optimiser's slots begin anew in every round, on both sides, as in SplitFed.
    """

    patience_s: float = 60.0
    tries: int = 3
    mark_every: int = 8
    marks: int = 3
    hint_s: float = float("inf")
    forgets: bool = False
    lr: float | None = None
    key: bytes = b""
    messages: ClassVar[Message | State | None] = None
    """For those who store what is under way: the types of all that is said and held."""

    def __post_init__(self) -> None:
        if not self.patience_s > 0.0 or self.tries < 1 or self.mark_every < 1 or self.marks < 1:
            raise UsageError(
                f"Device(patience_s={self.patience_s}, tries={self.tries}, mark_every={self.mark_every}, "
                f"marks={self.marks}): use patience_s above 0 and the others >= 1."
            )

    def init(self, model: Params) -> State:
        return State()

    def step(self, state: State, event: Event, ctx: Context) -> Out:
        match event:
            case Started(roster=roster):
                return replace(state, central=roster["central"][0]), ()
            case _ if not state.central:
                return state, ()
            case Left(node) if node == ctx.me:
                return replace(state, away=True), ()
            case Joined(node) if node == ctx.me and (state.away or not state.round):
                return self._back(replace(state, away=False), ctx)
            case Moved(device, to) if device == ctx.me:
                return self._moved(state, to, ctx)
            case Gathered(tag=("fedfly", int(serial))) if serial == state.serial and state.stage in COMPUTING:
                return self._computed(state, event, ctx)
            case Gathered(tag=("whole", int(round_))) if round_ == state.round:
                return self._whole(state, event, ctx)
            case Received(src, body):
                return self._heard(state, src, body, ctx)
            case Woke(tag=("wait", int(timer))) if timer == state.timer and not state.away:
                return self._late(state, ctx)
            case _:
                return state, ()

    def _heard(self, state: State, src: str, body: object, ctx: Context) -> Out:
        match body:
            case Begin() if _opens(state, body):
                return half.forward(half.begun(state, src, body), ctx)
            case Begin(round_, epoch) if state.stage == "idle" and (round_, epoch) == (state.round, state.epoch):
                return self._offer(replace(state, stage="finish", sent=(), tries=0), ctx)
            case Between(act=act) if _awaited(state, src, body) and state.stage == "up" and state.plan.tail:
                return half.tail(answered(state, body.epoch), act, ctx)
            case Backward(grad=grad, between=between) if _awaited(state, src, body):
                return half.backward(answered(state, body.epoch), grad, between, ctx)
            case Closed(round_, epoch) if epoch == state.epoch and round_ >= state.round and state.stage != "idle":
                return replace(answered(state, epoch), stage="idle", round=round_, timer=state.timer + 1), ()
            case Freeze(round_, epoch, seq) if (
                state.stage == "up"
                and not state.attached
                and ((round_, epoch, seq) == (state.round, state.epoch - 1, state.seq))
            ):
                return self._attach(state, ctx)
            case Freeze(round_, epoch, seq, to) if (round_, epoch) == (state.round, state.epoch):
                state = replace(state, to=to)
                return self._offer(state, ctx) if state.stage == "up" and state.seq == seq else (state, ())
            case Resume(round_, epoch, seq) if (round_, epoch) == (state.round, state.epoch):
                return self._resumed(replace(state, to="", carried=b"", sent=()), seq, ctx)
            case Carry(round_, epoch, _, blob) if (round_, epoch) == (state.round, state.epoch):
                return replace(state, carried=blob), ()
            case Carry(round_, epoch, _, blob) if (round_, epoch + 1) == (state.round, state.epoch):
                if state.attached:
                    return state, ()
                state = replace(state, carried=blob)  # behind the word on who owns it
                return (state, ()) if state.stage in COMPUTING else self._attach(state, ctx)
            case Committed(ticket) if ticket.epoch > state.epoch and self._is_mine(ticket, ctx):
                return self._owned(state, ticket, ctx)
            case Committed(ticket) if ticket == state.ticket and state.stage == "idle":
                return self._attach(replace(state, attached=False, tries=0), ctx)
            case Attached(_, epoch, _, applied) if epoch == state.epoch and not state.attached and applied == state.seq:
                return self._attached(answered(state, epoch), body, ctx)
            case Unknown(_, epoch) if epoch == state.epoch and src == state.edge:
                return self._ask_owner(state, "unknown", ctx)
            case Train(round_, model, steps) if src == state.central:
                return self._train(state, round_, model, steps, ctx)
            case _:
                return state, ()

    def _is_mine(self, ticket: Ticket, ctx: Context) -> bool:
        return ticket.device == ctx.me and is_told(ticket, self.key)

    # Batches

    def _computed(self, state: State, event: Gathered, ctx: Context) -> Out:
        if not len(event.clients):
            if event.missing.get("refused") is None:
                return self._wait(replace(state, dead=True))
            return replace(state, stage="idle", timer=state.timer + 1), self._nothing(state, ctx)
        before, state = state.stage, half.computed(state, event, self.mark_every, self.marks)
        if before == "tail" and state.grad is not None:
            return half.backward(state, state.grad, None, ctx)
        return half.forward(state, ctx) if state.stage == "forward" else self._offer(state, ctx)

    def _offer(self, state: State, ctx: Context) -> Out:
        """Send what is ready to where the session is, or will be."""
        if not state.attached:
            return self._attach(state, ctx)
        to = state.to if state.to and state.stage == "up" else state.edge
        body = half.message(state)
        state, out = self._wait(replace(state, sent=(*state.sent, to)))
        return state, (Send(to, body), *out) if body is not None else out

    def _resumed(self, state: State, seq: int, ctx: Context) -> Out:
        """The owner wants batch `seq` from its beginning."""
        if state.stage in ("end", "up") and state.seq == seq and state.out is not None:
            return self._offer(replace(state, stage="up", pending=None, ends=None), ctx)
        return self._offer(state, ctx) if state.stage == "finish" else (state, ())

    # Moves

    def _moved(self, state: State, to: str, ctx: Context) -> Out:
        state = replace(state, near=to)
        if not state.edge or state.lost:
            return state, ()
        return state, (Send(state.edge, Move(to, ctx.now + self.hint_s)),)

    def _owned(self, state: State, ticket: Ticket, ctx: Context) -> Out:
        """There is a new owner: attach as soon as there is something to say to it."""
        moves = ticket.kind == "handover"
        state = replace(
            state, epoch=ticket.epoch, edge=ticket.dst, ticket=ticket, attached=False, to="", lost="", tries=0,
            carried=state.carried if moves else b"",
        )  # fmt: skip
        if not moves and (state.round == 0 or state.stage in ("up", "end", *COMPUTING)):
            state = half.stopped(state)
        coming = moves and state.stage in ("up", "end") and not ticket.withheld
        if coming and ticket.src in state.sent and ticket.dst not in state.sent:
            return self._wait(state)  # for the gradient that the old owner has sent
        return (state, ()) if state.stage in COMPUTING else self._attach(state, ctx)

    def _attach(self, state: State, ctx: Context) -> Out:
        assert state.ticket is not None
        ready = half.message(state)
        fresh = ready if isinstance(ready, Forward) and not state.sent else None
        applied = state.seq if state.lower is not None else -1
        marks = tuple(sorted(state.marks))
        body = Attach(state.ticket, state.round, applied, marks, fresh, state.carried, state.tries, state.near)
        sent = (*state.sent, state.edge) if fresh is not None else state.sent
        state, out = self._wait(replace(state, sent=sent))
        return state, (Send(state.edge, body), *out)

    def _attached(self, state: State, body: Attached, ctx: Context) -> Out:
        """The new owner says from where to go on: here, one batch back with its gradient, or an earlier mark."""
        if body.round != state.round or state.lower is None:
            return state, ()
        at = body.seq if body.grad is None else body.seq - 1
        if at == state.seq and state.stage in COMPUTING:
            return state, ()
        if at != state.seq and at not in state.marks:
            return self._ask_owner(state, "unknown", ctx)
        state = state if at == state.seq else half.rewound(state, at)
        if body.grad is not None:
            return half.backward(state, body.grad, body.between, ctx)
        if state.steps and at == state.steps:
            return self._offer(replace(state, stage="finish"), ctx)
        if state.out is not None and state.stage in ("up", "end"):
            return self._offer(replace(state, stage="up", pending=None, ends=None), ctx)
        return half.forward(state, ctx)

    # Patience

    def _wait(self, state: State) -> Out:
        timer = state.timer + 1
        after_s = self.patience_s * 2.0 ** min(state.tries, 6)
        wake = (Wake(after_s, ("wait", timer)),) if state.tries < _MOST_TRIES else ()
        return replace(state, timer=timer), wake

    def _late(self, state: State, ctx: Context) -> Out:
        """Nothing came in time."""
        state = replace(state, tries=state.tries + 1)
        if state.lost:
            return self._ask_owner(state, state.lost, ctx)
        if state.stage in COMPUTING:
            return half.again(state, ctx) if state.dead else (state, ())
        if state.tries > self.tries:
            return self._ask_owner(state, "silent", ctx)
        return self._offer(replace(state, to=""), ctx)

    def _ask_owner(self, state: State, reason: Lack, ctx: Context) -> Out:
        body = Lost(state.round, state.epoch, state.edge, state.near, reason)
        state, out = self._wait(replace(state, lost=reason))
        return state, (Send(state.central, body), *out)

    def _back(self, state: State, ctx: Context) -> Out:
        """The device is there again; what it was computing is lost."""
        if self.forgets or not state.round:
            state = State(state.central, serial=state.serial + 1, timer=state.timer, near=state.near)
            return self._ask_owner(state, "reboot", ctx)
        if state.stage in COMPUTING:
            return half.again(state, ctx)
        return self._late(state, ctx) if state.stage != "idle" else (state, ())

    # Training whole

    def _train(self, state: State, round_: int, model: Params, steps: int, ctx: Context) -> Out:
        if round_ == state.round and state.update is not None:
            return state, (Send(state.central, state.update),)
        if round_ <= state.round:
            return state, ()
        config: dict[str, Scalar] = {"round": round_, "reply": "model"}
        config |= {"steps": steps} if steps else {}
        config |= {} if self.lr is None else {"lr": self.lr}
        run = Run(
            "train", (ctx.me,), ("whole", round_), model, reduce={"model": Collect()}, config=config,
            key=("split", ctx.me, str(round_)),
        )  # fmt: skip
        return replace(state, round=round_, update=None), (run,)

    def _nothing(self, state: State, ctx: Context) -> tuple[Send, ...]:
        """What was computed is not finite, as it would be again: the round goes on without this device."""
        return (Send(state.central, Update(ctx.me, state.round, state.epoch, np.zeros(0, np.float32), 0.0, 0.0)),)

    def _whole(self, state: State, event: Gathered, ctx: Context) -> Out:
        if not len(event.clients):
            return state, self._nothing(state, ctx) if event.missing.get("refused") is not None else ()
        (vector,) = event.output["model"].value.values()
        loss = event.metrics.get("loss")
        told = float(loss[0]) * event.weight if loss is not None else 0.0
        update = Update(ctx.me, state.round, 0, np.asarray(vector, np.float32), event.weight, told)
        return replace(state, update=update), (Send(state.central, update),)


def _opens(state: State, body: Begin) -> bool:
    """Whether a round begins for the device: a new one, or the same one anew at another owner."""
    anew = body.round == state.round and not state.attached and body.epoch == state.epoch
    return body.epoch >= state.epoch and (body.round > state.round or anew)


def _awaited(state: State, src: str, body: Backward | Between) -> bool:
    """Whether this is for the batch that is waited for, and from its owner, or the one before, who has handed over."""
    if (body.round, body.seq) != (state.round, state.seq) or state.stage not in ("up", "end"):
        return False
    ticket = state.ticket
    before = ticket is not None and ticket.kind == "handover" and body.epoch == ticket.epoch - 1
    return body.epoch == state.epoch or (before and ticket is not None and src == ticket.src)
