"""What a peer of HADFL holds: its state, and how it starts over.

Not here: what changes it (`peer`, `rules`). Invariant: the model is what the last training ended with, moved between
two trainings only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fieldfare.algorithms.hadfl.member import Member
from fieldfare.algorithms.hadfl.messages import Broadcast, Decided, Select
from fieldfare.algorithms.hadfl.ring import F32, Frame
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Run, Scalar
from fieldfare.core.folds import Stack
from fieldfare.core.params import Params, View


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a ring has agreed on in `cycle`: a mean `delta` `[P]`, committed as the `serial`-th, told by `src`.

    `digest`: as decided, at the peer that tells the others and publishes. `backup`: whether it is to be kept.
    """

    serial: int
    cycle: int
    delta: F32
    src: str
    digest: str = ""
    backup: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A peer in `stage` ("new", "warm", "idle", "train", "wait", "ring", "done", "down") of `cycle`.

    `version`: cumulative local steps behind `model`, merged as the models are. `steps`, `period_s`: the plan. `serial`
    numbers the trainings; the one under way began at `begun` and takes `under_way` steps, `left` follow in this cycle;
    `took`: (steps, seconds) of what is over in it, `pace`: seconds per step as last measured. Warm-up: `pieces`,
    seconds per step; `pinged` when, `trips` there and back, `change` the largest per step. `selects`: the newest epoch
    of the cycles ahead. `inside`: the cycle whose ring this peer is in, -1 for none, as `member`. `early`: frames
    before their `Select`. `applied`: the last cycle in the model (or the base). `incoming`: a mean to blend in. Of
    unlike widths: `partial`, all means to blend in, and `fresh`, the last cycle in each band (none: that `applied`).

    By "deltas": `base` after `commits` commits; the model stands on `under`, the base after `stands`, with `pending`
    steps in `since` cycles not brought in. In a ring are `lent`, of `lent_of` (steps, cycles); `shared` of it has been
    committed and is still in the model; `rough`: rounded or clipped. `held`: results that wait for one before them.
    """

    model: Params
    stage: str = "new"
    coordinator: str = ""
    peers: tuple[str, ...] = ()
    cycle: int = 0
    version: float = 0.0
    steps: int = 0
    period_s: float = 0.0
    serial: int = 0
    begun: float = 0.0
    under_way: int = 0
    left: int = 0
    took: tuple[int, float] = (0, 0.0)
    pace: float = 0.0
    pieces: tuple[float, ...] = ()
    pinged: float = 0.0
    trips: tuple[float, ...] = ()
    change: float = 0.0
    examples: float = 1.0
    selects: Mapping[int, Select] = field(default_factory=dict[int, Select])
    inside: int = -1
    member: Member | None = None
    decided: Decided | None = None
    incoming: Broadcast | None = None
    partial: tuple[Broadcast, ...] = ()
    fresh: tuple[int, ...] = ()
    applied: int = 0
    early: tuple[Frame, ...] = ()
    timer: int = 0
    base: Params | None = None
    commits: int = 0
    under: F32 | None = None
    stands: int = 0
    pending: int = 0
    since: int = 0
    lent: F32 | None = None
    lent_of: tuple[int, int] = (0, 0)
    shared: F32 | None = None
    rough: bool = False
    held: Mapping[int, Result] = field(default_factory=dict[int, Result])

    def oldest(self, cycle: int) -> int:
        """The oldest cycle that still matters in `cycle`."""
        return cycle if self.inside < 0 else min(cycle, self.inside)


def based(state: State, base: Params, commits: int, cycle: int) -> State:
    """Start over from `base`, which holds the means up to `cycle`."""
    return replace(
        state, model=base, base=base, under=base.vector, commits=commits, stands=commits, applied=cycle, fresh=(),
        pending=0, since=0, lent=None, shared=None, held={s: one for s, one in state.held.items() if s > commits},
    )  # fmt: skip


def training(
    state: State, ctx: Context, work: str, steps: int, lr: float | None, view: View | None = None
) -> tuple[State, tuple[Run]]:
    """The next training, of `steps` steps on this peer's own device; without `lr` the training's own of this cycle."""
    serial = state.serial + 1
    config: dict[str, Scalar] = {"steps": steps, "round": max(state.cycle, 1), "reply": "model"}
    config |= {} if lr is None else {"lr": lr}
    key, reduce = ("hadfl", ctx.me, serial), {"model": Stack()}
    run = Run(work, (ctx.me,), ("train", serial), state.model, reduce=reduce, config=config, view=view, key=key)
    return replace(state, serial=serial, begun=ctx.now, under_way=steps), (run,)


def trained(state: State, steps: int, seconds: float, model: Params | None) -> State:
    """A training of the cycle is over; without a `model` it came to nothing."""
    took = (state.took[0] + steps, state.took[1] + seconds)
    state = replace(state, took=took, pace=took[1] / took[0])
    if model is None:
        return state
    return replace(state, model=model, version=state.version + steps, pending=state.pending + steps)


def gone(state: State) -> State:
    """What a device that has gone still knows when it comes back: whom to ask, and its plan."""
    return State(
        state.model, "down", state.coordinator, state.peers, steps=state.steps, period_s=state.period_s,
        serial=state.serial, timer=state.timer + 2, examples=state.examples, base=None if state.steps else state.base,
    )  # fmt: skip
