"""What a job takes, as one pure function of plain numbers: the closed form beside a simulation, and its sensitivities.

Here: from a job's settings and means to every quantity of the forecast; what one input's range does to each. Not here:
where the numbers come from (`build`). Invariants: a pure function; SI units (money in whatever the prices are in).
FLINT's report, section 11; the energy model is Green FL's (Yousefpour et al., 2023) with our own constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import exp, inf, log, sqrt

from fieldfare.assess.forecast.closed import LogNormal, synchronous_round_s, throughput
from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings

HOUR_S, DAY_S, MONTH_S = 3_600.0, 86_400.0, 30 * 86_400.0
JOULES_PER_KWH = 3.6e6


@settings
@dataclass(frozen=True)
class Means:
    """A job and its devices in means: what the closed form starts from.

    `buffered`: FedBuff, else rounds of `buffer` with `over` times as many asked. `versions`: how many make the target.
    `compute_s`: mean computing time of a task, `sigma` of its logarithm. `supply_per_s`: devices that come and may
    work; `session_s`: how long they stay. `peak_over_mean`: of availability over a week. `down_bytes`, `up_bytes` of a
    task; links in bytes per second.
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
    timeout_s: float = inf
    downlink_bytes_per_s: float = 5e6
    uplink_bytes_per_s: float = 1e6
    overhead_s: float = 1.0
    peak_over_mean: float = 1.0
    model_bytes: float = 0.0

    def __post_init__(self) -> None:
        for name in ("versions", "buffer", "concurrency", "compute_s", "supply_per_s", "session_s", "peak_over_mean"):
            if not getattr(self, name) > 0:
                raise UsageError(f"Means({name}={getattr(self, name)}): use a number above 0.")

    @property
    def transfer_s(self) -> float:
        return self.down_bytes / self.downlink_bytes_per_s + self.up_bytes / self.uplink_bytes_per_s

    @property
    def task_s(self) -> float:
        """Mean seconds of a task that is not cut."""
        return self.compute_s + self.transfer_s + self.overhead_s


UNITS: Mapping[str, str] = {
    "time_to_target_s": "s", "version_s": "s", "tasks_started": "tasks", "tasks_ok": "tasks", "waste_share": "1",
    "staleness": "versions", "device_h": "h", "compute_h": "h", "bytes_down": "B", "bytes_up": "B",
    "updates_per_s": "1/s", "updates_per_s_peak": "1/s", "ingress_bytes_per_s_peak": "B/s",
    "egress_bytes_per_s_peak": "B/s", "checkins_per_s_peak": "1/s", "aggregators": "servers",
    "tee_memory_bytes": "B", "storage_bytes": "B", "battery_share_per_task": "1", "battery_share_per_day": "1",
    "client_energy_j": "J", "network_energy_j": "J", "server_energy_j": "J", "energy_j": "J", "carbon_g": "g",
    "cost": "money",
}  # fmt: skip
FORMULAS: Mapping[str, str] = {
    "time_to_target_s": "versions x K / (lambda p_ok)", "version_s": "K / (lambda p_ok)",
    "tasks_started": "lambda T", "tasks_ok": "versions x K", "waste_share": "1 - ok / started",
    "staleness": "D lambda p_ok / K", "device_h": "tasks x E[min(D, cut)]", "compute_h": "tasks x compute share",
    "bytes_down": "tasks x M_down", "bytes_up": "ok x M_up", "updates_per_s": "K / version",
    "updates_per_s_peak": "mean x peak over mean", "ingress_bytes_per_s_peak": "peak updates/s x M_up",
    "egress_bytes_per_s_peak": "peak tasks/s x M_down", "checkins_per_s_peak": "peak tasks/s",
    "aggregators": "ceil(peak updates/s x s per update / load)", "tee_memory_bytes": "updates held x M_up",
    "storage_bytes": "versions x M", "battery_share_per_task": "energy of a task / battery",
    "battery_share_per_day": "share of a task x tasks a day", "client_energy_j": "P t of computing, receiving, sending",
    "network_energy_j": "bits x J/bit", "server_energy_j": "2 x W x PUE x T x servers", "energy_j": "sum of the three",
    "carbon_g": "energy x intensity", "cost": "egress + servers + storage + devices' hours",
}  # fmt: skip


