"""What a job takes, as one pure function of plain numbers: the closed form beside a simulation, and its sensitivities.

Here: from a job's settings and means to how its tasks flow, from the flow to every quantity of the forecast; what one
input's range does to each. Not here: where the numbers come from (`build`). Invariants: pure functions; SI units (money
in whatever the prices are in); quantities follow from a flow by the same formulas, be it the closed form's or that of a
simulation, so that the numbers of one forecast fit one another; shares lie in 0..1, their ranges too.
FLINT's report, section 11; the energy model is Green FL's (Yousefpour et al., 2023) with our own constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import exp, inf, isfinite, isnan, log, sqrt

from fieldfare.assess.forecast.closed import LogNormal, aggregators, stays, synchronous_round_s, throughput
from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings

HOUR_S, DAY_S, MONTH_S = 3_600.0, 86_400.0, 30 * 86_400.0
JOULES_PER_KWH = 3.6e6
_ABOVE = ("versions", "buffer", "concurrency", "compute_s", "supply_per_s", "session_s", "peak_over_mean", "timeout_s",
          "downlink_bytes_per_s", "uplink_bytes_per_s")  # fmt: skip
_ENDLESS = ("max_staleness", "supply_per_s", "session_s", "timeout_s")


@settings
@dataclass(frozen=True)
class Means:
    """A job and its devices in means: what the closed form starts from.

    `buffered`: FedBuff, else rounds of `buffer` with `over` times as many asked. `versions`: how many are made;
    `reached`: whether they are known to make the target. `compute_s`: mean computing time of a task, `sigma` of its
    logarithm. `supply_per_s`: devices that come and may work; `session_s`: how long they stay, `session_sigma` of its
    logarithm; `within`: a task begins anywhere in a session (else with it), which may have several. `peak_over_mean`:
    of availability over a week. `down_bytes`, `up_bytes` of a task; links in bytes per second. `model_bytes` of a
    version, `kept_bytes` of partitions and traces, which are stored too; `asset_bytes` that a device holds beside it.
    """

    versions: float
    buffer: int
    concurrency: int
    compute_s: float
    down_bytes: float
    up_bytes: float
    sigma: float = 0.65
    buffered: bool = True
    over: float = 1.3
    max_staleness: float = inf
    supply_per_s: float = inf
    session_s: float = inf
    session_sigma: float = 0.0
    within: bool = False
    timeout_s: float = inf
    downlink_bytes_per_s: float = 5e6
    uplink_bytes_per_s: float = 1e6
    overhead_s: float = 1.0
    peak_over_mean: float = 1.0
    model_bytes: float = 0.0
    kept_bytes: float = 0.0
    asset_bytes: float = 0.0
    reached: bool = True

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, bool):
                continue
            least = 1.0 if one.name == "over" else 0.0
            good = value > 0 if one.name in _ABOVE else value >= least
            if isnan(value) or not good or not (isfinite(value) or one.name in _ENDLESS):
                wanted = "above 0" if one.name in _ABOVE else f">= {least:g}"
                raise UsageError(f"Means({one.name}={value}): use a number {wanted}.")
        for name in ("sigma", "session_sigma"):
            if getattr(self, name) >= 10:
                raise UsageError(f"Means({name}={getattr(self, name)}): use a number below 10.")

    @property
    def transfer_s(self) -> float:
        return self.down_bytes / self.downlink_bytes_per_s + self.up_bytes / self.uplink_bytes_per_s

    @property
    def task_s(self) -> float:
        """Mean seconds of a task that is not cut."""
        return self.compute_s + self.transfer_s + self.overhead_s


@dataclass(frozen=True, slots=True)
class Flow:
    """How a job's tasks flow until its versions are made: what all quantities follow from.

    `started` tasks, of which `ok` count; `device_s` at work in all, `compute_s` of it computing; bytes in all; tasks
    that begin, and updates that count, a second at the peak. `staleness` in versions.
    """

    time_s: float
    started: float
    ok: float
    staleness: float
    device_s: float
    compute_s: float
    bytes_down: float
    bytes_up: float
    updates_peak_per_s: float
    starts_peak_per_s: float

    def as_from(self, before: Flow, after: Flow) -> Flow:
        """This flow, changed in proportion as `before` became `after`."""

        def part(one: float, old: float, new: float) -> float:
            return one if new == old else inf if inf in (new, one) else one * new / old if old else new

        names = [one.name for one in fields(self)]
        return Flow(**{n: part(getattr(self, n), getattr(before, n), getattr(after, n)) for n in names})


UNITS: Mapping[str, str] = {
    "time_to_target_s": "s", "version_s": "s", "tasks_started": "tasks", "tasks_ok": "tasks", "waste_share": "share",
    "staleness": "versions", "device_h": "h", "compute_h": "h", "bytes_down": "B", "bytes_up": "B",
    "updates_per_s": "1/s", "updates_per_s_peak": "1/s", "ingress_bytes_per_s_peak": "B/s",
    "egress_bytes_per_s_peak": "B/s", "checkins_per_s_peak": "1/s", "aggregators": "servers",
    "tee_memory_bytes": "B", "storage_bytes": "B", "device_bytes": "B",
    "battery_share_per_task": "share", "battery_share_per_day": "share",
    "client_energy_j": "J", "network_energy_j": "J", "server_energy_j": "J", "energy_j": "J", "carbon_g": "g",
    "cost": "money",
}  # fmt: skip
FORMULAS: Mapping[str, str] = {
    "time_to_target_s": "versions x K / (lambda p_ok)", "version_s": "T / versions = K / (lambda p_ok)",
    "tasks_started": "lambda T", "tasks_ok": "versions x K", "waste_share": "1 - ok / started",
    "staleness": "seconds of a task / version", "device_h": "tasks x E[min(D, cut)]", "compute_h": "its computing part",
    "bytes_down": "tasks x M_down", "bytes_up": "ok x M_up", "updates_per_s": "ok / T",
    "updates_per_s_peak": "mean x peak over mean", "ingress_bytes_per_s_peak": "peak updates/s x M_up",
    "egress_bytes_per_s_peak": "peak tasks/s x M_down", "checkins_per_s_peak": "peak tasks/s",
    "aggregators": "ceil(peak updates/s x s per update / load)", "tee_memory_bytes": "updates held x M_up",
    "storage_bytes": "versions x M + what is kept", "device_bytes": "M + assets",
    "battery_share_per_task": "energy of a task / battery",
    "battery_share_per_day": "share of a task x tasks a day", "client_energy_j": "P t of computing, receiving, sending",
    "network_energy_j": "bits x J/bit", "server_energy_j": "2 x W x PUE x T x servers", "energy_j": "sum of the three",
    "carbon_g": "energy x intensity", "cost": "egress + servers + storage + devices' hours",
}  # fmt: skip


SHARES = frozenset({"waste_share", "battery_share_per_task", "battery_share_per_day"})
"""Quantities in 0..1."""


def quantities(job: Means, assumed: Mapping[str, float]) -> dict[str, float]:
    """Every quantity of `UNITS`, in closed form; `UsageError` where no task can end before it is cut."""
    return follows(flow_of(job), job, assumed)


def flow_of(job: Means) -> Flow:
    """The closed form's flow: Little's law, or order statistics of rounds. Cost: milliseconds.

    Rounds have no interruptions in closed form: those asked over and above the buffer stand for them (spec's rule).
    """
    task = LogNormal(job.task_s, job.sigma)
    cuts = [min(one, job.timeout_s) for one in stays(job.session_s, job.session_sigma, job.within)]
    busy = sum(task.capped(one) for one in cuts) / len(cuts)
    if job.buffered:
        flow = throughput(job.concurrency, job.buffer, task, supply_per_s=job.supply_per_s, session_s=job.session_s,
                          timeout_s=job.timeout_s, max_staleness=job.max_staleness, session_sigma=job.session_sigma,
                          within=job.within)  # fmt: skip
        version, rate = flow.version_s, flow.tasks_per_s
    else:
        asked = job.over * job.buffer
        wait = asked / job.supply_per_s if job.supply_per_s < inf else 0.0
        version = max(synchronous_round_s(job.buffer, task, job.over), wait)
        rate = asked / version
    if version == inf:
        raise UsageError(
            f"no task of {job.task_s:.3g} s can end before it is cut, after {max(cuts):.3g} s: give smaller tasks, "
            "longer sessions or a later time-out."
        )
    time, ok = job.versions * version, job.versions * job.buffer
    started = rate * time
    stale = busy / version if job.buffered else 0.0
    return Flow(
        time, started, ok, stale, started * busy, started * busy / job.task_s * job.compute_s,
        started * job.down_bytes, ok * job.up_bytes, ok / time * job.peak_over_mean, rate * job.peak_over_mean,
    )  # fmt: skip


def follows(flow: Flow, job: Means, assumed: Mapping[str, float]) -> dict[str, float]:
    """Every quantity of `UNITS` from a flow of tasks. Pure; cost: microseconds."""
    if flow.time_s == inf or flow.started == inf:
        return {name: 1.0 if name in SHARES else inf for name in UNITS}
    time, started = flow.time_s, flow.started
    moved = min(1.0, flow.device_s / (started * job.task_s))  # of a task that is cut, so much of its transfers
    client_j = assumed["compute_w"] * flow.compute_s + started * moved * (
        assumed["receive_w"] * job.down_bytes / job.downlink_bytes_per_s
        + assumed["send_w"] * job.up_bytes / job.uplink_bytes_per_s
    )
    peak = flow.updates_peak_per_s
    servers = float(aggregators(peak, assumed["aggregate_s_per_update"], assumed["server_load"]))
    model = job.model_bytes or job.down_bytes
    server_j = 2 * assumed["server_w"] * assumed["pue"] * time * servers
    network_j = 8 * (flow.bytes_down + flow.bytes_up) * assumed["network_j_per_bit"]
    energy = client_j + network_j + server_j
    storage = job.versions * model + job.kept_bytes
    money = flow.bytes_down / 1e9 * assumed["egress_per_gb"] + 2 * servers * time / HOUR_S * assumed["server_per_h"]
    money += storage / 1e9 * assumed["storage_per_gb_month"] * max(time / MONTH_S, 1.0)
    money += flow.device_s / HOUR_S * assumed["device_h_price"]
    of_battery = min(1.0, client_j / started / (assumed["battery_wh"] * HOUR_S))
    return {
        "time_to_target_s": time, "version_s": time / job.versions, "tasks_started": started, "tasks_ok": flow.ok,
        "waste_share": min(1.0, max(0.0, 1 - flow.ok / started)), "staleness": flow.staleness,
        "device_h": flow.device_s / HOUR_S, "compute_h": flow.compute_s / HOUR_S,
        "bytes_down": flow.bytes_down, "bytes_up": flow.bytes_up,
        "updates_per_s": flow.ok / time, "updates_per_s_peak": peak, "ingress_bytes_per_s_peak": peak * job.up_bytes,
        "egress_bytes_per_s_peak": flow.starts_peak_per_s * job.down_bytes,
        "checkins_per_s_peak": flow.starts_peak_per_s, "aggregators": servers,
        "tee_memory_bytes": assumed["updates_held"] * job.up_bytes, "storage_bytes": storage,
        "device_bytes": model + job.asset_bytes,
        "battery_share_per_task": of_battery,
        "battery_share_per_day": min(1.0, of_battery * assumed["tasks_per_user_day"]),
        "client_energy_j": client_j, "network_energy_j": network_j, "server_energy_j": server_j,
        "energy_j": energy, "carbon_g": energy / JOULES_PER_KWH * assumed["carbon_g_per_kwh"], "cost": money,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Swing:
    """What a quantity becomes when one input goes to the low and the high end of its range, all else as it is."""

    input: str
    low: float
    high: float
    at_low: Mapping[str, float]
    at_high: Mapping[str, float]


JOB_RANGES: Mapping[str, tuple[float, float]] = {
    "concurrency": (0.5, 2.0), "buffer": (0.5, 2.0), "compute_s": (0.5, 2.0), "versions": (0.7, 1.5),
    "supply_per_s": (0.5, 2.0), "session_s": (0.5, 2.0), "links": (0.5, 1.5), "peak_over_mean": (0.8, 1.5),
}  # fmt: skip
"""Factors for the job's own inputs; links go together (FLINT's plus and minus half, ours otherwise)."""


def swings(
    job: Means,
    assumed: Mapping[str, tuple[float, float, float]],
    ranges: Mapping[str, tuple[float, float]] = JOB_RANGES,
    seen: Flow | None = None,
) -> list[Swing]:
    """One `Swing` for each input of the job and each assumption (value, low, high) with a range.

    `seen`: a simulation's flow, which an input changes in the proportion in which it changes the closed form's.
    """
    middle = {name: one[0] for name, one in assumed.items()}
    base = flow_of(job)
    mine = base if seen is None else seen

    def at(changed: Means) -> Mapping[str, float]:
        try:
            flow = mine.as_from(base, flow_of(changed))
        except UsageError:  # where no task can end, everything takes for ever
            flow = replace(mine, time_s=inf)
        return follows(flow, changed, middle)

    out: list[Swing] = []
    for name, (low, high) in ranges.items():
        ends = [_scaled(job, name, factor) for factor in (low, high)]
        if None in ends:
            continue
        told = [at(one) for one in ends if one is not None]
        value = 1.0 if name == "links" else float(getattr(job, name))
        out.append(Swing(name, value * low, value * high, told[0], told[1]))
    for name, (_, low, high) in assumed.items():
        if low < high:
            told = [follows(mine, job, {**middle, name: value}) for value in (low, high)]
            out.append(Swing(name, low, high, told[0], told[1]))
    return out


def ranges_of(base: Mapping[str, float], found: Sequence[Swing]) -> dict[str, tuple[float, float]]:
    """A range for each quantity: deviations by single inputs, up and down apart, added as independent ones are.

    In the logarithm, by root of the sum of squares (ours): inputs at their worst all at once are not expected. The
    range of a share ends at 0 and 1.
    """
    out: dict[str, tuple[float, float]] = {}
    for name, middle in base.items():
        if middle <= 0:
            ends = [one[name] for swing in found for one in (swing.at_low, swing.at_high)]
            out[name] = (min([middle, *ends]), max([middle, *ends]))
            continue
        up = down = 0.0
        for swing in found:
            moves = [log(max(one[name], 1e-9 * middle) / middle) for one in (swing.at_low, swing.at_high)]
            up += max(*moves, 0.0) ** 2
            down += min(*moves, 0.0) ** 2
        high = middle * exp(sqrt(up)) if up < 4e5 else inf
        out[name] = (middle * exp(-sqrt(down)), min(1.0, high) if name in SHARES else high)
    return out


def _scaled(job: Means, name: str, factor: float) -> Means | None:
    """The job with one input times a factor; None where that input is without bound."""
    if name == "links":
        return replace(job, downlink_bytes_per_s=job.downlink_bytes_per_s * factor,
                       uplink_bytes_per_s=job.uplink_bytes_per_s * factor)  # fmt: skip
    value = getattr(job, name)
    if value == inf:
        return None
    new = max(1, round(value * factor)) if name in ("concurrency", "buffer") else value * factor
    if name == "peak_over_mean":
        new = max(1.0, new)
    return replace(job, **{name: new})


INPUTS = tuple(one.name for one in fields(Means))
