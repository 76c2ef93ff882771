"""FedFly's device: its data, the first half of the model, and the ticket that says which edge has the other half.

Here: batches, what to send again, going back to an earlier batch, attaching to a new owner. Not here: the server half
(`edge`), who owns it (`central`). Invariant: the device half before batch s is a function of (global model, seed,
device, round, s) alone, whatever was sent twice, lost, or trained again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fieldfare.algorithms.fedfly.held import checksum
from fieldfare.algorithms.fedfly.messages import (
    Attach,
    Attached,
    Backward,
    Begin,
    Carry,
    Closed,
    Committed,
    Finish,
    Forward,
    Freeze,
    Lost,
    Message,
    Move,
    Plan,
    Resume,
    Train,
    Unknown,
    Update,
)
from fieldfare.algorithms.fedfly.session import NO_SLOTS
from fieldfare.algorithms.fedfly.tensors import Array
from fieldfare.algorithms.fedfly.tickets import Ticket
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Run, Scalar, Send, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Gathered, Joined, Left, Moved, Received, Started, Woke
from fieldfare.core.folds import Collect
from fieldfare.core.params import Params

F32 = NDArray[np.float32]
Stage = Literal["idle", "forward", "up", "backward", "finish", "attach"]
Lack = Literal["silent", "unknown", "reboot"]
Mark = tuple[F32, F32]
_MOST_TRIES = 40
_NO_PLAN = Plan("", 0)


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A device that has applied `seq` of `steps` batches of `round`, and takes `edge` for its owner in `epoch`.

    `stage`: "idle" (between rounds), "forward" and "backward" (computing), "up" (waits for a gradient), "finish" (has
    sent its half), "attach" (waits to be told from where to go on). `near`: the edge it is at. `lower`, `slots`: its
    half; `marks`: the same before earlier batches, 0 among them. `out`: activations and labels of batch `seq`, `sent`
    to these edges already. `grad`: what it computes backward from. `to`: where the session will be (frozen).
    `attached`: the owner of this epoch has answered. `lost`: why the centre is asked for another owner. `serial`
    numbers the trainings, `dead`: the last gave nothing. `update`: the last whole training, to be sent again.
    """

    central: str = ""
    stage: Stage = "idle"
    round: int = 0
    epoch: int = 0
    edge: str = ""
    near: str = ""
    plan: Plan = _NO_PLAN
    steps: int = 0
    seq: int = 0
    lower: Params | None = None
    slots: F32 = field(default_factory=lambda: NO_SLOTS)
    marks: Mapping[int, Mark] = field(default_factory=dict[int, Mark])
    out: tuple[Array, Array] | None = None
    sent: tuple[str, ...] = ()
    grad: Array | None = None
    to: str = ""
    ticket: Ticket | None = None
    attached: bool = True
    carried: bytes = b""
    lost: Lack | Literal[""] = ""
    away: bool = False
    dead: bool = False
    serial: int = 0
    timer: int = 0
    tries: int = 0
    update: Update | None = None


Out = tuple[State, Sequence[Effect]]


