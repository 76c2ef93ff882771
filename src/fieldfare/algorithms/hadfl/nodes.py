"""The nodes of a HADFL run, with the numbers both roles must share given once; and two baselines of the same parts.

Invariant: coordinator and peers agree on the cycles and on how many are drawn, or nothing is made.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from fieldfare.algorithms.hadfl.coordinator import Coordinator
from fieldfare.algorithms.hadfl.peer import Peer
from fieldfare.core.algorithm import Algorithm
from fieldfare.core.errors import UsageError

Nodes = dict[str, tuple[str, Algorithm]]


def nodes(peers: int, peer: Peer, coordinator: Coordinator) -> Nodes:
    """`{node: (role, algorithm)}` of `peers` peers, "peer/0" and on, and one coordinator, for a `World`.

    >>> list(nodes(2, Peer(5), Coordinator(5)))
    ['coordinator', 'peer/0', 'peer/1']
    """
    if peers < 2:
        raise UsageError(f"nodes(peers={peers}): a ring has at least two peers; use peers >= 2.")
    if (peer.cycles, peer.per_cycle) != (coordinator.cycles, coordinator.per_cycle):
        raise UsageError(
            f"Peer(cycles={peer.cycles}, per_cycle={peer.per_cycle}) and Coordinator(cycles={coordinator.cycles}, "
            f"per_cycle={coordinator.per_cycle}) are of two runs: give both the same numbers."
        )
    if coordinator.wire != "int32" and peer.rule == "models":
        raise UsageError(f"Coordinator(wire={coordinator.wire!r}) with models: they need int32; use rule='deltas'.")
    if coordinator.turns and peer.counted == "inverse":
        raise UsageError("Coordinator(turns=True) with counted='inverse': a turn is no chance; use counted='once'.")
    shared = {"rule": peer.rule, "counted": peer.counted, "keep_warmup": peer.keep_warmup}
    made: Nodes = {"coordinator": ("coordinator", replace(coordinator, **shared))}
    return made | {f"peer/{i}": ("peer", peer) for i in range(peers)}


def placed(peers: int) -> dict[str, int]:
    """`{node: device}` of those nodes: peer i on device i."""
    return {f"peer/{i}": i for i in range(peers)}


def decentralised_fedavg(
    peers: int, cycles: int, steps: int | None = None, peer: Peer | None = None, latency_s: float = 0.01,
    bytes_per_s: float = 1e7, weigh: Literal["even", "examples"] = "even",
) -> Nodes:  # fmt: skip
    """All average in one ring after the same local work (an epoch, or `steps`): who is fast waits for who is slow.

    `peer`: learning rate, batches and evaluations; `latency_s`, `bytes_per_s`, `weigh` as of `Coordinator`. With
    `steps=1` this is lock-step all-reduce: for plain SGD the mean of models one step from a common one is a step along
    the mean gradient.
    """
    one = replace(peer or Peer(cycles), cycles=cycles, per_cycle=peers, rule="models")
    boss = Coordinator(cycles, peers, "even", steps=steps, latency_s=latency_s, bytes_per_s=bytes_per_s, weigh=weigh)
    return nodes(peers, one, boss)
