"""The device half: what a device holds of a round, and what it computes batch by batch.

Here: state, the three or four computations of a batch, marks to go back to. Not here: whom it talks to (`device`).
Invariant: the half before batch s is a function of (global model, seed, device, round, s) alone; what a batch has
changed so far is kept apart (`pending`) until the batch is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fieldfare.algorithms.fedfly.held import checksum
from fieldfare.algorithms.fedfly.messages import Begin, Ends, Finish, Forward, Plan, Update
from fieldfare.algorithms.fedfly.session import NO_SLOTS
from fieldfare.algorithms.fedfly.tensors import Array
from fieldfare.algorithms.fedfly.tickets import Ticket
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Effect, Run, Scalar
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Collect
from fieldfare.core.params import Params

F32 = NDArray[np.float32]
Stage = Literal["idle", "forward", "up", "tail", "end", "backward", "finish", "attach"]
Lack = Literal["silent", "unknown", "reboot"]
Mark = tuple[F32, F32]
COMPUTING: tuple[Stage, ...] = ("forward", "tail", "backward")
_NO_PLAN = Plan("", 0)


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A device that has applied `seq` of `steps` batches of `round`, and takes `edge` for its owner in `epoch`.

    `stage`: "idle" (between rounds), "forward", "tail" and "backward" (computing), "up" and "end" (has sent
    activations, or in a U their end's gradient, and waits), "finish" (has sent its half), "attach" (waits to be told
    from where to go on). `near`: the edge it is at. `lower`, `slots`: its half; `marks`: the same before earlier
    batches, 0 among them; in a U `pending`: the same with what the batch has changed so far, computed from `between`.
    `out`: activations and labels of the batch, `sent` to these edges already; `ends`: gradient and loss of a U's end.
    `grad`: the gradient that came. `to`: where the session will be (frozen). `attached`: the owner of this epoch has
    answered. `lost`: why the centre is asked for another owner. `serial` numbers the trainings, `dead`: the last gave
    nothing. `update`: the last whole training, to be sent again.
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
    pending: Mark | None = None
    marks: Mapping[int, Mark] = field(default_factory=dict[int, Mark])
    out: tuple[Array, Array] | None = None
    sent: tuple[str, ...] = ()
    ends: tuple[Array, float] | None = None
    between: Array | None = None
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


def begun(state: State, src: str, body: Begin) -> State:
    """The device at the start of a round."""
    return replace(
        state, round=body.round, epoch=body.epoch, edge=src, plan=body.plan, steps=body.plan.steps, seq=0,
        lower=body.lower, slots=NO_SLOTS, marks={0: (body.lower.vector, NO_SLOTS)}, to="", carried=b"", attached=True,
        lost="", tries=0, pending=None, ends=None,
    )  # fmt: skip


def _run(state: State, stage: Stage, leaves: tuple[str, ...], inputs: Mapping[str, Any], ctx: Context) -> Out:
    """Compute one part of batch `seq`; its randomness is that of the device's round."""
    config: dict[str, Scalar] = {"seq": state.seq, "round": state.round, "cut": state.plan.cut}
    config |= {"tail": state.plan.tail} if state.plan.tail else {}
    config |= {"steps": state.plan.steps} if state.plan.steps else {}
    config |= {} if state.plan.level is None else {"level": state.plan.level}
    serial, model, slots = state.serial + 1, state.lower, state.slots
    if state.pending is not None and model is not None:
        model, slots = model.replace(state.pending[0]), state.pending[1]
    given = {**inputs, "slots": slots} if slots.size and stage != "forward" else dict(inputs)
    run = Run(
        f"split/{stage}", (ctx.me,), ("fedfly", serial), model, config=config, inputs=given,
        reduce={leaf: Collect() for leaf in leaves}, key=("split", ctx.me, str(state.round)),
    )  # fmt: skip
    return replace(state, stage=stage, serial=serial, timer=state.timer + 1, dead=False), (run,)


