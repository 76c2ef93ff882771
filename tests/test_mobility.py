"""Which edge a device is at: tables, moves, gaps, and devices that walk over a grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.core.errors import UsageError
from fieldfare.core.events import Moved
from fieldfare.fleet.mobility import FOR_EVER_S, NOWHERE, Mobility, waypoints

TABLES = [
    [(0, 0), (30, 1), (50, 0)],
    [(0, 1)],
    [(0, 1), (10, -1), (25, 0)],
    [(0, -1), (5, 0), (20, -1), (40, 0), (60, -1)],
]


def test_the_edge_at_any_time_is_that_of_the_last_entry():
    one = Mobility.of(TABLES, edges=2)
    assert one.at(0.0).tolist() == [0, 1, 1, -1]
    assert one.at(24.999).tolist() == [0, 1, -1, -1]
    assert one.at(30.0, np.array([0, 2])).tolist() == [1, 0]
    assert one.table([0.0, 100.0]).tolist() == [[0, 0], [1, 1], [1, 0], [-1, -1]]
    assert one.homes().tolist() == [0, 1, 1, 0]


def test_moves_pass_over_gaps_and_coming_back_is_none():
    one = Mobility.of(TABLES, edges=2)
    moves = one.moves()
    rows = zip(moves.device, moves.at_s, moves.before, moves.after, moves.gap_s, strict=True)
    assert [tuple(map(float, row)) for row in rows] == [
        (2, 25, 1, 0, 15), (0, 30, 0, 1, 0), (0, 50, 1, 0, 0),
    ]  # fmt: skip
    device, begin, end = one.gaps()
    assert device.tolist() == [2, 3, 3, 3]
    assert begin.tolist() == [10, 0, 20, 60]
    assert end.tolist() == [25, 5, 40, np.inf]
    never = (60, 60 + FOR_EVER_S)
    assert one.outages(["a", "b", "c", "d"]) == {"c": ((10, 25),), "d": ((0, 5), (20, 40), never)}
    assert one.describe() == {"devices": 4, "edges": 2, "moves": 3, "gaps": 4}


def test_happenings_reach_the_device_and_both_edges_the_old_one_first_where_a_move_is_foreseen():
    one = Mobility.of([[(0, 0), (3, 1)]], edges=2)
    assert one.happenings(["d"], ["A", "B"]) == ((3.0, Moved("d", "B"), ("d", "A", "B")),)
    assert one.happenings(["d"], ["A", "B"], lead_s=5.0) == (
        (0.0, Moved("d", "B"), ("A",)), (3.0, Moved("d", "B"), ("d", "B")),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Mobility.of([[(1, 0)]], 1), "at 0 s"),
        (lambda: Mobility.of([[(0, 0)], [(0, 0), (float("nan"), 1)]], 2), "device 1 has a time that is no number"),
        (lambda: Mobility.of([[(0, 0)], []], 1), "device 1 is at no edge"),
        (lambda: Mobility.of([[(0, 0), (2, 3)]], 2), "there are 2"),
        (lambda: Mobility.of([[(0, 0), (2, 1), (2, 0)]], 2), "do not ascend"),
        (lambda: Mobility.of_columns([0, 4], [0, 0], [0, 0], 2, 1), "device 4"),
        (lambda: Mobility.of([[(0, 0)]], 1).happenings(["a", "b"], ["A"]), "one each"),
        (lambda: waypoints(0), "n and grid"), (lambda: waypoints(1, radius_m=5.0, hysteresis_m=9.0), "radius"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_is_refused_in_one_line(make, match):
    with pytest.raises(UsageError, match=match) as told:
        make()
    assert "\n" not in str(told.value)


def test_a_walk_keeps_to_its_speed_and_its_rectangle():
    walk = waypoints(20, grid=(2, 3), spacing_m=100.0, speed_m_s=(1.0, 3.0), horizon_s=600.0, seed=3)
    step = np.hypot(np.diff(walk.x_m), np.diff(walk.y_m))
    assert step.max() <= 3.0 + 1e-9
    assert step.max() > 2.0
    assert walk.x_m.min() >= -50
    assert walk.x_m.max() <= 250
    assert walk.y_m.min() >= -50
    assert walk.y_m.max() <= 150
    assert len(walk.mobility.moves().at_s) > 20


def test_a_device_walks_the_same_way_in_any_company():
    few, many = waypoints(2, horizon_s=300.0), waypoints(7, horizon_s=300.0)
    assert few.x_m.tobytes() == many.x_m[:2].tobytes()
    assert few.mobility.table([100.0, 200.0]).tolist() == many.mobility.table([100.0, 200.0])[:2].tolist()


def test_hysteresis_makes_moves_fewer_and_no_device_further_from_its_edge_than_it_allows():
    none, some = (waypoints(40, horizon_s=3000.0, hysteresis_m=h, seed=1) for h in (0.0, 40.0))
    assert len(some.mobility.moves().at_s) < len(none.mobility.moves().at_s)
    table = some.mobility.table(some.times_s[::50])
    for at, step in enumerate(range(0, len(some.times_s), 50)):
        away = np.hypot(some.x_m[:, step, None] - some.edges_m[:, 0], some.y_m[:, step, None] - some.edges_m[:, 1])
        own = away[np.arange(40), table[:, at]]
        assert (own <= away.min(axis=1) + 40.0 + 1e-9).all()


def test_beyond_the_radius_there_is_no_edge():
    walk = waypoints(30, spacing_m=300.0, radius_m=100.0, hysteresis_m=10.0, horizon_s=2000.0)
    table = walk.mobility.table(walk.times_s[::20])
    for at, step in enumerate(range(0, len(walk.times_s), 20)):
        away = np.hypot(walk.x_m[:, step, None] - walk.edges_m[:, 0], walk.y_m[:, step, None] - walk.edges_m[:, 1])
        out = table[:, at] == NOWHERE
        assert (away[~out][np.arange((~out).sum()), table[~out, at]] <= 100.0).all()
        assert (away[out].min(axis=1) > 90.0 - 2.0).all() or not out.any()
    assert (table == NOWHERE).any()
    assert (walk.mobility.moves().gap_s > 0).any()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_moves_of_any_table_lead_from_each_edge_to_the_next(data):
    n = data.draw(st.integers(1, 4))
    tables = [
        [(t, data.draw(st.integers(-1, 2))) for t in [0, *sorted(data.draw(st.sets(st.integers(1, 50), max_size=6)))]]
        for _ in range(n)
    ]
    one = Mobility.of(tables, edges=3)
    for t in (0.0, 7.0, 25.5, 60.0):
        assert one.at(t).tolist() == [[edge for at, edge in table if at <= t][-1] for table in tables]
    at, moves = one.homes().copy(), one.moves()
    for device, before, after in zip(moves.device, moves.before, moves.after, strict=True):
        assert at[device] == before != after
        at[device] = after
    last = [next((edge for _, edge in reversed(table) if edge >= 0), -1) for table in tables]
    assert at.tolist() == last
