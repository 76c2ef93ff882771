"""FedFly as a job names it: flat settings, and the nodes they make once the cuts are known.

Here: `FedFly` and `Bound`, its nodes over given cuts. Not here: cuts and their planning, which need a net (a driver
binds them), and what a node does (`central`, `edge`, `device`). Invariant: device i of the data is node "device/i" on
device i of the fleet; "edge/j" stands behind all devices; the centre has no device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fieldfare.algorithms.fedfly.central import Central
from fieldfare.algorithms.fedfly.device import Device
from fieldfare.algorithms.fedfly.edge import Edge
from fieldfare.algorithms.fedfly.messages import Plan
from fieldfare.algorithms.fedfly.nodes import Nodes, nodes
from fieldfare.algorithms.fedfly.policies import Policy, PreCopy
from fieldfare.core.algorithm import LocalSteps
from fieldfare.core.errors import UsageError
from fieldfare.core.params import View
from fieldfare.core.settings import settings

Cut = str | int
Width = Literal["plan"] | int
_COUNTS = ("rounds", "edges", "lanes", "capacity", "arrivals", "replica_every")
_PATIENCE = 30.0
"""How much more patient the centre is than edges and devices: it asks again with a whole model."""


@settings
@dataclass(frozen=True, slots=True)
class FedFly:
    """FedFly: devices train the first layers, edge servers the rest, and a session follows its device when it moves.

    Ullah, Wu, Harvey, Kilpatrick, Spence & Varghese, IEEE Communications Magazine 60(11) 2022; see
    `fieldfare.algorithms.fedfly` for what is ours. `rounds` rounds of all devices with `edges` edge servers. `cut`: the
    last layer on the device, by name or number (of `split_net(...).cuts`); "plan": for each device the cut with the
    shortest batch, "plan or whole": or none, where a device is as fast alone; None: devices train whole. A tuple gives
    each device its own. `tail`: the device also has what is behind this layer, and labels never leave it (a U).
    `replan`: from the round after a move on, a planned cut is that for the new edge (a cut decides on bits).
    `policy`: how sessions follow: `Restart()` (SplitFed), `StopAndCopy()` (FedFly), `PreCopy()` (ours), `Cheapest(...)`
    (by the move). `homes`: the edge each device begins at (None: as the mobility says, or in turn).

    `width`: of a model that is a family (`submodels(split_net(...), levels)`): the level that a device and its edge
    train together, by its number in `levels`, or "plan": the largest that has a cut (of those `cut` allows) whose
    layers fit the device's memory, whose rest fits the edge's, and which is done by the deadline; a tuple gives each
    device its own; None: the whole model. `rule`: which channels a level has (`work.submodel.rules`; None: the first).
    What a device does not have stays as others leave it. With `replan` a planned width is for the new edge, too.

    `deadline_s`: a round goes on without who is missing then: `late` "drop", or "half", with the server half there is.
    `patience_s`: after how long without an answer edges and devices ask again (longer than a batch and a session take).
    Of each edge: `lanes` steps at once, `capacity` sessions, `arrivals` sessions sent to it at once (None: all), those
    with the earliest deadlines first (`hint_s` after the move); `replica_every` batches a copy at the centre (0: none).
    """

    rounds: int
    edges: int = 2
    cut: Cut | tuple[Cut | None, ...] | None = "plan"
    policy: Policy = field(default_factory=PreCopy)
    tail: Cut | None = None
    homes: tuple[int, ...] | None = None
    replan: bool = False
    deadline_s: float | None = None
    late: Literal["drop", "half"] = "drop"
    patience_s: float = 120.0
    hint_s: float = float("inf")
    lanes: int | None = 1
    capacity: int | None = None
    arrivals: int | None = None
    replica_every: int = 0
    width: Width | tuple[Width, ...] | None = None
    rule: Any = None
    name: ClassVar[str] = "fedfly"

    def __post_init__(self) -> None:
        counts = [(name, 0 if name == "replica_every" else 1, getattr(self, name)) for name in _COUNTS]
        for name, least, value in counts:
            if value is not None and value < least:
                raise UsageError(f"FedFly({name}={value}): use a number >= {least}.")
        for name in ("deadline_s", "patience_s", "hint_s"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise UsageError(f"FedFly({name}={value}): use seconds above 0.")
        if self.width is None and self.rule is not None:
            raise UsageError("FedFly(rule=...) says which channels a level has: give width='plan', or levels, too.")
        self.nodes(max(len(self.cut) if isinstance(self.cut, tuple) else 1, len(self.homes or ()), 1))

    def cuts(self, devices: int) -> tuple[Cut | None, ...]:
        """What is said of each device's cut."""
        cuts = self.cut if isinstance(self.cut, tuple) else (self.cut,) * devices
        if len(cuts) != devices:
            raise UsageError(f"FedFly(cut=...) names {len(cuts)} cuts and the data has {devices} clients: one each.")
        return cuts

    def widths(self, devices: int) -> tuple[Width | None, ...]:
        """What is said of each device's width."""
        widths = self.width if isinstance(self.width, tuple) else (self.width,) * devices
        if len(widths) != devices:
            raise UsageError(
                f"FedFly(width=...) names {len(widths)} widths and the data has {devices} clients: one each."
            )
        return widths

    def bound(
        self, plans: Mapping[int, Plan], devices: int, homes: Mapping[int, int] | None = None, secret: bytes = b"",
        elsewhere: Mapping[int, Mapping[int, Plan]] | None = None, view: View | None = None,
        levels: Mapping[int, int] | None = None,
    ) -> Bound:  # fmt: skip
        """With the cut of each device that is not to train whole, and the edge each begins at, where that is known.

        `elsewhere`: `{edge: {device: cut}}`, for those to be planned again. `view`: the sub-models that the levels of
        cuts, and `levels` of devices that train whole, name.
        """
        return Bound(self, dict(plans), devices, dict(homes or {}), secret, dict(elsewhere or {}), view, levels or {})

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes:
        """The centre, the edges and `devices` devices, with plans that name no cut yet."""
        plans = {i: Plan("", 0) for i, cut in enumerate(self.cuts(devices)) if cut is not None}
        return self.bound(plans, devices).nodes(devices, training)

    def placement(self, devices: int) -> dict[str, int]:
        """Device i on device i, edges behind them."""
        return {f"device/{i}": i for i in range(devices)} | {f"edge/{j}": devices + j for j in range(self.edges)}


