"""How a session follows its device: the policies, side by side, and when each pays.

Here: the policies as data, the formulas of what each costs and saves. Not here: the messages (`leave`, `arrive`).
Invariant: every policy but a lossy one ends in the bits of a run without moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from fieldfare.algorithms.fedfly.tensors import Lossy
from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings

Route = Literal["direct", "relay", "carry"]
"""How state crosses: from edge to edge, through the centre, or sealed and carried by the device."""


@settings
@dataclass(frozen=True, slots=True)
class Restart:
    """SplitFed's: nothing crosses, the device repeats the round from its beginning at the new edge."""

    route: Route = "direct"


@settings
@dataclass(frozen=True, slots=True)
class StopAndCopy:
    """FedFly's: behind a step and before its gradient goes down the session stops, crosses whole, and goes on there.

    The device gets the pending gradient from the new edge (Ullah et al., IEEE Comm. Mag. 60(11) 2022, its code).
    `compress`: as a difference from the round's global model, packed, which FedFly does not do (ours).
    """

    route: Route = "direct"
    compress: bool = False


@settings
@dataclass(frozen=True, slots=True)
class PreCopy:
    """Ours: copies cross while the session still trains, and the last difference while the device computes.

    `passes`: at most so many copies before the last part, and none when nothing was trained meanwhile; the first is a
    difference from the round's global model, which both edges hold, each other one from the copy before. The old edge
    gives its last gradient itself, and the device computes on. `replay`: where they are shorter, the batches trained
    since the last copy cross instead of what they have changed, and the destination trains them again, to the same
    bits. `lossy`: the last difference, and the optimiser's, rounded
    to "fp16" or "int8": another run, with other bits.
    """

    passes: int = 4
    lossy: Lossy = "none"
    route: Route = "direct"
    replay: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.passes <= 16:
            raise UsageError(f"PreCopy(passes={self.passes}): use 0 to 16 copies before the last.")


STOP_AND_COPY = StopAndCopy()


@settings
@dataclass(frozen=True, slots=True)
class Cheapest:
    """Ours: for each move, `Restart` where the batches to repeat cost less than the state to send; else `other`.

    `bytes_per_s`: of the link between edges, as expected; `repeat`: how many seconds of repeated training are worth a
    second of standing still.
    """

    bytes_per_s: float
    other: StopAndCopy | PreCopy = STOP_AND_COPY
    latency_s: float = 0.0
    repeat: float = 1.0

    def __post_init__(self) -> None:
        if not (self.bytes_per_s > 0.0 and self.latency_s >= 0.0 and self.repeat > 0.0):
            raise UsageError(
                f"Cheapest(bytes_per_s={self.bytes_per_s}, latency_s={self.latency_s}, repeat={self.repeat}): use "
                "bytes_per_s and repeat above 0, latency_s >= 0."
            )


Policy: TypeAlias = Restart | StopAndCopy | PreCopy | Cheapest
Settled: TypeAlias = Restart | StopAndCopy | PreCopy


def settle(policy: Policy, batches: int, batch_s: float, size_bytes: int) -> Settled:
    """What `Cheapest` chooses for a session of `batches` done, `batch_s` seconds each, and `size_bytes` of state.

    >>> settle(Cheapest(1e6), batches=2, batch_s=0.5, size_bytes=4_000_000)
    Restart(route='direct')
    """
    if not isinstance(policy, Cheapest):
        return policy
    overhead_s = policy.latency_s + size_bytes / policy.bytes_per_s
    if policy.repeat * batches * batch_s < overhead_s:
        return Restart(policy.other.route)
    return policy.other


def checkpoint_bytes(server_parameters: int, slots: int, activation_bytes: int) -> int:
    """S = 4 (P_s + M_s) + activations of a batch: what a session holds, without its few small fields.

    >>> checkpoint_bytes(562_762, 562_762, 1_638_400)
    6140496
    """
    return 4 * (server_parameters + slots) + activation_bytes


def saving(at: float, overhead: float = 0.0) -> float:
    """Share of a mover's time that migration saves against a restart, (f - o / T) / (1 + f): `overhead` is o / T.

    >>> round(saving(0.5), 3), round(saving(0.9), 3)
    (0.333, 0.474)
    """
    return (at - overhead) / (1.0 + at)


def system_saving(at: float, mover_s: float, others_s: float, overhead_s: float = 0.0) -> float:
    """The same for the round as a whole, 1 - max(T_oth, T_m + o) / max(T_oth, (1 + f) T_m): 0 if nobody waits for
    the mover.

    >>> system_saving(0.5, mover_s=1.0, others_s=2.0)
    0.0
    """
    return 1.0 - max(others_s, mover_s + overhead_s) / max(others_s, (1.0 + at) * mover_s)
