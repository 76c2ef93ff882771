"""The two rules by which rings change what a peer holds: HADFL's models, and our deltas.

Here: what a peer brings into a ring, what becomes of it when the ring is decided, what another's result does. Not here:
when (`peer`), the ring (`member`). Invariants of deltas: a base is the start plus all committed means in the order of
their commits, so two peers with the same `commits` hold the same bits; and the model less the base it stands on is what
this peer has learnt and not yet brought in, whatever was rounded off included: nothing is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from fieldfare.algorithms.hadfl.agreed import Counting, blend, covering, delta_weights, model_weights, peak, step_factor
from fieldfare.algorithms.hadfl.holding import Result, State
from fieldfare.algorithms.hadfl.messages import Backup, Behind, Broadcast, Decided, Select, Whole
from fieldfare.algorithms.hadfl.parts import heard_in_part, last_of, merged_in_part
from fieldfare.algorithms.hadfl.ring import F32, fingerprint, mean_of, quantise
from fieldfare.algorithms.hadfl.session import Session
from fieldfare.algorithms.hadfl.widths import Cover, Widths, newer, tell
from fieldfare.core.effects import Effect, Publish, Send

Changed: TypeAlias = tuple[State, Sequence[Effect]]


@dataclass(frozen=True, slots=True)
class Models:
    """HADFL: models are averaged. Those outside the ring blend the mean in by `share`; versions alike (our reading)."""

    share: float
    evaluate: tuple[str, ...] = ()
    widths: Widths | None = None

    def peak(self, state: State) -> float:
        """The largest weight, for the unit of the sums."""
        return peak(state.model.vector)

    def lent(self, state: State) -> State:
        """Models are not lent."""
        return state

    def cover(self, state: State, select: Select) -> Cover | None:
        """What travels in a ring of unlike widths."""
        return None if self.widths is None else covering(select, self.widths, state.peers, state.model.size, "models")

    def offered(self, state: State, select: Select, me: str) -> F32:
        """What enters the ring: the model (its own part of it), by its weight."""
        factor = model_weights(select)[me]
        out: F32 = state.model.vector
        if self.widths is not None and (cover := self.cover(state, select)) is not None:
            out = self.widths.own(out, state.peers.index(me))[cover.where]
        return out if factor == 1.0 else (np.float32(factor) * out).astype(np.float32)

    def committed(self, state: State, session: Session, decided: Decided, me: str, tells: bool) -> Changed:
        """The mean is the model; who `tells` the others broadcasts, backs up and publishes it."""
        result, select = session.result, session.ring
        assert result is not None
        version, cover = sum(decided.versions) / len(decided.versions), session.cover
        model = state.model.replace(result if cover is None else cover.spread(state.model.vector, result))
        told = Broadcast(select.cycle, version, result, behind=tell(cover, self.widths))
        state = replace(state, model=model, version=version, fresh=self._fresh(state, told), applied=select.cycle)
        if not tells:
            return state, ()
        rest = [name for name in state.peers if name not in select.members]
        out: list[Effect] = [Send(name, told) for name in rest]
        if select.backup:
            digest = decided.digest
            check = digest if cover is None else fingerprint(model.vector)
            out.append(Send(state.coordinator, Backup(select.cycle, digest, version, model.vector, check)))
        return state, (*out, Publish(model, select.cycle, self.evaluate)) if select.cycle else out

    def heard(self, state: State, src: str, body: Broadcast | Whole) -> Changed:
        """Keep the newest mean that was broadcast (of each band), until the training under way is over."""
        if self.widths is not None:
            return heard_in_part(state, body, self.widths), ()
        if not isinstance(body, Broadcast) or body.cycle <= state.applied or body.members:
            return state, ()
        known = state.incoming
        return state if known is not None and known.cycle >= body.cycle else replace(state, incoming=body), ()

    def _fresh(self, state: State, told: Broadcast) -> tuple[int, ...]:
        """The last cycle in each band, once a result is in."""
        return () if self.widths is None else newer(self.widths, last_of(state, self.widths), told.cycle, told.behind)

    def merged(self, state: State, me: str = "") -> State:
        """The mean that was broadcast is blended in, w <- lambda w_agg + (1 - lambda) w."""
        if self.widths is not None:
            return merged_in_part(state, self.widths, state.peers.index(me), self.share)
        got = state.incoming
        if got is None or got.cycle <= state.applied or got.vector.shape != state.model.vector.shape:
            return replace(state, incoming=None)
        model = state.model.replace(blend(got.vector.astype(np.float32), state.model.vector, self.share))
        version = self.share * got.version + (1.0 - self.share) * state.version
        return replace(state, model=model, version=version, applied=got.cycle, incoming=None)

    def missed(self, state: State) -> tuple[Effect, ...]:
        """A mean that was missed is not missed: the next one comes."""
        return ()


@dataclass(frozen=True, slots=True)
class Deltas:
    """Ours: what was learnt since the base is averaged, per step, `counted` as in `agreed.delta_weights`."""

    counted: Counting
    evaluate: tuple[str, ...] = ()
    widths: Widths | None = None

    def peak(self, state: State) -> float:
        """The largest change per step that was not brought in."""
        return peak(_learnt(state)) / max(state.pending, 1)

    def lent(self, state: State) -> State:
        """All that has been learnt and not yet brought in goes into the ring that begins."""
        return replace(state, lent=_learnt(state), lent_of=(state.pending, state.since))

    def cover(self, state: State, select: Select) -> Cover | None:
        """What travels in a ring of unlike widths."""
        return None if self.widths is None else covering(select, self.widths, state.peers, state.model.size, "deltas")

    def offered(self, state: State, select: Select, me: str) -> F32:
        """What enters the ring: what is lent, per step and by its weight."""
        assert state.lent is not None
        cover = self.cover(state, select)
        lent = state.lent if cover is None else state.lent[cover.where]
        out: F32 = (np.float32(self._scale(state, select, me)) * lent).astype(np.float32)
        return out

    def _scale(self, state: State, select: Select, me: str) -> float:
        """In cycle 0, the warm-up, steps do not count."""
        factor = step_factor(select, *state.lent_of, self.counted) if select.cycle else 1.0
        return delta_weights(select, self.counted)[me] * factor

    def committed(self, state: State, session: Session, decided: Decided, me: str, tells: bool) -> Changed:
        """What the ring has taken of what was lent is no longer this peer's alone; the mean moves the base.

        What a coarse wire has rounded off or clipped stays (error feedback).
        """
        result, select, taken = session.result, session.ring, state.lent
        assert result is not None
        assert taken is not None
        if rough := select.wire != "int32":
            n = len(select.members)
            whole = quantise(self.offered(state, select, me), select.step, select.wire, n)
            part = (whole.astype(np.float64) * (select.step / self._scale(state, select, me))).astype(np.float32)
            taken = part if session.cover is None else session.cover.spread(np.zeros_like(taken), part)
        steps, cycles = state.pending - state.lent_of[0], state.since - state.lent_of[1]
        state = replace(state, shared=taken, rough=rough, lent=None, pending=steps, since=cycles)
        version = sum(decided.versions) / len(decided.versions)
        serial, members = decided.serial, select.members
        behind = tell(session.cover, self.widths)
        told = Broadcast(select.cycle, version, session.total, serial, select.step, len(members), behind)
        delta = _lifted(session.cover, result, state.model.size)
        one = Result(serial, select.cycle, delta, session.before, decided.digest if tells else "", select.backup)
        state, out = self._moved(replace(state, version=version + steps), one)
        return state, (*(Send(name, told) for name in state.peers if tells and name not in members), *out)

    def heard(self, state: State, src: str, body: Broadcast | Whole) -> Changed:
        """A result, or the base of one who holds more of them."""
        base = state.base
        if base is None:
            return state, ()
        match body:
            case Broadcast(cycle, _, total, serial, step, members, ()) if total.shape == base.vector.shape and members:
                return self._moved(state, Result(serial, cycle, mean_of(total, step, members), src))  # pyright: ignore[reportArgumentType]
            case Broadcast(cycle, _, total, serial, step, _, behind) if behind and self.widths is not None:
                cover = self.widths.told(behind)
                if total.shape != cover.where.shape:
                    return state, ()
                mean = mean_of(total, step, cover.divisors)  # pyright: ignore[reportArgumentType]
                return self._moved(state, Result(serial, cycle, _lifted(cover, mean, base.size), src))
            case Whole(serial, cycle, vector) if serial > state.commits and vector.shape == base.vector.shape:
                base = base.replace(np.array(vector, np.float32))
                held = {s: one for s, one in state.held.items() if s > serial}
                return self._moved(replace(state, base=base, commits=serial, applied=cycle, held=held))
            case _:
                return state, ()

    def _moved(self, state: State, result: Result | None = None) -> Changed:
        """The base takes all results whose turn it is."""
        if result is not None and result.serial > state.commits:
            state = replace(state, held={**state.held, result.serial: result})
        out: list[Effect] = []
        while state.base is not None and (one := state.held.get(state.commits + 1)) is not None:
            base = state.base.replace((state.base.vector + one.delta).astype(np.float32))
            held = {serial: other for serial, other in state.held.items() if serial > one.serial}
            state = replace(state, base=base, commits=one.serial, applied=one.cycle, held=held)
            if one.digest and one.backup:
                check = fingerprint(base.vector)
                backup = Backup(one.cycle, one.digest, state.version, base.vector, check, one.serial)
                out.append(Send(state.coordinator, backup))
            if one.digest and one.cycle:
                out.append(Publish(base, one.cycle, self.evaluate))
        return state, out

    def merged(self, state: State, me: str = "") -> State:
        """The model moves onto the base; what is this peer's own stays on top."""
        if state.base is None or (state.stands == state.commits and state.shared is None):
            return state
        base = moved = state.base.vector
        if state.pending or state.rough:
            own = _learnt(state) if state.shared is None else _learnt(state) - state.shared
            moved = (base + own).astype(np.float32)
        return replace(state, model=state.model.replace(moved), under=base, stands=state.commits, shared=None)

    def missed(self, state: State) -> tuple[Effect, ...]:
        """Ask whoever told the result that cannot be taken yet."""
        return tuple(Send(state.held[first].src, Behind(state.commits)) for first in sorted(state.held)[:1])


Rule: TypeAlias = Models | Deltas


def _lifted(cover: Cover | None, mean: F32, size: int) -> F32:
    """A mean delta of the whole model: -0 where nobody had a coordinate, which added to any number changes no bit."""
    return mean if cover is None else cover.spread(np.full(size, -0.0, np.float32), mean)


def _learnt(state: State) -> F32:
    """What the model has moved from where it stands on, `[P]`."""
    out: F32 = state.model.vector if state.under is None else state.model.vector - state.under
    return out
