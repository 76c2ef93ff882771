"""FLINT's shapes (Wang et al., MLSys 2023, figures 7 and 8, and the text on both), system only, beside closed forms.

The set-up is analogous, not FLINT's: a task takes 30 s on average, log-normal with sigma 1.85 from task to task, and
about 105 devices are available at a time, each for 15 minutes. So supply binds above 105 at work, and a session's end
interrupts the task at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from fieldfare.algorithms import FedAvg, FedBuff, SemiSync
from fieldfare.core import rng
from fieldfare.core.params import Layout, Params
from fieldfare.core.quorum import Staleness
from fieldfare.core.work import Cost
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.sim.observe import Answered
from fieldfare.sim.population import Population
from fieldfare.sim.simulator import Simulator, World

MEAN_S, SIGMA, BUFFER, THERE, SESSION_S, HOURS = 30.0, 1.85, 50, 105, 900.0, 1.5
MODEL = Params(np.zeros(2, np.float32), Layout.of({"w": (2,)}))
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Timed:
    """A work of which only the cost is known: 30 s of computing on this fleet."""

    def cost(self, examples: Any, layout: Any, config: Any) -> Cost:
        return Cost(MEAN_S, 0.0, 0.0)

    def alike(self, config: Any) -> Any:
        return None


@dataclass(frozen=True)
class Played:
    """Counts of tasks by outcome and device-seconds by outcome; ages of replies; when versions were made; seconds."""

    tasks: dict[str, int]
    device_s: float
    ok_seconds: np.ndarray
    versions: np.ndarray
    end_s: float

    @property
    def all(self) -> int:
        return sum(self.tasks.values())

    def share(self, outcome: str) -> float:
        return self.tasks.get(outcome, 0) / self.all

    @property
    def period_s(self) -> float:
        """Seconds per version, the first ones left out."""
        return float(np.diff(self.versions[5:]).mean())


def fleet(sigma: float, sessions: Availability | None) -> Fleet:
    return Fleet(
        flops_per_s=1.0, overhead_s=0.0, downlink_bytes_per_s=1e30, uplink_bytes_per_s=1e30, noise=sigma,
        availability=sessions,
    )  # fmt: skip


@cache
def supply() -> Availability:
    """Sessions of 15 minutes that begin at random, once in the time simulated; about 105 devices at a time."""
    whole = HOURS * 3600
    n = round(THERE * whole / SESSION_S)
    begin = np.floor(rng.uniforms(np.array([rng.derive(1, "supply")], np.uint64), np.arange(n)) * whole)
    traces = [
        [(b, b + SESSION_S)] if b + SESSION_S <= whole else [(0.0, b + SESSION_S - whole), (b, whole)] for b in begin
    ]
    return Availability.of(traces, whole)


def play(algorithm: Any, made: Fleet, n: int, until_s: float = np.inf) -> Played:
    world = World(
        {"central": ("central", algorithm)}, MODEL, Population(n, np.ones(n, np.int64), made), {"train": Timed()}
    )  # fmt: skip
    seen: list[Answered] = []
    simulator = Simulator(world, None, lambda one: seen.append(one) if isinstance(one, Answered) else None)
    simulator.start()
    while not simulator.progress.stopped and simulator.progress.now < until_s:
        simulator.advance()
    counts: dict[str, int] = {}
    device_s, ok = 0.0, []
    for one in seen:
        tasks = one.ask.tasks(made)
        for name, count in tasks.by_outcome().items():
            counts[name] = counts.get(name, 0) + count
        device_s += sum(tasks.seconds_by_outcome().values())
        ok.append((tasks.end - tasks.start)[tasks.outcome == 0])
    return Played(counts, device_s, np.concatenate(ok), np.array([one.now for one in seen]), simulator.progress.now)


@cache
def asynchronous(concurrency: int, buffer: int = BUFFER, limit: int | None = 10) -> Played:
    """FedBuff for an hour and a half over limited supply."""
    algorithm = FedBuff(10**6, concurrency, buffer, Staleness(limit=limit))
    return play(algorithm, fleet(SIGMA, supply()), supply().size, HOURS * 3600)


def mean_cut_s() -> float:
    """E[min(D, remaining)] of tasks done one after the other in a session: its length over the tasks it holds."""
    return SESSION_S / renewals()


@cache
def renewals() -> float:
    """Expected tasks begun in one session, whose devices are never idle: the renewal function of D, by simulation."""
    g = rng.stream(3, "renewals")
    d = MEAN_S * np.exp(SIGMA * g.standard_normal((4000, 1500)) - SIGMA**2 / 2)
    return float((np.cumsum(d, axis=1) < SESSION_S).sum(axis=1).mean() + 1)


@cache
def task_times() -> np.ndarray:
    """D at 20,000 quantiles."""
    from statistics import NormalDist

    z = np.array([NormalDist().inv_cdf((i + 0.5) / 20_000) for i in range(20_000)])
    return MEAN_S * np.exp(SIGMA * z - SIGMA**2 / 2)


def stale_share(limit: int, period_s: float) -> float:
    """P(more than `limit` versions are made during D, and D ends before the session): a task begins at any moment of a
    version, and of a session."""
    d, u = task_times(), (np.arange(50)[:, None] + 0.5) / 50
    old = np.floor(d / period_s + u) > limit
    return float((old * np.maximum(1.0 - d / SESSION_S, 0.0)).mean())


def test_tasks_rise_with_concurrency_and_then_supply_binds() -> None:
    runs = {c: asynchronous(c) for c in (60, 120, 180, 240)}
    tasks = {c: p.all for c, p in runs.items()}
    there = float(supply().share(np.arange(0, HOURS * 3600, 10.0)).mean()) * supply().size
    assert there == pytest.approx(THERE, rel=0.02)
    assert tasks[120] / tasks[60] == pytest.approx(there / 60, rel=0.06)
    assert max(tasks[120], tasks[180], tasks[240]) / min(tasks[120], tasks[180], tasks[240]) < 1.03
    assert runs[240].tasks["interrupted"] == pytest.approx(supply().size, rel=0.05), "each session's end cuts one task"
    for concurrency, p in runs.items():
        assert p.device_s / p.end_s == pytest.approx(min(concurrency, there), rel=0.05), "Little: at work = rate x time"
        assert sum(p.tasks.values()) == p.all
    rate = there / mean_cut_s()
    assert tasks[240] / runs[240].end_s == pytest.approx(rate, rel=0.05)


def test_the_stale_share_falls_with_the_limit_and_the_interrupted_share_does_not() -> None:
    runs = {limit: asynchronous(120, limit=limit) for limit in (1, 10, 20, 30, 40)}
    stale = [p.share("stale") for p in runs.values()]
    assert stale == sorted(stale, reverse=True)
    assert 0.10 < stale[0] < 0.28  # the paper: 19.1 %
    assert 0.01 < stale[1] < 0.05  # 3.6 %
    assert stale[4] < 0.007  # 0.5 %
    for limit, p in runs.items():
        assert p.share("stale") == pytest.approx(stale_share(limit, p.period_s), rel=0.1, abs=0.002), f"limit {limit}"
    interrupted = [p.share("interrupted") for p in runs.values()]
    assert max(interrupted) - min(interrupted) < 0.005
    assert min(interrupted) > 0.02


def test_the_time_of_a_version_is_linear_in_the_buffer() -> None:
    runs = {buffer: asynchronous(180, buffer, None) for buffer in (20, 40, 80, 120)}
    each = {buffer: p.period_s / buffer for buffer, p in runs.items()}
    assert max(each.values()) / min(each.values()) < 1.03
    for buffer, p in runs.items():
        assert p.period_s == pytest.approx(buffer / (p.tasks["ok"] / p.end_s), rel=0.03), (
            "K / (rate x share that is ok)"
        )


def order_statistic(sigma: float, place: int, among: int) -> float:
    """The mean of the `place`-th smallest of `among` task times, by quantiles of the beta distribution's draws."""
    g = rng.stream(7, "order", place, among)
    some = np.exp(sigma * g.standard_normal((20_000, among)) - sigma**2 / 2)
    return MEAN_S * float(np.partition(some, place - 1, axis=1)[:, place - 1].mean())


