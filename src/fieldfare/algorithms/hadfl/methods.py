"""Algorithms of several nodes as a job names them: HADFL, our variant, and the baselines it is measured against.

Here: flat settings; each takes learning rate, batches and local steps from the job's `Training`, whose schedule of the
learning rate goes by cycles, each peer's own. In rings, `view=family.view()` gives every device its part of the model
to train, the same in all cycles, and a coordinate is averaged over the members that have it (`widths`). Not here: how
nodes are made of them (`nodes`), what a node does (`peer`, `coordinator`, `gossip`, `graph`). Invariant: every device
is one peer, "peer/0" on device 0 and so on; a coordinator has no device, and no model passes through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from fieldfare.algorithms.hadfl.gossip import Gossip
from fieldfare.algorithms.hadfl.graph import Graph
from fieldfare.algorithms.hadfl.nodes import (
    Nodes,
    drawn,
    enough,
    in_rings,
    no_moments,
    of_peers,
    own_steps,
    placed,
    whole,
)
from fieldfare.core.algorithm import LocalSteps
from fieldfare.core.errors import UsageError
from fieldfare.core.params import View
from fieldfare.core.settings import settings

_MOST_IN_TURN = 32
_NO_PROFILE = {"warmup": 2, "warmup_steps": 1}
"""Who takes steps known beforehand needs no profile: the least that tells how long an answer is waited for."""


class _Cycling(Protocol):
    """What a method has of its own."""

    @property
    def cycles(self) -> int: ...

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes: ...


class OnDevices:
    """What all methods have alike: every device is one peer, and what a job counts as rounds are cycles."""

    __slots__ = ()

    def __post_init__(self: _Cycling) -> None:
        """Settings are checked by whoever takes them: made once for as few devices as there may be."""
        self.nodes(max(2, getattr(self, "per_cycle", None) or 2))

    @property
    def rounds(self: _Cycling) -> int:
        return self.cycles

    def placement(self, devices: int) -> dict[str, int]:
        """`{node: device}`."""
        return placed(devices)


@settings
@dataclass(frozen=True, slots=True)
class HADFL(OnDevices):
    """HADFL: `cycles` times, devices train by their own speed and `per_cycle` of them average their models in a ring.

    Cao, Lian, Liu, Zhu & Ji, DAC 2021; see `fieldfare.algorithms.hadfl` for what is our reading. A cycle lasts as long
    as the slowest device takes for `Training.steps` (None: `Training.epochs` epochs), the others take more steps in
    it. `per_cycle`: None for all. `mode`: how the period is found, "deadline" (ours) or "lcm" (the paper's
    hyperperiod). `blend`: weight of the received mean outside the ring. `stride`: steps after which a received mean is
    merged; None: at a cycle's end. `smoothing`: Brown's, for predicted versions. `warmup` trainings of `warmup_steps`
    steps measure the pace. Every `backup_every` cycles the mean is backed up, the last `keep` stay. A pace off by
    `drift` makes a new plan. `latency_s`, `bytes_per_s`: links as the coordinator expects them, for how long a hop is
    waited for; None: as probed in the warm-up.
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
    view: View | None = None
    name: ClassVar[str] = "hadfl"

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes:
        """One coordinator and `devices` peers."""
        return in_rings(self, devices, training, drawn(self, devices))