@dataclass(frozen=True, slots=True)
class Device:
    """A device of FedFly. It waits `patience_s` for an answer, then asks again, twice as patiently each time.

    After `tries` times it asks the centre for another owner. Before every `mark_every`-th batch it keeps its half, the
    last `marks` of them, so that it can go back to where a replica is. `hint_s`: how soon a session should be where the
    device has moved. `forgets`: a device that leaves has lost what it held when it is back. `lr`: of a training without
    an edge (None: the work's own). The optimiser's slots begin anew in every round, on both sides, as in SplitFed.
    """

    patience_s: float = 60.0
    tries: int = 3
    mark_every: int = 8
    marks: int = 3
    hint_s: float = float("inf")
    forgets: bool = False
    lr: float | None = None
    messages: ClassVar[Message | None] = None
    """For those who store what is under way: the types of all that is said."""

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
            case Gathered(tag=("fedfly", int(serial))) if serial == state.serial:
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
            case Begin(round_, epoch) if epoch >= state.epoch and (
                round_ > state.round or (round_ == state.round and not state.attached and epoch == state.epoch)
            ):
                return self._begin(state, src, body, ctx)
            case Backward(round_, _, seq, grad) if (round_, seq, state.stage) == (
                state.round,
                state.seq,
                "up",
            ) and self._from_owner(state, src, body):
                return self._backward(_answered(state, body.epoch), grad, ctx)
            case Closed(round_, epoch) if epoch == state.epoch and round_ >= state.round and state.stage != "idle":
                return replace(_answered(state, epoch), stage="idle", round=round_, timer=state.timer + 1), ()
            case Freeze(round_, epoch, seq, to) if (round_, epoch) == (state.round, state.epoch):
                state = replace(state, to=to)
                return self._offer(state, ctx) if state.stage == "up" and state.seq == seq else (state, ())
            case Resume(round_, epoch, seq) if (round_, epoch) == (state.round, state.epoch):
                state = replace(state, to="", carried=b"", sent=())
                again = state.stage == "finish" or (state.stage == "up" and state.seq == seq)
                return self._offer(state, ctx) if again else (state, ())
            case Carry(round_, epoch, _, blob) if (round_, epoch) == (state.round, state.epoch):
                return replace(state, carried=blob), ()
            case Committed(ticket) if ticket.device == ctx.me and ticket.epoch > state.epoch:
                return self._owned(state, ticket, ctx)
            case Committed(ticket) if ticket == state.ticket and state.stage == "idle":
                return self._attach(replace(state, attached=False, tries=0), ctx)
            case Attached(_, epoch) if epoch == state.epoch and not state.attached:
                return self._attached(state, body, ctx)
            case Unknown(_, epoch) if epoch == state.epoch and src == state.edge:
                return self._ask_owner(state, "unknown", ctx)
            case Train(round_, model, steps) if src == state.central:
                return self._train(state, round_, model, steps, ctx)
            case _:
                return state, ()

    # Batches

    def _begin(self, state: State, src: str, body: Begin, ctx: Context) -> Out:
        state = replace(
            state, round=body.round, epoch=body.epoch, edge=src, plan=body.plan, steps=body.plan.steps, seq=0,
            lower=body.lower, slots=NO_SLOTS, marks={0: (body.lower.vector, NO_SLOTS)}, to="", carried=b"",
            attached=True, lost="", tries=0,
        )  # fmt: skip
        return self._forward(state, ctx)

    def _config(self, state: State) -> dict[str, Scalar]:
        config: dict[str, Scalar] = {"seq": state.seq, "round": state.round, "cut": state.plan.cut}
        return {**config, "steps": state.plan.steps} if state.plan.steps else config

    def _run(self, state: State, stage: Stage, leaves: tuple[str, ...], inputs: Mapping[str, Any], ctx: Context) -> Out:
        serial = state.serial + 1
        run = Run(
            f"split/{stage}", (ctx.me,), ("fedfly", serial), state.lower, config=self._config(state), inputs=inputs,
            reduce={leaf: Collect() for leaf in leaves}, key=("split", ctx.me, str(state.round)),
        )  # fmt: skip
        return replace(state, stage=stage, serial=serial, timer=state.timer + 1, dead=False), (run,)

    def _forward(self, state: State, ctx: Context) -> Out:
        return self._run(replace(state, out=None, sent=(), grad=None), "forward", ("act", "y"), {}, ctx)

    def _backward(self, state: State, grad: Array, ctx: Context) -> Out:
        inputs = {"g": grad, "slots": state.slots} if state.slots.size else {"g": grad}
        return self._run(replace(state, grad=grad, out=None), "backward", ("model", "slots"), inputs, ctx)

    def _computed(self, state: State, event: Gathered, ctx: Context) -> Out:
        if not len(event.clients):
            return self._wait(replace(state, dead=True))
        got = {name: next(iter(folded.value.values())) for name, folded in event.output.items()}
        if state.stage == "forward":
            steps = state.plan.steps or int(event.metrics["steps"][0])
            return self._offer(replace(state, stage="up", out=(got["act"], got["y"]), steps=steps, tries=0), ctx)
        if state.stage != "backward" or state.lower is None:
            return state, ()
        seq, lower = state.seq + 1, state.lower.replace(np.asarray(got["model"], np.float32))
        state = replace(state, seq=seq, lower=lower, slots=np.asarray(got["slots"], np.float32), grad=None)
        if seq % self.mark_every == 0:
            kept = sorted(at for at in state.marks if at)[1 - self.marks :] if self.marks > 1 else []
            marks = {at: state.marks[at] for at in (0, *kept)}
            state = replace(state, marks={**marks, seq: (lower.vector, state.slots)})
        if seq < state.steps:
            return self._forward(state, ctx)
        return self._offer(replace(state, stage="finish", out=None, sent=(), tries=0), ctx)

    def _message(self, state: State) -> Forward | Finish | None:
        """What the owner needs to go on."""
        if state.stage == "finish" and state.lower is not None:
            return Finish(state.round, state.epoch, state.lower.vector)
        if state.stage == "up" and state.out is not None:
            act, y = state.out
            return Forward(state.round, state.epoch, state.seq, state.steps, act, y, checksum(act, y))
        return None

    def _offer(self, state: State, ctx: Context) -> Out:
        """Send what is ready to where the session is, or will be."""
        if not state.attached:
            return self._attach(state, ctx)
        to = state.to if state.to and state.stage == "up" else state.edge
        message = self._message(state)
        state, out = self._wait(replace(state, sent=(*state.sent, to)))
        return state, (Send(to, message), *out) if message is not None else out

    # Moves

    def _moved(self, state: State, to: str, ctx: Context) -> Out:
        state = replace(state, near=to)
        if not state.edge or state.edge == to or state.lost:
            return state, ()
        return state, (Send(state.edge, Move(to, ctx.now + self.hint_s)),)

    def _from_owner(self, state: State, src: str, body: Backward) -> bool:
        """Whether a gradient is the owner's, or the last one of the owner before, who has handed over since."""
        ticket = state.ticket
        before = ticket is not None and ticket.kind == "handover" and body.epoch == ticket.epoch - 1
        return body.epoch == state.epoch or (before and ticket is not None and src == ticket.src)

    def _owned(self, state: State, ticket: Ticket, ctx: Context) -> Out:
        """There is a new owner: attach as soon as there is something to say to it."""
        state = replace(
            state, epoch=ticket.epoch, edge=ticket.dst, ticket=ticket, attached=False, to="", lost="", tries=0,
            carried=state.carried if ticket.kind == "handover" else b"",
        )  # fmt: skip
        if ticket.kind != "handover" and state.stage in ("forward", "backward", "up"):
            state = replace(state, stage="attach", out=None, serial=state.serial + 1)
        if ticket.kind != "handover" and state.round == 0:
            state = replace(state, stage="attach")
        return (state, ()) if state.stage in ("forward", "backward") else self._attach(state, ctx)

    def _attach(self, state: State, ctx: Context) -> Out:
        assert state.ticket is not None
        message = self._message(state)
        fresh = message if isinstance(message, Forward) and not state.sent else None
        applied = state.seq if state.lower is not None else -1
        marks = tuple(sorted(state.marks))
        body = Attach(state.ticket, state.round, applied, marks, fresh, state.carried, state.tries)
        sent = (*state.sent, state.edge) if fresh is not None else state.sent
        state, out = self._wait(replace(state, sent=sent))
        return state, (Send(state.edge, body), *out)

    def _attached(self, state: State, body: Attached, ctx: Context) -> Out:
        """The new owner says from where to go on: here, one batch back with its gradient, or an earlier mark."""
        state = _answered(state, body.epoch)
        more: list[Effect] = []
        if state.near and state.near != state.edge:
            more.append(Send(state.edge, Move(state.near, ctx.now + self.hint_s)))
        if body.round != state.round or state.lower is None:
            return state, more
        at = body.seq if body.grad is None else body.seq - 1
        if at == state.seq and body.grad is None and state.stage in ("up", "finish"):
            state, out = self._offer(state, ctx)
        elif at == state.seq and state.stage not in ("up", "attach", "idle"):
            out = ()
        elif at == state.seq or at in state.marks:
            state = state if at == state.seq else _rewound(state, at)
            if body.grad is None:
                finished = bool(state.steps) and at == state.steps
                go = self._offer if finished else self._forward
                state, out = go(replace(state, stage="finish") if finished else state, ctx)
            else:
                state, out = self._backward(state, body.grad, ctx)
        else:
            state, out = self._ask_owner(state, "unknown", ctx)
        return state, (*more, *out)

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
        if state.dead and state.stage == "forward":
            return self._forward(state, ctx)
        if state.dead and state.stage == "backward" and state.grad is not None:
            return self._backward(state, state.grad, ctx)
        if state.tries > self.tries:
            return self._ask_owner(state, "silent", ctx)
        return self._offer(replace(state, to=""), ctx)

    def _ask_owner(self, state: State, reason: Lack, ctx: Context) -> Out:
        body = Lost(state.round, state.epoch, state.edge, state.near, reason)
        state, out = self._wait(replace(state, lost=reason))
        return state, (Send(state.central, body), *out)

    def _back(self, state: State, ctx: Context) -> Out:
        if self.forgets or not state.round:
            state = State(state.central, serial=state.serial + 1, timer=state.timer, near=state.near)
            return self._ask_owner(state, "reboot", ctx)
        if state.stage == "forward":
            return self._forward(state, ctx)
        if state.stage == "backward" and state.grad is not None:
            return self._backward(state, state.grad, ctx)
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

    def _whole(self, state: State, event: Gathered, ctx: Context) -> Out:
        if not len(event.clients):
            return state, ()
        (vector,) = event.output["model"].value.values()
        loss = event.metrics.get("loss")
        told = float(loss[0]) * event.weight if loss is not None else 0.0
        update = Update(ctx.me, state.round, 0, np.asarray(vector, np.float32), event.weight, told)
        return replace(state, update=update), (Send(state.central, update),)


def _answered(state: State, epoch: int) -> State:
    """The owner of `epoch` lives."""
    return replace(state, attached=state.attached or epoch == state.epoch, lost="", tries=0)


def _rewound(state: State, at: int) -> State:
    """The device as it was before batch `at`."""
    assert state.lower is not None
    vector, slots = state.marks[at]
    marks = {seq: mark for seq, mark in state.marks.items() if seq <= at}
    return replace(state, seq=at, lower=state.lower.replace(vector), slots=slots, marks=marks, out=None, grad=None)