def quantities(job: Means, assumed: Mapping[str, float]) -> dict[str, float]:
    """Every quantity of `UNITS`; `UsageError` where no task can end before it is cut. Cost: microseconds."""
    task = LogNormal(job.task_s, job.sigma)
    cut = min(job.session_s, job.timeout_s)
    busy = task.capped(cut)
    if job.buffered:
        flow = throughput(job.concurrency, job.buffer, task, supply_per_s=job.supply_per_s, session_s=job.session_s,
                          timeout_s=job.timeout_s, max_staleness=job.max_staleness)  # fmt: skip
        version, rate, ok, stale = flow.version_s, flow.tasks_per_s, flow.ok_share, flow.staleness
    else:
        asked = job.over * job.buffer
        wait = asked / job.supply_per_s if job.supply_per_s < inf else 0.0
        version = max(synchronous_round_s(job.buffer, task, job.over), wait)
        rate, stale = asked / version, 0.0
        ok = job.buffer / asked
    if version == inf:
        raise UsageError(
            f"no task of {job.task_s:.3g} s can end before it is cut, after {cut:.3g} s: give smaller tasks, longer "
            "sessions or a later time-out."
        )
    time = job.versions * version
    tasks, done = rate * time, job.versions * job.buffer
    share = busy / job.task_s
    peak = done / time * job.peak_over_mean
    task_j = share * (
        assumed["compute_w"] * job.compute_s
        + assumed["receive_w"] * job.down_bytes / job.downlink_bytes_per_s
        + assumed["send_w"] * job.up_bytes / job.uplink_bytes_per_s
    )
    down, up = tasks * job.down_bytes, done * job.up_bytes
    busy_servers = peak * assumed["aggregate_s_per_update"] / assumed["server_load"]
    servers = max(1.0, float(-(-busy_servers // 1)))
    model = job.model_bytes or job.down_bytes
    server_j = 2 * assumed["server_w"] * assumed["pue"] * time * servers
    network_j = 8 * (down + up) * assumed["network_j_per_bit"]
    energy = tasks * task_j + network_j + server_j
    storage = job.versions * model
    money = down / 1e9 * assumed["egress_per_gb"] + 2 * servers * time / HOUR_S * assumed["server_per_h"]
    money += storage / 1e9 * assumed["storage_per_gb_month"] * max(time / MONTH_S, 1.0)
    money += tasks * busy / HOUR_S * assumed["device_h_price"]
    of_battery = task_j / (assumed["battery_wh"] * HOUR_S)
    return {
        "time_to_target_s": time, "version_s": version, "tasks_started": tasks, "tasks_ok": done,
        "waste_share": 1 - ok, "staleness": stale, "device_h": tasks * busy / HOUR_S,
        "compute_h": tasks * share * job.compute_s / HOUR_S, "bytes_down": down, "bytes_up": up,
        "updates_per_s": done / time, "updates_per_s_peak": peak, "ingress_bytes_per_s_peak": peak * job.up_bytes,
        "egress_bytes_per_s_peak": rate * job.peak_over_mean * job.down_bytes,
        "checkins_per_s_peak": rate * job.peak_over_mean, "aggregators": servers,
        "tee_memory_bytes": assumed["updates_held"] * job.up_bytes, "storage_bytes": storage,
        "battery_share_per_task": of_battery, "battery_share_per_day": of_battery * assumed["tasks_per_user_day"],
        "client_energy_j": tasks * task_j, "network_energy_j": network_j, "server_energy_j": server_j,
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
) -> list[Swing]:
    """One `Swing` for each input of the job and each assumption (value, low, high) with a range."""
    middle = {name: one[0] for name, one in assumed.items()}
    out: list[Swing] = []
    for name, (low, high) in ranges.items():
        ends = [_scaled(job, name, factor) for factor in (low, high)]
        if None in ends:
            continue
        told = [_or_never(one, middle) for one in ends if one is not None]
        base = 1.0 if name == "links" else float(getattr(job, name))
        out.append(Swing(name, base * low, base * high, told[0], told[1]))
    for name, (_, low, high) in assumed.items():
        if low < high:
            told = [quantities(job, {**middle, name: value}) for value in (low, high)]
            out.append(Swing(name, low, high, told[0], told[1]))
    return out


def _or_never(job: Means, assumed: Mapping[str, float]) -> Mapping[str, float]:
    """The quantities; where no task can end, infinite ones."""
    try:
        return quantities(job, assumed)
    except UsageError:
        return {name: 1.0 if name == "waste_share" else inf for name in UNITS}


def ranges_of(base: Mapping[str, float], found: list[Swing]) -> dict[str, tuple[float, float]]:
    """A range for each quantity: deviations by single inputs, up and down apart, added as independent ones are.

    In the logarithm, by root of the sum of squares (ours): inputs at their worst all at once are not expected.
    """
    out: dict[str, tuple[float, float]] = {}
    for name, middle in base.items():
        if middle <= 0:
            ends = [one[name] for swing in found for one in (swing.at_low, swing.at_high)]
            out[name] = (min([middle, *ends]), max([middle, *ends]))
            continue
        up = down = 0.0
        for swing in found:
            moves = [log(max(one[name], 1e-300) / middle) for one in (swing.at_low, swing.at_high)]
            up += max(*moves, 0.0) ** 2
            down += min(*moves, 0.0) ** 2
        out[name] = (middle * exp(-sqrt(down)), middle * exp(sqrt(up)))
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
