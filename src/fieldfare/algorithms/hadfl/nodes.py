"""The nodes of a run without a server, with the numbers that several roles must share given once.

Here: coordinator and peers of HADFL (`nodes`) and of decentralised FedAvg, and how a method's settings and a job's
training become theirs (`in_rings`, `of_peers`). Not here: the settings (`methods`). Invariant: coordinator and peers
agree on the cycles and on how many are drawn, or nothing is made; what of a training would not be heeded is refused.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Literal

from fieldfare.algorithms.hadfl.coordinator import Coordinator
from fieldfare.algorithms.hadfl.peer import Peer
from fieldfare.algorithms.hadfl.warmup import RATE
from fieldfare.algorithms.hadfl.widths import widths_of
from fieldfare.core.algorithm import Algorithm, LocalSteps
from fieldfare.core.errors import UsageError

Nodes = dict[str, tuple[str, Algorithm]]

_PROBE_BYTES = 16_384
"""What a link is probed with, there and back, unless it is said what to expect of it."""
_LATENCY_S, _BYTES_PER_S = 0.01, 1e7


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
    shared |= {"parts": peer.widths is not None}
    made: Nodes = {"coordinator": ("coordinator", replace(coordinator, **shared))}
    return made | of_peers(peers, peer)


def of_peers(peers: int, one: Algorithm) -> Nodes:
    """`{node: (role, algorithm)}` of `peers` peers alone, "peer/0" and on."""
    return {f"peer/{i}": ("peer", one) for i in range(peers)}


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


def in_rings(
    method: Any, devices: int, training: LocalSteps | None, per_cycle: int | None = None, **more: object
) -> Nodes:
    """One coordinator and `devices` peers; of the settings of `method`, and of `more`, each takes what it has by name.

    `per_cycle`: None for all. Local work of a cycle is `training.steps`, else `training.epochs` epochs.
    """
    enough(method, devices)
    no_moments(method, training, min(getattr(method, "stride", None) or 2, (training and training.steps) or 2))
    given: dict[str, object] = {**_told(method), "per_cycle": devices if per_cycle is None else per_cycle}
    if training is not None:
        given |= {"batch_size": training.batch_size, "warmup_lr": RATE * training.lr}
        given |= {"steps": training.steps, "epochs": training.epochs}
    if (method.latency_s is None) != (method.bytes_per_s is None):
        raise UsageError(
            f"{_called(method)}(latency_s={method.latency_s}, bytes_per_s={method.bytes_per_s}): give both, or neither "
            "where links are to be probed."
        )
    known = method.latency_s is not None
    given |= {"probe_bytes": 0 if known else _PROBE_BYTES}
    given |= {"widths": widths_of(getattr(method, "view", None), devices, _called(method))}
    given |= {"latency_s": _LATENCY_S if method.latency_s is None else method.latency_s}
    given |= {"bytes_per_s": _BYTES_PER_S if method.bytes_per_s is None else method.bytes_per_s, **more}
    return nodes(devices, _of(Peer, given), _of(Coordinator, given))


def _told(method: Any) -> dict[str, object]:
    return {one.name: getattr(method, one.name) for one in fields(method)}


def _of(made: Any, given: dict[str, object]) -> Any:
    return made(**{one.name: given[one.name] for one in fields(made) if one.name in given})


# What is refused


def enough(method: object, devices: int) -> None:
    """Refuse one device alone."""
    if devices < 2:
        raise UsageError(f"{_called(method)} averages among devices and the data has {devices} client: use 2 or more.")


def whole(method: Any) -> None:
    """Refuse sub-models where two neighbours average."""
    if method.view is not None:
        raise UsageError(
            f"{_called(method)}(view=...): two neighbours of unlike parts have no mean of the whole between them; use "
            "HADFL(view=...) or PacedRing(view=...), or leave view out."
        )


def drawn(method: Any, devices: int, most: int | None = None) -> int:
    """How many devices form a ring: `method.per_cycle`, or all, yet at most `most`."""
    enough(method, devices)
    wanted = min(devices, most or devices) if method.per_cycle is None else method.per_cycle
    if wanted < 2:
        raise UsageError(f"{_called(method)}(per_cycle={wanted}): a ring has 2 devices or more; use that, or None.")
    if wanted > devices:
        raise UsageError(
            f"{_called(method)}(per_cycle={wanted}) can never be drawn from {devices} clients: use per_cycle <= "
            f"{devices}, or None for all."
        )
    return wanted


def own_steps(method: object, training: LocalSteps | None, steps: int) -> None:
    """Refuse local work of the training's where a method averages after `steps` steps of its own."""
    if training is not None and (training.epochs > 1 or training.steps not in (None, steps)):
        told = f"epochs={training.epochs}" if training.epochs > 1 else f"steps={training.steps}"
        raise UsageError(
            f"{_called(method)} averages after {steps} local step{'s' * (steps > 1)}: Training({told}) would not be "
            f"heeded; leave epochs and steps out of Training."
        )


def no_moments(method: object, training: LocalSteps | None, steps: int) -> None:
    """Refuse moments that begin at zero in every training, where that is one step: they would never be used."""
    if training is not None and steps == 1 and (training.momentum or training.optimizer != "sgd"):
        raise UsageError(
            f"{_called(method)} trains one step at a time here, and a device keeps no moments between two trainings: "
            "use Training(optimizer='sgd', momentum=0), or more steps."
        )


def _called(method: object) -> str:
    return type(method).__name__
