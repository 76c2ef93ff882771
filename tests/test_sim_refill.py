"""Who replaces those who end in a stream: all that are there alike, whatever sessions do; a rule chooses some."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from test_sim_stream import play

from fieldfare.algorithms import FedBuff
from fieldfare.core.quorum import Sample
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.pool import Pool, draws
from fieldfare.fleet.selection import PowerOfChoice, Tiers, Uniform
from fieldfare.fleet.tasks import INTERRUPTED

ON_S, OFF_S = 20.0, 10.0
NOTED: list[tuple[int, int, int, float, list[int]]] = []
"""(version, how many were chosen, of how many, what part of a cohort, who)."""


@dataclass(frozen=True)
class Noted(Uniform):
    """All alike, and every choice is noted."""

    name = "noted"

    def choose(self, state: Any, count: int, pool: Any, draw: Any) -> Any:
        chosen, state = super().choose(state, count, pool, draw)
        NOTED.append((pool.round, count, pool.size, pool.part, chosen.tolist()))
        return chosen, state


def flapping(n: int, **more: Any) -> Fleet:
    """Devices that are there for 20 s and away for 10 s, again and again, each at times of its own."""
    random = np.random.default_rng(n)
    shift = random.uniform(0.0, ON_S + OFF_S, n).astype(np.float32)
    sessions = Availability(
        np.array([0, 1]), np.array([0.0]), np.array([ON_S]), ON_S + OFF_S, np.zeros(n, np.int32), shift
    )
    return Fleet(overhead_s=random.uniform(4.0, 6.0, n).astype(np.float32), availability=sessions, **more)


@pytest.mark.parametrize("more", [{}, {"noise": 0.3}, {"drop_out": 0.2}], ids=["plain", "noise", "drop-out"])
@pytest.mark.parametrize("n", [300, 6000], ids=["tracking", "chance"])
def test_those_who_have_just_come_are_drawn_as_often_as_those_who_came_long_ago(n, more) -> None:
    p = play(FedBuff(400, 20, 20), n, flapping(n, **more))
    assert p.stream.candidates.tracking == (n == 300)
    tasks = p.over.start > 0
    client, start = p.over.client[tasks], p.over.start[tasks]
    since = start - p.world.population.fleet.availability.session(start, client)[0]
    assert 0.0 <= since.min() <= since.max() < ON_S
    count = np.bincount((since / 2.0).astype(np.int64), minlength=10)
    expect = len(since) / 10
    assert float(((count - expect) ** 2 / expect).sum()) < 9 + 5 * np.sqrt(18)
    assert abs((p.over.outcome == INTERRUPTED).mean() - 5.0 / ON_S) < 0.03, "those who begin in the last 5 of 20 s"


@pytest.mark.parametrize(
    ("n", "cohort", "need", "most"), [(100, 8, 30, 16), (100, 8, 4, 4), (24, 12, 30, 3), (9, 8, 3, 1)]
)
def test_a_rule_chooses_few_of_those_who_are_there_and_anew_for_every_version(n, cohort, need, most) -> None:
    NOTED.clear()
    p = play(FedBuff(12, Sample(cohort, by=Noted()), need), n, Fleet(overhead_s=np.linspace(3, 9, n, dtype=np.float32)))
    assert NOTED[0][1:4] == (cohort, n, 1.0)
    assert max(count for _, count, *_ in NOTED[1:]) == most
    for _, count, size, part, _ in NOTED[1:]:
        assert count == max(1, min(size // 4, 16, need))
        assert part == count / cohort
    for version in range(2, 13):
        mine = p.over.client[p.over.base == version].tolist()
        assert set(mine) <= {client for at, *_, who in NOTED if at == version for client in who}


def test_rules_count_a_part_of_a_cohort_as_a_part() -> None:
    pool = Pool(np.arange(40), np.ones(40, np.int64), np.arange(40.0), part=0.5)
    drawn = draws(0, "a")
    rule = PowerOfChoice(candidates=16)
    state = rule.init(40)
    state["loss"][:] = np.arange(40)
    some, _ = rule.choose(state, 1, pool, drawn)
    among = PowerOfChoice(candidates=8).choose(state, 1, replace(pool, part=1.0), drawn)[0]
    assert some.tolist() == among.tolist()
    assert rule.choose(state, 1, replace(pool, part=1.0), drawn)[0] >= some
    tiers = Tiers(tiers=2, credits=1)
    state = tiers.init(40)
    for left in (1.5, 1.0, 0.5, 0.0):
        tiers.choose(state, 4, pool, drawn)
        assert state["credits"].sum() == left
