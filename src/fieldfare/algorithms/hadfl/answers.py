"""What a peer answers at once when another asks: whether it lives, how long a message takes, its base.

Invariant: an answer changes nothing in who gives it.
"""

from __future__ import annotations

from fieldfare.algorithms.hadfl.holding import State
from fieldfare.algorithms.hadfl.member import on_probe
from fieldfare.algorithms.hadfl.messages import Ack, Behind, Ping, Pong, Probe, Whole
from fieldfare.core.effects import Effect, Send


def answer(state: State, src: str, body: object, now: float) -> tuple[Effect, ...]:
    """The answer to `body` from `src`, if there is one."""
    match body:
        case Probe():
            return _probed(state, src, body, now)
        case Ping(serial, payload):
            return (Send(src, Pong(serial, payload)),)
        case Behind(commits) if commits < state.commits and state.base is not None:
            return (Send(src, Whole(state.commits, state.applied, state.base.vector)),)
        case _:
            return ()


def _probed(state: State, src: str, probe: Probe, now: float) -> tuple[Effect, ...]:
    """What was decided, what the asker missed, or when this peer will be there."""
    if state.decided is not None and state.decided.cycle == probe.cycle:
        return (Send(src, state.decided),)
    if state.member is not None and state.member.ring.cycle == probe.cycle:
        return on_probe(state.member, src, probe)
    if state.stage in ("train", "wait", "ring") and state.cycle <= probe.cycle:
        done, seconds = state.took
        pace = seconds / done if done else state.period_s / max(state.steps, 1)
        rest = state.begun + (state.under_way + state.left) * pace - now if state.stage == "train" else 0.0
        ahead = (probe.cycle - state.cycle) * state.period_s
        return (Send(src, Ack(probe.cycle, max(rest, 0.0) + ahead)),)
    return ()
