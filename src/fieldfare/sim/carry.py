"""How long messages take over links: queues, outages, and devices that leave while something is on its way.

A message passes its sender's uplink, the way, and its receiver's downlink. Both links serve one message after the
other, each at its own rate, and the downlink takes in what the uplink is still sending (cut-through): so of a message
alone on its way the slower link and the latency count. The uplink is taken in order of sending, the downlink in order
of first bytes. Not here: the description (`links`), the heap (`simulator`). Invariants: messages between two nodes
arrive in the order sent; a link never moves two messages at once; what changes is in the two dicts of the caller alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Any

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.fleet.fleet import Column, Fleet
from fieldfare.fleet.network import Network
from fieldfare.sim.links import Links, Spans
from fieldfare.sim.sessions import Sessions

Free = dict[Any, float]
"""When the link of each device, and each wire (sender, receiver), is free again, in seconds; if not in it: now."""


@dataclass(frozen=True, slots=True)
class Traced:
    """The link of one device of a `Network`, `up` or down."""

    network: Network
    device: int
    up: bool

    def seconds(self, t: float, size: float) -> float:
        move = self.network.upload if self.up else self.network.download
        return float(move(t, size, np.array([self.device]))[0])

    def bytes(self, t: float, seconds: float) -> float:
        moved = self.network.uploaded if self.up else self.network.downloaded
        return float(moved(t, seconds, np.array([self.device]))[0])


Rate = float | Traced


@dataclass(frozen=True, slots=True)
class Route:
    """From one node to another: rates in bytes per second, the devices whose links are queued for, outages on the way.

    `wire`: (from, to) of a link of their own, which is queued for instead. `plain`: nothing is queued for, nothing is
    ever out, and nobody can leave.
    """

    latency_s: float
    up: Rate
    down: Rate
    sender: int | None
    receiver: int | None
    spans: Spans
    wire: tuple[str, str] | None = None

    @property
    def plain(self) -> bool:
        return self.sender is None and self.receiver is None and not self.spans and self.wire is None


class Carrier:
    """Times messages between nodes. `up` and `down` of its methods are the caller's, and what snapshots keep."""

    def __init__(
        self, links: Links, placement: Mapping[str, int], fleet: Fleet, sessions: Sessions, nodes: Iterable[str]
    ) -> None:
        self.links, self.placement, self.fleet, self.sessions = links, placement, fleet, sessions
        self._routes: dict[tuple[str, str], tuple[Route, bool]] = {}
        known = list(nodes)
        for whom in (*links.pairs, *links.outages):
            for node in (whom,) if isinstance(whom, str) else whom:
                if node not in known:
                    raise UsageError(f"Links({whom!r}: ...): no node is called {node!r}, there are {', '.join(known)}.")
        roles = sorted({node.partition("/")[0] for node in known})
        for pair in links.roles:
            for role in pair:
                if role not in roles:
                    raise UsageError(f"Links(roles={{{pair!r}: ...}}): no node is a {role!r}: use {', '.join(roles)}.")

    def route(self, src: str, dst: str) -> tuple[Route, bool]:
        """The way from `src` to `dst`, and whether it is plain."""
        found = self._routes.get((src, dst))
        if found is None:
            route = route_of(self.links, self.placement, self.fleet, src, dst)
            found = self._routes[src, dst] = route, route.plain
        return found

    def send(self, now: float, src: str, dst: str, size: int, up: Free) -> tuple[float, float]:
        """A message is sent: when its first byte is at the receiver's link, and its last one; `land` it at the first.

        (nan, nan): lost, since the sender is away, or leaves before all of it is sent.
        """
        route, plain = self.route(src, dst)
        if plain:
            arrives = now + (route.latency_s + size / route.down)  # type: ignore[operator]
            return arrives, arrives
        sender, start = route.sender, now
        queue = sender if route.wire is None else route.wire
        if not self.sessions.through(sender, now, now):
            return nan, nan
        if queue is not None:
            start = max(now, up.get(queue, now))
        start = _after(start, route.spans)
        last = _moved(start, size, route.up, route.spans)
        if queue is not None:
            up[queue] = last
        if not self.sessions.through(sender, now, last):
            return nan, nan
        return start + route.latency_s, last + route.latency_s

    def land(self, first: float, last: float, src: str, dst: str, size: int, down: Free) -> float:
        """When the whole message is there; nan: lost, since the receiver is away at `first`, or leaves before."""
        route, plain = self.route(src, dst)
        if plain or isnan(first):
            return last
        receiver, start = route.receiver, first
        queue = receiver if route.wire is None else None
        if not self.sessions.through(receiver, first, first):
            return nan
        if queue is not None:
            start = max(first, down.get(queue, first))
        done = _moved(_after(start, route.spans), size, route.down, route.spans)
        if queue is not None:
            down[queue] = done
        arrives = max(done, last)
        arrives = next((end for begin, end in route.spans if begin < arrives < end), arrives)
        return arrives if receiver is None or self.sessions.through(receiver, first, arrives) else nan

    def waits(self, src: str, dst: str) -> bool:
        """Whether a message may have to wait for the receiver's link, so that `land` has its turn in order of time."""
        route = self.route(src, dst)[0]
        return route.receiver is not None and route.wire is None