@pytest.mark.parametrize(("sigma", "waiting", "over", "rounds"), [
    (0.6, 4.6, 1.7, 300), (1.0, 9.2, 1.6, 600), (1.85, 27.0, 0.9, 2500)
])  # fmt: skip
def test_waiting_for_all_takes_many_times_as_long_as_asynchrony(sigma, waiting, over, rounds) -> None:
    made, n = fleet(sigma, None), 2000
    buffered = play(FedBuff(300, 65, 50), made, n)
    everybody = play(FedAvg(rounds, 65), made, n)
    fastest = play(SemiSync(300, 50, over=1.3), made, n)
    step = buffered.period_s
    assert step == pytest.approx(50 * MEAN_S / 65, rel=0.06)
    assert everybody.period_s / step == pytest.approx(waiting, rel=0.15)
    assert fastest.period_s / step == pytest.approx(over, rel=0.08)
    assert everybody.period_s == pytest.approx(order_statistic(sigma, 65, 65), rel=0.12)
    assert fastest.period_s == pytest.approx(order_statistic(sigma, 50, 65), rel=0.05)
    assert fastest.tasks["late"] == 300 * 15
    mean_of_fastest = fastest.ok_seconds.mean()
    assert mean_of_fastest < 0.75 * MEAN_S, "over-selection takes the fast"
    assert buffered.ok_seconds.mean() > mean_of_fastest
