"""Algorithms of several nodes as a job names them: HADFL, our variant, and the baselines it is measured against.

Here: flat settings, and the nodes they make; each takes learning rate, batches and local steps from the job's
`Training`. Not here: what a node does (`peer`, `coordinator`, `gossip`). Invariant: every device is one peer,
"peer/0" on device 0 and so on; a coordinator has no device, and no model passes through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fieldfare.algorithms.hadfl.coordinator import Coordinator
from fieldfare.algorithms.hadfl.gossip import Gossip, Graph
from fieldfare.algorithms.hadfl.nodes import Nodes, decentralised_fedavg, nodes, placed
from fieldfare.algorithms.hadfl.peer import Peer
from fieldfare.core.algorithm import LocalSteps
from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings


@settings
@dataclass(frozen=True, slots=True)
class HADFL:
    """HADFL: `cycles` times, devices train by their own speed and `per_cycle` of them average their models in a ring.

    Cao, Lian, Liu, Zhu & Ji, DAC 2021; see `fieldfare.algorithms.hadfl` for what is our reading. A cycle lasts as long
    as the slowest device takes for `Training.steps` (None: one epoch), the others take more steps in it. `per_cycle`:
    None for all. `mode`: how the period is found, "deadline" (ours) or "lcm" (the paper's hyperperiod). `blend`: weight
    of the received mean outside the ring. `stride`: steps after which a received mean is merged; None: at a cycle's
    end. `smoothing`: Brown's, for predicted versions. `warmup` trainings of `warmup_steps` steps measure the pace.
    Every `backup_every` cycles the mean is backed up, the last `keep` stay. A pace off by `drift` makes a new plan.
    `latency_s`, `bytes_per_s`: links as the coordinator expects them, for how long a hop is waited for; None: as probed
    in the warm-up.
    """

    cycles: int
    per_cycle: int | None = 2
    mode: Literal["deadline", "lcm"] = "deadline"
    blend: float = 0.5
    stride: int | None = None
    smoothing: float = 0.5
    warmup: int = 4
    warmup_steps: int = 5
    backup_every: int = 1
    keep: int = 3
    drift: float = 0.2
    slack: float = 2.0
    latency_s: float | None = None
    bytes_per_s: float | None = None
    name: ClassVar[str] = "hadfl"

    def __post_init__(self) -> None:
        self.nodes(max(2, self.per_cycle or 2))

    @property
    def rounds(self) -> int:
        return self.cycles

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes:
        """One coordinator and `devices` peers."""
        per_cycle = _drawn(self, devices)
        peer = _peer(
            self, per_cycle, training, warmup=self.warmup, warmup_steps=self.warmup_steps, blend=self.blend,
            stride=self.stride,
        )  # fmt: skip
        boss = Coordinator(
            self.cycles, per_cycle, self.mode, self.smoothing, *_expected(self), slack=self.slack,
            backup_every=self.backup_every, keep=self.keep, drift=self.drift, steps=_steps(training),
        )  # fmt: skip
        return nodes(devices, peer, boss)

    def placement(self, devices: int) -> dict[str, int]:
        return placed(devices)


@settings
@dataclass(frozen=True, slots=True)
class PacedRing:
    """Ours: rings as often as links allow, of what every device has learnt per step, so that nothing is lost.

    Devices train by their own speed; rings, commits and faults are those of `HADFL`, and settings called alike are too.
    What differs: a period is as short as lets the ring take the share `pace` of it (None: as long as in `HADFL`), yet
    at least `least` steps of the slowest device. A contribution is the change since the last mean, per local step and
    by examples (`weigh`), so that fast devices do not pull the mean to their data; who is not in the ring keeps what it
    has learnt until it is: all of it counts "once", or the last cycle's by the "inverse" of its chance (`counted`; both
    unbiased, see `agreed.delta_weights`). `per_cycle`: None for all, of up to 32. `draw`: by "turns", nobody twice
    before everybody once; by "age", who has not been drawn for long is drawn sooner; by "version", as `HADFL`. `reach`:
    how far a mean delta goes, see `periods.reach` (None: the mean number of steps, as FedNova). `checks`: how often in
    a cycle a device looks at its pace, to take the steps that still fit in the period (None: keeps to its plan).
    `wire`: integers that travel; what 16 or 8 bits leave out goes into the next ring (error feedback). `overlap`: the
    next cycle's training begins while the ring runs, whose result is applied one cycle late. `keep_warmup`: warm-up is
    part of the training.
    """

    cycles: int
    per_cycle: int | None = None
    draw: Literal["turns", "age", "version"] = "turns"
    counted: Literal["once", "inverse"] = "once"
    weigh: Literal["even", "examples"] = "examples"
    wire: Literal["int32", "int16", "int8"] = "int8"
    overlap: bool = False
    pace: float | None = 0.2
    least: int = 5
    reach: float | None = 1.75
    checks: int | None = 2
    keep_warmup: bool = False
    stride: int | None = None
    smoothing: float = 0.5
    warmup: int = 4
    warmup_steps: int = 5
    backup_every: int = 10
    keep: int = 3
    drift: float = 0.2
    slack: float = 2.0
    latency_s: float | None = None
    bytes_per_s: float | None = None
    name: ClassVar[str] = "pacedring"

    def __post_init__(self) -> None:
        self.nodes(max(2, self.per_cycle or 2))

    @property
    def rounds(self) -> int:
        return self.cycles

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes:
        """One coordinator and `devices` peers."""
        per_cycle = _drawn(self, devices, _MOST_IN_TURN)
        peer = _peer(
            self, per_cycle, training, warmup=self.warmup, warmup_steps=self.warmup_steps, stride=self.stride,
            rule="deltas", counted=self.counted, overlap=self.overlap, keep_warmup=self.keep_warmup,
            checks=self.checks,
        )  # fmt: skip
        boss = Coordinator(
            self.cycles, per_cycle, "deadline", self.smoothing, *_expected(self), slack=self.slack,
            backup_every=self.backup_every, keep=self.keep, drift=self.drift, steps=_steps(training),
            by_age=self.draw == "age", turns=self.draw == "turns", weigh=self.weigh, pace=self.pace, least=self.least,
            reach=self.reach, wire=self.wire,
        )  # fmt: skip
        return nodes(devices, peer, boss)

    def placement(self, devices: int) -> dict[str, int]:
        return placed(devices)


@settings
@dataclass(frozen=True, slots=True)
class DecentralisedFedAvg:
    """All devices take the same local steps, then average in one ring: the fast wait for the slow, `cycles` times.

    FedAvg (McMahan et al., AISTATS 2017) without a server; local work is `Training.steps` (None: one epoch).
    """

    cycles: int
    latency_s: float | None = None
    bytes_per_s: float | None = None
    name: ClassVar[str] = "decentralisedfedavg"

    def __post_init__(self) -> None:
        self.nodes(2)

    @property
    def rounds(self) -> int:
        return self.cycles

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes:
        """One coordinator and `devices` peers."""
        _enough(self, devices)
        peer = _peer(self, devices, training)
        return decentralised_fedavg(devices, self.cycles, _steps(training), peer, *_expected(self))

    def placement(self, devices: int) -> dict[str, int]:
        return placed(devices)


@settings
@dataclass(frozen=True, slots=True)
class AllReduce:
    """Lock step: all devices take one step and average, `cycles` times, as PyTorch's DistributedDataParallel does.

    Li et al., VLDB 2020. For plain SGD the mean of models one step from a common one is a step along the mean gradient;
    an optimiser with moments is refused, for a device forgets them after every step.
    """

    cycles: int
    latency_s: float | None = None
    bytes_per_s: float | None = None
    name: ClassVar[str] = "allreduce"

    def __post_init__(self) -> None:
        self.nodes(2)

    @property
    def rounds(self) -> int:
        return self.cycles

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes:
        """One coordinator and `devices` peers."""
        _enough(self, devices)
        _no_moments(self, training, 1)
        peer = _peer(self, devices, training)
        return decentralised_fedavg(devices, self.cycles, 1, peer, *_expected(self))

    def placement(self, devices: int) -> dict[str, int]:
        return placed(devices)


@settings
@dataclass(frozen=True, slots=True)
class PairGossip:
    """Nobody waits: after every `steps` local steps a device averages with one random neighbour, `cycles` times.

    As AD-PSGD (Lian, Zhang, Zhang & Liu, ICML 2018); `how="push"` only moves the receiver. What is published is the
    first device's own model, since nobody holds the mean of all.
    """

    cycles: int
    steps: int = 1
    how: Literal["pair", "push"] = "pair"
    name: ClassVar[str] = "pairgossip"

    def __post_init__(self) -> None:
        self.nodes(2)

    @property
    def rounds(self) -> int:
        return self.cycles

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes:
        """`devices` peers."""
        _enough(self, devices)
        _no_moments(self, training, self.steps)
        return _peers(devices, Gossip(self.cycles, self.steps, _lr(self, training), self.how))

    def placement(self, devices: int) -> dict[str, int]:
        return placed(devices)


@settings
@dataclass(frozen=True, slots=True)
class GraphGossip:
    """Every `steps` local steps a device waits for its neighbours on a fixed graph and averages, `cycles` times.

    As D-PSGD (Lian et al., NeurIPS 2017). `graph`: "ring" or "full", or edges as pairs of device numbers. What is
    published is the first device's own model.
    """

    cycles: int
    steps: int = 1
    graph: Literal["ring", "full"] | tuple[tuple[int, int], ...] = "ring"
    name: ClassVar[str] = "graphgossip"

    def __post_init__(self) -> None:
        Graph(self.cycles, (), self.steps)

    @property
    def rounds(self) -> int:
        return self.cycles

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes:
        """`devices` peers."""
        _enough(self, devices)
        _no_moments(self, training, self.steps)
        return _peers(devices, Graph(self.cycles, self.edges(devices), self.steps, _lr(self, training)))

    def placement(self, devices: int) -> dict[str, int]:
        return placed(devices)

    def edges(self, devices: int) -> tuple[tuple[int, int], ...]:
        """The graph's edges among `devices` devices."""
        match self.graph:
            case "ring":
                return tuple((i, (i + 1) % devices) for i in range(devices if devices > 2 else 1))
            case "full":
                return tuple((a, b) for b in range(devices) for a in range(b))
            case edges:
                far = [edge for edge in edges if not 0 <= min(edge) < max(edge) < devices]
                if far:
                    raise UsageError(
                        f"GraphGossip(graph=...) has an edge {far[0]} and there are {devices} devices: give pairs of "
                        f"different numbers below {devices}."
                    )
                return edges