@dataclass(frozen=True, slots=True)
class Bound:
    """`FedFly` over cuts that are known: `plans` by device, `homes` likewise, and the `secret` that tickets are of."""

    method: FedFly
    plans: Mapping[int, Plan]
    devices: int
    homes: Mapping[int, int]
    secret: bytes = b""
    elsewhere: Mapping[int, Mapping[int, Plan]] = field(default_factory=dict[int, Mapping[int, Plan]])
    view: View | None = None
    levels: Mapping[int, int] = field(default_factory=dict[int, int])

    def nodes(self, devices: int, training: LocalSteps | None = None) -> Nodes:
        """The centre, the edges and the devices."""
        m = self.method
        central = Central(
            m.rounds, {f"device/{i}": plan for i, plan in self.plans.items()}, _homes(m, self.homes, devices),
            {f"device/{i}": 0 for i in range(devices) if i not in self.plans}, self.secret, deadline_s=m.deadline_s,
            late=m.late, patience_s=_PATIENCE * m.patience_s,
            elsewhere={
                f"edge/{j}": {f"device/{i}": plan for i, plan in plans.items()} for j, plans in self.elsewhere.items()
            },
            view=self.view, levels={f"device/{i}": level for i, level in self.levels.items()},
        )  # fmt: skip
        edge = Edge(
            policy=m.policy, patience_s=m.patience_s, retry_s=m.patience_s, lanes=m.lanes, capacity=m.capacity,
            arrivals=m.arrivals, replica_every=m.replica_every, view=self.view,
        )  # fmt: skip
        return nodes(central, edge, Device(m.patience_s, hint_s=m.hint_s), m.edges)

    def placement(self, devices: int) -> dict[str, int]:
        return self.method.placement(devices)


def _homes(method: FedFly, known: Mapping[int, int], devices: int) -> dict[str, str]:
    """The edge each device begins at: as said, as known, or in turn."""
    said = method.homes
    if said is not None and len(said) != devices:
        raise UsageError(f"FedFly(homes=...) names {len(said)} edges and there are {devices} devices: one each.")
    if said is not None and any(not 0 <= one < method.edges for one in said):
        raise UsageError(f"FedFly(homes={said}): edges are numbered 0 to {method.edges - 1}.")
    first = {i: i % method.edges for i in range(devices)} | dict(known)
    first |= {} if said is None else dict(enumerate(said))
    return {f"device/{i}": f"edge/{one}" for i, one in first.items()}
