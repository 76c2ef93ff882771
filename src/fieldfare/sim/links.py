"""What carries messages between the nodes of a run, and for how long.

Here: the description of links. Invariant: when a message arrives depends on the messages sent before it, the links and
the fleet alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings

Pair = tuple[str, str]
Spans = tuple[tuple[float, float], ...]


@settings
@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """Links between nodes: seconds per message and bytes per second; None: those of the nodes' own devices.

    A message of s bytes starts when its sender's uplink is free (first come, first served), takes s / min(up, down),
    and arrives the latency later; the receiver's downlink is a queue too. Latencies of two devices add up. A node
    without a device has a link without end: nothing waits for it, and of the devices' own links it adds no time.
    `pairs` `{(a, b): (latency_s, bytes_per_s)}` stand for all of this between two nodes, in both directions unless
    (b, a) is given too. `roles` `{(role, role): (latency_s, bytes_per_s)}` do so for all nodes of two roles ("edge" for
    "edge/0" and on), where no pair does; each two such nodes have a wire of their own, one each way, on which nothing
    waits for what goes elsewhere. `outages` `{node or (a, b): ((begin_s, end_s), ...)}`: nothing moves then, and what
    is under way waits.

    >>> Links(0.5, 8.0).seconds(4)
    1.0
    """

    latency_s: float | None = None
    bytes_per_s: float | None = None
    pairs: Mapping[Pair, tuple[float, float]] = field(default_factory=dict[Pair, tuple[float, float]])
    outages: Mapping[str | Pair, Spans] = field(default_factory=dict[str | Pair, Spans])
    roles: Mapping[Pair, tuple[float, float]] = field(default_factory=dict[Pair, tuple[float, float]])

    def __post_init__(self) -> None:
        if self.latency_s is not None:
            _check_latency(f"latency_s={self.latency_s}", self.latency_s)
        if self.bytes_per_s is not None:
            _check_rate(f"bytes_per_s={self.bytes_per_s}", self.bytes_per_s)
        for name, links in (("pairs", self.pairs), ("roles", self.roles)):
            for pair, link in links.items():
                if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(link, tuple) and len(link) == 2):
                    raise UsageError(f"Links({name}={{{pair!r}: {link!r}}}): use {{(a, b): (latency_s, bytes_per_s)}}.")
                _check_latency(f"{name}={{{pair!r}: {link!r}}}", link[0])
                _check_rate(f"{name}={{{pair!r}: {link!r}}}", link[1])
        for whom, spans in self.outages.items():
            ends = [-inf, *(t for span in spans for t in span)]
            if any(not a <= b for a, b in pairwise(ends)) or any(not 0.0 <= a < b < inf for a, b in spans):
                raise UsageError(
                    f"Links(outages={{{whom!r}: {spans!r}}}): use (begin_s, end_s) pairs, in order of time and apart."
                )

    def wire(self, src: str, dst: str) -> tuple[float, float] | None:
        """(latency, bytes per second) of the wire between two nodes, by their roles; None where there is none."""
        if not self.roles:
            return None
        roles = src.partition("/")[0], dst.partition("/")[0]
        return self.roles.get(roles) or self.roles.get((roles[1], roles[0]))

    def seconds(self, size: int) -> float:
        """Seconds a message of `size` bytes takes where nothing else is under way, and between no devices."""
        return (self.latency_s or 0.0) + size / (inf if self.bytes_per_s is None else self.bytes_per_s)


def _check_latency(what: str, latency_s: float) -> None:
    if not 0.0 <= latency_s < inf:
        raise UsageError(f"Links({what}): use a latency of finite seconds, not below 0.")


def _check_rate(what: str, bytes_per_s: float) -> None:
    if not bytes_per_s > 0.0:
        raise UsageError(f"Links({what}): use bytes per second above 0; inf is allowed.")


FREE = Links(0.0, inf)
"""Messages arrive when they are sent."""