InRings = HADFL | PacedRing | DecentralisedFedAvg | AllReduce
Method = InRings | PairGossip | GraphGossip
_PROBE_BYTES = 16_384
"""What a link is probed with, there and back, unless it is said what to expect of it."""
_MOST_IN_TURN = 32
_LATENCY_S, _BYTES_PER_S = 0.01, 1e7


def _called(method: Method) -> str:
    return type(method).__name__


def _enough(method: Method, devices: int) -> None:
    if devices < 2:
        raise UsageError(f"{_called(method)} averages among devices and the data has {devices} client: use 2 or more.")


def _drawn(method: HADFL | PacedRing, devices: int, most: int | None = None) -> int:
    """How many devices form a ring; `most` where all would."""
    _enough(method, devices)
    wanted = min(devices, most or devices) if method.per_cycle is None else method.per_cycle
    if wanted < 2:
        raise UsageError(f"{_called(method)}(per_cycle={wanted}): a ring has 2 devices or more; use that, or None.")
    if wanted > devices:
        raise UsageError(
            f"{_called(method)}(per_cycle={wanted}) can never be drawn from {devices} clients: use per_cycle <= "
            f"{devices}, or None for all."
        )
    return wanted


def _lr(method: Method, training: LocalSteps | None) -> float:
    if training is not None and training.schedule != "constant":
        raise UsageError(f"{_called(method)} trains at one learning rate: use Training(schedule='constant').")
    return 0.1 if training is None else training.lr


