"""What a simulation tells of the flow of a job's tasks, up to its target.

Here: from a simulation's values to the flow that a forecast follows from, and to the flows at the trials' extremes. Not
here: what follows (`model`). Invariant: what a simulation does not tell is the closed form's, in proportion to what it
does tell; nothing of a simulation of another net's bytes is taken for this one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from fieldfare.assess.artefact import Artefact
from fieldfare.assess.forecast.model import Flow, Means, Swing, follows

End = Literal["low", "value", "high"]
DIRECT = frozenset({"time_to_target_s", "version_s", "tasks_started", "tasks_ok", "waste_share", "device_h",
                    "compute_h", "updates_per_s", "updates_per_s_peak"})  # fmt: skip
"""Quantities that a simulation itself has; the others follow from them."""
WITHOUT = frozenset({"tee_memory_bytes", "storage_bytes", "device_bytes"})
"""Those that no simulation changes."""
LAUNCH_S = 60.0
"""All that may be at work are asked within the first minute, in which peaks are counted."""
ALIKE = 0.1
"""Bytes of a task this near to the job's are the job's own; else a net that stands for it was simulated."""


def seen_flow(job: Means, closed: Flow, simulation: Artefact, end: End = "value") -> Flow:
    """The flow that was simulated, of the job's versions; at an `end` of the trials' band, where there is one.

    What grows with a run is taken by the share of its versions that make the target. Peaks are those of the simulation
    where it has them, and at least what must begin in the first minute. Bytes are tasks times the job's own wherever
    those simulated differ from them by over a tenth.
    """

    def told(name: str, otherwise: float | None = None) -> float | None:
        one = simulation.values.get(name)
        found = None if one is None else getattr(one, end)
        return one.value if one is not None and found is None else found if one is not None else otherwise

    made = told("versions") or job.versions
    reach = "versions_to_target" if simulation.number("versions_to_target") is not None else "versions"
    mine = simulation.number(reach) == job.versions  # else somebody gave another number of versions
    versions = (told(reach) if mine else None) or job.versions
    share = versions / made
    seen_s, whole_s = told("time_to_target_s"), told("horizon_s")
    if seen_s is not None and mine:
        time_s = seen_s
    else:
        time_s = share * whole_s if whole_s else closed.time_s * versions / job.versions
    started, ok = told("tasks_started"), told("tasks_ok")
    grown = versions / job.versions
    started = share * started if started else closed.started * grown
    ok = share * ok if ok else closed.ok * grown
    each_s = closed.device_s / closed.started
    device_s, compute_s = told("device_s"), told("compute_s")
    device_s = share * device_s if device_s else started * each_s
    compute_s = share * compute_s if compute_s else started * closed.compute_s / closed.started
    peak = told("updates_per_s_peak") or ok / time_s * job.peak_over_mean
    at_once = job.concurrency if job.buffered else job.over * job.buffer
    starts = told("checkins_per_s_peak") or max(peak * started / ok if ok else 0.0, at_once / LAUNCH_S)
    stale = told("staleness_mean") if job.buffered else 0.0
    if stale is None:
        stale = device_s / started * versions / time_s
    return Flow(
        time_s, started, ok, stale, device_s, compute_s,
        _bytes(job.down_bytes, started, told("bytes_down"), share), _bytes(job.up_bytes, ok, told("bytes_up"), share),
        peak, starts,
    )  # fmt: skip


def _bytes(each: float, tasks: float, seen: float | None, share: float) -> float:
    mine = each * tasks
    return share * seen if seen is not None and abs(share * seen - mine) <= ALIKE * mine else mine


def chances(job: Means, closed: Flow, simulation: Artefact, assumed: Mapping[str, float]) -> list[Swing]:
    """What chance does: quantities at the lower and the upper end of the trials' band, all ends together."""
    made: list[dict[str, float]] = []
    for end in ("low", "high"):
        flow = seen_flow(job, closed, simulation, end)
        reach = simulation.values.get("versions_to_target")
        versions = None if reach is None or reach.value != job.versions else getattr(reach, end)
        found = follows(flow, replace(job, versions=versions or job.versions), assumed)
        for name in ("waste_share", "version_s", "updates_per_s"):
            one = simulation.values.get(name)
            if one is not None and getattr(one, end) is not None:
                found[name] = getattr(one, end)
        made.append(found)
    return [Swing("chance, over trials", 0.0, 1.0, made[0], made[1])]