def forward(state: State, ctx: Context) -> Out:
    """The forward pass of the next batch."""
    state = replace(state, out=None, sent=(), grad=None, between=None, pending=None, ends=None)
    return _run(state, "forward", ("act",) if state.plan.tail else ("act", "y"), {}, ctx)


def tail(state: State, act: Array, ctx: Context) -> Out:
    """In a U: the end of the net, on labels that stay here. `act`: what came of the server's part."""
    state = replace(state, between=act, pending=None)
    return _run(state, "tail", ("model", "slots", "g"), {"act": act}, ctx)


def backward(state: State, grad: Array, between: Array | None, ctx: Context) -> Out:
    """The gradient is here; in a U the end is computed first, if it was lost."""
    state = replace(state, grad=grad)
    if state.plan.tail and state.pending is None:
        return (state, ()) if between is None else tail(state, between, ctx)
    return _run(replace(state, out=None), "backward", ("model", "slots"), {"g": grad}, ctx)


def again(state: State, ctx: Context) -> Out:
    """Compute once more what gave nothing."""
    if state.stage == "forward":
        return forward(state, ctx)
    if state.stage == "tail" and state.between is not None:
        return tail(state, state.between, ctx)
    if state.stage == "backward" and state.grad is not None:
        return backward(state, state.grad, state.between, ctx)
    return state, ()


def computed(state: State, event: Gathered, mark_every: int, marks: int) -> State:
    """The state after a part of a batch; its stage says what is next: "forward" again, where a batch is over."""
    got = {name: next(iter(folded.value.values())) for name, folded in event.output.items()}
    if state.stage == "forward":
        steps = state.plan.steps or int(event.metrics["steps"][0])
        labels = got["y"] if "y" in got else np.zeros(0, np.float32)
        return replace(state, stage="up", out=(got["act"], labels), steps=steps, tries=0)
    mark = np.asarray(got["model"], np.float32), np.asarray(got["slots"], np.float32)
    if state.stage == "tail":
        loss = event.metrics.get("loss_sum")
        ends = got["g"], 0.0 if loss is None else float(loss[0])
        return replace(state, stage="end", pending=mark, ends=ends, tries=0)
    assert state.lower is not None
    seq = state.seq + 1
    state = replace(
        state, seq=seq, lower=state.lower.replace(mark[0]), slots=mark[1], grad=None, pending=None, between=None,
        ends=None, out=None, sent=(), tries=0,
    )  # fmt: skip
    if seq % mark_every == 0:
        kept = sorted(at for at in state.marks if at)[1 - marks :] if marks > 1 else []
        state = replace(state, marks={**{at: state.marks[at] for at in (0, *kept)}, seq: mark})
    return replace(state, stage="forward" if seq < state.steps else "finish")


def message(state: State) -> Forward | Ends | Finish | None:
    """What the owner needs to go on, if it is its turn."""
    if state.stage == "finish" and state.lower is not None:
        return Finish(state.round, state.epoch, state.lower.vector)
    if state.stage == "end" and state.ends is not None:
        return Ends(state.round, state.epoch, state.seq, *state.ends, checksum(state.ends[0]))
    if state.stage == "up" and state.out is not None:
        return Forward(state.round, state.epoch, state.seq, state.steps, *state.out, checksum(*state.out))
    return None


def rewound(state: State, at: int) -> State:
    """The device as it was before batch `at`, one of its marks."""
    assert state.lower is not None
    vector, slots = state.marks[at]
    marks = {seq: mark for seq, mark in state.marks.items() if seq <= at}
    return replace(
        state, seq=at, lower=state.lower.replace(vector), slots=slots, marks=marks, out=None, sent=(), grad=None,
        pending=None, ends=None, between=None,
    )  # fmt: skip


def stopped(state: State) -> State:
    """The device gives up the batch it is at, and waits to be told from where to go on."""
    return replace(
        state, stage="attach", out=None, sent=(), serial=state.serial + 1, pending=None, ends=None, between=None
    )


def answered(state: State, epoch: int) -> State:
    """The owner of `epoch` lives."""
    return replace(state, attached=state.attached or epoch == state.epoch, lost="", tries=0)
