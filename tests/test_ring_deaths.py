"""Fleets whose devices die in rings: they do, in the rings they should, and come back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.fleet.fleet import Fleet
from fieldfare.report.read_nodes import read_nodes
from fieldfare.ring_deaths import RingDeaths
from fieldfare.sim.links import Links


def job(**more):
    return ff.Job(
        model=ff.mlp(6, 5, 3), data=ff.data.synthetic(clients=4, classes=3, features=6, max_examples=60, seed=1),
        algorithm=ff.HADFL(cycles=9, latency_s=0.0, bytes_per_s=100.0), training=ff.Training(batch_size=5, steps=4),
        simulated=ff.Simulated(
            fleet=Fleet(np.array([3e3, 3e3, 1e3, 1e3]), 1e15, 1e15, overhead_s=0.0), links=Links(0.0, 100.0)
        ), **more,
    )  # fmt: skip


def mortal(one, **how):
    return replace(one, simulated=replace(one.simulated, fleet=RingDeaths(one, **how)))


def test_a_member_dies_while_its_first_frame_is_on_its_way(tmp_path):
    nodes = read_nodes(mortal(job(), every=4, first=3, away_s=5.0).run(tmp_path, progress=False, report=False).path)
    frames = nodes.frames()
    gone = [(now, node) for now, node, there in nodes.came if not there]
    assert len(gone) == 2
    for (now, node), cycle in zip(gone, (3, 7), strict=True):
        first = frames[frames["cycle"] == cycle][0]
        assert first["src"] == node
        assert first["sent_s"] < now
        assert np.isnan(first["arrives_s"]) or now < first["arrives_s"]
    back = [now for now, _, there in nodes.came if there]
    assert back == pytest.approx([now + 5.0 for now, _ in gone])


def test_the_same_job_makes_the_same_fleet():
    made = [RingDeaths(job(), every=4, first=3).build(4, 0).availability for _ in range(2)]
    assert np.array_equal(made[0].end, made[1].end)


@pytest.mark.parametrize(
    ("how", "words"),
    [({"every": 0}, "use numbers above 0"), ({"away_s": 0.0}, "use numbers above 0")],
)
def test_deaths_that_cannot_be_are_refused(how, words):
    with pytest.raises(UsageError, match=words):
        RingDeaths(job(), **how)
    with pytest.raises(UsageError, match="plain fleet"):
        RingDeaths(mortal(job()))


def test_a_ring_of_two_that_loses_one_is_drawn_to_where_it_was_called_off(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need fieldfare[report]")
    from fieldfare.report import style
    from fieldfare.report.plots_rings import close_up, ring_pictures

    nodes = read_nodes(mortal(job(), every=9, first=3, away_s=30.0).run(tmp_path, progress=False, report=False).path)
    off = nodes.of_kind("Decided")
    off = off[off["epoch"] < 0]
    assert set(off["cycle"]) == {3}
    begin, end = close_up(nodes, 3)
    assert begin < off["sent_s"].min() < end
    with style.drawing():
        drawn = ring_pictures(nodes)
    assert [one.title for one in drawn] == ["The ring over time", "The ring of cycle 3, close up"]
    for one in drawn:
        assert "called off" in one.markup
        assert "a ring was called off" in one.note
        assert ">ring 3<" in one.markup
