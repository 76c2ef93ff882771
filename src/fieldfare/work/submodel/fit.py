"""Which level a device gets: the largest that fits its memory, speed and link, within the deadline of a round.

Here: pure functions from a fleet's columns to levels, and what who fits none would need. Not here: what a level takes
(`cost`), the proof that it does (`dry`). Invariant: a plan is a function of (levels, training, columns, examples,
deadline), device by device, so planning again after a change moves only devices that changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.core.local import Local
from fieldfare.core.params import Params
from fieldfare.work.net import Training
from fieldfare.work.plan import passes_and_steps
from fieldfare.work.submodel.cost import Declared, declared
from fieldfare.work.submodel.family import Family
from fieldfare.work.submodel.rules import Level, SubModels

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
_Column = Any
_F = TypeVar("_F")

_NAMES = ("memory_bytes", "flops_per_s", "downlink_bytes_per_s", "uplink_bytes_per_s", "overhead_s", "latency_s")

FLAG = "fits"
"""Name of the fleet's flag of devices that fit some level: `Sample(10, where="fits")`."""


class Devices(Protocol):
    """What a plan looks at: columns `[n]`, or numbers for all; a `Fleet` and a `Board` have them."""

    @property
    def memory_bytes(self) -> _Column: ...
    @property
    def flops_per_s(self) -> _Column: ...
    @property
    def downlink_bytes_per_s(self) -> _Column: ...
    @property
    def uplink_bytes_per_s(self) -> _Column: ...
    @property
    def overhead_s(self) -> _Column: ...
    @property
    def latency_s(self) -> _Column: ...


@dataclass(frozen=True, slots=True, eq=False)
class Budget:
    """Devices of which memory is known, and perhaps more: columns `[n]`, or numbers. What is not given takes none."""

    memory_bytes: _Column
    flops_per_s: _Column = np.inf
    downlink_bytes_per_s: _Column = np.inf
    uplink_bytes_per_s: _Column = np.inf
    overhead_s: _Column = 0.0
    latency_s: _Column = 0.0


@dataclass(frozen=True, slots=True)
class Need:
    """A level of a family (its `number` there) and what it takes."""

    number: int
    level: Level
    cost: Declared


def needs(family: Family, training: Training | None = None, local: Sequence[Local] = ()) -> tuple[Need, ...]:
    """What every level takes to train with `training`, in the family's order; as `local` declares that it is trained
    (an algorithm's `local`; none: by the plain step)."""
    view = family.view()
    return tuple(
        Need(number, level, declared(family, training, view.layout(number), local))
        for number, level in enumerate(family.levels)
    )