def _steps(training: LocalSteps | None) -> int | None:
    """The slowest device's local steps in a cycle; None: one epoch."""
    if training is not None and training.steps is None and training.epochs > 1:
        raise UsageError(
            f"Training(epochs={training.epochs}): a cycle is one epoch of the slowest device, or so many steps of it: "
            "use epochs=1, or steps=."
        )
    return None if training is None else training.steps


def _no_moments(method: Method, training: LocalSteps | None, steps: int) -> None:
    """An optimiser's moments begin at zero in every training: one step of it never uses them."""
    if training is not None and steps == 1 and (training.momentum or training.optimizer != "sgd"):
        raise UsageError(
            f"{_called(method)} averages after every step, and a device keeps no moments between two trainings: use "
            "Training(optimizer='sgd', momentum=0)."
        )


def _expected(method: InRings) -> tuple[float, float]:
    """A link's latency and bytes per second, as the coordinator expects them."""
    latency_s = _LATENCY_S if method.latency_s is None else method.latency_s
    return latency_s, _BYTES_PER_S if method.bytes_per_s is None else method.bytes_per_s


def _peer(method: InRings, per_cycle: int, training: LocalSteps | None, **more: object) -> Peer:
    given: dict[str, object] = {} if training is None else {"batch_size": training.batch_size}
    given["probe_bytes"] = _PROBE_BYTES if None in (method.latency_s, method.bytes_per_s) else 0
    return Peer(method.cycles, _lr(method, training), per_cycle=per_cycle, **given, **more)  # pyright: ignore[reportArgumentType]


def _peers(devices: int, one: Gossip | Graph) -> Nodes:
    return {f"peer/{i}": ("peer", one) for i in range(devices)}
