"""What a run happens in, and all of it that changes. Data alone: nothing here acts (`simulator` does)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fieldfare.core.algorithm import Algorithm
from fieldfare.core.effects import Run
from fieldfare.core.events import Event
from fieldfare.core.params import Params
from fieldfare.core.work import Work
from fieldfare.sim.asks import Ask
from fieldfare.sim.at_work import NOBODY, AtWork
from fieldfare.sim.draw import Selected
from fieldfare.sim.hosted import Hosted
from fieldfare.sim.links import FREE, Links
from fieldfare.sim.population import Population
from fieldfare.sim.stream import Stream, StreamAsk

Evaluation = Callable[[Params], Mapping[str, float]]


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """What a run happens in: fixed before it starts.

    `nodes`: `{node: (role, algorithm)}`. `placement`: `{node: device}` for nodes that have a device of their own: it
    computes what they run on themselves, its links carry their messages, and they are there in its sessions alone.
    `evaluations`: `{name: (function, seconds)}`. `happenings`: scripted fleet events `(time, event, nodes)`. `links`:
    between nodes; `Links()` are those of their devices. `mobility`: plain JSON for the records, where devices move.
    `refit`: what a `Run` is at its moment, where levels of sub-models are planned from the fleet.
    """

    nodes: Mapping[str, tuple[str, Algorithm]]
    model: Params
    population: Population
    works: Mapping[str, Work]
    seed: int = 0
    evaluations: Mapping[str, tuple[Evaluation, float]] = field(default_factory=dict)
    placement: Mapping[str, int] = field(default_factory=dict)
    happenings: Sequence[tuple[float, Event, tuple[str, ...]]] = ()
    links: Links = FREE
    mobility: Mapping[str, Any] | None = None
    refit: Callable[[Run, float], Run] | None = None


@dataclass(slots=True, eq=False)
class Progress:
    """All of a run that changes: the clock, the heap, the nodes' states, what is outstanding, bytes by direction.

    `bytes_down` counts when clients are asked, everyone asked, drop-outs too. `bytes_up` counts when a gather is over:
    the replies of all who answer, late ones too (sent, then dropped); what is outstanding at `Stop` is cancelled. Where
    late replies count in the next gather both count when a task is over, in whatever way. A
    node's `Answer` counts when it is sent, none to a gather that is over. `bytes_between`: sent from node to node.
    `streams` by "node work": the clients at work from gather to gather. `asked`: `Run`s on devices so far. `at_work`:
    the devices of other `Run`s that are at work. `up_free`, `down_free`: when the link of a device is free again.
    `turns`: number, in the heap, of the event with which a node's device comes or goes next; `quiet`: such events since
    anything else happened. `acted`: when anything but a timer that nobody needed any more last went off, which is when
    a run ends of itself.
    """

    now: float = 0.0
    seq: int = 0
    states: dict[str, Any] = field(default_factory=dict[str, Any])
    heap: list[tuple[float, int, str, Any]] = field(default_factory=list[tuple[float, int, str, Any]])
    asks: dict[int, Ask | StreamAsk] = field(default_factory=dict[int, Any])
    hosted: dict[int, Hosted] = field(default_factory=dict[int, Hosted])
    streams: dict[str, Stream] = field(default_factory=dict[str, Stream])
    selected: Selected = field(default_factory=Selected)
    at_work: AtWork = NOBODY
    asked: int = 0
    steps: int = 0
    bytes_down: float = 0.0
    bytes_up: float = 0.0
    bytes_between: float = 0.0
    stopped: str = ""
    up_free: dict[Any, float] = field(default_factory=dict[Any, float])
    down_free: dict[Any, float] = field(default_factory=dict[Any, float])
    turns: dict[str, int] = field(default_factory=dict[str, int])
    quiet: int = 0
    acted: float = 0.0