@dataclass(frozen=True, eq=False)
class Planned:
    """Levels of n devices: `assign` int64 `[n]`, -1 for who fits none.

    `seconds` `[levels, n]`: a round of each level, sending included; `memory_bytes` `[n]`: what each device has;
    `taken`: examples of a round, `[n]` or one number. `bars`: level n needs more than `bars[n]` bytes, as dry runs
    found. `local`: how the levels are trained.
    """

    family: Family
    training: Training
    needs: tuple[Need, ...]
    assign: I64
    memory_bytes: F64
    seconds: F64
    deadline_s: float | None = None
    taken: Any = 0
    bars: Mapping[int, float] = field(default_factory=dict[int, float])
    local: tuple[Local, ...] = ()

    @property
    def fits(self) -> NDArray[np.bool_]:
        """Which devices fit some level, `[n]`."""
        return self.assign >= 0

    @property
    def outside(self) -> I64:
        """Devices that fit no level, ascending."""
        return np.flatnonzero(~self.fits)

    @property
    def counts(self) -> dict[str, int]:
        """How many devices each level has, by name."""
        found = np.bincount(self.assign[self.fits], minlength=len(self.needs)).tolist()
        return {need.level.name: count for need, count in zip(self.needs, found, strict=True)}

    @cached_property
    def given(self) -> I64:
        """Levels for a view, `[n]`: the smallest stands for none."""
        return np.where(self.fits, self.assign, _largest_first(self.needs)[-1].number)

    def view(self, rule: Any = None) -> SubModels:
        """The family's view with these levels.

        Who fits none stands in it with the smallest level and must not be asked: `Sample(..., where="fits")` on the
        fleet that `marked` gives. Errors: `UsageError` where nobody fits any level, in the words of `why`.
        """
        if not self.fits.any():
            raise UsageError(self.why(0))
        return self.family.view(rule, self.given)

    def marked(self, fleet: _F) -> _F:
        """`fleet` with the flag "fits" of who may be asked."""
        return replace(fleet, flags={**fleet.flags, FLAG: self.fits})  # type: ignore[attr-defined,type-var]

    def changed(self, before: Planned) -> I64:
        """Devices whose level differs from the plan `before`, ascending."""
        if len(self.assign) != len(before.assign):
            raise UsageError(f"plans of {len(before.assign)} and {len(self.assign)} devices cannot be compared.")
        return np.flatnonzero(self.assign != before.assign)

    def why(self, device: int, name: str | None = None) -> str:
        """In one line, why a device (called `name`) fits no level and what it would take; empty for one that does."""
        if self.assign[device] >= 0:
            return ""
        need = _largest_first(self.needs)[-1]
        have, takes = float(self.memory_bytes[device]), need.cost.memory_bytes
        said: list[str] = []
        if takes > have:
            said.append(
                f"the smallest, {need.level.name}, takes {_bytes(takes)} at batch {self.training.batch_size} and "
                f"{_bytes(have)} are free: {self._batch_for(need, have)}"
            )
        quickest = float(self.seconds[:, device].min())
        if self.deadline_s is not None and quickest > self.deadline_s:
            said.append(
                f"a round of the quickest level takes {quickest:.3g} s and the deadline is {self.deadline_s:.3g} s: "
                "take fewer steps or give more time"
            )
        if not said:
            said.append("those that are quick enough take more memory than it has: give a smaller level or more time")
        return f"{name or f'device {device}'} fits no level: {'; '.join(said)}."

    def told(self, most: int = 5) -> list[str]:
        """`why` of the first `most` devices that fit no level, and how many more there are."""
        out = self.outside
        lines = [self.why(int(device)) for device in out[:most]]
        return lines if len(out) <= most else [*lines, f"{len(out) - most} more devices fit no level."]

    @cached_property
    def _batches(self) -> dict[int, int]:
        """Memory of the smallest level by batch size, as far as it was asked for."""
        return {}

    def _batch_for(self, need: Need, have: float) -> str:
        """What would let a level of `need` fit into `have` bytes."""
        layout = self.family.view().layout(need.number)

        def takes(batch: int) -> int:
            if batch not in self._batches:
                training = replace(self.training, batch_size=batch)
                self._batches[batch] = declared(self.family, training, layout, self.local).memory_bytes
            return self._batches[batch]

        low, high = 0, self.training.batch_size  # `low` fits, `high` does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if takes(middle) <= have else (low, middle)
        if low:
            return f"batch_size={low} takes {_bytes(takes(low))}"
        return f"even batch_size=1 takes {_bytes(takes(1))}, so give a smaller level, or {_bytes(takes(1) - have)} more"


def plan(
    family: Family, devices: Devices, training: Training | None = None, *, examples: int | Sequence[int] | I64 = 0,
    deadline_s: float | None = None, n: int | None = None, known: tuple[Need, ...] | None = None, at_s: float = 0.0,
    local: Sequence[Local] = (),
) -> Planned:  # fmt: skip
    """The largest level (by parameters) that fits each device.

    A level fits where its step's memory is no more than `memory_bytes` (what is free above the process after import
    and a warm-up step), and a round of it, as `Fleet.durations` counts it, takes no more than `deadline_s` (None: as
    long as it likes). `examples`: what each device has, `[n]` or one number (0: one batch). `n` for columns that are
    all numbers. `known`: what `needs` gave before, to plan again at no cost. `at_s`: when a fleet is looked at whose
    memory (`Fleet.memory`) or speeds (`Fleet.drift`) change. `local`: what the algorithm declares of a step
    (`algorithm.local`), which may take more than the plain one. Cost: one pass over the columns per level.
    Zhang & Kim, arXiv 2105.14675, propose local models compressed from the global one; the rule is ours.
    """
    training = training or Training()
    found = needs(family, training, local) if known is None else known
    if deadline_s is not None and not deadline_s > 0:
        raise UsageError(f"plan(deadline_s={deadline_s}): a deadline is a number of seconds above zero.")
    sizes = np.asarray(examples, np.int64)
    once = training if sizes.any() else replace(training, steps=training.steps or 1)
    taken = passes_and_steps(np.where(sizes > 0, sizes, training.batch_size).reshape(-1), once)[2]
    taken = taken if sizes.ndim else taken[0]
    return _planned(family, training, found, _columns(devices, at_s, n), taken, deadline_s, n, {}, tuple(local))


def replan(planned: Planned, devices: Devices, at_s: float = 0.0) -> Planned:
    """`planned` again for the same devices as they are now (a fleet's: at `at_s`): with the same family, training,
    examples and deadline, and what dry runs found.

    `changed` says whose level is another; a view for both is `replanned(planned, (round, this))`. Cost: as `plan`, with
    nothing computed anew about the levels.
    """
    p = planned
    n = len(p.assign)
    return _planned(
        p.family, p.training, p.needs, _columns(devices, at_s, n), p.taken, p.deadline_s, n, p.bars, p.local
    )