@settings
@dataclass(frozen=True, slots=True)
class PacedRing(OnDevices):
    """Ours: rings as often as links allow, of what every device has learnt per step, so that nothing is lost.

    Devices train by their own speed; rings, commits and faults are those of `HADFL`, and settings called alike are too.
    What differs: a period is as short as lets the ring take the share `pace` of it (None: as long as in `HADFL`), yet
    at least `least` steps of the slowest device. A contribution is the change since the last mean, per local step and
    by examples (`weigh`), so that fast devices do not pull the mean to their data; who is not in the ring keeps what it
    has learnt until it is: all of it counts "once", or as much as one cycle's, at its mean per step, by the "inverse"
    of the chance (`counted`; both unbiased, see `agreed.delta_weights`). `per_cycle`: None for all, of up to 32.
    `draw`: by "turns", nobody twice before everybody once; by "age", who has not been drawn for long is drawn sooner;
    by "version", as `HADFL`. `reach`: how far a mean delta goes, see `periods.reach` (None: the mean number of steps,
    as FedNova). `checks`: how often in a cycle a device looks at its pace, to take the steps that still fit in the
    period (None: keeps to its plan). `wire`: integers that travel; what 16 or 8 bits leave out goes into the next ring
    (error feedback). `overlap`: the next cycle's training begins while the ring runs, whose result is applied one cycle
    late. `keep_warmup`: warm-up is part of the training.
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
    reach: float | None = 1.5
    checks: int | None = 2
    keep_warmup: bool = False
    stride: int | None = None
    smoothing: float = 0.5
    warmup: int = 2
    warmup_steps: int = 5
    backup_every: int = 10
    keep: int = 3
    drift: float = 0.2
    slack: float = 2.0
    latency_s: float | None = None
    bytes_per_s: float | None = None
    view: View | None = None
    name: ClassVar[str] = "pacedring"

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes:
        """One coordinator and `devices` peers."""
        by = {"by_age": self.draw == "age", "turns": self.draw == "turns", "rule": "deltas"}
        return in_rings(self, devices, training, drawn(self, devices, _MOST_IN_TURN), **by)


@settings
@dataclass(frozen=True, slots=True)
class DecentralisedFedAvg(OnDevices):
    """All devices take the same local steps, then average in one ring: the fast wait for the slow, `cycles` times.

    FedAvg (McMahan et al., AISTATS 2017) without a server; local work is `Training.steps`, else `Training.epochs`
    epochs of each device's own data. Devices count alike, as in HADFL, where McMahan et al. weigh by examples.
    """

    cycles: int
    latency_s: float | None = None
    bytes_per_s: float | None = None
    view: View | None = None
    name: ClassVar[str] = "decentralisedfedavg"

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes:
        """One coordinator and `devices` peers."""
        return in_rings(self, devices, training, mode="even", **_NO_PROFILE)


@settings
@dataclass(frozen=True, slots=True)
class AllReduce(OnDevices):
    """Lock step: all devices take one step and average, `cycles` times, as PyTorch's DistributedDataParallel does.

    Li et al., VLDB 2020. For plain SGD the mean of models one step from a common one is a step along the mean gradient;
    an optimiser with moments is refused, for a device forgets them after every step.
    """

    cycles: int
    latency_s: float | None = None
    bytes_per_s: float | None = None
    view: View | None = None
    name: ClassVar[str] = "allreduce"

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes:
        """One coordinator and `devices` peers."""
        own_steps(self, training, 1)
        no_moments(self, training, 1)
        return in_rings(self, devices, training, mode="even", steps=1, epochs=1, **_NO_PROFILE)


@settings
@dataclass(frozen=True, slots=True)
class PairGossip(OnDevices):
    """Nobody waits: after every `steps` local steps a device averages with one random neighbour, `cycles` times.

    As AD-PSGD (Lian, Zhang, Zhang & Liu, ICML 2018); `how="push"` only moves the receiver. What is published is the
    first device's own model, since nobody holds the mean of all. A `view` is refused: use a ring.
    """

    cycles: int
    steps: int = 1
    how: Literal["pair", "push"] = "pair"
    view: View | None = None
    name: ClassVar[str] = "pairgossip"

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes:
        """`devices` peers."""
        whole(self)
        enough(self, devices)
        own_steps(self, training, self.steps)
        no_moments(self, training, self.steps)
        return of_peers(devices, Gossip(self.cycles, self.steps, how=self.how))


@settings
@dataclass(frozen=True, slots=True)
class GraphGossip(OnDevices):
    """Every `steps` local steps a device waits for its neighbours on a fixed graph and averages, `cycles` times.

    As D-PSGD (Lian et al., NeurIPS 2017). `graph`: "ring" or "full", or edges as pairs of device numbers. What is
    published is the first device's own model. A `view` is refused: use a ring.
    """

    cycles: int
    steps: int = 1
    graph: Literal["ring", "full"] | tuple[tuple[int, int], ...] = "ring"
    view: View | None = None
    name: ClassVar[str] = "graphgossip"

    def __post_init__(self) -> None:
        whole(self)
        Graph(self.cycles, (), self.steps)

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes:
        """`devices` peers."""
        enough(self, devices)
        own_steps(self, training, self.steps)
        no_moments(self, training, self.steps)
        return of_peers(devices, Graph(self.cycles, self.edges(devices), self.steps))

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