def route_of(links: Links, placement: Mapping[str, int], fleet: Fleet, src: str, dst: str) -> Route:
    """The way from node `src` to node `dst`."""
    sender, receiver = placement.get(src), placement.get(dst)
    given = links.pairs.get((src, dst)) or links.pairs.get((dst, src))
    wire = links.wire(src, dst) if given is None else None
    if wire is not None:
        return Route(wire[0], wire[1], inf, sender, receiver, _spans(links, src, dst), (src, dst))
    latency, rate = given if given is not None else (links.latency_s, links.bytes_per_s)
    if sender is not None and sender == receiver and rate is None:
        return Route(latency or 0.0, inf, inf, None, None, _spans(links, src, dst))
    if latency is None:
        ends = (device for device in (sender, receiver) if device is not None)
        latency = sum(_of(fleet.latency_s, device) for device in ends)
    if rate is not None:
        up, down = (inf if sender is None else rate), (rate if receiver is not None or sender is None else inf)
    else:
        up, down = _own(fleet, sender, True), _own(fleet, receiver, False)
    return Route(latency, up, down, sender, receiver, _spans(links, src, dst))


def _own(fleet: Fleet, device: int | None, up: bool) -> Rate:
    """The rate of a device's own link."""
    if device is None:
        return inf
    if fleet.network is not None:
        return Traced(fleet.network, device, up)
    return _of(fleet.uplink_bytes_per_s if up else fleet.downlink_bytes_per_s, device)


def _of(column: Column, device: int) -> float:
    return float(column[device]) if isinstance(column, np.ndarray) else float(column)


def _spans(links: Links, src: str, dst: str) -> Spans:
    """When nothing moves between two nodes: ascending and apart."""
    found = [span for whom in (src, dst, (src, dst), (dst, src)) for span in links.outages.get(whom, ())]
    out: list[tuple[float, float]] = []
    for begin, end in sorted(found):
        if out and begin <= out[-1][1]:
            out[-1] = out[-1][0], max(end, out[-1][1])
        else:
            out.append((begin, end))
    return tuple(out)


def _after(t: float, spans: Spans) -> float:
    """`t`, or the end of the outage it falls into."""
    for begin, end in spans:
        if begin <= t < end:
            return end
    return t


def _moved(t: float, size: float, rate: Rate, spans: Spans) -> float:
    """When `size` bytes that begin to move at `t` (in no outage) have moved at `rate`, but for outages."""
    for begin, end in spans:
        if end <= t:
            continue
        seconds = rate.seconds(t, size) if isinstance(rate, Traced) else size / rate
        if t + seconds <= begin:
            return t + seconds
        size -= rate.bytes(t, begin - t) if isinstance(rate, Traced) else (begin - t) * rate
        size, t = max(size, 0.0), end
    return t + (rate.seconds(t, size) if isinstance(rate, Traced) else size / rate)
