"""Which cut a device should take: the time of a batch at each, and what changing the cut at a move is worth.

Here: pure functions of cuts and rates, over all cuts (there are few). Not here: where the rates come from (`fleet`).
Invariant: the best is the first of those that take the least time, so that every node finds the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from fieldfare.core.errors import UsageError
from fieldfare.work.net import Training
from fieldfare.work.split.cuts import Cut


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device and its edge can do: FLOP/s of each, bits per second of the device's link up and down.

    `edge_load`: other sessions that the edge computes at the same time; a batch waits for one of each, less what they
    compute while this one is not at the edge (our reading of the specification's queue: sessions alike, in turn).
    `latency_s`: one way, per message.
    """

    device_flops_per_s: float
    edge_flops_per_s: float
    uplink_bps: float
    downlink_bps: float
    edge_load: float = 0.0
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("device_flops_per_s", "edge_flops_per_s", "uplink_bps", "downlink_bps"):
            if not getattr(self, name) > 0:
                raise UsageError(f"Rates({name}={getattr(self, name)}): use a number > 0.")
        for name in ("edge_load", "latency_s"):
            if not 0 <= getattr(self, name) < inf:
                raise UsageError(f"Rates({name}={getattr(self, name)}): use a number >= 0.")


@dataclass(frozen=True, slots=True)
class BatchTime:
    """Seconds of each phase of one batch, in order; `edge_s` with the queue before it."""

    forward_s: float
    up_s: float
    edge_s: float
    down_s: float
    backward_s: float

    @property
    def total_s(self) -> float:
        """The time of the batch, phases one after the other."""
        return self.forward_s + self.up_s + self.edge_s + self.down_s + self.backward_s


LABEL_BYTES = 8
"""Bytes of the label of an example, which goes up beside its activations."""


def batch_time(cut: Cut, batch: int, rates: Rates) -> BatchTime:
    """Phases of a batch of so many examples at `cut`: t = fwd + 8 act / up + queue + server + 8 act / down + bwd."""
    act = 8.0 * batch * cut.activation_bytes
    server = batch * (cut.server_forward + cut.server_backward) / rates.edge_flops_per_s
    forward, backward = (
        batch * flops / rates.device_flops_per_s for flops in (cut.device_forward, cut.device_backward)
    )
    up = (act + 8.0 * batch * LABEL_BYTES) / rates.uplink_bps + rates.latency_s
    down = act / rates.downlink_bps + rates.latency_s
    queue = max(server * rates.edge_load - (forward + up + down + backward), 0.0)
    return BatchTime(forward, up, server + queue, down, backward)


def whole_time(cuts: Sequence[Cut], batch: int, device_flops_per_s: float) -> float:
    """Seconds of a batch of so many examples that the device trains alone."""
    one = cuts[0]
    flops = one.device_forward + one.device_backward + one.server_forward + one.server_backward
    return batch * flops / device_flops_per_s


def plan(cuts: Sequence[Cut], batch: int, rates: Rates, whole: bool = False) -> Cut | None:
    """The cut with the shortest batch; with `whole`, None where the device is at least as fast alone."""
    best = _best(cuts, [batch_time(cut, batch, rates).total_s for cut in cuts])
    alone = whole and whole_time(cuts, batch, rates.device_flops_per_s) <= batch_time(best, batch, rates).total_s
    return None if alone else best


def replan(cuts: Sequence[Cut], now: Cut, batch: int, rates: Rates, batches: int, training: Training) -> Cut:
    """The cut to train the `batches` left of a round with, at a move: `now`, or one that wins more than it costs.

    A change sends the numbers between the two cuts, with their moments, over the device's link, once; the edge's own
    part crosses between the edges in either case.
    """
    times: list[float] = []
    for cut in cuts:
        between = cut.size - now.size
        link = rates.downlink_bps if between > 0 else rates.uplink_bps
        change = 32.0 * abs(between) * (1 + training.moments) / link + (rates.latency_s if between else 0.0)
        times.append(batches * batch_time(cut, batch, rates).total_s + change)
    best = _best(cuts, times)
    return best if times[cuts.index(best)] < times[cuts.index(now)] else now


def _best(cuts: Sequence[Cut], times: Sequence[float]) -> Cut:
    if not cuts:
        raise UsageError("plan(cuts=()): give the legal cuts of a net, such as split_net(...).cuts.")
    return cuts[min(range(len(cuts)), key=times.__getitem__)]