def _columns(devices: Devices, at_s: float, n: int | None) -> dict[str, F64]:
    """What a plan looks at, by name, as it is at `at_s` where it changes."""
    columns = {name: np.asarray(getattr(devices, name), np.float64) for name in _NAMES}
    if (memory := getattr(devices, "memory", None)) is not None:
        columns["memory_bytes"] = memory.at(at_s)
    if (drift := getattr(devices, "drift", None)) is not None:
        n = n or max((len(one) for one in columns.values() if np.ndim(one)), default=len(getattr(drift, "factors", ())))
        if n:
            who = np.arange(n)
            columns["flops_per_s"] = columns["flops_per_s"] * drift.factor(drift.step(np.full(n, at_s), who), who)
    return columns


def _planned(
    family: Family, training: Training, found: tuple[Need, ...], columns: Mapping[str, F64], taken: Any,
    deadline_s: float | None, n: int | None, bars: Mapping[int, float], local: tuple[Local, ...],
) -> Planned:  # fmt: skip
    lengths = {len(one) for one in (*columns.values(), taken) if np.ndim(one)}
    if len(lengths | ({n} if n is not None else set())) > 1:
        about = sorted(lengths | ({n} if n is not None else set()))
        raise UsageError(f"plan(...): columns are about {about} devices; give one value per device, or one.")
    count = n if n is not None else next(iter(lengths), 1)
    seconds = np.empty((len(found), count))
    memory = np.array(np.broadcast_to(columns["memory_bytes"], (count,)))
    fixed = columns["overhead_s"] + 2.0 * columns["latency_s"]
    for at, need in enumerate(found):
        link = need.cost.bytes / columns["downlink_bytes_per_s"] + need.cost.up_bytes / columns["uplink_bytes_per_s"]
        seconds[at] = fixed + link + need.cost.flops * taken / columns["flops_per_s"]
    assign = _assign(found, memory, seconds, deadline_s, bars)
    return Planned(family, training, found, assign, memory, seconds, deadline_s, taken, bars, local)


def barred(planned: Planned, bars: Mapping[int, float]) -> Planned:
    """`planned` again, where level n also needs more than `bars[n]` bytes (as a dry run found)."""
    assign = _assign(planned.needs, planned.memory_bytes, planned.seconds, planned.deadline_s, bars)
    return replace(planned, assign=assign, bars=dict(bars))


def _assign(
    found: Sequence[Need], memory: F64, seconds: F64, deadline_s: float | None, bars: Mapping[int, float]
) -> I64:
    """The largest level that fits each device, -1 for none, `[n]`."""
    assign = np.full(len(memory), -1, np.int64)
    for need in reversed(_largest_first(found)):
        fits = (need.cost.memory_bytes <= memory) & (memory > bars.get(need.number, -1.0))
        if deadline_s is not None:
            fits &= seconds[need.number] <= deadline_s
        assign[fits] = need.number
    return assign


def _largest_first(found: Iterable[Need]) -> list[Need]:
    """By parameters, then FLOPs, then memory, the largest first; equal ones in the family's order."""
    return sorted(found, key=lambda n: (-n.cost.parameters, -n.cost.flops, -n.cost.memory_bytes, n.number))


@dataclass(frozen=True, eq=False)
class Replanned:
    """A view whose levels change as devices do: from round `since[i]` on, those of `plans[i]`; made by `replanned`."""

    view: SubModels
    since: tuple[int, ...] = ()
    assigns: tuple[I64, ...] = field(default=())

    @property
    def rule(self) -> Any:
        return self.view.rule

    @property
    def levels(self) -> tuple[Level, ...]:
        return self.view.levels

    def at(self, round_: int, model: Params | None = None) -> SubModels:
        """The view of round `round_` (from 1) on `model`."""
        past = [assign for first, assign in zip(self.since, self.assigns, strict=True) if first <= round_]
        view = self.view
        return (view.assigned(past[-1]) if past else view).at(round_, model)

    def plan(self, clients: I64) -> I64:
        return self.view.plan(clients)

    def index(self, level: int) -> I64:
        return self.view.index(level)

    def layout(self, level: int) -> Any:
        return self.view.layout(level)


def replanned(first: Planned, *later: tuple[int, Planned], rule: Any = None) -> Replanned:
    """The view of `first`, and from given rounds (ascending, above 1) on of other plans of the same family.

    `replanned(today, (50, tomorrow))` has tomorrow's levels from round 50 on.
    """
    rounds = [round_ for round_, _ in later]
    if rounds != sorted(set(rounds)) or any(round_ < 2 for round_ in rounds):
        raise UsageError(f"replanned(...): plans begin at rounds above 1, in order, not at {rounds}.")
    if any(one.family is not first.family for _, one in later):
        raise UsageError("replanned(...): all plans are of one family; plan again with the first one's.")
    if any(len(one.assign) != len(first.assign) for _, one in later):
        raise UsageError("replanned(...): all plans are about the same devices; give each a value per device.")
    views = [one.view(rule) for _, one in later]
    return Replanned(first.view(rule), tuple(rounds), tuple(view.assign for view in views))


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} GB"
